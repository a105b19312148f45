// SPDX-License-Identifier: BSD-3-Clause

//! The pid file: locked for as long as the daemon lives, so that what it says is true.
//!
//! Its first line is the process id, for other programs; its second line is where the control socket
//! lies, for `lingerd -k`. The lock decides, never the file's being there: a stale file is no obstacle,
//! and what is in it is trusted only while somebody holds the lock.

use lingerd_platform::name::Name;
use lingerd_platform::process;
use std::cell::Cell;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread;
use std::time::Duration;

/// A `lingerd -k` holds the lock for an instant while it looks whether somebody has it, and a daemon
/// for one before it has written what it says, or after it has wiped it out.
const RETRIES: u32 = 5;
const RETRY_AFTER: Duration = Duration::from_millis(20);

/// No path of a socket is nearly as long.
const MOST_BYTES: u64 = 4096;

/// What is wrong with a pid file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A daemon holds it.
    #[error(
        "{}: another lingerd{} is running, or still finishing its lingers; stop it with 'lingerd -k -p {0}', or \
         choose another pid file with -p",
        path.display(),
        pid.map_or(String::new(), |pid| format!(" (pid {pid})"))
    )]
    Live {
        /// Where.
        path: PathBuf,
        /// Its process id, if it is in the file already.
        pid: Option<i32>,
        /// Where its control socket lies, if that is in the file already.
        control: Option<PathBuf>,
    },
    /// It is no file of ours.
    #[error("{}: not a plain file with one name, so no pid file of lingerd's; it was left alone", .0.display())]
    NotPlain(PathBuf),
    /// Somebody holds it and has not written who.
    #[error("{}: locked, but it does not say where the daemon's control socket lies", .0.display())]
    Nameless(PathBuf),
    /// The system refuses.
    #[error("{}: cannot {doing}", path.display())]
    System {
        /// Where.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What it says.
        source: io::Error,
    },
}

impl Error {
    fn system<'a>(path: &'a Path, doing: &'static str) -> impl FnOnce(io::Error) -> Error + use<'a> {
        move |source| Error::System { path: path.to_owned(), doing, source }
    }
}

/// A pid file, locked. Dropping it removes the file, if it is this process's own.
pub struct PidFile {
    file: File,
    name: Rc<Name>,
    /// Whether it is still a predecessor's.
    inherited: Cell<bool>,
}

impl PidFile {
    /// Makes the file at `path`, or takes over a stale one, locks it, and writes into it this process's id
    /// and that its control socket lies at `control`. It is the file of who makes it: root's, whatever
    /// user the daemon runs as later, as others believe a pid file of root's only.
    ///
    /// # Errors
    /// A live daemon that holds it, and whatever the system says.
    pub fn create(path: &Path, control: &Path) -> Result<Self, Error> {
        let mut retries = 0;
        loop {
            // The directory may be the daemon's user's: who has that must not choose what root
            // truncates (O_NOFOLLOW, one link). And only who may stop the daemon may lock (0600).
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(process::O_NOFOLLOW | process::O_NONBLOCK)
                .open(path)
                .map_err(Error::system(path, OPEN))?;
            if !process::try_lock(&file).map_err(Error::system(path, "lock it"))? {
                if retries < RETRIES {
                    retries += 1;
                    thread::sleep(RETRY_AFTER);
                    continue;
                }
                let (pid, control) = read(&mut file).unzip();
                return Err(Error::Live { path: path.to_owned(), pid, control });
            }
            // The one who had it may have removed it between our open and our lock.
            let ours = plain(&file, path)?;
            if !is_at(&ours, path) {
                continue;
            }
            if ours.uid() != process::effective_uid() || ours.mode() & 0o077 != 0 {
                // Others may have it open, and could write into it what they like, or lock it.
                fs::remove_file(path).map_err(Error::system(path, "remove a stale one of others'"))?;
                continue;
            }
            let name = Name::of(path).map_err(Error::system(path, "open its directory"))?.into();
            let pid_file = PidFile { file, name, inherited: Cell::new(false) };
            pid_file.write(control)?;
            return Ok(pid_file);
        }
    }

    /// The file that a predecessor with that control socket says it has had at `path`; it stays its own
    /// until [`claim`](Self::claim). `None` for what is no such file of root's or of
    /// `user`, as whom this one will run: nothing else is to be written or removed because somebody says so.
    pub fn inherit(mut file: File, path: &Path, control: &Path, user: u32) -> Option<Self> {
        let there = plain(&file, path).ok()?;
        let says = read(&mut file)?.1 == control;
        let is_ours = [0, user, process::effective_uid()].contains(&there.uid());
        if !(says && is_ours && is_at(&there, path)) {
            return None;
        }
        Some(PidFile { file, name: Name::of(path).ok()?.into(), inherited: Cell::new(true) })
    }

