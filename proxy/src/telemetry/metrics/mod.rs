//! Prometheus text from the numbers that the guard sees. It is built again at each scrape, so
//! nothing is counted twice and no two numbers can disagree.
//!
//! All label pairs of a rollout exist from its start, so rates begin at zero. The number of series
//! depends on the file alone, never on users, paths or statuses. No registry of the library is
//! used: Cutover's metrics are written from its totals, and `process_*` are written by the
//! library's collector and encoder.

pub mod names;

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::OnceLock;

use cutover_core::guard::Rule;
use cutover_core::stats::histogram::lowest_of;
use cutover_core::stats::outcome::CODE_CLASSES;
use cutover_core::{
    FailureKind, GuardSettings, Latencies, Maintenance, Phase, Reason, Side, Totals,
};
use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{Encoder, TextEncoder};

use crate::clock;
use crate::shared::certificates::Certificates;
use crate::shared::connections::{Connections, Declined, lingering};
use crate::shared::drain::{DrainSignal, Drained};
use crate::shared::failover_budget::FailoverResult;
use crate::shared::recorder::{Halted, SlotTotals};
use crate::shared::refusals::{Refusal, Refusals};
use crate::shared::report::Report;
use crate::status::MaintenanceStatus;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::metrics::names::Name;
use crate::telemetry::traces::Traces;
use crate::upstream::Connect;

/// The buckets of the duration histogram in microseconds. The guard's own latency limits are added
/// to them.
const BUCKETS_US: [u64; 20] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 75_000, 100_000, 150_000, 200_000, 300_000,
    500_000, 750_000, 1_000_000, 1_500_000, 2_000_000, 3_000_000, 5_000_000, 10_000_000,
    30_000_000,
];

