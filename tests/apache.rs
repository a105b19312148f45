// SPDX-License-Identifier: BSD-3-Clause

//! mod_lingerd in a real Apache, with a real lingerd behind it.
//!
//! That a connection was handed over is told by lingerd's counters, for clients that keep their
//! end open: one that has closed before Apache does is nobody's business any more, and is closed.

use lingerd_platform::tcp::TELLS_ACKNOWLEDGED;
use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener};
use std::os::unix::net::SocketAddr as UnixAddr;
use std::path::Path;
use std::thread;
use support::apache::{Apache, Mpm, Setup, build_module};
use support::daemon::{Daemon, Site};
use support::http::{self, Held, exchange, exchange_tls, get, record, request, under_load, upload};
use support::{COUNT_SOCKETS, compile, is_root, skip, sockets_can_be_counted, tcp, wait_until};

/// As many requests as show that a server is well and truly at work.
const SOME: usize = 200;

/// Has Apache keep connections alive, for longer than any test takes.
const KEPT: &str = "KeepAlive On\nKeepAliveTimeout 600";

/// A lingerd that Apache's user can connect to, and whose clock ends nothing.
fn lingerd(options: &[&str]) -> Daemon {
    Daemon::start(&[&["-m", "0666"], options].concat())
}

/// Puts up files of all sizes that matter and returns the last: one that is larger than any
/// socket's buffer.
fn publish(apache: &Apache) -> Vec<u8> {
    apache.publish("small", b"hello\n");
    apache.publish("page", &tcp::response(20_000));
    let big = tcp::response(30_000_000);
    apache.publish("big", &big);
    big
}

/// Gets `/small` for so many clients, each of which then holds its connection.
fn hold(address: SocketAddr, clients: usize) -> Vec<Held> {
    let held: Vec<_> = (0..clients).map(|_| get(address, "/small")).collect();
    assert!(held.iter().all(|held| held.body == b"hello\n"));
    held
}

/// What mod_lingerd has logged, and whatever went wrong in Apache, which calls it an error that all
/// workers are busy.
fn complaints(apache: &Apache) -> Vec<String> {
    let matter = ["[lingerd:", ":warn]", ":error]", ":crit]", ":alert]", ":emerg]"];
    let matters = |line: &&str| matter.iter().any(|part| line.contains(part));
    let log = apache.error_log();
    let lines = log.lines().filter(matters).filter(|line| !line.contains("MaxRequestWorkers"));
    lines.map(str::to_owned).collect()
}

// ---- What a client sees ---------------------------------------------------------------------

#[test]
fn connections_are_handed_over_and_end_when_their_clients_close() {
    let lingerd = lingerd(&[]);
    let Some(apache) = Setup::prefork(&lingerd.site.socket()).start() else { return };
    publish(&apache);
    let held = hold(apache.address, 10);
    lingerd.wait_for("handed_over=10 lingering=10");
    drop(held);
    assert_eq!(complaints(&apache), [""; 0]);
    lingerd.finish("closed=10");
}

#[test]
fn workers_serve_others_while_their_clients_hold() {
    let lingerd = lingerd(&[]);
    let Some(apache) = Setup::prefork(&lingerd.site.socket()).workers(2).start() else { return };
    publish(&apache);
    let held = hold(apache.address, 20);
    lingerd.wait_for("lingering=20 closed=0 idle=0");
    drop(held);
}

#[test]
fn thirty_megabytes_arrive_whole() {
    let lingerd = lingerd(&[]);
    let Some(apache) = Setup::prefork(&lingerd.site.socket()).tls().start() else { return };
    let big = publish(&apache);
    let plain = get(apache.address, "/big");
    assert!(plain.body == big);
    let tls = exchange_tls(apache.other, &[], request("/big").as_bytes(), 0);
    assert!(tls.held.body == big);
    lingerd.wait_for("lingering=2");
}

