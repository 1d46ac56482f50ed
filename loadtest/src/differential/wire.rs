//! The reader of HTTP/1 messages, exactly as they are on a stream. Both ends of the tester use it.
//!
//! The parser of a library would correct or refuse exactly the bytes that are to be compared. This
//! one accepts everything: lines keep their spelling and order, and unreadable bytes are kept
//! unchanged and marked as such. Everything that was read is stored with the caller and not in the
//! future. A deadline may therefore drop a read, and the bytes read until then are still there.
//!
//! Deliberately absent: judging. Whether a message is well-formed does not matter here. What
//! matters is whether two engines made the same of it.

use tokio::io::{AsyncRead, AsyncReadExt};

/// The longest head that is read, in bytes. No script and no engine has a longer one.
const MOST_HEAD_BYTES: usize = 256 * 1024;
/// The longest line of a chunked body with its extensions, in bytes.
const MOST_LINE_BYTES: usize = 128 * 1024;

/// The room for the next read after a read has filled the buffer, in bytes.
const FLOOD: usize = 64 * 1024;

/// A stream with the bytes that were read and not yet parsed.
#[derive(Debug)]
pub struct Reader<S> {
    stream: S,
    buffer: Vec<u8>,
    start: usize,
    /// Whether the last read filled the buffer.
    is_flooded: bool,
}

/// One line of a head: a name in its original spelling, and its value without surrounding space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// The name, or the whole line if it has no colon.
    pub name: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
}

/// The head of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The request line or status line.
    pub start: Vec<u8>,
    /// The header lines, in their order.
    pub fields: Vec<Field>,
}

/// How the end of a body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    None,
    /// The body has this many bytes.
    Length(u64),
    /// The body is chunked.
    Chunked,
    /// The body ends with the connection.
    UntilClose,
}

/// How the reading of a body ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// The whole body was received.
    Whole,
    /// The connection ended before the body did.
    Cut,
    /// The body is malformed.
    Garbled,
    /// Nothing more was received, and the connection stayed open.
    #[default]
    Silent,
}

/// A body, decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Body {
    /// The bytes of the body without framing.
    pub bytes: Vec<u8>,
    /// The length of each chunk.
    pub chunks: Vec<u64>,
    /// The extensions after the sizes of chunks.
    pub extensions: Vec<Vec<u8>>,
    /// The trailers after the last chunk.
    pub trailers: Vec<Field>,
    /// How the reading of the body ended.
    pub ending: Ending,
}

/// The result of reading a head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeadRead {
    /// A complete head.
    Whole(Head),
    /// The connection ended after this many bytes of the head.
    Ended(usize),
    /// The head had no end within the limit.
    TooLong,
}

