// SPDX-License-Identifier: BSD-3-Clause

//! The contracts' stages, as the fake world has them.

use super::tcp::SEND_BUFFER;
use super::*;
use crate::backend::Descriptor;
use crate::backend::contract::{self as waiting, contract_tests};
use crate::contract::back::back_tests;
use crate::contract::content::content_tests;
use crate::contract::fdpass::fdpass_tests;
use crate::contract::tcp::tcp_tests;
use crate::contract::time::{clock_tests, closing_tests, signal_tests};
use crate::contract::{self, Stranger};
use crate::tcp::Tcp as _;
use std::net::SocketAddr;

/// A descriptor by its number.
pub(super) struct Number(pub RawFd);

impl Descriptor for Number {
    fn number(&self) -> RawFd {
        self.0
    }
}

pub(super) fn number(of: &impl Descriptor) -> Number {
    Number(of.number())
}

/// Who knocks.
const UID: u32 = 1000;
const GID: u32 = 2000;

/// One kernel and one process. Whoever leaves it has done nothing that no contract allows.
struct Stage {
    kernel: Kernel,
    process: Process,
    raiser: Option<Raiser>,
}

impl Stage {
    fn new(flavour: Flavour) -> Self {
        let kernel = Kernel::new(1, flavour);
        let process = kernel.process(4096);
        Stage { kernel, process, raiser: None }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.kernel.violations(), [""; 0]);
        }
    }
}

struct Pair {
    near: Socket,
    held: Held,
    client: Client,
    filled: u64,
}

impl waiting::Stage for Stage {
    type Backend = Backend;
    type Pair = Pair;

    fn backend(&mut self) -> Backend {
        self.process.backend()
    }

    fn pair(&mut self) -> Pair {
        let (client, held) = self.kernel.connection(&Setup { response: 0, reads: false, ..Setup::default() });
        let near = Socket::of(self.process.inherit(&held)).ok().unwrap();
        Pair { near, held, client, filled: 0 }
    }

    fn local_pair(&mut self) -> Pair {
        self.pair()
    }

    fn send_later(&mut self, pair: &Pair) {
        let client = pair.client.clone();
        self.kernel.after(Duration::from_secs(1), move |_| client.send(1));
    }

    fn now(&self) -> Duration {
        self.kernel.now()
    }
}

impl waiting::Pair for Pair {
    fn near(&self) -> impl Descriptor {
        number(&self.near)
    }

    fn send(&mut self) {
        self.client.send(1);
    }

    fn drain(&mut self) {
        while self.near.discard().is_ok() {}
    }

    fn fill(&mut self) {
        let bytes = SEND_BUFFER + Setup::default().client_window;
        self.held.write(bytes);
        self.filled += bytes;
    }

    fn make_room(&mut self) {
        while self.filled > 0 {
            self.filled -= self.client.read(self.filled);
        }
    }

    fn half_close(&mut self) {
        self.client.half_close();
    }

    fn close(&mut self) {
        self.client.close();
    }

    fn reset(&mut self) {
        self.client.reset();
    }
}

impl contract::Stage for Stage {
    type World = Fake;
    type Peer = Peer;
    type Caller = Sender;
    type Address = Address;
    type Desk = Desk;

    fn backend(&mut self) -> Backend {
        self.process.backend()
    }

    fn connection(&mut self) -> (Peer, Received) {
        let setup = Setup { response: 0, reads: false, server_window: 1 << 20, ..Setup::default() };
        let (client, held) = self.kernel.connection(&setup);
        let received = self.process.inherit(&held);
        (Peer { kernel: self.kernel.clone(), client, held: Some(held) }, received)
    }

    fn file(&mut self, length: usize) -> Received {
        let medium = Medium { read: Duration::from_millis(5), ..Medium::memory() };
        let held = self.kernel.file(length as u64, medium);
        self.process.inherit(&held)
    }

    fn reader(&mut self) -> Reader {
        self.process.reader()
    }

    fn stranger(&mut self, what: Stranger) -> Received {
        let held = match what {
            Stranger::Listener => self.kernel.idle(Idle::Listening),
            Stranger::Unconnected => self.kernel.idle(Idle::Unconnected),
            Stranger::Udp => self.kernel.other("UDP socket"),
            Stranger::Unix => self.kernel.slow("Unix socket", Duration::from_secs(1)),
            Stranger::File => self.kernel.slow("file", Duration::from_secs(1)),
        };
        self.process.inherit(&held)
    }

    fn door(&mut self) -> (Door, Address) {
        self.process.door(128)
    }

    fn call(&mut self, address: &Address) -> io::Result<Sender> {
        let this = crate::peer::Peer { uid: UID, groups: vec![GID, 4], all_groups: true, pid: Some(1) };
        self.kernel.connect(*address, this).map(|caller| Sender(caller, self.kernel.clone()))
    }

