// SPDX-License-Identifier: BSD-3-Clause

//! One daemon after another: what is taken over, from whom, and what becomes of it if that fails.

use lingerd_platform::fdpass::Link;
use lingerd_platform::process;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use support::daemon::{Counters, Daemon, Site, lingerd, mode, ps, run};
use support::{is_root, tcp, wait_until};

/// Starts a successor in the foreground and waits until `old` has ended: that it was well says its exit code.
fn succeed(site: &Arc<Site>, mut old: Daemon, options: &[&str]) -> Daemon {
    let mut all = vec!["-r"];
    all.extend(options);
    let new = site.start(&all);
    assert_eq!(old.wait_for_end(), Some(0), "the old one's exit code");
    new
}

#[test]
fn a_successor_has_all_that_its_predecessor_had() {
    let site = Site::new();
    let pidfile = site.pidfile();
    let options = ["-p", pidfile.to_str().unwrap()];
    let old = site.start(&options);
    let [talks, silent] = [old.sender(), old.sender()];
    let (mut clients, servers) = tcp::connections(300);
    talks.hand_over_all(&servers[..100]);
    silent.hand_over_all(&servers[100..200]);
    talks.hand_over_all(&servers[200..]);
    drop(servers);
    old.wait_for("lingering=300");
    clients[7].write_all(&[0; 77]).unwrap();
    drop(clients.pop());
    old.wait_for("lingering=299 closed=1 bytes_discarded=77 senders=2");

    let new = succeed(&site, old, &options);
    new.wait_for("lingering=299 handed_over=300 peak=300 closed=1 bytes_discarded=77 senders=2");
    let says = format!("{}\n{}\n", new.pid, site.control().display());
    assert_eq!(fs::read_to_string(&pidfile).unwrap(), says);
    let (client, server) = tcp::connection();
    talks.hand_over(server);
    clients.push(client);
    new.wait_for("lingering=300 handed_over=301");
    clients[0].write_all(&[0; 33]).unwrap();
    new.wait_for("bytes_discarded=110");
    for client in &mut clients[..10] {
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(tcp::read_to_end(client), b"", "it was half-closed, and is not reset");
    }
    new.wait_for("closed=11");
    drop(clients);
    new.finish("closed=301 bytes_discarded=110");
}

#[test]
fn what_is_queued_at_that_moment_is_lingered_on() {
    let site = Site::new();
    let old = site.start(&[]);
    let known = old.sender();
    old.wait_for("senders=1");
    old.freeze();
    let unknown = old.sender(); // still in the queue, not yet let in
    let (clients, servers) = tcp::connections(40);
    let mut servers = servers.into_iter();
    let mut hand_over = |number: usize| {
        for (n, server) in servers.by_ref().take(number).enumerate() {
            if n % 2 == 0 { known.hand_over(server) } else { unknown.hand_over(server) }
        }
    };
    hand_over(20);
    let new = Starting::new(&site, &["-r"]);
    hand_over(20); // whenever the new one comes to it
    old.thaw();
    let new = new.instead_of(old);
    new.wait_for("lingering=40 senders=2");
    drop(clients);
    new.finish("closed=40");
}

/// A daemon in the foreground that need not come to serve yet.
struct Starting<'a> {
    site: &'a Arc<Site>,
    child: std::process::Child,
}

impl<'a> Starting<'a> {
    fn new(site: &'a Arc<Site>, options: &[&str]) -> Self {
        let log = fs::File::options().append(true).create(true).open(site.path("log")).unwrap();
        let mut command = site.lingerd();
        command.arg("-f").args(options).args(["-t", "1000", "-T", "2000", "-D", "4000", "-W", "3000"]);
        Starting { site, child: command.stderr(log).stdin(Stdio::null()).spawn().unwrap() }
    }

    fn instead_of(self, mut old: Daemon) -> Daemon {
        assert_eq!(old.wait_for_end(), Some(0), "the old one's exit code");
        Daemon::adopt(self.site, self.child)
    }
}

#[test]
fn a_successor_judges_by_its_own_options() {
    let site = Site::new();
    let old = site.start(&[]);
    let (_clients, servers) = tcp::connections(3);
    old.sender().hand_over_all(&servers);
    drop(servers);
    old.wait_for("lingering=3");
    let new = succeed(&site, old, &["-t", "0.01", "-n", "2", "-m", "0606"]);
    new.wait_for("lingering=0 evicted=1 idle=2");
    assert_eq!(mode(&site.socket()), 0o606);
    new.finish("idle=2 evicted=1");
}

