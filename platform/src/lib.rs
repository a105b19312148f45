// SPDX-License-Identifier: BSD-3-Clause

//! All of lingerd that differs by system, and every `unsafe` block of it.
//!
//! What is in here wraps one kernel facility each, in the words of its man page, and decides
//! nothing: which socket lingers, for how long, and what is counted is the daemon's business
//! (`../src`), which forbids `unsafe`. Nothing in here may know about lingering.

pub mod back;
pub mod backend;
pub mod clock;
pub mod closing;
pub mod content;
#[cfg(test)]
mod contract;
pub mod detach;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
pub mod fdpass;
pub mod manager;
pub mod name;
pub mod peer;
pub mod process;
pub mod reader;
pub mod sandbox;
pub mod signals;
pub mod syslog;
pub mod tcp;
pub mod world;

cfg_if::cfg_if! {
    if #[cfg(any(target_os = "macos", target_os = "illumos", target_os = "solaris"))] {
        // illumos has MSG_NOSIGNAL only since lately, the others never; std has SIGPIPE ignored.
        const SEND_FLAGS: libc::c_int = libc::MSG_DONTWAIT;
    } else {
        /// To send without waiting and without SIGPIPE, send(2).
        const SEND_FLAGS: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    }
}

/// Turns the -1 of a system call into the error that errno names.
fn check(result: libc::c_int) -> std::io::Result<libc::c_int> {
    if result == -1 { Err(std::io::Error::last_os_error()) } else { Ok(result) }
}

/// Whether errno says that the system is short of memory for now, by whichever of its names. The call
/// has done nothing then.
fn is_out_of_memory(errno: Option<libc::c_int>) -> bool {
    cfg_if::cfg_if! {
        if #[cfg(any(target_os = "illumos", target_os = "solaris"))] {
            // Solaris: STREAMS, which sockets may be made of, have resources of their own.
            const STREAMS: libc::c_int = libc::ENOSR;
        } else {
            const STREAMS: libc::c_int = libc::ENOMEM;
        }
    }
    matches!(errno, Some(libc::ENOMEM | libc::ENOBUFS)) || errno == Some(STREAMS)
}

/// Sets FD_CLOEXEC, where the call that made the descriptor could not.
#[allow(dead_code, reason = "where every call can, nobody asks")]
fn set_cloexec(fd: &impl std::os::fd::AsRawFd) -> std::io::Result<()> {
    // SAFETY: F_SETFD takes an int and touches no memory, fcntl(2).
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) }).map(drop)
}

/// Connects `socket` to the name in `address`, which is one in `directory`.
#[cfg(target_os = "freebsd")]
fn connect_at(
    directory: &impl std::os::fd::AsFd,
    socket: &impl std::os::fd::AsFd,
    address: &socket2::SockAddr,
) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    unsafe extern "C" {
        /// connectat(2), which the crate libc lacks.
        fn connectat(
            directory: libc::c_int,
            socket: libc::c_int,
            name: *const libc::sockaddr,
            length: libc::socklen_t,
        ) -> libc::c_int;
    }
    let (directory, socket) = (directory.as_fd().as_raw_fd(), socket.as_fd().as_raw_fd());
    // SAFETY: connectat(2) reads `length` bytes of the address, which outlives the call.
    check(unsafe { connectat(directory, socket, address.as_ptr().cast(), address.len()) }).map(drop)
}

/// getsockopt(2) for an option that fills in a value of type `T`, or the first part of one.
///
/// # Safety
/// `T` is what the option writes, whose manual says so, and zeroes are a value of it.
unsafe fn socket_option<T>(
    fd: std::os::fd::RawFd,
    level: libc::c_int,
    name: libc::c_int,
) -> std::io::Result<T> {
    // SAFETY: the caller's word.
    let mut value: T = unsafe { std::mem::zeroed() };
    let mut size = size_of::<T>() as libc::socklen_t;
    // SAFETY: getsockopt(2) writes at most `size` bytes to `value`; both outlive the call.
    check(unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &raw mut size) })?;
    Ok(value)
}
