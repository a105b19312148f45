// SPDX-License-Identifier: BSD-3-Clause

//! The contract of [`Backend`] as tests: the same for the kernel's and for a fake one.
//!
//! A test names what happens in its words and plays it on a [`Stage`]. What only a kernel can show
//! (signals, threads, copies of a descriptor, what cannot be waited for) is tested beside the real
//! ones. Must not know which backend it plays with.

use super::{Backend, Descriptor, Interest, Token};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::time::Duration;

/// Makes a backend and what it can wait for.
pub trait Stage {
    /// What is on trial.
    type Backend: Backend;
    /// What it waits for.
    type Pair: Pair;

    /// A new one, with which nothing is registered.
    fn backend(&mut self) -> Self::Backend;

    /// A connection, both ends open. It may take a moment until one end sees what the other did.
    fn pair(&mut self) -> Self::Pair;

    /// As [`pair`](Self::pair), but what one end does the other sees at once, and whether there is
    /// room is exact. There is no reset.
    fn local_pair(&mut self) -> Self::Pair;

    /// Has the far end send a byte a little later, when the caller waits.
    fn send_later(&mut self, pair: &Self::Pair);

    /// The time, of which a wait takes some.
    fn now(&self) -> Duration;
}

/// A stream of bytes both ways. Both ends are closed when it is dropped.
pub trait Pair {
    /// The end that is waited for.
    fn near(&self) -> impl Descriptor;
    /// The far end sends a byte.
    fn send(&mut self);
    /// The near end reads what is there.
    fn drain(&mut self);
    /// The near end writes until there is no room.
    fn fill(&mut self);
    /// The far end reads all that was written: there is room again.
    fn make_room(&mut self);
    /// The far end sends no more.
    fn half_close(&mut self);
    /// The far end is closed.
    fn close(&mut self);
    /// The far end is closed with a reset.
    fn reset(&mut self);
}

/// Makes a `#[test]` of each test of the contract, on the stage that the expression makes.
macro_rules! contract_tests {
    ($stage:expr) => {
        $crate::backend::contract::contract_tests! { $stage;
            what_stays_ready_is_reported_again
            what_happens_during_a_wait_with_a_time_limit_is_reported
            a_wait_for_nobody_lasts_its_time
            write_interest_reports_room
            a_reset_is_reported_whatever_the_interest
            a_far_end_that_is_gone_is_reported_to_who_waits_for_room
            the_next_user_of_a_number_has_its_own_token
            what_is_removed_before_the_first_wait_takes_nothing_with_it
            what_is_removed_does_not_even_wake
            a_token_comes_back_bit_for_bit
            misuse_is_an_error
            more_ready_than_one_batch_are_all_reported
            an_interest_changes_to_write_and_back
            a_descriptor_that_is_ready_for_both_is_reported_once
            what_is_not_registered_cannot_be_changed
            a_change_before_the_first_wait_counts
            a_change_silences_what_was_reported_about_the_old_interest
            what_was_changed_after_a_report_need_not_be_rearmed
            what_is_removed_after_a_change_does_not_even_wake
            more_changes_than_a_batch_before_a_wait_all_count
            whatever_is_changed_in_whatever_order_the_ready_are_reported
        }
    };
    ($stage:expr; $($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                $crate::backend::contract::$name(&mut $stage);
            }
        )*
    };
}
pub(crate) use contract_tests;

const SOON: Option<Duration> = Some(Duration::from_millis(1));
/// Only a test that fails waits so long.
const PATIENCE: Option<Duration> = Some(Duration::from_secs(20));

use Interest::{Both, Read, Write};

/// One wait.
pub fn wait(backend: &mut impl Backend, timeout: Option<Duration>) -> Vec<Token> {
    let mut ready = vec![Token(u64::MAX)]; // to be cleared first
    backend.wait(&mut ready, timeout).unwrap();
    ready
}

/// Whether nothing came for the whole time, not even a wake-up for nothing.
fn silent<S: Stage>(stage: &S, backend: &mut S::Backend) -> bool {
    const WHILE: Duration = Duration::from_millis(50);
    let start = stage.now();
    wait(backend, Some(WHILE)).is_empty() && stage.now() - start >= WHILE
}

