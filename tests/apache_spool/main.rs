// SPDX-License-Identifier: BSD-3-Clause

//! What a client is slow to read, in a real Apache with mod_lingerd, and with a real lingerd behind it: the worker is
//! free when the response is made, and the client has all of it.
//!
//! A client that takes little at once is slow enough: what its connection does not take while nothing is read has to
//! be somewhere. Where a test has a single worker, that one was free each time.

mod modules;
mod pages;
mod restarts;
mod room;

use std::fs::{self, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use support::apache::{Apache, Mpm, Setup};
use support::daemon::{Daemon, Site};
use support::http::{self, Held, TlsClient, exchange, get, read_head, read_one, record, request};
use support::{compile, tcp, wait_until};

/// What no connection takes at once.
const MUCH: usize = 3_000_000;

/// How many at once.
const MANY: usize = 12;

/// A lingerd that Apache's user can connect to, and whose clock ends nothing.
fn lingerd(options: &[&str]) -> Daemon {
    Daemon::start(&[&["-m", "0666"], options].concat())
}

/// One worker, whose connections hold little that is not read.
fn setup(socket: &Path) -> Setup {
    Setup::prefork(socket).workers(1).with("SendBufferSize 65536\nLogLevel lingerd:debug")
}

/// Puts up a response in a file, and by PHP, and returns it.
fn publish(apache: &Apache) -> Vec<u8> {
    let much = tcp::response(MUCH);
    apache.publish("much", &much);
    apache.publish("much.php", b"<?php header('X-Test: php'); readfile(__DIR__ . '/much');");
    apache.publish("small", b"hello\n");
    apache.publish("page", &tcp::response(20_000));
    much
}

/// A client that has asked, and reads nothing yet.
fn ask(address: SocketAddr, request: &str) -> TcpStream {
    let mut client = http::connect_with_small_window(address, 4096);
    client.write_all(request.as_bytes()).unwrap();
    client
}

/// What it gets from here on, to the end.
fn read(client: TcpStream) -> Held {
    exchange(client, b"")
}

/// That the response is cut off so that it shows.
fn assert_reset(mut client: TcpStream) {
    let error = client.read_to_end(&mut Vec::new()).expect_err("it looks whole");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// That many who read nothing yet do not keep the worker, and that each gets `expected` then.
fn assert_spooled(lingerd: &Daemon, address: SocketAddr, path: &str, expected: &[u8]) {
    let before = lingerd.counters()["spooled"] as usize;
    let clients: Vec<_> = (0..MANY).map(|_| ask(address, &request(path))).collect();
    lingerd.wait_for(&format!("spooling={MANY} spooled={}", before + MANY));
    for client in clients {
        let held = read(client);
        assert!(held.head.contains(" 200 "), "{}", held.head);
        assert!(held.body == expected, "{path}: another body");
    }
    lingerd.wait_for("spooling=0 spool_bytes=0 broken=0 stalled=0");
}

/// Has a client read until lingerd has one more response; how many bytes that took.
fn read_until_spooled(lingerd: &Daemon, client: &mut TcpStream) -> usize {
    let before = lingerd.counters()["spooled"];
    let mut received = 0;
    while lingerd.counters()["spooled"] == before {
        let mut piece = vec![0; 50_000];
        client.read_exact(&mut piece).expect("it waits for its client to the end");
        received += piece.len();
    }
    received
}

/// A request with more fields.
fn request_with(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{fields}\r\n")
}

// ---- What is spooled ------------------------------------------------------------------------

#[test]
fn a_file_keeps_no_worker() {
    let lingerd = lingerd(&[]);
    let Some(apache) = setup(&lingerd.site.socket()).start() else { return };
    let much = publish(&apache);
    assert_spooled(&lingerd, apache.address, "/much", &much);
    lingerd.finish(&format!("closed={MANY}"));
}

#[test]
fn a_file_keeps_no_worker_with_sendfile() {
    let lingerd = lingerd(&[]);
    let Some(apache) = setup(&lingerd.site.socket()).with("EnableSendfile On").start() else { return };
    let much = publish(&apache);
    assert_spooled(&lingerd, apache.address, "/much", &much);
}

#[test]
fn php_keeps_no_worker() {
    let lingerd = lingerd(&[]);
    let Some(apache) = setup(&lingerd.site.socket()).php().start() else { return };
    let much = publish(&apache);
    assert_spooled(&lingerd, apache.address, "/much.php", &much);
    lingerd.finish(&format!("closed={MANY}"));
}

#[test]
fn php_keeps_no_worker_where_there_are_no_files_in_memory() {
    if !cfg!(target_os = "linux") {
        return println!("only Linux can be told that it has none");
    }
    let site = Site::new();
    let source = site.path("none.c");
    let none = "#include <errno.h>\nint memfd_create(const char *, unsigned);\n\
                int memfd_create(const char *name, unsigned flags)\n\
                { (void)name; (void)flags; errno = ENOSYS; return -1; }\n";
    fs::write(&source, none).unwrap();
    let none = compile("none.so", &["-shared", "-fPIC", source.to_str().unwrap()]);
    let Some(none) = none else { return };
    let lingerd = lingerd(&[]);
    let setup = setup(&lingerd.site.socket()).php().environment("LD_PRELOAD", &none);
    let Some(apache) = setup.start() else { return };
    let much = publish(&apache);
    assert_spooled(&lingerd, apache.address, "/much.php", &much);
}

#[test]
fn threads_of_worker_are_free_too() {
    let lingerd = lingerd(&[]);
    let setup = Setup::new(Mpm::Worker).workers(2).lingerd(&lingerd.site.socket());
    let Some(apache) = setup.with("SendBufferSize 65536").tls().start() else { return };
    let much = publish(&apache);
    assert_spooled(&lingerd, apache.address, "/much", &much);
    let clients: Vec<_> = (0..MANY).map(|_| ask_tls(apache.other, "/much")).collect();
    lingerd.wait_for(&format!("spooling={MANY}"));
    clients.into_iter().for_each(|client| assert_all_over_tls(client, &much));
    lingerd.wait_for("senders=1");
}

fn ask_tls(address: SocketAddr, path: &str) -> TlsClient {
    let mut client = TlsClient::start(http::connect_with_small_window(address, 4096)).unwrap();
    client.send(request(path).as_bytes()).unwrap();
    client
}

/// That the client gets `expected`, and then goodbye.
fn assert_all_over_tls(mut client: TlsClient, expected: &[u8]) {
    let mut buffer = vec![0; 256 * 1024];
    while client.relay_some(&mut buffer).expect("the response was cut short") > 0 {}
    let (plain, last) = client.finish();
    assert_eq!(last, Some(record::ALERT), "no goodbye");
    assert!(plain.ends_with(expected), "another body");
}

#[test]
fn over_tls_neither_a_file_nor_php_keeps_a_worker() {
    let lingerd = lingerd(&[]);
    let Some(apache) = setup(&lingerd.site.socket()).php().tls().start() else { return };
    let much = publish(&apache);
    for path in ["/much", "/much.php"] {
        let clients: Vec<_> = (0..MANY).map(|_| ask_tls(apache.other, path)).collect();
        lingerd.wait_for(&format!("spooling={MANY}"));
        clients.into_iter().for_each(|client| assert_all_over_tls(client, &much));
        lingerd.wait_for("spooling=0");
    }
    lingerd.wait_for(&format!("closed={}", 2 * MANY));
}

#[test]
fn ranges_are_spooled_however_many_they_are() {
    let lingerd = lingerd(&[]);
    let Some(apache) = setup(&lingerd.site.socket()).with_other("LingerdSpool Off").start() else { return };
    let much = publish(&apache);
    let one = ask(apache.address, &request_with("/much", "Range: bytes=100000-\r\n"));
    lingerd.wait_for("spooling=1");
    let held = read(one);
    assert!(held.head.contains(" 206 ") && held.body == much[100_000..], "{}", held.head);

    // Files and what stands between them: that is more parts than a message has room for.
    let ranges: Vec<_> = (0..9).map(|n| format!("{}-{}", n * 310_000, n * 310_000 + 300_000)).collect();
    let fields = format!("Range: bytes={}\r\n", ranges.join(","));
    let several = ask(apache.address, &request_with("/much", &fields));
    lingerd.wait_for("spooling=1 spooled=2");
    let held = read(several);
    assert!(held.head.contains(" 206 "), "{}", held.head);
    let expected = read(ask(apache.other, &request_with("/much", &fields)));
    let boundary = |held: &Held| {
        let rest = held.head.rsplit_once("boundary=").unwrap().1;
        rest.lines().next().unwrap().as_bytes().to_vec()
    };
    let pieces = |held: &Held| {
        let (boundary, mut pieces, mut rest) = (boundary(held), Vec::new(), &held.body[..]);
        while let Some(at) = rest.windows(boundary.len()).position(|bytes| bytes == boundary) {
            pieces.push(rest[..at].to_vec());
            rest = &rest[at + boundary.len()..];
        }
        pieces
    };
    assert_eq!(pieces(&held).len(), 10);
    assert!(pieces(&held) == pieces(&expected), "another body");
    lingerd.wait_for("spooled=2");
}

#[test]
fn what_is_compressed_is_spooled() {
    let lingerd = lingerd(&[]);
    let setup = setup(&lingerd.site.socket()).modules(&["filter", "deflate"]);
    let setup = setup.with("SetOutputFilter DEFLATE").with_other("LingerdSpool Off");
    let Some(apache) = setup.start() else { return };
    let mut random = fastrand::Rng::with_seed(1);
    let noise: Vec<_> = (0..MUCH).map(|_| random.u8(..)).collect();
    apache.publish("noise", &noise);
    let request = request_with("/noise", "Accept-Encoding: gzip\r\n");
    let client = ask(apache.address, &request);
    lingerd.wait_for("spooling=1");
    let held = read(client);
    assert!(held.head.contains("Content-Encoding: gzip"), "{}", held.head);
    let expected = read(ask(apache.other, &request));
    assert!(held.body == expected.body);
    lingerd.wait_for("spooled=1");
}

#[test]
fn a_program_s_output_arrives_whole() {
    let lingerd = lingerd(&[]);
    let Some(apache) = setup(&lingerd.site.socket()).cgi().start() else { return };
    let much = publish(&apache);
    apache.publish_program("much.cgi", "#!/bin/sh\necho Content-Type: text/plain\necho\nexec cat much\n");
    let held = read(ask(apache.address, &request("/much.cgi")));
    assert!(held.body == much);
}

#[test]
fn what_a_backend_sends_arrives_whole() {
    let lingerd = lingerd(&[]);
    let Some(backend) = Setup::new(Mpm::Prefork).start() else { return };
    let much = publish(&backend);
    let proxy = format!("ProxyPass /backend http://{}", backend.address);
    let setup = setup(&lingerd.site.socket()).modules(&["proxy", "proxy_http"]).with(&proxy);
    let Some(apache) = setup.start() else { return };
    let clients: Vec<_> = (0..3).map(|_| ask(apache.address, &request("/backend/much"))).collect();
    // Each may keep the worker: a backend that pauses has what it sent flushed.
    clients.into_iter().for_each(|client| assert!(read(client).body == much));
    lingerd.wait_for("spooling=0 broken=0 stalled=0");
}

#[test]
fn what_is_included_or_limited_in_rate_arrives_whole() {
    let lingerd = lingerd(&[]);
    let lines = "<Directory />\nOptions Includes ExecCGI\n</Directory>\n<Files *.shtml>\nSetOutputFilter INCLUDES\n</Files>\n\
                 <Location /limited>\nSetOutputFilter RATE_LIMIT\nSetEnv rate-limit 4000\n</Location>";
    let setup = setup(&lingerd.site.socket()).modules(&["include", "ratelimit", "env"]).cgi().with(lines);
    let Some(apache) = setup.start() else { return };
    let much = publish(&apache);
    apache.publish("limited", &much);
    apache.publish_program("much.cgi", "#!/bin/sh\necho Content-Type: text/plain\necho\nexec cat much\n");
    // A pipe, when there is something to be written already.
    apache.publish(
        "pipe.shtml",
        b"<!--#include virtual=\"/much\" -->and<!--#include virtual=\"/much.cgi\" -->",
    );
    let including = "<!--#include virtual=\"/much\" -->and<!--#include virtual=\"/much\" -->";
    apache.publish("page.shtml", including.as_bytes());
    let client = ask(apache.address, &request("/page.shtml"));
    lingerd.wait_for("spooling=1");
    assert!(read(client).body == [&much[..], b"and", &much].concat());
    let body = read(ask(apache.address, &request("/pipe.shtml"))).body;
    assert!(body == [&much[..], b"and", &much].concat());
    assert!(read(ask(apache.address, &request("/limited"))).body == much);
}

// ---- What is not ----------------------------------------------------------------------------

#[test]
fn what_is_small_or_has_no_body_is_not_spooled() {
    let lingerd = lingerd(&[]);
    let Some(apache) = setup(&lingerd.site.socket()).php().start() else { return };
    publish(&apache);
    assert_eq!(read(ask(apache.address, &request("/page"))).body, tcp::response(20_000));
    let mut date = None;
    for path in ["/much.php", "/much"] {
        let mut response = Vec::new();
        let head = format!("HEAD {path} HTTP/1.0\r\n\r\n");
        ask(apache.address, &head).read_to_end(&mut response).unwrap();
        assert!(response.starts_with(b"HTTP/1.1 200 ") && response.ends_with(b"\r\n\r\n"));
        let head = String::from_utf8(response).unwrap();
        date = head.lines().find_map(|line| line.strip_prefix("Last-Modified: ").map(str::to_owned));
    }
    let since = format!("If-Modified-Since: {}\r\n", date.unwrap());
    let held = read(ask(apache.address, &request_with("/much", &since)));
    assert!(held.head.contains(" 304 ") && held.body.is_empty(), "{}", held.head);
    lingerd.wait_for("spooled=0");
}

#[test]
fn a_connection_that_is_kept_alive_spools_its_last_response_only() {
    let lingerd = lingerd(&[]);
    let setup = setup(&lingerd.site.socket()).with("KeepAlive On\nKeepAliveTimeout 600");
    let Some(apache) = setup.start() else { return };
    let much = publish(&apache);
    let mut client = http::connect_with_small_window(apache.address, 4096);
    for _ in 0..2 {
        write!(client, "GET /much HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        assert!(read_one(&mut client).1 == much);
    }
    lingerd.wait_for("spooled=0 handed_over=0");
    client.write_all(request_with("/much", "").as_bytes()).unwrap();
    lingerd.wait_for("spooling=1");
    assert!(read(client).body == much);
    // Two in one piece, and the second is the last.
    let first = "GET /small HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let client = ask(apache.address, &format!("{first}{}", request_with("/much", "")));
    lingerd.wait_for("spooling=1 spooled=2");
    assert!(read_rest(client).ends_with(&much));
}

#[test]
fn lingerd_spool_off_in_a_virtual_host() {
    let lingerd = lingerd(&[]);
    let setup = setup(&lingerd.site.socket()).with_other("LingerdSpool Off");
    let Some(apache) = setup.start() else { return };
    let much = publish(&apache);
    let held = read(ask(apache.other, &request("/much")));
    assert!(held.body == much);
    lingerd.wait_for("lingering=1 spooled=0");
    drop(held);
    let client = ask(apache.address, &request("/much"));
    lingerd.wait_for("spooling=1 spooled=1");
    assert!(read(client).body == much);
}

#[test]
fn lingerd_spool_on_in_a_virtual_host_by_name() {
    let lingerd = lingerd(&[]);
    let hosts = "LingerdSpool Off\n<VirtualHost *>\nServerName first\n</VirtualHost>\n\
                 <VirtualHost *>\nServerName second\nLingerdSpool On\n</VirtualHost>";
    let setup = setup(&lingerd.site.socket()).with(hosts);
    let Some(apache) = setup.start() else { return };
    let much = publish(&apache);
    assert!(read(ask(apache.address, &request("/much"))).body == much);
    let of_second = request("/much").replace("localhost", "second");
    let client = ask(apache.address, &of_second);
    lingerd.wait_for("spooling=1 spooled=1");
    assert!(read(client).body == much);
}

// ---- What a page does meanwhile -------------------------------------------------------------

/// A page that writes `before`, goes on when there is a file `go`, and writes `after`.
fn paused(before: &str, after: &str) -> String {
    format!(
        "<?php {before} while (!file_exists(__DIR__ . '/go')) {{ usleep(5000); clearstatcache(); }} {after}"
    )
}

/// Lets pages put files up; returns where.
fn let_pages_write(apache: &Apache) -> PathBuf {
    let documents = apache.site.path("htdocs");
    fs::set_permissions(&documents, Permissions::from_mode(0o777)).unwrap();
    documents
}

#[test]
fn what_is_flushed_arrives_before_the_page_goes_on() {
    let lingerd = lingerd(&[]);
    let Some(apache) = setup(&lingerd.site.socket()).php().start() else { return };
    let page = paused("echo str_repeat('a', 500000); flush();", "echo str_repeat('b', 2000000);");
    apache.publish("page.php", page.as_bytes());
    let client = ask(apache.address, &request("/page.php"));
    let mut begin: Vec<u8> = Vec::new();
    while begin.iter().filter(|&&byte| byte == b'a').count() < 500_000 {
        let mut piece = [0; 4096];
        let bytes = tcp::read_some(&client, &mut piece).unwrap();
        begin.extend(&piece[..bytes]);
    }
    apache.publish("go", b"");
    lingerd.wait_for("spooling=1");
    assert!(read_rest(client) == [b'b'; 2_000_000]);
}

/// What is left of a response that has begun.
fn read_rest(mut client: TcpStream) -> Vec<u8> {
    tcp::read_to_end(&mut client)
}

#[test]
fn a_page_that_flushes_all_the_time_arrives_whole() {
    let lingerd = lingerd(&[]);
    let Some(apache) = setup(&lingerd.site.socket()).php().start() else { return };
    apache
        .publish("page.php", b"<?php for ($i = 0; $i < 300; $i++) { echo str_repeat('x', 5000); flush(); }");
    let held = read(ask(apache.address, &request("/page.php")));
    assert!(held.body == [b'x'; 1_500_000]);
    drop(held);
    lingerd.wait_for("lingering=0 spooling=0");
}

#[test]
fn a_page_in_tiny_pieces_arrives_whole() {
    let lingerd = lingerd(&[]);
    let Some(apache) = setup(&lingerd.site.socket()).php().start() else { return };
    apache.publish(
        "page.php",
        b"<?php ini_set('output_buffering', '0'); for ($i = 0; $i < 300000; $i++) echo $i, ' ';",
    );
    let client = ask(apache.address, &request("/page.php"));
    lingerd.wait_for("spooling=1");
    let expected: String = (0..300_000).map(|n| format!("{n} ")).collect();
    assert!(read(client).body == expected.as_bytes());
}

#[test]
fn an_error_in_the_midst_of_a_page_ends_it_there() {
    let lingerd = lingerd(&[]);
    let Some(apache) = setup(&lingerd.site.socket()).php().start() else { return };
    let page = "<?php ini_set('display_errors', '1'); echo str_repeat('a', 2000000); undefined_function();";
    apache.publish("page.php", page.as_bytes());
    let client = ask(apache.address, &request("/page.php"));
    lingerd.wait_for("spooling=1");
    let body = read(client).body;
    assert!(body.starts_with(&[b'a'; 2_000_000]));
    let said = String::from_utf8_lossy(&body[2_000_000..]).into_owned();
    assert!(said.contains("Call to undefined function"), "{said}");
}

#[test]
fn a_backend_that_breaks_off_leaves_no_response_that_looks_whole() {
    let lingerd = lingerd(&[]);
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = format!("ProxyPass /backend http://{}/", backend.local_addr().unwrap());
    let setup = setup(&lingerd.site.socket()).modules(&["proxy", "proxy_http"]).with(&proxy);
    let Some(apache) = setup.start() else { return };
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut link, _) = backend.accept().unwrap();
            let mut head = [0; 4096];
            assert!(link.read(&mut head).unwrap() > 0);
            write!(link, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nf4240\r\n").unwrap();
            link.write_all(&[b'x'; 1_000_000]).unwrap();
            write!(link, "\r\nf4240\r\n").unwrap();
            link.write_all(&[b'x'; 500_000]).unwrap();
        });
        let mut client = ask(apache.address, &request_with("/backend", ""));
        let mut response = Vec::new();
        // It may be cut off by a reset, or end without the last chunk.
        let _ = client.read_to_end(&mut response);
        assert!(response.starts_with(b"HTTP/1.1 200 "));
        assert!(!response.ends_with(b"0\r\n\r\n"), "it looks whole");
    });
    lingerd.wait_for("spooling=0");
}

