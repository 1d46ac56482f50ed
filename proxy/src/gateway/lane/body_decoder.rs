//! Where a body ends, while its bytes pass by.
//!
//! ChunkedDecoder of an answer are passed on as they are, checked byte by byte: line ends in both bytes,
//! sizes in at most fifteen digits. What only some programs read, and those not alike, is cut out
//! where it stands: extensions of chunks, and trailers, which would tell a client anything after
//! the answer was judged. The bytes that stay are a whole chunked body.

/// How a body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gateway) enum Body {
    /// By its length; zero is none.
    Length(u64),
    /// In chunks.
    Chunked,
    /// By the end of the connection.
    Close,
}

/// What is left of a body.
#[derive(Debug)]
pub(in crate::gateway) enum BodyDecoder {
    /// So many bytes.
    Length(u64),
    /// As the chunks say.
    Chunked(ChunkedDecoder),
    /// Until the connection ends.
    Close,
}

/// What of some bytes belongs to a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gateway) struct Decoded {
    /// So many are read, from the first on.
    pub(in crate::gateway) used: usize,
    /// So many are left of these, and go on. They stand at the front.
    pub(in crate::gateway) kept: usize,
    /// So many of these are the message's own, without its framing.
    pub(in crate::gateway) payload: u64,
    /// Whether the body is over; [`BodyDecoder::end`] goes on after what is kept.
    pub(in crate::gateway) is_over: bool,
}

impl BodyDecoder {
    /// All of a body.
    pub(in crate::gateway) fn new(body: Body) -> Self {
        match body {
            Body::Length(bytes) => Self::Length(bytes),
            Body::Chunked => Self::Chunked(ChunkedDecoder::default()),
            Body::Close => Self::Close,
        }
    }

    /// Whether nothing is left of it before anything was read.
    pub(in crate::gateway) fn is_nothing(&self) -> bool {
        matches!(self, Self::Length(0))
    }

    /// Reads the next bytes, and moves together what goes on. `None` when they are no body of this
    /// kind.
    pub(in crate::gateway) fn feed(&mut self, bytes: &mut [u8]) -> Option<Decoded> {
        match self {
            Self::Length(left) => {
                let used = usize::try_from(*left)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                *left -= used as u64;
                Some(Decoded {
                    used,
                    kept: used,
                    payload: used as u64,
                    is_over: *left == 0,
                })
            }
            Self::Chunked(chunks) => chunks.feed(bytes),
            Self::Close => Some(Decoded {
                used: bytes.len(),
                kept: bytes.len(),
                payload: bytes.len() as u64,
                is_over: false,
            }),
        }
    }

