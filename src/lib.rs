// SPDX-License-Identifier: BSD-3-Clause

//! lingerd: lingering close, taken over from servers with a process per connection.
//!
//! Data flows one way, and nothing calls back up this line:
//!
//! ```text
//! a sender -> senders (a message) -> connections (a row) <-> rules (a verdict) -> closed and counted, or back to
//!                                                                                   whoever serves there
//! ```
//!
//! [`daemon`] is the turn that moves them along and the stop; it makes no system call itself. The two
//! wings, [`senders`] and [`connections`], never import each other; [`rules`] import nothing but
//! themselves. [`source`] has the tokens by which a backend names either, [`watched`] whether it does,
//! [`retry`] what has to be tried again, [`stats`] the counters, [`guard`] who may come in, [`ticket`] what a parked connection goes
//! back with. [`upgrade`] is
//! what a daemon tells the next one. [`service`] is what makes it a service
//! of the system (the command line, the pid file, the control socket, the log), and [`start`] puts it
//! all together.
//! Everything that differs by system, and every `unsafe`, is in the crate `lingerd-platform`.
//! CONTRIBUTING.md has the map; `ci/rooms` holds the code of every file, its tests apart, to what it
//! may know.

#![forbid(unsafe_code)]

mod clock;
pub mod connections;
pub mod daemon;
pub mod guard;
pub mod retry;
pub mod rules;
pub mod senders;
pub mod service;
pub mod source;
pub mod start;
pub mod stats;
pub mod ticket;
pub mod upgrade;
pub mod watched;
