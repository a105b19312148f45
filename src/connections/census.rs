// SPDX-License-Identifier: BSD-3-Clause

//! How many connections come from where, so that no one address can have the table for itself.
//!
//! An address is counted by a hash of it, in a table of fixed size: with what nobody outside can guess,
//! so that nobody can be made to be counted with another one on purpose. Of IPv6 it is the first half
//! that counts, as a single host commonly has all of the other. Must not know what follows from it.

use std::net::{IpAddr, SocketAddr};

/// How many hashes there are.
const PLACES: usize = 4096;

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin(u16);

impl Origin {
    /// Of a place without a connection, and of one that is parked: of these there may be more than of any address. It is not
    /// counted.
    pub const NOWHERE: Origin = Origin(u16::MAX - 1);

    /// Of one that nobody has asked yet. It is not counted.
    pub const UNKNOWN: Origin = Origin(u16::MAX);
}

/// See the module's head.
pub struct Census {
    chance: u64,
    counts: Box<[u32]>,
    /// No origin has more; it may have had.
    most: u32,
}

impl Census {
    /// Of nobody; `chance` is what nobody outside can guess.
    pub fn new(chance: u64) -> Self {
        Census { chance, counts: vec![0; PLACES].into(), most: 0 }
    }

    /// Where a connection with that peer comes from. One whose peer is not known comes from where all of
    /// those come from.
    pub fn origin(&self, peer: Option<SocketAddr>) -> Origin {
        let network = match peer.map(|peer| peer.ip().to_canonical()) {
            Some(IpAddr::V4(ip)) => u64::from(u32::from(ip)),
            Some(IpAddr::V6(ip)) => (u128::from(ip) >> 64) as u64, // 2000::/3, so that it is none of the others
            None => u64::MAX,
        };
        // The multipliers of MurmurHash3's finalizer; without `chance` it would be no secret.
        let mut hash = network ^ self.chance;
        for odd in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
            hash = (hash ^ (hash >> 33)).wrapping_mul(odd);
        }
        Origin((hash >> 52) as u16) // 12 bits: less than PLACES
    }

    /// One more comes from `origin`.
    pub fn add(&mut self, origin: Origin) {
        if let Some(count) = self.counts.get_mut(usize::from(origin.0)) {
            *count += 1;
            self.most = self.most.max(*count);
        }
    }

    /// One less does.
    pub fn remove(&mut self, origin: Origin) {
        if let Some(count) = self.counts.get_mut(usize::from(origin.0)) {
            *count -= 1;
        }
    }

    /// Whether more than `share` come from `origin`.
    pub fn exceeds(&self, origin: Origin, share: usize) -> bool {
        self.counts.get(usize::from(origin.0)).is_some_and(|&count| count as usize > share)
    }

    /// Whether more than `share` come from anywhere.
    pub fn any_exceeds(&mut self, share: usize) -> bool {
        if self.most as usize > share {
            self.most = self.counts.iter().copied().max().unwrap_or(0);
        }
        self.most as usize > share
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn origin(census: &Census, address: &str) -> Origin {
        census.origin(Some(address.parse().unwrap()))
    }

    #[test]
    fn an_address_is_one_whatever_its_port_and_so_is_half_of_an_ipv6_one() {
        let census = Census::new(7);
        for [one, same, other] in [
            ["192.0.2.1:80", "192.0.2.1:81", "192.0.2.2:80"],
            ["192.0.2.1:80", "[::ffff:192.0.2.1]:80", "192.0.2.3:80"],
            ["[2001:db8::1]:80", "[2001:db8::ffff:1]:9", "[2001:db8:0:1::1]:80"],
        ] {
            assert_eq!(origin(&census, one), origin(&census, same));
            assert_ne!(origin(&census, one), origin(&census, other));
        }
    }

    #[test]
    fn addresses_are_spread_and_nobody_can_guess_how() {
        let of = |chance| {
            let census = Census::new(chance);
            let address = |n: u32| SocketAddr::from((n.to_be_bytes(), 80));
            (0..1_000).map(|n| census.origin(Some(address(n))).0).collect::<Vec<_>>()
        };
        let distinct: HashSet<_> = of(1).into_iter().collect();
        assert!(distinct.len() > 800, "{} of 1,000", distinct.len()); // 887 of 4,096 when thrown by chance
        let same = of(1).iter().zip(of(2)).filter(|(one, other)| *one == other).count();
        assert!(same < 10, "{same} are where they were");
    }

    #[test]
    fn who_exceeds_a_share_is_known_until_he_does_not_any_more() {
        let mut census = Census::new(1);
        let [greedy, modest] = ["192.0.2.1:1", "192.0.2.2:1"].map(|address| origin(&census, address));
        (0..4).for_each(|_| census.add(greedy));
        census.add(modest);
        assert!(census.exceeds(greedy, 3) && !census.exceeds(modest, 3) && census.any_exceeds(3));
        assert!(!census.exceeds(greedy, 4) && !census.any_exceeds(4));
        census.remove(greedy);
        assert!(!census.exceeds(greedy, 3) && !census.any_exceeds(3) && census.any_exceeds(2));
    }
}