/// Renders everything as Prometheus text.
///
/// # Errors
/// Fails only on errors of the encoder; families are valid by construction.
pub fn render(
    report: &Report,
    connections: &Connections,
    refusals: &Refusals,
    certificates: &Certificates,
    drains: &DrainSignal,
    access_log: &AccessLog,
    traces: &Traces,
) -> prometheus::Result<Vec<u8>> {
    let mut families = Families::default();
    let status = &report.status;
    for (rollout, measured) in status.rollouts.iter().zip(&report.measured) {
        let id = rollout.id.as_str();
        let guard = report
            .common
            .settings
            .rollouts
            .iter()
            .find(|settings| *settings.id == *id)
            .map(|settings| &settings.guard);
        let bounds = bounds(guard);
        for side in Side::BOTH {
            let totals = &measured.totals.totals[side];
            families.side(id, side, totals);
            families.add(
                names::DURATION,
                &[id, side.name()],
                Value::Histogram(totals, &bounds),
            );
            families.add(
                names::WEBSOCKETS,
                &[id, side.name()],
                Value::Gauge(measured.totals.websockets[side] as f64),
            );
            families.add(
                names::INFLIGHT,
                &[id, side.name()],
                Value::Gauge(measured.totals.in_flight[side] as f64),
            );
            families.add(
                names::LATENCY,
                &[id, side.name()],
                Value::Summary(totals, measured.recent_quantiles[side]),
            );
        }
        families.add(
            names::SPLIT,
            &[id, "desired"],
            Value::Gauge(rollout.desired_percent / 100.0),
        );
        families.add(
            names::SPLIT,
            &[id, "effective"],
            Value::Gauge(rollout.effective_percent / 100.0),
        );
        for phase in Phase::NAMES {
            families.add(
                names::PHASE,
                &[id, phase],
                Value::Gauge(f64::from(rollout.phase == phase)),
            );
        }
        families.add(
            names::TRIPPED,
            &[id],
            Value::Gauge(f64::from(rollout.latch.is_some())),
        );
        families.add(
            names::SHARED_CAUSE,
            &[id],
            Value::Gauge(f64::from(rollout.shared_cause)),
        );
        families.add(
            names::NO_REFUGE,
            &[id],
            Value::Gauge(f64::from(rollout.no_refuge)),
        );
        families.add(
            names::SPILLED,
            &[id],
            Value::Gauge(f64::from(rollout.spilled)),
        );
        for rule in &rollout.guard.rules {
            if let Some(evidence) = rule.evidence_log10 {
                families.add(names::EVIDENCE, &[id, &rule.rule], Value::Gauge(evidence));
            }
            if let Some(part) = rule.evidence_ratio {
                families.add(names::EVIDENCE_RATIO, &[id, &rule.rule], Value::Gauge(part));
            }
        }
        if let Some(guard) = guard {
            families.add(
                names::THRESHOLD,
                &[id],
                Value::Gauge(
                    cutover_core::guard::judge::log_threshold(guard) / std::f64::consts::LN_10,
                ),
            );
        }
        for rule in Rule::NAMES.into_iter().chain(["manual", "state"]) {
            let count = report
                .rollbacks
                .iter()
                .find(|(rollout, label, _)| **rollout == *id && label == rule)
                .map_or(0, |(_, _, count)| *count);
            families.add(names::ROLLBACKS, &[id, rule], Value::Counter(count));
        }
        for (saving, count) in FailoverResult::ALL.into_iter().zip(measured.totals.savings) {
            families.add(
                names::FAILOVERS,
                &[id, saving.name()],
                Value::Counter(count),
            );
        }
        for reason in Reason::ALL {
            families.add(
                names::DECISIONS,
                &[id, reason.name()],
                Value::Counter(measured.totals.reasons[reason.index()]),
            );
        }
        families.maintenance(id, rollout.maintenance.as_ref(), &measured.totals);
    }
    families.side("", Side::Legacy, &report.unmatched.totals.legacy);
    let now = clock::mono();
    families.maintenance("", status.maintenance.as_ref(), &report.unmatched);
    for backend in report.common.backends.values() {
        families.add(
            names::SERVERS,
            &[&backend.settings().name],
            Value::Gauge(
                backend
                    .servers()
                    .iter()
                    .filter(|server| server.is_healthy(now))
                    .count() as f64,
            ),
        );
    }
    for backend in report.common.backends.values() {
        let name = &*backend.settings().name;
        families.add(
            names::EXPECTED,
            &[name],
            Value::Gauge(backend.expected() as f64),
        );
        families.add(
            names::UPSTREAM,
            &[name, "active"],
            Value::Gauge(backend.active() as f64),
        );
        families.add(
            names::UPSTREAM,
            &[name, "idle"],
            Value::Gauge(backend.resting() as f64),
        );
        for connect in Connect::ALL {
            families.add(
                names::CONNECTS,
                &[name, connect.name()],
                Value::Counter(backend.connects(connect)),
            );
        }
    }
    for certificate in certificates.standings() {
        families.add(
            names::CERTIFICATE_EXPIRY,
            &[&certificate.path],
            Value::Gauge(certificate.expires_ms as f64 / 1e3),
        );
        families.add(
            names::CERTIFICATE_CURRENT,
            &[&certificate.path],
            Value::Gauge(f64::from(certificate.is_current)),
        );
    }
    for (ended, count) in Drained::ALL.into_iter().zip(drains.counts()) {
        families.add(names::DRAINED, &[ended.name()], Value::Counter(count));
    }
    families.add(
        names::CONNECTIONS,
        &["open"],
        Value::Gauge(connections.open() as f64),
    );
    families.add(
        names::CONNECTIONS,
        &["lingering"],
        Value::Gauge(lingering() as f64),
    );
    families.add(
        names::CONNECTIONS_LIMIT,
        &[],
        Value::Gauge(report.common.settings.listen.max_connections as f64),
    );
    families.add(
        names::CONNECTIONS_REFUSED,
        &[],
        Value::Counter(connections.refused()),
    );
    for why in Refusal::ALL {
        families.add(
            names::REQUESTS_REFUSED,
            &[why.name()],
            Value::Counter(refusals.count(why)),
        );
    }
    for why in Declined::ALL {
        families.add(
            names::LANE_DECLINED,
            &[why.name()],
            Value::Counter(connections.declines().count(why)),
        );
    }
    families.add(
        names::RELOAD_SUCCESSFUL,
        &[],
        Value::Gauge(f64::from(status.config.last_reload_successful)),
    );
    let read_at = clock::parse_rfc3339(&status.config.last_success_at)
        .map_or(0.0, |wall| wall.as_millis() as f64 / 1e3);
    families.add(names::RELOAD_TIMESTAMP, &[], Value::Gauge(read_at));
    families.add(names::CONFIG, &[&status.config.digest], Value::Gauge(1.0));
    families.add(
        names::DURABLE,
        &[],
        Value::Gauge(f64::from(status.latch_durable)),
    );
    families.add(
        names::LOG_DROPPED,
        &[],
        Value::Counter(access_log.dropped() + crate::telemetry::event_log::dropped()),
    );
    for (result, count) in traces.counts() {
        families.add(names::SPANS, &[result], Value::Counter(count));
    }
    families.add(names::BUILD, &[&status.version], Value::Gauge(1.0));

    let mut text = families.into_text();
    static PROCESS: OnceLock<ProcessCollector> = OnceLock::new();
    TextEncoder::new().encode(
        &PROCESS.get_or_init(ProcessCollector::for_self).collect(),
        &mut text,
    )?;
    Ok(text)
}

