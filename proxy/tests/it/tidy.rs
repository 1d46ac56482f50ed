//! The house's invariants, read off the source: rooms that must not know each other do not name
//! each other.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn sources(directory: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
    assert!(!found.is_empty(), "{} has sources", directory.display());
    found
}

/// The source without its tests, which may know more.
fn product(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap()
}

#[test]
fn rooms_meet_only_in_assemble() {
    let source = root().join("proxy/src");
    let rooms: [(&str, &[&str]); 5] = [
        (
            "gateway",
            &[
                "crate::control::",
                "crate::reload",
                "crate::admin",
                "crate::state",
                "std::fs",
                "Mutex",
                "RwLock",
            ],
        ),
        (
            "admin",
            &[
                "crate::control::",
                "crate::shared::recorder",
                "crate::state::writer",
                "crate::state::status_file",
                "cutover_core::Rollout",
                "ControlPlane",
            ],
        ),
        (
            "control/mod.rs",
            &[
                "crate::gateway",
                "crate::admin",
                "crate::reload",
                "std::fs",
                "crate::reload::source",
            ],
        ),
        (
            "reload/mod.rs",
            &[
                "crate::gateway",
                "crate::admin",
                "crate::control::",
                "crate::shared::recorder",
            ],
        ),
        ("telemetry/metrics/names.rs", &["crate::", "cutover_core"]),
    ];
    for (room, forbidden) in rooms {
        let path = source.join(room);
        let files = if path.is_dir() {
            sources(&path)
        } else {
            vec![(path.clone(), fs::read_to_string(&path).unwrap())]
        };
        for (file, text) in files {
            for word in forbidden {
                // Where a lock is taken for a connection.
                if *word == "Mutex" && file.ends_with("gateway/listener/deadlines.rs") {
                    continue;
                }
                let named = product(&text)
                    .lines()
                    .filter(|line| !line.trim_start().starts_with("//"))
                    .find(|line| line.contains(word));
                assert_eq!(named, None, "{} must not name `{word}`", file.display());
            }
        }
    }
}

#[test]
fn pingora_is_named_only_where_it_is_allowed() {
    let allowed = [
        "gateway/adapter/mod.rs",
        "gateway/adapter/attempts.rs",
        "gateway/adapter/context.rs",
        "gateway/adapter/replies.rs",
        "gateway/adapter/failure.rs",
        "gateway/adapter/heads.rs",
        "gateway/listener/client_stream.rs",
        "gateway/listener/mod.rs",
        "gateway/http2/mod.rs",
        "gateway/http2/session.rs",
        "gateway/adapter/header_case.rs",
        "gateway/prewarm.rs",
        "gateway/adapter/tunnel.rs",
        "gateway/adapter/request_stream.rs",
        "upstream/mod.rs",
        "upstream/health.rs",
        "assemble.rs",
    ];
    for (file, text) in sources(&root().join("proxy/src")) {
        let names = product(&text)
            .lines()
            .any(|line| line.contains("pingora::") && !line.trim_start().starts_with("//"));
        assert!(
            !names || allowed.iter().any(|allowed| file.ends_with(allowed)),
            "{} names pingora",
            file.display()
        );
    }
    let adapter = fs::read_to_string(root().join("proxy/src/gateway/adapter/mod.rs")).unwrap();
    assert!(adapter.lines().count() <= 700, "the adapter stays thin");
}

#[test]
fn only_the_clock_reads_time_and_only_control_swaps_the_split() {
    for (file, text) in sources(&root().join("proxy/src")) {
        let code = product(&text)
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .collect::<Vec<_>>()
            .join("\n");
        assert!(
            file.ends_with("clock.rs")
                || !(code.contains("Instant::now") || code.contains("SystemTime::now")),
            "{} reads a clock",
            file.display()
        );
        assert!(
            file.ends_with("control/mod.rs")
                || file.ends_with("published.rs")
                || !code.contains(".swap(Snapshot"),
            "{} swaps the split",
            file.display()
        );
    }
}

#[test]
fn the_core_and_the_file_know_no_engine() {
    for (krate, forbidden) in [
        (
            "proxy/core",
            &[
                "tokio", "pingora", "http", "serde", "log", "tracing", "rand",
            ][..],
        ),
        ("config", &["tokio", "pingora", "hyper", "axum"]),
    ] {
        let manifest = fs::read_to_string(root().join(krate).join("Cargo.toml")).unwrap();
        let dependencies = manifest
            .split("[dependencies]")
            .nth(1)
            .unwrap()
            .split("\n[")
            .next()
            .unwrap();
        for line in dependencies.lines() {
            let name = line.split(['.', ' ', '=']).next().unwrap();
            assert!(
                !forbidden.contains(&name),
                "{krate} must not depend on {name}"
            );
        }
    }
}

#[test]
fn every_test_file_is_in_the_test_binary() {
    let main = fs::read_to_string(root().join("proxy/tests/it/main.rs")).unwrap();
    for (file, text) in sources(&root().join("proxy/tests/it")) {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        assert!(
            name == "main" || main.contains(&format!("mod {name};")),
            "{name} is not listed"
        );
        let skip = ["#[", "ignore]"].concat();
        assert!(!text.contains(&skip), "{name} skips a test");
    }
}

#[test]
fn every_metric_is_documented() {
    let path = root().join("docs/METRICS.md");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, cutover::telemetry::metrics::names::document()).unwrap();
    }
    let documented = fs::read_to_string(path).unwrap();
    assert_eq!(
        documented,
        cutover::telemetry::metrics::names::document(),
        "docs/METRICS.md is generated: run with UPDATE=1"
    );
}

#[test]
fn every_metric_that_a_document_names_exists() {
    let known: Vec<&str> = cutover::telemetry::metrics::names::ALL
        .iter()
        .map(|name| name.name)
        .collect();
    let mut named = 0;
    for document in [
        "README.md",
        "CHANGELOG.md",
        "docs/DASHBOARDS.md",
        "docs/RUNBOOK.md",
        "dashboards/README.md",
    ] {
        let text = fs::read_to_string(root().join(document)).unwrap();
        for word in text
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .filter(|word| word.starts_with("cutover_"))
        {
            let stem = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| word.strip_suffix(suffix))
                .unwrap_or(word);
            // The cookie of minted users, and a crate.
            assert!(
                known.contains(&stem)
                    || known.contains(&word)
                    || ["cutover_id", "cutover_core"].contains(&word),
                "{document}: there is no metric {word}"
            );
            named += 1;
        }
    }
    assert!(named > 20, "{named}");
}
