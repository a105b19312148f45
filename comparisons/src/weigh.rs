// SPDX-License-Identifier: BSD-3-Clause

//! What processes take, as the system tells it (Linux: /proc, and ss(8) for the memory of sockets).

use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

/// What a tick is in /proc/PID/stat: a hundredth of a second on Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// A file's blocks, as stat(2) counts them.
const BLOCK: u64 = 512;

/// The fields of /proc/PID/stat from the third on, which come after the name in brackets.
fn stat(pid: &str) -> Option<Vec<i64>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    Some(fields.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect())
}

/// Nanoseconds of CPU of a process, of all its threads: proc(5), schedstat. Kernels with no better clock know it to the
/// tick, and `None` where the kernel does not tell it (CONFIG_SCHED_INFO).
pub fn cpu_ns(pid: i32) -> Option<u64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let time = |task: fs::DirEntry| {
        let told = fs::read_to_string(task.path().join("schedstat")).ok()?;
        told.split_whitespace().next()?.parse::<u64>().ok()
    };
    let mut times = tasks.filter_map(|task| time(task.ok()?)).peekable();
    times.peek()?;
    Some(times.sum())
}

/// CPU seconds of a process, of all its threads.
pub fn cpu(pid: i32) -> Option<f64> {
    Some(cpu_ns(pid)? as f64 / 1e9)
}

/// The state of a process, a letter, proc(5): S sleeps, T or t is stopped, Z has ended.
pub fn state(pid: i32) -> Option<char> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("State:")?.trim().chars().next())
}

/// Bytes of memory that a process has for itself, page by page: those of /proc/PID/status lag behind.
pub fn anonymous(pid: i32) -> Option<u64> {
    Some(figure(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?, "Anonymous")? * 1024)
}

/// Bytes of memory that the system has for itself: what is neither free nor a process's nor a copy of a file's.
pub fn kernel() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let of = |key| figure(&text, key).map(|kb| kb * 1024);
    Some(of("MemTotal")? - of("MemFree")? - of("Buffers")? - of("Cached")? - of("AnonPages")?)
}

/// CPU seconds of a process group, and of those that have left it by their end: proc(5), cutime and cstime.
pub fn group_cpu(leader: i32) -> Option<f64> {
    let of = |pid: i32| {
        let left = stat(&pid.to_string())?[13..15].iter().sum::<i64>();
        Some(cpu(pid)? + left as f64 / TICKS_PER_SECOND)
    };
    let seconds: Vec<_> = members(leader).into_iter().filter_map(of).collect();
    (!seconds.is_empty()).then(|| seconds.iter().sum())
}

/// The processes of a group.
pub fn members(leader: i32) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let member = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse::<i32>().ok()?;
        (stat(&pid.to_string())?[2] == i64::from(leader)).then_some(pid)
    };
    entries.filter_map(|entry| member(entry.ok()?)).collect()
}

/// A figure of /proc/PID/status.
pub fn status(pid: i32, key: &str) -> Option<u64> {
    figure(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, key)
}

/// How often all of a process's threads were switched to or from: who sleeps is not.
pub fn switches(pid: i32) -> Option<u64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let of_one = |task: io::Result<fs::DirEntry>| {
        let text = fs::read_to_string(task.ok()?.path().join("status")).ok()?;
        Some(figure(&text, "voluntary_ctxt_switches")? + figure(&text, "nonvoluntary_ctxt_switches")?)
    };
    tasks.map(of_one).sum()
}

fn figure(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    value.split_whitespace().next()?.parse().ok()
}

/// Memory in bytes, by where it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// What processes have mapped, each page that several have once: the sum of their PSS.
    pub processes: u64,
    /// What the kernel keeps for sockets, both directions.
    pub sockets: u64,
    /// Files that are open to hold what is to be sent: in memory, or in the page cache if a disk has not got
    /// them yet.
    pub files: u64,
}

impl Memory {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.processes + self.sockets + self.files
    }

    /// All of it, and each.
    pub fn json(&self) -> Value {
        json!({
            "total": self.total(), "processes": self.processes, "sockets": self.sockets, "files": self.files,
        })
    }
}

