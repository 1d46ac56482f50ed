//! The default guard of a file, in the real proxy.

use std::process::Command;

use serde_json::Value;

use crate::harness::{Behaviour, Client, Load, Proxy, rollout, until};

/// The proxy trusts the client addresses that the tests set.
const BEHIND_A_PROXY: &str =
    "[listen]\nhttp = [\"127.0.0.1:0\"]\ntrusted_proxies = [\"127.0.0.1/32\"]\n";

fn verdict(proxy: &Proxy, rule: &str) -> Value {
    let rules = proxy.rollout()["guard"]["rules"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    rules
        .into_iter()
        .find(|found| found["rule"] == rule)
        .unwrap_or_else(|| panic!("there is no rule {rule}"))
}

/// Sends one request from a user at an address, and returns its status.
fn ask(client: &mut Client, path: &str, user: &str, address: &str) -> u16 {
    client
        .ask(
            "GET",
            path,
            &[("x-user-id", user), ("x-forwarded-for", address)],
            b"",
        )
        .unwrap()
        .status()
}

/// Sends one good request from each honest user, each in a different network.
fn honest_round(client: &mut Client) {
    for user in 0..60 {
        assert_eq!(
            ask(
                client,
                "/",
                &format!("honest-{user}"),
                &format!("203.0.{user}.7")
            ),
            200
        );
    }
}

#[test]
fn without_a_guard_section_a_broken_backend_costs_a_handful_of_answers() {
    let proxy = Proxy::start(&rollout("checkout", "50", ""));
    let load = Load::start(proxy.http, 4);
    until("healthy traffic", || (load.answered() > 500).then_some(()));
    assert_eq!(proxy.rollout()["guard"]["mode"], "sequential");
    assert!(
        proxy
            .metric("cutover_guard_evidence_log10{rollout=\"checkout\",rule=\"errors_max\"}")
            .is_some()
    );
    assert!(proxy.metric("cutover_guard_threshold_log10{rollout=\"checkout\"}") > Some(7.0));
    proxy.new.behave(Behaviour::Answer(500));
    until("the drop", || {
        (proxy.rollout()["phase"] == "rolled_back").then_some(())
    });
    let failed = load.end();
    let sentence = proxy.rollout()["latch"]["sentence"]
        .as_str()
        .unwrap()
        .to_owned();
    // If the judge wakes up late, twenty failures in a row are reported before the evidence is
    // weighed.
    let is_weighed = sentence.contains(" users in ")
        && sentence.contains("a healthy backend would do this once in 30 days");
    assert!(
        sentence.starts_with("new failed ") && (is_weighed || sentence.contains(" times in a row")),
        "{sentence}"
    );
    // About eight decide; the others are requests that a busy machine lets through before the judge
    // wakes up.
    assert!(
        failed.len() <= 200,
        "{} bad answers: {sentence}",
        failed.len()
    );
    let history = proxy.admin_ask("GET", "/api/v1/history", &[], b"").json();
    let trip = history["records"]
        .as_array()
        .unwrap()
        .iter()
        .find_map(|record| (record["change"] == "rollback").then(|| record["trip"].clone()))
        .unwrap();
    assert!(
        !trip["history"].as_array().unwrap().is_empty(),
        "the record keeps the ticks before the trip"
    );
    assert!(
        proxy.rollout()["latch"].get("history").is_none(),
        "the status does not"
    );
}

#[test]
fn hanging_requests_are_detected_before_they_time_out() {
    let tables = |proxy: &Proxy| {
        format!(
            "[backend.new]\nservers = [\"{}\"]\nresponse_timeout = \"60s\"\n",
            proxy.new.address
        )
    };
    let proxy = Proxy::start(&rollout(
        "checkout",
        "50",
        "[rollout.guard]\nhang = { older_than = \"1s\" }\n",
    ));
    std::fs::write(
        proxy.file(),
        proxy.text_with(
            &tables(&proxy),
            &rollout(
                "checkout",
                "50",
                "[rollout.guard]\nhang = { older_than = \"1s\" }\n",
            ),
        ),
    )
    .unwrap();
    proxy.reload();
    let load = Load::start(proxy.http, 4);
    until("healthy traffic", || (load.answered() > 500).then_some(()));
    load.end();
    proxy.new.behave(Behaviour::Hang);
    let mut waiting = Vec::new();
    for user in 0..60 {
        let mut client = Client::connect(proxy.http);
        client.send(
            format!("GET / HTTP/1.1\r\nhost: h\r\nx-user-id: hang-{user}\r\n\r\n").as_bytes(),
        );
        waiting.push(client);
    }
    until("the drop", || {
        (proxy.rollout()["phase"] == "rolled_back").then_some(())
    });
    let latch = proxy.rollout()["latch"].clone();
    assert_eq!(latch["cause"], "hang", "{latch}");
    assert!(
        latch["sentence"]
            .as_str()
            .unwrap()
            .contains("have waited for 1000 ms without an answer"),
        "{latch}"
    );
    assert!(
        proxy.rollout()["new"]["in_flight"].as_u64() > Some(0),
        "they still wait"
    );
    drop(waiting);
    proxy.new.behave(Behaviour::Answer(200));
}

/// Returns requests whose last byte is not sent yet, each from a different user.
fn uploads(proxy: &Proxy) -> Vec<Client> {
    let upload = |user| {
        let mut client = Client::connect(proxy.http);
        client.send(
            format!(
                "POST / HTTP/1.1\r\nhost: h\r\nx-user-id: slow-{user}\r\ncontent-length: \
                 2\r\n\r\na"
            )
            .as_bytes(),
        );
        client
    };
    (0..40).map(upload).collect()
}

#[test]
fn a_slow_upload_is_not_a_hanging_backend() {
    let rollout = rollout(
        "checkout",
        "100",
        "[rollout.guard]\nhang = { older_than = \"1s\" }\n",
    );
    let proxy = Proxy::start(&rollout);
    std::fs::write(
        proxy.file(),
        proxy.text_with(
            &format!(
                "[backend.new]\nservers = [\"{}\"]\nresponse_timeout = \"60s\"\n",
                proxy.new.address
            ),
            &rollout,
        ),
    )
    .unwrap();
    proxy.reload();
    let mut clients = uploads(&proxy);
    let started = until("the uploads to begin", || {
        (proxy.rollout()["new"]["in_flight"] == 40).then(std::time::Instant::now)
    });
    until("two seconds of waiting", || {
        assert_eq!(proxy.rollout()["phase"], "holding");
        (started.elapsed().as_secs() >= 2).then_some(())
    });
    for client in &mut clients {
        client.send(b"b");
        assert_eq!(client.answer(false).unwrap().status(), 200);
    }
}

#[test]
fn an_upload_longer_than_the_response_timeout_is_no_evidence() {
    // The harness gives new 300 ms to answer.
    let proxy = Proxy::start_with(
        "[listen]\nhttp = [\"127.0.0.1:0\"]\nbody_idle_timeout = \"2s\"\n",
        &rollout("checkout", "100", ""),
    );
    for client in &mut uploads(&proxy) {
        assert_eq!(client.answer(false).unwrap().status(), 408);
    }
    until("the counters to be read", || {
        (proxy.metric(
            "cutover_requests_total{rollout=\"checkout\",backend=\"new\",code_class=\"4xx\"}",
        ) == Some(40.0))
        .then_some(())
    });
    assert_eq!(
        (
            proxy.rollout()["new"]["failed"].as_u64(),
            proxy.rollout()["phase"].as_str()
        ),
        (Some(0), Some("holding"))
    );
}

#[test]
fn one_client_that_causes_failures_does_not_roll_new_back() {
    let proxy = Proxy::start_with(
        BEHIND_A_PROXY,
        &rollout("checkout", "100", "failover = \"off\""),
    );
    let mut client = proxy.client();
    honest_round(&mut client);
    for request in 0..600 {
        assert_eq!(ask(&mut client, "/bad", "mallory", "198.51.100.66"), 500);
        if request % 100 == 0 {
            honest_round(&mut client);
        }
    }
    until("the failures to be read", || {
        (proxy.rollout()["new"]["failed"] == 600).then_some(())
    });
    assert_eq!(proxy.rollout()["phase"], "holding");
    // Many users behind one address do not help either.
    for request in 0..600 {
        assert_eq!(
            ask(
                &mut client,
                "/bad",
                &format!("sybil-{request}"),
                "198.51.100.66"
            ),
            500
        );
        if request % 100 == 0 {
            honest_round(&mut client);
        }
    }
    until("the failures to be read", || {
        (proxy.rollout()["new"]["failed"] == 1200).then_some(())
    });
    assert_eq!(
        proxy.rollout()["phase"],
        "holding",
        "{}",
        verdict(&proxy, "errors_max")
    );
    // The same failures for honest users cause a drop.
    until("the drop", || {
        for user in 0..20 {
            ask(
                &mut client,
                "/bad",
                &format!("honest-{user}"),
                &format!("203.0.{user}.7"),
            );
        }
        (proxy.rollout()["phase"] == "rolled_back").then_some(())
    });
}

#[test]
fn failures_of_both_sides_freeze_raises_and_are_reported_once() {
    let proxy = Proxy::start(&rollout("checkout", "50", ""));
    let load = Load::start(proxy.http, 4);
    until("healthy traffic", || (load.answered() > 500).then_some(()));
    proxy.legacy.behave(Behaviour::Answer(503));
    proxy.new.behave(Behaviour::Answer(503));
    until("the shared cause", || {
        (proxy.rollout()["shared_cause"] == true).then_some(())
    });
    proxy.save(&rollout("checkout", "80", ""));
    let status = proxy.rollout();
    assert_eq!(
        (
            status["desired_percent"].as_f64(),
            status["effective_percent"].as_f64()
        ),
        (Some(80.0), Some(50.0)),
        "{}",
        status["sentence"]
    );
    assert!(
        status["sentence"].as_str().unwrap().starts_with(
            "80 % asked, 50 % of users are on new and raises are frozen, because both sides are \
             bad at once"
        ),
        "{status}"
    );
    assert_eq!(
        proxy.metric("cutover_guard_shared_cause{rollout=\"checkout\"}"),
        Some(1.0)
    );
    load.end();
    let history = proxy.admin_ask("GET", "/api/v1/history", &[], b"").json();
    let told = history["records"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|record| record["change"] == "shared_cause")
        .count();
    assert_eq!(told, 1);
    proxy.save(&rollout("checkout", "20", ""));
    assert_eq!(
        proxy.rollout()["effective_percent"],
        20.0,
        "lowering is honoured at once"
    );
}

fn cutover(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_cutover"))
        .args(arguments)
        .output()
        .unwrap();
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn a_guard_can_be_simulated_forecast_and_replayed() {
    let proxy = Proxy::start(&rollout("checkout", "50", ""));
    let file = proxy.file().display().to_string();
    let (code, story, stderr) = cutover(&[
        "simulate",
        &file,
        "--rps",
        "200",
        "--fault",
        "new errors 30% at 20s",
        "--for",
        "40s",
        "--seed",
        "3",
    ]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(
        story.contains("rolled back from 50 % to 0 %: new failed") && story.contains("seed 3"),
        "{story}"
    );
    assert_eq!(
        story,
        cutover(&[
            "simulate",
            &file,
            "--rps",
            "200",
            "--fault",
            "new errors 30% at 20s",
            "--for",
            "40s",
            "--seed",
            "3"
        ])
        .1,
        "the same seed, the same story"
    );
    let (_, many, _) = cutover(&[
        "simulate",
        &file,
        "--rps",
        "200",
        "--fault",
        "new refused at 10s",
        "--for",
        "30s",
        "--runs",
        "5",
        "--json",
    ]);
    let many: Value = serde_json::from_str(&many).unwrap();
    assert_eq!(
        (
            many["noticed"].as_u64(),
            many["missed"].as_u64(),
            many["before_the_fault"].as_u64()
        ),
        (Some(5), Some(0), Some(0)),
        "{many}"
    );
    assert!(many["max"]["bad_answers"].as_u64() <= Some(30), "{many}");
    let (code, _, stderr) = cutover(&["simulate", &file, "--fault", "canary explodes"]);
    assert_eq!(code, Some(2));
    assert!(
        stderr.contains("begins with new, legacy or both"),
        "{stderr}"
    );

    let (_, forecast, _) = cutover(&["check", &file, "--json", "--rps", "1000"]);
    let forecast: Value = serde_json::from_str(&forecast).unwrap();
    let rule = &forecast["rollouts"][0]["forecast"]["rules"][0];
    assert_eq!(
        (
            rule["rule"].as_str(),
            rule["delays"][3]["median_seconds"].as_f64()
        ),
        (Some("errors_max"), Some(0.25)),
        "{rule}"
    );

    let load = Load::start(proxy.http, 4);
    until("healthy traffic", || (load.answered() > 500).then_some(()));
    let before = proxy.status().to_string();
    proxy.new.behave(Behaviour::Answer(500));
    until("the drop", || {
        (proxy.rollout()["phase"] == "rolled_back").then_some(())
    });
    load.end();
    let recording = proxy.directory.path().join("recording.jsonl");
    std::fs::write(&recording, format!("{before}\n{}\n", proxy.status())).unwrap();
    let journal = proxy
        .directory
        .path()
        .join("state/journal.jsonl")
        .display()
        .to_string();
    for recorded in [recording.display().to_string(), journal] {
        let (code, story, stderr) = cutover(&["simulate", &file, "--replay", &recorded]);
        assert_eq!(code, Some(0), "{recorded}: {stderr}");
        assert!(
            story.contains("this guard would have rolled back once")
                && story.contains("not judged, since a recording has no such numbers: latency"),
            "{story}"
        );
    }
    let lenient = proxy.directory.path().join("lenient.toml");
    std::fs::write(
        &lenient,
        proxy
            .text()
            .replace("key = [", "guard = { mode = \"off\" }\nkey = ["),
    )
    .unwrap();
    let (_, story, _) = cutover(&[
        "simulate",
        lenient.to_str().unwrap(),
        "--replay",
        recording.to_str().unwrap(),
    ]);
    assert!(story.contains("never have rolled back"), "{story}");
    let (code, _, stderr) = cutover(&["simulate", &file, "--replay", &file]);
    assert_eq!(code, Some(2));
    assert!(
        stderr.contains("line 1: neither a line of a journal"),
        "{stderr}"
    );
}
