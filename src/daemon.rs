//! The daemon: the loop that moves sockets from the hand-off through the table to their end.
//!
//! It decides who is served next and how much of it (budgets, room for descriptors), and nothing
//! about lingering itself: that is [`crate::linger`]'s.

use crate::closer::Closer;
use crate::control::Control;
use crate::handoff::{HandOff, Message, Sender};
use crate::linger::{Action, Event, Linger, Reason, Rules, Time};
use crate::logger;
use crate::room::Room;
use crate::stats::{Counters, Snapshot};
use crate::table::{Entry, Table};
use anyhow::{Context, Result};
use lingerd_platform::backend::{Backend, Interest, Token};
use lingerd_platform::signals::Signals;
use lingerd_platform::{fdpass, process, tcp};
use log::{debug, info, warn};
use slotmap::{Key, KeyData};
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

/// Reads of one connection in one turn, each of at most [`tcp::DISCARD_BYTES`].
const READ_BUDGET: usize = 4;
/// Messages of one sender in one turn.
const MESSAGE_BUDGET: usize = 64;
/// Messages of one sender that are read when it is parted with: all of them, where it can add none
/// to them meanwhile.
const PARTING_BUDGET: usize = if process::SHUTDOWN_KEEPS_QUEUE { usize::MAX } else { 4096 };
/// Senders let in in one turn.
const ACCEPT_BUDGET: usize = 64;
/// How long a turn waits for more to do before it starts, as a network card moderates its
/// interrupts. Most clients close within this time of the hand-off, and then one read finds the
/// end of their stream: no registration, no second wake-up. Nobody waits for it but the FIN of a
/// sender that does not half-close itself; on systems other than Linux none does (see
/// [`tcp::half_close`]), and some of them sleep for no less than 10 ms.
const MODERATION: Option<Duration> =
    if cfg!(target_os = "linux") { Some(Duration::from_millis(1)) } else { None };
/// How often the counters are logged while there is work.
const SUMMARY_EVERY: Duration = Duration::from_secs(3600);
/// How long to leave a door shut, or a source alone, after a call failed for want of something.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);

/// What a token names. The kind is in the two top bits of the lower half, which no key of a table
/// that fits into a process's descriptors ever uses; the generation is in the upper half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Connection(Entry),
    Sender(Sender),
    Other(u64),
}

const KIND: u32 = 30;
const LISTENER: u64 = 0;
const CONTROL: u64 = 1;
const STOP: u64 = 2;
const REPORT: u64 = 3;
const RELOAD: u64 = 4;

impl Source {
    fn token(self) -> Token {
        Token(match self {
            Source::Connection(entry) => entry.data().as_ffi(),
            Source::Sender(sender) => sender.data().as_ffi() | (1 << KIND),
            Source::Other(n) => n | (2 << KIND),
        })
    }

    fn of(Token(bits): Token) -> Source {
        let key = bits & !(3 << KIND);
        match (bits >> KIND) & 3 {
            0 => Source::Connection(KeyData::from_ffi(key).into()),
            1 => Source::Sender(KeyData::from_ffi(key).into()),
            _ => Source::Other(key),
        }
    }
}

/// The token that [`HandOff::bind`] takes.
pub fn listener_token() -> Token {
    Source::Other(LISTENER).token()
}

fn sender_token(sender: Sender) -> Token {
    Source::Sender(sender).token()
}

/// A warning that may have a cause without end: at most one a minute is logged.
#[derive(Default)]
struct Warning {
    next: Option<Time>,
    kept_back: u64,
}

impl Warning {
    const EVERY: Duration = Duration::from_secs(60);

    fn warn(&mut self, now: Time, message: fmt::Arguments<'_>) {
        if self.next.is_some_and(|next| now < next) {
            self.kept_back += 1;
            return;
        }
        self.next = Some(now + Self::EVERY);
        match std::mem::take(&mut self.kept_back) {
            0 => warn!("{message}"),
            others => warn!("{message} (and {others} like it before)"),
        }
    }
}

#[derive(Default)]
struct Said {
    closing: Warning,
    malformed: Warning,
    truncated: Warning,
    door: Warning,
    backend: Warning,
}

