//! The report as one self-contained HTML file: no script, no font, no external address.
//!
//! The page starts with the expectations and whether they hold. The numbers follow, then the charts
//! they came from, then everything needed to repeat the run. Text from outside (names, paths,
//! messages) is escaped everywhere.

mod chart;
mod page;
mod sections;

use crate::driver::{Measurement, Record, RunPlan};
use crate::report::timeline::Timeline;
use crate::report::{Report, Times};
use crate::scenario::Outcome;
use crate::scenario::expect::Verdict;
use crate::scenario::outcome::RunOutcome;
use crate::websockets::WebSocketReport;
use std::collections::BTreeMap;

/// Returns the report of a scenario.
pub fn of_scenario(outcome: &Outcome) -> String {
    page::page(outcome)
}

/// Returns the report of a single run.
pub fn of_run(
    plan: &RunPlan,
    measurement: &Measurement,
    report: Report,
    websockets: Option<WebSocketReport>,
) -> String {
    let verdicts = if report.violations.is_empty() {
        vec![Verdict {
            name: "run",
            holds: Some(true),
            sentence: "no user on a wrong side, no request failed".to_owned(),
            warns: false,
        }]
    } else {
        report
            .violations
            .iter()
            .map(|violation| Verdict {
                name: "violation",
                holds: Some(false),
                sentence: violation.clone(),
                warns: false,
            })
            .collect()
    };
    let run = RunOutcome {
        seed: plan.seed,
        timeline: Timeline::of(&measurement.records, plan.duration),
        curve: Times::of(measurement.records.iter().filter_map(Record::latency)).curve(),
        report,
        parts: Vec::new(),
        steps: Vec::new(),
        samples: Vec::new(),
        backends: BTreeMap::new(),
        websockets,
        slow: Vec::new(),
        capacity: None,
        hgrm: String::new(),
    };
    page::page(&Outcome {
        scenario: "run".to_owned(),
        title: format!("Load on {}", plan.target),
        about: String::new(),
        version: env!("CARGO_PKG_VERSION"),
        verdicts,
        over_runs: Vec::new(),
        runs: vec![run],
        text: String::new(),
    })
}

/// Escapes text for HTML, including attributes.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::{escape, of_run};
    use crate::driver::{Measurement, Outcome, Record, RunPlan, Target};
    use crate::report::{History, Report};
    use crate::users::Side;
    use http::StatusCode;
    use http::uri::PathAndQuery;

    #[test]
    fn escaped_text_cannot_open_a_tag_or_end_an_attribute() {
        assert_eq!(
            escape("<a href=\"x\" b='y'>&"),
            "&lt;a href=&quot;x&quot; b=&#39;y&#39;&gt;&amp;"
        );
    }

    #[tokio::test]
    async fn a_page_is_complete_escaped_and_self_contained() {
        let target = Target::resolve("http://127.0.0.1:1", false)
            .await
            .expect("a target");
        let plan = RunPlan {
            path: PathAndQuery::from_static("/?a=1&b='x'"),
            ..RunPlan::to(target)
        };
        let record = |at: u64, side| Record {
            user: 1,
            outcome: Outcome::Answered {
                status: StatusCode::OK,
                side: Some(side),
            },
            intended: at * 1_000_000,
            released: at * 1_000_000,
            sent: Some(at * 1_000_000),
            finished: (at + 2) * 1_000_000,
        };
        let mut measurement = Measurement {
            records: vec![record(0, Side::Legacy), record(500, Side::New)],
            ..Measurement::default()
        };
        measurement.sort();
        let report = Report::of(&plan, &measurement, &History::default());
        let page = of_run(&plan, &measurement, report, None);
        assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"));
        assert!(page.contains("/?a=1&amp;b=&#39;x&#39;"), "{page}");
        assert!(page.contains("changed sides where no step moved them"));
        for foreign in ["<script", "src=", "href=", "url(", "@import"] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        for tag in [
            "table", "figure", "svg", "details", "section", "tr", "td", "th", "g", "p",
        ] {
            let opened = page.matches(&format!("<{tag}>")).count()
                + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }
}
