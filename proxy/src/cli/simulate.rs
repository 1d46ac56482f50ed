//! `cutover simulate`: what the guard of a file would do, without a proxy and without waiting.
//!
//! With `--fault` the real engine runs on virtual time, with made-up traffic from a seed. With
//! `--replay` it judges recorded numbers, so that another policy can be tried on last week. These
//! are the minute before each rollback in a journal, or the lines of `cutover status --watch
//! --json`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use cutover_config::{Settings, parse_duration};
use cutover_core::control::plane::Change;
use cutover_core::simulation::{Fault, FaultKind, Scenario, Traffic, World, notice};
use cutover_core::{Percent, Rate, RolloutSettings, Side};
use serde_json::json;

use crate::cli::replay;
use crate::cli::{Failed, file, out};

/// Arguments of `cutover simulate`
#[derive(Debug, clap::Args)]
pub(super) struct Simulate {
    /// The file whose guard is simulated
    file: PathBuf,
    /// The rollout in the file; by default the first one
    #[arg(long)]
    rollout: Option<String>,
    /// Requests per second over both sides
    #[arg(long, default_value_t = 100.0, allow_negative_numbers = true, value_parser = crate::cli::rps)]
    rps: f64,
    /// The share of users on new; by default that of the file
    #[arg(long, allow_negative_numbers = true, value_parser = percent)]
    percent: Option<Percent>,
    /// A fault: `SIDE KIND [AMOUNT] [at TIME] [for TIME]` with SIDE new, legacy or both and KIND
    /// errors 5%, users 5% (who get only errors), refused, hang, slow 3, tail 4% 75 (4% of
    /// requests are 75 times slower), 4xx 20%, redirects 100% (of users, in loops) or down. It
    /// starts at 1m and lasts to the end by default; may be given several times
    #[arg(long = "fault", value_name = "FAULT", value_parser = fault)]
    faults: Vec<Fault>,
    /// How long to simulate
    #[arg(long = "for", default_value = "10m", value_parser = duration, value_name = "TIME")]
    lasts: Duration,
    /// The number of users
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    users: u32,
    /// The number of client networks that users belong to
    #[arg(long, default_value_t = 2_500, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    networks: u32,
    /// The share of requests that fail on a healthy backend
    #[arg(long, default_value = "0.1%", value_parser = rate)]
    errors: f64,
    /// The median latency of a healthy backend
    #[arg(long, default_value = "40ms", value_parser = duration)]
    latency: Duration,
    /// The share of users who always get 4xx on either side, because of expired tokens or broken
    /// scripts
    #[arg(long, default_value = "0%", value_parser = rate)]
    persistent: f64,
    /// The share of users who are twenty times slower than the others, on either side
    #[arg(long, default_value = "0%", value_parser = rate)]
    slow_users: f64,
    /// The share of requests without a user key, which are quick and always on legacy
    #[arg(long, default_value = "0%", value_parser = rate)]
    keyless: f64,
    /// The share of requests that are long polls, answered after 14 s
    #[arg(long, default_value = "0%", value_parser = rate)]
    polls: f64,
    /// Let few users send most requests, instead of all users equally many
    #[arg(long)]
    uneven: bool,
    /// The drop of traffic at night, such as 80%; the simulation begins at midnight
    #[arg(long, default_value = "0%", value_parser = rate)]
    night: f64,
    /// A raise of the share during the simulation: PERCENT at TIME
    #[arg(long, value_name = "RAISE", value_parser = raise)]
    raise: Option<(Percent, Duration)>,
    /// How long new warms up after a raise, instead of the file's guard.warm_up
    #[arg(long, value_parser = duration, value_name = "TIME")]
    warm_up: Option<Duration>,
    /// The seed of all random numbers; the same seed gives the same result
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Simulate this many times, with seeds from --seed on, and print how long the first fault
    /// took to be detected
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    runs: Option<u32>,
    /// Judge recorded numbers instead: a journal.jsonl, or the lines of `cutover status --watch
    /// --json`; may be given several times
    #[arg(long, value_name = "RECORDING", conflicts_with_all = ["faults", "runs"])]
    replay: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The longest time that can be simulated, so that a mistyped time still ends.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

fn percent(text: &str) -> Result<Percent, String> {
    Percent::parse(text.trim_end_matches('%').trim_end())
        .map_err(|error| format!("expected a number from 0 to 100: {error}"))
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text)
}

fn rate(text: &str) -> Result<f64, String> {
    Rate::parse(text)
        .map(Rate::fraction)
        .map_err(|error| format!("expected a share such as 5%: {error}"))
}

