// SPDX-License-Identifier: BSD-3-Clause

//! TCP connections, as two streams of numbered bytes of which only the numbers are kept, RFC 9293.
//!
//! What one end tells the other is always all that it has to tell by then, so that whatever was lost
//! meanwhile need not be told again: a segment says how far its sender has sent, an acknowledgement
//! how far the receiver has received and how much room it has.

use super::content::Piece;
use super::descriptors::By;
use super::facts::{Facts, Setup};
use super::slab::Key;
use super::state::{Event, State};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// How much may be written, and not be acknowledged, before a socket is not writable any more.
pub(super) const SEND_BUFFER: u64 = 256 * 1024;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    ToClient,
    ToServer,
}

/// What arrives, or becomes due.
#[derive(Clone, Copy, Debug)]
pub(super) enum Packet {
    /// Bytes of a stream, up to so many, and perhaps its end.
    Segment { way: Way, upto: u64, fin: bool },
    /// What the receiver of a stream has received, and up to where it has room.
    Acknowledgement { way: Way, upto: u64, fin: bool, edge: u64 },
    /// RST, to whom the way leads.
    Reset(Way),
    /// Nothing has been acknowledged for long.
    TimeOut,
}

/// One way of a connection. All are counts of bytes since the start.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stream {
    /// By the program that sends.
    pub written: u64,
    /// Whether it has closed this way.
    pub fin: bool,
    /// What its system has put on the wire.
    sent: (u64, bool),
    /// What has arrived at the other system.
    pub delivered: u64,
    pub fin_delivered: bool,
    /// What its own system knows to have arrived.
    pub acknowledged: u64,
    pub fin_acknowledged: bool,
    /// How far it may send.
    edge: u64,
    /// By the program that receives.
    pub read: u64,
    /// How much the receiving system holds unread.
    window: u64,
}

impl Stream {
    const fn new(window: u64) -> Self {
        Stream {
            written: 0,
            fin: false,
            sent: (0, false),
            delivered: 0,
            fin_delivered: false,
            acknowledged: 0,
            fin_acknowledged: false,
            edge: window,
            read: 0,
            window,
        }
    }

    /// What has arrived, and nobody has read.
    pub const fn unread(&self) -> u64 {
        self.delivered - self.read
    }

    pub const fn has_ended(&self) -> bool {
        self.fin_delivered && self.unread() == 0
    }

    /// Bytes, with the FIN as one.
    pub const fn unacknowledged(&self) -> u64 {
        self.written - self.acknowledged + (self.fin && !self.fin_acknowledged) as u64
    }

    const fn acknowledgement(&self, way: Way) -> Packet {
        let (upto, fin) = (self.delivered, self.fin_delivered);
        Packet::Acknowledgement { way, upto, fin, edge: self.read + self.window }
    }
}

/// See the module's head.
pub(super) struct Connection {
    pub to_client: Stream,
    pub to_server: Stream,
    latency: Duration,
    /// Whether nothing passes between the two.
    pub cut: bool,
    /// Whether a [`Packet::TimeOut`] is on the agenda.
    timing: bool,
    reads: bool,
    pub linger: Option<Duration>,
    pub notices: u32,
    /// What the client's bytes say, from the first on, as far as that matters; all others are the same.
    pub text: Vec<u8>,
    /// The server's socket, until its last close.
    pub file: Option<Key>,
    /// What the next read of the server's says.
    error: Option<i32>,
    /// Whether the server's system knows it no more.
    gone: bool,
    /// After a second half-close, where that does it.
    receiving_ended: bool,
    /// Whether the client's program has closed.
    pub client_closed: bool,
    /// Whether the client was reset, or has reset.
    pub client_gone: bool,
    /// Whether somebody may still ask about it.
    pub held: bool,
    /// What happens when the client's program sees the end, or the reset.
    pub at_end: Option<super::agenda::Call>,
    /// That it closes then.
    pub closes_at_end: bool,
    pub facts: Facts,
}

impl Connection {
    pub fn new(setup: &Setup) -> Self {
        Connection {
            to_client: Stream::new(setup.client_window),
            to_server: Stream::new(setup.server_window),
            latency: setup.latency,
            cut: false,
            timing: false,
            reads: setup.reads,
            linger: setup.linger,
            notices: setup.notices,
            text: Vec::new(),
            file: None,
            error: None,
            gone: false,
            receiving_ended: false,
            client_closed: false,
            client_gone: false,
            held: true,
            at_end: None,
            closes_at_end: setup.closes,
            facts: Facts::default(),
        }
    }

