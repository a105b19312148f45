// SPDX-License-Identifier: BSD-3-Clause

//! A real gunicorn in a directory of its own, as it comes or with lingerd's workers; and what people put before it.
//!
//! Knows which processes belong to one, and must not know which one ought to win.

use crate::machine::{self, version};
use crate::nginx::{self, Nginx};
use crate::server::Process;
use crate::torture::Server;
use crate::torture::pages;
use crate::weigh;
use serde_json::Value;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use support::apache::make_certificate;
use support::built::project;
use support::daemon::{Daemon, Site};
use support::tcp;

/// What it serves.
const APPLICATION: &str = include_str!("gunicorn.py");

/// gunicorn's own kinds of workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worker {
    /// One client after the other.
    Sync,
    /// So many threads.
    Threads(usize),
}

impl Worker {
    /// What gunicorn calls it.
    pub fn name(self) -> &'static str {
        match self {
            Worker::Sync => "sync",
            Worker::Threads(_) => "gthread",
        }
    }

    /// What goes into the configuration, with lingerd and without.
    fn lines(self, with_lingerd: bool) -> String {
        let (class, threads) = match self {
            Worker::Sync => ("SyncWorker", 1),
            Worker::Threads(threads) => ("ThreadWorker", threads),
        };
        let class = if with_lingerd { format!("lingerd.gunicorn.{class}") } else { self.name().to_owned() };
        format!("worker_class = '{class}'\nthreads = {threads}\n")
    }
}

/// A running gunicorn. Dropping it stops it.
pub struct Gunicorn {
    process: Process,
    /// Where it listens: over IPv4, and over IPv6 if there is any.
    pub addresses: Vec<SocketAddr>,
}

impl Gunicorn {
    /// One with so many workers, whose lingerd is there if a path is given; it speaks TLS, and nothing else, if it
    /// is to.
    ///
    /// # Errors
    /// What is missing on this system.
    pub fn try_start(
        worker: Worker,
        workers: usize,
        lingerd: Option<&Path>,
        tls: bool,
    ) -> Result<Gunicorn, String> {
        let program = find()?;
        let lines = worker.lines(lingerd.is_some());
        let (process, []) = Process::try_start(&program, "addresses", |site, []| {
            let mut configuration = configuration(site) + &lines + &format!("workers = {workers}\n");
            if let Some(socket) = lingerd {
                configuration += &format!("raw_env = ['LINGERD_SOCKET={}']\n", socket.display());
            }
            if tls {
                make_certificate(site)?;
                configuration += "keyfile = 'key.pem'\ncertfile = 'cert.pem'\n";
            }
            fs::write(site.path("gunicorn.conf.py"), configuration).unwrap();
            fs::write(site.path("application.py"), APPLICATION).unwrap();
            fs::create_dir(site.path("pages")).unwrap();
            for (name, content) in pages::pages() {
                // Nobody looks for directives in it.
                let content = if name == "page.shtml" { tcp::response(pages::PAGE) } else { content };
                fs::write(site.path("pages").join(name), content).unwrap();
            }
            Ok(vec!["-c".to_owned(), site.path("gunicorn.conf.py").display().to_string()])
        })?;
        let said = process.read("addresses");
        let addresses = said.lines().map(|line| line.parse().expect("an address")).collect();
        Ok(Gunicorn { process, addresses })
    }

    /// The leader of its process group.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Where cruel clients find it, and the other one, which speaks TLS.
    pub fn server(&self, tls: &Gunicorn) -> Server {
        Server { plain: self.addresses[0], v6: self.addresses.get(1).copied(), tls: tls.addresses[0] }
    }
}

/// Where it is.
fn find() -> Result<PathBuf, String> {
    let program = project().join("target/gunicorn/bin/gunicorn");
    if !program.exists() {
        return Err(format!("there is no {} ('sh ci/packages gunicorn' gets it)", program.display()));
    }
    Ok(program)
}

/// The machine, and the versions of what the set-ups are made of.
///
/// # Errors
/// What is missing on this system.
pub fn machine() -> Result<Value, String> {
    let gunicorn = find()?;
    Ok(machine::machine(&[
        ("gunicorn", version(&gunicorn, "--version")),
        ("python", version(&gunicorn.with_file_name("python"), "--version")),
        ("nginx", version(&nginx::find()?, "-v")),
    ]))
}

/// What all have in common; what is not here is as gunicorn has it by itself.
fn configuration(site: &Site) -> String {
    let package = project().join("senders/python/src");
    format!(
        "import os, socket, sys
sys.path.insert(0, {package:?})
sys.dont_write_bytecode = True
chdir = {directory:?}
wsgi_app = 'application:app'
preload_app = True
bind = ['127.0.0.1:0']
try:
    socket.create_server(('::1', 0), family=socket.AF_INET6).close()
    bind.append('[::1]:0')
except OSError:
    pass
backlog = 4096
graceful_timeout = 1
control_socket_disable = True

def when_ready(server):
    with open('addresses.new', 'w') as file:
        for each in server.LISTENERS:
            host, port = each.getsockname()[:2]
            print(f'[{{host}}]:{{port}}' if ':' in host else f'{{host}}:{{port}}', file=file)
    os.rename('addresses.new', 'addresses')

",
        directory = site.path("")
    )
}

/// What is set up before it, or with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Stock,
    /// lingerd.
    Lingerd,
    /// nginx in front, which buffers responses, and lingers.
    Nginx,
}

impl Kind {
    /// What a report calls it.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Stock => "stock",
            Kind::Lingerd => "lingerd",
            Kind::Nginx => "nginx",
        }
    }

    /// What a table calls it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Stock => "stock",
            Kind::Lingerd => "with lingerd",
            Kind::Nginx => "nginx in front",
        }
    }
}

/// A whole set-up. Dropping it stops it.
pub struct SetUp {
    /// Where clients go.
    pub address: SocketAddr,
    // In the order in which they are stopped.
    nginx: Option<Nginx>,
    gunicorn: Gunicorn,
    lingerd: Option<Daemon>,
}

/// What lingerd may hold for all clients of a comparison, in MB.
const ROOM: &str = "8192";

impl SetUp {
    /// Starts one with so many workers.
    ///
    /// # Errors
    /// What is missing on this system.
    pub fn try_start(kind: Kind, worker: Worker, workers: usize) -> Result<SetUp, String> {
        let lingerd = (kind == Kind::Lingerd).then(|| Site::new().start_as_it_is(&["-M", ROOM]));
        let socket = lingerd.as_ref().map(|daemon| daemon.site.socket());
        let gunicorn = Gunicorn::try_start(worker, workers, socket.as_deref(), false)?;
        let mut address = gunicorn.addresses[0];
        let mut nginx = None;
        if kind == Kind::Nginx {
            address = nginx.insert(Nginx::try_start_before(address, false)?).servers[0].plain;
        }
        Ok(SetUp { address, nginx, gunicorn, lingerd })
    }

    /// CPU seconds of all its processes, to now; not a number where the system does not tell them.
    pub fn cpu(&self) -> f64 {
        let nginx = self.nginx.iter().map(|nginx| nginx.process.pid());
        let groups = std::iter::once(self.gunicorn.pid()).chain(nginx).map(weigh::group_cpu);
        let lingerd = self.lingerd.iter().map(|daemon| weigh::cpu(daemon.pid));
        groups.chain(lingerd).sum::<Option<f64>>().unwrap_or(f64::NAN)
    }
}
