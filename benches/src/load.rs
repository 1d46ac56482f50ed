//! A closed loop over kept connections: each sends its next request when the last one is answered. It saturates the proxy, which is what CPU per request is asked at.
//!
//! Each request is of another user than the one before on its connection, so a connection goes from one side to the other as behind a load balancer.
//! Deliberately absent: latencies. A closed loop hides stalls, so it must not be asked for them; the load kit of this repository has an open loop for that.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::stub::BODY_BYTES;

const MOST_ANSWER_BYTES: usize = 16 * 1024;
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(10);
/// How long the last answers may take after [`Load::stop`].
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// A load that is running. Dropping it stops it.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    address: SocketAddr,
    requests: Arc<[Box<[u8]>]>,
    stopped: AtomicBool,
    answered: AtomicU64,
    failed: AtomicU64,
}

/// One request for each user, as it goes over the wire.
pub fn requests(users: &[String]) -> Arc<[Box<[u8]>]> {
    let request = |user: &String| format!("GET /checkout HTTP/1.1\r\nhost: shop.example\r\nuser-agent: cutover-benches\r\naccept: */*\r\nx-user-id: {user}\r\n\r\n");
    users.iter().map(|user| request(user).into_bytes().into_boxed_slice()).collect()
}

impl Load {
    /// Opens the connections and begins.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(address: SocketAddr, connections: usize, threads: usize, requests: Arc<[Box<[u8]>]>) -> io::Result<Self> {
        let shared = Shared { address, requests, stopped: AtomicBool::new(false), answered: AtomicU64::new(0), failed: AtomicU64::new(0) };
        let mut load = Self { shared: Arc::new(shared), threads: Vec::new() };
        for thread in 0..threads {
            let shared = Arc::clone(&load.shared);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let of_this_thread = (thread..connections).step_by(threads);
            load.threads.push(thread::Builder::new().name("load".to_owned()).spawn(move || {
                runtime.block_on(async {
                    let mut running: JoinSet<()> = of_this_thread.map(|connection| drive(Arc::clone(&shared), connection, connections)).collect();
                    while running.join_next().await.is_some() {}
                });
            })?);
        }
        Ok(load)
    }

    /// Requests answered as they should be.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// Requests without an answer, or with another one than the backend's.
    pub fn failed(&self) -> u64 {
        self.shared.failed.load(Ordering::Relaxed)
    }

    /// Sends no further request and waits for the last answers, so that the proxy sees no client give up.
    pub fn stop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A load thread that panicked has said so on standard error already.
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn drive(shared: Arc<Shared>, connection: usize, connections: usize) {
    let mut users = (connection..shared.requests.len()).step_by(connections).cycle();
    let mut buffer = vec![0; MOST_ANSWER_BYTES];
    while !shared.stopped.load(Ordering::Relaxed) {
        if keep_asking(&shared, &mut users, &mut buffer).await.is_err() && !shared.stopped.load(Ordering::Relaxed) {
            shared.failed.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
        }
    }
}

async fn keep_asking(shared: &Shared, users: &mut impl Iterator<Item = usize>, buffer: &mut [u8]) -> io::Result<()> {
    let mut stream = TcpStream::connect(shared.address).await?;
    stream.set_nodelay(true)?;
    while !shared.stopped.load(Ordering::Relaxed) {
        let Some(user) = users.next() else { return Ok(()) };
        stream.write_all(&shared.requests[user]).await?;
        read_answer(&mut stream, buffer, &shared.stopped).await?;
        shared.answered.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Reads one whole answer. A stalled one ends some time after the load was stopped.
async fn read_answer(stream: &mut TcpStream, buffer: &mut [u8], stopped: &AtomicBool) -> io::Result<()> {
    let mut filled = 0;
    loop {
        let read = match stream.try_read(&mut buffer[filled..]) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => read_or_give_up(stream, &mut buffer[filled..], stopped).await?,
            Err(error) => return Err(error),
        };
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        filled += read;
        if is_whole(&buffer[..filled])? {
            return Ok(());
        }
    }
}

async fn read_or_give_up(stream: &mut TcpStream, buffer: &mut [u8], stopped: &AtomicBool) -> io::Result<usize> {
    loop {
        match tokio::time::timeout(LAST_ANSWERS, stream.read(buffer)).await {
            Ok(read) => return read,
            Err(_) if stopped.load(Ordering::Relaxed) => return Err(io::ErrorKind::TimedOut.into()),
            Err(_) => {}
        }
    }
}

/// Whether this is the backend's whole answer; an error when it is not going to be.
fn is_whole(answer: &[u8]) -> io::Result<bool> {
    let Some(end_of_head) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(false) };
    let (head, body) = answer.split_at(end_of_head + 4);
    if !head.starts_with(b"HTTP/1.1 200 ") || body.len() > BODY_BYTES {
        let first_line = String::from_utf8_lossy(head.split(|&byte| byte == b'\r').next().unwrap_or_default()).into_owned();
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("not the backend's answer: {first_line}, {} bytes of body", body.len())));
    }
    Ok(body.len() == BODY_BYTES)
}

/// Asks once, on a connection of its own.
///
/// # Errors
/// When the backend's answer does not come.
pub async fn ask_once(address: SocketAddr, request: &[u8]) -> io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request).await?;
    read_answer(&mut stream, &mut vec![0; MOST_ANSWER_BYTES], &AtomicBool::new(true)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fixture, stub};

    #[tokio::test]
    async fn the_stub_answers_the_load_and_nothing_fails() {
        let address = stub::start().expect("a port is free");
        let requests = requests(&fixture::users(fixture::REQUESTING)[..100]);
        ask_once(address, &requests[0]).await.expect("the stub answers");
        let mut load = Load::start(address, 8, 2, requests).expect("threads start");
        while load.answered() < 1_000 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        load.stop();
        assert_eq!(load.failed(), 0);
    }

    #[test]
    fn only_the_backends_answer_counts() {
        let answer = |status: &str, body: usize| [format!("HTTP/1.1 {status}\r\ncontent-length: 1024\r\n\r\n").as_bytes(), &vec![b'.'; body]].concat();
        assert!(is_whole(&answer("200 OK", BODY_BYTES)).expect("the answer"));
        assert!(!is_whole(&answer("200 OK", 7)).expect("a part of it"));
        assert!(!is_whole(b"HTTP/1.1 200 OK\r\n").expect("a part of the head"));
        assert!(is_whole(&answer("503 Service Unavailable", 0)).is_err());
        assert!(is_whole(&answer("200 OK", BODY_BYTES + 1)).is_err());
    }
}
