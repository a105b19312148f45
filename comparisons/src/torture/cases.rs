// SPDX-License-Identifier: BSD-3-Clause

//! The cases: what each client asks for, how fast, and what it does meanwhile.
//!
//! Those named after an issue are of the shape that people have complained of there, of whatever
//! server it was.

use super::answer::Expected;
use super::pages::{BIG, PAGE, UNREAD};
use support::http;

/// How a client connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// TLS, over IPv4.
    Tls,
}

/// What a client does next.
#[derive(Clone, Debug)]
pub enum Step {
    /// Sends these bytes at once.
    Send(Vec<u8>),
    /// Sends so many bytes of a body, evenly.
    Upload {
        /// How many.
        bytes: usize,
        /// In what time.
        seconds: f64,
    },
    /// Reads so many bytes a second, for so long.
    Read {
        /// Bytes a second.
        rate: f64,
        /// For how long.
        seconds: f64,
    },
    /// Reads up to the end of the response; without a rate as fast as it comes.
    ReadRest {
        /// Bytes a second.
        rate: Option<f64>,
    },
    /// Does nothing for so many seconds.
    Pause(f64),
    /// Ends its side of the stream.
    HalfClose,
    /// Leaves with a reset.
    Reset,
    /// Closes, whatever is still to come.
    Leave,
}
use Step::{HalfClose, Leave, Pause, Read, ReadRest, Reset, Send, Upload};

/// One client, and what it is to get.
#[derive(Clone, Debug)]
pub struct Case {
    /// What the table calls it.
    pub title: &'static str,
    /// How it connects.
    pub over: Over,
    /// Room for little more than so many bytes unread.
    pub window: Option<usize>,
    /// With such a window: over the segments of an Ethernet, so that little is on its way.
    pub from_afar: bool,
    /// What it is to get.
    pub expected: Expected,
    /// What it does, in order.
    pub script: Vec<Step>,
    /// Meant for a server that gives up after [`SHORT_LIMIT`] seconds.
    pub past_limit: bool,
}

/// For how long, in seconds, a server waits at most in the cases that go past its limit.
pub const SHORT_LIMIT: u32 = 20;

/// A case that takes no more seconds is quick.
pub const QUICK: f64 = 13.0;

/// A window so small that what is not read stays with the server.
const SMALL: usize = 16_000;

/// How fast a slow reader reads.
const SLOW: f64 = 25_000.0;

impl Case {
    /// A client that gets `size` bytes of content.
    fn of(title: &'static str, size: usize, script: Vec<Step>) -> Self {
        let expected = Expected { status: 200, content: Some(size) };
        Case { title, over: Over::V4, window: None, from_afar: false, expected, script, past_limit: false }
    }

    /// A client with a small window that gets the usual page.
    fn slow(title: &'static str, script: Vec<Step>) -> Self {
        Case { window: Some(SMALL), ..Case::of(title, PAGE, script) }
    }

    /// A client that is refused, and sends all before it reads a byte.
    fn refused(title: &'static str, status: u16, path: &str, bytes: usize, seconds: f64) -> Self {
        let script = vec![upload(path, bytes), Upload { bytes, seconds }, ReadRest { rate: None }];
        Case { expected: Expected { status, content: None }, ..Case::of(title, 0, script) }
    }

    fn over(self, over: Over) -> Self {
        Case { over, ..self }
    }

    /// Whether it is the client that ends it, so that there is no whole response to be had.
    pub fn leaves(&self) -> bool {
        matches!(self.script.last(), Some(Reset | Leave))
    }

    /// How many seconds it takes, if the server does not keep it waiting.
    pub fn seconds(&self) -> f64 {
        let mut unread = self.expected.content.unwrap_or(0) as f64;
        let step = |step: &Step| match *step {
            Upload { seconds, .. } | Pause(seconds) => seconds,
            Read { rate, seconds } => {
                unread -= rate * seconds;
                seconds
            }
            ReadRest { rate } => rate.map_or(0.0, |rate| unread / rate),
            Send(_) | HalfClose | Reset | Leave => 0.0,
        };
        self.script.iter().map(step).sum()
    }
}

fn request(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").into()
}

fn get(path: &str) -> Step {
    Send(request(path))
}

fn get_as_of_old(path: &str) -> Step {
    Send(http::request(path).into())
}

