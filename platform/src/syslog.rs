// SPDX-License-Identifier: BSD-3-Clause

//! The system's log: one message at a time, never waiting where that can be helped.
//!
//! Must not know what is logged, nor what to do when it cannot be.

use std::fmt::Arguments;
use std::io;
pub use syslog::{Facility, Severity};

cfg_if::cfg_if! {
    if #[cfg(any(target_os = "illumos", target_os = "solaris"))] {
        const NAME: &std::ffi::CStr = c"lingerd";

        /// The way to syslogd. /dev/log is no socket here, log(4D): only syslog(3C) can write to it,
        /// and that may wait.
        pub struct Syslog;

        impl Syslog {
            /// # Errors
            /// None: syslog(3C) never tells.
            pub fn connect(facility: Facility) -> io::Result<Self> {
                // The crate has the numbers of other systems, which differ in this one.
                let facility = match facility {
                    Facility::LOG_CRON => libc::LOG_CRON,
                    facility => facility as libc::c_int,
                };
                // SAFETY: openlog(3C) keeps the name, which is static.
                unsafe { libc::openlog(NAME.as_ptr(), libc::LOG_PID, facility) };
                Ok(Syslog)
            }

            /// # Errors
            /// None: syslog(3C) never tells.
            pub fn send(&mut self, severity: Severity, message: Arguments<'_>) -> io::Result<()> {
                let text = std::ffi::CString::new(message.to_string().replace('\0', "?"))?;
                // SAFETY: syslog(3C) reads the two NUL-terminated strings, of which the first is a
                // format that takes the second; both outlive the call.
                unsafe { libc::syslog(severity as libc::c_int, c"%s".as_ptr(), text.as_ptr()) };
                Ok(())
            }
        }
    } else {
        use syslog::{Error, LogFormat, Logger, LoggerBackend};

        const NAME: &str = "lingerd";

        /// Where syslogd listens: first where it does on this system (_PATH_LOG), then where it does on others.
        const PATHS: [&str; 3] = if cfg!(target_os = "macos") {
            ["/var/run/syslog", "/var/run/log", "/dev/log"]
        } else if cfg!(any(target_os = "freebsd", target_os = "netbsd", target_os = "dragonfly")) {
            ["/var/run/log", "/dev/log", "/var/run/syslog"]
        } else {
            ["/dev/log", "/var/run/log", "/var/run/syslog"]
        };

        /// A connection to syslogd.
        pub struct Syslog(Logger<LoggerBackend, Format>);

        /// RFC 3164 as it is spoken locally: the priority, the tag and the message. The time is left
        /// to the syslog daemon, which stamps what comes without.
        #[derive(Clone, Copy)]
        struct Format(Facility);

        impl LogFormat<Arguments<'_>> for Format {
            fn format<W: io::Write>(
                &self,
                w: &mut W,
                severity: Severity,
                message: Arguments<'_>,
            ) -> syslog::Result<()> {
                let priority = self.0 as u8 | severity as u8;
                // One write, as one message is one datagram.
                write!(w, "<{priority}>{NAME}[{}]: {message}", std::process::id()).map_err(Error::Write)
            }
        }

        impl Syslog {
            /// # Errors
            /// When no syslog daemon listens: it says so of the path at which one does on this system.
            pub fn connect(facility: Facility) -> io::Result<Self> {
                Self::of(logger(Format(facility))?)
            }

            fn of(logger: Logger<LoggerBackend, Format>) -> io::Result<Self> {
                match &logger.backend {
                    LoggerBackend::Unix(socket) => socket.set_nonblocking(true)?,
                    LoggerBackend::UnixStream(stream) => stream.get_ref().set_nonblocking(true)?,
                    LoggerBackend::Udp(..) | LoggerBackend::Tcp(_) => {} // never made by syslog::unix
                }
                Ok(Syslog(logger))
            }

            /// # Errors
            /// `WouldBlock` when the syslog daemon is slow; another when it has gone.
            pub fn send(&mut self, severity: Severity, message: Arguments<'_>) -> io::Result<()> {
                let sent = match severity {
                    Severity::LOG_ERR => self.0.err(message),
                    Severity::LOG_WARNING => self.0.warning(message),
                    Severity::LOG_INFO => self.0.info(message),
                    _ => self.0.debug(message),
                };
                sent.map_err(plain)
            }
        }

        cfg_if::cfg_if! {
            if #[cfg(target_os = "freebsd")] {
                use std::fs::File;
                use std::os::fd::{AsFd, BorrowedFd};
                use std::os::unix::fs::OpenOptionsExt;
                use std::os::unix::net::UnixDatagram;
                use std::sync::OnceLock;

                /// Where syslogd(8) has its socket, open: in capability mode no path leads there.
                static DIRECTORY: OnceLock<File> = OnceLock::new();

                /// Sees to it that syslogd(8) can be found from inside a sandbox, and returns the directory
                /// that this takes.
                pub(crate) fn keep_in_reach() -> io::Result<BorrowedFd<'static>> {
                    let directory = File::options()
                        .read(true)
                        .custom_flags(libc::O_DIRECTORY)
                        .open("/var/run")?;
                    Ok(DIRECTORY.get_or_init(|| directory).as_fd())
                }

                fn logger(format: Format) -> io::Result<Logger<LoggerBackend, Format>> {
                    let Some(directory) = DIRECTORY.get() else {
                        return one_of(&PATHS, format);
                    };
                    let socket = UnixDatagram::unbound()?;
                    crate::connect_at(directory, &socket, &socket2::SockAddr::unix("log")?)?;
                    Ok(Logger { formatter: format, backend: LoggerBackend::Unix(socket) })
                }
            } else {
                fn logger(format: Format) -> io::Result<Logger<LoggerBackend, Format>> {
                    one_of(&PATHS, format)
                }
            }
        }

        /// A way to the first of `paths` at which a syslog daemon listens.
        fn one_of(paths: &[&str], format: Format) -> io::Result<Logger<LoggerBackend, Format>> {
            let mut first = None;
            for path in paths {
                match syslog::unix_custom(format, path).map_err(plain) {
                    Ok(logger) => return Ok(logger),
                    Err(e) => _ = first.get_or_insert(io::Error::new(e.kind(), format!("{path}: {e}"))),
                }
            }
            Err(first.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
        }

        /// The system's own error, where there is one below.
        fn plain(error: Error) -> io::Error {
            match error {
                Error::Write(e) | Error::Io(e) => e,
                Error::Initialization(inner) => match inner.downcast::<Error>() {
                    Ok(inner) => plain(*inner),
                    Err(other) => io::Error::other(other.to_string()),
                },
            }
        }

        #[cfg(test)]
        mod tests {
            use super::*;
            use std::os::unix::net::UnixDatagram;

            #[test]
            fn the_error_names_the_path_that_counts_and_any_other_will_do() {
                let place = std::env::temp_dir().join(format!("lingerd-syslog-{}", std::process::id()));
                std::fs::create_dir(&place).unwrap();
                let path = |name: &str| place.join(name).to_str().unwrap().to_owned();
                let [missing, stale, live] = ["missing", "stale", "live"].map(path);
                drop(UnixDatagram::bind(&stale).unwrap());
                // Whoever another test starts in this moment has it open for an instant, too.
                while UnixDatagram::unbound().unwrap().connect(&stale).is_ok() {
                    std::thread::yield_now();
                }
                for paths in [[&missing[..], &stale], [&stale, &missing]] {
                    let error = one_of(&paths, Format(Facility::LOG_DAEMON)).err().unwrap();
                    assert!(error.to_string().starts_with(paths[0]), "{error}");
                }
                let syslogd = UnixDatagram::bind(&live).unwrap();
                let paths = [&missing[..], &stale, &live];
                let mut syslog = Syslog::of(one_of(&paths, Format(Facility::LOG_DAEMON)).unwrap()).unwrap();
                syslog.send(Severity::LOG_INFO, format_args!("hello")).unwrap();
                let mut said = [0; 100];
                let count = syslogd.recv(&mut said).unwrap();
                assert!(said[..count].ends_with(b": hello"));
                std::fs::remove_dir_all(place).unwrap();
            }
        }
    }
}
