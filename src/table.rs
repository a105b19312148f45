//! The lingering connections: a slab of small entries, and queues ordered by deadline.
//!
//! Adding, touching and expiring cost the same whatever the number of connections. There is one
//! queue for each deadline of [`Linger::deadlines`]; a connection stands in every queue whose
//! deadline applies to it. Must not know of backends, counters or where a connection came from.

use crate::linger::{Linger, Time};
use slotmap::{Key, SlotMap};
use std::net::TcpStream;

slotmap::new_key_type! {
    /// Names one entry for good: a later entry in the same place has another key.
    pub struct Entry;
}

/// An entry's neighbours in one queue; null at the ends, and where it is not in the queue.
#[derive(Clone, Copy, Default)]
struct Links {
    before: Entry,
    after: Entry,
}

struct Connection {
    socket: TcpStream,
    linger: Linger,
    links: [Links; Linger::DEADLINES],
}

/// First and last of one queue.
#[derive(Clone, Copy, Default)]
struct Queue {
    first: Entry,
    last: Entry,
}

/// See the module's head.
#[derive(Default)]
pub struct Table {
    slab: SlotMap<Entry, Connection>,
    queues: [Queue; Linger::DEADLINES],
    /// How many have their response under way.
    under_way: usize,
}

impl Table {
    /// How many connections linger.
    pub fn len(&self) -> usize {
        self.slab.len()
    }

    /// Whether nobody lingers.
    pub fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    /// Adds a connection and names it.
    pub fn insert(&mut self, socket: TcpStream, linger: Linger) -> Entry {
        self.under_way += usize::from(linger.is_under_way());
        let entry = self.slab.insert(Connection { socket, linger, links: Default::default() });
        for queue in 0..Linger::DEADLINES {
            self.link(queue, entry);
        }
        entry
    }

    /// The socket of `entry`, or `None` if that connection has gone.
    pub fn socket(&self, entry: Entry) -> Option<&TcpStream> {
        self.slab.get(entry).map(|connection| &connection.socket)
    }

    /// Lets `change` work on `entry`, and puts it where its deadlines now belong. `None` if that
    /// connection has gone.
    pub fn update<R>(
        &mut self,
        entry: Entry,
        change: impl FnOnce(&TcpStream, &mut Linger) -> R,
    ) -> Option<R> {
        let connection = self.slab.get_mut(entry)?;
        let before = connection.linger.deadlines();
        self.under_way -= usize::from(connection.linger.is_under_way());
        let result = change(&connection.socket, &mut connection.linger);
        self.under_way += usize::from(connection.linger.is_under_way());
        let after = connection.linger.deadlines();
        for queue in 0..Linger::DEADLINES {
            if before[queue] != after[queue] {
                self.unlink(queue, entry);
                self.link(queue, entry);
            }
        }
        Some(result)
    }

    /// Takes `entry` out, or returns `None` if that connection has gone.
    pub fn remove(&mut self, entry: Entry) -> Option<(TcpStream, Linger)> {
        if !self.slab.contains_key(entry) {
            return None;
        }
        for queue in 0..Linger::DEADLINES {
            self.unlink(queue, entry);
        }
        let connection = self.slab.remove(entry)?;
        self.under_way -= usize::from(connection.linger.is_under_way());
        Some((connection.socket, connection.linger))
    }

    /// The connection whose next deadline is the nearest, and that deadline.
    pub fn nearest(&self) -> Option<(Entry, Time)> {
        self.firsts()
            .map(|(queue, first, linger)| (first, linger.deadlines()[queue]))
            .min_by_key(|&(_, time)| time)
    }

    /// The connection that has had the most of its linger: of those at the head of a queue, the
    /// one that ends first. It commonly has its response, and loses nothing.
    ///
    /// But readers that stall, who end last, must not have the table for themselves: where most
    /// connections are known to have their response under way, it is the one that was handed over
    /// first.
    pub fn oldest(&self) -> Option<Entry> {
        let first = self.queues[Linger::LIMIT].first; // everybody is in that queue
        if self.under_way > self.slab.len() / 2 && self.slab.contains_key(first) {
            return Some(first);
        }
        self.firsts().min_by_key(|(_, _, linger)| linger.end()).map(|(_, first, _)| first)
    }