/// See the module's head.
pub struct Daemon<B: Backend> {
    backend: B,
    handoff: Option<HandOff>,
    control: Control,
    signals: Signals,
    rules: Rules,
    room: Room,
    table: Table,
    counters: Counters,
    started: Instant,
    /// `started` is [`Time`] 0. The turn's time, read once after each wait.
    now: Time,
    /// When to let senders in again.
    accept_at: Option<Time>,
    /// When to answer at the control socket again.
    control_at: Option<Time>,
    /// Those that the kernel had no room to tell of, and when to serve them again.
    unarmed: Vec<Source>,
    unarmed_at: Option<Time>,
    /// What a hostile or unlucky sender could fill the log with.
    said: Said,
    closer: Closer,
    /// When to log the counters: an hour after the first work since they were last logged.
    summary_at: Option<Time>,
    /// Received descriptors on their way to the table; kept for its memory.
    descriptors: Vec<OwnedFd>,
}

impl<B: Backend> Daemon<B> {
    /// Puts the parts together and registers them.
    ///
    /// # Errors
    /// What the backend says.
    pub fn new(
        mut handoff: HandOff,
        control: Control,
        signals: Signals,
        rules: Rules,
        room: Room,
    ) -> Result<Self> {
        let mut backend = B::new().with_context(|| format!("cannot open {}", B::NAME))?;
        let register = |backend: &mut B| -> io::Result<()> {
            backend.add(control.as_fd(), Source::Other(CONTROL).token(), Interest::Read)?;
            backend.add(signals.stop.as_fd(), Source::Other(STOP).token(), Interest::Read)?;
            backend.add(signals.report.as_fd(), Source::Other(REPORT).token(), Interest::Read)?;
            backend.add(signals.reload.as_fd(), Source::Other(RELOAD).token(), Interest::Read)
        };
        register(&mut backend).and_then(|()| handoff.open(&mut backend)).with_context(|| B::NAME)?;
        if let Some(wanted) = room.unmet() {
            warn!(
                "-n {wanted} is more than the descriptor limit allows: at most {} connections will linger",
                room.connections(0)
            );
        }
        if room.message() < fdpass::MAX_DESCRIPTORS {
            warn!(
                "the descriptor limit is low: a message with more than {} sockets may be cut short; raise it",
                room.message()
            );
        }
        Ok(Daemon {
            backend,
            handoff: Some(handoff),
            control,
            signals,
            rules,
            room,
            table: Table::default(),
            counters: Counters::default(),
            started: Instant::now(),
            now: Time::from_millis(0),
            accept_at: None,
            control_at: None,
            unarmed: Vec::new(),
            unarmed_at: None,
            said: Said::default(),
            closer: Closer::default(),
            summary_at: None,
            descriptors: Vec::with_capacity(fdpass::MAX_DESCRIPTORS),
        })
    }

    /// Serves until it is told to stop and its lingers have ended, or until it is told twice.
    ///
    /// # Errors
    /// When the backend can no longer wait.
    pub fn run(mut self) -> Result<()> {
        info!("serving ({}); up to {} connections linger at once", B::NAME, self.room.connections(0));
        let mut ready = Vec::new();
        while self.handoff.is_some() || !self.table.is_empty() {
            self.turn(&mut ready)?;
        }
        self.summary("stopped");
        Ok(())
    }

    /// Waits once, and does what there is to do. `ready` is kept for its memory.
    fn turn(&mut self, ready: &mut Vec<Token>) -> Result<()> {
        let timeout = self.timeout();
        self.backend.wait(ready, timeout).with_context(|| format!("cannot wait ({})", B::NAME))?;
        if let Some(moderation) = MODERATION.filter(|_| !ready.is_empty()) {
            thread::sleep(moderation);
        }
        self.now = self.clock();
        self.serve_all(ready);
        self.try_again();
        if self.summary_at.is_some_and(|time| time <= self.now) {
            self.summary("summary");
        }
        Ok(())
    }

    fn serve_all(&mut self, ready: &[Token]) {
        // Those who end make room for those who come.
        for &token in ready {
            if let Source::Connection(entry) = Source::of(token) {
                self.step(entry, Event::Readable);
            }
        }
        self.expire();
        for &token in ready {
            self.serve(Source::of(token));
        }
    }

    fn clock(&self) -> Time {
        Time::from_millis(self.started.elapsed().as_millis().try_into().unwrap_or(u64::MAX))
    }

