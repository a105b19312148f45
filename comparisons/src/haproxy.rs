// SPDX-License-Identifier: BSD-3-Clause

//! A real HAProxy in a directory of its own, in front of other servers, to which it keeps connections.
//!
//! Whoever starts one is told what is missing.

use crate::server::Process;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use support::apache::program;
use support::built::project;

/// What is configured of it: what a table calls it, and the lines. By itself it tries a connection three times more
/// if it cannot be made, and nothing else.
pub const WAYS: [(&str, &str); 3] = [
    ("HAProxy", ""),
    ("HAProxy, http-reuse always", "    http-reuse always\n"),
    ("HAProxy, always, retry-on", "    http-reuse always\n    retry-on all-retryable-errors\n"),
];

/// A server may take so many seconds for an answer.
const PATIENCE: u32 = 10;

/// A running HAProxy. Dropping it stops it.
pub struct Haproxy {
    /// It.
    pub process: Process,
    /// Where clients go: for each of the [`WAYS`] a port for each server, in their order.
    pub addresses: Vec<Vec<SocketAddr>>,
}

impl Haproxy {
    /// One in front of these servers, of which there are four at most.
    ///
    /// # Errors
    /// What is missing on this system.
    pub fn try_start_before(servers: &[SocketAddr]) -> Result<Haproxy, String> {
        // Where ci/packages unpacks it, with the libraries that nobody else has.
        let unpacked = project().join("target/haproxy");
        let haproxy = program("HAPROXY", &["haproxy", &unpacked.join("usr/sbin/haproxy").to_string_lossy()])?;
        let mut libraries = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
        for directory in fs::read_dir(unpacked.join("usr/lib")).into_iter().flatten().flatten() {
            libraries = format!("{}:{libraries}", directory.path().display());
        }
        let ways = |addresses: &[SocketAddr]| -> Vec<Vec<SocketAddr>> {
            addresses.chunks(4).map(|chunk| chunk[..servers.len()].to_vec()).collect()
        };
        // With a master it writes its pid, when all its sockets are open.
        let (process, addresses) = Process::try_start(
            Path::new("env"),
            "haproxy.pid",
            |site, addresses: [SocketAddr; 12]| {
                let mut configuration = format!(
                    "global\n    maxconn 4096\ndefaults\n    mode http\n    option redispatch\n    timeout connect 5s\n\
                     \x20   timeout client 60s\n    timeout server {PATIENCE}s\n"
                );
                for (way, addresses) in ways(&addresses).iter().enumerate() {
                    for (n, (address, server)) in addresses.iter().zip(servers).enumerate() {
                        configuration += &format!(
                            "listen way{way}-{n}\n    bind {address}\n{}    server apache {server}\n",
                            WAYS[way].1
                        );
                    }
                }
                let path = |name| site.path(name).to_string_lossy().into_owned();
                fs::write(site.path("haproxy.cfg"), configuration).unwrap();
                let haproxy = haproxy.to_string_lossy().into_owned();
                let mut arguments = vec![format!("LD_LIBRARY_PATH={libraries}"), haproxy];
                arguments.extend(["-W", "-db", "-q", "-f"].map(str::to_owned));
                arguments.extend([path("haproxy.cfg"), "-p".to_owned(), path("haproxy.pid")]);
                Ok(arguments)
            },
        )?;
        Ok(Haproxy { process, addresses: ways(&addresses) })
    }
}
