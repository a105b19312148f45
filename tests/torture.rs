// SPDX-License-Identifier: BSD-3-Clause

//! Cruel clients of a real Apache with a real lingerd behind it: each gets its whole response.
//!
//! Their times are shorter than in real life. How long anything takes is not asserted, and lingerd's
//! limit is one that no client comes near.

use comparisons::torture::answer::Expected;
use comparisons::torture::cases::{self, Case, Over, Step};
use comparisons::torture::client::{Outcome, Seen};
use comparisons::torture::{pages, run_all, with_addresses};
use lingerd_platform::tcp::TELLS_ACKNOWLEDGED;
use std::io::Write;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;
use support::apache::{Apache, Mpm, Setup};
use support::daemon::Daemon;
use support::tcp;

/// What the times of real life are multiplied by.
const SCALE: f64 = 0.4;

/// How many clients there are of each case.
const EACH: usize = 4;

/// How many there are when all come mixed.
const MIXED: usize = 200;

/// lingerd, and Apache before it; `None` when the test is to be skipped.
fn start() -> Option<(Daemon, Apache)> {
    // Less silence than some of the clients keep, and more than a machine under load may need. Where
    // the system does not tell who has received what, all depends on how long silence may last.
    let idle: &[&str] = if TELLS_ACKNOWLEDGED { &["-t", "6"] } else { &[] };
    let lingerd = Daemon::start(&[&["-m", "0666"], idle].concat());
    let setup = Setup::new(Mpm::Prefork).workers(100).lingerd(&lingerd.site.socket());
    let apache = pages::set_up(setup).start()?;
    pages::publish(&apache);
    Some((lingerd, apache))
}

/// That every client which did not leave by itself got all.
fn assert_whole(clients: &[(&Case, SocketAddr)], seen: &[Seen], lingerd: &Daemon) {
    let lost: Vec<_> = clients
        .iter()
        .zip(seen)
        .filter(|(_, seen)| !matches!(seen.outcome, Outcome::Whole | Outcome::Left))
        .map(|((case, _), seen)| format!("{}: {:?}", case.title, seen.outcome))
        .collect();
    assert!(lost.is_empty(), "{} of {} lost: {lost:#?}\n{:?}", lost.len(), seen.len(), lingerd.counters());
    assert_eq!(lingerd.counters()["cut_short"], 0);
}

/// What a client sees of a server that sends `response` and ends, with a reset if it is to.
fn outcome(response: &[u8], reset: bool) -> Outcome {
    let listener = tcp::listener();
    let expected = Expected { status: 200, content: Some(5) };
    let script = vec![Step::ReadRest { rate: None }];
    let case = Case {
        title: "",
        over: Over::V4,
        window: None,
        from_afar: false,
        expected,
        script,
        past_limit: false,
    };
    let address = listener.local_addr().unwrap();
    let client = thread::spawn(move || run_all(&[(&case, address)], 1.0, Duration::ZERO).remove(0));
    let mut server = listener.accept().unwrap().0;
    server.write_all(response).unwrap();
    if reset {
        tcp::reset(server);
    } else {
        drop(server);
    }
    client.join().unwrap().outcome
}

#[test]
fn a_client_tells_what_it_has_seen() {
    let head = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
    for (framing, whole, short) in [
        ("Content-Length: 5\r\n", "\x00\x01\x02\x03\x04", "\x00\x01\x02\x03"),
        (
            "Transfer-Encoding: chunked\r\n",
            "2\r\n\x00\x01\r\n3\r\n\x02\x03\x04\r\n0\r\n\r\n",
            "2\r\n\x00\x01\r\n3\r\n\x02\x03\x04\r\n",
        ),
        ("", "\x00\x01\x02\x03\x04", "\x00\x01\x02\x03"),
    ] {
        let response = |content: &str| (head(framing) + content).into_bytes();
        assert_eq!(outcome(&response(whole), false), Outcome::Whole, "{framing}");
        assert_eq!(outcome(&response(short), false), Outcome::CutShort, "{framing}");
        assert_eq!(outcome(&response(short), true), Outcome::Reset, "{framing}");
        let wrong = whole.replace('\x03', "\x02");
        assert!(matches!(outcome(&response(&wrong), false), Outcome::Failed(_)), "{framing}");
    }
    assert_eq!(outcome(b"", false), Outcome::CutShort);
    assert!(matches!(outcome(b"HTTP/1.1 404 Not Found\r\n\r\n", false), Outcome::Failed(_)));
}

#[test]
fn every_client_gets_its_whole_response() {
    let Some((lingerd, apache)) = start() else { return };
    let cases = cases::all();
    let each = cases.iter().flat_map(|case| std::iter::repeat_n(case, EACH));
    let clients = with_addresses(each, |_| pages::server(&apache));
    let seen = run_all(&clients, SCALE, Duration::ZERO);
    assert_whole(&clients, &seen, &lingerd);
}

#[test]
fn every_client_gets_its_whole_response_when_all_come_mixed() {
    let Some((lingerd, apache)) = start() else { return };
    let cases = cases::mixed();
    let clients = with_addresses(cases.iter().cycle().take(MIXED), |_| pages::server(&apache));
    let seen = run_all(&clients, SCALE, Duration::ZERO);
    assert_whole(&clients, &seen, &lingerd);
}
