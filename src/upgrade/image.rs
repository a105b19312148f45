// SPDX-License-Identifier: BSD-3-Clause

//! What one daemon tells the next: frames of JSON, and the descriptors that go with each.
//!
//! A frame begins with its length in bytes and the number of its descriptors, each four bytes, the
//! most significant first. The descriptors are sent with its first byte. A field that is not known is
//! left out, one that is missing has a value that does no harm, and a frame that is not known is
//! skipped, with its descriptors.
//!
//! Must not know of sockets, or of who says it.

use crate::rules::linger::{Linger, Stage};
use crate::rules::park::{For, Park};
use crate::rules::spool::{Queued, Spool};
use crate::rules::time::{Span, Time};
use crate::stats::Snapshot;
use crate::ticket::{self, Ticket};
use serde::{Deserialize, Serialize};
use std::num::NonZeroU16;
use std::time::Duration;

/// What a successor says when everything is its own from now on.
pub const HAVE_IT: u8 = b'R';

/// What the one before it answers: that it is.
pub const GIVEN: u8 = b'G';

/// What that one says, at any time before, if it stays in charge.
pub const KEPT: u8 = b'N';

/// Bytes before a frame's JSON.
pub const HEAD: usize = 8;

/// No frame is longer: at most as many connections as go in one message.
pub const MOST_BYTES: usize = 1 << 20;

/// What a successor says first.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Request {
    /// Its version, for the log.
    pub version: String,
    /// Whether it wants to take over from one only that was told to stop.
    pub only_if_stopping: bool,
    /// Whether it can take over what is still to be written, and who hands that over.
    pub spools: bool,
    /// The same of what is parked.
    pub parks: bool,
}

/// What it is told.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "frame", rename_all = "snake_case")]
pub enum Frame {
    /// That there is nothing to take over: the daemon serves, and was not told to stop.
    Serving,
    /// What there is one of. Its descriptors are the `roles`, in this order.
    Household(Household),
    /// Senders' connections, the one that has been silent for the longest first.
    Senders {
        /// What is known of each.
        #[serde(default)]
        facts: Vec<SenderFacts>,
    },
    /// Connections whose response is still to be written, each followed by its files.
    Spools {
        /// What is known of each.
        #[serde(default)]
        facts: Vec<SpoolFacts>,
    },
    /// Connections that are parked, each followed by the link to the worker that it is offered to, if it is.
    Parks {
        /// What is known of each.
        #[serde(default)]
        facts: Vec<ParkFacts>,
    },
    /// Connections that linger, the one that was handed over first being the first of all.
    Connections {
        /// What is known of each.
        #[serde(default)]
        facts: Vec<Facts>,
    },
    /// That is all.
    End,
    /// Something that a later version says.
    #[serde(other)]
    Unknown,
}

/// See [`Frame::Household`].
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Household {
    /// What the descriptors are.
    pub roles: Vec<Role>,
    /// Where the pid file lies.
    pub pid_file: Option<String>,
    /// Whether a service manager listens at the door as well, and it is not for the daemon to remove.
    pub door_is_shared: bool,
    /// How long the daemon and those before it have served, in milliseconds.
    pub uptime: u64,
    /// The counters, as `lingerd -S` has them.
    pub counters: String,
}

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Where senders come in.
    Door,
    /// Where those come in who have a response that is still to be written.
    SpoolDoor,
    /// Where `lingerd -S`, `-k` and `-r` come in.
    Control,
    /// The pid file, with its lock.
    PidFile,
    /// Who has come in there and said nothing yet.
    Client,
    /// Something that a later version has.
    #[serde(other)]
    Unknown,
}

/// What is known of a sender.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SenderFacts {
    /// Whether it speaks at the second socket.
    pub spools: bool,
    /// Whether it has been allowed a response that it has not handed over yet.
    pub has_credit: bool,
    /// How many of its connections were parked that it was not told of.
    pub owed: usize,
}

/// What is known of a connection; the times are ages in milliseconds.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    handed_over: u64,
    asked: u64,
    heard: u64,
    /// What the answer was.
    stage: Known,
    /// How many seconds its sender gives it.
    #[serde(skip_serializing_if = "Option::is_none")]
    given: Option<NonZeroU16>,
}

/// What is known of a connection whose response is still to be written; times as in [`Facts`].
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SpoolFacts {
    /// When it was handed over.
    pub handed_over: u64,
    /// When it got on last.
    pub got_on: u64,
    /// When it was asked last what is not yet acknowledged, and what that would be now if nothing had been since.
    pub asked: u64,
    /// See there; not if nobody knows.
    pub queued: Option<u64>,
    /// How long it may not get on.
    pub patience: u64,
    /// Whether the client sends nothing more.
    pub client_ended: bool,
    /// What is left of each of its files.
    pub files: Vec<Rest>,
}

/// What is left of a file.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Rest {
    /// Where it begins.
    pub offset: u64,
    /// How much it is.
    pub length: u64,
    /// Whether nobody else has use for it.
    pub is_ours: bool,
}

impl SpoolFacts {
    /// What is known of `spool`, handed over then, at `now`.
    pub fn of(handed_over: Time, spool: &Spool, files: Vec<Rest>, now: Time) -> Self {
        let age = |time: Time| Duration::from(now.since(time)).as_millis() as u64; // 776 days at most
        SpoolFacts {
            handed_over: age(handed_over),
            got_on: age(spool.got_on),
            asked: age(spool.asked),
            queued: match spool.queued {
                Queued::Bytes(queued) => Some(queued),
                Queued::New | Queued::Untold => None,
            },
            patience: Duration::from(spool.patience).as_millis() as u64,
            client_ended: spool.client_ended,
            files,
        }
    }

