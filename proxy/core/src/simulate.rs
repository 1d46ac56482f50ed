//! The real control plane on virtual time, with made-up traffic: what would this guard do?
//!
//! Requests come one by one (Poisson arrivals, users drawn evenly from a population), are routed by the real hash, counted by the real [`Watch`], and judged by the real [`ControlPlane`]:
//! nothing of the engine is imitated. All chance comes from one seed, so every run can be had again. `cutover simulate`, the forecast of `cutover check` and the long runs of the tests use it.
//!
//! A request ends when it begins, but for those that hang. Deliberately absent: queues, retries and everything else that would make of this a model of somebody's backend.

use std::collections::VecDeque;
use std::time::Duration;

use crate::bucket::murmur3_x86_32;
use crate::guard::Rule;
use crate::judge::{Observed, Waited};
use crate::outcome::{Ending, FailureKind, Outcome};
use crate::plane::{Actor, Announcement, Change, Command, CommandError, ControlPlane, Effect, Event, Restored};
use crate::rollout::RolloutSettings;
use crate::side::{PerSide, Side};
use crate::split::{Ask, Split, UserKey, decide};
use crate::time::{Mono, Now, Wall, micros};
use crate::window::Totals;
use crate::witness::{LastCrowd, TICK, Watch, Who, tick_of};

/// At most one look between ticks in this time.
pub const WAKE_PAUSE: Duration = Duration::from_millis(2);

/// What is asked for, evenly.
const PATHS: [&str; 6] = ["/", "/cart", "/cart/items", "/api/orders", "/api/users", "/search"];

/// A small fast generator with a seed: xoshiro256++ (Blackman and Vigna 2019), seeded by splitmix64.
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
}

impl Default for Traffic {
    fn default() -> Self {
        Self { rps: 100.0, users: 10_000, networks: 2_500, errors: 0.001, client_errors: 0.01, aborts: 0.001, median_us: 40_000.0, sigma: 1.0 }
    }
}

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

/// A world: traffic, backends, the proxy's counters and its control plane.
#[derive(Debug)]
pub struct World {
    scenario: Scenario,
    chance: Chance,
    plane: ControlPlane,
    split: Split,
    watch: Watch,
    totals: Vec<PerSide<Totals>>,
    users: Vec<(Vec<u8>, Who)>,
    latencies: Vec<f32>,
    now: Now,
    last_look: Mono,
    hanging: VecDeque<(Mono, Side, Who)>,
    started: VecDeque<PerSide<u64>>,
    hang_ticks: Option<usize>,
    noise: Vec<Noise>,
    crowd: LastCrowd,
    on_new: (u64, u64),
    tripped: Option<(Mono, (u64, u64))>,
}

