// SPDX-License-Identifier: BSD-3-Clause

//! Clients of a balancer that keeps connections to its server: they ask together, just when the server would close
//! these.
//!
//! Knows HTTP and the page; it must not know which balancer it is, nor what is behind it.

use super::answer::{Answer, Expected};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};
use support::{http, tcp};

/// The path of the page, and its size.
pub const PATH: &str = "/page.php";
/// In bytes.
pub const SIZE: usize = 20_000;

/// From one round of requests to the next: a little more than a server's keep-alive of a second.
const ROUND: Duration = Duration::from_millis(1004);
/// Rounds, of each client.
const ROUNDS: u32 = 40;
/// Over what time the requests of a round are spread: connections are idle for 0.988 to 1.020 seconds.
const SPREAD: Duration = Duration::from_millis(16);

/// For how long clients go on.
pub const SECONDS: f64 = ROUND.as_millis() as f64 * ROUNDS as f64 / 1000.0;

/// Clients of a balancer; every other one keeps its connection, the others make one for each request.
pub const CLIENTS: usize = 20;

/// What became of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// All of them.
    pub asked: usize,
    /// Answered well.
    pub well: usize,
    /// Answered with 502, 503 and 504.
    pub refused: [usize; 3],
    /// The connection ended without a byte.
    pub unanswered: usize,
    /// Anything else: never seen of a balancer that works.
    pub failed: usize,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.asked += other.asked;
        self.well += other.well;
        self.refused.iter_mut().zip(other.refused).for_each(|(all, one)| *all += one);
        self.unanswered += other.unanswered;
        self.failed += other.failed;
    }

    /// How many have not got their page.
    pub fn lost(&self) -> usize {
        self.asked - self.well
    }
}

/// What became of those of clients that keep their connections, and of the others.
pub fn play(balancer: SocketAddr) -> [Tally; 2] {
    let start = Instant::now();
    let mut tallies = [Tally::default(); 2];
    thread::scope(|scope| {
        let clients = (0..CLIENTS).map(|n| scope.spawn(move || converse(balancer, n, start)));
        for (n, client) in clients.collect::<Vec<_>>().into_iter().enumerate() {
            tallies[n % 2].add(client.join().expect("a client"));
        }
    });
    tallies
}

/// One client.
fn converse(balancer: SocketAddr, number: usize, start: Instant) -> Tally {
    let keeps = number % 2 == 0;
    let mut tally = Tally::default();
    let mut kept = None;
    for round in 0..ROUNDS {
        // Evenly spread, and never the same as the last time: multiples of the golden ratio.
        let place = (f64::from(round) * CLIENTS as f64 + number as f64) * 0.618_034 % 1.0;
        let due = start + ROUND * round + SPREAD.mul_f64(place);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let connection = kept.take().map_or_else(|| TcpStream::connect(balancer), Ok);
        let Ok(mut connection) = connection.map(http::bounded) else {
            tally.add(Tally { asked: 1, failed: 1, ..Tally::default() });
            continue;
        };
        // Every other one changes something, so that nobody may ask for it twice.
        let request = request(keeps, (round as usize + number / 2) % 2 == 0);
        let (ended, may_go_on) = exchange(&mut connection, &request);
        tally.add(ended);
        kept = (keeps && may_go_on).then_some(connection);
    }
    tally
}

fn request(keeps: bool, changes: bool) -> String {
    let connection = if keeps { "keep-alive" } else { "close" };
    let head = format!("{PATH} HTTP/1.1\r\nHost: localhost\r\nConnection: {connection}\r\n");
    if changes { format!("POST {head}Content-Length: 4\r\n\r\nmore") } else { format!("GET {head}\r\n") }
}

/// What became of one request, and whether there may be another one on the connection.
fn exchange(connection: &mut TcpStream, request: &str) -> (Tally, bool) {
    let mut answer = Answer::new(Expected { status: 200, content: Some(SIZE) });
    let mut bytes = Vec::new();
    let mut end = connection.write_all(request.as_bytes());
    let mut buffer = [0; 32768];
    while end.is_ok() && !answer.is_whole() {
        match connection.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                answer.feed(&buffer[..count]);
                bytes.extend(&buffer[..count]);
            }
            Err(e) => end = Err(e),
        }
    }
    let mut tally = Tally { asked: 1, ..Tally::default() };
    let status = bytes.get(9..12).and_then(|status| std::str::from_utf8(status).ok()?.parse::<usize>().ok());
    match status {
        Some(200) if answer.is_whole() && answer.wrong().is_none() => tally.well = 1,
        Some(status @ 502..=504) => tally.refused[status - 502] = 1,
        None if bytes.is_empty() && end.as_ref().err().is_none_or(tcp::is_gone) => tally.unanswered = 1,
        _ => tally.failed = 1,
    }
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(1000)]).to_ascii_lowercase();
    (tally, tally.well == 1 && !head.contains("connection: close"))
}
