// SPDX-License-Identifier: BSD-3-Clause

//! lingerd.gunicorn's workers, in the newest gunicorn and in the oldest that they are for.
//!
//! Whoever holds a connection here holds it until the test lets go, so that a worker which lingered itself
//! would serve nobody else, or would have given up and be seen to by what lingerd counts.

use comparisons::gunicorn::Worker;
use comparisons::torture::answer::{Answer, Expected};
use comparisons::torture::client::Outcome;
use comparisons::torture::{cases, run_all, with_addresses};
use lingerd_platform::tcp::TELLS_ACKNOWLEDGED;
use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use support::apache::make_certificate;
use support::daemon::{Daemon, Site};
use support::http::{self, exchange, exchange_tls, record, request, under_load, upload};
use support::server::{Leaving, MANY, Running, hands_over_tcp_alone};
use support::{built, eventually, not_run, skip, tcp, wait_until};

/// The workers.
const SYNC: &str = "lingerd.gunicorn.SyncWorker";
const THREADS: &str = "lingerd.gunicorn.ThreadWorker";

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
        let (address, log) = (([127, 0, 0, 1], 0).into(), site.path("gunicorn.log"));
        let mut running = Running::new(child, address, log, Leaving::IsNotReset);
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

#[test]
fn one_worker_serves_any_number_of_clients_that_hold_their_socket() {
    each(|gunicorn| {
        let lingerd = Daemon::start(&[]);
        let server = gunicorn.start(&lingerd.site, &[]);
        server.serves_many(&lingerd);
    });
}

/// A request of HTTP/1.1, with these fields.
fn request_1_1(method: &str, path: &str, fields: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n")
}

/// That the response is whole, of 5 MB, and is the right one, to the end of the stream.
fn assert_whole(client: &TcpStream) {
    let mut answer = Answer::new(Expected { status: 200, content: Some(5_000_000) });
    let bytes = tcp::read_to_end(&mut client.try_clone().unwrap());
    answer.feed(&bytes);
    assert_eq!(answer.wrong(), None);
    assert!(answer.may_end_here(), "{} bytes", bytes.len());
}

const CLOSE: &str = "Connection: close\r\n";

#[test]
fn one_worker_serves_any_number_of_slow_readers() {
    each(|gunicorn| {
        let lingerd = Daemon::start(&[]);
        let server = gunicorn.start(&lingerd.site, &[]);
        let mut paths = vec!["/big", "/list"];
        // Of the oldest gunicorn a file is sent from its beginning, wherever it stands.
        if !gunicorn.environment.ends_with("gunicorn-oldest") {
            paths.extend(["/file", "/file-without-length"]);
        }
        // Of HTTP/1.1 what does not say its length is in chunks, and of 1.0 it ends with the stream.
        let requests = paths.iter().flat_map(|path| [request(path), request_1_1("GET", path, CLOSE)]);
        let clients: Vec<_> = requests.map(|request| server.slow(&request)).collect();
        lingerd.wait_for(&format!("spooling={}", clients.len()));
        server.page();
        clients.iter().for_each(assert_whole);
        let all = clients.len();
        lingerd.wait_for(&format!("spooling=0 lingering={all} spooled={all} rejected=0 protocol_errors=0"));
    });
}

#[test]
fn a_slow_reader_whose_connection_is_kept_stays_with_its_thread() {
    each(|gunicorn| {
        if gunicorn.worker != THREADS {
            return;
        }
        let lingerd = Daemon::start(&[]);
        let server = gunicorn.start(&lingerd.site, &["--keep-alive", "600"]);
        let mut client = server.slow(&request_1_1("GET", "/big", ""));
        for _ in 0..2 {
            let (_, body) = http::read_one(&mut client);
            assert!(body == tcp::response(5_000_000));
            client.write_all(request_1_1("GET", "/big", "").as_bytes()).unwrap();
        }
        let (head, body) = http::read_one(&mut client);
        assert!(head.contains("\r\nConnection: keep-alive\r\n"), "{head}");
        assert!(body == tcp::response(5_000_000));
        // And the last one goes.
        client.write_all(request_1_1("GET", "/big", CLOSE).as_bytes()).unwrap();
        lingerd.wait_for("spooling=1 handed_over=1");
        assert_whole(&client);
    });
}

