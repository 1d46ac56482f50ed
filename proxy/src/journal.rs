//! `journal.jsonl`: who changed what, when, why, from where; one JSON object per line, only ever appended to.
//!
//! Each line carries the SHA-256 of the line before it, so that a line changed or taken out later shows. A torn last line (the machine went down in the middle of it) was never
//! told to anybody and is cut off at the next start.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use cutover_core::maintenance::EVERYTHING;
use cutover_core::plane::{Announcement, Change};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::clock;
use crate::status::{TripStatus, percent};

/// The name of the file in the state directory.
pub const NAME: &str = "journal.jsonl";
/// What stands for the line before the first.
const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When, RFC 3339.
    pub at: String,
    /// Which rollout; `*` for a change that concerns all of them.
    pub rollout: String,
    /// What: started, added, removed, percent, settings, rollback, rearm, `dry_run_breach`, `shared_cause`, `shared_cause_ended`, held, maintenance.
    pub change: String,
    /// Who.
    pub actor: String,
    /// Through which door: file, cli, ui, api, guard, start, timer.
    pub source: String,
    /// Why.
    pub reason: String,
    /// All of it in one sentence.
    pub sentence: String,
    /// The share of users on new from then on; of a change to one rollout.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub effective_percent: Option<f64>,
    /// The share asked for before, for a changed percentage.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub from_percent: Option<f64>,
    /// The share asked for from then on, for a changed percentage.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub to_percent: Option<f64>,
    /// What forced a rollback.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trip: Option<TripStatus>,
    /// The mode from then on, for a changed maintenance.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub maintenance: Option<String>,
    /// When it ends by itself, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub until: Option<String>,
    /// SHA-256 of the line before, in hex.
    #[serde(default)]
    pub previous: String,
}

impl Record {
    /// The record of an announcement; its place in the chain comes when it is appended.
    pub fn new(announcement: &Announcement) -> Self {
        let mut record = Self {
            at: clock::rfc3339(announcement.at),
            rollout: announcement.rollout.to_string(),
            change: announcement.change.name().to_owned(),
            actor: announcement.actor.name.clone(),
            source: announcement.actor.source.name().to_owned(),
            reason: announcement.reason.clone(),
            sentence: announcement.sentence.clone(),
            effective_percent: announcement.effective.map(percent),
            from_percent: None,
            to_percent: None,
            trip: None,
            maintenance: None,
            until: None,
            previous: String::new(),
        };
        match &announcement.change {
            Change::Percent { from, to } => (record.from_percent, record.to_percent) = (Some(percent(*from)), Some(percent(*to))),
            Change::RolledBack(trip) => record.trip = Some(TripStatus::new(trip)),
            Change::Maintenance { mode, until } => (record.maintenance, record.until) = (Some(mode.name().to_owned()), until.map(clock::rfc3339)),
            Change::Started
            | Change::Added
            | Change::Removed
            | Change::Settings
            | Change::Rearmed
            | Change::DryRunBreach
            | Change::SharedCause
            | Change::SharedCauseEnded
            | Change::Held => {}
        }
        record
    }

    /// Whether it tells of this rollout; what concerns all tells of each.
    pub fn tells_of(&self, rollout: &str) -> bool {
        self.rollout == rollout || self.rollout == EVERYTHING
    }
}

/// The journal, open for appending.
#[derive(Debug)]
pub struct Journal {
    file: File,
    last: String,
}

impl Journal {
    /// Opens the journal of a state directory, and says how many bytes of a torn last line were cut off.
    ///
    /// # Errors
    /// Any failure of the file system.
    pub fn open(directory: &Path) -> io::Result<(Self, u64)> {
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(path(directory))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let torn = bytes.len() - whole;
        if torn > 0 {
            file.set_len(whole as u64)?;
            file.seek(SeekFrom::End(0))?;
        }
        let last = bytes[..whole].trim_ascii_end().rsplit(|&byte| byte == b'\n').next().filter(|line| !line.is_empty());
        Ok((Self { file, last: last.map_or_else(|| GENESIS.to_owned(), hash) }, torn as u64))
    }

