// SPDX-License-Identifier: BSD-3-Clause

//! Servers that park: children who hand kept-alive connections over, the clients of these, and workers to whom they are
//! brought back, or should be: they are late, die, are busy, and now and then the whole server is away.
//!
//! What a worker alone can see is asserted here: that nobody else has what it takes, and that it is what was parked. Must not
//! know what else the daemon ought to do.

use crate::crowd::{Crowd, ROOT, Sent};
use crate::run::Plan;
use lingerd_platform::fake::{Caller, Client, Held, Kernel, Setup, WayBack};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Bytes of what is said of a parked connection.
const TICKET: usize = 72;

/// A child says no more while so many are not acknowledged.
const MOST_UNACKNOWLEDGED: u64 = 8;

/// A request.
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// A connection that is parked, or was.
pub struct Parked {
    /// What it was handed over with.
    ticket: [u8; TICKET],
    /// Whether a whole head is waited for, and not only a byte.
    pub is_new: bool,
    /// For how long.
    pub patience: Duration,
    /// Whose it is.
    pub server: Rc<Server>,
    client: Client,
    /// How often the daemon has got it before.
    times: u32,
    talk: Rc<Talk>,
    /// Whether a worker has it that has not said yet that it takes it.
    is_with: Cell<bool>,
    /// When it was there last for the next one, because of that.
    pub was_left: Cell<Duration>,
    /// Whether it may be another one of the same connection that has ended.
    pub is_unclear: Cell<bool>,
    /// When one has taken it.
    pub taken: Cell<Option<Duration>>,
}

impl Parked {
    /// Since when what is waited for has been there, if it is; or, of a head, the end behind a part of it.
    pub fn ready(&self) -> Option<Duration> {
        let facts = self.client.facts();
        // Where it goes before its head is whole, the rest of that does not arrive.
        let ended = facts.heard.and(facts.client_ended.or(facts.client_gone));
        let spoke = match self.is_new {
            false => facts.heard,
            true => [self.talk.whole.get(), ended].into_iter().flatten().min(),
        };
        spoke.filter(|_| self.client.unheard() > 0)
    }

    /// When the daemon got it, if it has.
    pub fn received(&self) -> Option<Duration> {
        let facts = self.client.facts();
        facts.received.filter(|_| facts.received_times > self.times)
    }

    /// Whether a worker has been asked, and has not answered.
    pub fn is_with(&self) -> bool {
        self.is_with.get()
    }
}

/// What a client has to say.
struct Talk {
    /// How long a packet of it takes.
    latency: Duration,
    /// When it has said a whole head, and that had arrived.
    whole: Cell<Option<Duration>>,
}

/// A worker was brought one.
pub struct Offer {
    pub when: Duration,
    pub parked: Rc<Parked>,
    /// When the daemon got it.
    pub received: Option<Duration>,
    /// Whether it was told that the time was up.
    pub is_late: bool,
}

/// Who parks.
pub struct Child {
    caller: Caller,
    /// How many it has sent over that link, and how many it was told were taken.
    sent: Cell<u64>,
    acknowledged: Cell<u64>,
}

/// A server.
pub struct Server {
    name: String,
    backlog: usize,
    /// Whether it is worse than others: it dies, hangs and is late.
    is_bad: bool,
    way: RefCell<Option<WayBack>>,
    /// When it was away: from when to when.
    away: RefCell<Vec<(Duration, Duration)>>,
    /// When its workers took nothing: from when to when.
    busy: RefCell<Vec<(Duration, Duration)>>,
    /// Since when it takes what it is offered at once.
    free: Cell<Option<Duration>>,
    /// How many workers have one that they have not answered for.
    undecided: Cell<u32>,
    parked: RefCell<BTreeMap<u64, Rc<Parked>>>,
    children: RefCell<Vec<Rc<Child>>>,
    offers: RefCell<Vec<Offer>>,
    /// Whose worker could not say any more that it takes it.
    not_taken: RefCell<Vec<Client>>,
}

impl Server {
    fn new(name: String, backlog: usize, is_bad: bool) -> Rc<Server> {
        Rc::new(Server {
            name,
            backlog,
            is_bad,
            way: RefCell::default(),
            away: RefCell::new(vec![(Duration::ZERO, Duration::MAX)]),
            busy: RefCell::default(),
            free: Cell::default(),
            undecided: Cell::default(),
            parked: RefCell::default(),
            children: RefCell::default(),
            offers: RefCell::default(),
            not_taken: RefCell::default(),
        })
    }

    /// Since when it takes at once what it is offered. Not while it is away or busy, or so many of its workers are undecided
    /// that the daemon may wait for them.
    pub fn is_free_since(&self) -> Option<Duration> {
        self.free.get().filter(|_| self.undecided.get() < 32)
    }

