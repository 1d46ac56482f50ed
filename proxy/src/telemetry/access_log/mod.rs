//! The access log. A separate thread writes one line per request. The request path only hands over
//! plain facts. When the writer is behind, lines are dropped and counted, never waited for.
//!
//! The writer collects lines for a few milliseconds and writes once, because waking a thread for
//! each line would cost more than the line. User keys appear as a keyed hash unless the file says
//! otherwise. Control characters are escaped by the JSON format and quoted by the text format.

mod render;

use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use cutover_config::{AccessLog as Which, Log, LogFormat, LogUser};
use cutover_core::{Maintenance, Outcome};
use rand::Rng;

use crate::telemetry::access_log::render::Renderer;
use siphasher::sip::SipHasher24;

use crate::telemetry::request_summary::{Ended, Engine, RequestId};

/// The number of lines that may wait.
const QUEUE: usize = 16_384;
/// How long the writer collects before it writes.
const COLLECT: Duration = Duration::from_millis(5);

/// The most lines that are written at once. A writer that is always behind must still write.
const AT_ONCE: usize = 4_096;
/// How long a request to reopen the file may wait for a line.
const LOOK: Duration = Duration::from_secs(1);

/// The sending half. It is cheap to clone and never blocks.
#[derive(Clone, Debug)]
pub struct AccessLog {
    sender: Option<SyncSender<Line>>,
    shared: Arc<Shared>,
    users: SipHasher24,
}

/// A handle that has the file of an access log reopened.
#[derive(Clone, Debug)]
pub struct Reopener(Arc<Shared>);

