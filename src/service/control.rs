// SPDX-License-Identifier: BSD-3-Clause

//! The control socket: where `lingerd -S` gets the running daemon's counters, `lingerd -k` tells it to
//! stop, and its successor comes to take over.
//!
//! Whoever has come in says what he wants with one byte. Only the daemon's user and root get in, by
//! the file's mode and, where a system ignores that, by the kernel's word on who connects. There is
//! room for few: who says nothing is hung up on when another one comes, so that nobody can make the
//! daemon wait.
//!
//! Who has asked for the counters where senders come in is told here, too, as long as it takes, but has no other say.

use super::endpoint;
use crate::guard::{Allowed, Guard};
use crate::rules::time::Time;
use crate::source::Source;
use crate::stats::Snapshot;
use crate::watched::Watched;
use lingerd_platform::fdpass::{Door, Link, Received};
use lingerd_platform::world::World;
use lingerd_platform::{peer, process};
use std::ffi::OsString;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What is appended to the hand-off socket's path.
const SUFFIX: &str = ".ctl";

/// How long `lingerd -S` and `-k` wait for an answer: longer than a daemon waits for its successor.
const PATIENCE: Duration = Duration::from_secs(10);

/// More than any answer has.
const ANSWER_BYTES: usize = 64 * 1024;

/// What one who came in wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// To be told the counters.
    Counters,
    /// That the daemon stops; and to be told when it has.
    Stop,
    /// The same, unless it does already: what a predecessor was told that has let go, and perhaps told this one, too.
    StopToo,
    /// To take over from it.
    TakeOver,
}

impl Order {
    const ALL: [Order; 4] = [Order::Counters, Order::Stop, Order::StopToo, Order::TakeOver];

    /// The byte that says so.
    pub const fn byte(self) -> u8 {
        match self {
            Order::Counters => b'S',
            Order::Stop => b'K',
            Order::StopToo => b'k',
            Order::TakeOver => b'T',
        }
    }
}

/// What one is told who said stop: first that it will, and then how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// The daemon stops.
    Stopping,
    /// It has ended.
    Ended,
    /// It has ended, and another one has taken over from it.
    Succeeded,
}

impl Word {
    const fn text(self) -> &'static str {
        match self {
            Word::Stopping => "stopping\n",
            Word::Ended => "ended\n",
            Word::Succeeded => "succeeded\n",
        }
    }
}

/// Where the control socket of the daemon with the hand-off socket `socket` lies.
pub fn path(socket: &Path) -> PathBuf {
    let mut path = OsString::from(socket);
    path.push(SUFFIX);
    path.into()
}

/// How many are there at a time; how many are told something; and as many who have asked where senders come in.
pub const PLACES: usize = 4;
const TOLD: usize = 4;

/// One who has come in.
struct Client<L> {
    link: Watched<L>,
    /// Whether it waits for the end.
    waits: bool,
    /// [`Control::came`] as of its coming.
    number: u64,
}

/// One who is told something.
struct Told<L> {
    link: Watched<L>,
    /// What it was not told yet.
    rest: Vec<u8>,
    /// As of a client.
    number: u64,
}

/// The daemon's side.
pub struct Control<W: World> {
    door: Watched<W::Door>,
    clients: [Option<Client<W::Link>>; PLACES],
    /// Their numbers come after those of the clients.
    told: [Option<Told<W::Link>>; 2 * TOLD],
    /// How many of these are there, which is asked for with each connection.
    telling: usize,
    /// How many have come in so far.
    came: u64,
    guard: Guard,
    /// The links of those who have gone, or were hung up on.
    leaving: Vec<W::Link>,
}

impl<W: World> Control<W> {
    /// Behind `door` nobody is heard yet; [`watch`](Self::watch) changes that.
    pub fn new(door: W::Door) -> Self {
        let own = Allowed::by_mode(process::effective_uid(), 0, 0o600);
        let guard = Guard::new(own, "use the control socket: root and the daemon's user may");
        let door = Watched::new(door, Source::Control);
        let (clients, told, leaving) = (Default::default(), Default::default(), Vec::new());
        Control { door, clients, told, telling: 0, came: 0, guard, leaving }
    }

    /// Has who comes reported (again).
    ///
    /// # Errors
    /// As [`Watched::watch`].
    pub fn watch(&mut self, backend: &mut W::Backend) -> io::Result<()> {
        self.door.watch(backend)
    }

    /// Leaves who comes waiting until [`watch`](Self::watch).
    pub fn leave(&mut self, backend: &mut W::Backend) {
        self.door.leave(backend);
    }

