// SPDX-License-Identifier: BSD-3-Clause

//! The start: everything that takes privilege, then the privilege is given up, then all else that a daemon
//! which serves has no need of (the sandbox), then the rest; and the kernel as the daemon's world.
//!
//! Must not know what is served.

use crate::connections::capacity::{Room, TooLow};
use crate::daemon::{self, Daemon, Parts};
use crate::guard::Allowed;
use crate::service::accounts::{self, Account};
use crate::service::endpoint::{self, Access, Endpoint};
use crate::service::options::{DEFAULT_MODE, Serve};
use crate::service::pid_file::{self, PidFile};
use crate::service::unsent::Unsent;
use crate::service::{control, directory, logger};
use crate::upgrade::heir::Estate;
use crate::upgrade::image::Role;
use crate::upgrade::predecessor::{self, Predecessor};
use lingerd_platform::back::Ways;
use lingerd_platform::backend::{Backend, Descriptor, System};
use lingerd_platform::clock::Monotonic;
use lingerd_platform::closing::Closers;
use lingerd_platform::content::Regular;
use lingerd_platform::manager::{self, Manager};
use lingerd_platform::process;
use lingerd_platform::reader::Threads;
use lingerd_platform::sandbox;
use lingerd_platform::signals::{Handler, Signals};
use lingerd_platform::world::World;
use socket2::SockAddr;
use std::ffi::OsString;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

/// The real world.
pub struct Kernel;

impl World for Kernel {
    type Back = Ways;
    type Backend = System;
    type Received = OwnedFd;
    type Socket = TcpStream;
    type Content = Regular;
    type Reader = Threads;
    type Link = UnixStream;
    type Door = Endpoint;
    type Signal = Handler;
    type Clock = Monotonic;
    type SlowClose = Closers;
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
    /// The one that is there serves, or cannot be taken over from.
    #[error(transparent)]
    Predecessor(#[from] predecessor::Error),
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
    /// -g or -m, beside a socket that is not for the daemon to change.
    #[error(
        "{0} does not go with a socket that the service manager has passed on, which says itself whose it is"
    )]
    NotOurs(&'static str),
    /// It listens there, and the one that is there has let go of it.
    #[error("{}: the service manager listens there; have it start lingerd", .0.display())]
    Managers(PathBuf),
    /// The background has other descriptors.
    #[error(
        "the service manager has passed on a socket, which lingerd takes in the foreground only: with -f"
    )]
    Background,
    /// What the service manager has passed on is more than the two sockets.
    #[error("the service manager has passed on {0} sockets, and lingerd has use for two")]
    TooMany(usize),
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
    /// The hand-off sockets, if a service manager has passed them on.
    passed_on: Vec<OwnedFd>,
}

/// A daemon that serves once it is run.
pub struct Started {
    /// The daemon.
    pub daemon: Daemon<Kernel>,
    /// What whoever started it should know all the same.
    pub warning: Option<String>,
}

impl Plan {
    /// Looks up the users and groups that the options name, whether the path fits, and what a service manager
    /// has passed on: before anything else is opened.
    ///
    /// # Errors
    /// What is wrong with the options.
    pub fn new(options: Serve) -> Result<Plan, Error> {
        let passed_on = passed_on(&options)?;
        let account = |user: &String| accounts::account("-u", user, options.user_group.as_deref());
        let user = options.user.as_ref().map(account).transpose()?;
        let group = options.group.as_ref().map(|name| accounts::group("-g", name)).transpose()?;
        let allowed = options.allowed.as_ref().map(|names| accounts::list("-a", names)).transpose()?;
        // A path that fits into no socket address is best refused before anything else is done.
        SockAddr::unix(control::path(&options.socket))
            .map_err(|e| Error::LongPath(options.socket.clone(), e))?;
        // Without -g the socket belongs to the group that the daemon runs with.
        let socket_group = group.or(user.as_ref().map(|user| user.gid));
        Ok(Plan { options, user, socket_group, allowed, passed_on })
    }

