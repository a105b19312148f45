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
/// as long as it stays ready: whoever leaves bytes unread loses nothing. End of stream and errors
/// count as ready, whatever the interest; which of them it was, the next read or write tells.
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
/// **Remove before close.** A registration belongs to the open file description, not to the
/// number (epoll(7), "Will closing a file descriptor cause it to be removed from all epoll
/// interest lists?"), and a sender may hold a copy of a handed-over descriptor for a moment.
/// Closing without `remove` could therefore go on reporting a descriptor that nobody can name any
/// more. The caller removes first, always.
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
    fn add(&mut self, fd: impl Descriptor, token: Token, interest: Interest) -> io::Result<()>;

    /// Waits for another `interest` of `fd` from now on; `token` is the one that it was added with.
    ///
    /// # Errors
    /// `NotFound` if `fd` is not registered; else as [`rearm`](Self::rearm).
    fn change(&mut self, fd: impl Descriptor, token: Token, interest: Interest) -> io::Result<()>;

    /// Asks to hear of `fd` again, after its token came out of `wait`; `token` and `interest` are
    /// those that it was added with or changed to.
    ///
    /// # Errors
    /// As [`add`](Self::add) where the kernel has to be asked; never where it has not. The
    /// descriptor stays registered, but is not reported until a later `rearm` succeeds.
    fn rearm(&mut self, fd: impl Descriptor, token: Token, interest: Interest) -> io::Result<()> {
        let _ = (fd, token, interest);
        Ok(())
    }

    /// Stops to report `fd`. Must come before it is closed.
    ///
    /// # Errors
    /// `NotFound` if `fd` is not registered.
    fn remove(&mut self, fd: impl Descriptor) -> io::Result<()>;

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
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::fd::{AsFd, AsRawFd};

    const SOON: Option<Duration> = Some(Duration::from_millis(1));

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    fn wait(backend: &mut System, timeout: Option<Duration>) -> Vec<Token> {
        let mut ready = Vec::new();
        backend.wait(&mut ready, timeout).unwrap();
        ready
    }

    #[test]
    fn timeouts_are_rounded_up_and_capped() {
        assert_eq!(millis(None), -1);
        assert_eq!(millis(Some(Duration::ZERO)), 0);
        assert_eq!(millis(Some(Duration::from_nanos(1))), 1);
        assert_eq!(millis(Some(Duration::from_millis(7))), 7);
        assert_eq!(millis(Some(Duration::from_micros(7_001))), 8);
        assert_eq!(millis(Some(Duration::MAX)), libc::c_int::MAX);
    }

    #[test]
    fn a_timespec_is_exact_and_of_a_day_at_most() {
        let time = timespec(Duration::from_micros(7_000_001));
        assert_eq!((time.tv_sec, time.tv_nsec), (7, 1_000));
        let time = timespec(Duration::MAX);
        assert_eq!((time.tv_sec, time.tv_nsec), (86_400, 0));
    }

    #[test]
    fn what_stays_ready_is_reported_again() {
        let (mut client, mut server) = pair();
        let mut backend = System::new().unwrap();
        backend.add(server.as_fd(), Token(7), Interest::Read).unwrap();
        assert_eq!(wait(&mut backend, SOON), []);
        client.write_all(b"ab").unwrap();
        for _ in 0..3 {
            assert_eq!(wait(&mut backend, None), [Token(7)]);
            backend.rearm(server.as_fd(), Token(7), Interest::Read).unwrap();
        }
        assert_eq!(server.read(&mut [0; 2]).unwrap(), 2);
        assert_eq!(wait(&mut backend, SOON), []);
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(wait(&mut backend, None), [Token(7)], "end of stream counts as ready");
    }

    #[test]
    fn what_happens_during_a_wait_with_a_time_limit_is_reported() {
        let (mut client, server) = pair();
        let mut backend = System::new().unwrap();
        backend.add(server.as_fd(), Token(1), Interest::Read).unwrap();
        let writer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20)); // most likely it waits by then
            client.write_all(b"x").unwrap();
            client
        });
        assert_eq!(wait(&mut backend, Some(Duration::from_secs(60))), [Token(1)]);
        writer.join().unwrap();
    }

    #[test]
    fn write_interest_reports_room() {
        let (_client, server) = pair();
        let mut backend = System::new().unwrap();
        backend.add(server.as_fd(), Token(1), Interest::Write).unwrap();
        assert_eq!(wait(&mut backend, None), [Token(1)]);
    }

    #[test]
    fn a_reset_is_reported_whatever_the_interest() {
        let (client, server) = pair();
        let mut backend = System::new().unwrap();
        backend.add(server.as_fd(), Token(1), Interest::Read).unwrap();
        socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        assert_eq!(wait(&mut backend, None), [Token(1)]);
    }

    #[test]
    fn removed_is_silent_even_where_a_copy_lives_on() {
        let (mut client, server) = pair();
        let copy = server.try_clone().unwrap();
        let mut backend = System::new().unwrap();
        backend.add(server.as_fd(), Token(1), Interest::Read).unwrap();
        client.write_all(b"x").unwrap();
        assert_eq!(wait(&mut backend, None), [Token(1)]);
        backend.remove(server.as_fd()).unwrap();
        drop(server);
        assert_eq!(wait(&mut backend, SOON), []);
        drop(copy);
    }

    #[test]
    fn the_next_user_of_a_number_has_its_own_token() {
        let (mut client, server) = pair();
        let (_client2, server2) = pair();
        let mut backend = System::new().unwrap();
        backend.add(server.as_fd(), Token(1), Interest::Read).unwrap();
        backend.add(server2.as_fd(), Token(2), Interest::Read).unwrap();
        backend.remove(server2.as_fd()).unwrap();
        backend.add(server2.as_fd(), Token(3), Interest::Write).unwrap();
        client.write_all(b"x").unwrap();
        let mut ready = wait(&mut backend, None);
        if ready.len() < 2 {
            ready.extend(wait(&mut backend, None));
        }
        ready.sort();
        ready.dedup();
        assert_eq!(ready, [Token(1), Token(3)]);
    }

    #[test]
    fn what_is_removed_before_the_first_wait_takes_nothing_with_it() {
        let pairs: Vec<_> = (0..4).map(|_| pair()).collect();
        let mut backend = System::new().unwrap();
        for (n, (client, server)) in pairs.iter().enumerate() {
            backend.add(server.as_fd(), Token(n as u64), Interest::Read).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
        }
        backend.remove(pairs[0].1.as_fd()).unwrap(); // the first: another takes its place
        backend.remove(pairs[3].1.as_fd()).unwrap();
        backend.remove(pairs[2].1.as_fd()).unwrap(); // the last
        backend.add(pairs[2].1.as_fd(), Token(5), Interest::Read).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        while seen.len() < 2 {
            for token in wait(&mut backend, None) {
                backend.rearm(pairs[token.0 as usize % 3].1.as_fd(), token, Interest::Read).unwrap();
                seen.insert(token);
            }
        }
        assert_eq!(Vec::from_iter(seen), [Token(1), Token(5)]);
    }

    /// Whether nothing came for the whole time, not even a wake-up for nothing.
    fn silent(backend: &mut System) -> bool {
        const WHILE: Duration = Duration::from_millis(50);
        let start = std::time::Instant::now();
        wait(backend, Some(WHILE)).is_empty() && start.elapsed() >= WHILE
    }

    #[test]
    fn what_is_removed_does_not_even_wake() {
        for interest in [Interest::Read, Interest::Write] {
            let (mut client, server) = pair();
            client.write_all(b"x").unwrap();
            let mut backend = System::new().unwrap();
            backend.add(server.as_fd(), Token(1), interest).unwrap();
            backend.remove(server.as_fd()).unwrap();
            assert!(silent(&mut backend), "before the first wait");
            backend.add(server.as_fd(), Token(2), interest).unwrap();
            assert_eq!(wait(&mut backend, None), [Token(2)]);
            backend.rearm(server.as_fd(), Token(2), interest).unwrap();
            backend.remove(server.as_fd()).unwrap();
            assert!(silent(&mut backend), "after it was reported");
        }
    }

    #[test]
    fn a_wait_that_a_signal_ends_has_registered_what_was_added() {
        use std::os::unix::thread::JoinHandleExt;
        extern "C" fn nothing(_: libc::c_int) {}
        // SAFETY: signal(3): the handler does nothing; no other test wants SIGURG.
        unsafe { libc::signal(libc::SIGURG, nothing as *const () as libc::sighandler_t) };
        let (mut client, server) = pair();
        let interrupted = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let told = std::sync::Arc::clone(&interrupted);
        let waiter = std::thread::spawn(move || {
            let mut backend = System::new().unwrap();
            backend.add(server.as_fd(), Token(1), Interest::Read).unwrap();
            assert_eq!(wait(&mut backend, Some(Duration::from_secs(60))), []);
            told.store(true, std::sync::atomic::Ordering::SeqCst);
            backend.remove(server.as_fd()).unwrap();
            client.write_all(b"x").unwrap();
            // One more signal may have been on its way.
            assert!(silent(&mut backend) || silent(&mut backend));
            backend.add(server.as_fd(), Token(2), Interest::Read).unwrap();
            assert_eq!(wait(&mut backend, None), [Token(2)]);
        });
        while !interrupted.load(std::sync::atomic::Ordering::SeqCst) && !waiter.is_finished() {
            // SAFETY: pthread_kill(3): the thread has not been joined.
            unsafe { libc::pthread_kill(waiter.as_pthread_t() as _, libc::SIGURG) };
            std::thread::sleep(Duration::from_millis(100));
        }
        waiter.join().unwrap();
    }

    /// The descriptors that a program would inherit.
    fn inheritable() -> std::collections::HashSet<libc::c_int> {
        // SAFETY: F_GETFD takes no argument and touches no memory, fcntl(2).
        (0..1024).filter(|&fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } == 0).collect()
    }

    #[test]
    fn nothing_is_opened_that_a_program_would_inherit() {
        let before = inheritable();
        let _backend = System::new().unwrap();
        // Another test's may be seen between its making and its being set so.
        let mut more = 1;
        for _ in 0..100 {
            more = inheritable().difference(&before).count();
            if more == 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(more, 0);
    }

    #[test]
    fn more_than_a_batch_before_the_first_wait() {
        let pairs: Vec<_> = (0..600).map(|_| std::os::unix::net::UnixStream::pair().unwrap()).collect();
        let mut backend = System::new().unwrap();
        for (n, (_, b)) in pairs.iter().enumerate() {
            backend.add(b.as_fd(), Token(n as u64), Interest::Read).unwrap();
        }
        let null = std::fs::File::open("/dev/null").unwrap();
        if backend.add(null.as_fd(), Token(1000), Interest::Read).is_ok() {
            assert_eq!(wait(&mut backend, Some(Duration::from_secs(10))), [Token(1000)]);
        } else {
            backend.remove(null.as_fd()).unwrap_err();
        }
        for (mut a, b) in pairs[200..].iter().map(|(a, b)| (a, b)) {
            backend.remove(b.as_fd()).unwrap();
            a.write_all(b"x").unwrap();
        }
        if backend.remove(null.as_fd()).is_err() {
            assert!(silent(&mut backend));
        }
        (&pairs[3].0).write_all(b"x").unwrap();
        assert_eq!(wait(&mut backend, None), [Token(3)]);
    }

    #[test]
    fn what_was_refused_can_be_armed_when_the_cause_is_gone() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let (mut client, server) = pair();
        let mut backend = System::new().unwrap();
        if backend.add(null.as_fd(), Token(1), Interest::Read).is_err() {
            return; // said at once
        }
        assert_eq!(wait(&mut backend, None), [Token(1)]);
        if backend.rearm(null.as_fd(), Token(1), Interest::Read).is_ok() {
            assert_eq!(wait(&mut backend, Some(Duration::from_secs(10))), [Token(1)], "armed, they said");
            return;
        }
        // SAFETY: dup2(2) takes two numbers; the File goes on owning its own.
        unsafe { libc::dup2(server.as_raw_fd(), null.as_raw_fd()) };
        backend.rearm(null.as_fd(), Token(1), Interest::Read).unwrap();
        client.write_all(b"x").unwrap();
        assert_eq!(wait(&mut backend, None), [Token(1)]);
        backend.remove(null.as_fd()).unwrap();
        assert!(silent(&mut backend));
    }

    #[test]
    fn what_the_kernel_cannot_watch_is_said_and_can_be_removed() {
        // To some kernels (epoll) this is nothing to wait for, to others it is always ready.
        let null = std::fs::File::open("/dev/null").unwrap();
        let mut backend = System::new().unwrap();
        if backend.add(null.as_fd(), Token(1), Interest::Read).is_ok() {
            assert_eq!(wait(&mut backend, None), [Token(1)]);
            if backend.rearm(null.as_fd(), Token(1), Interest::Read).is_err() {
                assert_eq!(wait(&mut backend, SOON), [], "refused, and so not reported again");
            }
            backend.remove(null.as_fd()).unwrap();
        }
        backend.remove(null.as_fd()).unwrap_err();
        assert_eq!(wait(&mut backend, SOON), []);
    }

    #[test]
    fn misuse_is_an_error() {
        let (_client, server) = pair();
        let mut backend = System::new().unwrap();
        let missing = backend.remove(server.as_fd()).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        backend.add(server.as_fd(), Token(1), Interest::Read).unwrap();
        let twice = backend.add(server.as_fd(), Token(1), Interest::Read).unwrap_err();
        assert_eq!(twice.kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn more_ready_than_one_batch_are_all_reported() {
        let pairs: Vec<_> = (0..600).map(|_| std::os::unix::net::UnixStream::pair().unwrap()).collect();
        let mut backend = System::new().unwrap();
        for (n, (mut a, b)) in pairs.iter().map(|(a, b)| (a, b)).enumerate() {
            backend.add(b.as_fd(), Token(n as u64), Interest::Read).unwrap();
            a.write_all(b"x").unwrap();
        }
        let mut seen = std::collections::HashSet::new();
        for _ in 0..20 {
            for token in wait(&mut backend, SOON) {
                let server = &pairs[token.0 as usize].1;
                backend.rearm(server.as_fd(), token, Interest::Read).unwrap();
                seen.insert(token);
            }
        }
        assert_eq!(seen.len(), pairs.len());
    }
}
