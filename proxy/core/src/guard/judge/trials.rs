//! Users as trials: whether so many *different* users were affected that chance does not explain
//! it.
//!
//! The hash places users on new with chance `w`, the share in force. If the sides are equal, the
//! side of a user says nothing about that user's results. The test therefore bets on this label of
//! each user who was affected (or served well). It counts each user once in a block of time, with
//! the nominal `w` and never with counted shares. A user who fails a thousand times is one label.
//!
//! Blocks of three lengths run side by side, because a short one notices a breakdown soon and a
//! long one collects enough users. Within a block four bets are placed on each part of a rule:
//!
//! * `affected`: labels of users at their first bad event in the block;
//! * `first`: labels of users at their first answer in the block, bad or good;
//! * both again with the stake entering in equal parts over the block, because otherwise a fault in
//!   the middle of a block would be detected later because of the labels before it;
//! * `looks`: at a quarter, a half and the whole of the block, the labels of all users served.
//!
//! Each is an e-value (its mean is at most 1 while the sides are equal), and they are averaged. The
//! value at the end of a block stays in force until the next block of that length ends.
//!
//! At 100 % there are no labels. The users of new who were affected in a block are then compared
//! with the part of legacy's users who were affected in its last blocks.

use std::time::Duration;

use crate::guard::GuardSettings;
use crate::guard::detector::{log_mean, log_plus};
use crate::side::PerSide;
use crate::stats::users::BLOCKS;
use crate::stats::window::Trials;
use crate::time::Mono;

/// The evidence must be this many times as strong as a single block of one length needs, because
/// the lengths share the budget.
const BUDGET: f64 = BLOCKS as f64;
/// The lengths of the blocks, the shortest first. Each is a multiple of the previous one.
pub(crate) const LENGTHS: [Duration; BLOCKS] = [
    Duration::from_secs(8),
    Duration::from_secs(64),
    Duration::from_secs(512),
];

/// The factors by which a label may be likelier on new than what is tolerated.
const TIMES: [f64; 6] = [1.25, 1.6, 2.0, 4.0, 16.0, 256.0];
/// The factors by which a good answer may be rarer on new.
const FEWER: [f64; 4] = [1.0, 0.5, 0.1, 0.01];
/// The largest share of affected users on a healthy backend, unless legacy shows more.
const HEALTHY_SHARE: f64 = 1.0 / 6.0;
/// The number of parts in which the gradual stake of a block enters.
const STAKES: f64 = 32.0;
/// The index of the last moment at which a block is evaluated as a whole: its end.
const AT_END: usize = 2;

/// The start times of the running blocks, for all rules of a rollout.
#[derive(Clone, Debug)]
pub(crate) struct Blocks {
    begun: [Mono; BLOCKS],
    at: Mono,
}

/// What is due in one block at a tick.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Due {
    /// Whether the block is over and another one begins.
    ends: bool,
    /// The part of the block that has passed: a quarter (0) or a half (1). `None` at other ticks.
    look: Option<usize>,
    /// The part of the block's length that has passed since the previous tick.
    part: f64,
}

impl Blocks {
    /// Creates blocks that all begin now.
    pub(crate) fn new(now: Mono) -> Self {
        Self {
            begun: [now; BLOCKS],
            at: now,
        }
    }

    /// Returns the start time of each block.
    pub(crate) fn begun(&self) -> [Mono; BLOCKS] {
        self.begun
    }

    /// Records the time of a tick. A longer block that ends also ends the shorter ones.
    pub(crate) fn tick(&mut self, now: Mono) -> [Due; BLOCKS] {
        let (before, mut longer_ends) = (std::mem::replace(&mut self.at, now), false);
        let mut due = [Due::default(); BLOCKS];
        for at in (0..BLOCKS).rev() {
            let (begun, length) = (self.begun[at], LENGTHS[at]);
            longer_ends |= now.since(begun) >= length;
            let has_passed = |part: u32| {
                before.since(begun) < length / part && now.since(begun) >= length / part
            };
            let look = if has_passed(2) {
                Some(1)
            } else {
                has_passed(4).then_some(0)
            };
            let part = now.since(before).as_secs_f64() / length.as_secs_f64();
            due[at] = Due {
                ends: longer_ends,
                look: look.filter(|_| !longer_ends),
                part: part.min(1.0),
            };
            if longer_ends {
                self.begun[at] = now;
            }
        }
        due
    }
}

