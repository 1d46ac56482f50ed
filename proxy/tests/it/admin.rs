//! The admin port: who may do what, and answers that programs can rely on.

use cutover::admin::routes::{Access, ROUTES};
use serde_json::json;

use crate::harness::{Proxy, rollout, until};

/// The SHA-256 of `viewer-token` and `operator-token`.
const TOKENS: &str = r#"[admin]
address = "127.0.0.1:0"
tokens = [
  { name = "vera", role = "viewer", sha256 = "VIEWER" },
  { name = "otto", role = "operator", sha256 = "OPERATOR" },
]
"#;

fn sha256(text: &str) -> String {
    use sha2::Digest;
    format!("{:x}", sha2::Sha256::digest(text))
}

fn with_tokens() -> Proxy {
    let tables = TOKENS
        .replace("VIEWER", &sha256("viewer-token"))
        .replace("OPERATOR", &sha256("operator-token"));
    Proxy::start_with(&tables, &rollout("checkout", "5", ""))
}

#[test]
fn a_dry_rearm_is_refused_like_the_real_one() {
    let proxy = Proxy::start(&rollout("checkout", "5", ""));
    let rearm = |body| proxy.post("/api/v1/rollouts/checkout/rearm", &body);
    let dry = json!({"reason": "CHG-7", "percent": 3, "dry_run": true});
    let (real, refused) = (rearm(json!({"reason": "CHG-7"})), rearm(dry.clone()));
    assert_eq!(
        (refused.status(), refused.text()),
        (real.status(), real.text())
    );
    proxy.post(
        "/api/v1/rollouts/checkout/rollback",
        &json!({"reason": "CHG-8"}),
    );
    let told = rearm(dry).json();
    let sentence = told["sentence"].as_str().unwrap();
    assert!(sentence.contains("would be set to 3 %"), "{sentence}");
    assert_eq!(proxy.rollout()["phase"], "rolled_back", "nothing was done");
}

#[test]
fn every_route_requires_the_role_in_the_table_of_routes() {
    let proxy = with_tokens();
    for route in &ROUTES {
        let path = route
            .path
            .replace("{id}", "checkout")
            .replace("{verb}", "advance");
        let status = |token: Option<&str>| {
            let bearer = token.map(|token| format!("Bearer {token}"));
            let mut headers = vec![("content-type", "application/json")];
            headers.extend(bearer.as_deref().map(|bearer| ("authorization", bearer)));
            // A body without a reason changes nothing.
            let body: &[u8] = if route.method == "GET" { b"" } else { b"{}" };
            proxy
                .admin_ask(route.method, &path, &headers, body)
                .status()
        };
        let refused = |token| matches!(status(token), 401 | 403);
        let (open, viewer) = (
            route.access == Access::Open,
            route.access != Access::Operator,
        );
        let name = format!("{} {}", route.method, route.path);
        assert_eq!(refused(None), !open, "{name} without a token");
        assert_eq!(refused(Some("viewer-token")), !viewer, "{name} by a viewer");
        assert!(!refused(Some("operator-token")), "{name} by an operator");
        assert_ne!(status(Some("operator-token")), 405, "{name}");
    }
    let index = proxy.admin_ask("GET", "/", &[], b"").text();
    for route in ROUTES.iter().filter(|route| route.path != "/") {
        assert!(
            index.contains(route.path),
            "GET / does not list {}",
            route.path
        );
    }
}

