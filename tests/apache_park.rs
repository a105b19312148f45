// SPDX-License-Identifier: BSD-3-Clause

//! Connections that a real Apache keeps alive with `LingerdPark On`, and a real lingerd waits for: any number of
//! clients, few workers, and no request lost, whatever is restarted meanwhile.
//!
//! Where a test has a single worker, that one was free each time that two clients were served in turn.

use lingerd_platform::process;
use lingerd_platform::tcp::TELLS_ENDED;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;
use support::apache::{Apache, Mpm, Setup, user};
use support::daemon::{Daemon, Site};
use support::http::{self, exchange, read_one};
use support::{fuzz, is_root, skip, tcp, wait_until};

/// More than there ever are workers here.
const MANY: usize = 20;

/// A user that nobody is.
const UID: u32 = 60_902;

/// What is kept alive for as long as any test may take.
const KEPT: &str = "KeepAlive On\nKeepAliveTimeout 600\nMaxKeepAliveRequests 0\nLingerdPark On\n\
                    LogLevel lingerd:debug";

/// A lingerd that Apache's user can connect to, and whose clock ends nothing.
fn lingerd() -> Daemon {
    Daemon::start(&["-m", "0666"])
}

/// One worker.
fn setup(socket: &Path) -> Setup {
    Setup::prefork(socket).workers(1).with(KEPT)
}

/// Puts up what tells one request from another: `/page.php?n`.
fn publish(apache: &Apache) {
    let page = "<?php $s = str_repeat($_SERVER['QUERY_STRING'] . ' ', 100); header('Content-Length: ' . strlen($s)); echo $s;";
    apache.publish("page.php", page.as_bytes());
    apache.publish("small", b"hello\n");
    let who = "<?php $s = \"$_SERVER[REMOTE_ADDR] $_SERVER[REMOTE_PORT] $_SERVER[SERVER_ADDR] $_SERVER[SERVER_PORT]\"; \
               header('Content-Length: ' . strlen($s)); echo $s;";
    apache.publish("who.php", who.as_bytes());
}

fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

/// Asks on a connection that is kept alive, and returns the response.
fn ask(client: &mut TcpStream, path: &str) -> (String, String) {
    client.write_all(request(path).as_bytes()).unwrap();
    let (head, body) = read_one(client);
    (head, String::from_utf8(body).unwrap())
}

fn asks_well(client: &mut TcpStream, n: usize) {
    let (head, body) = ask(client, &format!("/page.php?{n}"));
    assert!(head.contains(" 200 "), "{head}");
    assert_eq!(body, format!("{n} ").repeat(100));
}

fn clients(address: SocketAddr) -> Vec<TcpStream> {
    (0..MANY).map(|_| http::connect(address)).collect()
}

/// That the server closes without having said more.
fn assert_ended(client: &mut TcpStream) {
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"");
}

/// The way back of the Apache that parks beside this socket.
fn way_back(site: &Site) -> Option<PathBuf> {
    let directory = site.socket().parent().unwrap().to_owned();
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    names.into_iter().find(|path| path.to_str().unwrap().contains(".back."))
}

// ---- What is parked, and comes back ------------------------------------------------------------

/// The processes that hand over are sites' users by then, who may not connect; Apache's user may.
#[test]
fn with_itk_a_site_s_connections_are_parked_where_apache_may_alone() {
    if !is_root() {
        return;
    }
    let Ok(user) = user().map_err(|missing| skip(&missing)) else { return };
    let lingerd = Daemon::start(&["-m", "0660", "-g", &user.gid.to_string()]);
    let setup = setup(&lingerd.site.socket()).php().modules(&["mpm_itk"]).with("AssignUserID daemon daemon");
    let Some(apache) = setup.start() else { return };
    publish(&apache);
    let mut clients: Vec<_> = (0..MANY).map(|_| http::connect(apache.address)).collect();
    for round in 0..3 {
        for (n, client) in clients.iter_mut().enumerate() {
            asks_well(client, n);
        }
        lingerd.wait_for(&format!("parked={MANY} returned={}", round * MANY));
    }
    drop(clients);
    lingerd.wait_for("parked=0 refused=0");
}

#[test]
fn one_worker_serves_any_number_of_connections() {
    let lingerd = lingerd();
    let Some(apache) = setup(&lingerd.site.socket()).php().start() else { return };
    publish(&apache);
    let mut clients = clients(apache.address);
    for round in 0..5 {
        for (n, client) in clients.iter_mut().enumerate() {
            asks_well(client, 100 * round + n);
        }
        lingerd.wait_for(&format!("parked={MANY} returning=0 lingering=0"));
    }
    drop(clients);
    lingerd.wait_for("parked=0 reset=0 abandoned=0 rejected=0 protocol_errors=0");
}

#[test]
fn nothing_is_parked_unless_that_is_said() {
    let lingerd = lingerd();
    let setup = Setup::prefork(&lingerd.site.socket()).with("KeepAlive On\nKeepAliveTimeout 600");
    let Some(apache) = setup.start() else { return };
    publish(&apache);
    let mut client = http::connect(apache.address);
    (0..3).for_each(|_| assert_eq!(ask(&mut client, "/small").1, "hello\n"));
    assert_eq!(way_back(&lingerd.site), None);
    drop(client);
    lingerd.wait_for("handed_over=0");
}

