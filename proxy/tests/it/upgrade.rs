//! A new binary that takes over from the running one, and the communication with systemd.

use std::fs;
use std::io::BufReader;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Behaviour, Client, Message, PATIENCE, QUICK_GUARD, rollout, until};
use crate::process::{World, log_line};

const STARTED: &str = "upgrade: a new process was started and will take over";
const TOOK_OVER: &str =
    "upgrade: the new process has taken over; requests in flight may finish here";
const FAILED: &str = "upgrade failed: this process goes on as before";
const ENDED: &str = "this process has ended";
const ALONE: &str = "upgrade: the process before this one has ended";
const FOLLOWED: &str = "the latch of the new process also applies here";

/// Returns the binary under a separate name, so that another one can replace it.
fn program(directory: &Path) -> PathBuf {
    let path = directory.join("cutover");
    if !path.exists() {
        symlink(env!("CARGO_BIN_EXE_cutover"), &path).unwrap();
    }
    path
}

/// Replaces the binary with a script.
fn replace_program(directory: &Path, script: &str) {
    let path = directory.join("cutover");
    fs::remove_file(&path).unwrap();
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn arguments(command: &mut Command, directory: &Path) {
    command
        .args(["run", "--threads", "2", "--lead", "200ms", "-c"])
        .arg(directory.join("cutover.toml"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
}

/// Several processes one after the other, with one log.
struct Service {
    first: Child,
    pid: u32,
    all: Vec<u32>,
    http: SocketAddr,
    admin: SocketAddr,
    log: BufReader<ChildStdout>,
    /// A mark in the environment of all processes of the service.
    mark: String,
}

impl Service {
    fn start(directory: &Path) -> Self {
        let mut command = Command::new(program(directory));
        arguments(&mut command, directory);
        Self::of(command)
    }

    fn of(mut command: Command) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let mark = format!(
            "CUTOVER_TEST={}-{}.",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        let (name, value) = mark.split_once('=').unwrap();
        let mut first = command.env(name, value).spawn().unwrap();
        let pid = first.id();
        let mut log = BufReader::new(first.stdout.take().unwrap());
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
            first,
            pid,
            all: Vec::new(),
            http: address("http"),
            admin: address("admin"),
            log,
            mark,
        }
    }

    fn line(&mut self, message: &str) -> Value {
        log_line(&mut self.log, message)
    }

    /// Lets a new process take over; the old one may still serve.
    fn take_over(&mut self) {
        signal(self.pid, "-USR2");
        let pid = self.line(TOOK_OVER)["pid"].as_u64().unwrap();
        self.pid = u32::try_from(pid).unwrap();
        self.all.push(self.pid);
    }

    /// Lets a new process take over, and waits until the old one is gone.
    fn upgrade(&mut self) {
        self.take_over();
        self.line(ALONE);
    }

    fn connect(&self) -> Client {
        Client::connect(self.http)
    }

    fn ask(&self, method: &str, target: &str, body: &Value) -> Message {
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

    fn rollout(&self) -> Value {
        self.ask("GET", "/api/v1/rollouts", &Value::Null).json()["rollouts"][0].clone()
    }

    fn command(&self, verb: &str) {
        let answer = self.ask(
            "POST",
            &format!("/api/v1/rollouts/checkout/{verb}"),
            &json!({"reason": "a test"}),
        );
        assert_eq!(answer.status(), 200, "{}", answer.text());
        // If the disk is busy, the write may take longer than the answer waits for it.
        until("the latch to be durable", || {
            (self.ask("GET", "/api/v1/rollouts", &Value::Null).json()["latch_durable"] == true)
                .then_some(())
        });
    }

    fn is_chain_intact(&self) -> bool {
        self.ask("GET", "/api/v1/history", &Value::Null).json()["chain"]["intact"] == true
    }
}

/// A failed test leaves no process behind.
impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.first.kill();
        let _ = self.first.wait();
        for pid in &self.all {
            // The ID of a process that has ended may belong to another process now.
            let is_ours = fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environment| {
                String::from_utf8_lossy(&environment).contains(&self.mark)
            });
            if is_ours {
                signal(*pid, "-KILL");
            }
        }
    }
}

