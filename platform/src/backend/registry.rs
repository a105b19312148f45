// SPDX-License-Identifier: BSD-3-Clause

//! Who is registered with a backend, by descriptor number.
//!
//! For the kernel facilities that do not tell (kqueue and event ports take a second registration
//! for a change of the first) and whose user data is too narrow for a token on 32 bits. Must not
//! know what it keeps beside the token.

use super::Token;
use std::io;
use std::os::fd::RawFd;

/// How many slots are made at once, 6 kB: no turn waits for a list to be copied that has outgrown
/// its room, and no half of one lies idle.
const CHUNK: usize = 512;

#[derive(Clone, Copy)]
struct Slot<T> {
    /// In two halves, which makes 12 bytes of a slot where a `u64`, for its alignment, makes 16.
    token: [u32; 2],
    /// There for who is registered.
    state: Option<T>,
}

/// See the module's head.
pub struct Registry<T>(Vec<Box<[Slot<T>]>>);

impl<T: Copy> Registry<T> {
    /// The bytes that a descriptor number takes.
    pub const BYTES: usize = size_of::<Slot<T>>();

    pub const fn new() -> Self {
        Registry(Vec::new())
    }

    fn slot(&mut self, fd: RawFd) -> Option<&mut Slot<T>> {
        let number = usize::try_from(fd).ok()?;
        self.0.get_mut(number / CHUNK).map(|chunk| &mut chunk[number % CHUNK])
    }

    /// # Errors
    /// `AlreadyExists` if `fd` is registered.
    pub fn add(&mut self, fd: RawFd, token: Token, state: T) -> io::Result<()> {
        // No descriptor that is open has a negative number, and each has the lowest that was free.
        while self.0.len() <= fd as usize / CHUNK {
            self.0.push(vec![Slot { token: [0; 2], state: None }; CHUNK].into());
        }
        match self.slot(fd) {
            Some(slot) if slot.state.is_none() => {
                *slot = Slot { token: [(token.0 >> 32) as u32, token.0 as u32], state: Some(state) };
                Ok(())
            }
            _ => Err(io::ErrorKind::AlreadyExists.into()),
        }
    }

    /// Returns what was known of him.
    ///
    /// # Errors
    /// `NotFound` if `fd` is not registered.
    pub fn remove(&mut self, fd: RawFd) -> io::Result<T> {
        let state = self.slot(fd).and_then(|slot| slot.state.take());
        state.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// # Errors
    /// `NotFound` if `fd` is not registered.
    pub fn get(&mut self, fd: RawFd) -> io::Result<&mut T> {
        self.slot(fd).and_then(|slot| slot.state.as_mut()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The token of who is registered, if anyone is, and what is known of him.
    pub fn find(&mut self, fd: RawFd) -> Option<(Token, &mut T)> {
        let Slot { token: [high, low], state } = self.slot(fd)?;
        Some((Token((u64::from(*high) << 32) | u64::from(*low)), state.as_mut()?))
    }
}
