// SPDX-License-Identifier: BSD-3-Clause

//! What the daemon costs, counted and not timed: `cargo bench -p comparisons --bench cost`.
//!
//! Instructions a linger (callgrind), system calls a linger (strace) and bytes of user memory a
//! connection, of the daemon that cargo has built or of the one that LINGERD names, so that two
//! of them can be compared. Knows the hand-off protocol, a few options and the counters, and must not
//! know how the daemon is built inside. It runs on Linux only, as it reads /proc.
//!
//! What is counted is the difference of two runs of unequal length, so that start and stop cancel
//! out. The daemon is stopped while a batch is handed over, or while the clients of one close, so
//! that it finds all of it in one turn: how many turns there are is otherwise a matter of luck. To
//! stop it costs one more wait, which it interrupts, and a futex(2) of the thread that logs; in a
//! batch of 64 neither matters. What a stand-in for another system's kernel does (ci/test builds
//! with them) counts as the daemon's.
//!
//!     cargo bench -p comparisons --bench cost                all of it, in about five minutes
//!     cargo bench -p comparisons --bench cost -- memory      or instructions, or calls
//!     LINGERD=/usr/local/sbin/lingerd cargo bench -p comparisons --bench cost
//!     PROFILES=/tmp/p cargo bench -p comparisons --bench cost -- instructions
//!
//! The last keeps what callgrind has written, in a directory that is there, for callgrind_annotate(1).

use comparisons::counting::{CALLGRIND, STRACE, Tool, field};
use lingerd_platform::{fdpass, process};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};
use support::built;

/// Senders, as many as a server has workers. In one turn each of them hands one socket over.
const SENDERS: usize = 64;

/// Batches of the two runs whose difference counts.
const BATCHES: [usize; 2] = [20, 100];

/// How often each is counted.
const REPETITIONS: usize = 3;

/// Where memory is looked at. The second is near to the most that a process with 20,000 descriptors has.
const CONNECTIONS: [usize; 2] = [10_000, 19_000];

/// A daemon that has not run for so long waits for something to happen: it may sleep for a
/// millisecond before it looks at what did.
const QUIET: Duration = Duration::from_millis(4);

/// Longer than anything takes on a machine that works.
const PATIENCE: Duration = Duration::from_secs(60);

/// No deadline is due in any run.
const NO_DEADLINE: &[&str] = &["-t", "3600", "-D", "7200"];

/// What becomes of the connections, from the hand-off on.
struct Course {
    name: &'static str,
    what: &'static str,
    options: &'static [&'static str],
    /// Connections that linger all the time and have no part in it.
    others: usize,
    /// Connections of a batch.
    batch: usize,
    /// How many times [`BATCHES`] are played: small batches take more of them to be counted as well.
    times: usize,
    play: fn(&Daemon, Vec<Connection>),
    /// The counter in which they all end.
    reason: &'static str,
}

/// The client has gone: one read finds the end of the stream.
const CLOSED_BEFORE: Course = Course {
    name: "a",
    what: "client has closed before",
    options: NO_DEADLINE,
    others: 0,
    batch: SENDERS,
    times: 1,
    play: closed_before,
    reason: "closed",
};

/// The client is there: the daemon half-closes, waits, and is woken up.
const CLOSES_LATER: Course =
    Course { name: "b", what: "client closes later", play: closes_later, ..CLOSED_BEFORE };

const COURSES: [Course; 6] = [
    CLOSED_BEFORE,
    Course { name: "a1", what: "the same, alone in its turn", batch: 1, times: 5, ..CLOSED_BEFORE },
    CLOSES_LATER,
    Course { name: "b4", what: "the same, 4,000 others linger", others: 4_000, ..CLOSES_LATER },
    Course { name: "c", what: "client sends once more first", play: sends_and_closes_later, ..CLOSES_LATER },
    Course {
        name: "d",
        what: "client is silent, idle after -t",
        options: &["-t", "0.1"],
        play: is_silent,
        reason: "idle",
        ..CLOSES_LATER
    },
];

/// The two ends of a connection.
struct Connection {
    client: TcpStream,
    server: TcpStream,
}

