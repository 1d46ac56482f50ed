//! A simulated proxy with its users and backends, on virtual time.

use super::chance::Chance;
use super::fault::{Fault, FaultKind, Noise, Scenario};
use super::traffic::{Alias, User};
use super::{ASK_PATIENCE, DAY, Look, WAKE_PAUSE};
use crate::control::plane::{
    Actor, Announcement, Change, Command, CommandError, ControlPlane, Effect, Event, Restored,
};
use crate::control::rollout::RolloutSettings;
use crate::guard::Rule;
use crate::guard::judge::{Observed, Waited};
use crate::routing::bucket::murmur3_x86_32;
use crate::routing::split::{Split, UserKey};
use crate::side::{PerSide, Side};
use crate::stats::outcome::{Ending, Evidence, FailureKind, Outcome};
use crate::stats::users::{LastPopulation, Requester, TICK, UserTracker, tick_of};
use crate::stats::window::Totals;
use crate::time::{Mono, Now, Wall, micros};
use std::collections::VecDeque;
use std::time::Duration;

/// A simulated world: traffic, backends, the proxy's counters and its control plane.
#[derive(Debug)]
pub struct World {
    pub(super) scenario: Scenario,
    pub(super) chance: Chance,
    pub(super) plane: ControlPlane,
    pub(super) split: Split,
    pub(super) watch: UserTracker,
    pub(super) totals: Vec<PerSide<Totals>>,
    pub(super) users: Vec<User>,
    /// The sampler that draws a user by activity. `None` if all users are equally active.
    pub(super) activity: Option<Alias>,
    pub(super) latencies: Vec<f32>,
    pub(super) now: Now,
    pub(super) last_look: Mono,
    pub(super) hanging: VecDeque<(Mono, Side, Requester, Evidence)>,
    pub(super) started: VecDeque<PerSide<u64>>,
    pub(super) hang_ticks: Option<usize>,
    pub(super) noise: Vec<Noise>,
    /// The long polls in flight.
    pub(super) polls: VecDeque<(Mono, usize)>,
    /// The probes in flight: the time of the answer, and the probed side.
    pub(super) asked: Vec<(Mono, Side)>,
    pub(super) compared: Vec<PerSide<Totals>>,
    pub(super) compared_started: VecDeque<PerSide<u64>>,
    pub(super) population: LastPopulation,
    pub(super) on_new: (u64, u64),
    pub(super) tripped: Option<(Mono, (u64, u64))>,
}

impl World {
    /// Creates a world at its beginning.
    pub fn new(scenario: Scenario) -> Self {
        let mut chance = Chance::new(scenario.seed);
        let traffic = scenario.traffic;
        let users: Vec<User> = (0..traffic.users.max(1))
            .map(|number| {
                let key = format!("u{number}").into_bytes();
                let network = murmur3_x86_32(&(number % traffic.networks.max(1)).to_le_bytes());
                let user = murmur3_x86_32(&[&key[..], b"/who"].concat());
                let who = Requester { user, network };
                let is_listed = scenario.settings.always_new.contains(&key);
                User {
                    key,
                    who,
                    is_listed,
                    is_persistent: chance.happens(traffic.persistent),
                    is_slow: chance.happens(traffic.slow_users),
                    luck: chance.unit(),
                }
            })
            .collect();
        let activity = traffic.is_uneven.then(|| {
            let users = users.len() as f64;
            Alias::new(
                (0..users as usize)
                    .map(|rank| 1.0 / (rank as f64 + 1.0 + 0.01 * users))
                    .collect(),
            )
        });
        let latencies = (0..1 << 16)
            .map(|_| {
                (traffic.median_us * (traffic.sigma * chance.normal()).exp()).clamp(1.0, 6e7) as f32
            })
            .collect();
        let hang_ticks = scenario.settings.guard.rules.iter().find_map(|rule| {
            if let Rule::Hang(us) = rule {
                Some((us / micros(TICK)) as usize)
            } else {
                None
            }
        });
        let mut world = Self {
            plane: ControlPlane::new(Restored::Fresh),
            split: Split::default(),
            watch: UserTracker::default(),
            totals: vec![PerSide::default()],
            compared: vec![PerSide::default()],
            compared_started: VecDeque::new(),
            polls: VecDeque::new(),
            asked: Vec::new(),
            users,
            activity,
            latencies,
            now: Now {
                mono: Mono::default(),
                wall: Wall::from_millis(1_700_000_000_000),
            },
            last_look: Mono::default(),
            hanging: VecDeque::new(),
            started: VecDeque::new(),
            hang_ticks,
            noise: Vec::new(),
            population: LastPopulation::default(),
            on_new: (0, 0),
            tripped: None,
            chance,
            scenario,
        };
        let settings = world.scenario.settings.clone();
        world.set(settings);
        world
    }

    /// Returns the control plane.
    pub fn plane(&self) -> &ControlPlane {
        &self.plane
    }

    /// Returns the time in this world.
    pub fn now(&self) -> Now {
        self.now
    }

