// SPDX-License-Identifier: BSD-3-Clause

//! The C sender, ap_lingerd.c, in a small server that is not Apache, with a real lingerd behind it.
//!
//! What can fail on the way to the daemon is made to fail: by a daemon that is away, killed or
//! stopped, and where that is not to be had, by a sendmsg(2) or a connect(2) that says so. The sender's
//! clock stands still until it is told that it is later.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
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
            let sender = "-Dsendmsg=faulty_sendmsg -Dconnect=faulty_connect -Dtime=faulty_time \
                          -c apache-1.3/ap_lingerd.c";
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
fn a_connection_may_be_given_for_some_seconds_only() {
    let daemon = Daemon::start(&["-t", "600", "-D", "600"]);
    let Some(mut server) = Server::start(&daemon.site) else { return };
    let (_brief, told) = server.exchange("for 1");
    assert_eq!(told.what, "given");
    let (_other, again) = server.exchange("hello");
    assert_eq!(again, told, "the same link");
    daemon.wait_for("limit=1 lingering=1");
}

#[test]
fn what_could_not_be_given_for_some_seconds_is_as_it_was() {
    let site = Site::new();
    let Some(mut server) = Server::start(&site) else { return };
    let (_client, told) = server.exchange("for 600");
    assert_eq!(told.what, format!("kept {}", libc::ENOENT));
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

// ---- Spooling -------------------------------------------------------------------------------

/// What does not fit into the buffers of a connection with a small window.
const MUCH: usize = 8_000_000;

impl Server {
    /// A client that reads slowly, of a response with so many bytes that are to be spooled.
    fn spool(&mut self, bytes: usize) -> TcpStream {
        self.ask(&format!("spool {bytes}"))
    }

    /// A client that reads slowly and has sent its request.
    fn ask(&mut self, request: &str) -> TcpStream {
        let address = (Ipv4Addr::LOCALHOST, self.port).into();
        let mut client = support::http::connect_with_small_window(address, 4096);
        writeln!(client, "{request}").unwrap();
        client
    }
}

/// That the response is whole, and ends as one that is.
fn assert_spooled(mut client: TcpStream, bytes: usize) {
    let response = support::tcp::read_to_end(&mut client);
    assert!(response.starts_with(b"ok\n"));
    let expected: Vec<_> = (0..bytes).map(|n| (n % 251) as u8).collect();
    assert!(response[3..] == expected, "another response");
}

#[test]
fn what_is_not_written_yet_the_daemon_writes() {
    let daemon = Daemon::start(&[]);
    let Some(mut server) = Server::start(&daemon.site) else { return };
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let client = server.spool(MUCH);
            let told = server.told();
            assert_eq!((told.what.as_str(), told.links, told.connects), ("given", 1, 1));
            client
        })
        .collect();
    daemon.wait_for("spooled=3 spooling=3 senders=1");
    clients.into_iter().for_each(|client| assert_spooled(client, MUCH));
    let (_client, told) = server.exchange("hello");
    assert_eq!((told.what.as_str(), told.links), ("given", 1), "the first socket");
    daemon.wait_for("closed=3 lingering=1 senders=2");
}

#[test]
fn without_a_second_socket_it_writes_by_itself() {
    let daemon = Daemon::start(&[]);
    std::fs::remove_file(daemon.site.second()).unwrap(); // as with a daemon that has none
    let Some(mut server) = Server::start(&daemon.site) else { return };
    let mut client = server.spool(10_000);
    client.flush().unwrap();
    assert_spooled(client, 10_000);
    let told = server.told();
    assert_eq!((told.what, told.links), (format!("kept {}", libc::ENOENT), 0));
    let (_client, told) = server.exchange("hello");
    assert_eq!(told.what, "given");
    daemon.wait_for("lingering=1 handed_over=1");
}

