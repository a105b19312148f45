// SPDX-License-Identifier: BSD-3-Clause

//! The C sender, ap_lingerd.c, in a small server that is not Apache, with a real lingerd behind it.
//!
//! What can fail on the way to the daemon is made to fail: by a daemon that is away, killed or
//! stopped, and where that is not to be had, by a sendmsg(2) or a connect(2) that says so. The sender's
//! time(3) stands still until it is told that it is later.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::unix::net::SocketAddr as UnixAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{OnceLock, mpsc};
use std::thread;
use support::daemon::{Daemon, Site, run};
use support::{compile, is_root, libraries};

/// The server, built once.
fn program() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    PROGRAM
        .get_or_init(|| {
            let sender = "-Dsendmsg=faulty_sendmsg -Dconnect=faulty_connect -Dtime=faulty_time -c apache-1.3/ap_lingerd.c";
            let sender = compile("sender.o", &sender.split(' ').collect::<Vec<_>>())?;
            let both = [&["tests/sender/server.c", sender.to_str().unwrap()], libraries()].concat();
            compile("server", &both)
        })
        .as_deref()
}

/// A server, told to hand over to the daemon of a site.
struct Server {
    process: Child,
    port: u16,
    lines: mpsc::Receiver<String>,
}

/// What it says of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    /// "given", "done", or "kept" and why.
    what: String,
    links: u32,
    descriptors: u32,
    connects: u32,
}

impl Server {
    /// Starts it; `None` when the test is to be skipped.
    fn start(site: &Site) -> Option<Self> {
        Some(Self::run(Command::new(program()?).arg(site.socket())))
    }

    /// Starts it as a user whom nobody else is, and with so many descriptors at most.
    fn start_limited(site: &Site, uid: u32, limit: u32) -> Option<Self> {
        let copy = site.path("server"); // which everybody can run
        // Another process is to write it: what is open for writing cannot be run, and whoever another
        // test starts in that moment has for an instant open what this process has.
        assert_eq!(run(Command::new("cp").arg(program()?).arg(&copy)).code, Some(0));
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("ulimit -n {limit}; exec \"$0\" \"$@\""));
        Some(Self::run(shell.arg(copy).arg(site.socket()).uid(uid).gid(uid)))
    }

    fn run(command: &mut Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        // Read in a thread, so that a server that hangs fails the test and does not hang it.
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || stdout.lines().try_for_each(|line| sender.send(line.unwrap())));
        let port = lines.recv_timeout(support::PATIENCE).unwrap().parse().unwrap();
        Server { process, port, lines }
    }

    /// A client that has sent its request and has its response, up to the end if there is one.
    fn request(&mut self, request: &str) -> TcpStream {
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        client.set_read_timeout(Some(support::PATIENCE)).unwrap();
        writeln!(client, "{request}").unwrap();
        let mut response = [0; 3];
        client.read_exact(&mut response).unwrap();
        assert_eq!(&response, b"ok\n");
        client
    }

    /// What became of the next connection.
    fn told(&mut self) -> Told {
        let line = self.lines.recv_timeout(support::PATIENCE).expect("the server hangs");
        let (what, rest) = line.split_once(" links ").unwrap_or_else(|| panic!("{line}"));
        let numbers: Vec<_> = rest.split(' ').filter_map(|word| word.parse().ok()).collect();
        let [links, descriptors, connects] = numbers[..] else { panic!("{line}") };
        Told { what: what.to_owned(), links, descriptors, connects }
    }

    /// The client of a request, and what became of its connection.
    fn exchange(&mut self, request: &str) -> (TcpStream, Told) {
        let client = self.request(request);
        (client, self.told())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn it_is_c89_without_a_warning_also_where_there_is_no_scm_rights() {
    compile("plain.o", &["-c", "apache-1.3/ap_lingerd.c"]);
    // By other names, as this system has no msg_accrights.
    let old = "-DLINGERD_ACCRIGHTS -Dmsg_accrights=msg_control -Dmsg_accrightslen=msg_controllen";
    compile("old.o", &[&old.split(' ').collect::<Vec<_>>()[..], &["-c", "apache-1.3/ap_lingerd.c"]].concat());
}

#[test]
fn connections_are_handed_over_on_one_link() {
    let daemon = Daemon::start(&[]);
    let Some(mut server) = Server::start(&daemon.site) else { return };
    let (first, told) = server.exchange("hello");
    assert_eq!((told.what.as_str(), told.links), ("given", 1));
    let (second, again) = server.exchange("apache");
    assert_eq!(again, told, "nothing more was opened");
    daemon.wait_for("lingering=2 senders=1");
    for mut client in [first, second] {
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "it was half-closed");
    }
    daemon.wait_for("closed=2 lingering=0");
}

