// SPDX-License-Identifier: BSD-3-Clause

//! The two ends of a TCP connection as programs see them: the socket that the daemon was handed,
//! and the client.

use super::content::Piece;
use super::descriptors::{Fd, Held, Kind, Received};
use super::evidence::Call;
use super::facts::Facts;
use super::slab::Key;
use super::state::State;
use super::tcp::{Way, address};
use super::{Handle, Kernel};
use crate::backend::Descriptor;
use crate::tcp::{DISCARD_BYTES, OwnEnd, Tcp};
use std::cell::RefMut;
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::Duration;

/// How many notices one call takes from the error queue.
const NOTICES: u32 = 64;

/// What a byte is of which nobody has said what it is.
const FILLER: u8 = b'x';

/// A connection that was handed over. Dropping closes it.
pub struct Socket(Fd);

impl Socket {
    /// The state, and what this is in it.
    fn enter(&self, call: Call) -> (RefMut<'_, State>, Kind) {
        let state = self.0.kernel.enter();
        let kind = state.kind(state.file(self.0.process, self.0.number(), call));
        (state, kind)
    }

    fn note(&self, state: &mut State, call: Call, result: impl Into<i64>) {
        state.note(call, self.0.number(), result);
    }

    /// A socket without a connection may be in use elsewhere: nothing is to be done to it.
    fn hands_off(&self, state: &mut State, call: Call) {
        let number = self.0.number();
        state.violation(format_args!("{call:?} of descriptor {number}, which has no connection"));
    }
}

impl Descriptor for Socket {
    fn number(&self) -> RawFd {
        self.0.number()
    }
}

impl Tcp for Socket {
    type Received = Received;
    type Piece = Piece;

    fn of(received: Received) -> Result<Self, Received> {
        let is_tcp = {
            let mut state = received.0.kernel.enter();
            let file = state.file(received.0.process, received.0.number(), Call::Of);
            let is_tcp = matches!(state.kind(file), Kind::Tcp(_) | Kind::Idle(_));
            state.note(Call::Of, received.0.number(), is_tcp);
            is_tcp
        };
        if is_tcp { Ok(Socket(received.0)) } else { Err(received) }
    }

    fn send(&self, piece: &Piece) -> io::Result<usize> {
        let (mut state, kind) = self.enter(Call::Send);
        let written = match kind {
            Kind::Tcp(connection) => state.write(connection, piece),
            _ => {
                self.hands_off(&mut state, Call::Send);
                Err(io::Error::from_raw_os_error(libc::ENOTCONN))
            }
        };
        self.note(&mut state, Call::Send, written.as_ref().map_or(-1, |&bytes| bytes as i64));
        written
    }

    fn unacknowledged(&self) -> Option<u64> {
        let (mut state, kind) = self.enter(Call::Unacknowledged);
        let told = match kind {
            Kind::Tcp(connection) if state.flavour.tells_acknowledged => {
                state.connections.get(connection).map(|it| it.to_client.unacknowledged())
            }
            _ => None,
        };
        self.note(&mut state, Call::Unacknowledged, told.map_or(-1, |bytes| bytes as i64));
        told
    }

    fn reset_at_close(&self, resets: bool) {
        let (mut state, kind) = self.enter(Call::ResetAtClose);
        self.note(&mut state, Call::ResetAtClose, resets);
        match kind {
            Kind::Tcp(connection) => {
                if let Some(it) = state.connections.get_mut(connection) {
                    it.linger = resets.then_some(Duration::ZERO);
                }
            }
            _ => self.hands_off(&mut state, Call::ResetAtClose),
        }
    }

    fn linger_time(&self) -> Option<Duration> {
        let (mut state, kind) = self.enter(Call::LingerTime);
        let told = match kind {
            Kind::Tcp(connection) => state.connections.get(connection).and_then(|it| it.linger),
            _ => None,
        };
        let told = told.filter(|time| !time.is_zero());
        self.note(&mut state, Call::LingerTime, told.map_or(-1, |time| time.as_secs() as i64));
        told
    }

    fn half_close(&self) {
        let (mut state, kind) = self.enter(Call::HalfClose);
        self.note(&mut state, Call::HalfClose, 0);
        match kind {
            Kind::Tcp(connection) => {
                state.half_close(connection);
                state.settle();
            }
            _ => self.hands_off(&mut state, Call::HalfClose),
        }
    }

