// SPDX-License-Identifier: BSD-3-Clause

//! The hand-off protocol: what the bytes of a sender mean.
//!
//! Version 1: the byte `L` with 1 to 253 sockets in SCM_RIGHTS, no reply. Must not know what becomes
//! of a socket; it does not even look whether it is one.

use lingerd_platform::fdpass::Received;

/// The byte of the one message there is.
const LINGER: u8 = b'L';

/// What a sender has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// `L`: linger on the sockets that came with it. `truncated`: the kernel dropped some of those
    /// that were sent, for want of room in this process.
    Linger {
        /// See above.
        truncated: bool,
    },
    /// The sender has closed.
    End,
    /// What was said is not of this protocol.
    Malformed(&'static str),
}

/// What `received` means, when so many descriptors came with it.
pub fn read(received: Received, descriptors: usize) -> Message {
    match received {
        Received::Byte { byte: LINGER, truncated } if truncated || descriptors > 0 => {
            Message::Linger { truncated }
        }
        Received::Byte { byte: LINGER, .. } => Message::Malformed("'L' without a descriptor"),
        Received::Byte { .. } => Message::Malformed("an unknown byte"),
        Received::Lost => Message::Malformed("more sockets than the descriptor limit has room for"),
        Received::End => Message::End,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_but_one_is_malformed() {
        for byte in 0..=u8::MAX {
            for truncated in [false, true] {
                let said = read(Received::Byte { byte, truncated }, 1);
                match byte {
                    b'L' => assert_eq!(said, Message::Linger { truncated }),
                    _ => assert_eq!(said, Message::Malformed("an unknown byte")),
                }
            }
        }
    }

    #[test]
    fn a_message_without_a_descriptor_is_malformed_unless_the_kernel_dropped_them() {
        let alone = |truncated| read(Received::Byte { byte: b'L', truncated }, 0);
        assert!(matches!(alone(false), Message::Malformed(_)));
        assert_eq!(alone(true), Message::Linger { truncated: true });
        assert!(matches!(read(Received::Lost, 0), Message::Malformed(_)));
        assert_eq!(read(Received::End, 1), Message::End);
    }
}
