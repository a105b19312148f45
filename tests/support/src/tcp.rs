// SPDX-License-Identifier: BSD-3-Clause

//! TCP connections over loopback: the client's end, and the server's, which is to be handed over.

use crate::PATIENCE;
use lingerd_platform::backend::{Backend, Interest, System, Token};
use lingerd_platform::tcp::Tcp;
use socket2::{Domain, SockRef, Socket, Type};
use std::io::{ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

/// A connection over IPv4: the client's end and the server's.
pub fn connection() -> (TcpStream, TcpStream) {
    connect(&listener(), TcpStream::connect)
}

/// So many connections.
pub fn connections(number: usize) -> (Vec<TcpStream>, Vec<TcpStream>) {
    let listener = listener();
    (0..number).map(|_| connect(&listener, TcpStream::connect)).unzip()
}

/// A connection over IPv6, or `None` where the system has none.
pub fn connection_v6() -> Option<(TcpStream, TcpStream)> {
    match TcpListener::bind("[::1]:0") {
        Ok(listener) => Some(connect(&listener, TcpStream::connect)),
        Err(_) => None,
    }
}

/// A connection whose client has room for little more than `bytes` unread.
pub fn connection_with_small_window(bytes: usize) -> (TcpStream, TcpStream) {
    connect(&listener(), |address| connect_with_window(address, bytes))
}

/// Connects with room for little more than `bytes` unread.
pub fn connect_with_window(address: SocketAddr, bytes: usize) -> std::io::Result<TcpStream> {
    connect_by(Socket::new(Domain::for_address(address), Type::STREAM, None)?, address, bytes)
}

/// The same with the segments of an Ethernet, where the system lets it: over those of the loopback, of 64 kB, a server
/// gets rid of megabytes at once.
pub fn connect_as_from_afar(address: SocketAddr, bytes: usize) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    let _ = socket.set_tcp_mss(1448);
    connect_by(socket, address, bytes)
}

fn connect_by(socket: Socket, address: SocketAddr, bytes: usize) -> std::io::Result<TcpStream> {
    // NetBSD refuses a large one; then it is as large as the system makes it.
    let _ = socket.set_recv_buffer_size(bytes);
    socket.connect(&address.into())?;
    Ok(socket.into())
}

/// A connection on which the client has not read what the server has sent, nor has room for all of it.
pub fn connection_with_full_window() -> (TcpStream, TcpStream) {
    let (client, mut server) = connection_with_small_window(4096);
    server.set_nonblocking(true).unwrap();
    while server.write(&[0; 65536]).is_ok() {}
    (client, server)
}

/// Half-closes the server's end, and waits until the client's system has acknowledged that.
pub fn half_close(server: &TcpStream) {
    server.shutdown(Shutdown::Write).unwrap();
    crate::wait_until("all is acknowledged", || server.is_acknowledged() != Some(false));
}

/// A listener that nobody has connected to yet.
pub fn listener() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

/// Both ends of a connection from that loopback address, or `None` where the system does not have it.
pub fn connection_from(address: Ipv4Addr) -> Option<(TcpStream, TcpStream)> {
    let socket = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let bound = socket.bind(&SocketAddr::from((address, 0)).into());
        bound.ok().map(|()| socket)
    };
    drop(socket()?);
    Some(connect(&listener(), |to| {
        let socket = socket().ok_or(ErrorKind::AddrNotAvailable)?;
        socket.connect(&to.into())?;
        Ok(socket.into())
    }))
}

fn connect(
    listener: &TcpListener,
    how: impl Fn(SocketAddr) -> std::io::Result<TcpStream>,
) -> (TcpStream, TcpStream) {
    let client = how(listener.local_addr().unwrap()).unwrap();
    // No test hangs for ever. The server's end stays as it is: the daemon is to take it untouched.
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.set_write_timeout(Some(PATIENCE)).unwrap();
    (client, listener.accept().unwrap().0)
}

/// Closes `client` with a reset in place of an end of stream.
pub fn reset(client: TcpStream) {
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Waits until the other side's end of stream is there, and leaves all unread.
pub fn wait_for_end(socket: &TcpStream) {
    let mut buffer = [MaybeUninit::uninit(); 4096]; // more than is ever there
    SockRef::from(socket).recv_with_flags(&mut buffer, libc::MSG_PEEK | libc::MSG_WAITALL).unwrap();
}

/// Waits until something has happened to `socket`, an error too, and leaves it to be told again.
pub fn wait_until_readable(socket: &TcpStream) {
    assert!(is_ready(socket, Interest::Read, PATIENCE), "nothing happened to the socket");
}

/// Whether `socket` is, or becomes within `patience`, one that can be read from or written to.
pub fn is_ready(socket: &impl AsFd, interest: Interest, patience: Duration) -> bool {
    let mut ready = Vec::new();
    let mut backend = System::new().unwrap();
    backend.add(&socket, Token(0), interest).unwrap();
    backend.wait(&mut ready, Some(patience)).unwrap();
    !ready.is_empty()
}

/// Everything up to the end of the stream, which must be an end and no reset.
pub fn read_to_end(client: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).expect("the response was cut short");
    bytes
}

/// Some of what is there, whatever signal comes in: with a time-out no system goes on by itself.
pub fn read_some(mut client: impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match client.read(buffer) {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Writes one byte after the other until the connection is gone.
pub fn write_until_gone(client: &mut TcpStream) {
    crate::wait_until("the connection is gone", || match client.write(b"x") {
        Ok(_) => false,
        Err(e) => {
            assert!(is_gone(&e), "{e}");
            true
        }
    });
}

/// Whether that is what a call says when the connection is gone.
pub fn is_gone(error: &std::io::Error) -> bool {
    let kinds = [
        ErrorKind::BrokenPipe,
        ErrorKind::ConnectionReset,
        ErrorKind::ConnectionAborted,
        ErrorKind::NotConnected,
    ];
    // The last is what macOS says while the connection is being taken down.
    kinds.contains(&error.kind()) || error.raw_os_error() == Some(libc::EPROTOTYPE)
}

/// A response that is big, yet fits into a socket's send buffer, if that is made twice its size:
/// 300,000 bytes where the system lets it, but NetBSD's buffers end at 256 kB.
pub fn big_response() -> Vec<u8> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let fits = |&size: &usize| socket.set_send_buffer_size(2 * size).is_ok();
    response([300_000, 100_000].into_iter().find(fits).unwrap())
}

/// A response of `size` bytes, in which every missing or misplaced piece shows.
pub fn response(size: usize) -> Vec<u8> {
    (0..size).map(|n| (n / 251 + n) as u8).collect()
}