    fn discard(&self) -> io::Result<usize> {
        let (mut state, kind) = self.enter(Call::Discard);
        let got = match kind {
            Kind::Tcp(connection) => state.discard(connection),
            Kind::Idle(super::Idle::Connecting) => Err(io::ErrorKind::WouldBlock.into()),
            _ => Err(io::Error::from_raw_os_error(libc::ENOTCONN)),
        };
        let result = match &got {
            Ok(bytes) => *bytes as i64,
            Err(error) => -1 - i64::from(error.raw_os_error().unwrap_or_default()),
        };
        self.note(&mut state, Call::Discard, result);
        got
    }

    fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let (mut state, kind) = self.enter(Call::Peek);
        let seen = match kind {
            Kind::Tcp(connection) => state.peek(connection, buffer),
            Kind::Idle(super::Idle::Connecting) => Err(io::ErrorKind::WouldBlock.into()),
            _ => Err(io::Error::from_raw_os_error(libc::ENOTCONN)),
        };
        let result = match &seen {
            Ok(bytes) => *bytes as i64,
            Err(error) => -1 - i64::from(error.raw_os_error().unwrap_or_default()),
        };
        self.note(&mut state, Call::Peek, result);
        seen
    }

    fn own_end(&self) -> OwnEnd {
        let (mut state, kind) = self.enter(Call::OwnEnd);
        let connection = match kind {
            Kind::Tcp(connection) if state.flavour.tells_own_end => state.connections.get(connection),
            _ => None,
        };
        let told = match connection {
            Some(it) if !it.is_connected() => OwnEnd::Unknown,
            Some(it) if !it.to_client.fin => OwnEnd::Open,
            Some(it) if it.to_client.unacknowledged() > 0 => OwnEnd::Sent,
            Some(_) => OwnEnd::Acknowledged,
            None => OwnEnd::Unknown,
        };
        self.note(&mut state, Call::OwnEnd, told as i64);
        told
    }

    fn is_acknowledged(&self) -> Option<bool> {
        let (mut state, kind) = self.enter(Call::IsAcknowledged);
        let told = match kind {
            Kind::Tcp(connection) if state.flavour.tells_acknowledged => {
                state.connections.get(connection).map(|it| it.to_client.unacknowledged() == 0)
            }
            _ => None,
        };
        self.note(&mut state, Call::IsAcknowledged, told.map_or(-1, i64::from));
        told
    }

    fn has_unread(&self) -> bool {
        let (mut state, kind) = self.enter(Call::HasUnread);
        let has = match kind {
            Kind::Tcp(connection) => {
                state.connections.get(connection).is_some_and(|it| it.to_server.unread() > 0)
            }
            _ => false,
        };
        self.note(&mut state, Call::HasUnread, has);
        has
    }

    fn has_ended(&self) -> bool {
        let (mut state, kind) = self.enter(Call::HasEnded);
        let has = match kind {
            Kind::Tcp(connection) => {
                state.connections.get(connection).is_none_or(super::tcp::Connection::has_ended)
            }
            _ => false,
        };
        self.note(&mut state, Call::HasEnded, has);
        has
    }

    fn drain_errors(&self) {
        let (mut state, kind) = self.enter(Call::DrainErrors);
        self.note(&mut state, Call::DrainErrors, 0);
        if let Kind::Tcp(connection) = kind {
            if let Some(it) = state.connections.get_mut(connection) {
                it.notices = it.notices.saturating_sub(NOTICES);
            }
        }
    }

    fn peer(&self) -> io::Result<SocketAddr> {
        let (mut state, kind) = self.enter(Call::Peer);
        let address = match kind {
            Kind::Tcp(connection)
                if state.connections.get(connection).is_some_and(|it| it.is_connected()) =>
            {
                Ok(address(connection))
            }
            _ => Err(io::Error::from_raw_os_error(libc::ENOTCONN)),
        };
        self.note(&mut state, Call::Peer, address.is_ok());
        address
    }

    /// As where the system cannot tell.
    fn past_peer(&self) -> Option<SocketAddr> {
        self.peer().ok()
    }

    fn into_received(self) -> Received {
        Received(self.0)
    }

    fn let_go(self) {
        let (mut state, kind) = self.enter(Call::LetGo);
        match kind {
            Kind::Tcp(connection) => {
                if let Some(it) = state.connections.get_mut(connection) {
                    it.linger = it.linger.filter(Duration::is_zero);
                }
            }
            _ => self.hands_off(&mut state, Call::LetGo),
        }
        drop(state);
    }

    fn close(self) {
        let (mut state, kind) = self.enter(Call::Close);
        match kind {
            Kind::Tcp(connection) => {
                if let Some(it) = state.connections.get_mut(connection) {
                    it.linger = None;
                }
            }
            _ => self.hands_off(&mut state, Call::Close),
        }
        drop(state);
    }
}

