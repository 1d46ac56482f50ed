//! One run on the page: its charts and tables.

use super::chart::{Chart, Mark, Scale, Series, Shape};
use super::escape;
use crate::report::{Quantiles, readable};
use crate::scenario::outcome::RunOutcome;
use std::fmt::Write;

const MIB: f64 = 1024.0 * 1024.0;

/// A table: its head, with a number's column marked by a leading `#`, and its rows.
fn table(out: &mut String, head: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let class = |at: usize| {
        if head[at].starts_with('#') {
            " class=\"number\""
        } else {
            ""
        }
    };
    out.push_str("<table>");
    if head.iter().any(|name| !name.is_empty()) {
        out.push_str("<tr>");
        for (at, name) in head.iter().enumerate() {
            let _ = write!(
                out,
                "<th{}>{}</th>",
                class(at),
                escape(name.trim_start_matches('#'))
            );
        }
        out.push_str("</tr>");
    }
    for row in rows {
        out.push_str("<tr>");
        for (at, cell) in row.iter().enumerate() {
            let _ = write!(out, "<td{}>{}</td>", class(at), escape(cell));
        }
        out.push_str("</tr>");
    }
    out.push_str("</table>");
}

fn seconds(value: f64) -> String {
    if value.fract().abs() < 1e-9 {
        format!("{value:.0} s")
    } else {
        format!("{value:.1} s")
    }
}

/// A time in microseconds at an axis.
fn axis_time(microseconds: f64) -> String {
    let (value, unit) = match microseconds {
        value if value < 1e3 => (value, "µs"),
        value if value < 1e6 => (value / 1e3, "ms"),
        value => (value / 1e6, "s"),
    };
    format!("{} {unit}", (value * 100.0).round() / 100.0)
}

fn quantile_cells(quantiles: &Quantiles) -> Vec<String> {
    [
        quantiles.p50_us,
        quantiles.p90_us,
        quantiles.p99_us,
        quantiles.p999_us,
        quantiles.max_us,
    ]
    .into_iter()
    .map(readable)
    .collect()
}

/// Everything about one run.
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

fn numbers(out: &mut String, run: &RunOutcome) {
    let report = &run.report;
    out.push_str("<h2>Numbers</h2><section>");
    table(
        out,
        &["", "#p50", "#p90", "#p99", "#p99.9", "#max"],
        [
            ("latency, from the intended start", &report.latency),
            ("the generator's own lateness", &report.release_lateness),
            ("with the wait for a connection", &report.send_lateness),
        ]
        .into_iter()
        .chain(
            run.parts
                .iter()
                .map(|part| (part.name.as_str(), &part.latency)),
        )
        .map(|(name, quantiles)| {
            std::iter::once(name.to_owned())
                .chain(quantile_cells(quantiles))
                .collect()
        }),
    );
    let mut rows = vec![
        vec![
            "requests".to_owned(),
            format!(
                "{} finished, {:.1} sent per second",
                report.requests.finished, report.requests.sent_per_second
            ),
        ],
        vec![
            "failed".to_owned(),
            format!(
                "{} ({}), to {} users",
                report.failures.requests,
                report.failures.kinds(),
                report.failures.users_hurt
            )
            .replace(" ()", ""),
        ],
        vec![
            "answers".to_owned(),
            format!(
                "legacy {}, new {}, without a side {}",
                report.sides.legacy,
                report.sides.new,
                report.sides.unnamed + report.sides.unnamed_errors
            ),
        ],
    ];
    if let Some(since) = report
        .blast_radius
        .as_ref()
        .and_then(|blast| blast.since_fault.as_ref())
    {
        rows.push(vec![
            "blast radius".to_owned(),
            format!(
                "{} bad answers to {} users; {:.1} ms from the fault to the last request on new \
                 ({} requests after it)",
                since.bad_answers, since.users_hurt, since.time_to_zero_ms, since.requests_after
            ),
        ]);
    }
    for part in &run.parts {
        rows.push(vec![
            format!("part {}", part.name),
            format!(
                "{}: {} requests, {} failed, 99 % within {} in the median second",
                part.windows_ms
                    .iter()
                    .map(|(from, to)| format!("{} to {}", seconds(from / 1e3), seconds(to / 1e3)))
                    .collect::<Vec<_>>()
                    .join(", "),
                part.requests,
                part.failed,
                readable(part.typical_p99_us)
            ),
        ]);
    }
    table(out, &["", ""], rows.into_iter());
    out.push_str("</section>\n");
}

