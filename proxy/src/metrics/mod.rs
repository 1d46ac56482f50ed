//! Prometheus text from the numbers that the guard sees: built anew at each scrape, so nothing is counted twice and nothing can disagree.
//!
//! All label pairs of a rollout exist from its start, so rates begin at zero. The number of series depends on the file alone, never on users, paths or statuses.
//! The library keeps no registry here: its families are filled from our totals and written by its encoder, and only `process_*` come from its collector.

pub mod names;

use std::collections::BTreeSet;
use std::sync::OnceLock;

use cutover_core::guard::Rule;
use cutover_core::histogram::lowest_of;
use cutover_core::outcome::CODE_CLASSES;
use cutover_core::{FailureKind, GuardSettings, Latencies, Maintenance, Phase, Reason, Side, Totals};
use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType, Quantile, Summary};
use prometheus::{Encoder, TextEncoder};

use crate::access_log::AccessLog;
use crate::certificates::Certificates;
use crate::clock;
use crate::drain::{Drains, Ended};
use crate::gateway::door::Connections;
use crate::recorder::{Halted, SlotTotals};
use crate::rescue::Saving;
use crate::status::{MaintenanceStatus, Report};
use crate::traces::Traces;
use crate::upstream::Connect;
use names::Name;

/// The buckets of the duration histogram in microseconds; the guard's own latency limits join them.
const BUCKETS_US: [u64; 20] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 75_000, 100_000, 150_000, 200_000, 300_000, 500_000, 750_000, 1_000_000, 1_500_000, 2_000_000, 3_000_000, 5_000_000, 10_000_000,
    30_000_000,
];

/// Renders everything as Prometheus text.
///
/// # Errors
/// Only what the encoder reports; families are valid by construction.
pub fn render(report: &Report, connections: &Connections, certificates: &Certificates, drains: &Drains, access_log: &AccessLog, traces: &Traces) -> prometheus::Result<Vec<u8>> {
    let mut families = Families::default();
    let status = &report.status;
    for (rollout, measured) in status.rollouts.iter().zip(&report.measured) {
        let id = rollout.id.as_str();
        let guard = report.common.settings.rollouts.iter().find(|settings| *settings.id == *id).map(|settings| &settings.guard);
        let bounds = bounds(guard);
        for side in Side::BOTH {
            let totals = &measured.totals.totals[side];
            families.side(id, side, totals);
            families.add(names::DURATION, &[id, side.name()], Value::Histogram(totals, &bounds));
            families.add(names::WEBSOCKETS, &[id, side.name()], Value::Gauge(measured.totals.websockets[side] as f64));
            families.add(names::INFLIGHT, &[id, side.name()], Value::Gauge(measured.totals.in_flight[side] as f64));
            families.add(names::LATENCY, &[id, side.name()], Value::Summary(totals, measured.recent_quantiles[side]));
        }
        families.add(names::SPLIT, &[id, "desired"], Value::Gauge(rollout.desired_percent / 100.0));
        families.add(names::SPLIT, &[id, "effective"], Value::Gauge(rollout.effective_percent / 100.0));
        for phase in Phase::NAMES {
            families.add(names::PHASE, &[id, phase], Value::Gauge(f64::from(rollout.phase == phase)));
        }
        families.add(names::TRIPPED, &[id], Value::Gauge(f64::from(rollout.latch.is_some())));
        families.add(names::SHARED_CAUSE, &[id], Value::Gauge(f64::from(rollout.shared_cause)));
        for rule in &rollout.guard.rules {
            if let Some(evidence) = rule.evidence_log10 {
                families.add(names::EVIDENCE, &[id, &rule.rule], Value::Gauge(evidence));
            }
        }
        if let Some(guard) = guard {
            families.add(names::THRESHOLD, &[id], Value::Gauge(cutover_core::judge::log_threshold(guard) / std::f64::consts::LN_10));
        }
        for rule in Rule::NAMES.into_iter().chain(["manual", "state"]) {
            let count = report.rollbacks.iter().find(|(rollout, label, _)| **rollout == *id && label == rule).map_or(0, |(_, _, count)| *count);
            families.add(names::ROLLBACKS, &[id, rule], Value::Counter(count));
        }
        for (saving, count) in Saving::ALL.into_iter().zip(measured.totals.savings) {
            families.add(names::FAILOVERS, &[id, saving.name()], Value::Counter(count));
        }
        for reason in Reason::ALL {
            families.add(names::DECISIONS, &[id, reason.name()], Value::Counter(measured.totals.reasons[reason.index()]));
        }
        families.maintenance(id, rollout.maintenance.as_ref(), &measured.totals);
    }
    families.side("", Side::Legacy, &report.unmatched.totals.legacy);
    let now = clock::mono();
    families.maintenance("", status.maintenance.as_ref(), &report.unmatched);
    for backend in report.common.backends.values() {
        families.add(names::SERVERS, &[&backend.settings().name], Value::Gauge(backend.servers().iter().filter(|server| server.is_healthy(now)).count() as f64));
    }
    for backend in report.common.backends.values() {
        let name = &*backend.settings().name;
        families.add(names::UPSTREAM, &[name, "active"], Value::Gauge(backend.active() as f64));
        for connect in Connect::ALL {
            families.add(names::CONNECTS, &[name, connect.name()], Value::Counter(backend.connects(connect)));
        }
    }
    for certificate in certificates.standings() {
        families.add(names::CERTIFICATE_EXPIRY, &[&certificate.path], Value::Gauge(certificate.expires_ms as f64 / 1e3));
        families.add(names::CERTIFICATE_CURRENT, &[&certificate.path], Value::Gauge(f64::from(certificate.is_current)));
    }
    for (ended, count) in Ended::ALL.into_iter().zip(drains.counts()) {
        families.add(names::DRAINED, &[ended.name()], Value::Counter(count));
    }
    families.add(names::CONNECTIONS, &["open"], Value::Gauge(connections.open() as f64));
    families.add(names::CONNECTIONS_LIMIT, &[], Value::Gauge(report.common.settings.listen.max_connections as f64));
    families.add(names::CONNECTIONS_REFUSED, &[], Value::Counter(connections.refused()));
    families.add(names::RELOAD_SUCCESSFUL, &[], Value::Gauge(f64::from(status.config.last_reload_successful)));
    let read_at = clock::parse_rfc3339(&status.config.last_success_at).map_or(0.0, |wall| wall.as_millis() as f64 / 1e3);
    families.add(names::RELOAD_TIMESTAMP, &[], Value::Gauge(read_at));
    families.add(names::CONFIG, &[&status.config.digest], Value::Gauge(1.0));
    families.add(names::DURABLE, &[], Value::Gauge(f64::from(status.latch_durable)));
    families.add(names::LOG_DROPPED, &[], Value::Counter(access_log.dropped() + crate::event_log::dropped()));
    for (result, count) in traces.counts() {
        families.add(names::SPANS, &[result], Value::Counter(count));
    }
    families.add(names::BUILD, &[&status.version], Value::Gauge(1.0));

    let mut text = Vec::with_capacity(64 * 1024);
    let encoder = TextEncoder::new();
    encoder.encode(&families.0, &mut text)?;
    static PROCESS: OnceLock<ProcessCollector> = OnceLock::new();
    encoder.encode(&PROCESS.get_or_init(ProcessCollector::for_self).collect(), &mut text)?;
    Ok(text)
}

