// SPDX-License-Identifier: BSD-3-Clause

//! Chaos and soak: clients of every kind, senders that die, and a daemon that is killed, stopped, frozen,
//! restarted and upgraded at random; and at the end each response is accounted for.
//!
//! It takes LINGERD_SOAK_SECONDS, or 15, or else as long as LINGERD_SOAK_LINGERS take ('make soak'). What chance
//! chooses comes from a seed, which is printed, and can be given in LINGERD_FUZZ_SEED; when it happens is for the
//! machine to say. No time is asserted.

mod crowd;
mod reign;
mod sender;

use crowd::{Crowd, Habits, Kind, Loss, PAGE, Report, Scene};
use fastrand::Rng;
use lingerd::service::control;
use lingerd_platform::process;
use reign::{BRISK, Blow, PATIENT, Reign, Senders};
use sender::WORKERS;
use std::env;
use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::ops::RangeInclusive;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};
use support::apache::{Apache, Setup, put_up};
use support::daemon::{Site, ps};
use support::{compile, during, skip, tcp, wait_until};

/// No response of a sender is longer; it has to fit into a socket's buffer.
const LONGEST: usize = 60_000;

/// Senders, and threads with clients.
const SENDERS: usize = 4;
const THREADS: usize = 2;

/// After so many lingers it is looked how much memory the daemon has.
const FIRST: u64 = 10_000;

/// So much more it may have at the end, in kB. More connections at once take some, and the allocator keeps what a
/// take-over has taken; a leak of eight bytes a linger would be twice as much after a quarter of two million.
const MORE: u64 = 2_048;

/// What all responses are made of.
fn content() -> &'static [u8] {
    static CONTENT: OnceLock<Vec<u8>> = OnceLock::new();
    CONTENT.get_or_init(|| tcp::response(LONGEST + 256))
}

/// These tests want the machine for themselves.
fn alone() -> impl Drop {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn number<T: FromStr>(name: &str) -> Option<T> {
    env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}: not a number")))
}

/// How long it goes on.
enum Extent {
    Lingers(u64),
    Time(Duration),
}

impl Extent {
    fn given() -> Self {
        match number("LINGERD_SOAK_LINGERS") {
            Some(lingers) => Extent::Lingers(lingers),
            None => Extent::Time(Duration::from_secs(number("LINGERD_SOAK_SECONDS").unwrap_or(15))),
        }
    }

    /// Whether this is the whole of it, for which somebody has time.
    fn is_long(&self) -> bool {
        matches!(self, Extent::Lingers(_))
    }

    /// How much of it is over.
    fn part(&self, lingers: u64, since: Instant) -> f64 {
        match *self {
            Extent::Lingers(all) => lingers as f64 / all as f64,
            Extent::Time(all) => since.elapsed().as_secs_f64() / all.as_secs_f64(),
        }
    }
}

/// As many clients at once as there are descriptors for, of which a poll(2) does not make too much work.
fn habits() -> Habits {
    let limit = process::raise_descriptor_limit().unwrap();
    let most = (limit / 6).min(1_500) as usize;
    Habits { mix: &Kind::MIXED, most, pace: Duration::ZERO }
}

/// What counts Apache's hand-offs, on Linux. Elsewhere an account can be wrong by as many as it has clients.
const COUNT: &str = "tests/soak/count.c";

/// Apache, which hands over too, and notes that in `count`; `None` where there is none.
fn apache(site: &Site, count: Option<&Path>) -> Option<Apache> {
    let mut setup = Setup::prefork(&site.socket()).workers(16);
    if let Some((count, library)) = count.zip(compile("count.so", &["-shared", "-fPIC", COUNT])) {
        put_up(count, b"", 0o666);
        setup = setup.environment("LD_PRELOAD", &library).environment("LINGERD_SOAK_COUNT", count);
    }
    let apache = match setup.try_start() {
        Ok(apache) => apache,
        Err(missing) => {
            skip(&format!("the soak is without Apache: {missing}"));
            return None;
        }
    };
    apache.publish("page", &content()[..PAGE]);
    Some(apache)
}

