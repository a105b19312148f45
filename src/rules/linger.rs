// SPDX-License-Identifier: BSD-3-Clause

//! The rules of lingering: one connection's state machine.
//!
//! They are those of RFC 9112 section 9.6: half-close, and go on reading until the peer closes or is
//! reasonably certain to have received the response. Certain is what its TCP acknowledges:
//!
//! - Until the peer has acknowledged everything, our FIN too, only [`Rules::limit`] ends a
//!   connection. A reader that has stalled is not gone: it answers zero-window probes for as long as
//!   it likes, and may read on at any time (RFC 9293 section 3.8.6.1). One byte from it after a close
//!   would destroy what it has not read yet.
//! - From then on the peer's system has it all. What it may not have is the peer's program, so that
//!   closing waits until it has been silent for [`Rules::idle`].
//!
//! Whether everything is acknowledged is asked at the hand-off and then when a deadline is due, so
//! that a connection costs nothing between its deadlines: soon once more, as it commonly is but for
//! the time that our FIN takes, and then each [`Rules::idle`].
//!
//! ```text
//!            hand-off
//!               |  asked at once
//!               v
//!   no   +-------------+   yes, or the system cannot tell
//!  +-----|     New     |-------------------------------------------+
//!  |     +-------------+                                           |
//!  |     +-------------+   asked again a quarter of `idle` later   |
//!  +---->|    Asked    |---------------------------------------- yes
//!        +-------------+                                           |
//!               | no                                               |
//!               v                                                  v
//!        +-------------+   asked again each `idle`          +--------------+
//!        |   UnderWay  |-------------------------------- yes|  HasItAll    |
//!        +-------------+                                    +--------------+
//!               |                                                  | silent for `idle`: Idle
//!               |                                                  | sends for `max`: Max
//!               +-----------------+--------------------------------+
//!                                 | `limit`, or what its sender gives it, after the hand-off: Limit
//!                                 | end of stream at any time: Closed; an error: Reset
//!                                 v
//!                               closed
//! ```

use super::event::{Action, Event, Reason};
use super::time::{Span, Time};
use std::num::NonZeroU16;
use std::time::Duration;

/// How long a connection may linger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// -t: after everything was acknowledged, without a byte received.
    pub idle: Span,
    /// -T: after everything was acknowledged, while the client keeps sending.
    pub max: Span,
    /// -D: after the hand-off, whatever happens; sooner where its sender has said so.
    pub limit: Span,
}

impl Rules {
    /// How long after the hand-off to ask again whether all is acknowledged: for most clients -t and
    /// -T are kept to so much.
    fn ask_soon(&self) -> Span {
        self.ask_later().quarter()
    }

    /// How long after that to ask each time: for slow ones -t and -T are kept to so much.
    fn ask_later(&self) -> Span {
        self.idle.min(self.max)
    }
}

/// What is known of whether the client's system has everything, our FIN too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nobody has asked yet.
    New,
    /// It had not when asked at the hand-off, as most have not: the FIN takes its time.
    Asked,
    /// Nor when asked again: the response is under way.
    UnderWay,
    /// It has, or the system cannot tell, so that silence is all there is to go by.
    HasItAll,
    /// It is not even written, see [`super::spool`]: `asked` is when it is to be looked at.
    Spooling,
    /// It is kept alive, see [`super::park`]: `asked` as above.
    Parked,
    /// So it was, and has something to say: it waits for a worker.
    Returning,
}

/// One lingering connection: facts only, from which [`Rules`] make deadlines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linger {
    /// When it was handed over.
    pub handed_over: Time,
    /// When it was asked last whether the client has everything; once it has, when that was noticed.
    pub asked: Time,
    /// When something was received last.
    pub heard: Time,
    /// What the answer was.
    pub stage: Stage,
    /// How many seconds its sender gives it, if it has said so: it is not to be kept for longer.
    pub given: Option<NonZeroU16>,
}

impl Linger {
    /// A connection handed over at `now`. Read once and feed it the outcome next: the client's end
    /// of stream is often there already.
    pub const fn new(now: Time) -> Self {
        Linger { handed_over: now, asked: now, heard: now, stage: Stage::New, given: None }
    }

