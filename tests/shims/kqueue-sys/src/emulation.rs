// SPDX-License-Identifier: BSD-3-Clause

//! The emulation over epoll(7).
//!
//! A *knote*, as the kernels call it, is one filter on one descriptor in one kqueue. epoll knows
//! only descriptors, so the two knotes that one may have share a registration, and this module
//! keeps them apart. It is otherwise epoll that decides what is ready.
//!
//! What differs from a real kqueue, because Linux does not tell:
//! - `fflags` never holds the socket's error: SO_ERROR cannot be read without taking it away from
//!   the caller's next read.
//! - `data` is 1 for a listener and for `EVFILT_WRITE`: somebody waits, there is room.
//! - A knote dies with the last copy of its descriptor, not already with the number. Until then a
//!   number that is used again has new knotes, but the old registration, which can no longer be
//!   named, goes on waking the waiter, for nothing.
//! - `EVFILT_WRITE` has no `EV_EOF` after the caller's own shutdown(SHUT_WR); a socket that was
//!   never connected has one; so has one with an asynchronous error, such as UDP knows.

use crate::EventFilter::{EVFILT_READ, EVFILT_WRITE};
use crate::{EventFlag as Flag, EventListSize, FilterFlag};
use libc::{EBADF, EEXIST, EINVAL, ENOENT, EPERM, EPIPE, c_int, epoll_event, timespec};
use libc::{EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD};
use libc::{EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLONESHOT, EPOLLOUT, EPOLLRDHUP};
use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{io, process, ptr, slice};

/// A change or an event; [`kevent`] is the function's name in here.
type Event = crate::kevent;

/// The most descriptors that one call reports. kqueue(2) promises no least number.
const BATCH: usize = 256;

/// What a filter asks epoll for, and which of the answers mean `EV_EOF`.
struct Filter {
    name: crate::EventFilter,
    interest: c_int,
    eof: c_int,
}

/// The filters; elsewhere a filter is its place in here.
const FILTERS: [Filter; 2] = [
    Filter { name: EVFILT_READ, interest: EPOLLIN | EPOLLRDHUP, eof: EPOLLRDHUP | EPOLLHUP },
    Filter { name: EVFILT_WRITE, interest: EPOLLOUT, eof: EPOLLHUP | EPOLLERR },
];

#[derive(Clone, Copy)]
struct Knote {
    flags: Flag,
    udata: usize,
    enabled: bool,
}

/// A descriptor's registration with epoll, and the knotes that share it.
#[derive(Clone, Copy, Default)]
struct Watch {
    knotes: [Option<Knote>; 2],
    /// Which of the two comes first when both are ready and there is room for one.
    turn: usize,
    /// Tells this registration from an older one under the same number.
    generation: u32,
}

impl Watch {
    fn interest(&self) -> c_int {
        let mut interest = 0;
        for (knote, filter) in self.knotes.iter().zip(&FILTERS) {
            if knote.is_some_and(|knote| knote.enabled) {
                interest |= filter.interest;
            }
        }
        // Errors and hang-ups are reported, whether asked for or not: if not, then only once.
        if interest == 0 { EPOLLONESHOT } else { interest }
    }
}

struct Queue {
    /// The process that opened it: a fork(2) inherits no kqueue.
    owner: u32,
    watches: BTreeMap<c_int, Watch>,
    generations: u32,
}

