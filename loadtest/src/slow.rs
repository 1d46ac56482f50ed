//! Clients that are slow on purpose: heads a byte at a time, answers hardly read, connections that
//! say nothing.
//!
//! They come beside the load, at a stated time, and come back when they are cut off. How long a
//! target bears each kind is counted; what it does to the others is for the load to show, by the
//! parts of the run before and during.
//!
//! A slow reader learns that it was cut off only when it has read what is still under way, which is
//! megabytes in the buffers of two kernels: that count says little, the target's own log says when.

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

/// Time from one client to the next when they come: a crowd at the door would be another test.
const STAGGER: Duration = Duration::from_millis(20);
/// Pause after a connection that ended, before the client comes back.
const AGAIN: Duration = Duration::from_millis(200);
/// Bytes that a slow reader takes at a time.
const SIP: usize = 64;
/// What a client with a slow head never comes to the end of.
const ENDLESS: &[u8] = b"x-slow: ";

/// Slow clients of a scenario.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlowSection {
    /// Clients that send a request head byte by byte, and never its end.
    #[serde(default)]
    pub heads: u32,
    /// Clients that ask for much and hardly read.
    #[serde(default)]
    pub readers: u32,
    /// Clients that connect and say nothing.
    #[serde(default)]
    pub idle: u32,
    /// Time between two bytes of a head, or two sips of an answer.
    #[serde(default = "pause", deserialize_with = "values::duration")]
    pub pause: Duration,
    /// Size that readers ask for, by `?bytes=`.
    #[serde(default = "more_than_buffers_hold")]
    pub bytes: usize,
    /// When they come.
    #[serde(default, deserialize_with = "values::duration")]
    pub from: Duration,
}

fn pause() -> Duration {
    Duration::from_millis(500)
}

/// What kernels keep on the way of one connection is a few mebibytes.
fn more_than_buffers_hold() -> usize {
    32 * 1024 * 1024
}

/// What became of one kind.
#[derive(Debug, Clone, Default, Serialize)]
pub struct SlowReport {
    /// `heads`, `readers` or `idle`.
    pub kind: &'static str,
    /// Clients of this kind.
    pub clients: u32,
    /// Connections they opened.
    pub opened: u64,
    /// Connections that could not be opened.
    pub refused: u64,
    /// Connections that the target ended.
    pub cut_off: u64,
    /// How long those had lasted.
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

/// Lets them come, and go when `stop` comes.
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

/// Returns when the target has ended the connection.
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
                    // Whatever arrives now is a refusal, and the end of the connection after it.
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
