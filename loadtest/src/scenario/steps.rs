//! The steps of a scenario, done one after another at their times.
//!
//! Each step is done before the next begins, so that a history has one order. Delays caused by this
//! show in the times of the steps. Only the check whether a new certificate is presented continues
//! during the next steps. A step that fails does not end the run: it is a verdict.

use crate::calls::call;
use crate::driver::{Connector, Protocol, nanoseconds};
use crate::report::history::{Change, History, Move, MoveDirection};
use crate::scenario::certificates::replace;
use crate::scenario::file::{Scenario, SignalName, Step, Until};
use crate::scenario::template::{Names, fill};
use crate::scenario::world::World;
use crate::stopping::stopped;
use crate::units::{Percent, UsageError};
use http::Method;
use serde::Serialize;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The interval at which a condition is checked.
const LOOK: Duration = Duration::from_millis(5);
/// The interval at which the presented certificate is checked, and how long a new one may take to
/// appear.
const CERTIFICATE_LOOK: Duration = Duration::from_millis(50);
const CERTIFICATE_PATIENCE: Duration = Duration::from_secs(10);
/// The longest time that a command may take.
const COMMAND_PATIENCE: Duration = Duration::from_secs(60);

/// A step that was done.
#[derive(Debug, Clone, Serialize)]
pub struct StepDone {
    /// The name of the step.
    pub name: String,
    /// The planned start of the step.
    pub planned_ms: f64,
    /// The actual start of the step.
    pub begin_ms: f64,
    /// The end of the step, including anything it waited for.
    pub end_ms: f64,
    /// The direction in which the step moved users.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moves: Option<MoveDirection>,
    /// Whether the step broke something.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub fault: bool,
    /// The reason why the step failed. `None` if it succeeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    #[serde(skip)]
    settled: u64,
    #[serde(skip)]
    begin: u64,
    #[serde(skip)]
    percent: Option<Percent>,
}

/// Returns what the steps did to the split.
pub fn history(done: &[StepDone]) -> History {
    let mut history = History::default();
    for step in done {
        if let Some(direction) = step.moves {
            history.moves.push(Move {
                direction,
                begin: step.begin,
                end: step.settled,
            });
        }
        if let Some(percent) = step.percent {
            history.changes.push(Change {
                percent,
                begin: step.begin,
                end: step.settled,
            });
        }
        if step.fault && history.fault.is_none() {
            history.fault = Some(step.begin);
        }
    }
    history
}

/// Checks that every placeholder of the steps is known, before anything is loaded.
pub fn check(scenario: &Scenario, names: &Names) -> Result<(), UsageError> {
    scenario
        .step
        .iter()
        .try_for_each(|step| filled(step.get_ref(), names).map(drop))
}

/// Performs the steps, with times relative to `start`, until `stop` is signalled.
pub async fn play(
    scenario: &Scenario,
    world: &World,
    start: Instant,
    mut stop: watch::Receiver<bool>,
) -> Vec<StepDone> {
    let mut done: Vec<StepDone> = Vec::new();
    let mut certificates = JoinSet::new();
    for (at, _, step) in scenario.timetable() {
        let in_time = tokio::select! {
            biased;
            () = stopped(&mut stop) => false,
            () = tokio::time::sleep_until((start + at).into()) => true,
        };
        let begin = start.elapsed();
        let outcome = match filled(step, &world.names) {
            Ok(_) if !in_time => Err(io::Error::other(
                "not done: the load ended before its turn came",
            )),
            Ok(step) => act(&step, scenario, world).await,
            Err(error) => Err(io::Error::other(error)),
        };
        let end = start.elapsed();
        let failed = match outcome {
            Ok(None) => None,
            Ok(Some(shown)) => {
                let number = done.len();
                certificates.spawn(async move { (number, shown.look().await, start.elapsed()) });
                None
            }
            Err(error) => Some(error.to_string()),
        };
        done.push(StepDone {
            name: step.name(),
            planned_ms: at.as_secs_f64() * 1e3,
            begin_ms: begin.as_secs_f64() * 1e3,
            end_ms: end.as_secs_f64() * 1e3,
            moves: step.moves.filter(|_| in_time),
            fault: in_time && step.is_fault(),
            failed,
            settled: nanoseconds(end + step.settle),
            begin: nanoseconds(begin),
            percent: step.percent.filter(|_| in_time),
        });
    }
    while let Some(looked) = certificates.join_next().await {
        if let Ok((number, found, end)) = looked {
            done[number].end_ms = end.as_secs_f64() * 1e3;
            done[number].failed = found.err().map(|error| error.to_string());
        }
    }
    done
}

/// A certificate that the target should present.
struct Shown {
    connector: Connector,
    certificate: Vec<u8>,
}

impl Shown {
    async fn look(self) -> io::Result<()> {
        let deadline = Instant::now() + CERTIFICATE_PATIENCE;
        loop {
            if self.connector.certificate().await.ok().flatten().as_ref() == Some(&self.certificate)
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(io::Error::other(
                    "the target does not show the new certificate",
                ));
            }
            tokio::time::sleep(CERTIFICATE_LOOK).await;
        }
    }
}

