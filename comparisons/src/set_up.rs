// SPDX-License-Identifier: BSD-3-Clause

//! What people put together so that clients do not keep all workers waiting, each as one would install it: as a
//! whole it serves at one address, and one can ask what it takes.
//!
//! Knows which processes belong to one, and must not know which one ought to win.

use crate::fpm::{self, Fpm};
use crate::machine::{self, version};
use crate::nginx::{self, Nginx};
use crate::torture::{Server, pages};
use crate::weigh::{self, Memory, Place};
use serde_json::Value;
use std::path::PathBuf;
use support::apache::{self, Apache, Mpm, Setup};
use support::daemon::{Daemon, Site};

/// The set-ups there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Apache prefork as it comes.
    Stock,
    /// With `SendBufferSize 1048576`.
    LargeBuffer,
    /// With nginx in front, which buffers responses.
    Nginx,
    /// Apache event before php-fpm.
    Event,
    /// Apache prefork with lingerd, and `LingerdSpool Off`.
    WithoutSpool,
    /// Apache prefork with `KeepAlive Off`, where others keep connections alive.
    KeepAliveOff,
    /// Apache prefork with lingerd, as it is for such clients: with `LingerdPark On` where they keep their connections,
    /// and with `LingerdHead On` too where they are slow to ask.
    Lingerd,
}

impl Kind {
    /// What there is against slow readers.
    pub const SLOW_READERS: [Kind; 6] =
        [Kind::Stock, Kind::LargeBuffer, Kind::Nginx, Kind::Event, Kind::WithoutSpool, Kind::Lingerd];

    /// Against clients that keep their connections.
    pub const KEPT: [Kind; 5] = [Kind::Stock, Kind::KeepAliveOff, Kind::Event, Kind::Nginx, Kind::Lingerd];

    /// Against each wait of a worker: as it comes, two that people put in its place, and lingerd.
    pub const EACH_WAIT: [Kind; 4] = [Kind::Stock, Kind::Nginx, Kind::Event, Kind::Lingerd];

    /// Against slow heads of requests.
    pub const SLOW_HEADS: [Kind; 4] = [Kind::Stock, Kind::Event, Kind::Nginx, Kind::Lingerd];

    /// What a command line calls it.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Stock => "stock",
            Kind::LargeBuffer => "buffer",
            Kind::Nginx => "nginx",
            Kind::Event => "event",
            Kind::WithoutSpool => "unspooled",
            Kind::KeepAliveOff => "off",
            Kind::Lingerd => "lingerd",
        }
    }

    /// What a table calls it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Stock => "Apache prefork",
            Kind::LargeBuffer => "SendBufferSize 1 MiB",
            Kind::Nginx => "nginx in front",
            Kind::Event => "event, php-fpm",
            Kind::WithoutSpool => "lingerd, no spool",
            Kind::KeepAliveOff => "KeepAlive Off",
            Kind::Lingerd => "lingerd",
        }
    }
}

/// Which clients it is set up for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Those that ask once on a connection. None is kept alive.
    Once,
    /// Those that read slowly, with TLS too. No connection is kept alive.
    SlowReaders,
    /// Those that keep their connections, as long as the server does by itself.
    Kept,
    /// Those that are slow to send the head of their request, with the time for it that Debian sets. No connection
    /// is kept alive.
    SlowHeads,
}

impl Clients {
    /// Apache for them.
    fn set_up(self, setup: Setup, kind: Kind) -> Setup {
        // A second port would cost each that has no use for it.
        let setup = if self == Clients::SlowReaders { setup.tls() } else { setup };
        match (self, kind) {
            (Clients::Once | Clients::SlowReaders, _) | (Clients::Kept, Kind::KeepAliveOff) => setup,
            (Clients::Kept, Kind::Lingerd) => setup.with("KeepAlive On\nLingerdPark On"),
            // By itself it keeps 450 connections, and others wait until it accepts them. Slow readers are bound by the
            // processes of php-fpm that they hold: with this they have the same rate.
            (Clients::Kept, Kind::Event) => setup.with("KeepAlive On\nAsyncRequestWorkerFactor 60"),
            (Clients::Kept, _) => setup.with("KeepAlive On"),
            (Clients::SlowHeads, _) => {
                let setup = setup.modules(&["reqtimeout"]).with(READ_TIMEOUT);
                if kind == Kind::Lingerd { setup.with("LingerdPark On\nLingerdHead On") } else { setup }
            }
        }
    }
}

/// As Debian has it.
const READ_TIMEOUT: &str =
    "RequestReadTimeout header=20-40,minrate=500\nRequestReadTimeout body=10,minrate=500";

