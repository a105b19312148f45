// SPDX-License-Identifier: BSD-3-Clause

//! Clients that read slowly, of ten workers that make pages, with what people put before those, or beside: a
//! part of `make bench`.
//!
//! Each set-up runs by itself, one after the other, on this machine, as do its clients; what is printed was
//! measured in this run. What it takes is what all its processes take, and what the kernel keeps for it.
//!
//! A row is a single run, as one of each takes two minutes, with more clients than `waits` has: `waits` has the rounds,
//! and tells what is chance.

use comparisons::machine::conclude;
use comparisons::set_up::{self, Clients, Kind, SetUp};
use comparisons::weigh::Memory;
use comparisons::{load, print_table, progress, row};
use serde_json::{Value, json};
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};
use support::during;

/// Where the figures are written, beside being printed.
const REPORT: &str = "target/slow.json";

const WORKERS: usize = 10;

/// How many clients there are, unless others are asked for.
const CROWDS: [usize; 1] = [2000];

/// How many bytes a second a client reads.
const RATE: usize = 50_000;

/// The pages, unless others are asked for.
const PAGES: [usize; 1] = [300_000];

/// For how long to look at each: until all clients have had whole pages, and this at least.
const SECONDS: f64 = 15.0;

/// How often to look at the workers, and at memory.
const LOOK: Duration = Duration::from_millis(250);
const WEIGH: Duration = Duration::from_secs(1);

const WHAT_IT_NEEDS: &str =
    "it takes Apache 2.4 with apxs and mod_php, openssl, nginx, php-fpm and ss; on Debian:
    apt-get install apache2-bin apache2-dev libapache2-mod-php openssl iproute2
and what 'sh ci/packages torture' unpacks";

fn main() -> ExitCode {
    // Cargo adds --bench.
    let given = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let Some(wanted) = Wanted::parse(given) else {
        eprintln!(
            "usage: cargo bench -p comparisons --bench slow [-- [bytes of a page | clients=number | set-up] ...]\n\
             Set-ups: {}",
            Kind::SLOW_READERS.map(Kind::word).join(", ")
        );
        return ExitCode::from(2);
    };
    comparisons::run(|| compare(&wanted), WHAT_IT_NEEDS)
}

/// What to compare.
struct Wanted {
    pages: Vec<usize>,
    crowds: Vec<usize>,
    kinds: Vec<Kind>,
}

impl Wanted {
    /// What a command line asks for; what it does not speak of is as it usually is.
    fn parse(given: impl Iterator<Item = String>) -> Option<Wanted> {
        let (mut pages, mut crowds, mut kinds) = (Vec::new(), Vec::new(), Vec::new());
        for word in given {
            if let Some(kind) = Kind::SLOW_READERS.into_iter().find(|kind| kind.word() == word) {
                kinds.push(kind);
            } else if let Some(number) = word.strip_prefix("clients=") {
                crowds.push(number.parse().ok().filter(|&number| number > 0)?);
            } else {
                pages.push(word.parse().ok().filter(|&number| number > 0)?);
            }
        }
        fn or<T: Clone>(given: Vec<T>, usual: &[T]) -> Vec<T> {
            if given.is_empty() { usual.to_vec() } else { given }
        }
        Some(Wanted {
            pages: or(pages, &PAGES),
            crowds: or(crowds, &CROWDS),
            kinds: or(kinds, &Kind::SLOW_READERS),
        })
    }
}

fn compare(wanted: &Wanted) -> Result<(), String> {
    let machine = set_up::machine();
    let mut report = Vec::new();
    for &page in &wanted.pages {
        for &clients in &wanted.crowds {
            let mut rows = vec![row([
                "",
                "pages/s",
                "of limit",
                "worker held",
                "CPU s/1000",
                "memory",
                "processes",
                "sockets",
                "files",
                "not whole",
            ])];
            let mut runs = Vec::new();
            for &kind in &wanted.kinds {
                let run = Run::measure(kind, page, clients)?;
                rows.push(run.row(kind, page, clients));
                runs.push((kind.word(), vec![run.json()]));
            }
            println!(
                "\n{clients} clients that read {RATE} bytes a second; pages of {page} bytes by PHP, {WORKERS} workers. \
                 Memory in MB, when it was most.\n"
            );
            print_table(&rows);
            report.push(json!({
                "clients": clients, "bytes_per_second": RATE, "page": page, "workers": WORKERS,
                "limit": limit(page, clients), "set_ups": runs.into_iter().collect::<Value>(),
            }));
        }
    }
    conclude(REPORT, machine, report);
    Ok(())
}

