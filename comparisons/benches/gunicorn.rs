// SPDX-License-Identifier: BSD-3-Clause

//! gunicorn as it comes, with lingerd, and behind nginx, side by side: a part of `make bench`, with `demo` what `make
//! demo-gunicorn` shows, and with `torture` cruel clients, a part of `make torture`.
//!
//! All is on this machine, as are the clients. In the bench the set-ups take turns, round by round, each by itself; a
//! round's ratio is of runs that follow each other, so that whatever else the machine does falls on all of them.

use comparisons::gunicorn::{self, Gunicorn, Kind, SetUp, Worker};
use comparisons::machine::conclude;
use comparisons::torture::cases::{self, Case};
use comparisons::torture::client::{Outcome, Seen};
use comparisons::torture::{run_all, with_addresses};
use comparisons::{latency, load, median_latency, print_table, progress, row, spread};
use serde_json::{Value, json};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;
use support::daemon::Site;

/// Where the bench's figures are written, beside being printed.
const REPORT: &str = "target/gunicorn.json";

/// Processes of each, and of gthread the threads of a process.
const WORKERS: usize = 4;
const THREADS: usize = 4;

const KINDS: [Worker; 2] = [Worker::Sync, Worker::Threads(THREADS)];

const WHAT_IT_NEEDS: &str = "it takes what 'sh ci/packages gunicorn' and 'sh ci/packages torture' get";

fn main() -> ExitCode {
    // Cargo adds --bench.
    let arguments: Vec<_> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => comparisons::run(|| bench(&MANY), WHAT_IT_NEEDS),
        ["hold"] => comparisons::run(|| bench(&MANY[..1]), WHAT_IT_NEEDS),
        ["slow"] => comparisons::run(|| bench(&MANY[1..]), WHAT_IT_NEEDS),
        ["demo"] => comparisons::run(demo, "it takes what 'sh ci/packages gunicorn' gets"),
        ["torture"] => {
            let mut lost = 0;
            let done = comparisons::run(|| torture().map(|number| lost = number), WHAT_IT_NEEDS);
            if lost == 0 { done } else { ExitCode::FAILURE }
        }
        _ => {
            eprintln!("usage: cargo bench -p comparisons --bench gunicorn [-- demo | hold | slow | torture]");
            ExitCode::from(2)
        }
    }
}

// ---- Clients that workers wait for -----------------------------------------------------------

/// What the workers wait for.
struct Wait {
    /// What the clients do.
    clients: &'static str,
    /// ablinger's options.
    options: &'static [&'static str],
    /// How long they come.
    seconds: f64,
    page: usize,
}

/// In the demo.
const SHOWN: [Wait; 2] = [
    Wait {
        clients: "400 clients that hold their socket for 1 s after 20 kB",
        options: &["-c", "400", "-l", "1000"],
        seconds: 5.0,
        page: 20_000,
    },
    Wait {
        clients: "400 clients that read 50 kB/s of 300 kB",
        options: &["-c", "400", "-l", "0", "-B", "50000"],
        seconds: 12.0,
        page: 300_000,
    },
];

/// In the bench: more than the workers can serve.
const MANY: [Wait; 2] = [
    Wait {
        clients: "2000 clients that hold their socket for 1 s after 20 kB",
        options: &["-c", "2000", "-l", "1000"],
        seconds: 6.0,
        page: 20_000,
    },
    Wait {
        clients: "4000 clients that read 50 kB/s of 300 kB",
        options: &["-c", "4000", "-l", "0", "-B", "50000"],
        seconds: 18.0,
        page: 300_000,
    },
];

/// What came of one run.
struct Run {
    /// Responses a second: by the bytes that clients have read, as those that are slow have a part of one at the end.
    rate: f64,
    median_ms: Option<f64>,
    seconds: f64,
    /// Reset or cut short.
    broken: f64,
    failed: f64,
    /// CPU seconds for 1000 responses, of all its processes.
    cpu: f64,
}

impl Run {
    fn of(set_up: &SetUp, wait: &Wait) -> Run {
        let url = format!("http://{}/{}", set_up.address, wait.page);
        // Several for each worker, so that none is new.
        load::ablinger(&url, &["-c", "20", "-n", "200", "-l", "0"]);
        let before = set_up.cpu();
        let (report, cpu) = load::ablinger_for(&url, wait.options, wait.seconds, |clock| {
            clock.wait_for(1.0);
            set_up.cpu() - before
        });
        let count = |key| load::count(&report, key);
        let responses = count("bytes") / wait.page as f64;
        Run {
            rate: responses / count("seconds"),
            median_ms: load::number(&report, "latency_p50_ms"),
            seconds: count("seconds"),
            broken: count("reset") + count("truncated"),
            failed: count("failed") + count("bad_status"),
            cpu: cpu / responses * 1000.0,
        }
    }

