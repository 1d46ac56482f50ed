//! Tests of the sequential judge on virtual time, with the real engine, simulated traffic and
//! printed seeds. A fault of new must trip quickly. A fault that is not new's must never trip.

mod common;

use std::time::Duration;

use common::*;
use cutover_core::control::plane::{Change, Restored};
use cutover_core::guard::detector::{Detector, Tally, Test};
use cutover_core::simulation::{Chance, Fault, FaultKind, Noticed, Traffic, World, notice};
use cutover_core::{
    Actor, BadEvent, Class, Command, ControlPlane, Event, FailureKind, Mono, Now, Observed,
    PerSide, Percent, Requester, Rule, SharedCause, Side, Totals,
};
use proptest::prelude::*;

#[test]
fn a_dead_backend_costs_a_handful_of_answers_at_any_share() {
    for percent in ["5", "50", "95", "100"] {
        for kind in [FaultKind::Errors(1.0), FaultKind::Refused] {
            let runs: Vec<Noticed> = (0..9)
                .map(|seed| noticed(percent, 1_000.0, seed, kind, MINUTE))
                .collect();
            let bad = median(runs.iter().map(|run| run.bad).collect());
            let most = runs.iter().map(|run| run.bad).max().unwrap_or_default();
            eprintln!("{percent} % {kind:?}: median {bad}, at most {most}");
            // At 95 % the judge waits for legacy's few requests, because they show whether legacy
            // is dead as well.
            assert!(
                bad <= if percent == "95" { 60 } else { 20 } && most <= 150,
                "{percent} %: median {bad}, at most {most}"
            );
        }
    }
}

#[test]
fn small_regressions_are_detected_in_seconds() {
    for (kind, seconds) in [
        (FaultKind::Errors(0.05), 8),
        (FaultKind::Errors(0.02), 25),
        (FaultKind::ClientErrors(0.1), 10),
        (FaultKind::Slow(3.0), 15),
        (FaultKind::Slow(10.0), 3),
    ] {
        let runs: Vec<Noticed> = (0..15)
            .map(|seed| noticed("5", 1_000.0, seed, kind, 4 * MINUTE))
            .collect();
        let delay = median(runs.iter().map(|run| run.delay).collect());
        eprintln!(
            "{kind:?}: {delay:?} by {}: {}",
            runs[0].rule, runs[0].sentence
        );
        assert!(delay <= Duration::from_secs(seconds), "{kind:?}: {delay:?}");
    }
}

#[test]
fn low_traffic_is_also_judged() {
    let runs: Vec<Noticed> = (0..30)
        .map(|seed| noticed("5", 20.0, seed, FaultKind::Errors(1.0), 5 * MINUTE))
        .collect();
    let delay = median(runs.iter().map(|run| run.delay).collect());
    assert!(delay <= Duration::from_secs(7), "{delay:?}");
    assert!(median(runs.iter().map(|run| run.requests).collect()) <= 8);
}

#[test]
fn hanging_requests_are_detected_at_the_rules_age_before_the_timeout() {
    for seed in 0..10 {
        let run = noticed("50", 200.0, seed, FaultKind::Hang, MINUTE);
        assert_eq!(run.rule, "hang", "seed {seed}");
        assert!(
            run.delay <= Duration::from_millis(10_750),
            "seed {seed}: {:?}",
            run.delay
        );
        assert!(
            run.sentence
                .contains("have waited for 10 s without an answer"),
            "{}",
            run.sentence
        );
    }
}

#[test]
fn a_backend_without_servers_is_detected_after_the_rules_time() {
    let mut scenario = scenario("50", 200.0, 1);
    // Only this rule is enabled, because refused connections would be detected much sooner.
    scenario
        .settings
        .guard
        .rules
        .retain(|rule| matches!(rule, Rule::Health(_)));
    let found = notice(
        scenario,
        MINUTE,
        at_once(Some(Side::New), FaultKind::NoServer),
        MINUTE,
    )
    .expect("no false alarm")
    .expect("noticed");
    assert_eq!(found.rule, "health");
    assert!(
        found.delay >= Duration::from_secs(10) && found.delay <= Duration::from_millis(10_500),
        "{:?}",
        found.delay
    );
}

