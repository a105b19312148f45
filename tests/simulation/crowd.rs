// SPDX-License-Identifier: BSD-3-Clause

//! Everybody outside the daemon: senders, their clients, who asks for the counters, and signals.
//!
//! Must not know what the daemon ought to do with them.

use crate::run::Plan;
use crate::servers::{self, Parked, Server};
use fastrand::Rng;
use lingerd::senders::protocol::{GO_AHEAD, HEAD};
use lingerd_platform::fake::{Address, Caller, Client, Held, Idle, Kernel, Medium, Piece, Raiser, Setup};
use lingerd_platform::fdpass::MAX_DESCRIPTORS;
use lingerd_platform::peer::Peer;
use lingerd_platform::signals::Signals;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

pub const ROOT: Peer = Peer { uid: 0, groups: Vec::new(), all_groups: true, pid: Some(1) };
const STRANGER: Peer = Peer { uid: u32::MAX - 1, groups: Vec::new(), all_groups: true, pid: Some(2) };

/// What of a response is still to be written.
#[derive(Clone, Debug, Default)]
pub struct Spooled {
    /// Of which files, in this order.
    pub pieces: Vec<Piece>,
    /// How long it may not get on.
    pub patience: Duration,
    /// Whether one of the files has less than that, or cannot be read.
    pub is_broken: bool,
}

/// Somebody who asks for the counters.
struct Question {
    when: Duration,
    caller: Caller,
    who: Peer,
    /// Where senders come in.
    at_second: bool,
}

/// A connection that was sent.
pub struct Sent {
    pub when: Duration,
    pub client: Client,
    /// What was still to be written.
    pub spooled: Option<Spooled>,
    /// What was said of it, if it was parked.
    pub parked: Option<Rc<Parked>>,
    /// Whether that was at the second door.
    pub at_second: bool,
}

impl Sent {
    /// Whether it was parked, and a worker has taken it.
    pub fn is_taken(&self) -> bool {
        self.parked.as_ref().is_some_and(|parked| parked.taken.get().is_some())
    }
}

/// Who may hand over responses.
pub struct Spooler {
    pub caller: Caller,
    /// Whether it has been told that it may, and has not.
    pub may: Rc<Cell<bool>>,
    /// Since when it should have been, for the model.
    pub wants: Option<Duration>,
}

/// See the module's head.
pub struct Crowd {
    random: RefCell<Rng>,
    doors: Cell<[Address; 2]>,
    control: Address,
    signals: RefCell<Rc<Signals<Raiser>>>,
    /// When the daemon was told to stop, and when it was told again.
    told: Cell<Option<(Duration, Option<Duration>)>>,
    /// Clients whose connections were sent, and when, for the model to take.
    sent: RefCell<Vec<Sent>>,
    /// When each one asked for the counters that has no answer yet.
    asked: RefCell<Vec<Question>>,
    honest: Cell<bool>,
    /// Senders that have nothing more to say and do not go.
    staying: RefCell<Vec<Caller>>,
    /// Those who have knocked somewhere and may not come in, and what they have sent, who stay.
    strangers: Cell<u64>,
    stranger_sent: RefCell<Vec<(Caller, Client)>>,
    /// Who is at the second door.
    spoolers: RefCell<Vec<Spooler>>,
    /// Who parks, and the number of the last one that was parked.
    servers: RefCell<Vec<Rc<Server>>>,
    serial: Cell<u64>,
    /// Clients that are still to come, and whether anybody comes at all.
    left: Cell<usize>,
    is_over: Cell<bool>,
}

impl Crowd {
    pub fn new(seed: u64, [door, spool_door, control]: [Address; 3], signals: Signals<Raiser>) -> Rc<Crowd> {
        Rc::new(Crowd {
            random: RefCell::new(Rng::with_seed(seed ^ 0x5eed)),
            doors: Cell::new([door, spool_door]),
            control,
            signals: RefCell::new(Rc::new(signals)),
            told: Cell::default(),
            sent: RefCell::default(),
            asked: RefCell::default(),
            honest: Cell::new(true),
            staying: RefCell::default(),
            strangers: Cell::new(0),
            stranger_sent: RefCell::default(),
            spoolers: RefCell::default(),
            servers: RefCell::default(),
            serial: Cell::new(0),
            left: Cell::new(0),
            is_over: Cell::new(false),
        })
    }

