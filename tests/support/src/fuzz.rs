// SPDX-License-Identifier: BSD-3-Clause

//! Tests of what must hold in whatever order things happen: chance from seeds, and the seed of what
//! failed.

use fastrand::Rng;
use std::env;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// Plays `case` with the seeds from 0 up to `usual`, or to LINGERD_FUZZ_SEEDS in the environment, for
/// who has little time. With LINGERD_FUZZ_SECONDS it is played that long, with seeds that nobody has
/// tried; with LINGERD_FUZZ_SEED it is played once, with that seed, which is what a failure prints.
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
        (0..number("LINGERD_FUZZ_SEEDS").unwrap_or(usual)).for_each(play);
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
            let test = std::thread::current().name().unwrap_or_default().to_owned();
            eprintln!("to see this again: LINGERD_FUZZ_SEED={} cargo test {test}", self.0);
        }
    }
}
