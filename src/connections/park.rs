// SPDX-License-Identifier: BSD-3-Clause

//! The connections whose server waits for their client: what is known of each, one look at one of them, and the way
//! back to a worker.
//!
//! Where a server takes them back is its way: a socket at which it listens. Whoever has something to say queues there,
//! in the order in which they spoke: in the kernel as many as may be under way, the others here. One that is
//! under way stays here until a worker says that it has it, and is offered anew when its worker goes without
//! a word. Must not know who parked it.

use super::Connections;
use super::census::Origin;
use crate::retry::{AGAIN, Warning};
use crate::rules::event::{Event as Lingering, Reason};
use crate::rules::linger::{Linger, Stage};
use crate::rules::park::{Action, Event, For, Park, is_whole_head};
use crate::rules::time::{Span, Time, first};
use crate::source::{Entry, Source};
use crate::ticket::{Ticket, Way};
use lingerd_platform::back::Back;
use lingerd_platform::backend::{Backend, Interest};
use lingerd_platform::closing::SlowClose;
use lingerd_platform::fdpass::{Link, Received};
use lingerd_platform::tcp::Tcp;
use lingerd_platform::world::World;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, ErrorKind};
use std::mem;

/// How many are under way to the workers of one server at most: more than it has that are about to take one, and no
/// more than any system lets wait.
const OFFERS: usize = 64;

/// How many are brought on their way in one turn.
const OFFER_BUDGET: usize = 256;

/// How many are made linger in one turn that are not to be parked any more: there may be a hundred thousand.
const UNPARK_BUDGET: usize = 1024;

/// What a worker says when it has one.
const TAKEN: u8 = b'A';

/// How much of a head is looked at. What is longer is for a worker to refuse.
const HEAD: usize = 8192;

/// A server that says nothing for so long is asked whether it is there.
const QUIET: Span = Span::from_secs(5);

/// One that is away may be starting anew: for so long it is waited for, and looked for that often.
const AWAY: Span = Span::from_secs(10);
const LOOK: Span = Span::from_ticks(8);

/// One whose workers have taken nothing at so many looks, so far apart, hangs: whatever the clock does, five minutes.
const HANGS: u8 = 5;
const WAITS: Span = Span::from_secs(60);

/// How many at most are looked at for one that is silent, so that another one can be parked.
const LOOKS: usize = 8;

/// Servers, at most, that have something parked.
const WAYS: usize = 256;

/// How long at most before one is looked at that nothing happens to.
const LONGEST: Span = Span::from_secs(24 * 60 * 60);

/// One connection.
struct Job<W: World> {
    park: Park,
    ticket: Ticket,
    /// Whether the backend reports the connection, or the link.
    is_watched: bool,
    stage: Waits<W::Link>,
}

/// For whom it waits.
enum Waits<L> {
    Client,
    /// In the queue of its way, with that number.
    Queued(u64),
    /// For the worker at the other end; with its number in the queue, should it have to go back there.
    Offered(u64, L),
}

impl<L> Waits<L> {
    fn link(self) -> Option<L> {
        match self {
            Waits::Offered(_, link) => Some(link),
            Waits::Client | Waits::Queued(_) => None,
        }
    }
}

/// One server.
struct Server<L> {
    /// Connections that are to go back there.
    connections: usize,
    /// Those that have something to say, and are not on their way yet.
    queue: BTreeMap<u64, Entry>,
    /// How many are.
    offers: usize,
    /// When it was last known to be there, or was away the first time since.
    heard: Time,
    /// Whether it is away.
    is_away: bool,
    /// The link by which it was asked last whether it is there, until it has taken note of it: in its queue is one at most
    /// that only asks.
    asked: Option<L>,
    /// When to try again, whatever happens.
    again: Option<Time>,
    /// While something waits for a worker, and none takes any: when that was looked at last, and how often it was so.
    takes_none: Option<(Time, u8)>,
}

/// See the module's head.
pub(super) struct Parks<W: World> {
    back: W::Back,
    jobs: HashMap<Entry, Job<W>>,
    /// In their order, as two runs with the same seed are to ask them in the same.
    servers: BTreeMap<Way, Server<W::Link>>,
    /// Those that were away for so long that they were given up, and have not been found since: nothing is parked for them.
    lost: BTreeSet<Way>,
    /// How many have something to say.
    returning: usize,
    /// How many are on their way, and how many servers are asked: so many descriptors are open for that.
    offers: usize,
    asks: usize,
    /// The number of the last one that spoke.
    spoke: u64,
    /// Whether nothing is parked any more.
    is_over: bool,
    head: Box<[u8; HEAD]>,
    trouble: Warning,
}

