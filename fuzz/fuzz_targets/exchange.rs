// SPDX-License-Identifier: BSD-3-Clause

//! What a daemon tells its successor, and a successor says first, from whoever listens or comes in at the
//! control socket's path. The input is bytes as they are, or one frame's text a line.

#![no_main]

use libfuzzer_sys::fuzz_target;
use lingerd::rules::time::{Span, Time};
use lingerd::upgrade::heir::{Heir, Progress};
use lingerd::upgrade::image::{self, HEAD, MOST_BYTES, Request};

fuzz_target!(|input: (u8, bool, &[u8])| {
    let (step, framed, said) = input;
    let _ = serde_json::from_slice::<Request>(said);
    let mut bytes = Vec::new();
    let mut sent = 0_u32;
    if framed {
        for line in said.split(|&byte| byte == b'\n') {
            // As many descriptors as it has words that may need one.
            let count = line.windows(2).filter(|two| *two == b"{\"" || *two == b"\",").count();
            sent += count as u32;
            bytes.extend((line.len() as u32).to_be_bytes());
            bytes.extend((count as u32).to_be_bytes());
            bytes.extend(line);
        }
    } else {
        bytes.extend(said);
        sent = step.into();
    }

    let mut heir = Heir::default();
    let mut descriptors = Some(0..sent);
    for piece in bytes.chunks(usize::from(step) + 1) {
        match heir.feed(piece, descriptors.take().unwrap_or(0..0)) {
            Err(nonsense) => return assert!(!nonsense.to_string().is_empty()),
            Ok(Progress::Pending) => {}
            Ok(Progress::Serving) => return,
            Ok(Progress::Complete(estate)) => {
                // Each is there once, in the order in which it was sent.
                let things: Vec<_> = estate.things.iter().map(|(_, number)| *number).collect();
                let senders: Vec<_> = estate.senders.iter().map(|(number, _)| *number).collect();
                let connections: Vec<_> = estate.connections.iter().map(|(number, _)| *number).collect();
                let spools = estate.spools.iter();
                let spools: Vec<_> = spools
                    .flat_map(|(socket, files, _)| std::iter::once(socket).chain(files).copied())
                    .collect();
                let lists = [things, senders, connections, spools];
                for list in &lists {
                    assert!(list.windows(2).all(|two| two[0] < two[1]), "{list:?}");
                    assert!(list.iter().all(|number| *number < sent));
                }
                assert!(lists.iter().map(Vec::len).sum::<usize>() <= sent as usize);
                let now = Time::from_ticks(u32::from(step) << 24);
                for (_, facts) in &estate.connections {
                    let linger = facts.at(now);
                    for time in [linger.handed_over, linger.asked, linger.heard] {
                        assert!((0..=i64::from(Span::LONGEST.ticks())).contains(&now.ticks_since(time)));
                    }
                }
                for (_, files, facts) in &estate.spools {
                    assert_eq!(files.len(), facts.files.len(), "all of it");
                    let (handed_over, spool) = facts.at(now);
                    for time in [handed_over, spool.got_on, spool.asked] {
                        assert!((0..=i64::from(Span::LONGEST.ticks())).contains(&now.ticks_since(time)));
                    }
                    assert!(spool.patience > Span::from_ticks(0));
                }
                let _ = estate.household.counters();
                return;
            }
        }
    }
    assert!(bytes.len() < HEAD || image::head(bytes[..HEAD].try_into().unwrap()).0 <= MOST_BYTES);
});
