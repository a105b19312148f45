// SPDX-License-Identifier: BSD-3-Clause
//! A root of its own, in which service scripts run unchanged, with the paths that they name; and what every
//! service manager is put through.
//!
//! It is this system, seen through an overlay: what is written there is gone with the test. Each is a pid
//! namespace, too, whose end ends all in it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use support::daemon::{Counters, Ended, Site, run};
use support::sender::Sender;
use support::{built, is_root, skip, tcp, wait_until};

/// Options with which nothing ends by time for as long as a test runs.
pub const LASTING: &str = "-t 1000 -T 2000 -D 4000 -W 3000";

/// Options with which it takes a second to stop while something lingers.
pub const BRIEF: &str = "-t 1000 -T 2000 -D 4000 -W 1";

/// More than the kernel takes for a client that does not read.
const RESPONSE: &[u8] = &[7; 8 << 20];

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(1_000);

/// Where the daemon is in a [`Root`].
const PROGRAM: &str = "/usr/sbin/lingerd";

/// Makes the root, says which process is the first in it, and is that one from then on: the parent of whoever
/// has lost his. /run is the root's own, as the system's may be another mount, and /run/lingerd the test's.
const MAKE: &str = r#"
work=$1 run=$2 tools=$3 lingerd=$4
mount --make-rprivate /
mount -t tmpfs tmpfs "$work"
mkdir "$work/upper" "$work/work" "$work/root"
cp "$lingerd" "$work/lingerd"
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" "$work/root"
cd "$work/root"
mv "$work/lingerd" usr/sbin/lingerd
[ ! -d "$tools" ] || tar -C "$tools" -c . | tar --keep-directory-symlink -x
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mkdir run/lingerd
mount --bind "$run" run/lingerd
read -r pid rest </proc/self/stat
mount -t proc proc proc
exec chroot . sh -c 'echo "$0"; while :; do sleep 0.05; done' "$pid"
"#;

/// A root, with a lingerd in /usr/sbin whose sockets are also those of [`Root::site`].
pub struct Root {
    /// Where the daemon's files are, seen from here.
    pub site: Arc<Site>,
    unshare: Child,
    pid: String,
}

impl Root {
    /// Makes one. `None` if the test is skipped: there must be these programs in it.
    pub fn new(programs: &[&str]) -> Option<Root> {
        if !cfg!(target_os = "linux") {
            skip("a root of its own takes namespaces and overlays, which Linux has");
            return None;
        }
        if !is_root() {
            return None;
        }
        let site = Site::new();
        for directory in ["root", "run"] {
            fs::create_dir(site.path(directory)).unwrap();
        }
        let mut unshare = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", MAKE, "sh"])
            .args([site.path("root"), site.path("run"), built::project().join("target/services")])
            .arg(site.lingerd().get_program())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("unshare(1)");
        let mut pid = String::new();
        BufReader::new(unshare.stdout.take().unwrap()).read_line(&mut pid).unwrap();
        if pid.is_empty() {
            let said = unshare.wait_with_output().unwrap().stderr;
            skip(&format!("no root of its own can be made here: {}", String::from_utf8_lossy(&said)));
            return None;
        }
        let root = Root { site, unshare, pid: pid.trim().to_owned() };
        for program in programs {
            if root.run(&format!("command -v {program}")).code != Some(0) {
                skip(&format!("there is no {program} ('sh ci/packages check' gets it on Debian)"));
                return None;
            }
        }
        Some(root)
    }