#[test]
fn an_upload_left_unread_does_not_destroy_the_response() {
    let lingerd = lingerd(&[]);
    let setup = Setup::prefork(&lingerd.site.socket()).with("LimitRequestBody 1000");
    let Some(apache) = setup.start() else { return };
    publish(&apache);
    let held: Vec<_> =
        (0..10).map(|_| exchange(http::connect(apache.address), &upload("/small", 3_000_000))).collect();
    for response in &held {
        assert!(response.head.contains(" 413 "), "{}", response.head);
        assert!(response.body.ends_with(b"</html>\n"));
    }
    lingerd.wait_for("lingering=10 reset=0");
}

#[test]
fn an_upload_left_unread_does_not_destroy_the_response_over_tls() {
    let lingerd = lingerd(&[]);
    let setup = Setup::prefork(&lingerd.site.socket()).tls().with("LimitRequestBody 1000");
    let Some(apache) = setup.start() else { return };
    publish(&apache);
    let size = 1_000_000;
    let held: Vec<_> =
        (0..5).map(|_| exchange_tls(apache.other, &["-tls1_2"], &upload("/small", size), size)).collect();
    for response in &held {
        assert!(response.held.head.contains(" 413 "), "{}", response.held.head);
        assert!(response.held.body.ends_with(b"</html>\n"));
    }
    lingerd.wait_for("lingering=5 reset=0");
}

#[test]
fn requests_that_nobody_will_answer_do_not_destroy_the_response() {
    let lingerd = lingerd(&[]);
    let Some(apache) = Setup::prefork(&lingerd.site.socket()).start() else { return };
    publish(&apache);
    let held = exchange(http::connect(apache.address), request("/small").repeat(10_000).as_bytes());
    assert_eq!(held.body, b"hello\n");
    lingerd.wait_for("lingering=1 reset=0");
}

#[test]
fn a_late_byte_is_no_reset() {
    let lingerd = lingerd(&[]);
    let Some(apache) = Setup::prefork(&lingerd.site.socket()).start() else { return };
    publish(&apache);
    let mut held = hold(apache.address, 1).remove(0);
    lingerd.wait_for("lingering=1");
    for bytes in 1..=5 {
        held.socket.write_all(b"x").unwrap();
        lingerd.wait_for(&format!("bytes_discarded={bytes}"));
    }
    assert_eq!(held.socket.read(&mut [0]).unwrap(), 0);
    drop(held);
    lingerd.finish("closed=1 bytes_discarded=5");
}

#[test]
fn a_slow_reader_with_a_late_byte_gets_its_whole_response() {
    if !TELLS_ACKNOWLEDGED {
        // No skip: on such a system plain timers are all there is, as documented.
        return println!("this system does not tell what is acknowledged");
    }
    // The whole takes many times as long as lingerd waits for a sign of life.
    const STEPS: u64 = 8;
    let lingerd = lingerd(&["-t", "0.2"]);
    let page = tcp::big_response();
    let buffer = format!("SendBufferSize {}", 2 * page.len());
    let Some(apache) = Setup::prefork(&lingerd.site.socket()).with(&buffer).start() else { return };
    apache.publish("page", &page);
    let mut client = http::connect_with_small_window(apache.address, 16_000);
    client.write_all(request("/page").as_bytes()).unwrap();
    lingerd.wait_for("lingering=1");

    let mut response = Vec::new();
    let sender = lingerd.sender();
    for step in 0..STEPS {
        if step == STEPS / 2 {
            client.write_all(b"x").unwrap();
        }
        (&mut client)
            .take(page.len() as u64 / (2 * STEPS))
            .read_to_end(&mut response)
            .expect("the response was cut short");
        lingerd.let_idle_pass(&sender);
    }
    // No silence has ended it.
    lingerd.wait_for(&format!("lingering=1 idle={STEPS} bytes_discarded=1"));
    client.read_to_end(&mut response).expect("the response was cut short");
    assert!(response.ends_with(&page));
    drop(client);
    // From when all is acknowledged on one may, where this took long to close.
    lingerd.wait_for("lingering=0");
    let idle = lingerd.counters()["idle"];
    lingerd.finish(&format!("closed={} idle={idle} bytes_discarded=1", STEPS + 1 - idle));
}

