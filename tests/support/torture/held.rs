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

/// When a process was last seen to hold a side of a connection. Where the system does not tell, it
/// stays empty.
#[derive(Default)]
pub struct Held(Mutex<HashMap<Side, Instant>>);

impl Held {
    /// Looks once at all connections there are.
    pub fn look(&self) {
        let now = Instant::now();
        for (file, is_v6) in [("/proc/net/tcp", false), ("/proc/net/tcp6", true)] {
            let Ok(table) = fs::read_to_string(file) else { continue };
            let sides = table.lines().filter_map(|line| owned(line, is_v6));
            self.0.lock().unwrap().extend(sides.map(|side| (side, now)));
        }
    }

    /// How long after `connected` the side was last held; 0 if that was shorter than we look.
    pub fn since(&self, side: Side, connected: Instant) -> Option<Duration> {
        let held = self.0.lock().unwrap();
        let last = held.get(&side).copied().unwrap_or(connected);
        (!held.is_empty()).then(|| last.duration_since(connected))
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
