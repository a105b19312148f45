// SPDX-License-Identifier: BSD-3-Clause

//! Options, directives and counters: what the real programs name, and what the manuals do.

use crate::mdoc::{Manual, words};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use support::apache::Setup;
use support::built::{self, project};
use support::daemon::{Daemon, run};

/// Options, and whether each takes a value.
pub type Options = BTreeMap<char, bool>;

/// Both programs that have options.
pub const PROGRAMS: [&str; 2] = ["lingerd", "ablinger"];

/// The output of `program -h`.
fn help(program: &str) -> String {
    let path = built::program(program).unwrap_or_else(|missing| panic!("{missing}"));
    let said = run(Command::new(path).arg("-h"));
    assert_eq!(said.code, Some(0), "{said:?}");
    said.stdout
}

/// Those that `program -h` explains: `    -s socket   hand-off socket`.
pub fn explained(program: &str) -> Options {
    let explained = |line: &str| {
        // What is further to the right is an explanation that goes on.
        let mut rest = line.strip_prefix("    -").or(line.strip_prefix("  -"))?.chars();
        Some((rest.next()?, rest.next() == Some(' ') && rest.next() != Some(' ')))
    };
    let help = help(program);
    let options: Vec<_> = help.lines().filter_map(explained).collect();
    unique(program, options)
}

/// Those of the usage at the head of `program -h`: `[-fd] [-s socket]`.
fn of_usage(program: &str) -> Options {
    let help = help(program);
    let usage: Vec<_> = help.lines().take_while(|line| !line.is_empty()).collect();
    let pieces = usage.join(" ").replace(['[', ']'], "\n").replace(" | ", "\n");
    let mut options = Vec::new();
    for piece in pieces.lines() {
        let mut words = piece.split_whitespace().skip_while(|word| !word.starts_with('-'));
        let Some(letters) = words.next() else { continue };
        let value = words.next().is_some();
        options.extend(letters[1..].chars().map(|letter| (letter, value)));
    }
    options.into_iter().collect()
}

/// Those in a line of a manual: `Fl fd`, `Fl s Ar socket`, `Fl o Cm text | json`.
fn in_line(line: &[&str]) -> Vec<(char, bool)> {
    let mut options = Vec::new();
    for (at, _) in line.iter().enumerate().filter(|(_, word)| ["Fl", ".Fl"].contains(word)) {
        let value = line.get(at + 2).is_some_and(|word| ["Ar", "Cm"].contains(word));
        options.extend(line[at + 1].chars().map(|letter| (letter, value)));
    }
    options
}

fn of_synopsis(manual: &Manual) -> Options {
    manual.section("SYNOPSIS").iter().flat_map(|line| in_line(&words(line))).collect()
}

fn of_list(name: &str, manual: &Manual) -> Options {
    let items = manual.items("DESCRIPTION").into_iter().filter(|item| item[0] == "Fl");
    unique(name, items.flat_map(|item| in_line(&item)).collect())
}

fn unique(place: &str, options: Vec<(char, bool)>) -> Options {
    let map: Options = options.iter().copied().collect();
    assert_eq!(map.len(), options.len(), "{place}: one is there twice: {options:?}");
    map
}

#[test]
fn usage_help_and_manual_have_the_same_options() {
    for (program, section) in PROGRAMS.into_iter().zip([8, 1]) {
        let name = format!("{program}.{section}");
        let manual = Manual::read(&name);
        let explained = explained(program);
        assert!(explained.len() > 5, "{explained:?}");
        assert_eq!(of_usage(program), explained, "{program}: usage");
        assert_eq!(of_synopsis(&manual), explained, "{name}: SYNOPSIS");
        assert_eq!(of_list(&name, &manual), explained, "{name}: the list of options");
    }
}

#[test]
fn each_directive_is_in_the_manual_and_each_in_the_manual_is_one() {
    let Some(listed) = Setup::prefork(Path::new("lingerd.sock")).ask("-L") else { return };
    let is_ours = |line: &&str| line.ends_with(" (mod_lingerd.c)");
    let lines = listed.stdout.lines().filter(is_ours);
    let mut directives: Vec<_> = lines.map(|line| line.split(' ').next().unwrap()).collect();
    assert!(!directives.is_empty(), "{listed:?}");
    directives.sort();

    let manual = Manual::read("mod_lingerd.8");
    let items = manual.items("DIRECTIVES").into_iter().filter(|item| item[0] == "Cm");
    let mut documented: Vec<_> = items.map(|item| item[1]).collect();
    documented.sort();
    assert_eq!(documented, directives);
}

/// By the words that stand between what is filled in, and by their number.
#[test]
fn what_the_module_logs_is_in_its_manual() {
    let files =
        ["apache-2.4/mod_lingerd.c", "apache-2.4/spool.c", "apache-2.4/park.c", "apache-2.4/status.c"];
    let source = files.map(|file| fs::read_to_string(project().join(file)).unwrap()).concat();
    let literals = source.split('"').skip(1).step_by(2).collect::<Vec<_>>().concat();
    let manual = Manual::read("mod_lingerd.8");
    let items: Vec<_> = manual.items("DIAGNOSTICS").iter().map(|item| item.join(" ")).collect();
    for item in &items {
        let filled_in = ["PATH", "REASON", " N)", " N ", " M", " 10 ", " event "];
        let fixed = filled_in.iter().fold(item.replace('"', ""), |text, part| text.replace(part, "\n"));
        for part in fixed.lines() {
            assert!(literals.contains(part.trim()), "'{part}' of {item}");
        }
    }
    let of_the_start =
        |item: &&String| item.starts_with("\"LingerdSocket: ") || item.starts_with("\"LingerdSpoolMax: ");
    let of_the_start = items.iter().filter(of_the_start).count();
    let logged =
        ["ap_log_error(", "ap_log_cerror(", "ap_log_rerror("].map(|call| source.matches(call).count());
    assert_eq!(items.len() - of_the_start, logged.iter().sum::<usize>());
}

#[test]
fn each_counter_is_in_the_manual_in_the_order_in_which_it_is_printed() {
    let daemon = Daemon::start(&[]);
    let json = daemon.site.ask("json").stdout;
    let counters = json.split(",\"last_minute\"").next().unwrap(); // what comes then is of the same names
    let printed: Vec<_> = counters.split('"').skip(1).step_by(2).collect();
    assert!(printed.len() > 10, "{json}");
    let manual = Manual::read("lingerd.8");
    let items = manual.items("COUNTERS").concat();
    let documented: Vec<_> = items.into_iter().filter(|word| !["Cm", ","].contains(word)).collect();
    assert_eq!(documented, printed);
}

#[test]
fn each_metric_of_prometheus_is_in_the_manual_in_the_order_in_which_it_is_printed() {
    let daemon = Daemon::start(&[]);
    let metrics = daemon.site.ask("prometheus").stdout;
    let named = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let manual = Manual::read("lingerd.8");
    let items = manual.items("MONITORING");
    let documented = items.iter().map(|item| item[0]).filter(|word| word.starts_with("lingerd_"));
    assert!(documented.eq(named), "{metrics}");
}