impl<S: AsyncRead + Unpin> Reader<S> {
    /// Creates a reader for a stream of which nothing has been read.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: Vec::with_capacity(4096),
            start: 0,
            is_flooded: false,
        }
    }

    /// Returns the stream, without the bytes that were already read.
    pub fn into_inner(self) -> S {
        self.stream
    }

    /// Returns the bytes that were read and not yet parsed.
    pub fn rest(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    fn take(&mut self, length: usize) -> &[u8] {
        let start = self.start;
        self.start += length;
        &self.buffer[start..start + length]
    }

    /// Reads more. Returns false at the end of the stream, for whatever reason it ended.
    async fn more(&mut self) -> bool {
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        } else if self.start > 65_536 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        if self.is_flooded {
            self.buffer.reserve(FLOOD);
        }
        // Bytes that a reset leaves unread are lost in any case. How the connection ended is
        // chance, but that it ended is not.
        let read = self.stream.read_buf(&mut self.buffer).await;
        self.is_flooded = self.buffer.len() == self.buffer.capacity();
        matches!(read, Ok(read) if read > 0)
    }

    /// Reads and discards bytes until the connection ends.
    pub async fn to_end(&mut self) {
        while self.more().await {
            self.start = self.buffer.len();
        }
    }

    /// Reads a head.
    pub async fn head(&mut self) -> HeadRead {
        let mut looked = 0;
        loop {
            let rest = self.rest();
            if let Some(end) = end_of_head(rest, looked) {
                let bytes = self.take(end);
                return HeadRead::Whole(Head::parse(bytes));
            }
            looked = rest.len().saturating_sub(3);
            if rest.len() > MOST_HEAD_BYTES {
                return HeadRead::TooLong;
            }
            if !self.more().await {
                return HeadRead::Ended(self.rest().len());
            }
        }
    }

    /// Reads a body into `body`. If this future is dropped, `body` holds everything received so
    /// far.
    pub async fn body(&mut self, framing: Framing, body: &mut Body) {
        body.ending = Ending::Silent;
        body.ending = match framing {
            Framing::None => Ending::Whole,
            Framing::Length(length) => self.bytes(length, &mut body.bytes).await,
            Framing::Chunked => self.chunks(body).await,
            Framing::UntilClose => {
                self.bytes(u64::MAX, &mut body.bytes).await;
                Ending::Whole
            }
        };
    }

    async fn bytes(&mut self, mut missing: u64, into: &mut Vec<u8>) -> Ending {
        loop {
            let here = self
                .rest()
                .len()
                .min(usize::try_from(missing).unwrap_or(usize::MAX));
            into.extend_from_slice(self.take(here));
            missing -= here as u64;
            if missing == 0 {
                return Ending::Whole;
            }
            if !self.more().await {
                return Ending::Cut;
            }
        }
    }

    async fn chunks(&mut self, body: &mut Body) -> Ending {
        loop {
            let line = match self.line().await {
                Ok(line) => line,
                Err(ending) => return ending,
            };
            let (size, extension) = match line.iter().position(|&byte| byte == b';') {
                Some(at) => (&line[..at], Some(&line[at + 1..])),
                None => (&line[..], None),
            };
            let is_size =
                !size.is_empty() && size.len() <= 15 && size.iter().all(u8::is_ascii_hexdigit);
            let Some(size) = std::str::from_utf8(size)
                .ok()
                .filter(|_| is_size)
                .and_then(|size| u64::from_str_radix(size, 16).ok())
            else {
                return Ending::Garbled;
            };
            body.extensions.extend(extension.map(<[u8]>::to_vec));
            if size == 0 {
                return self.trailers(&mut body.trailers).await;
            }
            body.chunks.push(size);
            match self.bytes(size, &mut body.bytes).await {
                Ending::Whole => {}
                other => return other,
            }
            match self.line().await {
                Ok(line) if line.is_empty() => {}
                Ok(_) => return Ending::Garbled,
                Err(ending) => return ending,
            }
        }
    }

    async fn trailers(&mut self, trailers: &mut Vec<Field>) -> Ending {
        loop {
            match self.line().await {
                Ok(line) if line.is_empty() => return Ending::Whole,
                Ok(line) => trailers.push(Field::parse(&line)),
                Err(ending) => return ending,
            }
        }
    }

    /// Reads a line without its line end, which has to be both bytes.
    async fn line(&mut self) -> Result<Vec<u8>, Ending> {
        loop {
            if let Some(end) = self.rest().iter().position(|&byte| byte == b'\n') {
                let line = self.take(end + 1);
                return line
                    .strip_suffix(b"\r\n")
                    .map(<[u8]>::to_vec)
                    .ok_or(Ending::Garbled);
            }
            if self.rest().len() > MOST_LINE_BYTES {
                return Err(Ending::Garbled);
            }
            if !self.more().await {
                return Err(Ending::Cut);
            }
        }
    }
}

/// Returns where a complete head ends: behind the first empty line.
fn end_of_head(bytes: &[u8], from: usize) -> Option<usize> {
    let found = bytes
        .get(from..)?
        .windows(4)
        .position(|window| window == b"\r\n\r\n")?;
    Some(from + found + 4)
}

impl Field {
    fn parse(line: &[u8]) -> Self {
        let Some(colon) = line.iter().position(|&byte| byte == b':') else {
            return Self {
                name: line.to_vec(),
                value: Vec::new(),
            };
        };
        let (name, value) = line.split_at(colon);
        let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
        let value = value.get(1..).unwrap_or_default();
        let begin = value
            .iter()
            .position(|byte| !is_space(byte))
            .unwrap_or(value.len());
        let end = value
            .iter()
            .rposition(|byte| !is_space(byte))
            .map_or(begin, |at| at + 1);
        Self {
            name: name.to_vec(),
            value: value[begin..end].to_vec(),
        }
    }
}

impl Head {
    /// Parses a whole head, including its final empty line.
    pub fn parse(bytes: &[u8]) -> Self {
        let text = bytes.strip_suffix(b"\r\n\r\n").unwrap_or(bytes);
        let mut lines = split_lines(text);
        let start = lines.next().unwrap_or_default().to_vec();
        Self {
            start,
            fields: lines.map(Field::parse).collect(),
        }
    }

