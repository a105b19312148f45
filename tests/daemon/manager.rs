// SPDX-License-Identifier: BSD-3-Clause

//! The service manager: the test is one, in the words of systemd. It listens for the daemon, is told when it
//! serves, and keeps the socket from one daemon to the next.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use support::daemon::{Daemon, Site, mode, run};
use support::sender::Sender;
use support::{PATIENCE, tcp};

/// A hand-off socket that is the manager's.
fn listen(site: &Site) -> UnixListener {
    fs::create_dir(site.path("run")).unwrap();
    let listener = UnixListener::bind(site.socket()).unwrap();
    fs::set_permissions(site.socket(), fs::Permissions::from_mode(0o640)).unwrap();
    listener
}

/// `lingerd` with `options`, to which standard input is passed on so many times: as its descriptors from 3 on, by
/// the environment.
fn passed_on(site: &Site, socket: impl Into<OwnedFd>, times: usize, options: &[&str]) -> Command {
    shell("exec 3<&0 4<&0 5<&0 </dev/null", site, socket, times, options)
}

/// The same with two sockets.
fn both_passed_on(site: &Site, sockets: [&UnixListener; 2], options: &[&str]) -> Command {
    let [first, second] = sockets.map(|socket| OwnedFd::from(socket.try_clone().unwrap()));
    let mut shell = shell("exec 3<&0 4<&1 </dev/null >/dev/null", site, first, 2, options);
    shell.stdout(Stdio::from(second));
    shell
}

fn shell(redirect: &str, site: &Site, socket: impl Into<OwnedFd>, times: usize, options: &[&str]) -> Command {
    let script = format!("{redirect}; LISTEN_PID=$$; export LISTEN_PID; exec \"$0\" \"$@\"");
    let lingerd = site.lingerd();
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(script).arg(lingerd.get_program()).args(lingerd.get_args()).args(options);
    shell.env("LISTEN_FDS", times.to_string()).stdin(Stdio::from(socket.into()));
    shell
}

/// Such a one in the foreground that ends nobody for as long as a test runs.
fn start(site: &Arc<Site>, listener: &UnixListener, options: &[&str]) -> Daemon {
    let log = File::options().append(true).create(true).open(site.path("log")).unwrap();
    let long = ["-f", "-t", "1000", "-T", "2000", "-D", "4000", "-W", "3000"];
    let mut command = passed_on(site, listener.try_clone().unwrap(), 1, &[&long, options].concat());
    Daemon::adopt(site, command.stdout(Stdio::null()).stderr(log).spawn().unwrap())
}

#[test]
fn a_socket_that_was_passed_on_is_served_and_left_as_it_is() {
    let site = Site::new();
    let listener = listen(&site);
    let before = fs::metadata(site.socket()).unwrap();
    let early = Sender::connect(&site.socket());
    let (mut clients, servers) = tcp::connections(3);
    early.hand_over_all(&servers); // nobody serves yet
    drop(servers);
    let mut daemon = start(&site, &listener, &[]);
    daemon.wait_for("lingering=3 senders=1");

    // It is told to stop, and does not come to an end yet: who comes now is heard and hung up on.
    daemon.signal(libc::SIGTERM);
    daemon.wait_for("senders=0");
    let late = Sender::connect(&site.socket());
    let (client, server) = tcp::connection();
    late.hand_over(server);
    clients.push(client);
    daemon.wait_for("lingering=4 senders=0");
    drop(clients);
    assert_eq!(daemon.wait_for_end(), Some(0));

    let after = fs::metadata(site.socket()).expect("the socket's name is the manager's");
    assert_eq!((after.ino(), after.mode(), after.gid()), (before.ino(), before.mode(), before.gid()));
    assert!(!site.control().exists(), "the control socket's is the daemon's");
    let between = Sender::connect(&site.socket());
    let (client, server) = tcp::connection();
    between.hand_over(server);
    let daemon = start(&site, &listener, &[]);
    daemon.wait_for("lingering=1 senders=1");
    drop(client);
    daemon.wait_for("closed=1");
    assert_eq!(mode(&site.socket()), 0o640);
}

