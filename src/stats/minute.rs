// SPDX-License-Identifier: BSD-3-Clause

//! By how much the counters have grown in the last minute, without a clock that ticks for it: they are looked at
//! when something is to be done anyway, and as long as nothing is they stay as they are.
//!
//! Must not know what is counted.

use super::{FIGURES, Figure, Figures, Snapshot, place};
use crate::rules::time::{Span, Time};
use std::collections::VecDeque;
use std::time::Duration;

const MINUTE: Span = Span::from_secs(60);

/// No look is made sooner after another one: there are 17 at most, and a minute may be that much too long.
const EVERY: Span = Span::from_secs(4);

/// By how much each figure has grown in a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Growth {
    /// The time, in milliseconds.
    pub millis: u64,
    /// In the order of the figures; 0 for those that do not only grow.
    pub by: Figures,
}

impl Growth {
    /// The time, in seconds.
    pub(super) fn seconds(&self) -> f64 {
        self.millis as f64 / 1e3
    }

    /// By how much the counter named `key` has grown.
    pub(super) fn get(&self, key: &str) -> u64 {
        place(key).map_or(0, |n| self.by[n])
    }

    /// Each counter, and by how much it has grown.
    pub(super) fn counters(&self) -> impl Iterator<Item = (&'static Figure, u64)> {
        FIGURES.iter().zip(self.by).filter(|(figure, _)| figure.is_counter())
    }
}

/// See the module's head.
pub struct LastMinute {
    /// When everything stood as at the first look.
    begun: Time,
    looks: VecDeque<(Time, Figures)>,
}

impl LastMinute {
    /// Nothing has been counted before `now`.
    pub fn new(now: Time) -> Self {
        LastMinute { begun: now, looks: VecDeque::new() }
    }

    /// Whether a look is to be made, before anything is done that counts.
    #[inline]
    pub fn wants_look(&self, now: Time) -> bool {
        self.looks.back().is_none_or(|(time, _)| now.since(*time) >= EVERY)
    }

    /// Takes note of how everything stands at `now`, before anything is done that counts.
    pub fn look(&mut self, now: Time, snapshot: &Snapshot) {
        while self.looks.get(1).is_some_and(|(time, _)| now.since(*time) >= MINUTE) {
            self.looks.pop_front();
        }
        self.looks.push_back((now, snapshot.figures));
    }

    /// By how much everything has grown until `now`, when it stands so.
    pub fn growth(&self, now: Time, snapshot: &Snapshot) -> Growth {
        let old = self.looks.partition_point(|(time, _)| now.since(*time) >= MINUTE);
        let after = self.looks.get(old).map_or(snapshot.figures, |&(_, figures)| figures);
        let (span, figures) = match old.checked_sub(1).and_then(|before| self.looks.get(before)) {
            None => (now.since(self.begun).min(MINUTE), after),
            // Nothing was done between then and the next look, or there had been one.
            Some((time, _)) if now.since(*time + EVERY) >= MINUTE => (MINUTE, after),
            Some(&(time, figures)) => (now.since(time), figures),
        };
        Growth {
            millis: Duration::from(span).as_millis() as u64, // of days at most
            by: snapshot.counters_since(&figures),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Time = Time::from_ticks(u32::MAX - 1_000);

    fn at(seconds: u32) -> Time {
        START + Span::from_secs(seconds)
    }

    /// A daemon that has something to do at these seconds, and counts one more each time, after it has looked. What has
    /// it counted in the last minute, and in how many milliseconds was that?
    fn grown(busy: impl IntoIterator<Item = u32>, asked: u32) -> (u64, u64) {
        let mut minute = LastMinute::new(START);
        let mut snapshot = Snapshot::default();
        let closed = place("closed").unwrap();
        for second in busy.into_iter().chain([asked]) {
            if minute.wants_look(at(second)) {
                minute.look(at(second), &snapshot);
            }
            assert!(minute.looks.len() <= 17, "{}", minute.looks.len());
            snapshot.figures[closed] += u64::from(second != asked);
        }
        let growth = minute.growth(at(asked), &snapshot);
        (growth.by[closed], growth.millis)
    }

    #[test]
    fn what_is_steady_is_counted_for_a_minute_and_a_little_more() {
        for asked in 61..400 {
            let (counted, millis) = grown(0..asked, asked);
            assert!((60_000..64_000).contains(&millis), "{millis}");
            assert_eq!(counted, millis / 1_000, "at {asked}");
        }
    }

    #[test]
    fn before_a_minute_is_over_it_is_what_there_was() {
        assert_eq!(grown([], 0), (0, 0));
        assert_eq!(grown(0..10, 10), (10, 10_000));
        assert_eq!(grown([30, 31, 32], 33), (3, 33_000), "nothing was done before the first look");
        assert_eq!(grown([100, 101, 102], 110), (3, 60_000));
    }

    #[test]
    fn while_nothing_is_done_nothing_is_looked_at_and_nothing_was_missed() {
        // The last look before the pause was made in second 8; in 9 and 10 more was counted.
        assert_eq!(grown(0..=10, 75), (0, 60_000), "all of it is longer ago");
        assert_eq!(grown((0..=10).chain([1_000]), 1_010), (1, 60_000));
        assert_eq!(grown((0..=10).chain([1_000]), 1_059), (1, 60_000));
        assert_eq!(grown((0..=10).chain([1_000]), 1_061), (1, 61_000), "some time before the minute began");
        assert_eq!(grown((0..=10).chain([1_000]), 1_065), (0, 60_000));
        assert_eq!(grown((0..=10).chain([1_000]), 100_000), (0, 60_000));
    }
}
