// SPDX-License-Identifier: BSD-3-Clause

//! Leaving the terminal, and telling the one who started us how it went.
//!
//! The parent stays until the daemon reports that it serves, or that it failed; until then the
//! daemon keeps standard error, so that what went wrong is read where the command was typed. Must
//! not know what is served.

use crate::check;
use std::env;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process;

/// The daemon's side of the report.
pub struct Report(UnixStream);

impl Report {
    /// Tells the parent that the daemon serves (the parent exits 0), and lets go of the terminal.
    ///
    /// # Errors
    /// What dup2(2) says. That the parent has been killed meanwhile is no error.
    pub fn serving(mut self) -> io::Result<()> {
        // Since detach() standard input is /dev/null, which cannot be opened any more in a sandbox.
        for number in 1..=2 {
            point(number, 0)?;
        }
        let _ = self.0.write_all(&[0]);
        Ok(())
    }

    /// Tells the parent to exit with `code`. What went wrong has been printed by then.
    pub fn failed(mut self, code: u8) {
        let _ = self.0.write_all(&[code]);
    }
}

/// Forks into the background, with / as the working directory and a session of its own. Returns
/// in the daemon only; the parent waits for the [`Report`] and exits with what it says, or with 1
/// if the daemon dies before it reports.
///
/// Must be called while the process has one thread.
///
/// # Errors
/// In the parent or in the child, when forking or leaving the session fails.
pub fn detach() -> io::Result<Report> {
    let (mut parent, child) = UnixStream::pair()?;
    if fork()? {
        drop(child);
        let mut code = [0];
        let reported = parent.read_exact(&mut code);
        process::exit(if reported.is_ok() { code[0].into() } else { 1 });
    }
    drop(parent);
    // SAFETY: setsid(2) takes nothing. The child of a fork leads no process group yet, so that it
    // does not fail.
    check(unsafe { libc::setsid() })?;
    // A session's leader could still be given a terminal, by opening one; its child cannot.
    if fork()? {
        // Not process::exit: what is registered to run at exit is the daemon's to run.
        // SAFETY: _exit(2) takes a number and does not return.
        unsafe { libc::_exit(0) };
    }
    env::set_current_dir("/")?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    point(0, null.as_raw_fd())?;
    Ok(Report(child))
}

/// fork(2); true in the parent. Must be called while the process has one thread, as [`detach`].
///
/// # Errors
/// What fork(2) says.
pub fn fork() -> io::Result<bool> {
    // SAFETY: fork(2): the child of a process with one thread may do what the parent may; the caller
    // answers for the one thread.
    Ok(check(unsafe { libc::fork() })? != 0)
}

/// Makes a standard descriptor the same file as another descriptor.
fn point(standard: i32, at: i32) -> io::Result<()> {
    // SAFETY: dup2(2) takes two numbers; std holds the standard descriptors open for good and never
    // owns them.
    check(unsafe { libc::dup2(at, standard) }).map(drop)
}
