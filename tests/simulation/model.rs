// SPDX-License-Identifier: BSD-3-Clause

//! What must hold, in plain words and little code: a second opinion on what the daemon did, from what
//! the kernel saw of it.
//!
//! Must not know how the daemon does anything.

use crate::crowd::{ROOT, Sent, Spooled};
use crate::run::{Plan, Stage};
use crate::servers::{Offer, Parked};
use lingerd::rules::event::Reason;
use lingerd::stats::Snapshot;
use lingerd::stats::times::Timed;
use lingerd_platform::fake::{Call, Facts, Faults};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

/// What a point in time may be off by: the daemon counts in 1/64 s.
const TICK: Duration = Duration::from_nanos(15_625_000);

/// How often all who linger are looked at, in turns.
const LOOK: u64 = 64;

/// See the module's head.
pub struct Model {
    /// What the process has open beside connections and senders.
    own: usize,
    /// Who is in a sender's queue or lingers, and since when it was sent.
    clients: BTreeMap<SocketAddr, Sent>,
    /// Those that a worker has parked anew before the daemon had parted with them, the first one first.
    parked_anew: BTreeMap<SocketAddr, VecDeque<Sent>>,
    /// When it was about to end: from when to when.
    stops: Vec<(Duration, Duration)>,
    /// When the system last had so many descriptors in flight that nobody could be sent one more.
    was_jammed: Duration,
    /// The most that waited for a worker at once.
    most_returning: u64,
    connections: u64,
    before: Snapshot,
    /// When the clock was set on or back, and by how many nanoseconds.
    clock_steps: Vec<(Duration, i64)>,
    /// When this turn began, and what the longest one took.
    began: Duration,
    longest_turn: Duration,
    turns: u64,
    /// When nobody was served, from when to when: the daemon told a successor everything.
    frozen: Vec<(Duration, Duration)>,
    heard: u64,
    take_overs: u32,
    /// When hardly a descriptor was left, all of them of what is still to be closed perhaps.
    was_full: Option<Duration>,
    /// When one of those that were taken over from was to end at once, at the earliest.
    cut_off: Option<Duration>,
}

/// Why the kernel's facts allow a connection to have ended.
#[derive(Default)]
struct Allowed {
    closed: u64,
    reset: u64,
    idle: u64,
    max: u64,
    limit: u64,
    stalled: u64,
    broken: u64,
    /// A worker has taken it.
    returned: u64,
    /// Any of these.
    anything: u64,
    /// None of these: room was needed, or it was told to stop.
    none: u64,
}

impl Model {
    pub fn new(stage: &Stage) -> Model {
        Model {
            own: stage.process.open_descriptors(),
            clients: BTreeMap::new(),
            parked_anew: BTreeMap::new(),
            stops: Vec::new(),
            was_jammed: Duration::ZERO,
            most_returning: 0,
            connections: 0,
            before: stage.daemon.snapshot(),
            clock_steps: Vec::new(),
            began: Duration::ZERO,
            longest_turn: Duration::ZERO,
            turns: 0,
            frozen: Vec::new(),
            heard: 0,
            take_overs: 0,
            was_full: None,
            cut_off: None,
        }
    }

    /// How many connections were handed over.
    pub fn connections(&self) -> u64 {
        self.connections
    }

    /// What holds after each turn.
    pub fn after_turn(&mut self, stage: &Stage, plan: &Plan) {
        self.turns += 1;
        let kernel = &stage.kernel;
        self.began = kernel.woke();
        // Who tells a successor everything waits for it alone, or for room in the kernel, and nobody else does.
        let heard = kernel.count(Call::WaitAlone) + kernel.count(Call::Sleep);
        if heard > self.heard {
            self.is_frozen(kernel.now());
        } else {
            self.longest_turn = self.longest_turn.max(kernel.now() - self.began);
        }
        self.heard = heard;
        self.judge(stage, plan);
    }

