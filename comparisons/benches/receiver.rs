// SPDX-License-Identifier: BSD-3-Clause

//! The daemon beside the least that can be done with what it is handed (receiver.c): a part of `make bench`.
//!
//! CPU time a linger, of clients that have gone when they are handed over and of clients that close a moment later,
//! by how many senders there are and how many sockets come in a message. They take turns, round by round, and
//! a round's ratios are of measurements that follow each other, so that whatever else the machine does falls on
//! all of them. Senders half-close, as the protocol asks of them.
//!
//! Between the two stands the bare receiver that asks the kernel what lingerd asks (is it TCP, how far is it closed, would
//! close(2) wait): what is above the first is the price of the answers, what is above the second is that of lingerd's own
//! code, its table, its wheel and its counters, and of its pause before a turn.
//!
//! "At once": it is stopped while a batch is handed over, or while the clients of one close, and so finds all of it in one
//! turn: how often it is woken up is not a matter of luck. What a stop costs a process for itself, one with several threads
//! more than one with one, is measured with nothing to do and taken off. "In turn": connections come one after the other, as fast as
//! they can be made, by each sender in its turn, and a client closes when 64 others have come, as is the way of a server
//! that is busy. It runs on Linux only, whose scheduler tells the time to the nanosecond.
//!
//! Where the machine has other things to do, whoever is woken up waits for them, and finds their data in the caches: the
//! figures are twice as large, and vary by as much. `chrt -f 1` before cargo has everything of it come first.
//!
//!     cargo bench -p comparisons --bench receiver                 all of it, in about five minutes
//!     cargo bench -p comparisons --bench receiver -- 64x1 1x253   of so many senders, so many in a message
//!     LINGERD=/usr/local/sbin/lingerd cargo bench -p comparisons --bench receiver
//!     cargo bench -p comparisons --bench receiver -- calls        system calls a linger (strace), no times
//!
//! It must not know how either is built inside.

use comparisons::{print_table, progress, row, spread};
use lingerd_platform::{fdpass, process};
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};
use support::built;

/// Where the figures are written, beside being printed.
const REPORT: &str = "target/receiver.json";

/// How many senders, and how many sockets in each of their messages.
const CROWDS: [(usize, usize); 7] = [(1, 1), (8, 1), (64, 1), (1, 16), (64, 16), (1, 253), (8, 253)];

/// Rounds, in each of which both are measured.
const ROUNDS: usize = 7;

/// Lingers of each in a round, or as many more as make whole batches.
const LINGERS: usize = 1024;

/// How often each is stopped and continued with nothing to do, for what that costs.
const STOPS: usize = 9;

/// A process that has not run for so long waits for something to happen: it may sleep for a millisecond before it looks
/// at what did.
const QUIET: Duration = Duration::from_millis(4);

/// Longer than anything takes on a machine that works.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the clients do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Clients {
    /// They have closed when they are handed over.
    Gone,
    /// They close when they linger.
    Linger,
}

impl Clients {
    const ALL: [Clients; 2] = [Clients::Gone, Clients::Linger];

    const fn name(self) -> &'static str {
        match self {
            Clients::Gone => "gone",
            Clients::Linger => "lingering",
        }
    }
}

/// How connections come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pace {
    AtOnce,
    InTurn,
}

impl Pace {
    const fn name(self) -> &'static str {
        match self {
            Pace::AtOnce => "at once",
            Pace::InTurn => "in turn",
        }
    }
}

/// How many clients have not closed when connections come in turn.
const OPEN: usize = 64;

/// One of them.
struct Receiver {
    child: Child,
    pid: i32,
    senders: Vec<UnixStream>,
}

impl Receiver {
    fn start(command: &mut Command, socket: &Path, senders: usize) -> Receiver {
        let child = command.stdin(Stdio::null()).spawn().expect("it starts");
        let pid = child.id().try_into().expect("a process id is an int");
        let mut receiver = Receiver { child, pid, senders: Vec::new() };
        wait_until("it listens", || {
            receiver.senders.extend(UnixStream::connect(socket));
            !receiver.senders.is_empty()
        });
        while receiver.senders.len() < senders {
            receiver.senders.push(UnixStream::connect(socket).expect("room in the queue"));
        }
        receiver.settle();
        receiver
    }

