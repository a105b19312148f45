// SPDX-License-Identifier: BSD-3-Clause

//! A real php-fpm in a directory of its own, which makes the pages of an Apache that has no mod_php.
//!
//! Whoever starts one is told what is missing.

use crate::server::Process;
use lingerd_platform::process;
use std::fs;
use std::path::{Path, PathBuf};
use support::apache::{USERS, program};
use support::built::project;

/// A running php-fpm. Dropping it stops it.
pub struct Fpm {
    /// It.
    pub process: Process,
    /// The socket where it takes requests, by FastCGI.
    pub socket: PathBuf,
}

impl Fpm {
    /// Starts one that makes so many pages at a time, and waits until it serves.
    ///
    /// # Errors
    /// What is missing on this system.
    pub fn try_start(workers: usize) -> Result<Fpm, String> {
        let fpm = find()?;
        let settings = settings_of_mod_php(&fpm);
        let (process, []) = Process::try_start(Path::new("env"), "fpm.pid", |site, []| {
            let path = |name| site.path(name).to_string_lossy().into_owned();
            let user = if process::effective_uid() == 0 {
                let user = USERS.iter().find_map(|name| process::user(name).ok().flatten());
                format!("user = {}\n", user.ok_or("there is no user for php-fpm to run as")?.name)
            } else {
                String::new()
            };
            // Where Debian's pool starts and ends workers as there is work, this one has its number of them.
            let configuration = format!(
                "[global]\npid = {}\nerror_log = /proc/self/fd/2\n[www]\n{user}listen = {}\n\
                 listen.mode = 0666\nlisten.backlog = 4096\npm = static\npm.max_children = {workers}\n",
                path("fpm.pid"),
                path(SOCKET)
            );
            fs::write(site.path("fpm.conf"), configuration).unwrap();
            let mut words = Vec::new();
            if let Some(settings) = &settings {
                words.push(format!("PHP_INI_SCAN_DIR={}", settings.join("conf.d").display()));
            }
            words.push(fpm.to_string_lossy().into_owned());
            if let Some(settings) = &settings {
                words.extend(["-c".to_owned(), settings.to_string_lossy().into_owned()]);
            }
            words.extend(["-F", "-O", "-y"].map(str::to_owned));
            words.push(path("fpm.conf"));
            Ok(words)
        })?;
        let socket = process.path(SOCKET);
        Ok(Fpm { process, socket })
    }
}

const SOCKET: &str = "fpm.sock";

/// Where Debian's mod_php of the same version has its php.ini and its conf.d, so that the two differ in nothing else: with
/// opcache, among others. Elsewhere each has what it finds by itself.
fn settings_of_mod_php(fpm: &Path) -> Option<PathBuf> {
    let version = fpm.file_name()?.to_str()?.strip_prefix("php-fpm")?;
    let settings = Path::new("/etc/php").join(version).join("apache2");
    settings.join("php.ini").is_file().then_some(settings)
}

/// Where it is: its name has its version in it.
///
/// # Errors
/// It is missing on this system.
pub fn find() -> Result<PathBuf, String> {
    // Where ci/packages unpacks it.
    let directories = [PathBuf::from("/usr/sbin"), project().join("target/php-fpm/usr/sbin")];
    let files = directories.iter().flat_map(fs::read_dir).flatten().flatten().map(|entry| entry.path());
    let found = files
        .filter(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("php-fpm")))
        .map(|file| file.to_string_lossy().into_owned())
        .next();
    program("PHP_FPM", &["php-fpm", found.as_deref().unwrap_or("php-fpm")])
}
