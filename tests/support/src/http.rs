// SPDX-License-Identifier: BSD-3-Clause

//! Clients of Apache. Those that get or exchange something keep their end of the connection open
//! until they are dropped, and panic at what is not a whole response.

use crate::{PATIENCE, during, tcp, wait_until};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread::{self, JoinHandle};

/// A response, and the connection on which it came: the server has ended its side, we have not.
pub struct Held {
    /// The status line and the fields, without the empty line.
    pub head: String,
    /// All that follows.
    pub body: Vec<u8>,
    /// Our end.
    pub socket: TcpStream,
}

/// Connects; no test hangs for ever.
pub fn connect(address: SocketAddr) -> TcpStream {
    bounded(TcpStream::connect(address).unwrap())
}

/// Connects with room for little more than `bytes` unread.
pub fn connect_with_small_window(address: SocketAddr, bytes: usize) -> TcpStream {
    bounded(tcp::connect_with_window(address, bytes).unwrap())
}

/// What no longer hangs for ever.
pub fn bounded(socket: TcpStream) -> TcpStream {
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_write_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// What a client gets to the end of a head, and no more.
pub fn read_head(client: &mut impl Read) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    String::from_utf8(head).unwrap()
}

/// One response of a connection that is kept alive, with its head.
pub fn read_one(client: &mut impl Read) -> (String, Vec<u8>) {
    let head = read_head(client);
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).expect(&head);
    let mut body = vec![0; length.parse().unwrap()];
    client.read_exact(&mut body).unwrap();
    (head, body)
}

/// A request after which the server closes.
pub fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")
}

/// A request to upload `bytes`, and with it all of them.
pub fn upload(path: &str, bytes: usize) -> Vec<u8> {
    let head = format!("POST {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {bytes}\r\n\r\n");
    let mut all = head.into_bytes();
    all.resize(all.len() + bytes, b'u');
    all
}

/// Gets `path` on a new connection. It has to be there.
pub fn get(address: SocketAddr, path: &str) -> Held {
    let held = exchange(connect(address), request(path).as_bytes());
    assert!(held.head.contains(" 200 "), "{path}: {}", held.head);
    held
}

/// Lets clients get `/page`, [`tcp::response`] of 20,000 bytes, one after the other, each whole, while
/// `meanwhile` runs. It is given a way to wait until so many more of them have been served.
pub fn under_load(address: SocketAddr, meanwhile: impl FnOnce(&dyn Fn(usize))) {
    let served = AtomicUsize::new(0);
    let page = tcp::response(20_000);
    let client = || {
        assert!(get(address, "/page").body == page);
        served.fetch_add(1, Ordering::Relaxed);
    };
    let wait_for_more = |requests: usize| {
        let enough = served.load(Ordering::Relaxed) + requests;
        wait_until("the load goes on", || served.load(Ordering::Relaxed) >= enough);
    };
    during(client, || during(client, || during(client, || meanwhile(&wait_for_more))));
}

/// The connection on which a server that may just be restarting has answered a request.
pub fn try_get(address: SocketAddr, path: &str) -> Option<TcpStream> {
    let mut socket = TcpStream::connect(address).ok()?;
    socket.set_read_timeout(Some(PATIENCE)).ok()?;
    socket.write_all(request(path).as_bytes()).ok()?;
    let mut response = Vec::new();
    socket.read_to_end(&mut response).ok()?;
    response.starts_with(b"HTTP/1.1 200 ").then_some(socket)
}

/// Sends all of `request`, and only then reads, up to the end of the stream.
pub fn exchange(mut socket: TcpStream, request: &[u8]) -> Held {
    socket.write_all(request).expect("the request was cut short");
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes).expect("the response was cut short");
    let (head, body) = split(&bytes);
    Held { head, body, socket }
}

/// Head and body; both have to be whole.
fn split(response: &[u8]) -> (String, Vec<u8>) {
    let end = response.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    let end = end.unwrap_or_else(|| panic!("no response in {} bytes", response.len()));
    let head = String::from_utf8(response[..end].to_vec()).unwrap();
    let body = response[end + 4..].to_vec();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    if let Some(length) = length {
        assert_eq!(body.len().to_string(), length, "the response was cut short");
    }
    (head, body)
}

