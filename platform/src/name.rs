// SPDX-License-Identifier: BSD-3-Clause

//! A name in a directory that is held open: what is there can be looked at, and the name removed, from
//! inside a sandbox, where a path may lead nowhere; and in that directory, whatever its own name is by
//! then.
//!
//! Must not know what has the name.

use crate::check;
use std::ffi::{CStr, CString};
use std::fs::OpenOptions;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

cfg_if::cfg_if! {
    if #[cfg(any(target_os = "linux", target_os = "android"))] {
        /// open(2): only to be named in other calls, so that it takes no right to read the directory.
        const FLAGS: libc::c_int = libc::O_DIRECTORY | libc::O_PATH;
    } else {
        const FLAGS: libc::c_int = libc::O_DIRECTORY;
    }
}

/// See the module's head.
#[derive(Debug)]
pub struct Name {
    directory: OwnedFd,
    name: CString,
    path: PathBuf,
}

impl Name {
    /// The last part of `path`, in the directory that the rest of it names now.
    ///
    /// # Errors
    /// `InvalidInput` if `path` has no such parts; else what open(2) says of the directory.
    pub fn of(path: &Path) -> io::Result<Self> {
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let name = CString::new(name.as_bytes())?;
        let directory = OpenOptions::new().read(true).custom_flags(FLAGS).open(directory)?;
        Ok(Name { directory: directory.into(), name, path: path.to_owned() })
    }

    /// Device and inode of what has the name now, be it a symbolic link: what tells one file from
    /// another.
    ///
    /// # Errors
    /// What fstatat(2) says: `NotFound` when nothing has the name.
    pub fn identity(&self) -> io::Result<(u64, u64)> {
        let mut found = MaybeUninit::<libc::stat>::uninit();
        let (directory, name) = self.at();
        // SAFETY: fstatat(2) reads the NUL-terminated name and writes one stat; both outlive the call.
        check(unsafe {
            libc::fstatat(directory, name.as_ptr(), found.as_mut_ptr(), libc::AT_SYMLINK_NOFOLLOW)
        })?;
        // SAFETY: fstatat(2): the stat is filled in when it returns 0.
        let found = unsafe { found.assume_init() };
        #[allow(clippy::unnecessary_cast)] // the types differ from system to system
        let identity = (found.st_dev as u64, found.st_ino as u64);
        Ok(identity)
    }

    /// Removes the name, if what has it is `identity`, and not something that somebody has put there since.
    ///
    /// # Errors
    /// What fstatat(2) or unlinkat(2) says.
    pub fn remove_if(&self, identity: (u64, u64)) -> io::Result<()> {
        if self.identity()? == identity {
            let (directory, name) = self.at();
            // SAFETY: unlinkat(2) reads the NUL-terminated name, which outlives the call.
            check(unsafe { libc::unlinkat(directory, name.as_ptr(), 0) })?;
        }
        Ok(())
    }

    /// The path that it was made of.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn at(&self) -> (libc::c_int, &CStr) {
        (self.directory.as_raw_fd(), &self.name)
    }
}

/// The directory.
impl AsFd for Name {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::unix::fs::{MetadataExt, symlink};

    #[test]
    fn a_name_is_removed_only_from_what_it_was_meant_for() {
        let directory = std::env::temp_dir().join(format!("lingerd-name-{}", std::process::id()));
        let moved = directory.with_extension("moved");
        fs::create_dir(&directory).unwrap();
        let path = directory.join("file");
        let ours = File::create(&path).unwrap().metadata().unwrap();
        let name = Name::of(&path).unwrap();
        assert_eq!(name.path(), path);
        assert_eq!(name.identity().unwrap(), (ours.dev(), ours.ino()));

        fs::rename(&path, directory.join("other")).unwrap();
        symlink("other", &path).unwrap();
        name.remove_if((ours.dev(), ours.ino())).unwrap();
        assert!(path.is_symlink(), "it is not ours, though it leads there");

        fs::rename(directory.join("other"), &path).unwrap();
        fs::rename(&directory, &moved).unwrap();
        name.remove_if((ours.dev(), ours.ino())).unwrap();
        assert!(!moved.join("file").exists());
        assert_eq!(name.identity().unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::remove_dir(&moved).unwrap();
    }

    #[test]
    fn what_is_in_no_directory_has_no_name() {
        assert_eq!(Name::of(Path::new("/")).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(Name::of(Path::new("/no-such-place/file")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