    fn judge(&mut self, stage: &Stage, plan: &Plan) {
        let kernel = &stage.kernel;
        self.clock_steps = kernel.clock_steps();
        if stage.process.open_descriptors() + 8 > plan.least() {
            self.was_full = Some(kernel.now());
        }
        for sent in stage.crowd.take_sent() {
            let address = sent.client.address();
            if let Some(before) = self.clients.insert(address, sent) {
                assert!(before.is_taken(), "sent again, and by whom?");
                self.parked_anew.entry(address).or_default().push_back(before);
            }
            self.connections += 1;
        }
        let now = stage.daemon.snapshot();
        if stage.daemon.is_stopping() {
            let since = stage.crowd.told().map_or(self.began, |(told, _)| told.min(self.began));
            match self.stops.last_mut().filter(|(_, to)| *to >= since) {
                Some((_, to)) => *to = kernel.now(),
                None => self.stops.push((since, kernel.now())),
            }
        }
        if kernel.in_flight() >= plan.flavour.in_flight {
            self.was_jammed = kernel.now();
        }
        self.most_returning = self.most_returning.max(figure(&now, "returning"));
        self.counters_add_up(stage, plan, &now);
        self.ends_are_allowed(stage, plan, &now);
        self.answers_come(stage, plan, &now);
        self.whoever_may_is_told(stage, plan, &now);
        self.offers_are_right(stage, plan);
        if self.turns % LOOK == 0 {
            self.nobody_is_overdue(stage, plan);
        }
        let violations = kernel.violations();
        assert!(violations.is_empty(), "{violations:#?}");
        self.before = now;
    }

    /// That nobody was served from the beginning of the turn until then.
    fn is_frozen(&mut self, until: Duration) {
        if self.frozen.last().is_some_and(|(from, _)| *from == self.began) {
            self.frozen.pop();
        }
        self.frozen.push((self.began, until));
    }

    /// For how long it was so between two times.
    fn was_frozen(&self, from: Duration, to: Duration) -> Duration {
        self.frozen.iter().map(|&(start, end)| end.min(to).saturating_sub(start.max(from))).sum()
    }

    /// What holds when another daemon has taken over.
    pub fn after_take_over(&mut self, stage: &Stage, plan: &Plan) {
        self.is_frozen(stage.kernel.now());
        self.take_overs += 1;
        let now = stage.daemon.snapshot();
        // One that is told to stop, or that has no room for so many senders, reads what they have sent.
        let has_room = figure(&self.before, "senders") < (plan.least() as u64).saturating_sub(30) / 4;
        let parts = stage.daemon.is_stopping() || !has_room;
        for name in ["handed_over", "rejected", "protocol_errors", "bytes_discarded", "senders", "peak"] {
            let (is, was) = (figure(&now, name), figure(&self.before, name));
            // A parked one whose time is over lingers at once, and may speak in that very moment.
            let spoke = name == "bytes_discarded" && is > was;
            assert!(is == was || spoke || parts, "{name}: {was} and then {is}");
        }
        self.judge(stage, plan);
    }

    /// Every descriptor that came is counted, and is open only if it lingers.
    fn counters_add_up(&self, stage: &Stage, plan: &Plan, now: &Snapshot) {
        let get = |name| figure(now, name);
        let ended: u64 = Reason::ALL.iter().map(|reason| get(reason.name())).sum();
        // Files that come with a message as it should be are no hand-offs; others are refused.
        let (delivered, files) = (stage.kernel.delivered(), stage.kernel.delivered_files());
        let (counted, begun) = (get("handed_over") + get("rejected"), stage.daemon.begun() as u64);
        assert!(counted + begun <= delivered && delivered <= counted + files + begun, "{now}");
        assert!(
            !plan.takes_all() || begun > 0 || get("protocol_errors") > 0 || counted + files == delivered,
            "{now}"
        );
        assert!(get("peak") >= get("lingering"), "{now}");
        let timed =
            |what| now.times.iter().filter(move |(is, _, _)| *is == what).map(|(_, _, times)| times.number());
        assert_eq!(get("spooled"), get("spooling") + timed(Timed::Spool).sum::<u64>(), "{now}");
        assert!(timed(Timed::Linger).sum::<u64>() <= ended, "{now}");
        assert!(get("refused") <= stage.crowd.strangers(), "{now}");
        assert!(get("cut_short") <= ended - get("closed") - get("reset"), "{now}");
        let open = stage.process.open_descriptors() as u64;
        let clients = stage.daemon.clients() as u64;
        let files = stage.daemon.files() as u64;
        let parked = get("parked") + stage.daemon.offers() as u64;
        let least =
            get("senders") + get("lingering") + get("spooling") + parked + files + clients + self.own as u64;
        let closing = stage.process.closing() as u64;
        let heir = u64::from(stage.daemon.is_succeeded()); // it may still have to be told something
        // The hand-off socket is closed then, or later if somebody waits there who cannot be let in.
        let is_stopping = stage.daemon.is_stopping();
        let was_full = self.was_full.is_some_and(|when| stage.kernel.now() <= when + plan.patience() * 3);
        let may_wait = plan.faults.accept > 0.0 || plan.is_small() || was_full;
        let doors = least + closing + heir - open;
        assert!(
            doors == 2 * u64::from(is_stopping) || doors < 2 && is_stopping && (may_wait || plan.shared),
            "{doors}: {open} are open, {closing} of them closing, {files} files, {clients} clients, stopping {is_stopping}; {now}; open: {:?}",
            stage.process.descriptors()
        );
    }

