// SPDX-License-Identifier: BSD-3-Clause

//! Who is connected, and what they have said: letting in, reading, and parting.
//!
//! Must not know what a message is about.

use super::protocol::{self, Message};
use crate::guard::{Allowed, Guard};
use crate::retry::Warning;
use crate::rules::time::Time;
use crate::source::{Sender, Source};
use crate::watched::Watched;
use lingerd_platform::fdpass::{Door, Link};
use lingerd_platform::world::World;
use slotmap::SlotMap;
use std::io::{self, ErrorKind};

/// The connection of a sender.
struct Peer<L> {
    link: Watched<L>,
    /// [`Senders::messages`] as of its last one.
    last: u64,
}

/// What there is to read from a sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// A message; the descriptors that came with it were appended to the caller's list, also those of
    /// what is malformed.
    Message(Message),
    /// Nothing more for now.
    Nothing,
    /// The system is short of memory, and there may be more.
    NotNow,
    /// The connection is gone.
    Gone,
}

/// See the module's head.
pub struct Senders<W: World> {
    /// `None` once nobody else is let in.
    door: Option<Watched<W::Door>>,
    /// Whether only those are let in who wait already.
    is_shut: bool,
    /// Whether a service manager listens there too, so that it cannot be shut.
    is_shared: bool,
    guard: Guard,
    senders: SlotMap<Sender, Peer<W::Link>>,
    /// Grows with each message and each sender, to tell who has been silent for the longest.
    messages: u64,
    protocol_errors: u64,
    malformed: Warning,
    truncated: Warning,
    not_believed: Warning,
}

impl<W: World> Senders<W> {
    /// Nobody yet, and the door is shut; [`watch_door`](Self::watch_door) opens it for those who are
    /// `allowed`. A door that `is_shared` with a service manager is left to it at the end.
    pub fn new(door: W::Door, is_shared: bool, allowed: Allowed) -> Self {
        Senders {
            door: Some(Watched::new(door, Source::Door)),
            is_shut: false,
            is_shared,
            guard: Guard::new(allowed, "hand over; -a says who may"),
            senders: SlotMap::with_key(),
            messages: 0,
            protocol_errors: 0,
            malformed: Warning::default(),
            truncated: Warning::default(),
            not_believed: Warning::default(),
        }
    }

    /// How many are connected.
    pub fn len(&self) -> usize {
        self.senders.len()
    }

    /// Whether nobody is connected, nor may wait at a door that is shut.
    pub fn is_empty(&self) -> bool {
        self.senders.is_empty() && !self.may_wait()
    }

    /// Whether somebody may wait at a door that is shut, who is not for somebody else.
    pub fn may_wait(&self) -> bool {
        self.is_shut && self.door.is_some() && !self.is_shared
    }

    /// Whether a service manager listens at the door too.
    pub fn door_is_shared(&self) -> bool {
        self.is_shared
    }

    /// Messages that were not of the protocol, or that the kernel cut short.
    pub fn protocol_errors(&self) -> u64 {
        self.protocol_errors
    }

    /// How many were hung up on at the door.
    pub fn refused(&self) -> u64 {
        self.guard.refused()
    }

    /// Has who knocks reported (again), unless nobody else is let in.
    ///
    /// # Errors
    /// As [`Watched::watch`].
    pub fn watch_door(&mut self, backend: &mut W::Backend) -> io::Result<()> {
        self.door.as_mut().map_or(Ok(()), |door| door.watch(backend))
    }

    /// Leaves those who knock waiting until [`watch_door`](Self::watch_door): for the moment in which
    /// nobody can be served.
    pub fn leave_door(&mut self, backend: &mut W::Backend) {
        if let Some(door) = &mut self.door {
            door.leave(backend);
        }
    }

    /// Lets one in, and [`watch`](Self::watch) has it reported; or returns the connection of one that may
    /// not hand over, which is to be closed: that may take long, as it closes what is queued in it.
    ///
    /// # Errors
    /// As [`Door::accept`].
    pub fn accept(&mut self, now: Time) -> io::Result<Result<Sender, W::Received>> {
        let Some(door) = &self.door else { return Err(ErrorKind::WouldBlock.into()) };
        let link = door.get().accept()?;
        if !self.guard.lets_in(&link, now) {
            return Ok(Err(link.into_received()));
        }
        Ok(Ok(self.add(link)))
    }

    /// Adds one that a predecessor has let in; [`watch`](Self::watch) has it reported. Of those added one
    /// after the other the first counts as the most silent one.
    pub fn add(&mut self, link: W::Link) -> Sender {
        self.messages += 1; // the one that comes is not the one that was silent
        self.senders.insert_with_key(|sender| {
            let link = Watched::new(link, Source::Sender(sender));
            Peer { link, last: self.messages }
        })
    }

    /// Where they come in, unless nobody else may.
    pub fn door(&self) -> Option<&W::Door> {
        self.door.as_ref().filter(|_| !self.is_shut).map(Watched::get)
    }

