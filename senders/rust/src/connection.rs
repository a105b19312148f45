// SPDX-License-Identifier: BSD-3-Clause

//! A client's connection: what is asked of it, and changed, before it is handed over. Must not know how lingerd is reached.

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{AddressFamily, RecvFlags, Shutdown, SocketType, getsockname, recv, shutdown, sockopt};
use std::io;
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

/// That it is one of TCP: lingerd closes any other, and cannot linger for one that listens.
pub fn is_taken(socket: impl AsFd) -> io::Result<()> {
    let is_inet =
        matches!(getsockname(&socket)?.address_family(), AddressFamily::INET | AddressFamily::INET6);
    if is_inet && sockopt::socket_type(&socket)? == SocketType::STREAM && !listens(&socket)? {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no connection of TCP"))
}

#[cfg(not(target_vendor = "apple"))]
fn listens(socket: impl AsFd) -> io::Result<bool> {
    Ok(sockopt::socket_acceptconn(socket)?)
}

/// There the option has a name, and no more.
#[cfg(target_vendor = "apple")]
fn listens(_: impl AsFd) -> io::Result<bool> {
    Ok(false)
}

/// Half-closes it, and returns whether the client is done, so that nobody has to linger.
///
/// The end goes out before the hand-over, so that no lingerd that is slow delays it. That is so on Linux, where it can be
/// done twice: in the TCP of the BSDs a second time, by a server that has to linger itself after all, would end receiving,
/// too.
pub fn half_close(socket: impl AsFd) -> bool {
    if cfg!(any(target_os = "linux", target_os = "android")) {
        if shutdown(&socket, Shutdown::Write) == Err(Errno::NOTCONN) {
            return true;
        }
        // Whoever has the processor now may be the client, or let its end come in.
        thread::yield_now();
    }
    is_done(socket)
}

/// Whether the client has closed, or reset, and nothing that it has sent is unread. Then close(2) is safe even if it still
/// reads: that resets only if something unread is there, or comes.
fn is_done(socket: impl AsFd) -> bool {
    let mut byte = [0];
    let peeked = retry_on_intr(|| recv(&socket, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT));
    matches!(peeked, Ok((0, _)) | Err(Errno::CONNRESET))
}

/// SO_LINGER, on with so many seconds, or off. The option is of the connection, which both copies are of.
pub fn set_linger(socket: impl AsFd, seconds: Option<u64>) {
    // On macOS it counts in hundredths.
    let unit = if cfg!(target_vendor = "apple") { 100 } else { 1 };
    let most = u64::from(u16::MAX); // which lasts for longer than any connection, and fits everywhere
    let time = seconds.map(|seconds| Duration::from_secs(seconds.saturating_mul(unit).min(most)));
    let _ = sockopt::set_socket_linger(socket, time); // the client has gone
}
