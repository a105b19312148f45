// SPDX-License-Identifier: BSD-3-Clause

//! Clients that send the head of their request a byte at a time, read the response, and begin again.
//!
//! Knows HTTP and the page that is asked for; what a server makes of them is counted, never asserted here.

use crate::torture::answer::{Answer, Expected};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// Such clients, all of them in one thread.
pub struct SlowHeads {
    address: SocketAddr,
    request: Vec<u8>,
    expected: Expected,
    clients: Vec<Client>,
    /// Whose turn it is.
    next: usize,
    /// From one client's turn to the next one's.
    apart: Duration,
    /// When the next turn is.
    due: Instant,
    /// Whole responses.
    pub answered: usize,
    /// Any other end.
    pub lost: usize,
}

struct Client {
    socket: TcpStream,
    /// So much of the request is sent.
    sent: usize,
    answer: Answer,
}

impl SlowHeads {
    /// So many clients, each of which sends a byte of the request for `path` in each `pause`, and is to get a page of
    /// that `size`. They begin at different places, as if they had come one after the other.
    ///
    /// # Panics
    /// If the server does not let them in.
    pub fn start(address: SocketAddr, path: &str, size: usize, clients: usize, pause: Duration) -> Self {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").into_bytes();
        let expected = Expected { status: 200, content: Some(size) };
        let clients: Vec<_> = (0..clients)
            .map(|n| {
                let sent = request.len() * n / clients;
                let mut client = Client::connect(address, expected).expect("the server is there");
                client.socket.write_all(&request[..sent]).expect("the first bytes");
                client.sent = sent;
                client
            })
            .collect();
        let apart = pause / clients.len() as u32;
        let due = Instant::now();
        SlowHeads { address, request, expected, clients, next: 0, apart, due, answered: 0, lost: 0 }
    }

    /// The next client's turn, when it is due.
    ///
    /// # Panics
    /// If the server lets nobody in.
    pub fn turn(&mut self) {
        thread::sleep(self.due.saturating_duration_since(Instant::now()));
        self.due += self.apart;
        let number = self.clients.len();
        let client = &mut self.clients[self.next];
        self.next = (self.next + 1) % number;
        if client.go_on(&self.request).unwrap_or(true) {
            let is_whole = client.answer.is_whole() && client.answer.wrong().is_none();
            *if is_whole { &mut self.answered } else { &mut self.lost } += 1;
            *client = Client::connect(self.address, self.expected).expect("the server is there");
        }
    }
}

impl Client {
    fn connect(address: SocketAddr, expected: Expected) -> io::Result<Client> {
        let socket = TcpStream::connect(address)?;
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        Ok(Client { socket, sent: 0, answer: Answer::new(expected) })
    }

    /// Sends one more byte, if there is one, and reads what is there; whether that was the end.
    fn go_on(&mut self, request: &[u8]) -> io::Result<bool> {
        if let Some(byte) = request.get(self.sent..=self.sent) {
            self.sent += self.socket.write(byte)?;
        }
        let mut buffer = [0; 16384];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => return Ok(true),
                Ok(count) => self.answer.feed(&buffer[..count]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e),
            }
        }
    }
}