    /// Until the next thing that is due, or for ever.
    fn timeout(&self) -> Option<Duration> {
        let deadline = self.table.nearest().map(|(_, time)| time);
        let next = [deadline, self.accept_at, self.control_at, self.unarmed_at, self.summary_at];
        let next = next.into_iter().flatten().min()?;
        // The clock's milliseconds are cut off, so that this is never too short.
        Some(next - self.clock())
    }

    /// Serves one source that is ready, and asks to hear of it again. Where the kernel has no room
    /// for that now, it is served again in a second, ready or not.
    fn serve(&mut self, source: Source) {
        match source {
            Source::Connection(_) => return, // served before
            Source::Sender(sender) => self.receive(sender, MESSAGE_BUDGET),
            Source::Other(LISTENER) => self.accept(),
            Source::Other(CONTROL) => {
                if let Err(e) = self.control.answer(|| self.snapshot()) {
                    self.said.door.warn(self.now, format_args!("cannot answer 'lingerd -S': {e}"));
                    // Not to be told of it again and again; it was registered, so that this cannot fail.
                    let _ = self.backend.remove(self.control.as_fd());
                    self.control_at = Some(self.now + ACCEPT_AGAIN);
                }
            }
            Source::Other(STOP) => {
                for _ in 0..self.signals.stop.take() {
                    self.stop();
                }
            }
            Source::Other(REPORT) => {
                if self.signals.report.take() > 0 {
                    self.summary("counters");
                }
            }
            Source::Other(_) => {
                if self.signals.reload.take() > 0 {
                    logger::reopen();
                    info!("log reopened; there is no configuration to reload");
                }
            }
        }
        if let Err(e) = self.rearm(source) {
            self.said.backend.warn(self.now, format_args!("cannot wait for more: {e}"));
            self.unarmed.push(source);
            self.unarmed_at.get_or_insert(self.now + ACCEPT_AGAIN);
        }
    }

    fn rearm(&mut self, source: Source) -> io::Result<()> {
        let fd = match (source, &self.handoff) {
            (Source::Sender(sender), Some(handoff)) => match handoff.sender(sender) {
                Some(fd) => fd,
                None => return Ok(()), // gone meanwhile
            },
            (Source::Other(LISTENER), Some(handoff)) if handoff.is_accepting() => handoff.as_fd(),
            (Source::Other(CONTROL), _) if self.control_at.is_none() => self.control.as_fd(),
            (Source::Other(STOP), _) => self.signals.stop.as_fd(),
            (Source::Other(REPORT), _) => self.signals.report.as_fd(),
            (Source::Other(RELOAD), _) => self.signals.reload.as_fd(),
            _ => return Ok(()),
        };
        self.backend.rearm(fd, source.token(), Interest::Read)
    }