    /// A time of up to `most`, short ones more often.
    pub fn time(&self, most: Duration) -> Duration {
        let part = self.random.borrow_mut().f64();
        most.mul_f64(part * part * part)
    }

    pub fn one_in(&self, number: u32) -> bool {
        self.random.borrow_mut().u32(..number) == 0
    }

    pub fn number(&self, range: std::ops::RangeInclusive<u64>) -> u64 {
        self.random.borrow_mut().u64(range)
    }

    /// Whether nobody comes any more.
    pub fn is_over(&self) -> bool {
        self.is_over.get()
    }

    /// Where those come in who park.
    pub fn second_door(&self) -> Address {
        self.doors.get()[1]
    }

    /// There is such a server.
    pub fn has_server(&self, server: Rc<Server>) {
        self.servers.borrow_mut().push(server);
    }

    /// All of them.
    pub fn servers(&self) -> Vec<Rc<Server>> {
        self.servers.borrow().clone()
    }

    /// What no other parked connection has.
    pub fn next_serial(&self) -> u64 {
        self.serial.set(self.serial.get() + 1);
        self.serial.get()
    }

    /// Takes note of a connection that was sent.
    pub fn was_sent(&self, sent: Sent) {
        self.sent.borrow_mut().push(sent);
    }

    /// Has everything happen until the end of the plan, and the stop then.
    pub fn comes(crowd: &Rc<Crowd>, kernel: &Kernel, plan: &Plan) {
        crowd.left.set(plan.clients);
        crowd.honest.set(plan.honest);
        let pause = plan.end.div_f64(plan.clients as f64 / plan.senders as f64);
        for _ in 0..plan.senders {
            let sender = crowd.clone();
            kernel.after(crowd.time(plan.end / 4), move |kernel| sender_comes(&sender, kernel, pause));
        }
        servers::come(crowd, kernel, plan);
        for _ in 0..plan.end.as_secs() / 20 {
            let asking = crowd.clone();
            kernel.after(plan.end.mul_f64(crowd.random.borrow_mut().f64()), move |kernel| {
                asking.asks(kernel);
            });
        }
        for _ in 0..plan.end.as_secs() / 30 {
            let coming = crowd.clone();
            kernel.after(plan.end.mul_f64(crowd.random.borrow_mut().f64()), move |kernel| {
                stranger_comes(&coming, kernel);
            });
        }
        for _ in 0..3 {
            let raising = crowd.clone();
            kernel.after(plan.end.mul_f64(crowd.random.borrow_mut().f64()), move |_| {
                let signals = raising.signals.borrow();
                if raising.one_in(2) { signals.report.raise() } else { signals.reload.raise() }
            });
        }
        let (stopping, again) = (crowd.clone(), plan.again);
        kernel.at(plan.end, move |kernel| {
            stopping.is_over.set(true);
            stopping.stops(kernel);
            let calm = stopping.time(Duration::from_secs(300));
            kernel.after(calm, |kernel| kernel.set_faults(Default::default()));
            if let Some(again) = again {
                let stopping = stopping.clone();
                kernel.after(again, move |kernel| stopping.stops(kernel));
            }
        });
    }

    /// Tells the daemon to stop.
    pub fn stops(&self, kernel: &Kernel) {
        self.signals.borrow().stop.raise();
        let now = kernel.now();
        self.told.set(match self.told.get() {
            None => Some((now, None)),
            Some((told, again)) => Some((told, again.or(Some(now)))),
        });
    }

    /// When the daemon was told to stop, and when it was told again.
    pub fn told(&self) -> Option<(Duration, Option<Duration>)> {
        self.told.get()
    }

    /// From now on there is another daemon. Who told the old one to stop in its last moment tells that one.
    pub fn has_another(&self, kernel: &Kernel, signals: Rc<Signals<Raiser>>) {
        let before = self.signals.replace(signals);
        self.told.set(None);
        if before.stop.pending() > 0 {
            self.stops(kernel);
        }
    }

