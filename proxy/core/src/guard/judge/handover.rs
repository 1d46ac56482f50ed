//! The evidence that a process hands over to its successor.

use super::Judge;
use super::rules::most_at_once;
use crate::guard::detector::{Detector, Test};
use crate::guard::judge::rules::{Part, RuleState, key_of};
use crate::time::Mono;

/// The state of a judge, for another process that continues it. Times are those of the clock that
/// both processes share.
///
/// Left out: the affected users and the users that new serves, because each process hashes users
/// with a key of its own; and the windows of the last minute.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Handover {
    /// The evidence of each rule, keyed by the rule with its limits: evidence about another limit
    /// does not count.
    pub rules: Vec<(String, Vec<PartHandover>)>,
    /// The time from which the sides are compared.
    pub compares_from: Option<Mono>,
    /// The time from which latencies are compared.
    pub warm_until: Option<Mono>,
    /// Legacy's known rates over the last hours, keyed by the rule with its limits: the end of
    /// each block, and the rate in it.
    pub ever: Vec<(String, Vec<(Mono, f64)>)>,
    /// Whether there was no legacy to compare with.
    pub alone: bool,
}

/// The evidence of one part of a rule.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PartHandover {
    /// The numbers of the detector, as returned by [`Detector::numbers`].
    pub evidence: Vec<f64>,
    /// The limit and the evidence of the substitute that is used while there is no legacy. `None`
    /// if it is not in use.
    pub alone: Option<(f64, Vec<f64>)>,
}

impl Judge {
    /// Returns the judge's state, for another process.
    pub fn handover(&self) -> Handover {
        let part = |part: &Part| PartHandover {
            evidence: part.detector.numbers(),
            alone: part.alone.as_ref().and_then(|alone| match alone.test() {
                Test::Absolute { limit, .. } => Some((*limit, alone.numbers())),
                Test::Relative { .. } | Test::Mean { .. } | Test::MeanVsLegacy { .. } => None,
            }),
        };
        let rules = self
            .rules
            .iter()
            .map(|state| (key_of(state.rule), state.parts.iter().map(part).collect()))
            .collect();
        let known = |state: &RuleState| {
            Some((
                key_of(state.rule),
                state.parts.first()?.limit.as_ref()?.1.known(),
            ))
        };
        let ever = self.rules.iter().filter_map(known).collect();
        Handover {
            rules,
            compares_from: self.compares_from,
            warm_until: self.warm_until,
            ever,
            alone: self.alone,
        }
    }

    /// Continues from the state of another process. Only valid for a judge that has not recorded
    /// anything.
    pub fn inherit(&mut self, handover: &Handover, now: Mono) {
        self.compares_from = handover.compares_from;
        self.warm_until = handover.warm_until;
        self.alone = handover.alone;
        // Legacy has not been observed for a while, so it must be observed first.
        self.legacy_seen = handover.alone.then(Mono::default);
        for state in &mut self.rules {
            let key = key_of(state.rule);
            let known = handover.ever.iter().find(|(rule, _)| *rule == key);
            if let (Some((_, known)), Some((_, ever))) = (
                known,
                state.parts.first_mut().and_then(|part| part.limit.as_mut()),
            ) {
                ever.take_up(known);
                // The evidence that follows concerns the limit that was in force in the other
                // process.
                state.parts[0].follow_legacy((0, 0), false, self.share, self.raised_at, now);
            }
            let Some((_, parts)) = handover
                .rules
                .iter()
                .find(|(rule, parts)| *rule == key && parts.len() == state.parts.len())
            else {
                continue;
            };
            for (part, handover) in state.parts.iter_mut().zip(parts) {
                part.detector.take_up(&handover.evidence);
                part.alone = handover.alone.as_ref().map(|(limit, evidence)| {
                    let mut alone = Detector::new(Test::absolute(*limit), now)
                        .at_most(most_at_once(state.rule, self.log_threshold));
                    alone.take_up(evidence);
                    alone
                });
            }
        }
    }
}
