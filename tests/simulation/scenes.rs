// SPDX-License-Identifier: BSD-3-Clause

//! Scenes that no seed would find, each played once: crowds that are ready in the same moment, senders
//! that would have everything, tables that nobody touches for hours.
//!
//! A scene is a daemon on a fake kernel, somebody outside who does something at a given time, and what
//! must have come of it. Must not know the plans and the model of the other simulation.

use crate::successor::{Heiress, Manner, Successor, Wish};
use lingerd::connections::capacity::Room;
use lingerd::daemon::{Daemon, End, Parts};
use lingerd::guard::Allowed;
use lingerd::rules::linger::Rules;
use lingerd::rules::time::Span;
use lingerd::senders::protocol::{GO_AHEAD, HEAD};
use lingerd::service::control::Order;
use lingerd::stats::Snapshot;
use lingerd_platform::fake::{
    self, Address, Caller, Client, Fake, Faults, Flavour, Held, Kernel, Medium, Process, Raiser, Setup,
    WayBack,
};
use lingerd_platform::fdpass::MAX_DESCRIPTORS;
use lingerd_platform::peer::Peer;
use lingerd_platform::signals::Signals;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

const ROOT: Peer = Peer { uid: 0, groups: Vec::new(), all_groups: true, pid: Some(1) };

/// One for whom the door is not.
const STRANGER: Peer = Peer { uid: 1, groups: Vec::new(), all_groups: true, pid: None };

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);

/// Descriptors that a daemon may have: enough for every scene.
const DESCRIPTORS: usize = 200_000;

/// What a call takes on a slow machine.
const SLOW: Duration = Duration::from_micros(10);

/// What the daemon counts time in, and so what a point in time may be off by.
const TICK: Duration = Duration::from_nanos(15_625_000);

/// More than the work of a scene takes, in simulated time.
const AGES: Duration = Duration::from_secs(1_000_000);

/// As SOCKET_BUDGET in src/daemon.rs: what one sender has of a turn, but for the rest of its last message.
const SOCKET_BUDGET: usize = 256;

/// When something happened for the first time that was put on the agenda.
type When = Rc<Cell<Option<Duration>>>;

/// poll(2): whatever is ready comes at once, and in the order of the list.
fn poll() -> Flavour {
    Flavour { batch: usize::MAX, shuffled: false, granularity: Duration::from_millis(1), ..Flavour::bsd() }
}

/// Every kind of backend there is.
fn flavours() -> [Flavour; 4] {
    [Flavour::linux(), Flavour::bsd(), Flavour::solaris(), poll()]
}

/// A daemon in a world of its own.
struct Scene {
    kernel: Kernel,
    process: Process,
    daemon: Daemon<Fake>,
    door: Address,
    /// Where responses are handed over.
    second: Address,
    control: Address,
    raise: Rc<Signals<Raiser>>,
    /// What a successor is that has the same options.
    wish: Wish,
}

impl Scene {
    /// With -t, -T and -D.
    fn new(flavour: Flavour, rules: [Duration; 3]) -> Scene {
        Scene::with(flavour, rules, None, AGES)
    }

    /// With -n, too.
    fn with_room(flavour: Flavour, rules: [Duration; 3], most: Option<usize>) -> Scene {
        Scene::with(flavour, rules, most, AGES)
    }

    /// And with -W.
    fn with(flavour: Flavour, rules: [Duration; 3], most: Option<usize>, drain: Duration) -> Scene {
        let kernel = Kernel::new(1, flavour);
        let process = kernel.process(DESCRIPTORS);
        let (signals, raise) = process.signals();
        let (door, address) = process.door(128);
        let (spool_door, second) = process.door(128);
        let (control, control_address) = process.door(128);
        let parts = Parts {
            backend: process.backend(),
            clock: process.clock(),
            slow_close: process.slow_close(),
            signals,
            door,
            spool_door: Some(spool_door),
            reader: process.reader(),
            back: process.back(),
            most_held: u64::MAX,
            door_is_shared: false,
            allowed: Allowed::by_mode(0, 0, 0o660),
            control,
            pid_file: None,
            chance: 1,
            note: Box::new(|_| {}),
            tell: Box::new(|_| true),
        };
        let [idle, max, limit] = rules.map(Span::at_least);
        let room = Room::share(DESCRIPTORS as u64, process.open_descriptors(), most).expect("room");
        let wish = Wish {
            manner: Manner::Takes,
            only_if_stopping: false,
            pace: Duration::ZERO,
            rules,
            drain,
            limit: DESCRIPTORS,
            wanted: most,
            most_held: u64::MAX,
            own_clock: true,
        };
        let (rules, drain) = (Rules { idle, max, limit }, Span::at_least(drain));
        let daemon = Daemon::new(parts, rules, drain, room).expect("a daemon");
        kernel.must_end_by(AGES);
        let raise = Rc::new(raise);
        let (door, control) = (address, control_address);
        Scene { kernel, process, daemon, door, second, control, raise, wish }
    }

    /// One that comes now and wants to take over.
    fn successor(&self, wish: &Wish) -> Rc<Successor> {
        Successor::comes(&self.kernel, self.control, wish.clone()).expect("room at the control socket")
    }

    /// Has such a one take over, and goes on with it.
    fn is_taken_over(&mut self, wish: &Wish) {
        let successor = self.successor(wish);
        self.is_taken_over_by(&successor);
    }

    fn is_taken_over_by(&mut self, successor: &Successor) {
        while !self.daemon.is_succeeded() {
            assert!(!self.daemon.is_done() && !successor.is_gone(), "it has not taken over");
            self.daemon.turn().expect("a backend that can wait");
        }
        assert!(successor.owns_it());
        assert_eq!(self.daemon.run().expect("no wait"), End::Succeeded);
        assert!(successor.may_take_over_from(&self.daemon), "that one serves");
        self.process.kill();
        let Heiress { daemon, process, doors: [door, second] } = successor.takes_over();
        (self.daemon, self.process, self.raise) = (daemon, process, successor.raise());
        self.door = door.unwrap_or(self.door);
        self.second = second.unwrap_or(self.second);
    }

    /// A sender, which stays as long as what is returned does.
    fn sender(&self) -> Caller {
        self.kernel.connect(self.door, ROOT).expect("room at the door")
    }

    /// One who hands responses over.
    fn spooler(&self) -> Caller {
        self.kernel.connect(self.second, ROOT).expect("room at the door")
    }

    /// Has so many bytes of memory handed over to be written by `sender`, once that is allowed.
    fn spool(&mut self, sender: &Caller, length: u64, setup: &Setup) -> Client {
        self.until("it is allowed", |_| sender.unread() > 0);
        assert_eq!(sender.read(), [GO_AHEAD]);
        let (client, held) = self.kernel.connection(setup);
        held.set_linger(Some(Duration::ZERO));
        let file = self.kernel.file(length, Medium::memory());
        let mut head = [0; HEAD];
        head[..2].copy_from_slice(b"S\x01");
        head[3] = 1; // nobody else has use for it
        head[4..8].copy_from_slice(&1_000_000_u32.to_be_bytes());
        head[16..24].copy_from_slice(&length.to_be_bytes());
        sender.send(&head, &[&held, &file]).expect("room in the queue");
        client
    }

    /// So many connections made as `setup` says, and the server's ends of them.
    fn connections(&self, number: usize, setup: &Setup) -> (Vec<Client>, Vec<Held>) {
        (0..number).map(|_| self.kernel.connection(setup)).unzip()
    }

    /// Has so many connections handed over, in messages as large as can be, and waits until they linger.
    fn linger(&mut self, number: usize, setup: &Setup) -> Vec<Client> {
        let sender = self.sender();
        let (clients, mut held) = self.connections(number, setup);
        let before = self.figure("lingering");
        while !held.is_empty() {
            send(&sender, &held.split_off(held.len().saturating_sub(MAX_DESCRIPTORS)));
            self.until("the message is read", |_| sender.queued() == 0);
        }
        drop(sender);
        self.until("they linger, and their sender is gone", |scene| {
            scene.figure("lingering") == before + number as u64 && scene.figure("senders") == 0
        });
        clients
    }

    /// The same in no time at all: they are all of the same age.
    fn linger_at_once(&mut self, number: usize, setup: &Setup) -> Vec<Client> {
        let (now, mut cost, mut pause) = (self.kernel.now(), Duration::ZERO, None);
        self.kernel.adapt(|flavour| {
            std::mem::swap(&mut flavour.cost, &mut cost);
            std::mem::swap(&mut flavour.pause, &mut pause);
        });
        let clients = self.linger(number, setup);
        self.kernel.adapt(|flavour| (flavour.cost, flavour.pause) = (cost, pause));
        assert_eq!(self.kernel.now(), now);
        clients
    }

    /// Makes turns until something holds.
    fn until(&mut self, what: &str, mut holds: impl FnMut(&Scene) -> bool) {
        while !holds(self) {
            assert!(!self.daemon.is_done(), "the daemon has ended before {what}");
            self.daemon.turn().expect("a backend that can wait");
        }
        assert_eq!(self.kernel.violations(), [""; 0]);
    }

    /// Has somebody ask for the counters at `time`; tells when the answer was there.
    fn asks_at(&self, time: Duration) -> When {
        let (answered, control) = (When::default(), self.control);
        let told = answered.clone();
        self.kernel.at(time, move |kernel| {
            let caller = kernel.connect(control, ROOT).expect("room at the control socket");
            caller.send(b"S", &[]).expect("room for a byte");
            let asking = caller.clone();
            caller.at_hang_up(move |kernel| {
                let answer = String::from_utf8(asking.read()).expect("an answer in UTF-8");
                answer.parse::<Snapshot>().expect("counters");
                told.set(Some(kernel.now()));
            });
        });
        answered
    }

    /// Has it told to stop at `time`; tells when it hung up on a sender that was there for that.
    fn stops_at(&self, time: Duration) -> When {
        let (obeyed, stop, sender) = (When::default(), self.raise.stop.clone(), self.sender());
        let (told, waiting) = (obeyed.clone(), sender.clone());
        sender.at_hang_up(move |kernel| {
            drop(waiting);
            told.set(Some(kernel.now()));
        });
        self.kernel.at(time, move |_| stop.raise());
        obeyed
    }

    fn figure(&self, name: &str) -> u64 {
        self.daemon.snapshot().get(name).expect("a figure")
    }

