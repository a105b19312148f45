// SPDX-License-Identifier: BSD-3-Clause

//! Event ports over epoll(7): the names that libc has on illumos and Solaris, with what
//! port_create(3C), port_associate(3C) and port_getn(3C) promise of them.
//!
//! It stands in for the kernel when lingerd's tests run on Linux with `--cfg lingerd_backend="port"`.
//! Only descriptors can be associated (PORT_SOURCE_FD). It must not know what lingerd does with it;
//! where the manuals leave something open it does what is least convenient.
#![cfg(target_os = "linux")]

use libc::{c_int, c_uint, c_ushort, c_void, timespec, uintptr_t};
use std::collections::HashMap;
use std::ptr;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The source of events on descriptors.
pub const PORT_SOURCE_FD: c_int = 4;

/// An event, as port_getn(3C) writes it.
#[allow(non_camel_case_types, reason = "the system's own name")]
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct port_event {
    /// What happened, in poll(2)'s flags.
    pub portev_events: c_int,
    /// Where it happened: [`PORT_SOURCE_FD`].
    pub portev_source: c_ushort,
    /// Nothing.
    pub portev_pad: c_ushort,
    /// The descriptor.
    pub portev_object: uintptr_t,
    /// What port_associate(3C) was given.
    pub portev_user: *mut c_void,
}

/// The associations in force, by port and descriptor, with their user's pointer as a number. One
/// ends with the event that reports it, although epoll still has the descriptor, disabled.
static ASSOCIATIONS: LazyLock<Mutex<HashMap<(c_int, u64), usize>>> = LazyLock::new(Mutex::default);

fn associations() -> MutexGuard<'static, HashMap<(c_int, u64), usize>> {
    ASSOCIATIONS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Fails as a system call does: -1, and errno.
fn fail(errno: c_int) -> c_int {
    // SAFETY: errno(3): __errno_location returns the address of this thread's errno.
    unsafe { *libc::__errno_location() = errno };
    -1
}

