// SPDX-License-Identifier: BSD-3-Clause

//! The command line: options and the URL.
//!
//! Everything a user can get wrong here is said with the option's name and the value given. Must
//! not open, resolve or connect anything.

use http::Uri;
use std::ffi::OsString;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// What is printed after a usage error.
pub const USAGE: &str = "\
usage: ablinger [-Vh] [-c concurrency] [-n requests | -t seconds] [-r rate]
                [-l linger_ms] [-s stddev_ms] [-B bytes] [-k requests] [-p pause_ms]
                [-o text|json] [-g file] URL
       ablinger -P [-c concurrency] [-t seconds] [-l linger_ms] [-s stddev_ms]
                [-B bytes] [-p pause_ms] [-o text|json] [-g file] URL
";

/// What -h prints below that.
const OPTIONS: &str = "
Makes HTTP requests and keeps each socket open for a while after the response has ended.

  -c concurrency  clients at once (1; with -P 200)
  -n requests     stop when this many responses have ended (1)
  -t seconds      stop after this time (with -P for each of four parts, 5)
  -r rate         so many requests are due a second, whether or not a client is free
  -l linger_ms    how long each socket is held after its last response (1000)
  -s stddev_ms    standard deviation of that time (0)
  -B bytes        each client reads so many bytes a second (as fast as it can; with -P 50000)
  -k requests     requests on each connection (1)
  -p pause_ms     pause between a response and the client's next request (0; with -P 1000)
  -P              profile: say which of its clients the server waits for, and what helps
  -o text|json    how the report is printed (text)
  -g file         plot the latencies into this file, as SVG
  -V              print the version
  -h              print this help
";

/// What -h prints.
pub fn help() -> String {
    format!("{USAGE}{OPTIONS}")
}

/// More clients than any system has descriptors for; only there to keep arithmetic in range.
const MAX_CLIENTS: u32 = 10_000_000;

/// The shortest and the longest -t, some 31 years; only there to keep arithmetic in range.
const SECONDS: RangeInclusive<f64> = 0.001..=1e9;

/// The least and the greatest -r: one in some minutes, and more than a thread can send.
const RATES: RangeInclusive<f64> = 0.001..=1e6;

/// What -P takes where it is not told.
mod profile {
    /// More than servers with a process per connection have of these.
    pub const CLIENTS: u64 = 200;
    /// Of each part.
    pub const SECONDS: f64 = 5.0;
    /// As a busy mobile network has it.
    pub const BYTES: u64 = 50_000;
    pub const PAUSE_MS: u64 = 1000;
}

/// Where a URL without a port leads.
const DEFAULT_PORT: u16 = 80;

/// What the command line asks for.
#[derive(Debug, PartialEq)]
pub enum Command {
    /// A run.
    Run(Box<Options>),
    /// -h
    Help,
    /// -V
    Version,
}

/// A run, as asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// -c: how many clients.
    pub concurrency: u32,
    /// -n or -t.
    pub stop: Stop,
    /// -r: requests due a second.
    pub rate: Option<f64>,
    /// -l, in milliseconds.
    pub linger_ms: u32,
    /// -s, in milliseconds.
    pub stddev_ms: u32,
    /// -B: bytes that a client reads a second.
    pub read_rate: Option<u32>,
    /// -k: requests on a connection.
    pub keep: u32,
    /// -p, in milliseconds.
    pub pause_ms: u32,
    /// -P
    pub profile: bool,
    /// -o
    pub format: Format,
    /// -g
    pub plot: Option<PathBuf>,
    /// The URL, taken apart.
    pub target: Target,
}

/// When a run ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stop {
    /// When so many responses have ended, well or not.
    Requests(u64),
    /// After so long.
    After(Duration),
}

impl Stop {
    /// The same, but at `time` at the latest.
    pub fn at_most(self, time: Duration) -> Stop {
        match self {
            Stop::Requests(n) => Stop::Requests(n),
            Stop::After(after) => Stop::After(after.min(time)),
        }
    }
}

/// How the report is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One object, for programs.
    Json,
}

/// A URL, taken apart as far as a client needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// As it was given.
    pub url: String,
    /// What to resolve: a name or an address, an IPv6 one without its brackets.
    pub host: String,
    /// The zone of an IPv6 address (RFC 4007 section 11): the name or number of an interface.
    pub zone: Option<String>,
    /// Where to connect to.
    pub port: u16,
    /// What the Host field says: the host as the URL writes it without a zone, and the port unless
    /// it is the default.
    pub authority: String,
    /// Path and query, as the request line has them; never empty.
    pub path: String,
}

