//! Requests that new cannot answer, and how they are handled: failover, missing files, servers that
//! are down.

use crate::harness::{Backend, Behaviour, Load, Proxy, rollout, until};

const NO_GUARD: &str = "[rollout.guard]\nmode = \"off\"\n";

fn savings(proxy: &Proxy) -> (u64, u64, u64) {
    let failovers = proxy.rollout()["failovers"].clone();
    let of = |name: &str| failovers[name].as_u64().unwrap();
    (of("saved"), of("failed"), of("denied"))
}

#[test]
fn a_safe_request_that_fails_on_new_is_answered_by_legacy() {
    let proxy = Proxy::start(&rollout("checkout", "100", NO_GUARD));
    for (behaviour, kind) in [
        (Behaviour::Answer(500), "status"),
        (Behaviour::Close, "reset"),
        (Behaviour::Hang, "timeout"),
        (Behaviour::Garbage, "protocol"),
    ] {
        proxy.new.behave(behaviour);
        let methods: &[&str] = if kind == "status" {
            &["GET", "HEAD", "OPTIONS"]
        } else {
            &["GET", "HEAD"]
        };
        for method in methods {
            let answer = proxy
                .client()
                .ask(method, "/", &[("x-user-id", "u")], b"")
                .unwrap();
            assert_eq!(
                (answer.status(), answer.side()),
                (200, "legacy"),
                "{method} {behaviour:?}"
            );
        }
        let head = proxy.legacy.last_head().to_ascii_lowercase();
        assert!(
            head.contains("x-cutover-backend: legacy\r\n")
                && head.contains("x-cutover-reason: failover\r\n"),
            "{head}"
        );
        let failures = format!(
            "cutover_failures_total{{rollout=\"checkout\",backend=\"new\",kind=\"{kind}\"}}"
        );
        until("the failures of new", || {
            (proxy.metric(&failures) == Some(methods.len() as f64)).then_some(())
        });
    }
    until("the savings to be counted", || {
        (savings(&proxy) == (9, 0, 0)).then_some(())
    });
}

#[test]
fn a_failure_on_both_sides_is_evidence_against_neither() {
    let proxy = Proxy::start(&rollout(
        "checkout",
        "100",
        "[rollout.guard]\ndry_run = true\n",
    ));
    proxy.new.behave(Behaviour::Answer(500));
    proxy.legacy.behave(Behaviour::Answer(503));
    assert_eq!(
        proxy.get("/", &[("x-user-id", "u")]).status(),
        503,
        "both failed, so the client sees it"
    );
    until("it to be counted", || {
        (savings(&proxy) == (0, 1, 0)).then_some(())
    });
    let numbers = |rollout: &serde_json::Value| {
        ["new", "legacy"].map(|side| {
            (
                rollout[side]["requests"].as_u64(),
                rollout[side]["failed"].as_u64(),
            )
        })
    };
    assert_eq!(numbers(&proxy.rollout()), [(Some(0), Some(0)); 2]);
    // If legacy answers, the failure counts against new, and is no evidence against legacy.
    proxy.legacy.behave(Behaviour::Answer(200));
    assert_eq!(proxy.get("/", &[("x-user-id", "u")]).status(), 200);
    until("it to be counted", || {
        (savings(&proxy) == (1, 1, 0)).then_some(())
    });
    until("the failure of new", || {
        (numbers(&proxy.rollout()) == [(Some(1), Some(1)), (Some(0), Some(0))]).then_some(())
    });
}

#[test]
fn a_request_that_may_have_had_effects_never_goes_to_the_other_side() {
    let proxy = Proxy::start(&rollout("checkout", "100", NO_GUARD));
    for (behaviour, status) in [
        (Behaviour::Answer(500), 500),
        (Behaviour::Close, 502),
        (Behaviour::Hang, 504),
    ] {
        proxy.new.behave(behaviour);
        for method in ["POST", "PUT", "DELETE", "PATCH"] {
            let answer = proxy
                .client()
                .ask(method, "/", &[("x-user-id", "u")], b"pay")
                .unwrap();
            assert_eq!(answer.status(), status, "{method} {behaviour:?}");
        }
    }
    assert_eq!((proxy.legacy.requests(), proxy.new.requests()), (0, 12));
}

#[test]
fn without_a_connection_every_request_fails_over_with_its_body() {
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    for (failover, method, status) in [
        ("safe", "POST", 200),
        ("connect", "POST", 200),
        ("connect", "GET", 200),
        ("off", "GET", 502),
    ] {
        let tables = format!("[backend.new]\nservers = [\"{free}\"]\n");
        let proxy = Proxy::start_with(
            &tables,
            &rollout(
                "checkout",
                "100",
                &format!("failover = \"{failover}\"\n{NO_GUARD}"),
            ),
        );
        let body = vec![b'b'; 100_000];
        let answer = proxy
            .client()
            .ask(method, "/", &[("x-user-id", "u")], &body)
            .unwrap();
        assert_eq!(answer.status(), status, "{failover} {method}");
        assert!(
            status != 200 || answer.text() == "legacy 100000",
            "{}",
            answer.text()
        );
    }
}

