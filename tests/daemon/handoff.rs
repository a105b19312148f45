// SPDX-License-Identifier: BSD-3-Clause

//! Messages at the hand-off socket, well-formed and not, and the senders they come from.

use socket2::SockRef;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use support::daemon::Daemon;
use support::sender::{Sender, descriptors, most_descriptors};
use support::{PATIENCE, during, tcp};

/// Runs `misbehave` on a sender, and checks that the daemon hangs up on that one alone.
#[track_caller]
fn assert_hung_up_on(misbehave: impl FnOnce(&Sender), expected: &str) {
    let daemon = Daemon::start(&[]);
    let (bystander, sender) = (daemon.sender(), daemon.sender());
    daemon.wait_for("senders=2");
    misbehave(&sender);
    sender.wait_until_hung_up();
    daemon.wait_for("senders=1");
    let (client, server) = tcp::connection();
    bystander.hand_over(server);
    drop(client);
    daemon.finish(&format!("closed=1 {expected}"));
}

#[test]
fn one_socket_a_message() {
    let daemon = Daemon::start(&[]);
    let (client, server) = tcp::connection();
    daemon.sender().hand_over(server);
    daemon.wait_for("lingering=1");
    drop(client);
    daemon.finish("closed=1");
}

#[test]
fn as_many_sockets_as_a_message_holds() {
    let daemon = Daemon::start(&[]);
    let most = most_descriptors();
    let (clients, servers) = tcp::connections(most);
    let sender = daemon.sender();
    sender.hand_over_all(&servers);
    drop(servers);
    daemon.wait_for(&format!("lingering={most} senders=1"));
    drop(clients);
    daemon.finish(&format!("closed={most}"));
}

#[test]
fn the_same_socket_twice_in_a_message_counts_twice() {
    let daemon = Daemon::start(&[]);
    let (mut client, server) = tcp::connection();
    daemon.sender().send(b"L", &[server.as_fd(), server.as_fd()]);
    drop(server);
    daemon.wait_for("lingering=2");
    assert_eq!(tcp::read_to_end(&mut client), b"");
    drop(client);
    daemon.finish("closed=2");
}

#[test]
fn an_unknown_byte() {
    assert_hung_up_on(|sender| sender.send(b"?", &[]), "protocol_errors=1");
}

