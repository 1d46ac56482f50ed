//! Tests with files that people write, right and wrong, with one mistake each and named after it.
//! The output for each is in the `.expected` file beside it: the whole rendered message, read by a
//! person before it was committed. `UPDATE=1 cargo test -p cutover-config` rewrites them; then read
//! the difference.

mod common;

use std::fmt::{Debug, Write as _};
use std::fs;
use std::path::{Path, PathBuf};

use common::{Folder, folder};
use cutover_config::{Backend as BackendSettings, Problems, Settings, Severity};
use cutover_core::{Key, RolloutSettings};

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

/// Returns the fields of `value` that differ from those of `default`, as the pretty form of `Debug`
/// has them. So a new key shows only in the files that set it.
fn changes(value: &impl Debug, default: &impl Debug) -> String {
    let fields = |text: String| {
        let mut fields: Vec<String> = Vec::new();
        for line in text.lines().skip(1).filter(|line| line.starts_with("    ")) {
            match fields.last_mut() {
                Some(field) if !line[4..].starts_with(|c: char| c.is_alphabetic()) => {
                    field.push_str(line.trim_start());
                }
                _ => fields.push(line.trim_start().to_owned()),
            }
        }
        fields
    };
    let usual = fields(format!("{default:#?}"));
    let mut text = String::new();
    for field in fields(format!("{value:#?}")) {
        if !usual.contains(&field) {
            let _ = writeln!(text, "  {}", field.trim_end_matches(','));
        }
    }
    text
}

/// Describes what a valid file means, as far as it differs from the minimal file.
fn describe(settings: &Settings) -> String {
    let minimal = folder("examples/minimal.toml");
    let minimal = parse(&minimal).expect("the minimal file is valid");
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
    let mut text = String::new();
    let _ = write!(text, "listen\n{}", changes(listen, &minimal.listen));
    if admin.address != minimal.admin.address {
        let _ = writeln!(text, "admin {}", admin.address);
    }
    for token in &admin.tokens {
        let _ = writeln!(
            text,
            "token {:?} {} {}",
            token.name,
            token.role.name(),
            hex(&token.sha256)
        );
    }
    let _ = write!(text, "state\n{}", changes(state, &minimal.state));
    let _ = write!(text, "log\n{}", changes(log, &minimal.log));
    if let Some(traces) = traces {
        let _ = writeln!(text, "{traces:?}");
    }
    for backend in backends {
        let servers: Vec<String> = backend.servers.iter().map(ToString::to_string).collect();
        let usual = BackendSettings {
            name: backend.name.clone(),
            servers: backend.servers.clone(),
            ca: backend.ca.clone(),
            ..minimal.backends[0].clone()
        };
        let _ = writeln!(text, "backend {:?}: {}", backend.name, servers.join(", "));
        text.push_str(&changes(backend, &usual));
        if let Some(ca) = &backend.ca {
            let _ = writeln!(text, "  {} authorities", ca.len());
        }
    }
    let _ = write!(text, "routing\n{}", changes(routing, &minimal.routing));
    for rollout in rollouts {
        describe_rollout(&mut text, rollout, &minimal.rollouts[0]);
        let file = &rollout_files[&*rollout.id];
        let _ = writeln!(text, "  written in {file}");
    }
    if !files.is_empty() {
        let _ = writeln!(text, "\nfiles {files:?}");
    }
    for warning in warnings {
        let _ = writeln!(text, "\n{}", warning.render(false));
    }
    text
}

fn describe_rollout(text: &mut String, rollout: &RolloutSettings, usual: &RolloutSettings) {
    // Every field is named here, so that a new one is not forgotten.
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
        "\nrollout {id:?}: {percent} % from {:?} to {:?} by {}",
        backends.legacy,
        backends.new,
        keys.join(", ")
    );
    let mut differs = |name: &str, value: &dyn Debug, usual: &dyn Debug| {
        if format!("{value:?}") != format!("{usual:?}") {
            let _ = writeln!(text, "  {name} {value:?}");
        }
    };
    differs("matches", matches, &usual.matches);
    differs("salt", salt, id);
    differs("anonymous", anonymous, &usual.anonymous);
    differs("always new", &always_new.len(), &0);
    differs("always legacy", &always_legacy.len(), &0);
    differs("generation", generation, &usual.generation);
    differs("holdback", holdback, &usual.holdback);
    differs("failover", failover, &usual.failover);
    differs("fallback on 404", fallback_on_404, &usual.fallback_on_404);
    differs(
        "drain on rollback",
        drain_on_rollback,
        &usual.drain_on_rollback,
    );
    let _ = write!(
        text,
        "{}",
        changes(guard, &usual.guard).replace("  ", "  guard ")
    );
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn every_valid_file_has_the_expected_meaning() {
    let files = files("valid");
    assert!(files.len() >= 12, "{} files", files.len());
    let wrong: Vec<String> = files
        .iter()
        .filter_map(|path| match parse(path) {
            // The minimal file is shown whole, so that a changed default shows.
            Ok(settings) if path.ends_with("minimal.toml") => {
                compare(path, &format!("{settings:#?}\n"))
            }
            Ok(settings) => compare(path, &describe(&settings)),
            Err(problems) => Some(format!("{} is refused:\n{problems}", path.display())),
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn every_invalid_file_is_refused_with_the_expected_message() {
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
fn a_file_with_one_mistake_has_one_error() {
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
fn no_expected_text_is_unused() {
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
