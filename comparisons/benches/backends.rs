// SPDX-License-Identifier: BSD-3-Clause

//! The daemon on its system's own backend beside the one on poll(2), which any system has, while thousands of silent clients
//! linger: a part of `make bench`.
//!
//! Beside those, connections come and go. CPU time for one of these, where they come "alone", one after the other, each
//! of which wakes the daemon up twice, to come and to go; and "in turn", as fast as they can be made, as is the way of a
//! busy server. The two daemons take turns, round by round. Then nothing happens, and it is looked what they have taken, and
//! whether they wake up. It runs on Linux only, whose scheduler tells the time to the nanosecond.
//!
//!     cargo build --release --locked --target-dir target/poll (with RUSTFLAGS='--cfg lingerd_backend="poll"')
//!     cargo bench -p comparisons --bench backends                all of it, in about four minutes
//!     cargo bench -p comparisons --bench backends -- 10 1000     with so many lingering
//!
//! The clients' ends are in processes of their own, as one has not descriptors enough for both. It must not know how
//! a backend works.

use comparisons::machine::{self, machine};
use comparisons::picture::{self, Line};
use comparisons::receiver::{self, Clients, Receiver, Rig, half_close};
use comparisons::{median, print_table, progress, row, spread, weigh, write_picture};
use lingerd_platform::backend::{Backend, System};
use lingerd_platform::{fdpass, process};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;
use std::{env, thread};
use support::built;

/// Where the figures are written, beside being printed.
const REPORT: &str = "target/backends.json";
const PICTURE: &str = "target/backends.svg";

/// How many linger. The last is near to the most that a process with 20,000 descriptors has.
const LINGERING: [usize; 5] = [10, 100, 1_000, 10_000, 19_000];

/// Descriptors of a daemon that are none of those.
const OTHERS: usize = 500;

/// Links, as many as a server has workers.
const SENDERS: usize = 64;

/// Rounds, in each of which both are measured.
const ROUNDS: usize = 5;

/// Lingers of each in a round.
const ALONE: usize = 32;
const IN_TURN: usize = 2048;

/// For how long daemons are watched that have nothing to do.
const IDLE: Duration = Duration::from_secs(5);

/// The word that makes this program one that only has clients.
const CLIENTS: &str = "clients";

