// SPDX-License-Identifier: BSD-3-Clause

//! A service script, as a package installs it and an administrator runs it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use support::built;
use support::daemon::{Ended, Site, lingerd, run};

/// A script at a site of its own.
pub struct Service {
    /// Where its daemon keeps its files.
    pub site: Arc<Site>,
    /// The program that the script starts, at the place of a package's.
    pub program: PathBuf,
    script: PathBuf,
    shell: OsString,
    settings: Vec<(String, String)>,
}

impl Service {
    /// Installs the script `source` of the project as `name`, to be run by `shell`. `substitute` gets its text
    /// and the prefix below which the program lies in sbin, and does what the package's framework does with them.
    pub fn install(
        source: &str,
        name: &str,
        shell: impl Into<OsString>,
        substitute: impl FnOnce(String, &str) -> String,
    ) -> Self {
        let site = Site::new();
        let prefix = site.path("prefix");
        let program = prefix.join("sbin/lingerd");
        fs::create_dir_all(prefix.join("sbin")).unwrap();
        let source = fs::read_to_string(built::project().join(source)).unwrap();
        let written = site.path("script.in");
        fs::write(&written, substitute(source, prefix.to_str().unwrap())).unwrap();
        let script = site.path(name);
        // Another process is to write what is executed, see program_for_all.
        let copied = run(Command::new("cp").arg(&written).arg(&script));
        assert_eq!(copied.code, Some(0), "{copied:?}");
        assert_eq!(run(Command::new("chmod").arg("755").arg(&script)).code, Some(0));
        let service = Service { site, program, script, shell: shell.into(), settings: Vec::new() };
        service.link_program(Path::new(lingerd().get_program()));
        service
    }

    /// Puts `program` into the place of the program that the script starts.
    pub fn link_program(&self, program: &Path) {
        let _ = fs::remove_file(&self.program);
        std::os::unix::fs::symlink(program, &self.program).unwrap();
    }

    /// Sets `variable`, as an administrator does.
    pub fn set(&mut self, variable: &str, value: impl Into<String>) {
        self.settings.retain(|(name, _)| name != variable);
        self.settings.push((variable.to_owned(), value.into()));
    }

    /// Runs the script with `arguments`.
    pub fn run(&self, arguments: &[&str]) -> Ended {
        let mut command = Command::new(&self.shell);
        command
            .arg(&self.script)
            .args(arguments)
            .envs(self.settings.iter().map(|(name, value)| (name, value)));
        run(&mut command)
    }

    /// That it exits with 0; returns what it prints.
    #[track_caller]
    pub fn must(&self, arguments: &[&str]) -> String {
        let ended = self.run(arguments);
        assert_eq!(ended.code, Some(0), "{arguments:?}: {ended:?}");
        ended.stdout
    }
}

/// The first of `programs` that is in PATH.
pub fn find(programs: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there =
        |program: &&str| std::env::split_paths(&path).map(|d| d.join(program)).find(|p| p.is_file());
    programs.iter().find_map(is_there)
}

/// Where a stand-in of this folder lies.
pub fn stand_in(name: &str) -> PathBuf {
    built::project().join(Path::new("tests/services")).join(name)
}
