// SPDX-License-Identifier: BSD-3-Clause
//! platform/macos: the property list, and the command line in it with the real daemon. launchd itself is only
//! on macOS, where plutil(1) has a look, too.

use crate::root::{have, must, read};
use std::process::Command;
use support::built;
use support::daemon::{Daemon, Site};

const FILE: &str = "platform/macos/org.lingerd.lingerd.plist";

/// What Python takes it for, which reads property lists wherever it is.
fn value(expression: &str) -> String {
    let script =
        format!("import plistlib, sys\nplist = plistlib.load(open(sys.argv[1], 'rb'))\nprint({expression})");
    let file = built::project().join(FILE);
    must(Command::new("python3").args(["-c", &script]).arg(file)).trim().to_owned()
}

#[test]
fn the_property_list_is_one() {
    if cfg!(target_os = "macos") {
        must(Command::new("plutil").arg("-lint").arg(built::project().join(FILE)));
    }
    if !have("python3") {
        return;
    }
    assert_eq!(value("plist['Label'] + '.plist'"), FILE.rsplit('/').next().unwrap());
    assert_eq!(value("plist['RunAtLoad'] and plist['KeepAlive']"), "True");
    // Longer than the -W that lingerd has by itself, with which it runs.
    let text = read("man/lingerd.8");
    assert!(text.contains(
        "Have ended within so many seconds once it was told to stop, see\n.Sx STOPPING .\nThe default is 10."
    ));
    assert!(value("plist['ExitTimeOut']").parse::<u32>().unwrap() > 10);
}

#[test]
fn the_daemon_takes_its_command_line() {
    if !have("python3") {
        return;
    }
    let arguments = value("'\\n'.join(plist['ProgramArguments'])");
    let arguments: Vec<&str> = arguments.lines().collect();
    assert_eq!(arguments[0], "/usr/local/sbin/lingerd");
    // As whoever runs the test: nobody and _www are not everywhere, nor may everybody become another user.
    let [foreground, take_over, "-u", "nobody", "-g", "_www"] = arguments[1..] else {
        panic!("{arguments:?}")
    };
    let site = Site::new();
    let old = Daemon::spawn(&site, site.lingerd().args([foreground, take_over]));
    // What serves is taken over from: it may be the stand-in of an upgrade.
    let mut old = old;
    let new = Daemon::spawn(&site, site.lingerd().args([foreground, take_over]));
    assert_eq!(old.wait_for_end(), Some(0));
    new.finish("");
}