fn signal(pid: u32, signal: &str) {
    assert!(
        Command::new("kill")
            .args([signal, &pid.to_string()])
            .status()
            .unwrap()
            .success()
    );
}

fn is_gone(pid: u32) -> bool {
    // A process without a waiting parent is a zombie, if it exists at all.
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

fn side(client: &mut Client) -> (String, bool) {
    let answer = client
        .ask("GET", "/", &[("x-user-id", "ana")], b"")
        .expect("an answer");
    (
        answer.side().to_owned(),
        answer.header("connection") == Some("close"),
    )
}

/// Clients that reconnect when they are asked to, and clients with a connection for each request.
struct Clients {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    failed: Arc<Mutex<Vec<String>>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Clients {
    fn start(address: SocketAddr, kept: usize, short: usize) -> Self {
        let (stop, answered, failed): (Arc<AtomicBool>, Arc<AtomicUsize>, Arc<Mutex<Vec<String>>>) =
            Default::default();
        let threads = (0..kept + short)
            .map(|number| {
                let (stop, answered, failed) = (
                    Arc::clone(&stop),
                    Arc::clone(&answered),
                    Arc::clone(&failed),
                );
                std::thread::spawn(move || {
                    let mut client = Client::connect(address);
                    for request in 0.. {
                        if stop.load(Ordering::SeqCst) {
                            return;
                        }
                        let user = format!("user-{number}-{}", request % 100);
                        let method = if request % 2 == 0 { "GET" } else { "POST" };
                        let body: &[u8] = if method == "POST" { b"0123456789" } else { b"" };
                        let answer = client.ask(method, "/load", &[("x-user-id", &user)], body);
                        let is_last = number >= kept
                            || answer
                                .as_ref()
                                .is_none_or(|answer| answer.header("connection") == Some("close"));
                        match answer {
                            Some(answer) if answer.status() == 200 && answer.whole => {
                                answered.fetch_add(1, Ordering::SeqCst);
                            }
                            other => failed.lock().unwrap().push(format!(
                                "{user} {method}: {:?}",
                                other.map(|answer| answer.start)
                            )),
                        }
                        if is_last {
                            client = Client::connect(address);
                        }
                    }
                })
            })
            .collect();
        Self {
            stop,
            answered,
            failed,
            threads,
        }
    }

    fn more(&self, requests: usize) {
        let before = self.answered.load(Ordering::SeqCst);
        until("more requests", || {
            (self.answered.load(Ordering::SeqCst) > before + requests).then_some(())
        });
    }

    fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().unwrap();
        }
        Arc::try_unwrap(self.failed).unwrap().into_inner().unwrap()
    }
}

#[test]
fn upgrades_under_load_fail_and_cut_no_request() {
    let world = World::new(&rollout("checkout", "50", ""));
    let mut service = Service::start(world.path());
    let clients = Clients::start(service.http, 4, 2);
    let first = service.pid;
    for round in 0..5 {
        clients.more(200);
        let old = service.pid;
        service.upgrade();
        if old != first {
            until("the old process to be gone", || is_gone(old).then_some(()));
        }
        assert!(service.is_chain_intact(), "round {round}");
    }
    clients.more(200);
    let failed = clients.end();
    assert_eq!(failed, Vec::<String>::new());
    let history = service
        .ask("GET", "/api/v1/history?limit=100", &Value::Null)
        .json();
    let started = history["records"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|record| record["change"] == "started" && record["actor"] == "upgrade")
        .count();
    assert_eq!(started, 5, "{history}");
}

