// SPDX-License-Identifier: BSD-3-Clause

//! Clients that send the head of their request a byte at a time, beside ordinary ones, of ten workers that make
//! pages: a part of `make bench`.
//!
//! Each set-up runs by itself, one after the other, on this machine, as do its clients; what is printed was
//! measured in this run. Ordinary clients come alone first, and then again with the slow ones there.
//!
//! A row is a single run, as one of each takes two minutes: a small difference may be chance, and no other comparison
//! has rounds of these clients.

use comparisons::heads::SlowHeads;
use comparisons::machine::conclude;
use comparisons::set_up::{self, Clients, Kind, SetUp};
use comparisons::{latency, load, print_table, progress, row};
use serde_json::{Value, json};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;
use support::{during, tcp};

/// Where the figures are written, beside being printed.
const REPORT: &str = "target/heads.json";

const WORKERS: usize = 10;

/// What each client asks for, in bytes.
const PAGE: usize = 20_000;

/// Ordinary clients, and for how long one pauses after a response.
const ORDINARY: usize = 100;
const PAUSE_MS: usize = 200;

/// Slow ones, and how often one sends a byte: a request takes twelve seconds.
const SLOW: usize = 300;
const BYTE: Duration = Duration::from_millis(200);

/// For how long to look at ordinary clients alone, and with slow ones.
const ALONE: usize = 6;
const TOGETHER: usize = 20;

const WHAT_IT_NEEDS: &str = "it takes Apache 2.4 with apxs and mod_php, nginx and php-fpm; on Debian:
    apt-get install apache2-bin apache2-dev libapache2-mod-php
and what 'sh ci/packages torture' unpacks";

fn main() -> ExitCode {
    // Cargo adds --bench.
    let given = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let kinds = given.map(|word| Kind::SLOW_HEADS.into_iter().find(|kind| kind.word() == word));
    let Some(kinds) = kinds.collect::<Option<Vec<_>>>() else {
        let words = Kind::SLOW_HEADS.map(Kind::word).join(", ");
        eprintln!("usage: cargo bench -p comparisons --bench heads [-- set-up ...]\nSet-ups: {words}");
        return ExitCode::from(2);
    };
    let kinds = if kinds.is_empty() { Kind::SLOW_HEADS.to_vec() } else { kinds };
    comparisons::run(|| compare(&kinds), WHAT_IT_NEEDS)
}

fn compare(kinds: &[Kind]) -> Result<(), String> {
    let machine = set_up::machine();
    let mut rows = vec![row([
        "",
        "alone: answers/s",
        "median",
        "p99",
        "together: answers/s",
        "median",
        "p99",
        "failed",
        "slow ones answered",
        "lost",
    ])];
    let mut runs = Vec::new();
    for &kind in kinds {
        let run = Run::measure(kind)?;
        rows.push(run.row(kind));
        runs.push((kind.word(), vec![run.json()]));
    }
    println!(
        "\n{ORDINARY} ordinary clients, which pause for {PAUSE_MS} ms, alone and then together with {SLOW} that send a \
         byte of their request each\n{} ms; KeepAlive Off, RequestReadTimeout as Debian has it, 20 kB by PHP, \
         {WORKERS} workers. lingerd with LingerdHead On.\n",
        BYTE.as_millis()
    );
    print_table(&rows);
    let row = json!({
        "clients": ORDINARY, "pause_ms": PAUSE_MS, "slow_clients": SLOW, "byte_ms": BYTE.as_millis() as u64,
        "page": PAGE, "workers": WORKERS, "set_ups": runs.into_iter().collect::<Value>(),
    });
    conclude(REPORT, machine, vec![row]);
    Ok(())
}

/// What ordinary clients got.
struct Ordinary {
    rate: f64,
    median_ms: Option<f64>,
    p99_ms: Option<f64>,
    /// Requests that got something else than their answer.
    failed: f64,
    seconds: f64,
}

impl Ordinary {
    fn of(report: &Value) -> Ordinary {
        Ordinary {
            rate: load::count(report, "requests_per_second"),
            median_ms: load::number(report, "latency_p50_ms"),
            p99_ms: load::number(report, "latency_p99_ms"),
            failed: load::failures(report),
            seconds: load::count(report, "seconds"),
        }
    }

    fn json(&self) -> Value {
        json!({
            "rate": self.rate, "latency_p50_ms": self.median_ms, "latency_p99_ms": self.p99_ms,
            "failed": self.failed, "seconds": self.seconds,
        })
    }

    fn cells(&self) -> [String; 3] {
        [
            format!("{:.1}", self.rate),
            latency(self.median_ms, self.seconds),
            latency(self.p99_ms, self.seconds),
        ]
    }
}

/// What came of one set-up.
struct Run {
    alone: Ordinary,
    together: Ordinary,
    /// Of the slow ones, whole responses, and any other end.
    answered: usize,
    lost: usize,
}

impl Run {
    fn measure(kind: Kind) -> Result<Run, String> {
        progress(&format!("{}: slow heads, {} s", kind.name(), ALONE + TOGETHER));
        let set_up = SetUp::try_start(kind, Clients::SlowHeads, WORKERS)?;
        set_up.publish("page.bin", &tcp::response(PAGE));
        set_up.publish("page.php", b"<?php readfile(__DIR__ . '/page.bin');");
        let server = set_up.server.plain;
        let url = format!("http://{server}/page.php");
        // Once for each worker, so that none is new.
        load::ablinger(&url, &["-c", "10", "-n", "100", "-l", "0"]);
        let ordinary = |seconds: usize| {
            let [clients, pause, time] = [ORDINARY, PAUSE_MS, seconds].map(|number| number.to_string());
            load::ablinger(&url, &["-c", &clients, "-p", &pause, "-t", &time, "-l", "0"])
        };
        let alone = ordinary(ALONE);
        let slow = Mutex::new(SlowHeads::start(server, "/page.php", PAGE, SLOW, BYTE));
        let together = during(|| slow.lock().unwrap().turn(), || ordinary(TOGETHER));
        let slow = slow.into_inner().unwrap();
        Ok(Run {
            alone: Ordinary::of(&alone),
            together: Ordinary::of(&together),
            answered: slow.answered,
            lost: slow.lost,
        })
    }

    fn json(&self) -> Value {
        json!({
            "alone": self.alone.json(), "together": self.together.json(),
            "slow_answered": self.answered, "slow_lost": self.lost,
        })
    }

    fn row(&self, kind: Kind) -> [String; 10] {
        let [rate, median, p99] = self.alone.cells();
        let [rate_together, median_together, p99_together] = self.together.cells();
        [
            kind.name().to_owned(),
            rate,
            median,
            p99,
            rate_together,
            median_together,
            p99_together,
            self.together.failed.to_string(),
            self.answered.to_string(),
            self.lost.to_string(),
        ]
    }
}