    /// When it was handed over, and the rest, for one whose time it is `now`.
    pub fn at(&self, now: Time) -> (Time, Spool) {
        let ago = |age: u64| now - Span::nearest(Duration::from_millis(age));
        let patience = Span::at_least(Duration::from_millis(self.patience.max(1)));
        let mut spool = Spool::new(ago(self.got_on), patience);
        spool.asked = ago(self.asked);
        spool.queued = self.queued.map_or(Queued::New, Queued::Bytes);
        spool.client_ended = self.client_ended;
        (ago(self.handed_over), spool)
    }
}

/// What is known of a connection that is parked; times as in [`Facts`].
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ParkFacts {
    /// When it was handed over.
    pub handed_over: u64,
    /// What is left of its time.
    pub left: u64,
    /// Since when there are bytes that are no whole head.
    pub begun: Option<u64>,
    /// Whether its time was up.
    pub is_late: bool,
    /// What it goes back with.
    pub ticket: Vec<u8>,
    /// Its number in the queue, if it has something to say.
    pub number: Option<u64>,
    /// Whether it is offered to a worker.
    pub is_offered: bool,
}

impl ParkFacts {
    /// What is known of one that was handed over then, at `now`; nothing of a queue.
    pub fn of(handed_over: Time, park: &Park, ticket: &Ticket, now: Time) -> Self {
        let millis = |span: Span| Duration::from(span).as_millis() as u64; // 776 days at most
        ParkFacts {
            handed_over: millis(now.since(handed_over)),
            left: millis(park.until.since(now)),
            begun: park.begun.map(|begun| millis(now.since(begun))),
            is_late: park.is_late,
            ticket: ticket.bytes().to_vec(),
            number: None,
            is_offered: false,
        }
    }

    /// When it was handed over, and the rest, for one whose time it is `now`.
    ///
    /// # Errors
    /// What is wrong with the ticket.
    pub fn at(&self, now: Time) -> Result<(Time, Park, Ticket), &'static str> {
        let bytes = self.ticket.first_chunk().filter(|_| self.ticket.len() == ticket::LENGTH);
        let ticket = Ticket::of(*bytes.ok_or("half a ticket")?)?;
        let ago = |age: u64| now - Span::nearest(Duration::from_millis(age));
        let waits_for = if ticket.is_new() { For::Head } else { For::Byte };
        let mut park = Park::new(waits_for, Span::at_least(Duration::from_millis(self.left)), now);
        park.begun = self.begun.map(ago);
        park.is_late = self.is_late;
        Ok((ago(self.handed_over), park, ticket))
    }
}

/// As [`Stage`].
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Known {
    New,
    Asked,
    UnderWay,
    HasItAll,
    /// One that a later version has: it is asked again.
    #[default]
    #[serde(other)]
    Unknown,
}

impl Facts {
    /// What is known of `linger` at `now`.
    pub fn of(linger: &Linger, now: Time) -> Facts {
        let age = |time: Time| Duration::from(now.since(time)).as_millis() as u64; // 776 days at most
        Facts {
            handed_over: age(linger.handed_over),
            asked: age(linger.asked),
            heard: age(linger.heard),
            stage: match linger.stage {
                Stage::New => Known::New,
                Stage::Asked => Known::Asked,
                Stage::UnderWay => Known::UnderWay,
                Stage::HasItAll => Known::HasItAll,
                Stage::Spooling | Stage::Parked | Stage::Returning => Known::Unknown, // told apart
            },
            given: linger.given,
        }
    }

    /// The same, for one whose time it is `now`.
    pub fn at(&self, now: Time) -> Linger {
        // What was cut off at a millisecond is much less than half a tick.
        let ago = |age: u64| now - Span::nearest(Duration::from_millis(age));
        Linger {
            handed_over: ago(self.handed_over),
            asked: ago(self.asked),
            heard: ago(self.heard),
            stage: match self.stage {
                Known::New => Stage::New,
                Known::Asked | Known::Unknown => Stage::Asked,
                Known::UnderWay => Stage::UnderWay,
                Known::HasItAll => Stage::HasItAll,
            },
            given: self.given,
        }
    }
}

impl Household {
    /// The counters, as far as they are known.
    pub fn counters(&self) -> Snapshot {
        self.counters.parse().unwrap_or_default()
    }
}

/// `what` as a frame that is sent with so many descriptors.
pub fn frame(what: &impl Serialize, descriptors: usize) -> Vec<u8> {
    let mut bytes = vec![0; HEAD];
    // Neither a map with keys that are no text nor a value that refuses: it cannot fail.
    serde_json::to_writer(&mut bytes, what).unwrap_or_default();
    let length = (bytes.len() - HEAD) as u32; // MOST_BYTES at most
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    bytes[4..HEAD].copy_from_slice(&(descriptors as u32).to_be_bytes());
    bytes
}

/// What a head says: the length of what follows, and how many descriptors come with it.
pub fn head(head: [u8; HEAD]) -> (usize, usize) {
    let [a, b, c, d, e, f, g, h] = head;
    (u32::from_be_bytes([a, b, c, d]) as usize, u32::from_be_bytes([e, f, g, h]) as usize)
}
