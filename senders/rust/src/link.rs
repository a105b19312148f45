// SPDX-License-Identifier: BSD-3-Clause

//! A connection to one of lingerd's sockets, and what is said there: lingerd-protocol(7). Must not know whose it is.

use crate::{MAX_PARTS, Part};
use rustix::fs::fstat;
use rustix::io::{Errno, FdFlags, fcntl_setfd, ioctl_fionbio, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketType, connect, recv, sendmsg, socket_with,
};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How long lingerd is not asked again when it could not be reached.
const PAUSE: Duration = Duration::from_secs(1);

/// The bytes of an `S` in front.
const HEAD: usize = 8 + 16 * MAX_PARTS;

/// Whether a message has to be allowed by lingerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Go {
    Needed,
    NotNeeded,
}

/// What tells an open file from any other: st_dev and st_ino of fstat(2).
type Identity = (u64, u64);

/// A link, as one process has it.
#[derive(Debug)]
pub struct Link {
    address: SocketAddrUnix,
    /// Shared with who waits on it: it is closed when nobody does any more.
    socket: Option<Arc<OwnedFd>>,
    /// Which file that is, for who has other things by its number since.
    identity: Option<Identity>,
    /// Whether connect(2) has succeeded; else it is still under way.
    connected: bool,
    tried: Option<Instant>,
    /// Whether lingerd has said that it takes a response, and has none yet.
    may_spool: bool,
    /// When the system had no room for a response that lingerd takes: it is not tried again for a while, as what is in
    /// memory would be copied in vain.
    full: Option<Instant>,
    /// Why there is no link.
    pub error: Option<Errno>,
}

impl Link {
    /// One to that address, which is opened when it is needed.
    pub fn to(address: SocketAddrUnix) -> Self {
        Link {
            address,
            socket: None,
            identity: None,
            connected: false,
            tried: None,
            may_spool: false,
            full: None,
            error: None,
        }
    }

    #[cfg(test)]
    pub fn address(&self) -> &SocketAddrUnix {
        &self.address
    }