#[test]
fn viewers_may_read_operators_may_act_and_others_may_do_neither() {
    let proxy = with_tokens();
    let ask = |method: &str, target: &str, token: Option<&str>| {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(bearer.as_deref().map(|bearer| ("authorization", bearer)));
        proxy.admin_ask(
            method,
            target,
            &headers,
            if method == "POST" {
                b"{\"reason\":\"CHG-7\"}"
            } else {
                b""
            },
        )
    };
    let rollback = "/api/v1/rollouts/checkout/rollback";
    for (token, read, act) in [
        (None, 401, 401),
        (Some("wrong"), 401, 401),
        (Some("viewer-token"), 200, 403),
        (Some("operator-token"), 200, 200),
    ] {
        assert_eq!(
            ask("GET", "/api/v1/rollouts", token).status(),
            read,
            "{token:?}"
        );
        assert_eq!(
            ask("GET", "/api/v1/history", token).status(),
            read,
            "{token:?}"
        );
        assert_eq!(
            ask("GET", "/api/v1/explain?user=u", token).status(),
            read,
            "{token:?}"
        );
        assert_eq!(ask("POST", rollback, token).status(), act, "{token:?}");
    }
    for open in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(ask("GET", open, None).status(), 200, "{open}");
    }
    let history = ask(
        "GET",
        "/api/v1/history?rollout=checkout&limit=1",
        Some("viewer-token"),
    )
    .json();
    let record = &history["records"][0];
    assert_eq!(
        (
            &record["actor"],
            &record["source"],
            &record["change"],
            &record["reason"]
        ),
        (
            &json!("otto"),
            &json!("api"),
            &json!("rollback"),
            &json!("CHG-7")
        )
    );
    let error = ask("GET", "/api/v1/rollouts", None).json();
    assert_eq!(error["error"]["code"], "unauthorized");
    assert!(
        error["error"]["hint"]
            .as_str()
            .unwrap()
            .contains("CUTOVER_TOKEN"),
        "{error}"
    );
}

#[test]
fn a_foreign_page_in_a_browser_cannot_use_the_admin_port() {
    let proxy = Proxy::start(&rollout("checkout", "5", ""));
    let status = |headers: &[(&str, &str)]| {
        proxy
            .admin_ask(
                "POST",
                "/api/v1/rollouts/checkout/rollback",
                headers,
                b"{\"reason\":\"x\"}",
            )
            .status()
    };
    let json = ("content-type", "application/json");
    assert_eq!(
        status(&[json, ("host", "evil.example")]),
        403,
        "DNS rebinding"
    );
    assert_eq!(status(&[json, ("origin", "http://evil.example")]), 403);
    assert_eq!(status(&[json, ("origin", "null")]), 403);
    assert_eq!(status(&[json, ("sec-fetch-site", "cross-site")]), 403);
    assert_eq!(
        status(&[("content-type", "text/plain")]),
        415,
        "what a form can send is not JSON"
    );
    assert_eq!(proxy.rollout()["phase"], "holding");
    assert_eq!(
        status(&[
            json,
            ("host", "localhost:9090"),
            ("origin", "http://localhost:9090")
        ]),
        200
    );
}

#[test]
fn a_revision_protects_the_change_of_another_user() {
    let proxy = Proxy::start(&rollout("checkout", "5", ""));
    let read = proxy.admin_ask("GET", "/api/v1/rollouts/checkout", &[], b"");
    let tag = read.header("etag").unwrap().to_owned();
    let set = |percent: f64| {
        let body = json!({"percent": percent, "reason": "CHG-7"}).to_string();
        proxy.admin_ask(
            "POST",
            "/api/v1/rollouts/checkout/set",
            &[("content-type", "application/json"), ("if-match", &tag)],
            body.as_bytes(),
        )
    };
    assert_eq!(set(6.0).status(), 200);
    let late = set(7.0);
    assert_eq!(
        (late.status(), late.json()["error"]["code"].as_str()),
        (412, Some("revision_mismatch")),
        "{}",
        late.text()
    );
    assert_eq!(proxy.rollout()["desired_percent"], 6.0);
    let odd = proxy.admin_ask(
        "POST",
        "/api/v1/rollouts/checkout/rollback",
        &[("content-type", "application/json"), ("if-match", "seven")],
        b"{\"reason\":\"x\"}",
    );
    assert_eq!(
        (odd.status(), odd.json()["error"]["code"].as_str()),
        (412, Some("revision_mismatch")),
        "{}",
        odd.text()
    );
    assert_eq!(proxy.rollout()["phase"], "holding");
}

