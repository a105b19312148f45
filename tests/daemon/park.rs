// SPDX-License-Identifier: BSD-3-Clause

//! Connections whose server waits for their clients: back to a worker when they speak, once, and never lost.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::Duration;
use support::daemon::Daemon;
use support::sender::Sender;
use support::workers::{Workers, head};
use support::{daemon, tcp, wait_until};

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(1_000);

/// A daemon, a server's workers, and one of them that parks.
fn scene(options: &[&str]) -> (Daemon, Workers, Sender) {
    let daemon = Daemon::start(options);
    let workers = Workers::beside(&daemon.site.socket());
    let sender = daemon.spooler();
    (daemon, workers, sender)
}

fn read(socket: &mut TcpStream, expected: &[u8]) {
    let mut buffer = vec![0; expected.len()];
    socket.read_exact(&mut buffer).unwrap();
    assert_eq!(buffer, expected);
}

#[test]
fn it_comes_back_with_what_its_server_said_when_the_client_speaks() {
    let (daemon, workers, sender) = scene(&[]);
    let (mut client, server) = tcp::connection();
    sender.park(server, &head(b'K', LONG, 7));
    daemon.wait_for("parked=1 returning=0 lingering=0 handed_over=1");
    assert!(workers.has_none());
    client.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    let offer = workers.offered();
    daemon.wait_for("parked=1 returning=1");
    assert_eq!(offer.head, head(b'K', LONG, 7));
    let mut server = offer.take();
    daemon.wait_for("parked=0 returning=0 returned=1");
    read(&mut server, b"GET / HTTP/1.1\r\n");
    server.write_all(b"hello").unwrap();
    read(&mut client, b"hello");
    // And again, on the same link, when there is something to be read at once.
    client.write_all(b"more").unwrap();
    sender.park(server, &head(b'K', LONG, 8));
    read(&mut workers.offered().take(), b"more");
    daemon.finish("returned=2");
}

#[test]
fn whoever_is_silent_for_too_long_is_lingered_on_and_whoever_closes_is_closed() {
    let (daemon, _workers, sender) = scene(&[]);
    let (mut silent, server) = tcp::connection();
    sender.park(server, &head(b'K', Duration::from_millis(1), 0));
    assert_eq!(silent.read(&mut [0]).unwrap(), 0, "half-closed");
    daemon.wait_for("parked=0 lingering=1");
    silent.write_all(b"late").unwrap();
    daemon.wait_for("bytes_discarded=4");
    drop(silent);
    let (client, server) = tcp::connection();
    sender.park(server, &head(b'K', LONG, 0));
    drop(client);
    let (client, server) = tcp::connection();
    sender.park(server, &head(b'K', LONG, 0));
    tcp::reset(client);
    daemon.finish("closed=2 reset=1 bytes_discarded=4");
}

#[test]
fn who_lingers_after_it_was_parked_counts_among_those_of_its_address() {
    let (daemon, _workers, sender) = scene(&["-n", "40"]);
    let Some((first, server)) = tcp::connection_from([127, 0, 0, 2].into()) else {
        return; // a system with one loopback address only
    };
    sender.hand_over(server);
    let mut modest = vec![first];
    for (client, server) in (1..10).filter_map(|_| tcp::connection_from([127, 0, 0, 2].into())) {
        sender.hand_over(server);
        modest.push(client);
    }
    let mut greedy = Vec::new();
    for n in 1..=30 {
        let (client, server) = tcp::connection_from([127, 0, 0, 1].into()).unwrap();
        sender.park(server, &head(b'K', Duration::from_millis(1), 0));
        greedy.push(client);
        daemon.wait_for(&format!("parked=0 lingering={} evicted=0", 10 + n));
    }
    // The modest ones were there first, and are the nearest to their end.
    let mut others = Vec::new();
    for (client, server) in (3..23).filter_map(|n| tcp::connection_from([127, 0, 0, n].into())) {
        sender.hand_over(server);
        others.push(client);
    }
    daemon.wait_for("lingering=40 evicted=20");
    drop((modest, others));
    daemon.wait_for("lingering=10 closed=30");
    drop(greedy);
    daemon.finish("closed=40 evicted=20");
}

