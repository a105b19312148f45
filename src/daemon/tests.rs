// SPDX-License-Identifier: BSD-3-Clause

//! The daemon driven by hand, on real sockets: what the simulation cannot show, as it has its own.

use super::*;
use crate::retry::AGAIN;
use crate::service::control;
use crate::service::endpoint::{Access, Endpoint};
use crate::upgrade::heir::Estate;
use crate::upgrade::image::Role;
use lingerd_platform::backend::{Descriptor, System};
use lingerd_platform::clock::Clock;
use lingerd_platform::closing::Closers;
use lingerd_platform::process;
use lingerd_platform::signals::Handler;
use std::cell::Cell;
use std::collections::HashSet;
use std::io::{Read, Write};
use std::marker::PhantomData;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

/// A clock that is set by hand, by whoever has its other handle.
#[derive(Clone, Default)]
struct HandClock(Rc<Cell<Duration>>);

impl Clock for HandClock {
    fn now(&self) -> Duration {
        self.0.get()
    }

    fn pause(&self) {}

    fn sleep(&self, time: Duration) {
        self.0.set(self.0.get() + time);
    }
}

/// The kernel, with another backend and another clock.
struct With<B>(PhantomData<B>);

impl<B: Backend> World for With<B> {
    type Back = lingerd_platform::back::Ways;
    type Backend = B;
    type Received = OwnedFd;
    type Socket = TcpStream;
    type Content = lingerd_platform::content::Regular;
    type Reader = lingerd_platform::reader::Threads;
    type Link = UnixStream;
    type Door = Endpoint;
    type Signal = Handler;
    type Clock = HandClock;
    type SlowClose = Closers;
}

/// A kernel that forgets what it has reported, as event ports do, and that may have no room to
/// be told of it again.
struct Stingy {
    system: System,
    registered: HashSet<RawFd>,
    forgotten: HashSet<RawFd>,
    full: bool,
}

impl Backend for Stingy {
    const NAME: &'static str = "stingy";

    fn add(&mut self, fd: &impl Descriptor, token: Token, interest: Interest) -> io::Result<()> {
        self.registered.insert(fd.number());
        self.system.add(fd, token, interest)
    }

    fn change(&mut self, _: &impl Descriptor, _: Token, _: Interest) -> io::Result<()> {
        unreachable!("the daemon waits to read only")
    }

    fn rearm(&mut self, fd: &impl Descriptor, token: Token, interest: Interest) -> io::Result<()> {
        assert!(self.registered.contains(&fd.number()), "armed without a token");
        if self.full {
            if self.forgotten.insert(fd.number()) {
                self.system.remove(fd)?;
            }
            return Err(ErrorKind::OutOfMemory.into());
        }
        match self.forgotten.remove(&fd.number()) {
            true => self.system.add(fd, token, interest),
            false => self.system.rearm(fd, token, interest),
        }
    }

    fn remove(&mut self, fd: &impl Descriptor) -> io::Result<()> {
        self.registered.remove(&fd.number());
        if self.forgotten.remove(&fd.number()) { Ok(()) } else { self.system.remove(fd) }
    }

    fn wait(&mut self, ready: &mut Vec<Token>, timeout: Option<Duration>) -> io::Result<()> {
        self.system.wait(ready, timeout)
    }
}

impl<B: Backend> Daemon<With<B>> {
    /// Serves what is ready now, and tells whether anything was.
    fn serve_now(&mut self) -> bool {
        self.backend.wait(&mut self.ready, Some(Duration::from_millis(1))).unwrap();
        self.serve_ready();
        !self.ready.is_empty()
    }

    /// Lets time pass on `clock`, which is its own.
    fn pass(&mut self, clock: &HandClock, time: Duration) {
        clock.0.set(clock.0.get() + time);
        self.clock.turn();
    }

    fn figure(&self, name: &str) -> u64 {
        self.snapshot().get(name).unwrap()
    }
}

/// A daemon to be driven by hand, and its clock, with its hand-off socket at the path.
fn daemon<B: Backend>(name: &str, backend: B) -> (Daemon<With<B>>, HandClock, PathBuf) {
    let path = std::env::temp_dir().join(format!("lingerd-{name}-{}", std::process::id()));
    let access = Access { uid: None, gid: None, mode: 0o600 };
    let clock = HandClock::default();
    let parts = Parts {
        backend,
        clock: clock.clone(),
        slow_close: Closers::default(),
        signals: Signals::install().unwrap(),
        door: Endpoint::bind(&path, access).unwrap(),
        spool_door: None,
        reader: lingerd_platform::reader::Threads::new().unwrap(),
        back: lingerd_platform::back::Ways::beside(&path).unwrap(),
        most_held: u64::MAX,
        door_is_shared: false,
        allowed: Allowed::by_mode(process::effective_uid(), 0, access.mode),
        control: Endpoint::bind(&control::path(&path), access).unwrap(),
        pid_file: None,
        chance: 1,
        note: Box::new(|_| {}),
        tell: Box::new(|_| true),
    };
    let [idle, max, limit] = [5, 30, 300].map(Span::from_secs);
    let room = Room::share(1024, 64, None).unwrap();
    (Daemon::new(parts, Rules { idle, max, limit }, Span::LONGEST, room).unwrap(), clock, path)
}

fn stingy() -> Stingy {
    let (registered, forgotten) = (HashSet::new(), HashSet::new());
    Stingy { system: System::new().unwrap(), registered, forgotten, full: false }
}

