// SPDX-License-Identifier: BSD-3-Clause

//! Files that a sender should not pass, or that are not what he says: whoever has one of them has his client cut off,
//! so that it shows, and nobody else waits.

use crate::spool::{LONG, MEGABYTE, assert_cut_off, file, memory, pattern, read_all, slow};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;
use support::daemon::{Daemon, Site};
use support::{tcp, wait_until};

/// How many descriptors a process has; `None` where that cannot be seen.
fn descriptors(daemon: &Daemon) -> Option<usize> {
    fs::read_dir(format!("/proc/{}/fd", daemon.pid)).ok().map(Iterator::count)
}

fn open(path: impl AsRef<std::path::Path>, flags: i32) -> Option<OwnedFd> {
    OpenOptions::new().read(true).custom_flags(flags).open(path).ok().map(OwnedFd::from)
}

/// What is no regular file that can be read.
fn strangers(site: &Site) -> Vec<(&'static str, OwnedFd)> {
    let mut all = Vec::new();
    let fifo = site.path("fifo");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    if made.is_ok_and(|it| it.success()) {
        // Read and write, as to open one waits for the other end.
        let both = OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
        all.push(("a FIFO", both.into()));
    }
    all.push(("a directory", File::open(site.path("")).unwrap().into()));
    let (socket, other) = UnixStream::pair().unwrap();
    std::mem::forget(other); // so that it is open
    all.push(("a Unix socket", socket.into()));
    all.push(("a TCP socket", tcp::listener().into()));
    let devices = ["/dev/null", "/dev/zero", "/dev/full", "/dev/tty", "/dev/ptmx"];
    all.extend(devices.into_iter().filter_map(|path| Some((path, open(path, libc::O_NOCTTY)?))));
    let path = site.path("not-to-be-read");
    all.push(("a file that is open to be written", File::create(&path).unwrap().into()));
    fs::write(&path, pattern(0..1_000)).unwrap();
    #[cfg(target_os = "linux")]
    all.push(("a file that is open for its name alone", open(&path, libc::O_PATH).unwrap()));
    all.push(("an empty file", File::open(&path).unwrap().into()));
    fs::write(&path, "").unwrap();
    all
}

#[test]
fn what_cannot_be_read_is_cut_off_and_closed() {
    let daemon = Daemon::start(&[]);
    let sender = daemon.spooler();
    daemon.wait_for("senders=1");
    let before = descriptors(&daemon);
    let all = strangers(&daemon.site);
    for (n, (what, stranger)) in (1..).zip(&all) {
        let (mut client, server) = tcp::connection();
        sender.spool(server, &[(stranger, 0, 10, true)], LONG);
        assert_cut_off(&mut client);
        daemon.wait_for(&format!("broken={n} spooling=0"));
        println!("{what} is cut off");
    }
    drop(sender);
    wait_until("everything is closed", || descriptors(&daemon) <= before);
    let many = all.len();
    daemon.finish(&format!("broken={many} cut_short={many}"));
}

#[test]
fn what_no_file_has_is_refused_and_nothing_at_all_is_a_response() {
    let daemon = Daemon::start(&[]);
    let content = memory(&daemon.site, 1_000);
    for (offset, length) in [(u64::MAX, 1), (u64::MAX - 5, 10), (0, u64::MAX), (0, 1 << 62)] {
        let (mut client, server) = tcp::connection();
        let liar = daemon.spooler();
        liar.spool(server, &[(&content, offset, length, false)], LONG);
        assert_cut_off(&mut client);
        liar.wait_until_hung_up();
    }
    daemon.wait_for("protocol_errors=4 rejected=8");
    let sender = daemon.spooler();
    // So much each of so many that their sum is no number of 64 bits.
    for _ in 0..10 {
        let (mut client, server) = tcp::connection();
        sender.spool(server, &[(&content, 1 << 61, (1 << 62) - 1, true)], LONG);
        assert_cut_off(&mut client);
    }
    let (mut client, server) = tcp::connection();
    sender.spool(server, &[(&content, 0, 0, true), (&content, 1 << 61, 0, false)], LONG);
    assert_eq!(read_all(&mut client), b"");
    drop(client);
    daemon.finish("closed=1 broken=10 cut_short=10 protocol_errors=4 rejected=8");
}

#[test]
fn a_file_may_grow_while_it_is_sent_and_what_it_lacks_in_the_end_is_missed() {
    let daemon = Daemon::start(&[]);
    let sender = daemon.spooler();
    for make in [memory, file] {
        let mut content = make(&daemon.site, 7 * MEGABYTE);
        let (mut client, server) = slow();
        sender.spool(server, &[(&content, 0, 8 * MEGABYTE, false)], LONG);
        daemon.wait_for("spooling=1");
        content.write_all(&pattern(7 * MEGABYTE..8 * MEGABYTE)).unwrap();
        assert!(read_all(&mut client) == pattern(0..8 * MEGABYTE));
        drop(client);
        daemon.wait_for("spooling=0 lingering=0");
        let (mut client, server) = slow();
        sender.spool(server, &[(&content, 0, 8 * MEGABYTE, false)], LONG);
        daemon.wait_for("spooling=1");
        content.set_len(6 * MEGABYTE).unwrap();
        assert_cut_off(&mut client);
        daemon.wait_for("spooling=0");
    }
    daemon.finish("closed=2 broken=2 cut_short=2");
}

