// SPDX-License-Identifier: BSD-3-Clause

//! Clients, thousands at a time in few threads, of every kind that there is: each knows what it is to
//! get, and tells what became of it.

use crate::sender::request;
use crate::{LONGEST, content};
use fastrand::Rng;
use lingerd_platform::backend::{Backend, Interest, System, Token};
use slotmap::{DefaultKey, Key, KeyData, SlotMap};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use support::http;
use support::tcp::is_gone;

/// The length of the page that Apache has.
pub const PAGE: usize = 20_000;

/// One client in so many is Apache's, where there is one.
const APACHE_HAS: u64 = 16;

/// How many are begun before it is looked what has become of the others.
const AT_A_TIME: usize = 32;

/// Longer than anything takes, also where a daemon takes its time to end, and senders with it.
const LONG: Duration = Duration::from_secs(180);

/// One that is silent leaves when no daemon can have it any more.
const SILENT: Duration = Duration::from_secs(20);

/// What a client does with its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Closes when the server has ended its side.
    Closes,
    /// Closes when it has everything, perhaps before the server has ended its side.
    Leaves,
    /// Ends its own side with its request.
    HalfCloses,
    /// Closes a while after the server has ended its side.
    Holds,
    /// Sends what nobody has asked for before it reads.
    SendsLate,
    /// Reads in small pieces.
    ReadsSlowly,
    /// Resets the connection, at once or in the midst of the response.
    Resets,
    /// Has everything, and neither closes nor says anything.
    IsSilent,
    /// Has everything, and sends until it is thrown out.
    NeverEnds,
}

impl Kind {
    /// All of them, and how many of a thousand are such.
    pub const MIXED: [(Kind, u32); 9] = [
        (Kind::Closes, 500),
        (Kind::Leaves, 100),
        (Kind::HalfCloses, 100),
        (Kind::Holds, 120),
        (Kind::SendsLate, 80),
        (Kind::ReadsSlowly, 50),
        (Kind::Resets, 46),
        (Kind::IsSilent, 2),
        (Kind::NeverEnds, 2),
    ];

    /// Those that end soon whatever the daemon does.
    pub const BRIEF: [(Kind, u32); 6] = [
        (Kind::Closes, 500),
        (Kind::Leaves, 100),
        (Kind::HalfCloses, 100),
        (Kind::Holds, 120),
        (Kind::SendsLate, 80),
        (Kind::ReadsSlowly, 50),
    ];

    const fn name(self) -> &'static str {
        match self {
            Kind::Closes => "close at the end",
            Kind::Leaves => "close when all is there",
            Kind::HalfCloses => "half-close at once",
            Kind::Holds => "hold for 0.1 to 2 s",
            Kind::SendsLate => "send late, then read",
            Kind::ReadsSlowly => "read slowly",
            Kind::Resets => "reset",
            Kind::IsSilent => "never close, silent",
            Kind::NeverEnds => "never close, sending",
        }
    }
}

/// Where a client may go.
#[derive(Clone, Copy)]
pub struct Server {
    /// Where it is.
    pub address: SocketAddr,
    /// Which one it is: one that is started anew is another one.
    pub number: usize,
}

/// What clients are like.
pub struct Habits {
    /// The kinds, and how many of each come.
    pub mix: &'static [(Kind, u32)],
    /// So many at once, at most.
    pub most: usize,
    /// How long to wait between two.
    pub pace: Duration,
}

/// A response that did not come whole, or a connection that ended too early.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    /// Whose it was.
    pub kind: Kind,
    /// What was seen.
    pub what: &'static str,
    /// From [`Server::number`], or `None` of Apache.
    pub server: Option<usize>,
    /// When the client came, and when that was seen.
    pub lived: (Instant, Instant),
    /// Whether it had sent what nobody reads by then.
    pub was_late: bool,
    /// How much of the response it had, and of how much.
    pub got: (usize, usize),
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, what, (got, size)) = (self.kind, self.what, self.got);
        let of = self.server.map_or("Apache".to_owned(), |number| format!("sender {number}"));
        let seconds = (self.lived.1 - self.lived.0).as_secs_f64();
        write!(f, "{kind:?}, of {of}: {what} with {got} of {size} bytes after {seconds:.3} s")
    }
}

