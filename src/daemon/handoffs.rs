// SPDX-License-Identifier: BSD-3-Clause

//! Who hands over: letting in, taking what is said over, and parting.
//!
//! Decides how much of whom is taken at once, and who has to wait; what becomes of it is the connections'.

use super::{Daemon, SUMMARY_EVERY, is_passing};
use crate::connections::spool::{Extent, Response};
use crate::retry::AGAIN;
use crate::rules::time::{Span, Time};
use crate::senders::intake::Said;
use crate::senders::protocol::{self, Message, Spool};
use crate::source::{Sender, Source, Speech};
use crate::stats::forms::Format;
use crate::ticket::Ticket;
use lingerd_platform::fdpass::{self, Link};
use lingerd_platform::world::World;
use std::io::{self, ErrorKind};

/// Sockets of one sender in one turn; its last message may bring more.
pub(super) const SOCKET_BUDGET: usize = 256;
/// Sockets of one sender that are taken when it is parted with, more than any kernel queues: all of
/// them, where it can add none to them meanwhile.
const PARTING_BUDGET: usize = 256 * fdpass::MAX_DESCRIPTORS;
/// Senders let in in one turn.
const ACCEPT_BUDGET: usize = 64;
/// How often to look whether a server is there again that was given up, for those who are not told of what they have
/// parked for it.
const LOOK_EVERY: Span = Span::from_secs(10);

impl<W: World> Daemon<W> {
    /// Lets waiting senders in.
    pub(super) fn accept(&mut self, speech: Speech) {
        let now = self.clock.now();
        for _ in 0..ACCEPT_BUDGET {
            // Whoever is refused may have sent what is slow to close, and must not fill the table with it.
            let accepted = match self.connections.is_clogged() {
                true => Err(io::Error::other("there are too many files to close first")),
                false => self.senders.accept(speech, now),
            };
            match accepted {
                Ok(Ok(sender)) => {
                    if let Err(e) = self.senders.watch(sender, &mut self.backend) {
                        self.retry.backend(Source::Sender(sender), now, &e);
                    }
                    self.part_with_the_silent();
                }
                Ok(Err(refused)) => self.connections.close_slowly(refused),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if is_passing(&e) => {}
                Err(e) => {
                    self.senders.leave_door(speech, &mut self.backend);
                    return self.retry.door(Source::Door(speech), now, "let a sender in", &e);
                }
            }
            self.connections.make_room(0, self.others(), &mut self.backend, now);
        }
    }

    /// Parts with senders where there are too many. They make room for one with something to say, and come
    /// again when they have.
    pub(super) fn part_with_the_silent(&mut self) {
        while self.senders.len() > self.connections.room().senders() {
            let Some(sender) = self.senders.most_silent() else { break };
            if !self.part_with(sender) {
                break;
            }
        }
    }

    /// Reads from `sender` until it has nothing more to say or has said so much: `budget` counts
    /// sockets, and a message counts as one at least. Returns what there was last.
    pub(super) fn receive(&mut self, sender: Sender, budget: usize) -> Said {
        let now = self.clock.now();
        let (mut left, mut messages) = (budget, 0);
        loop {
            let said = self.senders.receive(sender, &mut self.received, now);
            let many = self.received.len().max(1);
            let is_quick = match &said {
                Said::Nothing if self.must_not_stay_half_way(sender) => {
                    self.senders.warn(now, "half a message");
                    self.hang_up(sender);
                    return Said::Gone;
                }
                Said::Nothing | Said::NotNow => {
                    self.senders.was_read(sender, self.rounds, false, messages);
                    self.acknowledge(sender, now);
                    return said;
                }
                Said::Gone => {
                    // It may only have been silenced, and others may have a copy of its link.
                    let _ = self.senders.acknowledge(sender);
                    drop(self.dismiss(sender)); // nothing is queued in it
                    self.refuse_received(); // some systems deliver descriptors with the end
                    return said;
                }
                Said::Message(Message::Linger { .. }) => self.admit_received(),
                Said::Spool(spool) => self.admit_spool(spool),
                Said::Park(ticket) => self.admit_park(sender, *ticket),
                Said::Message(Message::Ask(format)) => {
                    self.tell_sender(sender, *format);
                    return Said::Gone;
                }
                Said::Message(_) => {
                    self.refuse_received();
                    self.hang_up(sender);
                    return Said::Gone;
                }
            };
            if !is_quick && self.connections.is_clogged() {
                self.senders.warn(now, "more files than can be closed");
                self.hang_up(sender);
                return Said::Gone;
            }
            self.work += many;
            messages += 1;
            left = left.saturating_sub(many);
            if left == 0 {
                self.senders.was_read(sender, self.rounds, true, messages);
                self.acknowledge(sender, now);
                return said;
            }
        }
    }