#[test]
fn who_is_silent_is_closed_after_the_time_of_its_virtual_host() {
    let lingerd = lingerd();
    let setup = setup(&lingerd.site.socket()).with_other("KeepAliveTimeout 100ms\nLingerdPark On");
    let Some(apache) = setup.start() else { return };
    publish(&apache);
    let [mut kept, mut other] = [apache.address, apache.other].map(http::connect);
    ask(&mut kept, "/small");
    ask(&mut other, "/small");
    assert_ended(&mut other);
    lingerd.wait_for("parked=1 lingering=1");
    ask(&mut kept, "/small");
    lingerd.wait_for("parked=1");
}

#[test]
fn requests_are_counted_wherever_they_are_served() {
    let lingerd = lingerd();
    let counted = |how: &str| {
        let setup = setup(&lingerd.site.socket()).workers(3).with(&format!("MaxKeepAliveRequests 4\n{how}"));
        let apache = setup.start()?;
        publish(&apache);
        let mut client = http::connect(apache.address);
        let mut requests = 1;
        while !ask(&mut client, "/small").0.contains("Connection: close") {
            requests += 1;
            if how.is_empty() {
                lingerd.wait_for("parked=1"); // and so it comes back to another one
            }
        }
        assert_ended(&mut client);
        Some(requests)
    };
    let (Some(parked), Some(stock)) = (counted(""), counted("LingerdPark Off")) else { return };
    assert_eq!(parked, stock);
    assert!(lingerd.counters()["returned"] > 1);
}

#[test]
fn addresses_and_virtual_hosts_are_those_of_the_connection() {
    let lingerd = lingerd();
    let setup =
        setup(&lingerd.site.socket()).php().also_v6().modules(&["alias"]).with("UseCanonicalPhysicalPort On");
    let setup = setup.with_other("LingerdPark On\nRedirect 301 /moved http://localhost/");
    let Some(apache) = setup.start() else { return };
    publish(&apache);
    for address in [Some(apache.address), Some(apache.other), apache.v6].into_iter().flatten() {
        let mut client = http::connect(address);
        let local = client.local_addr().unwrap();
        let expected = format!("{} {} {} {}", local.ip(), local.port(), address.ip(), address.port());
        for round in 0..3 {
            assert_eq!(ask(&mut client, "/who.php").1, expected, "round {round}");
            lingerd.wait_for("parked=1");
        }
        let status = if address == apache.other { " 301 " } else { " 404 " };
        let (head, _) = ask(&mut client, "/moved");
        assert!(head.contains(status), "{head}");
        drop(client);
        lingerd.wait_for("parked=0");
    }
}

#[test]
fn each_request_is_logged_as_of_a_connection_that_is_kept() {
    let lingerd = lingerd();
    let setup = setup(&lingerd.site.socket()).with("LogFormat \"%k %X %U\" park\nCustomLog park_log park");
    let Some(apache) = setup.start() else { return };
    publish(&apache);
    let mut client = http::connect(apache.address);
    (0..3).for_each(|_| drop(ask(&mut client, "/small")));
    let logged = || fs::read_to_string(apache.site.path("park_log")).unwrap_or_default();
    wait_until("all are logged", || logged().lines().count() == 3);
    assert_eq!(logged(), "0 + /small\n1 + /small\n2 + /small\n");
}

#[test]
fn whoever_comes_to_a_listener_for_both_has_the_address_that_apache_knows_it_by() {
    let lingerd = lingerd();
    let setup = setup(&lingerd.site.socket()).php().listen(Ipv6Addr::UNSPECIFIED.into());
    let Some(apache) = setup.with("UseCanonicalPhysicalPort On").start() else { return };
    publish(&apache);
    for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        let address = SocketAddr::new(ip, apache.address.port());
        if ip.is_ipv4() && TcpStream::connect(address).is_err() {
            continue; // that listener is for IPv6 only on this system
        }
        let mut client = http::connect(address);
        let local = client.local_addr().unwrap();
        let expected = format!("{} {} {} {}", local.ip(), local.port(), address.ip(), address.port());
        for returned in 0..3 {
            assert_eq!(ask(&mut client, "/who.php").1, expected, "round {returned}");
            lingerd.wait_for("parked=1");
        }
        drop(client);
        lingerd.wait_for("parked=0");
    }
}

#[test]
fn server_status_has_no_worker_that_waits() {
    let lingerd = lingerd();
    let setup = setup(&lingerd.site.socket()).workers(3).modules(&["status"]);
    let setup = setup.with("<Location /status>\nSetHandler server-status\n</Location>");
    let Some(apache) = setup.start() else { return };
    publish(&apache);
    let mut clients = clients(apache.address);
    clients.iter_mut().for_each(|client| drop(ask(client, "/small")));
    lingerd.wait_for(&format!("parked={MANY} returning=0"));
    let status = || ask(&mut http::connect(apache.address), "/status?auto").1;
    wait_until("all but the one that says it wait for work", || {
        let status = status();
        status.contains("\nBusyWorkers: 1\nGracefulWorkers: 0\nIdleWorkers: 2\n")
    });
    let status = status();
    let accesses = status.lines().find_map(|line| line.strip_prefix("Total Accesses: ")?.parse().ok());
    assert!(accesses.is_some_and(|number: usize| number >= MANY), "{status}");
}

