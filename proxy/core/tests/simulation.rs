//! Tests of the control plane on virtual time: whole lifetimes of a rollout, and the order of
//! effects.

use std::sync::Arc;
use std::time::Duration;

use cutover_core::control::plane::{Change, Restored, Standings};
use cutover_core::guard::Rule;
use cutover_core::{
    Actor, Command, CommandError, ControlPlane, Counted, Effect, Ending, Event, FailureKind,
    GuardSettings, KeySource, Lead, Maintenance, Mode, Mono, Now, Observed, Outcome, PerSide,
    Percent, Phase, Rate, RolloutSettings, Side, Totals, UserList, Via, Wall,
};
use proptest::prelude::*;

const TICK: Duration = Duration::from_millis(250);

fn percent(text: &str) -> Percent {
    Percent::parse(text).expect("a percentage")
}

fn settings(id: &str, share: &str, generation: u64) -> RolloutSettings {
    RolloutSettings {
        keys: vec![KeySource::Header("x-user-id".into()).into()],
        generation,
        guard: GuardSettings {
            mode: Mode::Threshold,
            window: Duration::from_secs(10),
            min_requests: 50,
            rules: vec![Rule::ErrorsMax(
                Rate::from_ppm(10_000).expect("1 % is a rate"),
            )],
            ..GuardSettings::default()
        },
        ..RolloutSettings::for_tests(id, percent(share))
    }
}

fn cli() -> Actor {
    Actor {
        name: "ana".to_owned(),
        source: Via::Cli,
    }
}

/// A control plane, its clock and its traffic, and the state that the shell would derive from its
/// effects.
struct World {
    plane: ControlPlane,
    now: Now,
    totals: Vec<PerSide<Totals>>,
    published: Vec<(Arc<str>, Percent)>,
    closed: Vec<(Option<Arc<str>>, Maintenance)>,
    persisted: Standings,
    order: Vec<String>,
    sentences: Vec<String>,
}

impl World {
    fn new(restored: Restored) -> Self {
        let now = Now {
            mono: Mono::default(),
            wall: Wall::from_millis(1_700_000_000_000),
        };
        Self {
            plane: ControlPlane::new(restored),
            now,
            totals: vec![],
            published: vec![],
            closed: vec![],
            persisted: Standings::default(),
            order: vec![],
            sentences: vec![],
        }
    }

    fn with(rollouts: Vec<RolloutSettings>) -> Self {
        let mut world = Self::new(Restored::Fresh);
        world.settings(rollouts);
        world
    }

    fn settings(&mut self, rollouts: Vec<RolloutSettings>) {
        self.on(Event::Settings {
            rollouts,
            actor: Actor::file(),
            reason: String::new(),
        })
        .expect("settings are never refused");
    }

    fn command(&mut self, rollout: &str, command: Command) -> Result<(), CommandError> {
        self.on(Event::Command {
            rollout,
            command,
            actor: cli(),
            reason: "CHG-7".to_owned(),
        })
    }

    fn maintain(
        &mut self,
        rollout: Option<&str>,
        mode: Maintenance,
        lasts: Option<Duration>,
    ) -> Result<(), CommandError> {
        self.on(Event::Maintenance {
            rollout,
            mode,
            lasts,
            actor: cli(),
            reason: "CHG-7".to_owned(),
        })
    }

    /// Returns the mode for requests of a rollout, or for requests that match none.
    fn mode(&self, rollout: Option<&str>) -> Maintenance {
        self.closed
            .iter()
            .find(|(known, _)| known.as_deref() == rollout)
            .map(|(_, mode)| *mode)
            .expect("it was published")
    }

