// SPDX-License-Identifier: BSD-3-Clause

//! Where figures were measured: the machine, and the versions of what ran on it.
//!
//! Must not know what was measured.

use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::thread;
use support::built;

/// The machine, how busy it is now, lingerd, and other programs by their names.
pub fn machine(programs: &[(&str, String)]) -> Value {
    let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let processor = file("/proc/cpuinfo").lines().find_map(|line| {
        line.strip_prefix("model name").map(|name| name.trim_start_matches(['\t', ' ', ':']).to_owned())
    });
    let mut machine = json!({
        "kernel": file("/proc/sys/kernel/osrelease").trim(),
        "processor": processor,
        "processors": thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "load": load(),
        "lingerd": built::program("lingerd").map_or(String::new(), |lingerd| version(&lingerd, "-V")),
    });
    for (name, version) in programs {
        machine[name] = version.as_str().into();
    }
    machine
}

/// The load averages of the last 1, 5 and 15 minutes: proc(5), loadavg.
fn load() -> String {
    let told = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    told.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// What a program says of its version: the first line, wherever it is written.
pub fn version(program: &Path, option: &str) -> String {
    let Ok(output) = Command::new(program).arg(option).output() else { return String::new() };
    let said = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&said).lines().next().unwrap_or_default().to_owned()
}

/// It for people, a line for each thing.
pub fn print(machine: &Value) {
    for (name, value) in machine.as_object().into_iter().flatten() {
        println!("{name:<10} {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    }
}

/// Prints the machine, with how busy it is at the end, and writes it with what was measured there. The report that was
/// written.
pub fn conclude(name: &str, mut machine: Value, rows: Vec<Value>) -> Value {
    machine["load after"] = load().into();
    println!();
    print(&machine);
    let report = json!({ "machine": machine, "rows": rows });
    write_report(name, &report);
    report
}

/// Writes what was measured where `name` says, in the project, and says where.
pub fn write_report(name: &str, report: &Value) {
    let path = built::project().join(name);
    let written =
        path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, report.to_string()));
    match written {
        Ok(()) => println!("\neach run by itself: {name}"),
        Err(e) => eprintln!("{}: {e}", path.display()),
    }
}

/// Has what was written there last drawn again, and says why where there is none, or it is no JSON.
pub fn draw_again(name: &str, draw: impl FnOnce(&Value)) -> ExitCode {
    let text = fs::read_to_string(built::project().join(name)).map_err(|error| error.to_string());
    let report = text.and_then(|text| serde_json::from_str(&text).map_err(|error| error.to_string()));
    match report.map(|report| draw(&report)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{name}: {why}");
            ExitCode::FAILURE
        }
    }
}
