//! The request path: which side users are sent to, and what backends and clients see.

use std::io::{Read, Write};
use std::net::TcpStream;

use cutover_core::{Percent, Salt};

use crate::harness::{Behaviour, Client, PATIENCE, Proxy, rollout, until};

fn expected(salt: &str, user: &str, percent: &str) -> &'static str {
    let percent = Percent::parse(percent).unwrap();
    if Salt::new(salt).bucket(user.as_bytes()).is_within(percent) {
        "new"
    } else {
        "legacy"
    }
}

#[test]
fn users_are_on_the_side_of_their_hash_and_a_raise_moves_none_back() {
    let proxy = Proxy::start(&rollout("checkout", "0", ""));
    let users: Vec<String> = (0..300).map(|user| format!("user-{user}")).collect();
    let mut on_new: Vec<&String> = Vec::new();
    for percent in ["1", "5", "25", "50", "99.9", "100"] {
        proxy.save(&rollout("checkout", percent, ""));
        let mut client = proxy.client();
        for user in &users {
            let answer = client.ask("GET", "/", &[("x-user-id", user)], b"").unwrap();
            assert_eq!(
                answer.side(),
                expected("checkout", user, percent),
                "{user} at {percent} %"
            );
        }
        let now: Vec<&String> = users
            .iter()
            .filter(|user| expected("checkout", user, percent) == "new")
            .collect();
        assert!(on_new.iter().all(|user| now.contains(user)));
        on_new = now;
    }
    assert_eq!(on_new.len(), users.len());
}

#[test]
fn all_key_sources_lead_to_the_same_side() {
    let keys =
        "[\"header:x-user-id\", \"cookie:uid\", \"jwt:sub\", \"query:user\", \"path:2\", \"ip\"]";
    let block = rollout("checkout", "50", "").replace("[\"header:x-user-id\"]", keys);
    let proxy = Proxy::start(&block);
    for user in (0..20).map(|user| format!("user-{user}")) {
        let side = expected("checkout", &user, "50");
        let token = {
            use base64::Engine;
            let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD
                .encode(format!("{{\"sub\":\"{user}\"}}"));
            format!("Bearer eyJhbGciOiJub25lIn0.{claims}.")
        };
        assert_eq!(proxy.get("/a/b", &[("x-user-id", &user)]).side(), side);
        assert_eq!(
            proxy
                .get("/a/b", &[("cookie", &format!("theme=dark; uid={user}"))])
                .side(),
            side
        );
        assert_eq!(proxy.get("/a/b", &[("authorization", &token)]).side(), side);
        assert_eq!(proxy.get(&format!("/a/b?user={user}"), &[]).side(), side);
        assert_eq!(proxy.get(&format!("/users/{user}"), &[]).side(), side);
    }
    assert_eq!(
        proxy.get("/", &[]).side(),
        expected("checkout", "127.0.0.1", "50")
    );
}

#[test]
fn connections_are_kept_on_both_sides() {
    let proxy = Proxy::start(&rollout("checkout", "50", ""));
    let mut client = proxy.client();
    for user in 0..200 {
        let answer = client
            .ask("GET", "/", &[("x-user-id", &format!("user-{user}"))], b"")
            .expect("the connection is kept");
        assert_eq!(answer.status(), 200);
    }
    let connections = (proxy.legacy.connections(), proxy.new.connections());
    assert!(
        connections.0 <= 2 && connections.1 <= 2,
        "200 requests opened {connections:?} connections"
    );
}

