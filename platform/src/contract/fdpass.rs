// SPDX-License-Identifier: BSD-3-Clause

//! The contracts of [`Link`] and [`Door`], and of who is at the other end.

use super::{Caller, Peer, Received, Socket, Stage};
use crate::backend::{Backend, Descriptor, Interest, Token};
use crate::fdpass::{self, Door, Link};
use crate::tcp::Tcp;
use crate::world::World;
use std::io::ErrorKind;
use std::time::Duration;

/// Makes tests of all of them on a stage.
macro_rules! fdpass_tests {
    ($stage:expr) => {
        $crate::contract::played! { $crate::contract::fdpass, $stage;
            descriptors_arrive_with_their_byte_and_no_other
            a_full_message_arrives_whole
            a_vanished_receiver_is_an_error_and_no_signal
            what_was_sent_before_the_end_is_read_before_it
            who_has_gone_before_it_was_let_in_has_said_what_it_said
            nobody_waits_and_then_somebody_does
            a_link_is_ready_when_something_was_said
            what_is_silenced_can_still_be_read
            where_something_is_queued_it_is_not_empty_and_stays_queued
            a_shut_door_keeps_those_who_wait
            what_is_told_arrives
            more_than_there_is_room_for_is_told_in_part
            who_has_gone_cannot_be_told
            the_other_end_is_this_user
            what_is_queued_is_closed_with_the_link
            a_link_is_something_to_close
            what_is_passed_arrives_with_its_descriptors
            more_than_there_is_room_for_is_passed_later
            what_is_heard_comes_with_its_descriptors_and_no_other
            whoever_waits_alone_is_told_when_it_is_ready
            a_link_that_came_along_is_one
            a_claimed_door_is_as_it_was
            who_is_told_all_comes_to_the_end_whoever_has_a_copy
        }
    };
}
pub(crate) use fdpass_tests;

/// A link, and who is at its other end.
fn linked<S: Stage>(stage: &mut S) -> (S::Caller, super::Link<S>) {
    let (door, address) = stage.door();
    let caller = stage.call(&address).unwrap();
    (caller, let_in::<S>(stage, &door))
}

fn let_in<S: Stage>(stage: &mut S, door: &<S::World as World>::Door) -> super::Link<S> {
    ready(stage, door);
    door.accept().unwrap()
}

/// Waits until something can be read.
fn ready<S: Stage>(stage: &mut S, fd: &impl crate::backend::Descriptor) {
    let mut backend = stage.backend();
    backend.add(fd, Token(0), Interest::Read).unwrap();
    let mut ready = Vec::new();
    while ready.is_empty() {
        backend.wait(&mut ready, None).unwrap();
    }
    backend.remove(fd).unwrap();
}

const fn byte(byte: u8) -> fdpass::Received {
    fdpass::Received::Byte { byte, truncated: false }
}

/// What one receive finds, and how many descriptors came with it.
fn receive<S: Stage>(link: &super::Link<S>) -> (fdpass::Received, Vec<Received<S>>) {
    let mut descriptors = Vec::new();
    let received = link.receive(&mut descriptors).unwrap();
    (received, descriptors)
}

fn nothing<S: Stage>(link: &super::Link<S>) -> bool {
    link.receive(&mut Vec::new()).is_err_and(|e| e.kind() == ErrorKind::WouldBlock)
}

pub fn descriptors_arrive_with_their_byte_and_no_other<S: Stage>(stage: &mut S) {
    let (peer, _received) = stage.connection();
    let (mut caller, link) = linked(stage);
    caller.send(b"xy", &peer, 0).unwrap();
    caller.send(b"L", &peer, 3).unwrap();
    for expected in *b"xy" {
        let (received, descriptors) = receive::<S>(&link);
        assert_eq!((received, descriptors.len()), (byte(expected), 0));
    }
    let (received, descriptors) = receive::<S>(&link);
    assert_eq!((received, descriptors.len()), (byte(b'L'), 3));
    let list: Vec<_> = descriptors.into_iter().map(|d| Socket::<S>::of(d).ok().unwrap()).collect();
    assert!(list.iter().all(|socket| socket.peer().unwrap() == peer.address()));
    assert!(nothing::<S>(&link));
    caller.close();
    assert_eq!(receive::<S>(&link).0, fdpass::Received::End);
}

