//! The real control plane on virtual time, with made-up traffic: what would this guard do?
//!
//! Requests come one by one (Poisson arrivals, users drawn from a population, evenly or by an
//! activity of their own), are routed by the real hash, counted by the real [`Watch`], and judged
//! by the real [`ControlPlane`]: nothing of the engine is imitated. All chance comes from one seed,
//! so every run can be had again. `cutover simulate`, the forecast of `cutover check` and the long
//! runs of the tests use it.
//!
//! A request ends when it begins, but for those that hang and for long polls. Deliberately absent:
//! queues, retries and everything else that would make of this a model of somebody's backend.

pub mod forecast;

use std::collections::VecDeque;
use std::time::Duration;

use crate::control::plane::{
    Actor, Announcement, Change, Command, CommandError, ControlPlane, Effect, Event, Restored,
};
use crate::control::rollout::RolloutSettings;
use crate::guard::Rule;
use crate::guard::judge::{Observed, Waited};
use crate::routing::bucket::murmur3_x86_32;
use crate::routing::split::{Ask, Decision, Split, UserKey, decide};
use crate::side::{PerSide, Side};
use crate::stats::outcome::{Ending, Evidence, FailureKind, Outcome};
use crate::stats::users::{LastCrowd, TICK, Watch, Who, tick_of};
use crate::stats::window::Totals;
use crate::time::{Mono, Now, Wall, micros};

/// At most one look between ticks in this time.
pub const WAKE_PAUSE: Duration = Duration::from_millis(2);

/// A question whether a backend can take users is given up after this time.
pub const ASK_PATIENCE: Duration = Duration::from_millis(250);

/// Why the plane is shown what was seen.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Look {
    /// A tick is over.
    Tick,
    /// A request to new has failed.
    Failure,
    /// A side has answered a question.
    Answer(Side, bool),
}

/// What is asked for, evenly.
const PATHS: [&str; 6] = [
    "/",
    "/cart",
    "/cart/items",
    "/api/orders",
    "/api/users",
    "/search",
];

/// A small fast generator with a seed: xoshiro256++ (Blackman and Vigna 2019), seeded by
/// splitmix64.
#[derive(Clone, Debug)]
pub struct Chance([u64; 4]);

impl Chance {
    /// The generator of this seed.
    pub fn new(seed: u64) -> Self {
        let mut state = seed;
        Self(std::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }))
    }

    fn next(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// Evenly from `0.0..1.0`.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Evenly from `0..below`.
    pub fn below(&mut self, below: u32) -> u32 {
        ((u128::from(self.next()) * u128::from(below)) >> 64) as u32
    }

    /// Whether something of this probability happens.
    pub fn happens(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.unit() < probability
    }

    fn normal(&mut self) -> f64 {
        let (a, b) = (self.unit().max(1e-300), self.unit());
        (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
    }

    /// How many events of this mean happen.
    pub fn poisson(&mut self, mean: f64) -> u64 {
        if mean <= 0.0 {
            return 0;
        }
        // Large means in parts, since the product below would underflow.
        if mean > 30.0 {
            return self.poisson(mean / 2.0) + self.poisson(mean / 2.0);
        }
        let limit = (-mean).exp();
        let mut product = self.unit();
        let mut count = 0;
        while product > limit {
            product *= self.unit();
            count += 1;
        }
        count
    }
}

/// Healthy traffic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Traffic {
    /// Requests per second over both sides.
    pub rps: f64,
    /// How many users there are.
    pub users: u32,
    /// How many client networks they come from.
    pub networks: u32,
    /// The share of requests that fail on a healthy backend.
    pub errors: f64,
    /// The share answered 4xx by a healthy backend.
    pub client_errors: f64,
    /// The share of requests that clients give up.
    pub aborts: f64,
    /// The median latency in microseconds.
    pub median_us: f64,
    /// The spread of the latency: the standard deviation of its logarithm. 1 is a heavy tail.
    pub sigma: f64,
    /// Whether few users do most of what is done (Zipf's law), rather than all alike.
    pub is_uneven: bool,
    /// The share of users of whom `persistent_rate` of the requests are answered 4xx, on either
    /// side: expired tokens, broken scripts.
    pub persistent: f64,
    /// How many of the requests of a persistent user fail.
    pub persistent_rate: f64,
    /// The share of users who are `slow_times` slower than the others, on either side.
    pub slow_users: f64,
    /// How many times slower they are.
    pub slow_times: f64,
    /// The share of requests without a user key; all of them are quick and go to legacy.
    pub keyless: f64,
    /// How much slower requests of users named in `always_new` are than those of others.
    pub listed_times: f64,
    /// The share of requests that are long polls, answered after 14 s; a fifth of the users send
    /// all of them.
    pub polls: f64,
    /// By how much traffic falls at night, `0..=1`: midnight is at the beginning.
    pub night: f64,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            rps: 100.0,
            users: 10_000,
            networks: 2_500,
            errors: 0.001,
            client_errors: 0.01,
            aborts: 0.001,
            median_us: 40_000.0,
            sigma: 1.0,
            ..Self::STILL
        }
    }
}

