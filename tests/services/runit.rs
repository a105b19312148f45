// SPDX-License-Identifier: BSD-3-Clause
//! platform/runit, under a real runsvdir.

use crate::root::{BRIEF, LASTING, Root};
use support::wait_until;

/// A root in which runsvdir runs, with the service in it.
fn booted(options: &str) -> Option<Root> {
    let root = Root::new(&["runsvdir", "runsv", "sv", "svlogd"])?;
    for file in ["run", "finish", "control/h", "log/run"] {
        root.install(&format!("platform/runit/{file}"), &format!("/etc/sv/lingerd/{file}"), "755");
    }
    root.install("platform/runit/conf", "/etc/sv/lingerd/conf", "644");
    configure(&root, options);
    root.must("chown nobody /run/lingerd; mkdir /service && ln -s /etc/sv/lingerd /service/lingerd");
    root.start("exec runsvdir /service");
    Some(root)
}

fn configure(root: &Root, options: &str) {
    root.must(&format!(
        "sed -i -e 's/^lingerd_user=.*/lingerd_user=nobody/' -e 's/^lingerd_group=.*/lingerd_group=0/' \
         -e 's/^lingerd_options=.*/lingerd_options=\"{options}\"/' /etc/sv/lingerd/conf"
    ));
}

#[test]
fn reload_loses_nothing_and_what_was_killed_comes_back() {
    let Some(root) = booted(LASTING) else { return };
    let up = || {
        let status = root.run("sv status /service/lingerd").stdout;
        Some(status.strip_prefix("run: ")?.split_once("(pid ")?.1.split_once(')')?.0.to_owned())
    };
    root.upgrade_and_kill(|| drop(root.must("sv reload /service/lingerd")), up);
    root.wait_for_text("/var/log/lingerd/current", "took over 4 connections and ");
}

#[test]
fn restart_is_bounded() {
    let Some(root) = booted(BRIEF) else { return };
    root.restart_while_somebody_lingers(|| drop(root.must("sv -w 60 restart /service/lingerd")));
    root.must("sv -w 60 down /service/lingerd");
    root.wait_for_none();
}

#[test]
fn a_wrong_option_leaves_it_down_and_says_so() {
    let Some(root) = booted("-t never") else { return };
    wait_until("it is down for good", || {
        let status = root.run("sv status /service/lingerd").stdout;
        status.starts_with("down: /service/lingerd: ") && !status.contains("want up")
    });
    root.wait_for_text("/var/log/lingerd/current", "-t 'never'");
    // Put right, it starts.
    configure(&root, LASTING);
    root.must("sv up /service/lingerd");
    root.wait_for_another(None);
}
