// SPDX-License-Identifier: BSD-3-Clause

//! Waiting for many descriptors at once: one contract, one implementation a kernel facility.
//!
//! The implementation is chosen at compile time and reached by static dispatch through
//! [`System`]. `--cfg lingerd_backend="poll"` in RUSTFLAGS overrides the choice; so do `"kqueue"`
//! and `"port"` on Linux, for the tests, where crates in `tests/shims` stand in for the kernel. A
//! backend knows descriptors, tokens and time-outs; it must not know what a descriptor is waited
//! for.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

cfg_if::cfg_if! {
    if #[cfg(lingerd_backend = "poll")] {
        mod poll;
        pub use poll::Poll as System;
    } else if #[cfg(any(
        lingerd_backend = "kqueue",
        target_os = "freebsd",
        target_os = "netbsd",
        target_os = "openbsd",
        target_os = "dragonfly",
        target_os = "macos",
    ))] {
        mod kqueue;
        mod registry;
        pub use kqueue::Kqueue as System;
    } else if #[cfg(any(lingerd_backend = "port", target_os = "illumos", target_os = "solaris"))] {
        mod port;
        mod registry;
        pub use port::Port as System;
    } else if #[cfg(any(target_os = "linux", target_os = "android"))] {
        mod epoll;
        pub use self::epoll::Epoll as System;
    } else if #[cfg(unix)] {
        mod poll;
        pub use poll::Poll as System;
    } else {
        compile_error!("lingerd needs a POSIX system: it has no backend for this one");
    }
}

/// How many a wait reports at most, but with poll(2), which reports all. Where it is as many there may be others, who
/// come first then.
pub const MOST_READY: usize = 256;

/// What the caller of [`Backend::add`] wants back when that descriptor is ready.
///
/// A backend returns it bit for bit and never looks inside. The caller puts a generation into it,
/// so that an event which outlived its registration can be told from one for the descriptor's
/// next user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u64);

/// What to wait for on a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Bytes, a connection to accept, the end of the stream, or an error.
    Read,
    /// Room to write, the end of a connect(2) that was in progress, or an error.
    Write,
    /// Either of them.
    Both,
}

impl Interest {
    /// Whether it is about reading.
    const fn reads(self) -> bool {
        matches!(self, Interest::Read | Interest::Both)
    }

    /// Whether it is about writing.
    const fn writes(self) -> bool {
        matches!(self, Interest::Write | Interest::Both)
    }
}

/// What a backend can wait for: a descriptor that is open.
pub trait Descriptor {
    /// Its number.
    fn number(&self) -> RawFd;
}