#[test]
fn a_terabyte_of_holes_and_what_a_server_has_anyway_keep_nobody_waiting() {
    let daemon = Daemon::start(&["-M", "1"]);
    let sender = daemon.spooler();
    let holes = memory(&daemon.site, 5 * MEGABYTE + 1);
    let ours = memory(&daemon.site, 3 * MEGABYTE);
    holes.set_len(0).unwrap();
    holes.set_len(1 << 40).unwrap();
    let mut clients = Vec::new();
    let servers_own = file(&daemon.site, 8 * MEGABYTE);
    for (content, length, is_ours) in [(&holes, 1 << 40, true), (&servers_own, 8 * MEGABYTE, false)] {
        let (client, server) = slow();
        sender.spool(server, &[(content, 0, length, is_ours)], LONG);
        clients.push(client);
    }
    daemon.wait_for("spooling=2");
    let (mut client, server) = tcp::connection();
    sender.spool(server, &[(&ours, 0, 3 * MEGABYTE, true)], LONG);
    assert!(read_all(&mut client) == pattern(0..3 * MEGABYTE));
    drop((client, clients));
    daemon.finish("closed=1 reset=2");
}

/// All of it is taken until it is closed, whoever says that it is somebody else's.
#[test]
#[cfg(target_os = "linux")]
fn memory_without_a_name_counts_however_little_of_it_is_to_be_sent() {
    let daemon = Daemon::start(&["-M", "4"]);
    let sender = daemon.spooler();
    for is_ours in [true, false] {
        let content = memory(&daemon.site, 20 * MEGABYTE);
        let (mut client, server) = slow();
        sender.spool(server, &[(&content, 12 * MEGABYTE, 3 * MEGABYTE, is_ours)], LONG);
        daemon.wait_for("spooling=1");
        let other = daemon.spooler();
        daemon.wait_for("spooling=1 senders=2");
        assert!(!other.has_go_ahead());
        assert!(read_all(&mut client) == pattern(12 * MEGABYTE..15 * MEGABYTE));
        drop(client);
        other.wait_for_go_ahead();
        daemon.wait_for("lingering=0");
    }
    daemon.finish("closed=2");
}

#[test]
#[cfg(target_os = "linux")]
fn memory_is_given_back_behind_what_the_client_has_taken() {
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;
    let daemon = Daemon::start(&[]);
    let content = memory(&daemon.site, 16 * MEGABYTE);
    let blocks = || content.metadata().unwrap().blocks();
    let all = blocks();
    let (mut client, server) = slow();
    daemon.spooler().spool(server, &[(&content, 0, 16 * MEGABYTE, true)], LONG);
    daemon.wait_for("spooling=1");
    let mut half = vec![0; 8 * MEGABYTE as usize];
    client.read_exact(&mut half).unwrap();
    assert!(half == pattern(0..8 * MEGABYTE));
    // What it has not read may lie in the send buffer, but no more than was read is left out.
    wait_until("half of it is given back", || blocks() <= all / 2 + 1_024);
    assert_eq!(daemon.counters()["spooling"], 1);
    assert!(read_all(&mut client) == pattern(8 * MEGABYTE..16 * MEGABYTE));
    drop(client);
    daemon.finish("closed=1");
}

/// A copy of the connection is still its sender's, who may have close(2) wait for the client.
#[test]
fn whoever_has_the_end_wait_for_his_client_keeps_nobody_waiting() {
    let daemon = Daemon::start(&[]);
    let sender = daemon.spooler();
    let content = memory(&daemon.site, 8 * MEGABYTE);
    let (mut client, server) = slow();
    let copy = server.try_clone().unwrap();
    // Time enough for us to see that it has come, and to be done with our copy before it is cut off.
    sender.spool(server, &[(&content, 0, 8 * MEGABYTE, false)], Duration::from_secs(10));
    daemon.wait_for("spooled=1");
    // If that came too late after all, and this close were the one that waits, it is not to keep the test.
    let closes = thread::spawn(move || {
        socket2::SockRef::from(&copy).set_linger(Some(LONG)).unwrap();
        drop(copy);
    });
    daemon.wait_for("stalled=1");
    assert_cut_off(&mut client);
    closes.join().unwrap();
    daemon.finish("stalled=1 cut_short=1");
}

/// What it says depends on who reads it, and that is not who has opened it.
#[test]
#[cfg(target_os = "linux")]
fn a_file_of_proc_is_none() {
    let daemon = Daemon::start(&[]);
    let file = File::open(format!("/proc/{}/stat", daemon.pid)).unwrap();
    let (mut client, server) = tcp::connection();
    daemon.spooler().spool(server, &[(&file, 0, 100, false)], LONG);
    assert_cut_off(&mut client);
    daemon.finish("broken=1 cut_short=1");
}

/// The message is taken off the queue in full whoever sends what.
#[test]
fn half_a_message_has_no_room_for_more_than_a_whole_one() {
    let daemon = Daemon::start(&[]);
    let content = memory(&daemon.site, 1_000);
    let sender = daemon.spooler();
    let (_client, server) = tcp::connection();
    let many = vec![content.as_fd(); 5];
    sender.wait_for_go_ahead();
    sender.send(b"S", &[server.as_fd(), content.as_fd()]);
    sender.send(b"\x01", &many);
    sender.wait_until_hung_up();
    daemon.wait_for("protocol_errors=1 rejected=7 senders=0");
    drop(server);
}
