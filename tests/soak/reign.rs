// SPDX-License-Identifier: BSD-3-Clause

//! The daemons of one site, one after the other, and all that may befall them. After each blow there is one
//! daemon that serves, and what every daemon says at its end is added up.

use crate::crowd::{Scene, Server};
use crate::sender::{Sender, Tally};
use fastrand::Rng;
use lingerd::service::control;
use lingerd::stats::Snapshot;
use lingerd_platform::process;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Write, stderr};
use std::ops::RangeInclusive;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};
use support::daemon::{Counters, Site, run};
use support::{eventually, wait_until};

/// Times that end those who do not go, and that nobody who is slow for want of a processor comes near.
pub const BRISK: [&str; 10] = ["-m", "0666", "-t", "8", "-T", "10", "-D", "60", "-W", "5"];

/// Times that end nobody.
pub const PATIENT: [&str; 8] = ["-t", "1000", "-T", "2000", "-D", "4000", "-W", "3000"];

/// More microseconds than a successor takes to start and to take over, mostly.
const AS_LONG_AS_IT_TAKES: u64 = 60_000;

/// What may befall a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Blow {
    /// A successor takes over.
    Upgraded,
    /// The same, and the successor is killed at some moment.
    SuccessorKilled,
    /// `-k`, and at once another one.
    Restarted,
    /// `-k -w`, and then another one.
    StoppedAndStarted,
    /// SIGTERM, and at once another one.
    Terminated,
    /// SIGKILL, and another one.
    Killed,
    /// SIGSTOP, and SIGCONT a moment later.
    Frozen,
    /// A sender is killed while the daemon stands still.
    SenderKilled,
    /// SIGUSR1 and SIGHUP.
    Signalled,
    /// Two start at once, as if it were not there.
    TwoStarted,
    /// Two take over at once.
    TwoUpgraded,
    /// `-k`, and at once two others.
    RestartedTwice,
}

impl Blow {
    /// All of them.
    pub const ALL: [Blow; 12] = [
        Blow::Upgraded,
        Blow::SuccessorKilled,
        Blow::Restarted,
        Blow::StoppedAndStarted,
        Blow::Terminated,
        Blow::Killed,
        Blow::Frozen,
        Blow::SenderKilled,
        Blow::Signalled,
        Blow::TwoStarted,
        Blow::TwoUpgraded,
        Blow::RestartedTwice,
    ];

    /// Those after which it is still the same daemon.
    pub const GENTLE: [Blow; 4] = [Blow::Frozen, Blow::SenderKilled, Blow::Signalled, Blow::TwoStarted];
}

/// The senders there are, and those there were.
#[derive(Default)]
pub struct Senders {
    /// With the number of each.
    pub there: Vec<(usize, Sender)>,
    next: usize,
    dead: Tally,
    /// Which were killed, and when.
    pub killed: BTreeMap<usize, Instant>,
}

impl Senders {
    /// Starts another one.
    pub fn add(&mut self, site: &Arc<Site>) {
        self.there.push((self.next, Sender::start(site)));
        self.next += 1;
    }

    /// Where clients find them.
    pub fn servers(&self) -> Vec<Server> {
        let server = |(number, sender): &(usize, Sender)| Server { address: sender.address, number: *number };
        self.there.iter().map(server).collect()
    }

    /// What all have done.
    pub fn tally(&self) -> Tally {
        let mut all = self.dead;
        self.there.iter().for_each(|(_, sender)| all += sender.tally());
        all
    }

    /// The same, once what has begun by now has ended.
    pub fn settled(&self) -> Tally {
        self.there.iter().for_each(|(_, sender)| sender.settle());
        self.tally()
    }

    fn kill_one(&mut self, rng: &mut Rng) {
        let place = rng.usize(0..self.there.len());
        let (number, mut sender) = self.there.swap_remove(place);
        self.killed.insert(number, Instant::now());
        sender.kill();
        self.dead += sender.tally();
    }

    /// Ends them all, with nothing left to do.
    pub fn end(&mut self) {
        for (_, mut sender) in self.there.drain(..) {
            sender.end();
            self.dead += sender.tally();
        }
    }
}