/// One parked connection, for whoever goes on with it.
pub struct Parked<'a, W: World> {
    /// The connection.
    pub socket: &'a W::Socket,
    /// When it was handed over.
    pub handed_over: Time,
    /// What else is known of it.
    pub park: &'a Park,
    /// What it came with.
    pub ticket: &'a Ticket,
    /// Its number in the queue, if it has something to say.
    pub number: Option<u64>,
    /// The link to the worker that it is offered to.
    pub link: Option<&'a W::Link>,
}

impl<W: World> Parks<W> {
    pub fn new(back: W::Back) -> Self {
        let (jobs, servers, lost) = (HashMap::new(), BTreeMap::new(), BTreeSet::new());
        let (returning, offers, asks, spoke, is_over) = (0, 0, 0, 0, false);
        let (head, trouble) = (Box::new([0; HEAD]), Warning::default());
        Parks { back, jobs, servers, lost, returning, offers, asks, spoke, is_over, head, trouble }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    /// How many of them wait for a worker.
    pub fn returning(&self) -> usize {
        self.returning
    }

    /// Descriptors that are open for them beside the connections.
    pub fn descriptors(&self) -> usize {
        self.offers + self.asks
    }

    /// Closes this process's copies of what another one has.
    pub fn close_copies(&mut self) {
        self.jobs.clear();
    }

    /// When, after `now`, some server is to be tried again, or asked.
    pub fn next(&self, now: Time) -> Option<Time> {
        self.servers.values().fold(None, |next, server| first(next, server.next(now), now))
    }

    fn insert(&mut self, entry: Entry, job: Job<W>, now: Time) {
        let server = self.servers.entry(job.ticket.way()).or_insert_with(|| Server::new(now));
        server.connections += 1;
        if !server.is_away {
            server.heard = now;
        }
        self.jobs.insert(entry, job);
    }

    /// Takes one out. Returns the links that nobody needs any more: to the worker that it was offered to, and to a server
    /// that has nothing else.
    fn remove(&mut self, entry: Entry) -> [Option<W::Link>; 2] {
        let Some(job) = self.jobs.remove(&entry) else { return [None, None] };
        let way = job.ticket.way();
        self.returning -= usize::from(!matches!(job.stage, Waits::Client));
        let Some(server) = self.servers.get_mut(&way) else { return [job.stage.link(), None] };
        match &job.stage {
            Waits::Client => {}
            Waits::Queued(number) => drop(server.queue.remove(number)),
            Waits::Offered(..) => (server.offers, self.offers) = (server.offers - 1, self.offers - 1),
        }
        server.connections -= 1;
        if server.offers == 0 && server.queue.is_empty() {
            server.takes_none = None;
        }
        let mut asked = None;
        if server.connections == 0 {
            asked = server.asked.take();
            self.asks -= usize::from(asked.is_some());
            self.servers.remove(&way);
        }
        [job.stage.link(), asked]
    }

    /// Puts one into the queue of its way, whose turn it is then: the next, if it has no number yet. Returns the link to
    /// the worker that it was offered to.
    fn queue(&mut self, entry: Entry, number: Option<u64>) -> Option<W::Link> {
        let job = self.jobs.get_mut(&entry)?;
        let number = number.unwrap_or(self.spoke.saturating_add(1));
        self.spoke = self.spoke.max(number);
        self.returning += usize::from(matches!(job.stage, Waits::Client));
        let before = mem::replace(&mut job.stage, Waits::Queued(number));
        if let Some(server) = self.servers.get_mut(&job.ticket.way()) {
            server.queue.insert(number, entry);
        }
        before.link()
    }

    /// Takes note that a server is away, as `error` says.
    fn is_away(&mut self, way: Way, error: &io::Error, now: Time) {
        let Some(server) = self.servers.get_mut(&way) else { return };
        if !mem::replace(&mut server.is_away, true) {
            server.heard = now;
            let (name, most) = (way.name(), AWAY.ticks() / 64);
            let what =
                format_args!("cannot bring connections back to '{name}': {error}; trying for {most} s");
            self.trouble.warn(now, what);
        }
        server.again = Some(now + LOOK);
    }
}

impl<L> Server<L> {
    fn new(now: Time) -> Self {
        let (connections, queue, offers) = (0, BTreeMap::new(), 0);
        let (is_away, asked, again, takes_none) = (false, None, None, None);
        Server { connections, queue, offers, heard: now, is_away, asked, again, takes_none }
    }

