// SPDX-License-Identifier: BSD-3-Clause

//! A system that has nothing left: what its kernel refuses, a directory without room, a log that is full.
//!
//! What cannot be forced on a system that others use too, strace(1) has the daemon's calls say: the rest
//! is real.

use lingerd_platform::backend::{Backend, System};
use std::fs;
use std::io::{BufRead, BufReader, Error, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;
use support::daemon::{Daemon, Ended, Site, lingerd, run};
use support::{is_root, not_run, tcp, wait_until};

/// strace(1), which has system calls of a daemon fail for as long as this lives.
struct Refusals(Child);

impl Refusals {
    /// The first so many `calls` of each thread of `daemon` say `error`. `None` when that cannot be done here.
    fn of(daemon: &Daemon, calls: &str, error: &str, times: u32) -> Option<Self> {
        // After each that it lets in or hears it looks for another one, and that call is not one of these.
        daemon.wait_until_it_sleeps();
        let mut strace = Command::new("strace");
        strace.args(["-f", "-o", "/dev/null", "-e", &format!("trace={calls}")]);
        strace.args(["-e", &format!("inject={calls}:error={error}:when=1..{times}")]);
        strace.arg("-p").arg(daemon.pid.to_string()).stdin(Stdio::null()).stderr(Stdio::piped());
        let Ok(mut strace) = strace.spawn() else {
            not_run("there is no strace, which has system calls fail (Debian: apt-get install strace)");
            return None;
        };
        let mut said = String::new();
        let mut lines = BufReader::new(strace.stderr.take().unwrap());
        lines.read_line(&mut said).unwrap();
        let refusals = Refusals(strace);
        if !said.contains("attached") {
            not_run(&format!("strace cannot attach to the daemon: {}", said.trim()));
            return None;
        }
        Some(refusals)
    }
}

impl Drop for Refusals {
    /// Told so, it lets the daemon go in between two calls.
    fn drop(&mut self) {
        let _ = lingerd_platform::process::kill(self.0.id() as i32, libc::SIGTERM);
        let _ = self.0.wait();
    }
}

/// A daemon, and connections that linger on it, each with its client.
fn lingering(number: usize, options: &[&str]) -> (Daemon, Vec<TcpStream>) {
    let daemon = Daemon::start(options);
    let (clients, servers) = tcp::connections(number);
    daemon.sender().hand_over_all(&servers);
    // Where the machine is busy some may have ended of a short -t by then.
    daemon.wait_for(&format!("handed_over={number} senders=0"));
    (daemon, clients)
}

#[test]
fn who_asks_when_no_descriptor_is_left_is_answered_and_a_connection_is_evicted_for_it() {
    for (error, number) in [("EMFILE", libc::EMFILE), ("ENFILE", libc::ENFILE)] {
        let (daemon, clients) = lingering(5, &[]);
        let Some(refusals) = Refusals::of(&daemon, "accept,accept4", error, 1) else { return };
        assert_one_is_evicted_for_an_answer(daemon, clients, number);
        drop(refusals);
    }
}

#[test]
fn who_says_stop_when_no_descriptor_is_left_is_heard() {
    let (daemon, clients) = lingering(5, &[]);
    let Some(refusals) = Refusals::of(&daemon, "accept,accept4", "ENFILE", 1) else { return };
    assert_eq!(run(daemon.site.lingerd().arg("-k")).code, Some(0));
    drop((refusals, clients));
    let last = daemon.wait_for_good_end();
    assert_eq!((last["closed"], last["evicted"]), (4, 1));
}

#[test]
fn who_asks_when_the_limit_was_lowered_is_answered_in_the_same_way() {
    if !cfg!(target_os = "linux") {
        return not_run("it takes the prlimit of Linux");
    }
    let daemon = Daemon::start(&[]);
    let sender = daemon.sender(); // it stays, so that there is no gap in the numbers
    let (clients, servers) = tcp::connections(5);
    sender.hand_over_all(&servers);
    drop(servers);
    daemon.wait_for("lingering=5");
    let pid = daemon.pid.to_string();
    let is_free = |number: &u32| fs::symlink_metadata(format!("/proc/{pid}/fd/{number}")).is_err();
    let first_free = || (0..).find(is_free).unwrap();
    // Whoever asked last may still have a number.
    wait_until("they stay as they are", || {
        let before = first_free();
        thread::sleep(Duration::from_millis(100));
        before == first_free()
    });
    let limit = format!("--nofile={}:", first_free());
    let lowered = run(Command::new("prlimit").args(["--pid", &pid, &limit]));
    assert_eq!(lowered.code, Some(0), "{lowered:?}");
    assert_one_is_evicted_for_an_answer(daemon, clients, libc::EMFILE);
}

/// That `daemon` answers at the cost of one of its five connections, says so and why, and ends as it should.
fn assert_one_is_evicted_for_an_answer(daemon: Daemon, clients: Vec<TcpStream>, error: i32) {
    assert_eq!(daemon.counters()["evicted"], 1);
    // In the words of the C library.
    let why = Error::from_raw_os_error(error);
    daemon.wait_for_log(&format!("cannot answer 'lingerd -S' or '-k': {why}"));
    assert!(daemon.site.log().contains("; evicted a connection for that"));
    drop(clients);
    daemon.finish("closed=4 evicted=1");
}

#[test]
fn who_asks_when_there_is_no_memory_is_answered_later_and_nobody_is_evicted() {
    for error in ["ENOMEM", "ENOBUFS"] {
        let (daemon, clients) = lingering(5, &[]);
        let Some(refusals) = Refusals::of(&daemon, "accept,accept4", error, 2) else { return };
        daemon.wait_for("lingering=5 evicted=0");
        daemon.wait_for_log("cannot answer 'lingerd -S' or '-k': ");
        assert_eq!(daemon.site.log().matches("trying again in a second").count(), 1, "once a minute");
        drop((refusals, clients));
        daemon.finish("closed=5");
    }
}

#[test]
fn a_sender_that_cannot_be_let_in_is_let_in_later_with_all_that_it_has_sent() {
    for error in ["EMFILE", "ENFILE", "ENOMEM", "ENOBUFS"] {
        let (daemon, mut clients) = lingering(5, &[]);
        let Some(refusals) = Refusals::of(&daemon, "accept,accept4", error, 1) else { return };
        let (client, server) = tcp::connection();
        daemon.sender().hand_over(server);
        clients.push(client);
        daemon.wait_for_log("cannot let a sender in: "); // and nobody has asked anything yet
        daemon.wait_for("lingering=6 evicted=0");
        drop((refusals, clients));
        daemon.finish("closed=6");
    }
}

#[test]
fn a_sender_that_cannot_be_let_in_at_the_stop_is_let_in_later() {
    for error in ["ENFILE", "ENOMEM"] {
        let daemon = Daemon::start(&[]);
        daemon.freeze();
        let (client, server) = tcp::connection();
        daemon.sender().hand_over(server);
        drop(client);
        daemon.signal(libc::SIGTERM);
        let Some(refusals) = Refusals::of(&daemon, "accept,accept4", error, 2) else { return };
        daemon.thaw();
        daemon.wait_for_log("; trying again in a second");
        assert_eq!(daemon.wait_for_good_end()["closed"], 1);
        drop(refusals);
    }
}

#[test]
fn a_sender_that_cannot_be_read_is_read_later() {
    for error in ["ENOMEM", "ENOBUFS"] {
        let (daemon, mut clients) = lingering(5, &[]);
        let sender = daemon.sender();
        daemon.wait_for("senders=1");
        let Some(refusals) = Refusals::of(&daemon, "recvmsg", error, 2) else { return };
        let (client, server) = tcp::connection();
        sender.hand_over(server);
        clients.push(client);
        daemon.wait_for("lingering=6 senders=1 protocol_errors=0");
        drop((refusals, clients));
        daemon.finish("closed=6");
    }
}

#[test]
fn a_connection_that_cannot_be_read_is_read_when_it_is_due() {
    // By the recv(2) of whatever system.
    // What cannot be read comes within -t, in which strace has to have begun.
    let (daemon, mut clients) = lingering(5, &["-t", "10"]);
    let Some(refusals) = Refusals::of(&daemon, "recvfrom", "ENOMEM", 1) else { return };
    clients[0].write_all(b"late").unwrap();
    daemon.wait_for_log("cannot wait for a connection: ");
    drop((refusals, clients));
    finish_with_idle(daemon, 5, "bytes_discarded=4");
}

#[test]
fn where_the_kernel_can_wait_for_no_more_everybody_is_served_all_the_same() {
    if System::NAME != "epoll" {
        return println!("the others keep no table in the kernel, or tell of it in the simulation only");
    }
    for error in ["ENOSPC", "ENOMEM"] {
        let (daemon, mut clients) = lingering(5, &["-t", "2"]);
        let (more, servers) = tcp::connections(3);
        // So that nobody who asks is refused in place of them.
        daemon.freeze();
        let sender = daemon.sender();
        sender.hand_over_all(&servers);
        clients.extend(more);
        drop(servers);
        // The sender, its connections, and who asks.
        let Some(refusals) = Refusals::of(&daemon, "epoll_ctl", error, 8) else { return };
        daemon.thaw();
        daemon.wait_for("handed_over=8 evicted=0");
        daemon.wait_for_log("cannot wait for a connection: ");
        drop((refusals, clients));
        finish_with_idle(daemon, 8, "");
    }
}

/// Finishes where of so many, whose clients are gone, -t was over for some before that: the machine may be busy.
fn finish_with_idle(daemon: Daemon, number: u64, expected: &str) {
    daemon.wait_for(&format!("handed_over={number} lingering=0"));
    let idle = daemon.counters()["idle"];
    daemon.finish(&format!("closed={} idle={idle} {expected}", number - idle));
}

#[test]
fn a_poll_without_memory_for_its_tables_ends_nobody() {
    if System::NAME != "poll" {
        return println!("the others have their tables already");
    }
    let (daemon, clients) = lingering(5, &[]);
    let Some(refusals) = Refusals::of(&daemon, "?poll,ppoll", "ENOMEM", 3) else { return };
    // More often than it can be asked without a poll in between: a call that strace has begun to refuse when it
    // lets go is none that there is (ENOSYS), which is nothing that may pass.
    for _ in 0..10 {
        daemon.wait_for("lingering=5");
    }
    drop((refusals, clients));
    daemon.finish("closed=5");
}

/// Runs a script in a mount namespace of its own, with the program as `$LINGERD` and a directory as `$PLACE`, in
/// which it may mount what it likes. `None` when that cannot be done here.
fn with_mounts(site: &Site, script: &str) -> Option<Ended> {
    if !cfg!(target_os = "linux") {
        not_run("it takes the mount namespaces of Linux");
        return None;
    }
    if !is_root() {
        return None;
    }
    if run(Command::new("unshare").args(["-m", "true"])).code != Some(0) {
        not_run("there can be no mount namespace here");
        return None;
    }
    let place = site.path("place");
    fs::create_dir(&place).unwrap();
    let mut shell = Command::new("unshare");
    shell.args(["-m", "sh", "-c", script]).env("PLACE", &place).env("LINGERD", lingerd().get_program());
    Some(run(&mut shell))
}

#[test]
fn a_directory_without_room_is_an_error_that_names_it_and_nothing_is_left_there() {
    // Room for the directory itself and one file, which is the pid file; for it, but not for what is in it; none.
    for (mount, fill, error) in [
        ("-o nr_inodes=2", ":", "lingerd.sock.ctl: cannot listen there"),
        ("-o size=4k", "head -c 4096 /dev/zero >fill", "lingerd.pid: cannot write"),
        ("-o ro", ":", "lingerd.pid: cannot"),
    ] {
        let site = Site::new();
        let script = format!(
            "mount -t tmpfs {mount} tmpfs \"$PLACE\" && cd \"$PLACE\" && {fill} || exit 9
             \"$LINGERD\" -s \"$PLACE/lingerd.sock\" -p \"$PLACE/lingerd.pid\"; code=$?
             rm -f fill; ls; exit $code"
        );
        let Some(ended) = with_mounts(&site, &script) else { return };
        ended.assert_failed(1, error);
        let why = if mount.ends_with("ro") { "Read-only file system" } else { "No space left on device" };
        ended.assert_failed(1, why);
        assert_eq!(ended.stdout, "", "it was left there");
    }
}

#[test]
fn a_directory_that_can_be_written_no_longer_keeps_nobody_from_stopping() {
    let script = "mkdir \"$PLACE/run\" && mount -t tmpfs tmpfs \"$PLACE/run\" && cd \"$PLACE\" || exit 9
        chown nobody run && chmod 755 run || exit 9
        \"$LINGERD\" -f -u nobody -s run/lingerd.sock 2>log & pid=$!
        until \"$LINGERD\" -S -s run/lingerd.sock >counters 2>&1; do :; done
        chown root run || exit 8
        \"$LINGERD\" -k -s run/lingerd.sock; echo told: $?
        wait $pid; echo ended: $?
        cat log >&2; test -S run/lingerd.sock || exit 7
        chown nobody run && \"$LINGERD\" -u nobody -s run/lingerd.sock -p pid && \"$LINGERD\" -k -w -p pid; echo next: $?";
    let Some(ended) = with_mounts(&Site::new(), script) else { return };
    assert!(ended.stdout.starts_with("told: 0\nended: 0\n"), "{ended:?}");
    assert!(ended.stdout.ends_with("next: 0\n"), "{ended:?}");
    assert!(ended.stderr.contains("stopped: "), "{ended:?}");
}

#[test]
fn a_syslog_daemon_that_reads_nothing_holds_nobody_up_and_hears_how_much_it_has_missed() {
    let site = Site::new();
    let syslogd = UnixDatagram::bind(site.path("syslog")).unwrap();
    let script = format!(
        "mount -t tmpfs tmpfs /dev && mknod -m 666 /dev/null c 1 3 && ln -s {} /dev/log || exit 9
         exec \"$LINGERD\" -d -s {} -p {}",
        site.path("syslog").display(),
        site.socket().display(),
        site.pidfile().display()
    );
    let Some(started) = with_mounts(&site, &script) else { return };
    assert_eq!(started.code, Some(0), "{started:?}");
    let daemon = site.in_background();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap(); // refused, and closed at once
    let sender = daemon.sender();
    // A line for each: more than any queue of datagrams holds.
    for n in 1..=20 {
        sender.send(b"L", &[listener.as_fd(); 100]);
        daemon.wait_for(&format!("rejected={}", n * 100));
    }
    syslogd.set_nonblocking(true).unwrap();
    let mut line = [0; 2048];
    let mut heard = 0;
    while syslogd.recv(&mut line).is_ok() {
        heard += 1;
    }
    daemon.signal(libc::SIGUSR1);
    let mut said = String::new();
    wait_until("the counters are logged", || {
        while let Ok(count) = syslogd.recv(&mut line) {
            said += &(String::from_utf8_lossy(&line[..count]).into_owned() + "\n");
        }
        said.contains("counters: ")
    });
    let missed = said.lines().find_map(|line| line.split_once("log messages that could not be sent: "));
    let missed: usize = missed.expect("it says how many").1.parse().unwrap();
    assert!(heard < 2_000 && heard + missed >= 2_000, "{heard} heard, {missed} missed");
    assert_eq!(site.stop().code, Some(0));
}