    /// Returns the time since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.now.mono.since(Mono::default())
    }

    /// Returns the number of requests to new since the beginning, and the number of bad answers
    /// among them.
    pub fn on_new(&self) -> (u64, u64) {
        self.on_new
    }

    /// Returns the number of bad answers of new from the beginning until the last rollback.
    pub fn bad_at_trip(&self) -> Option<u64> {
        self.tripped.map(|(_, (_, bad))| bad)
    }

    /// Whether the rollout is rolled back.
    pub fn is_rolled_back(&self) -> bool {
        self.plane
            .rollouts()
            .iter()
            .any(|rollout| rollout.latch().is_some())
    }

    /// Puts other settings in force, as an edited file would.
    pub fn set(&mut self, settings: RolloutSettings) -> Vec<Announcement> {
        let event = Event::Settings {
            rollouts: vec![settings],
            actor: Actor::file(),
            reason: String::new(),
        };
        let effects = self.plane.on(event, self.now).unwrap_or_default();
        self.carry_out(effects)
    }

    /// Sends a command, as a person would.
    ///
    /// # Errors
    /// The reason for which the control plane refused the command.
    pub fn command(&mut self, command: Command) -> Result<Vec<Announcement>, CommandError> {
        let id = self.scenario.settings.id.clone();
        let actor = Actor {
            name: "simulation".to_owned(),
            source: crate::control::plane::Via::Cli,
        };
        let effects = self.plane.on(
            Event::Command {
                rollout: &id,
                command,
                actor,
                reason: "simulated".to_owned(),
            },
            self.now,
        )?;
        Ok(self.carry_out(effects))
    }

    /// Adds a fault.
    pub fn fault(&mut self, fault: Fault) {
        self.scenario.faults.push(fault);
    }

    /// Adds one user who sends this many failing requests, one per tick.
    pub fn noisy_user(&mut self, requests: u32) {
        let number = self.chance.below(self.users.len() as u32) as usize;
        let User { key, who, .. } = self.users[number].clone();
        let side = self
            .decide(UserKey::Known(&key))
            .map_or(Side::Legacy, |decision| decision.side);
        self.noise.push(Noise {
            who,
            side,
            left: requests,
        });
    }

    /// Simulates a client that makes a request fail on purpose.
    pub fn fails_on_purpose(&mut self, who: Requester, side: Side) {
        let ending = Ending {
            outcome: Outcome::Failure(FailureKind::Status),
            status: Some(500),
            latency_us: Some(1_000),
            evidence: Evidence::Compared,
        };
        self.end(side, &ending, who);
    }

    /// Simulates one user who sends many requests at once. All of them receive good answers.
    pub fn crawls(&mut self, who: Requester, side: Side, requests: u32) {
        let ending = Ending {
            outcome: Outcome::Success,
            status: Some(200),
            latency_us: Some(1_000),
            evidence: Evidence::Compared,
        };
        for _ in 0..requests {
            self.end(side, &ending, who);
        }
    }

    /// Sets the wall clock, as an operator would. Only records may be affected.
    pub fn jump_wall_clock(&mut self, millis: i64) {
        self.now.wall = Wall::from_millis(self.now.wall.as_millis() + millis);
    }

    /// Simulates one tick of 250 ms. Returns the announcements of the control plane.
    pub fn tick(&mut self) -> Vec<Announcement> {
        self.run(TICK)
    }

    /// Simulates a late tick: traffic for `length`, then a single evaluation.
    pub fn run(&mut self, length: Duration) -> Vec<Announcement> {
        let mut said = Vec::new();
        let begin = self.now;
        let length_us = micros(length);
        let mut at_us = 0.0;
        let traffic = self.scenario.traffic;
        let time_of_day = (self.elapsed().as_secs_f64() / DAY).fract();
        let by_day =
            1.0 - traffic.night * (0.5 + 0.5 * (std::f64::consts::TAU * time_of_day).cos());
        let gap_us = 1e6 / (traffic.rps * by_day).max(1e-9);
        let (mut started, mut compared_started) = (PerSide::default(), PerSide::default());
        loop {
            at_us += -self.chance.unit().max(1e-300).ln() * gap_us;
            if at_us >= length_us as f64 {
                break;
            }
            self.now.mono = begin.mono.forward(Duration::from_micros(at_us as u64));
            said.extend(self.hear_answers());
            let failed_on_new = self.request(&mut started, &mut compared_started);
            if failed_on_new
                && self.scenario.between_ticks
                && self.now.mono.since(self.last_look) >= WAKE_PAUSE
            {
                said.extend(self.look(Look::Failure));
            }
        }
        self.now = Now {
            mono: begin.mono.forward(length),
            wall: Wall::from_millis(begin.wall.as_millis() + (length_us / 1_000) as i64),
        };
        said.extend(self.hear_answers());
        self.make_noise();
        self.end_polls();
        self.end_hanging();
        self.started.push_back(started);
        self.compared_started.push_back(compared_started);
        said.extend(self.look(Look::Tick));
        said
    }

    pub(super) fn carry_out(&mut self, effects: Vec<Effect>) -> Vec<Announcement> {
        let mut said = Vec::new();
        for effect in effects {
            match effect {
                Effect::Publish(split) => self.split = split,
                Effect::Persist(_) => {}
                Effect::Ask { side, .. } => {
                    let is_hanging = self.faults(side).any(|kind| kind == FaultKind::Hang);
                    let takes = if is_hanging {
                        ASK_PATIENCE
                    } else {
                        Duration::from_micros(1_000 + u64::from(self.chance.below(4_000)))
                    };
                    self.asked.push((self.now.mono.forward(takes), side));
                }
                Effect::Announce(announcement) => {
                    if matches!(announcement.change, Change::RolledBack(_)) {
                        self.tripped = Some((self.now.mono, self.on_new));
                    }
                    said.push(*announcement);
                }
            }
        }
        if let Some(rollout) = self.plane.rollouts().first() {
            self.watch.set_tracker_limits(rollout.tracker_limits());
        }
        said
    }

    pub(super) fn look(&mut self, look: Look) -> Vec<Announcement> {
        self.last_look = self.now.mono;
        let bad_events = self.watch.drain();
        let available = PerSide::from_fn(|side| !self.is_down(side));
        let is_tick = look == Look::Tick;
        let (waited, waited_compared) = if is_tick {
            self.waited()
        } else {
            Default::default()
        };
        let is_due = is_tick && tick_of(self.now.mono).is_multiple_of(4);
        let population = self.population.look(&self.watch, is_due, self.now.mono);
        let (totals, compared) = (
            std::mem::take(&mut self.totals),
            std::mem::take(&mut self.compared),
        );
        let streaks = self.watch.streaks();
        let passes_checks = PerSide {
            legacy: false,
            new: false,
        };
        let observed = [Observed {
            totals: &totals[0],
            compared: &compared[0],
            streaks,
            available,
            passes_checks,
            waited,
            waited_compared,
            bad_events: &bad_events,
            population,
        }];
        let id = self.scenario.settings.id.clone();
        let event = match look {
            Look::Tick => Event::Tick(&observed),
            Look::Failure => Event::Failure(&observed),
            Look::Answer(side, is_good) => Event::Answered {
                rollout: &id,
                side,
                is_good,
                observed: &observed,
            },
        };
        let effects = self.plane.on(event, self.now).unwrap_or_default();
        (self.totals, self.compared) = (totals, compared);
        self.carry_out(effects)
    }

    /// Passes to the control plane the probe answers that have arrived by now.
    pub(super) fn hear_answers(&mut self) -> Vec<Announcement> {
        let mut said = Vec::new();
        while let Some(at) = self.asked.iter().position(|(due, _)| *due <= self.now.mono) {
            let (_, side) = self.asked.swap_remove(at);
            let is_dead = |kind: FaultKind| {
                matches!(
                    kind,
                    FaultKind::Refused | FaultKind::NoServer | FaultKind::Hang
                ) || matches!(kind, FaultKind::Errors(rate) if rate >= 1.0)
            };
            let is_good = !self.faults(side).any(is_dead);
            said.extend(self.look(Look::Answer(side, is_good)));
        }
        said
    }

    /// Returns the requests that reached the age of the hang rule in this tick, over all evidence
    /// and of users who are compared.
    pub(super) fn waited(&mut self) -> (PerSide<Waited>, PerSide<Waited>) {
        let Some(ticks) = self.hang_ticks else {
            return Default::default();
        };
        if self.started.len() <= ticks {
            return Default::default();
        }
        let began = self.started.pop_front().unwrap_or_default();
        let compared_began = self.compared_started.pop_front().unwrap_or_default();
        let older_than = TICK * ticks as u32;
        let of_age = |at: Mono| (older_than..older_than + TICK).contains(&self.now.mono.since(at));
        let mut waiting: Vec<(Side, Requester, bool)> = self
            .hanging
            .iter()
            .filter(|(at, ..)| of_age(*at))
            .map(|(_, side, who, evidence)| (*side, *who, evidence.is_compared()))
            .collect();
        for (_, number) in self.polls.iter().filter(|(at, _)| of_age(*at)) {
            let user = &self.users[*number];
            waiting.extend(
                self.decide(UserKey::Known(&user.key))
                    .map(|decision| (decision.side, user.who, decision.evidence().is_compared())),
            );
        }
        let of = |began: PerSide<u64>, only_compared: bool| {
            PerSide::from_fn(|side| {
                let mut places = [0u64; 16];
                for (_, who, _) in waiting
                    .iter()
                    .filter(|(on, _, is_compared)| *on == side && (*is_compared || !only_compared))
                {
                    places[who.network as usize % 16] += 1;
                }
                let (hung, top) = (
                    places.iter().sum(),
                    places.iter().max().copied().unwrap_or_default(),
                );
                Waited {
                    started: began[side],
                    hung,
                    places: places.iter().filter(|count| **count > 0).count() as u32,
                    top_place: if hung == 0 {
                        0.0
                    } else {
                        top as f64 / hung as f64
                    },
                }
            })
        };
        (of(began, false), of(compared_began, true))
    }
}
