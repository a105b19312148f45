// SPDX-License-Identifier: BSD-3-Clause

//! The counters for people: all of them in a table, or in a line each time that they are looked at.
//!
//! In the table a line begins with a counter's name and its number, for whoever takes one out with awk(1). Must not
//! know when anybody looks.

use super::{Figure, Snapshot, place};
use std::fmt::Write;

impl Snapshot {
    /// All of them.
    pub(super) fn table(&self) -> String {
        let mut out = String::new();
        let (counters, states): (Vec<_>, Vec<_>) =
            self.figures().partition(|(figure, _)| figure.is_counter());
        // Writing to a String cannot fail, here and below.
        for (Figure { key, .. }, value) in states {
            let note = if *key == "uptime" { format!("   {}", days(value)) } else { String::new() };
            let _ = writeln!(out, "{key:<18} {value:>17}{note}");
        }
        // A second at least, as the uptime.
        let last = self.last_minute.map(|growth| (growth, growth.seconds().max(1.0)));
        let of_late = last.map(|(_, seconds)| format!("last {seconds:.0} s")).unwrap_or_default();
        let _ = writeln!(out, "\n{:<18} {:>17} {:>13} {of_late:>13}", "", "since the start", "a second");
        for (Figure { key, .. }, value) in counters {
            let of_late =
                last.map(|(growth, seconds)| per_second(growth.get(key), seconds)).unwrap_or_default();
            let so_far = per_second(value, self.uptime());
            let _ = writeln!(out, "{key:<18} {value:>17} {so_far:>13} {of_late:>13}");
        }
        let timed: Vec<_> = self.times.iter().filter(|(_, _, times)| times.number() > 0).collect();
        if !timed.is_empty() {
            let titles = ["how many", "mean", "half in", "90% in", "99% in"];
            let [many, mean, half, most, nearly_all] = titles;
            let _ =
                writeln!(out, "\n{:<18} {many:>17} {mean:>9} {half:>9} {most:>9} {nearly_all:>9}", "seconds");
        }
        for (what, reason, times) in timed {
            let (number, mean) = (times.number(), times.seconds() / times.number() as f64);
            let _ = write!(out, "{:<18} {number:>17} {mean:>9.2}", format!("{}, {reason}", what.name()));
            for part in [0.5, 0.9, 0.99] {
                let _ = match times.part_in(part) {
                    bound if bound.is_finite() => write!(out, " {bound:>9}"),
                    _ => write!(out, " {:>9}", "more"),
                };
            }
            out.push('\n');
        }
        out
    }

    /// Seconds since the daemon started; one at least, as it is a whole number.
    fn uptime(&self) -> f64 {
        self.get("uptime").unwrap_or(0).max(1) as f64
    }
}