    fn firsts(&self) -> impl Iterator<Item = (usize, Entry, &Linger)> {
        self.queues
            .iter()
            .enumerate()
            .filter_map(|(n, queue)| Some((n, queue.first, &self.slab.get(queue.first)?.linger)))
    }

    fn deadline(&self, queue: usize, entry: Entry) -> Time {
        self.slab[entry].linger.deadlines()[queue]
    }

    /// Puts `entry` into `queue` where its deadline belongs. Deadlines are given out in the order
    /// of time, so that this is the queue's end; the walk only keeps the order right when a clock
    /// or a rule is odd.
    fn link(&mut self, queue: usize, entry: Entry) {
        let deadline = self.deadline(queue, entry);
        if deadline == Time::NEVER {
            return;
        }
        let mut before = self.queues[queue].last;
        while !before.is_null() && self.deadline(queue, before) > deadline {
            before = self.slab[before].links[queue].before;
        }
        let after = match self.slab.get(before) {
            Some(connection) => connection.links[queue].after,
            None => self.queues[queue].first,
        };
        self.slab[entry].links[queue] = Links { before, after };
        self.join(queue, before, entry);
        self.join(queue, entry, after);
    }

    fn unlink(&mut self, queue: usize, entry: Entry) {
        let Links { before, after } = self.slab[entry].links[queue];
        if before.is_null() && self.queues[queue].first != entry {
            return; // it is not in this queue
        }
        self.slab[entry].links[queue] = Links::default();
        self.join(queue, before, after);
    }

