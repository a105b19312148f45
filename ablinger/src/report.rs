// SPDX-License-Identifier: BSD-3-Clause

//! What was counted, and how it is printed.
//!
//! The JSON keys are an interface, listed in ablinger(1): they may grow in number, never change.
//! Must not know how the numbers came about.

use crate::latency::Histogram;
use crate::options::Options;
use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

/// The counts of one run.
#[derive(Default)]
pub struct Tally {
    /// Responses that came whole, whatever their status.
    pub complete: u64,
    /// Of those, the ones whose status is not 2xx.
    pub non_2xx: u64,
    /// Requests whose connection could not be made.
    pub failed_connect: u64,
    /// Requests whose response did not end in time.
    pub failed_timeout: u64,
    /// Responses that are not HTTP.
    pub failed_http: u64,
    /// Connections reset before the response ended.
    pub reset: u64,
    /// Streams that ended before the response did.
    pub truncated: u64,
    /// Connections reset while they were held, after a complete response.
    pub reset_while_held: u64,
    /// The most sockets that were held at once.
    pub held_peak: u32,
    /// All bytes received.
    pub bytes: u64,
    /// The content of the complete responses.
    pub content_bytes: u64,
    /// From before the first connect until the run ended.
    pub elapsed: Duration,
    /// Of the complete responses: from before connect(2) until the response ended.
    pub latencies: Histogram,
    /// The address that was connected to, if any was.
    pub address: Option<SocketAddr>,
}

impl Tally {
    /// Requests without a response that could be read.
    pub fn failed(&self) -> u64 {
        self.failed_connect + self.failed_timeout + self.failed_http
    }

    /// All requests that came to an end.
    pub fn ended(&self) -> u64 {
        self.complete + self.failed() + self.reset + self.truncated
    }

    /// Whether there were responses, and each of them came whole.
    pub fn all_complete(&self) -> bool {
        self.complete > 0 && self.complete == self.ended()
    }

    fn requests_per_second(&self) -> f64 {
        // The least time avoids a division by zero; no request takes less.
        self.complete as f64 / self.elapsed.as_secs_f64().max(1e-6)
    }
}

/// The percentiles that are printed; 0 and 100 are the least and the greatest.
const PERCENTILES: [(u32, &str, &str); 6] = [
    (0, "min", "latency_min_ms"),
    (50, "50%", "latency_p50_ms"),
    (90, "90%", "latency_p90_ms"),
    (95, "95%", "latency_p95_ms"),
    (99, "99%", "latency_p99_ms"),
    (100, "max", "latency_max_ms"),
];

/// Microseconds as milliseconds.
fn ms(micros: u64) -> String {
    format!("{}.{:03}", micros / 1000, micros % 1000)
}

/// The report for people.
pub fn text(options: &Options, tally: &Tally) -> String {
    let mut lines = Vec::new();
    let address = tally.address.map(|address| format!(" at {address}")).unwrap_or_default();
    lines.push(("URL", format!("{}{address}", options.target.url)));
    let deviation = match options.stddev_ms {
        0 => String::new(),
        stddev => format!(" (standard deviation {stddev} ms)"),
    };
    lines.push((
        "Clients",
        format!("{}, each holding its socket for {} ms{deviation}", options.concurrency, options.linger_ms),
    ));
    lines.push(("Time", format!("{:.3} s", tally.elapsed.as_secs_f64())));
    lines.push(("Requests/s", format!("{:.2}", tally.requests_per_second())));
    let not_2xx = match tally.non_2xx {
        0 => String::new(),
        n => format!("  ({n} with a status that is not 2xx)"),
    };
    lines.push(("Complete", format!("{}{not_2xx}", tally.complete)));
    let why = match tally.failed() {
        0 => String::new(),
        _ => format!(
            "  (connect {}, time-out {}, bad HTTP {})",
            tally.failed_connect, tally.failed_timeout, tally.failed_http
        ),
    };
    lines.push(("Failed", format!("{}{why}", tally.failed())));
    lines.push(("Reset", tally.reset.to_string()));
    lines.push(("Truncated", tally.truncated.to_string()));
    lines.push(("Held at once", tally.held_peak.to_string()));
    lines.push(("Reset in hold", tally.reset_while_held.to_string()));
    lines.push(("Received", format!("{} bytes, {} of them content", tally.bytes, tally.content_bytes)));

    let mut names = String::new();
    let mut values = String::new();
    for (percent, name, _) in PERCENTILES {
        let value = tally.latencies.percentile(percent).map_or_else(|| "-".to_owned(), ms);
        let width = value.len().max(9);
        // Writing to a String cannot fail.
        let _ = write!(names, "{name:>width$} ");
        let _ = write!(values, "{value:>width$} ");
    }
    lines.push(("Latency (ms)", names.trim_end().to_owned()));
    lines.push(("", values.trim_end().to_owned()));

    let mut text = String::new();
    for (name, value) in lines {
        let _ = writeln!(text, "{name:<15}{value}");
    }
    text
}