#[test]
fn a_rollback_in_the_new_process_holds_for_a_client_of_the_old_one() {
    let world = World::new(&rollout("checkout", "100", ""));
    let mut service = Service::start(world.path());
    let mut kept = service.connect();
    assert_eq!(side(&mut kept), ("new".to_owned(), false));
    service.take_over();
    service.command("rollback");
    service.line(FOLLOWED);
    assert_eq!(
        side(&mut kept),
        ("legacy".to_owned(), true),
        "the old process answers, and says that it was the last time"
    );
    service.line(ENDED);
    assert_eq!(side(&mut service.connect()).0, "legacy");
}

#[test]
fn a_latch_holds_over_an_upgrade_and_both_processes_obey_a_rearm() {
    let world = World::new(&rollout("checkout", "100", ""));
    let mut service = Service::start(world.path());
    service.command("rollback");
    let (mut first, mut second) = (service.connect(), service.connect());
    assert_eq!(
        (side(&mut first).0, side(&mut second).0),
        ("legacy".to_owned(), "legacy".to_owned())
    );
    service.take_over();
    assert_eq!(service.rollout()["phase"], "rolled_back");
    assert_eq!(side(&mut service.connect()).0, "legacy");
    assert_eq!(side(&mut first).0, "legacy");
    service.command("rearm");
    service.line(FOLLOWED);
    assert_eq!(side(&mut second), ("new".to_owned(), true));
    assert_eq!(side(&mut service.connect()).0, "new");
    service.line(ENDED);
}

#[test]
fn failures_in_the_last_requests_of_the_old_process_roll_back_the_new() {
    let world = World::new(&rollout("checkout", "100", QUICK_GUARD));
    let mut service = Service::start(world.path());
    let mut kept: Vec<Client> = (0..60).map(|_| service.connect()).collect();
    assert!(kept.iter_mut().all(|client| side(client).0 == "new"));
    service.take_over();
    world.new.behave(Behaviour::Answer(500));
    for client in &mut kept {
        side(client);
    }
    let latched = until("the rollback", || {
        Some(service.rollout()).filter(|rollout| rollout["phase"] == "rolled_back")
    });
    assert_eq!(latched["latch"]["cause"], "errors_max", "{latched}");
    until("the latch on disk", || {
        fs::read_to_string(world.path().join("state/status.json"))
            .is_ok_and(|text| text.contains("rolled_back"))
            .then_some(())
    });
    assert!(service.is_chain_intact());
    service.line(ENDED);
}

#[test]
fn a_rollback_of_the_new_process_is_durable_in_it_alone() {
    let world = World::new(&rollout("checkout", "100", ""));
    let mut service = Service::start(world.path());
    service.take_over();
    service.command("rollback");
    service.line(ALONE);
    service.upgrade();
    assert_eq!(service.rollout()["latch"]["cause"], "manual");
    service.command("rearm");
    service.upgrade();
    assert_eq!(service.rollout()["effective_percent"], 100.0);
    assert!(service.is_chain_intact());
}

#[test]
fn a_new_process_that_cannot_start_leaves_the_old_one_as_owner() {
    let world = World::new(&rollout("checkout", "50", ""));
    let mut service = Service::start(world.path());
    let path = world.path().join("cutover.toml");
    let good = fs::read_to_string(&path).unwrap();

    // It fails before anything is handed over ...
    fs::write(&path, good.replace("percent", "percnt")).unwrap();
    fs::remove_file(world.path().join("state/last-good.toml")).unwrap();
    signal(service.pid, "-USR2");
    let why = service.line(FAILED);
    assert!(why["why"].as_str().unwrap().contains("percnt"), "{why}");

    // ... or after everything has been handed over, with lines in the journal.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    fs::write(
        &path,
        good.replacen(
            "http = [\"127.0.0.1:0\"]",
            &format!("http = [\"127.0.0.1:0\", \"{address}\"]"),
            1,
        ),
    )
    .unwrap();
    signal(service.pid, "-USR2");
    let why = service.line(FAILED);
    assert!(
        why["why"]
            .as_str()
            .unwrap()
            .contains(&format!("cannot listen on {address}")),
        "{why}"
    );

    assert_eq!(
        service
            .connect()
            .ask("GET", "/", &[("x-user-id", "ana")], b"")
            .unwrap()
            .status(),
        200
    );
    service.command("rollback");
    assert!(service.is_chain_intact());
    fs::write(&path, good.replace("percent = 50", "percent = 51")).unwrap();
    until("the file to be followed again", || {
        (service.rollout()["desired_percent"] == 51.0).then_some(())
    });
    service.upgrade();
    assert_eq!(
        (
            &service.rollout()["phase"],
            &service.rollout()["desired_percent"]
        ),
        (&json!("rolled_back"), &json!(51.0))
    );
    assert!(service.is_chain_intact());
}

