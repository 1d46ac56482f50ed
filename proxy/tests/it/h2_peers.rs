//! Scripted HTTP/2 peers. They work frame by frame where a library would not behave as they do.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

pub const HEADERS: u8 = 1;
pub const DATA: u8 = 0;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const ACK: u8 = 1;

/// An HTTP/2 frame.
#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    fn read(stream: &mut TcpStream) -> std::io::Result<Self> {
        let mut header = [0; 9];
        stream.read_exact(&mut header)?;
        let length =
            usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload)?;
        Ok(Self {
            kind: header[3],
            flags: header[4],
            stream: u32::from_be_bytes(header[5..9].try_into().unwrap()) & 0x7fff_ffff,
            payload,
        })
    }
}

/// How the backend handles a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It answers 200 with the number of body bytes.
    Answered,
    /// It sends RST_STREAM with this code.
    Reset(u32),
    /// It sends GOAWAY with this code, which names the stream before this one as the last, and then
    /// ends.
    GoAway(u32),
    /// It answers 200, with a body that never continues.
    Stalled,
    /// It sends no answer at all.
    Silent,
    /// It answers 200 as soon as it has the head, and reads no more of the request (RFC 9113,
    /// section 8.1).
    Early,
}

/// A backend that handles each request as `decide` says, by its number, starting at one.
pub struct H2Backend {
    pub address: SocketAddr,
    seen: Arc<Seen>,
}

struct Seen {
    connections: AtomicUsize,
    requests: AtomicUsize,
    answered: AtomicUsize,
    bodies: Mutex<Vec<Vec<u8>>>,
}

impl H2Backend {
    pub fn start(decide: impl Fn(usize) -> Fate + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen {
            connections: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            answered: AtomicUsize::new(0),
            bodies: Mutex::default(),
        });
        let (serving, decide) = (Arc::clone(&seen), Arc::new(decide));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                serving.connections.fetch_add(1, Ordering::SeqCst);
                let (seen, decide) = (Arc::clone(&serving), Arc::clone(&decide));
                std::thread::spawn(move || drop(serve(stream, &seen, &*decide)));
            }
        });
        Self { address, seen }
    }

    pub fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    /// Returns the number of complete requests.
    pub fn requests(&self) -> usize {
        self.seen.requests.load(Ordering::SeqCst)
    }

    pub fn answered(&self) -> usize {
        self.seen.answered.load(Ordering::SeqCst)
    }

    /// Returns the bodies of the requests that were answered.
    pub fn bodies(&self) -> Vec<Vec<u8>> {
        self.seen.bodies.lock().unwrap().clone()
    }
}

/// Returns the bytes of a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u32;
    let mut bytes = vec![
        (length >> 16) as u8,
        (length >> 8) as u8,
        length as u8,
        kind,
        flags,
    ];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn serve(
    mut stream: TcpStream,
    seen: &Seen,
    decide: &(dyn Fn(usize) -> Fate + Send + Sync),
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut preface = [0; 24];
    stream.read_exact(&mut preface)?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[]))?;
    let mut bodies: HashMap<u32, Vec<u8>> = HashMap::new();
    loop {
        let came = Frame::read(&mut stream)?;
        match came.kind {
            SETTINGS if came.flags & ACK == 0 => stream.write_all(&frame(SETTINGS, ACK, 0, &[]))?,
            PING if came.flags & ACK == 0 => {
                stream.write_all(&frame(PING, ACK, 0, &came.payload))?;
            }
            HEADERS => {
                bodies.insert(came.stream, Vec::new());
                if decide(seen.requests.load(Ordering::SeqCst) + 1) == Fate::Early {
                    seen.requests.fetch_add(1, Ordering::SeqCst);
                    let reset = frame(RST_STREAM, 0, came.stream, &0_u32.to_be_bytes());
                    stream.write_all(
                        &[
                            frame(HEADERS, END_HEADERS, came.stream, &[0x88]),
                            frame(DATA, END_STREAM, came.stream, b"early"),
                            reset,
                        ]
                        .concat(),
                    )?;
                    continue;
                }
            }
            DATA => {
                let bytes = (came.payload.len() as u32).to_be_bytes();
                if !came.payload.is_empty() {
                    stream.write_all(
                        &[
                            frame(WINDOW_UPDATE, 0, 0, &bytes),
                            frame(WINDOW_UPDATE, 0, came.stream, &bytes),
                        ]
                        .concat(),
                    )?;
                }
                bodies.entry(came.stream).or_default().extend(came.payload);
            }
            _ => {}
        }
        if !matches!(came.kind, HEADERS | DATA) || came.flags & END_STREAM == 0 {
            continue;
        }
        let number = seen.requests.fetch_add(1, Ordering::SeqCst) + 1;
        let body = bodies.remove(&came.stream).unwrap_or_default();
        // This is `:status: 200` of the static table (RFC 7541, appendix A).
        let ok = [0x88];
        match decide(number) {
            Fate::Answered => {
                let text = format!("h2 {}", body.len());
                seen.answered.fetch_add(1, Ordering::SeqCst);
                seen.bodies.lock().unwrap().push(body);
                stream.write_all(
                    &[
                        frame(HEADERS, END_HEADERS, came.stream, &ok),
                        frame(DATA, END_STREAM, came.stream, text.as_bytes()),
                    ]
                    .concat(),
                )?;
            }
            Fate::Reset(code) => {
                stream.write_all(&frame(RST_STREAM, 0, came.stream, &code.to_be_bytes()))?;
            }
            Fate::GoAway(code) => {
                let last = came.stream.saturating_sub(2);
                stream.write_all(&frame(
                    GOAWAY,
                    0,
                    0,
                    &[last.to_be_bytes(), code.to_be_bytes()].concat(),
                ))?;
                // Unread bytes turn the close of a socket into a reset, which may arrive before the
                // GOAWAY.
                stream.shutdown(std::net::Shutdown::Write)?;
                stream.set_read_timeout(Some(crate::harness::PATIENCE))?;
                while Frame::read(&mut stream).is_ok() {}
                return Ok(());
            }
            Fate::Stalled => stream.write_all(
                &[
                    frame(HEADERS, END_HEADERS, came.stream, &ok),
                    frame(DATA, 0, came.stream, b"begun"),
                ]
                .concat(),
            )?,
            Fate::Silent | Fate::Early => {}
        }
    }
}

