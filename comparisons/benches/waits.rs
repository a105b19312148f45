// SPDX-License-Identifier: BSD-3-Clause

//! What workers wait for, and what people put in their place: Apache prefork as it comes, with nginx in front, event
//! with php-fpm, and prefork with lingerd, side by side: a part of `make bench`.
//!
//! The set-ups take turns, round by round, each by itself, on this machine, as do their clients; a round's ratio is of
//! runs that follow each other, so that whatever else the machine does falls on all of them. CPU and memory are those
//! of all processes of a set-up, memory with what the kernel keeps for its sockets and with files that hold responses,
//! when it was most. It runs on Linux only, which tells these.
//!
//!     cargo bench -p comparisons --bench waits                        all of it, in about twenty-five minutes
//!     cargo bench -p comparisons --bench waits -- nginx lingerd linger hold=1 workers=10 rounds=3 seconds=6
//!     cargo bench -p comparisons --bench waits -- draw                draws again what was measured last
//!
//! Whoever still lingers when the clock ends, with clients that hold for a second a quarter of all, has not cost all that it
//! costs: that is less than a fiftieth of lingerd's and event's CPU.
//!
//! It must not know which ought to win: it says which has.

use comparisons::machine::{conclude, draw_again};
use comparisons::picture::{self, Panel, Scale};
use comparisons::set_up::{self, Clients, Kind, SetUp};
use comparisons::{load, median, median_latency, print_table, progress, row, spread, write_picture};
use serde_json::{Value, json};
use std::process::ExitCode;

/// Where the figures are written, beside being printed.
const REPORT: &str = "target/waits.json";

/// And drawn: ten workers at a glance, and all of it.
const PICTURE: &str = "target/waits.svg";
const WHOLE_PICTURE: &str = "target/waits-all.svg";

/// How many pages are made at a time.
const WORKERS: [usize; 3] = [5, 10, 50];

/// Rounds, in each of which all are measured.
const ROUNDS: usize = 5;

/// Clients, but of those that close at once, of whom so many keep the machine busy.
const CLIENTS: usize = 1000;
const CLOSERS: usize = 64;

/// In bytes.
const PAGE: usize = 20_000;
const LARGE_PAGE: usize = 300_000;

/// How many bytes a second a slow client reads: a page takes three seconds.
const READ: usize = 100_000;

/// For how long a client thinks that keeps its connection, and how many requests it makes on it: Apache's own
/// MaxKeepAliveRequests.
const PAUSE_MS: usize = 1000;
const REQUESTS: usize = 100;

/// What a worker waits for.
#[derive(Clone, Copy, PartialEq)]
enum Wait {
    /// The client holds its socket for so many milliseconds after the response.
    Linger(usize),
    Slow,
    Keep,
}

impl Wait {
    const ALL: [Wait; 5] = [Wait::Linger(0), Wait::Linger(100), Wait::Linger(1000), Wait::Slow, Wait::Keep];

    /// What a command line calls it, but for how long it is.
    fn word(self) -> &'static str {
        match self {
            Wait::Linger(_) => "linger",
            Wait::Slow => "slow",
            Wait::Keep => "keep",
        }
    }

    /// What a table calls it.
    fn name(self) -> String {
        match self {
            Wait::Linger(0) => format!("{CLOSERS} clients that close at once"),
            Wait::Linger(ms) => {
                format!("{CLIENTS} clients that hold their socket for {} s", ms as f64 / 1000.0)
            }
            Wait::Slow => {
                format!("{CLIENTS} clients that read {} kB/s of {} kB", READ / 1000, LARGE_PAGE / 1000)
            }
            Wait::Keep => format!("{CLIENTS} clients that ask once a second on a connection that is kept"),
        }
    }

    fn hold_ms(self) -> usize {
        if let Wait::Linger(ms) = self { ms } else { 0 }
    }

    fn clients(self) -> Clients {
        if self == Wait::Keep { Clients::Kept } else { Clients::Once }
    }

    fn page(self) -> usize {
        if self == Wait::Slow { LARGE_PAGE } else { PAGE }
    }

    /// How long a run takes by itself: of slow readers, two pages.
    fn seconds(self) -> f64 {
        match self {
            Wait::Linger(0 | 100) => 3.0,
            Wait::Linger(_) | Wait::Keep => 4.0,
            Wait::Slow => (2 * LARGE_PAGE / READ) as f64,
        }
    }

    /// Responses a second that these clients can have at most.
    fn limit(self) -> Option<f64> {
        let each_ms = match self {
            Wait::Linger(0) => return None,
            Wait::Linger(ms) => ms,
            Wait::Slow => LARGE_PAGE * 1000 / READ,
            Wait::Keep => PAUSE_MS,
        };
        Some(CLIENTS as f64 * 1000.0 / each_ms as f64)
    }

    /// ablinger's options. Clients that hold begin one after the other, so that they do not all ask in one moment.
    fn options(self) -> String {
        match self {
            Wait::Linger(0) => format!("-c {CLOSERS} -l 0"),
            Wait::Linger(ms) => format!("-c {CLIENTS} -l {ms} -p {ms}"),
            Wait::Slow => format!("-c {CLIENTS} -l 0 -B {READ}"),
            Wait::Keep => format!("-c {CLIENTS} -l 0 -k {REQUESTS} -p {PAUSE_MS}"),
        }
    }
}

