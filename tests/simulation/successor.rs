// SPDX-License-Identifier: BSD-3-Clause

//! Who wants to take over from the daemon: a process that is told everything in its own time, as
//! `lingerd -r` is, or that dies, hangs or says what it should not meanwhile.
//!
//! It is on the kernel's agenda, while the daemon waits for it in the middle of a turn. Must not know what
//! the daemon ought to do with it.

use lingerd::connections::capacity::Room;
use lingerd::daemon::{Daemon, Parts};
use lingerd::guard::Allowed;
use lingerd::rules::linger::Rules;
use lingerd::rules::time::Span;
use lingerd::service::control::Order;
use lingerd::upgrade::heir::{Estate, Heir, Progress};
use lingerd::upgrade::image::{self, Request, Role};
use lingerd_platform::fake::{
    Address, Backend, Caller, Door, Fake, Kernel, Process, Raiser, Received, Signal,
};
use lingerd_platform::peer::Peer;
use lingerd_platform::signals::Signals;
use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Duration;

const ROOT: Peer = Peer { uid: 0, groups: Vec::new(), all_groups: true, pid: Some(1) };

/// What it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Takes over.
    Takes,
    /// Dies when it has been told something so often.
    Dies(u32),
    /// Dies when it has everything and has not said so.
    DiesInTheEnd,
    /// Hears no more when it has been told something so often.
    Hangs(u32),
    /// Says that instead of what it wants.
    Babbles(&'static [u8]),
    /// Says something else when it has everything.
    Errs,
    /// Says only so much later that it has everything.
    Dawdles(Duration),
}

/// What it is.
#[derive(Clone, Debug)]
pub struct Wish {
    pub manner: Manner,
    /// Whether it wants to take over from one only that was told to stop.
    pub only_if_stopping: bool,
    /// How long it takes at most before it hears what it is told.
    pub pace: Duration,
    /// -t, -T, -D
    pub rules: [Duration; 3],
    /// -W
    pub drain: Duration,
    /// The descriptors that it may have, and -n.
    pub limit: usize,
    pub wanted: Option<usize>,
    /// How many bytes may be still to be written.
    pub most_held: u64,
    /// Whether its clock shows something else than that of the one before it.
    pub own_clock: bool,
}

/// A daemon that has everything at hand.
struct New {
    daemon: Daemon<Fake>,
    estate: Estate<Received>,
    /// Of its doors, those that are new.
    doors: [Option<Address>; 2],
}

/// How far it has come.
enum Fate {
    Listens,
    /// It has everything.
    Ready(Box<New>),
    /// And has said so.
    Owns(Box<New>),
    /// It was told that there is nothing to take over, has died, or is a daemon.
    Gone,
}

/// A daemon that has taken over.
pub struct Heiress {
    pub daemon: Daemon<Fake>,
    pub process: Process,
    /// Of its doors, those that are new.
    pub doors: [Option<Address>; 2],
}

/// See the module's head.
pub struct Successor {
    this: Weak<Successor>,
    process: Process,
    caller: Caller,
    wish: Wish,
    heir: RefCell<Heir<Received>>,
    told: Cell<u32>,
    fate: RefCell<Fate>,
    /// What it opened at its start.
    parts: Cell<Option<(Backend, Signals<Signal>, Room)>>,
    raise: Rc<Signals<Raiser>>,
    /// What it was told when it had everything.
    word: RefCell<Vec<u8>>,
    /// When it has said what it wants, and was told something for the first time.
    asked: Cell<Option<Duration>>,
    answered: Cell<Option<Duration>>,
}