#[test]
fn a_single_tester_can_still_trip_a_rule() {
    for users in [1, 2] {
        let mut scenario = scenario("100", 5.0, 3);
        scenario.traffic = Traffic {
            users,
            networks: 1,
            errors: 0.0,
            ..scenario.traffic
        };
        let found = notice(
            scenario,
            MINUTE,
            at_once(Some(Side::New), FaultKind::Errors(1.0)),
            2 * MINUTE,
        )
        .expect("no false alarm")
        .expect("noticed");
        assert!(found.bad <= 25, "{users} users: {}", found.bad);
    }
}

#[test]
fn few_users_with_many_requests_are_not_muted() {
    for seed in 0..5 {
        let mut scenario = scenario("100", 1_000.0, seed);
        scenario.traffic = Traffic {
            users: 50,
            networks: 5,
            ..scenario.traffic
        };
        let found = notice(
            scenario,
            MINUTE,
            at_once(Some(Side::New), FaultKind::Errors(0.05)),
            2 * MINUTE,
        )
        .expect("no false alarm")
        .expect("noticed");
        assert!(
            found.delay <= Duration::from_secs(30),
            "seed {seed}: {:?}",
            found.delay
        );
    }
}

#[test]
fn an_outage_of_both_sides_does_not_blame_new() {
    for (percent, rate) in [
        ("5", 0.2),
        ("50", 0.2),
        ("50", 1.0),
        ("95", 1.0),
        ("5", 0.03),
    ] {
        for seed in 0..4 {
            let mut world = World::new(scenario(percent, 1_000.0, seed));
            assert_eq!(run(&mut world, MINUTE), []);
            let from = world.elapsed();
            world.fault(Fault {
                side: None,
                kind: FaultKind::Errors(rate),
                from,
                lasts: MINUTE,
            });
            let said = run(&mut world, 4 * MINUTE);
            assert_eq!(
                rollbacks(&said),
                Vec::<String>::new(),
                "{percent} %, {rate}, seed {seed}"
            );
            let changes: Vec<&str> = said.iter().map(|(change, _)| *change).collect();
            assert_eq!(
                changes,
                ["shared_cause", "shared_cause_ended"],
                "{percent} %, {rate}, seed {seed}: {said:?}"
            );
        }
    }
}

#[test]
fn an_outage_of_both_sides_right_after_a_raise_undoes_the_raise() {
    let mut world = World::new(scenario("5", 300.0, 1));
    // This is long enough to know legacy's usual rate.
    run(&mut world, 16 * MINUTE);
    world.set(settings("25"));
    run(&mut world, 2 * MINUTE);
    let from = world.elapsed();
    world.fault(Fault {
        side: None,
        kind: FaultKind::Errors(0.3),
        from,
        lasts: MINUTE,
    });
    let said = rollbacks(&run(&mut world, MINUTE));
    assert_eq!(said.len(), 1);
    assert!(
        said[0].contains(
            "legacy is as bad, so this is not new's fault alone. Rolled back all the same, \
             because the share was raised 120 s ago"
        ),
        "{}",
        said[0]
    );
}

#[test]
fn an_outage_of_both_sides_rolls_back_if_so_configured() {
    let mut literal = scenario("5", 1_000.0, 1);
    literal.settings.guard.shared_cause = SharedCause::Rollback;
    let found = notice(
        literal,
        MINUTE,
        at_once(None, FaultKind::Errors(0.3)),
        MINUTE,
    )
    .expect("no false alarm");
    assert!(found.is_some());
}

#[test]
fn while_both_sides_are_bad_a_raise_waits_and_a_lowering_does_not() {
    let mut world = World::new(scenario("25", 1_000.0, 1));
    run(&mut world, MINUTE);
    let from = world.elapsed();
    world.fault(Fault {
        side: None,
        kind: FaultKind::Errors(0.3),
        from,
        lasts: MINUTE,
    });
    assert_eq!(run(&mut world, 10 * Duration::from_secs(1)).len(), 1);
    let effective = |world: &World| world.plane().rollouts()[0].effective().to_string();
    world.set(settings("50"));
    assert_eq!(effective(&world), "25");
    assert!(world.plane().rollouts()[0].sentence().starts_with(
        "50 % asked, 25 % of users are on new and raises are frozen, because both sides are bad \
         at once"
    ));
    world.set(settings("10"));
    assert_eq!(effective(&world), "10");
    world.set(settings("20"));
    assert_eq!(effective(&world), "10", "a raise after it waits as well");
    assert_eq!(
        rollbacks(&run(&mut world, 4 * MINUTE)),
        Vec::<String>::new()
    );
    assert_eq!(effective(&world), "20", "and goes through when it is over");
}