const WHAT_IT_NEEDS: &str = "it takes Apache 2.4 with apxs and mod_php, nginx, php-fpm and ss; on Debian:
    apt-get install apache2-bin apache2-dev libapache2-mod-php iproute2
and what 'sh ci/packages torture' unpacks";

fn main() -> ExitCode {
    // Cargo adds --bench.
    let given: Vec<_> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if given == ["draw"] {
        return draw_again(REPORT, draw);
    }
    let Some(wanted) = Wanted::parse(given.into_iter()) else {
        eprintln!(
            "usage: cargo bench -p comparisons --bench waits [-- word ...]\n\
             set-ups: {}\nwaits: linger, slow, keep, and of linger hold=0, hold=0.1, hold=1 (seconds)\n\
             workers=number, rounds=number, seconds=number (of a run)\n\
             draw: nothing is measured, and what {REPORT} says is drawn",
            Kind::EACH_WAIT.map(Kind::word).join(", ")
        );
        return ExitCode::from(2);
    };
    comparisons::run(|| compare(&wanted), WHAT_IT_NEEDS)
}

/// What to compare.
struct Wanted {
    kinds: Vec<Kind>,
    waits: Vec<Wait>,
    workers: Vec<usize>,
    rounds: usize,
    seconds: Option<f64>,
}

impl Wanted {
    /// What a command line asks for; what it does not speak of is as it usually is.
    fn parse(given: impl Iterator<Item = String>) -> Option<Wanted> {
        let mut wanted = Wanted {
            kinds: Vec::new(),
            waits: Vec::new(),
            workers: Vec::new(),
            rounds: ROUNDS,
            seconds: None,
        };
        for word in given {
            let of_word: Vec<_> = Wait::ALL.into_iter().filter(|wait| wait.word() == word).collect();
            if let Some(kind) = Kind::EACH_WAIT.into_iter().find(|kind| kind.word() == word) {
                wanted.kinds.push(kind);
            } else if !of_word.is_empty() {
                wanted.waits.extend(of_word);
            } else {
                let (name, number) = word.split_once('=')?;
                let number: f64 = number.parse().ok().filter(|&number| number >= 0.0)?;
                match name {
                    "hold" => wanted.waits.push(Wait::Linger((number * 1000.0) as usize)),
                    "workers" if number >= 1.0 => wanted.workers.push(number as usize),
                    "rounds" if number >= 1.0 => wanted.rounds = number as usize,
                    "seconds" if number > 0.0 => wanted.seconds = Some(number),
                    _ => return None,
                }
            }
        }
        fn or<T: Clone>(given: Vec<T>, usual: &[T]) -> Vec<T> {
            if given.is_empty() { usual.to_vec() } else { given }
        }
        wanted.kinds = or(wanted.kinds, &Kind::EACH_WAIT);
        wanted.waits = or(wanted.waits, &Wait::ALL);
        wanted.workers = or(wanted.workers, &WORKERS);
        Some(wanted)
    }
}

