// SPDX-License-Identifier: BSD-3-Clause

//! The timer wheel: finds who is due, and when the next one is, in constant time.
//!
//! A wheel has levels of 64 slots, of which each spans 64 of the level below: 1/64 s, 1 s, 64 s, and
//! so on. Who is due stands in the slot of the lowest level at which its time and the wheel's own
//! differ, so that everybody on a lower level is due before everybody on a higher one, and the first
//! occupied slot is found by counting bits (Varghese and Lauck, 1987). When the wheel's time comes to
//! a slot of a higher level, those in it move to lower ones: five times in a connection's life at
//! most.
//!
//! Nobody need be woken for that: each slot knows when the first of its rows is due, and a sleep is
//! until then. (Where that row has left meanwhile it is too early, once.)
//!
//! Must not know what is due, or why.

use super::chain::{Chains, Linked};
use crate::rules::time::Time;

const BITS: u32 = 6;
const SLOTS: u32 = 1 << BITS;
const LEVELS: u32 = u32::BITS.div_ceil(BITS);

/// See the module's head.
pub struct Wheel {
    /// Everybody is due at this time or later.
    base: Time,
    /// A bit for each slot that has somebody in it, and for each level.
    occupied: [u64; LEVELS as usize],
    levels: u32,
    /// The rows in each slot, in the order in which they were filed.
    slots: Chains,
    /// The earliest time at which anybody is due who was filed in that slot since it was empty.
    earliest: Box<[Time]>,
}

impl Wheel {
    /// An empty wheel that starts at `base`.
    pub fn new(base: Time) -> Self {
        let earliest = vec![base; (LEVELS * SLOTS) as usize].into();
        Wheel {
            base,
            occupied: [0; LEVELS as usize],
            levels: 0,
            slots: Chains::new(LEVELS * SLOTS),
            earliest,
        }
    }

    /// When, after `now`, the next row is due, or somewhat earlier if one has left.
    pub fn next(&self, now: Time) -> Option<Time> {
        let earliest = self.earliest[self.first_slot()? as usize];
        // Seen from now, one that is long past looks like one to come.
        Some(if earliest.since(self.base) < now.since(self.base) { now } else { earliest })
    }

    /// A row that was filed before most others: the first of those in the slot that is next.
    pub fn first(&self) -> Option<u32> {
        self.slots.first(self.first_slot()?)
    }

    /// Files `row`, which is not in the wheel, for when it is `due`.
    pub fn file(&mut self, row: u32, mut due: Time, rows: &mut impl Linked) {
        if due.ticks_since(self.base) < 0 {
            due = self.base; // as early as can be
        }
        let level = self.level(due);
        let slot = level * SLOTS + digit(due, level);
        let earliest = &mut self.earliest[slot as usize];
        let bit = 1 << (slot % SLOTS);
        let is_first = due.since(self.base) < earliest.since(self.base);
        if self.occupied[level as usize] & bit == 0 || is_first {
            *earliest = due;
        }
        self.occupied[level as usize] |= bit;
        self.levels |= 1 << level;
        self.slots.push(slot, row, rows);
    }

    /// Takes `row` out, if it is in.
    pub fn remove(&mut self, row: u32, rows: &mut impl Linked) {
        if let Some(slot) = self.slots.remove(row, rows) {
            let level = slot / SLOTS;
            self.occupied[level as usize] &= !(1 << (slot % SLOTS));
            if self.occupied[level as usize] == 0 {
                self.levels &= !(1 << level);
            }
        }
    }

    /// A row that is due at `now`, if there is any. It stays in the wheel until it is removed. `when`
    /// tells of each what it was [filed](Self::file) for.
    pub fn due<L: Linked>(&mut self, now: Time, rows: &mut L, when: impl Fn(&L, u32) -> Time) -> Option<u32> {
        while let Some(slot) = self.first_slot() {
            let starts = self.starts(slot);
            // From the wheel's time on, as two points of time say nothing of which comes first.
            if starts.since(self.base) > now.since(self.base) {
                break;
            }
            self.base = starts;
            if slot < SLOTS {
                return self.slots.first(slot);
            }
            while let Some(row) = self.slots.first(slot) {
                self.remove(row, rows);
                self.file(row, when(rows, row), rows);
            }
        }
        self.base = self.base + now.since(self.base);
        None
    }

