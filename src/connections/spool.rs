// SPDX-License-Identifier: BSD-3-Clause

//! The connections whose response is still to be written: what is left of it, and one look at one of them.
//!
//! Few connections have that, so that it is kept beside the table. Must not know who sent it.

use super::Connections;
use super::admit::{First, first_read};
use super::census::Origin;
pub use super::part::{Extent, Part};
use super::part::{Job, Written, close};
use super::step::{READ_BUDGET, outcome as read_outcome};
use crate::retry::AGAIN;
use crate::rules::event::{Event, Reason};
use crate::rules::linger::{Linger, Stage};
use crate::rules::spool::{self, Action, Spool};
use crate::rules::time::{Span, Time};
use crate::source::{Entry, Source};
use lingerd_platform::backend::{Backend, Interest};
use lingerd_platform::content::Content;
use lingerd_platform::reader::{Answer, Reader};
use lingerd_platform::tcp::Tcp;
use lingerd_platform::world::World;
use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind};

/// Pieces of one connection in one turn, at most, and of all that are ready then.
const WRITE_BUDGET: usize = 4;
const TURN_BUDGET: usize = 256;

/// How much more work a piece is than a look at a connection that lingers.
const PIECE_WORK: usize = 4;

/// Pieces from disks in one turn: while one is written the next ones come.
const ANSWER_BUDGET: usize = 64;

/// What is still to be sent of each file, the first byte first.
pub type Parts<W> = VecDeque<Part<<W as World>::Content>>;

/// A connection whose response is still to be written, and its files in their order.
pub struct Response<R> {
    /// The connection.
    pub socket: R,
    /// What of which files.
    pub files: Vec<Extent<R>>,
}

/// See the module's head.
pub(super) struct Spools<W: World> {
    jobs: HashMap<Entry, Job<W>>,
    reader: W::Reader,
    /// Bytes that are still to be sent. Whoever hands over may say of each file that it has as many as there can be.
    unsent: u128,
    /// What they take for nobody else's sake, see [`Part::held`].
    held: u128,
    /// What one takes when it comes, on the average of the last ones.
    usual: u64,
    /// Files that are open for that.
    files: usize,
    /// What is being read, and for whom. A read may take for ever, and what names a connection does not: it may be
    /// another one's meanwhile.
    asked: HashMap<u64, Entry>,
    /// How often something was asked: the number of the last one.
    tickets: u64,
    /// How many pieces of each are written in this turn.
    budget: usize,
    /// Where what is prompt is read to, on its way.
    scratch: <W::Content as Content>::Piece,
}

/// What a look at one came to.
struct Look {
    action: Action,
    /// The bytes that were read and thrown away.
    discarded: u64,
    /// How many pieces were written, or were to be.
    pieces: usize,
    /// How many bytes were.
    written: u64,
    /// Whether the system was too short of memory to go on.
    no_memory: bool,
}

/// What was done with one.
#[derive(Default)]
pub(super) struct Done {
    /// How much it was, see [`PIECE_WORK`].
    pub work: usize,
    /// Whether any bytes came or went.
    gets_on: bool,
}

/// What has come of a disk.
enum Come {
    /// What is to be fed to whom.
    Event(Entry, spool::Event),
    /// Nothing, as the system is short of memory or threads.
    NotNow(Entry),
    /// What was for somebody who has gone.
    ForNobody,
}