    /// Its name, which is removed at the end.
    pub fn name(&self) -> Rc<Name> {
        Rc::clone(&self.name)
    }

    /// Removes one that was inherited and is not wanted.
    pub fn remove(self) {
        self.inherited.set(false);
    }

    /// Whether it is the file at `path`.
    pub fn is_at(&self, path: &Path) -> bool {
        self.file.metadata().is_ok_and(|ours| is_at(&ours, path))
    }

    /// Makes one that was inherited this process's own.
    ///
    /// # Errors
    /// What the system says.
    pub fn claim(&self, control: &Path) -> Result<(), Error> {
        self.inherited.set(false);
        // It is locked by the one who gave it away, and so by this process, but for Solaris, where the lock
        // is a process's own: that one ends just now.
        for _ in 0..RETRIES {
            if process::try_lock(&self.file).is_ok_and(|locked| locked) {
                break;
            }
            thread::sleep(RETRY_AFTER);
        }
        self.write(control)
    }

    /// In one write, so that nobody reads a half of it; what was there may be longer.
    fn write(&self, control: &Path) -> Result<(), Error> {
        let text = format!("{}\n{}\n", std::process::id(), control.display());
        let mut file = &self.file;
        file.rewind()
            .and_then(|()| file.write_all(text.as_bytes()))
            .and_then(|()| file.set_len(text.len() as u64))
            .map_err(Error::system(self.name.path(), "write the pid file"))
    }
}

impl AsFd for PidFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// What both do that open it.
const OPEN: &str = "open the pid file";

/// What the system says of an open file that may be a pid file.
fn plain(file: &File, path: &Path) -> Result<Metadata, Error> {
    let metadata = file.metadata().map_err(Error::system(path, "look at it"))?;
    match metadata.is_file() && metadata.nlink() <= 1 {
        true => Ok(metadata),
        false => Err(Error::NotPlain(path.to_owned())),
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if self.inherited.get() {
            return;
        }
        // Emptied first: where the directory is root's and we no longer are, it cannot be removed.
        let _ = self.file.set_len(0);
        if let Ok(ours) = self.file.metadata() {
            let _ = self.name.remove_if((ours.dev(), ours.ino()));
        }
    }
}

/// Whether `ours` is what `path` names, and not a file that somebody has put there since.
fn is_at(ours: &Metadata, path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino()))
}

/// A daemon that is running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its process id, as its pid file says, for people: in another namespace it is another process's.
    pub pid: i32,
    /// Where its control socket lies.
    pub control: PathBuf,
    /// Who owns the pid file, and so answers for what it says.
    pub owner: u32,
}

/// The daemon that holds the pid file at `path`, or `None` if none does.
///
/// # Errors
/// What the system says, and a file that is held but has nothing in it.
pub fn running(path: &Path) -> Result<Option<Running>, Error> {
    // As in create(): what the directory's owner may have put there is neither followed nor
    // waited for. Open for writing because a lock may take that, fcntl(2).
    let flags = process::O_NOFOLLOW | process::O_NONBLOCK;
    for _ in 0..=RETRIES {
        let mut file = match OpenOptions::new().read(true).write(true).custom_flags(flags).open(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) if e.kind() == ErrorKind::PermissionDenied => {
                return Err(Error::system(
                    path,
                    "open the pid file, which is for root; -s says which daemon, too",
                )(e));
            }
            opened => opened.map_err(Error::system(path, OPEN))?,
        };
        let there = plain(&file, path)?;
        if process::try_lock(&file).map_err(Error::system(path, "lock it"))? {
            return Ok(None);
        }
        if let Some((pid, control)) = read(&mut file) {
            return Ok(Some(Running { pid, control, owner: there.uid() }));
        }
        // It is just starting, or just ending.
        thread::sleep(RETRY_AFTER);
    }
    Err(Error::Nameless(path.to_owned()))
}

/// The process id, and where the control socket lies.
fn read(file: &mut File) -> Option<(i32, PathBuf)> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(MOST_BYTES).read_to_string(&mut text).ok()?;
    let (pid, rest) = text.split_once('\n')?;
    let pid = pid.parse().ok().filter(|&pid| pid > 0)?;
    Some((pid, rest.strip_suffix('\n').filter(|path| !path.is_empty())?.into()))
}