    /// It serves. Where the one before it was to be the last one everybody comes again, to stop it too.
    pub fn goes_on(
        crowd: &Rc<Crowd>,
        kernel: &Kernel,
        [door, spool_door]: [Option<Address>; 2],
        is_stopping: bool,
        plan: &Plan,
    ) {
        let before = crowd.doors.get();
        crowd.doors.set([door.unwrap_or(before[0]), spool_door.unwrap_or(before[1])]);
        if is_stopping {
            crowd.told.set(crowd.told.get().or(Some((kernel.now(), None))));
        }
        if crowd.is_over.get() && crowd.told.get().is_none() {
            crowd.is_over.set(false);
            crowd.left.set(crowd.left.get() + 50);
            for _ in 0..plan.senders {
                let sender = crowd.clone();
                let pause = Duration::from_secs(1);
                kernel.after(crowd.time(pause), move |kernel| sender_comes(&sender, kernel, pause));
            }
            let stopping = crowd.clone();
            kernel.after(crowd.time(Duration::from_secs(300)), move |kernel| {
                stopping.is_over.set(true);
                stopping.stops(kernel);
            });
        }
    }

    /// `lingerd -S`, of somebody who may not wait for the answer, has no room for it or is not entitled
    /// to it.
    pub fn asks(&self, kernel: &Kernel) {
        let who = if self.one_in(10) { STRANGER } else { ROOT };
        let at_second = self.one_in(3);
        let (address, question) = if at_second { (self.second_door(), b"j") } else { (self.control, b"S") };
        let Ok(caller) = kernel.connect(address, who.clone()) else { return };
        let _ = caller.send(question, &[]); // who is not entitled to it may be hung up on already
        self.count(&who);
        match self.number(0..=9) {
            0 => {} // it goes at once
            1 => {
                caller.set_room(self.number(0..=100) as usize);
                kernel.after(Duration::from_secs(1), move |_| drop(caller));
            }
            _ => self.asked.borrow_mut().push(Question { when: kernel.now(), caller, who, at_second }),
        }
    }

    /// Takes the answers that have come: who asked, whether it was at the second door, and what each says.
    pub fn take_answers(&self) -> Vec<(Peer, bool, String)> {
        let mut answers = Vec::new();
        self.asked.borrow_mut().retain(|Question { caller, who, at_second, .. }| {
            if caller.is_hung_up() {
                let answer = String::from_utf8(caller.read()).expect("an answer in UTF-8");
                answers.push((who.clone(), *at_second, answer));
            }
            !caller.is_hung_up()
        });
        answers
    }

    /// When the oldest question was put at the control socket that has no answer, of those entitled to one: the others are
    /// hung up on when it is their turn to be closed.
    pub fn waits_since(&self) -> Option<Duration> {
        let asked = self.asked.borrow();
        asked
            .iter()
            .find(|question| question.who.uid == 0 && !question.at_second)
            .map(|question| question.when)
    }

    /// Those at the second door who are still to be told that they may hand over, and have said all that they have.
    pub fn each_who_wants(&self, mut each: impl FnMut(&mut Spooler)) {
        let mut spoolers = self.spoolers.borrow_mut();
        spoolers.retain(|it| it.caller.end().is_some() && !it.caller.is_hung_up());
        for it in spoolers.iter_mut() {
            match it.may.get() || it.caller.unread() > 0 || it.caller.queued() > 0 {
                true => it.wants = None,
                false => each(it),
            }
        }
    }

    /// Takes the clients whose connections were sent since it was called last, and when they were.
    pub fn take_sent(&self) -> Vec<Sent> {
        self.sent.take()
    }

    fn count(&self, who: &Peer) {
        self.strangers.set(self.strangers.get() + u64::from(*who == STRANGER));
    }

    /// How many have knocked who may not come in.
    pub fn strangers(&self) -> u64 {
        self.strangers.get()
    }

    /// Takes the clients whose connections were sent by one of them.
    pub fn take_stranger_sent(&self) -> Vec<Client> {
        self.stranger_sent.take().into_iter().map(|(_, client)| client).collect()
    }

