// SPDX-License-Identifier: BSD-3-Clause

//! Apache 1.3 with aplinger.diff, and a real lingerd behind it.
//!
//! There is no package of it, so that whoever has built one says where: APACHE13_HTTPD=/path/httpd.
//! What can be tested without one is the patch: on a stand-in of the code that it changes.

use lingerd_platform::process;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use support::daemon::{Daemon, Site};
use support::http::{self, Held, exchange, get, under_load, upload};
use support::{COUNT_SOCKETS, compile, libraries, not_run, skip, sockets_can_be_counted, tcp, wait_until};

/// As many requests as show that a server is well and truly at work.
const SOME: usize = 200;

/// How many children serve.
const CHILDREN: usize = 3;

/// Starts Apache, and stops it when standard input is closed, however its owner ends. It goes into
/// the background by itself: not every release can be told not to.
const GUARDED: &str =
    "\"$0\" -f \"$1/httpd.conf\" || exit; read -r _; kill -TERM \"$(cat \"$1/httpd.pid\")\"";

/// A running Apache 1.3. Dropping it stops it, and shows its log if the test has failed.
struct Apache {
    site: Arc<Site>,
    guard: Child,
    address: SocketAddr,
}

impl Apache {
    /// Starts it with a few children that hand over to `lingerd`, and with more `lines` of
    /// configuration; `None` when there is none.
    fn start(lingerd: &Site, lines: &str) -> Option<Self> {
        let Some(httpd) = std::env::var_os("APACHE13_HTTPD").map(PathBuf::from) else {
            not_run("APACHE13_HTTPD not set");
            return None;
        };
        let site = Site::new();
        let directory = site.path("");
        for path in [directory.clone(), site.path("htdocs")] {
            fs::create_dir_all(&path).unwrap();
            fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
        }
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let root = directory.display();
        let mut conf = format!(
            "ServerType standalone\nServerRoot {root}\nServerName localhost\nListen {port}\n\
             PidFile {root}httpd.pid\nScoreBoardFile {root}scoreboard\nLockFile {root}lock\n\
             ErrorLog {root}error_log\nTypesConfig /dev/null\nResourceConfig /dev/null\n\
             AccessConfig /dev/null\nDocumentRoot {root}htdocs\nKeepAlive Off\nListenBacklog 511\n\
             StartServers {CHILDREN}\nMinSpareServers {CHILDREN}\nMaxSpareServers {CHILDREN}\n\
             MaxClients {CHILDREN}\nAddHandler cgi-script .cgi\n\
             <Directory />\nOptions ExecCGI\nAllowOverride None\n</Directory>\n"
        );
        if process::effective_uid() == 0 {
            let nobody = process::user("nobody").unwrap().expect("there is a user nobody");
            conf += &format!("User nobody\nGroup #{}\n", nobody.gid);
        }
        fs::write(site.path("httpd.conf"), conf + lines + "\n").unwrap();
        let guard = Command::new("sh")
            .args(["-c", GUARDED])
            .arg(&httpd)
            .arg(directory.to_str().unwrap().trim_end_matches('/'))
            .env("LINGERD_SOCKET", lingerd.socket())
            .process_group(0) // what ends us, a Ctrl-C for instance, is not to end the guard
            .stdin(Stdio::piped())
            .stderr(File::create(site.path("stderr")).unwrap())
            .spawn()
            .unwrap();
        let mut apache = Apache { site, guard, address: port };
        wait_until("Apache serves", || {
            apache.guard.try_wait().unwrap().is_some() || TcpStream::connect(apache.address).is_ok()
        });
        if apache.guard.try_wait().unwrap().is_some() {
            let log = apache.log();
            // The oldest ones lack a directive, and a module need not be compiled in.
            let unknown = |line: &str| {
                let name = line.strip_prefix("Invalid command '")?.split('\'').next()?;
                lines.contains(name).then(|| name.to_owned())
            };
            let unknown = log.lines().find_map(unknown);
            not_run(&format!("this Apache knows no {}", unknown.expect(&log)));
            return None;
        }
        apache.publish("small", b"hello\n");
        apache.publish("page", &tcp::response(20_000));
        Some(apache)
    }

    fn log(&self) -> String {
        ["stderr", "error_log"]
            .map(|log| fs::read_to_string(self.site.path(log)).unwrap_or_default())
            .concat()
    }

    fn publish(&self, name: &str, content: &[u8]) {
        let file = self.site.path("htdocs").join(name);
        fs::write(&file, content).unwrap();
        fs::set_permissions(file, Permissions::from_mode(0o755)).unwrap();
    }

    fn signal(&self, signal: i32) {
        let pid = fs::read_to_string(self.site.path("httpd.pid")).unwrap();
        process::kill(pid.trim().parse().unwrap(), signal).unwrap();
    }