// ---- What is measured -------------------------------------------------------------------------

/// What came of one run.
#[derive(Clone)]
struct Run {
    /// Whole responses a second; of slow readers, who have a part of one at the end, by the bytes that they have read,
    /// with the heads, which are less than a thousandth of them.
    rate: f64,
    /// `None` where too many got no response: it is longer than the run.
    median_ms: Option<f64>,
    p99_ms: Option<f64>,
    /// CPU seconds for 1,000 responses.
    cpu: f64,
    /// In bytes.
    memory: u64,
    /// Requests that got something else than their answer.
    failed: f64,
    seconds: f64,
}

impl Run {
    fn of(kind: Kind, wait: Wait, workers: usize, seconds: f64) -> Result<Run, String> {
        let set_up = SetUp::try_start(kind, wait.clients(), workers)?;
        set_up.publish("page.php", format!("<?php echo str_repeat('x', {});", wait.page()).as_bytes());
        let url = format!("http://{}/page.php", set_up.server.plain);
        // Several for each worker, so that none is new.
        let [clients, requests] = [2 * workers, 10 * workers].map(|number| number.to_string());
        load::ablinger(&url, &["-c", &clients, "-n", &requests, "-l", "0"]);
        let options = wait.options();
        let options: Vec<_> = options.split(' ').collect();
        let before = set_up.cpu();
        let (report, (cpu, memory)) = load::ablinger_for(&url, &options, seconds, |clock| {
            let memory = [1.0 / 3.0, 2.0 / 3.0].map(|part| {
                clock.wait_for(part);
                set_up.memory().total()
            });
            clock.wait_for(1.0);
            (set_up.cpu() - before, memory[0].max(memory[1]))
        });
        let count = |key| load::count(&report, key);
        let responses =
            if wait == Wait::Slow { count("bytes") / wait.page() as f64 } else { count("complete") };
        Ok(Run {
            rate: responses / count("seconds"),
            median_ms: load::number(&report, "latency_p50_ms"),
            p99_ms: load::number(&report, "latency_p99_ms"),
            cpu: cpu / responses * 1000.0,
            memory,
            failed: load::failures(&report),
            seconds: count("seconds"),
        })
    }

    fn json(&self) -> Value {
        json!({
            "rate": self.rate, "latency_p50_ms": self.median_ms, "latency_p99_ms": self.p99_ms,
            "cpu_per_1000": self.cpu, "memory": self.memory, "failed": self.failed,
            "seconds": self.seconds,
        })
    }
}

/// One wait, one number of workers: the runs of each set-up, round by round.
struct Row {
    wait: Wait,
    workers: usize,
    kinds: Vec<Kind>,
    runs: Vec<Vec<Run>>,
}

impl Row {
    fn measure(wanted: &Wanted, wait: Wait, workers: usize) -> Result<Row, String> {
        let seconds = wanted.seconds.unwrap_or(wait.seconds());
        let kinds = &wanted.kinds;
        progress(&format!(
            "{}, {workers} workers, {} times {} times {seconds} s",
            wait.name(),
            wanted.rounds,
            kinds.len()
        ));
        let mut runs = vec![Vec::new(); kinds.len()];
        for round in 0..wanted.rounds {
            // Who comes first changes, so that what drifts does so for all.
            for n in (0..kinds.len()).map(|n| (n + round) % kinds.len()) {
                runs[n].push(Run::of(kinds[n], wait, workers, seconds)?);
            }
        }
        Ok(Row { wait, workers, kinds: kinds.clone(), runs })
    }

    fn of(&self, kind: Kind) -> Option<&[Run]> {
        let n = self.kinds.iter().position(|&other| other == kind)?;
        Some(&self.runs[n])
    }

    /// lingerd's by that of another, round by round.
    fn ratios(&self, other: Kind, figure: fn(&Run) -> f64) -> Option<Vec<f64>> {
        let (lingerd, other) = (self.of(Kind::Lingerd)?, self.of(other)?);
        Some(lingerd.iter().zip(other).map(|(lingerd, other)| figure(lingerd) / figure(other)).collect())
    }