pub fn what_stays_ready_is_reported_again(stage: &mut impl Stage) {
    let mut pair = stage.pair();
    let mut backend = stage.backend();
    backend.add(&pair.near(), Token(7), Read).unwrap();
    assert_eq!(wait(&mut backend, SOON), []);
    pair.send();
    for _ in 0..3 {
        assert_eq!(wait(&mut backend, None), [Token(7)]);
        backend.rearm(&pair.near(), Token(7), Read).unwrap();
    }
    pair.drain();
    assert_eq!(wait(&mut backend, SOON), []);
    pair.half_close();
    assert_eq!(wait(&mut backend, None), [Token(7)], "end of stream counts as ready");
}

pub fn what_happens_during_a_wait_with_a_time_limit_is_reported(stage: &mut impl Stage) {
    let pair = stage.pair();
    let mut backend = stage.backend();
    backend.add(&pair.near(), Token(1), Read).unwrap();
    stage.send_later(&pair);
    assert_eq!(wait(&mut backend, Some(Duration::from_secs(60))), [Token(1)]);
}

pub fn a_wait_for_nobody_lasts_its_time(stage: &mut impl Stage) {
    let mut backend = stage.backend();
    assert!(silent(stage, &mut backend));
    let start = stage.now();
    for _ in 0..20 {
        assert_eq!(wait(&mut backend, Some(Duration::from_micros(100))), []);
    }
    assert!(stage.now() - start >= Duration::from_millis(2), "a short time-out is not rounded down");
}

pub fn write_interest_reports_room(stage: &mut impl Stage) {
    let mut pair = stage.local_pair();
    let mut backend = stage.backend();
    backend.add(&pair.near(), Token(1), Write).unwrap();
    assert_eq!(wait(&mut backend, None), [Token(1)]);
    pair.fill();
    backend.rearm(&pair.near(), Token(1), Write).unwrap();
    pair.send(); // is nothing to who waits to write
    assert!(silent(stage, &mut backend));
    pair.make_room();
    assert_eq!(wait(&mut backend, None), [Token(1)]);
}

pub fn a_reset_is_reported_whatever_the_interest(stage: &mut impl Stage) {
    for interest in [Read, Write, Both] {
        let mut pair = stage.pair();
        let mut backend = stage.backend();
        pair.fill();
        backend.add(&pair.near(), Token(1), interest).unwrap();
        pair.reset();
        assert_eq!(wait(&mut backend, None), [Token(1)], "{interest:?}");
    }
}

pub fn a_far_end_that_is_gone_is_reported_to_who_waits_for_room(stage: &mut impl Stage) {
    let mut pair = stage.local_pair();
    let mut backend = stage.backend();
    pair.fill();
    backend.add(&pair.near(), Token(1), Write).unwrap();
    assert_eq!(wait(&mut backend, SOON), []);
    pair.close();
    assert_eq!(wait(&mut backend, None), [Token(1)]);
}

pub fn the_next_user_of_a_number_has_its_own_token(stage: &mut impl Stage) {
    let mut pairs = [stage.pair(), stage.pair()];
    let mut backend = stage.backend();
    backend.add(&pairs[0].near(), Token(1), Read).unwrap();
    backend.add(&pairs[1].near(), Token(2), Read).unwrap();
    backend.remove(&pairs[1].near()).unwrap();
    backend.add(&pairs[1].near(), Token(3), Write).unwrap();
    pairs[0].send();
    let mut ready = wait(&mut backend, None);
    if ready.len() < 2 {
        ready.extend(wait(&mut backend, None));
    }
    ready.sort();
    ready.dedup();
    assert_eq!(ready, [Token(1), Token(3)]);
}

pub fn what_is_removed_before_the_first_wait_takes_nothing_with_it(stage: &mut impl Stage) {
    let mut pairs: Vec<_> = (0..4).map(|_| stage.pair()).collect();
    let mut backend = stage.backend();
    for (n, pair) in pairs.iter_mut().enumerate() {
        backend.add(&pair.near(), Token(n as u64), Read).unwrap();
        pair.half_close();
    }
    backend.remove(&pairs[0].near()).unwrap(); // the first: another takes its place
    backend.remove(&pairs[3].near()).unwrap();
    backend.remove(&pairs[2].near()).unwrap(); // the last
    backend.add(&pairs[2].near(), Token(5), Read).unwrap();
    let mut seen = BTreeSet::new();
    while seen.len() < 2 {
        for token in wait(&mut backend, None) {
            backend.rearm(&pairs[token.0 as usize % 3].near(), token, Read).unwrap();
            seen.insert(token);
        }
    }
    assert_eq!(Vec::from_iter(seen), [Token(1), Token(5)]);
}