    /// Nobody ends before the rules allow it, and each is counted as what it was.
    fn ends_are_allowed(&mut self, stage: &Stage, plan: &Plan, now: &Snapshot) {
        let mut allowed = Allowed::default();
        let mut total = 0;
        let mut cut_short = 0;
        for address in stage.kernel.take_parted() {
            let before = self.parked_anew.get_mut(&address).and_then(VecDeque::pop_front);
            if before.is_some() {
                // Which of the two it is nobody can tell who sees one connection.
                if let Some(Sent { parked: Some(parked), .. }) = self.clients.get(&address) {
                    parked.is_unclear.set(parked.received().is_some());
                    allowed.anything += u64::from(parked.is_unclear.get());
                }
            }
            let Sent { client, spooled, parked, .. } = before
                .or_else(|| self.clients.remove(&address))
                .expect("a connection that was sent ends once");
            let facts = client.facts();
            assert!(facts.half_closed_again <= 1, "by its sender and once here: {facts:?}");
            total += 1;
            let was_parked = parked.is_some();
            if let Some(parked) = parked {
                if parked.is_unclear.get() {
                    allowed.anything += 1;
                    continue;
                }
                if parked.taken.get().is_some() {
                    allowed.returned += 1;
                    continue;
                }
                if !self.is_unparked(stage, plan, &facts, &parked) {
                    self.note_parked_allowed(&facts, &mut allowed);
                    let is_last = facts.closed.is_some() && facts.closed == facts.parted;
                    let known = facts.closed_unread > 0 && facts.heard < Some(self.began);
                    cut_short += u64::from(is_last && !by_client(&facts) && known);
                    continue;
                }
            }
            let is_whole = spooled.as_ref().is_none_or(|spooled| is_whole(&facts, spooled));
            let unsent = spooled.as_ref().filter(|_| !is_whole);
            self.note_allowed(&facts, (unsent, was_parked), plan, &mut allowed);
            let is_last = facts.closed.is_some() && facts.closed == facts.parted;
            // What arrives in the last moment nobody sees.
            let known = facts.closed_unread > 0 && facts.heard < Some(self.began)
                || plan.flavour.tells_acknowledged && facts.closed_unacknowledged > 0;
            cut_short += u64::from(is_last && !by_client(&facts) && known && is_whole);
        }
        let delta = |name| figure(now, name) - figure(&self.before, name);
        // One that is gone before it is looked at may be taken for one that never was connected.
        let counted = Reason::ALL.iter().map(|reason| delta(reason.name())).sum::<u64>();
        assert!(counted <= total && total <= counted + delta("rejected"), "{counted} of {total}: {now}");
        // What comes from a sender that is not believed any more is refused, and is no connection.
        assert!(delta("cut_short") + delta("rejected") >= cut_short, "{cut_short} cut short: {now}");
        let said = format!("{plan:?}\n{}\n{now}", self.before);
        let anything = allowed.anything;
        let Allowed { closed, reset, idle, max, limit, stalled, broken, returned, .. } = &mut allowed;
        for reason in [closed, reset, idle, max, limit, stalled, broken, returned] {
            *reason += anything;
        }
        assert!(delta("closed") <= allowed.closed, "not closed: {said}");
        assert!(delta("reset") <= allowed.reset, "not reset: {said}");
        assert!(delta("idle") <= allowed.idle, "too early idle: {said}");
        assert!(delta("max") <= allowed.max, "too early max: {said}");
        assert!(delta("limit") <= allowed.limit, "too early limit: {said}");
        assert!(delta("stalled") <= allowed.stalled, "too early stalled: {said}");
        assert!(delta("broken") <= allowed.broken, "not broken: {said}");
        let returned = delta("returned");
        assert!(returned <= allowed.returned, "returned to nobody, of {total}: {said}");
        // One may be evicted, or stopped, that has been taken since.
        let unsaid = (allowed.returned - anything).saturating_sub(anything + returned);
        assert!(unsaid <= delta("evicted") + delta("stopped"), "taken, and not returned: {said}");
        let ours = delta("evicted") + delta("stopped") + delta("rejected");
        assert!(ours >= allowed.none, "ended for no reason: {said}");
        // Each may have four files beside it.
        let is_full = |most: usize| figure(now, "peak") + total >= most as u64;
        let time = stage.kernel.now();
        let cut_off = stage.crowd.told().map(|told| (told.0, plan.cut_off(told)));
        let cut_off =
            cut_off.filter(|&(since, when)| time + self.clock_was_set(since, time, |by| by > 0) >= when);
        assert!(delta("stopped") == 0 || cut_off.is_some(), "stopped by nobody: {said}");
        self.cut_off = self.cut_off.into_iter().chain(cut_off.map(|(_, when)| when)).min();
        // One a turn gives its descriptor to who asks.
        assert!(
            delta("evicted") <= u64::from(plan.faults.accept > 0.0)
                || plan.least() <= 600 // senders, files and what may come want most of it
                || is_full(plan.least() / 24)
                || plan.wanted.is_some_and(is_full)
                // Parked ones may have half of it.
                || !plan.servers.is_empty() && plan.wanted.is_some_and(|wanted| is_full(wanted / 2)),
            "evicted from a table with room: {said}"
        );
    }

