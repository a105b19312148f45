// SPDX-License-Identifier: BSD-3-Clause

//! The senders in lingerd-protocol(7): taken out of the manual and run as whoever copies them would.

use crate::mdoc::Manual;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use support::daemon::{Daemon, Site};
use support::{PATIENCE, compile, libraries, skip, tcp, wait_until};

/// More messages than are on their way on one link, on any system.
const MORE_THAN_A_LINK_HOLDS: usize = 300;

/// A running one.
struct Server {
    process: Child,
    port: u16,
}

impl Server {
    fn start(command: &mut Command) -> Self {
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().parse().unwrap_or_else(|_| panic!("no port: '{line}'"));
        Server { process, port }
    }

    /// A client that has had its response, to the end, and does not close.
    fn exchange(&self) -> TcpStream {
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(b"hello?\n").unwrap();
        let mut response = Vec::new();
        client.read_to_end(&mut response).unwrap();
        assert_eq!(response, b"hello\n");
        client
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Writes the display of a subsection to a file.
fn extract(site: &Site, section: &str, name: &str) -> PathBuf {
    let path = site.path(name);
    fs::write(&path, Manual::read("lingerd-protocol.7").display(section)).unwrap();
    path
}

/// That a server does what the manual says a sender does.
fn behaves(site: &Arc<Site>, command: &mut Command) {
    let server = Server::start(command.arg(site.socket()));
    // Whoever lingers on such a client is done; and the server has done with all that came before it.
    let leaving = || server.exchange().shutdown(Shutdown::Write).unwrap();

    // Without a daemon it lingers itself.
    leaving();

    // A daemon that comes is found, within a second; one link serves all.
    let daemon = site.start(&[]);
    wait_until("the daemon is found", || {
        leaving();
        daemon.counters()["handed_over"] > 0
    });
    let held: Vec<_> = (0..10).map(|_| server.exchange()).collect();
    daemon.wait_for("lingering=10 senders=1");

    // One that stands still has queued what there is room for, and holds nobody up.
    let before = daemon.counters()["handed_over"];
    daemon.freeze();
    (0..MORE_THAN_A_LINK_HOLDS).for_each(|_| leaving());
    daemon.thaw();
    wait_until("there is room again", || daemon.counters()["handed_over"] > before);
    let last = server.exchange();
    daemon.wait_for("lingering=11 senders=1");
    let queued = daemon.counters()["handed_over"] - before - 1;
    assert!((1..MORE_THAN_A_LINK_HOLDS as u64).contains(&queued), "{queued}");

    // One that is killed, and another one in its place.
    daemon.kill();
    leaving();
    let daemon = site.start(&[]);
    wait_until("the new daemon is found", || {
        leaving();
        daemon.counters()["handed_over"] > 0
    });
    drop((held, last));
    daemon.wait_for("lingering=0 senders=1 rejected=0 protocol_errors=0");
}

#[test]
fn the_sender_in_python_does_what_the_manual_says() {
    let python = std::env::var("PYTHON").unwrap_or("python3".to_owned());
    // socket.send_fds
    let check = "import sys; sys.exit(sys.version_info < (3, 9))";
    if !Command::new(&python).args(["-c", check]).status().is_ok_and(|status| status.success()) {
        return skip(&format!("there is no {python} of 3.9 or newer"));
    }
    let site = Site::new();
    let program = extract(&site, "Python", "sender.py");
    behaves(&site, Command::new(python).arg(program));
}

#[test]
fn the_sender_in_c_does_what_the_manual_says() {
    let site = Site::new();
    let source = extract(&site, "C", "sender.c");
    let arguments = [&[source.to_str().unwrap()], libraries()].concat();
    let Some(program) = compile("manual", &arguments) else { return };
    behaves(&site, &mut Command::new(program));
}

/// What the manual says of one line of Python, with a daemon that is there.
#[test]
fn the_line_of_python_at_the_head_is_enough_where_all_is_well() {
    let python = std::env::var("PYTHON").unwrap_or("python3".to_owned());
    let manual = Manual::read("lingerd-protocol.7");
    let description = manual.section("DESCRIPTION");
    let line = description.iter().find_map(|line| line.strip_prefix(".Dl ")).unwrap();
    let line = line.replace("\\(dq", "\"");
    let daemon = Daemon::start(&[]);
    let script = format!(
        "import socket, sys\nlink = socket.socket(socket.AF_UNIX)\nlink.connect(sys.argv[1])\n\
         conn = socket.socket(fileno=0)\n{line}\n"
    );
    let (client, server) = tcp::connection();
    let mut command = Command::new(python);
    command.args(["-c", &script]).arg(daemon.site.socket()).stdin(OwnedFd::from(server));
    match command.status() {
        Ok(status) => assert!(status.success()),
        Err(_) => return skip("there is no Python"),
    }
    daemon.wait_for("lingering=1");
    drop(client);
    daemon.finish("closed=1");
}