/// What became of all clients.
#[derive(Debug, Default)]
pub struct Report {
    /// Those that had a connection, by kind.
    pub came: BTreeMap<Kind, u64>,
    /// Those that got all, and saw no reset before that.
    pub whole: BTreeMap<Kind, u64>,
    /// Those that reset the connection themselves.
    pub own_reset: u64,
    /// Those of them all that were Apache's, and got all.
    pub of_apache: u64,
    /// The others.
    pub lost: Vec<Loss>,
    /// Those that had no connection.
    pub nobody_there: u64,
}

impl Report {
    fn add(&mut self, other: Report) {
        for (ours, theirs) in [(&mut self.came, other.came), (&mut self.whole, other.whole)] {
            theirs.into_iter().for_each(|(kind, number)| *ours.entry(kind).or_default() += number);
        }
        self.own_reset += other.own_reset;
        self.of_apache += other.of_apache;
        self.lost.extend(other.lost);
        self.nobody_there += other.nobody_there;
    }

    /// A line a kind.
    pub fn print(&self) {
        for (kind, came) in &self.came {
            println!("  {:<28}{came:>10}", kind.name());
        }
    }
}

/// What its threads share.
#[derive(Default)]
pub struct Scene {
    /// Where clients go.
    pub servers: RwLock<Vec<Server>>,
    /// Some go there.
    pub apache: RwLock<Option<SocketAddr>>,
    /// How many have gone to Apache so far.
    pub to_apache: AtomicU64,
    is_over: AtomicBool,
}

/// The clients.
pub struct Crowd {
    scene: Arc<Scene>,
    threads: Vec<JoinHandle<Report>>,
}

impl Crowd {
    /// Lets them come, in so many threads, each of which has clients of such habits.
    pub fn gather(scene: &Arc<Scene>, threads: usize, habits: fn() -> Habits, rng: &mut Rng) -> Self {
        let begin = |_| {
            let (scene, rng) = (Arc::clone(scene), rng.fork());
            thread::spawn(move || Corner::new(&scene, habits(), rng).run())
        };
        Crowd { scene: Arc::clone(scene), threads: (0..threads).map(begin).collect() }
    }

    /// Lets no more come, waits until all have gone, and tells what became of them.
    pub fn disperse(self) -> Report {
        self.scene.is_over.store(true, Ordering::Relaxed);
        let mut all = Report::default();
        self.threads.into_iter().for_each(|thread| all.add(thread.join().unwrap()));
        all
    }
}

/// How a client's life ends.
enum End {
    Whole,
    OwnReset,
    Lost(&'static str),
}

/// What is next for a client.
enum Next {
    /// To hear what the server says.
    Hear,
    /// To wait.
    Wait(Duration),
    End(End),
}

struct Client {
    socket: TcpStream,
    kind: Kind,
    server: Option<usize>,
    born: Instant,
    /// Of an answer of Apache's, as far as it has come.
    head: Option<Vec<u8>>,
    offset: usize,
    size: usize,
    got: usize,
    was_late: bool,
    /// What of its kind's script is done.
    step: u32,
    /// Whether the server has ended its side.
    over: bool,
    is_watched: bool,
}

impl Client {
    /// What it does first.
    fn begin(&mut self, rng: &mut Rng) -> Next {
        match self.kind {
            Kind::HalfCloses => {
                let _ = self.socket.shutdown(Shutdown::Write);
                Next::Hear
            }
            Kind::SendsLate => Next::Wait(Duration::from_millis(rng.u64(20..200))),
            Kind::ReadsSlowly => Next::Wait(Duration::from_millis(20)),
            Kind::Resets => {
                self.step = rng.u32(0..=self.size as u32);
                if self.step < 500 { Next::Wait(Duration::from_millis(rng.u64(0..20))) } else { Next::Hear }
            }
            _ => Next::Hear,
        }
    }

    /// Its time has come.
    fn on_time(&mut self, rng: &mut Rng) -> Next {
        match self.kind {
            Kind::Holds | Kind::IsSilent => Next::End(End::Whole),
            Kind::NeverEnds => match self.send_late(1) {
                Ok(()) => Next::Wait(Duration::from_millis(200)),
                Err(_) => Next::End(End::Whole),
            },
            Kind::SendsLate if self.step < 2 => {
                self.step += 1;
                let _ = self.send_late(rng.usize(1..500)); // if that fails so does reading
                Next::Wait(Duration::from_millis(rng.u64(10..100)))
            }
            Kind::Resets => self.reset(),
            Kind::ReadsSlowly => match self.read(4096) {
                Err(what) => Next::End(End::Lost(what)),
                Ok(()) if self.over => self.ended(rng),
                Ok(()) => Next::Wait(Duration::from_millis(20)),
            },
            _ => Next::Hear,
        }
    }