#[test]
fn the_manager_is_told_when_it_serves_stops_and_who_has_taken_over() {
    let site = Site::new();
    let listener = listen(&site);
    let notices = UnixDatagram::bind(site.path("notify")).unwrap();
    notices.set_read_timeout(Some(PATIENCE)).unwrap();
    let next = || {
        let mut text = [0; 1024];
        let size = notices.recv(&mut text).expect("a notice");
        String::from_utf8(text[..size].to_vec()).unwrap()
    };
    let told = |site: &Arc<Site>, mut command: Command| {
        let log = File::options().append(true).create(true).open(site.path("log")).unwrap();
        let command = command.env("NOTIFY_SOCKET", site.path("notify")).stdout(Stdio::null()).stderr(log);
        Daemon::adopt(site, command.spawn().unwrap())
    };
    let mut old = told(&site, passed_on(&site, listener.try_clone().unwrap(), 1, &["-f"]));
    assert!(next().starts_with("READY=1\nSTATUS="));
    let mut successor = site.lingerd();
    successor.args(["-f", "-r"]).stdin(Stdio::null());
    let new = told(&site, successor);
    assert_eq!(next(), format!("MAINPID={}", new.pid), "before it hears from that one");
    assert!(next().starts_with("READY=1\n"));
    assert_eq!(old.wait_for_end(), Some(0));
    new.signal(libc::SIGTERM);
    assert!(next().starts_with("STOPPING=1\n"));
    let mut new = new;
    assert_eq!(new.wait_for_end(), Some(0));
    assert!(site.socket().exists(), "the one that has taken over knows whose it is");
}

/// Nobody is allowed a response who could only be cut off soon: he waits for the next daemon, or writes himself.
#[test]
fn one_that_stops_leaves_those_at_the_second_socket_to_the_next_one() {
    let site = Site::new();
    let listener = listen(&site);
    let second = UnixListener::bind(site.second()).unwrap();
    let start = || {
        let log = File::options().append(true).create(true).open(site.path("log")).unwrap();
        let options = ["-f", "-t", "1000", "-T", "2000", "-D", "4000", "-W", "3000"];
        let mut command = both_passed_on(&site, [&listener, &second], &options);
        Daemon::adopt(&site, command.stderr(log).spawn().unwrap())
    };
    let mut daemon = start();
    let (one, server) = tcp::connection();
    daemon.sender().hand_over(server);
    daemon.wait_for("lingering=1 senders=0");
    daemon.signal(libc::SIGTERM);
    daemon.sender().wait_until_hung_up();
    let waiting = daemon.spooler();
    let (two, server) = tcp::connection();
    daemon.sender().hand_over(server); // at the first one they are still heard
    daemon.wait_for("lingering=2 senders=0");
    assert!(!waiting.has_go_ahead());
    drop((one, two));
    assert_eq!(daemon.wait_for_end(), Some(0));
    let daemon = start();
    let content = site.path("content");
    fs::write(&content, b"all").unwrap();
    let (mut client, server) = tcp::connection();
    waiting.spool(server, &[(&File::open(content).unwrap(), 0, 3, false)], PATIENCE);
    let mut all = String::new();
    client.read_to_string(&mut all).unwrap();
    assert_eq!(all, "all");
    drop(client);
    daemon.wait_for("closed=1 spooled=1");
}

#[test]
fn one_that_the_manager_starts_takes_over_from_whoever_serves_there() {
    let site = Site::new();
    let listener = listen(&site);
    let mut old = start(&site, &listener, &[]);
    let mut stray = site.start(&["-r"]); // by hand: the manager takes it that its daemon has ended
    assert_eq!(old.wait_for_end(), Some(0));
    let sender = stray.sender();
    let (clients, servers) = tcp::connections(2);
    sender.hand_over_all(&servers);
    drop(servers);
    stray.wait_for("lingering=2");
    let daemon = start(&site, &listener, &[]);
    assert_eq!(stray.wait_for_end(), Some(0));
    daemon.wait_for("lingering=2 handed_over=2");
    drop(clients);
    daemon.wait_for("closed=2");
}

