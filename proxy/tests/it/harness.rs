//! Scripted backends, a proxy with its own file, and a client that shows every byte.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cutover::assemble::{Origin, Running, Start};
use serde_json::Value;
use tempfile::TempDir;

/// How long an expected event may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Repeats a check until it returns a value; fails the test after [`PATIENCE`].
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// How a scripted backend handles a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Answers with this status; below `/bad` always with 500.
    Answer(u16),
    /// Closes the connection without a byte.
    Close,
    /// Reads and never answers.
    Hang,
    /// Sends something that is not HTTP.
    Garbage,
    /// Announces 100 bytes and sends 10.
    Truncate,
    /// Answers the first request on a connection and closes at the second without a byte.
    CloseKept,
    /// Answers in HTTP/1.0, without a length, and closes.
    Http10,
    /// Answers with this status, and names this outcome in `x-cutover-outcome`.
    Says(u16, &'static str),
    /// Redirects to a login page.
    Redirect,
}

/// A backend that names itself and behaves as set.
pub struct Backend {
    pub address: SocketAddr,
    inner: Arc<Inner>,
}

struct Inner {
    name: &'static str,
    behaviour: Mutex<Behaviour>,
    heads: Mutex<Vec<String>>,
    connections: AtomicUsize,
    requests: AtomicUsize,
}

impl Backend {
    pub fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Arc::new(Inner {
            name,
            behaviour: Mutex::new(Behaviour::Answer(200)),
            heads: Mutex::default(),
            connections: AtomicUsize::default(),
            requests: AtomicUsize::default(),
        });
        let serving = Arc::clone(&inner);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                serving.connections.fetch_add(1, Ordering::SeqCst);
                let inner = Arc::clone(&serving);
                std::thread::spawn(move || drop(serve(stream, &inner)));
            }
        });
        Self { address, inner }
    }

    pub fn behave(&self, behaviour: Behaviour) {
        *self.inner.behaviour.lock().unwrap() = behaviour;
    }

    pub fn requests(&self) -> usize {
        self.inner.requests.load(Ordering::SeqCst)
    }

    pub fn connections(&self) -> usize {
        self.inner.connections.load(Ordering::SeqCst)
    }

    /// Returns the targets of all requests in the order of arrival; at most the last few hundred.
    pub fn paths(&self) -> Vec<String> {
        self.inner
            .heads
            .lock()
            .unwrap()
            .iter()
            .filter_map(|head| head.split(' ').nth(1).map(str::to_owned))
            .collect()
    }

    /// Returns the head of the last request, as it was received.
    pub fn last_head(&self) -> String {
        self.inner
            .heads
            .lock()
            .unwrap()
            .last()
            .cloned()
            .unwrap_or_default()
    }
}

fn serve(stream: TcpStream, inner: &Inner) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    for on_this_connection in 0.. {
        let Some(message) = Message::read(&mut reader, false)? else {
            return Ok(());
        };
        inner.requests.fetch_add(1, Ordering::SeqCst);
        {
            let mut heads = inner.heads.lock().unwrap();
            if heads.len() > 1_000 {
                heads.clear();
            }
            heads.push(message.head.clone());
        }
        let behaviour = match *inner.behaviour.lock().unwrap() {
            Behaviour::CloseKept if on_this_connection == 0 => Behaviour::Answer(200),
            Behaviour::CloseKept => Behaviour::Close,
            Behaviour::Answer(_) if message.start.contains(" /bad") => Behaviour::Answer(500),
            other => other,
        };
        match behaviour {
            Behaviour::CloseKept => {}
            Behaviour::Http10 => {
                return stream
                    .write_all(b"HTTP/1.0 200 OK\r\nx-served-by: old\r\n\r\nuntil the end");
            }
            Behaviour::Redirect => stream.write_all(
                format!(
                    "HTTP/1.1 302 X\r\nx-served-by: {}\r\nlocation: /login\r\ncontent-length: \
                     0\r\n\r\n",
                    inner.name
                )
                .as_bytes(),
            )?,
            Behaviour::Answer(status) | Behaviour::Says(status, _) => {
                let said = if let Behaviour::Says(_, word) = behaviour {
                    format!("X-Cutover-Outcome: {word}\r\n")
                } else {
                    String::new()
                };
                let body = format!("{} {}", inner.name, message.body.len());
                let no_body = message.start.starts_with("HEAD ") || status == 204;
                let length = if status == 204 {
                    String::new()
                } else {
                    format!("content-length: {}\r\n", body.len())
                };
                let head = format!(
                    "HTTP/1.1 {status} X\r\nx-served-by: {}\r\n{said}{length}\r\n",
                    inner.name
                );
                stream
                    .write_all(format!("{head}{}", if no_body { "" } else { &body }).as_bytes())?;
            }
            Behaviour::Close => return Ok(()),
            Behaviour::Hang => {
                // The read ends when the other side gives up.
                let _ = reader.read(&mut [0]);
                return Ok(());
            }
            Behaviour::Garbage => return stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
            Behaviour::Truncate => {
                return stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n0123456789");
            }
        }
    }
    Ok(())
}

