//! Charts over time.

use crate::html::chart::{Chart, Mark, Scale, Series, Shape};
use crate::html::sections::{MIB, seconds};
use crate::scenario::outcome::RunOutcome;

pub(super) fn over_time(out: &mut String, run: &RunOutcome) {
    let timeline = &run.timeline;
    let width = timeline.width_ms as f64 / 1e3;
    let end = timeline.steps.len() as f64 * width;
    // Each value is drawn in the middle of its step.
    let points = |value: &dyn Fn(&crate::report::timeline::Step) -> f64| {
        timeline
            .steps
            .iter()
            .map(|step| (step.at_ms as f64 / 1e3 + width / 2.0, value(step)))
            .collect::<Vec<_>>()
    };
    let marks: Vec<Mark> = run
        .steps
        .iter()
        .zip(1..)
        .map(|(step, number)| Mark {
            x: step.begin_ms / 1e3,
            label: if run.steps.len() > 20 {
                String::new()
            } else {
                format!("{number}")
            },
            words: format!("{number}: {}", step.name),
        })
        .collect();
    let chart = |title, scale, y_words: &dyn Fn(f64) -> String, series| {
        Chart {
            title,
            x: (0.0, end),
            x_ticks: Vec::new(),
            x_words: &seconds,
            scale,
            y_words,
            series,
            marks: marks.clone(),
        }
        .svg()
    };
    let line = |name, class, points| Series {
        name,
        class,
        shape: Shape::Line,
        points,
    };
    out.push_str("<h2>Over time</h2><section>");
    out.push_str(&chart(
        "Requests per second",
        Scale::Linear,
        &|value| format!("{value:.0}"),
        [
            line(
                "legacy",
                "legacy",
                points(&|step| step.legacy as f64 / width),
            ),
            line("new", "new", points(&|step| step.new as f64 / width)),
            line(
                "without a side",
                "other",
                points(&|step| step.unnamed as f64 / width),
            ),
        ]
        .into_iter()
        .filter(|series| series.points.iter().any(|(_, rate)| *rate > 0.0))
        .collect(),
    ));
    out.push_str(&chart(
        "Latency from the intended start",
        Scale::Log,
        &axis_time,
        vec![
            line("p50", "p50", points(&|step| step.latency.p50_us as f64)),
            line("p99", "p99", points(&|step| step.latency.p99_us as f64)),
            line("max", "other", points(&|step| step.latency.max_us as f64)),
        ],
    ));
    if run.report.failures.requests > 0 {
        let failed = Series {
            name: "failed",
            class: "failed",
            shape: Shape::Bars,
            points: points(&|step| step.failed as f64),
        };
        out.push_str(&chart(
            "Failed requests",
            Scale::Linear,
            &|value| format!("{value:.0}"),
            vec![failed],
        ));
    }
    let used = |read: &dyn Fn(&crate::probe::Sample) -> Option<f64>| {
        run.samples
            .iter()
            .filter_map(|sample| Some((sample.at_ms / 1e3, read(sample)?)))
            .collect::<Vec<_>>()
    };
    if run.capacity.is_none() && !run.samples.is_empty() {
        out.push_str(&chart(
            "Processors used",
            Scale::Linear,
            &|value| format!("{value:.2}"),
            vec![
                line(
                    "proxy",
                    "p99",
                    used(&|sample| Some(sample.used.proxy?.busy)),
                ),
                line(
                    "proxy, waited for",
                    "other",
                    used(&|sample| Some(sample.used.proxy?.starved)),
                ),
                line(
                    "generator",
                    "p50",
                    used(&|sample| Some(sample.used.generator?.busy)),
                ),
                line(
                    "sample backends",
                    "legacy",
                    used(&|sample| Some(sample.used.backends?.busy)),
                ),
            ],
        ));
        let memory = used(&|sample| Some(sample.proxy?.memory_bytes as f64 / MIB));
        if !memory.is_empty() {
            out.push_str(&chart(
                "Memory of the proxy",
                Scale::Linear,
                &|value| format!("{value:.0} MiB"),
                vec![line("resident", "p99", memory)],
            ));
        }
    }
    // The horizontal axis of percentiles stretches towards 100 %, as in the HdrHistogram plotter.
    let curve: Vec<(f64, f64)> = run
        .curve
        .iter()
        .filter(|(quantile, _)| *quantile < 1.0)
        .map(|(quantile, time)| ((1.0 / (1.0 - quantile)).log10(), *time as f64))
        .collect();
    let last = curve.last().map_or(1.0, |(x, _)| x.max(1.0));
    let words = |x: f64| {
        let quantile = 100.0 * (1.0 - 10_f64.powf(-x));
        let text = format!("{quantile:.4}");
        format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
    };
    let ticks = (0..=6)
        .map(f64::from)
        .filter(|x| *x <= last)
        .map(|x| (x, words(x)))
        .collect();
    out.push_str(
        &Chart {
            title: "Latency by percentile",
            x: (0.0, last),
            x_ticks: ticks,
            x_words: &words,
            scale: Scale::Log,
            y_words: &axis_time,
            series: vec![line("from the intended start", "p99", curve)],
            marks: Vec::new(),
        }
        .svg(),
    );
    out.push_str("</section>\n");
}

/// Formats a time in microseconds for an axis.
pub(super) fn axis_time(microseconds: f64) -> String {
    let (value, unit) = match microseconds {
        value if value < 1e3 => (value, "µs"),
        value if value < 1e6 => (value / 1e3, "ms"),
        value => (value / 1e6, "s"),
    };
    format!("{} {unit}", (value * 100.0).round() / 100.0)
}
