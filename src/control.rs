//! The control socket: where `lingerd -S` gets the running daemon's counters.
//!
//! Whoever connects is told the counters as text and hung up on: the daemon keeps nothing for
//! them, so that nobody can make it wait. Only the daemon's user and root get in, by the file's
//! mode and, where a system ignores that, by the kernel's word on who connects.

use crate::endpoint::{self, Access, Endpoint};
use crate::stats::Snapshot;
use anyhow::{Context, Result};
use lingerd_platform::{peer, process};
use std::ffi::OsString;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What is appended to the hand-off socket's path.
const SUFFIX: &str = ".ctl";

/// How long `lingerd -S` waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// More than any answer has.
const ANSWER_BYTES: usize = 64 * 1024;

/// How many are answered in one turn of the daemon's loop.
const BUDGET: usize = 8;

/// Where the control socket of the daemon with the hand-off socket `socket` lies.
pub fn path(socket: &Path) -> PathBuf {
    let mut path = OsString::from(socket);
    path.push(SUFFIX);
    path.into()
}

/// The daemon's side.
pub struct Control(Endpoint);

impl Control {
    /// Listens beside the hand-off socket `socket`, for user `uid` (`None`: who calls) and root.
    ///
    /// # Errors
    /// As [`Endpoint::bind`].
    pub fn bind(socket: &Path, uid: Option<u32>) -> Result<Self> {
        Endpoint::bind(&path(socket), Access { uid, gid: None, mode: 0o600 }).map(Control)
    }

    /// Answers those who wait.
    ///
    /// # Errors
    /// What accept(2) says when it cannot serve anybody for now (EMFILE, ENFILE).
    pub fn answer(&self, snapshot: impl Fn() -> Snapshot) -> io::Result<()> {
        for _ in 0..BUDGET {
            let mut client = match self.0.accept() {
                Ok(client) => client,
                Err(e) => match e.kind() {
                    ErrorKind::WouldBlock => break,
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => continue,
                    _ => return Err(e),
                },
            };
            let uid = match peer::peer(&client) {
                Ok(peer) => peer.uid,
                Err(e) if e.kind() == ErrorKind::Unsupported => 0, // the file's mode has to do
                Err(_) => continue,
            };
            if uid == 0 || uid == process::effective_uid() {
                // Some hundred bytes: they fit into the socket's buffer at once, or nobody reads.
                let _ = client.write_all(snapshot().render(Default::default()).as_bytes());
            }
        }
        Ok(())
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Asks the daemon with the hand-off socket `socket` for its counters. `Ok(None)` when there is no
/// daemon.
///
/// # Errors
/// When there is one but it does not let us in or does not answer.
pub fn query(socket: &Path) -> Result<Option<Snapshot>> {
    let path = path(socket);
    let mut link: UnixStream = match endpoint::connect(&path) {
        Ok(link) => std::os::fd::OwnedFd::from(link).into(),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => return Ok(None),
        Err(e) => {
            let hint = match e.kind() {
                ErrorKind::PermissionDenied => " (only the daemon's user and root may ask)",
                ErrorKind::WouldBlock => " (the daemon hangs: its queue of connections is full)",
                _ => "",
            };
            return Err(e).with_context(|| format!("{}: cannot connect{hint}", path.display()));
        }
    };
    let text =
        read_answer(&mut link).with_context(|| format!("{}: the daemon does not answer", path.display()))?;
    text.parse().map(Some).map_err(anyhow::Error::msg).with_context(|| path.display().to_string())
}

/// Reads to the end, within [`PATIENCE`] in all: whoever may be at the other end of a socket in the
/// daemon's directory must not be able to hold root up.
fn read_answer(link: &mut UnixStream) -> io::Result<String> {
    let mut answer = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    link.set_nonblocking(false)?;
    while answer.len() < ANSWER_BYTES {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        link.set_read_timeout(Some(left))?;
        let mut piece = [0; 4096];
        match link.read(&mut piece)? {
            0 => break,
            n => answer.extend_from_slice(&piece[..n]),
        }
    }
    String::from_utf8(answer).map_err(io::Error::other)
}