pub fn a_full_message_arrives_whole<S: Stage>(stage: &mut S) {
    let most = if cfg!(target_os = "openbsd") { 127 } else { fdpass::MAX_DESCRIPTORS };
    let (peer, _received) = stage.connection();
    let (mut caller, link) = linked(stage);
    caller.send(b"L", &peer, most).unwrap();
    let (received, descriptors) = receive::<S>(&link);
    assert_eq!((received, descriptors.len()), (byte(b'L'), most));
}

pub fn a_vanished_receiver_is_an_error_and_no_signal<S: Stage>(stage: &mut S) {
    let (peer, _received) = stage.connection();
    let (mut caller, link) = linked(stage);
    drop(link);
    assert_eq!(caller.send(b"L", &peer, 0).unwrap_err().kind(), ErrorKind::BrokenPipe);
}

pub fn what_was_sent_before_the_end_is_read_before_it<S: Stage>(stage: &mut S) {
    let (peer, _received) = stage.connection();
    let (mut caller, link) = linked(stage);
    caller.send(b"L", &peer, 2).unwrap();
    caller.send(b"L", &peer, 1).unwrap();
    caller.close();
    for count in [2, 1] {
        let (received, descriptors) = receive::<S>(&link);
        assert_eq!((received, descriptors.len()), (byte(b'L'), count));
    }
    for _ in 0..2 {
        let (received, descriptors) = receive::<S>(&link);
        assert_eq!((received, descriptors.len()), (fdpass::Received::End, 0));
    }
}

pub fn who_has_gone_before_it_was_let_in_has_said_what_it_said<S: Stage>(stage: &mut S) {
    let (peer, _received) = stage.connection();
    let (door, address) = stage.door();
    let mut caller = stage.call(&address).unwrap();
    caller.send(b"L", &peer, 1).unwrap();
    caller.close();
    let link = let_in(stage, &door);
    let (received, descriptors) = receive::<S>(&link);
    assert_eq!((received, descriptors.len()), (byte(b'L'), 1));
    assert_eq!(receive::<S>(&link).0, fdpass::Received::End);
}

pub fn nobody_waits_and_then_somebody_does<S: Stage>(stage: &mut S) {
    let (door, address) = stage.door();
    let nobody = |door: &<S::World as World>::Door| {
        door.accept().err().is_some_and(|e| e.kind() == ErrorKind::WouldBlock)
    };
    assert!(nobody(&door));
    let callers: Vec<_> = (0..3).map(|_| stage.call(&address).unwrap()).collect();
    let links: Vec<_> = (0..3).map(|_| let_in(stage, &door)).collect();
    assert!(nobody(&door));
    drop((callers, links));
}

pub fn a_link_is_ready_when_something_was_said<S: Stage>(stage: &mut S) {
    let (peer, _received) = stage.connection();
    let (mut caller, link) = linked(stage);
    assert!(nothing::<S>(&link));
    caller.send(b"L", &peer, 1).unwrap();
    ready(stage, &link);
    assert_eq!(receive::<S>(&link).0, byte(b'L'));
    caller.close();
    ready(stage, &link);
    assert_eq!(receive::<S>(&link).0, fdpass::Received::End);
}

pub fn what_is_silenced_can_still_be_read<S: Stage>(stage: &mut S) {
    let (peer, _received) = stage.connection();
    let (mut caller, link) = linked(stage);
    caller.send(b"L", &peer, 2).unwrap();
    let silenced = link.silence();
    let said = caller.send(b"x", &peer, 0);
    assert_eq!(said.is_err(), silenced);
    let (received, descriptors) = receive::<S>(&link);
    assert_eq!((received, descriptors.len()), (byte(b'L'), 2));
    if silenced {
        assert_eq!(said.unwrap_err().kind(), ErrorKind::BrokenPipe);
        ready(stage, &link);
        assert_eq!(receive::<S>(&link).0, fdpass::Received::End);
    } else {
        assert_eq!(receive::<S>(&link).0, byte(b'x'));
        assert!(nothing::<S>(&link), "nothing is changed");
    }
}

