// SPDX-License-Identifier: BSD-3-Clause

//! A stock Apache and one with lingerd, side by side: `make bench`, and in short `make demo`.
//!
//! Both are prefork with 10 workers, KeepAlive Off, and a page of 20 kB made by mod_php; they run
//! on this machine, as do their clients. What is printed was measured in this run. The demo shows the three things that
//! workers wait for, and draws them.

use comparisons::weigh::{cpu, group_cpu, status};
use comparisons::{load, milliseconds, picture, print_table, progress, row, spread};
use lingerd_platform::process;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;
use support::apache::{Apache, Mpm, Setup};
use support::daemon::Daemon;
use support::{built, tcp};

const WORKERS: usize = 10;
const PAGE: &[u8] = b"<?php echo str_repeat('x', 20000);";
const LARGE_PAGE: &[u8] = b"<?php echo str_repeat('x', 300000);";

/// What lingerd's command line has by default; the tests' daemon has others.
const TIME_OUTS: [&str; 6] = ["-t", "5", "-T", "300", "-D", "300"];

/// Clients that hold, and for how long.
const HOLDERS: usize = 1000;
const HOLD_MS: usize = 1000;

/// The most connections that one lingerd is given.
const MANY: usize = 10_000;

/// What the workers wait for in the demo.
struct Wait {
    name: &'static str,
    /// What the clients do.
    clients: &'static str,
    /// ablinger's options, and the page.
    options: &'static [&'static str],
    page: &'static str,
    /// Whether connections are kept alive.
    is_kept: bool,
}

const WAITS: [Wait; 3] = [
    Wait {
        name: "lingering close",
        clients: "1000 clients that hold their socket for 1 s after the response",
        options: &["-c", "1000", "-l", "1000", "-t", "6"],
        page: "page.php",
        is_kept: false,
    },
    Wait {
        name: "slow readers",
        clients: "200 clients that read 50 kB/s of a page of 300 kB",
        options: &["-c", "200", "-l", "0", "-B", "50000", "-t", "13"],
        page: "large.php",
        is_kept: false,
    },
    Wait {
        name: "keep-alive",
        clients: "1000 clients that ask once a second on a connection that is kept",
        options: &["-c", "1000", "-l", "0", "-k", "1000", "-p", "1000", "-t", "6"],
        page: "page.php",
        is_kept: true,
    },
];

/// Where the demo's picture goes, in the project.
const PICTURE: &str = "target/demo.svg";

const WHAT_IT_NEEDS: &str = "it takes Apache 2.4 with apxs and mod_php; on Debian:
    apt-get install apache2-bin apache2-dev libapache2-mod-php";

fn main() -> ExitCode {
    // Cargo adds --bench.
    let arguments: Vec<_> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let what = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => bench,
        ["demo"] => demo,
        _ => {
            eprintln!("usage: cargo bench -p comparisons --bench apache [-- demo]");
            return ExitCode::from(2);
        }
    };
    if let Err(missing) = built::program("lingerd").and_then(|_| built::program("ablinger")) {
        eprintln!("{missing}");
        return ExitCode::FAILURE;
    }
    load::watch_signals();
    let rig = match Rig::start(arguments.is_empty()) {
        Ok(rig) => rig,
        Err(missing) => {
            eprintln!("{missing}: {WHAT_IT_NEEDS}");
            return ExitCode::FAILURE;
        }
    };
    // In a thread of its own: however it ends, the servers are stopped here as they should be.
    let done = thread::scope(|scope| scope.spawn(|| what(&rig)).join());
    drop(rig);
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

// ---- What is measured -----------------------------------------------------------------------

/// The two servers, and the daemon behind one of them.
struct Rig {
    stock: Apache,
    with_lingerd: Apache,
    lingerd: Daemon,
}

impl Rig {
    /// Starts them, with a second port where connections are kept unless there is to be `one_port`, as it costs the first;
    /// the error says what is missing.
    fn start(one_port: bool) -> Result<Rig, String> {
        progress("starting Apache twice, and lingerd");
        let setup = || {
            let setup = Setup::new(Mpm::Prefork).workers(WORKERS).php();
            if one_port { setup } else { setup.with_other("KeepAlive On") }
        };
        let stock = setup().try_start()?;
        let lingerd = Daemon::start(&[&["-m", "0666"][..], &TIME_OUTS].concat());
        let parks = if one_port { setup() } else { setup().with_other("LingerdPark On") };
        let with_lingerd = parks.lingerd(&lingerd.site.socket()).try_start()?;
        for apache in [&stock, &with_lingerd] {
            apache.publish("page.php", PAGE);
            apache.publish("large.php", LARGE_PAGE);
            settle(apache);
        }
        Ok(Rig { stock, with_lingerd, lingerd })
    }