    fn lines(&self) -> Vec<[String; 11]> {
        let line = |(n, &kind): (usize, &Kind)| {
            let runs = &self.runs[n];
            let each = |figure: fn(&Run) -> f64| runs.iter().map(figure).collect::<Vec<_>>();
            let time =
                |figure: fn(&Run) -> Option<f64>| median_latency(runs.iter().map(figure), runs[0].seconds);
            let rate = median(each(|run| run.rate));
            let by_its = |figure| match self.ratios(kind, figure) {
                Some(ratios) if kind != Kind::Lingerd => ratio(ratios),
                _ => String::new(),
            };
            [
                self.workers.to_string(),
                kind.name().to_owned(),
                format!("{rate:.1}"),
                self.wait.limit().map_or_else(|| "-".to_owned(), |limit| format!("{:.2}", rate / limit)),
                time(|run| run.median_ms),
                time(|run| run.p99_ms),
                format!("{:.3}", median(each(|run| run.cpu))),
                format!("{:.0}", median(each(|run| run.memory as f64)) / 1e6),
                each(|run| run.failed).iter().sum::<f64>().to_string(),
                by_its(|run| run.rate),
                by_its(|run| run.cpu),
            ]
        };
        self.kinds.iter().enumerate().map(line).collect()
    }

    /// What lingerd has less of than one of these, or takes more of, and what cannot be told.
    fn findings(&self, others: &[Kind]) -> Vec<Finding> {
        let row = format!("{}, {} workers", self.wait.name(), self.workers);
        let failed: f64 = self.of(Kind::Lingerd).into_iter().flatten().map(|run| run.failed).sum();
        let mut findings = Vec::new();
        if failed > 0.0 {
            findings.push(Finding {
                told: Told::Worse,
                what: format!("{row}: {failed} requests to lingerd failed"),
            });
        }
        for &kind in others {
            let rates = self.ratios(kind, |run| run.rate).map(|ratios| ("rate", rates_told(&ratios), ratios));
            let cpu = self.ratios(kind, |run| run.cpu).map(|ratios| ("CPU", cpu_told(&ratios), ratios));
            for (of, told, ratios) in rates.into_iter().chain(cpu) {
                let what = format!("{row}: lingerd's {of} {} of that of {}", ratio(ratios), kind.name());
                if told != Told::Well {
                    findings.push(Finding { told, what });
                }
            }
        }
        findings
    }

    fn json(&self) -> Value {
        let of = |(&kind, runs): (&Kind, &Vec<Run>)| {
            let rounds: Vec<_> = runs.iter().map(Run::json).collect();
            (kind.word().to_owned(), Value::from(rounds))
        };
        let set_ups: serde_json::Map<_, _> = self.kinds.iter().zip(&self.runs).map(of).collect();
        json!({
            "wait": self.wait.word(), "hold_ms": self.wait.hold_ms(), "clients": self.wait.name(), "workers": self.workers,
            "limit": self.wait.limit(), "set_ups": set_ups,
        })
    }
}

/// What a row's rounds tell.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    /// All of them, that it is as one would have it.
    Well,
    /// Some this, some that.
    NotApart,
    /// All of them, that it is not; or there is nothing that one could compare.
    Worse,
}

/// What is not well in a row.
struct Finding {
    told: Told,
    what: String,
}

/// Ratios within these are 1, to the digits that are printed.
const SAME: (f64, f64) = (0.995, 1.005);

/// What lingerd's rates by those of another tell: as many are well.
fn rates_told(ratios: &[f64]) -> Told {
    told(ratios, |ratio| ratio >= SAME.0, |ratio| ratio < SAME.0)
}

/// What its CPU by that of another tells: as much is neither.
fn cpu_told(ratios: &[f64]) -> Told {
    told(ratios, |ratio| ratio < SAME.0, |ratio| ratio >= SAME.1)
}

/// A ratio that is no number, of nothing to nothing, is not well.
fn told(ratios: &[f64], is_well: fn(f64) -> bool, is_worse: fn(f64) -> bool) -> Told {
    let all = |is: fn(f64) -> bool| ratios.iter().all(|&ratio| is(ratio));
    if ratios.iter().any(|ratio| ratio.is_nan()) || all(is_worse) {
        Told::Worse
    } else if all(is_well) {
        Told::Well
    } else {
        Told::NotApart
    }
}

