// SPDX-License-Identifier: BSD-3-Clause

//! Connections whose response is still to be written, in a fake world: whose bytes they get, what they hold, and what
//! becomes of the others while a file hangs.

use super::*;
use crate::connections::capacity::Room;
use crate::rules::linger::Rules;
use crate::rules::time::Span;
use lingerd_platform::fake::{self, Call, Client, Fake, Flavour, Held, Medium, Piece, Process, Setup};
use std::time::Duration;

const START: Time = Time::from_ticks(0);
const HOUR: Duration = Duration::from_secs(3_600);
const MEGABYTE: u64 = 1 << 20;

/// A client that reads all that comes, and one that reads when it is told to.
fn eager() -> Setup {
    Setup { response: 0, client_window: 1 << 30, ..Setup::default() }
}

fn stalled() -> Setup {
    Setup { response: 0, reads: false, ..Setup::default() }
}

/// Connections in a fake world.
struct Scene {
    kernel: fake::Kernel,
    process: Process,
    backend: fake::Backend,
    connections: Connections<Fake>,
}

impl Scene {
    fn new(seed: u64) -> Scene {
        Scene::on(&fake::Kernel::new(seed, Flavour::linux()))
    }

    fn on(kernel: &fake::Kernel) -> Scene {
        let process = kernel.process(1_024);
        let backend = process.backend();
        let room = Room::share(1_024, process.open_descriptors(), None).unwrap();
        let [idle, max, limit] = [5, 30, 300].map(Span::from_secs);
        let rules = Rules { idle, max, limit };
        let connections =
            Connections::new(rules, room, process.slow_close(), process.reader(), process.back(), 1, START);
        Scene { kernel: kernel.clone(), process, backend, connections }
    }

    fn extent(&self, file: &Held, left: u64, is_ours: bool) -> Extent<fake::Received> {
        Extent { file: self.process.inherit(file), offset: 0, left, is_ours }
    }

    /// Has a response of one file handed over, and tells which connection that is, and what was done.
    fn spool(&mut self, setup: &Setup, file: &Held, left: u64, is_ours: bool) -> (Client, Entry, usize) {
        let (client, held) = self.kernel.connection(setup);
        let response =
            Response { socket: self.process.inherit(&held), files: vec![self.extent(file, left, is_ours)] };
        let patience = Span::from_secs(10);
        let (is_quick, work) = self.connections.admit_spool(response, patience, 0, &mut self.backend, START);
        assert!(is_quick);
        let entry = self.connections.table.spooling().last().expect("it is not all written yet");
        (client, entry, work)
    }

    fn linger(&mut self) -> (Client, Entry) {
        let (client, held) = self.kernel.connection(&Setup::default());
        assert!(self.connections.admit(self.process.inherit(&held), 0, &mut self.backend, START));
        (client, self.connections.table.oldest(START).unwrap())
    }

    /// Lets time pass, and looks at what has come of disks until then.
    fn run(&mut self, time: Duration) -> usize {
        self.kernel.run_until(self.kernel.now() + time);
        self.connections.read(&mut self.backend, START)
    }

    fn ready(&mut self, entry: Entry) -> usize {
        self.connections.ready(entry, &mut self.backend, START)
    }

    fn expire(&mut self, seconds: u32) -> usize {
        self.connections.expire(&mut self.backend, START + Span::from_secs(seconds))
    }
}

/// A read takes for ever, or for longer than 65,536 connections stay in the place of who asked for it: the next one there
/// is another one, whatever it is called.
#[test]
#[cfg_attr(miri, ignore = "it would take hours")]
fn what_was_read_for_one_is_never_anothers() {
    let mut answers = 0;
    for seed in 0..4 {
        let mut scene = Scene::new(seed);
        let file = scene.kernel.file(MEGABYTE, Medium::slow(HOUR));
        let (client, first, _) = scene.spool(&eager(), &file, MEGABYTE, false);
        client.reset();
        scene.ready(first);
        for _ in 1..=u32::from(u16::MAX) {
            let (_, entry) = scene.linger();
            assert_eq!(entry.place, first.place);
            scene.connections.close(entry, Reason::Max, &mut scene.backend, START);
        }
        let others = scene.kernel.file(MEGABYTE, Medium::slow(2 * HOUR));
        let (client, second, _) = scene.spool(&eager(), &others, MEGABYTE, false);
        assert_eq!(second, first, "the place and the generation");
        // What comes late was counted, and is thrown away.
        scene.run(HOUR + HOUR / 2);
        assert_eq!(client.facts().written, []);
        assert_eq!(scene.connections.spools.asked.len(), 1);
        answers += scene.kernel.count(Call::Answer);
        scene.run(HOUR);
        let whole = Piece { file: others.file_number(), offset: 0, length: 64 * 1024 };
        assert_eq!(client.facts().written, [whole]);
        assert_eq!(scene.kernel.violations(), [""; 0]);
    }
    assert!(answers > 0, "no answer has come late");
}

