// SPDX-License-Identifier: BSD-3-Clause

//! HTTP/1.1 as a client sees it: the request's bytes, and where a response ends (RFC 9112).
//!
//! Sans-IO: [`Response`] is fed the bytes as they come, in whatever pieces, and says when the
//! response has ended. It keeps no body, and knows no socket and no clock. As curl(1) and
//! browsers do, it passes over a field that breaks the grammar.

use httparse::{EMPTY_HEADER, Header, ParserConfig, Status};

/// The longest head, chunk-size line or trailer section: curl's limit. Servers have far lower ones.
const MAX_ELEMENT: usize = 300 * 1024;

/// The fields of a head that there is room for at first; few have more.
const FIELDS: usize = 64;

/// The request that all clients send; `connection` is what should become of the connection.
pub fn request(authority: &str, path: &str, connection: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: ablinger/{}\r\nAccept: */*\r\n\
         Connection: {connection}\r\n\r\n",
        env!("CARGO_PKG_VERSION")
    )
    .into_bytes()
}

/// What is wrong with a response, in words for the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadHttp(pub &'static str);

/// What became of an attempt to parse one element: `None` while its end has not come; otherwise how
/// many bytes it took, and its meaning.
type Parsed<T> = Result<Option<(usize, T)>, BadHttp>;

/// A response as far as it has arrived.
#[derive(Debug, Default)]
pub struct Response {
    next: Next,
    /// The beginning of an element (a head, a line, a trailer section) whose end has not come.
    held: Vec<u8>,
    status: u16,
    content: u64,
    keeps: bool,
}

/// What a head says.
struct Head {
    status: u16,
    next: Next,
    keeps: bool,
}

/// What the next byte belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Next {
    #[default]
    Head,
    /// Content of known length: so much is still to come, never nothing.
    Content(u64),
    /// Content up to the end of the stream.
    UntilClose,
    ChunkSize,
    /// A chunk's data: so much is still to come, never nothing.
    Chunk(u64),
    /// The CR LF behind a chunk's data, or its LF alone.
    ChunkEnd {
        cr_seen: bool,
    },
    Trailers,
    /// Nothing: the response has ended.
    Nothing,
}

impl Response {
    /// Makes ready for the next response; what was allocated stays.
    pub fn clear(&mut self) {
        self.next = Next::Head;
        self.held.clear();
        self.status = 0;
        self.content = 0;
        self.keeps = false;
    }

    /// The status code, once the head has come.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Bytes of content so far, without what framed them.
    pub fn content(&self) -> u64 {
        self.content
    }

    /// Whether the server would take another request on this connection, once the response has
    /// ended (RFC 9112 section 9.3).
    pub fn keeps_connection(&self) -> bool {
        self.keeps && self.next == Next::Nothing
    }

    /// Takes the bytes that came next. `Ok(true)`: the response has ended with them; what may
    /// follow it is nobody's, since there is never more than one request under way.
    pub fn feed(&mut self, mut input: &[u8]) -> Result<bool, BadHttp> {
        while self.next != Next::Nothing {
            let Some(&first) = input.first() else { return Ok(false) };
            let used = match self.next {
                Next::Head => match self.element(input, head)? {
                    Some((used, head)) => {
                        self.status = head.status;
                        self.next = head.next;
                        self.keeps = head.keeps;
                        used
                    }
                    None => return Ok(false),
                },
                Next::Content(left) => {
                    let (used, left) = self.take_content(input, left);
                    self.next = if left == 0 { Next::Nothing } else { Next::Content(left) };
                    used
                }
                Next::UntilClose => self.take_content(input, u64::MAX).0,
                Next::ChunkSize => match self.element(input, chunk_size)? {
                    Some((used, size)) => {
                        self.next = if size == 0 { Next::Trailers } else { Next::Chunk(size) };
                        used
                    }
                    None => return Ok(false),
                },
                Next::Chunk(left) => {
                    let (used, left) = self.take_content(input, left);
                    self.next = if left == 0 { Next::ChunkEnd { cr_seen: false } } else { Next::Chunk(left) };
                    used
                }
                Next::ChunkEnd { cr_seen } => {
                    self.next = match (cr_seen, first) {
                        (false, b'\r') => Next::ChunkEnd { cr_seen: true },
                        (_, b'\n') => Next::ChunkSize,
                        _ => return Err(BadHttp("a chunk is longer than its size says")),
                    };
                    1
                }
                Next::Trailers => match self.element(input, trailers)? {
                    Some((used, ())) => {
                        self.next = Next::Nothing;
                        used
                    }
                    None => return Ok(false),
                },
                Next::Nothing => 0,
            };
            input = &input[used..];
        }
        Ok(true)
    }

    /// Whether a response is whole if the stream ends here.
    pub fn may_end_here(&self) -> bool {
        matches!(self.next, Next::UntilClose | Next::Nothing)
    }

    /// Counts as much of `input` as is content, of which `left` is to come: how much that was,
    /// and what is left then.
    fn take_content(&mut self, input: &[u8], left: u64) -> (usize, u64) {
        // The lesser of the two fits both types.
        let used = left.min(input.len() as u64);
        self.content += used;
        (used as usize, left - used)
    }

    /// Parses one element, which may have begun in earlier pieces: the bytes it took are those of
    /// `input` alone. Without its end, all of `input` is held.
    fn element<T>(&mut self, input: &[u8], parse: impl Fn(&[u8]) -> Parsed<T>) -> Parsed<T> {
        // Nearly every element comes in one piece, and then it is not copied.
        if self.held.is_empty() {
            if let Some(found) = parse(input)? {
                return Ok(Some(found));
            }
        }
        let before = self.held.len();
        let room = MAX_ELEMENT.saturating_sub(before);
        self.held.extend_from_slice(&input[..room.min(input.len())]);
        match parse(&self.held)? {
            Some((end, meaning)) => {
                self.held.clear();
                // `before` bytes alone had no end in them, so it lies beyond them.
                Ok(Some((end.saturating_sub(before), meaning)))
            }
            None if self.held.len() >= MAX_ELEMENT => {
                Err(BadHttp("a head, a chunk-size line or a trailer section does not end"))
            }
            None => Ok(None),
        }
    }
}

/// Parses a head.
fn head(bytes: &[u8]) -> Parsed<Head> {
    parse_head(bytes).or_else(|bad| {
        // RFC 9112 section 2.2: a CR without its LF is as good as a blank.
        let is_lone = |&(at, byte): &(usize, &u8)| {
            *byte == b'\r' && bytes.get(at + 1).is_some_and(|&next| next != b'\n')
        };
        let lone: Vec<_> = bytes.iter().enumerate().filter(is_lone).map(|(at, _)| at).collect();
        if lone.is_empty() {
            return Err(bad);
        }
        let mut bytes = bytes.to_vec();
        lone.into_iter().for_each(|at| bytes[at] = b' ');
        parse_head(&bytes)
    })
}

fn parse_head(bytes: &[u8]) -> Parsed<Head> {
    let mut config = ParserConfig::default();
    config
        // RFC 9112 section 5.2: a user agent takes obsolete line folding in a response for a space.
        .allow_obsolete_multiline_headers_in_responses(true)
        .allow_spaces_after_header_name_in_responses(true)
        .allow_space_before_first_header_name(true)
        .allow_multiple_spaces_in_response_status_delimiters(true)
        .ignore_invalid_headers_in_responses(true);
    let mut room = FIELDS;
    loop {
        let mut fields = vec![EMPTY_HEADER; room];
        let mut response = httparse::Response::new(&mut fields);
        match config.parse_response(&mut response, bytes) {
            Ok(Status::Complete(length)) => return Ok(Some((length, meaning(&response)?))),
            Ok(Status::Partial) => return Ok(None),
            // No field is shorter than its line feed, so that this comes to an end.
            Err(httparse::Error::TooManyHeaders) => room *= 4,
            Err(_) => {
                return Err(BadHttp("the status line is malformed, or a NUL is in the head"));
            }
        }
    }
}

/// What a complete head says: the status, what comes after it (RFC 9112 section 6.3, for a GET), and
/// what becomes of the connection.
fn meaning(response: &httparse::Response<'_, '_>) -> Result<Head, BadHttp> {
    let status = response.code.unwrap_or(0); // always there in a complete head
    let next = match status {
        101 => return Err(BadHttp("the server switched protocols, which nobody asked for")),
        100..=199 => Next::Head,
        200..=999 if status == 204 || status == 304 => Next::Nothing,
        200..=999 => content(response.headers)?,
        _ => return Err(BadHttp("the status code is below 100")),
    };
    let says = |option: &[u8]| {
        let mut fields =
            response.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("Connection"));
        fields.any(|field| elements(field.value).any(|element| element.eq_ignore_ascii_case(option)))
    };
    let keeps = !says(b"close") && (response.version == Some(1) || says(b"keep-alive"));
    Ok(Head { status, next, keeps })
}

/// The elements of a field that is a list. One that is empty is none (RFC 9110 section 5.6.1.2).
fn elements(value: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

/// How the content after these header fields is framed.
fn content(fields: &[Header<'_>]) -> Result<Next, BadHttp> {
    let mut coding = None;
    let mut length: Option<u64> = None;
    for field in fields {
        // A list may be spread over several fields; the elements count in the order of all.
        let mut elements = elements(field.value);
        if field.name.eq_ignore_ascii_case("Transfer-Encoding") {
            coding = elements.next_back().or(coding);
        } else if field.name.eq_ignore_ascii_case("Content-Length") {
            for element in elements {
                let value = decimal(element).ok_or(BadHttp("Content-Length is not a number"))?;
                if length.is_some_and(|length| length != value) {
                    return Err(BadHttp("Content-Length is given twice and differs"));
                }
                length = Some(value);
            }
        }
    }
    Ok(match (coding, length) {
        // Transfer-Encoding overrides Content-Length.
        (Some(coding), _) if coding.eq_ignore_ascii_case(b"chunked") => Next::ChunkSize,
        (Some(_), _) | (None, None) => Next::UntilClose,
        (None, Some(0)) => Next::Nothing,
        (None, Some(length)) => Next::Content(length),
    })
}

/// A number of digits only: `str::parse` alone would take a plus sign.
fn decimal(digits: &[u8]) -> Option<u64> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Parses a chunk-size line. httparse's own parser would refuse one that a line feed alone ends.
fn chunk_size(bytes: &[u8]) -> Parsed<u64> {
    const BAD: BadHttp = BadHttp("a chunk size is not a hexadecimal number");
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    // What follows the digits is extensions, or blanks: of no interest, other than no line end at all.
    match bytes.get(digits) {
        None if digits <= MAX_DIGITS => return Ok(None),
        Some(b' ' | b'\t' | b';' | b'\r' | b'\n') if digits > 0 => {}
        _ => return Err(BAD),
    }
    let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else { return Ok(None) };
    let size = std::str::from_utf8(&bytes[..digits]).ok().and_then(|text| u64::from_str_radix(text, 16).ok());
    size.map(|size| Some((end + 1, size))).ok_or(BAD)
}

/// The most digits of a chunk size, zeros before it among them.
const MAX_DIGITS: usize = 64;

/// Finds the end of the trailer section, its empty line; what its fields say is of no interest.
fn trailers(bytes: &[u8]) -> Parsed<()> {
    let mut end = 0;
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        end += line.len();
        if matches!(line, b"\n" | b"\r\n") {
            return Ok(Some((end, ())));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What became of a response after all of its bytes and the end of the stream.
    #[derive(Debug, PartialEq)]
    enum End {
        /// Ended by itself, with this status and so much content.
        Whole(u16, u64),
        /// Ended by the end of the stream.
        Closed(u16, u64),
        Truncated,
        Bad,
    }

    fn feed_all(pieces: &[&[u8]]) -> End {
        let mut response = Response::default();
        for piece in pieces {
            match response.feed(piece) {
                Ok(true) => return End::Whole(response.status(), response.content()),
                Ok(false) => {}
                Err(_) => return End::Bad,
            }
        }
        match response.may_end_here() {
            true => End::Closed(response.status(), response.content()),
            false => End::Truncated,
        }
    }

    const TABLE: &[(&str, End)] = &[
        // Content-Length.
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", End::Whole(200, 5)),
        ("HTTP/1.1 200 OK\r\ncontent-length:5\r\n\r\nhello, and more", End::Whole(200, 5)),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", End::Whole(200, 0)),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", End::Truncated),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", End::Whole(200, 5)),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello", End::Whole(200, 5)),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", End::Bad),
        ("HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello", End::Bad),
        ("HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello", End::Bad),
        ("HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n\r\n", End::Bad),
        // Status codes, whole all the same.
        ("HTTP/1.1 503 Busy\r\nContent-Length: 1\r\n\r\nx", End::Whole(503, 1)),
        ("HTTP/1.1 404\r\nContent-Length: 1\r\n\r\nx", End::Whole(404, 1)),
        // No content, whatever the fields say.
        ("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", End::Whole(204, 0)),
        ("HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", End::Whole(304, 0)),
        // Interim responses.
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\n\
             Content-Length: 2\r\n\r\nok",
            End::Whole(200, 2),
        ),
        ("HTTP/1.1 100 Continue\r\n\r\n", End::Truncated),
        ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", End::Bad),
        // The end of the stream.
        ("HTTP/1.0 200 OK\r\n\r\nabc", End::Closed(200, 3)),
        ("HTTP/1.1 200 OK\r\n\r\n", End::Closed(200, 0)),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nContent-Length: 1\r\n\r\nabc", End::Closed(200, 3)),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\nabc", End::Closed(200, 3)),
        ("", End::Truncated),
        ("HTTP/1.1 200 OK\r\nContent-Le", End::Truncated),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", End::Truncated),
        // Chunks.
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n",
            End::Whole(200, 15),
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, Chunked\r\nContent-Length: 3\r\n\r\n1;a=\"b\"\r\nx\r\n\
             0;last\r\n\r\n",
            End::Whole(200, 1),
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            End::Whole(200, 0),
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n000\r\nDigest: a\r\nB: c\r\n\r\n",
            End::Whole(200, 1),
        ),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n", End::Truncated),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", End::Truncated),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello", End::Truncated),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloo\r\n0\r\n\r\n", End::Bad),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\rx", End::Bad),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n", End::Bad),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\ng\r\n", End::Bad),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000000\r\n", End::Bad),
        // Not HTTP/1 at all.
        ("SSH-2.0-OpenSSH_9.2\r\n", End::Bad),
        ("HTTP/2 200\r\n\r\n", End::Bad),
        ("HTTP/1.1 099 Odd\r\n\r\n", End::Bad),
        ("HTTP/0.9 200 OK\r\n\r\n", End::Bad),
        ("<html>", End::Bad),
        ("HTTP/1.1 200 OK\r\nX: \0\r\n\r\n", End::Bad),
        // What breaks the grammar, or only just keeps to it, and is taken by curl.
        ("HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 1\r\n\r\nx", End::Whole(200, 1)),
        ("HTTP/1.1 200 OK\r\nContent-Length:\r\n\t1\r\n\r\nx", End::Whole(200, 1)),
        ("HTTP/1.1 200 OK\nContent-Length: 1\n\nx", End::Whole(200, 1)),
        ("HTTP/1.1 200 OK\nContent-Length: 1\r\n\nx", End::Whole(200, 1)),
        ("HTTP/1.1 200\r\nContent-Length: 1\r\n\r\nx", End::Whole(200, 1)),
        ("HTTP/1.1 200 \r\nContent-Length: 1\r\n\r\nx", End::Whole(200, 1)),
        ("HTTP/1.1  200  OK\r\nContent-Length: 1\r\n\r\nx", End::Whole(200, 1)),
        ("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", End::Whole(200, 1)),
        ("HTTP/1.1 200 \u{c9}t\u{e9}\r\nContent-Length: 1\r\n\r\nx", End::Whole(200, 1)),
        ("HTTP/1.1 200 OK\r\n X: a\r\nContent-Length: 1\r\n\r\nx", End::Whole(200, 1)),
        ("HTTP/1.1 200 OK\r\nContent-Length : 1\r\n\r\nx", End::Whole(200, 1)),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\"Connection: close\"\r\n\r\nx", End::Whole(200, 1)),
        ("HTTP/1.1 200 OK\r\nX Powered: y\r\nContent-Length: 1\r\n\r\nx", End::Whole(200, 1)),
        ("HTTP/1.1 200 OK\r\nX@Powered: y\r\nContent-Length: 1\r\n\r\nx", End::Whole(200, 1)),
        ("HTTP/1.1 200 OK\r\nX@: y\r\n folded\r\nContent-Length: 1\r\n\r\nx", End::Whole(200, 1)),
        ("HTTP/1.1 200 OK\r\nX: a\x01b\r\nContent-Length: 1\r\n\r\nx", End::Whole(200, 1)),
        ("HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 1\r\n\r\nx", End::Whole(200, 1)),
        ("HTTP/1.1 200 a\rb\r\nX: \r\r\nContent-Length: 1\r\n\r\nx", End::Whole(200, 1)),
        ("HTTP/1.1 200 OK\r\nX: \u{e9}\r\nContent-Length: 1\r\n\r\nx", End::Whole(200, 1)),
        ("HTTP/1.1 200 OK\r\n: nameless\r\nContent-Length: 1\r\n\r\nx", End::Whole(200, 1)),
        ("HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 1\r\n\r\nx", End::Whole(200, 1)),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1,\r\n\r\nx", End::Whole(200, 1)),
        ("HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nhello", End::Closed(200, 5)),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked,\r\n\r\n0\r\n\r\n", End::Whole(200, 0)),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2 ;x\nok\n0\n\n", End::Whole(200, 2)),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nno field\r\n\r\n", End::Whole(200, 0)),
    ];

    #[test]
    fn in_one_piece() {
        for (bytes, end) in TABLE {
            assert_eq!(&feed_all(&[bytes.as_bytes()]), end, "{bytes:?}");
        }
    }

    #[test]
    fn split_at_every_byte() {
        for (bytes, end) in TABLE {
            for at in 0..=bytes.len() {
                let (a, b) = bytes.as_bytes().split_at(at);
                assert_eq!(&feed_all(&[a, b]), end, "{bytes:?} at {at}");
            }
        }
    }

    #[test]
    fn byte_by_byte() {
        for (bytes, end) in TABLE {
            let pieces: Vec<_> = bytes.as_bytes().chunks(1).collect();
            assert_eq!(&feed_all(&pieces), end, "{bytes:?}");
        }
    }

    #[test]
    fn a_cleared_response_is_as_new() {
        let mut response = Response::default();
        for (bytes, end) in TABLE {
            response.clear();
            let whole = response.feed(bytes.as_bytes()) == Ok(true);
            assert_eq!(whole, matches!(end, End::Whole(..)), "{bytes:?}");
            if let End::Whole(status, content) = *end {
                assert_eq!((response.status(), response.content()), (status, content), "{bytes:?}");
            }
        }
    }

    #[test]
    fn whether_the_connection_is_kept() {
        for (head, keeps) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 0", true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close", false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: a, Close", false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive", true),
            ("HTTP/1.0 200 OK\r\nContent-Length: 0", false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: Keep-Alive", true),
            ("HTTP/1.1 200 OK", false), // it ends with the stream
        ] {
            let mut response = Response::default();
            response.feed(format!("{head}\r\n\r\n").as_bytes()).unwrap();
            assert_eq!(response.keeps_connection(), keeps, "{head}");
            response.clear();
            assert!(!response.keeps_connection());
        }
    }

    #[test]
    fn what_never_ends_is_refused() {
        for begin in [
            "HTTP/1.1 200 OK\r\nX: ",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ",
        ] {
            let mut response = Response::default();
            response.feed(begin.as_bytes()).unwrap();
            let fed = (0..1000).find(|_| response.feed(&[b'a'; 1000]).is_err());
            assert!(fed.is_some_and(|n| n < MAX_ELEMENT / 1000 + 2), "{begin:?}: {fed:?}");
            assert!(response.held.len() <= MAX_ELEMENT);
        }
    }

    #[test]
    fn heads_are_as_long_as_curl_takes_them() {
        for n in [FIELDS, FIELDS + 1, 129, 5000] {
            let fields = "Set-Cookie: a=b\r\n".repeat(n);
            let response = format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 2\r\n\r\nok");
            assert_eq!(feed_all(&[response.as_bytes()]), End::Whole(200, 2), "{n} fields");
        }
        let response =
            format!("HTTP/1.1 200 OK\r\nX: {}\r\nContent-Length: 2\r\n\r\nok", "y".repeat(100_000));
        assert_eq!(feed_all(&[response.as_bytes()]), End::Whole(200, 2));
    }

    #[test]
    fn the_request_is_one_that_servers_take() {
        let bytes = request("[::1]:8080", "/a?b", "close");
        let mut fields = [EMPTY_HEADER; 8];
        let mut parsed = httparse::Request::new(&mut fields);
        assert_eq!(parsed.parse(&bytes), Ok(Status::Complete(bytes.len())));
        assert_eq!((parsed.method, parsed.path, parsed.version), (Some("GET"), Some("/a?b"), Some(1)));
        let field = |name| parsed.headers.iter().find(|field| field.name == name).map(|field| field.value);
        assert_eq!(field("Host"), Some(&b"[::1]:8080"[..]));
        assert_eq!(field("Connection"), Some(&b"close"[..]));
        assert!(field("User-Agent").is_some());
    }
}
