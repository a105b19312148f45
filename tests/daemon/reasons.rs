// SPDX-License-Identifier: BSD-3-Clause

//! Each reason for which a lingered connection ends, and what is counted then.

use lingerd_platform::tcp::TELLS_ACKNOWLEDGED;
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::Duration;
use support::daemon::{Daemon, Site};
use support::{skip, tcp, wait_until};

/// 1 where the system tells what is acknowledged, else 0: it does not count what it cannot know.
const TELLS: u64 = TELLS_ACKNOWLEDGED as u64;

#[test]
fn end_of_stream_before_the_hand_off_is_closed_and_never_lingers() {
    let daemon = Daemon::start(&[]);
    let (client, server) = tcp::connection();
    drop(client);
    tcp::wait_for_end(&server);
    daemon.sender().hand_over(server);
    daemon.wait_for("closed=1 peak=0");
    daemon.finish("closed=1");
}

#[test]
fn end_of_stream_after_the_hand_off_is_closed() {
    let daemon = Daemon::start(&[]);
    let (client, server) = tcp::connection();
    daemon.sender().hand_over(server);
    daemon.wait_for("lingering=1 closed=0");
    drop(client);
    daemon.wait_for("peak=1");
    daemon.finish("closed=1");
}

#[test]
fn data_and_end_of_stream_before_the_hand_off_is_closed() {
    let daemon = Daemon::start(&[]);
    let (mut client, server) = tcp::connection();
    client.write_all(b"late").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    tcp::wait_for_end(&server);
    daemon.sender().hand_over(server);
    daemon.finish("closed=1 bytes_discarded=4");
}

#[test]
fn data_and_end_of_stream_before_the_hand_off_is_closed_if_the_sender_has_half_closed_too() {
    let daemon = Daemon::start(&[]);
    let (mut client, server) = tcp::connection();
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(tcp::read_to_end(&mut client), b"");
    client.write_all(b"late").unwrap();
    drop(client);
    tcp::wait_for_end(&server);
    daemon.sender().hand_over(server);
    daemon.finish("closed=1 bytes_discarded=4");
}

#[test]
fn data_and_end_of_stream_after_the_hand_off_is_closed() {
    let daemon = Daemon::start(&[]);
    let (mut client, server) = tcp::connection();
    daemon.sender().hand_over(server);
    daemon.wait_for("lingering=1");
    client.write_all(b"late").unwrap();
    drop(client);
    daemon.finish("closed=1 bytes_discarded=4");
}

#[test]
fn ipv6_is_lingered_on_too() {
    let Some((mut client, server)) = tcp::connection_v6() else { return skip("there is no IPv6 here") };
    let daemon = Daemon::start(&[]);
    daemon.sender().hand_over(server);
    assert_eq!(tcp::read_to_end(&mut client), b"");
    client.write_all(b"late").unwrap();
    daemon.wait_for("lingering=1 bytes_discarded=4");
    drop(client);
    daemon.finish("closed=1 bytes_discarded=4");
}

#[test]
fn a_reset_before_the_hand_off_is_reset() {
    let daemon = Daemon::start(&[]);
    let (client, server) = tcp::connection();
    tcp::reset(client);
    tcp::wait_until_readable(&server);
    daemon.sender().hand_over(server);
    daemon.finish("reset=1");
}

#[test]
fn a_reset_while_lingering_is_reset() {
    let daemon = Daemon::start(&[]);
    let (client, server) = tcp::connection();
    daemon.sender().hand_over(server);
    daemon.wait_for("lingering=1");
    tcp::reset(client);
    daemon.finish("reset=1");
}

#[test]
fn a_silent_client_is_idle() {
    let daemon = Daemon::start(&["-t", "0.3"]);
    let (mut client, server) = tcp::connection();
    daemon.sender().hand_over(server);
    daemon.wait_for("idle=1 lingering=0");
    tcp::write_until_gone(&mut client);
    daemon.finish("idle=1");
}

#[test]
fn a_client_that_never_stops_sending_has_its_max() {
    let daemon = Daemon::start(&["-T", "0.3"]);
    let (mut client, server) = tcp::connection();
    daemon.sender().hand_over(server);
    wait_until("it has had its max", || drip(&daemon, &mut client, "max"));
    let discarded = daemon.counters()["bytes_discarded"];
    daemon.finish(&format!("max=1 bytes_discarded={discarded}"));
}

