// SPDX-License-Identifier: BSD-3-Clause

//! ablinger against small servers that do one thing each, over real sockets.
//!
//! What is asserted is counts and the order of events, never how long something took. A run that
//! hangs is stopped by a watchdog.

use socket2::{Domain, Socket, Type};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use support::skip;

/// Ends what hangs; nothing here takes a fraction of it.
const WATCHDOG: Duration = Duration::from_secs(60);

/// Long enough that a hold of this length never ends within a test.
const FOR_EVER_MS: &str = "3600000";

const WHOLE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

/// A run that is under way; killed if its test gives up.
struct Run(Option<Child>);

impl Run {
    fn id(&self) -> i32 {
        self.0.as_ref().unwrap().id() as i32
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn start(args: &[&str]) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ablinger"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Run(Some(command.spawn().unwrap()))
}

/// Waits for the end of `run`; kills it and panics when that does not come.
fn finish(mut run: Run) -> Output {
    let id = run.id();
    let child = run.0.take().unwrap();
    let (done, is_done) = mpsc::channel();
    let waiter = thread::spawn(move || {
        let output = child.wait_with_output().unwrap();
        let _ = done.send(());
        output
    });
    let hangs = is_done.recv_timeout(WATCHDOG).is_err();
    if hangs {
        lingerd_platform::process::kill(id, 9).unwrap();
    }
    let output = waiter.join().unwrap();
    assert!(!hangs, "ablinger hangs: {}", stderr(&output));
    output
}

fn ablinger(args: &[&str]) -> Output {
    finish(start(args))
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The report as JSON: one object on one line.
struct Json(serde_json::Value, String);

impl Json {
    fn of(output: &Output) -> Json {
        let text = stdout(output);
        assert!(text.ends_with("}\n") && text.lines().count() == 1, "{text:?}, {}", stderr(output));
        Json(serde_json::from_str(&text).unwrap(), text)
    }

    fn value(&self, key: &str) -> &serde_json::Value {
        self.0.get(key).unwrap_or_else(|| panic!("{key} in {}", self.1))
    }

    fn number(&self, key: &str) -> u64 {
        self.value(key).as_u64().unwrap_or_else(|| panic!("{key}: {}", self.value(key)))
    }

    /// A time in milliseconds.
    fn ms(&self, key: &str) -> f64 {
        self.value(key).as_f64().unwrap_or_else(|| panic!("{key}: {}", self.value(key)))
    }

    /// Complete, failed, reset, truncated.
    fn outcome(&self) -> [u64; 4] {
        ["complete", "failed", "reset", "truncated"].map(|key| self.number(key))
    }
}

/// A socket that has a port at which nobody listens, nor can while it is there, and the URL.
fn refuse() -> (Socket, String) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let url = format!("http://{}/", socket.local_addr().unwrap().as_socket().unwrap());
    (socket, url)
}

fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    (listener, url)
}

