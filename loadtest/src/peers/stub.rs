//! The two backends behind the compared proxies. They do the minimum: answer HTTP/1.1, keep the
//! connection and name their side.
//!
//! Both live on one thread, so a proxy with one backend and a proxy with two wake the same thread.
//! Every byte of the body names the side. Proxies may change headers, and the load then needs to
//! check only one byte. A stub searches only for the empty line that ends a head, so it must
//! receive only requests without a body, one at a time. That is what the load next to it sends.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::users::Side;

/// The default size of the body of each answer, in bytes.
pub const BODY_BYTES: usize = 1024;

/// The size for the whole comparison, so that it need not be passed along with each request.
static ANSWER_BYTES: AtomicUsize = AtomicUsize::new(BODY_BYTES);

/// Returns the size of the body of each answer, in bytes.
pub fn answer_bytes() -> usize {
    ANSWER_BYTES.load(Ordering::Relaxed)
}

/// Sets the size of the body of each answer. It must be called before anything is started.
pub fn set_answer_bytes(bytes: usize) {
    ANSWER_BYTES.store(bytes, Ordering::Relaxed);
}

const END_OF_HEAD: &[u8] = b"\r\n\r\n";
const MOST_HEAD_BYTES: usize = 16 * 1024;

/// The addresses of the two backends.
#[derive(Clone, Copy, Debug)]
pub struct Stubs {
    /// The address of the backend that answers as legacy.
    pub legacy: SocketAddr,
    /// The address of the backend that answers as new.
    pub new: SocketAddr,
}

impl Stubs {
    /// Starts both backends on their own thread, where they stay until the process ends.
    ///
    /// # Errors
    /// Fails if no port or no thread is available.
    pub fn start() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        let bind = || {
            let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok::<_, io::Error>((listener, address))
        };
        let ((legacy, legacy_at), (new, new_at)) = (bind()?, bind()?);
        thread::Builder::new()
            .name("backends".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::join!(accept(legacy, Side::Legacy), accept(new, Side::New))
                });
            })?;
        Ok(Self {
            legacy: legacy_at,
            new: new_at,
        })
    }
}

async fn accept(listener: std::net::TcpListener, side: Side) {
    let Ok(listener) = TcpListener::from_std(listener) else {
        return;
    };
    while let Ok((stream, _)) = listener.accept().await {
        // The proxy notices a broken connection and the load counts it.
        tokio::spawn(async move { serve(stream, side).await });
    }
}

async fn serve(mut stream: TcpStream, side: Side) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let answer = answer(side);
    let mut buffer = vec![0; MOST_HEAD_BYTES];
    let mut filled = 0;
    loop {
        let read = stream.read(&mut buffer[filled..]).await?;
        // Zero means the end of the connection, or a head that does not fit.
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

fn answer(side: Side) -> Vec<u8> {
    let mut answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n",
        answer_bytes()
    )
    .into_bytes();
    answer.resize(answer.len() + answer_bytes(), mark(side));
    answer
}

/// Returns the byte that the body of this side consists of.
pub const fn mark(side: Side) -> u8 {
    match side {
        Side::Legacy => b'l',
        Side::New => b'n',
    }
}
