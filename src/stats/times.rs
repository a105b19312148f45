// SPDX-License-Identifier: BSD-3-Clause

//! How long connections took, by how that ended: not each time, but how many were how long about.
//!
//! Must not know what took so long.

use crate::rules::event::Reason;
use crate::rules::time::Span;
use std::fmt::Write;

/// Up to how long what is counted together took, in milliseconds. What took longer than the last comes last.
const BOUNDS: [u64; 14] =
    [25, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 120_000, 300_000, 600_000, 1_800_000];

/// The same in 1/64 s: as many as are no longer.
const TICKS: [u64; BOUNDS.len()] = {
    let mut ticks = BOUNDS;
    let mut n = 0;
    while n < ticks.len() {
        ticks[n] = ticks[n] * 64 / 1_000;
        n += 1;
    }
    ticks
};

/// How many took how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    counts: [u64; BOUNDS.len() + 1],
    /// All of them, in 1/64 s.
    sum: u64,
}

impl Times {
    #[inline]
    fn count(&mut self, time: Span) {
        let ticks = u64::from(time.ticks());
        // Most are short.
        self.counts[TICKS.iter().position(|&bound| ticks <= bound).unwrap_or(TICKS.len())] += 1;
        self.sum = self.sum.saturating_add(ticks);
    }

    /// How many there were.
    pub fn number(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// All of them together, in seconds.
    pub fn seconds(&self) -> f64 {
        self.sum as f64 / 64.0
    }

    /// How many took so many seconds or less, for each of some; the last ones are infinite.
    pub fn up_to(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = BOUNDS.iter().map(|&bound| bound as f64 / 1e3).chain([f64::INFINITY]);
        bounds.zip(self.counts).scan(0, |sum: &mut u64, (bound, count)| {
            *sum = sum.saturating_add(count);
            Some((bound, *sum))
        })
    }

    /// In how many seconds this part of them was over, as far as is known.
    pub fn part_in(&self, part: f64) -> f64 {
        let number = self.number() as f64 * part;
        self.up_to().find(|(_, count)| *count as f64 >= number).map_or(f64::INFINITY, |(bound, _)| bound)
    }

    /// The sum, and of what there is of each bound, the bound in milliseconds and how many: `640 25=3 1000=7 more=1`.
    fn told(&self) -> String {
        let mut text = self.sum.to_string();
        for (n, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            // Writing to a String cannot fail.
            let _ = match BOUNDS.get(n) {
                Some(bound) => write!(text, " {bound}={count}"),
                None => write!(text, " more={count}"),
            };
        }
        text
    }

    /// Reads that back. Another version may have other bounds.
    fn read(text: &str) -> Option<Times> {
        let mut times = Times::default();
        let mut words = text.split(' ');
        times.sum = words.next()?.parse().ok()?;
        for word in words {
            let (bound, count) = word.split_once('=')?;
            let bound = if bound == "more" { u64::MAX } else { bound.parse().ok()? };
            let place = &mut times.counts[BOUNDS.partition_point(|&known| known < bound)];
            *place = place.saturating_add(count.parse().ok()?);
        }
        Some(times)
    }
}

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timed {
    /// How long a connection lingered.
    Linger,
    /// How long it took until a response was written, or given up.
    Spool,
}

impl Timed {
    /// Both, in this order.
    pub const ALL: [Timed; 2] = [Timed::Linger, Timed::Spool];

    /// What it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Timed::Linger => "linger",
            Timed::Spool => "spool",
        }
    }
}

/// How each can end; `None` as it should, which is no reason to end the connection.
const ENDS: [(Timed, Option<Reason>); 13] = [
    (Timed::Linger, Some(Reason::Closed)),
    (Timed::Linger, Some(Reason::Reset)),
    (Timed::Linger, Some(Reason::Idle)),
    (Timed::Linger, Some(Reason::Max)),
    (Timed::Linger, Some(Reason::Limit)),
    (Timed::Linger, Some(Reason::Evicted)),
    (Timed::Linger, Some(Reason::Stopped)),
    (Timed::Spool, None),
    (Timed::Spool, Some(Reason::Reset)),
    (Timed::Spool, Some(Reason::Evicted)),
    (Timed::Spool, Some(Reason::Stopped)),
    (Timed::Spool, Some(Reason::Stalled)),
    (Timed::Spool, Some(Reason::Broken)),
];

fn name(reason: Option<Reason>) -> &'static str {
    reason.map_or("written", Reason::name)
}

/// All that is timed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AllTimes([Times; ENDS.len()]);

impl AllTimes {
    /// Counts what took so long, and ended so.
    #[inline]
    pub fn count(&mut self, what: Timed, reason: Option<Reason>, time: Span) {
        if let Some(n) = ENDS.iter().position(|end| *end == (what, reason)) {
            self.0[n].count(time);
        }
    }