impl Traffic {
    /// Nothing at all: no user is unlike another.
    const STILL: Self = Self {
        rps: 0.0,
        users: 1,
        networks: 1,
        errors: 0.0,
        client_errors: 0.0,
        aborts: 0.0,
        median_us: 1.0,
        sigma: 0.0,
        is_uneven: false,
        persistent: 0.0,
        persistent_rate: 1.0,
        slow_users: 0.0,
        slow_times: 20.0,
        keyless: 0.0,
        listed_times: 1.0,
        polls: 0.0,
        night: 0.0,
    };
}

/// How long a poll waits.
const POLL: Duration = Duration::from_secs(14);
/// The part of users who poll.
const POLLERS: f64 = 0.2;
/// A keyless request takes this part of the others' time.
const KEYLESS_TIMES: f64 = 0.1;
const DAY: f64 = 86_400.0;

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fault {
    /// Where; `None` is both sides.
    pub side: Option<Side>,
    /// What.
    pub kind: FaultKind,
    /// From when on.
    pub from: Duration,
    /// For how long.
    pub lasts: Duration,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FaultKind {
    /// This share of requests gets a 500.
    Errors(f64),
    /// Connections are refused.
    Refused,
    /// Requests get no answer.
    Hang,
    /// Latencies are this many times what they were.
    Slow(f64),
    /// This share of requests gets a 404.
    ClientErrors(f64),
    /// This share of users gets a 500 for everything.
    ErrorsOfUsers(f64),
    /// This share of users is sent in circles: every answer is a redirect.
    Redirects(f64),
    /// This share of requests takes so many times as long.
    Tail(f64, f64),
    /// There is no server.
    NoServer,
}

/// One user who fails, whatever the backend.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Noise {
    who: Who,
    side: Side,
    left: u32,
}

/// What to simulate.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The rollout and its guard.
    pub settings: RolloutSettings,
    /// The traffic while nothing is wrong.
    pub traffic: Traffic,
    /// What goes wrong, and when.
    pub faults: Vec<Fault>,
    /// Of all chance.
    pub seed: u64,
    /// Whether failures are looked at between ticks, as in the proxy.
    pub between_ticks: bool,
    /// After how long a request that hangs fails.
    pub timeout: Duration,
}

/// One user.
#[derive(Clone, Debug)]
struct User {
    key: Vec<u8>,
    who: Who,
    is_listed: bool,
    is_persistent: bool,
    is_slow: bool,
    /// Whether a fault of some users strikes this one: `0..1`, below the share of the fault.
    luck: f64,
}

/// Draws by weight in constant time (Walker 1977, with Vose's construction of 1991).
#[derive(Clone, Debug)]
struct Alias(Vec<(f64, u32)>);

