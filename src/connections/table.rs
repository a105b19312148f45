// SPDX-License-Identifier: BSD-3-Clause

//! The lingering connections: rows of facts in a slab, chained by when they are due and by age.
//!
//! Adding, touching, finding who is due and who is to go first cost the same whatever the number of
//! connections. The slab grows by whole pieces and never moves a row. Must not know of backends,
//! counters or where a connection came from.

use super::census::{Census, Origin};
use super::chain::{Chains, Linked, Links};
use super::deadlines::Wheel;
use crate::rules::linger::{Linger, Rules, Stage};
use crate::rules::time::{Time, first};
use crate::source::Entry;
use std::net::TcpStream;
use std::num::NonZeroU16;

/// One connection: facts only. What few connections have is not kept here.
struct Row<S> {
    /// `None` where there is no connection.
    socket: Option<S>,
    /// How many connections were in this place before.
    generation: u16,
    origin: Origin,
    stage: Stage,
    given: Option<NonZeroU16>,
    handed_over: Time,
    asked: Time,
    heard: Time,
    /// In the slot of one of the wheels; of a place without a connection, to the next of those.
    by_due: Links,
    /// In the chain of all, in the order in which they were handed over.
    by_age: Links,
}

// A million of them are 40 MB.
const _: () = assert!(size_of::<Row<TcpStream>>() <= 40);

impl<S> Row<S> {
    fn linger(&self) -> Linger {
        let &Row { handed_over, asked, heard, stage, given, .. } = self;
        Linger { handed_over, asked, heard, stage, given }
    }

    fn note(&mut self, linger: Linger) {
        let Linger { handed_over, asked, heard, stage, given } = linger;
        (self.handed_over, self.asked, self.heard) = (handed_over, asked, heard);
        (self.stage, self.given) = (stage, given);
    }
}

/// How many rows the slab grows by.
const PIECE: usize = 256;

/// Places for rows.
struct Slab<S>(Vec<Box<[Row<S>]>>);

impl<S> Slab<S> {
    fn get(&self, place: u32) -> Option<&Row<S>> {
        self.0.get(place as usize / PIECE)?.get(place as usize % PIECE)
    }

    /// The row in a place that a chain led to, so that it is there.
    fn row(&self, place: u32) -> &Row<S> {
        &self.0[place as usize / PIECE][place as usize % PIECE]
    }

    fn row_mut(&mut self, place: u32) -> &mut Row<S> {
        &mut self.0[place as usize / PIECE][place as usize % PIECE]
    }

    /// Adds a piece of empty places and returns them.
    fn grow(&mut self) -> std::ops::Range<u32> {
        let first = (self.0.len() * PIECE) as u32; // less than 2^30, see Entry
        let empty = || Row {
            socket: None,
            generation: 0,
            origin: Origin::NOWHERE,
            stage: Stage::New,
            given: None,
            handed_over: Time::from_ticks(0),
            asked: Time::from_ticks(0),
            heard: Time::from_ticks(0),
            by_due: Links::NONE,
            by_age: Links::NONE,
        };
        self.0.push((0..PIECE).map(|_| empty()).collect());
        first..first + PIECE as u32
    }
}

/// The rows as the chain of all sees them.
struct ByAge<'a, S>(&'a mut Slab<S>);

impl<S> Linked for ByAge<'_, S> {
    fn links(&mut self, row: u32) -> &mut Links {
        &mut self.0.row_mut(row).by_age
    }
}

/// The rows as a wheel sees them.
struct ByDue<'a, S>(&'a mut Slab<S>);

impl<S> Linked for ByDue<'_, S> {
    fn links(&mut self, row: u32) -> &mut Links {
        &mut self.0.row_mut(row).by_due
    }
}

/// How many connections are looked at for one from where too many come, and how many places at most.
const LOOKED_AT: usize = 64;
const PASSED: u32 = 4 * PIECE as u32;

/// How many places are looked at, at least, for those of which it is not known from where they come.
const SOME: u32 = 16;

