//! `journal.jsonl`: who changed what, when, why, from where; one JSON object per line, only ever
//! appended to.
//!
//! Each line carries the SHA-256 of the line before it, so that a line changed or taken out later
//! shows. A torn last line (the machine went down in the middle of it) was never told to anybody
//! and is cut off at the next start.
//!
//! It grows for years, so it is read from its end and in bounded memory: a start looks for the last
//! line only, and so does a page of the newest records. Only [`verify`] goes through all of it.
//!
//! Somebody may move the file away while it is open, to rotate it. That is noticed before the next
//! line: a new file continues the chain, and its first line carries the hash of the last line of
//! the file before.

use std::collections::VecDeque;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, BufRead, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cutover_core::control::maintenance::EVERYTHING;
use cutover_core::control::plane::{Announcement, Change};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::clock;
use crate::state::regular_file;
use crate::status::{TripStatus, percent};

/// The name of the file in the state directory.
pub const NAME: &str = "journal.jsonl";
/// How many bytes are read at a time.
const BLOCK: u64 = 64 * 1024;
/// The longest line that is read as a record, in bytes. A rollback with the minute before it has
/// tens of thousands.
const MAX_LINE: usize = 4 * 1024 * 1024;
/// The most records of one page.
pub const MAX_PAGE: usize = 1_000;
/// The most bytes of the records of one page, as they are in the file.
pub const MAX_PAGE_BYTES: usize = 8 * 1024 * 1024;
/// What stands for the line before the first.
const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When, RFC 3339.
    pub at: String,
    /// Which rollout; `*` for a change that concerns all of them.
    pub rollout: String,
    /// What: started, added, removed, percent, settings, rollback, rearm, `dry_run_breach`,
    /// `shared_cause`, `shared_cause_ended`, held, maintenance.
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
            Change::Percent { from, to } => {
                (record.from_percent, record.to_percent) =
                    (Some(percent(*from)), Some(percent(*to)));
            }
            Change::RolledBack(trip) => record.trip = Some(TripStatus::new(trip)),
            Change::Maintenance { mode, until } => {
                (record.maintenance, record.until) =
                    (Some(mode.name().to_owned()), until.map(clock::rfc3339));
            }
            Change::Started
            | Change::Added
            | Change::Removed
            | Change::Settings
            | Change::Rearmed
            | Change::DryRunBreach
            | Change::SharedCause
            | Change::SharedCauseEnded
            | Change::NoRefuge
            | Change::NoRefugeEnded
            | Change::Spilled
            | Change::SpillEnded
            | Change::LegacyOverloaded
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
    path: PathBuf,
    file: File,
    /// Device and inode of the open file.
    inode: (u64, u64),
    /// How long the file is as far as this process knows.
    len: u64,
    last: String,
}

/// What was found when a journal was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// How many bytes of a torn last line were cut off.
    pub torn: u64,
    /// Whether there was no line in it.
    pub is_new: bool,
    /// The file whose chain a new journal continues: one that was moved away before.
    pub continues: Option<PathBuf>,
}

impl Journal {
    /// Opens the journal of a state directory.
    ///
    /// # Errors
    /// Any failure of the file system.
    pub fn open(directory: &Path) -> io::Result<(Self, Opened)> {
        let path = path(directory);
        let (file, metadata, last, torn) = open_at(&path)?;
        let mut opened = Opened {
            torn,
            is_new: last.is_none(),
            continues: None,
        };
        let last = match last {
            Some(last) => last,
            None => match moved_away(directory) {
                Some((moved, last)) => {
                    opened.continues = Some(moved);
                    last
                }
                None => GENESIS.to_owned(),
            },
        };
        Ok((
            Self {
                path,
                file,
                inode: inode(&metadata),
                len: metadata.len(),
                last,
            },
            opened,
        ))
    }