    /// The occupied slot whose time comes first.
    fn first_slot(&self) -> Option<u32> {
        if self.levels == 0 {
            return None;
        }
        let level = self.levels.trailing_zeros();
        // Only on the highest level can a slot come round again from the lower end.
        let passed = digit(self.base, level);
        let ahead = self.occupied[level as usize].rotate_right(passed).trailing_zeros();
        Some(level * SLOTS + (passed + ahead) % SLOTS)
    }

    /// When the wheel comes to `slot`.
    fn starts(&self, slot: u32) -> Time {
        let (level, digit) = (slot / SLOTS, slot % SLOTS);
        let above = u32::MAX.checked_shl((level + 1) * BITS).unwrap_or(0);
        Time::from_ticks(self.base.ticks() & above | digit << (level * BITS))
    }

    /// The highest level at which `due` differs from the wheel's time.
    fn level(&self, due: Time) -> u32 {
        let differ = (self.base.ticks() ^ due.ticks()) | (SLOTS - 1);
        differ.ilog2() / BITS
    }
}

/// The place of `time` among the slots of `level`.
fn digit(time: Time, level: u32) -> u32 {
    time.ticks() >> (level * BITS) & (SLOTS - 1)
}

#[cfg(test)]
mod tests {
    use super::super::chain::Links;
    use super::*;
    use crate::rules::time::Span;
    use std::collections::BTreeSet;

    struct Rows(Vec<(Links, Time)>);

    impl Rows {
        fn new(count: u32) -> Self {
            Rows((0..count).map(|_| (Links::NONE, at(0))).collect())
        }
    }

    impl Linked for Rows {
        fn links(&mut self, row: u32) -> &mut Links {
            &mut self.0[row as usize].0
        }
    }

    fn at(ticks: u32) -> Time {
        Time::from_ticks(ticks)
    }

    fn file(wheel: &mut Wheel, rows: &mut Rows, row: u32, due: Time) {
        rows.0[row as usize].1 = due;
        wheel.file(row, due, rows);
    }

    fn find(wheel: &mut Wheel, rows: &mut Rows, now: Time) -> Option<u32> {
        wheel.due(now, rows, |rows, row| rows.0[row as usize].1)
    }

    #[test]
    fn each_is_due_at_its_time_and_not_a_moment_before() {
        for base in [0, 1, 63, 64, 4_095, 1 << 30, u32::MAX, u32::MAX - 64] {
            for delay in [1, 62, 63, 64, 65, 4_095, 4_096, 262_144, 1 << 24, Span::LONGEST.ticks()] {
                let (mut wheel, mut rows) = (Wheel::new(at(base)), Rows::new(1));
                let due = at(base) + Span::from_ticks(delay);
                file(&mut wheel, &mut rows, 0, due);
                assert_eq!(wheel.next(at(base)), Some(due));
                let before = at(base) + Span::from_ticks(delay - 1);
                assert_eq!(find(&mut wheel, &mut rows, before), None, "{base} {delay}");
                assert_eq!(wheel.next(before), Some(due));
                assert_eq!(find(&mut wheel, &mut rows, due), Some(0), "{base} {delay}");
                assert_eq!(find(&mut wheel, &mut rows, due), Some(0), "it stays until it is removed");
                wheel.remove(0, &mut rows);
                assert_eq!((find(&mut wheel, &mut rows, due), wheel.next(due)), (None, None));
            }
        }
    }

    #[test]
    fn who_is_late_is_found_first_and_in_order() {
        let (mut wheel, mut rows) = (Wheel::new(at(0)), Rows::new(4));
        for (row, due) in [(0, 70_000), (1, 5), (2, 100), (3, 5)] {
            file(&mut wheel, &mut rows, row, at(due));
        }
        for row in [1, 3, 2, 0] {
            assert_eq!(find(&mut wheel, &mut rows, at(1 << 20)), Some(row));
            wheel.remove(row, &mut rows);
        }
    }