impl<T: AsFd> Descriptor for T {
    fn number(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

/// The contract between lingerd and the kernel's event facility.
///
/// **Level-triggered in effect.** A descriptor that is ready when [`wait`](Self::wait) is called,
/// or becomes ready while it waits, is reported, and is reported again by every later `wait` for
/// as long as it stays ready: whoever leaves bytes unread loses nothing. Errors count as ready
/// whatever the interest, and so does a far end that is gone. The far end's half-close is something
/// to read. Which of them it was, the next read or write tells.
///
/// **Rearm.** Some kernels (event ports) forget a descriptor when they have reported it. After a
/// token came out of `wait`, and before the next `wait`, the caller calls [`rearm`](Self::rearm)
/// for each descriptor that it still wants to hear of. Where the kernel needs none it is a no-op;
/// a caller that forgets it is wrong on every backend, even if only some show it.
///
/// **Tokens.** `wait` returns the token of the registration that was in force when the kernel
/// saw the event. When a descriptor is removed while an event for it is already in the list that
/// `wait` returned, that token still stands in the list; the caller tells by its generation that
/// it is stale, and drops it. A `wait` that starts after [`remove`](Self::remove) never returns
/// the removed token.
///
/// **Interest** can be changed at any time, by [`change`](Self::change): what comes out of a `wait`
/// that starts later is about the new interest only. Whoever has changed it need not rearm.
///
/// **Remove before close.** For epoll a registration belongs to the open file description, not to the
/// number (epoll(7), "Will closing a file descriptor cause it to be removed from all epoll
/// interest lists?"), and a sender may hold a copy of a handed-over descriptor for a moment.
/// Closing without `remove` could therefore go on reporting a descriptor that nobody can name any
/// more. Nor do kqueue's list of changes and the registries know of a close, after which the number is the
/// next descriptor's. The caller removes first, always. What that costs a system call is the backend's: none on event
/// ports where the descriptor was reported last, as that has ended its association.
///
/// **Time-outs** are rounded up to what the kernel can tell apart, never down: a `wait` for
/// 100 µs that returned at once would make the caller spin until the deadline. `None` waits for
/// ever. A time-out longer than the kernel's greatest is cut to that one; the caller comes back.
///
/// **Interruption** by a signal (EINTR) is not an error: `wait` returns early, perhaps with no
/// token at all. The caller computes its time-out anew in any case.
///
/// **Order and number.** Tokens come in no particular order, each at most once a `wait`. A
/// backend may cap how many it returns at once; the others come with the next call, and no
/// descriptor is starved for ever by others that are ready all the time.
pub trait Backend: Sized {
    /// The kernel facility's name, as `lingerd -V` prints it.
    const NAME: &'static str;

    /// Starts to report `fd` as `token`.
    ///
    /// # Errors
    /// `AlreadyExists` if `fd` is registered; what the kernel says of a table that is full
    /// (ENOSPC, ENOMEM). The descriptor is then not registered. Where the kernel is asked later
    /// (kqueue), what it refuses is reported as ready, and [`rearm`](Self::rearm) says why.
    fn add(&mut self, fd: &impl Descriptor, token: Token, interest: Interest) -> io::Result<()>;

    /// Waits for another `interest` of `fd` from now on; `token` is the one that it was added with.
    ///
    /// # Errors
    /// `NotFound` if `fd` is not registered; else as [`rearm`](Self::rearm).
    fn change(&mut self, fd: &impl Descriptor, token: Token, interest: Interest) -> io::Result<()>;

    /// Asks to hear of `fd` again, after its token came out of `wait`; `token` and `interest` are
    /// those that it was added with or changed to.
    ///
    /// # Errors
    /// As [`add`](Self::add) where the kernel has to be asked; never where it has not. The
    /// descriptor stays registered, but is not reported until a later `rearm` succeeds.
    fn rearm(&mut self, fd: &impl Descriptor, token: Token, interest: Interest) -> io::Result<()> {
        let _ = (fd, token, interest);
        Ok(())
    }

    /// Stops to report `fd`. Must come before it is closed.
    ///
    /// # Errors
    /// `NotFound` if `fd` is not registered.
    fn remove(&mut self, fd: &impl Descriptor) -> io::Result<()>;

    /// Waits until a descriptor is ready or `timeout` is over, and fills `ready` (which it clears
    /// first) with the tokens of those that are. Allocates nothing once `ready` has grown to the
    /// most that it returns at once.
    ///
    /// # Errors
    /// Only what makes waiting impossible for good (EBADF, EINVAL, EFAULT); never EINTR.
    fn wait(&mut self, ready: &mut Vec<Token>, timeout: Option<Duration>) -> io::Result<()>;
}

/// `timeout` as kevent(2) and port_getn(3C) take it. A day at most: some kernels refuse one of years.
#[allow(dead_code, reason = "epoll_wait(2) and poll(2) take milliseconds")]
fn timespec(timeout: Duration) -> libc::timespec {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let timeout = timeout.min(DAY);
    // SAFETY: timespec is two numbers (and padding on some systems), for which zeroes are a value.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    time.tv_sec = timeout.as_secs() as _;
    time.tv_nsec = timeout.subsec_nanos() as _;
    time
}

/// `timeout` as the milliseconds that poll(2) and epoll_wait(2) take, rounded up; -1 is for ever.
#[allow(dead_code, reason = "kevent(2) and port_getn(3C) take a timespec")]
fn millis(timeout: Option<Duration>) -> libc::c_int {
    match timeout {
        None => -1,
        Some(timeout) => timeout.as_nanos().div_ceil(1_000_000).try_into().unwrap_or(libc::c_int::MAX),
    }
}

/// `interest` in the flags of poll(2), which event ports take too. POLLERR and POLLHUP need not be
/// asked for.
#[allow(dead_code, reason = "epoll(7) and kqueue(2) have names of their own")]
const fn poll_events(interest: Interest) -> libc::c_short {
    let read = if interest.reads() { libc::POLLIN } else { 0 };
    let write = if interest.writes() { libc::POLLOUT } else { 0 };
    read | write
}

#[cfg(test)]
pub(crate) mod contract;
#[cfg(test)]
mod tests;
