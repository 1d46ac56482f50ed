//! The measurement of how long the guard takes to detect a fault.

use super::fault::{Fault, Scenario};
use super::world::World;
use crate::control::plane::{Announcement, Change};
use crate::time::Mono;
use std::time::Duration;

/// How a fault was detected.
#[derive(Clone, Debug, PartialEq)]
pub struct Noticed {
    /// The time until the fault was detected.
    pub delay: Duration,
    /// The number of requests to new in that time.
    pub requests: u64,
    /// The number of bad answers of new in that time.
    pub bad: u64,
    /// The rule that tripped.
    pub rule: String,
    /// The sentence of the rule.
    pub sentence: String,
}

/// Runs a healthy world for `warm_up`, then adds `fault`, and waits at most `patience` for the
/// rollback. `Err` contains the false alarm if one occurred before the fault.
///
/// # Errors
/// The sentence of a rollback that occurred before the fault.
pub fn notice(
    scenario: Scenario,
    warm_up: Duration,
    fault: Fault,
    patience: Duration,
) -> Result<Option<Noticed>, String> {
    let mut world = World::new(scenario);
    let trip_of = |said: Vec<Announcement>| {
        said.into_iter().find_map(|announcement| {
            if let Change::RolledBack(trip) = announcement.change {
                Some(trip)
            } else {
                None
            }
        })
    };
    while world.elapsed() < warm_up {
        if let Some(trip) = trip_of(world.tick()) {
            return Err(trip.sentence);
        }
    }
    let (began, before) = (world.elapsed(), world.on_new);
    world.fault(Fault {
        from: began,
        ..fault
    });
    while world.elapsed() < began + patience {
        if let Some(trip) = trip_of(world.tick()) {
            // The rollback may occur within the tick.
            let (at, on_new) = world.tripped.unwrap_or((world.now.mono, world.on_new));
            let delay = at.since(Mono::default()) - began;
            return Ok(Some(Noticed {
                delay,
                requests: on_new.0 - before.0,
                bad: on_new.1 - before.1,
                rule: trip.cause.label().to_owned(),
                sentence: trip.sentence,
            }));
        }
    }
    Ok(None)
}