impl<W: World> Spools<W> {
    pub fn new(reader: W::Reader) -> Self {
        let (jobs, scratch) = (HashMap::new(), Default::default());
        let (asked, budget) = (HashMap::new(), WRITE_BUDGET);
        Spools { jobs, reader, unsent: 0, held: 0, usual: 0, files: 0, asked, tickets: 0, budget, scratch }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Bytes that are still to be sent.
    pub fn unsent(&self) -> u64 {
        self.unsent.try_into().unwrap_or(u64::MAX)
    }

    /// What they take for nobody else's sake.
    pub fn held(&self) -> u64 {
        self.held.try_into().unwrap_or(u64::MAX)
    }

    /// What one takes when it comes, about.
    pub fn usual(&self) -> u64 {
        self.usual
    }

    /// Descriptors that are open for them, beside the connections, and those of files that are still to be closed.
    pub fn descriptors(&self) -> usize {
        self.files + self.closing()
    }

    /// Files that are still to be closed.
    pub fn closing(&self) -> usize {
        self.reader.closing()
    }

    /// Closes a file, where nobody waits for that.
    pub fn close(&mut self, content: W::Content, slow_close: &mut W::SlowClose) {
        close(content, &mut self.reader, slow_close);
    }

    /// What has an answer for [`Connections::read`].
    pub fn reader(&self) -> &W::Reader {
        &self.reader
    }

    /// What is known of one, and what is still to be sent, the first byte first.
    pub fn get(&self, entry: Entry) -> Option<(&Spool, &Parts<W>)> {
        self.jobs.get(&entry).map(|job| (&job.spool, &job.parts))
    }

    /// Whether nothing is left of one.
    fn is_all_written(&self, entry: Entry) -> bool {
        self.jobs.get(&entry).is_some_and(|job| job.parts.is_empty())
    }

    /// Puts one in.
    fn insert(&mut self, entry: Entry, spool: Spool, parts: Parts<W>) {
        self.files += parts.len();
        self.unsent += parts.iter().map(|part| u128::from(part.left())).sum::<u128>();
        let takes = parts.iter().map(|part| u128::from(part.held())).sum::<u128>();
        self.held += takes;
        self.usual = self.usual - self.usual / 8 + u64::try_from(takes / 8).unwrap_or(u64::MAX / 8);
        self.jobs.insert(entry, Job::new(spool, parts));
    }

    /// Takes one out, closes what is left of its files, and tells what the backend waits for.
    pub fn remove(&mut self, entry: Entry, slow_close: &mut W::SlowClose) -> Option<Interest> {
        let job = self.jobs.remove(&entry)?;
        if let Some(ticket) = job.asked() {
            self.asked.remove(&ticket); // what comes of that is nobody's
        }
        for part in job.parts {
            self.unsent -= u128::from(part.left());
            self.held -= u128::from(part.held());
            self.files -= 1;
            part.close(&mut self.reader, slow_close);
        }
        job.interest
    }

    /// Does with one what the rules say, from `event` on, within this turn's budget.
    fn look(
        &mut self,
        entry: Entry,
        socket: &W::Socket,
        event: spool::Event,
        slow_close: &mut W::SlowClose,
        now: Time,
    ) -> Option<Look> {
        let job = self.jobs.get_mut(&entry)?;
        let (mut reads, mut left, mut pieces) = (READ_BUDGET, self.budget, 0);
        let (mut discarded, mut written, mut no_memory) = (0, 0, false);
        let mut action = job.spool.on(event, now);
        loop {
            let event = match action {
                Action::Read if reads == 0 => spool::Event::Quiet,
                Action::Read => {
                    reads -= 1;
                    let read = socket.discard();
                    discarded += *read.as_ref().unwrap_or(&0) as u64;
                    no_memory |= read.as_ref().is_err_and(|e| e.kind() == ErrorKind::OutOfMemory);
                    match read_outcome(&read) {
                        Event::End => spool::Event::End,
                        Event::Received => spool::Event::Received,
                        Event::Failed => spool::Event::Failed,
                        _ => spool::Event::Quiet,
                    }
                }
                // There is still room in the next turn, and the backend says so.
                Action::Write if left == 0 && !job.parts.is_empty() => spool::Event::Full,
                Action::Write => {
                    match job.write(socket, self.tickets + 1, &mut self.reader, &mut self.scratch) {
                        Written::Some { bytes, held, is_full, ended } => {
                            (pieces, left, written) = (pieces + 1, left - 1, written + bytes);
                            self.unsent -= u128::from(bytes);
                            self.held -= u128::from(held);
                            if let Some(part) = ended {
                                self.files -= 1;
                                part.close(&mut self.reader, slow_close);
                            }
                            if is_full {
                                // To try once more would be to read for nothing; the backend says when there is room.
                                left = 0;
                            }
                            spool::Event::Wrote(bytes)
                        }
                        Written::All => spool::Event::WroteAll,
                        Written::Asked => {
                            self.tickets += 1;
                            self.asked.insert(self.tickets, entry);
                            spool::Event::Later
                        }
                        Written::Later => spool::Event::Later,
                        Written::Short => spool::Event::Short,
                        Written::NoRoom => {
                            pieces += 1;
                            spool::Event::Full
                        }
                        Written::NoMemory => {
                            no_memory = true;
                            spool::Event::Full
                        }
                        Written::Gone => spool::Event::Failed,
                    }
                }
                Action::Ask => spool::Event::Queued(socket.unacknowledged()),
                Action::Wait { .. } | Action::Linger | Action::Close(_) => {
                    return Some(Look { action, discarded, pieces, written, no_memory });
                }
            };
            action = job.spool.on(event, now);
        }
    }

    /// What has come of a disk, and for whom.
    fn take(&mut self) -> Option<Come> {
        let Answer { ticket, piece, result } = self.reader.take()?;
        let whose = self.asked.remove(&ticket).and_then(|entry| Some((entry, self.jobs.get_mut(&entry)?)));
        let Some((entry, job)) = whose else { return Some(Come::ForNobody) };
        job.has_read(result.as_ref().ok().filter(|&&length| length > 0).map(|&length| (piece, length)));
        Some(match result {
            Ok(1..) => Come::Event(entry, spool::Event::Writable),
            Err(e) if matches!(e.kind(), ErrorKind::OutOfMemory | ErrorKind::WouldBlock) => {
                Come::NotNow(entry)
            }
            Ok(0) | Err(_) => Come::Event(entry, spool::Event::Short),
        })
    }
}

impl<W: World> Connections<W> {
    /// Takes over a connection whose response is still to be written. It is given up when it does not get on for
    /// `patience`. What is no connection is refused. Returns whether nothing came that may take long to close, and how much
    /// was done.
    pub fn admit_spool(
        &mut self,
        response: Response<W::Received>,
        patience: Span,
        senders: usize,
        backend: &mut W::Backend,
        now: Time,
    ) -> (bool, usize) {
        let Some((socket, parts, is_whole)) = self.opened(response) else { return (false, 1) };
        let Some(First { event: first, discarded, peer, .. }) = first_read(&socket, None) else {
            self.refused("not connected");
            self.close_parts(parts);
            return (is_whole, 1);
        };
        // From here on whoever closes it before all is written, be it a kill, resets it.
        socket.reset_at_close(true);
        self.ends.spooled();
        self.ends.discarded(discarded);
        let most = self.make_room(1, senders + parts.len(), backend, now);
        let origin = self.origin(&socket, peer, most);
        let mut spool = Spool::new(now, patience);
        spool.client_ended = first == Event::End;
        let entry = self.keep_spool(socket, origin, parts, spool, now, now);
        let event = match first {
            Event::Failed => spool::Event::Failed,
            _ if !is_whole => spool::Event::Short,
            _ => spool::Event::Writable,
        };
        (is_whole, self.spool(entry, event, backend, now).work)
    }

