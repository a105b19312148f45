// SPDX-License-Identifier: BSD-3-Clause

//! What the kernel knows, all in one place, and how its time passes.

use super::agenda::{self, Action, Agenda};
use super::back::Desk;
use super::backend::Poller;
use super::content::{Reading, Store};
use super::descriptors::{File, Table};
use super::evidence::{Call, Evidence};
use super::faults::{Dice, Flavour};
use super::slab::{Key, Slab};
use super::tcp::{Connection, Packet};
use super::unix::{Channel, Gate};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::RawFd;
use std::time::Duration;

/// What the kernel itself puts on the agenda.
#[derive(Debug)]
pub(super) enum Event {
    /// Something arrives at one end of a connection.
    Packet(Key, Packet),
    /// A slow close of this process comes to its end.
    Closed(usize, RawFd),
}

/// See the module's head.
pub(super) struct State {
    /// The true time: what the agenda goes by, whatever the clock says.
    pub now: Duration,
    /// What the clock shows beyond it, in nanoseconds.
    pub shift: i64,
    /// When the clock was set on or back since [`Kernel::set_clock`](super::Kernel::set_clock), and by how
    /// much.
    pub steps: Vec<(Duration, i64)>,
    /// When it must be over.
    pub end: Duration,
    /// How many waits there were without any time passing.
    pub waits: u32,
    pub agenda: Agenda,
    /// What happens when nothing else ever would.
    pub at_rest: VecDeque<Action>,
    pub dice: Dice,
    pub flavour: Flavour,
    pub evidence: Evidence,
    pub processes: Vec<Table>,
    pub files: Slab<File>,
    pub pollers: Slab<Poller>,
    pub connections: Slab<Connection>,
    /// What arrives without taking any time, and has not been looked at yet.
    pub wire: VecDeque<(Key, Packet)>,
    pub links: Slab<Channel>,
    pub doors: Slab<Gate>,
    pub desks: Slab<Desk>,
    /// Which of them has that name.
    pub ways: BTreeMap<String, Key>,
    pub stores: Slab<Store>,
    pub files_made: u64,
    pub readings: Slab<Reading>,
    /// Descriptors in flight.
    pub in_flight: usize,
}

impl State {
    pub fn new(seed: u64, flavour: Flavour) -> Self {
        State {
            now: Duration::ZERO,
            shift: 0,
            steps: Vec::new(),
            end: Duration::MAX,
            waits: 0,
            agenda: Agenda::default(),
            at_rest: VecDeque::new(),
            dice: Dice::new(seed),
            flavour,
            evidence: Evidence::default(),
            processes: Vec::new(),
            files: Slab::new(),
            pollers: Slab::new(),
            connections: Slab::new(),
            wire: VecDeque::new(),
            links: Slab::new(),
            doors: Slab::new(),
            desks: Slab::new(),
            ways: BTreeMap::new(),
            stores: Slab::new(),
            files_made: 0,
            readings: Slab::new(),
            in_flight: 0,
        }
    }

    /// Time goes on to `time`, if that is not past.
    pub fn pass(&mut self, time: Duration) {
        if time > self.now {
            self.now = time;
            self.waits = 0;
        }
    }

    pub fn note(&mut self, call: Call, about: impl Into<i64>, result: impl Into<i64>) {
        self.evidence.note(self.now, call, about.into(), result.into());
    }

    /// Notes what somebody outside the process has done.
    pub fn note_outside(&mut self, about: Key, result: u64) {
        self.evidence.note(self.now, Call::Outside, about.number() as i64, result as i64);
    }

    /// Puts down what no contract allows.
    pub fn violation(&mut self, what: std::fmt::Arguments<'_>) {
        let line = format!("{:.6}: {what}", self.now.as_secs_f64());
        self.evidence.violations.push(line);
    }

    pub fn later(&mut self, delay: Duration, event: Event) {
        self.agenda.put(self.now.saturating_add(delay), Action::Event(event));
    }

    /// Has `call` happen once nobody is in the midst of something.
    pub fn soon(&mut self, call: agenda::Call) {
        self.agenda.put(self.now, Action::Call(call));
    }

    /// Drops it then.
    pub fn drop_soon(&mut self, call: Option<agenda::Call>) {
        if let Some(call) = call {
            self.agenda.put(self.now, Action::Drop(call));
        }
    }

    pub fn happen(&mut self, event: Event) {
        match event {
            Event::Packet(connection, packet) => {
                self.wire.push_back((connection, packet));
                self.settle();
            }
            Event::Closed(process, number) => self.closed_slowly(process, number),
        }
    }
}
