// SPDX-License-Identifier: BSD-3-Clause

//! What the side-by-side comparisons share: clients, the servers beside lingerd's, what these take, how they
//! print, and what they do when somebody has lost patience.
//!
//! The comparisons themselves are in `benches/`; `make demo`, `make bench` and `make torture` build
//! the programs that they need, and run them. How they come out is theirs to say: nothing here
//! knows which server ought to win.

pub mod counting;
pub mod crowd;
pub mod fpm;
pub mod gunicorn;
pub mod haproxy;
pub mod heads;
pub mod limits;
pub mod load;
pub mod machine;
pub mod nginx;
pub mod picture;
pub mod receiver;
pub mod server;
pub mod set_up;
pub mod torture;
pub mod weigh;

use lingerd_platform::backend::{Backend, Interest, System, Token};
use lingerd_platform::signals::Signals;
use std::fs;
use std::process::ExitCode;
use std::thread;
use support::built;

/// Runs a comparison with ablinger's clients. However it ends, its servers are stopped as they should be. What is
/// missing is said, with `what_it_needs`.
pub fn run(compare: impl FnOnce() -> Result<(), String> + Send, what_it_needs: &str) -> ExitCode {
    if let Err(missing) = built::program("lingerd").and_then(|_| built::program("ablinger")) {
        eprintln!("{missing}");
        return ExitCode::FAILURE;
    }
    load::watch_signals();
    // In a thread of its own, which may panic.
    match thread::scope(|scope| scope.spawn(compare).join()) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(missing)) => {
            eprintln!("{missing}: {what_it_needs}");
            ExitCode::FAILURE
        }
        Err(_) => ExitCode::FAILURE,
    }
}

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

/// Milliseconds for people.
pub fn milliseconds(ms: f64) -> String {
    match ms {
        ..10.0 => format!("{ms:.1} ms"),
        ..1000.0 => format!("{ms:.0} ms"),
        _ => format!("{:.1} s", ms / 1000.0),
    }
}

/// The median of several runs, and the least and the greatest.
pub fn spread(mut values: Vec<f64>, digits: usize) -> String {
    values.sort_by(f64::total_cmp);
    let [least, median, most] = [0, values.len() / 2, values.len() - 1].map(|n| values[n]);
    format!("{median:.digits$} ({least:.digits$} to {most:.digits$})")
}

/// The median, and the greater of the middle two where there is none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A time of a run of so many seconds, for people. ablinger has none where too many got no response at all: it is longer
/// than the run.
pub fn latency(ms: Option<f64>, seconds: f64) -> String {
    ms.map_or_else(|| format!("> {seconds:.0} s"), milliseconds)
}

/// The median of those of several such runs.
pub fn median_latency(times: impl Iterator<Item = Option<f64>>, seconds: f64) -> String {
    let ms = median(times.map(|ms| ms.unwrap_or(f64::INFINITY)).collect());
    latency(ms.is_finite().then_some(ms), seconds)
}

/// Writes a picture where `name` says, in the project, and says where.
pub fn write_picture(name: &str, svg: Result<String, String>) {
    let written =
        svg.and_then(|svg| fs::write(built::project().join(name), svg).map_err(|error| error.to_string()));
    match written {
        Ok(()) => println!("{name} is a picture of it"),
        Err(error) => eprintln!("{name}: {error}"),
    }
}
