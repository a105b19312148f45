// SPDX-License-Identifier: BSD-3-Clause

//! The daemon from outside: the real binary, real TCP connections, the real hand-off socket.

mod access;
mod client;
mod counters;
mod descriptors;
mod handoff;
mod hostile;
#[cfg(target_os = "linux")]
mod hung;
mod limits;
mod manager;
mod manners;
mod park;
mod reasons;
mod sandbox;
mod scarcity;
mod spool;
mod upgrade;
