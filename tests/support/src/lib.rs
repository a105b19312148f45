// SPDX-License-Identifier: BSD-3-Clause

//! What the integration tests and the comparisons share: a daemon of their own in a directory of its own, senders,
//! TCP connections, and waiting for what must happen.
//!
//! Nothing here measures time. A test waits for a condition, for as long as [`PATIENCE`], and
//! fails when it does not come; what must *not* end by time gets time-outs of many minutes.

pub mod apache;
pub mod built;
pub mod daemon;
pub mod fuzz;
pub mod http;
pub mod sender;
pub mod server;
pub mod tcp;
pub mod workers;

use std::ffi::OsStr;
use std::fmt::Debug;
use std::io::{Write, stderr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Longer than anything takes on a machine that works.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often to look whether a condition holds.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Waits until `attempt` succeeds. Fails the test with its last error when that never happens.
pub fn eventually<T>(mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(why) if start.elapsed() > PATIENCE => panic!("gave up after {PATIENCE:?}: {why}"),
            Err(_) => thread::sleep(LOOK_AGAIN),
        }
    }
}

/// Waits until `condition` holds; `what` says which it is.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    eventually(|| if condition() { Ok(()) } else { Err(format!("waiting until {what}")) });
}

/// Does `work` over and over in a thread of its own while `meanwhile` runs.
pub fn during<R>(mut work: impl FnMut() + Send, meanwhile: impl FnOnce() -> R) -> R {
    /// Ends the work, also when `meanwhile` panics.
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                work();
            }
        });
        let _done = Done(&done);
        meanwhile()
    })
}

/// Says that a test is skipped and why, past the capture of a test's output. It is a failure
/// where LINGERD_TEST_NO_SKIP is set.
pub fn skip(why: &str) {
    assert!(std::env::var_os("LINGERD_TEST_NO_SKIP").is_none(), "skipped: {why}");
    let test = thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(stderr(), "skipped: {test}: {why}");
}

/// Says that a test was not run, and why, where it is for whoever runs the tests to say whether it
/// can: that is never a failure.
pub fn not_run(why: &str) {
    let test = thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(stderr(), "not run: {test}: {why}");
}

/// Whether this is root; a test for which it is not returns at once, and is counted as skipped.
pub fn is_root() -> bool {
    let root = lingerd_platform::process::effective_uid() == 0;
    if !root {
        skip("it needs root");
    }
    root
}

/// A shell script that prints how many of its descriptors are sockets; other than the first three,
/// which is how mod_cgid talks with it.
pub const COUNT_SOCKETS: &str = "n=3; sockets=0
while [ $n -lt 64 ]; do
    if [ -S /dev/fd/$n ]; then sockets=$((sockets + 1)); fi
    n=$((n + 1))
done
echo sockets=$sockets
";

/// Whether the script sees a socket where there is one: not on a system without a full /dev/fd.
pub fn sockets_can_be_counted() -> bool {
    let (socket, _other) = UnixStream::pair().unwrap();
    let script = format!("exec 9<&0 </dev/null; {COUNT_SOCKETS}");
    let output = Command::new("sh").args(["-c", &script]).stdin(OwnedFd::from(socket)).output().unwrap();
    let seen = output.stdout == b"sockets=1\n";
    if !seen {
        skip("a script cannot list its descriptors in /dev/fd here");
    }
    seen
}

/// The C of our senders: what must not be needed, and what must not be there.
const STRICT: [&str; 5] = ["-std=c89", "-pedantic", "-Wall", "-Wextra", "-Werror"];

/// Compiles C in the directory of the project, into a file of its own; `None` when the test is to be skipped.
pub fn compile(name: &str, arguments: &[impl AsRef<OsStr> + Debug]) -> Option<PathBuf> {
    let compiler = std::env::var("CC").unwrap_or("cc".to_owned());
    if Command::new(&compiler).arg("--version").output().is_err() {
        skip(&format!("there is no C compiler '{compiler}'"));
        return None;
    }
    let output = built::scratch().join(format!("{name}-{}", std::process::id()));
    let compiled = daemon::run(
        Command::new(compiler)
            .current_dir(built::project())
            .args(STRICT)
            .arg("-o")
            .arg(&output)
            .args(arguments),
    );
    assert_eq!(compiled.code, Some(0), "{arguments:?}: {}", compiled.stderr);
    Some(output)
}

/// The libraries that sockets are in, where that is not the C library.
pub fn libraries() -> &'static [&'static str] {
    if cfg!(any(target_os = "illumos", target_os = "solaris")) { &["-lsocket", "-lnsl"] } else { &[] }
}