#[test]
fn a_client_that_is_done_is_not_handed_over() {
    let daemon = Daemon::start(&[]);
    let Some(mut server) = Server::start(&daemon.site) else { return };
    for request in ["hello", "apache"] {
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port)).unwrap();
        client.write_all(request.as_bytes()).unwrap();
        client.shutdown(Shutdown::Write).unwrap(); // the server waits for it, as there is no newline
        assert_eq!(server.told().what, "done");
        assert_eq!(support::tcp::read_to_end(&mut client), b"ok\n");
    }
    daemon.wait_for("handed_over=0");
}

#[test]
fn without_a_daemon_it_asks_once_a_second_and_leaks_nothing() {
    let site = Site::new();
    let Some(mut server) = Server::start(&site) else { return };
    let descriptors = server.exchange("hello").1.descriptors;
    for second in 1..=10 {
        if second > 1 {
            server.exchange("later");
        }
        for _ in 0..5 {
            let told = server.exchange("hello").1;
            assert_eq!(told.what, format!("kept {}", libc::ENOENT));
            assert_eq!((told.links, told.descriptors, told.connects), (0, descriptors, second));
        }
    }
    let daemon = site.start(&[]);
    assert_eq!(server.exchange("hello").1.connects, 10, "it has asked in this second");
    let (_client, told) = server.exchange("later");
    assert_eq!((told.what.as_str(), told.links), ("given", 1));
    assert_eq!(told.descriptors, descriptors + 1, "the link, and nothing else");
    daemon.wait_for("senders=1");
}

#[test]
fn a_daemon_that_was_killed_is_found_again() {
    let site = Site::new();
    let daemon = site.start(&[]);
    let Some(mut server) = Server::start(&site) else { return };
    let (_client, first) = server.exchange("hello");
    assert_eq!(first.what, "given");
    daemon.kill();
    // The link is dead, and in its place there is nobody.
    let (client, told) = server.exchange("hello");
    assert!(told.what.starts_with("kept "), "{told:?}");
    assert_eq!(told.descriptors, first.descriptors - 1);
    drop(client);
    let (client, told) = server.exchange("later");
    assert_eq!(told.what, format!("kept {}", libc::ECONNREFUSED));
    drop(client);
    let daemon = site.start(&[]);
    let (_client, told) = server.exchange("later");
    assert_eq!((told.what.as_str(), told.links, told.descriptors), ("given", 2, first.descriptors));
    daemon.wait_for("lingering=1 senders=1");
}

#[test]
fn a_connection_that_finds_the_link_dead_goes_over_a_new_one() {
    let daemon = Daemon::start(&[]);
    let Some(mut server) = Server::start(&daemon.site) else { return };
    let dead = format!("sendmsg {} 1", libc::EPIPE);
    let _first = server.exchange("hello");
    // In the second in which the first link was made another would be too soon.
    let (client, told) = server.exchange(&dead);
    assert_eq!((told.what, told.links, told.connects), (format!("kept {}", libc::EPIPE), 1, 1));
    drop(client);
    let _second = server.exchange("later");
    server.exchange("later"); // and is done
    let (_third, told) = server.exchange(&dead);
    assert_eq!((told.what.as_str(), told.links, told.connects), ("given", 3, 3));
    daemon.wait_for("lingering=3 closed=1 senders=1");
}

#[test]
fn a_daemon_that_is_behind_is_not_hung_up_on() {
    let daemon = Daemon::start(&[]);
    let Some(mut server) = Server::start(&daemon.site) else { return };
    let (_client, first) = server.exchange("hello");
    for errno in [libc::EAGAIN, libc::ETOOMANYREFS, libc::ENOBUFS, libc::EMFILE, libc::ENOMEM] {
        let (client, told) = server.exchange(&format!("sendmsg {errno} 1"));
        assert_eq!(told, Told { what: format!("kept {errno}"), ..first });
        drop(client);
        let (_client, told) = server.exchange("hello");
        assert_eq!(told, first, "the same link");
    }
    daemon.wait_for("closed=5 lingering=1 senders=1");
}

