// SPDX-License-Identifier: BSD-3-Clause

//! Responses that are still to be written when they are handed over: whole, in their order, however slowly they are
//! read; or cut off so that nobody takes them for whole.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use support::daemon::{Daemon, Site};
use support::sender::spool_head;
use support::{tcp, wait_until};

pub const MEGABYTE: u64 = 1 << 20;
/// Longer than any test takes.
pub const LONG: Duration = Duration::from_secs(1_000);

/// What is at `offset` of a file.
fn byte(offset: u64) -> u8 {
    (offset % 251) as u8
}

pub fn pattern(range: std::ops::Range<u64>) -> Vec<u8> {
    range.map(byte).collect()
}

/// A file of that length that has no name any more.
pub fn file(site: &Site, length: u64) -> File {
    let path = site.path("content");
    let mut file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    fs::remove_file(path).unwrap();
    file.write_all(&pattern(0..length)).unwrap();
    file
}

/// The same in memory, where the system has such files.
pub fn memory(site: &Site, length: u64) -> File {
    let path = std::path::Path::new("/dev/shm");
    if !path.is_dir() {
        return file(site, length);
    }
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = path.join(format!("lingerd-{}-{number}", std::process::id()));
    let _ = fs::remove_file(&path);
    let mut file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    fs::remove_file(path).unwrap();
    file.write_all(&pattern(0..length)).unwrap();
    file
}

/// A connection whose client takes little at once.
pub fn slow() -> (TcpStream, TcpStream) {
    tcp::connection_with_small_window(4096)
}

/// What the client is sent until the end, which is one and no reset.
pub fn read_all(client: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    client.read_to_end(&mut all).expect("the response is cut off");
    all
}

