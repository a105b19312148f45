// SPDX-License-Identifier: BSD-3-Clause

//! The command line: its text, its defaults and its errors. It must do nothing itself.

use crate::rules::linger::Rules;
use crate::rules::time::Span;
use crate::stats::forms::Format;
use getopts::{Matches, ParsingStyle};
use lingerd_platform::backend::{Backend, System};
use lingerd_platform::sandbox;
use lingerd_platform::syslog::Facility;
use lingerd_platform::tcp;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

const DEFAULT_SOCKET: &str = "/var/run/lingerd/lingerd.sock";
const DEFAULT_PIDFILE: &str = "/var/run/lingerd/lingerd.pid";
/// The hand-off socket's mode.
pub const DEFAULT_MODE: u32 = 0o660;
/// Where the system does not tell what the client has acknowledged, a silent one may still be
/// reading what was sent to it, and needs the more time.
const DEFAULT_IDLE: Duration = Duration::from_secs(if tcp::TELLS_ACKNOWLEDGED { 5 } else { 30 });
const DEFAULT_LIMIT: Duration = Duration::from_secs(300);
const DEFAULT_HELD: u64 = 128 << 20;
const DEFAULT_DRAIN: Duration = Duration::from_secs(10);

/// What the command line asks for.
#[derive(Debug)]
pub enum Command {
    /// Be the daemon.
    Serve(Box<Serve>),
    /// -k: stop that daemon, and with -w wait until it has ended.
    Stop(Which, Wait),
    /// -S: print the counters of the daemon with this hand-off socket.
    Counters {
        /// -s
        socket: PathBuf,
        /// -o
        format: Format,
        /// -i: again and again, after so long.
        every: Option<Duration>,
    },
    /// -h, -V: print this.
    Print(String),
}

/// Which daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// -p: the one that holds this pid file.
    PidFile(PathBuf),
    /// -s: the one with this hand-off socket.
    Socket(PathBuf),
}

/// Whether to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    No,
    /// Until it has ended.
    ForItsEnd,
}

/// How to be the daemon.
#[derive(Debug)]
pub struct Serve {
    /// -f
    pub foreground: bool,
    /// -d, -q
    pub level: log::LevelFilter,
    /// -s
    pub socket: PathBuf,
    /// -p; in the foreground there is none unless it is asked for.
    pub pid_file: Option<PathBuf>,
    /// -u
    pub user: Option<String>,
    /// The group after the colon of -u.
    pub user_group: Option<String>,
    /// -g
    pub group: Option<String>,
    /// -m, if it is given; see [`DEFAULT_MODE`].
    pub mode: Option<u32>,
    /// -a
    pub allowed: Option<String>,
    /// -n
    pub capacity: Option<usize>,
    /// -M, in bytes
    pub most_held: u64,
    /// -t, -T, -D
    pub rules: Rules,
    /// -W
    pub drain: Span,
    /// -l
    pub facility: Facility,
    /// -r, or else it takes over from one only that was told to stop.
    pub take_over: bool,
}

