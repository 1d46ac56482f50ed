//! The reading of `[rollout.guard]`: the definition of when new counts as worse.

use std::ops::Range;
use std::time::Duration;

use cutover_core::guard::LatencyPoint;
use cutover_core::{GuardSettings, Mode, Percent, Rate, Ratio, Rule, SharedCause};

use super::{Fault, Lower};
use crate::duration::{MAX_DURATION, write_duration};
use crate::schema::{
    At, DownTable, DurationText, ErrorsTable, GuardTable, HangTable, LatencyTable, ModeText,
    Number, OrOff, RateText, SharedCauseText, VsLegacyTable,
};
use crate::text::quote;

/// The bounds of the window. A shorter window contains too few requests for a judgement, and a
/// longer one would judge the hour before the change.
const WINDOW: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));

/// The largest meaningful latency limit.
const MAX_LATENCY: Duration = Duration::from_secs(3600);

/// The bounds of the hang time. A request that waits longer has reached its response timeout, or is
/// no longer needed. A shorter wait is not a hang.
const HANG: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The bounds of the down time. A server that restarts may be away for a second, and an operator
/// would not wait an hour for a reaction.
const DOWN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));

/// The minimum time between false alarms. A guard with more frequent false alarms would be switched
/// off.
const MIN_FALSE_ALARM: Duration = Duration::from_secs(3600);

/// The bounds of the warm-up. If new does not settle within an hour after a raise, the reason is
/// not a cold start.
const WARM_UP: (Duration, Duration) = (Duration::ZERO, Duration::from_secs(3600));

/// Headers that an answer needs, or that have another meaning.
const NO_OUTCOME_HEADERS: [&str; 19] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "date",
    "etag",
    "grpc-message",
    "grpc-status",
    "keep-alive",
    "location",
    "retry-after",
    "set-cookie",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "www-authenticate",
    // The proxy sets these in answers itself.
    "x-cutover-backend",
    "x-cutover-rollout",
    "x-cutover-reason",
];

/// Returns the written rules, and the defaults of the others except those that are switched off, in
/// the order of all names.
fn with_defaults(mut rules: Vec<Rule>, off: &[&str]) -> Vec<Rule> {
    let is_wanted = |default: &Rule| {
        !off.contains(&default.name()) && rules.iter().all(|rule| rule.name() != default.name())
    };
    rules.extend(
        GuardSettings::default_rules()
            .into_iter()
            .filter(is_wanted)
            .collect::<Vec<_>>(),
    );
    rules.sort_by_key(|rule| Rule::NAMES.iter().position(|name| *name == rule.name()));
    rules
}

/// Returns a number that the schema keeps small.
fn count(at: &At<u64>) -> u32 {
    u32::try_from(at.value).unwrap_or(u32::MAX)
}

