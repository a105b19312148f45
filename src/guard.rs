// SPDX-License-Identifier: BSD-3-Clause

//! Who may come in at a door, by the kernel's word on who has connected; those who may not are counted,
//! and logged now and then.
//!
//! Must not know what anybody wants inside.

use crate::retry::Warning;
use crate::rules::time::Time;
use lingerd_platform::fdpass::Link;
use lingerd_platform::peer::Peer;
use std::io;

/// The users and groups that a door is for; root always is among them.
#[derive(Clone, Debug)]
pub struct Allowed {
    users: Vec<u32>,
    groups: Vec<u32>,
    anybody: bool,
    /// Whether who cannot be told may come in, as the file's mode has already kept out whom it should:
    /// the system does not tell, or no longer does as they have gone, or not all of their groups.
    unknown: bool,
}

impl Allowed {
    /// Those whom a socket's file lets connect, as it was made: its mode is held to where the system
    /// ignores it, too.
    pub fn by_mode(owner: u32, group: u32, mode: u32) -> Self {
        let groups = if mode & 0o020 != 0 { vec![group] } else { Vec::new() };
        Allowed { users: vec![0, owner], groups, anybody: mode & 0o002 != 0, unknown: true }
    }

    /// Root, the daemon's user, and who is listed, whatever the file's mode is.
    pub fn listed(owner: u32, users: &[u32], groups: &[u32]) -> Self {
        let users = [&[0, owner], users].concat();
        Allowed { users, groups: groups.to_vec(), anybody: false, unknown: false }
    }

    /// Whether that one may come in; see [`Link::peer`].
    pub fn lets_in(&self, peer: &io::Result<Peer>) -> bool {
        match peer {
            Ok(Peer { uid, groups, all_groups, .. }) => {
                self.anybody
                    || self.users.contains(uid)
                    || groups.iter().any(|group| self.groups.contains(group))
                    || self.unknown && !all_groups && !self.groups.is_empty()
            }
            Err(_) => self.unknown,
        }
    }
}

/// Stands at one door.
pub struct Guard {
    allowed: Allowed,
    /// What the others may not, for the log.
    what: &'static str,
    refused: u64,
    refusals: Warning,
}

impl Guard {
    /// Lets in who is `allowed`; the log says of others that they may not do `what`.
    pub fn new(allowed: Allowed, what: &'static str) -> Self {
        Guard { allowed, what, refused: 0, refusals: Warning::default() }
    }

    /// Whether who is at the other end of `link` may come in. If not that is counted and logged, and it
    /// is for the caller to hang up.
    pub fn lets_in(&mut self, link: &impl Link, now: Time) -> bool {
        let peer = link.peer();
        let lets_in = self.allowed.lets_in(&peer);
        if !lets_in {
            self.refused += 1;
            let who = peer.map_or_else(|e| format!("somebody unknown ({e})"), |peer| peer.to_string());
            self.refusals.warn(now, format_args!("hung up on {who}: it may not {}", self.what));
        }
        lets_in
    }

    /// Counts on from where a predecessor has stopped.
    pub fn count_on(&mut self, refused: u64) {
        self.refused = refused;
    }

    /// How many may not come in and have tried.
    pub fn refused(&self) -> u64 {
        self.refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32, groups: &[u32]) -> io::Result<Peer> {
        Ok(Peer { uid, groups: groups.to_vec(), all_groups: true, pid: None })
    }

    #[test]
    fn by_its_mode_a_socket_is_for_its_owner_and_root_its_group_or_everybody() {
        for (mode, of_group, stranger) in
            [(0o600, false, false), (0o660, true, false), (0o640, false, false), (0o666, true, true)]
        {
            let allowed = Allowed::by_mode(5, 6, mode);
            assert!(allowed.lets_in(&peer(0, &[0])) && allowed.lets_in(&peer(5, &[9])), "{mode:o}");
            assert_eq!(allowed.lets_in(&peer(7, &[6])), of_group, "{mode:o}");
            assert_eq!(allowed.lets_in(&peer(7, &[8, 9, 6])), of_group, "{mode:o}, supplementary");
            assert_eq!(allowed.lets_in(&peer(6, &[5, 0])), stranger, "{mode:o}: users are no groups");
            assert!(allowed.lets_in(&Err(io::ErrorKind::NotConnected.into())), "{mode:o}");
        }
    }

    #[test]
    fn a_group_that_is_not_told_is_for_the_mode_to_know() {
        let peer = Ok(Peer { uid: 7, groups: vec![8], all_groups: false, pid: None });
        assert!(Allowed::by_mode(5, 6, 0o660).lets_in(&peer));
        assert!(!Allowed::by_mode(5, 6, 0o600).lets_in(&peer), "it is no matter of groups");
        assert!(!Allowed::listed(5, &[], &[6]).lets_in(&peer), "nobody has looked");
    }

    #[test]
    fn a_list_takes_the_place_of_the_mode() {
        let allowed = Allowed::listed(5, &[7], &[8]);
        for (uid, groups, lets_in) in [
            (0, &[0][..], true),
            (5, &[6], true),
            (7, &[7], true),
            (9, &[8], true),
            (9, &[9, 8], true),
            (9, &[9, 7, 5, 0], false),
            (8, &[6], false),
            (8, &[], false),
        ] {
            assert_eq!(allowed.lets_in(&peer(uid, groups)), lets_in, "{uid} {groups:?}");
        }
        assert!(!allowed.lets_in(&Err(io::ErrorKind::Unsupported.into())), "nobody knows");
    }
}
