// SPDX-License-Identifier: BSD-3-Clause

//! The clients: one thread, one loop, any number of sockets.
//!
//! Each client goes round: wait for its turn, connect, send, receive, hold, close. A socket is
//! registered with the backend only while something is expected of it: not while it is held, when
//! the server's end of stream stands ready to read and would wake the loop for ever. What is
//! counted is kept in a [`Tally`]; how it is printed is no business of this module.

use crate::complain;
use crate::holds::Holds;
use crate::http::{BadHttp, Response};
use crate::options::Stop;
use crate::report::Tally;
use lingerd_platform::backend::{Backend, Interest, System, Token};
use lingerd_platform::signals::Signals;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::collections::{BTreeSet, VecDeque};
use std::io::{self, ErrorKind, Read};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// A response that has not ended so long after its connect has failed. Far beyond any answer that
/// is still of use, yet not so short that a crowd before a slow server fails: a thousand clients
/// that hold ten workers for a second each wait a hundred seconds for their turn.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(300);

/// How long a client waits after a connect that the server refused.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// How long all clients wait when this side has run out of ports, descriptors or memory: more
/// attempts would only count more failures, and search the whole port range each time.
const EXHAUSTED_PAUSE: Duration = Duration::from_secs(1);

/// The most clients that begin in one turn of the loop: after so many, others' responses are read
/// first, or the crowd at the start of a run would measure its own length.
const BEGIN_BATCH: usize = 32;

/// The most bytes that one read takes. All clients share the one buffer.
const READ_BYTES: usize = 64 * 1024;

/// Tokens of the signals; no client has these indices.
const STOP: Token = Token(u64::MAX);
const HANGUP: Token = Token(u64::MAX - 1);

/// What to do in a run.
pub struct Plan {
    /// Where to connect to: the first that answers, in this order. Never empty.
    pub addresses: Vec<SocketAddr>,
    /// What each client sends.
    pub request: Vec<u8>,
    /// How many clients.
    pub clients: u32,
    /// When to stop.
    pub stop: Stop,
}

/// Makes the run. SIGINT, SIGTERM and SIGHUP end it early.
///
/// # Errors
/// The backend failed, which leaves nothing to go on with.
pub fn run(plan: &Plan, holds: Holds, signals: &mut Signals) -> io::Result<Tally> {
    let backend = System::new().map_err(|error| {
        let message = format!("cannot open {}: {error}", System::NAME);
        io::Error::new(error.kind(), message)
    })?;
    let begin = Instant::now();
    let mut engine = Engine {
        plan,
        backend,
        clients: (0..plan.clients).map(|_| Client::new(begin)).collect(),
        turn: (0..plan.clients).collect(),
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
    };
    engine.run(signals).map_err(|error| {
        let message = format!("cannot wait for sockets with {}: {error}", System::NAME);
        io::Error::new(error.kind(), message)
    })?;
    Ok(engine.tally)
}

/// Where a client stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No socket: in the queue of those who may begin, done, or pausing until its deadline.
    Idle,
    /// connect(2) is in progress.
    Connecting,
    /// So much of the request is sent.
    Sending(usize),
    /// The response is awaited or coming in.
    Receiving,
    /// The response has ended; the socket is kept until the deadline, and not registered.
    Holding,
}

struct Client {
    phase: Phase,
    socket: Option<Socket>,
    /// What the socket is registered for, if it is.
    watched: Option<Interest>,
    /// Grows with each registration, so that an event for an earlier one is recognised.
    generation: u32,
    /// Where it stands in the engine's `deadlines`, if it does.
    deadline: Option<Instant>,
    /// Just before connect(2).
    connected_from: Instant,
    /// Index of the address of the last attempt.
    address: usize,
    /// Its request is counted as begun and has no outcome: the next address is to be tried.
    owes: bool,
    response: Response,
}

impl Client {
    fn new(now: Instant) -> Self {
        Client {
            phase: Phase::Idle,
            socket: None,
            watched: None,
            generation: 0,
            deadline: None,
            connected_from: now,
            address: 0,
            owes: false,
            response: Response::default(),
        }
    }
}

