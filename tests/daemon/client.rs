// SPDX-License-Identifier: BSD-3-Clause

//! What the client sees of it all: its whole response, an orderly end, and never a reset.

use lingerd_platform::tcp::TELLS_ACKNOWLEDGED;
use socket2::SockRef;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;
use support::daemon::Daemon;
use support::{PATIENCE, during, tcp};

/// How the one connection of a daemon with a short -D ends whose client has not read everything.
const CUT_SHORT: &str = if TELLS_ACKNOWLEDGED { "limit=1 cut_short=1" } else { "limit=1 cut_short=0" };

#[test]
fn the_end_follows_the_response_even_if_the_sender_leaves_its_side_open() {
    let daemon = Daemon::start(&[]);
    let (mut client, mut server) = tcp::connection();
    server.write_all(b"response").unwrap();
    daemon.sender().hand_over(server);
    assert_eq!(tcp::read_to_end(&mut client), b"response");
    daemon.wait_for("lingering=1");
    drop(client);
    daemon.finish("closed=1");
}

#[test]
fn a_sender_that_half_closes_itself_is_as_welcome() {
    let daemon = Daemon::start(&[]);
    let (mut client, mut server) = tcp::connection();
    server.write_all(b"response").unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(tcp::read_to_end(&mut client), b"response");
    daemon.sender().hand_over(server);
    daemon.wait_for("lingering=1");
    drop(client);
    daemon.finish("closed=1");
}

#[test]
fn late_bytes_are_never_answered_with_a_reset() {
    let daemon = Daemon::start(&[]);
    let (mut client, mut server) = tcp::connection();
    server.write_all(b"response").unwrap();
    daemon.sender().hand_over(server);
    assert_eq!(tcp::read_to_end(&mut client), b"response");
    for written in 1..=20 {
        client.write_all(b"x").unwrap();
        daemon.wait_for(&format!("lingering=1 bytes_discarded={written}"));
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "nothing but the end");
    }
    drop(client);
    daemon.finish("closed=1 bytes_discarded=20");
}

#[test]
fn late_bytes_before_the_hand_off_do_not_cost_the_response() {
    let daemon = Daemon::start(&[]);
    let (mut client, mut server) = tcp::connection();
    client.write_all(b"a pipelined request").unwrap();
    tcp::wait_until_readable(&server);
    server.write_all(b"response").unwrap();
    daemon.sender().hand_over(server);
    daemon.wait_for("lingering=1 bytes_discarded=19");
    assert_eq!(tcp::read_to_end(&mut client), b"response");
    drop(client);
    daemon.finish("closed=1 bytes_discarded=19");
}

#[test]
fn urgent_data_is_late_data() {
    let daemon = Daemon::start(&[]);
    let (mut client, server) = tcp::connection();
    daemon.sender().hand_over(server);
    daemon.wait_for("lingering=1");
    client.write_all(b"ab").unwrap();
    SockRef::from(&client).send_out_of_band(b"!").unwrap();
    client.write_all(b"cd").unwrap();
    // An urgent byte is not part of the stream on every system.
    support::wait_until("all is read", || daemon.counters()["bytes_discarded"] >= 4);
    assert_eq!(tcp::read_to_end(&mut client), b"");
    drop(client);
    let discarded = daemon.counters()["bytes_discarded"];
    daemon.finish(&format!("closed=1 bytes_discarded={discarded}"));
}

#[test]
fn a_big_response_outlives_the_daemons_patience() {
    let response = tcp::big_response();
    let daemon = Daemon::start(&["-D", "0.3"]);
    let (mut client, server) = tcp::connection();
    hand_over_behind(&daemon, server, &response);
    daemon.wait_for("limit=1 lingering=0");
    // Nothing came too late for it, and so nothing was lost.
    assert!(tcp::read_to_end(&mut client) == response, "the response was changed");
    daemon.finish(CUT_SHORT);
}