    /// When it is to be tried again, or asked.
    fn next(&self, now: Time) -> Option<Time> {
        let tried = match self.offers {
            _ if self.again.is_some() => self.again,
            // The last one that was under way has ended otherwise, and others wait.
            0 if !self.queue.is_empty() => Some(self.heard),
            0 => Some(self.heard + QUIET),
            _ => None, // what is under way says when it has gone
        };
        let hangs = self.takes_none.map(|(at, looks)| if looks < HANGS { at + WAITS } else { now });
        first(tried, hangs, now)
    }

    /// Whether its workers take nothing any more.
    fn hangs(&self) -> bool {
        self.takes_none.is_some_and(|(_, looks)| looks >= HANGS)
    }

    /// Takes note that they have taken none for a while.
    fn look(&mut self, now: Time) {
        if let Some((at, looks)) = &mut self.takes_none {
            if *looks < HANGS && now.since(*at) >= WAITS {
                (*at, *looks) = (now, *looks + 1);
            }
        }
    }

    /// It is there.
    fn is_there(&mut self, now: Time) {
        (self.is_away, self.heard, self.again) = (false, now, None);
    }
}

impl<W: World> Connections<W> {
    /// Whether anything may be parked for a server: not for one that was given up, until it is found again. Who parks is
    /// to keep what it has then.
    pub fn may_park(&mut self, way: Way) -> bool {
        !self.is_lost(way, is_away)
    }

    /// Whether a server that was given up is there again for certain.
    pub fn is_back(&mut self, way: Way) -> bool {
        !self.is_lost(way, |error| error.kind() != ErrorKind::WouldBlock) // as its queue is full
    }

    fn is_lost(&mut self, way: Way, as_ever: fn(&io::Error) -> bool) -> bool {
        if self.parks.lost.contains(&way) {
            let called = self.parks.back.call(way.name());
            if !called.as_ref().is_err_and(as_ever) {
                self.parks.lost.remove(&way);
            }
            self.close_links(called.ok());
        }
        self.parks.lost.contains(&way)
    }

    /// Takes over a connection whose server waits for its client. What is no connection is refused, and what there is no
    /// room for lingers. Returns whether it was a TCP socket.
    pub fn admit_park(
        &mut self,
        received: W::Received,
        ticket: Ticket,
        senders: usize,
        backend: &mut W::Backend,
        now: Time,
    ) -> bool {
        let is_new_way = || !self.parks.servers.contains_key(&ticket.way());
        if self.parks.is_over || is_new_way() && self.parks.servers.len() >= WAYS {
            return self.admit(received, senders, backend, now);
        }
        if self.parks.lost.contains(&ticket.way()) {
            self.ends.abandoned();
            return self.admit(received, senders, backend, now);
        }
        // They may have half of the table: others are to linger, too.
        let most = self.room.connections(senders + self.descriptors()).div_ceil(2).max(1);
        for _ in 0..LOOKS {
            let Some(entry) = self.table.parked().next().filter(|_| self.parked() >= most) else { break };
            if self.unpark_if_silent(entry, backend, now) {
                self.ends.abandoned();
            }
        }
        if self.parked() >= most {
            self.ends.abandoned();
            return self.admit(received, senders, backend, now);
        }
        let socket = match W::Socket::of(received) {
            Ok(socket) => socket,
            Err(received) => {
                self.refuse_other(received, "no TCP socket");
                return false;
            }
        };
        let waits_for = if ticket.is_new() { For::Head } else { For::Byte };
        let first = seen(&socket, waits_for, &mut self.parks.head[..]);
        let Ok(first) = first else {
            self.refused("not connected"); // and it may be in use elsewhere
            return true;
        };
        self.make_room(1, senders, backend, now);
        let park = Park::new(waits_for, Span::at_least(ticket.patience()).min(LONGEST), now);
        let entry = self.keep_park(socket, park, ticket, now, now);
        self.decide(entry, first, backend, now);
        true
    }

    /// Goes on with one where a predecessor has left off: it was counted there when it came.
    pub fn take_over_park(
        &mut self,
        (received, link): (W::Received, Option<W::Link>),
        (handed_over, park, ticket, number): (Time, Park, Ticket, Option<u64>),
        senders: usize,
        backend: &mut W::Backend,
        now: Time,
    ) {
        let socket = match W::Socket::of(received) {
            Ok(socket) => socket,
            Err(received) => {
                self.close_links(link);
                return self.refuse_other(received, "no TCP socket");
            }
        };
        self.make_room(1, senders + usize::from(link.is_some()), backend, now);
        let entry = self.keep_park(socket, park, ticket, handed_over, now);
        if number.is_none() && link.is_none() {
            return self.look_at_parked(entry, Event::Due, backend, now);
        }
        let way = ticket.way();
        self.note_parked(entry, Stage::Returning, now + LONGEST);
        self.put_in_queue(entry, number);
        match link {
            Some(link) => self.offered(entry, link, backend, now),
            None => drop(self.bring_back(way, backend, now)),
        }
    }

