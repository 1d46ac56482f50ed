//! The forecast of what a guard can do before it has seen traffic: how long each rule takes to
//! detect a fault, and how often it would roll back a healthy backend.
//!
//! The delays are measured on the rule itself, run on simulated counts tick by tick, many times.
//! The false alarms of a sequential rule are its share of what `false_alarm_every` promises. The
//! false alarms of a threshold rule are counted as up-crossings. Failures occur at a rate `a`, and
//! an alarm is the failure that occurs while exactly the tolerated number `k` is in the window. So
//! there are `a * P(Poisson(a * window) = k)` alarms per second (exact for a stationary Poisson
//! process).
//!
//! Each rule is evaluated by itself and with enough affected users. Where there can never be enough
//! users, the forecast says so. The simulated traffic is steady. Real traffic is not, so these
//! numbers are orders of magnitude for choosing settings and not promises.

use std::collections::VecDeque;
use std::time::Duration;

use crate::guard::detector::{Detector, Tally, Test, log_mean};
use crate::guard::judge::{log_threshold, most_at_once, trials};
use crate::guard::{GuardSettings, MIN_COMPARED_EVENTS, Mode, Rule};
use crate::percent::{Percent, Ratio};
use crate::simulation::{Chance, Traffic};
use crate::stats::users::TICK;
use crate::time::Mono;

/// The shares of bad requests on new for which delays are given. A bad request fails, is slow,
/// waits or is a 4xx, depending on the rule.
pub const SHARES: [f64; 4] = [0.02, 0.05, 0.5, 1.0];

/// The longest delay that counts as detected. A user would not wait longer than this.
pub const PATIENCE: Duration = Duration::from_secs(600);

const RUNS: usize = 41;
const MONTH: f64 = 30.0 * 24.0 * 3600.0;

/// The forecast for one rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    /// The rule.
    pub rule: Rule,
    /// The number of rollbacks of a healthy backend in 30 days, as an upper bound or an
    /// approximation.
    pub false_alarms_30d: f64,
    /// The delay for each of [`SHARES`]. `None` where the fault is not detected.
    pub delays: [Option<Delay>; 4],
    /// The reason why the rule cannot work with these settings. `None` if it can.
    pub cannot_work: Option<String>,
}

/// The time until a rule trips.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Delay {
    /// The time in half of the cases, in seconds.
    pub median_s: f64,
    /// The time in nineteen of twenty cases, in seconds.
    pub p95_s: f64,
    /// The number of requests to new until then, in half of the cases.
    pub requests: f64,
}

/// Returns the healthy rates of a rule's bad events on new and legacy.
fn healthy(rule: Rule, traffic: &Traffic) -> (f64, f64) {
    match rule {
        Rule::ErrorsMax(_) | Rule::ErrorsVsLegacy(_) | Rule::Dead(_) => {
            (traffic.errors, traffic.errors)
        }
        Rule::ClientErrorsVsLegacy(_) => (traffic.client_errors, traffic.client_errors),
        Rule::AbortsVsLegacy(_) => (traffic.aborts, traffic.aborts),
        Rule::RedirectsVsLegacy(_) => (0.0, 0.0),
        // For a limit that is met: half of what it allows.
        Rule::Latency(point, _) => (point.slower_share() / 2.0, point.slower_share() / 2.0),
        // Legacy's p90, while new is compared at a longer time.
        Rule::LatencyVsLegacy(_) => (0.046, 0.1),
        Rule::Hang(_) | Rule::Health(_) => (0.0, 0.0),
    }
}

/// Returns the forecasts of all rules of a guard, for this traffic with `percent` of it on new. The
/// random numbers have a fixed seed, so the same arguments give the same result.
pub fn forecast(guard: &GuardSettings, traffic: &Traffic, percent: Percent) -> Vec<Forecast> {
    if guard.mode == Mode::Off {
        return Vec::new();
    }
    let share = f64::from(percent.thousandths()) / 1e5;
    let rates = Rates {
        new: traffic.rps * share,
        legacy: traffic.rps * (1.0 - share),
    };
    guard
        .rules
        .iter()
        .map(|&rule| of_rule(guard, rule, traffic, rates))
        .collect()
}