fn factor(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|factor: &f64| *factor >= 1.0 && *factor <= 1e6)
        .ok_or_else(|| format!("expected a factor from 1 on, found {text:?}"))
}

/// Parses a raise such as `25 at 10m`.
fn raise(text: &str) -> Result<(Percent, Duration), String> {
    let (share, at) = text.split_once(" at ").ok_or_else(|| {
        format!("expected PERCENT at TIME, such as \"25 at 10m\", found {text:?}")
    })?;
    Ok((percent(share.trim())?, parse_duration(at.trim())?))
}

/// Parses a fault as it is written on the command line.
fn fault(text: &str) -> Result<Fault, String> {
    let mut words = text.split_whitespace();
    let side = match words.next() {
        Some("new") => Some(Side::New),
        Some("legacy") => Some(Side::Legacy),
        Some("both") => None,
        other => {
            return Err(format!(
                "begins with new, legacy or both, found {:?}",
                other.unwrap_or_default()
            ));
        }
    };
    let mut amount = |what: &str| words.next().ok_or_else(|| format!("{what} is missing"));
    let kind = match amount("what goes wrong")? {
        "errors" => FaultKind::Errors(rate(amount("the share of errors, such as errors 5%,")?)?),
        "4xx" => FaultKind::ClientErrors(rate(amount("the share of 4xx, such as 4xx 20%,")?)?),
        "slow" => FaultKind::Slow(factor(amount("how many times slower, such as slow 3,")?)?),
        "users" => FaultKind::ErrorsOfUsers(rate(amount(
            "the share of users who get errors, such as users 5%,",
        )?)?),
        "redirects" => FaultKind::Redirects(rate(amount(
            "the share of users in circles, such as redirects 100%,",
        )?)?),
        "tail" => {
            let share = rate(amount("the share of slow requests, such as tail 4% 75,")?)?;
            FaultKind::Tail(
                share,
                factor(amount("how many times slower, such as tail 4% 75,")?)?,
            )
        }
        "refused" => FaultKind::Refused,
        "hang" => FaultKind::Hang,
        "down" => FaultKind::NoServer,
        other => {
            return Err(format!(
                "expected errors, users, refused, hang, slow, tail, 4xx, redirects or down, found \
                 {other:?}"
            ));
        }
    };
    let (mut from, mut lasts) = (Duration::from_secs(60), Duration::MAX);
    while let Some(word) = words.next() {
        let time = words
            .next()
            .ok_or_else(|| format!("a time such as 5m is missing after {word:?}"))?;
        match word {
            "at" => from = parse_duration(time)?,
            "for" => lasts = parse_duration(time)?,
            other => return Err(format!("expected at TIME or for TIME, found {other:?}")),
        }
    }
    Ok(Fault {
        side,
        kind,
        from,
        lasts,
    })
}

impl Simulate {
    pub(super) fn run(self) -> Result<ExitCode, Failed> {
        let settings = file::load(&self.file)?;
        let mut rollout = self.pick(&settings)?;
        if let Some(percent) = self.percent {
            rollout.percent = percent;
        }
        if !self.replay.is_empty() {
            return self.replay(&rollout);
        }
        if self.lasts > LONGEST {
            return Err(Failed::usage("--for: at most 7d are simulated at once"));
        }
        let timeout = settings
            .backends
            .iter()
            .find(|backend| backend.name == rollout.backends.new)
            .map_or(Duration::from_secs(30), |backend| backend.response_timeout);
        if let Some(late) = self.faults.iter().find(|fault| fault.from >= self.lasts) {
            return Err(Failed::usage(format!(
                "--fault: a fault begins at {:?}, but only {:?} are simulated",
                late.from, self.lasts
            ))
            .hint("give a longer --for, or an earlier `at TIME`"));
        }
        if let Some(warm_up) = self.warm_up {
            rollout.guard.warm_up = warm_up;
        }
        let traffic = Traffic {
            rps: self.rps,
            users: self.users,
            networks: self.networks,
            errors: self.errors,
            median_us: self.latency.as_micros() as f64,
            is_uneven: self.uneven,
            persistent: self.persistent,
            slow_users: self.slow_users,
            keyless: self.keyless,
            polls: self.polls,
            night: self.night,
            ..Traffic::default()
        };
        let scenario = Scenario {
            settings: rollout,
            traffic,
            faults: self.faults.clone(),
            seed: self.seed,
            between_ticks: true,
            timeout,
        };
        match self.runs {
            Some(runs) => self.many(scenario, runs),
            None => self.story(scenario),
        }
    }

