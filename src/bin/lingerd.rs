//! lingerd: reads the command line, and is the daemon, stops it, or prints its counters.

#![forbid(unsafe_code)]

use anyhow::{Context, Result, anyhow};
use lingerd::daemon::{self, Daemon};
use lingerd::endpoint::Access;
use lingerd::handoff::HandOff;
use lingerd::options::{self, Command, Serve};
use lingerd::pidfile::{self, PidFile, Running};
use lingerd::room::Room;
use lingerd::{control, logger};
use lingerd_platform::backend::System;
use lingerd_platform::detach::detach;
use lingerd_platform::process::{self, User};
use lingerd_platform::signals::{self, Signals};
use socket2::SockAddr;
use std::io::{self, Write};
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::ExitCode;

/// Something failed; standard error says what.
const FAILED: u8 = 1;
/// The command line is wrong.
const USAGE: u8 = 2;
/// -k, -S: there is no daemon.
const NOT_RUNNING: u8 = 3;

fn main() -> ExitCode {
    // Not std::env::args: it panics on an argument that is no UTF-8.
    let arguments: Result<Vec<String>, _> = std::env::args_os().skip(1).map(|a| a.into_string()).collect();
    let command = match arguments {
        Ok(arguments) => options::parse(&arguments),
        Err(argument) => Err(format!("{argument:?}: no UTF-8")),
    };
    let done = match command {
        Ok(Command::Serve(serve)) => return self::serve(*serve),
        Ok(Command::Stop(pidfile)) => stop(&pidfile),
        Ok(Command::Counters(socket, format)) => {
            control::query(&socket).and_then(|snapshot| match snapshot {
                Some(snapshot) => print(&snapshot.render(format)),
                None => {
                    complain(&format!("no lingerd is running with the socket {}", socket.display()));
                    Ok(NOT_RUNNING)
                }
            })
        }
        Ok(Command::Print(text)) => print(&text),
        Err(error) => {
            complain(&format!("{error}; 'lingerd -h' shows the options"));
            Ok(USAGE)
        }
    };
    match done {
        Ok(code) => code.into(),
        Err(error) => {
            complain(&format!("{error:#}"));
            FAILED.into()
        }
    }
}

/// Says what is wrong on standard error; nobody is left to tell if that is gone.
fn complain(message: &str) {
    let _ = writeln!(io::stderr(), "lingerd: {message}");
}

fn print(text: &str) -> Result<u8> {
    io::stdout().write_all(text.as_bytes()).context("standard output")?;
    Ok(0)
}

fn stop(pidfile: &Path) -> Result<u8> {
    match pidfile::running(pidfile)? {
        Some(Running { pid, owner }) => {
            let stop = || {
                // The directory may be the daemon's user's, who could put a pid file of its own
                // there: root must not signal for it what it could not signal itself.
                if process::effective_uid() == 0 && owner != 0 {
                    process::become_user(owner)?;
                }
                process::kill(pid, signals::STOP)
            };
            stop().with_context(|| format!("cannot stop the daemon (pid {pid})"))?;
            Ok(0)
        }
        None => {
            complain(&format!("no lingerd is running with the pid file {}", pidfile.display()));
            Ok(NOT_RUNNING)
        }
    }
}

fn serve(options: Serve) -> ExitCode {
    if !options.foreground {
        process::close_inherited(); // a supervisor may have its reasons, such as a lock
    }
    let ids = match Ids::look_up(&options).and_then(|ids| check_path(&options.socket).map(|()| ids)) {
        Ok(ids) => ids,
        Err(error) => {
            complain(&format!("{error:#}"));
            return FAILED.into();
        }
    };
    let report = if options.foreground {
        None
    } else {
        match detach() {
            Ok(report) => Some(report),
            Err(error) => {
                complain(&format!("cannot go into the background: {error}"));
                return FAILED.into();
            }
        }
    };
    // From here on this is the daemon, with its own process id.
    let (daemon, _pidfile) = match start(&options, &ids) {
        Ok(started) => started,
        Err(error) => {
            complain(&format!("{error:#}"));
            if let Some(report) = report {
                report.failed(FAILED);
            }
            return FAILED.into();
        }
    };
    if let Some(Err(error)) = report.map(|report| report.serving()) {
        complain(&format!("cannot let go of the terminal: {error}"));
        log::error!("cannot let go of the terminal: {error}");
        return FAILED.into();
    }
    let code = match daemon.run() {
        Ok(()) => 0,
        Err(error) => {
            log::error!("{error:#}");
            FAILED
        }
    };
    log::logger().flush();
    code.into()
}

