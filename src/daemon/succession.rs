// SPDX-License-Identifier: BSD-3-Clause

//! From one daemon to the next: taking everything over, and giving it away.

use super::handoffs::SOCKET_BUDGET;
use super::{Daemon, SUMMARY_EVERY};
use crate::connections::park::Parked;
use crate::connections::spool::{Extent, Part, Response};
use crate::rules::linger::Linger;
use crate::senders::intake;
use crate::service::control::Order;
use crate::source::{Source, Speech};
use crate::upgrade::heir::Estate;
use crate::upgrade::image::{self, Facts, Frame, Household, ParkFacts, Rest, Role, SenderFacts, SpoolFacts};
use crate::upgrade::testator::{self, Testator};
use lingerd_platform::backend::Descriptor;
use lingerd_platform::fdpass::{Door, Link, PORTABLE_DESCRIPTORS};
use lingerd_platform::manager::Notice;
use lingerd_platform::signals::Signal;
use lingerd_platform::world::World;
use log::{debug, info, warn};
use std::io;
use std::time::Duration;

impl<W: World> Daemon<W> {
    /// Makes the doors its own that a predecessor has let go of. Returns when, since this one was made: nobody serves until
    /// it has [taken over](Self::take_over).
    pub fn claim(&self) -> Duration {
        let when = self.clock.uptime();
        self.control.door().claim();
        Speech::ALL.into_iter().filter_map(|speech| self.senders.door(speech)).for_each(Door::claim);
        when
    }

    /// Makes everything its own that a predecessor has told about and has let go of; `claimed` is when.
    pub fn take_over(&mut self, estate: Estate<W::Received>, claimed: Duration) {
        // What was told is of the time in which this one was made; what is done is done now, and it may have
        // taken seconds until the predecessor let go.
        let told = self.clock.now();
        self.clock.turn();
        let now = self.clock.now();
        let counters = estate.household.counters();
        let before = Duration::from_millis(estate.household.uptime);
        self.clock.count_on(before);
        self.connections.count_on(&counters);
        let counted = |name| counters.get(name).unwrap_or(0);
        self.senders.count_on(counted("protocol_errors"), counted("refused"));
        for (link, SenderFacts { spools, has_credit, owed }) in estate.senders {
            let speech = if spools { Speech::Spool } else { Speech::Linger };
            let facts = intake::Facts { speech, may_spool: has_credit, owed };
            let sender = self.senders.add(W::Link::of(link), facts, now);
            if let Err(e) = self.senders.watch(sender, &mut self.backend) {
                self.retry.backend(Source::Sender(sender), now, &e);
            }
            self.acknowledge(sender, now); // what the one before this one could not tell it
        }
        let senders = self.senders.len();
        // This one may have fewer descriptors, and then it keeps fewer senders.
        let kept = senders.min(self.connections.room().senders());
        for (socket, facts) in estate.connections {
            self.connections.take_over(socket, facts.at(told), kept, &mut self.backend, now);
        }
        for (socket, files, facts) in estate.spools {
            let of = facts.at(told);
            let extent = |(file, it): (_, Rest)| Extent {
                file,
                offset: it.offset,
                left: it.length,
                is_ours: it.is_ours,
            };
            let response =
                Response { socket, files: files.into_iter().zip(facts.files).map(extent).collect() };
            self.connections.take_over_spool(response, of, kept, &mut self.backend, now);
        }
        let mut parks = estate.parks;
        parks.sort_by_key(|(_, _, facts)| facts.number.is_none()); // numbers before those who get new ones
        for (socket, link, facts) in parks {
            // What cannot be understood lingers.
            let Ok((handed_over, park, ticket)) = facts.at(told) else {
                self.connections.take_over(socket, Linger::new(now), kept, &mut self.backend, now);
                continue;
            };
            let of = (handed_over, park, ticket, facts.number);
            let parked = (socket, link.map(W::Link::of));
            self.connections.take_over_park(parked, of, kept, &mut self.backend, now);
        }
        self.part_with_the_silent();
        for (role, thing) in estate.things {
            if role == Role::Client {
                let client = self.control.seat(W::Link::of(thing), &mut self.backend);
                self.hear_client(client); // and closes what makes room for it
            }
        }
        self.summary_at.get_or_insert(now + SUMMARY_EVERY);
        // Beside what the predecessor says that nobody was served for: that ends with its last word.
        let took = self.clock.uptime().saturating_sub(before + claimed).as_secs_f64() * 1e3;
        info!(
            "took over {} connections and {senders} senders; that took {took:.1} ms more",
            self.connections.len()
        );
    }

    /// Gives everything to the successor at the other end of `link`. If it does not take it all is as it was.
    pub(super) fn give_away(&mut self, link: W::Link) {
        // What was said before it came counts as said.
        self.answer(Source::Stop);
        if self.senders.may_wait() {
            // A door that is shut is none to give away; who is hung up on comes again.
            return self.connections.close_link(link);
        }
        // Half a message cannot be told; whoever says one says the other half at once.
        for sender in self.senders.half_way() {
            self.receive(sender, SOCKET_BUDGET);
        }
        for sender in self.senders.half_way() {
            self.senders.take_begun(sender, &mut self.received);
            self.refuse_received();
            self.senders.warn(self.clock.now(), "half a message");
            self.hang_up(sender);
        }
        let start = self.clock.uptime();
        // Told to stop, it has ended in time, whoever hangs.
        let left = self.end_at.map_or(testator::PATIENCE, |at| self.clock.until(at));
        let mut testator = Testator::new(&link, self.clock.clock(), left.min(testator::PATIENCE));
        let given = self.give_to(&link, &mut testator);
        if given.is_err() {
            testator.keep();
        }
        let received = testator.into_received();
        received.into_iter().for_each(|other| self.connections.close_slowly(other));
        match given {
            Ok(true) => {
                Testator::new(&link, self.clock.clock(), Duration::ZERO).say(image::GIVEN);
                let took = self.clock.uptime().saturating_sub(start).as_secs_f64() * 1e3;
                let connections = self.connections.len();
                info!(
                    "a successor has taken over {connections} connections; nobody was served for {took:.1} ms"
                );
                self.heir = Some(link);
                return self.pass_stop_on();
            }
            Ok(false) => debug!("another lingerd was started, without -r"),
            Err(e) => warn!("a successor wanted to take over, but {e}; this daemon serves on"),
        }
        self.connections.close_link(link);
    }