async fn act(step: &Step, scenario: &Scenario, world: &World) -> io::Result<Option<Shown>> {
    let mut shown = None;
    if let (Some(backend), Some(dial)) = (&step.backend, step.dial) {
        world.dial(backend, dial).await?;
    } else if let Some(edit) = &step.edit {
        let path = Path::new(&edit.file);
        let text = fs::read_to_string(path).map_err(|error| named(path, &error))?;
        let edited = with_line(&text, &edit.line, &edit.with).ok_or_else(|| {
            io::Error::other(format!(
                "no line of {} begins with {:?}",
                edit.file, edit.line
            ))
        })?;
        replace(path, &edited).map_err(|error| named(path, &error))?;
    } else if let Some(write) = &step.write {
        replace(Path::new(&write.file), &write.text)
            .map_err(|error| named(Path::new(&write.file), &error))?;
    } else if let Some(command) = &step.command {
        run(command, world).await?;
    } else if let Some(one) = &step.request {
        let (status, answer) = call(
            &one.method,
            &one.url,
            one.body.as_deref(),
            world.allows_remote(),
        )
        .await?;
        let good = one
            .status
            .map_or(status < 400, |expected| expected == status);
        if !good {
            return Err(io::Error::other(format!(
                "{} {} was answered with {status}: {answer}",
                one.method, one.url
            )));
        }
    } else if let Some(signal) = step.signal {
        world.signal(number_of(signal))?;
    } else if let Some(name) = &step.certificate
        && let (Some(authority), Some(section)) = (&world.authority, scenario.certificate.get(name))
    {
        let certificate = authority.issue(name, &section.names)?;
        let connector =
            Connector::new(&world.target, Protocol::H1, &world.trust).map_err(io::Error::other)?;
        shown = Some(Shown {
            connector,
            certificate,
        });
    }
    if let Some(until) = &step.until {
        wait(until, world).await?;
    }
    Ok(shown)
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Returns the text with the first line that starts with `begins` replaced, or `None` if there is
/// no such line.
fn with_line(text: &str, begins: &str, with: &str) -> Option<String> {
    let mut found = false;
    let lines: Vec<&str> = text
        .lines()
        .map(|line| {
            if !found && line.trim_start().starts_with(begins) {
                found = true;
                with
            } else {
                line
            }
        })
        .collect();
    found.then(|| lines.join("\n") + "\n")
}

async fn run(command: &[String], world: &World) -> io::Result<()> {
    let (program, arguments) = command
        .split_first()
        .ok_or_else(|| io::Error::other("expected a program in command"))?;
    let child = Command::new(program)
        .args(arguments)
        .current_dir(world.folder())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let output = tokio::time::timeout(COMMAND_PATIENCE, child.wait_with_output())
        .await
        .map_err(|_| io::Error::other(format!("{program} did not end in time")))??;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{program} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim_end()
    )))
}

async fn wait(until: &Until, world: &World) -> io::Result<()> {
    let wanted = serde_json::to_value(&until.is).map_err(io::Error::other)?;
    let deadline = Instant::now() + until.within;
    loop {
        let (_, answer) = call(&Method::GET, &until.url, None, world.allows_remote()).await?;
        let found = serde_json::from_str::<serde_json::Value>(&answer)
            .ok()
            .and_then(|value| value.pointer(&until.at).cloned());
        if found.as_ref().is_some_and(|found| same(found, &wanted)) {
            return Ok(());
        }
        if Instant::now() > deadline {
            let found = found.map_or("nothing".to_owned(), |found| found.to_string());
            return Err(io::Error::other(format!(
                "{}{} is not {wanted} in time, but {found}",
                until.url, until.at
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether two values are equal. 5 and 5.0 are equal.
fn same(found: &serde_json::Value, wanted: &serde_json::Value) -> bool {
    match (found.as_f64(), wanted.as_f64()) {
        (Some(found), Some(wanted)) => found == wanted,
        _ => found == wanted,
    }
}

fn number_of(signal: SignalName) -> rustix::process::Signal {
    use rustix::process::Signal;
    match signal {
        SignalName::Hup => Signal::HUP,
        SignalName::Usr1 => Signal::USR1,
        SignalName::Usr2 => Signal::USR2,
        SignalName::Stop => Signal::STOP,
        SignalName::Cont => Signal::CONT,
        SignalName::Term => Signal::TERM,
        SignalName::Kill => Signal::KILL,
    }
}

/// Returns a step with its placeholders filled in.
fn filled(step: &Step, names: &Names) -> Result<Step, UsageError> {
    let mut step = step.clone();
    let mut texts: Vec<&mut String> = Vec::new();
    if let Some(edit) = &mut step.edit {
        texts.extend([&mut edit.file, &mut edit.line, &mut edit.with]);
    }
    if let Some(write) = &mut step.write {
        texts.extend([&mut write.file, &mut write.text]);
    }
    texts.extend(step.command.iter_mut().flatten());
    if let Some(one) = &mut step.request {
        texts.push(&mut one.url);
        texts.extend(&mut one.body);
    }
    if let Some(until) = &mut step.until {
        texts.push(&mut until.url);
    }
    for text in texts {
        *text = fill(text, names)?;
    }
    Ok(step)
}

#[cfg(test)]
mod tests {
    use super::{same, with_line};
    use serde_json::json;

    #[test]
    fn only_the_first_line_with_the_prefix_is_replaced() {
        let text = "a = 1\n  percent = 5 # now\npercent = 6\n";
        assert_eq!(
            with_line(text, "percent =", "percent = 7").expect("found"),
            "a = 1\npercent = 7\npercent = 6\n"
        );
        assert_eq!(with_line(text, "share", "x"), None);
    }

    #[test]
    fn equal_numbers_match_in_any_notation() {
        assert!(same(&json!(5.0), &json!(5)));
        assert!(same(&json!("rolled_back"), &json!("rolled_back")));
        assert!(!same(&json!("5"), &json!(5)));
    }
}