impl Alias {
    fn new(weights: Vec<f64>) -> Self {
        let (count, sum) = (weights.len(), weights.iter().sum::<f64>());
        let mut scaled: Vec<f64> = weights
            .iter()
            .map(|weight| weight / sum * count as f64)
            .collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) =
            (0..count).partition(|at| scaled[*at] < 1.0);
        let mut cells = vec![(1.0, 0u32); count];
        while let (Some(low), Some(&high)) = (small.pop(), large.last()) {
            cells[low] = (scaled[low], high as u32);
            scaled[high] -= 1.0 - scaled[low];
            if scaled[high] < 1.0 {
                large.pop();
                small.push(high);
            }
        }
        Self(cells)
    }

    fn draw(&self, chance: &mut Chance) -> usize {
        let cell = chance.below(self.0.len() as u32) as usize;
        let (part, other) = self.0[cell];
        if chance.unit() < part {
            cell
        } else {
            other as usize
        }
    }
}

/// A world: traffic, backends, the proxy's counters and its control plane.
#[derive(Debug)]
pub struct World {
    scenario: Scenario,
    chance: Chance,
    plane: ControlPlane,
    split: Split,
    watch: Watch,
    totals: Vec<PerSide<Totals>>,
    users: Vec<User>,
    /// Draws a user by activity.
    activity: Option<Alias>,
    latencies: Vec<f32>,
    now: Now,
    last_look: Mono,
    hanging: VecDeque<(Mono, Side, Who, Evidence)>,
    started: VecDeque<PerSide<u64>>,
    hang_ticks: Option<usize>,
    noise: Vec<Noise>,
    /// Long polls under way.
    polls: VecDeque<(Mono, usize)>,
    /// Questions under way: when the answer comes, and to which side.
    asked: Vec<(Mono, Side)>,
    compared: Vec<PerSide<Totals>>,
    compared_started: VecDeque<PerSide<u64>>,
    crowd: LastCrowd,
    on_new: (u64, u64),
    tripped: Option<(Mono, (u64, u64))>,
}

impl World {
    /// A world at its beginning.
    pub fn new(scenario: Scenario) -> Self {
        let mut chance = Chance::new(scenario.seed);
        let traffic = scenario.traffic;
        let users: Vec<User> = (0..traffic.users.max(1))
            .map(|number| {
                let key = format!("u{number}").into_bytes();
                let network = murmur3_x86_32(&(number % traffic.networks.max(1)).to_le_bytes());
                let user = murmur3_x86_32(&[&key[..], b"/who"].concat());
                let who = Who { user, network };
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
            watch: Watch::default(),
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
            crowd: LastCrowd::default(),
            on_new: (0, 0),
            tripped: None,
            chance,
            scenario,
        };
        let settings = world.scenario.settings.clone();
        world.set(settings);
        world
    }

    /// The control plane.
    pub fn plane(&self) -> &ControlPlane {
        &self.plane
    }

    /// The time in this world.
    pub fn now(&self) -> Now {
        self.now
    }

    /// The time since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.now.mono.since(Mono::default())
    }

    /// Requests to new, and bad answers among them, since the beginning.
    pub fn on_new(&self) -> (u64, u64) {
        self.on_new
    }

    /// Bad answers of new by the last rollback, since the beginning.
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

