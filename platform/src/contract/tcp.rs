// SPDX-License-Identifier: BSD-3-Clause

//! The contract of [`Tcp`].

use super::{Content, Peer, Piece, Received, Socket, Stage, Stranger, Waits};
use crate::backend::{Backend, Interest, Token};
use crate::content::Content as _;
use crate::tcp::{DISCARD_BYTES, OwnEnd, TELLS_ENDED, Tcp};
use std::io::ErrorKind;
use std::time::Duration;

/// Makes tests of all of them on a stage.
macro_rules! tcp_tests {
    ($stage:expr) => {
        $crate::contract::played! { $crate::contract::tcp, $stage;
            only_tcp_is_tcp
            a_connection_that_was_reset_is_still_tcp
            a_second_half_close_leaves_the_receiving_side_alone
            discards_until_the_end
            a_discard_takes_no_more_than_its_bytes
            what_is_looked_at_is_still_there
            the_end_can_be_told_before_all_is_read
            who_looks_sees_the_end_and_what_is_gone
            what_came_before_a_reset_can_be_told_from_the_reset
            a_reset_socket_differs_from_one_never_connected
            tells_whether_all_is_acknowledged_the_fin_too
            tells_how_far_this_end_is_closed_or_nothing
            tells_whether_something_is_unread
            a_notice_in_the_error_queue_keeps_a_socket_ready_until_it_is_drained
            the_peer_is_the_client_until_it_is_gone
            what_is_not_connected_has_no_peer
            a_close_delivers_what_is_queued
            a_close_with_something_unread_is_a_reset
            a_close_aborts_nothing_whatever_was_set_and_a_drop_leaves_it_set
            a_copy_outlives_a_close
            what_is_sent_arrives_and_where_there_is_no_room_it_says_so
            what_is_gone_takes_nothing_more
            what_was_sent_is_unacknowledged_until_it_is_read
            the_time_that_a_sender_gives_is_told_and_no_close_takes_it
            a_reset_at_close_is_one_until_that_is_taken_back
        }
    };
}
pub(crate) use tcp_tests;

/// A connection with its server's end as the daemon has it, and nobody else.
fn connected<S: Stage>(stage: &mut S) -> (S::Peer, Socket<S>) {
    let (mut peer, received) = stage.connection();
    peer.let_go();
    (peer, socket::<S>(received))
}

fn socket<S: Stage>(received: Received<S>) -> Socket<S> {
    Socket::<S>::of(received).ok().expect("it is TCP")
}

/// Waits until there is something to read, be it an error: not every system's loopback delivers before
/// the call that sends returns.
fn readable<S: Stage>(stage: &mut S, socket: &Socket<S>) {
    let mut backend = stage.backend();
    backend.add(socket, Token(0), Interest::Read).unwrap();
    let mut ready = Vec::new();
    while ready.is_empty() {
        backend.wait(&mut ready, None).unwrap();
    }
    backend.remove(socket).unwrap();
}

pub fn only_tcp_is_tcp<S: Stage>(stage: &mut S) {
    let (_peer, received) = stage.connection();
    assert!(Socket::<S>::of(received).is_ok());
    for (what, is_tcp) in [
        (Stranger::Listener, true),
        (Stranger::Unconnected, true),
        (Stranger::Udp, false),
        (Stranger::Unix, false),
        (Stranger::File, false),
    ] {
        let known = Socket::<S>::of(stage.stranger(what)).map(|_| ());
        let lingering = Socket::<S>::of_lingering(stage.stranger(what)).map(|(_, end)| {
            assert_eq!(end, OwnEnd::Unknown, "{what:?}");
        });
        for taken in [known, lingering] {
            assert_eq!(taken.is_ok(), is_tcp, "{what:?}");
            if let Err(received) = taken {
                super::time::close_slowly(stage, received);
            }
        }
    }
}

pub fn a_connection_that_was_reset_is_still_tcp<S: Stage>(stage: &mut S) {
    let (mut peer, received) = stage.connection();
    peer.reset();
    stage.pass();
    let socket = socket::<S>(received);
    readable(stage, &socket);
    assert!(socket.discard().is_err());
}