pub fn where_something_is_queued_it_is_not_empty_and_stays_queued<S: Stage>(stage: &mut S) {
    let (peer, _received) = stage.connection();
    let (mut caller, link) = linked(stage);
    assert!(link.is_empty());
    caller.send(b"L", &peer, 2).unwrap();
    ready(stage, &link);
    assert!(!link.is_empty());
    link.silence();
    assert!(!link.is_empty());
    let (received, descriptors) = receive::<S>(&link);
    assert_eq!((received, descriptors.len()), (byte(b'L'), 2));
    assert!(link.is_empty());
}

pub fn a_shut_door_keeps_those_who_wait<S: Stage>(stage: &mut S) {
    let (peer, _received) = stage.connection();
    let (door, address) = stage.door();
    let mut caller = stage.call(&address).unwrap();
    caller.send(b"L", &peer, 1).unwrap();
    door.shut();
    let late = stage.call(&address);
    let link = let_in(stage, &door);
    assert_eq!(receive::<S>(&link).0, byte(b'L'));
    match late {
        // Where the system can do that.
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::ConnectionRefused);
            assert_eq!(door.accept().err().unwrap().kind(), ErrorKind::WouldBlock);
        }
        Ok(_late) => drop(let_in(stage, &door)),
    }
}

pub fn what_is_told_arrives<S: Stage>(stage: &mut S) {
    let (mut caller, mut link) = linked(stage);
    link.tell(b"counters").unwrap();
    drop(link);
    assert_eq!(caller.read_to_end(), b"counters");
}

pub fn more_than_there_is_room_for_is_told_in_part<S: Stage>(stage: &mut S) {
    let (mut caller, mut link) = linked(stage);
    let text = vec![b'x'; 16 << 20];
    assert_eq!(link.tell(&text).unwrap_err().kind(), ErrorKind::WouldBlock);
    drop(link);
    let told = caller.read_to_end().len();
    assert!((1..text.len()).contains(&told));
}

