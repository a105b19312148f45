// SPDX-License-Identifier: BSD-3-Clause

//! A sender: a process of its own, so that it can be killed at any moment. Like a server with threads it
//! accepts, answers, and hands over on one link; and what it cannot hand over it lingers on itself, as
//! mod_lingerd has Apache do.
//!
//! What it has done it writes into a file, step by step: a process that is killed tells nothing any more.

use crate::content;
use lingerd_platform::process;
use socket2::{Domain, SockRef, Socket, Type};
use std::env;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::AddAssign;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use support::daemon::Site;
use support::{PATIENCE, wait_until};

/// Names the hand-off socket to a process that is to be a sender, and the file for what it does.
const SOCKET: &str = "LINGERD_SOAK_SOCKET";
const TALLY: &str = "LINGERD_SOAK_TALLY";

/// Threads of a sender.
pub const WORKERS: usize = 8;

/// More clients than ever wait at one sender; some systems have it at 128 all the same.
const BACKLOG: i32 = 4096;

/// What a sender that lingers itself bears: so much silence, and so long in all.
const SILENCE: Duration = Duration::from_secs(10);
const LIMIT: Duration = Duration::from_secs(30);

/// What is larger than this might not fit into a socket's buffer as that is.
const FITS: usize = 8 * 1024;

/// What a request says: where the response begins in what everybody knows, and how long it is.
pub type Request = [u8; 8];

/// The request for so many bytes from there on.
pub fn request(offset: usize, size: usize) -> Request {
    let mut request = [0; 8];
    request[..4].copy_from_slice(&(offset as u32).to_le_bytes());
    request[4..].copy_from_slice(&(size as u32).to_le_bytes());
    request
}

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Responses that were written to their end.
    pub answered: u64,
    /// Hand-offs that have begun.
    pub tried: u64,
    /// Those that have succeeded.
    pub handed: u64,
    /// Those that did not, as there was no room on the link.
    pub full: u64,
    /// Those that did not, as there was no link.
    pub alone: u64,
}

impl Tally {
    const BYTES: usize = 5 * 8;

    /// Hand-offs whose end is not known: under way, or the sender was killed.
    pub fn unknown(&self) -> u64 {
        self.tried - self.handed - self.full - self.alone
    }

    fn bytes(&self) -> [u8; Tally::BYTES] {
        let all = [self.answered, self.tried, self.handed, self.full, self.alone];
        let mut bytes = [0; Tally::BYTES];
        bytes
            .chunks_exact_mut(8)
            .zip(all)
            .for_each(|(bytes, value)| bytes.copy_from_slice(&value.to_le_bytes()));
        bytes
    }

    fn of(bytes: &[u8]) -> Tally {
        let value = |n: usize| u64::from_le_bytes(bytes[8 * n..8 * n + 8].try_into().unwrap());
        Tally { answered: value(0), tried: value(1), handed: value(2), full: value(3), alone: value(4) }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.answered += other.answered;
        self.tried += other.tried;
        self.handed += other.handed;
        self.full += other.full;
        self.alone += other.alone;
    }
}

/// A sender, seen from outside.
pub struct Sender {
    child: Child,
    tally: File,
    /// Where it serves.
    pub address: SocketAddr,
}

