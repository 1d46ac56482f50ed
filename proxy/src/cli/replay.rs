//! Judges recorded numbers with another policy, for example: "last week this would have rolled back
//! twice".
//!
//! A recording is a journal, in which each rollback carries the preceding minute tick by tick. It
//! can also be the lines that `cutover status --watch --json` wrote, whose totals are turned into
//! differences. Each counted failure is attributed to a different user, since users are not
//! recorded. Latencies are recorded as sums only, and hanging requests not at all. Rules about them
//! are not judged, and the output says so.

use std::time::Duration;

use cutover_core::control::plane::Change;
use cutover_core::control::plane::Restored;
use cutover_core::{
    Actor, BadEvent, Class, Command, ControlPlane, Effect, Event, FailureKind, Mono, Now, Observed,
    PerSide, Percent, Requester, RolloutSettings, Side, TICK, Totals, Wall,
};
use serde_json::Value;

use crate::clock;
use crate::state::journal::Record;
use crate::status::{Status, TickSide, TickStatus};

/// The rules that a recording has no data for.
pub const NOT_JUDGED: [&str; 5] = ["latency", "hang", "health", "dead_after", "min_users"];

/// A longer gap than this between two numbers separates two recordings.
const GAP: Duration = Duration::from_secs(10);

/// The numbers of one rollout, in the order in which they were recorded.
#[derive(Debug, Default)]
pub struct Recording {
    ticks: Vec<TickStatus>,
}

/// What the guard would have done.
#[derive(Debug, Default)]
pub struct Story {
    /// The time (RFC 3339) and the description of each event.
    pub events: Vec<(String, String)>,
    /// The number of rollbacks the guard would have made.
    pub rollbacks: u32,
    /// The number of checks the guard made.
    pub looks: usize,
    /// The time that the recording covers.
    pub covers: Duration,
}

impl Recording {
    /// Adds the numbers that a file contains for this rollout.
    ///
    /// # Errors
    /// Names the first line that has neither form, with its number, or says that the file contains
    /// nothing about this rollout.
    pub fn add(&mut self, text: &str, rollout: &str) -> Result<(), String> {
        let before = self.ticks.len();
        let mut last: Option<TickStatus> = None;
        for (number, line) in text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty())
        {
            let line_is = |why: &dyn std::fmt::Display| {
                format!(
                    "line {}: neither a line of a journal nor of `cutover status --watch --json`: \
                     {why}",
                    number + 1
                )
            };
            let value: Value = serde_json::from_str(line).map_err(|error| line_is(&error))?;
            if value.get("change").is_some() {
                let record: Record =
                    serde_json::from_value(value).map_err(|error| line_is(&error))?;
                if record.rollout == rollout {
                    self.ticks
                        .extend(record.trip.into_iter().flat_map(|trip| trip.history));
                }
                continue;
            }
            let status: Status = serde_json::from_value(value).map_err(|error| line_is(&error))?;
            let Some(totals) = status
                .rollouts
                .into_iter()
                .find(|status| status.id == rollout)
                .and_then(|status| status.totals)
            else {
                continue;
            };
            if let Some(last) = last.replace(totals.clone()) {
                self.ticks.push(TickStatus {
                    at_ms: totals.at_ms,
                    legacy: difference(totals.legacy, last.legacy),
                    new: difference(totals.new, last.new),
                });
            }
        }
        if self.ticks.len() == before {
            return Err(format!(
                "nothing in it is about the rollout {rollout:?} (a journal has numbers only for \
                 rollbacks by the guard; of a status, two lines are needed)"
            ));
        }
        self.ticks.sort_by_key(|tick| tick.at_ms);
        Ok(())
    }
}

/// What came between two totals; a process that was restarted counts from zero.
fn difference(now: TickSide, before: TickSide) -> TickSide {
    let restarted = now.iter().zip(&before).any(|(now, before)| now < before);
    std::array::from_fn(|at| {
        if restarted {
            now[at]
        } else {
            now[at] - before[at]
        }
    })
}

