// SPDX-License-Identifier: BSD-3-Clause

//! One look at one connection: reads, asks, and does what the rules say.
//!
//! Must not know why it is looked at.

use super::Connections;
use crate::rules::event::{Action, Event, Reason};
use crate::rules::linger::{Linger, Rules};
use crate::rules::time::Time;
use crate::source::{Entry, Source};
use lingerd_platform::backend::{Backend, Interest};
use lingerd_platform::tcp::Tcp;
use lingerd_platform::world::World;
use std::io::{self, ErrorKind};

/// Reads of one connection in one turn, each of at most [`lingerd_platform::tcp::DISCARD_BYTES`].
pub(super) const READ_BUDGET: usize = 4;

/// What a look at a connection came to.
pub(super) struct Look {
    /// Until when it waits, or why it is to end.
    pub verdict: Result<Time, Reason>,
    /// The bytes that were read and thrown away.
    pub discarded: u64,
    /// Whether the system was too short of memory for a read.
    pub no_memory: bool,
}

impl<W: World> Connections<W> {
    /// Feeds `event` to one connection and does what comes of it. Nothing happens if it has gone.
    pub(super) fn step(&mut self, entry: Entry, event: Event, backend: &mut W::Backend, now: Time) {
        let Some((socket, mut linger)) = self.table.get(entry) else { return };
        let rules = self.table.rules();
        let action = linger.on(event, now, rules);
        let look = look(socket, &mut linger, action, now, rules);
        self.ends.discarded(look.discarded);
        match look.verdict {
            Ok(due) => self.table.note(entry, linger, due),
            Err(reason) => return self.close(entry, reason, backend, now),
        }
        if event != Event::Readable {
            return; // the backend has not reported it, and reports it still
        }
        let Some((socket, _)) = self.table.get(entry) else { return };
        if look.no_memory {
            let _ = backend.remove(socket); // else it is reported again and again
            return self.cannot_wait(&ErrorKind::OutOfMemory.into(), now);
        }
        if look.discarded == 0 {
            socket.drain_errors(); // ready, but with nothing to read
        }
        if let Err(e) = backend.rearm(socket, Source::Connection(entry).token(), Interest::Read) {
            self.cannot_wait(&e, now);
        }
    }

    /// Of a connection that the system has no room for: its deadlines read and close it.
    pub(super) fn cannot_wait(&mut self, error: &io::Error, now: Time) {
        self.unwatched.warn(now, format_args!("cannot wait for a connection: {error}"));
    }
}

/// Does with one socket what the rules say, first `action` and then what comes of it, within this
/// turn's budget, until they want to wait or to close.
pub(super) fn look<S: Tcp>(
    socket: &S,
    linger: &mut Linger,
    mut action: Action,
    now: Time,
    rules: &Rules,
) -> Look {
    let mut budget = READ_BUDGET;
    let (mut discarded, mut no_memory) = (0, false);
    loop {
        let event = match action {
            // The rest is still there in the next turn, and the backend says so.
            Action::Read if budget == 0 => Event::Quiet,
            Action::Read => {
                budget -= 1;
                let read = socket.discard();
                discarded += *read.as_ref().unwrap_or(&0) as u64;
                no_memory |= read.as_ref().is_err_and(|e| e.kind() == ErrorKind::OutOfMemory);
                outcome(&read)
            }
            Action::Ask => Event::Acknowledged(socket.is_acknowledged()),
            Action::Wait(due) => return Look { verdict: Ok(due), discarded, no_memory },
            Action::Close(reason) => return Look { verdict: Err(reason), discarded, no_memory },
        };
        action = linger.on(event, now, rules);
    }
}

/// What one read means to the rules.
pub(super) fn outcome(read: &io::Result<usize>) -> Event {
    match read {
        Ok(0) => Event::End,
        Ok(_) => Event::Received,
        // A kernel that is short of memory has taken nothing: the connection is as it was.
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::OutOfMemory) => Event::Quiet,
        Err(_) => Event::Failed,
    }
}