#[test]
fn the_limit_ends_a_silent_client() {
    let daemon = Daemon::start(&["-D", "0.3"]);
    let (_client, server) = tcp::connection();
    daemon.sender().hand_over(server);
    daemon.finish("limit=1");
}

#[test]
fn the_limit_ends_a_client_that_sends() {
    let daemon = Daemon::start(&["-D", "0.3"]);
    let (mut client, server) = tcp::connection();
    daemon.sender().hand_over(server);
    wait_until("it has reached the limit", || drip(&daemon, &mut client, "limit"));
    let discarded = daemon.counters()["bytes_discarded"];
    daemon.finish(&format!("limit=1 bytes_discarded={discarded}"));
}

/// With SO_LINGER, as a sender says it.
fn give(server: &TcpStream, seconds: u64) {
    socket2::SockRef::from(server).set_linger(Some(Duration::from_secs(seconds))).unwrap();
}

/// A client whose connection was handed over so.
fn given(daemon: &Daemon, seconds: u64) -> TcpStream {
    let (client, server) = tcp::connection();
    give(&server, seconds);
    daemon.sender().hand_over(server);
    client
}

#[test]
fn a_sender_may_give_a_connection_less_time() {
    let daemon = Daemon::start(&["-t", "600", "-D", "600"]);
    let clients = [1, 600].map(|seconds| given(&daemon, seconds));
    daemon.wait_for("limit=1 lingering=1");
    drop(clients);
    daemon.finish("limit=1 closed=1");
}

#[test]
fn a_sender_may_not_give_a_connection_more_time() {
    let daemon = Daemon::start(&["-D", "0.3"]);
    let _client = given(&daemon, 600);
    daemon.finish("limit=1");
}

#[test]
fn a_client_that_sends_does_not_have_more_of_what_its_sender_gives() {
    let daemon = Daemon::start(&[]);
    let (mut client, server) = tcp::connection();
    give(&server, 1);
    daemon.sender().hand_over(server);
    wait_until("its time is up", || drip(&daemon, &mut client, "limit"));
    let discarded = daemon.counters()["bytes_discarded"];
    daemon.finish(&format!("limit=1 bytes_discarded={discarded}"));
}

#[test]
fn each_that_ends_is_logged_with_its_client_however_it_ends() {
    let daemon = Daemon::start(&["-d", "-t", "600", "-D", "600"]);
    let sender = daemon.sender();
    let (mut expected, mut stays) = (Vec::new(), Vec::new());
    for (how, after) in [("closed", 1), ("reset", 2), ("limit", 3)] {
        let (client, server) = tcp::connection();
        let address = client.local_addr().unwrap();
        tcp::half_close(&server);
        if how == "limit" {
            give(&server, 1);
        }
        sender.hand_over(server);
        daemon.wait_for(&format!("handed_over={after}"));
        match how {
            "closed" => drop(client),
            "reset" => tcp::reset(client),
            _ => stays.push(client),
        }
        daemon.wait_for("lingering=0");
        expected.push(format!("lingerd: debug: {address}: {how} after "));
        daemon.wait_for_log(&expected[expected.len() - 1]); // it is counted before it is written there
    }
    let log = daemon.site.log();
    let ended: Vec<_> = log.lines().filter(|line| line.contains(" after ")).collect();
    assert_eq!(ended.len(), expected.len(), "{log}");
    for (line, expected) in ended.iter().zip(expected) {
        assert!(line.starts_with(&expected), "{line}: {expected}");
    }
    daemon.finish("closed=1 reset=1 limit=1");
}