    /// Binds and opens everything that takes privilege, or takes it over from a daemon that is there; gives
    /// the privilege up, and opens the rest.
    ///
    /// # Errors
    /// [`Error`]; what was made by then is removed again, and a daemon that is there serves on.
    pub fn start(mut self) -> Result<Started, Error> {
        let uid = self.user.as_ref().map(|user| user.uid);
        let mut complaints = Vec::new();
        let manager = Manager::find().unwrap_or_else(|e| {
            complaints.push(format!(
                "cannot tell the service manager that this daemon serves (NOTIFY_SOCKET): {e}"
            ));
            None
        });
        // Whatever ours was: senders have to get through the socket's directory.
        process::umask(0o022);
        directory::make(&self.options.socket, uid)?;
        for file in [&self.options.socket].into_iter().chain(&self.options.pid_file) {
            directory::check(file, uid)?;
        }
        let limit =
            process::raise_descriptor_limit().map_err(Error::system("the limit of open descriptors"))?;
        let signals = Signals::install().map_err(Error::system("cannot install the signal handlers"))?;
        let backend = System::new().map_err(Error::system(&format!("cannot open {}", System::NAME)))?;
        // Before there may be connections among what is open.
        let room = Room::share(limit, process::open_descriptors() + TO_COME, self.options.capacity)?;
        // Before there is a second thread, for which the system would have to wait. Where it cannot be, the table
        // grows later.
        let _ = process::reserve_descriptors(room.places(), &signals.stop);
        let paths = [self.options.socket.clone(), second(&self.options.socket)];
        let mut passed_on = std::mem::take(&mut self.passed_on);
        // sd_listen_fds(3): where each is a unit of its own nobody says which comes first.
        if passed_on.len() == 2 && endpoint::is_at(&passed_on[0], &paths[1]) {
            passed_on.reverse();
        }
        let passed_on = passed_on.into_iter().zip(&paths);
        let passed_on = passed_on.map(|(socket, path)| Endpoint::passed_on(socket, path));
        let mut passed_on = passed_on.collect::<Result<Vec<_>, _>>()?.into_iter();
        let passed_on = [passed_on.next(), passed_on.next()];
        let (basis, access) = (self.basis(passed_on, uid)?, self.access(uid));
        let (unsent, killed) = match Unsent::open(&self.options.socket, runs_as(uid)) {
            Ok((unsent, left)) => (Some(Rc::new(unsent)), left),
            Err(e) => {
                complaints.push(format!(
                    "cannot note how many responses are unsent, for the next daemon to know: {e}"
                ));
                (None, 0)
            }
        };
        // One that is taken over from is alive, and it is its own until then.
        let killed = if basis.inherited.is_none() { killed } else { 0 };
        unsent.iter().filter(|_| basis.inherited.is_none()).for_each(|it| it.claim());
        let owner = runs_as(uid);
        let allowed = match &self.allowed {
            Some((users, groups)) => Allowed::listed(owner, users, groups),
            None => {
                let Access { uid, gid, mode } = basis.door.file();
                Allowed::by_mode(uid.unwrap_or(owner), gid.unwrap_or(0), mode)
            }
        };
        if let Some(user) = &self.user {
            process::drop_privileges(user.name.as_deref(), user.uid, user.gid).map_err(Error::system(
                &format!("cannot become user {} with group {}", user.uid, user.gid),
            ))?;
        }
        let options = self.options;
        let Basis { door, spool_door, control, pid_file, left_over, inherited } = basis;
        let door_is_shared = door.is_passed_on();
        let mut names = vec![door.name(), control.name()];
        names.extend(spool_door.as_ref().map(Endpoint::name));
        names.extend(pid_file.as_ref().map(PidFile::name));
        names.extend(unsent.as_ref().map(|it| it.name()));
        let noting = unsent.clone();
        let pid_file = pid_file.map(Rc::new);
        let path = options.pid_file.as_deref().map(|path| path.display().to_string());
        let shared = |file: &Rc<PidFile>| -> Box<dyn Descriptor> { Box::new(Rc::clone(file)) };
        let reader = Threads::new().map_err(Error::system("cannot open a pair of sockets"))?;
        let back = Ways::beside(&options.socket).map_err(Error::system("the directory of the sockets"))?;
        let parts = Parts {
            backend,
            clock: Monotonic::start(),
            slow_close: Closers::default(),
            signals,
            reader,
            back,
            most_held: options.most_held,
            door,
            spool_door,
            door_is_shared,
            allowed,
            control,
            pid_file: path.zip(pid_file.as_ref().map(shared)),
            chance: RandomState::new().hash_one(0),
            note: Box::new(move |number| noting.iter().for_each(|it| it.note(number))),
            tell: Box::new(move |notice| {
                let told = manager.as_ref().map_or(Ok(()), |manager| manager.tell(notice));
                told.inspect_err(|e| log::warn!("cannot tell the service manager: {e}")).is_ok()
            }),
        };
        let mut daemon = Daemon::new(parts, options.rules, options.drain, room)?;
        let mut estate = None;
        if let Some((predecessor, mut all)) = inherited {
            let link = predecessor.succeed()?;
            // It is this one that serves from here on, whatever fails.
            let since = daemon.claim();
            unsent.iter().for_each(|it| it.claim());
            if let Some(pid_file) = left_over {
                pid_file.remove();
            }
            let claimed = pid_file.map_or(Ok(()), |file| file.claim(&control::path(&options.socket)));
            complaints.extend(claimed.err().map(|e| format!("{:#}", anyhow::Error::new(e))));
            complaints.extend(endpoint::differs(&options.socket, access).filter(|_| !door_is_shared));
            complaints.extend(endpoint::differs(&control::path(&options.socket), own(uid)));
            // What that one is told still it passes on, as any client of the control socket would say it.
            all.things.push((Role::Client, link));
            estate = Some((all, since));
        }
        // Before there is a second thread, which the log may have. What is opened from here on a daemon
        // may have to open while it serves, too.
        let sandbox = sandbox::enter(&names.iter().map(|name| &**name).collect::<Vec<_>>(), daemon.ways());
        drop(names);
        let warning = match start_log(&options) {
            Err(e) if estate.is_some() => Some(format!("{:#}", anyhow::Error::new(e))),
            started => started?,
        };
        if process::effective_uid() == 0 {
            log::warn!("running as root, which is not needed: -u names a user to run as");
        }
        log::info!("lingerd {} on {}", env!("CARGO_PKG_VERSION"), options.socket.display());
        complaints.iter().for_each(|complaint| log::warn!("{complaint}"));
        log_sandbox(&sandbox);
        daemon.were_killed(killed);
        if let Some((estate, since)) = estate {
            daemon.take_over(estate, since);
        }
        Ok(Started { daemon, warning })
    }

