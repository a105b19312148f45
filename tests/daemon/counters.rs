// SPDX-License-Identifier: BSD-3-Clause

//! `lingerd -S`: the counters, their forms, and who may ask.

use lingerd_platform::process;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use support::built::promtool;
use support::daemon::{Daemon, Ended, Site, run};
use support::{is_root, tcp};

/// The documented names, in the documented order.
const NAMES: [&str; 27] = [
    "lingering",
    "spooling",
    "parked",
    "returning",
    "peak",
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
fn text_is_a_line_a_counter() {
    let (daemon, client) = busy();
    let answer = daemon.site.ask("text").stdout;
    let names: Vec<&str> = answer.lines().filter_map(|line| Some(line.split_once(' ')?.0)).collect();
    assert_eq!(names, NAMES);
    assert!(answer.lines().any(|line| line == "handed_over 2"), "{answer}");
    drop(client);
    daemon.finish("closed=2");
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
    let figures = answer.lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(figures, NAMES.len(), "{answer}");
    drop(client);
    daemon.finish("closed=2");
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