/// Ratios for people, with the digits that they deserve.
fn ratio(ratios: Vec<f64>) -> String {
    let digits = if median(ratios.clone()) < 10.0 { 2 } else { 0 };
    spread(ratios, digits)
}

// ---- What is printed --------------------------------------------------------------------------

fn compare(wanted: &Wanted) -> Result<(), String> {
    let machine = set_up::machine();
    let mut rows = Vec::new();
    for &wait in &wanted.waits {
        let first = rows.len();
        for &workers in &wanted.workers {
            rows.push(Row::measure(wanted, wait, workers)?);
        }
        print(wait, wanted, &rows[first..]);
    }
    print_verdict(&rows, wanted, &[Kind::Nginx, Kind::Event]);
    print_verdict(&rows, wanted, &[Kind::Stock]);
    draw(&conclude(REPORT, machine, rows.iter().map(Row::json).collect()));
    Ok(())
}

// ---- What is drawn ----------------------------------------------------------------------------

/// Draws what a report says.
fn draw(report: &Value) {
    let none = Vec::new();
    let rows = report["rows"].as_array().unwrap_or(&none);
    let Some(first) = rows.first() else { return };
    let kinds: Vec<_> =
        Kind::EACH_WAIT.into_iter().filter(|kind| first["set_ups"].get(kind.word()).is_some()).collect();
    let at_a_glance = at_a_glance(rows, &kinds);
    if !at_a_glance.iter().all(|panel| panel.groups.is_empty()) {
        let title = format!(
            "What ten workers do for {} clients that keep them waiting",
            picture::thousands(CLIENTS as f64)
        );
        draw_to(PICTURE, &title, &kinds, 2, &at_a_glance);
    }
    let title = "Each wait of a worker: above what is served (logarithmic), below what that costs";
    let panels = whole(rows, &kinds);
    draw_to(WHOLE_PICTURE, title, &kinds, panels.len() / 2, &panels);
}

fn draw_to(path: &str, title: &str, kinds: &[Kind], columns: usize, panels: &[Panel]) {
    let name = |kind: &Kind| match kind {
        Kind::Stock => "Apache prefork as it comes",
        Kind::Event => "Apache event, php-fpm",
        Kind::Lingerd => "prefork with lingerd",
        _ => kind.name(),
    };
    let names: Vec<_> = kinds.iter().map(name).collect();
    write_picture(path, picture::bars(title, &names, columns, panels));
}

/// The median of a figure of each set-up in a row of a report; none where it was not measured. What is null there is
/// infinite: what nothing served takes for each.
fn medians(row: &Value, kinds: &[Kind], figure: &str) -> Vec<f64> {
    let of = |kind: &Kind| {
        let rounds = row["set_ups"][kind.word()].as_array()?;
        let values: Vec<_> =
            rounds.iter().map(|round| round[figure].as_f64().unwrap_or(f64::INFINITY)).collect();
        (!values.is_empty()).then(|| median(values))
    };
    kinds.iter().map(|kind| of(kind).unwrap_or(f64::NAN)).collect()
}

/// What ten workers serve, of what their clients could have, and what that costs: the waits alone.
fn at_a_glance(rows: &[Value], kinds: &[Kind]) -> [Panel; 2] {
    const WORKERS: u64 = 10;
    let names = [
        ("linger", 1000, "hold the socket for\n1 s after the response"),
        ("slow", 0, "read slowly:\n300 kB in 3 s"),
        ("keep", 0, "keep the connection,\nask once a second"),
    ];
    let mut panels = [
        ("Served, of what the clients ask for: more is better", " %"),
        ("CPU of all processes, seconds for 1,000 responses: less is better", ""),
    ]
    .map(|(title, unit)| Panel {
        title: title.to_owned(),
        scale: Scale::Linear,
        unit,
        has_numbers: true,
        groups: Vec::new(),
    });
    for (word, hold_ms, name) in names {
        let is_it = |row: &&Value| {
            row["wait"] == word
                && row["hold_ms"].as_u64() == Some(hold_ms)
                && row["workers"].as_u64() == Some(WORKERS)
        };
        let Some(row) = rows.iter().find(is_it) else { continue };
        let limit = row["limit"].as_f64().unwrap_or(f64::NAN);
        let part = medians(row, kinds, "rate").iter().map(|rate| (rate / limit * 100.0).min(100.0)).collect();
        panels[0].groups.push((name.to_owned(), part));
        panels[1].groups.push((name.to_owned(), medians(row, kinds, "cpu_per_1000")));
    }
    panels
}

