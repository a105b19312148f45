// SPDX-License-Identifier: BSD-3-Clause

//! The manners of a daemon: starting, stopping, signals, its files, its neighbours, its privileges.

use lingerd_platform::process;
use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use support::daemon::{Daemon, Site, lingerd, mode, ps, run};
use support::sender::Sender;
use support::{is_root, tcp, wait_until};

// Starting.

#[test]
fn usage_errors_exit_2_and_name_the_option() {
    for (arguments, part) in [
        (&["-x"][..], "'x'"),
        (&["-f", "-n", "0"], "-n '0'"),
        (&["-f", "-t", "soon"], "-t 'soon'"),
        (&["-f", "-m", "999"], "-m '999'"),
        (&["-S", "-o", "xml"], "-o 'xml'"),
        (&["-k", "-S"], "-S"),
        (&["-f", "surplus"], "'surplus'"),
    ] {
        run(lingerd().args(arguments)).assert_failed(2, part);
    }
}

#[test]
fn help_and_version_go_to_standard_output() {
    for (option, part) in [("-h", "usage: lingerd"), ("-V", concat!("lingerd ", env!("CARGO_PKG_VERSION")))] {
        let ended = run(lingerd().arg(option));
        assert_eq!(ended.code, Some(0));
        assert!(ended.stdout.contains(part) && ended.stderr.is_empty(), "{ended:?}");
    }
}

/// Both ways to start it: an error comes before the parent goes.
const WAYS: [&[&str]; 2] = [&[], &["-f"]];

#[test]
fn an_unknown_user_or_group_is_an_error() {
    let site = Site::new();
    for way in WAYS {
        for (option, part) in [("-u", "no such user"), ("-g", "no such group")] {
            let mut command = site.lingerd();
            command.arg("-p").arg(site.pidfile()).args(way).args([option, "no-such-name"]);
            run(&mut command).assert_failed(1, part);
        }
    }
}

#[test]
fn a_missing_directory_two_levels_up_is_an_error() {
    let site = Site::new();
    let socket = site.path("missing/run/lingerd.sock");
    for way in WAYS {
        let mut command = lingerd();
        command.args(way).arg("-p").arg(site.pidfile()).arg("-s").arg(&socket);
        run(&mut command).assert_failed(1, "missing/run");
    }
}

#[test]
fn too_long_a_path_is_an_error() {
    let site = Site::new();
    let socket = site.path(&"long".repeat(30));
    for way in WAYS {
        let mut command = lingerd();
        command.args(way).arg("-p").arg(site.pidfile()).arg("-s").arg(&socket);
        run(&mut command).assert_failed(1, "too long");
    }
}

#[test]
fn in_the_background_the_socket_listens_when_the_command_returns() {
    let site = Site::new();
    let daemon = site.start_in_background(&[]);
    UnixStream::connect(site.socket()).unwrap();
    let (client, server) = tcp::connection();
    daemon.sender().hand_over(server);
    daemon.wait_for("lingering=1");
    drop(client);
    daemon.wait_for("lingering=0 closed=1");
}

#[test]
fn in_the_background_it_holds_nothing_that_it_has_inherited() {
    let site = Site::new();
    let lingerd = site.lingerd();
    let mut shell = Command::new("sh");
    // The command is over when nobody holds its output any more: not as descriptor 9 either.
    shell.arg("-c").arg("exec \"$0\" \"$@\" 9>&1").arg(lingerd.get_program()).args(lingerd.get_args());
    assert_eq!(run(shell.arg("-p").arg(site.pidfile())).code, Some(0));
    assert_eq!(site.stop().code, Some(0));
    wait_until("the pid file is gone", || !site.pidfile().exists());
}

#[test]
fn in_the_background_relative_paths_are_those_of_the_caller() {
    let site = Site::new();
    let mut command = lingerd();
    command.current_dir(site.path("")).args(["-s", "run/lingerd.sock", "-p", "lingerd.pid"]);
    assert_eq!(run(&mut command).code, Some(0));
    assert_eq!(site.ask("text").code, Some(0));
    assert_eq!(site.stop().code, Some(0));
    wait_until("the pid file is gone", || !site.pidfile().exists());
}

// Its files.

#[test]
fn the_sockets_have_their_modes() {
    for (options, expected) in [(&[][..], 0o660), (&["-m", "0600"], 0o600), (&["-m", "666"], 0o666)] {
        let daemon = Daemon::start(options);
        assert_eq!(mode(&daemon.site.socket()), expected);
        assert_eq!(mode(&daemon.site.control()), 0o600);
        daemon.finish("");
    }
}