    /// Tells the successor that it is to stop, if this one was told so since it has let go.
    pub(super) fn pass_stop_on(&mut self) {
        if let Some(heir) = self.heir.as_ref().filter(|_| self.signals.stop.take() > 0) {
            Testator::new(heir, self.clock.clock(), Duration::ZERO).say(Order::StopToo.byte());
        }
    }

    /// Tells the successor everything, and waits for its word. Returns whether there was anything to
    /// take over for it.
    fn give_to(
        &self,
        link: &W::Link,
        testator: &mut Testator<'_, W::Link, W::Clock>,
    ) -> Result<bool, testator::Error> {
        let request = testator.request()?;
        if request.only_if_stopping && !self.is_stopping() {
            return testator.refuse().map(|()| false);
        }
        let others = self.connections.spooling() + self.connections.parked();
        let speaks = self.senders.door(Speech::Spool).is_some() || others > 0;
        if speaks && !(request.spools && request.parks) {
            return Err(testator::Error::Older);
        }
        info!("lingerd {} takes over", request.version);
        let mut roles = vec![Role::Control];
        let mut things: Vec<&dyn Descriptor> = vec![self.control.door()];
        for (speech, role) in [(Speech::Linger, Role::Door), (Speech::Spool, Role::SpoolDoor)] {
            if let Some(door) = self.senders.door(speech) {
                roles.push(role);
                things.push(door);
            }
        }
        if let Some((_, pid_file)) = &self.pid_file {
            roles.push(Role::PidFile);
            things.push(&**pid_file);
        }
        for (_, client) in self.control.undecided() {
            roles.push(Role::Client);
            things.push(client);
        }
        let household = Household {
            roles,
            pid_file: self.pid_file.as_ref().map(|(path, _)| path.clone()),
            door_is_shared: self.senders.door_is_shared(),
            uptime: self.clock.uptime().as_millis() as u64, // of years
            counters: self.snapshot().told(),
        };
        testator.send(&Frame::Household(household), &things)?;
        for senders in self.senders.by_silence().chunks(PORTABLE_DESCRIPTORS) {
            let (links, facts) = senders
                .iter()
                .copied()
                .map(|(link, intake::Facts { speech, may_spool, owed })| {
                    let facts = SenderFacts { spools: speech == Speech::Spool, has_credit: may_spool, owed };
                    (link as &dyn Descriptor, facts)
                })
                .unzip::<_, _, Vec<_>, Vec<_>>();
            testator.send(&Frame::Senders { facts }, &links)?;
        }
        let now = self.clock.now();
        let mut connections = self.connections.by_age().peekable();
        while connections.peek().is_some() {
            let some = connections.by_ref().take(PORTABLE_DESCRIPTORS);
            let (sockets, facts): (Vec<_>, Vec<_>) =
                some.map(|(socket, linger)| (socket as &dyn Descriptor, Facts::of(&linger, now))).unzip();
            testator.send(&Frame::Connections { facts }, &sockets)?;
        }
        for (handed_over, spool, socket, parts) in self.connections.spools() {
            let mut things: Vec<&dyn Descriptor> = vec![socket];
            let mut rests = Vec::new();
            for Extent { file, offset, left, is_ours } in parts.iter().map(Part::extent) {
                things.push(file);
                rests.push(Rest { offset, length: left, is_ours });
            }
            let facts = SpoolFacts::of(handed_over, spool, rests, now);
            testator.send(&Frame::Spools { facts: vec![facts] }, &things)?;
        }
        let mut parks = self.connections.parks().peekable();
        while parks.peek().is_some() {
            let (mut things, mut facts): (Vec<&dyn Descriptor>, _) = (Vec::new(), Vec::new());
            // Each may have a link.
            for Parked { socket, handed_over, park, ticket, number, link } in
                parks.by_ref().take(PORTABLE_DESCRIPTORS / 2)
            {
                things.push(socket);
                things.extend(link.map(|link| link as &dyn Descriptor));
                let is_offered = link.is_some();
                facts.push(ParkFacts { number, is_offered, ..ParkFacts::of(handed_over, park, ticket, now) });
            }
            testator.send(&Frame::Parks { facts }, &things)?;
        }
        testator.send(&Frame::End, &[])?;
        testator.wait_until_it_has_it()?;
        // Before it hears that it serves, and tells so itself. A manager that does not know takes the end of this
        // process for that of the service, and ends the new one.
        let pid = link.peer().ok().and_then(|peer| peer.pid);
        if !(self.tell)(Notice::SucceededBy(pid.unwrap_or(0))) {
            return Err(io::Error::other("the service manager cannot be told who it is").into());
        }
        Ok(true)
    }
}
