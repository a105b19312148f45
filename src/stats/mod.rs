// SPDX-License-Identifier: BSD-3-Clause

//! The counters, and the forms in which a person or a monitor reads them.
//!
//! Counts what it is told, and decides nothing; must not know who tells it.

pub mod forms;
pub mod minute;
pub mod people;
pub mod times;

use self::minute::Growth;
use self::times::{AllTimes, Timed};
use crate::rules::event::Reason;
use crate::rules::time::Span;
use std::fmt;
use std::str::FromStr;

/// How connections came and ended. The other figures (`lingering`, `handed_over`, …) are derived, so
/// that they can never disagree with these.
#[derive(Clone, Debug, Default)]
pub struct Ends {
    ended: [u64; Reason::ALL.len()],
    cut_short: u64,
    peak: u64,
    rejected: u64,
    bytes_discarded: u64,
    spooled: u64,
    killed: u64,
    abandoned: u64,
    times: AllTimes,
}

impl Ends {
    /// As they stand in `counters`.
    pub fn of(counters: &Snapshot) -> Self {
        let value = |key| counters.get(key).unwrap_or(0);
        Ends {
            ended: Reason::ALL.map(|reason| value(reason.name())),
            cut_short: value("cut_short"),
            peak: value("peak"),
            rejected: value("rejected"),
            bytes_discarded: value("bytes_discarded"),
            spooled: value("spooled"),
            killed: value("killed"),
            abandoned: value("abandoned"),
            times: counters.times,
        }
    }

    /// Counts a connection that ended, `cut_short` if that was by our doing and something was unread
    /// or unacknowledged.
    pub fn count(&mut self, reason: Reason, cut_short: bool) {
        self.ended[reason as usize] += 1;
        self.cut_short += u64::from(cut_short);
    }

    /// Counts how long one lingered that has ended.
    pub fn lingered(&mut self, reason: Reason, time: Span) {
        self.times.count(Timed::Linger, Some(reason), time);
    }

    /// Counts how long it took to write a response, or until that was given up for a reason.
    pub fn wrote(&mut self, reason: Option<Reason>, time: Span) {
        self.times.count(Timed::Spool, reason, time);
    }

    /// Counts a descriptor that was refused: no connected TCP socket.
    pub fn rejected(&mut self) {
        self.rejected += 1;
    }

    /// Counts bytes that were read and thrown away.
    pub fn discarded(&mut self, bytes: u64) {
        self.bytes_discarded += bytes;
    }

    /// Counts a connection whose response is still to be written.
    pub fn spooled(&mut self) {
        self.spooled += 1;
    }

    /// Counts what a daemon before this one has cut off, as it was killed.
    pub fn killed(&mut self, responses: u64) {
        self.killed += responses;
    }

    /// Counts a parked connection that lingers before its time, as its server has gone or too many are parked.
    pub fn abandoned(&mut self) {
        self.abandoned += 1;
    }

    /// Notes that there are so many now.
    pub fn lingering(&mut self, now: usize) {
        self.peak = self.peak.max(now as u64);
    }
}

/// What the figures of one moment are made of.
pub struct Moment<'a> {
    /// How connections ended so far.
    pub ends: &'a Ends,
    /// Connections that linger.
    pub lingering: usize,
    /// Connections that there may be at once.
    pub capacity: usize,
    /// Connections whose response is still to be written, and how many bytes of them are.
    pub spooling: (usize, u64),
    /// Connections that are parked, and how many of them wait for a worker.
    pub parked: (usize, usize),
    /// Senders that are connected.
    pub senders: usize,
    /// Messages that are not of the hand-off protocol, and messages cut short by the kernel.
    pub protocol_errors: u64,
    /// Connections to the daemon's own sockets of those who may not use them.
    pub refused: u64,
    /// Seconds since the daemon started.
    pub uptime: u64,
}

