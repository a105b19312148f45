//! The connections that linger: taken over, looked at, and ended, each exactly once.
//!
//! What becomes of a connection is decided by [`crate::rules`]; here it is done. Knows sockets and
//! the backend; must not know of senders, or of what they say.

mod admit;
pub mod capacity;
mod chain;
mod deadlines;
mod step;
mod table;

use self::table::Table;
use crate::retry::Warning;
use crate::rules::event::{Event, Reason};
use crate::rules::linger::{Linger, Rules};
use crate::rules::time::Time;
use crate::source::Entry;
use crate::stats::Ends;
use lingerd_platform::backend::Backend;
use lingerd_platform::closing::SlowClose;
use lingerd_platform::tcp::Tcp;
use lingerd_platform::world::World;
use log::debug;
use std::time::Duration;

/// Connections whose deadlines are looked after in one turn. There may be a hundred thousand of the same
/// age, and others want to be served too.
const EXPIRE_BUDGET: usize = 1024;

/// See the module's head.
pub struct Connections<W: World> {
    table: Table<W::Socket>,
    ends: Ends,
    slow_close: W::SlowClose,
    /// What an unlucky system could fill the log with.
    unwatched: Warning,
}

impl<W: World> Connections<W> {
    /// None yet, from `now` on.
    pub fn new(rules: Rules, slow_close: W::SlowClose, now: Time) -> Self {
        let (ends, unwatched) = (Ends::default(), Warning::default());
        Connections { table: Table::new(rules, now), ends, slow_close, unwatched }
    }

    /// How many linger.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether none lingers.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// How they ended so far.
    pub fn ends(&self) -> &Ends {
        &self.ends
    }

    /// When, after `now`, the next one wants to be looked at: now and then somewhat too early, never
    /// too late.
    pub fn next(&self, now: Time) -> Option<Time> {
        self.table.next(now)
    }

    /// Descriptors that are no connections and are being closed, which can take long.
    pub fn closing(&self) -> usize {
        self.slow_close.waiting()
    }

    /// Closes what nobody waits for, which can take long.
    pub fn close_slowly(&mut self, received: W::Received) {
        self.slow_close.close(received);
    }

    /// Looks at a connection that the backend reported. Nothing happens if it has gone meanwhile.
    pub fn ready(&mut self, entry: Entry, backend: &mut W::Backend, now: Time) {
        self.step(entry, Event::Readable, backend, now);
    }

    /// Looks at those whose time has come, at most as many as have their turn at once; the others are
    /// due still. Returns how many it were.
    pub fn expire(&mut self, backend: &mut W::Backend, now: Time) -> usize {
        for looked_at in 0..EXPIRE_BUDGET {
            let Some(entry) = self.table.due(now) else { return looked_at };
            self.step(entry, Event::Due, backend, now);
        }
        EXPIRE_BUDGET
    }

    /// Evicts connections until no more than `most` linger.
    pub fn evict(&mut self, most: usize, backend: &mut W::Backend, now: Time) {
        while self.table.len() > most {
            let Some(entry) = self.table.oldest(now) else { return };
            self.close(entry, Reason::Evicted, backend, now);
        }
    }

    /// Ends all of them.
    pub fn stop(&mut self, backend: &mut W::Backend, now: Time) {
        while let Some(entry) = self.table.oldest(now) {
            self.close(entry, Reason::Stopped, backend, now);
        }
    }

    /// Ends one that lingers.
    fn close(&mut self, entry: Entry, reason: Reason, backend: &mut W::Backend, now: Time) {
        if let Some((socket, linger)) = self.table.remove(entry) {
            // Fails only for the one that could not be added.
            let _ = backend.remove(&socket);
            self.end(socket, linger, reason, now);
        }
    }

    /// Counts a connection and closes it.
    fn end(&mut self, socket: W::Socket, linger: Linger, reason: Reason, now: Time) {
        let unread = reason.is_ours() && socket.has_unread();
        let unacknowledged = reason.is_ours() && socket.is_acknowledged() == Some(false);
        self.ends.count(reason, unread || unacknowledged);
        if log::log_enabled!(log::Level::Debug) {
            let peer = socket.peer().map_or_else(|_| "client".to_owned(), |peer| peer.to_string());
            debug!(
                "{peer}: {} after {:.2} s{}",
                reason.name(),
                Duration::from(now.since(linger.handed_over)).as_secs_f64(),
                match (unacknowledged, unread) {
                    (true, _) => ", perhaps cut short: the client has not acknowledged everything",
                    (false, true) => ", perhaps cut short: the client was still sending",
                    (false, false) => "",
                }
            );
        }
        socket.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::time::Span;
    use crate::start::Kernel;
    use crate::stats::Moment;
    use lingerd_platform::backend::System;
    use lingerd_platform::closing::Thread;
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::thread;

    #[test]
    fn what_was_unread_when_it_was_closed_counts_as_cut_short() {
        let [idle, max, limit] = [5, 30, 300].map(Span::from_secs);
        let now = Time::from_ticks(0);
        let mut backend = System::new().unwrap();
        let rules = Rules { idle, max, limit };
        let mut connections = Connections::<Kernel>::new(rules, Thread::default(), now);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for (late, cut_short) in [(&b""[..], 0), (b"x", 1)] {
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let server = listener.accept().unwrap().0;
            server.shutdown(Shutdown::Write).unwrap();
            client.read_to_end(&mut Vec::new()).unwrap();
            while server.is_acknowledged() == Some(false) {
                thread::yield_now();
            }
            assert!(connections.admit(server.into(), 100, &mut backend, now));
            let entry = connections.table.oldest(now).unwrap();
            client.write_all(late).unwrap();
            while !late.is_empty() && !connections.table.get(entry).unwrap().0.has_unread() {
                thread::yield_now();
            }
            connections.close(entry, Reason::Max, &mut backend, now);
            let ends = connections.ends();
            let moment = Moment { ends, lingering: 0, senders: 0, protocol_errors: 0, uptime: 0 };
            assert_eq!(moment.snapshot().get("cut_short"), Some(cut_short));
        }
    }
}
