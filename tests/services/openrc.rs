// SPDX-License-Identifier: BSD-3-Clause
//! platform/openrc, under the real openrc-run.

use crate::root::{BRIEF, LASTING, Root};
use support::sender::Sender;
use support::wait_until;

/// A root that OpenRC has booted, as far as it looks at that, with the service in it.
fn booted(options: &str, more: &str) -> Option<Root> {
    let root = Root::new(&["openrc-run", "rc-service"])?;
    root.must(
        "cd /run && mkdir openrc && cd openrc && : >softlevel && mkdir starting started stopping \
         inactive wasinactive failed hotplugged daemons options exclusive scheduled tmp; chown nobody /run/lingerd",
    );
    // Every system with OpenRC has that; Debian's package has left it to others.
    root.write("/etc/init.d/localmount", "755", "#!/sbin/openrc-run\nstart() { :; }\n");
    root.install("platform/openrc/lingerd.initd", "/etc/init.d/lingerd", "755");
    root.install("platform/openrc/lingerd.confd", "/etc/conf.d/lingerd", "644");
    configure(&root, options, more);
    Some(root)
}

fn configure(root: &Root, options: &str, more: &str) {
    root.must(&format!(
        "sed -i -e 's/^lingerd_user=.*/lingerd_user=nobody/' -e 's/^lingerd_group=.*/lingerd_group=0/' \
         -e 's/^lingerd_options=.*/lingerd_options=\"{options}\"/' /etc/conf.d/lingerd && \
         echo '{more}' >>/etc/conf.d/lingerd"
    ));
}

#[test]
fn reload_loses_nothing_and_stop_ends_it() {
    let Some(root) = booted(LASTING, "") else { return };
    root.must("rc-service lingerd start && rc-service lingerd status");
    let first = root.wait_for_another(None);
    let sender = Sender::connect(&root.site.socket());
    let mut clients = root.hand_over(&sender, 3);
    root.wait_for("lingering", 3);
    root.must("rc-service lingerd reload");
    let second = root.wait_for_another(Some(&first));
    clients.extend(root.hand_over(&sender, 2));
    root.wait_for("lingering", 5);
    // OpenRC knows the new one by the pid file.
    root.must("rc-service lingerd status");
    assert_eq!(root.must("head -n 1 /run/lingerd/lingerd.pid"), second + "\n");

    // With options that are wrong the one that runs stays in charge.
    configure(&root, "-t never", "");
    let refused = root.run("rc-service lingerd reload");
    assert!(refused.stderr.contains("-t 'never'"), "{refused:?}");
    assert_ne!(refused.code, Some(0));
    root.wait_for("lingering", 5);

    drop(clients);
    root.must("rc-service lingerd stop");
    root.wait_for_none();
    assert_ne!(root.run("rc-service lingerd status").code, Some(0));
    assert_ne!(root.run("rc-service lingerd start").code, Some(0), "it cannot start with them");
}

#[test]
fn restart_is_bounded() {
    let Some(root) = booted(BRIEF, "") else { return };
    root.must("rc-service lingerd start");
    root.restart_while_somebody_lingers(|| drop(root.must("rc-service lingerd restart")));
}

#[test]
fn supervise_daemon_starts_it_again() {
    let Some(root) = booted(LASTING, "supervisor=supervise-daemon") else { return };
    root.must("rc-service lingerd start");
    // It writes down who its child is.
    let child = || {
        let pid = root.run("cat /run/openrc/options/lingerd/child_pid").stdout;
        Some(pid.trim().to_owned())
    };
    root.upgrade_and_kill(|| drop(root.must("rc-service lingerd reload")), child);
    root.wait_for_text("/var/log/lingerd.log", "took over 4 connections and ");
}

#[test]
fn supervise_daemon_restarts_it() {
    let Some(root) = booted(BRIEF, "supervisor=supervise-daemon") else { return };
    root.must("rc-service lingerd start");
    root.restart_while_somebody_lingers(|| drop(root.must("rc-service lingerd restart")));
    root.must("rc-service lingerd stop");
    wait_until("the daemon is gone", || root.run("pidof lingerd").code == Some(1));
}
