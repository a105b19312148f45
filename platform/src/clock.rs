// SPDX-License-Identifier: BSD-3-Clause

//! The monotonic clock, and the short pause before a turn.

use std::thread;
use std::time::{Duration, Instant};

/// The contract: time that passes whatever the date is set to, and a pause.
///
/// Successive calls of [`now`](Self::now) should not go back, but a daemon survives it when they
/// do, or leap far ahead: kernels and virtual machines have done both.
pub trait Clock {
    /// The time since a fixed moment. What the process sleeps in [`pause`](Self::pause) and what it
    /// waits in a backend is part of it; whether a suspended machine's time is, is the system's.
    fn now(&self) -> Duration;

    /// Lets a moment pass in which more may become ready, where that pays and the system can sleep
    /// for so short a time: a millisecond on Linux, none elsewhere. It never ends the process and
    /// has no error.
    fn pause(&self);

    /// Lets so much time pass: where everything has to wait for something that no descriptor tells of.
    fn sleep(&self, time: Duration);
}

/// What a turn waits for more to do before it starts, as a network card moderates its interrupts.
/// Most clients close within this time of the hand-off, and then one read finds the end of their
/// stream: no registration, no second wake-up. Nobody waits for it but the FIN of a sender that does
/// not half-close itself; on systems other than Linux none does (see [`crate::tcp::Tcp::half_close`]),
/// and some of them sleep for no less than 10 ms.
const PAUSE: Option<Duration> = if cfg!(target_os = "linux") { Some(Duration::from_millis(1)) } else { None };

/// The system's monotonic clock, clock_gettime(2) with CLOCK_MONOTONIC or its like.
pub struct Monotonic {
    start: Instant,
}

impl Monotonic {
    /// A clock at 0.
    pub fn start() -> Self {
        Monotonic { start: Instant::now() }
    }
}

impl Clock for Monotonic {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn pause(&self) {
        if let Some(pause) = PAUSE {
            thread::sleep(pause);
        }
    }

    fn sleep(&self, time: Duration) {
        thread::sleep(time);
    }
}

#[cfg(test)]
mod tests {
    use crate::contract::{Real, time::clock_tests};

    clock_tests!(Real);
}
