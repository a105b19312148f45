// SPDX-License-Identifier: BSD-3-Clause
//! platform/illumos: the SMF manifest, and the method with the real daemon under the shells that those systems
//! have, and what the IPS package has in it. Of svc.startd(8) there is what smf_method(7) and its source say
//! of it: it calls a service stopped when its contract is empty, and only then starts it.

use crate::root::{BRIEF, LASTING, Root, built_tree, have, must, read};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use support::daemon::{Ended, Site};
use support::sender::Sender;
use support::{built, wait_until};

const MANIFEST: &str = "platform/illumos/lingerd.xml";
const METHOD: &str = "platform/illumos/svc-lingerd";

/// What of smf_include.sh(7) a method relies on: its exit codes.
const SMF_INCLUDE: &str = "SMF_EXIT_OK=0
SMF_EXIT_NODAEMON=94
SMF_EXIT_ERR_FATAL=95
SMF_EXIT_ERR_CONFIG=96
SMF_EXIT_MON_DEGRADE=97
SMF_EXIT_MON_OFFLINE=98
SMF_EXIT_ERR_NOSMF=99
SMF_EXIT_ERR_PERM=100
";

/// svcprop(1), with the properties as files: a backslash before each character that a shell would take for
/// something else, and a pair of quotes for nothing.
const SVCPROP: &str = r#"#!/bin/sh
[ "$1" = -p ] && [ "$3" = svc:/network/lingerd:default ] || { echo "svcprop: $*" >&2; exit 2; }
[ -f "/properties/$2" ] || { echo "svcprop: Couldn't find property '$2' for instance '$3'." >&2; exit 1; }
if [ -s "/properties/$2" ]; then
    sed 's/[];&()|^<> \\"'\''`[:blank:]]/\\&/g' "/properties/$2"; echo
else
    echo '""'
fi
"#;

/// svc.startd(8), as far as the method can tell.
struct Startd {
    root: Root,
    shell: &'static str,
}

impl Startd {
    /// With the properties that the manifest sets, but for those who are not users here.
    fn new(shell: &'static str, flags: &str) -> Option<Startd> {
        let root = Root::new(&[shell])?;
        root.write("/lib/svc/share/smf_include.sh", "644", SMF_INCLUDE);
        root.write("/usr/bin/svcprop", "755", SVCPROP);
        root.install(METHOD, "/lib/svc/method/svc-lingerd", "755");
        let startd = Startd { root, shell };
        for (name, value) in properties() {
            startd.set(&format!("lingerd/{name}"), &value);
        }
        for (name, value) in [("user", "nobody"), ("group", "0"), ("flags", flags)] {
            startd.set(&format!("lingerd/{name}"), value);
        }
        startd.root.must("chown nobody /run/lingerd");
        Some(startd)
    }

    fn set(&self, property: &str, value: &str) {
        self.root.write(&format!("/properties/{property}"), "644", value);
    }

    fn method(&self, name: &str, next_state: &str) -> Ended {
        self.set("restarter/next_state", next_state);
        let shell = self.shell;
        self.root.run(&format!(
            "SMF_FMRI=svc:/network/lingerd:default SMF_METHOD={name} PATH=/usr/sbin:/usr/bin \
             exec {shell} /lib/svc/method/svc-lingerd {name}"
        ))
    }

    fn start(&self) -> String {
        let before = self.root.run("pidof lingerd").stdout;
        let started = self.method("start", "online");
        assert_eq!(started.code, Some(0), "{started:?}");
        self.root.wait_for_another(Some(before.trim()))
    }

    /// `svcadm restart`.
    fn restart(&self, running: &str) -> String {
        let stopped = self.method("stop", "offline");
        assert_eq!(stopped.code, Some(0), "{stopped:?}");
        wait_until("the contract is empty", || self.root.run(&format!("kill -0 {running}")).code != Some(0));
        self.start()
    }
}

/// A restart loses nothing, though svc.startd waits for the end of the old one.
fn a_restart_loses_nothing(shell: &'static str) {
    let Some(startd) = Startd::new(shell, LASTING) else { return };
    let root = &startd.root;
    let first = startd.start();
    let sender = Sender::connect(&root.site.socket());
    let mut clients = root.hand_over(&sender, 3);
    root.wait_for("lingering", 3);
    let second = startd.restart(&first);
    clients.extend(root.hand_over(&sender, 2));
    root.wait_for("lingering", 5);

    // What has changed comes into force.
    startd.set("lingerd/flags", &format!("{LASTING} -m 0666"));
    let third = startd.restart(&second);
    root.wait_for("lingering", 5);
    for socket in [root.site.socket(), root.site.second()] {
        assert_eq!(support::daemon::mode(&socket), 0o666);
    }

    // When it has died there is nobody to stop.
    root.must(&format!("kill -9 {third}"));
    wait_until("it is gone", || root.run("pidof lingerd").code == Some(1));
    let stopped = startd.method("stop", "offline");
    assert_eq!(stopped.code, Some(0), "{stopped:?}");
    assert_eq!(root.run("pidof lingerd").code, Some(1), "the stop has started one");
    startd.start();

    // svcadm disable.
    drop(clients);
    let stopped = startd.method("stop", "disabled");
    assert_eq!(stopped.code, Some(0), "{stopped:?}");
    root.wait_for_none();
}

#[test]
fn a_restart_loses_nothing_with_ksh() {
    a_restart_loses_nothing("ksh93");
}

#[test]
fn a_restart_loses_nothing_with_bash() {
    a_restart_loses_nothing("bash");
}

#[test]
fn a_restart_loses_nothing_with_a_posix_shell() {
    a_restart_loses_nothing("dash");
}

#[test]
fn what_is_wrong_leads_to_maintenance() {
    let Some(startd) = Startd::new("ksh93", "-t never") else { return };
    let root = &startd.root;
    // SMF_EXIT_ERR_CONFIG: svc.startd does not try again.
    startd.method("start", "online").assert_failed(96, "-t 'never'");
    startd.set("lingerd/flags", "");
    startd.set("lingerd/group", "");
    startd.method("start", "online").assert_failed(96, "must be set");
    startd.set("lingerd/group", "0");
    startd.set("lingerd/user", "no one; touch /tmp/lingerd-no-one");
    let failed = startd.method("start", "online");
    failed.assert_failed(1, "-u 'no one; touch /tmp/lingerd-no-one'");
    root.must("test ! -e /tmp/lingerd-no-one");
    root.must("! pidof lingerd");
    let method = "/lib/svc/method/svc-lingerd";
    root.run(&format!("ksh93 {method} start")).assert_failed(99, "svcadm");
    root.run(&format!("SMF_FMRI=svc:/network/lingerd:default ksh93 {method} reload"))
        .assert_failed(95, "usage");
}

/// New properties that are wrong: the one that runs is stopped as ever, and the start says what is wrong.
#[test]
fn a_restart_into_what_is_wrong_leaves_no_stand_in() {
    let Some(startd) = Startd::new("ksh93", BRIEF) else { return };
    let root = &startd.root;
    startd.start();
    let sender = Sender::connect(&root.site.socket());
    let _clients = root.hand_over(&sender, 3);
    root.wait_for("lingering", 3);
    startd.set("lingerd/flags", "-t never");
    let stopped = startd.method("stop", "offline");
    assert_eq!(stopped.code, Some(0), "{stopped:?}");
    root.wait_for_none();
    startd.method("start", "online").assert_failed(96, "-t 'never'");
    root.must("! pidof lingerd");
}

/// A socket elsewhere: what runs is not found there, and is stopped all the same.
#[test]
fn a_restart_with_another_socket_stops_the_one_that_runs() {
    let Some(startd) = Startd::new("ksh93", BRIEF) else { return };
    let root = &startd.root;
    let first = startd.start();
    startd.set("lingerd/socket", "/var/run/lingerd/other.sock");
    let stopped = startd.method("stop", "offline");
    assert_eq!(stopped.code, Some(0), "{stopped:?}");
    root.wait_for_none();
    let started = startd.method("start", "online");
    assert_eq!(started.code, Some(0), "{started:?}");
    assert_ne!(root.daemon(), Some(first));
    root.must("lingerd -S -s /var/run/lingerd/other.sock");
}

#[test]
fn the_manifest_is_valid() {
    let manifest = built::project().join(MANIFEST);
    let dtd = Path::new("/usr/share/lib/xml/dtd/service_bundle.dtd.1");
    if cfg!(any(target_os = "illumos", target_os = "solaris")) {
        must(Command::new("/usr/sbin/svccfg").arg("validate").arg(&manifest));
    }
    if have("xmllint") {
        let mut xmllint = Command::new("xmllint");
        xmllint.args(["--noout", "--nonet"]);
        if dtd.exists() {
            xmllint.arg("--valid");
        }
        let schema = built::project().join("tests/services/manifest.rng");
        must(xmllint.arg("--relaxng").arg(schema).arg(manifest));
    }
}

/// The properties of the group lingerd, and their values.
fn properties() -> Vec<(String, String)> {
    let manifest = read(MANIFEST);
    let group = manifest.split_once("<property_group name=\"lingerd\"").expect("a group").1;
    let group = group.split_once("</property_group>").expect("its end").0;
    let attribute = |line: &str, name: &str| {
        let value = line.split_once(&format!("{name}=\""))?.1;
        Some(value.split_once('"')?.0.to_owned())
    };
    let lines = group.lines().filter(|line| line.contains("<propval "));
    lines.map(|line| (attribute(line, " name").unwrap(), attribute(line, " value").unwrap())).collect()
}

#[test]
fn the_method_reads_what_the_manifest_has_and_the_template_tells() {
    let (method, manifest) = (read(METHOD), read(MANIFEST));
    let names: BTreeSet<String> = properties().into_iter().map(|(name, _)| name).collect();
    let words = method.split(|c: char| c.is_whitespace() || "()\"`".contains(c)).collect::<Vec<_>>();
    let read: BTreeSet<String> = words
        .windows(2)
        .filter(|pair| pair[0] == "property" && names.contains(pair[1]))
        .map(|pair| pair[1].to_owned())
        .collect();
    assert_eq!(read, names);
    for name in names {
        assert!(manifest.contains(&format!("<prop_pattern name=\"{name}\"")), "no template for {name}");
    }
}

/// What 'make install install-smf' lays down is what the package delivers, and where.
#[test]
fn the_package_has_all_that_is_installed() {
    let site = Site::new();
    let tree = built_tree(&site);
    let proto = site.path("proto");
    let mut make = Command::new("make");
    make.current_dir(&tree).args(["install", "install-smf", "PREFIX=/usr"]);
    must(make.arg(format!("DESTDIR={}", proto.display())));
    let installed = must(Command::new("find").current_dir(&proto).args([".", "-type", "f"]));
    let installed: BTreeSet<&str> = installed
        .lines()
        .filter_map(|line| line.strip_prefix("./"))
        // These are in a package of their own.
        .filter(|file| !file.contains("/mod_lingerd."))
        .collect();
    let package = read("platform/illumos/lingerd.p5m");
    let delivered: BTreeSet<&str> = package
        .lines()
        .filter_map(|line| line.strip_prefix("file path="))
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert_eq!(installed, delivered);
    let user = properties().into_iter().find(|(name, _)| name == "user").unwrap().1;
    assert!(package.contains(&format!("user username={user} ")), "the user is the package's");
}
