// SPDX-License-Identifier: BSD-3-Clause

//! Clients that send the head of their request a byte at a time, beside ordinary ones, of ten workers that make
//! pages: a part of `make bench`.
//!
//! Each set-up runs by itself, one after the other, on this machine, as do its clients; what is printed was
//! measured in this run. Ordinary clients come alone first, and then again with the slow ones there.

use comparisons::heads::SlowHeads;
use comparisons::set_up::{Clients, Kind, SetUp};
use comparisons::{load, milliseconds, print_table, progress, row};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;
use support::{during, tcp};

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
    for &kind in kinds {
        rows.push(measure(kind)?);
    }
    println!(
        "\n{ORDINARY} ordinary clients, which pause for {PAUSE_MS} ms, alone and then together with {SLOW} that send a \
         byte of their request each\n{} ms; KeepAlive Off, RequestReadTimeout as Debian has it, 20 kB by PHP, \
         {WORKERS} workers. lingerd with LingerdHead On.\n",
        BYTE.as_millis()
    );
    print_table(&rows);
    Ok(())
}

fn measure(kind: Kind) -> Result<[String; 10], String> {
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

    let rate = |report| format!("{:.1}", load::count(report, "requests_per_second"));
    let percentile = |report, key| {
        let longest = || format!("> {:.0} s", load::count(report, "seconds"));
        load::number(report, key).map_or_else(longest, milliseconds)
    };
    let failed = ["reset", "truncated", "failed", "bad_status"].map(|key| load::count(&together, key));
    Ok([
        kind.name().to_owned(),
        rate(&alone),
        percentile(&alone, "latency_p50_ms"),
        percentile(&alone, "latency_p99_ms"),
        rate(&together),
        percentile(&together, "latency_p50_ms"),
        percentile(&together, "latency_p99_ms"),
        failed.iter().sum::<f64>().to_string(),
        slow.answered.to_string(),
        slow.lost.to_string(),
    ])
}
