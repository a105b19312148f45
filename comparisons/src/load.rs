// SPDX-License-Identifier: BSD-3-Clause

//! Runs ablinger, and gives up with its user's patience.

use crate::on_stop;
use lingerd_platform::process;
use lingerd_platform::signals::STOP;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
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

/// A number of a report; `None` for null.
pub fn number(report: &serde_json::Value, key: &str) -> Option<f64> {
    report[key].as_f64()
}

/// One that is there in each report.
pub fn count(report: &serde_json::Value, key: &str) -> f64 {
    number(report, key).unwrap_or_else(|| panic!("ablinger says nothing of {key}"))
}