#[test]
fn both_sockets_may_be_passed_on_in_whatever_order_and_go_to_the_successor() {
    for swapped in [false, true] {
        let site = Site::new();
        let listener = listen(&site);
        let second = UnixListener::bind(site.second()).unwrap();
        fs::set_permissions(site.second(), fs::Permissions::from_mode(0o640)).unwrap();
        let before = fs::metadata(site.second()).unwrap();
        let sockets = if swapped { [&second, &listener] } else { [&listener, &second] };
        let log = File::options().append(true).create(true).open(site.path("log")).unwrap();
        let mut command = both_passed_on(&site, sockets, &["-f", "-t", "1000", "-D", "4000"]);
        let mut daemon = Daemon::adopt(&site, command.stderr(log).spawn().unwrap());
        let (one, server) = tcp::connection();
        daemon.sender().hand_over(server);
        let content = site.path("content");
        fs::write(&content, b"the rest").unwrap();
        let content = File::open(content).unwrap();
        let spool = |daemon: &Daemon| {
            let (mut client, server) = tcp::connection();
            daemon.spooler().spool(server, &[(&content, 4, 4, false)], PATIENCE);
            let mut all = String::new();
            client.read_to_string(&mut all).unwrap();
            assert_eq!(all, "rest");
            client
        };
        let two = spool(&daemon);
        daemon.wait_for("lingering=2 spooled=1 protocol_errors=0");
        let mut new = site.start(&["-r"]);
        assert_eq!(daemon.wait_for_end(), Some(0));
        let three = spool(&new);
        new.wait_for("lingering=3 spooled=2 protocol_errors=0");
        drop((one, two, three));
        new.wait_for("lingering=0 closed=3");
        new.signal(libc::SIGTERM);
        assert_eq!(new.wait_for_end(), Some(0));
        let after = fs::metadata(site.second()).expect("the second socket's name is the manager's, too");
        assert_eq!((after.ino(), after.mode()), (before.ino(), before.mode()));
    }
}

#[test]
fn what_is_passed_on_has_to_be_that_socket_alone_and_in_the_foreground() {
    let site = Site::new();
    let listener = listen(&site);
    let clone = || listener.try_clone().unwrap();
    let fails = |mut command: Command, part: &str| {
        let ended = command.output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.code() == Some(1) && said.contains(part), "nothing of '{part}' in '{said}'");
    };
    fails(passed_on(&site, clone(), 1, &[]), "with -f");
    fails(passed_on(&site, clone(), 1, &["-f", "-g", "0"]), "-g does not go with a socket");
    fails(passed_on(&site, clone(), 1, &["-f", "-m", "0660"]), "-m does not go with a socket");
    fails(passed_on(&site, clone(), 2, &["-f"]), ".2: ");
    fails(passed_on(&site, clone(), 3, &["-f"]), "3 sockets");
    fails(passed_on(&site, clone(), 9, &["-f"]), "descriptor 6 is not open");
    let elsewhere = UnixListener::bind(site.path("other")).unwrap();
    fails(passed_on(&site, elsewhere, 1, &["-f"]), "a socket at ");
    #[cfg(target_os = "linux")]
    {
        let packets = socket2::Socket::new(socket2::Domain::UNIX, libc::SOCK_SEQPACKET.into(), None).unwrap();
        fs::remove_file(site.socket()).unwrap();
        packets.bind(&socket2::SockAddr::unix(site.socket()).unwrap()).unwrap();
        packets.listen(1).unwrap();
        fails(passed_on(&site, packets, 1, &["-f"]), "no stream");
    }
    fails(passed_on(&site, File::open("/dev/null").unwrap(), 1, &["-f"]), "no Unix socket");
    let mut no_number = passed_on(&site, clone(), 1, &["-f"]);
    no_number.env("LISTEN_FDS", "-1");
    fails(no_number, "LISTEN_FDS=-1: no number");
}

