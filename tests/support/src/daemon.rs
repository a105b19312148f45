// SPDX-License-Identifier: BSD-3-Clause

//! The real binary in a directory of its own, watched through its own counters and its log.

use crate::sender::Sender;
use crate::{PATIENCE, built, eventually, tcp, wait_until};
use lingerd_platform::process;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write, stderr};
use std::ops::Index;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;

/// The reasons with which a connection ends.
const REASONS: [&str; 10] =
    ["closed", "reset", "idle", "max", "limit", "evicted", "stopped", "stalled", "broken", "returned"];

/// What a test has to account for to the last one; see [`Daemon::finish`].
const ACCOUNTED: [&str; 6] =
    ["lingering", "cut_short", "rejected", "protocol_errors", "refused", "bytes_discarded"];

/// The counters by their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters(BTreeMap<String, u64>);

impl Counters {
    /// From the JSON object that `lingerd -S -o json` prints, whatever else is in it.
    pub fn from_json(text: &str) -> Self {
        let object: BTreeMap<String, serde_json::Value> =
            serde_json::from_str(text).unwrap_or_else(|e| panic!("no JSON object: {e}: {text}"));
        Counters(object.into_iter().filter_map(|(key, value)| Some((key, value.as_u64()?))).collect())
    }

    /// From words such as `closed=1`, as the log has them.
    pub fn from_words(text: &str) -> Self {
        let pair = |pair: &str| {
            let (key, value) = pair.split_once('=')?;
            Some((key.to_owned(), value.parse().ok()?))
        };
        let words = text.split_whitespace();
        Counters(words.map(|text| pair(text).unwrap_or_else(|| panic!("no counter: {text}"))).collect())
    }

    /// Every counter's name.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Whether every counter of `expected` stands where it says.
    fn agree_with(&self, expected: &Counters) -> bool {
        expected.0.iter().all(|(name, &value)| self[name] == value)
    }

    /// That no connection is counted twice or not at all.
    fn assert_sound(&self) {
        let ended: u64 = REASONS.iter().map(|&reason| self[reason]).sum();
        let here = self["lingering"] + self["spooling"] + self["parked"];
        assert_eq!(self["handed_over"], ended + here, "{self:?}");
        assert!(self["returning"] <= self["parked"], "{self:?}");
        assert!(self["peak"] >= self["lingering"], "{self:?}");
        assert!(self["cut_short"] <= ended - self["closed"] - self["reset"] - self["returned"], "{self:?}");
    }
}

impl Index<&str> for Counters {
    type Output = u64;

    fn index(&self, name: &str) -> &u64 {
        self.0.get(name).unwrap_or_else(|| panic!("no counter '{name}' in {self:?}"))
    }
}

/// How a command ended, and what it said.
#[derive(Debug)]
pub struct Ended {
    /// The exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ended {
    /// That it exited with `code` and said `part` on standard error.
    #[track_caller]
    pub fn assert_failed(&self, code: i32, part: &str) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.stderr.contains(part), "nothing of '{part}' in {self:?}");
    }
}

/// Runs `command` to its end, and to that of everybody who holds its output.
pub fn run(command: &mut Command) -> Ended {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id() as i32;
    let (sender, ended) = mpsc::channel();
    thread::spawn(move || sender.send(child.wait_with_output().unwrap()));
    let output = ended.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        let _ = process::kill(pid, libc::SIGKILL);
        panic!("it does not end: {command:?}");
    });
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// `lingerd`, with nothing else on its command line yet.
pub fn lingerd() -> Command {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    Command::new(
        BUILT.get_or_init(|| built::program("lingerd").unwrap_or_else(|missing| panic!("{missing}"))),
    )
}

/// A directory in which a daemon keeps its files, and other daemons before and after it. It goes
/// when the test ends.
pub struct Site {
    directory: PathBuf,
}

impl Site {
    /// An empty one.
    pub fn new() -> Arc<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Where the soft limit is small the tests, many at once in one process, need more.
        process::raise_descriptor_limit().unwrap();
        // Where everybody has a group of his own it may be 002, and the daemon takes no such directory.
        process::umask(0o022);
        let directory = loop {
            // Short, as the path of a socket has to be.
            let name = format!("lingerd-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let directory = std::env::temp_dir().join(name);
            match fs::create_dir(&directory) {
                Ok(()) => break directory,
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {} // left there by one that was killed
                Err(e) => panic!("{}: {e}", directory.display()),
            }
        };
        Arc::new(Site { directory })
    }

