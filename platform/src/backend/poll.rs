// SPDX-License-Identifier: BSD-3-Clause

//! Any POSIX system: poll(2). Its cost grows with the number of descriptors, not of events.

use super::{Backend, Descriptor, Interest, Token};
use crate::is_out_of_memory;
use std::io;
use std::os::fd::RawFd;
use std::thread;
use std::time::Duration;

/// How long nobody is served when there is no memory for the call.
const NO_MEMORY: Duration = Duration::from_millis(100);

/// How many places the lists grow by: what they have too much of is never more.
const STEP: usize = 512;

/// Whom poll(2) passes over: a negative number.
const NOBODY: libc::pollfd = libc::pollfd { fd: -1, events: 0, revents: 0 };

/// See the module's head.
///
/// The place of a descriptor in both lists is its number. That takes 16 bytes, and less there is
/// not as long as poll(2) wants 8 and a token has 8; without holes it would take a third list, of
/// places. A hole costs the kernel 4 to 9 ns a call where a descriptor costs 90 and more (Linux 6,
/// 8,000 of them), and there are few: a new descriptor has the lowest number that is free.
pub struct Poll {
    /// What poll(2) is given. The last is not [`NOBODY`].
    fds: Vec<libc::pollfd>,
    tokens: Vec<Token>,
}

impl Poll {
    /// Makes the lists.
    ///
    /// # Errors
    /// None; it is for the others that there may be some.
    pub fn new() -> io::Result<Self> {
        Ok(Poll { fds: Vec::new(), tokens: Vec::new() })
    }

    fn find(&mut self, fd: RawFd) -> io::Result<&mut libc::pollfd> {
        let place = self.fds.get_mut(fd as usize).filter(|place| place.fd == fd);
        place.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// Makes `list` longer, but its room no greater than to the next full step. poll(2) itself goes
/// through the whole list with each call, so that copying it now and then is nothing.
fn lengthen<T: Clone>(list: &mut Vec<T>, length: usize, with: T) {
    if list.capacity() < length {
        list.reserve_exact(length.next_multiple_of(STEP) - list.len());
    }
    list.resize(length, with);
}

impl Backend for Poll {
    const NAME: &'static str = "poll";

    fn add(&mut self, fd: &impl Descriptor, token: Token, interest: Interest) -> io::Result<()> {
        let fd = fd.number();
        if self.find(fd).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let place = fd as usize; // no descriptor that is open has a negative number
        if self.fds.len() <= place {
            lengthen(&mut self.fds, place + 1, NOBODY);
            lengthen(&mut self.tokens, place + 1, Token(0));
        }
        self.fds[place] = libc::pollfd { fd, events: super::poll_events(interest), revents: 0 };
        self.tokens[place] = token;
        Ok(())
    }

    fn change(&mut self, fd: &impl Descriptor, _: Token, interest: Interest) -> io::Result<()> {
        self.find(fd.number())?.events = super::poll_events(interest);
        Ok(())
    }

    fn remove(&mut self, fd: &impl Descriptor) -> io::Result<()> {
        *self.find(fd.number())? = NOBODY;
        let length = self.fds.iter().rposition(|place| place.fd >= 0).map_or(0, |last| last + 1);
        self.fds.truncate(length);
        self.tokens.truncate(length);
        Ok(())
    }

    fn wait(&mut self, ready: &mut Vec<Token>, timeout: Option<Duration>) -> io::Result<()> {
        ready.clear();
        // SAFETY: poll(2) reads and writes the `nfds` structures at `fds`, and keeps no pointer.
        let result = crate::check(unsafe {
            libc::poll(self.fds.as_mut_ptr(), self.fds.len() as libc::nfds_t, super::millis(timeout))
        });
        let mut left = match result {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(()),
            // poll(2): no memory for its tables (ENOMEM on Linux, EAGAIN in POSIX), which may pass.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock || is_out_of_memory(e.raw_os_error()) => {
                thread::sleep(timeout.map_or(NO_MEMORY, |timeout| timeout.min(NO_MEMORY)));
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        for (fd, &token) in self.fds.iter().zip(&self.tokens) {
            if left == 0 {
                break;
            }
            if fd.revents != 0 {
                left -= 1;
                // POLLNVAL would mean that the caller closed before it removed: its bug, which
                // must show in debug builds and must not make a running daemon spin unnoticed.
                debug_assert_eq!(fd.revents & libc::POLLNVAL, 0, "closed before removed");
                ready.push(token);
            }
        }
        Ok(())
    }
}
