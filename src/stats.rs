// SPDX-License-Identifier: BSD-3-Clause

//! The counters, and the forms in which a person or a monitor reads them.
//!
//! Counts what it is told, and decides nothing; must not know who tells it.

use crate::rules::event::Reason;
use std::fmt::{self, Write};
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
        }
    }

    /// Counts a connection that ended, `cut_short` if that was by our doing and something was unread
    /// or unacknowledged.
    pub fn count(&mut self, reason: Reason, cut_short: bool) {
        self.ended[reason as usize] += 1;
        self.cut_short += u64::from(cut_short);
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
        let &Ends { ended, cut_short, peak, rejected, bytes_discarded, spooled, killed, abandoned } =
            self.ends;
        let [closed, reset, idle, max, limit, evicted, stopped, stalled, broken, returned] = ended;
        let [parked, returning] = [self.parked.0, self.parked.1].map(|number| number as u64);
        let lingering = self.lingering as u64;
        let (spooling, spool_bytes) = (self.spooling.0 as u64, self.spooling.1);
        Snapshot([
            lingering,
            spooling,
            parked,
            returning,
            peak,
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
        ])
    }
}

/// Whether a figure only grows while the daemon lives.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
}

/// Every figure: its key, its kind, and what it means.
const FIGURES: [(&str, Kind, &str); 27] = [
    ("lingering", Kind::Gauge, "Connections lingering now."),
    ("spooling", Kind::Gauge, "Connections whose response is still to be written."),
    (
        "parked",
        Kind::Gauge,
        "Connections whose server waits for the client's next request, or for a worker to take it.",
    ),
    ("returning", Kind::Gauge, "Of these, those that wait for a worker."),
    ("peak", Kind::Gauge, "Most connections that there were at once."),
    ("handed_over", Kind::Counter, "Connections taken over."),
    ("closed", Kind::Counter, "Ended: the client closed."),
    ("reset", Kind::Counter, "Ended: the client reset it, or it was gone at hand-off."),
    ("idle", Kind::Counter, "Ended: all acknowledged, and silent for the idle time (-t)."),
    ("max", Kind::Counter, "Ended: the client kept sending for the longest time (-T)."),
    ("limit", Kind::Counter, "Ended: the time limit after hand-off (-D)."),
    ("evicted", Kind::Counter, "Ended: the table was full (-n)."),
    ("stopped", Kind::Counter, "Ended: the daemon was told to stop at once."),
    ("stalled", Kind::Counter, "Ended: what was to be written did not get on for the sender's time-out."),
    ("broken", Kind::Counter, "Ended: what was to be written could not be read."),
    ("returned", Kind::Counter, "Ended here: a worker has taken it back."),
    ("cut_short", Kind::Counter, "Ended by lingerd with bytes unread or unacknowledged."),
    ("rejected", Kind::Counter, "Descriptors refused: no connected TCP sockets."),
    ("protocol_errors", Kind::Counter, "Malformed or truncated hand-off messages."),
    ("refused", Kind::Counter, "Hung up on: not among those who may hand over, or ask."),
    ("killed", Kind::Counter, "Responses that were cut off with a daemon before that was killed."),
    ("abandoned", Kind::Counter, "Parked, and lingered on as the server has gone, or there are too many."),
    ("senders", Kind::Gauge, "Senders connected now."),
    ("bytes_discarded", Kind::Counter, "Bytes received while lingering, thrown away."),
    ("spooled", Kind::Counter, "Connections taken over with a response still to be written."),
    ("spool_bytes", Kind::Gauge, "Bytes still to be written."),
    ("uptime", Kind::Gauge, "Seconds since the daemon started, or the one that it took over from."),
];

/// The figures of one moment, in the order of `FIGURES`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot([u64; FIGURES.len()]);

/// The form in which `lingerd -S` prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// A line a figure: key, space, number. Also what goes over the control socket.
    #[default]
    Text,
    /// One JSON object on one line.
    Json,
    /// The text format of Prometheus, version 0.0.4.
    Prometheus,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "text" => Ok(Format::Text),
            "json" => Ok(Format::Json),
            "prometheus" => Ok(Format::Prometheus),
            _ => Err(format!("unknown format '{name}'; there are text, json and prometheus")),
        }
    }
}

