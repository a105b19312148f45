// SPDX-License-Identifier: BSD-3-Clause

//! The forms in which the counters are printed.
//!
//! Must not know where they come from.

use super::times::{Timed, Times};
use super::{Figure, Snapshot};
use std::fmt::Write;
use std::str::FromStr;

/// The form in which `lingerd -S` prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// A table for people.
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
    /// The figures as text that ends with a newline.
    pub fn render(&self, format: Format) -> String {
        match format {
            Format::Text => self.table(),
            Format::Json => self.json(),
            Format::Prometheus => self.prometheus(),
        }
    }

    fn json(&self) -> String {
        let pair = |(figure, value): (&Figure, u64)| format!("\"{}\":{value}", figure.key);
        let mut pairs: Vec<_> = self.figures().map(pair).collect();
        if let Some(growth) = &self.last_minute {
            let seconds = format!("\"seconds\":{}", growth.seconds());
            let counters: Vec<_> = [seconds].into_iter().chain(growth.counters().map(pair)).collect();
            pairs.push(format!("\"last_minute\":{{{}}}", counters.join(",")));
        }
        for timed in Timed::ALL {
            let reasons: Vec<_> =
                self.times.iter().filter(|(what, _, _)| *what == timed).map(json_times).collect();
            pairs.push(format!("\"{}_seconds\":{{{}}}", timed.name(), reasons.join(",")));
        }
        format!("{{{}}}\n", pairs.join(","))
    }

    fn prometheus(&self) -> String {
        let (mut out, mut before) = (String::new(), "");
        for (figure, value) in self.figures() {
            let metric = figure.metric();
            if metric != before {
                let kind = if figure.is_counter() { "counter" } else { "gauge" };
                let help = figure.help;
                // Writing to a String cannot fail, here and below.
                let _ = writeln!(out, "# HELP lingerd_{metric} {help}\n# TYPE lingerd_{metric} {kind}");
                before = metric;
            }
            let value = match figure.key {
                "parked" => value.saturating_sub(self.get("returning").unwrap_or(0)), // each is in one state
                _ => value,
            };
            let _ = writeln!(out, "lingerd_{} {value}", figure.sample);
        }
        for (timed, help) in [
            (Timed::Linger, "How long connections lingered, by the reason for which that ended."),
            (
                Timed::Spool,
                "How long it took to write what was handed over with a connection, by how that ended.",
            ),
        ] {
            let metric = format!("lingerd_{}_seconds", timed.name());
            let _ = writeln!(out, "# HELP {metric} {help}\n# TYPE {metric} histogram");
            for (_, reason, times) in self.times.iter().filter(|(what, _, _)| *what == timed) {
                for (bound, count) in times.up_to() {
                    let le = le(bound);
                    let _ = writeln!(out, "{metric}_bucket{{reason=\"{reason}\",le=\"{le}\"}} {count}");
                }
                let (sum, count) = (times.seconds(), times.number());
                let _ = writeln!(out, "{metric}_sum{{reason=\"{reason}\"}} {sum}");
                let _ = writeln!(out, "{metric}_count{{reason=\"{reason}\"}} {count}");
            }
        }
        out
    }
}

/// A bound, as Prometheus says it.
fn le(bound: f64) -> String {
    if bound.is_finite() { bound.to_string() } else { "+Inf".to_owned() }
}

fn json_times((_, reason, times): (Timed, &str, &Times)) -> String {
    let up_to: Vec<_> = times.up_to().map(|(bound, count)| format!("\"{}\":{count}", le(bound))).collect();
    let (number, sum) = (times.number(), times.seconds());
    format!("\"{reason}\":{{\"count\":{number},\"sum\":{sum},\"up_to\":{{{}}}}}", up_to.join(","))
}

#[cfg(test)]
mod tests {
    use super::super::FIGURES;
    use super::super::tests::some;
    use super::*;
    use crate::rules::time::Span;
    use std::collections::BTreeSet;