    /// Connects as a sender does, and tells, at the second door, where it is known whether it may hand a response over.
    fn connect(&self, kernel: &Kernel) -> Option<(Caller, Option<Rc<Cell<bool>>>)> {
        let spools = self.one_in(3);
        let caller = kernel.connect(self.doors.get()[usize::from(spools)], ROOT).ok()?;
        let may = spools.then(Rc::<Cell<bool>>::default);
        if let Some(may) = &may {
            let (caller, may) = (caller.clone(), may.clone());
            self.spoolers.borrow_mut().push(Spooler { caller, may, wants: None });
        }
        Some((caller, may))
    }
}

/// A server's child: it connects, hands over, and goes, and then the next one comes.
fn sender_comes(crowd: &Rc<Crowd>, kernel: &Kernel, pause: Duration) {
    if crowd.is_over.get() || crowd.left.get() == 0 {
        return;
    }
    let next = crowd.clone();
    match crowd.connect(kernel) {
        Some((sender, may)) => sender_acts(next, kernel, sender, may, pause),
        None => kernel.after(Duration::from_secs(1), move |kernel| sender_comes(&next, kernel, pause)),
    }
}

/// Somebody who may not hand over does so.
fn stranger_comes(crowd: &Rc<Crowd>, kernel: &Kernel) {
    let Ok(stranger) = kernel.connect(crowd.doors.get()[0], STRANGER) else { return };
    crowd.count(&STRANGER);
    let (client, held) = client_comes(crowd, kernel);
    let _ = stranger.send(b"L", &[&held]); // if there is room
    if !crowd.honest.get() {
        mischief(crowd, kernel, &stranger);
    }
    crowd.stranger_sent.borrow_mut().push((stranger, client));
}

fn sender_acts(
    crowd: Rc<Crowd>,
    kernel: &Kernel,
    sender: Caller,
    may: Option<Rc<Cell<bool>>>,
    pause: Duration,
) {
    if crowd.left.get() == 0 || crowd.is_over.get() {
        if crowd.one_in(2) {
            crowd.staying.borrow_mut().push(sender);
        } else {
            sender.close();
        }
        return;
    }
    if sender.is_hung_up() || crowd.one_in(50) {
        let delay = crowd.time(Duration::from_secs(5));
        if !crowd.honest.get() && crowd.one_in(3) {
            let (client, held) = client_comes(&crowd, kernel);
            sender.close_with(&[&held]);
            crowd.sent.borrow_mut().push(Sent {
                when: kernel.now(),
                client,
                spooled: None,
                parked: None,
                at_second: may.is_some(),
            });
        }
        sender.close();
        return kernel.after(delay, move |kernel| sender_comes(&crowd, kernel, pause));
    }
    // More than fit into its queue, now and then.
    let messages = if crowd.one_in(200) { crowd.number(2..=300) } else { 1 };
    for _ in 0..messages {
        if crowd.left.get() == 0 {
            break;
        }
        if !crowd.honest.get() && crowd.one_in(100) {
            mischief(&crowd, kernel, &sender);
        } else if may.as_ref().is_some_and(|may| !crowd.one_in(3) && may_spool(&crowd, &sender, may)) {
            if spool(&crowd, kernel, &sender) {
                may.iter().for_each(|may| may.set(false));
            }
        } else {
            message(&crowd, kernel, &sender, may.is_some());
        }
    }
    let delay = crowd.time(pause * 4);
    kernel.after(delay, move |kernel| sender_acts(crowd, kernel, sender, may, pause));
}

