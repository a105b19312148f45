// SPDX-License-Identifier: BSD-3-Clause

//! A hand-off message: the byte and the control data that recvmsg(2) has written, as the daemon
//! reads them; and the head of one whose response is still to be written, or that is parked.

#![no_main]

use libfuzzer_sys::fuzz_target;
use lingerd::senders::protocol::{self, FILES, HEAD, Head, Message, Spool};
use lingerd::source::Speech;
use lingerd_platform::fdpass::{self, Received};

fuzz_target!(|input: (u8, bool, &[u8])| {
    let (byte, truncated, control) = input;
    let descriptors: Vec<_> = fdpass::rights(control).collect();

    // Each stands in the data, and the later ones further behind.
    let mut rest = control;
    for descriptor in &descriptors {
        let bytes = descriptor.to_ne_bytes();
        let at = rest.windows(bytes.len()).position(|window| window == bytes);
        rest = &rest[at.expect("a descriptor that was not sent") + bytes.len()..];
    }
    assert!(size_of_val(&*descriptors) <= control.len());

    // What is cut off at the end takes away from the end alone.
    let cut = &control[..control.len() - control.len().min(usize::from(byte))];
    let fewer: Vec<_> = fdpass::rights(cut).collect();
    assert!(descriptors.starts_with(&fewer), "{descriptors:?} cut off to {fewer:?}");

    for speech in Speech::ALL {
        let message = protocol::read(Received::Byte { byte, truncated }, descriptors.len(), speech);
        let linger = byte == b'L' && (truncated || !descriptors.is_empty());
        let spool = byte == b'S' && speech == Speech::Spool && !truncated;
        match message {
            Message::Linger { truncated: told } => assert!(linger && told == truncated),
            Message::Head(b'S') => assert!(spool && (2..=1 + FILES).contains(&descriptors.len())),
            Message::Head(first) => {
                assert!(first == byte && matches!(byte, b'K' | b'H') && !truncated);
                assert!(speech == Speech::Spool && descriptors.len() == 1);
            }
            Message::Ask(_) => {
                assert!(
                    b"tjp".contains(&byte) && speech == Speech::Spool && descriptors.is_empty() && !truncated
                );
            }
            Message::Malformed(why) => assert!(!linger && !why.is_empty()),
            Message::End => panic!("a byte is no end"),
        }
    }

    // The same bytes as a head, with so many descriptors.
    let Some(head) = control.first_chunk::<HEAD>() else { return };
    for descriptors in 0..=FILES + 2 {
        match protocol::head(*head, descriptors) {
            Err(why) => assert!(!why.is_empty()),
            Ok(Head::Park(ticket)) => {
                assert!(descriptors == 1 && matches!(head[0], b'K' | b'H') && !ticket.patience().is_zero());
                let way = ticket.way();
                let name = way.name();
                assert!(!name.is_empty() && head[8..].starts_with(name.as_bytes()));
                assert!(!name.contains(['.', '/', '\0']));
                assert_eq!((ticket.bytes(), ticket.answer(false)), (head, *head));
            }
            Ok(Head::Spool(Spool { extents, patience })) => {
                let files = descriptors - 1;
                assert!(extents.len() == files && files <= FILES && !patience.is_zero());
                let said = (0..files).map(|n| head[8 + 16 * n..][..16].split_at(8));
                for ((offset, length), extent) in said.zip(&extents) {
                    assert_eq!(offset, extent.offset.to_be_bytes());
                    assert_eq!(length, extent.length.to_be_bytes());
                    assert!(extent.offset.checked_add(extent.length).is_some());
                }
                let sum = |sum: u64, extent: &protocol::Extent| sum.checked_add(extent.length);
                assert!(extents.iter().try_fold(0, sum).is_some());
            }
        }
    }
});
