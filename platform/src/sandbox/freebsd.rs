// SPDX-License-Identifier: BSD-3-Clause

//! FreeBSD: capability mode, capsicum(4).
//!
//! In it no path leads anywhere: what is left is what the process has open, and what lies below a
//! directory that it has open, as far as that descriptor's rights go. So the directories are limited to what
//! they are for; other descriptors have no names below them.

use super::Report;
use crate::back::Ways;
use crate::name::Name;
use crate::{check, syslog};
use std::io;
use std::os::fd::{AsFd, AsRawFd};

pub const BUILT_IN: &str = "Capsicum";

pub fn enter(names: &[&Name], ways: &Ways, report: &mut Report) {
    report.note("Capsicum", enter_capability_mode(names, ways));
}

fn enter_capability_mode(names: &[&Name], ways: &Ways) -> io::Result<()> {
    for name in names {
        limit(name, libc::CAP_FSTATAT, libc::CAP_UNLINKAT)?;
    }
    limit(ways.name(), libc::CAP_CONNECTAT, libc::CAP_CONNECTAT)?;
    // Where there is none there is no syslogd to be found either.
    if let Ok(directory) = syslog::keep_in_reach() {
        limit(&directory, libc::CAP_CONNECTAT, libc::CAP_CONNECTAT)?;
    }
    // SAFETY: cap_enter(2) takes nothing.
    check(unsafe { libc::cap_enter() }).map(drop)
}

/// Takes from a descriptor all rights but these two, rights(4).
fn limit(descriptor: &impl AsFd, one: u64, other: u64) -> io::Result<()> {
    // SAFETY: cap_rights_t is plain numbers, for which zeroes are a value.
    let mut rights: libc::cap_rights_t = unsafe { std::mem::zeroed() };
    // SAFETY: cap_rights_init(3), the macro that this is behind, fills in the set from the rights that
    // follow it, up to a 0.
    unsafe { libc::__cap_rights_init(libc::CAP_RIGHTS_VERSION, &raw mut rights, one, other, 0u64) };
    // SAFETY: cap_rights_limit(2) reads the set, which outlives the call.
    check(unsafe { libc::cap_rights_limit(descriptor.as_fd().as_raw_fd(), &raw const rights) }).map(drop)
}
