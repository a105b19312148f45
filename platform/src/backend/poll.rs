//! Any POSIX system: poll(2). Its cost grows with the number of descriptors, not of events.

use super::{Backend, Interest, Token};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// Marks a descriptor number that is not registered.
const ABSENT: u32 = u32::MAX;

/// See the module's head.
pub struct Poll {
    /// What poll(2) is given, without holes.
    fds: Vec<libc::pollfd>,
    /// The tokens, in the order of `fds`.
    tokens: Vec<Token>,
    /// The place in `fds` of each descriptor number, or [`ABSENT`].
    place: Vec<u32>,
}

impl Backend for Poll {
    const NAME: &'static str = "poll";

    fn new() -> io::Result<Self> {
        Ok(Poll { fds: Vec::new(), tokens: Vec::new(), place: Vec::new() })
    }

    fn add(&mut self, fd: BorrowedFd<'_>, token: Token, interest: Interest) -> io::Result<()> {
        let number = fd.as_raw_fd() as usize; // a BorrowedFd is never negative
        if self.place.len() <= number {
            self.place.resize(number + 1, ABSENT);
        }
        if self.place[number] != ABSENT {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        // POLLERR and POLLHUP need not be asked for, see poll(2).
        let events = match interest {
            Interest::Read => libc::POLLIN,
            Interest::Write => libc::POLLOUT,
        };
        self.place[number] = self.fds.len() as u32;
        self.fds.push(libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 });
        self.tokens.push(token);
        Ok(())
    }

    fn remove(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let number = fd.as_raw_fd() as usize;
        let place = match self.place.get(number) {
            Some(&place) if place != ABSENT => place as usize,
            _ => return Err(io::ErrorKind::NotFound.into()),
        };
        self.place[number] = ABSENT;
        self.fds.swap_remove(place);
        self.tokens.swap_remove(place);
        if let Some(moved) = self.fds.get(place) {
            self.place[moved.fd as usize] = place as u32;
        }
        Ok(())
    }

    fn wait(&mut self, ready: &mut Vec<Token>, timeout: Option<Duration>) -> io::Result<()> {
        ready.clear();
        // SAFETY: poll(2) reads and writes the `nfds` structures at `fds`, and keeps no pointer.
        let result = super::super::check(unsafe {
            libc::poll(self.fds.as_mut_ptr(), self.fds.len() as libc::nfds_t, super::millis(timeout))
        });
        let mut left = match result {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(()),
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