#[test]
fn of_eight_writers_with_one_revision_exactly_one_wins() {
    let proxy = Proxy::start(&rollout("checkout", "5", ""));
    for round in 0..5 {
        let tag = proxy
            .admin_ask("GET", "/api/v1/rollouts", &[], b"")
            .header("etag")
            .unwrap()
            .to_owned();
        let together = std::sync::Barrier::new(8);
        let statuses: Vec<u16> = std::thread::scope(|scope| {
            let write = |writer: usize| {
                let (verb, body) = match writer {
                    0 => (
                        "POST /api/v1/rollouts/checkout/rollback",
                        json!({"reason": "x"}),
                    ),
                    1 => (
                        "PUT /api/v1/maintenance",
                        json!({"rollout": null, "mode": "hold", "for": "1ms", "reason": "x"}),
                    ),
                    2 => ("POST /api/v1/reload", json!({"reason": "x"})),
                    _ => (
                        "POST /api/v1/rollouts/checkout/set",
                        json!({"percent": round * 10 + writer, "reason": "x"}),
                    ),
                };
                let (method, target) = verb.split_once(' ').unwrap();
                together.wait();
                proxy
                    .admin_ask(
                        method,
                        target,
                        &[("content-type", "application/json"), ("if-match", &tag)],
                        body.to_string().as_bytes(),
                    )
                    .status()
            };
            let writers: Vec<_> = (0..8)
                .map(|writer| scope.spawn(move || write(writer)))
                .collect();
            writers
                .into_iter()
                .map(|writer| writer.join().unwrap())
                .collect()
        });
        let won = statuses.iter().filter(|status| **status == 200).count();
        let lost = statuses.iter().filter(|status| **status == 412).count();
        assert_eq!((won, lost), (1, 7), "round {round}: {statuses:?}");
        if proxy.rollout()["phase"] == "rolled_back" {
            assert_eq!(
                proxy
                    .post(
                        "/api/v1/rollouts/checkout/rearm",
                        &json!({"reason": "again"})
                    )
                    .status(),
                200
            );
        }
        until("no maintenance", || {
            proxy.status()["maintenance"].is_null().then_some(())
        });
    }
}

#[test]
fn an_if_match_without_the_present_revision_changes_nothing() {
    let proxy = Proxy::start(&rollout("checkout", "5", ""));
    let revision = proxy.status()["revision"].as_u64().unwrap();
    let routes = [
        (
            "POST",
            "/api/v1/rollouts/checkout/set",
            json!({"percent": 9, "reason": "x"}),
        ),
        (
            "POST",
            "/api/v1/rollouts/checkout/set",
            json!({"percent": 9, "reason": "x", "dry_run": true}),
        ),
        (
            "POST",
            "/api/v1/rollouts/checkout/rollback",
            json!({"reason": "x"}),
        ),
        (
            "POST",
            "/api/v1/rollouts/checkout/rollback",
            json!({"reason": "x", "dry_run": true}),
        ),
        (
            "PUT",
            "/api/v1/maintenance",
            json!({"rollout": "checkout", "mode": "full", "reason": "x"}),
        ),
        ("POST", "/api/v1/reload", json!({"reason": "x"})),
    ];
    let ask = |(method, target, body): &(&str, &str, serde_json::Value), tag: &str| {
        proxy.admin_ask(
            method,
            target,
            &[("content-type", "application/json"), ("if-match", tag)],
            body.to_string().as_bytes(),
        )
    };
    for route in &routes {
        let (bare, weak, more) = (
            revision.to_string(),
            format!("W/\"{revision}\""),
            format!("\"{revision}0\""),
        );
        for tag in [
            "seven",
            "",
            "\"\"",
            "\"made-up\"",
            "\"00\"",
            "\"-1\"",
            &bare,
            &weak,
            &more,
            "\"99999999999999999999999\"",
            "\u{1f}",
        ] {
            let answer = ask(route, tag);
            if tag == "\u{1f}" {
                assert!([400, 412].contains(&answer.status()), "{route:?}");
                continue;
            }
            assert_eq!(
                (answer.status(), answer.json()["error"]["code"].as_str()),
                (412, Some("revision_mismatch")),
                "{route:?} {tag}: {}",
                answer.text()
            );
        }
    }
    assert_eq!(proxy.status()["revision"], revision, "nothing has changed");
    let list = format!("\"0\", \"made-up\" ,\"{revision}\"");
    assert_eq!(
        ask(&routes[0], &list).status(),
        200,
        "one of the list is the present revision"
    );
    assert_eq!(ask(&routes[2], "*").status(), 200);
    // A re-arm with a share has two steps, and the revision is compared before the first.
    let (rearm, before) = (
        (
            "POST",
            "/api/v1/rollouts/checkout/rearm",
            json!({"percent": 1, "reason": "x"}),
        ),
        proxy.text(),
    );
    assert_eq!((ask(&rearm, &list).status(), proxy.text()), (412, before));
    let now = format!("\"{}\"", proxy.status()["revision"]);
    assert_eq!(ask(&rearm, &now).status(), 200);
    assert_eq!(proxy.rollout()["effective_percent"], 1.0);
}

