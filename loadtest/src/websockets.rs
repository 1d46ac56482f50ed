//! WebSockets held open during the load. Each sends a message at intervals and waits for its echo.
//!
//! Each WebSocket belongs to a stable user, so the proxy routes it to that user's side. The report
//! counts what users would notice. These are handshakes that were accepted or refused, and
//! connections that ended before the client closed them, with their close codes. The round-trip
//! time is measured from the moment a message was due.

use crate::driver::{Connector, Protocol, RunPlan};
use crate::report::{Quantiles, Times};
use crate::stopping::stopped;
use crate::units::UsageError;
use crate::values;
use futures_util::{SinkExt, StreamExt};
use http::Request;
use http::header::{CONNECTION, HOST, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::uri::PathAndQuery;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::{Error, Message};

/// The longest time that a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The pause between two handshakes, so that a thousand do not arrive at once.
const STAGGER: Duration = Duration::from_millis(2);

/// The WebSockets of a scenario.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebSocketSection {
    /// The number of WebSockets, one for each of the first users.
    pub count: u32,
    /// The path of the handshake.
    #[serde(default = "root", deserialize_with = "values::path")]
    pub path: PathAndQuery,
    /// The time between two messages on a WebSocket.
    #[serde(default = "second", deserialize_with = "values::duration")]
    pub interval: Duration,
}

fn root() -> PathAndQuery {
    PathAndQuery::from_static("/")
}

fn second() -> Duration {
    Duration::from_secs(1)
}

/// The result of all WebSockets.
#[derive(Debug, Clone, Default, Serialize)]
pub struct WebSocketReport {
    /// The number of accepted handshakes.
    pub opened: u64,
    /// The number of handshakes that were not accepted, by status or failure.
    pub refused: BTreeMap<String, u64>,
    /// The number of WebSockets that ended before the kit closed them, by close code, or `none`
    /// without a close frame.
    pub closed_early: BTreeMap<String, u64>,
    /// The number of messages sent.
    pub sent: u64,
    /// The number of echoes received.
    pub echoed: u64,
    /// The time from when a message was due to its echo.
    pub round_trip: Quantiles,
}

impl WebSocketReport {
    /// Returns how many WebSockets ended before the kit closed them.
    pub fn lost(&self) -> u64 {
        self.closed_early.values().sum()
    }
}

/// The result of one WebSocket.
#[derive(Debug, Default)]
struct Life {
    refused: Option<String>,
    closed_early: Option<String>,
    sent: u64,
    round_trips: Vec<u64>,
}

/// Opens the WebSockets, and holds them until `stop` is signalled.
pub async fn hold(
    section: &WebSocketSection,
    plan: &RunPlan,
    stop: watch::Receiver<bool>,
) -> Result<WebSocketReport, UsageError> {
    if section.interval.is_zero() {
        return Err(UsageError::new("expected a websockets.interval above 0"));
    }
    // The handshake of RFC 6455 uses HTTP/1.1.
    let connector = Arc::new(Connector::new(&plan.target, Protocol::H1, &plan.trust)?);
    let mut lives = JoinSet::new();
    for user in 0..section.count {
        let (name, value) = plan
            .key
            .header(user)
            .ok_or_else(|| UsageError::new("expected a user key that a header can carry"))?;
        let request = Request::builder()
            .uri(format!("ws://{}{}", plan.target.authority(), section.path))
            .header(HOST, plan.target.authority())
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "websocket")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_KEY, generate_key())
            .header(name, value)
            .body(())
            .map_err(|error| {
                UsageError::new(format!(
                    "expected a handshake that can be asked for: {error}"
                ))
            })?;
        lives.spawn(live(
            Arc::clone(&connector),
            request,
            section.interval,
            STAGGER * user,
            stop.clone(),
        ));
    }
    let mut report = WebSocketReport::default();
    let mut round_trips = Vec::new();
    while let Some(life) = lives.join_next().await {
        let Ok(mut life) = life else {
            continue;
        };
        match life.refused {
            Some(why) => *report.refused.entry(why).or_default() += 1,
            None => report.opened += 1,
        }
        if let Some(code) = life.closed_early {
            *report.closed_early.entry(code).or_default() += 1;
        }
        report.sent += life.sent;
        report.echoed += life.round_trips.len() as u64;
        round_trips.append(&mut life.round_trips);
    }
    report.round_trip = Times::of(round_trips.into_iter()).quantiles();
    Ok(report)
}

async fn live(
    connector: Arc<Connector>,
    request: Request<()>,
    interval: Duration,
    after: Duration,
    mut stop: watch::Receiver<bool>,
) -> Life {
    let mut life = Life::default();
    tokio::time::sleep(after).await;
    let handshake = async {
        let wire = connector.wire().await.map_err(|_| "connect".to_owned())?;
        client_async(request, wire)
            .await
            .map_err(|error| match error {
                Error::Http(response) => response.status().as_u16().to_string(),
                _ => "handshake".to_owned(),
            })
    };
    let mut socket = match tokio::time::timeout(HANDSHAKE, handshake).await {
        Ok(Ok((socket, _))) => socket,
        Ok(Err(why)) => {
            life.refused = Some(why);
            return life;
        }
        Err(_) => {
            life.refused = Some("timeout".to_owned());
            return life;
        }
    };
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut due: Option<Instant> = None;
    loop {
        tokio::select! {
            () = stopped(&mut stop) => {
                // It does not matter whether the other side answers the close frame.
                let _ = socket.close(None).await;
                return life;
            }
            at = ticks.tick(), if due.is_none() => {
                if socket.send(Message::text(format!("word {}", life.sent))).await.is_err() {
                    life.closed_early = Some("none".to_owned());
                    return life;
                }
                life.sent += 1;
                due = Some(at);
            }
            message = socket.next() => match message {
                Some(Ok(Message::Text(_) | Message::Binary(_))) => {
                    if let Some(at) = due.take() {
                        life.round_trips.push(crate::driver::nanoseconds(at.elapsed()));
                    }
                }
                Some(Ok(Message::Close(frame))) => {
                    life.closed_early = Some(frame.map_or_else(|| "none".to_owned(), |frame| u16::from(frame.code).to_string()));
                    return life;
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Err(_)) | None => {
                    life.closed_early = Some("none".to_owned());
                    return life;
                }
            }
        }
    }
}