#[test]
fn an_interrupted_call_is_no_failure() {
    let daemon = Daemon::start(&[]);
    let Some(mut server) = Server::start(&daemon.site) else { return };
    let (_client, told) = server.exchange(&format!("sendmsg {} 3", libc::EINTR));
    assert_eq!((told.what.as_str(), told.links), ("given", 1));
    daemon.wait_for("lingering=1");
}

#[test]
fn a_connect_that_takes_its_time_is_waited_for_by_nobody() {
    for errno in [libc::EINTR, libc::EINPROGRESS, libc::EALREADY, libc::EAGAIN] {
        let daemon = Daemon::start(&[]);
        let Some(mut server) = Server::start(&daemon.site) else { return };
        let (client, told) = server.exchange(&format!("connect {errno} 1"));
        assert_eq!((told.what, told.links), (format!("kept {errno}"), 0));
        drop(client);
        let (_client, told) = server.exchange("later");
        assert_eq!((told.what.as_str(), told.links), ("given", 1));
        daemon.wait_for("lingering=1 senders=1");
    }
}

#[test]
fn a_stopped_daemon_delays_nobody_and_loses_nothing() {
    let daemon = Daemon::start(&[]);
    let Some(server) = Server::start(&daemon.site) else { return };
    let kept = assert_loses_nothing_while_stopped(daemon, server);
    assert!([libc::EAGAIN, libc::ETOOMANYREFS, libc::ENOBUFS, libc::EMFILE].contains(&kept), "{kept}");
}

#[test]
fn a_user_with_as_many_descriptors_in_flight_as_he_may_have_open_keeps_the_link() {
    if !cfg!(target_os = "linux") {
        return println!("only Linux counts what is in flight by user");
    }
    if !is_root() {
        return;
    }
    let daemon = Daemon::start(&["-m", "0666"]);
    let Some(server) = Server::start_limited(&daemon.site, 60_904, 16) else { return };
    assert_eq!(assert_loses_nothing_while_stopped(daemon, server), libc::ETOOMANYREFS);
}

/// That a connection which cannot be handed over to a daemon that stands still costs neither the link nor those
/// before it. Returns why it could not.
fn assert_loses_nothing_while_stopped(daemon: Daemon, mut server: Server) -> i32 {
    let (first, told) = server.exchange("hello");
    daemon.freeze();
    let (mut given, mut clients) = (1, vec![first]);
    let kept = loop {
        let (client, told) = server.exchange("hello");
        if told.what != "given" {
            assert_eq!(told.links, 1);
            break told.what;
        }
        given += 1;
        assert!(given < 100_000, "a queue without end");
        clients.push(client);
        if cfg!(target_os = "linux") && given % 50 == 0 {
            // Elsewhere it is lingerd that half-closes.
            let end = clients.last_mut().unwrap().read(&mut [0]).expect("the end is delayed");
            assert_eq!(end, 0);
        }
    };
    daemon.thaw();
    daemon.wait_for(&format!("lingering={given} senders=1"));
    drop(clients);
    let (_client, again) = server.exchange("hello");
    assert_eq!(again, told, "the same link");
    kept.strip_prefix("kept ").and_then(|errno| errno.parse().ok()).unwrap_or_else(|| panic!("{kept}"))
}

#[test]
fn what_is_no_descriptor_does_not_cost_the_link() {
    let daemon = Daemon::start(&[]);
    let Some(mut server) = Server::start(&daemon.site) else { return };
    let (_first, told) = server.exchange("hello");
    let (_second, again) = server.exchange("bad");
    assert_eq!(again, told, "the same link");
    daemon.wait_for("lingering=2 senders=1");
}

#[test]
fn a_path_that_does_not_fit_is_refused() {
    let Some(program) = program() else { return };
    let fits = |length: &usize| UnixAddr::from_pathname("x".repeat(*length)).is_ok();
    let longest = (1..).take_while(fits).last().unwrap();
    let refused = run(Command::new(program).arg("x".repeat(longest + 1)));
    refused.assert_failed(2, "lingerd_init: File"); // name, or Filename, too long
    run(Command::new(program).arg("")).assert_failed(2, "lingerd_init: Invalid argument");
    let mut server = Command::new(program).arg("x".repeat(longest)).stdout(Stdio::piped()).spawn().unwrap();
    let mut port = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut port).unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(port.trim().parse::<u16>().is_ok(), "the longest path was refused");
}