#[test]
fn a_client_that_has_gone_ends_a_page() {
    let lingerd = lingerd(&[]);
    let Some(apache) = setup(&lingerd.site.socket()).php().start() else { return };
    let much = publish(&apache);
    let documents = let_pages_write(&apache);
    // While the page is made:
    let after = "for ($i = 0; $i < 1000; $i++) { echo str_repeat('b', 10000); usleep(100); } \
                 file_put_contents(__DIR__ . '/end', '');";
    let page = paused("echo str_repeat('a', 500000);", after);
    apache.publish("page.php", page.as_bytes());
    let mut client = ask(apache.address, &request("/page.php"));
    client.read_exact(&mut [0; 1000]).unwrap();
    tcp::reset(client);
    apache.publish("go", b"");
    wait_until("it is logged", || apache.access_log().len() == 1);
    assert!(apache.access_log()[0].starts_with("X 200 "), "{:?}", apache.access_log());
    assert!(!documents.join("end").exists(), "it was not told");
    lingerd.wait_for("spooled=0");
    // While it is spooled:
    let mut client = ask(apache.address, &request("/much.php"));
    lingerd.wait_for("spooling=1");
    client.read_exact(&mut [0; 1000]).unwrap();
    tcp::reset(client);
    lingerd.wait_for("spooling=0 reset=1");
    // The worker is as good as before.
    assert!(read(ask(apache.address, &request("/much.php"))).body == much);
}