#[test]
fn the_directory_it_makes_lets_senders_through() {
    for background in [false, true] {
        let site = Site::new();
        let daemon = match background {
            false => site.start(&["-m", "0666"]),
            true => site.start_in_background(&["-m", "0666"]),
        };
        let directory = site.socket().parent().unwrap().to_owned();
        assert_eq!(mode(&directory), 0o755, "in the background: {background}");
        assert_eq!(mode(&site.socket()), 0o666);
        drop(daemon);
    }
}

#[test]
fn the_socket_has_its_group() {
    if !is_root() {
        return;
    }
    let daemon = Daemon::start(&["-g", "daemon"]);
    assert_eq!(fs::metadata(daemon.site.socket()).unwrap().gid(), group("daemon"));
    daemon.finish("");
}

#[test]
fn what_a_killed_daemon_left_is_no_obstacle() {
    let site = Site::new();
    let pidfile = site.pidfile();
    let options = ["-p", pidfile.to_str().unwrap()];
    site.start(&options).kill();
    assert!(site.socket().exists() && site.control().exists() && site.pidfile().exists());
    site.stop().assert_failed(3, "no lingerd is running");
    let daemon = site.start(&options);
    assert_says(&pidfile, &daemon);
    daemon.finish("");
}

#[test]
fn the_number_in_a_stale_pid_file_is_never_believed() {
    let site = Site::new();
    let mut bystander = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    fs::write(site.pidfile(), format!("{}\n", bystander.id())).unwrap();
    site.stop().assert_failed(3, "no lingerd is running");
    drop(bystander.stdin.take());
    assert!(bystander.wait().unwrap().success(), "a process that is no lingerd was told to stop");
}

#[test]
fn a_file_in_the_place_of_the_socket_is_left_alone() {
    let site = Site::new();
    for in_the_way in [site.socket(), site.control()] {
        fs::create_dir_all(in_the_way.parent().unwrap()).unwrap();
        fs::write(&in_the_way, "precious").unwrap();
        run(site.lingerd().arg("-f")).assert_failed(1, "no socket is in the way");
        assert_eq!(fs::read_to_string(&in_the_way).unwrap(), "precious");
        fs::remove_file(&in_the_way).unwrap();
        assert!(!site.socket().exists() && !site.control().exists(), "a socket was left there");
    }
}

#[test]
fn a_socket_of_another_kind_in_the_place_of_the_socket_is_left_alone() {
    let site = Site::new();
    fs::create_dir(site.path("run")).unwrap();
    let other = UnixDatagram::bind(site.socket()).unwrap();
    run(site.lingerd().arg("-f")).assert_failed(1, "it was left alone");
    UnixDatagram::unbound().unwrap().send_to(b"x", site.socket()).unwrap();
    assert_eq!(other.recv(&mut [0; 2]).unwrap(), 1);
}

#[test]
fn a_second_daemon_on_the_same_socket_is_refused_and_told_the_pid() {
    let daemon = Daemon::start(&[]);
    let pid = format!("(pid {})", daemon.pid);
    run(daemon.site.lingerd().arg("-f")).assert_failed(1, &pid);
    let second = daemon.site.path("second.pid");
    run(daemon.site.lingerd().arg("-p").arg(&second)).assert_failed(1, &pid);
    assert!(!second.exists());
    assert_still_serves(daemon);
}

#[test]
fn a_second_daemon_with_the_same_pid_file_is_refused_and_told_the_pid() {
    let site = Site::new();
    let pidfile = site.pidfile();
    let daemon = site.start(&["-p", pidfile.to_str().unwrap()]);
    let pid = format!("(pid {})", daemon.pid);
    let other = site.path("other.sock");
    for way in WAYS {
        let mut command = lingerd();
        command.args(way).arg("-p").arg(&pidfile).arg("-s").arg(&other);
        run(&mut command).assert_failed(1, &pid);
    }
    assert!(!other.exists());
    assert_says(&pidfile, &daemon);
    assert_still_serves(daemon);
}

#[test]
fn a_foreign_listener_on_the_socket_is_left_alone() {
    let site = Site::new();
    fs::create_dir(site.path("run")).unwrap();
    let foreign = UnixListener::bind(site.socket()).unwrap();
    run(site.lingerd().arg("-f")).assert_failed(1, "listens there");
    foreign.accept().unwrap(); // the daemon, as it looked
    UnixStream::connect(site.socket()).unwrap();
}

// Stopping.