#[test]
fn a_new_that_stays_bad_after_a_shared_outage_is_rolled_back() {
    let mut world = World::new(scenario("50", 1_000.0, 1));
    run(&mut world, MINUTE);
    let from = world.elapsed();
    world.fault(Fault {
        side: None,
        kind: FaultKind::Errors(0.3),
        from,
        lasts: MINUTE,
    });
    world.fault(Fault {
        side: Some(Side::New),
        kind: FaultKind::Errors(0.3),
        from: from + MINUTE,
        lasts: MINUTE,
    });
    assert_eq!(rollbacks(&run(&mut world, MINUTE)), Vec::<String>::new());
    let said = rollbacks(&run(&mut world, Duration::from_secs(5)));
    assert_eq!(said.len(), 1, "{said:?}");
}

/// `make judge` runs this for a hundred days.
#[test]
fn two_healthy_backends_cause_no_rollback_for_hours() {
    for (seed, (errors, percent)) in (100..).zip([
        (0.0, "5"),
        (0.001, "5"),
        (0.005, "5"),
        (0.0, "50"),
        (0.001, "50"),
        (0.005, "50"),
    ]) {
        let mut scenario = scenario(percent, 1_000.0, seed);
        scenario.traffic.errors = errors;
        let mut world = World::new(scenario);
        assert_eq!(
            run(&mut world, 60 * MINUTE),
            [],
            "seed {seed}: {errors} fail, {percent} % on new"
        );
    }
}

#[test]
fn latency_that_rises_on_both_sides_does_not_blame_new() {
    for seed in 0..10 {
        let mut world = World::new(scenario("25", 500.0, seed));
        run(&mut world, 2 * MINUTE);
        let from = world.elapsed();
        world.fault(Fault {
            side: None,
            kind: FaultKind::Slow(3.0),
            from,
            lasts: 2 * MINUTE,
        });
        assert_eq!(run(&mut world, 5 * MINUTE), [], "seed {seed}");
    }
}

#[test]
fn noisy_users_do_not_trip_any_rule() {
    for seed in 0..3 {
        let mut world = World::new(scenario("5", 1_000.0, seed));
        let mut chance = Chance::new(seed + 1_000);
        // Six hours with one user per minute who fails twenty times in five seconds.
        for _ in 0..6 * 3600 * 4 {
            for _ in 0..chance.poisson(0.25 / 60.0) {
                world.noisy_user(20);
            }
            let said: Vec<String> = world
                .tick()
                .into_iter()
                .map(|announcement| announcement.sentence)
                .collect();
            assert_eq!(said, Vec::<String>::new(), "seed {seed}");
        }
    }
}

#[test]
fn a_changed_share_during_evidence_blames_no_side_and_loses_nothing() {
    for seed in 0..5 {
        let mut world = World::new(scenario("1", 1_000.0, seed));
        for percent in ["5", "50", "2", "100", "1", "99", "0", "100", "50", "0.5"] {
            let mut changed = settings(percent);
            changed.guard.shared_cause = SharedCause::Hold;
            world.set(changed);
            assert_eq!(
                run(&mut world, Duration::from_secs(20)),
                [],
                "seed {seed}, {percent} %"
            );
        }
        world.set(settings("10"));
        let from = world.elapsed();
        world.fault(Fault {
            side: Some(Side::New),
            kind: FaultKind::Errors(0.1),
            from,
            lasts: FOREVER,
        });
        let mut raised = false;
        let mut elapsed = Duration::ZERO;
        while !world.is_rolled_back() {
            world.tick();
            elapsed += Duration::from_millis(250);
            if !raised && elapsed >= Duration::from_millis(500) {
                world.set(settings("20"));
                raised = true;
            }
            assert!(elapsed < Duration::from_secs(8), "seed {seed}");
        }
    }
}

