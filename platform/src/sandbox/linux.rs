// SPDX-License-Identifier: BSD-3-Clause

//! Linux: no_new_privs, Landlock, capabilities, and a filter of the system calls.

use super::{Report, seccomp};
use crate::back::Ways;
use crate::check;
use crate::name::Name;
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use std::io;

pub const BUILT_IN: &str = seccomp::LINUX_BUILT_IN;

/// What of Landlock is asked for: Linux 6.12. What an older kernel lacks of it is left out.
const LANDLOCK: ABI = ABI::V6;

/// In this order: each of them may forbid what comes before it.
pub fn enter(names: &[&Name], _: &Ways, report: &mut Report) {
    report.note("no_new_privs", no_new_privs());
    match landlock(names) {
        Ok(RulesetStatus::FullyEnforced) => report.applied.push("Landlock".to_owned()),
        Ok(RulesetStatus::PartiallyEnforced) => {
            report.applied.push("Landlock (as far as this kernel has it)".to_owned());
        }
        Ok(RulesetStatus::NotEnforced) => {
            report.note("Landlock", Err("this kernel has none, or it is switched off"));
        }
        Err(e) => report.note("Landlock", Err(e)),
    }
    report.note("capabilities", no_capabilities());
    report.note("seccomp", seccomp::filter());
}

/// Nothing that it might execute can give it more rights than it has, prctl(2).
fn no_new_privs() -> io::Result<()> {
    // SAFETY: prctl(2): PR_SET_NO_NEW_PRIVS takes numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).map(drop)
}

/// Of the file system there is left to remove files from where `names` are, to look at attributes, and to
/// connect to sockets that have a path. No TCP socket can be bound or connected, and nobody outside can be
/// signalled, or reached through an abstract socket; landlock(7).
fn landlock(names: &[&Name]) -> Result<RulesetStatus, RulesetError> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?;
    for name in names {
        rules = rules.add_rule(PathBeneath::new(*name, AccessFs::RemoveFile))?;
    }
    Ok(rules.restrict_self()?.ruleset)
}

/// Root without any is an ordinary user, who has root's files; capabilities(7). The ambient ones go
/// with the others, and what bounds them no longer matters with no_new_privs.
fn no_capabilities() -> Result<(), caps::errors::CapsError> {
    caps::clear(None, caps::CapSet::Inheritable)?;
    caps::clear(None, caps::CapSet::Permitted) // and with it the effective ones
}