    /// Has the clients of a wait come to each.
    fn wait(&self, wait: &Wait) -> [Run; 2] {
        [(&self.stock, None), (&self.with_lingerd, Some(&self.lingerd))].map(|(apache, lingerd)| {
            let address = if wait.is_kept { apache.other } else { apache.address };
            let run = Run::of(apache, lingerd, &format!("http://{address}/{}", wait.page), wait.options);
            settle(apache);
            run
        })
    }

    /// Runs ablinger against the stock Apache.
    fn stock(&self, clients: usize, hold_ms: usize, seconds: usize) -> Run {
        let run = Run::measure(&self.stock, None, clients, hold_ms, seconds);
        // What clients have left in the queue is still to be worked off, and not in others' time.
        settle(&self.stock);
        run
    }

    /// Runs ablinger against the Apache with lingerd.
    fn with_lingerd(&self, clients: usize, hold_ms: usize, seconds: usize) -> Run {
        let run = Run::measure(&self.with_lingerd, Some(&self.lingerd), clients, hold_ms, seconds);
        settle(&self.with_lingerd);
        run
    }
}

/// Makes a few requests, the last of which comes after all that waited before it.
fn settle(apache: &Apache) {
    ablinger(apache, &["-c", "10", "-n", "100", "-l", "0"]);
}

/// ablinger's JSON object for a run against `apache`.
fn ablinger(apache: &Apache, options: &[&str]) -> serde_json::Value {
    load::ablinger(&format!("http://{}/page.php", apache.address), options)
}

/// What clients of one server saw.
#[derive(Clone, Copy, Debug)]
struct Run {
    seconds: f64,
    complete: f64,
    failed: f64,
    /// Reset or cut short.
    broken: f64,
    rate: f64,
    median_ms: Option<f64>,
    p99_ms: Option<f64>,
    /// CPU seconds of the server and, if it is there, lingerd.
    cpu: Option<f64>,
}

impl Run {
    fn measure(
        apache: &Apache,
        lingerd: Option<&Daemon>,
        clients: usize,
        hold_ms: usize,
        seconds: usize,
    ) -> Run {
        let [clients, hold_ms, seconds] = [clients, hold_ms, seconds].map(|number| number.to_string());
        let options = ["-c", &clients, "-l", &hold_ms, "-t", &seconds];
        Run::of(apache, lingerd, &format!("http://{}/page.php", apache.address), &options)
    }

    fn of(apache: &Apache, lingerd: Option<&Daemon>, url: &str, options: &[&str]) -> Run {
        let cpu = || Some(group_cpu(apache.pid())? + lingerd.map_or(Some(0.0), |daemon| cpu(daemon.pid))?);
        let before = cpu();
        let json = load::ablinger(url, options);
        let after = cpu();
        let (number, count) = (|key| load::number(&json, key), |key| load::count(&json, key));
        Run {
            seconds: count("seconds"),
            complete: count("complete"),
            failed: count("failed") + count("bad_status"),
            broken: count("reset") + count("truncated"),
            rate: count("requests_per_second"),
            median_ms: number("latency_p50_ms"),
            p99_ms: number("latency_p99_ms"),
            cpu: before.zip(after).map(|(before, after)| after - before),
        }
    }

    /// A percentile for people. ablinger has none where too many clients got no response at all: it is
    /// longer than the run.
    fn percentile(&self, ms: Option<f64>) -> String {
        ms.map_or_else(|| format!("> {:.0} s", self.seconds), milliseconds)
    }

    fn median(&self) -> String {
        self.percentile(self.median_ms)
    }

    fn p99(&self) -> String {
        self.percentile(self.p99_ms)
    }

    fn cpu_per_thousand(&self) -> String {
        self.cpu.map_or_else(|| "-".to_owned(), |cpu| format!("{:.3}", cpu / self.complete * 1000.0))
    }
}

// ---- What is printed ------------------------------------------------------------------------