    /// Tells the counters to one who has asked for them where senders come in, and is none any more.
    fn tell_sender(&mut self, sender: Sender, format: Format) {
        if let Some(link) = self.senders.take(sender, &mut self.backend) {
            self.tell(link, self.snapshot().render(format), true);
        }
    }

    /// Tells a sender what of his was parked.
    pub(super) fn acknowledge(&mut self, sender: Sender, now: Time) {
        if let Err(e) = self.senders.acknowledge(sender) {
            self.retry.door(Source::Sender(sender), now, "tell a sender what was parked", &e);
        }
    }

    /// Looks for the servers that were given up, and tells those who have parked for one that is there again. Who is told
    /// nothing parks nothing any more, so that nothing else would have it looked for.
    pub(super) fn look_for_servers(&mut self) {
        let now = self.clock.now();
        self.look_at = None;
        for way in self.senders.withheld() {
            if self.connections.is_back(way) {
                for sender in self.senders.release(way) {
                    self.acknowledge(sender, now);
                }
            } else {
                self.look_at = Some(now + LOOK_EVERY);
            }
        }
    }

    /// Whether a sender has said half a message, where so many are half said that there is room for little else.
    fn must_not_stay_half_way(&self, sender: Sender) -> bool {
        self.senders.begun() > self.connections.room().message() && self.senders.is_half_way(sender)
    }

    /// Allows those who wait for it to hand over a response, as far as there is room: one each, and they write
    /// themselves until then. Room is what is not held of -M, and what is not taken of the half of the table that
    /// responses may have. Where those have it who were allowed one and have none to hand over, they are parted with,
    /// one after the other: they come again when they have.
    pub(super) fn give_credit(&mut self) {
        let now = self.clock.now();
        let door = Source::Door(Speech::Spool);
        while self.senders.want_credit() && !self.is_stopping() {
            if self.has_room_for_spool(self.senders.credit()) {
                if let Err((sender, e)) = self.senders.give_credit(now) {
                    return self.retry.door(
                        Source::Sender(sender),
                        now,
                        "tell a sender that it may hand over",
                        &e,
                    );
                }
            } else if self.senders.credit() > 0 && self.has_room_for_spool(0) {
                match self.senders.hoarder(AGAIN, now) {
                    Some(sender) if self.part_with(sender) => {}
                    _ => return self.retry.later(door, now),
                }
            } else {
                return;
            }
        }
    }

    /// Whether there is for one more, beside so many that were promised.
    fn has_room_for_spool(&self, promised: usize) -> bool {
        self.connections.held_with(promised) < self.most_held
            && !self.connections.has_files_enough()
            && self.connections.has_room_for_spool(promised, self.others() + promised * protocol::FILES)
    }

    /// Leaves a sender that cannot be read alone for a second: it would be reported again and again.
    pub(super) fn not_now(&mut self, sender: Sender) {
        self.senders.leave(sender, &mut self.backend);
        self.retry.later(Source::Sender(sender), self.clock.now());
    }

    /// Lets go of a sender, and refuses what came with half a message.
    pub(super) fn dismiss(&mut self, sender: Sender) -> Option<W::Link> {
        self.senders.take_begun(sender, &mut self.received);
        self.refuse_received();
        self.senders.take(sender, &mut self.backend)
    }

