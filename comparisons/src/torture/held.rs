// SPDX-License-Identifier: BSD-3-Clause

//! For how long the server's side of a connection was some process's (Linux: /proc/net).

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// One side of a connection: whether it is IPv6, its own port and the other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Side(bool, u16, u16);

impl Side {
    /// The server's.
    pub fn of_server(server: SocketAddr, client: SocketAddr) -> Self {
        Side(server.is_ipv6(), server.port(), client.port())
    }
}

/// What was seen so far.
#[derive(Default)]
pub struct Held(Mutex<Looks>);

#[derive(Default)]
struct Looks {
    /// When a process was first and last seen to hold a side of a connection. Where the system does
    /// not tell, it stays empty.
    sides: HashMap<Side, (Instant, Instant)>,
    last: Option<Instant>,
    /// The longest time in which nobody has looked.
    gap: Duration,
}

impl Held {
    /// Looks once at all connections there are.
    pub fn look(&self) {
        let now = Instant::now();
        let mut looks = self.0.lock().unwrap();
        let since_last = looks.last.replace(now).map_or(Duration::ZERO, |last| now - last);
        looks.gap = looks.gap.max(since_last);
        for (file, is_v6) in [("/proc/net/tcp", false), ("/proc/net/tcp6", true)] {
            let Ok(table) = fs::read_to_string(file) else { continue };
            for side in table.lines().filter_map(|line| owned(line, is_v6)) {
                looks.sides.entry(side).or_insert((now, now)).1 = now;
            }
        }
    }

    /// For how long the side was held, to the [`gap`](Self::gap).
    pub fn time(&self, side: Side) -> Option<Duration> {
        let looks = self.0.lock().unwrap();
        let time = looks.sides.get(&side).map_or(Duration::ZERO, |&(first, last)| last - first);
        (!looks.sides.is_empty()).then_some(time)
    }

    /// The longest time in which nobody has looked.
    pub fn gap(&self) -> Duration {
        self.0.lock().unwrap().gap
    }
}

/// The side of a line, if its socket is a process's: proc_net_tcp(5). What nobody has accepted yet,
/// or everybody has closed, has 0 for an inode.
fn owned(line: &str, is_v6: bool) -> Option<Side> {
    let fields: Vec<_> = line.split_whitespace().collect();
    let port = |address: &str| u16::from_str_radix(address.rsplit(':').next()?, 16).ok();
    let side = Side(is_v6, port(fields.get(1)?)?, port(fields.get(2)?)?);
    (*fields.get(9)? != "0").then_some(side)
}
