// SPDX-License-Identifier: BSD-3-Clause

//! The sandbox that every daemon of these tests runs in: that it does, and that it says so.

use lingerd_platform::sandbox;
use support::daemon::{Daemon, lingerd, run};

#[test]
fn what_is_built_in_is_in_force_or_the_log_says_that_it_is_not() {
    let version = run(lingerd().arg("-V")).stdout;
    assert!(version.ends_with(&format!("; sandbox: {})\n", sandbox::BUILT_IN)), "{version}");
    let daemon = Daemon::start(&[]);
    daemon.wait_for_log("serving");
    let log = daemon.site.log();
    for part in sandbox::BUILT_IN.split(", ") {
        let said = log.lines().any(|line| line.contains("sandbox: ") && line.contains(part));
        assert!(said, "nothing of {part} in {log}");
    }
    daemon.finish("");
}

/// Each has its own, on Linux; one that was started before would have what the others have lost.
#[test]
#[cfg(target_os = "linux")]
fn each_thread_is_inside() {
    use std::fs::{self, File};
    use std::os::fd::AsFd;

    let daemon = Daemon::start(&[]);
    daemon.wait_for_log("serving");
    // Which is closed in a thread that starts for that.
    daemon.sender().send(b"L", &[File::open("/dev/null").unwrap().as_fd()]);
    daemon.wait_for("rejected=1");
    let log = daemon.site.log();
    let mut expected =
        vec![("NoNewPrivs", "1"), ("CapEff", "0000000000000000"), ("CapPrm", "0000000000000000")];
    if !log.contains("cannot apply seccomp") {
        expected.push(("Seccomp", "2"));
    }
    let threads = fs::read_dir(format!("/proc/{}/task", daemon.pid)).unwrap();
    let mut number = 0;
    for thread in threads {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        for (what, value) in &expected {
            let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(":\t"));
            assert_eq!(line, Some(*value), "{what}");
        }
        number += 1;
    }
    assert!(number > 2, "the log and the closer have threads of their own");
    daemon.finish("rejected=1");
}