#[test]
#[cfg(target_os = "linux")]
fn each_that_is_over_when_it_comes_is_logged_with_its_client() {
    let daemon = Daemon::start(&["-d"]);
    let sender = daemon.sender();
    let mut handed_over = 0;
    for is_v6 in [false, true] {
        for how in ["closed", "reset"] {
            let connection = if is_v6 { tcp::connection_v6() } else { Some(tcp::connection()) };
            let Some((client, server)) = connection else { continue }; // no IPv6 here
            let address = client.local_addr().unwrap();
            match how {
                "closed" => drop(client),
                _ => tcp::reset(client),
            }
            tcp::wait_until_readable(&server);
            let _ = server.shutdown(Shutdown::Write); // a reset has ended both halves
            wait_until("nobody is at the other end", || server.peer_addr().is_err());
            sender.hand_over(server);
            handed_over += 1;
            daemon.wait_for(&format!("handed_over={handed_over} lingering=0"));
            daemon.wait_for_log(&format!("lingerd: debug: {address}: {how} after "));
        }
    }
    daemon.finish(&format!("closed={0} reset={0}", handed_over / 2));
}

#[test]
fn a_response_that_the_limit_may_have_cut_short_is_counted_and_logged_with_the_client() {
    let daemon = Daemon::start(&["-d", "-D", "0.3"]);
    let sender = daemon.sender();
    let (client, server) = tcp::connection_with_full_window();
    sender.hand_over(server);
    let (_silent, server) = tcp::connection();
    tcp::half_close(&server);
    sender.hand_over(server);
    daemon.wait_for(&format!("limit=2 cut_short={TELLS}"));
    if TELLS == 1 {
        daemon.wait_for_log(&format!("{}: limit after", client.local_addr().unwrap()));
        daemon.wait_for_log("perhaps cut short: the client has not acknowledged everything");
        assert_eq!(daemon.site.log().matches("cut short:").count(), 1, "the other one was not");
    }
    daemon.finish(&format!("limit=2 cut_short={TELLS}"));
}

#[test]
fn what_the_client_itself_cuts_short_is_not_counted_as_ours() {
    let daemon = Daemon::start(&[]);
    let sender = daemon.sender();
    let (client, server) = tcp::connection_with_full_window();
    sender.hand_over(server);
    daemon.wait_for("lingering=1");
    tcp::reset(client);
    daemon.wait_for("reset=1 cut_short=0");
    let (client, server) = tcp::connection_with_full_window();
    sender.hand_over(server);
    daemon.wait_for("lingering=1");
    client.shutdown(Shutdown::Write).unwrap();
    daemon.finish("reset=1 closed=1");
}

#[test]
fn readers_that_stall_leave_half_of_the_table_to_others() {
    if TELLS == 0 {
        return println!("this system does not tell what is acknowledged");
    }
    let daemon = Daemon::start(&["-n", "10", "-t", "0.4"]);
    let sender = daemon.sender();
    let more = || {
        let (clients, servers) = tcp::connections(5);
        servers.iter().for_each(tcp::half_close);
        sender.hand_over_all(&servers);
        clients
    };
    let mut stalled = Vec::new();
    for _ in 0..10 {
        let (client, server) = tcp::connection_with_full_window();
        sender.hand_over(server);
        stalled.push(client);
    }
    daemon.wait_for("lingering=10");
    // As long as they are just new the others have to go; then they are known to have stalled.
    let mut others = Vec::new();
    wait_until("half of those that stall have gone", || {
        others.extend(more());
        daemon.counters()["cut_short"] == 5
    });
    // The other half stays, however many come.
    let handed_over = daemon.counters()["handed_over"];
    (0..4).for_each(|_| others.extend(more()));
    daemon.wait_for(&format!("handed_over={} cut_short=5", handed_over + 20));
}

#[test]
fn the_one_with_most_of_its_linger_had_is_evicted() {
    let daemon = Daemon::start(&["-n", "3"]);
    let sender = daemon.sender();
    let (mut clients, servers) = tcp::connections(4);
    servers.iter().for_each(tcp::half_close);
    let mut servers = servers.into_iter();
    for (n, server) in servers.by_ref().take(3).enumerate() {
        sender.hand_over(server);
        daemon.wait_for(&format!("lingering={}", n + 1));
    }
    // The first was the oldest; now the second is.
    clients[0].write_all(b"x").unwrap();
    daemon.wait_for("bytes_discarded=1");
    sender.hand_over(servers.next().unwrap());
    daemon.wait_for("lingering=3 evicted=1 peak=3");
    tcp::write_until_gone(&mut clients[1]);
    for (n, client) in [0, 2, 3].into_iter().enumerate() {
        clients[client].write_all(b"x").unwrap();
        daemon.wait_for(&format!("lingering=3 bytes_discarded={}", n + 2));
    }
    drop(clients);
    daemon.finish("closed=3 evicted=1 bytes_discarded=4");
}

