// SPDX-License-Identifier: BSD-3-Clause

//! Cruel clients: what becomes of a response whose client is slow, stalls, or still sends.
//!
//! They know HTTP and the pages of [`pages`], and nothing of lingerd. A case is the script of one
//! client; its times are those of real life, and whoever runs it may have them shorter. What a
//! client saw is told, never asserted here.

pub mod answer;
pub mod cases;
pub mod client;
pub mod held;
pub mod pages;
pub mod pool;
pub mod slow;

use cases::{Case, Over};
use client::Seen;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

/// Clients sleep most of the time, a thousand at once.
const STACK: usize = 256 * 1024;

/// Where a server with the pages is.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    /// Over IPv4, without TLS.
    pub plain: SocketAddr,
    /// The same over IPv6; `None` where the system has none.
    pub v6: Option<SocketAddr>,
    /// Over IPv4.
    pub tls: SocketAddr,
}

impl Server {
    /// Where a client of `case` connects to.
    fn address(&self, case: &Case) -> Option<SocketAddr> {
        match case.over {
            Over::V4 => Some(self.plain),
            Over::V6 => self.v6,
            Over::Tls => Some(self.tls),
        }
    }
}

/// Each case with where its client connects to, of the server that is its; without those that need
/// an IPv6 that is not there.
pub fn with_addresses<'a>(
    cases: impl IntoIterator<Item = &'a Case>,
    server: impl Fn(&Case) -> Server,
) -> Vec<(&'a Case, SocketAddr)> {
    cases.into_iter().filter_map(|case| Some((case, server(case).address(case)?))).collect()
}

/// Lets one client of each case run, all at once, but started so far `apart`; their times are
/// multiplied by `scale`. What they saw is in the order of the cases.
pub fn run_all(clients: &[(&Case, SocketAddr)], scale: f64, apart: Duration) -> Vec<Seen> {
    thread::scope(|scope| {
        let start = |&(case, address)| {
            thread::sleep(apart);
            let client = move || client::run(case, address, scale);
            thread::Builder::new().stack_size(STACK).spawn_scoped(scope, client).expect("a thread")
        };
        let running: Vec<_> = clients.iter().map(start).collect();
        running.into_iter().map(|client| client.join().expect("a client panicked")).collect()
    })
}