    /// There is something to hear.
    fn on_ready(&mut self, rng: &mut Rng) -> Next {
        match self.read(usize::MAX) {
            Err(what) => Next::End(End::Lost(what)),
            Ok(()) if self.kind == Kind::Resets && self.got >= self.step as usize => self.reset(),
            Ok(()) if self.kind == Kind::Leaves && self.got == self.size => Next::End(End::Whole),
            Ok(()) if self.over => self.ended(rng),
            Ok(()) => Next::Hear,
        }
    }

    /// The server has ended its side.
    fn ended(&mut self, rng: &mut Rng) -> Next {
        if self.got < self.size {
            return Next::End(End::Lost("cut short"));
        }
        match self.kind {
            Kind::Holds => Next::Wait(Duration::from_millis(rng.u64(100..2_000))),
            Kind::IsSilent => Next::Wait(SILENT),
            Kind::NeverEnds => Next::Wait(Duration::from_millis(200)),
            Kind::Resets => self.reset(),
            _ => Next::End(End::Whole),
        }
    }

    fn reset(&self) -> Next {
        let _ = socket2::SockRef::from(&self.socket).set_linger(Some(Duration::ZERO));
        Next::End(End::OwnReset)
    }

    fn send_late(&mut self, bytes: usize) -> io::Result<()> {
        self.was_late = true;
        match self.socket.write(&[b'l'; 500][..bytes]) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(()),
            sent => sent.map(drop),
        }
    }

    /// Reads what there is, or so much, and looks whether it is right.
    fn read(&mut self, most: usize) -> Result<(), &'static str> {
        let mut buffer = [0; 16 * 1024];
        let mut left = most;
        while left > 0 {
            let most = left.min(buffer.len());
            match self.socket.read(&mut buffer[..most]) {
                Ok(0) => {
                    self.over = true;
                    return Ok(());
                }
                Ok(bytes) => {
                    self.take(&buffer[..bytes])?;
                    left -= bytes;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if is_gone(&e) && self.got == self.size => return Err("reset after the last byte"),
                Err(e) if is_gone(&e) => return Err("reset"),
                Err(_) => return Err("an error"),
            }
        }
        Ok(())
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        if let Some(head) = &mut self.head {
            head.extend_from_slice(bytes);
            let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(()) };
            if !head.starts_with(b"HTTP/1.1 200 ") {
                return Err("another status");
            }
            let body = head.split_off(end + 4);
            self.head = None;
            return self.take(&body);
        }
        let expected = &content()[self.offset + self.got..self.offset + self.size];
        if !expected.starts_with(bytes) {
            return Err("something else");
        }
        self.got += bytes.len();
        Ok(())
    }
}

/// The clients of one thread.
struct Corner<'a> {
    scene: &'a Scene,
    habits: Habits,
    rng: Rng,
    backend: System,
    clients: SlotMap<DefaultKey, Client>,
    times: BinaryHeap<Reverse<(Instant, DefaultKey)>>,
    report: Report,
}

fn token(key: DefaultKey) -> Token {
    Token(key.data().as_ffi())
}

impl<'a> Corner<'a> {
    fn new(scene: &'a Scene, habits: Habits, rng: Rng) -> Self {
        let backend = System::new().unwrap();
        let (clients, times, report) = Default::default();
        Corner { scene, habits, rng, backend, clients, times, report }
    }

    fn run(mut self) -> Report {
        let mut ready = Vec::new();
        let mut begin_at = Instant::now();
        let mut look_at = Instant::now();
        loop {
            let now = Instant::now();
            if !self.scene.is_over.load(Ordering::Relaxed) {
                for _ in 0..AT_A_TIME {
                    if self.clients.len() < self.habits.most && now >= begin_at {
                        begin_at = now.max(begin_at + self.habits.pace);
                        self.begin();
                    }
                }
            } else if self.clients.is_empty() {
                return self.report;
            }
            let soon = self.times.peek().map_or(LONG, |first| first.0.0.saturating_duration_since(now));
            let soon = soon.min(Duration::from_millis(20));
            let soon = if self.clients.len() < self.habits.most { soon.min(self.habits.pace) } else { soon };
            self.backend.wait(&mut ready, Some(soon)).unwrap();
            for &token in &ready {
                let key = DefaultKey::from(KeyData::from_ffi(token.0));
                if let Some(client) = self.clients.get_mut(key) {
                    let next = client.on_ready(&mut self.rng);
                    self.go_on(key, next);
                }
            }
            let now = Instant::now();
            while self.times.peek().is_some_and(|first| first.0.0 <= now) {
                let Reverse((_, key)) = self.times.pop().unwrap();
                if let Some(client) = self.clients.get_mut(key) {
                    let next = client.on_time(&mut self.rng);
                    self.go_on(key, next);
                }
            }
            if now >= look_at {
                look_at = now + Duration::from_secs(1);
                self.look_around(now);
            }
        }
    }

