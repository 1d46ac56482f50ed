//! Simulated worlds on virtual time for tests, and their announcements.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::time::Duration;

use cutover_core::simulation::{Fault, FaultKind, Noticed, Scenario, Traffic, World, notice};
use cutover_core::{Percent, RolloutSettings, Side};

pub const MINUTE: Duration = Duration::from_secs(60);
pub const FOREVER: Duration = Duration::MAX;

pub fn settings(percent: &str) -> RolloutSettings {
    RolloutSettings::for_tests("checkout", Percent::parse(percent).expect("a percentage"))
}

pub fn scenario(percent: &str, rps: f64, seed: u64) -> Scenario {
    let traffic = Traffic {
        rps,
        ..Traffic::default()
    };
    Scenario {
        settings: settings(percent),
        traffic,
        faults: vec![],
        seed,
        between_ticks: true,
        timeout: Duration::from_secs(30),
    }
}

pub fn at_once(side: Option<Side>, kind: FaultKind) -> Fault {
    Fault {
        side,
        kind,
        from: Duration::ZERO,
        lasts: FOREVER,
    }
}

/// Runs a world for the given time, and returns the announcements except for the start.
pub fn run(world: &mut World, time: Duration) -> Vec<(&'static str, String)> {
    let end = world.elapsed() + time;
    let mut said = Vec::new();
    while world.elapsed() < end {
        said.extend(
            world
                .tick()
                .into_iter()
                .map(|announcement| (announcement.change.name(), announcement.sentence)),
        );
    }
    said
}

pub fn rollbacks(said: &[(&'static str, String)]) -> Vec<String> {
    said.iter()
        .filter(|(change, _)| *change == "rollback")
        .map(|(_, sentence)| sentence.clone())
        .collect()
}

pub fn noticed(
    percent: &str,
    rps: f64,
    seed: u64,
    fault: FaultKind,
    patience: Duration,
) -> Noticed {
    let found = notice(
        scenario(percent, rps, seed),
        MINUTE,
        at_once(Some(Side::New), fault),
        patience,
    );
    found
        .unwrap_or_else(|early| panic!("seed {seed}: before anything was wrong: {early}"))
        .unwrap_or_else(|| panic!("seed {seed}: {fault:?} was not noticed in {patience:?}"))
}

pub fn median<T: Ord + Copy>(mut values: Vec<T>) -> T {
    values.sort_unstable();
    values[values.len() / 2]
}