    /// That the counters stand there and nothing is left of the crowd.
    #[track_caller]
    fn assert_ended(&self, reason: &str, number: usize) {
        let snapshot = self.daemon.snapshot();
        assert_eq!(snapshot.get(reason), Some(number as u64), "{snapshot}");
        assert_eq!(snapshot.get("lingering"), Some(0), "{snapshot}");
    }
}

/// Sends `held` in one message, and closes the sender's copies.
fn send(sender: &Caller, held: &[Held]) {
    sender.send(b"L", &held.iter().collect::<Vec<_>>()).expect("room in the queue");
}

/// That what was asked for at `time` came within a second.
#[track_caller]
fn assert_within_a_second(what: &str, time: Duration, came: &When) {
    let came = came.get().unwrap_or_else(|| panic!("{what}: never"));
    assert!(came <= time + SECOND, "{what}: after {:?}", came - time);
}

/// No rule ends anybody.
const NEVER: [Duration; 3] = [AGES, AGES, AGES];

const MANY: usize = 100_000;

/// Has `MANY` connections end in the same moment, and somebody ask and say stop while they are dealt with.
fn a_crowd_ends_at_once(
    flavour: Flavour,
    rules: [Duration; 3],
    reason: &str,
    end: impl FnOnce(&Scene, Vec<Client>),
) {
    let mut scene = Scene::new(Flavour { cost: SLOW, ..flavour }, rules);
    let start = SECOND * 10; // when they end
    scene.kernel.run_until(start - rules[0].min(SECOND * 5));
    let clients = scene.linger_at_once(MANY, &Setup::default());
    end(&scene, clients);
    let millis = Duration::from_millis;
    let asked = [1, 200, 400, 600].map(|after| start + millis(after));
    let stop = start + millis(300);
    let answers = asked.map(|when| scene.asks_at(when));
    let obeyed = scene.stops_at(stop);
    scene.until("the end", |scene| scene.daemon.is_done());
    let took = scene.kernel.now() - start;
    assert!(SECOND < took && took < SECOND * 10, "{took:?}: no work, or put off");
    for (when, came) in asked.iter().zip(&answers) {
        assert_within_a_second("an answer", *when, came);
    }
    assert_within_a_second("the stop", stop, &obeyed);
    scene.assert_ended(reason, MANY);
}

/// They all close.
fn all_close(scene: &Scene, clients: Vec<Client>) {
    scene.kernel.at(SECOND * 10, move |_| clients.iter().for_each(Client::close));
}

#[test]
fn a_hundred_thousand_that_end_at_once_keep_nobody_waiting_who_asks_or_says_stop() {
    a_crowd_ends_at_once(Flavour::linux(), NEVER, "closed", all_close);
}

#[test]
fn nor_do_they_where_the_backend_reports_them_all_at_once() {
    a_crowd_ends_at_once(poll(), NEVER, "closed", all_close);
}

#[test]
fn a_hundred_thousand_that_are_due_at_once_keep_nobody_waiting_who_asks_or_says_stop() {
    let rules = [SECOND * 5, AGES, AGES];
    a_crowd_ends_at_once(Flavour::linux(), rules, "idle", |_, _| {});
    a_crowd_ends_at_once(poll(), rules, "idle", |_, _| {});
}

#[test]
fn one_sender_with_thousands_of_sockets_keeps_another_waiting_for_its_budget_and_no_longer() {
    const MESSAGES: usize = 64;
    for flavour in flavours() {
        let mut scene = Scene::new(Flavour { cost: SLOW, ..flavour }, NEVER);
        let senders = [(); 3].map(|()| scene.sender());
        scene.until("they are let in", |scene| scene.figure("senders") == 3);
        let (clients, held) = scene.connections(MESSAGES * MAX_DESCRIPTORS, &Setup::default());
        let (others, other_held) = scene.connections(2, &Setup::default());
        // One comes before the greedy one and one behind it, so that one of them waits.
        send(&senders[0], &other_held[..1]);
        held.chunks(MAX_DESCRIPTORS).for_each(|held| send(&senders[1], held));
        send(&senders[2], &other_held[1..]);
        drop((held, other_held));
        scene.until("all are taken", |scene| scene.figure("handed_over") == clients.len() as u64 + 2);
        let taken = |client: &Client| client.facts().received.expect("it was handed over");
        for other in others.iter().map(taken) {
            let before = clients.iter().filter(|client| taken(client) < other).count();
            assert!(before < SOCKET_BUDGET + MAX_DESCRIPTORS, "{before} before one of another sender");
        }
    }
}

#[test]
fn a_sender_that_always_has_more_keeps_no_other_waiting_for_more_than_two_turns_of_it() {
    for flavour in flavours() {
        let mut scene = Scene::new(Flavour { cost: SLOW, ..flavour }, NEVER);
        let (greedy, modest) = (scene.sender(), scene.sender());
        let mut queued = Vec::new();
        let mut waiting: Option<(Client, usize)> = None;
        let mut served = 0;
        while served < 50 {
            while greedy.queued() < 8 {
                let (clients, held) = scene.connections(MAX_DESCRIPTORS, &Setup::default());
                send(&greedy, &held);
                queued.extend(clients);
            }
            let taken = queued.iter().filter(|client| client.facts().received.is_some()).count();
            match &waiting {
                None => {
                    let (client, held) = scene.kernel.connection(&Setup::default());
                    send(&modest, &[held]);
                    waiting = Some((client, taken));
                }
                Some((client, before)) => {
                    let meanwhile = taken - before;
                    assert!(meanwhile <= 2 * (SOCKET_BUDGET + MAX_DESCRIPTORS), "{meanwhile} meanwhile");
                    if client.facts().received.is_some() {
                        (waiting, served) = (None, served + 1);
                    }
                }
            }
            scene.daemon.turn().expect("a backend that can wait");
        }
    }
}

#[test]
fn a_turn_with_little_to_do_waits_for_more_and_one_with_much_begins_at_once() {
    for (number, waits) in [(1, true), (63, true), (64, false), (300, false)] {
        let mut scene = Scene::new(Flavour::linux(), NEVER);
        let pause = Flavour::linux().pause.expect("a system that can sleep for so short a time");
        let mut senders = Vec::new();
        while senders.len() < number {
            senders.push(scene.sender());
            let all = senders.len() as u64;
            scene.until("they are let in", |scene| scene.figure("senders") == all);
        }
        let (clients, held) = scene.connections(senders.len(), &Setup::default());
        senders.iter().zip(held).for_each(|(sender, held)| send(sender, &[held]));
        let before = scene.kernel.now();
        scene.daemon.turn().expect("a backend that can wait");
        let first = clients.iter().filter_map(|client| client.facts().received).min().expect("a hand-off");
        assert_eq!(first - before >= pause, waits, "{} senders", senders.len());
    }
}

/// Of which one wait does not report all.
#[test]
fn hundreds_of_senders_that_have_more_are_read_to_the_end_when_they_are_reported_again() {
    for flavour in flavours() {
        let mut scene = Scene::new(flavour, NEVER);
        let mut senders = Vec::new();
        while senders.len() < 600 {
            senders.extend((0..100).map(|_| scene.sender()));
            let all = senders.len() as u64;
            scene.until("they are let in", |scene| scene.figure("senders") == all);
        }
        let mut clients = Vec::new();
        for sender in &senders {
            for _ in 0..10 {
                let (client, held) = scene.kernel.connection(&Setup::default());
                send(sender, &[held]);
                clients.push(client);
            }
        }
        let mut turns = 0;
        while clients.iter().any(|client| client.facts().received.is_none()) {
            scene.daemon.turn().expect("a backend that can wait");
            turns += 1;
        }
        assert!(turns <= 9, "{turns} turns");
    }
}

/// Each of them takes all that it is given at once, so that the daemon could write to one of them for ever.
#[test]
fn fast_readers_of_much_keep_nobody_waiting_for_more_than_a_turn_with_a_few_pieces_of_each() {
    const READERS: usize = 20;
    for flavour in flavours() {
        let mut scene = Scene::new(Flavour { cost: CALL, pause: None, ..flavour }, NEVER);
        let silent = Setup { response: 0, ..Setup::default() };
        let mut others = scene.linger(10_000, &silent);
        let sender = scene.spooler();
        let start = scene.kernel.now();
        let readers: Vec<_> = (0..READERS)
            .map(|_| scene.spool(&sender, 64 << 20, &Setup { response: 0, ..Setup::default() }))
            .collect();
        let asked = start + Duration::from_micros(500);
        let answer = scene.asks_at(asked);
        let mut longest = Duration::ZERO;
        let mut closed = Vec::new();
        while scene.figure("spooling") > 0 {
            let other = others.pop().expect("enough of them");
            other.close();
            closed.push((scene.kernel.now(), other));
            scene.daemon.turn().expect("a backend that can wait");
            longest = longest.max(scene.kernel.now() - scene.kernel.woke());
        }
        // Each piece takes two calls, and each look at one some beside them.
        assert!(longest < CALL * (READERS * (4 * 3 + 12) + 100) as u32, "a turn of {longest:?}");
        assert!(closed.len() > 100, "they were written in {} turns", closed.len());
        scene.daemon.turn().expect("a backend that can wait");
        for (when, client) in closed {
            let ended = client.facts().closed.expect("it is looked at");
            assert!(ended <= when + longest * 2, "closed at {when:?}, looked at {ended:?}");
        }
        assert!(readers.iter().all(|client| client.facts().read == 64 << 20));
        assert_within_a_second("an answer", asked, &answer);
    }
}

#[test]
fn whoever_waits_for_room_has_it_in_his_turn_and_whoever_comes_anew_after_him() {
    for flavour in flavours() {
        // Half of a table of two: one at a time.
        let mut scene = Scene::with_room(flavour, NEVER, Some(2));
        let setup = Setup { response: 0, reads: false, ..Setup::default() };
        let mut waiting = VecDeque::new();
        for round in 0..40 {
            if round % 10 == 0 {
                waiting.push_back(scene.spooler());
                scene.until("he is let in", |scene| scene.figure("senders") == waiting.len() as u64);
            }
            scene.until("somebody is allowed one", |_| waiting.iter().any(|sender| sender.unread() > 0));
            let next = waiting.pop_front().expect("somebody");
            let client = scene.spool(&next, 1_000_000, &setup);
            waiting.push_back(next);
            scene.until("it is taken", |scene| scene.figure("spooling") == 1);
            assert!(waiting.iter().all(|sender| sender.unread() == 0), "there is no room");
            while scene.figure("spooling") > 0 {
                client.read(100_000);
                scene.kernel.run_until(scene.kernel.now() + TICK);
                scene.daemon.turn().expect("a backend that can wait");
            }
            client.close();
        }
    }
}