    fn on(&mut self, event: Event<'_>) -> Result<(), CommandError> {
        self.order.clear();
        for effect in self.plane.on(event, self.now)? {
            match effect {
                Effect::Publish(split) => {
                    let mode = |mode: Maintenance| {
                        if mode == Maintenance::Off {
                            String::new()
                        } else {
                            format!("/{}", mode.name())
                        }
                    };
                    let mut shares: Vec<String> = split
                        .rollouts
                        .iter()
                        .map(|rollout| {
                            format!(
                                "{}={}{}",
                                rollout.rule.id,
                                rollout.percent,
                                mode(rollout.maintenance.mode)
                            )
                        })
                        .collect();
                    shares.extend(
                        (split.maintenance.mode != Maintenance::Off)
                            .then(|| format!("*{}", mode(split.maintenance.mode))),
                    );
                    let everything = (None, split.maintenance.mode);
                    self.closed = split
                        .rollouts
                        .iter()
                        .map(|rollout| {
                            (Some(Arc::clone(&rollout.rule.id)), rollout.maintenance.mode)
                        })
                        .chain([everything])
                        .collect();
                    self.order.push(format!("publish {}", shares.join(" ")));
                    assert!(
                        split
                            .rollouts
                            .iter()
                            .all(|rollout| !rollout.latched || rollout.percent == Percent::ZERO)
                    );
                    self.published = split
                        .rollouts
                        .iter()
                        .map(|rollout| (Arc::clone(&rollout.rule.id), rollout.percent))
                        .collect();
                }
                Effect::Persist(standings) => {
                    self.order.push("persist".to_owned());
                    self.persisted = standings;
                }
                Effect::Ask { rollout, side } => {
                    self.order.push(format!("ask {side} of {rollout}"));
                }
                Effect::Announce(announcement) => {
                    self.order
                        .push(format!("announce {}", announcement.change.name()));
                    self.sentences.push(announcement.sentence.clone());
                }
            }
        }
        Ok(())
    }

    /// Runs one tick in which each side answered `requests`, of which `failed` failed.
    fn tick(&mut self, traffic: PerSide<(u64, u64)>) {
        self.totals.resize_with(1, PerSide::default);
        for side in Side::BOTH {
            let (requests, failed) = traffic[side];
            for request in 0..requests {
                let outcome = if request < failed {
                    Outcome::Failure(FailureKind::Status)
                } else {
                    Outcome::Success
                };
                self.totals[0][side].record(
                    &Ending {
                        outcome,
                        status: Some(200),
                        latency_us: Some(5_000),
                        evidence: cutover_core::Evidence::Compared,
                    },
                    Counted::default(),
                );
            }
        }
        self.pass(TICK);
        let totals = std::mem::take(&mut self.totals);
        self.on(Event::Tick(
            &totals.iter().map(Observed::of).collect::<Vec<_>>(),
        ))
        .expect("ticks are never refused");
        self.totals = totals;
    }

    fn pass(&mut self, time: Duration) {
        self.now.mono = self.now.mono.forward(time);
        self.now.wall = Wall::from_millis(
            self.now.wall.as_millis() + i64::try_from(time.as_millis()).expect("a short time"),
        );
    }

    fn share(&self, id: &str) -> String {
        self.published
            .iter()
            .find(|(known, _)| &**known == id)
            .map_or_else(|| "gone".to_owned(), |(_, share)| share.to_string())
    }

    /// Returns the same state in a new process, at the same time of day.
    fn restart(&self) -> Self {
        let mut world = Self::new(Restored::Known(self.persisted.clone()));
        world.now.wall = self.now.wall;
        world
    }
}

const HEALTHY: PerSide<(u64, u64)> = PerSide {
    legacy: (190, 0),
    new: (10, 0),
};
const BROKEN: PerSide<(u64, u64)> = PerSide {
    legacy: (190, 0),
    new: (10, 10),
};

fn tripped() -> World {
    let mut world = World::with(vec![settings("checkout", "5", 1)]);
    for _ in 0..50 {
        world.tick(HEALTHY);
    }
    while world.share("checkout") == "5" {
        world.tick(BROKEN);
    }
    world
}

#[test]
fn a_breach_publishes_zero_then_persists_then_announces() {
    let world = tripped();
    assert_eq!(
        world.order,
        ["publish checkout=0", "persist", "announce rollback"]
    );
    assert_eq!(
        world.sentences.last().map(String::as_str),
        Some(
            "checkout: rolled back from 5 % to 0 %: new failed 10 of 400 requests (2.5 %), limit \
             1 %; legacy 0 of 7600 (0 %), in the last 10 s"
        )
    );
}