fn connections(listener: &TcpListener, number: usize) -> Vec<Connection> {
    let address = listener.local_addr().expect("a bound socket has an address");
    let connect = |_| Connection {
        client: TcpStream::connect(address).expect("a connection over loopback"),
        server: listener.accept().expect("the other end").0,
    };
    (0..number).map(connect).collect()
}

fn listener() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener on loopback")
}

fn closed_before(daemon: &Daemon, batch: Vec<Connection>) {
    let mut servers = Vec::new();
    for Connection { client, server } in batch {
        drop(client);
        assert_eq!(server.peek(&mut [0]).expect("an end of stream"), 0);
        servers.push(server);
    }
    daemon.in_one_turn(|| daemon.hand_over(servers));
}

fn closes_later(daemon: &Daemon, batch: Vec<Connection>) {
    let clients = linger(daemon, batch);
    daemon.in_one_turn(|| drop(clients));
}

fn sends_and_closes_later(daemon: &Daemon, batch: Vec<Connection>) {
    let mut clients = linger(daemon, batch);
    daemon.in_one_turn(|| clients.iter_mut().for_each(|c| c.write_all(&[0; 1000]).expect("room for it")));
    daemon.in_one_turn(|| drop(clients));
}

fn is_silent(daemon: &Daemon, batch: Vec<Connection>) {
    let before = daemon.descriptors();
    let clients = linger(daemon, batch);
    wait_until("the connections end", || daemon.descriptors() == before);
    daemon.settle();
    drop(clients);
}

/// Hands the batch over and returns the clients' ends once all of it lingers.
fn linger(daemon: &Daemon, batch: Vec<Connection>) -> Vec<TcpStream> {
    let (clients, servers) = batch.into_iter().map(|c| (c.client, c.server)).unzip();
    daemon.in_one_turn(|| daemon.hand_over(servers));
    clients
}

/// A daemon with a directory and senders of its own.
struct Daemon {
    child: Child,
    pid: i32,
    directory: PathBuf,
    senders: Vec<UnixStream>,
}

