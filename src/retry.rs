// SPDX-License-Identifier: BSD-3-Clause

//! What the kernel had no room for, and when it is tried again; warnings that would come as often.
//!
//! Must not know what is tried.

use crate::rules::time::{Span, Time};
use crate::source::Source;
use log::warn;
use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::mem;

/// How long to leave a door shut, or a source alone, after a call failed for want of something.
pub const AGAIN: Span = Span::from_secs(1);

/// Sources that are to be served once more, ready or not.
#[derive(Default)]
pub struct Retry {
    sources: BTreeSet<Source>,
    at: Option<Time>,
    /// Why, said of doors and of what a backend has no room for.
    door: Warning,
    backend: Warning,
}

impl Retry {
    /// Has `source` tried again: with those that wait already, or a second from `now`.
    pub fn later(&mut self, source: Source, now: Time) {
        self.sources.insert(source);
        self.at.get_or_insert(now + AGAIN);
    }

    /// The same, of a door at which nobody can be served.
    pub fn door(&mut self, source: Source, now: Time, what: &str, error: &io::Error) {
        self.door.warn(now, format_args!("cannot {what}: {error}; trying again in a second"));
        self.later(source, now);
    }

    /// The same, of a source for which the backend has no room.
    pub fn backend(&mut self, source: Source, now: Time, error: &io::Error) {
        self.backend.warn(now, format_args!("cannot wait for more: {error}; trying again in a second"));
        self.later(source, now);
    }

    /// Says that a connection had to end so that somebody can be served all the same.
    pub fn made_way(&mut self, now: Time, what: &str, error: &io::Error) {
        self.door.warn(now, format_args!("cannot {what}: {error}; evicted a connection for that"));
    }

    /// Whether `source` waits to be tried again.
    pub fn waits_for(&self, source: Source) -> bool {
        self.sources.contains(&source)
    }

    /// When, if anything waits.
    pub fn at(&self) -> Option<Time> {
        self.at
    }

    /// Takes all that waits.
    pub fn take(&mut self) -> BTreeSet<Source> {
        self.at = None;
        mem::take(&mut self.sources)
    }
}

/// A warning that may have a cause without end: at most one a minute is logged.
#[derive(Default)]
pub struct Warning {
    next: Option<Time>,
    kept_back: u64,
}

impl Warning {
    const EVERY: Span = Span::from_secs(60);

    /// Logs `message`, or counts it to the next one that is logged.
    pub fn warn(&mut self, now: Time, message: fmt::Arguments<'_>) {
        // What was kept for years is no point in time any more.
        let is_soon = |next: Time| next.since(now) > Span::from_ticks(0) && next.since(now) <= Self::EVERY;
        if self.next.is_some_and(is_soon) {
            self.kept_back += 1;
            return;
        }
        self.next = Some(now + Self::EVERY);
        match mem::take(&mut self.kept_back) {
            0 => warn!("{message}"),
            others => warn!("{message} (and {others} like it before)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Speech;

    #[test]
    fn all_that_waits_is_tried_together_a_second_after_the_first() {
        let mut retry = Retry::default();
        let start = Time::from_ticks(u32::MAX - 10);
        assert!(retry.at().is_none());
        retry.later(Source::Door(Speech::Linger), start);
        retry.later(Source::Control, start + Span::from_ticks(60));
        retry.later(Source::Door(Speech::Linger), start + Span::from_ticks(61));
        assert_eq!(retry.at(), Some(start + AGAIN));
        assert!(retry.waits_for(Source::Door(Speech::Linger)) && !retry.waits_for(Source::Stop));
        assert!(retry.take().into_iter().eq([Source::Door(Speech::Linger), Source::Control]));
        assert!(retry.at().is_none() && retry.take().is_empty());
    }
}