#[test]
fn a_slow_common_drift_does_not_blame_new() {
    let mut world = World::new(scenario("50", 500.0, 4));
    run(&mut world, MINUTE);
    for step in 1..=40u32 {
        // Errors rise from 0.1 % to 0.9 %, and latencies to twice their value, on both sides.
        let from = world.elapsed();
        let lasts = MINUTE;
        world.fault(Fault {
            side: None,
            kind: FaultKind::Errors(0.001 + 0.0002 * f64::from(step)),
            from,
            lasts,
        });
        world.fault(Fault {
            side: None,
            kind: FaultKind::Slow(1.0 + 0.025 * f64::from(step)),
            from,
            lasts,
        });
        assert_eq!(run(&mut world, MINUTE), [], "step {step}");
    }
}

#[test]
fn wall_clock_jumps_have_no_effect() {
    let mut world = World::new(scenario("50", 500.0, 5));
    let mut chance = Chance::new(5);
    for _ in 0..2_000 {
        world.jump_wall_clock(i64::from(chance.below(7_200_000)) - 3_600_000);
        assert!(world.tick().is_empty());
    }
    let from = world.elapsed();
    world.fault(Fault {
        side: Some(Side::New),
        kind: FaultKind::Errors(0.5),
        from,
        lasts: FOREVER,
    });
    world.jump_wall_clock(-86_400_000);
    assert_eq!(rollbacks(&run(&mut world, Duration::from_secs(1))).len(), 1);
}

#[test]
fn missing_ticks_are_longer_ticks() {
    let mut scenario = scenario("50", 500.0, 6);
    scenario.between_ticks = false;
    let mut world = World::new(scenario);
    let mut chance = Chance::new(6);
    for _ in 0..2_000 {
        assert!(
            world
                .run(Duration::from_millis(u64::from(50 + chance.below(3_000))))
                .is_empty()
        );
    }
    let from = world.elapsed();
    world.fault(Fault {
        side: Some(Side::New),
        kind: FaultKind::Errors(0.5),
        from,
        lasts: FOREVER,
    });
    let said = world.run(Duration::from_secs(3));
    assert!(
        said.iter()
            .any(|announcement| matches!(announcement.change, Change::RolledBack(_)))
    );
}

#[test]
fn at_100_percent_new_is_compared_with_legacys_past() {
    for (kind, rule) in [
        (FaultKind::Errors(0.05), "errors_"),
        (FaultKind::Slow(4.0), "latency_vs_legacy"),
        (FaultKind::ClientErrors(0.2), "client_errors_vs_legacy"),
    ] {
        let mut world = World::new(scenario("50", 500.0, 7));
        run(&mut world, 2 * MINUTE);
        world.set(settings("100"));
        assert_eq!(
            run(&mut world, 5 * MINUTE),
            [],
            "{kind:?}: a healthy backend stays"
        );
        let from = world.elapsed();
        world.fault(Fault {
            side: Some(Side::New),
            kind,
            from,
            lasts: FOREVER,
        });
        let said = rollbacks(&run(&mut world, 2 * MINUTE));
        assert_eq!(said.len(), 1, "{kind:?}");
        let latch = world.plane().rollouts()[0]
            .latch()
            .cloned()
            .expect("latched");
        assert!(
            latch.trip.cause.label().starts_with(rule),
            "{kind:?}: {}",
            latch.trip.cause.label()
        );
        if rule != "errors_" {
            assert!(
                said[0].contains("legacy, when it last had traffic"),
                "{}",
                said[0]
            );
        }
    }
}

#[test]
fn holdback_keeps_a_control_group_at_100_percent() {
    let mut scenario = scenario("100", 1_000.0, 8);
    scenario.settings.holdback = Percent::parse("1").expect("a percentage");
    let mut world = World::new(scenario);
    run(&mut world, MINUTE);
    let rollout = &world.plane().rollouts()[0];
    assert_eq!(rollout.effective().to_string(), "99");
    assert_eq!(
        rollout.sentence(),
        "100 % asked, 99 % of users are on new: 1 % are held back as a control group"
    );
    assert!(rollout.recent().legacy.counts.requests > 400);
}

