// SPDX-License-Identifier: BSD-3-Clause

//! lingerd.gunicorn's workers, in the newest gunicorn and in the oldest that they are for.
//!
//! Whoever holds a connection here holds it until the test lets go, so that a worker which lingered itself
//! would serve nobody else, or would have given up and be seen to by what lingerd counts.

use lingerd_platform::process;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use support::apache::make_certificate;
use support::daemon::{Daemon, Site};
use support::http::{self, Held, exchange, exchange_tls, get, record, request, under_load, upload};
use support::{PATIENCE, built, eventually, skip, tcp, wait_until};

/// The workers.
const SYNC: &str = "lingerd.gunicorn.SyncWorker";
const THREADS: &str = "lingerd.gunicorn.ThreadWorker";

/// More clients than there are workers and threads.
const MANY: usize = 20;

/// More messages than are on their way on one link, on any system.
const MORE_THAN_A_LINK_HOLDS: usize = 300;

/// Runs a test with each worker in each gunicorn that is there; those that are missing are skipped.
fn each(test: impl Fn(&Gunicorn)) {
    for name in ["gunicorn", "gunicorn-oldest"] {
        let environment = built::project().join("target").join(name);
        if !environment.join("bin/gunicorn").exists() {
            skip(&format!("there is no {} ('sh ci/packages check' gets it)", environment.display()));
            continue;
        }
        for worker in [SYNC, THREADS] {
            eprintln!("{name}, {worker}");
            test(&Gunicorn { environment: environment.clone(), worker });
        }
    }
}

/// One that can be started.
struct Gunicorn {
    environment: PathBuf,
    worker: &'static str,
}

impl Gunicorn {
    fn start(&self, site: &Arc<Site>, options: &[&str]) -> Running {
        self.start_at(site, "127.0.0.1:0", options)
    }

