// SPDX-License-Identifier: BSD-3-Clause

//! What only Unicorn has.

use crate::server::SERVERS;
use support::daemon::Daemon;
use support::http::{exchange, get, request};
use support::server::Running;
use support::{http, skip, tcp, wait_until};

/// One before a daemon; `None`, and the test is skipped, where there is no Unicorn.
fn start() -> Option<(Daemon, Running)> {
    let unicorn = &SERVERS[0];
    if let Some(what) = (unicorn.missing)() {
        skip(&format!("there is no {what} ('sh ci/packages check' gets it on Debian)"));
        return None;
    }
    let lingerd = Daemon::start(&[]);
    let server = unicorn.start(&lingerd.site, &[]);
    Some((lingerd, server))
}

#[test]
fn the_master_that_takes_over_at_sigusr2_hands_over_too() {
    let Some((lingerd, server)) = start() else { return };
    let held = server.page();
    let old = server.worker();
    server.signal(libc::SIGUSR2);
    wait_until("both serve", || server.worker() != old);
    server.signal(libc::SIGQUIT);
    wait_until("only the new one serves", || (0..10).all(|_| server.worker() != old));
    let after = server.page_handed_over(&lingerd);
    drop((held, after));
    lingerd.wait_for("lingering=0 rejected=0 protocol_errors=0");
}

#[test]
fn a_client_that_is_told_of_an_error_is_lingerd_s_too() {
    let Some((lingerd, server)) = start() else { return };
    let fails = exchange(http::connect(server.address), request("/fails").as_bytes());
    assert!(fails.head.starts_with("HTTP/1.1 500 "), "{}", fails.head);
    let bad = exchange(http::connect(server.address), b"no request\r\n\r\n");
    assert!(bad.head.starts_with("HTTP/1.1 400 "), "{}", bad.head);
    lingerd.wait_for("lingering=2");
}

#[test]
fn a_connection_that_the_application_has_taken_it_closes_itself() {
    let Some((lingerd, server)) = start() else { return };
    assert!(get(server.address, "/hijacked").body == tcp::response(20_000));
    let held = server.page();
    lingerd.wait_for("lingering=1");
    drop(held);
    lingerd.finish("handed_over=1 closed=1");
}
