//! Both ends of the wire as raw bytes. The backend keeps every byte it received and sends any given
//! bytes. The client distinguishes a whole answer from a broken one.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The longest time that anything may take. A longer read is a hang, and fails the test.
pub const BOUND: Duration = Duration::from_secs(8);

/// What a script does on a connection after it has read a whole request. `Ok(true)` keeps the
/// connection.
pub type Script = fn(&mut Talk, &Request) -> std::io::Result<bool>;

/// A backend of raw bytes. Requests below `/evil` are answered by its script, all others properly.
pub struct RawBackend {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    script: Mutex<Script>,
    at_accept: Mutex<AtAccept>,
    /// The received bytes, by connection.
    received: Mutex<Vec<Vec<u8>>>,
    evil: Mutex<Vec<String>>,
    done: AtomicUsize,
    ended: AtomicUsize,
}

/// What the backend does before a request is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtAccept {
    Read,
    Close,
    Reset,
    /// Sends this before any request, then reads.
    Say(&'static [u8]),
    /// Sends this as soon as it has received a head, and then reads on in silence.
    AnswerTheHead(&'static [u8]),
}

/// A connection to the proxy, from the backend's end.
pub struct Talk {
    stream: TcpStream,
    at: usize,
    buffer: Vec<u8>,
    /// Whether [`Talk::done`] was called for the present request.
    is_done: bool,
    shared: Arc<Shared>,
}

/// A request as the backend parsed it, by the strictest reading of RFC 9112.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub method: String,
    pub target: String,
    pub head: String,
    pub body: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.split("\r\n").skip(1).find_map(|line| {
            line.split_once(':')
                .filter(|(found, _)| found.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.trim())
        })
    }
}

impl RawBackend {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            script: Mutex::new(good),
            at_accept: Mutex::new(AtAccept::Read),
            received: Mutex::default(),
            evil: Mutex::default(),
            done: AtomicUsize::default(),
            ended: AtomicUsize::default(),
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&serving);
                let at = {
                    let mut received = shared.received.lock().unwrap();
                    received.push(Vec::new());
                    received.len() - 1
                };
                std::thread::spawn(move || {
                    let _ = stream.set_nodelay(true);
                    let _ = stream.set_read_timeout(Some(BOUND * 4));
                    let mut talk = Talk {
                        stream,
                        at,
                        buffer: Vec::new(),
                        is_done: false,
                        shared,
                    };
                    let _ = talk.serve();
                    let shared = Arc::clone(&talk.shared);
                    drop(talk);
                    shared.ended.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, shared }
    }

    /// Sets the behaviour from now on, at accept and for requests below `/evil`.
    pub fn behave(&self, at_accept: AtAccept, script: Script) {
        *self.shared.at_accept.lock().unwrap() = at_accept;
        *self.shared.script.lock().unwrap() = script;
    }

    /// Returns how many bytes each connection has received so far.
    pub fn mark(&self) -> Vec<usize> {
        self.shared
            .received
            .lock()
            .unwrap()
            .iter()
            .map(Vec::len)
            .collect()
    }

    /// Returns the bytes received since then, by connection, without connections that received
    /// none.
    pub fn since(&self, mark: &[usize]) -> Vec<Vec<u8>> {
        let received = self.shared.received.lock().unwrap();
        received
            .iter()
            .enumerate()
            .map(|(at, bytes)| bytes[mark.get(at).copied().unwrap_or_default()..].to_vec())
            .filter(|bytes| !bytes.is_empty())
            .collect()
    }

    /// Returns how many times a script has sent everything.
    pub fn done(&self) -> usize {
        self.shared.done.load(Ordering::SeqCst)
    }

    /// Returns the number of connections that the backend has closed.
    pub fn ended(&self) -> usize {
        self.shared.ended.load(Ordering::SeqCst)
    }

    /// Returns the request lines below `/evil` since the last call.
    pub fn take_evil(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.evil.lock().unwrap())
    }
}