/// An HTTP/2 client that sends exactly the given frames.
pub struct H2Client {
    stream: TcpStream,
}

impl H2Client {
    /// Connects and sends the preface.
    pub fn connect(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
            .set_read_timeout(Some(crate::harness::PATIENCE))
            .unwrap();
        stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .unwrap();
        stream.write_all(&frame(SETTINGS, 0, 0, &[])).unwrap();
        Self { stream }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends these bytes, and returns whether the connection still accepts them.
    pub fn send_if_open(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Returns the same connection, for writing in parallel.
    pub fn split(&self) -> Self {
        Self {
            stream: self.stream.try_clone().unwrap(),
        }
    }

    /// Begins a request; `flags` may end it, or its header block.
    pub fn ask(&mut self, stream: u32, flags: u8, path: &str, more: &[(&str, &str)]) {
        let block = header_block(path, more);
        self.send(&frame(HEADERS, flags, stream, &block));
    }

    pub fn data(&mut self, stream: u32, flags: u8, payload: &[u8]) {
        self.send(&frame(DATA, flags, stream, payload));
    }

    pub fn acknowledge(&mut self, ping: &Frame) {
        self.send(&frame(PING, ACK, 0, &ping.payload));
    }

    /// Returns the next frame; `None` at the end of the connection.
    pub fn next(&mut self) -> Option<Frame> {
        Frame::read(&mut self.stream).ok()
    }

    /// Returns the next frame of this kind; `None` when the connection ends before.
    pub fn next_of(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.next()?;
            if frame.kind == kind && !(kind == PING && frame.flags & ACK != 0) {
                return Some(frame);
            }
        }
    }

    /// Returns all frames until the end of the connection. Pings are answered if `answers` is true.
    pub fn rest(&mut self, answers: bool) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next() {
            if answers && frame.kind == PING && frame.flags & ACK == 0 {
                self.acknowledge(&frame);
            }
            frames.push(frame);
        }
        frames
    }
}

/// Returns a GET of `path` in literals without Huffman coding (RFC 7541, section 6.2.2).
pub fn header_block(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    let mut field = |name: &str, value: &str| {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127, "one byte of length");
            block.push(text.len() as u8);
            block.extend(text.as_bytes());
        }
    };
    let is_given = |name: &str| more.iter().any(|(given, _)| *given == name);
    for (name, value) in [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "shop.example"),
    ] {
        if !is_given(name) {
            field(name, value);
        }
    }
    let (first, then): (Vec<_>, Vec<_>) = more
        .iter()
        .filter(|(_, value)| *value != "-")
        .partition(|(name, _)| name.starts_with(':'));
    first.iter().for_each(|(name, value)| field(name, value));
    field("x-user-id", "u");
    then.iter().for_each(|(name, value)| field(name, value));
    block
}
