//! Commands about files. They do not contact a running proxy.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cutover_config::Settings;
use cutover_core::simulation::Traffic;
use cutover_core::simulation::forecast::{Forecast, SHARES, forecast};
use cutover_core::{Anonymous, BUCKETS, Key, KeySource, Mode, Percent, RolloutSettings};
use serde_json::json;

use crate::cli::{Failed, file_or_default, note, out};
use crate::reload::source::ConfigSource;
use crate::shared::certificates::Certificates;
use crate::status::percent;
use crate::telemetry::traces;

/// Arguments of `cutover check`
#[derive(Debug, clap::Args)]
pub(super) struct Check {
    /// The configuration file
    file: Option<PathBuf>,
    /// Exit with 3 when there are warnings
    #[arg(long)]
    strict: bool,
    /// Requests per second over both sides of each rollout, for the forecast of the guard
    #[arg(long, default_value_t = 100.0, allow_negative_numbers = true, value_parser = crate::cli::rps)]
    rps: f64,
    /// The number of users, for the forecast of the guard
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    users: u32,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `cutover diff`
#[derive(Debug, clap::Args)]
pub(super) struct Diff {
    /// The file in force
    old: PathBuf,
    /// The file that would replace it
    new: PathBuf,
    /// Print the differences as JSON
    #[arg(long)]
    json: bool,
}

/// Reads a file as a reload does. Problems end the command with exit code 2.
pub(super) fn load(file: &Path) -> Result<Settings, Failed> {
    let color = std::io::stderr().is_terminal();
    ConfigSource::new(file)
        .load()
        .map(|(settings, _)| settings)
        .map_err(|error| Failed::usage(error.render(color)))
}

impl Check {
    pub(super) fn run(self) -> Result<ExitCode, Failed> {
        let file = file_or_default(self.file);
        let mut source = ConfigSource::new(&file);
        let (settings, _) = source
            .load()
            .map_err(|error| Failed::usage(error.render(std::io::stderr().is_terminal())))?;
        for warning in &settings.warnings {
            note(&format!("warning: {warning}"));
        }
        // Certificates are loaded as at a start, because a reload would keep the previous ones.
        Certificates::load(
            &ConfigSource::new(&file).base(),
            &settings.listen.certificates,
        )
        .map_err(|error| Failed::usage(format!("error: {error}")))?;
        let traffic = Traffic {
            rps: self.rps,
            users: self.users,
            ..Traffic::default()
        };
        let forecasts: Vec<Vec<Forecast>> = settings
            .rollouts
            .iter()
            .map(|rollout| forecast(&rollout.guard, &traffic, in_force(rollout)))
            .collect();
        let exports_nothing = settings.traces.is_some() && !traces::CAN_EXPORT;
        if exports_nothing {
            note(&format!(
                "warning: [traces]: no spans are exported: {}",
                traces::CANNOT
            ));
        }
        let mounted = source.mounted_alone();
        for file in &mounted {
            note(&format!(
                "warning: {}: this file is a mount point of its own: a file that is renamed into \
                 its place outside is never seen here, and `cutover set` cannot replace it; mount \
                 its folder instead",
                file.display()
            ));
        }
        // Notes may be intended, so they do not count for `--strict`.
        let notes: Vec<String> = settings
            .rollouts
            .iter()
            .filter_map(preflight_note)
            .collect();
        for text in &notes {
            note(&format!("note: {text}"));
        }
        let mut warned = !settings.warnings.is_empty() || exports_nothing || !mounted.is_empty();
        for (rollout, forecasts) in settings
            .rollouts
            .iter()
            .zip(&forecasts)
            .filter(|(rollout, _)| rollout.percent > Percent::ZERO)
        {
            for (forecast, why) in forecasts
                .iter()
                .filter_map(|forecast| Some((forecast, forecast.cannot_work.as_ref()?)))
            {
                warned = true;
                note(&format!(
                    "warning: rollout {:?}: the rule {} cannot work at {} requests per second of \
                     {} users: {why}",
                    &*rollout.id,
                    forecast.rule.name(),
                    self.rps,
                    self.users
                ));
            }
        }
        if self.json {
            let rollouts: Vec<_> = settings
                .rollouts
                .iter()
                .zip(&forecasts)
                .map(|(rollout, forecasts)| {
                    let rules: Vec<_> = forecasts.iter().map(forecast_json).collect();
                    json!({"id": &*rollout.id, "percent": percent(rollout.percent), "generation": rollout.generation, "forecast": {"rps": self.rps, "users": self.users, "rules": rules}})
                })
                .collect();
            let warnings: Vec<_> = settings.warnings.iter().map(ToString::to_string).collect();
            out(&json!({"file": file.display().to_string(), "valid": true, "digest": settings.digest, "rollouts": rollouts, "warnings": warnings, "notes": notes}).to_string())?;
        } else {
            out(&format!("{}: valid", file.display()))?;
            summary(&settings, &forecasts, self.rps)?;
        }
        Ok(if self.strict && warned {
            ExitCode::from(3)
        } else {
            ExitCode::SUCCESS
        })
    }
}

/// Header fields that a CORS preflight itself carries.
const IN_PREFLIGHT: [&str; 5] = ["host", "origin", "referer", "user-agent", "accept"];

/// Describes what a CORS preflight means for the key of a rollout. Browsers send OPTIONS before a
/// request to another origin, without its cookies, its token and the header fields of the
/// application.
fn preflight_note(rollout: &RolloutSettings) -> Option<String> {
    let takes_options = rollout.matches.methods.is_empty()
        || rollout
            .matches
            .methods
            .iter()
            .any(|method| &**method == "OPTIONS");
    let is_left_out = |key: &&Key| match &key.source {
        KeySource::Header(name) => !IN_PREFLIGHT.contains(&&**name),
        KeySource::Jwt(_) => true,
        KeySource::Cookie(_) | KeySource::Query(_) | KeySource::Path(_) | KeySource::Ip => false,
    };
    let left_out = rollout
        .keys
        .iter()
        .find(is_left_out)
        .filter(|_| takes_options)?;
    let has_other = rollout
        .keys
        .iter()
        .any(|key| !is_left_out(&key) && !matches!(key.source, KeySource::Cookie(_)));
    let goes = match (has_other, rollout.anonymous) {
        (true, _) => {
            "it is decided by another source of `key`, and may go to another side than the request \
             after it"
        }
        (false, Anonymous::Legacy) => {
            "it has no key and always goes to legacy, also where the request after it goes to new"
        }
        (false, Anonymous::Cookie | Anonymous::Random) => {
            "it has no key, and `anonymous` decides apart from the request after it"
        }
    };
    Some(format!(
        "rollout {:?}: a CORS preflight (OPTIONS from a page of another origin) does not carry \
         {}: {goes}; both sides must answer preflights alike",
        &*rollout.id,
        left_out.text()
    ))
}

/// Returns the share of users on new, or one per cent if there are none yet.
fn in_force(rollout: &RolloutSettings) -> Percent {
    let most =
        Percent::from_thousandths(Percent::FULL.thousandths() - rollout.holdback.thousandths())
            .unwrap_or_default();
    let share = if rollout.percent == Percent::ZERO {
        Percent::from_thousandths(1_000).unwrap_or_default()
    } else {
        rollout.percent
    };
    share.min(most)
}

fn forecast_json(forecast: &Forecast) -> serde_json::Value {
    let delays: Vec<_> = SHARES
        .iter()
        .zip(&forecast.delays)
        .map(|(share, delay)| json!({"bad": share, "median_seconds": delay.map(|delay| delay.median_s), "p95_seconds": delay.and_then(|delay| delay.p95_s.is_finite().then_some(delay.p95_s)), "requests_to_new": delay.map(|delay| delay.requests)}))
        .collect();
    json!({"rule": forecast.rule.name(), "false_alarms_per_30_days": forecast.false_alarms_30d, "delays": delays, "cannot_work": forecast.cannot_work})
}

fn forecast_table(
    rollout: &RolloutSettings,
    forecasts: &[Forecast],
    rps: f64,
) -> Result<(), Failed> {
    let share = in_force(rollout);
    let per_second = rps * f64::from(share.thousandths()) / 1e5;
    out(&format!(
        "    at {rps} requests per second ({per_second:.1} to new at {share} %), while 0.1 % \
         fail, 1 % are 4xx and latency is half of its limit, a rule"
    ))?;
    out(
        "    rolls back a healthy backend    and notices (median / p95, requests to new) when \
         this share of new's requests is bad",
    )?;
    out(&format!(
        "    {:<25}{:<13}{:<26}{:<26}{:<24}{}",
        "", "in 30 days", "2 %", "5 %", "50 %", "100 %"
    ))?;
    for forecast in forecasts {
        let alarms = match forecast.false_alarms_30d {
            alarms if alarms >= 10.0 => format!("about {alarms:.0}"),
            alarms if alarms >= 0.01 => format!("{alarms:.2}"),
            _ => "never".to_owned(),
        };
        let cells = forecast.delays.map(|delay| match delay {
            None => "-".to_owned(),
            Some(delay) => format!(
                "{} / {} ({:.0})",
                time(delay.median_s),
                time(delay.p95_s),
                delay.requests
            ),
        });
        let line = match &forecast.cannot_work {
            Some(why) => format!("cannot work: {why}"),
            None => format!(
                "{alarms:<13}{:<26}{:<26}{:<24}{}",
                cells[0], cells[1], cells[2], cells[3]
            ),
        };
        out(&format!(
            "    {:<25}{}",
            forecast.rule.name(),
            line.trim_end()
        ))?;
    }
    Ok(())
}

/// Formats seconds for people.
fn time(seconds: f64) -> String {
    match seconds {
        _ if !seconds.is_finite() => "> 10 min".to_owned(),
        0.0..10.0 => format!("{} s", (seconds * 100.0).round() / 100.0),
        10.0..120.0 => format!("{seconds:.0} s"),
        _ => format!("{:.1} min", seconds / 60.0),
    }
}

fn summary(settings: &Settings, forecasts: &[Vec<Forecast>], rps: f64) -> Result<(), Failed> {
    let listen: Vec<String> = settings
        .listen
        .http
        .iter()
        .map(ToString::to_string)
        .collect();
    out(&format!(
        "  listens on {}; admin on {}; state in {}",
        listen.join(", "),
        settings.admin.address,
        settings.state.directory
    ))?;
    for backend in &settings.backends {
        let servers: Vec<String> = backend.servers.iter().map(ToString::to_string).collect();
        out(&format!(
            "  backend {}: {}",
            backend.name,
            servers.join(", ")
        ))?;
    }
    for (rollout, forecasts) in settings.rollouts.iter().zip(forecasts) {
        let keys: Vec<String> = rollout.keys.iter().map(Key::text).collect();
        out(&format!(
            "  rollout {}: {} % of users on `{}`, the others on `{}`; key {}",
            rollout.id,
            rollout.percent,
            rollout.backends.new,
            rollout.backends.legacy,
            keys.join(", then ")
        ))?;
        let guard = &rollout.guard;
        match guard.mode {
            Mode::Off => out("    guard: off")?,
            Mode::Sequential => {
                let dry = if guard.dry_run {
                    ", reports only (dry_run)"
                } else {
                    ""
                };
                let every = guard.false_alarm_every.as_secs() / 3600;
                out(&format!(
                    "    guard: sequential, at most one false alarm in {every} hours, at least {} \
                     users hurt{dry}",
                    guard.min_users
                ))?;
                forecast_table(rollout, forecasts, rps)?;
            }
            Mode::Threshold => {
                let rules: Vec<&str> = guard.rules.iter().map(|rule| rule.name()).collect();
                let dry = if guard.dry_run {
                    ", reports only (dry_run)"
                } else {
                    ""
                };
                out(&format!(
                    "    guard: {} over {} s, at least {} requests{dry}",
                    rules.join(", "),
                    guard.window.as_secs_f64(),
                    guard.min_requests
                ))?;
                forecast_table(rollout, forecasts, rps)?;
            }
        }
    }
    Ok(())
}

impl Diff {
    pub(super) fn run(self) -> Result<ExitCode, Failed> {
        let (old, new) = (load(&self.old)?, load(&self.new)?);
        let find = |settings: &Settings, id: &str| {
            settings
                .rollouts
                .iter()
                .find(|rollout| &*rollout.id == id)
                .cloned()
        };
        let mut ids: Vec<_> = new
            .rollouts
            .iter()
            .chain(&old.rollouts)
            .map(|rollout| rollout.id.clone())
            .collect();
        let mut seen = std::collections::BTreeSet::new();
        ids.retain(|id| seen.insert(id.clone()));
        let moves: Vec<Move> = ids
            .iter()
            .map(|id| Move::between(id, find(&old, id).as_ref(), find(&new, id).as_ref()))
            .collect();
        let restart = new.restart_needed(&old);
        let backends = changed_backends(&old, &new);
        if self.json {
            let rollouts: Vec<_> = moves
                .iter()
                .map(|moved| json!({"id": moved.id, "to_new_percent": percent(moved.to_new), "to_legacy_percent": percent(moved.to_legacy), "sentence": moved.sentence}))
                .collect();
            out(
                &json!({"rollouts": rollouts, "backends": backends, "restart_needed": restart})
                    .to_string(),
            )?;
            return Ok(ExitCode::SUCCESS);
        }
        for moved in &moves {
            out(&format!("{}: {}", moved.id, moved.sentence))?;
        }
        for backend in &backends {
            out(backend)?;
        }
        if !restart.is_empty() {
            out(&format!("needs a restart: {}", restart.join(", ")))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Describes the changes to backends, one sentence each.
fn changed_backends(old: &Settings, new: &Settings) -> Vec<String> {
    let servers = |backend: &cutover_config::Backend| {
        backend
            .servers
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ")
    };
    let find = |settings: &'_ Settings, name: &str| {
        settings
            .backends
            .iter()
            .find(|backend| &*backend.name == name)
            .cloned()
    };
    let of_new = new
        .backends
        .iter()
        .filter_map(|backend| match find(old, &backend.name) {
            None => Some(format!(
                "backend {}: comes into the file with {}",
                backend.name,
                servers(backend)
            )),
            Some(before) if before.servers != backend.servers => Some(format!(
                "backend {}: {} -> {}",
                backend.name,
                servers(&before),
                servers(backend)
            )),
            Some(before) if before != *backend => {
                Some(format!("backend {}: timeouts change", backend.name))
            }
            Some(_) => None,
        });
    let gone = old
        .backends
        .iter()
        .filter(|backend| find(new, &backend.name).is_none())
        .map(|backend| format!("backend {}: leaves the file", backend.name));
    of_new.chain(gone).collect()
}

/// The users that a change moves, as shares of all users.
struct Move {
    id: String,
    to_new: Percent,
    to_legacy: Percent,
    sentence: String,
}

impl Move {
    fn between(id: &str, old: Option<&RolloutSettings>, new: Option<&RolloutSettings>) -> Self {
        let share = |rollout: Option<&RolloutSettings>| {
            rollout.map_or(Percent::ZERO, |rollout| rollout.percent)
        };
        let (before, after) = (share(old), share(new));
        let same_users = match (old, new) {
            (Some(old), Some(new)) => {
                old.salt == new.salt && old.keys == new.keys && old.anonymous == new.anonymous
            }
            _ => true,
        };
        let less = |a: Percent, b: Percent| {
            Percent::from_thousandths(a.thousandths().saturating_sub(b.thousandths()))
                .unwrap_or_default()
        };
        let (to_new, to_legacy) = if same_users {
            (less(after, before), less(before, after))
        } else {
            // The two hashes are independent. The share of users who are on new after the change
            // but not before is therefore a product of the shares.
            let product = |on: Percent, off: Percent| {
                let share = u64::from(on.thousandths()) * u64::from(BUCKETS - off.thousandths())
                    / u64::from(BUCKETS);
                Percent::from_thousandths(share as u32).unwrap_or_default()
            };
            (product(after, before), product(before, after))
        };
        let moved = match (old.is_some(), new.is_some()) {
            (true, true) if same_users && before == after && old == new => "no change".to_owned(),
            (true, true) => format!(
                "{before} % -> {after} %: {to_new} % of users move legacy -> new, {to_legacy} % \
                 move new -> legacy"
            ),
            (false, _) => {
                format!("comes into the file at {after} %: {to_new} % of its users move to new")
            }
            (true, false) => format!(
                "leaves the file: {to_legacy} % of its users move off new, to whatever matches \
                 next"
            ),
        };
        let why = if same_users {
            ""
        } else {
            " (salt, key or anonymous changed: every user is hashed again)"
        };
        let generation = match (old, new) {
            (Some(old), Some(new)) if new.generation > old.generation => format!(
                "; generation {} -> {} re-arms it after a rollback",
                old.generation, new.generation
            ),
            _ => String::new(),
        };
        Self {
            id: id.to_owned(),
            to_new,
            to_legacy,
            sentence: format!("{moved}{why}{generation}"),
        }
    }
}
