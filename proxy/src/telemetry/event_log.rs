//! The event log: what happened, one line each, written by a thread of its own.
//!
//! A log that blocks its writer would let a paused terminal or a stuck pipe hold up the control
//! loop, and with it every rollback. So lines wait in a bounded queue; when it is full they are
//! dropped and counted together with those of the access log.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

use cutover_config::LogFormat;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// What is logged unless `CUTOVER_LOG` says otherwise. Pingora's own errors name raw bytes of
/// requests and come once per request in an outage; ours are counted and in the access log.
const FILTER: &str =
    "info,pingora_proxy=off,pingora_core=error,pingora_core::protocols=off,pingora_core::apps=off";
/// How many lines may wait.
const QUEUE: usize = 4_096;
/// How long the end of the process waits for the last lines.
const LAST_LINES: Duration = Duration::from_secs(1);

static DROPPED: AtomicU64 = AtomicU64::new(0);

/// How many lines of the event log were dropped in this process.
pub fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Keeps the log going; dropping it waits shortly for the last lines.
#[derive(Debug)]
pub struct EventLog(SyncSender<Item>);

#[derive(Debug)]
enum Item {
    Line(Vec<u8>),
    Flush(Sender<()>),
}

/// Sends everything that is logged in this process to stdout, in the format of the file.
///
/// # Errors
/// When the thread cannot be started.
pub fn to_stdout(format: LogFormat) -> io::Result<EventLog> {
    let (sender, items) = sync_channel(QUEUE);
    std::thread::Builder::new()
        .name("event-log".to_owned())
        .spawn(move || write_items(&items, io::stdout()))?;
    let filter = EnvFilter::try_from_env("CUTOVER_LOG").unwrap_or_else(|_| EnvFilter::new(FILTER));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_writer(Queue(sender.clone()));
    match format {
        LogFormat::Json => subscriber.json().flatten_event(true).init(),
        LogFormat::Text => subscriber
            .with_ansi(io::IsTerminal::is_terminal(&io::stdout()))
            .init(),
    }
    Ok(EventLog(sender))
}

impl Drop for EventLog {
    fn drop(&mut self) {
        let (done, answer) = channel();
        // A queue that is full or a reader that is stuck does not hold up the end.
        if self.0.try_send(Item::Flush(done)).is_ok() {
            let _ = answer.recv_timeout(LAST_LINES);
        }
    }
}

fn write_items(items: &Receiver<Item>, mut out: impl Write) {
    while let Ok(item) = items.recv() {
        match item {
            // A closed stdout: nobody reads, and the proxy goes on.
            Item::Line(line) => drop(out.write_all(&line).and_then(|()| out.flush())),
            Item::Flush(done) => drop(done.send(())),
        }
    }
}

#[derive(Clone, Debug)]
struct Queue(SyncSender<Item>);

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Write for Queue {
    /// The formatter hands over each event in one piece.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.0.try_send(Item::Line(line.to_vec())).is_err() {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_nobody_reads_drops_lines_and_never_waits() {
        let (sender, items) = sync_channel(2);
        let mut queue = Queue(sender);
        let before = dropped();
        for _ in 0..5 {
            queue.write_all(b"line\n").expect("a write never fails");
        }
        assert_eq!(dropped() - before, 3);
        let mut written = Vec::new();
        drop(queue);
        write_items(&items, &mut written);
        assert_eq!(written, b"line\nline\n");
    }
}