    /// By how much the clock was set on, or back, between two times.
    fn clock_was_set(&self, from: Duration, to: Duration, counts: impl Fn(i64) -> bool) -> Duration {
        let steps = self.clock_steps.iter().filter(|&&(when, by)| from <= when && when <= to && counts(by));
        Duration::from_nanos(steps.map(|(_, by)| by.unsigned_abs()).sum())
    }

    fn note_allowed(
        &self,
        facts: &Facts,
        (unsent, was_parked): (Option<&Spooled>, bool),
        plan: &Plan,
        allowed: &mut Allowed,
    ) {
        let [idle, max, limit] = plan.rules;
        let parted = facts.parted.expect("it has parted");
        // One whose response was still to be written lingers since that was done.
        let received = facts.received.expect("and so it was received");
        // The same of one that was parked.
        let received =
            facts.half_closed.filter(|_| !facts.written.is_empty() || was_parked).unwrap_or(received);
        // What is noticed in the middle of a turn is dated as of its beginning.
        let reached = |since: Duration, span: Duration| {
            let set_on = self.clock_was_set(since.saturating_sub(self.longest_turn), parted, |by| by > 0);
            let in_turn = self.frozen.iter().find(|(from, to)| (*from..=*to).contains(&since));
            let in_turn = in_turn.map_or(Duration::ZERO, |(from, _)| since - *from);
            // Each daemon has its own clock, of which it tells ticks.
            let rounded = TICK * self.take_overs;
            parted + self.longest_turn.max(in_turn) + set_on + rounded >= since + span
        };
        let has_it_all = if plan.flavour.tells_acknowledged { facts.acknowledged } else { Some(received) };
        let has_it_all = has_it_all.map(|when| when.max(received));
        // What the kernel did not give when it was asked for it, or what came after that, nobody could hear.
        let all_was_read = facts.closed == facts.parted && facts.closed_unread == 0;
        let is_there = |when: &Duration| plan.faults.not_yet == 0.0 && *when < self.began;
        let heard = facts.heard.filter(|when| all_was_read || is_there(when));
        let quiet_since = has_it_all.map(|when| when.max(heard.unwrap_or_default()));
        let happened = |when: Option<Duration>| when.is_some_and(|when| when <= parted);
        let (is_closed, is_reset) = (happened(facts.client_ended), happened(facts.client_gone));
        let is_idle = quiet_since.is_some_and(|since| reached(since, idle));
        let is_max = has_it_all.is_some_and(|since| reached(since, max));
        let is_limit = reached(received, facts.given.map_or(limit, |given| limit.min(given)));
        if let Some(spooled) = unsent {
            // What is acknowledged after that nobody knew, though the turn went on for seconds perhaps.
            let got_on = Some(got_on(facts, plan)).filter(|when| *when <= parted).or(facts.wrote);
            let got_on = got_on.unwrap_or_default().max(received);
            let (is_stalled, is_broken) = (reached(got_on, spooled.patience), spooled.is_broken);
            allowed.reset += u64::from(is_reset);
            allowed.stalled += u64::from(is_stalled);
            allowed.broken += u64::from(is_broken);
            allowed.none += u64::from(!(is_reset || is_stalled || is_broken));
            return;
        }
        allowed.closed += u64::from(is_closed);
        allowed.reset += u64::from(is_reset);
        allowed.idle += u64::from(is_idle);
        allowed.max += u64::from(is_max);
        allowed.limit += u64::from(is_limit);
        allowed.none += u64::from(!(is_closed || is_reset || is_idle || is_max || is_limit));
    }

