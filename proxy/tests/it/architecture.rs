//! The invariants of the architecture, read from the source. Modules that must not know each other
//! do not name each other.

use std::collections::{BTreeMap, BTreeSet};
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

/// The source without its tests, which may name more.
fn product(text: &str) -> &str {
    ["mod tests", "pub(crate) mod tests"]
        .iter()
        .filter_map(|tests| text.find(&format!("#[cfg(test)]\n{tests}")))
        .min()
        .map_or(text, |end| &text[..end])
}

/// The lines of code of a file: without tests and comments.
fn code(text: &str) -> impl Iterator<Item = &str> {
    product(text)
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
}

/// The rooms of a crate that each of its rooms names, by the file that names them. A room is a
/// folder or a file directly below `src`.
fn arrows(source: &Path) -> BTreeMap<String, BTreeMap<String, PathBuf>> {
    let room_of = |name: &str| name.trim_end_matches(".rs").to_owned();
    let rooms: BTreeSet<String> = fs::read_dir(source)
        .unwrap()
        .map(|entry| room_of(&entry.unwrap().file_name().to_string_lossy()))
        .collect();
    let mut arrows: BTreeMap<String, BTreeMap<String, PathBuf>> = BTreeMap::new();
    for (file, text) in sources(source) {
        let inside = file.strip_prefix(source).unwrap();
        let room = room_of(&inside.iter().next().unwrap().to_string_lossy());
        for line in code(&text) {
            let is_grouped = line.contains("crate::{");
            assert!(!is_grouped, "{}: import each room alone", file.display());
            for path in line.split("crate::").skip(1) {
                let named: String = path
                    .chars()
                    .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                    .collect();
                if named != room && rooms.contains(&named) {
                    let named = arrows.entry(room.clone()).or_default().entry(named);
                    named.or_insert_with(|| inside.to_owned());
                }
            }
        }
    }
    arrows
}

/// Returns a path of arrows from a room back to itself, if there is one.
fn circle(arrows: &BTreeMap<String, BTreeMap<String, PathBuf>>) -> Option<Vec<String>> {
    fn visit(
        room: &str,
        arrows: &BTreeMap<String, BTreeMap<String, PathBuf>>,
        path: &mut Vec<String>,
        done: &mut BTreeSet<String>,
    ) -> Option<Vec<String>> {
        if let Some(at) = path.iter().position(|passed| passed == room) {
            return Some([&path[at..], &[room.to_owned()]].concat());
        }
        if !done.contains(room) {
            path.push(room.to_owned());
            for next in arrows.get(room).into_iter().flat_map(BTreeMap::keys) {
                if let Some(found) = visit(next, arrows, path, done) {
                    return Some(found);
                }
            }
            path.pop();
            done.insert(room.to_owned());
        }
        None
    }
    let mut done = BTreeSet::new();
    arrows
        .keys()
        .find_map(|room| visit(room, arrows, &mut Vec::new(), &mut done))
}

/// What each room of the proxy may name beside the crates and itself. `assemble` connects
/// everything, and the commands of `cli` and `demo` start it, so these three are not listed.
const ROOMS: [(&str, &[&str]); 13] = [
    ("clock", &[]),
    ("terminal", &[]),
    ("status", &["clock"]),
    ("state", &["clock", "status"]),
    ("upstream", &["clock"]),
    ("shared", &["clock", "status", "upstream"]),
    ("telemetry", &["clock", "shared", "status", "upstream"]),
    (
        "gateway",
        &["clock", "shared", "status", "telemetry", "upstream"],
    ),
    (
        "control",
        &["clock", "shared", "state", "status", "upstream"],
    ),
    ("process", &["clock", "shared", "state", "status"]),
    ("reload", &["clock", "process", "shared", "state"]),
    (
        "admin",
        &["gateway", "shared", "state", "status", "telemetry"],
    ),
    ("lib", &[]),
];

#[test]
fn a_room_of_the_proxy_names_only_the_rooms_listed_for_it() {
    let mut arrows = arrows(&root().join("proxy/src"));
    for free in ["assemble", "cli", "demo", "main"] {
        arrows.remove(free);
    }
    for (room, named) in &arrows {
        let (_, allowed) = ROOMS
            .iter()
            .find(|(listed, _)| listed == room)
            .unwrap_or_else(|| panic!("{room} is not listed in ROOMS"));
        for (other, file) in named {
            assert!(
                allowed.contains(&other.as_str()),
                "{} must not name `crate::{other}`",
                file.display()
            );
        }
    }
    for (room, _) in ROOMS {
        let path = root().join("proxy/src").join(room);
        assert!(
            path.is_dir() || path.with_extension("rs").is_file(),
            "{room} is listed, but there is no such room"
        );
    }
}

