//! The user tracker: the part of the judge on the request path, written by all request threads and
//! read by the control plane.
//!
//! Statistics over requests can be distorted by one client. Therefore only a limited number of bad
//! events of each user counts in ten seconds, and likewise of each client network. Both numbers are
//! derived from what an average user or network does ([`fair_share`]), so that few users with many
//! requests are not muted. Events that count are remembered for a while as a [`BadEvent`]. A
//! verdict can then state how many users were affected, and whether a single user or network caused
//! all of it.
//!
//! The base that bad events are compared with also counts users: [`Counted::is_appearance`] is a
//! user seen for the first time in a tick. A crawler that sends a thousand requests a second to one
//! side is four appearances a second, and does not make the other side's failure rate look large.
//!
//! The judge also uses users as trials. For each running block of time it needs three numbers: how
//! many users were served, how many had a bad event, and for how many the first answer was bad. A
//! user is distinguished by a stamp, the time of the last appearance or of the last bad event. One
//! table serves both sides. With one table for each, the fuller table would lose more users to
//! collisions, and the side of a user would no longer be independent of being counted.
//!
//! A success costs a few loads of shared, rarely written words (the failure streak, the lowest
//! latency limit) and one load of the user's cell, with a store when the user appears. Only bad or
//! slow events touch more. Table cells are found by hash and may collide: a collision loses an
//! event and never invents one.
//!
//! Deliberately absent: user keys. A user is 32 bits of hash here and in everything derived from
//! it.

mod class;
mod limits;
mod population;
mod stamp;

#[expect(
    clippy::disallowed_types,
    reason = "the one part of the core that request threads share; held for a push or a swap"
)]
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{OnceLock, PoisonError};
use std::time::Duration;

use crate::side::{PerSide, Side};
use crate::stats::outcome::{Ending, Outcome};
use crate::time::Mono;
pub use class::{Class, Counted};
pub use limits::TrackerLimits;
pub use population::{LastPopulation, Population, fair_share};
pub use stamp::tick_of;
use stamp::{age, is_recent, place, stamp_of, take};

/// The interval at which the guard evaluates, and the unit of time in the tables.
pub const TICK: Duration = Duration::from_millis(250);

/// How long a user's bad event stands for all bad events of that user.
pub const USER_PERIOD: Duration = Duration::from_secs(10);

/// The minimum number of users of one network that may count in [`USER_PERIOD`].
pub const NETWORK_USERS: u16 = 4;

/// The network share that sets no cap.
pub const NO_CAP: u16 = u16::MAX;

/// The number of blocks of time that run side by side.
pub const BLOCKS: usize = 3;

/// The number of redirects in a row, without another answer, that are one bad event of a user.
pub const REDIRECTS_IN_A_ROW: u16 = 5;

/// Redirects further apart than this do not count as being in a row.
const REDIRECTS_WITHIN: Duration = Duration::from_secs(60);

const PERIOD_TICKS: u16 = (USER_PERIOD.as_millis() / TICK.as_millis()) as u16;

const REDIRECT_TICKS: u16 = (REDIRECTS_WITHIN.as_millis() / TICK.as_millis()) as u16;

/// Stamps expire after this many ticks, which is twice the longest block.
const STAMP_TICKS: u16 = 4_096;

const USERS: usize = 1 << 16;

const NETWORKS: usize = 1 << 14;

/// The number of bad events of one class that are kept between two evaluations by the control
/// plane. Further ones are only counted.
const BAD_EVENTS_PER_LOOK: u32 = 256;

/// The number of latency limits that are watched on each side.
pub const LIMITS: usize = 9;

/// The sender of a request, as far as the judge needs it. Both values are hashes that the shell
/// mixes well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requester {
    /// The hash of the user key, or of the client's address if there is no key.
    pub user: u32,
    /// The hash of the client's network: /24 or /48.
    pub network: u32,
}

/// A bad event on new that counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadEvent {
    /// The class of the event.
    pub class: Class,
    /// The affected user.
    pub who: Requester,
    /// The time of the event.
    pub at: Mono,
    /// The requested path. Recorded for failures only.
    pub path: Option<Box<str>>,
    /// Whether the user was placed by the hash or by chance, and is therefore compared with
    /// legacy's users.
    pub is_compared: bool,
}

