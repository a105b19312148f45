// SPDX-License-Identifier: BSD-3-Clause

//! What bash, zsh and fish offer on Tab, each asked itself, against what the programs take.

use crate::mdoc::Manual;
use crate::options::{PROGRAMS, explained};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use support::built::{self, project};
use support::daemon::{Ended, Site, lingerd, run};
use support::skip;

/// What is offered for each line.
type Offers = BTreeMap<String, BTreeSet<String>>;

/// A shell, how it is asked (with the folder and the lines behind that), and what of it has to be there.
struct Shell {
    name: &'static str,
    ask: &'static [&'static str],
}

const SHELLS: [Shell; 3] = [
    Shell { name: "bash", ask: &["--norc", "tests/manuals/complete.bash"] },
    Shell { name: "zsh", ask: &["-f", "tests/manuals/complete.zsh"] },
    Shell { name: "fish", ask: &["--no-config", "tests/manuals/complete.fish"] },
];

impl Shell {
    /// Asks for all of `lines` at once; `None` when it is not there.
    fn offers(&self, lines: &[&str]) -> Option<Offers> {
        if !Command::new(self.name).args(["-c", "exit"]).status().is_ok_and(|status| status.success()) {
            skip(&format!("there is no {}", self.name));
            return None;
        }
        let mut command = Command::new(self.name);
        command.current_dir(project()).args(self.ask).arg("platform/completions").args(lines);
        let said = run(&mut command);
        if said.stderr.contains("there is no bash-completion") {
            skip("there is no bash-completion");
            return None;
        }
        assert!(said.code == Some(0) && said.stderr.is_empty(), "{}: {said:?}", self.name);
        let mut offers = Offers::new();
        let mut line = "";
        for each in said.stdout.lines() {
            match each.strip_prefix("= ") {
                Some(asked) => {
                    line = asked;
                    offers.insert(line.to_owned(), BTreeSet::new());
                }
                // bash prints an empty line where there is nothing.
                None if each.is_empty() => {}
                None => {
                    offers.get_mut(line).expect("an answer").insert(each.to_owned());
                }
            }
        }
        assert_eq!(offers.len(), lines.len(), "{}: {offers:?}", self.name);
        Some(offers)
    }
}

/// `-a`, `-b`.
fn words(letters: impl IntoIterator<Item = char>) -> BTreeSet<String> {
    letters.into_iter().map(|letter| format!("-{letter}")).collect()
}

/// The options that `lingerd` takes together with `command`, -k or -S, by its own word.
fn that_go_with(command: &str) -> BTreeSet<String> {
    let nowhere = Site::new();
    let goes = |&(&letter, &value): &(&char, &bool)| {
        let mut lingerd = lingerd();
        lingerd.current_dir(nowhere.path("")).args([command, &format!("-{letter}")]);
        if value {
            // It has to be right for some, so that nothing else is complained of.
            lingerd.arg(if letter == 'o' { "json" } else { "nothing-is-there" });
        }
        let said = run(&mut lingerd);
        said.code != Some(0)
            && !said.stderr.contains("does not go with")
            && !said.stderr.contains("goes with")
            && !said.stderr.contains("given")
    };
    let options = explained("lingerd");
    words(options.iter().filter(goes).map(|(&letter, _)| letter))
}

/// The other options that `ablinger` takes together with that of this letter, by its own word.
fn that_ablinger_takes_with(first: char) -> BTreeSet<String> {
    let program = built::program("ablinger").unwrap_or_else(|missing| panic!("{missing}"));
    let options = explained("ablinger");
    let given = |letter: char| {
        [format!("-{letter}"), "1".to_owned()].into_iter().take(1 + usize::from(options[&letter]))
    };
    let goes = |&letter: &char| {
        let said = run(Command::new(&program).args(given(first)).args(given(letter)));
        letter != first && !said.stderr.contains("exclude each other")
    };
    words(options.keys().copied().filter(goes))
}

/// What comes after `-o` in a manual.
fn formats(manual: &str) -> BTreeSet<String> {
    let manual = Manual::read(manual);
    let items = manual.items("DESCRIPTION");
    let item = items.iter().find(|item| item[..2] == ["Fl", "o"]).unwrap();
    item[3..].iter().filter(|word| **word != "|").map(|word| (*word).to_owned()).collect()
}