/// Sends the proper answer, which names the user and the target, on a connection that is kept.
pub fn good(talk: &mut Talk, request: &Request) -> std::io::Result<bool> {
    let body = format!(
        "{} {} rollout={} body={}",
        request.method,
        request.target,
        request.header("x-cutover-rollout").unwrap_or("none"),
        request.body.len()
    );
    let sent = if request.method == "HEAD" { "" } else { &body };
    talk.say(
        format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{sent}",
            body.len()
        )
        .as_bytes(),
    )?;
    Ok(true)
}

impl Talk {
    fn serve(&mut self) -> std::io::Result<()> {
        let at_accept = *self.shared.at_accept.lock().unwrap();
        match at_accept {
            AtAccept::Read => {}
            AtAccept::Close => return Ok(()),
            AtAccept::Reset => return self.reset(),
            AtAccept::Say(bytes) => self.say(bytes)?,
            AtAccept::AnswerTheHead(bytes) => {
                self.until(|bytes| {
                    bytes
                        .windows(4)
                        .position(|four| four == b"\r\n\r\n")
                        .map(|at| at + 4)
                })?;
                self.say(bytes)?;
                return self.outlast().map(drop);
            }
        }
        while let Some(request) = self.request()? {
            let script = *self.shared.script.lock().unwrap();
            let is_evil = request.target.starts_with("/evil");
            if is_evil {
                self.shared
                    .evil
                    .lock()
                    .unwrap()
                    .push(format!("{} {}", request.method, request.target));
            }
            self.is_done = false;
            let kept = if is_evil {
                script(self, &request)
            } else {
                good(self, &request)
            };
            // The proxy may close before a script has sent everything. Nothing more can be sent
            // then.
            if is_evil && kept.is_err() {
                self.done();
            }
            if !kept? {
                return Ok(());
            }
        }
        Ok(())
    }

    pub fn say(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Records that everything is sent and is in the socket of the proxy. It counts once for each
    /// request.
    pub fn done(&mut self) {
        if !std::mem::replace(&mut self.is_done, true) {
            self.shared.done.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Closes with a reset instead of a regular end.
    pub fn reset<T>(&mut self) -> std::io::Result<T> {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))?;
        Err(ErrorKind::ConnectionReset.into())
    }

    /// Reads until the proxy gives up on this connection, so that the backend never closes first.
    pub fn outlast(&mut self) -> std::io::Result<bool> {
        while self.fill()? {}
        Ok(false)
    }

    /// Stays silent for this time, or until bytes are received.
    pub fn rest(&mut self, time: Duration) {
        let _ = self.stream.set_read_timeout(Some(time));
        let _ = self.fill();
        let _ = self.stream.set_read_timeout(Some(BOUND * 4));
    }

    /// Sends back the received bytes, until the proxy closes.
    pub fn echo(&mut self) -> std::io::Result<bool> {
        loop {
            let part = std::mem::take(&mut self.buffer);
            self.say(&part)?;
            if !self.fill()? {
                return Ok(false);
            }
        }
    }

    /// Waits until the proxy sends more, and stores it.
    fn fill(&mut self) -> std::io::Result<bool> {
        let mut part = [0; 16 * 1024];
        let read = self.stream.read(&mut part)?;
        self.shared.received.lock().unwrap()[self.at].extend_from_slice(&part[..read]);
        self.buffer.extend_from_slice(&part[..read]);
        Ok(read > 0)
    }

    fn until(&mut self, end: impl Fn(&[u8]) -> Option<usize>) -> std::io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(at) = end(&self.buffer) {
                return Ok(Some(self.buffer.drain(..at).collect()));
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    fn line(&mut self) -> std::io::Result<Option<String>> {
        let line = self.until(|bytes| {
            bytes
                .windows(2)
                .position(|two| two == b"\r\n")
                .map(|at| at + 2)
        })?;
        Ok(line.map(|line| String::from_utf8_lossy(&line[..line.len() - 2]).into_owned()))
    }

    /// Returns a whole request; `None` when the connection ended before one was complete.
    fn request(&mut self) -> std::io::Result<Option<Request>> {
        let Some(head) = self.until(|bytes| {
            bytes
                .windows(4)
                .position(|four| four == b"\r\n\r\n")
                .map(|at| at + 4)
        })?
        else {
            return Ok(None);
        };
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut words = head.split("\r\n").next().unwrap_or_default().split(' ');
        let mut request = Request {
            method: words.next().unwrap_or_default().to_owned(),
            target: words.next().unwrap_or_default().to_owned(),
            ..Request::default()
        };
        request.head = head;
        if request.header("transfer-encoding").is_some() {
            loop {
                let Some(size) = self.line()? else {
                    return Ok(None);
                };
                let Ok(size) = usize::from_str_radix(&size, 16) else {
                    return Ok(None);
                };
                let Some(chunk) =
                    self.until(|bytes| (bytes.len() >= size + 2).then_some(size + 2))?
                else {
                    return Ok(None);
                };
                request.body.extend_from_slice(&chunk[..size]);
                if size == 0 {
                    break;
                }
            }
        } else if let Some(length) = request
            .header("content-length")
            .and_then(|length| length.parse::<usize>().ok())
        {
            let Some(body) = self.until(|bytes| (bytes.len() >= length).then_some(length))? else {
                return Ok(None);
            };
            request.body = body;
        }
        Ok(Some(request))
    }
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The answer is complete, by its own framing.
    Whole,
    /// The connection ended too early.
    Cut,
    /// The answer ended with the connection, which was its only framing.
    Close,
    /// The answer did not end within [`BOUND`].
    Hung,
    /// The received bytes are not an HTTP answer.
    Nonsense,
}

/// An answer as a strict client parses it.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
    pub ending: Ending,
    /// The number of informational answers before it.
    pub informational: usize,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.split("\r\n").skip(1).find_map(|line| {
            line.split_once(':')
                .filter(|(found, _)| found.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.trim())
        })
    }
}