impl Moment<'_> {
    /// The figures.
    pub fn snapshot(&self) -> Snapshot {
        let &Ends { ended, cut_short, peak, rejected, bytes_discarded, spooled, killed, abandoned, times } =
            self.ends;
        let [closed, reset, idle, max, limit, evicted, stopped, stalled, broken, returned] = ended;
        let [parked, returning] = [self.parked.0, self.parked.1].map(|number| number as u64);
        let lingering = self.lingering as u64;
        let (spooling, spool_bytes) = (self.spooling.0 as u64, self.spooling.1);
        let figures = [
            lingering,
            spooling,
            parked,
            returning,
            peak,
            self.capacity as u64,
            lingering + spooling + parked + ended.iter().sum::<u64>(),
            closed,
            reset,
            idle,
            max,
            limit,
            evicted,
            stopped,
            stalled,
            broken,
            returned,
            cut_short,
            rejected,
            self.protocol_errors,
            self.refused,
            killed,
            abandoned,
            self.senders as u64,
            bytes_discarded,
            spooled,
            spool_bytes,
            self.uptime,
        ];
        Snapshot { figures, times, last_minute: None }
    }
}

/// One figure.
struct Figure {
    /// Its name wherever it stands alone.
    key: &'static str,
    /// What Prometheus calls it behind `lingerd_`, with its label if it has one.
    sample: &'static str,
    /// What it means; of those that differ in a label only the first says so.
    help: &'static str,
}

impl Figure {
    /// The metric's name behind `lingerd_`.
    fn metric(&self) -> &'static str {
        self.sample.split('{').next().unwrap_or(self.sample)
    }

    /// Whether it only grows while the daemon lives, as the name has to say.
    fn is_counter(&self) -> bool {
        self.metric().ends_with("_total")
    }
}

const fn figure(key: &'static str, sample: &'static str, help: &'static str) -> Figure {
    Figure { key, sample, help }
}

/// Every figure; those with the same metric stand together. Their names follow
/// <https://prometheus.io/docs/practices/naming/>: the unit comes last, and behind it `_total` if it is a counter.
const FIGURES: [Figure; 28] = [
    figure(
        "lingering",
        "connections{state=\"lingering\"}",
        "Connections that are here now; returning are those that were parked and wait for a worker.",
    ),
    figure("spooling", "connections{state=\"spooling\"}", ""),
    figure("parked", "connections{state=\"parked\"}", ""),
    figure("returning", "connections{state=\"returning\"}", ""),
    figure("peak", "connections_peak", "Most connections that there were at once."),
    figure("capacity", "connections_limit", "Most connections that there may be at once."),
    figure("handed_over", "handed_over_total", "Connections taken over."),
    figure("closed", "ended_total{reason=\"closed\"}", "Connections that ended, by the reason."),
    figure("reset", "ended_total{reason=\"reset\"}", ""),
    figure("idle", "ended_total{reason=\"idle\"}", ""),
    figure("max", "ended_total{reason=\"max\"}", ""),
    figure("limit", "ended_total{reason=\"limit\"}", ""),
    figure("evicted", "ended_total{reason=\"evicted\"}", ""),
    figure("stopped", "ended_total{reason=\"stopped\"}", ""),
    figure("stalled", "ended_total{reason=\"stalled\"}", ""),
    figure("broken", "ended_total{reason=\"broken\"}", ""),
    figure("returned", "ended_total{reason=\"returned\"}", ""),
    figure("cut_short", "cut_short_total", "Ended by lingerd with bytes unread or unacknowledged."),
    figure("rejected", "rejected_total", "Descriptors refused: no connected TCP sockets."),
    figure("protocol_errors", "protocol_errors_total", "Malformed or truncated hand-off messages."),
    figure("refused", "refused_total", "Hung up on: not among those who may hand over, or ask."),
    figure("killed", "killed_total", "Responses that were cut off with a daemon before that was killed."),
    figure(
        "abandoned",
        "abandoned_total",
        "Parked, and lingered on as the server has gone, or there are too many.",
    ),
    figure("senders", "senders", "Senders connected now."),
    figure("bytes_discarded", "discarded_bytes_total", "Bytes received while lingering, thrown away."),
    figure("spooled", "spooled_total", "Connections taken over with a response still to be written."),
    figure("spool_bytes", "spool_bytes", "Bytes still to be written."),
    figure("uptime", "uptime_seconds", "Time since the daemon started, or the one that it took over from."),
];

/// A number for each of `FIGURES`, in their order.
type Figures = [u64; FIGURES.len()];

/// What was counted until one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    figures: Figures,
    /// How long what took that has ended.
    pub times: AllTimes,
    /// By how much that has grown of late, if anybody knows.
    pub last_minute: Option<Growth>,
}

