//! When new counts as worse: the settings of a guard, its rules, and the plain judging of mode
//! `threshold`. The sequential judging is in [`crate::guard::judge`].
//!
//! Mode `threshold` is the plain rule: over `window`, with at least `min_requests` on new, strictly
//! above the limit. It is exact at its limits: counts are compared as integers, and a latency limit
//! is judged by how many requests were slower than it ("p99 above 800 ms" is "more than 1 % of
//! requests above 800 ms"), never by a rounded quantile. Only the rules that the file names apply.
//!
//! What this mode cannot do is documented rather than hidden: it has no error control. Short
//! windows and small samples roll back a healthy backend by chance.

pub mod availability;
pub mod detector;
pub mod judge;

use std::fmt;
use std::time::Duration;

use crate::percent::{Rate, Ratio};
use crate::side::{PerSide, Side};
use crate::stats::window::Span;

/// How the guard judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// A sequential test per rule: see [`crate::guard::judge`].
    Sequential,
    /// Rules over a window.
    Threshold,
    /// No judging; only people roll back.
    Off,
}

impl Mode {
    /// The name the file uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sequential => "sequential",
            Self::Threshold => "threshold",
            Self::Off => "off",
        }
    }
}

/// A point of the latency distribution that a limit may speak of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LatencyPoint {
    /// Half of the requests.
    P50,
    /// 95 % of the requests.
    P95,
    /// 99 % of the requests.
    P99,
    /// The arithmetic mean.
    Mean,
}

impl LatencyPoint {
    /// The name the file uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::P50 => "p50",
            Self::P95 => "p95",
            Self::P99 => "p99",
            Self::Mean => "mean",
        }
    }

    /// The share of requests that may be slower, in parts per million; `None` for the mean.
    const fn slower_ppm(self) -> Option<u64> {
        match self {
            Self::P50 => Some(500_000),
            Self::P95 => Some(50_000),
            Self::P99 => Some(10_000),
            Self::Mean => None,
        }
    }

    /// The share of requests that may be slower, as a fraction; a half for the mean, which has no
    /// such share.
    pub fn slower_share(self) -> f64 {
        self.slower_ppm().map_or(0.5, |ppm| ppm as f64 / 1e6)
    }

    /// The value of this point in a span, in microseconds.
    pub fn of(self, span: &Span) -> Option<u64> {
        match self.slower_ppm() {
            None => span.mean_us(),
            Some(slower_ppm) => span.latencies.quantile(1.0 - slower_ppm as f64 / 1e6),
        }
    }
}

/// The point at which the sides' latencies are compared: high enough to see a slow tail, low enough
/// to hold samples.
pub const COMPARED_POINT: LatencyPoint = LatencyPoint::P95;

/// A comparison of counts needs at least this many events on new: with fewer, one request that
/// somebody made on purpose would decide while legacy happens to have none.
pub const MIN_COMPARED_EVENTS: u64 = 10;

/// One condition under which new counts as worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// More than this share of requests failed.
    ErrorsMax(Rate),
    /// The failure rate is more than this many times legacy's.
    ErrorsVsLegacy(Ratio),
    /// A point of the latency is above this many microseconds.
    Latency(LatencyPoint, u64),
    /// The p95 latency is more than this many times legacy's.
    LatencyVsLegacy(Ratio),
    /// The rate of 4xx answers is more than this many times legacy's.
    ClientErrorsVsLegacy(Ratio),
    /// The rate of clients that gave up is more than this many times legacy's.
    AbortsVsLegacy(Ratio),
    /// The rate of users who get nothing but redirects is more than this many times legacy's.
    RedirectsVsLegacy(Ratio),
    /// Too many requests have waited longer than this many microseconds for an answer, and still
    /// wait.
    Hang(u64),
    /// No server has been available for this many microseconds.
    Health(u64),
    /// This many requests failed in a row, with no success between.
    Dead(u32),
}

/// What happens when both sides are bad at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SharedCause {
    /// Raises are frozen and people are told; nobody is moved, unless the percentage was raised in
    /// the last ten minutes.
    #[default]
    Hold,
    /// New is rolled back all the same.
    Rollback,
}

