//! `status.json`: the durable standing of every rollout, and the maintenance in force. It is read
//! before the port opens.
//!
//! It is written as a temporary file in the same directory, synced, and renamed over the old one;
//! then the directory is synced. A crash at any point leaves the old state or the new one, never an
//! incomplete one. A checksum reveals a file that was edited or damaged. Unreadable state is never
//! guessed at: every rollout then starts at 0 %, and the unreadable file is kept beside the new
//! one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cutover_core::control::maintenance::{MaintenanceWindow, Scope};
use cutover_core::control::plane::{Restored, Standing, Standings};
use cutover_core::{Actor, Cause, Latch, Maintenance, PerSide, Percent, Phase, Trip, Via, Wall};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::clock;
use crate::state::regular_file;
use crate::status::{LatchStatus, TickStatus, TripStatus, percent};

/// The name of the file in the state directory.
pub const NAME: &str = "status.json";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct OnDisk {
    version: u32,
    checksum: String,
    state: State,
}

#[derive(Serialize, Deserialize)]
struct State {
    written_at: String,
    rollouts: Vec<RolloutState>,
    /// The maintenance windows. The field is absent in files of versions that had none, and while
    /// there are none, so that the checksum of those files stays the same.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    maintenance: Vec<MaintenanceState>,
}

#[derive(Serialize, Deserialize)]
struct MaintenanceState {
    /// The ID of the rollout; `None` means all traffic.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    rollout: Option<String>,
    mode: String,
    since: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    until: Option<String>,
    actor: String,
    source: String,
    reason: String,
}

#[derive(Serialize, Deserialize)]
struct RolloutState {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    percent: Option<f64>,
    phase: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    latch: Option<LatchStatus>,
}

/// Makes the standings durable.
///
/// # Errors
/// Fails on any error of the file system; the old state is whole then.
pub fn save(directory: &Path, standings: &Standings) -> io::Result<()> {
    let rollouts = standings.rollouts.iter().map(|standing| RolloutState {
        id: standing.id.to_string(),
        percent: standing.percent.map(percent),
        phase: standing.phase.name().to_owned(),
        latch: match &standing.phase {
            Phase::Holding => None,
            Phase::RolledBack(latch) => Some(LatchStatus {
                generation: latch.generation,
                trip: TripStatus::new(&latch.trip),
            }),
        },
    });
    let maintenance = standings
        .maintenance
        .iter()
        .map(|(scope, window)| MaintenanceState {
            rollout: scope.as_deref().map(str::to_owned),
            mode: window.mode.name().to_owned(),
            since: clock::rfc3339(window.since),
            until: window.until.map(clock::rfc3339),
            actor: window.actor.name.clone(),
            source: window.actor.source.name().to_owned(),
            reason: window.reason.clone(),
        });
    let state = State {
        written_at: clock::rfc3339(clock::wall()),
        rollouts: rollouts.collect(),
        maintenance: maintenance.collect(),
    };
    let mut text = serde_json::to_string_pretty(&OnDisk {
        version: VERSION,
        checksum: checksum(&state)?,
        state,
    })?;
    text.push('\n');
    replace(&directory.join(NAME), text.as_bytes())
}

/// Reads the saved state. `had_a_life` means that there are other traces of an earlier run. A
/// missing file is then not a first start.
pub fn restore(directory: &Path, had_a_life: bool) -> Restored {
    let path = directory.join(NAME);
    let text = match regular_file::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !had_a_life => {
            return Restored::Fresh;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Restored::Unreadable(format!(
                "{NAME} is missing although there is a journal of an earlier run"
            ));
        }
        Err(error) => return Restored::Unreadable(format!("{NAME}: {error}")),
    };
    match parse(&text) {
        Ok(standings) => Restored::Known(standings),
        Err(why) => {
            // The copy is kept for a later investigation; a failure to keep it changes nothing.
            let _ = fs::rename(&path, unreadable_copy(&path));
            Restored::Unreadable(format!("{NAME}: {why}"))
        }
    }
}

fn unreadable_copy(path: &Path) -> PathBuf {
    path.with_file_name(format!("{NAME}.unreadable-{}", clock::wall().as_millis()))
}

