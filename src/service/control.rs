//! The control socket: where `lingerd -S` gets the running daemon's counters.
//!
//! Whoever connects is told the counters as text and hung up on: the daemon keeps nothing for
//! them, so that nobody can make it wait. Only the daemon's user and root get in, by the file's
//! mode and, where a system ignores that, by the kernel's word on who connects.

use super::endpoint;
use crate::guard::{Allowed, Guard};
use crate::rules::time::Time;
use crate::source::Source;
use crate::stats::Snapshot;
use crate::watched::Watched;
use lingerd_platform::fdpass::{Door, Link};
use lingerd_platform::process;
use lingerd_platform::world::World;
use std::ffi::OsString;
use std::io::{self, ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What is appended to the hand-off socket's path.
const SUFFIX: &str = ".ctl";

/// How long `lingerd -S` waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// More than any answer has.
const ANSWER_BYTES: usize = 64 * 1024;

/// How many are answered at a time: once in a turn of the daemon, and each time that it looks up from
/// a long one.
const BUDGET: usize = 8;

/// Where the control socket of the daemon with the hand-off socket `socket` lies.
pub fn path(socket: &Path) -> PathBuf {
    let mut path = OsString::from(socket);
    path.push(SUFFIX);
    path.into()
}

/// The daemon's side.
pub struct Control<W: World> {
    door: Watched<W::Door>,
    guard: Guard,
}

impl<W: World> Control<W> {
    /// Behind `door` nobody is heard yet; [`watch`](Self::watch) changes that.
    pub fn new(door: W::Door) -> Self {
        let own = Allowed::by_mode(process::effective_uid(), 0, 0o600);
        let guard = Guard::new(own, "ask for the counters: root and the daemon's user may");
        Control { door: Watched::new(door, Source::Control), guard }
    }

    /// Has who asks reported (again).
    ///
    /// # Errors
    /// As [`Watched::watch`].
    pub fn watch(&mut self, backend: &mut W::Backend) -> io::Result<()> {
        self.door.watch(backend)
    }

    /// Leaves who asks waiting until [`watch`](Self::watch).
    pub fn leave(&mut self, backend: &mut W::Backend) {
        self.door.leave(backend);
    }

    /// How many were refused an answer.
    pub fn refused(&self) -> u64 {
        self.guard.refused()
    }

    /// Answers those who wait.
    ///
    /// # Errors
    /// What accept(2) says when it cannot serve anybody for now (EMFILE, ENFILE).
    pub fn answer(&mut self, snapshot: &Snapshot, now: Time) -> io::Result<()> {
        for _ in 0..BUDGET {
            let mut client = match self.door.get().accept() {
                Ok(client) => client,
                Err(e) => match e.kind() {
                    ErrorKind::WouldBlock => break,
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => continue,
                    _ => return Err(e),
                },
            };
            if self.guard.lets_in(&client, now) {
                // Some hundred bytes: they fit into the socket's buffer at once, or nobody reads.
                let _ = client.tell(snapshot.render(Default::default()).as_bytes());
            }
        }
        Ok(())
    }
}

/// Why a daemon that is there gives no counters.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not let us in.
    #[error("{}: cannot connect{}", path.display(), match source.kind() {
        ErrorKind::PermissionDenied => " (only the daemon's user and root may ask)",
        ErrorKind::WouldBlock => " (the daemon hangs: its queue of connections is full)",
        _ => "",
    })]
    Connect {
        /// Of the control socket.
        path: PathBuf,
        /// What connect(2) says.
        source: io::Error,
    },
    /// It says nothing.
    #[error("{}: the daemon does not answer", .0.display())]
    Silent(PathBuf, #[source] io::Error),
    /// What it says is no counters.
    #[error("{}: {what}", path.display())]
    NoCounters {
        /// Of the control socket.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

/// Asks the daemon with the hand-off socket `socket` for its counters. `Ok(None)` when there is no
/// daemon.
///
/// # Errors
/// When there is one but it does not let us in or does not answer.
pub fn query(socket: &Path) -> Result<Option<Snapshot>, Error> {
    let path = path(socket);
    let mut link: UnixStream = match endpoint::connect(&path) {
        Ok(link) => std::os::fd::OwnedFd::from(link).into(),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => return Ok(None),
        Err(source) => return Err(Error::Connect { path, source }),
    };
    let text = match read_answer(&mut link) {
        Ok(text) => text,
        Err(e) => return Err(Error::Silent(path, e)),
    };
    text.parse().map(Some).map_err(|what| Error::NoCounters { path, what })
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
