// SPDX-License-Identifier: BSD-3-Clause

//! The connections that linger, or will: taken over, looked at, and ended, each exactly once.
//!
//! What becomes of a connection is decided by [`crate::rules`]; here it is done. Knows sockets and
//! the backend; must not know of senders, or of what they say.

mod admit;
pub mod capacity;
mod census;
mod chain;
mod deadlines;
pub mod park;
mod part;
pub mod spool;
mod step;
mod table;

use self::capacity::Room;
use self::census::Origin;
use self::park::Parks;
use self::spool::Spools;
use self::table::Table;
use crate::retry::Warning;
use crate::rules::event::{Event, Reason};
use crate::rules::linger::{Linger, Rules};
use crate::rules::time::{Time, first};
use crate::source::Entry;
use crate::stats::{Ends, Snapshot};
use lingerd_platform::backend::Backend;
use lingerd_platform::closing::SlowClose;
use lingerd_platform::content::Content;
use lingerd_platform::tcp::Tcp;
use lingerd_platform::world::World;
use log::debug;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

/// Connections whose deadlines are looked after in one turn, where nothing is written to them. There may be a hundred
/// thousand of the same age, and others want to be served too.
const EXPIRE_BUDGET: usize = 1024;

/// What part of a full table one address may have, if others want to be in it: a fourth.
const SHARE: usize = 4;

/// See the module's head.
pub struct Connections<W: World> {
    table: Table<W::Socket>,
    spools: Spools<W>,
    parks: Parks<W>,
    room: Room,
    ends: Ends,
    slow_close: W::SlowClose,
    /// Whether the client of the last one that was handed over to linger had gone: most come in crowds of their kind.
    last_has_gone: bool,
    /// Who is at the other end, if that is to be logged: once a connection has ended no system but Linux tells.
    names: HashMap<Entry, SocketAddr>,
    /// What an unlucky system could fill the log with.
    unwatched: Warning,
}

impl<W: World> Connections<W> {
    /// None yet, from `now` on; `chance` is what nobody outside can guess.
    pub fn new(
        rules: Rules,
        room: Room,
        slow_close: W::SlowClose,
        reader: W::Reader,
        back: W::Back,
        chance: u64,
        now: Time,
    ) -> Self {
        let (ends, unwatched) = (Ends::default(), Warning::default());
        let (spools, parks) = (Spools::new(reader), Parks::new(back));
        let table = Table::new(rules, now, chance);
        let names = HashMap::new();
        Connections { table, spools, parks, room, ends, slow_close, last_has_gone: false, names, unwatched }
    }

    /// How the process's descriptors are shared out.
    pub fn room(&self) -> &Room {
        &self.room
    }

    /// How many there are, those that do not linger yet among them.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// How many of them linger.
    pub fn lingering(&self) -> usize {
        self.len() - self.spooling() - self.parked()
    }

    /// Of how many the response is still to be written.
    pub fn spooling(&self) -> usize {
        self.spools.len()
    }

    /// How many files are open for them.
    pub fn files(&self) -> usize {
        self.spools.descriptors()
    }

    /// How many bytes are still to be written.
    pub fn unsent(&self) -> u64 {
        self.spools.unsent()
    }

    /// How many bytes of memory, or of a disk, are taken for them and for nobody else.
    pub fn held(&self) -> u64 {
        self.spools.held()
    }

    /// The same with so many more that are as large as most are.
    pub fn held_with(&self, more: usize) -> u64 {
        self.held().saturating_add(self.spools.usual().saturating_mul(more as u64))
    }

    /// Whether so many files are still to be closed that no more may come which take long to close. Those of a file system
    /// that hangs may be that for ever: they have a share of the descriptors, and keep nobody from lingering until then.
    pub fn is_clogged(&self) -> bool {
        self.closing() > self.room.message() || self.spools.closing() > self.room.files()
    }

    /// Whether they have half of that share: nobody is asked for more files then.
    pub fn has_files_enough(&self) -> bool {
        self.spools.closing() > self.room.files() / 2
    }

    /// Closes this process's copies of what another one has: nothing ends with that.
    pub fn close_copies(&mut self) {
        self.table.clear();
        self.parks.close_copies();
    }

    /// Counts what was cut off with a daemon before this one.
    pub fn were_killed(&mut self, responses: u64) {
        self.ends.killed(responses);
    }

    /// Whether none lingers.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// How they ended so far.
    pub fn ends(&self) -> &Ends {
        &self.ends
    }

    /// All of them with what is known of each, the one that was handed over first being the first.
    pub fn by_age(&self) -> impl Iterator<Item = (&W::Socket, Linger)> {
        self.table.by_age()
    }

    /// Counts on from where a predecessor has stopped.
    pub fn count_on(&mut self, counters: &Snapshot) {
        self.ends = Ends::of(counters);
    }

