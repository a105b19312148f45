//! A listening Unix socket with a name in the file system: made with its permissions in place,
//! never on top of a live one, and removed only by the one who made it.
//!
//! Must not know what is said over it.

use lingerd_platform::fdpass::Door;
use lingerd_platform::name::Name;
use lingerd_platform::{peer, process};
use socket2::{Domain, SockAddr, Socket, Type};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, lchown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Who may use an endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// The file's owner, or `None` for who makes it.
    pub uid: Option<u32>,
    /// The file's group, or `None` for that of who makes it.
    pub gid: Option<u32>,
    /// The file's permissions; to connect takes the right to write.
    pub mode: u32,
}

/// See the module's head.
pub struct Endpoint {
    listener: UnixListener,
    name: Name,
    /// Device and inode: what tells our file from one that another daemon made since.
    identity: (u64, u64),
}

/// Why there can be no endpoint at a path.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody lives there.
    #[error(
        "{}: another lingerd{} listens there, or is still finishing its lingers; stop it with 'lingerd -k', or \
         choose another path with -s",
        path.display(),
        pid.map_or(String::new(), |pid| format!(" (pid {pid})"))
    )]
    Live {
        /// Where.
        path: PathBuf,
        /// Its process, where the system tells.
        pid: Option<i32>,
    },
    /// What is there is nothing of ours.
    #[error("{}: a file that is no socket is in the way; it was left alone", .0.display())]
    NoSocket(PathBuf),
    /// A queue of connections that is full, a door that is closed to us, a datagram socket.
    #[error("{}: a socket that is in use is in the way; it was left alone", .0.display())]
    InUse(PathBuf, #[source] io::Error),
    /// It cannot be told what is there.
    #[error("{}", .0.display())]
    Look(PathBuf, #[source] io::Error),
    /// What a dead process left there cannot be removed.
    #[error("{}: cannot remove the stale socket", .0.display())]
    Stale(PathBuf, #[source] io::Error),
    /// The system refuses.
    #[error("{}: cannot listen there (does the directory exist, and may you write to it?)", .0.display())]
    Listen(PathBuf, #[source] io::Error),
    /// It cannot be given to whom it is for.
    #[error("{}: cannot change its owner or group", .0.display())]
    Owner(PathBuf, #[source] io::Error),
}

impl Endpoint {
    /// Listens at `path`, non-blocking. What a dead process left there is replaced.
    ///
    /// # Errors
    /// A live listener at `path`, a file there that is no socket, and whatever the system says on the
    /// way.
    pub fn bind(path: &Path, access: Access) -> Result<Self, Error> {
        let at = || path.to_owned();
        clear(path)?;
        // The mode is there from the first moment, and without chmod(2), which would follow whatever
        // the owner of the directory might put in the socket's place meanwhile.
        let before = process::umask(!access.mode & 0o777);
        let bound = UnixListener::bind(path);
        process::umask(before);
        let listener = bound.map_err(|e| Error::Listen(at(), e))?;
        let name = Name::of(path).map_err(|e| Error::Look(at(), e))?;
        let identity = name.identity().map_err(|e| Error::Look(at(), e))?;
        let endpoint = Endpoint { listener, name, identity };
        if access.uid.is_some() || access.gid.is_some() {
            lchown(path, access.uid, access.gid).map_err(|e| Error::Owner(at(), e))?;
        }
        endpoint.listener.set_nonblocking(true).map_err(|e| Error::Listen(at(), e))?;
        Ok(endpoint)
    }

    /// Its name, which is removed at the end.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Removes the name, if it is still ours. A failure (the directory is root's, and we no longer
    /// are) is no error: the next daemon removes what is stale.
    fn unlink(&self) {
        let _ = self.name.remove_if(self.identity);
    }
}

/// Removes what a dead process left at `path`.
fn clear(path: &Path) -> Result<(), Error> {
    let error = match connect(path) {
        Ok(live) => {
            let pid = peer::peer(&live).ok().and_then(|peer| peer.pid);
            return Err(Error::Live { path: path.to_owned(), pid });
        }
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => e,
    };
    let there = fs::symlink_metadata(path).map_err(|e| Error::Look(path.to_owned(), e))?;
    if !there.file_type().is_socket() {
        return Err(Error::NoSocket(path.to_owned()));
    }
    // Whatever does not refuse is alive. On the BSDs the queue of a daemon that hangs may be full and
    // refuse as if it were dead: that is told by the control socket, which is bound first, and where
    // nobody queues.
    if error.kind() != ErrorKind::ConnectionRefused {
        return Err(Error::InUse(path.to_owned(), error));
    }
    fs::remove_file(path).map_err(|e| Error::Stale(path.to_owned(), e))
}

impl Door for Endpoint {
    type Link = UnixStream;

    fn accept(&self) -> io::Result<UnixStream> {
        Door::accept(&self.listener)
    }

    /// Its name goes first.
    fn shut(&self) {
        self.unlink();
        self.listener.shut();
    }
}

impl AsFd for Endpoint {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.unlink();
    }
}

/// Connects to `path` without ever waiting.
///
/// # Errors
/// What connect(2) says: `NotFound`, `ConnectionRefused` (stale), `WouldBlock` (the queue of a
/// process that does not accept is full), `PermissionDenied`.
pub fn connect(path: &Path) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket)
}
