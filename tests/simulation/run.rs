//! One run: a daemon in a world that a seed has chosen, from its start to its end.

use crate::crowd::Crowd;
use crate::model::Model;
use fastrand::Rng;
use lingerd::connections::capacity::Room;
use lingerd::daemon::{Daemon, Parts};
use lingerd::guard::Allowed;
use lingerd::rules::linger::Rules;
use lingerd::rules::time::Span;
use lingerd_platform::fake::{Fake, Faults, Flavour, Kernel, Process, Reports};
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
    /// When nobody comes any more, and the daemon is told to stop.
    pub end: Duration,
    /// When it is told once more, after that.
    pub again: Option<Duration>,
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
        Plan {
            rules: [idle, max, limit],
            flavour,
            faults,
            drain: Duration::from_millis(one_of(random, &[1, 10_000, 10_000, 100_000, 20_000_000])),
            limit: one_of(random, &[40, 100, 600, 3_000, 20_000]) as usize,
            wanted: random.bool().then(|| one_of(random, &[1, 3, 50, 1_000]) as usize),
            clients: one_of(random, &[50, 300, 300, 1_000, 3_000]) as usize,
            senders: one_of(random, &[1, 3, 10, 40]) as usize,
            honest: random.bool(),
            end: Duration::from_secs(one_of(random, &[60, 300, 1_200, 7_200])),
            again: random.bool().then(|| Duration::from_millis(random.u64(..20_000))),
        }
    }

    /// Whether everything that arrives is taken over: nobody is hung up on, and nothing is cut short
    /// for want of descriptors.
    pub fn takes_all(&self) -> bool {
        self.honest && self.faults.truncate == 0.0 && self.limit >= 600
    }

    /// Whether every connection that was sent must arrive: nor is any sender aborted before it comes in,
    /// and none can talk on while it is parted with.
    pub fn loses_nothing(&self) -> bool {
        let talks_on = !self.flavour.silences && !self.flavour.cost.is_zero();
        self.takes_all() && self.faults.aborted == 0.0 && !talks_on
    }

    /// When it is to end at once at the earliest: it was told again, or hardly any of its time was left.
    pub fn cut_off(&self) -> Duration {
        let most = self.drain.mul_f64(0.8).saturating_sub(Duration::from_secs(1) / 32); // two ticks
        self.end + self.again.map_or(most, |again| again.min(most))
    }

    /// How long something may have to be left for later: the kernel may have no room for it, again and
    /// again, or all of a few descriptors may be files that are being closed.
    pub fn patience(&self) -> Duration {
        let Faults { accept, rearm, add, memory, .. } = self.faults;
        let is_refused = [accept, rearm, add, memory].iter().any(|&often| often > 0.0);
        Duration::from_secs(match () {
            _ if self.limit < 600 && !self.honest => 3_600,
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
        let (control, control_address) = process.door(128);
        let parts = Parts {
            backend: process.backend(),
            clock: process.clock(),
            slow_close: process.slow_close(),
            signals,
            door,
            allowed: Allowed::by_mode(0, 0, 0o660),
            control,
            pid_file: None,
            chance: 1,
        };
        let [idle, max, limit] = plan.rules.map(Span::at_least);
        let room = Room::share(plan.limit as u64, process.open_descriptors(), plan.wanted).expect("room");
        let (rules, drain) = (Rules { idle, max, limit }, Span::at_least(plan.drain));
        let daemon = Daemon::new(parts, rules, drain, room).expect("a daemon");
        let crowd = Crowd::new(seed, [address, control_address], raisers);
        Stage { kernel, process, daemon, crowd }
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
    kernel.set_faults(plan.faults.clone());
    kernel.must_end_by(plan.end + plan.rules[2] * 3 + Duration::from_secs(3_600));
    let mut turns = 0;
    while !stage.daemon.is_done() {
        stage.daemon.turn().expect("a backend that can wait");
        turns += 1;
        model.after_turn(&stage, &plan);
    }
    let (simulated, hash) = (kernel.now(), kernel.hash());
    model.at_end(stage, &plan);
    let connections = model.connections();
    Played { seeds: 1, connections, turns, simulated, hash }
}
