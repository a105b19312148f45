// SPDX-License-Identifier: BSD-3-Clause

//! The daemon that is there already, as its successor sees it: asks it for everything, and says when it
//! has that.
//!
//! Must not know what becomes of it.

use super::heir::{Estate, Heir, Nonsense, Progress};
use super::image::{self, Request};
use super::testator;
use crate::service::control::{self, Order};
use lingerd_platform::backend::Interest;
use lingerd_platform::fdpass::Link;
use lingerd_platform::peer;
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long to wait for all of it: longer than a daemon that is busy takes to look up, and than one that
/// gives takes to give up.
const PATIENCE: Duration = Duration::from_secs(15 + testator::PATIENCE.as_secs());

/// How long to wait for its answer when this one has everything: it does nothing else but tell a service manager so. Where
/// it is not there any more that shows at once; and whoever begins before it has answered may find that it goes on.
const ANSWER: Duration = Duration::from_secs(10);

/// It does not give up before so much has passed since it was asked.
const PATIENT: Duration = Duration::from_secs(testator::PATIENCE.as_secs() - 1);

/// Read at once.
const PIECE: usize = 64 * 1024;

/// Why nothing is taken over.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It serves, and nobody said that it is to be taken over from.
    #[error(
        "{}: another lingerd{} serves there; take over from it with -r, stop it with 'lingerd -k', or choose \
         another path with -s",
        path.display(),
        pid.map_or(String::new(), |pid| format!(" (pid {pid})"))
    )]
    Serves {
        /// Its control socket.
        path: PathBuf,
        /// Its process, where the system tells.
        pid: Option<i32>,
    },
    /// It may not be believed.
    #[error(
        "{}: user {uid} listens there, and this lingerd is to run as another one; give -u, or stop that one with \
         'lingerd -k -s'",
        path.display()
    )]
    Stranger {
        /// Its control socket.
        path: PathBuf,
        /// Who it is.
        uid: u32,
    },
    /// It hangs.
    #[error(
        "{}: a lingerd{} is there, but it does not answer in time, or another one that was to take over from it \
         hangs",
        path.display(),
        pid.map_or(String::new(), |pid| format!(" (pid {pid})"))
    )]
    TooSlow {
        /// Its control socket.
        path: PathBuf,
        /// Its process, where the system tells.
        pid: Option<i32>,
    },
    /// It has gone before it had told everything.
    #[error("{}: the lingerd there was gone before it had handed everything over", .0.display())]
    Gone(PathBuf),
    /// It has given up.
    #[error("{}: the lingerd there did not wait for this one any longer, and serves on", .0.display())]
    Kept(PathBuf),
    /// This process may not have as many descriptors open as that one.
    #[error(
        "{}: the limit of open descriptors is too low for all that the lingerd there has; raise it (ulimit -n)",
        .0.display()
    )]
    NoRoom(PathBuf),
    /// It is no lingerd, or one that cannot do that.
    #[error("{}: cannot take over from who listens there", .0.display())]
    Nonsense(PathBuf, #[source] Nonsense),
    /// It does not let us in, or the connection fails.
    #[error("{}: cannot take over from who listens there", .0.display())]
    System(PathBuf, #[source] io::Error),
}

/// See the module's head. Dropping it tells it that it stays in charge.
pub struct Predecessor {
    link: UnixStream,
    path: PathBuf,
    asked: Instant,
    /// What it has said already when everything was there.
    said: Option<u8>,
}

/// Asks the daemon with the control socket at `path` for everything; with `only_if_stopping` it gives
/// nothing away unless it was told to stop. Believed is root, and `user`, as whom this process will run.
/// `Ok(None)` when nobody is there, or nobody that lets us in.
///
/// # Errors
/// [`Error`]
pub fn find(
    path: &Path,
    user: u32,
    only_if_stopping: bool,
) -> Result<Option<(Predecessor, Estate<OwnedFd>)>, Error> {
    // Why it does not let us in finds out who comes to listen there.
    let Ok(Some(link)) = control::connect(path) else { return Ok(None) };
    match peer::peer(&link) {
        Ok(peer) if peer.uid != 0 && peer.uid != user => {
            return Err(Error::Stranger { path: path.to_owned(), uid: peer.uid });
        }
        _ => {} // where the system does not tell, the directory has to do
    }
    let mut predecessor = Predecessor { link, path: path.to_owned(), asked: Instant::now(), said: None };
    let request = Request {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        only_if_stopping,
        spools: true,
        parks: true,
    };
    let mut said = vec![Order::TakeOver.byte()];
    said.extend(image::frame(&request, 0));
    predecessor.link.write_all(&said).map_err(|e| predecessor.system(e))?;
    let mut heir = Heir::default();
    let deadline = Instant::now() + PATIENCE;
    let mut piece = vec![0; PIECE];
    loop {
        let mut descriptors = Vec::new();
        if Instant::now() >= deadline {
            return Err(Error::TooSlow { path: path.to_owned(), pid: predecessor.pid() });
        }
        let progress = match predecessor.link.hear(&mut piece, &mut descriptors) {
            Ok(0) => return Err(Error::Gone(predecessor.path)),
            Ok(count) => heir
                .feed(&piece[..count], descriptors)
                .map_err(|e| Error::Nonsense(predecessor.path.clone(), e))?,
            Err(e) => match e.kind() {
                ErrorKind::WouldBlock | ErrorKind::OutOfMemory => {
                    predecessor.wait_until(deadline)?;
                    Progress::Pending
                }
                ErrorKind::Interrupted => Progress::Pending,
                _ => return Err(predecessor.system(e)),
            },
        };
        match progress {
            Progress::Pending => {}
            Progress::Serving => {
                let pid = predecessor.pid();
                return Err(Error::Serves { path: predecessor.path, pid });
            }
            Progress::Complete(estate) => {
                predecessor.said = heir.last_word();
                return Ok(Some((predecessor, estate)));
            }
        }
    }
}

impl Predecessor {
    /// Says that everything is this process's from now on. Returns the connection: over it the predecessor
    /// passes on what it is told in its last moments.
    ///
    /// # Errors
    /// [`Error::Kept`] when it does not wait for that any more.
    pub fn succeed(mut self) -> Result<OwnedFd, Error> {
        if self.said.is_some() {
            return Err(Error::Kept(self.path)); // it can have said nothing else
        }
        let told = self.link.write_all(&[image::HAVE_IT]);
        let deadline = Instant::now() + ANSWER;
        let mut word = [0];
        let answer = loop {
            match self.link.hear(&mut word, &mut Vec::new()) {
                Ok(1) => break Some(word[0]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // It has heard it, and answers before it does anything else.
                Err(e) if e.kind() == ErrorKind::WouldBlock && told.is_ok() => {
                    if self.wait_until(deadline).is_err() {
                        break None;
                    }
                }
                _ => break None,
            }
        };
        match answer {
            Some(image::GIVEN) => Ok(self.link.into()),
            // It has died: what it had is here.
            None if told.is_ok() || self.asked.elapsed() < PATIENT => Ok(self.link.into()),
            _ => Err(Error::Kept(self.path)),
        }
    }

    fn wait_until(&self, deadline: Instant) -> Result<(), Error> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::TooSlow { path: self.path.clone(), pid: self.pid() });
        }
        self.link.wait(Interest::Read, left).map(drop).map_err(|e| self.system(e))
    }

    fn pid(&self) -> Option<i32> {
        peer::peer(&self.link).ok().and_then(|peer| peer.pid)
    }

    fn system(&self, error: io::Error) -> Error {
        let path = self.path.clone();
        match error.kind() {
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Error::Gone(path),
            ErrorKind::QuotaExceeded => Error::NoRoom(path),
            _ => Error::System(path, error),
        }
    }
}
