//! Tests of whole scenarios against servers in this process, and against the sample backend as a
//! child process that stands for a proxy.
//!
//! A split whose percentage can be set over HTTP stands for a proxy that moves users. It can also
//! be told to cheat.

mod support;

use cutover_loadtest::scenario::{Outcome, Scenario, Stage, Surroundings, play};
use cutover_loadtest::units::Percent;
use cutover_loadtest::users::{Oracle, Side};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use support::{start_server, user_of};
use tokio::sync::watch;

async fn played(text: &str, target: Option<String>) -> std::io::Result<Outcome> {
    let scenario = Scenario::parse("test", text).unwrap_or_else(|error| panic!("{error}"));
    let surroundings = Surroundings {
        target,
        kit: Some(PathBuf::from(env!("CARGO_BIN_EXE_cutover-loadtest"))),
        ..Surroundings::default()
    };
    let (_go_on, stop) = watch::channel(false);
    play(
        &scenario,
        "test",
        text,
        &surroundings,
        &Stage {
            say: &|_| {},
            follows: false,
            stop,
        },
    )
    .await
}

fn holds(outcome: &Outcome, name: &str) -> Option<bool> {
    outcome
        .verdicts
        .iter()
        .find(|verdict| verdict.name == name)
        .unwrap_or_else(|| panic!("no verdict {name}: {:?}", outcome.verdicts))
        .holds
}

/// Starts a split by the hash. Its percentage is the last one set by a path `/set/PERCENT`.
/// `cheats` sends a user to the wrong side.
async fn start_split(cheats: impl Fn(&str, u32) -> bool + Send + Sync + 'static) -> String {
    let percent = Arc::new(AtomicU32::new(10));
    let address = start_server(true, move |request, _| {
        if let Some(set) = request.uri().path().strip_prefix("/set/") {
            percent.store(set.parse().expect("a percentage"), Ordering::SeqCst);
            return Side::Legacy;
        }
        let now = percent.load(Ordering::SeqCst);
        let user = user_of(request);
        let side = Oracle::new(
            "checkout",
            Percent::parse(&now.to_string()).expect("a percentage"),
        )
        .side(&user);
        match (cheats(&user, now), side) {
            (false, side) => side,
            (true, Side::Legacy) => Side::New,
            (true, Side::New) => Side::Legacy,
        }
    })
    .await;
    format!("http://{address}")
}

