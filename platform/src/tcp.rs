//! What a lingering close asks of a TCP socket: tcp(7), ioctl and recv flags of each system.
//!
//! Never sets O_NONBLOCK: the flag belongs to the open file description, which the sender's copy
//! shares. Knows one socket at a time; must not know why it is asked.

use std::io;
use std::mem;
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// The most bytes that one [`discard`] takes.
pub const DISCARD_BYTES: usize = 256 * 1024;

/// Whether `fd` is a TCP socket, in whatever state. A file, a pipe, a terminal, a UDP, Unix or
/// raw socket is none.
///
/// Asked by way of TCP_NODELAY, which every system's TCP answers and nothing else does: SO_PROTOCOL
/// would say the same but is missing on macOS and NetBSD.
pub fn is_tcp(fd: &impl AsFd) -> bool {
    let mut value: libc::c_int = 0;
    let mut size = mem::size_of_val(&value) as libc::socklen_t;
    // SAFETY: getsockopt(2) writes at most `size` bytes to `value`; both outlive the call.
    unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NODELAY,
            (&raw mut value).cast(),
            &raw mut size,
        ) == 0
    }
}

/// Makes the close(2) that comes next neither block nor abort, whatever SO_LINGER the socket came
/// with: socket(7) lets close block for l_linger seconds, and zero seconds would reset the
/// connection. A system that refuses it (macOS, once both sides have ended) has nothing to wait for.
pub fn close_in_background(socket: &TcpStream) {
    let _ = socket2::SockRef::from(socket).set_linger(None::<Duration>);
}

/// Reads and throws away at most [`DISCARD_BYTES`], never blocking. `Ok(0)` is the end of the
/// stream.
///
/// # Errors
/// `WouldBlock` when nothing is there; ENOTCONN (`NotConnected`) when the socket never was
/// connected; ECONNRESET, ETIMEDOUT and their like when the connection is gone.
pub fn discard(socket: &TcpStream) -> io::Result<usize> {
    loop {
        let got = discard_once(socket);
        if got >= 0 {
            return Ok(got as usize);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
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

/// How many messages of an error queue one [`drain_errors`] takes.
#[cfg(any(target_os = "linux", target_os = "android"))]
const ERRORS: usize = 64;

/// Empties the socket's error queue, never blocking. A sender that wrote with MSG_ZEROCOPY or asked
/// for time stamps leaves notices there, and for as long as one is there the socket counts as
/// ready, see recv(2) on MSG_ERRQUEUE.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn drain_errors(socket: &TcpStream) {
    for _ in 0..ERRORS {
        // SAFETY: msghdr is plain data, for which all zeroes (no buffers) is a value.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
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

/// There is no error queue beside the stream on this system.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub fn drain_errors(_: &TcpStream) {}

cfg_if::cfg_if! {
    if #[cfg(any(target_os = "linux", target_os = "android"))] {
        /// tcp(7), SIOCOUTQ (the same number as TIOCOUTQ): "the amount of unsent data in the socket
        /// send queue" in its words; in fact all that is not yet acknowledged, the FIN included.
        const UNACKNOWLEDGED: Option<libc::c_ulong> = Some(libc::TIOCOUTQ as libc::c_ulong);
    } else if #[cfg(target_os = "freebsd")] {
        /// FIONWRITE of <sys/filio.h>, "get # bytes (yet) to write": `_IOR('f', 119, int)`.
        const UNACKNOWLEDGED: Option<libc::c_ulong> = Some(0x4004_6677);
    } else if #[cfg(target_os = "netbsd")] {
        /// FIONWRITE of <sys/filio.h>, "bytes to be written": `_IOR('f', 121, int)`.
        const UNACKNOWLEDGED: Option<libc::c_ulong> = Some(0x4004_6679);
    } else {
        const UNACKNOWLEDGED: Option<libc::c_ulong> = None;
    }
}

/// How many bytes the peer has not acknowledged yet (Linux counts the FIN as one), or `None` where
/// the system cannot tell.
pub fn unacknowledged(socket: &TcpStream) -> Option<u32> {
    let request = UNACKNOWLEDGED?;
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request writes one int to its argument, tcp(7) or ioctl(2) of the system.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), request as _, &raw mut bytes) };
    (result == 0).then_some(bytes.max(0) as u32)
}

