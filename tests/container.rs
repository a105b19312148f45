// SPDX-License-Identifier: BSD-3-Clause

//! lingerd in containers: as process 1, with a root that is read-only, a user that nobody knows, no
//! capability, no network, no syslog and few descriptors; and its senders in others. What makes a container is Linux's, so
//! that neither an image nor an engine is needed.

#![cfg(target_os = "linux")]

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::ops::Deref;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use support::daemon::{Daemon, Site, lingerd, run};
use support::{built, compile, is_root, libraries, skip, tcp, wait_until};

/// Whom lingerd runs as; the user and the group are in no database in there.
const UID: u32 = 65_532;
const GID: u32 = 33;

/// Begins a container: process, mount and IPC namespaces of its own. What is in it ends with this command.
fn unshare() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--ipc", "--fork", "--kill-child", "sh", "-ec"]);
    command
}

#[test]
fn the_image_is_built_of_the_whole_workspace() {
    // Cargo wants to see each member, whatever it builds.
    let read = |path| fs::read_to_string(built::project().join(path)).unwrap();
    let (manifest, containerfile) = (read("Cargo.toml"), read("platform/container/Containerfile"));
    let members = manifest.lines().find_map(|line| line.strip_prefix("members = [")).expect("members");
    let members: Vec<_> = members.split('"').skip(1).step_by(2).collect();
    assert!(members.contains(&"platform"), "{members:?}");
    for member in members {
        let is_copied = containerfile
            .lines()
            .filter_map(|line| line.strip_prefix("COPY ")?.split(' ').next())
            .any(|from| Path::new(member).starts_with(from));
        assert!(is_copied, "{member} is not copied");
    }
}

/// Whether there can be containers here; a test for which there cannot returns at once.
fn there_are_containers() -> bool {
    if !is_root() {
        return false;
    }
    let tried = unshare().arg("test $$ = 1; mount -t tmpfs none /mnt").output();
    let works = tried.is_ok_and(|output| output.status.success());
    if !works {
        skip("unshare cannot make namespaces here");
    }
    works
}

/// From the image on: its root, read-only, the volume at /run/lingerd, and lingerd with its options. The limits are
/// those of 'docker run --read-only --user 65532:33 --cap-drop ALL --security-opt no-new-privileges --network none
/// --ulimit nofile=N', but that three capabilities are still to be had until the root and the user are changed.
const START: &str = r#"
root=$0 volume=$1 nofile=$2
shift 2
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount --bind "$volume" "$root/run/lingerd"
mount -t proc proc "$root/proc"
exec unshare --net prlimit --nofile="$nofile:$nofile" \
    setpriv --no-new-privs --bounding-set=-all,+sys_chroot,+setuid,+setgid \
    chroot --userspec=65532:33 --groups= "$root" /lingerd -f "$@"
"#;

/// Makes an image at `site`: lingerd and the libraries that it takes, and nothing else. And the volume, which
/// belongs to lingerd's user, for the directory of the socket.
fn make_image(site: &Site) {
    let root = site.path("image");
    let lingerd = site.program_for_all();
    let libraries = run(Command::new("ldd").arg(&lingerd)).stdout;
    for directory in ["run/lingerd", "proc"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    let put = |from: &Path, to: &Path| {
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        assert_eq!(run(Command::new("cp").arg(from).arg(to)).code, Some(0));
    };
    put(&lingerd, &root.join("lingerd"));
    for word in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        put(Path::new(word), &root.join(word.trim_start_matches('/')));
    }
    let volume = site.path("run");
    fs::create_dir(&volume).unwrap();
    chown(&volume, Some(UID), Some(GID)).unwrap();
    fs::set_permissions(volume, Permissions::from_mode(0o755)).unwrap();
}

/// A site whose lingerd must not outlive the test: one that has changed its user does not end with 'unshare'.
struct Place(Arc<Site>);

impl Deref for Place {
    type Target = Arc<Site>;

    fn deref(&self) -> &Arc<Site> {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        while run(lingerd().args(["-k", "-s"]).arg(self.0.socket())).code == Some(0) {}
    }
}

/// A place with an image and a volume, or `None` when the test is to be skipped.
fn place() -> Option<Place> {
    there_are_containers().then(|| {
        let site = Site::new();
        make_image(&site);
        Place(site)
    })
}

/// Starts lingerd in a container of its own. Where a test does not say otherwise its clock ends nothing.
fn start(site: &Arc<Site>, options: &[&str]) -> Daemon {
    start_limited(site, "1024", options)
}

/// The container of lingerd, with so many descriptors, and no option but -f.
fn container(site: &Site, nofile: &str) -> Command {
    let mut command = unshare();
    command.arg(START).arg(site.path("image")).arg(site.path("run")).arg(nofile);
    command
}

