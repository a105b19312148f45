// SPDX-License-Identifier: BSD-3-Clause

//! Many at once, and too many: the table's limit and that of the descriptors.

use std::net::TcpStream;
use support::daemon::{Daemon, Site, run};
use support::sender::{Sender, most_descriptors};
use support::tcp;

/// Few enough to be short of descriptors, and enough to serve with.
const FEW: u32 = 64;

#[test]
fn a_thousand_at_once() {
    let daemon = Daemon::start(&[]);
    let sender = daemon.sender();
    let (clients, servers) = tcp::connections(1_000);
    for server in servers {
        sender.hand_over(server);
    }
    daemon.wait_for("lingering=1000 peak=1000");
    drop(clients);
    daemon.finish("closed=1000");
}

#[test]
fn a_full_table_evicts_one_for_each_that_comes() {
    let daemon = Daemon::start(&["-n", "10"]);
    let (clients, servers) = tcp::connections(50);
    daemon.sender().hand_over_all(&servers);
    drop(servers);
    daemon.wait_for("lingering=10 evicted=40 peak=10");
    drop(clients);
    daemon.finish("closed=10 evicted=40");
}

#[test]
fn who_has_more_than_a_share_of_a_full_table_makes_room_for_the_others() {
    let daemon = Daemon::start(&["-n", "40"]);
    let sender = daemon.sender();
    let hand_over = |address: [u8; 4]| {
        let (client, server) = tcp::connection_from(address.into())?;
        sender.hand_over(server);
        Some(client)
    };
    let Some(first) = hand_over([127, 0, 0, 2]) else {
        return; // a system with one loopback address only
    };
    let mut modest: Vec<_> = std::iter::once(first).collect();
    modest.extend((1..10).filter_map(|_| hand_over([127, 0, 0, 2])));
    let greedy: Vec<_> = (0..30).filter_map(|_| hand_over([127, 0, 0, 1])).collect();
    daemon.wait_for("lingering=40 evicted=0");
    // The modest ones were there first, and are the nearest to their end.
    let more: Vec<_> = (0..30).filter_map(|_| hand_over([127, 0, 0, 1])).collect();
    let others: Vec<_> = (3..23).filter_map(|n| hand_over([127, 0, 0, n])).collect();
    daemon.wait_for("lingering=40 evicted=50");
    drop((modest, others));
    daemon.wait_for("lingering=10 closed=30");
    drop((greedy, more));
    daemon.finish("closed=40 evicted=50");
}

#[test]
fn a_full_table_evicts_nobody_for_one_that_is_at_its_end() {
    let daemon = Daemon::start(&["-n", "1"]);
    let sender = daemon.sender();
    let (mut clients, mut servers) = tcp::connections(2);
    sender.hand_over(servers.remove(0));
    daemon.wait_for("lingering=1");
    drop(clients.pop());
    tcp::wait_for_end(&servers[0]);
    sender.hand_over(servers.remove(0));
    daemon.wait_for("lingering=1 closed=1");
    drop(clients);
    daemon.finish("closed=2");
}

#[test]
fn short_of_descriptors_nothing_is_lost() {
    let daemon = Site::new().start_limited(FEW, &[]);
    let sender = daemon.sender();
    let (clients, servers) = tcp::connections(100);
    for server in servers {
        sender.hand_over(server);
    }
    daemon.wait_for("handed_over=100 rejected=0 protocol_errors=0");
    let lingering = daemon.counters()["lingering"];
    assert!(lingering > 0);
    drop(clients);
    daemon.finish(&format!("closed={lingering} evicted={}", 100 - lingering));
}

#[test]
fn a_message_with_more_sockets_than_the_limit_has_room_for_is_counted_and_logged() {
    let daemon = Site::new().start_limited(FEW, &[]);
    let sender = daemon.sender();
    let (clients, servers) = tcp::connections(most_descriptors());
    sender.hand_over_all(&servers);
    drop(servers);
    daemon.wait_for("protocol_errors=1 senders=1");
    daemon.wait_for_log("raise the limit");
    // It goes on, with the rest of that message and with the next.
    let (lingering, evicted) = (daemon.counters()["lingering"], daemon.counters()["evicted"]);
    assert!(lingering > 0);
    drop(clients);
    daemon.wait_for("lingering=0");
    let (client, server) = tcp::connection();
    sender.hand_over(server);
    drop(client);
    daemon.finish(&format!("closed={} evicted={evicted} protocol_errors=1", lingering + 1));
}

/// So many connections whose clients have gone, and with no copy left: else they linger, and have to make room.
fn left(number: usize) -> Vec<TcpStream> {
    let (clients, servers) = tcp::connections(number);
    drop(clients);
    servers.iter().for_each(tcp::wait_for_end);
    servers
}

#[test]
fn more_senders_than_there_is_room_for_lose_nothing() {
    let daemon = Site::new().start_limited(FEW, &[]);
    let servers = left(40);
    let mut senders: Vec<Sender> = Vec::new();
    // The first ones stay silent, and have to make room.
    for server in servers {
        senders.push(daemon.sender());
        let sender = daemon.sender();
        sender.hand_over(server);
        senders.push(sender);
    }
    daemon.wait_for("handed_over=40");
    assert!(daemon.counters()["senders"] < 40);
    senders[0].wait_until_hung_up();
    daemon.finish("closed=40");
}

#[test]
fn a_stop_loses_nothing_of_more_senders_than_there_is_room_for() {
    let daemon = Site::new().start_limited(FEW, &[]);
    let servers = left(60);
    daemon.freeze();
    let senders: Vec<Sender> = servers.iter().map(|_| daemon.sender()).collect();
    for (sender, server) in senders.iter().zip(servers) {
        sender.hand_over(server);
    }
    daemon.signal(libc::SIGTERM);
    daemon.thaw();
    assert_eq!(daemon.wait_for_good_end()["closed"], 60);
}

#[test]
fn a_limit_on_lingering_beyond_that_of_descriptors_is_cut_with_a_warning() {
    let daemon = Site::new().start_limited(FEW, &["-n", "1000"]);
    daemon.wait_for_log("-n 1000 is more than the descriptor limit allows");
    daemon.finish("");
}

#[test]
#[cfg(target_os = "linux")] // which tells how large the table is
fn the_table_of_descriptors_need_not_grow_while_it_serves() {
    let places = |daemon: &Daemon| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid)).unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
        size.trim().parse::<usize>().unwrap()
    };
    let daemon = Site::new().start_limited(1_000, &[]);
    let at_first = places(&daemon);
    assert!(at_first >= 1_000, "{at_first}");
    let (clients, servers) = tcp::connections(600);
    // One sender: each of many in a backlog would take the room of one that lingers.
    let sender = daemon.sender();
    servers.into_iter().for_each(|server| sender.hand_over(server));
    daemon.wait_for("lingering=600");
    assert_eq!(places(&daemon), at_first);
    drop(clients);
    daemon.finish("closed=600");
}

#[test]
fn too_low_a_descriptor_limit_is_an_error() {
    let site = Site::new();
    run(&mut site.limited(20)).assert_failed(1, "the limit of 20 open descriptors is too low");
}