    fn pick(&self, settings: &Settings) -> Result<RolloutSettings, Failed> {
        let found = match &self.rollout {
            Some(id) => settings.rollouts.iter().find(|rollout| *rollout.id == **id),
            None => settings.rollouts.first(),
        };
        found.cloned().ok_or_else(|| {
            let ids: Vec<&str> = settings
                .rollouts
                .iter()
                .map(|rollout| &*rollout.id)
                .collect();
            Failed::usage(format!(
                "no rollout has the id {:?}; there are: {}",
                self.rollout.as_deref().unwrap_or_default(),
                ids.join(", ")
            ))
        })
    }

    /// Runs one simulation and prints everything that is announced.
    fn story(&self, scenario: Scenario) -> Result<ExitCode, Failed> {
        let settings = scenario.settings.clone();
        let mut world = World::new(scenario);
        let mut events = Vec::new();
        let mut rollbacks = 0;
        let mut raise = self.raise;
        while world.elapsed() < self.lasts {
            let raised = raise
                .take_if(|(_, at)| world.elapsed() >= *at)
                .map(|(percent, _)| {
                    world.set(RolloutSettings {
                        percent,
                        ..settings.clone()
                    })
                });
            for announcement in raised.into_iter().flatten().chain(world.tick()) {
                let at = world.elapsed().as_secs_f64();
                rollbacks += u32::from(matches!(announcement.change, Change::RolledBack(_)));
                if self.json {
                    events.push(json!({"at_seconds": at, "change": announcement.change.name(), "sentence": announcement.sentence}));
                } else {
                    out(&format!("{at:>9.2} s  {}", announcement.sentence))?;
                }
            }
        }
        let (requests, bad) = world.on_new();
        let verdicts = world
            .plane()
            .rollouts()
            .first()
            .map(|rollout| (rollout.sentence(), rollout.verdicts()));
        let (sentence, verdicts) = verdicts.unwrap_or_default();
        if self.json {
            let rules: Vec<_> = verdicts.iter().map(|verdict| json!({"rule": verdict.rule.name(), "verdict": verdict.answer.name(), "sentence": verdict.sentence})).collect();
            out(&json!({"seed": self.seed, "seconds": self.lasts.as_secs_f64(), "rollbacks": rollbacks, "requests_to_new": requests, "bad_answers_of_new": bad, "events": events, "rules": rules}).to_string())?;
        } else {
            out(&format!(
                "{:>9.2} s  end: {sentence}",
                self.lasts.as_secs_f64()
            ))?;
            if rollbacks == 0 {
                for verdict in verdicts {
                    out(&format!(
                        "             {}: {}: {}",
                        verdict.rule.name(),
                        verdict.answer.name(),
                        verdict.sentence
                    ))?;
                }
            }
            out(&format!(
                "new answered {requests} requests, {bad} of them badly; seed {}",
                self.seed
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Simulates the first fault many times, and reports how long its detection takes and what it
    /// costs.
    fn many(&self, scenario: Scenario, runs: u32) -> Result<ExitCode, Failed> {
        let Some(first) = scenario.faults.first().copied() else {
            return Err(Failed::usage("--runs needs a --fault to be noticed"));
        };
        let mut noticed = Vec::new();
        let (mut missed, mut early) = (0, 0);
        for run in 0..runs {
            let scenario = Scenario {
                seed: self.seed + u64::from(run),
                faults: scenario.faults[1..].to_vec(),
                ..scenario.clone()
            };
            match notice(scenario, first.from, first, self.lasts) {
                Ok(Some(found)) => noticed.push(found),
                Ok(None) => missed += 1,
                Err(_) => early += 1,
            }
        }
        let mut delays: Vec<f64> = noticed
            .iter()
            .map(|found| found.delay.as_secs_f64())
            .collect();
        delays.sort_by(f64::total_cmp);
        let mut bad: Vec<u64> = noticed.iter().map(|found| found.bad).collect();
        bad.sort_unstable();
        let mut rules = std::collections::BTreeMap::<&str, u32>::new();
        noticed
            .iter()
            .for_each(|found| *rules.entry(&found.rule).or_default() += 1);
        let at = |part: f64| {
            ((noticed.len() as f64 * part) as usize).min(noticed.len().saturating_sub(1))
        };
        if self.json {
            let of = |part: f64| {
                (!noticed.is_empty())
                    .then(|| json!({"seconds": delays[at(part)], "bad_answers": bad[at(part)]}))
            };
            out(&json!({"runs": runs, "noticed": noticed.len(), "missed": missed, "before_the_fault": early, "median": of(0.5), "p95": of(0.95), "max": of(1.0), "rules": rules})
                .to_string())?;
            return Ok(ExitCode::SUCCESS);
        }
        out(&format!(
            "{} of {runs} runs rolled back, {missed} did not in {} s, {early} did before anything \
             was wrong",
            noticed.len(),
            self.lasts.as_secs()
        ))?;
        if !noticed.is_empty() {
            for (name, part) in [("median", 0.5), ("p95", 0.95), ("max", 1.0)] {
                out(&format!(
                    "  {name:<7} {:.2} s, {} bad answers",
                    delays[at(part)],
                    bad[at(part)]
                ))?;
            }
            let rules: Vec<String> = rules
                .iter()
                .map(|(rule, count)| format!("{rule} {count}"))
                .collect();
            out(&format!("  by {}", rules.join(", ")))?;
            out(&format!("  such as: {}", noticed[0].sentence))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn replay(&self, rollout: &RolloutSettings) -> Result<ExitCode, Failed> {
        let mut recording = replay::Recording::default();
        for path in &self.replay {
            let text = std::fs::read_to_string(path)
                .map_err(|error| Failed::usage(format!("{}: {error}", path.display())))?;
            recording
                .add(&text, &rollout.id)
                .map_err(|why| Failed::usage(format!("{}: {why}", path.display())))?;
        }
        let story = replay::judge(&recording, rollout);
        if self.json {
            let events: Vec<_> = story
                .events
                .iter()
                .map(|(at, sentence)| json!({"at": at, "sentence": sentence}))
                .collect();
            out(
                &json!({"looks": story.looks, "seconds": story.covers.as_secs_f64(), "rollbacks": story.rollbacks, "events": events, "not_judged": replay::NOT_JUDGED}).to_string()
            )?;
            return Ok(ExitCode::SUCCESS);
        }
        for (at, sentence) in &story.events {
            out(&format!("{at}  {sentence}"))?;
        }
        let times = match story.rollbacks {
            0 => "never have rolled back".to_owned(),
            1 => "have rolled back once".to_owned(),
            2 => "have rolled back twice".to_owned(),
            more => format!("have rolled back {more} times"),
        };
        out(&format!(
            "this guard would {times}: {} looks over {:.0} s of recorded \
             traffic, re-armed after each rollback",
            story.looks,
            story.covers.as_secs_f64()
        ))?;
        out(&format!(
            "not judged, since a recording has no such numbers: {}",
            replay::NOT_JUDGED.join(", ")
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_parsed_as_it_is_written() {
        let minute = Duration::from_secs(60);
        assert_eq!(
            fault("new errors 5% at 30s for 5m"),
            Ok(Fault {
                side: Some(Side::New),
                kind: FaultKind::Errors(0.05),
                from: minute / 2,
                lasts: minute * 5
            })
        );
        assert_eq!(
            fault("both slow 2.5"),
            Ok(Fault {
                side: None,
                kind: FaultKind::Slow(2.5),
                from: minute,
                lasts: Duration::MAX
            })
        );
        assert_eq!(
            fault("new tail 4% 75").map(|fault| fault.kind),
            Ok(FaultKind::Tail(0.04, 75.0))
        );
        assert_eq!(
            fault("new redirects 100%").map(|fault| fault.kind),
            Ok(FaultKind::Redirects(1.0))
        );
        assert_eq!(
            raise("25 at 10m"),
            Ok((Percent::parse("25").expect("a percentage"), minute * 10))
        );
        assert!(
            raise("25").is_err() && raise("25 at noon").is_err() && raise("250 at 1m").is_err()
        );
        assert_eq!(
            fault("legacy hang for 1s").map(|fault| fault.kind),
            Ok(FaultKind::Hang)
        );
        for (text, why) in [
            ("", "begins with new, legacy or both"),
            ("canary errors 5%", "begins with new, legacy or both"),
            ("new", "what goes wrong is missing"),
            ("new errors", "the share of errors"),
            ("new errors 5", "the percent sign is missing"),
            ("new slow 0.5", "expected a factor from 1 on"),
            ("new tail 4%", "how many times slower"),
            (
                "new burns",
                "expected errors, users, refused, hang, slow, tail, 4xx, redirects or down",
            ),
            ("new hang at", "a time such as 5m is missing"),
            ("new hang on 5m", "expected at TIME or for TIME"),
            ("new hang at noon", "expected a duration"),
        ] {
            let error = fault(text).expect_err(text);
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }
}
