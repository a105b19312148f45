// SPDX-License-Identifier: BSD-3-Clause

//! What a lingering close asks of a TCP socket: tcp(7), ioctl and recv flags of each system.
//!
//! Never sets O_NONBLOCK: the flag belongs to the open file description, which the sender's copy
//! shares. Knows one socket at a time; must not know why it is asked.

use crate::backend::Descriptor;
use crate::{SEND_FLAGS, is_out_of_memory, socket_option};
use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

/// The most bytes that one [`Tcp::discard`] takes.
pub const DISCARD_BYTES: usize = 256 * 1024;

/// How far this end of a connection is closed, see [`Tcp::own_end`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnEnd {
    /// The system does not say, or it is no connection, or not yet or no longer one.
    Unknown,
    /// It is connected, and was not half-closed.
    Open,
    /// It was half-closed, and the peer has not acknowledged that, or all that was sent before.
    Sent,
    /// The peer has.
    Acknowledged,
}

/// The contract between lingerd and a connection that somebody else has opened, and may still have
/// a copy of. Nothing here waits, except where it says so; dropping closes.
pub trait Tcp: Descriptor + Sized {
    /// A descriptor that may be anything.
    type Received;

    /// What can be written, see [`Content`](crate::content::Content).
    type Piece;

    /// Takes `received` for what it is, if that is a TCP socket, in whatever state; else gives it
    /// back untouched. A file, a pipe, a terminal, a UDP, Unix or raw socket is none.
    ///
    /// # Errors
    /// The descriptor itself, when it is no TCP socket.
    fn of(received: Self::Received) -> Result<Self, Self::Received>;

    /// The same, of one whose client is likely to be there still: asks for [`own_end`](Self::own_end), too, and where
    /// one call answers both, in that one.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    fn of_lingering(received: Self::Received) -> Result<(Self, OwnEnd), Self::Received> {
        let socket = Self::of(received)?;
        let own_end = socket.own_end();
        Ok((socket, own_end))
    }

    /// Sends what there is of `piece`, as much as there is room for, and tells how much that was.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room; EPIPE, ECONNRESET and their like when the connection is gone.
    /// `OutOfMemory` when the system is short of memory (ENOMEM, ENOBUFS): nothing was written. Never EINTR, and
    /// never SIGPIPE.
    fn send(&self, piece: &Self::Piece) -> io::Result<usize>;

    /// How many bytes were written and are not yet acknowledged, about; `None` where the system cannot tell (illumos,
    /// Solaris, DragonFly): that a client gets on shows there only when the socket takes more.
    fn unacknowledged(&self) -> Option<u64>;

    /// Has its last close reset it, whoever closes it, or not, socket(7), SO_LINGER: what is not all written must
    /// not look as if it were. [`close`](Self::close) never does.
    fn reset_at_close(&self, resets: bool);

    /// Within what time whoever has sent it wants it closed, socket(7), SO_LINGER with a time that is not 0, in whole
    /// seconds; `None` where he has not said.
    fn linger_time(&self) -> Option<Duration>;

    /// Half-closes: FIN follows what is queued, and receiving goes on, shutdown(2). That the
    /// connection has gone shows in the next read and is no matter here; nor is that it was
    /// half-closed before.
    fn half_close(&self);

    /// Reads and throws away at most [`DISCARD_BYTES`]. `Ok(0)` is the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; ENOTCONN (`NotConnected`) when the socket never was
    /// connected; ECONNRESET, ETIMEDOUT and their like, once, when the connection is gone: after that
    /// it is the end of the stream. `OutOfMemory` when the system is short of memory (ENOMEM, ENOBUFS):
    /// the connection is as it was. Never EINTR.
    fn discard(&self) -> io::Result<usize>;

    /// Looks at what there is to be read, as much as `buffer` holds, and leaves it there. `Ok(0)` is the end of the
    /// stream.
    ///
    /// # Errors
    /// As [`discard`](Self::discard).
    fn peek(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// How far this end is closed, of a socket whose peer's end has not been read: in one call what else
    /// [`peer`](Self::peer), [`half_close`](Self::half_close) and [`is_acknowledged`](Self::is_acknowledged) would have
    /// to find out.
    fn own_end(&self) -> OwnEnd;

    /// Whether the peer has acknowledged all that was sent on a half-closed socket, the FIN too;
    /// `None` where the system cannot tell, see [`TELLS_ACKNOWLEDGED`].
    fn is_acknowledged(&self) -> Option<bool>;

    /// Whether there is something to read. Closed with that, the connection is reset at once, RFC
    /// 2525 section 2.17.
    fn has_unread(&self) -> bool;

    /// Whether the peer sends nothing more, be there still something to read: its side is closed, or the connection gone.
    /// Where the system does not tell, see [`TELLS_ENDED`], it never is.
    fn has_ended(&self) -> bool;

    /// Empties the socket's error queue. A sender that wrote with MSG_ZEROCOPY or asked for time
    /// stamps leaves notices there, and for as long as one is there the socket counts as ready,
    /// recv(2) on MSG_ERRQUEUE.
    fn drain_errors(&self);

    /// Who is at the other end.
    ///
    /// # Errors
    /// `NotConnected` when there is nobody: not yet, or no longer.
    fn peer(&self) -> io::Result<SocketAddr>;

    /// Who is at the other end or was, as long as the connection was one at all, if the system can still tell: Linux can.
    fn past_peer(&self) -> Option<SocketAddr>;

    /// Closes, and neither waits nor aborts, whatever SO_LINGER the socket came with: socket(7) lets
    /// close(2) wait for l_linger seconds, and zero seconds would reset the connection. (To drop it
    /// instead leaves that option as it is, for a socket that is somebody else's after all.)
    fn close(self);

    /// As something to close: what options it has it keeps.
    fn into_received(self) -> Self::Received;

    /// Closes and does not wait; but resets it where it came with SO_LINGER and no time: whoever sent it so wants
    /// that of everybody who does not know better.
    fn let_go(self);
}