impl Queue {
    /// One element of the change list.
    fn apply(&mut self, kq: c_int, change: &Event) -> Result<(), c_int> {
        let filter = FILTERS.iter().position(|filter| filter.name == change.filter).ok_or(EINVAL)?;
        let fd = c_int::try_from(change.ident).map_err(|_| EBADF)?;
        // What only the system sets does not matter in a change.
        let flags = Flag::from_bits_retain(change.flags.bits() & !Flag::EV_SYSFLAGS.bits());
        let offered = Flag::EV_ADD
            | Flag::EV_DELETE
            | Flag::EV_ENABLE
            | Flag::EV_DISABLE
            | Flag::EV_ONESHOT
            | Flag::EV_RECEIPT;
        let adds = flags.contains(Flag::EV_ADD);
        if flags.bits() & !offered.bits() != 0 || (adds && !change.fflags.is_empty()) {
            return Err(EINVAL);
        }

        let known = self.watches.get(&fd).copied();
        let mut watch = known.unwrap_or_else(|| {
            self.generations = self.generations.wrapping_add(1);
            Watch { generation: self.generations, ..Watch::default() }
        });
        let knote = &mut watch.knotes[filter];
        if knote.is_none() && !adds {
            return Err(if is_open(fd) { ENOENT } else { EBADF });
        }
        // As on FreeBSD, OpenBSD, DragonFly and macOS; NetBSD says EBADF.
        if knote.is_none() && change.filter == EVFILT_WRITE && is_broken_pipe(fd) {
            return Err(EPIPE);
        }
        let enabled =
            flags.intersects(Flag::EV_ADD | Flag::EV_ENABLE) || knote.is_some_and(|old| old.enabled);
        *knote = (!flags.contains(Flag::EV_DELETE)).then_some(Knote {
            flags: knote.filter(|_| !adds).map_or(flags, |old| old.flags),
            udata: change.udata.expose_provenance(),
            enabled: enabled && !flags.contains(Flag::EV_DISABLE),
        });
        match self.store(kq, fd, watch) {
            // The descriptor was closed and the number is used again: what was known died with it.
            Err(ENOENT) if known.is_some() => self.apply(kq, change),
            outcome => outcome,
        }
    }

    /// Brings epoll's registration of `fd`, and what is known of it, to what `watch` says.
    fn store(&mut self, kq: c_int, fd: c_int, watch: Watch) -> Result<(), c_int> {
        let op = match (watch.knotes, self.watches.contains_key(&fd)) {
            ([None, None], _) => EPOLL_CTL_DEL,
            (_, true) => EPOLL_CTL_MOD,
            (_, false) => EPOLL_CTL_ADD,
        };
        let outcome = match control(kq, op, fd, watch) {
            // A copy of a descriptor that was closed while registered has come back to its number.
            Err(EEXIST) => control(kq, EPOLL_CTL_MOD, fd, watch),
            outcome => outcome,
        };
        match outcome {
            Ok(()) if op != EPOLL_CTL_DEL => drop(self.watches.insert(fd, watch)),
            Ok(()) | Err(ENOENT | EBADF) => drop(self.watches.remove(&fd)),
            Err(_) => {}
        }
        outcome
    }

    /// Fills `list` with what epoll says is `ready` (no longer than `list`), and counts.
    fn report(&mut self, kq: c_int, ready: &[epoll_event], list: &mut [MaybeUninit<Event>]) -> usize {
        let mut count = 0;
        for (n, event) in ready.iter().enumerate() {
            let (fd, generation, seen) =
                (event.u64 as c_int, (event.u64 >> 32) as u32, event.events as c_int);
            let Some(mut watch) =
                self.watches.get(&fd).filter(|watch| watch.generation == generation).copied()
            else {
                continue;
            };
            // epoll has put all of `ready` to the end of its line: each must have a place here, or
            // it might miss its turn for ever. A second knote has what is left over.
            let room = list.len() - (ready.len() - 1 - n);
            let mut spent = false;
            for filter in [watch.turn, 1 - watch.turn] {
                let Filter { name, interest, eof } = FILTERS[filter];
                let Some(knote) = watch.knotes[filter] else { continue };
                if count == room || !knote.enabled || seen & (interest | EPOLLERR | EPOLLHUP) == 0 {
                    continue;
                }
                // Some systems return the flags that a knote was added with, others do not.
                let flags = if seen & eof != 0 { knote.flags | Flag::EV_EOF } else { knote.flags };
                list[count].write(Event {
                    data: if name == EVFILT_READ { readable(fd) } else { 1 },
                    udata: ptr::with_exposed_provenance_mut(knote.udata),
                    ..Event::new(fd as usize, name, flags, FilterFlag::empty())
                });
                count += 1;
                watch.turn = 1 - filter;
                if knote.flags.contains(Flag::EV_ONESHOT) {
                    watch.knotes[filter] = None;
                    spent = true;
                }
            }
            if spent {
                // If it fails, the descriptor has been closed meanwhile, and the knotes are gone.
                let _ = self.store(kq, fd, watch);
            } else {
                self.watches.insert(fd, watch);
            }
        }
        count
    }
}

