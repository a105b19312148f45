//! The rules of lingering: one connection's state machine, sans-IO.
//!
//! It is fed what happened and answers what to do next. It has no socket, no clock and no
//! allocation, and must not know of descriptors, backends or counters: every rule lives here, and
//! is tested as a table.
//!
//! The rules are those of RFC 9112 section 9.6: half-close, and go on reading until the peer closes
//! or is reasonably certain to have received the response. Certain is what its TCP acknowledges:
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

use std::ops::{Add, Sub};
use std::time::Duration;

/// A point in time, in milliseconds since some fixed moment of a monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(u64);

impl Time {
    /// Later than anything that happens.
    pub const NEVER: Time = Time(u64::MAX);

    /// The point `ms` milliseconds after the fixed moment.
    pub const fn from_millis(ms: u64) -> Self {
        Time(ms)
    }
}

impl Add<Duration> for Time {
    type Output = Time;

    fn add(self, duration: Duration) -> Time {
        Time(self.0.saturating_add(duration.as_millis().try_into().unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Time {
    type Output = Time;

    fn sub(self, duration: Duration) -> Time {
        Time(self.0.saturating_sub(duration.as_millis().try_into().unwrap_or(u64::MAX)))
    }
}

impl Sub for Time {
    type Output = Duration;

    /// Nothing, not a panic, if `earlier` is later.
    fn sub(self, earlier: Time) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// How long a connection may linger. Whole milliseconds, at least one each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// -t: after everything was acknowledged, without a byte received.
    pub idle: Duration,
    /// -T: after everything was acknowledged, while the client keeps sending.
    pub max: Duration,
    /// -D: after the hand-off, whatever happens.
    pub limit: Duration,
}

impl Rules {
    /// How long after the hand-off to ask again whether all is acknowledged: for most clients -t and
    /// -T are kept to so much.
    fn ask_soon(&self) -> Duration {
        (self.ask_later() / 4).max(Duration::from_millis(1))
    }

    /// How long after that to ask each time: for slow ones -t and -T are kept to so much.
    fn ask_later(&self) -> Duration {
        self.idle.min(self.max)
    }
}

/// Why a connection ended. The names are those of the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The client closed: end of stream read.
    Closed,
    /// The client reset it, or it was already gone at hand-off.
    Reset,
    /// Everything acknowledged, and nothing received for [`Rules::idle`].
    Idle,
    /// Everything acknowledged, the client keeps sending: [`Rules::max`] after that.
    Max,
    /// [`Rules::limit`] after hand-off, whatever happens.
    Limit,
    /// The table is full, and this one had had the most of its linger.
    Evicted,
    /// The daemon was told to stop twice.
    Stopped,
}

impl Reason {
    /// All of them, in the order of DESIGN's table and of the counters.
    pub const ALL: [Reason; 7] = [
        Reason::Closed,
        Reason::Reset,
        Reason::Idle,
        Reason::Max,
        Reason::Limit,
        Reason::Evicted,
        Reason::Stopped,
    ];

    /// Whether it was not the client that ended the connection. Then what it has not read yet, or
    /// what of it was not read, may be lost.
    pub const fn is_ours(self) -> bool {
        !matches!(self, Reason::Closed | Reason::Reset)
    }

    /// The counter's name.
    pub const fn name(self) -> &'static str {
        match self {
            Reason::Closed => "closed",
            Reason::Reset => "reset",
            Reason::Idle => "idle",
            Reason::Max => "max",
            Reason::Limit => "limit",
            Reason::Evicted => "evicted",
            Reason::Stopped => "stopped",
        }
    }
}

/// What happened to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The socket is readable, says the backend.
    Readable,
    /// A deadline is due, says the table.
    Due,
    /// Bytes were read and thrown away (at least one).
    Received,
    /// There is nothing more to read now, or this turn's budget is spent.
    Quiet,
    /// End of stream: the client has closed its side.
    End,
    /// Reading failed: the connection is gone.
    Failed,
    /// Whether everything is acknowledged, our FIN too; `None` where the system cannot tell.
    Acknowledged(Option<bool>),
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read and throw away, then feed [`Event::Received`], [`Event::Quiet`], [`Event::End`] or
    /// [`Event::Failed`].
    Read,
    /// Ask the kernel whether everything is acknowledged, then feed [`Event::Acknowledged`].
    Ask,
    /// Wait until the socket is readable or the time has come, whichever is first.
    Wait(Time),
    /// Close the connection and count it.
    Close(Reason),
}

/// One lingering connection.
#[derive(Clone, Copy, Debug)]
pub struct Linger {
    /// From when on to ask whether all is acknowledged; [`Time::NEVER`] once it is.
    ask: Time,
    /// How often it was not.
    asked: Asked,
    /// When it has been silent for too long; [`Time::NEVER`] until all is acknowledged.
    idle: Time,
    /// When a client that keeps sending has had enough; [`Time::NEVER`] until all is acknowledged.
    max: Time,
    /// When it ends, whatever happens.
    limit: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Never,
    Once,
    MoreOften,
}

impl Linger {
    /// A connection handed over at `now`. Read once and feed it the outcome next: the client's end
    /// of stream is often there already.
    pub fn new(now: Time, rules: &Rules) -> Self {
        let (idle, max) = (Time::NEVER, Time::NEVER);
        Linger { ask: now, asked: Asked::Never, idle, max, limit: now + rules.limit }
    }

