//! The hand-off socket: senders, and the messages in which they hand sockets over.
//!
//! Version 1 of the protocol: the byte `L` with 1 to 253 sockets in SCM_RIGHTS, no reply. Must not
//! know what becomes of a socket; it does not even look whether it is one.

use crate::endpoint::{Access, Endpoint};
use anyhow::Result;
use lingerd_platform::backend::{Backend, Interest, Token};
use lingerd_platform::fdpass::{self, Received};
use lingerd_platform::process;
use slotmap::SlotMap;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// The byte of the one message there is.
const LINGER: u8 = b'L';

slotmap::new_key_type! {
    /// Names one sender for good.
    pub struct Sender;
}

/// What a sender has said.
#[derive(Debug, PartialEq, Eq)]
pub enum Message {
    /// Sockets, appended to the caller's list. `truncated`: the kernel dropped some of those that
    /// were sent, for want of room in this process.
    Sockets {
        /// See above.
        truncated: bool,
    },
    /// Nothing more for now.
    Nothing,
    /// The sender has closed, or its connection is gone.
    Gone,
    /// What was said is not of this protocol; whatever descriptors came along are in the caller's
    /// list.
    Malformed(&'static str),
}

/// The connection of a sender.
struct Link {
    stream: UnixStream,
    /// [`HandOff::messages`] as of its last one.
    last: u64,
}

/// See the module's head. As a descriptor it is where senders knock.
pub struct HandOff {
    endpoint: Endpoint,
    token: Token,
    senders: SlotMap<Sender, Link>,
    /// Grows with each message and each sender, to tell who has been silent for the longest.
    messages: u64,
    /// Whether the endpoint is registered with the backend.
    accepting: bool,
}

impl HandOff {
    /// Listens at `path`; [`open`](Self::open) makes `backend` report it as `token`.
    ///
    /// # Errors
    /// As [`Endpoint::bind`].
    pub fn bind(path: &Path, access: Access, token: Token) -> Result<Self> {
        let endpoint = Endpoint::bind(path, access)?;
        Ok(HandOff { endpoint, token, senders: SlotMap::with_key(), messages: 0, accepting: false })
    }

    /// How many senders are connected.
    pub fn senders(&self) -> usize {
        self.senders.len()
    }

    /// Whether new senders are let in; see [`pause`](Self::pause).
    pub fn is_accepting(&self) -> bool {
        self.accepting
    }

    /// Lets senders in (again).
    ///
    /// # Errors
    /// As [`Backend::add`].
    pub fn open(&mut self, backend: &mut impl Backend) -> io::Result<()> {
        if !self.accepting {
            backend.add(self.endpoint.as_fd(), self.token, Interest::Read)?;
            self.accepting = true;
        }
        Ok(())
    }

    /// Leaves new senders waiting in the kernel's queue until [`open`](Self::open): for the moment
    /// in which accept(2) cannot serve them.
    pub fn pause(&mut self, backend: &mut impl Backend) {
        if self.accepting {
            // It is registered, so that this cannot fail; if it did, accepting on would be harmless.
            self.accepting = backend.remove(self.endpoint.as_fd()).is_err();
        }
    }

    /// Lets one sender in; [`watch`](Self::watch) makes the backend report it.
    ///
    /// # Errors
    /// `WouldBlock` when nobody waits; else what accept(2) says (EMFILE, ENFILE).
    pub fn accept(&mut self) -> io::Result<Sender> {
        let stream = self.endpoint.accept()?;
        self.messages += 1; // the one that comes is not the one that was silent
        Ok(self.senders.insert(Link { stream, last: self.messages }))
    }

    /// Asks the backend to report `sender` as `token`.
    ///
    /// # Errors
    /// As [`Backend::add`]. What the sender has said can still be read.
    pub fn watch(&self, backend: &mut impl Backend, sender: Sender, token: Token) -> io::Result<()> {
        self.sender(sender).map_or(Ok(()), |fd| backend.add(fd, token, Interest::Read))
    }

    /// The sender that has been silent for the longest.
    pub fn most_silent(&self) -> Option<Sender> {
        self.senders.iter().min_by_key(|(_, link)| link.last).map(|(sender, _)| sender)
    }

    /// Reads one message of `sender`. At most [`fdpass::MAX_DESCRIPTORS`] descriptors come with
    /// it: the caller has made room for them.
    pub fn receive(&mut self, sender: Sender, descriptors: &mut Vec<OwnedFd>) -> Message {
        let Some(link) = self.senders.get_mut(sender) else {
            return Message::Nothing; // a stale event
        };
        let before = descriptors.len();
        match fdpass::receive(&link.stream, descriptors) {
            Ok(Received::Byte { byte: LINGER, truncated }) if truncated || descriptors.len() > before => {
                self.messages += 1;
                link.last = self.messages;
                Message::Sockets { truncated }
            }
            Ok(Received::Byte { byte: LINGER, .. }) => Message::Malformed("'L' without a descriptor"),
            Ok(Received::Byte { .. }) => Message::Malformed("an unknown byte"),
            Ok(Received::Lost) => Message::Malformed("more sockets than the descriptor limit has room for"),
            Ok(Received::End) => Message::Gone,
            Err(e) => match e.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Message::Nothing,
                _ => Message::Gone,
            },
        }
    }

    /// What the backend knows `sender` by, while it is there.
    pub fn sender(&self, sender: Sender) -> Option<BorrowedFd<'_>> {
        self.senders.get(sender).map(|link| link.stream.as_fd())
    }

    /// Lets `sender` say nothing more. What it has said can still be read, and must be before
    /// [`dismiss`](Self::dismiss): the sender has closed its copies, and nobody else would linger.
    pub fn silence(&self, sender: Sender) {
        if let Some(link) = self.senders.get(sender).filter(|_| process::SHUTDOWN_KEEPS_QUEUE) {
            let _ = link.stream.shutdown(Shutdown::Read); // fails only if it is gone already
        }
    }

    /// Parts with `sender`. The connection that is returned ends with its last close, which closes
    /// whatever is still queued in it.
    pub fn dismiss(&mut self, backend: &mut impl Backend, sender: Sender) -> Option<UnixStream> {
        let link = self.senders.remove(sender)?;
        let _ = backend.remove(link.stream.as_fd()); // fails only for one that could not be added
        Some(link.stream)
    }

    /// Lets nobody else in. Those who already wait can still be [`accept`](Self::accept)ed, and
    /// have to be, as with [`silence`](Self::silence).
    pub fn shut(&mut self, backend: &mut impl Backend) {
        self.pause(backend);
        self.endpoint.shut();
    }

    /// Every sender.
    pub fn all(&self) -> Vec<Sender> {
        self.senders.keys().collect()
    }
}

impl AsFd for HandOff {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.endpoint.as_fd()
    }
}
