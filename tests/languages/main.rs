// SPDX-License-Identifier: BSD-3-Clause

//! What is in senders/ for languages other than Python, in the real servers before a real lingerd.
//!
//! Whoever holds a connection here holds it until the test lets go, so that a worker which lingered itself
//! would serve nobody else, or would have given up and be seen to by what lingerd counts.

mod packages;
mod server;
mod unicorn;

use lingerd_platform::process;
use server::{Reloads, SERVERS, Server};
use std::io::Write;
use support::daemon::{Daemon, Site};
use support::http::{self, exchange, request, under_load, upload};
use support::server::{MANY, hands_over_tcp_alone};
use support::{not_run, skip, tcp, wait_until};

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
        server.serves_many(&lingerd);
    });
}

#[test]
fn what_a_client_sends_late_does_not_destroy_the_response() {
    each(|server| {
        let lingerd = Daemon::start(&[]);
        let server = server.start(&lingerd.site, &[]);
        let mut clients: Vec<_> = (0..5).map(|_| server.slow(&request("/page"))).collect();
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
        let mut clients: Vec<_> = paths.iter().map(|path| server.slow(&request(path))).collect();
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
        assert!(tcp::read_to_end(&mut server.slow(&request("/pieces"))).ends_with(&page));
        lingerd.wait_for("spooled=0 spooling=0");
        lingerd.kill();
        for path in ["/big", "/file"] {
            assert!(tcp::read_to_end(&mut server.slow(&request(path))).ends_with(&page));
        }
    });
}

#[test]
fn a_daemon_may_come_and_stand_still_and_go() {
    each(|server| {
        let site = Site::new();
        server.start(&site, &[]).outlives_daemons(&site);
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
        let after = server.page_handed_over(&lingerd);
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
        hands_over_tcp_alone(lingerd, &path);
    });
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