    /// Whether the response is known to be under way, and the connection is not just new: soon after
    /// the hand-off the FIN of most has not been acknowledged yet.
    pub fn is_under_way(&self) -> bool {
        self.stage == Stage::UnderWay
    }

    /// Whether everything is acknowledged, as far as one can tell.
    pub fn has_it_all(&self) -> bool {
        self.stage == Stage::HasItAll
    }

    /// Whether the response is still to be written.
    pub fn is_spooling(&self) -> bool {
        self.stage == Stage::Spooling
    }

    /// Whether it is parked, or waits for a worker since.
    pub fn is_parked(&self) -> bool {
        matches!(self.stage, Stage::Parked | Stage::Returning)
    }

    /// One that does not linger yet: it is in that stage, and to be looked at `due`.
    pub const fn not_yet(stage: Stage, now: Time, due: Time) -> Self {
        Linger { handed_over: now, asked: due, heard: now, stage, given: None }
    }

    /// How long after `now` it ends if nothing happens, in 1/64 s; less than nothing if it is
    /// late. Of two connections the one with everything acknowledged is commonly the one that ends
    /// first.
    pub fn left(&self, now: Time, rules: &Rules) -> i64 {
        self.end(now, rules).0
    }

    /// When it wants to be looked at next: when it ends, or may have to be asked again.
    pub fn due(&self, now: Time, rules: &Rules) -> Time {
        if self.is_spooling() || self.is_parked() {
            return self.asked;
        }
        let left = self.left(now, rules).min(self.until_asked(now, rules));
        // Both terms are differences of points of which none is older than a Time can tell.
        Time::from_ticks(now.ticks().wrapping_add(left as u32))
    }

    /// Takes in what happened at `now` and says what to do next.
    ///
    /// What the client did comes before what the clock says: at a deadline the socket is read
    /// once more, and an end of stream found there makes the connection `closed`, not `idle`.
    /// `now` may leap by any step forward; one that goes back moves no deadline back.
    #[inline]
    pub fn on(&mut self, event: Event, now: Time, rules: &Rules) -> Action {
        match event {
            Event::Readable | Event::Due => Action::Read,
            Event::Received => {
                self.heard = self.heard + now.since(self.heard);
                Action::Read
            }
            Event::End => Action::Close(Reason::Closed),
            Event::Failed => Action::Close(Reason::Reset),
            Event::Quiet if self.until_asked(now, rules) <= 0 => Action::Ask,
            Event::Quiet => self.verdict(now, rules),
            Event::Acknowledged(answer) => {
                self.asked = now;
                self.stage = match (answer, self.stage) {
                    (Some(true) | None, _) => Stage::HasItAll,
                    (Some(false), Stage::New) => Stage::Asked,
                    (Some(false), _) => Stage::UnderWay,
                };
                self.verdict(now, rules)
            }
        }
    }

    fn verdict(&self, now: Time, rules: &Rules) -> Action {
        match self.end(now, rules) {
            (left, reason) if left <= 0 => Action::Close(reason),
            _ => Action::Wait(self.due(now, rules)),
        }
    }

    /// How long after `now` it ends if nothing happens, and why: the deadline that falls first gives
    /// the reason; of two at the same time the sterner one.
    fn end(&self, now: Time, rules: &Rules) -> (i64, Reason) {
        if self.is_spooling() || self.is_parked() {
            return (i64::MAX, Reason::Limit); // it is not here that this is decided
        }
        let given = |seconds: NonZeroU16| Span::at_least(Duration::from_secs(seconds.get().into()));
        let given = self.given.map_or(rules.limit, given);
        let limit = (left(self.handed_over, rules.limit.min(given), now), Reason::Limit);
        if !self.has_it_all() {
            return limit;
        }
        let max = (left(self.asked, rules.max, now), Reason::Max);
        // Silence counts from the later of the two.
        let silent = left(self.asked, rules.idle, now).max(left(self.heard, rules.idle, now));
        let sterner = |one: (i64, Reason), other: (i64, Reason)| if other.0 < one.0 { other } else { one };
        sterner(sterner(limit, max), (silent, Reason::Idle))
    }

