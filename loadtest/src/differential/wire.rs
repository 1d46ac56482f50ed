//! Messages of HTTP/1 off a stream, as they stand there: what both ends of the tester read with.
//!
//! A parser of a library would put right, or refuse, exactly what is to be compared, so this one
//! takes what comes: lines keep their spelling and order, and what cannot be read is kept as it is
//! and called so. Everything that was read lives with the caller and not in the future, so that a
//! deadline may drop a read and what came until then is still there.
//!
//! Deliberately absent: judging. Whether a message should look like this is nobody's question here,
//! only whether two engines made the same of it.

use tokio::io::{AsyncRead, AsyncReadExt};

/// The longest head that is read; no script and no engine has a longer one.
const MOST_HEAD_BYTES: usize = 256 * 1024;
/// The longest line of a chunked body, with its extensions.
const MOST_LINE_BYTES: usize = 128 * 1024;

/// Room for the next read where one has filled what there was.
const FLOOD: usize = 64 * 1024;

/// A stream with what was read of it and not yet understood.
#[derive(Debug)]
pub struct Reader<S> {
    stream: S,
    buffer: Vec<u8>,
    start: usize,
    /// Whether the last read had no room for more.
    is_flooded: bool,
}

/// One line of a head: a name as it was spelled, and its value without the space around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// The name, or the whole line where there is no colon.
    pub name: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
}

/// The head of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Request line or status line.
    pub start: Vec<u8>,
    /// The other lines, in their order.
    pub fields: Vec<Field>,
}

/// How the end of a body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// So many bytes.
    Length(u64),
    /// In chunks.
    Chunked,
    /// All that comes until the connection ends.
    UntilClose,
}

/// How reading a body ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// All of it came.
    Whole,
    /// The connection ended first.
    Cut,
    /// It cannot be read.
    Garbled,
    /// Nothing more came, and the connection stayed.
    #[default]
    Silent,
}

/// A body, decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Body {
    /// Its bytes without framing.
    pub bytes: Vec<u8>,
    /// The length of each chunk.
    pub chunks: Vec<u64>,
    /// What stood behind the sizes of chunks.
    pub extensions: Vec<Vec<u8>>,
    /// What stood behind the last chunk.
    pub trailers: Vec<Field>,
    /// How it ended.
    pub ending: Ending,
}

/// What reading a head came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeadRead {
    /// A whole one.
    Whole(Head),
    /// The connection ended, after so many bytes of it.
    Ended(usize),
    /// It had no end within the limit.
    TooLong,
}

impl<S: AsyncRead + Unpin> Reader<S> {
    /// Nothing of the stream has been read.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: Vec::with_capacity(4096),
            start: 0,
            is_flooded: false,
        }
    }

    /// The stream, without what was read of it.
    pub fn into_inner(self) -> S {
        self.stream
    }

    /// What was read and not understood yet.
    pub fn rest(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    fn take(&mut self, length: usize) -> &[u8] {
        let start = self.start;
        self.start += length;
        &self.buffer[start..start + length]
    }

    /// Reads more; false at the end, in whichever way it came.
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
        // What a reset leaves unread is lost either way: how the connection ended is chance, that
        // it ended is not.
        let read = self.stream.read_buf(&mut self.buffer).await;
        self.is_flooded = self.buffer.len() == self.buffer.capacity();
        matches!(read, Ok(read) if read > 0)
    }

    /// Reads and forgets until the connection ends.
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

    /// Reads a body into `body`, which has how far it came if this is dropped.
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

    /// A line without its end, which has to be both bytes.
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

/// Where a head ends, if it does: behind the first empty line.
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
    /// Reads a whole head, its empty line at the end included.
    pub fn parse(bytes: &[u8]) -> Self {
        let text = bytes.strip_suffix(b"\r\n\r\n").unwrap_or(bytes);
        let mut lines = split_lines(text);
        let start = lines.next().unwrap_or_default().to_vec();
        Self {
            start,
            fields: lines.map(Field::parse).collect(),
        }
    }

    /// The values of a name, which is given in lower case.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.fields
            .iter()
            .filter(move |field| field.name.eq_ignore_ascii_case(name.as_bytes()))
            .map(|field| field.value.as_slice())
    }

    /// Whether a list such as `Connection` holds this word.
    pub fn lists(&self, name: &str, word: &str) -> bool {
        self.values(name).any(|value| {
            value
                .split(|&byte| byte == b',')
                .any(|item| item.trim_ascii().eq_ignore_ascii_case(word.as_bytes()))
        })
    }

    /// The number in a status line, 0 if there is none.
    pub fn status(&self) -> u16 {
        let number = self
            .start
            .split(|&byte| byte == b' ')
            .nth(1)
            .and_then(|number| std::str::from_utf8(number).ok()?.parse().ok());
        number.unwrap_or(0)
    }

    /// How the body of this request is framed. What comes out of an engine is read as the least
    /// careful backend would.
    pub fn request_framing(&self) -> Framing {
        self.framing().unwrap_or(Framing::None)
    }

    /// How the body of this answer is framed.
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

/// A stream that says what it is told, for tests.
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
    async fn a_head_is_kept_as_it_is_spelled() {
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
    fn the_framing_of_an_answer_depends_on_what_was_asked() {
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