/// Where a server takes connections.
#[derive(Clone, Copy)]
pub enum Place<'a> {
    /// A port of IPv4.
    Tcp(u16),
    /// A socket in the file system.
    Unix(&'a Path),
}

/// What these processes have, and the sockets of the connections to these places that are theirs.
pub fn memory(pids: &[i32], places: &[Place]) -> Memory {
    let pss = |pid: &i32| {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        Some(figure(&rollup, "Pss")? * 1024)
    };
    let open: Vec<_> = pids.iter().flat_map(|&pid| descriptors(pid)).collect();
    Memory {
        processes: pids.iter().filter_map(pss).sum(),
        sockets: places.iter().map(|&place| socket_memory(place)).sum(),
        files: files(&open),
    }
}

/// A descriptor of a process: where it is in /proc, and what it is there.
type Open = (String, String);

fn descriptors(pid: i32) -> Vec<Open> {
    let directory = format!("/proc/{pid}/fd");
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let what = |entry: fs::DirEntry| {
        let is = fs::read_link(entry.path()).ok()?.to_str()?.to_owned();
        Some((entry.path().to_str()?.to_owned(), is))
    };
    entries.filter_map(|entry| what(entry.ok()?)).collect()
}

/// The bytes of what holds responses: files in memory, and what nginx keeps in its folder for that. Each once,
/// whoever has it open.
fn files(open: &[Open]) -> u64 {
    let holds = |is: &str| is.starts_with("/memfd:") || is.contains("/temp/");
    let found = open.iter().filter(|(_, is)| holds(is)).filter_map(|(path, _)| fs::metadata(path).ok());
    let blocks: HashMap<_, _> = found.map(|it| ((it.dev(), it.ino()), it.blocks())).collect();
    blocks.values().sum::<u64>() * BLOCK
}

/// What the kernel has charged for the sockets whose own place this is: ss(8), skmem.
fn socket_memory(place: Place) -> u64 {
    let mut ss = Command::new("ss");
    let asked = match place {
        Place::Tcp(port) => ss.args(["-tamnH", "sport", "=", &port.to_string()]).output(),
        Place::Unix(path) => ss.args(["-xamnH", "src"]).arg(path).output(),
    };
    let Ok(asked) = asked else { return 0 };
    let text = String::from_utf8_lossy(&asked.stdout);
    let groups = text.split("skmem:(").skip(1).filter_map(|rest| rest.split(')').next());
    groups.flat_map(|group| group.split(',')).filter_map(charged).sum()
}

/// Received and not read, queued to be sent, set aside for either, options, backlog. What is on its way (t) is
/// part of what is queued.
fn charged(field: &str) -> Option<u64> {
    let (name, bytes) = field.split_at(field.find(|c: char| c.is_ascii_digit())?);
    matches!(name, "r" | "w" | "f" | "o" | "bl").then(|| bytes.parse().ok()).flatten()
}

/// How many connections to this place these processes hold.
pub fn held(pids: &[i32], place: Place) -> usize {
    let theirs: HashSet<_> = pids
        .iter()
        .flat_map(|&pid| descriptors(pid))
        .filter_map(|(_, is)| Some(is.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let table = match place {
        Place::Tcp(_) => "/proc/net/tcp",
        Place::Unix(_) => "/proc/net/unix",
    };
    let table = fs::read_to_string(table).unwrap_or_default();
    table.lines().filter_map(|line| connection(line, place)).filter(|inode| theirs.contains(*inode)).count()
}

/// The inode of what a line of /proc/net/tcp or of /proc/net/unix tells of, if it is a server's end of a connection to
/// this place.
fn connection<'a>(line: &'a str, place: Place) -> Option<&'a str> {
    const LISTEN: &str = "0A";
    const CONNECTED: &str = "03";
    let fields: Vec<_> = line.split_whitespace().collect();
    let (is_it, inode) = match place {
        Place::Tcp(port) => {
            let own = u16::from_str_radix(fields.get(1)?.rsplit(':').next()?, 16).ok()?;
            (own == port && fields[3] != LISTEN, 9)
        }
        Place::Unix(path) => (*fields.get(5)? == CONNECTED && Path::new(fields.get(7)?) == path, 6),
    };
    fields.get(inode).copied().filter(|_| is_it)
}