/// The shared words of one rollout.
#[expect(
    clippy::disallowed_types,
    reason = "the one part of the core that request threads share; held for a push or a swap"
)]
#[derive(Debug)]
pub struct UserTracker {
    epoch: AtomicU64,
    /// The start times of the running blocks, as stamps: sixteen bits each, the shortest block
    /// lowest.
    blocks: AtomicU64,
    sides: PerSide<SideTables>,
    shares: [AtomicU32; Class::COUNT],
    /// The tick in which a user of either side was seen last, and the side; zero is never.
    seen: Box<[AtomicU16]>,
    /// The tick of the last bad event of a class for a user of either side; zero is never.
    affected: [OnceLock<Box<[AtomicU16]>>; Class::COUNT],
    /// The number of redirects that a user received in a row, and the tick of the first of them.
    redirects: OnceLock<Box<[AtomicU32]>>,
    /// The tick in which any user was redirected last; zero is never.
    redirected: AtomicU16,
    /// The tick in which a network of new was seen last.
    networks: Box<[AtomicU16]>,
    /// The tick after the last one in which a user was seen on new, and its value when the tables
    /// were last found empty. The tables of an idle rollout are not searched again and again.
    newest: AtomicU32,
    empty_at: AtomicU32,
    /// The number of users who arrived on new without having been there lately. It shows a reader
    /// whether there are users to count.
    newcomers: AtomicU32,
    bad_events: Mutex<Vec<BadEvent>>,
    kept: [AtomicU32; Class::COUNT],
}

/// The tables that belong to one side only.
#[derive(Debug)]
struct SideTables {
    floor: AtomicU64,
    slow: [AtomicU64; LIMITS],
    streak: AtomicU32,
    users: [OnceLock<Box<[AtomicU32]>>; Class::COUNT],
    networks: [OnceLock<Box<[AtomicU32]>>; Class::COUNT],
}

#[expect(
    clippy::disallowed_types,
    reason = "the one part of the core that request threads share; held for a push or a swap"
)]
impl Default for UserTracker {
    fn default() -> Self {
        let stamps = |cells: usize| (0..cells).map(|_| AtomicU16::default()).collect();
        let sheet = |_| SideTables {
            floor: AtomicU64::new(u64::MAX),
            slow: std::array::from_fn(|_| AtomicU64::new(u64::MAX)),
            streak: AtomicU32::default(),
            users: Default::default(),
            networks: Default::default(),
        };
        let watch = Self {
            epoch: AtomicU64::default(),
            blocks: AtomicU64::default(),
            seen: stamps(USERS),
            affected: Default::default(),
            redirects: OnceLock::default(),
            redirected: AtomicU16::default(),
            sides: PerSide::from_fn(sheet),
            shares: Default::default(),
            networks: stamps(NETWORKS),
            newest: AtomicU32::default(),
            empty_at: AtomicU32::default(),
            newcomers: AtomicU32::default(),
            bad_events: Mutex::default(),
            kept: Default::default(),
        };
        watch.set_tracker_limits(&TrackerLimits::default());
        watch
    }
}

impl UserTracker {
    /// Records the end of one request on `side`, and returns the classes in which it counts.
    #[inline]
    pub fn see(
        &self,
        side: Side,
        ending: &Ending,
        who: Requester,
        path: &str,
        at: Mono,
    ) -> Counted {
        if !ending.evidence.counts() {
            return Counted::default();
        }
        let sheet = &self.sides[side];
        let is_slow = ending
            .latency_us
            .is_some_and(|latency_us| latency_us > sheet.floor.load(Ordering::Relaxed));
        if ending.outcome == Outcome::Ignored {
            return Counted::default();
        }
        let mut counted = Counted::default();
        let now = stamp_of(at);
        let seen = &self.seen[who.user as usize % USERS];
        let stamp = now << 1 | u16::from(side == Side::New);
        let was = seen.load(Ordering::Relaxed);
        if was != stamp {
            seen.store(stamp, Ordering::Relaxed);
            counted.is_appearance = true;
            counted.first = self.first_in(was >> 1, now);
            if side == Side::New {
                self.comes(was, now, who, at);
            }
        }
        let is_redirect = ending.outcome == Outcome::Success
            && matches!(ending.status, Some(300..=303 | 305..=399));
        if is_redirect || self.redirected.load(Ordering::Relaxed) != 0 {
            self.see_redirect(is_redirect, side, ending, who, path, at, &mut counted);
        }
        if ending.outcome == Outcome::Success {
            if sheet.streak.load(Ordering::Relaxed) != 0 {
                sheet.streak.store(0, Ordering::Relaxed);
            }
            if !is_slow {
                return counted;
            }
        }
        self.see_bad(side, ending, is_slow, who, path, at, &mut counted);
        counted
    }

