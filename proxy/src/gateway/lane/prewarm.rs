//! Opens idle connections to a server before its first user.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::clock;
use crate::gateway::lane::body_decoder::BodyDecoder;
use crate::gateway::lane::read_buffer::{Buffer, Size};
use crate::gateway::lane::request::Parsed;
use crate::gateway::lane::response::{Answer, parse};
use crate::upstream::{Connect, Server};

/// Sends a request for this path to a server on a new connection. Puts that connection where
/// requests look for one, if the answer allows it. The content of the answer is ignored.
pub async fn warm(server: &Server, path: &str, connect_timeout: Duration) {
    let Ok(Ok(mut stream)) =
        tokio::time::timeout(connect_timeout, TcpStream::connect(server.address())).await
    else {
        return server.connected(Connect::Failed);
    };
    server.connected(Connect::New);
    let _ = stream.set_nodelay(true);
    let head = format!(
        "GET {path} HTTP/1.1\r\nhost: {}\r\nuser-agent: {}\r\n\r\n",
        server.host(),
        concat!("cutover-warm-up/", env!("CARGO_PKG_VERSION"))
    );
    if stream.write_all(head.as_bytes()).await.is_ok() && reads_to_the_end(&mut stream).await {
        server.pool().put(stream, clock::mono());
    }
}

/// Reads an answer, and returns whether the connection can be used again.
async fn reads_to_the_end(stream: &mut TcpStream) -> bool {
    let mut buffer = Buffer::new(Size::LargeHead);
    let response_head = loop {
        if buffer.is_full() || !fills(stream, &mut buffer).await {
            return false;
        }
        match parse(buffer.filled(), false) {
            Some(Parsed::Whole(Answer { response_head, .. }))
                if response_head.status >= 200 && response_head.keeps =>
            {
                break response_head;
            }
            Some(Parsed::Partial) => {}
            Some(_) | None => return false,
        }
    };
    buffer.consume(response_head.head);
    let mut left = BodyDecoder::new(response_head.body);
    if left.is_nothing() {
        return buffer.is_empty();
    }
    loop {
        let Some(fed) = left.feed(buffer.filled_mut()) else {
            return false;
        };
        buffer.consume(fed.used);
        if fed.is_over {
            return buffer.is_empty();
        }
        if !fills(stream, &mut buffer).await {
            return false;
        }
    }
}

async fn fills(stream: &mut TcpStream, buffer: &mut Buffer) -> bool {
    std::future::poll_fn(|cx| buffer.poll_fill(stream, usize::MAX, cx))
        .await
        .is_ok_and(|read| read > 0)
}