    /// What a turn may take.
    fn turn(&self) -> Duration {
        self.longest_turn + Duration::from_millis(2)
    }

    /// How many turns may pass until one of so many is served: each serves at least one of those that are ready, and
    /// nobody twice before the others.
    fn turns_until_served(&self, many: u64, plan: &Plan) -> u32 {
        2 + (many / plan.flavour.batch.min(256) as u64) as u32
    }

    /// Nobody lingers on who should have ended by the turn that is over, nor waits in a sender's queue.
    fn nobody_is_overdue(&self, stage: &Stage, plan: &Plan) {
        let [idle, max, limit] = plan.rules;
        let ask = idle.min(max) + 3 * TICK;
        let rounded = TICK * (3 + self.take_overs);
        let slack = self.turn() * self.turns_until_served(self.clients.len() as u64, plan) + rounded;
        for Sent { when, client, spooled, parked, at_second } in self.clients.values() {
            if parked.as_ref().is_some_and(|parked| parked.is_unclear.get()) {
                continue;
            }
            let facts = client.facts();
            let unsent = spooled.as_ref().filter(|spooled| !is_whole(&facts, spooled));
            // What the clock was set back by is no time, nor is that in which nobody was served.
            let passes = |since: Duration| {
                let set_back = self.clock_was_set(since, self.began, |by| by < 0);
                self.began.saturating_sub(set_back + self.was_frozen(since, self.began))
            };
            let received = parked.as_ref().map_or(facts.received, |parked| parked.received());
            let Some(received) = received else {
                let is_queued = facts.closed.is_none()
                    && plan.takes_all()
                    && plan.hangs_up()
                    && !(plan.shared && *at_second);
                let patience = plan.patience() * 2 + slack;
                assert!(!is_queued || passes(*when) < *when + patience, "is left in its queue: {facts:?}");
                continue;
            };
            if let Some(parked) = parked.as_ref().filter(|_| facts.half_closed.is_none()) {
                self.is_not_forgotten(stage, plan, &facts, parked, (received, slack));
                continue;
            }
            if let Some(spooled) = unsent {
                let got_on = got_on(&facts, plan).max(received);
                let now = passes(got_on);
                // It is asked each quarter of that whether it gets on, and the kernel may not answer at once.
                let patience = spooled.patience.mul_f64(1.25) + Duration::from_secs(2) + slack;
                // The rest of its message may be in its sender's queue, who cannot be read just now.
                let begun = if facts.wrote.is_none() { plan.patience() } else { Duration::ZERO };
                let patience = patience + begun;
                assert!(now < got_on + patience, "does not get on: {facts:?} at {now:?}, {plan:?}");
                continue;
            }
            let received = match spooled {
                None if parked.is_some() => facts.half_closed.unwrap_or(received),
                None => received,
                // All is written, and about to be followed by the end.
                Some(_) if facts.half_closed.is_none() => continue,
                Some(_) => facts.half_closed.unwrap_or(received),
            };
            let now = passes(received);
            // One that was parked has what the rules give; and so has one that came again, when it was closed meanwhile.
            let given = facts.given.filter(|_| parked.is_none() && facts.received_times == 1);
            let limit = given.map_or(limit, |given| limit.min(given));
            assert!(now < received + limit + slack, "past its limit: {facts:?} at {now:?}, {plan:?}");
            // Where the kernel had no room for it, it is looked at when it is due; and then the kernel
            // may say that there is nothing yet: one time in eight, and hardly more than seven in a row.
            let Faults { add, rearm, memory, .. } = plan.faults;
            let (unwatched, due) = (add > 0.0 || rearm > 0.0 || memory > 0.0, ask.max(idle));
            let readable = if unwatched { slack + due * 8 } else { slack };
            let gone = [facts.client_ended, facts.client_gone].into_iter().flatten().min();
            if let Some(gone) = gone {
                let since = gone.max(received);
                assert!(now < since + readable, "has ended: {facts:?} at {now:?}, {plan:?}");
            }
            let has_it_all =
                if plan.flavour.tells_acknowledged { facts.acknowledged } else { Some(received) };
            if let Some(when) = has_it_all {
                let noticed = when.max(received) + ask;
                let quiet = noticed.max(facts.heard.unwrap_or_default());
                assert!(now < quiet + idle + readable, "is idle: {facts:?} at {now:?}, {plan:?}");
                assert!(now < noticed + max + readable, "past its max: {facts:?} at {now:?}, {plan:?}");
            }
        }
    }

