// SPDX-License-Identifier: BSD-3-Clause

//! The clock that the daemon sees, its signals, and what closes slowly.

use super::descriptors::{Fd, Kind, Received};
use super::evidence::Call;
use super::slab::Key;
use super::state::State;
use super::{Handle, Kernel};
use crate::backend::Descriptor;
use std::os::fd::RawFd;
use std::time::Duration;

/// How far the clock leaps at most.
const LEAP: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// How far it goes back at most.
const BACK: Duration = Duration::from_secs(1);

/// A clock that shows the simulation's time, from wherever it was set to, and that may leap.
pub struct Clock {
    pub(super) kernel: Kernel,
    /// What the kernel's shows when this one is at 0.
    pub(super) start: Duration,
}

impl crate::clock::Clock for Clock {
    fn now(&self) -> Duration {
        let mut state = self.kernel.enter();
        if state.dice.roll(|faults| faults.leap) {
            let leap = state.dice.time(LEAP).as_nanos() as i64;
            state.step_clock(leap);
        }
        if state.dice.roll(|faults| faults.back) {
            let back = state.dice.time(BACK).as_nanos() as i64;
            state.step_clock(-back);
        }
        let shift = state.shift;
        state.note(Call::Now, 0, shift);
        state.clock().saturating_sub(self.start)
    }

    fn pause(&self) {
        let pause = {
            let mut state = self.kernel.enter();
            state.note(Call::Pause, 0, 0);
            state.flavour.pause.map(|pause| state.now + pause)
        };
        if let Some(time) = pause {
            self.kernel.run_until(time);
        }
    }

    fn sleep(&self, time: Duration) {
        let until = {
            let mut state = self.kernel.enter();
            state.note(Call::Sleep, 0, 0);
            state.now.saturating_add(time)
        };
        self.kernel.run_until(until);
    }
}

impl State {
    fn step_clock(&mut self, nanos: i64) {
        self.shift = self.shift.saturating_add(nanos);
        self.steps.push((self.now, nanos));
    }

    /// What the clock shows.
    pub fn clock(&self) -> Duration {
        let shift = Duration::from_nanos(self.shift.unsigned_abs());
        if self.shift < 0 { self.now.saturating_sub(shift) } else { self.now + shift }
    }
}

/// Closes one after the other, each in the time that it takes.
pub struct SlowClose {
    pub(super) kernel: Kernel,
    pub(super) process: usize,
}

impl crate::closing::SlowClose<Received> for SlowClose {
    fn waiting(&self) -> usize {
        self.kernel.state().processes[self.process].closing
    }

    fn close(&mut self, descriptor: Received) {
        let number = descriptor.0.into_number();
        self.kernel.enter().close_slowly(self.process, number);
    }
}

/// Where signals of one meaning arrive.
pub struct Signal(pub(super) Fd);

impl Descriptor for Signal {
    fn number(&self) -> RawFd {
        self.0.number()
    }
}

impl crate::signals::Signal for Signal {
    fn take(&mut self) -> usize {
        const MOST: usize = 16;
        let mut state = self.0.kernel.enter();
        let file = state.file(self.0.process, self.0.number(), Call::Take);
        let taken = match state.files.get_mut(file).map(|file| &mut file.kind) {
            Some(Kind::Signal(count)) => {
                let taken = (*count).min(MOST);
                *count -= taken;
                taken
            }
            _ => 0,
        };
        state.note(Call::Take, self.0.number(), taken as i64);
        taken
    }
}

/// Sends one meaning's signals to a process. Clones send the same.
#[derive(Clone)]
pub struct Raiser {
    pub(super) kernel: Handle,
    pub(super) file: Key,
}

impl Raiser {
    /// How many the process has not taken yet.
    pub fn pending(&self) -> usize {
        match self.kernel.get().state().files.get(self.file).map(|file| &file.kind) {
            Some(Kind::Signal(count)) => *count,
            _ => 0,
        }
    }

    /// Once. Where the process has ended nothing happens.
    pub fn raise(&self) {
        let kernel = self.kernel.get();
        let mut state = kernel.state();
        if let Some(Kind::Signal(count)) = state.files.get_mut(self.file).map(|file| &mut file.kind) {
            *count += 1;
            state.note_outside(self.file, 1);
            state.wake(self.file);
        }
    }
}
