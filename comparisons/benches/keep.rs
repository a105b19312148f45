// SPDX-License-Identifier: BSD-3-Clause

//! Clients that keep their connections, and think between two requests, of ten workers that make pages: a part of
//! `make bench`.
//!
//! Each set-up runs by itself, one after the other, on this machine, as do its clients; what is printed was
//! measured in this run. What it takes is what all its processes take, and what the kernel keeps for it. Then
//! clients that do not think, of which there is nothing to be parked: what it costs that there could be.
//!
//! Of clients that think a row is a single run, as one of each takes a minute, with more of them than `waits` has:
//! `waits` has the rounds, and tells what is chance.

use comparisons::machine::conclude;
use comparisons::set_up::{self, Clients, Kind, SetUp};
use comparisons::weigh::Memory;
use comparisons::{latency, load, print_table, progress, row, spread};
use serde_json::{Value, json};
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;
use support::during;

/// Where the figures are written, beside being printed.
const REPORT: &str = "target/keep.json";

const WORKERS: usize = 10;

/// What each client asks for.
const PAGE: &str = "<?php echo str_repeat('x', 20000);";

/// How many clients there are, unless others are asked for.
const CROWDS: [usize; 1] = [8000];

/// For how long a client thinks.
const PAUSE_MS: usize = 1000;

/// How many requests a client makes on a connection, if the server lets it: Apache's own MaxKeepAliveRequests.
const REQUESTS: usize = 100;

/// For how long to look at each.
const SECONDS: usize = 10;

/// How often to look at memory. That takes a while with thousands of sockets.
const WEIGH: Duration = Duration::from_secs(2);

/// Runs of clients that do not think, with and without parking.
const PAIRS: usize = 7;
const PAIR_SECONDS: usize = 2;

const WHAT_IT_NEEDS: &str = "it takes Apache 2.4 with apxs and mod_php, nginx, php-fpm and ss; on Debian:
    apt-get install apache2-bin apache2-dev libapache2-mod-php iproute2
and what 'sh ci/packages torture' unpacks";

fn main() -> ExitCode {
    // Cargo adds --bench.
    let given = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let Some(wanted) = Wanted::parse(given) else {
        eprintln!(
            "usage: cargo bench -p comparisons --bench keep [-- [clients=number | set-up | saturated] ...]\n\
             Set-ups: {}",
            Kind::KEPT.map(Kind::word).join(", ")
        );
        return ExitCode::from(2);
    };
    comparisons::run(
        || {
            let machine = set_up::machine();
            let mut report = compare(&wanted)?;
            if wanted.saturated {
                report.push(saturate()?);
            }
            conclude(REPORT, machine, report);
            Ok(())
        },
        WHAT_IT_NEEDS,
    )
}

/// What to compare.
struct Wanted {
    crowds: Vec<usize>,
    kinds: Vec<Kind>,
    /// Clients that do not think, too.
    saturated: bool,
}

impl Wanted {
    /// What a command line asks for; all, if it is silent.
    fn parse(given: impl Iterator<Item = String>) -> Option<Wanted> {
        let (mut crowds, mut kinds, mut saturated) = (Vec::new(), Vec::new(), false);
        for word in given {
            if let Some(kind) = Kind::KEPT.into_iter().find(|kind| kind.word() == word) {
                kinds.push(kind);
            } else if word == "saturated" {
                saturated = true;
            } else {
                let number = word.strip_prefix("clients=")?.parse();
                crowds.push(number.ok().filter(|&number| number > 0)?);
            }
        }
        let is_all = crowds.is_empty() && kinds.is_empty();
        if crowds.is_empty() && !(is_all && saturated) {
            crowds = CROWDS.to_vec();
        }
        if kinds.is_empty() {
            kinds = Kind::KEPT.to_vec();
        }
        Some(Wanted { crowds, kinds, saturated: saturated || is_all })
    }
}

fn start(kind: Kind) -> Result<(SetUp, String), String> {
    let set_up = SetUp::try_start(kind, Clients::Kept, WORKERS)?;
    set_up.publish("page.php", PAGE.as_bytes());
    let url = format!("http://{}/page.php", set_up.server.plain);
    // Once for each worker, so that none is new.
    load::ablinger(&url, &["-c", "10", "-n", "100", "-l", "0"]);
    Ok((set_up, url))
}

/// ablinger's JSON object for clients that keep their connections, and the CPU seconds that they cost.
fn ablinger((set_up, url): (&SetUp, &str), clients: usize, pause_ms: usize, seconds: usize) -> (Value, f64) {
    let [clients, pause, keep] = [clients, pause_ms, REQUESTS].map(|number| number.to_string());
    let options = ["-c", &clients, "-k", &keep, "-p", &pause, "-l", "0"];
    let before = set_up.cpu();
    load::ablinger_for(url, &options, seconds as f64, |clock| {
        clock.wait_for(1.0);
        set_up.cpu() - before
    })
}

// ---- Clients that think ---------------------------------------------------------------------

fn compare(wanted: &Wanted) -> Result<Vec<Value>, String> {
    let mut report = Vec::new();
    for &clients in &wanted.crowds {
        let mut rows = vec![row([
            "",
            "answers/s",
            "median",
            "p99",
            "CPU s/1000",
            "memory",
            "processes",
            "sockets",
            "failed",
            "unanswered",
        ])];
        let mut runs = Vec::new();
        for &kind in &wanted.kinds {
            let run = Thinking::measure(kind, clients)?;
            rows.push(run.row(kind));
            runs.push((kind.word(), vec![run.json()]));
        }
        println!(
            "\n{clients} clients that ask once a second and keep their connections; 20 kB by PHP, {WORKERS} workers. \
             Memory in MB, when it was most.\n"
        );
        print_table(&rows);
        report.push(json!({
            "clients": clients, "pause_ms": PAUSE_MS, "workers": WORKERS,
            "set_ups": runs.into_iter().collect::<Value>(),
        }));
    }
    Ok(report)
}

