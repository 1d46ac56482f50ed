//! The access log as a file: users, traces, sampling.

use std::fs;

use serde_json::Value;

use crate::harness::{Backend, Behaviour, Proxy, rollout, until};

fn lines(proxy: &Proxy) -> Vec<Value> {
    let text = fs::read_to_string(proxy.directory.path().join("access.log")).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

fn line(proxy: &Proxy, path: &str) -> Value {
    until("the line", || {
        lines(proxy)
            .into_iter()
            .find(|line| line["url.path"] == path)
    })
}

#[test]
fn a_line_has_user_and_trace_and_its_hash_survives_a_restart() {
    let mut proxy = Proxy::start_with(
        "[log]\nfile = \"access.log\"\n",
        &rollout("checkout", "100", ""),
    );
    let sent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    proxy.get("/first", &[("x-user-id", "ana"), ("traceparent", sent)]);
    let first = line(&proxy, "/first");
    assert_eq!(
        (&first["trace.id"], &first["span.id"]),
        (
            &"4bf92f3577b34da6a3ce929d0e0e4736".into(),
            &"00f067aa0ba902b7".into()
        )
    );
    assert_eq!(first["event.dataset"], "cutover.access");
    assert!(
        first["user.hash"]
            .as_str()
            .is_some_and(|hash| hash.len() == 16),
        "{first}"
    );
    // Without a trace context a new one begins, and the backend receives the same one.
    proxy.get("/second", &[("x-user-id", "ben")]);
    let second = line(&proxy, "/second");
    assert!(
        proxy.new.last_head().to_lowercase().contains(&format!(
            "traceparent: 00-{}-",
            second["trace.id"].as_str().unwrap()
        )),
        "{}",
        proxy.new.last_head()
    );
    assert_ne!(first["user.hash"], second["user.hash"]);
    proxy.restart();
    proxy.get("/third", &[("x-user-id", "ana")]);
    assert_eq!(line(&proxy, "/third")["user.hash"], first["user.hash"]);
    let secret = proxy.directory.path().join("state/log-secret");
    assert_eq!(
        std::os::unix::fs::MetadataExt::mode(&fs::metadata(secret).unwrap()) & 0o777,
        0o600
    );
    assert!(
        !fs::read_to_string(proxy.directory.path().join("access.log"))
            .unwrap()
            .contains("ana")
    );
}

#[test]
fn successes_are_sampled_and_every_failure_has_a_line() {
    let tables = |log: &str| format!("[log]\nfile = \"access.log\"\n{log}");
    let proxy = Proxy::start_with(
        &tables("sample = \"0%\"\nuser = \"plain\"\n"),
        &rollout("checkout", "0", ""),
    );
    for _ in 0..20 {
        assert_eq!(proxy.get("/good", &[("x-user-id", "u")]).status(), 200);
    }
    assert_eq!(proxy.get("/bad", &[("x-user-id", "ana")]).status(), 500);
    let bad = line(&proxy, "/bad");
    assert_eq!(
        (&bad["error.kind"], &bad["user.id"], &bad["attempts"]),
        (&"status".into(), &"ana".into(), &1.into())
    );
    assert_eq!(lines(&proxy).len(), 1, "twenty that went well have none");
    // A change of the sampling rate is followed like every other key in the file.
    fs::write(
        proxy.file(),
        proxy.text_with(&tables("user = \"off\"\n"), &rollout("checkout", "0", "")),
    )
    .unwrap();
    proxy.reload();
    proxy.get("/good", &[("x-user-id", "ana")]);
    let good = line(&proxy, "/good");
    assert_eq!(
        (&good["user.id"], &good["user.hash"]),
        (&Value::Null, &Value::Null),
        "{good}"
    );
}

#[test]
fn a_failover_always_has_a_line() {
    let dead = Backend::start("dead");
    dead.behave(Behaviour::Close);
    let tables = format!(
        "[log]\nfile = \"access.log\"\nsample = \"0%\"\n[backend.new]\nservers = [\"{}\"]\n",
        dead.address
    );
    let proxy = Proxy::start_with(&tables, &rollout("checkout", "100", ""));
    assert_eq!(proxy.get("/saved", &[("x-user-id", "u")]).side(), "legacy");
    let saved = line(&proxy, "/saved");
    assert_eq!(
        (
            &saved["cutover.backend"],
            &saved["cutover.moved"],
            &saved["http.response.status_code"]
        ),
        (&"new".into(), &"failover".into(), &200.into()),
        "{saved}"
    );
}

#[test]
fn a_log_that_cannot_be_opened_is_reported_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let (legacy, new) = (Backend::start("legacy"), Backend::start("new"));
    let text = crate::harness::file(
        directory.path(),
        &legacy,
        &new,
        "[log]\nfile = \"missing/access.log\"\n",
        &rollout("checkout", "0", ""),
    );
    let file = directory.path().join("cutover.toml");
    fs::write(&file, text).unwrap();
    let start = cutover::assemble::Start {
        file,
        threads: Some(1),
        access_out: Box::new(std::io::sink()),
        origin: cutover::assemble::Origin::default(),
    };
    let error = start.start().expect_err("no folder").to_string();
    assert!(
        error.contains("missing/access.log ([log] file)") && error.contains("No such file"),
        "{error}"
    );
}
