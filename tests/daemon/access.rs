// SPDX-License-Identifier: BSD-3-Clause

//! Who may hand over, and in which directories the daemon trusts its own files.

use lingerd_platform::process;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::process::Command;
use support::daemon::{Daemon, Site, lingerd, run};
use support::{is_root, skip, tcp};

/// A user and a group that the system's database does not have, as most likely nobody has them.
const UID: u32 = 60_901;
const GID: u32 = 60_902;

/// Whether the system tells of supplementary groups. Where it does not the daemon cannot know that somebody
/// is not in the group of its socket.
const TELLS_ALL_GROUPS: bool = !cfg!(any(target_os = "netbsd", target_os = "openbsd"));

/// A program that connects to the hand-off socket and says there what is no hand-off, for which it is hung
/// up on: `lingerd -S`, which is told that this were its control socket.
fn knocking(site: &Site) -> Command {
    let alias = site.path("alias.ctl");
    if fs::symlink_metadata(&alias).is_err() {
        symlink(site.socket(), &alias).unwrap();
    }
    let mut command = Command::new(site.program_for_all());
    command.current_dir("/").arg("-S").arg("-s").arg(alias.with_extension(""));
    command
}

fn knocking_as(site: &Site, uid: u32, gid: u32) -> Command {
    let mut command = knocking(site);
    command.uid(uid).gid(gid);
    command
}

/// That who knocks so is refused, for which the daemon counts and logs `who`.
fn assert_refused(daemon: &Daemon, knocking: &mut Command, who: &str) {
    let refused = daemon.counters()["refused"];
    run(knocking).assert_failed(1, "hung up");
    daemon.wait_for(&format!("refused={} senders=0", refused + 1));
    daemon.wait_for_log(&format!("hung up on {who}"));
}

/// That who knocks so is let in, and heard.
fn assert_let_in(daemon: &Daemon, knocking: &mut Command) {
    let before = daemon.counters();
    run(knocking).assert_failed(1, "hung up");
    let (refused, heard) = (before["refused"], before["protocol_errors"] + 1);
    daemon.wait_for(&format!("refused={refused} protocol_errors={heard} senders=0"));
}

/// That root may hand over, and that no more were refused than `expected` says.
fn assert_still_serves(daemon: Daemon, expected: &str) {
    let (client, server) = tcp::connection();
    daemon.sender().hand_over(server);
    drop(client);
    let heard = daemon.counters()["protocol_errors"];
    daemon.finish(&format!("closed=1 protocol_errors={heard} {expected}"));
}

#[test]
fn who_is_not_named_is_refused_whatever_the_mode_is() {
    if !is_root() {
        return;
    }
    let nobody = process::user("nobody").unwrap().expect("there is a user nobody");
    let who = format!("{UID},:{GID}");
    let daemon = Daemon::start(&["-m", "0666", "-a", &who]);
    let stranger = format!("user {}, group {}", nobody.uid, nobody.gid);
    assert_refused(&daemon, &mut knocking_as(&daemon.site, nobody.uid, nobody.gid), &stranger);
    // A user is no group.
    run(&mut knocking_as(&daemon.site, GID, UID)).assert_failed(1, "hung up");
    assert_still_serves(daemon, "refused=2");
}

#[test]
fn who_is_named_is_let_in() {
    if !is_root() {
        return;
    }
    let nobody = process::user("nobody").unwrap().expect("there is a user nobody");
    for (list, uid, gid) in [
        (UID.to_string(), UID, nobody.gid),
        ("nobody".to_owned(), nobody.uid, GID),
        (format!("daemon,:{GID}"), UID, GID),
    ] {
        let daemon = Daemon::start(&["-m", "0666", "-a", &list]);
        assert_let_in(&daemon, &mut knocking_as(&daemon.site, uid, gid));
        assert_still_serves(daemon, "");
    }
}

#[test]
fn the_daemons_own_user_need_not_be_named() {
    if !is_root() {
        return;
    }
    let daemon = Daemon::start(&["-m", "0666", "-a", "root", "-u", &format!("{UID}:{GID}")]);
    assert_let_in(&daemon, &mut knocking_as(&daemon.site, UID, 1));
    // Its group has to.
    assert_refused(&daemon, &mut knocking_as(&daemon.site, 1, GID), "user 1, ");
    assert_still_serves(daemon, "refused=1");
}

