// SPDX-License-Identifier: BSD-3-Clause

//! One client: where it stands, and its socket.
//!
//! Must not know the other clients, nor what is counted.

use super::READ_BYTES;
use crate::http::Response;
use lingerd_platform::backend::Interest;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Where a client stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No socket: in the queue of those who may begin, done, or pausing until its deadline.
    Idle,
    /// As before, but the connection of its last request is still there for the next one. It is
    /// watched for its end.
    Kept,
    /// connect(2) is in progress.
    Connecting,
    /// So much of the request is sent.
    Sending(usize),
    /// The response is awaited or coming in.
    Receiving,
    /// It has read as much as it may for now; until the deadline the socket is not registered.
    Sated,
    /// The response has ended; the socket is kept until the deadline, and not registered.
    Holding,
}

pub struct Client {
    pub phase: Phase,
    pub socket: Option<Socket>,
    /// What the socket is registered for, if it is.
    pub watched: Option<Interest>,
    /// Grows with each registration, so that an event for an earlier one is recognised.
    pub generation: u32,
    /// Where it stands in the engine's `deadlines`, if it does.
    pub deadline: Option<Instant>,
    /// When its next request is due, if that was settled before it can begin.
    pub scheduled: Option<Instant>,
    /// When the request under way was due.
    pub due: Instant,
    /// When anything was last heard from the server, or the request began.
    pub heard: Instant,
    /// When the response ended after which it holds.
    pub ended: Instant,
    /// When it may read on, if it reads slowly.
    pub reads_on: Instant,
    /// Index of the address of the last attempt.
    pub address: usize,
    /// Its request is counted as begun and has no outcome: it is to be tried once more.
    pub owes: bool,
    /// Responses that came on this connection.
    pub served: u32,
    /// A byte of the response under way has come.
    pub answered: bool,
    pub response: Response,
}

impl Client {
    pub fn new(now: Instant) -> Self {
        Client {
            phase: Phase::Idle,
            socket: None,
            watched: None,
            generation: 0,
            deadline: None,
            scheduled: None,
            due: now,
            heard: now,
            ended: now,
            reads_on: now,
            address: 0,
            owes: false,
            served: 0,
            answered: false,
            response: Response::default(),
        }
    }

    /// Whether its request has neither failed nor been answered yet.
    pub fn is_waiting(&self) -> bool {
        match self.phase {
            Phase::Connecting | Phase::Sending(_) | Phase::Receiving | Phase::Sated => true,
            Phase::Idle | Phase::Kept | Phase::Holding => self.owes,
        }
    }

    /// Whether the server may have closed the connection at the very moment when it was used again:
    /// nothing was lost by that, and the request is made anew (RFC 9112 section 9.3.1).
    pub fn may_be_stale(&self) -> bool {
        self.served > 0 && !self.answered
    }
}

/// How slow readers read.
#[derive(Clone, Copy)]
pub struct Pace {
    bytes_per_second: u32,
}

impl Pace {
    /// How often a slow reader reads: what a network brings, it brings in small pieces.
    const EVERY: Duration = Duration::from_millis(100);

    /// The segments of an Ethernet. The loopback's are so large that a single one may be more than a
    /// slow reader takes in a second, and the window would open and close by leaps.
    const SEGMENT: u32 = 1448;

    pub fn new(bytes_per_second: u32) -> Pace {
        Pace { bytes_per_second }
    }

    /// The most that one read takes.
    pub fn bytes(self) -> usize {
        let bytes = f64::from(self.bytes_per_second) * Self::EVERY.as_secs_f64();
        (bytes as usize).clamp(1, READ_BYTES)
    }

    /// When the client may read on that has read `bytes` at `now`, and might have done so at
    /// `before`. What we are late by is made good; what the server was late by is not.
    pub fn next(self, before: Instant, now: Instant, bytes: usize) -> Instant {
        let from = if now.duration_since(before) < Self::EVERY { before } else { now };
        from + Duration::from_secs_f64(bytes as f64 / f64::from(self.bytes_per_second))
    }
}

/// A socket to connect to `address` with.
pub fn new_socket(address: SocketAddr, pace: Option<Pace>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    if let Some(pace) = pace {
        // Room for what it reads at once and what arrives meanwhile: what is not read waits at the
        // server, as with a slow network. Systems have limits of their own for both: where they
        // refuse, more waits here.
        let room = (2 * pace.bytes()).max(4 * Pace::SEGMENT as usize);
        let _ = socket.set_recv_buffer_size(room);
        let _ = socket.set_tcp_mss(Pace::SEGMENT);
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_kept_over_time() {
        let begin = Instant::now();
        let after = |ms| begin + Duration::from_millis(ms);
        let pace = Pace::new(50_000);
        assert_eq!(pace.bytes(), 5_000);
        assert_eq!(pace.next(begin, begin, 5_000), after(100));
        // 30 ms late on our side: the next read is not.
        assert_eq!(pace.next(after(100), after(130), 5_000), after(200));
        // Nothing was there to read for long: what was not read is not read faster later.
        assert_eq!(pace.next(after(200), after(900), 5_000), after(1_000));
        assert_eq!(pace.next(begin, begin, 1), begin + Duration::from_micros(20));
    }

    #[test]
    fn the_slowest_reads_a_byte_and_the_fastest_what_there_is_room_for() {
        assert_eq!(Pace::new(1).bytes(), 1);
        assert_eq!(Pace::new(u32::MAX).bytes(), READ_BYTES);
        let now = Instant::now();
        assert_eq!(Pace::new(1).next(now, now, 1), now + Duration::from_secs(1));
    }
}
