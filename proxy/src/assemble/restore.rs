//! Loading of the last good file and the saved state.

use super::error::StartError;
use super::running::START_LOOK;
use crate::clock;
use crate::reload::source::{ConfigSource, SourceError};
use crate::shared::settling;
use crate::state::journal;
use crate::state::last_good;
use crate::state::writer::{self, Ownership};
use cutover_config::Settings;
use cutover_core::control::plane::Restored;
use std::io::{self};
use std::path::{Path, PathBuf};

/// The state directory if the file names none.
pub(super) const DEFAULT_STATE: &str = "/var/lib/cutover";

/// A configuration and its origin.
pub(super) struct Loaded {
    pub(super) settings: Settings,
    /// The state directory that the configuration names, or in which it was found.
    pub(super) directory: PathBuf,
    pub(super) text: String,
    pub(super) source: ConfigSource,
    /// Why the file itself was not used.
    pub(super) problems: Option<String>,
}

/// Reads the configuration, or the last good one where the file cannot be used. `state` is a state
/// directory that was given on the command line.
///
/// # Errors
/// [`StartError`] when neither can be used.
pub(super) fn load(file: &Path, state: Option<&Path>) -> Result<Loaded, StartError> {
    let mut loaded = match load_rested(file) {
        (source, Ok((settings, text))) => Loaded {
            directory: source.base().join(&settings.state.directory),
            settings,
            text,
            source,
            problems: None,
        },
        (source, Err(error)) => last_good(source, error, state)?,
    };
    if let Some(given) = state {
        let by_file = &loaded.directory;
        if std::path::absolute(by_file).ok() != std::path::absolute(given).ok() {
            tracing::warn!(
                given = %given.display(),
                file = %by_file.display(),
                "the state directory of the command line is used instead of the one in the file"
            );
        }
        // A reload compares this value, and the status shows it.
        loaded.settings.state.directory = given.display().to_string();
        loaded.directory = given.to_owned();
    }
    loaded.source.keep_in(&loaded.directory);
    for file in loaded.source.mounted_alone() {
        tracing::warn!(
            file = %file.display(),
            "the file is a mount point of its own, so a file renamed into its place outside is \
             never seen here; mount its folder instead"
        );
    }
    Ok(loaded)
}

/// Reads the file once no list in it is being written, because at the start nothing can replace an
/// incomplete list. The file is read after [`settling::MOST`] in any case.
pub(super) fn load_rested(file: &Path) -> (ConfigSource, Result<(Settings, String), SourceError>) {
    // The wait is counted and not timed, because a process that takes over must not have read the
    // clock yet.
    let mut looks = settling::MOST.as_millis() / START_LOOK.as_millis();
    let mut told = false;
    loop {
        let mut source = ConfigSource::new(file);
        let loaded = source.load();
        let now = clock::wall();
        let fresh = source.sights().iter().find(|(path, sight)| {
            !source.has_syntax(path) && sight.was_written_within(settling::LONG, now)
        });
        match (&loaded, fresh) {
            (Ok(_), Some((list, _))) if looks > 0 => {
                looks -= 1;
                if !std::mem::replace(&mut told, true) {
                    tracing::info!(
                        file = list,
                        "a file was written just now and may still be being written; the start \
                         waits until it has rested"
                    );
                }
                std::thread::sleep(START_LOOK);
            }
            _ => return (source, loaded),
        }
    }
}