    /// Gives a command, as a person would.
    ///
    /// # Errors
    /// When the plane refuses it.
    pub fn command(&mut self, command: Command) -> Result<Vec<Announcement>, CommandError> {
        let id = self.scenario.settings.id.clone();
        let actor = Actor {
            name: "simulation".to_owned(),
            source: crate::control::plane::Source::Cli,
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

    /// Adds to what goes wrong.
    pub fn fault(&mut self, fault: Fault) {
        self.scenario.faults.push(fault);
    }

    /// Lets one user of each of these send this many failing requests, one per tick.
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

    /// A client that makes a request fail on purpose.
    pub fn fails_on_purpose(&mut self, who: Who, side: Side) {
        let ending = Ending {
            outcome: Outcome::Failure(FailureKind::Status),
            status: Some(500),
            latency_us: Some(1_000),
            evidence: Evidence::Compared,
        };
        self.end(side, &ending, who);
    }

    /// One user who sends many requests at once; all of them are answered well.
    pub fn crawls(&mut self, who: Who, side: Side, requests: u32) {
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

    /// The wall clock is set by an operator: nothing but records may notice.
    pub fn jump_wall_clock(&mut self, millis: i64) {
        self.now.wall = Wall::from_millis(self.now.wall.as_millis() + millis);
    }

    /// One tick of 250 ms. Answers with what the plane announced.
    pub fn tick(&mut self) -> Vec<Announcement> {
        self.run(TICK)
    }

    /// A tick that comes late: traffic for `length`, then one look.
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

    fn is_down(&self, side: Side) -> bool {
        self.faults(side).any(|kind| kind == FaultKind::NoServer)
    }

    /// What is wrong with a side now.
    fn faults(&self, side: Side) -> impl Iterator<Item = FaultKind> + '_ {
        let elapsed = self.elapsed();
        let is_on = move |fault: &&Fault| {
            fault.side.is_none_or(|at| at == side)
                && elapsed >= fault.from
                && elapsed - fault.from < fault.lasts
        };
        self.scenario
            .faults
            .iter()
            .filter(is_on)
            .map(|fault| fault.kind)
    }

    fn decide(&self, key: UserKey<'_>) -> Option<Decision> {
        let available = PerSide::from_fn(|side| !self.is_down(side));
        self.split.rollouts.first().map(|rollout| {
            decide(
                rollout,
                &Ask {
                    key,
                    override_to: None,
                    available,
                },
            )
        })
    }

    /// One request. Says whether it failed on new.
    fn request(&mut self, started: &mut PerSide<u64>, compared_started: &mut PerSide<u64>) -> bool {
        let traffic = self.scenario.traffic;
        let is_keyless = self.chance.happens(traffic.keyless);
        let is_poll = !is_keyless && self.chance.happens(traffic.polls);
        let number = match &self.activity {
            _ if is_poll => self
                .chance
                .below(((self.users.len() as f64 * POLLERS) as u32).max(1))
                as usize,
            Some(activity) => activity.draw(&mut self.chance),
            None => self.chance.below(self.users.len() as u32) as usize,
        };
        let User {
            who,
            is_listed,
            is_persistent,
            is_slow,
            luck,
            ..
        } = self.users[number];
        let key = if is_keyless {
            UserKey::None
        } else {
            UserKey::Known(&self.users[number].key)
        };
        let Some(decision) = self.decide(key) else {
            return false;
        };
        let (side, evidence) = (decision.side, decision.evidence());
        started[side] += 1;
        compared_started[side] += u64::from(evidence.is_compared());
        if is_poll {
            self.polls.push_back((self.now.mono, number));
            return false;
        }
        let mut ending = Ending {
            outcome: Outcome::Success,
            status: Some(200),
            latency_us: None,
            evidence,
        };
        let mut latency = f64::from(self.latencies[self.chance.below(1 << 16) as usize]);
        latency *= if is_slow { traffic.slow_times } else { 1.0 }
            * if is_listed { traffic.listed_times } else { 1.0 }
            * if is_keyless { KEYLESS_TIMES } else { 1.0 };
        let mut errors = traffic.errors;
        let mut client_errors = if is_persistent && !is_keyless {
            traffic.persistent_rate
        } else {
            traffic.client_errors
        };
        let (mut is_refused, mut is_hanging, mut is_redirected) = (false, false, false);
        let faults: Vec<FaultKind> = self.faults(side).collect();
        for fault in faults {
            match fault {
                FaultKind::Errors(rate) => errors = errors.max(rate),
                FaultKind::ErrorsOfUsers(share) => errors = if luck < share { 1.0 } else { errors },
                FaultKind::Refused | FaultKind::NoServer => is_refused = true,
                FaultKind::Slow(factor) => latency *= factor,
                FaultKind::Tail(share, factor) => {
                    latency *= if self.chance.happens(share) {
                        factor
                    } else {
                        1.0
                    }
                }
                FaultKind::ClientErrors(rate) => client_errors = client_errors.max(rate),
                FaultKind::Redirects(share) => is_redirected |= luck < share,
                FaultKind::Hang => is_hanging = true,
            }
        }
        if is_hanging {
            self.hanging.push_back((self.now.mono, side, who, evidence));
            self.on_new.0 += u64::from(side == Side::New);
            return false;
        }
        ending.latency_us = Some(latency.min(6e7) as u64);
        if is_refused {
            ending = Ending {
                outcome: Outcome::Failure(FailureKind::Connect),
                status: Some(502),
                latency_us: None,
                ..ending
            };
        } else if self.chance.happens(errors) {
            ending = Ending {
                outcome: Outcome::Failure(FailureKind::Status),
                status: Some(500),
                ..ending
            };
        } else if self.chance.happens(client_errors) {
            ending = Ending {
                outcome: Outcome::ClientError,
                status: Some(404),
                ..ending
            };
        } else if self.chance.happens(traffic.aborts) {
            ending = Ending {
                outcome: Outcome::Aborted,
                status: None,
                latency_us: None,
                ..ending
            };
        } else if is_redirected {
            ending.status = Some(302);
        }
        self.end(side, &ending, who)
    }

    /// Polls that have waited for their time are answered well. They are decided once more, since a
    /// side is all that matters of them.
    fn end_polls(&mut self) {
        while let Some((_, number)) = self
            .polls
            .pop_front_if(|(at, _)| self.now.mono.since(*at) >= POLL)
        {
            let User { key, who, .. } = self.users[number].clone();
            let Some(decision) = self.decide(UserKey::Known(&key)) else {
                continue;
            };
            let ending = Ending {
                outcome: Outcome::Success,
                status: Some(200),
                latency_us: Some(micros(POLL)),
                evidence: decision.evidence(),
            };
            self.end(decision.side, &ending, who);
        }
    }

    /// Tells the plane of answers to its questions that have come by now.
    fn hear_answers(&mut self) -> Vec<Announcement> {
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

    /// Counts the end of a request. Says whether it failed on new.
    fn end(&mut self, side: Side, ending: &Ending, who: Who) -> bool {
        let path = PATHS[self.chance.below(PATHS.len() as u32) as usize];
        let counted = self.watch.see(side, ending, who, path, self.now.mono);
        self.totals[0][side].record(ending, counted);
        if ending.evidence.is_compared() {
            self.compared[0][side].record(ending, counted);
        }
        let failed = matches!(ending.outcome, Outcome::Failure(_));
        if side == Side::New {
            self.on_new.0 += 1;
            self.on_new.1 += u64::from(failed);
        }
        failed && side == Side::New
    }

    fn make_noise(&mut self) {
        let mut noise = std::mem::take(&mut self.noise);
        for noisy in &mut noise {
            noisy.left -= 1;
            self.fails_on_purpose(noisy.who, noisy.side);
        }
        noise.retain(|noisy| noisy.left > 0);
        self.noise = noise;
    }

    fn end_hanging(&mut self) {
        while let Some((_, side, who, evidence)) = self
            .hanging
            .pop_front_if(|(at, ..)| self.now.mono.since(*at) >= self.scenario.timeout)
        {
            let ending = Ending {
                outcome: Outcome::Failure(FailureKind::Timeout),
                status: Some(504),
                latency_us: Some(micros(self.scenario.timeout)),
                evidence,
            };
            self.end(side, &ending, who);
            self.on_new.0 -= u64::from(side == Side::New);
        }
    }

    /// What reached the age of the hang rule in this tick: of all evidence, and of users who are
    /// compared.
    fn waited(&mut self) -> (PerSide<Waited>, PerSide<Waited>) {
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
        let mut waiting: Vec<(Side, Who, bool)> = self
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

    fn look(&mut self, look: Look) -> Vec<Announcement> {
        self.last_look = self.now.mono;
        let witnesses = self.watch.drain();
        let available = PerSide::from_fn(|side| !self.is_down(side));
        let is_tick = look == Look::Tick;
        let (waited, waited_compared) = if is_tick {
            self.waited()
        } else {
            Default::default()
        };
        let is_due = is_tick && tick_of(self.now.mono).is_multiple_of(4);
        let crowd = self.crowd.look(&self.watch, is_due, self.now.mono);
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
            witnesses: &witnesses,
            crowd,
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

    fn carry_out(&mut self, effects: Vec<Effect>) -> Vec<Announcement> {
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
            self.watch.aim(rollout.aims());
        }
        said
    }
}

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
