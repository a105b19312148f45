// SPDX-License-Identifier: BSD-3-Clause

//! What is said on standard error: messages, and on a terminal a line that shows how far it is.
//!
//! Must not know where the numbers come from, nor what the report looks like.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often the line is written anew.
const EVERY: Duration = Duration::from_millis(500);

/// Back to the line's begin, and nothing to the right of that: ECMA-48, as every terminal knows it.
const CLEAR: &str = "\r\x1b[K";

/// Whether the line stands on the terminal, and a message has to clear it first.
static SHOWN: AtomicBool = AtomicBool::new(false);

/// Says something, in the one form that all messages have.
pub fn complain(message: fmt::Arguments<'_>) {
    let clear = if SHOWN.swap(false, Ordering::Relaxed) { CLEAR } else { "" };
    // Nothing is left to say when even standard error is closed; `eprintln!` would panic.
    let _ = writeln!(io::stderr(), "{clear}ablinger: {message}");
}

/// The line of a run, where standard error is a terminal; else nothing.
pub struct Progress {
    what: String,
    next: Option<Instant>,
    /// How many responses there were when the line was last written, and when that was.
    before: (u64, Instant),
}

/// How far a run is.
pub struct Moment {
    /// Since it began.
    pub elapsed: Duration,
    /// Responses that came whole and well.
    pub complete: u64,
    /// Requests that have ended otherwise.
    pub others: u64,
    /// Requests that wait for their answer.
    pub waiting: usize,
}

impl Progress {
    /// `what` is said before the numbers.
    pub fn new(what: &str) -> Progress {
        let now = Instant::now();
        let next = io::stderr().is_terminal().then_some(now + EVERY);
        Progress { what: what.to_owned(), next, before: (0, now) }
    }

    /// When [`show`](Self::show) wants to be called; never without a terminal.
    pub fn due(&self) -> Option<Instant> {
        self.next
    }

    /// Writes the line.
    pub fn show(&mut self, now: Instant, moment: &Moment) {
        let (complete, then) = std::mem::replace(&mut self.before, (moment.complete, now));
        let seconds = now.duration_since(then).as_secs_f64().max(1e-3);
        let rate = (moment.complete - complete) as f64 / seconds;
        let line = line(&self.what, moment, rate);
        let mut stderr = io::stderr();
        let _ = write!(stderr, "{CLEAR}{line}").and_then(|()| stderr.flush()); // as in complain()
        SHOWN.store(true, Ordering::Relaxed);
        self.next = Some(now + EVERY);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if SHOWN.swap(false, Ordering::Relaxed) {
            let _ = write!(io::stderr(), "{CLEAR}");
        }
    }
}

/// The line, short enough for eighty columns.
fn line(what: &str, moment: &Moment, rate: f64) -> String {
    let Moment { elapsed, complete, others, waiting } = moment;
    let others = match others {
        0 => String::new(),
        n => format!(", {n} others"),
    };
    format!("{what}{} s: {complete} responses{others}, {rate:.0}/s, {waiting} waiting", elapsed.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_names_what_there_is() {
        let mut moment = Moment { elapsed: Duration::from_millis(2900), complete: 12, others: 0, waiting: 3 };
        assert_eq!(line("", &moment, 4.4), "2 s: 12 responses, 4/s, 3 waiting");
        moment.others = 1;
        assert_eq!(line("1 of 4: ", &moment, 0.0), "1 of 4: 2 s: 12 responses, 1 others, 0/s, 3 waiting");
    }
}
