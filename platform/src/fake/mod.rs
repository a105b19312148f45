// SPDX-License-Identifier: BSD-3-Clause

//! A fake world: one kernel in simulated time, and what the daemon's process is given by it.
//!
//! It keeps to every contract in this crate, the unpleasant parts first, and runs as fast as it can:
//! whoever waits is at once where the next thing happens. The same seed and the same calls give the
//! same run. It must not know what the daemon is for; what happens outside it (senders, clients,
//! signals) is put on the kernel's agenda by the test.
//!
//! A [`Kernel`] makes [`Process`]es, which have what a daemon starts with, and everybody else:
//! [`Client`]s with a [`Held`] end for the server, files and other things nobody can linger on, and
//! [`Caller`]s, who send them, and [`WayBack`]s, where servers are brought connections back. [`Kernel::at`] says when what happens. Then the daemon runs, and what it
//! did stands in [`Client::facts`], [`Kernel::violations`], [`Kernel::count`] and the log, whose hash
//! tells two runs apart.
//!
//! ```ignore
//! let kernel = Kernel::new(seed, Flavour::linux());
//! let process = kernel.process(4096);
//! let (door, address) = process.door(128);
//! let (signals, raise) = process.signals();
//! let daemon = /* of process.backend(), process.clock(), process.slow_close(), signals and the doors */;
//! kernel.set_faults(Faults::some());
//! kernel.at(SECOND, move |kernel| {
//!     let sender = kernel.connect(address, who).unwrap();
//!     let (client, held) = kernel.connection(&Setup::default());
//!     let _ = sender.send(b"L", &[&held]); // and closes its copy, and its link
//!     client.at_end(move |kernel| kernel.after(SECOND, move |_| client.close()));
//! });
//! kernel.at(SECOND * 900, |kernel| kernel.set_faults(Faults::default()));
//! kernel.at(SECOND * 1000, move |_| raise.stop.raise());
//! daemon.run();
//! assert_eq!(kernel.violations(), [""; 0]);
//! assert_eq!(process.descriptors(), []);
//! ```
//!
//! What it has not: what bytes of a connection say, but for what a client [says](Client::say), a second process that waits in a backend at the same
//! time, the end of orphaned connections in FIN_WAIT_2 or with a reader that has stalled, and memory.

mod agenda;
mod back;
mod backend;
mod clock;
mod content;
mod descriptors;
mod evidence;
mod facts;
mod faults;
mod slab;
mod socket;
mod state;
mod tcp;
pub mod unix;

pub use back::{WayBack, Ways};
pub use backend::Backend;
pub use clock::{Clock, Raiser, Signal, SlowClose};
pub use content::{Content, Medium, Piece, Reader};
pub use descriptors::{By, Held, Idle, Received};
pub use evidence::{Call, Line};
pub use facts::{Facts, Setup};
pub use faults::{Credentials, Faults, Flavour, Reports, Truncation};
pub use socket::{Client, Socket};
pub use unix::{Address, Caller, Door, Link};

use crate::peer::Peer;
use crate::signals::Signals;
use crate::world::World;
use agenda::Action;
use descriptors::{Fd, Kind, Table};
use state::State;
use std::cell::{RefCell, RefMut};
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::rc::{Rc, Weak};
use std::time::Duration;

/// The world of the fake kernel.
pub struct Fake;

impl World for Fake {
    type Back = Ways;
    type Backend = Backend;
    type Received = Received;
    type Socket = Socket;
    type Content = Content;
    type Reader = Reader;
    type Link = Link;
    type Door = Door;
    type Signal = Signal;
    type Clock = Clock;
    type SlowClose = SlowClose;
}

/// See the module's head. Clones are the same kernel. An action on its agenda gets it as an argument;
/// one that holds a clone instead keeps it from being dropped.
#[derive(Clone)]
pub struct Kernel(Rc<RefCell<State>>);

/// As [`Kernel`], for those who must not keep it.
#[derive(Clone)]
struct Handle(Weak<RefCell<State>>);

impl Handle {
    fn try_get(&self) -> Option<Kernel> {
        self.0.upgrade().map(Kernel)
    }

    fn get(&self) -> Kernel {
        self.try_get().expect("whoever acts in a world has it")
    }
}

