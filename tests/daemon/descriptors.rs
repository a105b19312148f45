// SPDX-License-Identifier: BSD-3-Clause

//! What is no connected TCP socket is refused, counted, and left as it was.

use lingerd_platform::backend::Interest;
use socket2::{Domain, SockRef, Socket, Type};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::daemon::Daemon;
use support::sender::most_descriptors;
use support::{PATIENCE, tcp};

/// Hands `descriptor` over, with a good socket after it in the same message: the one is refused,
/// the other is lingered on.
#[track_caller]
fn assert_refused(descriptor: &impl AsFd) {
    let daemon = Daemon::start(&[]);
    let (client, server) = tcp::connection();
    daemon.sender().send(b"L", &[descriptor.as_fd(), server.as_fd()]);
    drop((client, server));
    daemon.finish("rejected=1 closed=1");
}

#[test]
fn a_regular_file() {
    assert_refused(&File::open(std::env::current_exe().unwrap()).unwrap());
}

#[test]
fn a_directory() {
    assert_refused(&File::open("/").unwrap());
}

#[test]
fn a_device() {
    assert_refused(&File::open("/dev/null").unwrap());
}

#[test]
fn the_ends_of_pipes() {
    let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut writer, mut reader) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    assert_refused(&writer);
    writer.write_all(b"still a pipe").unwrap();
    drop(writer);
    assert_refused(&reader);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "still a pipe");
    child.wait().unwrap();
}

#[test]
fn a_listener_which_goes_on_listening() {
    let listener = tcp::listener();
    let linger = Some(Duration::from_secs(7));
    SockRef::from(&listener).set_linger(linger).unwrap();
    assert_refused(&listener);
    let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    listener.accept().unwrap();
    assert_eq!(SockRef::from(&listener).linger().unwrap(), linger, "its options are its owner's");
}

#[test]
fn udp_whose_datagrams_stay_queued() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(peer.local_addr().unwrap()).unwrap();
    peer.send_to(b"datagram", socket.local_addr().unwrap()).unwrap();
    socket.peek(&mut [0; 8]).unwrap(); // it has arrived
    assert_refused(&socket);
    let mut datagram = [0; 8];
    assert_eq!(socket.recv(&mut datagram).unwrap(), 8);
    assert_eq!(&datagram, b"datagram");
}

#[test]
fn a_unix_stream_which_stays_open() {
    let (mut near, mut far) = UnixStream::pair().unwrap();
    far.write_all(b"there").unwrap();
    assert_refused(&near);
    near.read_exact(&mut [0; 5]).unwrap();
    near.write_all(b"back").unwrap();
    far.read_exact(&mut [0; 4]).unwrap();
}

#[test]
fn a_unix_datagram_socket() {
    let (near, far) = UnixDatagram::pair().unwrap();
    far.send(b"datagram").unwrap();
    assert_refused(&near);
    assert_eq!(near.recv(&mut [0; 8]).unwrap(), 8);
}

#[test]
fn a_socket_that_was_never_connected_and_still_can_be() {
    let listener = tcp::listener();
    for bound in [false, true] {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        if bound {
            socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
        }
        assert_refused(&socket);
        socket.connect(&listener.local_addr().unwrap().into()).unwrap();
    }
}

#[test]
fn a_connect_in_progress_which_goes_on() {
    let Some((listener, queued, mut connecting)) = connect_in_progress() else {
        // No skip: where a full queue does not hold a connect up there is no such socket.
        return println!("no connect stays in progress on this system");
    };
    assert_refused(&connecting);
    for _ in 0..queued.len() {
        listener.accept().unwrap();
    }
    assert!(tcp::is_ready(&connecting, Interest::Write, PATIENCE), "the connect was broken off");
    connecting.set_nonblocking(false).unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    connecting.write_all(b"here").unwrap();
    accepted.read_exact(&mut [0; 4]).unwrap();
}

/// A listener whose queue is full, those in the queue, and one whose connect has to wait.
fn connect_in_progress() -> Option<(TcpListener, Vec<Socket>, TcpStream)> {
    const SOON: Duration = Duration::from_millis(300); // no connect that is let in takes as long
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut queued = Vec::new();
    for _ in 0..16 {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        match socket.connect(&address) {
            Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => return None,
            _ if !tcp::is_ready(&socket, Interest::Write, SOON) => {
                return Some((listener.into(), queued, socket.into()));
            }
            _ if socket.peer_addr().is_ok() => queued.push(socket),
            _ => return None,
        }
    }
    None
}

#[test]
fn the_hand_off_socket_itself() {
    let daemon = Daemon::start(&[]);
    let sender = daemon.sender();
    sender.send(b"L", &[sender.as_fd()]);
    daemon.wait_for("rejected=1 senders=1");
    let (client, server) = tcp::connection();
    drop(client);
    sender.hand_over(server);
    daemon.finish("rejected=1 closed=1");
}

#[test]
fn a_message_full_of_them() {
    let daemon = Daemon::start(&[]);
    let null = File::open("/dev/null").unwrap();
    let most = most_descriptors();
    daemon.sender().send(b"L", &vec![null.as_fd(); most]);
    daemon.finish(&format!("rejected={most}"));
}

#[test]
fn a_tcp_socket_stays_blocking_for_its_sender() {
    let daemon = Daemon::start(&[]);
    let (mut client, mut server) = tcp::connection();
    daemon.sender().send(b"L", &[server.as_fd()]);
    daemon.wait_for("lingering=1");
    let timeout = Duration::from_millis(50);
    server.set_read_timeout(Some(timeout)).unwrap();
    let start = Instant::now();
    assert_eq!(server.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert!(start.elapsed() >= timeout / 2, "O_NONBLOCK, which is shared, was set");
    assert_eq!(tcp::read_to_end(&mut client), b"");
    drop((client, server));
    daemon.finish("closed=1");
}
