// SPDX-License-Identifier: BSD-3-Clause

//! The clients: one thread, one loop, any number of sockets.
//!
//! Each client goes round: wait for its turn, connect, send, receive, and once more on the same
//! connection if it is kept; then hold, close. A socket is registered with the backend only while
//! something is expected of it: not while it is held, when the server's end of stream stands ready
//! to read and would wake the loop for ever. What is counted is kept in a [`Tally`]; how it is printed
//! is no business of this module.

mod client;
mod phases;

use crate::holds::Holds;
use crate::options::Stop;
use crate::report::Tally;
use crate::terminal::{Moment, Progress, complain};
use client::{Client, Pace, Phase};
use lingerd_platform::backend::{Backend, Interest, System, Token};
use lingerd_platform::signals::Signals;
use phases::Outcome;
use socket2::Socket;
use std::collections::{BTreeSet, VecDeque};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// A server that has not been heard of for so long has failed. Far beyond any answer that is still
/// of use, yet not so short that a crowd before a slow server fails: a thousand clients that hold
/// ten workers for a second each wait a hundred seconds for their turn.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(300);

/// The most bytes that one read takes. All clients share the one buffer.
const READ_BYTES: usize = 64 * 1024;

/// Tokens of the signals; no client has these indices.
const STOP: Token = Token(u64::MAX);
const HANGUP: Token = Token(u64::MAX - 1);

/// What to do in a run.
#[derive(Clone)]
pub struct Plan {
    /// Where to connect to: the first that answers, in this order. Never empty.
    pub addresses: Vec<SocketAddr>,
    /// What each client sends.
    pub request: Vec<u8>,
    /// What it sends if it wants to make another request on the same connection.
    pub request_to_keep: Vec<u8>,
    /// How many clients.
    pub clients: u32,
    /// When to stop.
    pub stop: Stop,
    /// How many requests are due a second; without it each client begins when it is free.
    pub rate: Option<f64>,
    /// How many requests a client makes on a connection, if the server lets it.
    pub keep: u32,
    /// How long after a response a client's next request is due.
    pub pause: Duration,
    /// How many bytes a client reads a second; without it, as fast as it can.
    pub read_rate: Option<u32>,
}

/// Makes the run. SIGINT, SIGTERM and SIGHUP end it early.
///
/// # Errors
/// The backend failed, which leaves nothing to go on with.
pub fn run(plan: &Plan, holds: Holds, signals: &mut Signals, progress: Progress) -> io::Result<Tally> {
    let backend = System::new().map_err(|error| {
        let message = format!("cannot open {}: {error}", System::NAME);
        io::Error::new(error.kind(), message)
    })?;
    let begin = Instant::now();
    let mut engine = Engine {
        plan,
        pace: plan.read_rate.map(Pace::new),
        backend,
        clients: (0..plan.clients).map(|_| Client::new(begin)).collect(),
        turn: VecDeque::new(),
        deadlines: BTreeSet::new(),
        closed_until: None,
        address: 0,
        begun: 0,
        hopeless: false,
        held: 0,
        holds,
        buffer: vec![0; READ_BYTES].into(),
        begin,
        last_end: begin,
        tally: Tally::default(),
        said: Said::default(),
        progress,
    };
    engine.line_up();
    engine.run(signals).map_err(|error| {
        let message = format!("cannot wait for sockets with {}: {error}", System::NAME);
        io::Error::new(error.kind(), message)
    })?;
    Ok(engine.tally)
}

/// What the user has been told already: of each kind of failure, the first is explained.
#[derive(Default)]
struct Said {
    connect: bool,
    exhausted: bool,
    timeout: bool,
    http: bool,
    status: bool,
}

struct Engine<'a> {
    plan: &'a Plan,
    /// How clients read that are slow.
    pace: Option<Pace>,
    backend: System,
    clients: Vec<Client>,
    /// The clients that may begin a request, in this order.
    turn: VecDeque<u32>,
    /// At most one entry a client, so that it stays as small as the crowd is.
    deadlines: BTreeSet<(Instant, u32)>,
    /// No client begins before, see [`EXHAUSTED_PAUSE`].
    closed_until: Option<Instant>,
    /// Index of the address in use: settled once `tally.address` is there.
    address: usize,
    /// Requests begun.
    begun: u64,
    /// No address could be connected to, ever.
    hopeless: bool,
    held: u32,
    holds: Holds,
    buffer: Box<[u8]>,
    begin: Instant,
    /// When the last request ended.
    last_end: Instant,
    tally: Tally,
    said: Said,
    progress: Progress,
}

