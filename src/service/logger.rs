// SPDX-License-Identifier: BSD-3-Clause

//! Where log messages go: syslog, or standard error in the foreground.
//!
//! Logging never holds the daemon up: a message that cannot be taken now is dropped and counted,
//! and a syslog daemon that went away is looked for again, at most once a second.

use lingerd_platform::manager;
use lingerd_platform::syslog::{Facility, Severity, Syslog};
use log::{Level, LevelFilter, Log, Metadata, Record};
use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

const NAME: &str = "lingerd";
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Lines that may wait for standard error.
const LINES: usize = 1024;
/// How long they may keep the process from ending, which has ended all else by then: whoever kills it loses them only.
const FLUSH: Duration = Duration::from_secs(5);

static LOGGER: OnceLock<Logger> = OnceLock::new();

struct Logger(Mutex<State>);

struct State {
    sink: Sink,
    /// Messages dropped since one last got through.
    dropped: u64,
}

enum Sink {
    Stderr(Stderr),
    Syslog(Link),
}

/// Standard error may be a terminal that is stopped or a pipe that nobody reads: a thread of its
/// own waits for it.
struct Stderr {
    lines: SyncSender<String>,
    /// Lines given to the thread and not written yet.
    waiting: Arc<AtomicUsize>,
    /// Whether it is the journal.
    journal: bool,
}

/// The way to syslog, which may be down for a while.
struct Link {
    facility: Facility,
    connection: Option<Syslog>,
    tried: Instant,
}

/// Logs to standard error from here on.
///
/// # Errors
/// When the system has no thread to spare.
pub fn to_stderr(level: LevelFilter) -> io::Result<()> {
    start(Sink::Stderr(Stderr::new()?), level);
    Ok(())
}

/// Logs to syslog with `facility` from here on. Returns why syslog cannot be reached now, if so; it
/// is tried again with later messages.
pub fn to_syslog(level: LevelFilter, facility: Facility) -> Option<String> {
    let (connection, trouble) = match Syslog::connect(facility) {
        Ok(connection) => (Some(connection), None),
        Err(e) => (None, Some(e.to_string())),
    };
    start(Sink::Syslog(Link { facility, connection, tried: Instant::now() }), level);
    trouble
}

/// Connects to syslog anew: it may have been restarted.
pub fn reopen() {
    if let Some(logger) = LOGGER.get() {
        if let Sink::Syslog(link) = &mut logger.state().sink {
            link.reconnect();
        }
    }
}

fn start(sink: Sink, level: LevelFilter) {
    let logger = LOGGER.get_or_init(|| Logger(Mutex::new(State { sink, dropped: 0 })));
    // Called once, by main; a second call would change nothing.
    if log::set_logger(logger).is_ok() {
        log::set_max_level(level);
    }
}

impl Logger {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn log(&mut self, level: Level, message: Arguments<'_>) {
        let dropped = self.dropped;
        if dropped > 0
            && self.sink.send(Level::Warn, format_args!("log messages that could not be sent: {dropped}"))
        {
            self.dropped = 0;
        }
        if !self.sink.send(level, message) {
            self.dropped += 1;
        }
    }
}

impl Sink {
    /// Whether the message is out.
    fn send(&mut self, level: Level, message: Arguments<'_>) -> bool {
        match self {
            Sink::Stderr(stderr) => stderr.send(level, message),
            Sink::Syslog(link) => link.send(level, message),
        }
    }
}

impl Stderr {
    fn new() -> io::Result<Self> {
        let (lines, written) = sync_channel::<String>(LINES);
        let waiting = Arc::new(AtomicUsize::new(0));
        let done = Arc::clone(&waiting);
        thread::Builder::new().name("log".to_owned()).spawn(move || {
            for line in written {
                let _ = io::stderr().write_all(line.as_bytes()); // nobody is left to tell
                done.fetch_sub(1, Ordering::Relaxed);
            }
        })?;
        Ok(Stderr { lines, waiting, journal: manager::logs_to_the_journal() })
    }

    fn send(&self, level: Level, message: Arguments<'_>) -> bool {
        // As in syslog's priorities.
        let (priority, word) = match level {
            Level::Error => (3, "error: "),
            Level::Warn => (4, "warning: "),
            Level::Info => (6, ""),
            Level::Debug | Level::Trace => (7, "debug: "),
        };
        let line = match self.journal {
            true => format!("<{priority}>{message}\n"),
            false => format!("{NAME}: {word}{message}\n"),
        };
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let sent = self.lines.try_send(line).is_ok();
        if !sent {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        sent
    }
}

impl Link {
    fn reconnect(&mut self) {
        self.tried = Instant::now();
        self.connection = Syslog::connect(self.facility).ok();
    }

    fn send(&mut self, level: Level, message: Arguments<'_>) -> bool {
        let severity = match level {
            Level::Error => Severity::LOG_ERR,
            Level::Warn => Severity::LOG_WARNING,
            Level::Info => Severity::LOG_INFO,
            Level::Debug | Level::Trace => Severity::LOG_DEBUG,
        };
        // The second time is for a syslog daemon that was restarted, which the first one finds out.
        for _ in 0..2 {
            if self.connection.is_none() && self.tried.elapsed() >= RETRY_AFTER {
                self.reconnect();
            }
            let Some(connection) = &mut self.connection else {
                return false;
            };
            match connection.send(severity, message) {
                Ok(()) => return true,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return false, // it is merely slow
                Err(_) => self.connection = None,
            }
        }
        false
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.state().log(record.level(), *record.args());
        }
    }

    /// Waits until what was logged is out, but not for ever.
    fn flush(&self) {
        let waiting = match &self.state().sink {
            Sink::Stderr(stderr) => Arc::clone(&stderr.waiting),
            Sink::Syslog(_) => return, // each message is out when it is logged
        };
        let start = Instant::now();
        while waiting.load(Ordering::Relaxed) > 0 && start.elapsed() < FLUSH {
            thread::sleep(Duration::from_millis(1));
        }
    }
}
