// SPDX-License-Identifier: BSD-3-Clause

//! A real php-fpm in a directory of its own, which makes the pages of an Apache that has no mod_php.
//!
//! Whoever starts one is told what is missing.

use crate::server::Process;
use lingerd_platform::process;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use support::apache::{USERS, program};
use support::built::project;

/// A running php-fpm. Dropping it stops it.
pub struct Fpm {
    /// It.
    pub process: Process,
    /// Where it takes requests, by FastCGI.
    pub address: SocketAddr,
}

impl Fpm {
    /// Starts one that makes so many pages at a time, and waits until it serves.
    ///
    /// # Errors
    /// What is missing on this system.
    pub fn try_start(workers: usize) -> Result<Fpm, String> {
        let fpm = find()?;
        let (process, [address]) =
            Process::try_start(&fpm, "fpm.pid", |site, [address]: [SocketAddr; 1]| {
                let path = |name| site.path(name).to_string_lossy().into_owned();
                let user = if process::effective_uid() == 0 {
                    let user = USERS.iter().find_map(|name| process::user(name).ok().flatten());
                    format!("user = {}\n", user.ok_or("there is no user for php-fpm to run as")?.name)
                } else {
                    String::new()
                };
                let configuration = format!(
                    "[global]\npid = {}\nerror_log = /proc/self/fd/2\n[www]\n{user}listen = {address}\n\
                 listen.backlog = 4096\npm = static\npm.max_children = {workers}\n",
                    path("fpm.pid")
                );
                fs::write(site.path("fpm.conf"), configuration).unwrap();
                // Without php.ini: mod_php has none in these comparisons that would matter.
                Ok(["-F", "-O", "-n", "-y"]
                    .map(str::to_owned)
                    .into_iter()
                    .chain([path("fpm.conf")])
                    .collect())
            })?;
        Ok(Fpm { process, address })
    }
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