/// The labels of users in one tick, for both sides.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Labels {
    served: PerSide<f64>,
    first_bad: PerSide<f64>,
    affected: PerSide<f64>,
}

impl Labels {
    fn of(trials: PerSide<&Trials>, class: usize, block: usize) -> Self {
        let of = |count: fn(&Trials, usize, usize) -> u64| {
            trials.map(|trials| count(trials, class, block) as f64)
        };
        Self {
            served: of(|trials, _, block| trials.served[block]),
            first_bad: of(|trials, class, block| trials.first_bad[class][block]),
            affected: of(|trials, class, block| trials.affected[class][block]),
        }
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn first_good(&self) -> PerSide<f64> {
        PerSide::from_fn(|side| self.served[side] - self.first_bad[side])
    }
}

/// The gain of a bet by each label, as logarithms.
#[derive(Clone, Copy, Debug, Default)]
struct Bet {
    on_new: f64,
    on_each: f64,
}

impl Bet {
    /// Creates a bet that labels are `odds` times as likely on new as on legacy, where at most
    /// `tolerated` times is healthy (at least, if `odds` is below it). `share` is new's, `0..1`.
    fn new(odds: f64, tolerated: f64, share: f64) -> Self {
        let rest = 1.0 - share;
        Self {
            on_new: (odds / tolerated).ln(),
            on_each: ((rest + share * tolerated) / (rest + share * odds)).ln(),
        }
    }

    fn log_e(self, labels: PerSide<f64>) -> f64 {
        labels.new * self.on_new + (labels.new + labels.legacy) * self.on_each
    }
}

/// The bets of one block: bets on bad labels, and beside each of them the bets on good ones.
#[derive(Clone, Debug, Default)]
struct Grid(Vec<(Bet, Vec<Bet>)>);

impl Grid {
    fn new(tolerated: f64, share_above: Option<f64>, of_legacy: f64, share: f64) -> Self {
        // New's good answers per user, relative to legacy's, at the most that is tolerated.
        let q = of_legacy.clamp(HEALTHY_SHARE, 0.9);
        let least = if tolerated > 1.0 {
            ((1.0 - tolerated * q) / (1.0 - q)).max(0.05)
        } else {
            1.0
        };
        let rows = TIMES.map(|times| {
            let good = match share_above {
                // For a known share of users above a limit, the good labels follow from the bad
                // ones.
                Some(q) => vec![Bet::new(
                    ((1.0 - times * q) / (1.0 - q)).clamp(0.01, 1.0),
                    1.0,
                    share,
                )],
                None => FEWER
                    .iter()
                    .map(|fewer| Bet::new(least * fewer, least, share))
                    .collect(),
            };
            (Bet::new(times * tolerated, tolerated, share), good)
        });
        Self(rows.into())
    }

    fn log_affected(&self, affected: PerSide<f64>) -> impl Iterator<Item = f64> + '_ {
        self.0.iter().map(move |(bad, _)| bad.log_e(affected))
    }

    fn log_both(
        &self,
        bad: PerSide<f64>,
        good: PerSide<f64>,
    ) -> impl Iterator<Item = f64> + Clone + '_ {
        self.0.iter().flat_map(move |(on_bad, on_good)| {
            on_good
                .iter()
                .map(move |on_good| on_bad.log_e(bad) + on_good.log_e(good))
        })
    }
}

/// One running block of one part of a rule.
#[derive(Clone, Debug, Default)]
struct Block {
    grid: Grid,
    /// All labels since the block began.
    all: Labels,
    affected: Vec<f64>,
    first: Vec<f64>,
    /// The bets with the stake entering in equal parts, each beside the stake that has not entered
    /// yet.
    affected_later: Vec<f64>,
    first_later: Vec<f64>,
    waiting_stake: f64,
    looks: [f64; AT_END + 1],
    /// The value at the end of the previous block.
    previous: f64,
}

impl Block {
    fn new(grid: Grid, previous: f64) -> Self {
        let (rows, both) = (
            grid.0.len(),
            grid.0.iter().map(|(_, good)| good.len()).sum(),
        );
        Self {
            all: Labels::default(),
            affected: vec![0.0; rows],
            first: vec![0.0; both],
            affected_later: vec![f64::NEG_INFINITY; rows],
            first_later: vec![f64::NEG_INFINITY; both],
            waiting_stake: 0.0,
            looks: [f64::NEG_INFINITY; AT_END + 1],
            previous,
            grid,
        }
    }