    /// Sends a message. A link that turns out to be dead most likely means that lingerd was started anew, so that the same
    /// one is tried once more on a new link. What is queued on one that is merely full will be read: it is kept.
    pub fn send(&mut self, message: &[u8], descriptors: &[BorrowedFd<'_>], go: Go) -> Result<(), Errno> {
        let mut failed = Errno::AGAIN;
        for _ in 0..2 {
            if go == Go::Needed && !self.may_spool().0 {
                return Err(self.error.unwrap_or(Errno::AGAIN));
            }
            let socket = self.open()?;
            match send(&socket, message, descriptors) {
                // One byte goes or does not. A head does so, too, by the low-water mark of a stream; if not, lingerd
                // closes what came with the part that it has.
                Ok(sent) if sent == message.len() => {
                    self.may_spool &= go == Go::NotNeeded;
                    return Ok(());
                }
                Ok(_) => failed = Errno::PIPE,
                Err(error) if is_passing(error) => {
                    if go == Go::Needed {
                        self.full = Some(Instant::now());
                    }
                    return Err(error);
                }
                Err(error) => failed = error,
            }
            self.drop(failed);
        }
        Err(failed)
    }

    /// Whether lingerd takes a response now; and what becomes readable when it may, if there is a link.
    pub fn may_spool(&mut self) -> (bool, Option<Arc<OwnedFd>>) {
        for _ in 0..2 {
            let socket = match self.open() {
                Ok(socket) => socket,
                // Waited for as its word is. Not so where it has no room for one more (EAGAIN): of that no system tells
                // the end.
                Err(Errno::INPROGRESS | Errno::ALREADY) => return (false, self.socket.clone()),
                Err(_) => return (false, None),
            };
            if self.may_spool || self.hear(&socket) {
                let is_full = self.full.is_some_and(|full| full.elapsed() < PAUSE);
                return (self.may_spool && !is_full, Some(socket));
            }
        }
        (false, None)
    }

    /// Takes lingerd's word that it takes a response, which is of this link.
    pub fn take_word(&mut self) -> Weak<OwnedFd> {
        self.may_spool = false;
        self.socket.as_ref().map_or_else(Weak::new, Arc::downgrade)
    }

    /// Gives it back, unless there is another link by now.
    pub fn return_word(&mut self, word: &Weak<OwnedFd>) {
        self.may_spool |= self.socket.as_ref().is_some_and(|socket| word.as_ptr() == Arc::as_ptr(socket));
    }

    /// Parts with what is a parent's. Who closes all descriptors after fork(2), as daemons do, may have something else by
    /// that number, which stays.
    pub fn leave(&mut self) {
        let (socket, identity) = (self.socket.take(), self.identity);
        *self = Link::to(self.address.clone());
        // What a thread of the parent's was waiting on stays open: it is not here to give its share back.
        let Some(socket) = socket.and_then(Arc::into_inner) else { return };
        if identity.is_none() || identity_of(&socket) != identity {
            let _ = socket.into_raw_fd();
        }
    }

    /// The link. Opens it if there is none, once a second at most.
    fn open(&mut self) -> Result<Arc<OwnedFd>, Errno> {
        let socket = match &self.socket {
            Some(socket) => Arc::clone(socket),
            None => {
                if self.tried.is_some_and(|tried| tried.elapsed() < PAUSE) {
                    return Err(self.error.unwrap_or(Errno::AGAIN));
                }
                self.tried = Some(Instant::now());
                let socket = new_socket().inspect_err(|&error| self.error = Some(error))?;
                self.identity = identity_of(&socket);
                Arc::clone(self.socket.insert(Arc::new(socket)))
            }
        };
        if self.connected {
            return Ok(socket);
        }
        // Asked again it says what has become of it.
        match connect(&socket, &self.address) {
            Ok(()) | Err(Errno::ISCONN) => {
                self.connected = true;
                self.error = None;
                Ok(socket)
            }
            Err(error) => {
                // Under way. Not so where it has no room for one more (EAGAIN): each connect(2) is a try then.
                if matches!(error, Errno::INPROGRESS | Errno::ALREADY | Errno::INTR) {
                    self.error = Some(error);
                } else {
                    self.drop(error);
                }
                Err(error)
            }
        }
    }

    /// Takes note of what lingerd has said. Returns whether the link is still one.
    fn hear(&mut self, socket: &OwnedFd) -> bool {
        let mut said = [0; 64];
        match retry_on_intr(|| recv(socket, &mut said, RecvFlags::DONTWAIT)) {
            Ok((0, _)) => self.drop(Errno::PIPE),
            Ok((count, _)) => self.may_spool = said[..count].contains(&b'G'),
            Err(error) if is_passing(error) => {}
            Err(error) => self.drop(error),
        }
        self.socket.is_some()
    }

    fn drop(&mut self, error: Errno) {
        self.socket = None;
        self.connected = false;
        self.may_spool = false;
        self.error = Some(error);
    }
}

/// Its types differ by system.
#[allow(clippy::unnecessary_cast)]
fn identity_of(socket: &OwnedFd) -> Option<Identity> {
    fstat(socket).ok().map(|stat| (stat.st_dev as u64, stat.st_ino as u64))
}

/// A socket that does not block, and that no program inherits.
fn new_socket() -> Result<OwnedFd, Errno> {
    // Without the flag there is a moment in which another thread's fork(2) lets it slip; such a system has nothing better.
    #[cfg(not(target_vendor = "apple"))]
    let flags = rustix::net::SocketFlags::CLOEXEC;
    #[cfg(target_vendor = "apple")]
    let flags = rustix::net::SocketFlags::empty();
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    if flags.is_empty() {
        fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
    }
    ioctl_fionbio(&socket, true)?;
    #[cfg(target_vendor = "apple")]
    rustix::net::sockopt::set_socket_nosigpipe(&socket, true)?;
    Ok(socket)
}

fn send(socket: &OwnedFd, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<usize, Errno> {
    #[cfg(not(target_vendor = "apple"))]
    let flags = SendFlags::NOSIGNAL;
    #[cfg(target_vendor = "apple")]
    let flags = SendFlags::empty(); // see new_socket
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1 + MAX_PARTS))];
    retry_on_intr(|| {
        let mut control = SendAncillaryBuffer::new(&mut room);
        if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(Errno::INVAL); // more than there is room for
        }
        sendmsg(socket, &[IoSlice::new(message)], &mut control, flags)
    })
}

/// Whether an error only means "not now": the link is good, or soon will be.
fn is_passing(error: Errno) -> bool {
    // Too many descriptors on their way: ETOOMANYREFS on Linux, EMFILE or ENOBUFS elsewhere; unix(7). EBADF, and what else
    // is said of what is passed and not of the link, cannot be here: descriptors are open as long as they are lent.
    [Errno::AGAIN, Errno::INTR, Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::TOOMANYREFS]
        .contains(&error)
}