impl Tcp for TcpStream {
    type Received = OwnedFd;
    type Piece = Vec<u8>;

    /// Asked by way of TCP_NODELAY, which every system's TCP answers and nothing else does:
    /// SO_PROTOCOL would say the same but is missing on macOS and NetBSD. The TCP of the BSDs answers
    /// ECONNRESET for a connection that has ended, which nothing else does either.
    fn of(received: OwnedFd) -> Result<Self, OwnedFd> {
        // SAFETY: tcp(7): TCP_NODELAY fills in an int.
        let asked = unsafe {
            socket_option::<libc::c_int>(received.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY)
        };
        if asked.is_ok() || asked.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset) {
            Ok(received.into())
        } else {
            Err(received)
        }
    }

    /// TCP_INFO is answered by what answers TCP_NODELAY.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn of_lingering(received: OwnedFd) -> Result<(Self, OwnEnd), OwnedFd> {
        match state(received.as_raw_fd()) {
            Some(state) => {
                let socket = TcpStream::from(received);
                let own_end = own_end_by(state, &socket);
                Ok((socket, own_end))
            }
            None => Self::of(received).map(|socket| (socket, OwnEnd::Unknown)),
        }
    }

    /// On Linux a second time changes nothing; in the TCP of the BSDs, once the peer has acknowledged
    /// the FIN (FIN_WAIT_2), it ends receiving too, and that looks like the peer's own end of stream.
    /// So elsewhere we ask first.
    fn half_close(&self) {
        if cfg!(any(target_os = "linux", target_os = "android")) || !is_half_closed(self) {
            let _ = self.shutdown(Shutdown::Write);
        }
    }

    fn send(&self, piece: &Vec<u8>) -> io::Result<usize> {
        let length = piece.len().min(room(self)?);
        // SAFETY: send(2) reads at most `length` bytes of the buffer, which has as many and outlives the call.
        uninterrupted(|| unsafe {
            libc::send(self.as_raw_fd(), piece.as_ptr().cast(), length, SEND_FLAGS | AT_ONCE)
        })
    }

    fn unacknowledged(&self) -> Option<u64> {
        unacknowledged(self)
    }

    fn reset_at_close(&self, resets: bool) {
        let linger = resets.then_some(Duration::ZERO);
        let _ = socket2::SockRef::from(self).set_linger(linger); // it fails only on what is gone
    }

    fn linger_time(&self) -> Option<Duration> {
        socket2::SockRef::from(self).linger().ok().flatten().filter(|time| !time.is_zero())
    }

    fn discard(&self) -> io::Result<usize> {
        uninterrupted(|| discard_once(self))
    }

    fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let (start, length) = (buffer.as_mut_ptr(), buffer.len());
        // SAFETY: recv(2) writes at most `length` bytes to the buffer, which outlives the call.
        uninterrupted(|| unsafe {
            libc::recv(self.as_raw_fd(), start.cast(), length, libc::MSG_PEEK | libc::MSG_DONTWAIT)
        })
    }

    fn own_end(&self) -> OwnEnd {
        own_end(self)
    }

    fn is_acknowledged(&self) -> Option<bool> {
        is_acknowledged(self)
    }

    fn has_unread(&self) -> bool {
        let mut bytes: libc::c_int = 0;
        // SAFETY: FIONREAD writes one int: tcp(7), tty(4), streamio(4I).
        let asked =
            crate::check(unsafe { libc::ioctl(self.as_raw_fd(), libc::FIONREAD as _, &raw mut bytes) });
        asked.is_ok() && bytes > 0
    }

    fn has_ended(&self) -> bool {
        has_ended(self)
    }

    /// There is no error queue beside the stream on systems other than Linux.
    fn drain_errors(&self) {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        drain_errors(self);
    }

    fn peer(&self) -> io::Result<SocketAddr> {
        self.peer_addr()
    }

    fn past_peer(&self) -> Option<SocketAddr> {
        let peer = self.peer().ok();
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let peer = peer.or_else(|| past_peer(self));
        peer
    }

    /// Most come without the option, and to find that out costs less than to set it. A system that refuses it (macOS, once
    /// both sides have ended) has nothing to wait for.
    fn close(self) {
        let socket = socket2::SockRef::from(&self);
        if !matches!(socket.linger(), Ok(None)) {
            let _ = socket.set_linger(None::<Duration>);
        }
    }

    fn into_received(self) -> OwnedFd {
        self.into()
    }

    fn let_go(self) {
        let resets =
            socket2::SockRef::from(&self).linger().is_ok_and(|linger| linger == Some(Duration::ZERO));
        // Said again: whoever has a copy may say something else, for which close(2) would wait.
        if resets { self.reset_at_close(true) } else { self.close() }
    }
}

