//! Tests of the comparison from a shell's point of view, with the real nginx and HAProxy where they
//! are installed (`make packages`).
//!
//! No test depends on how fast the machine is. The product and the do-nothing proxy are programs of
//! other crates, so they take part in `make test` and not here.
#![cfg(target_os = "linux")]

use cutover_loadtest::peers::peer::on_path;
use std::path::Path;
use std::process::{Command, Output};

fn peers(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cutover-loadtest"))
        .arg("peers")
        .args(arguments)
        .output()
        .expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_requested_program_that_is_missing_is_named() {
    let output = peers(&[
        "--only",
        "cutover,nginx",
        "--cutover",
        "no/such/cutover",
        "--nginx",
        "no/such/nginx",
    ]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("no/such/cutover"), "{said}");
}

#[test]
fn bad_usage_exits_with_2() {
    for arguments in [
        vec!["--only", "apache"],
        vec!["--rounds", "0"],
        vec!["--short", "--rounds", "3"],
        vec!["--phases", "speed"],
        vec!["--rate", "0"],
    ] {
        assert_eq!(peers(&arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn nginx_and_haproxy_do_the_job_of_the_comparison() {
    let rows: Vec<&str> = [
        ("nginx", "nginx,nginx-log"),
        ("haproxy", "haproxy,haproxy-log"),
    ]
    .into_iter()
    .filter(|(name, _)| on_path(Path::new(name)).is_some())
    .map(|(_, rows)| rows)
    .collect();
    if rows.is_empty() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (json, log) = (
        folder.path().join("figures.json"),
        folder.path().join("access.log"),
    );
    let (json_at, log_at) = (
        json.to_str().expect("a path"),
        log.to_str().expect("a path"),
    );
    let output = peers(&[
        "--short",
        "--only",
        &rows.join(","),
        "--phases",
        "memory,rate,connections",
        "--access-log",
        log_at,
        "--json",
        json_at,
    ]);
    let (table, said) = (text(&output.stdout), text(&output.stderr));
    // Exit code 0 means that no request failed, no user moved and every share is within its
    // interval.
    assert_eq!(output.status.code(), Some(0), "{said}\n{table}");
    assert!(
        table.contains("| CPU µs/request |") && table.contains("KiB per idle connection, 300"),
        "{table}"
    );

    let report: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&json).expect("a report")).expect("json");
    let phases = report["phases"].as_array().expect("phases");
    assert_eq!(phases.len(), 3);
    for row in phases
        .iter()
        .filter(|phase| phase["phase"] == "driven")
        .flat_map(|phase| phase["rows"].as_array().expect("rows"))
    {
        assert_eq!(
            (
                &row["split"]["moved"],
                row["drives"].as_array().map(Vec::len)
            ),
            (&0.into(), Some(1)),
            "{row}"
        );
        assert!(
            row["split"]["new"].as_u64().expect("a number") > 0
                && row["drives"][0]["cpu_us_per_request"]
                    .as_f64()
                    .expect("a number")
                    > 0.0,
            "{row}"
        );
    }
    let log = std::fs::read_to_string(&log).expect("an access log");
    let line: serde_json::Value =
        serde_json::from_str(log.lines().next().expect("a line")).expect("a line of json");
    assert_eq!(line["http.request.method"], "GET");
}