/// The chains that there are in [`Table::ages`], in the order in which their connections are to go where one has to:
/// a client that is silent asks again, one whose request waits may not, and a response that is not even written is
/// cut off for certain.
const LINGERING: u32 = 0;
const PARKED: u32 = 1;
const RETURNING: u32 = 2;
const SPOOLING: u32 = 3;

fn chain(linger: &Linger) -> u32 {
    match linger.stage {
        Stage::Spooling => SPOOLING,
        Stage::Parked => PARKED,
        Stage::Returning => RETURNING,
        Stage::New | Stage::Asked | Stage::UnderWay | Stage::HasItAll => LINGERING,
    }
}

/// See the module's head.
pub struct Table<S> {
    rules: Rules,
    slab: Slab<S>,
    /// A place without a connection, from which its links lead to all others.
    free: Option<u32>,
    /// The connections in the order of their hand-offs; those that do not linger yet apart.
    ages: Chains,
    census: Census,
    /// The place at which [`evictable`](Self::evictable) looks next.
    hand: u32,
    /// Of how many it is not known from where they come, and the place at which these are looked for next.
    unknown: usize,
    unknown_hand: u32,
    /// Those that have everything, by when they end.
    ending: Wheel,
    /// The others, by when they are asked again.
    in_flight: Wheel,
    len: usize,
    /// How many have their response under way.
    under_way: usize,
}

impl<S> Table<S> {
    /// An empty table, for connections that come at `now` or later; `chance` is what nobody outside can
    /// guess.
    pub fn new(rules: Rules, now: Time, chance: u64) -> Self {
        Table {
            rules,
            slab: Slab(Vec::new()),
            free: None,
            ages: Chains::new(4),
            census: Census::new(chance),
            hand: 0,
            unknown: 0,
            unknown_hand: 0,
            ending: Wheel::new(now),
            in_flight: Wheel::new(now),
            len: 0,
            under_way: 0,
        }
    }

    /// The rules by which everybody in it is judged.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// How many connections linger.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nobody lingers.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Who comes from where.
    pub fn census(&self) -> &Census {
        &self.census
    }

    /// Adds a connection from `origin` that is `due` then, and names it.
    pub fn insert(&mut self, socket: S, origin: Origin, linger: Linger, due: Time) -> Entry {
        let place = self.free_place();
        let row = self.slab.row_mut(place);
        row.socket = Some(socket);
        row.origin = origin;
        self.census.add(origin);
        self.unknown += usize::from(origin == Origin::UNKNOWN);
        row.note(linger);
        let entry = Entry { place, generation: row.generation };
        self.ages.push(chain(&linger), place, &mut ByAge(&mut self.slab));
        self.len += 1;
        self.file(place, &linger, due);
        entry
    }

    /// Some of those of which it is not known from where they come: all of them, if it is asked so many `times`.
    pub fn of_unknown_origin(&mut self, times: usize) -> Vec<Entry> {
        let places = (self.slab.0.len() * PIECE) as u32; // less than 2^30, see Entry
        if self.unknown == 0 || places == 0 {
            return Vec::new();
        }
        let times = times.clamp(1, places as usize) as u32;
        let many = SOME.max(places.div_ceil(times)).min(places);
        let some = (self.unknown_hand..self.unknown_hand + many).map(|place| place % places);
        self.unknown_hand = (self.unknown_hand + many) % places;
        let is_unknown = |&place: &u32| {
            let row = self.slab.row(place);
            row.socket.is_some() && row.origin == Origin::UNKNOWN
        };
        some.filter(is_unknown).map(|place| self.entry(place)).collect()
    }

    /// Notes from where `entry` comes.
    pub fn note_origin(&mut self, entry: Entry, origin: Origin) {
        if self.row(entry).is_some() {
            let row = self.slab.row_mut(entry.place);
            let before = std::mem::replace(&mut row.origin, origin);
            self.census.remove(before);
            self.census.add(origin);
            self.unknown -= usize::from(before == Origin::UNKNOWN);
            self.unknown += usize::from(origin == Origin::UNKNOWN);
        }
    }

