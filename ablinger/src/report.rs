// SPDX-License-Identifier: BSD-3-Clause

//! What was counted, and how it is printed.
//!
//! The JSON keys are an interface, listed in ablinger(1): they may grow in number, never change.
//! Must not know how the numbers came about.

use crate::latency::Latencies;
use crate::options::Options;
use serde::Serialize;
use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

/// The counts of one run.
#[derive(Default)]
pub struct Tally {
    /// Responses that came whole, with a status of 2xx or 3xx.
    pub complete: u64,
    /// Responses that came whole, with another status.
    pub bad_status: u64,
    /// Responses that came whole, and whose status is not 2xx.
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
    /// Connections reset while they were held, after a whole response.
    pub reset_while_held: u64,
    /// The most sockets that were held at once.
    pub held_peak: u32,
    /// Connections made.
    pub connections: u64,
    /// Connections that the server ended with a response although more requests were to come.
    pub not_kept: u64,
    /// Connections that the server ended between two requests.
    pub closed_while_kept: u64,
    /// Requests made once more, as the server had just ended the connection kept for them.
    pub reopened: u64,
    /// All bytes received.
    pub bytes: u64,
    /// The content of the complete responses.
    pub content_bytes: u64,
    /// From before the first connect until the run ended.
    pub elapsed: Duration,
    /// Of the complete responses, and of the requests without any: since they were due.
    pub latencies: Latencies,
    /// The same up to the first byte of any response.
    pub first_bytes: Latencies,
    /// The address that was connected to, if any was.
    pub address: Option<SocketAddr>,
    /// Somebody has ended the run early.
    pub interrupted: bool,
}

impl Tally {
    /// Requests without a response that could be read.
    pub fn failed(&self) -> u64 {
        self.failed_connect + self.failed_timeout + self.failed_http
    }

    /// All requests that came to an end.
    pub fn ended(&self) -> u64 {
        self.complete + self.bad_status + self.failed() + self.reset + self.truncated
    }

    /// Whether there were responses, and each of them came whole and well.
    pub fn all_complete(&self) -> bool {
        self.complete > 0 && self.complete == self.ended()
    }

    /// Complete responses a second.
    pub fn requests_per_second(&self) -> f64 {
        self.complete as f64 / self.seconds()
    }

    /// Bytes received a second.
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds()
    }

    fn seconds(&self) -> f64 {
        // The least time avoids a division by zero; no request takes less.
        self.elapsed.as_secs_f64().max(1e-6)
    }
}

/// The percentiles that are printed; 0 and 100 are the least and the greatest.
const PERCENTILES: [(u32, &str); 6] =
    [(0, "min"), (50, "50%"), (90, "90%"), (95, "95%"), (99, "99%"), (100, "max")];

