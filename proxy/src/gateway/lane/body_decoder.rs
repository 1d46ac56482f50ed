//! Finds the end of a body while its bytes pass through.
//!
//! The chunks of an answer are passed on unchanged after a check of every byte: line ends need both
//! bytes, and sizes have at most fifteen digits. Parts that only some programs read, and not all in
//! the same way, are removed. These are the extensions of chunks, and trailers, which could tell a
//! client anything after the answer was judged. The remaining bytes are a complete chunked body.

/// How a body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gateway) enum Body {
    /// The body has this length in bytes. Zero means no body.
    Length(u64),
    /// The body is chunked.
    Chunked,
    /// The body ends with the connection.
    Close,
}

/// The rest of a body.
#[derive(Debug)]
pub(in crate::gateway) enum BodyDecoder {
    /// This many bytes are left.
    Length(u64),
    /// The chunks determine the end.
    Chunked(ChunkedDecoder),
    /// The body lasts until the connection ends.
    Close,
}

/// The part of some bytes that belongs to a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gateway) struct Decoded {
    /// The number of bytes that were read, from the first on.
    pub(in crate::gateway) used: usize,
    /// The number of read bytes that are passed on. They are at the front.
    pub(in crate::gateway) kept: usize,
    /// The number of these bytes that are payload, without the framing.
    pub(in crate::gateway) payload: u64,
    /// Whether the body is complete. If it is, [`BodyDecoder::end`] has to be sent after the kept
    /// bytes.
    pub(in crate::gateway) is_over: bool,
}

impl BodyDecoder {
    /// Creates a decoder at the start of a body.
    pub(in crate::gateway) fn new(body: Body) -> Self {
        match body {
            Body::Length(bytes) => Self::Length(bytes),
            Body::Chunked => Self::Chunked(ChunkedDecoder::default()),
            Body::Close => Self::Close,
        }
    }

    /// Returns whether the body is empty, before anything of it was read.
    pub(in crate::gateway) fn is_nothing(&self) -> bool {
        matches!(self, Self::Length(0))
    }

    /// Reads the next bytes, and moves the bytes to pass on to the front. `None` when they are not
    /// a valid body of this kind.
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

    /// Returns the bytes to send after the last kept bytes.
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
    /// After the digits, where an extension may follow.
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

/// Finds the end of a chunked body (RFC 9112, section 7.1).
#[derive(Debug, Default)]
pub(in crate::gateway) struct ChunkedDecoder {
    place: ChunkState,
    left: u64,
    digits: u8,
    line: u16,
}

/// The largest number of digits of a size, which is more than any real body needs.
const MAX_DIGITS: u8 = 15;
/// The largest number of bytes of one extension, and of all trailers together.
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
                // The line of the last chunk is the last line that is kept.
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

    /// Decodes a chunked body that is received in these parts. Returns the bytes passed on, the
    /// payload length, and the number of unread bytes.
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
    fn a_chunked_body_passes_unchanged_and_its_end_is_found() {
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
    fn trailers_and_extensions_are_removed() {
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
    fn a_malformed_chunk_is_not_passed_on() {
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
    fn a_body_with_a_length_ends_after_that_length() {
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
        fn a_body_is_decoded_alike_for_any_split_of_bytes(sizes in prop::collection::vec(0usize..40, 0..6), trailers in 0usize..3, extended: bool, cuts in prop::collection::vec(1usize..9, 1..60)) {
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
