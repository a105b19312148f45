// SPDX-License-Identifier: BSD-3-Clause

//! What connections are handed over to, lingerd of one build or another or the least that can be done, watched from outside;
//! and the server that hands them over.
//!
//! Knows the hand-off protocol, and of a receiver what Linux tells of its process. Must not know how one is built inside,
//! nor what is measured.

use crate::{median, on_stop, weigh};
use lingerd_platform::{fdpass, process};
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

/// A process that has not run for so long waits for something to happen: it may sleep for a millisecond before it looks
/// at what did.
const QUIET: Duration = Duration::from_millis(4);

/// How often one is stopped and continued with nothing to do, for what that costs.
const STOPS: usize = 9;

/// Longer than anything takes on a machine that works.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many clients have not closed when connections come in turn.
const OPEN: usize = 64;

/// lingerd's options before the path of its socket: no deadline is due in any run.
pub const LINGERD: [&str; 7] = ["-f", "-q", "-t", "3600", "-D", "7200", "-s"];

/// What the clients do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// They have closed when they are handed over.
    Gone,
    /// They close when they linger.
    Linger,
}

impl Clients {
    /// Both.
    pub const ALL: [Clients; 2] = [Clients::Gone, Clients::Linger];

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Clients::Gone => "gone",
            Clients::Linger => "lingering",
        }
    }
}

/// A running one, and who hands over to it. Dropping it kills it.
pub struct Receiver {
    child: Child,
    /// Its process id.
    pub pid: i32,
    /// The links.
    pub senders: Vec<UnixStream>,
}

impl Receiver {
    fn start(command: &mut Command, socket: &Path, senders: usize) -> Receiver {
        // Ctrl-C is for us, who end it.
        let child = command.stdin(Stdio::null()).process_group(0).spawn().expect("it starts");
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

    /// Nanoseconds of CPU of all its threads.
    pub fn cpu(&self) -> f64 {
        weigh::cpu(self.pid).expect("it is there") * 1e9
    }

    /// How many it has open.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid)).expect("it is there").count()
    }

    /// Whether it sleeps, whether it is stopped, and how often it has gone to sleep.
    fn status(&self) -> (bool, bool, String) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("it is there");
        let value = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.expect("a field of every Linux").trim().to_owned()
        };
        let state = value("State:");
        (state.starts_with('S'), state.starts_with(['T', 't']), value("voluntary_ctxt_switches:"))
    }

    /// Waits until it has done all that there is.
    pub fn settle(&self) {
        let mut before = self.status();
        wait_until("it is quiet", || {
            thread::sleep(QUIET);
            let now = self.status();
            let is_quiet = now.0 && now == before;
            before = now;
            is_quiet
        });
    }

    /// Waits until it has so many descriptors, and is quiet.
    pub fn wait_for(&self, descriptors: usize) {
        wait_until("it is done", || self.descriptors() == descriptors);
        self.settle();
    }

    /// Does `work` while it is stopped, and waits until it has as many descriptors as that, and is quiet.
    fn at_once(&self, descriptors: usize, work: impl FnOnce()) {
        process::kill(self.pid, libc::SIGSTOP).expect("a signal to our child");
        wait_until("it is stopped", || self.status().1);
        work();
        process::kill(self.pid, libc::SIGCONT).expect("a signal to our child");
        self.wait_for(descriptors);
    }

    /// Nanoseconds of CPU that a stop takes of a process that has nothing to do: the median, as one that was disturbed may
    /// take ten times as much.
    pub fn stop_cost(&self) -> f64 {
        let descriptors = self.descriptors();
        let costs = (0..STOPS).map(|_| {
            let before = self.cpu();
            self.at_once(descriptors, || {});
            self.cpu() - before
        });
        median(costs.collect())
    }

    /// Hands over, `sockets` in a message, by its senders in turns; they have half-closed.
    pub fn hand_over(&self, servers: Vec<TcpStream>, sockets: usize) {
        for (sender, some) in self.senders.iter().cycle().zip(servers.chunks(sockets)) {
            let some: Vec<_> = some.iter().map(AsFd::as_fd).collect();
            fdpass::send(sender, b"L", &some).expect("room for one message");
        }
    }

    /// Has a batch linger, `sockets` in a message, by its senders in turns.
    pub fn linger(&self, pairs: Vec<(TcpStream, TcpStream)>, sockets: usize, clients: Clients) {
        let (before, number) = (self.descriptors(), pairs.len());
        let (mut near, far): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        far.iter().for_each(half_close);
        if clients == Clients::Gone {
            near.clear();
            far.iter().for_each(|server| assert_eq!(server.peek(&mut [0]).expect("an end of stream"), 0));
        }
        let after = if clients == Clients::Gone { before } else { before + number };
        self.at_once(after, || self.hand_over(far, sockets));
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

/// As the protocol asks of a sender.
pub fn half_close(server: &TcpStream) {
    server.shutdown(Shutdown::Write).expect("it is connected");
}

/// Whether somebody has lost patience.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// On SIGINT, SIGTERM and SIGHUP ends the measuring, at the next wait, and so all that was started for it.
pub fn watch_signals() {
    on_stop(|| INTERRUPTED.store(true, Ordering::SeqCst));
}

/// Waits until `condition` holds, and looks more often than tests do, which measure nothing. Panics without a word once
/// somebody has lost patience.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        if INTERRUPTED.load(Ordering::SeqCst) {
            std::panic::resume_unwind(Box::new("interrupted"));
        }
        assert!(start.elapsed() < PATIENCE, "gave up waiting until {what}");
        thread::sleep(Duration::from_micros(200));
    }
}

