// SPDX-License-Identifier: BSD-3-Clause

//! The rules of spooling: one connection whose response is still to be written.
//!
//! What its server could not write is written as fast as the client reads it. The client's own bytes are read
//! and thrown away meanwhile, as a client that sends before it reads would wait for ever. When all is
//! written the connection lingers, see [`super::linger`], from then on.
//!
//! It may take as long as it gets on: getting on is a byte that the socket takes, or that the client's TCP
//! acknowledges, which is asked now and then, as a slow client reads for minutes out of a large send buffer
//! before the socket takes more. The server says how long to wait for that: as long as it would have
//! waited itself. A response that does not get on is cut off with a reset, and so is one whose file is too short:
//! after a FIN it would look whole (RFC 9112 section 8).
//!
//! ```text
//!     hand-off ──> Write ──> more ──> Wait: writable, readable, due
//!                    │                  │ due: Ask ── got on ──> Wait
//!                    │ all              │             not ─────> Close(Stalled)
//!                    v                  v readable: Read ── end ──> no longer waits for that
//!                  Linger             Write ...
//!                    (Close(Closed) where the client has ended)
//! ```

use super::event::Reason;
use super::time::{Span, Time};

/// What happened to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// There is room to write, says the backend; or the next bytes have come from a disk.
    Writable,
    /// The socket is readable, says the backend.
    Readable,
    /// Its time is up, says the table.
    Due,
    /// So many bytes were written, and there may be more.
    Wrote(u64),
    /// All is written.
    WroteAll,
    /// The socket takes no more for now.
    Full,
    /// This turn's budget is spent, or the next bytes are still to come from a disk.
    Later,
    /// A file cannot be read, or has less than was said.
    Short,
    /// Bytes of the client's were read and thrown away.
    Received,
    /// There is nothing more to read now.
    Quiet,
    /// End of stream: the client sends nothing more.
    End,
    /// Reading or writing failed: the connection is gone.
    Failed,
    /// So many bytes are not yet acknowledged; `None` where the system does not tell.
    Queued(Option<u64>),
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write, then feed what came of it.
    Write,
    /// Read and throw away, then feed what came of it.
    Read,
    /// Ask how much is not yet acknowledged, then feed [`Event::Queued`].
    Ask,
    /// Wait until then, or until the backend reports one of these.
    Wait {
        /// When its time is up.
        until: Time,
        /// Whether to wait for room: not while the bytes are still to come.
        room: bool,
        /// Whether to wait for the client's bytes: not after their end.
        bytes: bool,
    },
    /// Half-close: it lingers from now on.
    Linger,
    /// Close it and count it; what of it was not sent is cut off with a reset.
    Close(Reason),
}

/// What is known of what is not yet acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queued {
    /// Nobody has asked yet.
    New,
    /// So many bytes.
    Bytes(u64),
    /// The system does not tell.
    Untold,
}

/// One connection: facts only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spool {
    /// How long it may not get on.
    pub patience: Span,
    /// When it got on last.
    pub got_on: Time,
    /// When it was asked last what is not yet acknowledged.
    pub asked: Time,
    /// What there would be now if nothing had been acknowledged since.
    pub queued: Queued,
    /// Whether the client sends nothing more.
    pub client_ended: bool,
    /// Whether it is the socket that has no room, and not a disk that takes its time.
    pub is_full: bool,
}

impl Spool {
    /// One that was handed over at `now`. Feed it [`Event::Writable`] next.
    pub const fn new(now: Time, patience: Span) -> Self {
        Spool { patience, got_on: now, asked: now, queued: Queued::New, client_ended: false, is_full: true }
    }

    /// When it wants to be looked at, whatever happens: `now` is there so that what is long past is not taken for
    /// what is to come.
    pub fn due(&self, now: Time) -> Time {
        let left = self.left(now).min(self.until_asked(now));
        Time::from_ticks(now.ticks().wrapping_add(left as u32)) // of differences of points
    }

