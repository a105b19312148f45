// SPDX-License-Identifier: BSD-3-Clause

//! The world as the daemon sees it: everything it does beyond its own memory, as traits.
//!
//! Each trait has its contract where it is defined, beside the real thing: [`Backend`] waits,
//! [`Tcp`] is a connection that was handed over, [`Content`] what is to be sent over one, which a [`Reader`] reads
//! and closes where that may take long, [`Door`], [`Link`] and [`Back`] are Unix sockets, [`Clock`] has the time and the pause, [`SlowClose`] closes what may take long, [`Signal`] tells of signals.
//! A daemon is written for a [`World`] and gets it at compile time, by static dispatch: the
//! kernel's, or the fake one that the tests make and in which everything can go wrong.
//!
//! [`Back`]: crate::back::Back
//! [`Backend`]: crate::backend::Backend
//! [`Tcp`]: crate::tcp::Tcp
//! [`Content`]: crate::content::Content
//! [`Reader`]: crate::reader::Reader
//! [`Door`]: crate::fdpass::Door
//! [`Link`]: crate::fdpass::Link
//! [`Clock`]: crate::clock::Clock
//! [`SlowClose`]: crate::closing::SlowClose
//! [`Signal`]: crate::signals::Signal

use crate::back::Back;
use crate::backend::Backend;
use crate::clock::Clock;
use crate::closing::SlowClose;
use crate::content::Content;
use crate::fdpass::{Door, Link};
use crate::reader::Reader;
use crate::signals::Signal;
use crate::tcp::Tcp;

/// See the module's head.
pub trait World: Sized {
    /// What waits.
    type Backend: Backend;
    /// A descriptor that came over a Unix socket: nobody has looked yet what it is. Dropping closes
    /// it, which may take long, see [`SlowClose`].
    type Received;
    /// A connection that was handed over. Dropping closes it.
    type Socket: Tcp<Received = Self::Received, Piece = <Self::Content as Content>::Piece>;
    /// What is to be sent over it. Dropping closes it, which may take long.
    type Content: Content<Received = Self::Received>;
    /// What reads it where that may take long.
    type Reader: Reader<Self::Content>;
    /// The connection of a sender, or of who asks at the control socket. Dropping closes it.
    type Link: Link<Received = Self::Received>;
    /// Where they come in.
    type Door: Door<Link = Self::Link>;
    /// Where servers take connections back.
    type Back: Back<Link = Self::Link>;
    /// Where signals of one meaning arrive.
    type Signal: Signal;
    /// The time.
    type Clock: Clock;
    /// Closes what may take long.
    type SlowClose: SlowClose<Self::Received>;
}
