// SPDX-License-Identifier: BSD-3-Clause

//! The crate lingerd-client, senders/rust, with a real lingerd: what it offers. What any sender has to do is
//! tests/conformance's.

use lingerd_client::{MAX_PARTS, Part, Refused, Sender};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use support::daemon::{Daemon, Site};
use support::{PATIENCE, eventually, tcp};

/// A time that no test lives to see.
const LONG: Duration = Duration::from_secs(100_000);

/// What does not fit into the buffers of a connection with a small window.
const MUCH: usize = 8_000_000;

fn sender(site: &Site) -> Sender {
    Sender::new(site.socket()).unwrap()
}

/// Why it was refused, by its number; `None` where it was taken.
fn errno<S>(result: Result<(), Refused<S>>) -> Option<i32> {
    result.err()?.error.raw_os_error()
}

/// Ends connections until one is taken, and returns its client.
fn end_until_taken(sender: &Sender) -> TcpStream {
    eventually(|| {
        let (client, server) = tcp::connection();
        sender.finish(server).map(|()| client).map_err(|refused| refused.to_string())
    })
}

#[test]
fn connections_are_handed_over_on_one_link() {
    let daemon = Daemon::start(&["-t", "600", "-D", "600"]);
    let sender = sender(&daemon.site);
    assert!(sender.error().is_none(), "nothing was asked");
    let (mut clients, mut servers) = tcp::connections(3);
    sender.finish(servers.remove(0)).unwrap();
    sender.give(servers.remove(0)).unwrap();
    let lent = servers.remove(0);
    sender.give(&lent).unwrap();
    drop(lent);
    assert!(sender.error().is_none());
    daemon.wait_for("lingering=3 senders=1");
    for client in &mut clients {
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "it was half-closed");
    }
    // One that is worth a second, or less, and one that is worth more than there is.
    let (_brief, server) = tcp::connection();
    sender.give_for(server, Duration::from_millis(1)).unwrap();
    let (long, server) = tcp::connection();
    sender.give_for(server, Duration::MAX).unwrap();
    daemon.wait_for("limit=1 lingering=4 senders=1");
    drop((clients, long));
    daemon.finish("closed=4 limit=1");
}

#[test]
fn one_whose_client_is_done_is_closed_and_not_handed_over() {
    let daemon = Daemon::start(&[]);
    let (client, server) = tcp::connection();
    drop(client);
    tcp::wait_until_readable(&server);
    sender(&daemon.site).finish(server).unwrap();
    daemon.finish("");
}

#[test]
fn without_a_daemon_it_comes_back_and_one_that_comes_is_found_and_found_again() {
    let site = Site::new();
    let sender = sender(&site);
    for _ in 0..3 {
        let (mut client, server) = tcp::connection();
        let refused = sender.give_for(server, Duration::from_secs(600)).unwrap_err();
        assert_eq!(refused.error.raw_os_error(), Some(libc::ENOENT));
        assert_eq!(sender.error().unwrap().raw_os_error(), Some(libc::ENOENT));
        // It is as it was.
        assert_eq!(socket2::SockRef::from(&refused.socket).linger().unwrap(), None);
        io::Write::write_all(&mut &refused.socket, b"still").unwrap();
        drop(refused);
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "still");
    }
    for _ in 0..2 {
        let daemon = site.start(&[]);
        let _client = end_until_taken(&sender);
        assert!(sender.error().is_none());
        daemon.wait_for("handed_over=1 senders=1");
        daemon.kill();
        let error = eventually(|| match sender.finish(tcp::connection().1) {
            Ok(()) => Err("there is nobody".to_owned()),
            Err(refused) => Ok(refused.error),
        });
        assert_eq!(sender.error().unwrap().kind(), error.kind());
    }
}

#[test]
fn a_daemon_that_stands_still_holds_nobody_up_and_keeps_its_link() {
    let daemon = Daemon::start(&[]);
    let sender = sender(&daemon.site);
    let mut clients = vec![end_until_taken(&sender)];
    daemon.wait_for("senders=1");
    daemon.freeze();
    let refused = loop {
        let (client, server) = tcp::connection();
        match sender.give(server) {
            Ok(()) => clients.push(client),
            Err(refused) => break refused.error,
        }
        assert!(clients.len() < 100_000, "a queue without end");
    };
    let busy = [libc::EAGAIN, libc::ETOOMANYREFS, libc::ENOBUFS, libc::EMFILE];
    assert!(busy.contains(&refused.raw_os_error().unwrap()), "{refused}");
    assert!(sender.error().is_none(), "there is a link");
    daemon.thaw();
    daemon.wait_for(&format!("lingering={} senders=1", clients.len()));
    drop(clients);
    let _last = end_until_taken(&sender);
    daemon.wait_for("lingering=1 senders=1 rejected=0 protocol_errors=0");
}

#[test]
fn what_is_in_memory_and_in_files_the_daemon_writes() {
    let daemon = Daemon::start(&[]);
    let sender = sender(&daemon.site);
    let much = tcp::response(MUCH);
    let [first, second, third] = [&much[..MUCH / 3], &much[MUCH / 3..MUCH / 2], &much[MUCH / 2..]];
    let path = daemon.site.path("file");
    fs::write(&path, [b"???", second].concat()).unwrap();
    let file = File::open(&path).unwrap();
    let parts = [
        Part::Memory(first),
        Part::File { file: file.as_fd(), offset: 3, length: second.len() as u64, ours: false },
        Part::Memory(third),
        Part::Memory(b""),
    ];
    assert_eq!(parts.len(), MAX_PARTS);
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let (client, server) = tcp::connection_with_small_window(4096);
            assert!(sender.may_spool(PATIENCE, None));
            sender.spool(server, &parts, LONG).unwrap();
            client
        })
        .collect();
    daemon.wait_for("spooling=3 senders=1");
    for mut client in clients {
        assert!(tcp::read_to_end(&mut client) == much, "another response");
    }
    assert_eq!(fs::read(&path).unwrap(), [b"???", second].concat(), "it is not the daemon's");
    daemon.wait_for("spooled=3 spooling=0 broken=0 protocol_errors=0");
}

