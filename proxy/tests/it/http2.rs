//! HTTP/2 from clients, without TLS so that the tests control every frame.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Request, Response, StatusCode};

use crate::harness::{Behaviour, Client, PATIENCE, Proxy, rollout, until};

const H2C: &str = "[listen]\nhttp = [\"127.0.0.1:0\"]\nh2c = true\nbody_idle_timeout = \
                   \"200ms\"\nwrite_timeout = \"200ms\"\n";

/// Runs a test on a separate runtime, within the patience of these tests.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, test).await.expect("in time") })
}

pub async fn connect(address: SocketAddr) -> SendRequest<Bytes> {
    let socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let (client, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(connection);
    client.ready().await.unwrap()
}

fn request(method: &str, user: &str) -> Request<()> {
    Request::builder()
        .method(method)
        .uri("http://shop.example/")
        .header("x-user-id", user)
        .body(())
        .unwrap()
}

pub async fn body_of(response: Response<h2::RecvStream>) -> (StatusCode, String) {
    let (parts, mut body) = response.into_parts();
    let mut text = Vec::new();
    while let Some(part) = body.data().await {
        let part = part.unwrap();
        body.flow_control().release_capacity(part.len()).unwrap();
        text.extend_from_slice(&part);
    }
    (parts.status, String::from_utf8(text).unwrap())
}

#[test]
fn an_empty_last_body_frame_poisons_no_connection_of_other_users() {
    let proxy = Proxy::start_with(H2C, &rollout("checkout", "100", ""));
    run(async {
        let mut client = connect(proxy.http).await;
        for round in 0..100 {
            let (response, mut body) = client.send_request(request("POST", "u"), false).unwrap();
            body.send_data(Bytes::from_static(b"hello"), false).unwrap();
            // The end is a separate frame without content.
            body.send_data(Bytes::new(), true).unwrap();
            assert_eq!(
                body_of(response.await.unwrap()).await,
                (StatusCode::OK, "new 5".to_owned()),
                "round {round}"
            );
            let other = Client::connect(proxy.http)
                .ask("GET", "/", &[("x-user-id", "other")], b"")
                .unwrap();
            assert_eq!(
                (other.status(), other.text()),
                (200, "new 0".to_owned()),
                "round {round}"
            );
        }
    });
    assert_eq!(proxy.new.requests(), 200, "nothing but requests arrived");
    assert!(proxy.new.last_head().starts_with("GET / HTTP/1.1\r\n"));
}

#[test]
fn concurrent_streams_are_separate_users() {
    let proxy = Proxy::start_with(H2C, &rollout("checkout", "50", ""));
    run(async {
        let mut client = connect(proxy.http).await;
        let mut asked = Vec::new();
        for user in 0..60 {
            let user = format!("user-{user}");
            let (response, _) = client.send_request(request("GET", &user), true).unwrap();
            client = client.ready().await.unwrap();
            asked.push((user, response));
        }
        for (user, response) in asked {
            let response = response.await.unwrap();
            assert_eq!(
                response.headers()["x-served-by"].to_str().unwrap(),
                proxy.side_of(&user),
                "{user}"
            );
        }
        // The cookie is split into several fields, as HTTP/2 allows, and there is no host at all.
        let crumbs = Request::builder()
            .uri("http://shop.example/")
            .header("cookie", "a=1")
            .header("cookie", "uid=q7")
            .header("x-user-id", "u")
            .body(())
            .unwrap();
        assert_eq!(
            client
                .send_request(crumbs, true)
                .unwrap()
                .0
                .await
                .unwrap()
                .status(),
            200
        );
    });
    let head = proxy.legacy.last_head() + &proxy.new.last_head();
    assert!(
        head.to_ascii_lowercase().contains("host: shop.example\r\n"),
        "{head}"
    );
}

#[test]
fn a_stalled_body_ends_its_stream_and_no_other() {
    let proxy = Proxy::start_with(H2C, &rollout("checkout", "100", ""));
    run(async {
        let mut client = connect(proxy.http).await;
        let (stalled, mut body) = client.send_request(request("POST", "u"), false).unwrap();
        body.send_data(Bytes::from_static(b"h"), false).unwrap();
        let end = stalled.await;
        assert!(
            end.is_err() || end.is_ok_and(|answer| answer.status() == StatusCode::REQUEST_TIMEOUT),
            "it has to end"
        );
        client = client.ready().await.unwrap();
        let (other, _) = client.send_request(request("GET", "u"), true).unwrap();
        assert_eq!(
            body_of(other.await.unwrap()).await.0,
            StatusCode::OK,
            "the connection goes on"
        );
    });
    until("nothing to be in flight", || {
        (proxy.rollout()["new"]["in_flight"] == 0).then_some(())
    });
    assert_eq!(
        proxy.rollout()["new"]["failed"],
        0,
        "what a client does is no failure of new"
    );
}

#[test]
fn a_stream_on_new_long_after_a_rollback_is_reset_alone() {
    let tables = |address: SocketAddr| {
        format!("{H2C}[backend.new]\nservers = [\"{address}\"]\nresponse_timeout = \"60s\"\n")
    };
    let proxy = Proxy::start_with(H2C, &rollout("checkout", "100", ""));
    let rollouts = rollout(
        "checkout",
        "100",
        "drain_on_rollback = \"0s\"\n[rollout.guard]\nmode = \"off\"\n",
    );
    std::fs::write(
        proxy.file(),
        proxy.text_with(&tables(proxy.new.address), &rollouts),
    )
    .unwrap();
    proxy.reload();
    proxy.new.behave(Behaviour::Hang);
    run(async {
        let mut client = connect(proxy.http).await;
        let (hanging, _) = client.send_request(request("POST", "u"), true).unwrap();
        client = client.ready().await.unwrap();
        let hanging = tokio::spawn(hanging);
        while proxy.rollout()["new"]["in_flight"] != 1 {
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        assert_eq!(
            proxy
                .post(
                    "/api/v1/rollouts/checkout/rollback",
                    &serde_json::json!({"reason": "a test"})
                )
                .status(),
            200
        );
        assert!(hanging.await.unwrap().unwrap_err().is_reset());
        let (other, _) = client.send_request(request("GET", "u"), true).unwrap();
        assert_eq!(
            body_of(other.await.unwrap()).await,
            (StatusCode::OK, "legacy 0".to_owned())
        );
    });
    until("it to be counted", || {
        (proxy.metric("cutover_drained_total{kind=\"stream\"}") == Some(1.0)).then_some(())
    });
}