#[test]
fn a_breach_is_detected_within_the_window_and_one_tick() {
    // The window needs 50 healthy requests. Then more than 1 % of 400 must fail: 5 requests, all in
    // the first broken tick.
    let mut world = World::with(vec![settings("checkout", "5", 1)]);
    for _ in 0..50 {
        world.tick(HEALTHY);
    }
    let before = world.now.mono;
    while world.share("checkout") == "5" {
        world.tick(BROKEN);
    }
    assert_eq!(world.now.mono.since(before), TICK);
}

#[test]
fn a_healthy_rollout_continues() {
    let mut world = World::with(vec![settings("checkout", "5", 1)]);
    for _ in 0..4_000 {
        world.tick(PerSide {
            legacy: (190, 1),
            new: (200, 1),
        });
    }
    assert_eq!(world.share("checkout"), "5");
}

/// Returns a control plane with these shares, as another process would have it.
fn plane_of(shares: &[(&str, &str)]) -> ControlPlane {
    let mut plane = ControlPlane::new(Restored::Fresh);
    let rollouts = shares
        .iter()
        .map(|(id, share)| settings(id, share, 1))
        .collect();
    plane
        .on(
            Event::Settings {
                rollouts,
                actor: cli(),
                reason: String::new(),
            },
            Now::default(),
        )
        .expect("settings are never refused");
    plane
}

#[test]
fn a_follower_exposes_what_the_leader_does_and_keeps_its_own_latch() {
    let lead = Lead::of(&plane_of(&[("a", "5"), ("b", "60"), ("c", "7")]).split());
    let mut follower = plane_of(&[("a", "50"), ("b", "50"), ("c", "50"), ("gone", "50")]);
    let rollback = Event::Command {
        rollout: "c",
        command: Command::Rollback { force: true },
        actor: cli(),
        reason: "odd".to_owned(),
    };
    follower.on(rollback, Now::default()).expect("a rollback");
    let led = follower.split().led_by(&lead);
    let seen: Vec<(&str, String, bool)> = led
        .rollouts
        .iter()
        .map(|rollout| {
            (
                &*rollout.rule.id,
                rollout.percent.to_string(),
                rollout.latched,
            )
        })
        .collect();
    let of = |id, share: &str, latched| (id, share.to_owned(), latched);
    assert_eq!(
        seen,
        [
            of("a", "5", false),
            of("b", "60", false),
            of("c", "0", true),
            of("gone", "0", true)
        ]
    );
}

#[test]
fn a_trip_of_another_process_latches_once_with_its_cause() {
    let trip = tripped()
        .plane
        .rollout("checkout")
        .and_then(|rollout| rollout.latch())
        .expect("a latch")
        .trip
        .clone();
    let mut plane = plane_of(&[("checkout", "5")]);
    let event = || Event::Tripped {
        rollout: "checkout",
        trip: trip.clone(),
        actor: Actor::guard(),
        reason: "over there".to_owned(),
    };
    let effects = plane.on(event(), Now::default()).expect("never refused");
    assert!(
        matches!(
            effects[..],
            [Effect::Publish(_), Effect::Persist(_), Effect::Announce(_)]
        ),
        "a drop is in force first: {effects:?}"
    );
    assert_eq!(
        plane
            .rollout("checkout")
            .and_then(|rollout| rollout.latch())
            .map(|latch| &latch.trip),
        Some(&trip)
    );
    assert!(
        plane
            .on(event(), Now::default())
            .expect("never refused")
            .is_empty()
    );
}

