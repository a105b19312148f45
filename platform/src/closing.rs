// SPDX-License-Identifier: BSD-3-Clause

//! Closes descriptors whose close(2) may wait, in a thread of its own.
//!
//! The last close of a terminal may wait for its line, that of a Unix socket for whatever descriptors are
//! queued in it, and that of much memory takes its time. None of them is a socket to linger on, but anybody
//! may send one. A file that is not in memory may wait for ever: that is a [`Reader`](crate::reader::Reader)'s
//! to close. Must not know who sent what.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;

/// The contract: takes descriptors and closes each exactly once, at some time, without making the
/// caller wait where that can be helped.
pub trait SlowClose<D> {
    /// How many it was given that are not closed yet: they still count against the descriptor limit.
    fn waiting(&self) -> usize;

    /// Closes `descriptor` soon.
    fn close(&mut self, descriptor: D);
}

/// A thread that starts with the first descriptor; most daemons never see one.
#[derive(Default)]
pub struct Thread {
    descriptors: Option<Sender<OwnedFd>>,
    waiting: Arc<AtomicUsize>,
}

impl SlowClose<OwnedFd> for Thread {
    fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Where the system has no thread to spare it is closed here.
    fn close(&mut self, descriptor: OwnedFd) {
        if self.descriptors.is_none() {
            let (sender, receiver) = channel::<OwnedFd>();
            let waiting = Arc::clone(&self.waiting);
            let close_all = move || {
                for descriptor in receiver {
                    drop(descriptor);
                    waiting.fetch_sub(1, Ordering::Relaxed);
                }
            };
            self.descriptors =
                thread::Builder::new().name("closer".to_owned()).spawn(close_all).ok().map(|_| sender);
        }
        if let Some(descriptors) = &self.descriptors {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            // It fails, and closes, only if that thread has gone, which nothing makes it do.
            let _ = descriptors.send(descriptor);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::contract::{Real, time::closing_tests};

    closing_tests!(Real);
}
