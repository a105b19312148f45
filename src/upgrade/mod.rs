// SPDX-License-Identifier: BSD-3-Clause

//! A daemon's successor: what one tells the next, and how.
//!
//! The one that serves gives all that it has away, descriptors with the facts about them, and waits:
//! until its successor says that it has everything, it keeps everything too, and goes on if that does
//! not come. Facts are told as ages, so that the next one judges them by its own clock and rules.
//! What one of them says and the other does not know is no obstacle, whichever is the newer one.
//!
//! Knows both wings; must not know how either came to run.

pub mod heir;
pub mod image;
pub mod predecessor;
pub mod testator;