/// What a daemon says of the last minute begins so, and then comes a counter's name, or this.
const MINUTE: &str = "minute.";
const MILLIS: &str = "millis";

impl Snapshot {
    fn figures(&self) -> impl Iterator<Item = (&'static Figure, u64)> + '_ {
        FIGURES.iter().zip(self.figures)
    }

    /// The figure named `key`.
    pub fn get(&self, key: &str) -> Option<u64> {
        self.figures().find(|(figure, _)| figure.key == key).map(|(_, value)| value)
    }

    /// By how much each counter has grown since the figures were these; 0 for what is no counter.
    fn counters_since(&self, before: &Figures) -> Figures {
        let mut grown = Figures::default();
        for n in (0..FIGURES.len()).filter(|&n| FIGURES[n].is_counter()) {
            grown[n] = self.figures[n].saturating_sub(before[n]);
        }
        grown
    }

    /// What a daemon says of it, to `lingerd -S` and to its successor: lines of a key, a space and a number, first all
    /// figures, and then what has grown in the last minute; and last how many took how long, see [`AllTimes::told`].
    pub fn told(&self) -> String {
        let line = |prefix: &str, key: &str, value: u64| format!("{prefix}{key} {value}\n");
        let mut text: String = self.figures().map(|(figure, value)| line("", figure.key, value)).collect();
        if let Some(Growth { millis, by }) = &self.last_minute {
            text += &line(MINUTE, MILLIS, *millis);
            for (figure, value) in FIGURES.iter().zip(*by).filter(|(_, value)| *value > 0) {
                text += &line(MINUTE, figure.key, value);
            }
        }
        text.extend(self.times.told().map(|(key, times)| format!("{key} {times}\n")));
        text
    }
}

fn place(key: &str) -> Option<usize> {
    FIGURES.iter().position(|figure| figure.key == key)
}

/// Reads [`told`](Snapshot::told) back. A key that is not known is left out (a newer daemon), one that is
/// missing is 0 (an older one). What is wrong is shown escaped: it may have come from anybody.
impl FromStr for Snapshot {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut snapshot = Snapshot::default();
        let (mut growth, mut is_told) = (Growth::default(), false);
        let mut known = 0;
        for line in text.lines() {
            let Some((key, value)) = line.split_once(' ') else {
                return Err(format!("no counter: '{}'", line.escape_debug()));
            };
            let no_number = || format!("no number: '{}'", line.escape_debug());
            let number = || value.parse().map_err(|_| no_number());
            if let Some(n) = place(key) {
                snapshot.figures[n] = number()?;
                known += 1;
            } else if let Some(key) = key.strip_prefix(MINUTE) {
                match place(key) {
                    Some(n) if FIGURES[n].is_counter() => growth.by[n] = number()?,
                    None if key == MILLIS => (growth.millis, is_told) = (number()?, true),
                    _ => {}
                }
            } else if let Some(read) = snapshot.times.read(key, value) {
                read.map_err(|()| no_number())?;
            }
        }
        snapshot.last_minute = is_told.then_some(growth);
        if known == 0 {
            return Err("no counters in the answer".to_owned());
        }
        Ok(snapshot)
    }
}