    /// Has what `client` says reported (again), if it is still there.
    ///
    /// # Errors
    /// As [`Watched::watch`].
    pub fn watch_client(&mut self, client: u8, backend: &mut W::Backend) -> io::Result<()> {
        if let Some(told) = self.told_mut(client) {
            return told.link.watch(backend);
        }
        self.client(client).map_or(Ok(()), |client| client.link.watch(backend))
    }

    /// Has `client` not reported until [`watch_client`](Self::watch_client).
    pub fn leave_client(&mut self, client: u8, backend: &mut W::Backend) {
        if let Some(told) = self.told_mut(client) {
            told.link.leave(backend);
        }
    }

    /// Where they come in.
    pub fn door(&self) -> &W::Door {
        self.door.get()
    }

    /// How many were not let in.
    pub fn refused(&self) -> u64 {
        self.guard.refused()
    }

    /// Lets one in, if any waits; [`watch_client`](Self::watch_client) has it reported. The connection of
    /// one that may not come in is for the caller to close.
    ///
    /// # Errors
    /// As [`Door::accept`], but for `WouldBlock`.
    pub fn accept(
        &mut self,
        backend: &mut W::Backend,
        now: Time,
    ) -> io::Result<Option<Result<u8, W::Received>>> {
        let link = match self.door.get().accept() {
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
            accepted => accepted?,
        };
        if self.guard.lets_in(&link, now) {
            return Ok(Some(Ok(self.seat(link, backend))));
        }
        Ok(Some(Err(link.into_received())))
    }

    /// Gives `link` a place: a free one, or that of the one who has been there for the longest, if
    /// possible without having said anything.
    pub fn seat(&mut self, link: W::Link, backend: &mut W::Backend) -> u8 {
        let patience = |client: &Option<Client<W::Link>>| {
            client.as_ref().map_or((false, 0), |client| (client.waits, client.number))
        };
        let place = (0..PLACES).min_by_key(|&place| patience(&self.clients[place])).unwrap_or(0);
        let place = place as u8; // PLACES is less than 256
        self.dismiss(place, backend);
        self.came += 1;
        let link = Watched::new(link, Source::Client(place));
        self.clients[usize::from(place)] = Some(Client { link, waits: false, number: self.came });
        place
    }

    /// Those who have come in and said nothing yet.
    pub fn undecided(&self) -> impl Iterator<Item = (u8, &W::Link)> {
        let all = (0..).zip(&self.clients).filter_map(|(place, client)| Some((place, client.as_ref()?)));
        all.filter(|(_, client)| !client.waits).map(|(place, client)| (place, client.link.get()))
    }

    /// How many have come in.
    pub fn len(&self) -> usize {
        self.clients.iter().flatten().count() + self.told()
    }

    /// How many of them are only told something.
    pub fn told(&self) -> usize {
        self.telling
    }

    /// Whether nobody has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What `client` wants, once it has said so. One that has gone, or says something else, is
    /// dismissed. What came along, which nobody asks for, is appended to `received`.
    pub fn hear(
        &mut self,
        client: u8,
        received: &mut Vec<W::Received>,
        backend: &mut W::Backend,
    ) -> Option<Order> {
        let byte = match self.client(client)?.link.get().receive(received) {
            Ok(Received::Byte { byte, .. }) => Some(byte),
            Ok(Received::Lost | Received::End) => None,
            Err(e) => match e.kind() {
                ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::OutOfMemory => return None,
                _ => None,
            },
        };
        let order = Order::ALL.into_iter().find(|order| Some(order.byte()) == byte);
        if order.is_none() {
            self.dismiss(client, backend);
        }
        order
    }

    /// Is to tell all of `text` at `link`, and then to hang up: [`tell_on`](Self::tell_on) does it. Who has been told
    /// something for the longest, and does not read it, makes room; but no one who has come in here for one who has
    /// asked where senders do.
    pub fn tell(&mut self, link: W::Link, text: String, is_sender: bool, backend: &mut W::Backend) -> u8 {
        let since = |told: &Option<Told<W::Link>>| told.as_ref().map_or(0, |told| told.number);
        let first = TOLD * usize::from(is_sender);
        let place = (first..first + TOLD).min_by_key(|&place| since(&self.told[place])).unwrap_or(first);
        self.came += 1;
        let client = (PLACES + place) as u8; // less than 256
        let link = Watched::for_room(link, Source::Client(client));
        let told = Told { link, rest: text.into_bytes(), number: self.came };
        match self.told[place].replace(told) {
            Some(before) => self.leaving.push(before.link.into_inner(backend)),
            None => self.telling += 1,
        }
        client
    }