#[test]
fn an_unknown_byte_with_sockets_which_are_closed() {
    let (mut client, server) = tcp::connection();
    let misbehave = |sender: &Sender| {
        sender.send(b"?", &[server.as_fd(), server.as_fd()]);
        drop(server);
    };
    assert_hung_up_on(misbehave, "protocol_errors=1 rejected=2");
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_message_without_a_socket() {
    assert_hung_up_on(|sender| sender.send(b"L", &[]), "protocol_errors=1");
}

#[test]
fn several_messages_in_one_write_with_one_socket_which_belongs_to_the_first() {
    let (client, server) = tcp::connection();
    let misbehave = |sender: &Sender| sender.send(b"LLL", &[server.as_fd()]);
    drop(client);
    assert_hung_up_on(misbehave, "protocol_errors=1 closed=2");
}

#[test]
fn garbage() {
    assert_hung_up_on(|sender| sender.babble(&[0xff; 65536]), "protocol_errors=1");
}

#[test]
fn garbage_that_looks_like_messages() {
    assert_hung_up_on(|sender| sender.babble(&[b'L'; 65536]), "protocol_errors=1");
}

#[test]
fn what_comes_behind_the_garbage_is_refused() {
    let daemon = Daemon::start(&[]);
    let sender = daemon.sender();
    daemon.wait_for("senders=1");
    let null = File::open("/dev/null").unwrap();
    let (_client, server) = tcp::connection();
    daemon.freeze();
    sender.babble(b"?");
    sender.send(b"L", &[null.as_fd(), server.as_fd()]);
    daemon.thaw();
    sender.wait_until_hung_up();
    daemon.finish("protocol_errors=1 rejected=2");
}

/// A socket with SO_LINGER makes close(2) wait, whoever is made to call it.
#[test]
fn garbage_with_sockets_that_block_in_close_holds_nobody_up() {
    let daemon = Daemon::start(&[]);
    let (sender, bystander) = (daemon.sender(), daemon.sender());
    daemon.wait_for("senders=2");
    let stuck = || {
        let (client, mut server) = tcp::connection_with_small_window(4096);
        server.set_nonblocking(true).unwrap();
        while server.write(&[0; 65536]).is_ok() {}
        SockRef::from(&server).set_linger(Some(PATIENCE * 2)).unwrap();
        (client, server)
    };
    let ((_client, with), (_client2, behind)) = (stuck(), stuck());
    daemon.freeze();
    sender.send(b"?", &[with.as_fd()]);
    sender.send(b"L", &[behind.as_fd()]);
    // It is the last of all copies whose close waits.
    drop((with, behind));
    daemon.thaw();
    let (client, server) = tcp::connection();
    bystander.hand_over(server);
    drop(client);
    daemon.finish("protocol_errors=1 rejected=2 closed=1");
}

#[test]
fn garbage_again_and_again_is_logged_once() {
    let daemon = Daemon::start(&[]);
    for n in 1..=20 {
        daemon.sender().babble(b"?");
        daemon.wait_for(&format!("protocol_errors={n} senders=0"));
    }
    let site = Arc::clone(&daemon.site);
    daemon.finish("protocol_errors=20"); // all that it has logged is there then
    assert_eq!(site.log().matches("hung up").count(), 1);
}

#[test]
fn what_came_before_the_garbage_is_lingered_on() {
    let daemon = Daemon::start(&[]);
    let (client, server) = tcp::connection();
    let sender = daemon.sender();
    sender.hand_over(server);
    sender.babble(b"?");
    sender.wait_until_hung_up();
    daemon.wait_for("lingering=1 protocol_errors=1 senders=0");
    drop(client);
    daemon.finish("closed=1 protocol_errors=1");
}

#[test]
fn a_message_of_no_bytes_says_nothing() {
    let daemon = Daemon::start(&[]);
    let (mut client, server) = tcp::connection();
    let sender = daemon.sender();
    // A stream may drop what comes with no byte, or refuse it.
    let _ = sender.try_send(b"", &[server.as_fd()]);
    drop((server, sender));
    assert_eq!(tcp::read_to_end(&mut client), b"");
    daemon.wait_for("senders=0");
    let (client, server) = tcp::connection();
    daemon.sender().hand_over(server);
    drop(client);
    daemon.finish("closed=1");
}

#[test]
fn a_sender_that_leaves_without_a_word_is_no_error() {
    let daemon = Daemon::start(&[]);
    let sender = daemon.sender();
    daemon.wait_for("senders=1");
    drop(sender);
    daemon.wait_for("senders=0");
    daemon.finish("");
}

/// A sender that is killed leaves as one that closes: to the daemon there is no difference, and
/// a message, being one byte, is there or not.
#[test]
fn what_a_killed_sender_has_handed_over_is_lingered_on() {
    let daemon = Daemon::start(&[]);
    let (clients, servers) = tcp::connections(100);
    daemon.freeze();
    let sender = daemon.sender();
    // On Linux all of them; NetBSD's queue is short.
    let sent = sender.hand_over_while_there_is_room(&servers);
    assert!(sent > 1);
    drop((sender, servers));
    daemon.thaw();
    daemon.wait_for(&format!("lingering={sent} senders=0"));
    drop(clients);
    daemon.finish(&format!("closed={sent}"));
}

#[test]
fn a_sender_that_is_out_of_room_keeps_its_link() {
    let daemon = Daemon::start(&[]);
    let sender = daemon.sender();
    daemon.wait_for("senders=1");
    let (client, server) = tcp::connection();
    daemon.freeze();
    let mut sent = 0;
    let full = loop {
        match sender.try_send(b"L", &descriptors(std::slice::from_ref(&server))) {
            Ok(_) => sent += 1,
            Err(e) => break e,
        }
    };
    assert_ne!(full.kind(), ErrorKind::BrokenPipe, "after {sent} messages");
    daemon.thaw();
    daemon.wait_for(&format!("lingering={sent} senders=1"));
    sender.hand_over(server);
    drop(client);
    daemon.finish(&format!("closed={}", sent + 1));
}

#[test]
fn two_hundred_senders_at_once() {
    let daemon = Daemon::start(&[]);
    let (clients, servers) = tcp::connections(200);
    let senders: Vec<Sender> = servers.iter().map(|_| daemon.sender()).collect();
    daemon.wait_for("senders=200");
    for (sender, server) in senders.iter().zip(servers) {
        sender.hand_over(server);
    }
    daemon.wait_for("lingering=200 senders=200");
    drop(senders);
    daemon.wait_for("lingering=200 senders=0");
    drop(clients);
    daemon.finish("closed=200");
}

#[test]
fn a_flood_of_hand_offs_leaves_time_for_other_senders() {
    let daemon = Daemon::start(&["-n", "100"]);
    let (flooder, bystander) = (daemon.sender(), daemon.sender());
    let (client, flood) = tcp::connection();
    let mut sent = 0;
    during(
        || {
            flooder.send(b"L", &[flood.as_fd(); 50]);
            sent += 50;
        },
        || {
            daemon.wait_for("lingering=100");
            for n in 1..=3 {
                let (client, server) = tcp::connection();
                // Already at its end, so that it is counted before it can be evicted.
                drop(client);
                tcp::wait_for_end(&server);
                bystander.hand_over(server);
                daemon.wait_for(&format!("closed={n}"));
            }
        },
    );
    daemon.wait_for(&format!("handed_over={}", sent + 3));
    drop((client, flood));
    daemon.finish(&format!("closed=103 evicted={}", sent - 100));
}
