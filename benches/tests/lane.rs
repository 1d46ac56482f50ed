//! The allocations of a request and of a connection on the fast lane. The whole proxy runs in this
//! process; its backend and its client run in threads that allocate nothing.
//!
//! This is a separate test binary, because an allocator is chosen for a whole program. It has a
//! single test, because it counts the allocations of all threads.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use cutover::assemble::{Origin, Start};
use cutover_benches::allocations::{CountingAllocator, live_bytes, of_all_threads};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const REQUEST: &[u8] = b"GET /checkout/1?a=b HTTP/1.1\r\nhost: shop.example\r\nuser-agent: test\r\naccept: */*\r\nx-user-id: 2f1c9d0e-7b6a\r\n\r\n";
const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\nhello";

fn backend() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream));
        }
    });
    address
}

fn answer(mut stream: TcpStream) {
    let mut request = [0; 4096];
    while stream.read(&mut request).is_ok_and(|read| read > 0) {
        // A request on the lane is received in one piece.
        if stream.write_all(ANSWER).is_err() {
            return;
        }
    }
}

fn ask(client: &mut TcpStream) {
    client.write_all(REQUEST).unwrap();
    let (mut answer, mut read) = ([0; 4096], 0);
    while !answer[..read].ends_with(b"hello") {
        let more = client.read(&mut answer[read..]).unwrap();
        assert!(more > 0, "{}", String::from_utf8_lossy(&answer[..read]));
        read += more;
    }
}

#[test]
fn a_lane_request_allocates_nothing_and_an_idle_connection_3_kib() {
    let (directory, backend) = (tempfile::tempdir().unwrap(), backend());
    let file = directory.path().join("cutover.toml");
    let text = format!(
        "[listen]\nhttp = [\"127.0.0.1:0\"]\nengine = \"auto\"\n[admin]\naddress = \
         \"127.0.0.1:0\"\n[state]\ndirectory = \"{}\"\n[log]\naccess = \
         \"off\"\n[backend.legacy]\nservers = [\"{backend}\"]\n[backend.new]\nservers = \
         [\"{backend}\"]\n[[rollout]]\nid = \"checkout\"\nmatch = {{ path = \"/checkout\" \
         }}\npercent = 50\nkey = [\"header:x-user-id\"]\n",
        directory.path().join("state").display()
    );
    std::fs::write(&file, text).unwrap();
    let proxy = Start {
        file,
        threads: Some(1),
        access_out: Box::new(std::io::sink()),
        origin: Origin::default(),
    }
    .start()
    .unwrap();
    let mut client = TcpStream::connect(proxy.http[0]).unwrap();
    (0..200).for_each(|_| ask(&mut client));

    // Other tasks work by the clock: there are four ticks a second, and this test lasts for a few
    // of them.
    const REQUESTS: u64 = 10_000;
    let before = of_all_threads();
    (0..REQUESTS).for_each(|_| ask(&mut client));
    let allocations = of_all_threads() - before;
    assert!(
        allocations < REQUESTS,
        "{allocations} allocations for {REQUESTS} requests"
    );

    const CONNECTIONS: usize = 250;
    let mut open = Vec::new();
    let mut more = || {
        let before = live_bytes();
        for _ in 0..CONNECTIONS {
            open.push(TcpStream::connect(proxy.http[0]).unwrap());
            ask(open.last_mut().unwrap());
        }
        // Tasks that have ended are freed only when their threads next run, so the lowest value
        // seen is the number of bytes that idle connections keep.
        let (deadline, mut least) = (Instant::now() + Duration::from_secs(2), i64::MAX);
        while Instant::now() < deadline && least > 3 * 1024 * CONNECTIONS as i64 {
            least = least.min(live_bytes() - before);
            std::thread::sleep(Duration::from_millis(10));
        }
        least / CONNECTIONS as i64
    };
    // One-time allocations (the pool, the list of the deadlines task, the judge's tables at the
    // first slow answer) fall into some of the rounds.
    let rounds: Vec<i64> = (0..5).map(|_| more()).collect();
    assert!(
        rounds.iter().any(|bytes| *bytes <= 3 * 1024),
        "{rounds:?} bytes for each connection"
    );
    drop(open);
    proxy.stop(Duration::ZERO, Duration::from_secs(5), || false);
}