/// Microseconds as milliseconds.
fn ms(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

/// A percentile for people; what is longer than the run tells is said to be so.
pub fn percentile(latencies: &Latencies, percent: u32) -> String {
    match latencies.percentile(percent) {
        Some(micros) => format!("{:.3}", ms(micros)),
        None if latencies.unanswered() > 0 => format!("> {:.0}", ms(latencies.longest_wait())),
        None => "-".to_owned(),
    }
}

/// What the clients do, as a list of words.
fn habits(options: &Options) -> String {
    let mut habits = Vec::new();
    if let Some(rate) = options.rate {
        habits.push(format!("{rate} requests due a second"));
    }
    if options.keep > 1 {
        habits.push(format!("up to {} requests on a connection", options.keep));
    }
    if options.pause_ms > 0 {
        habits.push(format!("each pausing for {} ms after a response", options.pause_ms));
    }
    if let Some(bytes) = options.read_rate {
        habits.push(format!("each reading {bytes} bytes a second"));
    }
    let deviation = match options.stddev_ms {
        0 => String::new(),
        stddev => format!(" (standard deviation {stddev} ms)"),
    };
    habits.push(format!("each holding its socket for {} ms{deviation}", options.linger_ms));
    habits.join(", ")
}

/// The report for people.
pub fn text(options: &Options, tally: &Tally) -> String {
    let mut lines = Vec::new();
    let mut line = |name: &'static str, value: String| lines.push((name, value));
    let address = tally.address.map(|address| format!(" at {address}")).unwrap_or_default();
    line("URL", format!("{}{address}", options.target.url));
    line("Clients", format!("{}, {}", options.concurrency, habits(options)));
    line("Time", format!("{:.3} s", tally.elapsed.as_secs_f64()));
    line("Requests/s", format!("{:.2}", tally.requests_per_second()));
    line("Complete", tally.complete.to_string());
    let redirects = match tally.non_2xx - tally.bad_status {
        0 => String::new(),
        n => format!("  ({n} complete with 3xx)"),
    };
    line("Bad status", format!("{}{redirects}", tally.bad_status));
    let why = match tally.failed() {
        0 => String::new(),
        _ => format!(
            "  (connect {}, time-out {}, bad HTTP {})",
            tally.failed_connect, tally.failed_timeout, tally.failed_http
        ),
    };
    line("Failed", format!("{}{why}", tally.failed()));
    line("Reset", tally.reset.to_string());
    line("Truncated", tally.truncated.to_string());
    let longest = match tally.latencies.unanswered() {
        0 => String::new(),
        _ => format!("  (for up to {:.3} s)", tally.latencies.longest_wait() as f64 / 1e6),
    };
    line("Unanswered", format!("{}{longest}", tally.latencies.unanswered()));
    line("Held at once", tally.held_peak.to_string());
    line("Reset in hold", tally.reset_while_held.to_string());
    let kept = match options.keep {
        1 => String::new(),
        _ => format!(
            "  (the server ended {} with a response, {} in a pause, {} just before a request)",
            tally.not_kept, tally.closed_while_kept, tally.reopened
        ),
    };
    line("Connections", format!("{}{kept}", tally.connections));
    line("Received", format!("{} bytes, {} of them content", tally.bytes, tally.content_bytes));

    let mut names = String::new();
    let mut values = String::new();
    let mut first = String::new();
    for (percent, name) in PERCENTILES {
        let value = percentile(&tally.latencies, percent);
        let first_byte = percentile(&tally.first_bytes, percent);
        let width = value.len().max(first_byte.len()).max(9);
        // Writing to a String cannot fail.
        let _ = write!(names, "{name:>width$} ");
        let _ = write!(values, "{value:>width$} ");
        let _ = write!(first, "{first_byte:>width$} ");
    }
    line("Latency (ms)", names.trim_end().to_owned());
    line("", values.trim_end().to_owned());
    line("First byte", first.trim_end().to_owned());

    let mut text = String::new();
    for (name, value) in lines {
        let _ = writeln!(text, "{name:<15}{value}");
    }
    text
}

/// The report for programs.
#[derive(Serialize)]
pub struct Report<'a> {
    url: &'a str,
    address: Option<SocketAddr>,
    concurrency: u32,
    linger_ms: u32,
    stddev_ms: u32,
    rate: Option<f64>,
    read_rate: Option<u32>,
    requests_per_connection: u32,
    pause_ms: u32,
    seconds: f64,
    requests: u64,
    requests_per_second: f64,
    complete: u64,
    bad_status: u64,
    non_2xx: u64,
    failed: u64,
    failed_connect: u64,
    failed_timeout: u64,
    failed_http: u64,
    reset: u64,
    truncated: u64,
    unanswered: u64,
    longest_wait_ms: f64,
    held_peak: u32,
    reset_while_held: u64,
    connections: u64,
    not_kept: u64,
    closed_while_kept: u64,
    reopened: u64,
    bytes: u64,
    content_bytes: u64,
    latency_min_ms: Option<f64>,
    latency_p50_ms: Option<f64>,
    latency_p90_ms: Option<f64>,
    latency_p95_ms: Option<f64>,
    latency_p99_ms: Option<f64>,
    latency_max_ms: Option<f64>,
    first_byte_p50_ms: Option<f64>,
    first_byte_p99_ms: Option<f64>,
}

/// So many digits behind the point, as more are noise.
fn rounded(value: f64, digits: i32) -> f64 {
    let unit = 10f64.powi(digits);
    (value * unit).round() / unit
}

