//! Tests of the files that are read besides the main file, and of the differences between two
//! versions of it.

use std::cell::RefCell;
use std::collections::BTreeMap;

use cutover_config::{Loader, Settings, parse_duration};

mod common;

use common::{BACKENDS, with};

/// Files in memory that record which ones were read.
#[derive(Default)]
struct Files {
    files: BTreeMap<String, String>,
    asked: RefCell<Vec<String>>,
}

impl Files {
    fn new(files: &[(&str, &str)]) -> Self {
        Self {
            files: files
                .iter()
                .map(|(path, text)| ((*path).to_owned(), (*text).to_owned()))
                .collect(),
            asked: RefCell::default(),
        }
    }

    fn parse(&self, text: &str) -> Settings {
        cutover_config::parse("/etc/cutover/cutover.toml", text, self)
            .unwrap_or_else(|problems| panic!("{problems}"))
    }

    fn error(&self, text: &str) -> String {
        let problems =
            cutover_config::parse("/etc/cutover/cutover.toml", text, self).expect_err("refused");
        problems
            .iter()
            .map(|problem| format!("{problem}\n"))
            .collect()
    }
}

impl Loader for Files {
    fn read(&self, path: &str) -> Result<String, String> {
        self.asked.borrow_mut().push(path.to_owned());
        self.files
            .get(path)
            .cloned()
            .ok_or_else(|| "no such file".to_owned())
    }

    fn glob(&self, pattern: &str) -> Result<Vec<String>, String> {
        let (before, after) = pattern.split_once('*').ok_or("not a pattern")?;
        Ok(self
            .files
            .keys()
            .filter(|path| path.starts_with(before) && path.ends_with(after))
            .cloned()
            .collect())
    }

    fn env(&self, _: &str) -> Option<String> {
        None
    }
}

fn rollout(id: &str) -> String {
    format!(
        "[[rollout]]\nid = \"{id}\"\npercent = 5\nkey = [\"cookie:uid\"]\nmatch = {{ path = \
         \"/{id}\" }}\n"
    )
}

#[test]
fn a_list_that_two_rollouts_name_is_read_once() {
    let files = Files::new(&[("vip.txt", "ana\nben\n")]);
    let lists = "always_new = [\"file:vip.txt\"]\n";
    let settings = files.parse(&format!(
        "{BACKENDS}{}{lists}{}{lists}",
        rollout("a"),
        rollout("b")
    ));
    assert_eq!(*files.asked.borrow(), ["vip.txt"]);
    assert_eq!(settings.files, ["vip.txt"]);
    for rollout in &settings.rollouts {
        assert!(
            rollout.always_new.contains(b"ana")
                && rollout.always_new.contains(b"ben")
                && rollout.always_new.len() == 2
        );
    }
}

#[test]
fn included_rollouts_follow_the_main_file_and_know_their_file() {
    let files = Files::new(&[
        ("teams/b.toml", &rollout("b")),
        ("teams/a.toml", &rollout("a")),
        ("z.toml", &rollout("z")),
    ]);
    let settings = files.parse(&format!(
        "include = [\"z.toml\", \"teams/*.toml\", \"teams/a.toml\"]\n{BACKENDS}{}",
        rollout("main")
    ));
    let ids: Vec<&str> = settings
        .rollouts
        .iter()
        .map(|rollout| &*rollout.id)
        .collect();
    assert_eq!(ids, ["main", "z", "a", "b"]);
    assert_eq!(settings.files, ["z.toml", "teams/a.toml", "teams/b.toml"]);
    let places: Vec<(&str, &str)> = settings
        .rollout_files
        .iter()
        .map(|(id, file)| (id.as_str(), file.as_str()))
        .collect();
    assert_eq!(
        places,
        [
            ("a", "teams/a.toml"),
            ("b", "teams/b.toml"),
            ("main", "/etc/cutover/cutover.toml"),
            ("z", "z.toml")
        ]
    );
}

#[test]
fn a_pattern_that_matches_the_main_file_does_not_include_it() {
    let main = format!("include = [\"*.toml\"]\n{BACKENDS}{}", rollout("main"));
    let files = Files::new(&[("cutover.toml", &main), ("more.toml", &rollout("more"))]);
    assert_eq!(files.parse(&main).rollouts.len(), 2);
}

#[test]
fn the_digest_changes_only_with_the_texts_that_were_read() {
    let main = format!(
        "include = [\"a.toml\"]\n{BACKENDS}{}always_new = [\"file:vip.txt\"]\n",
        rollout("main")
    );
    let digest = |main: &str, included: &str, list: &str| {
        Files::new(&[("a.toml", included), ("vip.txt", list), ("other.txt", list)])
            .parse(main)
            .digest
    };
    let first = digest(&main, &rollout("a"), "ana\n");
    assert_eq!(first, digest(&main, &rollout("a"), "ana\n"));
    assert!(first.len() == 64 && first.bytes().all(|byte| byte.is_ascii_hexdigit()));
    assert_ne!(
        first,
        digest(&format!("{main}# a comment\n"), &rollout("a"), "ana\n")
    );
    assert_ne!(first, digest(&main, &rollout("b"), "ana\n"));
    assert_ne!(first, digest(&main, &rollout("a"), "ana\nben\n"));
}

