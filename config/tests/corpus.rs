//! Files that people write, right and wrong, one mistake each and named after it. What is said
//! about each is in the `.expected` file beside it: all of the rendered message, read by a person
//! before it was committed. `UPDATE=1 cargo test -p cutover-config` rewrites them; then read the
//! difference.

mod common;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Folder, folder};
use cutover_config::{Problems, Settings, Severity};
use cutover_core::{GuardSettings, Key, Mode, Percent, RolloutSettings};

fn files(kind: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder("tests").join(kind))
        .expect("the corpus")
        .flatten()
        .map(|entry| entry.path())
        .collect();
    files.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "toml")
    });
    files.sort();
    files
}

fn compare(path: &Path, said: &str) -> Option<String> {
    let expected = path.with_extension("expected");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&expected, said).expect("the expected text can be written");
    }
    let wanted = fs::read_to_string(&expected).unwrap_or_default();
    (wanted != said).then(|| {
        format!(
            "{}\n--- expected\n{wanted}\n--- said\n{said}",
            path.display()
        )
    })
}

fn parse(path: &Path) -> Result<Settings, Problems> {
    let text = fs::read_to_string(path).expect("a file of the corpus");
    let name = path.file_name().expect("a name").to_string_lossy();
    cutover_config::parse(&name, &text, &Folder(folder("tests/files")))
}

