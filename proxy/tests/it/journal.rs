//! A long-lived journal: read in bounded memory, moved away, and continued.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::harness::{Proxy, rollout, until};
use crate::process::{Process, World, log_line};

fn hash(line: &str) -> String {
    format!("{:x}", Sha256::digest(line))
}

/// Writes an intact journal of at least this many bytes, with lines like those of rollbacks.
fn long_journal(state: &Path, bytes: usize) -> usize {
    fs::create_dir_all(state).unwrap();
    let mut file = std::io::BufWriter::new(fs::File::create(state.join("journal.jsonl")).unwrap());
    let (mut previous, mut written, mut lines) = ("0".repeat(64), 0, 0);
    let reason = "x".repeat(30_000);
    while written < bytes {
        let rollout = if lines % 2 == 0 { "checkout" } else { "gone" };
        let line = json!({
            "at": "2026-11-20T10:15:30.250Z", "rollout": rollout, "change": "percent", "actor": "ana", "source": "cli",
            "reason": reason, "sentence": format!("change {lines}"), "previous": previous,
        })
        .to_string();
        (previous, lines) = (hash(&line), lines + 1);
        written += file.write(format!("{line}\n").as_bytes()).unwrap();
    }
    file.flush().unwrap();
    lines
}

/// Returns the peak memory of a process, in MiB.
fn peak(process: &Process) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.child.id())).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

#[test]
fn a_long_journal_is_read_in_bounded_memory_by_many_at_once() {
    const MIB: usize = 192;
    let world = World::new(&rollout("checkout", "5", ""));
    let lines = long_journal(&world.path().join("state"), MIB * 1024 * 1024);
    // Without a state beside the journal every rollout would start latched. Another test covers
    // that.
    fs::rename(
        world.path().join("state/journal.jsonl"),
        world.path().join("kept"),
    )
    .unwrap();
    Process::start(world.path()).kill();
    fs::rename(
        world.path().join("kept"),
        world.path().join("state/journal.jsonl"),
    )
    .unwrap();
    let process = Process::start(world.path());
    assert!(
        peak(&process) < MIB as u64 / 2,
        "the start took {} MiB",
        peak(&process)
    );
    let ask = |target: &str| process.admin_ask("GET", target, &Value::Null);
    std::thread::scope(|scope| {
        let askers: Vec<_> = (0..5)
            .map(|_| scope.spawn(|| ask("/api/v1/history?limit=5").json()))
            .collect();
        for asker in askers {
            let history = asker.join().unwrap();
            assert_eq!(history["records"].as_array().unwrap().len(), 5);
            assert_eq!(
                (&history["chain"]["intact"], &history["chain"]["whole"]),
                (&json!(true), &json!(false)),
                "{}",
                history["chain"]
            );
        }
    });
    let gone = ask("/api/v1/history?limit=2&rollout=gone").json();
    let sentence = |record: &Value| record["sentence"].as_str().unwrap().to_owned();
    let last_gone = if lines.is_multiple_of(2) {
        lines - 1
    } else {
        lines - 2
    };
    assert_eq!(
        gone["records"]
            .as_array()
            .unwrap()
            .iter()
            .map(sentence)
            .collect::<Vec<_>>(),
        [
            format!("change {last_gone}"),
            format!("change {}", last_gone - 2)
        ]
    );
    let many = ask("/api/v1/history?limit=1000").json();
    let (given, bytes) = (
        many["records"].as_array().unwrap().len(),
        many.to_string().len(),
    );
    assert!(
        (100..1_000).contains(&given) && bytes < 9 * 1024 * 1024,
        "{given} records, {bytes} bytes"
    );
    let whole = ask("/api/v1/history?limit=1&verify=true").json();
    assert_eq!(
        (&whole["chain"]["intact"], &whole["chain"]["whole"]),
        (&json!(true), &json!(true)),
        "{}",
        whole["chain"]
    );
    assert!(whole["chain"]["lines"].as_u64().unwrap() > lines as u64);
    assert!(
        peak(&process) < MIB as u64 / 2,
        "all of it took {} MiB",
        peak(&process)
    );
    let refused = ask("/api/v1/history?limit=1001");
    assert_eq!(
        (refused.status(), refused.json()["error"]["code"].as_str()),
        (400, Some("bad_query")),
        "{}",
        refused.text()
    );
    process.kill();
}

/// A guard that unblocks readers of a pipe, even if the test has failed.
struct Release<'a>(&'a Path);

impl Drop for Release<'_> {
    fn drop(&mut self) {
        // The pipe is opened for both directions, so that the open itself does not block.
        let _ = fs::File::options().read(true).write(true).open(self.0);
    }
}

#[test]
fn more_histories_than_permits_are_refused_with_a_retry_time() {
    let proxy = Proxy::start(&rollout("checkout", "5", ""));
    let journal = proxy.directory.path().join("state/journal.jsonl");
    // Opening a pipe blocks until another process writes to it, so this reading takes forever.
    fs::remove_file(&journal).unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(&journal)
            .status()
            .unwrap()
            .success()
    );
    let release = Release(&journal);
    std::thread::scope(|scope| {
        let asking = || scope.spawn(|| proxy.admin_ask("GET", "/api/v1/history", &[], b""));
        let askers: Vec<_> = (0..4).map(|_| asking()).collect();
        let (mut refused, mut waiting): (Vec<_>, Vec<_>) = (Vec::new(), askers);
        until("two to be refused", || {
            let (done, others): (Vec<_>, Vec<_>) = std::mem::take(&mut waiting)
                .into_iter()
                .partition(std::thread::ScopedJoinHandle::is_finished);
            refused.extend(done);
            waiting = others;
            (refused.len() == 2).then_some(())
        });
        for asker in refused {
            let answer = asker.join().unwrap();
            assert_eq!(
                (
                    answer.status(),
                    answer.header("retry-after"),
                    answer.json()["error"]["code"].as_str()
                ),
                (503, Some("1"), Some("busy"))
            );
        }
        assert_eq!(
            proxy.rollout()["desired_percent"],
            5.0,
            "everything else is answered"
        );
        drop(release);
        for asker in waiting {
            assert_eq!(asker.join().unwrap().status(), 200);
        }
    });
}

