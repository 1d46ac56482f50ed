//! The answers to valid requests in every form, and the reports about refused ones.

use std::fs;

use serde_json::Value;

use crate::harness::{Proxy, rollout, until};
use crate::raw::{Answer, AtAccept, Ending, RawBackend, RawClient, without_ours};

/// Starts a proxy in front of one raw backend, with an access log in a file.
fn proxy(backend: &RawBackend, log: &str) -> Proxy {
    let tables = format!(
        "[listen]\nhttp = [\"127.0.0.1:0\"]\nmax_body = \"1KiB\"\n[log]\nfile = \
         \"access.log\"\n{log}[backend.legacy]\nservers = [\"{0}\"]\n[backend.new]\nservers = \
         [\"{0}\"]\n",
        backend.address
    );
    Proxy::start_with(
        &tables,
        &rollout(
            "checkout",
            "100",
            "match = { path = \"/checkout\" }\n[rollout.guard]\nmode = \"off\"",
        ),
    )
}

fn lines(proxy: &Proxy) -> Vec<Value> {
    let text = fs::read_to_string(proxy.directory.path().join("access.log")).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

fn refused(proxy: &Proxy, reason: &str) -> f64 {
    proxy
        .metric(&format!(
            "cutover_requests_refused_total{{reason=\"{reason}\"}}"
        ))
        .unwrap()
}

fn ask(proxy: &Proxy, request: &[u8]) -> Answer {
    let mut client = RawClient::connect(proxy.http);
    client.send(request);
    client
        .answer(request.starts_with(b"HEAD"))
        .unwrap_or_else(|| panic!("no answer to {:?}", String::from_utf8_lossy(request)))
}

/// The refused requests, with status, reason, a part of the sentence, and the method and path of
/// the line.
const REFUSED: [(&str, u16, &str, &str, &str, &str); 16] = [
    (
        "GET /a b HTTP/1.1\r\nHost: h\r\n\r\n",
        400,
        "bad_target",
        "%20",
        "GET",
        "/a",
    ),
    (
        "GET /a\x0bb?secret=1 HTTP/1.1\r\nHost: h\r\n\r\n",
        400,
        "bad_target",
        "control character",
        "GET",
        "/a\u{b}b",
    ),
    (
        "GET /a%00b HTTP/1.1\r\nHost: h\r\n\r\n",
        400,
        "bad_target",
        "escaped NUL",
        "GET",
        "/a%00b",
    ),
    (
        "\x16\x03\x01",
        400,
        "bad_request_line",
        "METHOD TARGET HTTP/1.1",
        "-",
        "-",
    ),
    (
        "GET /v HTTP/3.0\r\nHost: h\r\n\r\n",
        400,
        "bad_version",
        "HTTP/1.1",
        "GET",
        "/v",
    ),
    (
        "GET /l HTTP/1.1\nHost: h\n\n",
        400,
        "bad_line_end",
        "line 1 ",
        "GET",
        "/l",
    ),
    (
        "GET /h HTTP/1.1\r\nHost: h\r\nX-A : 1\r\n\r\n",
        400,
        "bad_header",
        "line 3 of the request head: there is a space before the colon",
        "GET",
        "/h",
    ),
    (
        "GET /n HTTP/1.1\r\n\r\n",
        400,
        "missing_host",
        "no Host",
        "GET",
        "/n",
    ),
    (
        "GET /u HTTP/1.1\r\nHost: u@h\r\n\r\n",
        400,
        "bad_host",
        "name of a user",
        "GET",
        "/u",
    ),
    (
        "POST /f HTTP/1.1\r\nHost: h\r\nContent-Length: 1, 1\r\n\r\na",
        400,
        "bad_framing",
        "one `Content-Length`",
        "POST",
        "/f",
    ),
    (
        "POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\r\n",
        400,
        "bad_chunk",
        "hexadecimal",
        "POST",
        "/c",
    ),
    (
        "POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 1025\r\n\r\n",
        413,
        "body_too_large",
        "larger",
        "POST",
        "/b",
    ),
    (
        "GET /x HTTP/1.1\r\nHost: h\r\nConnection: x-forwarded-for\r\n\r\n",
        400,
        "bad_connection",
        "`Connection` may not name `x-forwarded-for`",
        "GET",
        "/x",
    ),
    (
        "GET /k HTTP/1.1\r\nHost: h\r\nConnection: x-user-id\r\n\r\n",
        400,
        "key_nominated",
        "`Connection` may not name",
        "GET",
        "/k",
    ),
    (
        "CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n",
        405,
        "method_not_allowed",
        "CONNECT",
        "CONNECT",
        "h:443",
    ),
    (
        "GET /checkout HTTP/1.1\r\nHost: h\r\nX-User-Id: a\r\nX-User-Id: b\r\n\r\n",
        400,
        "ambiguous_user",
        "more than once",
        "GET",
        "/checkout",
    ),
];

#[test]
fn a_refused_request_has_a_reason_a_line_and_a_count() {
    let backend = RawBackend::start();
    let proxy = proxy(&backend, "access = \"errors\"\n");
    for (request, status, reason, says, method, path) in REFUSED {
        let (before, mark) = (lines(&proxy).len(), refused(&proxy, reason));
        let answer = ask(&proxy, request.as_bytes());
        assert_eq!(
            (answer.status, answer.ending),
            (status, Ending::Whole),
            "{request:?}: {answer:?}"
        );
        let body: Value = serde_json::from_slice(&answer.body)
            .unwrap_or_else(|error| panic!("{request:?}: {error}: {answer:?}"));
        assert_eq!(
            (&body["error"]["code"], &body["error"]["status"]),
            (&reason.into(), &status.into()),
            "{request:?}"
        );
        let sentence = body["error"]["message"].as_str().unwrap().to_owned();
        assert!(sentence.contains(says), "{request:?}: {sentence}");
        assert_eq!(answer.header("connection"), Some("close"), "{request:?}");
        let line = until("the line", || lines(&proxy).get(before).cloned());
        assert_eq!(
            (&line["cutover.refused"], &line["error.message"]),
            (&reason.into(), &sentence.into()),
            "{line}"
        );
        assert_eq!(
            (
                &line["http.response.status_code"],
                &line["http.request.method"]
            ),
            (&status.into(), &method.into()),
            "{line}"
        );
        assert!(
            line["url.path"] == path || reason == "method_not_allowed",
            "{line}"
        );
        assert_eq!(line["client.address"], "127.0.0.1", "{line}");
        until("the count", || {
            (refused(&proxy, reason) == mark + 1.0).then_some(())
        });
    }
    assert!(
        !fs::read_to_string(proxy.directory.path().join("access.log"))
            .unwrap()
            .contains("secret")
    );
    assert_eq!(
        proxy.rollout()["new"]["failed"],
        0,
        "a client's mistake is no failure of a backend"
    );
    assert!(backend.since(&[]).is_empty(), "no backend saw any of them");
}

#[test]
fn a_refused_browser_gets_a_page_and_a_refused_head_no_body() {
    let backend = RawBackend::start();
    let proxy = proxy(&backend, "");
    let page = ask(
        &proxy,
        b"GET /a b HTTP/1.1\r\nHost: h\r\nAccept: text/html\r\n\r\n",
    );
    assert!(
        page.header("content-type")
            .is_some_and(|kind| kind.starts_with("text/html"))
            && page.text().contains("<h1>400 Bad Request</h1>"),
        "{page:?}"
    );
    let mut client = RawClient::connect(proxy.http);
    client.send(b"HEAD /a b HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(client.answer(true).map(|answer| answer.status), Some(400));
    assert!(client.is_closed(), "an answer to HEAD has no body");
}

#[test]
fn a_bad_chunk_after_good_ones_cuts_the_request_at_the_backend() {
    let backend = RawBackend::start();
    let proxy = proxy(&backend, "");
    let head = "POST /p HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (number, bad) in [
        "\r\n",
        "\n",
        "0x5\r\n",
        "5;a\nhello\r\n",
        "-1\r\n",
        " 5\r\n",
        "fffffffffffffffff\r\n",
        "5\r\nhello!\r\n",
        &format!("5;{}\r\n", "x".repeat(17 << 10)),
    ]
    .iter()
    .enumerate()
    {
        let mark = backend.mark();
        let mut client = RawClient::connect(proxy.http);
        client.send(format!("{head}5\r\nhello\r\n").as_bytes());
        // The backend has received the good chunk before the bad one is sent.
        let seen = || {
            backend
                .since(&mark)
                .iter()
                .map(|bytes| without_ours(bytes))
                .collect::<String>()
        };
        until("the good chunk at the backend", || {
            seen().ends_with("5\r\nhello\r\n").then_some(())
        });
        let ended = backend.ended();
        client.send(format!("{bad}0\r\n\r\n").as_bytes());
        let answer = client.answer(false).unwrap();
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        assert_eq!(
            (answer.status, &body["error"]["code"]),
            (400, &"bad_chunk".into()),
            "{bad:?}: {answer:?}"
        );
        assert!(client.is_closed(), "{bad:?}");
        until("the end of the backend's connection", || {
            (backend.ended() > ended).then_some(())
        });
        assert!(
            !seen().contains("0\r\n\r\n"),
            "{bad:?}: no backend sees a whole body: {}",
            seen()
        );
        until("the count", || {
            (refused(&proxy, "bad_chunk") == (number + 1) as f64).then_some(())
        });
    }
    assert_eq!(
        (
            &proxy.status()["rollouts"][0]["legacy"]["failed"],
            &proxy.rollout()["new"]["failed"]
        ),
        (&0.into(), &0.into())
    );
}

/// Returns the targets of the requests that a backend received, in order of arrival.
fn targets(backend: &RawBackend, mark: &[usize]) -> Vec<String> {
    let all = backend.since(mark).concat();
    let text = String::from_utf8_lossy(&all).into_owned();
    text.lines()
        .filter(|line| line.ends_with(" HTTP/1.1"))
        .map(|line| line.split(' ').nth(1).unwrap().to_owned())
        .collect()
}

#[test]
fn pipelined_requests_of_any_form_are_answered_in_order() {
    let backend = RawBackend::start();
    let proxy = proxy(&backend, "");
    let get = |path: &str| {
        (
            format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n"),
            format!("GET {path} rollout=none body=0"),
        )
    };
    let odd = |path: &str| {
        (
            format!("GET {path} HTTP/1.1\r\nHost: h\r\nTE: trailers\r\n\r\n"),
            format!("GET {path} rollout=none body=0"),
        )
    };
    let post = |path: &str| {
        (
            format!("POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"),
            format!("POST {path} rollout=none body=5"),
        )
    };
    let chunked = |path: &str| {
        let body = format!(
            "3;x=y\r\nhel\r\n3e8\r\n{}\r\n0\r\nX-Trailer: 1\r\n\r\n",
            "o".repeat(1000)
        );
        (
            format!("PUT {path} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{body}"),
            format!("PUT {path} rollout=none body=1003"),
        )
    };
    let upgrade = |path: &str| {
        (
            format!(
                "GET {path} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: \
                 websocket\r\n\r\n"
            ),
            format!("GET {path} rollout=none body=0"),
        )
    };
    type Form<'a> = &'a dyn Fn(&str) -> (String, String);
    let forms: [Form<'_>; 5] = [&get, &odd, &post, &chunked, &upgrade];
    let mut all = Vec::new();
    for first in forms {
        for second in forms {
            all.push([first("/1"), second("/2"), get("/3"), odd("/4")].to_vec());
        }
    }
    for (number, requests) in all.into_iter().enumerate() {
        let bytes: String = requests
            .iter()
            .map(|(request, _)| request.as_str())
            .collect();
        for step in [bytes.len(), 7, 1 + bytes.len() / 3] {
            let mut client = RawClient::connect(proxy.http);
            let mark = backend.mark();
            for part in bytes.as_bytes().chunks(step) {
                client.send(part);
            }
            for (request, expected) in &requests {
                let answer = client.answer(false).unwrap_or_else(|| {
                    panic!(
                        "round {number}: no answer to {request:?} of {bytes:?} in steps of {step}"
                    )
                });
                assert_eq!(
                    (
                        answer.status,
                        answer.text().as_str(),
                        answer.header("connection") == Some("close")
                    ),
                    (200, expected.as_str(), false),
                    "round {number}: {request:?}"
                );
            }
            // The last request on this connection shows that it was kept.
            client.send(b"GET /last HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
            assert_eq!(
                client.answer(false).map(|answer| answer.text()),
                Some("GET /last rollout=none body=0".to_owned()),
                "round {number}"
            );
            assert_eq!(
                targets(&backend, &mark).len(),
                5,
                "round {number}: each request once"
            );
        }
    }
}

#[test]
fn the_last_answer_before_an_unserved_request_announces_the_close() {
    let backend = RawBackend::start();
    let proxy = proxy(&backend, "");
    for first in [
        "GET /1 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
        "GET /1 HTTP/1.0\r\nHost: h\r\n\r\n",
        "POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: \
         chunked\r\n\r\n0\r\n\r\n",
        "GET /1 HTTP/1.1\r\n\r\n",
        "GET /1 2 HTTP/1.1\r\nHost: h\r\n\r\n",
    ] {
        let mut client = RawClient::connect(proxy.http);
        client.send(format!("{first}GET /2 HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes());
        let answer = client.answer(false).unwrap();
        assert!(client.is_closed(), "{first:?}");
        assert!(
            answer
                .header("connection")
                .is_some_and(|value| value.eq_ignore_ascii_case("close")),
            "{first:?}: {answer:?}"
        );
    }
}

#[test]
fn an_http_1_0_request_without_host_reaches_a_backend_with_one() {
    let backend = RawBackend::start();
    let proxy = proxy(&backend, "");
    for (method, path) in [
        ("OPTIONS", "/"),
        ("GET", "/health"),
        ("HEAD", "/health"),
        ("GET", "/checkout"),
    ] {
        let mark = backend.mark();
        let answer = ask(
            &proxy,
            format!("{method} {path} HTTP/1.0\r\nX-User-Id: u\r\n\r\n").as_bytes(),
        );
        assert_eq!(answer.status, 200, "{method} {path}");
        let seen = String::from_utf8_lossy(&backend.since(&mark).concat()).to_lowercase();
        assert_eq!(seen.matches("\r\nhost: ").count(), 1, "{seen}");
        assert!(
            seen.contains(&format!("\r\nhost: {}\r\n", backend.address))
                && !seen.contains("x-forwarded-host"),
            "{seen}"
        );
    }
}

#[test]
fn a_client_that_disconnects_with_unanswered_requests_is_noticed() {
    let backend = RawBackend::start();
    let proxy = proxy(&backend, "");
    backend.behave(AtAccept::Read, |talk, _| talk.outlast());
    let mut client = RawClient::connect(proxy.http);
    client.send(
        b"GET /evil HTTP/1.1\r\nHost: h\r\nTE: trailers\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\n\r\n",
    );
    until("the request at the backend", || {
        (!backend.take_evil().is_empty()).then_some(())
    });
    drop(client);
    let line = until("the line", || {
        lines(&proxy)
            .into_iter()
            .find(|line| line["url.path"] == "/evil")
    });
    assert_eq!(line["error.kind"], "aborted", "{line}");
}

#[test]
fn a_host_with_a_trailing_dot_matches_and_is_forwarded_unchanged() {
    let backend = RawBackend::start();
    let many: String = (0..6)
        .map(|number| {
            rollout(
                &format!("other-{number}"),
                "0",
                &format!("match = {{ host = \"other-{number}.example\" }}\n"),
            )
        })
        .collect();
    for others in [String::new(), many] {
        let shop = "match = { host = \"shop.example\" }\n[rollout.guard]\nmode = \"off\"\n";
        let tables = format!(
            "[listen]\nhttp = [\"127.0.0.1:0\"]\nh2c = true\n[backend.legacy]\nservers = \
             [\"{0}\"]\n[backend.new]\nservers = [\"{0}\"]\n",
            backend.address
        );
        let proxy = Proxy::start_with(&tables, &(others + &rollout("shop", "100", shop)));
        for (host, found) in [
            ("shop.example", "shop"),
            ("shop.example.", "shop"),
            ("Shop.Example.:8080", "shop"),
            ("shop.example:8080", "shop"),
            ("shop.example.evil", "none"),
            ("other.example.", "none"),
        ] {
            let mark = backend.mark();
            // The second head is not served by the lane.
            for more in ["", "TE: trailers\r\n"] {
                let answer = ask(
                    &proxy,
                    format!("GET /g HTTP/1.1\r\nHost: {host}\r\nX-User-Id: u\r\n{more}\r\n")
                        .as_bytes(),
                );
                assert_eq!(
                    answer.text(),
                    format!("GET /g rollout={found} body=0"),
                    "{host}"
                );
            }
            let seen = String::from_utf8_lossy(&backend.since(&mark).concat()).into_owned();
            assert_eq!(
                seen.matches(&format!("Host: {host}\r\n")).count(),
                2,
                "{seen}"
            );
            let explained = proxy
                .admin_ask(
                    "GET",
                    &format!("/api/v1/explain?user=u&path=/g&host={host}"),
                    &[],
                    b"",
                )
                .json();
            assert_eq!(
                explained["rollout"],
                if found == "none" {
                    Value::Null
                } else {
                    found.into()
                },
                "{host}: {explained}"
            );
            crate::http2::run(async {
                let mut client = crate::http2::connect(proxy.http).await;
                let request = http::Request::builder()
                    .uri(format!("http://{host}/h2"))
                    .header("x-user-id", "u")
                    .body(())
                    .unwrap();
                let answer = client.send_request(request, true).unwrap().0.await.unwrap();
                assert_eq!(
                    crate::http2::body_of(answer).await.1,
                    format!("GET /h2 rollout={found} body=0"),
                    "{host}"
                );
            });
        }
        for host in ["shop.example..", "."] {
            assert_eq!(
                ask(
                    &proxy,
                    format!("GET /g HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()
                )
                .status,
                400,
                "{host}"
            );
        }
    }
}

#[test]
fn a_key_of_many_kib_keeps_one_side_and_is_one_user_in_the_log() {
    let tables = "[listen]\nhttp = [\"127.0.0.1:0\"]\n[log]\nfile = \"access.log\"\n";
    let proxy = Proxy::start_with(
        tables,
        &rollout("checkout", "50", "").replace(
            "\"header:x-user-id\"",
            "\"header:x-user-id\", \"cookie:session\"",
        ),
    );
    let mut sides = std::collections::BTreeSet::new();
    for user in 0..12 {
        // The keys differ only in their last byte.
        let key = "s".repeat(if user % 2 == 0 { 4_000 } else { 30_000 }) + &format!("{user:02}");
        let cookie = format!("theme=dark; session={key}");
        let side = |name: &str, value: &str| {
            let answer = proxy.get(&format!("/{user}"), &[(name, value)]);
            assert_eq!(answer.status(), 200, "{user}");
            answer.side().to_owned()
        };
        let all = [
            side("cookie", &cookie),
            side("cookie", &cookie),
            side("x-user-id", &key),
        ];
        assert!(all.iter().all(|one| *one == all[0]), "{user}: {all:?}");
        sides.insert(all[0].clone());
        let of_user = until("the lines", || {
            let lines: Vec<Value> = lines(&proxy)
                .into_iter()
                .filter(|line| line["url.path"] == format!("/{user}"))
                .collect();
            (lines.len() == 3).then_some(lines)
        });
        assert!(
            of_user
                .iter()
                .all(|line| line["user.hash"] == of_user[0]["user.hash"]
                    && line["user.hash"].is_string()),
            "{of_user:?}"
        );
    }
    assert_eq!(sides.len(), 2, "both sides have users");
}

#[test]
fn a_user_with_an_encoded_cookie_and_a_plain_header_keeps_one_side() {
    let chain = |keys: &str| rollout("checkout", "50", "").replace("\"header:x-user-id\"", keys);
    let proxy = Proxy::start(&chain(
        "\"header:x-user-id|decode|lower\", \"cookie:uid|decode|lower\"",
    ));
    let forms: Vec<(String, String)> = (0..40)
        .map(|user| {
            (
                format!("Ana+{user}@example.com"),
                format!("ana%2B{user}%40example.com"),
            )
        })
        .collect();
    let moved = |proxy: &Proxy| {
        let side = |name: &str, value: &str| proxy.get("/", &[(name, value)]).side().to_owned();
        forms
            .iter()
            .filter(|(header, cookie)| {
                side("x-user-id", header) != side("cookie", &format!("uid={cookie}"))
            })
            .count()
    };
    assert_eq!(moved(&proxy), 0);
    let explained = proxy
        .admin_ask(
            "GET",
            "/api/v1/explain?path=/&header=cookie:uid%3Dana%252B1%2540Example.com",
            &[],
            b"",
        )
        .json();
    let steps: Vec<&str> = explained["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| step.as_str().unwrap())
        .collect();
    let at = steps
        .iter()
        .position(|step| *step == "cookie:uid holds `ana%2B1%40Example.com`")
        .unwrap_or_else(|| panic!("{steps:?}"));
    assert_eq!(
        steps[at + 1..at + 4],
        [
            "decode makes it `ana+1@Example.com`",
            "lower makes it `ana+1@example.com`",
            "the user key `ana+1@example.com` comes from cookie:uid|decode|lower"
        ],
        "{steps:?}"
    );
    let bucket = proxy
        .admin_ask(
            "GET",
            "/api/v1/explain?path=/&header=x-user-id:ANA%2B1@example.com",
            &[],
            b"",
        )
        .json()["bucket"]
        .clone();
    assert!(
        bucket.is_number() && explained["bucket"] == bucket,
        "{explained} {bucket}"
    );
    // Without steps many of them count as two users.
    proxy.save(&chain("\"header:x-user-id\", \"cookie:uid\""));
    proxy.reload();
    assert!(moved(&proxy) > 5, "the steps make the difference");
}

#[test]
fn a_request_refused_over_http_2_has_a_reason_a_line_and_a_count() {
    let tables = "[listen]\nhttp = [\"127.0.0.1:0\"]\nh2c = true\nmax_body = \
                  \"1KiB\"\n[log]\nfile = \"access.log\"\naccess = \"errors\"\n";
    let proxy = Proxy::start_with(tables, &rollout("checkout", "100", ""));
    let ask = |method: &str, uri: &str, headers: &[(&str, &str)], body: usize| {
        let mut request = http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).unwrap();
        crate::http2::run(async {
            let mut client = crate::http2::connect(proxy.http).await;
            let (answer, mut sending) = client.send_request(request, body == 0).unwrap();
            if body > 0 {
                // The proxy may refuse the request before the whole body is sent.
                let _ = sending.send_data(vec![b'b'; body].into(), true);
            }
            crate::http2::body_of(answer.await.unwrap()).await
        })
    };
    for (method, uri, headers, body, status, reason) in [
        ("GET", "http://h/a%00b", &[][..], 0, 400, "bad_target"),
        ("TRACE", "http://h/t", &[], 0, 405, "method_not_allowed"),
        ("GET", "http://h../d", &[], 0, 400, "bad_host"),
        (
            "GET",
            "http://h/u",
            &[("x-user-id", "a"), ("x-user-id", "b")],
            0,
            400,
            "ambiguous_user",
        ),
        (
            "GET",
            "http://h/l",
            &[("x_user_id", "a")],
            0,
            400,
            "lookalike_header",
        ),
        (
            "POST",
            "http://h/b",
            &[("content-length", "2000")],
            2000,
            413,
            "body_too_large",
        ),
        ("POST", "http://h/s", &[], 2000, 413, "body_too_large"),
    ] {
        let (before, mark) = (lines(&proxy).len(), refused(&proxy, reason));
        let (answered, text) = ask(method, uri, headers, body);
        let error: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{uri}: {error}: {text:?}"));
        assert_eq!(
            (answered.as_u16(), &error["error"]["code"]),
            (status, &reason.into()),
            "{uri}"
        );
        let line = until("the line", || lines(&proxy).get(before).cloned());
        assert_eq!(
            (&line["cutover.refused"], &line["error.message"]),
            (&reason.into(), &error["error"]["message"]),
            "{line}"
        );
        assert_eq!(line["url.path"], uri[uri.rfind('/').unwrap()..], "{line}");
        until("the count", || {
            (refused(&proxy, reason) == mark + 1.0).then_some(())
        });
    }
    assert_eq!(proxy.rollout()["new"]["failed"], 0);
    assert_eq!(ask("GET", "http://h/good", &[], 0).0, 200);
}