/// Returns the last accepted file, for a start with a broken one.
pub(super) fn last_good(
    source: ConfigSource,
    error: SourceError,
    state: Option<&Path>,
) -> Result<Loaded, StartError> {
    let directory = match state {
        Some(directory) => directory.to_owned(),
        // Otherwise the broken file names the directory, if that line can be read.
        None => {
            let text = std::fs::read_to_string(source.path()).unwrap_or_default();
            source
                .base()
                .join(state_directory_of(&text).unwrap_or_else(|| DEFAULT_STATE.to_owned()))
        }
    };
    let kept = directory.join(last_good::NAME);
    let nothing = |why: String| {
        let (file, directory) = (
            source.path().display().to_string(),
            directory.display().to_string(),
        );
        let hint = match state {
            Some(_) => format!("mend the file; `cutover check {file}` shows its problems"),
            None => format!(
                "mend the file, or name the state directory of the last run: cutover run -c \
                 {file} --state DIRECTORY"
            ),
        };
        StartError::NoLastGood {
            error: error.clone(),
            why: format!(
                "no last good file stands in for it: {directory}/{}: {why}",
                last_good::NAME
            ),
            hint,
        }
    };
    let (text, files) = match last_good::read(&directory) {
        Ok(read) => read,
        Err(why) => return Err(nothing(why.to_string())),
    };
    let mut reader = source.beside();
    reader.keep_in(&directory);
    // A file whose saved content cannot be read is read from its original place.
    reader.hold(
        files
            .into_iter()
            .filter(|(_, digest)| last_good::content(&directory, digest).is_some())
            .collect(),
    );
    let settings = match reader.parse(&kept.display().to_string(), &text) {
        Ok(settings) => settings,
        Err(problems) => {
            return Err(nothing(format!(
                "it cannot be used either:\n{}",
                problems.render(false)
            )));
        }
    };
    let problems = error.render(false);
    tracing::error!(file = %source.path().display(), last_good = %kept.display(), problems, "the file cannot be used; starting with the last good one");
    let directory = match state {
        // The saved configuration uses the directory that the file named at that time.
        Some(_) => source.base().join(&settings.state.directory),
        None => directory,
    };
    Ok(Loaded {
        settings,
        directory,
        text,
        source: reader,
        problems: Some(problems),
    })
}

/// Returns the state directory that a broken file names. It is read line by line, because the file
/// may not parse.
pub(super) fn state_directory_of(text: &str) -> Option<String> {
    let in_state = text
        .lines()
        .skip_while(|line| line.trim() != "[state]")
        .skip(1)
        .take_while(|line| !line.trim_start().starts_with('['));
    let line = in_state.into_iter().find_map(|line| {
        line.trim()
            .strip_prefix("directory")?
            .trim_start()
            .strip_prefix('=')
    });
    match line {
        Some(value) => value
            .trim()
            .strip_prefix('"')?
            .split('"')
            .next()
            .map(str::to_owned),
        None => Some(DEFAULT_STATE.to_owned()),
    }
}

pub(super) fn open_state(directory: &Path) -> io::Result<(Ownership, Restored)> {
    std::fs::create_dir_all(directory)?;
    let lock = writer::lock_soon(directory)?;
    let has_journal =
        std::fs::metadata(journal::path(directory)).is_ok_and(|journal| journal.len() > 0);
    let restored = crate::state::status_file::restore(
        directory,
        has_journal || journal::moved_away(directory).is_some(),
    );
    if let Restored::Unreadable(why) = &restored {
        tracing::error!(directory = %directory.display(), why, "the saved state cannot be read: EVERY rollout starts at 0 % until it is re-armed, and maintenance is off");
    }
    let (ownership, opened) = Ownership::open(directory, lock)?;
    if opened.torn > 0 {
        tracing::warn!(
            bytes = opened.torn,
            "the journal ended in the middle of a line; that line was cut off"
        );
    }
    let note = match (&opened.continues, &restored) {
        _ if !opened.is_new => None,
        (Some(moved), _) => Some(format!(
            "the journal was moved away while no proxy ran; a new file continues the chain of {}",
            moved.display()
        )),
        (None, Restored::Fresh) => None,
        (None, Restored::Known(_) | Restored::Unreadable(_)) => Some(
            "the journal is missing although there is a saved state; a new chain begins".to_owned(),
        ),
    };
    if let Some(note) = &note {
        tracing::warn!(directory = %directory.display(), what = note, "the journal is not the file that was written last");
    }
    Ok((ownership.with_note(note), restored))
}

#[cfg(test)]
mod tests {

    use crate::assemble::restore::state_directory_of;

    #[test]
    fn the_state_directory_is_found_in_a_file_that_does_not_parse() {
        let directory = |text: &str| state_directory_of(text);
        assert_eq!(
            directory("[state]\ndirectory = \"/srv/state\" # here\n[backend.legacy\n").as_deref(),
            Some("/srv/state")
        );
        assert_eq!(
            directory("[[rollout]\npercent = 5%").as_deref(),
            Some("/var/lib/cutover")
        );
        assert_eq!(
            directory("[state]\n[log]\ndirectory = \"/no\"").as_deref(),
            Some("/var/lib/cutover")
        );
    }
}