/// What the type of a TLS record may be, RFC 5246 section 6.2.1.
pub mod record {
    /// What comes from here on is encrypted.
    pub const CHANGE_CIPHER_SPEC: u8 = 20;
    /// An error, or that nothing more comes.
    pub const ALERT: u8 = 21;
    /// What comes before all else.
    pub const HANDSHAKE: u8 = 22;
    /// What it is for.
    pub const APPLICATION_DATA: u8 = 23;
}

/// The types of the records in a stream, fed in any pieces.
#[derive(Default)]
struct Records {
    types: Vec<u8>,
    header: Vec<u8>,
    /// What is left of the record that has begun.
    left: usize,
    /// How long it is without its header.
    length: usize,
}

impl Records {
    /// How much is there of a record that is not whole.
    fn bytes_of_part(&self) -> usize {
        match self.left {
            0 => self.header.len(),
            left => 5 + self.length - left,
        }
    }

    fn feed(&mut self, mut bytes: &[u8]) {
        while let Some(&byte) = bytes.first() {
            if self.left > 0 {
                let taken = self.left.min(bytes.len());
                self.left -= taken;
                bytes = &bytes[taken..];
                continue;
            }
            self.header.push(byte);
            bytes = &bytes[1..];
            if let [kind, _, _, high, low] = self.header[..] {
                self.types.push(kind);
                self.length = usize::from(u16::from_be_bytes([high, low]));
                self.left = self.length;
                self.header.clear();
            }
        }
    }
}

/// The same over TLS, and what kinds of records the server sent.
pub struct HeldTls {
    /// What the client has made of it, and the connection to the server.
    pub held: Held,
    /// The [types](record) of the records, in order.
    pub records: Vec<u8>,
}

/// Lets `openssl s_client` send `request` and read the response, through a relay that looks at the
/// records and keeps the connection to the server open afterwards. `options` are s_client's.
///
/// Nothing of the response is read before the client has sent `first` bytes of application data;
/// unless that is 0 it takes TLS 1.2, where the end of the handshake can be seen from outside.
pub fn exchange_tls(server: SocketAddr, options: &[&str], request: &[u8], first: usize) -> HeldTls {
    let (mut client, inside) = s_client(options);
    let outside = connect(server);
    let mut stdin = client.stdin.take().unwrap();
    let gate = Gate::default();

    let (plain, records) = thread::scope(|scope| {
        // It may be told that nobody listens any more; its end is to stay open.
        let sender = scope.spawn(move || {
            let _ = stdin.write_all(request).and_then(|()| stdin.flush());
            stdin
        });
        scope.spawn(|| relay_up(&inside, &outside, &gate, first));
        let receiver = scope.spawn(|| relay_down(&outside, &inside, &gate));
        let output = client.wait_with_output().unwrap();
        drop(sender.join().unwrap());
        // What is sent to a client that has gone goes nowhere, but the relay has to end.
        let _ = inside.shutdown(Shutdown::Both);
        (output.stdout, receiver.join().unwrap().expect("the response was cut short"))
    });
    let (head, body) = split(&plain);
    HeldTls { held: Held { head, body, socket: outside }, records }
}

