// SPDX-License-Identifier: BSD-3-Clause

//! A server's workers as the daemon sees them: where they take parked connections back.

use crate::{PATIENCE, eventually};
use lingerd_platform::fdpass::{self, Link};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The name of the way back that the tests use.
pub const NAME: &str = "tests";

/// What is said of a connection that is parked: `K` or `H`, for how long, and something of its server's own.
pub fn head(kind: u8, patience: Duration, own: u8) -> [u8; 72] {
    let mut head = [0; 72];
    (head[0], head[1]) = (kind, NAME.len() as u8);
    head[4..8].copy_from_slice(&u32::try_from(patience.as_millis()).unwrap().to_be_bytes());
    head[8..8 + NAME.len()].copy_from_slice(NAME.as_bytes());
    head[32..].fill(own);
    head
}

/// A way back at which somebody listens.
pub struct Workers {
    listener: UnixListener,
    path: PathBuf,
}

/// One that a worker was offered, and has not said that it takes it.
pub struct Offer {
    link: UnixStream,
    /// What was said of it.
    pub head: [u8; 72],
    /// The connection.
    pub socket: TcpStream,
}

impl Workers {
    /// Listens beside the hand-off socket at `path`.
    pub fn beside(path: &Path) -> Self {
        let mut name = path.as_os_str().to_owned();
        name.push(".back.");
        name.push(NAME);
        let path = PathBuf::from(name);
        let _ = std::fs::remove_file(&path);
        Workers { listener: UnixListener::bind(&path).unwrap(), path }
    }

    /// What is offered next: who only asks whether anybody is there is let go.
    pub fn offered(&self) -> Offer {
        loop {
            self.listener.set_nonblocking(true).unwrap();
            let (link, _) =
                eventually(|| self.listener.accept().map_err(|e| format!("nothing comes back: {e}")));
            link.set_nonblocking(false).unwrap();
            link.set_read_timeout(Some(PATIENCE)).unwrap();
            let (mut head, mut there, mut descriptors) = ([0; 72], 0, Vec::<OwnedFd>::new());
            while there < head.len() {
                match link.hear(&mut head[there..], &mut descriptors) {
                    Ok(0) if there == 0 => break,
                    Ok(count) if count > 0 => there += count,
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                    other => panic!("half a message: {other:?}"),
                }
            }
            if there == head.len() {
                assert_eq!(descriptors.len(), 1);
                return Offer { link, head, socket: descriptors.remove(0).into() };
            }
        }
    }

    /// Whether nobody is offered at the moment: who only asks whether anybody is there is let go.
    pub fn has_none(&self) -> bool {
        self.listener.set_nonblocking(true).unwrap();
        loop {
            match self.listener.accept() {
                Ok((mut link, _)) => {
                    link.set_nonblocking(false).unwrap();
                    link.set_read_timeout(Some(PATIENCE)).unwrap();
                    if link.read(&mut [0]).unwrap() > 0 {
                        return false;
                    }
                }
                Err(e) => return e.kind() == ErrorKind::WouldBlock,
            }
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Offer {
    /// Takes it.
    pub fn take(mut self) -> TcpStream {
        self.link.write_all(b"A").unwrap();
        self.socket
    }

    /// Takes it when the daemon may not be there any more. Returns nothing if it is not.
    pub fn try_take(mut self) -> Option<TcpStream> {
        self.link.write_all(b"A").ok().map(|()| self.socket)
    }

    /// Says `bytes` and sends these along, whatever the protocol has to say to that.
    pub fn say(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        fdpass::send(&self.link, bytes, descriptors).unwrap();
    }

    /// Waits until the daemon has let go of the link.
    pub fn wait_until_withdrawn(&mut self) {
        let read = self.link.read(&mut [0]);
        assert!(matches!(read, Ok(0)) || read.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset));
    }
}