#[test]
fn a_dry_run_reports_once_and_does_not_move_users() {
    let mut scenario = scenario("50", 500.0, 9);
    scenario.settings.guard.dry_run = true;
    let mut world = World::new(scenario);
    run(&mut world, MINUTE);
    let from = world.elapsed();
    world.fault(Fault {
        side: Some(Side::New),
        kind: FaultKind::Errors(0.5),
        from,
        lasts: FOREVER,
    });
    let said = run(&mut world, 3 * MINUTE);
    assert_eq!(
        said.iter().map(|(change, _)| *change).collect::<Vec<_>>(),
        ["dry_run_breach"],
        "{said:?}"
    );
    assert!(!world.is_rolled_back());
}

#[test]
fn a_re_armed_guard_starts_without_evidence_and_trips_again() {
    let mut world = World::new(scenario("50", 500.0, 10));
    run(&mut world, MINUTE);
    let from = world.elapsed();
    world.fault(Fault {
        side: Some(Side::New),
        kind: FaultKind::Errors(0.5),
        from,
        lasts: 2 * MINUTE,
    });
    assert_eq!(rollbacks(&run(&mut world, MINUTE)).len(), 1);
    world.command(Command::Rearm).expect("it is rolled back");
    assert_eq!(
        rollbacks(&run(&mut world, Duration::from_secs(2))).len(),
        1,
        "still bad: rolled back again"
    );
    run(&mut world, 2 * MINUTE);
    world.command(Command::Rearm).expect("it is rolled back");
    assert_eq!(run(&mut world, 5 * MINUTE), [], "good again: stays");
}

#[test]
fn verdicts_are_sentences_with_numbers() {
    let mut world = World::new(scenario("25", 400.0, 11));
    run(&mut world, 2 * MINUTE);
    for verdict in world.plane().rollouts()[0].verdicts() {
        eprintln!(
            "{}: {} ({:?})",
            verdict.rule.name(),
            verdict.sentence,
            verdict.answer
        );
        assert!(!verdict.sentence.is_empty());
        assert_eq!(verdict.answer.name(), "pass", "{}", verdict.sentence);
    }
    let run = noticed("25", 1_000.0, 11, FaultKind::Errors(0.3), MINUTE);
    eprintln!("{}", run.sentence);
    assert!(
        run.sentence.starts_with("new failed ")
            && run.sentence.contains(" users in ")
            && run.sentence.contains(", legacy ")
            && run
                .sentence
                .ends_with("a healthy backend would do this once in 30 days")
    );
}

#[test]
fn a_trip_records_the_minute_before_it() {
    let mut world = World::new(scenario("50", 500.0, 12));
    run(&mut world, 2 * MINUTE);
    let from = world.elapsed();
    world.fault(Fault {
        side: Some(Side::New),
        kind: FaultKind::Errors(0.5),
        from,
        lasts: FOREVER,
    });
    run(&mut world, Duration::from_secs(2));
    let latch = world.plane().rollouts()[0]
        .latch()
        .cloned()
        .expect("latched");
    assert_eq!(latch.trip.history.len(), 240);
    assert!(
        latch.trip.history[..239]
            .iter()
            .all(|tick| tick.sides.legacy.requests > 20)
    );
    let last: u64 = latch.trip.history[238..]
        .iter()
        .map(|tick| tick.sides.new.failed)
        .sum();
    assert!(last >= 5, "the failures that decided are in it: {last}");
}

/// There are ten thousand honest users at 0.1 % errors, and clients that fail on purpose. None of
/// these clients may decide, but real failures must.
#[test]
fn clients_that_fail_on_purpose_do_not_decide() {
    let one_id = |_: u32| Requester {
        user: 7_777_777,
        network: 42,
    };
    let ids_of_one_address = |n: u32| Requester {
        user: n.wrapping_mul(2_654_435_761),
        network: 42,
    };
    let dual_stack = |n: u32| Requester {
        user: n.wrapping_mul(2_654_435_761),
        network: 42 + n % 2,
    };
    let attacks: [(&str, &dyn Fn(u32) -> Requester); 3] = [
        ("one id", &one_id),
        ("5,000 ids of one address", &ids_of_one_address),
        ("ids of two networks", &dual_stack),
    ];
    for (percent, rps) in [("5", 1_000.0), ("50", 1_000.0), ("50", 100.0)] {
        for (name, who) in attacks {
            let mut world = World::new(scenario(percent, rps, 21));
            run(&mut world, MINUTE);
            let mut sent = 0;
            for _ in 0..240 {
                for _ in 0..84 {
                    world.fails_on_purpose(who(sent), Side::New);
                    sent += 1;
                }
                let said = world.tick();
                let rolled_back = said
                    .iter()
                    .find(|announcement| matches!(announcement.change, Change::RolledBack(_)));
                assert!(
                    rolled_back.is_none(),
                    "{name} at {percent} %, {rps}/s: {rolled_back:?}"
                );
            }
            run(&mut world, MINUTE);
            let from = world.elapsed();
            world.fault(Fault {
                side: Some(Side::New),
                kind: FaultKind::Errors(0.1),
                from,
                lasts: FOREVER,
            });
            assert_eq!(
                rollbacks(&run(&mut world, MINUTE)).len(),
                1,
                "after {name} at {percent} %, {rps}/s, a real failure is still noticed"
            );
        }
    }
}

