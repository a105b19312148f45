// SPDX-License-Identifier: BSD-3-Clause

//! What can be done inside, and what not: each act in a process of its own, as nobody comes out again.

use super::{BUILT_IN, Report, enter};
use crate::back::{Back, Ways};
use crate::name::Name;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::{env, thread};

/// The act that a process is started for, where it has files for that, and whether it goes in first.
const ACT: &str = "LINGERD_TEST_ACT";
const PLACE: &str = "LINGERD_TEST_PLACE";
const GOES_IN: &str = "LINGERD_TEST_GOES_IN";

const REFUSED: i32 = 10;
/// What refuses it is missing here.
const MISSING: i32 = 11;

/// What becomes of an act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    Refused,
    /// The kernel ends the process.
    Ends,
}

use Outcome::{Done, Ends, Refused};

const LINUX: bool = cfg!(target_os = "linux");
const FREEBSD: bool = cfg!(target_os = "freebsd");
const OPENBSD: bool = cfg!(target_os = "openbsd");
const SOLARISH: bool = cfg!(any(target_os = "illumos", target_os = "solaris"));

/// The act, what becomes of it here, and what sees to that.
fn acts() -> Vec<(&'static str, Outcome, &'static str)> {
    let refused_if = |refused: bool| if refused { Refused } else { Done };
    let sandboxed = LINUX || FREEBSD || OPENBSD || SOLARISH;
    vec![
        ("remove its own name", Done, ""),
        ("start a thread", Done, ""),
        ("pass a descriptor on", Done, ""),
        ("call a way back", Done, ""),
        // FreeBSD's is reached by another way, and OpenBSD's is the only one.
        ("reach a syslog daemon", refused_if(FREEBSD || OPENBSD), ""),
        ("become another program", if LINUX { Ends } else { refused_if(sandboxed) }, "seccomp"),
        ("start a process", refused_if(sandboxed), "seccomp"),
        ("open a file", refused_if(LINUX || FREEBSD || OPENBSD), "seccomp"),
        ("remove another name", refused_if(LINUX || FREEBSD || OPENBSD), "Landlock"),
        ("open a network socket", refused_if(LINUX || FREEBSD || SOLARISH), "seccomp"),
        ("connect what it was given", refused_if(LINUX || FREEBSD), "Landlock"),
        ("signal another process", refused_if(LINUX || FREEBSD || OPENBSD), "seccomp"),
    ]
}

#[test]
fn inside_it_serves_and_can_do_no_harm() {
    if let (Ok(act), Some(place)) = (env::var(ACT), env::var_os(PLACE)) {
        std::process::exit(perform(&act, Path::new(&place), env::var_os(GOES_IN).is_some()));
    }
    for (act, expected, by) in acts() {
        assert_eq!(in_a_process(act, false), Some(Done), "to {act}, outside");
        match in_a_process(act, true) {
            Some(outcome) => assert_eq!(outcome, expected, "to {act}; built in: {BUILT_IN}"),
            // Nothing is missing where it was never built in.
            None if !BUILT_IN.contains(by) => println!("{by} is not built in, and it can {act}"),
            None => writeln!(io::stderr(), "skipped: this kernel lacks {by}: {act}").unwrap(),
        }
    }
}

fn in_a_process(act: &str, goes_in: bool) -> Option<Outcome> {
    let place = env::temp_dir().join(format!("lingerd-sandbox-{}", std::process::id()));
    fs::create_dir(&place).unwrap();
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "sandbox::tests::inside_it_serves_and_can_do_no_harm"]).arg("--nocapture");
    command.env(ACT, act).env(PLACE, &place).stdout(Stdio::null());
    if goes_in {
        command.env(GOES_IN, "yes");
    }
    let ended = command.status().unwrap();
    fs::remove_dir_all(&place).unwrap();
    outcome(ended)
}

fn outcome(ended: ExitStatus) -> Option<Outcome> {
    match (ended.code(), ended.signal()) {
        (Some(0), _) => Some(Done),
        (Some(REFUSED), _) => Some(Refused),
        (Some(MISSING), _) => None,
        (None, Some(libc::SIGSYS)) => Some(Ends),
        _ => panic!("{ended:?}"),
    }
}

/// Goes in if it is to, and acts.
fn perform(act: &str, place: &Path, goes_in: bool) -> i32 {
    let of = |name: &str| -> PathBuf { place.join(name) };
    fs::create_dir(of("own")).unwrap();
    fs::write(of("own/name"), "").unwrap();
    fs::write(of("other"), "").unwrap();
    let own = Name::of(&of("own/name")).unwrap();
    let log = UnixDatagram::bind(of("log")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let (link, other_end) = UnixStream::pair().unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let parent = std::os::unix::process::parent_id() as i32;
    let ways = Ways::beside(&of("own/name")).unwrap();
    let way = UnixListener::bind(of("own/name.back.one")).unwrap();

    let report = if goes_in { enter(&[&own], &ways) } else { Report::default() };
    let by = acts().into_iter().find(|(name, ..)| *name == act).unwrap().2;
    if report.missing.iter().any(|missing| missing.starts_with(by) && !by.is_empty()) {
        return MISSING;
    }
    let done = match act {
        "remove its own name" => own.identity().and_then(|identity| own.remove_if(identity)),
        "start a thread" => {
            thread::Builder::new().name("one".into()).spawn(|| ()).map(|thread| thread.join().unwrap())
        }
        "pass a descriptor on" => {
            use crate::fdpass::{Link, send};
            let mut got = Vec::new();
            let sent = send(&link, b"L", &[std::os::fd::AsFd::as_fd(&socket)]);
            sent.and_then(|_| other_end.receive(&mut got)).map(|_| assert_eq!(got.len(), 1))
        }
        "call a way back" => ways.call("one").and_then(|_| way.accept()).map(drop),
        "reach a syslog daemon" => UnixDatagram::unbound().and_then(|to| {
            to.connect(of("log"))?;
            to.send(b"<30>hello")?;
            log.recv(&mut [0; 16]).map(drop)
        }),
        "become another program" => Err(Command::new("true").exec()),
        "start a process" => Command::new("true").status().map(drop),
        "open a file" => File::open(of("other")).map(drop),
        "remove another name" => fs::remove_file(of("other")),
        "open a network socket" => UdpSocket::bind("127.0.0.1:0").map(drop),
        "connect what it was given" => socket.connect(&address.into()),
        "signal another process" => crate::process::kill(parent, libc::SIGCONT),
        other => panic!("{other}"),
    };
    if done.is_ok() { 0 } else { REFUSED }
}
