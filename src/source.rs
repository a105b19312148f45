// SPDX-License-Identifier: BSD-3-Clause

//! What a backend's token names: a connection, a sender, or one of the daemon's own.
//!
//! Must not know what any of them is for.

use lingerd_platform::backend::Token;
use slotmap::{Key, KeyData};

slotmap::new_key_type! {
    /// Names one sender for good.
    pub struct Sender;
}

/// Names one connection: a place in the table, and which of those that were there it is.
///
/// What names a connection is kept for one turn of the daemon at most. A place may be used anew
/// meanwhile, as a stop between two sources has all taken over that senders have still sent: the
/// generation alone tells the two apart. It starts over after 65,536 connections in that place; if
/// ever so many come in one turn, a connection is looked at for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Entry {
    /// Less than 2^30: each has had a connection, and a kernel would need terabytes for the sockets of
    /// so many.
    pub(crate) place: u32,
    pub(crate) generation: u16,
}

/// Which of the hand-off sockets: what is said there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Speech {
    /// The one that there has always been: `L`.
    Linger,
    /// The second one, beside it: `S`, too.
    Spool,
}

impl Speech {
    /// Both, in this order.
    pub const ALL: [Speech; 2] = [Speech::Linger, Speech::Spool];
}

/// What a token names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A connection that lingers.
    Connection(Entry),
    /// A sender's connection.
    Sender(Sender),
    /// Where senders come in.
    Door(Speech),
    /// Where `lingerd -S` and `-k` come in, and a successor.
    Control,
    /// Who has come in there: the number of a place.
    Client(u8),
    /// What has come from disks.
    Reader,
    /// SIGTERM and SIGINT.
    Stop,
    /// SIGUSR1.
    Report,
    /// SIGHUP.
    Reload,
}

/// The kind is in the two top bits of the lower half, which no place ever uses; the generation is in
/// the upper half.
const KIND: u32 = 30;
const CONNECTION: u64 = 0;
const SENDER: u64 = 1;
const OWN: u64 = 2;
/// Of the daemon's own: what the numbers of clients are added to.
const CLIENTS: u64 = 256;

impl Source {
    /// The daemon's own but the door, and but those who have come in at the control socket: they are
    /// served before any connection, as who asks and who says stop must not wait for thousands of others.
    pub const URGENT: [Source; 4] = [Source::Stop, Source::Control, Source::Report, Source::Reload];

    /// Whether `token` may name one of these: they are few, and to look is cheap.
    pub fn may_be_urgent(token: Token) -> bool {
        kind(token) == OWN
    }

    /// The token that names it.
    pub fn token(self) -> Token {
        let own = |number: u64| number | (OWN << KIND);
        Token(match self {
            Source::Connection(Entry { place, generation }) => {
                u64::from(place) | (CONNECTION << KIND) | (u64::from(generation) << 32)
            }
            Source::Sender(sender) => sender.data().as_ffi() | (SENDER << KIND),
            Source::Door(Speech::Linger) => own(0),
            Source::Control => own(1),
            Source::Stop => own(2),
            Source::Report => own(3),
            Source::Reload => own(4),
            Source::Door(Speech::Spool) => own(5),
            Source::Reader => own(6),
            Source::Client(place) => own(CLIENTS + u64::from(place)),
        })
    }

    /// What `token` names, if it is one of ours.
    #[inline]
    pub fn of(Token(bits): Token) -> Option<Source> {
        let key = bits & !(3 << KIND);
        match kind(Token(bits)) {
            CONNECTION => {
                let (place, generation) = (key as u32, (key >> 32) as u16); // the halves of it
                Some(Source::Connection(Entry { place, generation }))
            }
            SENDER => Some(Source::Sender(KeyData::from_ffi(key).into())),
            _ => match key.checked_sub(CLIENTS) {
                Some(place) => Some(Source::Client(place.try_into().ok()?)),
                None => {
                    let doors = Speech::ALL.map(Source::Door);
                    let all = Source::URGENT.into_iter().chain(doors).chain([Source::Reader]);
                    all.into_iter().find(|own| own.token() == Token(bits))
                }
            },
        }
    }
}

fn kind(Token(bits): Token) -> u64 {
    (bits >> KIND) & 3
}

#[cfg(test)]
mod tests {
    use super::*;
    use slotmap::SlotMap;

    #[test]
    fn a_token_names_one_source_and_no_other() {
        let mut senders = SlotMap::<Sender, ()>::with_key();
        // The first connection and the first sender have the same place, as have those in reused ones.
        let sender = senders.insert(());
        senders.remove(sender);
        let mut all = vec![
            Source::Connection(Entry { place: 0, generation: 0 }),
            Source::Connection(Entry { place: 1, generation: 0 }),
            Source::Connection(Entry { place: 1, generation: 1 }),
            Source::Connection(Entry { place: (1 << KIND) - 1, generation: u16::MAX }),
            Source::Sender(sender),
            Source::Sender(senders.insert(())),
        ];
        all.extend(Source::URGENT);
        all.extend(Speech::ALL.map(Source::Door));
        all.extend([Source::Reader, Source::Client(0), Source::Client(255)]);
        for (n, source) in all.iter().enumerate() {
            assert_eq!(Source::of(source.token()), Some(*source));
            assert!(all[..n].iter().all(|other| other.token() != source.token()), "{source:?}");
        }
    }

    #[test]
    fn a_token_of_nobody_names_nothing() {
        for number in [7, CLIENTS + 256] {
            assert_eq!(Source::of(Token(number | (OWN << KIND))), None);
        }
    }
}