fn options() -> getopts::Options {
    let mut options = getopts::Options::new();
    options
        .parsing_style(ParsingStyle::StopAtFirstFree)
        .optflag("f", "", "stay in the foreground and log to standard error")
        .optflag("d", "", "log each connection that ends, too (debug)")
        .optflag("q", "", "log warnings and errors only (quiet)")
        .optopt("s", "", &format!("hand-off socket ({DEFAULT_SOCKET})"), "socket")
        .optopt("p", "", &format!("pid file ({DEFAULT_PIDFILE}; with -f none)"), "file")
        .optopt(
            "u",
            "",
            "user, and group, to run as once the socket is bound: names or numbers",
            "user[:group]",
        )
        .optopt("g", "", "group of the hand-off socket", "group")
        .optopt("m", "", &format!("mode of the hand-off socket ({DEFAULT_MODE:04o})"), "mode")
        .optopt(
            "a",
            "",
            "users and :groups that may hand over, in place of what -g and -m say",
            "who[,who...]",
        )
        .optopt("n", "", "most connections at once (what the descriptor limit allows)", "max")
        .optopt(
            "M",
            "",
            &format!(
                "most megabytes held of responses that are still to be written ({})",
                DEFAULT_HELD >> 20
            ),
            "megabytes",
        )
        .optopt("t", "", &format!("seconds of silence ({})", DEFAULT_IDLE.as_secs()), "idle")
        .optopt("T", "", "seconds while the client keeps sending (as -D)", "max")
        .optopt("D", "", &format!("seconds in all ({})", DEFAULT_LIMIT.as_secs()), "limit")
        .optopt("W", "", &format!("seconds to stop in ({})", DEFAULT_DRAIN.as_secs()), "drain")
        .optopt("l", "", "syslog facility (daemon)", "facility")
        .optflag("r", "", "take over from the running daemon, with all that lingers, if there is one")
        .optflag(
            "k",
            "",
            "stop the running daemon: once its lingers have ended, or -W is over; again: at once",
        )
        .optflag("w", "", "and wait until it has ended")
        .optflag("S", "", "print the running daemon's counters")
        .optopt("o", "", "their format: text, json or prometheus (text)", "format")
        .optopt("i", "", "print them again and again, a line each time", "seconds")
        .optflag("V", "", "print the version, the backend, and what of a sandbox is built in")
        .optflag("h", "", "print this help");
    options
}

const USAGE: &str = "\
usage: lingerd [-fdqrVh] [-s socket] [-p pidfile] [-u user[:group]] [-g group] [-m mode]
               [-a who[,who...]] [-n max] [-M megabytes] [-t idle] [-T max] [-D limit]
               [-W drain] [-l facility]
       lingerd -k [-w] [-p pidfile | -s socket]
       lingerd -S [-s socket] [-o text|json|prometheus] [-i seconds]
";

/// What is wrong with the arguments, in one sentence that names the option.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

impl From<String> for Error {
    fn from(what: String) -> Self {
        Error(what)
    }
}

/// Reads the arguments (without the program's name).
///
/// # Errors
/// [`Error`].
pub fn parse(arguments: &[String]) -> Result<Command, Error> {
    let given = options().parse(arguments).map_err(|e| e.to_string())?;
    if given.opt_present("h") {
        return Ok(Command::Print(options().usage(USAGE.trim_end())));
    }
    if given.opt_present("V") {
        return Ok(Command::Print(format!(
            "lingerd {} ({}; sandbox: {})\n",
            env!("CARGO_PKG_VERSION"),
            System::NAME,
            sandbox::BUILT_IN
        )));
    }
    if let Some(extra) = given.free.first() {
        return Err(Error(format!("'{extra}': lingerd takes options only")));
    }
    let path = |option: &str, default: &str| {
        let path = given.opt_str(option).unwrap_or_else(|| default.to_owned());
        // The daemon leaves its working directory.
        std::path::absolute(Path::new(&path)).map_err(|e| format!("-{option} '{path}': {e}"))
    };
    if given.opt_present("k") {
        only(&given, "-k", &["k", "w", "p", "s"])?;
        let wait = if given.opt_present("w") { Wait::ForItsEnd } else { Wait::No };
        let which = match (given.opt_present("s"), given.opt_present("p")) {
            (true, true) => return Err(Error("-p and -s exclude each other with -k".to_owned())),
            (true, false) => Which::Socket(path("s", DEFAULT_SOCKET)?),
            (false, _) => Which::PidFile(path("p", DEFAULT_PIDFILE)?),
        };
        return Ok(Command::Stop(which, wait));
    }
    if given.opt_present("S") {
        only(&given, "-S", &["S", "s", "o", "i"])?;
        let format = value(&given, "o", Format::from_str)?.unwrap_or_default();
        let every = value(&given, "i", seconds)?;
        if every.is_some() && format == Format::Prometheus {
            return Err(Error("-i does not go with -o prometheus".to_owned()));
        }
        return Ok(Command::Counters { socket: path("s", DEFAULT_SOCKET)?, format, every });
    }
    for (option, command) in [("o", "-S"), ("i", "-S"), ("w", "-k")] {
        if given.opt_present(option) {
            return Err(Error(format!("-{option} goes with {command}")));
        }
    }
    let level = match (given.opt_present("d"), given.opt_present("q")) {
        (true, true) => return Err(Error("-d and -q exclude each other".to_owned())),
        (true, false) => log::LevelFilter::Debug,
        (false, true) => log::LevelFilter::Warn,
        (false, false) => log::LevelFilter::Info,
    };
    let foreground = given.opt_present("f");
    let (user, user_group) = match given.opt_str("u") {
        Some(both) => match both.split_once(':') {
            Some((user, group)) => (Some(user.to_owned()), Some(group.to_owned())),
            None => (Some(both), None),
        },
        None => (None, None),
    };
    let limit = value(&given, "D", seconds)?.unwrap_or(DEFAULT_LIMIT);
    Ok(Command::Serve(Box::new(Serve {
        foreground,
        level,
        socket: path("s", DEFAULT_SOCKET)?,
        pid_file: (!foreground || given.opt_present("p")).then(|| path("p", DEFAULT_PIDFILE)).transpose()?,
        user,
        user_group,
        group: given.opt_str("g"),
        mode: value(&given, "m", mode)?,
        allowed: given.opt_str("a"),
        capacity: value(&given, "n", capacity)?,
        most_held: value(&given, "M", megabytes)?.unwrap_or(DEFAULT_HELD),
        rules: Rules {
            idle: Span::at_least(value(&given, "t", seconds)?.unwrap_or(DEFAULT_IDLE)),
            // It counts from later on than -D, so that it ends nobody unless it is given.
            max: Span::at_least(value(&given, "T", seconds)?.unwrap_or(limit)),
            limit: Span::at_least(limit),
        },
        drain: Span::at_least(value(&given, "W", seconds)?.unwrap_or(DEFAULT_DRAIN)),
        facility: value(&given, "l", facility)?.unwrap_or(Facility::LOG_DAEMON),
        take_over: given.opt_present("r"),
    })))
}

