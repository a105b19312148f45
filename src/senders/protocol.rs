// SPDX-License-Identifier: BSD-3-Clause

//! The hand-off protocol: what the bytes of a sender mean.
//!
//! Version 1: the byte `L` with 1 to 253 sockets in SCM_RIGHTS, no reply. At the second socket `S`, too: a head
//! of [`HEAD`] bytes, and with its first one a socket and 1 to 4 files. Whoever says it has been told [`GO_AHEAD`] before,
//! and may say one for each of these. And `K` and `H` with one socket, whose head is a [`Ticket`]; each is answered with
//! [`TAKEN`]. And `t`, `j` and `p`, alone: they ask for the counters. Must not know what becomes of a socket; it does not even look whether it is one.

use crate::source::Speech;
use crate::stats::forms::Format;
use crate::ticket::{self, Ticket};
use lingerd_platform::fdpass::Received;
use std::time::Duration;

/// Linger.
const LINGER: u8 = b'L';

/// Write the rest, and then linger.
pub const SPOOL: u8 = b'S';

/// What is said at the second socket to whom may say one `S`.
pub const GO_AHEAD: u8 = b'G';

/// What is said for each `K` and `H`, so that a sender knows how many of his are still on their way.
pub const TAKEN: u8 = b'K';

/// Bytes of the head of an `S`, itself included: `S`; how many files; flags, of 16 bits, the lowest for the first
/// file; the time-out in milliseconds, of 32; and for each of four files, whether it is there or not, its offset
/// and its length, of 64 bits each. The most significant byte comes first.
pub const HEAD: usize = 8 + FILES * 16;

// Whatever a head is of, it is read at once.
const _: () = assert!(HEAD == ticket::LENGTH);

/// The most files that one `S` brings.
pub const FILES: usize = 4;

/// What is to be sent of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// From where on.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
    /// Whether nobody else has use for the file.
    pub is_ours: bool,
}

/// What a head says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spool {
    /// Of each file, in this order.
    pub extents: Vec<Extent>,
    /// For how long it may not get on.
    pub patience: Duration,
}

/// What a whole head is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    /// `S`.
    Spool(Spool),
    /// `K` or `H`.
    Park(Ticket),
}

/// What a sender has said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// `L`: linger on the sockets that came with it. `truncated`: the kernel dropped some of those
    /// that were sent, for want of room in this process.
    Linger {
        /// See above.
        truncated: bool,
    },
    /// `S`, `K` or `H`: the first byte of it; the rest of its head follows.
    Head(u8),
    /// `t`, `j` or `p`: the counters, in that form; nothing else is said then.
    Ask(Format),
    /// The sender has closed.
    End,
    /// What was said is not of this protocol.
    Malformed(&'static str),
}

/// What `received` means where that is spoken, when so many descriptors came with it.
pub fn read(received: Received, descriptors: usize, speech: Speech) -> Message {
    match received {
        Received::Byte { byte: LINGER, truncated } if truncated || descriptors > 0 => {
            Message::Linger { truncated }
        }
        Received::Byte { byte: LINGER, .. } => Message::Malformed("'L' without a descriptor"),
        Received::Byte { byte: SPOOL, truncated } if speech == Speech::Spool => match descriptors {
            _ if truncated => Message::Malformed("an 'S' with more descriptors than the limit has room for"),
            0 | 1 => Message::Malformed("'S' without a file"),
            _ if descriptors > 1 + FILES => Message::Malformed("'S' with too many descriptors"),
            _ => Message::Head(SPOOL),
        },
        Received::Byte { byte: byte @ (ticket::KEPT_ALIVE | ticket::NEW), truncated }
            if speech == Speech::Spool =>
        {
            match descriptors {
                _ if truncated => {
                    Message::Malformed("'K' or 'H' with more sockets than the limit has room for")
                }
                1 => Message::Head(byte),
                _ => Message::Malformed("'K' or 'H' without a socket, or with several"),
            }
        }
        Received::Byte { byte, truncated: false } if speech == Speech::Spool && descriptors == 0 => {
            question(byte).map_or(Message::Malformed("an unknown byte"), Message::Ask)
        }
        Received::Byte { .. } => Message::Malformed("an unknown byte"),
        Received::Lost => Message::Malformed("more sockets than the descriptor limit has room for"),
        Received::End => Message::End,
    }
}

/// In which form a byte asks for the counters, if it does.
fn question(byte: u8) -> Option<Format> {
    match byte {
        b't' => Some(Format::Text),
        b'j' => Some(Format::Json),
        b'p' => Some(Format::Prometheus),
        _ => None,
    }
}

/// What a whole head says that came with so many descriptors.
///
/// # Errors
/// What is wrong with it.
pub fn head(head: [u8; HEAD], descriptors: usize) -> Result<Head, &'static str> {
    match (head[0], descriptors) {
        (SPOOL, 2..) => spool(&head, descriptors - 1).map(Head::Spool),
        (ticket::KEPT_ALIVE | ticket::NEW, 1) => Ticket::of(head).map(Head::Park),
        _ => Err("a message with another number of descriptors than belong to it"),
    }
}