/// What a call that reads or writes has come to, made again for as long as a signal interrupts it.
#[inline]
fn uninterrupted(call: impl Fn() -> isize) -> io::Result<usize> {
    loop {
        let count = call();
        if count >= 0 {
            return Ok(count as usize);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            errno if is_out_of_memory(errno) => return Err(io::ErrorKind::OutOfMemory.into()),
            _ => return Err(error),
        }
    }
}

cfg_if::cfg_if! {
    if #[cfg(target_os = "netbsd")] {
        /// <sys/socket.h>: MSG_NBIO. There sosend() heeds O_NONBLOCK and this, and not MSG_DONTWAIT.
        const AT_ONCE: libc::c_int = 0x1000;
    } else {
        const AT_ONCE: libc::c_int = 0;
    }
}

cfg_if::cfg_if! {
    if #[cfg(target_vendor = "apple")] {
        /// How much may be sent: there send(2) heeds O_NONBLOCK alone, and waits for room for the rest of what is more.
        fn room(socket: &TcpStream) -> io::Result<usize> {
            let asked = |option| {
                // SAFETY: getsockopt(2): SO_SNDBUF and SO_NWRITE fill in an int.
                unsafe { socket_option::<libc::c_int>(socket.as_raw_fd(), libc::SOL_SOCKET, option) }
            };
            let room = asked(libc::SO_SNDBUF)?.saturating_sub(asked(libc::SO_NWRITE)?);
            usize::try_from(room).ok().filter(|&room| room > 0).ok_or_else(|| io::ErrorKind::WouldBlock.into())
        }
    } else {
        /// How much may be sent: send(2) says so, with MSG_DONTWAIT.
        const fn room(_: &TcpStream) -> io::Result<usize> {
            Ok(usize::MAX)
        }
    }
}

