// SPDX-License-Identifier: BSD-3-Clause

//! ablinger: a load generator whose clients keep their sockets open after the response has ended.
//!
//! This file wires the parts together and owns what the user sees of an error: its words and the
//! exit status. It must not know HTTP, nor how sockets are waited for.
//!
//! [`options`] reads the command line, [`engine`] makes the requests with the framing of [`http`]
//! and the hold times of [`holds`], and [`report`] prints what was counted, with the percentiles
//! of [`latency`]. [`profile`] compares runs of different clients, [`plot`] draws. What goes to
//! standard error goes through [`terminal`].

#![forbid(unsafe_code)]

mod engine;
mod holds;
mod http;
mod latency;
mod options;
mod plot;
mod profile;
mod report;
mod terminal;

use lingerd_platform::backend::{Backend, System};
use lingerd_platform::process::raise_descriptor_limit;
use lingerd_platform::signals::Signals;
use options::{Command, Format, Options, Stop, Target};
use profile::{Habit, Part, Profile};
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use terminal::{Progress, complain};

/// Some response was not complete or had a bad status, or the run could not be made. In the manual.
const EXIT_FAILURE: u8 = 1;
/// The command line is wrong. In the manual.
const EXIT_USAGE: u8 = 2;

/// Descriptors besides the clients' sockets: the standard three, the backend's, the signals' (7),
/// and some that a resolver library may keep open.
const OTHER_DESCRIPTORS: u64 = 32;

fn main() -> ExitCode {
    let options = match options::parse(std::env::args_os().skip(1)) {
        Ok(Command::Run(options)) => options,
        Ok(Command::Help) => return status(print(&options::help())),
        Ok(Command::Version) => {
            let version = format!("ablinger {} ({})\n", env!("CARGO_PKG_VERSION"), System::NAME);
            return status(print(&version));
        }
        Err(error) => {
            complain(format_args!("{error}"));
            // Nothing is left to say when even standard error is closed.
            let _ = io::stderr().write_all(options::USAGE.as_bytes());
            return ExitCode::from(EXIT_USAGE);
        }
    };
    status(run(&options).unwrap_or_else(|error| {
        complain(format_args!("{error}"));
        false
    }))
}

fn status(all_is_well: bool) -> ExitCode {
    if all_is_well { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILURE) }
}

/// Makes what is asked for and prints its report; whether all went well. An error is a run that could
/// not be made.
fn run(options: &Options) -> Result<bool, String> {
    if let Some(path) = &options.plot {
        // Nobody wants to hear of it after an hour's run. What is in the file stays there until then.
        let opened = File::options().append(true).create(true).open(path);
        opened.map_err(|error| cannot_write(path, &error))?;
    }
    let mut runs = Runs {
        addresses: resolve(&options.target)?,
        signals: Signals::install()
            .map_err(|error| format!("cannot install the signal handlers: {error}"))?,
    };
    if options.profile {
        return profile(options, &mut runs);
    }
    let tally = runs.measure(options, "")?;
    let printed = print(&match options.format {
        Format::Text => report::text(options, &tally),
        Format::Json => report::json(&report::Report::new(options, &tally)),
    });
    let plotted = plot(options, &[("latency".to_owned(), &tally.latencies)]);
    Ok(printed && plotted && tally.all_complete())
}

/// The same for the runs of a profile.
fn profile(options: &Options, runs: &mut Runs) -> Result<bool, String> {
    let mut profile = Profile { parts: Vec::new() };
    for (number, habit) in (1..).zip(Habit::ALL) {
        let part = habit.options(options);
        if habit != Habit::Close {
            runs.settle(&part)?;
        }
        let tally = runs.measure(&part, &format!("{number} of {}: ", Habit::ALL.len()))?;
        let over = tally.interrupted || tally.address.is_none();
        profile.parts.push(Part { habit, options: part, tally });
        if over {
            break;
        }
    }
    let printed = print(&match options.format {
        Format::Text => profile.text(options),
        Format::Json => report::json(&profile.json(options)),
    });
    let parts = profile.parts.iter();
    let curves: Vec<_> =
        parts.map(|part| (part.habit.describe(&part.options), &part.tally.latencies)).collect();
    let plotted = plot(options, &curves);
    Ok(printed && plotted && profile.all_complete())
}