/// The machine, and the versions of what the set-ups are made of; nothing for what is missing, which who needs it says.
pub fn machine() -> Value {
    let of =
        |program: Result<PathBuf, String>| program.map_or_else(|_| String::new(), |it| version(&it, "-v"));
    machine::machine(&[
        ("apache", of(apache::httpd().map(PathBuf::from))),
        ("nginx", of(nginx::find())),
        ("php", of(fpm::find())),
    ])
}

/// A running one. Dropping it stops it.
pub struct SetUp {
    /// Where clients go.
    pub server: Server,
    // In the order in which they are stopped.
    nginx: Option<Nginx>,
    apache: Apache,
    fpm: Option<Fpm>,
    /// The lingerd of those that have one.
    pub lingerd: Option<Daemon>,
}

/// Children and threads of Debian's event.
const EVENT: (usize, usize) = (6, 25);

/// What lingerd may hold for all clients of a comparison, in MB.
const ROOM: &str = "8192";

impl SetUp {
    /// Starts one with so many workers that make pages.
    ///
    /// # Errors
    /// What is missing on this system.
    pub fn try_start(kind: Kind, clients: Clients, workers: usize) -> Result<SetUp, String> {
        let setup = |mpm| clients.set_up(Setup::new(mpm), kind);
        let prefork = || setup(Mpm::Prefork).workers(workers).php();
        let with_lingerd = |daemon: &Daemon| prefork().lingerd(&daemon.site.socket());
        let daemon = || Site::new().start_as_it_is(&["-m", "0666", "-M", ROOM]);
        let (mut fpm, mut nginx, mut lingerd) = (None, None, None);
        let apache = match kind {
            Kind::Stock | Kind::KeepAliveOff | Kind::Nginx => prefork(),
            Kind::LargeBuffer => prefork().with("SendBufferSize 1048576"),
            Kind::Event => {
                let fpm = fpm.insert(Fpm::try_start(workers)?);
                let setup = setup(Mpm::Event).children(EVENT.0).workers(EVENT.1);
                setup.modules(&["proxy", "proxy_fcgi"]).with(&format!(
                    "<FilesMatch \\.php$>\nSetHandler \"proxy:unix:{}|fcgi://localhost\"\n</FilesMatch>",
                    fpm.socket.display()
                ))
            }
            Kind::WithoutSpool => with_lingerd(lingerd.insert(daemon())).with("LingerdSpool Off"),
            Kind::Lingerd => with_lingerd(lingerd.insert(daemon())),
        }
        .try_start()?;
        let mut server = pages::server(&apache);
        if kind == Kind::Nginx {
            server =
                nginx.insert(Nginx::try_start_before(apache.address, clients == Clients::Kept)?).servers[0];
        }
        Ok(SetUp { server, nginx, apache, fpm, lingerd })
    }

    /// Puts a file up.
    pub fn publish(&self, name: &str, content: &[u8]) {
        self.apache.publish(name, content);
    }

    /// The leaders of its process groups.
    fn groups(&self) -> impl Iterator<Item = i32> {
        let fpm = self.fpm.iter().map(|fpm| fpm.process.pid());
        let nginx = self.nginx.iter().map(|nginx| nginx.process.pid());
        std::iter::once(self.apache.pid()).chain(fpm).chain(nginx)
    }

    /// CPU seconds of all its processes, to now; not a number where the system does not tell them.
    pub fn cpu(&self) -> f64 {
        let groups = self.groups().map(weigh::group_cpu);
        let lingerd = self.lingerd.iter().map(|daemon| weigh::cpu(daemon.pid));
        groups.chain(lingerd).sum::<Option<f64>>().unwrap_or(f64::NAN)
    }

    /// All its memory.
    pub fn memory(&self) -> Memory {
        let lingerd = self.lingerd.iter().map(|daemon| daemon.pid);
        let pids: Vec<_> = self.groups().flat_map(weigh::members).chain(lingerd).collect();
        let apache = self.apache.address.port();
        let mut places = vec![Place::Tcp(self.server.plain.port()), Place::Tcp(self.server.tls.port())];
        places.extend(self.nginx.iter().map(|_| Place::Tcp(apache)));
        places.extend(self.fpm.iter().map(|fpm| Place::Unix(&fpm.socket)));
        weigh::memory(&pids, &places)
    }

    /// How many connections its workers hold, which make pages: as long as that a worker cannot make another.
    pub fn held(&self) -> usize {
        let (leader, place) = match &self.fpm {
            Some(fpm) => (fpm.process.pid(), Place::Unix(&fpm.socket)),
            None => (self.apache.pid(), Place::Tcp(self.apache.address.port())),
        };
        weigh::held(&weigh::members(leader), place)
    }
}
