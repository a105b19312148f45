//! Closes descriptors whose close(2) may wait, in a thread of its own.
//!
//! The last close of a file may wait for its file system, that of a terminal for its line, and
//! that of a Unix socket for whatever descriptors are queued in it. None of them is a socket to
//! linger on, but anybody may send one. Must not know who sent what.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;

/// See the module's head. The thread starts with the first descriptor; most daemons never see one.
#[derive(Default)]
pub struct Closer {
    thread: Option<Sender<OwnedFd>>,
    waiting: Arc<AtomicUsize>,
}

impl Closer {
    /// How many are not closed yet.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Closes `descriptor` soon. Where the system has no thread to spare it is closed here.
    pub fn close(&mut self, descriptor: OwnedFd) {
        if self.thread.is_none() {
            let (sender, receiver) = channel::<OwnedFd>();
            let waiting = Arc::clone(&self.waiting);
            let close_all = move || {
                for descriptor in receiver {
                    drop(descriptor);
                    waiting.fetch_sub(1, Ordering::Relaxed);
                }
            };
            self.thread =
                thread::Builder::new().name("closer".to_owned()).spawn(close_all).ok().map(|_| sender);
        }
        if let Some(thread) = &self.thread {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            // It fails, and closes, only if that thread has gone, which nothing makes it do.
            let _ = thread.send(descriptor);
        }
    }
}