/// Returns the bounds of a rollout's duration histogram. They consist of the fixed bounds and each
/// latency limit of its guard, so that a query can repeat exactly what the guard judged.
fn bounds(guard: Option<&GuardSettings>) -> Vec<u64> {
    let limits = guard
        .into_iter()
        .flat_map(|guard| &guard.rules)
        .filter_map(|rule| match rule {
            Rule::Latency(_, limit_us) => Some(*limit_us),
            Rule::Hang(limit_us) => Some(*limit_us),
            Rule::ErrorsMax(_)
            | Rule::ErrorsVsLegacy(_)
            | Rule::LatencyVsLegacy(_)
            | Rule::ClientErrorsVsLegacy(_)
            | Rule::AbortsVsLegacy(_)
            | Rule::RedirectsVsLegacy(_)
            | Rule::Health(_)
            | Rule::Dead(_) => None,
        });
    BUCKETS_US
        .into_iter()
        .chain(limits)
        .collect::<BTreeSet<u64>>()
        .into_iter()
        .collect()
}

enum Value<'a> {
    Counter(u64),
    Gauge(f64),
    Histogram(&'a Totals, &'a [u64]),
    Summary(&'a Totals, Option<[f64; 3]>),
}

/// The lines of each family. Rollouts are added one after the other, but the lines of a family must
/// be contiguous.
struct Families(Vec<Vec<u8>>);

impl Default for Families {
    fn default() -> Self {
        Self(vec![Vec::new(); names::ALL.len()])
    }
}

impl Families {
    /// Adds the counters of one side.
    fn side(&mut self, rollout: &str, side: Side, totals: &Totals) {
        for (class, count) in CODE_CLASSES.iter().zip(totals.code_classes) {
            self.add(
                names::REQUESTS,
                &[rollout, side.name(), class],
                Value::Counter(count),
            );
        }
        for kind in FailureKind::ALL {
            self.add(
                names::FAILURES,
                &[rollout, side.name(), kind.name()],
                Value::Counter(totals.counts.failures[kind.index()]),
            );
        }
    }

    /// Adds the maintenance in force and its effects.
    fn maintenance(
        &mut self,
        rollout: &str,
        in_force: Option<&MaintenanceStatus>,
        totals: &SlotTotals,
    ) {
        let in_force = in_force.map_or(Maintenance::Off.name(), |maintenance| &maintenance.mode);
        for mode in Maintenance::ALL {
            self.add(
                names::MAINTENANCE,
                &[rollout, mode.name()],
                Value::Gauge(f64::from(mode.name() == in_force)),
            );
        }
        for result in Halted::ALL {
            self.add(
                names::MAINTENANCE_REQUESTS,
                &[rollout, result.name()],
                Value::Counter(totals.halted[result.index()]),
            );
        }
        self.add(
            names::HELD,
            &[rollout],
            Value::Gauge(totals.parked() as f64),
        );
    }

    fn add(&mut self, name: Name, labels: &[&str], value: Value<'_>) {
        debug_assert_eq!(name.labels.len(), labels.len(), "{}", name.name);
        let Some(at) = names::ALL.iter().position(|known| known.name == name.name) else {
            return debug_assert!(false, "{} is not listed", name.name);
        };
        let mut family = Family {
            text: &mut self.0[at],
            name,
            labels,
        };
        match value {
            Value::Counter(count) => family.count("", None, count),
            Value::Gauge(number) => family.number("", None, number),
            // The quantiles cover the last minute; count and sum cover the time since the start, as
            // in all other metrics.
            Value::Summary(totals, recent) => {
                for (quantile, value) in ["0.5", "0.95", "0.99"]
                    .into_iter()
                    .zip(recent.unwrap_or([f64::NAN; 3]))
                {
                    family.number("", Some(("quantile", quantile)), value);
                }
                family.sum_and_count(totals);
            }
            // A latency counts below a bound if its counter does not begin above it. The guard
            // reads a limit in the same way.
            Value::Histogram(totals, bounds) => {
                for (&bound, count) in bounds.iter().zip(cumulative(&totals.latencies, bounds)) {
                    family.count(
                        "_bucket",
                        Some(("le", &(bound as f64 / 1e6).to_string())),
                        count,
                    );
                }
                family.count("_bucket", Some(("le", "+Inf")), totals.latencies.total());
                family.sum_and_count(totals);
            }
        }
    }

    /// Returns all families as text:
    /// <https://prometheus.io/docs/instrumenting/exposition_formats/>.
    fn into_text(self) -> Vec<u8> {
        let mut text = Vec::with_capacity(self.0.iter().map(|lines| lines.len() + 512).sum());
        for (name, lines) in names::ALL
            .iter()
            .zip(self.0)
            .filter(|(_, lines)| !lines.is_empty())
        {
            let help = name.help.replace('\\', r"\\").replace('\n', r"\n");
            text.extend_from_slice(
                format!("# HELP {0} {help}\n# TYPE {0} {1}\n", name.name, name.kind).as_bytes(),
            );
            text.extend_from_slice(&lines);
        }
        text
    }
}