#[test]
fn a_status_is_never_stored_and_never_answered_as_unchanged() {
    let proxy = Proxy::start(&rollout("checkout", "100", ""));
    let before = proxy.admin_ask("GET", "/api/v1/rollouts", &[], b"");
    let tag = before.header("etag").unwrap().to_owned();
    proxy.get("/", &[("x-user-id", "ana")]);
    until("the request to be counted", || {
        (proxy.rollout()["new"]["requests"] == 1).then_some(())
    });
    for tag in [tag.as_str(), "*"] {
        let after = proxy.admin_ask("GET", "/api/v1/rollouts", &[("if-none-match", tag)], b"");
        assert_eq!(
            (
                after.status(),
                &after.json()["rollouts"][0]["new"]["requests"]
            ),
            (200, &json!(1)),
            "the numbers have moved"
        );
    }
    assert_eq!(
        tag,
        format!("\"{}\"", before.json()["revision"]),
        "a change is guarded by the revision"
    );
    let routes = [
        ("GET", "/api/v1/rollouts"),
        ("GET", "/api/v1/rollouts/nobody"),
        ("GET", "/api/v1/explain?user=u"),
        ("GET", "/api/v1/history"),
        ("POST", "/api/v1/reload"),
    ];
    for (method, target) in routes.into_iter().chain([
        ("GET", "/api/v1/nothing"),
        ("DELETE", "/api/v1/rollouts"),
        ("GET", "/api"),
    ]) {
        let answer = proxy.admin_ask(method, target, &[], b"");
        assert_eq!(
            answer.header("cache-control"),
            Some("no-store"),
            "{method} {target}: {}",
            answer.head
        );
    }
    let refused = proxy.admin_ask("GET", "/api/v1/rollouts", &[("host", "evil.example")], b"");
    assert_eq!(
        (refused.status(), refused.header("cache-control")),
        (403, Some("no-store"))
    );
}