#[test]
fn a_crawler_on_one_side_does_not_make_the_other_look_bad() {
    for side in Side::BOTH {
        let mut scenario = scenario("50", 200.0, 22);
        scenario.traffic = Traffic {
            errors: 0.005,
            client_errors: 0.03,
            ..scenario.traffic
        };
        let mut world = World::new(scenario);
        for _ in 0..30 * 240 {
            world.crawls(
                Requester {
                    user: 31_337,
                    network: 5,
                },
                side,
                450,
            );
            let said: Vec<String> = world
                .tick()
                .into_iter()
                .map(|announcement| announcement.sentence)
                .collect();
            assert_eq!(said, Vec::<String>::new(), "a crawler on {side}");
        }
        let from = world.elapsed();
        world.fault(Fault {
            side: Some(Side::New),
            kind: FaultKind::Errors(0.1),
            from,
            lasts: FOREVER,
        });
        let mut waited = Duration::ZERO;
        while !world.is_rolled_back() {
            world.crawls(
                Requester {
                    user: 31_337,
                    network: 5,
                },
                side,
                450,
            );
            world.tick();
            waited += Duration::from_millis(250);
            assert!(
                waited < MINUTE,
                "a crawler on {side} does not hide a failure of everybody else"
            );
        }
    }
}