#[test]
fn a_connection_that_was_kept_for_long_enough_is_handed_over() {
    each(|gunicorn| {
        if gunicorn.worker != THREADS {
            return;
        }
        let lingerd = Daemon::start(&[]);
        let server = gunicorn.start(&lingerd.site, &["--keep-alive", "1"]);
        let mut client = http::connect(server.address);
        client.write_all(request_1_1("GET", "/page", "").as_bytes()).unwrap();
        http::read_one(&mut client);
        lingerd.wait_for("lingering=1");
        assert_eq!(tcp::read_to_end(&mut client), b"");
    });
}

#[test]
fn what_the_application_gives_up_does_not_look_whole() {
    each(|gunicorn| {
        let lingerd = Daemon::start(&[]);
        let server = gunicorn.start(&lingerd.site, &[]);
        for path in ["/fails", "/fails-in-chunks"] {
            let mut client = server.slow(&request_1_1("GET", path, CLOSE));
            let mut answer = Answer::new(Expected { status: 200, content: Some(5_000_000) });
            answer.feed(&tcp::read_to_end(&mut client));
            assert_eq!(answer.wrong(), None);
            assert!(!answer.may_end_here());
        }
        assert_eq!(server.log().matches("RuntimeError: to be seen").count(), 2, "{}", server.log());
        server.page();
        lingerd.wait_for("spooled=0 rejected=0 protocol_errors=0");
    });
}

#[test]
fn heads_and_uploads_are_answered_as_ever() {
    each(|gunicorn| {
        let lingerd = Daemon::start(&[]);
        let server = gunicorn.start(&lingerd.site, &[]);
        let mut client = http::connect(server.address);
        client.write_all(request_1_1("HEAD", "/page", CLOSE).as_bytes()).unwrap();
        let mut bytes = tcp::read_to_end(&mut client);
        // The oldest says more than it should.
        if gunicorn.environment.ends_with("gunicorn-oldest") {
            bytes.truncate(bytes.len() - 20_000);
        }
        let head = String::from_utf8(bytes).unwrap();
        assert!(head.contains("\r\nContent-Length: 20000\r\n") && head.ends_with("\r\n\r\n"), "{head}");

        let mut client = http::connect(server.address);
        let fields = format!("{CLOSE}Content-Length: 5000\r\nExpect: 100-continue\r\n");
        client.write_all(request_1_1("POST", "/count", &fields).as_bytes()).unwrap();
        assert_eq!(http::read_head(&mut client), "HTTP/1.1 100 Continue\r\n\r\n");
        client.write_all(&[b'u'; 5000]).unwrap();
        assert_eq!(http::read_one(&mut client).1, b"5000");
        lingerd.wait_for("handed_over=2 spooled=0");
    });
}

#[test]
fn the_access_log_has_all_that_a_slow_reader_gets() {
    each(|gunicorn| {
        let lingerd = Daemon::start(&[]);
        let log = lingerd.site.path("access.log");
        let options = ["--access-logfile", log.to_str().unwrap(), "--access-logformat", "%(U)s %(s)s %(B)s"];
        let server = gunicorn.start(&lingerd.site, &options);
        let clients = ["/big", "/list"].map(|path| server.slow(&request(path)));
        lingerd.wait_for("spooling=2");
        // Before anybody has read it.
        wait_until("both are logged", || fs::read_to_string(&log).unwrap().lines().count() == 2);
        assert_eq!(fs::read_to_string(&log).unwrap(), "/big 200 5000000\n/list 200 5000000\n");
        drop(clients);
    });
}

#[test]
fn what_is_still_being_made_and_all_without_lingerd_the_worker_writes_itself() {
    each(|gunicorn| {
        let lingerd = Daemon::start(&[]);
        let server = gunicorn.start(&lingerd.site, &[]);
        assert_whole(&server.slow(&request("/pieces")));
        lingerd.wait_for("spooled=0 spooling=0");
        lingerd.kill();
        for path in ["/big", "/list"] {
            assert_whole(&server.slow(&request_1_1("GET", path, CLOSE)));
        }
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
        gunicorn.start(&site, &[]).outlives_daemons(&site);
    });
}