    /// All of them: those that have something to say, and then the others, the one that was handed over first being the
    /// first.
    pub fn parks(&self) -> impl Iterator<Item = Parked<'_, W>> {
        // Whose numbers are to be known before anybody is given a new one.
        self.table.returning().chain(self.table.parked()).filter_map(|entry| {
            let ((socket, linger), job) = (self.table.get(entry)?, self.parks.jobs.get(&entry)?);
            let (number, link) = match &job.stage {
                Waits::Client => (None, None),
                Waits::Queued(number) => (Some(*number), None),
                Waits::Offered(number, link) => (Some(*number), Some(link)),
            };
            let (park, ticket) = (&job.park, &job.ticket);
            Some(Parked { socket, handed_over: linger.handed_over, park, ticket, number, link })
        })
    }

    /// What finds their servers.
    pub fn ways(&self) -> &W::Back {
        &self.parks.back
    }

    /// How many are parked, those that wait for a worker among them.
    pub fn parked(&self) -> usize {
        self.parks.len()
    }

    /// How many of these do.
    pub fn returning(&self) -> usize {
        self.parks.returning()
    }

    /// How many of these are on their way to one.
    pub fn offers(&self) -> usize {
        self.parks.descriptors()
    }

    /// Parks nothing any more: those that are silent linger from the next turns on, and whoever has something to say still goes
    /// back.
    pub fn stop_parking(&mut self) {
        self.parks.is_over = true;
    }

    /// Whether some are parked that are not to be any more.
    pub(super) fn is_to_unpark(&self) -> bool {
        self.parks.is_over && self.table.parked().next().is_some()
    }

    /// Has them linger, as many as have their turn at once, but for those that have spoken meanwhile. Returns how much was
    /// done.
    pub(super) fn unpark_some(&mut self, backend: &mut W::Backend, now: Time) -> usize {
        let most = if self.parks.is_over { UNPARK_BUDGET } else { 0 };
        let some: Vec<_> = self.table.parked().take(most).collect();
        for &entry in &some {
            self.unpark_if_silent(entry, backend, now);
        }
        some.len()
    }

    /// Whether it is parked, and has nothing to say as far as anybody knows.
    fn waits_for_its_client(&self, entry: Entry) -> bool {
        self.parks.jobs.get(&entry).is_some_and(|job| matches!(job.stage, Waits::Client))
    }

    /// Has one linger before its time, unless it has something to say by now: then it goes back. Returns whether it lingers.
    fn unpark_if_silent(&mut self, entry: Entry, backend: &mut W::Backend, now: Time) -> bool {
        self.look_at_parked(entry, Event::Due, backend, now);
        let is_silent = self.waits_for_its_client(entry);
        if is_silent {
            self.unpark(entry, backend, now);
        }
        is_silent
    }

    /// Whether it is parked.
    pub(super) fn is_parked(&self, entry: Entry) -> bool {
        self.table.get(entry).is_some_and(|(_, linger)| linger.is_parked())
    }

    /// Puts one into the table, for which nobody waits yet.
    fn keep_park(
        &mut self,
        socket: W::Socket,
        park: Park,
        ticket: Ticket,
        handed_over: Time,
        now: Time,
    ) -> Entry {
        let due = park.due(now);
        let linger = Linger::not_yet(Stage::Parked, handed_over, due);
        // Behind a load balancer they all come from one address.
        let entry = self.insert(socket, Origin::NOWHERE, linger, due);
        self.parks.insert(entry, Job { park, ticket, is_watched: false, stage: Waits::Client }, now);
        self.ends.lingering(self.table.len());
        entry
    }

    /// Looks at one that the backend reported: at the client, or at what a worker says.
    pub(super) fn park_is_ready(&mut self, entry: Entry, backend: &mut W::Backend, now: Time) {
        match self.parks.jobs.get(&entry).map(|job| &job.stage) {
            Some(Waits::Client) => self.look_at_parked(entry, Event::Readable, backend, now),
            Some(Waits::Offered(_, link)) => {
                let mut descriptors = Vec::new();
                let said = link.receive(&mut descriptors);
                // Nobody sends any here, but whoever does is not to have the daemon wait for their end.
                descriptors.into_iter().for_each(|other| self.close_slowly(other));
                self.hear_worker(entry, said, backend, now);
            }
            Some(Waits::Queued(_)) | None => {}
        }
    }

