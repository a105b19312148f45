// SPDX-License-Identifier: BSD-3-Clause

//! A web server with workers, as a process: what its clients get of it, what it is told, and what any such server is seen
//! to do before a daemon. Must not know which server it is, nor how one is started.

use crate::daemon::{Daemon, Site};
use crate::http::{self, Held, get};
use crate::{PATIENCE, tcp, wait_until};
use lingerd_platform::process;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;

/// More clients than there are workers and threads.
pub const MANY: usize = 20;

/// More messages than are on their way on one link, on any system.
const MORE_THAN_A_LINK_HOLDS: usize = 300;

/// Whether a client that has all of its response, and leaves, may be reset: where a server without a daemon closes at
/// once, or ends while it closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// It is not.
    IsNotReset,
    /// It may be.
    MayBeReset,
}

/// One that serves. Dropping it kills it, with all that it has started, and shows its log if the test has failed.
pub struct Running {
    /// The leader of its process group.
    pub child: Child,
    /// Where it serves.
    pub address: SocketAddr,
    log: PathBuf,
    leaving: Leaving,
}

impl Running {
    /// One that logs there.
    pub fn new(child: Child, address: SocketAddr, log: PathBuf, leaving: Leaving) -> Self {
        Running { child, address, log, leaving }
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until it has logged `part`.
    pub fn wait_for_log(&self, part: &str) {
        wait_until(&format!("'{part}' is logged"), || self.log().contains(part));
    }

    /// A client that has got all of a page.
    pub fn page(&self) -> Held {
        let held = get(self.address, "/page");
        assert!(held.body == tcp::response(20_000));
        held
    }

    /// One that leaves then: whoever lingers on it has nothing to wait for.
    pub fn leaving(&self) {
        let left = self.page().socket.shutdown(Shutdown::Write);
        assert!(left.is_ok() || self.leaving == Leaving::MayBeReset, "{left:?}");
    }

    /// A client that asks, reads nothing yet, and has room for little.
    pub fn slow(&self, request: &str) -> TcpStream {
        let mut client = http::connect_with_small_window(self.address, 4096);
        client.write_all(request.as_bytes()).unwrap();
        client
    }

    /// Which worker serves.
    pub fn worker(&self) -> String {
        String::from_utf8(get(self.address, "/pid").body).unwrap()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        process::kill(self.child.id() as i32, signal).unwrap();
    }

    /// Waits until a daemon that has just come has been found, which takes a second at most.
    pub fn wait_until_found(&self, daemon: &Daemon) {
        wait_until("the daemon is found", || {
            self.leaving();
            daemon.counters()["handed_over"] > 0
        });
    }

    /// A client after whom the daemon has one more than before.
    pub fn page_handed_over(&self, daemon: &Daemon) -> Held {
        let handed_over = daemon.counters()["handed_over"];
        let held = self.page();
        wait_until("it hands over", || daemon.counters()["handed_over"] > handed_over);
        held
    }

    /// That one worker serves any number of clients who hold their sockets.
    pub fn serves_many(&self, daemon: &Daemon) {
        let held: Vec<_> = (0..MANY).map(|_| self.page()).collect();
        daemon.wait_for(&format!("lingering={MANY} senders=1"));
        drop(held);
        daemon.wait_for(&format!("lingering=0 closed={MANY} reset=0 rejected=0 protocol_errors=0"));
    }

    /// That a daemon, which is not there yet, may come and stand still and go.
    pub fn outlives_daemons(&self, site: &Arc<Site>) {
        // Without one a server does what it would do.
        self.leaving();

        let lingerd = site.start(&[]);
        self.wait_until_found(&lingerd);

        // One that stands still has queued what there is room for, and holds nobody up.
        lingerd.freeze();
        (0..MORE_THAN_A_LINK_HOLDS).for_each(|_| self.leaving());
        lingerd.thaw();
        let before = lingerd.counters()["handed_over"];
        wait_until("there is room again", || {
            self.leaving();
            lingerd.counters()["handed_over"] > before
        });

        // One that is killed, and another one in its place.
        lingerd.kill();
        self.leaving();
        let lingerd = site.start(&[]);
        self.wait_until_found(&lingerd);
        let held = self.page();
        lingerd.wait_for("lingering=1 senders=1 rejected=0 protocol_errors=0");
        drop(held);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = process::kill(-(self.child.id() as i32), libc::SIGKILL);
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        let _ = fs::remove_file(&self.log);
    }
}

/// That a server at a Unix socket hands nothing over.
pub fn hands_over_tcp_alone(daemon: Daemon, path: &Path) {
    let mut client = UnixStream::connect(path).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(http::request("/page").as_bytes()).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut response = Vec::new();
    client.read_to_end(&mut response).unwrap();
    assert!(response.ends_with(&tcp::response(20_000)), "{} bytes", response.len());
    daemon.finish("handed_over=0");
}
