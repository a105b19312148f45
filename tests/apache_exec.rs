// SPDX-License-Identifier: BSD-3-Clause

//! LingerdExec: a lingerd that a real Apache starts, watches, has replaced, and ends.
//!
//! Each has a pid file, by which the tests find it.

use lingerd_platform::process;
use std::fs::{self, Permissions};
use std::io::Write;
use std::ops::Deref;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::sync::Arc;
use support::apache::{Apache, Mpm, Setup, put_up};
use support::daemon::{Daemon, Site, lingerd, ps};
use support::http::{Held, connect, connect_with_small_window, exchange, get, read_one, request, under_load};
use support::{is_root, tcp, wait_until};

/// As many requests as show that a server is well and truly at work.
const SOME: usize = 200;

/// A user that the system's database does not have, as most likely nobody has it.
const UID: u32 = 60_901;

/// Time-outs by which nothing ends while a test runs.
const PATIENT: &str = "-t 1000 -T 2000 -D 4000 -W 3000";

/// What is kept alive waits in lingerd, for as long as any test may take.
const PARK: &str = "KeepAlive On\nKeepAliveTimeout 600\nLingerdPark On";

/// A directory for a lingerd that must not outlive the test, even if its Apache is killed.
struct Place(Arc<Site>);

impl Place {
    fn new() -> Self {
        Place(Site::new())
    }
}

impl Deref for Place {
    type Target = Arc<Site>;

    fn deref(&self) -> &Arc<Site> {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        while self.0.stop().code == Some(0) {}
    }
}

/// The line for the configuration.
fn exec(site: &Site, options: &str) -> String {
    exec_of(Path::new(lingerd().get_program()), site, options)
}

fn exec_of(program: &Path, site: &Site, options: &str) -> String {
    format!("LingerdExec \"{}\" -p \"{}\" {options}", program.display(), site.pidfile().display())
}

fn prefork(site: &Site, options: &str) -> Setup {
    Setup::prefork(&site.socket()).with(&exec(site, options))
}

/// Starts `setup` with a page to get.
fn start(setup: &Setup) -> Option<Apache> {
    let apache = setup.start()?;
    apache.publish("small", b"hello\n");
    apache.publish("page", &tcp::response(20_000));
    Some(apache)
}

/// The process id in the pid file at `site`.
fn pid(site: &Site) -> Option<i32> {
    fs::read_to_string(site.pidfile()).ok()?.lines().next()?.parse().ok()
}

/// The lingerd at `site`, once it serves.
fn serving(site: &Arc<Site>) -> Daemon {
    successor(site, 0)
}

/// The lingerd that serves at `site` after `before`.
fn successor(site: &Arc<Site>, before: i32) -> Daemon {
    wait_until("lingerd serves", || {
        pid(site).is_some_and(|pid| pid != before) && site.ask("json").code == Some(0)
    });
    site.in_background()
}

/// Gets the page for so many clients, each of which then holds its connection.
fn hold(apache: &Apache, clients: usize) -> Vec<Held> {
    let held: Vec<_> = (0..clients).map(|_| get(apache.address, "/small")).collect();
    assert!(held.iter().all(|held| held.body == b"hello\n"));
    held
}

/// Hands over until lingerd has counted one more.
fn hand_over_one(apache: &Apache, lingerd: &Daemon) {
    let before = lingerd.counters()["handed_over"];
    wait_until("hand-offs go on", || {
        let _held = hold(apache, 1);
        lingerd.counters()["handed_over"] > before
    });
}

/// Has Apache read another configuration.
fn reconfigure(apache: &Apache, from: &str, to: &str) {
    let file = apache.site.path("httpd.conf");
    let conf = fs::read_to_string(&file).unwrap();
    assert!(conf.contains(from), "{conf}");
    fs::write(file, conf.replace(from, to)).unwrap();
    apache.restart_gracefully();
}

fn wait_for_error(apache: &Apache, part: &str) {
    wait_until(&format!("'{part}' is logged"), || !apache.errors_with(part).is_empty());
}

/// That there is no lingerd any more, nor its files.
fn assert_gone(site: &Site) {
    assert!(!site.socket().exists() && !site.control().exists(), "a socket was left there");
    // Its file stays, as the directory is root's.
    assert_eq!(pid(site), None);
}