fn main() -> ExitCode {
    if !cfg!(target_os = "linux") {
        eprintln!("backends: it reads the /proc of Linux");
        return ExitCode::FAILURE;
    }
    let words: Vec<_> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let numbers = |words: &[String]| words.iter().map(|word| word.parse().ok()).collect::<Option<Vec<_>>>();
    if words.first().is_some_and(|word| word == CLIENTS) {
        if let Some([port, round, number]) = numbers(&words[1..]).as_deref() {
            return be_clients(*port, *round, *number);
        }
    }
    let Some(mut lingering) = numbers(&words).filter(|all| all.iter().all(|&number| number > 0)) else {
        eprintln!("usage: cargo bench -p comparisons --bench backends [-- lingering ...]");
        return ExitCode::from(2);
    };
    receiver::watch_signals();
    if lingering.is_empty() {
        lingering = LINGERING.to_vec();
    }
    lingering.sort_unstable();
    let limit = process::raise_descriptor_limit().map_or(usize::MAX, |limit| limit as usize);
    let room = limit.saturating_sub(OTHERS);
    for &number in lingering.iter().filter(|&&number| number > room) {
        println!("not {number}, as the limit of open descriptors is {limit}");
    }
    lingering.retain(|&number| number <= room);
    match compare(&lingering) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

// ---- Silent clients ---------------------------------------------------------------------------

/// Connects so many clients, and keeps them until standard input ends.
fn be_clients(port: usize, round: usize, number: usize) -> ExitCode {
    let _ = process::raise_descriptor_limit();
    // An address for each such process: one has not ports enough for all of them.
    let address = (Ipv4Addr::new(127, 0, 2, round as u8), port as u16);
    let clients: Result<Vec<_>, _> = (0..number).map(|_| TcpStream::connect(address)).collect();
    let _ = std::io::stdin().read(&mut [0]);
    match clients {
        Ok(_) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{number} clients: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Processes that have silent clients, which end with this.
struct Silent(Vec<Child>);

impl Silent {
    /// Has so many more linger.
    fn grow(&mut self, rig: &Rig, receiver: &Receiver, number: usize) -> Result<(), String> {
        let before = receiver.descriptors();
        let child = Command::new(env::current_exe().map_err(|e| e.to_string())?)
            .args([CLIENTS.to_owned(), rig.port().to_string(), self.0.len().to_string(), number.to_string()])
            .stdin(Stdio::piped())
            .process_group(0) // Ctrl-C is for us
            .spawn()
            .map_err(|e| e.to_string())?;
        self.0.push(child);
        let mut left = number;
        while left > 0 {
            let some = left.min(fdpass::MAX_DESCRIPTORS);
            let servers: Vec<_> = (0..some).map(|_| rig.accept()).collect();
            servers.iter().for_each(half_close);
            receiver.hand_over(servers, some);
            left -= some;
            receiver.wait_for(before + number - left);
        }
        Ok(())
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        for child in &mut self.0 {
            if thread::panicking() {
                let _ = child.kill(); // it may be waiting for a connection that nobody takes
            }
            // What it says is that all is over.
            let _ = child.stdin.take().map(|mut stdin| stdin.write(b"\n"));
            let _ = child.wait();
        }
    }
}

// ---- What is measured -------------------------------------------------------------------------

/// A daemon, and what was measured of it beside so many silent clients.
struct Side {
    name: &'static str,
    receiver: Receiver,
}

/// Nanoseconds a linger, round by round, and what it takes when nothing happens.
#[derive(Default)]
struct Measured {
    alone: Vec<f64>,
    in_turn: Vec<f64>,
    idle: Idle,
}

/// One of them.
type Figures = fn(&Measured) -> &Vec<f64>;

#[derive(Clone, Copy, Default)]
struct Idle {
    /// In kB: all that is resident, and of it its own.
    resident: u64,
    own: u64,
    wake_ups: u64,
}

impl Measured {
    fn json(&self) -> Value {
        json!({
            "alone_ns": self.alone, "in_turn_ns": self.in_turn, "resident_kb": self.idle.resident,
            "own_kb": self.idle.own, "wake_ups": self.idle.wake_ups,
        })
    }
}

/// Both, beside so many.
struct Step {
    lingering: usize,
    sides: [Measured; 2],
}

fn alone(rig: &mut Rig, receiver: &Receiver) {
    for sender in receiver.senders.iter().cycle().take(ALONE) {
        let (client, server) = rig.connections(1).remove(0);
        half_close(&server);
        fdpass::send(sender, b"L", &[server.as_fd()]).expect("room for one message");
        drop(server);
        receiver.settle();
        drop(client);
        receiver.settle();
    }
}

fn round(rig: &mut Rig, receiver: &Receiver, measured: &mut Measured) {
    let before = receiver.cpu();
    alone(rig, receiver);
    let between = receiver.cpu();
    rig.play_in_turn(receiver, Clients::Linger, IN_TURN);
    measured.alone.push((between - before) / ALONE as f64);
    measured.in_turn.push((receiver.cpu() - between) / IN_TURN as f64);
}

/// What each takes while nothing happens.
fn idle(sides: &[Side; 2]) -> [Idle; 2] {
    let figure = |side: &Side, key| weigh::status(side.receiver.pid, key).expect("a field of every Linux");
    let wake_ups = || [0, 1].map(|n| weigh::switches(sides[n].receiver.pid).expect("it runs"));
    let before = wake_ups();
    thread::sleep(IDLE);
    let after = wake_ups();
    [0, 1].map(|n| Idle {
        resident: figure(&sides[n], "VmRSS"),
        own: figure(&sides[n], "RssAnon"),
        wake_ups: after[n] - before[n],
    })
}

fn compare(lingering: &[usize]) -> Result<(), String> {
    let machine = machine(&[]); // how busy it is before
    let mut rig = Rig::new("backends")?;
    let programs = [(System::NAME, built::program("lingerd")?), ("poll", built::lingerd_on_poll()?)];
    let sides = [0, 1].map(|n| {
        let (name, program) = &programs[n];
        Side { name, receiver: rig.start(name, program, &receiver::LINGERD, SENDERS, &[]) }
    });
    let mut silent = Silent(Vec::new());
    let mut steps: Vec<Step> = Vec::new();
    for &lingering in lingering {
        let more = lingering - steps.last().map_or(0, |step| step.lingering);
        progress(&format!("{lingering} linger"));
        let mut measured = [Measured::default(), Measured::default()];
        for side in &sides {
            silent.grow(&rig, &side.receiver, more)?;
            round(&mut rig, &side.receiver, &mut Measured::default()); // what is allocated once is allocated
        }
        for number in 0..ROUNDS {
            // Who comes first changes, so that what drifts does so for both.
            for n in if number % 2 == 0 { [0, 1] } else { [1, 0] } {
                round(&mut rig, &sides[n].receiver, &mut measured[n]);
            }
        }
        let idle = idle(&sides);
        for (measured, idle) in measured.iter_mut().zip(idle) {
            measured.idle = idle;
        }
        steps.push(Step { lingering, sides: measured });
    }
    print(&sides, &steps, machine);
    Ok(())
}

fn print(sides: &[Side; 2], steps: &[Step], machine: Value) {
    println!(
        "\nCPU a linger in microseconds beside so many silent ones: the median of {ROUNDS} rounds, and from the least to the \
         most. Memory in kB, and wake-ups in {} s when nothing happens.\n",
        IDLE.as_secs()
    );
    let mut rows = vec![row(["", "lingering", "alone", "in turn", "memory", "of it its own", "wake-ups"])];
    let micros = |values: &[f64]| spread(values.iter().map(|ns| ns / 1e3).collect(), 1);
    for step in steps {
        for (side, measured) in sides.iter().zip(&step.sides) {
            rows.push([
                side.name.to_owned(),
                step.lingering.to_string(),
                micros(&measured.alone),
                micros(&measured.in_turn),
                measured.idle.resident.to_string(),
                measured.idle.own.to_string(),
                measured.idle.wake_ups.to_string(),
            ]);
        }
    }
    print_table(&rows);
    println!();
    for step in steps {
        let [own, poll] = &step.sides;
        let ratio =
            |of: Figures| spread(of(poll).iter().zip(of(own)).map(|(poll, own)| poll / own).collect(), 2);
        println!(
            "{:>6} linger: poll(2) takes {} times the CPU alone, {} in turn",
            step.lingering,
            ratio(|measured| &measured.alone),
            ratio(|measured| &measured.in_turn)
        );
    }
    let rows: Vec<_> = steps
        .iter()
        .map(|step| {
            let [own, poll] = &step.sides;
            json!({ "lingering": step.lingering, "own": own.json(), "poll": poll.json() })
        })
        .collect();
    machine::conclude(REPORT, machine, rows);
    draw(sides, steps);
}

/// Draws the medians over how many linger.
fn draw(sides: &[Side; 2], steps: &[Step]) {
    /// lingerd's, and stock's: the last and the first of a picture's colours.
    const COLOURS: [usize; 2] = [3, 0];
    let paces: [(&str, Figures); 2] =
        [("one at a time", |measured| &measured.alone), ("many in turn", |measured| &measured.in_turn)];
    let mut lines = Vec::new();
    for (n, side) in sides.iter().enumerate().rev() {
        for (pace, of) in paces {
            let point = |step: &Step| (step.lingering as f64, median(of(&step.sides[n]).clone()) / 1e3);
            lines.push(Line {
                name: format!("{}, {pace}", side.name),
                points: steps.iter().map(point).collect(),
                colour: COLOURS[n],
                is_dashed: pace != "one at a time",
            });
        }
    }
    let title = "What a connection that comes and goes costs, beside silent ones";
    let svg = picture::lines(title, "silent connections that linger", "microseconds of CPU for each", &lines);
    write_picture(PICTURE, svg);
}
