//! The start: everything that takes privilege, then the privilege is given up, then the rest; and
//! the kernel as the daemon's world.
//!
//! Must not know what is served.

use crate::connections::capacity::{Room, TooLow};
use crate::daemon::{self, Daemon, Parts};
use crate::guard::Allowed;
use crate::service::accounts::{self, Account};
use crate::service::endpoint::{self, Access, Endpoint};
use crate::service::options::Serve;
use crate::service::pid_file::{self, PidFile};
use crate::service::{control, directory, logger};
use lingerd_platform::backend::{Backend, System};
use lingerd_platform::clock::Monotonic;
use lingerd_platform::closing::Thread;
use lingerd_platform::process;
use lingerd_platform::signals::{Handler, Signals};
use lingerd_platform::world::World;
use socket2::SockAddr;
use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// The real world.
pub struct Kernel;

impl World for Kernel {
    type Backend = System;
    type Received = OwnedFd;
    type Socket = TcpStream;
    type Link = UnixStream;
    type Door = Endpoint;
    type Signal = Handler;
    type Clock = Monotonic;
    type SlowClose = Thread;
}

/// Why the daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A user or a group.
    #[error(transparent)]
    Account(#[from] accounts::Error),
    /// The path fits into no socket address.
    #[error("-s '{}': with '.ctl' appended it is too long for a Unix socket", .0.display())]
    LongPath(PathBuf, #[source] io::Error),
    /// The directory of one of the files.
    #[error(transparent)]
    Directory(#[from] directory::Error),
    /// The pid file.
    #[error(transparent)]
    PidFile(#[from] pid_file::Error),
    /// One of the sockets.
    #[error(transparent)]
    Endpoint(#[from] endpoint::Error),
    /// What the process may have open.
    #[error(transparent)]
    TooLow(#[from] TooLow),
    /// One call that failed.
    #[error("{0}")]
    System(String, #[source] io::Error),
    /// The daemon itself.
    #[error("{}", System::NAME)]
    Daemon(#[from] daemon::Error),
}

impl Error {
    fn system(what: &str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::System(what.to_owned(), source)
    }
}

/// What is asked for, checked as far as that can be done before anything is done.
pub struct Plan {
    options: Serve,
    /// Whom to run as.
    user: Option<Account>,
    /// The group of the hand-off socket.
    socket_group: Option<u32>,
    /// The users and the groups of -a.
    allowed: Option<(Vec<u32>, Vec<u32>)>,
}

/// A daemon that serves once it is run, and what has to live as long.
pub struct Started {
    /// The daemon.
    pub daemon: Daemon<Kernel>,
    /// Its pid file, which goes when this is dropped.
    pub pid_file: Option<PidFile>,
    /// What whoever started it should know all the same.
    pub warning: Option<String>,
}

impl Plan {
    /// Looks up the users and groups that the options name, and whether the path fits.
    ///
    /// # Errors
    /// What is wrong with the options.
    pub fn new(options: Serve) -> Result<Plan, Error> {
        let account = |user: &String| accounts::account("-u", user, options.user_group.as_deref());
        let user = options.user.as_ref().map(account).transpose()?;
        let group = options.group.as_ref().map(|name| accounts::group("-g", name)).transpose()?;
        let allowed = options.allowed.as_ref().map(|names| accounts::list("-a", names)).transpose()?;
        // A path that fits into no socket address is best refused before anything else is done.
        SockAddr::unix(control::path(&options.socket))
            .map_err(|e| Error::LongPath(options.socket.clone(), e))?;
        // Without -g the socket belongs to the group that the daemon runs with.
        let socket_group = group.or(user.as_ref().map(|user| user.gid));
        Ok(Plan { options, user, socket_group, allowed })
    }

    /// Binds and opens everything that takes privilege, gives the privilege up, and opens the rest.
    ///
    /// # Errors
    /// [`Error`]; what was made by then is removed again.
    pub fn start(self) -> Result<Started, Error> {
        let options = self.options;
        let uid = self.user.as_ref().map(|user| user.uid);
        // Whatever ours was: senders have to get through the socket's directory.
        process::umask(0o022);
        directory::make(&options.socket, uid)?;
        for file in [&options.socket].into_iter().chain(&options.pid_file) {
            directory::check(file, uid)?;
        }
        let pid_file = options.pid_file.as_deref().map(|path| PidFile::create(path, uid)).transpose()?;
        let limit =
            process::raise_descriptor_limit().map_err(Error::system("the limit of open descriptors"))?;
        let signals = Signals::install().map_err(Error::system("cannot install the signal handlers"))?;
        // The control socket first: where a daemon is still finishing its lingers that one is taken,
        // and no sender is to find a door that shuts again.
        let own = Access { uid, gid: None, mode: 0o600 };
        let control = Endpoint::bind(&control::path(&options.socket), own)?;
        let access = Access { uid, gid: self.socket_group, mode: options.mode };
        let door = Endpoint::bind(&options.socket, access)?;
        let owner = uid.unwrap_or_else(process::effective_uid);
        let allowed = match &self.allowed {
            Some((users, groups)) => Allowed::listed(owner, users, groups),
            None => Allowed::by_mode(owner, door.group(), options.mode),
        };
        if let Some(user) = &self.user {
            process::drop_privileges(user.name.as_deref(), user.uid, user.gid).map_err(Error::system(
                &format!("cannot become user {} with group {}", user.uid, user.gid),
            ))?;
        }
        let warning = start_log(&options)?;
        let room = Room::share(limit, process::open_descriptors(), options.capacity)?;
        if process::effective_uid() == 0 {
            log::warn!("running as root, which is not needed: -u names a user to run as");
        }
        log::info!("lingerd {} on {}", env!("CARGO_PKG_VERSION"), options.socket.display());
        let backend = System::new().map_err(Error::system(&format!("cannot open {}", System::NAME)))?;
        let (clock, slow_close) = (Monotonic::start(), Thread::default());
        let parts = Parts { backend, clock, slow_close, signals, door, allowed, control };
        Ok(Started { daemon: Daemon::new(parts, options.rules, options.drain, room)?, pid_file, warning })
    }
}

/// Starts the log, and returns what the user should know of it.
fn start_log(options: &Serve) -> Result<Option<String>, Error> {
    if options.foreground {
        logger::to_stderr(options.level).map_err(Error::system("cannot start the log"))?;
        return Ok(None);
    }
    let trouble = logger::to_syslog(options.level, options.facility);
    Ok(trouble.map(|trouble| format!("syslog cannot be reached, it is tried again later: {trouble}")))
}