#[test]
fn who_was_allowed_one_and_has_none_makes_way_for_who_waits() {
    for flavour in flavours() {
        let mut scene = Scene::with_room(flavour, NEVER, Some(2));
        let setup = Setup { response: 0, ..Setup::default() };
        let idle = scene.spooler();
        scene.until("it is allowed", |_| idle.unread() > 0);
        let waiting = scene.spooler();
        scene.until("the other one has it", |_| waiting.unread() > 0);
        assert!(idle.is_hung_up());
        assert_eq!(scene.figure("senders"), 1);
        let client = scene.spool(&waiting, 1_000, &setup);
        scene.until("it is written", |_| client.facts().read == 1_000);
        // Nobody is parted with for whom nobody waits.
        scene.kernel.run_until(scene.kernel.now() + HOUR);
        scene.until("it is looked at", |_| waiting.unread() > 0);
        assert!(!waiting.is_hung_up());
    }
}

#[test]
fn a_silent_table_sleeps_until_there_is_something_to_do() {
    for flavour in flavours() {
        let mut scene = Scene::new(flavour, [HOUR * 12, HOUR * 20, HOUR * 30]);
        let clients = scene.linger(10_000, &Setup::default());
        // The counters are logged an hour after the first hand-off.
        let sleeps = [SECOND * 60..HOUR - SECOND, HOUR + SECOND * 60..HOUR * 12 - SECOND];
        let made = [(); 2].map(|()| Rc::new(Cell::new([0; 2])));
        for (sleep, made) in sleeps.iter().zip(&made) {
            for (n, when) in [sleep.start, sleep.end].into_iter().enumerate() {
                let made = made.clone();
                scene.kernel.at(when, move |kernel| {
                    let mut both = made.get();
                    both[n] = kernel.hash();
                    made.set(both);
                });
            }
        }
        scene.until("they are idle", |scene| scene.figure("idle") == 10_000);
        assert!(scene.kernel.now() < HOUR * 12 + SECOND * 10);
        for (sleep, made) in sleeps.iter().zip(&made) {
            let [before, after] = made.get();
            assert!(before == after && before != 0, "a call was made in {sleep:?}");
        }
        drop(clients);
    }
}

/// What a call takes where calls are counted: the time tells how many they were.
const CALL: Duration = Duration::from_micros(1);

#[test]
fn a_table_that_grows_makes_no_turn_longer_than_its_sockets_do() {
    /// Calls for each socket that is handed over, its message's too, and those of a turn beside them.
    const OF_A_SOCKET: u64 = 8;
    const OF_A_TURN: u64 = 16;
    for flavour in flavours() {
        let flavour = Flavour { cost: CALL, pause: None, ..flavour };
        let mut scene = Scene::new(flavour, NEVER);
        let (alone, many) = (scene.sender(), scene.sender());
        let mut clients = Vec::new();
        while clients.len() < 20_000 {
            let (one, held) = scene.connections(1, &Setup::default());
            send(&alone, &held);
            let (others, held) = scene.connections(MAX_DESCRIPTORS, &Setup::default());
            send(&many, &held);
            clients.extend([one, others].into_iter().flatten());
            drop(held);
            while alone.queued() + many.queued() > 0 {
                let before = scene.figure("handed_over");
                scene.daemon.turn().expect("a backend that can wait");
                let sockets = scene.figure("handed_over") - before;
                let calls = (scene.kernel.now() - scene.kernel.woke()).as_micros() as u64;
                let most = OF_A_TURN + sockets * OF_A_SOCKET;
                assert!(calls <= most, "{calls} calls for {sockets} sockets at {}", clients.len());
            }
        }
        assert_eq!(scene.figure("lingering"), clients.len() as u64);
    }
}

#[test]
fn a_reader_that_stalls_for_hours_has_its_response_whole() {
    let mut scene = Scene::new(Flavour::linux(), [SECOND * 5, SECOND * 30, HOUR * 10]);
    let response = 300_000;
    let client = scene.linger(1, &Setup { response, reads: false, ..Setup::default() }).remove(0);
    // Three times it says something, which a close would have answered with a reset.
    for hour in 1..=3 {
        let reading = client.clone();
        scene.kernel.at(HOUR * hour, move |_| {
            reading.read(10_000);
            reading.send(1);
        });
    }
    let (reading, has_it_all) = (client.clone(), HOUR * 4);
    scene.kernel.at(has_it_all, move |_| while reading.read(u64::MAX) > 0 {});
    scene.until("it has ended", |scene| scene.figure("lingering") == 0);
    let facts = client.facts();
    assert_eq!((facts.read, facts.lost, facts.discarded), (response, 0, 3));
    assert_eq!((scene.figure("idle"), scene.figure("cut_short")), (1, 0));
    let parted = facts.parted.expect("it has ended");
    // Whether it has it all is asked each 5 s; from then on it has been silent for 5 s.
    assert!((has_it_all + SECOND * 5..has_it_all + SECOND * 10 + TICK * 2).contains(&parted), "{parted:?}");
}

#[test]
fn a_client_that_never_stops_sending_has_its_max_to_the_tick() {
    let mut scene = Scene::new(Flavour::linux(), [SECOND * 5, SECOND * 30, HOUR]);
    let client = scene.linger(1, &Setup::default()).remove(0);
    let max = client.facts().received.expect("it lingers") + SECOND * 30;
    (1..40).for_each(|second| {
        let dripping = client.clone();
        scene.kernel.at(SECOND * second, move |_| dripping.send(1));
    });
    scene.until("it has ended", |scene| scene.figure("lingering") == 0);
    assert_eq!(scene.figure("max"), 1);
    let parted = client.facts().parted.expect("it has ended");
    assert!((max..=max + TICK * 2).contains(&parted), "{parted:?}");
}

#[test]
fn readers_that_stall_leave_half_of_the_table_to_others() {
    let mut scene = Scene::with_room(Flavour::linux(), [SECOND * 5, SECOND * 30, HOUR], Some(10));
    let stalled = scene.linger(10, &Setup { response: 300_000, reads: false, ..Setup::default() });
    // Soon they are known to have stalled, and are not just new.
    let (door, late) = (scene.door, SECOND * 60);
    let (others, held) = scene.connections(5, &Setup::default());
    scene.kernel.at(late, move |kernel| send(&kernel.connect(door, ROOT).expect("room"), &held));
    scene.until("they are handed over", |scene| scene.figure("handed_over") == 15);
    assert_eq!((scene.figure("evicted"), scene.figure("cut_short")), (5, 5));
    assert!(others.iter().all(|client| client.facts().parted.is_none()), "they have room");
    let left = stalled.iter().filter(|client| client.facts().parted.is_none()).count();
    assert_eq!(left, 5);
}

#[test]
fn a_read_that_is_interrupted_while_it_stops_loses_no_hand_off() {
    let mut scene = Scene::new(Flavour::linux(), NEVER);
    let sender = scene.sender();
    scene.until("it is let in", |scene| scene.figure("senders") == 1);
    let (clients, held) = scene.connections(100, &Setup::default());
    scene.kernel.set_faults(Faults { interrupted: 0.5, ..Faults::default() });
    held.iter().for_each(|held| send(&sender, std::slice::from_ref(held)));
    drop(held);
    scene.raise.stop.raise();
    scene.until("it stops", |scene| scene.daemon.is_stopping());
    assert_eq!(scene.figure("lingering"), clients.len() as u64);
}

#[test]
fn a_stop_in_the_middle_of_a_turn_takes_nothing_from_the_message_in_hand() {
    let mut scene = Scene::new(Flavour { cost: SLOW, shuffled: false, ..Flavour::linux() }, NEVER);
    let [other, honest] = [(); 2].map(|()| scene.sender());
    scene.until("both are let in", |scene| scene.figure("senders") == 2);
    let (clients, mut held) = scene.connections(3 * MAX_DESCRIPTORS, &Setup::default());
    for _ in 0..3 {
        send(&honest, &held.split_off(held.len() - MAX_DESCRIPTORS));
    }
    let stop = scene.raise.stop.clone();
    // While the first message is dealt with, which takes more than a thousand calls.
    scene.kernel.after(Duration::from_millis(5), move |_| {
        other.send(b"?", &[]).expect("room in the queue");
        stop.raise();
    });
    scene.until("it stops", |scene| scene.daemon.is_stopping());
    let snapshot = scene.daemon.snapshot();
    assert_eq!(snapshot.get("lingering"), Some(clients.len() as u64), "{snapshot}");
    assert_eq!((snapshot.get("rejected"), snapshot.get("protocol_errors")), (Some(0), Some(1)), "{snapshot}");
}

/// The kernel has no memory for `time` from now on; until when that is.
fn short_of_memory(scene: &Scene, time: Duration) -> Duration {
    scene.kernel.set_faults(Faults { memory: 1.0, ..Faults::default() });
    let end = scene.kernel.now() + time;
    scene.kernel.at(end, |kernel| kernel.set_faults(Faults::default()));
    end
}

#[test]
fn a_sender_that_cannot_be_read_while_it_stops_is_parted_with_when_it_can() {
    for flavour in flavours() {
        let mut scene = Scene::new(flavour, [SECOND * 5, SECOND * 30, HOUR]);
        let sender = scene.sender();
        scene.until("it is let in", |scene| scene.figure("senders") == 1);
        short_of_memory(&scene, SECOND / 2);
        let (client, held) = scene.kernel.connection(&Setup::default());
        send(&sender, &[held]);
        scene.raise.stop.raise();
        scene.until("the end", |scene| scene.daemon.is_done());
        assert!(sender.is_hung_up() && scene.kernel.now() < SECOND * 10);
        assert_eq!(scene.figure("idle"), 1, "{:?}", client.facts());
    }
}