    /// How many deadlines a connection has.
    pub const DEADLINES: usize = 5;

    /// Which of them is [`Rules::limit`]'s: the only one that always applies, and that is in the order
    /// of the hand-offs.
    pub const LIMIT: usize = 4;

    /// Its deadlines, [`Time::NEVER`] for one that does not apply; the earliest of them is what
    /// [`Action::Wait`] says. Each is set to a fixed time after the moment of its setting, so that
    /// connections in the order of their last setting are in the order of their deadlines.
    pub fn deadlines(&self) -> [Time; Self::DEADLINES] {
        let (soon, later) = match self.asked {
            Asked::MoreOften => (Time::NEVER, self.ask),
            Asked::Never | Asked::Once => (self.ask, Time::NEVER),
        };
        [soon, later, self.idle, self.max, self.limit]
    }

    /// Whether the response is known to be under way, and is not just new: soon after the hand-off the
    /// FIN of most has not been acknowledged yet.
    pub fn is_under_way(&self) -> bool {
        self.asked == Asked::MoreOften && self.ask != Time::NEVER
    }

    /// When it ends if nothing happens: unlike the least of [`deadlines`](Self::deadlines), never
    /// a time at which to ask. Of two connections the one with everything acknowledged is commonly
    /// the one that ends first.
    pub fn end(&self) -> Time {
        self.idle.min(self.max).min(self.limit)
    }

    /// When it was handed over.
    pub fn since(&self, rules: &Rules) -> Time {
        self.limit - rules.limit
    }

    /// Takes in what happened at `now` and says what to do next.
    ///
    /// What the client did comes before what the clock says: at a deadline the socket is read
    /// once more, and an end of stream found there makes the connection `closed`, not `idle`.
    /// `now` may jump by any step; one that goes back moves no deadline back.
    pub fn on(&mut self, event: Event, now: Time, rules: &Rules) -> Action {
        match event {
            Event::Readable | Event::Due => Action::Read,
            Event::Received => {
                self.idle = self.idle.max(now + rules.idle);
                Action::Read
            }
            Event::End => Action::Close(Reason::Closed),
            Event::Failed => Action::Close(Reason::Reset),
            Event::Quiet if now >= self.ask => Action::Ask,
            Event::Quiet => self.verdict(now),
            Event::Acknowledged(Some(false)) => {
                (self.ask, self.asked) = match self.asked {
                    Asked::Never => (now + rules.ask_soon(), Asked::Once),
                    Asked::Once | Asked::MoreOften => (now + rules.ask_later(), Asked::MoreOften),
                };
                self.verdict(now)
            }
            // Where the system cannot tell, all that is left is a plain timer for silence.
            Event::Acknowledged(Some(true) | None) => {
                self.ask = Time::NEVER;
                self.idle = now + rules.idle;
                self.max = now + rules.max;
                self.verdict(now)
            }
        }
    }

