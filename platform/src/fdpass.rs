// SPDX-License-Identifier: BSD-3-Clause

//! Unix stream sockets, and descriptors passed over them: unix(7), cmsg(3), SCM_RIGHTS.
//!
//! Knows the control message and its traps; must not know what the descriptors are.

use crate::backend::{Descriptor, Interest};
use crate::peer::{self, Peer};
use crate::{SEND_FLAGS, check, is_out_of_memory, process};
use std::cell::RefCell;
use std::io::{self, ErrorKind, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;
use std::{iter, mem, ptr};

/// The most descriptors in one message: Linux's SCM_MAX_FD. OpenBSD sends no more than 127.
pub const MAX_DESCRIPTORS: usize = 253;

/// So many go in one message on every system.
pub const PORTABLE_DESCRIPTORS: usize = 100;

/// Room for one control message with [`MAX_DESCRIPTORS`]: its header and data, each padded by at
/// most 16 bytes on any system.
const CONTROL_BYTES: usize = mem::size_of::<libc::cmsghdr>() + MAX_DESCRIPTORS * mem::size_of::<RawFd>() + 32;

/// A buffer for control messages, aligned as cmsg(3) wants it.
#[repr(C)]
struct Control {
    _align: [libc::cmsghdr; 0],
    bytes: [u8; CONTROL_BYTES],
}

impl Control {
    const EMPTY: Control = Control { _align: [], bytes: [0; CONTROL_BYTES] };
}

/// What one [`Link::receive`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// One byte; whatever descriptors came with it were appended to the caller's list.
    Byte {
        /// The byte itself.
        byte: u8,
        /// MSG_CTRUNC: the kernel had to drop descriptors that the sender had sent along, because
        /// this process was at its descriptor limit or the message held more than
        /// [`MAX_DESCRIPTORS`].
        truncated: bool,
    },
    /// As `truncated`, but nothing of the message is left: that is how some systems do it.
    Lost,
    /// The sender has closed.
    End,
}

/// The contract of one accepted connection over a Unix socket. Nothing here ever waits; dropping
/// closes, and closes whatever descriptors are still queued in it, which may take long.
pub trait Link: Descriptor + Sized {
    /// A descriptor that came along, close-on-exec, of whatever kind.
    type Received;

    /// Reads one byte, and appends the descriptors that came with it to `descriptors`: at most
    /// [`MAX_DESCRIPTORS`], and it is the caller who has seen to it that the process may open so many.
    /// With [`Received::End`] there may be descriptors too, on some systems.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; `Interrupted`; `OutOfMemory` when the system is short of
    /// memory (ENOMEM, ENOBUFS) and has taken nothing; anything else means that the connection is of no
    /// use any more. No descriptor is lost on error.
    fn receive(&self, descriptors: &mut Vec<Self::Received>) -> io::Result<Received>;

    /// Lets the other end say nothing more, while what it has said can still be read. Returns
    /// whether the system can do that: else it may go on talking, and nothing is changed.
    fn silence(&self) -> bool;

    /// Whether nothing is queued for certain. Where [`silence`](Self::silence) did nothing more may come.
    fn is_empty(&self) -> bool;

    /// Who is at the other end, as it was when it connected: what it becomes later, and whom it gives
    /// its end to, changes nothing.
    ///
    /// # Errors
    /// `Unsupported` where the system does not tell, and what it says of a connection that is gone.
    fn peer(&self) -> io::Result<Peer>;

    /// Writes `text`, all of it or as much as the other end has room for.
    ///
    /// # Errors
    /// What write(2) says; `WouldBlock` when there is no room for all of it.
    fn tell(&mut self, text: &[u8]) -> io::Result<()>;

    /// Says that this was all: the other end comes to the end, whoever else has a copy of this one.
    fn finish(&self);

    /// Sends what there is room for of `bytes`, and with the first of them copies of `descriptors`, at
    /// most [`PORTABLE_DESCRIPTORS`] where that is to work on every system. Returns how many bytes it
    /// were.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room; `ResourceBusy` when too many descriptors are in flight, which
    /// those who receive change; `OutOfMemory` as [`receive`](Self::receive); else what sendmsg(2)
    /// says. Nothing was sent then.
    fn pass(&self, bytes: &[u8], descriptors: &[&dyn Descriptor]) -> io::Result<usize>;

