//! Tests of the program from a shell's point of view: what it prints and how it exits.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_cutover-loadtest"))
}

fn output(arguments: &[&str]) -> Output {
    program()
        .args(arguments)
        .output()
        .expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A backend process that ends with the test.
struct BackendProcess {
    child: Child,
    url: String,
}

impl BackendProcess {
    fn start(arguments: &[&str]) -> Self {
        let mut child = program()
            .args(["backend", "--name", "new"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program runs");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("its stdout"))
            .read_line(&mut line)
            .expect("a line");
        let url = line
            .trim_end()
            .strip_prefix("listening on ")
            .unwrap_or_else(|| panic!("expected the address, found {line:?}"))
            .to_owned();
        Self { child, url }
    }
}

impl Drop for BackendProcess {
    fn drop(&mut self) {
        // The process may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn bad_usage_exits_with_2_and_says_what_was_expected() {
    for (arguments, expected) in [
        (
            vec!["run", "--target", "http://192.0.2.1:80"],
            "--allow-remote",
        ),
        (
            vec!["run", "--target", "http://127.0.0.1:1", "--duration", "5"],
            "such as \"250ms\"",
        ),
        (
            vec!["run", "--target", "http://127.0.0.1:1", "--salt", "s"],
            "--percent",
        ),
        (
            vec!["run", "--target", "http://127.0.0.1:1", "--users", "0"],
            "expected 1 to",
        ),
        (
            vec![
                "run",
                "--target",
                "http://127.0.0.1:1",
                "--connections",
                "0",
            ],
            "at least 1 connection",
        ),
        (
            vec!["run", "--target", "ftp://127.0.0.1"],
            "such as http://",
        ),
        (vec!["backend", "--name", "a\nb"], "expected a name"),
        (
            vec!["backend", "--name", "new", "--error-rate", "101"],
            "expected a percentage",
        ),
        (vec!["backend"], "--name"),
        (
            vec!["run", "--target", "https://127.0.0.1:1"],
            "--ca FILE or --insecure",
        ),
        (
            vec!["run", "--target", "http://127.0.0.1:1", "--key", "query:a"],
            "jwt:<claim>",
        ),
        (
            vec!["run", "--target", "http://127.0.0.1:1", "--protocol", "h3"],
            "expected h1 or h2",
        ),
        (
            vec!["scenario", "nowhere.toml"],
            "one of steady, ramp, breach",
        ),
        (
            vec!["scenario", "steady", "--set", "load.rat=5"],
            "unknown field `rat`",
        ),
        (
            vec!["scenario", "steady", "--set", "load.duration=5"],
            "steady:",
        ),
        (
            vec!["scenario", "steady", "--set", "nonsense"],
            "expected key=value",
        ),
        (
            vec!["scenario", "steady", "--cutover", "/nowhere/cutover"],
            "expected a program in --cutover",
        ),
    ] {
        let output = output(&arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(expected), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_healthy_run_exits_with_0_and_prints_the_table() {
    let backend = BackendProcess::start(&[]);
    let output = output(&[
        "run",
        "--target",
        &backend.url,
        "--rps",
        "500",
        "--duration",
        "200ms",
        "--users",
        "20",
        "--salt",
        "checkout",
        "--percent",
        "100",
        "--assert",
    ]);
    let table = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    for line in [
        "requests       100 finished, 100 sent",
        "statuses       2xx 100",
        "failures       0 requests, 0 users hurt",
        "sides          legacy 0, new 100, unnamed 0",
        "hash           0 of 100 answers from the wrong side",
        "expected 100.000% inside",
    ] {
        assert!(table.contains(line), "expected {line:?} in\n{table}");
    }
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
}

#[test]
fn a_failing_run_exits_with_1_only_with_assert_and_says_why() {
    let backend = BackendProcess::start(&["--error-rate", "100%"]);
    let run = [
        "run",
        "--target",
        &backend.url,
        "--rps",
        "500",
        "--duration",
        "100ms",
        "--json",
    ];
    let plain = output(&run);
    assert_eq!(plain.status.code(), Some(0));
    let report: serde_json::Value = serde_json::from_slice(&plain.stdout).expect("json");
    assert_eq!(report["failures"]["server_errors"], 50);
    assert_eq!(report["statuses"]["5xx"], 50);

    let asserted = output(&[&run[..], &["--assert"]].concat());
    assert_eq!(asserted.status.code(), Some(1));
    let said = text(&asserted.stderr);
    assert!(
        said.contains("violation: 50 of 50 requests failed (5xx 50)"),
        "{said}"
    );
    serde_json::from_slice::<serde_json::Value>(&asserted.stdout).expect("json all the same");
}

#[test]
fn the_built_in_scenarios_are_listed_and_printed() {
    let list = text(&output(&["scenario"]).stdout);
    for name in [
        "steady",
        "ramp",
        "breach",
        "rollback",
        "reload-storm",
        "slow-clients",
        "capacity",
        "soak",
    ] {
        assert!(
            list.lines().any(|line| line.starts_with(name)),
            "{name} in\n{list}"
        );
    }
    let shown = text(
        &output(&[
            "scenario",
            "breach",
            "--set",
            "load.rate=7",
            "--runs",
            "3",
            "--print",
        ])
        .stdout,
    );
    assert!(
        shown.contains("rate = 7") && shown.contains("runs = 3"),
        "{shown}"
    );
}

#[test]
fn a_scenario_needs_its_program() {
    let output = program()
        .args(["scenario", "steady"])
        .env_remove("CUTOVER")
        .output()
        .expect("the program runs");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("found {cutover}"), "{said}");
}

#[test]
fn a_scenario_reports_in_every_format_and_fails_only_with_assert() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (scenario, html, hgrm) = (
        file("broken.toml"),
        file("report.html"),
        file("latency.hgrm"),
    );
    let story = "title = \"Broken <backend>\"\n[backend.new]\nerror_rate = 100\n[load]\nrate = \
                 500\nduration = \"100ms\"\n[expect]\nfailed = 0\n";
    std::fs::write(&scenario, story).expect("written");
    let told = output(&["scenario", &scenario, "--html", &html, "--hgrm", &hgrm]);
    assert_eq!(told.status.code(), Some(0), "{}", text(&told.stderr));
    assert!(
        text(&told.stdout).contains("FAIL  failed"),
        "{}",
        text(&told.stdout)
    );
    let page = std::fs::read_to_string(&html).expect("a page");
    assert!(page.contains("Broken &lt;backend&gt;") && page.contains("✗ fails"));
    assert!(
        std::fs::read_to_string(&hgrm)
            .expect("a distribution")
            .contains("1/(1-Percentile)")
    );

    let asserted = output(&["scenario", &scenario, "--assert", "--json"]);
    assert_eq!(asserted.status.code(), Some(1));
    assert!(
        text(&asserted.stderr).contains("violation: failed: "),
        "{}",
        text(&asserted.stderr)
    );
    let outcome: serde_json::Value = serde_json::from_slice(&asserted.stdout).expect("json");
    assert_eq!(
        outcome["runs"][0]["report"]["failures"]["requests"],
        outcome["runs"][0]["report"]["requests"]["finished"]
    );
    assert_eq!(
        outcome["runs"][0]["backends"]["new"]["statuses"]["500"],
        outcome["runs"][0]["report"]["statuses"]["5xx"]
    );
}

#[test]
fn a_run_with_tokens_http2_and_websockets_writes_its_page() {
    let backend = BackendProcess::start(&[]);
    let folder = tempfile::tempdir().expect("a folder");
    let html = folder.path().join("run.html").display().to_string();
    let output = output(&[
        "run",
        "--target",
        &backend.url,
        "--rps",
        "200",
        "--duration",
        "200ms",
        "--protocol",
        "h2",
        "--key",
        "jwt:sub",
        "--method",
        "POST",
        "--body-bytes",
        "100",
        "--websockets",
        "2",
        "--websocket-interval",
        "20ms",
        "--html",
        &html,
        "--assert",
    ]);
    let table = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    for line in [
        "POST http://",
        "with 100 bytes by HTTP/2",
        "users by jwt:sub",
        "websockets     2 opened, 0 refused, 0 closed early",
    ] {
        assert!(table.contains(line), "expected {line:?} in\n{table}");
    }
    assert!(
        std::fs::read_to_string(&html)
            .expect("a page")
            .contains("WebSockets: 2 opened")
    );
}