// ---- When lingerd is not well ---------------------------------------------------------------

#[test]
fn without_lingerd_or_its_second_socket_the_worker_writes() {
    let site = Site::new();
    let Some(apache) = setup(&site.socket()).php().start() else { return };
    let much = publish(&apache);
    for path in ["/much", "/much.php"] {
        assert!(read(ask(apache.address, &request(path))).body == much);
    }
    let lingerd = site.start(&["-m", "0666"]);
    fs::remove_file(site.second()).unwrap(); // as of one that does not spool
    wait_until("lingerd is found", || {
        let _held = get(apache.address, "/small");
        lingerd.counters()["handed_over"] > 0
    });
    for path in ["/much", "/much.php"] {
        assert!(read(ask(apache.address, &request(path))).body == much);
    }
    lingerd.wait_for("spooled=0");
    let lines = apache.errors_with("lingerd.sock.2");
    assert!(lines.iter().all(|line| line.contains("[lingerd:debug]")), "that is no news: {lines:#?}");
}

#[test]
fn a_lingerd_that_is_killed_cuts_off_what_it_has() {
    let site = Site::new();
    let lingerd = site.start(&["-m", "0666"]);
    let Some(apache) = setup(&site.socket()).php().start() else { return };
    let much = publish(&apache);
    let clients = ["/much", "/much.php"].map(|path| ask(apache.address, &request(path)));
    lingerd.wait_for("spooling=2");
    lingerd.kill();
    clients.into_iter().for_each(assert_reset);
    assert!(read(ask(apache.address, &request("/much.php"))).body == much);
    let lingerd = site.start(&["-m", "0666"]);
    wait_until("the next one is found", || {
        let client = ask(apache.address, &request("/much.php"));
        thread::sleep(Duration::from_millis(50));
        let found = lingerd.counters()["spooled"] > 0;
        assert!(read(client).body == much);
        found
    });
}

