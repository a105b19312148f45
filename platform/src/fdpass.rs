//! Unix stream sockets, and descriptors passed over them: unix(7), cmsg(3), SCM_RIGHTS.
//!
//! Knows the control message and its traps; must not know what the descriptors are.

use crate::backend::Descriptor;
use crate::peer::{self, Peer};
use crate::{SEND_FLAGS, process};
use std::io::{self, Write};
use std::mem::{self, MaybeUninit};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

/// The most descriptors in one message: Linux's SCM_MAX_FD. OpenBSD sends no more than 127.
pub const MAX_DESCRIPTORS: usize = 253;

/// Room for one control message with [`MAX_DESCRIPTORS`]: its header and data, each padded by at
/// most 16 bytes on any system.
const CONTROL_BYTES: usize = mem::size_of::<libc::cmsghdr>() + MAX_DESCRIPTORS * mem::size_of::<RawFd>() + 32;

/// A buffer for control messages, aligned as cmsg(3) wants it.
#[repr(C)]
union Control {
    _align: libc::cmsghdr,
    bytes: [MaybeUninit<u8>; CONTROL_BYTES],
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

    /// As something to close.
    fn into_received(self) -> Self::Received;
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
    /// ENOBUFS, ENOMEM).
    fn accept(&self) -> io::Result<Self::Link>;

    /// Lets nobody else knock, where the system can do that. Those who already wait can still be
    /// accepted.
    fn shut(&self);
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

    fn peer(&self) -> io::Result<Peer> {
        peer::peer(self)
    }

    fn tell(&mut self, text: &[u8]) -> io::Result<()> {
        self.write_all(text)
    }

    fn into_received(self) -> OwnedFd {
        self.into()
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
}

/// Reads one byte from `link`, never blocking, and appends the descriptors that came with it to
/// `descriptors`. All of them are close-on-exec.
///
/// One byte at a time on purpose: a read never runs past a byte that carries descriptors, but it
/// may glue the bytes before it to it, and then nobody can say which byte they belong to.
///
/// # Errors
/// `WouldBlock` when nothing is there; else what recvmsg(2) says. No descriptor is lost on error.
fn receive(link: &impl AsFd, descriptors: &mut Vec<OwnedFd>) -> io::Result<Received> {
    // Reserved before the kernel is asked: from there on nothing may fail.
    descriptors.reserve(MAX_DESCRIPTORS);
    let mut byte = 0u8;
    let mut iov = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let mut control = Control { bytes: [MaybeUninit::uninit(); CONTROL_BYTES] };
    // SAFETY: msghdr is plain data, for which all zeroes (null pointers, no lengths) is a value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = CONTROL_BYTES as _;

    // SAFETY: recvmsg(2) writes at most iov_len bytes to iov_base and msg_controllen bytes to
    // msg_control; both outlive the call, and it keeps no pointer.
    let got = unsafe { libc::recvmsg(link.as_fd().as_raw_fd(), &raw mut message, RECEIVE_FLAGS) };
    if got == -1 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ENOMEM | libc::ENOBUFS) => Err(io::ErrorKind::OutOfMemory.into()),
            // The BSDs, and Solaris, for what Linux tells with MSG_CTRUNC.
            Some(libc::EMSGSIZE | libc::EMFILE | libc::ENFILE) => Ok(Received::Lost),
            _ => Err(error),
        };
    }

    // SAFETY: recvmsg(2) has set msg_control and msg_controllen to what it wrote, which is what
    // CMSG_FIRSTHDR wants, cmsg(3).
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or a whole header inside the buffer.
        let cmsg = unsafe { header.read_unaligned() };
        if cmsg.cmsg_level == libc::SOL_SOCKET && cmsg.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: CMSG_LEN is arithmetic only.
            let head = unsafe { libc::CMSG_LEN(0) } as usize;
            // SAFETY: CMSG_DATA adds the header's padded size, inside the buffer, cmsg(3).
            let data = unsafe { libc::CMSG_DATA(header) }.cast::<RawFd>();
            let count = (cmsg.cmsg_len as usize).saturating_sub(head) / mem::size_of::<RawFd>();
            // Every one is taken, however many the length admits: one that is overlooked leaks.
            for n in 0..count {
                // SAFETY: cmsg_len covers `count` descriptors at CMSG_DATA, which cmsg(3) says may
                // be unaligned.
                let fd = unsafe { data.add(n).read_unaligned() };
                // SAFETY: unix(7): each is a new descriptor of this process, and nobody else
                // knows of it.
                let fd = unsafe { OwnedFd::from_raw_fd(fd) };
                set_cloexec(&fd);
                descriptors.push(fd);
            }
        }
        // SAFETY: `header` is a header of `message`, which is what CMSG_NXTHDR wants, cmsg(3).
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    if got == 0 {
        return Ok(Received::End);
    }
    Ok(Received::Byte { byte, truncated: message.msg_flags & libc::MSG_CTRUNC != 0 })
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
    let mut control = Control { bytes: [const { MaybeUninit::zeroed() }; CONTROL_BYTES] };
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
}