    /// When, after `now`, the next one wants to be looked at: now and then somewhat too early, never
    /// too late.
    pub fn next(&self, now: Time) -> Option<Time> {
        let unpark = self.is_to_unpark().then_some(now);
        first(first(self.table.next(now), self.parks.next(now), now), unpark, now)
    }

    /// Descriptors that are open for connections beside these, or are being closed.
    fn descriptors(&self) -> usize {
        self.closing() + self.spools.descriptors() + self.parks.descriptors()
    }

    /// Descriptors that are neither connections nor files and are being closed, which can take long.
    pub fn closing(&self) -> usize {
        self.slow_close.waiting()
    }

    /// Closes what nobody waits for, which can take long: a file that is not in memory beside others of its file system
    /// only, and everything else a few at a time, in the order in which it came.
    pub fn close_slowly(&mut self, received: W::Received) {
        match W::Content::of(received) {
            Ok(content) => self.spools.close(content, &mut self.slow_close),
            Err(received) => self.slow_close.close(received),
        }
    }

    /// Looks at a connection that the backend reported. Nothing happens if it has gone meanwhile. Returns how much
    /// was done.
    pub fn ready(&mut self, entry: Entry, backend: &mut W::Backend, now: Time) -> usize {
        if self.is_spooling(entry) {
            return self.spool_is_ready(entry, backend, now);
        }
        if self.is_parked(entry) {
            self.park_is_ready(entry, backend, now);
            return 1;
        }
        self.step(entry, Event::Readable, backend, now);
        1
    }

    fn is_spooling(&self, entry: Entry) -> bool {
        self.table.get(entry).is_some_and(|(_, linger)| linger.is_spooling())
    }

    /// Looks at those whose time has come, at most as many as have their turn at once; the others are
    /// due still. Returns how much was done.
    pub fn expire(&mut self, backend: &mut W::Backend, now: Time) -> usize {
        let mut work = 0;
        while work < EXPIRE_BUDGET {
            let Some(entry) = self.table.due(now) else { break };
            if self.is_spooling(entry) {
                work += self.spool_is_due(entry, backend, now);
                continue;
            }
            if self.is_parked(entry) {
                self.park_is_due(entry, backend, now);
            } else {
                self.step(entry, Event::Due, backend, now);
            }
            work += 1;
        }
        work + self.try_ways(backend, now) + self.unpark_some(backend, now)
    }

    /// Whether there is room for one more whose response is still to be written, beside the so many that are
    /// `promised`, while there are so many `senders`: they may have half of the table, as whoever made room for others
    /// of them would be cut off for certain.
    pub fn has_room_for_spool(&self, promised: usize, senders: usize) -> bool {
        let most = self.room.connections(senders + self.descriptors());
        self.spooling() + promised < most.div_ceil(2).max(1)
    }

    /// Evicts connections until so many `more` have room, while there are so many `senders`. Returns for how many there is.
    pub fn make_room(&mut self, more: usize, senders: usize, backend: &mut W::Backend, now: Time) -> usize {
        let most = self.room.connections(senders + self.descriptors());
        while self.table.len() + more > most {
            let Some(entry) = self.table.evictable(most.div_ceil(SHARE), now) else { break };
            self.close(entry, Reason::Evicted, backend, now);
        }
        most
    }

    /// From where one comes, where there is room for so many. It is asked who is at the other end when the table is half as
    /// full as one address may make it, and then of those that are in it, too, some at a time: they all are known before
    /// any can have more than its share, unless the room gets less meanwhile. Most tables are never as full.
    fn origin(&mut self, socket: &W::Socket, peer: Option<SocketAddr>, most: usize) -> Origin {
        if self.table.len() < most / (2 * SHARE) {
            return Origin::UNKNOWN;
        }
        for entry in self.table.of_unknown_origin(most / (2 * SHARE)) {
            let Some((socket, _)) = self.table.get(entry) else { continue };
            let origin = self.table.census().origin(socket.peer().ok());
            self.table.note_origin(entry, origin);
        }
        self.table.census().origin(peer.or_else(|| socket.peer().ok()))
    }

    /// Evicts the one that loses least by it, for its descriptor. Returns whether there was one.
    pub fn evict_gentlest(&mut self, backend: &mut W::Backend, now: Time) -> bool {
        let gentlest = self.table.gentlest();
        gentlest.inspect(|&entry| self.close(entry, Reason::Evicted, backend, now)).is_some()
    }

    /// Ends all of them, those first that lose least by it: who wants an end may not wait for the last.
    pub fn stop(&mut self, backend: &mut W::Backend, now: Time) {
        while let Some(entry) = self.table.gentlest() {
            self.close(entry, Reason::Stopped, backend, now);
        }
    }

