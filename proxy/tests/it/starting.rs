//! Signals during a start, which a long list makes long, and during a drain. The tests also cover
//! what the service manager shows.

use std::fs;
use std::io::BufReader;
use std::process::{Child, Command, Stdio};

use crate::harness::{Client, rollout, until};
use crate::process::{Process, World, command, log_line};

/// Returns a world whose start takes a while, because of a list of some megabytes.
fn long_start() -> World {
    let world = World::new(&rollout(
        "checkout",
        "5",
        "always_new = [\"file:beta.txt\"]",
    ));
    let users: String = (0..250_000)
        .map(|user| format!("a-user-with-a-long-name-{user:08}\n"))
        .collect();
    fs::write(world.path().join("beta.txt"), users).unwrap();
    let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    fs::File::options()
        .write(true)
        .open(world.path().join("beta.txt"))
        .unwrap()
        .set_modified(long_ago)
        .unwrap();
    world
}

fn send(child: &Child, signal: &str) {
    assert!(
        Command::new("kill")
            .args([signal, &child.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
}

/// Whether a process handles these signals, by the mask of caught signals in `/proc`.
fn catches(pid: u64, signals: &[u32]) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigCgt:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or_default();
    signals.iter().all(|signal| mask & (1 << (signal - 1)) != 0)
}

const HUP: u32 = 1;
const INT: u32 = 2;
const USR1: u32 = 10;
const USR2: u32 = 12;
const TERM: u32 = 15;

/// Returns how many bytes a process has read.
fn has_read(child: &Child) -> u64 {
    let io = fs::read_to_string(format!("/proc/{}/io", child.id())).unwrap_or_default();
    io.lines()
        .find_map(|line| line.strip_prefix("rchar: "))
        .and_then(|bytes| bytes.parse().ok())
        .unwrap_or_default()
}

/// Starts a process that has read the list for the first time, and has to parse it.
fn begun(world: &World) -> Child {
    let child = command(world.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let list = fs::metadata(world.path().join("beta.txt")).unwrap().len();
    until("the list to be read", || {
        (has_read(&child) >= list).then_some(())
    });
    assert!(
        catches(u64::from(child.id()), &[HUP, INT, USR1, USR2, TERM]),
        "the handlers stand before the first file is read"
    );
    child
}

/// A process that another one has started. It is ended whether the test fails or passes.
struct Successor(u64);

impl Drop for Successor {
    fn drop(&mut self) {
        let _ = Command::new("kill")
            .args(["-KILL", &self.0.to_string()])
            .status();
    }
}

#[test]
fn a_signal_during_the_start_is_handled_after_it() {
    let world = long_start();
    for signal in ["-HUP", "-USR1", "-USR2"] {
        let mut child = begun(&world);
        send(&child, signal);
        let mut log = BufReader::new(child.stdout.take().unwrap());
        let ready = log_line(&mut log, "cutover is ready");
        if signal == "-HUP" {
            log_line(&mut log, "the file is in force");
        }
        if signal == "-USR2" {
            let _heir = Successor(
                log_line(
                    &mut log,
                    "upgrade: the new process has taken over; requests in flight may finish here",
                )["pid"]
                    .as_u64()
                    .unwrap(),
            );
            let status = child.wait().unwrap();
            assert!(status.success(), "{status}");
            continue;
        }
        let admin = ready["admin"]
            .as_str()
            .unwrap()
            .strip_prefix("http://")
            .unwrap()
            .parse()
            .unwrap();
        let answer = Client::connect(admin)
            .ask("GET", "/api/v1/rollouts", &[("host", "localhost")], b"")
            .unwrap()
            .json();
        assert_eq!(answer["rollouts"][0]["desired_percent"], 5.0, "{signal}");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn a_stop_of_the_new_process_during_its_start_leaves_the_old_one() {
    let world = long_start();
    let mut process = Process::start(world.path());
    for signal in ["-TERM", "-INT"] {
        process.signal("-USR2");
        let pid = log_line(
            &mut process.log,
            "upgrade: a new process was started and will take over",
        )["pid"]
            .as_u64()
            .unwrap();
        until("the handlers of the new process", || {
            catches(pid, &[HUP, INT, USR1, USR2, TERM]).then_some(())
        });
        for signal in ["-HUP", "-USR1", signal] {
            assert!(
                Command::new("kill")
                    .args([signal, &pid.to_string()])
                    .status()
                    .unwrap()
                    .success()
            );
        }
        let why = log_line(
            &mut process.log,
            "upgrade failed: this process goes on as before",
        )["why"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(why.contains("exit status: 0"), "{signal}: {why}");
        assert_eq!(process.rollout()["desired_percent"], 5.0);
    }
    process.kill();
}

#[test]
fn a_stop_during_the_start_ends_it_cleanly() {
    let world = long_start();
    for signal in ["-TERM", "-INT"] {
        // On a busy machine the start may be complete before the signal is sent.
        let stopped = (0..10).any(|_| {
            let child = begun(&world);
            send(&child, signal);
            let output = child.wait_with_output().unwrap();
            let (log, words) = (
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr),
            );
            assert!(
                output.status.success(),
                "{signal}: {} {words}",
                output.status
            );
            let in_time = words.contains("stopped during the start");
            assert!(
                in_time != log.contains("cutover is ready"),
                "{signal}: {words} {log}"
            );
            in_time
        });
        assert!(stopped, "{signal}");
    }
}

#[test]
fn a_refused_reload_is_shown_in_the_status_of_the_service() {
    let world = World::new(&rollout("checkout", "5", ""));
    let (file, path) = (
        world.path().join("cutover.toml"),
        world.path().join("notify"),
    );
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket
        .set_read_timeout(Some(crate::harness::PATIENCE))
        .unwrap();
    let next = || {
        let mut buffer = [0; 4096];
        let length = socket
            .recv(&mut buffer)
            .expect("a word to the service manager");
        String::from_utf8_lossy(&buffer[..length]).trim().to_owned()
    };
    let start = || {
        Process::of({
            let mut command = command(world.path());
            command.env("NOTIFY_SOCKET", &path);
            command
        })
    };
    let good = fs::read_to_string(&file).unwrap();
    let process = start();
    assert_eq!(next(), "READY=1");
    fs::write(&file, good.replace("percent = 5", "percent = 105")).unwrap();
    let told = next();
    let (what, place) = (
        "STATUS=the last good file is in force; the file cannot be used: error: ",
        "cutover.toml:",
    );
    assert!(
        told.starts_with(what)
            && told.contains("105")
            && told.contains(place)
            && told.lines().count() == 1,
        "{told}"
    );
    fs::write(&file, good.replace("percent = 5", "percent = 6")).unwrap();
    assert_eq!(next(), "STATUS=the file is in force");
    // A good file after a good one causes no report.
    fs::write(&file, good.replace("percent = 5", "percent = 7")).unwrap();
    until("the edit", || {
        (process.rollout()["desired_percent"] == 7.0).then_some(())
    });
    fs::write(&file, good.replace("percent = 5", "percnt = 5")).unwrap();
    assert!(next().starts_with(what));
    process.kill();
    let process = start();
    assert!(next().starts_with(what), "a start with the last good file");
    process.kill();
}

#[test]
fn a_signal_during_the_drain_neither_ends_it_nor_is_lost() {
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
    process.signal("-USR1");
    process.signal("-HUP");
    log_line(&mut process.log, "reload refused: this process is ending");
    process.signal("-USR2");
    log_line(&mut process.log, "upgrade refused: this process is ending");
    assert!(
        process.child.try_wait().unwrap().is_none(),
        "a request is in flight"
    );
    busy.send(b"67890");
    assert_eq!(busy.answer(false).map(|answer| answer.status()), Some(200));
    drop(busy);
    let status = until("the end", || process.child.try_wait().unwrap());
    assert!(status.success(), "{status}");
}

#[test]
fn a_signal_to_the_old_process_after_an_upgrade_ends_neither() {
    let world = World::new(&rollout("checkout", "100", ""));
    let mut process = Process::start(world.path());
    let mut busy = Client::connect(process.http);
    busy.send(b"POST / HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\ncontent-length: 10\r\n\r\n12345");
    until("the request in flight", || {
        (process.rollout()["new"]["in_flight"] == 1).then_some(())
    });
    process.signal("-USR2");
    let _heir = Successor(
        log_line(
            &mut process.log,
            "upgrade: the new process has taken over; requests in flight may finish here",
        )["pid"]
            .as_u64()
            .unwrap(),
    );
    for (signal, said) in [
        ("-HUP", "reload refused: this process is ending"),
        ("-USR2", "upgrade refused: this process is ending"),
    ] {
        process.signal(signal);
        log_line(&mut process.log, said);
    }
    process.signal("-USR1");
    busy.send(b"67890");
    let answer = busy.answer(false).map(|answer| answer.status());
    // An idle connection may stay for the whole grace.
    drop(busy);
    let ended = until("the end of the old process", || {
        process.child.try_wait().unwrap()
    });
    let rollout = Client::connect(process.admin)
        .ask("GET", "/api/v1/rollouts", &[("host", "localhost")], b"")
        .map(|answer| answer.status());
    assert_eq!(
        (answer, ended.success(), rollout),
        (Some(200), true, Some(200))
    );
}