#[test]
fn what_a_worker_writes_itself_the_next_lingerd_takes_over() {
    let site = Site::new();
    let Some(apache) = setup(&site.socket()).php().start() else { return };
    publish(&apache);
    let lingerd = site.start(&["-m", "0666"]);
    apache.publish("page.php", paused("echo str_repeat('a', 2000000);", "echo 'b';").as_bytes());
    let client = ask(apache.address, &request("/page.php"));
    wait_until("it is kept", || lingerd.counters()["senders"] == 1);
    lingerd.kill();
    apache.publish("go", b"");
    wait_until("the worker is told", || !apache.errors_with("does not take a response now").is_empty());
    assert!(apache.access_log().is_empty(), "it writes");
    let lingerd = site.start(&["-m", "0666"]);
    lingerd.wait_for("spooling=1");
    let body = read(client).body;
    assert!(body.len() == 2_000_001 && body.starts_with(&[b'a'; 2_000_000]));
}

#[test]
fn a_client_that_does_not_read_is_cut_off_by_the_time_out_of_apache() {
    let lingerd = lingerd(&[]);
    let Some(apache) = setup(&lingerd.site.socket()).with("Timeout 1").start() else { return };
    publish(&apache);
    let client = ask(apache.address, &request("/much"));
    lingerd.wait_for("spooled=1");
    lingerd.wait_for("stalled=1 cut_short=1");
    assert_reset(client);
}