/// The numbers of requests per second.
#[derive(Clone, Copy)]
struct Rates {
    new: f64,
    legacy: f64,
}

fn of_rule(guard: &GuardSettings, rule: Rule, traffic: &Traffic, rates: Rates) -> Forecast {
    let none = Forecast {
        rule,
        false_alarms_30d: 0.0,
        delays: [None; 4],
        cannot_work: None,
    };
    if rates.new <= 0.0 {
        return Forecast {
            cannot_work: Some("nobody is on new".to_owned()),
            ..none
        };
    }
    match rule {
        Rule::Health(limit_us) => {
            let delay = Delay {
                median_s: limit_us as f64 / 1e6,
                p95_s: limit_us as f64 / 1e6 + 0.25,
                requests: 0.0,
            };
            return Forecast {
                delays: [None, None, None, Some(delay)],
                ..none
            };
        }
        Rule::Dead(limit) => {
            let seconds = f64::from(limit) / rates.new;
            let delay = Delay {
                median_s: seconds,
                p95_s: seconds + 2.0 * seconds / f64::from(limit).sqrt(),
                requests: f64::from(limit),
            };
            let in_a_row = traffic.errors.powi(limit as i32) * rates.new * MONTH;
            return Forecast {
                false_alarms_30d: in_a_row,
                delays: [None, None, None, Some(delay)],
                ..none
            };
        }
        _ => {}
    }
    let sequential = guard.judges(rule);
    let compares = rule.compares();
    if compares && rates.legacy <= 0.0 {
        let why = if sequential {
            "nobody is on legacy to compare with, only what legacy was before: set holdback = 1"
        } else {
            "nobody is on legacy to compare with"
        };
        return Forecast {
            cannot_work: Some(why.to_owned()),
            ..none
        };
    }
    if sequential
        && compares
        && !trials::are_enough(
            guard,
            f64::from(traffic.users),
            rates.new / (rates.new + rates.legacy),
        )
    {
        let why = format!(
            "{} users are too few to tell a fault of new from chance: a user stays on one side, \
             whatever the requests",
            traffic.users
        );
        return Forecast {
            cannot_work: Some(why),
            ..none
        };
    }
    if !sequential {
        let window_s = guard.window.as_secs_f64();
        let least = if compares {
            rates.new.min(rates.legacy)
        } else {
            rates.new
        } * window_s;
        if least < guard.min_requests as f64 {
            let why = format!(
                "about {least:.0} requests come in {window_s} s, min_requests = {} are hardly \
                 ever there",
                guard.min_requests
            );
            return Forecast {
                cannot_work: Some(why),
                ..none
            };
        }
    }
    let false_alarms_30d = if sequential {
        MONTH / guard.false_alarm_every.as_secs_f64() / guard.gathering() as f64
    } else {
        up_crossings(guard, rule, traffic, rates)
    };
    let delays = SHARES.map(|bad| delay(guard, rule, traffic, rates, bad));
    let cannot_work = match (rule, delays.iter().all(Option::is_none)) {
        (_, true) => Some(format!(
            "not even a total breakdown is noticed in {} minutes at this traffic",
            PATIENCE.as_secs() / 60
        )),
        _ => None,
    };
    Forecast {
        false_alarms_30d,
        delays,
        cannot_work,
        ..none
    }
}