    /// Lets waiting senders in.
    fn accept(&mut self) {
        for _ in 0..ACCEPT_BUDGET {
            let Some(handoff) = &mut self.handoff else { return };
            match handoff.accept() {
                Ok(sender) => {
                    if let Err(e) = handoff.watch(&mut self.backend, sender, sender_token(sender)) {
                        self.said.backend.warn(self.now, format_args!("cannot wait for a sender: {e}"));
                        self.part_with(sender);
                    } else if handoff.senders() > self.room.senders() {
                        // It makes room for one with something to say, and comes again when it has.
                        if let Some(sender) = handoff.most_silent() {
                            self.part_with(sender);
                        }
                    }
                    self.make_room(0);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                // The one who waited has gone again.
                Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(e) => {
                    self.said.door.warn(
                        self.now,
                        format_args!("cannot let a sender in: {e}; trying again in a second"),
                    );
                    handoff.pause(&mut self.backend);
                    self.accept_at = Some(self.now + ACCEPT_AGAIN);
                    return;
                }
            }
        }
    }

    /// Opens the doors again that were shut for want of something, and serves what the kernel had no
    /// room to tell of, when it is time.
    fn try_again(&mut self) {
        if self.unarmed_at.is_some_and(|time| time <= self.now) {
            self.unarmed_at = None;
            for source in std::mem::take(&mut self.unarmed) {
                self.serve(source);
            }
        }
        if self.control_at.is_some_and(|time| time <= self.now) {
            let token = Source::Other(CONTROL).token();
            self.control_at = match self.backend.add(self.control.as_fd(), token, Interest::Read) {
                Ok(()) => None,
                Err(_) => Some(self.now + ACCEPT_AGAIN),
            };
        }
        if self.accept_at.is_some_and(|time| time <= self.now) {
            self.accept_at = None;
        }
        let Some(handoff) = &mut self.handoff else { return };
        if handoff.is_accepting() || self.accept_at.is_some() {
            return;
        }
        self.accept_at = match handoff.open(&mut self.backend) {
            Ok(()) => None,
            Err(_) => Some(self.now + ACCEPT_AGAIN),
        };
    }

    /// Reads at most `budget` messages of `sender`.
    fn receive(&mut self, sender: Sender, budget: usize) {
        for _ in 0..budget {
            let Some(handoff) = &mut self.handoff else { return };
            let message = handoff.receive(sender, &mut self.descriptors);
            match message {
                Message::Nothing => return,
                Message::Gone => {
                    handoff.dismiss(&mut self.backend, sender);
                    self.refuse_all(); // some systems deliver descriptors with the end of the stream
                    return;
                }
                Message::Malformed(what) => {
                    self.counters.protocol_errors += 1;
                    self.said.malformed.warn(self.now, format_args!("a sender sent {what}; hung up on it"));
                    self.refuse_all();
                    self.hang_up(sender);
                    return;
                }
                Message::Sockets { truncated } => {
                    if truncated {
                        self.counters.protocol_errors += 1;
                        let arrived = self.descriptors.len();
                        self.said.truncated.warn(
                            self.now,
                            format_args!(
                                "a message with more sockets than the descriptor limit has room for: \
                                 {arrived} of them arrived, the system closed the others; raise the limit"
                            ),
                        );
                    }
                    let rejected = self.counters.rejected;
                    // Taken out for the time of the loop, as both it and `self` are needed.
                    let mut descriptors = std::mem::take(&mut self.descriptors);
                    for descriptor in descriptors.drain(..) {
                        self.admit(descriptor);
                    }
                    self.descriptors = descriptors;
                    if self.counters.rejected > rejected && self.closer.waiting() > self.room.message() {
                        self.said.closing.warn(
                            self.now,
                            format_args!("a sender sent more files than can be closed; hung up on it"),
                        );
                        self.hang_up(sender);
                        return;
                    }
                }
            }
        }
    }

    /// Hangs up on a sender that cannot be believed, and refuses what it has still sent. The kernel,
    /// when it closes what nobody has read, could be made to wait: it is not to do so here.
    fn hang_up(&mut self, sender: Sender) {
        let Some(handoff) = &self.handoff else { return };
        handoff.silence(sender);
        for _ in 0..PARTING_BUDGET {
            let Some(handoff) = &mut self.handoff else { return };
            if self.closer.waiting() > self.room.message() {
                break;
            }
            match handoff.receive(sender, &mut self.descriptors) {
                Message::Sockets { .. } | Message::Malformed(_) => self.refuse_all(),
                Message::Nothing | Message::Gone => break,
            }
        }
        let link = self.handoff.as_mut().and_then(|handoff| handoff.dismiss(&mut self.backend, sender));
        if let Some(link) = link {
            self.closer.close(link.into());
        }
    }

    /// Takes over what a sender has sent so far, and parts with it. On a system on which it can
    /// still talk meanwhile it must not be able to stay for ever.
    fn part_with(&mut self, sender: Sender) {
        if let Some(handoff) = &self.handoff {
            handoff.silence(sender);
        }
        self.receive(sender, PARTING_BUDGET);
        if let Some(handoff) = &mut self.handoff {
            handoff.dismiss(&mut self.backend, sender);
        }
    }

    /// Takes one descriptor over.
    fn admit(&mut self, descriptor: OwnedFd) {
        self.summary_at.get_or_insert(self.now + SUMMARY_EVERY);
        if !tcp::is_tcp(&descriptor) {
            return self.refuse(descriptor, "no TCP socket");
        }
        let socket = TcpStream::from(descriptor);
        // The client's end of stream is often there already: then nothing else need be done, as
        // close(2) sends our FIN. A listener, or a socket that was never connected, shows here
        // too, before anything is done to what its sender may still use.
        let mut event = match tcp::discard(&socket) {
            Err(e) if e.kind() == ErrorKind::NotConnected => {
                return self.refuse(socket.into(), "not connected");
            }
            read => outcome(read, &mut self.counters),
        };
        // Quiet, and nobody at the other end: the client has gone this very moment, which the next
        // read says, or it is a connect(2) that is still in progress.
        if event == Event::Quiet && socket.peer_addr().is_err_and(|e| e.kind() == ErrorKind::NotConnected) {
            event = outcome(tcp::discard(&socket), &mut self.counters);
            if event == Event::Quiet {
                return self.refuse(socket.into(), "not connected");
            }
        }
        if !matches!(event, Event::End | Event::Failed) {
            tcp::half_close(&socket); // the sender should have done it
        }
        let mut linger = Linger::new(self.now, &self.rules);
        match drive(&socket, &mut linger, event, self.now, &self.rules, &mut self.counters) {
            Action::Close(reason) => self.end(socket, linger, reason),
            _ => {
                self.make_room(1);
                let entry = self.table.insert(socket, linger);
                let lingering = self.table.len() as u64;
                let Some(socket) = self.table.socket(entry) else { return }; // inserted a line above
                let added =
                    self.backend.add(socket.as_fd(), Source::Connection(entry).token(), Interest::Read);
                self.counters.peak = self.counters.peak.max(lingering);
                if let Err(e) = added {
                    // The kernel has no memory for it. It stays: its deadlines read and close it.
                    self.said.backend.warn(self.now, format_args!("cannot wait for a connection: {e}"));
                }
            }
        }
    }

    /// Closes a descriptor that is none to linger on, and counts it.
    fn refuse(&mut self, descriptor: OwnedFd, why: &str) {
        self.counters.rejected += 1;
        debug!("refused a descriptor: {why}");
        if tcp::is_tcp(&descriptor) {
            let socket = TcpStream::from(descriptor);
            // A socket that is not connected has nothing to wait for, and may be in use elsewhere.
            if socket.peer_addr().is_ok() {
                tcp::close_in_background(&socket);
            }
            return;
        }
        self.closer.close(descriptor);
    }

    /// Refuses what came with a message that is none.
    fn refuse_all(&mut self) {
        while let Some(descriptor) = self.descriptors.pop() {
            self.refuse(descriptor, "sent with a malformed message");
        }
    }

    /// Ends connections until `more` can linger.
    fn make_room(&mut self, more: usize) {
        let senders = self.handoff.as_ref().map_or(0, HandOff::senders);
        let capacity = self.room.connections(senders + self.closer.waiting());
        while self.table.len() + more > capacity {
            match self.table.oldest() {
                Some(entry) => self.close(entry, Reason::Evicted),
                None => return,
            }
        }
    }

    /// Ends those whose time has come.
    fn expire(&mut self) {
        while let Some((entry, time)) = self.table.nearest() {
            if time > self.now {
                return;
            }
            self.step(entry, Event::Due);
        }
    }

    /// Feeds `event` to one connection and does what it says. An entry that has gone is a stale
    /// event, and nothing happens.
    fn step(&mut self, entry: Entry, event: Event) {
        let (now, rules, counters) = (self.now, &self.rules, &mut self.counters);
        let before = counters.bytes_discarded;
        let action =
            self.table.update(entry, |socket, linger| drive(socket, linger, event, now, rules, counters));
        match action {
            Some(Action::Close(reason)) => self.close(entry, reason),
            Some(_) if event == Event::Readable => {
                let Some(socket) = self.table.socket(entry) else { return };
                if self.counters.bytes_discarded == before {
                    tcp::drain_errors(socket); // ready, but with nothing to read
                }
                let token = Source::Connection(entry).token();
                if let Err(e) = self.backend.rearm(socket.as_fd(), token, Interest::Read) {
                    // Its deadlines read and close it.
                    self.said.backend.warn(self.now, format_args!("cannot wait for a connection: {e}"));
                }
            }
            _ => {}
        }
    }

    fn close(&mut self, entry: Entry, reason: Reason) {
        if let Some((socket, linger)) = self.table.remove(entry) {
            // Fails only for the one that could not be added.
            let _ = self.backend.remove(socket.as_fd());
            self.end(socket, linger, reason);
        }
    }

    /// Counts a connection and closes it.
    fn end(&mut self, socket: TcpStream, linger: Linger, reason: Reason) {
        self.counters.ended(reason);
        let unread = reason.is_ours() && tcp::has_unread(&socket);
        let unacknowledged = reason.is_ours() && tcp::is_acknowledged(&socket) == Some(false);
        if unread || unacknowledged {
            self.counters.cut_short += 1;
        }
        if log::log_enabled!(log::Level::Debug) {
            let peer = socket.peer_addr().map_or_else(|_| "client".to_owned(), |peer| peer.to_string());
            debug!(
                "{peer}: {} after {:.3} s{}",
                reason.name(),
                (self.now - linger.since(&self.rules)).as_secs_f64(),
                match (unacknowledged, unread) {
                    (true, _) => ", perhaps cut short: the client has not acknowledged everything",
                    (false, true) => ", perhaps cut short: the client was still sending",
                    (false, false) => "",
                }
            );
        }
        tcp::close_in_background(&socket);
    }

    /// The first time: takes no more hand-offs, but what was handed over before is lingered on.
    /// The second time: ends everything.
    fn stop(&mut self) {
        let Some(handoff) = &mut self.handoff else {
            info!("told to stop at once: {} connections are cut off", self.table.len());
            while let Some(entry) = self.table.oldest() {
                self.close(entry, Reason::Stopped);
            }
            return;
        };
        handoff.shut(&mut self.backend);
        for sender in handoff.all() {
            self.part_with(sender);
        }
        // One at a time, as there may be more of them than there is room for.
        while let Some(handoff) = &mut self.handoff {
            match handoff.accept() {
                Ok(sender) => self.part_with(sender),
                // The one who waited has gone again.
                Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(_) => break,
            }
        }
        self.handoff = None;
        info!("told to stop: {} connections are still lingering", self.table.len());
    }

    fn snapshot(&self) -> Snapshot {
        let senders = self.handoff.as_ref().map_or(0, HandOff::senders);
        self.counters.snapshot(self.table.len() as u64, senders as u64, self.started.elapsed().as_secs())
    }

    fn summary(&mut self, what: &str) {
        self.summary_at = None;
        info!("{what}: {}", self.snapshot());
    }
}

/// Lets the state machine have its way with one socket, within this turn's budget, until it wants
/// to wait or to close.
fn drive(
    socket: &TcpStream,
    linger: &mut Linger,
    mut event: Event,
    now: Time,
    rules: &Rules,
    counters: &mut Counters,
) -> Action {
    let mut budget = READ_BUDGET;
    loop {
        event = match linger.on(event, now, rules) {
            // The rest is still there in the next turn, and the backend says so.
            Action::Read if budget == 0 => Event::Quiet,
            Action::Read => {
                budget -= 1;
                outcome(tcp::discard(socket), counters)
            }
            Action::Ask => Event::Acknowledged(tcp::is_acknowledged(socket)),
            action => return action,
        }
    }
}

/// What one read means to the state machine.
fn outcome(read: io::Result<usize>, counters: &mut Counters) -> Event {
    match read {
        Ok(0) => Event::End,
        Ok(bytes) => {
            counters.bytes_discarded += bytes as u64;
            Event::Received
        }
        Err(e) if e.kind() == ErrorKind::WouldBlock => Event::Quiet,
        Err(_) => Event::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Access;
    use lingerd_platform::backend::System;
    use slotmap::SlotMap;
    use std::collections::HashSet;
    use std::io::{Read, Write};
    use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;

    /// A kernel that forgets what it has reported, as event ports do, and that may have no room to
    /// be told of it again.
    struct Stingy {
        system: System,
        registered: HashSet<RawFd>,
        forgotten: HashSet<RawFd>,
        full: bool,
    }

    impl Backend for Stingy {
        const NAME: &'static str = "stingy";

        fn new() -> io::Result<Self> {
            let (registered, forgotten) = (HashSet::new(), HashSet::new());
            Ok(Stingy { system: System::new()?, registered, forgotten, full: false })
        }

        fn add(&mut self, fd: BorrowedFd<'_>, token: Token, interest: Interest) -> io::Result<()> {
            self.registered.insert(fd.as_raw_fd());
            self.system.add(fd, token, interest)
        }

        fn rearm(&mut self, fd: BorrowedFd<'_>, token: Token, interest: Interest) -> io::Result<()> {
            assert!(self.registered.contains(&fd.as_raw_fd()), "armed without a token");
            if self.full {
                if self.forgotten.insert(fd.as_raw_fd()) {
                    self.system.remove(fd)?;
                }
                return Err(ErrorKind::OutOfMemory.into());
            }
            match self.forgotten.remove(&fd.as_raw_fd()) {
                true => self.system.add(fd, token, interest),
                false => self.system.rearm(fd, token, interest),
            }
        }

        fn remove(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
            self.registered.remove(&fd.as_raw_fd());
            if self.forgotten.remove(&fd.as_raw_fd()) { Ok(()) } else { self.system.remove(fd) }
        }

        fn wait(&mut self, ready: &mut Vec<Token>, timeout: Option<Duration>) -> io::Result<()> {
            self.system.wait(ready, timeout)
        }
    }

    impl<B: Backend> Daemon<B> {
        /// Serves what is ready now, whatever the clock says, and tells whether anything was.
        fn serve_ready(&mut self) -> bool {
            let mut ready = Vec::new();
            self.backend.wait(&mut ready, Some(Duration::from_millis(1))).unwrap();
            self.serve_all(&ready);
            !ready.is_empty()
        }

        fn senders(&self) -> usize {
            self.handoff.as_ref().map_or(0, HandOff::senders)
        }
    }

    /// A daemon to be driven by hand, with its hand-off socket at the path.
    fn daemon<B: Backend>(name: &str) -> (Daemon<B>, PathBuf) {
        let path = std::env::temp_dir().join(format!("lingerd-{name}-{}", std::process::id()));
        let access = Access { uid: None, gid: None, mode: 0o600 };
        let handoff = HandOff::bind(&path, access, listener_token()).unwrap();
        let control = Control::bind(&path, None).unwrap();
        let room = Room::share(1024, 64, None).unwrap();
        let signals = Signals::install().unwrap();
        let [idle, max, limit] = [5, 30, 300].map(Duration::from_secs);
        (Daemon::new(handoff, control, signals, Rules { idle, max, limit }, room).unwrap(), path)
    }

    #[test]
    fn what_the_kernel_has_no_room_for_is_served_again_later() {
        let (mut daemon, path) = daemon::<Stingy>("stingy");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = listener.accept().unwrap().0;

        let first = UnixStream::connect(&path).unwrap();
        daemon.backend.full = true;
        daemon.serve_ready(); // lets the first one in, and can then wait for no other
        daemon.serve_ready(); // the first one says nothing
        let second = UnixStream::connect(&path).unwrap();
        daemon.serve_ready();
        assert_eq!(daemon.senders(), 1, "the door is not watched any more");
        fdpass::send(&first, b"L", &[server.as_fd()]).unwrap();
        daemon.serve_ready(); // a message, and then no room to wait for the next one
        fdpass::send(&first, b"L", &[server.as_fd()]).unwrap();
        daemon.serve_ready();
        assert_eq!(daemon.table.len(), 1);

        daemon.backend.full = false;
        assert!(daemon.timeout().is_some_and(|time| time <= ACCEPT_AGAIN));
        // It waits for nothing but the time.
        while daemon.unarmed_at.is_some() {
            daemon.turn(&mut Vec::new()).unwrap();
        }
        daemon.serve_ready();
        assert_eq!(daemon.senders(), 2);
        assert_eq!(daemon.table.len(), 2);
        fdpass::send(&second, b"L", &[server.as_fd()]).unwrap();
        daemon.serve_ready();
        assert_eq!(daemon.table.len(), 3);
        assert_eq!(daemon.unarmed_at, None);
    }

    #[test]
    fn a_door_that_is_shut_is_not_armed() {
        let (mut daemon, _) = daemon::<Stingy>("shut");
        daemon.handoff.as_mut().unwrap().pause(&mut daemon.backend);
        daemon.serve(Source::Other(LISTENER));
        daemon.backend.remove(daemon.control.as_fd()).unwrap();
        daemon.control_at = Some(daemon.now + ACCEPT_AGAIN);
        daemon.serve(Source::Other(CONTROL));
        assert!(daemon.unarmed.is_empty());
    }

    #[test]
    fn any_sequence_of_messages_leaves_every_descriptor_counted() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let connection = || {
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (client, listener.accept().unwrap().0)
        };
        crate::fuzz::any(20, |random| {
            let (mut daemon, path) = daemon::<System>("messages");
            let (mut senders, mut clients, mut sent) = (Vec::new(), Vec::new(), 0);
            let mut others = Vec::new(); // the other ends of what else is sent
            for _ in 0..100 {
                match random.u8(..16) {
                    0 | 1 if senders.len() < 8 => senders.push(UnixStream::connect(&path).unwrap()),
                    2 if !senders.is_empty() => drop(senders.swap_remove(random.usize(..senders.len()))),
                    3..=9 if !senders.is_empty() => {
                        // Mostly what the protocol says; now and then whatever else there is.
                        let mut descriptors: Vec<OwnedFd> = Vec::new();
                        for _ in 0..random.usize(..4) {
                            descriptors.push(match random.u8(..8) {
                                0 => std::fs::File::open("/dev/null").unwrap().into(),
                                1 => listener.try_clone().unwrap().into(),
                                2 => std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into(),
                                3 => {
                                    let (one, other) = UnixStream::pair().unwrap();
                                    others.push(other);
                                    one.into()
                                }
                                _ => {
                                    let (client, server) = connection();
                                    clients.push(client);
                                    server.into()
                                }
                            });
                        }
                        let fds: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
                        let byte = if random.u8(..10) == 0 { random.u8(..) } else { b'L' };
                        let sender = &senders[random.usize(..senders.len())];
                        if fdpass::send(sender, &[byte], &fds).is_ok() {
                            sent += fds.len();
                        }
                    }
                    10 if !clients.is_empty() => drop(clients.swap_remove(random.usize(..clients.len()))),
                    11 if !clients.is_empty() => {
                        let client = random.usize(..clients.len());
                        let _ = clients[client].write_all(b"late");
                    }
                    12 => daemon.now = daemon.now + Duration::from_millis(random.u64(..9_000)),
                    13 => daemon.expire(),
                    _ => drop(daemon.serve_ready()),
                }
            }
            // What was sent to one that has closed since is still to be read.
            let mut turns = 0;
            while daemon.serve_ready() {
                turns += 1;
                assert!(turns < 10_000, "something is ready for ever");
            }
            let counters = daemon.snapshot();
            assert_eq!(counters.get("handed_over").unwrap() + counters.get("rejected").unwrap(), sent as u64);
            assert!(daemon.descriptors.is_empty());
            daemon.stop();
            daemon.stop();
            assert!(daemon.table.is_empty());
            // And none of them is kept: whoever has the other end sees it closed.
            drop(senders);
            for mut client in clients {
                let start = Instant::now();
                while client.write(b"x").is_ok() {
                    assert!(start.elapsed() < Duration::from_secs(60), "a connection is kept");
                    thread::yield_now();
                }
            }
            for mut other in others {
                other.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
                assert_eq!(other.read(&mut [0]).unwrap(), 0);
            }
        });
    }

    #[test]
    fn what_was_unread_when_it_was_closed_counts_as_cut_short() {
        let (mut daemon, _) = daemon::<System>("unread");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        for (late, cut_short) in [(&b""[..], 0), (b"x", 1)] {
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let server = listener.accept().unwrap().0;
            server.shutdown(std::net::Shutdown::Write).unwrap();
            client.read_to_end(&mut Vec::new()).unwrap();
            while tcp::is_acknowledged(&server) == Some(false) {
                thread::yield_now();
            }
            daemon.admit(server.into());
            let (entry, _) = daemon.table.nearest().unwrap();
            client.write_all(late).unwrap();
            let arrived = |daemon: &Daemon<_>| tcp::has_unread(daemon.table.socket(entry).unwrap());
            while !late.is_empty() && !arrived(&daemon) {
                thread::yield_now();
            }
            daemon.close(entry, Reason::Max);
            assert_eq!(daemon.snapshot().get("cut_short"), Some(cut_short));
        }
    }

    #[test]
    fn a_token_names_one_source_and_no_other() {
        let mut entries = SlotMap::<Entry, ()>::with_key();
        let mut senders = SlotMap::<Sender, ()>::with_key();
        // The first entry and the first sender have the same key, as have those in reused places.
        let (entry, sender) = (entries.insert(()), senders.insert(()));
        entries.remove(entry);
        let all = [
            Source::Connection(entry),
            Source::Connection(entries.insert(())),
            Source::Sender(sender),
            Source::Sender(senders.insert(())),
            Source::Other(LISTENER),
            Source::Other(RELOAD),
        ];
        for (n, source) in all.into_iter().enumerate() {
            assert_eq!(Source::of(source.token()), source);
            assert!(all[..n].iter().all(|other| other.token() != source.token()), "{source:?}");
        }
    }
}
