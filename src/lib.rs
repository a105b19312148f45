//! lingerd: lingering close, taken over from servers with a process per connection.
//!
//! Data flows one way, and no module calls back up this line:
//!
//! 1. [`handoff`]: a socket comes in from a sender,
//! 2. [`table`]: it becomes one entry,
//! 3. [`linger`]: the state machine decides (every rule is there),
//! 4. `lingerd_platform::backend` waits,
//! 5. [`stats`]: it leaves with a reason, which is counted.
//!
//! [`daemon`] is the loop that moves them along, within the [`room`] that there is; [`control`]
//! answers `lingerd -S`; [`options`], [`pidfile`], [`endpoint`], [`closer`] and [`logger`] are a
//! daemon's manners. Everything that differs by system, and every `unsafe`, is in the crate
//! `lingerd-platform`.

#![forbid(unsafe_code)]

pub mod closer;
pub mod control;
pub mod daemon;
pub mod endpoint;
pub mod handoff;
pub mod linger;
pub mod logger;
pub mod options;
pub mod pidfile;
pub mod room;
pub mod stats;
pub mod table;