    /// Puts one into the table.
    fn insert(&mut self, socket: W::Socket, origin: Origin, linger: Linger, due: Time) -> Entry {
        let name = name(&socket);
        let entry = self.table.insert(socket, origin, linger, due);
        self.names.extend(name.map(|name| (entry, name)));
        entry
    }

    /// Ends one that lingers.
    fn close(&mut self, entry: Entry, reason: Reason, backend: &mut W::Backend, now: Time) {
        if self.is_parked(entry) {
            self.forget_park(entry, backend);
        }
        if let Some((socket, linger)) = self.table.remove(entry) {
            if linger.is_spooling() {
                self.spools.remove(entry, &mut self.slow_close);
            }
            if !linger.is_parked() {
                // Fails only for the one that is not waited for.
                let _ = backend.remove(&socket);
            }
            // An empty one would hash it all the same.
            let name = if self.names.is_empty() { None } else { self.names.remove(&entry) };
            self.end(socket, name, linger, reason, now);
        }
    }

    /// Counts a connection and closes it.
    fn end(
        &mut self,
        socket: W::Socket,
        name: Option<SocketAddr>,
        linger: Linger,
        reason: Reason,
        now: Time,
    ) {
        let is_cut_off = self.is_cut_off(&linger, reason);
        let unread = reason.is_ours() && socket.has_unread();
        let unacknowledged = reason.is_ours() && socket.is_acknowledged() == Some(false);
        self.ends.count(reason, unread || unacknowledged || is_cut_off && reason.is_ours());
        let time = now.since(linger.handed_over);
        match linger.is_spooling() {
            true => self.ends.wrote(is_cut_off.then_some(reason), time),
            false if linger.is_parked() => {}
            false => self.ends.lingered(reason, time),
        }
        if log::log_enabled!(log::Level::Debug) {
            let peer = name.map_or_else(|| "client".to_owned(), |peer| peer.to_string());
            debug!(
                "{peer}: {} after {:.2} s{}",
                reason.name(),
                Duration::from(time).as_secs_f64(),
                match (unacknowledged, unread) {
                    (true, _) => ", perhaps cut short: the client has not acknowledged everything",
                    (false, true) => ", perhaps cut short: the client was still sending",
                    (false, false) => "",
                }
            );
        }
        // What is cut off must not look whole, and a sender that has a copy may have set SO_LINGER anew: to what would
        // have close(2) wait.
        if is_cut_off {
            socket.reset_at_close(true);
            drop(socket);
        } else if reason == Reason::Returned {
            // A worker has it, and its options with it; or has had it, and ours is the last close.
            match socket.linger_time() {
                None => drop(socket),
                Some(_) => self.slow_close.close(socket.into_received()),
            }
        } else {
            socket.close();
        }
    }
}

/// Who is at the other end, or was, if that is to be logged and can be told.
fn name<S: Tcp>(socket: &S) -> Option<SocketAddr> {
    if log::log_enabled!(log::Level::Debug) { socket.past_peer() } else { None }
}

#[cfg(test)]
mod tests {
    use super::step::READ_BUDGET;
    use super::*;
    use crate::rules::time::Span;
    use crate::stats::Moment;
    use lingerd_platform::fake::{self, Call, Client, Fake, Flavour, Held, Process, Setup};
    use lingerd_platform::tcp::DISCARD_BYTES;

    const START: Time = Time::from_ticks(0);

    fn rules() -> Rules {
        let [idle, max, limit] = [5, 30, 300].map(Span::from_secs);
        Rules { idle, max, limit }
    }

    /// Connections in a fake world.
    struct Scene {
        kernel: fake::Kernel,
        process: Process,
        backend: fake::Backend,
        connections: Connections<Fake>,
    }

    impl Scene {
        /// With -n.
        fn new(wanted: Option<usize>) -> Scene {
            let kernel = fake::Kernel::new(1, Flavour::linux());
            let process = kernel.process(1_024);
            let backend = process.backend();
            let room = Room::share(1_024, process.open_descriptors(), wanted).unwrap();
            let connections = Connections::new(
                rules(),
                room,
                process.slow_close(),
                process.reader(),
                process.back(),
                1,
                START,
            );
            Scene { kernel, process, backend, connections }
        }

        /// Has a connection handed over that its client leaves open.
        fn admit(&mut self, setup: &Setup) -> Client {
            let (client, held) = self.kernel.connection(setup);
            assert!(self.connections.admit(self.process.inherit(&held), 0, &mut self.backend, START));
            client
        }

        fn refuse(&mut self, held: &Held) {
            self.connections.refuse(self.process.inherit(held), "a test");
        }