    /// Takes in what happened at `now` and says what to do next. `now` may leap by any step forward; one that goes
    /// back moves no deadline back.
    pub fn on(&mut self, event: Event, now: Time) -> Action {
        match event {
            Event::Writable => Action::Write,
            Event::Readable => Action::Read,
            Event::Wrote(bytes) => {
                self.gets_on(now);
                if let Queued::Bytes(queued) = &mut self.queued {
                    *queued = queued.saturating_add(bytes);
                }
                Action::Write
            }
            Event::WroteAll if self.client_ended => Action::Close(Reason::Closed),
            Event::WroteAll => Action::Linger,
            Event::Full | Event::Later => {
                self.is_full = event == Event::Full;
                // What is acknowledged from now on is to be noticed.
                if self.queued == Queued::New { Action::Ask } else { self.wait(now) }
            }
            Event::Received => Action::Read,
            Event::Quiet => self.wait(now),
            Event::End => {
                self.client_ended = true;
                self.wait(now)
            }
            Event::Failed => Action::Close(Reason::Reset),
            Event::Short => Action::Close(Reason::Broken),
            // Nobody is cut off who has got on since it was asked last.
            Event::Due if self.until_asked(now) <= 0 || self.left(now) <= 0 => Action::Ask,
            Event::Due => self.wait(now),
            Event::Queued(queued) => {
                self.asked = now;
                let is = queued.map_or(Queued::Untold, Queued::Bytes);
                if let (Queued::Bytes(is), Queued::Bytes(was)) = (is, self.queued) {
                    if is < was {
                        self.gets_on(now);
                    }
                }
                self.queued = is;
                self.verdict(now)
            }
        }
    }

    fn verdict(&self, now: Time) -> Action {
        if self.left(now) <= 0 { Action::Close(Reason::Stalled) } else { self.wait(now) }
    }

    fn wait(&self, now: Time) -> Action {
        Action::Wait { until: self.due(now), room: self.is_full, bytes: !self.client_ended }
    }

    fn gets_on(&mut self, now: Time) {
        self.got_on = self.got_on + now.since(self.got_on); // nothing of a clock that goes back
    }

    /// What is left at `now` of the time in which it has to get on.
    fn left(&self, now: Time) -> i64 {
        i64::from(self.patience.ticks()) - now.ticks_since(self.got_on)
    }