impl<'a> Report<'a> {
    /// What there is to tell of a run.
    pub fn new(options: &'a Options, tally: &Tally) -> Report<'a> {
        let latency = |percent| tally.latencies.percentile(percent).map(ms);
        let first_byte = |percent| tally.first_bytes.percentile(percent).map(ms);
        Report {
            url: &options.target.url,
            address: tally.address,
            concurrency: options.concurrency,
            linger_ms: options.linger_ms,
            stddev_ms: options.stddev_ms,
            rate: options.rate,
            read_rate: options.read_rate,
            requests_per_connection: options.keep,
            pause_ms: options.pause_ms,
            seconds: rounded(tally.elapsed.as_secs_f64(), 6),
            requests: tally.ended(),
            requests_per_second: rounded(tally.requests_per_second(), 3),
            complete: tally.complete,
            bad_status: tally.bad_status,
            non_2xx: tally.non_2xx,
            failed: tally.failed(),
            failed_connect: tally.failed_connect,
            failed_timeout: tally.failed_timeout,
            failed_http: tally.failed_http,
            reset: tally.reset,
            truncated: tally.truncated,
            unanswered: tally.latencies.unanswered(),
            longest_wait_ms: ms(tally.latencies.longest_wait()),
            held_peak: tally.held_peak,
            reset_while_held: tally.reset_while_held,
            connections: tally.connections,
            not_kept: tally.not_kept,
            closed_while_kept: tally.closed_while_kept,
            reopened: tally.reopened,
            bytes: tally.bytes,
            content_bytes: tally.content_bytes,
            latency_min_ms: latency(0),
            latency_p50_ms: latency(50),
            latency_p90_ms: latency(90),
            latency_p95_ms: latency(95),
            latency_p99_ms: latency(99),
            latency_max_ms: latency(100),
            first_byte_p50_ms: first_byte(50),
            first_byte_p99_ms: first_byte(99),
        }
    }
}

/// `value` as one JSON object (RFC 8259) and a line feed.
pub fn json(value: &impl Serialize) -> String {
    let object = serde_json::to_string(value).expect("numbers and strings under names that are strings");
    format!("{object}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Format, Stop, Target};

    fn options() -> Options {
        Options {
            concurrency: 3,
            stop: Stop::Requests(4),
            rate: None,
            linger_ms: 50,
            stddev_ms: 5,
            read_rate: None,
            keep: 1,
            pause_ms: 0,
            profile: false,
            format: Format::Text,
            plot: None,
            target: Target {
                url: "http://h/\"".into(),
                host: "h".into(),
                zone: None,
                port: 80,
                authority: "h".into(),
                path: "/\"".into(),
            },
        }
    }

    fn tally() -> Tally {
        let mut tally = Tally {
            complete: 4,
            bad_status: 2,
            non_2xx: 3,
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
        assert_eq!((tally.failed(), tally.ended()), (6, 23));
        assert!(!tally.all_complete());
        assert!(!Tally::default().all_complete(), "no response at all is no success");
        assert!(Tally { complete: 1, non_2xx: 1, ..Tally::default() }.all_complete());
        assert!(!Tally { complete: 1, bad_status: 1, ..Tally::default() }.all_complete());
        assert!(!Tally { complete: 1, truncated: 1, ..Tally::default() }.all_complete());
        assert!(!Tally { complete: 1, reset: 1, ..Tally::default() }.all_complete());
    }

    #[test]
    fn json_has_each_value_under_its_key() {
        let options = options();
        let text = json(&Report::new(&options, &tally()));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        for (key, expected) in [
            ("url", serde_json::json!("http://h/\"")),
            ("address", serde_json::Value::Null),
            ("requests", 23.into()),
            ("requests_per_second", 2.0.into()),
            ("bad_status", 2.into()),
            ("failed", 6.into()),
            ("failed_timeout", 2.into()),
            ("reset", 5.into()),
            ("truncated", 6.into()),
            ("latency_p99_ms", 1.005.into()),
            ("first_byte_p99_ms", serde_json::Value::Null),
        ] {
            assert_eq!(value[key], expected, "{key}");
        }
        assert!(text.ends_with("}\n"));
    }

    #[test]
    fn text_says_why_only_where_there_is_something_to_say() {
        let all = text(&options(), &tally());
        assert!(all.contains("Failed         6  (connect 1, time-out 2, bad HTTP 3)\n"), "{all}");
        assert!(all.contains("Bad status     2  (1 complete with 3xx)\n"), "{all}");
        assert!(all.contains("Unanswered     0\n"), "{all}");
        let none = text(&options(), &Tally::default());
        assert!(none.contains("Failed         0\n"), "{none}");
        assert!(none.contains("Complete       0\n"), "{none}");
        assert!(none.contains("Bad status     0\n"), "{none}");
    }

    #[test]
    fn a_percentile_that_is_longer_than_the_run_is_no_number() {
        let mut tally = tally();
        for _ in 0..3 {
            tally.latencies.add_waiting(Duration::from_secs(9));
        }
        let text = text(&options(), &tally);
        assert!(text.contains("Unanswered     3  (for up to 9.0"), "{text}");
        assert!(text.contains("> 9000") || text.contains("> 900"), "{text}");
        assert_eq!(tally.latencies.percentile(0), Some(1_005));
    }
}