    /// Makes two entries neighbours; null stands for the queue's end on that side.
    fn join(&mut self, queue: usize, before: Entry, after: Entry) {
        match self.slab.get_mut(before) {
            Some(connection) => connection.links[queue].after = after,
            None => self.queues[queue].first = after,
        }
        match self.slab.get_mut(after) {
            Some(connection) => connection.links[queue].before = before,
            None => self.queues[queue].last = before,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linger::{Event, Rules};
    use std::net::TcpListener;

    const RULES: Rules = Rules {
        idle: std::time::Duration::from_millis(5_000),
        max: std::time::Duration::from_millis(30_000),
        limit: std::time::Duration::from_millis(300_000),
    };

    fn socket() -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        TcpStream::connect(listener.local_addr().unwrap()).unwrap()
    }

    fn at(ms: u64) -> Time {
        Time::from_millis(ms)
    }

    /// Every queue, from both ends: linked both ways, in order, and with just those that belong.
    fn check(table: &Table) {
        let under_way = table.slab.values().filter(|connection| connection.linger.is_under_way()).count();
        assert_eq!(table.under_way, under_way);
        for queue in 0..Linger::DEADLINES {
            let mut seen = Vec::new();
            let mut before = Entry::null();
            let mut entry = table.queues[queue].first;
            while let Some(connection) = table.slab.get(entry) {
                assert_eq!(connection.links[queue].before, before);
                seen.push(table.deadline(queue, entry));
                before = entry;
                entry = connection.links[queue].after;
            }
            assert_eq!(table.queues[queue].last, before);
            assert!(seen.is_sorted(), "queue {queue}: {seen:?}");
            let belong =
                table.slab.keys().filter(|&entry| table.deadline(queue, entry) != Time::NEVER).count();
            assert_eq!(seen.len(), belong);
        }
    }

    #[test]
    fn the_nearest_deadline_is_found_whatever_was_touched() {
        let mut table = Table::default();
        let entries: Vec<_> = (0..4)
            .map(|n| {
                let mut linger = Linger::new(at(n * 100), &RULES);
                linger.on(Event::Acknowledged(Some(true)), at(n * 100), &RULES);
                table.insert(socket(), linger)
            })
            .collect();
        check(&table);
        assert_eq!(table.nearest(), Some((entries[0], at(5_000))));
        table.update(entries[0], |_, linger| linger.on(Event::Received, at(400), &RULES));
        check(&table);
        assert_eq!(table.nearest(), Some((entries[1], at(5_100))));
        table.remove(entries[1]).unwrap();
        check(&table);
        assert_eq!(table.nearest(), Some((entries[2], at(5_200))));
    }

    #[test]
    fn what_is_in_flight_is_not_the_oldest_while_another_is_acknowledged() {
        let mut table = Table::default();
        let in_flight = table.insert(socket(), Linger::new(at(0), &RULES));
        table.update(in_flight, |_, linger| linger.on(Event::Acknowledged(Some(false)), at(0), &RULES));
        let silent = table.insert(socket(), Linger::new(at(1_000), &RULES));
        table.update(silent, |_, linger| linger.on(Event::Acknowledged(Some(true)), at(1_000), &RULES));
        check(&table);
        assert_eq!(table.nearest(), Some((in_flight, at(1_250))));
        assert_eq!(table.oldest(), Some(silent));
        table.remove(silent).unwrap();
        assert_eq!(table.oldest(), Some(in_flight));
    }

    #[test]
    fn where_most_are_in_flight_the_first_of_all_goes() {
        let mut table = Table::default();
        let [first, second, silent] = [0, 1, 2].map(|n| table.insert(socket(), Linger::new(at(n), &RULES)));
        for entry in [first, second, silent] {
            let acknowledged = Event::Acknowledged(Some(entry == silent));
            table.update(entry, |_, linger| linger.on(acknowledged, at(2), &RULES));
        }
        // So far they are just new, and lose nothing to one that has everything.
        assert_eq!(table.oldest(), Some(silent));
        table.update(second, |_, linger| linger.on(Event::Acknowledged(Some(false)), at(1_252), &RULES));
        // The first was asked last, which makes it no younger.
        table.update(first, |_, linger| linger.on(Event::Acknowledged(Some(false)), at(1_300), &RULES));
        check(&table);
        assert_eq!(table.oldest(), Some(first));
        table.remove(first).unwrap();
        assert_eq!(table.oldest(), Some(silent), "half of them are not most");
    }

    #[test]
    fn a_name_outlives_its_entry_and_never_means_another() {
        let mut table = Table::default();
        let gone = table.insert(socket(), Linger::new(at(0), &RULES));
        table.remove(gone).unwrap();
        let next = table.insert(socket(), Linger::new(at(0), &RULES));
        assert_ne!(gone, next);
        assert!(table.socket(gone).is_none() && table.remove(gone).is_none());
        assert!(table.update(gone, |_, _| ()).is_none());
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn any_sequence_of_changes_keeps_every_queue_in_order() {
        crate::fuzz::any(6, |random| {
            let mut table = Table::default();
            let mut entries = Vec::new();
            let mut now = 1_000;
            for _ in 0..500 {
                // Mostly forward; a step back must not disturb the order either.
                now = if random.u8(..20) == 0 { now - 50 } else { now + random.u64(..200) };
                match random.u8(..4) {
                    0 if entries.len() < 50 => {
                        entries.push(table.insert(socket(), Linger::new(at(now), &RULES)))
                    }
                    1 if !entries.is_empty() => {
                        table.remove(entries.swap_remove(random.usize(..entries.len()))).unwrap();
                    }
                    _ if !entries.is_empty() => {
                        let entry = entries[random.usize(..entries.len())];
                        let event = match random.u8(..4) {
                            0 => Event::Received,
                            1 => Event::Acknowledged(Some(false)),
                            2 => Event::Acknowledged(Some(true)),
                            _ => Event::Quiet,
                        };
                        table.update(entry, |_, linger| linger.on(event, at(now), &RULES)).unwrap();
                    }
                    _ => {}
                }
                check(&table);
                let least = entries.iter().flat_map(|&entry| table.slab[entry].linger.deadlines()).min();
                assert_eq!(table.nearest().map(|(_, time)| time), least);
            }
        });
    }
}