    /// What a daemon stands on: inherited, if there is one to inherit from, and else made. One that was told
    /// to stop, or that is just starting or ending, is waited for.
    /// What a service manager has passed on to is the one: who else serves there has to give way.
    fn basis(&self, mut passed_on: [Option<Endpoint>; 2], uid: Option<u32>) -> Result<Basis, Error> {
        let control = control::path(&self.options.socket);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let only_if_stopping = !self.options.take_over && passed_on[0].is_none();
            let error = match predecessor::find(&control, runs_as(uid), only_if_stopping) {
                Ok(Some((predecessor, estate))) => return self.inherit(predecessor, estate, passed_on, uid),
                Ok(None) => match self.make(&mut passed_on, uid) {
                    Err(e) if is_passing(&e, &control) => e,
                    made => return made,
                },
                Err(e @ predecessor::Error::Gone(_)) => e.into(),
                Err(e) => return Err(e.into()),
            };
            if Instant::now() > deadline {
                return Err(error);
            }
            thread::sleep(AGAIN);
        }
    }

    /// Makes everything anew.
    fn make(&self, passed_on: &mut [Option<Endpoint>; 2], uid: Option<u32>) -> Result<Basis, Error> {
        let control = control::path(&self.options.socket);
        let path = self.options.pid_file.as_deref();
        let pid_file = path.map(|path| PidFile::create(path, &control)).transpose()?;
        // The control socket first: where another one is just starting that one is taken, and no sender is
        // to find a door that shuts again.
        let control = Endpoint::bind(&control, own(uid))?;
        let second = second(&self.options.socket);
        let (door, spool_door) = match passed_on.each_mut().map(Option::take) {
            [Some(door), spool] => (door, spool),
            // The second one first: who finds the first one looks for it.
            [None, _] => {
                let spool = Endpoint::bind(&second, self.access(uid))?;
                (Endpoint::bind(&self.options.socket, self.access(uid))?, Some(spool))
            }
        };
        Ok(Basis { door, spool_door, control, pid_file, left_over: None, inherited: None })
    }

    /// Takes over what there is, and makes what there is not: one that was told to stop has no door.
    fn inherit(
        &self,
        predecessor: Predecessor,
        mut estate: Estate<OwnedFd>,
        [passed_on, passed_on_too]: [Option<Endpoint>; 2],
        uid: Option<u32>,
    ) -> Result<Basis, Error> {
        let path = control::path(&self.options.socket);
        let control = match estate.take(Role::Control) {
            Some(control) => Endpoint::inherit(control.into(), &path, own(uid))?,
            None => Endpoint::bind(&path, own(uid))?,
        };
        let socket = &self.options.socket;
        // Somebody may have removed its name.
        let theirs = estate.take(Role::Door).filter(|_| socket.exists());
        let door = match (passed_on, theirs) {
            (Some(door), _) => door,
            (None, Some(door)) if estate.household.door_is_shared => {
                is_not_ours(&self.options)?;
                Endpoint::passed_on(door, socket)?
            }
            (None, None) if estate.household.door_is_shared => return Err(Error::Managers(socket.clone())),
            (None, Some(door)) => Endpoint::inherit(door.into(), socket, self.access(uid))?,
            (None, None) => Endpoint::bind(socket, self.access(uid))?,
        };
        let second = second(socket);
        let is_ours = !door.is_passed_on();
        let theirs = estate.take(Role::SpoolDoor).filter(|_| second.exists());
        let spool_door = match (passed_on_too, theirs) {
            (Some(door), _) => Some(door),
            (None, Some(door)) if is_ours => Some(Endpoint::inherit(door.into(), &second, self.access(uid))?),
            (None, Some(door)) => Some(Endpoint::passed_on(door, &second)?),
            (None, None) if is_ours => Some(Endpoint::bind(&second, self.access(uid))?),
            (None, None) => None,
        };
        let theirs = estate.take(Role::PidFile).zip(estate.household.pid_file.take());
        let theirs = theirs
            .and_then(|(file, there)| PidFile::inherit(file.into(), Path::new(&there), &path, runs_as(uid)));
        let (pid_file, left_over) = match (&self.options.pid_file, theirs) {
            (Some(wanted), Some(theirs)) if theirs.is_at(wanted) => (Some(theirs), None),
            (wanted, theirs) => {
                let ours = wanted.as_ref().map(|wanted| PidFile::create(wanted, &path));
                (ours.transpose()?, theirs)
            }
        };
        Ok(Basis { door, spool_door, control, pid_file, left_over, inherited: Some((predecessor, estate)) })
    }

    /// Who may use the hand-off socket.
    fn access(&self, uid: Option<u32>) -> Access {
        Access { uid, gid: self.socket_group, mode: self.options.mode.unwrap_or(DEFAULT_MODE) }
    }
}

