// SPDX-License-Identifier: BSD-3-Clause

//! Cruel clients of four servers, side by side: `make torture`.
//!
//! Apache prefork as it comes, nginx with `lingering_close on` and with `always`, and Apache prefork
//! with mod_lingerd and a lingerd that has its own defaults; all on this machine, as are the clients.
//! What others lose is only shown. What is lost with lingerd makes it fail.

use comparisons::nginx::Nginx;
use comparisons::torture::cases::{self, Case, QUICK, SHORT_LIMIT};
use comparisons::torture::client::{Outcome, Seen};
use comparisons::torture::held::Held;
use comparisons::torture::{Server, pages, run_all, with_addresses};
use comparisons::{on_stop, print_table, progress, row};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use support::apache::{Apache, Mpm, Setup};
use support::daemon::{Daemon, Site};
use support::{built, during};

/// Clients of each case, on each server.
const EACH: usize = 8;

/// Clients when all quick cases come mixed.
const MIXED: usize = 1000;

/// Of both Apaches: more than there are clients at once, other than in the mixed row.
const WORKERS: usize = 300;

/// Clients of all cases do not come in one moment, and those of one case not one after the other, else
/// each would begin by waiting for a processor.
const APART: Duration = Duration::from_millis(50);

/// How often to look who holds what.
const LOOK: Duration = Duration::from_millis(100);

/// After all clients have gone: so long is looked on.
const LAST_LOOK: Duration = Duration::from_secs(1);

const NAMES: [&str; 4] = ["Apache prefork", "nginx, on", "nginx, always", "Apache + lingerd"];

/// Which one of them must lose nothing.
const LINGERD: usize = 3;

const WHAT_IT_NEEDS: &str = "it takes Apache 2.4 with apxs, openssl and nginx; on Debian:
    apt-get install apache2-bin apache2-dev openssl
and nginx in PATH, where NGINX says, or where 'sh ci/packages torture' puts it";

fn main() -> ExitCode {
    if let Err(missing) = built::program("lingerd") {
        eprintln!("{missing}");
        return ExitCode::FAILURE;
    }
    // Held while they start, so that they are stopped as they should be also by who is impatient.
    let place: Arc<Mutex<Option<Rig>>> = Arc::default();
    let mut rig = place.lock().unwrap();
    let stopped = Arc::clone(&place);
    on_stop(move || {
        drop(stopped.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take());
        std::process::exit(1);
    });
    let (servers, short) = match Rig::start() {
        Ok(started) => {
            let servers = (started.servers(), pages::server(&started.short));
            *rig = Some(started);
            servers
        }
        Err(missing) => {
            eprintln!("{missing}: {WHAT_IT_NEEDS}");
            return ExitCode::FAILURE;
        }
    };
    drop(rig);

    // In a thread of its own: however it ends, the servers are stopped.
    let lost = thread::spawn(move || compare(&servers, &short)).join();
    let mut rig = place.lock().unwrap(); // held to the end, as above
    let sound = rig.take().is_some_and(|rig| counters_are_sound(&rig));
    match lost {
        Ok(0) if sound => ExitCode::SUCCESS,
        Ok(lost) => {
            println!("\n{lost} responses were lost with lingerd");
            ExitCode::FAILURE
        }
        Err(_) => ExitCode::FAILURE,
    }
}

/// Prints what the two lingerds have counted. The first has cut nobody short, the other has given up
/// those that it had to.
fn counters_are_sound(rig: &Rig) -> bool {
    println!("\nlingerd's counters: {}", counters(&rig.lingerd));
    println!("those of the one behind -D {SHORT_LIMIT}: {}", counters(&rig.short_lingerd));
    rig.lingerd.counters()["cut_short"] == 0 && rig.short_lingerd.counters()["limit"] == EACH as u64
}

/// What `lingerd -S` says, in a line.
fn counters(lingerd: &Daemon) -> String {
    let said = lingerd.site.ask("text").stdout;
    let pairs = said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    pairs.collect::<Vec<_>>().join(", ")
}