    fn proc(&self, name: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{name}", self.pid)).expect("it is there")
    }

    /// Nanoseconds of CPU of all its threads, proc(5), schedstat.
    fn cpu(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid)).expect("it is there");
        let time = |task: fs::DirEntry| {
            let told = fs::read_to_string(task.path().join("schedstat")).ok()?;
            told.split_whitespace().next()?.parse::<u64>().ok()
        };
        tasks.filter_map(|task| time(task.ok()?)).sum()
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid)).expect("it is there").count()
    }

    /// Whether it sleeps, and how often it has gone to sleep.
    fn status(&self) -> (bool, bool, String) {
        let status = self.proc("status");
        let value = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.expect("a field of every Linux").trim().to_owned()
        };
        let state = value("State:");
        (state.starts_with('S'), state.starts_with(['T', 't']), value("voluntary_ctxt_switches:"))
    }

    fn settle(&self) {
        let mut before = self.status();
        wait_until("it is quiet", || {
            thread::sleep(QUIET);
            let now = self.status();
            let is_quiet = now.0 && now == before;
            before = now;
            is_quiet
        });
    }

    /// Does `work` while it is stopped, and waits until it has as many descriptors as that, and is quiet.
    fn at_once(&self, descriptors: usize, work: impl FnOnce()) {
        process::kill(self.pid, libc::SIGSTOP).expect("a signal to our child");
        wait_until("it is stopped", || self.status().1);
        work();
        process::kill(self.pid, libc::SIGCONT).expect("a signal to our child");
        wait_until("it is done", || self.descriptors() == descriptors);
        self.settle();
    }

    /// Nanoseconds of CPU that a stop takes of a process that has nothing to do: the median, as one that was disturbed may take
    /// ten times as much.
    fn stop_cost(&self) -> f64 {
        let descriptors = self.descriptors();
        let mut costs = [(); STOPS].map(|()| {
            let before = self.cpu();
            self.at_once(descriptors, || {});
            self.cpu() - before
        });
        costs.sort_unstable();
        costs[STOPS / 2] as f64
    }

    /// Has a batch handed over, `sockets` in a message, by its senders in turns.
    fn linger(&self, pairs: Vec<(TcpStream, TcpStream)>, sockets: usize, clients: Clients) {
        let (before, number) = (self.descriptors(), pairs.len());
        let (mut near, far): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        for server in &far {
            server.shutdown(Shutdown::Write).expect("it is connected");
        }
        if clients == Clients::Gone {
            near.clear();
            far.iter().for_each(|server| assert_eq!(server.peek(&mut [0]).expect("an end of stream"), 0));
        }
        let after = if clients == Clients::Gone { before } else { before + number };
        self.at_once(after, || {
            for (sender, some) in self.senders.iter().cycle().zip(far.chunks(sockets)) {
                let some: Vec<_> = some.iter().map(AsFd::as_fd).collect();
                fdpass::send(sender, b"L", &some).expect("room for one message");
            }
            drop(far);
        });
        if clients == Clients::Linger {
            self.at_once(before, || drop(near));
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// So many connections over loopback, from and to addresses of which there are enough for all that are over, and still
/// have their ports.
fn connections(listener: &TcpListener, number: usize, round: &mut u8) -> Vec<(TcpStream, TcpStream)> {
    *round = round.wrapping_add(1) % 250;
    let address = (Ipv4Addr::new(127, 0, 1, *round), listener.local_addr().expect("it is bound").port());
    let connect = |_| {
        let client = TcpStream::connect(address).expect("a connection over loopback");
        (client, listener.accept().expect("the other end").0)
    };
    (0..number).map(connect).collect()
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "gave up waiting until {what}");
        thread::sleep(Duration::from_micros(200));
    }
}

