//! The command line: data on stdout, everything else on stderr, and exit codes that scripts can
//! rely on.

use std::fs;
use std::process::{Command, Output};

use crate::harness::{Proxy, rollout};

pub fn cutover(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cutover"))
        .args(arguments)
        .env_remove("CUTOVER_ADMIN")
        .env_remove("CUTOVER_TOKEN")
        .env("USER", "ana")
        .output()
        .unwrap()
}

pub fn said(output: &Output) -> (Option<i32>, String, String) {
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn check_shows_every_problem_and_its_exit_code_gives_the_kind() {
    let proxy = Proxy::start(&rollout("checkout", "5", ""));
    let file = proxy.file().display().to_string();
    let (code, stdout, stderr) = said(&cutover(&["check", &file]));
    assert_eq!(code, Some(0), "{stderr}");
    assert!(
        stdout.contains("rollout checkout: 5 % of users on `new`")
            && stdout.contains("guard: sequential, at most one false alarm in 720 hours")
            && stdout.contains("    errors_max               0.14"),
        "{stdout}"
    );

    let broken = proxy.directory.path().join("broken.toml");
    fs::write(
        &broken,
        proxy
            .text()
            .replace("percent = 5", "percnt = 5")
            .replace("[state]", "[stat]"),
    )
    .unwrap();
    let (code, stdout, stderr) = said(&cutover(&["check", broken.to_str().unwrap()]));
    assert_eq!((code, stdout.as_str()), (Some(2), ""));
    assert!(
        stderr.contains("percnt") && stderr.contains("did you mean") && stderr.contains("stat"),
        "{stderr}"
    );
    assert!(stderr.contains("broken.toml:"), "{stderr}");

    let warned = proxy.directory.path().join("warned.toml");
    fs::write(
        &warned,
        format!(
            "{}\n{}",
            proxy.text(),
            rollout(
                "second",
                "5",
                "salt = \"checkout\"\nmatch = { path = \"/second\" }"
            )
        ),
    )
    .unwrap();
    assert_eq!(
        said(&cutover(&["check", warned.to_str().unwrap()])).0,
        Some(0)
    );
    let (code, _, stderr) = said(&cutover(&["check", "--strict", warned.to_str().unwrap()]));
    assert_eq!(code, Some(3), "{stderr}");
    assert!(stderr.contains("warning: "), "{stderr}");
}

#[test]
fn diff_shows_how_many_users_move_and_in_which_direction() {
    let proxy = Proxy::start(&rollout("checkout", "5", ""));
    let other = proxy.directory.path().join("other.toml");
    let file = proxy.file().display().to_string();
    for (block, sentence) in [
        (rollout("checkout", "5", ""), "checkout: no change"),
        (
            rollout("checkout", "25", ""),
            "checkout: 5 % -> 25 %: 20 % of users move legacy -> new, 0 % move new -> legacy",
        ),
        (
            rollout("checkout", "1.5", ""),
            "checkout: 5 % -> 1.5 %: 0 % of users move legacy -> new, 3.5 % move new -> legacy",
        ),
        (
            rollout("checkout", "5", "salt = \"fresh\""),
            "checkout: 5 % -> 5 %: 4.75 % of users move legacy -> new, 4.75 % move new -> legacy \
             (salt, key or anonymous changed",
        ),
        (
            rollout("search", "5", ""),
            "checkout: leaves the file: 5 % of its users move off new",
        ),
    ] {
        fs::write(&other, proxy.text_with("", &block)).unwrap();
        let (code, stdout, stderr) = said(&cutover(&["diff", &file, other.to_str().unwrap()]));
        assert_eq!(code, Some(0), "{stderr}");
        assert!(stdout.contains(sentence), "{stdout}");
    }
}

#[test]
fn the_commands_control_a_running_proxy() {
    let proxy = Proxy::start(&rollout("checkout", "5", ""));
    let admin = format!("http://{}", proxy.admin);
    let run = |arguments: &[&str]| said(&cutover(&[arguments, &["--admin", &admin]].concat()));
    let (code, stdout, stderr) = run(&["set", "checkout", "12.5", "--reason", "CHG-7"]);
    assert_eq!(
        (code, stdout.as_str()),
        (Some(0), "checkout: 12.5 % of users are on new\n"),
        "{stderr}"
    );
    assert!(proxy.text().contains("percent = 12.5\n"));
    let (code, stdout, _) = run(&[
        "rollback",
        "checkout",
        "--reason",
        "odd errors",
        "--dry-run",
    ]);
    assert_eq!(
        (code, stdout.as_str()),
        (
            Some(0),
            "checkout: everyone would be sent to legacy, unless legacy does not answer when it is \
             asked then\n"
        )
    );
    assert_eq!(
        run(&["rollback", "checkout", "--reason", "odd errors"]).0,
        Some(0)
    );
    let (code, stdout, stderr) = run(&["status"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(
        stdout.contains("rolled back")
            && stdout.contains("ana sent everyone to legacy: odd errors"),
        "{stdout}"
    );
    assert_eq!(
        run(&[
            "retry",
            "checkout",
            "--reason",
            "it was DNS",
            "--percent",
            "1"
        ])
        .0,
        Some(0),
        "an alias as in Argo Rollouts"
    );
    let (_, stdout, _) = run(&["status", "checkout", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(status["rollouts"][0]["effective_percent"], 1.0);
    let (_, stdout, _) = run(&["history"]);
    assert!(
        stdout.lines().any(|line| line.contains("rollback")
            && line.contains("cli")
            && line.contains("odd errors")),
        "{stdout}"
    );
    let state = proxy.directory.path().join("state").display().to_string();
    assert_eq!(
        said(&cutover(&["history", "--state", &state])).1,
        stdout,
        "the journal says the same without a proxy"
    );
    let (code, stdout, _) = run(&["explain", "--user", "ana"]);
    assert_eq!(code, Some(0));
    assert!(
        stdout.contains("murmur3-100k/1") && stdout.contains("served by backend"),
        "{stdout}"
    );

    for (arguments, code, message) in [
        (
            &["rearm", "checkout", "--reason", "x"][..],
            1,
            "not rolled back",
        ),
        (
            &["rollback", "chekout", "--reason", "x"],
            1,
            "there are: checkout",
        ),
        (
            &["set", "checkout", "101", "--reason", "x"],
            2,
            "from 0 to 100",
        ),
        (&["set", "checkout", "5"], 2, "--reason"),
        (&["status", "chekout"], 1, "there are: checkout"),
    ] {
        let (found, stdout, stderr) = run(arguments);
        assert_eq!(
            (found, stdout.as_str()),
            (Some(code), ""),
            "{arguments:?}: {stderr}"
        );
        assert!(stderr.contains(message), "{arguments:?}: {stderr}");
    }
    let (code, _, stderr) = said(&cutover(&["status", "--admin", "http://127.0.0.1:1"]));
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains("cannot reach") && stderr.contains("hint:"),
        "{stderr}"
    );
}

#[test]
fn files_can_be_edited_and_explained_without_a_proxy() {
    let proxy = Proxy::start(&rollout("checkout", "5", ""));
    let copy = proxy.directory.path().join("copy.toml");
    fs::write(&copy, proxy.text()).unwrap();
    let copy = copy.to_str().unwrap();
    assert_eq!(
        said(&cutover(&[
            "set", "checkout", "7", "-c", copy, "--reason", "x"
        ]))
        .0,
        Some(0)
    );
    assert!(fs::read_to_string(copy).unwrap().contains("percent = 7\n"));
    let (code, stdout, stderr) = said(&cutover(&[
        "explain",
        "-c",
        copy,
        "-H",
        "x-user-id: ana",
        "--json",
    ]));
    assert_eq!(code, Some(0), "{stderr}");
    let explained: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (&explained["key_source"], &explained["effective_percent"]),
        (
            &serde_json::json!("header:x-user-id"),
            &serde_json::json!(7.0)
        )
    );
}

#[test]
fn schema_and_completions_print_the_requested_output() {
    let (code, stdout, _) = said(&cutover(&["schema"]));
    assert_eq!(code, Some(0));
    assert!(
        serde_json::from_str::<serde_json::Value>(&stdout).unwrap()["properties"]["rollout"]
            .is_object()
    );
    for shell in ["bash", "zsh", "fish"] {
        let (code, stdout, _) = said(&cutover(&["completions", shell]));
        assert_eq!(code, Some(0));
        assert!(stdout.contains("rollback"), "{shell}");
    }
    assert_eq!(said(&cutover(&["explode"])).0, Some(2));
}

#[test]
fn check_notes_rollouts_whose_cors_preflights_have_no_key() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cutover.toml");
    let check = |key: &str, more: &str| {
        let backends = "[backend.legacy]\nservers = [\"127.0.0.1:1\"]\n[backend.new]\nservers = \
                        [\"127.0.0.1:2\"]\n";
        fs::write(
            &file,
            format!("{backends}[[rollout]]\nid = \"api\"\npercent = 0\nkey = [{key}]\n{more}\n"),
        )
        .unwrap();
        let (code, _, stderr) = said(&cutover(&["check", "--strict", file.to_str().unwrap()]));
        assert_eq!(code, Some(0), "a note does not count: {stderr}");
        stderr
    };
    let legacy = check("\"header:x-user-id\"", "");
    assert!(
        legacy.contains("note: rollout \"api\": a CORS preflight")
            && legacy.contains("does not carry header:x-user-id")
            && legacy.contains("always goes to legacy"),
        "{legacy}"
    );
    assert!(check("\"jwt:sub\", \"cookie:uid\"", "").contains("does not carry jwt:sub"));
    assert!(check("\"header:x-user-id\", \"ip\"", "").contains("by another source of `key`"));
    assert!(
        check("\"header:x-user-id\"", "anonymous = \"random\"").contains("`anonymous` decides")
    );
    for (key, more) in [
        ("\"cookie:uid\"", ""),
        ("\"query:user\", \"ip\"", ""),
        (
            "\"header:x-user-id\"",
            "match = { methods = [\"GET\", \"POST\"] }",
        ),
    ] {
        let stderr = check(key, more);
        assert!(!stderr.contains("preflight"), "{key} {more}: {stderr}");
    }
    fs::write(
        &file,
        fs::read_to_string(&file)
            .unwrap()
            .replace("match = { methods = [\"GET\", \"POST\"] }", ""),
    )
    .unwrap();
    let (_, stdout, _) = said(&cutover(&["check", "--json", file.to_str().unwrap()]));
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (
            json["notes"].as_array().unwrap().len(),
            json["warnings"].as_array().unwrap().len()
        ),
        (1, 0),
        "{json}"
    );
}
