// SPDX-License-Identifier: BSD-3-Clause

//! What decides while a response is made whether it is the last one, and where it comes from.

use super::*;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use support::not_run;

/// A client that keeps its connection alive.
fn ask_alive(apache: &Apache, path: &str) -> TcpStream {
    ask(apache.address, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
}

#[test]
fn a_page_that_ends_its_connection_is_spooled() {
    let lingerd = lingerd(&[]);
    let setup = setup(&lingerd.site.socket()).php().with("KeepAlive On\nKeepAliveTimeout 600");
    let Some(apache) = setup.start() else { return };
    let much = publish(&apache);
    let page =
        "<?php header('Connection: close'); header('Content-Length: 3000000'); readfile(__DIR__ . '/much');";
    apache.publish("page.php", page.as_bytes());
    let mut client = ask_alive(&apache, "/small");
    assert_eq!(read_one(&mut client).1, b"hello\n");
    write!(client, "GET /page.php HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    lingerd.wait_for("spooling=1");
    assert!(read(client).body == much);
}

#[test]
fn the_last_one_that_a_connection_may_have_is_spooled() {
    let lingerd = lingerd(&[]);
    let lines = "KeepAlive On\nKeepAliveTimeout 600\nMaxKeepAliveRequests 1";
    let Some(apache) = setup(&lingerd.site.socket()).with(lines).start() else { return };
    let much = publish(&apache);
    let mut client = ask_alive(&apache, "/much");
    // Nobody knows yet that it is the last.
    assert!(read_one(&mut client).1 == much);
    lingerd.wait_for("spooled=0");
    for path in ["/much", "/small"] {
        write!(client, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    }
    lingerd.wait_for("spooling=1");
    let held = read(client);
    assert!(held.head.contains("Connection: close"), "{}", held.head);
    assert!(held.body == much, "what was asked for behind it is not answered");
}

#[test]
fn a_page_for_an_error_is_spooled_and_so_is_one_that_is_redirected_to() {
    let lingerd = lingerd(&[]);
    let lines =
        "ErrorDocument 404 /much.php\nLogFormat \"%>s %{lingerd-spooled}n\" spool\nCustomLog spool_log spool";
    let setup = setup(&lingerd.site.socket()).php().cgi().with(lines);
    let Some(apache) = setup.start() else { return };
    let much = publish(&apache);
    let client = ask(apache.address, &request("/nothing"));
    lingerd.wait_for("spooling=1");
    let held = read(client);
    assert!(held.head.contains(" 404 ") && held.body == much, "{}", held.head);
    let log = || fs::read_to_string(apache.site.path("spool_log")).unwrap();
    wait_until("it is logged", || log().ends_with('\n'));
    let log = log();
    let spooled = log.trim_end().strip_prefix("404 ").expect(&log);
    assert!(spooled.parse::<usize>().is_ok_and(|bytes| bytes > 0 && bytes < MUCH), "{log}");
    apache.publish_program("to.cgi", "#!/bin/sh\necho Location: /much\necho\n");
    let client = ask(apache.address, &request("/to.cgi"));
    lingerd.wait_for("spooling=1 spooled=2");
    assert!(read(client).body == much);
}

#[test]
fn what_a_page_includes_is_spooled_with_it() {
    let lingerd = lingerd(&[]);
    let Some(apache) = setup(&lingerd.site.socket()).php().start() else { return };
    let much = publish(&apache);
    apache.publish("page.php", b"<?php echo 'before'; virtual('/much'); virtual('/much.php'); echo 'after';");
    let body = read(ask(apache.address, &request("/page.php"))).body;
    assert!(body == [b"before", &much[..], &much, b"after"].concat());
}

#[test]
fn a_program_that_writes_its_own_head_arrives_whole() {
    let lingerd = lingerd(&[]);
    let Some(apache) = setup(&lingerd.site.socket()).cgi().start() else { return };
    let much = publish(&apache);
    let program =
        "#!/bin/sh\nprintf 'HTTP/1.0 200 OK\\r\\nContent-Type: text/plain\\r\\n\\r\\n'\nexec cat much\n";
    apache.publish_program("nph-much.cgi", program);
    assert!(read(ask(apache.address, &request("/nph-much.cgi"))).body == much);
}

#[test]
fn ranges_of_a_page_are_what_they_are_without_lingerd() {
    let lingerd = lingerd(&[]);
    let Some(apache) = setup(&lingerd.site.socket()).php().with_other("LingerdSpool Off").start() else {
        return;
    };
    publish(&apache);
    for range in ["100000-", "5-9", "-2000000", "0-1,1000000-2999999", "4000000-"] {
        let request = request_with("/much.php", &format!("Range: bytes={range}\r\n"));
        let [held, expected] = [apache.address, apache.other].map(|address| read(ask(address, &request)));
        assert_eq!(held.head.lines().next(), expected.head.lines().next());
        assert!(held.body == expected.body, "{range}");
    }
}

/// Of events that are more than what is left to Apache, each arrives before there is a next one.
#[test]
fn each_event_of_a_stream_arrives_when_it_is_sent() {
    let lingerd = lingerd(&[]);
    let Some(apache) = setup(&lingerd.site.socket()).php().start() else { return };
    let_pages_write(&apache);
    let page =
        "<?php header('Content-Type: text/event-stream'); @ob_end_flush(); for ($i = 0; $i < 12; $i++) {
                    echo 'data: ', str_repeat($i % 10, 8000), \"\\n\\n\"; flush();
                    while (!file_exists(__DIR__ . \"/seen-$i\")) { usleep(2000); clearstatcache(); }
                }";
    apache.publish("events.php", page.as_bytes());
    let client = ask(apache.address, &request("/events.php"));
    let mut all = Vec::new();
    for n in 0..12 {
        let event = format!("data: {}\n\n", (n % 10).to_string().repeat(8000)).into_bytes();
        while !all.ends_with(&event) {
            let mut piece = [0; 4096];
            let bytes = tcp::read_some(&client, &mut piece).unwrap();
            assert!(bytes > 0, "it has ended");
            all.extend(&piece[..bytes]);
        }
        apache.publish(&format!("seen-{n}"), b"");
    }
    assert_eq!(read_rest(client), b"");
    lingerd.wait_for("spooled=0");
}

#[test]
fn a_page_that_goes_on_without_its_client_is_told_that_it_has_gone() {
    let lingerd = lingerd(&[]);
    let Some(apache) = setup(&lingerd.site.socket()).php().start() else { return };
    let much = publish(&apache);
    let documents = let_pages_write(&apache);
    let page = "<?php ignore_user_abort(true); set_time_limit(0);
                while (!connection_aborted()) { echo str_repeat('a', 10000); usleep(500); }
                file_put_contents(__DIR__ . '/told', connection_status() . '');
                file_put_contents(__DIR__ . '/end', '');";
    apache.publish("page.php", page.as_bytes());
    let mut client = ask(apache.address, &request("/page.php"));
    client.read_exact(&mut [0; 1000]).unwrap();
    tcp::reset(client);
    wait_until("it goes on to its end", || documents.join("end").exists());
    assert_eq!(fs::read_to_string(documents.join("told")).unwrap(), "1");
    wait_until("it is logged", || apache.access_log().len() == 1);
    assert!(apache.access_log()[0].starts_with("X 200 "), "{:?}", apache.access_log());
    assert!(read(ask(apache.address, &request("/much.php"))).body == much);
    lingerd.wait_for("spooling=0 broken=0");
}

/// The worker is free when the rest is no more than may be kept: it does not wait until all is read.
#[test]
fn of_what_is_too_much_the_worker_waits_for_no_more_than_it_has_to() {
    let lingerd = lingerd(&[]);
    let setup = setup(&lingerd.site.socket()).php().with("LingerdSpoolMax 1500000");
    let Some(apache) = setup.start() else { return };
    publish(&apache);
    apache.publish("pieces.php", b"<?php for ($i = 0; $i < 300; $i++) echo str_repeat('x', 10000);");
    apache.publish("once.php", b"<?php echo str_repeat('x', 3000000);");
    // Where no room can be given back within a file all of that is to be written first.
    let pages = if cfg!(target_os = "linux") { &["/once.php", "/pieces.php"][..] } else { &["/once.php"] };
    for page in pages {
        let mut client = ask(apache.address, &request(page));
        let received = read_until_spooled(&lingerd, &mut client);
        let rest = read_rest(client).len();
        assert!(rest > 900_000, "{page}: {received} and {rest}");
        assert!(received + rest > MUCH);
    }
}

/// The system calls of a process, but those for memory, while `meanwhile` runs; `None` when they cannot be seen.
fn calls_of(pid: &str, file: &Path, meanwhile: impl FnOnce()) -> Option<Vec<String>> {
    let mut strace = Command::new("strace");
    strace.args(["-e", "trace=!mmap,munmap,brk,madvise", "-o"]).arg(file).args(["-p", pid]);
    let Ok(mut strace) = strace.stdin(Stdio::null()).stderr(Stdio::piped()).spawn() else {
        not_run("there is no strace (Debian: apt-get install strace)");
        return None;
    };
    let mut said = String::new();
    BufReader::new(strace.stderr.take().unwrap()).read_line(&mut said).unwrap();
    let attached = said.contains("attached");
    if attached {
        meanwhile();
    } else {
        not_run(&format!("strace cannot attach to the worker: {}", said.trim()));
    }
    let _ = lingerd_platform::process::kill(strace.id() as i32, libc::SIGTERM);
    strace.wait().unwrap();
    attached.then(|| fs::read_to_string(file).unwrap().lines().map(str::to_owned).collect())
}

#[test]
fn a_small_response_costs_no_system_call_more() {
    if !cfg!(target_os = "linux") {
        return println!("only Linux has strace");
    }
    let lingerd = lingerd(&[]);
    let Some(apache) = setup(&lingerd.site.socket()).php().with_other("LingerdSpool Off").start() else {
        return;
    };
    publish(&apache);
    apache.publish("pid.php", b"<?php echo getmypid();");
    let first = get(apache.address, "/pid.php");
    let pid = String::from_utf8(first.body.clone()).unwrap();
    lingerd.wait_for("handed_over=1");
    // The second one of each has all that a first one has to get ready.
    let paths = ["/page", "/page", "/small"];
    let mut held = Vec::new();
    let calls = calls_of(&pid, &apache.site.path("calls"), || {
        for address in [apache.address, apache.other] {
            held.extend(paths.map(|path| get(address, path)));
        }
        lingerd.wait_for("handed_over=7");
    });
    let Some(calls) = calls else { return };
    let requests: Vec<_> = calls.split(|call| call.starts_with("accept")).skip(1).collect();
    let names = |request: &[String]| -> Vec<_> {
        request.iter().map(|call| call.split('(').next().unwrap().to_owned()).collect()
    };
    assert_eq!(requests.len(), 6, "{calls:#?}");
    assert!(names(requests[1]).contains(&"writev".to_owned()), "{calls:#?}");
    assert_eq!(names(requests[1]), names(requests[4]));
}