/// A daemon, in the foreground.
struct Reigning {
    child: Child,
    log: PathBuf,
}

impl Reigning {
    fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// How it has ended, and all that it has said.
    fn last_words(&mut self) -> (Ended, String) {
        let (status, log) = (self.child.wait().unwrap(), self.log());
        let _ = fs::remove_file(&self.log);
        let last = log.lines().last().unwrap_or_default();
        let ended = match (status.code(), status.signal()) {
            (None, Some(libc::SIGKILL)) => Ended::Killed,
            (Some(1), _) if last.contains("another lingerd") => Ended::Refused,
            (Some(0), _) => match last.split_once("lingerd: stopped: ") {
                Some((_, words)) => Ended::Stopped(Counters::from_words(words)),
                None if last.contains("lingerd: succeeded: ") => Ended::Succeeded,
                None => panic!("a daemon ends without its counters:\n{log}"),
            },
            _ => panic!("a daemon ends with {status}:\n{log}"),
        };
        (ended, log)
    }
}

/// How one has ended.
#[derive(Debug)]
enum Ended {
    /// Told to stop, with these counters.
    Stopped(Counters),
    /// Another one has taken over.
    Succeeded,
    /// It did not get to serve.
    Refused,
    /// By a signal of ours.
    Killed,
}

/// How many were handed over, between two moments in which there was no daemon.
#[derive(Debug)]
pub struct Account {
    /// By the senders' count, and Apache's: as many as are known to be, and as many more as may be.
    pub handed: RangeInclusive<u64>,
    /// By the daemons' own: at their end, or when the one that was killed was last asked.
    pub counted: u64,
    /// Whether the last one was killed, and said nothing at its end.
    pub is_open: bool,
}

/// See the module's head.
pub struct Reign {
    site: Arc<Site>,
    scene: Arc<Scene>,
    now: Reigning,
    number: u32,
    options: &'static [&'static str],
    /// What has befallen them, and how often.
    pub blows: BTreeMap<Blow, u32>,
    /// When the last blow began.
    struck_at: Instant,
    /// When a daemon was killed, and so all that it had closed as it was.
    pub killed: Vec<RangeInclusive<Instant>>,
    /// When one that was told to stop had to end some before their time.
    pub cut_short: Vec<RangeInclusive<Instant>>,
    /// The counters of those that have stopped, added up.
    pub sums: BTreeMap<&'static str, u64>,
    /// For how long nobody was served while a successor took over, in milliseconds.
    pub pauses: Vec<f64>,
    /// What has been added up.
    pub accounts: Vec<Account>,
    /// Where Apache's hand-offs are counted, if they are.
    pub count: Option<PathBuf>,
    /// Where the present account began: what senders had counted by then, and what Apache had handed over.
    from: Tally,
    /// See above.
    pub from_apache: u64,
    /// What daemons have counted in it so far, other than the one that serves.
    counted: u64,
    /// What the one that serves had counted when it was last asked.
    seen: u64,
}

/// The counters that are added up.
const SUMMED: [&str; 11] = [
    "handed_over",
    "closed",
    "reset",
    "idle",
    "max",
    "limit",
    "evicted",
    "stopped",
    "cut_short",
    "rejected",
    "protocol_errors",
];

