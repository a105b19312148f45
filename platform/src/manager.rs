// SPDX-License-Identifier: BSD-3-Clause

//! The service manager that has started this process: what it passes on, and what it is told.
//!
//! The protocol is systemd's, sd_listen_fds(3) and sd_notify(3); others speak it too. The way to it is opened
//! once, before the sandbox and while there are descriptors, as the manager takes it for a death if it is not
//! told who has taken over. Must not know what is served.

use std::env;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The first of the descriptors passed on, sd_listen_fds(3).
const FIRST: RawFd = 3;

/// How long to wait for a manager that does not read: a successor waits meanwhile.
const PATIENCE: Duration = Duration::from_millis(500);

/// What becomes of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// It serves.
    Serving,
    /// It takes nothing more, and has still so many connections.
    Stopping(usize),
    /// From now on this process is the daemon.
    SucceededBy(i32),
}

impl Notice {
    fn text(self) -> String {
        match self {
            Notice::Serving => "READY=1\nSTATUS=Serving; 'lingerd -S' prints the counters".to_owned(),
            Notice::Stopping(left) => format!("STOPPING=1\nSTATUS=Stopping; {left} connections still linger"),
            Notice::SucceededBy(pid) => format!("MAINPID={pid}"),
        }
    }
}

/// Whom notices go to.
pub struct Manager(UnixDatagram);

impl Manager {
    /// The one that wants to be told, by NOTIFY_SOCKET in the environment. `Ok(None)` when there is none.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub fn find() -> io::Result<Option<Manager>> {
        let Some(path) = env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else {
            return Ok(None);
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address(path.as_bytes())?)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Some(Manager(socket)))
    }

    /// Tells it.
    ///
    /// # Errors
    /// What send(2) says; `WouldBlock` when it has not read for half a second. `InvalidInput` for a process that
    /// nobody knows.
    pub fn tell(&self, notice: Notice) -> io::Result<()> {
        if matches!(notice, Notice::SucceededBy(pid) if pid <= 0) {
            return Err(io::Error::new(
                ErrorKind::InvalidInput,
                "the system does not say which process it is",
            ));
        }
        loop {
            match self.0.send(notice.text().as_bytes()) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                sent => return sent.map(drop),
            }
        }
    }
}

/// Whether standard error is the journal, which takes a priority before each line, sd-daemon(3), and adds a name
/// itself: JOURNAL_STREAM has the device and the inode of what it was when the manager started the process.
pub fn logs_to_the_journal() -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else { return false };
    let stderr = io::stderr().as_fd().try_clone_to_owned().and_then(|copy| File::from(copy).metadata());
    stderr.is_ok_and(|stderr| stream == format!("{}:{}", stderr.dev(), stderr.ino()))
}

/// A path, or with '@' first a name without one, which only Linux has.
fn address(path: &[u8]) -> io::Result<SocketAddr> {
    match path {
        #[cfg(target_os = "linux")]
        [b'@', name @ ..] => {
            use std::os::linux::net::SocketAddrExt;
            SocketAddr::from_abstract_name(name)
        }
        _ => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path)),
    }
}

/// Whether a manager has passed on descriptors to this very process, by LISTEN_PID and LISTEN_FDS.
pub fn has_passed_on() -> bool {
    let is_for_us = env::var("LISTEN_PID").is_ok_and(|pid| pid.parse() == Ok(process::id()));
    is_for_us && env::var_os("LISTEN_FDS").is_some_and(|count| count != "0")
}

/// The descriptors that the manager has passed on. They are close-on-exec from now on. Does so once: a second
/// call returns none.
///
/// # Errors
/// `InvalidInput` when what the environment says is no number or no open descriptor.
pub fn passed_on() -> io::Result<Vec<OwnedFd>> {
    static WERE_TAKEN: AtomicBool = AtomicBool::new(false);
    if !has_passed_on() || WERE_TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let count = env::var_os("LISTEN_FDS").unwrap_or_default();
    let invalid = |what: String| io::Error::new(ErrorKind::InvalidInput, what);
    let number =
        count.to_str().and_then(|count| count.parse().ok()).filter(|count| (0..=1 << 16).contains(count));
    let Some(count) = number else {
        return Err(invalid(format!("LISTEN_FDS={}: no number", count.to_string_lossy())));
    };
    let all = FIRST..FIRST + count;
    for number in all.clone() {
        // SAFETY: fcntl(2): F_GETFD takes no argument, and fails with EBADF on what is not open.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } == -1 {
            return Err(invalid(format!("LISTEN_FDS={count}: descriptor {number} is not open")));
        }
    }
    // SAFETY: sd_listen_fds(3): those descriptors are passed on for this process to own, and it is looked for them
    // only once and before anything else is opened; each is open, as was just seen.
    let owned: Vec<_> = all.map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect();
    owned.iter().try_for_each(crate::set_cloexec)?;
    Ok(owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_notice_is_in_the_words_of_sd_notify() {
        assert!(Notice::Serving.text().starts_with("READY=1\nSTATUS="));
        assert!(Notice::Stopping(7).text().starts_with("STOPPING=1\nSTATUS=Stopping; 7 "));
        assert_eq!(Notice::SucceededBy(12).text(), "MAINPID=12");
    }

    #[test]
    fn a_name_without_a_path_is_one_where_there_are_such() {
        let address = address(b"@lingerd").unwrap();
        let has_path = !cfg!(target_os = "linux");
        assert_eq!(address.as_pathname().is_some(), has_path);
        assert!(super::address(&[b'x'; 200]).is_err(), "too long");
    }

    #[test]
    fn one_that_does_not_read_is_not_waited_for_for_ever() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let manager = Manager(ours);
        let error =
            (0..100_000).find_map(|_| manager.tell(Notice::Serving).err()).expect("a queue has an end");
        // The BSDs have no room in the buffer instead.
        assert!(matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS)), "{error}");
        drop(theirs);
        assert!(manager.tell(Notice::Serving).is_err());
    }
}
