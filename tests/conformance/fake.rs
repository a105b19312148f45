// SPDX-License-Identifier: BSD-3-Clause

//! Who listens at the hand-off socket and is no lingerd: it never reads, hangs up, or looks closely at what comes.

use crate::program::Program;
use lingerd_platform::backend::Interest;
use lingerd_platform::fdpass::Link;
use socket2::{Domain, SockAddr, Socket, Type};
use std::fs::{self, Permissions};
use std::io::{ErrorKind, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;
use support::daemon::Site;
use support::tcp;

/// One that lets senders in when it is asked to.
pub struct Fake {
    listener: UnixListener,
    path: PathBuf,
}

/// A program that another test starts in that moment may have the listener for an instant, and whoever comes next is not
/// to find it.
impl Drop for Fake {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// A link that it has let in.
pub struct Let {
    link: UnixStream,
}

/// A program that another test starts in that moment may have the link for an instant, and what the sender says meanwhile
/// would be lost.
impl Drop for Let {
    fn drop(&mut self) {
        let _ = self.link.shutdown(Shutdown::Both);
    }
}

impl Fake {
    /// Listens at the hand-off socket, which everybody may connect to.
    pub fn at_first(site: &Site) -> Self {
        Self::at(&site.socket())
    }

    /// Listens at the second one.
    pub fn at_second(site: &Site) -> Self {
        Self::at(&site.second())
    }

    fn at(path: &Path) -> Self {
        make_directory_of(path);
        let listener = UnixListener::bind(path).unwrap();
        listener.set_nonblocking(true).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o666)).unwrap();
        Fake { listener, path: path.to_owned() }
    }

    /// The next sender, if there is one.
    pub fn next(&self) -> Option<Let> {
        let (link, _) = self.listener.accept().ok()?;
        link.set_nonblocking(true).unwrap();
        Some(Let { link })
    }

    /// Waits for a sender.
    pub fn wait_for(&self, program: &Program) -> Result<Let, String> {
        program.eventually("it connects to lingerd", || self.next().ok_or_else(|| "nobody does".to_owned()))
    }

    /// Hangs up on each sender at once while `meanwhile` runs, which is told how many it were. What a sender was quicker to
    /// say is not lost.
    pub fn hanging_up<T>(&self, meanwhile: impl FnOnce(&AtomicUsize) -> T) -> T {
        /// Ends it, also when `meanwhile` panics.
        struct Done<'a>(&'a AtomicBool);
        impl Drop for Done<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let (done, links) = (AtomicBool::new(false), AtomicUsize::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut kept = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    if let Some(link) = self.next() {
                        links.fetch_add(1, Ordering::Relaxed);
                        link.link.silence();
                        while let Ok(Some(socket)) = link.next() {
                            let _ = socket.shutdown(Shutdown::Write); // the client may have gone
                            kept.push(socket);
                        }
                    } else {
                        thread::sleep(Duration::from_micros(200));
                    }
                }
            });
            let _done = Done(&done);
            meanwhile(&links)
        })
    }
}

impl Let {
    /// The next message, if there is one: the connection that came with the byte. One that is none is an error.
    pub fn next(&self) -> Result<Option<TcpStream>, String> {
        let (mut buffer, mut descriptors) = ([0; 2], Vec::<OwnedFd>::new());
        match self.link.hear(&mut buffer[..1], &mut descriptors) {
            Ok(0) => Err("the sender has closed its link".to_owned()),
            Ok(_) if buffer[0] != b'L' => Err(format!("the byte {:#04x} is no message", buffer[0])),
            Ok(_) if descriptors.len() != 1 => {
                Err(format!("{} descriptors came with an L", descriptors.len()))
            }
            Ok(_) => Ok(descriptors.pop().map(TcpStream::from)),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(format!("the link: {e}")),
        }
    }

    /// Says that one response may be handed over.
    pub fn allow(&self) {
        let _ = (&self.link).write_all(b"G"); // the sender may have gone
    }

    /// Whether something is there, or comes.
    pub fn has_something(&self, patience: Duration) -> bool {
        tcp::is_ready(&self.link, Interest::Read, patience)
    }

    /// Takes a response that is still to be written, and lets it go.
    pub fn take_spooled(&self) -> Result<(), String> {
        let (mut head, mut descriptors) = ([0; 72], Vec::<OwnedFd>::new());
        match self.link.hear(&mut head, &mut descriptors) {
            Ok(72) if head[0] == b'S' && descriptors.len() == usize::from(head[1]) + 1 => Ok(()),
            other => Err(format!("{other:?}, with {} descriptors", descriptors.len())),
        }
    }

    /// All messages that are there: how many.
    pub fn read_all(&self) -> Result<usize, String> {
        let mut count = 0;
        while self.next()?.is_some() {
            count += 1;
        }
        Ok(count)
    }

    /// Waits for the connection of the client with this address; others that come before it are let go.
    pub fn wait_for(&self, client: SocketAddr, program: &Program) -> Result<TcpStream, String> {
        let found = program.eventually("the client's connection is handed over", || {
            loop {
                match self.next() {
                    Ok(None) => return Err("it is not".to_owned()),
                    Ok(Some(socket)) if socket.peer_addr().is_ok_and(|it| it == client) => {
                        return Ok(Ok(socket));
                    }
                    Ok(Some(_)) => {}
                    Err(why) => return Ok(Err(why)),
                }
            }
        });
        found?
    }
}

/// A socket at which somebody listens who lets nobody in, and whose queue is full.
pub struct FullDoor {
    path: PathBuf,
    _all: Vec<Socket>,
}

impl Drop for FullDoor {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Makes one of the hand-off socket.
pub fn full_door(site: &Site) -> FullDoor {
    let path = site.socket();
    make_directory_of(&path);
    let address = SockAddr::unix(&path).unwrap();
    let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    listener.bind(&address).unwrap();
    listener.listen(0).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    let mut all = vec![listener];
    loop {
        let waiting = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        waiting.set_nonblocking(true).unwrap();
        if waiting.connect(&address).is_err() {
            return FullDoor { path, _all: all };
        }
        all.push(waiting);
    }
}

fn make_directory_of(path: &Path) {
    let _ = fs::create_dir(path.parent().unwrap()); // there may have been one before it
    let _ = fs::remove_file(path);
}