    #[test]
    fn who_is_filed_for_what_is_past_is_due_at_once() {
        let (mut wheel, mut rows) = (Wheel::new(at(100)), Rows::new(2));
        file(&mut wheel, &mut rows, 0, at(200));
        file(&mut wheel, &mut rows, 1, at(40));
        assert_eq!(wheel.next(at(100)), Some(at(100)));
        assert_eq!(find(&mut wheel, &mut rows, at(100)), Some(1));
    }

    #[test]
    fn whoever_is_late_is_due_now_however_late() {
        let year = Span::LONGEST.ticks();
        for late in [0, 1, 86_400 * 64, 46 * 86_400 * 64, 47 * 86_400 * 64, year] {
            let (mut wheel, mut rows) = (Wheel::new(at(7)), Rows::new(2));
            [0, 1].into_iter().for_each(|row| file(&mut wheel, &mut rows, row, at(1_000)));
            let now = at(1_000 + late);
            assert_eq!(find(&mut wheel, &mut rows, now), Some(0));
            wheel.remove(0, &mut rows);
            assert_eq!(wheel.next(now), Some(now), "{late}");
        }
    }

    #[test]
    fn a_sleep_is_until_somebody_is_due() {
        let (mut wheel, mut rows) = (Wheel::new(at(7)), Rows::new(3));
        for (row, due) in [(0, 5_000), (1, 4_900), (2, 300_000)] {
            file(&mut wheel, &mut rows, row, at(due));
        }
        assert_eq!(wheel.next(at(7)), Some(at(4_900)), "not when their slot begins");
        wheel.remove(1, &mut rows);
        // Too early once, and then it is known.
        assert_eq!(find(&mut wheel, &mut rows, at(4_900)), None);
        assert_eq!(wheel.next(at(4_900)), Some(at(5_000)));
    }

    #[test]
    fn any_sequence_of_filings_finds_everybody_in_time() {
        support::fuzz::any(300, |random| {
            let start = random.u32(..);
            let (mut wheel, mut rows) = (Wheel::new(at(start)), Rows::new(100));
            let mut filed = BTreeSet::new(); // (when, counted from the start; row)
            let mut now = 0u64;
            for _ in 0..500 {
                let row = random.u32(..100);
                let most = 1 << random.u32(1..30); // near and far
                let due_of = |filed: &BTreeSet<(u64, u32)>, row| filed.iter().copied().find(|f| f.1 == row);
                match random.u8(..4) {
                    0 | 1 => {
                        if let Some(old) = due_of(&filed, row) {
                            wheel.remove(row, &mut rows);
                            filed.remove(&old);
                        }
                        let due = now + 1 + random.u64(..most);
                        filed.insert((due, row));
                        file(&mut wheel, &mut rows, row, at((u64::from(start) + due) as u32));
                    }
                    2 => {
                        wheel.remove(row, &mut rows);
                        filed.retain(|f| f.1 != row);
                    }
                    _ => {
                        now += random.u64(..most);
                        let time = at((u64::from(start) + now) as u32);
                        // Now and then more are due than there is time for.
                        let mut budget = if random.bool() { 3 } else { usize::MAX };
                        while let Some(row) =
                            (budget > 0).then(|| find(&mut wheel, &mut rows, time)).flatten()
                        {
                            budget -= 1;
                            wheel.remove(row, &mut rows);
                            let found = due_of(&filed, row).unwrap();
                            assert!(found.0 <= now, "{row} is due at {}, not at {now}", found.0);
                            filed.remove(&found);
                        }
                        let is_done = budget == 0 || filed.first().is_none_or(|first| first.0 > now);
                        assert!(is_done, "{filed:?} at {now}");
                    }
                }
                // It may wake too early, but never too late.
                let time = at((u64::from(start) + now) as u32);
                match (wheel.next(time), filed.first()) {
                    (None, None) => {}
                    (Some(next), Some(first)) => {
                        let sleep = u64::from(next.ticks().wrapping_sub(time.ticks()));
                        assert!(sleep <= first.0.saturating_sub(now), "{sleep} at {now}: {first:?}");
                    }
                    other => panic!("{other:?}"),
                }
            }
        });
    }
}