#[test]
fn set_writes_the_file_keeps_its_comments_and_is_in_the_journal() {
    let proxy = Proxy::start(&rollout("checkout", "5   # careful, CHG-1", ""));
    let answer = proxy.post(
        "/api/v1/rollouts/checkout/set",
        &json!({"percent": 12.5, "reason": "CHG-7", "actor": "ana"}),
    );
    assert_eq!(answer.status(), 200, "{}", answer.text());
    assert!(
        proxy.text().contains("percent = 12.5   # careful, CHG-1\n"),
        "{}",
        proxy.text()
    );
    assert_eq!(proxy.rollout()["effective_percent"], 12.5);
    let history = proxy.admin_ask("GET", "/api/v1/history", &[], b"").json();
    let record = &history["records"][0];
    assert_eq!(record["sentence"], "checkout: 5 % -> 12.5 % by ana: CHG-7");
    assert_eq!(
        (&record["from_percent"], &record["to_percent"]),
        (&json!(5.0), &json!(12.5))
    );
    let dry = proxy.post(
        "/api/v1/rollouts/checkout/set",
        &json!({"percent": 99, "reason": "CHG-8", "dry_run": true}),
    );
    assert_eq!(
        (dry.status(), dry.json()["dry_run"].as_bool()),
        (200, Some(true))
    );
    assert_eq!(proxy.rollout()["desired_percent"], 12.5);
}

#[test]
fn invalid_requests_get_an_explanation_and_change_nothing() {
    let proxy = Proxy::start(&rollout("checkout", "5", ""));
    for (target, body, status, code) in [
        (
            "/api/v1/rollouts/checkout/rollback",
            json!({}),
            400,
            "missing_reason",
        ),
        (
            "/api/v1/rollouts/checkout/rollback",
            json!({"reason": "  "}),
            400,
            "missing_reason",
        ),
        (
            "/api/v1/rollouts/checkout/rollback",
            json!({"reason": "a\nb"}),
            400,
            "bad_reason",
        ),
        (
            "/api/v1/rollouts/checkout/rollback",
            json!({"reason": "x", "percent": 5}),
            400,
            "unexpected_percent",
        ),
        (
            "/api/v1/rollouts/checkout/rollback",
            json!({"raeson": "x"}),
            422,
            "bad_body",
        ),
        (
            "/api/v1/rollouts/chekout/rollback",
            json!({"reason": "x"}),
            404,
            "unknown_rollout",
        ),
        (
            "/api/v1/rollouts/chekout/set",
            json!({"reason": "x", "percent": 5}),
            404,
            "unknown_rollout",
        ),
        (
            "/api/v1/rollouts/checkout/set",
            json!({"reason": "x"}),
            400,
            "missing_percent",
        ),
        (
            "/api/v1/rollouts/checkout/set",
            json!({"reason": "x", "percent": 101}),
            400,
            "bad_percent",
        ),
        (
            "/api/v1/rollouts/checkout/set",
            json!({"reason": "x", "percent": 0.00001}),
            400,
            "bad_percent",
        ),
        (
            "/api/v1/rollouts/checkout/set",
            json!({"reason": "x", "percent": "5"}),
            422,
            "bad_body",
        ),
        (
            "/api/v1/rollouts/checkout/rearm",
            json!({"reason": "x"}),
            409,
            "not_rolled_back",
        ),
        (
            "/api/v1/rollouts/checkout/rearm",
            json!({"reason": "x", "percent": 1}),
            409,
            "not_rolled_back",
        ),
        (
            "/api/v1/rollouts/checkout/advance",
            json!({"reason": "x"}),
            501,
            "not_supported",
        ),
        (
            "/api/v1/rollouts/checkout/explode",
            json!({"reason": "x"}),
            404,
            "not_found",
        ),
        ("/api/v1/nothing", json!({}), 404, "not_found"),
    ] {
        let answer = proxy.post(target, &body);
        assert_eq!(
            (answer.status(), answer.json()["error"]["code"].as_str()),
            (status, Some(code)),
            "{target} {body}: {}",
            answer.text()
        );
    }
    assert_eq!(
        proxy
            .admin_ask("DELETE", "/api/v1/rollouts", &[], b"")
            .status(),
        405
    );
    assert_eq!(
        (
            proxy.rollout()["desired_percent"].as_f64(),
            proxy.rollout()["phase"].as_str()
        ),
        (Some(5.0), Some("holding"))
    );
}