#[test]
fn kill_9_before_ready_changes_nothing_and_upgrades_exclude_each_other() {
    let world = World::new(&rollout("checkout", "50", ""));
    let mut service = Service::start(world.path());
    replace_program(world.path(), "#!/bin/sh\nexec sleep 600\n");
    signal(service.pid, "-USR2");
    let silent = u32::try_from(service.line(STARTED)["pid"].as_u64().unwrap()).unwrap();
    service.all.push(silent);
    signal(service.pid, "-USR2");
    service.line("upgrade refused: one is under way");
    signal(silent, "-KILL");
    let why = service.line(FAILED);
    assert!(why["why"].as_str().unwrap().contains("signal: 9"), "{why}");
    service.command("rollback");
    service.command("rearm");

    // A stop during an upgrade stops, and leaves nothing behind.
    signal(service.pid, "-USR2");
    let silent = u32::try_from(service.line(STARTED)["pid"].as_u64().unwrap()).unwrap();
    service.all.push(silent);
    signal(service.pid, "-TERM");
    service.line(ENDED);
    until("the end", || service.first.try_wait().unwrap());
    until("the end of the new process", || {
        is_gone(silent).then_some(())
    });
}

#[test]
fn a_replaced_binary_is_the_one_that_takes_over() {
    let world = World::new(&rollout("checkout", "50", ""));
    let mut service = Service::start(world.path());
    let mark = world.path().join("mark");
    replace_program(
        world.path(),
        &format!(
            "#!/bin/sh\ntouch {}\nexec {} \"$@\"\n",
            mark.display(),
            env!("CARGO_BIN_EXE_cutover")
        ),
    );
    service.upgrade();
    assert!(mark.exists());
    assert_eq!(service.rollout()["effective_percent"], 50.0);
}

#[test]
fn a_process_does_not_take_over_when_started_by_a_person() {
    let world = World::new(&rollout("checkout", "50", ""));
    let mut command = Command::new(program(world.path()));
    arguments(&mut command, world.path());
    let output = command
        .arg("--take-over")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && stderr.contains("SIGUSR2"),
        "{stderr}"
    );
}

#[test]
fn evidence_is_handed_over_to_the_new_process() {
    let world = World::new(&rollout("checkout", "100", "failover = \"off\""));
    let mut service = Service::start(world.path());
    let evidence = |rollout: &Value| -> f64 {
        let rules = rollout["guard"]["rules"]
            .as_array()
            .unwrap_or_else(|| panic!("{rollout}"))
            .clone();
        rules
            .iter()
            .find(|rule| rule["rule"] == "errors_max")
            .unwrap_or_else(|| panic!("{rules:?}"))["evidence_log10"]
            .as_f64()
            .unwrap()
    };
    let mut client = service.connect();
    for user in 0..4 {
        let target = if user < 2 { "/bad" } else { "/" };
        client
            .ask(
                "GET",
                target,
                &[("x-user-id", &format!("user-{user}"))],
                b"",
            )
            .unwrap();
    }
    drop(client);
    // Ticks may fall between the four.
    let all = until("all four to be weighed", || {
        Some(service.rollout()).filter(|rollout| rollout["new"]["requests"] == 4)
    });
    let before = evidence(&all);
    assert!(before > 1.0, "{all}");
    service.upgrade();
    let after = evidence(&service.rollout());
    assert!((after - before).abs() < 0.2, "{before} -> {after}");
    assert_eq!(service.rollout()["phase"], "holding");
}

