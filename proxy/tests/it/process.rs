//! The binary as an operator runs it: signals, kill -9, ports in use, damaged state.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::harness::{
    Backend, Behaviour, Client, Load, Message, QUICK_GUARD, file, rollout, until,
};

/// The real binary with its own directory.
pub struct Process {
    pub child: Child,
    pub http: SocketAddr,
    pub admin: SocketAddr,
    pub log: BufReader<ChildStdout>,
}

impl Process {
    pub fn start(directory: &Path) -> Self {
        Self::of(command(directory))
    }

    pub fn of(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut log = BufReader::new(child.stdout.take().unwrap());
        let ready = log_line(&mut log, "cutover is ready");
        let address = |key: &str| {
            ready[key]
                .as_str()
                .unwrap()
                .strip_prefix("http://")
                .unwrap()
                .parse()
                .unwrap()
        };
        Self {
            child,
            http: address("http"),
            admin: address("admin"),
            log,
        }
    }

    pub fn signal(&self, signal: &str) {
        let done = Command::new("kill")
            .args([signal, &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(done.success());
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn admin_ask(&self, method: &str, target: &str, body: &Value) -> Message {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        Client::connect(self.admin)
            .ask(
                method,
                target,
                &[("host", "localhost"), ("content-type", "application/json")],
                body.as_bytes(),
            )
            .unwrap()
    }

    pub fn rollout(&self) -> Value {
        self.admin_ask("GET", "/api/v1/rollouts", &Value::Null)
            .json()["rollouts"][0]
            .clone()
    }
}

/// A failed test leaves no process behind.
impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn command(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cutover"));
    command
        .args(["run", "--threads", "2", "--lead", "100ms", "-c"])
        .arg(directory.join("cutover.toml"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Reads the log until it finds a line with this message.
pub fn log_line(log: &mut impl BufRead, message: &str) -> Value {
    for line in log.lines() {
        let line = line.unwrap();
        let value: Value = serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("the log is JSON ({error}): {line}"));
        if value["message"] == message {
            return value;
        }
    }
    panic!("the log ended without `{message}`");
}

/// A file and its backends, for several processes one after the other.
pub struct World {
    pub legacy: Backend,
    pub new: Backend,
    directory: tempfile::TempDir,
}

impl World {
    pub fn new(rollouts: &str) -> Self {
        let world = Self {
            legacy: Backend::start("legacy"),
            new: Backend::start("new"),
            directory: tempfile::tempdir().unwrap(),
        };
        world.write(rollouts);
        world
    }

    pub fn write(&self, rollouts: &str) {
        // On a busy machine an answer may take longer than the tests of late answers allow, and
        // legacy would then answer.
        let text = file(
            self.path(),
            &self.legacy,
            &self.new,
            "[log]\naccess = \"off\"\n",
            rollouts,
        )
        .replace("response_timeout = \"300ms\"", "response_timeout = \"10s\"");
        fs::write(self.path().join("cutover.toml"), text).unwrap();
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

#[test]
fn a_rollback_survives_kill_9_and_a_reload_of_the_same_file() {
    let block = rollout("checkout", "50", QUICK_GUARD);
    let world = World::new(&block);
    let process = Process::start(world.path());
    let load = Load::start(process.http, 2);
    world.new.behave(Behaviour::Answer(500));
    until("the drop", || {
        (process.rollout()["phase"] == "rolled_back").then_some(())
    });
    load.end();
    until("the latch on disk", || {
        fs::read_to_string(world.path().join("state/status.json"))
            .is_ok_and(|text| text.contains("rolled_back"))
            .then_some(())
    });
    process.kill();

    let process = Process::start(world.path());
    assert_eq!(process.rollout()["effective_percent"], 0.0);
    world.write(&block);
    process.signal("-HUP");
    world.write(&rollout("checkout", "60", QUICK_GUARD));
    until("the file", || {
        (process.rollout()["desired_percent"] == 60.0).then_some(())
    });
    assert_eq!(process.rollout()["effective_percent"], 0.0);
    let rearmed = process.admin_ask(
        "POST",
        "/api/v1/rollouts/checkout/rearm",
        &json!({"reason": "fixed"}),
    );
    assert_eq!(rearmed.status(), 200, "{}", rearmed.text());
    process.kill();

    let process = Process::start(world.path());
    assert_eq!(
        process.rollout()["effective_percent"],
        60.0,
        "a rearm answered as durable survives kill -9, too"
    );
    let history = process
        .admin_ask("GET", "/api/v1/history", &Value::Null)
        .json();
    assert_eq!(history["chain"]["intact"], true, "{history}");
    let changes: Vec<&str> = history["records"]
        .as_array()
        .unwrap()
        .iter()
        .rev()
        .filter_map(|record| record["change"].as_str())
        .collect();
    assert_eq!(
        changes
            .iter()
            .filter(|change| ["rollback", "rearm"].contains(change))
            .collect::<Vec<_>>(),
        [&"rollback", &"rearm"],
        "{changes:?}"
    );
    process.kill();
}

#[test]
fn kill_9_during_a_rollback_leaves_the_latch_or_the_previous_state() {
    let block = rollout("checkout", "50", "");
    for round in 0..12u32 {
        let world = World::new(&block);
        let process = Process::start(world.path());
        // The command is sent without waiting for the answer. The kill falls somewhere into
        // publish, write, sync, rename, announce.
        let mut client = Client::connect(process.admin);
        client.send(b"POST /api/v1/rollouts/checkout/rollback HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 14\r\n\r\n{\"reason\":\"x\"}");
        for _ in 0..round * 20_000 {
            std::hint::spin_loop();
        }
        process.kill();
        let process = Process::start(world.path());
        let rollout = process.rollout();
        let whole = (rollout["phase"] == "rolled_back"
            && rollout["effective_percent"] == 0.0
            && rollout["latch"]["cause"] == "manual")
            || (rollout["phase"] == "holding" && rollout["effective_percent"] == 50.0);
        assert!(whole, "round {round}: {rollout}");
        let history = process
            .admin_ask("GET", "/api/v1/history", &Value::Null)
            .json();
        assert_eq!(history["chain"]["intact"], true, "round {round}: {history}");
        process.kill();
    }
}

#[test]
fn running_out_of_file_descriptors_is_no_failure_of_a_backend() {
    const FILES: usize = 96;
    let world = World::new(&rollout(
        "checkout",
        "100",
        "[rollout.guard]\nmode = \"off\"",
    ));
    // The backend keeps no connection that the next request could reuse.
    world.new.behave(Behaviour::Http10);
    let mut limited = Command::new("sh");
    let program = command(world.path());
    limited
        .args(["-c", &format!("ulimit -n {FILES} && exec \"$@\""), "sh"])
        .arg(program.get_program())
        .args(program.get_args());
    let process = Process::of({
        limited.stdout(Stdio::piped()).stderr(Stdio::piped());
        limited
    });
    let mut clients: Vec<Client> = (0..FILES).map(|_| Client::connect(process.http)).collect();
    let files = format!("/proc/{}/fd", process.child.id());
    until("all files to be used", || {
        (fs::read_dir(&files).unwrap().count() >= FILES).then_some(())
    });
    // A file descriptor may be free for a moment, and a request then gets its answer.
    until("a request without a file", || {
        let status = clients
            .iter_mut()
            .take(3)
            .map(|client| {
                client
                    .ask("GET", "/", &[("x-user-id", "u")], b"")
                    .unwrap()
                    .status()
            })
            .max()?;
        assert!([200, 500].contains(&status), "{status}");
        (status == 500).then_some(())
    });
    drop(clients);
    let new = until("a client to be accepted", || {
        Some(process.rollout()["new"].clone())
    });
    assert_eq!(new["failed"], 0, "{new}");
    assert_eq!(
        Client::connect(process.http)
            .ask("GET", "/", &[("x-user-id", "u")], b"")
            .map(|answer| answer.status()),
        Some(200)
    );
    process.kill();
}

#[test]
fn a_port_in_use_is_a_clear_error_at_once() {
    let world = World::new(&rollout("checkout", "50", ""));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let path = world.path().join("cutover.toml");
    let text = fs::read_to_string(&path).unwrap();
    for (key, text) in [
        (
            "[listen] http",
            text.replacen(
                "http = [\"127.0.0.1:0\"]",
                &format!("http = [\"{address}\"]"),
                1,
            ),
        ),
        (
            "[admin] address",
            text.replacen(
                "address = \"127.0.0.1:0\"",
                &format!("address = \"{address}\""),
                1,
            ),
        ),
    ] {
        fs::write(&path, text).unwrap();
        let output = command(world.path()).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(
            stderr.contains(&format!("cannot listen on {address} ({key})"))
                && stderr.contains("ss -ltnp"),
            "{stderr}"
        );
    }
}

#[test]
fn two_processes_do_not_share_a_state_directory() {
    let world = World::new(&rollout("checkout", "50", ""));
    let process = Process::start(world.path());
    let output = command(world.path()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("another cutover process is using it")
            && stderr.contains("[state] directory"),
        "{stderr}"
    );
    process.kill();
    Process::start(world.path()).kill();
}

#[test]
fn sigterm_finishes_requests_in_flight_and_ends_an_idle_process_at_once() {
    let world = World::new(&rollout("checkout", "100", ""));
    let mut process = Process::start(world.path());
    let mut idle = Client::connect(process.http);
    assert_eq!(
        idle.ask("GET", "/", &[("x-user-id", "u")], b"")
            .unwrap()
            .status(),
        200
    );
    until("that request to be over", || {
        (process.rollout()["new"]["requests"] == 1 && process.rollout()["new"]["in_flight"] == 0)
            .then_some(())
    });
    // A request with an incomplete body is in flight.
    let mut busy = Client::connect(process.http);
    busy.send(b"POST / HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\ncontent-length: 10\r\n\r\n12345");
    until("the request in flight", || {
        (process.rollout()["new"]["in_flight"] == 1).then_some(())
    });
    process.signal("-TERM");
    log_line(
        &mut process.log,
        "stopping: no longer ready; requests in flight may finish",
    );
    until("readiness to fall", || {
        (process.admin_ask("GET", "/readyz", &Value::Null).status() == 503).then_some(())
    });
    until("the port to close", || {
        std::net::TcpStream::connect(process.http)
            .is_err()
            .then_some(())
    });
    assert!(
        process.child.try_wait().unwrap().is_none(),
        "a request is still in flight"
    );
    busy.send(b"67890");
    let answer = busy
        .answer(false)
        .expect("the request in flight is finished");
    assert_eq!((answer.status(), answer.text()), (200, "new 10".to_owned()));
    let status = until("the end", || process.child.try_wait().unwrap());
    assert!(status.success(), "{status}");
}

#[test]
fn a_second_sigterm_ends_the_process_with_requests_in_flight() {
    let world = World::new(&rollout("checkout", "100", ""));
    let mut process = Process::start(world.path());
    let mut busy = Client::connect(process.http);
    busy.send(b"POST / HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\ncontent-length: 10\r\n\r\n12345");
    until("the request in flight", || {
        (process.rollout()["new"]["in_flight"] == 1).then_some(())
    });
    process.signal("-TERM");
    log_line(
        &mut process.log,
        "stopping: no longer ready; requests in flight may finish",
    );
    process.signal("-TERM");
    log_line(&mut process.log, "stopped with connections still open");
    until("the end", || process.child.try_wait().unwrap());
}

#[test]
fn a_start_with_a_broken_file_uses_the_last_good_one_until_it_is_fixed() {
    let world = World::new(&rollout("checkout", "33", ""));
    Process::start(world.path()).kill();
    let good = fs::read_to_string(world.path().join("cutover.toml")).unwrap();
    fs::write(
        world.path().join("cutover.toml"),
        good.replace("percent", "percnt"),
    )
    .unwrap();
    let process = Process::start(world.path());
    assert_eq!(process.rollout()["effective_percent"], 33.0);
    let status = process
        .admin_ask("GET", "/api/v1/rollouts", &Value::Null)
        .json();
    assert_eq!(status["config"]["last_reload_successful"], false);
    assert!(
        status["config"]["problems"]
            .as_str()
            .unwrap()
            .contains("percnt"),
        "{status}"
    );
    fs::write(
        world.path().join("cutover.toml"),
        good.replace("percent = 33", "percent = 34"),
    )
    .unwrap();
    until("the mended file", || {
        (process.rollout()["effective_percent"] == 34.0).then_some(())
    });
    process.kill();
}

#[test]
fn a_first_start_with_a_broken_file_exits_with_2_and_shows_all_problems() {
    let world = World::new(&rollout("checkout", "101", "percnt = 5\n"));
    let output = command(world.path()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(
        stderr.contains("101") && stderr.contains("percnt"),
        "both problems at once: {stderr}"
    );
}

#[test]
fn a_damaged_or_missing_state_starts_at_zero_with_an_error() {
    let world = World::new(&rollout("checkout", "50", ""));
    Process::start(world.path()).kill();
    let status = world.path().join("state/status.json");
    let good = fs::read_to_string(&status).unwrap();
    for damaged in [
        Some(String::new()),
        Some("{}".to_owned()),
        Some(good.replace("holding", "rolled_back")),
        None,
    ] {
        match &damaged {
            Some(text) => fs::write(&status, text).unwrap(),
            None => fs::remove_file(&status).unwrap(),
        }
        let process = Process::start(world.path());
        let rollout = process.rollout();
        assert_eq!(
            (
                rollout["effective_percent"].as_f64(),
                rollout["latch"]["cause"].as_str()
            ),
            (Some(0.0), Some("state")),
            "{damaged:?}"
        );
        assert!(
            rollout["sentence"]
                .as_str()
                .unwrap()
                .contains("the saved state could not be read"),
            "{rollout}"
        );
        let rearmed = process.admin_ask(
            "POST",
            "/api/v1/rollouts/checkout/rearm",
            &json!({"reason": "looked at it"}),
        );
        assert_eq!(rearmed.status(), 200, "{}", rearmed.text());
        assert_eq!(process.rollout()["effective_percent"], 50.0);
        process.kill();
    }
}

#[test]
fn an_unwritable_state_prevents_no_rollback_and_is_reported() {
    let world = World::new(&rollout("checkout", "50", ""));
    let process = Process::start(world.path());
    // A directory in the place of the temporary file makes the write fail for root as well.
    let blocker = world
        .path()
        .join(format!("state/.status.json.{}.tmp", process.child.id()));
    fs::create_dir(&blocker).unwrap();
    let answer = process.admin_ask(
        "POST",
        "/api/v1/rollouts/checkout/rollback",
        &json!({"reason": "it looks bad"}),
    );
    assert_eq!(
        (answer.status(), &answer.json()["durable"]),
        (200, &json!(false)),
        "{}",
        answer.text()
    );
    assert_eq!(process.rollout()["effective_percent"], 0.0);
    assert!(
        process
            .admin_ask("GET", "/metrics", &Value::Null)
            .text()
            .contains("\ncutover_latch_durable 0\n")
    );
    // A re-arm needs the disk: lifting the latch waits until it is durable.
    let rearmed = process.admin_ask(
        "POST",
        "/api/v1/rollouts/checkout/rearm",
        &json!({"reason": "it was nothing"}),
    );
    assert_eq!(rearmed.json()["durable"], false, "{}", rearmed.text());
    let answer = Client::connect(process.http)
        .ask("GET", "/", &[("x-user-id", "user-1")], b"")
        .unwrap();
    assert_eq!(
        answer.side(),
        "legacy",
        "what is not durable is not in force"
    );
    fs::remove_dir(&blocker).unwrap();
    until("the state to be durable", || {
        process
            .admin_ask("GET", "/metrics", &Value::Null)
            .text()
            .contains("\ncutover_latch_durable 1\n")
            .then_some(())
    });
    let on_new = || {
        (0..20).any(|user| {
            Client::connect(process.http)
                .ask("GET", "/", &[("x-user-id", &format!("user-{user}"))], b"")
                .unwrap()
                .side()
                == "new"
        })
    };
    until("the held raise", || on_new().then_some(()));
    process.kill();
}

#[test]
fn every_line_of_the_log_is_json_and_requests_are_included() {
    let world = World::new(&rollout("checkout", "100", ""));
    let path = world.path().join("cutover.toml");
    let text = fs::read_to_string(&path)
        .unwrap()
        .replace("access = \"off\"", "access = \"all\"");
    let mut process = Process::start(world.path());
    // A change of which requests are logged is followed like every other key in the file.
    fs::write(&path, text).unwrap();
    assert_eq!(
        process
            .admin_ask("POST", "/api/v1/reload", &json!({}))
            .status(),
        200
    );
    Client::connect(process.http)
        .ask("GET", "/a?secret=1", &[("x-user-id", "ana")], b"")
        .unwrap();
    let line = loop {
        let mut line = String::new();
        process.log.read_line(&mut line).unwrap();
        let value: Value = serde_json::from_str(&line).unwrap();
        if value["event.dataset"] == "cutover.access" {
            break value;
        }
    };
    assert_eq!(
        (
            &line["url.path"],
            &line["http.response.status_code"],
            &line["cutover.backend"]
        ),
        (&json!("/a"), &json!(200), &json!("new"))
    );
    assert!(
        !line.to_string().contains("ana") && !line.to_string().contains("secret"),
        "{line}"
    );
    process.kill();
}

#[test]
fn a_log_that_was_moved_away_is_reopened_on_sigusr1() {
    let world = World::new(&rollout("checkout", "0", ""));
    let path = world.path().join("cutover.toml");
    fs::write(
        &path,
        fs::read_to_string(&path)
            .unwrap()
            .replace("access = \"off\"", "file = \"access.log\""),
    )
    .unwrap();
    let process = Process::start(world.path());
    let (log, moved) = (
        world.path().join("access.log"),
        world.path().join("access.log.1"),
    );
    let ask = |target: &str| {
        Client::connect(process.http)
            .ask("GET", target, &[("x-user-id", "u")], b"")
            .unwrap()
            .status()
    };
    let has =
        |path: &Path, what: &str| fs::read_to_string(path).is_ok_and(|text| text.contains(what));
    assert_eq!(ask("/before"), 200);
    until("the first line", || has(&log, "/before").then_some(()));
    fs::rename(&log, &moved).unwrap();
    process.signal("-USR1");
    until("the new file", || log.exists().then_some(()));
    assert_eq!(ask("/after"), 200);
    until("the second line", || has(&log, "/after").then_some(()));
    assert!(!has(&moved, "/after"));
    process.kill();
}

#[test]
fn a_log_without_a_reader_delays_neither_requests_nor_a_rollback() {
    let world = World::new(&rollout("checkout", "50", QUICK_GUARD));
    let path = world.path().join("cutover.toml");
    let text = fs::read_to_string(&path)
        .unwrap()
        .replace("access = \"off\"", "access = \"all\"");
    fs::write(&path, text).unwrap();
    // After `start` the pipe has no reader, and it holds 64 KiB.
    let process = Process::start(world.path());
    let load = Load::start(process.http, 4);
    until("more lines than a pipe holds", || {
        (load.answered() > 3_000).then_some(())
    });
    world.new.behave(Behaviour::Answer(500));
    until("the drop", || {
        (process.rollout()["phase"] == "rolled_back").then_some(())
    });
    load.end();
    process.kill();
}

#[test]
fn a_file_saved_while_the_proxy_starts_is_followed() {
    let world = World::new(&rollout("checkout", "5", ""));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The lock is taken after the file has been read and before it is watched.
            until("the start to have read the file", || {
                world.path().join("state/lock").exists().then_some(())
            });
            world.write(&rollout("checkout", "7", ""));
        });
        let process = Process::start(world.path());
        until("the file saved meanwhile", || {
            (process.rollout()["desired_percent"] == 7.0).then_some(())
        });
        process.kill();
    });
}
