// SPDX-License-Identifier: BSD-3-Clause

//! The daemon: the turn that moves descriptors from the senders to the connections; in a file each who hands
//! over, the stop, and the way from one daemon to the next.
//!
//! It decides who is served next and how much of it (budgets, room for descriptors), and nothing
//! about lingering itself: that is [`crate::rules`]'. It makes no system call; it has others make
//! them.

mod handoffs;
mod stop;
mod succession;

use self::handoffs::SOCKET_BUDGET;
use crate::clock::TurnClock;
use crate::connections::Connections;
use crate::connections::capacity::Room;
use crate::guard::Allowed;
use crate::retry::Retry;
use crate::rules::linger::Rules;
use crate::rules::time::{Span, Time, first};
use crate::senders::intake::{Said, Senders};
use crate::service::control::{Control, Order, Word};
use crate::service::logger;
use crate::source::{Source, Speech};
use crate::stats::minute::LastMinute;
use crate::stats::{Moment, Snapshot};
use lingerd_platform::backend::{Backend, Descriptor, Interest, MOST_READY, Token};
use lingerd_platform::fdpass;
use lingerd_platform::manager::Notice;
use lingerd_platform::signals::{Signal, Signals};
use lingerd_platform::world::World;
use log::{info, warn};
use std::io::{self, ErrorKind};
use std::time::Duration;

/// How much is done before it is looked again whether anybody asks or says stop: sources that are
/// served, and sockets that are handed over or expire.
const BREATH: usize = 256;
/// So many that are ready are enough for a turn: it begins at once, see [`lingerd_platform::clock::Clock::pause`]. A wake-up
/// costs each of them next to nothing then, and who has as much to do would fall behind.
const ENOUGH: usize = MOST_READY / 4;
/// Clients of the control socket that are let in at a time: once in a turn, and each time that it looks up
/// from a long one.
const CLIENT_BUDGET: usize = 8;
/// What those come for who are let in there.
const ASKED: &str = "answer 'lingerd -S' or '-k'";
/// How often the counters are logged while there is work.
const SUMMARY_EVERY: Span = Span::from_secs(3600);

/// What a daemon is made of, opened and bound.
pub struct Parts<W: World> {
    /// Waits.
    pub backend: W::Backend,
    /// Has the time.
    pub clock: W::Clock,
    /// Closes what may take long.
    pub slow_close: W::SlowClose,
    /// Reads what may take long.
    pub reader: W::Reader,
    /// Finds who takes parked connections back.
    pub back: W::Back,
    /// How many bytes that are still to be written may take room before no more are taken.
    pub most_held: u64,
    /// Tell of signals.
    pub signals: Signals<W::Signal>,
    /// Where senders come in.
    pub door: W::Door,
    /// Where those come in whose responses are still to be written.
    pub spool_door: Option<W::Door>,
    /// Whether a service manager listens there as well, at both, and this daemon's successor finds who waits.
    pub door_is_shared: bool,
    /// Whom that is for.
    pub allowed: Allowed,
    /// Where `lingerd -S` and `-k` come in, and a successor.
    pub control: W::Door,
    /// The pid file and where it lies: it goes along to a successor, and is dropped at the end.
    pub pid_file: Option<(String, Box<dyn Descriptor>)>,
    /// A number that nobody outside can guess.
    pub chance: u64,
    /// Is told how many responses are still to be written, when that has changed.
    pub note: Box<dyn Fn(usize)>,
    /// Is told what becomes of the daemon; whether it was, if there is anybody to be told.
    pub tell: Box<dyn Fn(Notice) -> bool>,
}

/// How a daemon's life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was told to stop.
    Stopped,
    /// Another one has taken everything over: nothing that this one still has may be touched, no name
    /// removed and no socket shut down. Closing does no harm.
    Succeeded,
}

