// SPDX-License-Identifier: BSD-3-Clause

//! Runs ablinger, and gives up with its user's patience.

use crate::on_stop;
use lingerd_platform::process;
use lingerd_platform::signals::STOP;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use support::built;

/// Whether somebody has lost patience.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// The ablinger that runs, or 0.
static ABLINGER: AtomicI32 = AtomicI32::new(0);

/// On SIGINT, SIGTERM and SIGHUP ends the ablinger that runs, and with it the measuring.
pub fn watch_signals() {
    on_stop(|| {
        INTERRUPTED.store(true, Ordering::SeqCst);
        let ablinger = ABLINGER.load(Ordering::SeqCst);
        if ablinger > 0 {
            let _ = process::kill(ablinger, STOP);
        }
    });
}

/// ablinger's JSON object for a run against `url`. Panics without a word once somebody has lost patience.
pub fn ablinger(url: &str, options: &[&str]) -> serde_json::Value {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| built::program("ablinger").expect("it was there in main()"));
    let child = Command::new(program)
        .args(["-o", "json"])
        .args(options)
        .arg(url)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ablinger");
    ABLINGER.store(child.id() as i32, Ordering::SeqCst);
    let output = child.wait_with_output().expect("ablinger");
    ABLINGER.store(0, Ordering::SeqCst);
    if INTERRUPTED.load(Ordering::SeqCst) {
        std::panic::resume_unwind(Box::new("interrupted")); // without a word: see main()
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout);
    let report = report.unwrap_or_else(|_| panic!("ablinger has failed: {said}"));
    if !said.is_empty() {
        eprint!("{said}");
    }
    report
}

/// How far a run is.
pub struct Clock {
    start: Instant,
    seconds: f64,
}

impl Clock {
    /// Waits until this part of the run is over. At 1.0 all its clients are still there.
    pub fn wait_for(&self, part: f64) {
        let until = self.start + Duration::from_secs_f64(self.seconds * part);
        thread::sleep(until.saturating_duration_since(Instant::now()));
    }
}

/// ablinger's JSON object for a run of so many seconds against `url`, and what `watch` has seen meanwhile. CPU time is to
/// be looked at when the clock says that it is over: once the clients have gone the server works off what is left in
/// its queue, and no report has any of that.
pub fn ablinger_for<T: Send>(
    url: &str,
    options: &[&str],
    seconds: f64,
    watch: impl FnOnce(&Clock) -> T + Send,
) -> (serde_json::Value, T) {
    thread::scope(|scope| {
        let watching = scope.spawn(|| watch(&Clock { start: Instant::now(), seconds }));
        let report = ablinger(url, &[options, &["-t", &seconds.to_string()]].concat());
        (report, watching.join().expect("what watches does not panic"))
    })
}

/// A number of a report; `None` for null.
pub fn number(report: &serde_json::Value, key: &str) -> Option<f64> {
    report[key].as_f64()
}

/// Requests that got something else than their answer.
pub fn failures(report: &serde_json::Value) -> f64 {
    ["reset", "truncated", "failed", "bad_status"].map(|key| count(report, key)).iter().sum()
}

/// One that is there in each report.
pub fn count(report: &serde_json::Value, key: &str) -> f64 {
    number(report, key).unwrap_or_else(|| panic!("ablinger says nothing of {key}"))
}
