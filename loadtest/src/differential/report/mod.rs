//! The result of a run: counters, rules with their counts, and differences that no rule explains.

pub mod show;

use crate::differential::case::Case;
use crate::differential::client::Outcome;
use crate::differential::compare::Observation;
use crate::differential::engine::Counted;
use crate::differential::rules::Rule;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// The most differences of one kind whose conversations are kept.
const MOST_OF_A_KIND: usize = 3;
/// The most kinds that are kept individually.
const MOST_KINDS: usize = 200;

/// The most slow cases whose numbers are kept.
const MOST_SLOW: usize = 30;

/// The counters of a run in progress.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tally {
    /// The number of cases that were played through both engines.
    pub cases: u64,
    /// The number of requests in these cases.
    pub requests: u64,
    /// The answers that the clients of the reference received, by the class of the status or by
    /// the reason why there was none.
    pub answers: BTreeMap<&'static str, u64>,
    /// The number of cases that took longer than half a second.
    pub slow: u64,
    /// The numbers of the first slow cases.
    pub slow_examples: Vec<u64>,
    /// The number of differences that each rule explained.
    #[serde(skip)]
    pub rules: BTreeMap<Rule, u64>,
    /// The differences that no rule explains, by kind.
    pub unexplained: BTreeMap<String, Kind>,
    /// The differences that did not recur, by kind.
    pub unrepeated: BTreeMap<String, Kind>,
}

/// The differences of one kind.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Kind {
    /// The number of cases with a difference of this kind.
    pub cases: u64,
    /// The first examples of this kind.
    pub examples: Vec<Example>,
}

/// One case with a difference.
#[derive(Clone, Debug, Serialize)]
pub struct Example {
    /// The number of the case.
    pub case: u64,
    /// The conversations: what was sent and received.
    pub text: String,
}

/// The report of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The seed of the run.
    pub seed: u64,
    /// The names of the engines, the reference first.
    pub engines: [String; 2],
    /// The counters of the run.
    pub tally: Tally,
    /// The rules that were needed, with their counts.
    pub rules: Vec<RuleCount>,
    /// The metrics of each process.
    pub counted: [Counted; 2],
    /// The duration of the run, in seconds.
    pub seconds: f64,
}

/// A rule that was needed.
#[derive(Clone, Debug, Serialize)]
pub struct RuleCount {
    /// The name of the rule.
    pub name: &'static str,
    /// The number of differences that the rule explains.
    pub differences: u64,
    /// Why the rule allows these differences.
    pub sentence: &'static str,
}

impl Tally {
    /// Counts a case.
    pub fn count(&mut self, case: &Case, reference: &Observation, took: Duration) {
        self.cases += 1;
        self.requests += case.requests.len() as u64;
        if took > Duration::from_millis(500) {
            self.slow += 1;
            if self.slow_examples.len() < MOST_SLOW {
                self.slow_examples.push(case.number);
            }
        }
        for reply in &reference.client.replies {
            let class = match reply.outcome {
                Outcome::Answered => match reply.head.status() {
                    101 => "101",
                    200..=299 => "2xx",
                    300..=399 => "3xx",
                    400..=499 => "4xx",
                    500..=599 => "5xx",
                    _ => "other",
                },
                Outcome::Closed | Outcome::HalfAHead => "closed",
                Outcome::Silent => "silent",
                Outcome::NotSent => "not sent",
            };
            *self.answers.entry(class).or_default() += 1;
        }
    }

    /// Counts a difference that this rule explains.
    pub fn explain(&mut self, rule: Rule) {
        *self.rules.entry(rule).or_default() += 1;
    }
}

/// Returns whether the conversation of another difference of this kind is still wanted.
pub fn wants_example(kinds: &BTreeMap<String, Kind>, kind: &str) -> bool {
    match kinds.get(kind) {
        Some(known) => known.examples.len() < MOST_OF_A_KIND,
        None => kinds.len() < MOST_KINDS,
    }
}

/// Counts a difference of this kind.
pub fn record(kinds: &mut BTreeMap<String, Kind>, kind: String, example: Option<Example>) {
    let kind = if kinds.len() < MOST_KINDS || kinds.contains_key(&kind) {
        kind
    } else {
        "others".to_owned()
    };
    let known = kinds.entry(kind).or_default();
    known.cases += 1;
    known.examples.extend(example);
}

impl Report {
    /// Creates a report from the counters.
    pub fn new(
        seed: u64,
        engines: [String; 2],
        tally: Tally,
        counted: [Counted; 2],
        took: Duration,
    ) -> Self {
        let rules = Rule::ALL
            .iter()
            .filter_map(|rule| {
                tally.rules.get(rule).map(|&differences| RuleCount {
                    name: rule.name(),
                    differences,
                    sentence: rule.sentence(),
                })
            })
            .collect();
        Self {
            seed,
            engines,
            tally,
            rules,
            counted,
            seconds: took.as_secs_f64(),
        }
    }

    fn slow_ones(&self) -> String {
        match self.tally.slow_examples.as_slice() {
            [] => String::new(),
            some => format!(
                ", such as {}",
                some.iter()
                    .take(5)
                    .map(u64::to_string)
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        }
    }

    /// Returns the number of cases that no rule explains.
    pub fn unexplained(&self) -> u64 {
        self.tally.unexplained.values().map(|kind| kind.cases).sum()
    }

    /// Returns the number of differences that did not recur.
    pub fn unrepeated(&self) -> u64 {
        self.tally.unrepeated.values().map(|kind| kind.cases).sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally {
            cases,
            requests,
            answers,
            slow,
            unexplained,
            unrepeated,
            ..
        } = &self.tally;
        writeln!(
            formatter,
            "{:<14}{} and {}, seed {}",
            "engines", self.engines[0], self.engines[1], self.seed
        )?;
        writeln!(
            formatter,
            "{:<14}{cases} in {:.1} s, {:.0} per second; {slow} took longer than half a second{}",
            "cases",
            self.seconds,
            *cases as f64 / self.seconds.max(0.001),
            self.slow_ones()
        )?;
        writeln!(
            formatter,
            "{:<14}{requests}: {}",
            "requests",
            answers
                .iter()
                .map(|(class, count)| format!("{class} {count}"))
                .collect::<Vec<_>>()
                .join(", ")
        )?;
        for (name, counted) in self.engines.iter().zip(&self.counted) {
            writeln!(
                formatter,
                "{:<14}{} requests counted by the process",
                name, counted.requests
            )?;
            for (sample, value) in &counted.lane {
                writeln!(formatter, "{:<14}{sample} {value}", "")?;
            }
        }
        for RuleCount {
            name,
            differences,
            sentence,
        } in &self.rules
        {
            writeln!(
                formatter,
                "{:<14}{name}: {differences} ({sentence})",
                "rule"
            )?;
        }
        for (title, kinds) in [("unrepeated", unrepeated), ("unexplained", unexplained)] {
            for (kind, Kind { cases, examples }) in kinds {
                writeln!(
                    formatter,
                    "{title:<14}{cases} cases: {kind}; such as {}",
                    examples
                        .iter()
                        .map(|example| example.case.to_string())
                        .collect::<Vec<_>>()
                        .join(", ")
                )?;
            }
        }
        writeln!(
            formatter,
            "{:<14}{} unexplained, {} unrepeated",
            "differences",
            self.unexplained(),
            self.unrepeated()
        )
    }
}