#[test]
fn who_is_told_to_stop_at_once_reads_what_it_can() {
    let mut scene = Scene::new(Flavour::linux(), NEVER);
    let sender = scene.sender();
    scene.until("it is let in", |scene| scene.figure("senders") == 1);
    let end = short_of_memory(&scene, SECOND / 2);
    let (_client, held) = scene.kernel.connection(&Setup::default());
    send(&sender, &[held]);
    let again = scene.raise.stop.clone();
    again.raise();
    scene.kernel.at(end, move |_| again.raise());
    scene.until("the end", |scene| scene.daemon.is_done());
    scene.assert_ended("stopped", 1);
}

#[test]
fn a_sender_of_files_is_hung_up_on_when_so_many_are_being_closed() {
    let mut scene = Scene::new(Flavour::linux(), NEVER);
    let sender = scene.sender();
    let file = scene.kernel.slow("a file", SECOND * 60);
    for _ in 0..10 {
        sender.send(b"L", &[&file; MAX_DESCRIPTORS]).expect("room in the queue");
    }
    scene.until("it is hung up on", |scene| {
        scene.figure("handed_over") + scene.figure("rejected") > 0 && scene.figure("senders") == 0
    });
    let closing = scene.process.closing();
    assert!(closing <= 3 * MAX_DESCRIPTORS, "{closing}");
    assert!(scene.figure("rejected") <= closing as u64, "{}", scene.daemon.snapshot());
}

#[test]
fn senders_that_all_have_much_keep_nobody_waiting_who_asks_or_says_stop() {
    for flavour in flavours() {
        let mut scene = Scene::new(Flavour { cost: SLOW, ..flavour }, NEVER);
        let senders = [(); 60].map(|()| scene.sender());
        scene.until("they are let in", |scene| scene.figure("senders") == 60);
        let (clients, mut held) = scene.connections(senders.len() * 2 * MAX_DESCRIPTORS, &Setup::default());
        for sender in senders.iter().chain(&senders) {
            send(sender, &held.split_off(held.len() - MAX_DESCRIPTORS));
        }
        let start = scene.kernel.now();
        let asked = [1, 300, 600].map(|after| start + Duration::from_millis(after));
        let answers = asked.map(|when| scene.asks_at(when));
        let obeyed = scene.stops_at(start + Duration::from_millis(900));
        scene.until("all are taken", |scene| scene.figure("handed_over") == clients.len() as u64);
        assert!(scene.kernel.now() > start + SECOND, "else it is no work");
        for (when, came) in asked.iter().zip(&answers) {
            assert_within_a_second("an answer", *when, came);
        }
        // It reads them all first.
        scene.until("it stops", |scene| scene.daemon.is_stopping());
        assert!(obeyed.get().is_some());
    }
}

#[test]
fn a_daemon_that_is_never_at_rest_keeps_its_deadlines() {
    let mut scene = Scene::new(Flavour { cost: SLOW, ..Flavour::linux() }, [SECOND, AGES, AGES]);
    let clients = scene.linger(2, &Setup::default());
    let chatty = clients[0].clone();
    // Something is ready in every turn.
    (0..100_000).for_each(|n| {
        let chatty = chatty.clone();
        scene.kernel.at(SLOW * 2 * n, move |_| chatty.send(1));
    });
    scene.until("the silent one has ended", |scene| scene.figure("idle") == 1);
    let facts = clients[1].facts();
    let end = facts.received.expect("it lingered") + SECOND;
    assert!((end..end + TICK * 3).contains(&facts.parted.expect("it has ended")), "{facts:?}");
}

#[test]
fn of_one_message_the_first_are_evicted_first() {
    let mut scene = Scene::with_room(Flavour::linux(), NEVER, Some(3));
    let clients = scene.linger(3, &Setup::default());
    let sender = scene.sender();
    let (_others, held) = scene.connections(2, &Setup::default());
    send(&sender, &held);
    scene.until("they are taken", |scene| scene.figure("evicted") == 2);
    let is_there: Vec<_> = clients.iter().map(|client| client.facts().parted.is_none()).collect();
    assert_eq!(is_there, [false, false, true]);
}

#[test]
fn a_stop_takes_all_that_a_sender_has_queued() {
    for flavour in flavours() {
        let mut scene = Scene::new(flavour, NEVER);
        let sender = scene.sender();
        scene.until("it is let in", |scene| scene.figure("senders") == 1);
        let (clients, held) = scene.connections(30 * MAX_DESCRIPTORS, &Setup::default());
        held.chunks(MAX_DESCRIPTORS).for_each(|held| send(&sender, held));
        drop(held);
        scene.raise.stop.raise();
        scene.until("it stops", |scene| scene.daemon.is_stopping());
        assert_eq!(scene.figure("lingering"), clients.len() as u64);
    }
}

#[test]
fn those_that_are_asked_again_and_again_starve_nobody_who_has_it_all() {
    let rules = [SECOND / 10, HOUR, HOUR];
    let mut scene = Scene::new(Flavour { cost: SLOW, ..Flavour::linux() }, rules);
    let _stalled =
        scene.linger_at_once(8_000, &Setup { response: 300_000, reads: false, ..Setup::default() });
    let _silent = scene.linger_at_once(1, &Setup::default());
    let late = scene.kernel.now() + SECOND * 10;
    while scene.figure("idle") == 0 {
        assert!(scene.kernel.now() < late, "{}", scene.daemon.snapshot());
        scene.daemon.turn().expect("a backend that can wait");
    }
}

#[test]
fn what_is_tried_again_keeps_nobody_waiting_who_asks() {
    for flavour in flavours() {
        let mut scene = Scene::new(Flavour { cost: SLOW, pause: None, ..flavour }, NEVER);
        scene.kernel.set_faults(Faults { add: 1.0, ..Faults::default() });
        let senders: Vec<_> = (0..100).map(|_| scene.sender()).collect();
        scene.until("they are let in", |scene| scene.figure("senders") == 100);
        let mut clients = Vec::new();
        for sender in senders.iter().flat_map(|sender| [sender; 2]) {
            let (more, held) = scene.connections(MAX_DESCRIPTORS, &Setup::default());
            send(sender, &held);
            clients.extend(more);
        }
        let asked = scene.kernel.now() + SECOND + SECOND / 10; // while all of them are tried again
        let answered = scene.asks_at(asked);
        scene.until("an answer", |_| answered.get().is_some());
        assert_within_a_second("an answer", asked, &answered);
    }
}

#[test]
fn who_cannot_be_read_for_want_of_memory_is_left_alone_for_a_while() {
    for flavour in flavours() {
        for lingers in [false, true] {
            let mut scene = Scene::new(Flavour { cost: CALL, ..flavour.clone() }, NEVER);
            let sender = scene.sender();
            scene.until("it is let in", |scene| scene.figure("senders") == 1);
            let (clients, held) = scene.connections(1, &Setup::default());
            send(&sender, &held);
            drop(held);
            if lingers {
                scene.until("it lingers", |scene| scene.figure("lingering") == 1);
                clients[0].send(10);
            }
            let before = scene.kernel.count(lingerd_platform::fake::Call::Wait);
            let end = short_of_memory(&scene, SECOND * 10);
            scene.until("there is memory", |scene| scene.kernel.now() >= end);
            let waits = scene.kernel.count(lingerd_platform::fake::Call::Wait) - before;
            assert!(waits < 100, "{waits} turns in 10 s: lingers {lingers}, {flavour:?}");
        }
    }
}

#[test]
fn what_is_left_when_its_time_is_over_is_ended_and_first_what_loses_least() {
    for flavour in flavours() {
        let tells = flavour.tells_acknowledged;
        let mut scene = Scene::with(Flavour { cost: CALL, ..flavour }, NEVER, None, SECOND * 10);
        let stalls = Setup { response: 300_000, reads: false, ..Setup::default() };
        let stalled = scene.linger(3, &stalls);
        let silent = scene.linger(3, &Setup::default());
        let sender = scene.sender(); // it stays
        let stop = scene.raise.stop.clone();
        scene.kernel.at(SECOND * 60, move |_| stop.raise());
        scene.until("the end", |scene| scene.daemon.is_done());
        let took = scene.kernel.now() - SECOND * 60;
        assert!(SECOND * 9 <= took && took < SECOND * 10, "{took:?}");
        scene.assert_ended("stopped", 6);
        assert!(sender.is_hung_up());
        if tells {
            assert_eq!(scene.figure("cut_short"), 3);
            let ended =
                |clients: &[Client]| clients.iter().map(|client| client.facts().parted).collect::<Vec<_>>();
            assert!(ended(&silent).iter().max() < ended(&stalled).iter().min());
        }
    }
}

/// Of each: when it was handed over, and how long after that it ended.
fn lives(clients: &[Client]) -> Vec<(Duration, Duration)> {
    let ends = |client: &Client| {
        let facts = client.facts();
        let received = facts.received.expect("it was handed over");
        (received, facts.parted.expect("it has ended") - received)
    };
    clients.iter().map(ends).collect()
}

#[test]
fn ten_thousand_are_taken_over_and_each_ends_when_it_should() {
    for flavour in flavours() {
        let mut scene = Scene::new(flavour, [SECOND * 5, SECOND * 30, HOUR]);
        let mut clients = Vec::new();
        for n in 1..=10 {
            scene.kernel.run_until(SECOND / 3 * n);
            clients.extend(scene.linger(1_000, &Setup::default()));
        }
        let before = scene.daemon.snapshot();
        scene.is_taken_over(&scene.wish.clone());
        assert_eq!(scene.daemon.snapshot().get("lingering"), Some(10_000), "{before}");
        scene.until("they are idle", |scene| scene.figure("idle") == 10_000);
        for (received, life) in lives(&clients) {
            let due = SECOND * 5 - TICK..SECOND * 5 + TICK * 3;
            assert!(due.contains(&life), "handed over at {received:?}, and {life:?} later at an end");
        }
        assert_eq!((scene.figure("handed_over"), scene.figure("peak")), (10_000, 10_000));
    }
}

