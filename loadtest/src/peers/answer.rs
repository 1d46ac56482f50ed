//! Reading one answer of a stub through a proxy, and nothing else: the least work that still
//! notices every other answer.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::peers::stub::{answer_bytes, mark};
use crate::users::Side;

/// More than any answer has: a head and its body.
pub fn most_answer_bytes() -> usize {
    16 * 1024 + answer_bytes()
}

/// Reads one whole answer and says whose it is.
///
/// # Errors
/// When the connection ends or something else arrives.
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

/// Asks once on an open connection.
///
/// # Errors
/// When a stub's answer does not come.
pub async fn ask_on(stream: &mut TcpStream, request: &[u8], buffer: &mut [u8]) -> io::Result<Side> {
    stream.write_all(request).await?;
    read_answer(stream, buffer).await
}

/// Asks once on a connection of its own.
///
/// # Errors
/// When a stub's answer does not come.
pub async fn ask_once(address: SocketAddr, request: &[u8]) -> io::Result<Side> {
    ask_on(
        &mut TcpStream::connect(address).await?,
        request,
        &mut vec![0; most_answer_bytes()],
    )
    .await
}

/// Whose whole answer this is; `None` while it is a part of one, an error when it is not going to
/// be one.
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
    fn only_a_whole_answer_of_a_backend_counts_and_says_its_side() {
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