    fn way_back(&mut self, name: &str, backlog: usize) -> (Ways, Desk) {
        let desk = self.kernel.way_back(name, backlog);
        (self.process.back(), Desk(desk, self.kernel.clone()))
    }

    fn uid(&self) -> u32 {
        UID
    }

    fn gid(&self) -> u32 {
        GID
    }

    fn clock(&mut self) -> Clock {
        self.process.clock()
    }

    fn slow_close(&mut self) -> SlowClose {
        self.process.slow_close()
    }

    fn signal(&mut self) -> Signal {
        let (signals, raisers) = self.process.signals();
        self.raiser = Some(raisers.report);
        signals.report
    }

    fn raise(&mut self) {
        self.raiser.as_ref().unwrap().raise();
    }

    fn pass(&mut self) {
        self.kernel.run_until(self.kernel.now() + Duration::from_millis(1));
    }
}

/// The client, and what the server still has.
struct Peer {
    kernel: Kernel,
    client: Client,
    held: Option<Held>,
}

impl Peer {
    fn held(&self) -> &Held {
        self.held.as_ref().unwrap()
    }
}

impl contract::Peer for Peer {
    fn send(&mut self, bytes: usize) {
        self.client.send(bytes as u64);
    }

    fn say(&mut self, bytes: &[u8]) {
        self.client.say(bytes);
    }

    fn half_close(&mut self) {
        self.client.half_close();
    }

    fn reset(&mut self) {
        self.client.reset();
    }

    fn reads_pattern(&mut self, offset: u64, bytes: usize) -> io::Result<bool> {
        let before = self.client.facts().read;
        assert_eq!(self.client.read(bytes as u64), bytes as u64);
        // Where in the stream each piece is.
        let mut start = 0;
        let is_it = |piece: &Piece| {
            let from = before.saturating_sub(start);
            start += piece.length as u64;
            start <= before
                || piece.offset + from == offset
                || start - piece.length as u64 >= before + bytes as u64
        };
        Ok(self.client.facts().written.iter().all(is_it))
    }

    fn drain(&mut self, bytes: usize) {
        self.client.read(bytes as u64);
    }

    fn read_to_end(&mut self) -> io::Result<usize> {
        let mut read = 0;
        loop {
            let got = self.client.read(u64::MAX);
            read += got;
            let facts = self.client.facts();
            if facts.read_to_end.is_some() {
                return Ok(read as usize);
            }
            if facts.reset_arrived.is_some() {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            if got == 0 {
                assert!(self.kernel.next().is_some(), "it would wait for ever");
                self.kernel.run_out();
            }
        }
    }

    fn address(&self) -> SocketAddr {
        self.client.address()
    }

    fn fill(&mut self) -> usize {
        let bytes = SEND_BUFFER + Setup::default().client_window;
        self.held().write(bytes);
        bytes as usize
    }

    fn abort_on_close(&mut self) {
        self.held().set_linger(Some(Duration::ZERO));
    }

    fn wait_on_close(&mut self, time: Duration) {
        self.held().set_linger(Some(time));
    }

    fn notify(&mut self) -> bool {
        self.client.notify(1);
        true
    }

    fn let_go(&mut self) {
        self.held = None;
    }
}

struct Desk(WayBack, Kernel);

impl contract::Desk<Sender> for Desk {
    fn accept(&mut self) -> Option<Sender> {
        self.0.accept().map(|caller| Sender(caller, self.1.clone()))
    }

    fn close(&mut self) {
        self.0.close();
    }
}

struct Sender(Caller, Kernel);

impl contract::Caller<Peer> for Sender {
    fn send(&mut self, bytes: &[u8], peer: &Peer, copies: usize) -> io::Result<()> {
        self.0.send(bytes, &vec![peer.held(); copies])
    }

    fn close(&mut self) {
        self.0.close();
    }

    fn hear(&mut self) -> (Vec<u8>, usize) {
        let (told, descriptors) = self.0.hear(&self.1.process(4096)).unwrap().unwrap();
        (told, descriptors.len())
    }

    fn read_to_end(&mut self) -> Vec<u8> {
        assert!(self.0.is_hung_up(), "it would wait for ever");
        self.0.read()
    }
}

/// Every contract, on one kind of kernel.
macro_rules! all_contracts {
    ($name:ident, $flavour:expr) => {
        mod $name {
            use super::*;
            contract_tests!(Stage::new($flavour));
            tcp_tests!(Stage::new($flavour));
            content_tests!(Stage::new($flavour));
            back_tests!(Stage::new($flavour));
            fdpass_tests!(Stage::new($flavour));
            clock_tests!(Stage::new($flavour));
            closing_tests!(Stage::new($flavour));
            signal_tests!(Stage::new($flavour));
        }
    };
}

all_contracts!(linux, Flavour::linux());
all_contracts!(solaris, Flavour::solaris());
all_contracts!(bsd, Flavour::bsd());
