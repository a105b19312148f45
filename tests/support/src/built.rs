// SPDX-License-Identifier: BSD-3-Clause

//! Where things are: the project, the programs that cargo has built of it, and room for what tests
//! build themselves.
//!
//! Cargo tells the path of a program only to the tests of its own package, and builds it for them.
//! Whoever needs another package's has to have it built before.

use crate::daemon::run;
use crate::skip;
use lingerd_platform::backend::{Backend, System};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The directory of the project.
pub fn project() -> &'static Path {
    // This crate is two below.
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("tests/support is in the project")
}

/// The program `name` of this workspace, as it was built with the profile and for the backend that
/// the caller was built with and for. Where LINGERD names a file, that is lingerd: one for another
/// processor, for instance, behind a script that runs it in an emulator (ci/arch).
///
/// # Errors
/// There is none, and which command builds it.
pub fn program(name: &str) -> Result<PathBuf, String> {
    if let ("lingerd", Some(path)) = (name, env::var_os("LINGERD")) {
        return Ok(path.into());
    }
    // Cargo from 1.94 on sets this for the tests of the program's own package, for which it has it
    // built, too. Older ones do the second only.
    if let Some(path) = env::var_os(format!("CARGO_BIN_EXE_{name}")) {
        return Ok(path.into());
    }
    let profile = profile();
    let path = profile.join(name);
    let release = if profile.ends_with("release") { " --release" } else { "" };
    let advice = format!(
        "'cargo build --locked{release} -p {name}' builds it (with RUSTFLAGS and CARGO_TARGET_DIR as they are now)"
    );
    if !path.is_file() {
        return Err(format!("there is no {}: {advice}", path.display()));
    }
    let version = run(Command::new(&path).arg("-V")).stdout;
    if ![")", ";"].iter().any(|end| version.contains(&format!("({}{end}", System::NAME))) {
        let version = version.trim();
        return Err(format!("{} is '{version}', and not for {}: {advice}", path.display(), System::NAME));
    }
    Ok(path)
}

/// The lingerd that was built for poll(2) where ci/test would build it: beside the programs of this system's own backend.
///
/// # Errors
/// There is none, and which command builds it.
pub fn lingerd_on_poll() -> Result<PathBuf, String> {
    let target = profile().parent().expect("it is in the folder that cargo builds in").join("poll");
    let path = target.join("release/lingerd");
    if path.is_file() {
        return Ok(path);
    }
    Err(format!(
        "there is no {}: RUSTFLAGS='--cfg lingerd_backend=\"poll\"' cargo build --release --locked --target-dir {} builds it",
        path.display(),
        target.display()
    ))
}

/// Prometheus' own checks; `None`, and the test is skipped, where they are not.
pub fn promtool() -> Option<Command> {
    let unpacked = project().join("target/prometheus/usr/bin/promtool"); // by ci/packages
    for path in [unpacked, "promtool".into()] {
        if Command::new(&path).arg("--version").output().is_ok_and(|said| said.status.success()) {
            return Some(Command::new(path));
        }
    }
    skip("there is no promtool ('sh ci/packages check' gets it on Debian)");
    None
}

/// A directory for what is built while tests run, and may stay there for the next time.
pub fn scratch() -> PathBuf {
    let directory = profile().join("tmp");
    fs::create_dir_all(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    directory
}

/// Where cargo puts the programs; those of tests and benches are in its folder `deps`.
fn profile() -> PathBuf {
    let path = env::current_exe().expect("the path of this program");
    path.ancestors().nth(2).expect("this program is below target").to_owned()
}

/// A Python that has socket.send_fds; or says what is missing.
pub fn python() -> Option<String> {
    let python = std::env::var("PYTHON").unwrap_or("python3".to_owned());
    let check = "import sys; sys.exit(sys.version_info < (3, 9))";
    if !Command::new(&python).args(["-c", check]).status().is_ok_and(|status| status.success()) {
        skip(&format!("there is no {python} of 3.9 or newer"));
        return None;
    }
    Some(python)
}
