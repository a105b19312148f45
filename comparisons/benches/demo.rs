// SPDX-License-Identifier: BSD-3-Clause

//! A stock Apache and one with lingerd, side by side, in a minute: `make demo`.
//!
//! Both are prefork with 10 workers and mod_php; they run on this machine, as do their clients. It shows the three things
//! that workers wait for, prints what was measured in this run, and draws it. What else there is against that, and
//! what it costs, `waits` compares.

use comparisons::picture::{self, Panel, Scale};
use comparisons::{load, milliseconds, print_table, progress, row, write_picture};
use std::process::ExitCode;
use support::apache::{Apache, Mpm, Setup};
use support::daemon::{Daemon, Site};

const WORKERS: usize = 10;
const PAGE: &[u8] = b"<?php echo str_repeat('x', 20000);";
const LARGE_PAGE: &[u8] = b"<?php echo str_repeat('x', 300000);";

/// What the workers wait for.
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

/// Where the picture goes, in the project.
const PICTURE: &str = "target/demo.svg";

const WHAT_IT_NEEDS: &str = "it takes Apache 2.4 with apxs and mod_php; on Debian:
    apt-get install apache2-bin apache2-dev libapache2-mod-php";

fn main() -> ExitCode {
    comparisons::run(demo, WHAT_IT_NEEDS)
}

// ---- What is measured -----------------------------------------------------------------------

/// The two servers, and the daemon behind one of them.
struct Rig {
    stock: Apache,
    with_lingerd: Apache,
    _lingerd: Daemon,
}

impl Rig {
    /// Starts them; the error says what is missing.
    fn start() -> Result<Rig, String> {
        progress("starting Apache twice, and lingerd");
        let setup = || Setup::new(Mpm::Prefork).workers(WORKERS).php().with_other("KeepAlive On");
        let stock = setup().try_start()?;
        let lingerd = Site::new().start_as_it_is(&["-m", "0666"]);
        let with_lingerd =
            setup().with_other("LingerdPark On").lingerd(&lingerd.site.socket()).try_start()?;
        for apache in [&stock, &with_lingerd] {
            apache.publish("page.php", PAGE);
            apache.publish("large.php", LARGE_PAGE);
            settle(apache);
        }
        Ok(Rig { stock, with_lingerd, _lingerd: lingerd })
    }

    /// Has the clients of a wait come to each.
    fn wait(&self, wait: &Wait) -> [Run; 2] {
        [&self.stock, &self.with_lingerd].map(|apache| {
            let address = if wait.is_kept { apache.other } else { apache.address };
            let run = Run::of(&format!("http://{address}/{}", wait.page), wait.options);
            // What clients have left in the queue is still to be worked off, and not in others' time.
            settle(apache);
            run
        })
    }
}

/// Makes a few requests, the last of which comes after all that waited before it.
fn settle(apache: &Apache) {
    let url = format!("http://{}/page.php", apache.address);
    load::ablinger(&url, &["-c", "10", "-n", "100", "-l", "0"]);
}

/// What clients of one server saw.
#[derive(Clone, Copy, Debug)]
struct Run {
    seconds: f64,
    failed: f64,
    /// Reset or cut short.
    broken: f64,
    rate: f64,
    /// `None` where too many clients got no response at all: it is longer than the run.
    median_ms: Option<f64>,
}

impl Run {
    fn of(url: &str, options: &[&str]) -> Run {
        let json = load::ablinger(url, options);
        let count = |key| load::count(&json, key);
        Run {
            seconds: count("seconds"),
            failed: count("failed") + count("bad_status"),
            broken: count("reset") + count("truncated"),
            rate: count("requests_per_second"),
            median_ms: load::number(&json, "latency_p50_ms"),
        }
    }

    fn median(&self) -> String {
        self.median_ms.map_or_else(|| format!("> {:.0} s", self.seconds), milliseconds)
    }
}

// ---- What is printed ------------------------------------------------------------------------

fn demo() -> Result<(), String> {
    let rig = Rig::start()?;
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
    let panel = Panel {
        title: String::new(),
        scale: Scale::Decades,
        unit: "",
        has_numbers: true,
        groups: bars.iter().map(|(wait, rates)| (wait.name.to_owned(), rates.to_vec())).collect(),
    };
    let title = "responses a second of ten workers";
    write_picture(PICTURE, picture::bars(title, &["stock Apache", "with lingerd"], 1, &[panel]));
    Ok(())
}