// ---- Requests that are cut up, or come together ----------------------------------------------------

#[test]
fn requests_that_come_together_are_answered_in_their_order() {
    let lingerd = lingerd();
    let Some(apache) = setup(&lingerd.site.socket()).php().start() else { return };
    publish(&apache);
    let mut client = http::connect(apache.address);
    for round in 0..5 {
        let all: String = (0..10).map(|n| request(&format!("/page.php?{round}{n}"))).collect();
        client.write_all(all.as_bytes()).unwrap();
        for n in 0..10 {
            let body = read_one(&mut client).1;
            assert_eq!(String::from_utf8(body).unwrap(), format!("{round}{n} ").repeat(100));
        }
        lingerd.wait_for("parked=1 returning=0");
    }
}

#[test]
fn half_a_request_comes_back_and_so_does_a_body() {
    let lingerd = lingerd();
    let Some(apache) = setup(&lingerd.site.socket()).php().workers(2).start() else { return };
    publish(&apache);
    apache.publish(
        "echo.php",
        b"<?php $s = file_get_contents('php://input'); header('Content-Length: ' . strlen($s)); echo $s;",
    );
    let mut client = http::connect(apache.address);
    asks_well(&mut client, 1);
    lingerd.wait_for("parked=1");
    client.write_all(b"GET /page.php?2 HT").unwrap();
    lingerd.wait_for("parked=0 returned=1");
    client.write_all(b"TP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert_eq!(read_one(&mut client).1, "2 ".repeat(100).into_bytes());
    lingerd.wait_for("parked=1");
    let head = "POST /echo.php HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000\r\n\r\n";
    client.write_all(head.as_bytes()).unwrap();
    lingerd.wait_for("returned=2");
    let body = tcp::response(200_000);
    client.write_all(&body).unwrap();
    assert!(read_one(&mut client).1 == body);
    asks_well(&mut client, 3);
}

#[test]
fn who_ends_his_side_after_a_request_has_the_response() {
    let lingerd = lingerd();
    let Some(apache) = setup(&lingerd.site.socket()).php().start() else { return };
    publish(&apache);
    let mut client = http::connect(apache.address);
    asks_well(&mut client, 1);
    client.write_all(request("/page.php?2").as_bytes()).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_one(&mut client).1, "2 ".repeat(100).into_bytes());
    assert_ended(&mut client);
}

// ---- Heads ------------------------------------------------------------------------------------------

/// One that has lingerd wait for heads longer than any test lasts, and whose connections are there before they say anything.
fn patient_with_heads(socket: &Path) -> Setup {
    setup(socket)
        .modules(&["reqtimeout"])
        .with("AcceptFilter http none\nLingerdHead On\nRequestReadTimeout header=600")
}

#[test]
fn slow_heads_keep_no_worker() {
    let lingerd = lingerd();
    let Some(apache) = patient_with_heads(&lingerd.site.socket()).php().start() else { return };
    publish(&apache);
    let mut slow = clients(apache.address);
    for client in &mut slow {
        client.write_all(b"GET /page.php?7 HTTP/1.1\r\nHost: loc").unwrap();
    }
    let mut silent = clients(apache.address);
    silent[0].write_all(b"\r\n\r\n").unwrap(); // which is none of a request, RFC 9112 section 2.2
    lingerd.wait_for(&format!("parked={}", 2 * MANY));
    let mut client = http::connect(apache.address);
    (0..10).for_each(|n| asks_well(&mut client, n));
    // And those of a connection that was parked before.
    lingerd.wait_for(&format!("parked={} returning=0", 2 * MANY + 1));
    client.write_all(b"GET /page.php?8 HTTP/1.1\r\n").unwrap();
    let mut other = http::connect(apache.address);
    (0..10).for_each(|n| asks_well(&mut other, n));
    client.write_all(b"Host: localhost\r\n\r\n").unwrap();
    assert_eq!(read_one(&mut client).1, "8 ".repeat(100).into_bytes());
    for client in &mut slow {
        client.write_all(b"alhost\r\n\r\n").unwrap();
        assert_eq!(read_one(client).1, "7 ".repeat(100).into_bytes());
    }
    asks_well(&mut silent[0], 9);
    drop((slow, silent));
    lingerd.wait_for("parked=2 abandoned=0");
}

#[test]
fn half_a_head_right_behind_a_response_keeps_no_worker() {
    let lingerd = lingerd();
    let Some(apache) = patient_with_heads(&lingerd.site.socket()).php().start() else { return };
    publish(&apache);
    let mut slow = clients(apache.address);
    for (n, client) in slow.iter_mut().enumerate() {
        // Those that ask at once are waited for by their worker.
        (0..4).for_each(|n| asks_well(client, n));
        client.write_all(format!("GET /page.php?{n} HTTP/1.1\r\nHost: loc").as_bytes()).unwrap();
        asks_well(&mut http::connect(apache.address), n);
    }
    lingerd.wait_for(&format!("parked={MANY} returning=0"));
    for (n, client) in slow.iter_mut().enumerate() {
        client.write_all(b"alhost\r\n\r\n").unwrap();
        assert_eq!(read_one(client).1, format!("{n} ").repeat(100).into_bytes());
    }
}

