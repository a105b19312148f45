// SPDX-License-Identifier: BSD-3-Clause

//! Files of a file system that does not answer: whoever passes one holds up nobody but himself.
//!
//! It is one of FUSE's, which is root's to mount, and of one file; who reads that is never answered. As long as it is there
//! he cannot even be killed. So who is to answer is another process, which ends by itself in a while; and everything is in
//! namespaces of its own, so that nobody else sees the mount, and all is over with the first process there. A close asks
//! nothing: else each program that a test starts would hang before it begins, and ps(1) with it.

use super::spool::{LONG, assert_cut_off, file, memory, pattern, read_all, slow};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use support::daemon::{Daemon, Site};
use support::{is_root, skip, tcp, wait_until};

/// Says what this process is, if it is not the test.
const PART: &str = "LINGERD_TEST_PART";
const SERVER: &str = "server";
const INSIDE: &str = "inside";

/// For who is to answer, and for everything that is in the namespaces.
const SERVES_FOR: Duration = Duration::from_secs(300);
const AT_MOST: Duration = Duration::from_secs(330);

/// What the kernel asks, <linux/fuse.h>.
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const INIT: u32 = 26;
/// What is not to be answered.
const FORGET: u32 = 2;
const INTERRUPT: u32 = 36;
/// Of an open file, that its close is no matter.
const FOPEN_NOFLUSH: u32 = 32;

/// What the file is: a regular one of a gigabyte, all of it a hole.
fn attributes() -> Vec<u8> {
    let valid_for = [3_600_u64, 0]; // and there is nothing more to ask
    let [ino, size, blocks, atime, mtime, ctime] = [1_u64, 1 << 30, 0, 0, 0, 0];
    let [mode, links, block_size] = [0o100_444_u32, 1, 4_096];
    let long = valid_for.into_iter().chain([ino, size, blocks, atime, mtime, ctime]);
    let short = [0, 0, 0, mode, links, 0, 0, 0, block_size, 0];
    long.flat_map(u64::to_ne_bytes).chain(short.into_iter().flat_map(u32::to_ne_bytes)).collect()
}

/// Answers everything but a read; what it does not know with that.
fn serve() -> ! {
    let mut kernel = File::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    std::thread::spawn(|| {
        std::thread::sleep(SERVES_FOR);
        std::process::exit(1);
    });
    let mut question = vec![0; 1 << 20];
    while let Ok(40..) = kernel.read(&mut question) {
        let operation = u32::from_ne_bytes(question[4..8].try_into().unwrap());
        let answer = match operation {
            INIT => Some([7_u32, 31].into_iter().flat_map(u32::to_ne_bytes).chain([0; 56]).collect()),
            GETATTR => Some(attributes()),
            OPEN => Some([0, 0, FOPEN_NOFLUSH, 0].into_iter().flat_map(u32::to_ne_bytes).collect()),
            _ => None,
        };
        if ![READ, FORGET, INTERRUPT].contains(&operation) {
            let error = if answer.is_none() { -libc::ENOSYS } else { 0 };
            let answer: Vec<u8> = answer.unwrap_or_default();
            let length = 16 + answer.len() as u32;
            let head = [&length.to_ne_bytes()[..], &error.to_ne_bytes(), &question[8..16]].concat();
            kernel.write_all(&[head, answer].concat()).unwrap();
        }
        println!("asked {operation}");
    }
    std::process::exit(0);
}

/// A file that was opened when it still answered.
struct Hung {
    path: PathBuf,
    server: Child,
    asked: BufReader<ChildStdout>,
    file: Option<File>,
}

impl Hung {
    /// `None` where there is no FUSE.
    fn new(site: &Site) -> Option<Hung> {
        let kernel = OwnedFd::from(File::options().read(true).write(true).open("/dev/fuse").ok()?);
        let path = site.path("hung");
        fs::write(&path, "").unwrap();
        let options = "fd=0,rootmode=100000,user_id=0,group_id=0,allow_other";
        let mut mount = Command::new("mount");
        mount.args(["-i", "-t", "fuse", "-o", options, "hung"]).arg(&path);
        mount.stdin(kernel.try_clone().unwrap()).stderr(Stdio::null());
        if !mount.status().is_ok_and(|it| it.success()) {
            return None;
        }
        drop(mount);
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(TEST).env(PART, SERVER).stdin(kernel).stdout(Stdio::piped());
        let mut server = command.spawn().unwrap();
        drop(command); // from here on only the server has the kernel's questions: they end with it
        let asked = BufReader::new(server.stdout.take().unwrap());
        let mut hung = Hung { path, server, asked, file: None };
        let file = hung.file.insert(File::open(&hung.path).unwrap());
        assert_eq!(file.metadata().unwrap().len(), 1 << 30);
        Some(hung)
    }

