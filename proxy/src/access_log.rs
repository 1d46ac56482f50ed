//! One line per request, written by a thread of its own. The request path only hands over plain facts; when the writer is behind, lines are dropped and counted, never waited for.
//!
//! The writer collects for a few milliseconds and writes once: waking a thread for each line would cost more than the line.
//! User keys never appear; bucket and request id do. Control characters are escaped by the JSON and quoted by the text format.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use cutover_config::{AccessLog as Which, LogFormat};
use cutover_core::{Decision, Maintenance, Outcome, Wall};
use http::{HeaderValue, Method};

use crate::clock;

/// How many lines may wait.
const QUEUE: usize = 16_384;
/// How long the writer collects before it writes.
const COLLECT: Duration = Duration::from_millis(5);

/// The sending half: cheap to clone, never blocks.
#[derive(Clone, Debug)]
pub struct AccessLog {
    sender: Option<SyncSender<Line>>,
    dropped: Arc<AtomicU64>,
}

/// The facts of one request.
#[derive(Debug)]
pub struct Line {
    /// When it ended.
    pub at: Wall,
    /// The method.
    pub method: Method,
    /// The path as sent, without the query, which may hold secrets.
    pub path: Box<str>,
    /// The status the client got.
    pub status: Option<u16>,
    /// The rollout that decided, if one matched.
    pub rollout: Option<Arc<str>>,
    /// Where it went and why.
    pub decision: Option<Decision>,
    /// Why the other side was asked than the one decided, if it was.
    pub moved: Option<&'static str>,
    /// What answered it in place of a backend; off for all that was decided.
    pub maintenance: Maintenance,
    /// How long it was parked before it was decided.
    pub parked: Duration,
    /// What it says about the backend.
    pub outcome: Outcome,
    /// The client's address.
    pub client: IpAddr,
    /// The server that was asked.
    pub server: Option<SocketAddr>,
    /// From its start to its end.
    pub total: Duration,
    /// From its start to the response header.
    pub upstream: Option<Duration>,
    /// Body bytes from the client.
    pub bytes_in: u64,
    /// Body bytes to the client.
    pub bytes_out: u64,
    /// How many attempts were made.
    pub attempts: u8,
    /// Its id.
    pub request_id: HeaderValue,
}

impl AccessLog {
    /// A log that takes nothing.
    pub fn off() -> Self {
        Self { sender: None, dropped: Arc::default() }
    }