    /// For how long it was away in that time.
    pub fn was_away(&self, from: Duration, to: Duration) -> Duration {
        within(&self.away.borrow(), from, to)
    }

    /// For how long it was away at once, of all the times until then.
    pub fn longest_away(&self, until: Duration) -> Duration {
        let lengths = self.away.borrow().iter().map(|&(from, to)| to.min(until).saturating_sub(from)).max();
        lengths.unwrap_or_default()
    }

    /// For how long it was busy.
    pub fn was_busy(&self, from: Duration, to: Duration) -> Duration {
        within(&self.busy.borrow(), from, to)
    }

    /// Takes what its workers were brought.
    pub fn take_offers(&self) -> Vec<Offer> {
        self.offers.take()
    }

    /// What a worker cannot take any more has ended.
    pub fn nobody_is_kept_from_taking(&self) {
        for client in self.not_taken.take() {
            let facts = client.facts();
            assert!(facts.parted.is_some(), "its worker was hung up on, and it is parked: {facts:?}");
        }
    }

    /// Each whose message the daemon has read to its end is acknowledged once, and that at once where nothing is in its way; of
    /// a server that was away for long perhaps never.
    pub fn acknowledgements_are_right(&self, at_once: bool) {
        self.children.borrow_mut().retain(|child| {
            let read = child.sent.get() - child.caller.queued() as u64;
            child.acknowledged.set(child.acknowledged.get() + child.hear());
            let is_there = !child.caller.is_hung_up() && child.caller.end().is_some();
            let acknowledged = child.acknowledged.get();
            let is_right = if at_once && !self.is_bad { acknowledged == read } else { acknowledged <= read };
            assert!(!is_there || is_right, "{acknowledged} of {read}");
            is_there
        });
    }

    /// Listens from now on.
    fn opens(self: &Rc<Self>, kernel: &Kernel) {
        let now = kernel.now();
        if let Some(last) = self.away.borrow_mut().last_mut() {
            last.1 = now;
        }
        self.free.set(Some(now));
        self.way.replace(Some(kernel.way_back(&self.name, self.backlog)));
    }

    /// Listens no more, and whoever waits to be let in is told so.
    fn closes(&self, kernel: &Kernel) {
        let way = self.way.take();
        if let Some(way) = way {
            self.free.set(None);
            self.away.borrow_mut().push((kernel.now(), Duration::MAX));
            way.close();
        }
    }
}

/// How much of these times is between the two.
fn within(times: &[(Duration, Duration)], from: Duration, to: Duration) -> Duration {
    times.iter().map(|&(start, end)| end.min(to).saturating_sub(start.max(from))).sum()
}

impl Child {
    /// How many more of its connections it is told of.
    fn hear(&self) -> u64 {
        let told = self.caller.read();
        assert!(told.iter().all(|byte| b"GK".contains(byte)), "{told:?}");
        told.iter().filter(|&&byte| byte == b'K').count() as u64
    }
}

/// Has them come until the plan ends.
pub fn come(crowd: &Rc<Crowd>, kernel: &Kernel, plan: &Plan) {
    for (n, &(backlog, is_bad)) in plan.servers.iter().enumerate() {
        let server = Server::new(format!("server-{n}"), backlog, is_bad);
        crowd.has_server(server.clone());
        server.opens(kernel);
        works(crowd, kernel, &server);
        if is_bad {
            goes_away(crowd.clone(), kernel, server.clone(), plan.end);
        }
        let pause = plan.end.div_f64(plan.parked as f64 / 2.0);
        for _ in 0..2 {
            child_comes(crowd.clone(), kernel, server.clone(), pause);
        }
    }
}

/// It is away now and then, and the times when it takes no more than the daemon waits for it are as many as the others.
fn goes_away(crowd: Rc<Crowd>, kernel: &Kernel, server: Rc<Server>, end: Duration) {
    kernel.after(crowd.time(end / 2), move |kernel| {
        server.closes(kernel);
        let most = Duration::from_secs(if crowd.one_in(2) { 9 } else { 60 });
        kernel.after(crowd.time(most), move |kernel| {
            server.opens(kernel);
            works(&crowd, kernel, &server);
            if !crowd.is_over() {
                goes_away(crowd, kernel, server, end);
            }
        });
    });
}