    /// Records that a user appears on new.
    fn comes(&self, was: u16, now: u16, who: Requester, at: Mono) {
        let network = &self.networks[who.network as usize % NETWORKS];
        let network_was = network.load(Ordering::Relaxed);
        network.store(now, Ordering::Relaxed);
        let tick = (tick_of(at) as u32).wrapping_add(1);
        if self.newest.load(Ordering::Relaxed) < tick {
            self.newest.store(tick, Ordering::Relaxed);
        }
        // Stored last: a thread that reads it also sees what was stored before.
        if was & 1 == 0 || !is_recent(was >> 1, now) || !is_recent(network_was, now) {
            self.newcomers.fetch_add(1, Ordering::Release);
        }
    }

    /// Returns the number of running blocks that began after the stamp, the shortest block first.
    #[inline]
    fn first_in(&self, was: u16, now: u16) -> u8 {
        let blocks = self.blocks.load(Ordering::Relaxed);
        let was_before = if was == 0 { u16::MAX } else { age(now, was) };
        let precedes = |block: usize| was_before > age(now, (blocks >> (16 * block)) as u16);
        // Longer blocks began no later than shorter ones, and most users appear again within the
        // shortest.
        if !precedes(0) {
            return 0;
        }
        1 + (1..BLOCKS).take_while(|block| precedes(*block)).count() as u8
    }

    /// Whether an outcome decided under `epoch` still counts.
    #[inline]
    pub fn is_of(&self, epoch: u64) -> bool {
        self.epoch.load(Ordering::Relaxed) == epoch
    }