    #[test]
    fn json_has_the_documented_keys_in_order() {
        let json = some().render(Format::Json);
        assert_eq!(
            json.split(",\"linger_seconds\":").next().unwrap(),
            "{\"lingering\":4,\"spooling\":5,\"parked\":3,\"returning\":1,\"peak\":9,\"capacity\":20,\"handed_over\":15,\"closed\":2,\"reset\":0,\"idle\":0,\"max\":0,\
             \"limit\":0,\"evicted\":1,\"stopped\":0,\"stalled\":0,\"broken\":0,\"returned\":0,\"cut_short\":1,\"rejected\":0,\"protocol_errors\":0,\
             \"refused\":3,\"killed\":0,\"abandoned\":0,\"senders\":2,\"bytes_discarded\":77,\"spooled\":0,\"spool_bytes\":6,\"uptime\":60"
        );
    }

    #[test]
    fn prometheus_has_each_metric_once_with_help_and_type_before_its_samples() {
        let text = some().render(Format::Prometheus);
        for line in [
            "lingerd_connections{state=\"lingering\"} 4",
            "lingerd_connections{state=\"parked\"} 2",
            "lingerd_connections{state=\"returning\"} 1",
            "lingerd_ended_total{reason=\"closed\"} 2",
            "# TYPE lingerd_ended_total counter",
            "lingerd_uptime_seconds 60",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in:\n{text}");
        }
        let mut seen = BTreeSet::new();
        let mut metric = "";
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                assert!(help.ends_with('.') && seen.insert(name), "{line}");
                assert!(lines.next().unwrap().starts_with(&format!("# TYPE {name} ")));
                metric = name;
            } else {
                let rest = line.strip_prefix(metric).unwrap_or_else(|| panic!("{line}: {metric}"));
                let of_a_histogram = ["_bucket{", "_sum{", "_count{"].iter().any(|end| rest.starts_with(end));
                assert!(rest.starts_with(['{', ' ']) || of_a_histogram, "{line}");
            }
        }
    }

    #[test]
    fn how_long_it_took_is_a_histogram_for_each_end() {
        let mut snapshot = some();
        for ticks in [1, 64, 200_000] {
            snapshot.times.count(Timed::Spool, None, Span::from_ticks(ticks));
        }
        let text = snapshot.render(Format::Prometheus);
        let written: Vec<_> = text.lines().filter(|line| line.contains("\"written\"")).collect();
        for line in [
            "lingerd_spool_seconds_bucket{reason=\"written\",le=\"0.025\"} 1",
            "lingerd_spool_seconds_bucket{reason=\"written\",le=\"0.5\"} 1",
            "lingerd_spool_seconds_bucket{reason=\"written\",le=\"1\"} 2",
            "lingerd_spool_seconds_bucket{reason=\"written\",le=\"+Inf\"} 3",
            "lingerd_spool_seconds_sum{reason=\"written\"} 3126.015625",
            "lingerd_spool_seconds_count{reason=\"written\"} 3",
        ] {
            assert!(written.contains(&line), "{line} in {written:#?}");
        }
        let json = snapshot.render(Format::Json);
        let written = "\"spool_seconds\":{\"written\":{\"count\":3,\"sum\":3126.015625,\"up_to\":{\"0.025\":1,\"0.1\":1,";
        assert!(json.contains(written), "{json}");
        assert_eq!(json.matches("\"+Inf\":").count(), snapshot.times.iter().count());
    }

    #[test]
    fn a_label_is_the_key_and_the_label_of_a_reason_is_its_name() {
        for Figure { key, sample, .. } in &FIGURES {
            if let Some((_, label)) = sample.split_once("=\"") {
                assert_eq!(label.strip_suffix("\"}"), Some(*key));
            }
        }
        for reason in crate::rules::event::Reason::ALL {
            let sample = format!("ended_total{{reason=\"{}\"}}", reason.name());
            assert!(FIGURES.iter().any(|figure| figure.sample == sample), "{sample}");
        }
    }
}