    /// Where nothing is spooled whoever has come in at the second door is allowed a response.
    fn whoever_may_is_told(&self, stage: &Stage, plan: &Plan, now: &Snapshot) {
        let is_idle =
            figure(now, "spooling") == 0 && stage.daemon.files() == 0 && stage.process.closing() == 0;
        // Else those who have been allowed one may be as many as there is room for.
        let is_large =
            plan.takes_all() && plan.wanted.is_none_or(|wanted| wanted > 100) && plan.most_held == u64::MAX;
        let has_room = is_idle && is_large && !stage.daemon.is_stopping();
        let (time, slack) =
            (stage.kernel.now(), self.turn() * self.turns_until_served(self.clients.len() as u64, plan));
        stage.crowd.each_who_wants(|it| {
            it.wants = has_room.then(|| it.wants.unwrap_or(time));
            let since = it.wants.unwrap_or(time);
            let set_back = self.clock_was_set(since, time, |by| by < 0);
            let patience = plan.patience() * 2 + slack + set_back + self.was_frozen(since, time);
            assert!(time < since + patience, "wants to hand over since {since:?}: {time:?}, {plan:?}");
        });
    }

    /// Who asks is answered within a second, whatever else there is to do.
    fn answers_come(&self, stage: &Stage, plan: &Plan, now: &Snapshot) {
        for (who, at_second, answer) in stage.crowd.take_answers() {
            // There it may have been taken for a sender first; and one who has waited at a door that is closed, or was
            // one too many, has no answer.
            let json = answer.trim_start_matches('G');
            if at_second && who == ROOT {
                let is_whole = json.starts_with("{\"lingering\":") && json.ends_with("}\n");
                assert!(is_whole || json.is_empty(), "'{answer}' is no answer");
                continue;
            }
            match answer.parse::<Snapshot>() {
                _ if who != ROOT => assert_eq!(answer, "", "is not for everybody"),
                Ok(answer) => assert!(figure(&answer, "handed_over") <= figure(now, "handed_over")),
                Err(_) => assert!(plan.faults.accept > 0.0, "'{answer}' is no answer"),
            }
        }
        let time = stage.kernel.now();
        let asked = stage.crowd.waits_since().map(|since| (since, time));
        for (since, time) in asked.into_iter().chain(stage.successors_waited()) {
            let set_back = self.clock_was_set(since, time, |by| by < 0);
            let frozen = self.was_frozen(since, time);
            assert!(
                time < since + plan.patience() + set_back + frozen + TICK,
                "asked at {since:?}, and no answer at {time:?}: {plan:?}"
            );
        }
    }

