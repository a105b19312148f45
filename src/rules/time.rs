// SPDX-License-Identifier: BSD-3-Clause

//! Points in time, and spans between them, in 1/64 s: small enough to be kept by the million.
//!
//! A point is kept modulo 2^32, which is 776 days, and means something only beside another one.
//! So a daemon may run for as long as it likes, if only nothing that it remembers is older than
//! [`Span::OLDEST`]; whoever has the clock sees to that. Must not know of clocks.

use std::ops::{Add, Sub};
use std::time::Duration;

/// 1/64 s a second.
const RATE: u32 = 64;

/// A point in time, in 1/64 s since a fixed moment, modulo 2^32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(u32);

impl Time {
    /// The point that is so many 1/64 s after the fixed moment.
    pub const fn from_ticks(ticks: u32) -> Self {
        Time(ticks)
    }

    /// In 1/64 s, modulo 2^32.
    pub const fn ticks(self) -> u32 {
        self.0
    }

    /// The point that was reached `elapsed` after the fixed moment: a fraction is cut off.
    pub fn after(elapsed: Duration) -> Self {
        let whole = elapsed.as_secs().wrapping_mul(RATE.into()) as u32; // modulo 2^32
        Time(whole.wrapping_add(elapsed.subsec_nanos() / (1_000_000_000 / RATE)))
    }

    /// What has passed at this point since `earlier`. Nothing, if that is in fact later.
    pub const fn since(self, earlier: Time) -> Span {
        let passed = self.ticks_since(earlier);
        Span(if passed > 0 { passed as u32 } else { 0 })
    }

    /// How many 1/64 s lie between `other` and this point; less than none if this is the earlier one.
    /// Of what is to come that holds for 46 days; see [`since`](Self::since) for what is further off.
    pub const fn ticks_since(self, other: Time) -> i64 {
        let passed = self.0.wrapping_sub(other.0);
        let overflow = if passed <= Span::OLDEST.0 { 0 } else { 1 << 32 };
        passed as i64 - overflow
    }
}

/// The one of two points, if there are any, that comes first after `now`; what is past has come.
pub fn first(one: Option<Time>, other: Option<Time>, now: Time) -> Option<Time> {
    match (one, other) {
        (Some(a), Some(b)) => Some(if a.since(now) <= b.since(now) { a } else { b }),
        (one, other) => one.or(other),
    }
}

impl Add<Span> for Time {
    type Output = Time;

    fn add(self, span: Span) -> Time {
        Time(self.0.wrapping_add(span.0))
    }
}

impl Sub<Span> for Time {
    type Output = Time;

    fn sub(self, span: Span) -> Time {
        Time(self.0.wrapping_sub(span.0))
    }
}

/// A span of time, in 1/64 s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(u32);

impl Span {
    /// The longest that anything is told to take: a year.
    pub const LONGEST: Span = Span(365 * 86_400 * RATE);

    /// The most that can lie between two points: twice [`LONGEST`](Self::LONGEST), so that who is
    /// looked at that late is found to be late.
    pub const OLDEST: Span = Span(2 * Span::LONGEST.0);

    /// So many 1/64 s.
    pub const fn from_ticks(ticks: u32) -> Self {
        Span(ticks)
    }

    /// So many seconds; [`LONGEST`](Self::LONGEST) at most.
    pub const fn from_secs(seconds: u32) -> Self {
        if seconds < Span::LONGEST.0 / RATE { Span(seconds * RATE) } else { Span::LONGEST }
    }

    /// `duration` and a little more, so that nothing ends early by it: the points that it lies between
    /// are cut off. [`LONGEST`](Self::LONGEST) at most.
    pub fn at_least(duration: Duration) -> Self {
        let ticks = (duration.as_nanos() * u128::from(RATE)).div_ceil(1_000_000_000) + 1;
        Span(u32::try_from(ticks).map_or(Span::LONGEST.0, |ticks| ticks.min(Span::LONGEST.0)))
    }

    /// The one that is nearest to `duration`: what a span was before it was told in milliseconds.
    /// [`LONGEST`](Self::LONGEST) at most.
    pub fn nearest(duration: Duration) -> Self {
        let ticks = (duration.as_nanos() * u128::from(RATE) + 500_000_000) / 1_000_000_000;
        Span(u32::try_from(ticks).map_or(Span::LONGEST.0, |ticks| ticks.min(Span::LONGEST.0)))
    }

