// SPDX-License-Identifier: BSD-3-Clause

//! A listening Unix socket with a name in the file system: made with its permissions in place,
//! never on top of a live one, and removed only by the one who made it. Or a service manager's, whose name
//! and permissions are its own.
//!
//! Must not know what is said over it.

use lingerd_platform::fdpass::Door;
use lingerd_platform::name::Name;
use lingerd_platform::{peer, process};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use std::cell::OnceCell;
use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread;
use std::time::Duration;

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
    name: Rc<Name>,
    /// Whom the file is for.
    file: Access,
    /// Device and inode: what tells our file from one that another daemon made since. None while it is
    /// still a predecessor's, and where it is a service manager's.
    identity: OnceCell<(u64, u64)>,
    /// What the file is to have; a service manager's has what it has.
    access: Option<Access>,
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
    /// What a service manager has passed on is something else.
    #[error("{}: the service manager has passed on {what}; its socket unit and -s must name the same", path.display())]
    Passed {
        /// Where it should be.
        path: PathBuf,
        /// What it is.
        what: String,
    },
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
        let _turn = wait_for_turn(path);
        clear(path)?;
        // The mode is there from the first moment, and without chmod(2), which would follow whatever
        // the owner of the directory might put in the socket's place meanwhile.
        let before = process::umask(!access.mode & 0o777);
        // Where the directory is another user's, he could put another file there before that is given to him: so it is
        // made as his, with no more rights than he has. In root's nobody can.
        let owner = path.parent().and_then(|it| fs::metadata(it).ok()).map(|it| it.uid());
        let theirs = access.uid.filter(|&uid| uid != 0 && owner == Some(uid));
        let made = process::as_user(theirs, access.gid, || {
            let bound = UnixListener::bind(path)?;
            if theirs.is_some() && access.gid.is_some() {
                lchown(path, None, access.gid)?;
            }
            Ok(bound)
        });
        process::umask(before);
        let listener = made.map_err(|e| Error::Listen(at(), e))?;
        let made = fs::symlink_metadata(path).map_err(|e| Error::Look(at(), e))?;
        let name = Name::of(path).map_err(|e| Error::Look(at(), e))?.into();
        let file = Access { gid: access.gid.or(Some(made.gid())), ..access };
        let identity = (made.dev(), made.ino()).into();
        let endpoint = Endpoint { listener, name, file, identity, access: Some(access) };
        if theirs.is_none() && (access.uid.is_some() || access.gid.is_some()) {
            lchown(path, access.uid, access.gid).map_err(|e| Error::Owner(at(), e))?;
        }
        endpoint.listener.set_nonblocking(true).map_err(|e| Error::Listen(at(), e))?;
        Ok(endpoint)
    }

    /// What a predecessor has listened on at `path`, which stays its own until [`Door::claim`].
    ///
    /// # Errors
    /// The directory cannot be opened.
    pub fn inherit(listener: UnixListener, path: &Path, access: Access) -> Result<Self, Error> {
        let _ = listener.set_nonblocking(true); // it was; nothing waits here whatever it is
        let gid = access.gid.or_else(|| fs::symlink_metadata(path).ok().map(|there| there.gid()));
        let file = Access { gid, ..access };
        let name = Name::of(path).map_err(|e| Error::Look(path.to_owned(), e))?.into();
        Ok(Endpoint { listener, name, file, identity: OnceCell::new(), access: Some(access) })
    }

    /// What a service manager listens on at `path`, and goes on to: the name is not ours to remove or to change.
    ///
    /// # Errors
    /// [`Error::Passed`] when it is no such socket, and when it cannot be looked at.
    pub fn passed_on(socket: OwnedFd, path: &Path) -> Result<Self, Error> {
        let listener = UnixListener::from(socket);
        let there = fs::symlink_metadata(path).map_err(|e| Error::Look(path.to_owned(), e))?;
        let wrong = |what: String| Error::Passed { path: path.to_owned(), what };
        let at = listener.local_addr().map_err(|e| wrong(format!("what is no Unix socket ({e})")))?;
        let Some(at) = at.as_pathname() else { return Err(wrong("a socket without a name".to_owned())) };
        if !is_at(&listener, path) {
            return Err(wrong(format!("a socket at {}", at.display())));
        }
        if SockRef::from(&listener).r#type().is_ok_and(|it| it != Type::STREAM) {
            return Err(wrong("a socket that is no stream".to_owned()));
        }
        // It listens already: whoever asks who does, unix(7), SO_PEERCRED, is told this process from now on.
        SockRef::from(&listener)
            .listen(BACKLOG)
            .map_err(|e| wrong(format!("a socket that cannot listen ({e})")))?;
        listener.set_nonblocking(true).map_err(|e| Error::Listen(path.to_owned(), e))?;
        let name = Name::of(path).map_err(|e| Error::Look(path.to_owned(), e))?.into();
        let file = Access { uid: Some(there.uid()), gid: Some(there.gid()), mode: there.mode() & 0o777 };
        Ok(Endpoint { listener, name, file, identity: OnceCell::new(), access: None })
    }

    /// Whether it is a service manager's, who listens there as well.
    pub fn is_passed_on(&self) -> bool {
        self.access.is_none()
    }

    /// Whom its file is for. Its group is what the system has given it, if it was not asked for one.
    pub fn file(&self) -> Access {
        self.file
    }

    /// Its name, which is removed at the end.
    pub fn name(&self) -> Rc<Name> {
        Rc::clone(&self.name)
    }

    /// Removes the name, if it is still ours. Where that fails it is no harm: the next daemon removes what
    /// is stale.
    fn unlink(&self) -> io::Result<()> {
        self.identity.get().map_or(Ok(()), |&identity| self.name.remove_if(identity))
    }
}

