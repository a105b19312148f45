//! Linux: epoll(7), level-triggered.

use super::{Backend, Interest, Token};
use epoll::{ControlOptions, Event, Events};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// How many events one epoll_wait(2) may return. The kernel rotates its ready list, so a small
/// number starves nobody; 256 already makes the call's own cost vanish.
const BATCH: usize = 256;

/// See the module's head.
pub struct Epoll {
    epoll: OwnedFd,
    events: Box<[Event]>,
}

impl Epoll {
    fn control(&self, op: ControlOptions, fd: BorrowedFd<'_>, event: Event) -> io::Result<()> {
        epoll::ctl(self.epoll.as_raw_fd(), op, fd.as_raw_fd(), event)
    }
}

impl Backend for Epoll {
    const NAME: &'static str = "epoll";

    fn new() -> io::Result<Self> {
        let fd = epoll::create(true)?;
        Ok(Epoll {
            // SAFETY: epoll_create1(2) returned it a line above: it is open and nobody else has it.
            epoll: unsafe { OwnedFd::from_raw_fd(fd) },
            events: vec![Event::new(Events::empty(), 0); BATCH].into(),
        })
    }

    fn add(&mut self, fd: BorrowedFd<'_>, token: Token, interest: Interest) -> io::Result<()> {
        // EPOLLERR and EPOLLHUP need not be asked for, see epoll_ctl(2).
        let events = match interest {
            Interest::Read => Events::EPOLLIN | Events::EPOLLRDHUP,
            Interest::Write => Events::EPOLLOUT,
        };
        self.control(ControlOptions::EPOLL_CTL_ADD, fd, Event::new(events, token.0))
    }

    fn remove(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.control(ControlOptions::EPOLL_CTL_DEL, fd, Event::new(Events::empty(), 0))
    }

    fn wait(&mut self, ready: &mut Vec<Token>, timeout: Option<Duration>) -> io::Result<()> {
        ready.clear();
        match epoll::wait(self.epoll.as_raw_fd(), super::millis(timeout), &mut self.events) {
            Ok(n) => ready.extend(self.events[..n].iter().map(|event| Token(event.data))),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }
}