#[test]
fn a_stop_finishes_what_lingers() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let daemon = Daemon::start(&[]);
        let sender = daemon.sender();
        let (mut clients, servers) = tcp::connections(2);
        sender.hand_over_all(&servers);
        drop(servers);
        daemon.wait_for("lingering=2");
        daemon.signal(signal);
        sender.wait_until_hung_up();
        assert!(!daemon.site.socket().exists(), "nobody else is let in");
        drop(clients.pop());
        daemon.wait_for("lingering=1 closed=1 senders=0"); // it is still there to be asked
        drop(clients);
        let last = daemon.wait_for_good_end();
        assert_eq!((last["closed"], last["stopped"]), (2, 0));
    }
}

#[test]
fn hand_offs_that_wait_at_a_stop_are_lingered_on() {
    let daemon = Daemon::start(&[]);
    let known = daemon.sender();
    daemon.wait_for("senders=1");
    daemon.freeze();
    let unknown = daemon.sender(); // still in the queue, not yet let in
    let (clients, servers) = tcp::connections(20);
    for (n, server) in servers.into_iter().enumerate() {
        if n % 2 == 0 { known.hand_over(server) } else { unknown.hand_over(server) }
    }
    daemon.signal(libc::SIGTERM);
    daemon.thaw();
    known.wait_until_hung_up();
    unknown.wait_until_hung_up();
    daemon.wait_for("lingering=20");
    drop(clients);
    assert_eq!(daemon.wait_for_good_end()["closed"], 20);
}

#[test]
fn who_waits_for_the_end_can_start_the_next_one_at_once() {
    let site = Site::new();
    let daemon = site.start_in_background(&["-W", "0.1"]);
    let (_client, server) = tcp::connection();
    daemon.sender().hand_over(server);
    daemon.wait_for("lingering=1");
    let ended = run(lingerd().args(["-k", "-w", "-p"]).arg(site.pidfile()));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.stdout, format!("lingerd (pid {}) has ended\n", daemon.pid));
    let next = site.start_in_background(&[]);
    assert_ne!(next.pid, daemon.pid);
    assert_eq!(run(lingerd().args(["-k", "-w", "-p"]).arg(site.pidfile())).code, Some(0));
    let nobody = run(lingerd().args(["-k", "-w", "-p"]).arg(site.pidfile()));
    nobody.assert_failed(3, "no lingerd is running");
}

#[test]
fn k_stops_a_daemon_and_nothing_of_it_is_left() {
    let site = Site::new();
    let mut daemon = site.start_in_background(&[]);
    assert_eq!(site.stop().code, Some(0));
    daemon.wait_for_end();
    site.wait_until_nothing_is_left();
    site.stop().assert_failed(3, "no lingerd is running");
}

#[test]
fn k_again_stops_at_once() {
    let site = Site::new();
    let mut daemon = site.start_in_background(&[]);
    let (mut client, server) = tcp::connection();
    daemon.sender().hand_over(server);
    daemon.wait_for("lingering=1");
    assert_eq!(site.stop().code, Some(0));
    wait_until("the hand-off socket is gone", || !site.socket().exists());
    daemon.wait_for("lingering=1 stopped=0");
    assert_eq!(site.stop().code, Some(0));
    daemon.wait_for_end();
    tcp::write_until_gone(&mut client);
    site.wait_until_nothing_is_left();
}

/// The directory may be the daemon's user's, who must not be able to have root stop what it likes.
#[test]
fn k_believes_no_pid_file_that_a_daemon_does_not_make() {
    let site = Site::new();
    let mut bystander = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let elsewhere = site.path("bystander.pid");
    fs::write(&elsewhere, format!("{}\n", bystander.id())).unwrap();
    let holder = fs::File::options().read(true).write(true).open(&elsewhere).unwrap();
    assert!(process::try_lock(&holder).unwrap());

    std::os::unix::fs::symlink(&elsewhere, site.pidfile()).unwrap();
    site.stop().assert_failed(1, "cannot open the pid file");
    fs::remove_file(site.pidfile()).unwrap();
    fs::hard_link(&elsewhere, site.pidfile()).unwrap();
    site.stop().assert_failed(1, "no pid file of lingerd's");
    fs::remove_file(site.pidfile()).unwrap();
    assert!(Command::new("mkfifo").arg(site.pidfile()).status().unwrap().success());
    site.stop().assert_failed(1, "no pid file of lingerd's");

    drop(bystander.stdin.take());
    assert!(bystander.wait().unwrap().success(), "a process that is no lingerd was told to stop");
}

#[test]
fn k_without_a_daemon_exits_3() {
    Site::new().stop().assert_failed(3, "no lingerd is running");
}