impl Sender {
    /// Starts one that hands over to the daemon of `site`, and waits until it serves.
    pub fn start(site: &Arc<Site>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let path = site.path(&format!("tally-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        let tally = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        tally.write_all_at(&[0; 8 + WORKERS * Tally::BYTES], 0).unwrap();
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "sender::is_a_process_of_its_own", "--nocapture"])
            .env(SOCKET, site.socket())
            .env(TALLY, path)
            .stdin(Stdio::piped()) // it ends when we do
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut port = [0; 8];
        wait_until("the sender serves", || {
            tally.read_exact_at(&mut port, 0).unwrap();
            port != [0; 8]
        });
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, u64::from_le_bytes(port) as u16));
        Sender { child, tally, address }
    }

    /// What each of its threads has done so far.
    pub fn tallies(&self) -> [Tally; WORKERS] {
        let mut bytes = [0; WORKERS * Tally::BYTES];
        self.tally.read_exact_at(&mut bytes, 8).unwrap();
        let mut tallies = bytes.chunks_exact(Tally::BYTES).map(Tally::of);
        [(); WORKERS].map(|()| tallies.next().unwrap())
    }

    /// What it has done so far.
    pub fn tally(&self) -> Tally {
        let mut all = Tally::default();
        self.tallies().into_iter().for_each(|tally| all += tally);
        all
    }

    /// Waits until every hand-off that has begun by now has ended.
    pub fn settle(&self) {
        let begun = self.tallies().map(|tally| tally.tried);
        wait_until("the hand-offs under way have ended", || {
            let ended = self.tallies().map(|tally| tally.tried - tally.unknown());
            ended.iter().zip(&begun).all(|(ended, begun)| ended >= begun)
        });
    }

    /// Kills it, whatever it is doing.
    pub fn kill(&mut self) {
        process::kill(self.child.id() as i32, libc::SIGKILL).unwrap();
        self.child.wait().unwrap();
    }

    /// Ends one that has nothing to do any more.
    pub fn end(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// This is no test but the sender's program, which cargo has no other place for.
#[test]
fn is_a_process_of_its_own() {
    let (Some(socket), Some(tally)) = (env::var_os(SOCKET), env::var_os(TALLY)) else { return };
    process::raise_descriptor_limit().unwrap();
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    listener.listen(BACKLOG).unwrap();
    let listener = TcpListener::from(listener);
    let tally = File::options().write(true).open(tally).unwrap();
    let sender = lingerd_client::Sender::new(socket).unwrap();
    tally.write_all_at(&u64::from(listener.local_addr().unwrap().port()).to_le_bytes(), 0).unwrap();
    thread::scope(|scope| {
        for number in 0..WORKERS {
            let (listener, tally, sender) = (&listener, &tally, &sender);
            scope.spawn(move || Worker { tally, number, done: Tally::default(), sender }.work(listener));
        }
        let _ = io::stdin().read(&mut [0]); // until whoever has started us ends, or wants us to
        std::process::exit(0);
    });
}

/// A thread of a sender.
struct Worker<'a> {
    tally: &'a File,
    number: usize,
    done: Tally,
    sender: &'a lingerd_client::Sender,
}

impl Worker<'_> {
    fn work(mut self, listener: &TcpListener) {
        loop {
            match listener.accept() {
                // A client that leaves in the middle is none of our business.
                Ok((client, _)) => drop(self.serve(client)),
                Err(e) if e.kind() == ErrorKind::ConnectionAborted => {}
                Err(e) => panic!("accept: {e}"),
            }
        }
    }

    fn serve(&mut self, mut client: TcpStream) -> io::Result<()> {
        client.set_read_timeout(Some(PATIENCE))?;
        client.set_write_timeout(Some(PATIENCE))?;
        let mut request = Request::default();
        client.read_exact(&mut request)?;
        let (offset, size) = request.split_at(4);
        let [offset, size] = [offset, size].map(|half| u32::from_le_bytes(half.try_into().unwrap()) as usize);
        if size > FITS {
            let _ = SockRef::from(&client).set_send_buffer_size(2 * size);
        }
        client.write_all(&content()[offset..offset + size])?;
        self.done.answered += 1;
        // Either way is allowed, where it may be done twice.
        if cfg!(any(target_os = "linux", target_os = "android")) && offset % 2 == 0 {
            let _ = client.shutdown(Shutdown::Write);
        }
        self.done.tried += 1;
        self.tell();
        let given = self.sender.give(client);
        match (&given, self.sender.error()) {
            (Ok(()), _) => self.done.handed += 1,
            (Err(_), None) => self.done.full += 1,
            (Err(_), Some(_)) => self.done.alone += 1,
        }
        self.tell();
        if let Err(refused) = given {
            linger(refused.socket);
        }
        Ok(())
    }

    fn tell(&self) {
        self.tally.write_all_at(&self.done.bytes(), (8 + self.number * Tally::BYTES) as u64).unwrap();
    }
}

/// What a server does that has nobody to do it.
fn linger(mut client: TcpStream) {
    let start = Instant::now();
    let _ = client.shutdown(Shutdown::Write);
    let _ = client.set_read_timeout(Some(SILENCE));
    let mut late = [0; 4096];
    while start.elapsed() < LIMIT && client.read(&mut late).is_ok_and(|bytes| bytes > 0) {}
}
