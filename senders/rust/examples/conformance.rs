// SPDX-License-Identifier: BSD-3-Clause

//! A server with the crate, for the suite that any sender passes: tests/conformance of lingerd's repository says what is
//! asked of it.

use lingerd_client::{Part, Sender};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::exit;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, thread};

const PATIENCE: Duration = Duration::from_secs(300);

struct Server {
    sender: Sender,
    listener: TcpListener,
    /// How long a connection is worth, if that is said.
    time: Option<Duration>,
    spool: bool,
}

/// What is asked of it in the environment, or nothing.
fn number(name: &str) -> u64 {
    env::var(name).map_or(0, |value| value.parse().expect(name))
}

/// What a server does without lingerd.
fn linger(mut conn: TcpStream) -> io::Result<()> {
    conn.shutdown(Shutdown::Write)?;
    conn.set_read_timeout(Some(Duration::from_secs(2)))?;
    let until = Instant::now() + Duration::from_secs(30);
    while Instant::now() < until && conn.read(&mut [0; 4096])? > 0 {}
    Ok(())
}

impl Server {
    /// Writes what the client takes; the rest lingerd writes, if it does.
    fn write_or_spool(&self, mut conn: TcpStream, mut response: &[u8]) -> io::Result<Option<TcpStream>> {
        while !response.is_empty() {
            conn.set_nonblocking(true)?;
            let written = conn.write(response);
            conn.set_nonblocking(false)?; // its flags are lingerd's, too, once that has it
            match written {
                Ok(count) => response = &response[count..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if self.sender.may_spool(PATIENCE, Some(conn.as_fd())) {
                        match self.sender.spool(conn, &[Part::Memory(response)], PATIENCE) {
                            Ok(()) => return Ok(None),
                            Err(refused) => conn = refused.socket,
                        }
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Some(conn))
    }

    fn serve(&self, mut conn: TcpStream) -> io::Result<()> {
        let mut request = vec![0; 65536];
        let count = conn.read(&mut request)?;
        let request = String::from_utf8_lossy(&request[..count]);
        let length = request.strip_prefix("GET /").and_then(|rest| rest.split(' ').next());
        let Some(length) = length.and_then(|length| length.parse::<usize>().ok()) else { return Ok(()) };
        let mut response = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").into_bytes();
        response.resize(response.len() + length, b'x');
        if self.spool {
            let Some(whole) = self.write_or_spool(conn, &response)? else { return Ok(()) };
            conn = whole;
        } else {
            conn.write_all(&response)?;
        }
        let given = match self.time {
            Some(time) => self.sender.give_for(conn, time),
            None => self.sender.finish(conn),
        };
        given.or_else(|refused| linger(refused.socket))
    }

    fn serve_one(&self) {
        let served = self.listener.accept().and_then(|(conn, _)| self.serve(conn));
        let _ = served; // the client has gone
    }

    fn serve_all(&self) {
        loop {
            self.serve_one();
        }
    }
}

fn main() {
    if env::var_os("TLS_CERT").is_some() {
        println!("lacks: TLS is a matter of the crate that the server has for it");
        exit(0);
    }
    let port = number("PORT").try_into().expect("PORT");
    let server = Server {
        sender: Sender::new(env::var_os("LINGERD_SOCKET").expect("LINGERD_SOCKET"))
            .expect("a path of a socket"),
        listener: TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("PORT is free"),
        time: Some(number("LINGER_SECONDS")).filter(|&seconds| seconds > 0).map(Duration::from_secs),
        spool: number("SPOOL") > 0,
    };
    let processes = number("PROCESSES");
    if processes > 1 {
        server.serve_one();
    }
    let is_parent = |()| lingerd_platform::detach::fork().expect("fork");
    let _ = (1..processes).map(|_| ()).all(is_parent);
    let server = Arc::new(server);
    for _ in 1..number("THREADS") {
        let server = Arc::clone(&server);
        thread::spawn(move || server.serve_all());
    }
    server.serve_all();
}