#[test]
fn what_takes_room_for_nobody_else_counts_until_it_is_closed() {
    let holes = Medium { holes: MEGABYTE / 2, ..Medium::memory() };
    let named = Medium { has_name: true, ..Medium::memory() };
    let disk = Medium::slow(Duration::from_millis(1));
    let sent = MEGABYTE / 4; // at once, and given back where that can be
    for (medium, is_ours, held) in [
        (Medium::memory(), true, MEGABYTE - sent),
        (Medium::memory(), false, MEGABYTE), // nobody can tell who has it, too
        (holes, true, MEGABYTE / 2 - sent),
        (named, true, MEGABYTE - sent),
        (named, false, 0), // it is the server's
        (disk, true, MEGABYTE),
        (disk, false, 0),
    ] {
        let mut scene = Scene::new(1);
        let file = scene.kernel.file(MEGABYTE, medium);
        // However little of it is to be sent: all of it is there until it is closed.
        let (client, entry, _) = scene.spool(&stalled(), &file, 900_000, is_ours);
        assert_eq!(scene.connections.held(), held, "{medium:?}, ours: {is_ours}");
        client.read(u64::MAX);
        for _ in 0..100 {
            scene.run(Duration::from_millis(10));
            client.read(100_000);
            scene.ready(entry);
        }
        assert_eq!((scene.connections.spooling(), scene.connections.len()), (0, 1), "it lingers");
        assert_eq!(scene.connections.held(), 0, "{medium:?}, ours: {is_ours}");
        assert_eq!(client.facts().written.iter().map(|piece| piece.length).sum::<usize>(), 900_000);
    }
}

#[test]
fn what_is_given_back_is_not_held_nor_told_to_a_successor() {
    let mut scene = Scene::new(1);
    let file = scene.kernel.file(4 * MEGABYTE, Medium::memory());
    let (client, entry, _) = scene.spool(&stalled(), &file, 4 * MEGABYTE, true);
    let mut held = scene.connections.held();
    while scene.connections.unsent() > 2 * MEGABYTE {
        client.read(100_000);
        scene.ready(entry);
        assert!(scene.connections.held() <= held);
        held = scene.connections.held();
        // What was sent is given back by pieces of 256 kB, of whole pages.
        assert!((0..300_000).contains(&(held - scene.connections.unsent())), "{held}");
    }
    let (_, spool, ..) = scene.connections.spools().next().unwrap();
    let (spool, unsent) = (*spool, scene.connections.unsent());
    let mut next = Scene::on(&scene.kernel);
    let (_other, socket) = next.kernel.connection(&stalled());
    let extent = Extent { offset: 4 * MEGABYTE - unsent, ..next.extent(&file, unsent, true) };
    let response = Response { socket: next.process.inherit(&socket), files: vec![extent] };
    next.connections.take_over_spool(response, (START, spool), 0, &mut next.backend, START);
    assert_eq!((next.connections.held(), next.connections.unsent()), (held, unsent));
}