/// That the client is not told that what it has is all.
pub fn assert_cut_off(client: &mut TcpStream) {
    let mut all = Vec::new();
    let error = client.read_to_end(&mut all).expect_err("a response that is cut off looks whole");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn the_rest_of_a_response_is_written_in_its_order_and_lingered_on() {
    let daemon = Daemon::start(&[]);
    let sender = daemon.spooler();
    let (mut client, mut server) = slow();
    server.write_all(b"begins").unwrap();
    let (in_memory, on_disk) = (memory(&daemon.site, 9 * MEGABYTE), file(&daemon.site, MEGABYTE));
    let parts = [
        (&in_memory, 5, 8 * MEGABYTE, true),
        (&on_disk, 1_000, 500_000, false),
        (&in_memory, 7, 0, false),
        (&on_disk, 0, 1, false),
    ];
    sender.spool(server, &parts, LONG);
    daemon.wait_for("spooling=1 spooled=1 lingering=0 handed_over=1");
    client.write_all(&[0; 5_000]).unwrap(); // and has it read before the response is
    daemon.wait_for("bytes_discarded=5000");
    let expected =
        [&b"begins"[..], &pattern(5..5 + 8 * MEGABYTE), &pattern(1_000..501_000), &pattern(0..1)].concat();
    assert!(read_all(&mut client) == expected, "another response");
    daemon.wait_for("spooling=0 spool_bytes=0 lingering=1");
    assert_eq!(daemon.timed("spool_seconds", "written")["count"], 1);
    assert_eq!(daemon.timed("linger_seconds", "closed")["count"], 0);
    drop(client);
    daemon.finish("closed=1 bytes_discarded=5000");
}

#[test]
fn a_client_that_has_ended_its_side_has_all_of_it_and_is_closed_then() {
    let daemon = Daemon::start(&[]);
    let content = memory(&daemon.site, 8 * MEGABYTE);
    let (mut client, server) = slow();
    client.shutdown(Shutdown::Write).unwrap();
    daemon.spooler().spool(server, &[(&content, 0, 8 * MEGABYTE, true)], LONG);
    daemon.wait_for("spooling=1");
    assert!(read_all(&mut client) == pattern(0..8 * MEGABYTE));
    daemon.finish("closed=1");
}

#[test]
fn many_at_once_each_have_their_own() {
    let daemon = Daemon::start(&["-M", "512"]);
    let content = memory(&daemon.site, 8 * MEGABYTE);
    let sender = daemon.spooler();
    let mut clients = Vec::new();
    for n in 0..20 {
        let (client, server) = slow();
        sender.spool(server, &[(&content, n * 1_000, 7 * MEGABYTE, false)], LONG);
        clients.push(client);
    }
    daemon.wait_for("spooling=20");
    for (n, client) in (0..).zip(&mut clients) {
        assert!(read_all(client) == pattern(n * 1_000..n * 1_000 + 7 * MEGABYTE), "of {n}");
    }
    drop(clients);
    daemon.finish("closed=20");
}

#[test]
fn what_does_not_get_on_is_cut_off_and_what_does_is_not() {
    let daemon = Daemon::start(&[]);
    let content = memory(&daemon.site, 8 * MEGABYTE);
    let sender = daemon.spooler();
    let (mut stalled, server) = slow();
    sender.spool(server, &[(&content, 0, 8 * MEGABYTE, false)], Duration::from_millis(500));
    daemon.wait_for("stalled=1 cut_short=1");
    assert_cut_off(&mut stalled);
    let timed = daemon.timed("spool_seconds", "stalled");
    assert_eq!((&timed["count"], &timed["up_to"]["0.25"]), (&1.into(), &0.into()), "{timed}");
    // A byte now and then is enough. It reads for longer than the daemon would wait for nothing, which is far longer than
    // it rests each time.
    let (patience, rests) = (Duration::from_secs(12), 16);
    let (mut client, server) = slow();
    sender.spool(server, &[(&content, 0, 8 * MEGABYTE, false)], patience);
    let mut read = vec![0; 8 * MEGABYTE as usize];
    for piece in read.chunks_mut(8 * MEGABYTE as usize / rests) {
        client.read_exact(piece).unwrap();
        thread::sleep(patience / 8);
    }
    assert!(read == pattern(0..8 * MEGABYTE));
    drop(client);
    daemon.finish("closed=1 stalled=1 cut_short=1");
}

#[test]
fn what_is_shorter_than_was_said_or_no_file_is_cut_off() {
    let daemon = Daemon::start(&[]);
    let sender = daemon.spooler();
    for content in [memory(&daemon.site, 1_000), file(&daemon.site, 1_000)] {
        let (mut client, server) = tcp::connection();
        sender.spool(server, &[(&content, 0, 1_001, false)], LONG);
        assert_cut_off(&mut client);
    }
    daemon.wait_for("broken=2");
    let (pipe, _other) = UnixStream::pair().unwrap();
    let null = UnixStream::from(std::os::fd::OwnedFd::from(File::open("/dev/null").unwrap()));
    for other in [&pipe, &null] {
        let (mut client, server) = tcp::connection();
        sender.spool(server, &[(other, 0, 10, false)], LONG);
        assert_cut_off(&mut client);
    }
    daemon.wait_for("broken=4 cut_short=4");
    // It shrinks while it is sent.
    let (mut client, server) = slow();
    let content = memory(&daemon.site, 8 * MEGABYTE);
    sender.spool(server, &[(&content, 0, 8 * MEGABYTE, false)], LONG);
    daemon.wait_for("spooling=1");
    content.set_len(10).unwrap();
    assert_cut_off(&mut client);
    daemon.finish("broken=5 cut_short=5");
}

#[test]
fn who_is_killed_cuts_off_what_is_not_written_and_the_next_one_counts_it() {
    let site = Site::new();
    let mut daemon = site.start(&[]);
    let content = memory(&site, 8 * MEGABYTE);
    let sender = daemon.spooler();
    let (mut whole, server) = tcp::connection();
    sender.spool(server, &[(&content, 0, 10, false)], LONG);
    assert_eq!(read_all(&mut whole).len(), 10);
    let mut clients = Vec::new();
    for _ in 0..3 {
        let (client, server) = slow();
        sender.spool(server, &[(&content, 0, 8 * MEGABYTE, false)], LONG);
        clients.push(client);
    }
    daemon.wait_for("spooling=3 killed=0");
    // Through a daemon that takes over it is still known.
    let new = site.start(&["-r"]);
    assert_eq!(daemon.wait_for_end(), Some(0));
    daemon = new;
    daemon.wait_for("spooling=3 killed=0");
    let mut first = clients.remove(0);
    assert!(read_all(&mut first) == pattern(0..8 * MEGABYTE));
    daemon.wait_for("spooling=2");
    daemon.kill();
    clients.iter_mut().for_each(assert_cut_off);
    let mut next = site.start(&[]);
    next.wait_for("killed=2 spooled=0 handed_over=0");
    next.wait_for_log("2 responses were cut off");
    let another = site.start(&["-r"]);
    assert_eq!(next.wait_for_end(), Some(0)); // till then it may be the one that answers
    another.wait_for("killed=2");
    another.finish("killed=2");
    let last = site.start(&[]);
    last.wait_for("killed=0"); // that end was in order
}

#[test]
fn the_next_daemon_goes_on_where_the_one_before_it_has_left_off() {
    let site = Site::new();
    let mut old = site.start(&[]);
    let contents = [memory(&site, 8 * MEGABYTE), file(&site, 8 * MEGABYTE)];
    let sender = old.spooler();
    let mut clients = Vec::new();
    for content in &contents {
        let (client, server) = slow();
        sender.spool(server, &[(content, 0, 8 * MEGABYTE, false)], LONG);
        clients.push(client);
    }
    old.wait_for("spooling=2");
    let mut begins = [[0; 300_000]; 2];
    for (client, begin) in clients.iter_mut().zip(&mut begins) {
        client.read_exact(begin).unwrap();
    }
    let new = site.start(&["-r"]);
    assert_eq!(old.wait_for_end(), Some(0));
    new.wait_for("spooling=2 spooled=2 senders=1");
    let (client, server) = slow();
    sender.spool(server, &[(&contents[0], 0, 8 * MEGABYTE, false)], LONG);
    new.wait_for("spooling=3 spooled=3");
    for (client, begin) in clients.iter_mut().zip(begins) {
        assert!([begin.to_vec(), read_all(client)].concat() == pattern(0..8 * MEGABYTE));
    }
    drop((client, clients));
    new.wait_for("spooling=0 lingering=0");
}

#[test]
fn beyond_the_most_nobody_is_allowed_more_until_there_is_room_and_then_all_are_in_their_order() {
    let daemon = Daemon::start(&["-M", "4"]);
    let content = || memory(&daemon.site, 8 * MEGABYTE);
    let senders: Vec<_> = (1..=3)
        .map(|number| {
            let sender = daemon.spooler();
            daemon.wait_for(&format!("senders={number}"));
            sender
        })
        .collect();
    let mut clients = Vec::new();
    // What was allowed before counts.
    for sender in &senders {
        let (client, server) = slow();
        sender.spool(server, &[(&content(), 0, 8 * MEGABYTE, true)], LONG);
        clients.push(client);
        daemon.wait_for(&format!("spooled={}", clients.len()));
    }
    let late = daemon.spooler();
    let (client, server) = slow();
    daemon.sender().hand_over(server); // that takes nothing
    let (other, server) = slow();
    late.hand_over(server);
    daemon.wait_for("senders=4 spooling=3 lingering=2");
    assert!(senders.iter().chain([&late]).all(|sender| !sender.has_go_ahead()));
    drop((client, other));
    // There is room when the last of them is done: for two, as what is usual is still less than that. Whoever is allowed
    // one has a second while others wait, and so each waits for it by himself, and has it made before.
    let all: Vec<_> = senders.iter().chain([&late]).map(|sender| (sender, slow(), content())).collect();
    let (spooled, next) = mpsc::channel();
    thread::scope(|scope| {
        for (number, (sender, (client, server), content)) in all.into_iter().enumerate() {
            let spooled = spooled.clone();
            scope.spawn(move || {
                sender.spool(server, &[(&content, 0, 8 * MEGABYTE, true)], LONG);
                let _ = spooled.send((number, client));
            });
        }
        drop(spooled);
        for client in &mut clients {
            assert!(read_all(client) == pattern(0..8 * MEGABYTE));
        }
        drop(clients);
        for (place, (number, mut client)) in next.iter().enumerate() {
            assert!(number <= place + 1, "{number} has come before two that are before it");
            assert!(read_all(&mut client) == pattern(0..8 * MEGABYTE));
        }
    });
    daemon.wait_for("spooled=7 protocol_errors=0");
}

#[test]
fn what_nobody_has_allowed_is_refused_and_what_was_before_goes_on() {
    let daemon = Daemon::start(&[]);
    let content = memory(&daemon.site, 8 * MEGABYTE);
    let head = spool_head([(0, 8 * MEGABYTE, false)].into_iter(), LONG);
    let sender = daemon.spooler();
    sender.wait_for_go_ahead();
    let (mut clients, mut servers) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let (client, server) = slow();
        socket2::SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
        clients.push(client);
        servers.push(server);
    }
    // Two for one, at once.
    for server in &servers {
        let _ = sender.try_send(&head, &[server.as_fd(), content.as_fd()]);
    }
    drop(servers);
    daemon.wait_for("spooling=1 spooled=1 protocol_errors=1 rejected=2 senders=0");
    sender.wait_until_hung_up();
    assert_cut_off(&mut clients[1]);
    assert!(read_all(&mut clients[0]) == pattern(0..8 * MEGABYTE));
    drop(clients);
    daemon.finish("closed=1 protocol_errors=1 rejected=2");
}