    /// A command that runs a script in it.
    pub fn command(&self, script: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid, "--mount", "--pid", "--root", "--wd", "sh", "-c", script]);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// Runs a script in it to its end.
    pub fn run(&self, script: &str) -> Ended {
        run(&mut self.command(script))
    }

    /// Runs a script in it that must do well, and returns what it printed.
    #[track_caller]
    pub fn must(&self, script: &str) -> String {
        let ended = self.run(script);
        assert_eq!(ended.code, Some(0), "{script}: {ended:?}");
        ended.stdout
    }

    /// Starts what runs in it for as long as it is there, in `directory`.
    pub fn start(&self, script: &str) {
        let mut command = self.command(script);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        drop(command.spawn().unwrap()); // it ends with the root
    }

    /// Writes a file in it.
    pub fn write(&self, path: &str, mode: &str, text: &str) {
        let mut command =
            self.command(r#"mkdir -p "$(dirname "$0")" && printf %s "$2" >"$0" && chmod "$1" "$0""#);
        let ended = run(command.args([path, mode, text]));
        assert_eq!(ended.code, Some(0), "{path}: {ended:?}");
    }

    /// Copies a file of the project into it.
    pub fn install(&self, file: &str, path: &str, mode: &str) {
        self.write(path, mode, &read(file));
    }

    /// Waits until a file in it has that text, such as a log.
    pub fn wait_for_text(&self, path: &str, text: &str) {
        wait_until(&format!("'{text}' is in {path}"), || {
            self.run(&format!("cat {path}")).stdout.contains(text)
        });
    }

    /// The daemon that serves, by its number in there; `None` while there are two, or none.
    pub fn daemon(&self) -> Option<String> {
        let pids = self.run("pidof lingerd").stdout.trim().to_owned();
        (!pids.is_empty() && !pids.contains(' ')).then_some(pids)
    }

    /// Its counters, if it serves.
    pub fn counters(&self) -> Option<Counters> {
        let answer = self.site.ask("json");
        (answer.code == Some(0)).then(|| Counters::from_json(&answer.stdout))
    }

    /// Waits until a single daemon serves, other than `old`, and returns which.
    pub fn wait_for_another(&self, old: Option<&str>) -> String {
        let mut found = None;
        wait_until("a daemon serves", || {
            found = self.daemon().filter(|pid| Some(pid.as_str()) != old && self.counters().is_some());
            found.is_some()
        });
        found.unwrap()
    }

    /// Waits until a counter stands at `value`.
    pub fn wait_for(&self, counter: &str, value: u64) {
        wait_until(&format!("{counter}={value}"), || {
            self.counters().is_some_and(|counters| counters[counter] == value)
        });
    }

    /// Waits until no daemon is there, and its sockets are gone.
    pub fn wait_for_none(&self) {
        wait_until("the daemon is gone", || self.run("pidof lingerd").code == Some(1));
        for socket in [self.site.control(), self.site.second()] {
            assert!(!socket.exists(), "{} is left", socket.display());
        }
    }

    /// Hands over a connection whose client is slow to read this much.
    pub fn spool(&self) -> TcpStream {
        let path = self.site.path("content");
        fs::write(&path, RESPONSE).unwrap();
        let (client, server) = tcp::connection_with_small_window(4096);
        let all = (&File::open(path).unwrap(), 0, RESPONSE.len() as u64, false);
        Sender::connect(&self.site.second()).spool(server, &[all], LONG);
        client
    }

    /// That such a client has all of it in the end.
    pub fn has_all(&self, mut client: TcpStream) {
        let mut all = Vec::new();
        client.read_to_end(&mut all).expect("the response is cut off");
        assert!(all == RESPONSE, "another response, of {} bytes", all.len());
    }

    /// Hands over connections of clients that stay.
    pub fn hand_over(&self, sender: &Sender, number: usize) -> Vec<TcpStream> {
        let (clients, servers) = tcp::connections(number);
        sender.hand_over_all(&servers);
        clients
    }

    /// What every supervisor is to do right with a daemon that has [`LASTING`] and serves: an upgrade that
    /// loses nothing, and a new start after it was killed. `status` is which one the supervisor watches.
    pub fn upgrade_and_kill(&self, upgrade: impl Fn(), status: impl Fn() -> Option<String>) {
        // A stand-in serves, but is not watched.
        let wait_for_another = |old: &str| {
            let mut found = None;
            wait_until("a daemon serves that is watched", || {
                found = self.daemon().filter(|pid| pid != old && self.counters().is_some());
                found.is_some() && found == status()
            });
            found.unwrap()
        };
        let first = self.wait_for_another(None);
        let sender = Sender::connect(&self.site.socket());
        let mut clients = self.hand_over(&sender, 3);
        self.wait_for("lingering", 3);
        let slow = self.spool();
        self.wait_for("spooling", 1);
        upgrade();
        let second = wait_for_another(&first);
        // The same link goes on to serve.
        clients.extend(self.hand_over(&sender, 2));
        self.wait_for("lingering", 5);
        self.wait_for("spooling", 1);
        self.has_all(slow);
        let counters = self.counters().unwrap();
        assert_eq!((counters["handed_over"], counters["stopped"]), (6, 0), "{counters:?}");

        self.must(&format!("kill -9 {second}"));
        wait_for_another(&second);
        // What was killed has lost what it had, and its senders come back.
        sender.wait_until_hung_up();
        clients.extend(self.hand_over(&Sender::connect(&self.site.socket()), 1));
        self.wait_for("lingering", 1);
    }

    /// What a stop and a start, as a supervisor does it, come to: with a daemon that has [`BRIEF`] it
    /// is over soon, though there are clients that never go, and the next one serves.
    pub fn restart_while_somebody_lingers(&self, restart: impl Fn()) {
        let first = self.wait_for_another(None);
        let sender = Sender::connect(&self.site.socket());
        let _clients = self.hand_over(&sender, 3);
        self.wait_for("lingering", 3);
        restart();
        let _second = self.wait_for_another(Some(&first));
        sender.wait_until_hung_up();
        let sender = Sender::connect(&self.site.socket());
        let _others = self.hand_over(&sender, 2);
        self.wait_for("lingering", 2);
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // Whatever is in there goes with the first process.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        if std::thread::panicking() {
            eprintln!("in the root {PROGRAM} was the daemon, and {:?} its directory", self.site.path("run"));
        }
    }
}

/// A file of the project.
pub fn read(file: &str) -> String {
    let path = built::project().join(file);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Whether a program is there; else the test is to be skipped.
pub fn have(program: &str) -> bool {
    let found = run(Command::new("sh").args(["-c", "command -v \"$0\"", program])).code == Some(0);
    if !found {
        skip(&format!("there is no {program} ('sh ci/packages check' gets it on Debian)"));
    }
    found
}

/// Runs a command that must do well, and returns all that it said.
#[track_caller]
pub fn must(command: &mut Command) -> String {
    let ended = run(command);
    assert_eq!(ended.code, Some(0), "{command:?}: {}{}", ended.stdout, ended.stderr);
    ended.stdout + &ended.stderr
}

/// A folder that looks like the project after 'make': all of it, but in target/release the daemon that the
/// tests were built with.
pub fn built_tree(site: &Site) -> PathBuf {
    let tree = site.path("tree");
    fs::create_dir_all(tree.join("target/release")).unwrap();
    let mut copy = Command::new("cp");
    copy.arg("-R");
    for entry in fs::read_dir(built::project()).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "target" && entry.file_name() != ".git" {
            copy.arg(entry.path());
        }
    }
    must(copy.arg(&tree));
    // Which program that is plays no part where files are put into packages, and ablinger may not be built.
    for program in ["lingerd", "ablinger"] {
        let path = site.lingerd().get_program().to_owned();
        std::os::unix::fs::symlink(path, tree.join("target/release").join(program)).unwrap();
    }
    tree
}
