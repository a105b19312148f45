// SPDX-License-Identifier: BSD-3-Clause

//! One run: a daemon in a world that a seed has chosen, from its start to its end.

use crate::crowd::Crowd;
use crate::model::Model;
use crate::successor::{Heiress, Manner, Successor, Wish};
use fastrand::Rng;
use lingerd::connections::capacity::Room;
use lingerd::daemon::{Daemon, End, Parts};
use lingerd::guard::Allowed;
use lingerd::rules::linger::Rules;
use lingerd::rules::time::Span;
use lingerd_platform::fake::{Address, Fake, Faults, Flavour, Kernel, Process, Reports};
use std::cell::RefCell;
use std::ops::Add;
use std::rc::Rc;
use std::time::Duration;

/// What was played.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Played {
    pub seeds: u64,
    pub connections: u64,
    pub turns: u64,
    pub simulated: Duration,
    /// Daemons that wanted to take over, and those that have.
    pub successors: u64,
    pub taken_over: u64,
    pub hash: u64,
}

impl Add for Played {
    type Output = Played;

    fn add(self, other: Played) -> Played {
        Played {
            seeds: self.seeds + other.seeds,
            connections: self.connections + other.connections,
            turns: self.turns + other.turns,
            simulated: self.simulated + other.simulated,
            successors: self.successors + other.successors,
            taken_over: self.taken_over + other.taken_over,
            hash: self.hash ^ other.hash,
        }
    }
}

/// What a seed has chosen.
#[derive(Clone, Debug)]
pub struct Plan {
    pub rules: [Duration; 3], // idle, max, limit
    pub flavour: Flavour,
    pub faults: Faults,
    /// -W
    pub drain: Duration,
    /// The descriptors that the daemon may have, and -n.
    pub limit: usize,
    pub wanted: Option<usize>,
    pub clients: usize,
    pub senders: usize,
    /// Whether no sender sends what it should not.
    pub honest: bool,
    /// Whether a service manager listens at the hand-off socket, too.
    pub shared: bool,
    /// Servers that park: how many may wait at its way back, and whether its workers die and are late. And how many
    /// connections each parks about.
    pub servers: Vec<(usize, bool)>,
    pub parked: usize,
    /// How many bytes may be still to be written.
    pub most_held: u64,
    /// When nobody comes any more, and the daemon is told to stop.
    pub end: Duration,
    /// When it is told once more, after that.
    pub again: Option<Duration>,
    /// When who wants to take over, and whether the daemon is told to stop just before.
    pub successors: Vec<(Duration, Wish, bool)>,
}

impl Plan {
    fn choose(random: &mut Rng) -> Plan {
        let one_of = |random: &mut Rng, choices: &[u64]| choices[random.usize(..choices.len())];
        let idle = Duration::from_millis(one_of(random, &[1, 100, 1_000, 5_000, 5_000, 30_000]));
        let limit = Duration::from_secs(one_of(random, &[1, 20, 60, 300, 300, 3_600]));
        let max = if random.bool() { limit } else { Duration::from_secs(one_of(random, &[1, 30, 60])) };
        let mut flavour = [Flavour::linux(), Flavour::linux(), Flavour::bsd(), Flavour::solaris()]
            [random.usize(..4)]
        .clone();
        if random.u8(..4) == 0 {
            flavour.reports = [Reports::Always, Reports::Once, Reports::Refusals][random.usize(..3)];
        }
        flavour.batch = one_of(random, &[1, 16, 256, 256, 100_000]) as usize;
        flavour.cost = Duration::from_nanos(one_of(random, &[0, 0, 1_000, 20_000]));
        flavour.in_flight = one_of(random, &[300, u64::MAX, u64::MAX]) as usize;
        let mut faults = match random.u8(..4) {
            0 => Faults::default(),
            1 => Faults { leap: 0.0, back: 0.0, aborted: 0.0, ..Faults::some() },
            2 => Faults::some(),
            _ => Faults { add: 0.2, rearm: 0.2, accept: 0.2, early: 0.3, memory: 0.1, ..Faults::some() },
        };
        if random.bool() {
            faults.truncate = 0.0;
        }
        let mut plan = Plan {
            rules: [idle, max, limit],
            flavour,
            faults,
            drain: Duration::from_millis(one_of(random, &[1, 10_000, 10_000, 100_000, 20_000_000])),
            limit: one_of(random, &[40, 100, 600, 3_000, 20_000]) as usize,
            wanted: random.bool().then(|| one_of(random, &[1, 3, 50, 1_000]) as usize),
            clients: one_of(random, &[50, 300, 300, 1_000, 3_000]) as usize,
            senders: one_of(random, &[1, 3, 10, 40]) as usize,
            honest: random.bool(),
            shared: false,
            servers: Vec::new(),
            parked: 0,
            most_held: u64::MAX,
            end: Duration::from_secs(one_of(random, &[60, 300, 1_200, 7_200])),
            again: random.bool().then(|| Duration::from_millis(random.u64(..20_000))),
            successors: Vec::new(),
        };
        for _ in 0..random.u8(..4) {
            // Now and then two at once, or while it stops.
            let when = match (random.u8(..4), plan.successors.last()) {
                (0, Some(&(when, _, _))) => when,
                (1, _) => plan.end + plan.drain.min(Duration::from_secs(3)).mul_f64(random.f64()),
                _ => plan.end.mul_f64(random.f64()),
            };
            let successor = (when, plan.successor(random), random.u8(..6) == 0);
            plan.successors.push(successor);
        }
        plan.shared = random.u8(..4) == 0;
        plan.most_held = one_of(random, &[1_000_000, 100_000_000, u64::MAX]);
        for _ in 0..random.u8(..4) {
            plan.servers.push((one_of(random, &[1, 30, 511, 511]) as usize, random.bool()));
        }
        plan.parked = one_of(random, &[20, 100, 100, 500]) as usize;
        plan
    }