/// What runs them.
struct Rig {
    directory: PathBuf,
    lingerd: PathBuf,
    bare: PathBuf,
    listener: TcpListener,
    round: u8,
}

/// Its name, which is that of its socket, too.
type Kind = &'static str;

const BARE: Kind = "bare";
const ASKS: Kind = "asks";
const LINGERD: Kind = "lingerd";

/// What is measured: the first is what the others are compared with.
const KINDS: [Kind; 3] = [BARE, ASKS, LINGERD];

impl Rig {
    fn new() -> Result<Rig, String> {
        let lingerd = built::program("lingerd")?;
        let directory = env::temp_dir().join(format!("lingerd-receiver-{}", std::process::id()));
        // Whatever the umask is: lingerd takes none to which others may write.
        fs::DirBuilder::new().mode(0o755).create(&directory).map_err(|e| e.to_string())?;
        let bare = directory.join("receiver");
        let source = built::project().join("comparisons/receiver.c");
        let made = Command::new("cc").args(["-O2", "-Wall", "-Wextra", "-o"]).arg(&bare).arg(source).status();
        if !made.is_ok_and(|status| status.success()) {
            return Err("there is no C compiler (Debian: apt-get install gcc libc6-dev)".to_owned());
        }
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(|e| e.to_string())?;
        Ok(Rig { directory, lingerd, bare, listener, round: 0 })
    }

    /// Starts one, with `tool` before it.
    fn start(&self, kind: Kind, senders: usize, tool: &[&str]) -> Receiver {
        let socket = self.directory.join(kind);
        let _ = fs::remove_file(&socket);
        let program = if kind == LINGERD { &self.lingerd } else { &self.bare };
        let mut words: Vec<&std::ffi::OsStr> = tool.iter().map(AsRef::as_ref).collect();
        words.push(program.as_os_str());
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        match kind {
            LINGERD => drop(command.args(["-f", "-q", "-t", "3600", "-D", "7200", "-s"])),
            ASKS => drop(command.arg("-a")),
            _ => {}
        }
        // That it runs as root is nothing to be told each time.
        let log = fs::File::create(self.directory.join("log")).expect("a log");
        Receiver::start(command.arg(&socket).stderr(log), &socket, senders)
    }

    /// Plays so many lingers, one after the other.
    fn play_in_turn(&mut self, receiver: &Receiver, clients: Clients, number: usize) -> usize {
        let (before, mut open) = (receiver.descriptors(), VecDeque::new());
        for sender in receiver.senders.iter().cycle().take(number) {
            let (client, server) = connections(&self.listener, 1, &mut self.round).remove(0);
            server.shutdown(Shutdown::Write).expect("it is connected");
            if clients == Clients::Linger {
                open.push_back(client);
            } else {
                drop(client);
            }
            fdpass::send(sender, b"L", &[server.as_fd()]).expect("room for one message");
            if open.len() > OPEN {
                open.pop_front();
            }
        }
        drop(open);
        wait_until("it is done", || receiver.descriptors() == before);
        receiver.settle();
        number
    }

    /// Plays so many lingers, or some more.
    fn play(&mut self, receiver: &Receiver, sockets: usize, clients: Clients, least: usize) -> usize {
        let batch = receiver.senders.len() * sockets;
        let mut done = 0;
        while done < least {
            let pairs = connections(&self.listener, batch, &mut self.round);
            receiver.linger(pairs, sockets, clients);
            done += batch;
        }
        done
    }

    /// Nanoseconds of CPU a linger.
    fn measure(&mut self, receiver: &Receiver, sockets: usize, clients: Clients, pace: Pace) -> f64 {
        let batch = receiver.senders.len() * sockets;
        // Alone in a batch costs so much more that fewer do.
        let least = if batch == 1 { LINGERS / 8 } else { LINGERS };
        let stop = if pace == Pace::AtOnce { receiver.stop_cost() } else { 0.0 };
        let before = receiver.cpu();
        let lingers = match pace {
            Pace::AtOnce => self.play(receiver, sockets, clients, least),
            Pace::InTurn => self.play_in_turn(receiver, clients, 2 * LINGERS),
        };
        let stops = lingers / batch * if clients == Clients::Gone { 1 } else { 2 };
        ((receiver.cpu() - before) as f64 - stop * stops as f64) / lingers as f64
    }