#[test]
fn failover_connect_does_not_repeat_a_request_a_backend_has_seen() {
    let proxy = Proxy::start(&rollout(
        "checkout",
        "100",
        &format!("failover = \"connect\"\n{NO_GUARD}"),
    ));
    proxy.new.behave(Behaviour::Close);
    assert_eq!(proxy.get("/", &[("x-user-id", "u")]).status(), 502);
    proxy.new.behave(Behaviour::Answer(500));
    assert_eq!(proxy.get("/", &[("x-user-id", "u")]).status(), 500);
    assert_eq!(proxy.legacy.requests(), 0);
}

#[test]
fn no_request_is_repeated_after_a_byte_of_the_answer() {
    let proxy = Proxy::start(&rollout("checkout", "100", NO_GUARD));
    proxy.new.behave(Behaviour::Truncate);
    let cut = proxy.get("/", &[("x-user-id", "u")]);
    assert_eq!(
        (cut.status(), cut.whole, proxy.legacy.requests()),
        (200, false, 0)
    );
}

#[test]
fn a_dead_backend_fails_over_at_most_a_fifth_of_its_requests() {
    let proxy = Proxy::start(&rollout("checkout", "100", NO_GUARD));
    let load = Load::start(proxy.http, 4);
    until("some healthy traffic", || {
        (load.answered() > 400).then_some(())
    });
    proxy.new.behave(Behaviour::Answer(500));
    until("failures to show", || {
        (savings(&proxy).2 > 200).then_some(())
    });
    load.end();
    let (saved, failed, denied) = savings(&proxy);
    let asked = proxy.new.requests() as u64;
    assert_eq!(failed, 0);
    assert!(
        saved >= 10 && saved <= asked / 5 + 10 && denied > 0,
        "{saved} of {asked} were saved, {denied} were not"
    );
    assert_eq!(proxy.legacy.requests() as u64, saved);
}

#[test]
fn a_file_missing_on_one_side_is_fetched_from_the_other() {
    let proxy = Proxy::start(&rollout(
        "checkout",
        "100",
        "fallback_on_404 = [\"/assets/\"]",
    ));
    proxy.new.behave(Behaviour::Answer(404));
    let found = proxy.get("/assets/app.3f2a.js", &[("x-user-id", "u")]);
    assert_eq!((found.status(), found.side()), (200, "legacy"));
    assert!(
        proxy
            .legacy
            .last_head()
            .to_ascii_lowercase()
            .contains("x-cutover-reason: fallback\r\n")
    );
    assert_eq!(proxy.get("/asset", &[("x-user-id", "u")]).status(), 404);
    assert_eq!(
        proxy
            .client()
            .ask("POST", "/assets/x", &[("x-user-id", "u")], b"x")
            .unwrap()
            .status(),
        404
    );
    proxy.legacy.behave(Behaviour::Answer(404));
    assert_eq!(
        proxy
            .get("/assets/nowhere.js", &[("x-user-id", "u")])
            .status(),
        404,
        "missing on both"
    );
    until("the others to be counted", || {
        (proxy.rollout()["new"]["client_errors"].as_u64() == Some(2)).then_some(())
    });
    assert_eq!(
        proxy.rollout()["legacy"]["requests"],
        0,
        "who was moved is no sample"
    );
}

#[test]
fn a_server_that_fails_its_checks_gets_no_requests_until_they_pass() {
    let (one, two) = (Backend::start("one"), Backend::start("two"));
    let tables = format!(
        "[backend.new]\nservers = [\"{}\", \"{}\"]\nhealth = {{ path = \"/healthz\", interval = \
         \"20ms\", unhealthy_after = 2, healthy_after = 2 }}\n",
        one.address, two.address
    );
    let proxy = Proxy::start_with(
        &tables,
        &rollout(
            "checkout",
            "100",
            "[rollout.guard]\nhealth = { down_for = \"1s\" }\n",
        ),
    );
    let healthy = || proxy.metric("cutover_backend_healthy_servers{backend=\"new\"}");
    let sides = || -> Vec<String> {
        (0..8)
            .map(|user| proxy.side_of(&format!("u{user}")))
            .collect()
    };
    until("both to be asked", || {
        (healthy() == Some(2.0)).then_some(())
    });
    assert!(sides().contains(&"one".to_owned()) && sides().contains(&"two".to_owned()));
    one.behave(Behaviour::Answer(503));
    until("the first to be out", || {
        (healthy() == Some(1.0)).then_some(())
    });
    assert!(sides().iter().all(|side| side == "two"));
    two.behave(Behaviour::Hang);
    until("both to be out", || (healthy() == Some(0.0)).then_some(()));
    assert_eq!(
        proxy.metric("cutover_backend_servers{backend=\"new\"}"),
        Some(2.0),
        "whatever becomes of them"
    );
    let spilled = proxy.get("/", &[("x-user-id", "u")]);
    assert_eq!(
        spilled.side(),
        "legacy",
        "without a server of new its users go to legacy"
    );
    assert!(
        proxy
            .legacy
            .last_head()
            .contains("x-cutover-reason: health\r\n"),
        "{}",
        proxy.legacy.last_head()
    );
    until("the rule of servers to roll back", || {
        (proxy.rollout()["latch"]["cause"] == "health").then_some(())
    });
    one.behave(Behaviour::Answer(204));
    until("the first to be back", || {
        (healthy() == Some(1.0)).then_some(())
    });
}