/// The bounds of a rollout's duration histogram: ours and each latency limit of its guard, so that a query can repeat exactly what the guard judged.
fn bounds(guard: Option<&GuardSettings>) -> Vec<u64> {
    let limits = guard.into_iter().flat_map(|guard| &guard.rules).filter_map(|rule| match rule {
        Rule::Latency(_, limit_us) => Some(*limit_us),
        Rule::Hang(limit_us) => Some(*limit_us),
        Rule::ErrorsMax(_) | Rule::ErrorsVsLegacy(_) | Rule::LatencyVsLegacy(_) | Rule::ClientErrorsVsLegacy(_) | Rule::AbortsVsLegacy(_) | Rule::Health(_) | Rule::Dead(_) => None,
    });
    BUCKETS_US.into_iter().chain(limits).collect::<BTreeSet<u64>>().into_iter().collect()
}

enum Value<'a> {
    Counter(u64),
    Gauge(f64),
    Histogram(&'a Totals, &'a [u64]),
    Summary(&'a Totals, Option<[f64; 3]>),
}

#[derive(Default)]
struct Families(Vec<MetricFamily>);

impl Families {
    /// The counters of one side.
    fn side(&mut self, rollout: &str, side: Side, totals: &Totals) {
        for (class, count) in CODE_CLASSES.iter().zip(totals.code_classes) {
            self.add(names::REQUESTS, &[rollout, side.name(), class], Value::Counter(count));
        }
        for kind in FailureKind::ALL {
            self.add(names::FAILURES, &[rollout, side.name(), kind.name()], Value::Counter(totals.counts.failures[kind.index()]));
        }
    }