    fn tick(&mut self, labels: &Labels, part: f64) {
        self.waiting_stake += part;
        if labels.is_empty() {
            return;
        }
        if self.waiting_stake >= 1.0 / STAKES - 1e-9 {
            self.enter_stake();
        }
        for side in crate::side::Side::BOTH {
            self.all.served[side] += labels.served[side];
            self.all.affected[side] += labels.affected[side];
        }
        for (at, log_e) in self.grid.log_affected(labels.affected).enumerate() {
            self.affected[at] += log_e;
            self.affected_later[at] += log_e;
        }
        for (at, log_e) in self
            .grid
            .log_both(labels.first_bad, labels.first_good())
            .enumerate()
        {
            self.first[at] += log_e;
            self.first_later[at] += log_e;
        }
    }

    /// Enters a part of the stake that has waited. The time alone determines when it enters.
    fn enter_stake(&mut self) {
        let stake = std::mem::take(&mut self.waiting_stake).ln();
        for log in self.affected_later.iter_mut().chain(&mut self.first_later) {
            *log = log_plus(*log, stake);
        }
    }

    fn look(&mut self, at: usize) {
        let good = PerSide::from_fn(|side| self.all.served[side] - self.all.affected[side]);
        self.looks[at] = log_mean(self.grid.log_both(self.all.affected, good));
    }

    fn running(&self) -> f64 {
        let mean = |logs: &[f64]| log_mean(logs.iter().copied());
        let of = [
            mean(&self.affected),
            mean(&self.first),
            mean(&self.affected_later),
            mean(&self.first_later),
            mean(&self.looks),
        ];
        log_mean(of.into_iter())
    }

    fn log_evidence(&self) -> f64 {
        self.running().max(self.previous)
    }
}

/// The users of one part of a rule.
#[derive(Clone, Debug)]
pub(crate) struct Users {
    class: usize,
    tolerated: f64,
    /// The share of legacy's latencies above the limit, for a step of the ladder. `None`
    /// otherwise.
    share_above: Option<f64>,
    blocks: [Block; BLOCKS],
    /// The number of legacy's users served and affected in the last whole block of each length.
    of_legacy: [Option<(f64, f64)>; BLOCKS],
    share: f64,
}

impl Users {
    /// Creates the trials for users affected in the class with this index, where `tolerated` times
    /// legacy's rate is healthy. `share` is new's part of the users. At 0 and 1 there are no labels
    /// to bet on.
    pub(crate) fn new(class: usize, tolerated: f64, share_above: Option<f64>, share: f64) -> Self {
        let mut users = Self {
            class,
            tolerated,
            share_above,
            blocks: Default::default(),
            of_legacy: [None; BLOCKS],
            share,
        };
        users.begin(share);
        users
    }

    /// Restarts all blocks with this share. What is known about legacy is kept.
    pub(crate) fn begin(&mut self, share: f64) {
        self.share = share;
        for at in 0..BLOCKS {
            self.blocks[at] = Block::new(self.grid(at), f64::NEG_INFINITY);
        }
    }

    fn grid(&self, at: usize) -> Grid {
        if self.share <= 0.0 || self.share >= 1.0 {
            return Grid::default();
        }
        let of_legacy =
            self.of_legacy[at].map_or(0.0, |(served, affected)| affected / served.max(1.0));
        Grid::new(self.tolerated, self.share_above, of_legacy, self.share)
    }

    /// Records the trials of one tick.
    pub(crate) fn tick(&mut self, trials: PerSide<&Trials>, due: &[Due; BLOCKS]) {
        for (at, due) in due.iter().enumerate() {
            let labels = Labels::of(trials, self.class, at);
            self.blocks[at].tick(&labels, due.part);
            if let Some(look) = due.look {
                self.blocks[at].look(look);
            }
            if due.ends {
                let block = &mut self.blocks[at];
                block.enter_stake();
                block.look(AT_END);
                let previous = block.running();
                let Labels {
                    served, affected, ..
                } = block.all;
                if served.legacy > 0.0 {
                    self.of_legacy[at] = Some((served.legacy, affected.legacy));
                }
                self.blocks[at] = Block::new(self.grid(at), previous);
            }
        }
    }