/// What is in a line: under which title, how wide, and which figures it is the sum of.
type Column = (&'static str, usize, &'static [&'static str]);

/// What there is now, and what came in a second.
const NOW: [Column; 4] = [
    ("linger", 8, &["lingering"]),
    ("spool", 7, &["spooling"]),
    ("park", 8, &["parked"]),
    ("wait", 6, &["returning"]),
];
const A_SECOND: [Column; 8] = [
    ("in", 7, &["handed_over"]),
    ("closed", 7, &["closed"]),
    ("reset", 6, &["reset"]),
    ("idle", 6, &["idle"]),
    ("evict", 6, &["evicted"]),
    ("other", 6, &["max", "limit", "stopped", "stalled", "broken"]),
    ("back", 7, &["returned"]),
    ("cut", 5, &["cut_short"]),
];

/// Lines after which the titles are printed once more: with them, less than a screen.
const SCREEN: u64 = 20;

/// Who looks again and again, as with vmstat(8).
#[derive(Default)]
pub struct Glances {
    before: Option<Snapshot>,
    lines: u64,
}

impl Glances {
    /// A line of what was there `seconds` after the one before it, and of each second since then, or since the daemon has
    /// started if this is the first line, or another one has; with titles above it now and then.
    pub fn line(&mut self, snapshot: Snapshot, seconds: f64) -> String {
        let handed_over = |snapshot: &Snapshot| snapshot.get("handed_over");
        let is_same = |before: &Snapshot| handed_over(before) <= handed_over(&snapshot);
        let (grown, seconds) = match self.before.filter(is_same) {
            Some(before) => (snapshot.counters_since(&before.figures), seconds),
            None => (snapshot.counters_since(&Default::default()), snapshot.uptime()),
        };
        let mut out = String::new();
        if self.lines % SCREEN == 0 {
            out += &format!("{:-^width$} ", " now ", width = width(&NOW));
            out += &format!("{:-^width$}\n", " a second ", width = width(&A_SECOND) - 1);
            out.extend(NOW.iter().chain(&A_SECOND).map(|(title, width, _)| format!("{title:>width$}")));
            out.push('\n');
        }
        let sum = |figures: &[u64], keys: &[&str]| -> u64 {
            keys.iter().filter_map(|key| place(key)).map(|n| figures[n]).fold(0, u64::saturating_add)
        };
        for (_, width, keys) in &NOW {
            let _ = write!(out, "{:>width$}", sum(&snapshot.figures, keys));
        }
        for (_, width, keys) in &A_SECOND {
            let rate = sum(&grown, keys) as f64 / seconds.max(1e-3);
            let digits = usize::from(rate > 0.0 && rate < 99.95);
            let _ = write!(out, "{rate:>width$.digits$}");
        }
        (self.before, self.lines) = (Some(snapshot), self.lines + 1);
        out + "\n"
    }
}

fn width(columns: &[Column]) -> usize {
    columns.iter().map(|(_, width, _)| width).sum()
}

/// `count` in so many seconds, with as many digits as say something.
fn per_second(count: u64, seconds: f64) -> String {
    let rate = count as f64 / seconds;
    let digits = if rate < 9.995 { 2 } else { usize::from(rate < 99.95) };
    format!("{rate:.digits$}")
}

/// `3 days 4:05:06`.
fn days(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let time = format!("{}:{:02}:{:02}", rest / 3_600, rest / 60 % 60, rest % 60);
    match days {
        0 => time,
        1 => format!("1 day {time}"),
        _ => format!("{days} days {time}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::minute::Growth;
    use super::super::times::Timed;
    use super::super::{FIGURES, Figures};
    use super::*;
    use crate::rules::event::Reason;
    use crate::rules::time::Span;

    /// With these figures; 10 hours after the start, of which `growth` is known.
    fn snapshot(figures: &[(&str, u64)], growth: &[(&str, u64)]) -> Snapshot {
        let of = |pairs: &[(&str, u64)]| {
            let mut figures = Figures::default();
            pairs.iter().for_each(|&(key, value)| figures[place(key).unwrap()] = value);
            figures
        };
        let last_minute = (!growth.is_empty()).then(|| Growth { millis: 62_000, by: of(growth) });
        Snapshot {
            figures: of(&[&[("uptime", 36_000)], figures].concat()),
            last_minute,
            ..Default::default()
        }
    }

    #[test]
    fn the_table_has_each_figure_in_a_line_that_begins_with_its_name_and_its_number() {
        let table = some_table();
        for (n, Figure { key, .. }) in FIGURES.iter().enumerate() {
            let lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            let of_it: Vec<_> = lines.filter(|words| words.first() == Some(key)).collect();
            assert_eq!(of_it.len(), 1, "{key} in\n{table}");
            assert_eq!(of_it[0][1].parse(), Ok(some().figures[n]), "{key} in\n{table}");
        }
        assert!(table.lines().all(|line| line.len() <= 80), "{table}");
    }

    fn some() -> Snapshot {
        let so_far = [("lingering", 12), ("closed", 72_000), ("reset", 1), ("bytes_discarded", u64::MAX)];
        snapshot(&so_far, &[("closed", 310), ("bytes_discarded", 62_000)])
    }

    #[test]
    fn the_table_says_how_long_it_took_where_anything_did() {
        let mut snapshot = snapshot(&[], &[]);
        assert!(!snapshot.table().contains("seconds"));
        for seconds in [1, 1, 1, 9_999] {
            snapshot.times.count(Timed::Linger, Some(Reason::Closed), Span::from_secs(seconds));
        }
        let table = snapshot.table();
        let (_, times) = table.split_once("\n\nseconds ").unwrap();
        let times: Vec<Vec<_>> = times.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            times,
            [
                &["how", "many", "mean", "half", "in", "90%", "in", "99%", "in"][..],
                &["linger,", "closed", "4", "2500.50", "1", "more", "more"],
            ]
        );
        assert!(table.lines().all(|line| line.len() < 80), "{table}");
    }

    fn some_table() -> String {
        some().render(crate::stats::forms::Format::Text)
    }

    #[test]
    fn the_table_has_rates_of_what_only_grows() {
        let table = some_table();
        let words = |key: &str| {
            let line = table.lines().find(|line| line.starts_with(key)).unwrap();
            line.split_whitespace().skip(2).collect::<Vec<_>>().join(" ")
        };
        assert!(table.contains("a second     last 62 s\n"), "{table}");
        for (key, rest) in
            [("lingering", ""), ("closed", "2.00 5.00"), ("reset", "0.00 0.00"), ("uptime", "10:00:00")]
        {
            assert_eq!(words(key), rest, "{key} in\n{table}");
        }
        assert!(words("bytes_discarded").ends_with(" 1000"), "{table}");
        let older = snapshot(&[("closed", 72_000)], &[]).table();
        assert!(!older.contains("last"), "whom it was not told does not say so: {older}");
    }

    #[test]
    fn rates_have_as_many_digits_as_say_something() {
        for (count, rate) in [(0, "0.00"), (999, "9.99"), (1_000, "10.0"), (9_994, "99.9"), (9_996, "100")] {
            assert_eq!(per_second(count, 100.0), rate);
        }
        for (seconds, said) in [(0, "0:00:00"), (86_399, "23:59:59"), (90_061, "1 day 1:01:01")] {
            assert_eq!(days(seconds), said);
        }
    }

    #[test]
    fn each_line_is_of_the_time_since_the_one_before_it_and_the_first_one_of_all() {
        let at = |closed, lingering| {
            snapshot(
                &[("handed_over", closed + lingering), ("closed", closed), ("lingering", lingering)],
                &[],
            )
        };
        let mut glances = Glances::default();
        let mut line = |snapshot, seconds| {
            let said = glances.line(snapshot, seconds);
            let last = said.lines().last().unwrap().to_owned();
            assert!(said.lines().all(|line| line.len() == last.len() && line.len() < 80), "{said}");
            let words: Vec<_> = last.split_whitespace().map(str::to_owned).collect();
            (said.lines().count(), [0, 4, 5, 6].map(|column| words[column].clone()).join(" "))
        };
        assert_eq!(line(at(72_000, 36_000), 0.0), (3, "36000 3.0 2.0 0".to_owned()));
        assert_eq!(line(at(72_500, 36_000), 5.0), (1, "36000 100 100 0".to_owned()));
        // Another daemon.
        assert_eq!(line(at(36_000, 0), 5.0), (1, "0 1.0 1.0 0".to_owned()));
        let titles = (0..60).filter(|_| line(at(36_000, 0), 1.0).0 == 3).count();
        assert_eq!(titles, 3);
    }

    #[test]
    fn every_reason_is_in_a_column() {
        for reason in crate::rules::event::Reason::ALL {
            let columns = A_SECOND.iter().filter(|(_, _, keys)| keys.contains(&reason.name())).count();
            assert_eq!(columns, 1, "{}", reason.name());
        }
        let keys = NOW.iter().chain(&A_SECOND).flat_map(|(_, _, keys)| *keys);
        assert!(keys.into_iter().all(|key| place(key).is_some()));
    }
}