fn memory(pid: i32) -> u64 {
    ps(pid, "rss").parse().unwrap()
}

/// How many descriptors a process has open, where the system shows that.
fn descriptors(pid: i32) -> Option<usize> {
    let count = || fs::read_dir(format!("/proc/{pid}/fd")).ok().map(Iterator::count);
    // Of who has just asked one may still be there.
    let counts = (0..20).map(|_| {
        thread::sleep(Duration::from_millis(10));
        count()
    });
    counts.min().flatten().filter(|_| cfg!(target_os = "linux"))
}

#[test]
fn whatever_befalls_the_daemon_each_response_is_accounted_for() {
    let _alone = alone();
    let extent = Extent::given();
    let seed = number("LINGERD_FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("LINGERD_FUZZ_SEED={seed}");
    let mut rng = Rng::with_seed(seed);

    let (site, scene) = (Site::new(), Arc::new(Scene::default()));
    let mut reign = Reign::begin(&site, &scene, &BRISK);
    let descriptors_before = descriptors(reign.pid());
    let mut senders = Senders::default();
    (0..SENDERS).for_each(|_| senders.add(&site));
    *scene.servers.write().unwrap() = senders.servers();
    reign.count = cfg!(target_os = "linux").then(|| site.path("count"));
    let apache = apache(&site, reign.count.as_deref());
    reign.count = reign.count.take().filter(|count| count.exists());
    *scene.apache.write().unwrap() = apache.as_ref().map(|apache| apache.address);
    let start = Instant::now();
    let crowd = Crowd::gather(&scene, THREADS, habits, &mut rng);
    let lingers = |senders: &Senders| senders.tally().handed;

    // In peace at first.
    wait_until("the first have lingered", || {
        lingers(&senders) >= FIRST || extent.part(lingers(&senders), start) >= 0.2
    });
    let (first, memory_before) = (lingers(&senders), memory(reign.pid()));

    // In the last quarter it is one and the same daemon that serves, and may be found to grow.
    let mut told_at = Instant::now();
    let mut bag = Vec::new();
    loop {
        let part = extent.part(lingers(&senders), start);
        if part >= 1.0 {
            break;
        }
        let all = if part < 0.75 { &Blow::ALL[..] } else { &Blow::GENTLE[..] };
        bag.retain(|blow| all.contains(blow));
        if bag.is_empty() {
            bag.extend_from_slice(all);
            rng.shuffle(&mut bag);
        }
        reign.strike(bag.pop().unwrap(), &mut senders, &mut rng);
        if told_at.elapsed() > Duration::from_secs(30) {
            told_at = Instant::now();
            println!("{:>6.0} s {:>10} lingers", start.elapsed().as_secs_f64(), lingers(&senders));
        }
        thread::sleep(Duration::from_millis(rng.u64(50..1_500)));
    }
    let report = crowd.disperse();
    let took = start.elapsed();
    reign.of_apache(); // so that it is in the midst of none
    drop(apache);
    senders.end();

    // What is left is back where it was.
    wait_until("the daemon has nothing left", || {
        let counters = reign.counters();
        counters.get("lingering") == Some(0) && counters.get("senders") == Some(0)
    });
    let (descriptors_after, memory_after) = (descriptors(reign.pid()), memory(reign.pid()));
    reign.end(&senders);

    println!("after {:.0} s:", took.as_secs_f64());
    let unaccounted = print_responses(&report, &senders, &reign);
    let wrong = print_hand_offs(&report, &senders, &reign);
    println!("descriptors: {descriptors_before:?} before, {descriptors_after:?} after");
    println!("resident memory: {memory_before} kB after {first} lingers, {memory_after} kB at the end");
    assert!(unaccounted.is_empty(), "unaccounted: {unaccounted:#?}");
    assert!(wrong.is_empty(), "these do not add up: {wrong:#?}");
    assert_eq!(descriptors_before, descriptors_after);
    assert!(memory_after <= memory_before + MORE, "{memory_after} kB, and {memory_before} kB before");
}

/// Whether a life and one of the times have a moment in common.
fn meets(loss: &Loss, times: &[RangeInclusive<Instant>]) -> bool {
    times.iter().any(|time| loss.lived.0 <= *time.end() && *time.start() <= loss.lived.1)
}

/// Prints what became of the clients, and returns what nothing explains.
fn print_responses(report: &Report, senders: &Senders, reign: &Reign) -> Vec<String> {
    let came: u64 = report.came.values().sum();
    let whole: u64 = report.whole.values().sum();
    let (mut unanswered, mut sender, mut daemon, mut stop, mut unaccounted) = (0, 0, 0, 0, Vec::new());
    for loss in &report.lost {
        let killed = loss.server.and_then(|number| senders.killed.get(&number));
        let (got, size) = loss.got;
        if killed.is_some_and(|killed| *killed <= loss.lived.1) && (got < size || loss.was_late) {
            if got == 0 && !loss.was_late {
                unanswered += 1;
            } else {
                sender += 1;
            }
        } else if loss.was_late && meets(loss, &reign.killed) {
            daemon += 1;
        } else if loss.was_late && meets(loss, &reign.cut_short) {
            stop += 1;
        } else {
            unaccounted.push(loss.to_string());
        }
    }
    println!("clients");
    report.print();
    let lines = [
        ("in all", came),
        ("whole", whole),
        ("  of Apache's", report.of_apache),
        ("reset by the client", report.own_reset),
        ("not answered, sender killed", unanswered),
        ("lost with a killed sender", sender),
        ("lost with a killed daemon", daemon),
        ("lost at the end of -W", stop),
        ("UNACCOUNTED", came - whole - report.own_reset - unanswered - sender - daemon - stop),
        ("found nobody", report.nobody_there),
    ];
    print(&lines);
    unaccounted
}

fn print(lines: &[(&str, u64)]) {
    lines.iter().for_each(|(what, number)| println!("  {what:<28}{number:>10}"));
}

/// Prints what senders and daemons have counted, and returns where they differ.
fn print_hand_offs(report: &Report, senders: &Senders, reign: &Reign) -> Vec<String> {
    let tally = senders.tally();
    println!("senders, of which {} were killed", senders.killed.len());
    print(&[
        ("answered", tally.answered),
        ("handed over", tally.handed),
        ("perhaps, and then killed", tally.unknown()),
        ("handed over by Apache", reign.from_apache),
        ("lingered itself: no room", tally.full),
        ("lingered itself: no daemon", tally.alone),
    ]);
    println!("daemons, of which {} were killed", reign.killed.len());
    reign.blows.iter().for_each(|(blow, number)| println!("  {:<28}{number:>10}", format!("{blow:?}")));
    println!("what they counted that were not killed");
    reign.sums.iter().for_each(|(name, number)| println!("  {name:<28}{number:>10}"));
    let mut wrong = Vec::new();
    // One that is killed may have answered, in each of its threads, and not have said so yet.
    let told = tally.answered + (senders.killed.len() * WORKERS) as u64;
    let whole = report.whole.values().sum::<u64>() - report.of_apache;
    if told < whole {
        wrong.push(format!("{whole} clients have a response of a sender's, of which there were {told}"));
    }
    let (mut exact, mut open, mut lost) = (0, 0, 0);
    for account in &reign.accounts {
        let (least, most) = (*account.handed.start(), *account.handed.end());
        if account.is_open {
            open += 1;
            lost += least.saturating_sub(account.counted);
        } else {
            exact += 1;
        }
        let is_right = account.counted <= most && (account.is_open || account.counted >= least);
        if !is_right {
            wrong.push(format!("{account:?}"));
        }
    }
    print(&[
        ("added up to the end", exact),
        ("added up to a kill", open),
        ("  not known to be counted", lost),
    ]);
    let worst = reign.pauses.iter().copied().fold(0.0, f64::max);
    println!("{} take-overs; the worst pause is {worst:.1} ms", reign.pauses.len());
    wrong
}

/// So many of those that linger meanwhile come at once.
const AT_ONCE: usize = 100;

/// So many hand-offs between two upgrades, at least.
const IN_BETWEEN: u64 = 50;

/// Clients that come in a stream which any machine can cope with: 50 a second on each link, which has room for 278 on
/// Linux. So it is full when nobody has been served for 5 s.
fn steadily() -> Habits {
    Habits { mix: &Kind::BRIEF, most: 500, pace: Duration::from_millis(10) }
}

/// A client that has not read its response yet.
struct Held {
    socket: TcpStream,
    offset: usize,
    size: usize,
}

#[test]
fn upgrades_in_a_row_under_load_lose_nothing_and_refuse_nothing() {
    let _alone = alone();
    let (upgrades, holders) = if Extent::given().is_long() { (100, 5_000) } else { (10, 1_000) };
    let holders = holders.min(process::raise_descriptor_limit().unwrap() as usize / 4);
    let mut rng = Rng::new();
    let (site, scene) = (Site::new(), Arc::new(Scene::default()));
    let mut reign = Reign::begin(&site, &scene, &PATIENT);
    let mut senders = Senders::default();
    (0..SENDERS).for_each(|_| senders.add(&site));
    let servers = senders.servers();
    *scene.servers.write().unwrap() = servers.clone();
    let mut held = Vec::new();
    for number in 0..holders {
        let (offset, size) = (number % 250, 1 + number % 20_000);
        let mut socket = TcpStream::connect(servers[number % SENDERS].address).unwrap();
        socket.write_all(&sender::request(offset, size)).unwrap();
        held.push(Held { socket, offset, size });
        // No more at once than there is room for in a link.
        if held.len() % AT_ONCE == 0 || held.len() == holders {
            wait_until("all linger", || reign.counters().get("lingering") == Some(held.len() as u64));
        }
    }

    let crowd = Crowd::gather(&scene, THREADS, steadily, &mut rng);
    let worst = Mutex::new(Duration::ZERO);
    let ask = || {
        let start = Instant::now();
        let answered = matches!(control::query(&site.socket()), Ok(Some(_)));
        assert!(answered, "a daemon does not say its counters");
        let mut worst = worst.lock().unwrap();
        *worst = start.elapsed().max(*worst);
        thread::sleep(Duration::from_millis(1));
    };
    during(ask, || {
        for _ in 0..upgrades {
            let enough = senders.tally().handed + IN_BETWEEN;
            wait_until("the load goes on", || senders.tally().handed >= enough);
            reign.strike(Blow::Upgraded, &mut senders, &mut rng);
        }
    });
    let report = crowd.disperse();
    // Late, and yet nothing is lost.
    for client in &mut held {
        client.socket.write_all(b"late").unwrap();
    }
    for Held { socket, offset, size } in &mut held {
        let response = tcp::read_to_end(socket);
        assert!(response == content()[*offset..*offset + *size], "a response is another one");
    }
    drop(held);
    wait_until("the daemon has nothing left", || reign.counters().get("lingering") == Some(0));
    senders.end();
    reign.end(&senders);

    let tally = senders.tally();
    let worst = worst.into_inner().unwrap().as_secs_f64() * 1e3;
    let pause = reign.pauses.iter().copied().fold(0.0, f64::max);
    println!(
        "{upgrades} upgrades with {holders} lingering: {} handed over meanwhile, the worst pause {pause:.1} ms, \
         the longest wait for an answer of -S {worst:.1} ms",
        tally.handed - holders as u64
    );
    let lost: Vec<_> = report.lost.iter().map(Loss::to_string).collect();
    assert!(lost.is_empty(), "{lost:#?}");
    assert_eq!((tally.alone, tally.unknown()), (0, 0), "hand-offs were refused");
    assert_eq!(tally.full, 0, "links were full: for seconds nobody was served");
    assert_eq!(reign.pauses.len(), upgrades);
    assert_eq!(reign.sums["handed_over"], tally.handed);
    assert_eq!((reign.sums["rejected"], reign.sums["cut_short"]), (0, 0));
}
