// SPDX-License-Identifier: BSD-3-Clause

//! The programs in lingerd-protocol(7) that are more, or less, than a sender, and the server in lingerd(3): taken out of the
//! manual and run as whoever copies them would. The senders are in tests/conformance.

use crate::mdoc::Manual;
use lingerd_platform::process;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use support::built::python;
use support::daemon::{Daemon, Site, run};
use support::{PATIENCE, compile, libraries, tcp, wait_until};

/// A running one.
struct Server {
    process: Child,
    port: u16,
}

impl Server {
    fn start(command: &mut Command) -> Self {
        // In a group of its own, as it may have processes of its own.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().parse().unwrap_or_else(|_| panic!("no port: '{line}'"));
        Server { process, port }
    }

    /// A client that has had its response, to the end, and does not close.
    fn exchange(&self) -> TcpStream {
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(b"hello?\n").unwrap();
        let mut response = Vec::new();
        client.read_to_end(&mut response).unwrap();
        assert_eq!(response, b"hello\n");
        client
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = process::kill(-(self.process.id() as i32), libc::SIGKILL);
        let _ = self.process.wait();
    }
}

/// Writes the display of a subsection to a file.
fn extract(site: &Site, section: &str, name: &str) -> PathBuf {
    let path = site.path(name);
    fs::write(&path, Manual::read("lingerd-protocol.7").display(section)).unwrap();
    path
}