    fn successor(&self, random: &mut Rng) -> Wish {
        let manner = match random.u8(..20) {
            0 => Manner::Dies(random.u32(..4)),
            1 => Manner::DiesInTheEnd,
            2 => Manner::Hangs(random.u32(..4)),
            3 => {
                Manner::Babbles([b"what?".as_slice(), b"\0\0\0\x02\0\0\0\0no", &[255; 8]][random.usize(..3)])
            }
            4 => Manner::Errs,
            5 => Manner::Dawdles(Duration::from_millis(random.u64(4_990..10_000))),
            6 => Manner::Dawdles(Duration::from_millis(4_995) + Duration::from_micros(random.u64(..10_000))),
            _ => Manner::Takes,
        };
        Wish {
            manner,
            only_if_stopping: random.u8(..5) == 0,
            pace: Duration::from_millis([0, 0, 1, 100, 1_000][random.usize(..5)]),
            rules: self.rules,
            drain: self.drain,
            limit: if random.u8(..10) == 0 { 37 + random.usize(..self.limit) } else { self.limit },
            wanted: self.wanted,
            most_held: self.most_held,
            own_clock: random.bool(),
        }
    }

    /// The fewest descriptors that any of the daemons may have.
    pub fn least(&self) -> usize {
        self.successors.iter().map(|(_, wish, _)| wish.limit).fold(self.limit, usize::min)
    }

    /// Whether files that are being closed, or read for nobody, may have most of the descriptors for a while.
    pub fn is_small(&self) -> bool {
        self.least() < 600
    }

    /// Whether everything that arrives is taken over: nobody is hung up on, and nothing is cut short
    /// for want of descriptors.
    pub fn takes_all(&self) -> bool {
        self.honest && self.faults.truncate == 0.0 && !self.is_small()
    }

    /// Whether every connection that was sent must arrive: nor is any sender aborted before it comes in,
    /// and none can talk on while it is parted with.
    pub fn loses_nothing(&self) -> bool {
        let talks_on = !self.flavour.silences && !self.flavour.cost.is_zero();
        self.takes_all() && self.faults.aborted == 0.0 && !talks_on && self.hangs_up()
    }

    /// Whether who is parted with notices: none who cannot be silenced talks on to what a successor that hangs has of him.
    pub fn hangs_up(&self) -> bool {
        let hangs = |wish: &Wish| matches!(wish.manner, Manner::Hangs(_) | Manner::Dawdles(_));
        self.flavour.silences || !self.successors.iter().any(|(_, wish, _)| hangs(wish))
    }

    /// When it is to end at once at the earliest, if it was told to stop then, and once more perhaps: it was
    /// told again, or hardly any of its time was left.
    pub fn cut_off(&self, (told, again): (Duration, Option<Duration>)) -> Duration {
        let most = self.drain.mul_f64(0.8).saturating_sub(Duration::from_secs(1) / 32); // two ticks
        again.map_or(told + most, |again| again.min(told + most))
    }

    /// How long something may have to be left for later: the kernel may have no room for it, again and
    /// again, or all of a few descriptors may be files that are being closed.
    pub fn patience(&self) -> Duration {
        let Faults { accept, rearm, add, memory, .. } = self.faults;
        let is_refused = [accept, rearm, add, memory].iter().any(|&often| often > 0.0);
        Duration::from_secs(match () {
            _ if self.is_small() => 3_600,
            _ if is_refused => 60,
            _ => 1,
        })
    }
}

/// A daemon and the world it is in.
pub struct Stage {
    pub kernel: Kernel,
    pub process: Process,
    pub daemon: Daemon<Fake>,
    pub crowd: Rc<Crowd>,
    control: Address,
    /// All who want to take over, or have.
    successors: Rc<RefCell<Vec<Rc<Successor>>>>,
}