impl Reign {
    /// Begins with a daemon that has nothing yet.
    pub fn begin(site: &Arc<Site>, scene: &Arc<Scene>, options: &'static [&'static str]) -> Self {
        let mut number = 0;
        let now = start(site, &mut number, options);
        let (site, scene) = (Arc::clone(site), Arc::clone(scene));
        let (blows, sums) = Default::default();
        let (killed, cut_short, pauses, accounts) = Default::default();
        let (count, from, from_apache, counted) = Default::default();
        let struck_at = Instant::now();
        let reign = Reign {
            site,
            scene,
            now,
            number,
            options,
            blows,
            struck_at,
            killed,
            cut_short,
            sums,
            pauses,
            accounts,
            count,
            from,
            from_apache,
            counted,
            seen: 0,
        };
        reign.counters();
        reign
    }

    /// The process of the daemon that serves.
    pub fn pid(&self) -> i32 {
        self.now.child.id() as i32
    }

    /// Its counters.
    pub fn counters(&self) -> Snapshot {
        eventually(|| match control::query(&self.site.socket()) {
            Ok(Some(snapshot)) => Ok(snapshot),
            other => Err(format!("{other:?}")),
        })
    }

    /// Deals a blow, and waits until one daemon serves again.
    pub fn strike(&mut self, blow: Blow, senders: &mut Senders, rng: &mut Rng) {
        *self.blows.entry(blow).or_default() += 1;
        self.struck_at = Instant::now();
        match blow {
            Blow::Upgraded => self.crown(&["-r"], 1),
            Blow::TwoUpgraded => self.crown(&["-r"], 2),
            Blow::TwoStarted => self.crown(&[], 2),
            Blow::Restarted | Blow::RestartedTwice => {
                self.tell_to_stop(&["-k"]);
                self.crown(&[], if blow == Blow::Restarted { 1 } else { 2 });
            }
            Blow::Terminated => {
                self.signal(libc::SIGTERM);
                self.crown(&[], 1);
            }
            Blow::SuccessorKilled => {
                let mut successor = self.pretender(&["-r"]);
                thread::sleep(Duration::from_micros(rng.u64(0..AS_LONG_AS_IT_TAKES)));
                successor.child.kill().unwrap();
                if !self.settle(vec![successor]) {
                    // It was too late for that: everything was its own by then.
                    self.begin_anew(senders, true);
                }
            }
            Blow::StoppedAndStarted => {
                self.tell_to_stop(&["-k", "-w"]);
                assert!(!self.settle(Vec::new()), "it has said that it has ended");
                self.begin_anew(senders, false);
            }
            Blow::Killed => {
                self.signal(libc::SIGKILL);
                assert!(!self.settle(Vec::new()), "it was killed");
                self.begin_anew(senders, true);
            }
            Blow::Frozen => {
                self.signal(libc::SIGSTOP);
                thread::sleep(Duration::from_millis(rng.u64(10..900)));
                self.signal(libc::SIGCONT);
            }
            Blow::SenderKilled => {
                self.signal(libc::SIGSTOP);
                thread::sleep(Duration::from_millis(rng.u64(1..100)));
                senders.kill_one(rng);
                self.signal(libc::SIGCONT);
                senders.add(&self.site);
            }
            Blow::Signalled => {
                self.signal(libc::SIGUSR1);
                self.signal(libc::SIGHUP);
            }
        }
        assert!(self.settle(Vec::new()), "after {blow:?} there is no daemon");
        *self.scene.servers.write().unwrap() = senders.servers();
    }

    fn signal(&self, signal: i32) {
        process::kill(self.pid(), signal).unwrap();
    }

    fn tell_to_stop(&self, how: &[&str]) {
        let told = run(self.site.lingerd().args(how));
        assert_eq!(told.code, Some(0), "{told:?}");
    }

    /// Starts one that wants to be the daemon.
    fn pretender(&mut self, options: &[&str]) -> Reigning {
        start(&self.site, &mut self.number, &[self.options, options].concat())
    }

    /// Starts so many that want to be the daemon, all at once, and waits until one is.
    fn crown(&mut self, options: &[&str], pretenders: usize) {
        let pretenders = (0..pretenders).map(|_| self.pretender(options)).collect();
        assert!(self.settle(pretenders), "no daemon is left");
    }

    /// Waits until of the daemon that served and the `others` one is left, and serves, or none at all; and adds up
    /// what those have said that have ended. Returns whether there is one.
    fn settle(&mut self, others: Vec<Reigning>) -> bool {
        let mut all = others;
        let mut has_answered = false;
        wait_until("there is one daemon that serves", || {
            let them = std::iter::once(&mut self.now).chain(&mut all);
            let alive = them.filter_map(|daemon| (!daemon.has_ended()).then_some(())).count();
            // Who has answered when it was alone is not in the midst of giving all away.
            let is_settled = alive == 0 || alive == 1 && has_answered;
            let answer = if alive == 1 { control::query(&self.site.socket()).ok().flatten() } else { None };
            self.seen = answer.map_or(self.seen, |counters| counters.get("handed_over").unwrap());
            has_answered = answer.is_some();
            is_settled
        });
        if let Some(heir) = all.iter_mut().position(|other| !other.has_ended()) {
            std::mem::swap(&mut self.now, &mut all[heir]);
        }
        for mut daemon in all {
            self.note(daemon.last_words());
        }
        !self.now.has_ended()
    }

    /// Adds up what a daemon has said that has ended.
    fn note(&mut self, (ended, log): (Ended, String)) {
        let pauses =
            log.lines().filter_map(|line| line.split_once("nobody was served for ")?.1.split_once(' '));
        self.pauses.extend(pauses.filter_map(|(number, _)| number.parse::<f64>().ok()));
        if let Ended::Stopped(counters) = ended {
            for name in SUMMED {
                *self.sums.entry(name).or_default() += counters[name];
            }
            self.counted += counters["handed_over"] + counters["rejected"];
            if counters["cut_short"] > 0 {
                self.cut_short.push(self.struck_at..=Instant::now());
            }
        }
    }

    /// The last one is gone, and all that it may have had; closes the account, and starts another one.
    fn begin_anew(&mut self, senders: &Senders, is_killed: bool) {
        self.close(senders, is_killed);
        self.now = self.pretender(&[]);
        if is_killed {
            self.killed.push(self.struck_at..=Instant::now());
        }
    }

    /// How many Apache has handed over, where that is counted.
    pub fn of_apache(&self) -> u64 {
        self.count.as_deref().map_or(0, settled)
    }

    fn close(&mut self, senders: &Senders, is_open: bool) {
        let last_words = self.now.last_words();
        self.note(last_words);
        let tally = senders.settled();
        let of_apache = self.of_apache();
        let handed = tally.handed - self.from.handed + of_apache - self.from_apache;
        // Where nobody counts them they may be as many as there are clients of Apache.
        let perhaps = if self.count.is_some() { 0 } else { self.scene.to_apache.load(Ordering::Relaxed) };
        let unknown = tally.unknown().saturating_sub(self.from.unknown());
        self.accounts.push(Account {
            handed: handed..=handed + unknown + perhaps,
            counted: self.counted + if is_open { self.seen } else { 0 },
            is_open,
        });
        (self.from, self.from_apache) = (tally, of_apache);
        (self.counted, self.seen) = (0, 0);
    }

    /// Stops the last one, with nothing left to do for it.
    pub fn end(&mut self, senders: &Senders) {
        self.tell_to_stop(&["-k", "-w"]);
        assert!(!self.settle(Vec::new()), "it has said that it has ended");
        self.close(senders, false);
    }
}

impl Drop for Reign {
    fn drop(&mut self) {
        let _ = self.now.child.kill();
        let _ = self.now.child.wait();
        if thread::panicking() {
            let _ = writeln!(stderr(), "the last daemon's log:\n{}", self.now.log());
        }
    }
}

/// How many hand-offs count.c has counted, once those that have begun by now have ended.
fn settled(count: &Path) -> u64 {
    let letters = |which: &[u8]| {
        let all = fs::read(count).unwrap();
        all.iter().filter(|letter| which.contains(letter)).count() as u64
    };
    let begun = letters(b"b");
    wait_until("Apache's hand-offs under way have ended", || letters(b"hf") >= begun);
    letters(b"h")
}

/// Starts one in the foreground. Its log is another one's than that of those before it.
fn start(site: &Arc<Site>, number: &mut u32, options: &[&str]) -> Reigning {
    *number += 1;
    let log = site.path(&format!("log-{number}"));
    let child = site
        .lingerd()
        .arg("-f")
        .arg("-p")
        .arg(site.pidfile())
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log).unwrap())
        .spawn()
        .unwrap();
    Reigning { child, log }
}