pub fn who_has_gone_cannot_be_told<S: Stage>(stage: &mut S) {
    let (mut caller, mut link) = linked(stage);
    caller.close();
    ready(stage, &link);
    assert_eq!(link.tell(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
}

pub fn the_other_end_is_this_user<S: Stage>(stage: &mut S) {
    let (_caller, link) = linked(stage);
    match link.peer() {
        Ok(peer) => assert_eq!((peer.uid, peer.groups.first().copied()), (stage.uid(), Some(stage.gid()))),
        Err(e) => assert_eq!(e.kind(), ErrorKind::Unsupported),
    }
}

pub fn what_is_queued_is_closed_with_the_link<S: Stage>(stage: &mut S) {
    let (mut peer, received) = stage.connection();
    let (mut caller, link) = linked(stage);
    caller.send(b"L", &peer, 2).unwrap();
    peer.let_go();
    drop((link, received));
    assert_eq!(peer.read_to_end().unwrap(), 0);
}

pub fn a_link_is_something_to_close<S: Stage>(stage: &mut S) {
    let (mut caller, link) = linked(stage);
    super::time::close_slowly(stage, link.into_received());
    assert_eq!(caller.read_to_end(), b"");
}

pub fn what_is_passed_arrives_with_its_descriptors<S: Stage>(stage: &mut S) {
    let (_peer, received) = stage.connection();
    let socket = Socket::<S>::of(received).ok().unwrap();
    let (mut caller, link) = linked(stage);
    assert_eq!(link.pass(b"abc", &[&socket, &link]).unwrap(), 3);
    assert_eq!(caller.hear(), (b"abc".to_vec(), 2));
    assert_eq!(link.pass(b"d", &[]).unwrap(), 1);
    assert_eq!(caller.hear(), (b"d".to_vec(), 0));
    let most = vec![&socket as &dyn Descriptor; fdpass::PORTABLE_DESCRIPTORS];
    assert_eq!(link.pass(b"e", &most).unwrap(), 1);
    assert_eq!(caller.hear(), (b"e".to_vec(), fdpass::PORTABLE_DESCRIPTORS));
    caller.close();
    assert_eq!(link.pass(b"f", &[&socket]).unwrap_err().kind(), ErrorKind::BrokenPipe);
}

pub fn more_than_there_is_room_for_is_passed_later<S: Stage>(stage: &mut S) {
    let (mut caller, link) = linked(stage);
    let (bytes, mut sent) = (vec![b'x'; 10_000], 0);
    let full = loop {
        match link.pass(&bytes, &[]) {
            Ok(count) => sent += count,
            Err(e) => break e,
        }
    };
    assert_eq!(full.kind(), ErrorKind::WouldBlock);
    assert!(!link.wait(Interest::Write, Duration::ZERO).unwrap());
    let mut heard = 0;
    while heard < sent {
        heard += caller.hear().0.len();
    }
    assert_eq!(heard, sent);
    assert!(link.wait(Interest::Write, Duration::ZERO).unwrap());
    assert!(link.pass(&bytes, &[]).unwrap() > 0);
}

pub fn what_is_heard_comes_with_its_descriptors_and_no_other<S: Stage>(stage: &mut S) {
    let (peer, _received) = stage.connection();
    let (mut caller, link) = linked(stage);
    caller.send(b"hello", &peer, 2).unwrap();
    caller.send(b"you", &peer, 1).unwrap();
    let (mut descriptors, mut buffer) = (Vec::new(), [0; 3]);
    assert_eq!(link.hear(&mut buffer, &mut descriptors).unwrap(), 3);
    assert_eq!((&buffer, descriptors.len()), (b"hel", 2));
    let mut rest = [0; 2];
    assert_eq!(link.hear(&mut rest, &mut descriptors).unwrap(), 2);
    assert_eq!((&rest, descriptors.len()), (b"lo", 2));
    assert_eq!(link.hear(&mut buffer, &mut descriptors).unwrap(), 3);
    assert_eq!((&buffer, descriptors.len()), (b"you", 3));
    let nothing = link.hear(&mut buffer, &mut descriptors).unwrap_err();
    assert_eq!(nothing.kind(), ErrorKind::WouldBlock);
    caller.close();
    assert_eq!(link.hear(&mut buffer, &mut descriptors).unwrap(), 0);
}

pub fn whoever_waits_alone_is_told_when_it_is_ready<S: Stage>(stage: &mut S) {
    let (peer, _received) = stage.connection();
    let (mut caller, link) = linked(stage);
    assert!(!link.wait(Interest::Read, Duration::from_millis(1)).unwrap());
    assert!(link.wait(Interest::Write, Duration::from_secs(60)).unwrap());
    caller.send(b"x", &peer, 0).unwrap();
    assert!(link.wait(Interest::Read, Duration::from_secs(60)).unwrap());
    assert_eq!(receive::<S>(&link).0, byte(b'x'));
    caller.close();
    assert!(link.wait(Interest::Read, Duration::from_secs(60)).unwrap());
}

pub fn a_link_that_came_along_is_one<S: Stage>(stage: &mut S) {
    let (peer, _received) = stage.connection();
    let (mut caller, link) = linked(stage);
    caller.send(b"L", &peer, 2).unwrap();
    let link = super::Link::<S>::of(link.into_received());
    let (received, descriptors) = receive::<S>(&link);
    assert_eq!((received, descriptors.len()), (byte(b'L'), 2));
}

pub fn a_claimed_door_is_as_it_was<S: Stage>(stage: &mut S) {
    let (door, address) = stage.door();
    let before = stage.call(&address).unwrap();
    door.claim();
    let after = stage.call(&address).unwrap();
    let links: Vec<_> = (0..2).map(|_| let_in(stage, &door)).collect();
    drop((before, after, links));
}

pub fn who_is_told_all_comes_to_the_end_whoever_has_a_copy<S: Stage>(stage: &mut S) {
    let (mut other, to_other) = linked(stage);
    let (mut caller, mut link) = linked(stage);
    to_other.pass(b"x", &[&link]).unwrap();
    link.tell(b"all").unwrap();
    link.finish();
    drop(link);
    assert_eq!(caller.read_to_end(), b"all");
    assert_eq!(other.hear(), (b"x".to_vec(), 1));
}