#[test]
fn only_rearm_or_a_higher_generation_lifts_the_latch() {
    let mut world = tripped();
    let same = settings("checkout", "5", 1);
    for settings in [
        same.clone(),
        settings("checkout", "50", 1),
        RolloutSettings {
            always_new: UserList::new(["qa"]),
            ..same.clone()
        },
        settings("checkout", "100", 0),
    ] {
        world.settings(vec![settings]);
        assert_eq!(world.share("checkout"), "0");
    }
    world.settings(vec![]);
    world.settings(vec![same.clone()]);
    assert_eq!(
        world.share("checkout"),
        "0",
        "taking the block out and putting it back is no re-arming"
    );
    let mut world = world.restart();
    world.settings(vec![same]);
    assert_eq!(world.share("checkout"), "0", "a restart is no re-arming");
    for _ in 0..100 {
        world.tick(HEALTHY);
    }
    assert_eq!(world.share("checkout"), "0", "time is no re-arming");

    let mut by_generation = world.restart();
    by_generation.settings(vec![settings("checkout", "5", 2)]);
    assert_eq!(by_generation.share("checkout"), "5");

    world
        .command("checkout", Command::Rearm)
        .expect("it is rolled back");
    assert_eq!(world.share("checkout"), "5");
    assert_eq!(
        world.order,
        ["persist", "publish checkout=5", "announce rearm"]
    );
}

#[test]
fn a_latch_survives_a_restart_while_its_rollout_is_out_of_the_file() {
    let mut world = tripped();
    world.settings(vec![settings("other", "1", 1)]);
    let mut world = world.restart();
    world.settings(vec![settings("other", "1", 1)]);
    let mut world = world.restart();
    world.settings(vec![settings("checkout", "5", 1)]);
    assert_eq!(world.share("checkout"), "0");
}

#[test]
fn a_rearmed_guard_starts_without_evidence() {
    let mut world = tripped();
    world
        .command("checkout", Command::Rearm)
        .expect("it is rolled back");
    for _ in 0..50 {
        world.tick(HEALTHY);
    }
    assert_eq!(
        world.share("checkout"),
        "5",
        "what was bad before does not count again"
    );
    for _ in 0..2 {
        world.tick(BROKEN);
    }
    assert_eq!(
        world.share("checkout"),
        "0",
        "and it trips again when it is bad again"
    );
}

#[test]
fn a_raise_is_saved_before_it_applies_and_a_drop_after() {
    let mut world = World::with(vec![settings("a", "5", 1), settings("b", "50", 1)]);
    world.settings(vec![settings("a", "6", 1), settings("b", "50", 1)]);
    assert_eq!(
        world.order,
        ["persist", "publish a=6 b=50", "announce percent"]
    );
    world.settings(vec![settings("a", "4.5", 1), settings("b", "50", 1)]);
    assert_eq!(
        world.order,
        ["publish a=4.5 b=50", "persist", "announce percent"]
    );
    world.settings(vec![
        settings("a", "10", 1),
        settings("b", "20", 1),
        settings("c", "1", 1),
    ]);
    assert_eq!(
        world.order,
        [
            "publish a=4.5 b=20 c=0",
            "persist",
            "publish a=10 b=20 c=1",
            "announce percent",
            "announce percent",
            "announce added"
        ]
    );
}

#[test]
fn a_rearm_beside_a_drop_stays_latched_until_the_change_is_durable() {
    let mut world = World::with(vec![settings("a", "5", 1), settings("b", "50", 1)]);
    world
        .command("a", Command::Rollback { force: true })
        .expect("it is there");
    let event = Event::Settings {
        rollouts: vec![settings("a", "20", 2), settings("b", "10", 1)],
        actor: Actor::file(),
        reason: String::new(),
    };
    let effects = world
        .plane
        .on(event, world.now)
        .expect("settings are never refused");
    let [
        Effect::Publish(lower),
        Effect::Persist(_),
        Effect::Publish(whole),
        ..,
    ] = &effects[..]
    else {
        panic!("publish, persist, publish: {effects:?}")
    };
    let state = |split: &cutover_core::Split| {
        split
            .rollouts
            .iter()
            .map(|rollout| (rollout.percent.to_string(), rollout.latched))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        state(lower),
        [("0".to_owned(), true), ("10".to_owned(), false)],
        "lists of users on new do not count either while latched"
    );
    assert_eq!(
        state(whole),
        [("20".to_owned(), false), ("10".to_owned(), false)]
    );
    assert!(lower.revision < whole.revision);
}

#[test]
fn a_file_without_changes_announces_nothing() {
    let mut world = World::with(vec![settings("checkout", "5", 1)]);
    world.settings(vec![settings("checkout", "5", 1)]);
    assert_eq!(world.order, ["persist", "publish checkout=5"]);
}