    /// Returns the values of a name, which is given in lower case.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.fields
            .iter()
            .filter(move |field| field.name.eq_ignore_ascii_case(name.as_bytes()))
            .map(|field| field.value.as_slice())
    }

    /// Whether a list header such as `Connection` contains this word.
    pub fn lists(&self, name: &str, word: &str) -> bool {
        self.values(name).any(|value| {
            value
                .split(|&byte| byte == b',')
                .any(|item| item.trim_ascii().eq_ignore_ascii_case(word.as_bytes()))
        })
    }

    /// Returns the number in a status line, or 0 if there is none.
    pub fn status(&self) -> u16 {
        let number = self
            .start
            .split(|&byte| byte == b' ')
            .nth(1)
            .and_then(|number| std::str::from_utf8(number).ok()?.parse().ok());
        number.unwrap_or(0)
    }

    /// Returns the framing of this request's body. The output of an engine is read as the least
    /// careful backend would read it.
    pub fn request_framing(&self) -> Framing {
        self.framing().unwrap_or(Framing::None)
    }

    /// Returns the framing of this answer's body.
    pub fn answer_framing(&self, to_head: bool) -> Framing {
        match self.status() {
            100..=199 | 204 | 304 => Framing::None,
            _ if to_head => Framing::None,
            _ => self.framing().unwrap_or(Framing::UntilClose),
        }
    }

    fn framing(&self) -> Option<Framing> {
        if self.lists("transfer-encoding", "chunked") {
            return Some(Framing::Chunked);
        }
        let length = self.values("content-length").next()?;
        std::str::from_utf8(length)
            .ok()?
            .parse()
            .ok()
            .map(Framing::Length)
    }
}

fn split_lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let end = text.windows(2).position(|pair| pair == b"\r\n");
        rest = end.map(|end| &text[end + 2..]);
        Some(&text[..end.unwrap_or(text.len())])
    })
}

/// Creates a reader over fixed bytes, for tests.
#[cfg(test)]
pub fn read_from(bytes: &[u8]) -> Reader<&[u8]> {
    Reader::new(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn body(framing: Framing, bytes: &[u8]) -> (Body, Vec<u8>) {
        let mut reader = read_from(bytes);
        let mut body = Body::default();
        reader.body(framing, &mut body).await;
        (body, reader.rest().to_vec())
    }

    #[tokio::test]
    async fn a_head_keeps_its_original_spelling() {
        let mut reader =
            read_from(b"HTTP/1.1 200 OK\r\nX-A:  1 \r\nx-a: 2\r\nno colon\r\n\r\nrest");
        let HeadRead::Whole(head) = reader.head().await else {
            panic!("a whole head")
        };
        assert_eq!(
            (head.start.as_slice(), head.status(), head.fields.len()),
            (&b"HTTP/1.1 200 OK"[..], 200, 3)
        );
        assert_eq!(head.values("x-a").collect::<Vec<_>>(), [b"1", b"2"]);
        assert_eq!(
            (
                head.fields[0].name.as_slice(),
                head.fields[2].name.as_slice()
            ),
            (&b"X-A"[..], &b"no colon"[..])
        );
        assert_eq!(reader.rest(), b"rest");
        assert_eq!(read_from(b"HTTP/1.1 2").head().await, HeadRead::Ended(10));
    }

    #[tokio::test]
    async fn a_body_ends_where_its_framing_says() {
        let (read, rest) = body(Framing::Length(2), b"okmore").await;
        assert_eq!(
            (read.bytes.as_slice(), read.ending, rest.as_slice()),
            (&b"ok"[..], Ending::Whole, &b"more"[..])
        );
        assert_eq!(body(Framing::Length(9), b"ok").await.0.ending, Ending::Cut);
        let (read, rest) = body(Framing::Chunked, b"2;a=b\r\nok\r\n0\r\nx-t: 1\r\n\r\nmore").await;
        assert_eq!(
            (
                read.bytes.as_slice(),
                read.chunks.as_slice(),
                read.ending,
                rest.as_slice()
            ),
            (&b"ok"[..], &[2][..], Ending::Whole, &b"more"[..])
        );
        assert_eq!(
            (read.extensions, read.trailers[0].name.as_slice()),
            (vec![b"a=b".to_vec()], &b"x-t"[..])
        );
        for garbled in [&b"x\r\n"[..], b"2\nok", b"2\r\nokk\r\n", b"+2\r\nok\r\n"] {
            assert_eq!(
                body(Framing::Chunked, garbled).await.0.ending,
                Ending::Garbled
            );
        }
        assert_eq!(
            body(Framing::Chunked, b"5\r\nok").await.0,
            Body {
                bytes: b"ok".to_vec(),
                chunks: vec![5],
                ending: Ending::Cut,
                ..Body::default()
            }
        );
        assert_eq!(
            body(Framing::UntilClose, b"ok").await.0.ending,
            Ending::Whole
        );
    }

    #[test]
    fn the_framing_of_an_answer_depends_on_the_method() {
        let head = Head::parse(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n");
        assert_eq!(
            (head.answer_framing(false), head.answer_framing(true)),
            (Framing::Length(5), Framing::None)
        );
        assert_eq!(
            Head::parse(b"HTTP/1.1 304 X\r\ncontent-length: 5\r\n\r\n").answer_framing(false),
            Framing::None
        );
        assert_eq!(
            Head::parse(b"HTTP/1.1 200 OK\r\n\r\n").answer_framing(false),
            Framing::UntilClose
        );
        assert_eq!(
            Head::parse(b"GET / HTTP/1.1\r\n\r\n").request_framing(),
            Framing::None
        );
    }
}
