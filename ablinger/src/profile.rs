// SPDX-License-Identifier: BSD-3-Clause

//! -P: which of its clients a server waits for.
//!
//! Four crowds, one after the other: the first asks for nothing but responses and shows how fast the
//! server is; each of the others has one habit of real clients, for which a server with a process
//! per connection has to wait. A crowd that gets far less than the server could give and the clients
//! could take has shown that the server waits. Must not know how requests are made.

use crate::options::Options;
use crate::report::{Report, Tally, percentile};
use serde::Serialize;
use std::fmt::Write;
use std::time::Duration;

/// A crowd that gets less than this share of what it could is held up.
const ENOUGH: f64 = 0.7;

/// The longest that the first crowd is measured: it makes as many connections as it can.
const CLOSING_TIME: Duration = Duration::from_secs(2);

/// What the clients of a crowd do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    /// They close at once.
    Close,
    /// They hold their sockets after the response.
    Hold,
    /// They keep their connections and pause between requests.
    Keep,
    /// They read slowly.
    Read,
}

impl Habit {
    /// In the order in which they are measured.
    pub const ALL: [Habit; 4] = [Habit::Close, Habit::Hold, Habit::Keep, Habit::Read];

    /// The clients of this habit as a run of their own, of a profile with these options.
    pub fn options(self, profile: &Options) -> Options {
        let mut options =
            Options { linger_ms: 0, stddev_ms: 0, pause_ms: 0, keep: 1, read_rate: None, ..profile.clone() };
        match self {
            Habit::Close => options.stop = options.stop.at_most(CLOSING_TIME),
            Habit::Hold => (options.linger_ms, options.stddev_ms) = (profile.linger_ms, profile.stddev_ms),
            Habit::Keep => (options.pause_ms, options.keep) = (profile.pause_ms, u32::MAX),
            Habit::Read => options.read_rate = profile.read_rate,
        }
        options
    }

    /// What the clients do, after "clients that".
    pub fn describe(self, options: &Options) -> String {
        match self {
            Habit::Close => "close at once".to_owned(),
            Habit::Hold => format!("hold their socket for {} ms", options.linger_ms),
            Habit::Keep => format!("keep their connection and ask every {} ms", options.pause_ms),
            Habit::Read => format!("read {} bytes/s", options.read_rate.unwrap_or(0)),
        }
    }

    /// What a server suffers from that waits for them.
    fn name(self) -> &'static str {
        match self {
            Habit::Close => "",
            Habit::Hold => "lingering close",
            Habit::Keep => "keep-alive",
            Habit::Read => "slow readers",
        }
    }

    /// What to turn on.
    fn advice(self) -> &'static str {
        match self {
            Habit::Close => "",
            Habit::Hold => "Let lingerd(8) end the connections.",
            Habit::Keep => {
                "Turn keep-alive off (Apache: KeepAlive Off), and let lingerd(8) end the connections."
            }
            Habit::Read => {
                "Let a send buffer take the whole response (Apache: SendBufferSize; on Linux up to \
                 net.core.wmem_max), and lingerd(8) end the connections."
            }
        }
    }
}

/// One crowd, and what became of it.
pub struct Part {
    pub habit: Habit,
    pub options: Options,
    pub tally: Tally,
}

/// What a crowd shows.
#[derive(Debug, PartialEq)]
pub struct Verdict {
    /// What it got a second: responses, or bytes from those that read slowly.
    got: f64,
    /// What it could have had.
    could: f64,
    suffers: bool,
    says: String,
}