    /// Gets `/small` for so many clients, each of which then holds its connection.
    fn hold(&self, clients: usize) -> Vec<Held> {
        let held: Vec<_> = (0..clients).map(|_| get(self.address, "/small")).collect();
        assert!(held.iter().all(|held| held.body == b"hello\n"));
        held
    }
}

impl Drop for Apache {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "Apache's log:\n{}", self.log());
        }
        // The guard does not see the end of what it has stopped.
        wait_until("Apache is gone", || TcpStream::connect(self.address).is_err());
    }
}

/// A lingerd that Apache's user can connect to, and whose clock ends nothing.
fn lingerd() -> Daemon {
    Daemon::start(&["-m", "0666"])
}

#[test]
fn more_clients_hold_than_there_are_children() {
    let lingerd = lingerd();
    let Some(apache) = Apache::start(&lingerd.site, "") else { return };
    let held = apache.hold(10 * CHILDREN);
    lingerd.wait_for(&format!("handed_over={0} lingering={0}", 10 * CHILDREN));
    drop(held);
    lingerd.wait_for("lingering=0");
    assert_eq!(lingerd.counters()["closed"], 10 * CHILDREN as u64);
}

#[test]
fn an_upload_left_unread_does_not_destroy_the_response() {
    let lingerd = lingerd();
    let Some(apache) = Apache::start(&lingerd.site, "LimitRequestBody 1000") else { return };
    let held: Vec<_> =
        (0..15).map(|_| exchange(http::connect(apache.address), &upload("/small", 3_000_000))).collect();
    for response in &held {
        assert!(response.head.contains(" 413 "), "{}", response.head);
        assert!(response.body.ends_with(b"</HTML>\n"), "{}", String::from_utf8_lossy(&response.body));
    }
    lingerd.wait_for("lingering=15 reset=0");
}

#[test]
fn a_daemon_that_is_killed_is_missed_by_nobody_and_found_again() {
    let site = Site::new();
    let lingerd = site.start(&["-m", "0666"]);
    let Some(apache) = Apache::start(&site, "") else { return };
    let held = apache.hold(1);
    lingerd.wait_for("handed_over=1");
    drop(held);
    lingerd.kill();
    for _ in 0..2 * CHILDREN {
        drop(apache.hold(1)); // a child that lingers is free again when its client has gone
    }
    let lingerd = site.start(&["-m", "0666"]);
    wait_until("connections are handed over again", || {
        let _held = apache.hold(1);
        lingerd.counters()["handed_over"] > 0
    });
}

#[test]
fn a_daemon_that_is_stopped_delays_nobody() {
    let lingerd = lingerd();
    let Some(apache) = Apache::start(&lingerd.site, "") else { return };
    let first = apache.hold(1);
    lingerd.wait_for("lingering=1");
    lingerd.freeze();
    // The end of each response comes before lingerd does anything.
    let held = apache.hold(10);
    under_load(apache.address, |wait_for_more| wait_for_more(SOME));
    lingerd.thaw();
    lingerd.wait_for("lingering=11");
    drop((first, held));
    lingerd.wait_for("lingering=0 reset=0");
}

#[test]
fn restarts_under_load_fail_no_response_and_keep_handing_over() {
    let lingerd = lingerd();
    let Some(apache) = Apache::start(&lingerd.site, "") else { return };
    under_load(apache.address, |wait_for_more| {
        wait_for_more(SOME);
        apache.signal(libc::SIGUSR1);
        wait_for_more(SOME);
    });
    // It interrupts what is being served.
    apache.signal(libc::SIGHUP);
    wait_until("all children are new", || apache.log().contains("SIGHUP received"));
    wait_until("Apache serves", || TcpStream::connect(apache.address).is_ok());
    let before = lingerd.counters()["handed_over"];
    wait_until("connections are handed over again", || {
        let _held = http::try_get(apache.address, "/small");
        lingerd.counters()["handed_over"] > before
    });
    assert!(lingerd.counters()["senders"] <= 2 * CHILDREN as u64, "old children have gone");
}

#[test]
fn children_that_end_after_some_requests_leave_their_connections_behind() {
    let lingerd = lingerd();
    let Some(apache) = Apache::start(&lingerd.site, "MaxRequestsPerChild 2") else { return };
    let held = apache.hold(30);
    lingerd.wait_for("lingering=30 reset=0");
    drop(held);
    lingerd.wait_for("closed=30 lingering=0");
}

#[test]
fn a_cgi_program_does_not_inherit_the_link() {
    let lingerd = lingerd();
    let Some(apache) = Apache::start(&lingerd.site, "") else { return };
    if !sockets_can_be_counted() {
        return;
    }
    let program = format!("#!/bin/sh\necho Content-Type: text/plain\necho\n{COUNT_SOCKETS}");
    apache.publish("count.cgi", program.as_bytes());
    // Until each child has a link.
    wait_until("each child has a link", || {
        drop(apache.hold(1));
        let _held = apache.hold(CHILDREN);
        lingerd.counters()["senders"] == CHILDREN as u64
    });
    for _ in 0..2 * CHILDREN {
        let answer = get(apache.address, "/count.cgi");
        // Apache 1.3 itself lets its client's socket be inherited; only ours may not be added.
        assert_eq!(String::from_utf8_lossy(&answer.body), "sockets=0\n");
    }
}

