// SPDX-License-Identifier: BSD-3-Clause

//! A link for each process. Must not know what is said on it.
//!
//! After fork(2) the child has a copy of its parent's memory: of a link that is the parent's, and of a lock that is held for
//! ever if a thread of the parent's was just using it, as no thread but one is in the child. So each process has a link and
//! a lock of its own, in a chain from the first one that had any; a child appends what it needs and leaves the others alone.

use crate::link::Link;
use rustix::net::SocketAddrUnix;
use std::io;
use std::path::Path;
use std::process;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// The links to one socket.
#[derive(Debug)]
pub struct PerProcess {
    address: SocketAddrUnix,
    first: Process,
}

/// What one process has.
#[derive(Debug)]
struct Process {
    id: u32,
    link: Mutex<Link>,
    /// Its child's, or a child's of that one.
    child: OnceLock<Box<Process>>,
}

impl Process {
    fn new(id: u32, address: &SocketAddrUnix) -> Self {
        Process { id, link: Mutex::new(Link::to(address.clone())), child: OnceLock::new() }
    }
}

impl PerProcess {
    /// To the socket at `path`. Nothing is opened yet.
    ///
    /// # Errors
    /// `InvalidInput` or ENAMETOOLONG for a path that no socket can have.
    pub fn new(path: &Path) -> io::Result<Self> {
        if path.as_os_str().is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no socket has an empty path"));
        }
        let address = SocketAddrUnix::new(path)?;
        Ok(PerProcess { first: Process::new(process::id(), &address), address })
    }

    /// This process's.
    pub fn link(&self) -> MutexGuard<'_, Link> {
        let id = process::id();
        let mut at = &self.first;
        let mut is_new = false;
        while at.id != id {
            // Made before, so that a thread which forks meanwhile hardly ever leaves its child one that is half made.
            let new = at.child.get().is_none().then(|| Box::new(Process::new(id, &self.address)));
            at = at.child.get_or_init(|| {
                is_new = true;
                new.unwrap_or_else(|| Box::new(Process::new(id, &self.address)))
            });
        }
        if is_new {
            self.leave_parents(id);
        }
        // One that has panicked has left a link as good as any.
        at.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// That of a process which is not this one.
    #[cfg(test)]
    pub fn of_a_parent(link: &mut Link) -> Self {
        let address = link.address().clone();
        let link = Mutex::new(std::mem::replace(link, Link::to(address.clone())));
        PerProcess { address, first: Process { id: 0, link, child: OnceLock::new() } }
    }

    /// Closes those of all processes before this one that can be had; nobody else has one that cannot.
    fn leave_parents(&self, id: u32) {
        let mut at = &self.first;
        while at.id != id {
            if let Ok(mut link) = at.link.try_lock() {
                link.leave();
            }
            let Some(child) = at.child.get() else { return };
            at = child;
        }
    }
}

/// What is a parent's is parted with in a child that has not asked for a link, too.
impl Drop for PerProcess {
    fn drop(&mut self) {
        let id = process::id();
        let mut next = Some(&mut self.first);
        while let Some(process) = next {
            if process.id != id {
                process.link.get_mut().unwrap_or_else(PoisonError::into_inner).leave();
            }
            next = process.child.get_mut().map(AsMut::as_mut);
        }
    }
}