/// Its workers take what they are offered from now on.
fn works(crowd: &Rc<Crowd>, kernel: &Kernel, server: &Rc<Server>) {
    let Some(way) = server.way.borrow().clone() else { return };
    if server.is_bad && crowd.one_in(30) {
        let time = crowd.time(Duration::from_secs(40));
        server.free.set(None);
        server.busy.borrow_mut().push((kernel.now(), kernel.now() + time));
        let (crowd, server) = (crowd.clone(), server.clone());
        return kernel.after(time, move |kernel| {
            if server.way.borrow().is_some() && server.free.get().is_none() {
                server.free.set(Some(kernel.now()));
            }
            works(&crowd, kernel, &server);
        });
    }
    while let Some(link) = way.accept() {
        hears(crowd, kernel, server, link);
    }
    let (crowd, server) = (crowd.clone(), server.clone());
    way.at_call(move |kernel| works(&crowd, kernel, &server));
}

/// A worker is told what it is offered, or waits until it is.
fn hears(crowd: &Rc<Crowd>, kernel: &Kernel, server: &Rc<Server>, link: Caller) {
    let (said, mut held) = link.take();
    if said.is_empty() && held.is_empty() {
        if !link.is_hung_up() {
            let (crowd, server, worker) = (crowd.clone(), server.clone(), link.clone());
            link.at_word(move |kernel| hears(&crowd, kernel, &server, worker));
        }
        return; // else it only wanted to know whether anybody is there
    }
    assert_eq!((said.len(), held.len()), (TICKET, 1), "a message in one piece, with a connection");
    let (Some(held), Some(serial)) = (held.pop(), said[32..].first_chunk()) else { return };
    let parked = server.parked.borrow().get(&u64::from_be_bytes(*serial)).cloned();
    let parked = parked.expect("one that was parked");
    let mut ticket = parked.ticket;
    ticket[2] = said[2];
    assert!(said == ticket && said[2] <= 1, "{said:?}");
    assert_eq!(held.client(), Some(parked.client.address()), "as it was parked");
    assert_eq!(parked.taken.get(), None, "a worker has it already");
    assert!(!parked.is_with.replace(true), "a worker is about to take it");
    let spoke = said[2] == 1 || parked.ready().is_some_and(|ready| ready <= kernel.now());
    assert!(spoke, "back, and has said nothing: {:?} at {:?}", parked.client.facts(), kernel.now());
    let received = parked.client.facts().received;
    let offer = Offer { when: kernel.now(), parked: parked.clone(), received, is_late: said[2] == 1 };
    server.offers.borrow_mut().push(offer);
    server.undecided.set(server.undecided.get() + 1);
    let delay = match crowd.number(0..=9) {
        _ if !server.is_bad => Duration::ZERO,
        0 => crowd.time(Duration::from_secs(100)),
        1..=3 => crowd.time(Duration::from_secs(2)),
        _ => Duration::ZERO,
    };
    let (crowd, server) = (crowd.clone(), server.clone());
    if delay.is_zero() {
        decides(crowd, kernel, server, link, &parked, held);
    } else {
        kernel.after(delay, move |kernel| decides(crowd, kernel, server, link, &parked, held));
    }
}

/// It takes it, or dies before it has said so.
fn decides(crowd: Rc<Crowd>, kernel: &Kernel, server: Rc<Server>, link: Caller, parked: &Parked, held: Held) {
    let now = kernel.now();
    server.undecided.set(server.undecided.get() - 1);
    parked.is_with.set(false);
    parked.was_left.set(now);
    if server.is_bad && crowd.one_in(10) {
        return link.close();
    }
    if link.send(b"A", &[]).is_err() {
        server.not_taken.borrow_mut().push(parked.client.clone());
        return;
    }
    assert_eq!(parked.taken.replace(Some(now)), None);
    link.close();
    if server.is_bad && crowd.one_in(10) {
        return; // with what it has
    }
    let read = held.read();
    assert!(read > 0 || parked.is_new, "there is nothing to be read");
    held.write(300);
    let (client, talk) = (parked.client.clone(), parked.talk.clone());
    if crowd.one_in(3) || crowd.is_over() {
        return; // and closes it
    }
    // Now and then it is back before the daemon has noticed that it was taken.
    let delay = if crowd.one_in(2) { Duration::ZERO } else { crowd.time(Duration::from_secs(3)) };
    kernel.after(delay, move |kernel| {
        let child = server.children.borrow().first().cloned();
        talks(&crowd, kernel, client.clone(), talk.clone());
        if let Some(child) = child {
            parks(&crowd, kernel, &server, &child, (client, talk), &held);
        }
    });
}

/// A child connects, parks, and goes, and then the next one comes.
fn child_comes(crowd: Rc<Crowd>, kernel: &Kernel, server: Rc<Server>, pause: Duration) {
    if crowd.is_over() {
        return;
    }
    kernel.after(crowd.time(pause), move |kernel| match kernel.connect(crowd.second_door(), ROOT) {
        Ok(caller) => {
            let child = Rc::new(Child { caller, sent: Cell::new(0), acknowledged: Cell::new(0) });
            server.children.borrow_mut().push(child.clone());
            child_acts(crowd, kernel, server, child, pause);
        }
        Err(_) => {
            kernel.after(Duration::from_secs(1), move |kernel| child_comes(crowd, kernel, server, pause))
        }
    });
}