impl World {
    /// A world at its beginning.
    pub fn new(scenario: Scenario) -> Self {
        let mut chance = Chance::new(scenario.seed);
        let traffic = scenario.traffic;
        let users = (0..traffic.users.max(1))
            .map(|number| {
                let key = format!("u{number}").into_bytes();
                let network = murmur3_x86_32(&(number % traffic.networks.max(1)).to_le_bytes());
                let user = murmur3_x86_32(&[&key[..], b"/who"].concat());
                (key, Who { user, network })
            })
            .collect();
        let latencies = (0..1 << 16).map(|_| (traffic.median_us * (traffic.sigma * chance.normal()).exp()).clamp(1.0, 6e7) as f32).collect();
        let hang_ticks = scenario.settings.guard.rules.iter().find_map(|rule| if let Rule::Hang(us) = rule { Some((us / micros(TICK)) as usize) } else { None });
        let mut world = Self {
            plane: ControlPlane::new(Restored::Fresh),
            split: Split::default(),
            watch: Watch::default(),
            totals: vec![PerSide::default()],
            users,
            latencies,
            now: Now { mono: Mono::default(), wall: Wall::from_millis(1_700_000_000_000) },
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

    /// Whether the rollout is rolled back.
    pub fn is_rolled_back(&self) -> bool {
        self.plane.rollouts().iter().any(|rollout| rollout.latch().is_some())
    }

    /// Puts other settings in force, as an edited file would.
    pub fn set(&mut self, settings: RolloutSettings) -> Vec<Announcement> {
        let event = Event::Settings { rollouts: vec![settings], actor: Actor::file(), reason: String::new() };
        let effects = self.plane.on(event, self.now).unwrap_or_default();
        self.carry_out(effects)
    }

    /// Gives a command, as a person would.
    ///
    /// # Errors
    /// When the plane refuses it.
    pub fn command(&mut self, command: Command) -> Result<Vec<Announcement>, CommandError> {
        let id = self.scenario.settings.id.clone();
        let actor = Actor { name: "simulation".to_owned(), source: crate::plane::Source::Cli };
        let effects = self.plane.on(Event::Command { rollout: &id, command, actor, reason: "simulated".to_owned() }, self.now)?;
        Ok(self.carry_out(effects))
    }

    /// Adds to what goes wrong.
    pub fn fault(&mut self, fault: Fault) {
        self.scenario.faults.push(fault);
    }

    /// Lets one user of each of these send this many failing requests, one per tick.
    pub fn noisy_user(&mut self, requests: u32) {
        let number = self.chance.below(self.users.len() as u32) as usize;
        let (key, who) = self.users[number].clone();
        let side = self.side_of(&key);
        self.noise.push(Noise { who, side, left: requests });
    }

    /// A client that makes a request fail on purpose.
    pub fn fails_on_purpose(&mut self, who: Who, side: Side) {
        let ending = Ending { outcome: Outcome::Failure(FailureKind::Status), status: Some(500), latency_us: Some(1_000), evidence: true };
        self.end(side, &ending, who);
    }

    /// One user who sends many requests at once; all of them are answered well.
    pub fn crawls(&mut self, who: Who, side: Side, requests: u32) {
        let ending = Ending { outcome: Outcome::Success, status: Some(200), latency_us: Some(1_000), evidence: true };
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
        let gap_us = 1e6 / self.scenario.traffic.rps.max(1e-9);
        let mut started = PerSide::default();
        loop {
            at_us += -self.chance.unit().max(1e-300).ln() * gap_us;
            if at_us >= length_us as f64 {
                break;
            }
            self.now.mono = begin.mono.forward(Duration::from_micros(at_us as u64));
            let failed_on_new = self.request(&mut started);
            if failed_on_new && self.scenario.between_ticks && self.now.mono.since(self.last_look) >= WAKE_PAUSE {
                said.extend(self.look(false));
            }
        }
        self.now = Now { mono: begin.mono.forward(length), wall: Wall::from_millis(begin.wall.as_millis() + (length_us / 1_000) as i64) };
        self.make_noise();
        self.end_hanging();
        self.started.push_back(started);
        said.extend(self.look(true));
        said
    }

    fn side_of(&self, key: &[u8]) -> Side {
        let ask = Ask { key: UserKey::Known(key), override_to: None, available: PerSide { legacy: true, new: true } };
        self.split.rollouts.first().map_or(Side::Legacy, |rollout| decide(rollout, &ask).side)
    }

    /// One request. Says whether it failed on new.
    fn request(&mut self, started: &mut PerSide<u64>) -> bool {
        let number = self.chance.below(self.users.len() as u32) as usize;
        let who = self.users[number].1;
        let side = self.side_of(&self.users[number].0);
        started[side] += 1;
        let traffic = self.scenario.traffic;
        let elapsed = self.elapsed();
        let mut ending = Ending { outcome: Outcome::Success, status: Some(200), latency_us: None, evidence: true };
        let mut latency = f64::from(self.latencies[self.chance.below(1 << 16) as usize]);
        let mut errors = traffic.errors;
        let mut client_errors = traffic.client_errors;
        let mut refused = false;
        for fault in self.scenario.faults.iter().filter(|fault| fault.side.is_none_or(|at| at == side)) {
            if elapsed < fault.from || elapsed - fault.from >= fault.lasts {
                continue;
            }
            match fault.kind {
                FaultKind::Errors(rate) => errors = errors.max(rate),
                FaultKind::Refused | FaultKind::NoServer => refused = true,
                FaultKind::Slow(factor) => latency *= factor,
                FaultKind::ClientErrors(rate) => client_errors = client_errors.max(rate),
                FaultKind::Hang => {
                    self.hanging.push_back((self.now.mono, side, who));
                    if side == Side::New {
                        self.on_new.0 += 1;
                    }
                    return false;
                }
            }
        }
        ending.latency_us = Some(latency.min(6e7) as u64);
        if refused {
            ending = Ending { outcome: Outcome::Failure(FailureKind::Connect), status: Some(502), latency_us: None, ..ending };
        } else if self.chance.happens(errors) {
            ending = Ending { outcome: Outcome::Failure(FailureKind::Status), status: Some(500), ..ending };
        } else if self.chance.happens(client_errors) {
            ending = Ending { outcome: Outcome::ClientError, status: Some(404), ..ending };
        } else if self.chance.happens(traffic.aborts) {
            ending = Ending { outcome: Outcome::Aborted, status: None, latency_us: None, ..ending };
        }
        self.end(side, &ending, who)
    }

    /// Counts the end of a request. Says whether it failed on new.
    fn end(&mut self, side: Side, ending: &Ending, who: Who) -> bool {
        let path = PATHS[self.chance.below(PATHS.len() as u32) as usize];
        let counted = self.watch.see(side, ending, who, path, self.now.mono);
        self.totals[0][side].record(ending, counted);
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
        while let Some((_, side, who)) = self.hanging.pop_front_if(|(at, ..)| self.now.mono.since(*at) >= self.scenario.timeout) {
            let ending = Ending { outcome: Outcome::Failure(FailureKind::Timeout), status: Some(504), latency_us: Some(micros(self.scenario.timeout)), evidence: true };
            self.end(side, &ending, who);
            self.on_new.0 -= u64::from(side == Side::New);
        }
    }

    /// What reached the age of the hang rule in this tick.
    fn waited(&mut self) -> PerSide<Waited> {
        let Some(ticks) = self.hang_ticks else { return PerSide::default() };
        if self.started.len() <= ticks {
            return PerSide::default();
        }
        let began = self.started.pop_front().unwrap_or_default();
        let older_than = TICK * ticks as u32;
        let of_age = |at: Mono| (older_than..older_than + TICK).contains(&self.now.mono.since(at));
        PerSide::from_fn(|side| {
            let hung: Vec<Who> = self.hanging.iter().filter(|(at, on, _)| *on == side && of_age(*at)).map(|(_, _, who)| *who).collect();
            let mut places = [0u64; 16];
            for who in &hung {
                places[who.network as usize % 16] += 1;
            }
            let top = places.iter().max().copied().unwrap_or_default();
            Waited {
                started: began[side],
                hung: hung.len() as u64,
                places: places.iter().filter(|count| **count > 0).count() as u32,
                top_place: if hung.is_empty() { 0.0 } else { top as f64 / hung.len() as f64 },
            }
        })
    }

    fn look(&mut self, is_tick: bool) -> Vec<Announcement> {
        self.last_look = self.now.mono;
        let witnesses = self.watch.drain();
        let elapsed = self.elapsed();
        let is_down = |side: Side| {
            let down = |fault: &&Fault| fault.kind == FaultKind::NoServer && fault.side.is_none_or(|at| at == side) && elapsed >= fault.from && elapsed - fault.from < fault.lasts;
            self.scenario.faults.iter().find(down).is_some()
        };
        let available = PerSide::from_fn(|side| !is_down(side));
        let waited = if is_tick { self.waited() } else { PerSide::default() };
        let is_due = is_tick && tick_of(self.now.mono).is_multiple_of(4);
        let crowd = self.crowd.look(&self.watch, is_due, self.now.mono);
        let totals = std::mem::take(&mut self.totals);
        let observed = [Observed { totals: &totals[0], streaks: self.watch.streaks(), available, waited, witnesses: &witnesses, crowd }];
        let event = if is_tick { Event::Tick(&observed) } else { Event::Failure(&observed) };
        let effects = self.plane.on(event, self.now).unwrap_or_default();
        self.totals = totals;
        self.carry_out(effects)
    }

    fn carry_out(&mut self, effects: Vec<Effect>) -> Vec<Announcement> {
        let mut said = Vec::new();
        for effect in effects {
            match effect {
                Effect::Publish(split) => self.split = split,
                Effect::Persist(_) => {}
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

/// Lets a world be healthy for `warm_up`, adds `fault` from then on, and waits at most `patience` for the rollback. `Err` holds the false alarm when it came before.
///
/// # Errors
/// The sentence of a rollback before anything was wrong.
pub fn notice(scenario: Scenario, warm_up: Duration, fault: Fault, patience: Duration) -> Result<Option<Noticed>, String> {
    let mut world = World::new(scenario);
    let trip_of = |said: Vec<Announcement>| said.into_iter().find_map(|announcement| if let Change::RolledBack(trip) = announcement.change { Some(trip) } else { None });
    while world.elapsed() < warm_up {
        if let Some(trip) = trip_of(world.tick()) {
            return Err(trip.sentence);
        }
    }
    let (began, before) = (world.elapsed(), world.on_new);
    world.fault(Fault { from: began, ..fault });
    while world.elapsed() < began + patience {
        if let Some(trip) = trip_of(world.tick()) {
            // It may lie within the tick.
            let (at, on_new) = world.tripped.unwrap_or((world.now.mono, world.on_new));
            let delay = at.since(Mono::default()) - began;
            return Ok(Some(Noticed { delay, requests: on_new.0 - before.0, bad: on_new.1 - before.1, rule: trip.cause.label().to_owned(), sentence: trip.sentence }));
        }
    }
    Ok(None)
}
