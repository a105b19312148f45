// SPDX-License-Identifier: BSD-3-Clause

//! Processors of Linux for which the crate seccompiler has no filter.

pub const LINUX_BUILT_IN: &str = "no_new_privs, Landlock, capabilities";

pub fn filter() -> Result<(), &'static str> {
    Err("there is no filter for this processor")
}
