// SPDX-License-Identifier: BSD-3-Clause

//! Signals as bytes on sockets, so that one loop can wait for them as for anything else.
//!
//! Each signal is one byte: two that arrive in one turn are still two. No `unsafe`: `signal-hook`
//! has the handlers.

use crate::backend::Descriptor;
use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::low_level::{pipe, unregister};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// The signal that asks a daemon to stop.
pub const STOP: i32 = SIGTERM;

/// The contract: a source for a backend that is ready, to read, while signals of one meaning have
/// arrived and were not taken.
pub trait Signal: Descriptor {
    /// How many arrived since the last call. Two that arrive in one turn are two, up to 16.
    fn take(&mut self) -> usize;
}

/// The signals that a daemon lives by.
pub struct Signals<S = Handler> {
    /// SIGTERM and SIGINT.
    pub stop: S,
    /// SIGUSR1.
    pub report: S,
    /// SIGHUP.
    pub reload: S,
}

/// Signals as bytes on a socket, while it lives.
pub struct Handler {
    reader: UnixStream,
    handlers: Vec<SigId>,
}

impl Handler {
    /// # Errors
    /// A descriptor limit, or what sigaction(2) says.
    fn of(numbers: &[i32]) -> io::Result<Self> {
        let (reader, writer) = UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        let mut signal = Handler { reader, handlers: Vec::new() };
        for &number in numbers {
            signal.handlers.push(pipe::register(number, writer.try_clone()?)?);
        }
        Ok(signal)
    }
}

impl Signal for Handler {
    fn take(&mut self) -> usize {
        self.reader.read(&mut [0; 16]).unwrap_or(0) // WouldBlock: none
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        for handler in self.handlers.drain(..) {
            unregister(handler);
        }
    }
}

impl AsFd for Handler {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

impl Signals {
    /// Installs the handlers: none of these signals ever ends the process again.
    ///
    /// # Errors
    /// A descriptor limit, or what sigaction(2) says.
    pub fn install() -> io::Result<Self> {
        Ok(Signals {
            stop: Handler::of(&[SIGTERM, SIGINT])?,
            report: Handler::of(&[SIGUSR1])?,
            reload: Handler::of(&[SIGHUP])?,
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::contract::{Real, time::signal_tests};

    signal_tests!(Real);
}
