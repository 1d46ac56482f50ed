//! The settings of the guard from the file.

use super::rule::{Rule, SharedCause};
use crate::percent::{Rate, Ratio};
use std::time::Duration;

/// The way in which the guard judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// A sequential test per rule: see [`crate::guard::judge`].
    Sequential,
    /// Rules over a window.
    Threshold,
    /// No judging. Only people roll back.
    Off,
}

impl Mode {
    /// Returns the name used in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sequential => "sequential",
            Self::Threshold => "threshold",
            Self::Off => "off",
        }
    }
}

/// The guard of one rollout, as the file defines it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardSettings {
    /// The mode of judging.
    pub mode: Mode,
    /// Whether the guard judges and reports, but never rolls back.
    pub dry_run: bool,
    /// The period that a rule evaluates. Threshold mode only.
    pub window: Duration,
    /// The minimum number of requests on new within the window for a verdict. Threshold mode only.
    pub min_requests: u64,
    /// The conditions. Each one is sufficient by itself.
    pub rules: Vec<Rule>,
    /// The number of users who must be affected before a rule may trip, but never more than new
    /// has served lately. `1..=1000`.
    pub min_users: u32,
    /// The minimum mean time between rollbacks of a healthy backend, over all sequential rules
    /// together.
    pub false_alarm_every: Duration,
    /// The reaction when both sides are bad at the same time.
    pub shared_cause: SharedCause,
    /// How long latencies are not compared after a raise that brings new users, while caches fill
    /// and connections open. At most an hour.
    pub warm_up: Duration,
    /// The response header in which a backend declares the outcome of an answer, in lower case.
    /// `None` if there is none.
    pub outcome_header: Option<Box<str>>,
}

impl GuardSettings {
    /// Returns the rules of a sequential guard for which the file has no other rules.
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

    /// Returns the share of requests that may hang, which equals the share that may fail.
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

    /// Returns the number of rules that collect evidence, and so share the budget of false alarms.
    pub fn gathering(&self) -> usize {
        self.rules
            .iter()
            .filter(|rule| self.judges(**rule) && !matches!(rule, Rule::Health(_) | Rule::Dead(_)))
            .count()
            .max(1)
    }

    /// Returns the rule of this name, if the guard has it.
    pub fn rule(&self, name: &str) -> Option<Rule> {
        self.rules.iter().copied().find(|rule| rule.name() == name)
    }
}

impl Default for GuardSettings {
    /// Returns the settings of a rollout without a guard section.
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
