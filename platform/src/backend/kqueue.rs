//! FreeBSD, NetBSD, OpenBSD, DragonFly and macOS: kqueue(2), level-triggered (no EV_CLEAR).
//!
//! New registrations wait for the next `wait`, which hands them to the kernel in the call that
//! waits: most turns cost one system call, however many descriptors they added. Removals go at once,
//! since the descriptor is closed right after, and its number may come back before then.

use super::registry::Registry;
use super::{Backend, Interest, Token};
use crate::check;
use kqueue_sys::{EventFilter, EventFlag, EventListSize, FilterFlag};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

/// How many changes one kevent(2) takes along, and how many events it may return: as many, so that
/// there is room for the errors of all of them.
const BATCH: usize = 256;

/// The change or event itself, a `struct kevent`.
type Kevent = kqueue_sys::kevent;

// What kqueue-sys says of the structure is what libc says.
#[cfg(not(target_os = "linux"))]
const _: () = assert!(size_of::<Kevent>() == size_of::<libc::kevent>());

/// A registered descriptor.
struct Watch {
    token: Token,
    interest: Interest,
    state: State,
}

enum State {
    /// Not told to the kernel yet: the change is at this place in the list.
    Pending(usize),
    /// The kernel knows.
    Armed,
    /// The kernel refused; the caller learns why when it calls `rearm`.
    Refused,
}

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

fn change(fd: RawFd, interest: Interest, flags: EventFlag) -> Kevent {
    let filter = match interest {
        Interest::Read => EventFilter::EVFILT_READ,
        Interest::Write => EventFilter::EVFILT_WRITE,
    };
    Kevent::new(fd as usize, filter, flags, FilterFlag::empty())
}

impl Kqueue {
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

    fn set(&mut self, fd: RawFd, state: State) {
        if let Some(watch) = self.watches.get_mut(fd) {
            watch.state = state;
        }
    }
}

impl Backend for Kqueue {
    const NAME: &'static str = "kqueue";

    fn new() -> io::Result<Self> {
        // SAFETY: kqueue(2) takes nothing.
        let fd = check(unsafe { kqueue_sys::kqueue() })?;
        // SAFETY: kqueue(2) returned it a line above: it is open and nobody else has it.
        let kqueue = unsafe { OwnedFd::from_raw_fd(fd) };
        // Not inherited by a child of fork(2); after an exec without fork it would be.
        crate::set_cloexec(&kqueue)?;
        let list = || Vec::with_capacity(BATCH);
        Ok(Kqueue { kqueue, watches: Registry::new(), changes: list(), events: list() })
    }

    fn add(&mut self, fd: BorrowedFd<'_>, token: Token, interest: Interest) -> io::Result<()> {
        let state = State::Pending(self.changes.len());
        self.watches.add(fd, Watch { token, interest, state })?;
        let change = change(fd.as_raw_fd(), interest, EventFlag::EV_ADD);
        if self.changes.len() < BATCH {
            self.changes.push(change);
            return Ok(());
        }
        if let Err(error) = self.make(change) {
            self.watches.remove(fd)?;
            return Err(error);
        }
        self.set(fd.as_raw_fd(), State::Armed);
        Ok(())
    }

    fn rearm(&mut self, fd: BorrowedFd<'_>, _: Token, interest: Interest) -> io::Result<()> {
        let number = fd.as_raw_fd();
        // What the kernel knows it goes on reporting.
        if self.watches.get_mut(number).is_some_and(|watch| matches!(watch.state, State::Refused)) {
            self.make(change(number, interest, EventFlag::EV_ADD))?;
            self.set(number, State::Armed);
        }
        Ok(())
    }

    fn remove(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let Watch { interest, state, .. } = self.watches.remove(fd)?;
        match state {
            State::Armed => self.make(change(fd.as_raw_fd(), interest, EventFlag::EV_DELETE)),
            State::Refused => Ok(()),
            State::Pending(place) => {
                self.changes.swap_remove(place);
                if let Some(moved) = self.changes.get(place) {
                    self.set(moved.ident as RawFd, State::Pending(place));
                }
                Ok(())
            }
        }
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
            self.set(change.ident as RawFd, State::Armed);
        }
        for event in &self.events {
            // An event has the number of its descriptor: what was removed has none any more.
            let Some(watch) = self.watches.get_mut(event.ident as RawFd) else { continue };
            if event.flags.contains(EventFlag::EV_ERROR) {
                // A change that failed (ENOMEM, or EPIPE where nothing can be written any more)
                // counts as ready: the caller reads or writes, and calls rearm if it wants more.
                watch.state = State::Refused;
            }
            ready.push(watch.token);
        }
        Ok(())
    }
}
