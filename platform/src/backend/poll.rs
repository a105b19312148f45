//! Any POSIX system: poll(2). Its cost grows with the number of descriptors, not of events.

use super::registry::Registry;
use super::{Backend, Interest, Token};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// See the module's head.
pub struct Poll {
    /// What poll(2) is given, without holes.
    fds: Vec<libc::pollfd>,
    /// The tokens, in the order of `fds`.
    tokens: Vec<Token>,
    /// The place in `fds` of each descriptor.
    places: Registry<u32>,
}

impl Backend for Poll {
    const NAME: &'static str = "poll";

    fn new() -> io::Result<Self> {
        Ok(Poll { fds: Vec::new(), tokens: Vec::new(), places: Registry::new() })
    }

    fn add(&mut self, fd: BorrowedFd<'_>, token: Token, interest: Interest) -> io::Result<()> {
        self.places.add(fd, self.fds.len() as u32)?;
        // POLLERR and POLLHUP need not be asked for, see poll(2).
        let events = match interest {
            Interest::Read => libc::POLLIN,
            Interest::Write => libc::POLLOUT,
        };
        self.fds.push(libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 });
        self.tokens.push(token);
        Ok(())
    }

    fn remove(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let place = self.places.remove(fd)?;
        self.fds.swap_remove(place as usize);
        self.tokens.swap_remove(place as usize);
        if let Some(moved) = self.fds.get(place as usize) {
            if let Some(of_moved) = self.places.get_mut(moved.fd) {
                *of_moved = place;
            }
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