    /// Every sender's connection, the one that has been silent for the longest first.
    pub fn by_silence(&self) -> Vec<&W::Link> {
        let mut peers: Vec<_> = self.senders.values().collect();
        peers.sort_by_key(|peer| peer.last);
        peers.into_iter().map(|peer| peer.link.get()).collect()
    }

    /// Counts on from where a predecessor has stopped.
    pub fn count_on(&mut self, protocol_errors: u64, refused: u64) {
        self.protocol_errors = protocol_errors;
        self.guard.count_on(refused);
    }

    /// Has what `sender` says reported (again). One that has gone is none.
    ///
    /// # Errors
    /// As [`Watched::watch`]. What it has said can still be read.
    pub fn watch(&mut self, sender: Sender, backend: &mut W::Backend) -> io::Result<()> {
        self.senders.get_mut(sender).map_or(Ok(()), |peer| peer.link.watch(backend))
    }

    /// Has `sender` not reported until [`watch`](Self::watch).
    pub fn leave(&mut self, sender: Sender, backend: &mut W::Backend) {
        if let Some(peer) = self.senders.get_mut(sender) {
            peer.link.leave(backend);
        }
    }

    /// The one that has been silent for the longest.
    pub fn most_silent(&self) -> Option<Sender> {
        self.senders.iter().min_by_key(|(_, peer)| peer.last).map(|(sender, _)| sender)
    }

    /// Reads one message of `sender`, and counts it. What came along is appended to `received`.
    pub fn receive(&mut self, sender: Sender, received: &mut Vec<W::Received>, now: Time) -> Said {
        let before = received.len();
        let said = self.read(sender, received);
        match said {
            Said::Message(Message::Linger { truncated: false }) => {}
            Said::Message(message) => self.count_error(message, received.len() - before, now),
            Said::Nothing | Said::NotNow | Said::Gone => {}
        }
        said
    }

    /// Counts a message that is not as it should be, or that did not arrive so.
    #[cold]
    fn count_error(&mut self, message: Message, arrived: usize, now: Time) {
        self.protocol_errors += 1;
        match message {
            Message::Malformed(what) => {
                self.malformed.warn(now, format_args!("a sender sent {what}; hung up on it"));
            }
            _ => self.truncated.warn(
                now,
                format_args!(
                    "a message with more sockets than the descriptor limit has room for: \
                     {arrived} of them arrived, the system closed the others; raise the limit"
                ),
            ),
        }
    }

    /// Reads one message of a sender that is not believed any more: nothing is counted.
    pub fn read(&mut self, sender: Sender, received: &mut Vec<W::Received>) -> Said {
        let Some(peer) = self.senders.get_mut(sender) else {
            return Said::Nothing; // a stale event
        };
        let before = received.len();
        let said = loop {
            match peer.link.get().receive(received) {
                Ok(said) => break said,
                Err(e) => match e.kind() {
                    ErrorKind::WouldBlock => return Said::Nothing,
                    ErrorKind::Interrupted => {}
                    ErrorKind::OutOfMemory => return Said::NotNow,
                    _ => return Said::Gone,
                },
            }
        };
        match protocol::read(said, received.len() - before) {
            Message::End => Said::Gone,
            message => {
                self.messages += 1;
                peer.last = self.messages;
                Said::Message(message)
            }
        }
    }

    /// Says why some sender is not believed any more, though its messages are as they should be.
    pub fn warn(&mut self, now: Time, why: &str) {
        self.not_believed.warn(now, format_args!("a sender sent {why}; hung up on it"));
    }

    /// Lets `sender` say nothing more, and tells whether that is certain. What it has said can still
    /// be read, and must be before [`dismiss`](Self::dismiss): the sender has closed its copies, and
    /// nobody else would linger.
    pub fn silence(&self, sender: Sender) -> bool {
        self.senders.get(sender).is_none_or(|peer| peer.link.get().silence())
    }

    /// Parts with `sender`. What is returned ends the connection when it is closed, which closes
    /// whatever is still queued in it.
    pub fn dismiss(&mut self, sender: Sender, backend: &mut W::Backend) -> Option<W::Received> {
        let peer = self.senders.remove(sender)?;
        Some(peer.link.into_inner(backend).into_received())
    }

    /// Lets nobody else knock, unless the door is shared. Those who already wait can still be [`accept`](Self::accept)ed, and
    /// have to be, as with [`silence`](Self::silence), before [`close_door`](Self::close_door).
    pub fn shut_door(&mut self, backend: &mut W::Backend) {
        self.is_shut = true;
        if let Some(door) = self.door.as_mut().filter(|_| !self.is_shared) {
            door.leave(backend);
            door.get().shut();
        }
    }

    /// Lets nobody else in.
    pub fn close_door(&mut self, backend: &mut W::Backend) {
        self.leave_door(backend);
        self.door = None;
    }

    /// Whether anybody may still knock.
    pub fn has_door(&self) -> bool {
        self.door().is_some()
    }

    /// Every sender.
    pub fn all(&self) -> Vec<Sender> {
        self.senders.keys().collect()
    }
}