        fn figure(&self, name: &str) -> u64 {
            let (ends, lingering) = (self.connections.ends(), self.connections.len());
            let moment = Moment {
                ends,
                lingering,
                capacity: 0,
                spooling: (0, 0),
                parked: (0, 0),
                senders: 0,
                protocol_errors: 0,
                refused: 0,
                uptime: 0,
            };
            moment.snapshot().get(name).unwrap()
        }
    }

    #[test]
    fn who_comes_to_a_full_table_has_one_evicted_and_nobody_before() {
        let mut scene = Scene::new(Some(3));
        let clients = [(); 3].map(|()| scene.admit(&Setup::default()));
        assert_eq!((scene.connections.len(), scene.figure("evicted")), (3, 0));
        scene.admit(&Setup::default());
        assert_eq!((scene.connections.len(), scene.figure("evicted")), (3, 1));
        assert_eq!(clients.map(|client| client.facts().parted.is_some()), [true, false, false]);
    }

    #[test]
    fn room_is_made_for_senders_and_for_what_is_being_closed() {
        let mut scene = Scene::new(None);
        let room = *scene.connections.room();
        let files: Vec<_> = (0..20).map(|_| scene.kernel.slow("a file", Duration::from_secs(60))).collect();
        files.iter().for_each(|file| scene.refuse(file));
        assert_eq!((scene.connections.closing(), scene.figure("rejected")), (20, 20));
        for _ in 0..room.connections(0) - 20 {
            scene.admit(&Setup::default());
        }
        assert_eq!(scene.figure("evicted"), 0);
        scene.connections.make_room(0, 2, &mut scene.backend, START);
        assert_eq!(scene.figure("evicted"), 2);
        scene.connections.make_room(5, 2, &mut scene.backend, START);
        assert_eq!(scene.figure("evicted"), 7);
    }

    #[test]
    fn what_is_closed_slowly_keeps_nobody_waiting() {
        let mut scene = Scene::new(None);
        let file = scene.kernel.slow("a file", Duration::from_secs(60));
        let received = scene.process.inherit(&file);
        drop(file);
        scene.connections.close_slowly(received);
        assert_eq!(scene.connections.closing(), 1);
        assert_eq!(scene.kernel.violations(), [""; 0]);
    }

    #[test]
    fn all_are_ended_when_it_is_to_stop_at_once() {
        let mut scene = Scene::new(None);
        for _ in 0..10 {
            scene.admit(&Setup::default());
        }
        scene.connections.stop(&mut scene.backend, START);
        assert!(scene.connections.is_empty());
        assert_eq!((scene.figure("stopped"), scene.process.registrations()), (10, 0));
    }

    #[test]
    fn what_is_read_in_a_turn_is_bounded_and_all_of_it_is_counted() {
        let mut scene = Scene::new(None);
        let client = scene.admit(&Setup { server_window: u64::MAX / 2, ..Setup::default() });
        let entry = scene.connections.table.oldest(START).unwrap();
        let turn = (READ_BUDGET * DISCARD_BYTES) as u64;
        client.send(turn + 1);
        for discarded in [turn, turn + 1] {
            scene.connections.ready(entry, &mut scene.backend, START);
            assert_eq!(client.facts().discarded, discarded);
            assert_eq!(scene.figure("bytes_discarded"), discarded);
        }
        assert_eq!(scene.connections.len(), 1);
    }

    #[test]
    fn what_was_unread_when_it_was_closed_counts_as_cut_short() {
        let mut scene = Scene::new(None);
        for (late, cut_short) in [(0, 0), (1, 1)] {
            let client = scene.admit(&Setup::default());
            let entry = scene.connections.table.oldest(START).unwrap();
            client.send(late);
            scene.connections.close(entry, Reason::Max, &mut scene.backend, START);
            assert_eq!(scene.figure("cut_short"), cut_short);
        }
    }

    #[test]
    fn how_far_its_own_end_is_closed_is_asked_once_and_of_who_has_gone_only_if_the_last_one_had_not() {
        let mut scene = Scene::new(None);
        let mut asked = |has_gone: bool| {
            let (client, held) = scene.kernel.connection(&Setup::default());
            held.half_close();
            if has_gone {
                client.close();
            }
            let before = scene.kernel.count(Call::OwnEnd);
            scene.connections.admit(scene.process.inherit(&held), 0, &mut scene.backend, START);
            scene.kernel.count(Call::OwnEnd) - before
        };
        assert_eq!([false, true, true, false, false].map(&mut asked), [1, 1, 0, 1, 1]);
    }

    #[test]
    fn a_reset_is_none_of_the_clients_closes() {
        let mut scene = Scene::new(None);
        let client = scene.admit(&Setup::default());
        let entry = scene.connections.table.oldest(START).unwrap();
        client.reset();
        scene.connections.ready(entry, &mut scene.backend, START);
        assert_eq!((scene.figure("reset"), scene.figure("closed")), (1, 0));
    }
}