    /// Whether `client` is only told something.
    pub fn is_told(&self, client: u8) -> bool {
        usize::from(client) >= PLACES
    }

    fn told_mut(&mut self, client: u8) -> Option<&mut Told<W::Link>> {
        self.told.get_mut(usize::from(client).checked_sub(PLACES)?)?.as_mut()
    }

    /// Tells `client` what there is room for of the rest, and hangs up on it after all of it, or when it has gone.
    ///
    /// # Errors
    /// The system is short of memory, and it can be tried again.
    pub fn tell_on(&mut self, client: u8, backend: &mut W::Backend) -> io::Result<()> {
        let Some(told) = self.told_mut(client) else { return Ok(()) };
        while !told.rest.is_empty() {
            match told.link.get().pass(&told.rest, &[]) {
                Ok(count) => drop(told.rest.drain(..count)),
                Err(e) => match e.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::WouldBlock => return Ok(()),
                    ErrorKind::OutOfMemory => return Err(e),
                    _ => break,
                },
            }
        }
        let place = usize::from(client) - PLACES; // it is one of those
        if let Some(told) = self.told[place].take() {
            self.telling -= 1;
            let link = told.link.into_inner(backend);
            link.finish(); // one that was to take over may have a copy
            self.leaving.push(link);
        }
        Ok(())
    }

    /// Tells `client` that the daemon stops, and keeps it: it waits for the end.
    pub fn tell_stopping(&mut self, client: u8) {
        if let Some(client) = self.client(client) {
            client.waits = true;
            let _ = client.link.get_mut().tell(Word::Stopping.text().as_bytes());
        }
    }

    /// Tells all who wait for the end that this is it.
    pub fn tell_the_end(&mut self, word: Word, backend: &mut W::Backend) {
        for place in 0..PLACES as u8 {
            if self.client(place).is_some_and(|client| client.waits) {
                if let Some(mut link) = self.take(place, backend) {
                    let _ = link.tell(word.text().as_bytes());
                    link.finish();
                }
            }
        }
    }

    /// Hangs up on `client`.
    pub fn dismiss(&mut self, client: u8, backend: &mut W::Backend) {
        let link = self.take(client, backend);
        self.leaving.extend(link);
    }

    /// The links of those who have gone, or were hung up on. They are the caller's to close: whoever was there may have
    /// sent what he likes.
    pub fn leaving(&mut self) -> impl Iterator<Item = W::Link> {
        self.leaving.drain(..)
    }

    /// Takes the connection of `client` out.
    pub fn take(&mut self, client: u8, backend: &mut W::Backend) -> Option<W::Link> {
        let client = self.clients.get_mut(usize::from(client))?.take()?;
        Some(client.link.into_inner(backend))
    }

    fn client(&mut self, client: u8) -> Option<&mut Client<W::Link>> {
        self.clients.get_mut(usize::from(client))?.as_mut()
    }
}

