//! A rollback must lead to something better. These tests cover a legacy that does not answer,
//! before a rollback and after it.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cli::{cutover, said};
use crate::harness::{Behaviour, Client, Proxy, rollout, until};

/// A port that has no listener until it is opened, and that no other test gets in the meantime.
struct Later {
    _held: socket2::Socket,
    address: SocketAddr,
}

impl Later {
    fn new() -> Self {
        let held = bound(([127, 0, 0, 1], 0).into());
        let address = held.local_addr().unwrap().as_socket().unwrap();
        Self {
            _held: held,
            address,
        }
    }

    /// Answers every request successfully from now on.
    fn open(&self) {
        let listener = bound(self.address);
        listener.listen(64).unwrap();
        let listener = TcpListener::from(listener);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                    while let Some(Ok(line)) = lines.next() {
                        if line.is_empty() && (&stream).write_all(b"HTTP/1.1 200 OK\r\nx-served-by: later\r\ncontent-length: 2\r\n\r\nok").is_err() {
                            return;
                        }
                    }
                });
            }
        });
    }

    fn table(&self) -> String {
        format!("[backend.legacy]\nservers = [\"{}\"]\n", self.address)
    }
}

fn bound(address: SocketAddr) -> socket2::Socket {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket
}

/// Sends requests of many users until the condition holds.
fn ask_until(proxy: &Proxy, what: &str, mut look: impl FnMut() -> bool) {
    let mut client = proxy.client();
    let mut user = 0;
    until(what, || {
        for _ in 0..10 {
            user += 1;
            if client
                .ask("GET", "/", &[("x-user-id", &format!("u{user}"))], b"")
                .is_none()
            {
                client = proxy.client();
            }
        }
        look().then_some(())
    });
}