    /// The socket of `entry` and what is known of it, or `None` if that connection has gone.
    pub fn get(&self, entry: Entry) -> Option<(&S, Linger)> {
        let row = self.row(entry)?;
        Some((row.socket.as_ref()?, row.linger()))
    }

    /// Closes all of them. There is no table after that.
    pub fn clear(&mut self) {
        self.slab.0.clear();
    }

    /// All that linger, the one that was handed over first being the first.
    pub fn by_age(&self) -> impl Iterator<Item = (&S, Linger)> {
        self.chained(LINGERING).filter_map(|entry| self.get(entry))
    }

    /// All whose response is still to be written, in the same order.
    pub fn spooling(&self) -> impl Iterator<Item = Entry> {
        self.chained(SPOOLING)
    }

    /// All that are parked and silent, in the same order.
    pub fn parked(&self) -> impl Iterator<Item = Entry> {
        self.chained(PARKED)
    }

    /// All that were, and wait for a worker, in the order in which they have come to that.
    pub fn returning(&self) -> impl Iterator<Item = Entry> {
        self.chained(RETURNING)
    }

    /// The first of those that do not linger yet, of those that are to go first.
    fn first_of_the_others(&self) -> Option<Entry> {
        let first = [PARKED, RETURNING, SPOOLING].into_iter().find_map(|chain| self.ages.first(chain));
        first.map(|place| self.entry(place))
    }

    fn chained(&self, chain: u32) -> impl Iterator<Item = Entry> {
        let next = |&place: &u32| self.slab.row(place).by_age.next();
        std::iter::successors(self.ages.first(chain), next).map(|place| self.entry(place))
    }

    /// Notes what is known of `entry`, and that it is `due` then: of those that end at about the same
    /// time it goes behind the others.
    pub fn note(&mut self, entry: Entry, linger: Linger, due: Time) {
        if let Some(row) = self.row(entry) {
            let before = row.linger();
            self.unfile(entry.place, &before);
            if chain(&before) != chain(&linger) {
                self.ages.remove(entry.place, &mut ByAge(&mut self.slab));
                self.ages.push(chain(&linger), entry.place, &mut ByAge(&mut self.slab));
            }
            self.slab.row_mut(entry.place).note(linger);
            self.file(entry.place, &linger, due);
        }
    }

    /// Takes `entry` out, or returns `None` if that connection has gone.
    pub fn remove(&mut self, entry: Entry) -> Option<(S, Linger)> {
        let linger = self.row(entry)?.linger();
        self.unfile(entry.place, &linger);
        self.ages.remove(entry.place, &mut ByAge(&mut self.slab));
        let row = self.slab.row_mut(entry.place);
        let socket = row.socket.take()?;
        row.generation = row.generation.wrapping_add(1);
        self.census.remove(row.origin);
        self.unknown -= usize::from(row.origin == Origin::UNKNOWN);
        row.by_due = Links::to(self.free.replace(entry.place));
        self.len -= 1;
        Some((socket, linger))
    }

    /// A connection that is due at `now`, if there is any.
    pub fn due(&mut self, now: Time) -> Option<Entry> {
        let rows = &mut ByDue(&mut self.slab);
        let when = |rows: &ByDue<S>, row| rows.0.row(row).linger().due(now, &self.rules);
        // Who ends first, as the others come back: there may be more of them than there is time for.
        let place = self.ending.due(now, rows, when).or_else(|| self.in_flight.due(now, rows, when))?;
        Some(self.entry(place))
    }

    /// When, after `now`, the next one is due: now and then somewhat too early, never too late.
    pub fn next(&self, now: Time) -> Option<Time> {
        first(self.ending.next(now), self.in_flight.next(now), now)
    }

    /// The connection that has had the most of its linger at `now`: the one that ends first, or
    /// nearly so. It commonly has its response, and loses nothing.
    ///
    /// But readers that stall, who end last, must not have the table for themselves: where most
    /// connections are known to have their response under way, it is the one that was handed over
    /// first.
    pub fn oldest(&self, now: Time) -> Option<Entry> {
        let Some(first) = self.ages.first(LINGERING) else { return self.first_of_the_others() };
        let left = |place| self.slab.row(place).linger().left(now, &self.rules);
        let place = match self.ending.first() {
            Some(ending) if self.under_way <= self.len / 2 && left(ending) <= left(first) => ending,
            _ => first,
        };
        Some(self.entry(place))
    }

