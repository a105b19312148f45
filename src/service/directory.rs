// SPDX-License-Identifier: BSD-3-Clause

//! The directories of the daemon's files: made where they are missing, and used only where nobody else
//! can put other files in the place of the daemon's.
//!
//! Must not know what the files are for.

use lingerd_platform::process;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};

/// What is wrong with a directory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is missing.
    #[error("{}: cannot make the socket's directory", .0.display())]
    Make(PathBuf, #[source] io::Error),
    /// It was made, and stays root's.
    #[error("{}: cannot give it to -u", .0.display())]
    Give(PathBuf, #[source] io::Error),
    /// It cannot be told whose it is.
    #[error("{}", .0.display())]
    Look(PathBuf, #[source] io::Error),
    /// It is another user's.
    #[error(
        "{0}: no safe directory, as it belongs to user {owner} (mode {mode:04o}), who can replace what lingerd has \
         there; mend that with 'chown {mend} {0}'",
        path.display()
    )]
    Owner {
        /// Which.
        path: PathBuf,
        /// Whose.
        owner: u32,
        /// Its permissions.
        mode: u32,
        /// Whose it may be.
        mend: String,
    },
    /// Others than its owner can write to it.
    #[error(
        "{0}: no safe directory, as others than its owner (user {owner}) may write to it (mode {mode:04o}), and \
         can replace what lingerd has there; mend that with 'chmod go-w {0}'",
        path.display()
    )]
    Writable {
        /// Which.
        path: PathBuf,
        /// Whose.
        owner: u32,
        /// Its permissions.
        mode: u32,
    },
}

/// Makes the directory of `file` where it is missing (/var/run is emptied at boot), and gives it to
/// `uid`, as whom the daemon will run: it has to remove the file there when it stops.
///
/// # Errors
/// [`Error::Make`], [`Error::Give`].
pub fn make(file: &Path, uid: Option<u32>) -> Result<(), Error> {
    let Some(directory) = file.parent() else { return Ok(()) };
    match fs::create_dir(directory) {
        Ok(()) => lchown(directory, uid, None).map_err(|e| Error::Give(directory.to_owned(), e)),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(Error::Make(directory.to_owned(), e)),
    }
}

/// That the directory of `file` belongs to root, to `uid`, as whom the daemon will run, or to whoever
/// starts it, and that nobody else may write to it, or at least not to what is another's there (the
/// sticky bit, as /tmp has it). Those above it are not looked at: who may write there can replace it
/// as a whole. That there is none is for whoever opens the file to say.
///
/// # Errors
/// [`Error::Owner`], [`Error::Writable`], [`Error::Look`].
pub fn check(file: &Path, uid: Option<u32>) -> Result<(), Error> {
    const STICKY: u32 = 0o1000;
    let Some(directory) = file.parent() else { return Ok(()) };
    let there = match fs::metadata(directory) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        there => there.map_err(|e| Error::Look(directory.to_owned(), e))?,
    };
    let (path, owner, mode) = (directory.to_owned(), there.uid(), there.mode() & 0o7777);
    let own = process::effective_uid();
    if owner != 0 && owner != own && Some(owner) != uid {
        let mend = match uid.unwrap_or(own) {
            0 => "root".to_owned(),
            uid => uid.to_string(),
        };
        return Err(Error::Owner { path, owner, mode, mend });
    }
    match mode & 0o022 != 0 && mode & STICKY == 0 {
        true => Err(Error::Writable { path, owner, mode }),
        false => Ok(()),
    }
}