#[test]
fn a_client_that_has_ended_its_side_is_not_handed_over() {
    let lingerd = lingerd(&[]);
    let Some(apache) = Setup::prefork(&lingerd.site.socket()).workers(1).start() else { return };
    publish(&apache);
    // The only worker waits for the rest of the first request, so that the second client has ended
    // before it is looked at.
    let (begin, rest) = ("GET /small", " HTTP/1.0\r\n\r\n");
    let mut first = http::connect(apache.address);
    first.write_all(begin.as_bytes()).unwrap();
    let mut second = http::connect(apache.address);
    second.write_all(request("/small").as_bytes()).unwrap();
    second.shutdown(Shutdown::Write).unwrap();
    let first = exchange(first, rest.as_bytes());
    let mut response = Vec::new();
    second.read_to_end(&mut response).unwrap();
    assert!(response.ends_with(b"hello\n"));
    // A third shows that the second would have been there by now.
    let third = hold(apache.address, 1);
    lingerd.wait_for("handed_over=2 lingering=2");
    drop((first, third));
    lingerd.finish("closed=2");
}

#[test]
fn a_worker_that_looks_in_vain_whether_clients_are_done_finds_out_when_they_are() {
    let lingerd = lingerd(&[]);
    let Some(apache) = Setup::prefork(&lingerd.site.socket()).workers(1).start() else { return };
    publish(&apache);
    // Often enough for it to give up.
    drop(hold(apache.address, 50));
    lingerd.wait_for("handed_over=50 closed=50");
    // The worker waits for the rest of the first request, so that the others have ended before it looks at them.
    let mut first = http::connect(apache.address);
    first.write_all(b"GET /small").unwrap();
    let clients: Vec<_> = (0..100)
        .map(|_| {
            let mut client = http::connect(apache.address);
            client.write_all(request("/small").as_bytes()).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            client
        })
        .collect();
    let first = exchange(first, b" HTTP/1.0\r\n\r\n");
    clients.into_iter().for_each(|client| assert_eq!(exchange(client, b"").body, b"hello\n"));
    // What comes of the last shows that all before it are counted.
    let mut last = hold(apache.address, 1);
    last[0].socket.write_all(b"x").unwrap();
    lingerd.wait_for("bytes_discarded=1");
    let needless = lingerd.counters()["handed_over"] - 52;
    assert!(0 < needless && needless < 50, "{needless} of 100");
    drop((first, last));
}

#[test]
fn ipv6_is_handed_over_too() {
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        return skip("there is no IPv6");
    }
    let lingerd = lingerd(&[]);
    let setup = Setup::prefork(&lingerd.site.socket()).listen(Ipv6Addr::LOCALHOST.into());
    let Some(apache) = setup.start() else { return };
    publish(&apache);
    let held = hold(apache.address, 3);
    lingerd.wait_for("lingering=3");
    drop(held);
}

#[test]
fn tls_says_goodbye_before_the_end_of_the_stream() {
    let lingerd = lingerd(&[]);
    let Some(apache) = Setup::prefork(&lingerd.site.socket()).tls().start() else { return };
    publish(&apache);
    // Before TLS 1.3 an alert can be told from outside.
    let tls = exchange_tls(apache.other, &["-tls1_2"], request("/small").as_bytes(), 0);
    assert_eq!(tls.held.body, b"hello\n");
    assert_eq!(tls.records[tls.records.len() - 2..], [record::APPLICATION_DATA, record::ALERT]);
    lingerd.wait_for("lingering=1");
}

