// SPDX-License-Identifier: BSD-3-Clause
//! platform/s6, under a real s6-svscan.

use crate::root::{BRIEF, LASTING, Root};
use support::wait_until;

/// A root in which s6-svscan runs, with the service in it.
fn booted(options: &str) -> Option<Root> {
    let root = Root::new(&["s6-svscan", "s6-supervise", "s6-envdir", "s6-log"])?;
    for file in ["run", "finish", "log/run"] {
        root.install(&format!("platform/s6/{file}"), &format!("/service/lingerd/{file}"), "755");
    }
    for file in ["LINGERD_USER", "LINGERD_GROUP", "LINGERD_OPTIONS"] {
        root.install(&format!("platform/s6/env/{file}"), &format!("/service/lingerd/env/{file}"), "644");
    }
    for (file, first) in [("LINGERD_USER", "lingerd\n"), ("LINGERD_GROUP", "www-data\n")] {
        // The first line is the value, whatever it is.
        assert!(crate::root::read(&format!("platform/s6/env/{file}")).starts_with(first), "{file}");
    }
    root.must("chown nobody /run/lingerd; cd /service/lingerd/env; echo nobody >LINGERD_USER; echo 0 >LINGERD_GROUP");
    configure(&root, options);
    root.start("exec s6-svscan /service");
    Some(root)
}

fn configure(root: &Root, options: &str) {
    root.must(&format!("echo '{options}' >/service/lingerd/env/LINGERD_OPTIONS"));
}

#[test]
fn an_upgrade_by_hand_loses_nothing_and_what_was_killed_comes_back() {
    let Some(root) = booted(LASTING) else { return };
    let up = || {
        let pid = root.run("s6-svstat -o pid /service/lingerd").stdout;
        Some(pid.trim().to_owned())
    };
    root.upgrade_and_kill(|| drop(root.must(&format!("lingerd -r -u nobody -g 0 {LASTING}"))), up);
    root.wait_for_text("/var/log/lingerd/current", "took over 4 connections and ");
}

#[test]
fn restart_is_bounded() {
    let Some(root) = booted(BRIEF) else { return };
    root.restart_while_somebody_lingers(|| drop(root.must("s6-svc -wr -T 60000 -r /service/lingerd")));
    root.must("s6-svc -wD -T 60000 -d /service/lingerd");
    root.wait_for_none();
}

#[test]
fn a_wrong_option_leaves_it_down_and_says_so() {
    let Some(root) = booted("-t never") else { return };
    wait_until("it is down", || {
        root.run("s6-svstat -o up,wantedup /service/lingerd").stdout == "false false\n"
    });
    root.wait_for_text("/var/log/lingerd/current", "-t 'never'");
    // Put right, it starts.
    configure(&root, LASTING);
    root.must("s6-svc -u /service/lingerd");
    root.wait_for_another(None);
}
