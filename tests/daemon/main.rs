//! The daemon from outside: the real binary, real TCP connections, the real hand-off socket.
//!
//! One test program, so that what it shares is built once and nothing of it lies idle.

#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod support;

mod client;
mod counters;
mod descriptors;
mod handoff;
mod limits;
mod manners;
mod reasons;