    /// Looks at one whose time has come. One that has something to say is in time, whenever a worker takes it.
    pub(super) fn park_is_due(&mut self, entry: Entry, backend: &mut W::Backend, now: Time) {
        if self.waits_for_its_client(entry) {
            return self.look_at_parked(entry, Event::Due, backend, now);
        }
        self.note_parked(entry, Stage::Returning, now + LONGEST);
        self.park_is_ready(entry, backend, now); // the backend may not have been able to say so
    }

    /// Looks at what the client of one has to say, as `event` has happened.
    fn look_at_parked(&mut self, entry: Entry, event: Event, backend: &mut W::Backend, now: Time) {
        let (Some((socket, _)), Some(job)) = (self.table.get(entry), self.parks.jobs.get_mut(&entry)) else {
            return;
        };
        if job.park.on(event, now) != Action::Look {
            return; // it is what all of these are answered with
        }
        let seen = seen(socket, job.park.waits_for, &mut self.parks.head[..]).unwrap_or(Ok(Event::Failed));
        if event == Event::Readable && seen == Ok(Event::Nothing) {
            socket.drain_errors(); // ready, and with nothing to read
        }
        self.decide(entry, seen, backend, now);
    }

    /// Does what comes of what was seen.
    fn decide(&mut self, entry: Entry, seen: Seen, backend: &mut W::Backend, now: Time) {
        let Some(job) = self.parks.jobs.get_mut(&entry) else { return };
        match job.park.on(seen.unwrap_or(Event::Nothing), now) {
            Action::Look => {} // it was
            Action::Wait { .. } if seen == Err(NoMemory) => {
                self.leave_parked(entry, backend);
                self.note_parked(entry, Stage::Parked, now + AGAIN);
            }
            Action::Wait { until, is_watched } => {
                self.note_parked(entry, Stage::Parked, until);
                if is_watched {
                    self.watch_parked(entry, backend, now);
                } else {
                    self.leave_parked(entry, backend);
                }
            }
            Action::Return => {
                self.leave_parked(entry, backend);
                self.speaks(entry, backend, now);
            }
            Action::Linger => self.unpark(entry, backend, now),
            Action::Close(reason) => self.close(entry, reason, backend, now),
        }
    }

    fn note_parked(&mut self, entry: Entry, stage: Stage, until: Time) {
        if let Some((_, linger)) = self.table.get(entry) {
            self.table.note(entry, Linger::not_yet(stage, linger.handed_over, until), until);
        }
    }

    /// Has the backend report the client of one, or the worker that it is offered to.
    fn watch_parked(&mut self, entry: Entry, backend: &mut W::Backend, now: Time) {
        let (Some((socket, _)), Some(job)) = (self.table.get(entry), self.parks.jobs.get_mut(&entry)) else {
            return;
        };
        let token = Source::Connection(entry).token();
        let done = match (&job.stage, job.is_watched) {
            (Waits::Offered(_, link), false) => backend.add(link, token, Interest::Read),
            (Waits::Offered(_, link), true) => backend.rearm(link, token, Interest::Read),
            (_, false) => backend.add(socket, token, Interest::Read),
            (_, true) => backend.rearm(socket, token, Interest::Read),
        };
        job.is_watched |= done.is_ok();
        if let Err(e) = done {
            self.leave_parked(entry, backend);
            self.cannot_wait(&e, now);
            // It is looked at all the same.
            let stage = self.table.get(entry).map_or(Stage::Parked, |(_, linger)| linger.stage);
            self.note_parked(entry, stage, now + AGAIN);
        }
    }

    /// Has it not reported.
    fn leave_parked(&mut self, entry: Entry, backend: &mut W::Backend) {
        let (Some((socket, _)), Some(job)) = (self.table.get(entry), self.parks.jobs.get_mut(&entry)) else {
            return;
        };
        if mem::take(&mut job.is_watched) {
            // Cannot fail: it is known there.
            let _ = match &job.stage {
                Waits::Offered(_, link) => backend.remove(link),
                _ => backend.remove(socket),
            };
        }
    }

    /// One has something to say, or is late: it goes back to a worker, as soon as it is its turn.
    fn speaks(&mut self, entry: Entry, backend: &mut W::Backend, now: Time) {
        self.note_parked(entry, Stage::Returning, now + LONGEST);
        self.put_in_queue(entry, None);
        if let Some(way) = self.parks.jobs.get(&entry).map(|job| job.ticket.way()) {
            self.bring_back(way, backend, now);
        }
    }