/// Returns how often a healthy backend crosses a threshold in 30 days. The number of requests in a
/// window also varies, so the tolerated number is averaged over it.
fn up_crossings(guard: &GuardSettings, rule: Rule, traffic: &Traffic, rates: Rates) -> f64 {
    let (of_new, of_legacy) = healthy(rule, traffic);
    let window_s = guard.window.as_secs_f64();
    let expected = rates.new * window_s;
    let of_new = if matches!(rule, Rule::LatencyVsLegacy(_)) {
        0.02
    } else {
        of_new
    };
    let mean = of_new * expected;
    let tolerated = |requests: f64| match rule {
        Rule::ErrorsMax(max) => (max.fraction() * requests).floor(),
        Rule::Latency(point, _) => (point.slower_share() * requests).floor(),
        Rule::ErrorsVsLegacy(ratio)
        | Rule::ClientErrorsVsLegacy(ratio)
        | Rule::AbortsVsLegacy(ratio) => {
            (ratio.factor() * of_legacy.max(1.0 / (rates.legacy * window_s)) * requests)
                .floor()
                .max(MIN_COMPARED_EVENTS as f64 - 1.0)
        }
        // The p95 of new exceeds this many times the p95 of legacy, which itself varies by chance.
        Rule::LatencyVsLegacy(_)
        | Rule::RedirectsVsLegacy(_)
        | Rule::Hang(_)
        | Rule::Health(_)
        | Rule::Dead(_) => (0.05 * requests).floor(),
    };
    let deviations: Vec<f64> = (-12..=12).map(|step| f64::from(step) / 4.0).collect();
    let weight = |deviation: f64| (-deviation * deviation / 2.0).exp();
    let probability: f64 = deviations
        .iter()
        .map(|&z| weight(z) * poisson(mean, tolerated(expected + z * expected.sqrt())))
        .sum();
    of_new * rates.new * probability / deviations.iter().map(|&z| weight(z)).sum::<f64>() * MONTH
}

/// Returns `P(Poisson(mean) = k)`, computed by logarithms, with Stirling's series for the
/// factorial.
fn poisson(mean: f64, k: f64) -> f64 {
    let log_factorial: f64 = if k < 20.0 {
        (1..=k as u32).map(|i| f64::from(i).ln()).sum()
    } else {
        k * k.ln() - k + 0.5 * (std::f64::consts::TAU * k).ln() + 1.0 / (12.0 * k)
    };
    (k * mean.max(1e-300).ln() - mean - log_factorial).exp()
}

/// Returns the delay when a share `bad` of new's requests is bad.
fn delay(
    guard: &GuardSettings,
    rule: Rule,
    traffic: &Traffic,
    rates: Rates,
    bad: f64,
) -> Option<Delay> {
    let (of_new, of_legacy) = healthy(rule, traffic);
    if bad <= of_new {
        return None;
    }
    let age_s = if let Rule::Hang(us) = rule {
        us as f64 / 1e6
    } else {
        0.0
    };
    let mut runs: Vec<(f64, u64)> = (0..RUNS)
        .map(|run| {
            let mut chance = Chance::new(run as u64 * 7919 + 13);
            let mut alarm = Alarm::new(guard, rule);
            let warm_up = if guard.judges(rule) {
                80
            } else {
                (guard.window.as_secs_f64() / TICK.as_secs_f64()) as usize
            };
            for _ in 0..warm_up {
                let tally = tick(&mut chance, rates, of_new, of_legacy);
                alarm.rings(&tally);
            }
            alarm.calm();
            let mut requests = 0;
            let ticks = (PATIENCE.as_secs_f64() / TICK.as_secs_f64()) as usize;
            for at in 1..=ticks {
                let tally = tick(&mut chance, rates, bad, of_legacy);
                requests += tally.n;
                if alarm.rings(&tally) {
                    return (at as f64 * TICK.as_secs_f64() + age_s, requests);
                }
            }
            (f64::INFINITY, requests)
        })
        .collect();
    runs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (median, p95) = (runs[RUNS / 2], runs[RUNS * 95 / 100]);
    median.0.is_finite().then_some(Delay {
        median_s: median.0,
        p95_s: p95.0,
        requests: median.1 as f64,
    })
}