    /// Reads what is there of `buffer`'s length, and appends the descriptors that came with it as
    /// [`receive`](Self::receive) does. Returns how many bytes it were; 0 is the end, or, on
    /// some systems and with descriptors, a message of no bytes.
    ///
    /// # Errors
    /// As [`receive`](Self::receive); `QuotaExceeded` when descriptors got lost because this process
    /// has no room for them.
    fn hear(&self, buffer: &mut [u8], descriptors: &mut Vec<Self::Received>) -> io::Result<usize>;

    /// Waits until it is ready for `interest`, for as long as `patience` at most: the one thing here
    /// that does wait, for a conversation that everything else has to wait for. Returns whether it is.
    /// It may come back early.
    ///
    /// # Errors
    /// What poll(2) says.
    fn wait(&self, interest: Interest, patience: Duration) -> io::Result<bool>;

    /// As something to close.
    fn into_received(self) -> Self::Received;

    /// What was such a link in another process and came along from there.
    fn of(received: Self::Received) -> Self;
}

/// The contract of a listening Unix socket. Nothing here ever waits.
pub trait Door: Descriptor {
    /// Who comes in.
    type Link: Link;

    /// Lets one in who waits.
    ///
    /// # Errors
    /// `WouldBlock` when nobody waits; `Interrupted` and `ConnectionAborted` when the next one may be
    /// there all the same; else what accept(2) says when it can serve nobody for now (EMFILE, ENFILE,
    /// ENOBUFS, ENOMEM). Some systems want the descriptor before they look who waits: then
    /// [`wants_descriptor`] says nothing about that.
    fn accept(&self) -> io::Result<Self::Link>;

    /// Lets nobody else knock, where the system can do that. Those who already wait can still be
    /// accepted.
    fn shut(&self);

    /// Makes a door that came from another process this one's own: whoever asks from now on who
    /// listens there is told so.
    fn claim(&self);
}