/// What is known of each kqueue, by its descriptor. What a closed one leaves here is dropped when
/// its number becomes a kqueue again.
static QUEUES: Mutex<BTreeMap<c_int, Queue>> = Mutex::new(BTreeMap::new());

fn queues() -> MutexGuard<'static, BTreeMap<c_int, Queue>> {
    QUEUES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens a queue of events; -1 and errno if it cannot.
///
/// # Safety
/// None is needed; it is `unsafe` because the one that it stands in for is.
pub unsafe extern "C" fn kqueue() -> c_int {
    // SAFETY: epoll_create1(2) takes no pointer.
    let kq = unsafe { libc::epoll_create1(0) };
    if kq != -1 {
        let queue = Queue { owner: process::id(), watches: BTreeMap::new(), generations: 0 };
        queues().insert(kq, queue);
    }
    kq
}

/// Applies the changes, then waits for events: see kqueue(2).
///
/// # Safety
/// `changelist` must hold `nchanges` elements and `eventlist` have room for `nevents`; they may be
/// the same list, and nobody else may use it meanwhile. `timeout` is NULL or points to a timespec.
pub unsafe extern "C" fn kevent(
    kq: c_int,
    changelist: *const Event,
    nchanges: EventListSize,
    eventlist: *mut Event,
    nevents: EventListSize,
    timeout: *const timespec,
) -> c_int {
    let (Ok(nchanges), Ok(room)) = (usize::try_from(nchanges), usize::try_from(nevents)) else {
        return fail(EINVAL);
    };
    // SAFETY: the caller's promise, passed on.
    let outcome = match unsafe { change(kq, changelist, nchanges, eventlist, room) } {
        // No waiting "when nevents is zero", nor after an answer to a change.
        Ok(None) if room > 0 => {
            // SAFETY: the caller's promise; the changes have been read, nothing else names the list.
            let list = unsafe { slice::from_raw_parts_mut(eventlist.cast::<MaybeUninit<Event>>(), room) };
            // SAFETY: "if timeout is a non-NULL pointer", it is a timespec; so the caller promises.
            deadline(unsafe { timeout.as_ref() }).and_then(|deadline| wait(kq, list, deadline))
        }
        answers => answers.map(Option::unwrap_or_default),
    };
    // A list of more than c_int::MAX elements could not have been asked for.
    outcome.map_or_else(fail, |count| count as c_int)
}

/// Applies all changes. If some were answered the call is over, and that is how many.
///
/// # Safety
/// As for [`kevent`].
unsafe fn change(
    kq: c_int,
    changelist: *const Event,
    nchanges: usize,
    eventlist: *mut Event,
    room: usize,
) -> Result<Option<usize>, c_int> {
    let mut queues = queues();
    let usable = |queue: &&mut Queue| queue.owner == process::id() && is_open(kq);
    let queue = queues.get_mut(&kq).filter(usable).ok_or(EBADF)?;
    let mut answers = 0;
    for n in 0..nchanges {
        // SAFETY: "nchanges gives the size of changelist".
        let mut change = unsafe { changelist.add(n).read() };
        let outcome = queue.apply(kq, &change);
        if outcome.is_ok() && !change.flags.contains(Flag::EV_RECEIPT) {
            continue;
        }
        if answers == room {
            // As on FreeBSD: an answer without a place ends the call, be it good or bad.
            return outcome.map(|()| Some(0));
        }
        change.flags = Flag::EV_ERROR;
        change.data = outcome.err().unwrap_or(0).into();
        // SAFETY: "nevents determines the size of eventlist". "The same array may be used": as
        // answers <= n, what is overwritten there has been read.
        unsafe { eventlist.add(answers).write(change) };
        answers += 1;
    }
    Ok((answers > 0).then_some(answers))
}