#[test]
fn who_ends_his_side_in_the_midst_of_a_head_is_answered_at_once() {
    if !TELLS_ENDED {
        return skip("this system does not tell of an end before all is read");
    }
    let lingerd = lingerd();
    let Some(apache) = patient_with_heads(&lingerd.site.socket()).start() else { return };
    publish(&apache);
    // Before a worker has seen it, or while lingerd has it; as a first request, and as a second one.
    for (is_second, is_parked) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut client = http::connect(apache.address);
        if is_second {
            assert_eq!(ask(&mut client, "/small").1, "hello\n");
            // What comes right behind a response may be read with the request before, and stays with its worker then.
            lingerd.wait_for("parked=1 returning=0");
        }
        client.write_all(b"GET /small HTTP/1.1\r\nHost: localhost\r\n").unwrap();
        if is_parked {
            lingerd.wait_for("parked=1 returning=0");
        }
        client.shutdown(Shutdown::Write).unwrap();
        let mut response = String::new();
        client.read_to_string(&mut response).unwrap();
        assert!(response.starts_with("HTTP/1.1 400 "), "{is_second} {is_parked}: {response}");
        lingerd.wait_for("parked=0");
    }
}

#[test]
fn a_head_that_takes_too_long_is_answered_with_408() {
    let lingerd = lingerd();
    let setup = setup(&lingerd.site.socket()).modules(&["reqtimeout"]).with("LingerdHead On");
    let setup = setup.with("RequestReadTimeout header=5\nLogFormat \"%>s %T\" head\nCustomLog head_log head");
    let Some(apache) = setup.start() else { return };
    publish(&apache);
    let mut client = http::connect(apache.address);
    client.write_all(b"GET /small HTTP/1.1\r\nHost: loc").unwrap();
    // By when this sees it the time may be over.
    wait_until("it is parked", || lingerd.counters()["handed_over"] > 0);
    let held = exchange(client, b"");
    assert!(held.head.starts_with("HTTP/1.1 408 "), "{}", held.head);
    lingerd.wait_for("parked=0 returned=1");
    // It has waited in lingerd, and not the same again in its worker.
    let logged = || fs::read_to_string(apache.site.path("head_log")).unwrap_or_default();
    wait_until("it is logged", || logged().ends_with('\n'));
    let (status, seconds) =
        logged().trim_end().split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    assert_eq!(status, "408");
    assert!(seconds.parse::<u64>().unwrap() < 5, "its worker waited for {seconds} s");
    // Whoever is in time is not kept from anything by that.
    assert_eq!(ask(&mut http::connect(apache.address), "/small").1, "hello\n");
}

// ---- What is not parked --------------------------------------------------------------------------------

#[test]
fn what_keeps_something_in_its_worker_is_not_parked() {
    let lingerd = lingerd();
    let Some(apache) = setup(&lingerd.site.socket()).tls().with_other("LingerdPark On").start() else {
        return;
    };
    publish(&apache);
    // A login of the connection.
    let mut client = http::connect(apache.address);
    for _ in 0..3 {
        let request = "GET /small HTTP/1.1\r\nHost: localhost\r\nAuthorization: NTLM TlRMTVNTUAAB\r\n\r\n";
        client.write_all(request.as_bytes()).unwrap();
        assert_eq!(read_one(&mut client).1, b"hello\n");
    }
    drop(client);
    // Another one is parked all the same.
    let mut client = http::connect(apache.address);
    ask(&mut client, "/small");
    lingerd.wait_for("parked=1 handed_over=1");
    assert_eq!(apache.errors_with("NTLM").len(), 1, "it is said once");
}

#[test]
fn a_connection_that_began_with_whose_it_is_is_not_parked() {
    let lingerd = lingerd();
    let setup = setup(&lingerd.site.socket()).php().modules(&["remoteip"]);
    let Some(apache) = setup.with("RemoteIPProxyProtocol On").start() else { return };
    publish(&apache);
    let mut client = http::connect(apache.address);
    client.write_all(b"PROXY TCP4 192.0.2.7 192.0.2.8 4711 80\r\n").unwrap();
    for _ in 0..3 {
        assert!(ask(&mut client, "/who.php").1.starts_with("192.0.2.7 "));
    }
    assert_eq!(apache.errors_with("not parked").len(), 1, "it is said once");
    drop(client);
    lingerd.wait_for("parked=0 returned=0");
}

