//! The playing of a scenario. Each run has its own stage, so that no run starts with the leftovers
//! of another.

use crate::capacity;
use crate::driver::{Driver, Measurement, RunPlan, Target};
use crate::probe::sample;
use crate::report::timeline::Timeline;
use crate::report::{Report, Times};
use crate::scenario::expect;
use crate::scenario::file::Scenario;
use crate::scenario::outcome::{self, Outcome, PartOutcome, RunOutcome};
use crate::scenario::steps;
use crate::scenario::world::{Surroundings, World};
use crate::slow;
use crate::stopping::stopped;
use crate::units::UsageError;
use crate::users::Oracle;
use crate::websockets;
use std::io;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// The interval at which the resource use of processes is sampled, and the most samples of a run.
/// The interval is longer in a run that would exceed that number.
const SAMPLE: Duration = Duration::from_millis(500);
const MOST_SAMPLES: u32 = 600;
/// The interval between progress messages.
const TELL: Duration = Duration::from_secs(1);

/// The output of a scenario in progress, and the way to end it early.
pub struct Stage<'said> {
    /// The function that receives a line of output.
    pub say: &'said (dyn Fn(&str) + Send + Sync),
    /// Whether progress is reported every second.
    pub follows: bool,
    /// The stop flag. The value true ends the load, and released requests are still finished.
    pub stop: watch::Receiver<bool>,
}

/// Plays all runs of a scenario. `text` is the text of the scenario file, for the report.
pub async fn play(
    scenario: &Scenario,
    name: &str,
    text: &str,
    surroundings: &Surroundings,
    stage: &Stage<'_>,
) -> io::Result<Outcome> {
    let mut runs: Vec<RunOutcome> = Vec::new();
    let mut verdicts = Vec::new();
    for number in 0..scenario.runs {
        let seed = scenario.load.seed.wrapping_add(u64::from(number));
        let run = run(scenario, seed, surroundings, stage).await?;
        if scenario.runs > 1 {
            (stage.say)(&format!(
                "run {} of {}: {}",
                number + 1,
                scenario.runs,
                in_short(&run)
            ));
        }
        verdicts.push(scenario.expect.judge(&run));
        runs.push(run);
        if *stage.stop.borrow() {
            break;
        }
    }
    Ok(Outcome {
        scenario: name.to_owned(),
        title: scenario.title.clone(),
        about: scenario.about.clone(),
        version: env!("CARGO_PKG_VERSION"),
        verdicts: expect::over_runs(&verdicts),
        over_runs: outcome::over_runs(&runs),
        runs,
        text: text.to_owned(),
    })
}

fn in_short(run: &RunOutcome) -> String {
    let failures = run.report.failures.requests;
    match run
        .report
        .blast_radius
        .as_ref()
        .and_then(|blast| blast.since_fault.as_ref())
    {
        Some(since) => format!(
            "{} bad answers to {} users, {:.1} ms to the last request on new",
            since.bad_answers, since.users_hurt, since.time_to_zero_ms
        ),
        None => format!(
            "{failures} of {} requests failed",
            run.report.requests.finished
        ),
    }
}

/// Plays one run from the beginning to the end.
async fn run(
    scenario: &Scenario,
    seed: u64,
    surroundings: &Surroundings,
    stage: &Stage<'_>,
) -> io::Result<RunOutcome> {
    let world = World::build(scenario, surroundings, seed).await?;
    let played = run_in(&world, scenario, seed, stage).await;
    world.end().await;
    played
}