    /// How long after `now` to ask: by that much it may be ended late.
    fn until_asked(&self, now: Time) -> i64 {
        i64::from(self.patience.quarter().ticks()) - now.ticks_since(self.asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Span = Span::from_ticks(400);

    fn at(ticks: u32) -> Time {
        Time::from_ticks(ticks)
    }

    fn wait(until: u32, room: bool, bytes: bool) -> Action {
        Action::Wait { until: at(until), room, bytes }
    }

    /// One whose socket is full since time 0.
    fn full() -> Spool {
        let mut spool = Spool::new(at(0), PATIENCE);
        assert_eq!(spool.on(Event::Writable, at(0)), Action::Write);
        assert_eq!(spool.on(Event::Wrote(1_000), at(0)), Action::Write);
        assert_eq!(spool.on(Event::Full, at(0)), Action::Ask);
        assert_eq!(spool.on(Event::Queued(Some(1_000)), at(0)), wait(100, true, true));
        spool
    }

    /// Has it live with the visits that it asks for itself; at each there is so much unacknowledged.
    fn live(mut spool: Spool, queued: impl Fn(u32) -> Option<u64>, end: u32) -> (u32, Action) {
        let mut now = 0;
        while now < end {
            let mut action = spool.on(Event::Due, at(now));
            if action == Action::Ask {
                action = spool.on(Event::Queued(queued(now)), at(now));
            }
            match action {
                Action::Wait { until, .. } => {
                    assert!(until.ticks() > now, "a wait until {until:?} at {now} would spin");
                    now = until.ticks();
                }
                other => return (now, other),
            }
        }
        (now, Action::Ask)
    }

    #[test]
    fn what_is_all_written_lingers_or_is_closed_where_the_client_has_ended() {
        assert_eq!(full().on(Event::WroteAll, at(9)), Action::Linger);
        let mut spool = full();
        assert_eq!(spool.on(Event::Readable, at(1)), Action::Read);
        assert_eq!(spool.on(Event::Received, at(1)), Action::Read);
        assert_eq!(spool.on(Event::End, at(1)), wait(100, true, false), "it reads on all the same");
        assert_eq!(spool.on(Event::WroteAll, at(2)), Action::Close(Reason::Closed));
    }

    #[test]
    fn what_is_gone_or_short_is_ended_at_once() {
        assert_eq!(full().on(Event::Failed, at(1)), Action::Close(Reason::Reset));
        assert_eq!(full().on(Event::Short, at(1)), Action::Close(Reason::Broken));
    }

    #[test]
    fn one_that_does_not_get_on_is_stalled_to_the_tick_or_a_quarter_later() {
        assert_eq!(live(full(), |_| Some(1_000), 10_000), (400, Action::Close(Reason::Stalled)));
        assert_eq!(live(full(), |_| None, 10_000), (400, Action::Close(Reason::Stalled)));
        // It got on until 250, which is seen at 300.
        let queued = |now: u32| Some(u64::from(1_000 - now.min(250)));
        assert_eq!(live(full(), queued, 10_000), (700, Action::Close(Reason::Stalled)));
    }

    #[test]
    fn one_that_has_got_on_in_the_last_moment_is_not_cut_off() {
        let mut spool = full();
        for now in [100, 200, 300] {
            assert_eq!(spool.on(Event::Due, at(now)), Action::Ask);
            spool.on(Event::Queued(Some(1_000)), at(now));
        }
        spool.asked = at(390); // not long ago
        assert_eq!(spool.on(Event::Due, at(400)), Action::Ask);
        assert_eq!(spool.on(Event::Queued(Some(999)), at(400)), wait(500, true, true));
    }

    #[test]
    fn one_whose_client_acknowledges_a_byte_now_and_then_may_take_for_ever() {
        let queued = |now: u32| Some(u64::from(1_000_000 - now / 350));
        assert_eq!(live(full(), queued, 100_000).1, Action::Ask);
    }

    #[test]
    fn what_was_acknowledged_counts_whatever_was_written_meanwhile() {
        let mut spool = full();
        assert_eq!(spool.on(Event::Wrote(700), at(10)), Action::Write);
        assert_eq!(spool.on(Event::Full, at(10)), wait(100, true, true));
        assert_eq!(spool.on(Event::Due, at(100)), Action::Ask);
        assert_eq!(spool.on(Event::Queued(Some(1_650)), at(100)), wait(200, true, true));
        assert_eq!(spool.got_on, at(100));
    }

    #[test]
    fn a_disk_that_takes_its_time_is_not_waited_for_at_the_socket() {
        let mut spool = full();
        assert_eq!(spool.on(Event::Later, at(5)), wait(100, false, true));
        assert_eq!(spool.on(Event::Writable, at(7)), Action::Write);
        assert_eq!(spool.on(Event::Wrote(1), at(7)), Action::Write);
        assert_eq!(spool.on(Event::Full, at(7)), wait(100, true, true));
    }

    #[test]
    fn the_count_of_time_may_start_over_and_the_clock_go_back_or_leap() {
        let start = u32::MAX - 50;
        let mut spool = Spool::new(at(start), PATIENCE);
        assert_eq!(spool.on(Event::Full, at(start)), Action::Ask);
        assert_eq!(spool.on(Event::Queued(None), at(start)), wait(49, true, true));
        assert_eq!(spool.on(Event::Wrote(1), at(start - 30)), Action::Write);
        assert_eq!(spool.got_on, at(start));
        assert_eq!(spool.on(Event::Due, at(start.wrapping_add(1 << 20))), Action::Ask);
        let late = at(start.wrapping_add(1 << 20));
        assert_eq!(spool.on(Event::Queued(Some(7)), late), Action::Close(Reason::Stalled));
    }

    #[test]
    fn the_shortest_patience_is_no_spin() {
        let mut spool = Spool::new(at(0), Span::from_ticks(1));
        assert_eq!(spool.on(Event::Full, at(0)), Action::Ask);
        let Action::Wait { until, .. } = spool.on(Event::Queued(None), at(0)) else {
            panic!("it is not due")
        };
        assert!(until.ticks() > 0);
    }
}
