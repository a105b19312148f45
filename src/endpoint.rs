//! A listening Unix socket with a name in the file system: made with its permissions in place,
//! never on top of a live one, and removed only by the one who made it.
//!
//! Must not know what is said over it.

use anyhow::{Context, Result, bail};
use lingerd_platform::{peer, process};
use socket2::{Domain, SockAddr, Socket, Type};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, lchown};
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
    path: PathBuf,
    /// Device and inode: what tells our file from one that another daemon made since.
    identity: (u64, u64),
}

impl Endpoint {
    /// Listens at `path`, non-blocking. What a dead process left there is replaced.
    ///
    /// # Errors
    /// A live listener at `path` (the message names its process), a file there that is no socket,
    /// and whatever the system says on the way.
    pub fn bind(path: &Path, access: Access) -> Result<Self> {
        match connect(path) {
            Ok(live) => bail!(
                "{}: another lingerd{} listens there, or is still finishing its lingers; stop it with \
                 'lingerd -k', or choose another path with -s",
                path.display(),
                pid(&live)
            ),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => {
                let there = fs::symlink_metadata(path).with_context(|| path.display().to_string())?;
                if !there.file_type().is_socket() {
                    bail!("{}: a file that is no socket is in the way; it was left alone", path.display());
                }
                // A queue of connections that is full, a door that is closed to us, a datagram
                // socket: alive, all of them. On the BSDs the queue of a daemon that hangs may be
                // full and refuse as if it were dead: that is told by the control socket, which is
                // bound first, and where nobody queues.
                if e.kind() != ErrorKind::ConnectionRefused {
                    bail!(
                        "{}: a socket that is in use is in the way; it was left alone: {e}",
                        path.display()
                    );
                }
                fs::remove_file(path)
                    .with_context(|| format!("{}: cannot remove the stale socket", path.display()))?;
            }
        }
        // The mode is there from the first moment, and without chmod(2), which would follow whatever
        // the owner of the directory might put in the socket's place meanwhile.
        let before = process::umask(!access.mode & 0o777);
        let bound = UnixListener::bind(path);
        process::umask(before);
        let listener = bound.with_context(|| {
            format!(
                "{}: cannot listen there (does the directory exist, and may you write to it?)",
                path.display()
            )
        })?;
        let made = fs::symlink_metadata(path).with_context(|| path.display().to_string())?;
        let endpoint = Endpoint { listener, path: path.to_owned(), identity: (made.dev(), made.ino()) };
        if access.uid.is_some() || access.gid.is_some() {
            lchown(path, access.uid, access.gid)
                .with_context(|| format!("{}: cannot change its owner or group", path.display()))?;
        }
        endpoint.listener.set_nonblocking(true).with_context(|| path.display().to_string())?;
        Ok(endpoint)
    }

    /// Accepts one connection, non-blocking.
    ///
    /// # Errors
    /// `WouldBlock` when nobody waits; else what accept(2) says.
    pub fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }

    /// Lets nobody else in, while those who already wait can still be accepted.
    pub fn shut(&self) {
        self.unlink();
        if process::SHUTDOWN_KEEPS_QUEUE {
            // It can fail only on what is no listening socket.
            let _ = socket2::SockRef::from(&self.listener).shutdown(std::net::Shutdown::Read);
        }
    }

    /// Removes the name, if it is still ours. A failure (the directory is root's, and we no longer
    /// are) is no error: the next daemon removes what is stale.
    fn unlink(&self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
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

/// " (pid 123)" for a message, or nothing where the system does not tell.
fn pid(live: &Socket) -> String {
    match peer::peer(live) {
        Ok(peer::Peer { pid: Some(pid), .. }) => format!(" (pid {pid})"),
        _ => String::new(),
    }
}