#[test]
fn a_sender_outlives_a_restart() {
    let site = Site::new();
    let first = site.start(&[]);
    let mut sender = first.sender();
    hand_over_one(&sender);
    first.finish("closed=1");
    sender.wait_until_hung_up();
    let (client, server) = tcp::connection();
    let gone = sender.try_send(b"L", &[server.as_fd()]).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::BrokenPipe);
    let second = site.start(&[]);
    sender = second.sender();
    sender.hand_over(server);
    drop(client);
    second.finish("closed=1");
}

// Signals, and a log that is not there.

#[test]
fn sigusr1_logs_the_counters() {
    let daemon = Daemon::start(&[]);
    hand_over_one(&daemon.sender());
    daemon.wait_for("closed=1");
    for times in 1..=2 {
        daemon.signal(libc::SIGUSR1);
        wait_until("they are logged", || {
            daemon.site.log().matches("counters: lingering=0 spooling=0 parked=0 returning=0 peak=").count()
                == times
        });
    }
    daemon.finish("closed=1");
}

#[test]
fn sighup_reopens_the_log_and_nothing_else() {
    let daemon = Daemon::start(&[]);
    let (client, server) = tcp::connection();
    daemon.sender().hand_over(server);
    daemon.wait_for("lingering=1");
    for times in 1..=2 {
        daemon.signal(libc::SIGHUP);
        wait_until("that is logged", || daemon.site.log().matches("log reopened").count() == times);
    }
    daemon.wait_for("lingering=1");
    drop(client);
    daemon.finish("closed=1");
}

#[test]
fn a_log_that_nobody_reads_does_not_matter() {
    let site = Site::new();
    let mut command = site.lingerd();
    let mut daemon = Daemon::spawn_with_log(&site, command.args(["-f", "-d"]), Stdio::piped());
    daemon.close_log();
    assert_survives_logging(daemon);
}

#[test]
fn a_log_that_is_full_does_not_matter() {
    let site = Site::new();
    let mut command = site.lingerd();
    let daemon = Daemon::spawn_with_log(&site, command.args(["-f", "-d"]), Stdio::piped());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap(); // refused, and closed at once
    let sender = daemon.sender();
    // A line for each: far more than a pipe holds.
    for n in 1..=40 {
        sender.send(b"L", &[listener.as_fd(); 100]);
        daemon.wait_for(&format!("rejected={}", n * 100));
    }
    assert_survives_logging(daemon);
}

#[test]
fn a_closed_standard_error_does_not_matter() {
    let site = Site::new();
    let lingerd = site.lingerd();
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$0\" \"$@\" 2>&-"]).arg(lingerd.get_program()).args(["-f", "-d"]);
    assert_survives_logging(Daemon::spawn(&site, shell.args(lingerd.get_args())));
}

/// That `daemon`, whose log goes nowhere, goes on when it has something to log.
fn assert_survives_logging(mut daemon: Daemon) {
    daemon.signal(libc::SIGUSR1);
    hand_over_one(&daemon.sender());
    daemon.wait_for("closed=1");
    daemon.signal(libc::SIGTERM);
    assert_eq!(daemon.wait_for_end(), Some(0));
}

// Privileges.

#[test]
fn u_changes_the_user_and_the_group_for_good() {
    if !is_root() {
        return;
    }
    let daemon = Daemon::start(&["-u", "nobody:daemon"]);
    let nobody = process::user("nobody").unwrap().expect("there is a user nobody");
    let gid = group("daemon");
    for (what, expected) in [("uid", nobody.uid), ("ruid", nobody.uid), ("gid", gid), ("rgid", gid)] {
        assert_eq!(id(daemon.pid, what), expected, "{what}");
    }
    assert_eq!(ids(&daemon.site.socket()), (nobody.uid, gid));
    assert_eq!(ids(&daemon.site.control()).0, nobody.uid);
    assert_still_serves(daemon); // root asks it, and its files are gone at the end
}

#[test]
fn u_works_in_the_background() {
    if !is_root() {
        return;
    }
    let site = Site::new();
    let nobody = process::user("nobody").unwrap().expect("there is a user nobody");
    let mut daemon = site.start_in_background(&["-u", "nobody"]);
    assert_eq!(id(daemon.pid, "uid"), nobody.uid);
    hand_over_one(&daemon.sender());
    daemon.wait_for("closed=1");
    assert_eq!(site.stop().code, Some(0));
    daemon.wait_for_end();
    wait_until("its sockets are gone", || !site.socket().exists() && !site.control().exists());
    // The pid file is in a directory of root's: it stays there, and is no obstacle.
    let daemon = site.start_in_background(&["-u", "nobody"]);
    assert_eq!(id(daemon.pid, "uid"), nobody.uid);
}

