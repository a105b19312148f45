//! illumos and Solaris: event ports, port_create(3C).
//!
//! An association ends with the event that reports it, which is why [`Backend::rearm`] exists. To
//! associate a descriptor that is ready already reports it at once: level-triggered in effect.

use super::registry::Registry;
use super::{Backend, Interest, Token};
use crate::check;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

cfg_if::cfg_if! {
    if #[cfg(any(target_os = "illumos", target_os = "solaris"))] {
        use libc as sys;
    } else {
        use event_ports_shim as sys;
    }
}

/// How many events one port_getn(3C) may return. The port is a queue, so that a small number
/// starves nobody.
const BATCH: usize = 256;

/// What a place in the list has as its source until the kernel has written an event there: no
/// source has this number, see port_create(3C).
const NO_SOURCE: libc::c_ushort = 0;

/// See the module's head.
pub struct Port {
    port: OwnedFd,
    tokens: Registry<Token>,
    /// Where the kernel writes what happened.
    events: Box<[sys::port_event]>,
}

// SAFETY: the user's pointers in the list are all null. port_create(3C): any thread of a process may
// use its ports.
unsafe impl Send for Port {}

impl Port {
    fn associate(&self, fd: BorrowedFd<'_>, interest: Interest) -> io::Result<()> {
        // POLLERR and POLLHUP need not be asked for, see poll(2).
        let events = match interest {
            Interest::Read => libc::POLLIN,
            Interest::Write => libc::POLLOUT,
        };
        // SAFETY: port_associate(3C) takes numbers, and a pointer that it only hands back.
        check(unsafe {
            sys::port_associate(
                self.port.as_raw_fd(),
                sys::PORT_SOURCE_FD,
                fd.as_raw_fd() as libc::uintptr_t,
                events.into(),
                ptr::null_mut(),
            )
        })
        .map(drop)
    }
}

impl Backend for Port {
    const NAME: &'static str = "event ports";

    fn new() -> io::Result<Self> {
        // SAFETY: port_create(3C) takes nothing.
        let fd = check(unsafe { sys::port_create() })?;
        // SAFETY: port_create(3C) returned it a line above: it is open and nobody else has it.
        let port = unsafe { OwnedFd::from_raw_fd(fd) };
        crate::set_cloexec(&port)?;
        // SAFETY: port_event is numbers and a pointer, for which zeroes are a value.
        let event = || unsafe { std::mem::zeroed() };
        let events = std::iter::repeat_with(event).take(BATCH).collect();
        Ok(Port { port, tokens: Registry::new(), events })
    }

    fn add(&mut self, fd: BorrowedFd<'_>, token: Token, interest: Interest) -> io::Result<()> {
        self.tokens.add(fd, token)?;
        let associated = self.associate(fd, interest);
        if associated.is_err() {
            self.tokens.remove(fd)?;
        }
        associated
    }

    fn rearm(&mut self, fd: BorrowedFd<'_>, _: Token, interest: Interest) -> io::Result<()> {
        self.associate(fd, interest)
    }

    fn remove(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.tokens.remove(fd)?;
        // SAFETY: port_dissociate(3C) takes numbers.
        let dissociated = check(unsafe {
            sys::port_dissociate(
                self.port.as_raw_fd(),
                sys::PORT_SOURCE_FD,
                fd.as_raw_fd() as libc::uintptr_t,
            )
        });
        match dissociated {
            // It was reported, and not armed again since.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            dissociated => dissociated.map(drop),
        }
    }

    fn wait(&mut self, ready: &mut Vec<Token>, timeout: Option<Duration>) -> io::Result<()> {
        ready.clear();
        let mut time = timeout.map(super::timespec);
        let mut count = 1; // at least one is waited for; what else is there comes along
        // SAFETY: port_getn(3C) writes at most BATCH events to the list, writes the count, may
        // read the time, and keeps no pointer.
        let waited = check(unsafe {
            sys::port_getn(
                self.port.as_raw_fd(),
                self.events.as_mut_ptr(),
                BATCH as libc::c_uint,
                &raw mut count,
                time.as_mut().map_or(ptr::null_mut(), ptr::from_mut),
            )
        });
        // The manuals do not agree on what the count says after ETIME and EINTR, when there may be
        // events all the same, and an event that is overlooked is a connection that is forgotten.
        // So the list itself tells where it ends.
        for event in self.events.iter_mut().take_while(|event| event.portev_source != NO_SOURCE) {
            event.portev_source = NO_SOURCE;
            if let Some(token) = self.tokens.get_mut(event.portev_object as RawFd) {
                ready.push(*token);
            }
        }
        match waited {
            Ok(_) => Ok(()),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ETIME | libc::EINTR)) => Ok(()),
            Err(e) => Err(e),
        }
    }
}
