// SPDX-License-Identifier: BSD-3-Clause

//! The client of [lingerd]: for a server that serves one connection after the other, in each of its processes or
//! threads.
//!
//! A server that has written its response may not just close: a late byte of the client has the kernel reset the
//! connection, and the client loses what it has not read yet (RFC 9112, section 9.6). So its worker waits, for a client
//! to which it has nothing left to say; and before that for one that reads slowly. With a [`Sender`] it passes the
//! connection to lingerd, which does both, and serves the next client at once.
//!
//! Nothing here ever waits for lingerd, but [`Sender::may_spool`] for as long as it is told to. What lingerd does not
//! take comes back, and the server does as if there were none; while it is away a process tries to reach it once a second
//! at most.
//!
//! ```
//! use lingerd_client::Sender;
//! use std::io::{self, Read, Write};
//! use std::net::{Shutdown, TcpListener, TcpStream};
//! use std::time::{Duration, Instant};
//!
//! /// What the server has to do without lingerd.
//! fn linger(mut conn: TcpStream) -> io::Result<()> {
//!     conn.shutdown(Shutdown::Write)?;
//!     conn.set_read_timeout(Some(Duration::from_secs(2)))?;
//!     let until = Instant::now() + Duration::from_secs(30);
//!     while conn.read(&mut [0; 4096])? > 0 && Instant::now() < until {}
//!     Ok(())
//! }
//!
//! fn serve(sender: &Sender, mut conn: TcpStream) -> io::Result<()> {
//!     let _request = conn.read(&mut [0; 4096])?;
//!     conn.write_all(b"hello\n")?;
//!     sender.finish(conn).or_else(|refused| linger(refused.socket)) // in the place of drop(conn)
//! }
//!
//! # fn main() -> io::Result<()> {
//! let sender = Sender::new(lingerd_client::SOCKET)?;
//! let listener = TcpListener::bind("127.0.0.1:0")?;
//! # let address = listener.local_addr()?;
//! # let client = std::thread::spawn(move || {
//! #     let mut client = TcpStream::connect(address)?;
//! #     client.write_all(b"hello?\n")?;
//! #     let mut response = String::new();
//! #     client.read_to_string(&mut response).map(|_| response)
//! # });
//! for conn in listener.incoming() {
//!     if let Err(error) = serve(&sender, conn?) {
//!         eprintln!("a client has gone: {error}");
//!     }
//! #     break;
//! }
//! # assert_eq!(client.join().unwrap()?, "hello\n");
//! # Ok(())
//! # }
//! ```
//!
//! What goes over the links to lingerd is in lingerd-protocol(7). This must not know how long lingerd waits, for what, and
//! what becomes of a socket.
//!
//! [lingerd]: https://www.rfc-editor.org/rfc/rfc9112#section-9.6

#![forbid(unsafe_code)]

/// What the README says is compiled, too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod connection;
mod link;
mod memory;
mod processes;

use link::Go;
use processes::PerProcess;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};
use std::{error, fmt, io};

/// Where lingerd listens unless it is told otherwise.
pub const SOCKET: &str = "/var/run/lingerd/lingerd.sock";

/// The most parts of a response that [`Sender::spool`] takes.
pub const MAX_PARTS: usize = 4;

/// Hands connections over to the lingerd that listens at a path.
///
/// One serves a whole process, with all its threads; a child of fork(2) may use it, and has links of its own then. There
/// are two, close-on-exec, which are made when they are needed first.
#[derive(Debug)]
pub struct Sender {
    first: PerProcess,
    second: PerProcess,
}

/// A connection that lingerd has not taken: the caller has it to itself, and does with it as if there were no lingerd.
pub struct Refused<S> {
    /// The connection. [`Sender::finish`] may have half-closed it; else it is as it was.
    pub socket: S,
    /// Why: of the system, or `InvalidInput` for what is no connection of TCP.
    pub error: io::Error,
}

