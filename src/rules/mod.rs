// SPDX-License-Identifier: BSD-3-Clause

//! The rules: what is to become of a connection, and when, as state machines without a world.
//!
//! They are fed what happened and answer what to do next. They have no socket, no clock, no
//! allocation and no counter, and import nothing but each other: every decision about one
//! connection is here, and is tested as a table.

pub mod event;
pub mod linger;
pub mod park;
pub mod spool;
pub mod time;
