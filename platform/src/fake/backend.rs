// SPDX-License-Identifier: BSD-3-Clause

//! What waits: registrations belong to the open file description, and a list of what may be ready is
//! gone through from its front, as in epoll.

use super::descriptors::{Fd, Kind};
use super::evidence::Call;
use super::faults::Reports;
use super::slab::{Key, Slab};
use super::state::State;
use crate::backend::{Descriptor, Interest, Token};
use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

/// Whether a registered descriptor is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watched {
    /// When it is ready.
    Armed,
    /// No more, until it is armed again.
    Forgotten,
    /// As ready, because the kernel has refused it.
    Refused,
    /// It was, and has been reported.
    Told,
}

/// A registered descriptor.
pub(super) struct Watch {
    file: Key,
    pub number: RawFd,
    pub token: Token,
    interest: Interest,
    state: Watched,
    /// Whether it stands in the list of what may be ready.
    listed: bool,
}

/// What one [`Backend`] has in the kernel.
pub(super) struct Poller {
    pub process: usize,
    pub watches: Slab<Watch>,
    /// Those that may be ready; those behind the front became it, or were reported, later.
    list: VecDeque<Key>,
}

impl Poller {
    pub fn wake(&mut self, watch: Key) {
        let Some(it) = self.watches.get_mut(watch) else { return };
        if !it.listed && matches!(it.state, Watched::Armed | Watched::Refused) {
            it.listed = true;
            self.list.push_back(watch);
        }
    }
}

impl State {
    /// The registration of `number`, if there is one.
    fn watch(&self, poller: Key, number: RawFd, call: Call) -> (Key, Option<Key>) {
        let Some(it) = self.pollers.get(poller) else { panic!("{call:?} after the end of its process") };
        let file = self.file(it.process, number, call);
        let watches = self.files.get(file).map_or(&[][..], |file| &file.watches);
        let of_number = |watch: &Key| it.watches.get(*watch).is_some_and(|watch| watch.number == number);
        let watch = watches.iter().filter(|(p, _)| *p == poller).map(|&(_, watch)| watch).find(of_number);
        (file, watch)
    }

    fn add(&mut self, poller: Key, number: RawFd, token: Token, interest: Interest) -> io::Result<()> {
        let (file, watch) = self.watch(poller, number, Call::Add);
        if watch.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let mut state = Watched::Armed;
        if let Some(error) = self.refuses(file, |faults| faults.add) {
            if self.flavour.reports != Reports::Refusals {
                return Err(error);
            }
            state = Watched::Refused;
        }
        let Some(it) = self.pollers.get_mut(poller) else { return Ok(()) };
        let watch = it.watches.insert(Watch { file, number, token, interest, state, listed: false });
        it.wake(watch);
        if let Some(file) = self.files.get_mut(file) {
            file.watches.push((poller, watch));
        }
        Ok(())
    }

    /// What the kernel has against watching `file`: it cannot, or it has no room now.
    fn refuses(&mut self, file: Key, fault: impl FnOnce(&super::Faults) -> f64) -> Option<io::Error> {
        if matches!(self.kind(file), Kind::Other { closing: Some(_), .. }) {
            return Some(io::Error::from_raw_os_error(libc::EPERM));
        }
        self.dice.roll(fault).then(|| self.dice.one_of(&[libc::ENOMEM, libc::ENOSPC]))
    }

    /// Asks the kernel again, where it has to be asked, and reports from then on.
    fn arm(&mut self, poller: Key, watch: Key, interest: Interest) -> io::Result<()> {
        let Some((file, state, before)) = self
            .pollers
            .get(poller)
            .and_then(|it| it.watches.get(watch))
            .map(|w| (w.file, w.state, w.interest))
        else {
            return Ok(());
        };
        let asks = match self.flavour.reports {
            Reports::Always => false,
            Reports::Once => true,
            Reports::Refusals => state != Watched::Armed || interest != before,
        };
        let refused = if asks { self.refuses(file, |faults| faults.rearm) } else { None };
        let Some(it) = self.pollers.get_mut(poller) else { return Ok(()) };
        if let Some(watch) = it.watches.get_mut(watch) {
            watch.interest = interest;
            watch.state = if refused.is_some() { Watched::Told } else { Watched::Armed };
        }
        it.wake(watch);
        refused.map_or(Ok(()), Err)
    }

