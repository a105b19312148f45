// SPDX-License-Identifier: BSD-3-Clause

//! FreeBSD, NetBSD, OpenBSD, DragonFly and macOS: kqueue(2), level-triggered (no EV_CLEAR).
//!
//! What is new waits for the next `wait`, which hands it to the kernel in the call that waits: most
//! turns cost one system call, however many descriptors they added or changed. Removals go at once,
//! since the descriptor is closed right after, and its number may come back before then.

use super::registry::Registry;
use super::{Backend, Descriptor, Interest, Token};
use crate::check;
use kqueue_sys::{EventFilter, EventFlag, EventListSize, FilterFlag};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

/// How many changes one kevent(2) takes along, and how many events it may return: as many, so that
/// there is room for the errors of all of them.
const BATCH: usize = super::MOST_READY;

/// The change or event itself, a `struct kevent`.
type Kevent = kqueue_sys::kevent;

// What kqueue-sys says of the structure is what libc says.
#[cfg(not(target_os = "linux"))]
const _: () = assert!(size_of::<Kevent>() == size_of::<libc::kevent>());

/// The filters; elsewhere one is its place in here.
const FILTERS: [EventFilter; 2] = [EventFilter::EVFILT_READ, EventFilter::EVFILT_WRITE];

/// Where a filter of a descriptor stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not wanted, and the kernel does not know of it.
    Off,
    /// Wanted: its EV_ADD is in the list.
    Adding,
    /// The kernel knows.
    On,
    /// Not wanted any more: its EV_DELETE is in the list.
    Leaving,
    /// The kernel refused; the caller learns why when it calls `rearm`.
    Refused,
}

/// A registered descriptor.
#[derive(Clone, Copy)]
struct Watch {
    filters: [State; 2],
    /// One filter was reported by this wait: the other one tells nothing new.
    reported: bool,
}

// A connection's share of the memory, beside its row in the daemon's table.
const _: () = assert!(Registry::<Watch>::BYTES <= 12);

/// See the module's head.
pub struct Kqueue {
    kqueue: OwnedFd,
    watches: Registry<Watch>,
    /// What the kernel is told with the next wait, at most [`BATCH`].
    changes: Vec<Kevent>,
    /// Where it writes what happened.
    events: Vec<Kevent>,
}

// SAFETY: the user's pointers in the lists are all null. kqueue(2): any thread of a process may use
// its queues.
unsafe impl Send for Kqueue {}

cfg_if::cfg_if! {
    if #[cfg(target_os = "netbsd")] {
        /// kqueue-sys binds the name `kevent`, whose time is the 32-bit one of before NetBSD 6; libc
        /// binds today's, `__kevent50`. The structure is the same.
        unsafe fn kevent(
            kqueue: RawFd,
            changes: *const Kevent,
            change_count: EventListSize,
            events: *mut Kevent,
            event_count: EventListSize,
            timeout: *const libc::timespec,
        ) -> libc::c_int {
            // SAFETY: as the caller's.
            unsafe {
                libc::kevent(kqueue, changes.cast(), change_count, events.cast(), event_count, timeout)
            }
        }
    } else {
        use kqueue_sys::kevent;
    }
}

fn change(fd: RawFd, filter: usize, flags: EventFlag) -> Kevent {
    Kevent::new(fd as usize, FILTERS[filter], flags, FilterFlag::empty())
}

/// Which filter a change or an event is about. There are only those of our changes.
fn filter(event: &Kevent) -> usize {
    usize::from(event.filter != FILTERS[0])
}