/// A request or an answer as it was received.
#[derive(Clone, Debug, Default)]
pub struct Message {
    pub start: String,
    pub head: String,
    pub headers: BTreeMap<String, Vec<String>>,
    pub body: Vec<u8>,
    /// Whether the body was as long as announced.
    pub whole: bool,
}

impl Message {
    fn read(reader: &mut impl BufRead, answer_to_head: bool) -> std::io::Result<Option<Self>> {
        let mut message = Self {
            whole: true,
            ..Self::default()
        };
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(None);
            }
            message.head.push_str(&line);
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            if message.start.is_empty() {
                message.start = line.to_owned();
            } else if let Some((name, value)) = line.split_once(':') {
                message
                    .headers
                    .entry(name.to_ascii_lowercase())
                    .or_default()
                    .push(value.trim().to_owned());
            }
        }
        if answer_to_head || message.status() == 204 {
            return Ok(Some(message));
        }
        if message.header("transfer-encoding") == Some("chunked") {
            loop {
                let mut size = String::new();
                if reader.read_line(&mut size)? == 0 {
                    message.whole = false;
                    break;
                }
                let size = usize::from_str_radix(size.trim(), 16).map_err(std::io::Error::other)?;
                let mut chunk = vec![0; size + 2];
                reader.read_exact(&mut chunk)?;
                message.body.extend_from_slice(&chunk[..size]);
                if size == 0 {
                    break;
                }
            }
        } else if let Some(length) = message
            .header("content-length")
            .and_then(|length| length.parse().ok())
        {
            reader.take(length).read_to_end(&mut message.body)?;
            message.whole = message.body.len() as u64 == length;
        }
        Ok(Some(message))
    }

    pub fn status(&self) -> u16 {
        self.start
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.first().map(String::as_str)
    }

    pub fn side(&self) -> &str {
        self.header("x-served-by").unwrap_or("nobody")
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

/// A connection of a client.
pub struct Client {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let reader = BufReader::new(stream.try_clone().unwrap());
        Self { stream, reader }
    }

    /// Sends these bytes.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends these bytes, and returns whether the connection still accepts them.
    pub fn drip(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Reads an answer; `None` when the connection was closed instead.
    pub fn answer(&mut self, to_head: bool) -> Option<Message> {
        Message::read(&mut self.reader, to_head).unwrap_or_default()
    }

    /// Sends a request and reads its answer.
    pub fn ask(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Option<Message> {
        let host = if headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("host"))
        {
            ""
        } else {
            "host: shop.example\r\n"
        };
        let length = if body.is_empty() {
            String::new()
        } else {
            format!("content-length: {}\r\n", body.len())
        };
        let headers: String = headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        let head = format!("{method} {target} HTTP/1.1\r\n{host}{headers}{length}\r\n");
        self.stream
            .write_all(&[head.as_bytes(), body].concat())
            .ok()?;
        self.answer(method == "HEAD")
    }
}

/// A running proxy with its own file and state directory.
pub struct Proxy {
    pub legacy: Backend,
    pub new: Backend,
    pub directory: TempDir,
    pub http: SocketAddr,
    pub admin: SocketAddr,
    running: Option<Running>,
}

/// Returns a rollout block; `more` is written below it.
pub fn rollout(id: &str, percent: &str, more: &str) -> String {
    format!(
        "[[rollout]]\nid = \"{id}\"\npercent = {percent}\nkey = [\"header:x-user-id\"]\n{more}\n"
    )
}

/// A guard that trips within a tick of the fiftieth request.
pub const QUICK_GUARD: &str = "[rollout.guard]\nmode = \"threshold\"\nwindow = \
                               \"10s\"\nmin_requests = 50\nerrors = { max = \"1%\" }\n";

impl Proxy {
    /// Starts a proxy with the given rollouts.
    pub fn start(rollouts: &str) -> Self {
        Self::start_with("", rollouts)
    }

    /// Starts a proxy with other tables as well.
    pub fn start_with(tables: &str, rollouts: &str) -> Self {
        Self::start_prepared(|_| (tables.to_owned(), rollouts.to_owned()))
    }

    /// Starts a proxy after preparing its directory; `prepare` returns the tables and rollouts of
    /// the file.
    pub fn start_prepared(prepare: impl FnOnce(&Path) -> (String, String)) -> Self {
        let (legacy, new) = (Backend::start("legacy"), Backend::start("new"));
        let directory = tempfile::tempdir().unwrap();
        let (tables, rollouts) = prepare(directory.path());
        let text = file(directory.path(), &legacy, &new, &tables, &rollouts);
        std::fs::write(directory.path().join("cutover.toml"), text).unwrap();
        let mut proxy = Self {
            legacy,
            new,
            directory,
            http: ([127, 0, 0, 1], 0).into(),
            admin: ([127, 0, 0, 1], 0).into(),
            running: None,
        };
        proxy.launch(Box::new(std::io::sink()));
        proxy
    }

    /// Starts a proxy that writes its access log to `access_out`.
    pub fn start_logging(access_out: Box<dyn Write + Send>, rollouts: &str) -> Self {
        let mut proxy = Self::start(rollouts);
        proxy.stop();
        proxy.launch(access_out);
        proxy
    }

    /// Restarts the proxy on the same files. Ports change.
    pub fn restart(&mut self) {
        self.stop();
        self.launch(Box::new(std::io::sink()));
    }

    pub fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop(Duration::ZERO, Duration::from_secs(1), || false);
        }
    }

    /// Stops as SIGTERM does, and returns how many connections were cut.
    pub fn stop_within(&mut self, lead: Duration, grace: Duration) -> usize {
        self.running
            .take()
            .expect("a running proxy")
            .stop(lead, grace, || false)
    }

    fn launch(&mut self, access_out: Box<dyn Write + Send>) {
        let start = Start {
            file: self.file(),
            threads: Some(2),
            access_out,
            origin: Origin::default(),
        };
        let running = start.start().unwrap_or_else(|error| panic!("{error}"));
        (self.http, self.admin) = (running.http[0], running.admin);
        self.running = Some(running);
    }

    /// Returns the address with TLS.
    pub fn https(&self) -> SocketAddr {
        self.running.as_ref().unwrap().https[0]
    }

    pub fn file(&self) -> PathBuf {
        self.directory.path().join("cutover.toml")
    }

    pub fn text(&self) -> String {
        std::fs::read_to_string(self.file()).unwrap()
    }

    /// Returns the text of the file with other tables and rollouts.
    pub fn text_with(&self, tables: &str, rollouts: &str) -> String {
        file(
            self.directory.path(),
            &self.legacy,
            &self.new,
            tables,
            rollouts,
        )
    }

    /// Writes rollouts to the file and waits until they are in force.
    pub fn save(&self, rollouts: &str) {
        std::fs::write(self.file(), self.text_with("", rollouts)).unwrap();
        self.reload();
    }

    pub fn reload(&self) {
        let answer = self.post("/api/v1/reload", &serde_json::json!({}));
        assert_eq!(answer.status(), 200, "{}", answer.text());
    }

    pub fn client(&self) -> Client {
        Client::connect(self.http)
    }

    /// Sends one request on a separate connection.
    pub fn get(&self, target: &str, headers: &[(&str, &str)]) -> Message {
        self.client()
            .ask("GET", target, headers, b"")
            .expect("an answer")
    }

    /// Returns the side that serves a user.
    pub fn side_of(&self, user: &str) -> String {
        self.get("/", &[("x-user-id", user)]).side().to_owned()
    }

    pub fn admin_ask(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Message {
        let mut all = vec![("host", "127.0.0.1")];
        if headers.iter().any(|(name, _)| *name == "host") {
            all.clear();
        }
        all.extend_from_slice(headers);
        Client::connect(self.admin)
            .ask(method, target, &all, body)
            .expect("an answer of the admin")
    }

    pub fn post(&self, target: &str, body: &Value) -> Message {
        self.admin_ask(
            "POST",
            target,
            &[("content-type", "application/json")],
            body.to_string().as_bytes(),
        )
    }

    pub fn status(&self) -> Value {
        let answer = self.admin_ask("GET", "/api/v1/rollouts", &[], b"");
        assert_eq!(answer.status(), 200, "{}", answer.text());
        answer.json()
    }

    /// Returns the status of the first rollout.
    pub fn rollout(&self) -> Value {
        self.status()["rollouts"][0].clone()
    }

    pub fn metric(&self, line: &str) -> Option<f64> {
        let text = self.admin_ask("GET", "/metrics", &[], b"").text();
        text.lines()
            .find_map(|found| found.strip_prefix(line)?.trim().parse().ok())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Returns the engine on which all tests run; `make test` runs them on one and then on the other.
pub fn engine() -> String {
    std::env::var("CUTOVER_TEST_ENGINE").unwrap_or_else(|_| "auto".to_owned())
}

/// Returns a whole file on free ports.
pub fn file(
    directory: &Path,
    legacy: &Backend,
    new: &Backend,
    tables: &str,
    rollouts: &str,
) -> String {
    let engine = format!("[listen]\nengine = \"{}\"\n", engine());
    let tables = &if tables.contains("engine = ") {
        tables.to_owned()
    } else {
        tables.replacen("[listen]\n", &engine, 1)
    };
    let listen = if tables.contains("[listen]") {
        String::new()
    } else {
        format!("{engine}http = [\"127.0.0.1:0\"]\n")
    };
    let admin = if tables.contains("[admin]") {
        ""
    } else {
        "[admin]\naddress = \"127.0.0.1:0\"\n"
    };
    let legacy_more = if tables.contains("[backend.legacy]") {
        String::new()
    } else {
        format!("[backend.legacy]\nservers = [\"{}\"]\n", legacy.address)
    };
    let new_more = if tables.contains("[backend.new]") {
        String::new()
    } else {
        format!(
            "[backend.new]\nservers = [\"{}\"]\nresponse_timeout = \"300ms\"\n",
            new.address
        )
    };
    format!(
        "{listen}{admin}[state]\ndirectory = \"{}\"\n{legacy_more}{new_more}{tables}\n{rollouts}",
        directory.join("state").display()
    )
}

/// Requests in the background until this is dropped. It has their number, and every one that
/// failed.
pub struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    failed: Arc<Mutex<Vec<String>>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    /// Opens connections that each send one request after the other, from a new user each time.
    pub fn start(address: SocketAddr, connections: usize) -> Self {
        let (stop, answered, failed): (Arc<AtomicBool>, Arc<AtomicUsize>, Arc<Mutex<Vec<String>>>) =
            Default::default();
        let threads = (0..connections)
            .map(|connection| {
                let (stop, answered, failed) = (
                    Arc::clone(&stop),
                    Arc::clone(&answered),
                    Arc::clone(&failed),
                );
                std::thread::spawn(move || {
                    let mut client = Client::connect(address);
                    for request in 0.. {
                        if stop.load(Ordering::SeqCst) {
                            return;
                        }
                        let user = format!("user-{}", request % 1000 * connections + connection);
                        match client.ask("GET", "/load", &[("x-user-id", &user)], b"") {
                            Some(answer) if answer.status() == 200 && answer.whole => {
                                answered.fetch_add(1, Ordering::SeqCst);
                            }
                            other => {
                                failed.lock().unwrap().push(format!(
                                    "{user}: {:?}",
                                    other.map(|answer| answer.start)
                                ));
                                client = Client::connect(address);
                            }
                        }
                    }
                })
            })
            .collect();
        Self {
            stop,
            answered,
            failed,
            threads,
        }
    }

    pub fn answered(&self) -> usize {
        self.answered.load(Ordering::SeqCst)
    }

    /// Ends the load and returns the failed requests.
    pub fn end(mut self) -> Vec<String> {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        self.failed.lock().unwrap().clone()
    }
}