/// Starts the binary as systemd does, with this socket as file descriptor 3 and its own process ID
/// in the environment.
fn activated(directory: &Path, listener: &TcpListener) -> Command {
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\" 3<&0 0</dev/null",
        ])
        .arg(program(directory));
    arguments(&mut command, directory);
    command.stdin(Stdio::from(OwnedFd::from(listener.try_clone().unwrap())));
    command
}

#[test]
fn systemd_sockets_are_used_and_passed_on() {
    let world = World::new(&rollout("checkout", "100", ""));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let path = world.path().join("cutover.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(
        &path,
        text.replacen(
            "http = [\"127.0.0.1:0\"]",
            &format!("http = [\"{address}\"]"),
            1,
        ),
    )
    .unwrap();
    let mut service = Service::of(activated(world.path(), &listener));
    drop(listener);
    assert_eq!(service.http, address);
    assert_eq!(side(&mut service.connect()).0, "new");
    service.upgrade();
    assert_eq!(side(&mut service.connect()).0, "new");
    signal(service.pid, "-TERM");
    service.line(ENDED);
    until("the port to close", || {
        std::net::TcpStream::connect(address).is_err().then_some(())
    });
}

#[test]
fn a_systemd_socket_that_the_file_does_not_use_is_named() {
    let world = World::new(&rollout("checkout", "100", ""));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let output = activated(world.path(), &listener).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains(&address.to_string()) && stderr.contains("ListenStream"),
        "{stderr}"
    );
}

#[test]
fn systemd_is_notified_of_every_step() {
    let world = World::new(&rollout("checkout", "100", ""));
    let path = world.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let (tell, told) = mpsc::channel();
    // The socket is read all the time, as systemd does. A process blocks while a dozen of its
    // messages are unread, and the test waits for the log in the meantime.
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok(length) = socket.recv(&mut buffer)
            && tell
                .send(String::from_utf8_lossy(&buffer[..length]).into_owned())
                .is_ok()
        {}
    });
    let deadline = Instant::now() + PATIENCE * 3;
    let word = |wanted: &str| -> String {
        let left = deadline.saturating_duration_since(Instant::now());
        told.recv_timeout(left)
            .unwrap_or_else(|error| panic!("waited for {wanted}: {error}"))
    };
    let next = |wanted: &str| -> String {
        loop {
            let text = word(wanted);
            if text.starts_with(wanted) {
                return text;
            }
            assert!(
                text.starts_with("WATCHDOG=1"),
                "expected {wanted}, found {text}"
            );
        }
    };
    let mut command = Command::new(program(world.path()));
    arguments(&mut command, world.path());
    command.env("NOTIFY_SOCKET", &path).env(
        "WATCHDOG_USEC",
        Duration::from_millis(300).as_micros().to_string(),
    );
    let mut service = Service::of(command);
    next("READY=1");
    next("WATCHDOG=1");
    signal(service.pid, "-HUP");
    assert!(next("RELOADING=1").contains("MONOTONIC_USEC="));
    next("READY=1");
    service.take_over();
    // The messages are from two processes, so they may be in either order.
    let mut both: Vec<String> = Vec::new();
    while both.len() < 2 {
        let text = word("READY=1 and MAINPID=");
        if !text.starts_with("WATCHDOG=1") {
            both.push(text.trim().to_owned());
        }
    }
    both.sort();
    assert_eq!(
        both,
        [format!("MAINPID={}", service.pid), "READY=1".to_owned()]
    );
    service.line(ENDED);
    signal(service.pid, "-TERM");
    next("STOPPING=1");
    service.line(ENDED);
}