async fn run_in(
    world: &World,
    scenario: &Scenario,
    seed: u64,
    stage: &Stage<'_>,
) -> io::Result<RunOutcome> {
    let invalid = |error: UsageError| io::Error::new(io::ErrorKind::InvalidInput, error);
    steps::check(scenario, &world.names).map_err(invalid)?;
    let plan = plan(scenario, world, seed);
    plan.check().map_err(invalid)?;
    let start = Instant::now();
    let (end, ended) = watch::channel(false);
    let every = SAMPLE.max(scenario.load.duration / MOST_SAMPLES);
    let sampling = tokio::spawn(sample(world.probe, start, every, ended.clone()));

    if let Some(section) = &scenario.capacity {
        let direct = match &section.direct {
            Some(direct) => Some(
                Target::resolve(direct, world.allows_remote())
                    .await
                    .map_err(invalid)?,
            ),
            None => None,
        };
        let subject = capacity::Subject {
            probe: world.probe,
            cores: world.cores,
            direct,
            stats: &|| world.stats(),
        };
        let (capacity, plan, mut measurement) =
            capacity::explore(section, &plan, &subject, &stage.stop, stage.say).await?;
        end.send_replace(true);
        let samples = sampling.await.map_err(io::Error::other)?;
        measurement.sort();
        let outcome = RunOutcome {
            capacity: Some(capacity),
            samples,
            backends: world.stats(),
            ..measured(scenario, &plan, &measurement, Vec::new(), seed)
        };
        return Ok(outcome);
    }

    let driver = Driver::start(plan.clone())?;
    let start = driver.epoch();
    let stop = driver.stop_handle();
    let progress = driver.progress();
    let mut interrupted = stage.stop.clone();
    let websockets = async {
        match &scenario.websockets {
            Some(section) => websockets::hold(section, &plan, ended.clone())
                .await
                .map(Some),
            None => Ok(None),
        }
    };
    let crowd = async {
        match &scenario.slow {
            Some(section) => slow::crowd(section, &plan, ended.clone()).await,
            None => Ok(Vec::new()),
        }
    };
    let told = async {
        let mut seconds = tokio::time::interval(TELL);
        let mut ended = ended.clone();
        seconds.tick().await;
        loop {
            tokio::select! {
                () = stopped(&mut ended) => return,
                () = stopped(&mut interrupted), if !stop.is_stopped() => stop.stop(),
                _ = seconds.tick() => if stage.follows {
                    let now = *progress.borrow();
                    (stage.say)(&format!("{:.0} s: {} finished, {} on new, {} failed", start.elapsed().as_secs_f64(), now.finished, now.on_new, now.failed));
                }
            }
        }
    };
    let load = async {
        let measurement = driver.finish().await;
        end.send_replace(true);
        measurement
    };
    let (measurement, websockets, slow, done, ()) = tokio::join!(
        load,
        websockets,
        crowd,
        steps::play(scenario, world, start, ended.clone()),
        told
    );
    let mut measurement = measurement?;
    measurement.sort();
    let samples = sampling.await.map_err(io::Error::other)?;
    Ok(RunOutcome {
        samples,
        backends: world.stats(),
        websockets: websockets.map_err(invalid)?,
        slow: slow.map_err(invalid)?,
        ..measured(scenario, &plan, &measurement, done, seed)
    })
}

/// Computes the outcome of a run from its records.
fn measured(
    scenario: &Scenario,
    plan: &RunPlan,
    measurement: &Measurement,
    steps: Vec<steps::StepDone>,
    seed: u64,
) -> RunOutcome {
    let history = steps::history(&steps);
    let latencies = Times::of(
        measurement
            .records
            .iter()
            .filter_map(crate::driver::Record::latency),
    );
    RunOutcome {
        seed,
        report: Report::of(plan, measurement, &history),
        timeline: Timeline::of(&measurement.records, plan.duration),
        curve: latencies.curve(),
        hgrm: latencies.hgrm(),
        parts: parts(scenario, measurement),
        steps,
        samples: Vec::new(),
        backends: std::collections::BTreeMap::new(),
        websockets: None,
        slow: Vec::new(),
        capacity: None,
    }
}

/// Returns the parts in the order of the file. Those with the same name are merged.
fn parts(scenario: &Scenario, measurement: &Measurement) -> Vec<PartOutcome> {
    let mut windows: Vec<(&str, Vec<(Duration, Duration)>)> = Vec::new();
    for part in scenario.part.iter().map(toml::Spanned::get_ref) {
        match windows.iter_mut().find(|(name, _)| *name == part.name) {
            Some((_, windows)) => windows.extend(part.windows()),
            None => windows.push((&part.name, part.windows().collect())),
        }
    }
    windows
        .into_iter()
        .map(|(name, windows)| PartOutcome::of(name, &windows, &measurement.records))
        .collect()
}

fn plan(scenario: &Scenario, world: &World, seed: u64) -> RunPlan {
    let load = &scenario.load;
    RunPlan {
        target: world.target.clone(),
        trust: world.trust.clone(),
        protocol: load.protocol,
        method: load.method.clone(),
        path: load.path.clone(),
        body_bytes: load.body_bytes,
        key: load.key.clone(),
        side_header: load.side_header.clone(),
        rate: load.rate,
        arrivals: load.arrivals,
        duration: load.duration,
        users: load.users,
        connections: load.connections,
        streams: load.streams,
        requests_per_connection: load.requests_per_connection,
        seed,
        timeout: load.timeout,
        oracle: scenario
            .hash
            .as_ref()
            .map(|hash| Oracle::new(&hash.salt, hash.percent)),
    }
}

#[cfg(test)]
mod tests {
    use crate::report::History;

    #[test]
    fn a_scenario_without_steps_has_no_history() {
        let history: History = super::steps::history(&[]);
        assert!(history.moves.is_empty() && history.changes.is_empty() && history.fault.is_none());
    }
}