/// How long ago the last acknowledgement arrived, or `None` where the system cannot tell. It may
/// have acknowledged nothing new (the answer to a zero-window probe): an upper bound of progress.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn last_acknowledgement(socket: &TcpStream) -> Option<Duration> {
    // SAFETY: tcp_info is plain numbers, for which zeroes are a value.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut size = mem::size_of_val(&info) as libc::socklen_t;
    // SAFETY: getsockopt(2) writes at most `size` bytes to `info`, a tcp_info as tcp(7) says of
    // TCP_INFO (an older kernel writes less); both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut size,
        )
    };
    (result == 0).then(|| Duration::from_millis(info.tcpi_last_ack_recv.into()))
}

/// How long ago the last acknowledgement arrived, or `None` where the system cannot tell.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub fn last_acknowledgement(_: &TcpStream) -> Option<Duration> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{Shutdown, TcpListener, UdpSocket};

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn only_tcp_is_tcp() {
        let (client, server) = pair();
        assert!(is_tcp(&client) && is_tcp(&server));
        assert!(is_tcp(&TcpListener::bind("[::1]:0").unwrap()));
        assert!(!is_tcp(&UdpSocket::bind("127.0.0.1:0").unwrap()));
        assert!(!is_tcp(&std::os::unix::net::UnixStream::pair().unwrap().0));
        assert!(!is_tcp(&std::fs::File::open("/dev/null").unwrap()));
    }

    #[test]
    fn discards_until_the_end() {
        let (mut client, server) = pair();
        assert_eq!(discard(&server).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        client.write_all(b"late bytes").unwrap();
        assert_eq!(discard(&server).unwrap(), 10);
        client.shutdown(Shutdown::Write).unwrap();
        loop {
            match discard(&server) {
                Ok(n) => break assert_eq!(n, 0),
                Err(e) => assert_eq!(e.kind(), io::ErrorKind::WouldBlock),
            }
        }
    }

    #[test]
    fn a_reset_socket_differs_from_one_never_connected() {
        let (client, server) = pair();
        socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        assert_eq!(discard(&server).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(discard(&server).unwrap(), 0, "the error is told once, then it is the end");

        let fresh = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        assert_eq!(discard(&fresh.into()).unwrap_err().kind(), io::ErrorKind::NotConnected);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn counts_what_is_in_flight() {
        let (client, mut server) = pair();
        server.set_nonblocking(true).unwrap();
        while server.write(&[0; 65536]).is_ok() {}
        assert!(unacknowledged(&server).unwrap() > 0);
        drop(client);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_notice_in_the_error_queue_keeps_a_socket_ready_until_it_is_drained() {
        use crate::backend::{Backend, Interest, System, Token};
        let (_client, mut server) = pair();
        let stamps = libc::SOF_TIMESTAMPING_TX_SOFTWARE | libc::SOF_TIMESTAMPING_SOFTWARE;
        // SAFETY: setsockopt(2) reads the one int, which outlives the call.
        let set = unsafe {
            libc::setsockopt(
                server.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_TIMESTAMPING,
                (&raw const stamps).cast(),
                mem::size_of_val(&stamps) as libc::socklen_t,
            )
        };
        assert_eq!(set, 0);
        server.write_all(b"x").unwrap();
        let mut backend = System::new().unwrap();
        backend.add(server.as_fd(), Token(1), Interest::Read).unwrap();
        let mut ready = Vec::new();
        backend.wait(&mut ready, None).unwrap();
        assert_eq!(discard(&server).unwrap_err().kind(), io::ErrorKind::WouldBlock, "nothing to read");
        drain_errors(&server);
        backend.wait(&mut ready, Some(Duration::from_millis(1))).unwrap();
        assert_eq!(ready, []);
    }
}