#[test]
fn a_daemon_that_does_not_say_that_it_takes_a_response_is_given_none_and_waited_for_as_long_as_is_said() {
    let daemon = Daemon::start(&[]);
    let sender = sender(&daemon.site);
    let parts = [Part::Memory(b"hello\n")];
    assert!(sender.may_spool(PATIENCE, None));
    let (mut client, server) = tcp::connection();
    daemon.freeze();
    sender.spool(server, &parts, LONG).expect("it has said so");
    for _ in 0..2 {
        let (_client, server) = tcp::connection();
        assert!(!sender.may_spool(Duration::ZERO, None));
        assert!(!sender.may_spool(Duration::from_millis(10), None));
        assert!(!sender.may_spool(LONG, Some(server.as_fd())), "there is room");
        let refused = sender.spool(server, &parts, LONG).unwrap_err();
        assert_eq!(refused.error.kind(), ErrorKind::WouldBlock);
        assert_eq!(socket2::SockRef::from(&refused.socket).linger().unwrap(), None);
    }
    thread::scope(|scope| {
        let may = scope.spawn(|| sender.may_spool(LONG, None));
        daemon.thaw();
        assert!(may.join().unwrap());
    });
    assert_eq!(tcp::read_to_end(&mut client), b"hello\n");
    daemon.kill();
    assert!(sender.error().is_none(), "nothing was asked");
    let (_client, server) = tcp::connection();
    let refused = errno(sender.spool(server, &parts, LONG));
    assert!(refused.is_some());
    assert_eq!(sender.error().unwrap().raw_os_error(), refused);
    assert!(!sender.may_spool(LONG, None), "there is no link, and nobody to wait for");
}

#[test]
fn all_threads_hand_over_on_one_link() {
    let daemon = Daemon::start(&[]);
    let sender = Arc::new(sender(&daemon.site));
    let (clients, servers) = tcp::connections(8);
    thread::scope(|scope| {
        for server in &servers {
            let sender = Arc::clone(&sender);
            scope.spawn(move || (0..25).for_each(|_| sender.give(server).unwrap()));
        }
    });
    daemon.wait_for("lingering=200 senders=1");
    drop((clients, servers));
    daemon.finish("closed=200");
}

#[test]
fn what_is_wrong_is_refused_and_costs_neither_the_connection_nor_the_link() {
    let daemon = Daemon::start(&[]);
    let sender = sender(&daemon.site);
    let _client = end_until_taken(&sender);
    let is_refused = |result: Result<(), io::Error>| {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput);
    };
    let (mut unix, mut other) = UnixStream::pair().unwrap();
    is_refused(sender.give(&unix).map_err(io::Error::from));
    is_refused(sender.finish(&unix).map_err(io::Error::from));
    is_refused(sender.give_for(&unix, LONG).map_err(io::Error::from));
    is_refused(sender.spool(&unix, &[Part::Memory(b"")], LONG).map_err(io::Error::from));
    io::Write::write_all(&mut unix, b"x").expect("it was half-closed");
    other.read_exact(&mut [0]).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    if cfg!(not(target_vendor = "apple")) {
        is_refused(sender.finish(&listener).map_err(io::Error::from));
    }
    is_refused(sender.finish(std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).map_err(io::Error::from));
    let (_client, server) = tcp::connection();
    let file = File::open("/dev/null").unwrap();
    let file = |offset, length| Part::File { file: file.as_fd(), offset, length, ours: false };
    assert!(sender.may_spool(PATIENCE, None));
    for parts in [&[][..], &[Part::Memory(b""); 5], &[file(u64::MAX, 1)], &[file(1, i64::MAX as u64)]] {
        is_refused(sender.spool(&server, parts, LONG).map_err(io::Error::from));
    }
    let all = file(0, i64::MAX as u64);
    is_refused(sender.spool(&server, &[all; 4], LONG).map_err(io::Error::from));
    for path in ["", "with\0nul", &"x".repeat(200)] {
        assert!(Sender::new(path).is_err(), "{path:?}");
    }
    let _last = end_until_taken(&sender);
    daemon.wait_for("lingering=2 senders=2 rejected=0 protocol_errors=0");
}

/// As often as it is asked, while there is no room for one more at its socket.
#[cfg(target_os = "linux")]
#[test]
fn a_daemon_that_has_no_room_for_one_more_is_tried_once_a_second_at_most() {
    use socket2::{Domain, SockAddr, Socket, Type};

    let another = || Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    loop {
        let site = Site::new();
        let path = site.path("full");
        let address = SockAddr::unix(&path).unwrap();
        let listener = another();
        listener.bind(&address).unwrap();
        listener.listen(0).unwrap();
        let filler = another();
        filler.connect(&address).unwrap();
        let sender = Sender::new(&path).unwrap();
        let (_client, server) = tcp::connection();
        let start = std::time::Instant::now();
        assert_eq!(errno(sender.give(&server)), Some(libc::EAGAIN));
        assert_eq!(sender.error().unwrap().kind(), ErrorKind::WouldBlock);
        listener.accept().unwrap();
        let again = sender.give(&server);
        // On a machine that is so slow this says nothing.
        if start.elapsed() < Duration::from_secs(1) {
            assert_eq!(errno(again), Some(libc::EAGAIN));
            return;
        }
    }
}
