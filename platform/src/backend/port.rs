// SPDX-License-Identifier: BSD-3-Clause

//! illumos and Solaris: event ports, port_create(3C).
//!
//! An association ends with the event that reports it, which is why [`Backend::rearm`] exists. To
//! associate a descriptor that is ready already reports it at once: level-triggered in effect.

use super::registry::Registry;
use super::{Backend, Descriptor, Interest, Token};
use crate::check;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
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
const BATCH: usize = super::MOST_READY;

/// What a place in the list has as its source until the kernel has written an event there: no
/// source has this number, see port_create(3C).
const NO_SOURCE: libc::c_ushort = 0;

// A connection's share of the memory, beside its row in the daemon's table.
const _: () = assert!(Registry::<bool>::BYTES <= 12);

/// See the module's head.
pub struct Port {
    port: OwnedFd,
    /// And whether each is associated: what was reported is not, until it is armed again.
    registered: Registry<bool>,
    /// Where the kernel writes what happened.
    events: Box<[sys::port_event]>,
}

// SAFETY: the user's pointers in the list are all null. port_create(3C): any thread of a process may
// use its ports.
unsafe impl Send for Port {}

impl Port {
    /// Opens it; its descriptor is close-on-exec.
    ///
    /// # Errors
    /// What port_create(3C) says: a limit of descriptors, of ports or of memory.
    pub fn new() -> io::Result<Self> {
        // SAFETY: port_create(3C) takes nothing.
        let fd = check(unsafe { sys::port_create() })?;
        // SAFETY: port_create(3C) returned it a line above: it is open and nobody else has it.
        let port = unsafe { OwnedFd::from_raw_fd(fd) };
        crate::set_cloexec(&port)?;
        // SAFETY: port_event is numbers and a pointer, for which zeroes are a value.
        let event = || unsafe { std::mem::zeroed() };
        let events = std::iter::repeat_with(event).take(BATCH).collect();
        Ok(Port { port, registered: Registry::new(), events })
    }

    /// Associates `fd`, or gives its association other events: what the port has not told yet of
    /// the old ones it forgets, port_associate(3C).
    fn associate(&self, fd: RawFd, interest: Interest) -> io::Result<()> {
        // SAFETY: port_associate(3C) takes numbers, and a pointer that it only hands back.
        check(unsafe {
            sys::port_associate(
                self.port.as_raw_fd(),
                sys::PORT_SOURCE_FD,
                fd as libc::uintptr_t,
                super::poll_events(interest).into(),
                ptr::null_mut(),
            )
        })
        .map(drop)
    }
}

impl Backend for Port {
    const NAME: &'static str = "event ports";

    fn add(&mut self, fd: &impl Descriptor, token: Token, interest: Interest) -> io::Result<()> {
        let fd = fd.number();
        self.registered.add(fd, token, true)?;
        let associated = self.associate(fd, interest);
        if associated.is_err() {
            self.registered.remove(fd)?;
        }
        associated
    }

    fn change(&mut self, fd: &impl Descriptor, _: Token, interest: Interest) -> io::Result<()> {
        let fd = fd.number();
        self.registered.get(fd)?;
        self.associate(fd, interest)?;
        self.registered.get(fd).map(|is_associated| *is_associated = true)
    }

    fn rearm(&mut self, fd: &impl Descriptor, token: Token, interest: Interest) -> io::Result<()> {
        self.change(fd, token, interest)
    }

    fn remove(&mut self, fd: &impl Descriptor) -> io::Result<()> {
        let fd = fd.number();
        if !self.registered.remove(fd)? {
            return Ok(());
        }
        // SAFETY: port_dissociate(3C) takes numbers.
        let dissociated = check(unsafe {
            sys::port_dissociate(self.port.as_raw_fd(), sys::PORT_SOURCE_FD, fd as libc::uintptr_t)
        });
        match dissociated {
            // A change that failed has ended it; and the port forgets what was closed.
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
            if let Some((token, is_associated)) = self.registered.find(event.portev_object as RawFd) {
                *is_associated = false;
                ready.push(token);
            }
        }
        match waited {
            Ok(_) => Ok(()),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ETIME | libc::EINTR)) => Ok(()),
            Err(e) => Err(e),
        }
    }
}