/// What came of one set-up.
struct Thinking {
    rate: f64,
    median_ms: Option<f64>,
    p99_ms: Option<f64>,
    /// CPU seconds for a thousand requests.
    cpu: f64,
    memory: Memory,
    failures: f64,
    unanswered: f64,
}

impl Thinking {
    fn measure(kind: Kind, clients: usize) -> Result<Thinking, String> {
        progress(&format!("{}: {clients} clients, {SECONDS} s", kind.name()));
        let (set_up, url) = start(kind)?;
        let most = Mutex::new(Memory::default());
        let (report, cpu) = during(
            || {
                thread::sleep(WEIGH);
                let memory = set_up.memory();
                let mut most = most.lock().unwrap();
                if memory.total() > most.total() {
                    *most = memory;
                }
            },
            || ablinger((&set_up, &url), clients, PAUSE_MS, SECONDS),
        );
        let count = |key| load::count(&report, key);
        Ok(Thinking {
            rate: count("requests_per_second"),
            median_ms: load::number(&report, "latency_p50_ms"),
            p99_ms: load::number(&report, "latency_p99_ms"),
            cpu: cpu / count("complete") * 1000.0,
            memory: most.into_inner().unwrap(),
            failures: load::failures(&report),
            unanswered: count("unanswered"),
        })
    }

    fn json(&self) -> Value {
        json!({
            "rate": self.rate, "latency_p50_ms": self.median_ms, "latency_p99_ms": self.p99_ms,
            "cpu_per_1000": self.cpu, "memory": self.memory.json(), "failed": self.failures,
            "unanswered": self.unanswered, "seconds": SECONDS,
        })
    }

    fn row(&self, kind: Kind) -> [String; 10] {
        let mb = |bytes: u64| format!("{:.0}", bytes as f64 / 1e6);
        [
            kind.name().to_owned(),
            format!("{:.1}", self.rate),
            latency(self.median_ms, SECONDS as f64),
            latency(self.p99_ms, SECONDS as f64),
            format!("{:.3}", self.cpu),
            mb(self.memory.total()),
            mb(self.memory.processes),
            mb(self.memory.sockets),
            self.failures.to_string(),
            self.unanswered.to_string(),
        ]
    }
}

// ---- Clients that do not --------------------------------------------------------------------

/// As many as there are workers, so that each can have one for itself.
fn saturate() -> Result<Value, String> {
    progress(&format!("clients that do not think, {PAIRS} times {PAIR_SECONDS} s each"));
    let kinds = [Kind::Stock, Kind::Lingerd];
    let [stock, park] = kinds.map(start);
    let set_ups = [stock?, park?];
    let counters = || {
        let lingerd = set_ups[1].0.lingerd.as_ref().expect("it has one");
        lingerd.counters()
    };
    let before = counters();
    let mut runs: [Vec<Run>; 2] = [Vec::new(), Vec::new()];
    for pair in 0..PAIRS {
        // Who comes first changes, so that what drifts does so for both.
        for n in if pair % 2 == 0 { [0, 1] } else { [1, 0] } {
            runs[n].push(Run::measure(&set_ups[n]));
        }
    }
    println!(
        "\n{WORKERS} clients that ask again at once; median of {PAIRS} runs of {PAIR_SECONDS} s, and least to greatest\n"
    );
    let line = |kind: Kind, runs: &[Run]| {
        let of = |figure: fn(&Run) -> f64| runs.iter().map(figure).collect::<Vec<_>>();
        [
            kind.name().to_owned(),
            spread(of(|run| run.rate), 0),
            spread(of(|run| run.cpu), 3),
            of(|run| run.failures).iter().sum::<f64>().to_string(),
        ]
    };
    print_table(&[
        row(["", "answers/s", "CPU s/1000", "failed"]),
        line(kinds[0], &runs[0]),
        line(kinds[1], &runs[1]),
    ]);
    let ratios = |figure: fn(&Run) -> f64| {
        let pairs = runs[0].iter().zip(&runs[1]);
        spread(pairs.map(|(stock, park)| figure(park) / figure(stock)).collect(), 2)
    };
    println!("\nrate with parking by rate of stock, run by run: {}", ratios(|run| run.rate));
    println!("CPU with parking by CPU of stock, run by run: {}", ratios(|run| run.cpu));
    let returned = counters()["returned"] - before["returned"];
    println!("requests that came through lingerd, all runs: {returned}");
    let each = kinds.iter().zip(&runs);
    let each = each.map(|(kind, runs)| (kind.word(), runs.iter().map(Run::json).collect::<Value>()));
    Ok(json!({
        "clients": WORKERS, "pause_ms": 0, "workers": WORKERS, "returned": returned,
        "set_ups": each.collect::<Value>(),
    }))
}

struct Run {
    rate: f64,
    /// CPU seconds for a thousand requests.
    cpu: f64,
    failures: f64,
}

impl Run {
    fn measure((set_up, url): &(SetUp, String)) -> Run {
        let (report, cpu) = ablinger((set_up, url), WORKERS, 0, PAIR_SECONDS);
        let complete = load::count(&report, "complete");
        Run {
            rate: load::count(&report, "requests_per_second"),
            cpu: cpu / complete * 1000.0,
            failures: load::failures(&report),
        }
    }

    fn json(&self) -> Value {
        json!({
            "rate": self.rate, "cpu_per_1000": self.cpu, "failed": self.failures, "seconds": PAIR_SECONDS,
        })
    }
}
