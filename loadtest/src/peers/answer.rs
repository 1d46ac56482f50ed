//! The reading of one stub answer through a proxy: the least work that still detects every other
//! answer.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::peers::stub::{answer_bytes, mark};
use crate::users::Side;

/// Returns a size larger than any answer with its head and body.
pub fn most_answer_bytes() -> usize {
    16 * 1024 + answer_bytes()
}

/// Reads one complete answer and returns its side.
///
/// # Errors
/// Fails if the connection ends or anything else is received.
pub async fn read_answer(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut [u8],
) -> io::Result<Side> {
    let mut filled = 0;
    loop {
        let read = stream.read(&mut buffer[filled..]).await?;
        if read == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("the connection ended after {filled} bytes of an answer"),
            ));
        }
        filled += read;
        if let Some(side) = whole(&buffer[..filled])? {
            return Ok(side);
        }
    }
}

/// Sends one request on an open connection and reads the answer.
///
/// # Errors
/// Fails if no answer of a stub is received.
pub async fn ask_on(stream: &mut TcpStream, request: &[u8], buffer: &mut [u8]) -> io::Result<Side> {
    stream.write_all(request).await?;
    read_answer(stream, buffer).await
}

/// Sends one request on a new connection and reads the answer.
///
/// # Errors
/// Fails if no answer of a stub is received.
pub async fn ask_once(address: SocketAddr, request: &[u8]) -> io::Result<Side> {
    ask_on(
        &mut TcpStream::connect(address).await?,
        request,
        &mut vec![0; most_answer_bytes()],
    )
    .await
}

/// Returns the side of a complete answer. Returns `None` while the answer is incomplete, and an
/// error if it cannot become a valid one.
fn whole(answer: &[u8]) -> io::Result<Option<Side>> {
    let Some(end_of_head) = answer.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let (head, body) = answer.split_at(end_of_head + 4);
    let wrong = || {
        let first_line =
            String::from_utf8_lossy(head.split(|&byte| byte == b'\r').next().unwrap_or_default())
                .into_owned();
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "not a backend's answer: {first_line}, {} bytes of body",
                body.len()
            ),
        )
    };
    if !head.starts_with(b"HTTP/1.1 200 ") || body.len() > answer_bytes() {
        return Err(wrong());
    }
    match body.last() {
        Some(_) if body.len() < answer_bytes() => Ok(None),
        None => Ok(None),
        Some(&last) => [Side::Legacy, Side::New]
            .into_iter()
            .find(|&side| mark(side) == last)
            .map(Some)
            .ok_or_else(wrong),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::stub::BODY_BYTES;

    #[test]
    fn only_a_complete_backend_answer_counts_and_names_its_side() {
        let answer = |status: &str, body: &[u8]| {
            [
                format!("HTTP/1.1 {status}\r\ncontent-length: 1024\r\n\r\n").as_bytes(),
                body,
            ]
            .concat()
        };
        assert_eq!(
            whole(&answer("200 OK", &[b'l'; BODY_BYTES])).expect("an answer"),
            Some(Side::Legacy)
        );
        assert_eq!(
            whole(&answer("200 OK", &[b'n'; BODY_BYTES])).expect("an answer"),
            Some(Side::New)
        );
        assert_eq!(
            whole(&answer("200 OK", b"nnnnnnn")).expect("a part of it"),
            None
        );
        assert_eq!(whole(&answer("200 OK", b"")).expect("its head"), None);
        assert_eq!(
            whole(b"HTTP/1.1 200 OK\r\n").expect("a part of the head"),
            None
        );
        for (status, body) in [
            ("503 Service Unavailable", &b""[..]),
            ("200 OK", &[b'n'; BODY_BYTES + 1]),
            ("200 OK", &[b'?'; BODY_BYTES]),
        ] {
            assert!(
                whole(&answer(status, body)).is_err(),
                "{status} {}",
                body.len()
            );
        }
    }
}
