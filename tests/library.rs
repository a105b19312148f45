// SPDX-License-Identifier: BSD-3-Clause

//! liblingerd, senders/c, in a small server with a real lingerd behind it: what it has over the sender that it wraps,
//! which is tests/sender.rs's matter. What any sender has to do is tests/conformance's.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{OnceLock, mpsc};
use std::thread;
use support::daemon::{Daemon, Site};
use support::{PATIENCE, compile, http, libraries, tcp};

/// What does not fit into the buffers of a connection with a small window.
const MUCH: usize = 8_000_000;

/// The server, built with these options of the compiler, too.
fn build(name: &str, options: &[&str]) -> Option<PathBuf> {
    let sources = ["tests/library/server.c", "senders/c/lingerd.c", "apache-1.3/ap_lingerd.c"];
    compile(name, &[options, &sources, &["-D_FILE_OFFSET_BITS=64", "-pthread"], libraries()].concat())
}

/// The server, built once.
fn program() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    PROGRAM.get_or_init(|| build("library-server", &[])).as_deref()
}

/// Whether the compiler can make a program that ends where two threads use the same memory at once.
fn sees_races() -> bool {
    let probe =
        "echo 'int main(void) { return 0; }' | ${CC:-cc} -fsanitize=thread -x c -o \"$0\" - && exec \"$0\"";
    let site = Site::new();
    support::daemon::run(Command::new("sh").args(["-c", probe]).arg(site.path("probe"))).code == Some(0)
}

/// A server, told to hand over to the daemon of a site.
struct Server {
    process: Child,
    port: u16,
    lines: mpsc::Receiver<String>,
}

impl Server {
    /// Starts it; `None` when the test is to be skipped.
    fn start(site: &Site) -> Option<Self> {
        Some(Self::run(Command::new(program()?).arg(site.socket())))
    }

    fn run(command: &mut Command) -> Self {
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        // Read in a thread, so that a server that hangs fails the test and does not hang it.
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || stdout.lines().try_for_each(|line| sender.send(line.unwrap())));
        let port = lines.recv_timeout(PATIENCE).unwrap().parse().unwrap();
        Server { process, port, lines }
    }

    /// A client that reads slowly and has sent its request.
    fn ask(&self, request: &str) -> TcpStream {
        let mut client = http::connect_with_small_window((Ipv4Addr::LOCALHOST, self.port).into(), 4096);
        writeln!(client, "{request}").unwrap();
        client
    }

    /// What became of the next connection, and why there is no link.
    fn told(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("the server hangs")
    }

    /// A client that has its response, and what became of its connection.
    fn exchange(&self, request: &str) -> (TcpStream, String) {
        let mut client = self.ask(request);
        let mut response = [0; 3];
        client.read_exact(&mut response).unwrap();
        assert_eq!(&response, b"ok\n");
        (client, self.told())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// That the response has all these bytes, and ends as one that is whole.
fn assert_whole(mut client: TcpStream, bytes: usize) {
    let response = tcp::read_to_end(&mut client);
    assert!(response.starts_with(b"ok\n"));
    let expected: Vec<_> = (0..bytes).map(|n| (n % 251) as u8).collect();
    assert!(response[3..] == expected, "another response");
}

#[test]
fn a_connection_is_ended_or_handed_over_and_it_says_why_not() {
    let site = Site::new();
    let Some(server) = Server::start(&site) else { return };
    let kept = |errno| format!("kept {errno} error {errno}");
    let (_client, told) = server.exchange("finish");
    assert_eq!(told, kept(libc::ENOENT));
    let daemon = site.start(&[]);
    // It asks once a second.
    let held = support::eventually(|| match server.exchange("linger 0") {
        (client, told) if told == "given error 0" => Ok(client),
        (_, told) => Err(told),
    });
    let (mut client, told) = server.exchange("finish");
    assert_eq!(told, "given error 0");
    assert_eq!(client.read(&mut [0]).unwrap(), 0, "it was half-closed");
    daemon.wait_for("lingering=2 senders=1");
    if cfg!(target_os = "linux") {
        // Elsewhere it is lingerd that half-closes.
        daemon.freeze();
        let (mut client, told) = server.exchange("finish");
        assert_eq!(told, "given error 0");
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "the end is delayed");
        daemon.thaw();
        drop(client);
        daemon.wait_for("closed=1");
    }
    let closed = daemon.counters()["closed"];
    let (_brief, told) = server.exchange("linger 1");
    assert_eq!(told, "given error 0");
    daemon.wait_for("limit=1");
    drop((held, client));
    daemon.wait_for(&format!("closed={} lingering=0", closed + 2));
    daemon.kill();
    let told = server.exchange("finish").1;
    assert!(
        [libc::EPIPE, libc::ECONNRESET, libc::ECONNREFUSED].iter().any(|&errno| told == kept(errno)),
        "{told}"
    );
}

