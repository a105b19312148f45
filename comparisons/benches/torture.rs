// SPDX-License-Identifier: BSD-3-Clause

//! Cruel clients of four servers, side by side: `make torture`.
//!
//! Apache prefork as it comes, nginx with `lingering_close on` and with `always`, and Apache prefork
//! with mod_lingerd and a lingerd that has its own defaults; all on this machine, as are the clients.
//! Then slow readers of what PHP makes, with what people set up against them; those whose lingerd is killed; and
//! many over TLS, `tls=N` of them. With `slow` these alone.
//! Then clients of HAProxy and nginx, which keep connections to Apaches that close them in that moment. With
//! `balanced` these alone.
//! What others lose is only shown. What is lost with lingerd makes it fail.

use comparisons::haproxy::{self, Haproxy};
use comparisons::nginx::Nginx;
use comparisons::set_up::Kind;
use comparisons::torture::cases::{self, Case, QUICK, SHORT_LIMIT};
use comparisons::torture::client::{Outcome, Seen};
use comparisons::torture::held::Held;
use comparisons::torture::pool::{self, Tally};
use comparisons::torture::{Server, pages, run_all, slow, with_addresses};
use comparisons::weigh::{self, Place};
use comparisons::{on_stop, print_table, progress, row};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use support::apache::{Apache, Mpm, Setup};
use support::daemon::{Daemon, Site};
use support::{built, during, tcp};

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

/// Clients over TLS, unless another number is given.
const OVER_TLS: usize = 200;

const WHAT_IT_NEEDS: &str =
    "it takes Apache 2.4 with apxs and mod_php, openssl, nginx, php-fpm and HAProxy; on Debian:
    apt-get install apache2-bin apache2-dev libapache2-mod-php openssl
and the others in PATH, where NGINX, PHP_FPM and HAPROXY say, or where 'sh ci/packages torture' puts them";

fn main() -> ExitCode {
    // Cargo adds --bench.
    let given = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let (mut over_tls, mut parts) = (OVER_TLS, Parts { slow: false, balanced: false });
    for word in given {
        match word.strip_prefix("tls=").map(str::parse) {
            Some(Ok(number)) => over_tls = number,
            None if word == "slow" => parts.slow = true,
            None if word == "balanced" => parts.balanced = true,
            _ => {
                eprintln!(
                    "usage: cargo bench -p comparisons --bench torture [-- [slow] [balanced] [tls=clients]]"
                );
                return ExitCode::from(2);
            }
        }
    }
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
    if parts.slow || parts.balanced {
        drop(rig);
        return end(Ok(0), true, &parts, over_tls);
    }
    parts = Parts { slow: true, balanced: true };
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
    drop(rig);
    end(lost, sound, &parts, over_tls)
}

/// What comes after the cases.
struct Parts {
    slow: bool,
    balanced: bool,
}

/// The other parts, and how all has ended.
fn end(lost: thread::Result<usize>, sound: bool, parts: &Parts, over_tls: usize) -> ExitCode {
    let rest = || {
        let slow = if parts.slow { slow_readers(over_tls)? } else { 0 };
        let balanced = if parts.balanced { balanced()? } else { 0 };
        Ok::<_, String>(slow + balanced)
    };
    match (lost, thread::scope(|scope| scope.spawn(rest).join())) {
        (Ok(0), Ok(Ok(0))) if sound => ExitCode::SUCCESS,
        (_, Ok(Err(missing))) => {
            eprintln!("{missing}: {WHAT_IT_NEEDS}");
            ExitCode::FAILURE
        }
        (Ok(lost), Ok(Ok(lost_later))) => {
            println!("\n{} responses were lost with lingerd", lost + lost_later);
            ExitCode::FAILURE
        }
        _ => ExitCode::FAILURE,
    }
}

/// Prints what the two lingerds have counted. The first has cut nobody short, the other has given up
/// those that it had to.
fn counters_are_sound(rig: &Rig) -> bool {
    println!("\nlingerd's counters: {}", counters(&rig.lingerd));
    println!("those of the one behind -D {SHORT_LIMIT}: {}", counters(&rig.short_lingerd));
    rig.lingerd.counters()["cut_short"] == 0 && rig.short_lingerd.counters()["limit"] == EACH as u64
}