/// What all runs have in common.
struct Runs {
    addresses: Vec<SocketAddr>,
    signals: Signals,
}

impl Runs {
    /// Makes a run; `what` it is, a terminal is told.
    fn measure(&mut self, options: &Options, what: &str) -> Result<report::Tally, String> {
        let request = |connection| http::request(&options.target.authority, &options.target.path, connection);
        let plan = engine::Plan {
            addresses: self.addresses.clone(),
            request: request("close"),
            request_to_keep: request("keep-alive"),
            clients: match options.stop {
                // More clients than requests would have nothing to do.
                Stop::Requests(n) => u64::from(options.concurrency).min(n) as u32,
                Stop::After(_) => options.concurrency,
            },
            stop: options.stop,
            rate: options.rate,
            keep: options.keep,
            pause: Duration::from_millis(options.pause_ms.into()),
            read_rate: options.read_rate,
        };
        check_descriptors(plan.clients)?;
        let holds = holds::Holds::new(options.linger_ms, options.stddev_ms, fastrand::Rng::new());
        let progress = Progress::new(what);
        engine::run(&plan, holds, &mut self.signals, progress).map_err(|error| error.to_string())
    }

    /// Makes a few requests, which are answered after all that the server had in its queue.
    fn settle(&mut self, options: &Options) -> Result<(), String> {
        const REQUESTS: u32 = 10;
        let few = Options {
            stop: Stop::Requests(REQUESTS.into()),
            concurrency: REQUESTS,
            ..Habit::Close.options(options)
        };
        self.measure(&few, "until the server is free: ").map(drop)
    }
}

/// Draws the curves, if asked to; whether that went well.
fn plot(options: &Options, curves: &[(String, &latency::Latencies)]) -> bool {
    let Some(path) = &options.plot else { return true };
    let title = format!("{}, {} clients", options.target.url, options.concurrency);
    let written = plot::svg(&title, curves)
        .and_then(|svg| fs::write(path, svg).map_err(|error| cannot_write(path, &error)));
    if let Err(error) = &written {
        complain(format_args!("{error}"));
    }
    written.is_ok()
}

fn cannot_write(path: &Path, error: &io::Error) -> String {
    format!("cannot write {}: {error}", path.display())
}

/// All addresses of the target, in the resolver's order. Asked once: a run that met the resolver
/// again and again would measure it.
fn resolve(target: &Target) -> Result<Vec<SocketAddr>, String> {
    let mut addresses = look_up(&target.host, target.port)?;
    if let Some(zone) = &target.zone {
        let scope = scope(zone)?;
        for address in &mut addresses {
            if let SocketAddr::V6(address) = address {
                address.set_scope_id(scope);
            }
        }
    }
    Ok(addresses)
}

/// The number of a zone that is given by its number or the interface's name.
fn scope(zone: &str) -> Result<u32, String> {
    if let Ok(number) = zone.parse() {
        return Ok(number);
    }
    // The resolver knows the names of interfaces, but some take them with link-local addresses alone.
    match look_up(&format!("fe80::1%{zone}"), 0).as_deref() {
        Ok([SocketAddr::V6(address), ..]) if address.scope_id() != 0 => Ok(address.scope_id()),
        _ => Err(format!("there is no interface \"{zone}\" here, as the URL's address has it for its zone")),
    }
}

fn look_up(host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    let addresses: Vec<_> = (host, port)
        .to_socket_addrs()
        .map_err(|error| format!("cannot find the address of \"{host}\": {error}"))?
        .collect();
    if addresses.is_empty() {
        return Err(format!("cannot find the address of \"{host}\": the name has none"));
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

/// Prints to standard output, and says whether that went well; `println!` would panic where a pipe
/// was closed.
fn print(text: &str) -> bool {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    if let Err(error) = &written {
        complain(format_args!("cannot write to standard output: {error}"));
    }
    written.is_ok()
}
