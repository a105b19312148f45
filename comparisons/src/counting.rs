// SPDX-License-Identifier: BSD-3-Clause

//! Programs that count what others do: system calls (strace) and instructions (callgrind).
//!
//! Knows how they are started and what they write, and must not know what is counted.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

/// What counts, and where it leaves the counts.
pub struct Tool {
    /// How it is started; the last of them ends in the option that names the file for the counts.
    pub arguments: &'static [&'static str],
    /// Reads what it has written; `None` for as long as that is not all there.
    pub read: fn(&str) -> Option<BTreeMap<String, u64>>,
    /// What to say where it is not installed.
    pub missing: &'static str,
}

/// Counts instructions in user space.
pub const CALLGRIND: Tool = Tool {
    arguments: &["valgrind", "--quiet", "--vgdb=no", "--tool=callgrind", "--callgrind-out-file="],
    read: |text| {
        let instructions = field(text, "totals:").or(field(text, "summary:"))?.parse().ok()?;
        Some(BTreeMap::from([("instructions".to_owned(), instructions)]))
    },
    missing: "there is no valgrind, which counts instructions (Debian: apt-get install valgrind)",
};

/// Counts system calls, by name.
pub const STRACE: Tool = Tool {
    // -D: what it looks at is our child, and strace not its parent. -c: only counts.
    arguments: &["strace", "-D", "-f", "-c", "--output="],
    read: |text| {
        // % time, seconds, usecs/call, calls, errors where there are any, and the name.
        let call = |line: &str| {
            let words = Vec::from_iter(line.split_whitespace());
            Some((words.last()?.to_string(), words.get(3)?.parse().ok()?))
        };
        let mut calls = BTreeMap::from_iter(text.lines().filter_map(call));
        calls.remove("total").map(|_| calls)
    },
    missing: "there is no strace, which counts system calls (Debian: apt-get install strace)",
};

impl Tool {
    /// Whether it is installed.
    pub fn is_there(&self) -> bool {
        let asked = Command::new(self.arguments[0]).arg("--version").stdout(Stdio::null()).status();
        asked.is_ok_and(|status| status.success())
    }
}

/// The word after `key` at the start of a line.
pub fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let mut lines = text.lines().map(str::split_whitespace);
    lines.find_map(|mut words| if words.next() == Some(key) { words.next() } else { None })
}
