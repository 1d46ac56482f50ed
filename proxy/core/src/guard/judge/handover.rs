//! The evidence that a process hands over to the one that takes over.

use super::Judge;
use super::rules::most_at_once;
use crate::guard::detector::{Detector, Test};
use crate::guard::judge::rules::{Part, RuleState, key_of};
use crate::time::Mono;

/// What a judge knows, for another process that goes on with it. Times are those of the clock that
/// both share.
///
/// Left out: who was hurt and whom new serves, since each process hashes users with a key of its
/// own; and the windows of the last minute.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Handover {
    /// The evidence of each rule, by the rule with its limits: evidence on another limit is none.
    pub rules: Vec<(String, Vec<PartHandover>)>,
    /// Sides are compared from then on.
    pub compares_from: Option<Mono>,
    /// Latencies are compared from then on.
    pub warm_until: Option<Mono>,
    /// What is known of legacy's rates over the last hours, by the rule with its limits: when each
    /// block ended, and the rate in it.
    pub ever: Vec<(String, Vec<(Mono, f64)>)>,
    /// Whether there was no legacy to compare with.
    pub alone: bool,
}

/// The evidence of one part of a rule.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PartHandover {
    /// [`Detector::numbers`].
    pub evidence: Vec<f64>,
    /// The limit, and the evidence, of what stands in while there is no legacy.
    pub alone: Option<(f64, Vec<f64>)>,
}

impl Judge {
    /// What it knows, for another process.
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

    /// Goes on with what another process knew. Only for a judge that has seen nothing.
    pub fn inherit(&mut self, handover: &Handover, now: Mono) {
        self.compares_from = handover.compares_from;
        self.warm_until = handover.warm_until;
        self.alone = handover.alone;
        // Nobody has seen legacy for a while: it has to come first.
        self.legacy_seen = handover.alone.then(Mono::default);
        for state in &mut self.rules {
            let key = key_of(state.rule);
            let known = handover.ever.iter().find(|(rule, _)| *rule == key);
            if let (Some((_, known)), Some((_, ever))) = (
                known,
                state.parts.first_mut().and_then(|part| part.limit.as_mut()),
            ) {
                ever.take_up(known);
                // The evidence that follows is on the limit that was in force there.
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