/// The next connection to `listener`. Neither this nor a read from it waits for ever.
fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let give_up = Instant::now() + WATCHDOG;
    loop {
        match listener.accept() {
            Ok((socket, _)) => {
                socket.set_nonblocking(false).unwrap();
                socket.set_read_timeout(Some(WATCHDOG)).unwrap();
                return socket;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        assert!(Instant::now() < give_up, "nobody connects");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Reads a request's head and returns it.
fn read_request(socket: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        assert_eq!(socket.read(&mut byte).unwrap(), 1, "end of stream within the request");
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// Serves `n` connections, one after the other, with `behave`.
fn serve(
    listener: TcpListener,
    n: usize,
    behave: impl Fn(usize, TcpStream) + Send + 'static,
) -> JoinHandle<()> {
    thread::spawn(move || {
        for i in 0..n {
            let mut socket = accept(&listener);
            read_request(&mut socket);
            behave(i, socket);
        }
    })
}

/// Runs ablinger for `n` requests, whose connections `behave` serves.
fn run_against(n: usize, behave: impl Fn(usize, TcpStream) + Send + 'static) -> (Output, Json) {
    let (listener, url) = listen();
    let server = serve(listener, n, behave);
    let output = ablinger(&["-n", &n.to_string(), "-l", "0", "-o", "json", &url]);
    server.join().unwrap();
    let json = Json::of(&output);
    (output, json)
}

fn reset(socket: TcpStream) {
    socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
}

#[test]
fn content_length() {
    let (output, json) = run_against(3, |_, mut socket| {
        socket.write_all(WHOLE).unwrap();
        // The response ends by its length alone: the stream's end comes from the client.
        assert_eq!(socket.read(&mut [0; 1]).unwrap(), 0);
    });
    assert_eq!(json.outcome(), [3, 0, 0, 0]);
    assert_eq!(json.number("requests"), 3);
    assert_eq!(json.number("content_bytes"), 15);
    assert_eq!(json.number("bytes"), 3 * WHOLE.len() as u64);
    assert_eq!(json.number("non_2xx"), 0);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
}

#[test]
fn the_request_is_as_documented() {
    let (listener, url) = listen();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let mut socket = accept(&listener);
        let request = read_request(&mut socket);
        socket.write_all(WHOLE).unwrap();
        request
    });
    ablinger(&["-l", "0", &format!("{url}a/b?c=d#e")]);
    let request = server.join().unwrap();
    let mut lines = request.split("\r\n");
    assert_eq!(lines.next(), Some("GET /a/b?c=d HTTP/1.1"));
    let lines: Vec<_> = lines.collect();
    assert!(lines.contains(&format!("Host: {address}").as_str()), "{request}");
    assert!(lines.contains(&"Connection: close"), "{request}");
    assert!(lines.iter().any(|line| line.starts_with("User-Agent: ablinger/")), "{request}");
}

#[test]
fn chunked_in_small_pieces() {
    let (output, json) = run_against(2, |_, mut socket| {
        socket.set_nodelay(true).unwrap();
        let response = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                         3;x=y\r\nabc\r\n10\r\n0123456789abcdef\r\n0\r\nSum: 1\r\n\r\n";
        for byte in response.chunks(1) {
            socket.write_all(byte).unwrap();
        }
        assert_eq!(socket.read(&mut [0; 1]).unwrap(), 0);
    });
    assert_eq!(json.outcome(), [2, 0, 0, 0]);
    assert_eq!(json.number("content_bytes"), 2 * 19);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn delimited_by_close() {
    let (output, json) = run_against(2, |_, mut socket| {
        socket.write_all(b"HTTP/1.0 200 OK\r\n\r\n").unwrap();
        socket.write_all(&[b'x'; 100_000]).unwrap();
    });
    assert_eq!(json.outcome(), [2, 0, 0, 0]);
    assert_eq!(json.number("content_bytes"), 200_000);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn no_content_and_interim_responses() {
    let (_, json) = run_against(2, |i, mut socket| {
        let response: &[u8] = match i {
            0 => b"HTTP/1.1 204 No Content\r\n\r\n",
            _ => b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        };
        socket.write_all(response).unwrap();
        assert_eq!(socket.read(&mut [0; 1]).unwrap(), 0);
    });
    assert_eq!(json.outcome(), [2, 0, 0, 0]);
}

#[test]
fn a_bad_status_is_counted_apart_and_flatters_nothing() {
    let (output, json) = run_against(5, |i, mut socket| {
        let status = ["200 OK", "302 Found", "404 Not Found", "503 Busy", "304 Not Modified"][i];
        socket.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nno").as_bytes()).unwrap();
    });
    assert_eq!(json.outcome(), [3, 0, 0, 0]);
    assert_eq!((json.number("bad_status"), json.number("non_2xx")), (2, 4));
    assert_eq!(json.number("requests"), 5);
    assert_eq!(json.number("content_bytes"), 4, "of the complete ones alone");
    let rate = json.ms("requests_per_second") * json.ms("seconds");
    assert!((2.9..3.1).contains(&rate), "{rate}: the rate is of the complete ones alone");
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.starts_with("ablinger: status 404 from 127.0.0.1:"), "{said}");
    assert_eq!(said.lines().count(), 1, "said once: {said}");
}

#[test]
fn redirects_alone_are_a_success() {
    let (output, json) = run_against(1, |_, mut socket| {
        socket.write_all(b"HTTP/1.1 301 Moved\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n").unwrap();
    });
    assert_eq!(json.outcome(), [1, 0, 0, 0]);
    assert_eq!(output.status.code(), Some(0));
}

/// What curl takes: see ablinger/src/http.rs for a table of many more.
#[test]
fn heads_of_real_servers() {
    const HEADS: [&str; 9] = [
        "HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\"Connection: close\"\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX Powered: y\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX@Powered: y\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\x01b\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5,\r\n\r\n",
        "HTTP/1.1 200\nContent-Length: 5\n\n",
        "HTTP/1.1 200 OK\r\nX: a\r\n  folded\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\n{129}Content-Length: 5\r\n\r\n",
    ];
    let (output, json) = run_against(HEADS.len(), |i, mut socket| {
        let head = HEADS[i].replace("{129}", &"Set-Cookie: a=b\r\n".repeat(128));
        socket.write_all(format!("{head}hello").as_bytes()).unwrap();
        // The end of the stream is not what ends the response.
        assert_eq!(socket.read(&mut [0; 1]).unwrap(), 0);
    });
    assert_eq!(json.outcome(), [HEADS.len() as u64, 0, 0, 0], "{}", stderr(&output));
    assert_eq!(json.number("content_bytes"), 5 * HEADS.len() as u64);
}

#[test]
fn truncated_is_counted_apart() {
    let (output, json) = run_against(4, |i, mut socket| {
        let response: &[u8] = match i {
            0 => b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
            1 => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
            2 => b"",
            _ => WHOLE,
        };
        socket.write_all(response).unwrap();
    });
    assert_eq!(json.outcome(), [1, 0, 0, 3]);
    assert_eq!(json.number("content_bytes"), 5, "of the complete one alone");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn reset_is_counted_apart() {
    let (output, json) = run_against(3, |i, mut socket| match i {
        0 => {
            socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe").unwrap();
            reset(socket);
        }
        1 => reset(socket),
        _ => socket.write_all(WHOLE).unwrap(),
    });
    assert_eq!(json.outcome(), [1, 0, 2, 0]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn not_http_is_failed_and_said() {
    let (output, json) = run_against(3, |i, mut socket| {
        let response: &[u8] = match i {
            0 => b"SSH-2.0-x\r\n",
            1 => b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            _ => WHOLE,
        };
        socket.write_all(response).unwrap();
        let _ = socket.shutdown(Shutdown::Write);
        let _ = socket.read(&mut [0; 1]);
    });
    assert_eq!(json.outcome(), [1, 2, 0, 0]);
    assert_eq!(json.number("failed_http"), 2);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).starts_with("ablinger: "), "{}", stderr(&output));
    assert_eq!(stderr(&output).lines().count(), 1, "said once: {}", stderr(&output));
}

#[test]
fn a_refused_connection_is_failed_and_ends_a_run_that_never_connected() {
    let (socket, url) = refuse();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let output = ablinger(&["-c", "1", "-n", "5", "-o", "json", &url]);
    let json = Json::of(&output);
    assert_eq!(json.outcome(), [0, 1, 0, 0]);
    assert_eq!(json.number("failed_connect"), 1);
    assert!(json.value("address").is_null());
    assert!(json.value("latency_p50_ms").is_null());
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.contains(&address.to_string()) && said.contains("refused"), "{said}");
}

#[test]
fn a_server_that_goes_away_is_counted_to_the_end() {
    let (listener, url) = listen();
    let server = serve(listener, 1, |_, mut socket| socket.write_all(WHOLE).unwrap());
    // The listener closes with the first connection still held: the other two are refused. (The
    // kernel may have taken one into the queue by then, and then resets it.)
    let output = ablinger(&["-n", "3", "-l", "200", "-o", "json", &url]);
    server.join().unwrap();
    let json = Json::of(&output);
    let [complete, failed, reset, truncated] = json.outcome();
    assert_eq!((complete, failed + reset, truncated), (1, 2, 0));
    assert_eq!(output.status.code(), Some(1));
}

/// A listener whose queue is full, so that the next client's connect stays in progress, its URL,
/// and what fills the queue; or `None` where a full queue does not hold a connect up: some systems
/// reset it, others have no queue so short.
fn full_listener() -> Option<(TcpListener, String, Vec<Socket>)> {
    const SOON: Duration = Duration::from_millis(300); // no connect that is let in takes as long
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let listener = TcpListener::from(listener);
    let address = listener.local_addr().unwrap();
    let mut fillers = Vec::new();
    for _ in 0..16 {
        let filler = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        match filler.connect_timeout(&address.into(), SOON) {
            Ok(()) => fillers.push(filler),
            Err(error) if error.kind() == ErrorKind::TimedOut && !fillers.is_empty() => {
                // This one would go on trying, and come in the way.
                drop(filler);
                return Some((listener, format!("http://{address}/"), fillers));
            }
            Err(_) => break,
        }
    }
    skip("no connect stays in progress on this system");
    None
}

#[test]
fn a_connect_that_takes_its_time_is_waited_for() {
    let Some((listener, url, fillers)) = full_listener() else { return };
    let run = start(&["-l", "0", "-o", "json", &url]);
    // Gives the connect the time to be left in progress; nothing fails if that was too short.
    thread::sleep(Duration::from_millis(200));
    for _ in &fillers {
        drop(accept(&listener));
    }
    let mut socket = accept(&listener);
    read_request(&mut socket);
    socket.write_all(WHOLE).unwrap();
    let output = finish(run);
    assert_eq!(Json::of(&output).outcome(), [1, 0, 0, 0], "{}", stderr(&output));
}

#[test]
fn a_connect_that_is_refused_late_is_failed() {
    let Some((listener, url, _fillers)) = full_listener() else { return };
    let run = start(&["-o", "json", &url]);
    // As above: a connect that begins too late is refused at once, which is the same to whoever counts.
    thread::sleep(Duration::from_millis(200));
    drop(listener);
    let output = finish(run);
    let json = Json::of(&output);
    assert_eq!(json.outcome(), [0, 1, 0, 0], "{}", stderr(&output));
    assert_eq!(json.number("failed_connect"), 1);
    assert!(stderr(&output).contains("refused"), "{}", stderr(&output));
}

#[test]
fn json_has_the_documented_keys_in_their_order() {
    let (_, json) = run_against(1, |_, mut socket| socket.write_all(WHOLE).unwrap());
    let documented = [
        "url",
        "address",
        "concurrency",
        "linger_ms",
        "stddev_ms",
        "rate",
        "read_rate",
        "requests_per_connection",
        "pause_ms",
        "seconds",
        "requests",
        "requests_per_second",
        "complete",
        "bad_status",
        "non_2xx",
        "failed",
        "failed_connect",
        "failed_timeout",
        "failed_http",
        "reset",
        "truncated",
        "unanswered",
        "longest_wait_ms",
        "held_peak",
        "reset_while_held",
        "connections",
        "not_kept",
        "closed_while_kept",
        "reopened",
        "bytes",
        "content_bytes",
        "latency_min_ms",
        "latency_p50_ms",
        "latency_p90_ms",
        "latency_p95_ms",
        "latency_p99_ms",
        "latency_max_ms",
        "first_byte_p50_ms",
        "first_byte_p99_ms",
    ];
    assert_eq!(json.0.as_object().unwrap().len(), documented.len(), "{}", json.1);
    let places: Vec<_> = documented.iter().map(|key| json.1.find(&format!("\"{key}\":"))).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{}", json.1);
    let manual = include_str!("../../man/ablinger.1");
    for key in documented {
        assert!(manual.contains(&format!(".It Cm {key}\n")), "{key} is not in the manual");
    }
    let latencies: Vec<_> =
        documented.iter().filter(|key| key.starts_with("latency")).map(|key| json.ms(key)).collect();
    assert!(latencies.len() == 6 && latencies.is_sorted(), "{latencies:?}");
}

#[test]
fn text_names_all_counts() {
    let (listener, url) = listen();
    let server = serve(listener, 1, |_, mut socket| socket.write_all(WHOLE).unwrap());
    let output = ablinger(&[&url]);
    server.join().unwrap();
    let text = stdout(&output);
    for line in [
        "URL",
        "Clients",
        "Requests/s",
        "Complete",
        "Bad status",
        "Failed",
        "Reset",
        "Truncated",
        "Unanswered",
        "Connections",
        "Latency (ms)",
        "First byte",
    ] {
        assert!(text.lines().any(|found| found.starts_with(line)), "{line} in {text}");
    }
    assert_eq!(output.status.code(), Some(0));
}

/// Whether the client has neither closed nor sent anything: nothing is there to read.
fn is_open(socket: &mut TcpStream) -> bool {
    // Waiting makes a socket that is wrongly closed more likely to be caught; one that is rightly
    // held stays held however long this takes.
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let open = matches!(socket.read(&mut [0; 1]),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
    socket.set_read_timeout(Some(WATCHDOG)).unwrap();
    open
}

#[test]
fn a_socket_is_held_over_the_servers_end_of_stream_until_the_run_ends() {
    let (listener, url) = listen();
    let run = start(&["-c", "2", "-n", "2", "-l", FOR_EVER_MS, "-o", "json", &url]);
    let mut first = accept(&listener);
    let mut second = accept(&listener);
    read_request(&mut first);
    read_request(&mut second);
    first.write_all(WHOLE).unwrap();
    first.shutdown(Shutdown::Write).unwrap();
    assert!(is_open(&mut first), "the first is held while the run goes on");
    second.write_all(WHOLE).unwrap();
    // With the last response the run is over, and the holds are not waited for.
    assert_eq!(first.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(second.read(&mut [0; 1]).unwrap(), 0);
    let json = Json::of(&finish(run));
    assert_eq!(json.outcome(), [2, 0, 0, 0]);
    assert_eq!(json.number("held_peak"), 2);
    assert_eq!(json.number("reset_while_held"), 0);
}

#[test]
fn without_a_hold_the_socket_is_closed_at_once() {
    let (listener, url) = listen();
    let run = start(&["-c", "2", "-n", "2", "-l", "0", "-o", "json", &url]);
    let mut first = accept(&listener);
    let mut second = accept(&listener);
    read_request(&mut first);
    read_request(&mut second);
    first.write_all(WHOLE).unwrap();
    assert_eq!(first.read(&mut [0; 1]).unwrap(), 0, "closed before the second is answered");
    second.write_all(WHOLE).unwrap();
    assert_eq!(second.read(&mut [0; 1]).unwrap(), 0);
    let json = Json::of(&finish(run));
    assert_eq!(json.outcome(), [2, 0, 0, 0]);
    assert_eq!(json.number("held_peak"), 0);
}

#[test]
fn a_client_closes_after_its_hold_and_only_then_begins_the_next_request() {
    let (listener, url) = listen();
    let run = start(&["-c", "1", "-n", "3", "-l", "30", "-s", "10", "-o", "json", &url]);
    let mut socket = accept(&listener);
    for left in (0..3).rev() {
        socket.set_nonblocking(false).unwrap();
        read_request(&mut socket);
        socket.write_all(WHOLE).unwrap();
        socket.set_nonblocking(true).unwrap();
        // The listener is looked at first: whoever is there began before what the socket then
        // says, and if that is still open, too early.
        let mut next = None;
        loop {
            next = next.or_else(|| listener.accept().ok().map(|(socket, _)| socket));
            match socket.read(&mut [0; 1]) {
                Ok(n) => {
                    assert_eq!(n, 0);
                    break;
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            assert!(next.is_none(), "a request began while its client held a socket");
            thread::sleep(Duration::from_millis(1));
        }
        if left > 0 {
            socket = next.unwrap_or_else(|| accept(&listener));
        }
    }
    assert_eq!(Json::of(&finish(run)).outcome(), [3, 0, 0, 0]);
}

#[test]
fn a_reset_in_the_hold_is_no_failure_but_counted() {
    let (listener, url) = listen();
    let run = start(&["-c", "2", "-n", "2", "-l", FOR_EVER_MS, "-o", "json", &url]);
    let mut first = accept(&listener);
    let mut second = accept(&listener);
    read_request(&mut first);
    read_request(&mut second);
    first.write_all(WHOLE).unwrap();
    assert!(is_open(&mut first));
    reset(first);
    second.write_all(WHOLE).unwrap();
    let output = finish(run);
    let json = Json::of(&output);
    assert_eq!(json.outcome(), [2, 0, 0, 0]);
    assert_eq!(json.number("reset_while_held"), 1);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_run_by_time_counts_what_is_under_way_as_unanswered() {
    let (listener, url) = listen();
    let run = start(&["-c", "2", "-t", "1", "-l", FOR_EVER_MS, "-o", "json", &url]);
    let mut first = accept(&listener);
    let mut second = accept(&listener);
    read_request(&mut first);
    read_request(&mut second);
    first.write_all(WHOLE).unwrap();
    let output = finish(run);
    let json = Json::of(&output);
    assert_eq!(json.number("failed") + json.number("reset") + json.number("truncated"), 0);
    let complete = json.number("complete");
    assert!(complete <= 1, "the second was never answered");
    assert_eq!(json.number("unanswered"), 2 - complete);
    assert!(json.ms("longest_wait_ms") > 500.0, "{}", json.1);
    assert!(json.value("latency_p90_ms").is_null(), "longer than the run tells: {}", json.1);
    assert_eq!(second.read(&mut [0; 1]).unwrap(), 0);
    // Nothing at all within the time would be no success; the machine may be that slow.
    assert_eq!(output.status.code(), Some(if complete == 1 { 0 } else { 1 }));
}

#[test]
fn a_run_in_which_no_response_ended_is_no_success() {
    let (_listener, url) = listen();
    let output = ablinger(&["-t", "0.1", "-o", "json", &url]);
    assert_eq!(Json::of(&output).outcome(), [0, 0, 0, 0]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn an_interrupt_prints_what_was_measured() {
    for signal in [1, 2, 15] {
        let (listener, url) = listen();
        let run = start(&["-c", "2", "-n", "9", "-l", FOR_EVER_MS, "-o", "json", &url]);
        let mut first = accept(&listener);
        let mut second = accept(&listener);
        read_request(&mut first);
        read_request(&mut second);
        first.write_all(WHOLE).unwrap();
        second.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell").unwrap();
        second.shutdown(Shutdown::Write).unwrap();
        // The truncated one is closed at once and its client begins anew. Whoever knows of the
        // truncation knows of the response that came before it.
        assert_eq!(second.read(&mut [0; 1]).unwrap(), 0);
        let mut third = accept(&listener);
        read_request(&mut third);
        lingerd_platform::process::kill(run.id(), signal).unwrap();
        let output = finish(run);
        let json = Json::of(&output);
        assert_eq!(json.number("truncated"), 1, "signal {signal}");
        assert_eq!(json.number("complete"), 1, "signal {signal}");
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("interrupted"), "{}", stderr(&output));
    }
}

#[test]
fn ipv6() {
    let Ok(listener) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) else {
        skip("this system has no IPv6 on its loopback");
        return;
    };
    let address = listener.local_addr().unwrap();
    let server = serve(listener, 2, |_, mut socket| socket.write_all(WHOLE).unwrap());
    let output = ablinger(&["-n", "2", "-l", "0", "-o", "json", &format!("http://{address}/")]);
    server.join().unwrap();
    let json = Json::of(&output);
    assert_eq!(json.outcome(), [2, 0, 0, 0]);
    assert_eq!(json.value("address"), &format!("{address}"));
}

#[test]
fn an_ipv6_address_with_its_zone() {
    let zone = if cfg!(target_os = "linux") { "lo" } else { "lo0" };
    let known = format!("fe80::1%{zone}");
    let Some(listener) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0))
        .ok()
        .filter(|_| (known.as_str(), 80).to_socket_addrs().is_ok_and(|mut all| all.next().is_some()))
    else {
        skip("no zone of this system is known for the loopback's address");
        return;
    };
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let mut socket = accept(&listener);
        let request = read_request(&mut socket);
        socket.write_all(WHOLE).unwrap();
        request
    });
    let output = ablinger(&["-l", "0", "-o", "json", &format!("http://[::1%25{zone}]:{port}/")]);
    let request = server.join().unwrap();
    assert_eq!(Json::of(&output).outcome(), [1, 0, 0, 0], "{}", stderr(&output));
    assert!(request.contains(&format!("\r\nHost: [::1]:{port}\r\n")), "{request}");
    let output = ablinger(&["http://[::1%25nosuch0]/"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no interface \"nosuch0\""), "{}", stderr(&output));
}

#[test]
fn a_name_is_tried_at_all_its_addresses() {
    let loopback = |address: SocketAddr| address.ip() == Ipv4Addr::LOCALHOST;
    let (listener, url) = listen();
    let port = listener.local_addr().unwrap().port();
    if !("localhost", port).to_socket_addrs().is_ok_and(|mut all| all.any(loopback)) {
        skip("localhost is not 127.0.0.1 here");
        return;
    }
    // Where localhost is ::1 first, that address refuses: nobody listens on its port.
    let server = serve(listener, 2, |_, mut socket| socket.write_all(WHOLE).unwrap());
    let url = url.replace("127.0.0.1", "localhost");
    let output = ablinger(&["-c", "2", "-n", "2", "-l", "0", "-o", "json", &url]);
    server.join().unwrap();
    let json = Json::of(&output);
    assert_eq!(json.outcome(), [2, 0, 0, 0], "{}", stderr(&output));
    assert_eq!(json.value("address"), &format!("127.0.0.1:{port}"));
}

/// The ablinger's next request on a connection that it has kept.
fn next_request(socket: &mut TcpStream, says: &str) {
    let request = read_request(socket);
    assert!(request.contains(&format!("\r\nConnection: {says}\r\n")), "{request}");
}

#[test]
fn a_connection_is_kept_for_so_many_requests() {
    let (listener, url) = listen();
    let run = start(&["-n", "5", "-k", "3", "-l", "0", "-o", "json", &url]);
    let mut first = accept(&listener);
    for says in ["keep-alive", "keep-alive", "close"] {
        next_request(&mut first, says);
        first.write_all(WHOLE).unwrap();
    }
    assert_eq!(first.read(&mut [0; 1]).unwrap(), 0, "closed after the last one");
    let mut second = accept(&listener);
    for _ in 0..2 {
        next_request(&mut second, "keep-alive");
        second.write_all(WHOLE).unwrap();
    }
    let output = finish(run);
    let json = Json::of(&output);
    assert_eq!(json.outcome(), [5, 0, 0, 0]);
    assert_eq!((json.number("connections"), json.number("requests_per_connection")), (2, 3));
    assert_eq!((json.number("not_kept"), json.number("reopened")), (0, 0));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_server_that_keeps_no_connection_is_no_failure_and_counted() {
    let (output, json) = {
        let (listener, url) = listen();
        let server = serve(listener, 2, |i, mut socket| {
            let response: &[u8] = match i {
                0 => b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
                _ => b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
            };
            socket.write_all(response).unwrap();
            assert_eq!(socket.read(&mut [0; 1]).unwrap(), 0);
        });
        let output = ablinger(&["-n", "2", "-k", "9", "-l", "0", "-o", "json", &url]);
        server.join().unwrap();
        let json = Json::of(&output);
        (output, json)
    };
    assert_eq!(json.outcome(), [2, 0, 0, 0]);
    assert_eq!((json.number("not_kept"), json.number("connections")), (2, 2));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_kept_connection_that_the_server_has_ended_costs_no_request() {
    let (listener, url) = listen();
    // Long enough that the end is there before the pause is over, however late this is with it.
    let run = start(&["-n", "2", "-k", "9", "-l", "0", "-p", "5000", "-o", "json", &url]);
    let mut first = accept(&listener);
    next_request(&mut first, "keep-alive");
    first.write_all(WHOLE).unwrap();
    drop(first);
    let mut second = accept(&listener);
    next_request(&mut second, "keep-alive");
    second.write_all(WHOLE).unwrap();
    let output = finish(run);
    let json = Json::of(&output);
    assert_eq!(json.outcome(), [2, 0, 0, 0], "{}", stderr(&output));
    assert_eq!((json.number("closed_while_kept"), json.number("reopened")), (1, 0));
    assert_eq!(json.number("connections"), 2);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_kept_connection_that_ends_just_when_a_request_comes_has_it_made_once_more() {
    let (listener, url) = listen();
    let run = start(&["-n", "2", "-k", "9", "-l", "0", "-o", "json", &url]);
    let mut first = accept(&listener);
    next_request(&mut first, "keep-alive");
    first.write_all(WHOLE).unwrap();
    next_request(&mut first, "keep-alive");
    reset(first);
    let mut second = accept(&listener);
    next_request(&mut second, "keep-alive");
    second.write_all(WHOLE).unwrap();
    let output = finish(run);
    let json = Json::of(&output);
    assert_eq!(json.outcome(), [2, 0, 0, 0], "{}", stderr(&output));
    assert_eq!((json.number("closed_while_kept"), json.number("reopened")), (0, 1));
    assert_eq!(json.number("connections"), 2);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_kept_connection_that_breaks_within_a_response_is_a_failure() {
    let (listener, url) = listen();
    let run = start(&["-n", "2", "-k", "9", "-l", "0", "-o", "json", &url]);
    let mut socket = accept(&listener);
    next_request(&mut socket, "keep-alive");
    socket.write_all(WHOLE).unwrap();
    next_request(&mut socket, "keep-alive");
    socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nh").unwrap();
    drop(socket);
    let output = finish(run);
    let json = Json::of(&output);
    assert_eq!(json.outcome(), [1, 0, 0, 1]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_slow_reader_leaves_the_rest_with_the_server() {
    const BODY: usize = 20_000_000;
    let (listener, url) = listen();
    // A hundred thousand seconds for it: whatever of it is there after a while is in buffers.
    let run = start(&["-t", "5", "-B", "200", "-o", "json", &url]);
    let mut socket = accept(&listener);
    read_request(&mut socket);
    socket.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY}\r\n\r\n").as_bytes()).unwrap();
    let body = vec![b'x'; BODY];
    // It ends with a reset, as the client closes with bytes unread.
    assert!(socket.write_all(&body).is_err(), "all of it was taken");
    let output = finish(run);
    let json = Json::of(&output);
    assert_eq!(json.outcome(), [0, 0, 0, 0], "{}", stderr(&output));
    assert_eq!((json.number("unanswered"), json.number("read_rate")), (1, 200));
    // With what it may make good, and the read that it begins with.
    let (bytes, most) = (json.number("bytes"), json.ms("seconds") * 200.0 + 2.0 * 20.0);
    assert!(bytes > 0 && bytes as f64 <= most, "{bytes} of {most}");
}

#[test]
fn a_slow_reader_gets_all_of_a_response_in_the_end() {
    let (listener, url) = listen();
    let server = serve(listener, 2, |_, mut socket| {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let chunk = format!("{:x}\r\n{}\r\n", 20_000, "x".repeat(20_000));
        socket.write_all(format!("{head}{chunk}{chunk}0\r\n\r\n").as_bytes()).unwrap();
    });
    let output = ablinger(&["-n", "2", "-B", "200000", "-l", "0", "-o", "json", &url]);
    server.join().unwrap();
    let json = Json::of(&output);
    assert_eq!(json.outcome(), [2, 0, 0, 0], "{}", stderr(&output));
    assert_eq!(json.number("content_bytes"), 80_000);
    assert!(json.ms("latency_min_ms") >= 100.0, "40 kB at 200 kB/s, less what one read takes: {}", json.1);
    assert!(json.ms("first_byte_p50_ms") <= json.ms("latency_p50_ms"), "{}", json.1);
}

#[test]
fn with_a_rate_latency_counts_from_when_a_request_was_due() {
    const STALL: Duration = Duration::from_millis(500);
    let (listener, url) = listen();
    // One client and a server that stalls once: of the ten requests that come due meanwhile none is sent, and
    // each would have had an answer at once.
    let server = serve(listener, 20, |i, mut socket| {
        if i == 0 {
            thread::sleep(STALL);
        }
        socket.write_all(WHOLE).unwrap();
    });
    let output = ablinger(&["-n", "20", "-r", "20", "-l", "0", "-o", "json", &url]);
    server.join().unwrap();
    let json = Json::of(&output);
    assert_eq!(json.outcome(), [20, 0, 0, 0]);
    assert_eq!(json.ms("rate"), 20.0);
    assert!(json.ms("latency_max_ms") >= 500.0, "{}", json.1);
    // Due at 50, 100, ... 450 ms, and not sent before 500: the fifth slowest of twenty waited for 300.
    assert!(json.ms("latency_p90_ms") >= 350.0, "{}", json.1);
    assert!(json.ms("seconds") >= 0.95, "the last is due then: {}", json.1);
}

#[test]
fn what_is_due_and_finds_no_client_is_unanswered() {
    let (listener, url) = listen();
    let run = start(&["-t", "1", "-r", "100", "-o", "json", &url]);
    let mut socket = accept(&listener);
    read_request(&mut socket);
    let json = Json::of(&finish(run));
    let (unanswered, due) = (json.number("unanswered") as f64, json.ms("seconds") * 100.0);
    assert!((unanswered - due).abs() < 2.0, "{unanswered} of {due} that came due");
    assert!(json.ms("longest_wait_ms") >= 900.0, "{}", json.1);
}

#[test]
fn a_plot_is_written_and_what_cannot_be_written_is_said() {
    let directory = support::built::scratch();
    let file = directory.join(format!("plot-{}.svg", std::process::id()));
    let (listener, url) = listen();
    let server = serve(listener, 3, |_, mut socket| socket.write_all(WHOLE).unwrap());
    let output = ablinger(&["-n", "3", "-l", "0", "-g", file.to_str().unwrap(), &url]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let svg = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert!(svg.starts_with("<svg ") && svg.contains("<polyline") && svg.contains(&url), "{svg}");
    drop(server);

    let (listener, url) = listen();
    let output = ablinger(&["-l", "0", "-g", "/nonexistent/plot.svg", &url]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("/nonexistent/plot.svg"), "{}", stderr(&output));
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "it is said before the first connects");
}

/// A server of so many processes: each takes a connection, answers, and waits as Apache does until its
/// client has closed; with keep-alive, for further requests. Never stops.
fn server_with_processes(processes: usize, keeps: bool) -> String {
    let (listener, url) = listen();
    for _ in 0..processes {
        let listener = listener.try_clone().unwrap();
        thread::spawn(move || {
            loop {
                let Ok((socket, _)) = listener.accept() else { continue };
                let _ = answer(socket, keeps);
            }
        });
    }
    url
}

/// The connection of a client, from its request to its end.
fn answer(mut socket: TcpStream, keeps: bool) -> std::io::Result<()> {
    let mut request = [0; 1000];
    while socket.read(&mut request)? > 0 {
        let says = if keeps { "keep-alive" } else { "close" };
        let head = format!("HTTP/1.1 200 OK\r\nConnection: {says}\r\nContent-Length: 20000\r\n\r\n");
        socket.write_all(head.as_bytes())?;
        socket.write_all(&[b'x'; 20_000])?;
        if !keeps {
            socket.shutdown(Shutdown::Write)?;
            std::io::copy(&mut socket, &mut std::io::sink())?;
            break;
        }
    }
    Ok(())
}

#[test]
fn a_profile_tells_a_server_that_waits_from_one_that_does_not() {
    /// The last attempt, in seconds for each crowd.
    const LONGEST: u64 = 8;
    for (processes, keeps, suffers) in [
        (2, true, &["lingering close", "keep-alive", "slow readers"][..]),
        (2, false, &["lingering close", "slow readers"]),
        (100, true, &[]),
    ] {
        let url = server_with_processes(processes, keeps);
        // Who waits for nobody must be nearly as fast as its clients are. A machine that is busy is late by what it is
        // late by: where that is too much for a short hold and pause, it is a small part of a longer one.
        let mut seconds = 1;
        let (output, json, ms) = loop {
            let (time, ms) = (seconds.to_string(), 250 * seconds);
            let wait = ms.to_string();
            let profile =
                ["-P", "-c", "40", "-t", &time, "-l", &wait, "-p", &wait, "-B", "20000", "-o", "json", &url];
            let output = ablinger(&profile);
            let json = Json::of(&output);
            if seconds == LONGEST || json.value("suffers") == &serde_json::json!(suffers) {
                break (output, json, ms);
            }
            seconds *= 2;
        };
        let shown = format!("{processes} processes: {}", json.1);
        assert_eq!(json.value("suffers"), &serde_json::json!(suffers), "{shown}");
        let says = json.value("says").as_str().unwrap();
        assert!(suffers.iter().all(|wait| says.contains(wait)), "{shown}");
        let parts = json.value("parts").as_array().unwrap();
        assert_eq!(parts.len(), 4);
        assert_eq!(parts[0]["suffers"], serde_json::Value::Null);
        assert_eq!(parts[1]["run"]["linger_ms"], ms);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    }
}

#[test]
fn a_profile_of_a_server_that_does_not_answer_says_so() {
    let (_socket, url) = refuse();
    let output = ablinger(&["-P", "-t", "10", &url]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("Nothing is known of this server"), "{}", stdout(&output));
    assert!(stderr(&output).contains("refused"), "{}", stderr(&output));
}

/// ablinger on a terminal, and what that shows; `None` where there is no script(1) as util-linux has it.
fn on_a_terminal(command: &str) -> Option<String> {
    let log = support::built::scratch().join(format!("terminal-{}", std::process::id()));
    let script = Command::new("script")
        .args(["-q", "-e", "-c", command])
        .arg(&log)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let shown = std::fs::read(&log).ok();
    let _ = std::fs::remove_file(&log);
    match script {
        Ok(status) if status.success() => shown.map(|shown| String::from_utf8_lossy(&shown).into_owned()),
        _ => {
            skip("there is no script(1) that runs a command (-c) on a terminal");
            None
        }
    }
}

#[test]
fn a_terminal_shows_how_far_a_run_is_and_a_file_does_not() {
    let (listener, url) = listen();
    let _server = serve(listener, 1000, |_, mut socket| socket.write_all(WHOLE).unwrap());
    let run = format!("{} -t 5 -l 100 {url}", env!("CARGO_BIN_EXE_ablinger"));
    let Some(shown) = on_a_terminal(&format!("{run} >/dev/null")) else { return };
    assert!(shown.contains(" responses, ") && shown.contains(" waiting"), "{shown:?}");
    let (_, rest) = shown.rsplit_once(" waiting").unwrap();
    assert!(rest.contains("\r\x1b[K"), "the line is gone at the end: {shown:?}");
    let output = ablinger(&["-t", "1", "-l", "100", &url]);
    assert_eq!(stderr(&output), "");
}

#[test]
fn many_clients_hold_at_once() {
    const N: usize = 300;
    let (listener, url) = listen();
    let server = thread::spawn(move || {
        let mut held: Vec<TcpStream> = (0..N)
            .map(|_| {
                let mut socket = accept(&listener);
                read_request(&mut socket);
                socket.write_all(WHOLE).unwrap();
                socket
            })
            .collect();
        for socket in &mut held {
            assert_eq!(socket.read(&mut [0; 1]).unwrap(), 0);
        }
    });
    let n = N.to_string();
    let output = ablinger(&["-c", &n, "-n", &n, "-l", FOR_EVER_MS, "-o", "json", &url]);
    server.join().unwrap();
    let json = Json::of(&output);
    assert_eq!(json.outcome(), [N as u64, 0, 0, 0]);
    assert_eq!(json.number("held_peak"), N as u64);
}

#[test]
fn more_clients_than_descriptors_are_refused_before_the_first_connects() {
    let (listener, url) = listen();
    let output = Command::new("sh")
        .args(["-c", "ulimit -n 64 && exec \"$0\" -c 100 -t 1 \"$1\"", env!("CARGO_BIN_EXE_ablinger"), &url])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.contains("100 clients") && said.contains("64") && said.contains("-c"), "{said}");
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().map(drop).map_err(|e| e.kind()), Err(ErrorKind::WouldBlock));
}

#[test]
fn usage_errors_exit_with_2_and_name_the_option() {
    for (args, named) in [
        (&["-c", "0", "http://h/"][..], "-c"),
        (&["-n", "x", "http://h/"], "-n"),
        (&["-n", "1", "-t", "1", "http://h/"], "-t"),
        (&["-o", "xml", "http://h/"], "-o"),
        (&["-q", "http://h/"], "-q"),
        (&["-l"], "-l"),
        (&[], "URL"),
        (&["https://h/"], "https"),
        (&["h:80"], "http://"),
    ] {
        let output = ablinger(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let said = stderr(&output);
        let first = said.lines().next().unwrap();
        assert!(first.starts_with("ablinger: ") && first.contains(named), "{args:?}: {said}");
        assert!(said.contains("usage: ablinger"), "{said}");
        assert_eq!(stdout(&output), "");
    }
}

#[test]
fn a_name_that_does_not_resolve_is_said() {
    let output = ablinger(&["http://no-such-host.invalid/"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no-such-host.invalid"), "{}", stderr(&output));
}

#[test]
fn version_and_help() {
    let version = ablinger(&["-V"]);
    assert_eq!(version.status.code(), Some(0));
    assert!(stdout(&version).starts_with(concat!("ablinger ", env!("CARGO_PKG_VERSION"), " (")));
    let help = ablinger(&["-h"]);
    assert_eq!(help.status.code(), Some(0));
    let help = stdout(&help);
    let manual = include_str!("../../man/ablinger.1");
    for option in ["c", "n", "t", "r", "l", "s", "B", "k", "p", "P", "o", "g", "V", "h"] {
        assert!(help.contains(&format!("\n  -{option} ")), "-{option} in {help}");
        assert!(manual.contains(&format!("\n.It Fl {option}")), "-{option} is not in the manual");
    }
}

#[test]
fn closed_standard_output_is_an_error_and_no_panic() {
    let (listener, url) = listen();
    let mut run = start(&["-l", "0", &url]);
    drop(run.0.as_mut().unwrap().stdout.take());
    // Not before: what it prints while the pipe is there goes well.
    let server = serve(listener, 1, |_, mut socket| socket.write_all(WHOLE).unwrap());
    let output = finish(run);
    server.join().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("standard output"), "{}", stderr(&output));
}