/// Whether [`Door::accept`] has failed because no descriptor is left, to this process (EMFILE) or to the
/// system (ENFILE): what is closed may help.
pub fn wants_descriptor(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

impl Link for UnixStream {
    type Received = OwnedFd;

    fn receive(&self, descriptors: &mut Vec<OwnedFd>) -> io::Result<Received> {
        receive(self, descriptors)
    }

    fn silence(&self) -> bool {
        if process::SHUTDOWN_KEEPS_QUEUE {
            let _ = self.shutdown(Shutdown::Read); // fails only if it is gone already
        }
        process::SHUTDOWN_KEEPS_QUEUE
    }

    /// At the end, too, on Linux; elsewhere a message of no bytes may bring descriptors, and look like the end.
    fn is_empty(&self) -> bool {
        let mut byte = 0u8;
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        // SAFETY: recv(2) writes at most one byte to `byte`, which outlives the call. MSG_PEEK leaves what is there, with the
        // descriptors that came with it.
        match unsafe { libc::recv(self.as_raw_fd(), (&raw mut byte).cast(), 1, flags) } {
            0 => cfg!(any(target_os = "linux", target_os = "android")),
            1.. => false,
            _ => io::Error::last_os_error().kind() == ErrorKind::WouldBlock,
        }
    }

    fn peer(&self) -> io::Result<Peer> {
        peer::peer(self)
    }

    fn tell(&mut self, text: &[u8]) -> io::Result<()> {
        self.write_all(text)
    }

    fn finish(&self) {
        let _ = self.shutdown(Shutdown::Write); // fails only if it is gone already
    }

    fn pass(&self, bytes: &[u8], descriptors: &[&dyn Descriptor]) -> io::Result<usize> {
        // SAFETY: a Descriptor is open for as long as it lives, which is beyond this call.
        let borrowed = |fd: &&dyn Descriptor| unsafe { BorrowedFd::borrow_raw(fd.number()) };
        let descriptors: Vec<_> = descriptors.iter().map(borrowed).collect();
        send(self, bytes, &descriptors).map_err(|error| match error.raw_os_error() {
            Some(libc::ETOOMANYREFS) => ErrorKind::ResourceBusy.into(),
            errno if is_out_of_memory(errno) => ErrorKind::OutOfMemory.into(),
            _ => error,
        })
    }

    fn hear(&self, buffer: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
        match read(self, buffer, descriptors)? {
            Read::Bytes { truncated: true, .. } | Read::Lost => Err(ErrorKind::QuotaExceeded.into()),
            Read::Bytes { count, .. } => Ok(count),
        }
    }

    fn wait(&self, interest: Interest, patience: Duration) -> io::Result<bool> {
        let events = match interest {
            Interest::Read => libc::POLLIN,
            Interest::Write => libc::POLLOUT,
            Interest::Both => libc::POLLIN | libc::POLLOUT,
        };
        let mut fd = libc::pollfd { fd: self.as_raw_fd(), events, revents: 0 };
        let millis = i32::try_from(patience.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
        // SAFETY: poll(2) reads and writes the one pollfd, which outlives the call.
        match check(unsafe { libc::poll(&raw mut fd, 1, millis) }) {
            Err(e) if e.kind() == ErrorKind::Interrupted => Ok(false),
            ready => Ok(ready? > 0),
        }
    }

    fn into_received(self) -> OwnedFd {
        self.into()
    }

    fn of(received: OwnedFd) -> Self {
        let stream = UnixStream::from(received);
        let _ = stream.set_nonblocking(true); // it was, and what is no socket is of no use anyway
        stream
    }
}

/// Which must be non-blocking.
impl Door for UnixListener {
    type Link = UnixStream;

    fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = UnixListener::accept(self)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }

    fn shut(&self) {
        if process::SHUTDOWN_KEEPS_QUEUE {
            // It can fail only on what is no listening socket.
            let _ = socket2::SockRef::from(self).shutdown(Shutdown::Read);
        }
    }

    fn claim(&self) {
        // unix(7), SO_PEERCRED: the credentials are those of the call of listen(2). It cannot fail on
        // what listens already.
        let _ = socket2::SockRef::from(self).listen(BACKLOG);
    }
}

/// How many may wait: what std asks for, too.
const BACKLOG: i32 =
    if cfg!(any(target_os = "linux", target_os = "freebsd", target_os = "openbsd", target_os = "macos")) {
        -1
    } else {
        libc::SOMAXCONN
    };

/// Reads one byte from `link`, never blocking, and appends the descriptors that came with it to
/// `descriptors`. All of them are close-on-exec.
///
/// One byte at a time on purpose: a read never runs past a byte that carries descriptors, but it
/// may glue the bytes before it to it, and then nobody can say which byte they belong to.
///
/// # Errors
/// `WouldBlock` when nothing is there; else what recvmsg(2) says. No descriptor is lost on error.
fn receive(link: &impl AsFd, descriptors: &mut Vec<OwnedFd>) -> io::Result<Received> {
    let mut byte = [0];
    Ok(match read(link, &mut byte, descriptors)? {
        Read::Bytes { count: 0, .. } => Received::End,
        Read::Bytes { truncated, .. } => Received::Byte { byte: byte[0], truncated },
        Read::Lost => Received::Lost,
    })
}

/// What recvmsg(2) has read.
enum Read {
    Bytes { count: usize, truncated: bool },
    Lost,
}

/// Reads what is there of `buffer`'s length from `link`, never blocking, and appends the descriptors
/// that came with it to `descriptors`. All of them are close-on-exec.
fn read(link: &impl AsFd, buffer: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<Read> {
    // Reserved before the kernel is asked: from there on nothing may fail.
    descriptors.reserve(MAX_DESCRIPTORS);
    let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    CONTROL.with_borrow_mut(|control| read_with(control, link, &mut iov, descriptors))
}

thread_local! {
    #[allow(clippy::missing_const_for_thread_local, reason = "it is const, which is not seen on every system")]
    /// Where the kernel writes control data: bytes that were once, as it leaves gaps between its messages. To
    /// fill so many anew costs more than all else that is done for a message.
    static CONTROL: RefCell<Control> = const { RefCell::new(Control::EMPTY) };
}

fn read_with(
    control: &mut Control,
    link: &impl AsFd,
    iov: &mut libc::iovec,
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<Read> {
    // SAFETY: msghdr is plain data, for which all zeroes (null pointers, no lengths) is a value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = iov;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut *control).cast();
    message.msg_controllen = CONTROL_BYTES as _;

    // SAFETY: recvmsg(2) writes at most iov_len bytes to iov_base and msg_controllen bytes to
    // msg_control; both outlive the call, and it keeps no pointer.
    let got = unsafe { libc::recvmsg(link.as_fd().as_raw_fd(), &raw mut message, RECEIVE_FLAGS) };
    if got == -1 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            errno if is_out_of_memory(errno) => Err(ErrorKind::OutOfMemory.into()),
            // The BSDs, and Solaris, for what Linux tells with MSG_CTRUNC.
            Some(libc::EMSGSIZE | libc::EMFILE | libc::ENFILE) => Ok(Read::Lost),
            _ => Err(error),
        };
    }

    let written = (message.msg_controllen as usize).min(CONTROL_BYTES);
    for fd in rights(&control.bytes[..written]) {
        // SAFETY: unix(7): each is a new descriptor of this process, and nobody else knows of it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        set_cloexec(&fd);
        descriptors.push(fd);
    }
    // Not negative, as it is no error.
    Ok(Read::Bytes { count: got as usize, truncated: message.msg_flags & libc::MSG_CTRUNC != 0 })
}

/// The descriptors in `control`, which is what recvmsg(2) has written to msg_control: of every
/// SCM_RIGHTS all that are there whole, however many, as one that is overlooked leaks. A header may say
/// that it has more than was written: some systems leave it as it was when they cut the message off.
///
/// By bytes and not with CMSG_NXTHDR, which believes what cmsg_len says.
pub fn rights(control: &[u8]) -> impl Iterator<Item = RawFd> {
    // SAFETY: CMSG_LEN is arithmetic only.
    let head = unsafe { libc::CMSG_LEN(0) } as usize; // the header and its padding
    let mut rest = control;
    let messages = iter::from_fn(move || {
        let (padded, after) = rest.split_at_checked(head)?;
        // SAFETY: `padded` has a whole cmsghdr, of integers only, cmsg(3), and it may be unaligned.
        let header: libc::cmsghdr = unsafe { ptr::read_unaligned(padded.as_ptr().cast()) };
        // With less than its own header it would be its own successor.
        let said = (header.cmsg_len as usize).checked_sub(head)?;
        let data = &after[..said.min(after.len())];
        // SAFETY: CMSG_SPACE is arithmetic only.
        let space = unsafe { libc::CMSG_SPACE(data.len() as libc::c_uint) } as usize;
        rest = rest.get(space..).unwrap_or_default();
        let ours = header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_RIGHTS;
        Some(if ours { data } else { &[] })
    });
    messages.flat_map(|data| data.chunks_exact(mem::size_of::<RawFd>())).map(|fd| {
        let mut bytes = [0; mem::size_of::<RawFd>()];
        bytes.copy_from_slice(fd);
        RawFd::from_ne_bytes(bytes)
    })
}

/// Sends `bytes` over `link` with `descriptors` (at most [`MAX_DESCRIPTORS`]) in one control
/// message, never blocking and never raising SIGPIPE. The caller's descriptors stay open.
///
/// # Errors
/// What sendmsg(2) says. `WouldBlock` and ETOOMANYREFS mean that the receiver is slow, and that
/// the link is sound. `InvalidInput` for too many descriptors.
pub fn send(link: &impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if descriptors.len() > MAX_DESCRIPTORS {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} descriptors in one message; {MAX_DESCRIPTORS} are the most", descriptors.len()),
        ));
    }
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = Control::EMPTY;
    // SAFETY: msghdr is plain data, for which all zeroes (null pointers, no lengths) is a value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    if !descriptors.is_empty() {
        let size = mem::size_of_val(descriptors) as libc::c_uint;
        message.msg_control = (&raw mut control).cast();
        // SAFETY: CMSG_SPACE is arithmetic only; CONTROL_BYTES is at least as much.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(size) } as _;
        // SAFETY: msg_control is a zeroed, aligned buffer of at least msg_controllen bytes, so
        // CMSG_FIRSTHDR returns its first header, not null, and CMSG_DATA has room for `size`
        // bytes, cmsg(3). BorrowedFd has the layout of a RawFd.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(size) as _;
            descriptors.as_ptr().cast::<u8>().copy_to_nonoverlapping(libc::CMSG_DATA(header), size as usize);
        }
    }
    // SAFETY: sendmsg(2) reads iov and msg_control, which outlive the call, and keeps no pointer.
    let sent = unsafe { libc::sendmsg(link.as_fd().as_raw_fd(), &raw const message, SEND_FLAGS) };
    if sent == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(sent as usize)
}