#[test]
fn php_is_handed_over_too() {
    let lingerd = lingerd(&[]);
    let Some(apache) = Setup::prefork(&lingerd.site.socket()).php().start() else { return };
    apache.publish("page.php", b"<?php echo str_repeat('x', 20000);");
    let held: Vec<_> = (0..10).map(|_| get(apache.address, "/page.php")).collect();
    assert!(held.iter().all(|held| held.body == [b'x'; 20_000]));
    lingerd.wait_for("lingering=10");
}

// ---- When lingerd is not well ---------------------------------------------------------------

#[test]
fn without_lingerd_all_is_served_and_one_warning_names_the_socket() {
    let site = Site::new();
    let Some(apache) = Setup::prefork(&site.socket()).workers(4).start() else { return };
    publish(&apache);
    under_load(apache.address, |wait_for_more| wait_for_more(SOME));
    let complaints = complaints(&apache);
    assert_eq!(complaints.len(), 1, "{complaints:#?}");
    assert!(complaints[0].contains("[lingerd:warn]"), "{complaints:?}");
    assert!(complaints[0].contains(site.socket().to_str().unwrap()), "{complaints:?}");
}

#[test]
fn a_lingerd_that_comes_later_is_found() {
    let site = Site::new();
    let Some(apache) = Setup::prefork(&site.socket()).workers(1).start() else { return };
    publish(&apache);
    hold(apache.address, 1);
    wait_until("lingerd is missed", || !apache.errors_with("cannot reach lingerd").is_empty());
    let lingerd = site.start(&["-m", "0666"]);
    wait_until("lingerd is found", || {
        let _held = hold(apache.address, 1);
        lingerd.counters()["handed_over"] > 0
    });
    wait_until("that is logged", || complaints(&apache).len() == 2);
    assert!(complaints(&apache)[1].contains("takes connections again"));
}

#[test]
fn lingerd_may_be_killed_and_started_under_load() {
    let site = Site::new();
    let Some(apache) = Setup::prefork(&site.socket()).workers(4).start() else { return };
    publish(&apache);
    under_load(apache.address, |wait_for_more| {
        for _ in 0..3 {
            let lingerd = site.start(&["-m", "0666"]);
            wait_for_more(SOME);
            // It is found again at the next full second, whatever the load.
            wait_until("the new lingerd is used", || {
                let _held = hold(apache.address, 1);
                lingerd.counters()["handed_over"] > 0
            });
            lingerd.kill();
            wait_for_more(SOME);
        }
    });
}

#[test]
fn a_lingerd_that_hangs_fails_no_response_and_lingers_later_what_was_queued() {
    /// So few that one link can queue them on every system.
    const FEW: usize = 10;
    let lingerd = lingerd(&[]);
    let Some(apache) = Setup::prefork(&lingerd.site.socket()).start() else { return };
    publish(&apache);
    drop(hold(apache.address, 10)); // so that the links are there
    lingerd.freeze();
    let held = hold(apache.address, FEW);
    // Many more than the links can queue; from there on the workers linger.
    under_load(apache.address, |wait_for_more| wait_for_more(2_000));
    lingerd.thaw();
    lingerd.wait_for(&format!("lingering={FEW}"));
    drop(held);
    lingerd.wait_for("lingering=0");
    assert_eq!(complaints(&apache), [""; 0]);
}

#[test]
fn a_full_lingerd_gives_up_the_oldest() {
    let lingerd = lingerd(&["-n", "1"]);
    let Some(apache) = Setup::prefork(&lingerd.site.socket()).start() else { return };
    publish(&apache);
    let held = hold(apache.address, 5);
    lingerd.wait_for("handed_over=5 lingering=1 evicted=4");
    drop(held);
    lingerd.finish("closed=1 evicted=4");
}

#[test]
fn connections_linger_on_when_apache_stops() {
    let lingerd = lingerd(&[]);
    let Some(mut apache) = Setup::prefork(&lingerd.site.socket()).start() else { return };
    publish(&apache);
    let held = hold(apache.address, 5);
    lingerd.wait_for("lingering=5");
    apache.stop();
    lingerd.wait_for("lingering=5 senders=0");
    drop(held);
    lingerd.finish("closed=5");
}

