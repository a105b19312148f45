// SPDX-License-Identifier: BSD-3-Clause

//! The package's own tests, how it is installed, and servers that use it before a real lingerd.

use lingerd_platform::process;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use support::built::python;
use support::daemon::{Daemon, Site, run};
use support::{built, http, skip, tcp, wait_until};

#[test]
fn its_own_tests_pass() {
    let Some(python) = python() else { return };
    let tests = run(Command::new(python)
        .current_dir(built::project().join("senders/python"))
        .env("PYTHONPATH", "src")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .args(["-W", "error::ResourceWarning", "-m", "unittest", "discover", "-v", "-s", "tests"]));
    assert_eq!(tests.code, Some(0), "{}", tests.stderr);
    assert!(tests.stderr.ends_with("\nOK\n"), "{}", tests.stderr);
}

#[test]
fn it_is_installed_with_its_types_and_needs_nothing() {
    let environment = built::project().join("target/gunicorn-oldest");
    let python = environment.join("bin/python");
    if !python.exists() {
        return skip(&format!("there is no {} ('sh ci/packages check' gets it)", environment.display()));
    }
    let site = Site::new();
    // What builds it writes beside it.
    let copied = run(Command::new("cp")
        .arg("-R")
        .arg(built::project().join("senders/python"))
        .arg(site.path("source")));
    assert_eq!(copied.code, Some(0), "{copied:?}");
    let installed = run(Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"])
        .args(["--no-build-isolation", "--target"])
        .args([site.path("installed"), site.path("source")]));
    assert_eq!(installed.code, Some(0), "{installed:?}");
    let check = "import importlib.metadata as m, importlib.resources as r, lingerd\n\
        assert (r.files('lingerd') / 'py.typed').is_file()\n\
        print(m.version('lingerd'), m.requires('lingerd'), lingerd.Sender().path)";
    let said = run(Command::new(&python)
        .current_dir(site.path(""))
        .env("PYTHONPATH", site.path("installed"))
        .args(["-c", check]));
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(said.stdout, format!("{version} None /var/run/lingerd/lingerd.sock\n"), "{said:?}");
}

#[test]
fn its_types_are_right_on_each_system() {
    let python = built::project().join("target/mypy/bin/python");
    if !python.exists() {
        return skip(&format!("there is no {} ('sh ci/packages check' gets it)", python.display()));
    }
    let site = Site::new();
    for (version, platform) in [("3.9", "linux"), ("3.13", "darwin")] {
        let checked = run(Command::new(&python)
            .current_dir(built::project().join("senders/python"))
            .args([
                "-m",
                "mypy",
                "--strict",
                "--python-version",
                version,
                "--platform",
                platform,
                "--cache-dir",
            ])
            .arg(site.path("cache"))
            .arg("src"));
        assert_eq!(checked.code, Some(0), "{}{}", checked.stdout, checked.stderr);
    }
}

/// A server in Python that prints its port.
struct Server {
    process: Child,
    address: SocketAddr,
}

impl Server {
    fn start(command: &mut Command) -> Self {
        command.env("PYTHONPATH", built::project().join("senders/python/src"));
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().parse::<u16>().unwrap_or_else(|_| panic!("no port: '{line}'"));
        Server { process, address: (Ipv4Addr::LOCALHOST, port).into() }
    }

    /// A client that asks, and does not read yet.
    fn ask(&self, mut client: TcpStream) -> TcpStream {
        client.write_all(b"hello?\n").unwrap();
        client
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = process::kill(self.process.id() as i32, libc::SIGKILL);
        let _ = self.process.wait();
    }
}

#[test]
fn the_server_in_the_readme_lingers_with_lingerd_and_without() {
    let Some(python) = python() else { return };
    let readme = fs::read_to_string(built::project().join("senders/python/README.md")).unwrap();
    let program = readme.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
    let site = Site::new();
    let server = Server::start(Command::new(python).args(["-c", program]).arg(site.socket()));
    let exchange = || {
        let mut client = server.ask(http::connect(server.address));
        assert_eq!(tcp::read_to_end(&mut client), b"hello\n");
        client
    };
    // These it lingers on itself, in threads.
    let held: Vec<_> = (0..3).map(|_| exchange()).collect();
    let lingerd = site.start(&[]);
    wait_until("the daemon is found", || {
        exchange().shutdown(Shutdown::Write).unwrap();
        lingerd.counters()["handed_over"] > 0
    });
    drop(held);
    let held: Vec<_> = (0..10).map(|_| exchange()).collect();
    lingerd.wait_for("lingering=10 senders=1 rejected=0 protocol_errors=0");
    drop(held);
}

#[test]
fn what_a_slow_reader_has_not_got_is_written_by_lingerd() {
    let Some(python) = python() else { return };
    let lingerd = Daemon::start(&[]);
    let (page, file) = (tcp::response(5_000_000), lingerd.site.path("page"));
    fs::write(&file, &page).unwrap();
    let server = Server::start(
        Command::new(python)
            .arg(built::project().join("tests/python/spooler.py"))
            .arg(lingerd.site.socket())
            .arg(&file),
    );
    // One process, which none of them keeps.
    let connect = || http::connect_with_small_window(server.address, 4096);
    let mut clients: Vec<_> = (0..5).map(|_| server.ask(connect())).collect();
    lingerd.wait_for("spooling=5");
    for client in &mut clients {
        assert!(tcp::read_to_end(client) == page);
    }
    lingerd.wait_for("spooling=0 lingering=5 spooled=5 rejected=0 protocol_errors=0");
    drop(clients);
    lingerd.finish("handed_over=5 closed=5 spooled=5");
}