#[test]
fn a_chain_of_take_overs_ends_nobody_early_and_nobody_late() {
    const TIMES: u32 = 20;
    for flavour in flavours() {
        let tells = flavour.tells_acknowledged;
        let mut scene = Scene::new(flavour, [SECOND * 5, SECOND * 30, SECOND * 60]);
        let silent = scene.linger(10, &Setup::default());
        let dripping = scene.linger(1, &Setup::default());
        let stalled = scene.linger(1, &Setup { response: 300_000, reads: false, ..Setup::default() });
        for n in 1..70 {
            let dripping = dripping[0].clone();
            scene.kernel.at(SECOND * n, move |_| dripping.send(1));
        }
        for n in 1..=TIMES {
            let next = (SECOND * 2 + SECOND / 7) * n;
            scene.until("the next one comes", |scene| scene.kernel.now() >= next);
            scene.is_taken_over(&scene.wish.clone());
        }
        scene.until("they have ended", |scene| scene.figure("lingering") == 0);
        let rounded = TICK * (TIMES + 3);
        let stalls = if tells { SECOND * 60 } else { SECOND * 5 };
        for (clients, end) in [(&silent, SECOND * 5), (&dripping, SECOND * 30), (&stalled, stalls)] {
            for (_, life) in lives(clients) {
                assert!((end - rounded..end + rounded).contains(&life), "{life:?} for {end:?}");
            }
        }
        assert_eq!((scene.figure("handed_over"), scene.figure("max")), (12, 1));
        assert!(scene.figure("uptime") >= 60, "it is that of all of them");
    }
}

#[test]
fn who_takes_over_judges_by_its_own_rules() {
    let mut scene = Scene::new(Flavour::linux(), [HOUR, HOUR, HOUR]);
    let clients = scene.linger(10, &Setup::default());
    scene.kernel.run_until(SECOND * 60);
    let longer = scene.linger(1, &Setup::default());
    scene.is_taken_over(&Wish { rules: [SECOND * 30, HOUR, HOUR], ..scene.wish.clone() });
    scene.until("they have ended", |scene| scene.figure("idle") == 11);
    assert!(lives(&clients).iter().all(|(_, life)| *life < SECOND * 61), "they had been silent for longer");
    assert!(lives(&longer)[0].1 >= SECOND * 30 - TICK);
}

#[test]
fn what_is_sent_while_it_is_taken_over_is_served_by_the_next_one() {
    for flavour in flavours() {
        let mut scene = Scene::new(flavour, NEVER);
        scene.linger(1_000, &Setup::default());
        let sender = scene.sender();
        scene.until("it is let in", |scene| scene.figure("senders") == 1);
        let pace = SECOND / 10;
        let successor = scene.successor(&Wish { pace, ..scene.wish.clone() });
        let (clients, mut held) = scene.connections(2, &Setup::default());
        let (door, told, other) = (scene.door, sender.clone(), held.split_off(1));
        let late = Rc::new(Cell::new(None));
        let stays = late.clone();
        scene.kernel.after(pace / 50, move |kernel| {
            send(&told, &held);
            let caller = kernel.connect(door, ROOT).expect("room at the door");
            send(&caller, &other);
            stays.set(Some(caller));
        });
        scene.is_taken_over_by(&successor);
        let taken = |scene: &Scene| scene.figure("handed_over") == 1_002;
        assert!(!taken(&scene), "the one before it was to be too busy for that");
        scene.until("they are served", taken);
        assert!(clients.iter().all(|client| client.facts().parted.is_none()));
        assert!(!sender.is_hung_up() && scene.figure("senders") == 2);
    }
}

#[test]
fn a_stop_while_it_is_taken_over_stops_the_next_one() {
    for faults in [Faults::default(), Faults { interrupted: 0.5, memory: 0.5, ..Faults::default() }] {
        let mut scene = Scene::new(Flavour::linux(), [SECOND * 5, SECOND * 30, HOUR]);
        scene.linger(1_000, &Setup::default());
        let successor = scene.successor(&Wish { pace: SECOND / 10, ..scene.wish.clone() });
        let stop = scene.raise.stop.clone();
        scene.kernel.after(SECOND / 500, move |kernel| {
            kernel.set_faults(faults);
            stop.raise();
        });
        scene.is_taken_over_by(&successor);
        assert!(scene.daemon.is_stopping());
        scene.kernel.set_faults(Faults::default());
        scene.until("the end", |scene| scene.daemon.is_done());
        scene.assert_ended("idle", 1_000);
    }
}

#[test]
fn a_successor_that_fails_costs_five_seconds_at_most_and_nothing_else() {
    let late = Manner::Dawdles(SECOND * 6);
    let manners = [0, 1, 2].into_iter().flat_map(|n| [Manner::Hangs(n), Manner::Dies(n)]);
    let others = [late, Manner::Errs, Manner::DiesInTheEnd, Manner::Babbles(b"\0\0\0\x02\0\0\0\0no")];
    for (manner, flavour) in manners.chain(others).flat_map(|manner| flavours().map(|kind| (manner, kind))) {
        let mut scene = Scene::new(flavour, [SECOND * 20, SECOND * 30, HOUR]);
        let clients = scene.linger(1_000, &Setup::default());
        let sender = scene.sender();
        scene.until("it is let in", |scene| scene.figure("senders") == 1);
        let (mut open, before) = (scene.process.descriptors(), scene.daemon.snapshot());
        let start = scene.kernel.now();
        let successor = scene.successor(&Wish { manner, ..scene.wish.clone() });
        let answered = scene.asks_at(start + SECOND);
        scene.until("an answer", |_| answered.get().is_some());
        let waited = answered.get().unwrap_or_default() - start;
        assert!(waited <= SECOND * 5 + SECOND / 50, "{manner:?}: {waited:?}");
        scene.kernel.run_until(start + SECOND * 7); // it says whatever it has to say
        assert!(!successor.owns_it(), "{manner:?}");
        let after = scene.daemon.snapshot();
        for name in ["lingering", "handed_over", "senders", "peak", "cut_short"] {
            assert_eq!(after.get(name), before.get(name), "{manner:?}: {name}");
        }
        let mut now = scene.process.descriptors();
        [&mut open, &mut now].into_iter().for_each(|all| all.sort_unstable());
        assert_eq!(open, now, "{manner:?}");
        scene.until("they are idle", |scene| scene.figure("idle") == 1_000);
        for (_, life) in lives(&clients) {
            assert!((SECOND * 20..SECOND * 20 + TICK * 3).contains(&life), "{life:?}");
        }
        drop(sender);
    }
}

#[test]
fn who_says_at_the_last_moment_that_it_has_everything_has_it_or_is_told_that_it_has_not() {
    for flavour in flavours() {
        let mut taken = 0;
        for micros in 0..60 {
            let mut scene = Scene::new(Flavour { cost: SLOW, ..flavour.clone() }, NEVER);
            scene.linger(10, &Setup::default());
            // In which of its calls the five seconds end only the one before it knows.
            let manner = Manner::Dawdles(
                SECOND * 5 - Duration::from_micros(10) * 40 + Duration::from_micros(10) * micros,
            );
            scene.kernel.set_faults(Faults { interrupted: 0.3, memory: 0.1, ..Faults::default() });
            let successor = scene.successor(&Wish { manner, ..scene.wish.clone() });
            let end = scene.kernel.now() + SECOND * 6;
            scene.kernel.at(end, |_| {});
            while scene.kernel.now() < end && !scene.daemon.is_succeeded() {
                scene.daemon.turn().expect("a backend that can wait");
            }
            assert_eq!(successor.owns_it(), scene.daemon.is_succeeded(), "{micros} of 60");
            taken += u64::from(scene.daemon.is_succeeded());
        }
        assert!((1..60).contains(&taken), "{taken}: no moment is the last one");
    }
}

#[test]
fn of_two_that_come_at_once_the_later_one_takes_over_from_the_earlier_one() {
    for flavour in flavours() {
        let mut scene = Scene::new(flavour, NEVER);
        scene.linger(100, &Setup::default());
        let start = scene.kernel.now();
        let both = [(); 2].map(|()| scene.successor(&scene.wish));
        // And somebody who wants to do so from one only that stops.
        let refused = scene.successor(&Wish { only_if_stopping: true, ..scene.wish.clone() });
        let first = both.iter().position(|one| {
            while !one.owns_it() && !scene.daemon.is_succeeded() {
                scene.daemon.turn().expect("a backend that can wait");
            }
            one.owns_it()
        });
        let (one, other) = if first == Some(0) { (&both[0], &both[1]) } else { (&both[1], &both[0]) };
        scene.is_taken_over_by(one);
        scene.is_taken_over_by(other);
        scene.until("the third one is told", |_| refused.is_gone());
        assert!(scene.kernel.now() < start + SECOND, "{:?}", scene.kernel.now() - start);
        assert_eq!(scene.figure("lingering"), 100);
    }
}

#[test]
fn who_waits_for_the_end_of_one_that_stops_is_told_that_another_one_has_taken_over() {
    let mut scene = Scene::new(Flavour::linux(), [SECOND * 5, SECOND * 30, HOUR]);
    scene.linger(10, &Setup::default());
    let waits = scene.kernel.connect(scene.control, ROOT).expect("room at the control socket");
    waits.send(b"K", &[]).expect("room for a byte");
    scene.until("it stops", |scene| scene.daemon.is_stopping());
    scene.is_taken_over(&Wish { only_if_stopping: true, ..scene.wish.clone() });
    assert_eq!(String::from_utf8(waits.read()), Ok("stopping\nsucceeded\n".to_owned()));
    assert!(!scene.daemon.is_stopping() && waits.is_hung_up());
    let sender = scene.sender();
    scene.until("it serves", |scene| scene.figure("senders") == 1);
    drop(sender);
    scene.until("they are idle", |scene| scene.figure("idle") == 10);
}

#[test]
fn who_has_come_in_and_said_nothing_yet_is_heard_by_the_next_one() {
    for flavour in flavours() {
        let mut scene = Scene::new(flavour, NEVER);
        let asking = scene.kernel.connect(scene.control, ROOT).expect("room at the control socket");
        scene.until("it is let in", |scene| scene.daemon.clients() == 1);
        scene.is_taken_over(&scene.wish.clone());
        assert_eq!(scene.daemon.clients(), 1);
        asking.send(b"S", &[]).expect("room for a byte");
        scene.until("an answer", |_| asking.is_hung_up());
        let answer = String::from_utf8(asking.read()).expect("an answer in UTF-8");
        answer.parse::<Snapshot>().expect("counters");
    }
}