/// A message as the protocol has it, mostly with one connection, now and then with as many as fit.
fn message(crowd: &Rc<Crowd>, kernel: &Kernel, sender: &Caller, at_second: bool) {
    let many = match crowd.number(0..=99) {
        0 => MAX_DESCRIPTORS as u64,
        1..=10 => crowd.number(2..=20),
        _ => 1,
    };
    let many = many.min(crowd.left.get() as u64);
    let mut clients = Vec::new();
    let mut held = Vec::new();
    for _ in 0..many {
        let (client, end) = client_comes(crowd, kernel);
        clients.push(client);
        held.push(end);
    }
    crowd.left.set(crowd.left.get().saturating_sub(many as usize));
    let all: Vec<_> = held.iter().collect();
    if sender.send(b"L", &all).is_ok() {
        let when = kernel.now();
        let sent =
            clients.into_iter().map(|client| Sent { when, client, spooled: None, parked: None, at_second });
        crowd.sent.borrow_mut().extend(sent);
        if crowd.one_in(50) {
            // It keeps its copies for a while.
            kernel.after(crowd.time(Duration::from_secs(60)), move |_| drop(held));
        }
    }
    // Else it does the waiting itself, which is not of this story.
}

/// Whether it has been told that it may hand one response over, which it is going to do. Now and then somebody does
/// though he has not.
fn may_spool(crowd: &Crowd, sender: &Caller, may: &Cell<bool>) -> bool {
    let told = sender.read();
    let many = told.len() + usize::from(may.get());
    assert!(told.iter().all(|&byte| byte == GO_AHEAD) && (many <= 1 || !crowd.honest.get()), "{told:?}");
    may.set(may.get() || !told.is_empty());
    may.get() || !crowd.honest.get() && crowd.one_in(100)
}

/// A connection whose response is still to be written, in one call or now and then in two. Whether it was sent.
fn spool(crowd: &Rc<Crowd>, kernel: &Kernel, sender: &Caller) -> bool {
    let (client, held) = client_with(crowd, kernel, 0, false);
    // Whoever drops it, be it the kernel, is not to make what is there look whole.
    held.set_linger(Some(Duration::ZERO));
    let patience = [1, 30, 300][crowd.number(0..=2) as usize];
    let mut spooled = Spooled { patience: Duration::from_secs(patience), ..Spooled::default() };
    let mut head = [0; HEAD];
    head[0] = b'S';
    head[4..8].copy_from_slice(&(patience as u32 * 1_000).to_be_bytes());
    let mut files = Vec::new();
    for n in 0..crowd.number(1..=4) as usize {
        let length = [0, 1, 3_000, 70_000, 300_000, 3_000_000][crowd.number(0..=5) as usize];
        let offset = if crowd.one_in(2) { 0 } else { crowd.number(0..=1_000_000) };
        let medium = if crowd.one_in(4) {
            // Now and then it does not answer for longer than anybody waits, or closes as slowly.
            let read = crowd.time(Duration::from_secs(if crowd.one_in(50) { 1_000 } else { 1 }));
            let closing = crowd.time(Duration::from_secs(if crowd.one_in(500) { 100 } else { 1 }));
            Medium { read, ..Medium::slow(closing) }
        } else {
            Medium::memory()
        };
        let medium = Medium { is_broken: crowd.one_in(200), ..medium };
        let lacks = if crowd.one_in(200) { length.min(1_000) } else { 0 };
        let file = kernel.file(offset + length - lacks, medium);
        spooled.is_broken |= length > 0 && medium.is_broken || lacks > 0;
        spooled.pieces.push(Piece { file: file.file_number(), offset, length: length as usize });
        head[1] += 1;
        head[3] |= u8::from(crowd.one_in(2)) << n;
        head[8 + 16 * n..][..8].copy_from_slice(&offset.to_be_bytes());
        head[16 + 16 * n..][..8].copy_from_slice(&length.to_be_bytes());
        files.push(file);
    }
    let all: Vec<_> = std::iter::once(&held).chain(&files).collect();
    crowd.left.set(crowd.left.get().saturating_sub(1));
    let is_whole = !crowd.one_in(20);
    let (first, rest) = head.split_at(if is_whole { HEAD } else { crowd.number(1..=70) as usize });
    let is_sent = sender.send(first, &all).is_ok();
    if is_sent {
        let when = kernel.now();
        crowd.sent.borrow_mut().push(Sent {
            when,
            client,
            spooled: Some(spooled),
            parked: None,
            at_second: true,
        });
        // Of one that has no room for the rest the message is half a one, and nobody says more.
        if !is_whole && sender.send(rest, &[]).is_err() {
            sender.close();
        }
    }
    is_sent
}

