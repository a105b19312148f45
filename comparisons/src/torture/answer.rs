// SPDX-License-Identifier: BSD-3-Clause

//! A response as its client sees it: where it ends, and whether its content is right. Sans-IO.

use super::pages::BIG;
use std::sync::OnceLock;
use support::tcp;

/// What the response is to be.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// The code of its status line.
    pub status: u16,
    /// The size of the page; `None` if it is the server's own words.
    pub content: Option<usize>,
}

/// A response as far as it has arrived.
pub struct Answer {
    expected: Expected,
    /// A line of a head, of a chunk's size or of a trailer, as far as it is there.
    line: Vec<u8>,
    next: Next,
    framing: Framing,
    /// So much of the content was there.
    content: usize,
    /// What is not as it should be.
    wrong: Option<String>,
}

/// What the next byte belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Head,
    ChunkSize,
    /// So much content is to come; never nothing.
    Content(usize),
    /// The empty line behind a chunk.
    ChunkEnd,
    /// The empty line behind the last one.
    LastEnd,
    Nothing,
}

/// How the content ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
    EndOfStream,
}

impl Answer {
    /// Nothing has arrived yet.
    pub fn new(expected: Expected) -> Self {
        Answer {
            expected,
            line: Vec::new(),
            next: Next::Head,
            framing: Framing::EndOfStream,
            content: 0,
            wrong: None,
        }
    }

    /// Takes the bytes that came next.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let used = match self.next {
                Next::Nothing => return, // what follows is nobody's
                Next::Content(left) => {
                    let used = left.min(bytes.len());
                    self.take_content(&bytes[..used], left);
                    used
                }
                _ => self.take_line(bytes),
            };
            bytes = &bytes[used..];
        }
    }

    /// Whether it is whole, and needs no end of the stream to be so.
    pub fn is_whole(&self) -> bool {
        self.next == Next::Nothing
    }

    /// Whether it is whole if the stream ends here.
    pub fn may_end_here(&self) -> bool {
        let all_there = self.expected.content.is_none_or(|size| self.content >= size);
        let until_end = matches!(self.next, Next::Content(_)) && self.framing == Framing::EndOfStream;
        self.is_whole() || until_end && all_there
    }

    /// What is wrong with it, if it is not too short.
    pub fn wrong(&self) -> Option<&str> {
        self.wrong.as_deref()
    }

    fn take_content(&mut self, bytes: &[u8], left: usize) {
        static PAGE: OnceLock<Vec<u8>> = OnceLock::new();
        let page = PAGE.get_or_init(|| tcp::response(BIG));
        let place = self.content..self.content + bytes.len();
        if self.expected.content.is_some_and(|size| place.end > size || page[place] != *bytes) {
            self.wrong = Some(format!("the content is wrong after {} bytes", self.content));
        }
        self.content += bytes.len();
        self.next = match (left - bytes.len(), self.framing) {
            (0, Framing::Chunked) => Next::ChunkEnd,
            (0, _) => Next::Nothing,
            (left, _) => Next::Content(left),
        };
    }

    /// Takes what belongs to the line; how much that was.
    fn take_line(&mut self, bytes: &[u8]) -> usize {
        let end = bytes.iter().position(|&byte| byte == b'\n');
        let used = end.map_or(bytes.len(), |end| end + 1);
        self.line.extend(&bytes[..used]);
        if end.is_some() {
            let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).trim_end().to_owned();
            self.next = self.after_line(&line);
        }
        used
    }

    fn after_line(&mut self, line: &str) -> Next {
        match self.next {
            Next::Head if !line.is_empty() => {
                self.take_field(line);
                Next::Head
            }
            Next::Head => match self.framing {
                Framing::Chunked => Next::ChunkSize,
                Framing::Length(0) => Next::Nothing,
                Framing::Length(length) => Next::Content(length),
                Framing::EndOfStream => Next::Content(usize::MAX),
            },
            Next::ChunkSize => match usize::from_str_radix(line, 16) {
                Ok(0) => Next::LastEnd,
                Ok(size) => Next::Content(size),
                Err(_) => {
                    self.wrong = Some(format!("no chunk size: {line}"));
                    Next::Nothing
                }
            },
            Next::ChunkEnd => Next::ChunkSize,
            Next::LastEnd | Next::Nothing | Next::Content(_) => Next::Nothing,
        }
    }

    /// A line of the head, the first one too.
    fn take_field(&mut self, line: &str) {
        if line.starts_with("HTTP/") {
            if line.split(' ').nth(1) != Some(&self.expected.status.to_string()) {
                self.wrong = Some(format!("{line}, but it should be {}", self.expected.status));
            }
            return;
        }
        // HAProxy has all names in small letters.
        let Some((name, value)) = line.split_once(": ") else { return };
        if name.eq_ignore_ascii_case("Content-Length") {
            self.framing = Framing::Length(value.parse().expect("a length"));
        } else if name.eq_ignore_ascii_case("Transfer-Encoding") && value == "chunked" {
            self.framing = Framing::Chunked;
        }
    }
}