#[test]
fn a_connection_with_tls_is_not_parked() {
    let lingerd = lingerd();
    let Some(apache) = setup(&lingerd.site.socket()).tls().with_other("LingerdPark On").start() else {
        return;
    };
    publish(&apache);
    let mut client = http::TlsClient::start(http::connect(apache.other)).unwrap();
    client.send(request("/small").as_bytes()).unwrap();
    client.send(http::request("/small").as_bytes()).unwrap();
    while client.relay_some(&mut [0; 4096]).unwrap() > 0 {}
    let said = String::from_utf8(client.finish().0).unwrap();
    assert_eq!(said.matches("hello\n").count(), 2, "{said}");
    let said = || apache.errors_with("not parked").len() == 1;
    wait_until("it is said", said);
    lingerd.wait_for("parked=0 returned=0");
}

#[test]
fn a_lingerd_that_starts_later_parks_too_whoever_it_runs_as() {
    let user = format!("-u{UID}:{UID}");
    for options in [&["-m", "0666"][..], &["-m", "0666", &user]] {
        if !is_root() && options.len() > 2 {
            continue;
        }
        let site = Site::new();
        fs::create_dir(site.socket().parent().unwrap()).unwrap(); // as a package has it
        let Some(apache) = setup(&site.socket()).start() else { return };
        publish(&apache);
        let mut client = http::connect(apache.address);
        assert_eq!(ask(&mut client, "/small").1, "hello\n");
        let lingerd = site.start(options);
        // Apache looks every ten seconds whose the way back is to be. Until then the worker waits itself.
        (0..3).for_each(|_| assert_eq!(ask(&mut client, "/small").1, "hello\n"));
        lingerd.wait_for("parked=1");
        assert_eq!(ask(&mut client, "/small").1, "hello\n");
    }
}

#[test]
fn what_it_does_not_go_with_is_said_in_words() {
    let lingerd = lingerd();
    let socket = lingerd.site.socket();
    // With fewer workers than buckets a stock Apache, too, ends with SIGSEGV.
    let buckets = setup(&socket).workers(4).with("ListenCoresBucketsRatio 1");
    let worker = Setup::new(Mpm::Worker).lingerd(&socket).with(KEPT);
    for (setup, why) in [(buckets, "ListenCoresBucketsRatio"), (worker, "the MPM is worker")] {
        let Some(apache) = setup.start() else { return };
        publish(&apache);
        let mut client = http::connect(apache.address);
        (0..2).for_each(|_| assert_eq!(ask(&mut client, "/small").1, "hello\n"));
        assert_eq!(apache.errors_with("LingerdPark has no effect").len(), 1, "{why}");
        assert_eq!(apache.errors_with(why).len(), 1);
        assert_eq!(way_back(&lingerd.site), None);
    }
    lingerd.wait_for("handed_over=0");
}

#[test]
fn heads_that_are_to_wait_where_nothing_is_parked_are_warned_of() {
    let lingerd = lingerd();
    let warned = |more: &str| {
        let apache = Setup::new(Mpm::Prefork).lingerd(&lingerd.site.socket()).with(more).start()?;
        Some(apache.errors_with("LingerdHead has no effect without LingerdPark On").len())
    };
    for (more, expected) in
        [("LingerdHead On", 1), ("LingerdHead On\nLingerdPark On", 0), ("LingerdPark On", 0)]
    {
        let Some(times) = warned(more) else { return };
        assert_eq!(times, expected, "{more}");
    }
}

/// Such a one has its listeners before its log.
#[test]
#[cfg(target_os = "linux")]
fn what_it_does_not_go_with_is_said_in_the_log_of_one_in_the_background_too() {
    let lingerd = lingerd();
    let setup = Setup::new(Mpm::Worker).lingerd(&lingerd.site.socket()).with(KEPT);
    let Some(mut apache) = setup.start() else { return };
    let httpd = fs::read_link(format!("/proc/{}/exe", apache.pid())).unwrap();
    apache.stop();
    let tell = |what| {
        let conf = apache.site.path("httpd.conf");
        assert_eq!(
            support::daemon::run(Command::new(&httpd).args(["-k", what, "-f"]).arg(conf)).code,
            Some(0)
        );
    };
    tell("start");
    wait_until("it serves again", || apache.errors_with("resuming normal operations").len() == 2);
    tell("stop");
    wait_until("it has ended", || !apache.site.path("httpd.pid").exists());
    assert_eq!(apache.errors_with("LingerdPark has no effect: the MPM is worker").len(), 2);
}

#[test]
fn what_it_does_not_go_with_may_still_hold_after_a_graceful_restart() {
    let lingerd = lingerd();
    let setup = setup(&lingerd.site.socket()).workers(4).with("ListenCoresBucketsRatio 1");
    let Some(apache) = setup.start() else { return };
    publish(&apache);
    let conf = apache.site.path("httpd.conf");
    let without = fs::read_to_string(&conf).unwrap().replace("ListenCoresBucketsRatio 1", "");
    fs::write(conf, without).unwrap();
    apache.restart_gracefully(); // after which stock Apache has listeners at which nothing is answered
    if thread::available_parallelism().unwrap().get() > 1 {
        assert_eq!(apache.errors_with("until Apache is stopped and started").len(), 1);
        apache.restart();
        let mut client = http::connect(apache.address);
        ask(&mut client, "/small");
        lingerd.wait_for("parked=1");
    } // with one core there is one bucket, as ever
}

// ---- Who comes and goes ---------------------------------------------------------------------------------