/// What a message says of a response that is still to be written, and the files that go with it.
pub fn spool_head<'a>(
    parts: &[Part<'a>],
    memory: Option<BorrowedFd<'a>>,
    patience: Duration,
) -> ([u8; HEAD], Vec<BorrowedFd<'a>>) {
    let mut head = [0; HEAD];
    let patience = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX).clamp(1, i32::MAX as u32);
    (head[0], head[1]) = (b'S', parts.len() as u8);
    head[4..8].copy_from_slice(&patience.to_be_bytes());
    let (mut files, mut at) = (Vec::with_capacity(parts.len()), 0);
    for (n, part) in parts.iter().enumerate() {
        let (file, offset, length, ours) = match *part {
            Part::File { file, offset, length, ours } => (Some(file), offset, length, ours),
            Part::Memory(bytes) => (memory, at, bytes.len() as u64, true),
        };
        if matches!(part, Part::Memory(_)) {
            at += length;
        }
        files.extend(file);
        head[3] |= u8::from(ours) << n;
        head[8 + 16 * n..][..8].copy_from_slice(&offset.to_be_bytes());
        head[16 + 16 * n..][..8].copy_from_slice(&length.to_be_bytes());
    }
    (head, files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processes::PerProcess;
    use std::fs;
    use std::io::{ErrorKind, Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::PathBuf;

    /// A daemon that listens where `/var/run` has another name, as it has where systemd listens, and what it has accepted
    /// of one that came by that name.
    struct Elsewhere {
        folder: PathBuf,
        link: Link,
        peer: UnixStream,
    }

    impl Elsewhere {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("lingerd-client.{name}.{}", std::process::id()));
            let (run, var_run) = (folder.join("run"), folder.join("var-run"));
            fs::create_dir_all(&run).unwrap();
            symlink(&run, &var_run).unwrap();
            let listener = UnixListener::bind(run.join("sock")).unwrap();
            let mut link = Link::to(SocketAddrUnix::new(var_run.join("sock")).unwrap());
            link.open().unwrap();
            let (peer, _) = listener.accept().unwrap();
            peer.set_nonblocking(true).unwrap();
            Elsewhere { folder, link, peer }
        }

        fn is_closed(&mut self) -> bool {
            match self.peer.read(&mut [0]) {
                Ok(count) => count == 0,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    false
                }
            }
        }
    }

    impl Drop for Elsewhere {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }

    #[test]
    fn a_parents_link_is_closed_whatever_its_path_is_called() {
        let mut elsewhere = Elsewhere::new("left");
        assert!(!elsewhere.is_closed());
        elsewhere.link.leave();
        assert!(elsewhere.is_closed());
    }

    #[test]
    fn what_has_come_by_the_number_of_a_parents_link_stays_open() {
        for leave in [Link::leave, |link: &mut Link| drop(PerProcess::of_a_parent(link))] {
            let mut elsewhere = Elsewhere::new("replaced");
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.set_nonblocking(true).unwrap();
            let number = Arc::get_mut(elsewhere.link.socket.as_mut().unwrap()).unwrap();
            rustix::io::dup2(&ours, number).unwrap();
            drop(ours);
            leave(&mut elsewhere.link);
            assert_eq!(theirs.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock, "it was closed");
            fs::remove_dir_all(&elsewhere.folder).unwrap();
        }
    }
    #[test]
    fn one_that_had_no_room_for_a_response_is_asked_again_after_a_while() {
        let mut elsewhere = Elsewhere::new("full");
        let link = &mut elsewhere.link;
        let null = fs::File::open("/dev/null").unwrap();
        (&elsewhere.peer).write_all(b"G").unwrap();
        assert!(link.may_spool().0);
        while link.send(b"L", &[null.as_fd()], Go::NotNeeded).is_ok() {}
        assert!(link.may_spool().0, "only a response is no longer tried");
        let start = Instant::now();
        assert!(is_passing(link.send(b"S", &[null.as_fd()], Go::Needed).unwrap_err()));
        let (may, waited_for) = link.may_spool();
        assert!(!may || start.elapsed() >= PAUSE);
        assert!(waited_for.is_some(), "the link is good");
    }
}
