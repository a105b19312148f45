// SPDX-License-Identifier: BSD-3-Clause

//! The daemon: the turn that moves descriptors from the senders to the connections, and the stop.
//!
//! It decides who is served next and how much of it (budgets, room for descriptors), and nothing
//! about lingering itself: that is [`crate::rules`]'. It makes no system call; it has others make
//! them.

use crate::clock::TurnClock;
use crate::connections::Connections;
use crate::connections::capacity::Room;
use crate::guard::Allowed;
use crate::retry::Retry;
use crate::rules::linger::Rules;
use crate::rules::time::{Span, Time, first};
use crate::senders::intake::{Said, Senders};
use crate::senders::protocol::Message;
use crate::service::control::{Control, Order, Word};
use crate::service::logger;
use crate::source::{Sender, Source};
use crate::stats::{Format, Moment, Snapshot};
use crate::upgrade::heir::Estate;
use crate::upgrade::image::{self, Facts, Frame, Household, Role};
use crate::upgrade::testator::{self, Testator};
use lingerd_platform::backend::{Backend, Descriptor, Interest, Token};
use lingerd_platform::fdpass::{self, Door, Link, PORTABLE_DESCRIPTORS};
use lingerd_platform::manager::Notice;
use lingerd_platform::signals::{Signal, Signals};
use lingerd_platform::world::World;
use log::{debug, info, warn};
use std::io::{self, ErrorKind};
use std::time::Duration;

