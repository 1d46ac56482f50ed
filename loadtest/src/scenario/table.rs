//! The outcome of a scenario as text for readers at a terminal.

use crate::report::readable;
use crate::scenario::outcome::Outcome;
use crate::websockets::WebSocketReport;
use std::fmt;

/// The most steps that are listed. The JSON and HTML reports have all of them.
const MOST_STEPS: usize = 12;

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{}: {}", self.scenario, self.title)?;
        if let Some(run) = self.runs.last().filter(|_| self.runs.len() == 1) {
            if let Some(capacity) = &run.capacity {
                writeln!(formatter)?;
                for step in &capacity.steps {
                    let evidence = &step.evidence;
                    let cores = |cores: Option<crate::probe::Cores>| {
                        cores.map_or("?".to_owned(), |cores| format!("{:.2}", cores.busy))
                    };
                    writeln!(
                        formatter,
                        "{:>9.0}/s   {:<9}99 % within {}, {} failed; proxy {} cores, generator {} \
                         cores, {} late",
                        step.rate,
                        if step.passed { "passed" } else { "too much" },
                        readable(evidence.p99_us),
                        evidence.failed,
                        cores(evidence.used.proxy),
                        cores(evidence.used.generator),
                        readable(evidence.late_p99_us)
                    )?;
                }
                writeln!(formatter)?;
            } else {
                write!(formatter, "\n{}", run.report)?;
            }
            for step in run.steps.iter().take(MOST_STEPS) {
                writeln!(
                    formatter,
                    "{:<15}{:.2} s, {:.0} ms: {}{}",
                    "step",
                    step.begin_ms / 1e3,
                    step.end_ms - step.begin_ms,
                    step.name,
                    step.failed
                        .as_ref()
                        .map_or(String::new(), |why| format!(" FAILED: {why}"))
                )?;
            }
            if run.steps.len() > MOST_STEPS {
                writeln!(
                    formatter,
                    "{:<15}and {} more",
                    "",
                    run.steps.len() - MOST_STEPS
                )?;
            }
            for part in &run.parts {
                writeln!(
                    formatter,
                    "{:<15}{}: p50 {}, p99 {} ({} in the median second), {} requests, {} failed",
                    "part",
                    part.name,
                    readable(part.latency.p50_us),
                    readable(part.latency.p99_us),
                    readable(part.typical_p99_us),
                    part.requests,
                    part.failed
                )?;
            }
            if let Some(websockets) = &run.websockets {
                writeln!(formatter, "{:<15}{websockets}", "websockets")?;
            }
            for slow in &run.slow {
                writeln!(
                    formatter,
                    "{:<15}{}: {} clients, {} connections, {} refused, {} cut off after {} \
                     (median), {} (max)",
                    "slow",
                    slow.kind,
                    slow.clients,
                    slow.opened,
                    slow.refused,
                    slow.cut_off,
                    readable(slow.lasted.p50_us),
                    readable(slow.lasted.max_us)
                )?;
            }
            writeln!(formatter)?;
        }
        if !self.over_runs.is_empty() {
            writeln!(
                formatter,
                "\n{:<22}{:>12}{:>12}{:>12}",
                format!("over {} runs", self.runs.len()),
                "least",
                "median",
                "most"
            )?;
            for one in &self.over_runs {
                let digits = usize::from(!one.unit.is_empty());
                let value = |value: f64| {
                    format!("{value:.digits$} {}", one.unit)
                        .trim_end()
                        .to_owned()
                };
                writeln!(
                    formatter,
                    "{:<22}{:>12}{:>12}{:>12}",
                    one.name,
                    value(one.least),
                    value(one.median),
                    value(one.most)
                )?;
            }
            writeln!(formatter)?;
        }
        for verdict in &self.verdicts {
            let sign = match verdict.holds {
                _ if verdict.warns => "DOUBT",
                Some(true) => "ok",
                Some(false) => "FAIL",
                None => "",
            };
            writeln!(
                formatter,
                "{sign:<6}{:<15}{}",
                verdict.name, verdict.sentence
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for WebSocketReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = |kinds: &std::collections::BTreeMap<String, u64>| {
            kinds
                .iter()
                .map(|(kind, count)| format!("{kind}: {count}"))
                .collect::<Vec<_>>()
                .join(", ")
        };
        write!(
            formatter,
            "{} opened, {} refused",
            self.opened,
            self.refused.values().sum::<u64>()
        )?;
        if !self.refused.is_empty() {
            write!(formatter, " ({})", kinds(&self.refused))?;
        }
        write!(formatter, ", {} closed early", self.lost())?;
        if !self.closed_early.is_empty() {
            write!(formatter, " (code {})", kinds(&self.closed_early))?;
        }
        write!(
            formatter,
            "; {} of {} words came back, 99 % within {}",
            self.echoed,
            self.sent,
            readable(self.round_trip.p99_us)
        )
    }
}