// ---- Apache's own ways ----------------------------------------------------------------------

#[test]
fn another_sender_that_is_loaded_too_is_not_called() {
    // As any module's may be: of another version, and there first.
    let site = Site::new();
    let source = site.path("other.c");
    let functions =
        "init init_spool open half_close shutdown client_done give give_for spool park transient drop"
            .split(' ');
    let code: String = functions
        .map(|name| format!("void lingerd_{name}(void);\nvoid lingerd_{name}(void) {{ abort(); }}\n"))
        .collect();
    fs::write(&source, format!("#include <stdlib.h>\n{code}")).unwrap();
    let Some(other) = compile("other.so", &["-shared", "-fPIC", source.to_str().unwrap()]) else { return };
    let lingerd = lingerd(&[]);
    let setup = Setup::prefork(&lingerd.site.socket()).load_file_first(&other);
    let Some(apache) = setup.start() else { return };
    publish(&apache);
    let held = hold(apache.address, 5);
    lingerd.wait_for("handed_over=5 lingering=5");
    drop(held);
    assert_eq!(complaints(&apache), [""; 0]);
    lingerd.finish("closed=5");
}

#[test]
fn a_graceful_restart_under_load_fails_no_response() {
    let lingerd = lingerd(&[]);
    let Some(apache) = Setup::prefork(&lingerd.site.socket()).workers(4).start() else { return };
    publish(&apache);
    let before = hold(apache.address, 1);
    under_load(apache.address, |wait_for_more| {
        for _ in 0..2 {
            wait_for_more(SOME);
            apache.restart_gracefully();
            wait_for_more(SOME);
        }
    });
    let after = hold(apache.address, 1);
    lingerd.wait_for("lingering=2");
    drop((before, after));
    assert_eq!(complaints(&apache), [""; 0]);
}

#[test]
fn the_access_log_never_says_aborted_of_a_response_that_was_whole() {
    let lingerd = lingerd(&[]);
    let setup = Setup::prefork(&lingerd.site.socket()).workers(1).tls();
    let Some(apache) = setup.with(KEPT).start() else { return };
    publish(&apache);
    let mut whole = 0;
    for path in ["/small", "/page", "/big"] {
        let length = get(apache.address, path).body.len();
        exchange_tls(apache.other, &[], request(path).as_bytes(), 0);
        // Not at once: the first request is logged when its response is out, and would then be
        // logged as the second one wants it.
        let mut client = http::connect(apache.address);
        write!(client, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            client.read_exact(&mut byte).unwrap();
            head.extend(byte);
        }
        client.read_exact(&mut vec![0; length]).unwrap();
        let last = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        http::exchange(client, last.as_bytes());
        whole += 4;
    }
    // The worker is alone, and writes its lines in order.
    hold(apache.address, 1);
    whole += 1;
    wait_until("all are logged", || apache.access_log().len() == whole);
    let log = apache.access_log();
    assert!(log.iter().all(|line| line.starts_with("- 200 ") || line.starts_with("+ 200 ")), "{log:#?}");
    assert_eq!(log.iter().filter(|line| line.starts_with('+')).count(), 3, "{log:#?}");

    // And it does say so of a client that has gone in the midst of what the worker writes itself.
    let mut client = http::connect(apache.address);
    client.write_all(b"GET /big HTTP/1.0\r\nUpgrade: anything\r\n\r\n").unwrap();
    client.read_exact(&mut [0]).unwrap();
    tcp::reset(client);
    wait_until("the last is logged", || apache.access_log().len() == whole + 1);
    assert!(apache.access_log()[whole].starts_with("X 200 "), "{:?}", apache.access_log());
}