#[test]
fn forged_headers_are_removed_and_true_ones_are_added() {
    let proxy = Proxy::start(&rollout("checkout", "100", ""));
    let forged = [
        ("x-user-id", "ana"),
        ("x-cutover-backend", "forged"),
        ("x-cutover-rollout", "forged"),
        ("x-cutover-bucket", "forged"),
        ("x-cutover-reason", "forged"),
        ("x-cutover-override", "new forged"),
        ("x-forwarded-for", "6.6.6.6"),
        ("x-forwarded-proto", "forged"),
        ("x-forwarded-host", "forged"),
        ("x-request-id", "forged"),
        (
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
    ];
    proxy.get("/x?y=1", &forged);
    let head = proxy.new.last_head().to_lowercase();
    assert!(
        !head.contains("forged") && !head.contains("6.6.6.6"),
        "{head}"
    );
    let bucket = Salt::new("checkout").bucket(b"ana");
    for line in [
        "get /x?y=1 http/1.1",
        "host: shop.example",
        "x-cutover-backend: new",
        "x-cutover-rollout: checkout",
        &format!("x-cutover-bucket: {bucket}"),
        "x-cutover-reason: bucket",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-proto: http",
        "x-forwarded-host: shop.example",
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ] {
        assert!(
            head.contains(&format!("{line}\r\n")),
            "{line} is missing in {head}"
        );
    }
}

#[test]
fn forwarding_headers_of_a_trusted_proxy_are_kept_and_extended() {
    let proxy = Proxy::start_with(
        "[listen]\nhttp = [\"127.0.0.1:0\"]\ntrusted_proxies = [\"127.0.0.0/8\"]\n",
        &rollout("checkout", "100", "").replace("header:x-user-id", "ip"),
    );
    proxy.get(
        "/",
        &[
            ("x-forwarded-for", "198.51.100.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "www.shop.example"),
            ("x-request-id", "abc"),
        ],
    );
    let head = proxy.new.last_head().to_lowercase();
    let bucket = Salt::new("checkout").bucket(b"198.51.100.1");
    for line in [
        "x-forwarded-for: 198.51.100.1, 127.0.0.1",
        "x-forwarded-proto: https",
        "x-forwarded-host: www.shop.example",
        "x-request-id: abc",
        &format!("x-cutover-bucket: {bucket}"),
    ] {
        assert!(
            head.contains(&format!("{line}\r\n")),
            "{line} is missing in {head}"
        );
    }
}

#[test]
fn rollouts_match_by_host_path_and_method_and_the_rest_is_default() {
    let blocks = [
        rollout("api", "100", "match = { host = \"api.example\" }"),
        rollout(
            "cart",
            "100",
            "match = { path = \"/cart\", methods = [\"POST\"] }",
        ),
        rollout("search", "0", "match = { path = \"/search\" }"),
    ];
    let proxy = Proxy::start(&blocks.join("\n"));
    let ask = |method: &str, host: &str, path: &str| {
        let answer = Client::connect(proxy.http)
            .ask(method, path, &[("host", host), ("x-user-id", "u")], b"")
            .unwrap();
        let backend = if answer.side() == "new" {
            &proxy.new
        } else {
            &proxy.legacy
        };
        let head = backend.last_head().to_lowercase();
        head.lines()
            .find_map(|line| line.strip_prefix("x-cutover-rollout: ").map(str::to_owned))
            .unwrap_or_else(|| format!("none, on {}", answer.side()))
    };
    assert_eq!(ask("GET", "api.example:8080", "/anything"), "api");
    assert_eq!(ask("POST", "shop.example", "/cart/1"), "cart");
    assert_eq!(ask("GET", "shop.example", "/cart/1"), "none, on legacy");
    assert_eq!(ask("GET", "shop.example", "//search/../search"), "search");
    assert_eq!(ask("GET", "shop.example", "/searching"), "none, on legacy");
}

#[test]
fn a_minted_cookie_keeps_an_anonymous_user_on_one_side() {
    let proxy = Proxy::start(&rollout("checkout", "50", "anonymous = \"cookie\""));
    let mut sides = std::collections::BTreeSet::new();
    for _ in 0..30 {
        let first = proxy.get("/", &[]);
        let cookie = first.header("set-cookie").expect("a cookie").to_owned();
        assert!(
            cookie.starts_with("cutover_id=")
                && cookie.ends_with("; HttpOnly; SameSite=Lax; Path=/; Max-Age=31536000"),
            "{cookie}"
        );
        assert_eq!(
            first.header("cache-control"),
            Some("private"),
            "no shared cache may hand it to others"
        );
        let pair = cookie.split(';').next().unwrap().to_owned();
        let again = proxy.get("/", &[("cookie", &pair)]);
        assert_eq!(again.side(), first.side());
        assert_eq!(
            (again.header("set-cookie"), again.header("cache-control")),
            (None, None)
        );
        sides.insert(first.side().to_owned());
    }
    assert_eq!(
        sides.len(),
        2,
        "half of thirty newcomers on each side, near enough"
    );
}

#[test]
fn each_backend_failure_has_its_own_status_and_message() {
    let proxy = Proxy::start_with(
        "",
        &rollout(
            "checkout",
            "100",
            "failover = \"off\"\n[rollout.guard]\nmode = \"off\"\n",
        ),
    );
    for (behaviour, status, code) in [
        (Behaviour::Close, 502, "backend_failed"),
        (Behaviour::Garbage, 502, "backend_failed"),
        (Behaviour::Hang, 504, "backend_timeout"),
    ] {
        proxy.new.behave(behaviour);
        let answer = proxy.get("/", &[("x-user-id", "u")]);
        assert_eq!(
            (answer.status(), answer.json()["error"]["code"].as_str()),
            (status, Some(code)),
            "{behaviour:?}"
        );
        assert!(!answer.text().contains("127.0.0.1"), "{}", answer.text());
        let page = proxy.get("/", &[("x-user-id", "u"), ("accept", "text/html")]);
        assert!(
            page.text().starts_with("<!doctype html>"),
            "{}",
            page.text()
        );
    }
    proxy.new.behave(Behaviour::Truncate);
    let cut = proxy.get("/", &[("x-user-id", "u")]);
    assert_eq!(
        (cut.status(), cut.whole),
        (200, false),
        "a cut body must look cut"
    );
}

#[test]
fn a_refused_connection_is_502_and_a_missing_name_is_503() {
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let tables = format!(
        "[backend.new]\nservers = [\"{free}\"]\n[backend.gone]\nservers = \
         [\"no-such-host.invalid:80\"]\n[backend.lost]\nservers = [\"no-such-host.invalid:81\"]\n"
    );
    let blocks = [
        rollout(
            "refused",
            "100",
            "failover = \"off\"\nmatch = { path = \"/refused\" }",
        ),
        rollout(
            "spill",
            "100",
            "match = { path = \"/spill\" }\nnew = \"gone\"",
        ),
        rollout(
            "both",
            "100",
            "match = { path = \"/both\" }\nnew = \"gone\"\nlegacy = \"lost\"",
        ),
    ];
    let proxy = Proxy::start_with(&tables, &blocks.join("\n"));
    assert_eq!(proxy.get("/refused", &[("x-user-id", "u")]).status(), 502);
    let spilled = proxy.get("/spill", &[("x-user-id", "u")]);
    assert_eq!((spilled.status(), spilled.side()), (200, "legacy"));
    assert!(
        proxy
            .legacy
            .last_head()
            .to_lowercase()
            .contains("x-cutover-reason: health")
    );
    let anonymous = proxy.get("/both", &[("x-user-id", "u")]);
    assert_eq!(
        (
            anonymous.status(),
            anonymous.json()["error"]["code"].as_str()
        ),
        (503, Some("no_server"))
    );
    assert_eq!(
        proxy.metric("cutover_backend_healthy_servers{backend=\"gone\"}"),
        Some(0.0)
    );
    assert_eq!(
        proxy.metric("cutover_backend_servers{backend=\"gone\"}"),
        Some(1.0)
    );
}

#[test]
fn bodies_pass_whole_and_too_large_ones_are_refused_in_any_framing() {
    let proxy = Proxy::start_with(
        "[listen]\nhttp = [\"127.0.0.1:0\"]\nmax_body = \"256KiB\"\n",
        &rollout("checkout", "100", ""),
    );
    for size in [1, 1_000, 65_536, 256 * 1024] {
        let answer = proxy
            .client()
            .ask("POST", "/", &[("x-user-id", "u")], &vec![b'x'; size])
            .unwrap();
        assert_eq!(answer.text(), format!("new {size}"));
    }
    let announced = proxy
        .client()
        .ask(
            "POST",
            "/",
            &[("x-user-id", "u"), ("content-length", "262145")],
            b"",
        )
        .unwrap();
    assert_eq!(
        (
            announced.status(),
            announced.json()["error"]["code"].as_str()
        ),
        (413, Some("body_too_large"))
    );
    let mut client = proxy.client();
    client
        .send(b"POST / HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\ntransfer-encoding: chunked\r\n\r\n");
    let chunk = [b"10000\r\n".to_vec(), vec![b'x'; 65_536], b"\r\n".to_vec()].concat();
    for _ in 0..5 {
        client.send(&chunk);
    }
    let counted = client.answer(false).expect("an answer");
    assert_eq!(counted.status(), 413, "{}", counted.text());
    assert_eq!(
        proxy.rollout()["new"]["failed"],
        0,
        "a client's oversized body is no backend's failure"
    );
}

#[test]
fn ambiguous_requests_are_refused() {
    let proxy = Proxy::start(&rollout("checkout", "50", ""));
    for (what, request) in [
        (
            "two users",
            "GET / HTTP/1.1\r\nhost: h\r\nx-user-id: a\r\nx-user-id: b\r\n\r\n",
        ),
        (
            "nominated key",
            "GET / HTTP/1.1\r\nhost: h\r\nx-user-id: a\r\nconnection: close, X-User-Id\r\n\r\n",
        ),
        ("no host", "GET / HTTP/1.1\r\nx-user-id: a\r\n\r\n"),
        (
            "two lengths",
            "POST / HTTP/1.1\r\nhost: h\r\nx-user-id: a\r\ncontent-length: 1\r\ncontent-length: \
             2\r\n\r\nx",
        ),
    ] {
        let mut client = proxy.client();
        client.send(request.as_bytes());
        assert_eq!(
            client.answer(false).map(|answer| answer.status()),
            Some(400),
            "{what}"
        );
    }
    let mut client = proxy.client();
    client.send(
        format!(
            "GET / HTTP/1.1\r\nhost: h\r\nx-padding: {}\r\n\r\n",
            "p".repeat(70_000)
        )
        .as_bytes(),
    );
    assert_eq!(
        client.answer(false).map(|answer| answer.status()),
        Some(431)
    );
    assert_eq!((proxy.legacy.requests(), proxy.new.requests()), (0, 0));
}

#[test]
fn a_client_that_disconnects_is_no_failure_of_the_backend() {
    let proxy = Proxy::start(&rollout("checkout", "100", ""));
    proxy.new.behave(Behaviour::Hang);
    for _ in 0..3 {
        let before = proxy.new.requests();
        let mut client = proxy.client();
        client.send(b"GET / HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\n\r\n");
        until("the request to reach new", || {
            (proxy.new.requests() > before).then_some(())
        });
        drop(client);
    }
    until("the aborts to be counted", || {
        (proxy.rollout()["new"]["aborts"] == 3).then_some(())
    });
    let new = proxy.rollout()["new"].clone();
    assert_eq!(
        (new["failed"].as_u64(), new["in_flight"].as_u64()),
        (Some(0), Some(0)),
        "{new}"
    );
}

#[test]
fn head_and_empty_answers_keep_their_framing() {
    let proxy = Proxy::start(&rollout("checkout", "100", ""));
    let mut client = proxy.client();
    let head = client.ask("HEAD", "/", &[("x-user-id", "u")], b"").unwrap();
    assert_eq!((head.status(), head.side()), (200, "new"));
    proxy.new.behave(Behaviour::Answer(204));
    assert_eq!(
        client
            .ask("GET", "/", &[("x-user-id", "u")], b"")
            .unwrap()
            .status(),
        204
    );
    proxy.new.behave(Behaviour::Answer(404));
    assert_eq!(
        client
            .ask("GET", "/", &[("x-user-id", "u")], b"")
            .unwrap()
            .status(),
        404
    );
    until("the answers to be counted", || {
        (proxy.rollout()["new"]["client_errors"] == 1).then_some(())
    });
}

#[test]
fn the_decision_is_shown_to_clients_only_if_configured() {
    let proxy = Proxy::start(&rollout("checkout", "100", ""));
    assert_eq!(
        proxy
            .get("/", &[("x-user-id", "u")])
            .header("x-cutover-backend"),
        None
    );
    std::fs::write(
        proxy.file(),
        proxy.text_with(
            "[routing]\nexpose_decision = true\n",
            &rollout("checkout", "100", ""),
        ),
    )
    .unwrap();
    proxy.reload();
    let answer = proxy.get("/", &[("x-user-id", "u")]);
    assert_eq!(
        (
            answer.header("x-cutover-backend"),
            answer.header("x-cutover-rollout")
        ),
        (Some("new"), Some("checkout"))
    );
}

#[test]
fn connections_above_the_limit_are_closed_and_counted() {
    let proxy = Proxy::start_with(
        "[listen]\nhttp = [\"127.0.0.1:0\"]\nmax_connections = 3\n",
        &rollout("checkout", "0", ""),
    );
    let mut kept: Vec<Client> = (0..3).map(|_| proxy.client()).collect();
    for client in &mut kept {
        assert_eq!(
            client
                .ask("GET", "/", &[("x-user-id", "u")], b"")
                .unwrap()
                .status(),
            200
        );
    }
    let mut one_more = proxy.client();
    assert!(
        one_more
            .ask("GET", "/", &[("x-user-id", "u")], b"")
            .is_none(),
        "the fourth connection is closed"
    );
    assert_eq!(
        proxy.metric("cutover_connections{state=\"open\"}"),
        Some(3.0)
    );
    assert!(proxy.metric("cutover_connections_refused_total") >= Some(1.0));
    drop(kept);
    until("room again", || {
        proxy
            .client()
            .ask("GET", "/", &[("x-user-id", "u")], b"")
            .map(drop)
    });
}

#[test]
fn a_slow_head_is_cut_off_at_its_deadline_for_any_size_of_read() {
    let proxy = Proxy::start_with(
        "[listen]\nhttp = [\"127.0.0.1:0\"]\nheader_timeout = \"400ms\"\nkeepalive_timeout = \
         \"1s\"\n",
        &rollout("checkout", "0", ""),
    );
    let mut dripping = proxy.client();
    dripping.send(b"GET / HTTP/1.1\r\nhost: h\r\n");
    // A byte at intervals keeps every single read short; only the whole head is late.
    until("the connection to be closed", || {
        (!dripping.drip(b"x")).then_some(())
    });
    let mut silent = proxy.client();
    assert!(
        silent.answer(false).is_none(),
        "a client that says nothing is let go"
    );
    let mut kept = proxy.client();
    assert_eq!(
        kept.ask("GET", "/", &[("x-user-id", "u")], b"")
            .unwrap()
            .status(),
        200
    );
    assert!(
        kept.answer(false).is_none(),
        "an idle connection is let go after its keepalive"
    );
    until("all connections to be gone", || {
        (proxy.metric("cutover_connections{state=\"open\"}") == Some(0.0)).then_some(())
    });
}

#[test]
fn a_request_that_may_have_had_effects_is_sent_once() {
    let proxy = Proxy::start(&rollout(
        "checkout",
        "100",
        "[rollout.guard]\nmode = \"off\"\n",
    ));
    for (method, status, sent) in [
        ("GET", 200, 2),
        ("HEAD", 200, 2),
        ("OPTIONS", 200, 2),
        ("POST", 502, 1),
        ("PUT", 502, 1),
        ("DELETE", 502, 1),
    ] {
        // The backend will close the kept connection at its next request, without a byte of an
        // answer.
        proxy.new.behave(Behaviour::CloseKept);
        let mut client = proxy.client();
        assert_eq!(
            client
                .ask("GET", "/first", &[("x-user-id", "u")], b"")
                .unwrap()
                .status(),
            200
        );
        let before = proxy.new.requests();
        let answer = client
            .ask(method, "/second", &[("x-user-id", "u")], b"")
            .unwrap();
        assert_eq!(
            (answer.status(), proxy.new.requests() - before),
            (status, sent),
            "{method}"
        );
        proxy.new.behave(Behaviour::Close);
        // Every kept connection is used up, so that the next round begins with a fresh one.
        proxy.get("/", &[("x-user-id", "u")]);
    }
}

#[test]
fn a_dead_server_among_several_costs_an_attempt_and_no_request() {
    let dead = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let proxy = Proxy::start(&rollout("checkout", "0", ""));
    let text = proxy.text().replace(
        &format!("servers = [\"{}\"]", proxy.legacy.address),
        &format!("servers = [\"{dead}\", \"{}\"]", proxy.legacy.address),
    );
    std::fs::write(proxy.file(), text).unwrap();
    proxy.reload();
    for _ in 0..20 {
        assert_eq!(
            proxy
                .client()
                .ask("POST", "/", &[("x-user-id", "u")], b"once")
                .unwrap()
                .status(),
            200
        );
    }
    assert_eq!(proxy.legacy.requests(), 20);
    assert_eq!(proxy.rollout()["legacy"]["failed"], 0);
}

#[test]
fn an_http_1_0_answer_is_relayed_in_http_1_1_with_framed_body() {
    let proxy = Proxy::start(&rollout("checkout", "100", ""));
    proxy.new.behave(Behaviour::Http10);
    let mut client = proxy.client();
    for _ in 0..2 {
        let answer = client
            .ask("GET", "/", &[("x-user-id", "u")], b"")
            .expect("the connection is kept");
        assert!(answer.start.starts_with("HTTP/1.1 200"), "{}", answer.head);
        assert_eq!(
            (answer.text().as_str(), answer.header("transfer-encoding")),
            ("until the end", Some("chunked")),
            "{}",
            answer.head
        );
    }
}

#[test]
fn an_http_1_0_client_gets_no_chunks() {
    let proxy = Proxy::start(&rollout("checkout", "100", ""));
    proxy.new.behave(Behaviour::Http10);
    for keep in ["", "connection: keep-alive\r\n"] {
        let mut client = TcpStream::connect(proxy.http).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client
            .write_all(format!("GET / HTTP/1.0\r\nx-user-id: u\r\n{keep}\r\n").as_bytes())
            .unwrap();
        let mut answer = String::new();
        client
            .read_to_string(&mut answer)
            .expect("the end of the body is the end of the connection");
        assert!(
            answer.ends_with("\r\n\r\nuntil the end")
                && !answer.to_ascii_lowercase().contains("transfer-encoding"),
            "{answer}"
        );
    }
}

#[test]
fn backends_get_header_names_and_targets_as_the_client_sent_them() {
    let proxy = Proxy::start(&rollout("checkout", "100", ""));
    let cases: [(&str, &[&str]); 5] = [
        (
            "GET /a%20b?c=%2F HTTP/1.1\r\nHost: h\r\nx-user-id: u\r\nx-custom: 1\r\n\r\n",
            &[
                "GET /a%20b?c=%2F HTTP/1.1",
                "Host: h",
                "x-user-id: u",
                "x-custom: 1",
            ],
        ),
        (
            "GET /x HTTP/1.1\r\nHost: h\r\nX-User-Id: u\r\nX-CuStOm: 1\r\nx-lower: 2\r\n\r\n",
            &[
                "GET /x HTTP/1.1",
                "X-User-Id: u",
                "X-CuStOm: 1",
                "x-lower: 2",
            ],
        ),
        (
            "GET /x?a=1&b=%zz HTTP/1.1\r\nHost: h\r\nx-user-id: u\r\nAccept: */*\r\n\r\n",
            &["GET /x?a=1&b=%zz HTTP/1.1", "Accept: */*"],
        ),
        (
            "OPTIONS * HTTP/1.1\r\nHost: h\r\nx-user-id: u\r\n\r\n",
            &["OPTIONS * HTTP/1.1"],
        ),
        (
            "POST /x HTTP/1.1\r\nHost: h\r\nx-user-id: u\r\nContent-Length: 2\r\nx-twice: \
             1\r\nx-twice: 2\r\n\r\nok",
            &[
                "POST /x HTTP/1.1",
                "Content-Length: 2",
                "x-twice: 1",
                "x-twice: 2",
            ],
        ),
    ];
    for (request, lines) in cases {
        let mut client = proxy.client();
        client.send(request.as_bytes());
        let answer = client.answer(false).expect("an answer");
        assert_eq!(answer.status(), 200, "{request}: {}", answer.text());
        let head = if answer.side() == "new" {
            proxy.new.last_head()
        } else {
            proxy.legacy.last_head()
        };
        for line in lines {
            assert!(
                head.lines().any(|found| found == *line),
                "{line} is missing in\n{head}"
            );
        }
        assert!(
            head.contains("x-cutover-backend: new\r\n") && head.contains("x-request-id: "),
            "{head}"
        );
    }
}