#[test]
fn the_way_back_is_for_lingerd_only_and_goes_with_apache() {
    let lingerd = lingerd();
    let setup = setup(&lingerd.site.socket());
    assert_eq!(setup.check().map_or(0, |checked| checked.code.unwrap()), 0);
    assert_eq!(way_back(&lingerd.site), None, "-t makes none");
    let Some(mut apache) = setup.start() else { return };
    let way = way_back(&lingerd.site).unwrap();
    let (file, directory) = (fs::metadata(&way).unwrap(), fs::metadata(way.parent().unwrap()).unwrap());
    assert!(file.file_type().is_socket());
    assert_eq!((file.uid(), file.gid()), (directory.uid(), directory.gid()));
    assert_eq!(file.mode() & 0o777, if directory.mode() & 0o020 == 0 { 0o600 } else { 0o660 });
    apache.stop();
    assert_eq!(way_back(&lingerd.site), None);
}

#[test]
fn where_somebody_else_listens_it_stays_his() {
    let lingerd = lingerd();
    let Some(apache) = setup(&lingerd.site.socket()).start() else { return };
    publish(&apache);
    let way = way_back(&lingerd.site).unwrap();
    fs::rename(&way, lingerd.site.path("moved")).unwrap();
    let other = UnixListener::bind(&way).unwrap();
    let whose = fs::metadata(&way).unwrap().ino();
    apache.restart();
    assert_eq!(apache.errors_with("Another Apache with the same ServerRoot and PidFile does").len(), 1);
    let mut client = http::connect(apache.address);
    (0..3).for_each(|_| assert_eq!(ask(&mut client, "/small").1, "hello\n"));
    assert_eq!(fs::metadata(&way).unwrap().ino(), whose);
    lingerd.wait_for("parked=0 handed_over=0");
    // And one that nobody listens at any more is no obstacle.
    drop(other);
    apache.restart();
    let mut client = http::connect(apache.address);
    ask(&mut client, "/small");
    lingerd.wait_for("parked=1");
}

#[test]
fn who_comes_the_way_back_without_a_connection_does_no_harm() {
    let lingerd = lingerd();
    let Some(apache) = setup(&lingerd.site.socket()).start() else { return };
    publish(&apache);
    let way = way_back(&lingerd.site).unwrap();
    for round in 0..10 {
        drop(UnixStream::connect(&way).unwrap());
        let mut nonsense = UnixStream::connect(&way).unwrap();
        let _ = nonsense.write_all(&[b'K'; 100][..[10, 72, 100][round % 3]]);
        let mut said = Vec::new();
        let _ = nonsense.read_to_end(&mut said);
        assert_eq!(said, b"");
        assert_eq!(ask(&mut http::connect(apache.address), "/small").1, "hello\n");
    }
    assert_eq!(apache.errors_with(":error]"), [""; 0]);
    wait_until("all are logged", || apache.access_log().len() == 10);
}

#[test]
fn connections_outlive_restarts() {
    let lingerd = lingerd();
    let Some(apache) = setup(&lingerd.site.socket()).php().start() else { return };
    publish(&apache);
    let mut clients = clients(apache.address);
    for round in 0..6 {
        clients.iter_mut().enumerate().for_each(|(n, client)| asks_well(client, n));
        lingerd.wait_for(&format!("parked={MANY} returning=0"));
        if round % 3 == 2 { apache.restart() } else { apache.restart_gracefully() }
    }
    clients.iter_mut().enumerate().for_each(|(n, client)| asks_well(client, n));
    lingerd.wait_for("abandoned=0");
    assert_eq!(apache.errors_with(":emerg]"), [""; 0]);
}

#[test]
fn children_that_die_lose_nothing() {
    let lingerd = lingerd();
    let setup = setup(&lingerd.site.socket()).php().with("MaxConnectionsPerChild 3");
    let Some(apache) = setup.start() else { return };
    publish(&apache);
    let mut clients = clients(apache.address);
    for round in 0..3 {
        clients.iter_mut().enumerate().for_each(|(n, client)| asks_well(client, 10 * n + round));
    }
    lingerd.wait_for(&format!("parked={MANY} returning=0 abandoned=0"));
}

#[test]
fn an_apache_that_is_gone_leaves_nobody_waiting() {
    let lingerd = lingerd();
    let Some(mut apache) = setup(&lingerd.site.socket()).start() else { return };
    publish(&apache);
    let mut clients = clients(apache.address);
    clients.iter_mut().for_each(|client| drop(ask(client, "/small")));
    lingerd.wait_for(&format!("parked={MANY} returning=0"));
    apache.stop();
    clients.iter_mut().for_each(assert_ended);
    lingerd.wait_for(&format!("parked=0 abandoned={MANY}"));
}

