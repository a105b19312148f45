// SPDX-License-Identifier: BSD-3-Clause

//! Clients that keep silent, as many as the system lets one process have, and the server that hands their connections
//! over: a process of its own, which is told a line at a time what to do.
//!
//! Who measures is thereby a small process, of which starting a program takes no longer than it should: to fork one with a
//! million descriptors copies them. Knows the hand-off protocol, and of a daemon its process id; must not know what for.

use crate::weigh;
use lingerd_platform::{fdpass, process};
use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};
use support::{PATIENCE, wait_until};

/// Connections in a message.
const MESSAGE: usize = fdpass::MAX_DESCRIPTORS;

/// A process that has not run for so long waits for something to happen.
const QUIET: Duration = Duration::from_millis(4);

/// How many of the longest hand-offs are told.
const LONGEST: usize = 5;

/// The word that makes a process one; the sockets of the daemons come after it.
pub const WORD: &str = "crowd";

/// One daemon's part in it.
struct Part {
    link: UnixStream,
    clients: Vec<TcpStream>,
}

/// What is told, and done.
struct Place {
    parts: Vec<Part>,
    listener: TcpListener,
    round: u16,
}

/// Does what standard input says, until it ends. `sockets` are those of the daemons.
pub fn serve(sockets: &[String]) -> io::Result<()> {
    process::raise_descriptor_limit()?;
    let part = |socket: &String| Ok(Part { link: UnixStream::connect(socket)?, clients: Vec::new() });
    let mut place = Place {
        parts: sockets.iter().map(part).collect::<io::Result<_>>()?,
        listener: TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?,
        round: 0,
    };
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<_> = line.split(' ').collect();
        let number = |n: usize| words.get(n).and_then(|word| word.parse::<usize>().ok()).unwrap_or(0);
        let part = number(1);
        let answer = match words[0] {
            "fill" => place.fill(part, number(2))?,
            "pass" => place.pass(part, number(2) as i32, number(3), words.get(4) == Some(&"gone"))?,
            "drop" => place.drop_all(part, number(2) as i32),
            other => json!({ "error": format!("{other}?") }),
        };
        println!("{answer}");
    }
    Ok(())
}

impl Place {
    /// So many connections over loopback, to addresses of which there are enough for all to have a port: some 60,000 to
    /// each of 4,000.
    fn connections(&mut self, number: usize) -> io::Result<(Vec<TcpStream>, Vec<TcpStream>)> {
        self.round = (self.round + 1) % 4_000;
        let [high, low] = self.round.to_be_bytes();
        let address = (Ipv4Addr::new(127, 1 + high, low, 1), self.listener.local_addr()?.port());
        let connect = |_| Ok((TcpStream::connect(address)?, self.listener.accept()?.0));
        (0..number).map(connect).collect()
    }

    /// Has clients linger until there are `number`. A hand-off takes until the last of its clients has the end of the
    /// stream: the daemon has come to it.
    fn fill(&mut self, part: usize, number: usize) -> io::Result<Value> {
        let start = Instant::now();
        let mut took = Vec::new(); // and how many there were then
        while self.parts[part].clients.len() < number {
            let more = MESSAGE.min(number - self.parts[part].clients.len());
            let (clients, servers) = self.connections(more)?;
            let part = &mut self.parts[part];
            let before = Instant::now();
            hand_over(&part.link, &servers)?;
            let mut last = clients.last().expect("at least one");
            last.set_read_timeout(Some(PATIENCE))?;
            assert_eq!(last.read(&mut [0])?, 0, "an end of stream");
            took.push((before.elapsed().as_micros() as u64, part.clients.len()));
            part.clients.extend(clients);
        }
        took.sort_unstable();
        let at = |share: f64| took.get((took.len() as f64 * share) as usize).map(|(time, _)| *time);
        let longest: Vec<_> = took.iter().rev().take(LONGEST).collect();
        let seconds = start.elapsed().as_secs_f64();
        Ok(
            json!({ "messages": took.len(), "seconds": seconds, "median_us": at(0.5), "p99_us": at(0.99), "longest": longest }),
        )
    }