impl SharedCause {
    /// The name the file uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hold => "hold",
            Self::Rollback => "rollback",
        }
    }
}

impl Rule {
    /// All names a rule can have, `manual` and `state` apart.
    pub const NAMES: [&'static str; 13] = [
        "errors_max",
        "errors_vs_legacy",
        "latency_p50",
        "latency_p95",
        "latency_p99",
        "latency_mean",
        "latency_vs_legacy",
        "client_errors_vs_legacy",
        "aborts_vs_legacy",
        "redirects_vs_legacy",
        "hang",
        "health",
        "dead",
    ];

    /// The name used in metrics, records and `status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ErrorsMax(_) => "errors_max",
            Self::ErrorsVsLegacy(_) => "errors_vs_legacy",
            Self::Latency(LatencyPoint::P50, _) => "latency_p50",
            Self::Latency(LatencyPoint::P95, _) => "latency_p95",
            Self::Latency(LatencyPoint::P99, _) => "latency_p99",
            Self::Latency(LatencyPoint::Mean, _) => "latency_mean",
            Self::LatencyVsLegacy(_) => "latency_vs_legacy",
            Self::ClientErrorsVsLegacy(_) => "client_errors_vs_legacy",
            Self::AbortsVsLegacy(_) => "aborts_vs_legacy",
            Self::RedirectsVsLegacy(_) => "redirects_vs_legacy",
            Self::Hang(_) => "hang",
            Self::Health(_) => "health",
            Self::Dead(_) => "dead",
        }
    }

    /// Whether the rule looks at what is now, or at what no window counts: it works alike in all
    /// modes but `off`.
    pub const fn is_immediate(self) -> bool {
        matches!(
            self,
            Self::Hang(_) | Self::Health(_) | Self::Dead(_) | Self::RedirectsVsLegacy(_)
        )
    }

    const fn needs_legacy(self) -> bool {
        match self {
            Self::ErrorsMax(_)
            | Self::Latency(..)
            | Self::Hang(_)
            | Self::Health(_)
            | Self::Dead(_) => false,
            Self::ErrorsVsLegacy(_)
            | Self::LatencyVsLegacy(_)
            | Self::ClientErrorsVsLegacy(_)
            | Self::AbortsVsLegacy(_)
            | Self::RedirectsVsLegacy(_) => true,
        }
    }

    /// How many times as much as on legacy is tolerated, by a rule that compares; else 1.
    pub fn ratio(self) -> f64 {
        match self {
            Self::ErrorsVsLegacy(ratio)
            | Self::LatencyVsLegacy(ratio)
            | Self::ClientErrorsVsLegacy(ratio)
            | Self::AbortsVsLegacy(ratio)
            | Self::RedirectsVsLegacy(ratio) => ratio.factor(),
            Self::ErrorsMax(_)
            | Self::Latency(..)
            | Self::Hang(_)
            | Self::Health(_)
            | Self::Dead(_) => 1.0,
        }
    }

    /// Whether the rule compares new with legacy, rather than with a limit.
    pub const fn compares(self) -> bool {
        self.needs_legacy()
    }

    fn is_breached_by(self, spans: PerSide<&Span>) -> bool {
        let (new, legacy) = (spans.new, spans.legacy);
        let (n, m) = (&new.counts, &legacy.counts);
        match self {
            Self::ErrorsMax(max) => max.is_exceeded_by(n.failed(), n.requests),
            Self::ErrorsVsLegacy(ratio) => {
                is_exceeded(ratio, (n.failed(), n.requests), (m.failed(), m.requests))
            }
            Self::ClientErrorsVsLegacy(ratio) => is_exceeded(
                ratio,
                (n.client_errors, n.requests),
                (m.client_errors, m.requests),
            ),
            // Aborted requests are not among `requests`, so the base is both together.
            Self::AbortsVsLegacy(ratio) => is_exceeded(
                ratio,
                (n.aborts, n.requests + n.aborts),
                (m.aborts, m.requests + m.aborts),
            ),
            Self::Latency(point, limit_us) => point_is_above(point, new, limit_us),
            Self::LatencyVsLegacy(ratio) => match COMPARED_POINT.of(legacy) {
                None => false,
                Some(legacy_us) => point_is_above(COMPARED_POINT, new, scaled(legacy_us, ratio)),
            },
            Self::Hang(_) | Self::Health(_) | Self::Dead(_) | Self::RedirectsVsLegacy(_) => false,
        }
    }

    /// The numbers behind the verdict, as a person says them.
    fn describe(self, spans: PerSide<&Span>) -> String {
        let (n, m) = (&spans.new.counts, &spans.legacy.counts);
        let rates =
            |what: &str, new_events, new_total, legacy_events, legacy_total, limit: String| {
                format!(
                    "new {what} {new_events} of {new_total} requests ({}){limit}; legacy \
                     {legacy_events} of {legacy_total} ({})",
                    share(new_events, new_total),
                    share(legacy_events, legacy_total)
                )
            };
        match self {
            Self::ErrorsMax(max) => rates(
                "failed",
                n.failed(),
                n.requests,
                m.failed(),
                m.requests,
                format!(", limit {max}"),
            ),
            Self::ErrorsVsLegacy(ratio) => rates(
                "failed",
                n.failed(),
                n.requests,
                m.failed(),
                m.requests,
                format!(", limit {ratio} times legacy"),
            ),
            Self::ClientErrorsVsLegacy(ratio) => rates(
                "answered 4xx to",
                n.client_errors,
                n.requests,
                m.client_errors,
                m.requests,
                format!(", limit {ratio} times legacy"),
            ),
            Self::AbortsVsLegacy(ratio) => rates(
                "was given up by the client in",
                n.aborts,
                n.requests + n.aborts,
                m.aborts,
                m.requests + m.aborts,
                format!(", limit {ratio} times legacy"),
            ),
            Self::Latency(point, limit_us) => format!(
                "new's {} is {} over {} requests, limit {}; legacy's {} is {}",
                point.name(),
                millis_or_none(point.of(spans.new)),
                spans.new.latencies.total(),
                millis(limit_us),
                point.name(),
                millis_or_none(point.of(spans.legacy))
            ),
            Self::LatencyVsLegacy(ratio) => format!(
                "new's {} is {} over {} requests, limit {ratio} times legacy's {} over {}",
                COMPARED_POINT.name(),
                millis_or_none(COMPARED_POINT.of(spans.new)),
                spans.new.latencies.total(),
                millis_or_none(COMPARED_POINT.of(spans.legacy)),
                spans.legacy.latencies.total()
            ),
            Self::Hang(_) | Self::Health(_) | Self::Dead(_) | Self::RedirectsVsLegacy(_) => {
                String::new()
            }
        }
    }
}