#[test]
fn what_was_allowed_is_so_by_the_next_daemon_too_and_nothing_else_is() {
    let site = Site::new();
    let mut old = site.start(&[]);
    let content = memory(&site, 8 * MEGABYTE);
    let [has_it, has_read_it, has_used_it] = [0; 3].map(|_| old.spooler());
    has_read_it.wait_for_go_ahead();
    let (first, server) = slow();
    has_used_it.spool(server, &[(&content, 0, 8 * MEGABYTE, false)], LONG);
    has_used_it.wait_for_go_ahead();
    wait_until("it is allowed", || has_it.has_go_ahead());
    old.wait_for("spooling=1 senders=3");
    let new = site.start(&["-r"]);
    assert_eq!(old.wait_for_end(), Some(0));
    new.wait_for("spooling=1 senders=3");
    assert!(has_it.has_go_ahead() && !has_read_it.has_go_ahead() && !has_used_it.has_go_ahead());
    let head = spool_head([(0, 1_000, false)].into_iter(), LONG);
    for sender in [&has_read_it, &has_used_it] {
        let (mut client, server) = tcp::connection();
        sender.send(&head, &[server.as_fd(), content.as_fd()]);
        drop(server);
        assert!(read_all(&mut client) == pattern(0..1_000));
    }
    for sender in [&has_it, &has_read_it, &has_used_it] {
        let (mut client, server) = tcp::connection();
        sender.spool(server, &[(&content, 0, 1_000, false)], LONG);
        assert!(read_all(&mut client) == pattern(0..1_000));
    }
    drop(first);
    new.wait_for("spooled=6 protocol_errors=0 spooling=0");
}