#[test]
fn invalid_files_are_refused_under_their_own_names() {
    let main = format!(
        "include = [\"a.toml\"]\n{BACKENDS}{}always_new = [\"file:vip.txt\"]\n",
        rollout("main")
    );
    let large = "#".repeat((1 << 20) + 1);
    let error = |included: &str, list: &str| {
        Files::new(&[("a.toml", included), ("vip.txt", list)]).error(&main)
    };
    assert_eq!(
        error(&large, "ana"),
        "a.toml:1:1: the file is larger than 1 MiB\n"
    );
    assert_eq!(error(" \n", "ana"), "a.toml:1:1: the file is empty\n");
    assert_eq!(
        error(&rollout("a"), "ana\n\0"),
        "vip.txt:2:1: the file holds a NUL byte: this is not a text file\n"
    );
    assert_eq!(
        error(&rollout("a"), &"a".repeat((16 << 20) + 1)),
        "vip.txt:1:1: the file is larger than 16 MiB\n"
    );
    assert_eq!(
        Files::default().error(&large),
        "/etc/cutover/cutover.toml:1:1: the file is larger than 1 MiB\n"
    );
}

#[test]
fn a_file_full_of_mistakes_is_reported_quickly_and_in_part() {
    let main = "nonsense_0 = 1\n".to_owned()
        + &(1..40_000)
            .map(|number| format!("nonsense_{number} = 1\n"))
            .collect::<String>();
    let problems =
        cutover_config::parse("cutover.toml", &main, &Files::default()).expect_err("nonsense");
    assert_eq!(problems.len(), 101);
    assert_eq!(
        problems
            .iter()
            .last()
            .map(|problem| problem.message.as_str()),
        Some("39902 more errors are not shown")
    );
    assert!(problems.render(false).len() < 100_000);
}

#[test]
fn only_keys_that_are_read_once_need_a_restart() {
    let files = Files::default();
    let running = files.parse(&with(""));
    let changed = |head: &str, more: &str| {
        files
            .parse(&format!("{head}\n{}", with(more)))
            .restart_needed(&running)
    };
    assert!(changed("", "generation = 2").is_empty());
    assert!(
        changed(
            "[log]\naccess = \"off\"\n[routing]\nexpose_decision = true\n[backend.more]\nservers \
             = [\"h:1\"]",
            ""
        )
        .is_empty()
    );
    let head = "[listen]\nhttp = [\"0.0.0.0:81\"]\nmax_body = 1\ntrusted_proxies = \
                [\"10.0.0.0/8\"]\n[admin]\naddress = \"127.0.0.1:1\"\n[state]\ndirectory = \"x\"";
    assert_eq!(
        changed(head, ""),
        [
            "listen.http",
            "listen.trusted_proxies",
            "listen.max_body",
            "admin.address",
            "state.directory"
        ]
    );
    let head = "[listen]\nmax_connections = 1\nmax_header_bytes = 2048\nheader_timeout = \
                \"1s\"\nbody_idle_timeout = \"1s\"\nwrite_timeout = \"1s\"\nkeepalive_timeout = \
                \"1s\"";
    assert_eq!(changed(head, "").len(), 6);
}

#[test]
fn the_longest_duration_is_ten_years() {
    assert_eq!(parse_duration("3650d"), Ok(cutover_config::MAX_DURATION));
    assert_eq!(
        parse_duration("3651d").expect_err("too long"),
        "expected a duration of at most 10 years, found \"3651d\""
    );
}

#[test]
fn problems_are_sorted_by_position_and_show_it() {
    let problems = cutover_config::parse(
        "x.toml",
        "b = 1\na = 2\n[[rollout]]\nid = \"a\"\nkey = [\"ip\"]\n",
        &Files::default(),
    )
    .expect_err("refused");
    let shown: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert!(
        shown[0].starts_with("x.toml:1:1: ")
            && shown
                .last()
                .is_some_and(|last| last.starts_with("x.toml:5:8: ")),
        "{shown:?}"
    );
    let places: Vec<(usize, usize)> = problems
        .iter()
        .map(|problem| (problem.line, problem.column))
        .collect();
    assert!(places.is_sorted(), "{places:?}");
    assert!(problems.render(true).contains("\u{1b}["));
    assert!(!problems.render(false).contains('\u{1b}'));
    assert_eq!(problems.to_string(), problems.render(false));
}