    fn json(&self) -> Value {
        json!({
            "rate": self.rate, "latency_p50_ms": self.median_ms, "cpu_per_1000": self.cpu, "broken": self.broken,
            "failed": self.failed, "seconds": self.seconds,
        })
    }
}

fn demo() -> Result<(), String> {
    let mut rows = vec![row(["", "", "responses/s", "median", "reset or cut short", "failed"])];
    let mut words = Vec::new();
    for worker in KINDS {
        let [stock, lingerd] =
            [Kind::Stock, Kind::Lingerd].map(|kind| SetUp::try_start(kind, worker, WORKERS));
        let set_ups = [stock?, lingerd?];
        for (n, wait) in SHOWN.iter().enumerate() {
            progress(&format!("{}: {}, {} s each", worker.name(), wait.clients, wait.seconds));
            let runs = [0, 1].map(|which| Run::of(&set_ups[which], wait));
            for (which, run) in runs.iter().enumerate() {
                rows.push([
                    if n + which == 0 { worker.name().to_owned() } else { String::new() },
                    [Kind::Stock, Kind::Lingerd][which].name().to_owned(),
                    format!("{:.1}", run.rate),
                    latency(run.median_ms, run.seconds),
                    run.broken.to_string(),
                    run.failed.to_string(),
                ]);
            }
            let times = runs[1].rate / runs[0].rate;
            words.push(format!("{:7}  {}: {times:.0} times as many", worker.name(), wait.clients));
        }
    }
    println!("\ngunicorn with {WORKERS} workers, and of gthread {THREADS} threads in each:\n");
    print_table(&rows);
    println!("\n{}", words.join("\n"));
    println!(
        "\nIt takes nothing but '-k lingerd.gunicorn.SyncWorker', or ThreadWorker: see senders/python/README.md."
    );
    Ok(())
}

/// Rounds of the bench, in each of which all are measured.
const ROUNDS: usize = 5;

const ALL: [Kind; 3] = [Kind::Stock, Kind::Lingerd, Kind::Nginx];

/// One wait, one kind of workers: the runs of each of `ALL`, round by round.
struct Row {
    worker: Worker,
    runs: [Vec<Run>; 3],
}

impl Row {
    fn measure(wait: &Wait, worker: Worker) -> Result<Row, String> {
        progress(&format!(
            "{}: {}, {ROUNDS} times {} times {} s",
            worker.name(),
            wait.clients,
            ALL.len(),
            wait.seconds
        ));
        let mut runs = [Vec::new(), Vec::new(), Vec::new()];
        for round in 0..ROUNDS {
            // Who comes first changes, so that what drifts does so for all.
            for n in (0..ALL.len()).map(|n| (n + round) % ALL.len()) {
                let set_up = SetUp::try_start(ALL[n], worker, WORKERS)?;
                runs[n].push(Run::of(&set_up, wait));
            }
        }
        Ok(Row { worker, runs })
    }

    fn lines(&self) -> [[String; 7]; 3] {
        [0, 1, 2].map(|n| {
            let runs = &self.runs[n];
            let each = |figure: fn(&Run) -> f64| runs.iter().map(figure).collect::<Vec<_>>();
            let sum = |figure| each(figure).iter().sum::<f64>().to_string();
            [
                if n == 0 { self.worker.name().to_owned() } else { String::new() },
                ALL[n].name().to_owned(),
                spread(each(|run| run.rate), 1),
                median_latency(runs.iter().map(|run| run.median_ms), runs[0].seconds),
                spread(each(|run| run.cpu), 2),
                sum(|run| run.broken),
                sum(|run| run.failed),
            ]
        })
    }

    /// lingerd's rate by those of the others.
    fn words(&self) -> String {
        let [stock, lingerd, nginx] = &self.runs;
        let by = |other: &[Run], digits| {
            let pairs = lingerd.iter().zip(other);
            spread(pairs.map(|(lingerd, other)| lingerd.rate / other.rate).collect(), digits)
        };
        format!(
            "{}: lingerd's rate by stock's, round by round, {}; by that of nginx in front {}",
            self.worker.name(),
            by(stock, 0),
            by(nginx, 2)
        )
    }

    fn json(&self, wait: &Wait) -> Value {
        let each = ALL.iter().zip(&self.runs);
        let each = each.map(|(kind, runs)| (kind.word(), runs.iter().map(Run::json).collect::<Value>()));
        json!({
            "clients": wait.clients, "page": wait.page, "worker": self.worker.name(), "workers": WORKERS,
            "set_ups": each.collect::<Value>(),
        })
    }
}

