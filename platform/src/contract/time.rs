// SPDX-License-Identifier: BSD-3-Clause

//! The contracts of [`Clock`], [`SlowClose`] and [`Signal`].

use super::{Peer, Received, Stage};
use crate::backend::{Backend, Interest, Token};
use crate::clock::Clock;
use crate::closing::SlowClose;
use crate::signals::Signal;
use std::time::Duration;

/// Makes tests of the clock on a stage.
macro_rules! clock_tests {
    ($stage:expr) => {
        $crate::contract::played! { $crate::contract::time, $stage;
            time_goes_on_while_it_is_waited_and_not_back
        }
    };
}
/// Makes tests of slow closes on a stage.
macro_rules! closing_tests {
    ($stage:expr) => {
        $crate::contract::played! { $crate::contract::time, $stage;
            what_is_closed_slowly_is_closed_once_and_counted_until_then
        }
    };
}
/// Makes tests of signals on a stage.
macro_rules! signal_tests {
    ($stage:expr) => {
        $crate::contract::played! { $crate::contract::time, $stage;
            signals_are_ready_and_counted_until_they_are_taken
        }
    };
}
pub(crate) use {clock_tests, closing_tests, signal_tests};

pub fn time_goes_on_while_it_is_waited_and_not_back<S: Stage>(stage: &mut S) {
    const WHILE: Duration = Duration::from_millis(20);
    let clock = stage.clock();
    let mut backend = stage.backend();
    let mut before = clock.now();
    for _ in 0..3 {
        let start = clock.now();
        assert!(start >= before);
        backend.wait(&mut Vec::new(), Some(WHILE)).unwrap();
        before = clock.now();
        assert!(before - start >= WHILE);
        clock.pause();
        let rested = clock.now();
        assert!(rested >= before);
        clock.sleep(WHILE);
        assert!(clock.now() - rested >= WHILE);
    }
}

/// Closes it, and sees to it that it is.
pub fn close_slowly<S: Stage>(stage: &mut S, received: Received<S>) {
    let mut slow = stage.slow_close();
    slow.close(received);
    stage.until("closed", || slow.waiting() == 0);
}

pub fn what_is_closed_slowly_is_closed_once_and_counted_until_then<S: Stage>(stage: &mut S) {
    let mut slow = stage.slow_close();
    assert_eq!(slow.waiting(), 0);
    let mut peers = Vec::new();
    for n in 0..20 {
        let (mut peer, received) = stage.connection();
        peer.let_go();
        slow.close(received);
        assert!(slow.waiting() <= n + 1);
        peers.push(peer);
    }
    stage.until("closed", || slow.waiting() == 0);
    for peer in &mut peers {
        assert_eq!(peer.read_to_end().unwrap(), 0);
    }
}

pub fn signals_are_ready_and_counted_until_they_are_taken<S: Stage>(stage: &mut S) {
    let mut signal = stage.signal();
    let mut backend = stage.backend();
    let mut ready = Vec::new();
    backend.add(&signal, Token(1), Interest::Read).unwrap();
    assert_eq!(signal.take(), 0);
    for (arrive, taken) in [(1, &[1, 0][..]), (2, &[2, 0]), (20, &[16, 4, 0])] {
        for _ in 0..arrive {
            stage.raise();
        }
        for _ in 0..2 {
            backend.wait(&mut ready, None).unwrap();
            assert_eq!(ready, [Token(1)]);
            backend.rearm(&signal, Token(1), Interest::Read).unwrap();
        }
        for &count in taken {
            assert_eq!(signal.take(), count);
        }
        backend.wait(&mut ready, Some(Duration::from_millis(1))).unwrap();
        assert_eq!(ready, []);
    }
    backend.remove(&signal).unwrap();
}