    /// At the end nothing is left, and nothing was lost.
    pub fn at_end(&mut self, stage: Stage, plan: &Plan) {
        let now = stage.daemon.snapshot();
        assert_eq!((figure(&now, "lingering"), figure(&now, "spooling")), (0, 0));
        assert_eq!((figure(&now, "parked"), figure(&now, "returning")), (0, 0));
        assert_eq!(figure(&now, "spool_bytes"), 0);
        let Stage { kernel, process, daemon, crowd, .. } = stage;
        let (told, _) = crowd.told().expect("it was told to stop");
        let set_back = self.clock_was_set(told, kernel.now(), |by| by < 0);
        // It was told while it told a successor everything, and heard it when that was over.
        let frozen = self.frozen.iter().find(|(from, to)| (*from..*to).contains(&told));
        let frozen = frozen.map_or(Duration::ZERO, |(_, to)| *to - told);
        let took = kernel.now() - told;
        let heard = self.turn() * self.turns_until_served(figure(&now, "peak"), plan);
        assert!(
            took <= plan.drain + set_back + frozen + heard + TICK * 3,
            "to stop took it {took:?}, {:?} a turn at most, told at {told:?}: {plan:?}",
            self.longest_turn
        );
        drop(daemon);
        kernel.run_until(kernel.now() + Duration::from_secs(1_000_000)); // files may take their time to close
        let left: Vec<_> = process.descriptors();
        assert!(left.is_empty(), "left open: {left:?}, {plan:?}");
        assert_eq!(process.registrations(), 0);
        let violations = kernel.violations();
        assert!(violations.is_empty(), "{violations:#?}");
        for client in crowd.take_stranger_sent() {
            assert!(client.facts().received.is_none(), "taken from a stranger: {:?}", client.facts());
        }
        // Who cannot be read or let in when it is told to stop at once is not waited for.
        let is_refused = plan.faults.memory > 0.0 || plan.faults.accept > 0.0;
        let stopped_at_once = self.cut_off.filter(|_| is_refused);
        let anew: usize = self.parked_anew.values().map(VecDeque::len).sum();
        assert_eq!(anew, 0, "were taken, and never parted with");
        for Sent { client, at_second, parked, .. } in self.clients.values().chain(&crowd.take_sent()) {
            let facts = client.facts();
            let received = parked.as_ref().map_or(facts.received, |parked| parked.received());
            assert!(received.is_none(), "received, and never closed: {facts:?}");
            let is_late = stopped_at_once.is_some_and(|when| facts.closed >= Some(when));
            // Who waits at the second door of a service manager's is the next daemon's, and so is who comes to the
            // first one while one that stops tells a successor everything, which has doors of its own.
            let is_managers = plan.shared && (*at_second || self.take_overs > 0);
            assert!(!plan.loses_nothing() || is_late || is_managers, "sent, and lost: {facts:?}, {plan:?}");
        }
    }
}

impl Model {
    /// What workers were brought was due, and what the daemon has taken it has acknowledged.
    fn offers_are_right(&self, stage: &Stage, plan: &Plan) {
        for server in stage.crowd.servers() {
            for Offer { when, parked, received, is_late } in server.take_offers() {
                let received = received.expect("the daemon had it");
                let set_on =
                    self.clock_was_set(received.saturating_sub(self.longest_turn), when, |by| by > 0);
                let frozen = self.was_frozen(received.saturating_sub(self.longest_turn), when);
                let time = when + set_on + self.longest_turn + frozen + TICK * (1 + self.take_overs);
                let is_due = if is_late { parked.is_new && time >= received + parked.patience } else { true };
                assert!(is_due, "too early late, at {when:?}, received at {received:?}: {plan:?}");
            }
            server.nobody_is_kept_from_taking();
            // Whoever was hung up on may still have to be closed.
            let at_once = plan.faults.memory == 0.0 && stage.process.closing() == 0;
            server.acknowledgements_are_right(at_once);
        }
    }

    /// Whether a parked one has lingered in the end; and then that its time was up, or its server away, or the daemon about
    /// to end.
    fn is_unparked(&self, stage: &Stage, plan: &Plan, facts: &Facts, parked: &Parked) -> bool {
        let (Some(half_closed), Some(received)) = (facts.shut_down, facts.received) else { return false };
        let set_on = self.clock_was_set(received.saturating_sub(self.longest_turn), half_closed, |by| by > 0);
        let turn =
            self.longest_turn + self.was_frozen(received.saturating_sub(self.longest_turn), half_closed);
        let time = half_closed + set_on + turn + TICK * (1 + self.take_overs);
        let is_over = !parked.is_new && time >= received + parked.patience;
        let is_stopped = self.stops.iter().any(|(from, to)| (*from..=*to).contains(&half_closed));
        // It looks whether it is there eight times in a second, or when it is asked after five.
        let away_since = half_closed.saturating_sub(Duration::from_secs(11));
        let ten = Duration::from_secs(10).saturating_sub(
            self.clock_was_set(away_since, half_closed, |by| by > 0) + self.longest_turn + TICK,
        );
        let from = half_closed.saturating_sub(ten);
        // Where it is full it may look as if it were away.
        let looks_away = if plan.flavour.refuses_when_full {
            parked.server.was_busy(from, half_closed)
        } else {
            Duration::ZERO
        };
        let was_away = parked.server.was_away(from, half_closed) + looks_away;
        let is_abandoned = was_away + Duration::from_secs(6) >= ten;
        // One that was given up before, and is away again when it is looked for.
        let is_away =
            parked.server.was_away(half_closed.saturating_sub(turn + TICK), half_closed) > Duration::ZERO;
        let is_still_lost = is_away && parked.server.longest_away(half_closed) >= ten;
        // They may have half of the table, and then one of them makes room.
        let peak = figure(&stage.daemon.snapshot(), "peak");
        let is_full = |most: usize| peak >= most as u64;
        let made_room = plan.is_small()
            || is_full(plan.least() / 24)
            || plan.wanted.is_some_and(|wanted| is_full(wanted / 2));
        assert!(
            is_over || is_stopped || is_abandoned || is_still_lost || made_room,
            "given up for no reason: {facts:?}, {:?}, {plan:?}",
            parked.patience
        );
        true
    }

