// SPDX-License-Identifier: BSD-3-Clause

//! What is going to happen, in the order of time and, at one time, in the order in which it was put
//! down. Must not know what any of it is.

use super::Kernel;
use super::state::Event;
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::time::Duration;

/// What the simulation has the kernel do.
pub(super) type Call = Box<dyn FnOnce(&Kernel)>;

/// What happens.
pub(super) enum Action {
    /// What the simulation wants.
    Call(Call),
    /// What was to happen and cannot any more is dropped where nobody is in the midst of something.
    Drop(Call),
    /// What the kernel itself has to do.
    Event(Event),
}

struct Entry {
    when: Duration,
    number: u64,
    action: Action,
}

impl Ord for Entry {
    /// The earliest is the greatest, as the heap wants it.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.when, other.number).cmp(&(self.when, self.number))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

/// See the module's head.
#[derive(Default)]
pub(super) struct Agenda {
    entries: BinaryHeap<Entry>,
    count: u64,
}

impl Agenda {
    pub fn put(&mut self, when: Duration, action: Action) {
        self.count += 1;
        self.entries.push(Entry { when, number: self.count, action });
    }

    /// When the next thing happens.
    pub fn next(&self) -> Option<Duration> {
        self.entries.peek().map(|entry| entry.when)
    }

    /// The next thing, if it happens at `time` or before, and when.
    pub fn take(&mut self, time: Duration) -> Option<(Duration, Action)> {
        if self.next()? > time {
            return None;
        }
        self.entries.pop().map(|entry| (entry.when, entry.action))
    }
}