pub fn what_is_removed_does_not_even_wake(stage: &mut impl Stage) {
    for interest in [Read, Write, Both] {
        let mut pair = stage.pair();
        pair.send();
        let mut backend = stage.backend();
        backend.add(&pair.near(), Token(1), interest).unwrap();
        backend.remove(&pair.near()).unwrap();
        assert!(silent(stage, &mut backend), "before the first wait");
        backend.add(&pair.near(), Token(2), interest).unwrap();
        assert_eq!(wait(&mut backend, None), [Token(2)]);
        backend.rearm(&pair.near(), Token(2), interest).unwrap();
        backend.remove(&pair.near()).unwrap();
        assert!(silent(stage, &mut backend), "after it was reported");
    }
}

pub fn a_token_comes_back_bit_for_bit(stage: &mut impl Stage) {
    let mut pair = stage.pair();
    pair.send();
    for token in [0, 1, u64::MAX - 1, u64::MAX, 0x0123_4567_89ab_cdef] {
        let mut backend = stage.backend();
        backend.add(&pair.near(), Token(token), Read).unwrap();
        assert_eq!(wait(&mut backend, None), [Token(token)]);
        backend.remove(&pair.near()).unwrap();
    }
}

pub fn misuse_is_an_error(stage: &mut impl Stage) {
    let pair = stage.pair();
    let mut backend = stage.backend();
    let missing = backend.remove(&pair.near()).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    backend.add(&pair.near(), Token(1), Read).unwrap();
    let twice = backend.add(&pair.near(), Token(1), Read).unwrap_err();
    assert_eq!(twice.kind(), ErrorKind::AlreadyExists);
}

pub fn more_ready_than_one_batch_are_all_reported(stage: &mut impl Stage) {
    let mut pairs: Vec<_> = (0..600).map(|_| stage.local_pair()).collect();
    let mut backend = stage.backend();
    for (n, pair) in pairs.iter_mut().enumerate() {
        backend.add(&pair.near(), Token(n as u64), Read).unwrap();
        pair.send();
    }
    let mut seen = BTreeSet::new();
    for _ in 0..20 {
        for token in wait(&mut backend, SOON) {
            backend.rearm(&pairs[token.0 as usize].near(), token, Read).unwrap();
            seen.insert(token);
        }
    }
    assert_eq!(seen.len(), pairs.len());
}

pub fn an_interest_changes_to_write_and_back(stage: &mut impl Stage) {
    let mut pair = stage.local_pair();
    let mut backend = stage.backend();
    backend.add(&pair.near(), Token(1), Read).unwrap();
    assert_eq!(wait(&mut backend, SOON), []);
    for _ in 0..2 {
        backend.change(&pair.near(), Token(1), Write).unwrap();
        assert_eq!(wait(&mut backend, None), [Token(1)]);
        backend.change(&pair.near(), Token(1), Read).unwrap();
        assert!(silent(stage, &mut backend));
    }
    backend.change(&pair.near(), Token(1), Both).unwrap();
    assert_eq!(wait(&mut backend, None), [Token(1)]);
    backend.change(&pair.near(), Token(1), Read).unwrap();
    assert!(silent(stage, &mut backend));
    pair.send();
    assert_eq!(wait(&mut backend, None), [Token(1)]);
}

pub fn a_descriptor_that_is_ready_for_both_is_reported_once(stage: &mut impl Stage) {
    let mut pair = stage.local_pair();
    let mut backend = stage.backend();
    backend.add(&pair.near(), Token(1), Both).unwrap();
    assert_eq!(wait(&mut backend, None), [Token(1)], "room");
    backend.rearm(&pair.near(), Token(1), Both).unwrap();
    pair.send();
    for _ in 0..3 {
        assert_eq!(wait(&mut backend, None), [Token(1)], "room, and a byte");
        backend.rearm(&pair.near(), Token(1), Both).unwrap();
    }
    pair.fill();
    assert_eq!(wait(&mut backend, None), [Token(1)], "a byte");
    backend.rearm(&pair.near(), Token(1), Both).unwrap();
    pair.drain();
    assert!(silent(stage, &mut backend), "neither");
    pair.make_room();
    assert_eq!(wait(&mut backend, None), [Token(1)], "room again");
}