cfg_if::cfg_if! {
    if #[cfg(any(target_os = "macos", target_os = "illumos", target_os = "solaris"))] {
        // macOS and Solaris have no MSG_CMSG_CLOEXEC, and illumos only since lately.
        const RECEIVE_FLAGS: libc::c_int = libc::MSG_DONTWAIT;

        fn set_cloexec(fd: &OwnedFd) {
            let _ = crate::set_cloexec(fd); // it cannot fail on an open descriptor
        }
    } else {
        const RECEIVE_FLAGS: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;

        /// MSG_CMSG_CLOEXEC has done it.
        fn set_cloexec(_: &OwnedFd) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{Real, fdpass::fdpass_tests};
    use std::fs::File;

    fdpass_tests!(Real);

    #[test]
    fn a_full_message_arrives_whole_and_close_on_exec() {
        let (a, b) = UnixStream::pair().unwrap();
        let file = File::open("/dev/null").unwrap();
        let most = if cfg!(target_os = "openbsd") { 127 } else { MAX_DESCRIPTORS };
        send(&a, b"L", &vec![file.as_fd(); most]).unwrap();
        let mut got = Vec::new();
        assert_eq!(receive(&b, &mut got).unwrap(), Received::Byte { byte: b'L', truncated: false });
        assert_eq!(got.len(), most);
        for fd in &got {
            // SAFETY: F_GETFD takes no argument and touches no memory, fcntl(2).
            let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) };
            assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
        }
    }

    #[test]
    fn one_more_than_a_message_holds_is_refused() {
        let (a, _b) = UnixStream::pair().unwrap();
        let file = File::open("/dev/null").unwrap();
        let refused = send(&a, b"L", &[file.as_fd(); MAX_DESCRIPTORS + 1]).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    }

    /// What needs no kernel, so that Miri can run it.
    mod walk {
        use super::*;

        /// A control message as the kernel writes it, padded.
        fn control(level: libc::c_int, kind: libc::c_int, descriptors: &[RawFd]) -> Vec<u8> {
            let size = mem::size_of_val(descriptors) as libc::c_uint;
            let mut buffer = Control::EMPTY;
            let header = (&raw mut buffer.bytes).cast::<libc::cmsghdr>();
            // SAFETY: the buffer is aligned and large enough for all that the tests put into it.
            unsafe {
                (*header).cmsg_level = level;
                (*header).cmsg_type = kind;
                (*header).cmsg_len = libc::CMSG_LEN(size) as _;
                descriptors
                    .as_ptr()
                    .cast::<u8>()
                    .copy_to_nonoverlapping(libc::CMSG_DATA(header), size as usize);
                buffer.bytes[..libc::CMSG_SPACE(size) as usize].to_vec()
            }
        }

        fn passed(descriptors: &[RawFd]) -> Vec<u8> {
            control(libc::SOL_SOCKET, libc::SCM_RIGHTS, descriptors)
        }

        fn all(control: &[u8]) -> Vec<RawFd> {
            rights(control).collect()
        }

        #[test]
        fn a_header_that_is_cut_off_is_none() {
            let whole = passed(&[3, 4]);
            // SAFETY: CMSG_LEN is arithmetic only.
            let head = unsafe { libc::CMSG_LEN(0) } as usize;
            let one = mem::size_of::<RawFd>();
            for length in 0..=whole.len() {
                let there = length.saturating_sub(head) / one;
                assert_eq!(all(&whole[..length]), [3, 4][..there.min(2)], "{length} bytes");
            }
        }

        #[test]
        fn a_length_beyond_the_end_is_worth_what_is_there_and_one_below_the_header_nothing() {
            let with_length = |length: usize| {
                let mut control = passed(&[3, 4, 5, 6]);
                let header = control.as_mut_ptr().cast::<libc::cmsghdr>();
                // SAFETY: `control` begins with a whole header, which may be unaligned.
                unsafe { (&raw mut (*header).cmsg_len).write_unaligned(length as _) };
                all(&control)
            };
            // SAFETY: CMSG_LEN is arithmetic only.
            let head = unsafe { libc::CMSG_LEN(0) } as usize;
            for length in 0..=head {
                assert_eq!(with_length(length), [], "{length}");
            }
            assert_eq!(with_length(head + 9), [3, 4]);
            for length in [head + 17, 1 << 20, i32::MAX as usize, usize::MAX - 7, usize::MAX] {
                assert_eq!(with_length(length), [3, 4, 5, 6], "{length}");
            }
        }

        #[test]
        fn of_several_messages_every_descriptor_is_taken_and_nothing_else() {
            let mut control = passed(&[3]);
            control.extend(self::control(libc::SOL_SOCKET, libc::SCM_RIGHTS + 1, &[8, 9, 10]));
            control.extend(self::control(libc::IPPROTO_IP, libc::SCM_RIGHTS, &[11]));
            control.extend(passed(&[]));
            control.extend(passed(&[4, 5, 6]));
            assert_eq!(all(&control), [3, 4, 5, 6]);
            control.extend(&passed(&[7])[..8]);
            assert_eq!(all(&control), [3, 4, 5, 6]);
        }
    }
}