    /// A place for a file.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The hand-off socket. It is the daemon that makes its directory.
    pub fn socket(&self) -> PathBuf {
        self.path("run/lingerd.sock")
    }

    /// The second hand-off socket.
    pub fn second(&self) -> PathBuf {
        self.path("run/lingerd.sock.2")
    }

    /// The control socket.
    pub fn control(&self) -> PathBuf {
        self.path("run/lingerd.sock.ctl")
    }

    /// The pid file, of a daemon that is told to have one.
    pub fn pidfile(&self) -> PathBuf {
        self.path("lingerd.pid")
    }

    /// `lingerd` with the hand-off socket of this site, to which other options can be added.
    pub fn lingerd(&self) -> Command {
        let mut command = lingerd();
        command.current_dir(&self.directory).arg("-s").arg(self.socket());
        command
    }

    /// A copy of the program that every user can run, wherever the build directory is.
    pub fn program_for_all(&self) -> PathBuf {
        let copy = self.path("lingerd");
        if !copy.exists() {
            // Another process is to write it: what is open for writing cannot be run, and whoever another
            // test starts in that moment has for an instant open what this process has.
            let copied = run(Command::new("cp").arg(self.lingerd().get_program()).arg(&copy));
            assert_eq!(copied.code, Some(0), "{copied:?}");
        }
        copy
    }

    /// `lingerd -S -o format`.
    pub fn ask(&self, format: &str) -> Ended {
        run(self.lingerd().args(["-S", "-o", format]))
    }

    /// `lingerd -k`.
    pub fn stop(&self) -> Ended {
        run(lingerd().arg("-k").arg("-p").arg(self.pidfile()))
    }

    /// The process id in the pid file, as long as somebody holds it.
    fn holder(&self) -> Option<i32> {
        loop {
            // To write, too: without that there is no lock to be had on Solaris.
            let file = File::options().read(true).write(true).open(self.pidfile()).ok()?;
            if process::try_lock(&file).ok()? {
                return None;
            }
            let text = fs::read_to_string(self.pidfile()).ok()?;
            if let Some(pid) = text.lines().next().and_then(|pid| pid.parse().ok()) {
                return Some(pid);
            }
            // A daemon that ends has wiped it out, and is about to let go.
            thread::yield_now();
        }
    }

    /// Waits until the names of a daemon in the background are gone: that it has ended is told by its pid file, which goes
    /// before the control socket does.
    pub fn wait_until_nothing_is_left(&self) {
        let names = [self.pidfile(), self.socket(), self.control()];
        wait_until("its names are gone", || !names.iter().any(|name| name.exists()));
    }

    /// What daemons in the foreground have logged here.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.path("log")).unwrap_or_default()).into_owned()
    }

    /// Starts a daemon in the foreground with `options`, and waits until it serves. Without
    /// options its clock ends nothing for as long as a test runs.
    pub fn start(self: &Arc<Self>, options: &[&str]) -> Daemon {
        Daemon::spawn(self, self.lingerd().arg("-f").args(with_time_outs(options)))
    }

    /// The same, with the time-outs that it has by itself.
    pub fn start_as_it_is(self: &Arc<Self>, options: &[&str]) -> Daemon {
        Daemon::spawn(self, self.lingerd().arg("-f").args(options))
    }

    /// The same, with at most `limit` open descriptors.
    pub fn start_limited(self: &Arc<Self>, limit: u32, options: &[&str]) -> Daemon {
        Daemon::spawn(self, self.limited(limit).args(with_time_outs(options)))
    }

    /// `lingerd -f` with at most `limit` open descriptors, to which other options can be added.
    pub fn limited(&self, limit: u32) -> Command {
        let lingerd = self.lingerd();
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("ulimit -n {limit}; exec \"$0\" \"$@\""));
        shell.arg(lingerd.get_program()).arg("-f").args(lingerd.get_args());
        shell
    }

    /// Starts a daemon in the background with `options` and with a pid file, as an administrator
    /// does: when the command comes back it serves.
    pub fn start_in_background(self: &Arc<Self>, options: &[&str]) -> Daemon {
        let started = run(self.lingerd().arg("-p").arg(self.pidfile()).args(with_time_outs(options)));
        assert_eq!(started.code, Some(0), "{started:?}");
        self.in_background()
    }

    /// The daemon that has been started in the background here, by whatever command.
    pub fn in_background(self: &Arc<Self>) -> Daemon {
        let pid = self.holder().expect("nobody holds the pid file");
        Daemon { site: Arc::clone(self), pid, child: None }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// `options`, and time-outs for those that they leave out.
fn with_time_outs<'a>(options: &[&'a str]) -> Vec<&'a str> {
    let mut all = options.to_vec();
    for long in [["-t", "1000"], ["-T", "2000"], ["-D", "4000"], ["-W", "3000"]] {
        if !options.contains(&long[0]) {
            all.extend(long);
        }
    }
    all
}

