//! The guard by plain thresholds over a window.

use super::rule::Rule;
use super::settings::{GuardSettings, Mode};
use super::wording::seconds;
use super::{Answer, Verdict};
use crate::side::{PerSide, Side};
use crate::stats::window::Span;

/// The rules of one rollout over the spans of its two sides.
#[derive(Clone, Copy, Debug)]
pub struct Guard<'a> {
    pub(super) settings: &'a GuardSettings,
}

impl<'a> Guard<'a> {
    /// Creates a guard with these settings.
    pub fn new(settings: &'a GuardSettings) -> Self {
        Self { settings }
    }

    /// Returns the first rule in file order that is breached, without building sentences for the
    /// others. This function runs at each tick.
    pub fn breach(&self, judged: Judged<'_>) -> Option<Verdict> {
        self.rules()
            .find(|&rule| self.answer(rule, judged.for_rule(rule)) == Answer::Breach)
            .map(|rule| self.verdict(rule, judged.for_rule(rule)))
    }

    /// Returns the verdict of every rule, for people.
    pub fn verdicts(&self, judged: Judged<'_>) -> Vec<Verdict> {
        self.rules()
            .map(|rule| self.verdict(rule, judged.for_rule(rule)))
            .collect()
    }

    pub(super) fn rules(&self) -> impl Iterator<Item = Rule> + 'a {
        let rules: &'a [Rule] = match self.settings.mode {
            Mode::Threshold => &self.settings.rules,
            Mode::Sequential | Mode::Off => &[],
        };
        rules.iter().copied().filter(|rule| !rule.is_immediate())
    }

    pub(super) fn answer(&self, rule: Rule, spans: PerSide<&Span>) -> Answer {
        if self.missing(rule, spans).is_some() {
            Answer::Inconclusive
        } else if rule.is_breached_by(spans) {
            Answer::Breach
        } else {
            Answer::Pass
        }
    }

    /// Returns the side that has too few requests for this rule, and its number of requests.
    pub(super) fn missing(&self, rule: Rule, spans: PerSide<&Span>) -> Option<(Side, u64)> {
        let base = |side: Side| match rule {
            Rule::AbortsVsLegacy(_) => spans[side].counts.requests + spans[side].counts.aborts,
            Rule::Latency(..) | Rule::LatencyVsLegacy(_) => spans[side].latencies.total(),
            _ => spans[side].counts.requests,
        };
        // Zero requests are inconclusive even where the file requires no minimum.
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

    pub(super) fn verdict(&self, rule: Rule, spans: PerSide<&Span>) -> Verdict {
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

/// The spans that rules evaluate.
#[derive(Clone, Copy, Debug)]
pub struct Judged<'a> {
    /// The span over all evidence, which a limit applies to.
    pub all: PerSide<&'a Span>,
    /// The span of users whom the hash or chance placed, which a comparison applies to.
    pub compared: PerSide<&'a Span>,
}

impl<'a> Judged<'a> {
    /// Creates the spans for the case that all users are compared.
    pub fn of(spans: PerSide<&'a Span>) -> Self {
        Self {
            all: spans,
            compared: spans,
        }
    }

    pub(super) fn for_rule(&self, rule: Rule) -> PerSide<&'a Span> {
        if rule.compares() {
            self.compared
        } else {
            self.all
        }
    }
}