    /// Has `number` more come and go, and tells what CPU time that takes process `pid`, in nanoseconds: it is stopped while
    /// they are handed over, and while they close, so that it finds them at once. If they are `gone` they have closed
    /// before.
    fn pass(&mut self, part: usize, pid: i32, number: usize, gone: bool) -> io::Result<Value> {
        let (mut clients, mut servers) = (Vec::new(), Vec::new());
        while servers.len() < number {
            let (near, far) = self.connections(MESSAGE.min(number - servers.len()))?;
            clients.extend(near);
            servers.extend(far);
        }
        if gone {
            clients.clear();
        }
        let before = cpu(pid);
        let start = Instant::now();
        stop(pid);
        let hand_over_all =
            || servers.chunks(MESSAGE).try_for_each(|some| hand_over(&self.parts[part].link, some));
        hand_over_all()?;
        drop(servers);
        go_on(pid);
        if !gone {
            stop(pid);
            drop(clients);
            go_on(pid);
        }
        Ok(json!({ "cpu_ns": cpu(pid) - before, "us": start.elapsed().as_micros() as u64 }))
    }

    /// Has all clients of a daemon close at once, while process `pid`, the daemon, is stopped, so that it finds all gone;
    /// it goes on, and is not waited for.
    fn drop_all(&mut self, part: usize, pid: i32) -> Value {
        stop(pid);
        let start = Instant::now();
        self.parts[part].clients = Vec::new();
        let seconds = start.elapsed().as_secs_f64();
        process::kill(pid, libc::SIGCONT).expect("a signal to a daemon of ours");
        json!({ "seconds": seconds })
    }
}

fn hand_over(link: &UnixStream, servers: &[TcpStream]) -> io::Result<()> {
    let descriptors: Vec<_> = servers.iter().map(AsFd::as_fd).collect();
    fdpass::send(link, b"L", &descriptors).map(drop)
}

fn cpu(pid: i32) -> u64 {
    weigh::cpu_ns(pid).expect("it is there")
}

/// The letter of its state, and how often it has gone to sleep.
fn state(pid: i32) -> (Option<char>, Option<u64>) {
    (weigh::state(pid), weigh::status(pid, "voluntary_ctxt_switches"))
}

fn stop(pid: i32) {
    process::kill(pid, libc::SIGSTOP).expect("a signal to a daemon of ours");
    wait_until("it is stopped", || matches!(state(pid).0, Some('T' | 't')));
}

/// Has it go on, and waits until it is quiet.
fn go_on(pid: i32) {
    process::kill(pid, libc::SIGCONT).expect("a signal to a daemon of ours");
    let mut before = state(pid);
    wait_until("it is quiet", || {
        thread::sleep(QUIET);
        let now = state(pid);
        let is_quiet = now.0 == Some('S') && now == before;
        before = now;
        is_quiet
    });
}

/// A crowd, as who tells it what to do sees it.
pub struct Crowd {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Crowd {
    /// Starts this program as one, for the daemons at these sockets.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(sockets: &[&Path]) -> io::Result<Crowd> {
        let mut child = Command::new(env::current_exe()?)
            .arg(WORD)
            .args(sockets)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let answers = BufReader::new(child.stdout.take().expect("it is piped"));
        Ok(Crowd { child, answers })
    }

    /// Tells it something, and waits for its answer, however long that takes.
    ///
    /// # Errors
    /// It has ended, and has said why on standard error.
    pub fn tell(&mut self, what: &str) -> io::Result<Value> {
        writeln!(self.child.stdin.as_ref().expect("it is piped"), "{what}")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        serde_json::from_str(&line).map_err(io::Error::other)
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
