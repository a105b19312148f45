// SPDX-License-Identifier: BSD-3-Clause

//! `lingerd -S`: the counters, their forms, and who may ask.

use lingerd_platform::process;
use serde_json::Value;
use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use support::built::promtool;
use support::daemon::{Counters, Daemon, Ended, Site, run};
use support::{is_root, tcp};

/// The documented names, in the documented order.
const NAMES: [&str; 28] = [
    "lingering",
    "spooling",
    "parked",
    "returning",
    "peak",
    "capacity",
    "handed_over",
    "closed",
    "reset",
    "idle",
    "max",
    "limit",
    "evicted",
    "stopped",
    "stalled",
    "broken",
    "returned",
    "cut_short",
    "rejected",
    "protocol_errors",
    "refused",
    "killed",
    "abandoned",
    "senders",
    "bytes_discarded",
    "spooled",
    "spool_bytes",
    "uptime",
];

/// A daemon with one connection that lingers, and one that has ended.
fn busy() -> (Daemon, std::net::TcpStream) {
    let daemon = Daemon::start(&[]);
    let (mut clients, servers) = tcp::connections(2);
    daemon.sender().hand_over_all(&servers);
    drop(servers);
    clients.pop();
    daemon.wait_for("lingering=1 closed=1");
    (daemon, clients.remove(0))
}

#[test]
fn text_is_a_line_a_counter_that_begins_with_its_name_and_its_number() {
    let (daemon, client) = busy();
    let answer = run(daemon.site.lingerd().arg("-S")).stdout;
    for name in NAMES {
        let lines = answer.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let number = lines.filter(|words| words.first() == Some(&name)).map(|words| words[1].parse::<u64>());
        let expected = match name {
            "lingering" | "closed" => 1,
            "handed_over" => 2,
            "peak" | "capacity" | "senders" | "uptime" => continue, // it depends
            _ => 0,
        };
        assert_eq!(number.collect::<Vec<_>>(), [Ok(expected)], "{name}: {answer}");
    }
    drop(client);
    daemon.finish("closed=2");
}

#[test]
fn what_was_counted_in_the_last_minute_is_told_apart() {
    let (daemon, client) = busy();
    let answer: Value = serde_json::from_str(&daemon.site.ask("json").stdout).unwrap();
    let minute = &answer["last_minute"];
    assert_eq!((&minute["handed_over"], &minute["closed"]), (&2.into(), &1.into()), "{answer}");
    assert!(minute["seconds"].as_f64().is_some_and(|seconds| seconds < 65.0), "{answer}");
    assert_eq!(minute.get("lingering"), None, "it may go down");
    drop(client);
    daemon.finish("closed=2");
}