impl Stage {
    /// Puts a daemon into a world.
    pub fn new(seed: u64, plan: &Plan) -> Stage {
        let kernel = Kernel::new(seed, plan.flavour.clone());
        // Now and then the count of time starts over in the middle of the run.
        let wrap = Duration::from_secs((1 << 32) / 64);
        kernel.set_clock([wrap / 3, wrap - plan.end / 2, 3 * wrap][(seed % 3) as usize]);
        let process = kernel.process(plan.limit);
        let (signals, raisers) = process.signals();
        let (door, address) = process.door(128);
        let (spool_door, spool_address) = process.door(128);
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
            most_held: plan.most_held,
            door_is_shared: plan.shared,
            allowed: Allowed::by_mode(0, 0, 0o660),
            control,
            pid_file: None,
            chance: 1,
            note: Box::new(|_| {}),
            tell: Box::new(|_| true),
        };
        let [idle, max, limit] = plan.rules.map(Span::at_least);
        let room = Room::share(plan.limit as u64, process.open_descriptors(), plan.wanted).expect("room");
        let (rules, drain) = (Rules { idle, max, limit }, Span::at_least(plan.drain));
        let daemon = Daemon::new(parts, rules, drain, room).expect("a daemon");
        let crowd = Crowd::new(seed, [address, spool_address, control_address], raisers);
        Stage { kernel, process, daemon, crowd, control: control_address, successors: Rc::default() }
    }

    /// Has those come who want to take over.
    fn successors_come(&self, plan: &Plan) {
        for (when, wish, stops) in plan.successors.clone() {
            let (all, crowd, control) = (Rc::downgrade(&self.successors), self.crowd.clone(), self.control);
            self.kernel.at(when, move |kernel| {
                if stops {
                    crowd.stops(kernel);
                }
                if let (Some(all), Some(it)) = (all.upgrade(), Successor::comes(kernel, control, wish)) {
                    all.borrow_mut().push(it);
                }
            });
        }
    }

    /// From when to when each of those who want to take over has waited for an answer.
    pub fn successors_waited(&self) -> Vec<(Duration, Duration)> {
        let now = self.kernel.now();
        self.successors.borrow().iter().filter_map(|successor| successor.waited(now)).collect()
    }

    /// The one that has everything, once the daemon has been told so. Nobody else believes that of himself.
    fn successor(&self) -> Option<Rc<Successor>> {
        let all = self.successors.borrow().clone();
        let mut owners: Vec<_> = all.into_iter().filter(|it| it.owns_it()).collect();
        assert_eq!(owners.len(), usize::from(self.daemon.is_succeeded()), "that is whose all is");
        owners.pop()
    }

    /// Puts the one that has taken over in the place of the daemon, which ends.
    fn goes_on_with(&mut self, successor: &Successor, plan: &Plan) {
        assert_eq!(self.daemon.run().expect("no wait"), End::Succeeded);
        assert!(successor.may_take_over_from(&self.daemon), "that one serves");
        self.crowd.has_another(&self.kernel, successor.raise());
        let ends_first = self.kernel.chance(2) == 0;
        if ends_first {
            self.process.kill();
        }
        let Heiress { daemon, process, doors } = successor.takes_over();
        if !ends_first {
            self.process.kill();
        }
        (self.daemon, self.process) = (daemon, process); // where it has ended, a drop does nothing
        Crowd::goes_on(&self.crowd, &self.kernel, doors, self.daemon.is_stopping(), plan);
    }
}

/// Plays the run that `seed` stands for, and checks it.
pub fn play(seed: u64) -> Played {
    let mut random = Rng::with_seed(seed);
    let plan = Plan::choose(&mut random);
    let mut stage = Stage::new(seed, &plan);
    let kernel = stage.kernel.clone();
    let mut model = Model::new(&stage);
    Crowd::comes(&stage.crowd, &kernel, &plan);
    stage.successors_come(&plan);
    kernel.set_faults(plan.faults.clone());
    // A disk that takes minutes for each piece takes hours for a response.
    kernel.must_end_by(plan.end + plan.drain.max(plan.rules[2] * 3) + Duration::from_secs(3_600));
    let (mut turns, mut taken_over) = (0, 0);
    while !stage.daemon.is_done() {
        stage.daemon.turn().expect("a backend that can wait");
        turns += 1;
        model.after_turn(&stage, &plan);
        if let Some(successor) = stage.successor() {
            stage.goes_on_with(&successor, &plan);
            model.after_take_over(&stage, &plan);
            taken_over += 1;
        }
    }
    stage.successors.take().iter().for_each(|successor| successor.dies());
    let (simulated, hash) = (kernel.now(), kernel.hash());
    model.at_end(stage, &plan);
    let connections = model.connections();
    let successors = plan.successors.len() as u64;
    Played { seeds: 1, connections, turns, simulated, successors, taken_over, hash }
}
