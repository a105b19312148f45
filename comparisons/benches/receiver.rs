// SPDX-License-Identifier: BSD-3-Clause

//! The daemon beside the least that can be done with what it is handed (receiver.c): a part of `make bench`.
//!
//! CPU time a linger, of clients that have gone when they are handed over and of clients that close a moment later,
//! by how many senders there are and how many sockets come in a message. They take turns, round by round, and
//! a round's ratios are of measurements that follow each other, so that whatever else the machine does falls on
//! all of them, and who comes first changes. Senders half-close, as the protocol asks of them. The bare receiver half-closes
//! once more, as somebody would who does not rely on that: one system call that is in the first column only.
//!
//! Between the two stands the bare receiver that asks the kernel what lingerd asks (is it TCP, how far is it closed, would
//! close(2) wait): what is above the first is the price of the answers, what is above the second is that of lingerd's own
//! code, its table, its wheel and its counters, and of its pause before a turn.
//!
//! "At once": it is stopped while a batch is handed over, or while the clients of one close, and so finds all of it in one
//! turn: how often it is woken up is not a matter of luck. What a stop costs a process for itself, one with several threads
//! more than one with one, is measured with nothing to do and taken off; where it would be stopped for fewer than eight, that is
//! all there is to see, and it is left out. "In turn": connections come one after the other, as fast as
//! they can be made, by each sender in its turn, and a client closes when 64 others have come, as is the way of a server
//! that is busy. It runs on Linux only, whose scheduler tells the time to the nanosecond.
//!
//! Where the machine has other things to do, whoever is woken up waits for them, and finds their data in the caches: the
//! figures are twice as large, and vary by as much. `chrt -f 1` before cargo has everything of it come first.
//!
//!     cargo bench -p comparisons --bench receiver                 all of it, in about five minutes
//!     cargo bench -p comparisons --bench receiver -- 64x1 1x253   of so many senders, so many in a message
//!     LINGERD=/usr/local/sbin/lingerd cargo bench -p comparisons --bench receiver
//!     cargo bench -p comparisons --bench receiver -- calls        system calls a linger (strace), no times
//!     cargo bench -p comparisons --bench receiver -- draw         draws again what was measured last
//!
//! It must not know how either is built inside.

use comparisons::machine::{self, machine, version};
use comparisons::picture::{self, Panel, Scale};
use comparisons::receiver::{self, Clients, Receiver, Rig, wait_until};
use comparisons::{median, print_table, progress, row, spread, write_picture};
use lingerd_platform::process;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs};
use support::built;

/// Where the figures are written, beside being printed.
const REPORT: &str = "target/receiver.json";

/// And drawn.
const PICTURE: &str = "target/receiver.svg";

/// How many senders, and how many sockets in each of their messages.
const CROWDS: [(usize, usize); 7] = [(1, 1), (8, 1), (64, 1), (1, 16), (64, 16), (1, 253), (8, 253)];

/// Rounds, in each of which all are measured.
const ROUNDS: usize = 7;

/// Lingers of each in a round, or as many more as make whole batches.
const LINGERS: usize = 1024;

/// So many connections make a batch of which the cost can be told from that of a stop.
const BATCH: usize = 8;

/// How connections come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pace {
    AtOnce,
    InTurn,
}

impl Pace {
    const ALL: [Pace; 2] = [Pace::AtOnce, Pace::InTurn];

    const fn name(self) -> &'static str {
        match self {
            Pace::AtOnce => "at once",
            Pace::InTurn => "in turn",
        }
    }
}

/// What runs them.
struct Bench {
    rig: Rig,
    lingerd: PathBuf,
    bare: PathBuf,
}

/// Its name, which is that of its socket, too.
type Kind = &'static str;

const BARE: Kind = "bare";
const ASKS: Kind = "asks";
const LINGERD: Kind = "lingerd";

/// What is measured: the first is what the others are compared with.
const KINDS: [Kind; 3] = [BARE, ASKS, LINGERD];

impl Bench {
    fn new() -> Result<Bench, String> {
        let lingerd = built::program("lingerd")?;
        let rig = Rig::new("receiver")?;
        let bare = rig.directory.join("receiver");
        let source = built::project().join("comparisons/receiver.c");
        let made = Command::new("cc").args(["-O2", "-Wall", "-Wextra", "-o"]).arg(&bare).arg(source).status();
        if !made.is_ok_and(|status| status.success()) {
            return Err("there is no C compiler (Debian: apt-get install gcc libc6-dev)".to_owned());
        }
        Ok(Bench { rig, lingerd, bare })
    }

    /// Starts one, with `tool` before it.
    fn start(&self, kind: Kind, senders: usize, tool: &[&str]) -> Receiver {
        match kind {
            LINGERD => self.rig.start(kind, &self.lingerd, &receiver::LINGERD, senders, tool),
            ASKS => self.rig.start(kind, &self.bare, &["-a"], senders, tool),
            _ => self.rig.start(kind, &self.bare, &[], senders, tool),
        }
    }