/// Why a daemon cannot serve, or can no longer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The backend takes not even the daemon's own descriptors.
    #[error("cannot begin to wait")]
    Register(#[source] io::Error),
    /// The backend cannot wait.
    #[error("cannot wait")]
    Wait(#[source] io::Error),
}

/// See the module's head.
pub struct Daemon<W: World> {
    backend: W::Backend,
    clock: TurnClock<W::Clock>,
    signals: Signals<W::Signal>,
    control: Control<W>,
    pid_file: Option<(String, Box<dyn Descriptor>)>,
    tell: Box<dyn Fn(Notice) -> bool>,
    note: Box<dyn Fn(usize)>,
    /// What was noted last.
    noted: usize,
    /// Who wants to take over, once this turn is over.
    successor: Option<W::Link>,
    /// Who has, to be told what this one is told in its last moments.
    heir: Option<W::Link>,
    /// Without a door once it was told to stop.
    senders: Senders<W>,
    connections: Connections<W>,
    most_held: u64,
    retry: Retry,
    /// How long it may take once it was told to stop, and when what is left is ended for that.
    drain: Span,
    end_at: Option<Time>,
    last_minute: LastMinute,
    /// When to log the counters: an hour after the first work since they were last logged.
    summary_at: Option<Time>,
    /// When to look for the servers that were given up, while somebody is not told of what he has parked for one.
    look_at: Option<Time>,
    /// What was done since it was looked whether anybody asks or says stop.
    work: usize,
    /// How often each that was ready has been reported, see [`Senders::says_more`].
    rounds: u64,
    /// What came with a message, on its way to the table; and what is ready in this turn. Kept for
    /// their memory.
    received: Vec<W::Received>,
    ready: Vec<Token>,
}

impl<W: World> Daemon<W> {
    /// Puts the parts together and registers them. Told to stop, it lingers on, but has ended within
    /// `drain`: who supervises it kills it sooner or later, and loses more.
    ///
    /// # Errors
    /// [`Error::Register`].
    pub fn new(parts: Parts<W>, rules: Rules, drain: Span, room: Room) -> Result<Self, Error> {
        let Parts { mut backend, clock, slow_close, signals, door, spool_door, door_is_shared, .. } = parts;
        let Parts { allowed, control, pid_file, chance, tell, note, reader, back, most_held, .. } = parts;
        let clock = TurnClock::new(clock);
        let mut senders = Senders::new([Some(door), spool_door], door_is_shared, allowed);
        let mut control = Control::new(control);
        let mut register = || -> io::Result<()> {
            control.watch(&mut backend)?;
            backend.add(&signals.stop, Source::Stop.token(), Interest::Read)?;
            backend.add(&signals.report, Source::Report.token(), Interest::Read)?;
            backend.add(&signals.reload, Source::Reload.token(), Interest::Read)?;
            backend.add(&reader, Source::Reader.token(), Interest::Read)?;
            Speech::ALL.into_iter().try_for_each(|speech| senders.watch_door(speech, &mut backend))
        };
        register().map_err(Error::Register)?;
        Ok(Daemon {
            connections: Connections::new(rules, room, slow_close, reader, back, chance, clock.now()),
            last_minute: LastMinute::new(clock.now()),
            most_held,
            backend,
            clock,
            signals,
            control,
            pid_file,
            tell,
            note,
            noted: usize::MAX, // whatever it was before, the first turn notes what is here
            successor: None,
            heir: None,
            senders,
            retry: Retry::default(),
            drain,
            end_at: None,
            summary_at: None,
            look_at: None,
            work: 0,
            rounds: 1,
            received: Vec::with_capacity(fdpass::MAX_DESCRIPTORS),
            ready: Vec::new(),
        })
    }

    /// Serves until it is told to stop and its lingers have ended, or their time has, or it is told twice; or
    /// until another one has taken over.
    ///
    /// # Errors
    /// [`Error::Wait`].
    pub fn run(&mut self) -> Result<End, Error> {
        let room = self.connections.room();
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
        let most = room.connections(0);
        // One that has taken over from one that stops stops, too.
        if !self.is_stopping() {
            info!("serving ({}); up to {most} connections linger at once", W::Backend::NAME);
            (self.tell)(Notice::Serving);
        }
        while !self.is_done() {
            self.turn()?;
        }
        if self.is_succeeded() {
            self.control.tell_the_end(Word::Succeeded, &mut self.backend);
            self.summary("succeeded");
            self.pass_stop_on();
            return Ok(End::Succeeded);
        }
        self.summary("stopped");
        self.pid_file = None; // who waits for the end may want it
        self.control.tell_the_end(Word::Ended, &mut self.backend);
        Ok(End::Stopped)
    }

    /// Whether it was told to stop, and takes no more hand-offs.
    pub fn is_stopping(&self) -> bool {
        !self.senders.has_door()
    }

    /// What finds those who take parked connections back.
    pub fn ways(&self) -> &W::Back {
        self.connections.ways()
    }

    /// Closes its copies of what a successor has: where this process cannot end, as a file system does not answer, it is not
    /// to keep alive what that one ends.
    pub fn close_copies(&mut self) {
        self.connections.close_copies();
        self.senders.close_copies();
    }

    /// Counts responses that were cut off with a daemon before this one, which was killed.
    pub fn were_killed(&mut self, responses: u64) {
        if responses > 0 {
            warn!("the lingerd before this one was killed, and {responses} responses were cut off with it");
            self.connections.were_killed(responses);
        }
    }

    /// Whether it was, and has nothing to do any more, or another one does it.
    pub fn is_done(&self) -> bool {
        let nothing_left = self.is_stopping() && self.senders.is_empty() && self.connections.is_empty();
        self.is_succeeded() || nothing_left && self.successor.is_none()
    }

    /// Whether another one has taken over.
    pub fn is_succeeded(&self) -> bool {
        self.heir.is_some()
    }

    /// Waits once, and does what there is to do.
    ///
    /// # Errors
    /// [`Error::Wait`].
    pub fn turn(&mut self) -> Result<(), Error> {
        let timeout = match &self.successor {
            Some(_) => Some(Duration::ZERO), // one who came along from a predecessor
            None => self.next().map(|time| self.clock.until(time)),
        };
        self.backend.wait(&mut self.ready, timeout).map_err(Error::Wait)?;
        // It saves work where many end at once, but whoever asks for something is not to wait for that.
        if (1..ENOUGH).contains(&self.ready.len()) && self.connections.parked() == 0 {
            self.clock.pause();
        }
        self.clock.turn();
        // Beyond that there may be others, who were not reported.
        self.rounds += u64::from(self.ready.len() < MOST_READY);
        let now = self.clock.now();
        if self.last_minute.wants_look(now) {
            self.last_minute.look(now, &self.figures());
        }
        self.serve_ready();
        if self.retry.at().is_some_and(|at| now.ticks_since(at) >= 0) {
            for source in self.retry.take() {
                self.serve(source, false);
                self.breathe(1);
            }
        }
        if self.end_at.is_some_and(|time| now.ticks_since(time) >= 0) {
            self.end("their time is over");
        }
        if self.summary_at.is_some_and(|time| now.ticks_since(time) >= 0) {
            self.summary("summary");
        }
        if self.look_at.is_some_and(|time| now.ticks_since(time) >= 0) {
            self.look_for_servers();
        }
        self.give_credit();
        if self.noted != self.connections.spooling() {
            self.noted = self.connections.spooling();
            (self.note)(self.noted);
        }
        // Last: what was ready in this turn may be another one's then.
        if let Some(link) = self.successor.take() {
            self.give_away(link);
        }
        Ok(())
    }

    /// The next time at which there is something to do, whatever happens.
    fn next(&self) -> Option<Time> {
        let now = self.clock.now();
        let others = [self.retry.at(), self.end_at, self.summary_at, self.look_at];
        others.into_iter().fold(self.connections.next(now), |next, time| first(next, time, now))
    }

    /// Serves what the backend reported: who says stop or asks comes first, then the connections, as
    /// those that end make room for those that come, and then the senders.
    fn serve_ready(&mut self) {
        let ready = std::mem::take(&mut self.ready);
        self.connections.begin_turn(ready.len());
        for &token in ready.iter().filter(|&&token| Source::may_be_urgent(token)) {
            match Source::of(token) {
                None | Some(Source::Door(_)) => {}
                Some(source) => self.serve(source, true),
            }
        }
        for &token in &ready {
            if let Some(Source::Connection(entry)) = Source::of(token) {
                let work = self.connections.ready(entry, &mut self.backend, self.clock.now());
                self.breathe(work);
            }
        }
        let expired = self.connections.expire(&mut self.backend, self.clock.now());
        self.breathe(expired);
        // What is on its way back takes descriptors, and a message is to have its own.
        if self.connections.parked() > 0 {
            self.connections.make_room(0, self.others(), &mut self.backend, self.clock.now());
        }
        for &token in &ready {
            if let Some(source @ (Source::Sender(_) | Source::Door(_))) = Source::of(token) {
                self.serve(source, true);
                self.breathe(1);
            }
        }
        self.ready = ready;
    }

    /// After so much more `work` looks whether anybody asks or says stop, if much was done since: a
    /// turn may be long, and a backend may report a hundred thousand connections before it comes to
    /// these. Only between two sources, as a stop in the middle of one would find what it has not
    /// finished.
    fn breathe(&mut self, work: usize) {
        self.work += work;
        if self.work >= BREATH {
            self.work = 0;
            Source::URGENT.into_iter().for_each(|source| self.answer(source));
            // They may have spoken since they came in.
            let undecided: Vec<_> = self.control.undecided().map(|(client, _)| client).collect();
            for client in undecided {
                self.answer(Source::Client(client));
            }
        }
    }

    /// Serves one source that is ready, if it `is_reported`, and asks to hear of it again. Where the kernel
    /// has no room for that now, it is served again in a second, ready or not.
    fn serve(&mut self, source: Source, is_reported: bool) {
        match source {
            // It was to be parted with, and could not be read.
            Source::Sender(sender) if self.is_stopping() => drop(self.part_with(sender)),
            Source::Sender(sender) => {
                // Only who is reported is reported again.
                let says_more = !is_reported || self.senders.says_more(sender, self.rounds);
                let budget = if says_more { SOCKET_BUDGET } else { 1 };
                if self.receive(sender, budget) == Said::NotNow {
                    self.not_now(sender);
                }
            }
            Source::Door(speech) if self.is_stopping() => self.part_with_waiting(speech),
            Source::Door(speech) => self.accept(speech),
            Source::Control if self.retry.waits_for(source) => {}
            Source::Control => self.let_clients_in(is_reported),
            urgent => self.answer(urgent),
        }
        if self.retry.waits_for(source) {
            return; // it was left alone
        }
        if let Err(e) = self.watch_on(source) {
            self.retry.backend(source, self.clock.now(), &e);
        }
    }

    /// Has `source` reported again.
    fn watch_on(&mut self, source: Source) -> io::Result<()> {
        let backend = &mut self.backend;
        let mut rearm = |signal: &W::Signal| backend.rearm(signal, source.token(), Interest::Read);
        match source {
            Source::Connection(_) => Ok(()),
            Source::Sender(sender) => self.senders.watch(sender, backend),
            Source::Door(speech) => self.senders.watch_door(speech, backend),
            Source::Reader => backend.rearm(self.connections.reader(), source.token(), Interest::Read),
            Source::Control => self.control.watch(backend),
            Source::Client(client) => self.control.watch_client(client, backend),
            Source::Stop => rearm(&self.signals.stop),
            Source::Report => rearm(&self.signals.report),
            Source::Reload => rearm(&self.signals.reload),
        }
    }

    /// Does what a signal says, or tells who asks.
    fn answer(&mut self, source: Source) {
        self.hear_what_is_said(source);
        self.close_leaving();
    }

    /// Closes the links of those who have gone from the control socket, or were hung up on there.
    fn close_leaving(&mut self) {
        self.control.leaving().for_each(|link| self.connections.close_link(link));
    }

    /// What a client of the control socket wants, if he says so.
    fn hear_order(&mut self, client: u8) -> Option<Order> {
        let mut received = Vec::new();
        let order = self.control.hear(client, &mut received, &mut self.backend);
        received.into_iter().for_each(|other| self.connections.close_slowly(other));
        order
    }

    fn hear_what_is_said(&mut self, source: Source) {
        match source {
            Source::Stop => {
                for _ in 0..self.signals.stop.take() {
                    self.stop();
                }
            }
            Source::Report if self.signals.report.take() > 0 => self.summary("counters"),
            Source::Reload if self.signals.reload.take() > 0 => {
                logger::reopen();
                info!("log reopened; there is no configuration to reload");
            }
            Source::Control if !self.retry.waits_for(Source::Control) => self.let_clients_in(false),
            Source::Reader => self.work += self.connections.read(&mut self.backend, self.clock.now()),
            Source::Client(client) if self.control.is_told(client) => self.tell_on(client),
            // What else is said waits, for the successor perhaps: of two that come at once the later one takes
            // over from the earlier one.
            Source::Client(_) if self.successor.is_some() => {}
            Source::Client(client) => match self.hear_order(client) {
                Some(Order::Counters) => {
                    if let Some(link) = self.control.take(client, &mut self.backend) {
                        self.tell(link, self.snapshot().told(), false);
                    }
                }
                Some(Order::Stop) => {
                    self.control.tell_stopping(client);
                    self.stop();
                }
                Some(Order::StopToo) if self.is_stopping() => {}
                Some(Order::StopToo) => self.stop(),
                Some(Order::TakeOver) => self.successor = self.control.take(client, &mut self.backend),
                None => {}
            },
            _ => {}
        }
    }

    /// Tells somebody something, as fast as it is read.
    fn tell(&mut self, link: W::Link, text: String, is_sender: bool) {
        let client = self.control.tell(link, text, is_sender, &mut self.backend);
        self.tell_on(client);
        self.close_leaving();
        let source = Source::Client(client);
        if self.retry.waits_for(source) {
            return; // it was left alone
        }
        if let Err(e) = self.watch_on(source) {
            self.retry.backend(source, self.clock.now(), &e);
        }
    }

    /// Tells `client` more of what it is being told.
    fn tell_on(&mut self, client: u8) {
        if let Err(e) = self.control.tell_on(client, &mut self.backend) {
            self.control.leave_client(client, &mut self.backend);
            self.retry.door(Source::Client(client), self.clock.now(), "tell the counters", &e);
        }
    }

    /// Lets in who wants something, and hears what it is. If somebody does for certain, and there is no
    /// descriptor for that, a connection gives its own: who has come to find out what is wrong, or to stop
    /// it, must not be the one who is not heard. One a second at most, as another process may take it.
    fn let_clients_in(&mut self, mut is_certain: bool) {
        let (mut may_evict, now) = (true, self.clock.now());
        for _ in 0..CLIENT_BUDGET {
            match self.control.accept(&mut self.backend, now) {
                Ok(Some(Ok(client))) => self.hear_client(client),
                Ok(Some(Err(refused))) => self.connections.close_slowly(refused),
                Ok(None) => return,
                Err(e) if is_passing(&e) => continue,
                Err(e) => {
                    let wants_descriptor = fdpass::wants_descriptor(&e);
                    if wants_descriptor && !is_certain {
                        return; // it is reported who waits
                    }
                    if wants_descriptor
                        && may_evict
                        && self.connections.evict_gentlest(&mut self.backend, now)
                    {
                        may_evict = false;
                        self.retry.made_way(now, ASKED, &e);
                        continue;
                    }
                    self.control.leave(&mut self.backend);
                    return self.retry.door(Source::Control, now, ASKED, &e);
                }
            }
            is_certain = false;
        }
    }

    /// Hears one who has just come in: most say at once what they want.
    fn hear_client(&mut self, client: u8) {
        self.answer(Source::Client(client));
        if let Err(e) = self.control.watch_client(client, &mut self.backend) {
            self.retry.backend(Source::Client(client), self.clock.now(), &e);
        }
    }

    /// How many are there at the control socket, and have not been answered or wait for the end, or for their
    /// turn to take over.
    pub fn clients(&self) -> usize {
        self.control.len() + usize::from(self.successor.is_some())
    }

    /// How many descriptors messages have brought that are not complete.
    pub fn begun(&self) -> usize {
        self.senders.begun()
    }

    /// How many files are open for what is still to be written, and descriptors of messages that are not complete.
    pub fn files(&self) -> usize {
        self.connections.files() + self.senders.begun()
    }

    /// How many parked connections are on their way to a worker: a descriptor is open for each of these, too.
    pub fn offers(&self) -> usize {
        self.connections.offers()
    }

    /// The counters of this moment, and by how much they have grown in the last minute.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = self.figures();
        snapshot.last_minute = Some(self.last_minute.growth(self.clock.now(), &snapshot));
        snapshot
    }

    fn figures(&self) -> Snapshot {
        Moment {
            ends: self.connections.ends(),
            lingering: self.connections.lingering(),
            capacity: self.connections.room().connections(0),
            spooling: (self.connections.spooling(), self.connections.unsent()),
            parked: (self.connections.parked(), self.connections.returning()),
            senders: self.senders.len(),
            protocol_errors: self.senders.protocol_errors(),
            refused: self.senders.refused() + self.control.refused(),
            uptime: self.clock.uptime().as_secs(),
        }
        .snapshot()
    }

    fn summary(&mut self, what: &str) {
        self.summary_at = None;
        info!("{what}: {}", self.snapshot());
    }
}

/// Whether the next one may be there though this one has not come in.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted)
}

#[cfg(test)]
mod tests;