/// Whether new's events per request are more than `ratio` times legacy's. Legacy without an event
/// counts as if it had one: its sample cannot show a smaller rate.
fn is_exceeded(
    ratio: Ratio,
    (new_events, new_total): (u64, u64),
    (legacy_events, legacy_total): (u64, u64),
) -> bool {
    new_events >= MIN_COMPARED_EVENTS
        && ratio.is_exceeded_by(new_events, new_total, legacy_events.max(1), legacy_total)
}

fn point_is_above(point: LatencyPoint, span: &Span, limit_us: u64) -> bool {
    match point.slower_ppm() {
        Some(slower_ppm) => {
            u128::from(span.latencies.above(limit_us)) * 1_000_000
                > u128::from(span.latencies.total()) * u128::from(slower_ppm)
        }
        // sum / n > limit, without the division.
        None => {
            u128::from(span.counts.latency_sum_us)
                > u128::from(limit_us) * u128::from(span.latencies.total())
        }
    }
}

fn scaled(us: u64, ratio: Ratio) -> u64 {
    u64::try_from(u128::from(us) * u128::from(ratio.thousandths()) / 1000).unwrap_or(u64::MAX)
}

/// The guard of one rollout, as the file sets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardSettings {
    /// How it judges.
    pub mode: Mode,
    /// Judge and report, but never roll back.
    pub dry_run: bool,
    /// How far back a rule looks. Threshold mode only.
    pub window: Duration,
    /// Fewer requests than this on new within the window say nothing. Threshold mode only.
    pub min_requests: u64,
    /// The conditions, each by itself sufficient.
    pub rules: Vec<Rule>,
    /// How many users must be hurt before a rule may trip; never more than new has served lately.
    /// `1..=1000`.
    pub min_users: u32,
    /// How rarely a healthy backend may be rolled back, over all sequential rules together.
    pub false_alarm_every: Duration,
    /// What happens when both sides are bad at once.
    pub shared_cause: SharedCause,
    /// For how long after a raise that brings new users latencies are not compared: caches fill
    /// and connections open. At most an hour.
    pub warm_up: Duration,
    /// The response header in which a backend says what an answer was, lower case.
    pub outcome_header: Option<Box<str>>,
}

