// SPDX-License-Identifier: BSD-3-Clause

//! What clients do: the phases of a request, in their order.
//!
//! Each step leaves its client waiting for an event, for a deadline or for its turn, or goes on to
//! the next. Must not wait itself.

use super::client::{Pace, Phase, new_socket};
use super::{Engine, READ_BYTES, RESPONSE_TIMEOUT};
use crate::http::BadHttp;
use crate::terminal::complain;
use lingerd_platform::backend::Interest;
use socket2::{SockAddr, Socket};
use std::io::{self, ErrorKind, Read};
use std::time::{Duration, Instant};

/// How long a client waits after a connect that the server refused.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// How long all clients wait when this side has run out of ports, descriptors or memory: more
/// attempts would only count more failures, and search the whole port range each time.
const EXHAUSTED_PAUSE: Duration = Duration::from_secs(1);

/// The most clients that begin in one turn of the loop: after so many, others' responses are read
/// first, or the crowd at the start of a run would measure its own length.
const BEGIN_BATCH: usize = 32;

/// How a request ended, after its connection was made.
pub(super) enum Outcome<'a> {
    Complete,
    /// Nobody answers any more: our own time-out, or what the kernel says of the network.
    TimedOut(&'a io::Error),
    BadHttp(BadHttp),
    Reset,
    Truncated,
}

