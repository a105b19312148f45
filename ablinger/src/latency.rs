// SPDX-License-Identifier: BSD-3-Clause

//! Percentiles of very many times in little memory, without what would flatter them.
//!
//! A time counts from when its request was due, not from when it was sent: a client that a slow
//! server keeps from sending would else leave out the worst (coordinated omission). And a request
//! that nobody has answered by the end is not left out either: so far it took as long as it has
//! waited. Knows numbers only.

use hdrhistogram::Histogram;
use std::time::Duration;

/// The longest time that is told from others, in microseconds: a day.
const LONGEST: u64 = 24 * 60 * 60 * 1_000_000;

/// So many digits of each time count: exact up to 2 ms, and above that a thousandth too great at
/// most.
const DIGITS: u8 = 3;

/// The times seen so far.
#[derive(Clone)]
pub struct Latencies {
    answered: Histogram<u64>,
    /// How long those had waited that were not answered by the end.
    waiting: Histogram<u64>,
}

impl Default for Latencies {
    fn default() -> Self {
        // It fails for bounds that make no sense, and these are constants.
        let empty = Histogram::new_with_max(LONGEST, DIGITS).expect("a range that a histogram can have");
        Latencies { answered: empty.clone(), waiting: empty }
    }
}

/// In microseconds.
fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Latencies {
    /// Adds the time that an answer took.
    pub fn add(&mut self, time: Duration) {
        self.answered.saturating_record(micros(time));
    }

    /// Adds the time that a request had waited in vain when the run ended.
    pub fn add_waiting(&mut self, time: Duration) {
        self.waiting.saturating_record(micros(time));
    }

    /// How many requests were not answered by the end.
    pub fn unanswered(&self) -> u64 {
        self.waiting.len()
    }

    /// The longest that one had waited in vain, in microseconds; 0 if there is none.
    pub fn longest_wait(&self) -> u64 {
        self.waiting.max()
    }

    /// The least time within which at least `percent` of a hundred are answered, in microseconds; 0
    /// asks for the least of all, 100 for the greatest. `None`: it is longer than the run tells.
    pub fn percentile(&self, percent: u32) -> Option<u64> {
        // What rounding may have made of a share that is just enough.
        const BLUR: f64 = 1e-9;
        let open = 1.0 - f64::from(percent) / 100.0 + BLUR;
        self.shares().into_iter().find(|share| share.open <= open).map(|share| share.time)
    }

    /// How the share of those without an answer falls with time: the estimate of Kaplan and Meier. At each
    /// time that an answer took it falls by as many as were answered then, of all those that had waited
    /// until then. Who had not, when the run ended, says nothing of that time.
    fn shares(&self) -> Vec<Share> {
        let mut waited = (self.answered.len() + self.waiting.len()) as f64;
        let mut waiting = self.waiting.iter_recorded().peekable();
        let mut open = 1.0;
        let mut shares = Vec::new();
        for met in self.answered.iter_recorded() {
            let time = met.value_iterated_to();
            while let Some(less) = waiting.next_if(|wait| wait.value_iterated_to() < time) {
                waited -= less.count_since_last_iteration() as f64;
            }
            let answered = met.count_since_last_iteration() as f64;
            // Of the slowest of all nobody knows how many would be slower: half a one, for the curve.
            let curve = open * (waited - answered).max(0.5) / waited;
            open *= (waited - answered) / waited;
            waited -= answered;
            shares.push(Share { time, open, curve });
        }
        shares
    }

    /// The curve: for each time that was met, in milliseconds, one of how many requests took longer.
    pub fn curve(&self) -> Vec<(f64, f64)> {
        let point = |share: Share| (share.time as f64 / 1000.0, 1.0 / share.curve);
        self.shares().into_iter().map(point).collect()
    }
}

/// What share of the requests took longer than a time.
struct Share {
    time: u64,
    open: f64,
    /// The same, but never none.
    curve: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(answered: impl IntoIterator<Item = u64>, waiting: impl IntoIterator<Item = u64>) -> Latencies {
        let mut latencies = Latencies::default();
        answered.into_iter().for_each(|micros| latencies.add(Duration::from_micros(micros)));
        waiting.into_iter().for_each(|micros| latencies.add_waiting(Duration::from_micros(micros)));
        latencies
    }

    #[test]
    fn nothing_has_no_percentile() {
        assert_eq!(Latencies::default().percentile(50), None);
        assert_eq!(of([], [7]).percentile(0), None);
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
            assert_eq!(of(times, []).percentile(percent), Some(expected), "{shown}");
        }
    }

    #[test]
    fn who_waits_in_vain_is_not_left_out() {
        for (answered, waiting, percent, expected) in [
            // Three of four are still waiting: half were not answered within any time that was seen.
            (vec![1], vec![9, 9, 9], 25, Some(1)),
            (vec![1], vec![9, 9, 9], 50, None),
            (vec![1, 2], vec![9, 9], 50, Some(2)),
            (vec![1, 2], vec![9, 9], 51, None),
            // Who has waited for less than that says nothing of it.
            (vec![1, 2, 10], vec![5, 5], 40, Some(2)),
            (vec![1, 2, 10], vec![5, 5], 41, Some(10)),
            (vec![10, 10], vec![1, 1, 1, 1], 100, Some(10)),
            (vec![1, 1, 1, 10], vec![5], 60, Some(1)),
            (vec![1, 1, 1, 10], vec![5], 61, Some(10)),
            (vec![1, 1, 1], vec![3, 9], 60, Some(1)),
            (vec![1, 1, 1], vec![3, 9], 61, None),
            // The greatest is not known while one waits for longer, or was not answered within that.
            (vec![1, 2], vec![1], 100, Some(2)),
            (vec![1, 2], vec![2], 100, None),
            (vec![1, 2], vec![3], 100, None),
        ] {
            let shown = format!("{percent} of {answered:?} while {waiting:?} wait");
            assert_eq!(of(answered, waiting).percentile(percent), expected, "{shown}");
        }
    }

    #[test]
    fn never_below_the_truth_and_hardly_above() {
        let times: Vec<u64> = (1..=50_000).map(|n| n * 977).collect();
        let latencies = of(times.iter().copied(), []);
        for percent in [1, 10, 50, 90, 95, 99, 100] {
            let truth = times[times.len() * percent as usize / 100 - 1];
            let told = latencies.percentile(percent).unwrap();
            assert!(told >= truth && told <= truth + truth / 1000, "{percent}: {told} for {truth}");
        }
        assert_eq!(latencies.percentile(0), Some(977));
    }

    #[test]
    fn what_is_longer_than_a_day_is_as_good_as_a_day() {
        let latencies = of([u64::MAX], []);
        assert!(latencies.percentile(50).is_some_and(|told| told >= LONGEST));
    }

    #[test]
    fn the_curve_is_of_all_that_is_known() {
        assert_eq!(of([1000, 2000], []).curve(), [(1.0, 2.0), (2.0, 4.0)]);
        assert_eq!(of([1000], [2000]).curve(), [(1.0, 2.0)]);
        assert_eq!(of([1000], [900]).curve(), [(1.0, 2.0)]);
    }
}
