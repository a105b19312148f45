// SPDX-License-Identifier: BSD-3-Clause

//! What is still to be written of one response: its files, and one write of them.
//!
//! Must not know of rules, backends or counters.

use crate::rules::spool::Spool;
use lingerd_platform::backend::Interest;
use lingerd_platform::closing::SlowClose;
use lingerd_platform::content::{Content, PAGE};
use lingerd_platform::reader::Reader;
use lingerd_platform::tcp::Tcp;
use lingerd_platform::world::World;
use std::collections::VecDeque;
use std::io::ErrorKind;

/// What is read at once.
const PIECE: usize = 64 * 1024;

/// How much of memory to give back at once.
const FORGET: u64 = 256 * 1024;

/// One of the files that came with a connection, and what of it is to be sent.
pub struct Extent<R> {
    /// The file, or whatever else it is.
    pub file: R,
    /// Where the next byte is.
    pub offset: u64,
    /// How many there are.
    pub left: u64,
    /// Whether it is nobody's else, so that what is sent of it can be given back.
    pub is_ours: bool,
}

/// What is still to be sent of one file.
pub struct Part<C> {
    content: C,
    offset: u64,
    left: u64,
    is_ours: bool,
    /// What it took of memory or a disk when it came, or nearly so.
    size: u64,
    /// How much of that was given back since, and up to where.
    given_back: u64,
    forgotten: u64,
}

impl<C: Content> Part<C> {
    /// What is to be sent of a file.
    ///
    /// # Errors
    /// What is none.
    pub fn of(extent: Extent<C::Received>) -> Result<Self, C::Received> {
        let Extent { file, offset, left, is_ours } = extent;
        let content = C::of(file)?;
        let size = content.size_on_medium().unwrap_or(left);
        Ok(Part { content, offset, left, is_ours, size, given_back: 0, forgotten: offset })
    }

    /// The same, for whoever goes on with it.
    pub fn extent(&self) -> Extent<&C> {
        let &Part { offset, left, is_ours, .. } = self;
        Extent { file: &self.content, offset, left, is_ours }
    }

    /// Bytes that are still to be sent.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Whether there is nothing in the file, as far as anybody knows.
    pub fn is_empty(&self) -> bool {
        self.content.is_empty()
    }

    /// What it takes for nobody else's sake until it is closed: not what a server has anyway. Memory without a name is
    /// taken by whoever has it open, and who that is beside us nobody can tell.
    pub fn held(&self) -> u64 {
        let is_taken = self.is_ours || self.content.is_in_memory() && !self.content.has_name();
        if is_taken { self.size.saturating_sub(self.given_back) } else { 0 }
    }

    /// Closes it, where nobody waits for that.
    pub fn close(self, reader: &mut impl Reader<C>, slow_close: &mut impl SlowClose<C::Received>) {
        close(self.content, reader, slow_close);
    }

    /// So many bytes of it were sent.
    fn advance(&mut self, sent: u64, reader: &mut impl Reader<C>) {
        self.offset += sent;
        self.left -= sent;
        if self.is_ours && self.offset - self.forgotten >= FORGET {
            let given_back = reader.forget(&self.content, self.forgotten, self.offset);
            self.given_back += given_back;
            if given_back > 0 {
                // What is less than a page is given back with the next ones.
                self.forgotten = self.offset - self.offset % PAGE;
            }
        }
    }
}

/// Closes it where nobody waits for that: memory takes its time if it is much, and a sender may have made it more since it
/// came; what is on a disk may take for ever, and is closed beside others of its file system only.
pub(super) fn close<C: Content>(
    content: C,
    reader: &mut impl Reader<C>,
    slow_close: &mut impl SlowClose<C::Received>,
) {
    if !content.is_in_memory() {
        return reader.close(content);
    }
    match content.into_received() {
        Ok(received) => slow_close.close(received),
        Err(content) => reader.close(content),
    }
}

/// What came of a disk.
enum Ahead<P> {
    Nothing,
    /// It was asked for, with that number.
    Asked(u64),
    /// It has come, and is so much.
    Here(P, usize),
}

/// What came of writing once.
pub(super) enum Written<C> {
    /// Some.
    Some {
        bytes: u64,
        /// How much less is held now.
        held: u64,
        /// Whether the socket took no more than that.
        is_full: bool,
        /// The part that has come to its end with that.
        ended: Option<Part<C>>,
    },
    /// Nothing is left.
    All,
    /// The next bytes have to be read first: they were asked for, with the number that was given for that.
    Asked,
    /// They are being read.
    Later,
    Short,
    NoRoom,
    NoMemory,
    Gone,
}

/// One connection's.
pub(super) struct Job<W: World> {
    pub spool: Spool,
    pub parts: VecDeque<Part<W::Content>>,
    /// Of the first part.
    ahead: Ahead<<W::Content as Content>::Piece>,
    /// What the backend waits for.
    pub interest: Option<Interest>,
}

impl<W: World> Job<W> {
    /// One that nobody waits for yet. Of each part there is something left.
    pub fn new(spool: Spool, parts: VecDeque<Part<W::Content>>) -> Self {
        Job { spool, parts, ahead: Ahead::Nothing, interest: None }
    }

    /// With which number its next bytes were asked for, if they are being read.
    pub fn asked(&self) -> Option<u64> {
        if let Ahead::Asked(ticket) = self.ahead { Some(ticket) } else { None }
    }

    /// What was asked for has come, or, with `None`, will not.
    pub fn has_read(&mut self, piece: Option<(<W::Content as Content>::Piece, usize)>) {
        self.ahead = piece.map_or(Ahead::Nothing, |(piece, length)| Ahead::Here(piece, length));
    }

    /// Writes once. What has to be read first is asked of `reader`, with the number `ticket`; `scratch` is where what is
    /// prompt is read to, on its way.
    pub fn write(
        &mut self,
        socket: &W::Socket,
        ticket: u64,
        reader: &mut W::Reader,
        scratch: &mut <W::Content as Content>::Piece,
    ) -> Written<W::Content> {
        let Some(part) = self.parts.front_mut() else { return Written::All };
        let most = part.left.min(PIECE as u64) as usize;
        let (sent, offered) = match &self.ahead {
            Ahead::Asked(_) => return Written::Later,
            Ahead::Here(piece, length) => {
                let written = (socket.send(piece), *length);
                // What of it was not sent is read again, as thousands may wait for room.
                self.ahead = Ahead::Nothing;
                written
            }
            Ahead::Nothing if !part.content.is_prompt() => {
                self.ahead = Ahead::Asked(ticket);
                reader.read(ticket, &part.content, part.offset, most);
                return Written::Asked;
            }
            Ahead::Nothing => match part.content.read(part.offset, most, scratch) {
                Ok(0) => return Written::Short,
                Ok(length) => (socket.send(scratch), length),
                Err(e) if e.kind() == ErrorKind::OutOfMemory => return Written::NoMemory,
                Err(_) => return Written::Short,
            },
        };
        match sent {
            Ok(sent) => {
                let (bytes, before) = (sent as u64, part.held());
                part.advance(bytes, reader);
                let (after, is_over) = (part.held(), part.left == 0);
                let ended = if is_over { self.parts.pop_front() } else { None };
                let held = if is_over { before } else { before - after };
                Written::Some { bytes, held, is_full: sent < offered, ended }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => Written::NoRoom,
            Err(e) if e.kind() == ErrorKind::OutOfMemory => Written::NoMemory,
            Err(_) => Written::Gone,
        }
    }
}