    /// In 1/64 s.
    pub const fn ticks(self) -> u32 {
        self.0
    }

    /// Nine tenths of it: what may be waited where all has to be done by its end.
    pub const fn most(self) -> Self {
        Span(self.0 - self.0.div_ceil(10))
    }

    /// A quarter of it, but not nothing.
    pub(super) const fn quarter(self) -> Self {
        Span(if self.0 < 8 { 1 } else { self.0 / 4 })
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Duration {
        Duration::from_nanos(u64::from(span.0) * (1_000_000_000 / u64::from(RATE)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_of_a_span_leaves_a_tick_at_least() {
        for (ticks, most) in [(1, 0), (2, 1), (10, 9), (11, 9), (640, 576), (641, 576)] {
            assert_eq!(Span(ticks).most(), Span(most));
        }
    }

    #[test]
    fn a_span_is_rounded_up_and_a_point_down() {
        assert_eq!(Span::at_least(Duration::from_millis(1)), Span(2));
        assert_eq!(Span::at_least(Duration::from_secs(5)), Span(321));
        assert_eq!(Span::at_least(Duration::from_secs(5) + Duration::from_nanos(1)), Span(322));
        assert_eq!(Span::at_least(Duration::MAX), Span::LONGEST);
        assert_eq!(Span::from_secs(u32::MAX), Span::LONGEST);
        assert_eq!(Duration::from(Span(321)), Duration::from_nanos(5_015_625_000));
        assert_eq!(Time::after(Duration::from_nanos(15_624_999)), Time(0));
        assert_eq!(Time::after(Duration::from_nanos(15_625_000)), Time(1));
        assert_eq!(Time::after(Duration::from_nanos(999_999_999)), Time(63));
        assert_eq!(Time::after(Duration::from_secs(5)), Time(320));
    }

    #[test]
    fn nothing_ends_before_its_time_between_whichever_moments() {
        let nanos = [0, 1, 7_812_500, 15_624_999, 15_625_000, 15_625_001, 999_999_999];
        for duration in nanos.map(Duration::from_nanos) {
            for start in nanos.map(Duration::from_nanos) {
                let end = Time::after(start) + Span::at_least(duration);
                let too_early = (start + duration).saturating_sub(Duration::from_nanos(1));
                assert!(end.ticks_since(Time::after(too_early)) > 0, "{start:?} {duration:?}");
                let late = start + duration + Duration::from_millis(32);
                assert!(end.ticks_since(Time::after(late)) <= 0, "{start:?} {duration:?}");
            }
        }
    }

    #[test]
    fn the_count_starts_over_and_nothing_is_lost() {
        let wrap = Duration::from_secs((1 << 32) / u64::from(RATE));
        assert_eq!(Time::after(wrap), Time(0));
        let before = Time::after(wrap - Duration::from_secs(2));
        let after = before + Span::from_secs(5);
        assert_eq!(after, Time(3 * RATE));
        assert_eq!(after.since(before), Span::from_secs(5));
    }

    #[test]
    fn what_is_later_was_not_long_ago() {
        assert_eq!(Time(5).since(Time(6)), Span(0));
        assert_eq!(Time(5).since(Time(6 + 86_400 * RATE)), Span(0));
        assert_eq!(Time(5).ticks_since(Time(8)), -3);
        assert_eq!(Time(2).ticks_since(Time(u32::MAX)), 3);
        assert_eq!((Time(7) + Span::OLDEST).since(Time(7)), Span::OLDEST);
    }

    #[test]
    fn the_first_of_two_is_the_one_that_comes_first_however_far_off_they_are() {
        let now = Time(u32::MAX - 5);
        let [soon, far] = [Time(3), now + Span::LONGEST].map(Some);
        for (one, other, comes) in
            [(soon, far, soon), (far, soon, soon), (None, far, far), (soon, None, soon)]
        {
            assert_eq!(first(one, other, now), comes);
        }
        assert_eq!(first(None, None, now), None);
        assert_eq!(first(Some(now), Some(Time(u32::MAX - 9)), now).unwrap().since(now), Span(0));
    }

    #[test]
    fn a_quarter_is_not_nothing() {
        for (whole, quarter) in [(0, 1), (1, 1), (4, 1), (7, 1), (8, 2), (320, 80)] {
            assert_eq!(Span(whole).quarter(), Span(quarter));
        }
    }
}
