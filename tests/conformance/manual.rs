// SPDX-License-Identifier: BSD-3-Clause

//! The senders in lingerd-protocol(7): taken out of the manual, and run as whoever copies them would.

#[path = "../manuals/mdoc.rs"]
#[allow(dead_code, reason = "here only displays are looked for")]
mod mdoc;

use crate::report::table;
use crate::{Sender, has_failed, run_all};
use mdoc::Manual;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use support::built::{self, python};
use support::daemon::Site;
use support::{compile, libraries, skip};

/// What a program is asked that none in the manual is about: they are short.
const NOT_THERE: &str = "for each in PROCESSES THREADS TLS_CERT LINGER_SECONDS SPOOL; do
    eval \"[ -z \\\"\\${$each:-}\\\" ]\" || { echo 'lacks: the program in the manual is without it'; exit 0; }
done
";

/// The one in the section of that name; `None`, and said so, where its language is not.
fn program(section: &str, site: &Site) -> Option<Sender> {
    let source = site.path(section);
    fs::write(&source, Manual::read("lingerd-protocol.7").display(section)).unwrap();
    let there = |interpreter: &str, check: &[&str]| {
        let command =
            Command::new(interpreter).args(check).stdout(Stdio::null()).stderr(Stdio::null()).status();
        let is_there = command.is_ok_and(|status| status.success());
        if !is_there {
            skip(&format!("{section}: there is no {interpreter} that can do '{}'", check.join(" ")));
        }
        is_there.then(|| format!("{interpreter} '{}'", source.display()))
    };
    let mut asks = NOT_THERE.to_owned();
    let runs = match section {
        "Python" => format!("{} '{}'", python()?, source.display()),
        "Ruby" => there("ruby", &["-rsocket", "-e", "Socket::AncillaryData"])?,
        "Perl" => there("perl", &["-MSocket::MsgHdr", "-e", "1"])?,
        "PHP" => {
            asks += "[ \"$CHECK\" != exec ] || { echo 'lacks: PHP cannot make a socket close-on-exec'; exit 0; }\n";
            there("php", &["-r", "exit(function_exists('socket_sendmsg') ? 0 : 1);"])?
        }
        "C" => {
            let c = site.path("program.c");
            fs::copy(&source, &c).unwrap();
            let arguments = [&[c.to_str().unwrap()], libraries()].concat();
            compile("manual", &arguments)?.display().to_string()
        }
        "Rust" => built_by_cargo(&source)?,
        other => panic!("how is {other} run?"),
    };
    let command = format!("{asks}exec {runs} \"$LINGERD_SOCKET\" \"$PORT\"");
    Some(Sender { name: section.to_owned(), command })
}

/// The example of the crate that has the same lines.
fn built_by_cargo(source: &Path) -> Option<String> {
    let example = fs::read_to_string(built::project().join("senders/rust/examples/manual.rs")).unwrap();
    let manual = fs::read_to_string(source).unwrap();
    assert!(
        example.ends_with(&format!("\n\n{manual}")),
        "senders/rust/examples/manual.rs is not what is in the manual"
    );
    let program = built::scratch().parent().unwrap().join("examples/manual");
    if !program.exists() {
        skip(&format!(
            "there is no {}: 'cargo build -p lingerd-client --examples' makes it",
            program.display()
        ));
        return None;
    }
    Some(program.display().to_string())
}

#[test]
fn the_senders_in_the_manual_do_what_it_says() {
    let site = Site::new();
    let sections = ["Python", "Ruby", "Perl", "PHP", "Rust", "C"];
    let senders: Vec<_> = sections.iter().filter_map(|section| program(section, &site)).collect();
    let columns = run_all(&senders);
    let table = table(&columns);
    fs::write(built::scratch().join("conformance-manual"), &table).unwrap();
    println!("{table}");
    assert!(!has_failed(&columns), "{table}");
}
