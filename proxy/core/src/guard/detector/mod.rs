//! Evidence by an e-detector: one number that grows while new behaves as no healthy backend would.
//!
//! Each component multiplies e-values, the likelihood ratios of one worse world against the worst
//! healthy one, and restarts continuously (Shiryaev-Roberts: `M = (M + 1) * e` once per tick). If
//! every e-value has a mean of at most 1 while new is healthy, the mean time until the average of
//! the components reaches `c` is at least `c` ticks (Shin, Ramdas, Rinaldo: E-detectors, NEJSDS
//! 2024). Components are kept as logarithms. A clear case therefore cannot overflow, and a long
//! quiet time cannot get stuck: the "+ 1" is the restart.
//!
//! Within a tick any number of e-values may be multiplied in without a further "+ 1": `M - ticks
//! begun` stays a supermartingale. [`Detector::fold`] is that multiplication,
//! [`Detector::begin_tick`] the "+ 1".
//!
//! Bad events that arrive in bursts are not independent draws. A processor that stalls for 50 ms
//! slows down everything in flight, by accident more on one side. [`Detector::at_most`] limits what
//! one tick may add, so that such a burst counts as one event and only a lasting problem adds up.
//!
//! Each component also remembers since when it has grown (the last time its CUSUM was at zero, Page
//! 1954). The numbers of a verdict are those since then.
//!
//! Deliberately absent: tests that start at zero and never restart (mSPRT, confidence sequences).
//! After ten healthy minutes they need minutes to detect a failure rate of five per cent.

mod tally;
mod test;

use std::time::Duration;

use crate::time::Mono;
pub use tally::Tally;
pub use test::Test;

/// Evidence restarts after this time without a bad event on new. Otherwise the "+ 1"s alone would
/// add up over quiet weeks until a single event decided. Forgetting never makes an alarm likelier.
const QUIET: Duration = Duration::from_secs(600);

/// Above this share of bad events, a difference of a few percent would be evidence by the second
/// bound on a comparison. That bound is meant for the tail.
const RARE: f64 = 0.2;

/// The largest logarithm of evidence. Evidence beyond this adds nothing, and the limit keeps sums
/// finite.
const MAX_LOG: f64 = 650.0;

/// One test and its evidence.
#[derive(Clone, Debug)]
pub struct Detector {
    test: Test,
    components: Vec<Component>,
    total: Tally,
    /// The most that one tick may add to the logarithm of the evidence.
    most_at_once: f64,
    /// The time of the last bad event on new, or of the last restart of the evidence.
    last_bad: Mono,
}

#[derive(Clone, Debug)]
struct Component {
    log_m: f64,
    cusum: f64,
    /// The CUSUM without the limit on what a tick may add.
    unlimited: f64,
    onset: Onset,
}

/// The point at which a component began to grow.
#[derive(Clone, Copy, Debug, Default)]
struct Onset {
    at: Mono,
    total: Tally,
}

/// What a detector has counted since its evidence began to grow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Excursion {
    /// The time at which the evidence began to grow.
    pub since: Mono,
    /// The counts since then.
    pub tally: Tally,
}

impl Detector {
    /// Creates a detector without evidence.
    pub fn new(test: Test, now: Mono) -> Self {
        let component = Component {
            log_m: 0.0,
            cusum: 0.0,
            unlimited: 0.0,
            onset: Onset {
                at: now,
                total: Tally::default(),
            },
        };
        Self {
            components: vec![component; test.len()],
            test,
            total: Tally::default(),
            most_at_once: f64::INFINITY,
            last_bad: now,
        }
    }

    /// Returns the detector with a limit on what the events of one tick may add to the logarithm of
    /// the evidence. It is meant for events that arrive in bursts with one cause. A smaller e-value
    /// is still an e-value.
    pub fn at_most(self, most_at_once: f64) -> Self {
        Self {
            most_at_once,
            ..self
        }
    }

    /// Returns the test of this detector.
    pub fn test(&self) -> &Test {
        &self.test
    }

    /// Creates a detector without evidence for another test, with the same limit on a tick.
    pub fn with(&self, test: Test, now: Mono) -> Self {
        Self::new(test, now).at_most(self.most_at_once)
    }

