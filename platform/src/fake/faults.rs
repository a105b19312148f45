// SPDX-License-Identifier: BSD-3-Clause

//! What kind of kernel it is, and what goes wrong in it though nobody did anything wrong. Must not
//! know the calls that ask.

use std::time::Duration;

/// How a backend tells what is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reports {
    /// As long as it is ready, whatever the caller does: epoll, poll.
    Always,
    /// Once, until `rearm` or `change`: event ports. A caller that forgets to rearm hears no more.
    Once,
    /// As [`Always`](Self::Always); but what the kernel refuses is reported as ready, and `rearm` says why: kqueue.
    Refusals,
}

/// What becomes of the descriptors of a message for which the process has no numbers left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truncation {
    /// The first arrive, and MSG_CTRUNC says that there were more: Linux.
    First,
    /// Nothing of the message is left: [`Received::Lost`](crate::fdpass::Received::Lost).
    Lost,
}

/// What [`Link::peer`](crate::fdpass::Link::peer) can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// Who it was, even when it has gone: Linux.
    Kept,
    /// ENOTCONN when it has gone: getpeereid(3).
    WhileThere,
    /// `Unsupported`.
    Never,
}

/// What kind of kernel it is.
#[derive(Clone, Debug)]
pub struct Flavour {
    /// How its backend reports.
    pub reports: Reports,
    /// How many tokens one `wait` returns at most.
    pub batch: usize,
    /// Whether they come in an order of chance, or in the order in which they became ready.
    pub shuffled: bool,
    /// What time-outs are rounded up to.
    pub granularity: Duration,
    /// What [`Clock::pause`](crate::clock::Clock::pause) takes, if it does anything.
    pub pause: Option<Duration>,
    /// Whether it tells what is acknowledged.
    pub tells_acknowledged: bool,
    /// Whether it tells how far an end is closed.
    pub tells_own_end: bool,
    /// Whether a second half-close in FIN_WAIT_2 ends receiving too, as shutdown(2) of the BSDs does.
    /// No real [`half_close`](crate::tcp::Tcp::half_close) lets that happen, and so no flavour here has
    /// it by itself.
    pub second_half_close_ends_receiving: bool,
    /// Whether a shutdown of the receiving side keeps what is queued: else `silence` and `shut` do
    /// nothing.
    pub silences: bool,
    /// Whether a call where there is no room for more is answered as if nobody were there, and who waits where nobody listens
    /// any more sees the end and no reset.
    pub refuses_when_full: bool,
    /// See there.
    pub truncation: Truncation,
    /// See there.
    pub credentials: Credentials,
    /// How many messages may be queued in one connection of a sender. Linux: the send buffer of 212,992
    /// bytes over the 768 that a message of one byte takes.
    pub queued_messages: usize,
    /// How many descriptors may be in flight altogether before senders get ETOOMANYREFS.
    pub in_flight: usize,
    /// How many descriptors the kernel lets a sender put into one message. Beyond
    /// [`MAX_DESCRIPTORS`](crate::fdpass::MAX_DESCRIPTORS) they are truncated.
    pub message_descriptors: usize,
    /// After how long without an acknowledgement a connection ends with ETIMEDOUT, tcp(7).
    pub retransmits: Duration,
    /// What each call of the daemon takes.
    pub cost: Duration,
}

impl Flavour {
    /// Linux with epoll.
    pub const fn linux() -> Self {
        Flavour {
            reports: Reports::Always,
            batch: 256,
            shuffled: true,
            granularity: Duration::from_millis(1),
            pause: Some(Duration::from_millis(1)),
            tells_acknowledged: true,
            tells_own_end: true,
            second_half_close_ends_receiving: false,
            silences: true,
            refuses_when_full: false,
            truncation: Truncation::First,
            credentials: Credentials::Kept,
            queued_messages: 277,
            in_flight: usize::MAX,
            message_descriptors: crate::fdpass::MAX_DESCRIPTORS,
            retransmits: Duration::from_secs(924),
            cost: Duration::ZERO,
        }
    }

