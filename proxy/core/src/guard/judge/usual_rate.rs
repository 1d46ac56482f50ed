//! The usual rates of legacy over the last hours. With them only a change counts as a shared cause,
//! and a limit that legacy itself has never met does not blame new.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::Mono;

/// The time that one rate covers.
const BLOCK: Duration = Duration::from_secs(300);
/// With fewer requests than this in a block, no rate is recorded.
const MIN_TRIED: u64 = 20;
/// The number of blocks that are remembered: six hours.
const BLOCKS: usize = 72;
/// With fewer blocks than this, the usual rate is unknown.
const MIN_BLOCKS: usize = 3;
/// A raise longer ago than this is not a cause of present events.
const RAISE_MATTERS: Duration = Duration::from_secs(3_600);
/// A limit is at least this many times the usual rate of legacy.
const TIMES: f64 = 2.0;

/// One rate of legacy over the last hours.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Ever {
    /// The end of each block, and the rate in it.
    rates: VecDeque<(Mono, f64)>,
    running: (u64, u64),
    began: Option<Mono>,
    /// Whether both sides were bad at the same time during the running block.
    is_spoilt: bool,
}

impl Ever {
    /// Records one tick: the requests tried on legacy, and the bad ones among them. Returns whether
    /// a block has ended.
    pub(super) fn tick(&mut self, tried: u64, bad: u64, is_shared: bool, now: Mono) -> bool {
        let began = *self.began.get_or_insert(now);
        self.running.0 += tried;
        self.running.1 += bad;
        self.is_spoilt |= is_shared;
        if now.since(began) < BLOCK {
            return false;
        }
        let (tried, bad) = std::mem::take(&mut self.running);
        self.began = Some(now);
        // Unusual blocks are left out as soon as any other block is known.
        let is_spoilt = std::mem::take(&mut self.is_spoilt) && self.rates.len() >= MIN_BLOCKS;
        if tried < MIN_TRIED || is_spoilt {
            return true;
        }
        if self.rates.len() == BLOCKS {
            self.rates.pop_front();
        }
        self.rates
            .push_back((now, bad.min(tried) as f64 / tried as f64));
        true
    }

    /// Returns the usual rate of legacy: the median of the rates before the last raise, or
    /// otherwise of all except the newest two. `None` while too little is known.
    pub(super) fn rate(&self, raised_at: Option<Mono>, now: Mono) -> Option<f64> {
        let raised_at = raised_at.filter(|at| now.since(*at) < RAISE_MATTERS);
        let known = match raised_at {
            Some(raised_at) => self
                .rates
                .iter()
                .take_while(|(at, _)| *at <= raised_at)
                .count(),
            None => self
                .rates
                .len()
                .saturating_sub(2)
                .max(self.rates.len().min(MIN_BLOCKS)),
        };
        if known < MIN_BLOCKS {
            return None;
        }
        let mut rates: Vec<f64> = self
            .rates
            .iter()
            .take(known)
            .map(|(_, rate)| *rate)
            .collect();
        rates.sort_by(f64::total_cmp);
        Some(rates[known / 2])
    }

    /// Returns the limit in force: the one in the file, or a higher one where legacy itself usually
    /// has more.
    pub(super) fn limit(&self, limit: f64, raised_at: Option<Mono>, now: Mono) -> f64 {
        self.rate(raised_at, now)
            .map_or(limit, |rate| limit.max((TIMES * rate).min(0.9)))
    }

    /// Returns the known rates, for another process: the end of each block, and its rate.
    pub(super) fn known(&self) -> Vec<(Mono, f64)> {
        self.rates.iter().copied().collect()
    }

    /// Continues from the rates that another process knew.
    pub(super) fn take_up(&mut self, known: &[(Mono, f64)]) {
        let last = known.len().saturating_sub(BLOCKS);
        self.rates = known[last..]
            .iter()
            .copied()
            .filter(|(_, rate)| (0.0..=1.0).contains(rate))
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minutes(minutes: u64) -> Mono {
        Mono::from_micros(minutes * 60_000_000)
    }

    /// Returns a legacy with one rate in per cent for each block.
    fn ever(rates: &[u64]) -> Ever {
        let mut ever = Ever::default();
        ever.tick(0, 0, false, minutes(0));
        for (block, rate) in (1u64..).zip(rates) {
            ever.tick(100, *rate, false, minutes(5 * block));
        }
        ever
    }

    #[test]
    fn the_rate_is_the_median_before_the_last_raise() {
        let ever = ever(&[3, 1, 3, 4, 90, 90]);
        assert_eq!(ever.rate(Some(minutes(20)), minutes(30)), Some(0.03));
        assert_eq!(
            ever.rate(Some(minutes(10)), minutes(30)),
            None,
            "two blocks are too few"
        );
        assert_eq!(
            ever.rate(None, minutes(30)),
            Some(0.03),
            "the newest two are left out"
        );
        assert_eq!(
            ever.rate(Some(minutes(1)), minutes(30 + 60)),
            Some(0.03),
            "a raise of long ago matters no longer"
        );
    }

    #[test]
    fn a_limit_is_at_least_twice_the_usual_rate_of_legacy() {
        assert_eq!(ever(&[3, 3, 3]).limit(0.01, None, minutes(15)), 0.06);
        assert_eq!(ever(&[0, 0, 0]).limit(0.01, None, minutes(15)), 0.01);
        assert_eq!(ever(&[80, 80, 80]).limit(0.01, None, minutes(15)), 0.9);
        assert_eq!(
            ever(&[80]).limit(0.01, None, minutes(5)),
            0.01,
            "too little is known"
        );
    }

    #[test]
    fn a_block_with_few_requests_or_a_shared_cause_is_ignored() {
        let mut ever = ever(&[3, 3, 3]);
        ever.tick(19, 19, false, minutes(20));
        ever.tick(100, 100, true, minutes(25));
        assert_eq!(ever.known().len(), 3);
        let mut unknown = Ever::default();
        unknown.tick(0, 0, true, minutes(0));
        assert!(
            (1..=3).all(|block| unknown.tick(100, 3, true, minutes(5 * block))),
            "each is a block"
        );
        assert_eq!(
            unknown.known().len(),
            3,
            "while nothing else is known, that is what is known"
        );
    }

    #[test]
    fn six_hours_are_remembered_and_handed_over() {
        let ever = ever(&[1; 100]);
        assert_eq!(ever.known().len(), BLOCKS);
        let mut next = Ever::default();
        next.take_up(&ever.known());
        assert_eq!(next.rate(None, minutes(500)), ever.rate(None, minutes(500)));
    }
}