impl State {
    fn write(&mut self, connection: Key, piece: &Piece) -> io::Result<usize> {
        if self.dice.roll(|faults| faults.memory) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let short = self.dice.roll(|faults| faults.short);
        let most = if short { self.dice.rng.u64(1..=1024) } else { u64::MAX };
        let now = self.now;
        let Some(it) = self.connections.get_mut(connection) else { return Ok(0) };
        let written = it.write(piece, most)?;
        (it.facts.got_on, it.facts.wrote) = (Some(now), Some(now));
        self.send(connection, Way::ToClient, false);
        self.settle();
        Ok(written)
    }

    /// What there is to be read, as much as `buffer` holds.
    /// Whether the network gives it up just now is up to chance.
    fn may_fail(&mut self, connection: Key) {
        if self.dice.roll(|faults| faults.failure) {
            let errors = [libc::ETIMEDOUT, libc::EHOSTUNREACH, libc::ENETUNREACH, libc::ECONNABORTED];
            let error = self.dice.one_of(&errors);
            self.fail(connection, error.raw_os_error().unwrap_or(libc::ETIMEDOUT));
        }
    }

    fn peek(&mut self, connection: Key, buffer: &mut [u8]) -> io::Result<usize> {
        if self.dice.roll(|faults| faults.not_yet) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.may_fail(connection);
        if self.dice.roll(|faults| faults.memory) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        match self.connections.get_mut(connection) {
            Some(it) if it.to_server.unread() > 0 => {
                let bytes = it.to_server.unread().min(buffer.len() as u64) as usize;
                let said = it.text.iter().skip(it.to_server.read as usize);
                let said = said.copied().chain(std::iter::repeat(FILLER));
                buffer[..bytes].iter_mut().zip(said).for_each(|(to, byte)| *to = byte);
                Ok(bytes)
            }
            Some(it) => it.receive(0).map(|bytes| bytes as usize), // the end, or an error
            None => Ok(0),
        }
    }

    fn discard(&mut self, connection: Key) -> io::Result<usize> {
        if self.dice.roll(|faults| faults.not_yet) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.may_fail(connection);
        if self.dice.roll(|faults| faults.memory) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let short = self.dice.roll(|faults| faults.short);
        let most = if short { self.dice.rng.u64(1..=1024) } else { DISCARD_BYTES as u64 };
        let Some(it) = self.connections.get_mut(connection) else { return Ok(0) };
        let got = it.receive(most)?;
        self.update_window(connection, Way::ToServer);
        self.settle();
        Ok(got as usize)
    }
}

/// The client of a connection: its program, and what it finds. Clones are the same client; when the
/// last is dropped it stays as it is, and nobody can ask about it any more.
#[derive(Clone)]
pub struct Client(Rc<Inner>);

struct Inner {
    kernel: Handle,
    connection: Key,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let Some(kernel) = self.kernel.try_get().filter(|_| !std::thread::panicking()) else { return };
        let mut state = kernel.state();
        if let Some(it) = state.connections.get_mut(self.connection) {
            it.held = false;
        }
        state.forget(self.connection);
    }
}

impl Client {
    pub(super) fn new(kernel: Handle, connection: Key) -> Self {
        Client(Rc::new(Inner { kernel, connection }))
    }

    fn with<T>(&self, act: impl FnOnce(&mut State, Key) -> T) -> T {
        let kernel = self.0.kernel.get();
        let mut state = kernel.state();
        let done = act(&mut state, self.0.connection);
        state.settle();
        done
    }

    /// Sends `bytes` bytes, unless it has closed or was reset.
    pub fn send(&self, bytes: u64) {
        self.with(|state, key| {
            let Some(it) = state.connections.get_mut(key) else { return };
            if !it.to_server.fin && !it.client_closed && !it.client_gone {
                it.to_server.written += bytes;
                state.send(key, Way::ToServer, false);
            }
        });
    }

    /// Sends these bytes, which [`peek`](Tcp::peek) finds; of those that are [sent](Self::send) it finds only that they are
    /// there.
    pub fn say(&self, bytes: &[u8]) {
        self.with(|state, key| {
            let Some(it) = state.connections.get_mut(key) else { return };
            it.text.resize(it.to_server.written as usize, FILLER);
            it.text.extend_from_slice(bytes);
        });
        self.send(bytes.len() as u64);
    }

    /// Half-closes: the end of its stream follows what it has sent, and it goes on reading.
    pub fn half_close(&self) {
        self.with(State::client_half_closes);
    }

    /// Closes. With something unread that is a reset, RFC 2525 section 2.17.
    pub fn close(&self) {
        self.with(State::client_closes);
    }