fn history(proxy: &Proxy) -> Vec<String> {
    let history = proxy.admin_ask("GET", "/api/v1/history", &[], b"").json();
    history["records"]
        .as_array()
        .unwrap()
        .iter()
        .rev()
        .map(|record| record["change"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_dead_new_moves_no_users_until_a_dead_legacy_is_back() {
    let legacy = Later::new();
    let proxy = Proxy::start_with(
        &legacy.table(),
        &rollout("checkout", "100", "failover = \"off\""),
    );
    ask_until(&proxy, "healthy traffic", || proxy.new.requests() > 300);
    proxy.new.behave(Behaviour::Answer(500));
    let begun = Instant::now();
    ask_until(&proxy, "people to be told", || {
        proxy.rollout()["no_refuge"] == true
    });
    // The time consists of the evidence, two probes and a tick. The additional delay of a busy
    // machine is not caused by the proxy.
    eprintln!("told after {:?}", begun.elapsed());
    let standing = proxy.rollout();
    assert_eq!(
        (
            standing["phase"].as_str(),
            standing["effective_percent"].as_f64()
        ),
        (Some("holding"), Some(100.0))
    );
    assert!(
        standing["sentence"]
            .as_str()
            .unwrap()
            .contains("new is worse, but legacy does not answer, so no user was moved"),
        "{standing}"
    );
    assert_eq!(
        proxy.metric("cutover_guard_no_refuge{rollout=\"checkout\"}"),
        Some(1.0)
    );
    legacy.open();
    ask_until(&proxy, "the drop", || {
        proxy.rollout()["phase"] == "rolled_back"
    });
    assert_eq!(proxy.side_of("anybody"), "later");
    assert_eq!(history(&proxy), ["started", "no_refuge", "rollback"]);
}

#[test]
fn a_manual_rollback_to_a_dead_legacy_needs_confirmation() {
    let legacy = Later::new();
    let proxy = Proxy::start_with(&legacy.table(), &rollout("checkout", "100", ""));
    let admin = format!("http://{}", proxy.admin);
    let run = |arguments: &[&str]| {
        said(&cutover(
            &[
                &["rollback", "checkout", "--reason", "odd"],
                arguments,
                &["--admin", &admin],
            ]
            .concat(),
        ))
    };
    let refused = proxy.post(
        "/api/v1/rollouts/checkout/rollback",
        &json!({"reason": "odd"}),
    );
    assert_eq!(
        (refused.status(), refused.json()["error"]["code"].as_str()),
        (409, Some("legacy_down")),
        "{}",
        refused.text()
    );
    let (code, _, stderr) = run(&[]);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(
        stderr.contains("legacy of `checkout` does not answer") && stderr.contains("--force"),
        "{stderr}"
    );
    assert_eq!(proxy.rollout()["phase"], "holding");
    let (code, _, stderr) = run(&["--force"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(proxy.rollout()["phase"], "rolled_back");
    // An operator has decided this, so no users are sent to new without the operator's knowledge.
    assert_eq!(proxy.get("/", &[("x-user-id", "u")]).status(), 502);
    assert_eq!(proxy.rollout()["spilled"], false);
    // If legacy answers, `force` is not needed.
    proxy.post(
        "/api/v1/rollouts/checkout/rearm",
        &json!({"reason": "again"}),
    );
    legacy.open();
    let done = proxy.post(
        "/api/v1/rollouts/checkout/rollback",
        &json!({"reason": "odd"}),
    );
    assert_eq!(done.status(), 200, "{}", done.text());
}

#[test]
fn after_a_rollback_users_are_on_new_while_legacy_fails_its_checks() {
    let tables = |proxy: &Proxy| {
        let check = "health = { path = \"/healthz\", interval = \"100ms\", unhealthy_after = 1, \
                     healthy_after = 1 }";
        format!(
            "[backend.legacy]\nservers = [\"{}\"]\n{check}\n[backend.new]\nservers = [\"{}\"]\n",
            proxy.legacy.address, proxy.new.address
        )
    };
    let rollout = rollout("checkout", "100", "failover = \"off\"");
    let proxy = Proxy::start(&rollout);
    std::fs::write(proxy.file(), proxy.text_with(&tables(&proxy), &rollout)).unwrap();
    proxy.reload();
    ask_until(&proxy, "healthy traffic", || proxy.new.requests() > 200);
    proxy.new.behave(Behaviour::Answer(500));
    ask_until(&proxy, "the drop", || {
        proxy.rollout()["phase"] == "rolled_back"
    });
    assert_eq!(proxy.side_of("anybody"), "legacy");
    proxy.new.behave(Behaviour::Answer(200));
    proxy.legacy.behave(Behaviour::Close);
    let side = |user: &str| {
        proxy
            .client()
            .ask("GET", "/", &[("x-user-id", user)], b"")
            .map(|answer| answer.side().to_owned())
    };
    until("users to be on new", || {
        (side("anybody").as_deref() == Some("new")).then_some(())
    });
    assert_eq!(proxy.rollout()["phase"], "rolled_back", "the latch stays");
    let head = proxy.new.last_head().to_ascii_lowercase();
    assert!(head.contains("x-cutover-reason: health\r\n"), "{head}");
    proxy.legacy.behave(Behaviour::Answer(200));
    until("users to be back on legacy", || {
        (side("anybody").as_deref() == Some("legacy")).then_some(())
    });
}

/// Starts a proxy whose guard has just rolled back, while new is well again.
fn rolled_back(guard: &str) -> Proxy {
    let more = format!("failover = \"off\"\n{guard}");
    let proxy = Proxy::start(&rollout("checkout", "50", &more));
    ask_until(&proxy, "healthy traffic", || proxy.new.requests() > 200);
    proxy.new.behave(Behaviour::Answer(500));
    ask_until(&proxy, "the drop", || {
        proxy.rollout()["phase"] == "rolled_back"
    });
    proxy.new.behave(Behaviour::Answer(200));
    proxy
}

#[test]
fn a_legacy_that_fails_after_a_rollback_is_reported_and_replaced() {
    let proxy = rolled_back("");
    // Legacy still accepts connections, so a probe calls it alive. Its users know better.
    proxy.legacy.behave(Behaviour::Answer(500));
    ask_until(&proxy, "the overload to be reported", || {
        history(&proxy).contains(&"legacy_overloaded".to_owned())
    });
    ask_until(&proxy, "users to be on new", || {
        proxy.rollout()["spilled"] == true
    });
    assert_eq!(proxy.rollout()["phase"], "rolled_back", "the latch stays");
    assert_eq!(proxy.side_of("anybody"), "new");
}

#[test]
fn a_legacy_that_hangs_after_a_rollback_is_replaced_though_it_accepts() {
    let proxy = rolled_back("[rollout.guard]\nhang = { older_than = \"1s\" }\n");
    assert_eq!(proxy.side_of("anybody"), "legacy");
    proxy.legacy.behave(Behaviour::Hang);
    // Clients that wait for half a second, twenty at a time, and then give up.
    let address = proxy.http;
    let mut waiting = std::collections::VecDeque::new();
    let mut user = 0;
    until("users to be on new", || {
        for _ in 0..2 {
            user += 1;
            let mut client = Client::connect(address);
            let head = format!("GET / HTTP/1.1\r\nhost: h\r\nx-user-id: u{user}\r\n\r\n");
            client.send(head.as_bytes());
            waiting.push_back((Instant::now(), client));
        }
        while waiting
            .front()
            .is_some_and(|(since, _)| since.elapsed() > Duration::from_millis(500))
        {
            waiting.pop_front();
        }
        (proxy.rollout()["spilled"] == true).then_some(())
    });
    assert_eq!(proxy.rollout()["phase"], "rolled_back", "the latch stays");
    assert_eq!(proxy.side_of("anybody"), "new");
}
