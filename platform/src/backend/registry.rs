//! Who is registered with a backend, by descriptor number.
//!
//! For the kernel facilities that do not tell (poll has no memory, kqueue and event ports take a
//! second registration for a change of the first) and whose user data is too narrow for a token
//! on 32 bits. Must not know what it keeps.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

/// See the module's head.
pub struct Registry<T>(Vec<Option<T>>);

impl<T> Registry<T> {
    pub const fn new() -> Self {
        Registry(Vec::new())
    }

    /// # Errors
    /// `AlreadyExists` if `fd` is registered.
    pub fn add(&mut self, fd: BorrowedFd<'_>, what: T) -> io::Result<()> {
        let number = fd.as_raw_fd() as usize; // a BorrowedFd is never negative
        if self.0.len() <= number {
            self.0.resize_with(number + 1, || None);
        }
        match &mut self.0[number] {
            Some(_) => Err(io::ErrorKind::AlreadyExists.into()),
            place => {
                *place = Some(what);
                Ok(())
            }
        }
    }

    /// # Errors
    /// `NotFound` if `fd` is not registered.
    pub fn remove(&mut self, fd: BorrowedFd<'_>) -> io::Result<T> {
        let place = self.0.get_mut(fd.as_raw_fd() as usize);
        place.and_then(Option::take).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    pub fn get_mut(&mut self, fd: RawFd) -> Option<&mut T> {
        self.0.get_mut(usize::try_from(fd).ok()?)?.as_mut()
    }
}