#[test]
fn a_manual_rollback_records_its_reason() {
    let mut world = World::with(vec![settings("checkout", "25", 1)]);
    world
        .command("checkout", Command::Rollback { force: true })
        .expect("it is there");
    assert_eq!(
        world.order,
        ["publish checkout=0", "persist", "announce rollback"]
    );
    assert_eq!(
        world.sentences.last().map(String::as_str),
        Some("checkout: rolled back from 25 % to 0 %: ana sent everyone to legacy: CHG-7")
    );
    world
        .command("checkout", Command::Rollback { force: true })
        .expect("twice is once");
    assert!(world.order.is_empty());
}

#[test]
fn invalid_commands_change_nothing() {
    let mut world = World::with(vec![settings("checkout", "25", 1)]);
    let unknown = world
        .command("chekout", Command::Rollback { force: true })
        .expect_err("there is no such rollout");
    assert_eq!(
        unknown.to_string(),
        "no rollout has the id `chekout`; there are: checkout"
    );
    let nothing = world
        .command("checkout", Command::Rearm)
        .expect_err("it is not rolled back");
    assert_eq!(
        nothing.to_string(),
        "`checkout` is not rolled back, so there is nothing to re-arm"
    );
    assert_eq!(world.share("checkout"), "25");
}

#[test]
fn an_unreadable_state_starts_all_rollouts_at_zero_and_reports_it() {
    let mut world = World::new(Restored::Unreadable(
        "status.json: unexpected end".to_owned(),
    ));
    world.settings(vec![settings("a", "5", 1), settings("b", "50", 3)]);
    assert_eq!(
        (world.share("a"), world.share("b")),
        ("0".to_owned(), "0".to_owned())
    );
    assert!(
        world.sentences[0]
            .contains("the saved state could not be read (status.json: unexpected end)"),
        "{}",
        world.sentences[0]
    );
    assert!(
        world
            .persisted
            .rollouts
            .iter()
            .all(|standing| matches!(standing.phase, Phase::RolledBack(_)))
    );
    world
        .command("b", Command::Rearm)
        .expect("it is rolled back");
    assert_eq!(
        (world.share("a"), world.share("b")),
        ("0".to_owned(), "50".to_owned())
    );
    world.settings(vec![
        settings("a", "5", 1),
        settings("b", "50", 3),
        settings("late", "7", 1),
    ]);
    assert_eq!(
        world.share("late"),
        "7",
        "a rollout that comes later has no past to fear"
    );
}

#[test]
fn a_dry_run_reports_once_and_does_not_move_users() {
    let mut dry = settings("checkout", "5", 1);
    dry.guard.dry_run = true;
    let mut world = World::with(vec![dry]);
    for _ in 0..50 {
        world.tick(HEALTHY);
    }
    let before = world.sentences.len();
    for _ in 0..20 {
        world.tick(BROKEN);
    }
    assert_eq!(world.share("checkout"), "5");
    assert_eq!(world.sentences.len() - before, 1);
    assert!(
        world.sentences[before].starts_with(
            "checkout: would roll back, but dry_run is on: new failed 10 of 400 requests"
        ),
        "{}",
        world.sentences[before]
    );
}

#[test]
fn a_changed_percentage_under_a_latch_reports_that_no_users_move() {
    let mut world = tripped();
    world.settings(vec![settings("checkout", "25", 1)]);
    assert_eq!(
        world.sentences.last().map(String::as_str),
        Some("checkout: 5 % -> 25 % by file, but it is rolled back: 0 % of users stay on new")
    );
    let rollout = world.plane.rollout("checkout").expect("it is there");
    assert!(
        rollout.sentence().starts_with(
            "25 % asked, rolled back and latched at generation 1: 0 % of users are on new"
        ),
        "{}",
        rollout.sentence()
    );
}

const TEN_MINUTES: Duration = Duration::from_secs(600);