impl Successor {
    /// One that comes to the control socket now. `None` when it does not get in.
    pub fn comes(kernel: &Kernel, control: Address, wish: Wish) -> Option<Rc<Successor>> {
        let process = kernel.process(wish.limit);
        let caller = kernel.connect(control, ROOT).ok()?;
        let (signals, raise) = process.signals();
        let backend = process.backend();
        let room = Room::share(wish.limit as u64, process.open_descriptors() + 5, wish.wanted).ok()?;
        let request = Request {
            version: "1".to_owned(),
            only_if_stopping: wish.only_if_stopping,
            spools: true,
            parks: true,
        };
        let request = image::frame(&request, 0);
        let say = |what: &[u8]| drop(caller.send(what, &[])); // who is hung up on finds that out
        say(&[Order::TakeOver.byte()]);
        let successor = Rc::new_cyclic(|this| Successor {
            this: this.clone(),
            process,
            caller: caller.clone(),
            heir: RefCell::default(),
            told: Cell::new(0),
            fate: RefCell::new(Fate::Listens),
            parts: Cell::new(Some((backend, signals, room))),
            raise: Rc::new(raise),
            word: RefCell::default(),
            asked: Cell::default(),
            answered: Cell::default(),
            wish,
        });
        match successor.wish.manner {
            Manner::Babbles(what) => say(what),
            Manner::Dies(0) => successor.dies(),
            Manner::Hangs(0) => return Some(successor),
            // In pieces, and one of them late.
            _ if kernel.chance(3) == 0 => {
                let (first, rest) = request.split_at(1 + kernel.chance(request.len() as u64 - 1) as usize);
                say(first);
                let (this, rest) = (successor.this.clone(), rest.to_vec());
                kernel.after(successor.delay(kernel), move |kernel| {
                    if let Some(successor) = this.upgrade() {
                        let _ = successor.caller.send(&rest, &[]);
                        successor.asked.set(Some(kernel.now()));
                    }
                });
            }
            _ => {
                say(&request);
                successor.asked.set(Some(kernel.now()));
            }
        }
        successor.listens();
        Some(successor)
    }

    fn delay(&self, kernel: &Kernel) -> Duration {
        Duration::from_nanos(kernel.chance(self.wish.pace.as_nanos() as u64 + 1))
    }

    /// Has `act` happen after a while, if it is still there then.
    fn later(&self, kernel: &Kernel, delay: Duration, act: impl FnOnce(&Successor, &Kernel) + 'static) {
        let this = self.this.clone();
        kernel.after(delay, move |kernel| {
            if let Some(successor) = this.upgrade().filter(|it| !it.is_gone()) {
                act(&successor, kernel);
            }
        });
    }

    fn listens(&self) {
        let this = self.this.clone();
        self.caller.at_word(move |kernel| {
            if let Some(successor) = this.upgrade() {
                successor.answered.set(successor.answered.get().or(Some(kernel.now())));
                successor.later(kernel, successor.delay(kernel), Self::hears);
            }
        });
    }

    fn hears(&self, kernel: &Kernel) {
        loop {
            let Ok(Some((bytes, descriptors))) = self.caller.hear(&self.process) else { return self.dies() };
            if bytes.is_empty() {
                return self.listens();
            }
            self.told.set(self.told.get() + 1);
            match self.wish.manner {
                Manner::Dies(times) if self.told.get() >= times => {
                    self.dies(); // what it has just been given, too
                    return drop(descriptors);
                }
                Manner::Hangs(times) if self.told.get() >= times => {
                    return descriptors.into_iter().for_each(|descriptor| self.keeps(descriptor));
                }
                _ => {}
            }
            let progress = self.heir.borrow_mut().feed(&bytes, descriptors);
            match progress.expect("an image") {
                Progress::Pending => {}
                Progress::Serving => {
                    assert!(self.wish.only_if_stopping, "who says so is taken over from");
                    return self.dies();
                }
                Progress::Complete(estate) => {
                    self.word.borrow_mut().extend(self.heir.borrow().last_word());
                    return self.starts(kernel, estate);
                }
            }
        }
    }

    /// Keeps what it will never use.
    fn keeps(&self, descriptor: Received) {
        let mut heir = self.heir.borrow_mut();
        let _ = heir.feed(&[], [descriptor]);
    }