    fn change(&mut self, poller: Key, number: RawFd, token: Token, interest: Interest) -> io::Result<()> {
        let (_, watch) = self.watch(poller, number, Call::Change);
        let watch = watch.ok_or(io::ErrorKind::NotFound)?;
        self.check_token(poller, watch, token, None);
        self.arm(poller, watch, interest)
    }

    fn rearm(&mut self, poller: Key, number: RawFd, token: Token, interest: Interest) -> io::Result<()> {
        let (_, watch) = self.watch(poller, number, Call::Rearm);
        let Some(watch) = watch else {
            self.violation(format_args!("descriptor {number} armed again, but not registered"));
            return Err(io::ErrorKind::NotFound.into());
        };
        self.check_token(poller, watch, token, Some(interest));
        self.arm(poller, watch, interest)
    }

    /// Whoever changes or rearms names what was added.
    fn check_token(&mut self, poller: Key, watch: Key, token: Token, interest: Option<Interest>) {
        let Some(it) = self.pollers.get(poller).and_then(|it| it.watches.get(watch)) else { return };
        if it.token != token || interest.is_some_and(|interest| it.interest != interest) {
            let (number, was, of) = (it.number, it.token, it.interest);
            self.violation(format_args!(
                "descriptor {number} is registered as {was:?} for {of:?}, not as {token:?} for {interest:?}"
            ));
        }
    }

    fn remove(&mut self, poller: Key, number: RawFd) -> io::Result<()> {
        let (file, watch) = self.watch(poller, number, Call::Remove);
        let watch = watch.ok_or(io::ErrorKind::NotFound)?;
        if let Some(it) = self.pollers.get_mut(poller) {
            it.watches.remove(watch);
        }
        if let Some(file) = self.files.get_mut(file) {
            file.watches.retain(|&of| of != (poller, watch));
        }
        Ok(())
    }

    /// Appends the tokens of what is ready now.
    fn collect(&mut self, poller: Key, ready: &mut Vec<Token>) {
        let Some(mut list) = self.pollers.get_mut(poller).map(|it| std::mem::take(&mut it.list)) else {
            return;
        };
        for _ in 0..list.len() {
            if ready.len() >= self.flavour.batch {
                break;
            }
            let Some(key) = list.pop_front() else { break };
            // What is not there any more was removed.
            let Some(it) = self.pollers.get(poller).and_then(|it| it.watches.get(key)) else { continue };
            let is_ready = match it.state {
                Watched::Armed => self.is_ready(it.file, it.interest),
                Watched::Refused => true,
                Watched::Forgotten | Watched::Told => false,
            };
            let once = self.flavour.reports == Reports::Once;
            let Some(it) = self.pollers.get_mut(poller).and_then(|it| it.watches.get_mut(key)) else {
                continue;
            };
            it.listed = false;
            if !is_ready {
                continue;
            }
            ready.push(it.token);
            match it.state {
                Watched::Refused => it.state = Watched::Told,
                _ if once => it.state = Watched::Forgotten,
                _ => {
                    it.listed = true;
                    list.push_back(key);
                }
            }
        }
        if let Some(it) = self.pollers.get_mut(poller) {
            it.list = list;
        }
        if self.flavour.shuffled {
            self.dice.rng.shuffle(ready);
        }
    }

    /// Perhaps the token of something that may be anything but ready.
    fn collect_spurious(&mut self, poller: Key, ready: &mut Vec<Token>) {
        if !self.dice.roll(|faults| faults.spurious) {
            return;
        }
        let once = self.flavour.reports == Reports::Once;
        let Some(it) = self.pollers.get_mut(poller) else { return };
        let Some(key) = it.watches.any(&mut self.dice.rng) else { return };
        let Some(watch) = it.watches.get_mut(key) else { return };
        if watch.state == Watched::Armed && !ready.contains(&watch.token) {
            ready.push(watch.token);
            if once {
                watch.state = Watched::Forgotten;
            }
        }
    }

    /// A daemon that never sleeps would keep the simulation for ever.
    fn check_progress(&mut self) {
        const MOST: u32 = 100_000;
        self.waits += 1;
        assert!(self.waits < MOST, "{MOST} waits at {:.6} s: the daemon spins", self.now.as_secs_f64());
    }