// ---- From its start to its end --------------------------------------------------------------

#[test]
fn lingerd_starts_with_apache_and_ends_with_it() {
    for mpm in [Mpm::Prefork, Mpm::Worker] {
        let site = Place::new();
        let setup = Setup::new(mpm).lingerd(&site.socket()).with(&exec(&site, PATIENT));
        let Some(mut apache) = start(&setup) else { return };
        let lingerd = serving(&site);
        let held = hold(&apache, 5);
        lingerd.wait_for("handed_over=5 lingering=5 refused=0");
        drop(held);
        lingerd.wait_for("closed=5");
        apache.stop();
        assert_gone(&site);
        assert_eq!(apache.errors_with("lingerd: stopped: ").len(), 1, "what it says goes to Apache's log");
        assert_eq!(apache.errors_with(":error]"), [""; 0]);
    }
}

#[test]
fn apache_does_not_end_before_what_lingers_had_its_time() {
    for signal in [libc::SIGTERM, libc::SIGWINCH] {
        let site = Place::new();
        let Some(mut apache) = start(&prefork(&site, "-t 1000 -T 2000 -D 4000 -W 2")) else { return };
        let lingerd = serving(&site);
        let held = hold(&apache, 5);
        lingerd.wait_for("lingering=5");
        process::kill(apache.pid(), signal).unwrap();
        apache.wait_for_end();
        // Had it been told twice, or killed, it would say that, or nothing.
        assert_gone(&site);
        assert_eq!(apache.errors_with("their time is over: 5 connections").len(), 1);
        drop(held);
    }
}

/// Apache as process 1 of a container: its process group has a number that means everybody to kill(2).
#[test]
#[cfg(target_os = "linux")]
fn the_same_when_apache_is_process_1() {
    if !is_root() {
        return;
    }
    if !support::daemon::run(std::process::Command::new("unshare").args([
        "--pid",
        "--mount-proc",
        "--fork",
        "true",
    ]))
    .stderr
    .is_empty()
    {
        return support::skip("unshare cannot make namespaces here");
    }
    for mpm in [Mpm::Prefork, Mpm::Worker] {
        for signal in [libc::SIGTERM, libc::SIGWINCH] {
            let site = Place::new();
            let setup = Setup::new(mpm).lingerd(&site.socket()).process_1();
            let setup = setup.with(&exec(&site, "-t 1000 -T 2000 -D 4000 -W 2"));
            let Some(mut apache) = start(&setup) else { return };
            wait_until("lingerd serves", || site.ask("json").code == Some(0));
            apache.restart();
            let held = hold(&apache, 5);
            wait_until("they linger", || site.ask("json").stdout.contains("\"lingering\":5,"));
            process::kill(apache.pid(), signal).unwrap();
            apache.wait_for_end();
            assert_eq!(apache.errors_with("their time is over: 5 connections").len(), 1);
            assert_eq!(apache.errors_with("started lingerd").len(), 1);
            drop(held);
        }
    }
}

#[test]
fn it_runs_as_apaches_user_and_its_children_may_hand_over() {
    if !is_root() {
        return;
    }
    let site = Place::new();
    let Some(apache) = start(&prefork(&site, PATIENT)) else { return };
    let lingerd = serving(&site);
    hand_over_one(&apache, &lingerd);
    let worker: i32 = apache.access_log()[0].split(' ').nth(3).unwrap().parse().unwrap();
    for id in ["user", "group"] {
        assert_eq!(ps(lingerd.pid, id), ps(worker, id));
    }
    assert_eq!(ps(lingerd.pid, "ppid"), apache.pid().to_string());
}

#[test]
fn with_another_user_the_children_may_hand_over_too() {
    if !is_root() {
        return;
    }
    let site = Place::new();
    let Some(apache) = start(&prefork(&site, &format!("{PATIENT} -u 60901:60902"))) else { return };
    let lingerd = serving(&site);
    hand_over_one(&apache, &lingerd);
    assert_eq!((ps(lingerd.pid, "uid"), ps(lingerd.pid, "gid")), ("60901".into(), "60902".into()));
}

