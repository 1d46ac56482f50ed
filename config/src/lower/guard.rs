//! `[rollout.guard]`: when new counts as worse.

use std::ops::Range;
use std::time::Duration;

use cutover_core::guard::LatencyPoint;
use cutover_core::{GuardSettings, Mode, Percent, Rate, Ratio, Rule};

use super::{Fault, Lower};
use crate::duration::write_duration;
use crate::schema::{At, DurationText, ErrorsTable, GuardTable, LatencyTable, ModeText, Number, RateText, VsLegacyTable};
use crate::shape::RATE_SHAPE;

/// A shorter window holds too few requests to judge by, and a longer one would judge the hour before the change.
const WINDOW: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));

/// A latency limit above this is not one.
const MAX_LATENCY: Duration = Duration::from_secs(3600);

impl Lower<'_> {
    /// The guard of a rollout whose block begins at `header`.
    pub(super) fn guard(&mut self, table: Option<At<GuardTable>>, header: &Range<usize>, percent: Option<Percent>) -> GuardSettings {
        let defaults = GuardSettings::default();
        let Some(At { value: table, span }) = table else { return defaults };
        let GuardTable { mode, dry_run, errors, latency, client_errors, aborts, hang, health, dead_after, min_users, false_alarm_every, shared_cause, window, min_requests } =
            table;
        for (span, key) in [
            (hang.map(|at| at.span), "guard.hang"),
            (health.map(|at| at.span), "guard.health"),
            (dead_after.map(|at| at.span), "guard.dead_after"),
            (min_users.map(|at| at.span), "guard.min_users"),
            (false_alarm_every.map(|at| at.span), "guard.false_alarm_every"),
            (shared_cause.map(|at| at.span), "guard.shared_cause"),
        ] {
            if let Some(span) = span {
                self.refuse(span, key, "remove it; what can be set are mode, dry_run, window, min_requests and the limits of errors, latency, client_errors, aborts");
            }
        }
        let names_a_rule = errors.is_some() || latency.is_some() || client_errors.is_some() || aborts.is_some();
        let mut rules = self.rules(errors.unwrap_or_default(), latency.unwrap_or_default(), client_errors.unwrap_or_default(), aborts.unwrap_or_default());
        if !names_a_rule && mode.is_none() {
            rules = defaults.rules;
        }
        let mode_span = mode.as_ref().map_or(span, |at| at.span.clone());
        let mode = match mode.map(|at| at.value) {
            Some(ModeText::Sequential) => {
                self.refuse(mode_span.clone(), "guard.mode = \"sequential\"", "write mode = \"threshold\" and errors = { max = \"1%\" }");
                Mode::Threshold
            }
            Some(ModeText::Off) => {
                self.warn_unguarded(&mode_span, percent);
                Mode::Off
            }
            Some(ModeText::Threshold) if !names_a_rule => {
                let problem = self.error(&mode_span, "guard", "a threshold guard needs at least one rule").label("no rule in this section");
                self.report.push(problem.hint("add errors = { max = \"1%\" }, or remove mode to get that rule by default"));
                Mode::Threshold
            }
            Some(ModeText::Threshold) | None => Mode::Threshold,
        };
        let compares_only = |rule: &Rule| match rule {
            Rule::ErrorsMax(_) | Rule::Latency(..) => false,
            Rule::ErrorsVsLegacy(_) | Rule::LatencyVsLegacy(_) | Rule::ClientErrorsVsLegacy(_) | Rule::AbortsVsLegacy(_) => true,
        };
        if mode == Mode::Threshold && percent == Some(Percent::FULL) && !rules.is_empty() && rules.iter().all(compares_only) {
            let problem = self.warning(header, "guard", "at 100 % nobody is on legacy, so a guard of only vs_legacy rules has nothing to compare with and never trips");
            self.report.push(problem.label("percent = 100").hint("add errors = { max = \"1%\" } to [rollout.guard]"));
        }
        let judges_errors = |rule: &Rule| matches!(rule, Rule::ErrorsMax(_) | Rule::ErrorsVsLegacy(_));
        if mode == Mode::Threshold && !rules.is_empty() && !rules.iter().any(judges_errors) {
            let problem = self.warning(header, "guard", "no rule is about errors: with any rule written, the default of errors.max = \"1%\" does not apply");
            self.report.push(problem.label("its guard has no errors rule").hint("add errors = { max = \"1%\" } to [rollout.guard]"));
        }
        GuardSettings {
            mode,
            dry_run: dry_run.unwrap_or(defaults.dry_run),
            window: self.duration(window.as_ref(), "guard.window", &write_duration(defaults.window), WINDOW.0, WINDOW.1),
            min_requests: min_requests.unwrap_or(defaults.min_requests),
            rules,
        }
    }

    fn warn_unguarded(&mut self, span: &Range<usize>, percent: Option<Percent>) {
        let what = match percent {
            Some(percent) if percent > Percent::ZERO => format!("off while {percent} % of users are on new: nothing but a person will roll back"),
            _ => "off: once users are on new, nothing but a person will roll back".to_owned(),
        };
        let problem = self.warning(span, "guard", what).label("no guard");
        self.report.push(problem.hint("write mode = \"threshold\"; with dry_run = true it judges and reports without acting"));
    }

    /// The rules that are written, in the order of the contract.
    fn rules(&mut self, errors: ErrorsTable, latency: LatencyTable, client_errors: VsLegacyTable, aborts: VsLegacyTable) -> Vec<Rule> {
        let ErrorsTable { max, vs_legacy: errors_vs_legacy } = errors;
        let LatencyTable { p50, p95, p99, mean, vs_legacy: latency_vs_legacy } = latency;
        let rules = [
            max.and_then(|at| self.rate(&at, "guard.errors.max")).map(Rule::ErrorsMax),
            errors_vs_legacy.and_then(|at| self.ratio(&at, "guard.errors.vs_legacy")).map(Rule::ErrorsVsLegacy),
            self.latency(p50, LatencyPoint::P50),
            self.latency(p95, LatencyPoint::P95),
            self.latency(p99, LatencyPoint::P99),
            self.latency(mean, LatencyPoint::Mean),
            latency_vs_legacy.and_then(|at| self.ratio(&at, "guard.latency.vs_legacy")).map(Rule::LatencyVsLegacy),
            client_errors.vs_legacy.and_then(|at| self.ratio(&at, "guard.client_errors.vs_legacy")).map(Rule::ClientErrorsVsLegacy),
            aborts.vs_legacy.and_then(|at| self.ratio(&at, "guard.aborts.vs_legacy")).map(Rule::AbortsVsLegacy),
        ];
        rules.into_iter().flatten().collect()
    }

    fn rate(&mut self, at: &At<RateText>, key: &str) -> Option<Rate> {
        let text = &at.value.0;
        let result = Rate::parse(text).map_err(|error| {
            let number = text.trim().trim_end_matches('%').trim_end();
            let hint = number.parse::<f64>().ok().filter(|number| (0.0..=100.0).contains(number) && !text.contains('%')).map(|_| format!("write \"{number}%\""));
            Fault { what: format!("expected {RATE_SHAPE} from 0% to 100%, found {}: {error}", crate::text::quote(text)), hint }
        });
        let rate = self.settle(&at.span, key, result)?;
        if rate.ppm() == 1_000_000 {
            let problem = self.warning(&at.span, key, "a limit of 100 % is never exceeded, so this rule never trips").label("no limit");
            self.report.push(problem.hint("write a limit such as \"1%\""));
        }
        Some(rate)
    }

    fn ratio(&mut self, at: &At<Number>, key: &str) -> Option<Ratio> {
        let digits = self.digits(at);
        let result =
            Ratio::parse(&digits).map_err(|error| Fault { what: format!("expected a factor from 1 to 1000 with at most three decimals, found {digits}: {error}"), hint: None });
        self.settle(&at.span, key, result)
    }

    fn latency(&mut self, at: Option<At<DurationText>>, point: LatencyPoint) -> Option<Rule> {
        let at = at?;
        let limit = self.duration(Some(&at), &format!("guard.latency.{}", point.name()), "1s", Duration::from_millis(1), MAX_LATENCY);
        Some(Rule::Latency(point, u64::try_from(limit.as_micros()).unwrap_or(u64::MAX)))
    }
}