#[test]
fn a_client_that_the_worker_gives_up_is_cut_off_visibly() {
    let site = Site::new();
    let Some(apache) = setup(&site.socket()).php().with("Timeout 1").start() else { return };
    publish(&apache);
    // There is a lingerd when it begins, and none when it is to be handed over.
    let lingerd = site.start(&["-m", "0666"]);
    apache.publish("page.php", paused("echo str_repeat('a', 2000000);", "echo 'b';").as_bytes());
    let client = ask(apache.address, &request("/page.php"));
    wait_until("it is kept", || lingerd.counters()["senders"] == 1);
    lingerd.kill();
    apache.publish("go", b"");
    wait_until("it is logged", || apache.access_log().len() == 1);
    let log = apache.access_log();
    assert!(log[0].starts_with("X 200 "), "{log:?}");
    assert_reset(client);
}

// ---- Logs -----------------------------------------------------------------------------------

#[test]
fn the_access_log_counts_what_is_spooled_as_sent() {
    let lingerd = lingerd(&[]);
    let log = "LogFormat \"%X %>s %b %O %{lingerd-spooled}n %U\" spool\nCustomLog spool_log spool";
    let setup = setup(&lingerd.site.socket()).php().tls().modules(&["logio"]).with(log);
    let Some(apache) = setup.start() else { return };
    publish(&apache);
    let lines = || fs::read_to_string(apache.site.path("spool_log")).unwrap_or_default();
    let clients = ["/much", "/much.php"].map(|path| ask(apache.address, &request(path)));
    lingerd.wait_for("spooling=2");
    let spooled = lingerd.counters()["spool_bytes"];
    // Each is logged when it is handed over.
    wait_until("both are logged", || lines().lines().count() == 2);
    let mut all = 0;
    for (line, client) in lines().lines().zip(clients) {
        let words: Vec<_> = line.split(' ').collect();
        assert_eq!(words[..3], ["-", "200", "3000000"], "{line}");
        let held = read(client);
        let received = held.head.len() + 4 + held.body.len();
        assert_eq!(words[3], received.to_string(), "{line}");
        let spooled: usize = words[4].parse().unwrap();
        assert!(spooled > 1_000_000 && spooled < received, "{line}");
        all += spooled;
    }
    assert!(all as u64 >= spooled);
    read(ask(apache.address, &request("/page")));
    wait_until("it is logged", || lines().lines().count() == 3);
    let small = lines().lines().last().unwrap().to_owned();
    assert!(small.starts_with("- 200 20000 2") && small.ends_with(" - /page"), "{small}");
    // Ciphertext is counted, and goodbye.
    let client = ask_tls(apache.other, "/much");
    lingerd.wait_for("spooling=1");
    assert_all_over_tls(client, b"");
    wait_until("it is logged", || lines().lines().count() == 4);
    let tls = lines().lines().last().unwrap().to_owned();
    let bytes: usize = tls.split(' ').nth(3).unwrap().parse().unwrap();
    assert!(tls.starts_with("- 200 3000000 ") && bytes > MUCH, "{tls}");
}

