//! The pid file: locked for as long as the daemon lives, so that what it says is true.
//!
//! The lock decides, never the file's being there: a stale file is no obstacle, and a number in it
//! is trusted only while somebody holds the lock.

use lingerd_platform::name::Name;
use lingerd_platform::process;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// A `lingerd -k` holds the lock for an instant while it looks whether somebody has it, and a daemon
/// for one before it has written its process id, or after it has wiped it out.
const RETRIES: u32 = 5;
const RETRY_AFTER: Duration = Duration::from_millis(20);

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
    },
    /// It is no file of ours.
    #[error("{}: not a plain file with one name, so no pid file of lingerd's; it was left alone", .0.display())]
    NotPlain(PathBuf),
    /// Somebody holds it and has not written who.
    #[error("{}: locked, but without a process id in it", .0.display())]
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

/// A pid file of this process, locked. Dropping it removes the file.
pub struct PidFile {
    file: File,
    name: Name,
}

impl PidFile {
    /// Makes or takes over the file at `path`, locks it, writes this process's id into it, and gives
    /// it to `uid`, as whom the daemon will run: `lingerd -k` believes a file no more than its owner.
    ///
    /// # Errors
    /// A live daemon that holds it, and whatever the system says.
    pub fn create(path: &Path, uid: Option<u32>) -> Result<Self, Error> {
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
                return Err(Error::Live { path: path.to_owned(), pid: read(&mut file) });
            }
            // The one who had it may have removed it between our open and our lock.
            let ours = plain(&file, path)?;
            if !is_at(&ours, path) {
                continue;
            }
            file.set_len(0)
                .and_then(|()| writeln!(file, "{}", std::process::id()))
                .and_then(|()| fchown(&file, Some(uid.unwrap_or_else(process::effective_uid)), None))
                .map_err(Error::system(path, "write the pid file"))?;
            let name = Name::of(path).map_err(Error::system(path, "open its directory"))?;
            return Ok(PidFile { file, name });
        }
    }

    /// Its name, which is removed at the end.
    pub fn name(&self) -> &Name {
        &self.name
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its process id, as its pid file says.
    pub pid: i32,
    /// Who owns the pid file, and so answers for what it says.
    pub owner: u32,
}

/// The daemon that holds the pid file at `path`, or `None` if none does.
///
/// # Errors
/// What the system says, and a file that is held but has no process id in it.
pub fn running(path: &Path) -> Result<Option<Running>, Error> {
    // As in create(): what the directory's owner may have put there is neither followed nor
    // waited for. Open for writing because a lock may take that, fcntl(2).
    let flags = process::O_NOFOLLOW | process::O_NONBLOCK;
    for _ in 0..=RETRIES {
        let mut file = match OpenOptions::new().read(true).write(true).custom_flags(flags).open(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(Error::system(path, OPEN))?,
        };
        let there = plain(&file, path)?;
        if process::try_lock(&file).map_err(Error::system(path, "lock it"))? {
            return Ok(None);
        }
        if let Some(pid) = read(&mut file) {
            return Ok(Some(Running { pid, owner: there.uid() }));
        }
        // It is just starting, or just ending.
        thread::sleep(RETRY_AFTER);
    }
    Err(Error::Nameless(path.to_owned()))
}

/// Waits until `daemon` no longer holds the pid file at `path`, be it that another one does.
///
/// # Errors
/// What the system says.
pub fn until_it_ends(path: &Path, daemon: Running) -> Result<(), Error> {
    loop {
        match running(path) {
            // It wipes its name out just before it ends.
            Err(Error::Nameless(_)) => {}
            Ok(Some(there)) if there.pid == daemon.pid => {}
            other => return other.map(|_| ()),
        }
        thread::sleep(RETRY_AFTER);
    }
}

fn read(file: &mut File) -> Option<i32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok().filter(|&pid| pid > 0)
}