#[test]
fn who_asks_in_python_is_told_what_lingerd_prints() {
    let Some(python) = python() else { return };
    let daemon = Daemon::start(&[]);
    let program = extract(&daemon.site, "ASKING FOR THE COUNTERS", "ask.py");
    let said = run(Command::new(python).arg(program).arg(daemon.site.second()));
    assert_eq!((said.code, said.stderr), (Some(0), String::new()));
    let without_time = |text: &str| {
        let lines = text.lines().filter(|line| !line.starts_with("lingerd_uptime_seconds "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(without_time(&said.stdout), without_time(&daemon.site.ask("prometheus").stdout));
    daemon.finish("");
}

/// The server in lingerd(3), with the library of this checkout; `None` when the test is to be skipped.
fn server_with_the_library(site: &Site, name: &str) -> Option<Command> {
    let source = site.path("library.c");
    fs::write(&source, Manual::read("lingerd.3").display("EXAMPLES")).unwrap();
    let mut arguments = vec![source.to_str().unwrap(), "senders/c/lingerd.c", "apache-1.3/ap_lingerd.c"];
    arguments.extend(["-Isenders/c", "-D_FILE_OFFSET_BITS=64", "-pthread"]);
    arguments.extend(libraries());
    compile(name, &arguments).map(Command::new)
}

#[test]
fn the_server_with_the_library_does_what_its_manual_says() {
    let site = Site::new();
    let Some(mut server) = server_with_the_library(&site, "library-lingers") else { return };
    let server = Server::start(server.arg(site.socket()));
    let leaving = || server.exchange().shutdown(Shutdown::Write).unwrap();
    // It does not hand over one that has left already, so that only who stays shows that it has found the daemon;
    // and on one who stays it lingers itself until then, for two seconds.
    let found = |daemon: &Daemon| {
        let mut held = Vec::new();
        wait_until("the daemon is found", || {
            held.push(server.exchange());
            leaving(); // and is done with the one before
            daemon.counters()["handed_over"] > 0
        });
        held.extend((0..10).map(|_| server.exchange()));
        wait_until("all of them linger", || daemon.counters()["lingering"] >= 10);
        held
    };
    leaving();
    let daemon = site.start(&[]);
    let held = found(&daemon);
    daemon.freeze();
    let also = server.exchange();
    leaving();
    daemon.thaw();
    drop((held, also));
    daemon.wait_for("lingering=0 senders=1 rejected=0 protocol_errors=0");
    daemon.kill();
    leaving();
    found(&site.start(&[]));
}

#[test]
fn the_server_with_the_library_is_free_whoever_reads() {
    let site = Site::new();
    let Some(mut server) = server_with_the_library(&site, "library-writes") else { return };
    let server = Server::start(server.arg(site.socket()).arg("1000000"));
    let expected = "hello\n".repeat(1_000_000).into_bytes();
    let client = || {
        let mut client = tcp::connect_with_window((Ipv4Addr::LOCALHOST, server.port).into(), 4096).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(b"hello?\n").unwrap();
        client
    };
    let assert_whole = |mut client: TcpStream| assert!(tcp::read_to_end(&mut client) == expected);
    // Without a daemon it writes all of it itself, and then lingers.
    let mut first = client();
    let mut all = vec![0; expected.len()];
    first.read_exact(&mut all).unwrap();
    assert!(all == expected && first.read(&mut [0]).unwrap() == 0);
    drop(first);
    let daemon = site.start(&[]);
    wait_until("the daemon is found", || {
        assert_whole(client());
        daemon.counters()["spooled"] > 0
    });
    let before = daemon.counters()["spooled"];
    let clients: Vec<_> = (0..10).map(|_| client()).collect();
    daemon.wait_for(&format!("spooling=10 spooled={}", before + 10));
    clients.into_iter().for_each(assert_whole);
    // One that stands still has said that it takes one, and is not waited for with the next.
    daemon.wait_for("spooling=0");
    daemon.freeze();
    let first = client();
    assert_whole(client());
    daemon.thaw();
    assert_whole(first);
    daemon.wait_for("spooling=0 broken=0 rejected=0 protocol_errors=0 cut_short=0");
}

#[test]
fn the_sender_of_a_file_in_python_is_free_whoever_reads_it() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let program = extract(&site, "A file, in Python", "files.py");
    let content: Vec<u8> = (0..5_000_000).map(|n| (n % 251) as u8).collect();
    fs::write(site.path("content"), &content).unwrap();
    let server = Server::start(Command::new(python).arg(program).args([site.socket(), site.path("content")]));
    // It reads only what it is told to.
    let client = || {
        let address = (Ipv4Addr::LOCALHOST, server.port).into();
        let mut client = tcp::connect_with_window(address, 4096).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(b"file?\n").unwrap();
        client
    };
    let read_all = |mut client: TcpStream| {
        let mut all = Vec::new();
        client.read_to_end(&mut all).map(|_| all == content)
    };

    // Without a daemon it writes all of it itself, and from then on a daemon that comes is found.
    assert!(read_all(client()).unwrap());
    let daemon = site.start(&[]);
    wait_until("the daemon is found", || {
        assert!(read_all(client()).unwrap());
        daemon.counters()["spooled"] > 0
    });
    let before = daemon.counters()["spooled"];
    let clients: Vec<_> = (0..10).map(|_| client()).collect();
    daemon.wait_for(&format!("spooling=10 senders=1 spooled={}", before + 10));
    for client in clients {
        assert!(read_all(client).unwrap(), "another response");
    }
    daemon.wait_for("spooling=0 broken=0 rejected=0 protocol_errors=0 cut_short=0");

    // One that stands still takes no more than it has said before.
    daemon.freeze();
    let first = client();
    thread::scope(|scope| {
        let first = scope.spawn(|| read_all(first).unwrap());
        assert!(read_all(client()).unwrap(), "another response");
        daemon.thaw();
        assert!(first.join().unwrap(), "another response");
    });
    daemon.wait_for("spooling=0 broken=0 rejected=0 protocol_errors=0 cut_short=0");

    // One that is killed has what it has not written look like what it is; the next one is found.
    let cut_off = client();
    daemon.wait_for("spooling=1");
    daemon.kill();
    assert_eq!(read_all(cut_off).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(read_all(client()).unwrap());
    let daemon = site.start(&[]);
    wait_until("the new daemon is found", || {
        assert!(read_all(client()).unwrap());
        daemon.counters()["spooled"] > 0
    });
}

#[test]
fn the_server_in_python_that_parks_serves_any_number_with_two_processes() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let program = extract(&site, "Kept alive, in Python", "kept.py");
    fs::create_dir(site.path("run")).unwrap(); // as a package does
    let server = Server::start(Command::new(python).arg(program).arg(site.socket()));
    let ask = |client: &mut TcpStream, expected: u32| {
        client.write_all(b"and?\n").unwrap();
        let mut line = String::new();
        BufReader::new(client).read_line(&mut line).unwrap();
        assert_eq!(line.trim().parse(), Ok(expected));
    };
    let client = || {
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port)).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client
    };
    // Without a daemon it waits itself.
    let mut alone = client();
    (1..=3).for_each(|n| ask(&mut alone, n));
    drop(alone);

    let daemon = site.start(&[]);
    wait_until("the daemon is found", || {
        ask(&mut client(), 1);
        daemon.counters()["returned"] + daemon.counters()["parked"] + daemon.counters()["closed"] > 0
    });
    let mut clients: Vec<_> = (0..20).map(|_| client()).collect();
    for round in 1..=5 {
        clients.iter_mut().for_each(|client| ask(client, round));
    }
    daemon.wait_for("parked=20 returning=0 lingering=0");
    // Another daemon notices nothing of what a client asks, and the other way round.
    let mut old = daemon;
    let daemon = site.start(&["-r"]);
    old.wait_for_end();
    clients.iter_mut().for_each(|client| ask(client, 6));
    daemon.wait_for("parked=20 rejected=0 protocol_errors=0 abandoned=0");
    drop(clients);
    daemon.wait_for("parked=0");
}