    fn compare(&mut self, (senders, sockets): (usize, usize), clients: Clients, pace: Pace) -> Compared {
        progress(&format!(
            "{senders} senders, {sockets} in a message, {}, clients {}",
            pace.name(),
            clients.name()
        ));
        let receivers = KINDS.map(|kind| self.start(kind, senders, &[]));
        let mut measured = KINDS.map(|_| Vec::new());
        for receiver in &receivers {
            self.measure(receiver, sockets, clients, pace); // what is allocated once is allocated
        }
        for _ in 0..ROUNDS {
            for (receiver, measured) in receivers.iter().zip(&mut measured) {
                measured.push(self.measure(receiver, sockets, clients, pace));
            }
        }
        Compared { senders, sockets, clients, pace, measured }
    }

    /// System calls a linger, by name.
    fn calls(
        &mut self,
        kind: Kind,
        (senders, sockets): (usize, usize),
        clients: Clients,
    ) -> BTreeMap<String, f64> {
        let output = self.directory.join("counts");
        let mut counts = [0, LINGERS].map(|least| {
            let option = format!("--output={}", output.display());
            let receiver = self.start(kind, senders, &["strace", "-D", "-f", "-c", &option]);
            let lingers = self.play(&receiver, sockets, clients, least);
            process::kill(receiver.pid, libc::SIGTERM).expect("a signal to our child");
            let mut text = String::new();
            wait_until("the counts are written", || {
                text = fs::read_to_string(&output).unwrap_or_default();
                text.contains("total")
            });
            drop(receiver);
            let _ = fs::remove_file(&output);
            (lingers, text.lines().filter_map(count).collect::<BTreeMap<_, _>>())
        });
        let [(_, before), (lingers, after)] = &mut counts;
        after.remove("total");
        let each = |(name, count): (&String, &u64)| {
            let more = count.saturating_sub(before.get(name).copied().unwrap_or(0));
            (name.clone(), more as f64 / *lingers as f64)
        };
        after.iter().map(each).filter(|(_, count)| *count >= 0.01).collect()
    }
}