/// Why a daemon that is there gives no counters, or does not stop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not let us in.
    #[error("{}: cannot connect{}", path.display(), match source.kind() {
        ErrorKind::PermissionDenied => " (only the daemon's user and root may ask)",
        ErrorKind::WouldBlock => " (the daemon hangs: its queue of connections is full)",
        _ => "",
    })]
    Connect {
        /// Of the control socket.
        path: PathBuf,
        /// What connect(2) says.
        source: io::Error,
    },
    /// Somebody else listens there.
    #[error("{}: user {uid} listens there, who is neither root nor the owner of the pid file", path.display())]
    Stranger {
        /// Of the control socket.
        path: PathBuf,
        /// Who it is.
        uid: u32,
    },
    /// It says nothing.
    #[error("{}: the daemon does not answer", .0.display())]
    Silent(PathBuf, #[source] io::Error),
    /// It does not answer us.
    #[error(
        "{}: the daemon hung up: it has just ended, or you are not its user (only that one and root may ask)",
        .0.display()
    )]
    HungUp(PathBuf),
    /// It has gone without a word.
    #[error("{}: the daemon is gone, and has not said that it has ended as it should", .0.display())]
    Gone(PathBuf),
    /// What it says is no answer.
    #[error("{}: {what}", path.display())]
    NoAnswer {
        /// Of the control socket.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

/// Connects to the control socket at `path`. `Ok(None)` when nobody listens there.
///
/// # Errors
/// When somebody does, but does not let us in.
pub fn connect(path: &Path) -> Result<Option<UnixStream>, Error> {
    match endpoint::connect(path) {
        Ok(link) => Ok(Some(std::os::fd::OwnedFd::from(link).into())),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Ok(None),
        Err(source) => Err(Error::Connect { path: path.to_owned(), source }),
    }
}

/// Asks the daemon with the hand-off socket `socket` for its counters. `Ok(None)` when there is no
/// daemon.
///
/// # Errors
/// When there is one but it does not let us in or does not answer.
pub fn query(socket: &Path) -> Result<Option<Snapshot>, Error> {
    let path = path(socket);
    let Some(mut link) = connect(&path)? else { return Ok(None) };
    let text = ask(&mut link, Order::Counters, |_| false).map_err(|e| Error::Silent(path.clone(), e))?;
    if text.is_empty() {
        return Err(Error::HungUp(path));
    }
    text.parse().map(Some).map_err(|what| Error::NoAnswer { path, what })
}

/// A daemon that has been told to stop.
pub struct Stopping {
    link: UnixStream,
    path: PathBuf,
    /// What it has said so far.
    said: String,
}

/// Tells the daemon with the control socket at `path` to stop. `Ok(None)` when there is none. Who listens
/// there has to be root or `owner`.
///
/// # Errors
/// When there is one but it does not let us in or does not answer.
pub fn stop(path: &Path, owner: u32) -> Result<Option<Stopping>, Error> {
    let Some(mut link) = connect(path)? else { return Ok(None) };
    match peer::peer(&link) {
        Ok(peer) if peer.uid != 0 && peer.uid != owner && owner != 0 => {
            return Err(Error::Stranger { path: path.to_owned(), uid: peer.uid });
        }
        _ => {} // where the system does not tell, the directory has to do
    }
    let said = ask(&mut link, Order::Stop, |text| text.ends_with(b"\n"))
        .map_err(|e| Error::Silent(path.to_owned(), e))?;
    match said.split_inclusive('\n').next() {
        Some(line) if line == Word::Stopping.text() => {
            Ok(Some(Stopping { link, path: path.to_owned(), said }))
        }
        None => Err(Error::HungUp(path.to_owned())),
        Some(other) => {
            let what = format!("'{}' is no answer to -k", other.trim_end());
            Err(Error::NoAnswer { path: path.to_owned(), what })
        }
    }
}

impl Stopping {
    /// Waits until it has ended, and says how.
    ///
    /// # Errors
    /// When it has not said so.
    pub fn wait(mut self) -> Result<Word, Error> {
        let rest = read(&mut self.link, None, |_| false).map_err(|e| Error::Silent(self.path.clone(), e))?;
        let said = self.said + &rest;
        let last = [Word::Ended, Word::Succeeded].into_iter().find(|word| said.ends_with(word.text()));
        last.ok_or(Error::Gone(self.path))
    }
}

/// Says what is wanted and reads the answer, which is empty if the other end hangs up.
fn ask(link: &mut UnixStream, order: Order, is_all: impl Fn(&[u8]) -> bool) -> io::Result<String> {
    let gone = |e: &io::Error| matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset);
    let answer = link.write_all(&[order.byte()]).and_then(|()| read(link, Some(PATIENCE), is_all));
    if answer.as_ref().is_err_and(gone) { Ok(String::new()) } else { answer }
}

/// Reads until what was read `is_all` or there is an end, within `patience` in all: whoever may be at
/// the other end of a socket in the daemon's directory must not be able to hold root up.
fn read(
    link: &mut UnixStream,
    patience: Option<Duration>,
    is_all: impl Fn(&[u8]) -> bool,
) -> io::Result<String> {
    let mut answer = Vec::new();
    let deadline = patience.map(|patience| Instant::now() + patience);
    link.set_nonblocking(false)?;
    while answer.len() < ANSWER_BYTES && !is_all(&answer) {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            let seconds = PATIENCE.as_secs();
            let what = format!("not within {seconds} s; what it was told it may do when it goes on");
            return Err(io::Error::new(ErrorKind::TimedOut, what));
        }
        link.set_read_timeout(left)?;
        let mut piece = [0; 4096];
        match link.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => answer.extend_from_slice(&piece[..n]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {} // the time is over
            Err(e) => return Err(e),
        }
    }
    String::from_utf8(answer).map_err(io::Error::other)
}
