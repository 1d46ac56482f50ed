//! The event log. A separate thread writes one line for each event.
//!
//! A log that blocks its caller would let a paused terminal or a stuck pipe delay the control loop,
//! and with it every rollback. Lines therefore wait in a bounded queue. When it is full they are
//! dropped, and counted together with those of the access log.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

use cutover_config::LogFormat;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// The filter of what is logged unless `CUTOVER_LOG` says otherwise. Pingora's own errors contain
/// raw bytes of requests and occur once per request in an outage; Cutover counts errors and writes
/// them to the access log.
const FILTER: &str =
    "info,pingora_proxy=off,pingora_core=error,pingora_core::protocols=off,pingora_core::apps=off";
/// The number of lines that may wait.
const QUEUE: usize = 4_096;
/// How long the end of the process waits for the last lines.
const LAST_LINES: Duration = Duration::from_secs(1);

static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Returns the number of dropped lines of the event log in this process.
pub fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// A handle that keeps the log running. Dropping it waits briefly for the last lines.
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
/// Fails when the thread cannot be started.
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
        // A full queue or a stuck reader does not delay the end of the process.
        if self.0.try_send(Item::Flush(done)).is_ok() {
            let _ = answer.recv_timeout(LAST_LINES);
        }
    }
}

fn write_items(items: &Receiver<Item>, mut out: impl Write) {
    while let Ok(item) = items.recv() {
        match item {
            // If stdout is closed there is no reader, and the proxy continues.
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
    /// The formatter passes each event in one piece.
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
    fn a_queue_without_a_reader_drops_lines_and_never_waits() {
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