/// A page whose end waits until there is a file, and how to ask for it and then end it.
fn asks_for_a_long_page(apache: &Apache) -> (TcpStream, impl Fn(TcpStream) + use<>) {
    let page = "<?php header('Content-Length: 6'); echo 'begin'; ob_end_flush(); flush(); \
                while (!file_exists('go')) { usleep(1000); clearstatcache(); } echo '.';";
    apache.publish("long.php", page.as_bytes());
    let mut client = http::connect(apache.address);
    client.write_all(request("/long.php").as_bytes()).unwrap();
    let go = apache.site.path("htdocs").join("go");
    let mut said = Vec::new();
    while !said.ends_with(b"begin") {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        said.push(byte[0]);
    }
    let end = move |mut client: TcpStream| {
        fs::write(&go, "").unwrap();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b".");
    };
    (client, end)
}

#[test]
fn an_apache_that_stops_gracefully_parks_nothing_more() {
    let lingerd = lingerd();
    let Some(mut apache) = setup(&lingerd.site.socket()).php().start() else { return };
    let (client, end) = asks_for_a_long_page(&apache);
    process::kill(apache.pid(), libc::SIGWINCH).unwrap();
    wait_until("it listens no more", || TcpStream::connect(apache.address).is_err());
    end(client);
    apache.wait_for_end();
    let counters = lingerd.counters();
    assert_eq!(["parked", "abandoned"].map(|name| counters[name]), [0, 0], "the worker has ended it");
}

#[test]
fn an_upgrade_of_lingerd_is_not_noticed() {
    let mut lingerd = lingerd();
    let Some(apache) = setup(&lingerd.site.socket()).php().start() else { return };
    publish(&apache);
    let mut clients = clients(apache.address);
    for round in 0..4 {
        clients.iter_mut().enumerate().for_each(|(n, client)| asks_well(client, n + round));
        let next = lingerd.site.start(&["-m", "0666", "-r"]);
        lingerd.wait_for_end();
        lingerd = next;
    }
    clients.iter_mut().enumerate().for_each(|(n, client)| asks_well(client, n));
    lingerd.wait_for(&format!("parked={MANY} returning=0 abandoned=0"));
}

#[test]
fn without_lingerd_connections_stay_with_their_workers() {
    let lingerd = lingerd();
    let Some(apache) = setup(&lingerd.site.socket()).php().workers(3).start() else { return };
    publish(&apache);
    let mut client = http::connect(apache.address);
    asks_well(&mut client, 1);
    lingerd.wait_for("parked=1");
    let site = lingerd.site.clone();
    lingerd.kill();
    assert_ended(&mut client);
    let mut clients: Vec<_> = (0..3).map(|_| http::connect(apache.address)).collect();
    for round in 0..3 {
        clients.iter_mut().enumerate().for_each(|(n, client)| asks_well(client, n + round));
    }
    // And one that comes is found, by those who wait themselves, too.
    let lingerd = site.start(&["-m", "0666"]);
    lingerd.wait_for("parked=3 returning=0");
    clients.iter_mut().enumerate().for_each(|(n, client)| asks_well(client, n));
}

#[test]
fn one_that_hangs_has_a_few_of_each_child_and_gives_them_back() {
    let lingerd = lingerd();
    let Some(apache) = setup(&lingerd.site.socket()).php().workers(2).start() else { return };
    publish(&apache);
    // So that all have a link.
    let mut clients = clients(apache.address);
    clients.iter_mut().enumerate().for_each(|(n, client)| asks_well(client, n));
    lingerd.wait_for(&format!("parked={MANY} returning=0"));
    lingerd.freeze();
    let mut more: Vec<_> = Vec::new();
    // Eight of each at most, and one that each waits for itself.
    for n in 0..18 {
        let mut client = http::connect(apache.address);
        asks_well(&mut client, n);
        more.push(client);
    }
    lingerd.thaw();
    lingerd.wait_for(&format!("parked={}", MANY + 18));
    clients.iter_mut().chain(&mut more).enumerate().for_each(|(n, client)| asks_well(client, n));
}

// ---- All of it at once ------------------------------------------------------------------------------------

/// What comes next on a connection: a whole response, or its end.
enum Next {
    Answer(String, Vec<u8>),
    /// Before anything of a response.
    End,
    /// In the midst of one.
    Cut,
}

fn next(client: &mut TcpStream) -> Next {
    let mut said = Vec::new();
    loop {
        let head = said.windows(4).position(|four| four == b"\r\n\r\n");
        if let Some(end) = head {
            let head = String::from_utf8(said[..end].to_vec()).unwrap();
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok());
            let length: usize = length.unwrap_or_else(|| panic!("no length: {head}"));
            if said.len() == end + 4 + length {
                return Next::Answer(head, said.split_off(end + 4));
            }
        }
        // One at a time, as what follows is the next one's.
        let mut byte = [0];
        match client.read(&mut byte) {
            Ok(1) => said.push(byte[0]),
            Ok(_) => return if said.is_empty() { Next::End } else { Next::Cut },
            Err(e) if tcp::is_gone(&e) => return if said.is_empty() { Next::End } else { Next::Cut },
            Err(e) if e.kind() == ErrorKind::Interrupted => {} // by a stop and a go, as it has a time-out
            Err(e) => panic!("{e}"),
        }
    }
}

/// What became of one client's requests.
#[derive(Default)]
struct Conversation {
    answered: usize,
    /// Asked again, as the connection had ended before any answer to them had begun (RFC 9112 section 9.3.1): a server may
    /// end it between two requests at any time, and one that restarts does.
    again: usize,
    /// Cut off.
    cut: usize,
}

