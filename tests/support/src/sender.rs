// SPDX-License-Identifier: BSD-3-Clause

//! A sender: what a server does at the hand-off socket, and what it must not do.

use crate::{PATIENCE, eventually};
use lingerd_platform::fdpass;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// One connection to the hand-off socket.
pub struct Sender(UnixStream);

impl Sender {
    /// Connects to `path`. Some systems refuse while the daemon's queue is full.
    pub fn connect(path: &Path) -> Self {
        let link = eventually(|| {
            UnixStream::connect(path).map_err(|e| format!("cannot connect to {}: {e}", path.display()))
        });
        link.set_read_timeout(Some(PATIENCE)).unwrap();
        link.set_write_timeout(Some(PATIENCE)).unwrap();
        Sender(link)
    }

    /// Hands one socket over, as a server does: the message, then its own copy is closed.
    pub fn hand_over(&self, socket: TcpStream) {
        self.send(b"L", &[socket.as_fd()]);
    }

    /// Hands sockets over in one message.
    pub fn hand_over_all(&self, sockets: &[TcpStream]) {
        self.send(b"L", &descriptors(sockets));
    }

    /// Waits until the daemon allows a response.
    pub fn wait_for_go_ahead(&self) {
        let mut byte = [0];
        (&self.0).read_exact(&mut byte).expect("the daemon allows nothing");
        assert_eq!(byte, [b'G']);
    }

    /// Whether it has allowed one. Takes no notice of that.
    pub fn has_go_ahead(&self) -> bool {
        let mut bytes = [std::mem::MaybeUninit::new(0); 2];
        self.0.set_nonblocking(true).unwrap();
        let peeked = socket2::SockRef::from(&self.0).peek(&mut bytes);
        self.0.set_nonblocking(false).unwrap();
        match peeked {
            Ok(count) => {
                assert_eq!(count, 1, "it has hung up, or allows two at a time");
                true
            }
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::WouldBlock);
                false
            }
        }
    }

    /// Hands a connection over with what is still to be written to it, once that is allowed: so much of each file from
    /// that offset on; and whether it is nobody's else.
    pub fn spool(&self, socket: TcpStream, files: &[(&impl AsFd, u64, u64, bool)], patience: Duration) {
        let head =
            spool_head(files.iter().map(|&(_, offset, length, is_ours)| (offset, length, is_ours)), patience);
        // Whoever drops it, be it the kernel, is not to make what is there look whole.
        socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
        let mut descriptors = vec![socket.as_fd()];
        descriptors.extend(files.iter().map(|(file, ..)| file.as_fd()));
        self.wait_for_go_ahead();
        self.send(&head, &descriptors);
    }

    /// Parks a connection, and waits until the daemon has it.
    pub fn park(&self, socket: TcpStream, head: &[u8; 72]) {
        self.send(head, &[socket.as_fd()]);
        drop(socket);
        self.wait_for_taken();
    }

    /// Waits until the daemon has one more that was parked; whatever else it allows meanwhile.
    pub fn wait_for_taken(&self) {
        let mut byte = [b'G'];
        while byte == [b'G'] {
            (&self.0).read_exact(&mut byte).expect("it does not say that it has it");
        }
        assert_eq!(byte, [b'K']);
    }

    /// Sends `bytes` with `descriptors`; waits for room, as the daemon may be slow.
    pub fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let sent = eventually(|| match self.try_send(bytes, descriptors) {
            Err(e) if is_full(&e) => Err(format!("no room for a message: {e}")),
            sent => Ok(sent),
        });
        assert_eq!(sent.expect("the daemon has hung up"), bytes.len());
    }

    /// Hands over as many of `sockets`, each in a message of its own, as there is room for at the
    /// moment, and returns how many that were.
    pub fn hand_over_while_there_is_room(&self, sockets: &[TcpStream]) -> usize {
        let sent = |socket: &&TcpStream| match self.try_send(b"L", &[socket.as_fd()]) {
            Err(e) if is_full(&e) => false,
            sent => sent.expect("the daemon has hung up") == 1,
        };
        sockets.iter().take_while(sent).count()
    }

    /// Sends `bytes` with `descriptors`, and does not wait.
    pub fn try_send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
        fdpass::send(&self.0, bytes, descriptors)
    }

    /// Writes as much of `bytes` as the daemon lets it.
    pub fn babble(&self, bytes: &[u8]) {
        let _ = (&self.0).write_all(bytes); // EPIPE is what it is after
    }

    /// Waits until the daemon has hung up. With words of ours unread, that comes as a reset.
    pub fn wait_until_hung_up(&self) {
        match (&self.0).read_to_end(&mut Vec::new()) {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
            Err(e) => panic!("the daemon did not hang up: {e}"),
        }
    }
}

/// The head of an `S`.
pub fn spool_head(files: impl Iterator<Item = (u64, u64, bool)>, patience: Duration) -> [u8; 72] {
    let mut head = [0; 72];
    head[0] = b'S';
    head[4..8].copy_from_slice(&u32::try_from(patience.as_millis()).unwrap().to_be_bytes());
    for (n, (offset, length, is_ours)) in files.enumerate() {
        head[1] += 1;
        head[3] |= u8::from(is_ours) << n;
        head[8 + 16 * n..][..8].copy_from_slice(&offset.to_be_bytes());
        head[16 + 16 * n..][..8].copy_from_slice(&length.to_be_bytes());
    }
    head
}

impl AsFd for Sender {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The most descriptors that a message can carry here: 253, which is what the protocol allows, but
/// OpenBSD takes no more than half of that.
pub fn most_descriptors() -> usize {
    let (link, _other) = UnixStream::pair().unwrap();
    let fits = |&number: &usize| fdpass::send(&link, b"L", &vec![link.as_fd(); number]).is_ok();
    [fdpass::MAX_DESCRIPTORS, fdpass::MAX_DESCRIPTORS / 2].into_iter().find(fits).unwrap()
}

/// The descriptors of `sockets`.
pub fn descriptors(sockets: &[TcpStream]) -> Vec<BorrowedFd<'_>> {
    sockets.iter().map(AsFd::as_fd).collect()
}

/// Whether the daemon, and not the link, is in the way.
fn is_full(error: &io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock
        // EMFILE is OpenBSD's word for too many descriptors in flight.
        || matches!(error.raw_os_error(), Some(libc::ETOOMANYREFS | libc::ENOBUFS | libc::EMFILE))
}