    /// Brings those who queue on their way, as many as may be. Returns how much was done.
    fn bring_back(&mut self, way: Way, backend: &mut W::Backend, now: Time) -> usize {
        for done in 0..OFFER_BUDGET {
            let Some(server) = self.parks.servers.get_mut(&way) else { return done };
            // One that is away, or has no room, is tried when it is time for that.
            if server.offers >= OFFERS || server.again.is_some() || server.hangs() {
                return done;
            }
            let Some((_, &entry)) = server.queue.first_key_value() else { return done };
            let offered = self.offer(entry, way);
            let is_asked = offered.as_ref().is_err_and(is_away) && self.is_asked(way);
            let Some(server) = self.parks.servers.get_mut(&way) else { return done };
            match offered {
                Ok(link) => {
                    server.is_there(now);
                    self.offered(entry, link, backend, now);
                }
                // So many wait there that there is no room, which some systems say as if nobody were: those who are under way
                // tell of it.
                Err(e) if is_away(&e) && server.offers == 0 && !is_asked => {
                    self.parks.is_away(way, &e, now);
                    return done;
                }
                Err(e) if is_away(&e) || e.kind() == ErrorKind::WouldBlock => {
                    (server.heard, server.again) = (now, Some(now + LOOK));
                    server.takes_none.get_or_insert((now, 0));
                    return done;
                }
                Err(e) => {
                    server.again = Some(now + AGAIN);
                    server.takes_none.get_or_insert((now, 0));
                    let what = format_args!("cannot bring a connection back to '{}': {e}", way.name());
                    self.parks.trouble.warn(now, what);
                    return done;
                }
            }
        }
        if let Some(server) = self.parks.servers.get_mut(&way) {
            server.again.get_or_insert(now); // the others have their turn in the next one
        }
        OFFER_BUDGET
    }

    /// Offers one to whoever listens there.
    fn offer(&mut self, entry: Entry, way: Way) -> io::Result<W::Link> {
        let (Some((socket, _)), Some(job)) = (self.table.get(entry), self.parks.jobs.get(&entry)) else {
            return Err(ErrorKind::InvalidInput.into()); // it is in the queue, and so it is there
        };
        let link = self.parks.back.call(way.name())?;
        let bytes = job.ticket.answer(job.park.is_late);
        let error = loop {
            match link.pass(&bytes, &[socket]) {
                Ok(sent) if sent == bytes.len() => return Ok(link),
                // There is room for a message where nothing was said yet.
                Ok(_) => break io::Error::other("it takes half a message"),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => break e,
            }
        };
        self.close_links([link]);
        Err(error)
    }

    /// One is under way over `link`.
    fn offered(&mut self, entry: Entry, link: W::Link, backend: &mut W::Backend, now: Time) {
        let Some(job) = self.parks.jobs.get_mut(&entry) else { return self.close_links([link]) };
        let (Waits::Queued(number), Some(server)) =
            (&job.stage, self.parks.servers.get_mut(&job.ticket.way()))
        else {
            return self.close_links([link]);
        };
        server.queue.remove(number);
        server.takes_none.get_or_insert((now, 0));
        (server.offers, self.parks.offers) = (server.offers + 1, self.parks.offers + 1);
        job.stage = Waits::Offered(*number, link);
        self.watch_parked(entry, backend, now);
    }

    /// Takes in what the worker says that one was offered to.
    fn hear_worker(&mut self, entry: Entry, said: io::Result<Received>, backend: &mut W::Backend, now: Time) {
        let Some(way) = self.parks.jobs.get(&entry).map(|job| job.ticket.way()) else { return };
        match said {
            Ok(Received::Byte { byte: TAKEN, .. }) => {
                if let Some(server) = self.parks.servers.get_mut(&way) {
                    server.is_there(now);
                    server.takes_none = Some((now, 0)); // if there are others
                }
                self.close(entry, Reason::Returned, backend, now);
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return self.watch_parked(entry, backend, now);
            }
            Err(e) if e.kind() == ErrorKind::OutOfMemory => {
                self.leave_parked(entry, backend);
                return self.note_parked(entry, Stage::Returning, now + AGAIN);
            }
            // It has gone, or says what nobody says who has it.
            _ => {
                self.leave_parked(entry, backend);
                let Some(job) = self.parks.jobs.get_mut(&entry) else { return };
                if let Waits::Offered(number, _) = job.stage {
                    self.put_in_queue(entry, Some(number));
                    self.parks.offers -= 1;
                    if let Some(server) = self.parks.servers.get_mut(&way) {
                        server.offers -= 1;
                        // A worker that ends at once must not be offered it again and again.
                        server.again.get_or_insert(now + Span::from_ticks(1));
                    }
                }
            }
        }
        self.bring_back(way, backend, now);
    }