    /// Those that would be reported if only they were armed.
    pub fn unheard(&self) -> Vec<Token> {
        let watches = self.pollers.values().flat_map(|poller| poller.watches.values());
        let unheard =
            |watch: &&Watch| watch.state != Watched::Armed && self.is_ready(watch.file, watch.interest);
        watches.filter(unheard).map(|watch| watch.token).collect()
    }
}

/// See the module's head.
pub struct Backend {
    fd: Fd,
    poller: Key,
}

impl Backend {
    pub(super) fn new(fd: Fd) -> Self {
        let poller = Poller { process: fd.process, watches: Slab::new(), list: VecDeque::new() };
        let poller = fd.kernel.state().pollers.insert(poller);
        Backend { fd, poller }
    }

    /// Makes one call for a descriptor and notes it.
    fn control(
        &self,
        call: Call,
        fd: &impl Descriptor,
        make: impl FnOnce(&mut State, RawFd) -> io::Result<()>,
    ) -> io::Result<()> {
        let number = fd.number();
        let mut state = self.fd.kernel.enter();
        let made = make(&mut state, number);
        state.note(call, number, made.as_ref().map_or(-1, |()| 0));
        made
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let mut state = self.fd.kernel.state();
        let Some(poller) = state.pollers.remove(self.poller) else { return };
        for watch in poller.watches.values() {
            if let Some(file) = state.files.get_mut(watch.file) {
                file.watches.retain(|&(of, _)| of != self.poller);
            }
        }
    }
}

impl crate::backend::Backend for Backend {
    const NAME: &'static str = "fake";

    fn add(&mut self, fd: &impl Descriptor, token: Token, interest: Interest) -> io::Result<()> {
        self.control(Call::Add, fd, |state, number| state.add(self.poller, number, token, interest))
    }

    fn change(&mut self, fd: &impl Descriptor, token: Token, interest: Interest) -> io::Result<()> {
        self.control(Call::Change, fd, |state, number| state.change(self.poller, number, token, interest))
    }

    fn rearm(&mut self, fd: &impl Descriptor, token: Token, interest: Interest) -> io::Result<()> {
        self.control(Call::Rearm, fd, |state, number| state.rearm(self.poller, number, token, interest))
    }

    fn remove(&mut self, fd: &impl Descriptor) -> io::Result<()> {
        self.control(Call::Remove, fd, |state, number| state.remove(self.poller, number))
    }

    /// Runs the agenda until something is ready or the time is over. Where neither would ever come it
    /// does what is to be done [at rest](super::Kernel::at_rest).
    ///
    /// # Panics
    /// When that has all been done: the process would sleep for ever.
    fn wait(&mut self, ready: &mut Vec<Token>, timeout: Option<Duration>) -> io::Result<()> {
        ready.clear();
        let kernel = &self.fd.kernel;
        let deadline = {
            let mut state = kernel.enter();
            state.check_progress();
            let deadline =
                timeout.map(|time| state.now.saturating_add(round_up(time, state.flavour.granularity)));
            if state.dice.roll(|faults| faults.early) {
                let most = deadline.map_or(Duration::from_secs(1), |time| time - state.now);
                Some(state.now + state.dice.time(most))
            } else {
                deadline
            }
        };
        loop {
            let next = {
                let mut state = kernel.state();
                assert!(state.now <= state.end, "still there after {:.6} s", state.end.as_secs_f64());
                state.collect(self.poller, ready);
                if !ready.is_empty() || deadline.is_some_and(|time| time <= state.now) {
                    state.collect_spurious(self.poller, ready);
                    let count = ready.len() as i64;
                    state.note(Call::Wait, -1, count);
                    return Ok(());
                }
                state.agenda.next()
            };
            match (next, deadline) {
                (Some(next), Some(deadline)) => kernel.run_until(next.min(deadline)),
                (Some(time), None) | (None, Some(time)) => kernel.run_until(time),
                (None, None) => kernel.rest(),
            }
        }
    }
}

/// `time`, as the next multiple of `unit`.
fn round_up(time: Duration, unit: Duration) -> Duration {
    let units = time.as_nanos().div_ceil(unit.as_nanos().max(1));
    let nanos = units.saturating_mul(unit.as_nanos().max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}