pub fn what_is_not_registered_cannot_be_changed(stage: &mut impl Stage) {
    let pair = stage.pair();
    let mut backend = stage.backend();
    for interest in [Read, Write, Both] {
        let error = backend.change(&pair.near(), Token(1), interest).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
    assert!(silent(stage, &mut backend), "and is not registered by that");
    backend.add(&pair.near(), Token(2), Both).unwrap();
    assert_eq!(wait(&mut backend, None), [Token(2)]);
    backend.remove(&pair.near()).unwrap();
    let error = backend.change(&pair.near(), Token(2), Write).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(silent(stage, &mut backend));
}

pub fn a_change_before_the_first_wait_counts(stage: &mut impl Stage) {
    for (first, then) in [(Write, Read), (Both, Read), (Read, Write), (Both, Write)] {
        let mut pair = stage.local_pair();
        let mut backend = stage.backend();
        // What it was added for is there, what it waits for is not.
        if then == Write {
            pair.send();
            pair.fill();
        }
        backend.add(&pair.near(), Token(1), first).unwrap();
        backend.change(&pair.near(), Token(1), then).unwrap();
        assert!(silent(stage, &mut backend), "{first:?}, then {then:?}");
        backend.change(&pair.near(), Token(1), Both).unwrap();
        backend.change(&pair.near(), Token(1), then).unwrap();
        assert!(silent(stage, &mut backend), "{first:?}, then {then:?}, Both and {then:?}");
        pair.send();
        pair.make_room();
        assert_eq!(wait(&mut backend, None), [Token(1)], "{first:?}, then {then:?}");
    }
}

pub fn a_change_silences_what_was_reported_about_the_old_interest(stage: &mut impl Stage) {
    let mut pair = stage.local_pair();
    let mut backend = stage.backend();
    pair.fill();
    pair.send();
    backend.add(&pair.near(), Token(1), Read).unwrap();
    assert_eq!(wait(&mut backend, None), [Token(1)]);
    backend.change(&pair.near(), Token(1), Write).unwrap();
    assert!(silent(stage, &mut backend), "there is something to read, but no room");
    pair.make_room();
    assert_eq!(wait(&mut backend, None), [Token(1)]);
    backend.rearm(&pair.near(), Token(1), Write).unwrap();
    pair.drain();
    backend.change(&pair.near(), Token(1), Read).unwrap();
    assert!(silent(stage, &mut backend), "there is room, but nothing to read");
}

pub fn what_was_changed_after_a_report_need_not_be_rearmed(stage: &mut impl Stage) {
    let mut pair = stage.local_pair();
    let mut backend = stage.backend();
    pair.send();
    backend.add(&pair.near(), Token(1), Read).unwrap();
    // Each time what was reported is forgotten; and a change to the same is one.
    for interest in [Read, Write, Both, Both, Write, Read] {
        assert_eq!(wait(&mut backend, None), [Token(1)], "before it was {interest:?}");
        backend.change(&pair.near(), Token(1), interest).unwrap();
    }
    assert_eq!(wait(&mut backend, None), [Token(1)]);
    // Who does both does no harm.
    backend.change(&pair.near(), Token(1), Write).unwrap();
    backend.rearm(&pair.near(), Token(1), Write).unwrap();
    assert_eq!(wait(&mut backend, None), [Token(1)]);
}

pub fn what_is_removed_after_a_change_does_not_even_wake(stage: &mut impl Stage) {
    for (first, then) in [(Read, Write), (Write, Read), (Read, Both), (Both, Read), (Both, Write)] {
        let mut pair = stage.local_pair();
        pair.send();
        let mut backend = stage.backend();
        for waits in 0..3 {
            backend.add(&pair.near(), Token(waits), first).unwrap();
            if waits > 0 {
                assert_eq!(wait(&mut backend, None), [Token(waits)]);
            }
            backend.change(&pair.near(), Token(waits), then).unwrap();
            if waits > 1 {
                assert_eq!(wait(&mut backend, None), [Token(waits)]);
            }
            backend.remove(&pair.near()).unwrap();
            assert!(silent(stage, &mut backend), "{first:?}, then {then:?}, after {waits} waits");
        }
    }
}

pub fn more_changes_than_a_batch_before_a_wait_all_count(stage: &mut impl Stage) {
    let mut pairs: Vec<_> = (0..600).map(|_| stage.local_pair()).collect();
    let mut backend = stage.backend();
    for (n, pair) in pairs.iter().enumerate() {
        backend.add(&pair.near(), Token(n as u64), Read).unwrap();
    }
    for (n, pair) in pairs.iter().enumerate() {
        backend.change(&pair.near(), Token(n as u64), Both).unwrap();
        backend.change(&pair.near(), Token(n as u64), Write).unwrap();
    }
    let mut seen = BTreeSet::new();
    for _ in 0..20 {
        for token in wait(&mut backend, SOON) {
            backend.rearm(&pairs[token.0 as usize].near(), token, Write).unwrap();
            seen.insert(token);
        }
    }
    assert_eq!(seen.len(), pairs.len());
    for (n, pair) in pairs.iter().enumerate() {
        backend.change(&pair.near(), Token(n as u64), Read).unwrap();
    }
    for pair in &pairs[..300] {
        backend.remove(&pair.near()).unwrap();
    }
    for pair in &mut pairs[..299] {
        pair.send();
    }
    assert!(silent(stage, &mut backend));
    pairs[400].send();
    assert_eq!(wait(&mut backend, None), [Token(400)]);
}

/// What the next test does with one of its pairs.
struct Played<P> {
    pair: P,
    token: Token,
    /// What it is registered for.
    interest: Option<Interest>,
    byte: bool,
    room: bool,
}

impl<P> Played<P> {
    fn is_ready(&self) -> bool {
        self.interest.is_some_and(|interest| interest.reads() && self.byte || interest.writes() && self.room)
    }
}

/// Numbers that are the same each time: the 32 upper bits of Knuth's MMIX generator.
fn numbers(mut seed: u64) -> impl FnMut(u64) -> u64 {
    move |below| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 32) % below
    }
}