#[test]
fn a_head_may_come_in_pieces_and_what_is_none_is_refused() {
    let daemon = Daemon::start(&[]);
    let content = memory(&daemon.site, 1_000);
    let (mut client, server) = tcp::connection();
    let head = spool_head([(0, 1_000, false)].into_iter(), LONG);
    let sender = daemon.spooler();
    sender.wait_for_go_ahead();
    sender.send(&head[..1], &[server.as_fd(), content.as_fd()]);
    daemon.wait_for("senders=1");
    sender.send(&head[1..30], &[]);
    sender.send(&head[30..], &[]);
    drop(server);
    assert!(read_all(&mut client) == pattern(0..1_000));
    drop(client);
    daemon.wait_for("closed=1 protocol_errors=0");
    // Nobody says that at the first socket.
    let (mut client, server) = tcp::connection();
    let wrong = daemon.sender();
    wrong.send(&head, &[server.as_fd(), content.as_fd()]);
    wrong.wait_until_hung_up();
    let nonsense = daemon.spooler();
    nonsense.wait_for_go_ahead();
    nonsense.send(&[b'S'; 72], &[server.as_fd(), content.as_fd()]);
    nonsense.wait_until_hung_up();
    let half = daemon.spooler();
    half.wait_for_go_ahead();
    half.send(b"S", &[server.as_fd(), content.as_fd()]);
    drop(half);
    daemon.wait_for("protocol_errors=3 senders=1");
    wait_until("the files are closed", || daemon.counters()["rejected"] >= 4);
    drop(server);
    let _ = client.read(&mut [0]);
    drop(client);
    daemon.signal(libc::SIGTERM);
}

/// They could only make room for each other, and whoever did would be cut off.
#[test]
fn beyond_half_of_the_table_nobody_is_taken_either_and_nobody_is_evicted() {
    let daemon = Daemon::start(&["-n", "6"]);
    let content = memory(&daemon.site, 8 * MEGABYTE);
    let sender = daemon.spooler();
    let mut clients = Vec::new();
    let spool = || {
        let (client, server) = slow();
        sender.spool(server, &[(&content, 0, 8 * MEGABYTE, false)], LONG);
        client
    };
    for _ in 0..3 {
        clients.push(spool());
    }
    daemon.wait_for("spooling=3");
    let (mut others, servers) = tcp::connections(4);
    daemon.sender().hand_over_all(&servers); // one of them makes room for the others
    drop(servers);
    daemon.wait_for("spooling=3 lingering=3 evicted=1");
    assert!(!sender.has_go_ahead());
    for n in 0..10 {
        let mut client = clients.remove(0);
        assert!(read_all(&mut client) == pattern(0..8 * MEGABYTE));
        drop(client);
        daemon.wait_for("lingering=3"); // else it is evicted for the next one
        if n < 7 {
            clients.push(spool());
        }
    }
    others.clear();
    daemon.wait_for("spooling=0 spooled=10 lingering=0 evicted=1 closed=13");
}