/// `openssl s_client`, and the connection on which it takes us for the server. It knows no authority,
/// as to read the system's takes longer than all the rest.
fn s_client(options: &[&str]) -> (Child, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let client = Command::new("openssl")
        .args(["s_client", "-quiet", "-connect"])
        .arg(listener.local_addr().unwrap().to_string())
        .args(options)
        .envs([("SSL_CERT_FILE", "/dev/null"), ("SSL_CERT_DIR", "/dev/null")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    (client, bounded(listener.accept().unwrap().0))
}

/// `openssl s_client` for whoever wants to go step by step: it sends what it is given, and gets so
/// much of what the server sends as is relayed to it.
pub struct TlsClient {
    /// The connection to the server.
    pub outside: TcpStream,
    inside: TcpStream,
    client: Child,
    stdin: ChildStdin,
    plain: JoinHandle<Vec<u8>>,
    records: Records,
    /// A record that is not whole yet.
    part: Vec<u8>,
}

impl TlsClient {
    /// Starts it on a connection to a server, and comes back after the handshake. It takes TLS 1.2,
    /// of which the end of the handshake, and an alert, can be told from outside.
    pub fn start(outside: TcpStream) -> io::Result<Self> {
        let (mut client, inside) = s_client(&["-tls1_2"]);
        let (from, to) = (inside.try_clone().unwrap(), outside.try_clone().unwrap());
        thread::spawn(move || relay_up(&from, &to, &Gate::default(), 0));
        let (stdin, mut stdout) = (client.stdin.take().unwrap(), client.stdout.take().unwrap());
        let plain = thread::spawn(move || {
            let mut plain = Vec::new();
            stdout.read_to_end(&mut plain).unwrap();
            plain
        });
        let (records, part) = (Records::default(), Vec::new());
        let mut client = TlsClient { outside, inside, client, stdin, plain, records, part };
        // What the server says last in it is encrypted, and the first that is.
        while !client.records.types.ends_with(&[record::CHANGE_CIPHER_SPEC, record::HANDSHAKE])
            || client.records.bytes_of_part() > 0
        {
            if client.relay_some(&mut [0; 4096])? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(client)
    }

    /// Has it send `bytes`, in a record of their own.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stdin.write_all(bytes)?;
        self.stdin.flush()
    }

    /// Takes some of what the server has sent, no more than `buffer` has room for; how much it was,
    /// or 0 at the end of the stream. Whole records are relayed: a client that has half of one
    /// waits for the rest, and does not send.
    pub fn relay_some(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = tcp::read_some(&self.outside, buffer)?;
        self.records.feed(&buffer[..bytes]);
        self.part.extend(&buffer[..bytes]);
        let whole = self.part.len() - self.records.bytes_of_part();
        let _ = self.inside.write_all(&self.part[..whole]); // the client may have left first
        self.part.drain(..whole);
        Ok(bytes)
    }

    /// Waits for its end; what it has made of what was relayed, and the type of the last record, if
    /// that was whole.
    pub fn finish(mut self) -> (Vec<u8>, Option<u8>) {
        let _ = self.inside.shutdown(Shutdown::Write); // as before
        let plain = self.plain.join().unwrap();
        drop(self.stdin);
        self.client.wait().unwrap();
        let last = self.records.types.last().copied();
        (plain, last.filter(|_| self.records.bytes_of_part() == 0))
    }
}

/// Keeps the response away from a client that is still sending.
#[derive(Default)]
struct Gate {
    shut: Mutex<bool>,
    opens: Condvar,
}

impl Gate {
    fn shut(&self) {
        *self.shut.lock().unwrap() = true;
    }

    fn open(&self) {
        *self.shut.lock().unwrap() = false;
        self.opens.notify_all();
    }

    fn pass(&self) {
        drop(self.opens.wait_while(self.shut.lock().unwrap(), |shut| *shut).unwrap());
    }
}

/// From the client to the server, up to the client's end.
fn relay_up(from: &TcpStream, mut to: &TcpStream, gate: &Gate, first: usize) {
    let mut records = Records::default();
    let mut sent = 0;
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(bytes @ 1..) = tcp::read_some(from, &mut buffer) {
        records.feed(&buffer[..bytes]);
        if records.types.contains(&record::APPLICATION_DATA) {
            // Shut before the server can have an answer.
            if sent == 0 && first > 0 {
                gate.shut();
            }
            sent += bytes;
        }
        if to.write_all(&buffer[..bytes]).is_err() {
            break; // seen from the other direction, too
        }
        if sent >= first {
            gate.open();
        }
    }
    gate.open();
}

/// From the server to the client, up to the server's end; returns the types of the records.
fn relay_down(from: &TcpStream, mut to: &TcpStream, gate: &Gate) -> io::Result<Vec<u8>> {
    let mut records = Records::default();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        // What is only looked at still counts as unread.
        from.peek(&mut [0])?;
        gate.pass();
        let bytes = tcp::read_some(from, &mut buffer)?;
        if bytes == 0 {
            let _ = to.shutdown(Shutdown::Write); // the client may have left first
            return Ok(records.types);
        }
        records.feed(&buffer[..bytes]);
        let _ = to.write_all(&buffer[..bytes]);
    }
}