    /// A BSD with kqueue.
    pub const fn bsd() -> Self {
        Flavour {
            reports: Reports::Refusals,
            tells_own_end: false,
            pause: None,
            granularity: Duration::from_nanos(1),
            silences: false,
            refuses_when_full: true,
            truncation: Truncation::Lost,
            credentials: Credentials::WhileThere,
            message_descriptors: 1024,
            ..Self::linux()
        }
    }

    /// Solaris and illumos with event ports.
    pub const fn solaris() -> Self {
        Flavour { reports: Reports::Once, tells_acknowledged: false, ..Self::bsd() }
    }
}

impl Default for Flavour {
    fn default() -> Self {
        Self::linux()
    }
}

/// How often calls fail for no reason that the caller could see: each from 0, never, to 1, always.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// `receive` and `accept` say `Interrupted`.
    pub interrupted: f64,
    /// `discard` says `WouldBlock` although something is there.
    pub not_yet: f64,
    /// `receive` and `accept` do. More than their contracts allow: whoever empties a queue until then,
    /// to part with it, loses what is left.
    pub not_there: f64,
    /// `accept` says EMFILE, ENFILE, ENOBUFS or ENOMEM; the first two also when nobody waits.
    pub accept: f64,
    /// [`call`](crate::back::Back::call) says EMFILE or ENFILE.
    pub call: f64,
    /// `accept` says ECONNABORTED, and the caller has gone.
    pub aborted: f64,
    /// `receive` finds no number for a descriptor that came along.
    pub truncate: f64,
    /// `add` says ENOMEM or ENOSPC.
    pub add: f64,
    /// `rearm` and `change` say ENOMEM, where the kernel has to be asked.
    pub rearm: f64,
    /// `wait` returns too early, with nothing.
    pub early: f64,
    /// `wait` returns the token of something that is not ready.
    pub spurious: f64,
    /// `discard` finds that the connection has failed: ETIMEDOUT, EHOSTUNREACH and their like.
    pub failure: f64,
    /// `discard` takes less than it could.
    pub short: f64,
    /// `receive`, `discard` and `call` say `OutOfMemory`, and nothing is taken.
    pub memory: f64,
    /// The clock leaps ahead by up to a year.
    pub leap: f64,
    /// The clock goes back by up to a second.
    pub back: f64,
}

impl Faults {
    /// Some of everything that the contracts allow, the rarer the greater the harm.
    pub const fn some() -> Self {
        Faults {
            interrupted: 0.02,
            not_yet: 0.02,
            not_there: 0.0,
            accept: 0.02,
            call: 0.02,
            aborted: 0.02,
            truncate: 0.000_5,
            add: 0.01,
            rearm: 0.01,
            early: 0.02,
            spurious: 0.02,
            failure: 0.001,
            short: 0.05,
            memory: 0.01,
            leap: 0.000_2,
            back: 0.001,
        }
    }
}

/// What chance decides.
pub(super) struct Dice {
    pub rng: fastrand::Rng,
    pub faults: Faults,
}

impl Dice {
    pub fn new(seed: u64) -> Self {
        Dice { rng: fastrand::Rng::with_seed(seed), faults: Faults::default() }
    }

    /// Whether what is to happen so often happens now. What never happens takes nothing from the
    /// generator.
    pub fn roll(&mut self, fault: impl FnOnce(&Faults) -> f64) -> bool {
        let often = fault(&self.faults);
        often > 0.0 && self.rng.f64() < often
    }

    pub fn one_of(&mut self, errors: &[i32]) -> std::io::Error {
        std::io::Error::from_raw_os_error(errors[self.rng.usize(..errors.len())])
    }

    /// A time shorter than `most`.
    pub fn time(&mut self, most: Duration) -> Duration {
        Duration::from_nanos(self.rng.u64(..u64::try_from(most.as_nanos()).unwrap_or(u64::MAX).max(1)))
    }
}
