//! Export of spans to a collector, in OTLP over HTTP (protobuf), with OpenTelemetry's own exporter.
//!
//! Its SDK is not on the request path: Cutover samples and measures requests, and the exporter
//! receives finished spans. A batch has up to 512 requests, or those received within a second. A
//! collector that does not answer within two seconds loses the batch, which is counted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use cutover_config::Traces as Settings;
use cutover_core::{Mono, Outcome};
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{Protocol, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};

use super::Attempt;
use crate::clock;
use crate::telemetry::traces::{Counts, Finished};

/// The most requests in a batch.
const BATCH: usize = 512;
/// How long a batch is collected.
const COLLECT: Duration = Duration::from_secs(1);
/// How long a collector may take for a batch. At the end of the process it is the time for all
/// remaining batches.
const PATIENCE: Duration = Duration::from_secs(2);

/// Exports until all senders are gone, including everything sent before.
pub(super) fn start(
    settings: &Settings,
    receiver: Receiver<Finished>,
    counts: Arc<Counts>,
) -> std::io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let guard = runtime.enter();
    let endpoint = format!("{}/v1/traces", settings.endpoint);
    let mut exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(&endpoint)
        .with_timeout(PATIENCE)
        .build()
        .map_err(|error| {
            std::io::Error::other(format!("cannot export spans to {endpoint}: {error}"))
        })?;
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    exporter.set_resource(
        &Resource::builder()
            .with_service_name(settings.service.clone())
            .with_attribute(version)
            .build(),
    );
    drop(guard);
    std::thread::Builder::new()
        .name("traces".to_owned())
        .spawn(move || {
            let scope = InstrumentationScope::builder("cutover")
                .with_version(env!("CARGO_PKG_VERSION"))
                .build();
            let mut was_taken = true;
            let mut last: Option<Mono> = None;
            while let Some(batch) = next(&receiver) {
                if counts.ending.load(Ordering::Relaxed) {
                    last.get_or_insert_with(|| clock::mono().forward(PATIENCE));
                }
                let patience = last.map_or(PATIENCE, |last| last.since(clock::mono()));
                let spans: Vec<SpanData> = batch
                    .iter()
                    .flat_map(|finished| spans(finished, &scope))
                    .collect();
                let count = spans.len() as u64;
                let result = runtime.block_on(async {
                    tokio::time::timeout(patience, exporter.export(spans)).await
                });
                let why = match result {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(error.to_string()),
                    Err(_) => Some(format!("no answer within {patience:?}")),
                };
                let taken = if why.is_none() {
                    &counts.exported
                } else {
                    &counts.failed
                };
                taken.fetch_add(count, Ordering::Relaxed);
                if let (Some(why), true) = (&why, was_taken) {
                    tracing::warn!(
                        endpoint,
                        why,
                        "the collector does not take spans: they are lost and counted"
                    );
                }
                was_taken = why.is_none();
            }
        })
}

/// Returns the next batch; `None` when there will be none.
fn next(receiver: &Receiver<Finished>) -> Option<Vec<Finished>> {
    let mut batch = vec![receiver.recv().ok()?];
    let began = clock::mono();
    while batch.len() < BATCH {
        match receiver.recv_timeout(COLLECT.saturating_sub(clock::mono().since(began))) {
            Ok(finished) => batch.push(finished),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    Some(batch)
}

/// Builds the span of a request, and those of its attempts. Names of attributes are those of
/// OpenTelemetry where it defines one.
fn spans(finished: &Finished, scope: &InstrumentationScope) -> Vec<SpanData> {
    let trace = TraceId::from(finished.trace);
    let context = |span: u64| {
        SpanContext::new(
            trace,
            SpanId::from(span),
            TraceFlags::SAMPLED,
            false,
            TraceState::NONE,
        )
    };
    let mut attributes = vec![
        KeyValue::new(
            "http.request.method",
            finished.ended.method.as_str().to_owned(),
        ),
        KeyValue::new("url.path", finished.ended.path.to_string()),
        KeyValue::new("client.address", finished.ended.client.to_string()),
    ];
    if let Some(status) = finished.ended.status {
        attributes.push(KeyValue::new(
            "http.response.status_code",
            i64::from(status),
        ));
    }
    if let Some(rollout) = &finished.ended.rollout {
        attributes.push(KeyValue::new("cutover.rollout", rollout.to_string()));
    }
    if let Some(decision) = &finished.ended.decision {
        attributes.push(KeyValue::new("cutover.backend", decision.side.name()));
        attributes.push(KeyValue::new("cutover.reason", decision.reason.name()));
        attributes.extend(
            decision
                .bucket
                .map(|bucket| KeyValue::new("cutover.bucket", i64::from(bucket.number()))),
        );
    }
    attributes.extend(
        finished
            .ended
            .moved
            .map(|moved| KeyValue::new("cutover.moved", moved)),
    );
    let failed = match finished.ended.outcome {
        Outcome::Failure(kind) => Some(kind.name()),
        _ => finished
            .ended
            .status
            .filter(|status| *status >= 500)
            .map(|_| "status"),
    };
    let end = SystemTime::UNIX_EPOCH
        + Duration::from_millis(u64::try_from(finished.ended.at.as_millis()).unwrap_or_default());
    let own = SpanData {
        span_context: context(finished.spans.id),
        parent_span_id: finished.parent.map_or(SpanId::INVALID, SpanId::from),
        parent_span_is_remote: finished.parent.is_some(),
        span_kind: SpanKind::Server,
        name: finished.ended.method.as_str().to_owned().into(),
        start_time: end.checked_sub(finished.ended.total).unwrap_or(end),
        end_time: end,
        attributes: with_error(attributes, failed),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: status_of(failed),
        instrumentation_scope: scope.clone(),
    };
    // Attempts are measured by the monotonic clock, so their times are computed back from the end
    // of the request.
    let wall = |at: cutover_core::Mono| {
        end.checked_sub(finished.ended_mono.since(at))
            .unwrap_or(end)
    };
    let attempts = finished.spans.attempts.iter().map(|attempt| {
        let failed = attempt
            .failure
            .map(cutover_core::FailureKind::name)
            .or(attempt
                .status
                .filter(|status| *status >= 500)
                .map(|_| "status"));
        SpanData {
            span_context: context(attempt.id),
            parent_span_id: SpanId::from(finished.spans.id),
            parent_span_is_remote: false,
            span_kind: SpanKind::Client,
            name: format!("{} {}", finished.ended.method, attempt.side.name()).into(),
            start_time: wall(attempt.began),
            end_time: wall(attempt.ended.unwrap_or(finished.ended_mono)),
            attributes: with_error(of_attempt(attempt), failed),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: status_of(failed),
            instrumentation_scope: scope.clone(),
        }
    });
    std::iter::once(own).chain(attempts).collect()
}

fn of_attempt(attempt: &Attempt) -> Vec<KeyValue> {
    let address: SocketAddr = attempt.server;
    let mut attributes = vec![
        KeyValue::new("server.address", address.ip().to_string()),
        KeyValue::new("server.port", i64::from(address.port())),
        KeyValue::new("cutover.backend", attempt.side.name()),
    ];
    attributes.extend(
        attempt
            .status
            .map(|status| KeyValue::new("http.response.status_code", i64::from(status))),
    );
    attributes
}

fn with_error(mut attributes: Vec<KeyValue>, failed: Option<&'static str>) -> Vec<KeyValue> {
    attributes.extend(failed.map(|kind| KeyValue::new("error.type", kind)));
    attributes
}

fn status_of(failed: Option<&'static str>) -> Status {
    failed.map_or(Status::Unset, Status::error)
}