/// Clients that hold: the two servers in one small table.
fn print_holders(stock: &Run, lingerd: &Run) {
    println!(
        "\n{HOLDERS} clients that hold each socket for {HOLD_MS} ms; Apache prefork, mod_php, 20 kB, KeepAlive Off\n"
    );
    let server = |name: &str, run: &Run| {
        [
            name.to_owned(),
            format!("{:.1}", run.rate),
            run.median(),
            run.p99(),
            run.broken.to_string(),
            run.failed.to_string(),
            WORKERS.to_string(),
        ]
    };
    print_table(&[
        row(["", "requests/s", "median", "p99", "reset or cut short", "failed", "workers"]),
        server("stock Apache", stock),
        server("with lingerd", lingerd),
    ]);
}

fn demo(rig: &Rig) {
    let mut bars = Vec::new();
    let mut rows = vec![row(["", "", "responses/s", "median", "reset or cut short", "failed"])];
    for wait in &WAITS {
        progress(&format!("{}: {}, {} s each", wait.name, wait.clients, wait.options.last().unwrap_or(&"")));
        let runs = rig.wait(wait);
        for (n, run) in runs.iter().enumerate() {
            rows.push([
                if n == 0 { wait.name.to_owned() } else { String::new() },
                ["stock Apache", "with lingerd"][n].to_owned(),
                format!("{:.1}", run.rate),
                run.median(),
                run.broken.to_string(),
                run.failed.to_string(),
            ]);
        }
        bars.push((wait, runs.map(|run| run.rate)));
    }
    println!("\nApache prefork with {WORKERS} workers, mod_php:\n");
    print_table(&rows);
    println!();
    for (wait, [stock, lingerd]) in &bars {
        println!("{:15}  {}: {:.0} times as many", wait.name, wait.clients, lingerd / stock);
    }
    println!(
        "\nNo worker waits for a client to which it has nothing to say: it hands the connection over to lingerd, \
         and is free."
    );
    let bars: Vec<_> = bars.iter().map(|(wait, rates)| (wait.name, *rates)).collect();
    match picture::bars("responses a second of ten workers", ["stock Apache", "with lingerd"], &bars)
        .and_then(|svg| {
            std::fs::write(built::project().join(PICTURE), svg).map_err(|error| error.to_string())
        }) {
        Ok(()) => println!("{PICTURE} is a picture of it."),
        Err(error) => eprintln!("{PICTURE}: {error}"),
    }
}

fn bench(rig: &Rig) {
    bench_holders(rig);
    bench_closers(rig);
    bench_many();
}

fn bench_holders(rig: &Rig) {
    const SECONDS: usize = 15;
    progress(&format!("1 of 3: clients that hold, {SECONDS} s each"));
    let stock = rig.stock(HOLDERS, HOLD_MS, SECONDS);
    let lingerd = rig.with_lingerd(HOLDERS, HOLD_MS, SECONDS);
    print_holders(&stock, &lingerd);
    println!("\nrate with lingerd by rate of stock: {:.1}", lingerd.rate / stock.rate);
    println!(
        "CPU seconds for 1000 requests, all processes: stock {}, with lingerd {}",
        stock.cpu_per_thousand(),
        lingerd.cpu_per_thousand()
    );
    for (name, apache) in [("stock", &rig.stock), ("with lingerd", &rig.with_lingerd)] {
        let log = apache.error_log();
        let bad = |line: &&str| [":warn]", ":error]", ":crit]"].iter().any(|level| line.contains(level));
        let (busy, other): (Vec<_>, Vec<_>) =
            log.lines().filter(bad).partition(|line| line.contains("reached MaxRequestWorkers"));
        println!(
            "error log, {name}: {} lines{}",
            other.len(),
            if busy.is_empty() { "" } else { ", and that all workers were busy at once (AH00161)" }
        );
        other.iter().for_each(|line| println!("    {line}"));
    }
}