#[test]
fn who_asks_where_senders_come_in_is_told_as_fast_as_it_reads_and_who_does_not_read_makes_room() {
    for flavour in flavours() {
        let mut scene = Scene::new(flavour, NEVER);
        // The first of all, but one who may more.
        let root = scene.kernel.connect(scene.control, ROOT).expect("room at the control socket");
        root.set_room(100);
        root.send(b"S", &[]).expect("room for a byte");
        scene.until("it is told something", |_| root.unread() == 100);
        let ask = || {
            let asks = scene.kernel.connect(scene.second, ROOT).expect("room at the second socket");
            asks.set_room(100);
            asks.send(b"p", &[]).expect("room for a byte");
            asks
        };
        let unread: Vec<_> = (0..4).map(|_| ask()).collect();
        let asks = ask();
        let mut answer = Vec::new();
        scene.until("it is told all", |_| {
            let read = asks.read();
            assert!(read.len() <= 100);
            answer.extend(read);
            asks.is_hung_up()
        });
        answer.extend(asks.read());
        let answer = String::from_utf8(answer).expect("an answer in UTF-8");
        let answer = answer.trim_start_matches('G');
        assert!(answer.starts_with("# HELP ") && answer.ends_with("reason=\"broken\"} 0\n"), "{answer}");
        assert_eq!((scene.daemon.clients(), scene.figure("senders")), (1 + 3, 0));
        assert_eq!(unread.iter().filter(|unread| unread.is_hung_up()).count(), 1, "the first one");
        drop(unread);
        scene.until("the others have gone", |scene| scene.daemon.clients() == 1);
        let mut answer = Vec::new();
        scene.until("it is told all", |_| {
            answer.extend(root.read());
            root.is_hung_up()
        });
        answer.extend(root.read());
        String::from_utf8(answer).expect("UTF-8").parse::<Snapshot>().expect("counters");
        assert_eq!(scene.daemon.clients(), 0);
    }
}

#[test]
fn who_takes_over_knows_who_is_the_oldest_and_who_was_silent_for_the_longest() {
    let mut scene = Scene::with_room(Flavour::linux(), NEVER, Some(6));
    let mut clients = Vec::new();
    for n in 0..6 {
        scene.kernel.run_until(SECOND * (n + 1));
        clients.extend(scene.linger(1, &Setup::default()));
    }
    // The first one to come was not the last one to say something.
    let senders = [(); 60].map(|()| scene.sender());
    scene.until("they are let in", |scene| scene.figure("senders") == 60);
    let (_others, held) = scene.connections(2, &Setup::default());
    for (sender, held) in [(&senders[0], &held[..1]), (&senders[7], &held[1..])] {
        send(sender, held);
        scene.until("it is read", |_| sender.queued() == 0);
    }
    drop(held);
    // It has room for fewer senders, and for all who linger.
    scene.is_taken_over(&Wish { limit: 100, ..scene.wish.clone() });
    assert_eq!((scene.figure("lingering"), scene.figure("evicted")), (6, 2), "{}", scene.daemon.snapshot());
    let is_there: Vec<_> = clients.iter().map(|client| client.facts().parted.is_none()).collect();
    assert_eq!(is_there, [false, false, true, true, true, true]);
    let left: Vec<_> = (0..60).filter(|&n| !senders[n].is_hung_up()).collect();
    let most = scene.figure("senders") as usize;
    assert!(most < 30 && left.len() == most, "{left:?}");
    assert!(left[0] == 0 && left[1] == 7 && left[2..].iter().all(|&n| n > 60 - most), "{left:?}");
    let sender = scene.sender();
    let (_late, held) = scene.connections(1, &Setup::default());
    send(&sender, &held);
    scene.until("one more is handed over", |scene| scene.figure("handed_over") == 9);
    assert!(clients[2].facts().parted.is_some(), "of those that were there it is the oldest");
}

#[test]
fn a_sender_that_cannot_be_read_while_it_is_taken_over_is_read_by_the_next_one() {
    for flavour in flavours() {
        let mut scene = Scene::new(flavour, NEVER);
        let sender = scene.sender();
        scene.until("it is let in", |scene| scene.figure("senders") == 1);
        let end = short_of_memory(&scene, SECOND / 2);
        let (_client, held) = scene.connections(1, &Setup::default());
        send(&sender, &held);
        scene.daemon.turn().expect("a backend that can wait"); // and leaves it alone for a second
        scene.kernel.run_until(end);
        scene.is_taken_over(&scene.wish.clone());
        scene.until("it is read", |scene| scene.figure("lingering") == 1);
        assert!(scene.kernel.now() < end + SECOND / 2, "the next one has memory");
    }
}

#[test]
fn one_that_stops_has_ended_in_time_whatever_a_successor_does() {
    for (n, flavour) in [0, 1, 2].into_iter().flat_map(|n| flavours().map(|flavour| (n, flavour))) {
        let mut scene = Scene::with(flavour, NEVER, None, SECOND * 2);
        scene.linger(100, &Setup::default());
        let (stop, start) = (scene.raise.stop.clone(), scene.kernel.now());
        stop.raise();
        scene.until("it stops", |scene| scene.daemon.is_stopping());
        let hangs = Wish { manner: Manner::Hangs(n), ..scene.wish.clone() };
        let mut all = vec![scene.successor(&hangs)];
        while !scene.daemon.is_done() {
            scene.daemon.turn().expect("a backend that can wait");
            all.push(scene.successor(&hangs));
        }
        assert!(scene.kernel.now() - start < SECOND * 2, "{n}: {:?}", scene.kernel.now() - start);
        scene.assert_ended("stopped", 100);
    }
}

#[test]
fn where_few_may_be_in_flight_the_others_come_when_those_have_arrived() {
    let mut scene = Scene::new(Flavour { in_flight: 150, ..Flavour::linux() }, NEVER);
    for _ in 0..10 {
        let (_clients, held) = scene.connections(100, &Setup::default());
        let sender = scene.sender();
        send(&sender, &held);
        scene.until("it is read", |_| sender.queued() == 0);
    }
    scene.is_taken_over(&Wish { pace: SECOND / 100, ..scene.wish.clone() });
    assert_eq!(scene.figure("lingering"), 1_000);
}

#[test]
fn a_stranger_is_hung_up_on_and_nobody_waits_for_what_it_has_sent() {
    for flavour in flavours() {
        let mut scene = Scene::new(flavour, [HOUR; 3]);
        let stranger = scene.kernel.connect(scene.door, STRANGER).expect("room at the door");
        let (theirs, held) = scene.connections(1, &Setup::default());
        send(&stranger, &[held, vec![scene.kernel.slow("a file", 10 * SECOND)]].concat());
        let (sender, (ours, held)) = (scene.sender(), scene.connections(1, &Setup::default()));
        send(&sender, &held);
        scene.until("the other one's connection lingers", |scene| scene.figure("lingering") == 1);
        assert!(scene.kernel.now() < SECOND, "it had to wait until {:?}", scene.kernel.now());
        assert_eq!((scene.figure("refused"), scene.figure("senders")), (1, 1));
        let answered = scene.asks_at(SECOND);
        scene.until("it answers", |_| answered.get().is_some());
        scene.kernel.run_until(60 * SECOND);
        assert!(stranger.is_hung_up());
        assert_eq!(theirs[0].facts().received, None);
        assert!(theirs[0].facts().closed.is_some(), "the copy that was queued is closed");
        drop(ours);
        assert_eq!((scene.figure("handed_over"), scene.figure("rejected")), (1, 0));
    }
}

#[test]
fn strangers_with_what_is_slow_to_close_take_no_more_room_than_a_message() {
    let mut scene = Scene::new(Flavour::linux(), [HOUR; 3]);
    let most = scene.process.open_descriptors() + MAX_DESCRIPTORS + 2;
    let mut strangers = Vec::new();
    while scene.kernel.now() < 20 * SECOND {
        while let Ok(stranger) = scene.kernel.connect(scene.door, STRANGER) {
            stranger.send(b"L", &[&scene.kernel.slow("a file", HOUR)]).expect("room in the queue");
            strangers.push(stranger);
        }
        scene.daemon.turn().expect("a backend that can wait");
        assert!(scene.process.open_descriptors() <= most, "{}", scene.process.open_descriptors());
    }
    assert_eq!(scene.figure("refused"), MAX_DESCRIPTORS as u64 + 1);
    assert!(strangers.len() > MAX_DESCRIPTORS + 1, "others wait");
}

#[test]
fn of_those_who_wait_at_a_stop_strangers_are_still_refused() {
    for flavour in flavours() {
        let mut scene = Scene::new(flavour, [HOUR; 3]);
        let (theirs, held) = scene.connections(2, &Setup::default());
        let stranger = scene.kernel.connect(scene.door, STRANGER).expect("room at the door");
        send(&stranger, &held[..1]);
        let sender = scene.sender();
        send(&sender, &held[1..]);
        drop(held);
        scene.raise.stop.raise();
        scene.until("it has stopped", |scene| scene.daemon.is_stopping());
        assert_eq!((scene.figure("refused"), scene.figure("handed_over")), (1, 1));
        assert!(theirs[0].facts().received.is_none() && theirs[1].facts().received.is_some());
    }
}

/// Has nobody let in, read or waited for, for `time` from now on; until when that is.
fn short_of_everything(scene: &Scene, time: Duration) -> Duration {
    let everything = Faults { accept: 1.0, memory: 1.0, add: 1.0, rearm: 1.0, ..Faults::default() };
    scene.kernel.set_faults(everything);
    let end = scene.kernel.now() + time;
    scene.kernel.at(end, |kernel| kernel.set_faults(Faults::default()));
    end
}

#[test]
fn who_asks_where_no_descriptor_is_left_is_answered_at_the_cost_of_one_connection() {
    for flavour in flavours() {
        let mut scene = Scene::new(flavour, NEVER);
        let clients = scene.linger(10, &Setup::default());
        scene.process.set_limit(scene.process.open_descriptors());
        for n in 1..=3 {
            let asked = scene.kernel.now() + SECOND * 60;
            let answered = scene.asks_at(asked);
            scene.until("an answer", |_| answered.get().is_some());
            assert_within_a_second("an answer", asked, &answered);
            assert_eq!(scene.figure("evicted"), 1, "there is one free since then, in question {n}");
        }
        assert_eq!(clients.iter().filter(|client| client.facts().parted.is_some()).count(), 1);
    }
}