fn errno() -> c_int {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// port_create(3C). As there, the descriptor is not close-on-exec.
///
/// # Safety
/// None is needed; it is `unsafe` as the system's own is.
pub unsafe fn port_create() -> c_int {
    // SAFETY: epoll_create1(2) takes a number.
    let port = unsafe { libc::epoll_create1(0) };
    associations().retain(|&(of, _), _| of != port); // those of a port that had the number before
    port
}

/// port_associate(3C) for PORT_SOURCE_FD: `events` in poll(2)'s flags, whose values on Linux are
/// those of epoll. What is associated already gets the new events and the new user.
///
/// # Safety
/// None is needed: `user` is only handed back.
pub unsafe fn port_associate(
    port: c_int,
    source: c_int,
    object: uintptr_t,
    events: c_int,
    user: *mut c_void,
) -> c_int {
    let Ok(fd) = c_int::try_from(object) else { return fail(libc::EBADF) };
    if source != PORT_SOURCE_FD {
        return fail(libc::EINVAL);
    }
    let mut event =
        libc::epoll_event { events: events as u32 | libc::EPOLLONESHOT as u32, u64: object as u64 };
    let mut control = |op| {
        // SAFETY: epoll_ctl(2) reads one epoll_event, which outlives the call.
        unsafe { libc::epoll_ctl(port, op, fd, &raw mut event) }
    };
    let mut associations = associations();
    // epoll may still have it, disabled.
    if control(libc::EPOLL_CTL_MOD) == -1 && (errno() != libc::ENOENT || control(libc::EPOLL_CTL_ADD) == -1) {
        return -1;
    }
    associations.insert((port, object as u64), user as usize);
    0
}

/// port_dissociate(3C): ENOENT for what is not associated, or no longer.
///
/// # Safety
/// None is needed.
pub unsafe fn port_dissociate(port: c_int, source: c_int, object: uintptr_t) -> c_int {
    if source != PORT_SOURCE_FD {
        return fail(libc::EINVAL);
    }
    if associations().remove(&(port, object as u64)).is_none() {
        return fail(libc::ENOENT);
    }
    // Fails only where the descriptor was closed before, and the association is gone anyway.
    // SAFETY: epoll_ctl(2) ignores the event for EPOLL_CTL_DEL.
    unsafe { libc::epoll_ctl(port, libc::EPOLL_CTL_DEL, object as c_int, ptr::null_mut()) };
    0
}

/// port_getn(3C): waits until at least `*nget` events are there, and writes at most `max`. When it
/// fails with ETIME or EINTR those that are there are in the list all the same, and `*nget` still
/// says what was asked for.
///
/// # Safety
/// `list` has room for `max` events; `nget` can be read and written; `timeout` is null or can be read.
pub unsafe fn port_getn(
    port: c_int,
    list: *mut port_event,
    max: c_uint,
    nget: *mut c_uint,
    timeout: *mut timespec,
) -> c_int {
    // SAFETY: the caller's word.
    let (wanted, timeout) = unsafe { (*nget as usize, timeout.as_ref()) };
    let deadline = match timeout {
        None => None,
        Some(time) if time.tv_sec >= 0 && (0..1_000_000_000).contains(&time.tv_nsec) => {
            Some(Instant::now() + Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
        }
        Some(_) => return fail(libc::EINVAL),
    };
    let max = max as usize;
    if wanted == 0 || wanted > max {
        return fail(libc::EINVAL);
    }
    let mut ready = vec![libc::epoll_event { events: 0, u64: 0 }; max];
    let mut got = 0;
    // What happens just as time runs out: ETIME, and the event is in the list all the same. Here
    // that is every event for which a wait with a time limit had to wait.
    let mut queue = libc::pollfd { fd: port, events: libc::POLLIN, revents: 0 };
    // SAFETY: poll(2) reads and writes one pollfd.
    let late = deadline.is_some() && unsafe { libc::poll(&raw mut queue, 1, 0) } == 0;
    while got < wanted {
        let left = deadline.map_or(-1, |deadline| {
            deadline.saturating_duration_since(Instant::now()).as_nanos().div_ceil(1_000_000) as c_int
        });
        // SAFETY: epoll_wait(2) writes at most as many events as it is told there is room for.
        let count = unsafe { libc::epoll_wait(port, ready.as_mut_ptr(), (max - got) as c_int, left) };
        if count == -1 {
            return -1;
        }
        for event in &ready[..count as usize] {
            let object = event.u64;
            // Dissociated by another thread meanwhile: then it must not be reported.
            let Some(user) = associations().remove(&(port, object)) else { continue };
            let event = port_event {
                portev_events: event.events as c_int,
                portev_source: PORT_SOURCE_FD as c_ushort,
                portev_pad: 0,
                portev_object: object as uintptr_t,
                portev_user: user as *mut c_void,
            };
            // SAFETY: fewer than `max` have been written, and the caller's list has room for those.
            unsafe { list.add(got).write(event) };
            got += 1;
        }
        if count == 0 {
            return fail(libc::ETIME);
        }
    }
    if late {
        return fail(libc::ETIME);
    }
    // SAFETY: the caller's word.
    unsafe { *nget = got as c_uint };
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    use std::os::unix::net::UnixStream;

    const NONE: port_event = port_event {
        portev_events: 0,
        portev_source: 0,
        portev_pad: 0,
        portev_object: 0,
        portev_user: ptr::null_mut(),
    };

    struct Port(OwnedFd);

    impl Port {
        fn new() -> Port {
            // SAFETY: port_create(3C) takes nothing and returns a descriptor that is ours.
            Port(unsafe { OwnedFd::from_raw_fd(port_create()) })
        }

        fn associate(&self, fd: &impl AsRawFd, user: usize) -> Result<(), c_int> {
            self.associate_for(libc::POLLIN, fd, user)
        }

        fn associate_for(&self, events: libc::c_short, fd: &impl AsRawFd, user: usize) -> Result<(), c_int> {
            let (object, events) = (fd.as_raw_fd() as uintptr_t, c_int::from(events));
            // SAFETY: the user's pointer is only handed back.
            let done = unsafe {
                port_associate(self.0.as_raw_fd(), PORT_SOURCE_FD, object, events, user as *mut c_void)
            };
            if done == -1 { Err(errno()) } else { Ok(()) }
        }

        fn dissociate(&self, fd: &impl AsRawFd) -> Result<(), c_int> {
            // SAFETY: numbers only.
            let done =
                unsafe { port_dissociate(self.0.as_raw_fd(), PORT_SOURCE_FD, fd.as_raw_fd() as uintptr_t) };
            if done == -1 { Err(errno()) } else { Ok(()) }
        }

        /// What the call returned, the count it left, and the list it was given.
        fn getn<const MAX: usize>(
            &self,
            wanted: c_uint,
            timeout: Option<Duration>,
        ) -> (Result<(), c_int>, c_uint, [port_event; MAX]) {
            let (mut count, mut list) = (wanted, [NONE; MAX]);
            let mut time = timeout.map(|timeout| timespec {
                tv_sec: timeout.as_secs() as _,
                tv_nsec: timeout.subsec_nanos().into(),
            });
            let time = time.as_mut().map_or(ptr::null_mut(), ptr::from_mut);
            // SAFETY: the list has room for MAX, and all of it outlives the call.
            let done = unsafe {
                port_getn(self.0.as_raw_fd(), list.as_mut_ptr(), MAX as c_uint, &raw mut count, time)
            };
            (if done == -1 { Err(errno()) } else { Ok(()) }, count, list)
        }

        /// The users of the events that are there now.
        fn users(&self) -> Vec<usize> {
            let (_, _, list) = self.getn::<8>(1, Some(Duration::ZERO));
            let there = list.iter().take_while(|event| event.portev_source != 0);
            there.map(|event| event.portev_user as usize).collect()
        }
    }

    fn readable() -> (UnixStream, UnixStream) {
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(b"x").unwrap();
        (a, b)
    }

    #[test]
    fn an_event_says_what_where_and_whose() {
        let (_a, b) = readable();
        let port = Port::new();
        port.associate(&b, 7).unwrap();
        let (done, count, list) = port.getn::<4>(1, None);
        assert_eq!((done, count), (Ok(()), 1));
        assert_eq!(list[0].portev_events, c_int::from(libc::POLLIN));
        assert_eq!(c_int::from(list[0].portev_source), PORT_SOURCE_FD);
        assert_eq!(list[0].portev_object, b.as_raw_fd() as uintptr_t);
        assert_eq!(list[0].portev_user as usize, 7);
        assert_eq!(list[1].portev_source, 0, "what is not an event is left alone");
    }

    #[test]
    fn an_association_ends_with_its_event() {
        let (_a, b) = readable();
        let port = Port::new();
        port.associate(&b, 1).unwrap();
        assert_eq!(port.users(), [1]);
        assert_eq!(port.users(), [], "still readable, but no longer associated");
        assert_eq!(port.dissociate(&b), Err(libc::ENOENT));
        port.associate(&b, 2).unwrap();
        assert_eq!(port.users(), [2], "what is ready when it is associated is reported at once");
    }

    #[test]
    fn to_associate_again_changes_the_user() {
        let (_a, b) = readable();
        let port = Port::new();
        port.associate(&b, 1).unwrap();
        port.associate(&b, 2).unwrap();
        assert_eq!(port.users(), [2]);
    }

    #[test]
    fn to_associate_again_changes_the_events_and_forgets_those_of_before() {
        let (_a, mut b) = readable();
        let port = Port::new();
        port.associate(&b, 1).unwrap();
        b.set_nonblocking(true).unwrap();
        while b.write(&[0]).is_ok() {}
        port.associate_for(libc::POLLOUT, &b, 2).unwrap();
        assert_eq!(port.users(), [], "readable, but there is no room");
        port.associate_for(libc::POLLOUT | libc::POLLIN, &b, 3).unwrap();
        assert_eq!(port.users(), [3]);
        port.associate_for(libc::POLLOUT, &b, 4).unwrap();
        assert_eq!(port.dissociate(&b), Ok(()), "associated again after an event");
    }

    #[test]
    fn both_events_at_once_are_one() {
        let (_a, b) = readable();
        let port = Port::new();
        port.associate_for(libc::POLLIN | libc::POLLOUT, &b, 1).unwrap();
        let (_, count, list) = port.getn::<4>(1, None);
        assert_eq!(count, 1);
        assert_eq!(list[0].portev_events, c_int::from(libc::POLLIN | libc::POLLOUT));
    }

    #[test]
    fn what_was_dissociated_is_silent_and_unknown() {
        let (_a, b) = readable();
        let port = Port::new();
        assert_eq!(port.dissociate(&b), Err(libc::ENOENT));
        port.associate(&b, 1).unwrap();
        port.dissociate(&b).unwrap();
        assert_eq!(port.users(), []);
        assert_eq!(port.dissociate(&b), Err(libc::ENOENT));
    }

    #[test]
    fn the_end_of_the_stream_is_an_event_that_nobody_asked_for() {
        let (a, b) = UnixStream::pair().unwrap();
        let port = Port::new();
        port.associate(&b, 1).unwrap();
        drop(a);
        let (_, _, list) = port.getn::<1>(1, None);
        assert_ne!(list[0].portev_events & c_int::from(libc::POLLHUP), 0);
    }

    #[test]
    fn a_closed_descriptor_ends_its_association_and_leaves_nothing_to_the_next() {
        // A number that no other test, in another thread, is given in the meantime: those get the
        // lowest that is free.
        let high = |fd: UnixStream| {
            // SAFETY: F_DUPFD takes a number, and what it returns is ours.
            unsafe { OwnedFd::from_raw_fd(libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD, 200)) }
        };
        let (_a, b) = readable();
        let b = high(b);
        let port = Port::new();
        let number = b.as_raw_fd();
        port.associate(&b, 1).unwrap();
        drop(b);
        assert_eq!(port.users(), []);
        assert_eq!(port.associate(&number, 1), Err(libc::EBADF));
        let (_c, d) = readable();
        let d = high(d);
        assert_eq!(d.as_raw_fd(), number);
        port.associate(&d, 2).unwrap();
        assert_eq!(port.users(), [2]);
    }

    #[test]
    fn time_runs_out_with_an_error_and_the_count_as_it_was() {
        let port = Port::new();
        let (done, count, list) = port.getn::<4>(3, Some(Duration::from_millis(1)));
        assert_eq!((done, count), (Err(libc::ETIME), 3));
        assert_eq!(list[0].portev_source, 0);
    }

    #[test]
    fn fewer_than_wanted_are_in_the_list_when_time_runs_out() {
        let (_a, b) = readable();
        let port = Port::new();
        port.associate(&b, 9).unwrap();
        let (done, count, list) = port.getn::<4>(2, Some(Duration::from_millis(1)));
        assert_eq!((done, count), (Err(libc::ETIME), 2));
        assert_eq!(list[0].portev_user as usize, 9);
        assert_eq!(list[1].portev_source, 0);
    }

    #[test]
    fn what_does_not_fit_comes_with_the_next_call() {
        let pairs: Vec<_> = (0..5).map(|_| readable()).collect();
        let port = Port::new();
        for (n, (_, b)) in pairs.iter().enumerate() {
            port.associate(b, n + 1).unwrap();
        }
        let mut seen = Vec::new();
        for _ in 0..3 {
            let (_, _, list) = port.getn::<2>(1, Some(Duration::ZERO));
            seen.extend(list.iter().filter(|e| e.portev_source != 0).map(|e| e.portev_user as usize));
        }
        seen.sort();
        assert_eq!(seen, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_wait_ends_when_something_happens() {
        let (mut a, mut b) = UnixStream::pair().unwrap();
        let port = Port::new();
        port.associate(&b, 1).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| a.write_all(b"x").unwrap());
            assert_eq!(port.getn::<1>(1, None).1, 1);
        });
        b.read_exact(&mut [0]).unwrap();
    }

    #[test]
    fn nonsense_is_refused() {
        let port = Port::new();
        assert_eq!(port.getn::<1>(2, Some(Duration::ZERO)).0, Err(libc::EINVAL));
        // SAFETY: numbers, and a pointer that is only handed back.
        let other = unsafe { port_associate(port.0.as_raw_fd(), 3, 0, 0, ptr::null_mut()) };
        assert_eq!((other, errno()), (-1, libc::EINVAL));
    }
}
