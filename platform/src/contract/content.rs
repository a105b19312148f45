// SPDX-License-Identifier: BSD-3-Clause

//! The contracts of [`Content`] and [`Reader`].

use super::{Content as ContentOf, Piece, Stage, Stranger};
use crate::backend::{Backend, Interest, Token};
use crate::content::{Content, PAGE};
use crate::reader::Reader;
use std::collections::BTreeMap;
use std::io::ErrorKind;

/// Makes tests of all of them on a stage.
macro_rules! content_tests {
    ($stage:expr) => {
        $crate::contract::played! { $crate::contract::content, $stage;
            only_a_regular_file_is_content
            it_has_what_it_has_and_ends_there
            what_is_forgotten_takes_nothing_else_along
            each_question_is_answered_once
            what_is_closed_is_counted_until_it_is
        }
    };
}
pub(crate) use content_tests;

fn content<S: Stage>(stage: &mut S, length: usize) -> ContentOf<S> {
    let received = stage.file(length);
    ContentOf::<S>::of(received).ok().expect("it is a file")
}

pub fn only_a_regular_file_is_content<S: Stage>(stage: &mut S) {
    drop(content(stage, 1));
    let (_peer, connection) = stage.connection();
    let received = ContentOf::<S>::of(connection).err().expect("a connection is none");
    super::time::close_slowly(stage, received);
    for what in [Stranger::Listener, Stranger::Udp, Stranger::Unix] {
        let received = ContentOf::<S>::of(stage.stranger(what)).err().expect("that is none");
        super::time::close_slowly(stage, received);
    }
    match ContentOf::<S>::of(stage.stranger(Stranger::File)) {
        Err(device) => super::time::close_slowly(stage, device),
        Ok(device) => {
            assert!(!device.is_prompt() && !device.is_in_memory());
            let mut piece = Piece::<S>::default();
            assert_eq!(device.read(0, 1, &mut piece).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
    }
    let received = content(stage, 5).into_received().ok().expect("no reader has it");
    assert!(ContentOf::<S>::of(received).is_ok(), "it is the same");
}

pub fn it_has_what_it_has_and_ends_there<S: Stage>(stage: &mut S) {
    let content = content(stage, 100_000);
    let mut piece = Piece::<S>::default();
    for (offset, most, got) in [
        (0, 65_536, 65_536),
        (65_536, 65_536, 34_464),
        (99_999, 7, 1),
        (100_000, 7, 0),
        (1 << 62, 7, 0),
        (0, 0, 0),
    ] {
        assert_eq!(content.read(offset, most, &mut piece).unwrap(), got, "{most} at {offset}");
    }
}

pub fn what_is_forgotten_takes_nothing_else_along<S: Stage>(stage: &mut S) {
    let (peer, received) = stage.connection();
    let (mut reader, content) = (stage.reader(), content(stage, 1_000_000));
    assert_eq!(reader.forget(&content, 0, 3), 0);
    let forgotten = reader.forget(&content, 3, 500_001);
    assert!(forgotten <= 500_001 && forgotten % PAGE == 0, "{forgotten}");
    let mut piece = Piece::<S>::default();
    assert_eq!(content.read(500_001, 1_000, &mut piece).unwrap(), 1_000);
    super::tcp::arrives(stage, peer, received, &piece, 500_001, 1_000);
    reader.close(content);
    stage.until("closed", || reader.closing() == 0);
}

pub fn each_question_is_answered_once<S: Stage>(stage: &mut S) {
    let (mut reader, mut backend) = (stage.reader(), stage.backend());
    assert!(reader.take().is_none());
    backend.add(&reader, Token(1), Interest::Read).unwrap();
    let contents = [(); 10].map(|()| content(stage, 1_000));
    for (ticket, content) in (0..).zip(&contents) {
        reader.read(ticket, content, 100 * ticket, 300);
    }
    let (mut ready, mut answers) = (Vec::new(), BTreeMap::new());
    while answers.len() < contents.len() {
        backend.wait(&mut ready, None).unwrap();
        assert_eq!(ready, [Token(1)]);
        while let Some(answer) = reader.take() {
            let before = answers.insert(answer.ticket, answer.result.unwrap());
            assert_eq!(before, None, "it was answered already");
        }
        backend.rearm(&reader, Token(1), Interest::Read).unwrap();
    }
    let expected = (0..10).map(|ticket| (ticket, (1_000 - 100 * ticket as usize).min(300)));
    assert!(answers.into_iter().eq(expected));
    backend.remove(&reader).unwrap();
}

/// While it is read, too; whether that is still answered then nobody can say. Whoever waits hears of it.
pub fn what_is_closed_is_counted_until_it_is<S: Stage>(stage: &mut S) {
    let (mut reader, mut backend) = (stage.reader(), stage.backend());
    backend.add(&reader, Token(1), Interest::Read).unwrap();
    assert_eq!(reader.closing(), 0);
    for ticket in 0..20 {
        let content = content(stage, 1_000);
        if ticket % 2 == 0 {
            reader.read(ticket, &content, 0, 1_000);
        }
        reader.close(content);
        assert!(reader.closing() <= ticket as usize + 1);
    }
    let mut ready = Vec::new();
    while reader.closing() > 0 {
        backend.wait(&mut ready, None).unwrap();
        while let Some(answer) = reader.take() {
            assert_eq!((answer.ticket % 2, answer.result.unwrap()), (0, 1_000));
        }
        backend.rearm(&reader, Token(1), Interest::Read).unwrap();
    }
    backend.remove(&reader).unwrap();
}
