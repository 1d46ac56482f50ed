//! Files that are written slowly in place. A part of a file is never used as the whole.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::harness::{PATIENCE, Proxy, rollout, until};

/// Returns a list of this many users, each in `always_legacy` or `always_new`.
fn users(count: usize) -> String {
    (0..count)
        .map(|user| format!("protected-user-{user:06}\n"))
        .collect()
}

/// Starts a proxy with all users on new except those of a list.
fn protected(count: usize) -> Proxy {
    Proxy::start_prepared(|directory| {
        fs::write(directory.join("keep.txt"), users(count)).unwrap();
        (
            String::new(),
            rollout("checkout", "100", "always_legacy = [\"file:keep.txt\"]"),
        )
    })
}

/// Writes a file in place in pieces, with a pause after each. The pauses are what is tested.
fn write_slowly(path: &Path, text: &str, piece: usize, pause: Duration) {
    let mut file = fs::File::create(path).unwrap();
    for piece in text.as_bytes().chunks(piece) {
        file.write_all(piece).unwrap();
        std::thread::sleep(pause);
    }
}

fn waits_for(proxy: &Proxy, file: &str) -> bool {
    proxy.status()["config"]["waiting_for"]
        .as_array()
        .is_some_and(|files| files.iter().any(|found| found == file))
}

#[test]
fn a_protective_list_written_slowly_never_loses_a_user() {
    let proxy = protected(40_000);
    let list = proxy.directory.path().join("keep.txt");
    let written = AtomicBool::new(false);
    let told = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            write_slowly(
                &list,
                &(users(40_000) + "one-more\n"),
                64 * 1024,
                Duration::from_millis(60),
            );
            written.store(true, Ordering::SeqCst);
        });
        let mut client = proxy.client();
        let mut sides = BTreeSet::new();
        for user in (0..40_000).step_by(379).cycle() {
            let answer = client
                .ask(
                    "GET",
                    "/",
                    &[("x-user-id", &format!("protected-user-{user:06}"))],
                    b"",
                )
                .unwrap();
            sides.insert(answer.side().to_owned());
            if user % 5 == 0 && waits_for(&proxy, "keep.txt") {
                told.store(true, Ordering::SeqCst);
            }
            if written.load(Ordering::SeqCst) {
                break;
            }
        }
        assert_eq!(sides, BTreeSet::from(["legacy".to_owned()]));
    });
    assert!(
        told.load(Ordering::SeqCst),
        "people are told that the list is waited for"
    );
    until("the whole list", || {
        (proxy.side_of("one-more") == "legacy").then_some(())
    });
    until("nothing to be waited for", || {
        proxy.status()["config"]["waiting_for"]
            .is_null()
            .then_some(())
    });
    assert_eq!(proxy.side_of("protected-user-000000"), "legacy");
}

#[test]
fn a_list_truncated_to_nothing_protects_until_it_has_settled() {
    let proxy = protected(10);
    let list = proxy.directory.path().join("keep.txt");
    // A shell does the same before it receives the first line of a slow command.
    fs::write(&list, "").unwrap();
    until("the wait to be told", || {
        waits_for(&proxy, "keep.txt").then_some(())
    });
    assert_eq!(proxy.side_of("protected-user-000003"), "legacy");
    fs::write(&list, "protected-user-000003\nother\n").unwrap();
    until("the list of two", || {
        (proxy.side_of("other") == "legacy").then_some(())
    });
    assert_eq!(
        (
            proxy.side_of("protected-user-000003").as_str(),
            proxy.side_of("protected-user-000004").as_str()
        ),
        ("legacy", "new")
    );
}