#[test]
fn a_moved_journal_is_reported_and_continued_in_a_new_file() {
    let world = World::new(&rollout("checkout", "5", ""));
    let mut process = Process::start(world.path());
    let (journal, moved) = (
        world.path().join("state/journal.jsonl"),
        world.path().join("state/journal.jsonl.1"),
    );
    let set = |process: &Process, percent: u32| {
        let answer = process.admin_ask(
            "POST",
            "/api/v1/rollouts/checkout/set",
            &json!({"percent": percent, "reason": "CHG-7"}),
        );
        assert_eq!(answer.status(), 200, "{}", answer.text());
    };
    let history = |process: &Process| {
        process
            .admin_ask("GET", "/api/v1/history", &Value::Null)
            .json()
    };
    let status = |process: &Process| {
        process
            .admin_ask("GET", "/api/v1/rollouts", &Value::Null)
            .json()
    };
    until("the first line", || {
        (history(&process)["chain"]["lines"] == 1).then_some(())
    });
    fs::rename(&journal, &moved).unwrap();
    let before = fs::read_to_string(&moved).unwrap();
    set(&process, 6);
    set(&process, 7);
    let what =
        "the journal was moved away or removed while the proxy ran; a new file continues its chain";
    assert_eq!(
        log_line(
            &mut process.log,
            "the journal is not the file that was written last"
        )["what"],
        what
    );
    assert_eq!(status(&process)["journal"], what);
    let told = history(&process);
    assert_eq!(
        (&told["chain"]["intact"], &told["chain"]["lines"]),
        (&json!(true), &json!(2)),
        "{told}"
    );
    assert_eq!(told["chain"]["continues"], hash(before.trim_end()));
    assert_eq!(
        fs::read_to_string(&moved).unwrap(),
        before,
        "nothing goes into the moved file"
    );
    let first: Value = serde_json::from_str(
        fs::read_to_string(&journal)
            .unwrap()
            .lines()
            .next()
            .unwrap(),
    )
    .unwrap();
    assert_eq!(first["previous"], hash(before.trim_end()));
    process.kill();
    // The same move is made while no process runs.
    let last = fs::read_to_string(&journal)
        .unwrap()
        .lines()
        .last()
        .unwrap()
        .to_owned();
    fs::rename(&journal, &moved).unwrap();
    let process = Process::start(world.path());
    assert!(
        status(&process)["journal"]
            .as_str()
            .unwrap()
            .starts_with("the journal was moved away while no proxy ran")
    );
    assert_eq!(
        process.rollout()["effective_percent"],
        7.0,
        "the state is whole"
    );
    until("the first line", || {
        (history(&process)["chain"]["continues"] == hash(&last)).then_some(())
    });
    let output = Command::new(env!("CARGO_BIN_EXE_cutover"))
        .arg("history")
        .arg("--state")
        .arg(world.path().join("state"))
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success()
            && words.contains("the journal continues")
            && words.contains("journal.jsonl.1"),
        "{words}"
    );
    process.kill();
    // The journal is now deleted. This is reported, and a new chain begins.
    fs::remove_file(&journal).unwrap();
    fs::remove_file(&moved).unwrap();
    let process = Process::start(world.path());
    assert_eq!(
        status(&process)["journal"],
        "the journal is missing although there is a saved state; a new chain begins"
    );
    assert_eq!(process.rollout()["effective_percent"], 7.0);
    process.kill();
    // A missing state beside a journal that was moved away is no first start.
    fs::rename(&journal, &moved).unwrap();
    fs::remove_file(world.path().join("state/status.json")).unwrap();
    let process = Process::start(world.path());
    assert_eq!(process.rollout()["latch"]["cause"], "state");
    process.kill();
}

#[test]
fn a_changed_line_deep_in_the_journal_fails_the_history_command() {
    let world = World::new(&rollout("checkout", "5", ""));
    let process = Process::start(world.path());
    for percent in 6..12 {
        let body = json!({"percent": percent, "reason": "CHG-7"});
        assert_eq!(
            process
                .admin_ask("POST", "/api/v1/rollouts/checkout/set", &body)
                .status(),
            200
        );
    }
    let journal = world.path().join("state/journal.jsonl");
    let text = fs::read_to_string(&journal).unwrap();
    // The file is changed in place, so that it stays the same file.
    fs::write(&journal, text.replacen("CHG-7", "CHG-8", 1)).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cutover"));
        let output = command
            .args(["history", "--limit", "1"])
            .args(arguments)
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let admin = format!("http://{}", process.admin);
    for arguments in [
        ["--admin", admin.as_str()],
        ["--state", world.path().join("state").to_str().unwrap()],
    ] {
        let (code, words) = run(&arguments);
        assert!(
            code == Some(1) && words.contains("line 3") && words.contains("changed or taken out"),
            "{arguments:?}: {code:?} {words}"
        );
    }
    process.kill();
}
