// SPDX-License-Identifier: BSD-3-Clause

//! kqueue(2) on Linux, under the names of the `kqueue-sys` crate.
//!
//! It is there for one thing: lingerd's tests shall run on Linux against the same kqueue code that
//! runs on the BSDs and macOS. `kqueue-sys` does not build on Linux; Cargo puts this crate in its
//! place when it is called with `--config 'paths=["tests/shims/kqueue-sys"]'`.
//!
//! It offers what the man pages of all those systems promise for `EVFILT_READ` and `EVFILT_WRITE`
//! on sockets and pipes. What it does not offer it refuses with EINVAL: nothing is silently
//! ignored. Where the systems differ it does as the one that forgives least. It must not know who
//! calls it: a shim cut to fit its caller would prove nothing.
//!
//! With `KQUEUE_LIB_DIR` in the environment of the build, libkqueue is linked instead.
#![allow(non_camel_case_types)] // the names are C's

use libc::{c_int, c_uint, c_ushort, c_void};

#[cfg(not(libkqueue))]
mod emulation;
#[cfg(not(libkqueue))]
pub use emulation::{kevent, kqueue};

#[cfg(libkqueue)]
unsafe extern "C" {
    /// Opens a queue of events; -1 and errno if it cannot.
    pub fn kqueue() -> c_int;

    /// Applies the changes, then waits for events: see kqueue(2).
    pub fn kevent(
        kq: c_int,
        changelist: *const kevent,
        nchanges: EventListSize,
        eventlist: *mut kevent,
        nevents: EventListSize,
        timeout: *const libc::timespec,
    ) -> c_int;
}

/// The number of elements in a list of changes or events.
pub type EventListSize = c_int;

/// A change or an event. libkqueue's own has the same layout where a pointer has 64 bits.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct kevent {
    /// What is watched: for the filters offered here, a descriptor.
    pub ident: usize,
    /// What it is watched for.
    pub filter: EventFilter,
    /// What is to be done, or what was seen.
    pub flags: EventFlag,
    /// Flags that each filter has for itself.
    pub fflags: FilterFlag,
    /// A number whose meaning depends on the filter; the errno if `EV_ERROR` is set.
    pub data: i64,
    /// The caller's own; comes back as it was given.
    pub udata: *mut c_void,
}

#[cfg(all(libkqueue, not(target_pointer_width = "64")))]
compile_error!("libkqueue's kevent has another layout here: its data is an intptr_t");

impl kevent {
    /// A change whose `data` and `udata` are zero.
    pub fn new(ident: usize, filter: EventFilter, flags: EventFlag, fflags: FilterFlag) -> Self {
        kevent { ident, filter, flags, fflags, data: 0, udata: std::ptr::null_mut() }
    }
}

/// What a descriptor is watched for. The numbers are those of FreeBSD, OpenBSD and macOS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(i16)]
pub enum EventFilter {
    /// There is something to read or to accept, or the end of the stream.
    EVFILT_READ = -1,
    /// There is room to write, or nobody reads any more.
    EVFILT_WRITE = -2,
    /// Not offered.
    EVFILT_AIO = -3,
    /// Not offered.
    EVFILT_VNODE = -4,
    /// Not offered.
    EVFILT_PROC = -5,
    /// Not offered.
    EVFILT_SIGNAL = -6,
    /// Not offered.
    EVFILT_TIMER = -7,
}

bitflags::bitflags! {
    /// What is to be done with a filter, and what was seen.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
    #[repr(transparent)]
    pub struct EventFlag: c_ushort {
        /// Adds the filter, or gives a present one new parameters; enables it.
        const EV_ADD = 0x0001;
        /// Removes the filter.
        const EV_DELETE = 0x0002;
        /// Lets the filter be reported.
        const EV_ENABLE = 0x0004;
        /// Keeps the filter, but does not report it.
        const EV_DISABLE = 0x0008;
        /// Removes the filter when it has been reported once.
        const EV_ONESHOT = 0x0010;
        /// Reports changes of state in the place of states. Not offered.
        const EV_CLEAR = 0x0020;
        /// Asks for an answer to this change, also if all is well: `EV_ERROR` with errno 0.
        const EV_RECEIPT = 0x0040;
        /// Disables the filter when it has been reported once. Not offered.
        const EV_DISPATCH = 0x0080;
        /// What only the system sets.
        const EV_SYSFLAGS = 0xF000;
        /// The change failed, and `data` says why: an errno.
        const EV_ERROR = 0x4000;
        /// The end of the stream; there may still be data before it.
        const EV_EOF = 0x8000;
    }
}

bitflags::bitflags! {
    /// Flags that each filter has for itself.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
    #[repr(transparent)]
    pub struct FilterFlag: c_uint {
        /// Reports only so many bytes or more. Not offered.
        const NOTE_LOWAT = 0x0001;
    }
}
