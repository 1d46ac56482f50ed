//! The command `cutover-loadtest scenario`: plays a scenario from a file and reports its result.

use crate::cli::{
    Failure, ReportArguments, TrustArguments, interrupted, say, write_file, write_out,
};
use cutover_loadtest::html;
use cutover_loadtest::scenario::{
    BUILT_IN, Outcome, Scenario, Stage, Surroundings, built_in, play, set,
};
use cutover_loadtest::units::UsageError;
use std::fs;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::sync::watch;

/// Arguments of `scenario`
#[derive(Debug, clap::Args)]
pub struct ScenarioArguments {
    /// File, or name of a built-in scenario; without it the built-in ones are listed
    scenario: Option<String>,
    /// Load this target instead of starting the scenario's proxy, such as http://127.0.0.1:8080
    #[arg(long)]
    target: Option<String>,
    /// Program that replaces {cutover}
    #[arg(long, value_name = "PROGRAM", env = "CUTOVER")]
    cutover: Option<PathBuf>,
    /// Process that serves the target, to measure its resource use
    #[arg(long, value_name = "PID")]
    proxy_pid: Option<u32>,
    /// Number of times to play the scenario, each time from the beginning
    #[arg(long)]
    runs: Option<u32>,
    /// Change a key of the scenario, such as load.rate=500 or step.2.at=3s; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[command(flatten)]
    trust: TrustArguments,
    /// Print the scenario as it would be played, without playing it
    #[arg(long)]
    print: bool,
    #[command(flatten)]
    report: ReportArguments,
}

/// Plays a scenario and prints its report.
pub async fn run(arguments: ScenarioArguments) -> Result<ExitCode, Failure> {
    let Some(name) = &arguments.scenario else {
        let mut list = String::new();
        for (name, text) in BUILT_IN {
            let scenario =
                Scenario::parse(name, text).map_err(|error| UsageError::new(error.to_string()))?;
            list.push_str(&format!("{name:<14}{}\n", scenario.title));
        }
        write_out(&list)?;
        return Ok(ExitCode::SUCCESS);
    };
    let mut text = match built_in(name) {
        Some(text) => text.to_owned(),
        None => fs::read_to_string(name).map_err(|error| {
            let names: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
            UsageError::new(format!(
                "expected a scenario file or one of {}, found {name:?}: {error}",
                names.join(", ")
            ))
        })?,
    };
    let runs = arguments.runs.map(|runs| format!("runs={runs}"));
    for setting in arguments.set.iter().chain(&runs) {
        text = set(name, &text, setting).map_err(|error| UsageError::new(error.to_string()))?;
    }
    let scenario =
        Scenario::parse(name, &text).map_err(|error| UsageError::new(error.to_string()))?;
    if arguments.print {
        write_out(&text)?;
        return Ok(ExitCode::SUCCESS);
    }

    let surroundings = Surroundings {
        target: arguments.target,
        cutover: arguments
            .cutover
            .map(fs::canonicalize)
            .transpose()
            .map_err(|error| {
                UsageError::new(format!("expected a program in --cutover: {error}"))
            })?,
        kit: std::env::current_exe().ok(),
        proxy_pid: arguments.proxy_pid,
        trust: arguments.trust.trust(),
        allow_remote: arguments.report.allow_remote,
    };
    let (end, stop) = watch::channel(false);
    let stage = Stage {
        say: &say,
        follows: io::stderr().is_terminal(),
        stop,
    };
    let outcome = tokio::select! {
        outcome = play(&scenario, name, &text, &surroundings, &stage) => outcome?,
        abandoned = twice_interrupted(&end) => {
            // Everything that was started ends with the dropped future.
            abandoned?;
            return Err(io::Error::other("interrupted twice: abandoned").into());
        }
    };

    if arguments.report.json {
        write_out(&format!(
            "{}\n",
            serde_json::to_string_pretty(&outcome).map_err(io::Error::other)?
        ))?;
    } else {
        write_out(&outcome.to_string())?;
    }
    if let Some(path) = &arguments.report.hgrm {
        write_file(
            path,
            outcome.runs.last().map_or("", |run| run.hgrm.as_str()),
        )?;
    }
    if let Some(path) = &arguments.report.html {
        write_file(path, &html::of_scenario(&outcome))?;
    }
    let failed = failures(&outcome);
    if !arguments.report.assert || failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    for line in failed {
        say(&line);
    }
    Ok(ExitCode::from(1))
}

/// Waits for interruptions: the first one ends the load, the second one ends everything.
async fn twice_interrupted(end: &watch::Sender<bool>) -> io::Result<()> {
    interrupted().await?;
    say("interrupted: finishing what was released");
    end.send_replace(true);
    interrupted().await
}

fn failures(outcome: &Outcome) -> Vec<String> {
    outcome
        .verdicts
        .iter()
        .filter(|verdict| verdict.holds == Some(false))
        .map(|verdict| format!("violation: {}: {}", verdict.name, verdict.sentence))
        .collect()
}