/// Files whose reads and closes never end, more than there are threads and more than a message brings: whose they are are
/// cut off, and what is left of them are descriptors, of which they have a share.
#[test]
fn a_file_system_that_hangs_keeps_no_others_from_going_on() {
    let mut scene = Scene::new(1);
    let hung = scene.kernel.file(MEGABYTE, Medium::slow(10_000 * HOUR));
    let open = scene.process.open_descriptors();
    let many = scene.connections.room().files() / 2;
    let cut_off: Vec<_> = (0..many).map(|_| scene.spool(&eager(), &hung, MEGABYTE, false).0).collect();
    while scene.expire(20) > 0 {}
    assert!(cut_off.iter().all(|client| client.facts().reset.is_some()));
    assert_eq!((scene.connections.spooling(), scene.connections.closing()), (0, 0));
    assert_eq!((scene.connections.files(), scene.process.open_descriptors()), (many, open + many));
    assert!(!scene.connections.is_clogged() && !scene.connections.has_files_enough());
    // Who sends such a file to linger on is refused, and keeps nobody waiting either.
    assert!(!scene.connections.admit(scene.process.inherit(&hung), 0, &mut scene.backend, START));
    assert_eq!((scene.connections.closing(), scene.connections.files()), (0, many + 1));
    assert!(!scene.connections.is_clogged() && scene.connections.has_files_enough());
    scene.linger();
    for medium in [Medium::memory(), Medium::slow(Duration::from_millis(1))] {
        let file = scene.kernel.file(2 * MEGABYTE, medium);
        let (client, entry, _) = scene.spool(&eager(), &file, 2 * MEGABYTE, false);
        while scene.connections.spooling() > 0 {
            scene.run(Duration::from_millis(1));
            scene.ready(entry);
        }
        assert_eq!(client.facts().written.iter().map(|piece| piece.length as u64).sum::<u64>(), 2 * MEGABYTE);
    }
    scene.run(Duration::from_millis(1));
    assert_eq!(scene.connections.files(), many + 1);
    // Beyond its share nobody may bring more.
    while !scene.connections.is_clogged() {
        scene.connections.refuse(scene.process.inherit(&hung), "a test");
    }
    assert!(scene.connections.files() <= scene.connections.room().files() + 1);
    scene.run(20_000 * HOUR);
    assert_eq!((scene.connections.files(), scene.connections.is_clogged()), (0, false));
    assert_eq!(scene.kernel.violations(), [""; 0]);
}

/// Memory that is being written to may not be read, nor given back, by who serves others meanwhile.
#[test]
fn memory_that_may_be_locked_is_read_elsewhere() {
    let mut scene = Scene::new(1);
    let file = scene.kernel.file(MEGABYTE, Medium::locked_memory(Duration::from_secs(1)));
    let (client, _, _) = scene.spool(&eager(), &file, MEGABYTE, true);
    assert_eq!((client.facts().written, scene.connections.held()), (vec![], MEGABYTE));
    for _ in 0..17 {
        scene.run(Duration::from_secs(1));
    }
    let whole = Piece { file: file.file_number(), offset: 0, length: MEGABYTE as usize };
    assert_eq!((client.facts().written, scene.connections.held()), (vec![whole], 0));
    assert_eq!((scene.connections.files(), scene.connections.closing()), (0, 0));
    assert_eq!(scene.kernel.violations(), [""; 0]);
}

#[test]
fn the_more_are_ready_the_less_is_written_of_each_and_all_of_it_is_work() {
    const PIECE: usize = 64 * 1024;
    let mut scene = Scene::new(1);
    let file = scene.kernel.file(100 * MEGABYTE, Medium::memory());
    let (client, entry, work) = scene.spool(&eager(), &file, 100 * MEGABYTE, false);
    let written = |client: &Client| client.facts().written[0].length / PIECE;
    assert_eq!((written(&client), work), (4, 1 + 4 * PIECE_WORK));
    for (ready, pieces) in [(1_000, 1), (256, 1), (128, 2), (1, 4), (0, 4)] {
        let before = written(&client);
        scene.connections.begin_turn(ready);
        let work = scene.ready(entry);
        assert_eq!((written(&client) - before, work), (pieces, 2 + pieces * PIECE_WORK), "{ready}");
    }
    // So it is with those whose time has come: there may be as many.
    let (before, work) = (written(&client), scene.expire(5));
    assert!(work >= (written(&client) - before) * PIECE_WORK && work > PIECE_WORK, "{work}");
    let others: Vec<_> = (0..200).map(|_| scene.spool(&stalled(), &file, 100 * MEGABYTE, false).0).collect();
    for client in &others {
        client.read(u64::MAX);
    }
    let work = scene.expire(6);
    assert!((1_024..1_024 + 100).contains(&work), "{work}");
}