/// What is still to be written of a response.
#[derive(Clone, Copy, Debug)]
pub enum Part<'a> {
    /// These bytes, which are copied into a file in memory.
    Memory(&'a [u8]),
    /// So many bytes of a regular file that is open to be read, from an offset on. Neither its position is looked at nor
    /// changed; what somebody changes of them before they are sent is sent as it is then.
    File {
        /// The file.
        file: BorrowedFd<'a>,
        /// From which byte on.
        offset: u64,
        /// How many bytes.
        length: u64,
        /// Whether nobody else has use for the file, so that lingerd may give back the room that it takes up while it is
        /// sent.
        ours: bool,
    },
}

impl Sender {
    /// For the lingerd whose hand-off socket is at `path`; it need not be there.
    ///
    /// # Errors
    /// `InvalidInput` or ENAMETOOLONG for a path that no socket can have, with `.2` appended.
    pub fn new(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let mut second = OsString::from(path);
        second.push(".2");
        Ok(Sender { first: PerProcess::new(path)?, second: PerProcess::new(second.as_ref())? })
    }

    /// Ends a connection on which all is written, in the place of its own close: half-closes it, on systems on which that
    /// can be done twice, looks whether its client has closed already, hands it over if not, and drops it.
    ///
    /// What the client has sent and nobody has read may stay unread. What TLS has to say (close_notify) has been said.
    ///
    /// # Errors
    /// lingerd does not take it: the caller lingers.
    pub fn finish<S: AsFd>(&self, socket: S) -> Result<(), Refused<S>> {
        if let Err(error) = connection::is_taken(&socket) {
            return Err(Refused { socket, error });
        }
        if connection::half_close(&socket) {
            return Ok(());
        }
        self.give(socket)
    }

    /// Hands over a connection on which all is written, and drops it: lingerd half-closes it, if the caller has not, and
    /// lingers. Whoever has a copy of `socket`, or has only lent it, closes that, and leaves shutdown(2) alone.
    ///
    /// # Errors
    /// lingerd does not take it, and nothing was changed.
    pub fn give<S: AsFd>(&self, socket: S) -> Result<(), Refused<S>> {
        let given = connection::is_taken(&socket).and_then(|()| {
            let given = self.first.link().send(b"L", &[socket.as_fd()], Go::NotNeeded);
            given.map_err(io::Error::from)
        });
        given.map_err(|error| Refused { socket, error })
    }