/// The same as [`start`], with so many descriptors.
fn start_limited(site: &Arc<Site>, nofile: &str, options: &[&str]) -> Daemon {
    let mut command = container(site, nofile);
    command.args(["-s", "/run/lingerd/lingerd.sock"]).args(options);
    for long in [["-t", "1000"], ["-T", "2000"], ["-D", "4000"], ["-W", "3000"]] {
        if !options.contains(&long[0]) {
            command.args(long);
        }
    }
    let mut daemon = Daemon::spawn(site, &mut command);
    let inside = run(Command::new("ps").args(["-o", "pid=", "--ppid", &daemon.pid.to_string()]));
    daemon.pid = inside.stdout.trim().parse().unwrap();
    daemon
}

/// A line of /proc/PID/status.
fn status(pid: i32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A server in C with the sender of lingerd's, in a container of its own.
struct Server {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    port: u16,
}

impl Server {
    /// Starts it with `from` mounted at `to`, and the hand-off socket at `socket`.
    fn start(program: &Path, from: &Path, to: &Path, socket: &Path) -> Self {
        let script = r#"mount --bind "$1" "$2"; exec setpriv --pdeathsig keep --reuid 33 --regid 33 --clear-groups "$0" "$3""#;
        let mut command = unshare();
        command.arg(script).args([program, from, to, socket]).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let port = lines.next().expect("it says its port").unwrap().parse().unwrap();
        Server { process, lines, port }
    }

    /// Serves a client, which then holds its connection, and says what became of that. With the request "later"
    /// it is a second later to the sender, which looks again if it has no link.
    fn serve(&mut self, request: &str) -> (TcpStream, String) {
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        client.set_read_timeout(Some(support::PATIENCE)).unwrap();
        writeln!(client, "{request}").unwrap();
        client.read_exact(&mut [0; 3]).unwrap();
        let line = self.lines.next().unwrap().unwrap();
        (client, line.split(' ').next().unwrap().to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

// ---- lingerd as process 1 -------------------------------------------------------------------

#[test]
fn with_nothing_but_a_directory_it_serves_drains_and_ends_when_it_is_told_to() {
    let Some(site) = place() else { return };
    let daemon = start(&site, &[]);
    assert_eq!(status(daemon.pid, "NSpid"), format!("{} 1", daemon.pid));
    assert_eq!(status(daemon.pid, "Uid"), [UID.to_string().as_str(); 4].join(" "));
    assert_eq!(
        (status(daemon.pid, "CapEff").as_str(), status(daemon.pid, "NoNewPrivs").as_str()),
        ("0000000000000000", "1")
    );
    let mounts = fs::read_to_string(format!("/proc/{}/mounts", daemon.pid)).unwrap();
    let root: Vec<_> = mounts.lines().filter(|line| line.split(' ').nth(1) == Some("/")).collect();
    assert!(root.last().unwrap().split(' ').nth(3).unwrap().starts_with("ro,"), "{root:?}");
    let sender = daemon.sender();
    let (client, server) = tcp::connection();
    sender.hand_over(server);
    daemon.wait_for("lingering=1 senders=1");
    // To process 1 the kernel delivers no signal that it does not handle.
    daemon.signal(libc::SIGTERM);
    daemon.wait_for_log("told to stop: 1 connections");
    drop(client);
    let last = daemon.wait_for_good_end();
    assert_eq!((last["closed"], last["stopped"]), (1, 0));
    assert!(!site.log().contains("warning"), "{}", site.log());
}

#[test]
fn it_ends_before_the_engine_loses_patience() {
    let Some(site) = place() else { return };
    let daemon = start(&site, &["-W", "1"]);
    let (_client, server) = tcp::connection();
    daemon.sender().hand_over(server);
    daemon.wait_for("lingering=1");
    daemon.signal(libc::SIGTERM);
    assert_eq!(daemon.wait_for_good_end()["stopped"], 1);
}

#[test]
fn sixty_four_descriptors_are_enough_to_serve_with() {
    let Some(site) = place() else { return };
    let daemon = start_limited(&site, "64", &[]);
    let sender = daemon.sender();
    let clients: Vec<_> = (0..100)
        .map(|_| {
            let (client, server) = tcp::connection();
            sender.hand_over(server);
            client
        })
        .collect();
    daemon.wait_for("handed_over=100 senders=1 closed=0 reset=0 protocol_errors=0");
    let counters = daemon.counters();
    assert!((1..64).contains(&counters["lingering"]) && counters["evicted"] > 0, "{counters:?}");
    drop(clients);
    daemon.wait_for("lingering=0");
    daemon.signal(libc::SIGTERM);
    daemon.wait_for_good_end();
}

#[test]
fn in_a_directory_that_everybody_may_write_to_it_makes_one_of_its_own() {
    let Some(site) = place() else { return };
    // As an emptyDir of Kubernetes is, with an fsGroup and without.
    let volume = site.path("run");
    chown(&volume, Some(0), Some(GID)).unwrap();
    for mode in [0o777, 0o2777] {
        fs::set_permissions(&volume, Permissions::from_mode(mode)).unwrap();
        let refused = run(container(&site, "1024").args(["-s", "/run/lingerd/lingerd.sock"]));
        refused.assert_failed(1, "/run/lingerd: no safe directory");
        let command = &mut container(&site, "1024");
        command.args(["-s", "/run/lingerd/own/lingerd.sock"]).stderr(Stdio::piped());
        let mut daemon = command.spawn().unwrap();
        let socket = site.path("run/own/lingerd.sock");
        let tell = |options: &[&str]| run(lingerd().args(options).arg("-s").arg(&socket)).code == Some(0);
        wait_until("it serves", || tell(&["-S"]) || daemon.try_wait().unwrap().is_some());
        assert!(tell(&["-k", "-w"]));
        let ended = daemon.wait_with_output().unwrap();
        assert!(ended.status.success(), "{ended:?}");
    }
}

#[test]
fn it_is_told_to_stop_and_asked_from_another_container() {
    let Some(site) = place() else { return };
    let daemon = start(&site, &[]);
    let mut other = unshare();
    let say = r#"mount --bind "$1" /mnt; "$0" -S -s /mnt/lingerd.sock; "$0" -k -w -s /mnt/lingerd.sock"#;
    let told = run(other.arg(say).arg(site.program_for_all()).arg(site.path("run")));
    assert_eq!(told.code, Some(0), "{told:?}");
    assert!(told.stdout.contains("handed_over") && told.stdout.ends_with("lingerd has ended\n"), "{told:?}");
    daemon.wait_for_good_end();
}

#[test]
fn one_in_another_container_takes_over_from_it() {
    let Some(site) = place() else { return };
    let mut before = start(&site, &[]);
    let sender = before.sender();
    let (client, server) = tcp::connection();
    sender.hand_over(server);
    before.wait_for("lingering=1");
    // Of the file there is nothing to be seen in there.
    let content = site.path("content");
    fs::write(&content, vec![7; 8 << 20]).unwrap();
    let (mut slow, server) = tcp::connection_with_small_window(4096);
    let all = (&File::open(content).unwrap(), 0, 8 << 20, false);
    before.spooler().spool(server, &[all], Duration::from_secs(1_000));
    before.wait_for("lingering=1 spooling=1");
    let after = start(&site, &["-r"]);
    assert_eq!(before.wait_for_end(), Some(0));
    assert_eq!(status(after.pid, "NSpid"), format!("{} 1", after.pid));
    let (another, server) = tcp::connection();
    sender.hand_over(server);
    after.wait_for("lingering=2 spooling=1 handed_over=3 senders=1");
    let mut response = Vec::new();
    slow.read_to_end(&mut response).expect("the response is cut off");
    assert!(response == vec![7; 8 << 20], "another response, of {} bytes", response.len());
    drop((client, another, slow));
    after.wait_for("closed=3");
    after.signal(libc::SIGTERM);
    after.wait_for_good_end();
}

// ---- Its senders in others ------------------------------------------------------------------

#[test]
fn a_sender_in_another_container_finds_the_next_lingerd_by_the_directory_and_not_by_the_socket() {
    let Some(site) = place() else { return };
    let faulty =
        "-Dsendmsg=faulty_sendmsg -Dconnect=faulty_connect -Dtime=faulty_time -c apache-1.3/ap_lingerd.c";
    let Some(sender) = compile("container-sender.o", &faulty.split(' ').collect::<Vec<_>>()) else { return };
    let sources = [&["tests/sender/server.c", sender.to_str().unwrap()], libraries()].concat();
    let Some(built) = compile("container-server", &sources) else { return };
    let program = site.path("server"); // which everybody can run
    assert_eq!(run(Command::new("cp").arg(built).arg(&program)).code, Some(0));
    let daemon = start(&site, &[]);
    let (there, file) = (site.path("there"), site.path("file.sock"));
    fs::create_dir(&there).unwrap();
    fs::write(&file, "").unwrap();
    let mut right = Server::start(&program, &site.path("run"), &there, &there.join("lingerd.sock"));
    let mut wrong = Server::start(&program, &site.socket(), &file, &file);
    let mut both = |request: &str| [&mut right, &mut wrong].map(|server| server.serve(request));
    let told = |served: &[(TcpStream, String); 2]| [served[0].1.clone(), served[1].1.clone()];
    let first = both("hello");
    assert_eq!(told(&first), ["given", "given"]);
    daemon.wait_for("lingering=2 senders=2 refused=0");
    daemon.kill();
    assert_eq!(told(&both("hello")), ["kept", "kept"]);
    let daemon = start(&site, &[]);
    assert_eq!(told(&both("later")), ["given", "kept"]);
    daemon.wait_for("handed_over=1 senders=1");
}
