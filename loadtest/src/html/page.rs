//! The page: head, verdicts, numbers over runs, each run, and how to repeat it.

use crate::html::chart::{Chart, Scale, Series, Shape};
use crate::html::escape;
use crate::html::sections::run_section;
use crate::scenario::Outcome;
use crate::scenario::outcome::{OverRuns, RunOutcome};
use std::fmt::Write;

const STYLE: &str = "
:root { --page: #f6f7f9; --card: #fff; --ink: #1c2330; --faint: #667085; --edge: #dde1e8; --good: #18794e; --bad: #c4231c; --legacy: #2f6fde; --new: #d9730d; --p50: #5b8c2a; --p99: #8b3fc7; --other: #667085; }
@media (prefers-color-scheme: dark) { :root { --page: #111418; --card: #1a1f26; --ink: #e3e7ee; --faint: #97a1b0; --edge: #303843; --good: #4cc38a; --bad: #ff7b72; --legacy: #6ea8fe; --new: #ffa657; --p50: #a5d66f; --p99: #d2a8ff; --other: #97a1b0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px 16px 64px; max-width: 960px; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 24px; line-height: 1.25; margin: 0 0 4px; } h2 { font-size: 18px; margin: 28px 0 8px; } h3 { font-size: 15px; margin: 18px 0 6px; }
p { margin: 4px 0 10px; } .faint { color: var(--faint); }
section { background: var(--card); border: 1px solid var(--edge); border-radius: 8px; padding: 14px 18px; margin: 14px 0; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; } th { text-align: left; font-weight: 600; color: var(--faint); }
td, th { padding: 4px 12px 4px 0; border-bottom: 1px solid var(--edge); vertical-align: top; } tr:last-child td { border-bottom: 0; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.holds { color: var(--good); font-weight: 700; } .fails { color: var(--bad); font-weight: 700; } .told { color: var(--faint); } td.name { white-space: nowrap; font-weight: 600; }
.sum { border-left: 6px solid var(--good); } .sum.bad { border-left-color: var(--bad); }
figure { margin: 14px 0 4px; } figcaption { font-size: 13px; margin-bottom: 2px; } .key { margin-left: 12px; white-space: nowrap; } .key::before { content: ''; display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 5px; background: var(--other); }
svg { width: 100%; height: auto; display: block; } .grid { stroke: var(--edge); stroke-width: 1; } .tick { fill: var(--faint); font-size: 11px; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke: var(--other); } .bar, .dot { fill: var(--other); } .over { fill: transparent; } .over:hover { fill: var(--faint); fill-opacity: 0.15; }
.mark line { stroke: var(--faint); stroke-dasharray: 3 3; } .mark text { fill: var(--faint); font-size: 10px; }
.line.legacy { stroke: var(--legacy); } .key.legacy::before { background: var(--legacy); } .bar.legacy, .dot.legacy { fill: var(--legacy); }
.line.new { stroke: var(--new); } .key.new::before { background: var(--new); } .bar.new, .dot.new { fill: var(--new); }
.line.failed { stroke: var(--bad); } .key.failed::before { background: var(--bad); } .bar.failed, .dot.failed { fill: var(--bad); }
.line.p50 { stroke: var(--p50); } .key.p50::before { background: var(--p50); } .bar.p50, .dot.p50 { fill: var(--p50); }
.line.p99 { stroke: var(--p99); } .key.p99::before { background: var(--p99); } .bar.p99, .dot.p99 { fill: var(--p99); }
details section { border: 0; padding: 0; margin: 6px 0 14px; }
summary { cursor: pointer; font-weight: 600; } pre { overflow-x: auto; font-size: 12.5px; line-height: 1.4; background: var(--page); padding: 10px; border-radius: 6px; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 0 28px; }
@media print { section { break-inside: avoid; } }
";

/// Returns the whole page.
pub(super) fn page(outcome: &Outcome) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light dark\">\n<title>{}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{}</h1>\n",
        escape(&outcome.title),
        escape(&outcome.title)
    );
    let runs = outcome.runs.len();
    let _ = writeln!(
        out,
        "<p class=\"faint\">{} · {runs} {} · cutover-loadtest {}</p>",
        escape(&outcome.scenario),
        if runs == 1 { "run" } else { "runs" },
        escape(outcome.version)
    );
    if !outcome.about.is_empty() {
        let _ = writeln!(out, "<p>{}</p>", escape(outcome.about.trim()));
    }
    verdicts(&mut out, outcome);
    if !outcome.over_runs.is_empty() {
        over_runs(&mut out, &outcome.over_runs);
    }
    let shown = worst(&outcome.runs);
    for (number, run) in outcome.runs.iter().enumerate() {
        if runs == 1 {
            run_section(&mut out, run);
        } else {
            let open = if number == shown { " open" } else { "" };
            let words = if number == shown {
                " (the worst one)"
            } else {
                ""
            };
            let _ = write!(
                out,
                "<section><details{open}><summary>Run {} of {runs}, seed {}{words}</summary>",
                number + 1,
                run.seed
            );
            run_section(&mut out, run);
            out.push_str("</details></section>\n");
        }
    }
    if !outcome.text.is_empty() {
        let _ = writeln!(
            out,
            "<h2>To do it again</h2><section><details><summary>The scenario as it was played</summary><pre>{}</pre></details></section>",
            escape(&outcome.text)
        );
    }
    out.push_str("</body>\n</html>\n");
    out
}

fn verdicts(out: &mut String, outcome: &Outcome) {
    let failed = outcome
        .verdicts
        .iter()
        .filter(|verdict| verdict.holds == Some(false))
        .count();
    let _ = write!(
        out,
        "<section class=\"sum{}\"><table>",
        if failed > 0 { " bad" } else { "" }
    );
    for verdict in &outcome.verdicts {
        let (class, sign) = match verdict.holds {
            _ if verdict.warns => ("fails", "! doubt"),
            Some(true) => ("holds", "✓ holds"),
            Some(false) => ("fails", "✗ fails"),
            None => ("told", "told"),
        };
        let _ = write!(
            out,
            "<tr><td class=\"{class} name\">{sign}</td><td class=\"name\">{}</td><td>{}</td></tr>",
            escape(verdict.name),
            escape(&verdict.sentence)
        );
    }
    out.push_str("</table></section>\n");
}

fn over_runs(out: &mut String, numbers: &[OverRuns]) {
    out.push_str("<h2>Over all runs</h2><section><table><tr><th></th><th class=\"number\">least</th><th class=\"number\">median</th><th class=\"number\">most</th></tr>");
    for one in numbers {
        let unit = if one.unit.is_empty() {
            String::new()
        } else {
            format!(" {}", one.unit)
        };
        let digits = usize::from(!one.unit.is_empty());
        let value = |value: f64| format!("{value:.digits$}{unit}");
        let _ = write!(
            out,
            "<tr><td class=\"name\">{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td></tr>",
            escape(one.name),
            value(one.least),
            escape(&value(one.median)),
            value(one.most)
        );
    }
    out.push_str("</table>");
    for (name, class) in [("bad answers", "failed"), ("time to zero", "new")] {
        if let Some(one) = numbers.iter().find(|one| one.name == name) {
            let unit = one.unit;
            out.push_str(
                &Chart {
                    title: one.name,
                    x: (0.5, one.values.len() as f64 + 0.5),
                    x_ticks: (1..=one.values.len())
                        .map(|run| (run as f64, run.to_string()))
                        .collect(),
                    x_words: &|run| format!("run {run:.0}"),
                    scale: Scale::Linear,
                    y_words: &|value| {
                        if unit.is_empty() {
                            format!("{value:.0}")
                        } else {
                            format!("{value:.1} {unit}")
                        }
                    },
                    series: vec![Series {
                        name: "by run",
                        class,
                        shape: Shape::Bars,
                        points: one
                            .values
                            .iter()
                            .zip(1..)
                            .map(|(value, run)| (f64::from(run), *value))
                            .collect(),
                    }],
                    marks: Vec::new(),
                }
                .svg(),
            );
        }
    }
    out.push_str("</section>\n");
}

/// Returns the index of the run that is shown first: the one with the most failures and, among
/// equals, the slowest.
fn worst(runs: &[RunOutcome]) -> usize {
    runs.iter()
        .enumerate()
        .max_by_key(|(number, run)| {
            (
                run.report.failures.requests,
                run.report.latency.p99_us,
                std::cmp::Reverse(*number),
            )
        })
        .map_or(0, |(number, _)| number)
}