#[test]
fn a_shared_file_says_who_writes_and_who_reads_it() {
    for (file, text) in sources(&root().join("proxy/src/shared")) {
        let inside = file.to_string_lossy().into_owned();
        let is_part = inside.contains("/recorder/") && !inside.ends_with("mod.rs");
        if inside.ends_with("shared/mod.rs") || is_part {
            continue;
        }
        let header = text.split("\n\n").next().unwrap();
        assert!(
            header.contains("Written by: ") && header.contains("Read by: "),
            "{inside} does not say who writes and who reads it"
        );
    }
}

#[test]
fn rooms_do_not_import_each_other_in_a_circle() {
    for source in ["proxy/src", "proxy/core/src", "config/src", "loadtest/src"] {
        let arrows = arrows(&root().join(source));
        assert_eq!(circle(&arrows), None, "{source}");
    }
}

#[test]
fn a_room_names_no_detail_of_another_that_it_must_not_depend_on() {
    let source = root().join("proxy/src");
    let rooms: [(&str, &[&str]); 5] = [
        ("gateway", &["std::fs", "Mutex", "RwLock"]),
        (
            "admin",
            &[
                "shared::recorder",
                "state::writer",
                "state::status_file",
                "cutover_core::Rollout",
                "ControlPlane",
            ],
        ),
        ("control", &["std::fs"]),
        ("reload", &["shared::recorder"]),
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
                // The list of connections has a lock. It is held when a connection begins or ends.
                if *word == "Mutex" && file.ends_with("gateway/listener/deadlines.rs") {
                    continue;
                }
                // The router's explanation is the one part of the gateway that the admin port
                // calls.
                let named = code(&text).find(|line| line.contains(word));
                assert_eq!(named, None, "{} must not name `{word}`", file.display());
            }
        }
    }
    for (file, text) in sources(&source.join("admin")) {
        let named = code(&text)
            .find(|line| line.contains("gateway::") && !line.contains("gateway::explain"));
        assert_eq!(named, None, "{}", file.display());
    }
}

/// Lines of a file without its tests, at 100 columns.
const LONGEST_FILE: usize = 600;
/// Files directly in one folder.
const FULLEST_FOLDER: usize = 15;

#[test]
fn files_are_short_and_folders_hold_few_files() {
    for source in [
        "proxy/src",
        "proxy/core/src",
        "config/src",
        "loadtest/src",
        "benches/src",
    ] {
        let mut folders: BTreeMap<PathBuf, usize> = BTreeMap::new();
        for (file, text) in sources(&root().join(source)) {
            let lines = product(&text).lines().count();
            assert!(
                lines <= LONGEST_FILE,
                "{} has {lines} lines without its tests: split it",
                file.display()
            );
            for line in text.lines() {
                let columns = line.chars().count();
                // A text without a break, such as a link or a pattern, may be longer.
                let has_long_word = line.split(' ').any(|word| word.len() > 60);
                assert!(
                    columns <= 100
                        || has_long_word
                        || !line.trim_start().starts_with("//")
                        || line.contains("//! |"),
                    "{} has a comment of {columns} columns: {line}",
                    file.display()
                );
            }
            let folder = file.parent().unwrap().to_owned();
            *folders.entry(folder).or_default() += 1;
        }
        for (folder, files) in folders {
            assert!(
                files <= FULLEST_FOLDER,
                "{} holds {files} files: make rooms",
                folder.display()
            );
        }
    }
}

#[test]
fn pingora_is_named_only_in_the_allowed_modules() {
    let allowed = [
        "assemble/data_path.rs",
        "gateway/adapter/",
        "gateway/http2/",
        "gateway/listener/client_stream.rs",
        "gateway/listener/mod.rs",
        "gateway/prewarm.rs",
        "upstream/health.rs",
        "upstream/mod.rs",
        "upstream/server.rs",
    ];
    let source = root().join("proxy/src");
    for (file, text) in sources(&source) {
        let inside = file.strip_prefix(&source).unwrap().to_string_lossy();
        let names = product(&text)
            .lines()
            .any(|line| line.contains("pingora::") && !line.trim_start().starts_with("//"));
        assert!(
            !names || allowed.iter().any(|allowed| inside.starts_with(allowed)),
            "{} names pingora",
            file.display()
        );
    }
    let adapter = fs::read_to_string(root().join("proxy/src/gateway/adapter/mod.rs")).unwrap();
    assert!(adapter.lines().count() <= 600, "the adapter stays thin");
}

