// SPDX-License-Identifier: BSD-3-Clause

//! The server of lingerd-protocol(7), EXAMPLES, to the letter.

use lingerd_client::Sender;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Answers a request for /N with N bytes.
fn answer(mut conn: &TcpStream) -> io::Result<()> {
    let mut request = [0; 65536];
    let size = conn.read(&mut request)?;
    let request = String::from_utf8_lossy(&request[..size]);
    let path = request.split(' ').nth(1).ok_or(ErrorKind::InvalidData)?;
    let length = path[1..].parse().map_err(io::Error::other)?;
    write!(conn, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n")?;
    conn.write_all(&vec![b'x'; length])
}

/// What the server has to do without lingerd.
fn linger(mut conn: TcpStream) -> io::Result<()> {
    let until = Instant::now() + Duration::from_secs(30);
    conn.set_read_timeout(Some(Duration::from_secs(2)))?;
    while Instant::now() < until && conn.read(&mut [0; 65536])? > 0 {}
    Ok(())
}

fn main() -> io::Result<()> {
    let [path, port] = [1, 2].map(|n| std::env::args().nth(n).unwrap());
    let sender = Sender::new(path)?;
    let listener = TcpListener::bind(format!("127.0.0.1:{port}"))?;
    loop {
        let (conn, _) = listener.accept()?;
        if answer(&conn).is_ok() {
            if let Err(refused) = sender.finish(conn) {
                let _ = linger(refused.socket); // the client has gone
            }
        }
    }
}