    /// What goes on after the last bytes that are kept.
    pub(in crate::gateway) fn end(&self) -> &'static [u8] {
        match self {
            Self::Chunked(_) => b"\r\n",
            Self::Length(_) | Self::Close => b"",
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ChunkState {
    /// Before the first digit of a size.
    #[default]
    Size,
    Digits,
    /// Behind the digits: an extension may follow.
    Space,
    Extension,
    SizeEnd,
    Payload,
    PayloadEnd,
    PayloadEndFeed,
    /// At the start of a line after the last chunk.
    Trailer,
    InTrailer,
    TrailerEnd,
    LastEnd,
    End,
}

/// Finds the end of a chunked body (RFC 9112, 7.1).
#[derive(Debug, Default)]
pub(in crate::gateway) struct ChunkedDecoder {
    place: ChunkState,
    left: u64,
    digits: u8,
    line: u16,
}

/// Digits of a size: more than any body has.
const MAX_DIGITS: u8 = 15;
/// Bytes of one extension, and of all trailers.
const MAX_LINE: u16 = 16 << 10;

impl ChunkedDecoder {
    fn feed(&mut self, bytes: &mut [u8]) -> Option<Decoded> {
        let (mut at, mut kept, mut payload) = (0, 0, 0);
        while let Some(&byte) = bytes.get(at) {
            if self.place == ChunkState::Payload {
                let here = usize::try_from(self.left)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len() - at);
                self.left -= here as u64;
                payload += here as u64;
                if kept < at {
                    bytes.copy_within(at..at + here, kept);
                }
                at += here;
                kept += here;
                if self.left == 0 {
                    self.place = ChunkState::PayloadEnd;
                }
                continue;
            }
            at += 1;
            let before = self.place;
            self.place = self.next(byte)?;
            match (before, self.place) {
                (_, ChunkState::End) => {
                    return Some(Decoded {
                        used: at,
                        kept,
                        payload,
                        is_over: true,
                    });
                }
                // The line of the last chunk is the last that stays.
                (
                    _,
                    ChunkState::Space
                    | ChunkState::Extension
                    | ChunkState::InTrailer
                    | ChunkState::TrailerEnd
                    | ChunkState::LastEnd,
                )
                | (ChunkState::TrailerEnd, _) => {}
                _ => {
                    bytes[kept] = byte;
                    kept += 1;
                }
            }
        }
        Some(Decoded {
            used: bytes.len(),
            kept,
            payload,
            is_over: false,
        })
    }

    fn next(&mut self, byte: u8) -> Option<ChunkState> {
        Some(match (self.place, byte) {
            (ChunkState::Size | ChunkState::Digits, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                self.digits += 1;
                if self.digits > MAX_DIGITS {
                    return None;
                }
                self.left = self.left << 4 | u64::from(char::from(byte).to_digit(16)?);
                ChunkState::Digits
            }
            (ChunkState::Digits | ChunkState::Space | ChunkState::Extension, b'\r') => {
                ChunkState::SizeEnd
            }
            (ChunkState::Digits | ChunkState::Space, b';') => ChunkState::Extension,
            (ChunkState::Extension, byte) if byte.is_ascii_control() && byte != b'\t' => {
                return None;
            }
            (ChunkState::Digits | ChunkState::Space, b' ' | b'\t') => {
                self.line += 1;
                if self.line > MAX_LINE {
                    return None;
                }
                ChunkState::Space
            }
            (ChunkState::Extension, _) => {
                self.line += 1;
                if self.line > MAX_LINE {
                    return None;
                }
                ChunkState::Extension
            }
            (ChunkState::SizeEnd, b'\n') => {
                (self.digits, self.line) = (0, 0);
                if self.left > 0 {
                    ChunkState::Payload
                } else {
                    ChunkState::Trailer
                }
            }
            (ChunkState::PayloadEnd, b'\r') => ChunkState::PayloadEndFeed,
            (ChunkState::PayloadEndFeed, b'\n') => ChunkState::Size,
            (ChunkState::Trailer, b'\r') => ChunkState::LastEnd,
            (ChunkState::LastEnd, b'\n') => ChunkState::End,
            (ChunkState::InTrailer, b'\r') => ChunkState::TrailerEnd,
            (ChunkState::TrailerEnd, b'\n') => ChunkState::Trailer,
            (ChunkState::Trailer | ChunkState::InTrailer, byte)
                if !byte.is_ascii_control() || byte == b'\t' =>
            {
                self.line += 1;
                if self.line > MAX_LINE {
                    return None;
                }
                ChunkState::InTrailer
            }
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What goes on of a chunked body that comes in these parts, its payload, and how much was not
    /// read.
    fn relayed(parts: &[&[u8]]) -> Option<(Vec<u8>, u64, usize)> {
        let (mut left, mut out, mut payload) = (BodyDecoder::new(Body::Chunked), Vec::new(), 0);
        for (number, part) in parts.iter().enumerate() {
            let mut part = part.to_vec();
            let fed = left.feed(&mut part)?;
            out.extend_from_slice(&part[..fed.kept]);
            payload += fed.payload;
            if fed.is_over {
                out.extend_from_slice(left.end());
                let rest = part.len() - fed.used
                    + parts[number + 1..]
                        .iter()
                        .map(|part| part.len())
                        .sum::<usize>();
                return Some((out, payload, rest));
            }
            assert_eq!(fed.used, part.len());
        }
        None
    }

    #[test]
    fn a_chunked_body_goes_on_as_it_is_and_ends_where_it_ends() {
        let body = b"5\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n";
        assert_eq!(
            relayed(&[&[&body[..], b"HTTP/1.1"].concat()]),
            Some((body.to_vec(), 15, 8))
        );
        assert_eq!(
            relayed(&[b"0\r\n\r\n"]),
            Some((b"0\r\n\r\n".to_vec(), 0, 0))
        );
    }

    #[test]
    fn trailers_and_extensions_are_cut_out() {
        let cut = Some((b"2\r\nok\r\n0\r\n\r\n".to_vec(), 2, 0));
        assert_eq!(
            relayed(&[b"2\r\nok\r\n0\r\nx-a: 1\r\nset-cookie: evil=1\r\n\r\n"]),
            cut
        );
        assert_eq!(relayed(&[b"2\r\nok\r\n0\r\na:\r\n\r\n"]), cut);
        assert_eq!(relayed(&[b"2;a=b\r\nok\r\n0;last\r\n\r\n"]), cut);
        assert_eq!(
            relayed(&[b"2 ", b";a=\"", b"b\"\r", b"\nok\r\n0\t\r\n\r\n"]),
            cut
        );
    }

    #[test]
    fn what_is_no_chunk_is_not_passed_on() {
        for bad in [
            &b"\r\n"[..],
            b"x\r\n",
            b"5\nhello\r\n",
            b"5\r\nhelloo\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"1000000000000000\r\n",
            b"-1\r\n",
            b"+1\r\n",
            b"0x1\r\n",
            b"5;a\n\r\n",
            b"0\r\n\n",
            b"0\r\na: 1\n\r\n",
            b"0\r\na: 1\r\r\n",
            b" 5\r\nhello\r\n",
            b";x\r\n",
            b"5 5\r\nhello\r\n",
            b"5;a=\0\r\nhello\r\n",
            b"5\x0b\r\nhello\r\n",
            b"0\r\na: \x0b\r\n\r\n",
        ] {
            assert_eq!(
                BodyDecoder::new(Body::Chunked).feed(&mut bad.to_vec()),
                None,
                "{:?}",
                String::from_utf8_lossy(bad)
            );
        }
    }

    #[test]
    fn a_length_is_a_length() {
        let mut left = BodyDecoder::new(Body::Length(5));
        assert_eq!(
            left.feed(&mut b"abc".to_vec()),
            Some(Decoded {
                used: 3,
                kept: 3,
                payload: 3,
                is_over: false
            })
        );
        assert_eq!(
            left.feed(&mut b"defg".to_vec()),
            Some(Decoded {
                used: 2,
                kept: 2,
                payload: 2,
                is_over: true
            })
        );
        assert!(
            BodyDecoder::new(Body::Length(0)).is_nothing()
                && !BodyDecoder::new(Body::Chunked).is_nothing()
        );
    }

    proptest! {
        #[test]
        fn fragments_make_no_difference(sizes in prop::collection::vec(0usize..40, 0..6), trailers in 0usize..3, extended: bool, cuts in prop::collection::vec(1usize..9, 1..60)) {
            let mut body = Vec::new();
            for size in sizes.iter().filter(|size| **size > 0) {
                body.extend_from_slice(format!("{size:x}{}\r\n{}\r\n", if extended { ";a=b" } else { "" }, "z".repeat(*size)).as_bytes());
            }
            body.extend_from_slice(b"0\r\n");
            let kept = String::from_utf8_lossy(&[&body[..], b"\r\n"].concat()).replace(";a=b", "").into_bytes();
            body.extend_from_slice("x: 1\r\n".repeat(trailers).as_bytes());
            body.extend_from_slice(b"\r\nnext");
            let (mut parts, mut at) = (Vec::new(), 0);
            for cut in cuts {
                let until = (at + cut).min(body.len());
                parts.push(&body[at..until]);
                at = until;
            }
            parts.push(&body[at..]);
            let expected = (kept, sizes.iter().sum::<usize>() as u64, 4);
            prop_assert_eq!(relayed(&parts), Some(expected));
        }
    }
}