    pub const fn stream(&mut self, way: Way) -> &mut Stream {
        match way {
            Way::ToClient => &mut self.to_client,
            Way::ToServer => &mut self.to_server,
        }
    }

    /// Whether the server's socket is ready whatever it is asked for.
    pub const fn has_failed(&self) -> bool {
        self.error.is_some() || self.notices > 0 || !self.is_connected()
    }

    pub const fn is_readable(&self) -> bool {
        self.to_server.unread() > 0 || self.to_server.fin_delivered || self.receiving_ended
    }

    /// Whether there is room; what can no longer be written fails at once.
    pub const fn is_writable(&self) -> bool {
        self.to_client.fin || self.to_client.unacknowledged() < SEND_BUFFER
    }

    /// What the server's next read finds, taking at most `most`.
    pub fn receive(&mut self, most: u64) -> io::Result<u64> {
        let unread = self.to_server.unread();
        if unread > 0 {
            let taken = unread.min(most);
            self.to_server.read += taken;
            self.facts.discarded += taken;
            return Ok(taken);
        }
        if let Some(error) = self.error.take() {
            return Err(io::Error::from_raw_os_error(error));
        }
        if self.gone || self.to_server.fin_delivered || self.receiving_ended {
            return Ok(0);
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Whether the client sends nothing more.
    pub fn has_ended(&self) -> bool {
        self.gone || self.to_server.fin_delivered
    }

    /// What the server's next write takes of `piece`, at most `most`.
    pub fn write(&mut self, piece: &Piece, most: u64) -> io::Result<usize> {
        if self.gone {
            let error = self.error.take().unwrap_or(libc::EPIPE);
            return Err(io::Error::from_raw_os_error(error));
        }
        if self.to_client.fin {
            return Err(io::Error::from_raw_os_error(libc::EPIPE));
        }
        let room = SEND_BUFFER.saturating_sub(self.to_client.written - self.to_client.acknowledged);
        let taken = (piece.length as u64).min(room).min(most) as usize;
        if taken == 0 && piece.length > 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.to_client.written += taken as u64;
        self.facts.note_written(Piece { length: taken, ..*piece });
        Ok(taken)
    }

    /// Whether there is somebody at the other end: not after a reset, nor after both ends.
    pub const fn is_connected(&self) -> bool {
        !(self.gone || (self.to_client.fin_acknowledged && self.to_server.fin_delivered))
    }
}

/// An address of the client, from the addresses that are nobody's, RFC 5737.
pub(super) fn address(connection: Key) -> SocketAddr {
    let number = connection.number();
    SocketAddr::from(([198, 51, 100, (number >> 16) as u8], number as u16))
}

impl State {
    /// A packet to be there when the time has passed that it takes.
    fn transmit(&mut self, connection: Key, packet: Packet) {
        let Some(it) = self.connections.get(connection) else { return };
        let delay = it.latency;
        if delay.is_zero() {
            self.wire.push_back((connection, packet));
        } else {
            self.later(delay, Event::Packet(connection, packet));
        }
    }

    /// Lets everything arrive that takes no time. Whoever has written, read or closed calls it.
    pub fn settle(&mut self) {
        while let Some((connection, packet)) = self.wire.pop_front() {
            self.arrive(connection, packet);
        }
    }

    /// Sends what `way` may send and has not sent; `again` sends it all the same.
    pub fn send(&mut self, connection: Key, way: Way, again: bool) {
        let limit = self.flavour.retransmits;
        let Some(it) = self.connections.get_mut(connection) else { return };
        let cut = it.cut;
        let stream = it.stream(way);
        let upto = stream.written.min(stream.edge);
        let fin = stream.fin && upto == stream.written;
        if !again && stream.sent == (upto, fin) {
            return;
        }
        stream.sent = (upto, fin);
        self.transmit(connection, Packet::Segment { way, upto, fin });
        let Some(it) = self.connections.get_mut(connection) else { return };
        if cut && way == Way::ToClient && !it.timing {
            it.timing = true;
            self.later(limit, Event::Packet(connection, Packet::TimeOut));
        }
    }

    fn acknowledge(&mut self, connection: Key, way: Way) {
        if let Some(it) = self.connections.get_mut(connection) {
            let packet = it.stream(way).acknowledgement(way);
            self.transmit(connection, packet);
        }
    }

    /// Says that there is room again, if whoever sends is waiting for it.
    pub fn update_window(&mut self, connection: Key, way: Way) {
        let Some(it) = self.connections.get_mut(connection) else { return };
        let stream = it.stream(way);
        if stream.written > stream.edge {
            self.acknowledge(connection, way);
        }
    }

    fn arrive(&mut self, connection: Key, packet: Packet) {
        let Some(it) = self.connections.get_mut(connection) else { return };
        if let Packet::TimeOut = packet {
            it.timing = false;
            if it.cut && it.to_client.unacknowledged() > 0 {
                self.fail(connection, libc::ETIMEDOUT);
            }
            return;
        }
        if it.cut {
            return;
        }
        match packet {
            Packet::Segment { way: Way::ToServer, upto, fin } => self.at_server(connection, upto, fin),
            Packet::Segment { way: Way::ToClient, upto, fin } => self.at_client(connection, upto, fin),
            Packet::Acknowledgement { way, upto, fin, edge } => {
                self.acknowledged(connection, way, upto, fin, edge);
            }
            Packet::Reset(Way::ToServer) => self.fail(connection, libc::ECONNRESET),
            Packet::Reset(Way::ToClient) => self.client_reset(connection),
            Packet::TimeOut => {}
        }
    }

    /// Something of the client's arrives at the server.
    fn at_server(&mut self, connection: Key, upto: u64, fin: bool) {
        let now = self.now;
        let Some(it) = self.connections.get_mut(connection) else { return };
        let new = upto > it.to_server.delivered || (fin && !it.to_server.fin_delivered);
        if it.gone {
            if new {
                self.transmit(connection, Packet::Reset(Way::ToClient)); // there is no such connection
            }
            return;
        }
        if it.file.is_none() && upto > it.to_server.delivered {
            return self.reset(connection); // nobody will ever read it, RFC 2525 section 2.17
        }
        if upto > it.to_server.delivered {
            it.facts.heard = Some(now);
        }
        if fin {
            it.facts.client_ended.get_or_insert(now);
        }
        it.to_server.delivered = it.to_server.delivered.max(upto);
        it.to_server.fin_delivered |= fin;
        let file = it.file;
        self.acknowledge(connection, Way::ToServer);
        if let Some(file) = file.filter(|_| new) {
            self.note_outside(connection, upto);
            self.wake(file);
        }
    }

    /// Something of the server's arrives at the client.
    fn at_client(&mut self, connection: Key, upto: u64, fin: bool) {
        let Some(it) = self.connections.get_mut(connection) else { return };
        if it.client_gone {
            if !it.gone {
                self.transmit(connection, Packet::Reset(Way::ToServer)); // there is no such connection
            }
            return;
        }
        if it.client_closed && upto > it.to_client.delivered {
            it.client_gone = true;
            return self.transmit(connection, Packet::Reset(Way::ToServer));
        }
        it.to_client.delivered = it.to_client.delivered.max(upto);
        it.to_client.fin_delivered |= fin;
        if it.reads {
            it.to_client.read = it.to_client.delivered;
        }
        self.acknowledge(connection, Way::ToClient);
        self.client_reads(connection);
    }

    /// What follows when the client's program has read.
    pub fn client_reads(&mut self, connection: Key) {
        let now = self.now;
        let Some(it) = self.connections.get_mut(connection) else { return };
        it.facts.read = it.to_client.read;
        if it.to_client.has_ended() && it.facts.read_to_end.is_none() && !it.client_closed {
            it.facts.read_to_end = Some(now);
            self.client_sees_end(connection);
        }
    }

    fn client_sees_end(&mut self, connection: Key) {
        let Some(it) = self.connections.get_mut(connection) else { return };
        let closes = it.closes_at_end;
        if let Some(action) = it.at_end.take() {
            self.soon(action);
        }
        if closes {
            self.client_closes(connection);
        }
    }

    /// The client half-closes.
    pub fn client_half_closes(&mut self, connection: Key) {
        let Some(it) = self.connections.get_mut(connection) else { return };
        if !it.client_gone {
            it.to_server.fin = true;
            self.send(connection, Way::ToServer, false);
        }
    }

    /// The client closes. With something unread that is a reset, RFC 2525 section 2.17.
    pub fn client_closes(&mut self, connection: Key) {
        let Some(it) = self.connections.get_mut(connection) else { return };
        it.client_closed = true;
        if it.to_client.unread() > 0 {
            self.client_resets(connection);
        } else {
            self.client_half_closes(connection);
        }
    }

    /// The client resets it.
    pub fn client_resets(&mut self, connection: Key) {
        let Some(it) = self.connections.get_mut(connection) else { return };
        it.client_closed = true;
        if !it.client_gone {
            it.client_gone = true;
            self.transmit(connection, Packet::Reset(Way::ToServer));
        }
    }

    fn acknowledged(&mut self, connection: Key, way: Way, upto: u64, fin: bool, edge: u64) {
        let now = self.now;
        let Some(it) = self.connections.get_mut(connection) else { return };
        let stream = it.stream(way);
        let gets_on = way == Way::ToClient && upto > stream.acknowledged;
        stream.acknowledged = stream.acknowledged.max(upto);
        stream.fin_acknowledged |= fin;
        stream.edge = stream.edge.max(edge);
        if gets_on {
            it.facts.got_on = Some(now);
        }
        if way == Way::ToClient {
            if it.to_client.fin && it.to_client.unacknowledged() == 0 {
                it.facts.acknowledged.get_or_insert(now);
            }
            if let Some(file) = it.file {
                self.wake(file); // there may be room to write
            }
        }
        self.send(connection, way, false);
    }

    /// The connection is gone, as the server's system has it.
    pub fn fail(&mut self, connection: Key, error: i32) {
        let now = self.now;
        let Some(it) = self.connections.get_mut(connection) else { return };
        if it.gone {
            return;
        }
        it.gone = true;
        it.error = Some(error);
        it.facts.client_gone.get_or_insert(now);
        if let Some(file) = it.file {
            self.note_outside(connection, error as u64);
            self.wake(file);
        }
    }

    /// Each end sends all that the other may not know.
    pub fn send_all_again(&mut self, connection: Key) {
        for way in [Way::ToClient, Way::ToServer] {
            self.acknowledge(connection, way);
            self.send(connection, way, true);
        }
    }

    /// The server's system resets it.
    fn reset(&mut self, connection: Key) {
        let now = self.now;
        let Some(it) = self.connections.get_mut(connection) else { return };
        it.gone = true;
        it.facts.reset.get_or_insert(now);
        self.transmit(connection, Packet::Reset(Way::ToClient));
    }

    /// A reset arrives at the client, and takes along what its program has not read.
    fn client_reset(&mut self, connection: Key) {
        let now = self.now;
        let Some(it) = self.connections.get_mut(connection) else { return };
        if it.client_gone {
            return;
        }
        it.client_gone = true;
        if it.client_closed {
            return; // nobody reads any more
        }
        it.facts.reset_arrived = Some(now);
        it.facts.lost = it.to_client.written - it.to_client.read;
        let ended = it.facts.read_to_end.is_some();
        if !ended {
            self.client_sees_end(connection);
        }
    }

    /// Half-closes the server's end.
    pub fn half_close(&mut self, connection: Key) {
        let (now, ends) = (self.now, self.flavour.second_half_close_ends_receiving);
        let Some(it) = self.connections.get_mut(connection) else { return };
        if !it.to_client.fin {
            it.to_client.fin = true;
            (it.facts.half_closed, it.facts.shut_down) = (Some(now), Some(now));
            return self.send(connection, Way::ToClient, false);
        }
        it.facts.half_closed_again += 1;
        if it.to_client.fin_acknowledged && !it.to_server.fin_delivered {
            it.facts.half_closed_in_fin_wait_2 += 1;
            if let Some(file) = it.file.filter(|_| ends) {
                it.receiving_ended = true;
                self.wake(file);
            }
        }
    }

    /// The last close of the server's end.
    pub fn end_connection(&mut self, connection: Key, by: By) {
        let now = self.now;
        let Some(it) = self.connections.get_mut(connection) else { return };
        it.file = None;
        it.facts.closed = Some(now);
        it.facts.closed_by = Some(by);
        it.facts.closed_unread = it.to_server.unread();
        it.facts.closed_unacknowledged = it.to_client.unacknowledged();
        let aborts = it.to_server.unread() > 0 || it.linger == Some(Duration::ZERO);
        // Of one that is gone there is nothing to wait for.
        let has_more = !it.gone && it.to_client.unacknowledged() > 0;
        let waits = it.linger.filter(|time| !time.is_zero() && has_more);
        if !it.gone && aborts {
            self.reset(connection);
        } else if !it.gone && !it.to_client.fin {
            it.to_client.fin = true;
            it.facts.half_closed = Some(now);
            self.send(connection, Way::ToClient, false);
        }
        if let Some(time) = waits.filter(|_| !aborts && by == By::Daemon) {
            self.violation(format_args!("a close waited for SO_LINGER"));
            self.now += time;
        }
        self.forget(connection);
        self.settle();
    }

    /// Drops what nobody can ask about any more.
    pub fn forget(&mut self, connection: Key) {
        if self.connections.get(connection).is_some_and(|it| it.file.is_none() && !it.held) {
            let gone = self.connections.remove(connection);
            self.drop_soon(gone.and_then(|it| it.at_end));
        }
    }
}
