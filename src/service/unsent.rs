// SPDX-License-Identifier: BSD-3-Clause

//! How many responses are still to be written, in a file beside the hand-off socket: whoever finds one there after a
//! daemon was killed knows how many were cut off with it.
//!
//! It is removed at an end in order. Must not know of connections.

use lingerd_platform::name::Name;
use lingerd_platform::process;
use std::cell::Cell;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// What the file holds: a number of a fixed width, so that each write is of the whole.
const WIDTH: usize = 20;

/// See the module's head. Dropping it removes the file, if it is this process's own.
pub struct Unsent {
    file: File,
    name: Rc<Name>,
    is_ours: Cell<bool>,
}

impl Unsent {
    /// The file of the daemon with that hand-off socket, which runs as `user`, and what it says: of what a daemon had that is no more, or, where
    /// one is to be taken over from, of what that one has.
    ///
    /// # Errors
    /// What the system says. The directory may be another user's, so that nothing of what is there is believed or written
    /// but a plain file that only its owner can write.
    pub fn open(socket: &Path, user: u32) -> io::Result<(Self, u64)> {
        let path = path(socket);
        let name = Rc::new(Name::of(&path)?);
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(process::O_NOFOLLOW | process::O_NONBLOCK);
        let there = options.open(&path).ok().filter(|file| is_believed(file, user));
        let file = match there {
            Some(file) => file,
            None => match fs::remove_file(&path) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                _ => options.create_new(true).mode(0o600).open(&path)?,
            },
        };
        let mut text = [0; WIDTH];
        let length = file.read_at(&mut text, 0)?;
        let number = std::str::from_utf8(&text[..length]).ok().and_then(|text| text.trim().parse().ok());
        Ok((Unsent { file, name, is_ours: Cell::new(false) }, number.unwrap_or(0)))
    }

    /// From now on it is this process's own, which is going to [`note`](Self::note) what it has.
    pub fn claim(&self) {
        self.is_ours.set(true);
    }

    /// Notes that there are so many now.
    pub fn note(&self, number: usize) {
        // On a full disk the next daemon counts wrongly, and that is all.
        let _ = self.file.write_all_at(format!("{number:>0$}\n", WIDTH - 1).as_bytes(), 0);
    }

    /// Its name, which is removed at the end.
    pub fn name(&self) -> Rc<Name> {
        Rc::clone(&self.name)
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        if let (true, Ok(ours)) = (self.is_ours.get(), self.file.metadata()) {
            let _ = self.name.remove_if((ours.dev(), ours.ino()));
        }
    }
}

fn path(socket: &Path) -> PathBuf {
    let mut path = OsString::from(socket);
    path.push(".unsent");
    path.into()
}

fn is_believed(file: &File, user: u32) -> bool {
    file.metadata().is_ok_and(|it| {
        let is_ours = [0, user, process::effective_uid()].contains(&it.uid());
        it.is_file() && it.nlink() == 1 && it.mode() & 0o077 == 0 && is_ours
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn socket(name: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("lingerd-unsent-{name}-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        directory.join("socket")
    }

    #[test]
    fn what_was_noted_last_is_found_by_the_next_one_unless_the_end_was_in_order() {
        let socket = socket("noted");
        let (first, found) = Unsent::open(&socket, process::effective_uid()).unwrap();
        assert_eq!(found, 0);
        first.claim();
        for number in [1, 123_456, 17] {
            first.note(number);
        }
        std::mem::forget(first); // it is killed
        let (second, found) = Unsent::open(&socket, process::effective_uid()).unwrap();
        assert_eq!(found, 17);
        second.claim();
        // One that takes over looks at it, and fails.
        drop(Unsent::open(&socket, process::effective_uid()).unwrap());
        second.note(5);
        assert_eq!(Unsent::open(&socket, process::effective_uid()).unwrap().1, 5);
        drop(second);
        assert!(!path(&socket).exists());
        fs::remove_dir(socket.parent().unwrap()).unwrap();
    }

    #[test]
    fn what_others_have_put_there_is_neither_believed_nor_written() {
        let socket = socket("others");
        let (path, other) = (path(&socket), socket.with_extension("other"));
        fs::write(&other, "9").unwrap();
        let put: [&dyn Fn(); 3] =
            [&|| symlink(&other, &path).unwrap(), &|| fs::hard_link(&other, &path).unwrap(), &|| {
                fs::write(&path, "nonsense").unwrap()
            }];
        for put in put {
            put();
            let (ours, found) = Unsent::open(&socket, process::effective_uid()).unwrap();
            assert_eq!(found, 0);
            ours.claim();
            assert_eq!(fs::read_to_string(&other).unwrap(), "9");
        }
        fs::remove_dir_all(socket.parent().unwrap()).unwrap();
    }
}