impl Kqueue {
    /// Opens it; its descriptor is close-on-exec.
    ///
    /// # Errors
    /// What kqueue(2) says: a limit of descriptors or of memory.
    pub fn new() -> io::Result<Self> {
        // SAFETY: kqueue(2) takes nothing.
        let fd = check(unsafe { kqueue_sys::kqueue() })?;
        // SAFETY: kqueue(2) returned it a line above: it is open and nobody else has it.
        let kqueue = unsafe { OwnedFd::from_raw_fd(fd) };
        // Not inherited by a child of fork(2); after an exec without fork it would be.
        crate::set_cloexec(&kqueue)?;
        let list = || Vec::with_capacity(BATCH);
        Ok(Kqueue { kqueue, watches: Registry::new(), changes: list(), events: list() })
    }

    /// kevent(2): makes the `changes`, and writes what happened to the spare room of `events`.
    fn kevent(
        &self,
        changes: &[Kevent],
        events: &mut Vec<Kevent>,
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        let time = timeout.map(super::timespec);
        let room = events.spare_capacity_mut();
        // SAFETY: kqueue(2): kevent reads the changes and the time, writes at most as many events
        // as it is told there is room for, and keeps no pointer.
        let count = check(unsafe {
            kevent(
                self.kqueue.as_raw_fd(),
                changes.as_ptr(),
                changes.len() as EventListSize,
                room.as_mut_ptr().cast(),
                room.len() as EventListSize,
                time.as_ref().map_or(ptr::null(), ptr::from_ref),
            )
        })?;
        // SAFETY: kqueue(2): it returns the number of events placed in the list, which had that
        // much room. Their filters are those of our changes, so each is one of the enum's.
        unsafe { events.set_len(events.len() + count as usize) };
        Ok(())
    }

    /// Makes one change now.
    fn make(&self, change: Kevent) -> io::Result<()> {
        // With no room for events an error of the change is the call's own.
        self.kevent(&[change], &mut Vec::new(), Some(Duration::ZERO))
    }

    fn set(&mut self, fd: RawFd, of: usize, state: State) {
        if let Ok(watch) = self.watches.get(fd) {
            watch.filters[of] = state;
        }
    }

    /// Has a change made with the next wait.
    fn queue(&mut self, fd: RawFd, of: usize, flags: EventFlag, state: State) {
        self.changes.push(change(fd, of, flags));
        self.set(fd, of, state);
    }

    /// Takes a change back that was to be made with the next wait. Most likely it is a late one.
    fn withdraw(&mut self, fd: RawFd, of: usize) {
        let is_it = |change: &Kevent| change.ident == fd as usize && filter(change) == of;
        if let Some(place) = self.changes.iter().rposition(is_it) {
            self.changes.swap_remove(place);
        }
    }

    /// Has the kernel know of a filter now.
    fn arm(&mut self, fd: RawFd, of: usize) -> io::Result<()> {
        let made = self.make(change(fd, of, EventFlag::EV_ADD));
        self.set(fd, of, if made.is_ok() { State::On } else { State::Refused });
        made
    }

    /// Has the kernel forget a filter now.
    fn disarm(&mut self, fd: RawFd, of: usize) -> io::Result<()> {
        let state = self.watches.get(fd)?.filters[of];
        if matches!(state, State::Adding | State::Leaving) {
            self.withdraw(fd, of);
        }
        self.set(fd, of, State::Off);
        if matches!(state, State::On | State::Leaving) {
            return self.make(change(fd, of, EventFlag::EV_DELETE));
        }
        Ok(())
    }

    /// Has a filter wanted, or not, from the next wait on.
    fn want(&mut self, fd: RawFd, of: usize, wanted: bool) -> io::Result<()> {
        let room = self.changes.len() < BATCH;
        match (self.watches.get(fd)?.filters[of], wanted) {
            (State::Off | State::Refused, true) if room => {
                self.queue(fd, of, EventFlag::EV_ADD, State::Adding);
            }
            (State::Off | State::Refused, true) => return self.arm(fd, of),
            (State::Leaving, true) => {
                self.withdraw(fd, of);
                self.set(fd, of, State::On);
            }
            (State::On, false) if room => self.queue(fd, of, EventFlag::EV_DELETE, State::Leaving),
            (State::Adding | State::On | State::Refused, false) => return self.disarm(fd, of),
            (State::Adding | State::On, true) | (State::Off | State::Leaving, false) => {}
        }
        Ok(())
    }

