//! All of lingerd that differs by system, and every `unsafe` block of it.
//!
//! What is in here wraps one kernel facility each, in the words of its man page, and decides
//! nothing: which socket lingers, for how long, and what is counted is the daemon's business
//! (`../src`), which forbids `unsafe`. Nothing in here may know about lingering.

pub mod backend;
pub mod detach;
pub mod fdpass;
pub mod peer;
pub mod process;
pub mod signals;
pub mod tcp;

/// Turns the -1 of a system call into the error that errno names.
fn check(result: libc::c_int) -> std::io::Result<libc::c_int> {
    if result == -1 { Err(std::io::Error::last_os_error()) } else { Ok(result) }
}