#[test]
fn an_apache_that_is_not_root_has_one_of_its_own_user() {
    if !is_root() {
        return;
    }
    let site = Place::new();
    chown(site.path(""), Some(UID), Some(UID)).unwrap();
    let exec = exec_of(&site.program_for_all(), &site, PATIENT);
    let setup = Setup::prefork(&site.socket()).with(&exec).user(UID);
    let Some(mut apache) = start(&setup) else { return };
    let lingerd = serving(&site);
    hand_over_one(&apache, &lingerd);
    assert_eq!((ps(lingerd.pid, "uid"), ps(apache.pid(), "uid")), (UID.to_string(), UID.to_string()));
    lingerd.wait_for("lingering=0");
    apache.stop();
    assert_gone(&site);
}

#[test]
fn the_socket_is_where_children_in_a_chroot_find_it() {
    if !is_root() {
        return;
    }
    let site = Place::new();
    let root = site.path("");
    fs::set_permissions(&root, Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(site.path("htdocs")).unwrap();
    put_up(&site.path("htdocs/small"), b"hello\n", 0o644);
    let lines = format!(
        "ChrootDir \"{}\"\nAlias /small /htdocs/small\n{PARK}\n{}",
        root.display(),
        exec(&site, PATIENT)
    );
    let setup = Setup::prefork(Path::new("/run/lingerd.sock")).modules(&["alias"]).with(&lines);
    let Some(apache) = setup.start() else { return };
    let lingerd = serving(&site);
    hand_over_one(&apache, &lingerd);
    // What is kept alive comes back, too.
    let mut client = connect(apache.address);
    for returned in 0..3 {
        client.write_all(b"GET /small HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        assert_eq!(read_one(&mut client).1, b"hello\n");
        lingerd.wait_for(&format!("parked=1 returned={returned}"));
    }
}

#[test]
#[cfg(target_os = "linux")]
fn it_inherits_nothing_that_is_apaches() {
    let setup_site = Place::new();
    let notify = setup_site.path("notify");
    let setup = prefork(&setup_site, PATIENT).environment("NOTIFY_SOCKET", &notify).tls().php();
    let Some(apache) = start(&setup) else { return };
    let lingerd = serving(&setup_site);
    let files = |pid: i32| {
        let all = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let kind =
            |path: std::path::PathBuf| path.display().to_string().split(':').next().unwrap().to_owned();
        let mut kinds: Vec<_> =
            all.filter_map(|file| fs::read_link(file.ok()?.path()).ok()).map(kind).collect();
        kinds.retain(|kind| kind != "/dev/null" && !kind.ends_with("log"));
        kinds.sort();
        kinds
    };
    // As one has them that was not started by Apache.
    let alone = Site::new();
    let other = alone.start(&[]);
    let count = |files: &[String]| {
        ["socket", "anon_inode"].map(|kind| files.iter().filter(|file| *file == kind).count())
    };
    // Either may still have a connection of who has just asked.
    support::eventually(|| match [lingerd.pid, other.pid].map(files) {
        [ours, theirs] if count(&ours) == count(&theirs) && !ours.contains(&"pipe".to_owned()) => Ok(()),
        [ours, theirs] => Err(format!("{ours:?} are not {theirs:?}")),
    });
    let environ = fs::read(format!("/proc/{}/environ", lingerd.pid)).unwrap();
    assert!(!String::from_utf8_lossy(&environ).contains("NOTIFY_SOCKET"));
    let environ = fs::read(format!("/proc/{}/environ", apache.pid())).unwrap();
    assert!(String::from_utf8_lossy(&environ).contains("NOTIFY_SOCKET"));
}

#[test]
fn it_has_connections_wait_that_are_kept_alive_from_the_first_one_on() {
    let number = format!("-u {UID}:{UID} -m 0666");
    for (options, is_there) in [("", false), ("-m 0666", true), (&*number, false), ("-unobody", true)] {
        if !is_root() && !options.is_empty() {
            continue; // there is one user, and a directory is never another's
        }
        let place = Place::new();
        if is_there {
            fs::create_dir(place.path("run")).unwrap(); // root's, as /run/lingerd may be
        }
        let setup = prefork(&place, &format!("{PATIENT} {options}")).workers(1).with(PARK);
        let Some(apache) = start(&setup) else { return };
        let lingerd = serving(&place);
        let mut clients: Vec<_> = (0..3).map(|_| connect(apache.address)).collect();
        for _ in 0..3 {
            for client in &mut clients {
                client.write_all(b"GET /small HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
                assert_eq!(read_one(client).1, b"hello\n");
            }
            lingerd.wait_for("parked=3 returning=0 abandoned=0");
        }
        assert_eq!(apache.errors_with("LingerdPark has no effect"), [""; 0]);
    }
}

#[test]
fn what_is_kept_alive_waits_in_another_users_one_that_was_there_already() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    fs::create_dir(place.path("run")).unwrap(); // root's
    let lingerd = place.start(&["-u", &format!("{UID}:{UID}"), "-m", "0666"]);
    let Some(apache) = start(&prefork(&place, PATIENT).workers(1).with(PARK)) else { return };
    let mut client = connect(apache.address);
    for returned in 0..3 {
        client.write_all(b"GET /small HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        assert_eq!(read_one(&mut client).1, b"hello\n");
        lingerd.wait_for(&format!("parked=1 returned={returned}"));
    }
}

#[test]
fn a_test_of_the_configuration_starts_nothing() {
    let site = Place::new();
    let Some(checked) = prefork(&site, PATIENT).check() else { return };
    assert_eq!(checked.code, Some(0), "{checked:?}");
    assert!(!site.path("run").exists());
}

#[test]
fn under_the_event_mpm_there_is_none() {
    let site = Place::new();
    let setup = Setup::new(Mpm::Event).lingerd(&site.socket()).with(&exec(&site, PATIENT));
    let Some(mut apache) = start(&setup) else { return };
    hold(&apache, 1);
    apache.restart_gracefully();
    hold(&apache, 1);
    assert!(!site.path("run").exists());
    assert_eq!(apache.errors_with("nothing to do").len(), 1);
    apache.stop();
}

// ---- When it dies ---------------------------------------------------------------------------

#[test]
fn a_lingerd_that_is_killed_is_back_and_no_response_fails() {
    for mpm in [Mpm::Prefork, Mpm::Worker] {
        let site = Place::new();
        let setup = Setup::new(mpm).workers(4).lingerd(&site.socket()).with(&exec(&site, PATIENT));
        let Some(mut apache) = start(&setup) else { return };
        let mut lingerd = None;
        under_load(apache.address, |wait_for_more| {
            wait_for_more(SOME);
            let killed = serving(&site);
            let pid = killed.pid;
            killed.kill();
            let again = lingerd.insert(successor(&site, pid));
            hand_over_one(&apache, again);
            wait_for_more(SOME);
        });
        assert_eq!(apache.errors_with("has ended (status or signal 9)").len(), 1);
        apache.stop();
        assert_gone(&site);
    }
}

#[test]
fn one_that_was_told_to_stop_is_started_again_too() {
    let site = Place::new();
    let Some(apache) = start(&prefork(&site, PATIENT)) else { return };
    let mut before = serving(&site);
    assert_eq!(site.stop().code, Some(0));
    before.wait_for_end();
    let lingerd = successor(&site, before.pid);
    hand_over_one(&apache, &lingerd);
}

#[test]
fn wrong_options_are_named_in_the_log_and_apache_serves() {
    let site = Place::new();
    let Some(apache) = start(&prefork(&site, "-n none")) else { return };
    wait_for_error(&apache, "it is started again when Apache is");
    assert_eq!(apache.errors_with("lingerd: -n 'none'").len(), 1, "said by lingerd, once");
    hold(&apache, 5);
    reconfigure(&apache, "-n none", "-n 5");
    let lingerd = serving(&site);
    hand_over_one(&apache, &lingerd);
}

#[test]
fn a_program_that_is_not_there_is_named_in_the_log_and_apache_serves() {
    let site = Place::new();
    let setup = Setup::prefork(&site.socket()).with("LingerdExec sbin/no-lingerd -t 5");
    let Some(apache) = start(&setup) else { return };
    hold(&apache, 5);
    let wanted = apache.site.path("sbin/no-lingerd");
    assert_eq!(apache.errors_with(&format!("cannot start {}", wanted.display())).len(), 1);
}

// ---- Restarts of Apache ---------------------------------------------------------------------

#[test]
fn restarts_leave_it_alone() {
    for mpm in [Mpm::Prefork, Mpm::Worker] {
        let site = Place::new();
        let setup = Setup::new(mpm).workers(4).lingerd(&site.socket()).with(&exec(&site, PATIENT));
        let Some(mut apache) = start(&setup) else { return };
        let lingerd = serving(&site);
        let held = hold(&apache, 3);
        lingerd.wait_for("lingering=3");
        for _ in 0..10 {
            apache.restart_gracefully();
        }
        apache.restart();
        hand_over_one(&apache, &lingerd);
        assert_eq!(pid(&site), Some(lingerd.pid));
        lingerd.wait_for("lingering=3");
        assert_eq!(apache.errors_with("started lingerd").len(), 1);
        drop(held);
        lingerd.wait_for("lingering=0");
        apache.stop();
        assert_gone(&site);
    }
}

#[test]
fn with_other_options_a_new_one_takes_over_and_nobody_notices() {
    let site = Place::new();
    let Some(mut apache) = start(&prefork(&site, PATIENT).workers(4)) else { return };
    let before = serving(&site);
    let held = hold(&apache, 3);
    before.wait_for("lingering=3");
    under_load(apache.address, |wait_for_more| {
        wait_for_more(SOME);
        reconfigure(&apache, "-t 1000", "-t 1001");
        wait_for_more(SOME);
    });
    let after = successor(&site, before.pid);
    drop(before);
    assert!(after.counters()["handed_over"] >= 3);
    after.wait_for("lingering=3 stopped=0 idle=0");
    hand_over_one(&apache, &after);
    assert_eq!(apache.errors_with("is to take over from process").len(), 1);
    assert_eq!(apache.errors_with("lingerd:error]"), [""; 0]);
    drop(held);
    after.wait_for("lingering=0");
    apache.stop();
    assert_gone(&site);
}

#[test]
fn when_the_log_is_rotated_its_lines_go_to_the_new_one() {
    let site = Place::new();
    let Some(apache) = start(&prefork(&site, PATIENT)) else { return };
    let before = serving(&site);
    fs::rename(apache.site.path("error_log"), apache.site.path("error_log.1")).unwrap();
    process::kill(apache.pid(), libc::SIGUSR1).unwrap();
    let after = successor(&site, before.pid);
    drop(before);
    after.signal(libc::SIGUSR1);
    wait_for_error(&apache, "lingerd: counters: ");
}

#[test]
fn a_log_that_is_a_program_gets_its_lines_after_a_restart_too() {
    let site = Place::new();
    let setup = prefork(&site, PATIENT).with("ErrorLog \"|$exec cat >>error_log\"");
    let Some(apache) = start(&setup) else { return };
    let before = serving(&site);
    let held = hold(&apache, 1);
    before.wait_for("lingering=1");
    apache.restart_gracefully();
    let after = successor(&site, before.pid);
    drop(before);
    after.wait_for("lingering=1");
    after.signal(libc::SIGUSR1);
    wait_for_error(&apache, "lingerd: counters: ");
    drop(held);
}

#[test]
fn what_it_spools_is_taken_over_too() {
    let site = Place::new();
    let setup = prefork(&site, PATIENT).workers(1).with("SendBufferSize 65536");
    let Some(apache) = start(&setup) else { return };
    let much = tcp::response(3_000_000);
    apache.publish("much", &much);
    let ask = || {
        let mut client = connect_with_small_window(apache.address, 4096);
        client.write_all(request("/much").as_bytes()).unwrap();
        client
    };
    let before = serving(&site);
    let mut clients = vec![ask(), ask()];
    before.wait_for("spooling=2");
    reconfigure(&apache, "-t 1000", "-t 1001");
    let after = successor(&site, before.pid);
    drop(before);
    clients.push(ask());
    after.wait_for("spooling=3");
    clients.into_iter().for_each(|client| assert!(exchange(client, b"").body == much));
    after.wait_for("spooling=0 broken=0 stalled=0 cut_short=0");
}

#[test]
fn with_wrong_options_the_old_one_serves_on() {
    let site = Place::new();
    let Some(apache) = start(&prefork(&site, PATIENT)) else { return };
    let lingerd = serving(&site);
    let held = hold(&apache, 3);
    lingerd.wait_for("lingering=3");
    reconfigure(&apache, "-t 1000", "-t soon");
    wait_for_error(&apache, "serves on");
    assert_eq!(apache.errors_with("lingerd: -t 'soon'").len(), 1);
    hand_over_one(&apache, &lingerd);
    assert_eq!(pid(&site), Some(lingerd.pid));
    lingerd.wait_for("lingering=3");
    drop(held);
}

#[test]
fn one_that_is_not_wanted_any_more_ends() {
    let site = Place::new();
    let Some(apache) = start(&prefork(&site, PATIENT)) else { return };
    let mut lingerd = serving(&site);
    hand_over_one(&apache, &lingerd);
    lingerd.wait_for("lingering=0");
    reconfigure(&apache, "LingerdExec", "#");
    lingerd.wait_for_end();
    wait_until("its names are removed", || !site.socket().exists() && !site.control().exists());
    hold(&apache, 3);
}

#[test]
fn at_another_socket_there_is_another_one() {
    let (site, elsewhere) = (Place::new(), Place::new());
    let Some(apache) = start(&prefork(&site, PATIENT)) else { return };
    let mut before = serving(&site);
    hand_over_one(&apache, &before);
    before.wait_for("lingering=0");
    let names = [&site, &elsewhere].map(|site| site.path("").display().to_string());
    reconfigure(&apache, &names[0], &names[1]);
    let after = serving(&elsewhere);
    before.wait_for_end();
    hand_over_one(&apache, &after);
}

#[test]
fn it_ends_with_an_apache_that_cannot_read_its_configuration_any_more() {
    let site = Place::new();
    let Some(mut apache) = start(&prefork(&site, PATIENT)) else { return };
    let mut lingerd = serving(&site);
    fs::write(apache.site.path("httpd.conf"), "Nonsense\n").unwrap();
    process::kill(apache.pid(), libc::SIGUSR1).unwrap();
    apache.wait_for_end();
    lingerd.wait_for_end();
    assert_gone(&site);
}

#[test]
fn an_apache_that_is_started_while_another_one_stops_has_what_lingers() {
    let site = Place::new();
    let setup = prefork(&site, PATIENT);
    let Some(mut first) = start(&setup) else { return };
    let before = serving(&site);
    let held = hold(&first, 3);
    before.wait_for("lingering=3");
    process::kill(first.pid(), libc::SIGTERM).unwrap();
    wait_for_error(&first, "told to stop: 3 connections");
    let Some(second) = start(&setup) else { return };
    let after = successor(&site, before.pid);
    first.wait_for_end();
    after.wait_for("lingering=3 stopped=0");
    hand_over_one(&second, &after);
    drop(held);
}

// ---- Others ---------------------------------------------------------------------------------

#[test]
fn a_lingerd_that_is_there_already_is_used_until_it_has_gone() {
    let site = Place::new();
    let service = site.start_in_background(&["-m", "0666"]);
    let Some(apache) = start(&prefork(&site, PATIENT)) else { return };
    assert_eq!(apache.errors_with("that this Apache has not started").len(), 1);
    hand_over_one(&apache, &service);
    assert_eq!(pid(&site), Some(service.pid));
    service.wait_for("lingering=0");
    assert_eq!(site.stop().code, Some(0));
    let lingerd = successor(&site, service.pid);
    assert_eq!(ps(lingerd.pid, "ppid"), apache.pid().to_string());
    hand_over_one(&apache, &lingerd);
}

#[test]
fn options_that_are_apaches_to_give_are_refused() {
    let site = Place::new();
    for option in ["-s /tmp/x.sock", "-f", "-r", "-k", "-S"] {
        let Some(checked) = prefork(&site, option).check() else { return };
        checked.assert_failed(1, &format!("LingerdExec: {} is not for here", &option[..2]));
    }
    let Some(checked) = Setup::prefork(&site.socket()).with_other("LingerdExec /usr/sbin/lingerd").check()
    else {
        return;
    };
    checked.assert_failed(1, "LingerdExec cannot occur within <VirtualHost> section");
}