/// Judges a crowd, by what the server gives to `closing` clients.
fn judge(part: &Part, closing: &Tally) -> Verdict {
    let Part { habit, options, tally } = part;
    let clients = f64::from(options.concurrency);
    // A response that is under way at the end has brought bytes, too; that may be all of a slow reader's.
    let (rate, unit): (fn(&Tally) -> f64, _) = match habit {
        Habit::Read => (Tally::bytes_per_second, "bytes/s"),
        _ => (Tally::requests_per_second, "responses/s"),
    };
    // What a client could take a second if nobody waited for it.
    let each = match habit {
        Habit::Close => f64::INFINITY,
        Habit::Hold => 1000.0 / f64::from(options.linger_ms),
        Habit::Keep => 1000.0 / f64::from(options.pause_ms),
        Habit::Read => f64::from(options.read_rate.unwrap_or(0)),
    };
    let (got, could) = (rate(tally), rate(closing).min(clients * each));
    let suffers = got < ENOUGH * could;
    let mut says = format!(
        "{}: {}. {clients} clients that {} got {} of {} {unit}",
        capitalized(habit.name()),
        if suffers { "suffers" } else { "does not suffer" },
        habit.describe(options),
        number(got),
        number(could),
    );
    if suffers {
        let at_a_time = (got / each).round().max(1.0);
        let _ = write!(says, ", as if it served {at_a_time:.0} of them at a time. {}", habit.advice());
    } else if *habit == Habit::Keep && tally.not_kept > tally.complete / 2 {
        says.push_str("; the server keeps no connection, so that each request makes its own.");
    } else {
        says.push('.');
    }
    Verdict { got, could, suffers, says }
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

/// A rate for people.
fn number(rate: f64) -> String {
    if rate < 100.0 { format!("{rate:.1}") } else { format!("{rate:.0}") }
}

/// All crowds that were measured, the closing one first.
pub struct Profile {
    pub parts: Vec<Part>,
}

impl Profile {
    /// Whether each request that has ended in any part was complete.
    pub fn all_complete(&self) -> bool {
        self.parts.iter().all(|part| {
            let tally = &part.tally;
            // A crowd may get nothing at all in its time: that is what is looked for.
            tally.complete == tally.ended() && (tally.complete > 0 || part.habit != Habit::Close)
        })
    }

    /// The crowds with what each of them shows; nothing where the server gave the first nothing.
    fn verdicts(&self) -> Vec<(&Part, Verdict)> {
        match self.parts.split_first() {
            Some((closing, others)) if closing.tally.complete > 0 => {
                others.iter().map(|part| (part, judge(part, &closing.tally))).collect()
            }
            _ => Vec::new(),
        }
    }

    /// All in a sentence.
    fn summary(&self, verdicts: &[(&Part, Verdict)]) -> String {
        if verdicts.is_empty() {
            return "Nothing is known of this server: no response was complete.".to_owned();
        }
        let names = |suffers: bool| -> Vec<_> {
            let those = verdicts.iter().filter(|(_, verdict)| verdict.suffers == suffers);
            those.map(|(part, _)| part.habit.name()).collect()
        };
        match (list(&names(true), "and"), list(&names(false), "or")) {
            (suffers, None) => format!("This server suffers from {}.", suffers.unwrap_or_default()),
            (None, Some(well)) => {
                format!("This server does not suffer from {well}, with so many clients: with more it may.")
            }
            (Some(suffers), Some(well)) => format!("This server suffers from {suffers}, not from {well}."),
        }
    }

    /// For people.
    pub fn text(&self, options: &Options) -> String {
        let mut text = String::new();
        let address = self.parts.iter().find_map(|part| part.tally.address);
        let address = address.map(|address| format!(" at {address}")).unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}{address}, {} clients\n", options.target.url, options.concurrency);
        let _ = writeln!(
            text,
            "{:<45}{:>12}{:>12}{:>12}{:>12}",
            "clients that", "responses/s", "median (ms)", "99% (ms)", "no answer"
        );
        for Part { habit, options, tally } in &self.parts {
            let _ = writeln!(
                text,
                "{:<45}{:>12}{:>12}{:>12}{:>12}",
                habit.describe(options),
                number(tally.requests_per_second()),
                percentile(&tally.latencies, 50),
                percentile(&tally.latencies, 99),
                tally.latencies.unanswered(),
            );
        }
        let verdicts = self.verdicts();
        text.push('\n');
        for (part, verdict) in &verdicts {
            let _ = writeln!(text, "{}{}", verdict.says, failures(&part.tally));
        }
        let _ = writeln!(text, "{}", self.summary(&verdicts));
        text
    }

    /// For programs.
    pub fn json<'a>(&'a self, options: &'a Options) -> impl Serialize + 'a {
        let verdicts = self.verdicts();
        let summary = self.summary(&verdicts);
        let suffers = verdicts.iter().filter(|(_, verdict)| verdict.suffers);
        Json {
            url: &options.target.url,
            suffers: suffers.map(|(part, _)| part.habit.name()).collect(),
            says: summary,
            parts: (self.parts.iter())
                .map(|part| {
                    let verdict = verdicts.iter().find(|(judged, _)| judged.habit == part.habit);
                    JsonPart {
                        clients: part.habit.describe(&part.options),
                        wait: verdict.map(|_| part.habit.name()),
                        suffers: verdict.map(|(_, verdict)| verdict.suffers),
                        says: verdict.map(|(_, verdict)| verdict.says.clone()),
                        got: verdict.map(|(_, verdict)| verdict.got),
                        could: verdict.map(|(_, verdict)| verdict.could),
                        run: Report::new(&part.options, &part.tally),
                    }
                })
                .collect(),
        }
    }
}

/// What else went wrong, where something did.
fn failures(tally: &Tally) -> String {
    match tally.ended() - tally.complete {
        0 => String::new(),
        n => format!(
            " Beside these {n} requests ended badly: {} with a bad status, {} failed, {} reset, {} truncated.",
            tally.bad_status,
            tally.failed(),
            tally.reset,
            tally.truncated
        ),
    }
}

/// Words as a list.
fn list(words: &[&str], and: &str) -> Option<String> {
    match words {
        [] => None,
        [one] => Some((*one).to_owned()),
        [first @ .., last] => Some(format!("{} {and} {last}", first.join(", "))),
    }
}

#[derive(Serialize)]
struct Json<'a> {
    url: &'a str,
    suffers: Vec<&'a str>,
    says: String,
    parts: Vec<JsonPart<'a>>,
}

