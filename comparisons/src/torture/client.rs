// SPDX-License-Identifier: BSD-3-Clause

//! One client: plays the script of a case and tells what it saw.

use super::answer::Answer;
use super::cases::{Case, Over, Step};
use super::held::Side;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};
use support::http::{self, TlsClient, record};
use support::tcp;

/// How often a client that goes slowly does something.
const TICK: Duration = Duration::from_millis(100);

/// What became of the response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All of it came.
    Whole,
    /// The stream ended too early, as if that were all.
    CutShort,
    /// A call failed, as the connection was gone before all had come; a write, too.
    Reset,
    /// It is the client that left, before anything was lost.
    Left,
    /// What must never happen.
    Failed(String),
}

/// What a client saw.
#[derive(Clone, Debug)]
pub struct Seen {
    /// What became of its response.
    pub outcome: Outcome,
    /// The server's side of the connection, if there was one.
    pub side: Option<Side>,
}

/// Plays `case` against the server at `address`, its times multiplied by `scale`.
pub fn run(case: &Case, address: SocketAddr, scale: f64) -> Seen {
    let link = match Link::connect(case, address) {
        Ok(link) => link,
        Err(e) => return Seen { outcome: Outcome::Failed(format!("connect: {e}")), side: None },
    };
    let side = link.socket().local_addr().ok().map(|client| Side::of_server(address, client));
    let mut client = Client { link, answer: Answer::new(case.expected), scale, over: false };
    let played = client.play(&case.script);
    let outcome = client.outcome(played, case.leaves());
    Seen { outcome, side }
}

/// The way to the server.
enum Link {
    Plain(TcpStream),
    Tls(TlsClient),
}

impl Link {
    fn connect(case: &Case, address: SocketAddr) -> io::Result<Link> {
        let socket = match case.window {
            Some(bytes) if case.from_afar => tcp::connect_as_from_afar(address, bytes)?,
            Some(bytes) => tcp::connect_with_window(address, bytes)?,
            None => TcpStream::connect(address)?,
        };
        let socket = http::bounded(socket);
        Ok(match case.over {
            Over::V4 | Over::V6 => Link::Plain(socket),
            Over::Tls => Link::Tls(TlsClient::start(socket)?),
        })
    }

    /// The connection to the server.
    fn socket(&self) -> &TcpStream {
        match self {
            Link::Plain(socket) => socket,
            Link::Tls(client) => &client.outside,
        }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Link::Plain(socket) => socket.write_all(bytes),
            Link::Tls(client) => client.send(bytes),
        }
    }
}

/// A client at work.
struct Client {
    link: Link,
    answer: Answer,
    scale: f64,
    /// Whether the server has ended its stream.
    over: bool,
}

impl Client {
    /// All steps. Once the response is whole it is nobody's loss that the server is gone.
    fn play(&mut self, script: &[Step]) -> io::Result<()> {
        for step in script {
            match self.step(step) {
                Err(_) if self.answer.is_whole() || self.over && self.answer.may_end_here() => return Ok(()),
                done => done?,
            }
        }
        Ok(())
    }

    fn step(&mut self, step: &Step) -> io::Result<()> {
        match *step {
            Step::Send(ref bytes) => self.link.send(bytes),
            Step::Upload { bytes, seconds } => self.upload(bytes, seconds),
            Step::Read { rate, seconds } => self.read(Some(rate), Some(seconds)),
            Step::ReadRest { rate } => self.read(rate, None),
            Step::Pause(seconds) => {
                thread::sleep(self.time(seconds));
                Ok(())
            }
            Step::HalfClose => self.link.socket().shutdown(Shutdown::Write),
            Step::Reset => {
                tcp::reset(self.link.socket().try_clone()?);
                Ok(())
            }
            Step::Leave => Ok(()),
        }
    }

    fn time(&self, seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds * self.scale)
    }

    /// Sends so many bytes in that time, evenly.
    fn upload(&mut self, bytes: usize, seconds: f64) -> io::Result<()> {
        let body = vec![b'u'; 64 * 1024];
        let rate = (seconds > 0.0).then(|| bytes as f64 / seconds);
        let mut pace = Pace::new(rate, self.scale);
        while pace.done < bytes {
            let piece = pace.wait().min(bytes - pace.done).min(body.len());
            self.link.send(&body[..piece])?;
            pace.done += piece;
        }
        Ok(())
    }

    /// Reads at that many bytes a second, or at once, for so long or up to the end of the response.
    fn read(&mut self, rate: Option<f64>, seconds: Option<f64>) -> io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        let mut pace = Pace::new(rate, self.scale);
        let until = seconds.map(|seconds| Instant::now() + self.time(seconds));
        while !self.over && !self.answer.is_whole() && until.is_none_or(|until| Instant::now() < until) {
            let most = pace.wait().min(buffer.len());
            let bytes = self.receive(&mut buffer[..most])?;
            self.over = bytes == 0;
            pace.done += bytes;
        }
        Ok(())
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.link {
            Link::Plain(socket) => {
                let bytes = socket.read(buffer)?;
                self.answer.feed(&buffer[..bytes]);
                Ok(bytes)
            }
            Link::Tls(client) => client.relay_some(buffer), // what is in it is only known at the end
        }
    }

    fn outcome(mut self, played: io::Result<()>, left: bool) -> Outcome {
        let mut said_goodbye = true;
        if let Link::Tls(client) = self.link {
            let (plain, last_record) = client.finish();
            self.answer.feed(&plain);
            said_goodbye = last_record == Some(record::ALERT);
        }
        if let Some(wrong) = self.answer.wrong() {
            return Outcome::Failed(wrong.to_owned());
        }
        let whole = self.answer.is_whole() || self.over && self.answer.may_end_here();
        match played {
            _ if whole && said_goodbye => Outcome::Whole,
            Ok(()) if left && !self.over => Outcome::Left,
            Ok(()) => Outcome::CutShort,
            Err(e) if tcp::is_gone(&e) => Outcome::Reset,
            Err(e) => Outcome::Failed(e.to_string()),
        }
    }
}

/// Keeps to a rate.
struct Pace {
    start: Instant,
    /// Bytes a second; `None`: all at once.
    rate: Option<f64>,
    /// So many bytes are through.
    done: usize,
}

impl Pace {
    fn new(rate: Option<f64>, scale: f64) -> Self {
        Pace { start: Instant::now(), rate: rate.map(|rate| rate / scale), done: 0 }
    }

    /// Waits until something is due, and tells how much.
    fn wait(&self) -> usize {
        let Some(rate) = self.rate else { return usize::MAX };
        loop {
            let due = (self.start.elapsed().as_secs_f64() * rate) as usize;
            if due > self.done {
                return due - self.done;
            }
            thread::sleep(TICK);
        }
    }
}
