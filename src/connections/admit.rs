// SPDX-License-Identifier: BSD-3-Clause

//! How a descriptor becomes a connection, or is refused.
//!
//! Must not know who sent it, or with what.

use super::census::Origin;
use super::step::{look, outcome};
use super::{Connections, name};
use crate::rules::event::{Action, Event};
use crate::rules::linger::Linger;
use crate::rules::time::Time;
use crate::source::Source;
use lingerd_platform::backend::{Backend, Interest};
use lingerd_platform::tcp::{OwnEnd, Tcp};
use lingerd_platform::world::World;
use log::debug;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::num::NonZeroU16;

impl<W: World> Connections<W> {
    /// Takes one descriptor over, while there are so many `senders`. What is no connection is refused. Returns
    /// whether it was a TCP socket, and nothing that may take long to close: one whose client has gone may look as
    /// if it never was connected.
    pub fn admit(
        &mut self,
        received: W::Received,
        senders: usize,
        backend: &mut W::Backend,
        now: Time,
    ) -> bool {
        let taken = if self.last_has_gone {
            W::Socket::of(received).map(|socket| (socket, None))
        } else {
            W::Socket::of_lingering(received).map(|(socket, own_end)| (socket, Some(own_end)))
        };
        let (socket, own_end) = match taken {
            Ok(taken) => taken,
            Err(received) => {
                self.refuse_other(received, "no TCP socket");
                return false;
            }
        };
        let name = name(&socket);
        let Some(First { event, discarded, own_end, peer }) = first_read(&socket, own_end) else {
            // It has nothing to wait for, and may be in use elsewhere: its options stay.
            self.refused("not connected");
            return true;
        };
        self.ends.discarded(discarded);
        let mut linger = Linger::new(now);
        let rules = self.table.rules();
        let verdict = match linger.on(event, now, rules) {
            Action::Close(reason) => Err(reason),
            action => {
                linger.given = given(&socket);
                let action = match own_end {
                    OwnEnd::Acknowledged => linger.on(Event::Acknowledged(Some(true)), now, rules),
                    OwnEnd::Sent => linger.on(Event::Acknowledged(Some(false)), now, rules),
                    OwnEnd::Open | OwnEnd::Unknown => {
                        socket.half_close(); // the sender should have done it
                        action
                    }
                };
                let look = look(&socket, &mut linger, action, now, rules);
                self.ends.discarded(look.discarded);
                look.verdict
            }
        };
        self.last_has_gone = verdict.is_err();
        match verdict {
            Err(reason) => self.end(socket, name, linger, reason, now),
            Ok(due) => {
                let most = self.make_room(1, senders, backend, now);
                let origin = self.origin(&socket, peer, most);
                self.keep(socket, origin, linger, due, backend, now);
            }
        }
        true
    }

    /// Lets a connection linger on that did so elsewhere, while there are so many `senders`: it was counted
    /// there when it came.
    pub fn take_over(
        &mut self,
        received: W::Received,
        linger: Linger,
        senders: usize,
        backend: &mut W::Backend,
        now: Time,
    ) {
        match W::Socket::of(received) {
            Ok(socket) => {
                let most = self.make_room(1, senders, backend, now);
                let origin = self.origin(&socket, None, most);
                let due = linger.due(now, self.table.rules());
                self.keep(socket, origin, linger, due, backend, now);
            }
            Err(received) => self.refuse_other(received, "no TCP socket"),
        }
    }

    /// Refuses a descriptor that came with what is no hand-off.
    pub fn refuse(&mut self, received: W::Received, why: &str) {
        match W::Socket::of(received) {
            Ok(socket) => {
                // A socket that is not connected may be in use elsewhere.
                if socket.peer().is_ok() {
                    socket.let_go();
                }
                self.refused(why);
            }
            Err(received) => self.refuse_other(received, why),
        }
    }

    pub(super) fn refuse_other(&mut self, received: W::Received, why: &str) {
        self.refused(why);
        self.close_slowly(received);
    }

    pub(super) fn refused(&mut self, why: &str) {
        self.ends.rejected();
        debug!("refused a descriptor: {why}");
    }

    /// Lets a connection linger.
    fn keep(
        &mut self,
        socket: W::Socket,
        origin: Origin,
        linger: Linger,
        due: Time,
        backend: &mut W::Backend,
        now: Time,
    ) {
        let entry = self.insert(socket, origin, linger, due);
        self.ends.lingering(self.table.len());
        let Some((socket, _)) = self.table.get(entry) else { return }; // inserted just now
        if let Err(e) = backend.add(socket, Source::Connection(entry).token(), Interest::Read) {
            self.cannot_wait(&e, now);
        }
    }
}

/// What the first read of a connection came to.
pub(super) struct First {
    /// What it means.
    pub event: Event,
    /// How many bytes it was.
    pub discarded: u64,
    /// How far this end is closed, if there was nothing to read.
    pub own_end: OwnEnd,
    /// Who is at the other end, if that was asked.
    pub peer: Option<SocketAddr>,
}

/// Reads for the first time, from one whose `own_end` may be known. `None` for what is not connected.
///
/// The client's end of stream is often there already: then nothing else need be done, as close(2)
/// sends our FIN. A listener, or a socket that was never connected, shows here too, before anything
/// is done to what its sender may still use. It is read even where it is known to wait for its client: who has to be closed
/// before the backend reports it would be reset for what was not.
#[inline]
pub(super) fn first_read<S: Tcp>(socket: &S, own_end: Option<OwnEnd>) -> Option<First> {
    let mut read = socket.discard();
    let mut peer = None;
    if read.as_ref().is_err_and(is_not_connected) {
        return None;
    }
    let own_end = match outcome(&read) {
        Event::Quiet => own_end.unwrap_or_else(|| socket.own_end()),
        _ => OwnEnd::Unknown,
    };
    // Quiet, and nobody at the other end: the client has gone this very moment, which the next read
    // says, or it is a connect(2) that is still in progress.
    if outcome(&read) == Event::Quiet && own_end == OwnEnd::Unknown {
        let asked = socket.peer();
        if asked.as_ref().is_err_and(is_not_connected) {
            read = socket.discard();
            if outcome(&read) == Event::Quiet {
                return None;
            }
        }
        peer = asked.ok();
    }
    Some(First { event: outcome(&read), discarded: read.map_or(0, |bytes| bytes as u64), own_end, peer })
}

/// How many seconds its sender gives it; more than a `u16` holds is more than anybody waits.
fn given<S: Tcp>(socket: &S) -> Option<NonZeroU16> {
    let seconds = socket.linger_time()?.as_secs();
    NonZeroU16::new(seconds.try_into().unwrap_or(u16::MAX))
}

fn is_not_connected(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotConnected
}