#[test]
fn explain_shows_each_step_and_agrees_with_what_happens() {
    let proxy = Proxy::start(&rollout(
        "checkout",
        "50",
        "always_new = [\"qa-1\"]\nmatch = { path = \"/shop\" }",
    ));
    for user in ["qa-1", "user-1", "user-2", "user-3"] {
        let explained = proxy
            .admin_ask(
                "GET",
                &format!("/api/v1/explain?user={user}&path=/shop/1"),
                &[],
                b"",
            )
            .json();
        assert_eq!(
            explained["side"],
            proxy.get("/shop/1", &[("x-user-id", user)]).side(),
            "{explained}"
        );
        let by_header = proxy
            .admin_ask(
                "GET",
                &format!("/api/v1/explain?path=/shop/1&header=x-user-id:%20{user}"),
                &[],
                b"",
            )
            .json();
        assert_eq!(
            (&by_header["side"], &by_header["key_source"]),
            (&explained["side"], &json!("header:x-user-id"))
        );
    }
    let none = proxy
        .admin_ask("GET", "/api/v1/explain?user=u&path=/", &[], b"")
        .json();
    assert_eq!(
        (&none["rollout"], &none["backend"]),
        (&json!(null), &json!("legacy"))
    );
}

#[test]
fn metrics_exist_from_the_start_and_agree_with_the_status() {
    let proxy = Proxy::start(&rollout(
        "checkout",
        "100",
        "[rollout.guard]\nlatency = { p95 = \"123ms\" }\n",
    ));
    let text = proxy.admin_ask("GET", "/metrics", &[], b"").text();
    for line in [
        "cutover_requests_total{rollout=\"checkout\",backend=\"new\",code_class=\"5xx\"} 0",
        "cutover_failures_total{rollout=\"checkout\",backend=\"legacy\",kind=\"connect\"} 0",
        "cutover_request_duration_seconds_bucket{rollout=\"checkout\",backend=\"new\",le=\"0.123\"\
         } 0",
        "cutover_rollbacks_total{rollout=\"checkout\",rule=\"manual\"} 0",
        "cutover_split_ratio{rollout=\"checkout\",kind=\"effective\"} 1",
        "cutover_phase{rollout=\"checkout\",phase=\"holding\"} 1",
        "cutover_latency_seconds{rollout=\"checkout\",backend=\"new\",quantile=\"0.99\"} NaN",
        "cutover_latch_durable 1",
        "cutover_config_last_reload_successful 1",
        "cutover_log_dropped_total 0",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} is missing in\n{text}"
        );
    }
    assert!(text.contains("process_cpu_seconds_total"), "{text}");
    // Certificate metrics exist only if there are certificates.
    let of_certificates =
        |name: &cutover::telemetry::metrics::names::Name| name.labels.contains(&"certificate");
    for name in cutover::telemetry::metrics::names::ALL
        .iter()
        .filter(|name| !of_certificates(name))
    {
        assert!(
            text.contains(&format!("# TYPE {} {}\n", name.name, name.kind)),
            "{} is not exported",
            name.name
        );
    }
    let series = text.lines().filter(|line| !line.starts_with('#')).count();
    let mut client = proxy.client();
    for user in 0..300 {
        client
            .ask(
                "GET",
                &format!("/path/{user}"),
                &[("x-user-id", &format!("user-{user}"))],
                b"",
            )
            .unwrap();
    }
    until("300 answers in the metrics", || {
        (proxy.metric(
            "cutover_requests_total{rollout=\"checkout\",backend=\"new\",code_class=\"2xx\"}",
        ) == Some(300.0))
        .then_some(())
    });
    until("the status to agree", || {
        (proxy.rollout()["new"]["requests"] == 300).then_some(())
    });
    let after = proxy.admin_ask("GET", "/metrics", &[], b"").text();
    assert_eq!(
        after.lines().filter(|line| !line.starts_with('#')).count(),
        series,
        "users and paths add no series"
    );
    assert_eq!(
        proxy
            .metric("cutover_request_duration_seconds_count{rollout=\"checkout\",backend=\"new\"}"),
        Some(300.0)
    );
}