    /// Returns the evidence of users at 100 %: the affected users of new in the running block,
    /// compared with legacy's in its last one.
    fn log_evidence_alone(&self, at: usize) -> f64 {
        let Some((served, affected)) = self.of_legacy[at].filter(|(served, _)| *served > 0.0)
        else {
            return f64::NEG_INFINITY;
        };
        let upper = (affected + 2.0 + 3.0 * (affected + 1.0).sqrt()) / served;
        let limit = (self.tolerated * upper).clamp(1e-6, 0.9);
        let (n, x) = (
            self.blocks[at]
                .all
                .served
                .new
                .max(self.blocks[at].all.affected.new),
            self.blocks[at].all.affected.new,
        );
        let odds = limit / (1.0 - limit);
        log_mean(TIMES.iter().map(|times| {
            let rate = odds * times / (1.0 + odds * times);
            x * (rate / limit).ln() + (n - x) * ((1.0 - rate) / (1.0 - limit)).ln()
        }))
    }
}

/// Returns the progress of users as trials towards what a rollback needs, over the parts of a rule.
/// A value of 1 and more is enough. `most` is the logarithm of what a block of one second would
/// need.
pub(crate) fn progress<'a>(
    parts: impl Iterator<Item = &'a Users> + Clone,
    log_budget: f64,
    is_alone: bool,
) -> f64 {
    let at = |at: usize| {
        let needed = log_budget - LENGTHS[at].as_secs_f64().ln();
        let of = |users: &Users| {
            if is_alone {
                users.log_evidence_alone(at)
            } else {
                users.blocks[at].log_evidence()
            }
        };
        log_mean(parts.clone().map(of)) / needed
    };
    (0..BLOCKS).map(at).fold(0.0, f64::max)
}

/// Whether this number of users could be enough for a comparison if every user of new were affected
/// and none of legacy, with `share` of them on new.
pub(crate) fn are_enough(settings: &GuardSettings, users: f64, share: f64) -> bool {
    let most = users * (share * (1.0 / share).ln() + (1.0 - share) * (1.0 / (1.0 - share)).ln());
    let longest = LENGTHS[BLOCKS - 1].as_secs_f64();
    // The grid and the mean over the bets cost about a factor of twenty.
    most >= log_budget(settings) - longest.ln() + 20.0f64.ln()
}

