// SPDX-License-Identifier: BSD-3-Clause

//! ablinger: a load generator whose clients keep their sockets open after the response has ended.
//!
//! This file wires the parts together and owns what the user sees of an error: its words and the
//! exit status. It must not know HTTP, nor how sockets are waited for.
//!
//! [`options`] reads the command line, [`engine`] makes the requests with the framing of [`http`]
//! and the hold times of [`holds`], and [`report`] prints what was counted, with the percentiles
//! of [`latency`].

#![forbid(unsafe_code)]

mod engine;
mod holds;
mod http;
mod latency;
mod options;
mod report;

use lingerd_platform::backend::{Backend, System};
use lingerd_platform::process::raise_descriptor_limit;
use lingerd_platform::signals::Signals;
use options::{Command, Format, Options, Stop, Target};
use std::fmt;
use std::io::{self, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;

/// Some response was not complete, or the run could not be made. In the manual.
const EXIT_FAILURE: u8 = 1;
/// The command line is wrong. In the manual.
const EXIT_USAGE: u8 = 2;

/// Descriptors besides the clients' sockets: the standard three, the backend's, the signals' (7),
/// and some that a resolver library may keep open.
const OTHER_DESCRIPTORS: u64 = 32;

fn main() -> ExitCode {
    let options = match options::parse(std::env::args_os().skip(1)) {
        Ok(Command::Run(options)) => options,
        Ok(Command::Help) => return print(options::HELP),
        Ok(Command::Version) => {
            return print(&format!("ablinger {} ({})\n", env!("CARGO_PKG_VERSION"), System::NAME));
        }
        Err(error) => {
            complain(format_args!("{error}"));
            // Nothing is left to say when even standard error is closed.
            let _ = io::stderr().write_all(options::USAGE.as_bytes());
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match run(&options) {
        Ok(code) => code,
        Err(error) => {
            complain(format_args!("{error}"));
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

/// Makes the run and prints its report. An error is a run that could not be made.
fn run(options: &Options) -> Result<ExitCode, String> {
    let addresses = resolve(&options.target)?;
    let clients = match options.stop {
        // More clients than requests would have nothing to do.
        Stop::Requests(n) => u64::from(options.concurrency).min(n) as u32,
        Stop::After(_) => options.concurrency,
    };
    check_descriptors(clients)?;
    let mut signals =
        Signals::install().map_err(|error| format!("cannot install the signal handlers: {error}"))?;
    let plan = engine::Plan {
        addresses,
        request: http::request(&options.target.authority, &options.target.path),
        clients,
        stop: options.stop,
    };
    let holds = holds::Holds::new(options.linger_ms, options.stddev_ms, fastrand::Rng::new());
    let tally = engine::run(&plan, holds, &mut signals).map_err(|error| error.to_string())?;
    let text = match options.format {
        Format::Text => report::text(options, &tally),
        Format::Json => report::json(options, &tally),
    };
    let printed = print(&text);
    Ok(if tally.all_complete() { printed } else { ExitCode::from(EXIT_FAILURE) })
}

/// All addresses of the target, in the resolver's order. Asked once: a run that met the resolver
/// again and again would measure it.
fn resolve(target: &Target) -> Result<Vec<SocketAddr>, String> {
    let name = (target.host.as_str(), target.port);
    let addresses: Vec<_> = name
        .to_socket_addrs()
        .map_err(|error| format!("cannot find the address of \"{}\": {error}", target.host))?
        .collect();
    if addresses.is_empty() {
        return Err(format!("cannot find the address of \"{}\": the name has none", target.host));
    }
    Ok(addresses)
}

/// Raises the descriptor limit and makes sure that all clients fit, before the first connects.
fn check_descriptors(clients: u32) -> Result<(), String> {
    let limit = raise_descriptor_limit()
        .map_err(|error| format!("cannot read the limit of open descriptors: {error}"))?;
    let need = u64::from(clients) + OTHER_DESCRIPTORS;
    if need <= limit {
        return Ok(());
    }
    Err(format!(
        "{clients} clients need {need} open descriptors and the limit is {limit}: give a smaller -c, \
         or raise the hard limit first (ulimit -Hn {need}, as root)"
    ))
}

/// Prints to standard output; `println!` would panic where a pipe was closed.
fn print(text: &str) -> ExitCode {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("cannot write to standard output: {error}"));
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

/// Says something on standard error, in the one form that all messages have.
fn complain(message: fmt::Arguments<'_>) {
    // Nothing is left to say when even standard error is closed; `eprintln!` would panic.
    let _ = writeln!(io::stderr(), "ablinger: {message}");
}