/// Whether nothing can be sent any more: to send no byte at all tells, with EPIPE, send(2).
fn is_half_closed(socket: &TcpStream) -> bool {
    // SAFETY: send(2) reads no byte from the empty buffer.
    let sent = unsafe { libc::send(socket.as_raw_fd(), [0u8; 0].as_ptr().cast(), 0, SEND_FLAGS) };
    sent == -1 && io::Error::last_os_error().kind() == io::ErrorKind::BrokenPipe
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn discard_once(socket: &TcpStream) -> isize {
    // SAFETY: tcp(7): with MSG_TRUNC the bytes are discarded and not copied, "the buffer need not
    // be valid"; since Linux 2.4.
    unsafe {
        libc::recv(
            socket.as_raw_fd(),
            std::ptr::null_mut(),
            DISCARD_BYTES,
            libc::MSG_TRUNC | libc::MSG_DONTWAIT,
        )
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn discard_once(socket: &TcpStream) -> isize {
    use std::mem::MaybeUninit;
    // Nobody reads it, so it may live on the stack without being written first; what does not fit
    // waits for the next call.
    let mut scratch = [MaybeUninit::<u8>::uninit(); 64 * 1024];
    // SAFETY: recv(2) writes at most `len` bytes to the buffer, which outlives the call.
    unsafe {
        libc::recv(
            socket.as_raw_fd(),
            scratch.as_mut_ptr().cast(),
            scratch.len().min(DISCARD_BYTES),
            libc::MSG_DONTWAIT,
        )
    }
}

/// getpeername(2) says ENOTCONN once both sides have ended or one has reset; SO_PEERNAME has what it would have said. The
/// kernel wants room for just that, and refuses more.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn past_peer(socket: &TcpStream) -> Option<SocketAddr> {
    use std::net::{Ipv6Addr, SocketAddrV4, SocketAddrV6};
    let (fd, level, name) = (socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERNAME);
    Some(match socket.local_addr().ok()? {
        SocketAddr::V4(_) => {
            // SAFETY: of a socket of this family the option is a sockaddr_in, ip(7), of which any bytes are one.
            let peer: libc::sockaddr_in = unsafe { socket_option(fd, level, name) }.ok()?;
            let address = u32::from_be(peer.sin_addr.s_addr).into();
            SocketAddrV4::new(address, u16::from_be(peer.sin_port)).into()
        }
        SocketAddr::V6(_) => {
            // SAFETY: of a socket of this family the option is a sockaddr_in6, ipv6(7), of which any bytes are one.
            let peer: libc::sockaddr_in6 = unsafe { socket_option(fd, level, name) }.ok()?;
            let address = Ipv6Addr::from(peer.sin6_addr.s6_addr);
            SocketAddrV6::new(address, u16::from_be(peer.sin6_port), 0, peer.sin6_scope_id).into()
        }
    })
}

/// How many messages of an error queue one [`Tcp::drain_errors`] takes.
#[cfg(any(target_os = "linux", target_os = "android"))]
const ERRORS: usize = 64;

#[cfg(any(target_os = "linux", target_os = "android"))]
fn drain_errors(socket: &TcpStream) {
    for _ in 0..ERRORS {
        // SAFETY: msghdr is plain data, for which all zeroes (no buffers) is a value.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        // SAFETY: recvmsg(2) writes to the buffers that the message names, and it names none; the
        // notice is dropped.
        let got = unsafe {
            libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT)
        };
        if got == -1 {
            return;
        }
    }
}

/// Whether the system tells of the end of a stream before all was read, see [`Tcp::has_ended`].
pub const TELLS_ENDED: bool =
    cfg!(any(target_os = "linux", target_os = "android", target_os = "freebsd", target_os = "illumos"));

cfg_if::cfg_if! {
    if #[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd", target_os = "illumos"))] {
        fn has_ended(socket: &TcpStream) -> bool {
            let mut asked = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
            // SAFETY: poll(2) reads and writes the one structure that it is given, and does not wait.
            unsafe { libc::poll(&raw mut asked, 1, 0) > 0 }
        }
    } else {
        const fn has_ended(_: &TcpStream) -> bool {
            false
        }
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
const fn own_end(_: &TcpStream) -> OwnEnd {
    OwnEnd::Unknown
}

/// Whether the system tells what the peer has acknowledged, see [`Tcp::is_acknowledged`].
pub const TELLS_ACKNOWLEDGED: bool = cfg!(any(
    target_os = "linux",
    target_os = "android",
    target_os = "freebsd",
    target_os = "netbsd",
    target_os = "openbsd",
    target_os = "macos"
));

cfg_if::cfg_if! {
    if #[cfg(any(target_os = "linux", target_os = "android"))] {
        fn is_acknowledged(socket: &TcpStream) -> Option<bool> {
            unacknowledged(socket).map(|bytes| bytes == 0 && !is_opening(socket))
        }

        fn unacknowledged(socket: &TcpStream) -> Option<u64> {
            // SIOCOUTQ has the number of TIOCOUTQ. "The amount of unsent data in the socket send
            // queue" in tcp(7)'s words; in fact all that is not yet acknowledged, the FIN as one byte.
            let mut bytes: libc::c_int = 0;
            // SAFETY: tcp(7): SIOCOUTQ writes one int.
            let asked =
                crate::check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ as _, &raw mut bytes) });
            asked.ok().and_then(|_| bytes.try_into().ok())
        }

        // <netinet/tcp.h>; libc has none.
        const TCP_ESTABLISHED: u8 = 1;
        const TCP_SYN_RECV: u8 = 3;
        const TCP_FIN_WAIT1: u8 = 4;
        const TCP_FIN_WAIT2: u8 = 5;
        const TCP_CLOSE_WAIT: u8 = 8;
        const TCP_LAST_ACK: u8 = 9;
        const TCP_CLOSING: u8 = 11;

        /// Whether the handshake is not over, with TCP Fast Open (RFC 7413): a response can be on its
        /// way then, and SIOCOUTQ says 0.
        fn is_opening(socket: &TcpStream) -> bool {
            state(socket.as_raw_fd()) == Some(TCP_SYN_RECV)
        }

        fn state(fd: std::os::fd::RawFd) -> Option<u8> {
            // SAFETY: tcp(7): TCP_INFO fills in a tcp_info, plain numbers; an older kernel fills in less.
            let info = unsafe { socket_option::<libc::tcp_info>(fd, libc::IPPROTO_TCP, libc::TCP_INFO) };
            info.ok().map(|info| info.tcpi_state)
        }

        fn own_end(socket: &TcpStream) -> OwnEnd {
            state(socket.as_raw_fd()).map_or(OwnEnd::Unknown, |state| own_end_by(state, socket))
        }

        /// By the state, RFC 9293 section 3.3.2: FIN_WAIT_2 is entered by the acknowledgement of our FIN. Of MPTCP it is the
        /// first subflow's, which the kernel ends by itself where the client drops the address: nothing is said by such an
        /// end, nor by a subflow that is gone.
        fn own_end_by(state: u8, socket: &TcpStream) -> OwnEnd {
            match state {
                TCP_ESTABLISHED | TCP_CLOSE_WAIT => OwnEnd::Open,
                TCP_FIN_WAIT1 | TCP_FIN_WAIT2 | TCP_CLOSING | TCP_LAST_ACK if has_subflows(socket) => {
                    OwnEnd::Unknown
                }
                TCP_FIN_WAIT1 | TCP_CLOSING | TCP_LAST_ACK => OwnEnd::Sent,
                TCP_FIN_WAIT2 => OwnEnd::Acknowledged,
                _ => OwnEnd::Unknown,
            }
        }

        /// Whether it is one of MPTCP, RFC 8684.
        fn has_subflows(socket: &TcpStream) -> bool {
            // SAFETY: socket(7): SO_PROTOCOL is an int.
            let protocol = unsafe {
                socket_option::<libc::c_int>(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PROTOCOL)
            };
            !matches!(protocol, Ok(libc::IPPROTO_TCP))
        }
    } else if #[cfg(any(
        target_os = "freebsd",
        target_os = "netbsd",
        target_os = "openbsd",
        target_os = "macos"
    ))] {
        /// The bytes in the send queue (FIONWRITE, SO_NWRITE) would leave the FIN out; the state
        /// does not, RFC 9293 section 3.3.2: FIN_WAIT_2 is entered by the acknowledgement of our FIN.
        fn is_acknowledged(socket: &TcpStream) -> Option<bool> {
            // <netinet/tcp_fsm.h>, the same in all of them; libc has none.
            const TCPS_CLOSED: u8 = 0;
            const TCPS_FIN_WAIT_2: u8 = 9;
            const TCPS_TIME_WAIT: u8 = 10;
            #[cfg(not(target_os = "macos"))]
            // SAFETY: tcp(4): TCP_INFO fills in a tcp_info, plain numbers; another release of the
            // system may fill in less, or have more.
            let info = unsafe {
                socket_option::<libc::tcp_info>(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO)
            };
            #[cfg(target_os = "macos")]
            // SAFETY: <netinet/tcp.h>: TCP_CONNECTION_INFO fills in a tcp_connection_info, plain numbers.
            let info = unsafe {
                socket_option::<libc::tcp_connection_info>(
                    socket.as_raw_fd(),
                    libc::IPPROTO_TCP,
                    libc::TCP_CONNECTION_INFO,
                )
            };
            let state = info.ok()?.tcpi_state;
            Some(matches!(state, TCPS_CLOSED | TCPS_FIN_WAIT_2 | TCPS_TIME_WAIT))
        }
    } else {
        fn is_acknowledged(_: &TcpStream) -> Option<bool> {
            None
        }
    }
}