#[test]
fn a_daemon_that_hangs_is_given_one_more_and_loses_nothing() {
    let daemon = Daemon::start(&[]);
    let Some(mut server) = Server::start(&daemon.site) else { return };
    let first = server.spool(MUCH);
    assert_eq!(server.told().what, "given");
    let (_, told) = server.exchange("go");
    assert_eq!(told.what, "go");
    daemon.freeze();
    let second = server.ask(&format!("now spool {MUCH}"));
    assert_eq!(server.told().what, "given", "it cannot know");
    for _ in 0..3 {
        assert_spooled(server.ask("now spool 1000"), 1_000);
        assert_eq!(server.told(), Told { what: format!("kept {}", libc::EAGAIN), ..told });
    }
    daemon.thaw();
    assert_spooled(first, MUCH);
    assert_spooled(second, MUCH);
    let last = server.spool(MUCH);
    assert_eq!(server.told(), Told { what: "given".to_owned(), ..told }, "the same link");
    daemon.wait_for("spooled=3 protocol_errors=0");
    assert_spooled(last, MUCH);
}

#[test]
fn what_a_daemon_has_not_read_when_it_is_killed_is_reset() {
    let daemon = Daemon::start(&[]);
    let Some(mut server) = Server::start(&daemon.site) else { return };
    let first = server.spool(MUCH);
    assert_eq!(server.told().what, "given");
    assert_eq!(server.exchange("go").1.what, "go");
    daemon.freeze();
    let second = server.ask(&format!("now spool {MUCH}"));
    assert_eq!(server.told().what, "given");
    daemon.kill();
    for mut client in [first, second] {
        let error = client.read_to_end(&mut Vec::new()).expect_err("it looks whole");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}

/// A second socket at which the test is the daemon.
fn listen_at_second(site: &Site) -> UnixListener {
    std::fs::create_dir_all(site.second().parent().unwrap()).unwrap();
    UnixListener::bind(site.second()).unwrap()
}

/// The link of the server.
fn accept(listener: &UnixListener) -> UnixStream {
    let link = listener.accept().unwrap().0;
    link.set_read_timeout(Some(support::PATIENCE)).unwrap();
    link
}

#[test]
fn each_response_is_sent_for_a_word_of_the_daemon_s() {
    let site = Site::new();
    let listener = listen_at_second(&site);
    let Some(mut server) = Server::start(&site) else { return };
    let keeps = |server: &mut Server, links| {
        assert_spooled(server.ask("now spool 1000"), 1_000);
        let told = server.told();
        assert_eq!((told.what, told.links), (format!("kept {}", libc::EAGAIN), links));
    };
    keeps(&mut server, 1);
    let mut link = accept(&listener);
    for _ in 0..3 {
        keeps(&mut server, 1);
        link.write_all(b"G").unwrap();
        let _client = server.ask("now spool 1000");
        assert_eq!(server.told().what, "given");
        let mut head = [0; 72];
        link.read_exact(&mut head).unwrap(); // what came with it is closed
        assert_eq!(head[..2], *b"S\x03");
        keeps(&mut server, 1);
    }
    // It waits for the word, and what has no meaning yet is none.
    link.write_all(b"?").unwrap();
    keeps(&mut server, 1);
    let _client = server.ask("spool 1000");
    link.write_all(b"G").unwrap();
    assert_eq!(server.told().what, "given");
    link.read_exact(&mut [0; 72]).unwrap();
    // One that has ended says nothing any more; and another is looked for after a second. Not by a close: what
    // other tests start has for an instant open what we have.
    link.shutdown(Shutdown::Both).unwrap();
    assert_spooled(server.ask("now spool 1000"), 1_000);
    assert_eq!(server.told().what, format!("kept {}", libc::EPIPE));
    server.exchange("later");
    keeps(&mut server, 2);
    let mut link = accept(&listener);
    link.write_all(b"G").unwrap();
    let (_, told) = server.exchange("go");
    assert_eq!((told.what.as_str(), told.links), ("go", 2));
    link.shutdown(Shutdown::Both).unwrap();
    // A word is of one link only, and the next one, of that second, has none yet.
    server.exchange("later");
    keeps(&mut server, 3);
    accept(&listener).write_all(b"G").unwrap();
    assert_eq!(server.exchange("go").1.links, 3);
}

#[test]
fn a_connect_to_the_second_socket_that_takes_its_time_is_waited_for_as_its_word_is() {
    for errno in [libc::EINPROGRESS, libc::EALREADY] {
        let daemon = Daemon::start(&[]);
        let Some(mut server) = Server::start(&daemon.site) else { return };
        // The first of them is that of the other link.
        let (client, told) = server.exchange(&format!("connect {errno} 2"));
        assert_eq!(told.what, format!("kept {errno}"));
        drop(client);
        let client = server.spool(MUCH);
        let told = server.told();
        assert_eq!((told.what.as_str(), told.links), ("given", 1));
        assert_spooled(client, MUCH);
    }
}

#[test]
fn what_fails_for_a_moment_costs_neither_the_response_nor_the_link() {
    let daemon = Daemon::start(&[]);
    let Some(mut server) = Server::start(&daemon.site) else { return };
    let first = server.spool(MUCH);
    let told = server.told();
    for errno in [libc::EAGAIN, libc::ETOOMANYREFS, libc::ENOBUFS] {
        // The first of them is that of a message to the other socket.
        let kept = server.exchange(&format!("sendmsg {errno} 2")).1;
        assert_eq!(kept.what, format!("kept {errno}"));
        assert_spooled(server.spool(1_000), 1_000);
        let kept = server.told();
        assert_eq!((kept.what, kept.links), (format!("kept {errno}"), told.links));
    }
    let last = server.spool(MUCH);
    let again = server.told();
    assert_eq!((again.what.as_str(), again.links), ("given", told.links), "the same link");
    assert_spooled(first, MUCH);
    assert_spooled(last, MUCH);
    daemon.wait_for("spooled=2 protocol_errors=0");
}

#[test]
fn a_response_that_finds_the_link_dead_goes_over_a_new_one() {
    let daemon = Daemon::start(&[]);
    let Some(mut server) = Server::start(&daemon.site) else { return };
    let first = server.spool(MUCH);
    assert_eq!(server.told().links, 1);
    drop(server.exchange("later"));
    drop(server.exchange("later"));
    // Two of them are for the message to the other socket, which is tried twice.
    drop(server.exchange(&format!("sendmsg {} 3", libc::EPIPE)));
    assert_spooled(server.spool(1_000), 1_000);
    let told = server.told();
    assert_eq!((told.what, told.links), (format!("kept {}", libc::EAGAIN), 2), "no word on that yet");
    let second = server.spool(MUCH);
    let told = server.told();
    assert_eq!((told.what.as_str(), told.links), ("given", 2));
    assert_spooled(first, MUCH);
    assert_spooled(second, MUCH);
    daemon.wait_for("spooled=2 protocol_errors=0");
}

#[test]
fn what_is_no_file_costs_neither_the_response_nor_the_link() {
    let daemon = Daemon::start(&[]);
    let Some(mut server) = Server::start(&daemon.site) else { return };
    let mut client = server.spool(MUCH);
    let told = server.told();
    assert_eq!((told.what.as_str(), told.links), ("given", 1));
    assert_spooled(client, MUCH);
    client = server.ask(&format!("bad spool {MUCH}"));
    assert_eq!(server.told(), told, "the same link");
    assert_spooled(client, MUCH);
    daemon.wait_for("spooled=2 senders=1 broken=0 protocol_errors=0");
}

#[test]
fn a_child_of_fork_has_a_link_and_a_word_of_its_own() {
    let daemon = Daemon::start(&[]);
    let Some(mut server) = Server::start(&daemon.site) else { return };
    let first = server.spool(MUCH);
    let told = server.told();
    assert_eq!(server.exchange("go").1.what, "go");
    let of_child = server.ask(&format!("fork spool {MUCH}"));
    let of_its = server.told();
    assert_eq!((of_its.what.as_str(), of_its.links), ("given", 2));
    let last = server.ask(&format!("now spool {MUCH}"));
    assert_eq!(server.told(), told, "the same link, and its own word");
    daemon.wait_for("spooling=3 senders=1 protocol_errors=0");
    [first, of_child, last].into_iter().for_each(|client| assert_spooled(client, MUCH));
}

#[test]
fn a_daemon_that_has_as_much_as_it_takes_is_given_no_more() {
    let daemon = Daemon::start(&["-M", "1"]);
    let Some(mut server) = Server::start(&daemon.site) else { return };
    let first = server.spool(MUCH);
    assert_eq!(server.told().what, "given");
    daemon.wait_for("spooling=1");
    for _ in 0..3 {
        assert_spooled(server.ask("now spool 1000"), 1_000);
        assert_eq!(server.told().what, format!("kept {}", libc::EAGAIN));
    }
    assert_spooled(first, MUCH);
    let last = server.spool(MUCH);
    assert_eq!(server.told().what, "given");
    assert_spooled(last, MUCH);
    daemon.wait_for("spooled=2 stalled=0 broken=0");
}

#[test]
fn a_daemon_that_was_killed_between_two_responses_is_found_again() {
    let site = Site::new();
    let daemon = site.start(&[]);
    let Some(mut server) = Server::start(&site) else { return };
    let first = server.spool(MUCH);
    assert_eq!(server.told().what, "given");
    assert_spooled(first, MUCH);
    daemon.kill();
    for _ in 0..2 {
        server.exchange("later");
        assert_spooled(server.spool(1_000), 1_000);
        let told = server.told();
        assert!(told.what.starts_with("kept ") && !told.what.ends_with("SO_LINGER"), "{told:?}");
    }
    let daemon = site.start(&[]);
    server.exchange("later");
    let next = server.spool(MUCH);
    let told = server.told();
    assert_eq!((told.what.as_str(), told.links), ("given", 2));
    assert_spooled(next, MUCH);
    daemon.wait_for("spooled=1");
}

// ---- Parking --------------------------------------------------------------------------------

/// A time that no test lives to see.
const LONG: &str = "1000000";

impl Server {
    /// Starts one with a way back; `None` when the test is to be skipped.
    fn start_with_way_back(site: &Site, name: &str) -> Option<Self> {
        Some(Self::run(Command::new(program()?).arg(site.socket()).arg(name)))
    }
}

/// What a message to park has in front, and the socket that came with it is closed.
fn read_parked(link: &mut UnixStream) -> [u8; 72] {
    let mut head = [0; 72];
    link.read_exact(&mut head).unwrap();
    head
}

#[test]
fn what_is_parked_says_how_it_comes_back() {
    let site = Site::new();
    let listener = listen_at_second(&site);
    let Some(mut server) = Server::start(&site) else { return };
    let (_client, told) = server.exchange("keep 70000");
    assert_eq!((told.what.as_str(), told.links), ("given", 1));
    let mut link = accept(&listener);
    let head = read_parked(&mut link);
    assert_eq!(head[..8], [b'K', 5, 0, 0, 0, 1, 0x11, 0x70]);
    assert_eq!(&head[8..32], b"other\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(head[32..35], [3, 10, 17]);
    let (_client, again) = server.exchange("head 5000000000");
    assert_eq!(again, told, "the same link");
    assert_eq!(read_parked(&mut link)[..8], [b'H', 5, 0, 0, 0x7f, 0xff, 0xff, 0xff]);
}

#[test]
fn a_daemon_that_hangs_is_given_a_window_of_parked_ones_and_no_more() {
    let site = Site::new();
    let listener = listen_at_second(&site);
    let Some(mut server) = Server::start(&site) else { return };
    let full = |after: usize| format!("kept {} after {after}", libc::EAGAIN);
    assert_eq!(server.exchange("window").1.what, full(8));
    let mut link = accept(&listener);
    assert_eq!(server.exchange("window").1.what, full(0));
    // What was said is heard, and a response may go whatever becomes of these.
    link.write_all(b"K").unwrap();
    assert_eq!(server.exchange("window").1.what, full(1));
    link.write_all(b"KGKK").unwrap();
    assert_eq!(server.exchange("window").1.what, full(3));
    let (_, told) = server.exchange("go");
    assert_eq!((told.what.as_str(), told.links), ("go", 1));
    let _client = server.ask("now spool 1000");
    assert_eq!(server.told().what, "given");
    (0..12).for_each(|_| assert_eq!(read_parked(&mut link)[0], b'K'));
    assert_eq!(read_parked(&mut link)[0], b'S');
    // More of them than it waits for are none, and what has no meaning yet.
    link.write_all(b"?KKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKK").unwrap();
    assert_spooled(server.ask("now spool 1000"), 1_000);
    assert_eq!(server.told().what, format!("kept {}", libc::EAGAIN));
    assert_eq!(server.exchange("window").1.what, full(8));
    link.write_all(b"KKKKG").unwrap();
    assert_eq!(server.exchange("go").1.what, "go");
    assert_eq!(server.exchange("window").1.what, full(4));
    (0..12).for_each(|_| assert_eq!(read_parked(&mut link)[0], b'K'));
    // Another link has another window.
    link.shutdown(Shutdown::Both).unwrap();
    assert_eq!(server.exchange("window").1.what, format!("kept {} after 0", libc::EPIPE));
    server.exchange("later");
    let (_, told) = server.exchange("window");
    assert_eq!((told.what, told.links), (full(8), 2));
}

#[test]
fn one_that_cannot_be_parked_costs_neither_its_connection_nor_the_link() {
    let site = Site::new();
    let listener = listen_at_second(&site);
    let Some(mut server) = Server::start(&site) else { return };
    let (_first, told) = server.exchange(&format!("keep {LONG}"));
    let mut link = accept(&listener);
    read_parked(&mut link);
    for errno in [libc::EAGAIN, libc::ETOOMANYREFS, libc::ENOBUFS] {
        server.exchange(&format!("sendmsg {errno} 1")); // nobody listens at the other socket
        let kept = server.exchange(&format!("keep {LONG}")).1;
        assert_eq!(kept.what, format!("kept {errno}"));
        let (_client, again) = server.exchange(&format!("keep {LONG}"));
        assert_eq!(again.what, "given");
        assert_eq!(again.links, told.links, "the same link");
        assert_eq!(read_parked(&mut link)[0], b'K');
    }
}

#[test]
fn one_of_which_half_was_sent_goes_over_another_link() {
    let site = Site::new();
    let listener = listen_at_second(&site);
    let Some(mut server) = Server::start(&site) else { return };
    assert_eq!(server.exchange(&format!("keep {LONG}")).1.what, "given");
    let mut link = accept(&listener);
    read_parked(&mut link);
    server.exchange("partial 1");
    let kept = server.exchange(&format!("keep {LONG}")).1;
    assert_eq!((kept.what, kept.links), (format!("kept {}", libc::EPIPE), 1), "another would be too soon");
    let mut part = Vec::new();
    link.read_to_end(&mut part).unwrap();
    assert_eq!(part.len(), 36);
    server.exchange("later");
    let (_client, told) = server.exchange(&format!("keep {LONG}"));
    assert_eq!((told.what.as_str(), told.links), ("given", 2));
    accept(&listener);
    server.exchange("later");
    server.exchange("partial 1");
    let (_client, told) = server.exchange(&format!("keep {LONG}"));
    assert_eq!((told.what.as_str(), told.links), ("given", 3));
    assert_eq!(read_parked(&mut accept(&listener))[0], b'K');
}

#[test]
fn without_a_daemon_that_parks_it_keeps_its_connections() {
    let site = Site::new();
    let Some(mut server) = Server::start(&site) else { return };
    for second in 0..3 {
        for _ in 0..3 {
            let kept = server.exchange(&format!("keep {LONG}")).1;
            assert_eq!((kept.what, kept.links), (format!("kept {}", libc::ENOENT), 0));
            assert_eq!(kept.connects, 2 * second + 1, "once a second");
        }
        server.exchange("later"); // and asks for the other link
    }
}

#[test]
fn what_was_parked_comes_back_and_is_served_on() {
    let daemon = Daemon::start(&[]);
    let Some(mut server) = Server::start_with_way_back(&daemon.site, "other") else { return };
    // Where it hears nothing from a server for a while the daemon asks whether it is there, and nothing comes back.
    let next = |server: &mut Server| loop {
        let what = server.told().what;
        if !what.starts_with("nothing ") {
            break what;
        }
    };
    let exchange = |server: &mut Server, request: &str| (server.request(request), next(server));
    let said = |server: &mut Server, client: &mut TcpStream, what: &[u8]| {
        client.write_all(what).unwrap();
        next(server)
    };
    let (mut client, told) = server.exchange(&format!("keep {LONG}"));
    assert_eq!((told.what.as_str(), told.links), ("given", 1));
    daemon.wait_for("parked=1");
    assert_eq!(said(&mut server, &mut client, b"hello\n"), "back K 0");
    assert_eq!(next(&mut server), "given", "it lingers");
    let (mut client, _) = exchange(&mut server, &format!("head {LONG}"));
    client.write_all(b"GET / HTTP/1.0\r\nHost: loc").unwrap();
    daemon.wait_for("parked=1");
    assert_eq!(said(&mut server, &mut client, b"alhost\r\n\r\n"), "back H 0");
    assert_eq!(next(&mut server), "given");
    // One whose time is up: a head is brought back all the same.
    let (mut late, what) = exchange(&mut server, "head 1");
    assert_eq!((what.as_str(), next(&mut server).as_str()), ("given", "back H 1"));
    assert_eq!(said(&mut server, &mut late, b"hello\n"), "given");
    let (mut kept, _) = exchange(&mut server, "keep 1");
    assert_eq!(kept.read(&mut [0]).unwrap(), 0, "it was half-closed");
    daemon.wait_for("parked=0 lingering=4 returned=3");
}

#[test]
fn what_comes_the_way_back_and_is_no_connection_is_told_apart() {
    let daemon = Daemon::start(&[]);
    let Some(mut server) = Server::start_with_way_back(&daemon.site, "other") else { return };
    let mut way = daemon.site.socket().into_os_string();
    way.push(".back.other");
    drop(UnixStream::connect(&way).unwrap());
    let told = server.told();
    assert_eq!(told.what, format!("nothing {}", libc::EPIPE));
    for length in [1, 71, 72, 100] {
        let mut link = UnixStream::connect(&way).unwrap();
        link.write_all(&vec![b'K'; length]).unwrap();
        assert_eq!(server.told(), Told { what: format!("nothing {}", libc::EINVAL), ..told });
    }
    let (_client, told) = server.exchange("hello");
    assert_eq!(told.what, "given");
}

#[test]
fn the_example_in_the_header_is_one_that_works() {
    let header = std::fs::read_to_string(support::built::project().join("apache-1.3/ap_lingerd.h")).unwrap();
    let indented = |line: &&str| *line == " *" || line.starts_with(" *     ");
    let lines = header.lines().skip_while(|line| !line.contains("lingerer, spooler;"));
    let example: String = lines.take_while(indented).map(|line| format!("{}\n", &line[2..])).collect();
    assert!(example.contains("lingerd_spool(") && example.contains("lingerd_give("), "{example}");
    let site = Site::new();
    let daemon = site.start(&[]);
    let (source, file) = (site.path("example.h"), site.path("file"));
    std::fs::write(&source, example).unwrap();
    let much = support::tcp::response(MUCH);
    std::fs::write(&file, &much).unwrap();
    let define = format!("-DEXAMPLE=\"{}\"", source.display());
    let sources = [&[&define, "tests/sender/example.c", "apache-1.3/ap_lingerd.c"], libraries()].concat();
    let Some(program) = compile("example", &sources) else { return };
    let start = || Server::run(Command::new(&program).arg(site.socket()).arg(&file));
    let mut server = start();
    let slow: Vec<_> = (0..3).map(|_| server.ask("hello")).collect();
    daemon.wait_for("spooling=3");
    for mut client in slow {
        assert!(support::tcp::read_to_end(&mut client) == much);
    }
    // A new one, to which a daemon that hangs has said nothing, writes; and hands over when it goes on.
    daemon.freeze();
    let mut another = start();
    assert!(support::tcp::read_to_end(&mut another.ask("hello")) == much);
    let mut client = another.ask("hello");
    daemon.thaw();
    daemon.wait_for("spooling=1 spooled=4");
    assert!(support::tcp::read_to_end(&mut client) == much);
    drop((client, another));
    daemon.wait_for("lingering=0");
    std::fs::write(&file, b"ok\n").unwrap();
    let held = server.request("hello");
    daemon.wait_for("lingering=1 spooled=4");
    drop(held);
    // And without a daemon.
    daemon.kill();
    let mut client = server.request("hello");
    assert_eq!(support::tcp::read_to_end(&mut client), b"");
}