    /// Appends a record and makes it durable.
    ///
    /// # Errors
    /// Any failure of the file system. The record can be appended again; what was half written is cut off first.
    pub fn append(&mut self, record: &Record) -> io::Result<()> {
        let record = Record { previous: self.last.clone(), ..record.clone() };
        let mut line = serde_json::to_vec(&record)?;
        let hash = hash(&line);
        line.push(b'\n');
        let before = self.file.metadata()?.len();
        if let Err(error) = self.file.write_all(&line).and_then(|()| self.file.sync_data()) {
            let _ = self.file.set_len(before);
            return Err(error);
        }
        self.last = hash;
        Ok(())
    }
}

/// Where the journal of a state directory is.
pub fn path(directory: &Path) -> PathBuf {
    directory.join(NAME)
}

/// All records in order, and what is wrong with the chain, if anything.
///
/// # Errors
/// When the file cannot be read.
pub fn read(directory: &Path) -> io::Result<(Vec<Record>, Option<String>)> {
    let text = match std::fs::read(path(directory)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), None)),
        Err(error) => return Err(error),
    };
    let mut records = Vec::new();
    let mut wrong = None;
    let mut last = GENESIS.to_owned();
    for (number, line) in text.split(|&byte| byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
        match serde_json::from_slice::<Record>(line) {
            Ok(record) => {
                if record.previous != last && wrong.is_none() {
                    wrong = Some(format!("line {}: its `previous` is not the hash of the line before: a line was changed or taken out here", number + 1));
                }
                records.push(record);
            }
            Err(error) => wrong = wrong.or_else(|| Some(format!("line {}: {error}", number + 1))),
        }
        last = hash(line);
    }
    Ok((records, wrong))
}

fn hash(line: &[u8]) -> String {
    format!("{:x}", Sha256::digest(line))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn record(sentence: &str) -> Record {
        Record {
            at: "2026-11-20T10:15:30.250Z".to_owned(),
            rollout: "checkout".to_owned(),
            change: "percent".to_owned(),
            actor: "ana".to_owned(),
            source: "cli".to_owned(),
            reason: "CHG-7".to_owned(),
            sentence: sentence.to_owned(),
            effective_percent: Some(12.5),
            from_percent: Some(5.0),
            to_percent: Some(12.5),
            trip: None,
            maintenance: None,
            until: None,
            previous: String::new(),
        }
    }

    #[test]
    fn the_chain_goes_on_over_restarts_and_verifies() {
        let directory = tempfile::tempdir().expect("a directory");
        for round in 0..3 {
            let (mut journal, torn) = Journal::open(directory.path()).expect("opened");
            assert_eq!(torn, 0);
            journal.append(&record(&format!("round {round}\nwith a line break"))).expect("appended");
            journal.append(&record("again")).expect("appended");
        }
        let (records, wrong) = read(directory.path()).expect("read");
        assert_eq!((records.len(), wrong), (6, None));
        assert_eq!(records[0].previous, GENESIS);
    }

    #[test]
    fn a_line_changed_or_taken_out_shows() {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut journal, _) = Journal::open(directory.path()).expect("opened");
        for n in 0..4 {
            journal.append(&record(&format!("change {n}"))).expect("appended");
        }
        let path = path(directory.path());
        let good = fs::read_to_string(&path).expect("text");
        let taken_out: Vec<&str> = good.lines().enumerate().filter(|(at, _)| *at != 1).map(|(_, line)| line).collect();
        for (bad, line) in [(good.replace("change 1", "change X"), "line 3"), (taken_out.join("\n") + "\n", "line 2"), (good.replace("{\"at\"", "{at"), "line 1")] {
            fs::write(&path, bad).expect("written");
            let wrong = read(directory.path()).expect("read").1.expect("something is wrong");
            assert!(wrong.starts_with(line), "{wrong}");
        }
    }

    #[test]
    fn a_torn_last_line_is_cut_off_and_the_chain_goes_on() {
        let directory = tempfile::tempdir().expect("a directory");
        Journal::open(directory.path()).expect("opened").0.append(&record("whole")).expect("appended");
        let mut torn = fs::read(path(directory.path())).expect("bytes");
        torn.extend_from_slice(b"{\"at\":\"2026");
        fs::write(path(directory.path()), torn).expect("written");
        let (mut journal, cut) = Journal::open(directory.path()).expect("opened");
        assert_eq!(cut, 11);
        journal.append(&record("after")).expect("appended");
        let (records, wrong) = read(directory.path()).expect("read");
        assert_eq!((records.len(), wrong), (2, None));
    }
}
