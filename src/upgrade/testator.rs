// SPDX-License-Identifier: BSD-3-Clause

//! The one that gives everything away.
//!
//! It sends copies and waits for the word of its successor. Until that has come nothing is given
//! away: whatever fails, the successor too, it goes on as before.

use super::image::{self, Frame, HEAD, MOST_BYTES, Request};
use lingerd_platform::backend::{Descriptor, Interest};
use lingerd_platform::clock::Clock;
use lingerd_platform::fdpass::Link;
use std::io::{self, ErrorKind};
use std::time::Duration;

/// How long all of it may take at most. As long as that nobody is served: a hand-off waits in the kernel's queue,
/// and is declined once that is full.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How long to wait for it to say what it wants: it does so at once.
const REQUEST: Duration = Duration::from_secs(1);

/// How long to wait for those in flight to arrive, when there are too many of them, or for memory.
const MOMENT: Duration = Duration::from_millis(1);

/// How often to try what must be known or said at the end.
const TRIES: usize = 1_000;

/// Why there is no successor.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It takes too long.
    #[error("it takes too long")]
    TooSlow,
    /// It has ended.
    #[error("it has ended")]
    Gone,
    /// It would take those who hand over responses, or what is kept alive, for others, and cut off what is being
    /// written.
    #[error(
        "it is too old to write responses and to keep connections alive; stop this one (lingerd -k), and start that \
         one then"
    )]
    Older,
    /// It says what nobody understands.
    #[error("it says what is no request")]
    Nonsense,
    /// The connection to it fails.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// A conversation with a successor.
pub struct Testator<'a, L: Link, C> {
    link: &'a L,
    clock: &'a C,
    /// When it is over, and until when to wait now.
    end: Duration,
    until: Duration,
    /// What it has sent, which nobody asks for.
    received: Vec<L::Received>,
}

impl<'a, L: Link, C: Clock> Testator<'a, L, C> {
    /// One over `link`, at which it has introduced itself, that takes so long at most.
    pub fn new(link: &'a L, clock: &'a C, patience: Duration) -> Self {
        let now = clock.now();
        let end = now + patience;
        Testator { link, clock, end, until: end.min(now + REQUEST), received: Vec::new() }
    }

    /// What it wants.
    ///
    /// # Errors
    /// [`Error`]
    pub fn request(&mut self) -> Result<Request, Error> {
        let request = self.read_request();
        self.until = self.end;
        request
    }

    fn read_request(&mut self) -> Result<Request, Error> {
        let mut head = [0; HEAD];
        self.read(&mut head)?;
        let (length, _) = image::head(head);
        if length > MOST_BYTES {
            return Err(Error::Nonsense);
        }
        let mut text = vec![0; length];
        self.read(&mut text)?;
        serde_json::from_slice(&text).map_err(|_| Error::Nonsense)
    }

    /// Tells it that there is nothing to take over.
    ///
    /// # Errors
    /// [`Error`]
    pub fn refuse(&self) -> Result<(), Error> {
        self.send(&Frame::Serving, &[])
    }

    /// Sends `what`, and copies of `descriptors` with it.
    ///
    /// # Errors
    /// [`Error`]
    pub fn send(&self, what: &Frame, descriptors: &[&dyn Descriptor]) -> Result<(), Error> {
        let bytes = image::frame(what, descriptors.len());
        let (mut rest, mut descriptors) = (&bytes[..], descriptors);
        while !rest.is_empty() {
            match self.link.pass(rest, descriptors) {
                Ok(sent) => (rest, descriptors) = (&rest[sent.min(rest.len())..], &[]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.wait(Interest::Write)?,
                Err(e) if matches!(e.kind(), ErrorKind::ResourceBusy | ErrorKind::OutOfMemory) => {
                    self.clock.sleep(self.left()?.min(MOMENT));
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::BrokenPipe => return Err(Error::Gone),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Waits until it says that it has everything; it waits for the answer then. If it has not within the time
    /// there is, it cannot say so later either, where the system can see to that.
    ///
    /// # Errors
    /// [`Error`]
    pub fn wait_until_it_has_it(&mut self) -> Result<(), Error> {
        let mut word = [0];
        let said = self.read(&mut word).or_else(|error| {
            self.link.silence();
            // It may have said so in this very moment.
            let (link, mut received) = (self.link, Vec::new());
            let heard = self.insist(|| link.hear(&mut word, &mut received));
            self.received.append(&mut received);
            if heard.is_ok_and(|count| count == 1) { Ok(()) } else { Err(error) }
        });
        said.and_then(|()| if word[0] == image::HAVE_IT { Ok(()) } else { Err(Error::Nonsense) })
    }

    /// Tells it that this one stays in charge. It knows by the time that has passed where it does not hear it.
    pub fn keep(&self) {
        self.link.silence();
        self.say(image::KEPT);
    }

    /// Says a last word, if there is anybody to hear it.
    pub fn say(&self, word: u8) {
        let _ = self.insist(|| self.link.pass(&[word], &[]));
    }

    /// Does what cannot be left, even if the system is short of memory for a while.
    fn insist<T>(&self, mut act: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        for _ in 1..TRIES {
            match act() {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::OutOfMemory => self.clock.sleep(MOMENT),
                done => return done,
            }
        }
        act()
    }

    /// Fills `buffer`.
    fn read(&mut self, mut buffer: &mut [u8]) -> Result<(), Error> {
        while !buffer.is_empty() {
            match self.link.hear(buffer, &mut self.received) {
                Ok(0) => return Err(Error::Gone),
                Ok(count) => buffer = &mut buffer[count..],
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.wait(Interest::Read)?,
                Err(e) if e.kind() == ErrorKind::OutOfMemory => self.clock.sleep(self.left()?.min(MOMENT)),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::ConnectionReset => return Err(Error::Gone),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// What is to be closed of what it has sent, which may take long.
    pub fn into_received(self) -> Vec<L::Received> {
        self.received
    }

    fn wait(&self, interest: Interest) -> Result<(), Error> {
        self.link.wait(interest, self.left()?)?;
        Ok(())
    }

    /// What is left of the time there is.
    fn left(&self) -> Result<Duration, Error> {
        match self.until.saturating_sub(self.clock.now()) {
            Duration::ZERO => Err(Error::TooSlow),
            left => Ok(left),
        }
    }
}