#[test]
fn it_can_be_looked_at_again_and_again() {
    let daemon = Daemon::start(&[]);
    for (format, titles) in [("text", &["- now -", " closed "][..]), ("json", &[])] {
        let mut command = daemon.site.lingerd();
        command.args(["-S", "-o", format, "-i", "0.05"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut looking = command.spawn().unwrap();
        let mut lines = BufReader::new(looking.stdout.take().unwrap()).lines().map(Result::unwrap);
        for title in titles {
            assert!(lines.next().unwrap().contains(title));
        }
        let (client, server) = tcp::connection();
        daemon.sender().hand_over(server);
        let lingers = |line: &String| match format {
            "json" => Counters::from_json(line)["lingering"] == 1,
            _ => line.split_whitespace().next() == Some("1"),
        };
        assert!(lines.any(|line| lingers(&line)), "it ends before it has seen one");
        drop(client);
        assert!(lines.any(|line| !lingers(&line)), "it ends before it has seen it go");
        drop(lines);
        // Whom nobody reads any more has nothing to complain of.
        let ended = looking.wait_with_output().unwrap();
        assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
    }
    daemon.finish("closed=2");
}

#[test]
fn who_looks_again_and_again_ends_with_the_daemon() {
    // So often that the daemon hardly ends while nobody asks.
    let daemon = Daemon::start(&[]);
    let mut command = daemon.site.lingerd();
    let mut looking =
        command.args(["-S", "-i", "0.001"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(looking.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("now"));
    daemon.finish("");
    assert!(lines.all(|line| line.is_ok()));
    let ended = looking.wait_with_output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(ended.status.code() == Some(3) && said.contains("no lingerd is running"), "{said}");
}

#[test]
fn json_is_one_object_with_the_documented_names() {
    let (daemon, client) = busy();
    let counters = daemon.counters();
    let mut names = NAMES;
    names.sort();
    assert!(counters.names().eq(names), "{counters:?}");
    assert_eq!((counters["lingering"], counters["handed_over"]), (1, 2));
    drop(client);
    daemon.finish("closed=2");
}

#[test]
fn prometheus_has_a_sample_for_each_figure() {
    let (daemon, client) = busy();
    let answer = daemon.site.ask("prometheus").stdout;
    for line in [
        "# TYPE lingerd_ended_total counter",
        "lingerd_ended_total{reason=\"closed\"} 1",
        "lingerd_connections{state=\"lingering\"} 1",
    ] {
        assert!(answer.lines().any(|l| l == line), "no '{line}' in {answer}");
    }
    let is_one = |line: &&str| {
        !line.starts_with('#') && !line.contains("er_seconds_") && !line.contains("ol_seconds_")
    };
    assert_eq!(answer.lines().filter(is_one).count(), NAMES.len(), "{answer}");
    drop(client);
    daemon.finish("closed=2");
}

#[test]
fn how_long_connections_lingered_is_counted_by_the_reason_and_goes_to_the_next_daemon() {
    let site = Site::new();
    let mut daemon = site.start(&["-t", "0.5"]);
    let (client, server) = tcp::connection();
    daemon.sender().hand_over(server);
    daemon.wait_for("idle=1");
    let first = daemon.timed("linger_seconds", "idle");
    // It may be longer, but no shorter than -t.
    assert_eq!(
        (&first["count"], &first["up_to"]["0.25"], &first["up_to"]["+Inf"]),
        (&1.into(), &0.into(), &1.into())
    );
    assert!(first["sum"].as_f64().is_some_and(|sum| sum >= 0.5), "{first}");
    drop(client);
    let next = site.start(&["-r"]);
    assert_eq!(daemon.wait_for_end(), Some(0)); // till then it may be the one that answers
    assert_eq!(next.timed("linger_seconds", "idle"), first);
    let (client, server) = tcp::connection();
    next.sender().hand_over(server);
    next.wait_for("lingering=1");
    drop(client);
    next.wait_for("closed=1");
    assert_eq!(next.timed("linger_seconds", "closed")["count"], 1);
    assert_eq!(next.timed("linger_seconds", "idle"), first);
    next.finish("closed=1 idle=1");
}

#[test]
fn prometheus_finds_no_fault_with_it() {
    let Some(mut promtool) = promtool() else { return };
    let (daemon, client) = busy();
    let said = daemon.site.path("metrics");
    fs::write(&said, daemon.site.ask("prometheus").stdout).unwrap();
    // run() would close its standard input.
    let checked = promtool.args(["check", "metrics"]).stdin(File::open(&said).unwrap()).output().unwrap();
    assert!(checked.status.success() && checked.stderr.is_empty(), "{checked:?}");
    drop(client);
    daemon.finish("closed=2");
}

#[test]
fn without_a_daemon_the_exit_code_is_3() {
    Site::new().ask("text").assert_failed(3, "no lingerd is running");
}

#[test]
fn behind_a_killed_daemon_the_exit_code_is_3() {
    let site = Site::new();
    site.start(&[]).kill();
    site.ask("text").assert_failed(3, "no lingerd is running");
}

#[test]
fn a_daemon_that_hangs_is_an_error() {
    let daemon = Daemon::start(&[]);
    daemon.freeze();
    daemon.site.ask("text").assert_failed(1, "the daemon does not answer");
    daemon.thaw();
    daemon.finish("");
}

#[test]
fn who_asks_and_does_not_wait_for_the_answer_does_no_harm() {
    let daemon = Daemon::start(&[]);
    for _ in 0..100 {
        // Refused where the queue is full, which is as good.
        let _ = UnixStream::connect(daemon.site.control());
    }
    daemon.finish("");
}

#[test]
fn another_user_is_refused() {
    if !is_root() {
        return;
    }
    let daemon = Daemon::start(&[]);
    ask_as_nobody(&daemon.site).assert_failed(1, "only the daemon's user and root may ask");
    // Where the file's mode does not keep them out, the daemon itself does.
    fs::set_permissions(daemon.site.control(), Permissions::from_mode(0o666)).unwrap();
    ask_as_nobody(&daemon.site).assert_failed(1, "hung up");
    daemon.wait_for_log("it may not use the control socket");
    daemon.finish("refused=1");
}

/// `lingerd -S`, run by the user nobody.
fn ask_as_nobody(site: &Site) -> Ended {
    let lingerd = site.lingerd();
    let nobody = process::user("nobody").unwrap().expect("there is a user nobody");
    let mut command = Command::new(site.program_for_all());
    run(command.args(lingerd.get_args()).arg("-S").current_dir("/").uid(nobody.uid).gid(nobody.gid))
}

/// Asks where senders come in, for the form that `byte` names, and reads all.
fn ask_at_second(daemon: &Daemon, byte: u8) -> String {
    say_at_second(daemon, &[byte])
}

/// Says all of that there, and reads all that is answered.
fn say_at_second(daemon: &Daemon, bytes: &[u8]) -> String {
    let mut link = UnixStream::connect(daemon.site.second()).unwrap();
    link.write_all(bytes).unwrap();
    let mut answer = String::new();
    link.read_to_string(&mut answer).unwrap();
    // It may have been told first that it may hand a response over.
    answer.trim_start_matches('G').to_owned()
}

#[test]
fn whoever_may_hand_over_may_ask_at_the_second_socket() {
    let (daemon, client) = busy();
    let _sender = daemon.sender();
    daemon.wait_for("senders=1");
    let text = ask_at_second(&daemon, b't');
    assert!(text.starts_with("lingering ") && text.ends_with('\n'), "{text}");
    let json = Counters::from_json(&ask_at_second(&daemon, b'j'));
    assert_eq!(
        (json["lingering"], json["senders"], json["protocol_errors"]),
        (1, 1, 0),
        "who asks is no sender"
    );
    let metrics = ask_at_second(&daemon, b'p');
    assert!(
        metrics.starts_with("# HELP lingerd_connections ") && metrics.contains("lingerd_senders 1\n"),
        "{metrics}"
    );
    assert!(metrics.ends_with("\n") && metrics.contains("lingerd_spool_seconds_count{reason=\"broken\"} 0"));
    // What is asked for nowhere is no message.
    assert_eq!(ask_at_second(&daemon, b'x'), "");
    let mut first = UnixStream::connect(daemon.site.socket()).unwrap();
    first.write_all(b"p").unwrap();
    assert_eq!(first.read(&mut [0]).unwrap(), 0);
    drop(client);
    daemon.finish("closed=2 protocol_errors=2");
}

#[test]
fn who_asks_by_a_line_is_answered_and_not_reset() {
    let daemon = Daemon::start(&[]);
    for line in ["t\n", "t\r\n"] {
        let text = say_at_second(&daemon, line.as_bytes());
        assert!(text.starts_with("lingering ") && text.ends_with('\n'), "{line:?}: {text}");
    }
    let mut link = UnixStream::connect(daemon.site.second()).unwrap();
    link.write_all(b"t\n").unwrap();
    link.read_to_end(&mut Vec::new()).expect("the answer, and not that it is reset");
    daemon.finish("");
    // The end of the answer may come before the reset: by now it would be there.
    assert!(link.take_error().unwrap().is_none(), "it is reset");
}

#[test]
fn who_asks_at_the_second_socket_and_does_not_read_the_answer_does_no_harm() {
    let daemon = Daemon::start(&[]);
    let ask = || {
        let mut link = UnixStream::connect(daemon.site.second()).unwrap();
        link.write_all(b"p").unwrap();
        link
    };
    let _unread: Vec<_> = (0..20).map(|_| ask()).collect();
    assert!(ask_at_second(&daemon, b'p').starts_with("# HELP"));
    daemon.finish("");
}

#[test]
fn how_many_there_may_be_is_what_n_says_or_the_limit_leaves() {
    let daemon = Daemon::start(&["-n", "7"]);
    assert_eq!(daemon.counters()["capacity"], 7);
    daemon.finish("");
    let daemon = Site::new().start_limited(200, &[]);
    let capacity = daemon.counters()["capacity"];
    assert!(capacity < 200);
    daemon.wait_for_log(&format!("up to {capacity} connections linger at once"));
    daemon.finish("");
}