/// The report for programs: one JSON object (RFC 8259) and a line feed.
pub fn json(options: &Options, tally: &Tally) -> String {
    let mut fields = vec![
        ("url", quoted(&options.target.url)),
        ("address", tally.address.map_or("null".to_owned(), |address| quoted(&address.to_string()))),
        ("concurrency", options.concurrency.to_string()),
        ("linger_ms", options.linger_ms.to_string()),
        ("stddev_ms", options.stddev_ms.to_string()),
        ("seconds", format!("{:.6}", tally.elapsed.as_secs_f64())),
        ("requests", tally.ended().to_string()),
        ("requests_per_second", format!("{:.3}", tally.requests_per_second())),
        ("complete", tally.complete.to_string()),
        ("non_2xx", tally.non_2xx.to_string()),
        ("failed", tally.failed().to_string()),
        ("failed_connect", tally.failed_connect.to_string()),
        ("failed_timeout", tally.failed_timeout.to_string()),
        ("failed_http", tally.failed_http.to_string()),
        ("reset", tally.reset.to_string()),
        ("truncated", tally.truncated.to_string()),
        ("held_peak", tally.held_peak.to_string()),
        ("reset_while_held", tally.reset_while_held.to_string()),
        ("bytes", tally.bytes.to_string()),
        ("content_bytes", tally.content_bytes.to_string()),
    ];
    for (percent, _, key) in PERCENTILES {
        fields.push((key, tally.latencies.percentile(percent).map_or("null".to_owned(), ms)));
    }
    let fields: Vec<_> = fields.iter().map(|(key, value)| format!("\"{key}\": {value}")).collect();
    format!("{{{}}}\n", fields.join(", "))
}

/// `text` as a JSON string.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            // Writing to a String cannot fail.
            c if c.is_control() => drop(write!(quoted, "\\u{:04x}", c as u32)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Format, Stop, Target};

    fn options() -> Options {
        Options {
            concurrency: 3,
            stop: Stop::Requests(4),
            linger_ms: 50,
            stddev_ms: 5,
            format: Format::Text,
            target: Target {
                url: "http://h/\"".into(),
                host: "h".into(),
                port: 80,
                authority: "h".into(),
                path: "/\"".into(),
            },
        }
    }

    fn tally() -> Tally {
        let mut tally = Tally {
            complete: 4,
            non_2xx: 1,
            failed_connect: 1,
            failed_timeout: 2,
            failed_http: 3,
            reset: 5,
            truncated: 6,
            elapsed: Duration::from_secs(2),
            ..Tally::default()
        };
        tally.latencies.add(Duration::from_micros(1_005));
        tally
    }

    #[test]
    fn sums() {
        let tally = tally();
        assert_eq!((tally.failed(), tally.ended()), (6, 21));
        assert!(!tally.all_complete());
        assert!(!Tally::default().all_complete(), "no response at all is no success");
        assert!(Tally { complete: 1, non_2xx: 1, ..Tally::default() }.all_complete());
        assert!(!Tally { complete: 1, truncated: 1, ..Tally::default() }.all_complete());
        assert!(!Tally { complete: 1, reset: 1, ..Tally::default() }.all_complete());
    }

    #[test]
    fn json_has_each_value_under_its_key() {
        let json = json(&options(), &tally());
        for field in [
            r#""url": "http://h/\"""#,
            r#""address": null"#,
            r#""requests": 21"#,
            r#""requests_per_second": 2.000"#,
            r#""failed": 6"#,
            r#""failed_timeout": 2"#,
            r#""reset": 5"#,
            r#""truncated": 6"#,
            r#""latency_p99_ms": 1.005"#,
        ] {
            assert!(json.contains(field), "{field} in {json}");
        }
        assert!(super::json(&options(), &Tally::default()).contains(r#""latency_max_ms": null}"#));
    }

    #[test]
    fn text_says_why_only_where_there_is_something_to_say() {
        let all = text(&options(), &tally());
        assert!(all.contains("Failed         6  (connect 1, time-out 2, bad HTTP 3)\n"), "{all}");
        assert!(all.contains("Complete       4  (1 with a status that is not 2xx)\n"), "{all}");
        let none = text(&options(), &Tally::default());
        assert!(none.contains("Failed         0\n"), "{none}");
        assert!(none.contains("Complete       0\n"), "{none}");
    }

    #[test]
    fn strings_are_escaped() {
        assert_eq!(quoted("a\"b\\c\nd"), r#""a\"b\\c\u000ad""#);
    }
}