#[test]
fn maintenance_applies_before_it_is_saved_in_both_directions() {
    let mut world = World::with(vec![settings("checkout", "5", 1)]);
    world
        .maintain(None, Maintenance::Full, Some(TEN_MINUTES))
        .expect("everything is there");
    assert_eq!(
        world.order,
        [
            "publish checkout=5/full */full",
            "persist",
            "announce maintenance"
        ]
    );
    assert_eq!(
        world.sentences.last().map(String::as_str),
        Some("all rollouts: maintenance is full for 10 min by ana, every request gets 503: CHG-7")
    );
    world
        .maintain(None, Maintenance::Off, None)
        .expect("it is on");
    assert_eq!(
        world.order,
        ["publish checkout=5", "persist", "announce maintenance"]
    );
    assert_eq!(
        world.sentences.last().map(String::as_str),
        Some("all rollouts: maintenance is off by ana: CHG-7")
    );
    assert!(world.persisted.maintenance.is_empty());
    world
        .maintain(None, Maintenance::Off, None)
        .expect("off twice is off");
    assert!(world.order.is_empty());
}

#[test]
fn the_stricter_of_a_global_and_a_rollout_window_applies() {
    let mut world = World::with(vec![settings("a", "5", 1), settings("b", "50", 1)]);
    world
        .maintain(Some("a"), Maintenance::Hold, None)
        .expect("it is there");
    assert_eq!(
        (
            world.mode(Some("a")),
            world.mode(Some("b")),
            world.mode(None)
        ),
        (Maintenance::Hold, Maintenance::Off, Maintenance::Off)
    );
    world
        .maintain(None, Maintenance::ReadOnly, None)
        .expect("everything is there");
    assert_eq!(
        (
            world.mode(Some("a")),
            world.mode(Some("b")),
            world.mode(None)
        ),
        (
            Maintenance::Hold,
            Maintenance::ReadOnly,
            Maintenance::ReadOnly
        )
    );
    world
        .maintain(None, Maintenance::Full, None)
        .expect("everything is there");
    assert_eq!(world.mode(Some("a")), Maintenance::Full);
    world
        .maintain(None, Maintenance::Off, None)
        .expect("it is on");
    assert_eq!(
        world.sentences.last().map(String::as_str),
        Some("all rollouts: maintenance is off by ana; a stays hold: CHG-7")
    );
    assert_eq!(
        (world.mode(Some("a")), world.mode(None)),
        (Maintenance::Hold, Maintenance::Off)
    );
    let (window, of_everything) = world.plane.maintenance(Some("a")).expect("it is on");
    assert_eq!(
        (
            window.mode,
            window.actor.name.as_str(),
            window.reason.as_str(),
            of_everything
        ),
        (Maintenance::Hold, "ana", "CHG-7", false)
    );
    assert!(world.plane.maintenance(None).is_none());
}

#[test]
fn maintenance_that_expires_is_attributed_to_the_timer() {
    let mut world = World::with(vec![settings("checkout", "5", 1)]);
    world
        .maintain(
            Some("checkout"),
            Maintenance::ReadOnly,
            Some(Duration::from_secs(1)),
        )
        .expect("it is there");
    for _ in 0..3 {
        world.tick(HEALTHY);
        assert_eq!(world.mode(Some("checkout")), Maintenance::ReadOnly);
    }
    world.tick(HEALTHY);
    assert_eq!(
        world.order,
        ["publish checkout=5", "persist", "announce maintenance"]
    );
    assert_eq!(
        world.sentences.last().map(String::as_str),
        Some("checkout: maintenance is off after 1 s, it was read-only: its time is over")
    );
    assert!(world.persisted.maintenance.is_empty());
    // A command of another operator in the meantime replaces the timer.
    world
        .maintain(None, Maintenance::Hold, Some(Duration::from_secs(1)))
        .expect("everything is there");
    world
        .maintain(None, Maintenance::Full, None)
        .expect("everything is there");
    for _ in 0..20 {
        world.tick(HEALTHY);
    }
    assert_eq!(world.mode(None), Maintenance::Full);
}