/// A mistake on the command line, in words for the user.
#[derive(Debug, PartialEq, Eq)]
pub struct UsageError(String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn wrong<T>(message: String) -> Result<T, UsageError> {
    Err(UsageError(message))
}

/// Reads the command line, without the program's name.
pub fn parse(args: impl Iterator<Item = OsString>) -> Result<Command, UsageError> {
    let mut known = getopts::Options::new();
    for (option, hint) in [
        ("c", "concurrency"),
        ("n", "requests"),
        ("t", "seconds"),
        ("r", "rate"),
        ("l", "ms"),
        ("s", "ms"),
        ("B", "bytes"),
        ("k", "requests"),
        ("p", "ms"),
        ("o", "format"),
        ("g", "file"),
    ] {
        known.optopt(option, "", "", hint);
    }
    known.optflag("P", "", "");
    known.optflag("V", "", "");
    known.optflag("h", "", "");
    let given = known.parse(args).map_err(|fail| {
        use getopts::Fail::*;
        UsageError(match fail {
            ArgumentMissing(option) => format!("-{option} needs a value"),
            UnrecognizedOption(option) => format!("unknown option -{option}"),
            OptionDuplicated(option) => format!("-{option} is given more than once"),
            OptionMissing(option) => format!("-{option} is missing"),
            UnexpectedArgument(option) => format!("-{option} takes no value"),
        })
    })?;
    if given.opt_present("h") {
        return Ok(Command::Help);
    }
    if given.opt_present("V") {
        return Ok(Command::Version);
    }

    let profile = given.opt_present("P");
    for (excluded, by, why) in [
        ("n", "P", "each of a profile's parts takes -t seconds"),
        ("r", "P", "a profile finds the rates itself"),
        ("k", "P", "a profile has the clients of all kinds"),
        ("p", "r", "the rate says when requests are due"),
        ("n", "t", "stop after a number or after a time"),
    ] {
        if given.opt_present(excluded) && given.opt_present(by) {
            return wrong(format!("-{excluded} and -{by} exclude each other: {why}"));
        }
    }
    let u32_max = u64::from(u32::MAX);
    // What is taken where it was not given, by a profile and by others.
    let value = |option, min, max, profiles: u64, others: u64| {
        let default = if profile { profiles } else { others };
        // It fits, as none of the greatest is greater.
        number(&given, option, min, max).map(|value| value.unwrap_or(default) as u32)
    };
    // Who does not wait has nothing to show to a profile.
    let least_wait = u64::from(profile);
    let stop = match real(&given, "t", "a number of seconds", SECONDS)? {
        Some(seconds) => Stop::After(Duration::from_secs_f64(seconds)),
        None if profile => Stop::After(Duration::from_secs_f64(profile::SECONDS)),
        None => Stop::Requests(number(&given, "n", 1, u64::MAX)?.unwrap_or(1)),
    };
    let read_rate = match value("B", 1, u32_max, profile::BYTES, 0)? {
        0 => None,
        bytes => Some(bytes),
    };
    let format = match given.opt_str("o").as_deref() {
        None | Some("text") => Format::Text,
        Some("json") => Format::Json,
        Some(other) => return wrong(format!("-o \"{other}\": must be text or json")),
    };
    let target = match given.free.as_slice() {
        [url] => target(url)?,
        [] => return wrong("the URL is missing".into()),
        [_, second, ..] => return wrong(format!("one URL only: \"{second}\" is too many")),
    };
    Ok(Command::Run(Box::new(Options {
        concurrency: value("c", 1, u64::from(MAX_CLIENTS), profile::CLIENTS, 1)?,
        stop,
        rate: real(&given, "r", "a number of requests a second", RATES)?,
        linger_ms: value("l", least_wait, u32_max, 1000, 1000)?,
        stddev_ms: value("s", 0, u32_max, 0, 0)?,
        read_rate,
        keep: value("k", 1, u32_max, 1, 1)?,
        pause_ms: value("p", least_wait, u32_max, profile::PAUSE_MS, 0)?,
        profile,
        format,
        plot: given.opt_str("g").map(PathBuf::from),
        target,
    })))
}

/// The value of `-option`, a whole number from `min` to `max`; `None` when it was not given.
fn number(given: &getopts::Matches, option: &str, min: u64, max: u64) -> Result<Option<u64>, UsageError> {
    let Some(text) = given.opt_str(option) else { return Ok(None) };
    match text.parse() {
        Ok(value) if (min..=max).contains(&value) => Ok(Some(value)),
        _ => wrong(format!("-{option} \"{text}\": must be a whole number from {min} to {max}")),
    }
}

/// The value of `-option`, which is `what` and in that range; `None` when it was not given.
fn real(
    given: &getopts::Matches,
    option: &str,
    what: &str,
    range: RangeInclusive<f64>,
) -> Result<Option<f64>, UsageError> {
    let Some(text) = given.opt_str(option) else { return Ok(None) };
    match text.parse::<f64>() {
        Ok(value) if range.contains(&value) => Ok(Some(value)),
        _ => {
            let (least, most) = range.into_inner();
            wrong(format!(
                "-{option} \"{text}\": must be {what} from {least} to {most}, for example 30 or 0.5"
            ))
        }
    }
}

/// Takes `url` apart.
fn target(url: &str) -> Result<Target, UsageError> {
    // http::Uri takes what a request line may hold, a bare path or a bare host among it; a user
    // who left the scheme out is told so in these words rather than in those of a grammar.
    let scheme = url.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
    match scheme.as_deref() {
        Some("http") => {}
        Some("https") => return wrong(format!("\"{url}\": TLS is not supported, the URL must be http://")),
        _ => return wrong(format!("\"{url}\": the URL must begin with http://")),
    }
    let uri: Uri = url.parse().map_err(|error| UsageError(format!("\"{url}\": {error}")))?;
    let Some(authority) = uri.authority().filter(|authority| !authority.host().is_empty()) else {
        return wrong(format!("\"{url}\": the URL names no host"));
    };
    if authority.as_str().contains('@') {
        return wrong(format!("\"{url}\": a user or password in the URL is not supported"));
    }
    // An address with its zone (RFC 6874) is written without it to the server, whose name it is not.
    let host = authority.host();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let (name, zone) = match bare.split_once('%') {
        Some((_, "" | "25")) => return wrong(format!("\"{url}\": the address has an empty zone")),
        Some((address, zone)) => (address, Some(zone.strip_prefix("25").unwrap_or(zone))),
        None => (bare, None),
    };
    // Authority's own port() answers None for no port and for a wrong one alike. host() is a
    // prefix of the authority here, since there is no user in it.
    let port = match authority.as_str().strip_prefix(host).unwrap_or_default() {
        "" | ":" => DEFAULT_PORT, // RFC 3986 section 6.2.3
        rest => match rest.strip_prefix(':').map(str::parse) {
            Some(Ok(port)) if port != 0 => port,
            _ => return wrong(format!("\"{url}\": the port must be a number from 1 to 65535")),
        },
    };
    Ok(Target {
        url: url.to_owned(),
        host: name.to_owned(),
        zone: zone.map(str::to_owned),
        port,
        authority: {
            let host = if host.starts_with('[') { format!("[{name}]") } else { name.to_owned() };
            if port == DEFAULT_PORT { host } else { format!("{host}:{port}") }
        },
        path: match uri.query() {
            Some(query) => format!("{}?{query}", uri.path()),
            None => uri.path().to_owned(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(line: &str) -> Result<Command, UsageError> {
        parse(line.split_whitespace().map(OsString::from))
    }

    fn run(line: &str) -> Options {
        match parse_line(line) {
            Ok(Command::Run(options)) => *options,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn defaults() {
        let options = run("http://h/");
        assert_eq!(options.concurrency, 1);
        assert_eq!(options.stop, Stop::Requests(1));
        assert_eq!((options.linger_ms, options.stddev_ms), (1000, 0));
        assert_eq!(options.format, Format::Text);
        assert_eq!((options.rate, options.read_rate, options.keep, options.pause_ms), (None, None, 1, 0));
        assert!(!options.profile && options.plot.is_none());
    }

    #[test]
    fn a_profile_has_defaults_of_its_own() {
        let options = run("-P http://h/");
        assert!(options.profile);
        assert_eq!((options.concurrency, options.linger_ms, options.pause_ms), (200, 1000, 1000));
        assert_eq!((options.read_rate, options.stop), (Some(50_000), Stop::After(Duration::from_secs(5))));
        let options = run("-P -c 9 -t 1 -l 10 -p 20 -B 30 http://h/");
        assert_eq!((options.concurrency, options.linger_ms, options.pause_ms), (9, 10, 20));
        assert_eq!((options.read_rate, options.stop), (Some(30), Stop::After(Duration::from_secs(1))));
    }

    #[test]
    fn every_option() {
        let options = run("-c 10000 -n 5 -l 0 -s 7 -o json -r 2.5 -B 50000 -k 3 -g a.svg http://h/");
        assert_eq!(options.concurrency, 10_000);
        assert_eq!(options.stop, Stop::Requests(5));
        assert_eq!((options.linger_ms, options.stddev_ms), (0, 7));
        assert_eq!(options.format, Format::Json);
        assert_eq!((options.rate, options.read_rate, options.keep), (Some(2.5), Some(50_000), 3));
        assert_eq!(options.plot, Some(PathBuf::from("a.svg")));
        assert_eq!(run("-k 2 -p 20 http://h/").pause_ms, 20);
        assert_eq!(run("-t 0.5 http://h/").stop, Stop::After(Duration::from_millis(500)));
        assert_eq!(run("-t30 http://h/").stop, Stop::After(Duration::from_secs(30)));
        assert_eq!(parse_line("-h"), Ok(Command::Help));
        assert_eq!(parse_line("-V"), Ok(Command::Version));
    }

    #[test]
    fn mistakes_are_named() {
        for (line, named) in [
            ("", "URL"),
            ("http://a/ http://b/", "http://b/"),
            ("-x http://h/", "-x"),
            ("-c", "-c"),
            ("-c 0 http://h/", "-c"),
            ("-c -1 http://h/", "-c"),
            ("-c many http://h/", "\"many\""),
            ("-c 1 -c 2 http://h/", "-c"),
            ("-c 99999999999999999999 http://h/", "-c"),
            ("-n 0 http://h/", "-n"),
            ("-n 1.5 http://h/", "-n"),
            ("-t 0 http://h/", "-t"),
            ("-t -1 http://h/", "-t"),
            ("-t nan http://h/", "-t"),
            ("-t inf http://h/", "-t"),
            ("-t 1e300 http://h/", "-t"),
            ("-n 1 -t 1 http://h/", "-n and -t"),
            ("-r 0 http://h/", "-r"),
            ("-r 1e7 http://h/", "-r"),
            ("-r 1e-300 http://h/", "0.001"),
            ("-B 0 http://h/", "-B"),
            ("-k 0 http://h/", "-k"),
            ("-k 2 -p 5 -r 1 http://h/", "-p and -r"),
            ("-P -l 0 http://h/", "-l"),
            ("-P -p 0 http://h/", "-p"),
            ("-P -n 1 http://h/", "-n and -P"),
            ("-P -r 1 http://h/", "-r and -P"),
            ("-P -k 2 http://h/", "-k and -P"),
            ("-g", "-g"),
            ("-l 4294967296 http://h/", "-l"),
            ("-s x http://h/", "-s"),
            ("-o xml http://h/", "-o"),
        ] {
            let error = parse_line(line).expect_err(line).to_string();
            assert!(error.contains(named), "{line}: {error}");
        }
    }

    #[test]
    fn urls_taken_apart() {
        for (url, host, port, authority, path) in [
            ("http://h", "h", 80, "h", "/"),
            ("http://h/", "h", 80, "h", "/"),
            ("HTTP://h/", "h", 80, "h", "/"),
            ("http://h:/", "h", 80, "h", "/"),
            ("http://h:80/", "h", 80, "h", "/"),
            ("http://h:8080/a/b?c=d&e", "h", 8080, "h:8080", "/a/b?c=d&e"),
            ("http://h?q", "h", 80, "h", "/?q"),
            ("http://h/a#part", "h", 80, "h", "/a"),
            ("http://127.0.0.1:81/x", "127.0.0.1", 81, "127.0.0.1:81", "/x"),
            ("http://[::1]/", "::1", 80, "[::1]", "/"),
            ("http://[::1]:8080/", "::1", 8080, "[::1]:8080", "/"),
            ("http://[::1]:/", "::1", 80, "[::1]", "/"),
            ("http://[fe80::1%25eth0]:8080/", "fe80::1", 8080, "[fe80::1]:8080", "/"),
        ] {
            let target = target(url).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(
                (target.host.as_str(), target.port, target.authority.as_str(), target.path.as_str()),
                (host, port, authority, path),
                "{url}"
            );
            assert_eq!(target.url, url);
        }
    }

    #[test]
    fn zones() {
        for (url, zone) in [
            ("http://[::1]/", None),
            ("http://[fe80::1%25eth0]:8080/", Some("eth0")),
            ("http://[fe80::1%25250]/", Some("250")),
            ("http://[fe80::1%lo0]/", Some("lo0")), // as curl takes it, too
        ] {
            assert_eq!(target(url).unwrap().zone.as_deref(), zone, "{url}");
        }
    }

    #[test]
    fn urls_refused() {
        for (url, named) in [
            ("h", "http://"),
            ("localhost:8080/", "http://"),
            ("/path", "http://"),
            ("ftp://h/", "http://"),
            ("https://h/", "TLS"),
            ("http://", "http://"),
            ("http:///path", "http:///path"),
            ("http://h:0/", "port"),
            ("http://h:65536/", "port"),
            ("http://h:x/", "http://h:x/"),
            ("http://u:p@h/", "password"),
            ("http://[::1/", "http://[::1/"),
            ("http://[::1%25]/", "zone"),
            ("http://h/a b", "http://h/a b"),
            ("http://h/\r\nX: y", "http://h/"),
        ] {
            let error = target(url).expect_err(url).to_string();
            assert!(error.contains(named), "{url}: {error}");
        }
    }
}