#[derive(Serialize)]
struct JsonPart<'a> {
    clients: String,
    wait: Option<&'a str>,
    suffers: Option<bool>,
    says: Option<String>,
    got: Option<f64>,
    could: Option<f64>,
    run: Report<'a>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Command, parse};

    fn options() -> Options {
        let line = "-P -c 200 -t 5 http://h/";
        match parse(line.split_whitespace().map(Into::into)) {
            Ok(Command::Run(options)) => *options,
            other => panic!("{other:?}"),
        }
    }

    /// A crowd that got so many responses of 20 kB a second, for ten seconds.
    fn tally(responses: f64) -> Tally {
        let complete = (responses * 10.0) as u64;
        Tally { complete, bytes: complete * 20_000, elapsed: Duration::from_secs(10), ..Tally::default() }
    }

    fn profile(rates: [f64; 4]) -> Profile {
        let part = |(habit, rate): (Habit, f64)| Part {
            habit,
            options: habit.options(&options()),
            tally: tally(rate),
        };
        Profile { parts: Habit::ALL.into_iter().zip(rates).map(part).collect() }
    }

    #[test]
    fn each_habit_is_one_and_no_other() {
        let profile = options();
        let close = Habit::Close.options(&profile);
        assert_eq!((close.linger_ms, close.pause_ms, close.keep, close.read_rate), (0, 0, 1, None));
        let hold = Habit::Hold.options(&profile);
        assert_eq!((hold.linger_ms, hold.pause_ms, hold.keep, hold.read_rate), (1000, 0, 1, None));
        let keep = Habit::Keep.options(&profile);
        assert_eq!((keep.linger_ms, keep.pause_ms, keep.keep, keep.read_rate), (0, 1000, u32::MAX, None));
        assert_eq!(Habit::Close.options(&keep), close, "whatever it is made of");
        let read = Habit::Read.options(&profile);
        assert_eq!((read.linger_ms, read.pause_ms, read.keep, read.read_rate), (0, 0, 1, Some(50_000)));
    }

    #[test]
    fn who_suffers_from_what() {
        for (rates, suffers, says) in [
            // A stock server of ten workers.
            (
                [2000.0, 9.8, 10.0, 20.0],
                &["lingering close", "keep-alive", "slow readers"][..],
                "suffers from lingering close, keep-alive and slow readers.",
            ),
            (
                [2000.0, 198.0, 10.0, 480.0],
                &["keep-alive"],
                "from keep-alive, not from lingering close or slow readers.",
            ),
            (
                [2000.0, 198.0, 199.0, 480.0],
                &[],
                "does not suffer from lingering close, keep-alive or slow readers",
            ),
            // As fast as it is for those who close: it is slow, and waits for nobody.
            ([50.0, 48.0, 49.0, 50.0], &[], "does not suffer"),
            (
                [50.0, 9.0, 49.0, 50.0],
                &["lingering close"],
                "from lingering close, not from keep-alive or slow",
            ),
        ] {
            let profile = profile(rates);
            let verdicts = profile.verdicts();
            let those: Vec<_> = verdicts
                .iter()
                .filter(|(_, verdict)| verdict.suffers)
                .map(|(part, _)| part.habit.name())
                .collect();
            assert_eq!(those, suffers, "{rates:?}");
            let summary = profile.summary(&verdicts);
            assert!(summary.contains(says), "{summary}");
        }
    }

    #[test]
    fn a_sentence_has_the_numbers_and_the_remedy() {
        let profile = profile([2000.0, 9.8, 10.0, 480.0]);
        let says: Vec<_> = profile.verdicts().into_iter().map(|(_, verdict)| verdict.says).collect();
        assert_eq!(
            says[0],
            "Lingering close: suffers. 200 clients that hold their socket for 1000 ms got 9.8 of 200 \
             responses/s, as if it served 10 of them at a time. Let lingerd(8) end the connections."
        );
        assert!(says[1].contains("KeepAlive Off"), "{}", says[1]);
        assert_eq!(
            says[2],
            "Slow readers: does not suffer. 200 clients that read 50000 bytes/s got 9600000 of 10000000 bytes/s."
        );
        let text = profile.text(&options());
        assert!(says.iter().all(|sentence| text.contains(sentence)), "{text}");
    }

    #[test]
    fn a_server_that_keeps_no_connection_is_said_to() {
        let mut profile = profile([2000.0, 198.0, 198.0, 480.0]);
        profile.parts[2].tally.not_kept = profile.parts[2].tally.complete;
        assert!(profile.text(&options()).contains("the server keeps no connection"));
    }

    #[test]
    fn without_any_response_nothing_is_known_and_nothing_is_well() {
        let mut profile = profile([0.0, 0.0, 0.0, 0.0]);
        assert!(profile.text(&options()).contains("Nothing is known"));
        assert!(!profile.all_complete());
        profile.parts[0].tally.complete = 1;
        assert!(profile.all_complete(), "a crowd that got no answer in time has not failed");
        profile.parts[3].tally.bad_status = 1;
        assert!(!profile.all_complete());
        assert!(profile.text(&options()).contains("1 with a bad status"));
    }
}