#[test]
fn an_edit_beside_a_list_being_written_does_not_wait_for_it() {
    let proxy = protected(1_000);
    let list = proxy.directory.path().join("keep.txt");
    let text = |percent: &str| {
        proxy.text_with(
            "",
            &rollout("checkout", percent, "always_legacy = [\"file:keep.txt\"]"),
        )
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The file never exceeds its half, and never settles. The loop is bounded, so that a
            // failed test also ends.
            let mut file = fs::File::create(&list).unwrap();
            let deadline = std::time::Instant::now() + PATIENCE;
            for user in (0..500).cycle() {
                file.write_all(format!("protected-user-{user:06}\n").as_bytes())
                    .unwrap();
                if user == 499 {
                    file.set_len(0).unwrap();
                }
                if stop.load(Ordering::SeqCst) || std::time::Instant::now() > deadline {
                    return;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        until("the wait to be told", || {
            waits_for(&proxy, "keep.txt").then_some(())
        });
        fs::write(proxy.file(), text("40")).unwrap();
        until("the edit", || {
            (proxy.rollout()["desired_percent"] == 40.0).then_some(())
        });
        let set = proxy.post(
            "/api/v1/rollouts/checkout/set",
            &json!({"percent": 30, "reason": "CHG-7"}),
        );
        assert_eq!(
            (set.status(), &proxy.rollout()["desired_percent"]),
            (200, &json!(30.0)),
            "{}",
            set.text()
        );
        assert!(waits_for(&proxy, "keep.txt"), "the writer has not ended");
        assert!(
            (0..1_000)
                .step_by(97)
                .all(|user| proxy.side_of(&format!("protected-user-{user:06}")) == "legacy")
        );
        stop.store(true, Ordering::SeqCst);
    });
}

#[test]
fn a_list_renamed_into_place_is_read_whole() {
    let proxy = protected(10);
    let beside = proxy.directory.path().join("keep.txt.new");
    write_slowly(
        &beside,
        &(users(10) + "renamed\n"),
        40,
        Duration::from_millis(20),
    );
    fs::rename(&beside, proxy.directory.path().join("keep.txt")).unwrap();
    until("the list", || {
        (proxy.side_of("renamed") == "legacy").then_some(())
    });
    assert_eq!(proxy.side_of("protected-user-000009"), "legacy");
}

#[test]
fn a_reload_during_a_slow_write_waits_for_the_whole_list() {
    let proxy = protected(5_000);
    let list = proxy.directory.path().join("keep.txt");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            write_slowly(
                &list,
                &(users(5_000) + "one-more\n"),
                16 * 1024,
                Duration::from_millis(60),
            );
        });
        until("the wait to be told", || {
            waits_for(&proxy, "keep.txt").then_some(())
        });
        proxy.reload();
        assert_eq!(
            proxy.side_of("one-more"),
            "legacy",
            "the answer comes when the whole list is in force"
        );
        assert_eq!(proxy.side_of("protected-user-004999"), "legacy");
    });
}

#[test]
fn files_truncated_between_rollouts_remove_none() {
    let a = "[[rollout]]\nid = \"a\"\nmatch = { path = \"/a\" }\npercent = 100\nkey = \
             [\"header:x-user-id\"]\n";
    let b = a.replace("\"a\"", "\"b\"").replace("/a", "/b");
    let proxy = Proxy::start_prepared(|directory| {
        fs::write(
            directory.join("more.toml"),
            format!(
                "{}{}",
                a.replace("\"a\"", "\"c\"").replace("/a", "/c"),
                a.replace("\"a\"", "\"d\"").replace("/a", "/d")
            ),
        )
        .unwrap();
        (String::new(), format!("{a}{b}"))
    });
    let include = |text: &str| format!("include = [\"more.toml\"]\n{text}");
    fs::write(proxy.file(), include(&proxy.text())).unwrap();
    until("the include", || {
        (proxy.status()["rollouts"].as_array().unwrap().len() == 4).then_some(())
    });
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut fewest = 4;
            while !stop.load(Ordering::SeqCst) {
                fewest = fewest.min(proxy.status()["rollouts"].as_array().unwrap().len());
            }
            fewest
        });
        for file in [proxy.file(), proxy.directory.path().join("more.toml")] {
            let text = fs::read_to_string(&file)
                .unwrap()
                .replace("percent = 100", "percent = 99");
            // There is a block for each rollout. Every truncation is a valid file, and the last
            // digits are written late.
            let (first, last) = text.split_at(text.rfind("[[rollout]]").unwrap());
            let mut out = fs::File::create(&file).unwrap();
            out.write_all(first.as_bytes()).unwrap();
            std::thread::sleep(Duration::from_millis(300));
            out.write_all(last.as_bytes()).unwrap();
        }
        until("all edits", || {
            proxy.status()["rollouts"]
                .as_array()
                .unwrap()
                .iter()
                .all(|rollout| rollout["desired_percent"] == 99.0)
                .then_some(())
        });
        stop.store(true, Ordering::SeqCst);
        assert_eq!(
            watcher.join().unwrap(),
            4,
            "no rollout was away for a while"
        );
    });
    // A rollout that is omitted permanently is removed once the file has settled.
    let text = proxy.text();
    fs::write(proxy.file(), &text[..text.rfind("[[rollout]]").unwrap()]).unwrap();
    until("the rollout to be removed", || {
        (proxy.status()["rollouts"].as_array().unwrap().len() == 3).then_some(())
    });
}

#[test]
fn a_shortened_list_of_the_main_file_is_accepted_once_settled() {
    let block = |names: &str| rollout("checkout", "100", &format!("always_legacy = [{names}]"));
    let proxy = Proxy::start(&block("\"ana\", \"bob\""));
    fs::write(proxy.file(), proxy.text_with("", &block("\"ana\""))).unwrap();
    until("the wait to be told", || {
        (waits_for(&proxy, &proxy.file().display().to_string())).then_some(())
    });
    assert_eq!(proxy.side_of("bob"), "legacy");
    until("the shorter list", || {
        (proxy.side_of("bob") == "new").then_some(())
    });
    assert_eq!(proxy.side_of("ana"), "legacy");
}