fn parse(text: &[u8]) -> Result<Standings, String> {
    let on_disk: OnDisk = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if on_disk.version != VERSION {
        return Err(format!(
            "expected version {VERSION}, found {}",
            on_disk.version
        ));
    }
    if checksum(&on_disk.state).map_err(|error| error.to_string())? != on_disk.checksum {
        return Err("the checksum does not fit: the file was edited or damaged".to_owned());
    }
    let State {
        rollouts,
        maintenance,
        ..
    } = on_disk.state;
    Ok(Standings {
        rollouts: rollouts
            .into_iter()
            .map(standing)
            .collect::<Result<_, _>>()?,
        maintenance: maintenance
            .into_iter()
            .map(window)
            .collect::<Result<_, _>>()?,
    })
}

fn standing(state: RolloutState) -> Result<Standing, String> {
    let phase = match (state.phase.as_str(), state.latch) {
        ("holding", None) => Phase::Holding,
        ("rolled_back", Some(latch)) => Phase::RolledBack(Latch {
            generation: latch.generation,
            trip: trip(latch.trip)?,
        }),
        (phase, latch) => {
            return Err(format!(
                "rollout {}: phase {phase:?} with{} a latch",
                state.id,
                if latch.is_some() { "" } else { "out" }
            ));
        }
    };
    Ok(Standing {
        id: Arc::from(state.id),
        percent: state.percent.map(restore_percent).transpose()?,
        phase,
    })
}

fn window(state: MaintenanceState) -> Result<(Scope, MaintenanceWindow), String> {
    let mode = Maintenance::of_name(&state.mode)
        .filter(|mode| *mode != Maintenance::Off)
        .ok_or_else(|| format!("{:?} is no mode of maintenance", state.mode))?;
    let source =
        Via::of_name(&state.source).ok_or_else(|| format!("{:?} is no source", state.source))?;
    let actor = Actor {
        name: state.actor,
        source,
    };
    let until = state.until.as_deref().map(moment).transpose()?;
    Ok((
        state.rollout.map(Arc::from),
        MaintenanceWindow {
            mode,
            since: moment(&state.since)?,
            until,
            actor,
            reason: state.reason,
        },
    ))
}

fn moment(text: &str) -> Result<Wall, String> {
    clock::parse_rfc3339(text).ok_or_else(|| format!("{text:?} is no time"))
}

fn restore_percent(number: f64) -> Result<Percent, String> {
    Percent::parse(&number.to_string()).map_err(|error| format!("percent {number}: {error}"))
}

/// Converts a saved trip back.
///
/// # Errors
/// Names the part that is not understood.
pub fn trip(trip: TripStatus) -> Result<Trip, String> {
    let cause = match (trip.cause.as_str(), trip.numbers) {
        ("manual", _) => Cause::Manual {
            actor: trip.actor.unwrap_or_default(),
            reason: trip.reason.unwrap_or_default(),
        },
        ("state", _) => Cause::State,
        (rule, numbers) => {
            let numbers = numbers.map_or_else(PerSide::default, |numbers| PerSide {
                legacy: numbers.legacy.restore(),
                new: numbers.new.restore(),
            });
            Cause::Guard {
                rule: rule.to_owned(),
                numbers,
            }
        }
    };
    Ok(Trip {
        at: moment(&trip.at)?,
        cause,
        from: restore_percent(trip.from_percent)?,
        history: trip.history.iter().map(TickStatus::restore).collect(),
        sentence: trip.sentence,
    })
}

/// Returns the SHA-256 of the state in its compact form.
fn checksum(state: &State) -> serde_json::Result<String> {
    Ok(format!("{:x}", Sha256::digest(serde_json::to_vec(state)?)))
}

/// The name of the secret with which user keys are hashed in logs.
const SECRET: &str = "log-secret";