/// Sockets of one sender in one turn; its last message may bring more.
const SOCKET_BUDGET: usize = 256;
/// Sockets of one sender that are taken when it is parted with, more than any kernel queues: all of
/// them, where it can add none to them meanwhile.
const PARTING_BUDGET: usize = 256 * fdpass::MAX_DESCRIPTORS;
/// Senders that are let in at the stop, who have waited.
const WAITING_BUDGET: usize = 1 << 16;
/// Senders let in in one turn.
const ACCEPT_BUDGET: usize = 64;
/// How much is done before it is looked again whether anybody asks or says stop: sources that are
/// served, and sockets that are handed over or expire.
const BREATH: usize = 256;
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
    /// Tell of signals.
    pub signals: Signals<W::Signal>,
    /// Where senders come in.
    pub door: W::Door,
    /// Whether a service manager listens there as well, and this daemon's successor finds who waits.
    pub door_is_shared: bool,
    /// Whom that is for.
    pub allowed: Allowed,
    /// Where `lingerd -S` and `-k` come in, and a successor.
    pub control: W::Door,
    /// The pid file and where it lies: it goes along to a successor, and is dropped at the end.
    pub pid_file: Option<(String, Box<dyn Descriptor>)>,
    /// A number that nobody outside can guess.
    pub chance: u64,
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
    /// Who wants to take over, once this turn is over.
    successor: Option<W::Link>,
    /// Who has, to be told what this one is told in its last moments.
    heir: Option<W::Link>,
    /// Without a door once it was told to stop.
    senders: Senders<W>,
    connections: Connections<W>,
    retry: Retry,
    /// How long it may take once it was told to stop, and when what is left is ended for that.
    drain: Span,
    end_at: Option<Time>,
    /// When to log the counters: an hour after the first work since they were last logged.
    summary_at: Option<Time>,
    /// What was done since it was looked whether anybody asks or says stop.
    work: usize,
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
        let Parts { mut backend, clock, slow_close, signals, door, door_is_shared, .. } = parts;
        let Parts { allowed, control, pid_file, chance, tell, .. } = parts;
        let clock = TurnClock::new(clock);
        let mut senders = Senders::new(door, door_is_shared, allowed);
        let mut control = Control::new(control);
        let mut register = || -> io::Result<()> {
            control.watch(&mut backend)?;
            backend.add(&signals.stop, Source::Stop.token(), Interest::Read)?;
            backend.add(&signals.report, Source::Report.token(), Interest::Read)?;
            backend.add(&signals.reload, Source::Reload.token(), Interest::Read)?;
            senders.watch_door(&mut backend)
        };
        register().map_err(Error::Register)?;
        Ok(Daemon {
            connections: Connections::new(rules, room, slow_close, chance, clock.now()),
            backend,
            clock,
            signals,
            control,
            pid_file,
            tell,
            successor: None,
            heir: None,
            senders,
            retry: Retry::default(),
            drain,
            end_at: None,
            summary_at: None,
            work: 0,
            received: Vec::with_capacity(fdpass::MAX_DESCRIPTORS),
            ready: Vec::new(),
        })
    }

    /// Makes the doors its own that a predecessor has let go of.
    pub fn claim(&self) {
        self.control.door().claim();
        if let Some(door) = self.senders.door() {
            door.claim();
        }
    }

    /// Makes everything its own that a predecessor has told about and has let go of.
    pub fn take_over(&mut self, estate: Estate<W::Received>) {
        // What was told is of the time in which this one was made; what is done is done now, and it may have
        // taken seconds until the predecessor let go.
        let told = self.clock.now();
        self.clock.turn();
        let now = self.clock.now();
        let counters = estate.household.counters();
        self.clock.count_on(Duration::from_millis(estate.household.uptime));
        self.connections.count_on(&counters);
        let counted = |name| counters.get(name).unwrap_or(0);
        self.senders.count_on(counted("protocol_errors"), counted("refused"));
        for link in estate.senders {
            let sender = self.senders.add(W::Link::of(link));
            if let Err(e) = self.senders.watch(sender, &mut self.backend) {
                self.retry.backend(Source::Sender(sender), now, &e);
            }
        }
        let senders = self.senders.len();
        // This one may have fewer descriptors, and then it keeps fewer senders.
        let kept = senders.min(self.connections.room().senders());
        for (socket, facts) in estate.connections {
            self.connections.take_over(socket, facts.at(told), kept, &mut self.backend, now);
        }
        self.part_with_the_silent();
        for (role, thing) in estate.things {
            if role == Role::Client {
                let client = self.control.seat(W::Link::of(thing), &mut self.backend);
                self.hear_client(client);
            }
        }
        self.summary_at.get_or_insert(now + SUMMARY_EVERY);
        info!("took over {} connections and {senders} senders", self.connections.len());
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
        if !self.ready.is_empty() {
            self.clock.pause();
        }
        self.clock.turn();
        self.serve_ready();
        let now = self.clock.now();
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
        // Last: what was ready in this turn may be another one's then.
        if let Some(link) = self.successor.take() {
            self.give_away(link);
        }
        Ok(())
    }

    /// The next time at which there is something to do, whatever happens.
    fn next(&self) -> Option<Time> {
        let now = self.clock.now();
        let others = [self.retry.at(), self.end_at, self.summary_at];
        others.into_iter().fold(self.connections.next(now), |next, time| first(next, time, now))
    }

    /// Serves what the backend reported: who says stop or asks comes first, then the connections, as
    /// those that end make room for those that come, and then the senders.
    fn serve_ready(&mut self) {
        let ready = std::mem::take(&mut self.ready);
        for &token in ready.iter().filter(|&&token| Source::may_be_urgent(token)) {
            match Source::of(token) {
                None | Some(Source::Door) => {}
                Some(source) => self.serve(source, true),
            }
        }
        for &token in &ready {
            if let Some(Source::Connection(entry)) = Source::of(token) {
                self.connections.ready(entry, &mut self.backend, self.clock.now());
                self.breathe(1);
            }
        }
        let expired = self.connections.expire(&mut self.backend, self.clock.now());
        self.breathe(expired);
        for &token in &ready {
            if let Some(source @ (Source::Sender(_) | Source::Door)) = Source::of(token) {
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
                if self.receive(sender, SOCKET_BUDGET) == Said::NotNow {
                    self.not_now(sender);
                }
            }
            Source::Door if self.is_stopping() => self.part_with_waiting(),
            Source::Door => self.accept(),
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
            Source::Door => self.senders.watch_door(backend),
            Source::Control => self.control.watch(backend),
            Source::Client(client) => self.control.watch_client(client, backend),
            Source::Stop => rearm(&self.signals.stop),
            Source::Report => rearm(&self.signals.report),
            Source::Reload => rearm(&self.signals.reload),
        }
    }

    /// Does what a signal says, or tells who asks.
    fn answer(&mut self, source: Source) {
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
            // What else is said waits, for the successor perhaps: of two that come at once the later one takes
            // over from the earlier one.
            Source::Client(_) if self.successor.is_some() => {}
            Source::Client(client) => match self.control.hear(client, &mut self.backend) {
                Some(Order::Counters) => {
                    let snapshot = self.snapshot();
                    self.control.tell_counters(client, &snapshot, &mut self.backend);
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

    /// Gives everything to the successor at the other end of `link`. If it does not take it all is as it was.
    fn give_away(&mut self, link: W::Link) {
        // What was said before it came counts as said.
        self.answer(Source::Stop);
        if self.senders.may_wait() {
            return; // a door that is shut is none to give away; who is hung up on comes again
        }
        let start = self.clock.uptime();
        match self.give(&link) {
            Ok(true) => {
                Testator::new(&link, self.clock.clock(), Duration::ZERO).say(image::GIVEN);
                let took = self.clock.uptime().saturating_sub(start).as_secs_f64() * 1e3;
                let connections = self.connections.len();
                info!(
                    "a successor has taken over {connections} connections; nobody was served for {took:.1} ms"
                );
                self.heir = Some(link);
                self.pass_stop_on();
            }
            Ok(false) => debug!("another lingerd was started, without -r"),
            Err(e) => warn!("a successor wanted to take over, but {e}; this daemon serves on"),
        }
    }

    /// Tells the successor that it is to stop, if this one was told so since it has let go.
    fn pass_stop_on(&mut self) {
        if let Some(heir) = self.heir.as_ref().filter(|_| self.signals.stop.take() > 0) {
            Testator::new(heir, self.clock.clock(), Duration::ZERO).say(Order::StopToo.byte());
        }
    }

    /// Tells the successor everything, and waits for its word. Returns whether there was anything to
    /// take over for it.
    fn give(&self, link: &W::Link) -> Result<bool, testator::Error> {
        // Told to stop, it has ended in time, whoever hangs.
        let left = self.end_at.map_or(testator::PATIENCE, |at| self.clock.until(at));
        let mut testator = Testator::new(link, self.clock.clock(), left.min(testator::PATIENCE));
        let given = self.give_to(link, &mut testator);
        if given.is_err() {
            testator.keep();
        }
        given
    }

    fn give_to(
        &self,
        link: &W::Link,
        testator: &mut Testator<'_, W::Link, W::Clock>,
    ) -> Result<bool, testator::Error> {
        let request = testator.request()?;
        if request.only_if_stopping && !self.is_stopping() {
            return testator.refuse().map(|()| false);
        }
        info!("lingerd {} takes over", request.version);
        let mut roles = vec![Role::Control];
        let mut things: Vec<&dyn Descriptor> = vec![self.control.door()];
        if let Some(door) = self.senders.door() {
            roles.push(Role::Door);
            things.push(door);
        }
        if let Some((_, pid_file)) = &self.pid_file {
            roles.push(Role::PidFile);
            things.push(&**pid_file);
        }
        for (_, client) in self.control.undecided() {
            roles.push(Role::Client);
            things.push(client);
        }
        let household = Household {
            roles,
            pid_file: self.pid_file.as_ref().map(|(path, _)| path.clone()),
            door_is_shared: self.senders.door_is_shared(),
            uptime: self.clock.uptime().as_millis() as u64, // of years
            counters: self.snapshot().render(Format::Text),
        };
        testator.send(&Frame::Household(household), &things)?;
        for senders in self.senders.by_silence().chunks(PORTABLE_DESCRIPTORS) {
            let links: Vec<_> = senders.iter().map(|&link| link as &dyn Descriptor).collect();
            testator.send(&Frame::Senders, &links)?;
        }
        let now = self.clock.now();
        let mut connections = self.connections.by_age().peekable();
        while connections.peek().is_some() {
            let some = connections.by_ref().take(PORTABLE_DESCRIPTORS);
            let (sockets, facts): (Vec<_>, Vec<_>) =
                some.map(|(socket, linger)| (socket as &dyn Descriptor, Facts::of(&linger, now))).unzip();
            testator.send(&Frame::Connections { facts }, &sockets)?;
        }
        testator.send(&Frame::End, &[])?;
        testator.wait_until_it_has_it()?;
        // Before it hears that it serves, and tells so itself. A manager that does not know takes the end of this
        // process for that of the service, and ends the new one.
        let pid = link.peer().ok().and_then(|peer| peer.pid);
        if !(self.tell)(Notice::SucceededBy(pid.unwrap_or(0))) {
            return Err(io::Error::other("the service manager cannot be told who it is").into());
        }
        Ok(true)
    }

    /// Lets waiting senders in.
    fn accept(&mut self) {
        let now = self.clock.now();
        for _ in 0..ACCEPT_BUDGET {
            // Whoever is refused may have sent what is slow to close, and must not fill the table with it.
            let accepted = match self.connections.closing() > self.connections.room().message() {
                true => Err(io::Error::other("there are too many files to close first")),
                false => self.senders.accept(now),
            };
            match accepted {
                Ok(Ok(sender)) => {
                    if let Err(e) = self.senders.watch(sender, &mut self.backend) {
                        self.retry.backend(Source::Sender(sender), now, &e);
                    }
                    self.part_with_the_silent();
                }
                Ok(Err(refused)) => self.connections.close_slowly(refused),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if is_passing(&e) => {}
                Err(e) => {
                    self.senders.leave_door(&mut self.backend);
                    return self.retry.door(Source::Door, now, "let a sender in", &e);
                }
            }
            self.connections.make_room(0, self.senders.len(), &mut self.backend, now);
        }
    }

    /// Parts with senders where there are too many. They make room for one with something to say, and come
    /// again when they have.
    fn part_with_the_silent(&mut self) {
        while self.senders.len() > self.connections.room().senders() {
            let Some(sender) = self.senders.most_silent() else { break };
            if !self.part_with(sender) {
                break;
            }
        }
    }

    /// Reads from `sender` until it has nothing more to say or has said so much: `budget` counts
    /// sockets, and a message counts as one at least. Returns what there was last.
    fn receive(&mut self, sender: Sender, budget: usize) -> Said {
        let now = self.clock.now();
        let mut left = budget;
        loop {
            let said = self.senders.receive(sender, &mut self.received, now);
            match said {
                Said::Nothing | Said::NotNow => return said,
                Said::Gone => {
                    drop(self.senders.dismiss(sender, &mut self.backend)); // nothing is queued in it
                    self.refuse_received(); // some systems deliver descriptors with the end
                    return said;
                }
                Said::Message(Message::Linger { .. }) => {
                    let sockets = self.received.len().max(1);
                    left = left.saturating_sub(sockets);
                    self.work += sockets;
                    if !self.admit_received()
                        && self.connections.closing() > self.connections.room().message()
                    {
                        self.senders.warn(now, "more files than can be closed");
                        self.hang_up(sender);
                        return Said::Gone;
                    }
                    if left == 0 {
                        return said;
                    }
                }
                Said::Message(_) => {
                    self.refuse_received();
                    self.hang_up(sender);
                    return Said::Gone;
                }
            }
        }
    }

    /// Leaves a sender that cannot be read alone for a second: it would be reported again and again.
    fn not_now(&mut self, sender: Sender) {
        self.senders.leave(sender, &mut self.backend);
        self.retry.later(Source::Sender(sender), self.clock.now());
    }

    /// Takes over what came with a message, and tells whether all of it could be.
    fn admit_received(&mut self) -> bool {
        let now = self.clock.now();
        self.summary_at.get_or_insert(now + SUMMARY_EVERY);
        let mut all = true;
        self.received.reverse(); // as it is taken from the end, and the first is to be the oldest
        while let Some(descriptor) = self.received.pop() {
            all &= self.connections.admit(descriptor, self.senders.len(), &mut self.backend, now);
        }
        all
    }

    /// Refuses what came with a message that is none.
    fn refuse_received(&mut self) {
        for descriptor in self.received.drain(..) {
            self.connections.refuse(descriptor, "sent with a malformed message");
        }
    }

    /// Hangs up on a sender that cannot be believed, and refuses what it has still sent. The kernel,
    /// when it closes what nobody has read, could be made to wait: it is not to do so here.
    fn hang_up(&mut self, sender: Sender) {
        for _ in 0..parting_budget(self.senders.silence(sender)) {
            if self.connections.closing() > self.connections.room().message() {
                break;
            }
            let Said::Message(_) = self.senders.read(sender, &mut self.received) else { break };
            self.refuse_received();
        }
        self.refuse_received(); // what may have come with the end
        if let Some(link) = self.senders.dismiss(sender, &mut self.backend) {
            self.connections.close_slowly(link);
        }
    }

    /// Takes over what a sender has sent so far, and parts with it. On a system on which it can still
    /// talk meanwhile it must not be able to stay for ever. If it cannot be read now it stays for now, and
    /// the answer is no.
    fn part_with(&mut self, sender: Sender) -> bool {
        if self.receive(sender, parting_budget(self.senders.silence(sender))) == Said::NotNow {
            self.not_now(sender);
            return false;
        }
        drop(self.senders.dismiss(sender, &mut self.backend)); // it was read to its end
        true
    }

    /// The first time: takes no more hand-offs, but what was handed over before is lingered on for a
    /// while. The second time: ends everything.
    pub fn stop(&mut self) {
        if self.is_stopping() {
            return self.end("told to stop at once");
        }
        self.end_at = Some(self.clock.now() + self.drain.most());
        (self.tell)(Notice::Stopping(self.connections.len()));
        self.senders.shut_door(&mut self.backend);
        for sender in self.senders.all() {
            self.part_with(sender);
        }
        self.part_with_waiting();
        info!(
            "told to stop: {} connections are still lingering, for {:.1} s at most",
            self.connections.len(),
            Duration::from(self.drain).as_secs_f64()
        );
    }

    /// Parts with those who wait at the door that was shut, and closes it. Where somebody cannot be let in for
    /// want of something, that is tried again later. At a door that is shared others may come at any time: they
    /// are parted with too, until the end, as nobody else would linger on what they send.
    fn part_with_waiting(&mut self) {
        let now = self.clock.now();
        // More than any kernel lets wait: all of them, where none can be added to them meanwhile.
        for _ in 0..WAITING_BUDGET {
            match self.senders.accept(now) {
                // One at a time, as there may be more of them than there is room for.
                Ok(Ok(sender)) => drop(self.part_with(sender)),
                Ok(Err(refused)) => self.connections.close_slowly(refused),
                Err(e) if is_passing(&e) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock && self.senders.door_is_shared() => return,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => {
                    self.senders.leave_door(&mut self.backend);
                    return self.retry.door(Source::Door, now, "let in who waits at the end", &e);
                }
            }
        }
        self.senders.close_door(&mut self.backend);
    }

    /// Ends everything.
    fn end(&mut self, why: &str) {
        self.end_at = Some(self.clock.now());
        self.part_with_waiting();
        self.senders.close_door(&mut self.backend); // there is no later
        for sender in self.senders.all() {
            self.part_with(sender);
            // One that could not be read has something queued, and nobody will take it any more.
            if let Some(link) = self.senders.dismiss(sender, &mut self.backend) {
                self.connections.close_slowly(link);
            }
        }
        if !self.connections.is_empty() {
            warn!("{why}: {} connections are cut off", self.connections.len());
        }
        self.connections.stop(&mut self.backend, self.clock.now());
    }

    /// How many are there at the control socket, and have not been answered or wait for the end, or for their
    /// turn to take over.
    pub fn clients(&self) -> usize {
        self.control.len() + usize::from(self.successor.is_some())
    }

    /// The counters of this moment.
    pub fn snapshot(&self) -> Snapshot {
        Moment {
            ends: self.connections.ends(),
            lingering: self.connections.len(),
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

/// How much to read of a sender that is parted with.
fn parting_budget(is_silenced: bool) -> usize {
    if is_silenced { usize::MAX } else { PARTING_BUDGET }
}

#[cfg(test)]
mod tests;
