// SPDX-License-Identifier: BSD-3-Clause

//! How the process's descriptors are shared out between connections, senders and what a message
//! may bring, so that the kernel never has to drop one that was handed over.
//!
//! Arithmetic only: where room is short `Connections::make_room` evicts, and the table says whom.

use lingerd_platform::fdpass;

/// The limit of open descriptors is too low to serve anybody.
#[derive(Debug, thiserror::Error)]
#[error(
    "the limit of {limit} open descriptors is too low: at least {needed} are needed; raise it (ulimit -n)"
)]
pub struct TooLow {
    limit: usize,
    needed: usize,
}

/// See the module's head.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// How many descriptors there can be.
    limit: usize,
    /// What is left for connections and senders.
    descriptors: usize,
    /// Kept free at all times for what one message may bring.
    message: usize,
    /// -n
    wanted: Option<usize>,
}

impl Room {
    /// For the daemon's own use beyond what is open at start: a log, those at the control socket, the
    /// system library's own.
    const OWN: usize = 12;
    /// Below this many for all three it makes no sense to start.
    const LEAST: usize = 16;
    /// So many descriptors have their place in the system's table from the start, of a daemon that is not told how
    /// many connections to expect: half a megabyte of memory on Linux.
    const EXPECTED: usize = 65_536;
    /// More than anybody has: 16 megabytes. Where there is no limit, -n may be any number.
    const MOST_EXPECTED: usize = 1 << 21;
    /// And those beside the connections that are expected.
    const BESIDE: usize = 4_096;

    /// Shares out what `limit` leaves of descriptors beside those that are `taken`. `wanted` is -n.
    ///
    /// # Errors
    /// When the limit is too low to serve anybody.
    pub fn share(limit: u64, taken: usize, wanted: Option<usize>) -> Result<Self, TooLow> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let descriptors = limit.saturating_sub(taken + Self::OWN);
        if descriptors < Self::LEAST {
            return Err(TooLow { limit, needed: taken + Self::OWN + Self::LEAST });
        }
        let message = fdpass::MAX_DESCRIPTORS.min(descriptors / 2);
        Ok(Room { limit, descriptors: descriptors - message, message, wanted })
    }

    /// How many sockets one message may bring for certain.
    pub fn message(&self) -> usize {
        self.message
    }

    /// How many connections may linger while so many descriptors are others'.
    pub fn connections(&self, others: usize) -> usize {
        let left = self.descriptors.saturating_sub(others);
        self.wanted.map_or(left, |wanted| wanted.min(left))
    }

    /// How many files may be open that are still to be closed, as those of a file system that hangs.
    pub fn files(&self) -> usize {
        self.descriptors / 4
    }

    /// How many senders may be connected.
    pub fn senders(&self) -> usize {
        self.descriptors / 2
    }

    /// How many descriptors are to have their place in the system's table from the start, as to make room for more
    /// takes time in which nobody is served.
    pub fn places(&self) -> usize {
        let expected = self.wanted.map_or(Self::EXPECTED, |wanted| wanted.saturating_add(Self::BESIDE));
        expected.min(Self::MOST_EXPECTED).min(self.limit)
    }

    /// What -n asks for, if that is more than there ever is room for.
    pub fn unmet(&self) -> Option<usize> {
        self.wanted.filter(|&wanted| wanted > self.descriptors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_share_is_taken_twice() {
        for limit in (0..5_000).chain([65_536, 1 << 30, u64::MAX]) {
            let Ok(room) = Room::share(limit, 14, None) else {
                assert!(limit < (14 + Room::OWN + Room::LEAST) as u64, "{limit} would do");
                continue;
            };
            for senders in [0, 1, room.senders() / 2, room.senders()] {
                let most = room.connections(senders);
                assert!(most > 0, "{limit}: no room for a connection beside {senders} senders");
                assert!((14 + Room::OWN + room.message() + senders + most) as u64 <= limit, "{limit}");
            }
        }
    }

    #[test]
    fn a_whole_message_fits_wherever_the_limit_allows() {
        assert_eq!(Room::share(1_024, 14, None).unwrap().message(), 253);
        assert_eq!(Room::share(64, 14, None).unwrap().message(), 19);
    }

    #[test]
    fn n_lowers_the_number_of_connections_and_never_raises_it() {
        let room = Room::share(1_024, 14, Some(10)).unwrap();
        assert_eq!((room.connections(0), room.unmet()), (10, None));
        let room = Room::share(64, 14, Some(1_000)).unwrap();
        assert_eq!((room.connections(0), room.unmet()), (19, Some(1_000)));
    }

    #[test]
    fn the_limit_that_an_error_asks_for_is_the_least_that_will_do() {
        for taken in [0, 14, 100] {
            let TooLow { needed, .. } = Room::share(taken as u64 + 1, taken, None).unwrap_err();
            assert!(Room::share(needed as u64, taken, None).is_ok(), "{needed}");
            assert!(Room::share(needed as u64 - 1, taken, None).is_err(), "{needed}");
        }
    }

    #[test]
    fn places_are_for_as_many_as_are_expected_and_never_more_than_there_can_be() {
        for (limit, wanted, places) in [
            (1_024, None, 1_024),
            (524_288, None, 65_536),
            (524_288, Some(100), 4_196),
            (524_288, Some(300_000), 304_096),
            (524_288, Some(1_000_000), 524_288),
            (u64::MAX, Some(usize::MAX), 1 << 21),
        ] {
            assert_eq!(Room::share(limit, 14, wanted).unwrap().places(), places, "{limit} {wanted:?}");
        }
    }

    #[test]
    fn n_is_met_by_just_as_many() {
        let most = Room::share(1_024, 14, None).unwrap().connections(0);
        for (wanted, unmet) in [(most, None), (most + 1, Some(most + 1))] {
            assert_eq!(Room::share(1_024, 14, Some(wanted)).unwrap().unmet(), unmet);
        }
    }
}