    /// The connection and its files, and whether all of them are such. What is no connection is refused.
    fn opened(&mut self, response: Response<W::Received>) -> Option<(W::Socket, Parts<W>, bool)> {
        let (parts, is_whole) = self.parts(response.files);
        match W::Socket::of(response.socket) {
            Ok(socket) => Some((socket, parts, is_whole)),
            Err(received) => {
                self.refuse_other(received, "no TCP socket");
                self.close_parts(parts);
                None
            }
        }
    }

    /// What is to be sent of each file, if it is anything, and whether all of them are files.
    fn parts(&mut self, files: Vec<Extent<W::Received>>) -> (Parts<W>, bool) {
        let (mut parts, mut is_whole) = (VecDeque::new(), true);
        for extent in files {
            match Part::of(extent) {
                Ok(part) if part.left() > 0 && !part.is_empty() => parts.push_back(part),
                Ok(part) => {
                    is_whole &= part.left() == 0;
                    self.close_parts([part]);
                }
                Err(other) => {
                    is_whole = false;
                    self.close_slowly(other);
                }
            }
        }
        (parts, is_whole)
    }

    fn close_parts(&mut self, parts: impl IntoIterator<Item = Part<W::Content>>) {
        for part in parts {
            part.close(&mut self.spools.reader, &mut self.slow_close);
        }
    }