    fn start_at(&self, site: &Arc<Site>, bind: &str, options: &[&str]) -> Running {
        let project = built::project();
        let log = fs::File::options().append(true).create(true).open(site.path("gunicorn.log")).unwrap();
        let child = Command::new(self.environment.join("bin/gunicorn"))
            .current_dir(site.path(""))
            .env("PYTHONPATH", project.join("senders/python/src"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            // Newer ones have a control socket there.
            .env("HOME", site.path(""))
            .arg("--chdir")
            .arg(project.join("tests/python"))
            .args(["-k", self.worker, "-b", bind, "--graceful-timeout", "600", "--timeout", "600"])
            .arg("-p")
            .arg(site.path("gunicorn.pid"))
            .arg("-e")
            .arg(format!("LINGERD_SOCKET={}", site.socket().display()))
            .args(options)
            .arg("app:app")
            // In a group of its own, with its workers and whoever takes over from it.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut running = Running { site: Arc::clone(site), child, address: ([127, 0, 0, 1], 0).into() };
        let listening = eventually(|| {
            let ended = running.child.try_wait().unwrap();
            assert!(ended.is_none(), "gunicorn has ended: {}", running.log());
            let log = running.log();
            let said = log.lines().find_map(|line| line.split_once("Listening at: "));
            Ok::<_, String>(said.ok_or("gunicorn does not listen")?.1.to_owned())
        });
        let place = listening.split_whitespace().next().unwrap();
        if let Some(address) = place.split("://").nth(1) {
            running.address = address.parse().unwrap();
        }
        running
    }

    /// Whether it can do TLS: that of the oldest needs what Python 3.12 has no more.
    fn has_tls(&self) -> bool {
        let check =
            "import ssl, gunicorn as g; exit(g.version_info < (21,) and not hasattr(ssl, 'wrap_socket'))";
        let python = Command::new(self.environment.join("bin/python")).args(["-c", check]).status();
        python.unwrap().success()
    }
}

/// One that serves. Dropping it kills it, and shows its log if the test has failed.
struct Running {
    site: Arc<Site>,
    child: Child,
    address: SocketAddr,
}

impl Running {
    fn log(&self) -> String {
        fs::read_to_string(self.site.path("gunicorn.log")).unwrap_or_default()
    }

    fn page(&self) -> Held {
        let held = get(self.address, "/page");
        assert!(held.body == tcp::response(20_000));
        held
    }

    /// A client that gets all, and leaves: whoever lingers on it has nothing to wait for.
    fn leaving(&self) {
        self.page().socket.shutdown(Shutdown::Write).unwrap();
    }

    /// Waits until a daemon that has just come has been found, which takes a second at most.
    fn wait_until_found(&self, daemon: &Daemon) {
        wait_until("the daemon is found", || {
            self.leaving();
            daemon.counters()["handed_over"] > 0
        });
    }

    /// Which worker serves.
    fn worker(&self) -> String {
        String::from_utf8(get(self.address, "/pid").body).unwrap()
    }

    fn signal(&self, signal: i32) {
        process::kill(self.child.id() as i32, signal).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = process::kill(-(self.child.id() as i32), libc::SIGKILL);
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        let _ = fs::remove_file(self.site.path("gunicorn.log"));
    }
}

#[test]
fn one_worker_serves_any_number_of_clients_that_hold_their_socket() {
    each(|gunicorn| {
        let lingerd = Daemon::start(&[]);
        let server = gunicorn.start(&lingerd.site, &[]);
        let held: Vec<_> = (0..MANY).map(|_| server.page()).collect();
        lingerd.wait_for(&format!("lingering={MANY} senders=1"));
        drop(held);
        lingerd.wait_for(&format!("lingering=0 closed={MANY} reset=0 rejected=0 protocol_errors=0"));
    });
}

/// A client that asks, reads nothing yet, and has room for little.
fn slow(server: &Running, path: &str) -> TcpStream {
    let mut client = http::connect_with_small_window(server.address, 4096);
    client.write_all(request(path).as_bytes()).unwrap();
    client
}

#[test]
fn one_sync_worker_serves_any_number_of_slow_readers() {
    each(|gunicorn| {
        if gunicorn.worker != SYNC {
            return;
        }
        let lingerd = Daemon::start(&[]);
        let server = gunicorn.start(&lingerd.site, &[]);
        let mut paths = vec!["/big"; 5];
        // Of the oldest gunicorn a file is sent from its beginning, wherever it stands.
        if !gunicorn.environment.ends_with("gunicorn-oldest") {
            paths.extend(["/file"; 5]);
        }
        let mut clients: Vec<_> = paths.iter().map(|path| slow(&server, path)).collect();
        lingerd.wait_for(&format!("spooling={}", clients.len()));
        server.page();
        let page = tcp::response(5_000_000);
        for client in &mut clients {
            assert!(tcp::read_to_end(client).ends_with(&page));
        }
        let all = clients.len();
        lingerd.wait_for(&format!("spooling=0 lingering={all} spooled={all} rejected=0 protocol_errors=0"));
    });
}

#[test]
fn what_is_still_being_made_and_all_without_lingerd_the_worker_writes_itself() {
    each(|gunicorn| {
        let lingerd = Daemon::start(&[]);
        let server = gunicorn.start(&lingerd.site, &[]);
        let page = tcp::response(5_000_000);
        assert!(tcp::read_to_end(&mut slow(&server, "/pieces")).ends_with(&page));
        lingerd.wait_for("spooled=0 spooling=0");
        lingerd.kill();
        assert!(tcp::read_to_end(&mut slow(&server, "/big")).ends_with(&page));
    });
}

#[test]
fn an_upload_that_nobody_reads_does_not_destroy_the_response() {
    each(|gunicorn| {
        let lingerd = Daemon::start(&[]);
        let server = gunicorn.start(&lingerd.site, &[]);
        for _ in 0..5 {
            let held = exchange(http::connect(server.address), &upload("/page", 60_000));
            assert!(held.body == tcp::response(20_000));
        }
        lingerd.wait_for("handed_over=5 reset=0");
    });
}

#[test]
fn a_daemon_may_come_and_stand_still_and_go() {
    each(|gunicorn| {
        let site = Site::new();
        let server = gunicorn.start(&site, &[]);

        // Without one gunicorn does what it would do.
        server.leaving();

        let lingerd = site.start(&[]);
        server.wait_until_found(&lingerd);

        // One that stands still has queued what there is room for, and holds nobody up.
        lingerd.freeze();
        (0..MORE_THAN_A_LINK_HOLDS).for_each(|_| server.leaving());
        lingerd.thaw();
        let before = lingerd.counters()["handed_over"];
        wait_until("there is room again", || {
            server.leaving();
            lingerd.counters()["handed_over"] > before
        });

        // One that is killed, and another one in its place.
        lingerd.kill();
        server.leaving();
        let lingerd = site.start(&[]);
        server.wait_until_found(&lingerd);
        let held = server.page();
        lingerd.wait_for("lingering=1 senders=1 rejected=0 protocol_errors=0");
        drop(held);
    });
}

#[test]
fn the_end_of_tls_is_said_before_the_connection_is_handed_over() {
    each(|gunicorn| {
        if !gunicorn.has_tls() {
            return skip("gunicorn 20.1.0 has TLS with Python 3.11 or older only");
        }
        let lingerd = Daemon::start(&[]);
        make_certificate(&lingerd.site).unwrap();
        let [key, certificate] =
            ["key.pem", "cert.pem"].map(|name| lingerd.site.path(name).display().to_string());
        let server = gunicorn.start(&lingerd.site, &["--keyfile", &key, "--certfile", &certificate]);
        let held: Vec<_> = (0..5)
            .map(|_| exchange_tls(server.address, &["-tls1_2"], request("/page").as_bytes(), 0))
            .collect();
        for tls in &held {
            assert!(tls.held.body == tcp::response(20_000));
            assert_eq!(tls.records[tls.records.len() - 2..], [record::APPLICATION_DATA, record::ALERT]);
        }
        let newest = exchange_tls(server.address, &[], request("/page").as_bytes(), 0);
        assert!(newest.held.body == tcp::response(20_000));
        lingerd.wait_for("lingering=6 senders=1");
    });
}

#[test]
fn a_worker_that_has_served_enough_leaves_its_clients_to_lingerd() {
    each(|gunicorn| {
        let lingerd = Daemon::start(&[]);
        let server = gunicorn.start(&lingerd.site, &["--max-requests", "15"]);
        let held: Vec<_> = (0..MANY).map(|_| server.page()).collect();
        lingerd.wait_for(&format!("lingering={MANY} rejected=0 protocol_errors=0"));
        assert!(server.log().contains("Autorestarting worker"), "{}", server.log());
        drop(held);
        lingerd.wait_for(&format!("closed={MANY} reset=0"));
    });
}

#[test]
fn workers_are_replaced_at_sighup_and_nobody_notices() {
    each(|gunicorn| {
        let lingerd = Daemon::start(&[]);
        let server = gunicorn.start(&lingerd.site, &["-w", "2"]);
        let held = server.page();
        let before = [server.worker(), server.worker(), server.worker()];
        under_load(server.address, |wait_for_more| {
            for _ in 0..2 {
                wait_for_more(20);
                server.signal(libc::SIGHUP);
            }
            wait_for_more(20);
        });
        wait_until("other workers serve", || !before.contains(&server.worker()));
        let handed_over = lingerd.counters()["handed_over"];
        let after = server.page();
        wait_until("they hand over, too", || lingerd.counters()["handed_over"] > handed_over);
        drop((held, after));
        lingerd.wait_for("lingering=0 rejected=0 protocol_errors=0");
    });
}

#[test]
fn the_master_that_takes_over_at_sigusr2_hands_over_too() {
    each(|gunicorn| {
        let lingerd = Daemon::start(&[]);
        let server = gunicorn.start(&lingerd.site, &[]);
        let held = server.page();
        let old = server.worker();
        server.signal(libc::SIGUSR2);
        wait_until("both serve", || server.worker() != old);
        // The old one waits for its workers, and these for nobody: the client is lingerd's. SIGQUIT would cut off whom they serve
        // just then.
        server.signal(libc::SIGTERM);
        wait_until("only the new one serves", || (0..10).all(|_| server.worker() != old));
        let handed_over = lingerd.counters()["handed_over"];
        let after = server.page();
        wait_until("it hands over", || lingerd.counters()["handed_over"] > handed_over);
        drop((held, after));
        lingerd.wait_for("lingering=0 rejected=0 protocol_errors=0");
    });
}

#[test]
fn what_is_not_tcp_is_not_handed_over() {
    each(|gunicorn| {
        let lingerd = Daemon::start(&[]);
        let path = lingerd.site.path("http.sock");
        let _server = gunicorn.start_at(&lingerd.site, &format!("unix:{}", path.display()), &[]);
        let response = ask_at(&path);
        assert!(response.ends_with(&tcp::response(20_000)), "{} bytes", response.len());
        lingerd.finish("handed_over=0");
    });
}

/// The whole response at a Unix socket.
fn ask_at(path: &Path) -> Vec<u8> {
    let mut client = UnixStream::connect(path).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(request("/page").as_bytes()).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut response = Vec::new();
    client.read_to_end(&mut response).unwrap();
    response
}

#[test]
fn a_socket_that_cannot_be_is_said_in_the_log() {
    each(|gunicorn| {
        let site = Site::new();
        let long = format!("LINGERD_SOCKET=/{}", "x".repeat(200));
        let server = gunicorn.start(&site, &["-e", &long]);
        server.leaving();
        assert!(server.log().contains("workers linger themselves"), "{}", server.log());
    });
}