/// A line of strace -c: % time, seconds, usecs/call, calls, errors where there are any, and the name.
fn count(line: &str) -> Option<(String, u64)> {
    let words: Vec<_> = line.split_whitespace().collect();
    Some((words.last()?.to_string(), words.get(3)?.parse().ok()?))
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// What was measured of each, round by round, in nanoseconds.
struct Compared {
    senders: usize,
    sockets: usize,
    clients: Clients,
    pace: Pace,
    measured: [Vec<f64>; KINDS.len()],
}

impl Compared {
    /// Of each to the bare one.
    fn ratios(&self) -> [Vec<f64>; KINDS.len()] {
        let [bare, ..] = &self.measured;
        self.measured
            .each_ref()
            .map(|values| bare.iter().zip(values).map(|(bare, value)| value / bare).collect())
    }

    fn row(&self) -> [String; 7] {
        let micros = |values: &Vec<f64>| spread(values.iter().map(|ns| ns / 1e3).collect(), 2);
        let [bare, asks, lingerd] = self.measured.each_ref().map(micros);
        let [_, asks_ratio, ratio] = self.ratios().map(|ratios| spread(ratios, 3));
        let what = format!("clients {}, {} senders x {}", self.clients.name(), self.senders, self.sockets);
        [what, self.pace.name().to_owned(), bare, asks, lingerd, asks_ratio, ratio]
    }

    fn json(&self) -> Value {
        let [bare, asks, lingerd] = &self.measured;
        let [_, asks_ratios, ratios] = self.ratios();
        json!({
            "clients": self.clients.name(), "senders": self.senders, "sockets": self.sockets,
            "pace": self.pace.name(),
            "bare_ns": bare, "asks_ns": asks, "lingerd_ns": lingerd,
            "asks_ratios": asks_ratios, "ratios": ratios,
        })
    }
}

/// The machine, and what runs on it.
fn machine(lingerd: &Path) -> Value {
    let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let said = |command: &mut Command| {
        let output = command.output().map(|output| output.stdout).unwrap_or_default();
        String::from_utf8_lossy(&output).lines().next().unwrap_or_default().to_owned()
    };
    let processor = file("/proc/cpuinfo").lines().find_map(|line| {
        line.strip_prefix("model name").map(|name| name.trim_start_matches(['\t', ' ', ':']).to_owned())
    });
    json!({
        "kernel": file("/proc/sys/kernel/osrelease").trim(),
        "processor": processor,
        "processors": thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "load": file("/proc/loadavg").trim(),
        "lingerd": said(Command::new(lingerd).arg("-V")),
        "cc": said(Command::new("cc").arg("--version")),
    })
}

fn main() -> ExitCode {
    if !cfg!(target_os = "linux") {
        eprintln!("receiver: it reads the /proc of Linux");
        return ExitCode::FAILURE;
    }
    let words: Vec<_> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let crowd = |word: &String| {
        let (senders, sockets) = word.split_once('x')?;
        let (senders, sockets) = (senders.parse().ok()?, sockets.parse().ok()?);
        ((1..=128).contains(&senders) && (1..=253).contains(&sockets)).then_some((senders, sockets))
    };
    let (named, counts): (Vec<_>, Vec<_>) = words.iter().partition(|word| *word != "calls");
    let crowds: Option<Vec<_>> = named.into_iter().map(crowd).collect();
    let Some(mut crowds) = crowds else {
        eprintln!("usage: cargo bench -p comparisons --bench receiver [-- [calls] [SENDERSxSOCKETS ...]]");
        return ExitCode::from(2);
    };
    if crowds.is_empty() {
        crowds = if counts.is_empty() { CROWDS.to_vec() } else { vec![(64, 1)] };
    }
    let _ = process::raise_descriptor_limit();
    match Rig::new() {
        Ok(mut rig) if counts.is_empty() => times(&mut rig, &crowds),
        Ok(mut rig) => calls(&mut rig, &crowds),
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn times(rig: &mut Rig, crowds: &[(usize, usize)]) {
    let mut all = Vec::new();
    for clients in Clients::ALL {
        for &crowd in crowds {
            all.push(rig.compare(crowd, clients, Pace::AtOnce));
            if crowd.1 == 1 {
                all.push(rig.compare(crowd, clients, Pace::InTurn));
            }
        }
    }
    let machine = machine(&rig.lingerd);
    println!(
        "\nCPU a linger in microseconds, {ROUNDS} rounds: the median, and from the least to the most. {machine}\n"
    );
    let head = row(["", "they come", "bare receiver", "that asks", "lingerd", "asks/bare", "lingerd/bare"]);
    print_table(&[vec![head], all.iter().map(Compared::row).collect()].concat());
    let report = json!({ "machine": machine, "rows": all.iter().map(Compared::json).collect::<Vec<_>>() });
    let path = built::project().join(REPORT);
    let written =
        path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, report.to_string()));
    match written {
        Ok(()) => println!("\nround by round: {REPORT}"),
        Err(e) => eprintln!("{}: {e}", path.display()),
    }
}

fn calls(rig: &mut Rig, crowds: &[(usize, usize)]) {
    println!("system calls a linger");
    for &crowd in crowds {
        for clients in Clients::ALL {
            for kind in KINDS {
                let counts = rig.calls(kind, crowd, clients);
                let all: f64 = counts.values().sum();
                let each: Vec<_> = counts.iter().map(|(name, count)| format!("{name} {count:.2}")).collect();
                let (senders, sockets) = crowd;
                let what = format!("{senders}x{sockets} {} {kind}", clients.name());
                println!("{what:<28} {all:>6.2}   {}", each.join(", "));
            }
        }
    }
}