impl Engine<'_> {
    /// Lets the next clients begin.
    pub(super) fn begin_some(&mut self, now: Instant) -> io::Result<()> {
        if self.closed_until.is_some_and(|until| now < until) {
            return Ok(());
        }
        self.closed_until = None;
        for _ in 0..BEGIN_BATCH {
            if self.closed_until.is_some() || self.hopeless {
                break;
            }
            let Some(&index) = self.turn.front() else { break };
            if !self.client(index).owes {
                if self.all_are_begun() {
                    self.turn.pop_front();
                    continue; // nothing is left to do for this one
                }
                let due = self.due_by_rate();
                if due.is_some_and(|due| due > now) {
                    break;
                }
                let client = self.client(index);
                client.scheduled = due.or(client.scheduled);
                self.begun += 1;
            }
            self.turn.pop_front();
            self.start(index)?;
        }
        Ok(())
    }

    /// Begins a request, on the connection of the one before if it is still there.
    fn start(&mut self, index: u32) -> io::Result<()> {
        let now = Instant::now();
        let client = self.client(index);
        client.owes = false;
        client.due = client.scheduled.take().unwrap_or(now);
        if client.phase != Phase::Kept {
            return self.connect(index);
        }
        client.phase = Phase::Sending(0);
        client.answered = false;
        client.heard = now;
        client.response.clear();
        self.set_deadline(index, Some(now + RESPONSE_TIMEOUT));
        self.send(index)
    }

    fn connect(&mut self, index: u32) -> io::Result<()> {
        let address = self.plan.addresses[self.address];
        let current = self.address;
        let pace = self.pace;
        let client = self.client(index);
        client.address = current;
        client.served = 0;
        client.answered = false;
        client.response.clear();
        let socket = match new_socket(address, pace) {
            Ok(socket) => socket,
            Err(error) => return self.connect_failed(index, &error, true),
        };
        client.heard = Instant::now();
        client.reads_on = client.heard;
        let deadline = client.heard + RESPONSE_TIMEOUT;
        let result = socket.connect(&SockAddr::from(address));
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
    pub(super) fn connect_failed(
        &mut self,
        index: u32,
        error: &io::Error,
        exhausted: bool,
    ) -> io::Result<()> {
        self.hang_up(index);
        let settled = self.tally.address.is_some();
        let failed = self.client(index).address;
        if !settled && failed == self.address && self.address + 1 < self.plan.addresses.len() {
            self.address += 1;
        }
        if failed != self.address {
            let client = self.client(index);
            client.owes = true;
            client.scheduled = Some(client.due);
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
    pub(super) fn send(&mut self, index: u32) -> io::Result<()> {
        let client = &mut self.clients[index as usize];
        let last = client.served + 1 >= self.plan.keep;
        let request = if last { &self.plan.request } else { &self.plan.request_to_keep };
        let Some(socket) = &client.socket else { return Ok(()) };
        let sent = if let Phase::Sending(sent) = client.phase { sent } else { 0 };
        match socket.send(&request[sent..]) {
            Ok(n) => {
                if client.phase == Phase::Connecting {
                    let address = client.address;
                    self.tally.connections += 1;
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

    pub(super) fn receive(&mut self, index: u32) -> io::Result<()> {
        let most = self.pace.map_or(READ_BYTES, Pace::bytes);
        let client = &mut self.clients[index as usize];
        let Some(mut socket) = client.socket.as_ref() else { return Ok(()) };
        match socket.read(&mut self.buffer[..most]) {
            Ok(0) if client.may_be_stale() => self.reopen(index),
            Ok(0) => {
                let whole = client.response.may_end_here();
                self.ended(index, if whole { Outcome::Complete } else { Outcome::Truncated })
            }
            Ok(n) => {
                let now = Instant::now();
                self.tally.bytes += n as u64;
                client.heard = now;
                if !std::mem::replace(&mut client.answered, true) {
                    self.tally.first_bytes.add(now.duration_since(client.due));
                }
                match client.response.feed(&self.buffer[..n]) {
                    Ok(true) => self.ended(index, Outcome::Complete),
                    Ok(false) => self.read_on(index, now, n),
                    Err(bad) => self.ended(index, Outcome::BadHttp(bad)),
                }
            }
            Err(error) if is_not_yet(&error) => {
                let deadline = client.heard + RESPONSE_TIMEOUT;
                self.set_deadline(index, Some(deadline));
                self.watch(index, Interest::Read)
            }
            Err(error) => self.lost(index, &error),
        }
    }

    /// Goes on reading, a slow reader not at once.
    fn read_on(&mut self, index: u32, now: Instant, bytes: usize) -> io::Result<()> {
        let Some(pace) = self.pace else { return self.watch(index, Interest::Read) };
        let client = self.client(index);
        client.reads_on = pace.next(client.reads_on, now, bytes);
        client.phase = Phase::Sated;
        let deadline = client.reads_on;
        self.unwatch(index);
        self.set_deadline(index, Some(deadline));
        Ok(())
    }

    /// Makes the request once more: the server had closed the kept connection when it came.
    fn reopen(&mut self, index: u32) -> io::Result<()> {
        self.tally.reopened += 1;
        self.hang_up(index);
        self.connect(index)
    }

    /// The kernel gave the connection up before the response ended.
    pub(super) fn lost(&mut self, index: u32, error: &io::Error) -> io::Result<()> {
        match error.kind() {
            // A refused connect is ECONNREFUSED: a reset was sent by a server that had accepted.
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe if self.client(index).may_be_stale() => {
                self.reopen(index)
            }
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                let address = self.client(index).address;
                self.connected(address);
                self.ended(index, Outcome::Reset)
            }
            _ if self.client(index).phase == Phase::Connecting => self.connect_failed(index, error, false),
            _ => self.ended(index, Outcome::TimedOut(error)),
        }
    }

    /// A request has come to its end. Only after a whole response the connection is kept or held.
    pub(super) fn ended(&mut self, index: u32, outcome: Outcome<'_>) -> io::Result<()> {
        let now = Instant::now();
        self.last_end = now;
        let address = self.plan.addresses[self.client(index).address];
        match outcome {
            Outcome::Complete => {
                self.count_response(index, now);
                let keeps = self.clients[index as usize].response.keeps_connection();
                let client = self.client(index);
                client.served += 1;
                let wants_more = client.served < self.plan.keep;
                if wants_more && keeps {
                    return self.keep(index, now);
                }
                self.tally.not_kept += u64::from(wants_more);
                let hold = self.holds.draw();
                if hold.is_zero() {
                    self.hang_up(index);
                    self.go_round(index, now, now);
                } else {
                    self.unwatch(index);
                    self.client(index).phase = Phase::Holding;
                    self.held += 1;
                    self.tally.held_peak = self.tally.held_peak.max(self.held);
                    self.client(index).ended = now;
                    self.set_deadline(index, Some(now + hold));
                }
                return Ok(());
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
        self.go_round(index, now, now);
        Ok(())
    }

    /// Counts a whole response. One that says that it is none of what was asked for may have been
    /// quick to make, and would flatter.
    fn count_response(&mut self, index: u32, now: Instant) {
        let client = &self.clients[index as usize];
        let status = client.response.status();
        self.tally.non_2xx += u64::from(!(200..300).contains(&status));
        if (200..400).contains(&status) {
            self.tally.complete += 1;
            self.tally.content_bytes += client.response.content();
            self.tally.latencies.add(now.duration_since(client.due));
            return;
        }
        self.tally.bad_status += 1;
        if !std::mem::replace(&mut self.said.status, true) {
            let address = self.plan.addresses[client.address];
            complain(format_args!("status {status} from {address} (counted as bad status; said once)"));
        }
    }

    /// Keeps the connection for the client's next request, and looks whether the server does too.
    fn keep(&mut self, index: u32, now: Instant) -> io::Result<()> {
        self.client(index).phase = Phase::Kept;
        self.set_deadline(index, None);
        self.go_round(index, now, now);
        self.watch(index, Interest::Read)
    }

    /// The server has closed a connection that the client had kept, or says on it what nobody asked for.
    pub(super) fn kept_in_vain(&mut self, index: u32) {
        self.tally.closed_while_kept += 1;
        self.unwatch(index);
        let client = self.client(index);
        client.socket = None;
        client.phase = Phase::Idle; // in the queue or pausing, as before
    }

    /// The hold is over, and was to be so at `due`.
    pub(super) fn release(&mut self, index: u32, due: Instant) {
        self.held -= 1;
        self.note_reset_while_held(index);
        self.hang_up(index);
        let ended = self.client(index).ended;
        self.go_round(index, ended, due);
    }

    /// The client's next request is due at `free`, unless its pause after the response that ended at
    /// `ended` is longer.
    fn go_round(&mut self, index: u32, ended: Instant, free: Instant) {
        let due = free.max(ended + self.plan.pause);
        if self.plan.rate.is_none() && due > Instant::now() {
            self.pause(index, due);
        } else {
            // Who goes on at once has no time at which it was due.
            self.client(index).scheduled = (due > ended).then_some(due);
            self.turn.push_back(index);
        }
    }

    /// The client waits: its next request is due at `until`.
    pub(super) fn pause(&mut self, index: u32, until: Instant) {
        self.client(index).scheduled = Some(until);
        self.set_deadline(index, Some(until));
    }

    /// A reset that came in while nobody looked is still there to be asked for.
    pub(super) fn note_reset_while_held(&mut self, index: u32) {
        let error = self.client(index).socket.as_ref().map(Socket::take_error);
        self.tally.reset_while_held += u64::from(matches!(error, Some(Ok(Some(_)))));
    }
}

fn is_not_yet(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