impl Kernel {
    /// A kernel of that kind, at time 0, in which chance goes by `seed` and nothing fails.
    pub fn new(seed: u64, flavour: Flavour) -> Self {
        Kernel(Rc::new(RefCell::new(State::new(seed, flavour))))
    }

    fn state(&self) -> RefMut<'_, State> {
        self.0.borrow_mut()
    }

    fn handle(&self) -> Handle {
        Handle(Rc::downgrade(&self.0))
    }

    fn is_alive(&self, process: usize) -> bool {
        self.0.borrow().processes[process].alive
    }

    /// A call of the process: it takes its time, and what is due by then happens before.
    fn enter(&self) -> RefMut<'_, State> {
        let state = self.state();
        let time = state.now + state.flavour.cost;
        if state.agenda.next().is_some_and(|next| next <= time) {
            drop(state);
            self.run_until(time);
            return self.state();
        }
        let mut state = state;
        state.pass(time);
        state
    }

    /// The simulation's time, which no fault touches.
    pub fn now(&self) -> Duration {
        self.0.borrow().now
    }

    /// What the clock is to show now.
    pub fn set_clock(&self, time: Duration) {
        let mut state = self.state();
        let nanos = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
        state.shift = nanos(time) - nanos(state.now);
    }

    /// When faults have set the clock on (more than 0) or back, and by how many nanoseconds.
    pub fn clock_steps(&self) -> Vec<(Duration, i64)> {
        self.state().steps.clone()
    }

    /// Sees to it that a daemon that still waits after `time` panics.
    pub fn must_end_by(&self, time: Duration) {
        self.state().end = time;
    }

    /// Has `action` happen at `when`; at once, with the next call, if that is past.
    pub fn at(&self, when: Duration, action: impl FnOnce(&Kernel) + 'static) {
        let mut state = self.state();
        let when = when.max(state.now);
        state.agenda.put(when, Action::Call(Box::new(action)));
    }

    /// Has `action` happen when `delay` has passed.
    pub fn after(&self, delay: Duration, action: impl FnOnce(&Kernel) + 'static) {
        let when = self.now().saturating_add(delay);
        self.at(when, action);
    }

    /// Has `action` happen when the daemon waits for ever and nothing else is left to happen. Of several
    /// the first that was put down comes first, and the next when it is so again.
    pub fn at_rest(&self, action: impl FnOnce(&Kernel) + 'static) {
        self.state().at_rest.push_back(Action::Call(Box::new(action)));
    }

    /// Lets time pass up to `time`, and everything happen that is due by then.
    pub fn run_until(&self, time: Duration) {
        loop {
            let action = {
                let mut state = self.state();
                match state.agenda.take(time) {
                    Some((when, action)) => {
                        state.pass(when);
                        action
                    }
                    None => {
                        state.pass(time);
                        return;
                    }
                }
            };
            self.perform(action);
        }
    }

    /// Lets everything happen that is on the agenda, however long that takes.
    pub fn run_out(&self) {
        while let Some(time) = self.next() {
            self.run_until(time);
        }
    }

    /// When the next thing is going to happen.
    pub fn next(&self) -> Option<Duration> {
        self.0.borrow().agenda.next()
    }

    fn perform(&self, action: Action) {
        match action {
            Action::Call(call) => call(self),
            Action::Drop(call) => drop(call),
            Action::Event(event) => self.state().happen(event),
        }
    }

    /// Nothing would ever happen again.
    fn rest(&self) {
        let action = self.state().at_rest.pop_front();
        match action {
            Some(action) => self.perform(action),
            None => {
                let state = self.0.borrow();
                panic!(
                    "the daemon waits for ever: {:.6} s, nothing is left to happen; ready but not armed: {:?}",
                    state.now.as_secs_f64(),
                    state.unheard(),
                );
            }
        }
    }

    /// A process that may have `limit` descriptors, the three standard ones among them.
    pub fn process(&self, limit: usize) -> Process {
        let number = {
            let mut state = self.state();
            state.processes.push(Table::new(limit));
            state.processes.len() - 1
        };
        let process = Process { kernel: self.clone(), number };
        for _ in 0..3 {
            process.open(Kind::Other { name: "standard stream", closing: None }).into_number();
        }
        process
    }

    /// A connection: its client, and its end in the server that is to hand it over.
    pub fn connection(&self, setup: &Setup) -> (Client, Held) {
        let mut state = self.state();
        let connection = state.connections.insert(tcp::Connection::new(setup));
        let file = state.open(Kind::Tcp(connection));
        if let Some(it) = state.connections.get_mut(connection) {
            it.file = Some(file);
            it.to_client.written = setup.response;
            state.send(connection, tcp::Way::ToClient, false);
            state.settle();
        }
        (Client::new(self.handle(), connection), Held::new(self.handle(), file))
    }

    /// A TCP socket that has no connection.
    pub fn idle(&self, idle: Idle) -> Held {
        self.held(Kind::Idle(idle))
    }

    /// Anything else whose close never waits: a UDP socket, a pipe. `name` is what reports call it.
    pub fn other(&self, name: &'static str) -> Held {
        self.held(Kind::Other { name, closing: None })
    }

    /// A file, a terminal or a Unix socket, whose last close takes that long.
    pub fn slow(&self, name: &'static str, closing: Duration) -> Held {
        self.held(Kind::Other { name, closing: Some(closing) })
    }

    fn held(&self, kind: Kind) -> Held {
        let file = self.state().open(kind);
        Held::new(self.handle(), file)
    }

    /// Connects to a door, as `who`.
    ///
    /// # Errors
    /// `WouldBlock` when too many wait there; `ConnectionRefused` when it is shut or closed.
    pub fn connect(&self, door: Address, who: Peer) -> io::Result<Caller> {
        Caller::connect(self, door.0, who)
    }

    /// Has a server listen for those who bring connections back, at the way back of that name. So many may wait
    /// there, and one more.
    pub fn way_back(&self, name: &str, backlog: usize) -> WayBack {
        WayBack::open(self, name, backlog)
    }

    /// Changes what fails, and how often.
    pub fn set_faults(&self, faults: Faults) {
        self.state().dice.faults = faults;
    }

    /// Has nothing fail while `act` is done.
    pub fn spare<T>(&self, act: impl FnOnce() -> T) -> T {
        let faults = std::mem::take(&mut self.state().dice.faults);
        let done = act();
        self.state().dice.faults = faults;
        done
    }

    /// Changes what kind of kernel it is, of what can change while it runs: how many tokens a `wait`
    /// returns, what a call takes, what fits into its queues.
    pub fn adapt(&self, change: impl FnOnce(&mut Flavour)) {
        change(&mut self.state().flavour);
    }

    /// What was done that no contract allows, with the times.
    pub fn violations(&self) -> Vec<String> {
        self.0.borrow().evidence.violations.clone()
    }

    /// How often the daemon has called that.
    pub fn count(&self, call: Call) -> u64 {
        self.0.borrow().evidence.count(call)
    }

    /// How many descriptors that were sent the kernel could not deliver.
    pub fn truncated(&self) -> u64 {
        self.0.borrow().evidence.truncated
    }

    /// When the last `wait` returned.
    pub fn woke(&self) -> Duration {
        self.0.borrow().evidence.woke
    }

    /// How many it could.
    pub fn delivered(&self) -> u64 {
        self.0.borrow().evidence.delivered
    }

    /// How many of these were files whose content can be sent.
    pub fn delivered_files(&self) -> u64 {
        self.0.borrow().evidence.delivered_files
    }

    /// The [addresses](Client::address) of the clients with whose connections the daemon has parted since
    /// it was asked last.
    pub fn take_parted(&self) -> Vec<SocketAddr> {
        std::mem::take(&mut self.state().evidence.parted)
    }

    /// How many descriptors are in flight.
    pub fn in_flight(&self) -> usize {
        self.0.borrow().in_flight
    }

    /// What tells this run from another: every call, when it was, and what came of it.
    pub fn hash(&self) -> u64 {
        self.0.borrow().evidence.hash()
    }

    /// Keeps the log from here on, for [`log`](Self::log).
    pub fn keep_log(&self) {
        self.state().evidence.keep_lines();
    }

    /// Every call, if it was kept.
    pub fn log(&self) -> Vec<Line> {
        self.0.borrow().evidence.lines().to_vec()
    }

    /// A number below `most` from the seed, for what the test leaves to chance.
    pub fn chance(&self, most: u64) -> u64 {
        self.state().dice.rng.u64(..most)
    }
}