/// The head of a request with a body. That of a 401 is a GET: a POST mod_asis does not serve.
fn upload(path: &str, bytes: usize) -> Step {
    let method = if path.ends_with(".asis") { "GET" } else { "POST" };
    let close = "Connection: close\r\n\r\n";
    Send(format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {bytes}\r\n{close}").into())
}

/// What comes too late: one more request.
fn late() -> Step {
    get("/late")
}

/// Reads slowly, and sends something after so many seconds.
fn slowly(first: Step, rate: f64, seconds: f64) -> Vec<Step> {
    vec![first, Read { rate, seconds }, late(), ReadRest { rate: Some(rate) }]
}

/// Reads nothing at first, but sends something.
fn zero_window(before: f64, after: f64) -> Vec<Step> {
    vec![get("/page"), Pause(before), late(), Pause(after), ReadRest { rate: None }]
}

/// Reads all at once, and sends something two seconds after the end.
fn at_once(first: Step) -> Vec<Step> {
    vec![first, ReadRest { rate: None }, Pause(2.0), late()]
}

/// Every case, as the rows of the table.
pub fn all() -> Vec<Case> {
    [slow_readers(), stalled_readers(), others(), refused_uploads()].concat()
}

fn slow_readers() -> Vec<Case> {
    let big = slowly(get("/big"), 800_000.0, 14.0);
    vec![
        Case::slow("slow reader, 25 kB/s, late request after 4 s", slowly(get("/page"), SLOW, 4.0)),
        Case::slow("the same, after 8 s", slowly(get("/page"), SLOW, 8.0)),
        Case::slow("the same, after 11 s", slowly(get("/page"), SLOW, 11.0)),
        Case::slow("18 kB/s, late request after 15 s", slowly(get("/page"), 18_000.0, 15.0)),
        Case::slow("25 kB/s, after 8 s, chunked", slowly(get("/page.shtml"), SLOW, 8.0)),
        Case::slow(
            "25 kB/s, after 8 s, HTTP/1.0 to the end of stream",
            slowly(get_as_of_old("/page.shtml"), SLOW, 8.0),
        ),
        Case::slow("25 kB/s, after 8 s, IPv6", slowly(get("/page"), SLOW, 8.0)).over(Over::V6),
        Case::slow("25 kB/s, TLS record after 8 s", slowly(get("/page"), SLOW, 8.0)).over(Over::Tls),
        Case::slow("25 kB/s, TLS, close_notify", vec![get("/page"), ReadRest { rate: Some(SLOW) }])
            .over(Over::Tls),
        Case::slow(
            "25 kB/s, half-closed after the request",
            vec![get("/page"), HalfClose, ReadRest { rate: Some(SLOW) }],
        ),
        Case::slow(
            "25 kB/s, half-closed after 4 s",
            vec![get("/page"), Read { rate: SLOW, seconds: 4.0 }, HalfClose, ReadRest { rate: Some(SLOW) }],
        ),
        Case::of("25 kB/s, after 8 s, the system's own window", PAGE, slowly(get("/page"), SLOW, 8.0)),
        // With everything acknowledged, silence ends the linger before, and it is for the client's
        // system to keep what is unread.
        Case {
            window: Some(2 * PAGE),
            ..Case::of("25 kB/s, after 11 s, all received before", PAGE, slowly(get("/page"), SLOW, 11.0))
        },
        Case::of("12 MB at 800 kB/s, late request after 14 s", BIG, big),
    ]
}

fn stalled_readers() -> Vec<Case> {
    let two_thirds = Read { rate: 100_000.0, seconds: 2.0 };
    vec![
        Case::slow(
            "stalls at two thirds for 20 s, late request after 10 s",
            vec![
                get("/page"),
                two_thirds.clone(),
                Pause(10.0),
                late(),
                Pause(10.0),
                ReadRest { rate: Some(100_000.0) },
            ],
        ),
        Case::slow("zero window for 20 s, late request after 10 s", zero_window(10.0, 10.0)),
        Case {
            past_limit: true,
            ..Case::slow("zero window for 30 s, late request after 25 s", zero_window(25.0, 5.0))
        },
        Case::slow(
            "never reads the last third, late requests, closes after 22 s",
            vec![get("/page"), two_thirds.clone(), Pause(10.0), late(), Pause(10.0), late(), Leave],
        ),
        Case::slow("resets in mid-response, after 4 s", vec![get("/page"), two_thirds, Pause(2.0), Reset]),
    ]
}

fn refused_uploads() -> Vec<Case> {
    vec![
        Case::refused("413, upload of 400 kB in 45 s", 413, "/page", 400_000, 45.0),
        Case::refused("413, upload of 10 MB in 5 s", 413, "/page", 10_000_000, 5.0),
        Case::refused("401, upload of 1 MB in 5 s", 401, "/401.asis", 1_000_000, 5.0),
        Case::refused("gunicorn 872: 401, upload of 1 MB at once", 401, "/401.asis", 1_000_000, 0.0),
        Case::refused("hyper 3078: 503, upload of 5 MB at once", 503, "/503", 5_000_000, 0.0),
        Case::refused("Rocket 2783: 413, upload of 20 MB at once", 413, "/page", 20_000_000, 0.0),
    ]
}

fn others() -> Vec<Case> {
    let unread = "GET /unread.asis HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                  Transfer-Encoding: chunked\r\n\r\n";
    let last_chunk = "0\r\n\r\n";
    vec![
        // The body is an empty one, and its end comes late.
        Case::of(
            "gunicorn 3334: body unread, 1 MB response",
            UNREAD,
            vec![
                Send(unread.into()),
                Pause(4.0),
                Send(last_chunk.into()),
                ReadRest { rate: Some(1_000_000.0) },
            ],
        ),
        // There it is the end of the handshake that comes when the server has closed.
        Case::slow("h2o 2534: TLS record after 3 s, 60 kB/s", slowly(get("/page"), 60_000.0, 3.0))
            .over(Over::Tls),
        Case::of(
            "60,000 pipelined requests in one go, behind Connection: close",
            PAGE,
            vec![Send(request("/page").repeat(60_000)), ReadRest { rate: None }],
        ),
        Case::of("read at once, late request after 2 s", PAGE, at_once(get("/page"))),
        Case::of("the same, chunked", PAGE, at_once(get("/page.shtml"))),
        Case::of("the same, HTTP/1.0 to the end of stream", PAGE, at_once(get_as_of_old("/page.shtml"))),
    ]
}

/// The cases that a thousand clients can play at once: those without TLS, which is a process a
/// client, and that are quick.
pub fn mixed() -> Vec<Case> {
    all().into_iter().filter(|case| case.over != Over::Tls && case.seconds() <= QUICK).collect()
}
