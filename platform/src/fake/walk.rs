// SPDX-License-Identifier: BSD-3-Clause

//! A plain daemon and a crowd of senders and clients, on every kind of kernel and with everything
//! that can go wrong: what the fake world must bring to a good end itself before it judges others.

use super::stage::number;
use super::*;
use crate::backend::{Backend as _, Interest, Token};
use crate::clock::Clock as _;
use crate::closing::SlowClose as _;
use crate::fdpass::{self, Door as _, Link as _};
use crate::signals::Signal as _;
use crate::tcp::Tcp as _;

const SECOND: Duration = Duration::from_secs(1);
const ROOT: Peer = Peer { uid: 0, groups: Vec::new(), all_groups: true, pid: Some(1) };

/// It knows no deadline and asks everybody in each turn; each turn takes a second at most.
struct Plain {
    backend: Backend,
    door: Door,
    slow: SlowClose,
    clock: Clock,
    stop: Signal,
    links: Vec<Link>,
    sockets: Vec<(Socket, u32)>,
    tokens: u64,
}

impl Plain {
    fn add(&mut self, fd: &impl crate::backend::Descriptor) {
        self.tokens += 1;
        let _ = self.backend.add(fd, Token(self.tokens), Interest::Read);
    }

    /// Returns whether it goes on.
    fn turn(&mut self) -> bool {
        let mut ready = Vec::new();
        self.backend.wait(&mut ready, Some(SECOND)).unwrap();
        self.clock.pause();
        self.clock.now();
        // What is told of nothing is registered anew: it knows no token.
        while let Ok(link) = self.door.accept() {
            self.add(&link);
            self.links.push(link);
        }
        let mut received = Vec::new();
        for link in std::mem::take(&mut self.links) {
            let kept = loop {
                match link.receive(&mut received) {
                    Ok(fdpass::Received::Byte { .. } | fdpass::Received::Lost) => {}
                    Ok(fdpass::Received::End) => break false,
                    Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                        break true;
                    }
                    Err(_) => break false,
                }
            };
            if kept {
                self.links.push(link);
            } else {
                let _ = self.backend.remove(&link);
                self.slow.close(link.into_received());
            }
        }
        for received in received {
            match Socket::of(received) {
                Ok(socket) if socket.peer().is_err() => drop(socket),
                Ok(socket) => {
                    socket.half_close();
                    self.add(&socket);
                    self.sockets.push((socket, 0));
                }
                Err(other) => self.slow.close(other),
            }
        }
        for (socket, silent) in std::mem::take(&mut self.sockets) {
            let (over, silent) = match socket.discard() {
                Ok(0) => (true, 0),
                Ok(_) => (false, 0),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => (silent > 300, silent + 1),
                Err(_) => (true, 0),
            };
            socket.drain_errors();
            if over {
                let _ = self.backend.remove(&socket);
                socket.close();
            } else {
                self.sockets.push((socket, silent));
            }
        }
        self.rearm(&ready);
        self.stop.take() == 0
    }

    /// It knows no tokens, and so arms everything by taking it out and in again.
    fn rearm(&mut self, ready: &[Token]) {
        if ready.is_empty() {
            return;
        }
        let numbers: Vec<_> = (self.links.iter().map(number))
            .chain(self.sockets.iter().map(|(socket, _)| number(socket)))
            .chain([number(&self.door), number(&self.stop)])
            .collect();
        for fd in numbers {
            let _ = self.backend.remove(&fd);
            self.tokens += 1;
            let _ = self.backend.add(&fd, Token(self.tokens), Interest::Read);
        }
    }
}

/// A sender that hands over one of everything now and then, and the clients of it.
fn crowd(kernel: &Kernel, address: Address, clients: &Rc<RefCell<Vec<Client>>>) {
    for n in 0..60 {
        let clients = Rc::clone(clients);
        kernel.at(Duration::from_millis(kernel.chance(600_000)), move |kernel| {
            let Ok(sender) = kernel.connect(address, ROOT) else { return };
            let setup = Setup {
                response: kernel.chance(300_000),
                latency: Duration::from_millis(kernel.chance(200)),
                closes: n % 3 == 0,
                reads: n % 7 != 0,
                notices: (n % 2) as u32,
                linger: [None, Some(SECOND), Some(Duration::ZERO)][n % 3],
                ..Setup::default()
            };
            let (client, held) = kernel.connection(&setup);
            let file = kernel.slow("file", SECOND);
            let _ = sender.send(b"L", &[&held, &held, &kernel.other("pipe"), &file]);
            let _ = sender.send(b"L", &[&kernel.idle(Idle::Unconnected), &sender.end().unwrap()]);
            let end = client.clone();
            kernel.after(Duration::from_millis(kernel.chance(20_000)), move |_| match n % 6 {
                1 => end.send(100_000),
                2 => end.reset(),
                3 => end.disappear(),
                _ => end.close(),
            });
            let copy = held.clone();
            kernel.after(Duration::from_millis(kernel.chance(2_000)), move |_| drop(copy));
            clients.borrow_mut().push(client);
        });
    }
}

/// Runs for a quarter of an hour, then with nothing going wrong until the end, and returns the log's hash.
fn walk(seed: u64, flavour: Flavour) -> u64 {
    let kernel = Kernel::new(seed, flavour);
    kernel.set_faults(Faults { not_there: 0.02, ..Faults::some() });
    let process = kernel.process(256);
    let (door, address) = process.door(8);
    let (signals, raisers) = process.signals();
    let mut daemon = Plain {
        backend: process.backend(),
        door,
        slow: process.slow_close(),
        clock: process.clock(),
        stop: signals.stop,
        links: Vec::new(),
        sockets: Vec::new(),
        tokens: 0,
    };
    let clients = Rc::new(RefCell::new(Vec::new()));
    crowd(&kernel, address, &clients);
    kernel.at(SECOND * 900, |kernel| kernel.set_faults(Faults::default()));
    kernel.at(SECOND * 3600, move |_| raisers.stop.raise());
    kernel.must_end_by(SECOND * 3700);
    drop((signals.report, signals.reload));
    daemon.rearm(&[Token(0)]);
    while daemon.turn() {}

    assert_eq!((daemon.links.len(), daemon.sockets.len(), daemon.slow.waiting()), (0, 0, 0));
    for fd in [number(&daemon.door), number(&daemon.stop)] {
        let _ = daemon.backend.remove(&fd); // it may not have been let in again
    }
    assert_eq!(process.registrations(), 0);
    drop(daemon);
    assert_eq!(process.descriptors(), [], "but for the standard streams nothing is open");
    assert_eq!(kernel.in_flight(), 0);
    assert_eq!(kernel.violations(), [""; 0]);
    assert!(kernel.count(Call::Discard) > 1000);
    for client in clients.borrow().iter() {
        let facts = client.facts();
        assert!(facts.closed.is_some(), "{facts:?}");
    }
    kernel.hash()
}

#[test]
fn whatever_goes_wrong_everything_is_closed_in_the_end_on_every_kind_of_kernel() {
    for seed in 0..8 {
        for flavour in [Flavour::linux(), Flavour::bsd(), Flavour::solaris()] {
            let cost = Duration::from_micros(seed * 3);
            walk(seed, Flavour { batch: 3, cost, ..flavour });
        }
    }
}

#[test]
fn the_same_seed_is_the_same_run_and_another_is_another() {
    assert_eq!(walk(5, Flavour::linux()), walk(5, Flavour::linux()));
    assert_ne!(walk(5, Flavour::linux()), walk(6, Flavour::linux()));
}