pub fn a_second_half_close_leaves_the_receiving_side_alone<S: Stage>(stage: &mut S) {
    let (mut peer, socket) = connected(stage);
    socket.half_close();
    // The client has the FIN, and so has acknowledged it: FIN_WAIT_2.
    assert_eq!(peer.read_to_end().unwrap(), 0);
    socket.half_close();
    peer.send(4);
    readable(stage, &socket);
    assert_eq!(socket.discard().unwrap(), 4);
}

pub fn discards_until_the_end<S: Stage>(stage: &mut S) {
    let (mut peer, socket) = connected(stage);
    assert_eq!(socket.discard().unwrap_err().kind(), ErrorKind::WouldBlock);
    peer.send(10);
    readable(stage, &socket);
    assert_eq!(socket.discard().unwrap(), 10);
    assert_eq!(socket.discard().unwrap_err().kind(), ErrorKind::WouldBlock);
    peer.half_close();
    readable(stage, &socket);
    for _ in 0..2 {
        assert_eq!(socket.discard().unwrap(), 0);
    }
}

pub fn what_is_looked_at_is_still_there<S: Stage>(stage: &mut S) {
    let (mut peer, socket) = connected(stage);
    let mut buffer = [0; 100];
    assert_eq!(socket.peek(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);
    peer.say(b"GET / HTTP/1.1\r\n");
    readable(stage, &socket);
    assert_eq!(socket.peek(&mut buffer[..5]).unwrap(), 5);
    assert_eq!(&buffer[..5], b"GET /");
    peer.say(b"\r\n");
    let mut seen = 0;
    while seen < 18 {
        seen = socket.peek(&mut buffer).unwrap(); // not every loopback delivers at once
    }
    assert_eq!(&buffer[..seen], b"GET / HTTP/1.1\r\n\r\n");
    assert_eq!(socket.discard().unwrap(), 18);
    assert_eq!(socket.peek(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);
    peer.say(b"more");
    readable(stage, &socket);
    assert_eq!(socket.peek(&mut buffer).unwrap(), 4);
    assert_eq!(&buffer[..4], b"more");
}

pub fn who_looks_sees_the_end_and_what_is_gone<S: Stage>(stage: &mut S) {
    let (mut peer, socket) = connected(stage);
    peer.half_close();
    readable(stage, &socket);
    assert_eq!(socket.peek(&mut [0; 8]).unwrap(), 0);
    let (mut peer, socket) = connected(stage);
    peer.reset();
    readable(stage, &socket);
    assert_eq!(socket.peek(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    let stranger = self::socket::<S>(stage.stranger(Stranger::Unconnected));
    assert_eq!(stranger.peek(&mut [0; 8]).unwrap_err().kind(), ErrorKind::NotConnected);
}

pub fn the_end_can_be_told_before_all_is_read<S: Stage>(stage: &mut S) {
    let (mut peer, socket) = connected(stage);
    assert!(!socket.has_ended());
    peer.say(b"GET / HT");
    readable(stage, &socket);
    assert!(!socket.has_ended());
    peer.half_close();
    let (mut backend, mut none) = (stage.backend(), Vec::new());
    while TELLS_ENDED && !socket.has_ended() {
        backend.wait(&mut none, Some(Duration::from_millis(1))).unwrap();
    }
    assert_eq!(socket.peek(&mut [0; 100]).unwrap(), 8, "it is still there");
}

pub fn a_discard_takes_no_more_than_its_bytes<S: Stage>(stage: &mut S) {
    let (mut peer, socket) = connected(stage);
    for _ in 0..40 {
        peer.send(30_000);
        let mut left = 30_000;
        while left > 0 {
            readable(stage, &socket);
            let taken = socket.discard().unwrap();
            assert!((1..=DISCARD_BYTES).contains(&taken));
            left -= taken;
        }
    }
}

pub fn what_came_before_a_reset_can_be_told_from_the_reset<S: Stage>(stage: &mut S) {
    let (mut peer, socket) = connected(stage);
    peer.send(10);
    readable(stage, &socket);
    peer.reset();
    stage.until("reset", || socket.peer().is_err());
    // Systems differ in whether they keep what has come before; the error is told in any case.
    let mut got = socket.discard();
    if matches!(got, Ok(10)) {
        got = socket.discard();
    }
    assert_eq!(got.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(socket.discard().unwrap(), 0);
}

pub fn a_reset_socket_differs_from_one_never_connected<S: Stage>(stage: &mut S) {
    let (mut peer, socket) = connected(stage);
    peer.reset();
    readable(stage, &socket);
    assert_eq!(socket.discard().unwrap_err().kind(), ErrorKind::ConnectionReset);
    for _ in 0..2 {
        assert_eq!(socket.discard().unwrap(), 0, "the error is told once, then it is the end");
    }
    for what in [Stranger::Unconnected, Stranger::Listener] {
        let socket = self::socket::<S>(stage.stranger(what));
        assert_eq!(socket.discard().unwrap_err().kind(), ErrorKind::NotConnected, "{what:?}");
    }
}

pub fn tells_whether_all_is_acknowledged_the_fin_too<S: Stage>(stage: &mut S) {
    // A full window in between.
    let (mut peer, received) = stage.connection();
    let written = peer.fill();
    peer.let_go();
    let socket = self::socket::<S>(received);
    socket.half_close();
    let Some(acknowledged) = socket.is_acknowledged() else {
        return; // the system cannot tell
    };
    assert!(!acknowledged);
    assert_eq!(peer.read_to_end().unwrap(), written);
    stage.until("acknowledged", || socket.is_acknowledged() == Some(true));
    // Nothing but the FIN.
    let (_peer, socket) = connected(stage);
    socket.half_close();
    stage.until("acknowledged", || socket.is_acknowledged() == Some(true));
    // A client that has ended, too: TIME_WAIT.
    let (mut peer, socket) = connected(stage);
    socket.half_close();
    peer.half_close();
    stage.until("acknowledged", || socket.is_acknowledged() == Some(true));
}

pub fn tells_how_far_this_end_is_closed_or_nothing<S: Stage>(stage: &mut S) {
    // A full window in between.
    let (mut peer, received) = stage.connection();
    let written = peer.fill();
    peer.let_go();
    let socket = self::socket::<S>(received);
    let tells = socket.own_end() != OwnEnd::Unknown;
    let is = |socket: &Socket<S>, end| socket.own_end() == if tells { end } else { OwnEnd::Unknown };
    // Whoever takes it for one that is likely to linger hears the same.
    let taken = |socket: Socket<S>, end| {
        let (socket, told) = Socket::<S>::of_lingering(socket.into_received()).ok().expect("it is TCP");
        assert_eq!(told, if tells { end } else { OwnEnd::Unknown });
        socket
    };
    assert!(is(&socket, OwnEnd::Open));
    let socket = taken(socket, OwnEnd::Open);
    socket.half_close();
    assert!(is(&socket, OwnEnd::Sent));
    let socket = taken(socket, OwnEnd::Sent);
    assert_eq!(peer.read_to_end().unwrap(), written);
    stage.until("acknowledged", || is(&socket, OwnEnd::Acknowledged));
    taken(socket, OwnEnd::Acknowledged);
    // One whose client has ended first.
    let (mut peer, socket) = connected(stage);
    peer.half_close();
    readable(stage, &socket);
    assert!(is(&socket, OwnEnd::Open));
    // What is no connection, or was one.
    for what in [Stranger::Unconnected, Stranger::Listener] {
        assert_eq!(self::socket::<S>(stage.stranger(what)).own_end(), OwnEnd::Unknown, "{what:?}");
    }
    let (mut peer, socket) = connected(stage);
    peer.reset();
    readable(stage, &socket);
    assert_eq!(socket.own_end(), OwnEnd::Unknown);
    taken(socket, OwnEnd::Unknown);
}

pub fn tells_whether_something_is_unread<S: Stage>(stage: &mut S) {
    let (mut peer, socket) = connected(stage);
    assert!(!socket.has_unread());
    peer.send(1);
    readable(stage, &socket);
    assert!(socket.has_unread());
    socket.discard().unwrap();
    assert!(!socket.has_unread());
    peer.half_close();
    readable(stage, &socket);
    assert!(!socket.has_unread(), "an end of stream is nothing unread");
}

pub fn a_notice_in_the_error_queue_keeps_a_socket_ready_until_it_is_drained<S: Stage>(stage: &mut S) {
    let (mut peer, received) = stage.connection();
    if !peer.notify() {
        return; // the system has no such queue
    }
    let socket = self::socket::<S>(received);
    let mut backend: Waits<S> = stage.backend();
    backend.add(&socket, Token(1), Interest::Read).unwrap();
    let mut ready = Vec::new();
    for _ in 0..2 {
        backend.wait(&mut ready, None).unwrap();
        assert_eq!(ready, [Token(1)]);
        assert_eq!(socket.discard().unwrap_err().kind(), ErrorKind::WouldBlock, "nothing to read");
        backend.rearm(&socket, Token(1), Interest::Read).unwrap();
    }
    socket.drain_errors();
    backend.wait(&mut ready, Some(Duration::from_millis(1))).unwrap();
    assert_eq!(ready, []);
    backend.remove(&socket).unwrap();
}

pub fn the_peer_is_the_client_until_it_is_gone<S: Stage>(stage: &mut S) {
    let (mut peer, socket) = connected(stage);
    assert_eq!(socket.peer().unwrap(), peer.address());
    peer.half_close();
    readable(stage, &socket);
    assert_eq!(socket.peer().unwrap(), peer.address(), "it still reads");
    peer.reset();
    stage.until("gone", || socket.peer().is_err_and(|e| e.kind() == ErrorKind::NotConnected));
}

pub fn what_is_not_connected_has_no_peer<S: Stage>(stage: &mut S) {
    for what in [Stranger::Unconnected, Stranger::Listener] {
        let socket = self::socket::<S>(stage.stranger(what));
        assert_eq!(socket.peer().unwrap_err().kind(), ErrorKind::NotConnected, "{what:?}");
        assert!(!socket.has_unread());
    }
}

pub fn a_close_delivers_what_is_queued<S: Stage>(stage: &mut S) {
    let (mut peer, received) = stage.connection();
    let written = peer.fill();
    peer.let_go();
    self::socket::<S>(received).close();
    assert_eq!(peer.read_to_end().unwrap(), written);
}

pub fn a_close_with_something_unread_is_a_reset<S: Stage>(stage: &mut S) {
    let (mut peer, socket) = connected(stage);
    peer.send(1);
    readable(stage, &socket);
    socket.close();
    peer.read_to_end().unwrap_err();
}

pub fn a_close_aborts_nothing_whatever_was_set_and_a_drop_leaves_it_set<S: Stage>(stage: &mut S) {
    for closes in [true, false] {
        let (mut peer, received) = stage.connection();
        peer.abort_on_close();
        peer.let_go();
        let socket = self::socket::<S>(received);
        if closes {
            socket.close();
        } else {
            drop(socket);
        }
        assert_eq!(peer.read_to_end().is_ok(), closes);
    }
}

pub fn a_copy_outlives_a_close<S: Stage>(stage: &mut S) {
    let (mut peer, received) = stage.connection();
    self::socket::<S>(received).close();
    assert!(peer.fill() > 0, "the server's own can still write");
    peer.let_go();
    peer.read_to_end().unwrap();
}

/// A piece of a file, so long and with that offset.
fn piece<S: Stage>(stage: &mut S, offset: u64, length: usize) -> Piece<S> {
    let received = stage.file(offset as usize + length);
    let content = Content::<S>::of(received).ok().expect("it is a file");
    let mut piece = Piece::<S>::default();
    assert_eq!(content.read(offset, length, &mut piece).unwrap(), length);
    piece
}

/// That `piece` is those bytes of a file when it has arrived.
pub fn arrives<S: Stage>(
    stage: &mut S,
    mut peer: S::Peer,
    received: Received<S>,
    piece: &Piece<S>,
    offset: u64,
    length: usize,
) {
    let socket = socket::<S>(received);
    assert_eq!(socket.send(piece).unwrap(), length);
    stage.pass();
    assert!(peer.reads_pattern(offset, length).unwrap(), "what arrives is what was sent");
}

pub fn what_is_sent_arrives_and_where_there_is_no_room_it_says_so<S: Stage>(stage: &mut S) {
    let (mut peer, socket) = connected(stage);
    let piece = piece(stage, 1_000, 50_000);
    assert_eq!(socket.send(&piece).unwrap(), 50_000);
    assert!(peer.reads_pattern(1_000, 50_000).unwrap());
    let mut sent = 0;
    let error = loop {
        match socket.send(&piece) {
            Ok(count) => sent += count,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert!(sent >= 50_000, "{sent}");
    let mut backend = stage.backend();
    backend.add(&socket, Token(0), Interest::Write).unwrap();
    let mut ready = Vec::new();
    while ready.is_empty() {
        // Not all that was sent comes in whole pieces, but it comes.
        peer.reads_pattern(0, 0).unwrap();
        peer.drain(10_000);
        backend.wait(&mut ready, Some(Duration::from_millis(1))).unwrap();
        backend.rearm(&socket, Token(0), Interest::Write).unwrap();
    }
    assert!(socket.send(&piece).unwrap() > 0);
    backend.remove(&socket).unwrap();
}

pub fn what_is_gone_takes_nothing_more<S: Stage>(stage: &mut S) {
    let piece = piece(stage, 0, 10);
    let (mut peer, socket) = connected(stage);
    peer.reset();
    stage.pass();
    readable(stage, &socket);
    for _ in 0..2 {
        let error = socket.send(&piece).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
    }
    let (_peer, socket) = connected(stage);
    socket.half_close();
    assert_eq!(socket.send(&piece).unwrap_err().kind(), ErrorKind::BrokenPipe);
}

pub fn what_was_sent_is_unacknowledged_until_it_is_read<S: Stage>(stage: &mut S) {
    let (mut peer, socket) = connected(stage);
    let Some(before) = socket.unacknowledged() else { return }; // the system does not tell
    assert_eq!(before, 0);
    let piece = piece(stage, 0, 60_000);
    while socket.send(&piece).is_ok() {}
    let full = socket.unacknowledged().expect("it tells");
    assert!(full > 0);
    let mut backend = stage.backend();
    while socket.unacknowledged().expect("it tells") > 0 {
        peer.drain(100_000);
        backend.wait(&mut Vec::new(), Some(Duration::from_millis(1))).unwrap();
    }
}

pub fn the_time_that_a_sender_gives_is_told_and_no_close_takes_it<S: Stage>(stage: &mut S) {
    let (mut peer, received) = stage.connection();
    let socket = socket::<S>(received);
    assert_eq!(socket.linger_time(), None);
    peer.abort_on_close();
    assert_eq!(socket.linger_time(), None, "to reset takes no time");
    peer.wait_on_close(Duration::from_secs(2));
    assert_eq!(socket.linger_time(), Some(Duration::from_secs(2)));
    // It would wait for a client that reads nothing.
    peer.fill();
    peer.let_go();
    socket.close();
}

pub fn a_reset_at_close_is_one_until_that_is_taken_back<S: Stage>(stage: &mut S) {
    type End<S> = fn(Socket<S>);
    let ends: [(bool, End<S>, bool); 5] = [
        (true, drop, true),
        (true, Tcp::close, false),
        (true, Tcp::let_go, true),
        (false, drop, false),
        (false, Tcp::let_go, false),
    ];
    for (resets, ends, is_reset) in ends {
        let (mut peer, socket) = connected(stage);
        let piece = piece(stage, 0, 10);
        assert_eq!(socket.send(&piece).unwrap(), 10);
        socket.reset_at_close(true);
        socket.reset_at_close(resets);
        ends(socket);
        stage.pass();
        let read = peer.read_to_end();
        assert_eq!(read.is_err(), is_reset, "{read:?}");
    }
}