impl GuardSettings {
    /// The rules that a sequential guard has where the file says nothing else.
    pub fn default_rules() -> Vec<Rule> {
        let ratio =
            |thousandths| Ratio::from_thousandths(thousandths).expect("the defaults are ratios");
        vec![
            Rule::ErrorsMax(Rate::from_ppm(10_000).expect("1 % is a rate")),
            Rule::ErrorsVsLegacy(ratio(2_000)),
            Rule::LatencyVsLegacy(ratio(1_500)),
            Rule::ClientErrorsVsLegacy(ratio(2_000)),
            Rule::AbortsVsLegacy(ratio(2_000)),
            Rule::RedirectsVsLegacy(ratio(2_000)),
            Rule::Hang(10_000_000),
            Rule::Health(10_000_000),
            Rule::Dead(20),
        ]
    }

    /// The share of requests that may hang: as many as may fail.
    pub fn hang_limit(&self) -> f64 {
        self.rules
            .iter()
            .find_map(|rule| {
                if let Rule::ErrorsMax(max) = rule {
                    Some(max.fraction())
                } else {
                    None
                }
            })
            .unwrap_or(0.01)
    }

    /// How many rules gather evidence, and so share the budget of false alarms.
    pub fn gathering(&self) -> usize {
        self.rules
            .iter()
            .filter(|rule| self.judges(**rule) && !matches!(rule, Rule::Health(_) | Rule::Dead(_)))
            .count()
            .max(1)
    }

    /// The rule of this name, if the guard has it.
    pub fn rule(&self, name: &str) -> Option<Rule> {
        self.rules.iter().copied().find(|rule| rule.name() == name)
    }
}

impl Default for GuardSettings {
    /// What a rollout without a guard section gets.
    fn default() -> Self {
        Self {
            mode: Mode::Sequential,
            dry_run: false,
            window: Duration::from_secs(30),
            min_requests: 200,
            rules: Self::default_rules(),
            min_users: 3,
            false_alarm_every: Duration::from_secs(30 * 24 * 3600),
            shared_cause: SharedCause::Hold,
            warm_up: Duration::from_secs(30),
            outcome_header: None,
        }
    }
}

/// What one rule says now.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The rule.
    pub rule: Rule,
    /// What it says.
    pub answer: Answer,
    /// The numbers behind it, in one sentence.
    pub sentence: String,
    /// The decimal logarithm of the evidence that new is worse, for rules that gather evidence.
    pub evidence_log10: Option<f64>,
    /// The part of the evidence that a rollback needs, `0..=1` on the scale of logarithms, for
    /// rules that gather evidence. 0 while nothing is wrong.
    pub progress: Option<f64>,
    /// The same of users as trials, for rules that need enough different users.
    pub users_progress: Option<f64>,
}