    /// Discards all evidence.
    pub fn restart(&mut self, now: Mono) {
        *self = Self::new(self.test.clone(), now).at_most(self.most_at_once);
    }

    /// Returns the whole state as numbers in a fixed order, for another process that continues it.
    pub fn numbers(&self) -> Vec<f64> {
        let mut numbers = vec![self.last_bad.as_micros() as f64];
        numbers.extend(self.total.numbers());
        for component in &self.components {
            numbers.extend([
                component.log_m,
                component.cusum,
                component.unlimited,
                component.onset.at.as_micros() as f64,
            ]);
            numbers.extend(component.onset.total.numbers());
        }
        numbers
    }

    /// Continues from the numbers that [`Detector::numbers`] returned in another process. Numbers
    /// of another test, and invalid numbers, change nothing.
    pub fn take_up(&mut self, numbers: &[f64]) {
        let per_component = 4 + Tally::COUNT;
        if numbers.len() != 1 + Tally::COUNT + self.components.len() * per_component
            || numbers.iter().any(|number| !number.is_finite())
        {
            return;
        }
        let (head, components) = numbers.split_at(1 + Tally::COUNT);
        self.last_bad = Mono::from_micros(head[0] as u64);
        self.total = Tally::of_numbers(&head[1..]);
        for (component, numbers) in self
            .components
            .iter_mut()
            .zip(components.chunks_exact(per_component))
        {
            let onset = Onset {
                at: Mono::from_micros(numbers[3] as u64),
                total: Tally::of_numbers(&numbers[4..]),
            };
            *component = Component {
                log_m: numbers[0].min(MAX_LOG),
                cusum: numbers[1].max(0.0),
                unlimited: numbers[2].max(0.0),
                onset,
            };
        }
    }

    /// Begins a new tick: the "+ 1" of the detector.
    pub fn begin_tick(&mut self) {
        for component in &mut self.components {
            component.log_m = log_plus_one(component.log_m);
        }
    }

    /// Multiplies in the events since the last call.
    pub fn fold(&mut self, tally: &Tally, now: Mono) {
        self.total = self.total.plus(tally);
        if tally.x > 0 {
            self.last_bad = now;
        } else if now.since(self.last_bad) > QUIET {
            self.last_bad = now;
            self.components
                .iter_mut()
                .for_each(|component| component.log_m = component.log_m.min(0.0));
        }
        if tally.n + tally.x + tally.y == 0 {
            return;
        }
        for k in 0..self.components.len() {
            let log_e = self.test.log_e(k, tally);
            self.components[k].add(log_e, self.most_at_once, self.total, now);
        }
    }

    /// Multiplies in values on new, each with its number of occurrences. Used for [`Test::Mean`].
    pub fn fold_values(
        &mut self,
        values: impl Iterator<Item = (f64, u64)> + Clone,
        tally: &Tally,
        now: Mono,
    ) {
        self.total = self.total.plus(tally);
        let Test::Mean { limit, stakes } = &self.test else {
            return;
        };
        for (component, stake) in self.components.iter_mut().zip(stakes) {
            let log_e = values
                .clone()
                .map(|(value, count)| count as f64 * (stake * (value / limit - 1.0)).ln_1p())
                .sum();
            component.add(log_e, self.most_at_once, self.total, now);
        }
    }

    /// Multiplies in values of both sides within `0..=1`, each with its number of occurrences. Used
    /// for [`Test::MeanVsLegacy`]. The values of new are first.
    pub fn fold_both(
        &mut self,
        of_new: &[(f64, u64)],
        of_legacy: &[(f64, u64)],
        tally: &Tally,
        now: Mono,
    ) {
        self.total = self.total.plus(tally);
        let Test::MeanVsLegacy { stakes } = &self.test else {
            return;
        };
        let count =
            |values: &[(f64, u64)]| values.iter().map(|(_, count)| *count as f64).sum::<f64>();
        let (n, m) = (count(of_new), count(of_legacy));
        if n == 0.0 || m == 0.0 {
            return;
        }
        let sum: f64 = of_new
            .iter()
            .map(|(value, count)| value * *count as f64)
            .sum();
        let mut powers: Vec<(f64, f64)> = of_new
            .iter()
            .chain(of_legacy)
            .map(|(value, count)| ((stakes[0] * value).exp(), *count as f64))
            .collect();
        for (component, stake) in self.components.iter_mut().zip(stakes) {
            let all: f64 = powers.iter().map(|(power, count)| power * count).sum();
            component.add(
                stake * sum - n * (all / (n + m)).ln(),
                self.most_at_once,
                self.total,
                now,
            );
            // The next stake is twice this one.
            powers.iter_mut().for_each(|(power, _)| *power *= *power);
        }
    }