    /// What is kept out, and what that did.
    fn maintenance(&mut self, rollout: &str, in_force: Option<&MaintenanceStatus>, totals: &SlotTotals) {
        let in_force = in_force.map_or(Maintenance::Off.name(), |maintenance| &maintenance.mode);
        for mode in Maintenance::ALL {
            self.add(names::MAINTENANCE, &[rollout, mode.name()], Value::Gauge(f64::from(mode.name() == in_force)));
        }
        for result in Halted::ALL {
            self.add(names::MAINTENANCE_REQUESTS, &[rollout, result.name()], Value::Counter(totals.halted[result.index()]));
        }
        self.add(names::HELD, &[rollout], Value::Gauge(totals.parked() as f64));
    }

    fn add(&mut self, name: Name, labels: &[&str], value: Value<'_>) {
        debug_assert_eq!(name.labels.len(), labels.len(), "{}", name.name);
        let at = match self.0.iter().position(|family| family.name() == name.name) {
            Some(at) => at,
            None => {
                let mut family = MetricFamily::default();
                family.set_name(name.name.to_owned());
                family.set_help(name.help.to_owned());
                family.set_field_type(match name.kind {
                    "counter" => MetricType::COUNTER,
                    "histogram" => MetricType::HISTOGRAM,
                    "summary" => MetricType::SUMMARY,
                    _ => MetricType::GAUGE,
                });
                self.0.push(family);
                self.0.len() - 1
            }
        };
        let mut metric = Metric::from_label(
            name.labels
                .iter()
                .zip(labels)
                .map(|(label, value)| {
                    let mut pair = LabelPair::default();
                    pair.set_name((*label).to_owned());
                    pair.set_value((*value).to_owned());
                    pair
                })
                .collect(),
        );
        match value {
            Value::Counter(count) => {
                let mut counter = Counter::default();
                counter.set_value(count as f64);
                metric.set_counter(counter);
            }
            Value::Gauge(number) => {
                let mut gauge = Gauge::default();
                gauge.set_value(number);
                metric.set_gauge(gauge);
            }
            Value::Summary(totals, recent) => metric.set_summary(summary(totals, recent)),
            Value::Histogram(totals, bounds) => metric.set_histogram(histogram(totals, bounds)),
        }
        self.0[at].mut_metric().push(metric);
    }
}

/// The quantiles of the last minute; count and sum are since the start, as everywhere.
fn summary(totals: &Totals, recent: Option<[f64; 3]>) -> Summary {
    let mut summary = Summary::default();
    summary.set_sample_count(totals.latencies.total());
    summary.set_sample_sum(totals.counts.latency_sum_us as f64 / 1e6);
    let quantiles = [0.5, 0.95, 0.99].into_iter().zip(recent.into_iter().flatten()).map(|(at, value)| {
        let mut quantile = Quantile::default();
        quantile.set_quantile(at);
        quantile.set_value(value);
        quantile
    });
    summary.set_quantile(quantiles.collect());
    summary
}

/// A classic histogram from HDR counts: a latency counts below a bound when its counter does not begin above it, which is how the guard reads a limit.
fn histogram(totals: &Totals, bounds: &[u64]) -> Histogram {
    let mut histogram = Histogram::default();
    histogram.set_sample_count(totals.latencies.total());
    histogram.set_sample_sum(totals.counts.latency_sum_us as f64 / 1e6);
    let cumulative = cumulative(&totals.latencies, bounds);
    let buckets = bounds.iter().zip(cumulative).map(|(&bound, count)| {
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(bound as f64 / 1e6);
        bucket.set_cumulative_count(count);
        bucket
    });
    histogram.set_bucket(buckets.collect());
    histogram
}

fn cumulative(latencies: &Latencies, bounds: &[u64]) -> Vec<u64> {
    let mut counters = latencies.counts().iter().enumerate().peekable();
    let mut sum = 0;
    bounds
        .iter()
        .map(|&bound| {
            while let Some((_, count)) = counters.next_if(|(index, _)| lowest_of(*index) <= bound) {
                sum += count;
            }
            sum
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_counts_what_the_guard_counts() {
        let mut latencies = Latencies::default();
        for us in (0..200_000u64).map(|n| n * 37 % 3_000_000) {
            latencies.record(us);
        }
        let bounds = [1_000, 50_000, 123_456, 800_000, 2_000_000];
        for (bound, count) in bounds.iter().zip(cumulative(&latencies, &bounds)) {
            assert_eq!(count, latencies.total() - latencies.above(*bound), "{bound} us");
        }
    }

    #[test]
    fn names_follow_the_rules_of_prometheus() {
        for name in names::ALL {
            assert!(name.name.starts_with("cutover_") && !name.help.is_empty(), "{}", name.name);
            assert_eq!(name.kind == "counter", name.name.ends_with("_total"), "{}", name.name);
            assert!(!name.name.contains("_ms"), "{}", name.name);
        }
    }
}
