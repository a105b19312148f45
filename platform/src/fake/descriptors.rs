// SPDX-License-Identifier: BSD-3-Clause

//! Open file descriptions, who has a reference to each, and the table of a process's descriptors:
//! dup(2), close(2). Must not know what a description's kind does beyond its end.

use super::content::Reading;
use super::evidence::Call;
use super::slab::Key;
use super::state::{Event, State};
use super::tcp::address;
use super::{Handle, Kernel};
use crate::backend::{Descriptor, Interest};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

/// What is open.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// A TCP socket that is, or was, connected.
    Tcp(Key),
    /// One that never was.
    Idle(Idle),
    /// The daemon's end of a connection over a Unix socket.
    Link(Key),
    /// The other end of it.
    Caller(Key),
    Door(Key),
    /// How many have arrived.
    Signal(usize),
    /// A file whose content can be sent.
    Store(Key),
    /// What wakes whoever waits for a reader.
    Bell(Key),
    /// Anything else; `closing` is what the last close takes, of a kind whose close may wait.
    Other {
        name: &'static str,
        closing: Option<Duration>,
    },
}

/// A TCP socket that has no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// Fresh from socket(2).
    Unconnected,
    /// connect(2) is in progress, and nobody answers.
    Connecting,
    /// After listen(2).
    Listening,
}

impl Kind {
    const fn name(&self) -> &'static str {
        match self {
            Kind::Tcp(_) => "connection",
            Kind::Idle(_) => "TCP socket without a connection",
            Kind::Link(_) => "link",
            Kind::Caller(_) => "Unix socket",
            Kind::Door(_) => "door",
            Kind::Signal(_) => "signals",
            Kind::Store(_) => "file",
            Kind::Bell(_) => "bell",
            Kind::Other { name, .. } => name,
        }
    }
}

/// An open file description.
pub(super) struct File {
    pub references: usize,
    /// How many of these are numbers of some process.
    numbers: usize,
    pub kind: Kind,
    /// Where it is registered: the poller, and its watch there.
    pub watches: Vec<(Key, Key)>,
}

/// Who closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The daemon, by a close or a drop.
    Daemon,
    /// Its [`SlowClose`](crate::closing::SlowClose), in its own time.
    SlowClose,
    /// The end of its process.
    Exit,
    /// The kernel: it was queued where nobody will ever take it, or there was no number for it.
    Kernel,
    /// Whoever else had it.
    Outside,
}

/// The descriptors of one process.
pub(super) struct Table {
    files: Vec<Option<Key>>,
    free: BinaryHeap<Reverse<RawFd>>,
    pub open: usize,
    pub limit: usize,
    pub alive: bool,
    /// Its slow closes: how many, and when the last of them is over.
    pub closing: usize,
    pub closing_until: Duration,
}

impl Table {
    pub const fn new(limit: usize) -> Self {
        Table {
            files: Vec::new(),
            free: BinaryHeap::new(),
            open: 0,
            limit,
            alive: true,
            closing: 0,
            closing_until: Duration::ZERO,
        }
    }

    /// The lowest number that is free, open(2).
    fn install(&mut self, file: Key) -> Option<RawFd> {
        if self.open >= self.limit {
            return None;
        }
        self.open += 1;
        let number = self.free.pop().map_or(self.files.len() as RawFd, |Reverse(number)| number);
        match self.files.get_mut(number as usize) {
            Some(place) => *place = Some(file),
            None => self.files.push(Some(file)),
        }
        Some(number)
    }

    fn take(&mut self, number: RawFd) -> Option<Key> {
        let file = self.files.get_mut(number as usize)?.take()?;
        self.open -= 1;
        self.free.push(Reverse(number));
        Some(file)
    }

    pub fn get(&self, number: RawFd) -> Option<Key> {
        *self.files.get(usize::try_from(number).ok()?)?
    }

    fn numbers(&self) -> impl Iterator<Item = (RawFd, Key)> {
        self.files.iter().enumerate().filter_map(|(number, file)| Some((number as RawFd, (*file)?)))
    }
}

impl State {
    /// Opens something; the caller has the one reference.
    pub fn open(&mut self, kind: Kind) -> Key {
        self.files.insert(File { references: 1, numbers: 0, kind, watches: Vec::new() })
    }

    pub fn kind(&self, file: Key) -> Kind {
        self.files.get(file).expect("somebody has a reference to it").kind
    }

    /// Gives `file` a number in the process; the reference goes along, where there is one.
    ///
    /// # Errors
    /// EMFILE; the reference is still the caller's.
    pub fn install(&mut self, process: usize, file: Key) -> io::Result<RawFd> {
        let number = self.processes[process].install(file);
        if let Some(file) = self.files.get_mut(file).filter(|_| number.is_some()) {
            file.numbers += 1;
        }
        number.ok_or_else(|| io::Error::from_raw_os_error(libc::EMFILE))
    }

