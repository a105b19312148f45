// SPDX-License-Identifier: BSD-3-Clause

//! The sandbox: what a daemon that serves has no need of is taken from it, for good, before anybody can
//! talk to it.
//!
//! Each kernel has its own means, a file each. What it still has to do is the same everywhere: wait, take
//! descriptors and pass them on, read, write, ask and close what it has; let senders in; start a thread;
//! remove the names that it has made; find the syslog daemon again, and servers that take connections back. Nothing here fails: what a kernel
//! lacks is reported, and the daemon serves without it. Must not know what is served.

use crate::back::Ways;
use crate::name::Name;
use std::fmt::Display;

cfg_if::cfg_if! {
    if #[cfg(target_os = "linux")] {
        mod linux;
        use linux as system;
        cfg_if::cfg_if! {
            if #[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))] {
                mod seccomp;
            } else {
                mod no_seccomp;
                use no_seccomp as seccomp;
            }
        }
    } else if #[cfg(target_os = "freebsd")] {
        mod freebsd;
        use freebsd as system;
    } else if #[cfg(target_os = "openbsd")] {
        mod openbsd;
        use openbsd as system;
    } else if #[cfg(any(target_os = "illumos", target_os = "solaris"))] {
        mod solarish;
        use solarish as system;
    } else {
        mod none;
        use none as system;
    }
}

/// What is built in, as `lingerd -V` prints it; a kernel may lack some of it.
pub const BUILT_IN: &str = system::BUILT_IN;

/// What [`enter`] came to.
#[derive(Debug, Default)]
pub struct Report {
    /// What is in force.
    pub applied: Vec<String>,
    /// What could not be applied, and why.
    pub missing: Vec<String>,
}

impl Report {
    #[allow(dead_code, reason = "some systems have no sandbox")]
    fn note(&mut self, what: &str, done: Result<(), impl Display>) {
        match done {
            Ok(()) => self.applied.push(what.to_owned()),
            Err(why) => self.missing.push(format!("{what}: {why}")),
        }
    }
}

/// Takes from this process, and from every thread that it starts later, what it has no need of. `names`
/// can still be removed, and `ways` be called.
///
/// Must be called while the process has one thread: some kernels restrict the calling one only.
pub fn enter(names: &[&Name], ways: &Ways) -> Report {
    let mut report = Report::default();
    system::enter(names, ways, &mut report);
    report
}

#[cfg(test)]
mod tests;
