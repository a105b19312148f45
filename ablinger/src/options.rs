// SPDX-License-Identifier: BSD-3-Clause

//! The command line: options and the URL.
//!
//! Everything a user can get wrong here is said with the option's name and the value given. Must
//! not open, resolve or connect anything.

use http::Uri;
use std::ffi::OsString;
use std::fmt;
use std::time::Duration;

/// What is printed after a usage error.
pub const USAGE: &str = "\
usage: ablinger [-Vh] [-c concurrency] [-n requests | -t seconds]
                [-l linger_ms] [-s stddev_ms] [-o text|json] URL
";

/// What -h prints.
pub const HELP: &str = "\
usage: ablinger [-Vh] [-c concurrency] [-n requests | -t seconds]
                [-l linger_ms] [-s stddev_ms] [-o text|json] URL

Makes HTTP requests and keeps each socket open for a while after the response has ended.

  -c concurrency  clients at once (1)
  -n requests     stop when this many responses have ended (1)
  -t seconds      stop after this time
  -l linger_ms    how long each socket is held after its response (1000)
  -s stddev_ms    standard deviation of that time (0)
  -o text|json    how the report is printed (text)
  -V              print the version
  -h              print this help
";

/// More clients than any system has descriptors for; only there to keep arithmetic in range.
const MAX_CLIENTS: u32 = 10_000_000;

/// The longest -t, some 31 years; only there to keep arithmetic in range.
const MAX_SECONDS: f64 = 1e9;

/// Where a URL without a port leads.
const DEFAULT_PORT: u16 = 80;

/// What the command line asks for.
#[derive(Debug, PartialEq)]
pub enum Command {
    /// A run.
    Run(Options),
    /// -h
    Help,
    /// -V
    Version,
}

/// A run, as asked for.
#[derive(Debug, PartialEq)]
pub struct Options {
    /// -c: how many clients.
    pub concurrency: u32,
    /// -n or -t.
    pub stop: Stop,
    /// -l, in milliseconds.
    pub linger_ms: u32,
    /// -s, in milliseconds.
    pub stddev_ms: u32,
    /// -o
    pub format: Format,
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

/// How the report is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One object, for programs.
    Json,
}

/// A URL, taken apart as far as a client needs it.
#[derive(Debug, PartialEq, Eq)]
pub struct Target {
    /// As it was given.
    pub url: String,
    /// What to resolve: a name or an address, an IPv6 one without its brackets but with its zone.
    pub host: String,
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
    for (option, hint) in
        [("c", "concurrency"), ("n", "requests"), ("t", "seconds"), ("l", "ms"), ("s", "ms"), ("o", "format")]
    {
        known.optopt(option, "", "", hint);
    }
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

    let concurrency = number(&given, "c", 1, u64::from(MAX_CLIENTS))?.map_or(1, |n| n as u32);
    let stop = match (number(&given, "n", 1, u64::MAX)?, seconds(&given)?) {
        (Some(_), Some(_)) => {
            return wrong("-n and -t exclude each other: stop after a number or after a time".into());
        }
        (None, Some(time)) => Stop::After(time),
        (requests, None) => Stop::Requests(requests.unwrap_or(1)),
    };
    let linger_ms = number(&given, "l", 0, u64::from(u32::MAX))?.map_or(1000, |ms| ms as u32);
    let stddev_ms = number(&given, "s", 0, u64::from(u32::MAX))?.map_or(0, |ms| ms as u32);
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
    Ok(Command::Run(Options { concurrency, stop, linger_ms, stddev_ms, format, target }))
}

/// The value of `-option`, a whole number from `min` to `max`; `None` when it was not given.
fn number(given: &getopts::Matches, option: &str, min: u64, max: u64) -> Result<Option<u64>, UsageError> {
    let Some(text) = given.opt_str(option) else { return Ok(None) };
    match text.parse() {
        Ok(value) if (min..=max).contains(&value) => Ok(Some(value)),
        _ => wrong(format!("-{option} \"{text}\": must be a whole number from {min} to {max}")),
    }
}

/// The value of -t.
fn seconds(given: &getopts::Matches) -> Result<Option<Duration>, UsageError> {
    let Some(text) = given.opt_str("t") else { return Ok(None) };
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= MAX_SECONDS => Ok(Some(Duration::from_secs_f64(value))),
        _ => wrong(format!("-t \"{text}\": must be a number of seconds above 0, for example 30 or 0.5")),
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
        host: match zone {
            Some(zone) => format!("{name}%{zone}"),
            None => name.to_owned(),
        },
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
            Ok(Command::Run(options)) => options,
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
    }

    #[test]
    fn every_option() {
        let options = run("-c 10000 -n 5 -l 0 -s 7 -o json http://h/");
        assert_eq!(options.concurrency, 10_000);
        assert_eq!(options.stop, Stop::Requests(5));
        assert_eq!((options.linger_ms, options.stddev_ms), (0, 7));
        assert_eq!(options.format, Format::Json);
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
            ("http://[fe80::1%25eth0]:8080/", "fe80::1%eth0", 8080, "[fe80::1]:8080", "/"),
            ("http://[fe80::1%25250]/", "fe80::1%250", 80, "[fe80::1]", "/"),
            ("http://[fe80::1%lo0]/a", "fe80::1%lo0", 80, "[fe80::1]", "/a"),
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