/// A time-out of its own would keep the client for ten minutes.
#[test]
fn who_was_too_slow_to_ask_is_kept_for_no_longer_than_apache_does() {
    let lingerd = lingerd(&["-t", "600", "-D", "600"]);
    let setup = Setup::prefork(&lingerd.site.socket()).modules(&["reqtimeout"]);
    let Some(apache) = setup.with("RequestReadTimeout header=1").start() else { return };
    publish(&apache);
    let other = hold(apache.address, 1);
    let mut client = http::connect(apache.address);
    client.write_all(b"GET /small HTTP/1.1\r\nX-Slow: ").unwrap();
    let mut response = Vec::new();
    client.read_to_end(&mut response).unwrap();
    assert!(response.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&response));
    lingerd.wait_for("handed_over=2 limit=1 lingering=1");
    drop(other);
    lingerd.finish("limit=1 closed=1");
}

/// Logs what a connection is when it goes, as a module does that cares for whether its client was served.
const LOOK: &str = r#"
#include "httpd.h"
#include "http_config.h"
#include "http_connection.h"
#include "http_log.h"

module AP_MODULE_DECLARE_DATA look_module;
APLOG_USE_MODULE(look);

static apr_status_t look(void *data)
{
    conn_rec *c = data;

    ap_log_error(APLOG_MARK, APLOG_NOTICE, 0, c->base_server, "gone with aborted %d", (int)c->aborted);
    return APR_SUCCESS;
}

static int begin(conn_rec *c, void *socket)
{
    (void)socket;
    apr_pool_cleanup_register(c->pool, c, look, apr_pool_cleanup_null);
    return OK;
}

static void hooks(apr_pool_t *p)
{
    (void)p;
    ap_hook_pre_connection(begin, NULL, NULL, APR_HOOK_MIDDLE);
}

module AP_MODULE_DECLARE_DATA look_module = {
    STANDARD20_MODULE_STUFF, NULL, NULL, NULL, NULL, NULL, hooks,
#ifdef AP_MODULE_FLAG_NONE
    AP_MODULE_FLAG_NONE
#endif
};
"#;

