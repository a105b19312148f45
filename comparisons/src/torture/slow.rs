// SPDX-License-Identifier: BSD-3-Clause

//! Slow readers of what a program makes: what becomes of their responses with each set-up, and when lingerd is
//! killed while it writes them.

use super::answer::Expected;
use super::cases::{Case, Over, Step};
use super::client::{self, Outcome, Seen};
use super::{Server, run_all, with_addresses};
use crate::set_up::{Clients, Kind, SetUp};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;
use support::daemon::Daemon;
use support::{during, tcp};

/// What a program makes: more than a socket takes at once of a client that is slow.
const SIZE: usize = 2_000_000;

/// How fast a client reads, in bytes a second.
const SLOW: f64 = 150_000.0;

/// A window so small that what is not read stays with the server.
const SMALL: usize = 16_000;

/// Of each set-up; fewer than there are clients.
pub const WORKERS: usize = 20;

/// How often to look whom the workers hold.
const LOOK: Duration = Duration::from_millis(100);

/// Clients of lingerd's that is killed, and of each that comes after it.
const KILLED: usize = 40;

/// Clients over TLS at once.
const AT_ONCE: usize = 64;

fn get(path: &str) -> Step {
    Step::Send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").into())
}

fn case(title: &'static str, over: Over, size: usize, script: Vec<Step>) -> Case {
    let expected = Expected { status: 200, content: Some(size) };
    Case { title, over, window: Some(SMALL), from_afar: true, expected, script, past_limit: false }
}

/// What each set-up goes through.
pub fn cases() -> Vec<Case> {
    let page = || get("/slow.php");
    let rest = || Step::ReadRest { rate: Some(SLOW) };
    let some = |seconds| Step::Read { rate: SLOW, seconds };
    let late = || vec![page(), some(11.0), get("/late"), rest()];
    vec![
        case("2 MB by PHP at 150 kB/s", Over::V4, SIZE, vec![page(), rest()]),
        case("the same, late request after 11 s", Over::V4, SIZE, late()),
        case("2 MB over TLS at 150 kB/s", Over::Tls, SIZE, vec![page(), rest()]),
        case("the same, late record after 11 s", Over::Tls, SIZE, late()),
        case("reset by the client after 3 s", Over::V4, SIZE, vec![page(), some(3.0), Step::Reset]),
        case("closed by the client after 3 s", Over::V4, SIZE, vec![page(), some(3.0), Step::Leave]),
    ]
}

/// Puts the page up.
fn publish(set_up: &SetUp) {
    set_up.publish("slow.bin", &tcp::response(SIZE));
    set_up.publish("slow.php", b"<?php readfile(__DIR__ . '/slow.bin');");
}

/// Starts all set-ups.
///
/// # Errors
/// What is missing on this system.
pub fn start() -> Result<Vec<SetUp>, String> {
    Kind::SLOW_READERS
        .into_iter()
        .map(|kind| {
            let set_up = SetUp::try_start(kind, Clients::SlowReaders, WORKERS)?;
            publish(&set_up);
            Ok(set_up)
        })
        .collect()
}

/// What so many clients of each case saw of one, and how many seconds a worker was held for each.
pub fn play(set_up: &SetUp, cases: &[Case], each: usize) -> (Vec<Seen>, f64) {
    let all = cases.iter().flat_map(|case| std::iter::repeat_n(case, each));
    let clients = with_addresses(all, |_| set_up.server);
    let held = AtomicUsize::new(0);
    let looks = AtomicUsize::new(0);
    let begun = std::time::Instant::now();
    let look = || {
        held.fetch_add(set_up.held(), Ordering::Relaxed);
        looks.fetch_add(1, Ordering::Relaxed);
        thread::sleep(LOOK);
    };
    let seen = during(look, || run_all(&clients, 1.0, LOOK / 2));
    let mean = held.into_inner() as f64 / looks.into_inner() as f64;
    (seen, mean * begun.elapsed().as_secs_f64() / clients.len() as f64)
}

/// How many responses a lingerd was still writing when it was killed, half of them over TLS; what all clients saw,
/// and those that came when there was another.
///
/// # Errors
/// What is missing on this system.
pub fn kill() -> Result<(u64, [Vec<Seen>; 2]), String> {
    let mut set_up = SetUp::try_start(Kind::Lingerd, Clients::SlowReaders, WORKERS)?;
    publish(&set_up);
    let cases = &cases()[..4];
    let clients = with_addresses(cases.iter().cycle().take(KILLED), |_| set_up.server);
    let daemon = set_up.lingerd.take().expect("it has one");
    let site = daemon.site.clone();
    let (killed, being_written) = thread::scope(|scope| {
        let seen = scope.spawn(|| run_all(&clients, 1.0, Duration::ZERO));
        daemon.wait_for(&format!("spooled={KILLED}"));
        let being_written = daemon.counters()["spooling"];
        daemon.kill();
        (seen.join().expect("clients"), being_written)
    });
    let next: Daemon = site.start_as_it_is(&["-m", "0666"]);
    let after = run_all(&clients, 1.0, Duration::ZERO);
    assert!(next.counters()["spooled"] > 0, "the workers have not found the next one");
    Ok((being_written, [killed, after]))
}

/// What so many clients over TLS saw, some at once: each byte that they got is the right one, or it is
/// [`Outcome::Failed`].
pub fn over_tls(server: Server, clients: usize) -> Vec<Outcome> {
    let script = vec![get("/slow.php"), Step::ReadRest { rate: Some(10.0 * SLOW) }];
    let case = case("", Over::Tls, SIZE, script);
    let left = AtomicUsize::new(clients);
    let work = || {
        let mut outcomes = Vec::new();
        while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            outcomes.push(client::run(&case, server.tls, 1.0).outcome);
        }
        outcomes
    };
    thread::scope(|scope| {
        let running: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        running.into_iter().flat_map(|running| running.join().expect("a client")).collect()
    })
}
