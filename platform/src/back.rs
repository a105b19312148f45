// SPDX-License-Identifier: BSD-3-Clause

//! Ways back: Unix sockets at which servers listen, each with a name of its own beside the hand-off socket's, unix(7),
//! connect(2).
//!
//! Must not know what is brought back, or why.

use crate::fdpass::Link;
use crate::name::Name;
use socket2::{Domain, SockAddr, Socket, Type};
use std::ffi::OsString;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// The contract of ways back. Nothing here ever waits.
pub trait Back {
    /// A connection to one.
    type Link: Link;

    /// Connects to the way back with that name, which is one of a file, without a slash. It may be that nobody has
    /// accepted it yet: what is passed on it waits then.
    ///
    /// # Errors
    /// `WouldBlock` when so many wait there that there is no room; on systems with the sockets of BSD that is
    /// `ConnectionRefused`, as if nobody listened. That and `NotFound` when nobody does. `InvalidInput` when the
    /// path is too long for a socket. `OutOfMemory` when the system is short of memory (ENOMEM, ENOBUFS); else what
    /// socket(2) and connect(2) say. Never EINTR.
    fn call(&self, name: &str) -> io::Result<Self::Link>;
}

/// Those beside one hand-off socket.
#[derive(Debug)]
pub struct Ways(Name);

impl Ways {
    /// Those beside the socket at `path`: their directory is the one that it names now.
    ///
    /// # Errors
    /// As [`Name::of`].
    pub fn beside(path: &Path) -> io::Result<Self> {
        Name::of(path).map(Ways)
    }

    /// The socket that they are beside.
    pub fn name(&self) -> &Name {
        &self.0
    }
}

impl Back for Ways {
    type Link = UnixStream;

    fn call(&self, name: &str) -> io::Result<UnixStream> {
        let mut path = OsString::from(self.0.path());
        path.push(".back.");
        path.push(name);
        let called = Socket::new(Domain::UNIX, Type::STREAM, None).and_then(|socket| {
            socket.set_nonblocking(true)?;
            connect(&self.0, &socket, Path::new(&path))?;
            Ok(socket)
        });
        match called {
            Ok(socket) => Ok(std::os::fd::OwnedFd::from(socket).into()),
            Err(e) if crate::is_out_of_memory(e.raw_os_error()) => Err(io::ErrorKind::OutOfMemory.into()),
            // To be interrupted it would have to wait.
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Err(io::ErrorKind::WouldBlock.into()),
            Err(e) => Err(e),
        }
    }
}

cfg_if::cfg_if! {
    if #[cfg(target_os = "freebsd")] {
        /// In capability mode no path leads there, but a name in a directory does.
        fn connect(beside: &Name, socket: &Socket, path: &Path) -> io::Result<()> {
            let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
            crate::connect_at(beside, socket, &SockAddr::unix(name)?)
        }
    } else {
        fn connect(_: &Name, socket: &Socket, path: &Path) -> io::Result<()> {
            socket.connect(&SockAddr::unix(path)?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::Real;
    use crate::contract::back::back_tests;
    use std::fs;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixListener;

    back_tests!(Real);

    #[test]
    fn a_link_neither_blocks_nor_goes_to_a_program_that_is_started_and_a_path_has_to_fit() {
        let directory = std::env::temp_dir().join(format!("lingerd-back-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let _listener = UnixListener::bind(directory.join("s.back.a")).unwrap();
        let ways = Ways::beside(&directory.join("s")).unwrap();
        let (link, too_long) = (ways.call("a"), ways.call(&"a".repeat(200)));
        fs::remove_dir_all(&directory).unwrap();
        let link = link.unwrap();
        // SAFETY: neither takes an argument nor touches memory, fcntl(2).
        let flags = [libc::F_GETFD, libc::F_GETFL].map(|of| unsafe { libc::fcntl(link.as_raw_fd(), of) });
        assert_eq!(flags[0] & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
        assert_eq!(flags[1] & libc::O_NONBLOCK, libc::O_NONBLOCK);
        assert_eq!(too_long.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