fn child_acts(crowd: Rc<Crowd>, kernel: &Kernel, server: Rc<Server>, child: Rc<Child>, pause: Duration) {
    let is_leaving = crowd.is_over() || child.caller.is_hung_up() || crowd.one_in(50);
    if is_leaving {
        child.caller.close();
        server.children.borrow_mut().retain(|other| !Rc::ptr_eq(other, &child));
        return child_comes(crowd, kernel, server, pause);
    }
    let many = if crowd.one_in(20) { crowd.number(2..=20) } else { 1 };
    for _ in 0..many {
        let latency = [Duration::ZERO, Duration::from_millis(80)][crowd.number(0..=1) as usize];
        let setup = Setup { response: 300, latency, closes: crowd.one_in(20), ..Setup::default() };
        let (client, held) = kernel.connection(&setup);
        let talk = Rc::new(Talk { latency, whole: Cell::default() });
        talks(&crowd, kernel, client.clone(), talk.clone());
        parks(&crowd, kernel, &server, &child, (client, talk), &held);
    }
    kernel.after(crowd.time(pause * 4), move |kernel| child_acts(crowd, kernel, server, child, pause));
}

/// A child parks a connection, if it may.
fn parks(
    crowd: &Crowd,
    kernel: &Kernel,
    server: &Rc<Server>,
    child: &Child,
    (client, talk): (Client, Rc<Talk>),
    held: &Held,
) {
    child.acknowledged.set(child.acknowledged.get() + child.hear());
    if child.sent.get() >= child.acknowledged.get() + MOST_UNACKNOWLEDGED {
        return; // it waits itself
    }
    let serial = crowd.next_serial();
    // What comes back again may have said half of something before.
    let is_new = client.facts().received.is_none() && crowd.one_in(3);
    let patience = Duration::from_secs([1, 5, 15, 300][crowd.number(0..=3) as usize]);
    let mut ticket = [0xa5; TICKET];
    ticket[..4].copy_from_slice(&[if is_new { b'H' } else { b'K' }, server.name.len() as u8, 0, 0]);
    ticket[4..8].copy_from_slice(&(patience.as_millis() as u32).to_be_bytes());
    ticket[8..32].fill(0);
    ticket[8..8 + server.name.len()].copy_from_slice(server.name.as_bytes());
    ticket[32..40].copy_from_slice(&serial.to_be_bytes());
    let parked = Rc::new(Parked {
        ticket,
        is_new,
        patience,
        server: server.clone(),
        client: client.clone(),
        times: client.facts().received_times,
        talk,
        is_with: Cell::new(false),
        is_unclear: Cell::new(false),
        was_left: Cell::default(),
        taken: Cell::default(),
    });
    server.parked.borrow_mut().insert(serial, parked.clone());
    if child.caller.send(&ticket, &[held]).is_ok() {
        child.sent.set(child.sent.get() + 1);
        crowd.was_sent(Sent {
            when: kernel.now(),
            client,
            spooled: None,
            parked: Some(parked),
            at_second: true,
        });
    }
}

/// What a client is going to do.
fn talks(crowd: &Rc<Crowd>, kernel: &Kernel, client: Client, talk: Rc<Talk>) {
    let (soon, minute) = (Duration::from_secs(20), Duration::from_secs(60));
    let cut = crowd.number(1..=REQUEST.len() as u64 - 1) as usize;
    let (first, rest) = REQUEST.split_at(cut);
    let whole = move |kernel: &Kernel, client: &Client, talk: &Talk, rest: &[u8]| {
        client.say(rest);
        talk.whole.set(Some(kernel.now() + talk.latency));
    };
    match crowd.number(0..=12) {
        0 => {} // it is silent
        1 => whole(kernel, &client, &talk, REQUEST),
        2 => {
            client.say(first);
            kernel.after(crowd.time(soon), move |kernel| whole(kernel, &client, &talk, rest));
        }
        3 => client.say(first), // and no more
        4 => {
            client.say(first);
            kernel.after(crowd.time(soon), move |_| client.close());
        }
        5 => kernel.after(crowd.time(minute), move |_| client.close()),
        6 => kernel.after(crowd.time(minute), move |_| client.reset()),
        7 => kernel.after(crowd.time(minute), move |_| client.half_close()),
        8 => kernel.after(crowd.time(minute), move |_| client.disappear()),
        9 => kernel.after(crowd.time(minute), move |_| client.notify(70)),
        _ => kernel.after(crowd.time(soon), move |kernel| whole(kernel, &client, &talk, REQUEST)),
    }
}
