// SPDX-License-Identifier: BSD-3-Clause

//! Linux: epoll(7), level-triggered.

use super::{Backend, Descriptor, Interest, Token};
use epoll::{ControlOptions, Event, Events};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// How many events one epoll_wait(2) may return. The kernel rotates its ready list, so a small
/// number starves nobody; 256 already makes the call's own cost vanish.
const BATCH: usize = super::MOST_READY;

/// See the module's head.
pub struct Epoll {
    epoll: OwnedFd,
    events: Box<[Event]>,
}

impl Epoll {
    /// Opens it; its descriptor is close-on-exec.
    ///
    /// # Errors
    /// What epoll_create1(2) says: a limit of descriptors or of memory.
    pub fn new() -> io::Result<Self> {
        let fd = epoll::create(true)?;
        Ok(Epoll {
            // SAFETY: epoll_create1(2) returned it a line above: it is open and nobody else has it.
            epoll: unsafe { OwnedFd::from_raw_fd(fd) },
            events: vec![Event::new(Events::empty(), 0); BATCH].into(),
        })
    }

    fn control(&self, op: ControlOptions, fd: &impl Descriptor, event: Event) -> io::Result<()> {
        epoll::ctl(self.epoll.as_raw_fd(), op, fd.number(), event)
    }
}

/// EPOLLERR and EPOLLHUP need not be asked for, see epoll_ctl(2).
fn event(token: Token, interest: Interest) -> Event {
    let mut events = Events::empty();
    if interest.reads() {
        events |= Events::EPOLLIN | Events::EPOLLRDHUP;
    }
    if interest.writes() {
        events |= Events::EPOLLOUT;
    }
    Event::new(events, token.0)
}

impl Backend for Epoll {
    const NAME: &'static str = "epoll";

    fn add(&mut self, fd: &impl Descriptor, token: Token, interest: Interest) -> io::Result<()> {
        self.control(ControlOptions::EPOLL_CTL_ADD, fd, event(token, interest))
    }

    fn change(&mut self, fd: &impl Descriptor, token: Token, interest: Interest) -> io::Result<()> {
        self.control(ControlOptions::EPOLL_CTL_MOD, fd, event(token, interest))
    }

    fn remove(&mut self, fd: &impl Descriptor) -> io::Result<()> {
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
