// SPDX-License-Identifier: BSD-3-Clause

//! illumos and Solaris: privileges(7).

use super::Report;
use crate::back::Ways;
use crate::check;
use crate::name::Name;
use std::ffi::{CStr, c_char, c_int};
use std::io;

pub const BUILT_IN: &str = "privileges";

/// What is left: reading, writing and removing files, as the user it is. No fork, no exec, no look at other
/// processes, no signal to another session's, no link to others' files, no network endpoint of its own.
const KEPT: &CStr = c"basic,!proc_fork,!proc_exec,!proc_info,!proc_session,!file_link_any,!net_access";

pub fn enter(_: &[&Name], _: &Ways, report: &mut Report) {
    report.note("privileges", keep());
}

/// <priv.h>, which the crate libc lacks.
mod privileges {
    use super::{c_char, c_int};

    #[repr(C)]
    pub struct Set(#[allow(dead_code, reason = "it is opaque")] [u8; 0]);

    /// <sys/priv.h>: PRIV_OFF.
    pub const OFF: c_int = 1;

    unsafe extern "C" {
        pub fn priv_str_to_set(
            text: *const c_char,
            separators: *const c_char,
            end: *mut *const c_char,
        ) -> *mut Set;
        pub fn priv_inverse(set: *mut Set);
        pub fn priv_freeset(set: *mut Set);
        pub fn setppriv(operation: c_int, which: *const c_char, set: *const Set) -> c_int;
    }
}

/// Takes all privileges away but those of [`KEPT`]. What goes from the permitted ones goes from the
/// effective ones, too.
fn keep() -> io::Result<()> {
    use privileges::{OFF, priv_freeset, priv_inverse, priv_str_to_set, setppriv};
    // SAFETY: priv_str_to_set(3C) reads the two NUL-terminated strings; null for the third is allowed.
    let set = unsafe { priv_str_to_set(KEPT.as_ptr(), c",".as_ptr(), std::ptr::null_mut()) };
    if set.is_null() {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: priv_inverse(3C) changes the set that priv_str_to_set(3C) has allocated.
    unsafe { priv_inverse(set) };
    // SAFETY: setppriv(2) reads the NUL-terminated name and the set.
    let taken = check(unsafe { setppriv(OFF, c"Permitted".as_ptr(), set) });
    // SAFETY: priv_freeset(3C) frees what priv_str_to_set(3C) has allocated; nobody has it after this.
    unsafe { priv_freeset(set) };
    taken.map(drop)
}