cfg_if::cfg_if! {
    if #[cfg(any(target_os = "linux", target_os = "android"))] {
        // Above: the same question, for the same number.
    } else if #[cfg(any(target_os = "freebsd", target_os = "netbsd"))] {
        /// FIONWRITE: "the number of bytes in the output queue", of a socket what is not acknowledged.
        fn unacknowledged(socket: &TcpStream) -> Option<u64> {
            let mut bytes: libc::c_int = 0;
            // SAFETY: ioctl(2): FIONWRITE writes one int.
            let asked = unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONWRITE as _, &raw mut bytes) };
            crate::check(asked).ok().and_then(|_| bytes.try_into().ok())
        }
    } else if #[cfg(target_os = "macos")] {
        fn unacknowledged(socket: &TcpStream) -> Option<u64> {
            // SAFETY: getsockopt(2): SO_NWRITE, the bytes in the output queue, is an int.
            let bytes = unsafe {
                socket_option::<libc::c_int>(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NWRITE)
            };
            bytes.ok().and_then(|bytes| bytes.try_into().ok())
        }
    } else if #[cfg(target_os = "openbsd")] {
        /// What is in the send queue.
        fn unacknowledged(socket: &TcpStream) -> Option<u64> {
            // SAFETY: tcp(4): TCP_INFO fills in a tcp_info, plain numbers; another release of the
            // system may fill in less, or have more.
            let info = unsafe {
                socket_option::<libc::tcp_info>(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO)
            };
            // To who is not root it says 0 of the buffers, of their sizes too, which never are.
            info.ok().filter(|info| info.tcpi_so_snd_sb_hiwat > 0).map(|info| info.tcpi_so_snd_sb_cc.into())
        }
    } else {
        /// Nobody tells.
        fn unacknowledged(_: &TcpStream) -> Option<u64> {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{Real, tcp::tcp_tests};
    use std::io::{Read, Write};
    use std::net::TcpListener;

    tcp_tests!(Real);

    /// Whose kernel may end the first of its subflows by itself.
    #[test]
    #[cfg(target_os = "linux")]
    fn nothing_is_said_of_the_end_of_a_connection_of_mptcp() {
        use socket2::{Domain, Protocol, Socket, Type};
        let protocol = Protocol::from(libc::IPPROTO_MPTCP);
        let Ok(listener) = Socket::new(Domain::IPV4, Type::STREAM, Some(protocol)) else { return }; // none here
        listener.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
        listener.listen(1).unwrap();
        let client = Socket::new(Domain::IPV4, Type::STREAM, Some(protocol)).unwrap();
        client.connect(&listener.local_addr().unwrap()).unwrap();
        let server = TcpStream::from(listener.accept().unwrap().0);
        assert!(has_subflows(&server) && !has_subflows(&pair().1));
        server.half_close();
        assert!(matches!(server.own_end(), OwnEnd::Open | OwnEnd::Unknown));
    }

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn it_is_tcp_with_ipv6_and_after_its_reset_was_read() {
        if let Ok(listener) = TcpListener::bind("[::1]:0") {
            assert!(TcpStream::of(listener.into()).is_ok());
        }
        let (client, mut server) = pair();
        socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        assert!(server.read(&mut [0]).is_err());
        assert!(TcpStream::of(server.into()).is_ok());
    }

    #[test]
    fn a_half_close_shows_as_one() {
        let (_client, server) = pair();
        assert!(!is_half_closed(&server));
        server.half_close();
        assert!(is_half_closed(&server));
    }

    #[test]
    fn only_some_systems_tell_what_is_acknowledged() {
        let (_client, server) = pair();
        server.half_close();
        assert_eq!(server.is_acknowledged().is_some(), TELLS_ACKNOWLEDGED);
        #[cfg(target_os = "linux")]
        {
            let listener = OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap());
            assert_eq!(TcpStream::from(listener).is_acknowledged(), None, "it has nothing to acknowledge");
        }
    }

    #[test]
    fn what_follows_a_second_half_close_arrives_as_it_was_sent() {
        let (mut client, mut server) = pair();
        server.half_close();
        // The client has the FIN, and so has acknowledged it: FIN_WAIT_2.
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        server.half_close();
        client.write_all(b"late").unwrap();
        let mut late = [0; 4];
        server.read_exact(&mut late).unwrap();
        assert_eq!(&late, b"late");
    }
}
