// SPDX-License-Identifier: BSD-3-Clause

//! A descriptor that the backend reports, or does not for a while.
//!
//! Must not know what it is.

use crate::source::Source;
use lingerd_platform::backend::{Backend, Descriptor, Interest, Token};
use std::io;

/// See the module's head.
pub struct Watched<D> {
    descriptor: D,
    token: Token,
    interest: Interest,
    /// Whether the backend knows it.
    registered: bool,
}

impl<D: Descriptor> Watched<D> {
    /// Not watched yet; the backend will report it as `source` when there is something to read.
    pub fn new(descriptor: D, source: Source) -> Self {
        Watched { descriptor, token: source.token(), interest: Interest::Read, registered: false }
    }

    /// The same, when there is room to write.
    pub fn for_room(descriptor: D, source: Source) -> Self {
        Watched { interest: Interest::Write, ..Watched::new(descriptor, source) }
    }

    /// The descriptor itself.
    pub fn get(&self) -> &D {
        &self.descriptor
    }

    /// The same, to be changed in what the backend does not know of.
    pub fn get_mut(&mut self) -> &mut D {
        &mut self.descriptor
    }

    /// Has it reported (again).
    ///
    /// # Errors
    /// As [`Backend::add`] and [`Backend::rearm`].
    pub fn watch(&mut self, backend: &mut impl Backend) -> io::Result<()> {
        if self.registered {
            return backend.rearm(&self.descriptor, self.token, self.interest);
        }
        backend.add(&self.descriptor, self.token, self.interest)?;
        self.registered = true;
        Ok(())
    }

    /// Has it reported no more until [`watch`](Self::watch): what comes waits in the kernel's queue.
    pub fn leave(&mut self, backend: &mut impl Backend) {
        if self.registered {
            // The backend knows it, so that this cannot fail; if it did, watching on would be harmless.
            self.registered = backend.remove(&self.descriptor).is_err();
        }
    }

    /// Has it reported no more, and gives it back.
    pub fn into_inner(mut self, backend: &mut impl Backend) -> D {
        self.leave(backend);
        self.descriptor
    }
}
