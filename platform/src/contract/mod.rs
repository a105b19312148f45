// SPDX-License-Identifier: BSD-3-Clause

//! The contracts of the world as tests: the same for the kernel's and for the fake one.
//!
//! A test says in a contract's words what happens, and plays it on a [`Stage`]. What only a kernel can
//! show (close-on-exec, real signals' numbers) is tested beside the real ones; waiting has its own, in
//! `backend`. Must not know which world it plays in.

pub mod back;
pub mod content;
pub mod fdpass;
mod real;
pub mod tcp;
pub mod time;

pub use real::Real;

use crate::world::World;
use std::io;
use std::net::SocketAddr;

/// What a stage's world receives.
pub type Received<S> = <<S as Stage>::World as World>::Received;
/// What a stage's connections are.
pub type Socket<S> = <<S as Stage>::World as World>::Socket;
/// What is sent over them.
pub type Content<S> = <<S as Stage>::World as World>::Content;
/// What of it was read.
pub type Piece<S> = <Content<S> as crate::content::Content>::Piece;
/// What waits there.
pub type Waits<S> = <<S as Stage>::World as World>::Backend;
/// Who comes in there.
pub type Link<S> = <<S as Stage>::World as World>::Link;

/// Something else than a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stranger {
    /// A TCP socket that listens.
    Listener,
    /// One that was never connected.
    Unconnected,
    /// A UDP socket.
    Udp,
    /// A Unix socket.
    Unix,
    /// A file.
    File,
}

/// Makes what a test needs, and lets time pass.
pub trait Stage {
    /// The world on trial.
    type World: World;
    /// The client of a connection.
    type Peer: Peer;
    /// Who knocks at a door.
    type Caller: Caller<Self::Peer>;
    /// Where a door is.
    type Address;
    /// Where a server listens for what is brought back.
    type Desk: Desk<Self::Caller>;

    /// What waits.
    fn backend(&mut self) -> Waits<Self>;
    /// A connection: its client, and what the server hands over.
    fn connection(&mut self) -> (Self::Peer, Received<Self>);
    /// A file of that length, in which a byte is what [`pattern`] says.
    fn file(&mut self, length: usize) -> Received<Self>;
    /// What reads files.
    fn reader(&mut self) -> <Self::World as World>::Reader;
    /// Something else.
    fn stranger(&mut self, what: Stranger) -> Received<Self>;
    /// A door.
    fn door(&mut self) -> (<Self::World as World>::Door, Self::Address);
    /// Somebody who has knocked.
    ///
    /// # Errors
    /// What connect(2) says.
    fn call(&mut self, address: &Self::Address) -> io::Result<Self::Caller>;
    /// Ways back, and a server that listens at the one of that name, where about so many may wait.
    fn way_back(&mut self, name: &str, backlog: usize) -> (<Self::World as World>::Back, Self::Desk);
    /// Who that is.
    fn uid(&self) -> u32;
    /// And with which group.
    fn gid(&self) -> u32;
    /// The clock.
    fn clock(&mut self) -> <Self::World as World>::Clock;
    /// What closes slowly.
    fn slow_close(&mut self) -> <Self::World as World>::SlowClose;
    /// Signals of one meaning.
    fn signal(&mut self) -> <Self::World as World>::Signal;
    /// One of them arrives.
    fn raise(&mut self);
    /// Lets a moment pass.
    fn pass(&mut self);

    /// Lets time pass until it is so.
    fn until(&mut self, what: &str, is_so: impl Fn() -> bool) {
        for _ in 0..60_000 {
            if is_so() {
                return;
            }
            self.pass();
        }
        panic!("never {what}");
    }
}

/// What a file has at `offset`.
pub fn pattern(offset: u64) -> u8 {
    (offset % 251) as u8
}

/// The client of a connection; and the server, which has a copy of its end until it lets go.
pub trait Peer {
    /// It sends so many bytes, of which the connection holds as many at once.
    fn send(&mut self, bytes: usize);
    /// It sends these.
    fn say(&mut self, bytes: &[u8]);
    /// It sends no more.
    fn half_close(&mut self);
    /// It resets the connection.
    fn reset(&mut self);
    /// It reads so many bytes, and whether each is what [`pattern`] says of those from `offset` on.
    ///
    /// # Errors
    /// When the connection was reset before it came to it.
    fn reads_pattern(&mut self, offset: u64, bytes: usize) -> io::Result<bool>;
    /// It reads about so many bytes, if they are there, and throws them away.
    fn drain(&mut self, bytes: usize);
    /// It reads until the end, and returns how much there was.
    ///
    /// # Errors
    /// When the connection was reset before it came to it.
    fn read_to_end(&mut self) -> io::Result<usize>;
    /// Its address.
    fn address(&self) -> SocketAddr;
    /// The server writes until there is no room, and returns how much that is.
    fn fill(&mut self) -> usize;
    /// The server leaves the socket set so that its last close is a reset.
    fn abort_on_close(&mut self);
    /// The server leaves the socket set so that a close waits, for that long at most.
    fn wait_on_close(&mut self, time: std::time::Duration);
    /// A notice comes into the error queue of the server's socket, where there is such a queue.
    fn notify(&mut self) -> bool;
    /// The server closes its copy.
    fn let_go(&mut self);
}

/// Who knocks at a door.
pub trait Caller<P> {
    /// It sends bytes, and with them so many copies of the server's end of a connection.
    ///
    /// # Errors
    /// What sendmsg(2) says.
    fn send(&mut self, bytes: &[u8], peer: &P, copies: usize) -> io::Result<()>;
    /// It closes.
    fn close(&mut self);
    /// What it is told now, and with how many descriptors.
    fn hear(&mut self) -> (Vec<u8>, usize);
    /// What it is told, up to the end.
    fn read_to_end(&mut self) -> Vec<u8>;
}

/// Where a server listens.
pub trait Desk<C> {
    /// Lets the next one in, if one is there.
    fn accept(&mut self) -> Option<C>;
    /// It listens no more, and leaves the name.
    fn close(&mut self);
}

/// Makes a `#[test]` of each test named, of a contract's module, on the stage that the expression makes.
macro_rules! played {
    ($contract:path, $stage:expr; $($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                use $contract as contract;
                contract::$name(&mut $stage);
            }
        )*
    };
}
pub(crate) use played;