#[test]
fn maintenance_survives_a_restart_and_ends_on_time() {
    let file = vec![settings("checkout", "5", 1)];
    let mut world = World::with(file.clone());
    world
        .maintain(
            Some("checkout"),
            Maintenance::Full,
            Some(Duration::from_secs(60)),
        )
        .expect("it is there");
    world
        .maintain(None, Maintenance::ReadOnly, None)
        .expect("everything is there");
    world.pass(Duration::from_secs(30));
    let mut restarted = world.restart();
    restarted.settings(file.clone());
    assert_eq!(
        (restarted.mode(Some("checkout")), restarted.mode(None)),
        (Maintenance::Full, Maintenance::ReadOnly)
    );
    restarted.pass(Duration::from_millis(29_500));
    restarted.tick(HEALTHY);
    assert_eq!(restarted.mode(Some("checkout")), Maintenance::Full);
    restarted.tick(HEALTHY);
    assert_eq!(restarted.mode(Some("checkout")), Maintenance::ReadOnly);

    world.pass(Duration::from_secs(30));
    let mut late = world.restart();
    late.settings(file);
    assert_eq!(
        late.mode(Some("checkout")),
        Maintenance::ReadOnly,
        "its time was over while no process ran"
    );
    let told = "checkout: maintenance is off after 60 s, it was full; all rollouts stay \
                read-only: its time was over before the start";
    assert!(
        late.sentences
            .iter()
            .any(|sentence| sentence == &told.replace("60 s", "1 min")),
        "{:?}",
        late.sentences
    );
    assert_eq!(late.persisted.maintenance.len(), 1);
}

#[test]
fn maintenance_of_a_removed_rollout_waits_for_its_return() {
    let mut world = World::with(vec![settings("checkout", "5", 1)]);
    world
        .maintain(Some("checkout"), Maintenance::Full, None)
        .expect("it is there");
    world.settings(vec![]);
    let mut world = world.restart();
    world.settings(vec![settings("checkout", "5", 1)]);
    assert_eq!(world.mode(Some("checkout")), Maintenance::Full);
    world.settings(vec![]);
    world
        .maintain(Some("checkout"), Maintenance::Off, None)
        .expect("what is on can be switched off");
    let unknown = world
        .maintain(Some("checkout"), Maintenance::Full, None)
        .expect_err("there is no such rollout");
    assert_eq!(
        unknown.to_string(),
        "no rollout has the id `checkout`; there are: "
    );
}

#[test]
fn maintenance_and_a_rollback_are_independent() {
    let mut world = tripped();
    world
        .maintain(Some("checkout"), Maintenance::Hold, None)
        .expect("it is there");
    world
        .command("checkout", Command::Rearm)
        .expect("it is rolled back");
    assert_eq!(
        world.order,
        ["persist", "publish checkout=5/hold", "announce rearm"]
    );
    for _ in 0..50 {
        world.tick(HEALTHY);
    }
    while world.share("checkout") == "5" {
        world.tick(BROKEN);
    }
    assert_eq!(
        world.order,
        ["publish checkout=0/hold", "persist", "announce rollback"]
    );
    world
        .maintain(Some("checkout"), Maintenance::Off, None)
        .expect("it is on");
    assert_eq!(world.share("checkout"), "0");
}

#[test]
fn a_latch_applies_before_it_is_saved_if_only_a_list_is_on_new() {
    let mut listed = settings("checkout", "0", 1);
    listed.always_new = UserList::new(["qa"]);
    let mut world = World::with(vec![listed]);
    world
        .command("checkout", Command::Rollback { force: true })
        .expect("it is there");
    assert_eq!(
        world.order,
        ["publish checkout=0", "persist", "announce rollback"]
    );
}

#[derive(Clone, Debug)]
enum Act {
    File {
        share: u32,
        generation: u64,
        present: bool,
    },
    Rollback,
    Rearm,
    Healthy,
    Broken,
    Failure,
    Restart,
    Maintain {
        everything: bool,
        mode: Maintenance,
        ticks: Option<u32>,
    },
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (0u32..=100_000, 1u64..4, prop::bool::weighted(0.9)).prop_map(
            |(share, generation, present)| Act::File {
                share,
                generation,
                present
            }
        ),
        Just(Act::Rollback),
        Just(Act::Rearm),
        Just(Act::Healthy),
        Just(Act::Broken),
        Just(Act::Failure),
        Just(Act::Restart),
        (any::<bool>(), 0usize..4, prop::option::of(1u32..6)).prop_map(
            |(everything, mode, ticks)| Act::Maintain {
                everything,
                mode: Maintenance::ALL[mode],
                ticks
            }
        ),
    ]
}