    /// Tries those servers again whose time has come, asks those that are quiet whether they are there, and ends what is
    /// parked for those that are not. Returns how much was done.
    pub(super) fn try_ways(&mut self, backend: &mut W::Backend, now: Time) -> usize {
        let is_due = |server: &Server<W::Link>| server.next(now).is_some_and(|at| now.ticks_since(at) >= 0);
        let due: Vec<_> =
            self.parks.servers.iter().filter(|(_, server)| is_due(server)).map(|(&way, _)| way).collect();
        let mut work = 0;
        for way in due {
            let Some(server) = self.parks.servers.get_mut(&way) else { continue };
            server.look(now);
            if server.is_away && server.offers == 0 && now.since(server.heard) >= AWAY || server.hangs() {
                work += self.give_up(way, backend, now);
                continue;
            }
            server.again = None;
            if server.queue.is_empty() && server.offers == 0 {
                self.ask(way, now);
                work += 1;
            } else {
                work += self.bring_back(way, backend, now);
            }
        }
        work
    }

    /// Asks whether a server is there.
    fn ask(&mut self, way: Way, now: Time) {
        let is_asked = self.is_asked(way);
        let Some(server) = self.parks.servers.get_mut(&way) else { return };
        if is_asked {
            return server.is_there(now);
        }
        let before = server.asked.take();
        self.parks.asks -= usize::from(before.is_some());
        self.close_links(before);
        let called = self.parks.back.call(way.name());
        let Some(server) = self.parks.servers.get_mut(&way) else { return };
        match called {
            Ok(link) => {
                link.finish();
                server.asked = Some(link);
                self.parks.asks += 1;
                server.is_there(now);
            }
            Err(e) if is_away(&e) => self.parks.is_away(way, &e, now),
            Err(_) => server.is_there(now), // or it cannot be said
        }
    }

    /// Whether a server has not taken note yet of having been asked: it listens, though it may say that it has no room as
    /// if it did not.
    fn is_asked(&mut self, way: Way) -> bool {
        let mut descriptors = Vec::new();
        let asked = self.parks.servers.get(&way).and_then(|server| server.asked.as_ref());
        let said = asked.map(|link| link.receive(&mut descriptors));
        descriptors.into_iter().for_each(|other| self.close_slowly(other));
        matches!(said, Some(Err(e)) if e.kind() == ErrorKind::WouldBlock)
    }

    /// Ends all that is parked for a server that is away or hangs, the gentle way.
    fn give_up(&mut self, way: Way, backend: &mut W::Backend, now: Time) -> usize {
        let Some(server) = self.parks.servers.get(&way) else { return 0 };
        if server.hangs() {
            let (name, waiting) = (way.name(), server.queue.len() + server.offers);
            let what = format_args!(
                "no worker of '{name}' has taken a connection back for {HANGS} minutes: the {waiting} that wait for one \
                 linger, and so do all that are parked for it"
            );
            self.parks.trouble.warn(now, what);
        } else {
            if self.parks.lost.len() >= WAYS {
                self.parks.lost.pop_first();
            }
            self.parks.lost.insert(way);
        }
        let of_it = |(_, job): &(&Entry, &Job<W>)| job.ticket.way() == way;
        let mut entries: Vec<_> = self.parks.jobs.iter().filter(of_it).map(|(&entry, _)| entry).collect();
        entries.sort_unstable();
        entries.truncate(UNPARK_BUDGET); // it is given up as long as there are more
        for &entry in &entries {
            match self.take_back_offer(entry) {
                Ok(None) => {}
                // It is there after all.
                Ok(Some(said)) => {
                    self.hear_worker(entry, Ok(said), backend, now);
                    break;
                }
                Err(NoMemory) => {
                    if let Some(server) = self.parks.servers.get_mut(&way) {
                        server.takes_none = Some((now, HANGS - 1));
                    }
                    break;
                }
            }
            self.ends.abandoned();
            self.unpark(entry, backend, now);
        }
        entries.len()
    }

