// SPDX-License-Identifier: BSD-3-Clause

//! What a run leaves behind for those who judge it: how often each call was made, a log whose hash
//! tells two runs apart, and what was done that no contract allows.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

/// What is logged and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
#[allow(missing_docs, reason = "each is the method of its name in the contracts, or said below")]
pub enum Call {
    Add,
    Change,
    Rearm,
    Remove,
    Wait,
    Accept,
    Shut,
    Receive,
    /// [`Back::call`](crate::back::Back::call)
    CallBack,
    Silence,
    Tell,
    Pass,
    Hear,
    Finish,
    /// [`Link::wait`](crate::fdpass::Link::wait)
    WaitAlone,
    LinkPeer,
    Claim,
    Of,
    HalfClose,
    Discard,
    Peek,
    Send,
    Unacknowledged,
    ResetAtClose,
    LingerTime,
    ContentOf,
    Read,
    Forget,
    /// [`Reader::read`](crate::reader::Reader::read)
    Ask,
    /// [`Reader::close`](crate::reader::Reader::close)
    CloseContent,
    /// [`Reader::take`](crate::reader::Reader::take)
    Answer,
    OwnEnd,
    IsAcknowledged,
    HasUnread,
    HasEnded,
    DrainErrors,
    Peer,
    /// A close, [`Tcp::close`](crate::tcp::Tcp::close) or a drop.
    Close,
    LetGo,
    SlowClose,
    Take,
    Now,
    Pause,
    Sleep,
    /// Not a call of the daemon's: something came to a socket, or a sender or client did something.
    Outside,
}

impl Call {
    const COUNT: usize = Call::Outside as usize + 1;
}

/// One line of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// When it was.
    pub when: Duration,
    /// What was called.
    pub call: Call,
    /// What it was about: a descriptor's number, or that of a connection of [`Call::Outside`].
    pub about: i64,
    /// What came of it: a number, or an error's number below 0.
    pub result: i64,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.6} {:?} {} = {}", self.when.as_secs_f64(), self.call, self.about, self.result)
    }
}

/// See the module's head.
pub(super) struct Evidence {
    counts: [u64; Call::COUNT],
    hash: u64,
    lines: Option<Vec<Line>>,
    pub violations: Vec<String>,
    /// Descriptors that the kernel could not hand to the process.
    pub truncated: u64,
    /// Descriptors that it has handed to it, and how many of these were files whose content can be sent.
    pub delivered: u64,
    pub delivered_files: u64,
    /// When the last `wait` returned.
    pub woke: Duration,
    /// Connections with which the process has parted, until somebody asks.
    pub parted: Vec<SocketAddr>,
}

impl Default for Evidence {
    fn default() -> Self {
        Evidence {
            counts: [0; Call::COUNT],
            hash: 0,
            lines: None,
            violations: Vec::new(),
            truncated: 0,
            delivered: 0,
            delivered_files: 0,
            woke: Duration::ZERO,
            parted: Vec::new(),
        }
    }
}

impl Evidence {
    pub fn note(&mut self, when: Duration, call: Call, about: i64, result: i64) {
        self.counts[call as usize] += 1;
        if call == Call::Wait {
            self.woke = when;
        }
        for part in [when.as_nanos() as u64, call as u64, about as u64, result as u64] {
            // The multiplier of splitmix64; any odd number of many bits would do.
            self.hash = (self.hash.rotate_left(23) ^ part).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        if let Some(lines) = &mut self.lines {
            lines.push(Line { when, call, about, result });
        }
    }

    pub const fn count(&self, call: Call) -> u64 {
        self.counts[call as usize]
    }

    pub const fn hash(&self) -> u64 {
        self.hash
    }

    pub fn keep_lines(&mut self) {
        self.lines.get_or_insert_default();
    }

    pub fn lines(&self) -> &[Line] {
        self.lines.as_deref().unwrap_or_default()
    }
}