impl Lower<'_> {
    /// Reads the guard of a rollout whose block begins at `header`. `percent` is the share on new
    /// that is in force.
    pub(super) fn guard(
        &mut self,
        table: Option<At<GuardTable>>,
        header: &Range<usize>,
        percent: Option<Percent>,
    ) -> GuardSettings {
        let defaults = GuardSettings::default();
        let Some(At { value: table, span }) = table else {
            return defaults;
        };
        let GuardTable {
            mode,
            dry_run,
            errors,
            latency,
            client_errors,
            aborts,
            redirects,
            hang,
            health,
            dead_after,
            min_users,
            false_alarm_every,
            shared_cause,
            warm_up,
            outcome_header,
            window,
            min_requests,
        } = table;
        let mut off = Vec::new();
        let errors = self
            .switch(
                errors,
                "errors",
                &["errors_max", "errors_vs_legacy"],
                &mut off,
            )
            .map(|at| at.value);
        let latency = self
            .switch(latency, "latency", &["latency_vs_legacy"], &mut off)
            .map(|at| at.value);
        let client_errors = self
            .switch(
                client_errors,
                "client_errors",
                &["client_errors_vs_legacy"],
                &mut off,
            )
            .map(|at| at.value);
        let aborts = self
            .switch(aborts, "aborts", &["aborts_vs_legacy"], &mut off)
            .map(|at| at.value);
        let redirects = self
            .switch(redirects, "redirects", &["redirects_vs_legacy"], &mut off)
            .map(|at| at.value);
        let hang = self.switch(hang, "hang", &["hang"], &mut off);
        let health = self.switch(health, "health", &["health"], &mut off);
        let dead_after = self.switch(dead_after, "dead_after", &["dead"], &mut off);
        let mode_span = mode.as_ref().map_or(span, |at| at.span.clone());
        let mode = match mode.map_or(ModeText::Sequential, |at| at.value) {
            ModeText::Sequential => Mode::Sequential,
            ModeText::Threshold => Mode::Threshold,
            ModeText::Off => Mode::Off,
        };
        match mode {
            Mode::Sequential => {
                self.warn_of_threshold_key("guard.window", window.as_ref().map(|at| &at.span));
                self.warn_of_threshold_key(
                    "guard.min_requests",
                    min_requests.as_ref().map(|at| &at.span),
                );
            }
            Mode::Threshold => {
                // The rules about the present moment are judged as in sequential mode. Each one
                // uses those of these keys that apply to it.
                let (hang, health, dead) = (hang.is_some(), health.is_some(), dead_after.is_some());
                let keys = [
                    (
                        "guard.min_users",
                        min_users.as_ref().map(|at| &at.span),
                        hang || dead,
                        "hang or dead_after",
                    ),
                    (
                        "guard.false_alarm_every",
                        false_alarm_every.as_ref().map(|at| &at.span),
                        hang,
                        "hang",
                    ),
                    (
                        "guard.shared_cause",
                        shared_cause.as_ref().map(|at| &at.span),
                        hang || health || dead,
                        "hang, health or dead_after",
                    ),
                    (
                        "guard.warm_up",
                        warm_up.as_ref().map(|at| &at.span),
                        false,
                        "",
                    ),
                ];
                for (key, span, _, users) in keys.into_iter().filter(|(_, _, is_used, _)| !is_used)
                {
                    self.warn_of_sequential_key(key, span, users);
                }
            }
            Mode::Off => {}
        }

        let errors_are_written = errors.is_some();
        let is_a_rule_written = errors_are_written
            || latency.is_some()
            || client_errors.is_some()
            || aborts.is_some()
            || redirects.is_some()
            || hang.is_some()
            || health.is_some()
            || dead_after.is_some();
        let immediate = [
            hang.map(|at| self.hang(at.value)),
            health.map(|at| self.health(at.value)),
            dead_after.map(|at| Rule::Dead(count(&at))),
        ];
        let compared = [client_errors, aborts, redirects].map(Option::unwrap_or_default);
        let mut rules = self.rules(
            errors.unwrap_or_default(),
            latency.unwrap_or_default(),
            compared,
        );
        rules.extend(immediate.into_iter().flatten());
        match mode {
            Mode::Sequential => {
                rules = with_defaults(rules, &off);
                if rules.is_empty() {
                    self.warn_unguarded(&mode_span, percent);
                }
            }
            Mode::Off => self.warn_unguarded(&mode_span, percent),
            Mode::Threshold if !is_a_rule_written => {
                let problem = self
                    .error(
                        &mode_span,
                        "guard",
                        "a threshold guard needs at least one rule",
                    )
                    .label("no rule in this section");
                self.report.push(problem.hint(
                    "add errors = { max = \"1%\" }, or remove mode to get the rules of a \
                     sequential guard",
                ));
            }
            Mode::Threshold => self.warn_of_gaps(&rules, errors_are_written, header, percent),
        }
        GuardSettings {
            mode,
            dry_run: dry_run.unwrap_or(defaults.dry_run),
            window: self.duration(
                window.as_ref(),
                "guard.window",
                &write_duration(defaults.window),
                WINDOW.0,
                WINDOW.1,
            ),
            min_requests: min_requests.map_or(defaults.min_requests, |at| at.value),
            rules,
            min_users: min_users.map_or(defaults.min_users, |at| count(&at)),
            false_alarm_every: self.duration(
                false_alarm_every.as_ref(),
                "guard.false_alarm_every",
                &write_duration(defaults.false_alarm_every),
                MIN_FALSE_ALARM,
                MAX_DURATION,
            ),
            shared_cause: match shared_cause.map(|at| at.value) {
                Some(SharedCauseText::Rollback) => SharedCause::Rollback,
                Some(SharedCauseText::Hold) | None => SharedCause::Hold,
            },
            warm_up: self.duration(
                warm_up.as_ref(),
                "guard.warm_up",
                &write_duration(defaults.warm_up),
                WARM_UP.0,
                WARM_UP.1,
            ),
            outcome_header: outcome_header.and_then(|at| self.outcome_header(&at)),
        }
    }

    /// Returns what a rule contains, unless it is switched off. In that case, adds the rules of
    /// these names to those that are switched off.
    fn switch<T>(
        &mut self,
        at: Option<At<OrOff<T>>>,
        key: &str,
        names: &[&'static str],
        off: &mut Vec<&'static str>,
    ) -> Option<At<T>> {
        let At { value, span } = at?;
        match value {
            OrOff::Set(value) => return Some(At { value, span }),
            OrOff::Switch(false) => off.extend(names),
            OrOff::Switch(true) => {
                let fault = Fault::new(
                    "expected what the rule says, or false, found true",
                    "remove it: a sequential guard has the rule by itself",
                );
                self.settle::<()>(&span, &format!("guard.{key}"), Err(fault));
            }
        }
        None
    }

    fn outcome_header(&mut self, at: &At<String>) -> Option<Box<str>> {
        let name = at.value.to_ascii_lowercase();
        let is_token =
            |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let result = if name.is_empty() || name.len() > 64 || !name.bytes().all(is_token) {
            Err(Fault::new(
                format!("expected the name of a header, found {}", quote(&at.value)),
                "write outcome_header = \"x-cutover-outcome\"",
            ))
        } else if NO_OUTCOME_HEADERS.contains(&name.as_str()) {
            let what = format!(
                "the header {} means something else in every answer, and would be removed from it",
                quote(&name)
            );
            Err(Fault::new(
                what,
                "write outcome_header = \"x-cutover-outcome\"",
            ))
        } else {
            Ok(name.into())
        };
        self.settle(&at.span, "guard.outcome_header", result)
    }

    fn warn_of_threshold_key(&mut self, key: &str, span: Option<&Range<usize>>) {
        if let Some(span) = span {
            let problem = self.warning(
                span,
                key,
                "has no effect in sequential mode, it belongs to mode = \"threshold\"",
            );
            self.report.push(problem.label("no effect").hint(
                "remove it: a sequential guard needs no window; or write mode = \"threshold\"",
            ));
        }
    }

    /// Warns about a key of sequential mode. `users` are the rules for which the key would also
    /// apply in threshold mode, if any.
    fn warn_of_sequential_key(&mut self, key: &str, span: Option<&Range<usize>>, users: &str) {
        if let Some(span) = span {
            let without = if users.is_empty() {
                String::new()
            } else {
                format!(" without {users}")
            };
            let problem = self.warning(
                span,
                key,
                format!(
                    "has no effect in threshold mode{without}, it belongs to mode = \"sequential\""
                ),
            );
            self.report.push(
                problem
                    .label("no effect")
                    .hint("remove it, or write mode = \"sequential\""),
            );
        }
    }

    /// Warns about faults that a threshold guard cannot detect.
    fn warn_of_gaps(
        &mut self,
        rules: &[Rule],
        errors_are_written: bool,
        header: &Range<usize>,
        percent: Option<Percent>,
    ) {
        if percent == Some(Percent::FULL)
            && !rules.is_empty()
            && rules.iter().all(|rule| rule.compares())
        {
            let problem = self.warning(
                header,
                "guard",
                "at 100 % nobody is on legacy, so a guard of only vs_legacy rules has nothing to \
                 compare with and never trips",
            );
            self.report.push(
                problem
                    .label("percent = 100")
                    .hint("add errors = { max = \"1%\" } to [rollout.guard]"),
            );
        }
        if !errors_are_written {
            let problem = self.warning(
                header,
                "guard",
                "no rule is about errors: in threshold mode only the rules that are written apply",
            );
            self.report.push(
                problem
                    .label("its guard has no errors rule")
                    .hint("add errors = { max = \"1%\" } to [rollout.guard]"),
            );
        }
    }

    fn hang(&mut self, table: HangTable) -> Rule {
        let older_than = self.duration(
            table.older_than.as_ref(),
            "guard.hang.older_than",
            "10s",
            HANG.0,
            HANG.1,
        );
        Rule::Hang(u64::try_from(older_than.as_micros()).unwrap_or(u64::MAX))
    }

    fn health(&mut self, table: DownTable) -> Rule {
        let down_for = self.duration(
            table.down_for.as_ref(),
            "guard.health.down_for",
            "10s",
            DOWN.0,
            DOWN.1,
        );
        Rule::Health(u64::try_from(down_for.as_micros()).unwrap_or(u64::MAX))
    }

    fn warn_unguarded(&mut self, span: &Range<usize>, percent: Option<Percent>) {
        let what = match percent {
            Some(percent) if percent > Percent::ZERO => format!(
                "off while {percent} % of users are on new: nothing but a person will roll back"
            ),
            _ => "off: once users are on new, nothing but a person will roll back".to_owned(),
        };
        let problem = self.warning(span, "guard", what).label("no guard");
        self.report.push(problem.hint(
            "write mode = \"sequential\"; with dry_run = true it judges and reports without acting",
        ));
    }

    /// Returns the written rules, in the order of the contract.
    fn rules(
        &mut self,
        errors: ErrorsTable,
        latency: LatencyTable,
        [client_errors, aborts, redirects]: [VsLegacyTable; 3],
    ) -> Vec<Rule> {
        let ErrorsTable {
            max,
            vs_legacy: errors_vs_legacy,
        } = errors;
        let LatencyTable {
            p50,
            p95,
            p99,
            mean,
            vs_legacy: latency_vs_legacy,
        } = latency;
        let rules = [
            max.and_then(|at| self.rate(&at, "guard.errors.max"))
                .map(Rule::ErrorsMax),
            errors_vs_legacy
                .and_then(|at| self.ratio(&at, "guard.errors.vs_legacy"))
                .map(Rule::ErrorsVsLegacy),
            self.latency(p50, LatencyPoint::P50),
            self.latency(p95, LatencyPoint::P95),
            self.latency(p99, LatencyPoint::P99),
            self.latency(mean, LatencyPoint::Mean),
            latency_vs_legacy
                .and_then(|at| self.ratio(&at, "guard.latency.vs_legacy"))
                .map(Rule::LatencyVsLegacy),
            client_errors
                .vs_legacy
                .and_then(|at| self.ratio(&at, "guard.client_errors.vs_legacy"))
                .map(Rule::ClientErrorsVsLegacy),
            aborts
                .vs_legacy
                .and_then(|at| self.ratio(&at, "guard.aborts.vs_legacy"))
                .map(Rule::AbortsVsLegacy),
            redirects
                .vs_legacy
                .and_then(|at| self.ratio(&at, "guard.redirects.vs_legacy"))
                .map(Rule::RedirectsVsLegacy),
        ];
        rules.into_iter().flatten().collect()
    }

    fn rate(&mut self, at: &At<RateText>, key: &str) -> Option<Rate> {
        let rate = self.share_of(at, key)?;
        if rate.ppm() == 1_000_000 {
            let problem = self
                .warning(
                    &at.span,
                    key,
                    "a limit of 100 % is never exceeded, so this rule never trips",
                )
                .label("no limit");
            self.report
                .push(problem.hint("write a limit such as \"1%\""));
        }
        Some(rate)
    }

    fn ratio(&mut self, at: &At<Number>, key: &str) -> Option<Ratio> {
        let digits = self.digits(at);
        let result = Ratio::parse(&digits).map_err(|error| Fault {
            what: format!(
                "expected a factor from 1 to 1000 with at most three decimals, found {digits}: \
                 {error}"
            ),
            hint: None,
        });
        self.settle(&at.span, key, result)
    }

    fn latency(&mut self, at: Option<At<DurationText>>, point: LatencyPoint) -> Option<Rule> {
        let at = at?;
        let limit = self.duration(
            Some(&at),
            &format!("guard.latency.{}", point.name()),
            "1s",
            Duration::from_millis(1),
            MAX_LATENCY,
        );
        Some(Rule::Latency(
            point,
            u64::try_from(limit.as_micros()).unwrap_or(u64::MAX),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NoFiles, Settings, parse};

    fn settings(new: &str, rollout: &str) -> Settings {
        let backends = format!(
            "[backend.legacy]\nservers = [\"a:1\"]\n[backend.new]\nservers = [\"b:1\"]\n{new}\n"
        );
        let text = format!("{backends}[[rollout]]\nid = \"a\"\nkey = [\"cookie:uid\"]\n{rollout}");
        parse("cutover.toml", &text, &NoFiles)
            .unwrap_or_else(|problems| panic!("{text}\n{problems}"))
    }

    fn guard(text: &str) -> GuardSettings {
        settings("", &format!("percent = 5\n[rollout.guard]\n{text}\n"))
            .rollouts
            .remove(0)
            .guard
    }

    /// Returns the keys that have a warning, without the rollout's name.
    fn warned(new: &str, text: &str) -> Vec<String> {
        let key = |message: &str| {
            message
                .trim_start_matches("rollout \"a\": ")
                .split(": ")
                .next()
                .unwrap_or_default()
                .to_owned()
        };
        settings(new, &format!("percent = 5\n[rollout.guard]\n{text}\n"))
            .warnings
            .iter()
            .map(|warning| key(&warning.message))
            .collect()
    }

    fn ratio(thousandths: u32) -> Ratio {
        Ratio::from_thousandths(thousandths).expect("a ratio")
    }

    fn rate(ppm: u32) -> Rate {
        Rate::from_ppm(ppm).expect("a rate")
    }

    #[test]
    fn a_missing_or_empty_section_gives_the_default_guard() {
        assert_eq!(
            settings("", "percent = 5\n").rollouts[0].guard,
            GuardSettings::default()
        );
        assert_eq!(guard(""), GuardSettings::default());
        assert_eq!(guard("mode = \"sequential\""), GuardSettings::default());
        assert_eq!(GuardSettings::default().mode, Mode::Sequential);
    }

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        let rules = vec![
            Rule::ErrorsMax(rate(10_000)),
            Rule::ErrorsVsLegacy(ratio(2_000)),
            Rule::LatencyVsLegacy(ratio(1_500)),
            Rule::ClientErrorsVsLegacy(ratio(2_000)),
            Rule::AbortsVsLegacy(ratio(2_000)),
            Rule::RedirectsVsLegacy(ratio(2_000)),
            Rule::Hang(10_000_000),
            Rule::Health(10_000_000),
            Rule::Dead(20),
        ];
        let GuardSettings {
            dry_run,
            min_users,
            false_alarm_every,
            shared_cause,
            window,
            min_requests,
            rules: found,
            mode,
            warm_up,
            outcome_header,
        } = guard("");
        assert_eq!((warm_up, outcome_header), (Duration::from_secs(30), None));
        assert_eq!(
            (mode, dry_run, min_users, false_alarm_every, shared_cause),
            (
                Mode::Sequential,
                false,
                3,
                Duration::from_secs(30 * 24 * 3600),
                SharedCause::Hold
            )
        );
        assert_eq!((window, min_requests), (Duration::from_secs(30), 200));
        assert_eq!(found, rules);
    }

    #[test]
    fn each_written_key_replaces_one_default_in_sequential_mode() {
        for (text, rule) in [
            ("errors = { max = \"0.5%\" }", Rule::ErrorsMax(rate(5_000))),
            (
                "errors = { vs_legacy = 3 }",
                Rule::ErrorsVsLegacy(ratio(3_000)),
            ),
            (
                "latency = { vs_legacy = 1.25 }",
                Rule::LatencyVsLegacy(ratio(1_250)),
            ),
            (
                "client_errors = { vs_legacy = 4.5 }",
                Rule::ClientErrorsVsLegacy(ratio(4_500)),
            ),
            (
                "aborts = { vs_legacy = 10 }",
                Rule::AbortsVsLegacy(ratio(10_000)),
            ),
            (
                "redirects = { vs_legacy = 5 }",
                Rule::RedirectsVsLegacy(ratio(5_000)),
            ),
            ("hang = { older_than = \"1s\" }", Rule::Hang(1_000_000)),
            ("hang = { older_than = \"29s\" }", Rule::Hang(29_000_000)),
            ("health = { down_for = \"1s\" }", Rule::Health(1_000_000)),
            (
                "health = { down_for = \"1h\" }",
                Rule::Health(3_600_000_000),
            ),
            ("dead_after = 2", Rule::Dead(2)),
            ("dead_after = 1000000", Rule::Dead(1_000_000)),
        ] {
            let expected: Vec<Rule> = GuardSettings::default_rules()
                .into_iter()
                .map(|default| {
                    if default.name() == rule.name() {
                        rule
                    } else {
                        default
                    }
                })
                .collect();
            assert_eq!(
                guard(text),
                GuardSettings {
                    rules: expected,
                    ..GuardSettings::default()
                },
                "{text}"
            );
        }
        assert_eq!(
            guard("min_users = 1000"),
            GuardSettings {
                min_users: 1_000,
                ..GuardSettings::default()
            }
        );
        assert_eq!(
            guard("false_alarm_every = \"1h\"").false_alarm_every,
            Duration::from_secs(3600)
        );
        assert_eq!(
            guard("false_alarm_every = \"3650d\"").false_alarm_every,
            MAX_DURATION
        );
        assert_eq!(
            guard("shared_cause = \"rollback\"").shared_cause,
            SharedCause::Rollback
        );
    }

    #[test]
    fn false_switches_a_rule_off_and_leaves_the_others() {
        for (text, off) in [
            ("errors = false", &["errors_max", "errors_vs_legacy"][..]),
            ("latency = false", &["latency_vs_legacy"]),
            ("client_errors = false", &["client_errors_vs_legacy"]),
            ("aborts = false", &["aborts_vs_legacy"]),
            ("redirects = false", &["redirects_vs_legacy"]),
            ("hang = false", &["hang"]),
            ("health = false", &["health"]),
            ("dead_after = false", &["dead"]),
        ] {
            let expected: Vec<Rule> = GuardSettings::default_rules()
                .into_iter()
                .filter(|rule| !off.contains(&rule.name()))
                .collect();
            assert_eq!(guard(text).rules, expected, "{text}");
        }
        assert_eq!(
            guard("mode = \"threshold\"\nerrors = { max = \"1%\" }\nhang = false").rules,
            [Rule::ErrorsMax(rate(10_000))]
        );
        let all = [
            "errors",
            "latency",
            "client_errors",
            "aborts",
            "redirects",
            "hang",
            "health",
            "dead_after",
        ]
        .map(|key| format!("{key} = false"))
        .join("\n");
        assert_eq!(
            warned("", &all),
            ["guard"],
            "a guard of no rules is no guard"
        );
    }

    #[test]
    fn the_outcome_header_is_lower_cased_and_warm_up_has_bounds() {
        assert_eq!(
            guard("outcome_header = \"X-Cutover-Outcome\"")
                .outcome_header
                .as_deref(),
            Some("x-cutover-outcome")
        );
        assert_eq!(guard("warm_up = \"0s\"").warm_up, Duration::ZERO);
        assert_eq!(guard("warm_up = \"1h\"").warm_up, Duration::from_secs(3600));
    }

    #[test]
    fn a_latency_limit_is_added_to_the_defaults_in_name_order() {
        // The rules are written from the last to the first.
        let text = "redirects = { vs_legacy = 3 }\ndead_after = 5\nhealth = { down_for = \"2s\" \
                    }\nlatency = { mean = \"4ms\", p99 = \"3ms\", p95 = \"2ms\", p50 = \"1ms\" \
                    }\nerrors = { vs_legacy = 2 }";
        let names: Vec<&str> = guard(text).rules.iter().map(|rule| rule.name()).collect();
        assert_eq!(names, Rule::NAMES);
        let text = format!("mode = \"threshold\"\n{text}");
        let names: Vec<&str> = guard(&text).rules.iter().map(|rule| rule.name()).collect();
        assert_eq!(
            names,
            [
                "errors_vs_legacy",
                "latency_p50",
                "latency_p95",
                "latency_p99",
                "latency_mean",
                "redirects_vs_legacy",
                "health",
                "dead"
            ]
        );
    }

    #[test]
    fn threshold_mode_has_only_the_written_rules() {
        for (text, rule) in [
            ("errors = { max = \"2%\" }", Rule::ErrorsMax(rate(20_000))),
            (
                "latency = { p99 = \"800ms\" }",
                Rule::Latency(LatencyPoint::P99, 800_000),
            ),
            ("hang = { older_than = \"5s\" }", Rule::Hang(5_000_000)),
            ("health = { down_for = \"5s\" }", Rule::Health(5_000_000)),
            ("dead_after = 7", Rule::Dead(7)),
        ] {
            assert_eq!(
                guard(&format!("mode = \"threshold\"\n{text}")).rules,
                [rule],
                "{text}"
            );
        }
        assert!(guard("mode = \"off\"").rules.is_empty());
    }

    #[test]
    fn a_key_has_a_warning_exactly_where_it_has_no_effect() {
        let sequential = "min_users = 5\nfalse_alarm_every = \"7d\"\nshared_cause = \"hold\"";
        let threshold = "window = \"10s\"\nmin_requests = 50";
        let (of_sequential, of_threshold) = (
            [
                "guard.min_users",
                "guard.false_alarm_every",
                "guard.shared_cause",
            ],
            ["guard.window", "guard.min_requests"],
        );
        let none: [&str; 0] = [];
        assert_eq!(warned("", sequential), none);
        assert_eq!(warned("", threshold), of_threshold);
        let errors = "mode = \"threshold\"\nerrors = { max = \"1%\" }";
        assert_eq!(warned("", &format!("{errors}\n{threshold}")), none);
        assert_eq!(
            warned("", &format!("{errors}\n{sequential}")),
            of_sequential
        );
        assert_eq!(
            warned(
                "",
                &format!("{errors}\n{sequential}\nhang = {{ older_than = \"5s\" }}")
            ),
            none
        );
        assert_eq!(
            warned("", &format!("{errors}\n{sequential}\ndead_after = 5")),
            of_sequential[1..2]
        );
        assert_eq!(
            warned(
                "",
                &format!("{errors}\n{sequential}\nhealth = {{ down_for = \"5s\" }}")
            ),
            of_sequential[..2]
        );
        // The only warning is about the mode.
        assert_eq!(
            warned("", &format!("mode = \"off\"\n{sequential}\n{threshold}")),
            ["guard"]
        );
    }

    #[test]
    fn a_written_hang_time_must_be_shorter_than_the_response_timeout() {
        let hang = |older_than: &str| format!("hang = {{ older_than = \"{older_than}\" }}");
        let warning = ["guard.hang.older_than"];
        let none: [&str; 0] = [];
        assert_eq!(warned("", &hang("29s")), none);
        assert_eq!(warned("", &hang("30s")), warning);
        assert_eq!(warned("response_timeout = \"60s\"", &hang("30s")), none);
        assert_eq!(warned("response_timeout = \"5s\"", &hang("10s")), warning);
        assert_eq!(
            warned(
                "response_timeout = \"5s\"",
                &format!(
                    "mode = \"threshold\"\nerrors = {{ max = \"1%\" }}\n{}",
                    hang("10s")
                )
            ),
            warning
        );
        // The default is not a mistake of the operator, and the guard that is off already has a
        // warning.
        assert_eq!(warned("response_timeout = \"5s\"", ""), none);
        assert_eq!(
            warned(
                "response_timeout = \"5s\"",
                &format!("mode = \"off\"\n{}", hang("10s"))
            ),
            ["guard"]
        );
        // Only the backend that users are moved to is relevant.
        assert_eq!(
            warned(
                "[backend.other]\nservers = [\"c:1\"]\nresponse_timeout = \"1s\"",
                &hang("10s")
            ),
            none
        );
    }

    #[test]
    fn a_comparison_at_100_percent_needs_a_sequential_guard() {
        let at_100 = |text: &str| {
            settings("", &format!("percent = 100\n[rollout.guard]\n{text}\n"))
                .warnings
                .len()
        };
        assert_eq!(
            at_100("mode = \"threshold\"\nerrors = { vs_legacy = 2 }"),
            1
        );
        assert_eq!(
            at_100("mode = \"threshold\"\nerrors = { vs_legacy = 2 }\ndead_after = 5"),
            0
        );
        assert_eq!(at_100("errors = { vs_legacy = 2 }"), 0);
        let with_control_group = settings(
            "",
            "percent = 100\nholdback = 1\n[rollout.guard]\nmode = \"threshold\"\nerrors = { \
             vs_legacy = 2 }\n",
        );
        assert!(
            with_control_group.warnings.is_empty(),
            "a control group is something to compare with"
        );
        assert_eq!(at_100("latency = { p99 = \"1s\" }"), 0);
    }

    #[test]
    fn a_holdback_that_takes_effect_below_100_percent_has_a_warning() {
        let of = |percent: &str, holdback: &str| {
            settings("", &format!("percent = {percent}\nholdback = {holdback}\n"))
        };
        for (percent, holdback, warnings) in [
            ("5", "0", 0),
            ("5", "0.125", 0),
            ("99", "1", 0),
            ("100", "1", 0),
            ("0", "50", 0),
            ("99.001", "1", 1),
            ("99", "1.001", 1),
            ("5", "100", 1),
            ("0", "100", 1),
            ("100", "100", 1),
        ] {
            let settings = of(percent, holdback);
            assert_eq!(
                Some(settings.rollouts[0].holdback),
                Percent::parse(holdback).ok(),
                "{holdback}"
            );
            assert_eq!(
                settings.warnings.len(),
                warnings,
                "{percent} and {holdback}"
            );
        }
        assert_eq!(
            settings("", "percent = 5\n").rollouts[0].holdback,
            Percent::ZERO
        );
    }
}