// ---- Bounds ---------------------------------------------------------------------------------

#[test]
fn beyond_the_most_of_a_response_the_worker_waits_and_all_arrives() {
    let lingerd = lingerd(&[]);
    let setup = setup(&lingerd.site.socket()).php().with("LingerdSpoolMax 1000000");
    let Some(apache) = setup.start() else { return };
    let much = publish(&apache);
    // A file takes up nothing.
    assert_spooled(&lingerd, apache.address, "/much", &much);
    let client = ask(apache.address, &request("/much.php"));
    tcp::wait_until_readable(&client);
    assert_eq!(lingerd.counters()["spooled"], MANY as u64);
    let held = read(client);
    assert!(held.body == much);
    // Of that a worker may keep all.
    apache.publish("less.php", b"<?php echo str_repeat('x', 900000);");
    assert_spooled(&lingerd, apache.address, "/less.php", &[b'x'; 900_000]);
}

#[test]
fn what_all_children_keep_is_bounded_whatever_becomes_of_one() {
    let lingerd = lingerd(&[]);
    let setup = setup(&lingerd.site.socket()).php().workers(2).with("LingerdSpoolMax 64000000 1800000");
    let Some(apache) = setup.start() else { return };
    let much = publish(&apache);
    apache.publish("less.php", b"<?php echo str_repeat('x', 900000);");
    let before = "file_put_contents(__DIR__ . '/pid', getmypid()); echo str_repeat('a', 900000); \
                  file_put_contents(__DIR__ . '/kept', '');";
    apache.publish("page.php", paused(before, "").as_bytes());
    let documents = let_pages_write(&apache);
    // One keeps nearly all there may be, so that the other one has to wait for its client.
    let paused = ask(apache.address, &request("/page.php"));
    wait_until("it is kept", || documents.join("kept").exists());
    let mut client = ask(apache.address, &request("/less.php"));
    let received = read_until_spooled(&lingerd, &mut client);
    assert!(received >= 300_000, "it need not wait: {received}");
    let rest = read_rest(client);
    assert!(rest.ends_with(b"x") && received + rest.len() > 900_000);
    let before = lingerd.counters()["spooled"];
    // It is killed, and its parent gives that back.
    let pid: i32 = fs::read_to_string(documents.join("pid")).unwrap().parse().unwrap();
    lingerd_platform::process::kill(pid, libc::SIGKILL).unwrap();
    drop(paused);
    wait_until("the other one need not wait any more", || {
        let client = ask(apache.address, &request("/less.php"));
        thread::sleep(Duration::from_millis(50));
        let spooled = lingerd.counters()["spooled"] > before;
        assert_eq!(read(client).body, [b'x'; 900_000]);
        spooled
    });
    assert!(read(ask(apache.address, &request("/much.php"))).body == much);
}