#[test]
fn the_end_of_tls_is_said_before_the_connection_is_handed_over() {
    each(|gunicorn| {
        if !gunicorn.has_tls() {
            return not_run("gunicorn 20.1.0 has TLS with Python 3.11 or older only");
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
        // What is encrypted the worker writes, as nobody else has the key; and then lingers nobody.
        let large = exchange_tls(server.address, &["-tls1_2"], request("/big").as_bytes(), 0);
        assert!(large.held.body == tcp::response(5_000_000));
        assert_eq!(large.records.last(), Some(&record::ALERT));
        lingerd.wait_for("lingering=7 spooled=0");
    });
}

#[test]
fn a_worker_that_has_served_enough_leaves_its_clients_to_lingerd() {
    each(|gunicorn| {
        let lingerd = Daemon::start(&[]);
        let server = gunicorn.start(&lingerd.site, &["--max-requests", "15"]);
        let slow = server.slow(&request("/big"));
        let held: Vec<_> = (0..MANY).map(|_| server.page()).collect();
        lingerd.wait_for(&format!("lingering={MANY} spooling=1 rejected=0 protocol_errors=0"));
        assert!(server.log().contains("Autorestarting worker"), "{}", server.log());
        assert_whole(&slow);
        drop((held, slow));
        lingerd.wait_for(&format!("closed={} reset=0", MANY + 1));
    });
}

#[test]
fn workers_are_replaced_at_sighup_and_nobody_notices() {
    each(|gunicorn| {
        let lingerd = Daemon::start(&[]);
        let server = gunicorn.start(&lingerd.site, &["-w", "2"]);
        let held = (server.page(), server.slow(&request("/big")));
        let before = [server.worker(), server.worker(), server.worker()];
        under_load(server.address, |wait_for_more| {
            for _ in 0..2 {
                wait_for_more(20);
                server.signal(libc::SIGHUP);
            }
            wait_for_more(20);
        });
        wait_until("other workers serve", || !before.contains(&server.worker()));
        let after = server.page_handed_over(&lingerd);
        assert_whole(&held.1);
        drop((held, after));
        lingerd.wait_for("lingering=0 rejected=0 protocol_errors=0");
    });
}

#[test]
fn the_master_that_takes_over_at_sigusr2_hands_over_too() {
    each(|gunicorn| {
        let lingerd = Daemon::start(&[]);
        let server = gunicorn.start(&lingerd.site, &[]);
        let held = (server.page(), server.slow(&request("/big")));
        let old = server.worker();
        server.signal(libc::SIGUSR2);
        wait_until("both serve", || server.worker() != old);
        // The old one waits for its workers, and these for nobody: the client is lingerd's. SIGQUIT would cut off whom they serve
        // just then.
        server.signal(libc::SIGTERM);
        wait_until("only the new one serves", || (0..10).all(|_| server.worker() != old));
        let after = server.page_handed_over(&lingerd);
        assert_whole(&held.1);
        drop((held, after));
        lingerd.wait_for("lingering=0 rejected=0 protocol_errors=0");
    });
}

/// Clients of each case.
const CRUEL: usize = 2;

/// What their times are multiplied by.
const SCALE: f64 = 0.4;

#[test]
fn every_cruel_client_gets_its_whole_response() {
    if !built::project().join("target/gunicorn/bin/gunicorn").exists() {
        return skip("there is no target/gunicorn ('sh ci/packages check' gets it)");
    }
    // As tests/torture.rs has it.
    let idle: &[&str] = if TELLS_ACKNOWLEDGED { &["-t", "6"] } else { &[] };
    let lingerd = Daemon::start(idle);
    let socket = lingerd.site.socket();
    // A thread for each that is sent something over TLS.
    let start = |tls| comparisons::gunicorn::Gunicorn::try_start(Worker::Threads(50), 2, Some(&socket), tls);
    let (plain, tls) = (start(false).unwrap(), start(true).unwrap());
    let cases = cases::all();
    let each = cases.iter().flat_map(|case| std::iter::repeat_n(case, CRUEL));
    let clients = with_addresses(each, |_| plain.server(&tls));
    let seen = run_all(&clients, SCALE, Duration::ZERO);
    let lost: Vec<_> = clients
        .iter()
        .zip(seen)
        .filter(|(_, seen)| !matches!(seen.outcome, Outcome::Whole | Outcome::Left))
        .map(|((case, _), seen)| format!("{}: {:?}", case.title, seen.outcome))
        .collect();
    assert!(lost.is_empty(), "{lost:#?}\n{:?}", lingerd.counters());
    assert_eq!(lingerd.counters()["cut_short"], 0);
}

#[test]
fn what_is_not_tcp_is_not_handed_over() {
    each(|gunicorn| {
        let lingerd = Daemon::start(&[]);
        let path = lingerd.site.path("http.sock");
        let _server = gunicorn.start_at(&lingerd.site, &format!("unix:{}", path.display()), &[]);
        hands_over_tcp_alone(lingerd, &path);
    });
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
