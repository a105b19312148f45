// SPDX-License-Identifier: BSD-3-Clause

//! What can happen to a connection, what is to be done about it, and why it ended.

use super::time::Time;

/// What happened to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The socket is readable, says the backend.
    Readable,
    /// A deadline is due, says the table.
    Due,
    /// Bytes were read and thrown away (at least one).
    Received,
    /// There is nothing more to read now, or this turn's budget is spent.
    Quiet,
    /// End of stream: the client has closed its side.
    End,
    /// Reading failed: the connection is gone.
    Failed,
    /// Whether everything is acknowledged, our FIN too; `None` where the system cannot tell.
    Acknowledged(Option<bool>),
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read and throw away, then feed [`Event::Received`], [`Event::Quiet`], [`Event::End`] or
    /// [`Event::Failed`].
    Read,
    /// Ask the kernel whether everything is acknowledged, then feed [`Event::Acknowledged`].
    Ask,
    /// Wait until the socket is readable or the time has come, whichever is first.
    Wait(Time),
    /// Close the connection and count it.
    Close(Reason),
}

/// Why a connection ended. The names are those of the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The client closed: end of stream read.
    Closed,
    /// The client reset it, or it was already gone at hand-off.
    Reset,
    /// Everything acknowledged, and nothing received for [`Rules::idle`](super::linger::Rules::idle).
    Idle,
    /// Everything acknowledged, the client keeps sending: [`Rules::max`](super::linger::Rules::max)
    /// after that.
    Max,
    /// [`Rules::limit`](super::linger::Rules::limit) after hand-off, whatever happens.
    Limit,
    /// The table is full, and this one had had the most of its linger.
    Evicted,
    /// The daemon was told to stop twice.
    Stopped,
    /// What was still to be written did not get on for the sender's time-out.
    Stalled,
    /// What was still to be written could not be read, or was less than its sender had said.
    Broken,
    /// It was parked, and a worker has taken it back.
    Returned,
}

impl Reason {
    /// All of them, in the order of the counters.
    pub const ALL: [Reason; 10] = [
        Reason::Closed,
        Reason::Reset,
        Reason::Idle,
        Reason::Max,
        Reason::Limit,
        Reason::Evicted,
        Reason::Stopped,
        Reason::Stalled,
        Reason::Broken,
        Reason::Returned,
    ];

    /// Whether it was not the client that ended the connection, and it has ended. Then what the client has not read
    /// yet, or what of it was not read, may be lost.
    pub const fn is_ours(self) -> bool {
        !matches!(self, Reason::Closed | Reason::Reset | Reason::Returned)
    }

    /// The counter's name.
    pub const fn name(self) -> &'static str {
        match self {
            Reason::Closed => "closed",
            Reason::Reset => "reset",
            Reason::Idle => "idle",
            Reason::Max => "max",
            Reason::Limit => "limit",
            Reason::Evicted => "evicted",
            Reason::Stopped => "stopped",
            Reason::Stalled => "stalled",
            Reason::Broken => "broken",
            Reason::Returned => "returned",
        }
    }
}