    /// Has no worker take one any more that it is offered to. Returns what one says that has taken it.
    fn take_back_offer(&mut self, entry: Entry) -> Result<Option<Received>, NoMemory> {
        let Some(Waits::Offered(_, link)) = self.parks.jobs.get(&entry).map(|job| &job.stage) else {
            return Ok(None);
        };
        // Where the system cannot do it, one that takes it in the very moment in which it is given up loses it.
        let _ = link.silence();
        let mut descriptors = Vec::new();
        let said = link.receive(&mut descriptors);
        descriptors.into_iter().for_each(|other| self.close_slowly(other));
        match said {
            Ok(said @ Received::Byte { byte: TAKEN, .. }) => Ok(Some(said)),
            Err(e) if matches!(e.kind(), ErrorKind::OutOfMemory | ErrorKind::Interrupted) => Err(NoMemory),
            _ => Ok(None),
        }
    }

    /// Puts one into the queue, and lets go of the worker that it was offered to.
    fn put_in_queue(&mut self, entry: Entry, number: Option<u64>) {
        let link = self.parks.queue(entry, number);
        self.close_links(link);
    }

    /// Closes a link that is of no use any more. What is still queued in it closes with it, which may take long. Where
    /// nothing is, it is closed at once: who cannot be silenced is not to say more to nobody. A few bytes are read first, as
    /// a link that closes with something unread resets the other end, which may lose what it was told: a line has an end.
    pub fn close_link(&mut self, link: W::Link) {
        link.silence();
        let (mut line_end, mut descriptors) = ([0; 16], Vec::new());
        // There is room for what comes with it, unless so much is to be closed already.
        let is_empty = !self.is_clogged()
            && match link.hear(&mut line_end, &mut descriptors) {
                Ok(0) => descriptors.is_empty(), // else it is a message of no bytes, and there may be more behind it
                Err(e) if e.kind() == ErrorKind::WouldBlock => true,
                _ => false,
            };
        descriptors.into_iter().for_each(|other| self.refuse(other, "sent over a link that is closed"));
        if !is_empty && !link.is_empty() {
            link.finish(); // whoever is there is hung up on now
            self.slow_close.close(link.into_received());
        }
    }

    fn close_links(&mut self, links: impl IntoIterator<Item = W::Link>) {
        links.into_iter().for_each(|link| self.close_link(link));
    }

    /// From now on it lingers.
    fn unpark(&mut self, entry: Entry, backend: &mut W::Backend, now: Time) {
        self.forget_park(entry, backend);
        let Some((socket, _)) = self.table.get(entry) else { return };
        // From here on it is counted: one that lingers may have to go for others of its address. It is asked at once, as
        // nobody may come any more of whom that is asked, but others that are parked.
        let origin = self.table.census().origin(socket.peer().ok());
        socket.half_close();
        let added = backend.add(socket, Source::Connection(entry).token(), Interest::Read);
        let linger = Linger::new(now);
        self.table.note(entry, linger, linger.due(now, self.table.rules()));
        self.table.note_origin(entry, origin);
        if let Err(e) = added {
            self.cannot_wait(&e, now);
        }
        self.step(entry, Lingering::Due, backend, now);
    }

    /// Takes out what is known of one that ends.
    pub(super) fn forget_park(&mut self, entry: Entry, backend: &mut W::Backend) {
        self.leave_parked(entry, backend);
        let links = self.parks.remove(entry);
        self.close_links(links.into_iter().flatten());
    }
}

/// The system is too short of memory to say what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct NoMemory;

type Seen = Result<Event, NoMemory>;

/// What there is to be read.
///
/// # Errors
/// The socket is not connected.
fn seen<S: Tcp>(socket: &S, waits_for: For, head: &mut [u8]) -> Result<Seen, ()> {
    let most = if waits_for == For::Byte { 1 } else { head.len() };
    Ok(match socket.peek(&mut head[..most]) {
        Ok(0) => Ok(Event::End),
        // Behind the end of its stream nothing is to be waited for.
        Ok(bytes) if bytes == most || is_whole_head(&head[..bytes]) || socket.has_ended() => Ok(Event::Whole),
        Ok(_) => Ok(Event::Some),
        Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(Event::Nothing),
        Err(e) if e.kind() == ErrorKind::OutOfMemory => Err(NoMemory),
        Err(e) if e.kind() == ErrorKind::NotConnected => return Err(()),
        Err(_) => Ok(Event::Failed),
    })
}

/// Whether `error` says that nobody listens, or none that lets us in.
fn is_away(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::NotFound
            | ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::BrokenPipe
            | ErrorKind::NotConnected
            | ErrorKind::PermissionDenied
            | ErrorKind::InvalidInput
    )
}
