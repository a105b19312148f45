//! Leaving the terminal, and telling the one who started us how it went.
//!
//! The parent stays until the daemon reports that it serves, or that it failed; until then the
//! daemon keeps standard error, so that what went wrong is read where the command was typed. The
//! crate `daemonize` does the forking; nothing outside this module knows of it.

use crate::check;
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
    /// When /dev/null cannot be opened. That the parent has been killed meanwhile is no error.
    pub fn serving(mut self) -> io::Result<()> {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        for standard in 0..=2 {
            // SAFETY: dup2(2) takes two numbers; std holds the standard descriptors open for good
            // and never owns them.
            check(unsafe { libc::dup2(null.as_raw_fd(), standard) })?;
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
    let daemon = daemonize::Daemonize::new() // standard input becomes /dev/null
        .stdout(daemonize::Stdio::keep())
        .stderr(daemonize::Stdio::keep());
    match daemon.execute() {
        daemonize::Outcome::Parent(forked) => {
            drop(child);
            forked.map_err(io::Error::other)?;
            let mut code = [0];
            let reported = parent.read_exact(&mut code);
            process::exit(if reported.is_ok() { code[0].into() } else { 1 });
        }
        daemonize::Outcome::Child(done) => {
            done.map_err(io::Error::other)?;
            Ok(Report(child))
        }
    }
}