#[test]
fn a_supplementary_group_is_as_good() {
    if !is_root() || !TELLS_ALL_GROUPS {
        return;
    }
    let daemon = Daemon::start(&["-m", "0666", "-a", &format!(":{GID}")]);
    // Everywhere but on Solaris it is chroot(8) that takes groups, in one of two ways.
    let (user, other) = (UID.to_string(), (GID + 1).to_string());
    let gnu = [format!("--userspec={user}:{other}"), format!("--groups={GID}")];
    let bsd = ["-u", &user, "-g", &other, "-G", &GID.to_string()].map(str::to_owned);
    let works =
        |with: &&[String]| run(Command::new("chroot").args(*with).args(["/", "true"])).code == Some(0);
    let Some(with) = [&gnu[..], &bsd[..]].into_iter().find(works) else {
        return skip("there is no chroot(8) that sets supplementary groups");
    };
    let knocking = knocking(&daemon.site);
    let mut command = Command::new("chroot");
    command.args(with).arg("/").arg(knocking.get_program()).args(knocking.get_args());
    assert_let_in(&daemon, &mut command);
    assert_refused(&daemon, &mut knocking_as(&daemon.site, UID, GID + 1), &format!("user {UID}, "));
    assert_still_serves(daemon, "refused=1");
}

#[test]
fn without_a_list_the_mode_that_was_asked_for_says_who_may() {
    if !is_root() {
        return;
    }
    for (mode, of_group, other) in [("0600", false, false), ("0660", true, false), ("0666", true, true)] {
        let daemon = Daemon::start(&["-m", mode, "-g", &GID.to_string()]);
        // As where a system ignores it, or somebody has changed it since.
        fs::set_permissions(daemon.site.socket(), Permissions::from_mode(0o666)).unwrap();
        let mut refused = 0;
        for (gid, lets_in) in [(GID, of_group), (1, other)] {
            let mut knocking = knocking_as(&daemon.site, UID, gid);
            if lets_in || mode == "0660" && !TELLS_ALL_GROUPS {
                assert_let_in(&daemon, &mut knocking);
            } else {
                assert_refused(&daemon, &mut knocking, &format!("user {UID}, group "));
                refused += 1;
            }
        }
        assert_still_serves(daemon, &format!("refused={refused}"));
    }
}

#[test]
fn an_unknown_name_in_a_list_is_an_error() {
    let site = Site::new();
    run(site.lingerd().args(["-f", "-a", "root,no-such-name"])).assert_failed(1, "-a 'no-such-name'");
    run(site.lingerd().args(["-f", "-a", "root,:no-such-name"])).assert_failed(1, "there is no such group");
}

/// `lingerd -f` with its socket, or else with its pid file, in the directory `run`.
fn files_in_run(site: &Site) -> [Command; 2] {
    let (mut socket, mut pid_file) = (site.lingerd(), lingerd());
    socket.arg("-f");
    pid_file.args(["-f", "-s"]).arg(site.path("elsewhere.sock")).arg("-p").arg(site.path("run/lingerd.pid"));
    [socket, pid_file]
}

#[test]
fn a_directory_to_which_others_may_write_is_an_error_that_says_how_to_mend_it() {
    let site = Site::new();
    let run_directory = site.path("run");
    fs::create_dir(&run_directory).unwrap();
    for mode in [0o777, 0o775, 0o757] {
        fs::set_permissions(&run_directory, Permissions::from_mode(mode)).unwrap();
        for mut command in files_in_run(&site) {
            let ended = run(&mut command);
            ended.assert_failed(1, &format!("may write to it (mode {mode:04o})"));
            ended.assert_failed(1, &format!("chmod go-w {}'", run_directory.display()));
        }
        assert_eq!(fs::read_dir(&run_directory).unwrap().count(), 0, "something is left there");
    }
    // What the message says mends it, and so does the sticky bit.
    assert!(Command::new("chmod").arg("go-w").arg(&run_directory).status().unwrap().success());
    site.start(&[]).finish("");
    fs::set_permissions(&run_directory, Permissions::from_mode(0o1777)).unwrap();
    site.start(&["-p", site.path("run/lingerd.pid").to_str().unwrap()]).finish("");
}

#[test]
fn a_directory_of_another_user_is_an_error_that_says_how_to_mend_it() {
    if !is_root() {
        return;
    }
    let site = Site::new();
    let run_directory = site.path("run");
    fs::create_dir(&run_directory).unwrap();
    chown(&run_directory, Some(UID), None).unwrap();
    for mut command in files_in_run(&site) {
        let ended = run(&mut command);
        ended.assert_failed(1, &format!("belongs to user {UID} (mode 0755)"));
        ended.assert_failed(1, &format!("chown root {}'", run_directory.display()));
        let ended = run(command.arg("-u").arg(format!("{}:{GID}", UID + 5)));
        ended.assert_failed(1, &format!("chown {} {}'", UID + 5, run_directory.display()));
    }
    // It may be that of the one as whom the daemon runs, or root's.
    let user = format!("{UID}:{GID}");
    site.start(&["-u", &user]).finish("");
    chown(&run_directory, Some(0), None).unwrap();
    site.start(&[]).finish("");
}