#[test]
fn the_status_page_counts_where_it_has_been_patched() {
    let lingerd = lingerd();
    let lines = "ExtendedStatus On\n<Location /status>\nSetHandler server-status\n</Location>";
    let Some(apache) = Apache::start(&lingerd.site, lines) else { return };
    let counted = || {
        let page = String::from_utf8(get(apache.address, "/status?auto").body).unwrap();
        page.lines().find_map(|line| line.strip_prefix("Lingerd: ")?.parse::<u64>().ok())
    };
    let Some(before) = counted() else {
        return not_run("this Apache has no mod_status with apstatus.diff");
    };
    let _held = apache.hold(5);
    lingerd.wait_for("lingering=5");
    assert!(counted().unwrap() >= before + 5);
}

// ---- The patch ------------------------------------------------------------------------------

/// Applies the patches, in this order, to a copy of the stand-in, and returns where that is; `None`
/// when the test is to be skipped.
fn patched(site: &Site, patches: &[&str]) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let src = site.path("src");
    for directory in ["main", "include", "modules/standard"] {
        fs::create_dir_all(src.join(directory)).unwrap();
        let from = root.join("tests/apache-1.3/src").join(directory);
        for file in fs::read_dir(from).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), src.join(directory).join(file.file_name())).unwrap();
        }
    }
    for file in ["ap_lingerd.c", "ap_lingerd.h"] {
        fs::copy(root.join("apache-1.3").join(file), src.join("main").join(file)).unwrap();
    }
    for patch in patches {
        if Command::new("patch").arg("--version").output().is_err() {
            skip("there is no patch(1)");
            return None;
        }
        let diff = File::open(root.join("apache-1.3").join(patch)).unwrap();
        // Not through run(), which leaves standard input empty.
        let output = Command::new("patch").args(["-p0", "-d"]).arg(&src).stdin(diff).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{patch}: {said}");
        assert!(!said.contains("fuzz") && !said.contains("FAILED"), "{patch}: {said}");
    }
    Some(src)
}

#[test]
fn the_patches_apply_in_either_order() {
    let (one, other) = (Site::new(), Site::new());
    let Some(src) = patched(&one, &["aplinger.diff", "apstatus.diff"]) else { return };
    let Some(same) = patched(&other, &["apstatus.diff", "aplinger.diff"]) else { return };
    for file in
        ["main/http_main.c", "main/Makefile.tmpl", "include/scoreboard.h", "modules/standard/mod_status.c"]
    {
        let text = fs::read_to_string(src.join(file)).unwrap();
        assert_eq!(text, fs::read_to_string(same.join(file)).unwrap());
        let before = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/apache-1.3/src").join(file);
        assert_ne!(text, fs::read_to_string(before).unwrap(), "{file}");
    }
    assert!(fs::read_to_string(src.join("main/Makefile.tmpl")).unwrap().contains("ap_lingerd.o"));
}

#[test]
fn the_patched_code_compiles_and_hands_over() {
    let lingerd = lingerd();
    let site = Site::new();
    let Some(src) = patched(&site, &["aplinger.diff", "apstatus.diff"]) else { return };
    let options = ["-Dconnect=watched_connect".into(), "-I".into(), src.join("include")];
    let code =
        ["main/http_main.c", "main/ap_lingerd.c", "modules/standard/mod_status.c"].map(|c| src.join(c));
    let arguments: Vec<PathBuf> =
        options.into_iter().chain(code).chain(libraries().iter().map(PathBuf::from)).collect();
    let Some(program) = compile("httpd", &arguments) else { return };
    let socket = lingerd.site.socket();
    let (client, server) = tcp::connection();
    // The stand-in closes standard input as Apache closes a connection, and says how it went.
    let serve = |server: TcpStream| {
        let output = Command::new(&program)
            .env("LINGERD_SOCKET", &socket)
            .stdin(std::os::fd::OwnedFd::from(server))
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let said = |how: &str, counted: u32| {
        format!("{how}, all as before\nBusyServers: 3\nIdleServers: 2\nLingerd: {counted}\n\n")
    };
    assert_eq!(serve(server), said("closed", 1));
    lingerd.wait_for("lingering=1");
    drop(client);
    lingerd.wait_for("closed=1");
    // One whose client is done is closed and not counted.
    let (client, server) = tcp::connection();
    drop(client);
    tcp::wait_until_readable(&server);
    assert_eq!(serve(server), said("closed", 0));
    lingerd.wait_for("handed_over=1");
    // And without a lingerd Apache lingers.
    lingerd.kill();
    let (_client, server) = tcp::connection();
    assert_eq!(serve(server), said("lingered", 0));
}