/// All rows: above the rates, below what they cost, for each number of workers.
fn whole(rows: &[Value], kinds: &[Kind]) -> Vec<Panel> {
    let mut workers: Vec<_> = rows.iter().filter_map(|row| row["workers"].as_u64()).collect();
    workers.sort_unstable();
    workers.dedup();
    let mut panels = Vec::new();
    for (figure, what, scale) in [
        ("rate", "responses a second", Scale::Decades),
        ("cpu_per_1000", "CPU of all, seconds for 1,000", Scale::Linear),
    ] {
        for &workers in &workers {
            let rows = rows.iter().filter(|row| row["workers"].as_u64() == Some(workers));
            let group = |row: &Value| {
                let name = match (row["wait"].as_str(), row["hold_ms"].as_u64()) {
                    (Some("linger"), Some(0)) => "close\nat once".to_owned(),
                    (Some("linger"), ms) => format!("hold\n{} s", ms.unwrap_or(0) as f64 / 1000.0),
                    (Some("slow"), _) => "read\nslowly".to_owned(),
                    _ => "keep\nalive".to_owned(),
                };
                (name, medians(row, kinds, figure))
            };
            panels.push(Panel {
                title: format!("{workers} workers: {what}"),
                scale,
                unit: "",
                has_numbers: false,
                groups: rows.map(group).collect(),
            });
        }
    }
    panels
}

fn print(wait: Wait, wanted: &Wanted, rows: &[Row]) {
    let limit = wait.limit().map_or_else(
        || "The machine is the limit, or ablinger, which has one thread".to_owned(),
        |limit| format!("They can have {limit:.0} responses a second"),
    );
    println!(
        "\n{}; {} kB by PHP. {limit}.\nMedians of {} rounds; in brackets from the least round to the greatest.\n",
        wait.name(),
        wait.page() / 1000,
        wanted.rounds
    );
    let head = row([
        "workers",
        "",
        "responses/s",
        "of limit",
        "median",
        "p99",
        "CPU s/1000",
        "memory (MB)",
        "failed",
        "lingerd's rate by its",
        "lingerd's CPU by its",
    ]);
    print_table(&[vec![head], rows.iter().flat_map(Row::lines).collect()].concat());
}

/// In how many rows lingerd has at least the rate of each of these, for less CPU, in each round; and what is otherwise.
fn print_verdict(rows: &[Row], wanted: &Wanted, others: &[Kind]) {
    let others: Vec<_> = others.iter().copied().filter(|kind| wanted.kinds.contains(kind)).collect();
    if others.is_empty() || !wanted.kinds.contains(&Kind::Lingerd) {
        return;
    }
    let findings: Vec<_> = rows.iter().map(|row| row.findings(&others)).collect();
    let worst = |findings: &Vec<Finding>| findings.iter().map(|it| it.told).max().unwrap_or(Told::Well);
    let number = |told| findings.iter().filter(|findings| worst(findings) == told).count();
    let names: Vec<_> = others.iter().map(|kind| kind.name()).collect();
    println!(
        "\nIn {} of {} rows lingerd has at least the rate of {}, for less CPU a response, and no request to it \
         failed; in {} it is not told apart from one of them, and {} are otherwise.",
        number(Told::Well),
        rows.len(),
        names.join(" and of "),
        number(Told::NotApart),
        number(Told::Worse)
    );
    if wanted.rounds == 1 {
        println!("One round does not tell what is chance.");
    }
    for finding in findings.iter().flatten() {
        let not = if finding.told == Told::NotApart { "not told apart: " } else { "" };
        println!("    {not}{}", finding.what);
    }
}
