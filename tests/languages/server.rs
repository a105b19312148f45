// SPDX-License-Identifier: BSD-3-Clause

//! The servers, and how each is started.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use support::daemon::{Site, run};
use support::server::{Leaving, Running};
use support::{built, eventually};

/// A server, and what it can do.
pub struct Server {
    /// For people.
    pub name: &'static str,
    /// What is not there of what it needs, for people; `None` if it can be started.
    pub missing: fn() -> Option<String>,
    /// Starts it with one worker, at an address or a path.
    command: fn(&str) -> Command,
    /// Whether it hands over what a client is slow to read.
    pub spools: bool,
    /// With these a worker ends after fifteen requests.
    pub fifteen_requests: Option<&'static [&'static str]>,
    /// Whether it has new workers at SIGHUP.
    pub reloads: Reloads,
}

/// What becomes of clients at SIGHUP.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Reloads {
    /// Nobody notices.
    Well,
    /// A worker of Net::Server ends also in the moment in which accept(2) has returned, and resets that client.
    WhenIdle,
    /// It has other ways.
    Never,
}

pub const SERVERS: [Server; 4] = [
    Server {
        name: "Unicorn",
        missing: || without("unicorn", &["--version"]),
        command: unicorn,
        spools: true,
        fifteen_requests: None,
        reloads: Reloads::Well,
    },
    Server {
        name: "Starman",
        missing: || {
            without("starman", &["-v"]).or_else(|| {
                without("perl", &["-MSocket::MsgHdr", "-e1"]).map(|_| "Socket::MsgHdr".to_owned())
            })
        },
        command: starman,
        spools: true,
        fifteen_requests: Some(&["--max-requests", "15"]),
        reloads: Reloads::WhenIdle,
    },
    Server {
        name: "uWSGI",
        missing: || uwsgi_plugin().is_none().then(|| "uwsgi-core, or no gcc".to_owned()),
        command: uwsgi,
        spools: false,
        fifteen_requests: Some(&["--max-requests", "15", "--min-worker-lifetime", "0"]),
        reloads: Reloads::Well,
    },
    Server {
        name: "Pitchfork",
        missing: || without("pitchfork", &["--version"]),
        command: pitchfork,
        spools: true,
        fifteen_requests: None,
        reloads: Reloads::Never,
    },
];

/// The program, unless it can be run.
pub fn without(program: &str, arguments: &[&str]) -> Option<String> {
    let said = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    (!said.is_ok_and(|said| said.status.success())).then(|| program.to_owned())
}

fn here(name: &str) -> PathBuf {
    built::project().join("tests/languages").join(name)
}

/// What is in a folder of senders/.
pub fn sender(path: &str) -> PathBuf {
    built::project().join("senders").join(path)
}

fn unicorn(bind: &str) -> Command {
    let mut command = Command::new("unicorn");
    command.env("RUBYLIB", sender("ruby/lib")).env("RUBYOPT", "-W:no-deprecated");
    command.arg("-c").arg(here("unicorn.conf.rb")).args(["-E", "deployment", "-l", bind]).arg(here("app.ru"));
    command
}

fn pitchfork(bind: &str) -> Command {
    let mut command = Command::new("pitchfork");
    command.env("RUBYLIB", sender("ruby/lib"));
    command
        .args(["-E", "deployment"])
        .arg("-c")
        .arg(here("pitchfork.conf.rb"))
        .args(["-l", bind])
        .arg(here("app.ru"));
    command
}

fn starman(bind: &str) -> Command {
    let mut command = Command::new("starman");
    command.env("PERL5LIB", sender("perl/lib"));
    // By itself it has patience for five seconds.
    command.args(["-s", "Starman::Lingerd", "--workers", "1", "--read-timeout", "600", "--listen", bind]);
    command.arg(here("app.psgi"));
    command
}

/// The plugin, built as whoever has uWSGI builds it; `None` where that is not.
fn uwsgi_plugin() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let build = || {
        if without("uwsgi-core", &["--version"]).or_else(|| without("gcc", &["--version"])).is_some() {
            return None;
        }
        let directory = built::scratch().join(format!("uwsgi-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let said = run(Command::new("uwsgi-core")
            .current_dir(&directory)
            .env("PYTHON", "python3")
            .arg("--build-plugin")
            .arg(sender("uwsgi")));
        let plugin = directory.join("lingerd_plugin.so");
        assert!(plugin.exists(), "{said:?}");
        assert!(!said.stderr.contains("warning"), "{said:?}");
        Some(plugin)
    };
    BUILT.get_or_init(build).as_deref()
}

fn uwsgi(bind: &str) -> Command {
    let mut command = Command::new("uwsgi-core");
    command.args(["--plugin", "python3", "--plugin"]).arg(uwsgi_plugin().unwrap());
    command.args(["--master", "--lazy-apps", "--processes", "1", "--http-socket", bind]);
    // And this one for four, with those who read slowly, too.
    command.args(["--socket-timeout", "600"]);
    command.arg("--pythonpath").arg(built::project().join("tests/python")).args(["--module", "app:app"]);
    command
}

impl Server {
    /// Starts it, and waits until it listens.
    pub fn start(&'static self, site: &Arc<Site>, options: &[&str]) -> Running {
        self.start_at(site, "", options)
    }

    /// The same at the path of a Unix socket.
    pub fn start_at(&'static self, site: &Arc<Site>, path: &str, options: &[&str]) -> Running {
        self.run(site, path, &site.socket(), options)
    }

    /// The same with lingerd elsewhere.
    pub fn start_with(&'static self, site: &Arc<Site>, lingerd: &str) -> Running {
        self.run(site, "", Path::new(lingerd), &[])
    }

    fn run(&'static self, site: &Arc<Site>, path: &str, lingerd: &Path, options: &[&str]) -> Running {
        // Not all can choose a port themselves, so that another process may take it first.
        for _ in 0..10 {
            let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
            let bind = if path.is_empty() { address.to_string() } else { path.to_owned() };
            let log = fs::File::create(site.path("server.log")).unwrap();
            let child = (self.command)(&bind)
                .current_dir(site.path(""))
                .env("LINGERD_SOCKET", lingerd)
                .env("HOME", site.path(""))
                .env("PYTHONDONTWRITEBYTECODE", "1")
                .args(options)
                // In a group of its own, with its workers and whoever takes over from it.
                .process_group(0)
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .unwrap();
            // Where it closes without lingerd, it resets who says something after that.
            let mut running = Running::new(child, address, site.path("server.log"), Leaving::MayBeReset);
            let listens = eventually(|| {
                if running.child.try_wait().unwrap().is_some() {
                    return Ok(false);
                }
                let connected = if path.is_empty() {
                    TcpStream::connect(address).map(drop)
                } else {
                    UnixStream::connect(path).map(drop)
                };
                connected.map(|()| true).map_err(|e| format!("{} does not listen: {e}", self.name))
            });
            if listens {
                return running;
            }
            assert!(running.log().contains("in use"), "{} has ended: {}", self.name, running.log());
        }
        panic!("there is no free port for {}", self.name);
    }
}