/// A process of a [`Kernel`], and what it has at its start. Clones are the same process.
#[derive(Clone)]
pub struct Process {
    kernel: Kernel,
    number: usize,
}

impl Process {
    /// # Panics
    /// At its descriptor limit: that is then too low for any daemon.
    fn open(&self, kind: Kind) -> Fd {
        let mut state = self.kernel.state();
        let file = state.open(kind);
        let number = state.install(self.number, file).expect("the limit leaves room for what it starts with");
        drop(state);
        Fd::new(self.kernel.clone(), self.number, number)
    }

    /// A backend, which has a descriptor of its own.
    pub fn backend(&self) -> Backend {
        Backend::new(self.open(Kind::Other { name: "backend", closing: None }))
    }

    /// The clock.
    pub fn clock(&self) -> Clock {
        Clock { kernel: self.kernel.clone(), start: Duration::ZERO }
    }

    /// A clock of its own, which is at an hour now: whatever sets it back, it does not stand still at 0.
    pub fn own_clock(&self) -> Clock {
        let start = self.kernel.state().clock().saturating_sub(Duration::from_secs(3_600));
        Clock { kernel: self.kernel.clone(), start }
    }

    /// What closes slowly.
    pub fn slow_close(&self) -> SlowClose {
        SlowClose { kernel: self.kernel.clone(), process: self.number }
    }

