//! Tests that bottlenecks are named correctly in prepared cases. The sample backend creates each
//! bottleneck. Where it runs as a child process, it stands for a proxy.
//!
//! The tests assert the name and never a rate. The limits on latency leave room for a machine that
//! has other work: a first step that fails by accident would leave nothing to compare with.

use cutover_loadtest::capacity::{Bottleneck, CapacityReport};
use cutover_loadtest::scenario::{Scenario, Stage, Surroundings, play};
use std::path::PathBuf;
use tokio::sync::watch;

async fn explored(text: &str) -> CapacityReport {
    let scenario = Scenario::parse("test", text).unwrap_or_else(|error| panic!("{error}"));
    let surroundings = Surroundings {
        kit: Some(PathBuf::from(env!("CARGO_BIN_EXE_cutover-loadtest"))),
        ..Surroundings::default()
    };
    let (_go_on, stop) = watch::channel(false);
    let outcome = play(
        &scenario,
        "test",
        text,
        &surroundings,
        &Stage {
            say: &|_| {},
            follows: false,
            stop,
        },
    )
    .await
    .expect("an outcome");
    outcome
        .runs
        .into_iter()
        .next()
        .and_then(|run| run.capacity)
        .expect("a search")
}

fn check(found: &CapacityReport, expected: Bottleneck) {
    assert_eq!(
        found.bottleneck,
        Some(expected),
        "{}: {:#?}",
        found.sentence,
        found.steps
    );
}

/// Each answer costs 20 ms of the only thread, so there are 50 per second on any machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg(target_os = "linux")]
async fn a_proxy_without_free_processors_is_the_bottleneck() {
    let found = explored(
        r#"
title = "processor"
[proxy]
command = ["{kit}", "backend", "--name", "new", "--work", "20000", "--threads", "1"]
target = "listening on {}"
cores = 1
[load]
connections = 32
timeout = "20s"
[capacity]
start = 10
step = "700ms"
p99 = "1s"
precision = 1.0
"#,
    )
    .await;
    check(&found, Bottleneck::ProxyCpu);
}

/// Two answers at once take 40 ms each, so there are 50 per second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_limited_to_two_requests_is_the_bottleneck() {
    let found = explored(
        r#"
title = "backend"
[backend.new]
latency = "40ms"
concurrency = 2
[load]
connections = 64
timeout = "20s"
[capacity]
start = 10
step = "700ms"
p99 = "1s"
precision = 1.0
"#,
    )
    .await;
    check(&found, Bottleneck::Backend);
}

/// Four connections are served, and every further connection is closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_on_connections_is_the_bottleneck() {
    let found = explored(
        r#"
title = "connections"
[backend.new]
latency = "20ms"
connections = 4
[load]
connections = 32
timeout = "20s"
[capacity]
start = 100
step = "400ms"
p99 = "2s"
precision = 1.0
"#,
    )
    .await;
    check(&found, Bottleneck::ConnectionLimit);
}

/// The generator has one connection and each answer takes 20 ms, so there are 50 per second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generator_with_too_few_connections_is_the_bottleneck() {
    let found = explored(
        r#"
title = "generator"
[backend.new]
latency = "20ms"
[load]
connections = 1
timeout = "20s"
[capacity]
start = 10
step = "700ms"
p99 = "1s"
precision = 1.0
"#,
    )
    .await;
    check(&found, Bottleneck::Generator);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_bottleneck_is_named_if_every_rate_passes() {
    let found = explored(
        "title = \"nothing\"\n[backend.new]\n[load]\ntimeout = \"60s\"\n[capacity]\nstart = \
         5\nmost = 10\nstep = \"300ms\"\np99 = \"60s\"\n",
    )
    .await;
    assert_eq!(
        (found.knee, found.bottleneck),
        (Some(10.0), None),
        "{}",
        found.sentence
    );
}
