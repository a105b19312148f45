// SPDX-License-Identifier: BSD-3-Clause

//! The manuals among each other.

use crate::mdoc::words;
use std::fs;
use std::path::Path;
use std::process::Command;
use support::built::{self, project};
use support::daemon::{Site, run};
use support::skip;

/// The names of the manuals: `lingerd.8`.
fn names() -> Vec<String> {
    let entries = fs::read_dir(project().join("man")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names: Vec<_> = names.filter(|name| name.ends_with(|last: char| last.is_ascii_digit())).collect();
    assert!(names.len() >= 5, "{names:?}");
    names
}

/// The files below `directory`.
fn files(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files(&entry.path())),
            false => found.push(entry.path().to_str().unwrap().to_owned()),
        }
    }
    found
}

#[test]
fn each_manual_and_each_completion_is_installed_and_uninstalled() {
    if !Command::new("make").arg("-n").current_dir(project()).output().is_ok_and(|said| said.status.success())
    {
        return skip("there is no make");
    }
    let [lingerd, ablinger] = ["lingerd", "ablinger"].map(|name| built::program(name).unwrap());
    assert_eq!(lingerd.parent(), ablinger.parent());
    let site = Site::new();
    let make = |target: &str| {
        let mut make = Command::new("make");
        make.current_dir(project()).env_remove("MAKEFLAGS").args([target, "PREFIX=/usr"]);
        make.arg(format!("DESTDIR={}", site.path("root").display()));
        make.arg(format!("BUILT={}", lingerd.parent().unwrap().display()));
        let said = run(&mut make);
        assert_eq!(said.code, Some(0), "{said:?}");
    };
    make("install");
    let mut wanted = vec!["bin/ablinger".to_owned(), "sbin/lingerd".to_owned()];
    for name in names() {
        wanted.push(format!("share/man/man{}/{name}", name.rsplit_once('.').unwrap().1));
    }
    for program in ["lingerd", "ablinger"] {
        wanted.push(format!("share/bash-completion/completions/{program}"));
        wanted.push(format!("share/zsh/site-functions/_{program}"));
        wanted.push(format!("share/fish/vendor_completions.d/{program}.fish"));
    }
    let installed = files(&site.path("root"));
    for file in &wanted {
        assert!(installed.contains(&site.path("root/usr").join(file).to_str().unwrap().to_owned()), "{file}");
    }
    let others = installed.iter().filter(|file| !wanted.iter().any(|wanted| file.ends_with(wanted)));
    assert!(others.clone().all(|file| file.ends_with("/mod_lingerd.so")), "{others:?}");
    make("uninstall");
    assert_eq!(files(&site.path("root")), [""; 0]);
}

#[test]
fn each_of_our_manuals_that_another_one_refers_to_is_there() {
    let (directory, names) = (project().join("man"), names());
    for name in &names {
        let text = fs::read_to_string(directory.join(name)).unwrap();
        let references = text.lines().filter_map(|line| line.strip_prefix(".Xr ")).map(words);
        for reference in references.filter(|words| words[0].contains("linger")) {
            let wanted = format!("{}.{}", reference[0], reference[1]);
            assert!(names.contains(&wanted), "{name} refers to {wanted}");
        }
        // Each must be found by the name that its title has: '.Dt LINGERD-TUNING 7'.
        let (manual, section) = name.rsplit_once('.').unwrap();
        let title = text.lines().find_map(|line| line.strip_prefix(".Dt ")).unwrap();
        assert_eq!(title, format!("{} {section}", manual.to_uppercase()));
    }
}