/// What a valid file means, for eyes: enough to see that each line of it was heard.
fn describe(settings: &Settings) -> String {
    let mut text = String::new();
    let Settings {
        listen,
        admin,
        state,
        log,
        traces,
        backends,
        routing,
        rollouts,
        rollout_files,
        warnings,
        digest,
        files,
    } = settings;
    assert_eq!(digest.len(), 64);
    let _ = writeln!(text, "{listen:#?}\n\nadmin {}", admin.address);
    for token in &admin.tokens {
        let _ = writeln!(
            text,
            "token {:?} {} {}",
            token.name,
            token.role.name(),
            hex(&token.sha256)
        );
    }
    let _ = writeln!(text, "{state:?}\n{log:?}");
    let _ = writeln!(
        text,
        "{}",
        traces
            .as_ref()
            .map_or_else(String::new, |traces| format!("{traces:?}\n"))
    );
    for backend in backends {
        let servers: Vec<String> = backend.servers.iter().map(ToString::to_string).collect();
        let (connect, response, idle) = (
            backend.connect_timeout,
            backend.response_timeout,
            backend.idle_timeout,
        );
        let _ = writeln!(
            text,
            "backend {:?}: {}; connect {connect:?}, response {response:?}, idle {idle:?}",
            backend.name,
            servers.join(", ")
        );
        let (pause, silence) = (backend.body_pause_timeout, backend.stream_idle_timeout);
        if (pause, silence) != (Duration::from_secs(300), Duration::from_secs(3_600)) {
            let _ = writeln!(
                text,
                "  a body may pause for {pause:?}, a stream be silent for {silence:?}"
            );
        }
        let ca = backend.ca.as_ref().map_or(0, Vec::len);
        if backend.http2 || ca > 0 || backend.server_name.is_some() || !backend.slow_start.is_zero()
        {
            let _ = writeln!(
                text,
                "  http2 {}, server name {:?}, {ca} authorities, slow start {:?}",
                backend.http2, backend.server_name, backend.slow_start
            );
        }
        if let Some(health) = &backend.health {
            let _ = writeln!(text, "  {health:?}");
        }
    }
    let token = routing
        .override_token_sha256
        .map_or("none".to_owned(), |sha256| hex(&sha256));
    let _ = writeln!(
        text,
        "default backend {:?}, override token {token}, expose decision {}",
        routing.default_backend, routing.expose_decision
    );
    for rollout in rollouts {
        let RolloutSettings {
            id,
            matches,
            salt,
            keys,
            anonymous,
            always_new,
            always_legacy,
            backends,
            percent,
            generation,
            holdback,
            failover,
            fallback_on_404,
            drain_on_rollback,
            guard,
        } = rollout;
        let keys: Vec<String> = keys.iter().map(Key::text).collect();
        let _ = writeln!(
            text,
            "\nrollout {id:?} in {}: {percent} % from {:?} to {:?}, salt {salt:?}, generation \
             {generation}",
            rollout_files[&**id], backends.legacy, backends.new
        );
        let _ = writeln!(
            text,
            "  host {:?}, path {:?}, methods {:?}",
            matches.host, matches.path, matches.methods
        );
        let _ = writeln!(
            text,
            "  keys {}; anonymous {anonymous:?}; {} always new, {} always legacy",
            keys.join(", "),
            always_new.len(),
            always_legacy.len()
        );
        if *holdback > Percent::ZERO {
            let _ = writeln!(text, "  holdback {holdback}");
        }
        let _ = writeln!(
            text,
            "  failover {}, fallback on 404 {fallback_on_404:?}, drain {drain_on_rollback:?}",
            failover.name()
        );
        let _ = write!(
            text,
            "  guard {}, dry run {}, ",
            guard.mode.name(),
            guard.dry_run
        );
        let _ = match guard.mode {
            Mode::Sequential => writeln!(
                text,
                "{} users, a false alarm every {:?}, shared cause {}",
                guard.min_users,
                guard.false_alarm_every,
                guard.shared_cause.name()
            ),
            Mode::Threshold | Mode::Off => writeln!(
                text,
                "window {:?}, at least {} requests",
                guard.window, guard.min_requests
            ),
        };
        let defaults = GuardSettings::default();
        if guard.warm_up != defaults.warm_up {
            let _ = writeln!(text, "    warm up {:?}", guard.warm_up);
        }
        if let Some(name) = &guard.outcome_header {
            let _ = writeln!(text, "    outcomes in {name:?}");
        }
        // What every file has would be in the way of a new rule.
        if guard.rules == defaults.rules {
            let _ = writeln!(text, "    the default rules");
            continue;
        }
        for rule in &guard.rules {
            let _ = writeln!(text, "    {rule:?}");
        }
    }
    let _ = writeln!(text, "\nfiles {files:?}");
    for warning in warnings {
        let _ = writeln!(text, "\n{}", warning.render(false));
    }
    text
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn every_valid_file_means_what_was_expected() {
    let files = files("valid");
    assert!(files.len() >= 12, "{} files", files.len());
    let wrong: Vec<String> = files
        .iter()
        .filter_map(|path| match parse(path) {
            Ok(settings) => compare(path, &describe(&settings)),
            Err(problems) => Some(format!("{} is refused:\n{problems}", path.display())),
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn every_invalid_file_is_refused_in_the_expected_words() {
    let files = files("invalid");
    assert!(files.len() >= 45, "{} files", files.len());
    let wrong: Vec<String> = files
        .iter()
        .filter_map(|path| match parse(path) {
            Ok(_) => Some(format!("{} is accepted", path.display())),
            Err(problems) => compare(path, &format!("{problems}\n")),
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn a_file_of_one_mistake_has_one_error() {
    for path in files("invalid") {
        if path.file_stem().is_some_and(|stem| stem == "many-mistakes") {
            continue;
        }
        let problems = parse(&path).expect_err("an invalid file");
        let errors = problems
            .iter()
            .filter(|problem| problem.severity == Severity::Error)
            .count();
        assert_eq!(errors, 1, "{}\n{problems}", path.display());
    }
}

#[test]
fn no_expected_text_is_left_over() {
    for kind in ["valid", "invalid"] {
        for entry in fs::read_dir(folder("tests").join(kind))
            .expect("the corpus")
            .flatten()
        {
            assert!(
                entry.path().with_extension("toml").exists(),
                "{}",
                entry.path().display()
            );
        }
    }
}