/// Returns the secret with which user keys are hashed in logs. A new one is created if there is
/// none, or none that can be read; hashes then change.
///
/// # Errors
/// Fails when the secret cannot be written.
pub fn secret(directory: &Path) -> io::Result<[u8; 16]> {
    let path = directory.join(SECRET);
    if let Ok(known) = regular_file::read(&path)
        && let Ok(known) = <[u8; 16]>::try_from(known.as_slice())
    {
        return Ok(known);
    }
    let secret: [u8; 16] = rand::random();
    replace_as(&path, &secret, 0o600)?;
    Ok(secret)
}

/// Replaces a file durably: temporary file beside it, sync, rename, sync of the directory. Some
/// file systems lose a rename that is not synced.
///
/// # Errors
/// Fails on any error of the file system; the old file is whole then.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    replace_as(path, content, 0o666)
}

/// Replaces a file durably, as [`replace`] does. A new file is readable by its owner alone.
///
/// # Errors
/// Fails on any error of the file system; the old file is whole then.
pub fn replace_private(path: &Path, content: &[u8]) -> io::Result<()> {
    replace_as(path, content, 0o600)
}

/// Replaces a file durably. A file that did not exist has at most these permissions, from its first
/// byte on.
fn replace_as(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = directory.join(format!(".{name}.{}.tmp", std::process::id()));
    let written = (|| {
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(content)?;
        if let Ok(metadata) = fs::metadata(path) {
            file.set_permissions(metadata.permissions())?;
        }
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use cutover_core::control::rollout::{SideNumbers, TickNumbers, TripNumbers};

    fn standings() -> Standings {
        let latch = |cause| {
            let new = SideNumbers {
                requests: 61,
                failed: 14,
                counted: 13,
                latency_sum_us: 9_000_000_000,
                ..SideNumbers::default()
            };
            let history = vec![TickNumbers {
                at: Wall::from_millis(1_795_169_730_000),
                sides: PerSide {
                    legacy: SideNumbers::default(),
                    new,
                },
            }];
            let from = Percent::parse("12.5").expect("a percentage");
            let trip = Trip {
                at: Wall::from_millis(1_795_169_730_250),
                cause,
                from,
                sentence: "new failed".to_owned(),
                history,
            };
            Phase::RolledBack(Latch {
                generation: 7,
                trip,
            })
        };
        let numbers = PerSide {
            legacy: TripNumbers::default(),
            new: TripNumbers {
                requests: 61,
                failed: 14,
                p95_us: Some(3),
                ..TripNumbers::default()
            },
        };
        let guard = Cause::Guard {
            rule: "errors_max".to_owned(),
            numbers,
        };
        let manual = Cause::Manual {
            actor: "ana".to_owned(),
            reason: "CHG-7".to_owned(),
        };
        let rollouts = vec![
            Standing {
                id: "a".into(),
                percent: Percent::parse("0.125").ok(),
                phase: Phase::Holding,
            },
            Standing {
                id: "b".into(),
                percent: Some(Percent::FULL),
                phase: latch(guard),
            },
            Standing {
                id: "gone".into(),
                percent: None,
                phase: latch(manual),
            },
            Standing {
                id: "lost".into(),
                percent: Some(Percent::ZERO),
                phase: latch(Cause::State),
            },
        ];
        let window = |mode, until: Option<i64>| MaintenanceWindow {
            mode,
            since: Wall::from_millis(1_795_169_730_000),
            until: until.map(Wall::from_millis),
            actor: Actor {
                name: "ana".to_owned(),
                source: Via::Cli,
            },
            reason: "CHG-8".to_owned(),
        };
        let maintenance = vec![
            (None, window(Maintenance::ReadOnly, None)),
            (
                Some("a".into()),
                window(Maintenance::Full, Some(1_795_169_790_125)),
            ),
        ];
        Standings {
            rollouts,
            maintenance,
        }
    }

    fn restored(directory: &Path) -> Standings {
        match restore(directory, true) {
            Restored::Known(standings) => standings,
            other => panic!("not readable: {other:?}"),
        }
    }

    fn unreadable(directory: &Path) -> String {
        match restore(directory, true) {
            Restored::Unreadable(why) => why,
            other => panic!("readable: {other:?}"),
        }
    }

    #[test]
    fn a_saved_state_is_restored() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(matches!(restore(directory.path(), false), Restored::Fresh));
        save(directory.path(), &standings()).expect("saved");
        assert_eq!(restored(directory.path()), standings());
        save(directory.path(), &Standings::default()).expect("saved");
        assert_eq!(restored(directory.path()), Standings::default());
        assert_eq!(
            fs::read_dir(directory.path()).expect("a directory").count(),
            1,
            "no temporary file stays"
        );
    }

    #[test]
    fn a_state_without_maintenance_is_compatible_with_older_versions() {
        let directory = tempfile::tempdir().expect("a directory");
        let latched = Standing {
            id: "a".into(),
            percent: Percent::parse("5").ok(),
            phase: Phase::Holding,
        };
        save(
            directory.path(),
            &Standings {
                rollouts: vec![latched.clone()],
                maintenance: Vec::new(),
            },
        )
        .expect("saved");
        let written = fs::read_to_string(directory.path().join(NAME)).expect("text");
        assert!(!written.contains("maintenance"), "{written}");
        // The state as such a version wrote it, with its checksum.
        let before = r#"{"version":1,"checksum":"2a0f176c410d00c79134bcd608b2f46ccc703a3deff7941bb15da08b94a82be5","state":{"written_at":"2026-11-20T10:15:30.250Z","rollouts":[{"id":"a","percent":5.0,"phase":"holding"}]}}"#;
        fs::write(directory.path().join(NAME), before).expect("written");
        assert_eq!(
            restored(directory.path()),
            Standings {
                rollouts: vec![latched],
                maintenance: Vec::new()
            }
        );
    }

    #[test]
    fn damage_of_any_kind_is_reported_and_never_guessed_at() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(NAME);
        save(directory.path(), &standings()).expect("saved");
        let good = fs::read_to_string(&path).expect("text");
        for (damage, why) in [
            (String::new(), "EOF"),
            (good[..good.len() / 2].to_owned(), "EOF"),
            (good.replace("rolled_back", "holding"), "checksum"),
            (
                good.replace("\"version\": 1", "\"version\": 9"),
                "expected version 1, found 9",
            ),
            (good.replace("read-only", "off"), "checksum"),
            ("\0\0\0\0".to_owned(), "expected value"),
        ] {
            fs::write(&path, damage).expect("written");
            let found = unreadable(directory.path());
            assert!(found.contains(why), "{found}");
            assert!(!path.exists(), "the unreadable file was set aside");
        }
        assert!(unreadable(directory.path()).contains("missing although there is a journal"));
    }

    #[test]
    fn every_truncation_of_the_file_is_unreadable_or_whole() {
        let directory = tempfile::tempdir().expect("a directory");
        save(directory.path(), &standings()).expect("saved");
        let good = fs::read(directory.path().join(NAME)).expect("bytes");
        for cut in 0..good.len() - 2 {
            assert!(parse(&good[..cut]).is_err(), "cut at {cut}");
        }
        assert_eq!(parse(&good), Ok(standings()));
    }

    #[test]
    fn an_unwritable_directory_leaves_the_old_state_whole() {
        let directory = tempfile::tempdir().expect("a directory");
        save(directory.path(), &standings()).expect("saved");
        // A directory occupies the name of the temporary file, so that the save fails for every
        // user, including root.
        fs::create_dir(
            directory
                .path()
                .join(format!(".{NAME}.{}.tmp", std::process::id())),
        )
        .expect("a directory");
        assert!(save(directory.path(), &Standings::default()).is_err());
        assert_eq!(restored(directory.path()), standings());
    }

    #[test]
    fn a_named_pipe_as_state_is_unreadable_and_replaced_by_a_save() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(NAME);
        assert!(
            std::process::Command::new("mkfifo")
                .arg(&path)
                .status()
                .expect("mkfifo")
                .success()
        );
        assert!(
            matches!(restore(directory.path(), true), Restored::Unreadable(why) if why == "status.json: is not a regular file")
        );
        save(directory.path(), &Standings::default()).expect("saved");
        assert!(
            matches!(restore(directory.path(), true), Restored::Known(standings) if standings == Standings::default())
        );
    }
}