    /// The connection that is to go at `now`, where no origin is to have more than `share`: of one that has
    /// more, if one is found; else [`oldest`](Self::oldest).
    ///
    /// They are looked for by place, going on where it was looked last, as a hand goes round: by age there may
    /// be any number of others before them.
    pub fn evictable(&mut self, share: usize, now: Time) -> Option<Entry> {
        let oldest = self.oldest(now)?;
        if !self.census.any_exceeds(share) {
            return Some(oldest);
        }
        let exceeds = |&place: &u32| self.census.exceeds(self.slab.row(place).origin, share);
        if exceeds(&oldest.place) {
            return Some(oldest);
        }
        let places = (self.slab.0.len() * PIECE) as u32; // less than 2^30, see Entry
        let from_here = (self.hand..self.hand + places.min(PASSED)).map(|place| place % places);
        let taken = from_here.filter(|&place| {
            let row = self.slab.row(place);
            row.socket.is_some() && chain(&row.linger()) == LINGERING // the others go last
        });
        let looked_at: Vec<_> = taken.take(LOOKED_AT).collect();
        let left = |&place: &u32| self.slab.row(place).linger().left(now, &self.rules);
        let greedy = looked_at.iter().copied().filter(exceeds).min_by_key(left);
        self.hand = looked_at.last().map_or(0, |last| (last + 1) % places);
        Some(greedy.map_or(oldest, |place| self.entry(place)))
    }

    /// The connection that loses least by being ended now: one whose client has everything, if there
    /// is any, and of the others the one that was handed over first.
    pub fn gentlest(&self) -> Option<Entry> {
        let place = self.ending.first().or_else(|| self.ages.first(LINGERING));
        place.map(|place| self.entry(place)).or_else(|| self.first_of_the_others())
    }

    /// Takes a place out of the free ones: the one that was used last, as it is in the processor's
    /// cache.
    fn free_place(&mut self) -> u32 {
        let place = self.free.unwrap_or_else(|| {
            let places = self.slab.grow();
            let first = places.start;
            for place in places.rev() {
                self.slab.row_mut(place).by_due = Links::to(self.free.replace(place));
            }
            first
        });
        self.free = self.slab.row(place).by_due.next();
        place
    }

    fn row(&self, entry: Entry) -> Option<&Row<S>> {
        self.slab.get(entry.place).filter(|row| row.generation == entry.generation && row.socket.is_some())
    }

    fn entry(&self, place: u32) -> Entry {
        Entry { place, generation: self.slab.row(place).generation }
    }

    fn file(&mut self, place: u32, linger: &Linger, due: Time) {
        self.under_way += usize::from(linger.is_under_way());
        let wheel = if linger.has_it_all() { &mut self.ending } else { &mut self.in_flight };
        wheel.file(place, due, &mut ByDue(&mut self.slab));
    }