    /// How long after `now` to ask whether everything is acknowledged.
    fn until_asked(&self, now: Time, rules: &Rules) -> i64 {
        match self.stage {
            Stage::New => 0,
            Stage::Asked => left(self.asked, rules.ask_soon(), now),
            Stage::UnderWay => left(self.asked, rules.ask_later(), now),
            Stage::HasItAll | Stage::Spooling | Stage::Parked | Stage::Returning => i64::MAX,
        }
    }
}

/// What is left at `now` of `span`, which began at `start`.
fn left(start: Time, span: Span, now: Time) -> i64 {
    i64::from(span.ticks()) - now.ticks_since(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules {
        idle: Span::from_ticks(5_000),
        max: Span::from_ticks(30_000),
        limit: Span::from_ticks(300_000),
    };

    fn at(ticks: u32) -> Time {
        Time::from_ticks(ticks)
    }

    /// What one visit to a connection finds: bytes, end, error, and whether all is acknowledged.
    #[derive(Clone, Copy)]
    struct World {
        reads: &'static [Event],
        acknowledged: Option<bool>,
    }

    const SILENT: World = World { reads: &[], acknowledged: Some(true) };
    const IN_FLIGHT: World = World { acknowledged: Some(false), ..SILENT };

    fn reads(reads: &'static [Event]) -> World {
        World { reads, ..SILENT }
    }

    /// All is acknowledged at `when`.
    fn acknowledged_at(when: u32) -> impl Fn(u32) -> World {
        move |now| if now < when { IN_FLIGHT } else { SILENT }
    }

    fn every_second() -> Vec<u32> {
        (1..1_000).map(|n| n * 1_000).collect()
    }

    /// Visits a connection as the daemon does and returns the verdict.
    fn visit(linger: &mut Linger, event: Event, now: u32, world: World) -> Action {
        let mut reads = world.reads.iter();
        let mut event = event;
        for _ in 0..100 {
            event = match linger.on(event, at(now), &RULES) {
                Action::Read => *reads.next().unwrap_or(&Event::Quiet),
                Action::Ask => Event::Acknowledged(world.acknowledged),
                verdict => return verdict,
            };
        }
        panic!("no verdict in 100 steps");
    }

    fn handed_over(now: u32, world: World) -> (Linger, Action) {
        let mut linger = Linger::new(at(now));
        let action = visit(&mut linger, Event::Readable, now, world);
        (linger, action)
    }

    /// Lets a connection live with the visits that it asks for itself, up to `end`.
    fn live(world: impl Fn(u32) -> World, arrivals: &[u32], end: u32) -> (u32, Action) {
        let (mut linger, mut action) = handed_over(0, world(0));
        let mut arrivals = arrivals.iter().copied().peekable();
        let mut last = 0;
        loop {
            let Action::Wait(due) = action else { return (last, action) };
            let due = due.ticks();
            assert!(due > last, "a wait until {due} at {last} would spin");
            let now = match arrivals.peek() {
                Some(&arrival) if arrival <= due => {
                    arrivals.next();
                    action = visit(
                        &mut linger,
                        Event::Readable,
                        arrival,
                        World { reads: &[Event::Received], ..world(arrival) },
                    );
                    arrival
                }
                _ => {
                    action = visit(&mut linger, Event::Due, due, world(due));
                    due
                }
            };
            last = now;
            if now >= end {
                return (now, action);
            }
        }
    }

    #[test]
    fn what_the_client_did_decides_first() {
        use Event::{End, Failed, Received};
        for (found, reason) in [
            (&[End][..], Reason::Closed),
            (&[Received, Received, End], Reason::Closed),
            (&[Failed], Reason::Reset),
            (&[Received, Failed], Reason::Reset),
        ] {
            // At hand-off, at a plain event, and at a moment when every deadline is long over.
            assert_eq!(handed_over(7, reads(found)).1, Action::Close(reason), "{found:?}");
            for (event, now) in [(Event::Readable, 8), (Event::Due, 8), (Event::Due, 10_000_000)] {
                let (mut linger, action) = handed_over(7, SILENT);
                assert_eq!(action, Action::Wait(at(5_007)));
                assert_eq!(visit(&mut linger, event, now, reads(found)), Action::Close(reason), "{found:?}");
            }
        }
    }

    #[test]
    fn silence_is_idle_to_the_tick() {
        let (mut linger, _) = handed_over(0, SILENT);
        assert_eq!(visit(&mut linger, Event::Due, 4_999, SILENT), Action::Wait(at(5_000)));
        assert_eq!(visit(&mut linger, Event::Due, 5_000, SILENT), Action::Close(Reason::Idle));
    }

    #[test]
    fn bytes_received_are_progress() {
        assert_eq!(live(|_| SILENT, &[3_000, 7_999], 1_000_000), (12_999, Action::Close(Reason::Idle)));
    }

    #[test]
    fn bytes_at_the_deadline_come_before_it() {
        let (mut linger, _) = handed_over(0, SILENT);
        let action = visit(&mut linger, Event::Due, 5_000, reads(&[Event::Received]));
        assert_eq!(action, Action::Wait(at(10_000)));
    }

    #[test]
    fn what_is_in_flight_is_never_idle() {
        // A reader that stalls for 200 s, and then reads on.
        let (ended, action) = live(acknowledged_at(200_000), &[], 1_000_000);
        assert_eq!(action, Action::Close(Reason::Idle));
        assert!((205_000..=210_000).contains(&ended), "{ended}");
        // One that never does.
        assert_eq!(live(|_| IN_FLIGHT, &[], 1_000_000), (300_000, Action::Close(Reason::Limit)));
    }

    #[test]
    fn silence_counts_from_when_the_acknowledgement_is_noticed() {
        // The FIN is commonly still in flight at the hand-off, and acknowledged soon.
        for (when, noticed) in
            [(0, 0), (1, 1_250), (1_250, 1_250), (1_251, 6_250), (6_250, 6_250), (6_251, 11_250)]
        {
            let end = (noticed + 5_000, Action::Close(Reason::Idle));
            assert_eq!(live(acknowledged_at(when), &[], 1_000_000), end, "{when}");
        }
    }

    #[test]
    fn a_client_that_keeps_sending_ends_at_max_once_all_is_acknowledged() {
        assert_eq!(live(|_| SILENT, &every_second(), 1_000_000), (30_000, Action::Close(Reason::Max)));
        // All acknowledged at 60 s, noticed when asked next.
        let (ended, action) = live(acknowledged_at(60_000), &every_second(), 1_000_000);
        assert_eq!(action, Action::Close(Reason::Max));
        assert!((90_000..=90_000 + 5_000).contains(&ended), "{ended}");
    }

    #[test]
    fn the_kernel_is_not_asked_between_deadlines_nor_once_all_is_acknowledged() {
        for (world, asked) in [(SILENT, 1), (IN_FLIGHT, 3)] {
            let mut linger = Linger::new(at(0));
            let mut questions = 0;
            for now in 0..10_000 {
                // A client that sends a byte each millisecond.
                let mut event = Event::Received;
                loop {
                    event = match linger.on(event, at(now), &RULES) {
                        Action::Read => Event::Quiet,
                        Action::Ask => {
                            questions += 1;
                            Event::Acknowledged(world.acknowledged)
                        }
                        Action::Wait(_) => break,
                        Action::Close(reason) => panic!("{reason:?} at {now}"),
                    };
                }
            }
            assert_eq!(questions, asked);
        }
    }

    #[test]
    fn limit_ends_it_whatever_happens() {
        for arrivals in [&every_second()[..], &[]] {
            assert_eq!(live(|_| IN_FLIGHT, arrivals, 1_000_000), (300_000, Action::Close(Reason::Limit)));
        }
    }

    #[test]
    fn what_its_sender_gives_it_ends_it_unless_anything_else_does_before() {
        let ends = |given: u16, world: World, event: &'static [Event]| {
            let mut linger = Linger { given: NonZeroU16::new(given), ..Linger::new(at(0)) };
            let mut action = visit(&mut linger, Event::Readable, 0, World { reads: &[], ..world });
            while let Action::Wait(due) = action {
                action = visit(&mut linger, Event::Due, due.ticks(), World { reads: event, ..world });
                if action == Action::Wait(due) {
                    panic!("it would spin at {due:?}");
                }
                if let Action::Close(reason) = action {
                    return (due.ticks(), reason);
                }
            }
            panic!("{action:?}")
        };
        // In 1/64 s: two seconds and a little more, and so many that -t, -T or -D come first.
        for world in [SILENT, IN_FLIGHT] {
            for event in [&[][..], &[Event::Received]] {
                assert_eq!(ends(2, world, event), (129, Reason::Limit));
            }
        }
        assert_eq!(ends(1_000, SILENT, &[]), (5_000, Reason::Idle));
        assert_eq!(ends(1_000, SILENT, &[Event::Received]), (30_000, Reason::Max));
        assert_eq!(ends(u16::MAX, IN_FLIGHT, &[]), (300_000, Reason::Limit));
        assert_eq!(ends(2, SILENT, &[Event::End]), (129, Reason::Closed), "what the client did comes first");
    }

    #[test]
    fn where_nothing_can_be_asked_the_plain_timers_hold() {
        let blind = |_| World { acknowledged: None, ..SILENT };
        assert_eq!(live(blind, &[], 1_000_000), (5_000, Action::Close(Reason::Idle)));
        assert_eq!(live(blind, &every_second(), 1_000_000), (30_000, Action::Close(Reason::Max)));
    }

    #[test]
    fn of_deadlines_passed_in_one_step_the_first_gives_the_reason() {
        // The clock leaps a year: idle was due first.
        let (mut linger, _) = handed_over(0, SILENT);
        assert_eq!(
            visit(&mut linger, Event::Due, Span::LONGEST.ticks(), SILENT),
            Action::Close(Reason::Idle)
        );
        // Kept busy until shortly before max, then a jump: max was due first.
        let (mut linger, _) = handed_over(0, SILENT);
        visit(&mut linger, Event::Readable, 29_000, reads(&[Event::Received]));
        assert_eq!(visit(&mut linger, Event::Due, 900_000, SILENT), Action::Close(Reason::Max));
        // Kept busy, never acknowledged, until shortly before the limit.
        let (mut linger, _) = handed_over(0, IN_FLIGHT);
        visit(&mut linger, Event::Readable, 298_000, World { reads: &[Event::Received], ..IN_FLIGHT });
        assert_eq!(visit(&mut linger, Event::Due, 900_000, IN_FLIGHT), Action::Close(Reason::Limit));
    }

    #[test]
    fn of_equal_deadlines_the_sterner_gives_the_reason() {
        for (idle, max, limit, reason) in
            [(9, 9, 9, Reason::Limit), (9, 9, 10, Reason::Max), (9, 10, 9, Reason::Limit)]
        {
            let rules = Rules {
                idle: Span::from_ticks(idle),
                max: Span::from_ticks(max),
                limit: Span::from_ticks(limit),
            };
            let mut linger = Linger::new(at(0));
            linger.on(Event::Acknowledged(Some(true)), at(0), &rules);
            assert_eq!(linger.on(Event::Quiet, at(9), &rules), Action::Close(reason));
        }
    }

    #[test]
    fn a_clock_that_goes_back_ends_nothing_and_extends_nothing() {
        let (mut linger, action) = handed_over(100_000, SILENT);
        assert_eq!(action, Action::Wait(at(105_000)));
        for now in [99_999, 1, 0] {
            let byte = reads(&[Event::Received]);
            assert_eq!(visit(&mut linger, Event::Readable, now, byte), Action::Wait(at(105_000)));
            assert_eq!(visit(&mut linger, Event::Due, now, SILENT), Action::Wait(at(105_000)));
        }
        assert_eq!(visit(&mut linger, Event::Due, 105_000, SILENT), Action::Close(Reason::Idle));
    }

    #[test]
    fn the_count_of_time_may_start_over_at_any_moment() {
        for offset in [0, 1, 1_251, 4_999, 5_000, 29_999, 299_999, u32::MAX / 2] {
            let start = at(0u32.wrapping_sub(offset));
            let mut linger = Linger::new(start);
            linger.on(Event::Acknowledged(Some(false)), start, &RULES);
            assert_eq!(linger.due(start, &RULES), start + Span::from_ticks(1_250));
            linger.on(Event::Acknowledged(Some(true)), start + Span::from_ticks(1_250), &RULES);
            for passed in [1_250, 2_000, 6_249] {
                let now = start + Span::from_ticks(passed);
                let due = Action::Wait(start + Span::from_ticks(6_250));
                assert_eq!(linger.on(Event::Quiet, now, &RULES), due, "{offset}");
            }
            let now = start + Span::from_ticks(6_250);
            assert_eq!(linger.on(Event::Quiet, now, &RULES), Action::Close(Reason::Idle));
        }
    }

    #[test]
    fn who_is_looked_at_as_late_as_can_be_is_late() {
        let rules = Rules { idle: Span::LONGEST, max: Span::LONGEST, limit: Span::LONGEST };
        for answer in [Some(true), Some(false)] {
            let mut linger = Linger::new(at(9));
            linger.on(Event::Acknowledged(answer), at(9), &rules);
            linger.asked = at(9); // whatever it was asked before
            let action = linger.on(Event::Acknowledged(answer), at(9) + Span::OLDEST, &rules);
            assert_eq!(action, Action::Close(Reason::Limit));
        }
    }

    #[test]
    fn what_it_waits_for_is_when_it_is_due() {
        let mut linger = Linger::new(at(0));
        for now in (0..60_000).step_by(250) {
            let world = if now < 30_000 { IN_FLIGHT } else { SILENT };
            let event = if now % 750 == 0 { Event::Readable } else { Event::Due };
            let found = if now % 1_000 == 0 { &[Event::Received][..] } else { &[] };
            match visit(&mut linger, event, now, World { reads: found, ..world }) {
                Action::Wait(due) => assert_eq!(due, linger.due(at(now), &RULES)),
                Action::Close(reason) => return assert_eq!((reason, now), (Reason::Max, 60_000)),
                _ => unreachable!("a visit ends with a verdict"),
            }
        }
    }

    #[test]
    fn the_shortest_of_times_are_no_spin() {
        let tick = Span::from_ticks(1);
        let rules = Rules { idle: tick, max: tick, limit: Span::from_ticks(100) };
        let mut linger = Linger::new(at(0));
        for now in 0..100 {
            let Action::Ask = linger.on(Event::Quiet, at(now), &rules) else { panic!("not due at {now}") };
            let next = linger.on(Event::Acknowledged(Some(false)), at(now), &rules);
            assert_eq!(next, Action::Wait(at(now + 1)));
        }
        linger.on(Event::Quiet, at(100), &rules);
        let end = linger.on(Event::Acknowledged(Some(false)), at(100), &rules);
        assert_eq!(end, Action::Close(Reason::Limit));
    }

    /// Whatever happens in whatever order: no panic, no wait that ends before it begins, and an
    /// end at the latest when the limit is looked at.
    #[test]
    fn any_sequence_of_events_keeps_the_promises() {
        support::fuzz::any(2_000, |random| {
            let mut linger = Linger::new(at(1_000));
            let mut now = 1_000;
            for _ in 0..200 {
                let event = match random.u8(..8) {
                    0 => Event::Readable,
                    1 => Event::Due,
                    2 => Event::Received,
                    3 => Event::Acknowledged(Some(false)),
                    4 => Event::Acknowledged(*random.choice(&[Some(true), None]).unwrap_or(&None)),
                    _ => Event::Quiet,
                };
                match linger.on(event, at(now), &RULES) {
                    Action::Wait(until) => {
                        assert!(until.since(at(now)) > Span::from_ticks(0), "{until:?} at {now}")
                    }
                    Action::Close(_) => break,
                    Action::Read | Action::Ask => {}
                }
                now += random.u32(..3_000);
            }
            let end = visit(&mut linger, Event::Due, 301_000, IN_FLIGHT);
            assert!(matches!(end, Action::Close(_)), "{end:?}");
        });
    }
}
