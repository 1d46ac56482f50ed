//! What counts as evidence: users placed by a list or without a key, outcomes that the backend
//! reports, and redirect loops.

use serde_json::Value;

use crate::harness::{Behaviour, Proxy, rollout, until};
use crate::raw::{AtAccept, RawBackend};

fn sides(rollout: &Value, field: &str) -> (Option<u64>, Option<u64>) {
    (
        rollout["legacy"][field].as_u64(),
        rollout["new"][field].as_u64(),
    )
}

#[test]
fn users_without_a_key_or_on_a_list_are_counted_and_not_compared() {
    let proxy = Proxy::start(&rollout("checkout", "50", "always_new = [\"qa\"]"));
    for _ in 0..10 {
        assert_eq!(proxy.get("/", &[]).side(), "legacy");
        assert_eq!(proxy.get("/", &[("x-user-id", "qa")]).side(), "new");
    }
    for user in 0..40 {
        proxy.get("/", &[("x-user-id", &format!("u{user}"))]);
    }
    let counted = |rollout: &Value| {
        sides(rollout, "requests").0.unwrap_or_default()
            + sides(rollout, "requests").1.unwrap_or_default()
    };
    let standing = until("all to be counted", || {
        Some(proxy.rollout()).filter(|rollout| counted(rollout) == 60)
    });
    let ((of_legacy, of_new), (legacy, new)) =
        (sides(&standing, "compared"), sides(&standing, "requests"));
    assert_eq!(
        (legacy, new),
        (
            of_legacy.map(|count| count + 10),
            of_new.map(|count| count + 10)
        ),
        "{standing}"
    );
    assert_eq!(
        (
            standing["not_compared"]["anonymous"].as_u64(),
            standing["not_compared"]["always_new"].as_u64()
        ),
        (Some(10), Some(10)),
        "{standing}"
    );
    assert!(standing["not_compared"].get("bucket").is_none());
}

#[test]
fn a_reported_outcome_counts_on_both_sides_and_stays_inside() {
    let guard = "[rollout.guard]\ndry_run = true\noutcome_header = \"X-Cutover-Outcome\"\n";
    let proxy = Proxy::start(&rollout("checkout", "50", guard));
    let asked = std::cell::Cell::new(0);
    let is_on = |user: &str, side: &str| {
        asked.set(asked.get() + 1);
        proxy.side_of(user) == side
    };
    let user = |side: &str| {
        (0..)
            .map(|user| format!("u{user}"))
            .find(|user| is_on(user, side))
            .unwrap()
    };
    let users = [("legacy", user("legacy")), ("new", user("new"))];
    until("all of these to be counted", || {
        let (legacy, new) = sides(&proxy.rollout(), "requests");
        (legacy? + new? == asked.get()).then_some(())
    });
    let numbers = |side: &str| {
        let rollout = proxy.rollout();
        (
            rollout[side]["requests"].as_u64().unwrap(),
            rollout[side]["failed"].as_u64().unwrap(),
        )
    };
    for (side, user) in &users {
        let backend = if *side == "new" {
            &proxy.new
        } else {
            &proxy.legacy
        };
        for (behaviour, requests, failed) in [
            (Behaviour::Says(200, "failure"), 1, 1),
            (Behaviour::Says(200, "Success"), 1, 0),
            (Behaviour::Says(200, "ignore"), 0, 0),
            (Behaviour::Says(500, "success"), 1, 0),
            (Behaviour::Says(200, "a word of its own"), 1, 0),
            (Behaviour::Answer(200), 1, 0),
        ] {
            let before = numbers(side);
            backend.behave(behaviour);
            let answer = proxy
                .client()
                .ask("POST", "/", &[("x-user-id", user)], b"x")
                .unwrap();
            assert_eq!(
                (answer.side(), answer.header("x-cutover-outcome")),
                (*side, None),
                "{behaviour:?}"
            );
            // A second request shows that the first one has been processed, even if it counts as
            // nothing.
            backend.behave(Behaviour::Answer(200));
            proxy
                .client()
                .ask("POST", "/", &[("x-user-id", user)], b"x")
                .unwrap();
            let expected = (before.0 + requests + 1, before.1 + failed);
            until(
                &format!("{side}: {behaviour:?} to count as {requests} and {failed}"),
                || (numbers(side) == expected).then_some(()),
            );
        }
    }
}

