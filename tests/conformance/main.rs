// SPDX-License-Identifier: BSD-3-Clause

//! One suite that any sender passes: what lingerd-protocol(7) has a server do, whatever it is written in. What a program
//! has to do to be tested is said in CONTRIBUTING.md, "What a sender under test does".
//!
//! `make check-sender CMD='...'` runs it on one program, and `make check` on those in the file `senders` whose language
//! is installed.

mod cases;
mod fake;
mod faults;
mod manual;
mod program;
mod report;

use cases::{CASES, Case};
use program::{Program, Stop};
use report::{Column, table};
use std::collections::VecDeque;
use std::panic::{self, AssertUnwindSafe};
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;
use support::daemon::Site;
use support::{PATIENCE, built, not_run, skip};

/// One that can be tested.
struct Sender {
    name: String,
    command: String,
}

/// Those of the file whose needs are there.
fn senders() -> Vec<Sender> {
    let file = built::project().join("tests/conformance/senders");
    let text = std::fs::read_to_string(&file).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    lines
        .filter_map(|line| {
            let fields: Vec<_> = line.splitn(3, '|').map(str::trim).collect();
            let [name, needs, command] = fields[..] else { panic!("{}: {line}", file.display()) };
            let is_there = |need: &&str| {
                if let Some(program) = need.strip_prefix("$BUILT/") {
                    built::scratch().with_file_name(program).exists()
                } else if need.contains('/') {
                    built::project().join(need).exists()
                } else {
                    let path = std::env::var_os("PATH").unwrap_or_default();
                    std::env::split_paths(&path).any(|directory| directory.join(need).is_file())
                }
            };
            let (needs, trial) = needs.split_once(';').unwrap_or((needs, ":"));
            let missing = needs.split_whitespace().find(|need| !is_there(need)).map(str::to_owned);
            let works = || Command::new("sh").arg("-c").arg(trial).output().unwrap().status.success();
            match missing.or_else(|| (!works()).then(|| format!("success of {}", trial.trim()))) {
                Some(missing) => {
                    skip(&format!("{name}: there is no {missing}"));
                    None
                }
                None => Some(Sender { name: name.to_owned(), command: command.to_owned() }),
            }
        })
        .collect()
}

/// What becomes of a program in one case.
fn run(command: &str, case: &'static Case, patience: Duration) -> Result<(), Stop> {
    let program = Program { command: command.to_owned(), case: case.name, patience, site: Site::new() };
    let name = format!("conformance: {}", case.name);
    // In a thread of that name, so that what it says is known to be of that case.
    thread::scope(|scope| {
        let thread = thread::Builder::new().name(name);
        let ran = thread.spawn_scoped(scope, || panic::catch_unwind(AssertUnwindSafe(|| case.run(&program))));
        ran.unwrap().join().unwrap().unwrap_or_else(|why| {
            let why = why.downcast::<String>().map_or_else(
                |why| why.downcast_ref::<&str>().map_or("a panic".to_owned(), |it| (*it).to_owned()),
                |why| *why,
            );
            Err(Stop::Failed(why))
        })
    })
}

/// What becomes of each in all cases, a few at a time: most of it is waiting.
fn run_all(senders: &[Sender]) -> Vec<(String, Column)> {
    let wanted = std::env::var("LINGERD_CHECK_CASES").unwrap_or_default();
    for name in wanted.split_whitespace() {
        assert!(CASES.iter().any(|case| case.name == name), "there is no case '{name}'");
    }
    let is_wanted =
        |case: &&Case| wanted.is_empty() || wanted.split_whitespace().any(|name| name == case.name);
    let all = (0..senders.len()).flat_map(|n| CASES.iter().filter(is_wanted).map(move |case| (n, case)));
    let jobs: Mutex<VecDeque<_>> = Mutex::new(all.collect());
    let empty = senders.iter().map(|sender| (sender.name.clone(), Column::new()));
    let columns: Mutex<Vec<_>> = Mutex::new(empty.collect());
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                loop {
                    let Some((n, case)) = jobs.lock().unwrap().pop_front() else { return };
                    let ended = run(&senders[n].command, case, PATIENCE);
                    columns.lock().unwrap()[n].1.insert(case.name, ended);
                }
            });
        }
    });
    let columns = columns.into_inner().unwrap();
    for (name, column) in &columns {
        for (case, ended) in column {
            if let Err(Stop::NotHere(why)) = ended {
                skip(&format!("{name}, {case}: {why}"));
            }
        }
    }
    columns
}

fn has_failed(columns: &[(String, Column)]) -> bool {
    columns
        .iter()
        .flat_map(|(_, column)| column.values())
        .any(|ended| matches!(ended, Err(Stop::Failed(_) | Stop::Unfit(_))))
}

#[test]
fn every_sender_of_ours_does_what_the_manual_says() {
    let columns = run_all(&senders());
    let table = table(&columns);
    std::fs::write(built::scratch().join("conformance"), &table).unwrap();
    println!("{table}");
    assert!(!has_failed(&columns), "{table}");
}

/// `make check-sender CMD='...'`, with CASES='...' if not all are wanted.
#[test]
fn the_sender_that_is_named_does_what_the_manual_says() -> Result<(), &'static str> {
    let Ok(command) = std::env::var("LINGERD_CHECK_SENDER") else {
        not_run("LINGERD_CHECK_SENDER names no sender: make check-sender CMD='...'");
        return Ok(());
    };
    let columns = run_all(&[Sender { name: "sender".to_owned(), command }]);
    println!("\n{}", table(&columns));
    if has_failed(&columns) { Err("it does not do all that a sender does") } else { Ok(()) }
}

#[test]
fn each_rule_stands_where_the_suite_says() {
    let manual = std::fs::read_to_string(built::project().join("man/lingerd-protocol.7")).unwrap();
    for case in &CASES {
        let heads = [".Sh", ".Ss"].map(|macro_| format!("{macro_} {}", case.section));
        assert!(manual.lines().any(|line| heads.iter().any(|head| head == line)), "{}", case.section);
    }
}
