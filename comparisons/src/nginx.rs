// SPDX-License-Identifier: BSD-3-Clause

//! A real nginx in a directory of its own: one that serves the pages of cruel clients twice, with
//! `lingering_close on` and with `always`; or one in front of other servers, whose responses it buffers.
//!
//! Whoever starts one is told what is missing.

use crate::server::Process;
use crate::torture::Server;
use crate::torture::pages::{self, UPLOAD_LIMIT};
use lingerd_platform::process;
use std::fs;
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use support::apache::{make_certificate, program, put_up, user};
use support::built::project;
use support::daemon::Site;

/// What all its servers have in common; what is not here is as nginx has it by itself, or Debian's package
/// (sendfile).
const CONFIGURATION: &str = "daemon off;
pid nginx.pid;
error_log error_log;
events { worker_connections 16384; }
http {
    access_log off;
    sendfile on;
    tcp_nopush on;
    default_type text/plain;
    keepalive_timeout 0;
    client_body_temp_path temp;
    proxy_temp_path temp;
    fastcgi_temp_path temp;
    uwsgi_temp_path temp;
    scgi_temp_path temp;
    root htdocs;
    ssl_certificate cert.pem;
    ssl_certificate_key key.pem;
";

/// One process, that of root too.
const ALONE: &str = "master_process off;\n";

/// Responses are held in memory, as lingerd's are: by itself nginx has 64 kB for each connection, and writes to a file what
/// is more. There is room for pages of 3 MB; what a response does not fill is not allocated.
const BUFFERS: &str = "    proxy_buffers 400 8k;\n    proxy_busy_buffers_size 64k;\n";

/// A running nginx. Dropping it stops it.
pub struct Nginx {
    /// It.
    pub process: Process,
    /// What it serves, in the order in which it was named.
    pub servers: Vec<Server>,
}

impl Nginx {
    /// One with the pages of cruel clients, with `lingering_close on` and then `always`.
    ///
    /// # Errors
    /// What is missing on this system.
    pub fn try_start() -> Result<Nginx, String> {
        let locations = format!(
            "    client_max_body_size {UPLOAD_LIMIT};\n\
             \x20   location ~ \\.shtml$ {{ ssi on; ssi_types *; }}\n\
             \x20   location = /401.asis {{ client_max_body_size 0; return 401; }}\n\
             \x20   location = /503 {{ client_max_body_size 0; return 503; }}\n"
        );
        let modes = ["on", "always"].map(|mode| format!("    lingering_close {mode};\n{locations}"));
        Self::start(ALONE, "", &modes)
    }

    /// One in front of what serves at `backend`, which keeps its clients' connections alive if it `keeps` them. It has a
    /// worker for each processor, as Debian's package sets it up.
    ///
    /// # Errors
    /// What is missing on this system.
    pub fn try_start_before(backend: SocketAddr, keeps: bool) -> Result<Nginx, String> {
        let keep = if keeps { "    keepalive_timeout 75;\n" } else { "" };
        let pass = format!("{keep}{BUFFERS}    location / {{ proxy_pass http://{backend}; }}\n");
        Self::start(&workers()?, "", &[pass])
    }

    /// One in front of these servers, of which there are four at most: each has one of nginx's for itself, which
    /// keeps connections to it, as nginx's manual has it.
    ///
    /// # Errors
    /// What is missing on this system.
    pub fn try_start_balancing(backends: &[SocketAddr]) -> Result<Nginx, String> {
        let upstreams = backends.iter().enumerate();
        let upstreams =
            upstreams.map(|(n, backend)| format!("upstream pool{n} {{ server {backend}; keepalive 32; }}\n"));
        let pass = (0..backends.len()).map(|n| {
            format!(
                "    keepalive_timeout 75;\n    location / {{ proxy_pass http://pool{n}; proxy_http_version 1.1; \
                 proxy_set_header Connection \"\"; }}\n"
            )
        });
        Self::start(ALONE, &upstreams.collect::<String>(), &pass.collect::<Vec<_>>())
    }

    /// With servers of these lines, of which there are four at most.
    fn start(processes: &str, upstreams: &str, lines: &[String]) -> Result<Nginx, String> {
        let nginx = find()?;
        let servers = |addresses: &[SocketAddr]| -> Vec<Server> {
            lines.iter().zip(addresses.chunks(2)).map(|(_, pair)| server(pair[0], pair[1])).collect()
        };
        // It writes its pid when all its sockets are open.
        let (process, addresses) =
            Process::try_start(&nginx, "nginx.pid", |site, addresses: [SocketAddr; 8]| {
                let servers = servers(&addresses);
                let blocks = servers.iter().zip(lines).map(|(server, lines)| server_lines(server, lines));
                write(site, processes, &(upstreams.to_owned() + &blocks.collect::<String>()))?;
                let path = |name| site.path(name).to_string_lossy().into_owned();
                Ok(vec!["-p".to_owned(), path(""), "-c".to_owned(), path("nginx.conf")])
            })?;
        Ok(Nginx { process, servers: servers(&addresses) })
    }
}

/// Where it is.
///
/// # Errors
/// It is missing on this system.
pub fn find() -> Result<PathBuf, String> {
    // Where ci/packages unpacks it.
    let unpacked = project().join("target/nginx/usr/sbin/nginx");
    program("NGINX", &["nginx", &unpacked.to_string_lossy()])
}

/// On both addresses, and on ::1 with the same port as the first, if there is IPv6.
fn server(plain: SocketAddr, tls: SocketAddr) -> Server {
    let v6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    let v6 = v6.then(|| SocketAddr::new(Ipv6Addr::LOCALHOST.into(), plain.port()));
    Server { plain, v6, tls }
}

/// Workers of root's are another's.
fn workers() -> Result<String, String> {
    let user =
        if process::effective_uid() == 0 { format!("user {};\n", user()?.name) } else { String::new() };
    Ok(format!("worker_processes auto;\n{user}"))
}

/// Writes the configuration with these servers, the pages and the certificate into `site`.
fn write(site: &Site, processes: &str, servers: &str) -> Result<(), String> {
    make_certificate(site)?;
    let documents = site.path("htdocs");
    fs::create_dir(&documents).unwrap();
    for (name, content) in pages::pages() {
        put_up(&documents.join(name), &content, 0o644);
    }
    fs::write(site.path("nginx.conf"), format!("{processes}{CONFIGURATION}{servers}}}\n")).unwrap();
    Ok(())
}

fn server_lines(server: &Server, lines: &str) -> String {
    let v6 = server.v6.map_or(String::new(), |v6| format!("    listen {v6} backlog=4096;\n"));
    format!(
        "server {{\n    listen {} backlog=4096;\n{v6}    listen {} ssl backlog=4096;\n{lines}}}\n",
        server.plain, server.tls
    )
}