#[test]
fn a_failure_in_a_2xx_is_judged_and_a_success_in_a_5xx_not_repeated() {
    let guard = "[rollout.guard]\noutcome_header = \"x-cutover-outcome\"\n";
    let proxy = Proxy::start(&rollout("checkout", "100", guard));
    proxy.new.behave(Behaviour::Says(500, "success"));
    let answer = proxy.get("/", &[("x-user-id", "u")]);
    assert_eq!(
        (answer.status(), answer.side()),
        (500, "new"),
        "the backend means it: legacy is not asked"
    );
    proxy.new.behave(Behaviour::Answer(200));
    let mut client = proxy.client();
    let mut user = 0;
    let mut ask = |count: u32| {
        for _ in 0..count {
            user += 1;
            client
                .ask("GET", "/", &[("x-user-id", &format!("u{user}"))], b"")
                .unwrap();
        }
    };
    ask(100);
    proxy.new.behave(Behaviour::Says(200, "failure"));
    until("the drop", || {
        ask(10);
        (proxy.rollout()["phase"] == "rolled_back").then_some(())
    });
    assert!(
        proxy.rollout()["latch"]["sentence"]
            .as_str()
            .unwrap()
            .starts_with("new failed ")
    );
}

#[test]
fn redirect_loops_roll_new_back() {
    let proxy = Proxy::start(&rollout("checkout", "50", ""));
    let mut client = proxy.client();
    let mut ask = |user: u32| {
        client
            .ask("GET", "/", &[("x-user-id", &format!("u{user}"))], b"")
            .unwrap()
            .status()
    };
    for user in 0..200 {
        assert_eq!(ask(user), 200);
    }
    proxy.new.behave(Behaviour::Redirect);
    let mut user = 1_000;
    until("the drop", || {
        for _ in 0..20 {
            user += 1;
            // This follows six redirects, as a browser does.
            for _ in 0..6 {
                if ask(user) == 200 {
                    break;
                }
            }
        }
        (proxy.rollout()["phase"] == "rolled_back").then_some(())
    });
    let latch = proxy.rollout()["latch"].clone();
    assert_eq!(latch["cause"], "redirects_vs_legacy", "{latch}");
    assert!(
        latch["sentence"]
            .as_str()
            .unwrap()
            .starts_with("new sent users in circles "),
        "{latch}"
    );
}

#[test]
fn latencies_are_not_compared_after_a_raise_and_the_status_says_so() {
    let proxy = Proxy::start(&rollout("checkout", "5", ""));
    proxy.save(&rollout("checkout", "50", ""));
    let mut client = proxy.client();
    let latency = |rollout: &Value| {
        rollout["guard"]["rules"]
            .as_array()
            .unwrap()
            .iter()
            .find(|rule| rule["rule"] == "latency_vs_legacy")
            .unwrap()
            .clone()
    };
    let mut user = 0;
    let found = until("the rule to warm up", || {
        for _ in 0..20 {
            user += 1;
            client
                .ask("GET", "/", &[("x-user-id", &format!("u{user}"))], b"")
                .unwrap();
        }
        Some(latency(&proxy.rollout())).filter(|rule| {
            rule["sentence"]
                .as_str()
                .unwrap()
                .starts_with("warming up after the raise, ")
        })
    });
    assert!(
        found["sentence"].as_str().unwrap().contains(" s left"),
        "{found}"
    );
    assert_eq!(found["evidence_ratio"].as_f64(), Some(0.0));
    assert_eq!(
        proxy.metric(
            "cutover_guard_evidence_ratio{rollout=\"checkout\",rule=\"latency_vs_legacy\"}"
        ),
        Some(0.0)
    );
}

#[test]
fn an_outcome_in_an_interim_answer_stays_inside() {
    let backend = RawBackend::start();
    backend.behave(AtAccept::Read, |talk, _| {
        talk.say(b"HTTP/1.1 103 Early Hints\r\nX-Cutover-Outcome: failure\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")?;
        Ok(true)
    });
    let tables = format!("[backend.new]\nservers = [\"{}\"]\n", backend.address);
    let guard = "[rollout.guard]\noutcome_header = \"x-cutover-outcome\"\n";
    let proxy = Proxy::start_with(&tables, &rollout("checkout", "100", guard));
    let mut client = proxy.client();
    client.send(b"GET /evil HTTP/1.1\r\nhost: shop\r\nx-user-id: u\r\n\r\n");
    let interim = client.answer(false).expect("an interim answer");
    assert_eq!(
        (
            interim.status(),
            interim.header("link"),
            interim.header("x-cutover-outcome")
        ),
        (103, Some("</a>"), None),
        "{}",
        interim.head
    );
    assert_eq!(
        client.answer(false).map(|answer| answer.status()),
        Some(200)
    );
}