#[test]
fn nobody_is_evicted_in_mid_response_while_others_have_theirs() {
    if TELLS == 0 {
        return println!("this system does not tell what is acknowledged");
    }
    let daemon = Daemon::start(&["-n", "2"]);
    let sender = daemon.sender();
    // The one in mid-response is the oldest.
    let (_reader, server) = tcp::connection_with_full_window();
    sender.hand_over(server);
    daemon.wait_for("lingering=1");
    let (mut clients, servers) = tcp::connections(2);
    for server in servers {
        tcp::half_close(&server);
        sender.hand_over(server);
    }
    daemon.wait_for("lingering=2 evicted=1 cut_short=0");
    tcp::write_until_gone(&mut clients[0]);
    // With nobody else there it has to go, and that is told.
    let (_other, server) = tcp::connection_with_full_window();
    sender.hand_over(server);
    daemon.wait_for("evicted=2 cut_short=0");
    let (_last, server) = tcp::connection_with_full_window();
    sender.hand_over(server);
    daemon.wait_for("lingering=2 evicted=3 cut_short=1");
}

#[test]
fn what_a_stop_cuts_short_is_counted() {
    let daemon = Daemon::start(&[]);
    let (_client, server) = tcp::connection_with_full_window();
    daemon.sender().hand_over(server);
    daemon.wait_for("lingering=1");
    daemon.signal(libc::SIGTERM);
    daemon.wait_for_log("told to stop");
    daemon.signal(libc::SIGTERM);
    let last = daemon.wait_for_good_end();
    assert_eq!((last["stopped"], last["cut_short"]), (1, TELLS));
}

#[test]
fn a_client_that_does_not_read_keeps_a_stopped_daemon_for_a_bounded_time() {
    let site = Site::new();
    let daemon = site.start(&["-W", "0.1"]);
    let (_client, server) = tcp::connection_with_full_window();
    daemon.sender().hand_over(server);
    daemon.wait_for("lingering=1");
    daemon.signal(libc::SIGTERM);
    let last = daemon.wait_for_good_end();
    assert_eq!((last["stopped"], last["cut_short"]), (1, TELLS));
    assert!(site.log().contains("their time is over: 1 connections are cut off"), "{}", site.log());
}

#[test]
fn told_twice_to_stop_cuts_the_others_off() {
    let daemon = Daemon::start(&[]);
    let (clients, servers) = tcp::connections(3);
    daemon.sender().hand_over_all(&servers);
    drop(servers);
    daemon.wait_for("lingering=3");
    daemon.signal(libc::SIGTERM);
    daemon.wait_for_log("told to stop");
    daemon.wait_for("lingering=3 stopped=0");
    daemon.signal(libc::SIGTERM);
    let last = daemon.wait_for_good_end();
    assert_eq!((last["stopped"], last["lingering"], last["handed_over"]), (3, 0, 3));
    drop(clients);
}

#[test]
fn every_late_byte_is_counted_once() {
    let daemon = Daemon::start(&[]);
    let (mut client, server) = tcp::connection();
    client.write_all(&[1; 1_000]).unwrap(); // may be there before the hand-off
    daemon.sender().hand_over(server);
    daemon.wait_for("bytes_discarded=1000");
    client.write_all(&[2; 3_000_000]).unwrap(); // more than one turn takes
    daemon.wait_for("bytes_discarded=3001000");
    client.write_all(&[3; 1]).unwrap();
    drop(client);
    daemon.finish("closed=1 bytes_discarded=3001001");
}

/// Sends one byte, and tells whether the daemon has hung up for that reason; then the write fails, as it
/// should.
fn drip(daemon: &Daemon, client: &mut TcpStream, reason: &str) -> bool {
    let _ = client.write(b"x");
    let counters = daemon.counters();
    counters[reason] == 1 && counters["lingering"] == 0
}