#[test]
fn a_module_sees_whether_the_client_has_gone_and_not_that_lingerd_has_it() {
    let site = Site::new();
    let Some(look) = build_module(&site, "mod_look", LOOK) else { return };
    let look = format!("LoadModule look_module \"{}\"\nLogLevel look:notice", look.display());
    for mpm in [Mpm::Prefork, Mpm::Worker] {
        let lingerd = lingerd(&[]);
        let setup = Setup::new(mpm).lingerd(&lingerd.site.socket()).tls().with(&look);
        let Some(apache) = setup.with(KEPT).with("LingerdPark On").start() else { return };
        publish(&apache);
        let gone = |whole: usize, aborted: usize| {
            wait_until("all have gone", || apache.errors_with("gone with aborted").len() == whole + aborted);
            assert_eq!(apache.errors_with("gone with aborted 0").len(), whole, "{mpm:?}");
        };
        let mut held = hold(apache.address, 2);
        held.push(exchange_tls(apache.other, &[], request("/small").as_bytes(), 0).held);
        lingerd.wait_for("handed_over=3 lingering=3");
        gone(3, 0);
        // What is left to lingerd to write.
        let mut client = http::connect_with_small_window(apache.address, 4096);
        client.write_all(request("/big").as_bytes()).unwrap();
        lingerd.wait_for("handed_over=4 spooling=1");
        gone(4, 0);
        let mut whole = 4;
        if mpm == Mpm::Prefork {
            // And one that waits for its next request there, of which it knows more each time.
            let mut kept = http::connect(apache.address);
            for _ in 0..2 {
                kept.write_all(b"GET /small HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
                assert_eq!(http::read_one(&mut kept).1, b"hello\n");
                whole += 1;
                lingerd.wait_for(&format!("parked=1 returned={}", whole - 5));
                gone(whole, 0);
            }
        }
        // One that goes in the midst of what the worker writes itself.
        let mut client = http::connect(apache.address);
        client.write_all(b"GET /big HTTP/1.0\r\nUpgrade: anything\r\n\r\n").unwrap();
        client.read_exact(&mut [0]).unwrap();
        tcp::reset(client);
        gone(whole, 1);
    }
}

#[test]
fn the_event_mpm_does_without_and_says_so_once() {
    let lingerd = lingerd(&[]);
    let setup = Setup::new(Mpm::Event).lingerd(&lingerd.site.socket());
    let Some(apache) = setup.start() else { return };
    publish(&apache);
    drop(hold(apache.address, 5));
    apache.restart_gracefully();
    drop(hold(apache.address, 5));
    let complaints = complaints(&apache);
    assert_eq!(complaints.len(), 1, "{complaints:#?}");
    assert!(complaints[0].contains("mod_lingerd has nothing to do"), "{complaints:?}");
    let counters = lingerd.counters();
    assert_eq!((counters["senders"], counters["handed_over"]), (0, 0));
}

/// The processes that have served a request.
fn processes(apache: &Apache) -> HashSet<String> {
    apache.access_log().iter().map(|line| line.split(' ').nth(3).unwrap().to_owned()).collect()
}

#[test]
fn there_is_one_sender_for_each_process_of_prefork() {
    let lingerd = lingerd(&[]);
    let Some(apache) = Setup::prefork(&lingerd.site.socket()).workers(3).start() else { return };
    publish(&apache);
    let held = hold(apache.address, 30);
    lingerd.wait_for("lingering=30");
    lingerd.wait_for(&format!("senders={}", processes(&apache).len()));
    drop(held);
}

#[test]
fn there_is_one_sender_for_all_threads_of_a_worker_process() {
    let lingerd = lingerd(&[]);
    let setup = Setup::new(Mpm::Worker).children(2).workers(8).lingerd(&lingerd.site.socket()).tls();
    let Some(apache) = setup.start() else { return };
    publish(&apache);
    // All threads at once, each with a client that holds.
    let held: Vec<_> = thread::scope(|scope| {
        let clients: Vec<_> = (0..16).map(|_| scope.spawn(|| hold(apache.address, 10))).collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    let tls = exchange_tls(apache.other, &[], request("/small").as_bytes(), 0);
    assert_eq!(tls.held.body, b"hello\n");
    lingerd.wait_for("lingering=161");
    lingerd.wait_for(&format!("senders={}", processes(&apache).len()));
    drop(held);
}

#[test]
fn a_graceful_restart_of_worker_under_load_fails_no_response() {
    let lingerd = lingerd(&[]);
    let setup = Setup::new(Mpm::Worker).workers(8).lingerd(&lingerd.site.socket());
    let Some(apache) = setup.start() else { return };
    publish(&apache);
    under_load(apache.address, |wait_for_more| {
        wait_for_more(SOME);
        apache.restart_gracefully();
        wait_for_more(SOME);
    });
    let held = hold(apache.address, 1);
    lingerd.wait_for("lingering=1 senders=1");
    drop(held);
}

#[test]
fn in_a_chroot_the_socket_has_the_path_that_it_has_from_within() {
    if !is_root() {
        return;
    }
    let lingerd = lingerd(&[]);
    let jail = lingerd.site.path("");
    let within = Path::new("/").join(lingerd.site.socket().strip_prefix(&jail).unwrap());
    let chroot = format!("ChrootDir \"{}\"", jail.display());
    let Some(apache) = Setup::prefork(&within).with(&chroot).start() else { return };
    // Its documents are elsewhere.
    let get = |apache: &Apache| exchange(http::connect(apache.address), request("/small").as_bytes());
    let held = get(&apache);
    assert!(held.head.contains(" 404 "), "{}", held.head);
    lingerd.wait_for("handed_over=1 lingering=1");
    let Some(apache) = Setup::prefork(&lingerd.site.socket()).with(&chroot).start() else { return };
    drop(get(&apache));
    wait_until("lingerd is missed", || !apache.errors_with("cannot reach lingerd").is_empty());
    drop(held);
    lingerd.finish("closed=1");
}

// ---- Programs that Apache starts ------------------------------------------------------------

/// That a program which an Apache with a link to lingerd starts at `path` has no socket.
fn assert_no_socket(setup: Setup, publish_programs: impl FnOnce(&Apache), lingerd: &Daemon, path: &str) {
    if !sockets_can_be_counted() {
        return;
    }
    let Some(apache) = setup.lingerd(&lingerd.site.socket()).workers(1).start() else { return };
    publish(&apache);
    publish_programs(&apache);
    let held = hold(apache.address, 1);
    lingerd.wait_for("lingering=1 senders=1");
    let program = get(apache.address, path);
    assert_eq!(String::from_utf8_lossy(&program.body), "sockets=0\n");
    lingerd.wait_for("lingering=2 senders=1");
    drop(held);
}

fn publish_cgi(apache: &Apache) {
    let header = "#!/bin/sh\necho Content-Type: text/plain\necho\n";
    apache.publish_program("count.cgi", &format!("{header}{COUNT_SOCKETS}"));
}

#[test]
fn a_cgi_program_does_not_inherit_the_link() {
    assert_no_socket(Setup::new(Mpm::Prefork).cgi(), publish_cgi, &lingerd(&[]), "/count.cgi");
}

#[test]
fn a_cgi_program_under_worker_does_not_inherit_the_link() {
    assert_no_socket(Setup::new(Mpm::Worker).cgi(), publish_cgi, &lingerd(&[]), "/count.cgi");
}

#[test]
fn a_program_started_by_php_does_not_inherit_the_link() {
    let publish = |apache: &Apache| {
        apache.publish_program("count", &format!("#!/bin/sh\n{COUNT_SOCKETS}"));
        let program = apache.site.path("htdocs/count");
        let page = format!("<?php passthru('{}');", program.display());
        apache.publish("count.php", page.as_bytes());
    };
    assert_no_socket(Setup::new(Mpm::Prefork).php(), publish, &lingerd(&[]), "/count.php");
}

// ---- Configuration --------------------------------------------------------------------------

#[test]
fn lingerd_off_in_a_virtual_host() {
    let lingerd = lingerd(&[]);
    let setup = Setup::prefork(&lingerd.site.socket()).with_other("Lingerd Off");
    let Some(apache) = setup.start() else { return };
    publish(&apache);
    drop(hold(apache.other, 5));
    let held = hold(apache.address, 1);
    lingerd.wait_for("handed_over=1 lingering=1");
    drop(held);
}

#[test]
fn lingerd_on_in_a_virtual_host_alone() {
    let lingerd = lingerd(&[]);
    let setup = Setup::prefork(&lingerd.site.socket()).with("Lingerd Off").with_other("Lingerd On");
    let Some(apache) = setup.start() else { return };
    publish(&apache);
    drop(hold(apache.address, 5));
    let held = hold(apache.other, 1);
    lingerd.wait_for("handed_over=1 lingering=1");
    drop(held);
}

#[test]
fn the_socket_is_not_for_a_virtual_host_to_choose() {
    let setup = Setup::prefork(Path::new("lingerd.sock")).with_other("LingerdSocket other.sock");
    let Some(checked) = setup.check() else { return };
    checked.assert_failed(1, "LingerdSocket cannot occur within <VirtualHost> section");
}

#[test]
fn a_path_too_long_for_a_socket_is_refused_with_the_limit() {
    let path = |length: usize| format!("/{}", "x".repeat(length - 1));
    let limit = (1..1000).take_while(|&n| UnixAddr::from_pathname(path(n)).is_ok()).last().unwrap();
    let Some(longest) = Setup::prefork(path(limit).as_ref()).check() else { return };
    assert_eq!(longest.code, Some(0), "{longest:?}");
    let Some(longer) = Setup::prefork(path(limit + 1).as_ref()).check() else { return };
    longer.assert_failed(1, &format!("{} bytes, but the path of a Unix socket", limit + 1));
    longer.assert_failed(1, &format!("no more than {limit}"));
}
