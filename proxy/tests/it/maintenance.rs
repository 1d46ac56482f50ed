//! Maintenance on the real proxy: which requests are refused, held or passed, and what survives a
//! restart.

use std::fs;
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::{cutover, said};
use crate::harness::{Backend, Behaviour, Client, Message, Proxy, rollout, until};
use crate::process::{Process, World};

const ROUTE: &str = "/api/v1/maintenance";

fn maintain(proxy: &Proxy, body: &Value) -> Message {
    proxy.admin_ask(
        "PUT",
        ROUTE,
        &[("content-type", "application/json")],
        body.to_string().as_bytes(),
    )
}

fn set(proxy: &Proxy, rollout: Option<&str>, mode: &str) {
    let answer = maintain(
        proxy,
        &json!({"rollout": rollout, "mode": mode, "reason": "CHG-7"}),
    );
    assert_eq!(answer.status(), 200, "{}", answer.text());
    // If the disk is busy, the write may take longer than the answer waits for it.
    until("the mode to be durable", || {
        (proxy.status()["latch_durable"] == true).then_some(())
    });
}

fn parked(proxy: &Proxy) -> u64 {
    proxy.status()["held_requests"].as_u64().unwrap()
}

fn user() -> [(&'static str, &'static str); 1] {
    [("x-user-id", "ana")]
}

