//! The limits named in the documents. Each sentence is built from the value that the program uses.

use std::fs;
use std::path::Path;
use std::time::Duration;

use cutover::admin;
use cutover::gateway::router::hold_queue::HoldLimits;
use cutover::shared::settling;
use cutover::state::journal;
use cutover_config::{MAX_CA, MAX_FILE, MAX_LIST, NoFiles, Settings};

fn read(path: &str) -> String {
    fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .unwrap()
            .join(path),
    )
    .unwrap()
}

/// A text with single spaces, so that a sentence is found wherever its lines break.
fn in_one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// All pages of docs.
fn pages() -> String {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let mut pages = String::new();
    for entry in fs::read_dir(docs).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "md") {
            pages.push_str(&fs::read_to_string(path).unwrap());
        }
    }
    in_one_line(&pages)
}

/// Returns the value of a constant that is private to its module, parsed from the source. It is a
/// product or a shift of numbers, or a duration, in microseconds.
fn constant(path: &str, name: &str) -> u64 {
    let source = read(path);
    let declared = |line: &&str| line.contains(&format!("const {name}: "));
    let line = source
        .lines()
        .find(declared)
        .unwrap_or_else(|| panic!("{path} has no constant {name}"));
    let expression = line.split_once(" = ").unwrap().1.trim_end_matches(';');
    let number = |text: &str| {
        text.trim()
            .replace('_', "")
            .parse::<u64>()
            .unwrap_or_else(|error| panic!("{name} = {expression}: {error}"))
    };
    for (unit, micros) in [
        ("Duration::from_millis(", 1_000),
        ("Duration::from_secs(", 1_000_000),
    ] {
        if let Some(inner) = expression.strip_prefix(unit) {
            return number(inner.trim_end_matches(')')) * micros;
        }
    }
    match expression.split_once("<<") {
        Some((left, right)) => number(left) << number(right),
        None => expression.split('*').map(number).product(),
    }
}

fn seconds(path: &str, name: &str) -> String {
    human(Duration::from_micros(constant(path, name)))
}

fn human(duration: Duration) -> String {
    if duration.subsec_millis() > 0 {
        format!("{} ms", duration.as_millis())
    } else {
        format!("{} s", duration.as_secs())
    }
}

fn size(bytes: u64) -> String {
    if bytes.is_multiple_of(1 << 20) {
        format!("{} MiB", bytes >> 20)
    } else {
        format!("{} KiB", bytes >> 10)
    }
}

fn thousands(number: usize) -> String {
    let text = number.to_string();
    let (head, tail) = text.split_at(text.len().saturating_sub(3));
    if head.is_empty() {
        tail.to_owned()
    } else {
        format!("{head},{tail}")
    }
}

