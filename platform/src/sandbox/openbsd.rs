// SPDX-License-Identifier: BSD-3-Clause

//! OpenBSD: unveil(2) and pledge(2).

use super::Report;
use crate::back::Ways;
use crate::check;
use crate::name::Name;
use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub const BUILT_IN: &str = "unveil, pledge";

/// "inet" is for the options of TCP sockets. With "error" what is forbidden is refused (ENOSYS) and does
/// not end the process: whoever passes a directory, which "recvfd" forbids, is hung up on, and could end
/// everybody's lingers else.
const PROMISES: &CStr = c"error stdio rpath cpath unix inet recvfd sendfd";

/// After pledge(2) without "unveil" nothing else can be unveiled.
pub fn enter(names: &[&Name], ways: &Ways, report: &mut Report) {
    report.note("unveil", unveil_all(names, ways));
    // SAFETY: pledge(2) reads the NUL-terminated string; null leaves the other promises as they are.
    report.note("pledge", check(unsafe { libc::pledge(PROMISES.as_ptr(), std::ptr::null()) }).map(drop));
}

/// Of the file system there is left where `names` are, and the socket of syslogd(8).
fn unveil_all(names: &[&Name], ways: &Ways) -> io::Result<()> {
    for directory in names.iter().filter_map(|name| name.path().parent()) {
        // To connect to a socket is to write to it; and the hand-off socket is among the names.
        let has_ways = ways.name().path().parent() == Some(directory);
        unveil(directory, if has_ways { c"rwc" } else { c"rc" })?;
    }
    unveil(Path::new("/dev/log"), c"rw")
}

fn unveil(path: &Path, permissions: &CStr) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: unveil(2) reads the two NUL-terminated strings, which outlive the call.
    check(unsafe { libc::unveil(path.as_ptr(), permissions.as_ptr()) }).map(drop)
}