#[test]
fn an_abortive_so_linger_of_the_sender_does_not_reset_the_client() {
    let response = tcp::big_response();
    let daemon = Daemon::start(&["-D", "0.3"]);
    let (mut client, server) = tcp::connection();
    SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
    hand_over_behind(&daemon, server, &response);
    daemon.wait_for("limit=1 lingering=0");
    assert!(tcp::read_to_end(&mut client) == response, "the response was changed");
    daemon.finish(CUT_SHORT);
}

#[test]
fn a_blocking_so_linger_of_the_sender_does_not_block_the_daemon() {
    let daemon = Daemon::start(&["-D", "0.3"]);
    let (client, server) = tcp::connection_with_full_window();
    SockRef::from(&server).set_linger(Some(PATIENCE * 2)).unwrap();
    daemon.sender().hand_over(server);
    // A close(2) that blocks would come after the counting, and nobody would answer for it.
    daemon.wait_for("limit=1 lingering=0");
    daemon.finish(CUT_SHORT);
    drop(client);
}

#[test]
fn a_so_linger_that_the_sender_sets_afterwards_does_not_block_the_daemon_either() {
    let daemon = Daemon::start(&["-D", "2"]);
    let (client, server) = tcp::connection_with_full_window();
    daemon.sender().hand_over(server.try_clone().unwrap());
    daemon.wait_for("handed_over=1");
    // The daemon's copy is the last one; unless we are so late that it is this one, whose close then waits.
    let closes = thread::spawn(move || {
        SockRef::from(&server).set_linger(Some(PATIENCE * 2)).unwrap();
        drop(server);
    });
    daemon.wait_for("limit=1 lingering=0");
    daemon.finish(CUT_SHORT);
    drop(client); // which resets it
    closes.join().unwrap();
}

#[test]
fn a_flood_from_one_client_leaves_time_for_the_others() {
    let daemon = Daemon::start(&[]);
    let sender = daemon.sender();
    let (mut flooder, server) = tcp::connection();
    sender.hand_over(server);
    let mut flooded = 0;
    during(
        || flooded += flooder.write(&[0; 65536]).unwrap(),
        || {
            let (clients, servers) = tcp::connections(20);
            for server in servers {
                sender.hand_over(server);
            }
            daemon.wait_for("lingering=21");
            drop(clients);
            daemon.wait_for("lingering=1 closed=20");
        },
    );
    drop(flooder);
    daemon.finish(&format!("closed=21 bytes_discarded={flooded}"));
}

#[test]
fn a_reader_may_stall_for_longer_than_the_silence_that_is_waited_for() {
    if !TELLS_ACKNOWLEDGED {
        // No skip: on such a system plain timers are all there is, as documented.
        return println!("this system does not tell what is acknowledged");
    }
    const LATE: usize = 3;
    let response = tcp::big_response();
    let daemon = Daemon::start(&["-t", "0.1"]);
    let sender = daemon.sender();
    let (mut client, server) = tcp::connection_with_small_window(16 * 1024);
    thread::scope(|scope| {
        scope.spawn(|| hand_over_behind(&daemon, server, &response));
        let mut got = vec![0; response.len() / 10];
        client.read_exact(&mut got).unwrap();
        for late in 1..=LATE {
            // In each of these the daemon looks at it, whose deadlines are as far apart.
            (0..3).for_each(|_| daemon.let_idle_pass(&sender));
            client.write_all(b"x").unwrap();
            daemon.wait_for(&format!("lingering=1 bytes_discarded={late}"));
        }
        client.read_to_end(&mut got).expect("the response was cut short");
        assert!(got == response, "{} of {} bytes", got.len(), response.len());
    });
    // Now that it has everything, silence ends it.
    daemon.finish(&format!("idle={} bytes_discarded={LATE}", 3 * LATE + 1));
}

/// Writes `response` and hands the connection over, as a server does.
fn hand_over_behind(daemon: &Daemon, mut server: TcpStream, response: &[u8]) {
    SockRef::from(&server).set_send_buffer_size(2 * response.len()).unwrap();
    server.write_all(response).unwrap();
    daemon.sender().hand_over(server);
}
