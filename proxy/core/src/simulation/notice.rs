//! How long the guard takes to notice a fault.

use super::fault::{Fault, Scenario};
use super::world::World;
use crate::control::plane::{Announcement, Change};
use crate::time::Mono;
use std::time::Duration;

/// How a fault was noticed.
#[derive(Clone, Debug, PartialEq)]
pub struct Noticed {
    /// After how long.
    pub delay: Duration,
    /// Requests to new in that time.
    pub requests: u64,
    /// Bad answers of new in that time.
    pub bad: u64,
    /// The rule that tripped.
    pub rule: String,
    /// What it said.
    pub sentence: String,
}

/// Lets a world be healthy for `warm_up`, adds `fault` from then on, and waits at most `patience`
/// for the rollback. `Err` holds the false alarm when it came before.
///
/// # Errors
/// The sentence of a rollback before anything was wrong.
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
            // It may lie within the tick.
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
