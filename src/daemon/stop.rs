// SPDX-License-Identifier: BSD-3-Clause

//! The stop: whoever has handed over is parted with, and what lingers has a while, or none.

use super::{Daemon, is_passing};
use crate::source::{Source, Speech};
use lingerd_platform::fdpass::Link;
use lingerd_platform::manager::Notice;
use lingerd_platform::world::World;
use log::{info, warn};
use std::io::ErrorKind;
use std::time::Duration;

/// Senders that are let in at the stop, who have waited.
const WAITING_BUDGET: usize = 1 << 16;

impl<W: World> Daemon<W> {
    /// The first time: takes no more hand-offs, but what was handed over before is lingered on for a
    /// while. The second time: ends everything.
    pub fn stop(&mut self) {
        if self.is_stopping() {
            return self.end("told to stop at once");
        }
        self.end_at = Some(self.clock.now() + self.drain.most());
        (self.tell)(Notice::Stopping(self.connections.len()));
        self.senders.shut_door(&mut self.backend);
        if self.senders.door_is_shared() {
            // Who waits there has not been allowed anything, and is the next one's.
            self.senders.close_door(Speech::Spool, &mut self.backend);
        }
        for sender in self.senders.all() {
            self.part_with(sender);
        }
        Speech::ALL.into_iter().for_each(|speech| self.part_with_waiting(speech));
        self.connections.stop_parking();
        info!(
            "told to stop: {} connections are still lingering, for {:.1} s at most",
            self.connections.len(),
            Duration::from(self.drain).as_secs_f64()
        );
    }

    /// Parts with those who wait at the door that was shut, and closes it. Where somebody cannot be let in for
    /// want of something, that is tried again later. At a door that is shared others may come at any time: they
    /// are parted with too, until the end, as nobody else would linger on what they send.
    pub(super) fn part_with_waiting(&mut self, speech: Speech) {
        let now = self.clock.now();
        // More than any kernel lets wait: all of them, where none can be added to them meanwhile.
        for _ in 0..WAITING_BUDGET {
            match self.senders.accept(speech, now) {
                // One at a time, as there may be more of them than there is room for.
                Ok(Ok(sender)) => drop(self.part_with(sender)),
                Ok(Err(refused)) => self.connections.close_slowly(refused),
                Err(e) if is_passing(&e) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock && self.senders.door_is_shared() => return,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => {
                    self.senders.leave_door(speech, &mut self.backend);
                    return self.retry.door(Source::Door(speech), now, "let in who waits at the end", &e);
                }
            }
        }
        self.senders.close_door(speech, &mut self.backend);
    }

    /// Ends everything.
    pub(super) fn end(&mut self, why: &str) {
        self.end_at = Some(self.clock.now());
        for speech in Speech::ALL {
            self.part_with_waiting(speech);
            self.senders.close_door(speech, &mut self.backend); // there is no later
        }
        for sender in self.senders.all() {
            self.part_with(sender);
            // One that could not be read has something queued, and nobody will take it any more.
            if let Some(link) = self.dismiss(sender) {
                self.connections.close_slowly(link.into_received());
            }
        }
        if !self.connections.is_empty() {
            warn!("{why}: {} connections are cut off", self.connections.len());
        }
        self.connections.stop(&mut self.backend, self.clock.now());
    }
}
