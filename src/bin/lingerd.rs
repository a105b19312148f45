//! lingerd: reads the command line, and is the daemon, stops it, or prints its counters.

#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use lingerd::service::control;
use lingerd::service::options::{self, Command, Serve, Wait};
use lingerd::service::pid_file::{self, Running};
use lingerd::start::{Plan, Started};
use lingerd_platform::backend::{Backend, System};
use lingerd_platform::detach::detach;
use lingerd_platform::{process, signals};
use std::io::{self, Write};
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
        Err(argument) => Err(format!("{argument:?}: no UTF-8").into()),
    };
    let done = match command {
        Ok(Command::Serve(serve)) => return self::serve(*serve),
        Ok(Command::Stop(pid_file, wait)) => stop(&pid_file, wait),
        Ok(Command::Counters(socket, format)) => {
            control::query(&socket).map_err(Into::into).and_then(|snapshot| match snapshot {
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

fn stop(pid_file: &Path, wait: Wait) -> Result<u8> {
    match pid_file::running(pid_file)? {
        Some(running @ Running { pid, owner }) => {
            let stop = || {
                // The directory may be the daemon's user's, who could put a pid file of its own
                // there: root must not signal for it what it could not signal itself.
                if process::effective_uid() == 0 && owner != 0 {
                    process::become_user(owner)?;
                }
                process::kill(pid, signals::STOP)
            };
            stop().with_context(|| format!("cannot stop the daemon (pid {pid})"))?;
            if wait == Wait::ForItsEnd {
                pid_file::until_it_ends(pid_file, running)?;
                return print(&format!("lingerd (pid {pid}) has ended\n"));
            }
            Ok(0)
        }
        None => {
            complain(&format!("no lingerd is running with the pid file {}", pid_file.display()));
            Ok(NOT_RUNNING)
        }
    }
}

fn serve(options: Serve) -> ExitCode {
    let foreground = options.foreground;
    if !foreground {
        process::close_inherited(); // a supervisor may have its reasons, such as a lock
    }
    let failed = |error: anyhow::Error| {
        complain(&format!("{error:#}"));
        FAILED.into()
    };
    let plan = match Plan::new(options) {
        Ok(plan) => plan,
        Err(error) => return failed(error.into()),
    };
    let report = match (!foreground).then(detach).transpose() {
        Ok(report) => report,
        Err(error) => {
            return failed(anyhow::Error::new(error).context("cannot go into the background"));
        }
    };
    // From here on this is the daemon, with its own process id.
    let Started { daemon, pid_file: _pid_file, warning } = match plan.start() {
        Ok(started) => started,
        Err(error) => {
            let code = failed(error.into());
            if let Some(report) = report {
                report.failed(FAILED);
            }
            return code;
        }
    };
    if let Some(warning) = warning {
        complain(&format!("warning: {warning}"));
    }
    if let Some(Err(error)) = report.map(|report| report.serving()) {
        log::error!("cannot let go of the terminal: {error}");
        return failed(anyhow::Error::new(error).context("cannot let go of the terminal"));
    }
    let code = match daemon.run() {
        Ok(()) => 0,
        Err(error) => {
            log::error!("{:#}", anyhow::Error::new(error).context(System::NAME));
            FAILED
        }
    };
    log::logger().flush();
    code.into()
}