/// Refuses every option given but those in `allowed`.
fn only(given: &Matches, command: &str, allowed: &[&str]) -> Result<(), String> {
    for option in [
        "f", "d", "q", "s", "p", "u", "g", "m", "a", "n", "M", "t", "T", "D", "W", "l", "r", "k", "w", "S",
        "o", "i",
    ] {
        if given.opt_present(option) && !allowed.contains(&option) {
            return Err(format!("-{option} does not go with {command}"));
        }
    }
    Ok(())
}

/// The value of `option`, if it is given, as `parse` reads it.
fn value<T, E: Display>(
    given: &Matches,
    option: &str,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<Option<T>, String> {
    given.opt_str(option).map(|text| parse(&text).map_err(|e| format!("-{option} '{text}': {e}"))).transpose()
}

fn mode(text: &str) -> Result<u32, &'static str> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 && mode & 0o600 == 0o600 => Ok(mode),
        Ok(mode) if mode <= 0o777 => Err("the daemon's own user needs at least 0600"),
        _ => Err("not an octal mode such as 0660"),
    }
}

fn capacity(text: &str) -> Result<usize, &'static str> {
    match text.parse() {
        Ok(0) | Err(_) => Err("not a number from 1 up"),
        Ok(capacity) => Ok(capacity),
    }
}

/// Megabytes, in bytes.
fn megabytes(text: &str) -> Result<u64, &'static str> {
    match text.parse::<u64>() {
        Ok(megabytes @ 1..=1_000_000) => Ok(megabytes << 20),
        _ => Err("not a number of megabytes from 1 to a million"),
    }
}

/// Seconds, perhaps with a fraction; one millisecond to a year.
fn seconds(text: &str) -> Result<Duration, &'static str> {
    const YEAR: f64 = 365.0 * 86_400.0;
    match text.parse::<f64>() {
        Ok(seconds) if (0.001..=YEAR).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("not a number of seconds from 0.001 to a year"),
    }
}

