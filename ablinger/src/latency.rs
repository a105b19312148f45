// SPDX-License-Identifier: BSD-3-Clause

//! Percentiles of very many times in little memory.
//!
//! A histogram of microseconds whose buckets grow with the value: exact up to 2 ms, and above that
//! never wider than 1/1024 of the value. It takes a few hundred kilobytes at most however long a
//! run is, where a list of all times would grow for ever. Knows numbers only.

use std::time::Duration;

/// The buckets of each power of two above the exact ones.
const BUCKETS: u64 = 1 << BITS;
const BITS: u32 = 10;

/// The times seen so far.
#[derive(Default)]
pub struct Histogram {
    /// How often each bucket was met; grows to the greatest one.
    counts: Vec<u64>,
    total: u64,
    min: u64,
    max: u64,
}

impl Histogram {
    /// Adds a time.
    pub fn add(&mut self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let bucket = bucket(micros);
        if self.counts.len() <= bucket {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] += 1;
        self.min = if self.total == 0 { micros } else { self.min.min(micros) };
        self.max = self.max.max(micros);
        self.total += 1;
    }

    /// The least time that at least `percent` of a hundred of all times do not exceed (the nearest
    /// rank), in microseconds; 0 asks for the least of all, 100 for the greatest. `None` while
    /// there is no time at all.
    pub fn percentile(&self, percent: u32) -> Option<u64> {
        if self.total == 0 {
            return None;
        }
        if percent == 0 {
            return Some(self.min);
        }
        let rank = (u128::from(self.total) * u128::from(percent)).div_ceil(100);
        let mut seen = 0;
        for (bucket, &count) in self.counts.iter().enumerate() {
            seen += u128::from(count);
            if seen >= rank {
                // The bucket's end, so that the answer is never below the truth; the greatest
                // time of all is known better than that.
                return Some(bucket_end(bucket).min(self.max));
            }
        }
        Some(self.max)
    }
}

/// The bucket that `value` falls into.
fn bucket(value: u64) -> usize {
    let bits = u64::BITS - value.leading_zeros();
    // How many low bits this bucket does not tell apart.
    let shift = bits.saturating_sub(BITS + 1);
    (u64::from(shift) * BUCKETS + (value >> shift)) as usize
}

/// The greatest value of `bucket`.
fn bucket_end(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let shift = (bucket / BUCKETS).saturating_sub(1);
    let start = bucket - shift * BUCKETS;
    (start << shift) + ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(micros: impl IntoIterator<Item = u64>) -> Histogram {
        let mut histogram = Histogram::default();
        for micros in micros {
            histogram.add(Duration::from_micros(micros));
        }
        histogram
    }

    #[test]
    fn nothing_has_no_percentile() {
        assert_eq!(Histogram::default().percentile(50), None);
    }

    #[test]
    fn nearest_rank_as_a_table() {
        for (times, percent, expected) in [
            (vec![7], 0, 7),
            (vec![7], 50, 7),
            (vec![7], 100, 7),
            (vec![0, 0, 0], 99, 0),
            (vec![2, 1], 0, 1),
            (vec![2, 1], 50, 1),
            (vec![2, 1], 51, 2),
            (vec![5, 1, 4, 2, 3], 50, 3),
            (vec![5, 1, 4, 2, 3], 60, 3),
            (vec![5, 1, 4, 2, 3], 61, 4),
            (vec![5, 1, 4, 2, 3], 80, 4),
            (vec![5, 1, 4, 2, 3], 81, 5),
            ((1..=100).collect(), 1, 1),
            ((1..=100).collect(), 90, 90),
            ((1..=100).collect(), 95, 95),
            ((1..=100).collect(), 99, 99),
            ((1..=100).collect(), 100, 100),
            ((1..=1000).rev().collect(), 99, 990),
        ] {
            let shown = format!("{percent} of {times:?}");
            assert_eq!(of(times).percentile(percent), Some(expected), "{shown}");
        }
    }

    #[test]
    fn buckets_join_without_gap_or_overlap() {
        assert_eq!(bucket(0), 0);
        for next in 1..100_000 {
            let value = bucket_end(next - 1) + 1;
            let greatest = bucket_end(next);
            if greatest == u64::MAX {
                return;
            }
            assert_eq!((bucket(value), bucket(greatest)), (next, next), "{value}..={greatest}");
            assert!(greatest - value <= value / 1024, "{value}..={greatest}");
        }
        panic!("the buckets never reach the greatest number");
    }

    #[test]
    fn never_below_the_truth_and_hardly_above() {
        let times: Vec<u64> = (1..=50_000).map(|n| n * 977).collect();
        let histogram = of(times.iter().copied());
        for percent in [1, 10, 50, 90, 95, 99] {
            let truth = times[times.len() * percent as usize / 100 - 1];
            let told = histogram.percentile(percent).unwrap();
            assert!(told >= truth && told <= truth + truth / 1000, "{percent}: {told} for {truth}");
        }
        assert_eq!(histogram.percentile(0), Some(977));
        assert_eq!(histogram.percentile(100), times.last().copied());
    }
}
