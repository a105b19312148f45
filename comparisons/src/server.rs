// SPDX-License-Identifier: BSD-3-Clause

//! A server other than Apache, in a directory of its own.

use lingerd_platform::process;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use support::apache::{free_addresses, guarded};
use support::daemon::Site;
use support::wait_until;

/// A running one. Dropping it stops it.
pub struct Process {
    site: Arc<Site>,
    child: Child,
}

impl Process {
    /// Starts `program` with the arguments that `write` makes for it and for the addresses, once it has written
    /// what is to be in the directory, and waits until it has made the file `ready`: when it serves.
    ///
    /// # Errors
    /// What is missing on this system.
    pub fn try_start<const N: usize>(
        program: &Path,
        ready: &str,
        write: impl Fn(&Site, [SocketAddr; N]) -> Result<Vec<String>, String>,
    ) -> Result<(Process, [SocketAddr; N]), String> {
        // It cannot choose a port by itself, so that another process may take it first.
        for _ in 0..10 {
            let addresses = free_addresses(Ipv4Addr::LOCALHOST.into());
            let site = Site::new();
            let arguments = write(&site, addresses)?;
            let child = guarded(program, &site).args(arguments).spawn().map_err(|e| format!("sh: {e}"))?;
            let mut process = Process { site, child };
            let what = format!("{} serves", program.display());
            wait_until(&what, || process.site.path(ready).exists() || process.has_ended());
            if !process.has_ended() {
                return Ok((process, addresses));
            }
            let said = fs::read_to_string(process.site.path("stderr")).unwrap();
            assert!(said.contains("ddress already in use"), "{} does not start:\n{said}", program.display());
        }
        panic!("there is no free port for {}", program.display());
    }

    /// The leader of its process group.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// The path of a file of its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.site.path(name)
    }

    /// What is in a file of its directory.
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.site.path(name)).expect(name)
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = process::kill(self.pid(), libc::SIGTERM);
        let _ = self.child.wait();
    }
}
