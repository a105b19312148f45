// SPDX-License-Identifier: BSD-3-Clause

//! The contract of [`Back`].

use super::{Caller, Desk, Link, Peer, Socket, Stage};
use crate::back::Back;
use crate::backend::{Backend, Interest, Token};
use crate::fdpass::{Link as _, Received};
use crate::tcp::Tcp;
use std::io::ErrorKind;

/// Makes tests of all of them on a stage.
macro_rules! back_tests {
    ($stage:expr) => {
        $crate::contract::played! { $crate::contract::back, $stage;
            where_nobody_listens_nobody_is_called
            what_is_passed_waits_until_somebody_accepts_and_an_answer_is_heard
            who_only_asks_is_seen_to_have_gone
            what_was_passed_is_there_though_its_sender_has_gone
            who_is_silenced_takes_nothing_and_what_was_said_before_is_heard
            who_is_not_let_in_is_told_when_nobody_listens_any_more
            where_so_many_wait_that_there_is_no_room_it_says_so
        }
    };
}
pub(crate) use back_tests;

/// The name of the way back.
const NAME: &str = "a-Server_1";

/// A connection that is to go back.
fn socket<S: Stage>(stage: &mut S) -> (S::Peer, Socket<S>) {
    let (peer, received) = stage.connection();
    (peer, Socket::<S>::of(received).ok().expect("it is TCP"))
}

/// Waits until something can be read.
fn ready<S: Stage>(stage: &mut S, link: &Link<S>) {
    let mut backend = stage.backend();
    backend.add(link, Token(0), Interest::Read).unwrap();
    let mut ready = Vec::new();
    while ready.is_empty() {
        backend.wait(&mut ready, None).unwrap();
    }
    backend.remove(link).unwrap();
}

pub fn where_nobody_listens_nobody_is_called<S: Stage>(stage: &mut S) {
    let (back, mut desk) = stage.way_back(NAME, 5);
    assert_eq!(back.call("other").err().unwrap().kind(), ErrorKind::NotFound);
    drop(back.call(NAME).unwrap());
    desk.close();
    assert_eq!(back.call(NAME).err().unwrap().kind(), ErrorKind::ConnectionRefused);
}

pub fn what_is_passed_waits_until_somebody_accepts_and_an_answer_is_heard<S: Stage>(stage: &mut S) {
    let (peer, socket) = socket(stage);
    let (back, mut desk) = stage.way_back(NAME, 5);
    assert!(desk.accept().is_none());
    let link = back.call(NAME).unwrap();
    assert_eq!(link.pass(b"back", &[&socket]).unwrap(), 4);
    let nothing = link.receive(&mut Vec::new()).unwrap_err();
    assert_eq!(nothing.kind(), ErrorKind::WouldBlock);
    let mut worker = desk.accept().expect("somebody calls");
    assert!(desk.accept().is_none());
    assert_eq!(worker.hear(), (b"back".to_vec(), 1));
    worker.send(b"A", &peer, 0).unwrap();
    worker.close();
    ready(stage, &link);
    let said = link.receive(&mut Vec::new()).unwrap();
    assert_eq!(said, Received::Byte { byte: b'A', truncated: false });
    assert_eq!(link.receive(&mut Vec::new()).unwrap(), Received::End);
}

pub fn who_only_asks_is_seen_to_have_gone<S: Stage>(stage: &mut S) {
    let (back, mut desk) = stage.way_back(NAME, 5);
    drop(back.call(NAME).unwrap());
    assert_eq!(desk.accept().expect("somebody has called").read_to_end(), b"");
}

pub fn what_was_passed_is_there_though_its_sender_has_gone<S: Stage>(stage: &mut S) {
    let (peer, socket) = socket(stage);
    let (back, mut desk) = stage.way_back(NAME, 5);
    let link = back.call(NAME).unwrap();
    link.pass(b"back", &[&socket]).unwrap();
    drop(link);
    let mut worker = desk.accept().expect("somebody has called");
    assert_eq!(worker.hear(), (b"back".to_vec(), 1));
    let answer = worker.send(b"A", &peer, 0);
    assert_eq!(answer.unwrap_err().kind(), ErrorKind::BrokenPipe, "it is nobody's to take");
}

pub fn who_is_silenced_takes_nothing_and_what_was_said_before_is_heard<S: Stage>(stage: &mut S) {
    let (peer, socket) = socket(stage);
    let (back, mut desk) = stage.way_back(NAME, 5);
    for is_before in [true, false] {
        let link = back.call(NAME).unwrap();
        link.pass(b"back", &[&socket]).unwrap();
        let mut worker = desk.accept().expect("somebody calls");
        assert_eq!(worker.hear(), (b"back".to_vec(), 1));
        if is_before {
            worker.send(b"A", &peer, 0).unwrap();
            ready(stage, &link);
        }
        let is_silenced = link.silence();
        let said = link.receive(&mut Vec::new());
        if is_before {
            assert_eq!(said.unwrap(), Received::Byte { byte: b'A', truncated: false });
        } else if is_silenced {
            assert!(!matches!(said, Ok(Received::Byte { .. })), "{said:?}");
            let answer = worker.send(b"A", &peer, 0);
            assert_eq!(answer.unwrap_err().kind(), ErrorKind::BrokenPipe, "it is nobody's to take");
        }
    }
}

pub fn who_is_not_let_in_is_told_when_nobody_listens_any_more<S: Stage>(stage: &mut S) {
    let (mut peer, socket) = socket(stage);
    let (back, mut desk) = stage.way_back(NAME, 5);
    let link = back.call(NAME).unwrap();
    link.pass(b"back", &[&socket]).unwrap();
    desk.close();
    peer.let_go();
    ready(stage, &link);
    match link.receive(&mut Vec::new()) {
        Ok(said) => assert_eq!(said, Received::End),
        Err(e) => assert_eq!(e.kind(), ErrorKind::ConnectionReset),
    }
    // What was on its way is here alone again.
    drop(socket);
    assert_eq!(peer.read_to_end().unwrap(), 0);
}

pub fn where_so_many_wait_that_there_is_no_room_it_says_so<S: Stage>(stage: &mut S) {
    let (back, mut desk) = stage.way_back(NAME, 2);
    let mut links = Vec::new();
    let full = loop {
        match back.call(NAME) {
            Ok(link) => links.push(link),
            Err(e) => break e,
        }
    };
    assert!(links.len() >= 2, "{}", links.len());
    assert!(matches!(full.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionRefused), "{full:?}");
    while desk.accept().is_some() {}
    drop(back.call(NAME).expect("there is room again"));
}