    /// Why the facts allow one to have ended that was parked until then.
    fn note_parked_allowed(&self, facts: &Facts, allowed: &mut Allowed) {
        let happened = |when: Option<Duration>| when.is_some_and(|when| Some(when) <= facts.parted);
        let (is_closed, is_reset) = (happened(facts.client_ended), happened(facts.client_gone));
        allowed.closed += u64::from(is_closed);
        allowed.reset += u64::from(is_reset);
        allowed.none += u64::from(!(is_closed || is_reset));
    }

    /// One that is parked comes back when it has something to say, and lingers when it has nothing to say in time.
    fn is_not_forgotten(
        &self,
        stage: &Stage,
        plan: &Plan,
        facts: &Facts,
        parked: &Parked,
        (received, slack): (Duration, Duration),
    ) {
        if parked.is_with() {
            return;
        }
        // Each that cannot be brought back just now keeps those behind it waiting for a second.
        let refused = plan.faults.memory + plan.faults.call;
        let queue = Duration::from_secs(self.most_returning).mul_f64(if refused > 0.0 { 1.0 } else { 0.0 });
        let readable = slack + plan.patience() + Duration::from_secs(3) + queue;
        let passes = |since: Duration| {
            let set_back = self.clock_was_set(since, self.began, |by| by < 0);
            self.began.saturating_sub(set_back + self.was_frozen(since, self.began))
        };
        if let Some(taken) = parked.taken.get() {
            assert!(passes(taken) < taken + readable, "was taken: {facts:?} at {:?}, {plan:?}", self.began);
            return;
        }
        let Some(free) = parked.server.is_free_since() else { return };
        let since = received.max(free).max(parked.was_left.get()).max(self.was_jammed);
        if let Some(ready) = parked.ready() {
            // Half a head is looked at again in as long again, or a second.
            let since = since.max(ready);
            assert!(
                passes(since) < since + readable,
                "has spoken: {facts:?}, free since {free:?}, at {:?}; {}; {plan:?}",
                self.began,
                stage.daemon.snapshot()
            );
        }
        let since = since.max(received + parked.patience);
        assert!(
            passes(since) < since + readable,
            "its time is up: {facts:?}, {:?}, free since {free:?}, at {:?}, {plan:?}",
            parked.patience,
            self.began
        );
    }
}

/// Whether all of what was still to be written is: of nothing else, in its order, and the client is told of the end
/// only then.
fn is_whole(facts: &Facts, spooled: &Spooled) -> bool {
    let mut left = facts.written.iter().copied();
    let mut next = left.next();
    let mut is_whole = true;
    for piece in spooled.pieces.iter().filter(|piece| piece.length > 0) {
        match next {
            Some(it) if it == *piece && is_whole => next = left.next(),
            Some(it)
                if is_whole
                    && (it.file, it.offset) == (piece.file, piece.offset)
                    && it.length < piece.length =>
            {
                (is_whole, next) = (false, left.next());
            }
            None => is_whole = false,
            Some(it) => panic!("{it:?} was written, and not {piece:?}: {facts:?}, {spooled:?}"),
        }
    }
    assert_eq!(next, None, "more was written: {facts:?}, {spooled:?}");
    assert!(is_whole || facts.read_to_end.is_none(), "cut off, and looks whole: {facts:?}, {spooled:?}");
    is_whole
}

/// When the daemon last knew that it got on.
fn got_on(facts: &Facts, plan: &Plan) -> Duration {
    let got_on = if plan.flavour.tells_acknowledged { facts.got_on } else { facts.wrote };
    got_on.unwrap_or_default()
}

/// Whether the client had ended it by then.
fn by_client(facts: &Facts) -> bool {
    [facts.client_ended, facts.client_gone].into_iter().flatten().any(|when| Some(when) <= facts.parted)
}

fn figure(snapshot: &Snapshot, name: &str) -> u64 {
    snapshot.get(name).expect("a figure")
}