/// Its counters, in a line.
fn counters(lingerd: &Daemon) -> String {
    let said = lingerd.counters();
    let pairs = said.names().map(|name| format!("{name} {}", said[name]));
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
        [
            pages::server(&self.stock),
            self.nginx.servers[0],
            self.nginx.servers[1],
            pages::server(&self.with_lingerd),
        ]
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

// ---- Slow readers ---------------------------------------------------------------------------

/// Prints what becomes of slow readers with each set-up; how many responses were lost with lingerd.
fn slow_readers(over_tls: usize) -> Result<usize, String> {
    progress("slow readers of six set-ups, a minute");
    let set_ups = slow::start()?;
    let cases = slow::cases();
    let all = &cases;
    let seen: Vec<_> = thread::scope(|scope| {
        let play = |set_up| scope.spawn(move || slow::play(set_up, all, EACH));
        let running: Vec<_> = set_ups.iter().map(play).collect();
        running.into_iter().map(|running| running.join().expect("clients")).collect()
    });
    let mut lost = print_slow(&cases, &seen);
    let lingerd = set_ups.iter().filter_map(|set_up| set_up.lingerd.as_ref());
    lost += lingerd.map(|lingerd| lingerd.counters()["cut_short"] as usize).sum::<usize>();

    progress("lingerd killed while it writes");
    let (being_written, seen) = slow::kill()?;
    let [killed, after] = seen.map(outcomes);
    println!("\nlingerd killed while it writes {being_written} of {}: {}", killed.len(), tell(&killed));
    println!("and the next one: {}", tell(&after));
    // Cut visibly, and what was there before is the right bytes.
    lost += killed.iter().filter(|&outcome| !matches!(outcome, Outcome::Whole | Outcome::Reset)).count();
    lost += after.iter().filter(|&outcome| *outcome != Outcome::Whole).count();

    progress(&format!("{over_tls} clients over TLS"));
    let spooling = set_ups.last().expect("lingerd is the last");
    let many = slow::over_tls(spooling.server, over_tls);
    let counters = spooling.lingerd.as_ref().map(counters).unwrap_or_default();
    println!("\n{over_tls} over TLS: {}\nlingerd's counters: {counters}", tell(&many));
    Ok(lost + many.iter().filter(|&outcome| *outcome != Outcome::Whole).count())
}

fn outcomes(seen: Vec<Seen>) -> Vec<Outcome> {
    seen.into_iter().map(|seen| seen.outcome).collect()
}

/// How many of each.
fn tell(outcomes: &[Outcome]) -> String {
    let count = |outcome: &Outcome| outcomes.iter().filter(|&other| other == outcome).count();
    let [whole, short, reset] = [Outcome::Whole, Outcome::CutShort, Outcome::Reset].map(|it| count(&it));
    let failed: BTreeSet<_> = outcomes
        .iter()
        .filter_map(|outcome| if let Outcome::Failed(why) = outcome { Some(why.as_str()) } else { None })
        .collect();
    let failed = failed.iter().map(|why| format!(", failed: {why}")).collect::<String>();
    format!("{whole} whole, {short} cut short, {reset} reset{failed}")
}

/// Prints the table of [`slow_readers`]; how many responses were lost with lingerd.
fn print_slow(cases: &[Case], seen: &[(Vec<Seen>, f64)]) -> usize {
    println!(
        "\nSlow readers, {EACH} of each, at {} workers, or children of php-fpm: responses whole, cut short and \
         reset\n",
        slow::WORKERS
    );
    let with_lingerd = Kind::SLOW_READERS.map(|kind| matches!(kind, Kind::WithoutSpool | Kind::Lingerd));
    let none = Held::default();
    let mut lost = 0;
    let mut rows = vec![line_of("", Kind::SLOW_READERS.map(|kind| kind.name().to_owned()))];
    for (n, case) in cases.iter().enumerate() {
        let cells = [0, 1, 2, 3, 4, 5].map(|set_up| {
            let column = Column::new(seen[set_up].0[n * EACH..(n + 1) * EACH].to_vec(), &none);
            lost += if with_lingerd[set_up] { column.lost() } else { 0 };
            column
                .failures()
                .iter()
                .for_each(|why| println!("failed: {}: {why}", Kind::SLOW_READERS[set_up].name()));
            column.counts()
        });
        rows.push(line_of(case.title, cells));
    }
    rows.push(line_of(
        "a worker is held for each",
        [0, 1, 2, 3, 4, 5].map(|n| format!("{:.2} s", seen[n].1)),
    ));
    print_table(&rows);
    lost
}

fn line_of(title: &str, cells: [String; 6]) -> [String; 7] {
    let [a, b, c, d, e, f] = cells;
    [title.to_owned(), a, b, c, d, e, f]
}

// ---- Balancers ------------------------------------------------------------------------------

/// An Apache behind balancers, and the lingerd of one that has it.
struct Behind {
    name: &'static str,
    workers: usize,
    apache: Apache,
    _lingerd: Option<Daemon>,
}

impl Behind {
    /// One that keeps a connection for so many seconds.
    fn start(name: &'static str, seconds: u32, parks: bool) -> Result<Behind, String> {
        let workers = if parks { PARKING_WORKERS } else { BALANCED_WORKERS };
        let lingerd = parks.then(|| Site::new().start_as_it_is(&["-m", "0666"]));
        let mut setup = Setup::new(Mpm::Prefork).workers(workers).php();
        setup = setup.with(&format!("KeepAlive On\nKeepAliveTimeout {seconds}"));
        if let Some(lingerd) = &lingerd {
            setup = setup.lingerd(&lingerd.site.socket()).with("LingerdPark On");
        }
        let apache = setup.try_start()?;
        apache.publish("page.bin", &tcp::response(pool::SIZE));
        apache.publish("page.php", b"<?php readfile(__DIR__ . '/page.bin');");
        Ok(Behind { name, workers, apache, _lingerd: lingerd })
    }
}

/// Workers of an Apache by itself: more than there are clients of all balancers, as each connection keeps one.
const BALANCED_WORKERS: usize = 100;

/// Of one that parks.
const PARKING_WORKERS: usize = 10;

/// Prints what becomes of requests to balancers; how many were lost behind which lingerd keeps connections for
/// longer than the balancers do.
fn balanced() -> Result<usize, String> {
    progress(&format!(
        "HAProxy and nginx before four Apaches that close connections, {:.0} s",
        pool::SECONDS
    ));
    let servers = [
        Behind::start("stock, 1 s", 1, false)?,
        Behind::start("stock, 600 s", 600, false)?,
        Behind::start("lingerd, 1 s", 1, true)?,
        Behind::start("lingerd, 600 s", 600, true)?,
    ];
    let addresses = servers.each_ref().map(|server| server.apache.address);
    let haproxy = Haproxy::try_start_before(&addresses)?;
    let nginx = Nginx::try_start_balancing(&addresses)?;
    let mut balancers: Vec<_> =
        haproxy::WAYS.iter().map(|(name, _)| *name).zip(haproxy.addresses.iter().cloned()).collect();
    balancers.push(("nginx, keepalive", nginx.servers.iter().map(|server| server.plain).collect()));

    let held = [(); 4].map(|()| AtomicUsize::new(0));
    let looks = AtomicUsize::new(0);
    let look = || {
        for (server, held) in servers.iter().zip(&held) {
            let workers = weigh::members(server.apache.pid());
            held.fetch_add(
                weigh::held(&workers, Place::Tcp(server.apache.address.port())),
                Ordering::Relaxed,
            );
        }
        looks.fetch_add(1, Ordering::Relaxed);
        thread::sleep(LOOK);
    };
    // By balancer, then by server.
    let seen: Vec<Vec<[Tally; 2]>> = during(look, || {
        thread::scope(|scope| {
            let play = |address: SocketAddr| scope.spawn(move || pool::play(address));
            let running: Vec<Vec<_>> = balancers
                .iter()
                .map(|(_, addresses)| addresses.iter().copied().map(play).collect())
                .collect();
            let join = |running: Vec<thread::ScopedJoinHandle<'_, [Tally; 2]>>| {
                running.into_iter().map(|running| running.join().expect("clients")).collect()
            };
            running.into_iter().map(join).collect()
        })
    });

    println!(
        "\nBalancers that keep connections to Apache prefork, whose KeepAliveTimeout is 1 or 600 s. Of {} requests each, \
         half of them POST:\nanswered with 502, 503 and 504, and without an answer, as the connection ended\n",
        seen[0][0][0].asked
    );
    let line = |title: String, cells: [String; 4]| {
        let [a, b, c, d] = cells;
        [title, a, b, c, d]
    };
    let mut rows = vec![line(String::new(), servers.each_ref().map(|server| server.name.to_owned()))];
    for ((name, _), seen) in balancers.iter().zip(&seen) {
        for (n, clients) in ["", ", a connection for each"].iter().enumerate() {
            let cells = [0, 1, 2, 3].map(|server| tally_cell(&seen[server][n]));
            rows.push(line(format!("{name}{clients}"), cells));
        }
    }
    let looks = looks.into_inner().max(1) as f64;
    let held = held.map(|held| format!("{:.1}", held.into_inner() as f64 / looks));
    rows.push(line("workers".to_owned(), servers.each_ref().map(|server| server.workers.to_string())));
    rows.push(line("of these with a connection".to_owned(), held));
    print_table(&rows);
    Ok(seen.iter().flat_map(|seen| seen[LINGERD]).map(|tally| tally.lost()).sum())
}

/// 502, 503, 504 and none; anything else, if there was.
fn tally_cell(tally: &Tally) -> String {
    let [bad, unavailable, late] = tally.refused;
    let failed = if tally.failed > 0 { format!(", {} failed", tally.failed) } else { String::new() };
    format!("{bad} {unavailable} {late} {}{failed}", tally.unanswered)
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

    /// How many were whole, cut short, and reset.
    fn counts(&self) -> String {
        let counts = [Outcome::Whole, Outcome::CutShort, Outcome::Reset].map(|outcome| self.count(&outcome));
        match self.outcomes.len() - self.count(&Outcome::Left) {
            0 => "-".to_owned(),
            _ => counts.map(|count| count.to_string()).join(" "),
        }
    }

    fn cell(&self) -> String {
        let outcomes = self.counts();
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