/// What no sender should send.
fn mischief(crowd: &Rc<Crowd>, kernel: &Kernel, sender: &Caller) {
    let held = match crowd.number(0..=6) {
        0 => kernel.idle(Idle::Listening),
        1 => kernel.idle(Idle::Unconnected),
        2 => kernel.idle(Idle::Connecting),
        3 => kernel.other("a UDP socket"),
        4 => sender.end().unwrap_or_else(|| kernel.other("a pipe")),
        _ => kernel.slow("a file", crowd.time(Duration::from_secs(30))),
    };
    let many = if crowd.one_in(5) { MAX_DESCRIPTORS } else { 1 };
    let bytes: &[u8] = [b"?".as_slice(), b"L", b"L", b"LLL"][crowd.number(0..=3) as usize];
    let all = vec![&held; if crowd.one_in(5) { 0 } else { many }];
    let _ = sender.send(bytes, &all); // if there is room
}

/// A client whose response is written, or most of it, and what it is going to do.
fn client_comes(crowd: &Rc<Crowd>, kernel: &Kernel) -> (Client, Held) {
    let response = [0, 300, 20_000, 300_000][crowd.number(0..=3) as usize];
    let half_closes = !crowd.one_in(4);
    client_with(crowd, kernel, response, half_closes)
}

fn client_with(crowd: &Rc<Crowd>, kernel: &Kernel, response: u64, half_closes: bool) -> (Client, Held) {
    let minute = Duration::from_secs(60);
    let kind = crowd.number(0..=12);
    let latency = [Duration::ZERO, Duration::from_millis(1), Duration::from_millis(80)];
    let setup = Setup {
        response,
        latency: latency[crowd.number(0..=2) as usize],
        reads: !matches!(kind, 3 | 4),
        closes: matches!(kind, 0 | 1),
        linger: [None, None, Some(Duration::ZERO), Some(Duration::from_secs(2)), Some(minute)]
            [crowd.number(0..=4) as usize],
        notices: if crowd.one_in(20) { 100 } else { 0 },
        ..Setup::default()
    };
    let (client, held) = kernel.connection(&setup);
    if half_closes {
        held.half_close();
    }
    let acting = client.clone();
    match kind {
        2 => kernel.after(crowd.time(minute), move |_| acting.close()),
        3 => reads_slowly(crowd.clone(), kernel, acting),
        4 => {} // it has stalled for good
        5 => sends_late(crowd.clone(), kernel, acting, 3),
        6 => sends_late(crowd.clone(), kernel, acting, 200),
        7 => kernel.after(crowd.time(minute), move |_| acting.reset()),
        8 => kernel.after(crowd.time(minute), move |_| acting.half_close()),
        9 => kernel.after(crowd.time(minute), move |_| acting.disappear()),
        10 => {
            acting.disappear();
            kernel.after(crowd.time(minute), move |_| acting.come_back());
        }
        11 => kernel.after(crowd.time(minute), move |_| acting.notify(70)),
        12 => client.close(),
        _ => {} // it closes at the end of the response
    }
    (client, held)
}

fn reads_slowly(crowd: Rc<Crowd>, kernel: &Kernel, client: Client) {
    let delay = crowd.time(Duration::from_secs(10));
    kernel.after(delay, move |kernel| {
        let facts = client.facts();
        if facts.read_to_end.is_some() || facts.reset_arrived.is_some() {
            return client.close();
        }
        client.read(crowd.number(1..=100_000));
        if crowd.one_in(10) {
            client.send(1); // one more request, in the middle of the response
        }
        reads_slowly(crowd, kernel, client);
    });
}

fn sends_late(crowd: Rc<Crowd>, kernel: &Kernel, client: Client, times: u32) {
    let delay = crowd.time(Duration::from_secs(3));
    kernel.after(delay, move |kernel| {
        if times == 0 || client.facts().reset_arrived.is_some() {
            return client.close();
        }
        client.send(crowd.number(1..=100_000));
        sends_late(crowd, kernel, client, times - 1);
    });
}