    /// The deadline that fell first gives the reason; of two at the same time the sterner one.
    fn verdict(&self, now: Time) -> Action {
        let (first, reason) =
            [(self.limit, Reason::Limit), (self.max, Reason::Max), (self.idle, Reason::Idle)]
                .into_iter()
                .min_by_key(|&(time, _)| time)
                .expect("an array of three has a least"); // min_by_key keeps the first of equals
        if now >= first { Action::Close(reason) } else { Action::Wait(first.min(self.ask)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules {
        idle: Duration::from_millis(5_000),
        max: Duration::from_millis(30_000),
        limit: Duration::from_millis(300_000),
    };

    fn at(ms: u64) -> Time {
        Time::from_millis(ms)
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
    fn acknowledged_at(when: u64) -> impl Fn(u64) -> World {
        move |now| if now < when { IN_FLIGHT } else { SILENT }
    }

    fn every_second() -> Vec<u64> {
        (1..1_000).map(|n| n * 1_000).collect()
    }

    /// Visits a connection as the daemon does and returns the verdict.
    fn visit(linger: &mut Linger, event: Event, now: u64, world: World) -> Action {
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

    fn handed_over(now: u64, world: World) -> (Linger, Action) {
        let mut linger = Linger::new(at(now), &RULES);
        let action = visit(&mut linger, Event::Readable, now, world);
        (linger, action)
    }

    /// Lets a connection live with the visits that it asks for itself, up to `end`.
    fn live(world: impl Fn(u64) -> World, arrivals: &[u64], end: u64) -> (u64, Action) {
        let (mut linger, mut action) = handed_over(0, world(0));
        let mut arrivals = arrivals.iter().copied().peekable();
        let mut last = 0;
        loop {
            let Action::Wait(Time(due)) = action else { return (last, action) };
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
    fn silence_is_idle_to_the_millisecond() {
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
            let mut linger = Linger::new(at(0), &RULES);
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
    fn where_nothing_can_be_asked_the_plain_timers_hold() {
        let blind = |_| World { acknowledged: None, ..SILENT };
        assert_eq!(live(blind, &[], 1_000_000), (5_000, Action::Close(Reason::Idle)));
        assert_eq!(live(blind, &every_second(), 1_000_000), (30_000, Action::Close(Reason::Max)));
    }

    #[test]
    fn of_deadlines_passed_in_one_step_the_first_gives_the_reason() {
        // The clock jumps a year: idle was due first.
        let (mut linger, _) = handed_over(0, SILENT);
        assert_eq!(visit(&mut linger, Event::Due, 31_536_000_000, SILENT), Action::Close(Reason::Idle));
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
                idle: Duration::from_millis(idle),
                max: Duration::from_millis(max),
                limit: Duration::from_millis(limit),
            };
            let mut linger = Linger::new(at(0), &rules);
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
    fn the_end_of_time_is_no_overflow() {
        let mut linger = Linger::new(Time(u64::MAX - 1), &RULES);
        for event in [
            Event::Received,
            Event::Quiet,
            Event::Acknowledged(Some(false)),
            Event::Acknowledged(Some(true)),
            Event::Received,
        ] {
            linger.on(event, Time(u64::MAX - 1), &RULES);
        }
    }

    /// The queues of the table rely on it.
    #[test]
    fn each_deadline_is_set_to_a_time_of_its_own_from_now() {
        let mut linger = Linger::new(at(0), &RULES);
        let mut steps = [None; Linger::DEADLINES];
        linger.on(Event::Acknowledged(Some(false)), at(0), &RULES); // at the hand-off
        for now in (1_250..60_000).step_by(1_250) {
            let before = linger.deadlines();
            visit(&mut linger, Event::Due, now, if now < 30_000 { IN_FLIGHT } else { SILENT });
            for (n, deadline) in linger.deadlines().into_iter().enumerate() {
                if deadline != before[n] && deadline != Time::NEVER {
                    assert_eq!(*steps[n].get_or_insert(deadline - at(now)), deadline - at(now), "{n}");
                    assert!(n > 0, "set at the hand-off, and to another time");
                }
            }
        }
        assert!(steps[1..4].iter().all(Option::is_some), "{steps:?}");
    }

    #[test]
    fn the_shortest_of_times_are_no_spin() {
        let ms = Duration::from_millis(1);
        let rules = Rules { idle: ms, max: ms, limit: Duration::from_millis(100) };
        let mut linger = Linger::new(at(0), &rules);
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
        crate::fuzz::any(2_000, |random| {
            let mut linger = Linger::new(at(1_000), &RULES);
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
                    Action::Wait(until) => assert!(until > at(now), "{until:?} at {now}"),
                    Action::Close(_) => break,
                    Action::Read | Action::Ask => {}
                }
                now += random.u64(..3_000);
            }
            let end = visit(&mut linger, Event::Due, 301_000, IN_FLIGHT);
            assert!(matches!(end, Action::Close(_)), "{end:?}");
        });
    }
}
