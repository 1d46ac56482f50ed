//! Tables of numbers.

use crate::html::escape;
use crate::html::sections::seconds;
use crate::report::{Quantiles, readable};
use crate::scenario::outcome::RunOutcome;
use std::fmt::Write;

/// Writes a table: its head, in which a leading `#` marks a column of numbers, and its rows.
pub(super) fn table(out: &mut String, head: &[&str], rows: impl Iterator<Item = Vec<String>>) {
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

pub(super) fn quantile_cells(quantiles: &Quantiles) -> Vec<String> {
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

pub(super) fn numbers(out: &mut String, run: &RunOutcome) {
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

pub(super) fn steps(out: &mut String, run: &RunOutcome) {
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

pub(super) fn split(out: &mut String, run: &RunOutcome) {
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

pub(super) fn beside(out: &mut String, run: &RunOutcome) {
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
