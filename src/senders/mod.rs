// SPDX-License-Identifier: BSD-3-Clause

//! The senders: servers that hand sockets over, and what they say.
//!
//! Knows descriptor passing and the backend; must not know of connections, or of what becomes of a
//! socket. Whoever receives here has made room for what may come.

pub mod intake;
pub mod protocol;