    /// Appends a record and makes it durable. Says what has happened to the file, if it is not the
    /// one that was written last.
    ///
    /// # Errors
    /// Any failure of the file system. The record can be appended again; what was half written is
    /// cut off first.
    pub fn append(&mut self, record: &Record) -> io::Result<Option<&'static str>> {
        let lost = self.follow()?;
        let record = Record {
            previous: self.last.clone(),
            ..record.clone()
        };
        let mut line = serde_json::to_vec(&record)?;
        let hash = hash(&line);
        line.push(b'\n');
        let before = self.file.metadata()?.len();
        if let Err(error) = self
            .file
            .write_all(&line)
            .and_then(|()| self.file.sync_data())
        {
            let _ = self.file.set_len(before);
            return Err(error);
        }
        (self.last, self.len) = (hash, before + line.len() as u64);
        Ok(lost)
    }

    /// Opens a new file if the open one is not at its place any longer. The chain goes on.
    fn follow(&mut self) -> io::Result<Option<&'static str>> {
        match fs::metadata(&self.path) {
            Ok(there) if inode(&there) == self.inode && there.len() < self.len => {
                // In the middle of a line the rest of that line would make one with the next.
                let (whole, _) = end_of(&mut self.file, there.len())?;
                if whole < there.len() {
                    self.file.set_len(whole)?;
                }
                self.len = whole;
                Ok(Some(
                    "the journal was cut while the proxy ran; the next line continues its chain",
                ))
            }
            Ok(there) if inode(&there) == self.inode => Ok(None),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(_) | Err(_) => {
                let (file, metadata, _, _) = open_at(&self.path)?;
                file.sync_all()?;
                if let Some(directory) = self.path.parent() {
                    File::open(directory)?.sync_all()?;
                }
                (self.file, self.inode, self.len) = (file, inode(&metadata), metadata.len());
                Ok(Some(
                    "the journal was moved away or removed while the proxy ran; a new file \
                     continues its chain",
                ))
            }
        }
    }
}