fn bench_closers(rig: &Rig) {
    const PAIRS: usize = 9;
    const SECONDS: usize = 2;
    const CLIENTS: usize = 20;
    progress(&format!("2 of 3: clients that close at once, {PAIRS} times {SECONDS} s each"));
    let cpu_before = cpu(rig.lingerd.pid);
    let counters_before = rig.lingerd.counters();
    let mut pairs: Vec<(Run, Run)> = Vec::new();
    for n in 0..PAIRS {
        // Who comes first changes, so that what drifts does so for both.
        let first = (n % 2 == 0).then(|| rig.stock(CLIENTS, 0, SECONDS));
        let lingerd = rig.with_lingerd(CLIENTS, 0, SECONDS);
        pairs.push((first.unwrap_or_else(|| rig.stock(CLIENTS, 0, SECONDS)), lingerd));
    }
    let cpu_after = cpu(rig.lingerd.pid);
    let counters = rig.lingerd.counters();

    println!(
        "\n{CLIENTS} clients that close at once; median of {PAIRS} runs of {SECONDS} s, and least to greatest\n"
    );
    let server = |name: &str, side: &dyn Fn(&(Run, Run)) -> Run| {
        let runs: Vec<_> = pairs.iter().map(side).collect();
        let per_thousand: Option<Vec<_>> =
            runs.iter().map(|run| Some(run.cpu? / run.complete * 1000.0)).collect();
        [
            name.to_owned(),
            spread(runs.iter().map(|run| run.rate).collect(), 0),
            per_thousand.map_or_else(|| "not known here".to_owned(), |values| spread(values, 3)),
            runs.iter().map(|run| run.broken).sum::<f64>().to_string(),
            runs.iter().map(|run| run.failed).sum::<f64>().to_string(),
        ]
    };
    print_table(&[
        row(["", "requests/s", "CPU s/1000 requests", "reset or cut short", "failed"]),
        server("stock Apache", &|pair| pair.0),
        server("with lingerd", &|pair| pair.1),
    ]);
    let ratios = pairs.iter().map(|(stock, lingerd)| lingerd.rate / stock.rate).collect();
    println!("\nrate with lingerd by rate of stock, run by run: {}", spread(ratios, 2));
    let handed_over = counters["handed_over"] - counters_before["handed_over"];
    print!("lingerd took {handed_over} connections over");
    match cpu_before.zip(cpu_after) {
        Some((before, after)) => {
            println!(", for {:.1} us of CPU each", (after - before) / handed_over as f64 * 1e6);
        }
        None => println!(),
    }
}

/// For how long a lingerd is watched that has nothing to do.
const IDLE: Duration = Duration::from_secs(5);

/// One lingerd with thousands of connections that are silent, and one with a reader that has stalled.
fn bench_many() {
    const BATCH: usize = 250;
    progress("3 of 3: thousands linger in one process");
    let limit = process::raise_descriptor_limit().map_or(usize::MAX, |limit| limit as usize);
    let most = MANY.min(limit.saturating_sub(3 * BATCH) / BATCH * BATCH);
    println!(
        "\nOne lingerd; clients that are silent. Wake-ups and CPU are those of {} idle seconds.\n",
        IDLE.as_secs()
    );
    let daemon = Daemon::start(&[]);
    let sender = daemon.sender();
    let mut clients = Vec::new();
    let mut rows = vec![row(["lingering", "memory (kB)", "of it its own (kB)", "wake-ups", "CPU (ms)"])];
    for number in [0, most / 10, most] {
        while clients.len() < number {
            let (near, far) = tcp::connections(BATCH);
            sender.hand_over_all(&far);
            clients.extend(near);
        }
        daemon.wait_for(&format!("lingering={number}"));
        rows.push(idle_figures(&number.to_string(), &daemon));
    }
    // Who has everything is left alone; this one is asked about, at each deadline.
    let daemon = Daemon::start(&TIME_OUTS);
    let (_reader, server) = tcp::connection_with_full_window();
    daemon.sender().hand_over(server);
    daemon.wait_for("lingering=1");
    rows.push(idle_figures("1, in mid-response", &daemon));
    print_table(&rows);
    if most < MANY {
        println!("\nnot {MANY}, as the limit of open descriptors is {limit}");
    }
    if !cfg!(target_os = "linux") {
        println!("\nwhat is missing here is told by Linux only, in /proc");
    }
}

/// What a daemon takes while its clients do nothing.
fn idle_figures(lingering: &str, daemon: &Daemon) -> [String; 5] {
    thread::sleep(IDLE / 5); // the last question is answered, and the daemon idle again
    let spent = || status(daemon.pid, "voluntary_ctxt_switches").zip(cpu(daemon.pid));
    let before = spent();
    thread::sleep(IDLE);
    let spent = before.zip(spent());
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    [
        lingering.to_owned(),
        or_dash(status(daemon.pid, "VmRSS").map(|kb| kb.to_string())),
        or_dash(status(daemon.pid, "RssAnon").map(|kb| kb.to_string())),
        or_dash(spent.map(|((before, _), (after, _))| (after - before).to_string())),
        or_dash(spent.map(|((_, before), (_, after))| format!("{:.0}", (after - before) * 1000.0))),
    ]
}