proptest! {
    /// Whatever happens in whatever order, the published share is zero while latched, and only
    /// `rearm` or a higher generation ends that.
    #[test]
    fn the_latch_holds_through_any_sequence_of_events(acts in proptest::collection::vec(act(), 1..60)) {
        let mut file = settings("checkout", "5", 1);
        let mut world = World::with(vec![file.clone()]);
        let mut latched_at: Option<u64> = None;
        // By scope: the rollout, everything. Contains the mode, and the number of ticks until it
        // ends.
        let mut closed: [Option<(Maintenance, Option<u32>)>; 2] = [None, None];
        for act in acts {
            match act {
                Act::File { share, generation, present } => {
                    file.percent = Percent::from_thousandths(share).expect("in range");
                    file.generation = generation;
                    world.settings(if present { vec![file.clone()] } else { vec![] });
                    if present && latched_at.is_some_and(|latched| generation > latched) {
                        latched_at = None;
                    }
                }
                Act::Rollback => {
                    if world.command("checkout", Command::Rollback { force: true }).is_ok() && latched_at.is_none() {
                        latched_at = Some(file.generation);
                    }
                }
                Act::Rearm => {
                    if world.command("checkout", Command::Rearm).is_ok() {
                        latched_at = None;
                    }
                }
                Act::Healthy | Act::Broken => {
                    world.tick(if matches!(act, Act::Healthy) { HEALTHY } else { BROKEN });
                    for window in &mut closed {
                        *window = window.map(|(mode, ticks)| (mode, ticks.map(|ticks| ticks - 1))).filter(|(_, ticks)| *ticks != Some(0));
                    }
                    if world.order.contains(&"announce rollback".to_owned()) {
                        latched_at = Some(file.generation);
                    }
                }
                Act::Failure => {
                    let totals = world.totals.clone();
                    world.on(Event::Failure(&totals.iter().map(Observed::of).collect::<Vec<_>>())).expect("looks are never refused");
                }
                Act::Maintain { everything, mode, ticks } => {
                    let rollout = (!everything).then_some("checkout");
                    if world.maintain(rollout, mode, ticks.map(|ticks| TICK * ticks)).is_ok() {
                        closed[usize::from(everything)] = (mode != Maintenance::Off).then_some((mode, ticks));
                    }
                }
                Act::Restart => {
                    world = world.restart();
                    world.settings(vec![file.clone()]);
                    // The file is loaded again: a generation that rose while the rollout was out of
                    // the file counts now.
                    if latched_at.is_some_and(|latched| file.generation > latched) {
                        latched_at = None;
                    }
                }
            }
            let strictest = |windows: &[Option<(Maintenance, Option<u32>)>]| windows.iter().flatten().map(|(mode, _)| *mode).max().unwrap_or_default();
            prop_assert_eq!(world.mode(None), strictest(&closed[1..]));
            prop_assert_eq!(world.persisted.maintenance.len(), closed.iter().flatten().count(), "what is durable is what is in force");
            if world.plane.rollout("checkout").is_some() {
                prop_assert_eq!(world.mode(Some("checkout")), strictest(&closed));
                let expected = if latched_at.is_some() { Percent::ZERO } else { file.percent };
                prop_assert_eq!(world.share("checkout"), expected.to_string());
                let persisted = world.persisted.rollouts.iter().any(|standing| matches!(standing.phase, Phase::RolledBack(_)));
                prop_assert_eq!(persisted, latched_at.is_some(), "what is durable is what is in force");
            }
        }
    }
}

#[test]
fn every_change_has_a_name() {
    let trip = tripped()
        .plane
        .rollout("checkout")
        .and_then(|rollout| rollout.latch().cloned())
        .expect("latched")
        .trip;
    assert_eq!(trip.cause.label(), "errors_max");
    assert_eq!(Change::RolledBack(trip).name(), "rollback");
}