#[test]
fn the_journal_is_told_the_priority_of_each_line() {
    let site = Site::new();
    let log = File::options().append(true).create(true).open(site.path("log")).unwrap();
    let it = log.metadata().unwrap();
    let start = |stream: String| {
        let mut daemon = Daemon::spawn(&site, site.lingerd().arg("-fd").env("JOURNAL_STREAM", stream));
        daemon.sender().babble(b"?");
        daemon.wait_for("protocol_errors=1 senders=0");
        daemon.signal(libc::SIGTERM);
        assert_eq!(daemon.wait_for_end(), Some(0));
        site.log()
    };
    let lines = start(format!("{}:{}", it.dev(), it.ino()));
    assert!(lines.lines().all(|line| line.starts_with('<')), "{lines}");
    for part in ["<6>lingerd 0", "<6>serving (", "<4>a sender sent ", "<6>stopped: "] {
        assert!(lines.lines().any(|line| line.starts_with(part)), "nothing of '{part}' in {lines}");
    }
    log.set_len(0).unwrap();
    let lines = start(format!("{}:{}", it.dev(), it.ino() + 1)); // it was the one who started it whose that is
    assert!(lines.contains("lingerd: warning: a sender sent "), "{lines}");
}

#[test]
fn where_the_manager_cannot_be_told_who_takes_over_nobody_does() {
    let site = Site::new();
    let notices = UnixDatagram::bind(site.path("notify")).unwrap();
    let log = File::options().append(true).create(true).open(site.path("log")).unwrap();
    let mut command = site.lingerd();
    command.args(["-f", "-t", "1000", "-T", "2000", "-D", "4000"]).env("NOTIFY_SOCKET", site.path("notify"));
    let old = Daemon::adopt(&site, command.stdin(Stdio::null()).stderr(log).spawn().unwrap());
    let (clients, servers) = tcp::connections(2);
    old.sender().hand_over_all(&servers);
    drop(servers);
    old.wait_for("lingering=2");
    let full = UnixDatagram::unbound().unwrap();
    full.connect(site.path("notify")).unwrap();
    full.set_nonblocking(true).unwrap();
    while full.send(b"STATUS=").is_ok() {}
    // It would take the end of the old one for that of the service.
    run(site.lingerd().args(["-f", "-r"])).assert_failed(1, "serves on");
    old.wait_for("lingering=2");
    drop(notices);
    drop(clients);
    old.wait_for("closed=2");
}

#[test]
fn what_is_the_managers_is_not_asked_for_by_a_successor_either() {
    let site = Site::new();
    let listener = listen(&site);
    let old = start(&site, &listener, &[]);
    for option in [["-g", "0"], ["-m", "0666"]] {
        run(site.lingerd().args(["-f", "-r"]).args(option)).assert_failed(1, "does not go with a socket");
    }
    old.wait_for("lingering=0");
    assert_eq!(mode(&site.socket()), 0o640);
}

#[test]
fn one_that_stops_already_is_not_told_twice_by_its_predecessor() {
    let site = Site::new();
    let mut daemon = site.start(&[]);
    let (clients, servers) = tcp::connections(1);
    daemon.sender().hand_over_all(&servers);
    drop(servers);
    daemon.wait_for("lingering=1");
    for _ in 0..2 {
        let mut predecessor = UnixStream::connect(site.control()).unwrap();
        predecessor.write_all(b"k").unwrap();
        daemon.wait_for_log("told to stop: 1 connections");
        daemon.wait_for("lingering=1 stopped=0");
    }
    drop(clients);
    assert_eq!(daemon.wait_for_end(), Some(0));
    assert!(!site.log().contains("cut off"));
}