fn facility(text: &str) -> Result<Facility, &'static str> {
    text.parse().map_err(|()| "no syslog facility; daemon and local0 to local7 are some")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Command, String> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        parse(&words).map_err(|e| e.to_string())
    }

    fn serve(line: &str) -> Serve {
        match read(line) {
            Ok(Command::Serve(serve)) => *serve,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_defaults_are_the_documented_ones() {
        let serve = serve("");
        assert_eq!(serve.socket, Path::new("/var/run/lingerd/lingerd.sock"));
        assert_eq!(serve.pid_file.unwrap(), Path::new("/var/run/lingerd/lingerd.pid"));
        assert_eq!((serve.mode, DEFAULT_MODE, serve.capacity), (None, 0o660, None));
        let idle = if tcp::TELLS_ACKNOWLEDGED { 5 } else { 30 };
        assert_eq!(serve.rules.idle, Span::at_least(Duration::from_secs(idle)));
        assert_eq!(serve.rules.max, Span::at_least(Duration::from_secs(300)));
        assert_eq!(serve.rules.limit, Span::at_least(Duration::from_secs(300)));
        assert_eq!(serve.drain, Span::at_least(Duration::from_secs(10)));
        assert_eq!(serve.most_held, 128 * 1_048_576);
    }

    #[test]
    fn a_client_that_keeps_sending_has_as_long_as_the_limit_unless_told_otherwise() {
        assert_eq!(serve("-D 600").rules.max, Span::at_least(Duration::from_secs(600)));
        assert_eq!(serve("-D 600 -T 30").rules.max, Span::at_least(Duration::from_secs(30)));
    }

    #[test]
    fn values_and_flags_are_read_as_getopt_reads_them() {
        let serve = serve(
            "-fd -n5 -M 7 -t 0.25 -T 2 -D3 -W 1.5 -u www:web -g adm -m 0666 -a x,:y -s rel.sock -l local3",
        );
        assert!(serve.foreground);
        assert_eq!(serve.level, log::LevelFilter::Debug);
        assert_eq!(serve.pid_file, None, "none in the foreground");
        assert_eq!((serve.capacity, serve.most_held), (Some(5), 7 * 1_048_576));
        assert_eq!(serve.rules.idle, Span::at_least(Duration::from_millis(250)));
        assert_eq!(serve.rules.limit, Span::at_least(Duration::from_secs(3)));
        assert_eq!(serve.drain, Span::at_least(Duration::from_millis(1_500)));
        assert_eq!((serve.user.as_deref(), serve.user_group.as_deref()), (Some("www"), Some("web")));
        assert_eq!((serve.group.as_deref(), serve.mode), (Some("adm"), Some(0o666)));
        assert_eq!(serve.allowed.as_deref(), Some("x,:y"));
        assert!(serve.socket.is_absolute() && serve.socket.ends_with("rel.sock"));
        assert!(matches!(serve.facility, Facility::LOG_LOCAL3));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, part) in [
            ("-x", "x"),
            ("-n 0", "-n '0'"),
            ("-n many", "-n 'many'"),
            ("-M 0", "-M '0'"),
            ("-M 128M", "-M '128M'"),
            ("-k -M 1", "-M"),
            ("-t -1", "-t"),
            ("-t 0", "-t '0'"),
            ("-t nan", "-t 'nan'"),
            ("-T 1e99", "-T '1e99'"),
            ("-m 888", "-m '888'"),
            ("-m 0070", "0600"),
            ("-l nowhere", "-l 'nowhere'"),
            ("-o json", "-S"),
            ("-i 5", "-S"),
            ("-k -i 5", "-i"),
            ("-S -i 0", "-i '0'"),
            ("-S -i 5 -o prometheus", "-i"),
            ("-w", "-k"),
            ("-S -w", "-w"),
            ("-k -W 5", "-W"),
            ("-W 0", "-W '0'"),
            ("-S -o xml", "xml"),
            ("-S -n 5", "-n"),
            ("-S -a root", "-a"),
            ("-k -s x -p y", "-s"),
            ("-k -r", "-r"),
            ("-S -r", "-r"),
            ("-k -S", "-S"),
            ("-dq", "-q"),
            ("-t", "t"),
            ("-t 1 -t 2", "t"),
            ("extra", "extra"),
        ] {
            let error = read(line).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
    }

    #[test]
    fn help_shows_every_option_of_the_usage() {
        let Ok(Command::Print(help)) = read("-h") else { panic!("no help") };
        for option in "fdqVhspugmanMtTDWlrkwSoi".chars() {
            assert!(help.contains(&format!("\n    -{option} ")), "-{option} in:\n{help}");
        }
    }
}
