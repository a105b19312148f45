//! In which directories the daemon trusts its own files.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;
use support::daemon::{Site, lingerd, run};
use support::is_root;

/// A user and a group that the system's database does not have, as most likely nobody has them.
const UID: u32 = 60_901;
const GID: u32 = 60_902;

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
