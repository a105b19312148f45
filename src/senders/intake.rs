// SPDX-License-Identifier: BSD-3-Clause

//! Who is connected, and what they have said: letting in, reading, and parting.
//!
//! Must not know what a message is about.

use super::protocol::{self, FILES, HEAD, Head, Message, Spool};
use crate::guard::{Allowed, Guard};
use crate::retry::Warning;
use crate::rules::time::{Span, Time};
use crate::source::{Sender, Source, Speech};
use crate::ticket::{Ticket, Way};
use crate::watched::Watched;
use lingerd_platform::fdpass::{Door, Link};
use lingerd_platform::world::World;
use slotmap::SlotMap;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};

/// The connection of a sender.
struct Peer<L, R> {
    link: Watched<L>,
    speech: Speech,
    credit: Credit,
    /// What has come so far of a message that is not complete, and what came with it.
    begun: Option<Box<Begun<R>>>,
    /// How many of his connections were parked that he was not told of.
    owed: usize,
    /// Of how many for each server he is to be told only when that is there again.
    withheld: BTreeMap<Way, usize>,
    /// [`Senders::messages`] as of its last one.
    last: u64,
    /// In which round it was left with perhaps more to say; 0 if it was not.
    left: u64,
    /// Whether it had more than one message when it was read to the end.
    says_much: bool,
}

/// What is known of a sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// What it speaks.
    pub speech: Speech,
    /// Whether it has been allowed an `S` that it has not said yet.
    pub may_spool: bool,
    /// How many of its connections were parked that it was not told of.
    pub owed: usize,
}

/// Whether a sender may say `S`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Credit {
    /// It has been told so then, and has not said one since.
    Given(Time),
    /// It may not yet: it is the one after those who have a lower number.
    Wanted(u64),
    /// It says one just now; or it is one who lingers only.
    None,
}

impl Credit {
    const fn is_given(self) -> bool {
        matches!(self, Credit::Given(_))
    }
}

/// What is said at once of what was parked.
const TAKEN: [u8; 64] = [protocol::TAKEN; 64];

/// The beginning of an `S`, `K` or `H`.
struct Begun<R> {
    head: [u8; HEAD],
    length: usize,
    descriptors: Vec<R>,
}

/// What there is to read from a sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// A message; the descriptors that came with it were appended to the caller's list, also those of
    /// what is malformed.
    Message(Message),
    /// An `S`, whose socket and files were appended in this order.
    Spool(Spool),
    /// A `K` or an `H`, whose socket was appended.
    Park(Ticket),
    /// Nothing more for now.
    Nothing,
    /// The system is short of memory, and there may be more.
    NotNow,
    /// The connection is gone.
    Gone,
}