    /// Returns the natural logarithm of the evidence, which is the mean over the components.
    pub fn log_evidence(&self) -> f64 {
        log_mean(self.components.iter().map(|component| component.log_m))
    }

    /// Returns the part of the evidence that is due to events and not to elapsed time: the largest
    /// log-likelihood ratio since an onset. It is 0 while nothing is wrong.
    pub fn log_accusation(&self) -> f64 {
        self.components
            .iter()
            .map(|component| component.cusum)
            .fold(0.0, f64::max)
    }

    /// Returns the logarithm of the evidence as it would be without `share` of the bad events on
    /// new since each component's onset.
    pub fn log_evidence_without(&self, share: f64) -> f64 {
        log_mean(self.components.iter().enumerate().map(|(k, component)| {
            let since = self.total.since(&component.onset.total);
            // Where a tick had more evidence than it may add, the remaining evidence may still be
            // as much.
            let left = component.unlimited - share * since.x as f64 * self.test.worth(k, &since);
            component.log_m - (component.cusum - left).max(0.0)
        }))
    }

    /// Returns what the component with the most evidence has counted since it began to grow.
    pub fn excursion(&self) -> Excursion {
        let strongest = self
            .components
            .iter()
            .max_by(|a, b| a.log_m.total_cmp(&b.log_m));
        strongest.map_or(
            Excursion {
                since: Mono::default(),
                tally: self.total,
            },
            |component| Excursion {
                since: component.onset.at,
                tally: self.total.since(&component.onset.total),
            },
        )
    }
}

impl Component {
    fn add(&mut self, log_e: f64, most: f64, total: Tally, now: Mono) {
        let added = log_e.min(most);
        self.log_m = (self.log_m + added).min(MAX_LOG);
        self.cusum += added;
        self.unlimited += log_e;
        if self.cusum <= 0.0 {
            (self.cusum, self.unlimited) = (0.0, 0.0);
            self.onset = Onset { at: now, total };
        }
    }
}

/// Returns `ln(exp(log) + 1)`.
fn log_plus_one(log: f64) -> f64 {
    if log > 40.0 { log } else { log.exp().ln_1p() }
}

/// Returns the logarithm of the sum of two numbers given as logarithms.
pub fn log_plus(a: f64, b: f64) -> f64 {
    let (large, small) = if a > b { (a, b) } else { (b, a) };
    if small == f64::NEG_INFINITY {
        large
    } else {
        large + (small - large).exp().ln_1p()
    }
}

