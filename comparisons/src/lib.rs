// SPDX-License-Identifier: BSD-3-Clause

//! What the side-by-side comparisons share: clients, the servers beside lingerd's, what these take, how they
//! print, and what they do when somebody has lost patience.
//!
//! The comparisons themselves are in `benches/`; `make demo`, `make bench` and `make torture` build
//! the programs that they need, and run them. How they come out is theirs to say: nothing here
//! knows which server ought to win.

pub mod fpm;
pub mod load;
pub mod nginx;
pub mod server;
pub mod set_up;
pub mod torture;
pub mod weigh;

use lingerd_platform::backend::{Backend, Interest, System, Token};
use lingerd_platform::signals::Signals;
use std::thread;

/// Calls `then` on the first SIGINT, SIGTERM or SIGHUP.
pub fn on_stop(then: impl FnOnce() + Send + 'static) {
    let signals = Signals::install().expect("signal handlers");
    let mut backend = System::new().expect("a backend");
    backend.add(&signals.stop, Token(0), Interest::Read).expect("a first descriptor");
    backend.add(&signals.reload, Token(1), Interest::Read).expect("a second descriptor");
    thread::spawn(move || {
        let mut ready = Vec::new();
        while ready.is_empty() && backend.wait(&mut ready, None).is_ok() {}
        then();
        drop(signals);
    });
}

/// Says what goes on, as it takes a while.
pub fn progress(what: &str) {
    eprintln!("... {what}");
}

/// Prints rows with their columns aligned, the first to the left.
pub fn print_table<const N: usize>(rows: &[[String; N]]) {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    for row in rows {
        let mut line = format!("{:<width$}", row[0], width = width(0));
        for (column, cell) in row.iter().enumerate().skip(1) {
            line += &format!("   {cell:>width$}", width = width(column));
        }
        println!("{line}");
    }
}

/// A row of a table.
pub fn row<const N: usize>(cells: [&str; N]) -> [String; N] {
    cells.map(str::to_owned)
}