/// Returns the settings of a file that contains only the required keys.
fn defaults() -> Settings {
    cutover_config::parse(
        "minimal.toml",
        &read("config/examples/minimal.toml"),
        &NoFiles,
    )
    .unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn every_figure_in_the_table_of_limits_matches_the_program() {
    let Settings {
        listen,
        backends,
        rollouts,
        ..
    } = defaults();
    let (backend, guard) = (&backends[0], &rollouts[0].guard);
    let page = read("docs/limits.md");
    let row = |key: &str, value: String| {
        let cell = format!("| {key} | {value}");
        assert!(page.contains(&cell), "docs/limits.md has no `{cell}`");
    };
    row("`listen.http`", format!("`{}` |", listen.http[0]));
    row(
        "`listen.max_connections`",
        format!("{},", thousands(listen.max_connections)),
    );
    row(
        "`listen.max_header_bytes`",
        format!("{}, else 431", size(listen.max_header_bytes as u64)),
    );
    row(
        "`listen.max_body`",
        format!("{}, else 413", size(listen.max_body)),
    );
    row(
        "`listen.header_timeout`",
        format!("{} for a whole head", human(listen.header_timeout)),
    );
    let (least, span) = (
        constant("proxy/src/gateway/lane/min_rate.rs", "LEAST"),
        seconds("proxy/src/gateway/lane/min_rate.rs", "SPAN"),
    );
    let per_second = least / 10;
    assert_eq!(span, "10 s", "the pace is said per second over this span");
    row(
        "`listen.body_idle_timeout`",
        format!(
            "{}; and {per_second} bytes a second over {span}",
            human(listen.body_idle_timeout)
        ),
    );
    row(
        "`listen.write_timeout`",
        format!("{} |", human(listen.write_timeout)),
    );
    row(
        "`listen.keepalive_timeout`",
        format!("{} between two requests", human(listen.keepalive_timeout)),
    );
    row(
        "`backend.*.connect_timeout`",
        format!("{} |", human(backend.connect_timeout)),
    );
    row(
        "`backend.*.response_timeout`",
        format!("{} |", human(backend.response_timeout)),
    );
    row(
        "`backend.*.idle_timeout`",
        format!("{} |", human(backend.idle_timeout)),
    );
    row(
        "`rollout.guard.window`",
        format!("{} (", human(guard.window)),
    );
    row(
        "`rollout.guard.min_requests`",
        format!("{} |", guard.min_requests),
    );
    row(
        "main or included file, user list, `ca`",
        format!(
            "{}, {}, {} |",
            size(MAX_FILE as u64),
            size(MAX_LIST as u64),
            size(MAX_CA as u64)
        ),
    );
}

#[test]
fn every_sentence_with_a_limit_matches_the_program() {
    let pages = pages();
    let parking = HoldLimits::default();
    let (upstream, health, rescue) = (
        "proxy/src/upstream/server.rs",
        "proxy/src/upstream/health.rs",
        "proxy/src/shared/failover_budget.rs",
    );
    let (watch, lane) = (
        "proxy/src/reload/mod.rs",
        "proxy/src/gateway/lane/request.rs",
    );
    let batch = constant("proxy/src/gateway/router/hold_queue.rs", "BATCH");
    let a_second = batch * 1_000_000 / constant("proxy/src/gateway/router/hold_queue.rs", "PAUSE");
    assert_eq!(
        (
            constant(rescue, "ONE_OF"),
            constant(rescue, "SPAN"),
            constant(rescue, "AT_LEAST")
        ),
        (5, 10_000_000, 10)
    );
    assert_eq!(
        (
            constant(upstream, "FAILURES_TO_EJECT"),
            constant(upstream, "EJECTED_FOR")
        ),
        (5, 10_000_000)
    );
    assert_eq!(
        constant("proxy/src/gateway/listener/deadlines.rs", "MOST"),
        250_000
    );
    let backend = &defaults().backends[0];
    assert_eq!(
        (backend.stream_idle_timeout, backend.body_pause_timeout),
        (Duration::from_secs(3_600), Duration::from_secs(300))
    );
    let http2 = "proxy/src/gateway/http2/mod.rs";
    let sentences = [
        format!(
            "requests are parked, at most {} each and {} at a time",
            human(parking.longest),
            thousands(parking.places)
        ),
        format!(
            "Parked requests are released in batches of {batch}, at most {} in a second",
            thousands(usize::try_from(a_second).unwrap())
        ),
        format!(
            "Names are resolved every {}, off the request path",
            seconds(health, "RESOLVE")
        ),
        format!(
            "Server names are resolved every {}.",
            seconds(health, "RESOLVE")
        ),
        "WebSockets | 1 h | `stream_idle_timeout` |".to_owned(),
        "every other body | 5 min | `body_pause_timeout` |".to_owned(),
        format!(
            "may send {} of an upload, and {} on a connection",
            size(constant(http2, "STREAM_WINDOW")),
            size(constant(http2, "CONNECTION_WINDOW"))
        ),
        format!(
            "may send {} of an answer",
            size(constant("proxy/src/upstream/mod.rs", "STREAM_WINDOW"))
        ),
        format!(
            "has room for {} such streams",
            constant("proxy/src/upstream/mod.rs", "MAX_STREAMS")
        ),
        format!(
            "{} streams are open at once",
            constant(http2, "MAX_STREAMS")
        ),
        format!(
            "after {} requests that cannot be read",
            constant(http2, "MAX_REFUSED")
        ),
        format!(
            "up to {} more attempts. More than {} of body",
            constant("proxy/src/gateway/adapter/mod.rs", "MAX_UNPROCESSED"),
            size(constant(
                "proxy/src/gateway/http2/session/replay.rs",
                "REPLAY"
            ))
        ),
        // These numbers are written out in words.
        "left out for ten seconds (longer each time) after five requests in\n  a row got no answer"
            .to_owned(),
        "At most a fifth of new's requests of the last ten seconds, and ten where there were only \
         a few"
            .to_owned(),
        "A client that hangs up frees its place within a quarter of a second".to_owned(),
        format!(
            "heads above 16 KiB or {} fields",
            constant(lane, "MAX_FIELDS")
        ),
        format!(
            "at most {} records and {} of them",
            journal::MAX_PAGE,
            size(journal::MAX_PAGE_BYTES as u64)
        ),
        format!(
            "{} histories are read at a time; a third caller that waits longer than {}",
            ["No", "One", "Two", "Three"][admin::HISTORIES],
            seconds("proxy/src/admin/mod.rs", "HISTORY_PATIENCE")
        ),
        format!(
            "| the main file, an include | {}; {} if the last line",
            human(settling::SHORT),
            human(settling::LONG)
        ),
        format!(
            "{} before it is called broken |",
            seconds(watch, "SETTLE_BROKEN")
        ),
        format!(
            "a certificate or key of `[listen]` | {}; {} if the file was renamed",
            human(settling::LONG),
            human(settling::SHORT)
        ),
        format!(
            "or that has fewer lines than before | {}, renamed or not |",
            human(settling::SHORTER)
        ),
        format!(
            "| a list that has become empty | {} |",
            human(settling::MOST)
        ),
        format!(
            "grows to {} times the longest pause between two writes, up to {}",
            ["no", "one", "two", "three", "four"]
                [usize::try_from(constant("proxy/src/shared/settling.rs", "PAUSES")).unwrap()],
            human(settling::MOST)
        ),
    ];
    for sentence in &sentences {
        assert!(
            pages.contains(&in_one_line(sentence)),
            "no page in docs says: {sentence}"
        );
    }
    let wait = format!("in mode hold they wait, {} at most", human(parking.longest));
    assert!(
        read("docs/RUNBOOK.md").contains(&wait),
        "docs/RUNBOOK.md does not say: {wait}"
    );
}

#[test]
fn a_file_beyond_its_limit_is_refused_and_the_limit_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let minimal = read("config/examples/minimal.toml");
    let problem = || {
        cutover::reload::source::ConfigSource::new(at("cutover.toml"))
            .load()
            .map(drop)
            .map_err(|error| error.render(false))
    };
    fs::write(
        at("cutover.toml"),
        format!("{minimal}always_legacy = [\"file:users.txt\"]\n"),
    )
    .unwrap();
    fs::write(at("users.txt"), "a-user-key-1234\n".repeat(MAX_LIST / 16)).unwrap();
    assert_eq!(problem(), Ok(()));
    fs::write(
        at("users.txt"),
        "a-user-key-1234\n".repeat(MAX_LIST / 16 + 1),
    )
    .unwrap();
    assert!(problem().unwrap_err().contains(&format!(
        "the file is larger than {}",
        size(MAX_LIST as u64)
    )));
    fs::write(at("users.txt"), "ana\n").unwrap();
    fs::write(
        at("cutover.toml"),
        format!(
            "{minimal}{}",
            "# a comment line\n".repeat(MAX_FILE / 17 + 1)
        ),
    )
    .unwrap();
    assert!(problem().unwrap_err().contains(&format!(
        "the file is larger than {}",
        size(MAX_FILE as u64)
    )));
}
