// SPDX-License-Identifier: BSD-3-Clause

//! Ways back: servers that listen, each at a name, and the daemon, who calls there, unix(7), connect(2).
//!
//! Must not know what is brought back, or what a server does with it.

use super::descriptors::{Fd, Held, Kind};
use super::evidence::Call;
use super::slab::Key;
use super::state::State;
use super::unix::{Caller, Channel, Link, error_number};
use super::{Handle, Kernel, Process};
use crate::back::Back;
use crate::peer::Peer;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

/// A socket at which a server listens.
pub(super) struct Desk {
    /// The other end of each that was called and not accepted.
    waiting: VecDeque<Key>,
    backlog: usize,
    /// What is to happen when somebody calls.
    at_call: Option<super::agenda::Call>,
}

/// What calls them.
pub struct Ways(Process);

impl Ways {
    pub(super) const fn of(process: Process) -> Self {
        Ways(process)
    }
}

impl Back for Ways {
    type Link = Link;

    fn call(&self, name: &str) -> io::Result<Link> {
        let Process { kernel, number: process } = &self.0;
        let mut state = kernel.enter();
        let called = state.call_back(*process, name);
        let result = called.as_ref().map_or_else(error_number, |&number| number.into());
        state.note(Call::CallBack, 0, result);
        drop(state);
        called.map(|number| Link(Fd::new(kernel.clone(), *process, number)))
    }
}

impl State {
    fn call_back(&mut self, process: usize, name: &str) -> io::Result<i32> {
        if self.dice.roll(|faults| faults.memory) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        if self.dice.roll(|faults| faults.call) {
            return Err(self.dice.one_of(&[libc::EMFILE, libc::ENFILE]));
        }
        let table = &self.processes[process];
        if table.open >= table.limit {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        let refused = || io::Error::from_raw_os_error(libc::ECONNREFUSED);
        let key = *self.ways.get(name).ok_or(io::ErrorKind::NotFound)?;
        let desk = self.desks.get(key).ok_or_else(refused)?;
        if desk.waiting.len() > desk.backlog {
            return Err(if self.flavour.refuses_when_full {
                refused()
            } else {
                io::ErrorKind::WouldBlock.into()
            });
        }
        let link =
            self.links.insert(Channel::new(Peer { uid: 0, groups: Vec::new(), all_groups: true, pid: None }));
        let (file, other) = (self.open(Kind::Link(link)), self.open(Kind::Caller(link)));
        let number = self.install(process, file)?; // there is room, see above
        if let Some(it) = self.links.get_mut(link) {
            it.is_called(file);
        }
        let Some(desk) = self.desks.get_mut(key) else { return Err(refused()) };
        desk.waiting.push_back(other);
        if let Some(action) = desk.at_call.take() {
            self.soon(action);
        }
        Ok(number)
    }

    /// Nobody listens there any more: who has called and was not let in is told so.
    fn close_desk(&mut self, desk: Key) {
        let Some(desk) = self.desks.remove(desk) else { return };
        self.drop_soon(desk.at_call);
        for other in desk.waiting {
            let Kind::Caller(link) = self.kind(other) else { continue };
            if let Some(it) = self.links.get_mut(link) {
                it.was_let_in(false);
            }
            // A reset, or on some systems only the end.
            if self.flavour.refuses_when_full {
                self.forget_told(link);
            }
            self.release(other, super::By::Outside);
        }
    }
}

/// A socket at which a server listens for those who bring connections back. Clones are the same one, and it closes when the
/// last is dropped; the name is there still.
#[derive(Clone)]
pub struct WayBack(Rc<Inner>);

struct Inner {
    kernel: Handle,
    desk: Key,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let Some(kernel) = self.kernel.try_get().filter(|_| !std::thread::panicking()) else { return };
        let mut state = kernel.state();
        state.close_desk(self.desk);
        state.settle();
    }
}

impl WayBack {
    pub(super) fn open(kernel: &Kernel, name: &str, backlog: usize) -> Self {
        let mut state = kernel.state();
        let desk = state.desks.insert(Desk { waiting: VecDeque::new(), backlog, at_call: None });
        state.ways.insert(name.into(), desk);
        drop(state);
        WayBack(Rc::new(Inner { kernel: kernel.handle(), desk }))
    }

    /// Lets the next one in, if somebody waits.
    pub fn accept(&self) -> Option<Caller> {
        let kernel = self.0.kernel.get();
        let mut state = kernel.state();
        let other = state.desks.get_mut(self.0.desk)?.waiting.pop_front()?;
        let Kind::Caller(link) = state.kind(other) else { return None };
        state.note_outside(link, 2);
        if let Some(it) = state.links.get_mut(link) {
            it.was_let_in(true);
        }
        drop(state);
        Some(Caller::of(link, Held::new(self.0.kernel.clone(), other)))
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.0.kernel.get().state().desks.get(self.0.desk).map_or(0, |desk| desk.waiting.len())
    }

    /// What is to happen when somebody calls. At once if somebody waits.
    pub fn at_call(&self, action: impl FnOnce(&Kernel) + 'static) {
        let kernel = self.0.kernel.get();
        let mut state = kernel.state();
        let Some(desk) = state.desks.get_mut(self.0.desk) else { return };
        let before = if desk.waiting.is_empty() {
            desk.at_call.replace(Box::new(action))
        } else {
            state.soon(Box::new(action));
            None
        };
        state.drop_soon(before);
    }

    /// Closes it, whatever else has a clone of it.
    pub fn close(&self) {
        let kernel = self.0.kernel.get();
        let mut state = kernel.state();
        state.close_desk(self.0.desk);
        state.settle();
    }
}