/// Judges a recording with the guard of a rollout. Each rollback is re-armed at once.
pub fn judge(recording: &Recording, rollout: &RolloutSettings) -> Story {
    let mut rollout = rollout.clone();
    // A file at 0 % also has a guard to be tried.
    rollout.percent = if rollout.percent == Percent::ZERO {
        Percent::FULL
    } else {
        rollout.percent
    };
    let mut plane = ControlPlane::new(Restored::Fresh);
    let mut now = Now {
        mono: Mono::default(),
        wall: Wall::from_millis(recording.ticks.first().map_or(0, |tick| tick.at_ms)),
    };
    let settings = Event::Settings {
        rollouts: vec![rollout.clone()],
        actor: Actor::file(),
        reason: String::new(),
    };
    plane.on(settings, now).map_or_else(|_| (), drop);
    let mut totals = PerSide::<Totals>::default();
    let mut story = Story::default();
    let mut users = 0u32;
    for tick in &recording.ticks {
        let passed = Duration::from_millis(
            u64::try_from(tick.at_ms - now.wall.as_millis()).unwrap_or_default(),
        );
        let passed = if story.looks == 0 || passed > GAP {
            TICK
        } else {
            passed
        };
        now = Now {
            mono: now.mono.forward(passed),
            wall: Wall::from_millis(tick.at_ms),
        };
        story.covers += passed;
        story.looks += 1;
        let mut bad_events = Vec::new();
        for (side, numbers) in [(Side::Legacy, tick.legacy), (Side::New, tick.new)] {
            let [
                requests,
                failed,
                counted,
                client_errors,
                aborts,
                latency_sum_us,
            ] = numbers;
            let counts = &mut totals[side].counts;
            counts.requests += requests;
            counts.appearances += requests;
            counts.failures[FailureKind::Status.index()] += failed;
            counts.client_errors += client_errors;
            counts.aborts += aborts;
            counts.latency_sum_us += latency_sum_us;
            for (class, count) in [
                (Class::Failure, counted),
                (Class::ClientError, client_errors),
                (Class::Abort, aborts),
            ] {
                counts.counted[class.index()] += count;
                for _ in 0..if side == Side::New { count.min(100) } else { 0 } {
                    users = users.wrapping_add(1);
                    bad_events.push(BadEvent {
                        class,
                        who: Requester {
                            user: users,
                            network: users,
                        },
                        at: now.mono,
                        path: None,
                        is_compared: true,
                    });
                }
            }
        }
        let observed = [Observed {
            bad_events: &bad_events,
            ..Observed::of(&totals)
        }];
        for effect in plane.on(Event::Tick(&observed), now).unwrap_or_default() {
            let Effect::Announce(announcement) = effect else {
                continue;
            };
            story
                .events
                .push((clock::rfc3339(now.wall), announcement.sentence.clone()));
            if let Change::RolledBack(_) = announcement.change {
                story.rollbacks += 1;
                let rearm = Event::Command {
                    rollout: &rollout.id,
                    command: Command::Rearm,
                    actor: Actor::guard(),
                    reason: "replayed".to_owned(),
                };
                plane.on(rearm, now).map_or_else(|_| (), drop);
            }
        }
    }
    story
}

#[cfg(test)]
mod tests {
    use super::*;
    use cutover_core::{GuardSettings, Mode};

    fn rollout(guard: GuardSettings) -> RolloutSettings {
        RolloutSettings {
            guard,
            ..RolloutSettings::for_tests("checkout", Percent::FULL)
        }
    }

    /// Returns a recording of ten minutes with one check per second and two bad half minutes.
    fn recording() -> Recording {
        let ticks = (0..600i64).map(|second| {
            let failed = if (100..130).contains(&second) || (400..430).contains(&second) {
                20
            } else {
                0
            };
            TickStatus {
                at_ms: 1_795_169_730_000 + second * 1_000,
                legacy: [200, 0, 0, 2, 0, 200],
                new: [100, failed, failed, 1, 0, 100],
            }
        });
        Recording {
            ticks: ticks.collect(),
        }
    }

    #[test]
    fn another_policy_on_the_same_numbers_gives_another_result() {
        let story = judge(&recording(), &rollout(GuardSettings::default()));
        assert!(story.rollbacks >= 2, "{:?}", story.events);
        assert_eq!((story.looks, story.covers.as_secs()), (600, 599));
        assert!(
            story.events[0].1.contains("new failed "),
            "{:?}",
            story.events
        );
        let off = judge(
            &recording(),
            &rollout(GuardSettings {
                mode: Mode::Off,
                ..GuardSettings::default()
            }),
        );
        assert_eq!(off.rollbacks, 0);
    }

    #[test]
    fn an_invalid_recording_is_refused_with_the_line_number() {
        let mut recording = Recording::default();
        assert!(
            recording
                .add("{\"change\": 1}", "checkout")
                .expect_err("refused")
                .starts_with("line 1: neither a line of a journal")
        );
        assert!(
            recording
                .add("\n\nnonsense", "checkout")
                .expect_err("refused")
                .starts_with("line 3: ")
        );
        assert!(
            recording
                .add("", "checkout")
                .expect_err("refused")
                .starts_with("nothing in it is about the rollout \"checkout\"")
        );
    }

    #[test]
    fn totals_become_differences_and_a_restart_counts_from_zero() {
        assert_eq!(
            difference([10, 1, 1, 0, 0, 5], [4, 0, 0, 0, 0, 5]),
            [6, 1, 1, 0, 0, 0]
        );
        assert_eq!(
            difference([3, 0, 0, 0, 0, 2], [10, 1, 1, 0, 0, 5]),
            [3, 0, 0, 0, 0, 2]
        );
    }
}