    /// Takes over what came with a message, and tells whether nothing of it may take long to close.
    fn admit_received(&mut self) -> bool {
        let now = self.clock.now();
        self.summary_at.get_or_insert(now + SUMMARY_EVERY);
        let mut all = true;
        self.received.reverse(); // as it is taken from the end, and the first is to be the oldest
        while let Some(descriptor) = self.received.pop() {
            all &= self.connections.admit(descriptor, self.others(), &mut self.backend, now);
        }
        all
    }

    /// Takes over a connection whose response is still to be written, and tells the same.
    #[inline(never)]
    fn admit_spool(&mut self, spool: &Spool) -> bool {
        let (now, others) = (self.clock.now(), self.others());
        self.summary_at.get_or_insert(now + SUMMARY_EVERY);
        let mut received = self.received.drain(..);
        let Some(socket) = received.next() else { return true }; // there are two at least
        let extent = |(file, &protocol::Extent { offset, length, is_ours })| Extent {
            file,
            offset,
            left: length,
            is_ours,
        };
        let response = Response { socket, files: received.zip(&spool.extents).map(extent).collect() };
        let patience = Span::at_least(spool.patience);
        let (is_quick, work) =
            self.connections.admit_spool(response, patience, others, &mut self.backend, now);
        self.work += work;
        is_quick
    }

    /// Takes over a connection whose server waits for its client, and tells the same.
    fn admit_park(&mut self, sender: Sender, ticket: Ticket) -> bool {
        if !self.connections.may_park(ticket.way()) {
            self.senders.withhold(sender, ticket.way());
            self.look_at.get_or_insert(self.clock.now() + LOOK_EVERY);
        }
        let (now, others) = (self.clock.now(), self.others());
        self.summary_at.get_or_insert(now + SUMMARY_EVERY);
        let Some(socket) = self.received.pop() else { return true }; // there is one
        self.connections.admit_park(socket, ticket, others, &mut self.backend, now)
    }

    /// Descriptors that senders have, and those who are still told what they have asked for.
    pub(super) fn others(&self) -> usize {
        self.senders.len() + self.senders.begun() + self.control.told()
    }

    /// Refuses what came with a message that is none.
    pub(super) fn refuse_received(&mut self) {
        for descriptor in self.received.drain(..) {
            self.connections.refuse(descriptor, "sent with a malformed message");
        }
    }

    /// Hangs up on a sender that cannot be believed, and refuses what it has still sent. The kernel,
    /// when it closes what nobody has read, could be made to wait: it is not to do so here.
    pub(super) fn hang_up(&mut self, sender: Sender) {
        for _ in 0..parting_budget(self.senders.silence(sender)) {
            if self.connections.is_clogged() {
                break;
            }
            let (Said::Message(_) | Said::Spool(_) | Said::Park(_)) =
                self.senders.read(sender, &mut self.received)
            else {
                break;
            };
            self.refuse_received();
        }
        self.refuse_received(); // what may have come with the end
        if let Some(link) = self.dismiss(sender) {
            self.connections.close_slowly(link.into_received());
        }
    }

    /// Takes over what a sender has sent so far, and parts with it. On a system on which it can still
    /// talk meanwhile it must not be able to stay for ever. If it cannot be read now it stays for now, and
    /// the answer is no.
    pub(super) fn part_with(&mut self, sender: Sender) -> bool {
        if self.receive(sender, parting_budget(self.senders.silence(sender))) == Said::NotNow {
            self.not_now(sender);
            return false;
        }
        // It was read to its end, unless it could not be silenced.
        if let Some(link) = self.dismiss(sender) {
            self.connections.close_link(link);
        }
        true
    }
}

/// How much to read of a sender that is parted with.
fn parting_budget(is_silenced: bool) -> usize {
    if is_silenced { usize::MAX } else { PARTING_BUDGET }
}
