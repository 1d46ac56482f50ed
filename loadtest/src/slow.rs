//! Deliberately slow clients: heads sent a byte at a time, answers hardly read, and silent
//! connections.
//!
//! The clients start at a stated time during the load, and reconnect when they are cut off. The
//! report counts how long a target tolerates each kind. Their effect on other clients is for the
//! load to show, by comparing the parts of the run before and during.
//!
//! A slow reader learns that it was cut off only after it has read what is still in transit, which
//! is megabytes in the buffers of two kernels. That count therefore says little, and the target's
//! own log shows when it happened.

use crate::driver::{Connector, Protocol, RunPlan};
use crate::report::{Quantiles, Times};
use crate::stopping::stopped;
use crate::units::UsageError;
use crate::values;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The delay between the starts of two clients. A simultaneous start would be another test.
const STAGGER: Duration = Duration::from_millis(20);
/// The pause after a connection ended, before the client reconnects.
const AGAIN: Duration = Duration::from_millis(200);
/// The number of bytes that a slow reader takes at a time.
const SIP: usize = 64;
/// The header line that a client with a slow head never completes.
const ENDLESS: &[u8] = b"x-slow: ";

/// The slow clients of a scenario.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlowSection {
    /// The number of clients that send a request head byte by byte, and never finish it.
    #[serde(default)]
    pub heads: u32,
    /// The number of clients that request a large answer and hardly read it.
    #[serde(default)]
    pub readers: u32,
    /// The number of clients that connect and send nothing.
    #[serde(default)]
    pub idle: u32,
    /// The time between two bytes of a head, or two reads of an answer.
    #[serde(default = "pause", deserialize_with = "values::duration")]
    pub pause: Duration,
    /// The size that readers request with `?bytes=`.
    #[serde(default = "more_than_buffers_hold")]
    pub bytes: usize,
    /// The time at which the clients start.
    #[serde(default, deserialize_with = "values::duration")]
    pub from: Duration,
}

fn pause() -> Duration {
    Duration::from_millis(500)
}

/// Returns a size above what kernels buffer for one connection, which is a few mebibytes.
fn more_than_buffers_hold() -> usize {
    32 * 1024 * 1024
}

/// The result of one kind of slow client.
#[derive(Debug, Clone, Default, Serialize)]
pub struct SlowReport {
    /// The kind: `heads`, `readers` or `idle`.
    pub kind: &'static str,
    /// The number of clients of this kind.
    pub clients: u32,
    /// The number of connections that they opened.
    pub opened: u64,
    /// The number of connections that could not be opened.
    pub refused: u64,
    /// The number of connections that the target ended.
    pub cut_off: u64,
    /// The lifetime of the connections that the target ended.
    pub lasted: Quantiles,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Head,
    Reader,
    Idle,
}

#[derive(Debug, Default)]
struct Life {
    opened: u64,
    refused: u64,
    lasted: Vec<u64>,
}

/// Starts the slow clients, and ends them when `stop` is signalled.
pub async fn crowd(
    section: &SlowSection,
    plan: &RunPlan,
    mut stop: watch::Receiver<bool>,
) -> Result<Vec<SlowReport>, UsageError> {
    let connector = Arc::new(Connector::new(&plan.target, Protocol::H1, &plan.trust)?);
    tokio::select! {
        () = stopped(&mut stop) => {}
        () = tokio::time::sleep(section.from) => {}
    }
    let mut kinds = Vec::new();
    for (kind, name, clients) in [
        (Kind::Head, "heads", section.heads),
        (Kind::Reader, "readers", section.readers),
        (Kind::Idle, "idle", section.idle),
    ] {
        let mut lives = JoinSet::new();
        let request = Arc::new(format!(
            "GET /?bytes={} HTTP/1.1\r\nhost: {}\r\n",
            section.bytes,
            plan.target.authority()
        ));
        for number in 0..clients {
            lives.spawn(live(
                kind,
                Arc::clone(&connector),
                Arc::clone(&request),
                section.pause,
                STAGGER * number,
                stop.clone(),
            ));
        }
        kinds.push((name, clients, lives));
    }
    let mut reports = Vec::new();
    for (kind, clients, mut lives) in kinds {
        let mut report = SlowReport {
            kind,
            clients,
            ..SlowReport::default()
        };
        let mut lasted = Vec::new();
        while let Some(life) = lives.join_next().await {
            let Ok(mut life) = life else {
                continue;
            };
            report.opened += life.opened;
            report.refused += life.refused;
            report.cut_off += life.lasted.len() as u64;
            lasted.append(&mut life.lasted);
        }
        report.lasted = Times::of(lasted.into_iter()).quantiles();
        reports.push(report);
    }
    Ok(reports)
}

async fn live(
    kind: Kind,
    connector: Arc<Connector>,
    request: Arc<String>,
    pause: Duration,
    after: Duration,
    mut stop: watch::Receiver<bool>,
) -> Life {
    let mut life = Life::default();
    tokio::select! {
        () = stopped(&mut stop) => return life,
        () = tokio::time::sleep(after) => {}
    }
    while !*stop.borrow() {
        match connector.wire().await {
            Err(_) => life.refused += 1,
            Ok(mut wire) => {
                life.opened += 1;
                let begin = Instant::now();
                tokio::select! {
                    () = stopped(&mut stop) => return life,
                    () = be_slow(kind, &mut wire, &request, pause) => life.lasted.push(crate::driver::nanoseconds(begin.elapsed())),
                }
            }
        }
        tokio::select! {
            () = stopped(&mut stop) => {}
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
    life
}

/// Behaves as a slow client until the target has ended the connection.
async fn be_slow(
    kind: Kind,
    wire: &mut Box<dyn crate::driver::Wire>,
    request: &str,
    pause: Duration,
) {
    let mut sip = [0; SIP];
    match kind {
        Kind::Head => {
            for byte in request.bytes().chain(ENDLESS.iter().copied().cycle()) {
                tokio::select! {
                    // Anything that arrives now is a refusal, followed by the end of the
                    // connection.
                    read = wire.read(&mut sip) => if !matches!(read, Ok(1..)) { return },
                    () = tokio::time::sleep(pause) => if wire.write_all(&[byte]).await.is_err() { return },
                }
            }
        }
        Kind::Reader => {
            if wire.write_all(request.as_bytes()).await.is_err()
                || wire.write_all(b"\r\n").await.is_err()
            {
                return;
            }
            while matches!(wire.read(&mut sip).await, Ok(1..)) {
                tokio::time::sleep(pause).await;
            }
        }
        Kind::Idle => while matches!(wire.read(&mut sip).await, Ok(1..)) {},
    }
}