impl Snapshot {
    fn figures(&self) -> impl Iterator<Item = (&'static str, Kind, &'static str, u64)> + '_ {
        FIGURES.iter().zip(self.0).map(|(&(key, kind, help), value)| (key, kind, help, value))
    }

    /// The figure named `key`.
    pub fn get(&self, key: &str) -> Option<u64> {
        self.figures().find(|figure| figure.0 == key).map(|figure| figure.3)
    }

    /// The figures as text that ends with a newline.
    pub fn render(&self, format: Format) -> String {
        let mut out = String::new();
        match format {
            Format::Text => {
                for (key, _, _, value) in self.figures() {
                    let _ = writeln!(out, "{key} {value}"); // writing to a String cannot fail
                }
            }
            Format::Json => {
                for (n, (key, _, _, value)) in self.figures().enumerate() {
                    let _ = write!(out, "{}\"{key}\":{value}", if n == 0 { "{" } else { "," });
                }
                out.push_str("}\n");
            }
            Format::Prometheus => {
                for (key, kind, help, value) in self.figures() {
                    // The suffixes are those of Prometheus' naming rules: _total for a counter,
                    // the unit for a time.
                    let (suffix, kind) = match (kind, key) {
                        (Kind::Counter, _) => ("_total", "counter"),
                        (Kind::Gauge, "uptime") => ("_seconds", "gauge"),
                        (Kind::Gauge, _) => ("", "gauge"),
                    };
                    let _ = writeln!(
                        out,
                        "# HELP lingerd_{key}{suffix} {help}\n# TYPE lingerd_{key}{suffix} {kind}\n\
                         lingerd_{key}{suffix} {value}"
                    );
                }
            }
        }
        out
    }
}

/// Reads [`Format::Text`] back. A key that is not known is left out (a newer daemon), one that is
/// missing is 0 (an older one). What is wrong is shown escaped: it may have come from anybody.
impl FromStr for Snapshot {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut snapshot = Snapshot([0; FIGURES.len()]);
        let mut known = 0;
        for line in text.lines() {
            let Some((key, value)) = line.split_once(' ') else {
                return Err(format!("no counter: '{}'", line.escape_debug()));
            };
            if let Some(n) = FIGURES.iter().position(|figure| figure.0 == key) {
                snapshot.0[n] = value.parse().map_err(|_| format!("no number: '{}'", line.escape_debug()))?;
                known += 1;
            }
        }
        if known == 0 {
            return Err("no counters in the answer".to_owned());
        }
        Ok(snapshot)
    }
}

/// One line for the log.
impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (key, _, _, value)) in self.figures().enumerate() {
            write!(f, "{}{key}={value}", if n == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(ends: &Ends) -> Moment<'_> {
        Moment {
            ends,
            lingering: 4,
            spooling: (5, 6),
            parked: (3, 1),
            senders: 2,
            protocol_errors: 0,
            refused: 3,
            uptime: 60,
        }
    }

    fn some() -> Snapshot {
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
    fn text_is_read_back_and_tolerates_other_versions() {
        let snapshot = some();
        assert_eq!(snapshot.render(Format::Text).parse(), Ok(snapshot));
        let newer = snapshot.render(Format::Text) + "from_the_future 1\n";
        assert_eq!(newer.parse(), Ok(snapshot));
        assert!("".parse::<Snapshot>().is_err());
        assert!("lingering many\n".parse::<Snapshot>().is_err());
    }

    #[test]
    fn what_is_no_counter_is_shown_without_its_control_characters() {
        let why = |text: &str| text.parse::<Snapshot>().unwrap_err();
        assert_eq!(why("\u{1b}]0;title\u{7}\n"), "no counter: '\\u{1b}]0;title\\u{7}'");
        assert_eq!(why("peak 1\u{9b}2J\n"), "no number: 'peak 1\\u{9b}2J'");
    }

    #[test]
    fn json_has_the_documented_keys_in_order() {
        assert_eq!(
            some().render(Format::Json),
            "{\"lingering\":4,\"spooling\":5,\"parked\":3,\"returning\":1,\"peak\":9,\"handed_over\":15,\"closed\":2,\"reset\":0,\"idle\":0,\"max\":0,\
             \"limit\":0,\"evicted\":1,\"stopped\":0,\"stalled\":0,\"broken\":0,\"returned\":0,\"cut_short\":1,\"rejected\":0,\"protocol_errors\":0,\
             \"refused\":3,\"killed\":0,\"abandoned\":0,\"senders\":2,\"bytes_discarded\":77,\"spooled\":0,\"spool_bytes\":6,\"uptime\":60}\n"
        );
    }

    #[test]
    fn prometheus_names_follow_its_rules() {
        let text = some().render(Format::Prometheus);
        for line in [
            "lingerd_lingering 4",
            "lingerd_closed_total 2",
            "# TYPE lingerd_closed_total counter",
            "lingerd_uptime_seconds 60",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in:\n{text}");
        }
    }
}