/// A directory for receivers, and a server for their connections.
pub struct Rig {
    /// Where their sockets are.
    pub directory: PathBuf,
    listener: TcpListener,
    round: u8,
}

impl Rig {
    /// An empty one, with `name` in its own.
    ///
    /// # Errors
    /// There is no place for it.
    pub fn new(name: &str) -> Result<Rig, String> {
        let directory = env::temp_dir().join(format!("lingerd-{name}-{}", std::process::id()));
        // Whatever the umask is: lingerd takes none to which others may write.
        fs::DirBuilder::new().mode(0o755).create(&directory).map_err(|e| e.to_string())?;
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(|e| e.to_string())?;
        Ok(Rig { directory, listener, round: 0 })
    }

    /// Starts `program`, with these options and the path of a socket of this `name`, and with `tool` before it.
    pub fn start(
        &self,
        name: &str,
        program: &Path,
        options: &[&str],
        senders: usize,
        tool: &[&str],
    ) -> Receiver {
        let socket = self.directory.join(name);
        let _ = fs::remove_file(&socket);
        let mut words: Vec<&OsStr> = tool.iter().map(AsRef::as_ref).collect();
        words.push(program.as_os_str());
        words.extend(options.iter().map(|option| -> &OsStr { option.as_ref() }));
        let mut command = Command::new(words[0]);
        // That it runs as root is nothing to be told each time.
        let log = fs::File::create(self.directory.join("log")).expect("a log");
        Receiver::start(command.args(&words[1..]).arg(&socket).stderr(log), &socket, senders)
    }

    /// Where the server listens, on each address of the loopback.
    pub fn port(&self) -> u16 {
        self.listener.local_addr().expect("it is bound").port()
    }

    /// The server's end of a connection that somebody else has made.
    pub fn accept(&self) -> TcpStream {
        self.listener.accept().expect("the other end").0
    }

    /// So many connections over loopback, the client's end and the server's, to addresses of which there are enough for
    /// all that are over, and still have their ports.
    pub fn connections(&mut self, number: usize) -> Vec<(TcpStream, TcpStream)> {
        self.round = self.round.wrapping_add(1) % 250;
        let address = (Ipv4Addr::new(127, 0, 1, self.round), self.port());
        let connect = |_| {
            let client = TcpStream::connect(address).expect("a connection over loopback");
            (client, self.accept())
        };
        (0..number).map(connect).collect()
    }

    /// Plays so many lingers, one after the other.
    pub fn play_in_turn(&mut self, receiver: &Receiver, clients: Clients, number: usize) {
        let (before, mut open) = (receiver.descriptors(), VecDeque::new());
        for sender in receiver.senders.iter().cycle().take(number) {
            let (client, server) = self.connections(1).remove(0);
            half_close(&server);
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
        receiver.wait_for(before);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}