    /// Does so with both filters, and with the second one too if it fails with the first.
    fn want_both(&mut self, fd: RawFd, interest: Interest) -> io::Result<()> {
        let read = self.want(fd, 0, interest.reads());
        read.and(self.want(fd, 1, interest.writes()))
    }

    /// One of the filters that are wanted was refused: the other one is no more to be reported than
    /// that, until both are armed.
    fn silence(&mut self, fd: RawFd) {
        for of in 0..FILTERS.len() {
            let state = self.watches.get(fd).map(|watch| watch.filters[of]);
            if matches!(state, Ok(State::Adding | State::On)) {
                // What was armed can be disarmed; and there is an error to return already.
                let _ = self.disarm(fd, of);
                self.set(fd, of, State::Refused);
            }
        }
    }

    fn forget(&mut self, fd: RawFd) -> io::Result<()> {
        let read = self.disarm(fd, 0);
        let write = self.disarm(fd, 1);
        self.watches.remove(fd)?;
        read.and(write)
    }
}

impl Backend for Kqueue {
    const NAME: &'static str = "kqueue";

    fn add(&mut self, fd: &impl Descriptor, token: Token, interest: Interest) -> io::Result<()> {
        let fd = fd.number();
        self.watches.add(fd, token, Watch { filters: [State::Off; 2], reported: false })?;
        let added = self.want_both(fd, interest);
        if added.is_err() {
            let _ = self.forget(fd); // says less than what made it necessary
        }
        added
    }

    fn change(&mut self, fd: &impl Descriptor, _: Token, interest: Interest) -> io::Result<()> {
        let fd = fd.number();
        let changed = self.want_both(fd, interest);
        if changed.is_err() {
            self.silence(fd);
        }
        changed
    }

    fn rearm(&mut self, fd: &impl Descriptor, _: Token, _: Interest) -> io::Result<()> {
        let fd = fd.number();
        for of in 0..FILTERS.len() {
            // What the kernel knows it goes on reporting.
            let refused = self.watches.get(fd).is_ok_and(|watch| watch.filters[of] == State::Refused);
            if refused {
                if let Err(error) = self.arm(fd, of) {
                    self.silence(fd);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn remove(&mut self, fd: &impl Descriptor) -> io::Result<()> {
        self.forget(fd.number())
    }

    fn wait(&mut self, ready: &mut Vec<Token>, timeout: Option<Duration>) -> io::Result<()> {
        ready.clear();
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        let waited = self.kevent(&self.changes, &mut events, timeout);
        self.events = events;
        match waited {
            Ok(()) => {}
            // kqueue(2): "all changes in the changelist have been applied".
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        while let Some(change) = self.changes.pop() {
            let added = change.flags.contains(EventFlag::EV_ADD);
            let state = if added { State::On } else { State::Off };
            self.set(change.ident as RawFd, filter(&change), state);
        }
        for event in &self.events {
            // An event has the number of its descriptor: what was removed has none any more.
            let Some((token, watch)) = self.watches.find(event.ident as RawFd) else { continue };
            let state = &mut watch.filters[filter(event)];
            if *state != State::On {
                continue; // the kernel had forgotten already what it was told to forget
            }
            if event.flags.contains(EventFlag::EV_ERROR) {
                // A change that failed (ENOMEM, or EPIPE where nothing can be written any more)
                // counts as ready: the caller reads or writes, and calls rearm if it wants more.
                *state = State::Refused;
            }
            if !std::mem::replace(&mut watch.reported, true) {
                ready.push(token);
            }
        }
        for event in &self.events {
            if let Ok(watch) = self.watches.get(event.ident as RawFd) {
                watch.reported = false;
            }
        }
        Ok(())
    }
}