/// Returns the logarithm of what a block of one second would need. A longer block needs less in
/// proportion.
pub(crate) fn log_budget(settings: &GuardSettings) -> f64 {
    (BUDGET * settings.gathering() as f64 * settings.false_alarm_every.as_secs_f64()).ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation::Chance;
    use crate::stats::users::{Class, TICK};

    fn at(ticks: u64) -> Mono {
        Mono::from_micros(ticks * 250_000)
    }

    #[test]
    fn blocks_end_and_are_evaluated_on_time_and_longer_end_shorter() {
        let mut blocks = Blocks::new(at(0));
        let (mut ends, mut looks, mut parts) = ([0; BLOCKS], [0; BLOCKS], 0.0);
        for tick in 1..=2_048 {
            let due = blocks.tick(at(tick));
            for block in 0..BLOCKS {
                ends[block] += u32::from(due[block].ends);
                looks[block] += u32::from(due[block].look.is_some());
            }
            parts += due[2].part;
        }
        assert_eq!((ends, looks), ([64, 8, 1], [128, 16, 2]));
        assert!((parts - 1.0).abs() < 1e-9);
        assert_eq!(blocks.begun(), [at(2_048); BLOCKS]);
        // A late tick is one longer tick.
        let due = blocks.tick(at(2_048 + 100));
        assert_eq!(
            due.map(|due| (due.ends, due.look)),
            [(true, None), (false, Some(0)), (false, None)]
        );
    }

    #[test]
    fn a_bet_on_a_label_has_a_mean_of_one_at_the_tolerated_rate() {
        for (odds, tolerated, share) in [(4.0, 2.0, 0.05), (1.6, 1.0, 0.5), (0.4, 0.8, 0.9)] {
            let bet = Bet::new(odds, tolerated, share);
            let on_new = share * tolerated / (1.0 - share + share * tolerated);
            let mean = on_new
                * bet
                    .log_e(PerSide {
                        legacy: 0.0,
                        new: 1.0,
                    })
                    .exp()
                + (1.0 - on_new)
                    * bet
                        .log_e(PerSide {
                            legacy: 1.0,
                            new: 0.0,
                        })
                        .exp();
            assert!((mean - 1.0).abs() < 1e-12, "{mean}");
        }
    }

    /// Returns the largest progress over this number of ticks, where each user is served in each
    /// tick and bad users always fail.
    fn largest_progress(
        chance: &mut Chance,
        users: u32,
        share: f64,
        bad: PerSide<f64>,
        ticks: u64,
    ) -> f64 {
        let class = Class::Failure.index();
        let sides: Vec<(crate::side::Side, bool)> = (0..users)
            .map(|_| {
                let side = if chance.happens(share) {
                    crate::side::Side::New
                } else {
                    crate::side::Side::Legacy
                };
                (side, chance.happens(bad[side]))
            })
            .collect();
        let mut blocks = Blocks::new(at(0));
        let mut tested = Users::new(class, 2.0, None, share);
        let log_budget = (3.0 * 6.0 * 30.0 * 86_400.0f64).ln();
        let mut largest: f64 = 0.0;
        let mut begun = [true; BLOCKS];
        for tick in 1..=ticks {
            let mut trials = PerSide::<Trials>::default();
            for (block, begun) in begun.iter_mut().enumerate() {
                if std::mem::take(begun) {
                    for &(side, is_bad) in &sides {
                        trials[side].served[block] += 1;
                        trials[side].first_bad[class][block] += u64::from(is_bad);
                        trials[side].affected[class][block] += u64::from(is_bad);
                    }
                }
            }
            let due = blocks.tick(at(tick));
            tested.tick(
                PerSide {
                    legacy: &trials.legacy,
                    new: &trials.new,
                },
                &due,
            );
            begun = due.map(|due| due.ends);
            largest = largest.max(progress(std::iter::once(&tested), log_budget, false));
        }
        largest
    }

    #[test]
    fn users_affected_only_on_new_are_enough_within_a_block() {
        let progress = largest_progress(
            &mut Chance::new(1),
            1_000,
            0.1,
            PerSide {
                legacy: 0.001,
                new: 0.5,
            },
            32,
        );
        assert!(progress >= 1.0, "{progress}");
    }

    #[test]
    fn users_who_fail_equally_on_both_sides_are_never_enough() {
        for seed in 0..300 {
            let progress = largest_progress(
                &mut Chance::new(seed),
                300,
                0.067,
                PerSide {
                    legacy: 0.087,
                    new: 0.087,
                },
                2_100,
            );
            assert!(progress < 1.0, "seed {seed}: {progress}");
        }
    }

    #[test]
    fn a_single_user_is_never_enough_however_often_it_fails() {
        let progress = largest_progress(
            &mut Chance::new(3),
            1,
            0.999,
            PerSide {
                legacy: 1.0,
                new: 1.0,
            },
            4_100,
        );
        assert!(progress < 0.5, "{progress}");
    }

    #[test]
    fn at_100_percent_users_are_compared_with_legacys_last_blocks() {
        let class = Class::Failure.index();
        let trials = |served, affected| {
            let mut trials = Trials {
                served: [served; BLOCKS],
                ..Trials::default()
            };
            trials.affected[class] = [affected; BLOCKS];
            trials.first_bad[class] = [affected; BLOCKS];
            trials
        };
        let (none, log_budget) = (Trials::default(), (3.0 * 6.0 * 30.0 * 86_400.0f64).ln());
        let after = |affected_new| {
            let mut blocks = Blocks::new(at(0));
            let mut users = Users::new(class, 2.0, None, 0.5);
            users.tick(
                PerSide {
                    legacy: &trials(400, 1),
                    new: &trials(400, 1),
                },
                &blocks.tick(at(1)),
            );
            users.tick(
                PerSide {
                    legacy: &none,
                    new: &none,
                },
                &blocks.tick(at(32)),
            );
            users.begin(1.0);
            blocks = Blocks::new(at(40));
            users.tick(
                PerSide {
                    legacy: &none,
                    new: &trials(800, affected_new),
                },
                &blocks.tick(at(41)),
            );
            progress(std::iter::once(&users), log_budget, true)
        };
        assert!(after(2) == 0.0, "{}", after(2));
        assert!(after(80) >= 1.0, "{}", after(80));
    }

    #[test]
    fn a_quiet_block_computes_no_logarithm_and_loses_no_stake() {
        let mut block = Block::new(Grid::new(2.0, None, 0.0, 0.5), f64::NEG_INFINITY);
        let ticks = LENGTHS[0].as_millis() / TICK.as_millis();
        (0..ticks).for_each(|_| block.tick(&Labels::default(), 1.0 / ticks as f64));
        assert!((block.waiting_stake - 1.0).abs() < 1e-9);
        block.enter_stake();
        assert!(block.first_later.iter().all(|log| log.abs() < 1e-9));
    }
}
