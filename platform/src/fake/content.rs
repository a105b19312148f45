// SPDX-License-Identifier: BSD-3-Clause

//! Files whose content is to be sent, of which only their length is kept, and who does with them what may take
//! long.

use super::descriptors::{Fd, Kind, Received};
use super::evidence::Call;
use super::slab::Key;
use super::state::State;
use super::{Held, Kernel};
use crate::backend::Descriptor;
use crate::content::PAGE;
use crate::reader::{self, Answer};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::Duration;

/// How a file is made.
#[derive(Clone, Copy, Debug)]
pub struct Medium {
    /// Whether it is in memory, and has a name there.
    pub is_in_memory: bool,
    /// See there.
    pub has_name: bool,
    /// Whether reading it never waits.
    pub is_prompt: bool,
    /// What a read takes, if it is not.
    pub read: Duration,
    /// Whether reading fails.
    pub is_broken: bool,
    /// What a close takes, if it may wait.
    pub closing: Option<Duration>,
    /// How many bytes of it are holes.
    pub holes: u64,
}

impl Medium {
    /// Memory without a name.
    pub const fn memory() -> Medium {
        Medium {
            is_in_memory: true,
            has_name: false,
            is_prompt: true,
            read: Duration::ZERO,
            is_broken: false,
            closing: None,
            holes: 0,
        }
    }

    /// Memory whose reading takes that long, as it may elsewhere than on Linux.
    pub const fn locked_memory(time: Duration) -> Medium {
        Medium { is_prompt: false, read: time, ..Medium::memory() }
    }

    /// A disk, or another machine, of which a read and a close take that long.
    pub const fn slow(time: Duration) -> Medium {
        Medium {
            is_in_memory: false,
            has_name: true,
            is_prompt: false,
            read: time,
            closing: Some(time),
            ..Medium::memory()
        }
    }
}

/// A file, of which only the length is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Store {
    /// Which file, of all that there ever were.
    file: u64,
    length: u64,
    pub medium: Medium,
    /// What was given back before that, and how many bytes it were.
    forgotten: u64,
    given_back: u64,
}

/// What was read: which bytes of which file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// Which file.
    pub file: u64,
    /// Where in it.
    pub offset: u64,
    /// How much of it.
    pub length: usize,
}

/// A file that was handed over. Dropping closes it, if no reader has it just now.
pub struct Content {
    open: Rc<Open>,
    /// What was asked when it came.
    medium: Medium,
    is_empty: bool,
    size_on_medium: u64,
}

/// As it is open.
struct Open {
    fd: Fd,
    /// Where it is counted until it is closed.
    closing: RefCell<Option<Counted>>,
}