fn bench(waits: &[Wait]) -> Result<(), String> {
    let machine = gunicorn::machine()?;
    let mut report = Vec::new();
    for wait in waits {
        let rows =
            KINDS.iter().map(|&worker| Row::measure(wait, worker)).collect::<Result<Vec<_>, String>>()?;
        println!(
            "\n{}; {WORKERS} workers, and of gthread {THREADS} threads in each. Of {ROUNDS} rounds the median, \
             and least to greatest.\n",
            wait.clients
        );
        let head = row(["", "", "responses/s", "median", "CPU s/1000", "reset or cut short", "failed"]);
        print_table(&[vec![head], rows.iter().flat_map(Row::lines).collect()].concat());
        println!();
        for row in &rows {
            println!("{}", row.words());
            report.push(row.json(wait));
        }
    }
    conclude(REPORT, machine, report);
    Ok(())
}

// ---- Cruel clients ---------------------------------------------------------------------------

/// Clients of each case.
const EACH: usize = 8;

/// Clients do not come in one moment.
const APART: Duration = Duration::from_millis(50);

/// More threads than there are clients at once, as each of what is sent over TLS keeps one.
const CRUEL: Worker = Worker::Threads(75);

/// Prints what becomes of each case; how many responses were lost with lingerd.
fn torture() -> Result<usize, String> {
    let cases: Vec<_> = cases::all().into_iter().filter(|case| !case.past_limit).collect();
    let longest = cases.iter().map(Case::seconds).fold(0.0, f64::max);
    progress(&format!(
        "{} cases, {EACH} clients each of gunicorn, stock and with lingerd, {longest:.0} s",
        cases.len()
    ));
    let lingerd = Site::new().start_as_it_is(&[]);
    let socket = lingerd.site.socket();
    let start = |lingerd, tls| Gunicorn::try_start(CRUEL, WORKERS, lingerd, tls);
    let stock = [start(None, false)?, start(None, true)?];
    let with_lingerd = [start(Some(&*socket), false)?, start(Some(&*socket), true)?];
    let seen = thread::scope(|scope| {
        let play = |[plain, tls]: &[Gunicorn; 2]| {
            let server = plain.server(tls);
            let each = cases.iter().flat_map(|case| std::iter::repeat_n(case, EACH));
            let clients = with_addresses(each, |_| server);
            scope.spawn(move || {
                let seen = run_all(&clients, 1.0, APART);
                clients.into_iter().map(|(case, _)| case).zip(seen).collect::<Vec<_>>()
            })
        };
        [play(&stock), play(&with_lingerd)].map(|running| running.join().expect("clients"))
    });
    let mut rows = vec![row(["", "gunicorn", "gunicorn + lingerd"])];
    let mut lost = 0;
    for case in &cases {
        let of_case = |n: usize| -> Vec<&Seen> {
            let seen: &Vec<(&Case, Seen)> = &seen[n];
            seen.iter().filter(|(other, _)| std::ptr::eq(*other, case)).map(|(_, seen)| seen).collect()
        };
        let theirs = of_case(1);
        lost += theirs.iter().filter(|seen| !matches!(seen.outcome, Outcome::Whole | Outcome::Left)).count();
        rows.push([case.title.to_owned(), counts(&of_case(0)), counts(&theirs)]);
    }
    println!(
        "\n{EACH} clients of each case, of gthread: responses whole, cut short and reset. Clients that leave by \
         themselves,\nor cannot be (IPv6), are not counted (-).\n"
    );
    print_table(&rows);
    let counters = lingerd.counters();
    let pairs = ["handed_over", "closed", "idle", "limit", "reset", "spooled", "cut_short", "rejected"];
    let pairs = pairs.map(|name| format!("{name} {}", counters[name]));
    println!("\nlingerd's counters: {}", pairs.join(", "));
    lost += counters["cut_short"] as usize;
    if lost > 0 {
        println!("\n{lost} responses were lost with lingerd");
    }
    Ok(lost)
}

/// How many were whole, cut short, and reset; and what must never happen.
fn counts(seen: &[&Seen]) -> String {
    let count = |outcome: &Outcome| seen.iter().filter(|seen| seen.outcome == *outcome).count();
    if seen.len() == count(&Outcome::Left) {
        return "-".to_owned();
    }
    let [whole, short, reset] =
        [Outcome::Whole, Outcome::CutShort, Outcome::Reset].map(|outcome| count(&outcome));
    let failed = seen.iter().find_map(|seen| match &seen.outcome {
        Outcome::Failed(why) => Some(format!(", failed: {why}")),
        _ => None,
    });
    format!("{whole} {short} {reset}{}", failed.unwrap_or_default())
}