#[test]
fn of_ranges_of_a_large_file_no_more_is_kept_than_of_all_children() {
    let lingerd = lingerd(&[]);
    let setup = setup(&lingerd.site.socket()).with("LingerdSpoolMax 64000000 1000000");
    let Some(apache) = setup.start() else { return };
    let large = tcp::response(4 * MUCH);
    apache.publish("large", &large);
    // More parts than a message has room for, and too much to make one of them.
    let ranges: Vec<_> = (0..9).map(|n| format!("{}-{}", n * 1_300_000, n * 1_300_000 + 1_200_000)).collect();
    let fields = format!("Range: bytes={}\r\n", ranges.join(","));
    let held = read(ask(apache.address, &request_with("/large", &fields)));
    assert!(held.head.contains(" 206 "), "{}", held.head);
    for n in 0..9 {
        let part = &large[n * 1_300_000..=n * 1_300_000 + 1_200_000];
        assert!(held.body.windows(1000).any(|bytes| bytes == &part[..1000]), "part {n} begins otherwise");
        assert!(
            held.body.windows(1000).any(|bytes| bytes == &part[part.len() - 1000..]),
            "part {n} ends otherwise"
        );
    }
    assert!(held.body.len() > 9 * 1_200_001);
    lingerd.wait_for("spooled=0");
}