/// Waits until something is ready or the deadline has passed; `None` is never.
fn wait(kq: c_int, list: &mut [MaybeUninit<Event>], deadline: Option<Instant>) -> Result<usize, c_int> {
    let mut ready = [epoll_event { events: 0, u64: 0 }; BATCH];
    let most = list.len().min(BATCH) as c_int;
    loop {
        // SAFETY: `ready` has room for `most` events.
        let n = unsafe { libc::epoll_wait(kq, ready.as_mut_ptr(), most, millis(deadline)) };
        let n = usize::try_from(n).map_err(|_| errno())?;
        let count = queues().get_mut(&kq).ok_or(EBADF)?.report(kq, &ready[..n], list);
        // What was ready may have been nobody's; then there is still time to wait.
        if count > 0 || deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Ok(count);
        }
    }
}

fn deadline(timeout: Option<&timespec>) -> Result<Option<Instant>, c_int> {
    let Some(timeout) = timeout else { return Ok(None) };
    let seconds = u64::try_from(timeout.tv_sec).map_err(|_| EINVAL)?;
    let nanos = u32::try_from(timeout.tv_nsec).ok().filter(|nanos| *nanos < 1_000_000_000);
    // What the clock cannot hold is for ever.
    Ok(Instant::now().checked_add(Duration::new(seconds, nanos.ok_or(EINVAL)?)))
}

/// What is left until the deadline, in epoll's milliseconds: rounded up, so as never to spin.
fn millis(deadline: Option<Instant>) -> c_int {
    deadline.map_or(-1, |deadline| {
        let left = deadline.saturating_duration_since(Instant::now());
        left.as_nanos().div_ceil(1_000_000).try_into().unwrap_or(c_int::MAX)
    })
}

fn control(kq: c_int, op: c_int, fd: c_int, watch: Watch) -> Result<(), c_int> {
    let token = (u64::from(watch.generation) << 32) | fd as u64;
    let mut event = epoll_event { events: watch.interest() as u32, u64: token };
    // SAFETY: epoll_ctl(2) reads one event, which outlives the call.
    match unsafe { libc::epoll_ctl(kq, op, fd, &mut event) } {
        0 => Ok(()),
        // epoll's word for what cannot be waited for, such as a file on a disk.
        _ => Err(if errno() == EPERM { EINVAL } else { errno() }),
    }
}

/// How many bytes can be read. A listener refuses to say; there is one connection at least.
fn readable(fd: c_int) -> i64 {
    let mut bytes: c_int = 0;
    // SAFETY: FIONREAD writes one int, which outlives the call.
    match unsafe { libc::ioctl(fd, libc::FIONREAD, &mut bytes) } {
        -1 => 1,
        _ => bytes.into(),
    }
}

fn is_open(fd: c_int) -> bool {
    // SAFETY: F_GETFD takes no pointer.
    unsafe { libc::fcntl(fd, libc::F_GETFD) != -1 }
}

/// Whether it is the writing end of a pipe that nobody reads from.
fn is_broken_pipe(fd: c_int) -> bool {
    // SAFETY: stat is numbers, for which zeroes are a value.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    let mut poll = libc::pollfd { fd, events: 0, revents: 0 };
    // SAFETY: fstat(2) writes one stat, poll(2) reads and writes one pollfd; both outlive the calls.
    let known = unsafe { libc::fstat(fd, &mut stat) == 0 && libc::poll(&mut poll, 1, 0) == 1 };
    known && stat.st_mode & libc::S_IFMT == libc::S_IFIFO && poll.revents & libc::POLLERR != 0
}

fn errno() -> c_int {
    io::Error::last_os_error().raw_os_error().unwrap_or(EINVAL)
}

/// Fails as a system call does.
fn fail(errno: c_int) -> c_int {
    // SAFETY: errno(3): the calling thread's own, always there.
    unsafe { *libc::__errno_location() = errno };
    -1
}
