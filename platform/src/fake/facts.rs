// SPDX-License-Identifier: BSD-3-Clause

//! What a connection is made of, and what became of it. Must not know how.

use super::content::Piece;
use super::descriptors::By;
use std::time::Duration;

/// How a connection is made.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Bytes of the response in flight when it is handed over: written, and not yet acknowledged.
    pub response: u64,
    /// How long a packet takes from one end to the other. With none everything arrives at once.
    pub latency: Duration,
    /// How many bytes the client's system holds that its program has not read.
    pub client_window: u64,
    /// The same, of the server's.
    pub server_window: u64,
    /// Whether the client's program reads whatever arrives; else [`Client::read`](super::Client::read) does.
    pub reads: bool,
    /// Whether it closes as soon as it sees the end of the response.
    pub closes: bool,
    /// SO_LINGER, as the sender left it.
    pub linger: Option<Duration>,
    /// Notices in the socket's error queue.
    pub notices: u32,
}

impl Default for Setup {
    /// A client that reads and stays, near by, and a response of 20 kB.
    fn default() -> Self {
        Setup {
            response: 20_000,
            latency: Duration::ZERO,
            client_window: 64 * 1024,
            server_window: 64 * 1024,
            reads: true,
            closes: false,
            linger: None,
            notices: 0,
        }
    }
}

/// What became of a connection. Times are [`Kernel::now`](super::Kernel::now)'s.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// When the daemon's process got it from a sender, the last time that it did.
    pub received: Option<Duration>,
    /// How often.
    pub received_times: u32,
    /// Within what time its sender wanted it closed then, SO_LINGER; the shortest, if it came more than once.
    pub given: Option<Duration>,
    /// When the daemon's process closed its last number of it, if it has not got it anew since. Whoever else has a copy still has it.
    pub parted: Option<Duration>,
    /// When it was half-closed first, by whomever.
    pub half_closed: Option<Duration>,
    /// The same, if that was not its last close.
    pub shut_down: Option<Duration>,
    /// How often it was half-closed after that.
    pub half_closed_again: u32,
    /// Of those, how often in FIN_WAIT_2.
    pub half_closed_in_fin_wait_2: u32,
    /// When the server's system knew that all had arrived, the FIN too.
    pub acknowledged: Option<Duration>,
    /// What of which files the daemon has written, in this order.
    pub written: Vec<Piece>,
    /// When the daemon has written something last.
    pub wrote: Option<Duration>,
    /// The same, or the server's system knew last that more of it had arrived.
    pub got_on: Option<Duration>,
    /// When bytes of the client's last arrived.
    pub heard: Option<Duration>,
    /// When the client's end of stream arrived.
    pub client_ended: Option<Duration>,
    /// When a reset of the client's arrived, or its system was found to answer no more.
    pub client_gone: Option<Duration>,
    /// Bytes that the daemon has thrown away.
    pub discarded: u64,
    /// When its last descriptor was closed.
    pub closed: Option<Duration>,
    /// By whom.
    pub closed_by: Option<By>,
    /// What was unread then.
    pub closed_unread: u64,
    /// What was unacknowledged then, the FIN as one byte if there was one.
    pub closed_unacknowledged: u64,
    /// When the server's system sent a reset.
    pub reset: Option<Duration>,
    /// When it reached the client.
    pub reset_arrived: Option<Duration>,
    /// What of the response the client's program can never read because of that.
    pub lost: u64,
    /// What of it it has read.
    pub read: u64,
    /// When it has read to the end.
    pub read_to_end: Option<Duration>,
}

impl Facts {
    pub(super) fn note_written(&mut self, piece: Piece) {
        match self.written.last_mut() {
            Some(last) if last.file == piece.file && last.offset + last.length as u64 == piece.offset => {
                last.length += piece.length;
            }
            _ => self.written.push(piece),
        }
    }
}
