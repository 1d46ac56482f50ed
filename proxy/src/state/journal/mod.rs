//! `journal.jsonl`: who changed what, when, why and from where. It has one JSON object per line and
//! is only ever appended to.
//!
//! Each line carries the SHA-256 of the line before it, so that a line changed or removed later is
//! detected. A torn last line, left by a crash of the machine during the write, was never confirmed
//! to any caller and is cut off at the next start.
//!
//! The journal grows for years, so it is read from its end and in bounded memory. A start reads the
//! last line only, and a page of the newest records reads only these. Only [`verify`] reads all of
//! it.
//!
//! The file may be moved away while it is open, to rotate it. That is noticed before the next line.
//! A new file continues the chain, and its first line carries the hash of the last line of the
//! previous file.

mod read;
mod record;
mod verify;

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::state::regular_file;
use read::end_of;
pub use read::{MAX_PAGE, MAX_PAGE_BYTES, Page, newest, page};
pub use record::Record;
pub use verify::{Verified, verify, verify_in};

/// The name of the file in the state directory.
pub const NAME: &str = "journal.jsonl";

/// The longest line that is read as a record, in bytes. A rollback with its preceding minute has
/// tens of thousands.
const MAX_LINE: usize = 4 * 1024 * 1024;

/// The hash that the first line carries in place of that of a previous line.
const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The journal, open for appending.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// The device and inode of the open file.
    inode: (u64, u64),
    /// The length of the file in bytes, as far as this process knows.
    len: u64,
    last: String,
}

/// The findings when a journal was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// The number of bytes of a torn last line that were cut off.
    pub torn: u64,
    /// Whether the journal contained no line.
    pub is_new: bool,
    /// The previous file, moved away before, whose chain a new journal continues.
    pub continues: Option<PathBuf>,
}

impl Journal {
    /// Opens the journal of a state directory.
    ///
    /// # Errors
    /// Fails on any error of the file system.
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

    /// Appends a record and makes it durable. Returns what has happened to the file if it is not
    /// the one that was written last.
    ///
    /// # Errors
    /// Fails on any error of the file system. The record can be appended again; a half-written line
    /// is cut off first.
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

    /// Opens a new file if the open one is no longer in its place. The chain continues.
    fn follow(&mut self) -> io::Result<Option<&'static str>> {
        match fs::metadata(&self.path) {
            Ok(there) if inode(&there) == self.inode && there.len() < self.len => {
                // If the file ends in the middle of a line, the rest of that line would merge with
                // the next.
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

/// Returns the path of the journal of a state directory.
pub fn path(directory: &Path) -> PathBuf {
    directory.join(NAME)
}

/// Returns the journal that was moved away last, such as `journal.jsonl.1`, and the hash of its
/// last line. Compressed files are not read.
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

fn hash(line: &[u8]) -> String {
    format!("{:x}", Sha256::digest(line))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::journal::read::BLOCK;
    use cutover_core::control::maintenance::EVERYTHING;
    use std::io::Read;

    /// Returns all records in order, and the problem of the chain, if there is one, by both ways of
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
    fn the_chain_continues_over_restarts_and_verifies() {
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
    fn a_changed_or_removed_line_is_detected() {
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
    fn a_torn_last_line_is_cut_off_and_the_chain_continues() {
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

    /// A file that counts the bytes read from it.
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
    fn the_newest_records_of_150_mib_are_read_without_the_rest() {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut journal, _) = Journal::open(directory.path()).expect("opened");
        // A hole replaces years of lines: its size counts, and its bytes are never read.
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
    fn a_changed_line_among_the_newest_is_detected_in_their_page() {
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