/// A metric of a family that is being written. It is written by hand and not with the library's
/// encoder, which needs a string for every name and every value. With a hundred rollouts that was
/// most of the time of a scrape.
struct Family<'a> {
    text: &'a mut Vec<u8>,
    name: Name,
    labels: &'a [&'a str],
}

impl Family<'_> {
    fn line(&mut self, suffix: &str, more: Option<(&str, &str)>, value: impl FnOnce(&mut Vec<u8>)) {
        self.text.extend_from_slice(self.name.name.as_bytes());
        self.text.extend_from_slice(suffix.as_bytes());
        let mut before = b'{';
        for (name, label) in self
            .name
            .labels
            .iter()
            .zip(self.labels)
            .map(|(name, label)| (*name, *label))
            .chain(more)
        {
            self.text.push(before);
            before = b',';
            self.text.extend_from_slice(name.as_bytes());
            self.text.extend_from_slice(b"=\"");
            match label.contains(['\\', '"', '\n']) {
                false => self.text.extend_from_slice(label.as_bytes()),
                true => self.text.extend_from_slice(
                    label
                        .replace('\\', r"\\")
                        .replace('"', "\\\"")
                        .replace('\n', r"\n")
                        .as_bytes(),
                ),
            }
            self.text.push(b'"');
        }
        if before == b',' {
            self.text.push(b'}');
        }
        self.text.push(b' ');
        value(self.text);
        self.text.push(b'\n');
    }

    fn count(&mut self, suffix: &str, more: Option<(&str, &str)>, count: u64) {
        self.line(suffix, more, |text| {
            text.extend_from_slice(itoa::Buffer::new().format(count).as_bytes());
        });
    }

    fn number(&mut self, suffix: &str, more: Option<(&str, &str)>, number: f64) {
        // Writing to memory does not fail.
        self.line(suffix, more, |text| drop(write!(text, "{number}")));
    }

    fn sum_and_count(&mut self, totals: &Totals) {
        self.number("_sum", None, totals.counts.latency_sum_us as f64 / 1e6);
        self.count("_count", None, totals.latencies.total());
    }
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
    fn a_bucket_counts_the_same_as_the_guard() {
        let mut latencies = Latencies::default();
        for us in (0..200_000u64).map(|n| n * 37 % 3_000_000) {
            latencies.record(us);
        }
        let bounds = [1_000, 50_000, 123_456, 800_000, 2_000_000];
        for (bound, count) in bounds.iter().zip(cumulative(&latencies, &bounds)) {
            assert_eq!(
                count,
                latencies.total() - latencies.above(*bound),
                "{bound} us"
            );
        }
    }

    #[test]
    fn special_characters_in_labels_are_escaped() {
        let mut families = Families::default();
        families.add(names::INFLIGHT, &["a\"b\\c\nd", "new"], Value::Gauge(0.25));
        families.add(names::RELOAD_SUCCESSFUL, &[], Value::Gauge(1.0));
        let text = String::from_utf8(families.into_text()).expect("UTF-8");
        assert!(
            text.contains("\ncutover_inflight{rollout=\"a\\\"b\\\\c\\nd\",backend=\"new\"} 0.25\n"),
            "{text}"
        );
        assert!(
            text.contains(
                "# TYPE cutover_config_last_reload_successful \
                 gauge\ncutover_config_last_reload_successful 1\n"
            ),
            "{text}"
        );
    }

    #[test]
    fn a_histogram_is_cumulative_and_ends_with_the_total() {
        let mut totals = Totals::default();
        [500, 2_000, 90_000_000]
            .into_iter()
            .for_each(|us| totals.latencies.record(us));
        let mut families = Families::default();
        families.add(
            names::DURATION,
            &["a", "new"],
            Value::Histogram(&totals, &[1_000, 800_000]),
        );
        let text = String::from_utf8(families.into_text()).expect("UTF-8");
        let lines: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("cutover_request_duration_seconds"))
            .collect();
        let labels = "rollout=\"a\",backend=\"new\"";
        assert_eq!(
            lines,
            [
                format!("_bucket{{{labels},le=\"0.001\"}} 1"),
                format!("_bucket{{{labels},le=\"0.8\"}} 2"),
                format!("_bucket{{{labels},le=\"+Inf\"}} 3"),
                format!("_sum{{{labels}}} 0"),
                format!("_count{{{labels}}} 3"),
            ]
        );
    }

    #[test]
    fn names_follow_the_rules_of_prometheus() {
        for name in names::ALL {
            assert!(
                name.name.starts_with("cutover_") && !name.help.is_empty(),
                "{}",
                name.name
            );
            assert_eq!(
                name.kind == "counter",
                name.name.ends_with("_total"),
                "{}",
                name.name
            );
            assert!(!name.name.contains("_ms"), "{}", name.name);
        }
    }
}