/// A running daemon. Dropping it kills it, and shows its log if the test has failed.
pub struct Daemon {
    /// Where it keeps its files.
    pub site: Arc<Site>,
    /// Its process id.
    pub pid: i32,
    /// `None` in the background.
    child: Option<Child>,
}

impl Daemon {
    /// Starts one in the foreground at a site of its own; see [`Site::start`].
    pub fn start(options: &[&str]) -> Self {
        Site::new().start(options)
    }

    /// Starts `command`, a daemon in the foreground, and waits until it serves.
    pub fn spawn(site: &Arc<Site>, command: &mut Command) -> Self {
        let log = File::options().append(true).create(true).open(site.path("log")).unwrap();
        Self::spawn_with_log(site, command, log.into())
    }

    /// The same, with another standard error.
    pub fn spawn_with_log(site: &Arc<Site>, command: &mut Command, log: Stdio) -> Self {
        Self::adopt(site, command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }

    /// Takes `child`, a daemon in the foreground that was started elsewhere, and waits until it serves.
    pub fn adopt(site: &Arc<Site>, child: Child) -> Self {
        let mut daemon = Daemon { site: Arc::clone(site), pid: child.id() as i32, child: Some(child) };
        // A daemon that does not even start is told from one that is slow.
        wait_until("the daemon serves", || site.ask("json").code == Some(0) || daemon.has_ended());
        assert!(!daemon.has_ended(), "the daemon has ended");
        daemon
    }

    /// Drops the read end of standard error that [`spawn_with_log`](Self::spawn_with_log) with a
    /// pipe has left here.
    pub fn close_log(&mut self) {
        drop(self.child.as_mut().and_then(|child| child.stderr.take()));
    }

    /// Connects to its hand-off socket.
    pub fn sender(&self) -> Sender {
        Sender::connect(&self.site.socket())
    }

    /// Connects to its second hand-off socket.
    pub fn spooler(&self) -> Sender {
        Sender::connect(&self.site.second())
    }

    /// Its counters.
    pub fn counters(&self) -> Counters {
        let answer = self.site.ask("json");
        assert_eq!(answer.code, Some(0), "{answer:?}");
        let counters = Counters::from_json(&answer.stdout);
        counters.assert_sound();
        counters
    }

    /// How many have ended so and how long it took, as the JSON object `of` has it.
    pub fn timed(&self, of: &str, end: &str) -> serde_json::Value {
        let answer: serde_json::Value = serde_json::from_str(&self.site.ask("json").stdout).unwrap();
        answer[of][end].clone()
    }

    /// Waits until its counters stand where `expected` says: `"lingering=1 closed=2"`.
    pub fn wait_for(&self, expected: &str) {
        self.wait_for_all(&Counters::from_words(expected));
    }

    fn wait_for_all(&self, expected: &Counters) {
        eventually(|| match self.counters() {
            counters if counters.agree_with(expected) => Ok(()),
            counters => Err(format!("waiting for {expected:?} in {counters:?}")),
        });
    }

    /// Has -t pass, by the daemon's own clock: hands over a client that is silent, and waits until it has
    /// ended for that. It is counted as idle.
    pub fn let_idle_pass(&self, sender: &Sender) {
        let idle = self.counters()["idle"];
        let (_client, server) = tcp::connection();
        sender.hand_over(server);
        self.wait_for(&format!("idle={}", idle + 1));
    }

    /// Waits until it has logged `part`.
    pub fn wait_for_log(&self, part: &str) {
        wait_until(&format!("'{part}' is logged"), || self.site.log().contains(part));
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        process::kill(self.pid, signal).unwrap();
    }

    /// Stops it, and comes back when it stands still, which kill(2) does before that: what is done from
    /// then on it finds all at once when it goes on.
    pub fn freeze(&self) {
        self.signal(libc::SIGSTOP);
        wait_until("the daemon stands still", || ps(self.pid, STATE).starts_with('T'));
    }

    /// Waits until it has done all that there is to do, or stands still.
    pub fn wait_until_it_sleeps(&self) {
        wait_until("the daemon sleeps", || ps(self.pid, STATE).starts_with(['S', 'T']));
    }

    /// Has it go on; what was sent to it in the meantime, a signal too, is there.
    pub fn thaw(&self) {
        self.signal(libc::SIGCONT);
    }

    /// Kills it and leaves its files as they are.
    pub fn kill(mut self) {
        self.signal(libc::SIGKILL);
        self.wait_for_end();
    }

    fn has_ended(&mut self) -> bool {
        match &mut self.child {
            Some(child) => child.try_wait().unwrap().is_some(),
            None => self.site.holder() != Some(self.pid),
        }
    }

    /// Waits until it has ended, and returns its exit code where that can be known: it is in the
    /// foreground, and no signal has ended it.
    pub fn wait_for_end(&mut self) -> Option<i32> {
        wait_until("the daemon ends", || self.has_ended());
        self.child.as_mut()?.wait().unwrap().code()
    }

    /// Waits until it has ended as it should, and returns its last counters: its files are gone,
    /// the exit code is 0, and the log says so.
    pub fn wait_for_good_end(mut self) -> Counters {
        assert_eq!(self.wait_for_end(), Some(0), "the exit code");
        assert!(!self.site.second().exists(), "a socket was left there");
        assert!(!self.site.socket().exists() && !self.site.control().exists(), "a socket was left there");
        assert!(!self.site.pidfile().exists(), "the pid file was left there");
        let log = self.site.log();
        let last = log.lines().last().and_then(|line| line.strip_prefix("lingerd: stopped: "));
        Counters::from_words(last.unwrap_or_else(|| panic!("the counters are not logged at the end")))
    }

    /// The common end of a test: waits until all has come as `expected` says, and stops the
    /// daemon. Every reason, and all that is refused or discarded, has to be accounted for: what
    /// `expected` does not name must be 0. Only where the daemon itself has ended some, other than
    /// for their silence, is it a matter of luck whether they were in the midst of something.
    pub fn finish(self, expected: &str) {
        let mut all = Counters(REASONS.iter().chain(&ACCOUNTED).map(|&name| (name.to_owned(), 0)).collect());
        let expected = Counters::from_words(expected);
        if ["max", "limit", "evicted", "stopped"].iter().any(|&reason| expected.0.contains_key(reason)) {
            all.0.remove("cut_short");
        }
        all.0.extend(expected.0);
        self.wait_for_all(&all);
        self.signal(libc::SIGTERM);
        let last = self.wait_for_good_end();
        last.assert_sound();
        assert!(last.agree_with(&all), "expected {all:?} at the end, in {last:?}");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        match &mut self.child {
            Some(child) => {
                let _ = child.kill();
                let _ = child.wait();
            }
            None => {
                if self.site.holder() == Some(self.pid) {
                    let _ = process::kill(self.pid, libc::SIGKILL);
                }
            }
        }
        if thread::panicking() {
            let _ = writeln!(stderr(), "the daemon's log:\n{}", self.site.log());
        }
    }
}

/// What ps(1) calls a process's state. On each system the letter of one that is stopped is T.
const STATE: &str = if cfg!(any(target_os = "illumos", target_os = "solaris")) { "s" } else { "state" };

/// What ps(1) says of a process.
pub fn ps(pid: i32, what: &str) -> String {
    let said = run(Command::new("ps").arg("-o").arg(format!("{what}=")).arg("-p").arg(pid.to_string()));
    assert_eq!(said.code, Some(0), "ps: {said:?}");
    said.stdout.trim().to_owned()
}

/// The permissions of the file at `path`.
pub fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}