fn over_time(out: &mut String, run: &RunOutcome) {
    let timeline = &run.timeline;
    let width = timeline.width_ms as f64 / 1e3;
    let end = timeline.steps.len() as f64 * width;
    // In the middle of its step.
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
    // The horizontal axis of percentiles stretches towards 100 %, as the plotter of HdrHistogram
    // has it.
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

fn steps(out: &mut String, run: &RunOutcome) {
    out.push_str("<h2>Steps</h2><section>");
    table(
        out,
        &["#", "#began", "#took", "what", "users may move", ""],
        run.steps.iter().zip(1..).map(|(step, number)| {
            vec![
                number.to_string(),
                format!("{:.2} s", step.begin_ms / 1e3),
                format!("{:.0} ms", step.end_ms - step.begin_ms),
                step.name.clone(),
                step.moves
                    .map_or(String::new(), |direction| match direction {
                        crate::report::history::MoveDirection::ToNew => "to new".to_owned(),
                        crate::report::history::MoveDirection::ToLegacy => "to legacy".to_owned(),
                        crate::report::history::MoveDirection::Both => "both ways".to_owned(),
                    }),
                step.failed.clone().unwrap_or_default(),
            ]
        }),
    );
    out.push_str("</section>\n");
}

fn split(out: &mut String, run: &RunOutcome) {
    let report = &run.report;
    out.push_str("<h2>The split</h2><section>");
    let percent = |share: f64| format!("{:.3} %", share * 100.0);
    table(
        out,
        &[
            "#from",
            "#to",
            "#answers",
            "#on new",
            "#99.9 % interval",
            "#by the hash",
            "",
        ],
        report.segments.iter().map(|segment| {
            let share = &segment.requests;
            vec![
                seconds((segment.from_ms / 100.0).round() / 10.0),
                seconds((segment.to_ms / 100.0).round() / 10.0),
                share.total.to_string(),
                share.measured.map_or(String::new(), percent),
                share.interval.map_or(String::new(), |(low, high)| {
                    format!("{} to {}", percent(low), percent(high))
                }),
                share.expected.map_or(String::new(), percent),
                share
                    .expected_in_interval
                    .map_or("", |inside| if inside { "inside" } else { "OUTSIDE" })
                    .to_owned(),
            ]
        }),
    );
    let found = &report.stickiness;
    let _ = write!(
        out,
        "<p>{} users were seen, {} of them again. {} switches: {} to new, {} to legacy, {} \
         between requests in flight together; {} of {} users are explained by no step.</p>",
        found.users_seen,
        found.users_seen_again,
        found.switches,
        found.legacy_to_new,
        found.new_to_legacy,
        found.overlapping,
        found.unexplained,
        found.users_unexplained
    );
    if !found.examples.is_empty() {
        table(
            out,
            &["user", "way", "#at", ""],
            found.examples.iter().map(|switch| {
                vec![
                    switch.user.clone(),
                    switch.direction.to_string(),
                    format!("{:.1} ms", switch.at_ms),
                    if switch.overlapping {
                        "in flight together".to_owned()
                    } else {
                        String::new()
                    },
                ]
            }),
        );
    }
    if let Some(hash) = &report.hash {
        let _ = write!(
            out,
            "<p>{} of {} answers came from the wrong side by the hash, to {} users.</p>",
            hash.wrong_answers, hash.checked, hash.wrong_users
        );
        if !hash.examples.is_empty() {
            table(
                out,
                &["user", "#bucket", "found on", "#at"],
                hash.examples.iter().map(|wrong| {
                    vec![
                        wrong.user.clone(),
                        wrong.bucket.to_string(),
                        wrong.found.to_string(),
                        format!("{:.1} ms", wrong.at_ms),
                    ]
                }),
            );
        }
    }
    out.push_str("</section>\n");
}

fn beside(out: &mut String, run: &RunOutcome) {
    if run.websockets.is_none() && run.slow.is_empty() && run.backends.is_empty() {
        return;
    }
    out.push_str("<h2>Beside the load</h2><section>");
    if let Some(websockets) = &run.websockets {
        let _ = write!(
            out,
            "<p>WebSockets: {}</p>",
            escape(&websockets.to_string())
        );
    }
    if !run.slow.is_empty() {
        out.push_str("<h3>Slow clients</h3>");
        table(
            out,
            &[
                "kind",
                "#clients",
                "#opened",
                "#refused",
                "#cut off",
                "#after, p50",
                "#max",
            ],
            run.slow.iter().map(|one| {
                vec![
                    one.kind.to_owned(),
                    one.clients.to_string(),
                    one.opened.to_string(),
                    one.refused.to_string(),
                    one.cut_off.to_string(),
                    readable(one.lasted.p50_us),
                    readable(one.lasted.max_us),
                ]
            }),
        );
    }
    if !run.backends.is_empty() {
        out.push_str("<h3>Sample backends</h3>");
        table(
            out,
            &[
                "backend",
                "#requests",
                "#mean time",
                "#most at once",
                "#hung",
                "#reset",
                "#turned away",
                "#WebSockets",
            ],
            run.backends.iter().map(|(name, stats)| {
                vec![
                    name.clone(),
                    stats.requests.to_string(),
                    readable(stats.busy_us / stats.requests.max(1)),
                    stats.most_in_flight.to_string(),
                    stats.hung.to_string(),
                    stats.reset.to_string(),
                    stats.turned_away.to_string(),
                    stats.websockets.to_string(),
                ]
            }),
        );
    }
    out.push_str("</section>\n");
}