/// Returns the logarithm of the mean of numbers given as logarithms.
pub fn log_mean(logs: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = logs.clone().fold(f64::NEG_INFINITY, f64::max);
    if largest == f64::NEG_INFINITY {
        return largest;
    }
    let count = logs.clone().count() as f64;
    largest + (logs.map(|log| (log - largest).exp()).sum::<f64>() / count).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(n: u64, x: u64, m: u64, y: u64) -> Tally {
        Tally {
            n,
            x,
            m,
            y,
            all_x: x,
            all_y: y,
            all_n: n,
            all_m: m,
            connects: 0,
        }
    }

    #[test]
    fn another_detector_continues_from_the_numbers_of_this_one() {
        let now = |seconds: u64| Mono::from_micros(seconds * 1_000_000);
        let mut before = Detector::new(Test::relative(1.5), now(1));
        for second in 2..9 {
            before.fold(&tally(20, second % 3, 40, 1), now(second));
            before.begin_tick();
        }
        let mut after = Detector::new(Test::relative(1.5), now(0));
        after.take_up(&before.numbers());
        assert_eq!(
            (
                after.log_evidence(),
                after.log_accusation(),
                after.excursion()
            ),
            (
                before.log_evidence(),
                before.log_accusation(),
                before.excursion()
            )
        );
        for detector in [&mut before, &mut after] {
            detector.fold(&tally(20, 9, 40, 1), now(10));
        }
        assert_eq!(after.log_evidence(), before.log_evidence());
        let mut other = Detector::new(Test::absolute(0.01), now(1));
        other.take_up(&before.numbers());
        assert_eq!(
            other.log_evidence(),
            Detector::new(Test::absolute(0.01), now(1)).log_evidence(),
            "numbers of another test are no evidence of this one"
        );
    }

    #[test]
    fn an_e_value_has_a_mean_of_at_most_one_at_the_limit() {
        // Over all outcomes of 12 requests at exactly the limit, the binomial mean of each e-value
        // is 1.
        let test = Test::absolute(0.05);
        let choose = |n: u64, k: u64| {
            (0..k)
                .map(|i| (n - i) as f64 / (i + 1) as f64)
                .product::<f64>()
        };
        for k in 0..test.len() {
            let mean: f64 = (0..=12)
                .map(|x| {
                    choose(12, x)
                        * 0.05f64.powi(x as i32)
                        * 0.95f64.powi(12 - x as i32)
                        * test.log_e(k, &tally(12, x, 0, 0)).exp()
                })
                .sum();
            assert!((mean - 1.0).abs() < 1e-9, "{k}: {mean}");
        }
    }

    #[test]
    fn a_relative_e_value_has_a_mean_of_at_most_one_when_sides_are_alike() {
        // Given 6 bad events in 20 requests of new and 60 of legacy, the number that falls on new
        // is hypergeometric.
        let test = Test::relative(1.0);
        let choose = |n: u64, k: u64| {
            (0..k)
                .map(|i| (n - i) as f64 / (i + 1) as f64)
                .product::<f64>()
        };
        for k in 0..test.len() {
            let mean: f64 = (0..=6)
                .map(|x| {
                    choose(20, x) * choose(60, 6 - x) / choose(80, 6)
                        * test.log_e(k, &tally(20, x, 60, 6 - x)).exp()
                })
                .sum();
            assert!(mean <= 1.0 + 1e-9, "{k}: {mean}");
        }
    }

    #[test]
    fn the_mean_of_new_is_judged_against_that_of_legacy() {
        // Over all ways to draw 3 of these 7 values for new, the mean of each e-value is at most 1.
        let values = [0.05, 0.1, 0.1, 0.2, 0.4, 0.9, 1.0];
        let mut sums = [0.0f64; 6];
        let mut draws = 0.0;
        for drawn in 0u32..1 << values.len() {
            if drawn.count_ones() != 3 {
                continue;
            }
            draws += 1.0;
            let of = |new: bool| -> Vec<(f64, u64)> {
                values
                    .iter()
                    .enumerate()
                    .filter(|(at, _)| (drawn >> at & 1 == 1) == new)
                    .map(|(_, value)| (*value, 1))
                    .collect()
            };
            let mut detector = Detector::new(Test::mean_vs_legacy(), Mono::default());
            detector.fold_both(&of(true), &of(false), &Tally::default(), Mono::default());
            for (sum, component) in sums.iter_mut().zip(&detector.components) {
                *sum += component.log_m.exp();
            }
        }
        assert!(sums.iter().all(|sum| sum / draws <= 1.0 + 1e-9), "{sums:?}");
        let mut detector = Detector::new(Test::mean_vs_legacy(), Mono::default());
        for _ in 0..100 {
            detector.fold_both(
                &[(0.1, 100), (1.0, 20)],
                &[(0.1, 120)],
                &Tally::default(),
                Mono::default(),
            );
            detector.begin_tick();
        }
        assert!(
            detector.log_evidence() > 18.0,
            "{}",
            detector.log_evidence()
        );
    }

    #[test]
    fn logarithms_are_added() {
        assert!((log_plus(2.0f64.ln(), 3.0f64.ln()) - 5.0f64.ln()).abs() < 1e-12);
        assert_eq!(log_plus(f64::NEG_INFINITY, 1.5), 1.5);
        assert_eq!(
            log_plus(f64::NEG_INFINITY, f64::NEG_INFINITY),
            f64::NEG_INFINITY
        );
    }

    #[test]
    fn a_comparison_without_a_control_group_gives_no_evidence() {
        let mut detector = Detector::new(Test::relative(2.0), Mono::default());
        detector.fold(&tally(100, 100, 0, 0), Mono::default());
        assert!(detector.log_evidence().abs() < 1e-9);
    }

    #[test]
    fn a_detector_is_equally_fast_after_a_quiet_hour() {
        let ticks_to_trip = |quiet: usize| {
            let mut detector = Detector::new(Test::absolute(0.01), Mono::default());
            for _ in 0..quiet {
                detector.fold(&tally(12, 0, 238, 0), Mono::default());
                detector.begin_tick();
            }
            let mut ticks = 0;
            while detector.log_evidence() < 18.0 {
                detector.fold(&tally(12, 6, 238, 0), Mono::default());
                detector.begin_tick();
                ticks += 1;
            }
            ticks
        };
        assert_eq!(ticks_to_trip(0), ticks_to_trip(14_400));
        assert!(ticks_to_trip(0) <= 2);
    }

    #[test]
    fn quiet_weeks_add_no_evidence() {
        let mut detector = Detector::new(Test::relative(2.0), Mono::default());
        for tick in 0..4 * 3600 * 24 * 7u64 {
            detector.fold(&tally(50, 0, 50, 0), Mono::from_micros(tick * 250_000));
            detector.begin_tick();
        }
        assert!(
            detector.log_evidence() < (4.0f64 * 601.0).ln() + 0.1,
            "{}",
            detector.log_evidence()
        );
        assert_eq!(detector.log_accusation(), 0.0);
    }

    #[test]
    fn an_excursion_counts_events_since_its_onset() {
        let mut detector = Detector::new(Test::absolute(0.01), Mono::default());
        let at = |tick: u64| Mono::from_micros(tick * 250_000);
        for tick in 1..=100 {
            detector.fold(&tally(10, 0, 90, 0), at(tick));
            detector.begin_tick();
        }
        for tick in 101..=102 {
            detector.fold(&tally(10, 5, 90, 0), at(tick));
            detector.begin_tick();
        }
        let excursion = detector.excursion();
        assert_eq!(
            (excursion.since, excursion.tally),
            (at(100), tally(20, 10, 180, 0))
        );
    }

    #[test]
    fn evidence_without_the_top_contributor_is_lower() {
        let mut detector = Detector::new(Test::absolute(0.01), Mono::default());
        detector.fold(&tally(20, 8, 0, 0), Mono::default());
        let whole = detector.log_evidence();
        assert!(whole > 20.0);
        assert!(detector.log_evidence_without(0.0) == whole);
        assert!(detector.log_evidence_without(0.9) < 5.0);
    }

    #[test]
    fn a_mean_is_judged_by_bets_and_not_decided_by_one_outlier() {
        let mut detector = Detector::new(Test::mean(100_000.0), Mono::default());
        for _ in 0..40 {
            detector.fold_values(
                [(60_000.0, 200)].into_iter(),
                &Tally::default(),
                Mono::default(),
            );
            detector.begin_tick();
        }
        detector.fold_values(
            [(60_000.0, 200), (60_000_000.0, 1)].into_iter(),
            &Tally::default(),
            Mono::default(),
        );
        assert!(
            detector.log_evidence() < 10.0,
            "{}",
            detector.log_evidence()
        );
        for _ in 0..8 {
            detector.fold_values(
                [(160_000.0, 50)].into_iter(),
                &Tally::default(),
                Mono::default(),
            );
            detector.begin_tick();
        }
        assert!(
            detector.log_evidence() > 18.0,
            "{}",
            detector.log_evidence()
        );
    }

    #[test]
    fn numbers_stay_finite() {
        let mut detector = Detector::new(Test::absolute(0.01), Mono::default());
        for _ in 0..10 {
            detector.fold(&tally(1_000_000, 1_000_000, 0, 0), Mono::default());
            detector.begin_tick();
        }
        assert!(detector.log_evidence().is_finite());
        detector.fold(&tally(u64::from(u32::MAX), 0, 0, 0), Mono::default());
        detector.begin_tick();
        assert!(detector.log_evidence().is_finite());
    }
}