#[test]
fn where_others_take_what_was_set_free_one_a_second_is_evicted_and_only_while_somebody_asks() {
    for flavour in flavours() {
        let mut scene = Scene::new(Flavour { cost: CALL, ..flavour }, NEVER);
        scene.linger(100, &Setup::default());
        let sender = scene.sender();
        scene.until("it is let in", |scene| scene.figure("senders") == 1);
        let start = scene.kernel.now();
        scene.kernel.set_faults(Faults { accept: 1.0, ..Faults::default() });
        scene.kernel.at(start + SECOND * 70, |kernel| kernel.set_faults(Faults::default()));
        // So much is done that it is looked again and again whether anybody asks.
        let (clients, held) = scene.connections(10 * MAX_DESCRIPTORS, &Setup::default());
        held.chunks(MAX_DESCRIPTORS).for_each(|held| send(&sender, held));
        scene.until("they linger", |scene| scene.figure("lingering") == 100 + clients.len() as u64);
        assert_eq!(scene.figure("evicted"), 0);
        let answered = scene.asks_at(start + SECOND * 60);
        scene.until("an answer", |_| answered.get().is_some());
        // Now and then it is memory that is wanted, and no descriptor helps.
        assert!((1..=11).contains(&scene.figure("evicted")), "{}", scene.daemon.snapshot());
    }
}

#[test]
fn a_kernel_without_anything_for_a_while_costs_nobody_a_connection_and_the_processor_nothing() {
    for flavour in flavours() {
        for stops in [false, true] {
            // Those of which the kernel tells nothing any more are looked at now and then.
            let mut scene = Scene::new(Flavour { cost: CALL, ..flavour.clone() }, [HOUR, AGES, AGES]);
            let mut clients = scene.linger(10, &Setup::default());
            let known = scene.sender();
            scene.until("it is let in", |scene| scene.figure("senders") == 1);
            let before = scene.kernel.count(lingerd_platform::fake::Call::Wait);
            let end = short_of_everything(&scene, SECOND * 10);
            let unknown = scene.sender();
            for sender in [&known, &unknown] {
                let (more, held) = scene.connections(10, &Setup::default());
                send(sender, &held);
                clients.extend(more);
            }
            clients[0].send(10);
            if stops {
                scene.raise.stop.raise();
            }
            let answered = scene.asks_at(scene.kernel.now() + SECOND * 5);
            scene.until("that is over", |scene| scene.kernel.now() >= end);
            let waits = scene.kernel.count(lingerd_platform::fake::Call::Wait) - before;
            assert!(waits < 200, "{waits} turns in 10 s: stops {stops}, {flavour:?}");
            scene.until("all are taken", |scene| scene.figure("handed_over") == clients.len() as u64);
            scene.until("an answer", |_| answered.get().is_some());
            // Who asked meanwhile may have cost some, one a second.
            let evicted = scene.figure("evicted");
            assert!(evicted <= 6, "{}", scene.daemon.snapshot());
            clients.iter().for_each(Client::close);
            drop((known, unknown));
            if !stops {
                scene.raise.stop.raise();
            }
            while !scene.daemon.is_done() {
                scene.daemon.turn().expect("a backend that can wait");
            }
            scene.assert_ended("closed", clients.len() - evicted as usize);
            assert_eq!((scene.figure("rejected"), scene.figure("protocol_errors")), (0, 0));
        }
    }
}

/// What is said of a connection that is parked there for so long: `K`, or `H`.
fn ticket(kind: u8, name: &str, patience: Duration) -> [u8; HEAD] {
    let mut ticket = [0; HEAD];
    (ticket[0], ticket[1]) = (kind, name.len() as u8);
    let millis = u32::try_from(patience.as_millis()).expect("less than it can be");
    ticket[4..8].copy_from_slice(&millis.to_be_bytes());
    ticket[8..8 + name.len()].copy_from_slice(name.as_bytes());
    ticket
}

/// Connections that were brought back, the first one first.
type Back = Rc<RefCell<Vec<Held>>>;

/// Has workers take at once whatever comes there.
fn take_all(way: &WayBack, back: &Back) {
    while let Some(link) = way.accept() {
        take(link, back.clone());
    }
    let (next, back) = (way.clone(), back.clone());
    way.at_call(move |_| take_all(&next, &back));
}

fn take(link: Caller, back: Back) {
    let (said, held) = link.take();
    if said.len() == HEAD {
        if link.send(b"A", &[]).is_ok() {
            back.borrow_mut().extend(held);
        } // else it was hung up on, and has none
        return;
    }
    assert!(said.is_empty() && held.is_empty(), "half a message");
    if !link.is_hung_up() {
        let told = link.clone();
        link.at_word(move |_| take(told, back));
    }
}

impl Scene {
    /// Has so many connections parked until their clients speak, in no time at all, and waits until they are.
    fn park(&mut self, name: &str, number: usize, patience: Duration) -> Vec<Client> {
        let (sender, before) = (self.spooler(), self.figure("handed_over"));
        let mut cost = Duration::ZERO;
        self.kernel.adapt(|flavour| std::mem::swap(&mut flavour.cost, &mut cost));
        let (clients, held) = self.connections(number, &Setup { response: 0, ..Setup::default() });
        for some in held.chunks(200) {
            for held in some {
                sender.send(&ticket(b'K', name, patience), &[held]).expect("room in the queue");
            }
            self.until("they are read", |_| sender.queued() == 0);
        }
        drop(held);
        let told = sender.read();
        assert_eq!(told.iter().filter(|&&byte| byte == b'K').count(), number);
        drop(sender);
        self.until("their sender has gone", |scene| scene.figure("senders") == 0);
        assert_eq!(self.figure("handed_over"), before + number as u64);
        self.kernel.adapt(|flavour| flavour.cost = cost);
        clients
    }
}

#[test]
fn many_who_speak_at_once_keep_nobody_waiting_who_asks_or_says_stop_and_all_go_back() {
    const PARKED: usize = 40_000;
    for flavour in flavours() {
        let mut scene = Scene::new(Flavour { cost: SLOW, ..flavour }, NEVER);
        let (way, back) = (scene.kernel.way_back("apache", 511), Back::default());
        take_all(&way, &back);
        let clients = scene.park("apache", PARKED, HOUR);
        let start = scene.kernel.now() + SECOND;
        scene.kernel.at(start, move |_| clients.iter().for_each(|client| client.say(b"G")));
        let millis = Duration::from_millis;
        let asked = [1, 200, 400].map(|after| start + millis(after));
        let answers = asked.map(|when| scene.asks_at(when));
        let obeyed = scene.stops_at(start + millis(300));
        scene.until("the end", |scene| scene.daemon.is_done());
        for (when, came) in asked.iter().zip(&answers) {
            assert_within_a_second("an answer", *when, came);
        }
        assert_within_a_second("the stop", start + millis(300), &obeyed);
        scene.assert_ended("returned", PARKED);
        assert_eq!(back.borrow().len(), PARKED);
    }
}

#[test]
fn many_who_are_silent_linger_at_the_stop_and_keep_nobody_waiting_who_asks() {
    const PARKED: usize = 40_000;
    for flavour in flavours() {
        let mut scene = Scene::new(Flavour { cost: SLOW, ..flavour }, NEVER);
        let _way = scene.kernel.way_back("apache", 511);
        let clients = scene.park("apache", PARKED, HOUR);
        let stop = scene.kernel.now() + SECOND;
        let obeyed = scene.stops_at(stop);
        let asked = [10, 200].map(|after| stop + Duration::from_millis(after));
        let answers = asked.map(|when| scene.asks_at(when));
        scene.until("all linger", |scene| scene.figure("lingering") == PARKED as u64);
        for (when, came) in asked.iter().zip(&answers) {
            assert_within_a_second("an answer", *when, came);
        }
        assert_within_a_second("the stop", stop, &obeyed);
        assert!(clients.iter().all(|client| client.facts().shut_down.is_some()));
        clients.iter().for_each(Client::close);
        scene.until("the end", |scene| scene.daemon.is_done());
        scene.assert_ended("closed", PARKED);
    }
}

#[test]
fn whose_server_is_away_for_less_than_ten_seconds_goes_back_and_whose_for_more_lingers() {
    for flavour in flavours() {
        for (away, goes_back) in [(SECOND * 9, true), (SECOND * 11, false)] {
            let mut scene = Scene::new(flavour.clone(), NEVER);
            let way = scene.kernel.way_back("apache", 511);
            let silent = scene.park("apache", 10, HOUR);
            let speaks = scene.park("apache", 10, HOUR);
            way.close();
            speaks.iter().for_each(|client| client.say(b"G"));
            let (waits, start) = (scene.kernel.count(fake::Call::Wait), scene.kernel.now());
            let back = Back::default();
            let took = back.clone();
            scene.kernel.after(away, move |kernel| take_all(&kernel.way_back("apache", 511), &took));
            scene.until("it is back", |scene| scene.kernel.now() > start + SECOND * 12);
            assert!(scene.kernel.count(fake::Call::Wait) - waits < 200, "it is looked for now and then");
            let most = if goes_back { 10 } else { 0 };
            assert_eq!(back.borrow().len(), most, "{:?}", scene.daemon.snapshot());
            let figures = ["returned", "parked", "abandoned", "lingering"].map(|name| scene.figure(name));
            assert_eq!(figures, if goes_back { [10, 10, 0, 0] } else { [0, 0, 20, 20] });
            assert!(silent.iter().all(|client| client.facts().shut_down.is_some() != goes_back));
        }
    }
}

#[test]
fn what_waits_for_hours_costs_nothing_but_to_ask_now_and_then_whether_its_server_is_there() {
    for flavour in flavours() {
        let mut scene = Scene::new(flavour, NEVER);
        let (way, back) = (scene.kernel.way_back("apache", 511), Back::default());
        take_all(&way, &back);
        let clients = scene.park("apache", 10_000, HOUR * 10);
        let count =
            |scene: &Scene| [fake::Call::Wait, fake::Call::CallBack].map(|call| scene.kernel.count(call));
        let (before, start) = (count(&scene), scene.kernel.now());
        scene.until("an hour is over", |scene| scene.kernel.now() > start + HOUR);
        for (after, before) in count(&scene).into_iter().zip(before) {
            assert!((600..2_000).contains(&(after - before)), "{after}, and {before} before");
        }
        clients[7].say(b"G");
        scene.until("it goes back", |scene| scene.figure("returned") == 1);
        assert!(scene.kernel.now() < start + HOUR + SECOND * 6);
    }
}