#[test]
fn a_page_of_many_files_arrives_whole() {
    let lingerd = lingerd(&[]);
    let lines =
        "<Directory />\nOptions Includes\n</Directory>\n<Files *.shtml>\nSetOutputFilter INCLUDES\n</Files>";
    let setup = setup(&lingerd.site.socket()).modules(&["include"]).with(lines);
    let Some(apache) = setup.start() else { return };
    let page: String = (0..300).map(|n| format!("<!--#include virtual=\"/{n}\" -->-{n}-")).collect();
    let parts: Vec<_> = (0..300).map(|n| tcp::response(10_000 + n)).collect();
    parts.iter().enumerate().for_each(|(n, part)| apache.publish(&n.to_string(), part));
    apache.publish("page.shtml", page.as_bytes());
    let expected: Vec<_> =
        parts.iter().enumerate().flat_map(|(n, part)| [part, format!("-{n}-").as_bytes()].concat()).collect();
    assert_spooled(&lingerd, apache.address, "/page.shtml", &expected);
}

#[test]
fn what_is_known_to_be_much_too_large_is_left_to_apache() {
    let lingerd = lingerd(&[]);
    let setup = setup(&lingerd.site.socket()).php().tls().with("LingerdSpoolMax 1000000");
    let Some(apache) = setup.start() else { return };
    let much = publish(&apache);
    let page = "<?php header('Content-Length: 3000000'); readfile(__DIR__ . '/much');";
    apache.publish("page.php", page.as_bytes());
    assert!(read(ask(apache.address, &request("/page.php"))).body == much);
    assert_all_over_tls(ask_tls(apache.other, "/much"), &much);
    assert_eq!(lingerd.counters()["spooled"], 0);
    // Of others the rest is spooled, as far as it may be kept.
    let mut client = ask(apache.address, &request("/much.php"));
    read_until_spooled(&lingerd, &mut client);
    assert!(read_rest(client).ends_with(&much[MUCH - 500_000..]));
    assert_spooled(&lingerd, apache.address, "/much", &much);
}

#[test]
fn a_most_that_is_none_is_refused() {
    let check = |line: &str| Setup::prefork(Path::new("lingerd.sock")).with(line).check();
    for right in ["LingerdSpoolMax 0", "LingerdSpoolMax 1000000 5000000", "LingerdSpool Off"] {
        let Some(checked) = check(right) else { return };
        assert_eq!(checked.code, Some(0), "{checked:?}");
    }
    for wrong in ["LingerdSpoolMax 64M", "LingerdSpoolMax -1", "LingerdSpoolMax 1 x", "LingerdSpoolMax \"\""]
    {
        check(wrong).unwrap().assert_failed(1, "how many bytes of a response to keep");
    }
    let setup = Setup::prefork(Path::new("lingerd.sock")).with_other("LingerdSpoolMax 1");
    setup.check().unwrap().assert_failed(1, "LingerdSpoolMax cannot occur within <VirtualHost> section");
}

#[test]
fn a_path_that_has_no_room_for_a_second_one_is_told() {
    let site = Site::new();
    let directory = site.path("");
    let fits = |length: usize| std::os::unix::net::SocketAddr::from_pathname("x".repeat(length)).is_ok();
    let longest = (1..).take_while(|&length| fits(length)).last().unwrap();
    let path = directory.join("x".repeat(longest - directory.as_os_str().len()));
    let Some(apache) = setup(&path).start() else { return };
    let much = publish(&apache);
    assert!(read(ask(apache.address, &request("/much"))).body == much);
    let told = apache.errors_with(".2 would be too long for a Unix socket");
    assert!(matches!(&told[..], [line] if line.contains("[lingerd:warn]")), "{told:?}");
}

#[test]
fn no_program_inherits_what_is_kept() {
    if !cfg!(target_os = "linux") {
        return println!("what is listed is called differently elsewhere");
    }
    let lingerd = lingerd(&[]);
    let Some(apache) = setup(&lingerd.site.socket()).php().start() else { return };
    let page = "<?php echo str_repeat('a', 2000000); passthru('ls -l /proc/self/fd');";
    apache.publish("page.php", page.as_bytes());
    let body = read(ask(apache.address, &request("/page.php"))).body;
    let listed = String::from_utf8_lossy(&body[2_000_000..]).into_owned();
    assert!(listed.contains(" 0 -> "), "{listed}");
    assert!(!listed.contains("memfd"), "{listed}");
}
