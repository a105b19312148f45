// SPDX-License-Identifier: BSD-3-Clause

//! The rules of parking: one connection whose server has nothing to do until its client speaks.
//!
//! Kept alive, it goes back to a worker at the first byte of its next request; when its time is up it lingers, as
//! the server would have closed it then (RFC 9112 section 9.5). New, it goes back when the head of its request is whole,
//! or when its time is up: the server says then that it took too long.
//!
//! A head that is not whole cannot be waited for, as the socket is ready for as long as bytes are there: it is
//! looked at again now and then, and that the less often the longer it takes. So whoever sends it at once is
//! noticed at once, and whoever takes his time is kept waiting for as long again at most.
//!
//! ```text
//!   hand-off ──> Wait ── readable, due ──> Look ── nothing, in time ──> Wait
//!                                           │ the rest of a head to come ──> Wait, unwatched
//!                                           │ the time is up: kept alive ──> Linger; new ──> Return
//!                                           │ end, error ──> Close
//!                                           v
//!                Return ──> offered to a worker ── taken ──> Close(Returned)
//!                  ^                │ nobody took it
//!                  └────────────────┘
//! ```

use super::event::Reason;
use super::time::{Span, Time};

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    /// The first byte of the next request.
    Byte,
    /// A whole head.
    Head,
}

/// What happened to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The socket is readable, says the backend.
    Readable,
    /// A deadline is due, says the table.
    Due,
    /// So many bytes are there to be read, with a whole head among them, or as many as are looked at, or all that there
    /// will be.
    Whole,
    /// Some bytes are there.
    Some,
    /// Nothing is there to be read.
    Nothing,
    /// End of stream, and nothing before it: the client has closed its side.
    End,
    /// Looking failed: the connection is gone.
    Failed,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Look at what there is to be read, leave it there, and feed what was seen.
    Look,
    /// Wait until then, and until the socket is readable where it `is_watched`.
    Wait {
        /// When to look again, whatever happens.
        until: Time,
        /// Whether the backend is to report it.
        is_watched: bool,
    },
    /// Bring it back to a worker.
    Return,
    /// Half-close: it lingers from now on.
    Linger,
    /// Close it and count it.
    Close(Reason),
}

/// One parked connection: facts only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Park {
    /// What is waited for.
    pub waits_for: For,
    /// When its time is up.
    pub until: Time,
    /// Since when there are bytes that are no whole head.
    pub begun: Option<Time>,
    /// Whether its time was up before a head was whole: then the worker is told.
    pub is_late: bool,
}

impl Park {
    /// How long at most before a half head is looked at again.
    const SELDOM: Span = Span::from_secs(1);

    /// One that was handed over at `now`. It waits until it is readable.
    pub fn new(waits_for: For, patience: Span, now: Time) -> Self {
        Park { waits_for, until: now + patience, begun: None, is_late: false }
    }

    /// When it wants to be looked at, whatever happens, if it is to wait.
    pub fn due(&self, now: Time) -> Time {
        let Some(begun) = self.begun else { return self.until };
        let pause = now.since(begun).clamp(Span::from_ticks(1), Self::SELDOM);
        if self.until.ticks_since(now) < i64::from(pause.ticks()) { self.until } else { now + pause }
    }

    /// Takes in what happened at `now` and says what to do next. What the client did comes before what the clock says.
    pub fn on(&mut self, event: Event, now: Time) -> Action {
        let is_over = now.ticks_since(self.until) >= 0;
        match event {
            Event::Readable | Event::Due => Action::Look,
            Event::Whole => Action::Return,
            Event::Some if self.waits_for == For::Byte => Action::Return,
            Event::Some | Event::Nothing if is_over && self.waits_for == For::Head => {
                self.is_late = true;
                Action::Return
            }
            Event::Nothing if is_over => Action::Linger,
            Event::Some => {
                self.begun.get_or_insert(now);
                Action::Wait { until: self.due(now), is_watched: false }
            }
            // Where somebody else has read what was there it is as if nothing ever was.
            Event::Nothing => {
                self.begun = None;
                Action::Wait { until: self.until, is_watched: true }
            }
            Event::End => Action::Close(Reason::Closed),
            Event::Failed => Action::Close(Reason::Reset),
        }
    }
}