#[test]
fn one_that_no_worker_takes_is_offered_again_and_the_order_is_kept() {
    let (daemon, workers, sender) = scene(&[]);
    let mut clients = Vec::new();
    for n in 0..100 {
        let (mut client, server) = tcp::connection();
        sender.park(server, &head(b'K', LONG, n));
        client.write_all(&[n]).unwrap();
        daemon.wait_for(&format!("returning={}", n + 1));
        clients.push(client);
    }
    // Some workers die with what they have not said that they take.
    for n in 0..10 {
        let offer = workers.offered();
        assert_eq!(offer.head[32], n);
        drop(offer);
    }
    let mut seen = Vec::new();
    for _ in 0..100 {
        let offer = workers.offered();
        let n = offer.head[32];
        seen.push(n);
        read(&mut offer.take(), &[n]);
    }
    // Of a worker that has died it hears when no child of ours that is just being started has a copy of the link.
    assert!(seen.iter().filter(|n| **n >= 64).is_sorted(), "those that queue in the daemon: {seen:?}");
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..100), "each of them once");
    daemon.finish("returned=100");
}

#[test]
fn a_new_one_comes_back_when_its_head_is_whole_or_too_late() {
    let (daemon, workers, sender) = scene(&[]);
    let (mut client, server) = tcp::connection();
    sender.park(server, &head(b'H', LONG, 1));
    for part in ["\r\nGET / HTTP/1.1\r\n", "Host: a\r", "\n", "\r"] {
        client.write_all(part.as_bytes()).unwrap();
        daemon.wait_for("parked=1 returning=0");
    }
    assert!(workers.has_none());
    client.write_all(b"\n").unwrap();
    let offer = workers.offered();
    assert_eq!(offer.head, head(b'H', LONG, 1));
    read(&mut offer.take(), b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");

    let patience = Duration::from_millis(200);
    let (mut client, server) = tcp::connection();
    client.write_all(b"GET / HT").unwrap();
    sender.park(server, &head(b'H', patience, 2));
    let offer = workers.offered();
    assert_eq!(offer.head[2], 1, "late");
    read(&mut offer.take(), b"GET / HT");

    let (mut client, server) = tcp::connection();
    sender.park(server, &head(b'H', LONG, 3));
    client.write_all(&[b'x'; 9_000]).unwrap();
    assert_eq!(
        workers.offered().take().as_fd().try_clone_to_owned().map(|_| ()).ok(),
        Some(()),
        "more than a head"
    );
    daemon.finish("returned=3");
}

#[test]
fn what_waits_for_a_server_that_starts_anew_is_the_new_one_s() {
    let (daemon, workers, sender) = scene(&[]);
    let (mut client, server) = tcp::connection();
    sender.park(server, &head(b'K', LONG, 1));
    let (mut other, server) = tcp::connection();
    sender.park(server, &head(b'K', LONG, 2));
    client.write_all(b"a").unwrap();
    daemon.wait_for("returning=1");
    drop((workers, sender));
    other.write_all(b"b").unwrap();
    daemon.wait_for("returning=2 senders=0");
    let workers = Workers::beside(&daemon.site.socket());
    for n in [1, 2] {
        let offer = workers.offered();
        assert_eq!(offer.head[32], n);
        offer.take();
    }
    daemon.finish("returned=2");
}

#[test]
fn what_belongs_to_a_server_that_has_gone_for_good_is_lingered_on() {
    let (daemon, workers, sender) = scene(&[]);
    let (mut silent, server) = tcp::connection();
    sender.park(server, &head(b'K', LONG, 1));
    let (mut client, server) = tcp::connection();
    sender.park(server, &head(b'K', LONG, 2));
    client.write_all(b"a").unwrap();
    daemon.wait_for("returning=1");
    drop(workers);
    daemon.wait_for("parked=0 abandoned=2 lingering=2 bytes_discarded=1");
    assert_eq!(silent.read(&mut [0]).unwrap(), 0);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    drop((silent, client));
    daemon.finish("closed=2 bytes_discarded=1");
}

#[test]
fn told_to_stop_it_lingers_on_the_silent_and_brings_back_who_has_spoken() {
    let (daemon, workers, sender) = scene(&["-W", "30"]);
    let (mut client, server) = tcp::connection();
    sender.park(server, &head(b'K', LONG, 1));
    let (mut silent, server) = tcp::connection();
    sender.park(server, &head(b'K', LONG, 2));
    client.write_all(b"a").unwrap();
    daemon.wait_for("returning=1");
    daemon.signal(libc::SIGTERM);
    assert_eq!(silent.read(&mut [0]).unwrap(), 0);
    drop(silent);
    let mut server = workers.offered().take();
    read(&mut server, b"a");
    server.write_all(b"still served").unwrap();
    read(&mut client, b"still served");
    let last = daemon.wait_for_good_end();
    assert_eq!((last["returned"], last["closed"]), (1, 1));
}

#[test]
fn who_has_spoken_just_before_the_stop_is_heard() {
    let (daemon, workers, sender) = scene(&["-W", "30"]);
    let mut clients: Vec<_> = (0..20)
        .map(|n| {
            let (client, server) = tcp::connection();
            sender.park(server, &head(b'K', LONG, n));
            client
        })
        .collect();
    daemon.freeze();
    daemon.signal(libc::SIGTERM);
    clients.iter_mut().for_each(|client| client.write_all(b"a").unwrap());
    daemon.thaw();
    (0..clients.len()).for_each(|_| read(&mut workers.offered().take(), b"a"));
    assert_eq!(daemon.wait_for_good_end()["returned"], 20);
}

#[test]
fn a_successor_has_all_of_them_and_what_is_offered_is_taken_once() {
    let (daemon, workers, sender) = scene(&[]);
    let site = daemon.site.clone();
    let park = |kind, own| {
        let (client, server) = tcp::connection();
        sender.park(server, &head(kind, LONG, own));
        client
    };
    let [mut silent, mut new, mut first, mut second] =
        [park(b'K', 1), park(b'H', 2), park(b'K', 3), park(b'K', 4)];
    new.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    for (client, many) in [(&mut first, 1), (&mut second, 2)] {
        client.write_all(b"x").unwrap();
        daemon.wait_for(&format!("returning={many}"));
    }
    let (one, other) = (workers.offered(), workers.offered());
    let mut daemon = daemon;
    let heir = site.start(&["-r"]);
    assert_eq!(daemon.wait_for_end(), Some(0));
    heir.wait_for("parked=4 returning=2 handed_over=4 senders=1");
    one.take();
    heir.wait_for("returned=1 parked=3");
    drop(other); // its worker dies
    let again = workers.offered();
    assert_eq!(again.head[32], 4);
    again.take();
    new.write_all(b"\r\n").unwrap();
    assert_eq!(workers.offered().take().peek(&mut [0; 99]).unwrap(), 18);
    silent.write_all(b"y").unwrap();
    workers.offered().take();
    // The sender's link came along.
    let (_client, server) = tcp::connection();
    sender.park(server, &head(b'K', Duration::from_millis(1), 0));
    heir.wait_for("lingering=1");
    drop(_client);
    heir.finish("returned=4 closed=1");
}

#[test]
fn what_is_no_such_message_costs_the_link_and_nothing_else() {
    // What is wrong of it, and from which byte on it says what instead.
    let wrong: [(&str, usize, &[u8]); 4] = [
        ("a name with a slash", 8, b"/"),
        ("no time", 4, &[0; 4]),
        ("no name", 1, &[0]),
        ("something where nothing is to be", 3, &[1]),
    ];
    let (daemon, workers, sender) = scene(&[]);
    let (mut client, server) = tcp::connection();
    sender.park(server, &head(b'K', LONG, 9));
    for (n, (what, at, with)) in wrong.into_iter().enumerate() {
        let sender = daemon.spooler();
        let (mut client, server) = tcp::connection();
        let mut head = head(b'K', LONG, 1);
        head[at..at + with.len()].copy_from_slice(with);
        sender.send(&head, &[server.as_fd()]);
        drop(server);
        sender.wait_until_hung_up();
        assert!(client.read(&mut [0]).map_or(true, |count| count == 0), "{what}");
        daemon.wait_for(&format!("protocol_errors={}", n + 1));
    }
    for descriptors in [0, 2] {
        let sender = daemon.spooler();
        let (_client, server) = tcp::connection();
        let _ = sender.try_send(&head(b'K', LONG, 1), &vec![server.as_fd(); descriptors]);
        sender.wait_until_hung_up();
    }
    client.write_all(b"a").unwrap();
    workers.offered().take();
    daemon.finish("returned=1 protocol_errors=6 rejected=6");
}

#[test]
fn what_is_no_connection_is_refused_or_ends_and_the_link_is_kept() {
    let (daemon, workers, sender) = scene(&[]);
    let file = std::fs::File::open("/dev/null").unwrap();
    sender.send(&head(b'K', LONG, 1), &[file.as_fd()]);
    sender.wait_for_taken();
    daemon.wait_for("rejected=1");
    let listener = tcp::listener();
    sender.send(&head(b'K', LONG, 1), &[listener.as_fd()]);
    sender.wait_for_taken();
    daemon.wait_for("rejected=2 parked=0");
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    listener.accept().expect("a listener is no worse for it");
    drop(client);
    let (mut client, server) = tcp::connection();
    sender.park(server, &head(b'K', LONG, 1));
    client.write_all(b"a").unwrap();
    workers.offered().take();
    daemon.wait_for("returned=1 senders=1");
}

#[test]
fn they_have_half_of_the_table_and_the_one_that_was_silent_for_the_longest_makes_room() {
    let (daemon, _workers, sender) = scene(&["-n", "10"]);
    let mut clients: Vec<_> = (0..6)
        .map(|_| {
            let (client, server) = tcp::connection();
            sender.park(server, &head(b'K', LONG, 1));
            client
        })
        .collect();
    daemon.wait_for("parked=5 lingering=1 abandoned=1");
    assert_eq!(clients[0].read(&mut [0]).unwrap(), 0, "the end of stream, and no reset");
    drop(clients);
    daemon.finish("closed=6");
}

/// The last close of what is queued in a link to a worker, or of what a worker has taken, may wait for a client.
#[test]
fn whoever_has_the_end_wait_for_a_client_keeps_nobody_waiting() {
    let (daemon, workers, sender) = scene(&[]);
    let waits = |server: &TcpStream| socket2::SockRef::from(server).set_linger(Some(LONG)).unwrap();
    // A worker takes one, and has done with it when the daemon hears that.
    let (mut client, server) = tcp::connection_with_full_window();
    sender.park(server, &head(b'K', LONG, 1));
    client.write_all(b"a").unwrap();
    let offer = workers.offered();
    daemon.freeze();
    let server = offer.take();
    waits(&server);
    drop(server);
    daemon.thaw();
    daemon.wait_for("returned=1 parked=0");
    // Another one sends what the daemon has not asked for.
    let (mut other, server) = tcp::connection();
    sender.park(server, &head(b'K', LONG, 2));
    other.write_all(b"a").unwrap();
    let mut offer = workers.offered();
    let (stalled, server) = tcp::connection_with_full_window();
    waits(&server);
    daemon.freeze();
    offer.say(b"A", &[]);
    offer.say(b"x", &[server.as_fd()]);
    drop(server);
    daemon.thaw();
    daemon.wait_for("returned=2 parked=0");
    offer.wait_until_withdrawn();
    daemon.finish("returned=2 rejected=1");
    drop((client, stalled));
}

#[test]
fn many_wait_without_work_and_each_comes_back() {
    let (daemon, workers, sender) = scene(&[]);
    let mut clients = Vec::new();
    for n in 0..400_u32 {
        let (client, server) = tcp::connection();
        sender.park(server, &head(b'K', LONG, n as u8));
        clients.push(client);
    }
    daemon.wait_for("parked=400");
    for round in 0..3 {
        for client in &mut clients {
            client.write_all(b"q").unwrap();
        }
        for _ in 0..clients.len() {
            let offer = workers.offered();
            let own = offer.head;
            let mut server = offer.take();
            read(&mut server, b"q");
            server.write_all(b"r").unwrap();
            sender.park(server, &own);
        }
        for client in &mut clients {
            read(client, b"r");
        }
        daemon.wait_for(&format!("parked=400 returning=0 returned={}", 400 * (round + 1)));
    }
    wait_until("nothing is to be done", || daemon::ps(daemon.pid, "stat").starts_with('S'));
    drop(clients);
    daemon.finish("returned=1200 closed=400");
}
