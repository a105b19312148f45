// SPDX-License-Identifier: BSD-3-Clause

//! What makes the daemon a service of its system: the command line, users and groups, the pid
//! file, the sockets' names, their directories, `lingerd -S`, and the log.
//!
//! Must not know of connections, senders, or rules but for their options.

pub mod accounts;
pub mod control;
pub mod directory;
pub mod endpoint;
pub mod logger;
pub mod options;
pub mod pid_file;
pub mod unsent;