const MOVES: &str = r#"
title = "moves"
[load]
rate = 2000
duration = "600ms"
users = 300
connections = 8
timeout = "60s"
[hash]
salt = "checkout"
percent = 10
[[step]]
at = "200ms"
request = { method = "GET", url = "{target}/set/60" }
moves = "to-new"
settle = "50ms"
percent = 60
[[step]]
at = "400ms"
request = { method = "GET", url = "{target}/set/0" }
moves = "to-legacy"
settle = "50ms"
percent = 0
[expect]
failed = 0
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moves_in_the_direction_of_a_step_are_explained() {
    let outcome = played(MOVES, Some(start_split(|_, _| false).await))
        .await
        .expect("an outcome");
    let report = &outcome.runs[0].report;
    assert!(report.stickiness.switches > 0);
    assert_eq!(
        report.stickiness.unexplained, 0,
        "{:?}",
        report.stickiness.examples
    );
    for name in ["sticky", "hash", "steps", "failed"] {
        assert_eq!(
            holds(&outcome, name),
            Some(true),
            "{name}: {:?}",
            outcome.verdicts
        );
    }
    assert_eq!(report.segments.len(), 3);
    assert_eq!(report.segments[2].requests.on_new, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moves_against_the_direction_of_a_step_are_detected() {
    let text = MOVES.replacen("to-new", "to-legacy", 1);
    let outcome = played(&text, Some(start_split(|_, _| false).await))
        .await
        .expect("an outcome");
    assert_eq!(holds(&outcome, "sticky"), Some(false));
    assert_eq!(holds(&outcome, "hash"), Some(true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_user_on_the_wrong_side_is_detected_and_named() {
    // From the second step on, this user stays on the wrong side.
    let outcome = played(
        MOVES,
        Some(start_split(|user, percent| user == "user-7" && percent == 0).await),
    )
    .await
    .expect("an outcome");
    let hash = outcome
        .verdicts
        .iter()
        .find(|verdict| verdict.name == "hash")
        .expect("a verdict");
    assert_eq!(hash.holds, Some(false));
    assert!(
        hash.sentence.contains("to 1 users, such as user-7 "),
        "{}",
        hash.sentence
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_step_is_a_verdict_and_does_not_end_the_run() {
    let text = MOVES.replace("{target}/set/0", "http://127.0.0.1:1/");
    let outcome = played(&text, Some(start_split(|_, _| false).await))
        .await
        .expect("an outcome");
    assert_eq!(holds(&outcome, "steps"), Some(false));
    assert_eq!(outcome.runs[0].steps.len(), 2);
    assert!(outcome.runs[0].steps[1].failed.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_is_measured_from_its_step_and_over_several_runs() {
    let text = r#"
title = "fault"
runs = 2
[backend.new]
[load]
rate = 1000
duration = "300ms"
users = 50
connections = 4
timeout = "60s"
[[step]]
at = "150ms"
backend = "new"
dial = { status = 503 }
[expect]
bad_answers = 0
"#;
    let outcome = played(text, None).await.expect("an outcome");
    assert_eq!(outcome.runs.len(), 2);
    assert_eq!((outcome.runs[0].seed, outcome.runs[1].seed), (1, 2));
    for run in &outcome.runs {
        let since = run
            .report
            .blast_radius
            .as_ref()
            .expect("failures")
            .since_fault
            .as_ref()
            .expect("a fault");
        assert!(since.bad_answers > 0);
        assert_eq!(since.requests_after, 0, "it never ends");
        assert_eq!(run.backends["new"].statuses[&503], since.bad_answers);
    }
    assert_eq!(holds(&outcome, "bad answers"), Some(false));
    assert!(
        outcome.over_runs.iter().any(|one| one.name == "bad answers"
            && one.most >= one.median
            && one.median >= one.least)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusing_backend_is_reset_through_its_handle() {
    let text = r#"
title = "refuse"
[backend.new]
[load]
rate = 1000
duration = "300ms"
connections = 4
timeout = "60s"
[[step]]
at = "100ms"
backend = "new"
dial = { refuse = true }
[[step]]
at = "200ms"
backend = "new"
dial = {}
"#;
    let outcome = played(text, None).await.expect("an outcome");
    let run = &outcome.runs[0];
    assert_eq!(
        holds(&outcome, "steps"),
        Some(true),
        "{:?}",
        outcome.verdicts
    );
    assert!(
        run.report.failures.transport["connect"] > 0,
        "{:?}",
        run.report.failures
    );
    assert!(run.report.statuses["2xx"] > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_is_started_found_by_its_output_and_monitored() {
    let text = r#"
title = "proxy"
[proxy]
command = ["{kit}", "backend", "--name", "new", "--listen", "127.0.0.1:0"]
target = "listening on {}"
files."a.toml" = "folder = '{folder}'"
[load]
rate = 500
duration = "200ms"
timeout = "60s"
[websockets]
count = 3
interval = "20ms"
[slow]
heads = 2
readers = 2
idle = 2
pause = "10ms"
[[step]]
at = "50ms"
command = ["cat", "{folder}/a.toml"]
[[step]]
at = "60ms"
edit = { file = "{folder}/a.toml", line = "folder", with = "other = 1" }
[[step]]
at = "70ms"
command = ["grep", "-q", "other", "{folder}/a.toml"]
[expect]
failed = 0
websockets_lost = 0
"#;
    let outcome = played(text, None).await.expect("an outcome");
    for name in ["steps", "failed", "websockets"] {
        assert_eq!(
            holds(&outcome, name),
            Some(true),
            "{name}: {:?}",
            outcome.verdicts
        );
    }
    let run = &outcome.runs[0];
    let websockets = run.websockets.as_ref().expect("websockets");
    assert_eq!(websockets.opened, 3);
    assert!(websockets.echoed > 0);
    assert_eq!(
        run.slow
            .iter()
            .map(|slow| (slow.kind, slow.opened))
            .collect::<Vec<_>>(),
        [("heads", 2), ("readers", 2), ("idle", 2)]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_does_not_start_is_reported_with_its_last_output() {
    let text = "title = \"t\"\n[proxy]\ncommand = [\"sh\", \"-c\", \"echo my last words; exit \
                3\"]\ntarget = \"listening on {}\"\n";
    let message = played(text, None).await.expect_err("no proxy").to_string();
    assert!(
        message.contains("ended with exit status: 3") && message.contains("my last words"),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_placeholder_is_reported_before_the_load_starts() {
    let text = "title = \"t\"\n[backend.new]\n[load]\nduration = \"1s\"\n[[step]]\nat = \
                \"0s\"\ncommand = [\"true\", \"{nowhere}\"]\n";
    let message = played(text, None).await.expect_err("a mistake").to_string();
    assert!(message.contains("found {nowhere}"), "{message}");
}

#[test]
fn mistakes_in_a_file_are_shown_with_their_place() {
    let base = "title = \"t\"\n[backend.new]\n";
    for (text, expected) in [
        (
            "title = 5",
            "test:1:9: invalid type: integer `5`, expected a string",
        ),
        ("[load]\nrate = 5\n", "missing field `title`"),
        ("[load]\nrat = 5\n", "test:4:1: unknown field `rat`"),
        (
            "[load]\nduration = \"5\"\n",
            "test:4:12: expected a whole number and a unit",
        ),
        (
            "[load]\nkey = \"query:a\"\n",
            "test:4:7: expected header:<name>",
        ),
        ("[load]\nrate = 0\n", "expected a load.rate above 0"),
        (
            "[hash]\nsalt = \"s\"\npercent = 101\n",
            "test:5:11: invalid value: integer `101`, expected a percentage",
        ),
        (
            "[[step]]\nat = \"1s\"\n",
            "expected an action, until, or a label",
        ),
        (
            "[[step]]\nat = \"1s\"\ndial = {}\n",
            "expected backend beside dial",
        ),
        (
            "[[step]]\nat = \"1s\"\nbackend = \"old\"\ndial = {}\n",
            "expected the name of a [backend.*], found \"old\"",
        ),
        (
            "[[step]]\nat = \"1s\"\nbackend = \"new\"\ndial = { statsu = 5 }\n",
            "test:6:10: unknown field `statsu`",
        ),
        (
            "[[step]]\nat = \"1s\"\nbackend = \"new\"\ndial = { status = 5 }\n",
            "expected a status from 200 to 599",
        ),
        (
            "[[step]]\nat = \"1s\"\nsignal = \"hup\"\ncommand = [\"true\"]\n",
            "expected one action in a step, found command and signal",
        ),
        (
            "[[step]]\nat = \"1s\"\nlabel = \"x\"\nrepeat = 3\n",
            "expected repeat of at least 1, and every",
        ),
        (
            "[[step]]\nat = \"11s\"\nlabel = \"x\"\n",
            "within the 10s of the load, found 11s",
        ),
        (
            "[[step]]\nat = \"1s\"\nlabel = \"x\"\npercent = 5\n",
            "expected [hash] where a step has a percent",
        ),
        (
            "[[step]]\nat = \"1s\"\ncertificate = \"site\"\n",
            "expected the name of a [certificate.*]",
        ),
        (
            "[[part]]\nname = \"p\"\nfrom = \"5s\"\nto = \"4s\"\n",
            "expected a part that begins before it ends",
        ),
        (
            "[expect]\np99_ratio = { part = \"p\", to = \"q\" }\n",
            "expected the name of a [[part]], found \"p\"",
        ),
        (
            "[expect]\nbottleneck = \"disk\"\n",
            "unknown variant `disk`",
        ),
    ] {
        let whole = if text.starts_with("title") || expected.contains("title") {
            text.to_owned()
        } else {
            format!("{base}{text}")
        };
        let message = Scenario::parse("test", &whole).expect_err(text).to_string();
        assert!(message.contains(expected), "{text}\n{message}");
        assert!(message.starts_with("test:"), "{message}");
    }
}