/// The users and groups that the options name, looked up.
struct Ids {
    user: Option<User>,
    /// The group to run with: that of -u, or else the user's own.
    run_group: u32,
    /// The group of the hand-off socket.
    socket_group: Option<u32>,
}

impl Ids {
    fn look_up(options: &Serve) -> Result<Ids> {
        let group = |option: &str, name: &String| {
            process::group(name)
                .with_context(|| format!("{option} '{name}'"))?
                .ok_or_else(|| anyhow!("{option} '{name}': there is no such group"))
        };
        let user = match &options.user {
            Some(name) => Some(
                process::user(name)
                    .with_context(|| format!("-u '{name}'"))?
                    .ok_or_else(|| anyhow!("-u '{name}': there is no such user"))?,
            ),
            None => None,
        };
        let user_group = options.user_group.as_ref().map(|name| group("-u", name)).transpose()?;
        let socket_group = options.group.as_ref().map(|name| group("-g", name)).transpose()?;
        let run_group = user_group.or(user.as_ref().map(|user| user.gid)).unwrap_or(0);
        // Without -g the socket belongs to the group that the daemon runs with.
        Ok(Ids { socket_group: socket_group.or(user.is_some().then_some(run_group)), user, run_group })
    }
}

/// A path that fits into no socket address is best refused before anything else is done.
fn check_path(socket: &Path) -> Result<()> {
    SockAddr::unix(control::path(socket)).map(drop).with_context(|| {
        format!("-s '{}': with '.ctl' appended it is too long for a Unix socket", socket.display())
    })
}

/// Binds and opens everything that takes privilege, gives the privilege up, and opens the rest.
fn start(options: &Serve, ids: &Ids) -> Result<(Daemon<System>, Option<PidFile>)> {
    let uid = ids.user.as_ref().map(|user| user.uid);
    // Whatever ours was: senders have to get through the socket's directory.
    process::umask(0o022);
    make_directory(&options.socket, uid)?;
    let pidfile = options.pidfile.as_deref().map(|path| PidFile::create(path, uid)).transpose()?;
    let limit = process::raise_descriptor_limit().context("the limit of open descriptors")?;
    let signals = Signals::install().context("cannot install the signal handlers")?;
    let access = Access { uid, gid: ids.socket_group, mode: options.mode };
    // The control socket first: where a daemon is still finishing its lingers that one is taken, and
    // no sender is to find a door that shuts again.
    let control = control::Control::bind(&options.socket, uid)?;
    let handoff = HandOff::bind(&options.socket, access, daemon::listener_token())?;
    if let Some(user) = &ids.user {
        process::drop_privileges(user, ids.run_group)
            .with_context(|| format!("cannot become -u '{}'", user.name))?;
    }
    if options.foreground {
        logger::to_stderr(options.level).context("cannot start the log")?;
    } else if let Some(trouble) = logger::to_syslog(options.level, options.facility) {
        complain(&format!("warning: syslog cannot be reached, it is tried again later: {trouble}"));
    }
    let room = Room::share(limit, process::open_descriptors(), options.capacity)?;
    if process::effective_uid() == 0 {
        log::warn!("running as root, which is not needed: -u names a user to run as");
    }
    log::info!("lingerd {} on {}", env!("CARGO_PKG_VERSION"), options.socket.display());
    let daemon = Daemon::new(handoff, control, signals, options.rules, room)?;
    Ok((daemon, pidfile))
}

/// Makes the socket's directory where it is missing (/var/run is emptied at boot), and gives it to
/// the daemon's user, who has to remove the socket there when it stops.
fn make_directory(socket: &Path, uid: Option<u32>) -> Result<()> {
    let Some(directory) = socket.parent() else { return Ok(()) };
    match std::fs::create_dir(directory) {
        Ok(()) => {
            let name = || directory.display().to_string();
            chown(directory, uid, None).with_context(|| format!("{}: cannot give it to -u", name()))
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => {
            Err(e).with_context(|| format!("{}: cannot make the socket's directory", directory.display()))
        }
    }
}