#[test]
fn where_there_is_nobody_to_take_over_from_it_simply_starts() {
    let site = Site::new();
    let daemon = site.start(&["-r"]);
    daemon.finish("");
    site.start(&[]).kill();
    site.start(&["-r"]).finish("");
}

#[test]
fn in_the_background_one_follows_another_and_the_pid_file_says_which() {
    let site = Site::new();
    let mut daemon = site.start_in_background(&[]);
    let sender = daemon.sender();
    let (clients, servers) = tcp::connections(50);
    for (n, server) in servers.into_iter().enumerate() {
        sender.hand_over(server);
        if n % 5 == 0 {
            let mut old = daemon;
            daemon = site.start_in_background(&["-r"]);
            assert_ne!(old.pid, daemon.pid);
            old.wait_for_end();
        }
    }
    daemon.wait_for("lingering=50 senders=1");
    drop(clients);
    daemon.wait_for("lingering=0 closed=50 handed_over=50");
    let ended = run(lingerd().args(["-k", "-w", "-p"]).arg(site.pidfile()));
    assert_eq!(ended.stdout, format!("lingerd (pid {}) has ended\n", daemon.pid));
    site.wait_until_nothing_is_left();
}

#[test]
fn a_pid_file_that_lies_elsewhere_is_removed() {
    let site = Site::new();
    let [first, second] = ["1.pid", "2.pid"].map(|name| site.path(name));
    let old = site.start(&["-p", first.to_str().unwrap()]);
    let new = succeed(&site, old, &["-p", second.to_str().unwrap()]);
    wait_until("the old one's is gone", || !first.exists());
    assert!(fs::read_to_string(&second).unwrap().starts_with(&format!("{}\n", new.pid)));
    let last = succeed(&site, new, &[]);
    wait_until("this one's is gone, too", || !second.exists());
    last.finish("");
}

// Stop and start, in any order and at any speed.

