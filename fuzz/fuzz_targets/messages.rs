// SPDX-License-Identifier: BSD-3-Clause

//! A hand-off message: the byte and the control data that recvmsg(2) has written, as the daemon
//! reads them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use lingerd::senders::protocol::{self, Message};
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

    let message = protocol::read(Received::Byte { byte, truncated }, descriptors.len());
    let linger = byte == b'L' && (truncated || !descriptors.is_empty());
    match message {
        Message::Linger { truncated: told } => assert!(linger && told == truncated),
        Message::Malformed(why) => assert!(!linger && !why.is_empty()),
        Message::End => panic!("a byte is no end"),
    }
});
