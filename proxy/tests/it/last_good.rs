//! Starts without a usable file. The last accepted configuration is complete, and is found.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{Client, rollout, until};
use crate::process::{Process, World, command, log_line};

const LISTED: &str = "always_new = [\"file:beta.txt\"]";

fn side(process: &Process, user: &str) -> String {
    Client::connect(process.http)
        .ask("GET", "/", &[("x-user-id", user)], b"")
        .unwrap()
        .side()
        .to_owned()
}

fn config(process: &Process) -> Value {
    process
        .admin_ask("GET", "/api/v1/rollouts", &Value::Null)
        .json()["config"]
        .clone()
}

/// Returns the exit code and the messages of a start that fails.
fn refused(mut command: std::process::Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn a_start_without_a_list_of_the_file_uses_the_kept_list() {
    let world = World::new(&rollout("checkout", "0", LISTED));
    let list = world.path().join("beta.txt");
    fs::write(&list, "ana\n").unwrap();
    Process::start(world.path()).kill();
    for (what, damage) in [
        (
            "removed",
            Box::new(|list: &Path| fs::remove_file(list).unwrap()) as Box<dyn Fn(&Path)>,
        ),
        ("a folder", Box::new(|list| fs::create_dir(list).unwrap())),
        (
            "no text",
            Box::new(|list| drop((fs::remove_dir(list), fs::write(list, [0xff, 0xfe])))),
        ),
    ] {
        damage(&list);
        let process = Process::start(world.path());
        assert_eq!(
            (
                side(&process, "ana").as_str(),
                side(&process, "bob").as_str()
            ),
            ("new", "legacy"),
            "{what}"
        );
        let told = config(&process);
        assert!(
            told["last_reload_successful"] == false
                && told["problems"].as_str().unwrap().contains("beta.txt"),
            "{what}: {told}"
        );
        process.kill();
    }
    let process = Process::start(world.path());
    fs::write(&list, "bob\n").unwrap();
    until("the list that is back", || {
        (side(&process, "bob") == "new").then_some(())
    });
    assert_eq!(config(&process)["last_reload_successful"], true);
    process.kill();
}

#[test]
fn a_start_without_an_include_and_its_list_uses_the_kept_ones() {
    let world = World::new(&rollout(
        "checkout",
        "0",
        "match = { path = \"/checkout\" }",
    ));
    let file = world.path().join("cutover.toml");
    fs::write(
        &file,
        format!(
            "include = [\"more.toml\"]\n{}",
            fs::read_to_string(&file).unwrap()
        ),
    )
    .unwrap();
    let more = format!(
        "[[rollout]]\nid = \"more\"\nmatch = {{ path = \"/more\" }}\npercent = 0\nkey = \
         [\"header:x-user-id\"]\n{LISTED}\n"
    );
    fs::write(world.path().join("more.toml"), more).unwrap();
    fs::write(world.path().join("beta.txt"), "ana\n").unwrap();
    Process::start(world.path()).kill();
    fs::remove_file(world.path().join("more.toml")).unwrap();
    fs::remove_file(world.path().join("beta.txt")).unwrap();
    let process = Process::start(world.path());
    let answer = Client::connect(process.http)
        .ask("GET", "/more", &[("x-user-id", "ana")], b"")
        .unwrap();
    assert_eq!(answer.side(), "new");
    process.kill();
}

#[test]
fn a_list_changed_while_running_is_kept_as_last_accepted() {
    let world = World::new(&rollout("checkout", "0", LISTED));
    let list = world.path().join("beta.txt");
    fs::write(&list, "ana\n").unwrap();
    let process = Process::start(world.path());
    fs::write(&list, "ana\nbob\n").unwrap();
    until("the longer list", || {
        (side(&process, "bob") == "new").then_some(())
    });
    assert_eq!(
        process
            .admin_ask(
                "POST",
                "/api/v1/rollouts/checkout/set",
                &json!({"percent": 1, "reason": "x"})
            )
            .status(),
        200
    );
    // The answer to a command is sent after everything requested before is on disk.
    assert_eq!(
        process
            .admin_ask(
                "POST",
                "/api/v1/rollouts/checkout/rollback",
                &json!({"reason": "x"})
            )
            .status(),
        200
    );
    process.kill();
    fs::remove_file(&list).unwrap();
    let process = Process::start(world.path());
    assert_eq!(
        process
            .admin_ask(
                "POST",
                "/api/v1/rollouts/checkout/rearm",
                &json!({"reason": "x"})
            )
            .status(),
        200
    );
    assert_eq!(
        (
            side(&process, "ana").as_str(),
            side(&process, "bob").as_str()
        ),
        ("new", "new")
    );
    process.kill();
    assert_eq!(
        fs::read_dir(world.path().join("state/last-good.d"))
            .unwrap()
            .count(),
        1,
        "older lists are removed"
    );
}

#[test]
fn a_last_good_file_of_an_earlier_version_still_starts() {
    let world = World::new(&rollout("checkout", "0", LISTED));
    let file = world.path().join("cutover.toml");
    fs::write(world.path().join("beta.txt"), "ana\n").unwrap();
    Process::start(world.path()).kill();
    // The last good file is written in the old form without kept files, so lists are read from
    // their original place.
    fs::copy(&file, world.path().join("state/last-good.toml")).unwrap();
    fs::remove_dir_all(world.path().join("state/last-good.d")).unwrap();
    fs::write(
        &file,
        fs::read_to_string(&file)
            .unwrap()
            .replace("percent", "percnt"),
    )
    .unwrap();
    let process = Process::start(world.path());
    assert_eq!(side(&process, "ana"), "new");
    process.kill();
}

#[test]
fn a_file_that_is_not_toml_starts_with_a_given_state_directory() {
    let world = World::new(&rollout("checkout", "33", ""));
    let (file, state) = (
        world.path().join("cutover.toml"),
        world.path().join("state"),
    );
    Process::start(world.path()).kill();
    for broken in [
        Some("<html>502 Bad Gateway</html>"),
        Some("[state\ndirectory = state"),
        Some(""),
        None,
    ] {
        match broken {
            Some(text) => fs::write(&file, text).unwrap(),
            None => fs::remove_file(&file).unwrap(),
        }
        let (code, words) = refused(command(world.path()));
        let hint = format!("cutover run -c {} --state DIRECTORY", file.display());
        assert!(
            code == Some(2) && words.contains(&hint) && words.contains("last-good.toml"),
            "{broken:?}: {code:?} {words}"
        );
        let by_argument = Process::of({
            let mut command = command(world.path());
            command.arg("--state").arg(&state);
            command
        });
        assert_eq!(
            by_argument.rollout()["effective_percent"],
            33.0,
            "{broken:?}"
        );
        assert_eq!(config(&by_argument)["last_reload_successful"], false);
        by_argument.kill();
        let by_variable = Process::of({
            let mut command = command(world.path());
            command.env("CUTOVER_STATE", &state);
            command
        });
        assert_eq!(
            by_variable.rollout()["effective_percent"],
            33.0,
            "{broken:?}"
        );
        by_variable.kill();
    }
}

#[test]
fn a_given_state_directory_overrides_the_file_and_is_reported() {
    let world = World::new(&rollout("checkout", "33", ""));
    let given = world.path().join("elsewhere");
    let mut command = command(world.path());
    command.arg("--state").arg(&given);
    let mut child = command.spawn().unwrap();
    let mut log = std::io::BufReader::new(child.stdout.take().unwrap());
    let told = log_line(
        &mut log,
        "the state directory of the command line is used instead of the one in the file",
    );
    assert_eq!(told["given"], given.display().to_string());
    let ready = log_line(&mut log, "cutover is ready");
    let admin = ready["admin"]
        .as_str()
        .unwrap()
        .strip_prefix("http://")
        .unwrap()
        .parse()
        .unwrap();
    let ask = |method: &str, target: &str| {
        Client::connect(admin)
            .ask(method, target, &[("host", "localhost")], b"")
            .unwrap()
    };
    assert_eq!(ask("POST", "/api/v1/reload").status(), 200);
    let status = ask("GET", "/api/v1/rollouts").json();
    assert!(
        status["config"]["restart_needed"].is_null(),
        "a reload does not ask for another directory: {status}"
    );
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(given.join("status.json").exists() && !world.path().join("state").exists());
}

#[test]
fn a_start_without_a_last_good_file_says_what_to_do() {
    let world = World::new("broken");
    let (code, words) = refused({
        let mut command = command(world.path());
        command.arg("--state").arg(world.path().join("empty"));
        command
    });
    assert!(
        code == Some(2)
            && words.contains("empty/last-good.toml")
            && words.contains("cutover check"),
        "{code:?} {words}"
    );
}