#[test]
fn where_no_worker_accepts_no_more_than_a_few_are_on_their_way_and_all_go_back_in_their_order() {
    for flavour in flavours() {
        let mut scene = Scene::new(flavour, NEVER);
        for (n, backlog) in [20, 511].into_iter().enumerate() {
            let name = ["few", "many"][n];
            let way = scene.kernel.way_back(name, backlog);
            let clients = scene.park(name, 500, HOUR * 10);
            for client in &clients {
                client.say(b"G");
                let so_far = scene.figure("returning");
                scene.until("it is heard", |scene| scene.figure("returning") > so_far);
            }
            let (waits, start) = (scene.kernel.count(fake::Call::Wait), scene.kernel.now());
            let (back, waiting) = (Back::default(), Rc::new(Cell::new(0)));
            let (took, waited) = (back.clone(), waiting.clone());
            scene.kernel.after(SECOND * 60, move |_| {
                waited.set(way.waiting());
                take_all(&way, &took);
            });
            scene.until("a minute is over", |scene| scene.kernel.now() >= start + SECOND * 60);
            assert!(scene.kernel.count(fake::Call::Wait) - waits < 1_000, "that is waited for");
            assert!((1..=64).contains(&waiting.get()), "{waiting:?} are on their way");
            scene.until("all are back", |scene| scene.figure("returning") == 0);
            let addresses: Vec<_> = back.borrow().iter().filter_map(Held::client).collect();
            assert!(addresses.iter().eq(clients.iter().map(Client::address).collect::<Vec<_>>().iter()));
        }
    }
}

#[test]
fn whose_workers_take_none_for_five_minutes_linger_and_none_of_them_is_taken_after_that() {
    for flavour in flavours() {
        for (hangs, backlog) in [(SECOND * 290, 511), (SECOND * 310, 511), (SECOND * 310, 20)] {
            let mut scene = Scene::new(flavour.clone(), NEVER);
            let way = scene.kernel.way_back("apache", backlog);
            let silent = scene.park("apache", 10, HOUR);
            let speaks = scene.park("apache", 500, HOUR);
            speaks.iter().for_each(|client| client.say(b"G"));
            let (waits, start) = (scene.kernel.count(fake::Call::Wait), scene.kernel.now());
            let back = Back::default();
            let took = back.clone();
            scene.kernel.after(hangs, move |_| take_all(&way, &took));
            let goes_back = hangs < SECOND * 300;
            scene.until("it is over", |scene| {
                scene.kernel.now() >= start + hangs && scene.figure("returning") == 0
            });
            assert!(scene.kernel.count(fake::Call::Wait) - waits < 5_000, "that is waited for");
            assert_eq!(back.borrow().len(), if goes_back { 500 } else { 0 });
            let figures = ["parked", "returning", "abandoned", "lingering"].map(|name| scene.figure(name));
            assert_eq!(figures, if goes_back { [10, 0, 0, 0] } else { [0, 0, 510, 510] });
            assert!(silent.iter().all(|client| client.facts().shut_down.is_some() != goes_back));
            // And the server is one as any other again.
            let taken = back.borrow().len();
            let again = scene.park("apache", 1, HOUR);
            again[0].say(b"G");
            scene.until("it goes back", |_| back.borrow().len() > taken);
        }
    }
}

#[test]
fn a_server_that_takes_one_now_and_then_is_given_time_for_the_others() {
    for flavour in flavours() {
        let mut scene = Scene::new(flavour, NEVER);
        let way = scene.kernel.way_back("apache", 511);
        let clients = scene.park("apache", 10, HOUR);
        clients.iter().for_each(|client| client.say(b"G"));
        let back = Back::default();
        for n in 1..=10 {
            let (way, back) = (way.clone(), back.clone());
            scene.kernel.after(SECOND * 290 * n, move |_| {
                take(way.accept().expect("there is one more"), back);
            });
        }
        scene.until("all are taken", |scene| scene.figure("parked") == 0);
        assert_eq!(back.borrow().len(), 10);
        assert_eq!(scene.figure("abandoned"), 0);
    }
}

#[test]
fn for_a_server_that_was_given_up_nothing_is_parked_until_it_is_found_and_who_parks_is_not_told_so() {
    for flavour in flavours() {
        let mut scene = Scene::new(flavour, NEVER);
        let silent = scene.park("apache", 5, HOUR);
        scene.until("they are given up", |scene| scene.figure("abandoned") == 5);
        assert!(silent.iter().all(|client| client.facts().shut_down.is_some()));
        // The next ones are not kept waiting for ten seconds, and their sender may keep its own soon.
        let sender = scene.spooler();
        let (clients, held) = scene.connections(3, &Setup { response: 0, ..Setup::default() });
        let start = scene.kernel.now();
        held.into_iter().for_each(|held| sender.send(&ticket(b'K', "apache", HOUR), &[&held]).unwrap());
        scene.until("they linger", |scene| scene.figure("abandoned") == 8);
        assert_within_a_second("that", start, &Rc::new(Cell::new(Some(scene.kernel.now()))));
        assert!(clients.iter().all(|client| client.facts().shut_down.is_some()));
        assert!(!sender.read().contains(&b'K'), "it is told that they are parked");
        // Nor later, while nobody is there; and when somebody is, though nothing else is parked that has it found.
        let there = scene.kernel.now() + 60 * SECOND;
        let (name, back) = ("apache", Back::default());
        let opened = back.clone();
        scene.kernel.at(there, move |kernel| take_all(&kernel.way_back(name, 511), &opened));
        scene.until("who has parked is told", |_| sender.unread() > 0);
        let told = scene.kernel.now();
        assert!(there <= told && told <= there + 11 * SECOND, "told at {told:?}, there since {there:?}");
        assert_eq!(sender.read().iter().filter(|&&byte| byte == b'K').count(), 3);
        drop(sender);
        let clients = scene.park("apache", 3, HOUR); // who is told
        clients.iter().for_each(|client| client.say(b"G"));
        scene.until("they go back", |_| back.borrow().len() == 3);
    }
}

#[test]
fn workers_who_take_note_of_nothing_are_asked_once_and_given_up_when_somebody_waits() {
    for flavour in flavours() {
        let mut scene = Scene::new(flavour, NEVER);
        // There is room for one that nobody has accepted.
        let way = scene.kernel.way_back("apache", 0);
        let clients = scene.park("apache", 10, HOUR * 10);
        let start = scene.kernel.now();
        scene.until("an hour is over", |scene| scene.kernel.now() > start + HOUR);
        assert_eq!((way.waiting(), scene.figure("parked"), scene.figure("abandoned")), (1, 10, 0));
        clients[0].say(b"G");
        scene.until("that is over", |scene| scene.figure("abandoned") == 10);
        let taken = scene.kernel.now() - start - HOUR;
        assert!((SECOND * 290..SECOND * 370).contains(&taken), "{taken:?}");
    }
}

#[test]
fn what_a_server_sends_back_and_is_slow_to_close_keeps_nobody_waiting() {
    let slow = |kernel: &Kernel| kernel.slow("a file", SECOND * 60);
    for flavour in flavours() {
        let mut scene = Scene::new(flavour, NEVER);
        let way = scene.kernel.way_back("apache", 511);
        let clients = scene.park("apache", 4, HOUR);
        // Who only asks whether it is there, or who offers one.
        let called = |scene: &mut Scene, offers: bool| loop {
            scene.until("somebody calls", |_| way.waiting() > 0);
            let caller = way.accept().expect("somebody waits");
            if caller.take().0.is_empty() != offers {
                return caller;
            }
        };
        for _ in 0..2 {
            let asked = called(&mut scene, false);
            asked.send(b"xy", &[&slow(&scene.kernel)]).expect("room in the queue");
        }
        // Its workers: one takes what it is offered and more is said, one says what nobody says, and goes or stays.
        for (n, (said, returned)) in [(b"A", 1), (b"A", 2), (b"B", 2)].into_iter().enumerate() {
            clients[n].say(b"G");
            let worker = called(&mut scene, true);
            worker.send(said, &[]).expect("room in the queue");
            worker.send(b"x", &[&slow(&scene.kernel)]).expect("room in the queue");
            let start = scene.kernel.now();
            scene.until("it is heard", |scene| scene.kernel.now() > start + SECOND / 16);
            assert_eq!(scene.figure("returned"), returned);
        }
        // The last ones that were parked for it go while it is asked.
        let _offered = called(&mut scene, true); // the one that was not taken
        assert_eq!(scene.figure("parked"), 2);
        scene.raise.stop.raise();
        clients.iter().for_each(Client::close);
        scene.until("the end", |scene| scene.daemon.is_done());
    }
}

#[test]
fn a_worker_that_has_the_end_wait_for_its_client_keeps_nobody_waiting() {
    for flavour in flavours() {
        let mut scene = Scene::new(flavour, NEVER);
        let way = scene.kernel.way_back("apache", 511);
        let sender = scene.spooler();
        // Who does not read what was written to it.
        let (client, held) =
            scene.kernel.connection(&Setup { response: 1 << 20, reads: false, ..Setup::default() });
        sender.send(&ticket(b'K', "apache", HOUR), &[&held]).expect("room in the queue");
        drop(held);
        scene.until("it is parked", |scene| scene.figure("parked") == 1);
        client.say(b"G");
        scene.until("it is offered", |_| way.waiting() > 0);
        let worker = way.accept().expect("one is offered");
        let (_, held) = worker.take();
        held.iter().for_each(|held| held.set_linger(Some(SECOND * 30)));
        worker.send(b"A", &[]).expect("room in the queue");
        drop(held);
        scene.until("it is taken", |scene| scene.figure("returned") == 1);
    }
}

#[test]
fn who_sends_what_is_slow_to_close_to_the_control_socket_keeps_nobody_waiting() {
    for flavour in flavours() {
        for said in [&b"?"[..], &[Order::Counters.byte()], &[Order::TakeOver.byte()]] {
            let mut scene = Scene::new(flavour.clone(), NEVER);
            let client = scene.kernel.connect(scene.control, ROOT).expect("room at the control socket");
            let slow = || scene.kernel.slow("a file", SECOND * 60);
            client.send(said, &[&slow()]).expect("room in the queue");
            client.send(b"!", &[&slow()]).expect("room in the queue");
            client.send(&[0; 100], &[]).expect("room in the queue");
            scene.until("it is heard", |scene| client.queued() < 3 && scene.daemon.clients() == 0);
            scene.raise.stop.raise();
            scene.until("the end", |scene| scene.daemon.is_done());
        }
    }
}
