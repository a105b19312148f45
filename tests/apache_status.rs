// SPDX-License-Identifier: BSD-3-Clause

//! What an administrator sees of lingerd through a real Apache: mod_status's page, and the handler lingerd-status.

use std::fs::{self, File};
use std::path::Path;
use support::apache::{Apache, Mpm, Setup};
use support::built::promtool;
use support::daemon::Daemon;
use support::http::{self, Held, connect, exchange, get, read_one};
use support::{eventually, wait_until};

/// What a page is asked for with.
const PAGES: &str = "<Location /server-status>\nSetHandler server-status\n</Location>\n\
                     <Location /lingerd>\nSetHandler lingerd-status\n</Location>\n\
                     <Location /closed>\nSetHandler lingerd-status\nRequire all denied\n</Location>";

fn lingerd() -> Daemon {
    Daemon::start(&["-m", "0666"])
}

fn start(socket: &Path, lines: &str) -> Option<Apache> {
    let setup = Setup::prefork(socket).workers(2).modules(&["status"]).with(PAGES).with(lines);
    let apache = setup.start()?;
    apache.publish("small", b"hello\n");
    Some(apache)
}

/// A page, with more fields in its request.
fn page(apache: &Apache, path: &str, fields: &str) -> Held {
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n{fields}\r\n");
    exchange(connect(apache.address), request.as_bytes())
}

fn text(apache: &Apache, path: &str) -> String {
    let page = page(apache, path, "");
    assert!(page.head.contains(" 200 "), "{}", page.head);
    String::from_utf8(page.body).unwrap()
}

/// A page that has what lingerd has answered.
struct Answered {
    head: String,
    text: String,
    /// How often it was asked for before without an answer of lingerd's in it.
    in_vain: u64,
}

/// The first page that has `part` in it: lingerd has two seconds to answer, which a busy machine may take. When it is
/// asked for lingerd's counters stand where `stands` says, as those who had asked before have gone.
fn answered(
    lingerd: &Daemon,
    stands: &str,
    apache: &Apache,
    path: &str,
    fields: &str,
    part: &str,
) -> Answered {
    let mut in_vain = 0;
    eventually(|| {
        lingerd.wait_for(stands);
        let Held { head, body, .. } = page(apache, path, fields);
        let text = String::from_utf8(body).unwrap();
        if text.contains(part) {
            return Ok(Answered { head, text, in_vain });
        }
        in_vain += 1;
        Err(format!("{part} in {head}\n\n{text}"))
    })
}

/// What a line with that key says in the page for programs.
fn says(status: &str, key: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": ")?.parse().ok())
}

