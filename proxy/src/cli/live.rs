//! Commands about a running proxy.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use cutover_core::control::plane::Restored;
use cutover_core::{Actor, ControlPlane, Event, Maintenance as Mode, PerSide, Percent};
use serde_json::{Value, json};

use crate::admin::api::{history_of, lasting, question};
use crate::cli::client::encoded;
use crate::cli::{AdminAddress, Failed, file, note, out};
use crate::clock;
use crate::reload::source::ConfigSource;
use crate::state::journal::{self, Record};
use crate::status::{RolloutStatus, SideStatus};

/// Arguments of `cutover explain`
#[derive(Debug, clap::Args)]
pub(super) struct Explain {
    /// The user key
    #[arg(long)]
    user: Option<String>,
    /// The host of the request
    #[arg(long)]
    host: Option<String>,
    /// The path of the request, with its query if there is one
    #[arg(long)]
    path: Option<String>,
    /// The method of the request
    #[arg(long)]
    method: Option<String>,
    /// A request header as `name: value`; may be given several times
    #[arg(long = "header", short = 'H', value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// Use this file instead of a running proxy; rollbacks are then unknown
    #[arg(long, short = 'c', value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminAddress,
}

impl Explain {
    pub(super) fn run(self) -> Result<ExitCode, Failed> {
        let asked = question(
            self.user.clone(),
            self.host.clone(),
            self.path.clone(),
            self.method.as_deref(),
            &self.headers,
        )
        .map_err(Failed::usage)?;
        let explanation = match &self.config {
            Some(file) => {
                let settings = file::load(file)?;
                let mut plane = ControlPlane::new(Restored::Fresh);
                let event = Event::Settings {
                    rollouts: settings.rollouts,
                    actor: Actor::file(),
                    reason: String::new(),
                };
                // Settings are never refused.
                let _ = plane.on(event, clock::now());
                let explanation = crate::gateway::explain::explain(
                    &plane.split(),
                    &settings.routing.default_backend,
                    &asked,
                    |_| PerSide {
                        legacy: true,
                        new: true,
                    },
                );
                serde_json::to_value(explanation).map_err(|error| Failed::new(error.to_string()))?
            }
            None => {
                let mut query: Vec<String> = Vec::new();
                let header = self.headers.join("\n");
                let parts = [
                    ("user", &self.user),
                    ("host", &self.host),
                    ("path", &self.path),
                    ("method", &self.method),
                    ("header", &(!header.is_empty()).then_some(header)),
                ];
                for (name, value) in parts {
                    query.extend(
                        value
                            .as_ref()
                            .map(|value| format!("{name}={}", encoded(value))),
                    );
                }
                self.admin
                    .client()?
                    .get(&format!("/api/v1/explain?{}", query.join("&")))?
            }
        };
        if self.json {
            out(&explanation.to_string())?;
        } else {
            for step in explanation["steps"].as_array().into_iter().flatten() {
                out(step.as_str().unwrap_or_default())?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Arguments of `cutover status`
#[derive(Debug, clap::Args)]
pub(super) struct Status {
    /// Only this rollout
    rollout: Option<String>,
    /// Show it again every second
    #[arg(long, short = 'w')]
    watch: bool,
    /// Print JSON; with --watch one line each second
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminAddress,
}

impl Status {
    pub(super) fn run(self) -> Result<ExitCode, Failed> {
        let client = self.admin.client()?;
        loop {
            let value = client.get("/api/v1/rollouts")?;
            let mut status: crate::status::Status =
                serde_json::from_value(value).map_err(|error| {
                    Failed::new(format!(
                        "the answer is not a status ({error}): do versions differ?"
                    ))
                })?;
            if let Some(id) = &self.rollout {
                let known = status
                    .rollouts
                    .iter()
                    .map(|rollout| rollout.id.clone())
                    .collect::<Vec<_>>()
                    .join(", ");
                status.rollouts.retain(|rollout| rollout.id == *id);
                if status.rollouts.is_empty() {
                    return Err(Failed::new(format!(
                        "no rollout has the id `{id}`; there are: {known}"
                    )));
                }
            }
            if self.json {
                out(&serde_json::to_string(&status)
                    .map_err(|error| Failed::new(error.to_string()))?)?;
            } else {
                if self.watch {
                    // Clear the screen and move the cursor to its top.
                    out("\u{1b}[2J\u{1b}[H")?;
                }
                show(&status)?;
            }
            if !self.watch {
                return Ok(ExitCode::SUCCESS);
            }
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}

fn show(status: &crate::status::Status) -> Result<(), Failed> {
    let bad = Style::new().fg_color(Some(AnsiColor::Red.into())).bold();
    let good = Style::new().fg_color(Some(AnsiColor::Green.into()));
    let bold = Style::new().bold();
    if let Some(problems) = &status.config.problems {
        note(&format!(
            "{bad}the file has problems; the last good one stays in force{bad:#}\n{}",
            problems.trim_end()
        ));
    }
    if !status.latch_durable {
        note(&format!(
            "{bad}the state cannot be written: a rollback would not survive a restart{bad:#}"
        ));
    }
    if let Some(what) = &status.journal {
        note(what);
    }
    if !status.config.restart_needed.is_empty() {
        note(&format!(
            "these keys changed but need a restart: {}",
            status.config.restart_needed.join(", ")
        ));
    }
    if !status.config.waiting_for.is_empty() {
        note(&format!(
            "these files have changed and may still be being written; what was read before is in \
             force: {}",
            status.config.waiting_for.join(", ")
        ));
    }
    if let Some(maintenance) = &status.maintenance {
        out(&format!(
            "{bad}{}{bad:#}",
            maintenance.sentence(status.held_requests)
        ))?;
    }
    for rollout in &status.rollouts {
        let style = if rollout.latch.is_some() { bad } else { good };
        out(&format!(
            "{bold}{}{bold:#}  {style}{}{style:#}  {}",
            rollout.id,
            rollout.phase.replace('_', " "),
            rollout.sentence
        ))?;
        // Maintenance of all traffic is shown once, above.
        if let Some(maintenance) = rollout
            .maintenance
            .as_ref()
            .filter(|maintenance| maintenance.scope == "rollout")
        {
            out(&format!(
                "  {bad}{}{bad:#}",
                maintenance.sentence(rollout.held_requests)
            ))?;
        }
        table(rollout)?;
        for rule in &rollout.guard.rules {
            let style = if rule.verdict == "breach" {
                bad
            } else {
                Style::new()
            };
            out(&format!(
                "  {style}{:<13}{style:#} {}: {}",
                rule.verdict, rule.rule, rule.sentence
            ))?;
        }
        match (rollout.guard.mode.as_str(), rollout.guard.dry_run) {
            ("off", _) => out("  guard off: only people roll back")?,
            (_, true) => out("  dry run: the guard reports and does not roll back")?,
            _ => {}
        }
    }
    Ok(())
}

fn table(rollout: &RolloutStatus) -> Result<(), Failed> {
    out("  last 60 s      rps    requests    errors        p50        p95        p99  in flight")?;
    for (name, side) in [("legacy", &rollout.legacy), ("new", &rollout.new)] {
        out(&format!(
            "  {name:<8} {:>9.1} {:>11} {:>9} {:>10} {:>10} {:>10} {:>10}",
            side.rps,
            side.requests,
            if side.requests == 0 {
                "-".to_owned()
            } else {
                side.errors()
            },
            SideStatus::latency(side.p50_ms),
            SideStatus::latency(side.p95_ms),
            SideStatus::latency(side.p99_ms),
            side.in_flight
        ))?;
    }
    let (legacy, new) = (&rollout.legacy, &rollout.new);
    if legacy.compared < legacy.requests || new.compared < new.requests {
        out(&format!(
            "  compared with each other are {} requests of legacy and {} of new: those of users \
             whom the hash or chance placed",
            legacy.compared, new.compared
        ))?;
    }
    Ok(())
}

/// Arguments of every command that changes something
#[derive(Debug, clap::Args)]
struct Why {
    /// The reason, which is written to the journal
    #[arg(long, short = 'm')]
    reason: String,
    /// Report what would happen without doing it
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminAddress,
}

impl Why {
    fn act(&self, rollout: &str, verb: &str, percent: Option<Percent>) -> Result<ExitCode, Failed> {
        let mut body = self.body();
        if let Some(percent) = percent {
            body["percent"] = json!(crate::status::percent(percent));
        }
        self.post(rollout, verb, &body)
    }

    fn post(&self, rollout: &str, verb: &str, body: &Value) -> Result<ExitCode, Failed> {
        let done = self.admin.client()?.post(
            &format!("/api/v1/rollouts/{}/{verb}", encoded(rollout)),
            body,
        )?;
        self.tell(&done)
    }

    fn body(&self) -> Value {
        json!({"reason": self.reason, "dry_run": self.dry_run, "actor": who()})
    }

    fn tell(&self, done: &Value) -> Result<ExitCode, Failed> {
        if self.json {
            out(&done.to_string())?;
        } else {
            out(done["sentence"].as_str().unwrap_or("done"))?;
        }
        if done["durable"] == Value::Bool(false) {
            note(
                "warning: the state cannot be written to disk: a drop or maintenance is in force \
                 but would not survive a restart, a raise waits until it can be written; see the \
                 log of the proxy",
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn who() -> Option<String> {
    ["SUDO_USER", "USER", "LOGNAME"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
}

fn percentage(text: &str) -> Result<Percent, String> {
    Percent::parse(text.trim_end_matches('%').trim_end()).map_err(|error| {
        format!("expected a percentage from 0 to 100 with at most three decimals: {error}")
    })
}

/// Arguments of `cutover set`
#[derive(Debug, clap::Args)]
pub(super) struct Set {
    /// The rollout
    rollout: String,
    /// The share of users on new, 0 to 100, with at most three decimals
    #[arg(value_parser = percentage)]
    percent: Percent,
    /// Edit this file directly instead of contacting a running proxy, which follows its file
    #[arg(long, short = 'c', value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    why: Why,
}

impl Set {
    pub(super) fn run(self) -> Result<ExitCode, Failed> {
        let Some(file) = &self.config else {
            return self.why.act(&self.rollout, "set", Some(self.percent));
        };
        ConfigSource::new(file)
            .set_percent(&self.rollout, self.percent, self.why.dry_run)
            .map_err(|error| Failed::usage(error.to_string()))?;
        let done = if self.why.dry_run {
            "would be set"
        } else {
            "is set"
        };
        out(&format!(
            "{}: {done} to {} % in {}",
            self.rollout,
            self.percent,
            file.display()
        ))?;
        note(
            "the file was edited directly: a proxy that follows it records the change without the \
             reason",
        );
        Ok(ExitCode::SUCCESS)
    }
}

/// Arguments of `cutover rollback`
#[derive(Debug, clap::Args)]
pub(super) struct Rollback {
    /// The rollout
    rollout: String,
    /// Roll back even if legacy does not answer
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    why: Why,
}

impl Rollback {
    pub(super) fn run(self) -> Result<ExitCode, Failed> {
        let mut body = self.why.body();
        body["force"] = json!(self.force);
        self.why.post(&self.rollout, "rollback", &body)
    }
}

/// Arguments of `cutover rearm`
#[derive(Debug, clap::Args)]
pub(super) struct Rearm {
    /// The rollout
    rollout: String,
    /// Start at this share instead of the file's; it is written to the file
    #[arg(long, value_parser = percentage)]
    percent: Option<Percent>,
    #[command(flatten)]
    why: Why,
}

impl Rearm {
    pub(super) fn run(self) -> Result<ExitCode, Failed> {
        self.why.act(&self.rollout, "rearm", self.percent)
    }
}

/// Arguments of `cutover maintenance`
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "cutover maintenance <ROLLOUT|--all> <off|read-only|hold|full> [--for 10m] \
                      --reason <REASON> [OPTIONS]"
)]
pub(super) struct Maintenance {
    /// The rollout, unless --all is given, and the mode: off, read-only (only GET, HEAD and
    /// OPTIONS pass), hold (requests wait, at most 30 s) or full (no request passes)
    #[arg(required = true, num_args = 1..=2, value_names = ["ROLLOUT", "MODE"])]
    words: Vec<String>,
    /// Every rollout, and requests that match none
    #[arg(long)]
    all: bool,
    /// End maintenance after this time, such as 10m; the default is to last until `off`
    #[arg(long = "for", value_name = "TIME")]
    lasts: Option<String>,
    #[command(flatten)]
    why: Why,
}

impl Maintenance {
    pub(super) fn run(self) -> Result<ExitCode, Failed> {
        let (rollout, mode) = match (self.all, self.words.as_slice()) {
            (true, [mode]) => (None, mode),
            (false, [rollout, mode]) => (Some(rollout), mode),
            (true, [rollout, ..]) => {
                return Err(Failed::usage(format!(
                    "--all and the rollout `{rollout}` exclude each other"
                ))
                .hint("cutover maintenance --all MODE"));
            }
            (_, words) => {
                return Err(Failed::usage(format!(
                    "expected a rollout and a mode, found `{}`",
                    words.join(" ")
                ))
                .hint("for every rollout say --all"));
            }
        };
        let mode = Mode::of_name(mode).ok_or_else(|| {
            Failed::usage(format!(
                "expected the mode off, read-only, hold or full, found `{mode}`"
            ))
        })?;
        if let Some(text) = &self.lasts {
            lasting(mode, text).map_err(|message| Failed::usage(format!("--for: {message}")))?;
        }
        let mut body = self.why.body();
        (body["rollout"], body["mode"], body["for"]) =
            (json!(rollout), json!(mode.name()), json!(self.lasts));
        let done = self.why.admin.client()?.put("/api/v1/maintenance", &body)?;
        self.why.tell(&done)
    }
}

/// The most bytes of records that `history` shows from a file.
const MAX_HISTORY_BYTES: usize = 64 * 1024 * 1024;

/// Arguments of `cutover history`
#[derive(Debug, clap::Args)]
pub(super) struct History {
    /// Only this rollout
    rollout: Option<String>,
    /// The number of newest records to show
    #[arg(long, default_value_t = 50)]
    limit: usize,
    /// Read the journal in this state directory instead of contacting a running proxy
    #[arg(long, value_name = "DIRECTORY")]
    state: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminAddress,
}

impl History {
    pub(super) fn run(self) -> Result<ExitCode, Failed> {
        let answer = match &self.state {
            Some(directory) => {
                if !journal::path(directory).is_file() {
                    return Err(Failed::new(format!(
                        "there is no journal in {}",
                        directory.display()
                    ))
                    .hint("it is in the [state] directory of the file"));
                }
                let page = journal::newest(
                    directory,
                    self.rollout.as_deref(),
                    self.limit,
                    MAX_HISTORY_BYTES,
                )?;
                history_of(&page, Some(&journal::verify_in(directory)?))
            }
            None => {
                let rollout = self
                    .rollout
                    .as_ref()
                    .map(|rollout| format!("&rollout={}", encoded(rollout)))
                    .unwrap_or_default();
                self.admin.client()?.get(&format!(
                    "/api/v1/history?verify=true&limit={}{rollout}",
                    self.limit
                ))?
            }
        };
        if self.json {
            out(&answer.to_string())?;
        } else {
            let records: Vec<Record> = serde_json::from_value(answer["records"].clone())
                .map_err(|error| Failed::new(error.to_string()))?;
            for record in &records {
                let why = if record.reason.is_empty() || record.sentence.contains(&record.reason) {
                    String::new()
                } else {
                    format!(" ({})", record.reason)
                };
                out(&format!(
                    "{}  {:<8} {:<6} {}{why}",
                    record.at, record.change, record.source, record.sentence
                ))?;
            }
        }
        if let Some(hash) = answer["chain"]["continues"].as_str() {
            let before = self
                .state
                .as_deref()
                .and_then(journal::moved_away)
                .filter(|(_, last)| last == hash);
            note(&match before {
                Some((file, _)) => format!("the journal continues {}", file.display()),
                None => format!(
                    "the journal continues another file, whose last line has the SHA-256 {hash}"
                ),
            });
        }
        match answer["chain"]["problem"].as_str() {
            Some(problem) => Err(Failed::new(format!("the journal was altered: {problem}"))),
            None => Ok(ExitCode::SUCCESS),
        }
    }
}