/// The servers, and what is behind them.
struct Rig {
    stock: Apache,
    nginx: Nginx,
    with_lingerd: Apache,
    lingerd: Daemon,
    /// The same with a lingerd that soon gives up.
    short: Apache,
    short_lingerd: Daemon,
}

impl Rig {
    /// Starts them; the error says what is missing.
    fn start() -> Result<Rig, String> {
        progress("starting Apache three times, lingerd twice, and nginx");
        let nginx = Nginx::try_start()?;
        let stock = start_apache(WORKERS, None)?;
        let lingerd = Site::new().start_as_it_is(&["-m", "0666"]);
        let with_lingerd = start_apache(WORKERS, Some(&lingerd))?;
        let short_lingerd = Site::new().start_as_it_is(&["-m", "0666", "-D", &SHORT_LIMIT.to_string()]);
        let short = start_apache(EACH, Some(&short_lingerd))?;
        Ok(Rig { stock, nginx, with_lingerd, lingerd, short, short_lingerd })
    }

    /// In the order of their names.
    fn servers(&self) -> [Server; 4] {
        [pages::server(&self.stock), self.nginx.on, self.nginx.always, pages::server(&self.with_lingerd)]
    }
}

fn start_apache(workers: usize, lingerd: Option<&Daemon>) -> Result<Apache, String> {
    let mut setup = pages::set_up(Setup::new(Mpm::Prefork).workers(workers));
    if let Some(lingerd) = lingerd {
        setup = setup.lingerd(&lingerd.site.socket());
    }
    let apache = setup.try_start()?;
    pages::publish(&apache);
    Ok(apache)
}

/// Prints the table; how many responses were lost with lingerd.
fn compare(servers: &[Server; 4], short: &Server) -> usize {
    let cases = cases::all();
    let longest = cases.iter().map(Case::seconds).fold(0.0, f64::max);
    progress(&format!("{} cases, {EACH} clients each of four servers, {longest:.0} s", cases.len()));
    let mut rows = every_case(&cases, servers, short);
    let asserted = rows.iter().zip(&cases).filter(|(_, case)| !case.past_limit);
    let mut lost: usize = asserted.map(|(row, _)| row.columns[LINGERD].lost()).sum();
    let mixed = mixed(servers);
    lost += mixed.columns[LINGERD].lost();
    rows.push(mixed);
    print(&rows);
    lost
}

/// Every case against every server, all at once.
fn every_case(cases: &[Case], servers: &[Server; 4], short: &Server) -> Vec<Row> {
    let each: Vec<_> = cases.iter().cycle().take(EACH * cases.len()).collect();
    let held = Held::default();
    let seen = watch(&held, || {
        thread::scope(|scope| {
            let run = |n: usize| {
                let server = |case: &Case| if n == LINGERD && case.past_limit { *short } else { servers[n] };
                let clients = with_addresses(each.iter().copied(), server);
                scope.spawn(move || play(&clients, APART))
            };
            [0, 1, 2, 3].map(run).map(|running| running.join().expect("clients"))
        })
    });
    let row = |case: &Case| {
        let columns = seen.each_ref().map(|seen| Column::new(of_case(seen, case), &held));
        let behind = if case.past_limit { format!("behind -D {SHORT_LIMIT}: ") } else { String::new() };
        Row { title: behind + case.title, columns }
    };
    cases.iter().map(row).collect()
}

/// All that are quick and cheap enough, mixed, against one server after the other.
fn mixed(servers: &[Server; 4]) -> Row {
    let cases = cases::mixed();
    let columns = [0, 1, 2, 3].map(|n| {
        progress(&format!("{MIXED} clients of {}, mixed, {QUICK} s", NAMES[n]));
        let clients = with_addresses(cases.iter().cycle().take(MIXED), |_| servers[n]);
        let held = Held::default();
        let seen = watch(&held, || play(&clients, Duration::ZERO));
        Column::new(seen.into_iter().map(|(_, seen)| seen).collect(), &held)
    });
    Row { title: format!("{MIXED} of the plain ones up to {QUICK} s, mixed"), columns }
}