#[test]
fn only_the_clock_reads_time_and_only_control_swaps_the_split() {
    for (file, text) in sources(&root().join("proxy/src")) {
        if file.ends_with("testing.rs") {
            continue;
        }
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
            file.ends_with("control/effects.rs")
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

/// Compares a generated page with its file, or writes it with `UPDATE=1`.
fn is_generated(path: &str, made: &str) {
    let file = root().join(path);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&file, made).unwrap();
    }
    let written = fs::read_to_string(file).unwrap();
    assert_eq!(written, made, "{path} is generated: run with UPDATE=1");
}

#[test]
fn the_page_about_the_admin_api_is_made_from_the_routes() {
    is_generated("docs/admin-api.md", &cutover::admin::routes::document());
}

#[test]
fn the_page_about_commands_is_made_from_their_help() {
    is_generated("docs/cli.md", &cutover::cli::document());
}

#[test]
fn every_metric_is_documented() {
    is_generated(
        "docs/METRICS.md",
        &cutover::telemetry::metrics::names::document(),
    );
}

/// Documents that people read, by their path from the root.
fn documents() -> Vec<String> {
    let mut documents: Vec<String> = [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "dashboards/README.md",
        "loadtest/README.md",
        "benches/README.md",
    ]
    .map(str::to_owned)
    .to_vec();
    for entry in fs::read_dir(root().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        if name.ends_with(".md") {
            documents.push(format!("docs/{name}"));
        }
    }
    documents
}

/// The headings of a document as GitHub makes anchors of them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    let mut is_code = false;
    for line in text.lines() {
        is_code ^= line.starts_with("```");
        if let Some(heading) = line.strip_prefix('#').filter(|_| !is_code) {
            let heading = heading.trim_start_matches('#').trim().to_lowercase();
            let anchor = heading
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
                .map(|c| if c == ' ' { '-' } else { c });
            anchors.insert(anchor.collect());
        }
    }
    anchors
}

/// The targets of the links in a document, without those of code.
fn links(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    let mut is_code = false;
    for line in text.lines() {
        is_code ^= line.starts_with("```");
        if !is_code {
            for rest in line.split("](").skip(1) {
                links.push(rest.split(')').next().unwrap().to_owned());
            }
        }
    }
    links
}

#[test]
fn every_link_in_a_document_leads_somewhere() {
    for document in documents() {
        let path = root().join(&document);
        let text = fs::read_to_string(&path).unwrap();
        for link in links(&text) {
            if link.starts_with("http") || link.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() {
                path.clone()
            } else {
                path.parent().unwrap().join(file)
            };
            assert!(target.exists(), "{document}: nothing is at {link}");
            if !anchor.is_empty() && target.extension().is_some_and(|end| end == "md") {
                let known = anchors(&fs::read_to_string(&target).unwrap());
                assert!(
                    known.contains(anchor),
                    "{document}: {link} has no such heading"
                );
            }
        }
    }
}

#[test]
fn every_page_is_linked_from_the_index_and_documents_are_short() {
    let index = fs::read_to_string(root().join("docs/README.md")).unwrap();
    let linked = links(&index);
    for document in documents() {
        let text = fs::read_to_string(root().join(&document)).unwrap();
        let words = text.split_whitespace().count();
        let most = match document.as_str() {
            "README.md" => 1_400,
            "ARCHITECTURE.md" => 5_000,
            // They grow with every release, or are made by a program.
            "CHANGELOG.md" | "docs/cli.md" | "docs/METRICS.md" => usize::MAX,
            _ => 3_000,
        };
        assert!(
            words <= most,
            "{document} has {words} words, at most {most} fit on one page"
        );
        if let Some(page) = document
            .strip_prefix("docs/")
            .filter(|page| *page != "README.md")
        {
            assert!(
                linked
                    .iter()
                    .any(|link| link.split('#').next() == Some(page)),
                "docs/README.md does not link {page}"
            );
        }
    }
}

#[test]
fn every_metric_named_in_a_document_exists() {
    let known: Vec<&str> = cutover::telemetry::metrics::names::ALL
        .iter()
        .map(|name| name.name)
        .collect();
    let mut named = 0;
    for document in documents() {
        let text = fs::read_to_string(root().join(&document)).unwrap();
        for word in text
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .filter(|word| word.starts_with("cutover_"))
        {
            let stem = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| word.strip_suffix(suffix))
                .unwrap_or(word);
            // A pattern such as `cutover_lane_*`, the cookie of minted users, and a crate.
            assert!(
                known.contains(&stem)
                    || known.contains(&word)
                    || ["cutover_id", "cutover_core"].contains(&word)
                    || (word.ends_with('_') && known.iter().any(|name| name.starts_with(word))),
                "{document}: there is no metric {word}"
            );
            named += 1;
        }
    }
    assert!(named > 20, "{named}");
}