impl Engine<'_> {
    /// Lets all clients begin at once; those that pause evenly over the first pause, as the clients
    /// of a real server have no common beat.
    fn line_up(&mut self) {
        if self.plan.rate.is_some() || self.plan.pause.is_zero() {
            self.turn.extend(0..self.plan.clients);
            return;
        }
        for index in 0..self.plan.clients {
            let share = f64::from(index) / f64::from(self.plan.clients);
            self.pause(index, self.begin + self.plan.pause.mul_f64(share));
        }
    }

    fn run(&mut self, signals: &mut Signals) -> io::Result<()> {
        self.backend.add(&signals.stop, STOP, Interest::Read)?;
        self.backend.add(&signals.reload, HANGUP, Interest::Read)?;
        let mut ready = Vec::new();
        let mut interrupted = false;
        loop {
            let now = Instant::now();
            if interrupted || self.is_over(now) {
                self.finish(now);
                break;
            }
            self.expire(now)?;
            self.begin_some(now)?;
            if self.is_over(now) {
                continue; // the last request may have ended right here: nothing is left to wait for
            }
            self.show_progress(now);
            let timeout = self.timeout(Instant::now());
            self.backend.wait(&mut ready, timeout)?;
            for &token in &ready {
                if token == STOP || token == HANGUP {
                    interrupted = true; // for good: no rearm
                } else {
                    self.event(token)?;
                }
            }
        }
        self.tally.interrupted = interrupted;
        if interrupted {
            complain(format_args!("interrupted: the report is of the time until then"));
        }
        self.backend.remove(&signals.stop)?;
        self.backend.remove(&signals.reload)
    }

    fn is_over(&self, now: Instant) -> bool {
        self.hopeless
            || match self.plan.stop {
                Stop::Requests(n) => self.tally.ended() >= n,
                Stop::After(time) => now.duration_since(self.begin) >= time,
            }
    }

    fn show_progress(&mut self, now: Instant) {
        if self.progress.due().is_none_or(|due| now < due) {
            return;
        }
        let moment = Moment {
            elapsed: now.duration_since(self.begin),
            complete: self.tally.complete,
            others: self.tally.ended() - self.tally.complete,
            waiting: self.clients.iter().filter(|client| client.is_waiting()).count(),
        };
        self.progress.show(now, &moment);
    }

    /// Closes all that is open and takes the time. Of requests under way it is noted for how long they
    /// have waited.
    fn finish(&mut self, now: Instant) {
        let enough = matches!(self.plan.stop, Stop::Requests(n) if self.tally.ended() >= n);
        let until = if enough { self.last_end } else { now };
        self.tally.elapsed = until.duration_since(self.begin);
        for index in 0..self.plan.clients {
            let client = self.client(index);
            if client.is_waiting() {
                let (waited, answered) = (now.duration_since(client.due), client.answered);
                self.tally.latencies.add_waiting(waited);
                if !answered {
                    self.tally.first_bytes.add_waiting(waited);
                }
            } else if client.phase == Phase::Holding {
                self.note_reset_while_held(index);
            }
            self.hang_up(index);
        }
        // Those for which no client was free.
        while !self.hopeless && !self.all_are_begun() {
            let Some(due) = self.due_by_rate().filter(|&due| due < now) else { break };
            let waited = now.duration_since(due);
            self.tally.latencies.add_waiting(waited);
            self.tally.first_bytes.add_waiting(waited);
            self.begun += 1;
        }
    }

    /// Whether no request is left that a client could begin.
    fn all_are_begun(&self) -> bool {
        matches!(self.plan.stop, Stop::Requests(n) if self.begun >= n)
    }

    /// When the next request is due, if there is a rate.
    fn due_by_rate(&self) -> Option<Instant> {
        self.plan.rate.map(|rate| self.begin + Duration::from_secs_f64(self.begun as f64 / rate))
    }

    /// How long there is nothing to do but wait.
    fn timeout(&self, now: Instant) -> Option<Duration> {
        let begin = match self.turn.front() {
            None => None,
            Some(&index) if self.clients[index as usize].owes => Some(now),
            Some(_) => Some(self.due_by_rate().unwrap_or(now)),
        };
        let begin = begin.max(begin.and(self.closed_until));
        let over = match self.plan.stop {
            Stop::After(time) => Some(self.begin + time),
            Stop::Requests(_) => None,
        };
        let deadline = self.deadlines.first().map(|&(deadline, _)| deadline);
        let next = [begin, over, deadline, self.progress.due()].into_iter().flatten().min()?;
        Some(next.saturating_duration_since(now))
    }

    fn client(&mut self, index: u32) -> &mut Client {
        &mut self.clients[index as usize]
    }

    fn event(&mut self, token: Token) -> io::Result<()> {
        let index = token.0 as u32; // the low half, see watch()
        let Some(client) = self.clients.get(index as usize) else { return Ok(()) };
        if client.watched.is_none() || client.generation != (token.0 >> 32) as u32 {
            return Ok(()); // it outlived its registration
        }
        match client.phase {
            Phase::Connecting => match client.socket.as_ref().map(Socket::take_error) {
                // Asked for here since send(2) does not tell on every system what connect(2) met.
                Some(Ok(Some(error)) | Err(error)) => self.lost(index, &error),
                _ => self.send(index),
            },
            Phase::Sending(_) => self.send(index),
            Phase::Receiving => self.receive(index),
            Phase::Kept => {
                self.kept_in_vain(index);
                Ok(())
            }
            Phase::Idle | Phase::Sated | Phase::Holding => Ok(()), // never watched
        }
    }

    /// Acts on all deadlines that have come.
    fn expire(&mut self, now: Instant) -> io::Result<()> {
        let timed_out = || {
            let message = format!("nothing was heard for {} s", RESPONSE_TIMEOUT.as_secs());
            io::Error::new(ErrorKind::TimedOut, message)
        };
        while let Some(&(deadline, index)) = self.deadlines.first() {
            if deadline > now {
                break;
            }
            self.set_deadline(index, None);
            let client = self.client(index);
            let silent_until = client.heard + RESPONSE_TIMEOUT;
            match client.phase {
                Phase::Idle | Phase::Kept => self.turn.push_back(index),
                Phase::Sated => {
                    client.phase = Phase::Receiving;
                    self.receive(index)?;
                }
                Phase::Holding => self.release(index, deadline),
                // Each piece would set it anew otherwise.
                _ if silent_until > now => self.set_deadline(index, Some(silent_until)),
                Phase::Connecting => self.connect_failed(index, &timed_out(), false)?,
                Phase::Sending(_) | Phase::Receiving => {
                    self.ended(index, Outcome::TimedOut(&timed_out()))?;
                }
            }
        }
        Ok(())
    }

    // What a client has with the others: its deadline and its registration.

    fn set_deadline(&mut self, index: u32, deadline: Option<Instant>) {
        let before = std::mem::replace(&mut self.client(index).deadline, deadline);
        if let Some(before) = before {
            self.deadlines.remove(&(before, index));
        }
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, index));
        }
    }

    /// Wants to hear of the client's socket: again, anew, or of something else than before.
    fn watch(&mut self, index: u32, interest: Interest) -> io::Result<()> {
        if self.client(index).watched.is_some_and(|watched| watched != interest) {
            self.unwatch(index);
        }
        let client = &mut self.clients[index as usize];
        let Some(socket) = &client.socket else { return Ok(()) };
        let again = client.watched.is_some();
        if !again {
            client.generation = client.generation.wrapping_add(1);
        }
        let token = Token((u64::from(client.generation) << 32) | u64::from(index));
        if again {
            self.backend.rearm(socket, token, interest)
        } else {
            self.backend.add(socket, token, interest)?;
            client.watched = Some(interest);
            Ok(())
        }
    }

    fn unwatch(&mut self, index: u32) {
        let client = &mut self.clients[index as usize];
        if let (Some(socket), Some(_)) = (&client.socket, client.watched.take()) {
            let removed = self.backend.remove(socket);
            debug_assert!(removed.is_ok(), "{removed:?}");
        }
    }

    /// Closes the client's socket, if it has one, and forgets its deadline.
    fn hang_up(&mut self, index: u32) {
        self.unwatch(index);
        self.set_deadline(index, None);
        let client = self.client(index);
        client.socket = None;
        client.phase = Phase::Idle;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Type};
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener};

    /// Runs two clients of one request each against `addresses`.
    fn run_two(addresses: Vec<SocketAddr>) -> Tally {
        let plan = Plan {
            addresses,
            request: b"GET /\r\n\r\n".to_vec(),
            request_to_keep: Vec::new(),
            clients: 2,
            stop: Stop::Requests(2),
            rate: None,
            keep: 1,
            pause: Duration::ZERO,
            read_rate: None,
        };
        let holds = Holds::new(0, 0, fastrand::Rng::with_seed(1));
        run(&plan, holds, &mut Signals::install().unwrap(), Progress::new("")).unwrap()
    }

    /// A socket whose address refuses connections, as long as it is there: nobody else is given it.
    fn refusing() -> (Socket, SocketAddr) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        (socket, address)
    }

    #[test]
    fn the_first_address_that_answers_is_used_and_nothing_counted_for_the_others() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            for _ in 0..2 {
                let (mut socket, _) = listener.accept().unwrap();
                assert!(socket.read(&mut [0; 100]).unwrap() > 0);
                socket.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
            }
        });
        let (_sockets, refuse): (Vec<_>, Vec<_>) = (0..3).map(|_| refusing()).unzip();
        let tally = run_two(vec![refuse[0], refuse[1], address, refuse[2]]);
        assert_eq!((tally.complete, tally.ended()), (2, 2));
        assert_eq!(tally.address, Some(address));
        server.join().unwrap();
    }

    #[test]
    fn without_any_address_that_answers_the_run_ends() {
        let (_sockets, refuse) = (0..2).map(|_| refusing()).unzip::<_, _, Vec<_>, _>();
        let tally = run_two(refuse);
        assert_eq!((tally.failed_connect, tally.ended()), (1, 1));
        assert_eq!(tally.address, None);
    }
}