/// Looks who holds what while `meanwhile` runs, and a little longer.
fn watch<R>(held: &Held, meanwhile: impl FnOnce() -> R) -> R {
    let look = || {
        held.look();
        thread::sleep(LOOK);
    };
    during(look, || {
        let result = meanwhile();
        thread::sleep(LAST_LOOK);
        result
    })
}

/// What each client saw.
fn play<'a>(clients: &[(&'a Case, SocketAddr)], apart: Duration) -> Vec<(&'a Case, Seen)> {
    clients.iter().map(|&(case, _)| case).zip(run_all(clients, 1.0, apart)).collect()
}

/// What the clients of one case saw.
fn of_case(seen: &[(&Case, Seen)], case: &Case) -> Vec<Seen> {
    seen.iter().filter(|(other, _)| std::ptr::eq(*other, case)).map(|(_, seen)| seen.clone()).collect()
}

// ---- What is printed ------------------------------------------------------------------------

/// A case, or the mixture of them.
struct Row {
    title: String,
    /// A server each.
    columns: [Column; 4],
}

/// What became of the clients of one server.
struct Column {
    outcomes: Vec<Outcome>,
    /// The seconds for which the server's side was held, as far as known, in order.
    held: Vec<f64>,
    /// The seconds to which that is known.
    gap: f64,
}

impl Column {
    fn new(seen: Vec<Seen>, held: &Held) -> Self {
        let gap = held.gap().as_secs_f64();
        let seconds = |seen: &Seen| Some(held.time(seen.side?)?.as_secs_f64());
        let mut held: Vec<_> = seen.iter().filter_map(seconds).collect();
        held.sort_by(f64::total_cmp);
        Column { outcomes: seen.into_iter().map(|seen| seen.outcome).collect(), held, gap }
    }

    fn count(&self, outcome: &Outcome) -> usize {
        self.outcomes.iter().filter(|&other| other == outcome).count()
    }

    /// How many did not get what they waited for.
    fn lost(&self) -> usize {
        self.outcomes.len() - self.count(&Outcome::Whole) - self.count(&Outcome::Left)
    }

    /// What must never happen, each kind of it once.
    fn failures(&self) -> BTreeSet<&str> {
        let mut failures = BTreeSet::new();
        for outcome in &self.outcomes {
            if let Outcome::Failed(why) = outcome {
                failures.insert(why.as_str());
            }
        }
        failures
    }

    fn cell(&self) -> String {
        let counts = [Outcome::Whole, Outcome::CutShort, Outcome::Reset].map(|outcome| self.count(&outcome));
        let outcomes = match self.outcomes.len() - self.count(&Outcome::Left) {
            0 => "-".to_owned(),
            _ => counts.map(|count| count.to_string()).join(" "),
        };
        let median = self.held.get(self.held.len() / 2);
        let held = median.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.1} s"));
        format!("{outcomes} {held:>7}")
    }
}

fn print(rows: &[Row]) {
    println!(
        "\n{EACH} clients of each case: responses whole, cut short and reset, and the median of the seconds \
         for\nwhich a process of the server's held the socket. Clients that leave by themselves, or cannot \
         be (IPv6),\nare not counted (-). Those that upload give up when they cannot.\n"
    );
    let head = row(["", NAMES[0], NAMES[1], NAMES[2], NAMES[3]]);
    let line = |row: &Row| {
        let [stock, on, always, lingerd] = row.columns.each_ref().map(Column::cell);
        [row.title.clone(), stock, on, always, lingerd]
    };
    print_table(&std::iter::once(head).chain(rows.iter().map(line)).collect::<Vec<_>>());
    let gap = rows.iter().flat_map(|row| &row.columns).map(|column| column.gap).fold(0.0, f64::max);
    println!("\nWho holds what was looked at each {gap:.1} s or more often.");
    for row in rows {
        for (name, column) in NAMES.iter().zip(&row.columns) {
            column.failures().iter().for_each(|why| println!("\nfailed: {}, {name}: {why}", row.title));
        }
    }
}