pub fn whatever_is_changed_in_whatever_order_the_ready_are_reported(stage: &mut impl Stage) {
    let mut random = numbers(1);
    let mut tokens = 0..;
    let mut played: Vec<_> = (0..8)
        .map(|_| Played {
            pair: stage.local_pair(),
            token: Token(u64::MAX),
            interest: None,
            byte: false,
            room: true,
        })
        .collect();
    let mut backend = stage.backend();
    for step in 0..2000 {
        let one = &mut played[random(8) as usize];
        let interest = [Read, Write, Both][random(3) as usize];
        match (random(8), one.interest) {
            (0 | 1, Some(_)) => {
                backend.remove(&one.pair.near()).unwrap();
                one.interest = None;
            }
            (0..=3, None) => {
                one.token = Token(tokens.next().unwrap());
                backend.add(&one.pair.near(), one.token, interest).unwrap();
                one.interest = Some(interest);
            }
            (2..=4, Some(_)) => {
                backend.change(&one.pair.near(), one.token, interest).unwrap();
                one.interest = Some(interest);
            }
            (5, _) => {
                if one.byte {
                    one.pair.drain()
                } else {
                    one.pair.send()
                }
                one.byte = !one.byte;
            }
            (6, _) => {
                if one.room {
                    one.pair.fill()
                } else {
                    one.pair.make_room()
                }
                one.room = !one.room;
            }
            _ => {
                let expected: Vec<_> = played.iter().filter(|one| one.is_ready()).collect();
                let timeout = if expected.is_empty() { SOON } else { PATIENCE };
                let mut ready = wait(&mut backend, timeout);
                ready.sort();
                let mut tokens: Vec<_> = expected.iter().map(|one| one.token).collect();
                tokens.sort();
                assert_eq!(ready, tokens, "step {step}");
                for one in expected {
                    if let Some(interest) = one.interest {
                        backend.rearm(&one.pair.near(), one.token, interest).unwrap();
                    }
                }
            }
        }
    }
}