#[test]
fn each_option_is_offered_where_it_goes_and_nothing_else() {
    let (with_k, with_s) = (that_go_with("-k"), that_go_with("-S"));
    assert!(with_k.contains("-w") && with_s.contains("-o"), "{with_k:?} {with_s:?}");
    for shell in SHELLS {
        let lines = [
            "lingerd -",
            "lingerd -k -",
            "lingerd -S -",
            "lingerd -f -",
            "lingerd -q -g x -",
            "ablinger -",
            "ablinger -P -",
            "ablinger -n 1 -",
            "ablinger -r 1 -",
            "ablinger -p 1 -",
        ];
        let Some(offers) = shell.offers(&lines) else { continue };
        let name = shell.name;
        // Each option of the program, in one of the three places that there are.
        let all: BTreeSet<_> = lines[..3].iter().flat_map(|line| offers[*line].clone()).collect();
        for (program, all) in PROGRAMS.into_iter().zip([&all, &offers["ablinger -"]]) {
            assert_eq!(*all, words(explained(program).into_keys()), "{name}: {program}");
        }
        assert_eq!(offers["lingerd -k -"], with_k, "{name}");
        assert_eq!(offers["lingerd -S -"], with_s, "{name}");
        let daemon: BTreeSet<_> = offers["lingerd -"].difference(&words("kSVhf".chars())).cloned().collect();
        assert_eq!(offers["lingerd -f -"], daemon, "{name}: once it is to serve");
        let others: BTreeSet<_> =
            daemon.difference(&words("qdg".chars())).cloned().chain(words("f".chars())).collect();
        assert_eq!(
            offers["lingerd -q -g x -"], others,
            "{name}: none twice, and -q and -d exclude each other"
        );
        for line in &lines[6..] {
            let first = line.chars().nth("ablinger -".len()).unwrap();
            let others: BTreeSet<_> = offers[*line].difference(&words([first])).cloned().collect();
            assert_eq!(others, that_ablinger_takes_with(first), "{name}: {line}");
        }
    }
}

#[test]
fn values_are_offered_that_the_programs_take() {
    let site = Site::new();
    fs::write(site.path("file"), "").unwrap();
    let file = |option: &str| format!("lingerd {option} {}/fi", site.path("").display()).replace("//", "/");
    let (socket, pid_file, stopped) = (file("-s"), file("-p"), file("-k -s"));
    let group = run(Command::new("id").args(["-gn", "root"])).stdout.trim().to_owned();
    let of_root = format!("lingerd -u root:{}", &group[..2]);
    let groups = format!("lingerd -a daemon,:{}", &group[..2]);
    let lines = [
        "lingerd -l ",
        "lingerd -S -o ",
        "ablinger -o ",
        "lingerd -n ",
        "lingerd -u roo",
        "lingerd -a daemon,roo",
        "lingerd -g ",
        "lingerd -m ",
        &of_root,
        &groups,
        &socket,
        &pid_file,
        &stopped,
    ];
    for shell in SHELLS {
        let Some(offers) = shell.offers(&lines) else { continue };
        let name = shell.name;
        assert_eq!(offers["lingerd -S -o "], formats("lingerd.8"), "{name}");
        assert_eq!(offers["ablinger -o "], formats("ablinger.1"), "{name}");
        assert_eq!(offers["lingerd -n "], BTreeSet::new(), "{name}: a number is one's own");
        let takes =
            |arguments: &[&str]| -> Ended { run(lingerd().args(arguments).args(["-u", "no such user"])) };
        for (line, option) in [("lingerd -l ", "-l"), ("lingerd -m ", "-m")] {
            assert!(offers[line].len() > 2, "{name}: {offers:?}");
            for value in &offers[line] {
                takes(&[option, value]).assert_failed(1, "-u");
            }
        }
        takes(&["-l", "nothing"]).assert_failed(2, "-l"); // or else nothing was asked
        for (line, part) in [
            ("lingerd -u roo", "root"),
            ("lingerd -a daemon,roo", "root"),
            ("lingerd -g ", &group),
            (&of_root, &group),
            (&groups, &group),
            (&socket, "file"),
            (&pid_file, "file"),
            (&stopped, "file"),
        ] {
            // Some offer the whole word, and some what has to be added to it.
            assert!(offers[line].iter().any(|offer| offer.ends_with(part)), "{name}: {line}: {offers:?}");
        }
    }
}
