//! Signals as bytes on sockets, so that one loop can wait for them as for anything else.
//!
//! Each signal is one byte: two that arrive in one turn are still two. No `unsafe`: `signal-hook`
//! has the handlers.

use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::low_level::{pipe, unregister};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// The signal that asks a daemon to stop.
pub const STOP: i32 = SIGTERM;

/// Where signals of one meaning arrive, while it lives.
pub struct Signal {
    reader: UnixStream,
    handlers: Vec<SigId>,
}

impl Signal {
    /// # Errors
    /// A descriptor limit, or what sigaction(2) says.
    fn of(numbers: &[i32]) -> io::Result<Self> {
        let (reader, writer) = UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        let mut signal = Signal { reader, handlers: Vec::new() };
        for &number in numbers {
            signal.handlers.push(pipe::register(number, writer.try_clone()?)?);
        }
        Ok(signal)
    }

    /// How many arrived since the last call.
    pub fn take(&mut self) -> usize {
        self.reader.read(&mut [0; 16]).unwrap_or(0) // WouldBlock: none
    }
}

impl Drop for Signal {
    fn drop(&mut self) {
        for handler in self.handlers.drain(..) {
            unregister(handler);
        }
    }
}

impl AsFd for Signal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

/// The signals that lingerd lives by. Once installed none of them ever ends the process again.
pub struct Signals {
    /// SIGTERM and SIGINT.
    pub stop: Signal,
    /// SIGUSR1.
    pub report: Signal,
    /// SIGHUP.
    pub reload: Signal,
}

impl Signals {
    /// Installs the handlers.
    ///
    /// # Errors
    /// A descriptor limit, or what sigaction(2) says.
    pub fn install() -> io::Result<Self> {
        Ok(Signals {
            stop: Signal::of(&[SIGTERM, SIGINT])?,
            report: Signal::of(&[SIGUSR1])?,
            reload: Signal::of(&[SIGHUP])?,
        })
    }
}