/// Whether `bytes` have a whole head of a request in them: an empty line after a line that is not (RFC 9112 section
/// 2.2: empty lines before a request are none of it, and a bare LF ends a line). Or nothing of which an empty line is the
/// end: a request line without a version, or a NUL, as TLS has them.
pub fn is_whole_head(bytes: &[u8]) -> bool {
    let blank = |&byte: &u8| byte == b'\r' || byte == b'\n';
    let start = bytes.iter().position(|byte| !blank(byte)).unwrap_or(bytes.len());
    let mut lines = bytes[start..].split_inclusive(|&byte| byte == b'\n');
    let Some(first) = lines.next() else { return false };
    let is_of_http = !first.ends_with(b"\n") || first.windows(5).any(|word| word == b"HTTP/");
    !is_of_http || bytes.contains(&0) || lines.any(|line| line == b"\n" || line == b"\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ticks: u32) -> Time {
        Time::from_ticks(ticks)
    }

    fn parked(waits_for: For) -> Park {
        Park::new(waits_for, Span::from_ticks(1_000), at(0))
    }

    #[test]
    fn kept_alive_it_goes_back_at_the_first_byte_and_lingers_when_its_time_is_up() {
        let mut park = parked(For::Byte);
        assert_eq!(park.on(Event::Readable, at(10)), Action::Look);
        assert_eq!(park.on(Event::Nothing, at(10)), Action::Wait { until: at(1_000), is_watched: true });
        assert_eq!(park.on(Event::Some, at(20)), Action::Return);
        assert_eq!(park.on(Event::Due, at(1_000)), Action::Look);
        assert_eq!(park.on(Event::Some, at(1_000)), Action::Return, "what the client did comes first");
        assert_eq!(park.on(Event::Nothing, at(1_000)), Action::Linger);
        assert!(!park.is_late);
    }

    #[test]
    fn the_client_s_end_is_the_end() {
        for waits_for in [For::Byte, For::Head] {
            assert_eq!(parked(waits_for).on(Event::End, at(1)), Action::Close(Reason::Closed));
            assert_eq!(parked(waits_for).on(Event::Failed, at(2_000)), Action::Close(Reason::Reset));
        }
    }

    #[test]
    fn half_a_head_is_looked_at_ever_more_seldom_and_a_second_apart_at_most() {
        let mut park = parked(For::Head);
        let mut now = at(5);
        let mut pauses = Vec::new();
        loop {
            match park.on(Event::Some, now) {
                Action::Wait { until, is_watched: false } => {
                    pauses.push(until.ticks_since(now));
                    now = until;
                }
                Action::Return => break,
                other => panic!("{other:?}"),
            }
            assert_eq!(park.on(Event::Due, now), Action::Look);
        }
        assert_eq!(pauses[..8], [1, 1, 2, 4, 8, 16, 32, 64]);
        assert!(pauses.iter().all(|pause| (1..=64).contains(pause)));
        assert_eq!((now, park.is_late), (at(1_000), true));
    }

    #[test]
    fn a_head_goes_back_when_it_is_whole_or_late() {
        let mut park = parked(For::Head);
        assert_eq!(park.on(Event::Whole, at(2_000)), Action::Return);
        assert!(!park.is_late, "it is there");
        assert_eq!(park.on(Event::Nothing, at(999)), Action::Wait { until: at(1_000), is_watched: true });
        assert_eq!(park.on(Event::Nothing, at(1_000)), Action::Return);
        assert!(park.is_late);
    }

    #[test]
    fn a_head_is_whole_at_its_empty_line() {
        for whole in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.0\r\n\n",
            "\r\n\r\nGET / HTTP/1.1\r\n\r\nbody",
        ] {
            assert!(is_whole_head(whole.as_bytes()), "{whole:?}");
            let end = whole.trim_end_matches("body").len();
            for part in 0..end {
                assert!(!is_whole_head(&whole.as_bytes()[..part]), "{part} of {whole:?}");
            }
        }
        for other in ["GET /\r\n", "\r\nGET /\n", "\x16\x03\x01\x00", "GET / HTTP/1.1\r\nA: \0"] {
            assert!(is_whole_head(other.as_bytes()), "{other:?}");
        }
        for none in [
            "",
            "GET /",
            "\x16\x03",
            "\r\n\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\r\n \r\n",
            "GET / HTTP/1.1\r\n\rX",
        ] {
            assert!(!is_whole_head(none.as_bytes()), "{none:?}");
        }
    }
}
