//! lingerd: lingering close, taken over from servers with a process per connection.
//!
//! Data flows one way, and no module calls back up this line:
//!
//! 1. [`handoff`]: a socket comes in from a sender,
//! 2. [`table`]: it becomes one entry,
//! 3. [`linger`]: the state machine decides (every rule is there),
//! 4. `lingerd_platform::backend` waits,
//! 5. [`stats`]: it leaves with a reason, which is counted.
//!
//! [`daemon`] is the loop that moves them along, within the [`room`] that there is; [`control`]
//! answers `lingerd -S`; [`options`], [`pidfile`], [`endpoint`], [`closer`] and [`logger`] are a
//! daemon's manners. Everything that differs by system, and every `unsafe`, is in the crate
//! `lingerd-platform`.

#![forbid(unsafe_code)]

pub mod closer;
pub mod control;
pub mod daemon;
pub mod endpoint;
pub mod handoff;
pub mod linger;
pub mod logger;
pub mod options;
pub mod pidfile;
pub mod room;
pub mod stats;
pub mod table;

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