/// What the manual says of a few lines of Python, with a daemon that is there: `lines` hand over standard input, and
/// `file`.
fn hand_over_by(python: &str, lines: &str, link: PathBuf, file: PathBuf, server: TcpStream) {
    let script = format!(
        "import os, socket, struct, sys\nlink = socket.socket(socket.AF_UNIX)\nlink.connect(sys.argv[1])\n\
         conn = socket.socket(fileno=0)\nfile = open(sys.argv[2], 'rb')\n{lines}\n"
    );
    let mut command = Command::new(python);
    command.args(["-c", &script]).args([link, file]).stdin(OwnedFd::from(server));
    assert!(command.status().unwrap().success());
}

#[test]
fn the_lines_of_python_that_hand_over_a_file_are_enough_where_all_is_well() {
    let Some(python) = python() else { return };
    let lines = Manual::read("lingerd-protocol.7").display("A RESPONSE THAT IS STILL TO BE WRITTEN");
    assert!(lines.lines().count() < 16, "{lines}");
    // As long as it takes on a machine that does other things.
    let lines = lines.replace("settimeout(1)", &format!("settimeout({})", PATIENCE.as_secs()));
    let daemon = Daemon::start(&[]);
    let file = daemon.site.path("content");
    fs::write(&file, b"all of it").unwrap();
    let (mut client, server) = tcp::connection();
    hand_over_by(&python, &lines, daemon.site.second(), file, server);
    let mut all = String::new();
    client.read_to_string(&mut all).unwrap();
    assert_eq!(all, "all of it");
    daemon.wait_for("lingering=1 spooled=1");
    drop(client);
    daemon.finish("closed=1");
}

#[test]
fn the_line_of_python_at_the_head_is_enough_where_all_is_well() {
    let Some(python) = python() else { return };
    let manual = Manual::read("lingerd-protocol.7");
    let description = manual.section("DESCRIPTION");
    let line = description.iter().find_map(|line| line.strip_prefix(".Dl ")).unwrap();
    let line = line.replace("\\(dq", "\"");
    let daemon = Daemon::start(&[]);
    let (client, server) = tcp::connection();
    hand_over_by(&python, &line, daemon.site.socket(), "/dev/null".into(), server);
    daemon.wait_for("lingering=1");
    drop(client);
    daemon.finish("closed=1");
}
