// SPDX-License-Identifier: BSD-3-Clause

//! The table: a row a case, a column a sender, and below it in words what is not "yes".

use crate::cases::{CASES, Case};
use crate::program::Stop;
use std::collections::BTreeMap;
use std::fmt::Write;

/// What became of one sender in each case that was run.
pub type Column = BTreeMap<&'static str, Result<(), Stop>>;

/// The table of these senders, in their order.
pub fn table(columns: &[(String, Column)]) -> String {
    let first = CASES.iter().map(|case| case.name.len()).max().unwrap_or(0);
    let mut text = " ".repeat(first);
    for (name, _) in columns {
        write!(text, "  {name}").unwrap();
    }
    text += "\n";
    let was_run = |case: &&Case| columns.iter().any(|(_, column)| column.contains_key(case.name));
    for case in CASES.iter().filter(was_run) {
        let mut line = format!("{:first$}", case.name);
        for (name, column) in columns {
            let said = match column.get(case.name) {
                Some(Ok(())) => "yes",
                Some(Err(Stop::Failed(_) | Stop::Unfit(_))) => "NO",
                Some(Err(_)) => "-",
                None => "",
            };
            write!(line, "  {said:>width$}", width = name.len()).unwrap();
        }
        text += line.trim_end();
        text += "\n";
    }
    text + "\n" + &notes(columns)
}

/// Why there is a "-" or a "NO": what is so in several cases once.
fn notes(columns: &[(String, Column)]) -> String {
    let mut text = String::new();
    for (name, column) in columns {
        let mut without: Vec<(String, Vec<&str>)> = Vec::new();
        for case in &CASES {
            let why = match column.get(case.name) {
                Some(Err(Stop::Lacks(why) | Stop::NotHere(why))) => format!("-   {name}, CASES: {why}"),
                Some(Err(Stop::Unfit(why))) => {
                    format!("NO  {name}, CASES: it does not serve as the suite asks: {}", indented(why))
                }
                _ => continue,
            };
            match without.iter_mut().find(|(known, _)| *known == why) {
                Some((_, cases)) => cases.push(case.name),
                None => without.push((why, vec![case.name])),
            }
        }
        for (why, cases) in without {
            writeln!(text, "{}", why.replacen("CASES", &cases.join(", "), 1)).unwrap();
        }
        for case in &CASES {
            if let Some(Err(Stop::Failed(what))) = column.get(case.name) {
                writeln!(text, "NO  {name}, {}: {}", case.name, case.what).unwrap();
                writeln!(text, "      Seen: {}", indented(what)).unwrap();
                writeln!(
                    text,
                    "      So most likely {} (lingerd-protocol(7), {}).",
                    case.wrong, case.section
                )
                .unwrap();
            }
        }
    }
    text
}

fn indented(text: &str) -> String {
    text.trim_end().replace('\n', "\n        ")
}