    /// Plays so many lingers, or some more.
    fn play(&mut self, receiver: &Receiver, sockets: usize, clients: Clients, least: usize) -> usize {
        let batch = receiver.senders.len() * sockets;
        let mut done = 0;
        while done < least {
            let pairs = self.rig.connections(batch);
            receiver.linger(pairs, sockets, clients);
            done += batch;
        }
        done
    }

    /// Nanoseconds of CPU a linger.
    fn measure(&mut self, receiver: &Receiver, sockets: usize, clients: Clients, pace: Pace) -> f64 {
        let batch = receiver.senders.len() * sockets;
        let stop = if pace == Pace::AtOnce { receiver.stop_cost() } else { 0.0 };
        let before = receiver.cpu();
        let lingers = match pace {
            Pace::AtOnce => self.play(receiver, sockets, clients, LINGERS),
            Pace::InTurn => {
                self.rig.play_in_turn(receiver, clients, 2 * LINGERS);
                2 * LINGERS
            }
        };
        let stops = lingers / batch * if clients == Clients::Gone { 1 } else { 2 };
        (receiver.cpu() - before - stop * stops as f64) / lingers as f64
    }

    fn compare(&mut self, (senders, sockets): (usize, usize), clients: Clients, pace: Pace) -> Compared {
        progress(&format!(
            "{senders} senders, {sockets} in a message, {}, clients {}",
            pace.name(),
            clients.name()
        ));
        let receivers = KINDS.map(|kind| self.start(kind, senders, &[]));
        let mut measured = KINDS.map(|_| Vec::new());
        for receiver in &receivers {
            self.measure(receiver, sockets, clients, pace); // what is allocated once is allocated
        }
        for round in 0..ROUNDS {
            // Who comes first changes, so that what drifts does so for all.
            for n in (0..KINDS.len()).map(|n| (n + round) % KINDS.len()) {
                measured[n].push(self.measure(&receivers[n], sockets, clients, pace));
            }
        }
        Compared { senders, sockets, clients, pace, measured }
    }

    /// System calls a linger, by name.
    fn calls(
        &mut self,
        kind: Kind,
        (senders, sockets): (usize, usize),
        clients: Clients,
    ) -> BTreeMap<String, f64> {
        let output = self.rig.directory.join("counts");
        let mut counts = [0, LINGERS].map(|least| {
            let option = format!("--output={}", output.display());
            let receiver = self.start(kind, senders, &["strace", "-D", "-f", "-c", &option]);
            let lingers = self.play(&receiver, sockets, clients, least);
            process::kill(receiver.pid, libc::SIGTERM).expect("a signal to our child");
            let mut text = String::new();
            wait_until("the counts are written", || {
                text = fs::read_to_string(&output).unwrap_or_default();
                text.contains("total")
            });
            drop(receiver);
            let _ = fs::remove_file(&output);
            (lingers, text.lines().filter_map(count).collect::<BTreeMap<_, _>>())
        });
        let [(_, before), (lingers, after)] = &mut counts;
        after.remove("total");
        let each = |(name, count): (&String, &u64)| {
            let more = count.saturating_sub(before.get(name).copied().unwrap_or(0));
            (name.clone(), more as f64 / *lingers as f64)
        };
        after.iter().map(each).filter(|(_, count)| *count >= 0.01).collect()
    }
}

/// A line of strace -c: % time, seconds, usecs/call, calls, errors where there are any, and the name.
fn count(line: &str) -> Option<(String, u64)> {
    let words: Vec<_> = line.split_whitespace().collect();
    Some((words.last()?.to_string(), words.get(3)?.parse().ok()?))
}

/// What was measured of each, round by round, in nanoseconds.
struct Compared {
    senders: usize,
    sockets: usize,
    clients: Clients,
    pace: Pace,
    measured: [Vec<f64>; KINDS.len()],
}

impl Compared {
    /// Of each to the bare one.
    fn ratios(&self) -> [Vec<f64>; KINDS.len()] {
        let [bare, ..] = &self.measured;
        self.measured
            .each_ref()
            .map(|values| bare.iter().zip(values).map(|(bare, value)| value / bare).collect())
    }

    fn row(&self) -> [String; 7] {
        let micros = |values: &Vec<f64>| spread(values.iter().map(|ns| ns / 1e3).collect(), 2);
        let [bare, asks, lingerd] = self.measured.each_ref().map(micros);
        let [_, asks_ratio, ratio] = self.ratios().map(|ratios| spread(ratios, 3));
        let what = format!("clients {}, {} senders x {}", self.clients.name(), self.senders, self.sockets);
        [what, self.pace.name().to_owned(), bare, asks, lingerd, asks_ratio, ratio]
    }

    fn json(&self) -> Value {
        let [bare, asks, lingerd] = &self.measured;
        let [_, asks_ratios, ratios] = self.ratios();
        json!({
            "clients": self.clients.name(), "senders": self.senders, "sockets": self.sockets,
            "pace": self.pace.name(),
            "bare_ns": bare, "asks_ns": asks, "lingerd_ns": lingerd,
            "asks_ratios": asks_ratios, "ratios": ratios,
        })
    }
}

