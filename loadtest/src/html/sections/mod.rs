//! The charts and tables of one run on the page.

mod numbers;
mod over_time;

use crate::html::chart::{Chart, Mark, Scale, Series, Shape};
use crate::html::escape;
use crate::html::sections::numbers::{beside, numbers, split, steps, table};
use crate::html::sections::over_time::{axis_time, over_time};
use crate::report::readable;
use crate::scenario::outcome::RunOutcome;
use std::fmt::Write;

const MIB: f64 = 1024.0 * 1024.0;

fn seconds(value: f64) -> String {
    if value.fract().abs() < 1e-9 {
        format!("{value:.0} s")
    } else {
        format!("{value:.1} s")
    }
}

/// Writes the section of one run.
pub(super) fn run_section(out: &mut String, run: &RunOutcome) {
    if let Some(capacity) = &run.capacity {
        out.push_str("<h2>Capacity</h2><section>");
        let _ = write!(out, "<p>{}</p>", escape(&capacity.sentence));
        let mut by_rate: Vec<_> = capacity.steps.iter().collect();
        by_rate.sort_by(|one, other| one.rate.total_cmp(&other.rate));
        let points = |value: &dyn Fn(&crate::capacity::CapacityStep) -> Option<f64>| {
            by_rate
                .iter()
                .filter_map(|step| Some((step.rate, value(step)?)))
                .collect::<Vec<_>>()
        };
        let most = by_rate.last().map_or(1.0, |step| step.rate);
        out.push_str(
            &Chart {
                title: "Latency by rate",
                x: (0.0, most),
                x_ticks: Vec::new(),
                x_words: &|rate| format!("{rate:.0}/s"),
                scale: Scale::Log,
                y_words: &axis_time,
                series: vec![
                    Series {
                        name: "p99 from the intended start",
                        class: "p99",
                        shape: Shape::Line,
                        points: points(&|step| Some(step.evidence.p99_us as f64)),
                    },
                    Series {
                        name: "mean exchange",
                        class: "new",
                        shape: Shape::Line,
                        points: points(&|step| step.evidence.exchange_us),
                    },
                    Series {
                        name: "mean in the backend",
                        class: "legacy",
                        shape: Shape::Line,
                        points: points(&|step| step.evidence.service_us),
                    },
                    Series {
                        name: "generator late (p99)",
                        class: "other",
                        shape: Shape::Line,
                        points: points(&|step| Some(step.evidence.late_p99_us as f64)),
                    },
                ],
                marks: capacity
                    .knee
                    .map(|knee| Mark {
                        x: knee,
                        label: "knee".to_owned(),
                        words: format!("{knee:.0} per second"),
                    })
                    .into_iter()
                    .collect(),
            }
            .svg(),
        );
        let cores = |cores: Option<crate::probe::Cores>| {
            cores.map_or("?".to_owned(), |cores| {
                format!("{:.2} (+{:.2})", cores.busy, cores.starved)
            })
        };
        let time = |microseconds: Option<f64>| {
            microseconds.map_or("?".to_owned(), |time| readable(time as u64))
        };
        table(
            out,
            &[
                "#rate",
                "",
                "#p99",
                "#failed",
                "#wait",
                "#exchange",
                "#backend",
                "#late p99",
                "#proxy cores (waited for)",
                "#generator cores",
            ],
            capacity.steps.iter().map(|step| {
                let evidence = &step.evidence;
                vec![
                    format!("{:.0}/s", step.rate),
                    if step.passed { "passed" } else { "too much" }.to_owned(),
                    readable(evidence.p99_us),
                    evidence.failed.to_string(),
                    time(Some(evidence.wait_us)),
                    time(evidence.exchange_us),
                    time(evidence.service_us),
                    readable(evidence.late_p99_us),
                    cores(evidence.used.proxy),
                    cores(evidence.used.generator),
                ]
            }),
        );
        out.push_str("</section>\n<h2>The last rate that passed</h2>\n");
    }
    numbers(out, run);
    over_time(out, run);
    if !run.steps.is_empty() {
        steps(out, run);
    }
    split(out, run);
    beside(out, run);
    let plan = &run.report.plan;
    out.push_str("<h2>Plan</h2><section>");
    let mut rows = vec![
        (
            "request",
            format!("{} {}{}", plan.method, plan.target, plan.path),
        ),
        ("protocol", format!("{:?}", plan.protocol).to_lowercase()),
        (
            "rate",
            format!(
                "{} per second, {:?}, for {}",
                plan.rate,
                plan.arrivals,
                readable(plan.duration_ms.saturating_mul(1_000))
            ),
        ),
        ("users", format!("{} by {}", plan.users, plan.key)),
        ("connections", plan.connections.to_string()),
        ("body", format!("{} bytes", plan.body_bytes)),
        ("timeout", readable(plan.timeout_ms.saturating_mul(1_000))),
        ("seed", plan.seed.to_string()),
    ];
    if let (Some(salt), Some(percent)) = (&plan.salt, plan.percent) {
        rows.push(("hash", format!("salt {salt:?}, {percent} % at the start")));
    }
    table(
        out,
        &["", ""],
        rows.into_iter()
            .map(|(name, value)| vec![name.to_owned(), value]),
    );
    out.push_str("</section>\n");
}