/// Pages a second that these clients can have at most.
fn limit(page: usize, clients: usize) -> f64 {
    (clients * RATE) as f64 / page as f64
}

/// What came of one set-up.
struct Run {
    seconds: f64,
    /// Pages, to a fraction: by the bytes that clients have read.
    pages: f64,
    /// Reset, cut short or failed.
    broken: f64,
    cpu: f64,
    /// Worker seconds.
    held: f64,
    memory: Memory,
}

impl Run {
    fn measure(kind: Kind, page: usize, clients: usize) -> Result<Run, String> {
        let generation = page as f64 / RATE as f64;
        let seconds = generation * (SECONDS / generation).ceil();
        progress(&format!("{}: {clients} clients, pages of {page} bytes, {seconds:.0} s", kind.name()));
        let set_up = SetUp::try_start(kind, Clients::SlowReaders, WORKERS)?;
        set_up.publish("page.php", format!("<?php echo str_repeat('x', {page});").as_bytes());
        let url = format!("http://{}/page.php", set_up.server.plain);
        // Once for each worker, so that none is new.
        load::ablinger(&url, &["-c", "10", "-n", "100", "-l", "0"]);
        let looks = Mutex::new(Looks::default());
        let before = set_up.cpu();
        let (report, cpu) = during(
            || {
                looks.lock().unwrap().look(&set_up);
                thread::sleep(LOOK);
            },
            || {
                let [clients, rate] = [clients, RATE].map(|number| number.to_string());
                load::ablinger_for(&url, &["-c", &clients, "-B", &rate, "-l", "0"], seconds, |clock| {
                    clock.wait_for(1.0);
                    set_up.cpu() - before
                })
            },
        );
        let looks = looks.into_inner().unwrap();
        let count = |key| load::count(&report, key);
        Ok(Run {
            seconds: count("seconds"),
            pages: count("bytes") / page as f64,
            broken: load::failures(&report),
            cpu,
            held: looks.held as f64 / looks.number as f64 * count("seconds"),
            memory: looks.memory,
        })
    }

    /// Pages a second.
    fn rate(&self) -> f64 {
        self.pages / self.seconds
    }

    /// Seconds for which a page holds a worker.
    fn held_each(&self) -> f64 {
        self.held / self.pages
    }

    /// CPU seconds for 1,000 pages.
    fn cpu_per_1000(&self) -> f64 {
        self.cpu / self.pages * 1000.0
    }

    fn json(&self) -> Value {
        json!({
            "rate": self.rate(), "held_seconds": self.held_each(), "cpu_per_1000": self.cpu_per_1000(),
            "memory": self.memory.json(), "failed": self.broken, "seconds": self.seconds,
        })
    }

    fn row(&self, kind: Kind, page: usize, clients: usize) -> [String; 10] {
        let rate = self.rate();
        let mb = |bytes: u64| format!("{:.0}", bytes as f64 / 1e6);
        [
            kind.name().to_owned(),
            format!("{rate:.2}"),
            format!("{:.2}", rate / limit(page, clients)),
            time(self.held_each()),
            format!("{:.2}", self.cpu_per_1000()),
            mb(self.memory.total()),
            mb(self.memory.processes),
            mb(self.memory.sockets),
            mb(self.memory.files),
            format!("{}", self.broken),
        ]
    }
}

/// What is seen while clients are there.
#[derive(Default)]
struct Looks {
    number: usize,
    /// The sum of what was held.
    held: usize,
    /// The most.
    memory: Memory,
    weighed: Option<Instant>,
}

impl Looks {
    fn look(&mut self, set_up: &SetUp) {
        self.number += 1;
        self.held += set_up.held();
        if self.weighed.is_none_or(|last| last.elapsed() >= WEIGH) {
            let memory = set_up.memory();
            if memory.total() > self.memory.total() {
                self.memory = memory;
            }
            self.weighed = Some(Instant::now());
        }
    }
}

/// Seconds for people.
fn time(seconds: f64) -> String {
    if seconds < 1.0 { format!("{:.1} ms", seconds * 1000.0) } else { format!("{seconds:.1} s") }
}