/// Returns everything that the metrics count for requests to a backend.
fn counted(proxy: &Proxy) -> f64 {
    let text = proxy.admin_ask("GET", "/metrics", &[], b"").text();
    text.lines()
        .filter(|line| line.starts_with("cutover_requests_total{"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

#[test]
fn read_only_refuses_writes_and_passes_reads_on_one_connection() {
    let proxy = Proxy::start(&rollout("checkout", "100", ""));
    set(&proxy, Some("checkout"), "read-only");
    let mut client = proxy.client();
    let refused = client
        .ask(
            "POST",
            "/order",
            &[("x-user-id", "ana"), ("accept", "application/json")],
            b"",
        )
        .unwrap();
    assert_eq!(
        (
            refused.status(),
            refused.header("retry-after"),
            refused.header("cache-control")
        ),
        (503, Some("30"), Some("no-store"))
    );
    assert_eq!(
        (
            refused.header("content-type"),
            &refused.json()["error"]["code"]
        ),
        (Some("application/json"), &json!("maintenance")),
        "{}",
        refused.text()
    );
    for method in ["GET", "HEAD", "OPTIONS"] {
        let passed = client
            .ask(method, "/", &user(), b"")
            .expect("the connection was kept");
        assert_eq!((passed.status(), passed.side()), (200, "new"), "{method}");
    }
    let page = client
        .ask(
            "DELETE",
            "/order",
            &[("x-user-id", "ana"), ("accept", "text/html,*/*;q=0.8")],
            b"",
        )
        .unwrap();
    assert_eq!(
        (page.status(), page.header("content-type")),
        (503, Some("text/html; charset=utf-8"))
    );
    assert!(
        page.text().contains("<h1>503 Service Unavailable</h1>")
            && page.text().contains("read-only for maintenance"),
        "{}",
        page.text()
    );
    // An unread body could be mistaken for the next request.
    let with_body = client
        .ask("POST", "/order", &user(), b"GET / HTTP/1.1\r\n\r\n")
        .unwrap();
    assert_eq!(
        (with_body.status(), with_body.header("connection")),
        (503, Some("close"))
    );
    assert!(client.answer(false).is_none(), "closed");
    assert_eq!(proxy.new.requests(), 3);
    set(&proxy, Some("checkout"), "off");
    assert_eq!(
        proxy
            .client()
            .ask("POST", "/order", &user(), b"1")
            .unwrap()
            .status(),
        200
    );
}

#[test]
fn full_answers_all_clients_and_counts_for_no_backend() {
    let proxy = Proxy::start(&format!(
        "{}\n{}",
        rollout("checkout", "100", "match = { path = \"/shop\" }"),
        rollout("search", "0", "match = { path = \"/search\" }")
    ));
    proxy.get("/shop", &user());
    until("the first request in the metrics", || {
        (counted(&proxy) == 1.0).then_some(())
    });
    let refused = |path: &str| proxy.get(path, &user()).status();

    set(&proxy, Some("checkout"), "full");
    assert_eq!(
        (refused("/shop"), refused("/search"), refused("/")),
        (503, 200, 200)
    );
    set(&proxy, None, "full");
    assert_eq!(
        (refused("/shop"), refused("/search"), refused("/")),
        (503, 503, 503)
    );
    let head = proxy.client().ask("HEAD", "/", &[], b"").unwrap();
    assert_eq!(
        (head.status(), head.header("retry-after")),
        (503, Some("30"))
    );
    // The stricter mode is in force, in either order.
    set(&proxy, None, "read-only");
    assert_eq!(
        (refused("/shop"), refused("/search"), refused("/")),
        (503, 200, 200)
    );
    set(&proxy, Some("checkout"), "off");
    assert_eq!(refused("/shop"), 200);
    set(&proxy, None, "off");

    until("every answer of a backend in the metrics", || {
        (counted(&proxy) == 6.0).then_some(())
    });
    let refused = |rollout: &str| {
        proxy.metric(&format!(
            "cutover_maintenance_requests_total{{rollout=\"{rollout}\",result=\"refused\"}}"
        ))
    };
    assert_eq!(
        (refused("checkout"), refused("search"), refused("")),
        (Some(3.0), Some(1.0), Some(2.0))
    );
    assert_eq!(proxy.rollout()["new"]["failed"], 0);
}

#[test]
fn hold_keeps_requests_of_many_clients_and_releases_all_in_order() {
    const CLIENTS: usize = 120;
    let proxy = Proxy::start(&rollout("checkout", "0", ""));
    set(&proxy, None, "hold");
    let mut clients: Vec<Client> = Vec::new();
    for number in 0..CLIENTS {
        let mut client = proxy.client();
        // Every third request has a body, and every second one matches a rollout.
        let body = if number % 3 == 0 {
            "content-length: 5\r\n\r\n12345"
        } else {
            "\r\n"
        };
        client.send(
            format!("POST /{number} HTTP/1.1\r\nhost: h\r\nx-user-id: u{number}\r\n{body}")
                .as_bytes(),
        );
        clients.push(client);
        until("the request to be parked", || {
            (parked(&proxy) == number as u64 + 1).then_some(())
        });
    }
    assert_eq!((proxy.legacy.requests(), proxy.new.requests()), (0, 0));
    let status = proxy.status();
    assert_eq!(
        (
            &status["maintenance"]["mode"],
            &status["rollouts"][0]["held_requests"]
        ),
        (&json!("hold"), &json!(CLIENTS))
    );
    assert_eq!(
        proxy.metric("cutover_held_requests{rollout=\"checkout\"}"),
        Some(CLIENTS as f64)
    );
    // The split at the time of the release decides, not that at the arrival.
    proxy.save(&rollout("checkout", "100", ""));
    set(&proxy, None, "off");
    for (number, client) in clients.iter_mut().enumerate() {
        let answer = client
            .answer(false)
            .unwrap_or_else(|| panic!("{number} was lost"));
        let body = if number % 3 == 0 { 5 } else { 0 };
        assert_eq!(
            (answer.status(), answer.text()),
            (200, format!("new {body}")),
            "{number}"
        );
        assert_eq!(
            client
                .ask("GET", "/again", &user(), b"")
                .map(|answer| answer.status()),
            Some(200),
            "the connection goes on"
        );
    }
    let order = proxy.new.paths();
    let arrived: Vec<usize> = order
        .iter()
        .filter_map(|path| path.trim_start_matches('/').parse().ok())
        .collect();
    assert_eq!(arrived.len(), CLIENTS);
    // Requests are released in order, in batches of 16. The threads of the proxy and of the backend
    // then race. On a busy machine with dozens of threads, one may be late. Without any order this
    // would be a third of all requests.
    let displaced: usize = arrived
        .iter()
        .enumerate()
        .map(|(place, number)| place.abs_diff(*number))
        .sum();
    assert!(displaced / CLIENTS < CLIENTS / 4, "{arrived:?}");
    assert_eq!(parked(&proxy), 0);
    for (result, count) in [
        ("held", CLIENTS),
        ("released", CLIENTS),
        ("refused", 0),
        ("expired", 0),
        ("left", 0),
    ] {
        assert_eq!(
            proxy.metric(&format!(
                "cutover_maintenance_requests_total{{rollout=\"checkout\",result=\"{result}\"}}"
            )),
            Some(count as f64),
            "{result}"
        );
    }
    assert_eq!(proxy.rollout()["new"]["failed"], 0);
}

#[test]
fn a_held_client_that_disconnects_frees_its_place_unsent() {
    let proxy = Proxy::start(&rollout("checkout", "0", ""));
    set(&proxy, Some("checkout"), "hold");
    let park = |body: &str| {
        let mut client = proxy.client();
        client.send(format!("POST / HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\n{body}").as_bytes());
        client
    };
    let (plain, with_body, mut stays) = (
        park("\r\n"),
        park("content-length: 3\r\n\r\n123"),
        park("\r\n"),
    );
    until("three to be parked", || (parked(&proxy) == 3).then_some(()));
    drop((plain, with_body));
    until("two places to be free", || {
        (parked(&proxy) == 1).then_some(())
    });
    set(&proxy, Some("checkout"), "off");
    assert_eq!(stays.answer(false).unwrap().status(), 200);
    assert_eq!(proxy.legacy.requests(), 1);
    assert_eq!(
        proxy.metric("cutover_maintenance_requests_total{rollout=\"checkout\",result=\"left\"}"),
        Some(2.0)
    );
}

#[test]
fn held_requests_are_answered_by_a_stricter_or_passed_by_a_milder_mode() {
    let proxy = Proxy::start(&rollout("checkout", "0", ""));
    for (next, get, post) in [
        ("full", 503, 503),
        ("read-only", 200, 503),
        ("off", 200, 200),
    ] {
        set(&proxy, None, "hold");
        let ask = |method: &str| {
            let mut client = proxy.client();
            client
                .send(format!("{method} / HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\n\r\n").as_bytes());
            client
        };
        let (mut getting, mut posting) = (ask("GET"), ask("POST"));
        until("both to be parked", || (parked(&proxy) == 2).then_some(()));
        set(&proxy, None, next);
        assert_eq!(
            (
                getting.answer(false).unwrap().status(),
                posting.answer(false).unwrap().status()
            ),
            (get, post),
            "{next}"
        );
    }
}

#[test]
fn a_slow_backend_is_neither_blamed_nor_cut_off_for_the_hold() {
    // The response timeout of new is 300 ms, and the request is held for longer than that.
    let proxy = Proxy::start(&rollout("checkout", "100", "failover = \"off\""));
    set(&proxy, None, "hold");
    let mut client = proxy.client();
    client.send(b"GET / HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\n\r\n");
    until("it to be parked", || (parked(&proxy) == 1).then_some(()));
    let began = std::time::Instant::now();
    until("more than the response timeout to pass", || {
        (began.elapsed() > Duration::from_millis(600)).then_some(())
    });
    set(&proxy, None, "off");
    assert_eq!(client.answer(false).unwrap().status(), 200);
    until("it to be counted", || {
        (proxy.rollout()["new"]["requests"] == 1).then_some(())
    });
    assert!(
        proxy.rollout()["new"]["p99_ms"].as_f64().unwrap() < 300.0,
        "{}",
        proxy.rollout()
    );
    // After the hold the request has the whole timeout, and no more.
    proxy.new.behave(Behaviour::Hang);
    set(&proxy, None, "hold");
    client.send(b"GET / HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\n\r\n");
    until("it to be parked", || (parked(&proxy) == 1).then_some(()));
    set(&proxy, None, "off");
    assert_eq!(client.answer(false).unwrap().status(), 504);
}

/// The SHA-256 of `sesame`.
const ROUTING: &str = "[routing]\noverride_token_sha256 = \
                       \"d0c04f4b1951e4aeaaec8223ed2039e542f3aae805a6fa7f6d794e5afff5d272\"\n";

#[test]
fn a_tester_with_the_token_passes_every_mode() {
    let proxy = Proxy::start_with(ROUTING, &rollout("checkout", "0", ""));
    for mode in ["read-only", "hold", "full"] {
        set(&proxy, None, mode);
        let ask = |token: &str| {
            proxy
                .client()
                .ask(
                    "POST",
                    "/",
                    &[("x-user-id", "u"), ("x-cutover-override", token)],
                    b"1",
                )
                .unwrap()
        };
        assert_eq!(
            (ask("new sesame").status(), ask("new sesame").side()),
            (200, "new"),
            "{mode}"
        );
        if mode != "hold" {
            assert_eq!(ask("new guess").status(), 503, "{mode}");
        }
    }
}

#[test]
fn a_window_expires_on_time_and_the_journal_names_the_actors() {
    let proxy = Proxy::start(&rollout("checkout", "0", ""));
    let answer = maintain(
        &proxy,
        &json!({"rollout": "checkout", "mode": "hold", "for": "700ms", "reason": "CHG-7", "actor": "ana"}),
    );
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let maintenance = &proxy.rollout()["maintenance"];
    for (key, value) in [
        ("mode", json!("hold")),
        ("scope", json!("rollout")),
        ("remaining_seconds", json!(1)),
        ("actor", json!("ana")),
        ("reason", json!("CHG-7")),
    ] {
        assert_eq!(maintenance[key], value, "{maintenance}");
    }
    assert_eq!(
        proxy.metric("cutover_maintenance{rollout=\"checkout\",mode=\"hold\"}"),
        Some(1.0)
    );
    assert_eq!(
        proxy.metric("cutover_maintenance{rollout=\"\",mode=\"off\"}"),
        Some(1.0)
    );
    assert_eq!(
        proxy.get("/", &user()).status(),
        200,
        "it waited for the end by itself"
    );
    until("it to be off", || {
        proxy.rollout()["maintenance"].is_null().then_some(())
    });
    assert_eq!(
        proxy.metric("cutover_maintenance{rollout=\"checkout\",mode=\"hold\"}"),
        Some(0.0)
    );
    // The end is in the journal a moment after it is in force.
    let history = || {
        proxy
            .admin_ask("GET", "/api/v1/history?rollout=checkout&limit=2", &[], b"")
            .json()
    };
    let history = until("the end in the journal", || {
        Some(history()).filter(|history| history["records"][0]["maintenance"] == "off")
    });
    let (ended, begun) = (&history["records"][0], &history["records"][1]);
    assert_eq!(
        (&ended["change"], &ended["source"], &ended["actor"]),
        (&json!("maintenance"), &json!("timer"), &json!("timer"))
    );
    assert_eq!(
        ended["sentence"],
        "checkout: maintenance is off after 700 ms, it was hold: its time is over"
    );
    assert_eq!(
        (&begun["maintenance"], &begun["actor"], &begun["source"]),
        (&json!("hold"), &json!("ana"), &json!("api"))
    );
    assert_eq!(
        begun["sentence"],
        "checkout: maintenance is hold for 700 ms by ana, requests wait: CHG-7"
    );
    assert!(begun["until"].is_string(), "{begun}");
    assert_eq!(history["chain"]["intact"], true);
}

fn put(process: &Process, body: &Value) -> Message {
    process.admin_ask("PUT", ROUTE, body)
}

#[test]
fn a_maintenance_window_survives_kill_9_and_expires_while_stopped() {
    let world = World::new(&rollout("checkout", "0", ""));
    let process = Process::start(world.path());
    assert_eq!(
        put(
            &process,
            &json!({"rollout": "checkout", "mode": "full", "for": "10m", "reason": "CHG-7"})
        )
        .status(),
        200
    );
    assert_eq!(
        put(
            &process,
            &json!({"rollout": null, "mode": "read-only", "reason": "CHG-8"})
        )
        .status(),
        200
    );
    process.kill();

    let process = Process::start(world.path());
    let answer = Client::connect(process.http)
        .ask("GET", "/", &user(), b"")
        .unwrap();
    let retry_after: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert_eq!(answer.status(), 503);
    assert!(
        (500..=600).contains(&retry_after),
        "the time that is left: {retry_after}"
    );
    let status = process
        .admin_ask("GET", "/api/v1/rollouts", &Value::Null)
        .json();
    assert_eq!(
        (
            &status["maintenance"]["mode"],
            &status["maintenance"]["reason"]
        ),
        (&json!("read-only"), &json!("CHG-8"))
    );
    assert_eq!(
        (
            &status["rollouts"][0]["maintenance"]["mode"],
            &status["rollouts"][0]["maintenance"]["actor"]
        ),
        (&json!("full"), &json!("local"))
    );
    assert_eq!(
        put(
            &process,
            &json!({"rollout": "checkout", "mode": "full", "for": "250ms", "reason": "CHG-9"})
        )
        .status(),
        200
    );
    process.kill();

    let ends = std::time::Instant::now() + Duration::from_millis(250);
    until("its time to be over", || {
        (std::time::Instant::now() > ends).then_some(())
    });
    let process = Process::start(world.path());
    assert_eq!(
        Client::connect(process.http)
            .ask("GET", "/", &user(), b"")
            .unwrap()
            .status(),
        200
    );
    assert_eq!(
        Client::connect(process.http)
            .ask("POST", "/", &user(), b"1")
            .unwrap()
            .status(),
        503,
        "the other one has no end"
    );
    assert_eq!(
        put(
            &process,
            &json!({"rollout": null, "mode": "off", "reason": "done"})
        )
        .status(),
        200
    );
    process.kill();

    let process = Process::start(world.path());
    assert_eq!(
        Client::connect(process.http)
            .ask("POST", "/", &user(), b"1")
            .unwrap()
            .status(),
        200
    );
    assert!(
        !fs::read_to_string(world.path().join("state/status.json"))
            .unwrap()
            .contains("maintenance")
    );
    let history = process
        .admin_ask("GET", "/api/v1/history?rollout=checkout", &Value::Null)
        .json();
    assert_eq!(history["chain"]["intact"], true);
    let changes: Vec<&str> = history["records"]
        .as_array()
        .unwrap()
        .iter()
        .rev()
        .filter_map(|record| record["maintenance"].as_str())
        .collect();
    assert_eq!(
        changes,
        ["full", "read-only", "full", "off", "off"],
        "what concerns all is in the history of each"
    );
    process.kill();
}

#[test]
fn an_unwritable_disk_delays_neither_start_nor_end_of_maintenance() {
    let proxy = Proxy::start(&rollout("checkout", "0", ""));
    // A directory in the place of the temporary file makes the write fail for root as well.
    let blocker = proxy
        .directory
        .path()
        .join(format!("state/.status.json.{}.tmp", std::process::id()));
    fs::create_dir(&blocker).unwrap();
    let refused = |expected: u16| assert_eq!(proxy.get("/", &user()).status(), expected);
    for (mode, status) in [("full", 503), ("off", 200)] {
        let answer = maintain(
            &proxy,
            &json!({"rollout": null, "mode": mode, "reason": "CHG-7"}),
        );
        assert_eq!(
            (answer.status(), &answer.json()["durable"]),
            (200, &json!(false)),
            "{}",
            answer.text()
        );
        refused(status);
    }
    // A raise that waits for the disk does not take effect together with it.
    proxy.save(&rollout("checkout", "100", ""));
    assert_eq!(
        maintain(
            &proxy,
            &json!({"rollout": null, "mode": "full", "for": "10m", "reason": "CHG-8"})
        )
        .status(),
        200
    );
    refused(503);
    assert_eq!(
        maintain(
            &proxy,
            &json!({"rollout": null, "mode": "off", "reason": "CHG-8"})
        )
        .status(),
        200
    );
    assert_eq!(
        proxy.side_of("ana"),
        "legacy",
        "what is not durable is not in force"
    );
    fs::remove_dir(&blocker).unwrap();
    until("the held raise", || {
        (proxy.side_of("ana") == "new").then_some(())
    });
}

#[test]
fn an_invalid_request_to_the_api_is_explained_and_changes_nothing() {
    let proxy = Proxy::start(&rollout("checkout", "0", ""));
    for (body, status, code) in [
        (
            json!({"mode": "full", "reason": "x"}),
            400,
            "missing_rollout",
        ),
        (
            json!({"rollout": "chekout", "mode": "full", "reason": "x"}),
            404,
            "unknown_rollout",
        ),
        (
            json!({"rollout": "chekout", "mode": "full", "reason": "x", "dry_run": true}),
            404,
            "unknown_rollout",
        ),
        (json!({"rollout": null, "reason": "x"}), 400, "bad_mode"),
        (
            json!({"rollout": null, "mode": "readonly", "reason": "x"}),
            400,
            "bad_mode",
        ),
        (
            json!({"rollout": null, "mode": "full"}),
            400,
            "missing_reason",
        ),
        (
            json!({"rollout": null, "mode": "full", "for": "10", "reason": "x"}),
            400,
            "bad_for",
        ),
        (
            json!({"rollout": null, "mode": "full", "for": "0s", "reason": "x"}),
            400,
            "bad_for",
        ),
        (
            json!({"rollout": null, "mode": "off", "for": "10m", "reason": "x"}),
            400,
            "bad_for",
        ),
        (
            json!({"rollout": null, "mode": "full", "until": "x", "reason": "x"}),
            422,
            "bad_body",
        ),
        (
            json!({"rollout": 5, "mode": "full", "reason": "x"}),
            422,
            "bad_body",
        ),
    ] {
        let answer = maintain(&proxy, &body);
        let error = &answer.json()["error"];
        assert_eq!(
            (answer.status(), error["code"].as_str()),
            (status, Some(code)),
            "{body}: {}",
            answer.text()
        );
        assert!(
            !error["hint"].as_str().unwrap().is_empty()
                && !error["message"].as_str().unwrap().is_empty(),
            "{error}"
        );
    }
    assert_eq!(
        proxy
            .admin_ask(
                "POST",
                ROUTE,
                &[("content-type", "application/json")],
                b"{}"
            )
            .status(),
        405
    );
    let dry = maintain(
        &proxy,
        &json!({"rollout": null, "mode": "full", "reason": "x", "dry_run": true}),
    );
    assert_eq!(
        (
            dry.status(),
            &dry.json()["dry_run"],
            &dry.json()["sentence"]
        ),
        (
            200,
            &json!(true),
            &json!("all rollouts: maintenance would be full")
        )
    );
    assert!(proxy.status()["maintenance"].is_null() && proxy.rollout()["maintenance"].is_null());

    let revision = proxy.status()["revision"].as_u64().unwrap();
    let at = |revision: u64| {
        let tag = format!("\"{revision}\"");
        let body = json!({"rollout": null, "mode": "full", "reason": "x"}).to_string();
        proxy.admin_ask(
            "PUT",
            ROUTE,
            &[("content-type", "application/json"), ("if-match", &tag)],
            body.as_bytes(),
        )
    };
    assert_eq!((at(revision).status(), at(revision).status()), (200, 412));
}

#[test]
fn a_viewer_may_not_start_maintenance() {
    let sha256 = |text: &str| {
        use sha2::Digest;
        format!("{:x}", sha2::Sha256::digest(text))
    };
    let tables = format!(
        "[admin]\naddress = \"127.0.0.1:0\"\ntokens = [{{ name = \"vera\", role = \"viewer\", \
         sha256 = \"{}\" }}, {{ name = \"otto\", role = \"operator\", sha256 = \"{}\" }}]\n",
        sha256("viewer-token"),
        sha256("operator-token")
    );
    let proxy = Proxy::start_with(&tables, &rollout("checkout", "0", ""));
    for (token, status) in [
        ("wrong", 401),
        ("viewer-token", 403),
        ("operator-token", 200),
    ] {
        let bearer = format!("Bearer {token}");
        let answer = proxy.admin_ask(
            "PUT",
            ROUTE,
            &[
                ("content-type", "application/json"),
                ("authorization", &bearer),
            ],
            br#"{"rollout":null,"mode":"full","reason":"x"}"#,
        );
        assert_eq!(answer.status(), status, "{}", answer.text());
    }
    assert_eq!(proxy.get("/", &user()).status(), 503);
}

#[test]
fn the_command_starts_and_ends_maintenance_and_reports_it() {
    let proxy = Proxy::start(&rollout("checkout", "0", ""));
    let admin = format!("http://{}", proxy.admin);
    let run = |arguments: &[&str]| said(&cutover(&[arguments, &["--admin", &admin]].concat()));
    let (code, stdout, stderr) = run(&[
        "maintenance",
        "checkout",
        "read-only",
        "--for",
        "10m",
        "--reason",
        "CHG-7",
    ]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(
        stdout.starts_with("checkout: maintenance read-only since ")
            && stdout.ends_with(", 10 min left, by ana: CHG-7\n"),
        "{stdout}"
    );
    let (_, stdout, _) = run(&[
        "maintenance",
        "--all",
        "full",
        "--dry-run",
        "--reason",
        "CHG-8",
    ]);
    assert_eq!(stdout, "all rollouts: maintenance would be full\n");
    let (_, stdout, _) = run(&[
        "maintenance",
        "--all",
        "full",
        "--reason",
        "CHG-8",
        "--json",
    ]);
    let done: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(done["durable"], true);
    assert!(
        done["sentence"]
            .as_str()
            .unwrap()
            .starts_with("maintenance full for all rollouts since "),
        "{done}"
    );
    let (code, stdout, stderr) = run(&["status"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(
        stdout.contains("maintenance full for all rollouts since ")
            && stdout.contains(", by ana: CHG-8"),
        "{stdout}"
    );
    let (_, stdout, _) = run(&["explain", "--user", "ana", "--method", "GET"]);
    assert!(
        stdout.starts_with(
            "maintenance is full, so it is answered with 503; a tester's override passes; without \
             maintenance:\n"
        ) && stdout.contains("served by backend"),
        "{stdout}"
    );
    let (_, stdout, _) = run(&["maintenance", "--all", "off", "--reason", "done"]);
    assert_eq!(stdout, "all rollouts: maintenance is off\n");
    let (_, stdout, _) = run(&["explain", "--user", "ana", "--method", "GET"]);
    assert!(!stdout.contains("maintenance"), "reading passes: {stdout}");
    let (_, stdout, _) = run(&["explain", "--user", "ana", "--method", "POST", "--json"]);
    assert_eq!(
        serde_json::from_str::<Value>(&stdout).unwrap()["maintenance"],
        "read-only"
    );
    let (_, stdout, _) = run(&["maintenance", "checkout", "off", "--reason", "done"]);
    assert_eq!(stdout, "checkout: maintenance is off\n");
    let (_, stdout, _) = run(&["history", "checkout"]);
    let told: Vec<bool> = stdout
        .lines()
        .map(|line| line.contains(" maintenance "))
        .collect();
    assert_eq!(told.iter().filter(|told| **told).count(), 4, "{stdout}");
    assert!(
        stdout.contains("all rollouts: maintenance is off by ana; checkout stays read-only: done"),
        "{stdout}"
    );

    for (arguments, code, message) in [
        (
            &["maintenance", "chekout", "full", "--reason", "x"][..],
            1,
            "there are: checkout",
        ),
        (
            &["maintenance", "checkout", "shut", "--reason", "x"],
            2,
            "expected the mode off, read-only, hold or full, found `shut`",
        ),
        (
            &["maintenance", "checkout", "--reason", "x"],
            2,
            "expected a rollout and a mode, found `checkout`",
        ),
        (
            &["maintenance", "--all", "checkout", "full", "--reason", "x"],
            2,
            "--all and the rollout `checkout` exclude each other",
        ),
        (&["maintenance", "checkout", "full"], 2, "--reason"),
        (
            &[
                "maintenance",
                "checkout",
                "full",
                "--for",
                "soon",
                "--reason",
                "x",
            ],
            2,
            "--for: expected a duration such as",
        ),
        (
            &[
                "maintenance",
                "checkout",
                "off",
                "--for",
                "5m",
                "--reason",
                "x",
            ],
            2,
            "`off` has no end",
        ),
    ] {
        let (found, stdout, stderr) = run(arguments);
        assert_eq!(
            (found, stdout.as_str()),
            (Some(code), ""),
            "{arguments:?}: {stderr}"
        );
        assert!(stderr.contains(message), "{arguments:?}: {stderr}");
    }
}

#[test]
fn a_line_of_the_access_log_names_maintenance() {
    struct Lines(mpsc::Sender<Vec<u8>>);
    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(std::io::Error::other)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (lines, written) = mpsc::channel();
    let proxy = Proxy::start_logging(Box::new(Lines(lines)), &rollout("checkout", "0", ""));
    let mut seen = String::new();
    let mut line = |path: &str| -> Value {
        until("the line", || {
            seen.extend(
                written
                    .try_iter()
                    .map(|bytes| String::from_utf8(bytes).unwrap()),
            );
            let found = seen
                .lines()
                .find(|line| line.contains(&format!("\"{path}\"")))?;
            Some(serde_json::from_str(found).unwrap())
        })
    };
    set(&proxy, None, "full");
    assert_eq!(proxy.get("/refused", &user()).status(), 503);
    let refused = line("/refused");
    for (key, value) in [
        ("cutover.maintenance", json!("full")),
        ("cutover.reason", json!("maintenance")),
        ("cutover.rollout", json!("checkout")),
        ("cutover.backend", Value::Null),
        ("http.response.status_code", json!(503)),
        ("parked_ms", Value::Null),
    ] {
        assert_eq!(refused[key], value, "{refused}");
    }
    set(&proxy, None, "hold");
    let mut client = proxy.client();
    client.send(b"GET /parked HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\n\r\n");
    until("it to be parked", || (parked(&proxy) == 1).then_some(()));
    set(&proxy, None, "off");
    assert_eq!(client.answer(false).unwrap().status(), 200);
    let served = line("/parked");
    assert_eq!(
        (&served["cutover.maintenance"], &served["cutover.reason"]),
        (&Value::Null, &json!("bucket")),
        "{served}"
    );
    let (waited, total, upstream) = (
        served["parked_ms"].as_f64().unwrap(),
        served["duration_ms"].as_f64().unwrap(),
        served["upstream_ms"].as_f64().unwrap(),
    );
    assert!(
        waited > 0.0 && (waited + upstream - total).abs() < total.max(1.0) && waited < total,
        "{served}"
    );
}

#[test]
fn an_idle_backend_is_not_probed_during_maintenance() {
    let backend = Backend::start("unmatched");
    let tables = format!(
        "[backend.other]\nservers = [\"{}\"]\n[routing]\ndefault_backend = \"other\"\n",
        backend.address
    );
    let proxy = Proxy::start_with(
        &tables,
        &rollout("checkout", "0", "match = { path = \"/shop\" }"),
    );
    set(&proxy, None, "full");
    assert_eq!(
        (proxy.get("/", &user()).status(), backend.requests()),
        (503, 0)
    );
    set(&proxy, None, "off");
    assert_eq!(
        (proxy.get("/", &user()).status(), backend.requests()),
        (200, 1)
    );
}
