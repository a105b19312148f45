// SPDX-License-Identifier: BSD-3-Clause

//! A real nginx in a directory of its own, which serves the pages of cruel clients twice: with
//! `lingering_close on` and with `always`.
//!
//! Whoever starts one is told what is missing.

use crate::torture::Server;
use crate::torture::pages::{self, UPLOAD_LIMIT};
use lingerd_platform::process;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::process::Child;
use std::sync::Arc;
use support::apache::{free_addresses, guarded, make_certificate, program, put_up};
use support::built::project;
use support::daemon::Site;
use support::wait_until;

/// What all its servers have in common. It is one process, that of root too.
const CONFIGURATION: &str = "daemon off;
master_process off;
pid nginx.pid;
error_log error_log;
events { worker_connections 16384; }
http {
    access_log off;
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

/// A running nginx. Dropping it stops it.
pub struct Nginx {
    site: Arc<Site>,
    child: Child,
    /// With `lingering_close on`.
    pub on: Server,
    /// With `lingering_close always`.
    pub always: Server,
}

impl Nginx {
    /// Starts it and waits until it serves.
    ///
    /// # Errors
    /// What is missing on this system.
    pub fn try_start() -> Result<Nginx, String> {
        // Where ci/packages unpacks it.
        let unpacked = project().join("target/nginx/usr/sbin/nginx");
        let nginx = program("NGINX", &["nginx", &unpacked.to_string_lossy()])?;
        // It cannot choose a port by itself, so that another process may take it first.
        for _ in 0..10 {
            let [on, on_tls, always, always_tls] = free_addresses(Ipv4Addr::LOCALHOST.into());
            let (on, always) = (server(on, on_tls), server(always, always_tls));
            let site = Site::new();
            write(&site, &[("on", on), ("always", always)])?;
            let child = guarded(&nginx, &site)
                .arg("-p")
                .arg(site.path(""))
                .arg("-c")
                .arg(site.path("nginx.conf"))
                .spawn()
                .map_err(|e| format!("sh: {e}"))?;
            let mut nginx = Nginx { site, child, on, always };
            // It is written when all its sockets are open.
            wait_until("nginx serves", || nginx.site.path("nginx.pid").exists() || nginx.has_ended());
            if !nginx.has_ended() {
                return Ok(nginx);
            }
            let said = fs::read_to_string(nginx.site.path("stderr")).unwrap();
            assert!(said.contains("Address already in use"), "nginx does not start:\n{said}");
        }
        panic!("there is no free port for nginx");
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = process::kill(self.child.id() as i32, libc::SIGTERM);
        let _ = self.child.wait();
    }
}

/// On both addresses, and on ::1 with the same port as the first, if there is IPv6.
fn server(plain: SocketAddr, tls: SocketAddr) -> Server {
    let v6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    let v6 = v6.then(|| SocketAddr::new(Ipv6Addr::LOCALHOST.into(), plain.port()));
    Server { plain, v6, tls }
}

/// Writes the configuration, the pages and the certificate into `site`.
fn write(site: &Site, servers: &[(&str, Server)]) -> Result<(), String> {
    make_certificate(site)?;
    let documents = site.path("htdocs");
    fs::create_dir(&documents).unwrap();
    for (name, content) in pages::pages() {
        put_up(&documents.join(name), &content, 0o644);
    }
    let servers: String = servers.iter().map(|(mode, server)| server_lines(mode, server)).collect();
    fs::write(site.path("nginx.conf"), format!("{CONFIGURATION}{servers}}}\n")).unwrap();
    Ok(())
}

fn server_lines(mode: &str, server: &Server) -> String {
    let v6 = server.v6.map_or(String::new(), |v6| format!("    listen {v6} backlog=4096;\n"));
    format!(
        "server {{\n    listen {} backlog=4096;\n{v6}    listen {} ssl backlog=4096;\n\
         \x20   lingering_close {mode};\n    client_max_body_size {UPLOAD_LIMIT};\n\
         \x20   location ~ \\.shtml$ {{ ssi on; ssi_types *; }}\n\
         \x20   location = /401.asis {{ client_max_body_size 0; return 401; }}\n\
         \x20   location = /503 {{ client_max_body_size 0; return 503; }}\n}}\n",
        server.plain, server.tls
    )
}