    fn file(&self) -> &File {
        self.file.as_ref().unwrap()
    }

    fn wait_until_asked(&mut self, operation: u32) {
        let mut line = String::new();
        while line.trim() != format!("asked {operation}") {
            line.clear();
            assert_ne!(self.asked.read_line(&mut line).unwrap(), 0, "it is never asked that");
        }
    }

    /// Who is still waiting is told that it is gone.
    fn end(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        self.file = None;
        let _ = Command::new("umount").args(["-f", "-l"]).arg(&self.path).stderr(Stdio::null()).status();
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        self.end();
    }
}

const TEST: [&str; 3] = ["--exact", "hung::whoever_passes_what_hangs_holds_up_nobody_else", "--nocapture"];

#[test]
fn whoever_passes_what_hangs_holds_up_nobody_else() {
    match std::env::var(PART) {
        Ok(part) if part == SERVER => serve(),
        Ok(part) if part == INSIDE => inside(),
        _ if !is_root() => {}
        _ => go_inside(),
    }
}

/// Does all of it in namespaces of its own: whose first process is killed, all are.
fn go_inside() {
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    unshare.arg(std::env::current_exe().unwrap()).args(TEST).env(PART, INSIDE);
    let Ok(mut unshare) = unshare.spawn() else { return skip("there is no unshare(1)") };
    let start = Instant::now();
    let ended = loop {
        match unshare.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if start.elapsed() > AT_MOST => break None,
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let _ = unshare.kill();
    let _ = unshare.wait();
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
}

fn inside() {
    let site = Site::new();
    let Some(mut hung) = Hung::new(&site) else { return skip("there is no FUSE") };
    let daemon = site.start(&[]);
    let sender = daemon.spooler();
    let (mut client, server) = tcp::connection();
    sender.spool(server, &[(hung.file(), 0, 1_000, true)], LONG);
    daemon.wait_for("spooling=1");
    hung.wait_until_asked(READ);
    others_go_on(&daemon, 2);
    // What is no connection, or ends before it is read.
    daemon.sender().send(b"L", &[hung.file().as_fd()]);
    daemon.wait_for("rejected=1");
    let (gone, server) = slow();
    let content = memory(&site, 8_000_000);
    sender.spool(server, &[(&content, 0, 8_000_000, false), (hung.file(), 0, 1_000, true)], LONG);
    daemon.wait_for("spooling=2");
    drop(gone);
    daemon.wait_for("spooling=1 reset=1");
    let (mut whole, server) = slow();
    sender.spool(server, &[(hung.file(), 0, 0, true), (&content, 0, 8_000_000, false)], LONG);
    assert!(read_all(&mut whole) == pattern(0..8_000_000));
    drop(whole);
    daemon.wait_for("closed=3");
    let half = daemon.spooler();
    let (_client, server) = tcp::connection();
    half.wait_for_go_ahead();
    half.send(b"S", &[server.as_fd(), hung.file().as_fd()]);
    drop((half, server));
    daemon.wait_for("protocol_errors=1");
    // More than are read at once there; those that nobody waits for any more are not read, but closed.
    for n in 1..=MANY {
        let (mut client, server) = tcp::connection();
        sender.spool(server, &[(hung.file(), n << 20, 1_000, true)], Duration::from_millis(1));
        assert_cut_off(&mut client);
    }
    daemon.wait_for(&format!("stalled={MANY} spooling=1"));
    others_go_on(&daemon, 5);
    hung.end();
    assert_cut_off(&mut client);
    daemon.wait_for("broken=1 spooling=0");
    let open = || fs::read_dir(format!("/proc/{}/fd", daemon.pid)).unwrap().count();
    wait_until("all files are closed", || open() < MANY as usize);
    daemon.signal(libc::SIGTERM);
}

/// Responses of which not a byte can be read.
const MANY: u64 = 200;

/// Two more, one of memory and one of a disk, with which so many are closed.
fn others_go_on(daemon: &Daemon, closed: u64) {
    for content in [memory(&daemon.site, 1_000_000), file(&daemon.site, 1_000_000)] {
        let (mut client, server) = slow();
        daemon.spooler().spool(server, &[(&content, 0, 1_000_000, false)], LONG);
        assert!(read_all(&mut client) == pattern(0..1_000_000));
    }
    daemon.wait_for(&format!("closed={closed}"));
}