/// Adds the counts of one tick to totals, with a user for each failure.
fn add(
    totals: &mut PerSide<Totals>,
    side: Side,
    requests: u64,
    failed: u64,
    who: &mut u32,
    at: Mono,
    bad_events: &mut Vec<BadEvent>,
) {
    let counts = &mut totals[side].counts;
    counts.requests += requests;
    counts.appearances += requests;
    counts.failures[FailureKind::Status.index()] += failed;
    counts.counted[Class::Failure.index()] += failed;
    for _ in 0..if side == Side::New { failed } else { 0 } {
        *who += 1;
        bad_events.push(BadEvent {
            class: Class::Failure,
            who: Requester {
                user: *who,
                network: *who,
            },
            at,
            path: None,
            is_compared: true,
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// New fails at most as often as legacy, tick by tick, at any rate, split and traffic. No rule
    /// about failures may trip, at ticks or in between.
    #[test]
    fn evidence_never_trips_on_a_new_side_no_worse_than_legacy(
        share in 1u64..100,
        ticks in proptest::collection::vec((0u64..40, 0.0f64..1.0, 0.0f64..1.0, any::<bool>()), 1..120),
    ) {
        let mut plane = ControlPlane::new(Restored::Fresh);
        let mut now = Now::default();
        let event = Event::Settings { rollouts: vec![settings("50")], actor: Actor::file(), reason: String::new() };
        plane.on(event, now).expect("settings are never refused");
        let mut totals = PerSide::<Totals>::default();
        let mut who = 0;
        for (traffic, of_legacy, of_new, in_between) in ticks {
            let (n, m) = (traffic * share, traffic * (100 - share));
            let y = (m as f64 * of_legacy) as u64;
            // This ensures x / n <= y / m.
            let most = (n * y).checked_div(m).unwrap_or_default();
            let x = (most as f64 * of_new) as u64;
            now.mono = now.mono.forward(if in_between { Duration::from_millis(20) } else { Duration::from_millis(250) });
            let mut bad_events = Vec::new();
            add(&mut totals, Side::New, n, x, &mut who, now.mono, &mut bad_events);
            add(&mut totals, Side::Legacy, m, y, &mut who, now.mono, &mut bad_events);
            let observed = [Observed { bad_events: &bad_events, ..Observed::of(&totals) }];
            let event = if in_between { Event::Failure(&observed) } else { Event::Tick(&observed) };
            plane.on(event, now).expect("looks are never refused");
            let latch = plane.rollouts()[0].latch().map(|latch| latch.trip.sentence.clone());
            prop_assert_eq!(latch, None);
        }
    }

    /// Ticks without data are not evidence. Wherever they occur, they do not trip a rule, they lose
    /// nothing, and their order has no effect.
    #[test]
    fn ticks_without_data_have_no_effect(before in 0usize..400, between in 0usize..400, failed in 1u64..8) {
        let detector = |quiet: &[usize]| {
            let mut detector = Detector::new(Test::absolute(0.01), Mono::default());
            for &quiet in quiet {
                for _ in 0..quiet {
                    detector.fold(&Tally::default(), Mono::default());
                    detector.begin_tick();
                }
                detector.fold(&Tally { n: 10, x: failed, all_x: failed, ..Tally::default() }, Mono::default());
            }
            detector
        };
        let plain = detector(&[0, 0]);
        let with_gaps = detector(&[before, between]);
        prop_assert_eq!(plain.excursion().tally, with_gaps.excursion().tally);
        prop_assert!(with_gaps.log_evidence() >= plain.log_evidence() - 1e-9);
        let mut idle = Detector::new(Test::absolute(0.01), Mono::default());
        for _ in 0..before + between {
            idle.fold(&Tally::default(), Mono::default());
            idle.begin_tick();
        }
        prop_assert!(idle.log_evidence() <= ((before + between + 1) as f64).ln() + 1e-9, "one for each tick and no more");
    }
}

#[test]
fn a_cold_start_and_fractions_of_a_millisecond_are_no_evidence() {
    for seed in 0..5 {
        let mut cold = scenario("10", 400.0, seed);
        cold.traffic = Traffic {
            median_us: 200.0,
            sigma: 0.5,
            ..cold.traffic
        };
        let mut world = World::new(cold);
        run(&mut world, MINUTE);
        world.set(settings("50"));
        // Connections are opened and caches filled: new is fifty times as slow for a second and a
        // half, and then permanently twice as slow.
        let from = world.elapsed();
        world.fault(Fault {
            side: Some(Side::New),
            kind: FaultKind::Slow(50.0),
            from,
            lasts: Duration::from_millis(1_500),
        });
        world.fault(Fault {
            side: Some(Side::New),
            kind: FaultKind::Slow(2.0),
            from,
            lasts: FOREVER,
        });
        assert_eq!(run(&mut world, 3 * MINUTE), [], "seed {seed}");
    }
}

#[test]
fn a_stall_that_slows_requests_in_flight_counts_as_one_event() {
    for seed in 0..3 {
        let mut stalls = scenario("50", 4_000.0, seed);
        stalls.traffic = Traffic {
            median_us: 2_000.0,
            sigma: 0.5,
            ..stalls.traffic
        };
        let mut world = World::new(stalls);
        run(&mut world, MINUTE);
        let stall = |world: &mut World, stalls: u32| {
            for stall in 1..=stalls {
                let from = world.elapsed() + stall * Duration::from_secs(8);
                world.fault(Fault {
                    side: Some(Side::New),
                    kind: FaultKind::Slow(30.0),
                    from,
                    lasts: Duration::from_millis(300),
                });
            }
        };
        stall(&mut world, 5);
        assert_eq!(run(&mut world, 2 * MINUTE), [], "seed {seed}");
        // A backend that stalls again and again has a tail that legacy does not have.
        stall(&mut world, 40);
        assert_eq!(
            rollbacks(&run(&mut world, 6 * MINUTE)).len(),
            1,
            "seed {seed}"
        );
    }
}

#[test]
fn a_lasting_slowdown_is_detected_after_two_seconds() {
    let delay = median(
        (0..9)
            .map(|seed| noticed("50", 1_000.0, seed, FaultKind::Slow(3.0), MINUTE).delay)
            .collect(),
    );
    assert!(
        (Duration::from_millis(1_750)..=Duration::from_secs(5)).contains(&delay),
        "{delay:?}"
    );
}