/// How a request ended, after its connection was made.
enum Outcome<'a> {
    Complete,
    /// Nobody answers any more: our own time-out, or what the kernel says of the network.
    TimedOut(&'a io::Error),
    BadHttp(BadHttp),
    Reset,
    Truncated,
}

/// What the user has been told already: of each kind of failure, the first is explained.
#[derive(Default)]
struct Said {
    connect: bool,
    exhausted: bool,
    timeout: bool,
    http: bool,
}

struct Engine<'a> {
    plan: &'a Plan,
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
}

impl Engine<'_> {
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

    /// Closes all that is open and takes the time. Requests under way leave no trace.
    fn finish(&mut self, now: Instant) {
        let until = match self.plan.stop {
            Stop::Requests(n) if self.tally.ended() >= n => self.last_end,
            _ => now,
        };
        self.tally.elapsed = until.duration_since(self.begin);
        for index in 0..self.plan.clients {
            if self.client(index).phase == Phase::Holding {
                self.note_reset_while_held(index);
            }
            self.hang_up(index);
        }
    }

    /// How long there is nothing to do but wait.
    fn timeout(&self, now: Instant) -> Option<Duration> {
        let begin = match self.closed_until {
            _ if self.turn.is_empty() => None,
            Some(until) => Some(until),
            None => Some(now),
        };
        let over = match self.plan.stop {
            Stop::After(time) => Some(self.begin + time),
            Stop::Requests(_) => None,
        };
        let deadline = self.deadlines.first().map(|&(deadline, _)| deadline);
        let next = [begin, over, deadline].into_iter().flatten().min()?;
        Some(next.saturating_duration_since(now))
    }

    fn client(&mut self, index: u32) -> &mut Client {
        &mut self.clients[index as usize]
    }

    // The phases, in their order.

    /// Lets the next clients begin.
    fn begin_some(&mut self, now: Instant) -> io::Result<()> {
        if self.closed_until.is_some_and(|until| now < until) {
            return Ok(());
        }
        self.closed_until = None;
        for _ in 0..BEGIN_BATCH {
            if self.closed_until.is_some() || self.hopeless {
                break;
            }
            let Some(index) = self.turn.pop_front() else { break };
            if !std::mem::take(&mut self.client(index).owes) {
                if matches!(self.plan.stop, Stop::Requests(n) if self.begun >= n) {
                    continue; // nothing is left to do for this one
                }
                self.begun += 1;
            }
            self.connect(index)?;
        }
        Ok(())
    }

    fn connect(&mut self, index: u32) -> io::Result<()> {
        let address = self.plan.addresses[self.address];
        let current = self.address;
        let client = self.client(index);
        client.address = current;
        client.response.clear();
        let socket = match new_socket(address) {
            Ok(socket) => socket,
            Err(error) => return self.connect_failed(index, &error, true),
        };
        client.connected_from = Instant::now();
        let result = socket.connect(&SockAddr::from(address));
        let deadline = client.connected_from + RESPONSE_TIMEOUT;
        client.socket = Some(socket);
        client.phase = Phase::Connecting;
        self.set_deadline(index, Some(deadline));
        match result {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            // EINTR: the connection is made in the background all the same, see connect(2).
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                let exhausted = error.kind() == ErrorKind::AddrNotAvailable;
                return self.connect_failed(index, &error, exhausted);
            }
        }
        // On the loopback the connection is made by now, and a wait would be for nothing.
        self.send(index)
    }

    /// `exhausted`: the reason lies on this side, and is the same for every client.
    fn connect_failed(&mut self, index: u32, error: &io::Error, exhausted: bool) -> io::Result<()> {
        self.hang_up(index);
        let settled = self.tally.address.is_some();
        let failed = self.client(index).address;
        if !settled && failed == self.address && self.address + 1 < self.plan.addresses.len() {
            self.address += 1;
        }
        if failed != self.address {
            self.client(index).owes = true;
            self.turn.push_front(index);
            return Ok(());
        }
        self.tally.failed_connect += 1;
        self.last_end = Instant::now();
        let address = self.plan.addresses[failed];
        let said = if exhausted { &mut self.said.exhausted } else { &mut self.said.connect };
        let first = !std::mem::replace(said, true);
        if !settled {
            self.hopeless = true;
        } else if exhausted {
            self.closed_until = Some(self.last_end + EXHAUSTED_PAUSE);
            self.turn.push_back(index);
        } else {
            self.set_deadline(index, Some(self.last_end + REFUSED_PAUSE));
        }
        if first {
            let advice = match (exhausted, error.kind()) {
                (true, ErrorKind::AddrNotAvailable) => {
                    ": no local port is free, earlier connections still occupy the range (TIME_WAIT); \
                     use fewer clients (-c), a longer hold (-l) or a wider range (on Linux \
                     net.ipv4.ip_local_port_range)"
                }
                (true, _) => ": use fewer clients (-c)",
                (false, ErrorKind::ConnectionRefused) => ": does a server listen there?",
                (false, _) => "",
            };
            let then = match (settled, exhausted) {
                (false, _) => "the run ends here, since no connection was made yet",
                (true, true) => "counted as failed, next attempt in 1 s; said once",
                (true, false) => "counted as failed; said once",
            };
            complain(format_args!("cannot connect to {address}: {error}{advice} ({then})"));
        }
        Ok(())
    }

    /// Sends what is left of the request, if the connection is there.
    fn send(&mut self, index: u32) -> io::Result<()> {
        let request = &self.plan.request;
        let client = &mut self.clients[index as usize];
        let Some(socket) = &client.socket else { return Ok(()) };
        let sent = if let Phase::Sending(sent) = client.phase { sent } else { 0 };
        match socket.send(&request[sent..]) {
            Ok(n) => {
                if client.phase == Phase::Connecting {
                    let address = client.address;
                    self.connected(address);
                }
                let sent = sent + n;
                let done = sent >= request.len();
                self.client(index).phase = if done { Phase::Receiving } else { Phase::Sending(sent) };
                self.watch(index, if done { Interest::Read } else { Interest::Write })
            }
            // NotConnected is how the BSDs say that connect(2) is still in progress.
            Err(error) if is_not_yet(&error) || error.kind() == ErrorKind::NotConnected => {
                self.watch(index, Interest::Write)
            }
            Err(error) => self.lost(index, &error),
        }
    }

    /// A connection was made: this is the address from now on.
    fn connected(&mut self, address: usize) {
        if self.tally.address.is_none() {
            self.address = address;
            self.tally.address = Some(self.plan.addresses[address]);
        }
    }

    fn receive(&mut self, index: u32) -> io::Result<()> {
        let client = &mut self.clients[index as usize];
        let Some(mut socket) = client.socket.as_ref() else { return Ok(()) };
        match socket.read(&mut self.buffer) {
            Ok(0) => {
                let whole = client.response.may_end_here();
                self.ended(index, if whole { Outcome::Complete } else { Outcome::Truncated })
            }
            Ok(n) => {
                self.tally.bytes += n as u64;
                match client.response.feed(&self.buffer[..n]) {
                    Ok(true) => self.ended(index, Outcome::Complete),
                    Ok(false) => self.watch(index, Interest::Read),
                    Err(bad) => self.ended(index, Outcome::BadHttp(bad)),
                }
            }
            Err(error) if is_not_yet(&error) => self.watch(index, Interest::Read),
            Err(error) => self.lost(index, &error),
        }
    }

    /// The kernel gave the connection up before the response ended.
    fn lost(&mut self, index: u32, error: &io::Error) -> io::Result<()> {
        match error.kind() {
            // A refused connect is ECONNREFUSED: a reset was sent by a server that had accepted.
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                let address = self.client(index).address;
                self.connected(address);
                self.ended(index, Outcome::Reset)
            }
            _ if self.client(index).phase == Phase::Connecting => self.connect_failed(index, error, false),
            _ => self.ended(index, Outcome::TimedOut(error)),
        }
    }

    /// A request has come to its end. Only after a complete response is there a hold.
    fn ended(&mut self, index: u32, outcome: Outcome<'_>) -> io::Result<()> {
        let now = Instant::now();
        self.last_end = now;
        let client = &self.clients[index as usize];
        let address = self.plan.addresses[client.address];
        match outcome {
            Outcome::Complete => {
                self.tally.complete += 1;
                self.tally.non_2xx += u64::from(!(200..300).contains(&client.response.status()));
                self.tally.content_bytes += client.response.content();
                self.tally.latencies.add(now.duration_since(client.connected_from));
                let hold = self.holds.draw();
                if !hold.is_zero() {
                    self.unwatch(index);
                    self.client(index).phase = Phase::Holding;
                    self.held += 1;
                    self.tally.held_peak = self.tally.held_peak.max(self.held);
                    self.set_deadline(index, Some(now + hold));
                    return Ok(());
                }
            }
            Outcome::TimedOut(error) => {
                self.tally.failed_timeout += 1;
                if !std::mem::replace(&mut self.said.timeout, true) {
                    complain(format_args!(
                        "no whole response from {address}: {error} (counted as failed; said once)"
                    ));
                }
            }
            Outcome::BadHttp(BadHttp(what)) => {
                self.tally.failed_http += 1;
                if !std::mem::replace(&mut self.said.http, true) {
                    complain(format_args!(
                        "no HTTP/1 response from {address}: {what} (counted as failed; said once)"
                    ));
                }
            }
            Outcome::Reset => self.tally.reset += 1,
            Outcome::Truncated => self.tally.truncated += 1,
        }
        self.hang_up(index);
        self.turn.push_back(index);
        Ok(())
    }

    /// The hold is over.
    fn release(&mut self, index: u32) {
        self.held -= 1;
        self.note_reset_while_held(index);
        self.hang_up(index);
        self.turn.push_back(index);
    }

    /// A reset that came in while nobody looked is still there to be asked for.
    fn note_reset_while_held(&mut self, index: u32) {
        let error = self.client(index).socket.as_ref().map(Socket::take_error);
        self.tally.reset_while_held += u64::from(matches!(error, Some(Ok(Some(_)))));
    }

    // What happens.

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
            Phase::Idle | Phase::Holding => Ok(()), // never watched
        }
    }

    /// Acts on all deadlines that have come.
    fn expire(&mut self, now: Instant) -> io::Result<()> {
        let timed_out = || {
            let message = format!("not ended {} s after its connect", RESPONSE_TIMEOUT.as_secs());
            io::Error::new(ErrorKind::TimedOut, message)
        };
        while let Some(&(deadline, index)) = self.deadlines.first() {
            if deadline > now {
                break;
            }
            self.set_deadline(index, None);
            match self.client(index).phase {
                Phase::Idle => self.turn.push_back(index),
                Phase::Connecting => self.connect_failed(index, &timed_out(), false)?,
                Phase::Sending(_) | Phase::Receiving => {
                    self.ended(index, Outcome::TimedOut(&timed_out()))?;
                }
                Phase::Holding => self.release(index),
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

fn new_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn is_not_yet(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{Ipv4Addr, TcpListener};

    /// Runs two clients of one request each against `addresses`.
    fn run_two(addresses: Vec<SocketAddr>) -> Tally {
        let plan =
            Plan { addresses, request: b"GET /\r\n\r\n".to_vec(), clients: 2, stop: Stop::Requests(2) };
        let holds = Holds::new(0, 0, fastrand::Rng::with_seed(1));
        run(&plan, holds, &mut Signals::install().unwrap()).unwrap()
    }

    /// An address that refuses connections.
    fn refusing() -> SocketAddr {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
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
        let tally = run_two(vec![refusing(), refusing(), address, refusing()]);
        assert_eq!((tally.complete, tally.ended()), (2, 2));
        assert_eq!(tally.address, Some(address));
        server.join().unwrap();
    }

    #[test]
    fn without_any_address_that_answers_the_run_ends() {
        let tally = run_two(vec![refusing(), refusing()]);
        assert_eq!((tally.failed_connect, tally.ended()), (1, 1));
        assert_eq!(tally.address, None);
    }
}