    /// Makes a daemon of what it has, and says that it has everything.
    fn starts(&self, kernel: &Kernel, mut estate: Estate<Received>) {
        let Some((backend, signals, room)) = self.parts.take() else { return };
        let control = Door::of(estate.take(Role::Control).expect("a control socket"));
        let mut door_is_shared = estate.household.door_is_shared;
        let has_room = self.process.open_descriptors() + 3 <= self.wish.limit;
        let mut new_doors = [None; 2];
        let mut doors = Vec::new();
        for (role, new) in [Role::Door, Role::SpoolDoor].into_iter().zip(&mut new_doors) {
            doors.push(match estate.take(role) {
                Some(door) => Door::of(door),
                None if has_room => {
                    door_is_shared = false;
                    let (door, address) = self.process.door(128);
                    *new = Some(address);
                    door
                }
                None => {
                    self.dies();
                    return drop((backend, signals, control, doors, estate));
                }
            });
        }
        if !has_room {
            self.dies(); // for the reader
            return drop((backend, signals, control, doors, estate));
        }
        let spool_door = doors.pop();
        let Some(door) = doors.pop() else { return };
        let process = &self.process;
        let parts = Parts {
            backend,
            clock: if self.wish.own_clock { process.own_clock() } else { process.clock() },
            slow_close: process.slow_close(),
            signals,
            door,
            spool_door,
            reader: process.reader(),
            back: process.back(),
            most_held: self.wish.most_held,
            door_is_shared,
            allowed: Allowed::by_mode(0, 0, 0o660),
            control,
            pid_file: None,
            chance: 1,
            note: Box::new(|_| {}),
            tell: Box::new(|_| true),
        };
        let [idle, max, limit] = self.wish.rules.map(Span::at_least);
        let (rules, drain) = (Rules { idle, max, limit }, Span::at_least(self.wish.drain));
        // One that cannot start would be one that dies.
        let daemon = kernel.spare(|| Daemon::new(parts, rules, drain, room)).expect("a daemon");
        self.fate.replace(Fate::Ready(Box::new(New { daemon, estate, doors: new_doors })));
        match self.wish.manner {
            Manner::DiesInTheEnd => self.dies(),
            Manner::Errs => {
                let _ = self.caller.send(b"?", &[]);
                self.listens();
            }
            Manner::Dawdles(time) => self.later(kernel, time, Self::says_that_it_has_it),
            _ => self.later(kernel, self.delay(kernel), Self::says_that_it_has_it),
        }
    }

    fn says_that_it_has_it(&self, _: &Kernel) {
        if !self.word.borrow().is_empty() || self.caller.send(&[image::HAVE_IT], &[]).is_err() {
            return self.dies(); // the one before it serves on
        }
        let fate = self.fate.replace(Fate::Gone);
        self.fate.replace(match fate {
            Fate::Ready(new) => Fate::Owns(new),
            other => other,
        });
    }

    /// Whether it takes everything for its own, by what it has been told so far.
    pub fn owns_it(&self) -> bool {
        if !matches!(*self.fate.borrow(), Fate::Owns(_)) {
            return false;
        }
        self.word.borrow_mut().extend(self.caller.read());
        if self.word.borrow().contains(&image::KEPT) {
            self.dies();
            return false;
        }
        true
    }

    /// Whether it will never take over.
    pub fn is_gone(&self) -> bool {
        matches!(*self.fate.borrow(), Fate::Gone)
    }

    /// From when to when it has waited for the first word of an answer, or does so `now`.
    pub fn waited(&self, now: Duration) -> Option<(Duration, Duration)> {
        let until = self.answered.get().or((!self.is_gone()).then_some(now));
        self.asked.get().zip(until)
    }

    /// Whether it may take over from one that serves.
    pub fn may_take_over_from(&self, old: &Daemon<Fake>) -> bool {
        old.is_stopping() || !self.wish.only_if_stopping
    }

    /// Its signals.
    pub fn raise(&self) -> Rc<Signals<Raiser>> {
        self.raise.clone()
    }

    /// Ends its process, if it is no daemon.
    pub fn dies(&self) {
        if self.is_gone() {
            return;
        }
        let fate = self.fate.replace(Fate::Gone);
        self.process.kill();
        self.caller.close();
        drop((fate, self.parts.take(), self.heir.take()));
    }

    /// Takes everything over, as it may.
    pub fn takes_over(&self) -> Heiress {
        let Fate::Owns(new) = self.fate.replace(Fate::Gone) else { panic!("it has not got everything") };
        let New { mut daemon, estate, doors } = *new;
        let claimed = daemon.claim();
        daemon.take_over(estate, claimed);
        if self.word.borrow().contains(&Order::StopToo.byte()) {
            daemon.stop();
        }
        self.caller.close();
        Heiress { daemon, process: self.process.clone(), doors }
    }
}