    /// Goes on with one where a predecessor has left off: it was counted there when it came.
    pub fn take_over_spool(
        &mut self,
        response: Response<W::Received>,
        (handed_over, spool): (Time, Spool),
        senders: usize,
        backend: &mut W::Backend,
        now: Time,
    ) {
        let Some((socket, parts, is_whole)) = self.opened(response) else { return };
        let most = self.make_room(1, senders + parts.len(), backend, now);
        let origin = self.origin(&socket, None, most);
        let entry = self.keep_spool(socket, origin, parts, spool, handed_over, now);
        let event = match is_whole {
            false => spool::Event::Short,
            true if self.spools.is_all_written(entry) => spool::Event::Writable,
            true => spool::Event::Full, // what there is room for the backend says soon
        };
        self.spool(entry, event, backend, now);
    }

    /// All of them, the one that was handed over first being the first.
    pub fn spools(&self) -> impl Iterator<Item = (Time, &Spool, &W::Socket, &Parts<W>)> {
        self.table.spooling().filter_map(|entry| {
            let ((socket, linger), (spool, parts)) = (self.table.get(entry)?, self.spools.get(entry)?);
            Some((linger.handed_over, spool, socket, parts))
        })
    }

    /// Puts one into the table.
    fn keep_spool(
        &mut self,
        socket: W::Socket,
        origin: Origin,
        parts: Parts<W>,
        spool: Spool,
        handed_over: Time,
        now: Time,
    ) -> Entry {
        let due = spool.due(now);
        let entry = self.insert(socket, origin, Linger::not_yet(Stage::Spooling, handed_over, due), due);
        self.spools.insert(entry, spool, parts);
        self.ends.lingering(self.table.len());
        entry
    }

    /// Looks at what has come from disks, as much as has its turn at once. Returns how much was done.
    pub fn read(&mut self, backend: &mut W::Backend, now: Time) -> usize {
        let mut work = 0;
        for _ in 0..ANSWER_BUDGET {
            let Some(come) = self.spools.take() else { break };
            match come {
                Come::Event(entry, event) => work += self.spool(entry, event, backend, now).work,
                Come::NotNow(entry) => {
                    self.set_interest(entry, None, backend, now);
                    self.look_soon(entry, now);
                }
                Come::ForNobody => {}
            }
        }
        work
    }

    /// What has an answer for [`read`](Self::read).
    pub fn reader(&self) -> &W::Reader {
        self.spools.reader()
    }

    /// Takes note of how many sources are ready in this turn: the more they are, the less is written of each.
    pub fn begin_turn(&mut self, ready: usize) {
        self.spools.budget = (TURN_BUDGET / ready.max(1)).clamp(1, WRITE_BUDGET);
    }

    /// Looks at one that the backend reported: which of the two it is, the socket tells. Returns how much was done.
    pub(super) fn spool_is_ready(&mut self, entry: Entry, backend: &mut W::Backend, now: Time) -> usize {
        let read = self.spool(entry, spool::Event::Readable, backend, now);
        if !self.is_spooling(entry) {
            return read.work;
        }
        let wrote = self.spool(entry, spool::Event::Writable, backend, now);
        if !read.gets_on && !wrote.gets_on {
            if let Some((socket, _)) = self.table.get(entry) {
                socket.drain_errors(); // ready, and with nothing to do
            }
        }
        read.work + wrote.work
    }