#[test]
fn server_status_says_what_was_handed_over_and_what_is_with_lingerd() {
    let lingerd = lingerd();
    let lines = "KeepAlive On\nKeepAliveTimeout 600\nLingerdPark On";
    let Some(apache) = start(&lingerd.site.socket(), lines) else { return };
    let held: Vec<_> = (0..3).map(|_| get(apache.address, "/small")).collect();
    let mut kept = connect(apache.address);
    for _ in 0..2 {
        std::io::Write::write_all(&mut kept, b"GET /small HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        assert_eq!(read_one(&mut kept).1, b"hello\n");
        lingerd.wait_for("lingering=3 parked=1");
    }
    let here = "lingering=3 parked=1 returned=1";
    // What it gives a worker counts after lingerd has it. And who asked in vain may have been handed over, too.
    let mut in_vain = 0;
    eventually(|| {
        lingerd.wait_for(here);
        let status = text(&apache, "/server-status?auto");
        let numbers = [
            ("LingerdReachable", 1..=1),
            ("LingerdLingering", 3..=3),
            ("LingerdSpooling", 0..=0),
            ("LingerdWaiting", 1..=1),
            ("LingerdLingered", 3..=3 + in_vain),
            ("LingerdSpooled", 0..=0),
            ("LingerdParked", 2..=2),
            ("LingerdReturned", 1..=1),
            ("LingerdAway", 0..=0),
            ("LingerdBusy", 0..=0),
        ];
        in_vain += 1;
        let wrong =
            numbers.iter().find(|(key, right)| !says(&status, key).is_some_and(|n| right.contains(&n)));
        wrong.map_or(Ok(()), |(key, _)| Err(format!("{key} in {status}")))
    });
    let now = "With lingerd now: 3 linger, 0 are written, 1 wait for a request";
    let people = answered(&lingerd, here, &apache, "/server-status", "", now).text;
    for part in ["<h2>Connections and lingerd</h2>", "2 handed over to wait for a request"] {
        assert!(people.contains(part), "{part} in {people}");
    }
    drop((held, kept));
}

#[test]
fn server_status_says_why_nothing_is_handed_over() {
    let lingerd = lingerd();
    let socket = lingerd.site.socket();
    let Some(apache) = start(&socket, "") else { return };
    drop(get(apache.address, "/small"));
    lingerd.kill();
    // One that holds its end until Apache has looked for lingerd.
    let held = get(apache.address, "/small");
    wait_until("it is counted", || says(&text(&apache, "/server-status?auto"), "LingerdAway") >= Some(1));
    drop(held);
    let status = text(&apache, "/server-status?auto");
    assert_eq!(says(&status, "LingerdReachable"), Some(0));
    assert_eq!(says(&status, "LingerdLingering"), None);
    let people = text(&apache, "/server-status");
    let why = format!("lingerd at {}.2 does not answer: ", socket.display());
    assert!(people.contains(&why), "{people}");
    let page = page(&apache, "/lingerd", "");
    assert!(page.head.starts_with("HTTP/1.1 503 "), "{}", page.head);
    assert_eq!(apache.errors_with(&why).len(), 1);
    let metrics = text(&apache, "/lingerd?prometheus");
    assert!(metrics.contains("\nmod_lingerd_up 0\n") && !metrics.contains("\nlingerd_"), "{metrics}");
}

#[test]
fn the_handler_says_what_lingerd_says_in_each_of_its_forms() {
    let lingerd = lingerd();
    let Some(apache) = start(&lingerd.site.socket(), "") else { return };
    let held: Vec<_> = (0..3).map(|_| get(apache.address, "/small")).collect();
    let ask = |path, fields, part| answered(&lingerd, "lingering=3", &apache, path, fields, part);
    let Answered { text: table, in_vain: no_table, .. } = ask("/lingerd", "", "\nparked ");
    let of_lingerd = lingerd.site.ask("text");
    assert!(
        table.starts_with("handed_over ") || of_lingerd.stdout.split(' ').next() == table.split(' ').next()
    );
    let Answered { text: json, in_vain: no_json, .. } = ask("/lingerd?json", "", "\"lingering\"");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["lingering"], 3, "{json}");
    let accept = "Accept: application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1\r\n";
    let mut all = Vec::new();
    for (path, fields) in [("/lingerd", accept), ("/lingerd?prometheus", ""), ("/lingerd?prometheus=1", "")] {
        let Answered { head, text: metrics, .. } = ask(path, fields, "\nmod_lingerd_up 1\n");
        assert!(head.contains("Content-Type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
        assert!(head.contains("Cache-Control: no-store"), "{head}");
        for line in
            ["\nmod_lingerd_given_total{to=\"linger\"} ", "\nlingerd_connections{state=\"lingering\"} 3\n"]
        {
            assert!(metrics.contains(line), "{line} in {metrics}");
        }
        all.push(metrics);
    }
    drop(held);
    // Who may not see it does not, and nobody tells anything.
    assert!(page(&apache, "/closed", "").head.contains(" 403 "));
    let put = exchange(connect(apache.address), b"POST /lingerd HTTP/1.0\r\nContent-Length: 0\r\n\r\n");
    assert!(put.head.contains(" 405 "), "{}", put.head);
    let errors = apache.errors_with("[lingerd:error]");
    assert_eq!(errors.len() as u64, no_table + no_json, "{errors:#?}");
    lingerd.wait_for("protocol_errors=0 rejected=0 refused=0");
    // And those who read it for a living find no fault.
    let Some(mut promtool) = promtool() else { return };
    let said = apache.site.path("metrics");
    fs::write(&said, &all[0]).unwrap();
    let checked = promtool.args(["check", "metrics"]).stdin(File::open(&said).unwrap()).output().unwrap();
    assert!(checked.status.success(), "{}{}", String::from_utf8_lossy(&checked.stderr), all[0]);
}

#[test]
fn where_the_module_stands_aside_the_page_is_as_ever_and_the_handler_says_what_there_is() {
    let lingerd = lingerd();
    let setup = Setup::new(Mpm::Event).lingerd(&lingerd.site.socket()).modules(&["status"]).with(PAGES);
    let Some(apache) = setup.start() else { return };
    assert!(!text(&apache, "/server-status?auto").contains("Lingerd"));
    answered(&lingerd, "handed_over=0", &apache, "/lingerd?json", "", "\"lingering\"");
    drop(http::connect(apache.address));
}

#[test]
fn a_lingerd_that_hangs_is_not_waited_for_for_long() {
    let lingerd = lingerd();
    let Some(apache) = start(&lingerd.site.socket(), "") else { return };
    lingerd.freeze();
    let status = text(&apache, "/server-status?auto");
    assert_eq!(says(&status, "LingerdReachable"), Some(0), "{status}");
    assert!(page(&apache, "/lingerd", "").head.starts_with("HTTP/1.1 503 "));
    lingerd.thaw();
    wait_until("lingerd answers", || {
        says(&text(&apache, "/server-status?auto"), "LingerdReachable") == Some(1)
    });
}
