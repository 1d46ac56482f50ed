//! Failures of new: the drop, the latch, and what lifts it.

use serde_json::json;

use crate::harness::{Behaviour, Load, Proxy, QUICK_GUARD, rollout, until};

fn share(proxy: &Proxy) -> f64 {
    proxy.rollout()["effective_percent"].as_f64().unwrap()
}

/// Starts a proxy at 50 % whose new backend has failed until it was rolled back.
fn rolled_back(behaviour: Behaviour) -> Proxy {
    let proxy = Proxy::start(&rollout("checkout", "50", QUICK_GUARD));
    let load = Load::start(proxy.http, 4);
    until("some healthy traffic", || {
        (load.answered() > 200).then_some(())
    });
    proxy.new.behave(behaviour);
    until("the drop", || {
        (proxy.rollout()["phase"] == "rolled_back").then_some(())
    });
    load.end();
    proxy
}

#[test]
fn a_backend_that_answers_500_is_dropped_and_the_status_says_why() {
    let proxy = rolled_back(Behaviour::Answer(500));
    let rollout = proxy.rollout();
    assert_eq!(rollout["effective_percent"], 0.0);
    assert_eq!(rollout["desired_percent"], 50.0);
    assert_eq!(rollout["latch"]["cause"], "errors_max");
    let sentence = rollout["sentence"].as_str().unwrap();
    assert!(
        sentence.starts_with(
            "50 % asked, rolled back and latched at generation 1: 0 % of users are on new. new \
             failed "
        ),
        "{sentence}"
    );
    assert!(rollout["latch"]["numbers"]["new"]["failed"].as_u64() > Some(0));
    let before = proxy.new.requests();
    for user in 0..50 {
        assert_eq!(proxy.side_of(&format!("user-{user}")), "legacy");
    }
    assert_eq!(proxy.new.requests(), before);
    assert_eq!(
        proxy.metric("cutover_guard_tripped{rollout=\"checkout\"}"),
        Some(1.0)
    );
    assert_eq!(
        proxy.metric("cutover_rollbacks_total{rollout=\"checkout\",rule=\"errors_max\"}"),
        Some(1.0)
    );
}

#[test]
fn a_backend_that_closes_hangs_or_sends_garbage_is_dropped() {
    for (behaviour, kind) in [
        (Behaviour::Close, "reset"),
        (Behaviour::Garbage, "protocol"),
        (Behaviour::Hang, "timeout"),
        (Behaviour::Truncate, "truncated"),
    ] {
        let proxy = rolled_back(behaviour);
        let failures = proxy.metric(&format!(
            "cutover_failures_total{{rollout=\"checkout\",backend=\"new\",kind=\"{kind}\"}}"
        ));
        assert!(
            failures > Some(0.0),
            "{behaviour:?} should count as {kind}, found {failures:?}"
        );
    }
}

#[test]
fn the_latch_survives_restart_and_reload_until_rearm_or_generation() {
    let mut proxy = rolled_back(Behaviour::Answer(500));
    proxy.new.behave(Behaviour::Answer(200));
    proxy.restart();
    assert_eq!(share(&proxy), 0.0, "after a restart");
    proxy.reload();
    assert_eq!(share(&proxy), 0.0, "after a reload");
    std::fs::write(proxy.file(), proxy.text()).unwrap();
    proxy.reload();
    assert_eq!(share(&proxy), 0.0, "after the same file was written again");
    proxy.save(&rollout("checkout", "80", QUICK_GUARD));
    assert_eq!(share(&proxy), 0.0, "after a raised percentage");
    assert_eq!(proxy.rollout()["desired_percent"], 80.0);

    let answer = proxy.post(
        "/api/v1/rollouts/checkout/rearm",
        &json!({"reason": "fixed in 1.2.4"}),
    );
    assert_eq!(answer.status(), 200, "{}", answer.text());
    assert_eq!(answer.json()["durable"], true);
    assert_eq!(share(&proxy), 80.0);
    proxy.restart();
    assert_eq!(share(&proxy), 80.0, "a lifted latch stays lifted");

    let answer = proxy.post(
        "/api/v1/rollouts/checkout/rollback",
        &json!({"reason": "still odd"}),
    );
    assert_eq!(answer.status(), 200, "{}", answer.text());
    assert_eq!(share(&proxy), 0.0);
    proxy.save(&rollout(
        "checkout",
        "30",
        &format!("generation = 2\n{QUICK_GUARD}"),
    ));
    assert_eq!(share(&proxy), 30.0, "a higher generation re-arms");
}

#[test]
fn rearming_at_a_smaller_share_writes_it_to_the_file_first() {
    let proxy = rolled_back(Behaviour::Answer(500));
    proxy.new.behave(Behaviour::Answer(200));
    let answer = proxy.post(
        "/api/v1/rollouts/checkout/rearm",
        &json!({"reason": "carefully", "percent": 0.5}),
    );
    assert_eq!(answer.status(), 200, "{}", answer.text());
    assert_eq!(share(&proxy), 0.5);
    assert!(proxy.text().contains("percent = 0.5\n"), "{}", proxy.text());
}

#[test]
fn a_dry_run_reports_and_moves_no_users() {
    let proxy = Proxy::start(&rollout(
        "checkout",
        "50",
        &QUICK_GUARD.replace("mode", "dry_run = true\nmode"),
    ));
    proxy.new.behave(Behaviour::Answer(500));
    let load = Load::start(proxy.http, 2);
    let told = until("the report", || {
        let history = proxy.admin_ask("GET", "/api/v1/history", &[], b"").json();
        history["records"]
            .as_array()
            .unwrap()
            .iter()
            .find(|record| record["change"] == "dry_run_breach")
            .cloned()
    });
    load.end();
    assert!(
        told["sentence"]
            .as_str()
            .unwrap()
            .contains("would roll back, but dry_run is on"),
        "{told}"
    );
    assert_eq!(share(&proxy), 50.0);
}

#[test]
fn testers_with_an_override_do_not_count_as_evidence() {
    let tables = "[routing]\noverride_token_sha256 = \
                  \"d0c04f4b1951e4aeaaec8223ed2039e542f3aae805a6fa7f6d794e5afff5d272\"\n";
    let proxy = Proxy::start_with(tables, &rollout("checkout", "0", QUICK_GUARD));
    proxy.new.behave(Behaviour::Answer(500));
    let mut client = proxy.client();
    for _ in 0..120 {
        let answer = client
            .ask(
                "GET",
                "/",
                &[("x-user-id", "u"), ("x-cutover-override", "new sesame")],
                b"",
            )
            .unwrap();
        assert_eq!((answer.status(), answer.side()), (500, "new"));
    }
    until("the counters to be read", || {
        (proxy.metric("cutover_decisions_total{rollout=\"checkout\",reason=\"override\"}")
            == Some(120.0))
        .then_some(())
    });
    assert_eq!(proxy.rollout()["new"]["requests"], 0);
    assert_eq!(proxy.rollout()["phase"], "holding");
    assert_eq!(
        proxy.metric(
            "cutover_requests_total{rollout=\"checkout\",backend=\"new\",code_class=\"5xx\"}"
        ),
        Some(120.0)
    );
}