fn inode(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Opens a journal, cuts off a torn last line, and returns the hash of the last line.
fn open_at(path: &Path) -> io::Result<(File, Metadata, Option<String>, u64)> {
    let mut file = regular_file::open(
        OpenOptions::new().create(true).read(true).append(true),
        path,
    )?;
    let len = file.metadata()?.len();
    let (whole, last) = end_of(&mut file, len)?;
    if whole < len {
        file.set_len(whole)?;
    }
    file.seek(SeekFrom::End(0))?;
    let metadata = file.metadata()?;
    Ok((file, metadata, last, len - whole))
}

/// Where the last whole line of a file ends, and its hash. Reads from the end, in blocks.
fn end_of(file: &mut (impl Read + Seek), len: u64) -> io::Result<(u64, Option<String>)> {
    let whole = last_byte(file, len, |byte| byte == b'\n')?.map_or(0, |at| at + 1);
    let Some(end) = last_byte(file, whole, |byte| !byte.is_ascii_whitespace())?.map(|at| at + 1)
    else {
        return Ok((whole, None));
    };
    let start = last_byte(file, end, |byte| byte == b'\n')?.map_or(0, |at| at + 1);
    file.seek(SeekFrom::Start(start))?;
    let (mut hash, mut left, mut block) = (Sha256::new(), end - start, vec![0; BLOCK as usize]);
    while left > 0 {
        let part = &mut block[..left.min(BLOCK) as usize];
        file.read_exact(part)?;
        hash.update(&*part);
        left -= part.len() as u64;
    }
    Ok((whole, Some(format!("{:x}", hash.finalize()))))
}

/// The last place before `end` that has such a byte.
fn last_byte(
    file: &mut (impl Read + Seek),
    end: u64,
    is_it: impl Fn(u8) -> bool,
) -> io::Result<Option<u64>> {
    let (mut end, mut block) = (end, vec![0; BLOCK as usize]);
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        let part = &mut block[..(end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(part)?;
        if let Some(at) = part.iter().rposition(|byte| is_it(*byte)) {
            return Ok(Some(start + at as u64));
        }
        end = start;
    }
    Ok(None)
}

/// Where the journal of a state directory is.
pub fn path(directory: &Path) -> PathBuf {
    directory.join(NAME)
}

/// The journal that was moved away last, such as `journal.jsonl.1`, and the hash of its last line.
/// Files that were compressed are not looked into.
pub fn moved_away(directory: &Path) -> Option<(PathBuf, String)> {
    let others = fs::read_dir(directory).ok()?.flatten().filter(|entry| {
        let name = entry.file_name();
        let rest = name
            .to_str()
            .and_then(|name| name.strip_prefix(NAME))
            .unwrap_or_default();
        rest.starts_with(['.', '-'])
    });
    let mut others: Vec<_> = others
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    others.sort();
    others.into_iter().rev().find_map(|(_, path)| {
        let mut file = regular_file::open_to_read(&path).ok()?;
        let len = file.metadata().ok()?.len();
        let newest = page(&mut file, len, None, 1, MAX_LINE).ok()?;
        let (_, last) = end_of(&mut file, len).ok()?;
        (newest.problem.is_none() && newest.records.len() == 1).then_some((path, last?))
    })
}

/// The newest records of a journal, and how the part of the chain stands that was read for them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// The newest first.
    pub records: Vec<Record>,
    /// What is wrong with the chain, if anything.
    pub problem: Option<String>,
    /// How many lines were read.
    pub lines: u64,
    /// Whether that were all lines.
    pub is_whole: bool,
    /// The hash of the last line of the file before, if this one does not begin the chain. Known
    /// when the first line was read.
    pub continues: Option<String>,
}

/// Reads the newest records from the end of a file of this length: of one rollout, or all of them;
/// at most so many, and with at most so many bytes.
///
/// # Errors
/// Any failure of the file system.
pub fn page(
    file: impl Read + Seek,
    len: u64,
    rollout: Option<&str>,
    limit: usize,
    bytes: usize,
) -> io::Result<Page> {
    let mut lines = FromEnd {
        file,
        start: len,
        pending: VecDeque::new(),
        is_torn: true,
    };
    let (mut page, mut left) = (Page::default(), bytes);
    // What the line after this one says its hash is.
    let mut expected: Option<String> = None;
    loop {
        let is_full = page.records.len() >= limit;
        let Some(line) = lines.next()? else { break };
        let place = lines.start + lines.pending.len() as u64;
        if expected
            .take()
            .is_some_and(|expected| expected != hash(&line))
            && page.problem.is_none()
        {
            page.problem = Some(format!(
                "the line at byte {place} is not the one that the line after it names: a line was \
                 changed or taken out here"
            ));
        }
        if is_full {
            // It was read only to hold it against the oldest of the page.
            return Ok(Page {
                continues: None,
                ..page
            });
        }
        page.lines += 1;
        match serde_json::from_slice::<Brief>(&line) {
            Ok(brief) => expected = Some(brief.previous.clone()),
            Err(error) => {
                page.problem = page
                    .problem
                    .or_else(|| Some(format!("the line at byte {place}: {error}")));
            }
        }
        page.continues.clone_from(&expected);
        let concerns = serde_json::from_slice::<Brief>(&line).is_ok_and(|brief| {
            rollout.is_none_or(|rollout| brief.rollout == rollout || brief.rollout == EVERYTHING)
        });
        if !concerns {
            continue;
        }
        match left.checked_sub(line.len()) {
            Some(less) => left = less,
            // At least one record is given out, however long it is.
            None if !page.records.is_empty() => {
                return Ok(Page {
                    continues: None,
                    ..page
                });
            }
            None => left = 0,
        }
        match serde_json::from_slice::<Record>(&line) {
            Ok(record) => page.records.push(record),
            Err(error) => {
                page.problem = page
                    .problem
                    .or_else(|| Some(format!("the line at byte {place}: {error}")));
            }
        }
    }
    page.is_whole = true;
    page.continues = page
        .continues
        .filter(|previous| previous != GENESIS && !previous.is_empty());
    Ok(page)
}

/// What the chain needs of a line.
#[derive(Deserialize)]
struct Brief {
    rollout: String,
    #[serde(default)]
    previous: String,
}

/// The lines of a file from its end.
struct FromEnd<F> {
    file: F,
    /// Everything from here on has been read.
    start: u64,
    /// What has been read and not been given out.
    pending: VecDeque<u8>,
    /// Whether what is pending may be a torn last line, which is nobody's.
    is_torn: bool,
}

impl<F: Read + Seek> FromEnd<F> {
    /// The line before the one that was given out last, without its line break. Blank lines are
    /// left out, and so is a last line without a line break: it is being written.
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut searched = 0;
        loop {
            let unsearched = self.pending.len() - searched;
            if let Some(at) = self
                .pending
                .iter()
                .take(unsearched)
                .rposition(|byte| *byte == b'\n')
            {
                let line: Vec<u8> = self.pending.split_off(at + 1).into();
                self.pending.pop_back();
                searched = 0;
                if !std::mem::replace(&mut self.is_torn, false) && !line.trim_ascii().is_empty() {
                    return Ok(Some(line));
                }
                continue;
            }
            searched = self.pending.len();
            if self.start == 0 {
                let line: Vec<u8> = std::mem::take(&mut self.pending).into();
                return Ok(Some(line).filter(|line| !self.is_torn && !line.trim_ascii().is_empty()));
            }
            if self.pending.len() > MAX_LINE {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(
                        "a line before byte {} has more than {MAX_LINE} bytes",
                        self.start + self.pending.len() as u64
                    ),
                ));
            }
            let start = self.start.saturating_sub(BLOCK);
            let mut block = vec![0; (self.start - start) as usize];
            self.file.seek(SeekFrom::Start(start))?;
            self.file.read_exact(&mut block)?;
            self.start = start;
            for byte in block.into_iter().rev() {
                self.pending.push_front(byte);
            }
        }
    }
}