/// What the head of an `S` says that came with so many files.
///
/// # Errors
/// What is wrong with it.
fn spool(head: &[u8; HEAD], files: usize) -> Result<Spool, &'static str> {
    let number = |at: usize, length: usize| {
        head[at..at + length].iter().fold(0, |number: u64, &byte| number << 8 | u64::from(byte))
    };
    if usize::from(head[1]) != files {
        return Err("'S' with another number of files than it says");
    }
    let patience = Duration::from_millis(number(4, 4));
    if patience.is_zero() {
        return Err("'S' without a time-out");
    }
    let flags = number(2, 2);
    let extent = |file: usize| {
        let at = 8 + file * 16;
        Extent { offset: number(at, 8), length: number(at + 8, 8), is_ours: flags >> file & 1 == 1 }
    };
    let extents: Vec<_> = (0..files.min(FILES)).map(extent).collect();
    // No file is as large, and sums of them are made.
    let all = extents.iter().try_fold(0_u64, |sum, extent| {
        extent.offset.checked_add(extent.length)?;
        sum.checked_add(extent.length)
    });
    match all {
        Some(all) if all < 1 << 62 => Ok(Spool { extents, patience }),
        _ => Err("'S' with files larger than there are"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_but_one_or_two_is_malformed() {
        for byte in 0..=u8::MAX {
            for truncated in [false, true] {
                for speech in Speech::ALL {
                    let said = read(Received::Byte { byte, truncated }, 2, speech);
                    match byte {
                        b'L' => assert_eq!(said, Message::Linger { truncated }),
                        b'S' if speech == Speech::Spool && !truncated => {
                            assert_eq!(said, Message::Head(byte))
                        }
                        _ => assert!(matches!(said, Message::Malformed(_)), "{byte} {said:?}"),
                    }
                }
            }
        }
    }

    #[test]
    fn a_message_without_a_descriptor_is_malformed_unless_the_kernel_dropped_them() {
        let alone = |truncated| read(Received::Byte { byte: b'L', truncated }, 0, Speech::Linger);
        assert!(matches!(alone(false), Message::Malformed(_)));
        assert_eq!(alone(true), Message::Linger { truncated: true });
        assert!(matches!(read(Received::Lost, 0, Speech::Linger), Message::Malformed(_)));
        assert_eq!(read(Received::End, 1, Speech::Spool), Message::End);
    }

    #[test]
    fn who_asks_does_so_at_the_second_socket_and_brings_nothing() {
        for byte in 0..=u8::MAX {
            let said = |descriptors, truncated, speech| {
                read(Received::Byte { byte, truncated }, descriptors, speech)
            };
            let asks = matches!(said(0, false, Speech::Spool), Message::Ask(_));
            assert_eq!(asks, b"tjp".contains(&byte), "{byte}");
            for other in
                [said(1, false, Speech::Spool), said(0, true, Speech::Spool), said(0, false, Speech::Linger)]
            {
                assert!(!matches!(other, Message::Ask(_)), "{byte} {other:?}");
            }
        }
    }

    #[test]
    fn an_s_comes_with_a_socket_and_one_to_four_files_and_what_parks_with_a_socket() {
        for byte in *b"SKH" {
            for descriptors in 0..10 {
                let said = read(Received::Byte { byte, truncated: false }, descriptors, Speech::Spool);
                let belong = if byte == b'S' { 2..=5 } else { 1..=1 };
                assert_eq!(
                    said == Message::Head(byte),
                    belong.contains(&descriptors),
                    "{byte} {descriptors}"
                );
                let mut whole = if byte == b'S' { head() } else { ticket() };
                (whole[0], whole[1]) = (byte, if byte == b'S' { 2 } else { 1 });
                let is_right = if byte == b'S' { descriptors == 3 } else { descriptors == 1 };
                assert_eq!(super::head(whole, descriptors).is_ok(), is_right, "{byte} {descriptors}");
            }
        }
    }

    /// With a way back of one letter.
    fn ticket() -> [u8; HEAD] {
        let mut head = [0; HEAD];
        (head[1], head[7], head[8]) = (1, 1, b'x');
        head
    }

    /// A head of two files, the second of which is ours.
    fn head() -> [u8; HEAD] {
        let mut head = [0; HEAD];
        head[..8].copy_from_slice(&[b'S', 2, 0, 0b10, 0, 0, 0x75, 0x30]);
        for (n, number) in [1_u64 << 40, 300_000, 7, 1].into_iter().enumerate() {
            head[8 + 8 * n..][..8].copy_from_slice(&number.to_be_bytes());
        }
        head
    }

    #[test]
    fn a_head_says_what_of_each_file_is_to_be_sent_and_how_long_to_wait() {
        let extents = vec![
            Extent { offset: 1 << 40, length: 300_000, is_ours: false },
            Extent { offset: 7, length: 1, is_ours: true },
        ];
        assert_eq!(spool(&head(), 2), Ok(Spool { extents, patience: Duration::from_secs(30) }));
    }

    #[test]
    fn a_head_that_cannot_be_true_is_refused() {
        assert!(spool(&head(), 1).is_err() && spool(&head(), 3).is_err(), "as many files as it says");
        let mut without_time = head();
        without_time[4..8].fill(0);
        assert!(spool(&without_time, 2).is_err());
        for (at, byte) in [(8, 0xff), (16, 0x40), (16, 0xff)] {
            let mut huge = head();
            huge[at..at + 8].fill(byte);
            assert!(spool(&huge, 2).is_err(), "{at} {byte:x}");
        }
    }
}