    /// All of it: what took so long, how that ended, and how many took how long.
    pub fn iter(&self) -> impl Iterator<Item = (Timed, &'static str, &Times)> {
        ENDS.iter().zip(&self.0).map(|(&(what, reason), times)| (what, name(reason), times))
    }

    /// What a daemon says of what there is: `linger.closed`, and what [`read`](Self::read) reads.
    pub fn told(&self) -> impl Iterator<Item = (String, String)> {
        let some = self.iter().filter(|(_, _, times)| **times != Times::default());
        some.map(|(what, reason, times)| (format!("{}.{reason}", what.name()), times.told()))
    }

    /// Reads what is told of `key`; whether that is anything, and it can be read.
    pub fn read(&mut self, key: &str, text: &str) -> Option<Result<(), ()>> {
        let (what, reason) = key.split_once('.')?;
        let n = ENDS.iter().position(|&(timed, end)| timed.name() == what && name(end) == reason)?;
        Some(Times::read(text).map(|times| self.0[n] = times).ok_or(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn times(millis: &[u64]) -> Times {
        let mut times = Times::default();
        millis.iter().for_each(|&millis| times.count(Span::nearest(Duration::from_millis(millis))));
        times
    }

    #[test]
    fn each_is_counted_under_the_first_bound_that_it_does_not_exceed() {
        let times = times(&[0, 16, 31, 1_000, 1_016, 1_800_000, 1_800_016, 9_000_000]);
        let up_to: Vec<_> = times.up_to().collect();
        assert_eq!(up_to.len(), BOUNDS.len() + 1);
        assert!(up_to.is_sorted());
        let count = |bound: f64| up_to.iter().find(|(is, _)| *is == bound).unwrap().1;
        assert_eq!([0.025, 0.1, 0.5, 1.0, 2.5, 1_800.0, f64::INFINITY].map(count), [2, 3, 3, 4, 5, 6, 8]);
        assert_eq!((times.number(), times.seconds().round()), (8, 12_602.0));
    }

    #[test]
    fn a_part_of_them_is_over_in_the_time_in_which_so_many_are() {
        let times = times(&[10, 10, 10, 10, 10, 80, 80, 80, 80, 7_000]);
        assert_eq!([0.5, 0.51, 0.9, 0.99].map(|part| times.part_in(part)), [0.025, 0.1, 0.1, 10.0]);
        assert_eq!(self::times(&[10_000_000]).part_in(0.5), f64::INFINITY);
    }

    #[test]
    fn each_end_is_counted_as_what_it_is_and_what_is_no_end_not_at_all() {
        let mut all = 0;
        for what in Timed::ALL {
            for reason in Reason::ALL.map(Some).into_iter().chain([None]) {
                let mut times = AllTimes::default();
                times.count(what, reason, Span::from_secs(1));
                let counted: Vec<_> = times.iter().filter(|(_, _, times)| times.number() > 0).collect();
                let is_one = ENDS.contains(&(what, reason));
                assert_eq!(counted.len(), usize::from(is_one), "{what:?} {reason:?}");
                assert!(counted.iter().all(|(is, end, _)| (*is, *end) == (what, name(reason))));
                all += counted.len();
            }
        }
        assert_eq!(all, ENDS.len());
    }

    #[test]
    fn what_is_told_is_read_back() {
        let mut all = AllTimes::default();
        all.count(Timed::Linger, Some(Reason::Closed), Span::from_secs(1));
        all.count(Timed::Linger, Some(Reason::Closed), Span::from_secs(3_600));
        all.count(Timed::Spool, None, Span::from_ticks(1));
        all.count(Timed::Linger, Some(Reason::Returned), Span::from_secs(1)); // nothing lingers that does
        let told: Vec<_> = all.told().collect();
        let expected = [("linger.closed", "230464 1000=1 more=1"), ("spool.written", "1 25=1")];
        assert_eq!(told, expected.map(|(key, text)| (key.to_owned(), text.to_owned())));
        let mut read = AllTimes::default();
        assert!(told.iter().all(|(key, text)| read.read(key, text) == Some(Ok(()))));
        assert_eq!(read, all);
    }

    #[test]
    fn another_versions_bounds_are_the_next_ones_that_are_known() {
        let mut all = AllTimes::default();
        assert_eq!(all.read("linger.idle", "640 24=1 26=2 7200000=3 more=4"), Some(Ok(())));
        let times = all.iter().find(|(_, reason, _)| *reason == "idle").unwrap().2;
        assert_eq!((times.counts[0], times.counts[1], times.counts[14], times.number()), (1, 2, 7, 10));
        for text in ["", "x", "1 25", "1 25=x", "1 x=1", "1 ", "-1"] {
            assert_eq!(all.read("linger.idle", text), Some(Err(())), "{text}");
        }
        for key in ["linger", "linger.returned", "spool.closed", "park.closed", "linger.closed.x"] {
            assert_eq!(all.read(key, "1"), None, "{key}");
        }
    }
}
