// SPDX-License-Identifier: BSD-3-Clause

//! The time of a turn: read once after each wait, never going back, whatever the clock does.
//!
//! Must not know what it is used for.

use crate::rules::time::{Span, Time};
use lingerd_platform::clock::Clock;
use std::time::Duration;

/// A clock that is looked at now and then.
pub struct TurnClock<C> {
    clock: C,
    /// What the clock said at first.
    started: Duration,
    /// How long others have served before.
    before: Duration,
    /// What it said when it was looked at last.
    seen: Duration,
    /// What has passed by then: a step back of the clock is no time, a leap is a year at most, so that
    /// nothing that is remembered gets older than [`Span::OLDEST`].
    passed: Duration,
    /// The same, as it is asked for again and again.
    now: Time,
}

impl<C: Clock> TurnClock<C> {
    /// Begins to count.
    pub fn new(clock: C) -> Self {
        let seen = clock.now();
        TurnClock { clock, started: seen, before: Duration::ZERO, seen, passed: seen, now: Time::after(seen) }
    }

    /// Lets a moment pass, see [`Clock::pause`].
    pub fn pause(&self) {
        self.clock.pause();
    }

    /// The time of this turn.
    pub fn now(&self) -> Time {
        self.now
    }

    /// The clock itself.
    pub fn clock(&self) -> &C {
        &self.clock
    }

    /// Counts the time too that others have served before.
    pub fn count_on(&mut self, before: Duration) {
        self.before = before;
    }

    /// How long ago it began to count.
    pub fn uptime(&self) -> Duration {
        self.clock.now().saturating_sub(self.started).saturating_add(self.before)
    }

    /// Begins a turn.
    pub fn turn(&mut self) {
        let seen = self.clock.now();
        (self.seen, self.passed) = (seen, self.passed + self.step(seen));
        self.now = Time::after(self.passed);
    }

    /// How long to wait until `then`: never too short, as points in time are cut off and a wait that
    /// ends early would be made again at once.
    pub fn until(&self, then: Time) -> Duration {
        let tick = Duration::from(Span::from_ticks(1)).as_nanos() as u32; // 1/64 s
        let begun = Duration::from_nanos((self.passed.subsec_nanos() % tick).into());
        // Counted from the turn's beginning, as it may be long past by now, and then looks like one to come.
        Duration::from(then.since(self.now)).saturating_sub(begun + self.step(self.clock.now()))
    }

    fn step(&self, seen: Duration) -> Duration {
        seen.saturating_sub(self.seen).min(Span::LONGEST.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    struct Told(Cell<Duration>);

    impl Clock for Told {
        fn now(&self) -> Duration {
            self.0.get()
        }

        fn pause(&self) {}

        fn sleep(&self, time: Duration) {
            self.0.set(self.0.get() + time);
        }
    }

    fn clock_at(now: Duration) -> TurnClock<Told> {
        TurnClock::new(Told(Cell::new(now)))
    }

    #[test]
    fn a_clock_that_goes_back_makes_no_time_and_goes_on_from_there() {
        let mut clock = clock_at(Duration::from_secs(100));
        for (says, counts) in [(101, 1), (50, 1), (50, 1), (52, 3), (53, 4)] {
            clock.clock.0.set(Duration::from_secs(says));
            clock.turn();
            assert_eq!(clock.now(), Time::after(Duration::from_secs(100 + counts)), "{says}");
        }
    }

    #[test]
    fn a_clock_that_leaps_makes_a_year_at_most() {
        let mut clock = clock_at(Duration::ZERO);
        clock.clock.0.set(Duration::from_secs(100 * 365 * 86_400));
        clock.turn();
        assert_eq!(clock.passed, Duration::from(Span::LONGEST));
        assert_eq!(clock.now(), Time::from_ticks(0) + Span::LONGEST);
    }

    #[test]
    fn a_leap_between_two_looks_ends_the_wait() {
        let clock = clock_at(Duration::from_secs(100));
        for days in [1, 46, 47, 365, 1_000] {
            clock.clock.0.set(Duration::from_secs(101 + days * 86_400));
            assert_eq!(clock.until(Time::after(Duration::from_secs(101))), Duration::ZERO, "{days} days");
        }
    }

    #[test]
    fn a_wait_is_never_too_short() {
        let now = Duration::from_nanos(15_625_000 * 3 + 1_000);
        let clock = clock_at(now);
        for ticks in [0, 2, 3] {
            assert_eq!(clock.until(Time::from_ticks(ticks)), Duration::ZERO);
        }
        for ticks in [4, 5, 1_000] {
            let until = clock.until(Time::from_ticks(ticks));
            assert_eq!(Time::after(now + until), Time::from_ticks(ticks));
            assert_eq!(Time::after(now + until - Duration::from_nanos(1)), Time::from_ticks(ticks - 1));
        }
    }
}
