//! The pid file: locked for as long as the daemon lives, so that what it says is true.
//!
//! The lock decides, never the file's being there: a stale file is no obstacle, and a number in it
//! is trusted only while somebody holds the lock.

use anyhow::{Context, Result, bail};
use lingerd_platform::process;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// A `lingerd -k` holds the lock for an instant while it looks whether somebody has it, and a daemon
/// for one before it has written its process id, or after it has wiped it out.
const RETRIES: u32 = 5;
const RETRY_AFTER: Duration = Duration::from_millis(20);

/// A pid file of this process, locked. Dropping it removes the file.
pub struct PidFile {
    file: File,
    path: PathBuf,
}

impl PidFile {
    /// Makes or takes over the file at `path`, locks it, writes this process's id into it, and gives
    /// it to `uid`, as whom the daemon will run: `lingerd -k` believes a file no more than its owner.
    ///
    /// # Errors
    /// A live daemon that holds it (the message names it), and whatever the system says.
    pub fn create(path: &Path, uid: Option<u32>) -> Result<Self> {
        let name = || path.display().to_string();
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
                .with_context(|| format!("{}: cannot open the pid file", name()))?;
            if !process::try_lock(&file).with_context(|| format!("{}: cannot lock", name()))? {
                if retries < RETRIES {
                    retries += 1;
                    thread::sleep(RETRY_AFTER);
                    continue;
                }
                bail!(
                    "{}: another lingerd{} is running, or still finishing its lingers; stop it with 'lingerd -k -p {0}', or choose another pid file with -p",
                    name(),
                    read(&mut file).map_or(String::new(), |pid| format!(" (pid {pid})")),
                );
            }
            // The one who had it may have removed it between our open and our lock.
            let ours = file.metadata().with_context(name)?;
            if !ours.is_file() || ours.nlink() > 1 {
                bail!("{}: not a plain file with one name; it was left alone", name());
            }
            if !is_at(&ours, path) {
                continue;
            }
            file.set_len(0)
                .and_then(|()| writeln!(file, "{}", std::process::id()))
                .and_then(|()| fchown(&file, Some(uid.unwrap_or_else(process::effective_uid)), None))
                .with_context(|| format!("{}: cannot write", name()))?;
            return Ok(PidFile { file, path: path.to_owned() });
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Emptied first: where the directory is root's and we no longer are, it cannot be removed.
        let _ = self.file.set_len(0);
        if self.file.metadata().is_ok_and(|ours| is_at(&ours, &self.path)) {
            let _ = fs::remove_file(&self.path);
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
pub fn running(path: &Path) -> Result<Option<Running>> {
    let name = || path.display().to_string();
    // As in create(): what the directory's owner may have put there is neither followed nor
    // waited for. Open for writing because a lock may take that, fcntl(2).
    let flags = process::O_NOFOLLOW | process::O_NONBLOCK;
    for _ in 0..=RETRIES {
        let mut file = match OpenOptions::new().read(true).write(true).custom_flags(flags).open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("{}: cannot open the pid file", name())),
        };
        let there = file.metadata().with_context(name)?;
        if !there.is_file() || there.nlink() > 1 {
            bail!("{}: not a plain file with one name, so no pid file of lingerd's", name());
        }
        if process::try_lock(&file).with_context(|| format!("{}: cannot lock", name()))? {
            return Ok(None);
        }
        if let Some(pid) = read(&mut file) {
            return Ok(Some(Running { pid, owner: there.uid() }));
        }
        // It is just starting, or just ending.
        thread::sleep(RETRY_AFTER);
    }
    bail!("{}: locked, but without a process id in it", name())
}

fn read(file: &mut File) -> Option<i32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok().filter(|&pid| pid > 0)
}
