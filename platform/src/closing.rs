// SPDX-License-Identifier: BSD-3-Clause

//! Closes descriptors whose close(2) may wait, in threads of its own.
//!
//! The last close of a terminal may wait for its line, that of a Unix socket for whatever descriptors are
//! queued in it, and that of much memory takes its time. None of them is a socket to linger on, but anybody
//! may send one. A file that is not in memory may wait for ever: that is a [`Reader`](crate::reader::Reader)'s
//! to close. Must not know who sent what.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// How many threads there are at most. Where each waits for one that is slow, the others wait, too.
const THREADS: usize = 4;

/// The contract: takes descriptors and closes each exactly once, at some time, without making the
/// caller wait where that can be helped.
pub trait SlowClose<D> {
    /// How many it was given that are not closed yet: they still count against the descriptor limit.
    fn waiting(&self) -> usize;

    /// Closes `descriptor` soon.
    fn close(&mut self, descriptor: D);
}

/// What the threads take from.
type Queue = Arc<Mutex<Receiver<OwnedFd>>>;

/// Threads, the first of which starts with the first descriptor, which most daemons never see, and another one
/// where one comes while all have something to close: what is slow is not to keep what is not.
#[derive(Default)]
pub struct Closers {
    descriptors: Option<(Sender<OwnedFd>, Queue)>,
    threads: usize,
    waiting: Arc<AtomicUsize>,
}

impl Closers {
    /// One more, if the system has it to spare.
    fn start(&mut self) {
        let (_, receiver) = self.descriptors.get_or_insert_with(|| {
            let (sender, receiver) = channel();
            (sender, Arc::new(Mutex::new(receiver)))
        });
        let (receiver, waiting) = (Arc::clone(receiver), Arc::clone(&self.waiting));
        // The one that waits for the next descriptor has the lock.
        let next = move || receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let close_all = move || {
            while let Ok(descriptor) = next() {
                drop(descriptor);
                waiting.fetch_sub(1, Ordering::Relaxed);
            }
        };
        let started = thread::Builder::new().name("closer".to_owned()).spawn(close_all);
        self.threads += usize::from(started.is_ok());
    }
}

impl SlowClose<OwnedFd> for Closers {
    fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Where the system has no thread to spare it is closed here.
    fn close(&mut self, descriptor: OwnedFd) {
        if self.threads < THREADS && self.waiting() >= self.threads {
            self.start();
        }
        if let Some((sender, _)) = self.descriptors.as_ref().filter(|_| self.threads > 0) {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            // It fails, and closes, only if there is no receiver any more, which is here.
            let _ = sender.send(descriptor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{Real, time::closing_tests};
    use std::io::{ErrorKind, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    closing_tests!(Real);

    /// Longer than anything takes on a machine that works.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// One whose close(2) waits until the other end, which is returned, too, has gone.
    fn slow() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut slow = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (other_end, _) = listener.accept().unwrap();
        slow.set_nonblocking(true).unwrap();
        while slow.write(&[0; 65_536]).map_err(|e| e.kind()) != Err(ErrorKind::WouldBlock) {}
        slow.set_nonblocking(false).unwrap();
        socket2::SockRef::from(&slow).set_linger(Some(PATIENCE)).unwrap();
        (slow, other_end)
    }

    #[test]
    fn what_is_slow_keeps_nothing_else_from_being_closed() {
        let mut closing = Closers::default();
        let others: Vec<_> = (1..THREADS)
            .map(|_| {
                let (slow, other_end) = slow();
                closing.close(slow.into());
                other_end
            })
            .collect();
        for _ in 0..10 {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.set_read_timeout(Some(PATIENCE / 4)).unwrap();
            closing.close(ours.into());
            assert_eq!(theirs.read(&mut [0]).unwrap(), 0, "its end");
        }
        assert!(closing.waiting() >= others.len(), "the others were slow");
        drop(others);
        while closing.waiting() > 0 {
            thread::sleep(Duration::from_millis(10));
        }
    }
}