/// Descriptors that a daemon will have beside those that it has when it begins to look for a predecessor: its
/// three sockets, the pid file, the number of what is unsent, the directory of each, that of the ways back, what reads
/// files, the log.
const TO_COME: usize = 14;

/// How long to wait for one that is just starting or ending, and how often to look.
const PATIENCE: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(20);

/// What a daemon stands on, and what it has inherited.
struct Basis {
    door: Endpoint,
    /// The second one. A service manager need not have it.
    spool_door: Option<Endpoint>,
    control: Endpoint,
    pid_file: Option<PidFile>,
    /// A predecessor's pid file that lies elsewhere.
    left_over: Option<PidFile>,
    inherited: Option<(Predecessor, Estate<OwnedFd>)>,
}

/// Where the second hand-off socket lies, at which `S` is spoken.
fn second(socket: &Path) -> PathBuf {
    let mut path = OsString::from(socket);
    path.push(".2");
    path.into()
}

/// The hand-off sockets that a service manager has passed on, the first one first.
fn passed_on(options: &Serve) -> Result<Vec<OwnedFd>, Error> {
    if !manager::has_passed_on() {
        return Ok(Vec::new());
    }
    if !options.foreground {
        return Err(Error::Background);
    }
    is_not_ours(options)?;
    let sockets = manager::passed_on().map_err(Error::system("what the service manager has passed on"))?;
    if sockets.len() > 2 { Err(Error::TooMany(sockets.len())) } else { Ok(sockets) }
}

/// That -g and -m are not given, as the socket is a service manager's.
fn is_not_ours(options: &Serve) -> Result<(), Error> {
    let given = [("-g", options.group.is_some()), ("-m", options.mode.is_some())]
        .into_iter()
        .find(|(_, given)| *given);
    given.map_or(Ok(()), |(option, _)| Err(Error::NotOurs(option)))
}

/// As whom this process will run, if it is told to be `uid`.
fn runs_as(uid: Option<u32>) -> u32 {
    uid.unwrap_or_else(process::effective_uid)
}

/// Who may use the control socket.
fn own(uid: Option<u32>) -> Access {
    Access { uid, gid: None, mode: 0o600 }
}

/// Whether `error` comes of a daemon with that control socket that is just starting or ending.
fn is_passing(error: &Error, control: &Path) -> bool {
    match error {
        Error::PidFile(pid_file::Error::Live { control: theirs, .. }) => {
            theirs.as_ref().is_none_or(|theirs| theirs == control)
        }
        Error::Endpoint(endpoint::Error::Live { path, .. }) => path == control,
        _ => false,
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

/// Says what is in force, and what is not that could be.
fn log_sandbox(sandbox: &sandbox::Report) {
    let applied = if sandbox.applied.is_empty() { "none".to_owned() } else { sandbox.applied.join(", ") };
    log::info!("sandbox: {applied}");
    for missing in &sandbox.missing {
        log::warn!("sandbox: cannot apply {missing}");
    }
}