/// A client of raw bytes.
pub struct RawClient {
    pub stream: TcpStream,
    buffer: Vec<u8>,
    deadline: Instant,
}

/// The result of one read.
enum Came {
    Bytes,
    End,
    Late,
}

impl RawClient {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            buffer: Vec::new(),
            deadline: Instant::now() + BOUND,
        }
    }

    /// Sends these bytes; it is no error if the proxy has already closed.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.set_write_timeout(Some(BOUND));
        let _ = self.stream.write_all(bytes);
    }

    /// Puts back bytes that were read outside this client, so that they are read next.
    pub fn put_back(&mut self, bytes: Vec<u8>) {
        self.buffer.splice(..0, bytes);
    }

    fn fill(&mut self) -> Came {
        let left = self
            .deadline
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        self.stream.set_read_timeout(Some(left)).unwrap();
        let mut part = [0; 64 * 1024];
        match self.stream.read(&mut part) {
            Ok(0) => Came::End,
            Ok(read) => {
                self.buffer.extend_from_slice(&part[..read]);
                Came::Bytes
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Came::Late
            }
            Err(_) => Came::End,
        }
    }

    fn until(&mut self, end: impl Fn(&[u8]) -> Option<usize>) -> Result<Vec<u8>, Ending> {
        loop {
            if let Some(at) = end(&self.buffer) {
                return Ok(self.buffer.drain(..at).collect());
            }
            match self.fill() {
                Came::Bytes => {}
                Came::End => return Err(Ending::Cut),
                Came::Late => return Err(Ending::Hung),
            }
        }
    }

    /// Returns the next final answer; `None` when the connection was closed without a byte of one.
    pub fn answer(&mut self, to_head: bool) -> Option<Answer> {
        self.deadline = Instant::now() + BOUND;
        let mut answer = Answer {
            status: 0,
            head: String::new(),
            body: Vec::new(),
            ending: Ending::Whole,
            informational: 0,
        };
        loop {
            match self.until(|bytes| {
                bytes
                    .windows(4)
                    .position(|four| four == b"\r\n\r\n")
                    .map(|at| at + 4)
            }) {
                Ok(head) => answer.head = String::from_utf8_lossy(&head).into_owned(),
                Err(Ending::Cut) if self.buffer.is_empty() && answer.informational == 0 => {
                    return None;
                }
                Err(ending) => {
                    answer.ending = ending;
                    return Some(answer);
                }
            }
            answer.status = answer
                .head
                .strip_prefix("HTTP/1.1 ")
                .and_then(|rest| rest.get(..3)?.parse().ok())
                .unwrap_or_default();
            match answer.status {
                0 => {
                    answer.ending = Ending::Nonsense;
                    return Some(answer);
                }
                101 => return Some(answer),
                100..=199 => answer.informational += 1,
                _ => break,
            }
        }
        if to_head || matches!(answer.status, 204 | 304) {
            return Some(answer);
        }
        if let Err(ending) = self.body(&mut answer) {
            answer.ending = ending;
        }
        Some(answer)
    }

    fn body(&mut self, answer: &mut Answer) -> Result<(), Ending> {
        let length = answer.header("content-length").map(str::to_owned);
        match (answer.header("transfer-encoding"), length) {
            (Some(_), Some(_)) => Err(Ending::Nonsense),
            (Some(_), None) => loop {
                let size = self.until(|bytes| {
                    bytes
                        .windows(2)
                        .position(|two| two == b"\r\n")
                        .map(|at| at + 2)
                })?;
                let size = std::str::from_utf8(&size[..size.len() - 2])
                    .ok()
                    .and_then(|size| usize::from_str_radix(size, 16).ok())
                    .ok_or(Ending::Nonsense)?;
                let chunk = self.until(|bytes| (bytes.len() >= size + 2).then_some(size + 2))?;
                if !chunk.ends_with(b"\r\n") {
                    return Err(Ending::Nonsense);
                }
                answer.body.extend_from_slice(&chunk[..size]);
                if size == 0 {
                    return Ok(());
                }
            },
            (None, Some(length)) => {
                let length: usize = length.parse().map_err(|_| Ending::Nonsense)?;
                match self.until(|bytes| (bytes.len() >= length).then_some(length)) {
                    Ok(body) => answer.body = body,
                    Err(ending) => {
                        answer.body = std::mem::take(&mut self.buffer);
                        return Err(ending);
                    }
                }
                Ok(())
            }
            (None, None) => loop {
                match self.fill() {
                    Came::Bytes => {}
                    Came::End => {
                        answer.body = std::mem::take(&mut self.buffer);
                        return Err(Ending::Close);
                    }
                    Came::Late => return Err(Ending::Hung),
                }
            },
        }
    }

    /// Returns the next `count` bytes of a tunnel, or those received before its end.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        self.deadline = Instant::now() + BOUND;
        self.until(|bytes| (bytes.len() >= count).then_some(count))
            .unwrap_or_else(|_| std::mem::take(&mut self.buffer))
    }

    /// Whether the proxy closes this connection, and sends nothing more before.
    pub fn is_closed(&mut self) -> bool {
        self.deadline = Instant::now() + BOUND;
        self.buffer.is_empty() && matches!(self.fill(), Came::End)
    }
}

/// Returns the request without the lines that the proxy adds, in any position.
pub fn without_ours(bytes: &[u8]) -> String {
    const OURS: [&str; 5] = [
        "x-request-id:",
        "traceparent:",
        "x-forwarded-for:",
        "x-forwarded-proto:",
        "x-forwarded-host:",
    ];
    let text: String = bytes
        .iter()
        .map(|&byte| {
            if byte.is_ascii() {
                char::from(byte)
            } else {
                '\u{fffd}'
            }
        })
        .collect();
    let lines = text.split_inclusive('\n');
    lines
        .filter(|line| {
            let line = line.to_ascii_lowercase();
            !line.starts_with("x-cutover-") && !OURS.iter().any(|name| line.starts_with(name))
        })
        .collect()
}