#[test]
fn stopped_and_started_there_is_one_daemon_whatever_still_lingers() {
    let site = Site::new();
    let mut old = site.start_in_background(&[]);
    let (client, server) = tcp::connection();
    old.sender().hand_over(server);
    old.wait_for("lingering=1");
    let wait = lingerd().args(["-k", "-w", "-p"]).arg(site.pidfile()).stdout(Stdio::piped()).spawn().unwrap();
    wait_until("it takes no more", || !site.socket().exists());
    let new = site.start_in_background(&[]);
    old.wait_for_end();
    let said = String::from_utf8(wait.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(said, format!("lingerd (pid {}) has ended; another one has taken over from it\n", old.pid));
    let (other, server) = tcp::connection();
    new.sender().hand_over(server);
    new.wait_for("lingering=2 handed_over=2 stopped=0");
    drop((client, other));
    new.wait_for("lingering=0 closed=2");
}

#[test]
fn stopped_and_started_at_once_again_and_again_there_is_one_daemon() {
    let site = Site::new();
    let mut daemon = site.start_in_background(&[]);
    let (clients, servers) = tcp::connections(20);
    for (n, server) in servers.into_iter().enumerate() {
        daemon.sender().hand_over(server);
        let mut old = daemon;
        // What kill(1) has told it may not have come to it yet.
        if n % 2 == 0 {
            old.signal(libc::SIGTERM)
        } else {
            assert_eq!(site.stop().code, Some(0))
        }
        daemon = site.start_in_background(&[]);
        old.wait_for_end();
    }
    daemon.wait_for("lingering=20 handed_over=20");
    drop(clients);
    daemon.wait_for("lingering=0 closed=20");
}

#[test]
fn of_two_that_start_at_once_one_serves() {
    let site = Site::new();
    let start = || {
        let mut command = site.lingerd();
        command.arg("-p").arg(site.pidfile()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let codes = [start(), start()].map(|child| {
        let ended = child.wait_with_output().unwrap();
        if ended.status.code() == Some(1) {
            let said = String::from_utf8(ended.stderr).unwrap();
            assert!(said.contains("another lingerd"), "{said}");
        }
        ended.status.code()
    });
    assert!(codes == [Some(0), Some(1)] || codes == [Some(1), Some(0)], "{codes:?}");
    assert_eq!(site.stop().code, Some(0));
    wait_until("it has ended", || !site.pidfile().exists());
}

#[test]
fn of_two_that_take_over_at_once_the_later_one_serves() {
    let site = Site::new();
    let old = site.start(&[]);
    let (clients, servers) = tcp::connections(10);
    old.sender().hand_over_all(&servers);
    drop(servers);
    old.wait_for("lingering=10");
    let mut two = [(); 2].map(|()| Starting::new(&site, &["-r"]).child);
    let mut old = old;
    assert_eq!(old.wait_for_end(), Some(0));
    let mut first = None;
    wait_until("one of the two has ended", || {
        first = two.iter_mut().position(|child| child.try_wait().unwrap().is_some());
        first.is_some()
    });
    let [one, other] = two;
    let (mut ended, serves) = if first == Some(0) { (one, other) } else { (other, one) };
    assert_eq!(ended.wait().unwrap().code(), Some(0));
    let new = Daemon::adopt(&site, serves);
    new.wait_for("lingering=10");
    drop(clients);
    new.finish("closed=10");
}

// A successor that does not come to serve leaves the old one in charge.

/// That `daemon`, at which somebody wanted to be the successor and was none, has all it had.
fn assert_serves_on(daemon: Daemon, clients: Vec<std::net::TcpStream>, why: &str) {
    daemon.wait_for_log(why);
    let here = clients.len();
    daemon.wait_for(&format!("lingering={here} closed=0"));
    assert!(daemon.site.socket().exists() && daemon.site.control().exists());
    let (client, server) = tcp::connection();
    daemon.sender().hand_over(server);
    daemon.wait_for(&format!("lingering={}", here + 1));
    drop((clients, client));
    daemon.finish(&format!("closed={}", here + 1));
}

fn with_lingering(number: usize) -> (Daemon, Vec<std::net::TcpStream>) {
    let daemon = Daemon::start(&[]);
    let (clients, servers) = tcp::connections(number);
    daemon.sender().hand_over_all(&servers);
    drop(servers);
    daemon.wait_for(&format!("lingering={number} senders=0"));
    (daemon, clients)
}

#[test]
fn a_successor_that_may_not_have_so_many_open_is_none() {
    let (daemon, clients) = with_lingering(200);
    let mut command = daemon.site.limited(100);
    run(command.arg("-r")).assert_failed(1, "the limit of open descriptors is too low for all");
    assert_serves_on(daemon, clients, "this daemon serves on");
}

#[test]
fn a_successor_that_fails_when_it_has_everything_is_none() {
    let (daemon, clients) = with_lingering(20);
    let missing = daemon.site.path("missing/lingerd.pid");
    run(daemon.site.lingerd().args(["-f", "-r", "-p"]).arg(&missing)).assert_failed(1, "missing/lingerd.pid");
    assert_serves_on(daemon, clients, "this daemon serves on");
}

#[test]
fn a_successor_that_is_killed_half_way_is_none() {
    let (daemon, clients) = with_lingering(20);
    for asked in [&b"T"[..], b"T\0\0", &request(REQUEST)] {
        let mut link = UnixStream::connect(daemon.site.control()).unwrap();
        link.write_all(asked).unwrap();
        drop(link);
    }
    let mut link = UnixStream::connect(daemon.site.control()).unwrap();
    link.write_all(&request(REQUEST)).unwrap();
    link.read_exact(&mut [0; 100]).unwrap();
    drop(link);
    assert_serves_on(daemon, clients, "this daemon serves on");
}

#[test]
fn a_successor_that_hangs_is_none_and_does_not_become_it_later() {
    let (daemon, clients) = with_lingering(20);
    let mut link = UnixStream::connect(daemon.site.control()).unwrap();
    link.write_all(&request(REQUEST)).unwrap();
    daemon.wait_for_log("but it takes too long; this daemon serves on");
    let late = link.write_all(b"R").unwrap_err();
    assert_eq!(late.kind(), ErrorKind::BrokenPipe);
    assert_serves_on(daemon, clients, "this daemon serves on");
}

#[test]
fn a_successor_that_cannot_be_understood_is_none() {
    let (daemon, clients) = with_lingering(20);
    for asked in [&request("nonsense")[..], &request("[1,2]"), b"T\xff\xff\xff\xff\0\0\0\0", b"x", b"\0"] {
        let mut link = UnixStream::connect(daemon.site.control()).unwrap();
        link.write_all(asked).unwrap();
        let mut said = Vec::new();
        let ended = link.read_to_end(&mut said);
        assert!(ended.is_ok() && (said.is_empty() || said == b"N"), "{said:?}");
    }
    assert_serves_on(daemon, clients, "it says what is no request; this daemon serves on");
}

#[test]
fn one_that_serves_gives_nothing_to_who_wants_it_from_one_that_stops() {
    let (daemon, clients) = with_lingering(20);
    let mut link = UnixStream::connect(daemon.site.control()).unwrap();
    link.write_all(&request(r#"{"only_if_stopping":true}"#)).unwrap();
    let mut said = Vec::new();
    link.read_to_end(&mut said).unwrap();
    assert_eq!(said, frame(r#"{"frame":"serving"}"#));
    assert_serves_on(daemon, clients, "serving");
}

/// It would take a link at the second socket for one at the first one, and what is said there for nonsense.
#[test]
fn a_successor_that_is_too_old_to_spool_is_none() {
    let (daemon, clients) = with_lingering(3);
    let mut link = UnixStream::connect(daemon.site.control()).unwrap();
    link.write_all(&request(r#"{"version":"0.0","only_if_stopping":false}"#)).unwrap();
    let mut said = String::new();
    link.read_to_string(&mut said).unwrap();
    assert_eq!(said, "N");
    assert_serves_on(daemon, clients, "too old to write responses");
}

/// What a successor of another version may say, and that it gets what is documented: this is the
/// exchange as that version has it.
#[test]
fn a_successor_of_another_version_is_one() {
    let (mut daemon, clients) = with_lingering(150);
    let sender = daemon.sender();
    daemon.wait_for("senders=1");
    let mut link = UnixStream::connect(daemon.site.control()).unwrap();
    link.write_all(&request(
        r#"{"version":"99.0","mood":{"good":true},"only_if_stopping":false,"spools":true,"parks":true}"#,
    ))
    .unwrap();
    link.set_nonblocking(true).unwrap();
    let (mut said, mut descriptors) = (Vec::new(), Vec::<OwnedFd>::new());
    wait_until("that is all", || {
        let mut piece = [0; 4096];
        if let Ok(count) = link.hear(&mut piece, &mut descriptors) {
            said.extend_from_slice(&piece[..count]);
        }
        said.ends_with(br#"{"frame":"end"}"#)
    });
    let said = String::from_utf8_lossy(&said).into_owned();
    for part in [
        r#""roles":["control","door","spool_door"]"#,
        r#""counters":"lingering 150\nspooling 0\n"#,
        r#"{"frame":"senders","facts":[{"spools":false,"has_credit":false,"owed":0}]}"#,
        r#"{"handed_over":"#,
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert_eq!(descriptors.len(), 3 + 1 + 150, "the sockets, the sender, the connections");
    link.write_all(b"R").unwrap();
    let mut answer = Vec::new();
    link.set_nonblocking(false).unwrap();
    link.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"G");
    assert_eq!(daemon.wait_for_end(), Some(0));
    // Nothing was touched: who has taken over has it all.
    assert!(daemon.site.socket().exists() && daemon.site.control().exists());
    assert_eq!(sender.try_send(b"L", &[]).unwrap(), 1);
    drop(descriptors);
    let last = daemon.site.log();
    let last = last.lines().last().and_then(|line| line.strip_prefix("lingerd: succeeded: ")).unwrap();
    assert_eq!(Counters::from_words(last)["lingering"], 150);
    drop(clients);
}

/// What a successor says first.
/// What one says that wants everything.
const REQUEST: &str = r#"{"spools":true,"parks":true}"#;

fn request(json: &str) -> Vec<u8> {
    [b"T".to_vec(), frame(json)].concat()
}

fn frame(json: &str) -> Vec<u8> {
    let length = u32::try_from(json.len()).unwrap();
    [&length.to_be_bytes(), &[0; 4], json.as_bytes()].concat()
}

// Who is who.

#[test]
fn under_another_user_it_is_taken_over_from_by_root_and_the_pid_file_is_roots() {
    if !is_root() {
        return;
    }
    let site = Site::new();
    let old = site.start_in_background(&["-u", "nobody"]);
    let (clients, servers) = tcp::connections(10);
    old.sender().hand_over_all(&servers);
    drop(servers);
    old.wait_for("lingering=10");
    let mut old = old;
    let new = site.start_in_background(&["-r", "-u", "nobody"]);
    old.wait_for_end();
    let nobody = process::user("nobody").unwrap().expect("there is a user nobody");
    assert_eq!(ps(new.pid, "uid"), nobody.uid.to_string());
    let pid_file = fs::metadata(site.pidfile()).unwrap();
    assert_eq!((pid_file.uid(), pid_file.gid(), pid_file.mode() & 0o777), (0, 0, 0o600));
    new.wait_for("lingering=10");
    drop(clients);
    new.wait_for("closed=10");
}

/// dpkg's start-stop-daemon believes no pid file that another user than root could have written.
#[test]
fn start_stop_daemon_believes_the_pid_file() {
    let program = "/sbin/start-stop-daemon";
    if !is_root() || !fs::exists(program).unwrap() {
        return;
    }
    let site = Site::new();
    let mut daemon = site.start_in_background(&["-u", "nobody"]);
    let ssd = |what: &[&str]| run(Command::new(program).args(what).arg("--pidfile").arg(site.pidfile()));
    assert_eq!(ssd(&["--status"]).code, Some(0));
    assert_eq!(ssd(&["--stop", "--retry", "TERM/30"]).code, Some(0));
    daemon.wait_for_end();
    assert_ne!(ssd(&["--status"]).code, Some(0));
}

/// What another user has left there he could have open, to write into it what he likes.
#[test]
fn a_stale_pid_file_of_another_user_is_replaced() {
    if !is_root() {
        return;
    }
    for (owner, permissions) in [(65534, 0o600), (0, 0o666)] {
        let site = Site::new();
        fs::write(site.pidfile(), "1\n/tmp/elsewhere\n").unwrap();
        std::os::unix::fs::chown(site.pidfile(), Some(owner), Some(owner)).unwrap();
        fs::set_permissions(site.pidfile(), fs::Permissions::from_mode(permissions)).unwrap();
        let mut theirs = fs::File::options().write(true).open(site.pidfile()).unwrap();
        let daemon = site.start_in_background(&[]);
        theirs.write_all(b"2\n").unwrap();
        let says = fs::read_to_string(site.pidfile()).unwrap();
        assert_eq!(says, format!("{}\n{}\n", daemon.pid, site.control().display()));
        assert_eq!(mode(&site.pidfile()), 0o600);
    }
}

/// The process id is that of a process in another namespace, where it means another one.
#[test]
fn k_stops_the_daemon_and_not_who_has_its_number_here() {
    let isolated = |command: &mut Command| {
        let mut unshare = Command::new("unshare");
        unshare.args(["--pid", "--fork", "--kill-child"]).arg(command.get_program());
        unshare.args(command.get_args());
        unshare
    };
    if !is_root() || !isolated(&mut Command::new("true")).status().is_ok_and(|status| status.success()) {
        return; // no root, or no Linux
    }
    let site = Site::new();
    let mut command = site.lingerd();
    command.arg("-f").arg("-p").arg(site.pidfile());
    let daemon = Daemon::spawn(&site, &mut isolated(&mut command));
    assert!(fs::read_to_string(site.pidfile()).unwrap().starts_with("1\n"), "else this tests nothing");
    let ended = run(lingerd().args(["-k", "-w", "-p"]).arg(site.pidfile()));
    assert_eq!((ended.code, &ended.stdout[..]), (Some(0), "lingerd (pid 1) has ended\n"), "{ended:?}");
    assert!(!site.socket().exists());
    let mut unshare = daemon;
    unshare.wait_for_end();
}

#[test]
fn k_goes_by_the_socket_where_it_is_told_to() {
    let site = Site::new();
    let mut daemon = site.start(&[]);
    let ended = run(lingerd().args(["-k", "-w", "-s"]).arg(site.socket()));
    assert_eq!((ended.code, &ended.stdout[..]), (Some(0), "lingerd has ended\n"), "{ended:?}");
    assert_eq!(daemon.wait_for_end(), Some(0));
    run(lingerd().args(["-k", "-s"]).arg(site.socket())).assert_failed(3, "no lingerd is running");
}

/// A pid file of another user's must not lead root to somebody else's socket.
#[test]
fn k_tells_nobody_that_the_owner_of_the_pid_file_is_not() {
    if !is_root() {
        return;
    }
    let site = Site::new();
    fs::write(site.pidfile(), format!("1\n{}\n", site.control().display())).unwrap();
    std::os::unix::fs::chown(site.pidfile(), Some(65534), None).unwrap();
    let held = fs::File::options().read(true).write(true).open(site.pidfile()).unwrap();
    assert!(process::try_lock(&held).unwrap());
    fs::create_dir(site.path("run")).unwrap();
    // Somebody listens there whom another one runs.
    let mut python = Command::new("python3");
    python.arg("-c").arg(
        "import os, socket, sys\n\
         s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); os.setuid(1); s.listen()\n\
         print(flush=True); c = s.accept()[0]; sys.exit(len(c.recv(9)))",
    );
    let mut other = python.arg(site.control()).stdout(Stdio::piped()).spawn().unwrap();
    other.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    site.stop().assert_failed(1, "user 1 listens there");
    assert_eq!(other.wait().unwrap().code(), Some(0), "it was told something");
}
