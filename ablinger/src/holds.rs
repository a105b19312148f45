// SPDX-License-Identifier: BSD-3-Clause

//! How long each socket is held: normally distributed times.
//!
//! Knows no socket and no clock.

use std::f64::consts::TAU;
use std::time::Duration;

/// Draws the hold times of a run.
pub struct Holds {
    mean_ms: f64,
    stddev_ms: f64,
    rng: fastrand::Rng,
}

impl Holds {
    /// Times of `mean_ms` on average with a standard deviation of `stddev_ms`, drawn from `rng`.
    pub fn new(mean_ms: u32, stddev_ms: u32, rng: fastrand::Rng) -> Self {
        Holds { mean_ms: mean_ms.into(), stddev_ms: stddev_ms.into(), rng }
    }

    /// The next time. One that would be negative is zero.
    pub fn draw(&mut self) -> Duration {
        // Box-Muller. f64() is in [0, 1): turned round, so that the logarithm is of no zero.
        let radius = (-2.0 * (1.0 - self.rng.f64()).ln()).sqrt();
        let normal = radius * (TAU * self.rng.f64()).cos();
        let ms = (self.mean_ms + self.stddev_ms * normal).max(0.0);
        // Finite and far below Duration's greatest: the radius is below 9, both factors are u32.
        Duration::from_secs_f64(ms / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(mean_ms: u32, stddev_ms: u32, n: usize) -> Vec<f64> {
        let mut holds = Holds::new(mean_ms, stddev_ms, fastrand::Rng::with_seed(1));
        (0..n).map(|_| holds.draw().as_secs_f64() * 1000.0).collect()
    }

    #[test]
    fn without_deviation_all_are_the_mean() {
        assert_eq!(draw(250, 0, 100), [250.0; 100]);
        assert_eq!(draw(0, 0, 100), [0.0; 100]);
    }

    #[test]
    fn mean_and_deviation_are_as_asked() {
        let times = draw(1000, 100, 20_000);
        let n = times.len() as f64;
        let mean = times.iter().sum::<f64>() / n;
        let stddev = (times.iter().map(|ms| (ms - mean).powi(2)).sum::<f64>() / n).sqrt();
        assert!((mean - 1000.0).abs() < 5.0, "{mean}");
        assert!((stddev - 100.0).abs() < 5.0, "{stddev}");
        // A uniform distribution of this deviation would have none beyond 1.74 deviations.
        let far = times.iter().filter(|&&ms| (ms - 1000.0).abs() > 200.0).count() as f64 / n;
        assert!((0.03..0.06).contains(&far), "{far}");
    }

    #[test]
    fn none_is_negative_and_extremes_do_not_panic() {
        let times = draw(10, 1000, 1000);
        assert!(times.iter().all(|&ms| ms >= 0.0));
        assert!(times.contains(&0.0));
        draw(u32::MAX, u32::MAX, 10_000);
    }
}