    /// Resets the connection.
    pub fn reset(&self) {
        self.with(State::client_resets);
    }

    /// Reads at most `bytes` bytes, and returns how many there were.
    pub fn read(&self, bytes: u64) -> u64 {
        self.with(|state, key| {
            let Some(it) = state.connections.get_mut(key) else { return 0 };
            if it.client_gone || it.client_closed {
                return 0;
            }
            let got = it.to_client.unread().min(bytes);
            it.to_client.read += got;
            state.update_window(key, Way::ToClient);
            state.client_reads(key);
            got
        })
    }

    /// From now on nothing passes between the two any more: it acknowledges nothing and is not heard.
    pub fn disappear(&self) {
        self.with(|state, key| {
            let Some(it) = state.connections.get_mut(key) else { return };
            it.cut = true;
            if it.to_client.unacknowledged() > 0 {
                state.send(key, Way::ToClient, true);
            }
        });
    }

    /// It is there again: each system sends what the other has not acknowledged.
    pub fn come_back(&self) {
        self.with(|state, key| {
            let Some(it) = state.connections.get_mut(key) else { return };
            it.cut = false;
            state.send_all_again(key);
        });
    }

    /// The connection fails at the server's end, with that error number: what an ICMP message can do.
    pub fn fail(&self, error: i32) {
        self.with(|state, key| state.fail(key, error));
    }

    /// More notices in the error queue of the server's socket.
    pub fn notify(&self, notices: u32) {
        self.with(|state, key| {
            let Some(it) = state.connections.get_mut(key) else { return };
            it.notices += notices;
            if let Some(file) = it.file {
                state.wake(file);
            }
        });
    }

    /// What is to happen once its program sees the end of the response, or a reset, for example
    /// that it closes. At once if it has seen it.
    pub fn at_end(&self, action: impl FnOnce(&Kernel) + 'static) {
        self.with(|state, key| {
            let Some(it) = state.connections.get_mut(key) else { return };
            let seen = it.facts.read_to_end.is_some() || it.facts.reset_arrived.is_some();
            if seen {
                state.soon(Box::new(action));
            } else {
                let before = it.at_end.replace(Box::new(action));
                state.drop_soon(before);
            }
        });
    }

    /// Bytes that have arrived and that it has not read.
    pub fn unread(&self) -> u64 {
        self.with(|state, key| state.connections.get(key).map_or(0, |it| it.to_client.unread()))
    }

    /// Bytes of it that have arrived and that the server has not read.
    pub fn unheard(&self) -> u64 {
        self.with(|state, key| state.connections.get(key).map_or(0, |it| it.to_server.unread()))
    }

    /// What became of its connection so far.
    pub fn facts(&self) -> Facts {
        self.with(|state, key| state.connections.get(key).map(|it| it.facts.clone()).unwrap_or_default())
    }

    /// Who it is to the daemon, as [`Tcp::peer`] says.
    pub fn address(&self) -> SocketAddr {
        address(self.0.connection)
    }
}

/// What a server can do with a connection that it has, before or after it has handed it over.
impl Held {
    fn with_connection(&self, act: impl FnOnce(&mut State, Key)) {
        let kernel = self.kernel.get();
        let mut state = kernel.state();
        if let Kind::Tcp(connection) = state.kind(self.file) {
            act(&mut state, connection);
            state.settle();
        }
    }

    /// Half-closes it.
    pub fn half_close(&self) {
        self.with_connection(|state, connection| state.half_close(connection));
    }

    /// Writes so many bytes, unless it is half-closed.
    pub fn write(&self, bytes: u64) {
        self.with_connection(|state, connection| {
            let Some(it) = state.connections.get_mut(connection) else { return };
            if !it.to_client.fin {
                it.to_client.written += bytes;
                state.send(connection, Way::ToClient, false);
            }
        });
    }

    /// Reads all that has arrived, and returns how much that is.
    pub fn read(&self) -> u64 {
        let mut read = 0;
        self.with_connection(|state, connection| {
            let Some(it) = state.connections.get_mut(connection) else { return };
            read = it.to_server.unread();
            it.to_server.read += read;
            state.update_window(connection, Way::ToServer);
        });
        read
    }

    /// The client's address.
    pub fn client(&self) -> Option<SocketAddr> {
        match self.kernel.get().state().kind(self.file) {
            Kind::Tcp(connection) => Some(address(connection)),
            _ => None,
        }
    }

    /// Sets SO_LINGER.
    pub fn set_linger(&self, linger: Option<Duration>) {
        self.with_connection(|state, connection| {
            if let Some(it) = state.connections.get_mut(connection) {
                it.linger = linger;
            }
        });
    }
}