    /// A log written to `out` by a thread of its own, which ends, everything written, when the last clone of the log is gone.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(format: LogFormat, out: impl Write + Send + 'static) -> std::io::Result<(Self, std::thread::JoinHandle<()>)> {
        let (sender, receiver) = sync_channel(QUEUE);
        let writer = std::thread::Builder::new().name("access-log".to_owned()).spawn(move || write_lines(&receiver, format, out))?;
        Ok((Self { sender: Some(sender), dropped: Arc::default() }, writer))
    }

    /// Whether any line would be taken.
    pub fn is_on(&self, which: Which) -> bool {
        which != Which::Off && self.sender.is_some()
    }

    /// Takes a line if it is among those asked for, or drops it when the writer is behind.
    pub fn write(&self, which: Which, line: Line) {
        let wanted = match which {
            Which::All => true,
            Which::Errors => matches!(line.outcome, Outcome::Failure(_)) || line.status.is_none_or(|status| status >= 500),
            Which::Off => false,
        };
        if let (true, Some(sender)) = (wanted, &self.sender)
            && let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = sender.try_send(line)
        {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many lines were dropped.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

fn write_lines(receiver: &Receiver<Line>, format: LogFormat, mut out: impl Write) {
    let mut text = Vec::with_capacity(64 * 1024);
    while let Ok(first) = receiver.recv() {
        std::thread::sleep(COLLECT);
        text.clear();
        for line in std::iter::once(first).chain(receiver.try_iter()) {
            render(&line, format, &mut text);
        }
        // Standard output may be a closed pipe. Nobody reads then, and the proxy goes on.
        let _ = out.write_all(&text).and_then(|()| out.flush());
    }
}

fn render(line: &Line, format: LogFormat, text: &mut Vec<u8>) {
    let request_id = String::from_utf8_lossy(line.request_id.as_bytes());
    let side = line.decision.map(|decision| decision.side.name());
    let maintenance = Some(line.maintenance).filter(|mode| *mode != Maintenance::Off).map(Maintenance::name);
    let reason = line.decision.map(|decision| decision.reason.name()).or(maintenance.map(|_| "maintenance"));
    let bucket = line.decision.and_then(|decision| decision.bucket).map(cutover_core::Bucket::number);
    let error = match line.outcome {
        Outcome::Failure(kind) => Some(kind.name()),
        Outcome::Aborted => Some("aborted"),
        Outcome::Success | Outcome::ClientError | Outcome::Ignored => None,
    };
    let millis = |duration: Duration| (duration.as_secs_f64() * 1e6).round() / 1e3;
    let written = match format {
        LogFormat::Json => {
            let json = serde_json::json!({
                "@timestamp": clock::rfc3339(line.at),
                "event.kind": "access",
                "http.request.method": line.method.as_str(),
                "url.path": &*line.path,
                "http.response.status_code": line.status,
                "cutover.rollout": line.rollout.as_deref(),
                "cutover.backend": side,
                "cutover.reason": reason,
                "cutover.bucket": bucket,
                "cutover.moved": line.moved,
                "cutover.maintenance": maintenance,
                "error.kind": error,
                "client.address": line.client.to_string(),
                "server.address": line.server.map(|server| server.to_string()),
                "duration_ms": millis(line.total),
                "parked_ms": (!line.parked.is_zero()).then(|| millis(line.parked)),
                "upstream_ms": line.upstream.map(millis),
                "http.request.body.bytes": line.bytes_in,
                "http.response.body.bytes": line.bytes_out,
                "attempts": line.attempts,
                "http.request.id": request_id,
            });
            serde_json::to_writer(&mut *text, &json).map_err(std::io::Error::from)
        }
        LogFormat::Text => write!(
            text,
            "{} {} {} {:?} {} {}/{} {:.1}ms{}{}{} id={:?}",
            clock::rfc3339(line.at),
            line.client,
            line.method,
            line.path,
            line.status.map_or_else(|| "-".to_owned(), |status| status.to_string()),
            line.rollout.as_deref().unwrap_or("-"),
            side.unwrap_or("-"),
            millis(line.total),
            maintenance.map(|mode| format!(" maintenance={mode}")).unwrap_or_default(),
            error.map(|error| format!(" error={error}")).unwrap_or_default(),
            line.moved.map(|moved| format!(" moved={moved}")).unwrap_or_default(),
            request_id,
        ),
    };
    // Writing to memory does not fail.
    if written.is_ok() {
        text.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cutover_core::{FailureKind, Reason, Salt, Side};
    use std::sync::{Condvar, Mutex, PoisonError};

    fn line(path: &str, outcome: Outcome) -> Line {
        Line {
            at: Wall::from_millis(0),
            method: Method::GET,
            path: path.into(),
            status: Some(if outcome == Outcome::Success { 200 } else { 502 }),
            rollout: Some("checkout".into()),
            decision: Some(Decision { side: Side::New, bucket: Some(Salt::new("checkout").bucket(b"u")), reason: Reason::Bucket }),
            moved: None,
            maintenance: Maintenance::Off,
            parked: Duration::ZERO,
            outcome,
            client: IpAddr::from([192, 0, 2, 7]),
            server: Some(([127, 0, 0, 1], 3000).into()),
            total: Duration::from_micros(12_345),
            upstream: Some(Duration::from_micros(12_000)),
            bytes_in: 0,
            bytes_out: 5,
            attempts: 1,
            request_id: HeaderValue::from_static("abc"),
        }
    }

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn written(which: Which, format: LogFormat, lines: Vec<Line>) -> String {
        let memory = Memory::default();
        let (log, writer) = AccessLog::start(format, memory.clone()).expect("a thread starts");
        lines.into_iter().for_each(|line| log.write(which, line));
        drop(log);
        writer.join().expect("the writer ends");
        let bytes = memory.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        String::from_utf8(bytes).expect("UTF-8")
    }

    #[test]
    fn a_line_is_one_json_object_whatever_the_client_sent() {
        let text = written(Which::All, LogFormat::Json, vec![line("/a\nb\u{1b}[31m\"", Outcome::Success)]);
        assert_eq!(text.lines().count(), 1);
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(json["url.path"], "/a\nb\u{1b}[31m\"");
        assert_eq!(json["cutover.backend"], "new");
        assert_eq!(json["duration_ms"], 12.345);
        let text = written(Which::All, LogFormat::Text, vec![line("/a\nb\u{1b}[31m", Outcome::Failure(FailureKind::Connect))]);
        assert_eq!(text.lines().count(), 1);
        assert!(text.contains("error=connect") && !text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn only_errors_are_written_where_only_errors_are_asked_for() {
        let text = written(Which::Errors, LogFormat::Json, vec![line("/good", Outcome::Success), line("/bad", Outcome::Failure(FailureKind::Status))]);
        assert_eq!(text.lines().count(), 1);
        assert!(text.contains("/bad"));
    }

    #[test]
    fn lines_that_do_not_fit_are_dropped_and_counted() {
        /// A writer that waits until it is let go.
        struct Stuck(Arc<(Mutex<bool>, Condvar)>);
        impl Write for Stuck {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                let (open, changed) = &*self.0;
                drop(changed.wait_while(open.lock().unwrap_or_else(PoisonError::into_inner), |open| !*open));
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let (log, writer) = AccessLog::start(LogFormat::Text, Stuck(Arc::clone(&gate))).expect("a thread starts");
        for _ in 0..4 * QUEUE {
            log.write(Which::All, line("/", Outcome::Success));
        }
        let dropped = log.dropped();
        assert!(dropped > 0 && dropped < 4 * QUEUE as u64, "{dropped}");
        *gate.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        gate.1.notify_all();
        drop(log);
        writer.join().expect("the writer ends");
    }
}