    /// Counts the redirects that each user receives in a row. Any other answer ends the row.
    #[cold]
    #[expect(
        clippy::too_many_arguments,
        reason = "the arguments of `see` and what it has found so far"
    )]
    fn see_redirect(
        &self,
        is_redirect: bool,
        side: Side,
        ending: &Ending,
        who: Requester,
        path: &str,
        at: Mono,
        counted: &mut Counted,
    ) {
        let now = stamp_of(at);
        let last = self.redirected.load(Ordering::Relaxed);
        if is_redirect && last != now {
            self.redirected.store(now, Ordering::Relaxed);
        } else if !is_redirect && age(now, last) > REDIRECT_TICKS {
            // Rows from before are too old to continue.
            self.redirected.store(0, Ordering::Relaxed);
            return;
        }
        let table = self
            .redirects
            .get_or_init(|| (0..USERS).map(|_| AtomicU32::default()).collect());
        let cell = &table[who.user as usize % USERS];
        let was = cell.load(Ordering::Relaxed);
        let (start, row) = ((was >> 16) as u16, was as u16);
        if !is_redirect {
            if row != 0 {
                cell.store(0, Ordering::Relaxed);
            }
            return;
        }
        let next = if row == 0 || age(now, start) > REDIRECT_TICKS {
            u32::from(now) << 16 | 1
        } else {
            was + 1
        };
        if next as u16 >= REDIRECTS_IN_A_ROW {
            cell.store(0, Ordering::Relaxed);
            self.hurts(Class::Redirects, side, ending, who, path, at, counted);
        } else {
            cell.store(next, Ordering::Relaxed);
        }
    }

    /// Records that a user had a bad event.
    #[expect(
        clippy::too_many_arguments,
        reason = "the arguments of `see` and what it has found so far"
    )]
    fn hurts(
        &self,
        class: Class,
        side: Side,
        ending: &Ending,
        who: Requester,
        path: &str,
        at: Mono,
        counted: &mut Counted,
    ) {
        let now = stamp_of(at);
        let stamps = self.affected[class.index()]
            .get_or_init(|| (0..USERS).map(|_| AtomicU16::default()).collect());
        let was = &stamps[who.user as usize % USERS];
        counted.is_bad(
            class,
            usize::from(self.first_in(was.load(Ordering::Relaxed), now)),
        );
        was.store(now, Ordering::Relaxed);
        if self.admit(side, class, who, at) {
            counted.add(class);
            if side == Side::New {
                let path = matches!(class, Class::Failure | Class::Redirects).then(|| place(path));
                self.keep(BadEvent {
                    class,
                    who,
                    at,
                    path,
                    is_compared: ending.evidence.is_compared(),
                });
            }
        }
    }

    #[cold]
    #[expect(
        clippy::too_many_arguments,
        reason = "the arguments of `see` and what it has found so far"
    )]
    fn see_bad(
        &self,
        side: Side,
        ending: &Ending,
        is_slow: bool,
        who: Requester,
        path: &str,
        at: Mono,
        counted: &mut Counted,
    ) {
        let sheet = &self.sides[side];
        let class = match ending.outcome {
            Outcome::Failure(_) => {
                sheet.streak.fetch_add(1, Ordering::Relaxed);
                Some(Class::Failure)
            }
            Outcome::ClientError => {
                sheet.streak.store(0, Ordering::Relaxed);
                Some(Class::ClientError)
            }
            Outcome::Aborted => Some(Class::Abort),
            Outcome::Success => None,
            Outcome::Ignored => return,
        };
        if let Some(class) = class {
            self.hurts(class, side, ending, who, path, at, counted);
        }
        // An aborted request has no answer, so it is in no latency.
        if is_slow && class != Some(Class::Abort) {
            for (limit, slow) in sheet.slow.iter().enumerate() {
                if ending
                    .latency_us
                    .is_some_and(|latency_us| latency_us > slow.load(Ordering::Relaxed))
                {
                    self.hurts(
                        Class::Slow(limit as u8),
                        side,
                        ending,
                        who,
                        path,
                        at,
                        counted,
                    );
                }
            }
        }
    }

    /// Whether this bad event of this user counts. If so, it is recorded as counted.
    fn admit(&self, side: Side, class: Class, who: Requester, at: Mono) -> bool {
        let shares = self.shares[class.index()].load(Ordering::Relaxed);
        let (of_user, of_network) = (shares as u16, (shares >> 16) as u16);
        let now = tick_of(at) as u16;
        let sheet = &self.sides[side];
        let table = |tables: &[OnceLock<Box<[AtomicU32]>>; Class::COUNT],
                     len: usize,
                     hash: u32,
                     most: u16| {
            let table = tables[class.index()]
                .get_or_init(|| (0..len).map(|_| AtomicU32::default()).collect());
            take(&table[hash as usize % len], now, most)
        };
        table(&sheet.users, USERS, who.user, of_user)
            && (of_network == NO_CAP || table(&sheet.networks, NETWORKS, who.network, of_network))
    }

    fn keep(&self, bad_event: BadEvent) {
        if self.kept[bad_event.class.index()].fetch_add(1, Ordering::Relaxed) < BAD_EVENTS_PER_LOOK
        {
            self.bad_events
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(bad_event);
        }
    }

    /// Returns the number of failures of each side since its last success.
    pub fn streaks(&self) -> PerSide<u32> {
        PerSide::from_fn(|side| self.sides[side].streak.load(Ordering::Relaxed))
    }

    /// Takes the bad events recorded since the last call.
    pub fn drain(&self) -> Vec<BadEvent> {
        for kept in &self.kept {
            kept.store(0, Ordering::Relaxed);
        }
        std::mem::take(
            &mut *self
                .bad_events
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::outcome::FailureKind;

    fn failure() -> Ending {
        Ending {
            outcome: Outcome::Failure(FailureKind::Status),
            status: Some(500),
            latency_us: Some(10),
            evidence: crate::stats::outcome::Evidence::Compared,
        }
    }

    fn success(latency_us: u64) -> Ending {
        Ending {
            outcome: Outcome::Success,
            status: Some(200),
            latency_us: Some(latency_us),
            evidence: crate::stats::outcome::Evidence::Compared,
        }
    }

    fn user(number: u32) -> Requester {
        let hash = crate::routing::bucket::murmur3_x86_32(&number.to_le_bytes());
        Requester {
            user: hash,
            network: crate::routing::bucket::murmur3_x86_32(&(number / 4).to_le_bytes()),
        }
    }

    fn at(millis: u64) -> Mono {
        Mono::from_micros(millis * 1_000)
    }

    #[test]
    fn a_user_counts_once_in_ten_seconds() {
        let watch = UserTracker::default();
        let counted: Vec<bool> = (0..60)
            .map(|second| {
                watch
                    .see(Side::New, &failure(), user(1), "/", at(second * 500))
                    .has(Class::Failure)
            })
            .collect();
        let at_which: Vec<usize> = (0..60).filter(|second| counted[*second]).collect();
        assert_eq!(at_which, [0, 20, 40], "every ten seconds of thirty");
        assert!(
            watch
                .see(Side::New, &failure(), user(2), "/", at(29_900))
                .has(Class::Failure),
            "another user counts at once"
        );
        assert!(
            watch
                .see(Side::Legacy, &failure(), user(1), "/", at(29_900))
                .has(Class::Failure),
            "and so does the other side"
        );
    }

    #[test]
    fn a_network_counts_for_four_users() {
        let watch = UserTracker::default();
        watch.set_tracker_limits(&TrackerLimits {
            shares: [(1, NETWORK_USERS); Class::COUNT],
            ..TrackerLimits::default()
        });
        let from_one_address = |number: u32| Requester {
            user: user(number).user,
            network: 7,
        };
        let counted = (0..5_000)
            .filter(|number| {
                watch
                    .see(
                        Side::New,
                        &failure(),
                        from_one_address(*number),
                        "/",
                        at(100),
                    )
                    .has(Class::Failure)
            })
            .count();
        assert_eq!(counted, 4);
    }

    #[test]
    fn a_busy_user_among_few_users_may_count_more_often() {
        assert_eq!(fair_share(0.01, 500.0, 450.0, 1), 1, "many users");
        assert_eq!(
            fair_share(0.01, 10_000.0, 50.0, 1),
            8,
            "fifty users with two hundred requests each: up to four times the limit of one per \
             cent"
        );
        assert_eq!(
            fair_share(0.5, 120.0, 10.0, 1),
            24,
            "a median is above its limit for half of the requests"
        );
        assert_eq!(fair_share(1.0, f64::INFINITY, 0.0, 1), NO_CAP - 1);
    }

    #[test]
    fn a_fast_success_counts_nowhere_and_ends_a_streak() {
        let watch = UserTracker::default();
        for number in 0..7 {
            watch.see(Side::New, &failure(), user(number), "/", at(1));
        }
        assert_eq!(watch.streaks(), PerSide { legacy: 0, new: 7 });
        assert_eq!(
            watch
                .see(Side::New, &success(5), user(1), "/", at(2))
                .indexes()
                .count(),
            0
        );
        assert_eq!(watch.streaks().new, 0);
    }

    #[test]
    fn slow_requests_count_at_each_limit_that_they_exceed() {
        let watch = UserTracker::default();
        let mut tracker_limits = TrackerLimits::default();
        (
            tracker_limits.slow.new[0],
            tracker_limits.slow.new[1],
            tracker_limits.slow.new[3],
        ) = (100, 200, 150);
        watch.set_tracker_limits(&tracker_limits);
        let counted = watch.see(Side::New, &success(180), user(1), "/", at(1));
        assert_eq!(
            counted.indexes().collect::<Vec<_>>(),
            [Class::Slow(0).index(), Class::Slow(3).index()]
        );
        assert_eq!(
            watch
                .see(Side::New, &success(100), user(2), "/", at(1))
                .indexes()
                .count(),
            0,
            "at the limit is not above it"
        );
        assert_eq!(
            watch
                .see(Side::Legacy, &success(180), user(1), "/", at(1))
                .indexes()
                .count(),
            0,
            "limits are those of a side"
        );
    }

    #[test]
    fn a_population_is_counted_when_due_or_when_a_user_has_arrived() {
        let (watch, mut last) = (UserTracker::default(), LastPopulation::default());
        assert_eq!(
            last.look(&watch, false, at(1_000)),
            None,
            "no user has come"
        );
        for number in 0..3 {
            watch.see(Side::New, &failure(), user(number * 4), "/", at(1_000));
        }
        let users = |population: Option<Population>| {
            population.map(|population| population.users_10s.round())
        };
        assert_eq!(users(last.look(&watch, false, at(1_001))), Some(3.0));
        watch.see(Side::New, &failure(), user(0), "/", at(1_500));
        watch.see(Side::Legacy, &failure(), user(40), "/", at(1_500));
        assert_eq!(
            last.look(&watch, false, at(1_501)),
            None,
            "all of them were there"
        );
        assert_eq!(users(last.look(&watch, true, at(1_502))), Some(3.0));
        watch.see(Side::New, &failure(), user(0), "/", at(30_000));
        assert_eq!(
            users(last.look(&watch, false, at(30_001))),
            Some(1.0),
            "one has come back"
        );
        for number in 0..40 {
            watch.see(Side::New, &failure(), user(number * 4), "/", at(31_000));
        }
        assert!(
            last.look(&watch, false, at(31_001))
                .is_some_and(|population| !population.is_small())
        );
        watch.see(Side::New, &failure(), user(400), "/", at(31_002));
        assert_eq!(
            last.look(&watch, false, at(31_003)),
            None,
            "one more among many is counted in its time"
        );
    }

    #[test]
    fn the_population_counts_users_and_networks_and_forgets_them() {
        let watch = UserTracker::default();
        for number in 0..300 {
            watch.see(Side::New, &success(5), user(number), "/", at(1_000));
            watch.see(Side::New, &success(5), user(number), "/", at(1_100));
        }
        let population = watch.population(at(2_000));
        assert!(
            (population.users_60s / 300.0 - 1.0).abs() < 0.1
                && (population.users_10s / 300.0 - 1.0).abs() < 0.1,
            "{population:?}"
        );
        assert!(
            (population.networks_60s / 75.0 - 1.0).abs() < 0.1,
            "{population:?}"
        );
        let later = watch.population(at(30_000));
        assert!(
            later.users_10s == 0.0 && later.users_60s > 250.0,
            "{later:?}"
        );
        assert_eq!(watch.population(at(90_000)).users_60s, 0.0);
        watch.see(Side::New, &success(5), user(1), "/", at(91_000));
        assert!(
            watch.population(at(91_000)).users_60s > 0.9,
            "a user after the tables were found empty counts"
        );
    }

    #[test]
    fn a_large_population_is_estimated() {
        let watch = UserTracker::default();
        for number in 0..100_000 {
            watch.see(Side::New, &success(5), user(number), "/", at(1_000));
        }
        let population = watch.population(at(2_000));
        assert!(
            (population.users_10s / 100_000.0 - 1.0).abs() < 0.05,
            "{population:?}"
        );
    }

    #[test]
    fn a_user_appears_once_per_tick_however_many_requests_it_sends() {
        let watch = UserTracker::default();
        let appearances = |side, millis: u64| {
            (0..1_000)
                .filter(|_| {
                    watch
                        .see(side, &success(5), user(1), "/", at(millis))
                        .is_appearance()
                })
                .count()
        };
        assert_eq!(
            [
                appearances(Side::New, 1_000),
                appearances(Side::New, 1_200),
                appearances(Side::New, 1_250),
                appearances(Side::Legacy, 1_250)
            ],
            [1, 0, 1, 1]
        );
    }

    #[test]
    fn recorded_bad_events_are_limited_to_those_that_counted() {
        let watch = UserTracker::default();
        for number in 0..10_000 {
            watch.see(
                Side::New,
                &failure(),
                user(number),
                "/api/orders/123?x=1",
                at(1),
            );
            watch.see(
                Side::Legacy,
                &failure(),
                user(number),
                "/api/orders/123?x=1",
                at(1),
            );
        }
        let bad_events = watch.drain();
        assert_eq!(bad_events.len(), BAD_EVENTS_PER_LOOK as usize);
        assert_eq!(bad_events[0].path.as_deref(), Some("/api/orders/*"));
        assert!(watch.drain().is_empty());
    }

    #[test]
    fn a_request_that_is_no_evidence_leaves_no_trace() {
        let watch = UserTracker::default();
        let ignored = [
            Ending {
                evidence: crate::stats::outcome::Evidence::None,
                ..failure()
            },
            Ending {
                outcome: Outcome::Ignored,
                ..failure()
            },
        ];
        for ending in ignored {
            assert!(
                watch
                    .see(Side::New, &ending, user(1), "/", at(1))
                    .is_empty()
            );
        }
        assert_eq!(watch.streaks().new, 0);
        assert!(watch.drain().is_empty());
    }
}