impl Daemon {
    /// Starts it with these options, with `tool` before it.
    fn start(tool: &[OsString], options: &[&str]) -> Daemon {
        let directory = env::temp_dir().join(format!("lingerd-cost-{}", std::process::id()));
        // Whatever the umask is: lingerd takes none to which others may write.
        fs::DirBuilder::new().mode(0o755).create(&directory).expect("a directory for the sockets");
        let socket = directory.join("s");
        let command = [tool, &[lingerd().into()]].concat();
        let child = Command::new(&command[0])
            .args(&command[1..])
            .args(["-f", "-q", "-s"])
            .arg(&socket)
            .args(options)
            .stdin(Stdio::null())
            .stderr(fs::File::create(directory.join("log")).expect("a log"))
            .spawn()
            .unwrap_or_else(|e| panic!("{:?}: {e}", command[0]));
        let pid = child.id().try_into().expect("a process id is an int");
        let mut daemon = Daemon { child, pid, directory, senders: Vec::new() };
        wait_until("the daemon listens", || {
            assert!(!daemon.has_ended(), "the daemon has ended: {}", daemon.log());
            daemon.senders.extend(UnixStream::connect(&socket));
            !daemon.senders.is_empty()
        });
        daemon.settle();
        let others = daemon.in_one_turn(|| {
            (1..SENDERS).map(|_| UnixStream::connect(&socket).expect("room in the queue")).collect()
        });
        daemon.senders.extend::<Vec<_>>(others);
        daemon
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_some()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    fn signal(&self, signal: i32) {
        process::kill(self.pid, signal).expect("a signal to our child");
    }

    /// A file of its directory in /proc.
    fn proc(&self, name: &str) -> PathBuf {
        Path::new("/proc").join(self.pid.to_string()).join(name)
    }

    /// Its state (S is asleep, T or t stopped), and how often it has gone to sleep so far, proc(5).
    fn status(&self) -> (String, String) {
        let status = fs::read_to_string(self.proc("status")).expect("the daemon is there");
        let value = |key| field(&status, key).expect("a field of every Linux").to_owned();
        (value("State:"), value("voluntary_ctxt_switches:"))
    }

    /// How many descriptors it has open. A connection that lingers takes one.
    fn descriptors(&self) -> usize {
        fs::read_dir(self.proc("fd")).expect("the daemon is there").count()
    }

    /// Its anonymous memory in bytes, page by page: those of /proc/PID/status lag behind.
    fn memory(&self) -> u64 {
        let rollup = fs::read_to_string(self.proc("smaps_rollup")).expect("Linux 4.14 or newer");
        let kilobytes = field(&rollup, "Anonymous:").and_then(|value| value.parse::<u64>().ok());
        kilobytes.expect("a number of kB") * 1024
    }

    /// Waits until it has done all there is to do.
    fn settle(&self) {
        let mut before = self.status();
        wait_until("the daemon is quiet", || {
            thread::sleep(QUIET);
            let now = self.status();
            let quiet = now.0 == "S" && now == before;
            before = now;
            quiet
        });
    }

    /// Does `work` while the daemon is stopped, and waits until that has been served.
    fn in_one_turn<T>(&self, work: impl FnOnce() -> T) -> T {
        self.signal(libc::SIGSTOP);
        wait_until("the daemon is stopped", || self.status().0.eq_ignore_ascii_case("T"));
        let done = work();
        self.signal(libc::SIGCONT);
        self.settle();
        done
    }

    /// Hands these over, each by a sender of its own, and closes our copies.
    fn hand_over(&self, servers: Vec<TcpStream>) {
        assert!(servers.len() <= self.senders.len());
        for (sender, server) in self.senders.iter().zip(servers) {
            fdpass::send(sender, b"L", &[server.as_fd()]).expect("room for one message");
        }
    }

    /// Ends it, once nothing lingers and it has counted `lingers` that ended by `reason`.
    fn stop(mut self, lingers: usize, reason: &str) {
        let said = Command::new(lingerd()).args(["-S", "-s"]).arg(self.directory.join("s")).output();
        let said = String::from_utf8(said.expect("lingerd -S").stdout).expect("text");
        let counter = |key| field(&said, key).and_then(|value| value.parse().ok());
        let counted = ["lingering", "handed_over", reason].map(counter);
        assert_eq!(
            counted,
            [Some(0), Some(lingers), Some(lingers)],
            "lingering, handed_over, {reason}\n{said}"
        );
        self.settle();
        self.signal(libc::SIGTERM);
        wait_until("the daemon ends", || self.has_ended());
        let code = self.child.wait().expect("it is our child").code();
        assert_eq!(code, Some(0), "the exit code: {}", self.log());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it has ended, unless we panic
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "gave up waiting until {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// The daemon to look at.
fn lingerd() -> PathBuf {
    built::program("lingerd").unwrap_or_else(|why| panic!("{why}, or LINGERD names one"))
}

/// What a whole run of so many batches takes. What the tool has written becomes `keep`.
fn run(tool: &Tool, course: &Course, batches: usize, keep: Option<&Path>) -> BTreeMap<String, u64> {
    let output = env::temp_dir().join(format!("lingerd-cost-{}.counts", std::process::id()));
    let mut arguments = Vec::from_iter(tool.arguments.iter().map(OsString::from));
    arguments.last_mut().expect("the option that names the file").push(&output);
    let daemon = Daemon::start(&arguments, course.options);
    let listener = listener();
    let mut others = Vec::new();
    while others.len() < course.others {
        let more = connections(&listener, SENDERS.min(course.others - others.len()));
        others.extend(linger(&daemon, more));
    }
    for _ in 0..batches {
        (course.play)(&daemon, connections(&listener, course.batch));
    }
    daemon.in_one_turn(|| drop(others));
    daemon.stop(course.others + batches * course.batch, course.reason);
    let mut counts = None;
    wait_until("the counts are written", || {
        counts = fs::read_to_string(&output).ok().and_then(|text| (tool.read)(&text));
        counts.is_some()
    });
    if let Some(keep) = keep {
        fs::copy(&output, keep).unwrap_or_else(|e| panic!("{}: {e}", keep.display()));
    }
    fs::remove_file(&output).expect("it was there");
    counts.unwrap_or_default() // some, or there would be a panic above
}

/// What one linger takes, by name.
fn count(tool: &Tool, course: &Course, keep: Option<&Path>) -> BTreeMap<String, f64> {
    let [few, many] = BATCHES.map(|batches| batches * course.times);
    let less = run(tool, course, few, None);
    let more = run(tool, course, many, keep);
    let lingers = ((many - few) * course.batch) as f64;
    let each = |(name, count): (String, u64)| {
        let difference = count.saturating_sub(less.get(&name).copied().unwrap_or(0));
        (name, difference as f64 / lingers)
    };
    more.into_iter().map(each).collect()
}

/// The one in the middle, and by how many percent of it the least and the most are apart.
fn median_and_spread(mut values: [f64; REPETITIONS]) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    let median = values[REPETITIONS / 2];
    (median, 100.0 * (values[REPETITIONS - 1] - values[0]) / median)
}

fn instructions() {
    if !CALLGRIND.is_there() {
        println!("{}", CALLGRIND.missing);
        return;
    }
    println!("{:<36} {:>12} {:>9}", "instructions a linger", "median", "spread");
    for course in &COURSES {
        let keep =
            env::var_os("PROFILES").map(|to| Path::new(&to).join(format!("callgrind.{}", course.name)));
        let counts = [(); REPETITIONS].map(|()| count(&CALLGRIND, course, keep.as_deref())["instructions"]);
        let (median, spread) = median_and_spread(counts);
        println!("{:<3}{:<33} {median:>12.1} {spread:>7.2} %", course.name, course.what);
    }
}

fn calls() {
    if !STRACE.is_there() {
        println!("{}", STRACE.missing);
        return;
    }
    println!("{:<36} {:>12}", "system calls a linger", "all");
    for course in &COURSES {
        let mut counts = Vec::from_iter(count(&STRACE, course, None).into_iter().filter(|(_, n)| *n >= 0.01));
        counts.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        let all: f64 = counts.iter().map(|(_, n)| n).sum();
        let each = Vec::from_iter(counts.iter().map(|(name, n)| format!("{name} {n:.2}")));
        println!("{:<3}{:<33} {all:>12.2}   {}", course.name, course.what, each.join(", "));
    }
}

/// Bytes a connection, at each of [`CONNECTIONS`].
fn bytes_a_connection() -> [f64; 2] {
    let daemon = Daemon::start(&[], NO_DEADLINE);
    let listener = listener();
    closed_before(&daemon, connections(&listener, SENDERS));
    sends_and_closes_later(&daemon, connections(&listener, SENDERS));
    let (before, mut clients) = (daemon.memory(), Vec::new());
    let bytes = CONNECTIONS.map(|number| {
        while clients.len() < number {
            let more = connections(&listener, SENDERS.min(number - clients.len()));
            clients.extend(linger(&daemon, more));
        }
        daemon.memory().saturating_sub(before) as f64 / number as f64
    });
    let lingers = 2 * SENDERS + clients.len();
    daemon.in_one_turn(|| drop(clients));
    daemon.stop(lingers, "closed");
    bytes
}

fn memory() {
    let runs = [(); REPETITIONS].map(|()| bytes_a_connection());
    println!("{:<36} {:>12} {:>9}", "bytes of user memory a connection", "median", "spread");
    for (n, number) in CONNECTIONS.into_iter().enumerate() {
        let (median, spread) = median_and_spread(runs.map(|bytes| bytes[n]));
        println!("{:<36} {median:>12.1} {spread:>7.2} %", format!("with {number} that linger"));
    }
}

fn main() -> ExitCode {
    if !cfg!(target_os = "linux") {
        eprintln!("cost: it reads the /proc of Linux");
        return ExitCode::FAILURE;
    }
    let limit = process::raise_descriptor_limit().unwrap_or(0);
    let wanted = Vec::from_iter(env::args().skip(1).filter(|argument| argument != "--bench"));
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|argument| argument == name);
    println!("{}", lingerd().display());
    if is_wanted("memory") {
        let least = CONNECTIONS[1] as u64 + 1_000;
        if limit < least {
            println!(
                "memory is left out: it takes {least} open descriptors, and the limit (ulimit -Hn) is {limit}"
            );
        } else {
            memory();
        }
    }
    if is_wanted("instructions") {
        instructions();
    }
    if is_wanted("calls") {
        calls();
    }
    ExitCode::SUCCESS
}