#[test]
fn what_the_kernel_has_no_room_for_is_served_again_later() {
    let (mut daemon, clock, path) = daemon("stingy", stingy());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let server = listener.accept().unwrap().0;

    let first = UnixStream::connect(&path).unwrap();
    daemon.backend.full = true;
    daemon.serve_now(); // lets the first one in, and can then wait for no other
    daemon.serve_now(); // the first one says nothing
    let second = UnixStream::connect(&path).unwrap();
    daemon.serve_now();
    assert_eq!(daemon.figure("senders"), 1, "the door is not watched any more");
    fdpass::send(&first, b"L", &[server.as_fd()]).unwrap();
    daemon.serve_now(); // a message, and then no room to wait for the next one
    fdpass::send(&first, b"L", &[server.as_fd()]).unwrap();
    daemon.serve_now();
    assert_eq!(daemon.figure("lingering"), 1);

    daemon.backend.full = false;
    assert!(daemon.next().is_some_and(|time| time.since(daemon.clock.now()) <= AGAIN));
    daemon.pass(&clock, AGAIN.into());
    daemon.turn().unwrap(); // it waits for nothing but the time
    daemon.serve_now();
    assert_eq!(daemon.figure("senders"), 2);
    assert_eq!(daemon.figure("lingering"), 2);
    fdpass::send(&second, b"L", &[server.as_fd()]).unwrap();
    daemon.serve_now();
    assert_eq!(daemon.figure("lingering"), 3);
    assert_eq!(daemon.retry.at(), None);
}

#[test]
fn a_door_that_is_shut_is_not_armed() {
    let (mut daemon, clock, _) = daemon("shut", stingy());
    let now = daemon.clock.now();
    daemon.senders.leave_door(Speech::Linger, &mut daemon.backend);
    daemon.retry.later(Source::Door(Speech::Linger), now);
    daemon.serve(Source::Door(Speech::Linger), false);
    daemon.control.leave(&mut daemon.backend);
    daemon.retry.later(Source::Control, now);
    daemon.serve(Source::Control, false);
    assert_eq!(daemon.backend.registered.len(), 4, "the signals and the reader");
    daemon.pass(&clock, AGAIN.into());
    daemon.turn().unwrap();
    assert_eq!(daemon.backend.registered.len(), 6);
}

#[test]
fn any_sequence_of_messages_leaves_every_descriptor_counted() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connection = || {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    };
    support::fuzz::any(20, |random| {
        let (mut daemon, clock, path) = daemon("messages", System::new().unwrap());
        let (mut senders, mut clients, mut sent) = (Vec::new(), Vec::new(), 0);
        let mut others = Vec::new(); // the other ends of what else is sent
        for _ in 0..100 {
            match random.u8(..16) {
                0 | 1 if senders.len() < 8 => senders.push(UnixStream::connect(&path).unwrap()),
                2 if !senders.is_empty() => drop(senders.swap_remove(random.usize(..senders.len()))),
                3..=9 if !senders.is_empty() => {
                    // Mostly what the protocol says; now and then whatever else there is.
                    let mut descriptors: Vec<OwnedFd> = Vec::new();
                    for _ in 0..random.usize(..4) {
                        descriptors.push(match random.u8(..8) {
                            0 => std::fs::File::open("/dev/null").unwrap().into(),
                            1 => listener.try_clone().unwrap().into(),
                            2 => UdpSocket::bind("127.0.0.1:0").unwrap().into(),
                            3 => {
                                let (one, other) = UnixStream::pair().unwrap();
                                others.push(other);
                                one.into()
                            }
                            _ => {
                                let (client, server) = connection();
                                clients.push(client);
                                server.into()
                            }
                        });
                    }
                    let fds: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
                    let byte = if random.u8(..10) == 0 { random.u8(..) } else { b'L' };
                    let sender = &senders[random.usize(..senders.len())];
                    if fdpass::send(sender, &[byte], &fds).is_ok() {
                        sent += fds.len();
                    }
                }
                10 if !clients.is_empty() => drop(clients.swap_remove(random.usize(..clients.len()))),
                11 if !clients.is_empty() => {
                    let client = random.usize(..clients.len());
                    let _ = clients[client].write_all(b"late");
                }
                12 => daemon.pass(&clock, Duration::from_millis(random.u64(..9_000))),
                13 => {
                    let now = daemon.clock.now();
                    daemon.connections.expire(&mut daemon.backend, now);
                }
                _ => drop(daemon.serve_now()),
            }
        }
        // What was sent to one that has closed since is still to be read.
        let mut turns = 0;
        while daemon.serve_now() {
            turns += 1;
            assert!(turns < 10_000, "something is ready for ever");
        }
        assert_eq!(daemon.figure("handed_over") + daemon.figure("rejected"), sent as u64);
        assert!(daemon.received.is_empty());
        daemon.stop();
        daemon.stop();
        assert!(daemon.is_done());
        // And none of them is kept: whoever has the other end sees it closed.
        drop(senders);
        for mut client in clients {
            let start = Instant::now();
            while client.write(b"x").is_ok() {
                assert!(start.elapsed() < Duration::from_secs(60), "a connection is kept");
                thread::yield_now();
            }
        }
        for mut other in others {
            other.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            assert_eq!(other.read(&mut [0]).unwrap(), 0);
        }
    });
}

#[test]
fn told_to_stop_by_a_predecessor_that_took_its_time_it_has_all_of_its_own() {
    let (mut daemon, clock, _) = daemon("told", stingy());
    let (mut predecessor, link) = UnixStream::pair().unwrap();
    predecessor.write_all(b"K").unwrap();
    clock.0.set(clock.0.get() + Duration::from_secs(5));
    let mut estate = Estate::default();
    estate.things.push((Role::Client, link.into()));
    let claimed = daemon.claim();
    daemon.take_over(estate, claimed);
    assert!(daemon.is_stopping());
    assert_eq!(daemon.end_at, Some(Time::after(clock.0.get()) + Span::LONGEST.most()));
}
