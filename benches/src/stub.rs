//! The backend behind the proxies that are compared: the least that answers HTTP/1.1 and keeps the connection.
//!
//! It looks only for the empty line that ends a head, so it must get nothing but requests without a body, one at a time. That is what the load of this crate sends.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// How long the body of each answer is.
pub const BODY_BYTES: usize = 1024;

const END_OF_HEAD: &[u8] = b"\r\n\r\n";
const MOST_HEAD_BYTES: usize = 16 * 1024;

/// Starts a backend on a thread of its own, where it stays to the end of the process.
///
/// # Errors
/// When there is no port or no thread.
pub fn start() -> io::Result<SocketAddr> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    thread::Builder::new().name("backend".to_owned()).spawn(move || {
        runtime.block_on(async {
            let Ok(listener) = TcpListener::from_std(listener) else { return };
            while let Ok((stream, _)) = listener.accept().await {
                // A connection that breaks is the proxy's to notice and the load's to count.
                tokio::spawn(async move { serve(stream).await });
            }
        });
    })?;
    Ok(address)
}

async fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let answer = answer();
    let mut buffer = vec![0; MOST_HEAD_BYTES];
    let mut filled = 0;
    loop {
        let read = stream.read(&mut buffer[filled..]).await?;
        // Zero is the end of the connection, or a head that does not fit.
        if read == 0 {
            return Ok(());
        }
        filled += read;
        if buffer[..filled].ends_with(END_OF_HEAD) {
            stream.write_all(&answer).await?;
            filled = 0;
        }
    }
}

fn answer() -> Vec<u8> {
    let mut answer = format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {BODY_BYTES}\r\n\r\n").into_bytes();
    answer.resize(answer.len() + BODY_BYTES, b'.');
    answer
}
