// SPDX-License-Identifier: BSD-3-Clause

//! The manuals and the completions, held against the programs that they are about. What they say in sentences
//! nobody checks here.

mod completions;
mod mdoc;
mod options;
mod pages;
mod protocol;