/// How the whole chain stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// The first thing that is wrong with it, if anything.
    pub problem: Option<String>,
    /// How many lines it has.
    pub lines: u64,
    /// The hash of the last line of the file before, if this one does not begin the chain.
    pub continues: Option<String>,
}

/// Goes through a whole journal line by line, in bounded memory.
///
/// # Errors
/// Any failure of the file system.
pub fn verify(mut file: impl BufRead) -> io::Result<Verified> {
    let mut verified = Verified::default();
    let (mut line, mut number, mut last) = (Vec::new(), 0, None);
    loop {
        line.clear();
        number += 1;
        if file
            .by_ref()
            .take(MAX_LINE as u64 + 1)
            .read_until(b'\n', &mut line)?
            == 0
        {
            return Ok(verified);
        }
        let problem = if line.len() > MAX_LINE {
            Some(format!(
                "line {number}: it has more than {MAX_LINE} bytes, so the lines after it were not \
                 read"
            ))
        } else if line.pop_if(|byte| *byte == b'\n').is_none() {
            // It is being written.
            return Ok(verified);
        } else if line.trim_ascii().is_empty() {
            continue;
        } else {
            verified.lines += 1;
            match (serde_json::from_slice::<Record>(&line), &last) {
                (Err(error), _) => Some(format!("line {number}: {error}")),
                (Ok(record), None) => {
                    verified.continues = Some(record.previous)
                        .filter(|previous| previous != GENESIS && !previous.is_empty());
                    None
                }
                (Ok(record), Some(last)) if record.previous != *last => Some(format!(
                    "line {number}: its `previous` is not the hash of the line before: a line was \
                     changed or taken out here"
                )),
                (Ok(_), Some(_)) => None,
            }
        };
        let ends = line.len() > MAX_LINE;
        last = Some(hash(&line));
        verified.problem = verified.problem.or(problem);
        if ends {
            return Ok(verified);
        }
    }
}

/// The newest records of a state directory, as [`page`] reads them. No journal is an empty one.
///
/// # Errors
/// When the file cannot be read.
pub fn newest(
    directory: &Path,
    rollout: Option<&str>,
    limit: usize,
    bytes: usize,
) -> io::Result<Page> {
    match File::open(path(directory)) {
        Ok(file) => {
            let len = file.metadata()?.len();
            page(file, len, rollout, limit, bytes)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Page {
            is_whole: true,
            ..Page::default()
        }),
        Err(error) => Err(error),
    }
}

