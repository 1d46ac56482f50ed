//! The two backends behind the proxies that are compared: the least that answers HTTP/1.1, keeps
//! the connection and says which side it is.
//!
//! Both live on one thread, so that a proxy with one backend and one with two wake the same thread.
//! The side is said by every byte of the body, because proxies may touch headers and the
//! load then needs to look at one byte only. A stub looks only for the empty line that ends a head,
//! so it must get nothing but requests without a body, one at a time. That is what the load beside
//! it sends.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::users::Side;

/// How long the body of each answer is, in bytes, unless somebody says otherwise.
pub const BODY_BYTES: usize = 1024;

/// One length for a whole comparison, so that nobody has to be told with each request.
static ANSWER_BYTES: AtomicUsize = AtomicUsize::new(BODY_BYTES);

/// How long the body of each answer is, in bytes.
pub fn answer_bytes() -> usize {
    ANSWER_BYTES.load(Ordering::Relaxed)
}

/// Makes the body of each answer so long, before anything is started.
pub fn set_answer_bytes(bytes: usize) {
    ANSWER_BYTES.store(bytes, Ordering::Relaxed);
}

const END_OF_HEAD: &[u8] = b"\r\n\r\n";
const MOST_HEAD_BYTES: usize = 16 * 1024;

/// Where the two backends listen.
#[derive(Clone, Copy, Debug)]
pub struct Stubs {
    /// The backend that answers as legacy.
    pub legacy: SocketAddr,
    /// The backend that answers as new.
    pub new: SocketAddr,
}

impl Stubs {
    /// Starts both backends on a thread of their own, where they stay to the end of the process.
    ///
    /// # Errors
    /// When there is no port or no thread.
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
        // A connection that breaks is the proxy's to notice and the load's to count.
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

fn answer(side: Side) -> Vec<u8> {
    let mut answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n",
        answer_bytes()
    )
    .into_bytes();
    answer.resize(answer.len() + answer_bytes(), mark(side));
    answer
}

/// The byte that the body of this side consists of.
pub const fn mark(side: Side) -> u8 {
    match side {
        Side::Legacy => b'l',
        Side::New => b'n',
    }
}