/// One of those that are counted.
struct Counted(Rc<Cell<usize>>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Open {
    /// A reader's thread has no more to do with it.
    fn let_go(self: Rc<Open>) {
        if let Some(Open { fd, closing }) = Rc::into_inner(self) {
            fd.close_elsewhere();
            drop(closing);
        }
    }

    fn store(&self, state: &State, call: Call) -> (Key, Store) {
        match state.kind(state.file(self.fd.process, self.fd.number(), call)) {
            Kind::Store(store) => (store, *state.stores.get(store).expect("it is open")),
            kind => panic!("content is a {kind:?}"),
        }
    }
}

impl Store {
    fn read(&self, offset: u64, most: usize) -> io::Result<Piece> {
        if self.medium.is_broken {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let length = self.length.saturating_sub(offset).min(most as u64) as usize;
        Ok(Piece { file: self.file, offset, length })
    }
}

impl crate::content::Content for Content {
    type Received = Received;
    type Piece = Piece;

    fn of(received: Received) -> Result<Self, Received> {
        let store = {
            let mut state = received.0.kernel.enter();
            let file = state.file(received.0.process, received.0.number(), Call::ContentOf);
            let store = match state.kind(file) {
                Kind::Store(store) => state.stores.get(store).copied(),
                _ => None,
            };
            state.note(Call::ContentOf, received.0.number(), store.is_some());
            store
        };
        let Some(Store { length, medium, given_back, .. }) = store else { return Err(received) };
        let open = Rc::new(Open { fd: received.0, closing: RefCell::default() });
        let size_on_medium = length.saturating_sub(medium.holes + given_back);
        Ok(Content { open, medium, is_empty: length == 0, size_on_medium })
    }

    fn into_received(self) -> Result<Received, Self> {
        Rc::try_unwrap(self.open).map(|Open { fd, .. }| Received(fd)).map_err(|open| Content { open, ..self })
    }

    fn is_empty(&self) -> bool {
        self.is_empty && !self.medium.is_in_memory
    }

    fn is_prompt(&self) -> bool {
        self.medium.is_prompt
    }

    fn is_in_memory(&self) -> bool {
        self.medium.is_in_memory
    }

    fn has_name(&self) -> bool {
        self.medium.has_name
    }

    fn size_on_medium(&self) -> Option<u64> {
        Some(self.size_on_medium)
    }

    fn read(&self, offset: u64, most: usize, piece: &mut Piece) -> io::Result<usize> {
        let fd = &self.open.fd;
        let mut state = fd.kernel.enter();
        let (_, store) = self.open.store(&state, Call::Read);
        let number = fd.number();
        if !store.medium.is_prompt {
            state.violation(format_args!("a read of descriptor {number}, which may take long"));
        }
        if offset < store.forgotten {
            state.violation(format_args!("a read of what was forgotten, of descriptor {number}"));
        }
        let got = match state.dice.roll(|faults| faults.memory) {
            true => Err(ErrorKind::OutOfMemory.into()),
            false => store.read(offset, most),
        };
        state.note(Call::Read, number, got.as_ref().map_or(-1, |piece| piece.length as i64));
        *piece = got?;
        Ok(piece.length)
    }
}

impl Held {
    /// The number of the file that this is, as a [`Piece`] has it.
    pub fn file_number(&self) -> u64 {
        let kernel = self.kernel.get();
        let state = kernel.state();
        match state.kind(self.file) {
            Kind::Store(store) => state.stores.get(store).map_or(0, |store| store.file),
            kind => panic!("a file is a {kind:?}"),
        }
    }

    /// Has a file be so long from now on.
    pub fn set_length(&self, length: u64) {
        let kernel = self.kernel.get();
        let mut state = kernel.state();
        if let Kind::Store(store) = state.kind(self.file) {
            if let Some(store) = state.stores.get_mut(store) {
                store.length = length;
            }
        }
    }
}

impl Kernel {
    /// A file of that length.
    pub fn file(&self, length: u64, medium: Medium) -> Held {
        let mut state = self.state();
        state.files_made += 1;
        let file = state.files_made;
        let store = state.stores.insert(Store { file, length, medium, forgotten: 0, given_back: 0 });
        let file = state.open(Kind::Store(store));
        drop(state);
        Held::new(self.handle(), file)
    }
}

/// Does each in the time that it takes, as if each had a thread of its own.
pub struct Reader {
    bell: Fd,
    key: Key,
    closing: Rc<Cell<usize>>,
}

impl Reader {
    pub(super) fn new(bell: Fd, key: Key) -> Self {
        Reader { bell, key, closing: Rc::default() }
    }
}

/// What a process's reader has done.
#[derive(Default)]
pub(super) struct Reading {
    bell: Option<Key>,
    answers: VecDeque<(u64, io::Result<Piece>)>,
    /// Whether something was closed, and nobody has looked since.
    has_closed: bool,
}

impl Reading {
    pub fn is_readable(&self) -> bool {
        self.has_closed || !self.answers.is_empty()
    }
}

impl State {
    /// A process's reader, and what wakes it.
    pub fn open_reading(&mut self) -> (Key, Key) {
        let reading = self.readings.insert(Reading::default());
        let bell = self.open(Kind::Bell(reading));
        if let Some(it) = self.readings.get_mut(reading) {
            it.bell = Some(bell);
        }
        (bell, reading)
    }

    /// A read has come to its end.
    fn has_read(&mut self, reading: Key, ticket: u64, result: io::Result<Piece>) {
        let Some(it) = self.readings.get_mut(reading) else { return };
        it.answers.push_back((ticket, result));
        if let Some(bell) = it.bell {
            self.wake(bell);
        }
    }

    /// Something was closed, or perhaps by whoever reads it.
    fn has_closed(&mut self, reading: Key) {
        let Some(it) = self.readings.get_mut(reading) else { return };
        it.has_closed = true;
        if let Some(bell) = it.bell {
            self.wake(bell);
        }
    }
}

impl Descriptor for Content {
    fn number(&self) -> RawFd {
        self.open.fd.number()
    }
}

impl Descriptor for Reader {
    fn number(&self) -> RawFd {
        self.bell.number()
    }
}

impl reader::Reader<Content> for Reader {
    fn read(&mut self, ticket: u64, content: &Content, offset: u64, most: usize) {
        let (medium, has_begun) = {
            let mut state = self.bell.kernel.enter();
            state.note(Call::Ask, content.number(), most as i64);
            (content.medium, state.dice.rng.bool())
        };
        // Who has not begun finds it gone, or does not.
        let (reading, weak) = (self.key, Rc::downgrade(&content.open));
        let strong = has_begun.then(|| Rc::clone(&content.open));
        self.bell.kernel.after(medium.read, move |kernel| {
            let is_wanted = |open: &Rc<Open>| has_begun || open.closing.borrow().is_none();
            let Some(open) = strong.or_else(|| weak.upgrade()).filter(is_wanted) else { return };
            if !kernel.is_alive(open.fd.process) {
                return;
            }
            let (_, store) = open.store(&kernel.state(), Call::Ask);
            open.let_go(); // before anybody looks at the answer
            kernel.state().has_read(reading, ticket, store.read(offset, most));
        });
    }

    fn forget(&mut self, content: &Content, start: u64, end: u64) -> u64 {
        let mut state = self.bell.kernel.enter();
        let (key, store) = content.open.store(&state, Call::Forget);
        let (first, last) = (start.next_multiple_of(PAGE), end - end % PAGE);
        let can_be = store.medium.is_in_memory && first < last && !state.dice.roll(|faults| faults.memory);
        let bytes = if can_be { last - first } else { 0 };
        state.note(Call::Forget, content.number(), bytes as i64);
        if let Some(store) = state.stores.get_mut(key).filter(|_| can_be) {
            store.forgotten = store.forgotten.max(end);
            store.given_back += bytes;
        }
        bytes
    }

    fn close(&mut self, content: Content) {
        self.bell.kernel.enter().note(Call::CloseContent, content.number(), 0);
        self.closing.set(self.closing.get() + 1);
        let Content { open, medium, .. } = content;
        *open.closing.borrow_mut() = Some(Counted(Rc::clone(&self.closing)));
        if medium.is_in_memory {
            return drop(open);
        }
        let takes = medium.closing.unwrap_or_default();
        let reading = self.key;
        self.bell.kernel.after(takes, move |kernel| {
            open.let_go();
            kernel.state().has_closed(reading);
        });
    }

    fn take(&mut self) -> Option<Answer<Content>> {
        let mut state = self.bell.kernel.enter();
        let reading = state.readings.get_mut(self.key)?;
        let Some((ticket, result)) = reading.answers.pop_front() else {
            reading.has_closed = false;
            return None;
        };
        state.note(Call::Answer, self.bell.number(), ticket as i64);
        drop(state);
        let piece = result.as_ref().map_or(Piece::default(), |&piece| piece);
        Some(Answer { ticket, piece, result: result.map(|piece| piece.length) })
    }

    fn closing(&self) -> usize {
        self.closing.get()
    }
}
