// SPDX-License-Identifier: BSD-3-Clause

//! Unix sockets: doors, who connects to them, and descriptors in flight, unix(7).

use super::descriptors::{By, Fd, Held, Kind, Received};
use super::evidence::Call;
use super::faults::{Credentials, Truncation};
use super::slab::Key;
use super::state::State;
use super::{Handle, Kernel, Process};
use crate::backend::{Descriptor, Interest};
use crate::fdpass::{self, MAX_DESCRIPTORS, PORTABLE_DESCRIPTORS};
use crate::peer::Peer;
use std::cell::{RefCell, RefMut};
use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::Duration;

/// What a caller has sent and nobody has read.
struct Message {
    bytes: VecDeque<u8>,
    /// They come with its first byte, or with the end of the stream if it has none.
    files: Vec<Key>,
}

/// A connection over a Unix socket.
pub(super) struct Channel {
    inbox: VecDeque<Message>,
    outbox: Vec<u8>,
    /// Descriptors on their way to the caller, in the order in which they were sent.
    passed: VecDeque<Key>,
    /// How much of an answer the caller's system holds.
    room: usize,
    /// The daemon's end, once it was accepted.
    file: Option<Key>,
    /// Whether there is one, or will be.
    daemon: bool,
    /// Whether there is somebody at the other end.
    caller: bool,
    /// Whether the daemon wants to hear no more.
    silenced: bool,
    /// Whether it has nothing more to say.
    finished: bool,
    /// What its next receive says, when the inbox is empty.
    error: Option<i32>,
    who: Peer,
    /// Whether somebody may still ask about it.
    held: bool,
    at_hang_up: Option<super::agenda::Call>,
    /// What is to happen when the caller is told something.
    at_word: Option<super::agenda::Call>,
}

impl Channel {
    /// Between the two, of whom the daemon has not let the other in yet.
    pub fn new(who: Peer) -> Self {
        Channel {
            inbox: VecDeque::new(),
            outbox: Vec::new(),
            passed: VecDeque::new(),
            room: 200_000,
            file: None,
            daemon: true,
            caller: true,
            silenced: false,
            finished: false,
            error: None,
            who,
            held: true,
            at_hang_up: None,
            at_word: None,
        }
    }

    /// It is the daemon who has called, with that end.
    pub const fn is_called(&mut self, file: Key) {
        self.file = Some(file);
    }

    /// Whether there will be somebody who asks about it at the other end.
    pub const fn was_let_in(&mut self, held: bool) {
        self.held = held;
    }

    /// Whether it is ready whatever it is asked for.
    pub const fn has_failed(&self) -> bool {
        self.error.is_some() || !self.caller
    }

    pub fn is_readable(&self) -> bool {
        !self.inbox.is_empty() || self.silenced
    }

    pub fn is_writable(&self) -> bool {
        self.outbox.len() < self.room
    }
}

/// A listening Unix socket.
pub(super) struct Gate {
    waiting: VecDeque<Key>,
    backlog: usize,
    shut: bool,
    file: Option<Key>,
}

impl Gate {
    pub const fn new(backlog: usize) -> Self {
        Gate { waiting: VecDeque::new(), backlog, shut: false, file: None }
    }

    /// One that is shut is ready for ever, with POLLHUP.
    pub fn is_ready(&self) -> bool {
        self.shut || !self.waiting.is_empty()
    }
}

/// Where a door is, for those who knock. It stays the name of that door when it is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address(pub(super) Key);

impl State {
    pub fn open_door(&mut self, backlog: usize) -> (Key, Address) {
        let door = self.doors.insert(Gate::new(backlog));
        let file = self.open(Kind::Door(door));
        if let Some(it) = self.doors.get_mut(door) {
            it.file = Some(file);
        }
        (file, Address(door))
    }

    pub fn end_door(&mut self, door: Key) {
        for link in self.doors.remove(door).into_iter().flat_map(|door| door.waiting) {
            self.end_link(link);
        }
    }

