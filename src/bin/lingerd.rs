// SPDX-License-Identifier: BSD-3-Clause

//! lingerd: reads the command line, and is the daemon, stops it, or prints its counters.

#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use lingerd::daemon::End;
use lingerd::service::control::{self, Stopping, Word};
use lingerd::service::options::{self, Command, Serve, Wait, Which};
use lingerd::service::pid_file::{self, Running};
use lingerd::start::{Plan, Started};
use lingerd::stats::Snapshot;
use lingerd::stats::forms::Format;
use lingerd::stats::people::Glances;
use lingerd_platform::backend::{Backend, System};
use lingerd_platform::detach::detach;
use lingerd_platform::manager;
use lingerd_platform::process;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

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
        Ok(Command::Stop(which, wait)) => stop(&which, wait),
        Ok(Command::Counters { socket, format, every: None }) => {
            query(&socket, 0).and_then(|snapshot| match snapshot {
                Some(snapshot) => print(&snapshot.render(format)),
                None => Ok(NOT_RUNNING),
            })
        }
        Ok(Command::Counters { socket, format, every: Some(every) }) => glance(&socket, format, every),
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
    // As the log would say it there, sd-daemon(3).
    let name = if manager::logs_to_the_journal() { "<3>" } else { "lingerd: " };
    let _ = writeln!(io::stderr(), "{name}{message}");
}

fn print(text: &str) -> Result<u8> {
    io::stdout().write_all(text.as_bytes()).context("standard output")?;
    Ok(0)
}

/// Asks for the counters, and again, up to `retries` times, where it is hung up on; complains, and returns
/// `None`, when there is no daemon.
fn query(socket: &Path, retries: u32) -> Result<Option<Snapshot>> {
    let mut retries = 0..retries;
    let snapshot = loop {
        match control::query(socket) {
            Err(control::Error::HungUp(_)) if retries.next().is_some() => thread::sleep(RETRY_AFTER),
            answered => break answered?,
        }
    };
    if snapshot.is_none() {
        complain(&format!("no lingerd is running with the socket {}", socket.display()));
    }
    Ok(snapshot)
}

/// Prints a line of counters each time that `every` has passed, until nobody reads it or there is no daemon.
fn glance(socket: &Path, format: Format, every: Duration) -> Result<u8> {
    let mut glances = Glances::default();
    let mut before = Instant::now();
    let mut next = before;
    let mut retries = 0;
    loop {
        let Some(snapshot) = query(socket, retries)? else { return Ok(NOT_RUNNING) };
        retries = RETRIES; // who was answered once is hung up on by a daemon that is just ending
        let now = Instant::now();
        let line = match format {
            Format::Text => glances.line(snapshot, (now - before).as_secs_f64()),
            _ => snapshot.render(format),
        };
        match io::stdout().write_all(line.as_bytes()).and_then(|()| io::stdout().flush()) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(0),
            written => written.context("standard output")?,
        }
        before = now;
        // From the first one on, so that they come as often as they should; but not all at once after a pause.
        next = (next + every).max(now);
        thread::sleep(next - now);
    }
}

/// How often to look for the control socket of a daemon that is just starting or ending, and how long to
/// wait in between.
const RETRIES: u32 = 50;
const RETRY_AFTER: Duration = Duration::from_millis(20);

fn stop(which: &Which, wait: Wait) -> Result<u8> {
    let Some((stopping, name)) = tell_to_stop(which)? else {
        complain(&match which {
            Which::PidFile(path) => format!("no lingerd is running with the pid file {}", path.display()),
            Which::Socket(path) => format!("no lingerd is running with the socket {}", path.display()),
        });
        return Ok(NOT_RUNNING);
    };
    match wait {
        Wait::No => Ok(0),
        Wait::ForItsEnd => print(&match stopping.wait()? {
            Word::Succeeded => format!("{name} has ended; another one has taken over from it\n"),
            _ => format!("{name} has ended\n"),
        }),
    }
}

/// Tells a daemon to stop, and says what it is called. `Ok(None)` when there is none.
fn tell_to_stop(which: &Which) -> Result<Option<(Stopping, String)>> {
    let path = match which {
        Which::Socket(socket) => {
            let told = control::stop(&control::path(socket), 0)?;
            return Ok(told.map(|stopping| (stopping, "lingerd".to_owned())));
        }
        Which::PidFile(path) => path,
    };
    for _ in 0..RETRIES {
        let Some(Running { pid, control, owner }) = pid_file::running(path)? else { return Ok(None) };
        // The directory may be the daemon's user's, who could put a pid file of its own there: root must not
        // tell for it who is not its own.
        match control::stop(&control, owner) {
            Ok(Some(stopping)) => return Ok(Some((stopping, format!("lingerd (pid {pid})")))),
            Ok(None) | Err(control::Error::HungUp(_)) => thread::sleep(RETRY_AFTER), // just starting or ending
            Err(e) => return Err(e.into()),
        }
    }
    bail!("{}: somebody holds it, but nobody answers at the control socket that it names", path.display())
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
    let Started { mut daemon, warning } = match plan.start() {
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
        Ok(End::Stopped) => 0,
        Ok(End::Succeeded) => {
            daemon.close_copies(); // at once: what is not closed here is not closed by who has it now
            log::logger().flush();
            // Nothing else is dropped: its names and its pid file are another one's.
            std::process::exit(0);
        }
        Err(error) => {
            log::error!("{:#}", anyhow::Error::new(error).context(System::NAME));
            FAILED
        }
    };
    drop(daemon); // its sockets, before anybody is waited for: who asks there would wait, too
    log::logger().flush();
    code.into()
}
