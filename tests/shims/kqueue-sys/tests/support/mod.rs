// SPDX-License-Identifier: BSD-3-Clause

//! A kqueue as the tests use it: through the two calls, nothing else.
#![allow(dead_code, unused_imports)] // each test program uses what it needs

use kqueue_sys::{EventFilter, EventFlag, FilterFlag, kevent};
use libc::{c_int, timespec};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::{Duration, Instant};

pub use EventFilter::{EVFILT_READ, EVFILT_WRITE};

pub const ADD: EventFlag = EventFlag::EV_ADD;
pub const DELETE: EventFlag = EventFlag::EV_DELETE;
pub const ENABLE: EventFlag = EventFlag::EV_ENABLE;
pub const DISABLE: EventFlag = EventFlag::EV_DISABLE;
pub const ONESHOT: EventFlag = EventFlag::EV_ONESHOT;
pub const RECEIPT: EventFlag = EventFlag::EV_RECEIPT;
pub const ERROR: EventFlag = EventFlag::EV_ERROR;
pub const EOF: EventFlag = EventFlag::EV_EOF;

pub const FOR_EVER: Option<timespec> = None;
pub const POLL: Option<timespec> = Some(timespec { tv_sec: 0, tv_nsec: 0 });
/// Long enough to see that nothing comes.
pub const SOON: Option<timespec> = Some(timespec { tv_sec: 0, tv_nsec: 20_000_000 });
/// Only a test that fails waits this long.
pub const PATIENCE: Option<timespec> = Some(timespec { tv_sec: 10, tv_nsec: 0 });

pub fn change(fd: &impl AsRawFd, filter: EventFilter, flags: EventFlag, udata: usize) -> kevent {
    kevent {
        udata: ptr::without_provenance_mut(udata),
        ..kevent::new(fd.as_raw_fd() as usize, filter, flags, FilterFlag::empty())
    }
}

/// What is compared of an event: whose it is, and for what.
pub fn key(event: &kevent) -> (usize, EventFilter) {
    (event.udata.addr(), event.filter)
}

pub fn keys(events: &[kevent]) -> Vec<(usize, EventFilter)> {
    let mut keys: Vec<_> = events.iter().map(key).collect();
    keys.sort();
    keys
}

/// The errno that an event brings, if it is the answer to a change.
pub fn answer(event: &kevent) -> Option<c_int> {
    event.flags.contains(ERROR).then(|| event.data.try_into().unwrap())
}

pub struct Kqueue(pub OwnedFd);

impl Kqueue {
    pub fn new() -> Self {
        // SAFETY: kqueue(2) takes nothing.
        let kq = unsafe { kqueue_sys::kqueue() };
        assert!(kq >= 0, "{}", io::Error::last_os_error());
        // SAFETY: "creates a new kernel event queue and returns a descriptor": it is ours.
        Kqueue(unsafe { OwnedFd::from_raw_fd(kq) })
    }

    /// One call, with room for so many events.
    pub fn call(
        &self,
        changes: &[kevent],
        room: usize,
        timeout: Option<timespec>,
    ) -> io::Result<Vec<kevent>> {
        let mut list = vec![MaybeUninit::uninit(); room];
        let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
        let n = i32::try_from(changes.len()).unwrap();
        // SAFETY: both lists are as long as is said, and the timeout is NULL or a timespec.
        let count = unsafe {
            kqueue_sys::kevent(
                self.0.as_raw_fd(),
                changes.as_ptr(),
                n,
                list.as_mut_ptr().cast(),
                i32::try_from(room).unwrap(),
                timeout,
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        assert!(count <= room, "{count} events where there was room for {room}");
        // SAFETY: kevent(2) "returns the number of events placed in the eventlist".
        Ok(list[..count].iter().map(|event| unsafe { event.assume_init() }).collect())
    }

    /// Changes, all of which must succeed.
    pub fn change(&self, changes: &[kevent]) {
        let answers = self.call(changes, 0, POLL).unwrap();
        assert!(answers.is_empty());
    }

    /// One change, which must fail: with which errno?
    pub fn refusal(&self, change: kevent) -> Option<c_int> {
        self.call(&[change], 0, POLL).expect_err("it was to be refused").raw_os_error()
    }

    pub fn events(&self, timeout: Option<timespec>) -> Vec<kevent> {
        self.call(&[], 64, timeout).unwrap()
    }

    /// Takes events until one will do.
    pub fn await_event(&self, mut will_do: impl FnMut(&kevent) -> bool) -> kevent {
        let before = Instant::now();
        while before.elapsed() < Duration::from_secs(10) {
            if let Some(event) = self.events(PATIENCE).into_iter().find(&mut will_do) {
                return event;
            }
        }
        panic!("the event did not come");
    }

    /// So many waits bring nothing, last as long as they should, and do so asleep.
    pub fn assert_idle(&self, waits: u32, timeout: Duration) {
        let (before, spent) = (Instant::now(), processor_time());
        for _ in 0..waits {
            let timeout = timespec { tv_sec: 0, tv_nsec: timeout.as_nanos().try_into().unwrap() };
            assert_eq!(keys(&self.events(Some(timeout))), []);
        }
        let (elapsed, spent) = (before.elapsed(), processor_time() - spent);
        assert!(elapsed >= timeout * waits, "back after {elapsed:?}");
        assert!(spent < elapsed / 3, "busy for {spent:?} of {elapsed:?}");
    }
}

/// What the calling thread has used of a processor.
fn processor_time() -> Duration {
    let mut time = timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime(2) writes one timespec.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) }, 0);
    Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
}