#[test]
fn g_is_the_sockets_group_and_not_the_daemons() {
    if !is_root() {
        return;
    }
    let daemon = Daemon::start(&["-u", "nobody", "-g", "daemon"]);
    let nobody = process::user("nobody").unwrap().expect("there is a user nobody");
    assert_eq!(ids(&daemon.site.socket()), (nobody.uid, group("daemon")));
    assert_ne!(id(daemon.pid, "gid"), group("daemon"));
    assert_still_serves(daemon);
}

/// Ids that nobody has.
const UNKNOWN: [u32; 2] = [60_901, 60_902];

#[test]
fn u_takes_numbers_that_nobody_has() {
    if !is_root() {
        return;
    }
    let [uid, gid] = UNKNOWN;
    let daemon = Daemon::start(&["-u", &format!("{uid}:{gid}")]);
    for (what, expected) in [("uid", uid), ("ruid", uid), ("gid", gid), ("rgid", gid)] {
        assert_eq!(id(daemon.pid, what), expected, "{what}");
    }
    // Real, effective, saved, and that of the file system.
    if let Some(groups) = proc_status(daemon.pid, "Groups") {
        assert_eq!(groups, [gid], "and no group of who started it");
        assert_eq!(proc_status(daemon.pid, "Uid").unwrap(), [uid; 4]);
        assert_eq!(proc_status(daemon.pid, "Gid").unwrap(), [gid; 4]);
    }
    assert_eq!(ids(&daemon.site.socket()), (uid, gid));
    assert_still_serves(daemon);
}

#[test]
fn a_number_that_nobody_has_needs_a_group_and_is_told_so() {
    let site = Site::new();
    let [uid, _] = UNKNOWN;
    for way in WAYS {
        let mut command = site.lingerd();
        command.arg("-p").arg(site.pidfile()).args(way).args(["-u", &uid.to_string()]);
        run(&mut command).assert_failed(1, &format!("give its group too: -u {uid}:GROUP"));
    }
}

#[test]
fn a_number_of_a_known_user_is_as_good_as_its_name() {
    if !is_root() {
        return;
    }
    let nobody = process::user("nobody").unwrap().expect("there is a user nobody");
    let known = |user: &str| {
        let daemon = Daemon::start(&["-u", user, "-g", &group("daemon").to_string()]);
        let groups = proc_status(daemon.pid, "Groups");
        let all = (id(daemon.pid, "uid"), id(daemon.pid, "gid"), groups, ids(&daemon.site.socket()));
        assert_still_serves(daemon);
        all
    };
    let by_name = known("nobody");
    assert_eq!((by_name.0, by_name.1), (nobody.uid, nobody.gid));
    assert_eq!(by_name.3, (nobody.uid, group("daemon")));
    assert_eq!(known(&nobody.uid.to_string()), by_name);
}

/// The numbers that /proc has for a process, on a system with one as Linux has it.
fn proc_status(pid: i32, what: &str) -> Option<Vec<u32>> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'))?;
    Some(line.split_whitespace().map(|number| number.parse().unwrap()).collect())
}

/// Hands a connection over whose client is at its end.
fn hand_over_one(sender: &Sender) {
    let (client, server) = tcp::connection();
    sender.hand_over(server);
    drop(client);
}

/// That `daemon` lingers on one connection, and stops as it should.
fn assert_still_serves(daemon: Daemon) {
    hand_over_one(&daemon.sender());
    daemon.finish("closed=1");
}

/// An id that a process has, in numbers: not every ps knows the name of the real group.
fn id(pid: i32, what: &str) -> u32 {
    let said = ps(pid, what);
    said.parse().unwrap_or_else(|_| panic!("{what}: {said}"))
}

fn group(name: &str) -> u32 {
    process::group(name).unwrap().unwrap_or_else(|| panic!("there is no group {name}"))
}

/// That the pid file says who `daemon` is, and where its control socket lies.
fn assert_says(pid_file: &Path, daemon: &Daemon) {
    let expected = format!("{}\n{}\n", daemon.pid, daemon.site.control().display());
    assert_eq!(fs::read_to_string(pid_file).unwrap(), expected);
}

/// User and group of a file.
fn ids(path: &Path) -> (u32, u32) {
    let file = fs::metadata(path).unwrap();
    (file.uid(), file.gid())
}
