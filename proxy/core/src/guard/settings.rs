//! What the file says about the guard.

use super::rule::{Rule, SharedCause};
use crate::percent::{Rate, Ratio};
use std::time::Duration;

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