    fn unfile(&mut self, place: u32, linger: &Linger) {
        self.under_way -= usize::from(linger.is_under_way());
        let wheel = if linger.has_it_all() { &mut self.ending } else { &mut self.in_flight };
        wheel.remove(place, &mut ByDue(&mut self.slab));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::event::{Action, Event};
    use crate::rules::time::Span;
    use std::collections::BTreeMap;

    const RULES: Rules =
        Rules { idle: Span::from_ticks(500), max: Span::from_ticks(3_000), limit: Span::from_ticks(30_000) };

    fn at(ticks: u32) -> Time {
        Time::from_ticks(ticks)
    }

    fn table() -> Table<u32> {
        Table::new(RULES, at(0), 1)
    }

    /// Adds a connection as the daemon does, which asks at once.
    fn add(table: &mut Table<u32>, socket: u32, now: u32, acknowledged: bool) -> Entry {
        let mut linger = Linger::new(at(now));
        linger.on(Event::Acknowledged(Some(acknowledged)), at(now), &RULES);
        table.insert(socket, Origin::NOWHERE, linger, linger.due(at(now), &RULES))
    }

    fn on(table: &mut Table<u32>, entry: Entry, event: Event, now: u32) -> Action {
        let mut linger = table.get(entry).unwrap().1;
        let action = linger.on(event, at(now), &RULES);
        table.note(entry, linger, linger.due(at(now), &RULES));
        action
    }

    const ASKED: Event = Event::Acknowledged(Some(false));

    #[test]
    fn the_nearest_deadline_is_found_whatever_was_touched() {
        let mut table = table();
        let entries: Vec<_> = (0..4).map(|n| add(&mut table, n, n * 10, true)).collect();
        assert_eq!((table.due(at(499)), table.next(at(499))), (None, Some(at(500))));
        on(&mut table, entries[0], Event::Received, 40);
        assert_eq!(table.due(at(509)), None);
        assert_eq!((table.due(at(510)), table.next(at(510))), (Some(entries[1]), Some(at(510))));
        assert_eq!(table.remove(entries[1]).unwrap().0, 1);
        assert_eq!((table.due(at(519)), table.next(at(519))), (None, Some(at(520))));
    }

    #[test]
    fn who_is_to_be_asked_and_who_ends_are_both_found() {
        let mut table = table();
        let in_flight = add(&mut table, 0, 0, false);
        let silent = add(&mut table, 1, 0, true);
        assert_eq!(table.next(at(0)), Some(at(125)));
        assert_eq!(table.due(at(125)), Some(in_flight));
        on(&mut table, in_flight, ASKED, 125);
        assert_eq!((table.due(at(125)), table.next(at(125))), (None, Some(at(500))));
        assert_eq!(table.due(at(500)), Some(silent));
    }

    #[test]
    fn what_is_in_flight_is_not_the_oldest_while_another_is_acknowledged() {
        let mut table = table();
        let in_flight = add(&mut table, 0, 0, false);
        let silent = add(&mut table, 1, 100, true);
        assert_eq!(table.oldest(at(100)), Some(silent));
        table.remove(silent).unwrap();
        assert_eq!(table.oldest(at(100)), Some(in_flight));
    }

    #[test]
    fn who_was_heard_last_is_the_last_of_those_that_end_together() {
        let mut table = table();
        let [first, second] = [0, 1].map(|n| add(&mut table, n, 7, true));
        assert_eq!(table.oldest(at(7)), Some(first));
        on(&mut table, first, Event::Received, 7);
        assert_eq!(table.oldest(at(7)), Some(second));
    }

    #[test]
    fn who_ends_by_the_limit_first_is_the_oldest() {
        let mut table = table();
        let stalled = add(&mut table, 0, 0, false);
        let silent = add(&mut table, 1, 29_700, true);
        assert_eq!(table.oldest(at(29_700)), Some(stalled), "in 300, the other one in 500");
        assert_eq!(table.remove(stalled).map(|(socket, _)| socket), Some(0));
        assert_eq!(table.oldest(at(29_700)), Some(silent));
    }

    #[test]
    fn where_most_are_in_flight_the_first_of_all_goes() {
        let mut table = table();
        let [first, second] = [0, 1].map(|n| add(&mut table, n, n, false));
        let silent = add(&mut table, 2, 2, true);
        // So far they are just new, and lose nothing to one that has everything.
        assert_eq!(table.oldest(at(2)), Some(silent));
        on(&mut table, second, ASKED, 127);
        // The first was asked last, which makes it no younger.
        on(&mut table, first, ASKED, 130);
        assert_eq!(table.oldest(at(130)), Some(first));
        table.remove(first).unwrap();
        assert_eq!(table.oldest(at(130)), Some(silent), "half of them are not most");
    }

    /// Adds one that is `from` there and has everything.
    fn add_from(table: &mut Table<u32>, from: u8, now: u32) -> Entry {
        let origin = table.census().origin(Some(([192, 0, 2, from], 80).into()));
        let mut linger = Linger::new(at(now));
        linger.on(Event::Acknowledged(Some(true)), at(now), &RULES);
        table.insert(now, origin, linger, linger.due(at(now), &RULES))
    }

    #[test]
    fn who_has_more_than_a_share_makes_room_first() {
        let mut table = table();
        let first = add_from(&mut table, 1, 0);
        let greedy: Vec<_> = (1..=5).map(|now| add_from(&mut table, 2, now)).collect();
        assert_eq!(table.evictable(5, at(9)), Some(first), "nobody has more");
        assert_eq!(table.evictable(4, at(9)), Some(greedy[0]));
        table.remove(greedy[0]).unwrap();
        assert_eq!(table.evictable(4, at(9)), Some(first));
    }

    #[test]
    fn those_of_whom_it_is_not_known_are_found_and_count_from_then_on() {
        let mut table = table();
        let known = add_from(&mut table, 1, 0);
        let entries: Vec<_> = (1..=PIECE as u32)
            .map(|now| {
                let mut linger = Linger::new(at(now));
                linger.on(Event::Acknowledged(Some(true)), at(now), &RULES);
                table.insert(now, Origin::UNKNOWN, linger, linger.due(at(now), &RULES))
            })
            .collect();
        table.remove(entries[7]).unwrap();
        assert_eq!(table.evictable(1, at(300)), Some(known), "they count nowhere");
        let origin = table.census().origin(Some(([192, 0, 2, 2], 80).into()));
        let mut found = table.of_unknown_origin(1);
        assert_eq!(found.len(), PIECE - 1, "all of them at once");
        found.clear();
        for _ in 0..2 * PIECE as u32 / SOME {
            for entry in table.of_unknown_origin(usize::MAX) {
                table.note_origin(entry, origin);
                found.push(entry);
            }
        }
        let expected: Vec<_> = entries.iter().copied().filter(|entry| *entry != entries[7]).collect();
        found.sort_unstable();
        assert_eq!(found, expected, "each of them once");
        let most = PIECE - 1;
        assert_eq!(table.evictable(most, at(300)), Some(known));
        let first = table.evictable(most - 1, at(300)).unwrap();
        assert!(entries.contains(&first), "one of those that are too many");
        for entry in expected {
            assert!(table.remove(entry).is_some());
        }
        assert!(!table.census.any_exceeds(1));
    }

    #[test]
    fn who_has_more_is_found_behind_any_number_of_others() {
        let mut table = table();
        let others: Vec<_> =
            (0..2 * PIECE as u32).map(|n| add_from(&mut table, (n % 250) as u8, n)).collect();
        let greedy: Vec<_> = (0..20).map(|n| add_from(&mut table, 255, 1_000 + n)).collect();
        let looks = table.len().div_ceil(LOOKED_AT);
        let found: Vec<_> = (0..looks).map(|_| table.evictable(19, at(1_100)).unwrap()).collect();
        assert!(found.contains(&greedy[0]), "the one of them that ends first");
        assert!(found.iter().all(|entry| *entry == greedy[0] || *entry == others[0]));
    }

    #[test]
    fn a_name_outlives_its_entry_and_never_means_another() {
        let mut table = table();
        let gone = add(&mut table, 0, 0, true);
        table.remove(gone).unwrap();
        let next = add(&mut table, 1, 0, true);
        assert_eq!(gone.place, next.place, "else this tests nothing");
        assert_ne!(gone, next);
        assert!(table.get(gone).is_none() && table.remove(gone).is_none());
        let before = table.get(next).unwrap().1;
        table.note(gone, Linger::new(at(7)), at(7));
        assert_eq!((table.len(), table.get(next)), (1, Some((&1, before))));
    }

    #[test]
    fn the_slab_grows_by_pieces_and_uses_places_again() {
        let mut table = table();
        let entries: Vec<_> = (0..=PIECE as u32).map(|n| add(&mut table, n, 0, true)).collect();
        assert_eq!(table.slab.0.len(), 2);
        for (n, &entry) in entries.iter().enumerate() {
            assert_eq!(table.get(entry).unwrap().0, &(n as u32));
            table.remove(entry).unwrap();
        }
        assert!(table.is_empty());
        for n in 0..2 * PIECE as u32 {
            add(&mut table, n, 0, true);
        }
        assert_eq!((table.slab.0.len(), table.len()), (2, 2 * PIECE));
    }

    #[test]
    fn any_sequence_of_changes_keeps_every_queue_in_order() {
        support::fuzz::any(100, |random| {
            let start = random.u32(..);
            let time = |now: u32| at(start.wrapping_add(now));
            let mut table = Table::new(RULES, time(0), 1);
            // What each is, in the order of the hand-offs.
            let mut all = BTreeMap::<u32, (Entry, Linger)>::new();
            let mut now = 0;
            for n in 0..500 {
                now += random.u32(..40);
                match random.u8(..6) {
                    0 if all.len() < 50 => {
                        let linger = Linger::new(time(now));
                        let due = linger.due(time(now), &RULES);
                        all.insert(n, (table.insert(n, Origin::NOWHERE, linger, due), linger));
                    }
                    1 if !all.is_empty() => {
                        let n = *all.keys().nth(random.usize(..all.len())).unwrap();
                        let (entry, linger) = all.remove(&n).unwrap();
                        assert_eq!(table.remove(entry), Some((n, linger)));
                    }
                    2 => {
                        while let Some(entry) = table.due(time(now)) {
                            let n = *table.get(entry).unwrap().0;
                            assert_eq!(all[&n].0, entry);
                            assert!(now >= due(&all[&n].1, start, now), "{n} is not due");
                            table.remove(entry).unwrap();
                            all.remove(&n);
                        }
                        assert!(all.values().all(|(_, linger)| due(linger, start, now) > now));
                    }
                    _ if !all.is_empty() => {
                        let n = *all.keys().nth(random.usize(..all.len())).unwrap();
                        let event = match random.u8(..4) {
                            0 => Event::Received,
                            1 => Event::Acknowledged(Some(false)),
                            2 => Event::Acknowledged(Some(true)),
                            _ => Event::Quiet,
                        };
                        let (entry, linger) = all.get_mut(&n).unwrap();
                        assert_eq!(table.get(*entry), Some((&n, *linger)));
                        linger.on(event, time(now), &RULES);
                        table.note(*entry, *linger, linger.due(time(now), &RULES));
                    }
                    _ => {}
                }
                check(&table, &all, time(now));
            }
        });
    }

    /// When `linger` is due, counted from `start`.
    fn due(linger: &Linger, start: u32, now: u32) -> u32 {
        linger.due(at(start.wrapping_add(now)), &RULES).ticks().wrapping_sub(start)
    }

    fn check(table: &Table<u32>, all: &BTreeMap<u32, (Entry, Linger)>, now: Time) {
        assert_eq!(table.len(), all.len());
        assert_eq!(table.under_way, all.values().filter(|(_, linger)| linger.is_under_way()).count());
        assert_eq!(table.ages.first(LINGERING), all.values().next().map(|(entry, _)| entry.place));
        assert!(table.by_age().map(|(n, linger)| (*n, linger)).eq(all.iter().map(|(n, (_, l))| (*n, *l))));
        let due = |(_, linger): &(Entry, Linger)| linger.due(now, &RULES).ticks_since(now);
        let next = table.next(now).map(|next| next.ticks_since(now));
        // Who is late is due now.
        let first = all.values().map(due).min().map(|first| first.max(0));
        assert!(next <= first && next.is_some() != all.is_empty());
        let Some(oldest) = table.oldest(now) else { return assert!(all.is_empty()) };
        let (_, oldest) = all.values().find(|(entry, _)| *entry == oldest).unwrap();
        if table.under_way > all.len() / 2 {
            assert_eq!(oldest, &all.values().next().unwrap().1);
        } else {
            // Within a slot it is the one that was filed first.
            let least = all.values().map(|(_, linger)| linger.left(now, &RULES)).min().unwrap();
            assert!(oldest.left(now, &RULES) <= least.max(0) + i64::from(RULES.idle.ticks()), "{oldest:?}");
        }
    }
}