/// Whether new is worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Within the limit.
    Pass,
    /// Beyond the limit.
    Breach,
    /// Too few requests to say.
    Inconclusive,
    /// Beyond the limit, and legacy is, too: nobody's fault in particular.
    SharedCause,
    /// Beyond the limit, but too few users, networks or clients say so.
    Held,
    /// Beyond the limit, but legacy does not answer: nobody is moved.
    NoRefuge,
}

impl Answer {
    /// The name used in `status` and the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Breach => "breach",
            Self::Inconclusive => "inconclusive",
            Self::SharedCause => "shared_cause",
            Self::Held => "held",
            Self::NoRefuge => "no_refuge",
        }
    }
}

/// The spans that rules look at.
#[derive(Clone, Copy, Debug)]
pub struct Judged<'a> {
    /// Of all evidence: what a limit is about.
    pub all: PerSide<&'a Span>,
    /// Of users whom the hash or chance placed: what a comparison is about.
    pub compared: PerSide<&'a Span>,
}

impl<'a> Judged<'a> {
    /// All users are compared.
    pub fn of(spans: PerSide<&'a Span>) -> Self {
        Self {
            all: spans,
            compared: spans,
        }
    }

    fn for_rule(&self, rule: Rule) -> PerSide<&'a Span> {
        if rule.compares() {
            self.compared
        } else {
            self.all
        }
    }
}

/// The rules of one rollout over the spans of its two sides.
#[derive(Clone, Copy, Debug)]
pub struct Guard<'a> {
    settings: &'a GuardSettings,
}

impl<'a> Guard<'a> {
    /// A guard with these settings.
    pub fn new(settings: &'a GuardSettings) -> Self {
        Self { settings }
    }

    /// The first rule in file order that is breached, without building sentences for the others.
    /// This is what runs at each tick.
    pub fn breach(&self, judged: Judged<'_>) -> Option<Verdict> {
        self.rules()
            .find(|&rule| self.answer(rule, judged.for_rule(rule)) == Answer::Breach)
            .map(|rule| self.verdict(rule, judged.for_rule(rule)))
    }

    /// What every rule says, for people.
    pub fn verdicts(&self, judged: Judged<'_>) -> Vec<Verdict> {
        self.rules()
            .map(|rule| self.verdict(rule, judged.for_rule(rule)))
            .collect()
    }

    fn rules(&self) -> impl Iterator<Item = Rule> + 'a {
        let rules: &'a [Rule] = match self.settings.mode {
            Mode::Threshold => &self.settings.rules,
            Mode::Sequential | Mode::Off => &[],
        };
        rules.iter().copied().filter(|rule| !rule.is_immediate())
    }

    fn answer(&self, rule: Rule, spans: PerSide<&Span>) -> Answer {
        if self.missing(rule, spans).is_some() {
            Answer::Inconclusive
        } else if rule.is_breached_by(spans) {
            Answer::Breach
        } else {
            Answer::Pass
        }
    }

    /// The side that has too few requests for this rule, and how many it has.
    fn missing(&self, rule: Rule, spans: PerSide<&Span>) -> Option<(Side, u64)> {
        let base = |side: Side| match rule {
            Rule::AbortsVsLegacy(_) => spans[side].counts.requests + spans[side].counts.aborts,
            Rule::Latency(..) | Rule::LatencyVsLegacy(_) => spans[side].latencies.total(),
            _ => spans[side].counts.requests,
        };
        // Zero requests say nothing even where the file asks for none.
        let too_few = |side: &Side| base(*side) < self.settings.min_requests.max(1);
        let sides = if rule.needs_legacy() {
            &[Side::New, Side::Legacy][..]
        } else {
            &[Side::New][..]
        };
        sides
            .iter()
            .find(|side| too_few(side))
            .map(|&side| (side, base(side)))
    }

    fn verdict(&self, rule: Rule, spans: PerSide<&Span>) -> Verdict {
        let answer = self.answer(rule, spans);
        let window = seconds(self.settings.window);
        let sentence = match self.missing(rule, spans) {
            Some((side, have)) => format!(
                "not enough data: {have} of {} requests on {side} in the last {window}",
                self.settings.min_requests.max(1)
            ),
            None => format!("{}, in the last {window}", rule.describe(spans)),
        };
        Verdict {
            rule,
            answer,
            sentence,
            evidence_log10: None,
            progress: None,
            users_progress: None,
        }
    }
}