/// One line for the log.
impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (figure, value)) in self.figures().enumerate() {
            write!(f, "{}{}={value}", if n == 0 { "" } else { " " }, figure.key)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::forms::Format;
    use super::*;

    pub(super) fn moment(ends: &Ends) -> Moment<'_> {
        Moment {
            ends,
            lingering: 4,
            capacity: 20,
            spooling: (5, 6),
            parked: (3, 1),
            senders: 2,
            protocol_errors: 0,
            refused: 3,
            uptime: 60,
        }
    }

    pub(super) fn some() -> Snapshot {
        let mut ends = Ends::default();
        ends.lingering(9);
        ends.lingering(4);
        ends.discarded(77);
        ends.count(Reason::Closed, false);
        ends.count(Reason::Closed, false);
        ends.count(Reason::Evicted, true);
        moment(&ends).snapshot()
    }

    #[test]
    fn handed_over_is_the_sum_of_the_reasons_and_lingering() {
        let snapshot = some();
        assert_eq!(snapshot.get("handed_over"), Some(15));
        assert_eq!((snapshot.get("closed"), snapshot.get("evicted")), (Some(2), Some(1)));
        assert_eq!((snapshot.get("peak"), snapshot.get("bytes_discarded")), (Some(9), Some(77)));
        assert_eq!((snapshot.get("senders"), snapshot.get("uptime")), (Some(2), Some(60)));
    }

    #[test]
    fn what_was_counted_can_be_counted_on() {
        let mut ends = Ends::default();
        for (times, reason) in (1..).zip(Reason::ALL) {
            (0..times).for_each(|_| ends.count(reason, reason.is_ours()));
        }
        ends.rejected();
        ends.discarded(77);
        ends.lingering(9);
        ends.lingered(Reason::Closed, Span::from_secs(3));
        ends.wrote(Some(Reason::Stalled), Span::from_secs(60));
        let snapshot = moment(&ends).snapshot();
        assert_eq!(moment(&Ends::of(&snapshot)).snapshot(), snapshot);
    }

    #[test]
    fn every_reason_counts_under_its_own_name() {
        for reason in Reason::ALL {
            let mut ends = Ends::default();
            ends.count(reason, false);
            let snapshot = moment(&ends).snapshot();
            for other in Reason::ALL {
                assert_eq!(snapshot.get(other.name()), Some(u64::from(other == reason)), "{}", other.name());
            }
        }
    }

    #[test]
    fn what_is_told_is_read_back_and_tolerates_other_versions() {
        let snapshot = some();
        assert_eq!(snapshot.told().parse(), Ok(snapshot));
        let newer = snapshot.told() + "from_the_future 1\nminute.from_the_future 1 or 2\n";
        assert_eq!(newer.parse(), Ok(snapshot));
        assert!("".parse::<Snapshot>().is_err());
        assert!("lingering many\n".parse::<Snapshot>().is_err());
    }

    #[test]
    fn what_has_grown_of_late_is_told_too_and_is_no_part_of_what_an_older_one_reads() {
        let mut snapshot = some();
        let mut by = Figures::default();
        (by[place("closed").unwrap()], by[place("bytes_discarded").unwrap()]) = (2, 77);
        snapshot.last_minute = Some(Growth { millis: 60_500, by });
        snapshot.times.count(Timed::Linger, Some(Reason::Closed), Span::from_secs(3));
        let told = snapshot.told();
        assert_eq!(told.parse(), Ok(snapshot));
        let more = told.strip_prefix(&some().told()).unwrap();
        assert_eq!(
            more,
            "minute.millis 60500\nminute.closed 2\nminute.bytes_discarded 77\nlinger.closed 192 5000=1\n"
        );
        let gauge = (told + "minute.lingering 3\n").parse();
        assert_eq!(gauge, Ok(snapshot), "it is no counter");
    }

    /// Whatever is told: it is refused in words, or means the same when it is told again, and can be shown.
    #[test]
    fn any_sequence_of_words_is_read_or_refused() {
        const WORDS: [&str; 22] = [
            "closed",
            "peak",
            "minute.",
            "millis",
            "linger.",
            "spool.",
            "written",
            "stalled",
            "uptime",
            ".",
            "=",
            " ",
            " ",
            " ",
            "\n",
            "\n",
            "\n",
            "more",
            "25",
            "0",
            "18446744073709551615",
            "7",
        ];
        support::fuzz::any(20_000, |random| {
            let words = random.usize(..40);
            let text: String = (0..words).map(|_| *random.choice(&WORDS).unwrap_or(&"")).collect();
            match text.parse::<Snapshot>() {
                Err(why) => assert!(!why.chars().any(char::is_control), "{why:?}"),
                Ok(snapshot) => {
                    assert_eq!(snapshot.told().parse(), Ok(snapshot), "{text:?}");
                    for format in [Format::Text, Format::Json, Format::Prometheus] {
                        assert!(snapshot.render(format).ends_with('\n'), "{text:?}");
                    }
                }
            }
        });
    }

    #[test]
    fn what_is_no_counter_is_shown_without_its_control_characters() {
        let why = |text: &str| text.parse::<Snapshot>().unwrap_err();
        assert_eq!(why("\u{1b}]0;title\u{7}\n"), "no counter: '\\u{1b}]0;title\\u{7}'");
        assert_eq!(why("peak 1\u{9b}2J\n"), "no number: 'peak 1\\u{9b}2J'");
    }
}
