//! lingerd: lingering close, taken over from servers with a process per connection.
//!
//! Data flows one way, and nothing calls back up this line:
//!
//! ```text
//! a sender -> senders (a message) -> connections (a row) <-> rules (a verdict) -> closed and counted
//! ```
//!
//! [`daemon`] is the turn that moves them along and the stop; it makes no system call itself. The two
//! wings, [`senders`] and [`connections`], never import each other; [`rules`] import nothing but
//! themselves. [`source`] has the tokens by which a backend names either, [`retry`] what has to be
//! tried again, [`stats`] the counters. [`service`] is what makes it a service of the system (the
//! command line, the pid file, the control socket, the log), and [`start`] puts it all together.
//! Everything that differs by system, and every `unsafe`, is in the crate `lingerd-platform`.
//! CONTRIBUTING.md has the map; `ci/rooms` holds every file to what it may know.

#![forbid(unsafe_code)]

mod clock;
pub mod connections;
pub mod daemon;
pub mod retry;
pub mod rules;
pub mod senders;
pub mod service;
pub mod source;
pub mod start;
pub mod stats;

/// Tests of what must hold in whatever order things happen.
#[cfg(test)]
mod fuzz {
    use fastrand::Rng;
    use std::env;
    use std::str::FromStr;
    use std::time::{Duration, Instant};

    /// Plays `case` with the seeds from 0 up to `usual`. With LINGERD_FUZZ_SECONDS in the environment
    /// it is played that long, with seeds that nobody has tried; with LINGERD_FUZZ_SEED it is played
    /// once, with that seed, which is what a failure prints.
    pub fn any(usual: u64, case: impl Fn(&mut Rng)) {
        let play = |seed| {
            let _told = Told(seed);
            case(&mut Rng::with_seed(seed));
        };
        if let Some(seed) = number("LINGERD_FUZZ_SEED") {
            play(seed);
        } else if let Some(seconds) = number("LINGERD_FUZZ_SECONDS") {
            let (start, first) = (Instant::now(), fastrand::u64(..));
            let mut seeds = 0;
            while start.elapsed() < Duration::from_secs(seconds) {
                play(first.wrapping_add(seeds));
                seeds += 1;
            }
            println!("{seeds} cases");
        } else {
            (0..usual).for_each(play);
        }
    }

    fn number<T: FromStr>(name: &str) -> Option<T> {
        env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}: not a number")))
    }

    /// Tells the seed when the case fails.
    struct Told(u64);

    impl Drop for Told {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("to see this again: LINGERD_FUZZ_SEED={}", self.0);
            }
        }
    }
}
