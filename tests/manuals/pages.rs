// SPDX-License-Identifier: BSD-3-Clause

//! The manuals among each other.

use crate::mdoc::{Manual, words};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use support::built::{self, project};
use support::daemon::{Site, run};
use support::{compile, skip};

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
fn each_manual_and_each_completion_is_installed_and_uninstalled_and_so_is_the_library() {
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
        make.arg(format!("OUT={}", site.path("library").display()));
        let said = run(&mut make);
        assert_eq!(said.code, Some(0), "{said:?}");
    };
    ["install", "library", "install-library"].into_iter().for_each(make);
    let mut wanted = vec!["bin/ablinger".to_owned(), "sbin/lingerd".to_owned()];
    for name in names() {
        wanted.push(format!("share/man/man{}/{name}", name.rsplit_once('.').unwrap().1));
    }
    for program in ["lingerd", "ablinger"] {
        wanted.push(format!("share/bash-completion/completions/{program}"));
        wanted.push(format!("share/zsh/site-functions/_{program}"));
        wanted.push(format!("share/fish/vendor_completions.d/{program}.fish"));
    }
    let libraries = match cfg!(target_os = "macos") {
        true => ["liblingerd.0.dylib", "liblingerd.dylib"],
        false => ["liblingerd.so.0", "liblingerd.so"],
    };
    wanted.extend(libraries.map(|library| format!("lib/{library}")));
    wanted.extend(["lib/liblingerd.a", "lib/pkgconfig/lingerd.pc", "include/lingerd.h"].map(str::to_owned));
    let installed = files(&site.path("root"));
    for file in &wanted {
        assert!(installed.contains(&site.path("root/usr").join(file).to_str().unwrap().to_owned()), "{file}");
    }
    let others = installed.iter().filter(|file| !wanted.iter().any(|wanted| file.ends_with(wanted)));
    assert!(others.clone().all(|file| file.ends_with("/mod_lingerd.so")), "{others:?}");
    who_links_with_the_library_has_what_it_needs(&site);
    make("uninstall");
    assert_eq!(files(&site.path("root")), [""; 0]);
}

/// By what pkg-config says of it, shared and static; and nothing else is in it.
fn who_links_with_the_library_has_what_it_needs(site: &Site) {
    let root = site.path("root");
    let (libraries, source) = (root.join("usr/lib"), site.path("server.c"));
    fs::write(&source, Manual::read("lingerd.3").display("EXAMPLES")).unwrap();
    let pkg_config = |options: &[&str]| {
        let mut command = Command::new("pkg-config");
        command.args(options).arg("lingerd").env("PKG_CONFIG_PATH", libraries.join("pkgconfig"));
        let said = run(command.env("PKG_CONFIG_SYSROOT_DIR", &root));
        assert_eq!(said.code, Some(0), "{said:?}");
        said.stdout.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    if Command::new("pkg-config").arg("--version").output().is_err() {
        return skip("there is no pkg-config");
    }
    assert_eq!(pkg_config(&["--modversion"]), [env!("CARGO_PKG_VERSION")]);
    let mut shared = vec![source.to_str().unwrap().to_owned()];
    let mut fixed = shared.clone();
    shared.extend(pkg_config(&["--cflags", "--libs"]));
    fixed.extend(pkg_config(&["--cflags", "--libs", "--static"]));
    for flag in &mut fixed {
        if flag == "-llingerd" {
            *flag = libraries.join("liblingerd.a").to_str().unwrap().to_owned();
        }
    }
    for arguments in [shared, fixed] {
        let program = compile("installed", &arguments).expect("make has found a compiler");
        // A path that no socket can have is refused by the library, whichever it is.
        let mut server = Command::new(program);
        server.arg("").env("LD_LIBRARY_PATH", &libraries).env("DYLD_LIBRARY_PATH", &libraries);
        run(&mut server).assert_failed(1, "cannot serve: Invalid argument");
    }
    if cfg!(target_os = "linux") {
        let nm =
            run(Command::new("nm").args(["-D", "--defined-only"]).arg(libraries.join("liblingerd.so.0")));
        let exported: BTreeSet<_> = nm.stdout.lines().filter_map(|line| line.split(' ').nth(2)).collect();
        let manual = Manual::read("lingerd.3");
        let named = manual.section("NAME").into_iter().filter_map(|line| line.strip_prefix(".Nm "));
        assert_eq!(exported, named.map(|line| words(line)[0]).collect(), "{nm:?}");
    }
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