    /// What calls those who take connections back.
    pub fn back(&self) -> Ways {
        Ways::of(self.clone())
    }

    /// What reads files that may take long.
    pub fn reader(&self) -> Reader {
        let mut state = self.kernel.state();
        let (bell, reading) = state.open_reading();
        let number = state.install(self.number, bell).expect("the limit leaves room for what it starts with");
        drop(state);
        Reader::new(Fd::new(self.kernel.clone(), self.number, number), reading)
    }

    /// The signals, and what raises each.
    pub fn signals(&self) -> (Signals<Signal>, Signals<Raiser>) {
        let [stop, report, reload] = [(); 3].map(|()| self.signal());
        (
            Signals { stop: stop.0, report: report.0, reload: reload.0 },
            Signals { stop: stop.1, report: report.1, reload: reload.1 },
        )
    }

    fn signal(&self) -> (Signal, Raiser) {
        let fd = self.open(Kind::Signal(0));
        let file = self.kernel.state().file(self.number, fd.number(), Call::Take);
        (Signal(fd), Raiser { kernel: self.kernel.handle(), file })
    }

    /// A door at which as many may wait, and one more, and where it is.
    ///
    /// # Panics
    /// At the descriptor limit.
    pub fn door(&self, backlog: usize) -> (Door, Address) {
        let mut state = self.kernel.state();
        let (file, address) = state.open_door(backlog);
        let number = state.install(self.number, file).expect("the limit leaves room for what it starts with");
        drop(state);
        (Door(Fd::new(self.kernel.clone(), self.number, number)), address)
    }

    /// `held`, as the process's own from its start.
    ///
    /// # Panics
    /// At the descriptor limit.
    pub fn inherit(&self, held: &Held) -> Received {
        let mut state = self.kernel.state();
        if let Some(file) = state.files.get_mut(held.file) {
            file.references += 1;
        }
        let number = state.install(self.number, held.file).expect("the limit leaves room for it");
        drop(state);
        Received(Fd::new(self.kernel.clone(), self.number, number))
    }

    /// Changes the descriptor limit, setrlimit(2): what is open stays open.
    pub fn set_limit(&self, limit: usize) {
        self.kernel.state().processes[self.number].limit = limit;
    }

    /// How many descriptors it has open, with the three standard ones.
    pub fn open_descriptors(&self) -> usize {
        self.kernel.0.borrow().processes[self.number].open
    }

    /// How many of them are being closed slowly.
    pub fn closing(&self) -> usize {
        self.kernel.0.borrow().processes[self.number].closing
    }

    /// What it has open but for the standard streams: numbers, and what they are.
    pub fn descriptors(&self) -> Vec<(RawFd, &'static str)> {
        self.kernel.0.borrow().numbers(self.number)
    }

    /// How many descriptors its backends have registered.
    pub fn registrations(&self) -> usize {
        let state = self.kernel.0.borrow();
        let of_it = state.pollers.values().filter(|poller| poller.process == self.number);
        of_it.map(|poller| poller.watches.len()).sum()
    }

    /// Ends it, as SIGKILL does: everything is closed, and what the daemon still has of it is dead.
    pub fn kill(&self) {
        self.kernel.state().exit(self.number);
    }
}

#[cfg(test)]
mod stage;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod walk;