#[test]
fn what_is_wrong_is_refused_and_costs_neither_the_connection_nor_the_link() {
    let daemon = Daemon::start(&[]);
    let Some(server) = Server::start(&daemon.site) else { return };
    let (_first, told) = server.exchange("finish");
    assert_eq!((told.as_str(), server.exchange("wrong").1.as_str()), ("given error 0", "given error 0"));
    let (_second, told) = server.exchange("finish");
    assert_eq!(told, "given error 0");
    daemon.wait_for("lingering=2 senders=2 rejected=0 protocol_errors=0");
}

#[test]
fn what_is_in_memory_and_in_files_the_daemon_writes() {
    let daemon = Daemon::start(&[]);
    let Some(server) = Server::start(&daemon.site) else { return };
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let client = server.ask(&format!("rest {MUCH}"));
            assert_eq!(server.told(), "given error 0");
            client
        })
        .collect();
    daemon.wait_for("spooled=3 spooling=3 senders=1");
    clients.into_iter().for_each(|client| assert_whole(client, MUCH));
    // One that hangs is given one for which it has said so, and what it is not given is written here.
    daemon.freeze();
    let mut clients = Vec::new();
    loop {
        clients.push(server.ask("now rest 1000"));
        let told = server.told();
        if told != "given error 0" {
            assert_eq!(told, format!("kept {} error 0", libc::EAGAIN));
            break;
        }
        assert!(clients.len() < 2, "it cannot have said that it takes so many");
    }
    daemon.thaw();
    clients.into_iter().for_each(|client| assert_whole(client, 1_000));
    daemon.wait_for("spooling=0 broken=0 stalled=0 rejected=0 protocol_errors=0");
    daemon.kill();
    let client = server.ask("now rest 1000");
    let told = server.told();
    let error = told.rsplit(' ').next().unwrap();
    assert!(error != "0" && told == format!("kept {error} error {error}"), "{told}");
    assert_whole(client, 1_000);
}

#[test]
fn all_threads_hand_over_on_one_link() {
    let daemon = Daemon::start(&[]);
    let Some(server) = Server::start(&daemon.site) else { return };
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (client, told) = server.exchange("threads 50");
            assert_eq!(told, "given error 0");
            client
        })
        .collect();
    daemon.wait_for("lingering=200 senders=1");
    drop(clients);
    daemon.wait_for("lingering=0 rejected=0 protocol_errors=0");
}

#[test]
fn no_two_threads_use_a_link_at_once() {
    if !sees_races() {
        return support::not_run("the compiler has no -fsanitize=thread that works here");
    }
    let daemon = Daemon::start(&[]);
    let Some(program) = build("library-races", &["-fsanitize=thread", "-g"]) else { return };
    let mut command = Command::new(program);
    let server = Server::run(command.arg(daemon.site.socket()).env("TSAN_OPTIONS", "halt_on_error=1"));
    for _ in 0..3 {
        assert_eq!(server.exchange("threads 16").1, "given error 0");
    }
}

#[test]
fn a_child_of_fork_has_a_link_of_its_own_and_its_parent_keeps_its() {
    let daemon = Daemon::start(&[]);
    let Some(server) = Server::start(&daemon.site) else { return };
    let mut clients = Vec::new();
    // The second as one that has other things by the numbers of its parent's links, which are left alone.
    for (request, lingering) in [("finish", 1), ("fork", 2), ("daemon", 3), ("finish", 4)] {
        let (client, told) = server.exchange(request);
        assert_eq!(told, "given error 0", "{request}");
        clients.push(client);
        daemon.wait_for(&format!("lingering={lingering} senders=1"));
    }
    // All on the first link of their own, as a second one in this second would be refused.
    daemon.wait_for("handed_over=4 rejected=0 protocol_errors=0");
}

#[test]
fn a_child_that_is_made_while_a_thread_hands_over_does_not_hang() {
    let daemon = Daemon::start(&[]);
    let Some(server) = Server::start(&daemon.site) else { return };
    let (_client, told) = server.exchange("busy 200");
    assert_eq!(told, "given error 0");
}

#[test]
fn a_child_keeps_no_link_of_its_parent_whose_path_is_another_than_the_daemons() {
    let daemon = Daemon::start(&[]);
    let Some(program) = program() else { return };
    // As /var/run is where systemd listens in /run.
    let elsewhere = daemon.site.path("elsewhere");
    let socket = daemon.site.socket();
    std::os::unix::fs::symlink(socket.parent().unwrap(), &elsewhere).unwrap();
    let server = Server::run(Command::new(program).arg(elsewhere.join(socket.file_name().unwrap())));
    let mut clients = Vec::new();
    for request in ["finish", "fork", "fork"] {
        let (client, told) = server.exchange(request);
        assert_eq!(told, "given error 0", "{request}");
        clients.push(client);
    }
    daemon.wait_for("lingering=3 senders=1");
}

#[test]
fn the_handler_of_a_signal_may_make_children() {
    let daemon = Daemon::start(&[]);
    let Some(server) = Server::start(&daemon.site) else { return };
    let (_client, told) = server.exchange("signal 100");
    assert_eq!(told, "given error 0");
}