/// How many may wait at a service manager's socket, or as many as the system allows: systemd's own default.
const BACKLOG: i32 = 4096;

/// How often, and each time how long, to wait for one that listens in the same directory just now.
const TURNS: u32 = 100;
const TURN: Duration = Duration::from_millis(10);

/// Waits until no other process is between looking at a stale socket there and listening in its place: it
/// would remove ours. The lock, on the directory, is held as long as what is returned. It only helps: where
/// there can be none (Solaris), or somebody keeps it, it goes on without.
fn wait_for_turn(path: &Path) -> Option<File> {
    let directory = File::open(path.parent()?).ok()?;
    for _ in 0..TURNS {
        if process::try_lock(&directory).ok()? {
            break;
        }
        thread::sleep(TURN);
    }
    Some(directory)
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
        match self.unlink() {
            // The directory is root's, and we no longer are; or somebody else has removed it.
            Err(e) if matches!(e.kind(), ErrorKind::PermissionDenied | ErrorKind::NotFound) => {}
            Err(e) => log::warn!("{}: the name stays there: {e}", self.name.path().display()),
            Ok(()) => {}
        }
        self.listener.shut();
    }

    /// The file's group and mode are those asked for from here on, as far as this user may change them: as
    /// root it would change whatever the owner of the directory has put there. See [`differs`].
    fn claim(&self) {
        self.listener.claim();
        let Some(Access { gid, mode, .. }) = self.access else { return };
        let path = self.name.path();
        let Ok(there) = fs::symlink_metadata(path) else { return };
        if !there.file_type().is_socket() {
            return; // somebody has put something else there
        }
        self.identity.get_or_init(|| (there.dev(), there.ino()));
        if gid.is_some_and(|gid| gid != there.gid()) {
            let _ = lchown(path, None, gid);
        }
        if there.mode() & 0o777 != mode {
            let _ = fs::set_permissions(path, Permissions::from_mode(mode));
        }
    }
}

/// Whether the name of `socket` is the file at `path`, whatever ways lead there.
pub fn is_at(socket: &impl AsFd, path: &Path) -> bool {
    let identity = |path: &Path| fs::symlink_metadata(path).ok().map(|it| (it.dev(), it.ino()));
    let address = SockRef::from(socket).local_addr().ok();
    let name = address.as_ref().and_then(SockAddr::as_pathname);
    name.and_then(identity).is_some_and(|it| Some(it) == identity(path))
}

/// Says so if the socket at `path` is for others than `access` has it: one that was inherited, from a
/// daemon of another user or group.
pub fn differs(path: &Path, access: Access) -> Option<String> {
    let there = fs::symlink_metadata(path).ok()?;
    let is = |wanted: Option<u32>, is: u32| wanted.is_none_or(|wanted| wanted == is);
    let same =
        is(access.uid, there.uid()) && is(access.gid, there.gid()) && there.mode() & 0o777 == access.mode;
    (!same).then(|| {
        let (uid, gid, mode) = (there.uid(), there.gid(), there.mode() & 0o777);
        format!(
            "{}: it still belongs to user {uid} and group {gid}, with mode {mode:04o}, as this user may not change \
             that; a stop and a start do",
            path.display()
        )
    })
}

impl AsFd for Endpoint {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let _ = self.unlink();
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