fn main() -> ExitCode {
    if !cfg!(target_os = "linux") {
        eprintln!("receiver: it reads the /proc of Linux");
        return ExitCode::FAILURE;
    }
    let words: Vec<_> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let crowd = |word: &String| {
        let (senders, sockets) = word.split_once('x')?;
        let (senders, sockets) = (senders.parse().ok()?, sockets.parse().ok()?);
        let can_be_measured = sockets == 1 || senders * sockets >= BATCH;
        ((1..=128).contains(&senders) && (1..=253).contains(&sockets) && can_be_measured)
            .then_some((senders, sockets))
    };
    if words == ["draw"] {
        return machine::draw_again(REPORT, draw);
    }
    let (named, counts): (Vec<_>, Vec<_>) = words.iter().partition(|word| *word != "calls");
    let crowds: Option<Vec<_>> = named.into_iter().map(crowd).collect();
    let Some(mut crowds) = crowds else {
        eprintln!(
            "usage: cargo bench -p comparisons --bench receiver [-- draw | [calls] [SENDERSxSOCKETS ...]]"
        );
        return ExitCode::from(2);
    };
    if crowds.is_empty() {
        crowds = if counts.is_empty() { CROWDS.to_vec() } else { vec![(64, 1)] };
    }
    let _ = process::raise_descriptor_limit();
    receiver::watch_signals();
    match Bench::new() {
        Ok(mut bench) if counts.is_empty() => times(&mut bench, &crowds),
        Ok(mut bench) => calls(&mut bench, &crowds),
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn times(bench: &mut Bench, crowds: &[(usize, usize)]) {
    let machine = machine(&[("cc", version(Path::new("cc"), "--version"))]); // how busy it is before
    let mut all = Vec::new();
    for clients in Clients::ALL {
        for &crowd in crowds {
            if crowd.0 * crowd.1 >= BATCH {
                all.push(bench.compare(crowd, clients, Pace::AtOnce));
            }
            if crowd.1 == 1 {
                all.push(bench.compare(crowd, clients, Pace::InTurn));
            }
        }
    }
    println!(
        "\nCPU a linger in microseconds, {ROUNDS} rounds: the median, and from the least to the most.\n"
    );
    let head = row(["", "they come", "bare receiver", "that asks", "lingerd", "asks/bare", "lingerd/bare"]);
    print_table(&[vec![head], all.iter().map(Compared::row).collect()].concat());
    draw(&machine::conclude(REPORT, machine, all.iter().map(Compared::json).collect()));
}

/// Draws what a report says: medians of the ratios, for each way in which connections come and end.
fn draw(report: &Value) {
    let none = Vec::new();
    let rows = report["rows"].as_array().unwrap_or(&none);
    let mut panels = Vec::new();
    for pace in Pace::ALL {
        for clients in Clients::ALL {
            let is_it = |row: &&Value| row["pace"] == pace.name() && row["clients"] == clients.name();
            let ratio = |row: &Value, figure: &str| {
                let rounds = row[figure].as_array().into_iter().flatten().filter_map(Value::as_f64);
                let rounds: Vec<_> = rounds.collect();
                if rounds.is_empty() { f64::NAN } else { median(rounds) }
            };
            let group = |row: &Value| {
                let name = format!("{} x {}", row["senders"], row["sockets"]);
                (name, vec![1.0, ratio(row, "asks_ratios"), ratio(row, "ratios")])
            };
            let groups: Vec<_> = rows.iter().filter(is_it).map(group).collect();
            if groups.is_empty() {
                continue;
            }
            panels.push(Panel {
                title: format!("They come {}, clients {}", pace.name(), clients.name()),
                scale: Scale::Linear,
                unit: "",
                has_numbers: true,
                groups,
            });
        }
    }
    let title = "lingerd beside a bare receiver: CPU for each connection, less is better\n\
                 as a multiple of the bare receiver's, by senders x sockets in a message\n\
                 clients gone: they have closed before they are handed over; lingering: they close a moment later";
    let kinds = ["bare receiver", "bare receiver that asks what lingerd asks", "lingerd"];
    write_picture(PICTURE, picture::bars(title, &kinds, 2, &panels));
}

fn calls(bench: &mut Bench, crowds: &[(usize, usize)]) {
    println!("system calls a linger");
    for &crowd in crowds {
        for clients in Clients::ALL {
            for kind in KINDS {
                let counts = bench.calls(kind, crowd, clients);
                let all: f64 = counts.values().sum();
                let each: Vec<_> = counts.iter().map(|(name, count)| format!("{name} {count:.2}")).collect();
                let (senders, sockets) = crowd;
                let what = format!("{senders}x{sockets} {} {kind}", clients.name());
                println!("{what:<28} {all:>6.2}   {}", each.join(", "));
            }
        }
    }
}