/// How many requests a client has under way at most.
const UNDER_WAY: usize = 4;

/// Requests of one client, cut anywhere and several at once, each answered by what it asked for.
fn converse(address: SocketAddr, random: &mut fastrand::Rng, requests: usize) -> Conversation {
    let mut done = Conversation::default();
    let mut client = http::connect(address);
    while done.answered < requests {
        let some = random.usize(1..=UNDER_WAY);
        let numbers: Vec<_> = (0..some).map(|_| random.usize(..1_000_000)).collect();
        let mut left = &numbers[..];
        while !left.is_empty() {
            let all: String = left.iter().map(|n| request(&format!("/page.php?{n}"))).collect();
            let mut rest = all.as_bytes();
            while !rest.is_empty() {
                let (piece, more) = rest.split_at(random.usize(1..=rest.len()));
                if client.write_all(piece).is_err() {
                    break; // which shows when it is read
                }
                rest = more;
                if random.u8(..4) == 0 {
                    thread::sleep(Duration::from_millis(random.u64(..4))); // so that it is not all there at once
                }
            }
            while let [n, more @ ..] = left {
                let next = next(&mut client);
                if let Next::Answer(head, body) = next {
                    assert!(head.contains(" 200 "), "{head}");
                    assert_eq!(String::from_utf8(body).unwrap(), format!("{n} ").repeat(100));
                    (left, done.answered) = (more, done.answered + 1);
                    continue;
                }
                done.cut += usize::from(matches!(next, Next::Cut));
                done.again += left.len();
                client = http::connect(address);
                break;
            }
        }
        if random.u8(..20) == 0 {
            client = http::connect(address);
        }
    }
    done
}

/// Apache's children, as Linux's ps(1) says.
fn children(apache: &Apache) -> Vec<i32> {
    let pid = apache.pid().to_string();
    let listed = Command::new("ps").args(["-o", "pid=", "--ppid", &pid]).output().unwrap();
    String::from_utf8(listed.stdout).unwrap().split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// What may befall server and daemon in the midst of it.
fn every_answer_is_right_and_in_order(may_lose: bool) {
    const WORKERS: usize = 3;
    // In all; a million is for who has the time.
    let all = std::env::var("LINGERD_TEST_REQUESTS").map_or(6_000, |number| number.parse().unwrap());
    let requests = all / MANY;
    fuzz::any(1, |random| {
        let mut lingerd = lingerd();
        let setup = setup(&lingerd.site.socket()).php().workers(WORKERS);
        let Some(apache) = setup.with("LingerdHead On\nMaxConnectionsPerChild 50").start() else { return };
        publish(&apache);
        let seeds: Vec<_> = (0..MANY).map(|_| random.u64(..)).collect();
        let (mut restarts, mut kills, mut upgrades) = (0, 0, 0);
        let done = thread::scope(|scope| {
            let clients: Vec<_> = seeds
                .iter()
                .map(|&seed| {
                    let address = apache.address;
                    scope.spawn(move || converse(address, &mut fastrand::Rng::with_seed(seed), requests))
                })
                .collect();
            while clients.iter().any(|client| !client.is_finished()) {
                match random.u8(..5) {
                    0 if may_lose => {
                        apache.restart_gracefully();
                        restarts += 1;
                    }
                    1 if may_lose && cfg!(target_os = "linux") => {
                        let children = children(&apache);
                        if let Some(&child) = children.get(random.usize(..children.len().max(1))) {
                            let _ = process::kill(child, libc::SIGKILL); // it may have gone
                            kills += 1;
                        }
                    }
                    0..=2 => {
                        let next = lingerd.site.start(&["-m", "0666", "-r"]);
                        lingerd.wait_for_end();
                        lingerd = next;
                        upgrades += 1;
                    }
                    _ => thread::sleep(Duration::from_millis(random.u64(..200))), // so that there is a pause
                }
            }
            let mut done = Conversation::default();
            for client in clients {
                let one = client.join().unwrap();
                done.answered += one.answered;
                (done.again, done.cut) = (done.again + one.again, done.cut + one.cut);
            }
            done
        });
        let Conversation { answered, again, cut } = done;
        println!(
            "{answered} requests, {again} of them asked again, {cut} answers cut off; {restarts} graceful restarts, {kills} \
             children killed, {upgrades} upgrades of lingerd"
        );
        // What the workers had that ended, and nothing of what was parked.
        let had = WORKERS * UNDER_WAY * (restarts + kills);
        assert!(again <= had && cut <= kills * WORKERS, "{had} may be asked again");
        lingerd.wait_for("abandoned=0 rejected=0 protocol_errors=0 cut_short=0");
        assert!(lingerd.counters()["returned"] > 0);
    });
}

#[test]
fn every_answer_is_right_and_in_order_whatever_ends_meanwhile() {
    every_answer_is_right_and_in_order(true);
}

#[test]
fn no_request_is_lost_where_lingerd_is_upgraded_and_children_come_and_go() {
    every_answer_is_right_and_in_order(false);
}