impl Reopener {
    /// Requests that the file is reopened, within a second.
    pub fn reopen(&self) {
        self.0.reopen.store(true, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct Shared {
    dropped: AtomicU64,
    reopen: AtomicBool,
}

/// The reason why a request was refused before it was decided.
#[derive(Clone, Debug)]
pub struct Refused {
    /// A stable code for programs.
    pub code: &'static str,
    /// A sentence for people.
    pub sentence: Cow<'static, str>,
}

/// The facts of one request.
#[derive(Debug)]
pub struct Line {
    /// The facts that the span of the request also contains.
    pub ended: Ended,
    /// The maintenance mode that answered the request instead of a backend; off for all requests
    /// that were decided.
    pub maintenance: Maintenance,
    /// How long the request was held before it was decided.
    pub parked: Duration,
    /// The server to which the request was sent.
    pub server: Option<SocketAddr>,
    /// The time from the start of the attempt to the response header.
    pub upstream: Option<Duration>,
    /// The number of body bytes from the client.
    pub bytes_in: u64,
    /// The number of body bytes to the client.
    pub bytes_out: u64,
    /// The number of attempts.
    pub attempts: u8,
    /// The engine that moved the bytes of the request.
    pub engine: Engine,
    /// The ID of the request.
    pub request_id: RequestId,
    /// The trace to which the request belongs.
    pub trace: u128,
    /// The span that sent the request, or that of the proxy.
    pub span: Option<u64>,
    /// The user who sent the request, in the form that the log uses.
    pub user: Option<User>,
    /// The answer to a request that was refused. Such a request has a line even if only errors
    /// have one.
    pub refused: Option<Box<Refused>>,
}

/// A user in the form that a line contains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// SipHash-2-4 (Aumasson and Bernstein, 2012) of the key under the secret. It is the same for
    /// the same user, and cannot be predicted without the secret.
    Hashed(u64),
    /// The plain key.
    Plain(Box<[u8]>),
}

impl AccessLog {
    /// Creates a log that accepts no lines.
    pub fn off() -> Self {
        Self {
            sender: None,
            shared: Arc::default(),
            users: SipHasher24::new(),
        }
    }

    /// Starts a log that a separate thread writes to `out`. The thread ends when the last clone of
    /// the log is gone and everything is written. With `secret` users are hashed.
    ///
    /// # Errors
    /// Fails when the thread cannot be started.
    pub fn start(
        format: LogFormat,
        mut out: Out,
        secret: [u8; 16],
    ) -> io::Result<(Self, std::thread::JoinHandle<()>)> {
        let (sender, receiver) = sync_channel(QUEUE);
        let shared: Arc<Shared> = Arc::default();
        let writers = Arc::clone(&shared);
        let writer = std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_lines(&receiver, format, &mut out, &writers))?;
        Ok((
            Self {
                sender: Some(sender),
                shared,
                users: SipHasher24::new_with_key(&secret),
            },
            writer,
        ))
    }

    /// Whether any line would be accepted.
    pub fn is_on(&self, which: Which) -> bool {
        which != Which::Off && self.sender.is_some()
    }

    /// Returns a user in the form of this log; `None` if the log is off or names no users.
    pub fn user(&self, log: &Log, key: &[u8]) -> Option<User> {
        match log.user {
            _ if !self.is_on(log.access) => None,
            LogUser::Hashed => Some(User::Hashed(self.users.hash(key))),
            LogUser::Plain => Some(User::Plain(key.into())),
            LogUser::Off => None,
        }
    }

    /// Whether a request gets a line. Sampling never omits requests that failed, were moved or were
    /// held.
    pub fn wants(
        &self,
        log: &Log,
        outcome: Outcome,
        status: Option<u16>,
        is_unusual: bool,
    ) -> bool {
        let failed =
            matches!(outcome, Outcome::Failure(_)) || status.is_none_or(|status| status >= 500);
        match log.access {
            Which::All => {
                failed
                    || is_unusual
                    || log.sample.ppm() == 1_000_000
                    || rand::rng().random_range(0..1_000_000) < log.sample.ppm()
            }
            Which::Errors => failed,
            Which::Off => false,
        }
    }

    /// Accepts a line, or drops it when the writer is behind.
    pub fn write(&self, line: Line) {
        if let Some(sender) = &self.sender
            && let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
                sender.try_send(line)
        {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns a handle that can have the file reopened, and does not keep the log alive.
    pub fn reopener(&self) -> Reopener {
        Reopener(Arc::clone(&self.shared))
    }

    /// Returns the number of dropped lines.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

fn write_lines(receiver: &Receiver<Line>, format: LogFormat, out: &mut Out, shared: &Shared) {
    let mut renderer = Renderer::new(format);
    let mut text = Vec::with_capacity(64 * 1024);
    let mut was_written = true;
    loop {
        let first = match receiver.recv_timeout(LOOK) {
            Ok(first) => Some(first),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if shared.reopen.swap(false, Ordering::Relaxed) {
            out.reopen();
        }
        let Some(first) = first else { continue };
        std::thread::sleep(COLLECT);
        text.clear();
        for line in std::iter::once(first).chain(receiver.try_iter().take(AT_ONCE)) {
            renderer.render(&line, &mut text);
        }
        // Standard output may be a closed pipe, or the disk may be full. The proxy continues.
        let written = out.write(&text);
        if let Err((error, lost)) = &written {
            shared.dropped.fetch_add(*lost, Ordering::Relaxed);
            if was_written {
                tracing::warn!(%error, "the access log cannot be written: its lines are dropped and counted");
            }
        }
        was_written = written.is_ok();
    }
}

/// The destination of the lines.
#[derive(Debug)]
pub struct Out {
    writer: Writer,
    /// The path at which the file is reopened.
    path: Option<PathBuf>,
    /// Whether the last write ended within a line.
    is_torn: bool,
}

struct Writer(Box<dyn Write + Send>);

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Writer")
    }
}

impl Out {
    /// Creates a destination from any writer.
    pub fn to(writer: Box<dyn Write + Send>) -> Self {
        Self {
            writer: Writer(writer),
            path: None,
            is_torn: false,
        }
    }

    /// Creates a destination at the end of a file, which is created if it does not exist.
    ///
    /// # Errors
    /// Fails when the file cannot be opened.
    pub fn file(path: PathBuf) -> io::Result<Self> {
        let file = open(&path)?;
        Ok(Self {
            writer: Writer(Box::new(file)),
            path: Some(path),
            is_torn: false,
        })
    }

    /// Writes whole lines in one write if the system accepts them, so that two processes can share
    /// a file while one takes over from the other. Otherwise the error contains the number of lost
    /// lines. If a full disk tore a line, it is ended before the next one.
    fn write(&mut self, text: &[u8]) -> Result<(), (io::Error, u64)> {
        let mut rest = text;
        let mut put = || -> io::Result<()> {
            if self.is_torn {
                self.writer.0.write_all(b"\n")?;
                self.is_torn = false;
            }
            while !rest.is_empty() {
                match self.writer.0.write(rest) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(written) => rest = &rest[written..],
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            self.writer.0.flush()
        };
        put().map_err(|error| {
            let written = &text[..text.len() - rest.len()];
            self.is_torn |= written.last().is_some_and(|last| *last != b'\n');
            (
                error,
                rest.iter().filter(|byte| **byte == b'\n').count() as u64,
            )
        })
    }

    /// Reopens the file, since it was moved away.
    fn reopen(&mut self) {
        let Some(path) = &self.path else { return };
        match open(path) {
            Ok(file) => {
                (self.writer, self.is_torn) = (Writer(Box::new(file)), false);
                tracing::info!(file = %path.display(), "the access log was reopened");
            }
            Err(error) => {
                tracing::error!(file = %path.display(), %error, "the access log cannot be reopened; lines still go to the old file");
            }
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cutover_core::{Decision, FailureKind, Rate, Reason, Salt, Side, Wall};
    use http::Method;
    use std::net::IpAddr;
    use std::sync::{Condvar, Mutex, PoisonError};

    fn line(path: &str, outcome: Outcome) -> Line {
        let ended = Ended {
            at: Wall::from_millis(0),
            total: Duration::from_micros(12_345),
            method: Method::GET,
            path: path.into(),
            status: Some(if outcome == Outcome::Success {
                200
            } else {
                502
            }),
            rollout: Some("checkout".into()),
            decision: Some(Decision {
                side: Side::New,
                bucket: Some(Salt::new("checkout").bucket(b"u")),
                reason: Reason::Bucket,
            }),
            moved: None,
            outcome,
            client: IpAddr::from([192, 0, 2, 7]),
        };
        Line {
            ended,
            maintenance: Maintenance::Off,
            parked: Duration::ZERO,
            server: Some(([127, 0, 0, 1], 3000).into()),
            upstream: Some(Duration::from_micros(12_000)),
            bytes_in: 0,
            bytes_out: 5,
            attempts: 1,
            engine: Engine::Lane,
            request_id: RequestId::Theirs((*b"abc").into()),
            trace: 0xfeed,
            span: Some(7),
            user: Some(User::Hashed(0xbeef)),
            refused: None,
        }
    }

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn written(format: LogFormat, lines: Vec<Line>) -> String {
        let memory = Memory::default();
        let (log, writer) = AccessLog::start(format, Out::to(Box::new(memory.clone())), [7; 16])
            .expect("a thread starts");
        lines.into_iter().for_each(|line| log.write(line));
        drop(log);
        writer.join().expect("the writer ends");
        let bytes = memory
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        String::from_utf8(bytes).expect("UTF-8")
    }

    #[test]
    fn a_line_is_one_json_object_for_any_client_input() {
        let text = written(
            LogFormat::Json,
            vec![line("/a\nb\u{1b}[31m\"", Outcome::Success)],
        );
        assert_eq!(text.lines().count(), 1);
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(json["url.path"], "/a\nb\u{1b}[31m\"");
        assert_eq!(json["cutover.backend"], "new");
        assert_eq!(json["duration_ms"], 12.345);
        let text = written(
            LogFormat::Text,
            vec![line(
                "/a\nb\u{1b}[31m",
                Outcome::Failure(FailureKind::Connect),
            )],
        );
        assert_eq!(text.lines().count(), 1);
        assert!(
            text.contains("error=connect")
                && text.contains(" engine=lane ")
                && !text.contains('\u{1b}'),
            "{text}"
        );
    }

    #[test]
    fn sampling_never_omits_failed_moved_or_held_requests() {
        let (on, writer) =
            AccessLog::start(LogFormat::Json, Out::to(Box::new(io::sink())), [7; 16])
                .expect("a thread starts");
        let log = |access, ppm| Log {
            format: LogFormat::Json,
            access,
            sample: Rate::from_ppm(ppm).expect("a rate"),
            user: LogUser::Hashed,
            file: None,
        };
        let failed = Outcome::Failure(FailureKind::Connect);
        for (access, ppm, outcome, status, is_unusual, expected) in [
            (
                Which::All,
                1_000_000,
                Outcome::Success,
                Some(200),
                false,
                true,
            ),
            (Which::All, 0, Outcome::Success, Some(200), false, false),
            (Which::All, 0, Outcome::Success, Some(200), true, true),
            (Which::All, 0, failed, Some(502), false, true),
            (Which::All, 0, Outcome::Aborted, None, false, true),
            (
                Which::Errors,
                1_000_000,
                Outcome::Success,
                Some(200),
                true,
                false,
            ),
            (Which::Errors, 0, failed, Some(502), false, true),
            (Which::Off, 1_000_000, failed, Some(502), true, false),
        ] {
            assert_eq!(
                on.wants(&log(access, ppm), outcome, status, is_unusual),
                expected,
                "{access:?} {ppm} {outcome:?} {is_unusual}"
            );
        }
        let half = (0..10_000)
            .filter(|_| {
                on.wants(
                    &log(Which::All, 500_000),
                    Outcome::Success,
                    Some(200),
                    false,
                )
            })
            .count();
        assert!((4_500..5_500).contains(&half), "{half}");
        drop(on);
        writer.join().expect("the writer ends");
    }

    #[test]
    fn a_user_has_one_hash_per_secret_and_a_key_only_if_configured() {
        let start = |secret| {
            AccessLog::start(LogFormat::Json, Out::to(Box::new(io::sink())), secret)
                .expect("a thread starts")
                .0
        };
        let (log, other) = (start([7; 16]), start([8; 16]));
        let settings = |access, user| Log {
            format: LogFormat::Json,
            access,
            sample: Rate::NONE,
            user,
            file: None,
        };
        let hashed = settings(Which::All, LogUser::Hashed);
        assert!(matches!(log.user(&hashed, b"ana"), Some(User::Hashed(_))));
        assert_eq!(
            log.user(&hashed, b"ana"),
            start([7; 16]).user(&hashed, b"ana")
        );
        assert_ne!(log.user(&hashed, b"ana"), log.user(&hashed, b"ben"));
        assert_ne!(log.user(&hashed, b"ana"), other.user(&hashed, b"ana"));
        assert_eq!(
            log.user(&settings(Which::All, LogUser::Plain), b"ana"),
            Some(User::Plain(b"ana".as_slice().into()))
        );
        assert_eq!(log.user(&settings(Which::All, LogUser::Off), b"ana"), None);
        assert_eq!(
            log.user(&settings(Which::Off, LogUser::Hashed), b"ana"),
            None
        );
        let plain = Line {
            user: Some(User::Plain(b"a\"na".as_slice().into())),
            ..line("/", Outcome::Success)
        };
        let lines = written(LogFormat::Json, vec![plain, line("/", Outcome::Success)]);
        let json: Vec<serde_json::Value> = lines
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        assert_eq!(
            (&json[0]["user.id"], &json[1]["user.hash"]),
            (&"a\"na".into(), &"000000000000beef".into())
        );
        assert_eq!(json[0]["trace.id"], "0000000000000000000000000000feed");
    }

    #[test]
    fn a_file_that_was_moved_away_is_reopened() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, moved) = (
            folder.path().join("access.log"),
            folder.path().join("access.log.1"),
        );
        let (log, writer) = AccessLog::start(
            LogFormat::Json,
            Out::file(path.clone()).expect("a file"),
            [7; 16],
        )
        .expect("a thread starts");
        let lines =
            |path: &Path| std::fs::read_to_string(path).map_or(0, |text| text.lines().count());
        let wait = |path: &Path| {
            (0..1_000).any(|_| {
                lines(path) == 1 || {
                    std::thread::sleep(Duration::from_millis(10));
                    false
                }
            })
        };
        log.write(line("/before", Outcome::Success));
        assert!(wait(&path));
        std::fs::rename(&path, &moved).expect("moved");
        log.reopener().reopen();
        log.write(line("/after", Outcome::Success));
        assert!(wait(&path));
        assert_eq!(lines(&moved), 1);
        drop(log);
        writer.join().expect("the writer ends");
    }

    #[test]
    fn lines_lost_to_a_full_disk_are_counted() {
        let Ok(full) = Out::file("/dev/full".into()) else {
            return;
        };
        let (log, writer) =
            AccessLog::start(LogFormat::Json, full, [7; 16]).expect("a thread starts");
        (0..10).for_each(|_| log.write(line("/", Outcome::Success)));
        let shared = Arc::clone(&log.shared);
        drop(log);
        writer.join().expect("the writer ends");
        assert_eq!(shared.dropped.load(Ordering::Relaxed), 10);
    }

    #[test]
    fn a_line_torn_by_a_full_disk_does_not_spoil_the_next_line() {
        /// A writer that accepts a limited number of bytes, and then none until it is emptied.
        struct Small(Memory, Arc<AtomicU64>);
        impl Write for Small {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let room = self.1.load(Ordering::Relaxed) as usize;
                if room == 0 {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                let taken = room.min(bytes.len());
                self.1.fetch_sub(taken as u64, Ordering::Relaxed);
                self.0.write(&bytes[..taken])
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (memory, room) = (Memory::default(), Arc::new(AtomicU64::new(10)));
        let mut out = Out::to(Box::new(Small(memory.clone(), Arc::clone(&room))));
        let lost = |result: Result<(), (io::Error, u64)>| result.map_err(|(_, lost)| lost);
        assert_eq!(lost(out.write(b"first\nsecond\nthird\n")), Err(2));
        assert_eq!(lost(out.write(b"fourth\n")), Err(1));
        room.store(1_000, Ordering::Relaxed);
        assert_eq!(lost(out.write(b"fifth\n")), Ok(()));
        assert_eq!(
            *memory.0.lock().unwrap_or_else(PoisonError::into_inner),
            b"first\nseco\nfifth\n"
        );
    }

    #[test]
    fn lines_that_do_not_fit_are_dropped_and_counted() {
        /// A writer that blocks until it is released.
        struct Stuck(Arc<(Mutex<bool>, Condvar)>);
        impl Write for Stuck {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                let (open, changed) = &*self.0;
                drop(changed.wait_while(
                    open.lock().unwrap_or_else(PoisonError::into_inner),
                    |open| !*open,
                ));
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let router = Arc::new((Mutex::new(false), Condvar::new()));
        let (log, writer) = AccessLog::start(
            LogFormat::Text,
            Out::to(Box::new(Stuck(Arc::clone(&router)))),
            [7; 16],
        )
        .expect("a thread starts");
        for _ in 0..4 * QUEUE {
            log.write(line("/", Outcome::Success));
        }
        let dropped = log.dropped();
        assert!(dropped > 0 && dropped < 4 * QUEUE as u64, "{dropped}");
        *router.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        router.1.notify_all();
        drop(log);
        writer.join().expect("the writer ends");
    }
}