    /// The same for one that is not worth more than so many seconds, at least 1: lingerd ends it then, whatever its client
    /// does. Parts of a second count as one.
    ///
    /// # Errors
    /// As [`give`](Self::give); SO_LINGER is off.
    pub fn give_for<S: AsFd>(&self, socket: S, time: Duration) -> Result<(), Refused<S>> {
        if let Err(error) = connection::is_taken(&socket) {
            return Err(Refused { socket, error });
        }
        let seconds = time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0));
        connection::set_linger(&socket, Some(seconds.max(1)));
        self.give(socket).inspect_err(|refused| connection::set_linger(&refused.socket, None))
    }

    /// Whether lingerd takes a response now, with [`spool`](Self::spool), or within so long a time. A moment is well
    /// spent: one that was just connected to, or given a response, says so in a moment.
    ///
    /// With `room`, the socket of a client, it does not wait longer than until that can be written to; and as long as that
    /// if lingerd is not there.
    pub fn may_spool(&self, wait: Duration, room: Option<BorrowedFd<'_>>) -> bool {
        let start = Instant::now();
        loop {
            let (may, link) = self.second.link().may_spool();
            let left = wait.saturating_sub(start.elapsed());
            if may || left.is_zero() || (link.is_none() && room.is_none()) {
                return may;
            }
            let watched = [(room, PollFlags::OUT), (link.as_deref().map(AsFd::as_fd), PollFlags::IN)];
            let watched =
                watched.iter().filter_map(|(fd, flags)| Some(PollFd::from_borrowed_fd((*fd)?, *flags)));
            let mut watched: Vec<_> = watched.collect();
            // A time that a system cannot wait for is for ever, or as good as that.
            let ready = poll(&mut watched, Timespec::try_from(left).ok().as_ref());
            let has_room = room.is_some() && watched.first().is_some_and(|room| !room.revents().is_empty());
            match ready {
                Ok(_) if has_room => return false,
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// Hands over a connection on which 1 to [`MAX_PARTS`] parts are still to be written, and drops it. lingerd writes them
    /// in their order, as fast as the client reads, and then lingers. It resets the connection if that does not get on for
    /// the time of `patience`, at least a millisecond; so does the kernel if lingerd is killed meanwhile.
    ///
    /// `socket` is not half-closed, and without TLS. A server does well to write first what it takes without waiting.
    ///
    /// # Errors
    /// lingerd does not take it: the caller writes. `WouldBlock`, too, when [`may_spool`](Self::may_spool) would say that
    /// it does not yet; `InvalidInput` for another number of parts, or more bytes than a file can have, and EFBIG for more
    /// in memory than one of this process may have.
    pub fn spool<S: AsFd>(
        &self,
        socket: S,
        parts: &[Part<'_>],
        patience: Duration,
    ) -> Result<(), Refused<S>> {
        let given = self.try_spool(socket.as_fd(), parts, patience);
        given.map_err(|error| Refused { socket, error })
    }

    fn try_spool(&self, socket: BorrowedFd<'_>, parts: &[Part<'_>], patience: Duration) -> io::Result<()> {
        connection::is_taken(socket)?;
        let bytes = |sum: u64, part: &Part<'_>| {
            let (offset, length) = match *part {
                Part::Memory(bytes) => (0, bytes.len() as u64),
                Part::File { offset, length, .. } => (offset, length),
            };
            i64::try_from(offset.checked_add(length)?).ok()?;
            sum.checked_add(length)
        };
        if !(1..=MAX_PARTS).contains(&parts.len()) || parts.iter().try_fold(0, bytes).is_none() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "there are 1 to 4 parts, of what a file can have",
            ));
        }
        let mut link = self.second.link();
        if !link.may_spool().0 {
            return Err(link.error.unwrap_or(Errno::AGAIN).into());
        }
        // No other thread is to wait while this copies: it does so without the link, and with lingerd's word, which is for
        // one response.
        let word = link.take_word();
        drop(link);
        let memory = memory::of(parts);
        let mut link = self.second.link();
        link.return_word(&word);
        let memory = memory?;
        let (head, files) = link::spool_head(parts, memory.as_ref().map(AsFd::as_fd), patience);
        let mut descriptors = vec![socket];
        descriptors.extend(files);
        // Whoever closes it last resets it from here on, if lingerd is killed before it has read this: the client might take
        // for the end what is none.
        connection::set_linger(socket, Some(0));
        let sent = link.send(&head, &descriptors, Go::Needed);
        sent.inspect_err(|_| connection::set_linger(socket, None)).map_err(io::Error::from)
    }

    /// Why there is no link to lingerd, or if there is one none for [`spool`](Self::spool): for a line in a log when that
    /// changes. `None` if there is one, or none was needed yet. A connection that is refused all the same is so as lingerd is busy.
    pub fn error(&self) -> Option<io::Error> {
        let first = self.first.link().error;
        first.or_else(|| self.second.link().error).map(io::Error::from)
    }
}

impl Default for Sender {
    /// For the lingerd at [`SOCKET`].
    fn default() -> Self {
        Self::new(SOCKET).expect("a socket can have that path")
    }
}

impl<S> fmt::Debug for Refused<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refused").field("error", &self.error).finish_non_exhaustive()
    }
}

impl<S> fmt::Display for Refused<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lingerd has not taken the connection: {}", self.error)
    }
}

impl<S> error::Error for Refused<S> {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        Some(&self.error)
    }
}

impl<S> From<Refused<S>> for io::Error {
    fn from(refused: Refused<S>) -> Self {
        refused.error
    }
}