    /// Ends those for whom nothing happens any more; and, when the others go, those who would stay.
    fn look_around(&mut self, now: Instant) {
        let is_over = self.scene.is_over.load(Ordering::Relaxed);
        let ends = self.clients.iter().filter_map(|(key, client)| {
            let stays = matches!(client.kind, Kind::IsSilent | Kind::NeverEnds) && client.over;
            let end = if is_over && stays { Some(End::Whole) } else { None };
            Some((key, end.or((now - client.born > LONG).then_some(End::Lost("nothing happens")))?))
        });
        for (key, end) in ends.collect::<Vec<_>>() {
            self.go_on(key, Next::End(end));
        }
    }

    /// One more.
    fn begin(&mut self) {
        let apache = *self.scene.apache.read().unwrap();
        let apache = apache.filter(|_| self.rng.u64(0..APACHE_HAS) == 0);
        let server = match apache {
            Some(_) => None,
            None => {
                let servers = self.scene.servers.read().unwrap();
                Some(servers[self.rng.usize(0..servers.len())])
            }
        };
        let (offset, size, head) = match server {
            None => (0, PAGE, Some(Vec::new())),
            Some(_) => {
                let most = [2_000, 2_000, 2_000, 8_000, 20_000, LONGEST][self.rng.usize(0..6)];
                (self.rng.usize(0..250), self.rng.usize(1..=most), None)
            }
        };
        let address = server.map(|server| server.address).or(apache).unwrap();
        let born = Instant::now();
        let connected = TcpStream::connect(address).and_then(|socket| {
            match server {
                Some(_) => (&socket).write_all(&request(offset, size))?,
                None => (&socket).write_all(http::request("/page").as_bytes())?,
            }
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        let Ok(socket) = connected else {
            self.report.nobody_there += 1; // a sender that was killed
            return;
        };
        if server.is_none() {
            self.scene.to_apache.fetch_add(1, Ordering::Relaxed);
        }
        let kind = self.kind();
        *self.report.came.entry(kind).or_default() += 1;
        let mut client = Client {
            socket,
            kind,
            server: server.map(|server| server.number),
            born,
            head,
            offset,
            size,
            got: 0,
            was_late: false,
            step: 0,
            over: false,
            is_watched: false,
        };
        let next = client.begin(&mut self.rng);
        let key = self.clients.insert(client);
        self.go_on(key, next);
    }

    fn kind(&mut self) -> Kind {
        let all = self.habits.mix.iter().map(|(_, share)| share).sum();
        let mut chance = self.rng.u32(0..all);
        for &(kind, share) in self.habits.mix {
            match chance.checked_sub(share) {
                Some(left) => chance = left,
                None => return kind,
            }
        }
        unreachable!("it is less than all")
    }

    fn go_on(&mut self, key: DefaultKey, next: Next) {
        let client = &mut self.clients[key];
        let wants = matches!(next, Next::Hear);
        match (client.is_watched, wants) {
            (false, true) => self.backend.add(&client.socket, token(key), Interest::Read).unwrap(),
            (true, true) => self.backend.rearm(&client.socket, token(key), Interest::Read).unwrap(),
            (true, false) => self.backend.remove(&client.socket).unwrap(),
            (false, false) => {}
        }
        client.is_watched = wants;
        match next {
            Next::Hear => {}
            Next::Wait(time) => self.times.push(Reverse((Instant::now() + time, key))),
            Next::End(end) => {
                let client = self.clients.remove(key).unwrap();
                self.note(&client, end);
            }
        }
    }

    fn note(&mut self, client: &Client, end: End) {
        match end {
            End::Whole => {
                *self.report.whole.entry(client.kind).or_default() += 1;
                self.report.of_apache += u64::from(client.server.is_none());
            }
            End::OwnReset => self.report.own_reset += 1,
            End::Lost(what) => self.report.lost.push(Loss {
                kind: client.kind,
                what,
                server: client.server,
                lived: (client.born, Instant::now()),
                was_late: client.was_late,
                got: (client.got, client.size),
            }),
        }
    }
}