    /// Feeds `event` to one whose response is still to be written and does what comes of it.
    pub(super) fn spool(
        &mut self,
        entry: Entry,
        event: spool::Event,
        backend: &mut W::Backend,
        now: Time,
    ) -> Done {
        let Some((socket, mut linger)) = self.table.get(entry) else { return Done::default() };
        let Some(look) = self.spools.look(entry, socket, event, &mut self.slow_close, now) else {
            return Done::default();
        };
        self.ends.discarded(look.discarded);
        match look.action {
            Action::Wait { until, room, bytes } => {
                linger.asked = until;
                let wanted = match (room && !look.no_memory, bytes && !look.no_memory) {
                    (true, true) => Some(Interest::Both),
                    (true, false) => Some(Interest::Write),
                    (false, true) => Some(Interest::Read),
                    (false, false) => None,
                };
                self.table.note(entry, linger, until);
                self.set_interest(entry, wanted, backend, now);
                if look.no_memory {
                    self.look_soon(entry, now); // it is not waited for meanwhile
                }
            }
            Action::Close(reason) => self.close(entry, reason, backend, now),
            _ => self.all_is_written(entry, backend, now),
        }
        Done { work: 1 + PIECE_WORK * look.pieces, gets_on: look.discarded + look.written > 0 }
    }

    /// Looks at one whose time has come. What can be written is progress, and the backend may not have been able to
    /// say so. Returns how much was done.
    pub(super) fn spool_is_due(&mut self, entry: Entry, backend: &mut W::Backend, now: Time) -> usize {
        let mut work = self.spool(entry, spool::Event::Writable, backend, now).work;
        if self.is_spooling(entry) {
            work += self.spool(entry, spool::Event::Due, backend, now).work;
        }
        work
    }

    /// Has the backend wait for what is wanted, and for nothing else.
    fn set_interest(&mut self, entry: Entry, wanted: Option<Interest>, backend: &mut W::Backend, now: Time) {
        let (Some((socket, _)), Some(job)) = (self.table.get(entry), self.spools.jobs.get_mut(&entry)) else {
            return;
        };
        let token = Source::Connection(entry).token();
        let done: io::Result<()> = match (job.interest, wanted) {
            (None, None) => Ok(()),
            (None, Some(wanted)) => backend.add(socket, token, wanted),
            (Some(_), None) => backend.remove(socket),
            (Some(is), Some(wanted)) if is == wanted => backend.rearm(socket, token, wanted),
            (Some(_), Some(wanted)) => backend.change(socket, token, wanted),
        };
        let is_added = done.is_ok() || job.interest.is_some();
        job.interest = if is_added { wanted } else { None };
        if let Err(e) = done {
            // It is not reported then, and is looked at soon all the same.
            self.cannot_wait(&e, now);
            self.look_soon(entry, now);
        }
    }

    /// Has one looked at in a while, if that is not to be so earlier.
    fn look_soon(&mut self, entry: Entry, now: Time) {
        let Some((_, mut linger)) = self.table.get(entry) else { return };
        let soon = now + AGAIN;
        if linger.asked.ticks_since(soon) > 0 {
            linger.asked = soon;
            self.table.note(entry, linger, soon);
        }
    }

    /// From now on it lingers.
    fn all_is_written(&mut self, entry: Entry, backend: &mut W::Backend, now: Time) {
        let interest = self.spools.remove(entry, &mut self.slow_close);
        let Some((socket, Linger { handed_over, .. })) = self.table.get(entry) else { return };
        self.ends.wrote(None, now.since(handed_over));
        socket.reset_at_close(false);
        socket.half_close();
        let token = Source::Connection(entry).token();
        let done = match interest {
            None => backend.add(socket, token, Interest::Read),
            Some(Interest::Read) => backend.rearm(socket, token, Interest::Read),
            Some(_) => backend.change(socket, token, Interest::Read),
        };
        let linger = Linger::new(now);
        self.table.note(entry, linger, linger.due(now, self.table.rules()));
        if let Err(e) = done {
            self.cannot_wait(&e, now);
        }
        self.step(entry, Event::Due, backend, now);
    }

    /// Whether `reason` ends it before all of it is written.
    pub(super) fn is_cut_off(&self, linger: &Linger, reason: Reason) -> bool {
        linger.is_spooling() && reason != Reason::Closed
    }
}

#[cfg(test)]
mod tests;
