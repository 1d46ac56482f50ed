//! Simulations of real but unusual traffic: users who always fail, requests without a key, long
//! polls, a legacy that is switched off. Equal backends never cause a rollback, whatever the
//! traffic. A fault that affects users is reported, and users are never moved to a worse side.

mod common;

use std::time::Duration;

use common::*;
use cutover_core::control::plane::Change;
use cutover_core::simulation::{Fault, FaultKind, Scenario, Traffic, World};
use cutover_core::{Announcement, Percent, Rule, Side, UserList};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);

fn new(kind: FaultKind) -> Fault {
    at_once(Some(Side::New), kind)
}

fn legacy(kind: FaultKind) -> Fault {
    at_once(Some(Side::Legacy), kind)
}

/// Adds a fault that begins now and lasts for this time.
fn break_for(world: &mut World, fault: Fault, lasts: Duration) {
    let from = world.elapsed();
    world.fault(Fault {
        from,
        lasts,
        ..fault
    });
}

fn changes(said: &[(&'static str, String)]) -> Vec<&'static str> {
    said.iter().map(|(change, _)| *change).collect()
}

/// Runs until a change of this kind is announced. Returns the time until then, or `None` after
/// `patience`.
fn until(world: &mut World, change: &str, patience: Duration) -> Option<(Duration, Announcement)> {
    let begin = world.elapsed();
    while world.elapsed() < begin + patience {
        if let Some(found) = world
            .tick()
            .into_iter()
            .find(|announcement| announcement.change.name() == change)
        {
            return Some((world.elapsed() - begin, found));
        }
    }
    None
}

// A rollback must lead to a better state.

#[test]
fn a_legacy_that_is_switched_off_gets_no_users_and_is_reported() {
    for percent in ["100", "95"] {
        let mut world = World::new(scenario(percent, 100.0, 1));
        run(&mut world, MINUTE);
        break_for(&mut world, legacy(FaultKind::NoServer), FOREVER);
        run(&mut world, 20 * SECOND);
        break_for(&mut world, new(FaultKind::Errors(0.04)), FOREVER);
        let said = run(&mut world, 3 * MINUTE);
        assert_eq!(rollbacks(&said), Vec::<String>::new(), "{percent} %");
        assert_eq!(
            changes(&said).first(),
            Some(&"no_refuge"),
            "{percent} %: {said:?}"
        );
        assert!(
            said[0].1.starts_with(
                "checkout: new is worse, but legacy does not answer: no user was moved, raises are \
                 frozen at"
            ),
            "{said:?}"
        );
        let sentence = world.plane().rollouts()[0].sentence();
        assert!(
            sentence.contains("new is worse, but legacy does not answer, so no user was moved"),
            "{sentence}"
        );
        // The raise waits.
        let mut raised = settings("100");
        raised.guard.min_users = 4;
        world.set(raised);
        let effective = world.plane().rollouts()[0].effective();
        assert!(percent == "100" || effective < Percent::FULL, "{effective}");
    }
}

#[test]
fn a_dead_new_beside_a_dead_legacy_is_reported_within_a_second() {
    for seed in 0..20 {
        let mut world = World::new(scenario("100", 2_000.0, seed));
        run(&mut world, 30 * SECOND);
        break_for(&mut world, legacy(FaultKind::Refused), FOREVER);
        run(&mut world, 5 * SECOND);
        break_for(&mut world, new(FaultKind::Refused), FOREVER);
        let (after, _) = until(&mut world, "no_refuge", 3 * SECOND)
            .unwrap_or_else(|| panic!("seed {seed}: not told"));
        assert!(after <= SECOND, "seed {seed}: {after:?}");
        assert!(!world.is_rolled_back(), "seed {seed}");
    }
}

#[test]
fn a_worse_new_is_rolled_back_when_legacy_is_back() {
    let mut world = World::new(scenario("100", 200.0, 2));
    run(&mut world, MINUTE);
    break_for(&mut world, legacy(FaultKind::Refused), 60 * SECOND);
    run(&mut world, 15 * SECOND);
    break_for(&mut world, new(FaultKind::Errors(0.3)), FOREVER);
    assert!(until(&mut world, "no_refuge", 20 * SECOND).is_some());
    let (after, _) = until(&mut world, "rollback", 90 * SECOND).expect("a rollback");
    let elapsed = world.elapsed();
    // Legacy is back two minutes after the beginning.
    assert!(
        elapsed >= 120 * SECOND && elapsed <= 130 * SECOND,
        "{elapsed:?} ({after:?})"
    );
}

#[test]
fn a_new_that_recovers_before_legacy_is_not_rolled_back() {
    let mut world = World::new(scenario("100", 200.0, 3));
    run(&mut world, MINUTE);
    break_for(&mut world, legacy(FaultKind::Refused), 3 * MINUTE);
    run(&mut world, 15 * SECOND);
    break_for(&mut world, new(FaultKind::Errors(0.3)), 20 * SECOND);
    let said = run(&mut world, 10 * MINUTE);
    assert_eq!(changes(&said), ["no_refuge", "no_refuge_ended"], "{said:?}");
}

#[test]
fn a_legacy_that_dies_after_a_rollback_spills_and_gets_users_back() {
    let mut world = World::new(scenario("50", 200.0, 4));
    run(&mut world, MINUTE);
    break_for(&mut world, new(FaultKind::Errors(0.3)), 5 * SECOND);
    assert!(until(&mut world, "rollback", 10 * SECOND).is_some());
    run(&mut world, 10 * SECOND);
    break_for(&mut world, legacy(FaultKind::Refused), 2 * MINUTE);
    let (after, _) = until(&mut world, "spilled", 30 * SECOND).expect("users are spilled");
    assert!(after <= 6 * SECOND, "{after:?}");
    assert!(world.is_rolled_back(), "the latch stays");
    let (after, _) = until(&mut world, "spill_ended", 4 * MINUTE).expect("they are back");
    assert!(after >= 110 * SECOND, "{after:?}");
    assert!(world.is_rolled_back());
}

#[test]
fn a_legacy_that_cannot_carry_its_users_is_reported() {
    for (kind, what) in [
        (FaultKind::Errors(0.4), "failed"),
        (FaultKind::Slow(8.0), "took more than"),
    ] {
        let mut world = World::new(scenario("50", 500.0, 5));
        run(&mut world, MINUTE);
        break_for(&mut world, new(FaultKind::Errors(0.2)), 5 * SECOND);
        assert!(until(&mut world, "rollback", 10 * SECOND).is_some());
        break_for(&mut world, legacy(kind), FOREVER);
        let (after, told) = until(&mut world, "legacy_overloaded", 30 * SECOND)
            .unwrap_or_else(|| panic!("{kind:?} is not told"));
        assert!(
            after <= 5 * SECOND
                && told
                    .sentence
                    .contains("legacy fares worse since the rollback: legacy ")
                && told.sentence.contains(what),
            "{after:?}: {}",
            told.sentence
        );
    }
}

// Comparisons of comparable users.

/// Runs a world of equal backends, and returns the announcements.
fn equal(
    seed: u64,
    percent: &str,
    rps: f64,
    traffic: impl FnOnce(Traffic) -> Traffic,
    time: Duration,
) -> Vec<(&'static str, String)> {
    let mut scenario = scenario(percent, rps, seed);
    scenario.traffic = traffic(scenario.traffic);
    run(&mut World::new(scenario), time)
}

#[test]
fn requests_without_a_key_are_not_compared_with_users_on_new() {
    for seed in 0..3 {
        let said = equal(
            seed,
            "50",
            300.0,
            |traffic| Traffic {
                keyless: 0.8,
                errors: 0.005,
                ..traffic
            },
            10 * MINUTE,
        );
        assert_eq!(said, [], "seed {seed}");
    }
}

#[test]
fn staff_on_slow_pages_are_not_compared_with_other_users() {
    for seed in 0..3 {
        let mut scenario = scenario("0", 100.0, seed);
        scenario.traffic = Traffic {
            users: 60,
            networks: 30,
            listed_times: 8.0,
            ..scenario.traffic
        };
        scenario.settings.always_new = UserList::new((0..10).map(|user| format!("u{user}")));
        assert_eq!(
            run(&mut World::new(scenario), 10 * MINUTE),
            [],
            "seed {seed}"
        );
    }
}

#[test]
fn a_limit_also_covers_users_who_are_not_compared() {
    let mut scenario = scenario("0", 200.0, 1);
    scenario.traffic = Traffic {
        users: 60,
        networks: 30,
        ..scenario.traffic
    };
    scenario.settings.always_new = UserList::new((0..10).map(|user| format!("u{user}")));
    let mut world = World::new(scenario);
    run(&mut world, MINUTE);
    break_for(&mut world, new(FaultKind::Errors(0.5)), FOREVER);
    assert!(
        until(&mut world, "rollback", 30 * SECOND).is_some(),
        "staff is affected, and no other user is on new"
    );
}

/// Users with expired tokens, large accounts or slow devices are drawn once and stay the same.
#[test]
fn users_who_always_fail_and_are_on_new_by_chance_do_not_blame_new() {
    for seed in 0..40 {
        let said = equal(
            seed,
            "6.7",
            60.0,
            |traffic| Traffic {
                users: 300,
                networks: 300,
                persistent: 0.087,
                is_uneven: true,
                night: 0.8,
                ..traffic
            },
            HOUR / 2,
        );
        assert_eq!(rollbacks(&said), Vec::<String>::new(), "seed {seed}");
    }
    for seed in 0..10 {
        let said = equal(
            seed,
            "50",
            30.0,
            |traffic| Traffic {
                users: 40,
                networks: 40,
                slow_users: 0.1,
                slow_times: 20.0,
                is_uneven: true,
                ..traffic
            },
            HOUR / 2,
        );
        assert_eq!(
            rollbacks(&said),
            Vec::<String>::new(),
            "slow devices, seed {seed}"
        );
    }
}

#[test]
fn a_fault_of_many_users_is_detected_as_fast_as_before() {
    // The table of delays with users as trials: the median of 15 runs must be within a third of it.
    for (kind, seconds) in [
        (FaultKind::Errors(0.05), 9),
        (FaultKind::ErrorsOfUsers(0.5), 2),
        (FaultKind::ErrorsOfUsers(0.05), 18),
        (FaultKind::Slow(3.0), 12),
    ] {
        let delays: Vec<Duration> = (0..15)
            .map(|seed| {
                let mut scenario = scenario("5", 1_000.0, seed);
                scenario.traffic = Traffic {
                    users: 20_000,
                    networks: 5_000,
                    ..scenario.traffic
                };
                scenario
                    .settings
                    .guard
                    .rules
                    .retain(|rule| !matches!(rule, Rule::ErrorsMax(_) | Rule::Dead(_)));
                let mut world = World::new(scenario);
                run(&mut world, MINUTE);
                break_for(&mut world, new(kind), FOREVER);
                until(&mut world, "rollback", 4 * MINUTE)
                    .unwrap_or_else(|| panic!("seed {seed}: {kind:?} is not found"))
                    .0
            })
            .collect();
        let delay = median(delays);
        eprintln!("{kind:?}: {delay:?}");
        assert!(delay <= Duration::from_secs(seconds), "{kind:?}: {delay:?}");
    }
}

#[test]
fn one_user_who_fails_on_both_sides_at_night_causes_no_rollback() {
    for seed in 0..5 {
        // There is one user, who is on new, and both backends fail this user.
        let mut scenario = scenario("99", 0.5, seed);
        scenario.traffic = Traffic {
            users: 2,
            networks: 2,
            persistent: 1.0,
            persistent_rate: 1.0,
            ..scenario.traffic
        };
        assert_eq!(
            rollbacks(&run(&mut World::new(scenario), 2 * HOUR)),
            Vec::<String>::new(),
            "seed {seed}"
        );
    }
}

// Usual behaviour is not a cause.

/// Returns a world in which legacy shows its usual behaviour for an hour and a quarter, after which
/// new receives more users.
fn raised(
    seed: u64,
    traffic: impl FnOnce(Traffic) -> Traffic,
    change: impl FnOnce(&mut Scenario),
) -> World {
    let mut scenario = scenario("5", 60.0, seed);
    scenario.traffic = traffic(Traffic {
        users: 300,
        networks: 300,
        ..scenario.traffic
    });
    change(&mut scenario);
    let mut raised = scenario.settings.clone();
    let mut world = World::new(scenario);
    run(&mut world, 75 * MINUTE);
    raised.percent = Percent::parse("25").expect("a percentage");
    world.set(raised);
    world
}

fn polls(traffic: Traffic) -> Traffic {
    Traffic {
        polls: 0.05,
        ..traffic
    }
}

#[test]
fn long_polls_undo_no_raise_and_freeze_nothing_permanently() {
    for seed in 0..3 {
        let mut world = raised(seed, polls, |_| ());
        let said = run(&mut world, 30 * MINUTE);
        assert_eq!(said, [], "seed {seed}");
    }
}

#[test]
fn chronic_errors_on_both_sides_undo_no_raise() {
    for seed in 0..3 {
        let mut world = raised(
            seed,
            |traffic| Traffic {
                errors: 0.03,
                ..traffic
            },
            |_| (),
        );
        let said = run(&mut world, 30 * MINUTE);
        assert_eq!(said, [], "seed {seed}");
        let verdicts = world.plane().rollouts()[0].verdicts();
        let errors = verdicts
            .iter()
            .find(|verdict| verdict.rule.name() == "errors_max")
            .expect("the rule");
        assert!(
            errors.sentence.contains("legacy has 3")
                && errors.sentence.contains("as ever, so 1 % is judged as"),
            "{}",
            errors.sentence
        );
    }
}

#[test]
fn an_outage_of_both_sides_freezes_raises_and_new_alone_is_blamed() {
    for seed in 0..3 {
        let mut world = raised(seed, polls, |_| ());
        run(&mut world, 15 * MINUTE);
        break_for(&mut world, at_once(None, FaultKind::Errors(0.3)), MINUTE);
        let said = run(&mut world, MINUTE);
        assert_eq!(
            (changes(&said), world.is_rolled_back()),
            (vec!["shared_cause"], false),
            "seed {seed}: {said:?}"
        );

        let mut world = raised(seed, polls, |_| ());
        run(&mut world, 15 * MINUTE);
        break_for(&mut world, new(FaultKind::Errors(0.3)), FOREVER);
        let (after, _) = until(&mut world, "rollback", MINUTE)
            .unwrap_or_else(|| panic!("seed {seed}: new is blamed"));
        assert!(after <= 20 * SECOND, "seed {seed}: {after:?}");
    }
}

// The warm-up after a raise.

#[test]
fn a_slow_warm_up_is_not_latched_but_a_lasting_slowdown_is() {
    for seed in 0..3 {
        let mut world = World::new(scenario("5", 300.0, seed));
        run(&mut world, 2 * MINUTE);
        world.set(settings("25"));
        break_for(&mut world, new(FaultKind::Slow(3.0)), 30 * SECOND);
        run(&mut world, 10 * SECOND);
        let verdicts = world.plane().rollouts()[0].verdicts();
        let latency = verdicts
            .iter()
            .find(|verdict| verdict.rule.name() == "latency_vs_legacy")
            .expect("the rule");
        assert!(
            latency
                .sentence
                .starts_with("warming up after the raise, 20 s left, p95 2.")
                || latency
                    .sentence
                    .starts_with("warming up after the raise, 20 s left, p95 3."),
            "{}",
            latency.sentence
        );
        assert_eq!(run(&mut world, 5 * MINUTE), [], "seed {seed}");
        break_for(&mut world, new(FaultKind::Slow(3.0)), FOREVER);
        assert!(
            until(&mut world, "rollback", MINUTE).is_some(),
            "seed {seed}"
        );
    }
}

#[test]
fn errors_count_during_the_warm_up() {
    let mut world = World::new(scenario("5", 300.0, 1));
    run(&mut world, 2 * MINUTE);
    world.set(settings("25"));
    break_for(&mut world, new(FaultKind::Errors(0.5)), FOREVER);
    assert!(until(&mut world, "rollback", 5 * SECOND).is_some());
}

// Faults that were not detected before.

#[test]
fn a_redirect_loop_on_new_is_detected_but_one_redirect_is_not() {
    for seed in 0..3 {
        let mut world = World::new(scenario("25", 300.0, seed));
        run(&mut world, MINUTE);
        break_for(&mut world, new(FaultKind::Redirects(1.0)), FOREVER);
        let (after, told) = until(&mut world, "rollback", 5 * MINUTE)
            .unwrap_or_else(|| panic!("seed {seed}: not noticed"));
        assert!(
            told.sentence.contains("sent users in circles"),
            "{}",
            told.sentence
        );
        eprintln!("seed {seed}: after {after:?}: {}", told.sentence);
        // Both sides redirect all users to a login, as a site does.
        let mut world = World::new(scenario("25", 300.0, seed));
        run(&mut world, MINUTE);
        break_for(
            &mut world,
            at_once(None, FaultKind::Redirects(1.0)),
            FOREVER,
        );
        assert_eq!(run(&mut world, 5 * MINUTE), [], "seed {seed}");
    }
}

#[test]
fn a_tail_that_becomes_very_slow_is_detected() {
    for (share, times, rps, seconds) in [(0.04, 75.0, 200.0, 40), (0.01, 20.0, 2_000.0, 60)] {
        let delays: Vec<Duration> = (0..5)
            .map(|seed| {
                let mut scenario = scenario("50", rps, seed);
                scenario.traffic = Traffic {
                    sigma: 0.5,
                    ..scenario.traffic
                };
                let mut world = World::new(scenario);
                run(&mut world, 6 * MINUTE);
                break_for(&mut world, new(FaultKind::Tail(share, times)), FOREVER);
                until(&mut world, "rollback", 5 * MINUTE)
                    .unwrap_or_else(|| {
                        panic!(
                            "seed {seed}: {share} of requests {times} times slower are not noticed"
                        )
                    })
                    .0
            })
            .collect();
        let delay = median(delays);
        eprintln!("{share} of requests {times} times slower at {rps}/s: {delay:?}");
        assert!(delay <= Duration::from_secs(seconds), "{delay:?}");
    }
}

// The last steps of a rollout.

#[test]
fn a_dead_new_costs_a_dozen_answers_at_any_share_and_after_a_raise() {
    for percent in ["1", "25", "50", "95", "99.9", "100"] {
        for settled in [Duration::from_secs(5), Duration::from_secs(30)] {
            let bad: Vec<u64> = (0..10)
                .map(|seed| {
                    let mut world = World::new(scenario("50", 2_000.0, seed));
                    run(&mut world, 15 * SECOND);
                    world.set(settings(percent));
                    run(&mut world, settled);
                    let (_, before) = world.on_new();
                    break_for(&mut world, new(FaultKind::Refused), FOREVER);
                    until(&mut world, "rollback", 30 * SECOND)
                        .unwrap_or_else(|| panic!("{percent} %, seed {seed}: not noticed"));
                    world.bad_at_trip().unwrap_or_default() - before
                })
                .collect();
            let most = bad.iter().max().copied().unwrap_or_default();
            let half = median(bad);
            eprintln!("{percent} %, {settled:?} after the raise: median {half}, at most {most}");
            assert!(
                half <= 12 && most <= 30,
                "{percent} %, {settled:?} after the raise: median {half}, at most {most}"
            );
        }
    }
}

#[test]
fn each_kind_of_announcement_has_a_name_of_its_own() {
    let names = [
        Change::NoRefuge,
        Change::NoRefugeEnded,
        Change::Spilled,
        Change::SpillEnded,
        Change::LegacyOverloaded,
    ]
    .map(|change| change.name());
    assert_eq!(
        names,
        [
            "no_refuge",
            "no_refuge_ended",
            "spilled",
            "spill_ended",
            "legacy_overloaded"
        ]
    );
}

#[test]
fn a_short_outage_of_legacy_causes_no_rollback() {
    for (percent, outage, kind) in [
        ("50", 4, FaultKind::Refused),
        ("50", 10, FaultKind::Refused),
        ("30", 10, FaultKind::Errors(1.0)),
        ("80", 10, FaultKind::Refused),
        ("10", 25, FaultKind::Errors(0.5)),
        ("50", 40, FaultKind::Hang),
    ] {
        let mut world = World::new(scenario(percent, 100.0, 3));
        run(&mut world, 10 * MINUTE);
        break_for(&mut world, legacy(kind), outage * SECOND);
        let said = run(&mut world, 5 * MINUTE);
        assert_eq!(
            rollbacks(&said),
            Vec::<String>::new(),
            "{percent} %, {kind:?} for {outage} s"
        );
    }
}

#[test]
fn a_legacy_that_fails_most_requests_is_no_reference_for_new() {
    for errors in [0.4, 0.95] {
        let mut world = World::new(scenario("50", 100.0, 5));
        run(&mut world, 10 * MINUTE);
        break_for(&mut world, legacy(FaultKind::Errors(errors)), FOREVER);
        let said = run(&mut world, 30 * MINUTE);
        assert_eq!(rollbacks(&said), Vec::<String>::new(), "{errors}");
    }
}

#[test]
fn a_legacy_that_fails_all_users_after_a_rollback_spills_to_new() {
    let mut world = World::new(scenario("50", 100.0, 7));
    run(&mut world, MINUTE);
    break_for(&mut world, new(FaultKind::Errors(0.04)), FOREVER);
    let (_, dropped) = until(&mut world, "rollback", 2 * MINUTE).expect("new is worse");
    assert!(matches!(dropped.change, Change::RolledBack(_)));
    run(&mut world, 10 * SECOND);
    break_for(&mut world, legacy(FaultKind::Errors(1.0)), FOREVER);
    let (after, _) = until(&mut world, "spilled", MINUTE).expect("users are better off on new");
    assert!(after <= 5 * SECOND, "{after:?}");
}