/// `events / total` as a percentage for people.
pub fn share(events: u64, total: u64) -> String {
    if total == 0 {
        return "no requests".to_owned();
    }
    let percent = events as f64 * 100.0 / total as f64;
    let text = format!("{percent:.2}");
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}

/// Microseconds as a latency for people.
pub fn millis(us: u64) -> String {
    match us {
        0..=999 => format!("{us} us"),
        1_000..=9_999 => format!("{:.1} ms", us as f64 / 1e3),
        10_000..=9_999_999 => format!("{} ms", us / 1_000),
        _ => format!("{} s", us / 1_000_000),
    }
}

fn millis_or_none(us: Option<u64>) -> String {
    us.map_or_else(|| "unknown".to_owned(), millis)
}

/// A duration for people, `10 s` or `250 ms`.
pub fn seconds(duration: Duration) -> String {
    Seconds(duration).to_string()
}

struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_millis() {
            millis if millis % 1_000 == 0 => write!(f, "{} s", millis / 1_000),
            millis => write!(f, "{millis} ms"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::outcome::{Ending, FailureKind, Outcome};
    use crate::stats::window::{Totals, Window};
    use crate::time::Mono;

    /// A span of `total` requests of which `failed` failed and `client_errors` were 4xx, all at
    /// `latency_us`.
    fn span(total: u64, failed: u64, client_errors: u64, latency_us: u64) -> Span {
        let mut totals = Totals::default();
        let mut window = Window::new(Duration::from_secs(10));
        window.tick(Mono::default(), &totals);
        for i in 0..total {
            let outcome = if i < failed {
                Outcome::Failure(FailureKind::Status)
            } else if i < failed + client_errors {
                Outcome::ClientError
            } else {
                Outcome::Success
            };
            totals.record(
                &Ending {
                    outcome,
                    status: None,
                    latency_us: Some(latency_us),
                    evidence: crate::stats::outcome::Evidence::Compared,
                },
                crate::stats::users::Counted::default(),
            );
        }
        window.tick(Mono::from_micros(1), &totals);
        window.span().clone()
    }

    fn settings(rule: Rule) -> GuardSettings {
        GuardSettings {
            mode: Mode::Threshold,
            min_requests: 50,
            window: Duration::from_secs(10),
            rules: vec![rule],
            ..GuardSettings::default()
        }
    }

    fn check(rule: Rule, legacy: &Span, new: &Span, answer: Answer) -> String {
        let settings = settings(rule);
        let verdict = Guard::new(&settings)
            .verdicts(Judged::of(PerSide { legacy, new }))
            .remove(0);
        assert_eq!(verdict.answer, answer, "{}", verdict.sentence);
        assert_eq!(
            Guard::new(&settings)
                .breach(Judged::of(PerSide { legacy, new }))
                .is_some(),
            answer == Answer::Breach
        );
        verdict.sentence
    }

    fn ratio(text: &str) -> Ratio {
        Ratio::parse(text).expect("a ratio")
    }

    #[test]
    fn an_error_rate_at_the_limit_passes_and_one_more_breaches() {
        let rule = Rule::ErrorsMax(Rate::from_ppm(10_000).expect("a rate"));
        let legacy = span(1000, 0, 0, 10);
        check(rule, &legacy, &span(200, 2, 0, 10), Answer::Pass);
        let sentence = check(rule, &legacy, &span(200, 3, 0, 10), Answer::Breach);
        assert_eq!(
            sentence,
            "new failed 3 of 200 requests (1.5 %), limit 1 %; legacy 0 of 1000 (0 %), in the last \
             10 s"
        );
    }

    #[test]
    fn fewer_requests_than_asked_for_say_nothing() {
        let rule = Rule::ErrorsMax(Rate::from_ppm(10_000).expect("a rate"));
        let sentence = check(
            rule,
            &span(0, 0, 0, 1),
            &span(49, 49, 0, 10),
            Answer::Inconclusive,
        );
        assert_eq!(
            sentence,
            "not enough data: 49 of 50 requests on new in the last 10 s"
        );
        check(
            rule,
            &span(0, 0, 0, 1),
            &span(50, 50, 0, 10),
            Answer::Breach,
        );
    }

    #[test]
    fn no_requests_at_all_never_breach_even_with_a_minimum_of_zero() {
        let settings = GuardSettings {
            min_requests: 0,
            ..settings(Rule::ErrorsMax(Rate::from_ppm(0).expect("a rate")))
        };
        let nothing = span(0, 0, 0, 1);
        assert_eq!(
            Guard::new(&settings).breach(Judged::of(PerSide {
                legacy: &nothing,
                new: &nothing
            })),
            None
        );
    }

    #[test]
    fn a_comparison_needs_both_sides() {
        let rule = Rule::ErrorsVsLegacy(ratio("2"));
        check(
            rule,
            &span(49, 0, 0, 10),
            &span(500, 500, 0, 10),
            Answer::Inconclusive,
        );
        check(
            rule,
            &span(100, 5, 0, 10),
            &span(100, 10, 0, 10),
            Answer::Pass,
        );
        check(
            rule,
            &span(100, 5, 0, 10),
            &span(100, 11, 0, 10),
            Answer::Breach,
        );
        check(
            Rule::ClientErrorsVsLegacy(ratio("2")),
            &span(100, 0, 5, 10),
            &span(100, 0, 11, 10),
            Answer::Breach,
        );
    }

    #[test]
    fn a_handful_of_requests_made_on_purpose_does_not_decide_a_comparison() {
        let rule = Rule::ClientErrorsVsLegacy(ratio("2"));
        check(
            rule,
            &span(500, 0, 0, 10),
            &span(500, 0, MIN_COMPARED_EVENTS - 1, 10),
            Answer::Pass,
        );
        check(
            rule,
            &span(500, 0, 0, 10),
            &span(500, 0, MIN_COMPARED_EVENTS, 10),
            Answer::Breach,
        );
    }

    #[test]
    fn a_latency_exactly_at_its_limit_passes() {
        for point in [
            LatencyPoint::P50,
            LatencyPoint::P95,
            LatencyPoint::P99,
            LatencyPoint::Mean,
        ] {
            check(
                Rule::Latency(point, 800_000),
                &span(0, 0, 0, 1),
                &span(100, 0, 0, 800_000),
                Answer::Pass,
            );
            check(
                Rule::Latency(point, 800_000),
                &span(0, 0, 0, 1),
                &span(100, 0, 0, 810_000),
                Answer::Breach,
            );
        }
    }

    #[test]
    fn latency_is_compared_with_legacys_of_the_same_seconds() {
        let rule = Rule::LatencyVsLegacy(ratio("1.5"));
        check(
            rule,
            &span(100, 0, 0, 100_000),
            &span(100, 0, 0, 149_000),
            Answer::Pass,
        );
        let sentence = check(
            rule,
            &span(100, 0, 0, 100_000),
            &span(100, 0, 0, 160_000),
            Answer::Breach,
        );
        assert_eq!(
            sentence,
            "new's p95 is 160 ms over 100 requests, limit 1.5 times legacy's 100 ms over 100, in \
             the last 10 s"
        );
    }

    #[test]
    fn a_guard_that_is_off_has_no_verdicts() {
        let settings = GuardSettings {
            mode: Mode::Off,
            ..GuardSettings::default()
        };
        let (legacy, new) = (span(1000, 0, 0, 1), span(1000, 1000, 0, 1));
        assert_eq!(
            Guard::new(&settings).breach(Judged::of(PerSide {
                legacy: &legacy,
                new: &new
            })),
            None
        );
        assert!(
            Guard::new(&settings)
                .verdicts(Judged::of(PerSide {
                    legacy: &legacy,
                    new: &new
                }))
                .is_empty()
        );
    }
}