    /// What has that number in the process. Who asks for one that is closed has a bug that a real
    /// kernel would let pass, or take for somebody else.
    pub fn file(&self, process: usize, number: RawFd, call: Call) -> Key {
        let file = self.processes[process].get(number);
        file.unwrap_or_else(|| panic!("{call:?} of descriptor {number}, which is not open"))
    }

    /// close(2)
    pub fn close(&mut self, process: usize, number: RawFd, by: By) {
        self.note(Call::Close, number, by as i64);
        let Some(file) = self.processes[process].take(number) else {
            panic!("descriptor {number} is closed twice");
        };
        if by != By::Exit {
            self.check_removed(file, process, number);
        }
        if by == By::Daemon {
            self.check_quick(file, number);
        }
        let now = self.now;
        let is_last = self.files.get_mut(file).is_some_and(|file| {
            file.numbers -= 1;
            file.numbers == 0
        });
        if let Kind::Tcp(connection) = self.kind(file) {
            if let Some(it) = self.connections.get_mut(connection) {
                // Else another one may have taken it over; or this one wanted to, and it is not its own.
                let parts = by != By::Exit || is_last && it.facts.parted.is_none();
                if !parts {
                    return self.release(file, by);
                }
                it.facts.parted = Some(now);
                self.evidence.parted.push(address(connection));
            }
        }
        self.release(file, by);
    }

    fn check_removed(&mut self, file: Key, process: usize, number: RawFd) {
        let Some(it) = self.files.get(file) else { return };
        let registered = it.watches.iter().find_map(|&(poller, watch)| {
            let poller = self.pollers.get(poller).filter(|poller| poller.process == process)?;
            poller.watches.get(watch).filter(|watch| watch.number == number).map(|watch| watch.token)
        });
        if let Some(token) = registered {
            let name = it.kind.name();
            self.violation(format_args!("descriptor {number} ({name}) closed while registered as {token:?}"));
        }
    }

    /// A close that may wait is the business of SlowClose. It does wait, if it is the last.
    fn check_quick(&mut self, file: Key, number: RawFd) {
        let Some(it) = self.files.get(file) else { return };
        let (kind, last) = (it.kind, it.references == 1);
        let wait = match kind {
            Kind::Caller(_) => Some(Duration::ZERO),
            Kind::Link(link) => self.slow_in_queue(link),
            _ => self.closing(kind),
        };
        if let Some(time) = wait {
            self.violation(format_args!(
                "descriptor {number} ({}) closed by a call that may wait",
                kind.name()
            ));
            if last {
                self.now += time;
            }
        }
    }

    /// Whether the last close of `file` would take time, and how much.
    pub fn slowness(&self, file: Key) -> Option<Duration> {
        match self.files.get(file)? {
            File { references: 1, kind, .. } => self.closing(*kind),
            _ => None,
        }
    }

    /// What the last close of such a one takes, if it may wait.
    fn closing(&self, kind: Kind) -> Option<Duration> {
        match kind {
            Kind::Other { closing, .. } => closing,
            Kind::Store(store) => self.stores.get(store).and_then(|store| store.medium.closing),
            _ => None,
        }
    }

    /// Gives a reference up.
    pub fn release(&mut self, file: Key, by: By) {
        let Some(it) = self.files.get_mut(file) else { return };
        it.references -= 1;
        if it.references > 0 {
            return;
        }
        let Some(it) = self.files.remove(file) else { return };
        for (poller, watch) in it.watches {
            if let Some(poller) = self.pollers.get_mut(poller) {
                poller.watches.remove(watch);
            }
        }
        match it.kind {
            Kind::Tcp(connection) => self.end_connection(connection, by),
            Kind::Link(link) => self.end_link(link),
            Kind::Caller(link) => self.end_caller(link),
            Kind::Door(door) => self.end_door(door),
            Kind::Store(store) => drop(self.stores.remove(store)),
            Kind::Bell(reading) => drop(self.readings.remove(reading)),
            Kind::Idle(_) | Kind::Signal(_) | Kind::Other { .. } => {}
        }
    }

    /// Closes, in the process's own thread for that, after what it closes already.
    pub fn close_slowly(&mut self, process: usize, number: RawFd) {
        let file = self.file(process, number, Call::SlowClose);
        self.note(Call::SlowClose, number, 0);
        let slow = match self.kind(file) {
            Kind::Link(link) => self.slow_in_queue(link),
            kind => self.closing(kind),
        };
        let time = slow.unwrap_or_else(|| self.dice.time(Duration::from_millis(10)));
        let table = &mut self.processes[process];
        table.closing += 1;
        table.closing_until = table.closing_until.max(self.now) + time;
        let delay = table.closing_until - self.now;
        self.later(delay, Event::Closed(process, number));
    }