/// How the whole chain of a state directory stands, as [`verify`] says it. No journal is an empty
/// one.
///
/// # Errors
/// When the file cannot be read.
pub fn verify_in(directory: &Path) -> io::Result<Verified> {
    match regular_file::open_to_read(&path(directory)) {
        Ok(file) => verify(io::BufReader::with_capacity(BLOCK as usize, file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Verified::default()),
        Err(error) => Err(error),
    }
}

fn hash(line: &[u8]) -> String {
    format!("{:x}", Sha256::digest(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All records in order, and what is wrong with the chain, if anything: by both ways of
    /// reading.
    fn read(directory: &Path) -> (Vec<Record>, Option<String>) {
        let verified = verify_in(directory).expect("read");
        let mut page = newest(directory, None, usize::MAX, usize::MAX).expect("read");
        assert_eq!(
            page.problem.is_some(),
            verified.problem.is_some(),
            "{page:?} {verified:?}"
        );
        assert!(page.is_whole && page.continues == verified.continues);
        page.records.reverse();
        (page.records, verified.problem)
    }

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
            let (mut journal, opened) = Journal::open(directory.path()).expect("opened");
            assert_eq!((opened.torn, opened.is_new), (0, round == 0));
            journal
                .append(&record(&format!("round {round}\nwith a line break")))
                .expect("appended");
            journal.append(&record("again")).expect("appended");
        }
        let (records, wrong) = read(directory.path());
        assert_eq!((records.len(), wrong), (6, None));
        assert_eq!(records[0].previous, GENESIS);
    }

    #[test]
    fn a_line_changed_or_taken_out_shows() {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut journal, _) = Journal::open(directory.path()).expect("opened");
        for n in 0..4 {
            journal
                .append(&record(&format!("change {n}")))
                .expect("appended");
        }
        let path = path(directory.path());
        let good = fs::read_to_string(&path).expect("text");
        let taken_out: Vec<&str> = good
            .lines()
            .enumerate()
            .filter(|(at, _)| *at != 1)
            .map(|(_, line)| line)
            .collect();
        for (bad, line) in [
            (good.replace("change 1", "change X"), "line 3"),
            (taken_out.join("\n") + "\n", "line 2"),
            (good.replace("{\"at\"", "{at"), "line 1"),
        ] {
            fs::write(&path, bad).expect("written");
            let wrong = read(directory.path()).1.expect("something is wrong");
            assert!(wrong.starts_with(line), "{wrong}");
        }
    }

    #[test]
    fn a_torn_last_line_is_cut_off_and_the_chain_goes_on() {
        let directory = tempfile::tempdir().expect("a directory");
        Journal::open(directory.path())
            .expect("opened")
            .0
            .append(&record("whole"))
            .expect("appended");
        let mut torn = fs::read(path(directory.path())).expect("bytes");
        torn.extend_from_slice(b"{\"at\":\"2026");
        fs::write(path(directory.path()), torn).expect("written");
        let (mut journal, cut) = Journal::open(directory.path()).expect("opened");
        assert_eq!(cut.torn, 11);
        journal.append(&record("after")).expect("appended");
        let (records, wrong) = read(directory.path());
        assert_eq!((records.len(), wrong), (2, None));
    }

    /// A file that counts what is read of it.
    struct Counted<'a>(File, &'a std::cell::Cell<u64>);

    impl Read for Counted<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let read = self.0.read(buffer)?;
            self.1.set(self.1.get() + read as u64);
            Ok(read)
        }
    }

    impl Seek for Counted<'_> {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.0.seek(to)
        }
    }

    #[test]
    fn the_newest_of_150_mib_are_read_without_reading_the_rest() {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut journal, _) = Journal::open(directory.path()).expect("opened");
        // A hole stands for years of lines: its size counts, and its bytes are never looked at.
        journal.file.set_len(150 * 1024 * 1024).expect("a hole");
        journal.file.seek(SeekFrom::End(0)).expect("at the end");
        journal.file.write_all(b"\n").expect("written");
        for n in 0..10 {
            journal
                .append(&record(&format!("change {n}")))
                .expect("appended");
        }
        let read = std::cell::Cell::new(0);
        let counted = || Counted(File::open(path(directory.path())).expect("opened"), &read);
        let len = counted().0.metadata().expect("known").len();
        let page = page(counted(), len, None, 5, MAX_PAGE_BYTES).expect("read");
        let sentences: Vec<&str> = page
            .records
            .iter()
            .map(|record| record.sentence.as_str())
            .collect();
        assert_eq!(
            (sentences, page.problem, page.is_whole),
            (
                vec!["change 9", "change 8", "change 7", "change 6", "change 5"],
                None,
                false
            )
        );
        assert!(
            (1..=2 * BLOCK).contains(&read.get()),
            "{} bytes were read",
            read.get()
        );
        // A start needs the last line only.
        read.set(0);
        let (whole, last) = end_of(&mut counted(), len).expect("read");
        assert_eq!((whole, last), (len, Some(journal.last)));
        assert!(
            (1..=4 * BLOCK).contains(&read.get()),
            "{} bytes were read",
            read.get()
        );
    }

    #[test]
    fn a_page_is_bounded_in_records_and_in_bytes_and_filtered() {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut journal, _) = Journal::open(directory.path()).expect("opened");
        for n in 0..2_000 {
            let rollout = ["checkout", "search", EVERYTHING, "a"][n % 4].to_owned();
            journal
                .append(&Record {
                    rollout,
                    ..record(&format!("{n:05} {}", "x".repeat(n % 700)))
                })
                .expect("appended");
        }
        let of = |rollout, limit, bytes| {
            let page = newest(directory.path(), rollout, limit, bytes).expect("read");
            assert_eq!(page.problem, None);
            (
                page.records
                    .iter()
                    .map(|record| record.sentence[..5].parse::<usize>().expect("a number"))
                    .collect::<Vec<_>>(),
                page.is_whole,
            )
        };
        assert_eq!(of(None, 3, usize::MAX), (vec![1_999, 1_998, 1_997], false));
        assert_eq!(
            of(Some("search"), 4, usize::MAX),
            (vec![1_998, 1_997, 1_994, 1_993], false)
        );
        assert_eq!(
            of(Some("nobody"), 1_000, usize::MAX).0.len(),
            500,
            "what concerns all concerns each"
        );
        assert_eq!(of(None, 0, usize::MAX), (vec![], false));
        let all = of(None, 5_000, usize::MAX);
        assert_eq!((all.0.len(), all.1), (2_000, true));
        let (few, is_whole) = of(None, 5_000, 10_000);
        assert!((2..50).contains(&few.len()) && !is_whole, "{}", few.len());
        assert_eq!(of(None, 5, 1).0, [1_999], "at least one is given out");
    }

    #[test]
    fn a_line_that_is_changed_among_the_newest_shows_in_their_page() {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut journal, _) = Journal::open(directory.path()).expect("opened");
        for n in 0..6 {
            journal
                .append(&record(&format!("change {n}")))
                .expect("appended");
        }
        let path = path(directory.path());
        let good = fs::read_to_string(&path).expect("text");
        fs::write(&path, good.replace("change 3", "change X")).expect("written");
        let problem = |limit| {
            newest(directory.path(), None, limit, usize::MAX)
                .expect("read")
                .problem
        };
        assert_eq!(problem(1), None, "it was not read that far");
        assert!(
            problem(2)
                .is_some_and(|problem| problem.contains("a line was changed or taken out here"))
        );
        assert!(problem(6).is_some());
    }

    #[test]
    fn a_journal_moved_away_is_noticed_once_and_its_chain_continues() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, moved) = (
            path(directory.path()),
            directory.path().join("journal.jsonl.1"),
        );
        let (mut journal, _) = Journal::open(directory.path()).expect("opened");
        assert_eq!(journal.append(&record("one")).expect("appended"), None);
        for way in ["renamed", "removed", "copied and cut"] {
            let last = journal.last.clone();
            match way {
                "renamed" => fs::rename(&path, &moved).expect("renamed"),
                "removed" => fs::remove_file(&path).expect("removed"),
                _ => fs::write(&path, "").expect("cut"),
            }
            assert!(
                journal.append(&record("two")).expect("appended").is_some(),
                "{way}"
            );
            assert_eq!(
                journal.append(&record("three")).expect("appended"),
                None,
                "{way}: said once"
            );
            let (records, wrong) = read(directory.path());
            assert_eq!(
                (records.len(), wrong, &records[0].previous),
                (2, None, &last),
                "{way}"
            );
        }
        assert_eq!(
            fs::read_to_string(&moved).expect("text").lines().count(),
            1,
            "nothing is written into the moved file"
        );
    }

    #[test]
    fn a_journal_moved_away_before_a_start_is_continued() {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut journal, _) = Journal::open(directory.path()).expect("opened");
        journal.append(&record("one")).expect("appended");
        let last = journal.last.clone();
        let moved = directory.path().join("journal.jsonl.1");
        fs::rename(path(directory.path()), &moved).expect("renamed");
        fs::write(directory.path().join("journal.jsonl.2.gz"), [0x1f, 0x8b]).expect("written");
        fs::write(directory.path().join("journal.jsonl.txt"), "a note\n").expect("written");
        let (mut journal, opened) = Journal::open(directory.path()).expect("opened");
        assert_eq!(
            (opened.is_new, opened.continues.as_ref()),
            (true, Some(&moved))
        );
        journal.append(&record("two")).expect("appended");
        let (records, wrong) = read(directory.path());
        assert_eq!(
            (records.len(), wrong, &records[0].previous),
            (1, None, &last)
        );
        assert_eq!(
            Journal::open(directory.path()).expect("opened").1.continues,
            None
        );
    }
}