    fn connect(&mut self, door: Key, who: Peer) -> io::Result<(Key, Key)> {
        let refused = || io::Error::from_raw_os_error(libc::ECONNREFUSED);
        let it = self.doors.get_mut(door).filter(|door| !door.shut).ok_or_else(refused)?;
        // As on Linux, where a backlog of 0 holds one.
        if it.waiting.len() > it.backlog {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let link = self.links.insert(Channel::new(who));
        let file = self.open(Kind::Caller(link));
        let Some(it) = self.doors.get_mut(door) else { return Err(refused()) };
        it.waiting.push_back(link);
        if let Some(door) = it.file {
            self.note_outside(link, 1);
            self.wake(door);
        }
        Ok((link, file))
    }

    fn accept(&mut self, process: usize, door: Key) -> io::Result<RawFd> {
        if self.dice.roll(|faults| faults.interrupted) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if self.dice.roll(|faults| faults.not_there) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let first = self.doors.get(door).and_then(|door| door.waiting.front()).copied();
        if self.dice.roll(|faults| faults.accept) {
            let errors = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
            return Err(self.dice.one_of(if first.is_some() { &errors } else { &errors[..2] }));
        }
        let link = first.ok_or(io::ErrorKind::WouldBlock)?;
        if self.dice.roll(|faults| faults.aborted) {
            self.take_in(door);
            self.end_link(link);
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let file = self.open(Kind::Link(link));
        match self.install(process, file) {
            Ok(number) => {
                self.take_in(door);
                if let Some(it) = self.links.get_mut(link) {
                    it.file = Some(file);
                }
                Ok(number)
            }
            Err(error) => {
                self.files.remove(file); // and it still waits
                Err(error)
            }
        }
    }

    fn take_in(&mut self, door: Key) {
        if let Some(it) = self.doors.get_mut(door) {
            it.waiting.pop_front();
        }
    }

    fn send_message(&mut self, link: Key, bytes: &[u8], files: &[Key]) -> io::Result<()> {
        let error = |number| Err(io::Error::from_raw_os_error(number));
        if files.len() > self.flavour.message_descriptors {
            return error(libc::EINVAL);
        }
        let Some(it) = self.links.get(link) else { return error(libc::EPIPE) };
        if !it.daemon || it.silenced || !it.caller {
            return error(libc::EPIPE);
        }
        if it.inbox.len() > self.flavour.queued_messages {
            return error(libc::EAGAIN);
        }
        if !files.is_empty() && self.in_flight + files.len() > self.flavour.in_flight {
            return error(libc::ETOOMANYREFS);
        }
        self.queue(link, bytes, files);
        Ok(())
    }

    fn queue(&mut self, link: Key, bytes: &[u8], files: &[Key]) {
        if !self.links.get(link).is_some_and(|it| it.daemon) {
            return;
        }
        for &file in files {
            if let Some(file) = self.files.get_mut(file) {
                file.references += 1;
            }
        }
        self.in_flight += files.len();
        self.note_outside(link, files.len() as u64);
        let Some(it) = self.links.get_mut(link) else { return };
        it.inbox.push_back(Message { bytes: bytes.iter().copied().collect(), files: files.to_vec() });
        if let Some(file) = it.file {
            self.wake(file);
        }
    }

    /// What the daemon reads; the numbers of the descriptors go to `numbers`.
    fn receive(
        &mut self,
        process: usize,
        link: Key,
        numbers: &mut Vec<RawFd>,
    ) -> io::Result<fdpass::Received> {
        if self.dice.roll(|faults| faults.interrupted) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if self.dice.roll(|faults| faults.not_there) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if self.dice.roll(|faults| faults.memory) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let Some(it) = self.links.get_mut(link) else { return Ok(fdpass::Received::End) };
        let Some(message) = it.inbox.front_mut() else {
            return match it.error.take() {
                Some(error) => Err(io::Error::from_raw_os_error(error)),
                None if it.silenced || !it.caller => Ok(fdpass::Received::End),
                None => Err(io::ErrorKind::WouldBlock.into()),
            };
        };
        let byte = message.bytes.pop_front();
        let files = std::mem::take(&mut message.files);
        if message.bytes.is_empty() {
            it.inbox.pop_front();
        }
        let truncated = self.hand_out(process, files.clone(), numbers);
        for file in files.into_iter().take(numbers.len()) {
            self.evidence.delivered += 1;
            self.evidence.delivered_files += u64::from(matches!(self.kind(file), Kind::Store(_)));
            self.received(file);
        }
        Ok(match byte {
            None => fdpass::Received::End,
            Some(_) if truncated && self.flavour.truncation == Truncation::Lost => fdpass::Received::Lost,
            Some(byte) => fdpass::Received::Byte { byte, truncated },
        })
    }

    /// What the daemon reads of `buffer`'s length, but not beyond what one message has.
    fn hear(
        &mut self,
        process: usize,
        link: Key,
        buffer: &mut [u8],
        numbers: &mut Vec<RawFd>,
    ) -> io::Result<usize> {
        let more = self.links.get(link).and_then(|it| it.inbox.front()).map_or(0, |it| it.bytes.len());
        match self.receive(process, link, numbers)? {
            fdpass::Received::End => Ok(0),
            fdpass::Received::Lost | fdpass::Received::Byte { truncated: true, .. } => {
                Err(io::ErrorKind::QuotaExceeded.into())
            }
            fdpass::Received::Byte { byte, .. } => {
                let Some((first, rest)) = buffer.split_first_mut() else { return Ok(0) };
                *first = byte;
                let Some(it) = self.links.get_mut(link).filter(|_| more > 1) else { return Ok(1) };
                let Some(message) = it.inbox.front_mut() else { return Ok(1) };
                let count = rest.len().min(more - 1);
                rest.iter_mut().zip(message.bytes.drain(..count)).for_each(|(to, byte)| *to = byte);
                if message.bytes.is_empty() {
                    it.inbox.pop_front();
                }
                Ok(1 + count)
            }
        }
    }

    /// What the daemon sends: bytes, and copies of its descriptors.
    fn send_on(&mut self, process: usize, link: Key, bytes: &[u8], numbers: &[RawFd]) -> io::Result<usize> {
        if self.dice.roll(|faults| faults.interrupted) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if self.dice.roll(|faults| faults.memory) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let files: Vec<_> = numbers.iter().map(|&number| self.file(process, number, Call::Pass)).collect();
        let in_flight = self.flavour.in_flight;
        let Some(it) = self.links.get_mut(link).filter(|it| it.caller) else {
            return Err(io::Error::from_raw_os_error(libc::EPIPE));
        };
        let fits = bytes.len().min(it.room.saturating_sub(it.outbox.len()));
        if fits == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if !files.is_empty() && self.in_flight + files.len() > in_flight {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        it.outbox.extend_from_slice(&bytes[..fits]);
        it.passed.extend(&files);
        self.in_flight += files.len();
        for file in files {
            if let Some(file) = self.files.get_mut(file) {
                file.references += 1;
            }
        }
        self.told(link);
        Ok(fits)
    }

    /// Has happen what is to when the caller is told something.
    fn told(&mut self, link: Key) {
        if let Some(action) = self.links.get_mut(link).and_then(|it| it.at_word.take()) {
            self.soon(action);
        }
    }

    /// Whether the daemon's end is ready for that.
    fn is_link_ready(&self, link: Key, interest: Interest) -> bool {
        self.links.get(link).is_none_or(|it| {
            let reads = it.is_readable() && interest != Interest::Write;
            let writes = it.is_writable() && interest != Interest::Read;
            reads || writes || it.has_failed()
        })
    }

    /// Gives numbers to what came along, as far as there are any, and closes the others. Returns
    /// whether there were others.
    fn hand_out(&mut self, process: usize, files: Vec<Key>, numbers: &mut Vec<RawFd>) -> bool {
        self.in_flight -= files.len();
        let mut room = MAX_DESCRIPTORS;
        if self.flavour.truncation == Truncation::Lost {
            let table = &self.processes[process];
            let fits = files.len() <= MAX_DESCRIPTORS.min(table.limit.saturating_sub(table.open));
            room = if fits { room } else { 0 };
        }
        if !files.is_empty() && self.dice.roll(|faults| faults.truncate) {
            let lost = self.flavour.truncation == Truncation::Lost;
            room = if lost { 0 } else { self.dice.rng.usize(..files.len().min(room)) };
        }
        let mut truncated = false;
        for file in files {
            let number = if room > 0 { self.install(process, file).ok() } else { None };
            if let Some(number) = number {
                room -= 1;
                numbers.push(number);
            } else {
                room = 0;
                truncated = true;
                self.evidence.truncated += 1;
                self.release(file, By::Kernel);
            }
        }
        truncated
    }

    fn received(&mut self, file: Key) {
        let now = self.now;
        let Kind::Tcp(connection) = self.kind(file) else { return };
        if let Some(it) = self.connections.get_mut(connection) {
            (it.facts.received, it.facts.parted) = (Some(now), None);
            it.facts.received_times += 1;
            let given = it.linger.filter(|time| !time.is_zero());
            it.facts.given = it.facts.given.into_iter().chain(given).min();
        }
    }

    /// Whether the last close of the daemon's end would take time, for what is queued there.
    pub fn slow_in_queue(&self, link: Key) -> Option<Duration> {
        let files = self.links.get(link)?.inbox.iter().flat_map(|message| &message.files);
        files.filter_map(|&file| self.slowness(file)).reduce(|sum, time| sum + time)
    }

    /// The last close of the daemon's end, or its end before it was let in.
    pub fn end_link(&mut self, link: Key) {
        let Some(it) = self.links.get_mut(link) else { return };
        (it.daemon, it.file) = (false, None);
        let inbox = std::mem::take(&mut it.inbox);
        if let Some(action) = it.at_hang_up.take() {
            self.soon(action);
        }
        for file in inbox.into_iter().flat_map(|message| message.files) {
            self.in_flight -= 1;
            self.release(file, By::Kernel);
        }
        self.told(link);
        self.forget_link(link);
    }

    /// The last close of the caller's end.
    pub fn end_caller(&mut self, link: Key) {
        let Some(it) = self.links.get_mut(link) else { return };
        it.caller = false;
        let passed = std::mem::take(&mut it.passed);
        if !it.outbox.is_empty() {
            it.error = Some(libc::ECONNRESET); // it has not read all that it was told
        }
        let action = it.at_word.take();
        if let Some(file) = it.file {
            self.note_outside(link, 0);
            self.wake(file);
        }
        self.drop_soon(action);
        for file in passed {
            self.in_flight -= 1;
            self.release(file, By::Kernel);
        }
        self.forget_link(link);
    }

    /// Has the caller read what it was told, but for the descriptors.
    pub fn forget_told(&mut self, link: Key) {
        if let Some(it) = self.links.get_mut(link) {
            it.outbox.clear();
        }
    }

    fn forget_link(&mut self, link: Key) {
        if self.links.get(link).is_some_and(|it| !it.daemon && !it.caller && !it.held) {
            self.links.remove(link);
        }
    }
}

/// Where senders, or those who ask, come in. Dropping closes it.
pub struct Door(pub(super) Fd);

impl Descriptor for Door {
    fn number(&self) -> RawFd {
        self.0.number()
    }
}

impl Door {
    /// What was such a door in another process and came along from there.
    pub fn of(received: Received) -> Self {
        Door(received.0)
    }

    fn enter(&self, call: Call) -> (RefMut<'_, State>, Key) {
        let state = self.0.kernel.enter();
        match state.kind(state.file(self.0.process, self.0.number(), call)) {
            Kind::Door(door) => (state, door),
            kind => panic!("a door is a {kind:?}"),
        }
    }
}

impl fdpass::Door for Door {
    type Link = Link;

    fn accept(&self) -> io::Result<Link> {
        let (mut state, door) = self.enter(Call::Accept);
        let process = self.0.process;
        let accepted = state.accept(process, door);
        let result = accepted.as_ref().map_or_else(error_number, |&number| number.into());
        state.note(Call::Accept, self.0.number(), result);
        accepted.map(|number| Link(Fd::new(self.0.kernel.clone(), process, number)))
    }

    fn shut(&self) {
        let (mut state, door) = self.enter(Call::Shut);
        state.note(Call::Shut, self.0.number(), 0);
        let silences = state.flavour.silences;
        let Some(it) = state.doors.get_mut(door).filter(|_| silences) else { return };
        it.shut = true;
        if let Some(file) = it.file {
            state.wake(file);
        }
    }

    fn claim(&self) {
        self.enter(Call::Claim).0.note(Call::Claim, self.0.number(), 0);
    }
}

/// An error for the log, below 0.
pub(super) fn error_number(error: &io::Error) -> i64 {
    -1 - i64::from(error.raw_os_error().unwrap_or_default())
}

/// The daemon's end of a connection over a Unix socket. Dropping closes it.
pub struct Link(pub(super) Fd);

impl Descriptor for Link {
    fn number(&self) -> RawFd {
        self.0.number()
    }
}

impl Link {
    fn enter(&self, call: Call) -> (RefMut<'_, State>, Key) {
        let state = self.0.kernel.enter();
        match state.kind(state.file(self.0.process, self.0.number(), call)) {
            Kind::Link(link) => (state, link),
            kind => panic!("a link is a {kind:?}"),
        }
    }
}

impl fdpass::Link for Link {
    type Received = Received;

    fn receive(&self, descriptors: &mut Vec<Received>) -> io::Result<fdpass::Received> {
        let (mut state, link) = self.enter(Call::Receive);
        let mut numbers = Vec::new();
        let process = self.0.process;
        let got = state.receive(process, link, &mut numbers);
        let result = got.as_ref().map_or_else(error_number, |_| numbers.len() as i64);
        state.note(Call::Receive, self.0.number(), result);
        state.settle();
        drop(state);
        let received = |number| Received(Fd::new(self.0.kernel.clone(), process, number));
        descriptors.extend(numbers.into_iter().map(received));
        got
    }

    fn is_empty(&self) -> bool {
        let (mut state, link) = self.enter(Call::Receive);
        let is_empty = state.links.get(link).is_none_or(|it| it.inbox.is_empty());
        state.note(Call::Receive, self.0.number(), is_empty);
        is_empty
    }

    fn silence(&self) -> bool {
        let (mut state, link) = self.enter(Call::Silence);
        let silences = state.flavour.silences;
        state.note(Call::Silence, self.0.number(), silences);
        if let Some(it) = state.links.get_mut(link).filter(|_| silences) {
            it.silenced = true;
            if let Some(file) = it.file {
                state.wake(file);
            }
        }
        silences
    }

    fn peer(&self) -> io::Result<Peer> {
        let (mut state, link) = self.enter(Call::LinkPeer);
        state.note(Call::LinkPeer, self.0.number(), 0);
        let gone = || io::Error::from_raw_os_error(libc::ENOTCONN);
        let it = state.links.get(link).ok_or_else(gone)?;
        match state.flavour.credentials {
            Credentials::Never => Err(io::ErrorKind::Unsupported.into()),
            Credentials::WhileThere if !it.caller => Err(gone()),
            Credentials::Kept | Credentials::WhileThere => Ok(it.who.clone()),
        }
    }

    fn tell(&mut self, text: &[u8]) -> io::Result<()> {
        let (mut state, link) = self.enter(Call::Tell);
        state.note(Call::Tell, self.0.number(), text.len() as i64);
        let Some(it) = state.links.get_mut(link).filter(|it| it.caller) else {
            return Err(io::Error::from_raw_os_error(libc::EPIPE));
        };
        let fits = text.len().min(it.room.saturating_sub(it.outbox.len()));
        it.outbox.extend_from_slice(&text[..fits]);
        state.told(link);
        if fits < text.len() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    }

    fn finish(&self) {
        let (mut state, link) = self.enter(Call::Finish);
        state.note(Call::Finish, self.0.number(), 0);
        let Some(it) = state.links.get_mut(link) else { return };
        it.finished = true;
        let action = it.at_hang_up.take();
        state.told(link);
        if let Some(action) = action {
            state.soon(action);
        }
    }

    fn pass(&self, bytes: &[u8], descriptors: &[&dyn Descriptor]) -> io::Result<usize> {
        let numbers: Vec<_> = descriptors.iter().map(|fd| fd.number()).collect();
        let (mut state, link) = self.enter(Call::Pass);
        let passed = state.send_on(self.0.process, link, bytes, &numbers);
        let result = passed.as_ref().map_or_else(error_number, |&count| count as i64);
        state.note(Call::Pass, self.0.number(), result);
        passed
    }

    fn hear(&self, buffer: &mut [u8], descriptors: &mut Vec<Received>) -> io::Result<usize> {
        let (mut state, link) = self.enter(Call::Hear);
        let mut numbers = Vec::new();
        let process = self.0.process;
        let heard = state.hear(process, link, buffer, &mut numbers);
        let result = heard.as_ref().map_or_else(error_number, |&count| count as i64);
        state.note(Call::Hear, self.0.number(), result);
        state.settle();
        drop(state);
        let received = |number| Received(Fd::new(self.0.kernel.clone(), process, number));
        descriptors.extend(numbers.into_iter().map(received));
        heard
    }

    fn wait(&self, interest: Interest, patience: Duration) -> io::Result<bool> {
        let until = {
            let (mut state, _) = self.enter(Call::WaitAlone);
            let is_early = state.dice.roll(|faults| faults.early);
            let patience = if is_early { state.dice.time(patience) } else { patience };
            state.now.saturating_add(patience)
        };
        loop {
            let (mut state, link) = self.enter(Call::WaitAlone);
            let is_ready = state.is_link_ready(link, interest);
            if is_ready || state.now >= until {
                state.note(Call::WaitAlone, self.0.number(), is_ready);
                return Ok(is_ready);
            }
            let next = state.agenda.next().map_or(until, |next| next.min(until));
            drop(state);
            self.0.kernel.run_until(next);
        }
    }

    fn into_received(self) -> Received {
        Received(self.0)
    }

    fn of(received: Received) -> Self {
        Link(received.0)
    }
}

/// Who has connected to a door: a sender, or who asks. Clones are the same one; it closes when the last is
/// dropped.
#[derive(Clone)]
pub struct Caller(Rc<Inner>);

struct Inner {
    end: RefCell<Option<Held>>,
    kernel: Handle,
    link: Key,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.end.take();
        let Some(kernel) = self.kernel.try_get().filter(|_| !std::thread::panicking()) else { return };
        let mut state = kernel.state();
        if let Some(it) = state.links.get_mut(self.link) {
            it.held = false;
        }
        state.forget_link(self.link);
    }
}

impl Caller {
    pub(super) fn connect(kernel: &Kernel, door: Key, who: Peer) -> io::Result<Self> {
        let (link, file) = kernel.state().connect(door, who)?;
        let kernel = kernel.handle();
        Ok(Caller::of(link, Held::new(kernel, file)))
    }

    /// The one that has this end of it.
    pub(super) fn of(link: Key, end: Held) -> Self {
        let kernel = end.kernel.clone();
        Caller(Rc::new(Inner { end: RefCell::new(Some(end)), kernel, link }))
    }

    fn with<T>(&self, act: impl FnOnce(&mut State, Key) -> T) -> T {
        let kernel = self.0.kernel.get();
        let mut state = kernel.state();
        act(&mut state, self.0.link)
    }

    /// Sends `bytes`, with `descriptors` in one control message; the caller keeps its own.
    ///
    /// # Errors
    /// `WouldBlock` and ETOOMANYREFS when there is too much in flight; `BrokenPipe` when nobody is to
    /// hear it; `InvalidInput` for more descriptors than a message holds.
    pub fn send(&self, bytes: &[u8], descriptors: &[&Held]) -> io::Result<()> {
        if self.0.end.borrow().is_none() {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        let files: Vec<_> = descriptors.iter().map(|held| held.file).collect();
        self.with(|state, link| state.send_message(link, bytes, &files))
    }

    /// Closes, whatever else has a clone of it. What it has sent can still be read.
    pub fn close(&self) {
        let end = self.0.end.take();
        drop(end);
    }

    /// Closes, and on some systems descriptors arrive with the end.
    pub fn close_with(&self, descriptors: &[&Held]) {
        let files: Vec<_> = descriptors.iter().map(|held| held.file).collect();
        self.with(|state, link| state.queue(link, &[], &files));
        self.close();
    }

    /// Its own end of the connection, to be sent along or kept beyond its end. `None` once it has closed.
    pub fn end(&self) -> Option<Held> {
        self.0.end.borrow().clone()
    }

    /// Takes what it was told and has not read yet.
    pub fn read(&self) -> Vec<u8> {
        self.with(|state, link| {
            let Some(it) = state.links.get_mut(link) else { return Vec::new() };
            let (bytes, file) = (std::mem::take(&mut it.outbox), it.file);
            if let Some(file) = file.filter(|_| !bytes.is_empty()) {
                state.wake(file); // there is room again
            }
            bytes
        })
    }

    /// The same, and the descriptors that came with it.
    pub fn take(&self) -> (Vec<u8>, Vec<Held>) {
        let kernel = &self.0.kernel;
        self.with(|state, link| {
            let Some(it) = state.links.get_mut(link) else { return Default::default() };
            let (bytes, files) = (std::mem::take(&mut it.outbox), std::mem::take(&mut it.passed));
            state.in_flight -= files.len();
            // Each takes over the reference that was on its way.
            (bytes, files.into_iter().map(|file| Held::new(kernel.clone(), file)).collect())
        })
    }

    /// How many bytes of what it was told it has not read.
    pub fn unread(&self) -> usize {
        self.with(|state, link| state.links.get(link).map_or(0, |it| it.outbox.len()))
    }

    /// Takes what it was told, and the descriptors that came with it, as those of `process`. `None` when it was
    /// told everything and the other end is closed.
    ///
    /// # Errors
    /// `QuotaExceeded` when the process has no room for them: they are lost.
    pub fn hear(&self, process: &Process) -> io::Result<Option<(Vec<u8>, Vec<Received>)>> {
        let (bytes, numbers, truncated) = self.with(|state, link| {
            let mut numbers = Vec::new();
            let Some(it) = state.links.get_mut(link) else { return (Vec::new(), numbers, false) };
            let (bytes, mut files) = (std::mem::take(&mut it.outbox), std::mem::take(&mut it.passed));
            let file = it.file;
            let mut truncated = false;
            // In several reads, as there are several messages.
            for files in files.make_contiguous().chunks(PORTABLE_DESCRIPTORS) {
                truncated |= state.hand_out(process.number, files.to_vec(), &mut numbers);
            }
            if let Some(file) = file {
                state.wake(file); // there is room again
            }
            (bytes, numbers, truncated)
        });
        let kernel = &process.kernel;
        let received: Vec<_> = numbers
            .into_iter()
            .map(|number| Received(Fd::new(kernel.clone(), process.number, number)))
            .collect();
        match () {
            () if truncated => {
                // Those that arrived stay open, as nobody knows them.
                received.into_iter().for_each(|received| _ = received.0.into_number());
                Err(io::ErrorKind::QuotaExceeded.into())
            }
            () if bytes.is_empty() && self.is_hung_up() => Ok(None),
            () => Ok(Some((bytes, received))),
        }
    }

    /// What is to happen when it is told something, or the other end closes.
    pub fn at_word(&self, action: impl FnOnce(&Kernel) + 'static) {
        self.with(|state, link| {
            if let Some(it) = state.links.get_mut(link) {
                let before = it.at_word.replace(Box::new(action));
                state.drop_soon(before);
            }
        });
    }

    /// Whether the other end is closed, or has said all.
    pub fn is_hung_up(&self) -> bool {
        self.with(|state, link| !state.links.get(link).is_some_and(|it| it.daemon && !it.finished))
    }

    /// How many messages of it nobody has read yet.
    pub fn queued(&self) -> usize {
        self.with(|state, link| state.links.get(link).map_or(0, |it| it.inbox.len()))
    }

    /// How much of an answer its system holds for it.
    pub fn set_room(&self, room: usize) {
        self.with(|state, link| {
            if let Some(it) = state.links.get_mut(link) {
                it.room = room;
            }
        });
    }

    /// What is to happen when the other end closes.
    pub fn at_hang_up(&self, action: impl FnOnce(&Kernel) + 'static) {
        self.with(|state, link| {
            if let Some(it) = state.links.get_mut(link) {
                let before = it.at_hang_up.replace(Box::new(action));
                state.drop_soon(before);
            }
        });
    }
}