fn tick(chance: &mut Chance, rates: Rates, bad_of_new: f64, bad_of_legacy: f64) -> Tally {
    let seconds = TICK.as_secs_f64();
    let good = |chance: &mut Chance, rate: f64, bad: f64| {
        let events = chance.poisson(rate * seconds * bad);
        (
            events + chance.poisson(rate * seconds * (1.0 - bad)),
            events,
        )
    };
    let (n, x) = good(chance, rates.new, bad_of_new);
    let (m, y) = good(chance, rates.legacy, bad_of_legacy);
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

/// One rule, run by itself.
enum Alarm {
    Sequential {
        detectors: Vec<Detector>,
        log_threshold: f64,
    },
    Threshold {
        rule: Rule,
        window: VecDeque<Tally>,
        ticks: usize,
        min_requests: u64,
        sum: Tally,
    },
}

impl Alarm {
    fn new(guard: &GuardSettings, rule: Rule) -> Self {
        if !guard.judges(rule) {
            let ticks = (guard.window.as_secs_f64() / TICK.as_secs_f64()).ceil() as usize;
            return Self::Threshold {
                rule,
                window: VecDeque::new(),
                ticks,
                min_requests: guard.min_requests,
                sum: Tally::default(),
            };
        }
        let test = match rule {
            Rule::ErrorsMax(max) => Test::absolute(max.fraction()),
            Rule::ErrorsVsLegacy(ratio)
            | Rule::ClientErrorsVsLegacy(ratio)
            | Rule::AbortsVsLegacy(ratio)
            | Rule::RedirectsVsLegacy(ratio) => Test::relative(ratio.factor()),
            Rule::Latency(point, _) => Test::absolute(point.slower_share()),
            Rule::LatencyVsLegacy(_) => Test::relative(1.0),
            Rule::Hang(_) | Rule::Health(_) | Rule::Dead(_) => Test::absolute(guard.hang_limit()),
        };
        let most_at_once = most_at_once(rule, log_threshold(guard));
        Self::Sequential {
            detectors: vec![Detector::new(test, Mono::default()).at_most(most_at_once)],
            log_threshold: log_threshold(guard),
        }
    }

    /// A false alarm during the warm-up is not the delay that is measured.
    fn calm(&mut self) {
        if let Self::Sequential {
            detectors,
            log_threshold,
        } = self
            && log_mean(detectors.iter().map(Detector::log_evidence)) >= *log_threshold
        {
            detectors
                .iter_mut()
                .for_each(|detector| detector.restart(Mono::default()));
        }
    }

    fn rings(&mut self, tally: &Tally) -> bool {
        match self {
            Self::Sequential {
                detectors,
                log_threshold,
            } => {
                detectors
                    .iter_mut()
                    .for_each(|detector| detector.fold(tally, Mono::default()));
                let rings =
                    log_mean(detectors.iter().map(Detector::log_evidence)) >= *log_threshold;
                detectors.iter_mut().for_each(Detector::begin_tick);
                rings
            }
            Self::Threshold {
                rule,
                window,
                ticks,
                min_requests,
                sum,
            } => {
                window.push_back(*tally);
                *sum = sum.plus(tally);
                if window.len() > *ticks
                    && let Some(gone) = window.pop_front()
                {
                    *sum = sum.since(&gone);
                }
                let ratio_is_exceeded = |ratio: &Ratio| {
                    sum.x >= MIN_COMPARED_EVENTS
                        && ratio.is_exceeded_by(sum.x, sum.n, sum.y.max(1), sum.m)
                };
                let enough = sum.n >= *min_requests;
                enough
                    && match rule {
                        Rule::ErrorsMax(max) => max.is_exceeded_by(sum.x, sum.n),
                        Rule::Latency(point, _) => {
                            sum.x as f64 > point.slower_share() * sum.n as f64
                        }
                        Rule::ErrorsVsLegacy(ratio)
                        | Rule::ClientErrorsVsLegacy(ratio)
                        | Rule::AbortsVsLegacy(ratio) => {
                            sum.m >= *min_requests && ratio_is_exceeded(ratio)
                        }
                        Rule::LatencyVsLegacy(_) => {
                            sum.m >= *min_requests && sum.x as f64 > 0.05 * sum.n as f64
                        }
                        Rule::RedirectsVsLegacy(_)
                        | Rule::Hang(_)
                        | Rule::Health(_)
                        | Rule::Dead(_) => false,
                    }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::percent::Rate;

    fn percent(text: &str) -> Percent {
        Percent::parse(text).expect("a percentage")
    }

    fn threshold(window_s: u64, min_requests: u64) -> GuardSettings {
        let rules = vec![Rule::ErrorsMax(Rate::from_ppm(10_000).expect("1 %"))];
        GuardSettings {
            mode: Mode::Threshold,
            window: Duration::from_secs(window_s),
            min_requests,
            rules,
            ..GuardSettings::default()
        }
    }

    #[test]
    fn a_short_window_is_forecast_to_cause_false_alarms() {
        let traffic = Traffic {
            rps: 1_000.0,
            ..Traffic::default()
        };
        // There are 50 requests a second to new at 0.1 %. In 10 s the limit of 1 % is 5 failures,
        // and 0.5 are expected. A simulation of 100 days had an alarm on 98 of them.
        let short = &forecast(&threshold(10, 100), &traffic, percent("5"))[0];
        assert!(
            short.false_alarms_30d > 10.0 && short.false_alarms_30d < 1_000.0,
            "{short:?}"
        );
        let long = &forecast(&threshold(300, 100), &traffic, percent("5"))[0];
        assert!(long.false_alarms_30d < 0.001, "{long:?}");
    }

    #[test]
    fn up_crossings_match_those_of_a_simulation() {
        let traffic = Traffic {
            rps: 1_000.0,
            ..Traffic::default()
        };
        let guard = threshold(10, 1);
        let expected = forecast(&guard, &traffic, percent("5"))[0].false_alarms_30d;
        let mut chance = Chance::new(1);
        let mut alarm = Alarm::new(&guard, guard.rules[0]);
        let days = 20.0;
        let (mut alarms, mut was) = (0.0, false);
        for _ in 0..(days * 86_400.0 * 4.0) as usize {
            let x = chance.poisson(12.5 * 0.001);
            let n = x + chance.poisson(12.5 * 0.999);
            let rings = alarm.rings(&Tally {
                n,
                x,
                all_x: x,
                ..Tally::default()
            });
            alarms += f64::from(rings && !was);
            was = rings;
        }
        let found = alarms * 30.0 / days;
        assert!(
            found > expected / 2.0 && found < expected * 2.0,
            "{found} against {expected}"
        );
    }

    #[test]
    fn a_rule_that_never_has_enough_requests_is_reported() {
        let forecasts = forecast(&threshold(30, 200), &Traffic::default(), percent("5"));
        assert!(
            forecasts[0]
                .cannot_work
                .as_deref()
                .is_some_and(|why| why.contains("about 150 requests come in 30 s")),
            "{forecasts:?}"
        );
        assert_eq!(
            forecast(&threshold(30, 200), &Traffic::default(), percent("10"))[0].cannot_work,
            None
        );
    }

    #[test]
    fn sequential_rules_share_the_budget_and_detect_a_dead_backend_fast() {
        let guard = GuardSettings::default();
        let forecasts = forecast(
            &guard,
            &Traffic {
                rps: 1_000.0,
                ..Traffic::default()
            },
            percent("5"),
        );
        assert_eq!(forecasts.len(), guard.rules.len());
        assert!(
            (forecasts
                .iter()
                .map(|forecast| forecast.false_alarms_30d)
                .sum::<f64>()
                - 1.0)
                .abs()
                < 1e-6
        );
        let errors = &forecasts[0];
        assert!(
            errors.delays[3].is_some_and(|delay| delay.median_s <= 0.25 && delay.p95_s <= 0.5),
            "{errors:?}"
        );
        assert!(
            errors.delays[1].is_some_and(|delay| delay.median_s > 4.0 && delay.median_s < 12.0),
            "{errors:?}"
        );
    }

    #[test]
    fn comparisons_without_a_control_group_are_reported() {
        let forecasts = forecast(
            &GuardSettings::default(),
            &Traffic::default(),
            Percent::FULL,
        );
        let compared: Vec<_> = forecasts
            .iter()
            .filter(|forecast| forecast.cannot_work.is_some())
            .map(|forecast| forecast.rule.name())
            .collect();
        assert_eq!(
            compared,
            [
                "errors_vs_legacy",
                "latency_vs_legacy",
                "client_errors_vs_legacy",
                "aborts_vs_legacy",
                "redirects_vs_legacy"
            ]
        );
    }
}