/// See the module's head.
pub struct Senders<W: World> {
    /// None of those where nobody else is let in.
    doors: [Option<Watched<W::Door>>; Speech::ALL.len()],
    /// Whether only those are let in who wait already.
    is_shut: bool,
    /// Whether a service manager listens there too, so that it cannot be shut.
    is_shared: bool,
    guard: Guard,
    senders: SlotMap<Sender, Peer<W::Link, W::Received>>,
    /// How many descriptors messages have brought that are not complete.
    begun: usize,
    /// Who is to be allowed an `S`, in this order; and how many have been, and have not said it yet.
    wanted: BTreeMap<u64, Sender>,
    given: usize,
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
    pub fn new(doors: [Option<W::Door>; 2], is_shared: bool, allowed: Allowed) -> Self {
        let [linger, spool] = doors;
        let watched = |speech| move |door| Watched::new(door, Source::Door(speech));
        Senders {
            doors: [linger.map(watched(Speech::Linger)), spool.map(watched(Speech::Spool))],
            is_shut: false,
            is_shared,
            guard: Guard::new(allowed, "hand over; -a says who may"),
            senders: SlotMap::with_key(),
            begun: 0,
            wanted: BTreeMap::new(),
            given: 0,
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
        self.is_shut && self.doors.iter().any(Option::is_some) && !self.is_shared
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
    pub fn watch_door(&mut self, speech: Speech, backend: &mut W::Backend) -> io::Result<()> {
        self.doors[speech as usize].as_mut().map_or(Ok(()), |door| door.watch(backend))
    }

    /// Leaves those who knock waiting until [`watch_door`](Self::watch_door): for the moment in which
    /// nobody can be served.
    pub fn leave_door(&mut self, speech: Speech, backend: &mut W::Backend) {
        if let Some(door) = &mut self.doors[speech as usize] {
            door.leave(backend);
        }
    }

    /// Lets one in, and [`watch`](Self::watch) has it reported; or returns the connection of one that may
    /// not hand over, which is to be closed: that may take long, as it closes what is queued in it.
    ///
    /// # Errors
    /// As [`Door::accept`].
    pub fn accept(&mut self, speech: Speech, now: Time) -> io::Result<Result<Sender, W::Received>> {
        let Some(door) = &self.doors[speech as usize] else { return Err(ErrorKind::WouldBlock.into()) };
        let link = door.get().accept()?;
        if !self.guard.lets_in(&link, now) {
            return Ok(Err(link.into_received()));
        }
        Ok(Ok(self.add(link, Facts { speech, may_spool: false, owed: 0 }, now)))
    }

    /// Adds one that a predecessor has let in, and has allowed an `S` perhaps; [`watch`](Self::watch) has it reported.
    /// Of those added one after the other the first counts as the most silent one, and is the first to be allowed one.
    pub fn add(&mut self, link: W::Link, facts: Facts, now: Time) -> Sender {
        let Facts { speech, may_spool, owed } = facts;
        self.messages += 1; // the one that comes is not the one that was silent
        let (last, begun, withheld) = (self.messages, None, BTreeMap::new());
        let sender = self.senders.insert_with_key(|sender| {
            let link = Watched::new(link, Source::Sender(sender));
            Peer {
                link,
                speech,
                credit: Credit::None,
                begun,
                owed,
                withheld,
                last,
                left: 0,
                says_much: false,
            }
        });
        if speech == Speech::Spool && may_spool {
            self.set_credit(sender, Credit::Given(now));
        } else if speech == Speech::Spool {
            self.set_credit(sender, Credit::Wanted(last));
        }
        sender
    }

    /// Makes `sender`'s credit what it is from now on.
    fn set_credit(&mut self, sender: Sender, credit: Credit) {
        let Some(peer) = self.senders.get_mut(sender) else { return };
        match std::mem::replace(&mut peer.credit, credit) {
            Credit::Given(_) => self.given -= 1,
            Credit::Wanted(number) => drop(self.wanted.remove(&number)),
            Credit::None => {}
        }
        match credit {
            Credit::Given(_) => self.given += 1,
            Credit::Wanted(number) => drop(self.wanted.insert(number, sender)),
            Credit::None => {}
        }
    }

    /// Whether somebody is to be allowed an `S`.
    pub fn want_credit(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// How many may say an `S` at any moment.
    pub fn credit(&self) -> usize {
        self.given
    }

    /// Of those who have been allowed one for so long the one that has been silent for the longest.
    pub fn hoarder(&self, patience: Span, now: Time) -> Option<Sender> {
        let hoards =
            |peer: &Peer<_, _>| matches!(peer.credit, Credit::Given(when) if now.since(when) >= patience);
        let hoarders = self.senders.iter().filter(|(_, peer)| hoards(peer));
        hoarders.min_by_key(|(_, peer)| peer.last).map(|(sender, _)| sender)
    }

    /// Allows the next one an `S`.
    ///
    /// # Errors
    /// The system is short of memory, and it can be tried again, with whom.
    pub fn give_credit(&mut self, now: Time) -> Result<(), (Sender, io::Error)> {
        let Some((_, &sender)) = self.wanted.first_key_value() else { return Ok(()) };
        let Some(peer) = self.senders.get(sender) else { return Ok(()) }; // who goes is wanted no more
        let told = loop {
            match peer.link.get().pass(&[protocol::GO_AHEAD], &[]) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                told => break told,
            }
        };
        match told {
            Ok(_) => self.set_credit(sender, Credit::Given(now)),
            Err(e) if e.kind() == ErrorKind::OutOfMemory => return Err((sender, e)),
            // It has gone, which will be read, or it has never read what it was told.
            Err(_) => self.set_credit(sender, Credit::None),
        }
        Ok(())
    }

    /// Tells `sender` how many of his connections were parked since he was told last. Whoever does not read that is told
    /// when he parks the next one.
    ///
    /// # Errors
    /// The system is short of memory, and it can be tried again.
    pub fn acknowledge(&mut self, sender: Sender) -> io::Result<()> {
        let Some(peer) = self.senders.get_mut(sender) else { return Ok(()) };
        while peer.owed > 0 {
            match peer.link.get().pass(&TAKEN[..peer.owed.min(TAKEN.len())], &[]) {
                Ok(told) => peer.owed -= told.min(peer.owed),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::OutOfMemory => return Err(e),
                Err(_) => break, // it has gone, which will be read, or it reads nothing
            }
        }
        Ok(())
    }

    /// Does not tell `sender` of the last one for now, which is of that server, and so has it park no more than it may
    /// without being told.
    pub fn withhold(&mut self, sender: Sender, way: Way) {
        if let Some(peer) = self.senders.get_mut(sender) {
            peer.owed = peer.owed.saturating_sub(1);
            *peer.withheld.entry(way).or_default() += 1;
        }
    }

    /// The servers of what was withheld.
    pub fn withheld(&self) -> BTreeSet<Way> {
        self.senders.values().flat_map(|peer| peer.withheld.keys()).copied().collect()
    }

    /// Withholds nothing of that server any more. Returns who is to be told of something.
    pub fn release(&mut self, way: Way) -> Vec<Sender> {
        let mut released = Vec::new();
        for (sender, peer) in &mut self.senders {
            if let Some(withheld) = peer.withheld.remove(&way) {
                peer.owed += withheld;
                released.push(sender);
            }
        }
        released
    }

    /// Where they come in, unless nobody else may.
    pub fn door(&self, speech: Speech) -> Option<&W::Door> {
        self.doors[speech as usize].as_ref().filter(|_| !self.is_shut).map(Watched::get)
    }

    /// Every sender's connection and what is known of it, the one that has been silent for the longest first.
    pub fn by_silence(&self) -> Vec<(&W::Link, Facts)> {
        let mut peers: Vec<_> = self.senders.values().collect();
        peers.sort_by_key(|peer| peer.last);
        let facts = |peer: &Peer<_, _>| Facts {
            speech: peer.speech,
            may_spool: peer.credit.is_given(),
            owed: peer.owed + peer.withheld.values().sum::<usize>(), // a successor knows of none that was given up
        };
        peers.into_iter().map(|peer| (peer.link.get(), facts(peer))).collect()
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

    /// Whether `sender` is to be read until it has nothing more to say. Most have said one thing, and to find that
    /// out costs as much as to read it. So one that lingers only is read once when it is reported, and what else it has said is
    /// reported in the next round: then it is read to the end, and so is one of which there was more the last time. (Of the
    /// others, what is said at once is judged at once: between two turns it may be allowed.) In a round each that is ready is
    /// reported once; it takes more than one turn where more are ready than one reports.
    pub fn says_more(&self, sender: Sender, round: u64) -> bool {
        let says_more = |peer: &Peer<_, _>| peer.says_much || peer.left != 0 && round - peer.left <= 1;
        self.senders.get(sender).is_some_and(|peer| peer.speech == Speech::Spool || says_more(peer))
    }

    /// Notes that `sender` was left in this round with perhaps more to say, or not, after so many messages.
    pub fn was_read(&mut self, sender: Sender, round: u64, is_left: bool, messages: usize) {
        if let Some(peer) = self.senders.get_mut(sender) {
            peer.left = if is_left { round } else { 0 };
            peer.says_much = messages > 1;
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
        match &said {
            Said::Message(Message::Linger { truncated: false } | Message::Ask(_)) => {}
            Said::Message(message) => self.count_error(message, received.len() - before, now),
            Said::Spool(_) | Said::Park(_) | Said::Nothing | Said::NotNow | Said::Gone => {}
        }
        said
    }

    /// Counts a message that is not as it should be, or that did not arrive so.
    #[cold]
    fn count_error(&mut self, message: &Message, arrived: usize, now: Time) {
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
        if let Some(begun) = peer.begun.take() {
            self.begun -= begun.descriptors.len();
            return self.read_on(sender, begun, received);
        }
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
        match protocol::read(said, received.len() - before, peer.speech) {
            Message::End => Said::Gone,
            Message::Head(protocol::SPOOL) if !peer.credit.is_given() => {
                Said::Message(Message::Malformed("'S' without having been allowed to"))
            }
            Message::Head(first) => {
                if first == protocol::SPOOL {
                    self.set_credit(sender, Credit::None);
                }
                let mut head = [0; HEAD];
                head[0] = first;
                let descriptors = received.drain(before..).collect();
                self.read_on(sender, Box::new(Begun { head, length: 1, descriptors }), received)
            }
            message => {
                self.messages += 1;
                peer.last = self.messages;
                Said::Message(message)
            }
        }
    }

    /// Reads the rest of a message that has begun, once that is there. It commonly is: senders say it in one call.
    fn read_on(
        &mut self,
        sender: Sender,
        mut begun: Box<Begun<W::Received>>,
        received: &mut Vec<W::Received>,
    ) -> Said {
        let Some(peer) = self.senders.get_mut(sender) else { return Said::Nothing };
        let what = loop {
            if begun.descriptors.len() > 1 + FILES {
                break Err("a message with too many descriptors");
            }
            if begun.length == HEAD {
                break protocol::head(begun.head, begun.descriptors.len());
            }
            match peer.link.get().hear(&mut begun.head[begun.length..], &mut begun.descriptors) {
                Ok(0) => break Err("half a message"),
                Ok(count) => begun.length += count,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::OutOfMemory) => {
                    self.begun += begun.descriptors.len();
                    peer.begun = Some(begun);
                    return if e.kind() == ErrorKind::WouldBlock { Said::Nothing } else { Said::NotNow };
                }
                Err(_) => break Err("half a message"),
            }
        };
        self.messages += 1;
        peer.last = self.messages;
        received.append(&mut begun.descriptors);
        match what {
            Ok(Head::Spool(spool)) => {
                let next = Credit::Wanted(self.messages);
                self.set_credit(sender, next);
                Said::Spool(spool)
            }
            Ok(Head::Park(ticket)) => {
                peer.owed += 1;
                Said::Park(ticket)
            }
            Err(why) => Said::Message(Message::Malformed(why)),
        }
    }

    /// Appends what came with a message of `sender` that is not complete: nobody will complete it, which counts as
    /// malformed.
    pub fn take_begun(&mut self, sender: Sender, received: &mut Vec<W::Received>) {
        if let Some(begun) = self.senders.get_mut(sender).and_then(|peer| peer.begun.take()) {
            self.begun -= begun.descriptors.len();
            received.extend(begun.descriptors);
            self.protocol_errors += 1;
        }
    }

    /// Those of whom half a message has come.
    pub fn half_way(&self) -> Vec<Sender> {
        let half = self.senders.iter().filter(|(_, peer)| peer.begun.is_some());
        half.map(|(sender, _)| sender).collect()
    }

    /// Whether half a message of his has come.
    pub fn is_half_way(&self, sender: Sender) -> bool {
        self.senders.get(sender).is_some_and(|peer| peer.begun.is_some())
    }

    /// How many descriptors messages have brought that are not complete.
    pub fn begun(&self) -> usize {
        self.begun
    }

    /// Says why some sender is not believed any more, though its messages are as they should be.
    pub fn warn(&mut self, now: Time, why: &str) {
        self.not_believed.warn(now, format_args!("a sender sent {why}; hung up on it"));
    }

    /// Lets `sender` say nothing more, and tells whether that is certain. What it has said can still
    /// be read, and must be before [`take`](Self::take): the sender has closed its copies, and
    /// nobody else would linger.
    pub fn silence(&self, sender: Sender) -> bool {
        self.senders.get(sender).is_none_or(|peer| peer.link.get().silence())
    }

    /// Parts with `sender`, of whom there is no half message. What is returned ends the connection when it is closed, which
    /// closes whatever is still queued in it.
    pub fn take(&mut self, sender: Sender, backend: &mut W::Backend) -> Option<W::Link> {
        self.set_credit(sender, Credit::None);
        let peer = self.senders.remove(sender)?;
        Some(peer.link.into_inner(backend))
    }

    /// Lets nobody else knock, unless the door is shared. Those who already wait can still be [`accept`](Self::accept)ed, and
    /// have to be, as with [`silence`](Self::silence), before [`close_door`](Self::close_door).
    pub fn shut_door(&mut self, backend: &mut W::Backend) {
        self.is_shut = true;
        for door in self.doors.iter_mut().flatten().filter(|_| !self.is_shared) {
            door.leave(backend);
            door.get().shut();
        }
    }

    /// Lets nobody else in.
    pub fn close_door(&mut self, speech: Speech, backend: &mut W::Backend) {
        self.leave_door(speech, backend);
        self.doors[speech as usize] = None;
    }

    /// Whether anybody may still knock.
    pub fn has_door(&self) -> bool {
        Speech::ALL.into_iter().any(|speech| self.door(speech).is_some())
    }

    /// Closes this process's copies of what another one has.
    pub fn close_copies(&mut self) {
        self.senders.clear();
    }

    /// Every sender.
    pub fn all(&self) -> Vec<Sender> {
        self.senders.keys().collect()
    }
}
