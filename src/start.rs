//! The start: everything that takes privilege, then the privilege is given up, then all else that a daemon
//! which serves has no need of (the sandbox), then the rest; and the kernel as the daemon's world.
//!
//! Must not know what is served.

use crate::connections::capacity::{Room, TooLow};
use crate::daemon::{self, Daemon, Parts};
use crate::service::endpoint::{self, Access, Endpoint};
use crate::service::options::Serve;
use crate::service::pid_file::{self, PidFile};
use crate::service::{control, logger};
use lingerd_platform::backend::{Backend, System};
use lingerd_platform::clock::Monotonic;
use lingerd_platform::closing::Thread;
use lingerd_platform::process::{self, User};
use lingerd_platform::sandbox;
use lingerd_platform::signals::{Handler, Signals};
use lingerd_platform::world::World;
use socket2::SockAddr;
use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

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
    /// An option names a user or a group that there is not.
    #[error("{option} '{name}': there is no such {kind}")]
    Nobody {
        /// Which option.
        option: &'static str,
        /// The name.
        name: String,
        /// "user" or "group".
        kind: &'static str,
    },
    /// The system does not tell who that is.
    #[error("{option} '{name}'")]
    LookUp {
        /// Which option.
        option: &'static str,
        /// The name.
        name: String,
        /// What it says.
        source: io::Error,
    },
    /// The path fits into no socket address.
    #[error("-s '{}': with '.ctl' appended it is too long for a Unix socket", .0.display())]
    LongPath(PathBuf, #[source] io::Error),
    /// The socket's directory is missing.
    #[error("{}: cannot make the socket's directory", .0.display())]
    MakeDirectory(PathBuf, #[source] io::Error),
    /// It was made, and stays root's.
    #[error("{}: cannot give it to -u", .0.display())]
    GiveDirectory(PathBuf, #[source] io::Error),
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
    user: Option<User>,
    /// The group to run with: that of -u, or else the user's own.
    run_group: u32,
    /// The group of the hand-off socket.
    socket_group: Option<u32>,
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
        let user = options.user.as_ref().map(|name| found("-u", name, "user", process::user(name)));
        let user = user.transpose()?;
        let group = |option, name: &String| found(option, name, "group", process::group(name));
        let user_group = options.user_group.as_ref().map(|name| group("-u", name)).transpose()?;
        let socket_group = options.group.as_ref().map(|name| group("-g", name)).transpose()?;
        let run_group = user_group.or(user.as_ref().map(|user| user.gid)).unwrap_or(0);
        // A path that fits into no socket address is best refused before anything else is done.
        SockAddr::unix(control::path(&options.socket))
            .map_err(|e| Error::LongPath(options.socket.clone(), e))?;
        // Without -g the socket belongs to the group that the daemon runs with.
        let socket_group = socket_group.or(user.is_some().then_some(run_group));
        Ok(Plan { options, user, run_group, socket_group })
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
        make_directory(&options.socket, uid)?;
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
        if let Some(user) = &self.user {
            process::drop_privileges(user, self.run_group)
                .map_err(Error::system(&format!("cannot become -u '{}'", user.name)))?;
        }
        // Before there is a second thread, which the log may have. What is opened from here on a daemon
        // may have to open while it serves, too.
        let names = [door.name(), control.name()].into_iter().chain(pid_file.as_ref().map(PidFile::name));
        let sandbox = sandbox::enter(&names.collect::<Vec<_>>());
        let warning = start_log(&options)?;
        let room = Room::share(limit, process::open_descriptors(), options.capacity)?;
        if process::effective_uid() == 0 {
            log::warn!("running as root, which is not needed: -u names a user to run as");
        }
        log::info!("lingerd {} on {}", env!("CARGO_PKG_VERSION"), options.socket.display());
        log_sandbox(&sandbox);
        let backend = System::new().map_err(Error::system(&format!("cannot open {}", System::NAME)))?;
        let (clock, slow_close) = (Monotonic::start(), Thread::default());
        let parts = Parts { backend, clock, slow_close, signals, door, control };
        Ok(Started { daemon: Daemon::new(parts, options.rules, options.drain, room)?, pid_file, warning })
    }
}

/// What was looked up for `option`, or why it cannot be had.
fn found<T>(
    option: &'static str,
    name: &str,
    kind: &'static str,
    found: io::Result<Option<T>>,
) -> Result<T, Error> {
    let name = || name.to_owned();
    found.map_err(|source| Error::LookUp { option, name: name(), source })?.ok_or_else(|| Error::Nobody {
        option,
        name: name(),
        kind,
    })
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

/// Says what is in force, and what is not that could be.
fn log_sandbox(sandbox: &sandbox::Report) {
    let applied = if sandbox.applied.is_empty() { "none".to_owned() } else { sandbox.applied.join(", ") };
    log::info!("sandbox: {applied}");
    for missing in &sandbox.missing {
        log::warn!("sandbox: cannot apply {missing}");
    }
}

/// Makes the socket's directory where it is missing (/var/run is emptied at boot), and gives it to
/// the daemon's user, who has to remove the socket there when it stops.
fn make_directory(socket: &Path, uid: Option<u32>) -> Result<(), Error> {
    let Some(directory) = socket.parent() else { return Ok(()) };
    match std::fs::create_dir(directory) {
        Ok(()) => chown(directory, uid, None).map_err(|e| Error::GiveDirectory(directory.to_owned(), e)),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(Error::MakeDirectory(directory.to_owned(), e)),
    }
}