    pub fn closed_slowly(&mut self, process: usize, number: RawFd) {
        if self.processes[process].alive {
            self.processes[process].closing -= 1;
            self.close(process, number, By::SlowClose);
        }
    }

    /// Ends the process, and closes whatever it has open.
    pub fn exit(&mut self, process: usize) {
        let numbers: Vec<_> = self.processes[process].numbers().map(|(number, _)| number).collect();
        let pollers = &mut self.pollers;
        pollers.retain(|poller| poller.process != process);
        for number in numbers {
            self.close(process, number, By::Exit);
        }
        self.processes[process].alive = false;
    }

    /// What the process has open, but for 0, 1 and 2.
    pub fn numbers(&self, process: usize) -> Vec<(RawFd, &'static str)> {
        let numbers = self.processes[process].numbers();
        numbers
            .filter(|&(number, _)| number > 2)
            .map(|(number, file)| (number, self.kind(file).name()))
            .collect()
    }

    /// Whether it is ready for `interest`. An error and a far end that is gone are, whatever it is.
    pub fn is_ready(&self, file: Key, interest: Interest) -> bool {
        let reads = matches!(interest, Interest::Read | Interest::Both);
        let writes = matches!(interest, Interest::Write | Interest::Both);
        match self.kind(file) {
            Kind::Tcp(connection) => {
                let Some(it) = self.connections.get(connection) else { return false };
                it.has_failed() || (reads && it.is_readable()) || (writes && it.is_writable())
            }
            // poll(2) says POLLHUP of a fresh one.
            Kind::Idle(idle) => idle == Idle::Unconnected,
            Kind::Link(link) => {
                let Some(it) = self.links.get(link) else { return false };
                it.has_failed() || (reads && it.is_readable()) || (writes && it.is_writable())
            }
            Kind::Door(door) => self.doors.get(door).is_some_and(|door| reads && door.is_ready()),
            Kind::Signal(count) => reads && count > 0,
            Kind::Bell(reading) => reads && self.readings.get(reading).is_some_and(Reading::is_readable),
            Kind::Store(_) => true, // a file always is
            Kind::Caller(_) | Kind::Other { .. } => false,
        }
    }

    /// Tells everybody with whom `file` is registered that something about it has changed.
    pub fn wake(&mut self, file: Key) {
        let Some(it) = self.files.get(file) else { return };
        for &(poller, watch) in &it.watches {
            if let Some(poller) = self.pollers.get_mut(poller) {
                poller.wake(watch);
            }
        }
    }
}

/// A descriptor of the process. Dropping closes it.
pub(super) struct Fd {
    pub kernel: Kernel,
    pub process: usize,
    number: RawFd,
}

impl Fd {
    /// What `number` of the process is to be closed by.
    pub const fn new(kernel: Kernel, process: usize, number: RawFd) -> Self {
        Fd { kernel, process, number }
    }

    pub fn number(&self) -> RawFd {
        self.number
    }

    /// Closes it where nobody is kept waiting by that.
    pub fn close_elsewhere(self) {
        if self.kernel.is_alive(self.process) {
            let (kernel, process) = (self.kernel.clone(), self.process);
            kernel.state().close(process, self.into_number(), By::SlowClose);
        }
    }

    /// Its number, and nobody closes it.
    pub fn into_number(mut self) -> RawFd {
        std::mem::replace(&mut self.number, -1)
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // A simulation that has failed already is not to fail again.
        if self.number < 0 || std::thread::panicking() || !self.kernel.is_alive(self.process) {
            return;
        }
        self.kernel.enter().close(self.process, self.number, By::Daemon);
    }
}

/// A descriptor that was received. Dropping closes it, in whatever time that takes.
pub struct Received(pub(super) Fd);

impl Descriptor for Received {
    fn number(&self) -> RawFd {
        self.0.number()
    }
}

/// A descriptor in other hands than the daemon's, as it is sent along. A clone is a dup(2); dropping
/// closes.
pub struct Held {
    pub(super) kernel: Handle,
    pub(super) file: Key,
}

impl Held {
    /// Takes a reference over.
    pub(super) const fn new(kernel: Handle, file: Key) -> Self {
        Held { kernel, file }
    }

    /// How many there are of what this is: numbers in a process, in flight, or held as this one.
    pub fn references(&self) -> usize {
        self.kernel.get().state().files.get(self.file).map_or(0, |file| file.references)
    }
}

impl Clone for Held {
    fn clone(&self) -> Self {
        if let Some(file) = self.kernel.get().state().files.get_mut(self.file) {
            file.references += 1;
        }
        Held { kernel: self.kernel.clone(), file: self.file }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // With the kernel everything has gone.
        if let Some(kernel) = self.kernel.try_get().filter(|_| !std::thread::panicking()) {
            kernel.state().release(self.file, By::Outside);
            kernel.state().settle();
        }
    }
}
