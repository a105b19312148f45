// SPDX-License-Identifier: BSD-3-Clause

//! What is in senders/ for languages other than Python, in the real servers before a real lingerd.
//!
//! Whoever holds a connection here holds it until the test lets go, so that a worker which lingered itself
//! would serve nobody else, or would have given up and be seen to by what lingerd counts.

mod packages;
mod server;
mod unicorn;

use lingerd_platform::process;
use server::{Reloads, Running, SERVERS, Server};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use support::daemon::{Daemon, Site};
use support::http::{self, exchange, request, under_load, upload};
use support::{PATIENCE, not_run, skip, tcp, wait_until};

/// More clients than there are workers.
const MANY: usize = 20;

/// More messages than are on their way on one link, on any system.
const MORE_THAN_A_LINK_HOLDS: usize = 300;

/// Runs a test with each server that is there; those that are missing are skipped.
fn each(test: impl Fn(&'static Server)) {
    for server in &SERVERS {
        match (server.missing)() {
            None => {
                eprintln!("{}", server.name);
                test(server);
            }
            // Which Debian does not have.
            Some(what) if what == "pitchfork" => not_run("there is no pitchfork"),
            Some(what) => skip(&format!("there is no {what} ('sh ci/packages check' gets it on Debian)")),
        }
    }
}

#[test]
fn one_worker_serves_any_number_of_clients_that_hold_their_socket() {
    each(|server| {
        let lingerd = Daemon::start(&[]);
        let server = server.start(&lingerd.site, &[]);
        let held: Vec<_> = (0..MANY).map(|_| server.page()).collect();
        lingerd.wait_for(&format!("lingering={MANY} senders=1"));
        drop(held);
        lingerd.wait_for(&format!("lingering=0 closed={MANY} reset=0 rejected=0 protocol_errors=0"));
    });
}

/// A client that asks, reads nothing yet, and has room for little.
fn slow(server: &Running, path: &str) -> TcpStream {
    let mut client = http::connect_with_small_window(server.address, 4096);
    client.write_all(request(path).as_bytes()).unwrap();
    client
}

#[test]
fn what_a_client_sends_late_does_not_destroy_the_response() {
    each(|server| {
        let lingerd = Daemon::start(&[]);
        let server = server.start(&lingerd.site, &[]);
        let mut clients: Vec<_> = (0..5).map(|_| slow(&server, "/page")).collect();
        lingerd.wait_for("lingering=5");
        for client in &mut clients {
            client.write_all(b"one thing more").unwrap();
        }
        lingerd.wait_for("bytes_discarded=70");
        let page = tcp::response(20_000);
        assert!(clients.iter_mut().all(|client| tcp::read_to_end(client).ends_with(&page)));
        drop(clients);
        lingerd.wait_for("lingering=0 closed=5 reset=0");
    });
}

#[test]
fn an_upload_that_nobody_reads_does_not_destroy_the_response() {
    each(|server| {
        let lingerd = Daemon::start(&[]);
        let server = server.start(&lingerd.site, &[]);
        let upload = upload("/page", 60_000);
        let held: Vec<_> = (0..5).map(|_| exchange(http::connect(server.address), &upload)).collect();
        assert!(held.iter().all(|held| held.body == tcp::response(20_000)));
        lingerd.wait_for("lingering=5");
        drop(held);
        lingerd.wait_for("closed=5 reset=0");
    });
}

#[test]
fn one_worker_serves_any_number_of_slow_readers() {
    each(|server| {
        if !server.spools {
            return;
        }
        let lingerd = Daemon::start(&[]);
        let server = server.start(&lingerd.site, &[]);
        let paths = [["/big"; 5], ["/file"; 5]].concat();
        let mut clients: Vec<_> = paths.iter().map(|path| slow(&server, path)).collect();
        lingerd.wait_for("spooling=10");
        server.page();
        let page = tcp::response(5_000_000);
        assert!(clients.iter_mut().all(|client| tcp::read_to_end(client).ends_with(&page)));
        lingerd.wait_for("spooling=0 lingering=10 spooled=10 rejected=0 protocol_errors=0");
    });
}

#[test]
fn what_is_still_being_made_and_all_without_lingerd_the_worker_writes_itself() {
    each(|server| {
        let lingerd = Daemon::start(&[]);
        let server = server.start(&lingerd.site, &[]);
        let page = tcp::response(5_000_000);
        assert!(tcp::read_to_end(&mut slow(&server, "/pieces")).ends_with(&page));
        lingerd.wait_for("spooled=0 spooling=0");
        lingerd.kill();
        for path in ["/big", "/file"] {
            assert!(tcp::read_to_end(&mut slow(&server, path)).ends_with(&page));
        }
    });
}

#[test]
fn a_daemon_may_come_and_stand_still_and_go() {
    each(|server| {
        let site = Site::new();
        let server = server.start(&site, &[]);

        // Without one a server does what it would do.
        server.leaving();

        let lingerd = site.start(&[]);
        server.wait_until_found(&lingerd);

        // One that stands still has queued what there is room for, and holds nobody up.
        lingerd.freeze();
        (0..MORE_THAN_A_LINK_HOLDS).for_each(|_| server.leaving());
        lingerd.thaw();
        let before = lingerd.counters()["handed_over"];
        wait_until("there is room again", || {
            server.leaving();
            lingerd.counters()["handed_over"] > before
        });

        // One that is killed, and another one in its place.
        lingerd.kill();
        server.leaving();
        let lingerd = site.start(&[]);
        server.wait_until_found(&lingerd);
        let held = server.page();
        lingerd.wait_for("lingering=1 senders=1 rejected=0 protocol_errors=0");
        drop(held);
    });
}

#[test]
fn a_worker_that_has_served_enough_leaves_its_clients_to_lingerd() {
    each(|server| {
        let Some(options) = server.fifteen_requests else { return };
        let lingerd = Daemon::start(&[]);
        let server = server.start(&lingerd.site, options);
        let first = server.worker();
        let held: Vec<_> = (0..MANY).map(|_| server.page()).collect();
        lingerd.wait_for(&format!("lingering={MANY} rejected=0 protocol_errors=0"));
        assert_ne!(first, server.worker());
        drop(held);
        lingerd.wait_for("lingering=0 reset=0");
    });
}

#[test]
fn workers_are_replaced_at_sighup_and_nobody_notices() {
    each(|server| {
        let reloads = server.reloads;
        if reloads == Reloads::Never {
            return;
        }
        let lingerd = Daemon::start(&[]);
        let server = server.start(&lingerd.site, &[]);
        let held = server.page();
        let before = server.worker();
        if reloads == Reloads::Well {
            under_load(server.address, |wait_for_more| {
                for _ in 0..2 {
                    wait_for_more(20);
                    server.signal(libc::SIGHUP);
                }
                wait_for_more(20);
            });
        } else {
            // The client held shows that its worker is done with it.
            lingerd.wait_for("lingering=1");
            server.signal(libc::SIGHUP);
        }
        let old = before.parse().unwrap();
        wait_until("the old worker has ended", || process::kill(old, 0).is_err());
        assert_ne!(before, server.worker());
        let handed_over = lingerd.counters()["handed_over"];
        let after = server.page();
        wait_until("it hands over, too", || lingerd.counters()["handed_over"] > handed_over);
        drop((held, after));
        lingerd.wait_for("lingering=0 rejected=0 protocol_errors=0");
    });
}

#[test]
fn what_is_not_tcp_is_not_handed_over() {
    each(|server| {
        let lingerd = Daemon::start(&[]);
        let path = lingerd.site.path("http.sock");
        let _server = server.start_at(&lingerd.site, path.to_str().unwrap(), &[]);
        let response = ask_at(&path);
        assert!(response.ends_with(&tcp::response(20_000)), "{} bytes", response.len());
        lingerd.finish("handed_over=0");
    });
}

/// The whole response at a Unix socket.
fn ask_at(path: &Path) -> Vec<u8> {
    let mut client = UnixStream::connect(path).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(request("/page").as_bytes()).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut response = Vec::new();
    client.read_to_end(&mut response).unwrap();
    response
}

#[test]
fn a_socket_that_cannot_be_is_said_in_the_log() {
    each(|server| {
        let site = Site::new();
        let server = server.start_with(&site, &format!("/{}", "x".repeat(200)));
        server.leaving();
        server.wait_for_log("without it");
    });
}