#[test]
fn a_server_without_answers_is_ejected_and_users_do_not_notice() {
    let good = Backend::start("good");
    let dead = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let tables = format!(
        "[backend.new]\nservers = [\"{dead}\", \"{}\"]\nconnect_timeout = \"200ms\"\n",
        good.address
    );
    let proxy = Proxy::start_with(&tables, &rollout("checkout", "100", ""));
    for user in 0..40 {
        let answer = proxy
            .client()
            .ask("POST", "/", &[("x-user-id", &format!("u{user}"))], b"x")
            .unwrap();
        assert_eq!((answer.status(), answer.side()), (200, "good"));
    }
    assert_eq!(
        proxy.metric("cutover_backend_healthy_servers{backend=\"new\"}"),
        Some(1.0)
    );
    until("the savings to be counted", || {
        (savings(&proxy) == (0, 0, 0)).then_some(())
    });
    assert_eq!(proxy.rollout()["new"]["failed"], 0);
}

#[test]
fn a_failed_connect_after_an_ended_kept_connection_is_counted() {
    // Two sockets have the port, so that no other test gets it when it has no listener.
    let bound = |address: std::net::SocketAddr| {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.bind(&address.into()).unwrap();
        socket
    };
    let listener = bound(([127, 0, 0, 1], 0).into());
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let held = bound(address);
    listener.listen(16).unwrap();
    let listener = std::net::TcpListener::from(listener);
    let (die, dies) = std::sync::mpsc::channel::<()>();
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            std::io::Read::read_exact(&mut stream, &mut byte).unwrap();
            head.push(byte[0]);
        }
        std::io::Write::write_all(
            &mut stream,
            b"HTTP/1.1 200 OK\r\nx-served-by: mortal\r\ncontent-length: 2\r\n\r\nok",
        )
        .unwrap();
        let _ = dies.recv();
        // First the listener closes, then the idle connection ends.
        drop(listener);
        drop(stream);
    });
    let proxy = Proxy::start_with(
        &format!("[backend.new]\nservers = [\"{address}\"]\n"),
        &rollout("checkout", "100", ""),
    );
    let connects = |result: &str| {
        proxy
            .metric(&format!(
                "cutover_upstream_connects_total{{backend=\"new\",result=\"{result}\"}}"
            ))
            .unwrap()
    };
    let mut client = proxy.client();
    assert_eq!(
        client
            .ask("GET", "/", &[("x-user-id", "u")], b"")
            .unwrap()
            .side(),
        "mortal"
    );
    assert_eq!((connects("new"), connects("failed")), (1.0, 0.0));
    drop(die);
    serving.join().unwrap();
    assert_eq!(
        client
            .ask("GET", "/", &[("x-user-id", "u")], b"")
            .unwrap()
            .side(),
        "legacy"
    );
    assert_eq!((connects("new"), connects("failed")), (1.0, 1.0));
    until("nothing to be under way", || {
        (proxy.metric("cutover_upstream_connections{backend=\"new\",state=\"active\"}")
            == Some(0.0))
        .then_some(())
    });
    drop(held);
}

#[test]
fn a_failure_of_new_reaches_the_client_while_legacy_gives_no_answer() {
    let proxy = Proxy::start(&rollout("checkout", "100", NO_GUARD));
    proxy.new.behave(Behaviour::Answer(500));
    proxy.legacy.behave(Behaviour::Close);
    let statuses = |requests: usize| -> Vec<u16> {
        (0..requests)
            .map(|_| proxy.get("/", &[("x-user-id", "u")]).status())
            .collect()
    };
    let replaced = |statuses: &[u16]| statuses.iter().filter(|status| **status != 500).count();
    // Until legacy counts as silent, its failure replaces the answer of new.
    assert!(replaced(&statuses(20)) > 0);
    let began = std::time::Instant::now();
    let later = replaced(&statuses(40));
    let seconds = usize::try_from(began.elapsed().as_secs()).unwrap();
    assert!(
        later <= seconds + 1,
        "{later} answers of new were replaced in {seconds} s"
    );
    // The one request in a second that still goes to legacy finds out that it is back.
    proxy.legacy.behave(Behaviour::Answer(200));
    until("legacy to answer again", || {
        (proxy.get("/", &[("x-user-id", "u")]).side() == "legacy").then_some(())
    });
    assert_eq!(replaced(&statuses(20)), 20, "legacy answers all of them");
}
