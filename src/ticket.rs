// SPDX-License-Identifier: BSD-3-Clause

//! What a parked connection comes with, and goes back with: what is waited for, for how long, the way back, and what its
//! server wants to know of it then.
//!
//! Must not know of sockets, or of who says it.

use std::time::Duration;

/// Bytes of one: `K` or `H`; how long the name of the way back is; two that are 0; the time-out in milliseconds, of 32
/// bits, the most significant byte first; the name, and zeros; and what is the server's own.
pub const LENGTH: usize = 72;

/// Kept alive: back at the first byte.
pub const KEPT_ALIVE: u8 = b'K';

/// New: back when the head of a request is whole, or the time is up.
pub const NEW: u8 = b'H';

/// What of it says, on the way back, that the time was up.
const LATE: usize = 2;

/// The name, and no name is longer.
const NAME: std::ops::Range<usize> = 8..32;

/// The name of a way back, and zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Way([u8; NAME.end - NAME.start]);

impl Way {
    /// The name.
    pub fn name(&self) -> &str {
        let length = self.0.iter().position(|&byte| byte == 0).unwrap_or(self.0.len());
        std::str::from_utf8(&self.0[..length]).unwrap_or_default() // it is ASCII
    }
}

/// See the module's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket([u8; LENGTH]);

impl Ticket {
    /// The one that stands in `bytes`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of(bytes: [u8; LENGTH]) -> Result<Self, &'static str> {
        let ticket = Ticket(bytes);
        let (name, rest) = bytes[NAME].split_at(usize::from(bytes[1]).min(NAME.len()));
        let is_one = |&byte: &u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if usize::from(bytes[1]) != name.len() || name.is_empty() || !name.iter().all(is_one) {
            return Err("the name of a way back that can be none");
        }
        if rest.iter().chain(&bytes[2..4]).any(|&byte| byte != 0) {
            return Err("something where nothing is to be");
        }
        if !matches!(bytes[0], KEPT_ALIVE | NEW) || ticket.patience().is_zero() {
            return Err("'K' or 'H' without a time-out");
        }
        Ok(ticket)
    }

    /// As it came.
    pub fn bytes(&self) -> &[u8; LENGTH] {
        &self.0
    }

    /// Whether a whole head is waited for, and not the first byte.
    pub fn is_new(&self) -> bool {
        self.0[0] == NEW
    }

    /// For how long to wait.
    pub fn patience(&self) -> Duration {
        let [.., a, b, c, d] = *self.0.first_chunk::<8>().unwrap_or(&[0; 8]); // it is longer
        Duration::from_millis(u32::from_be_bytes([a, b, c, d]).into())
    }

    /// Where it is to go back.
    pub fn way(&self) -> Way {
        let mut name = [0; NAME.end - NAME.start];
        name.copy_from_slice(&self.0[NAME]);
        Way(name)
    }

    /// What is said to who takes it back.
    pub fn answer(&self, is_late: bool) -> [u8; LENGTH] {
        let mut bytes = self.0;
        bytes[LATE] = is_late.into();
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes() -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[..8].copy_from_slice(&[b'K', 9, 0, 0, 0, 0, 0x13, 0x88]);
        bytes[8..17].copy_from_slice(b"apache2-7");
        bytes[32..].fill(0xa5);
        bytes
    }

    #[test]
    fn it_says_what_is_waited_for_and_goes_back_as_it_came() {
        let ticket = Ticket::of(bytes()).unwrap();
        assert_eq!((ticket.is_new(), ticket.patience()), (false, Duration::from_secs(5)));
        assert_eq!((ticket.way().name(), ticket.answer(false)), ("apache2-7", bytes()));
        assert_eq!(ticket.answer(true)[..4], [b'K', 9, 1, 0]);
        let mut new = bytes();
        (new[0], new[1]) = (b'H', 24);
        new[8..32].fill(b'x');
        let ticket = Ticket::of(new).unwrap();
        assert_eq!((ticket.is_new(), ticket.way().name()), (true, "x".repeat(24).as_str()));
    }

    #[test]
    fn what_cannot_be_true_is_none() {
        let changed: [(usize, &[u8]); 11] = [
            (0, b"L"),
            (1, &[0]),
            (1, &[8]),
            (1, &[10]),
            (1, &[25]),
            (1, &[255]),
            (2, &[1]),
            (3, &[1]),
            (6, &[0, 0]),
            (8, b"../"),
            (10, &[0]),
        ];
        for (at, with) in changed {
            let mut bytes = bytes();
            bytes[at..at + with.len()].copy_from_slice(with);
            assert!(Ticket::of(bytes).is_err(), "{with:?} at {at}");
        }
    }
}
