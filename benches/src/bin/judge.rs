//! The promises of the sequential detector, measured on virtual time with the real engine: how long
//! it takes to detect a fault, and how often it raises a false alarm.
//!
//! `delays` prints the table by which the design was chosen (a thousand requests per second, a
//! twentieth of them to new, and low traffic) beside the results of this engine. `aa` lets two
//! healthy backends run for days and counts rollbacks. Every run prints its seeds. `make judge`
//! calls both.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use clap::{Parser, Subcommand};
use cutover_core::control::plane::Change;
use cutover_core::simulation::{Fault, FaultKind, Scenario, Traffic, World, notice};
use cutover_core::{Command, GuardSettings, Percent, RolloutSettings, Rule, Side, UserList};

#[derive(Debug, Parser)]
#[command(about = "The sequential judge on virtual time: delays and false alarms")]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Measure how long a fault takes to be detected, beside the table of the design
    Delays {
        /// The number of runs of each cell
        #[arg(long, default_value_t = 200)]
        runs: u64,
        /// Exit with 1 when a median is slower than the table by more than 30 %
        #[arg(long)]
        assert: bool,
    },
    /// Count how often new is rolled back when both backends are healthy
    Aa {
        /// The total of virtual time in days
        #[arg(long, default_value_t = 100.0)]
        days: f64,
        /// The number of threads
        #[arg(long, default_value_t = 2)]
        threads: usize,
        /// Only worlds whose name contains this
        #[arg(long)]
        only: Option<String>,
        /// Exit with 1 when there are more rollbacks than promised
        #[arg(long)]
        assert: bool,
    },
}

fn settings(percent: &str, guard: GuardSettings) -> RolloutSettings {
    RolloutSettings {
        guard,
        ..RolloutSettings::for_tests("checkout", Percent::parse(percent).expect("a percentage"))
    }
}

fn scenario(
    settings: RolloutSettings,
    traffic: Traffic,
    seed: u64,
    between_ticks: bool,
) -> Scenario {
    Scenario {
        settings,
        traffic,
        faults: vec![],
        seed,
        between_ticks,
        timeout: Duration::from_secs(30),
    }
}

/// A row of the design's table: traffic, the rule by itself, and the medians in seconds for four
/// failure rates of new; 0 where the table has none. Small faults take longer since a comparison
/// also has to hold with users as trials: 2 % of the requests took 13 s before.
struct Row {
    rps: f64,
    percent: &'static str,
    rule: &'static str,
    medians: [f64; 4],
}

const RATES: [f64; 4] = [0.02, 0.05, 0.5, 1.0];
const TABLE: [Row; 5] = [
    Row {
        rps: 1_000.0,
        percent: "5",
        rule: "errors_max",
        medians: [67.0, 7.3, 0.25, 0.25],
    },
    Row {
        rps: 1_000.0,
        percent: "5",
        rule: "errors_vs_legacy",
        medians: [19.0, 4.0, 0.5, 0.25],
    },
    Row {
        rps: 1_000.0,
        percent: "50",
        rule: "errors_vs_legacy",
        medians: [2.8, 0.0, 0.0, 0.0],
    },
    Row {
        rps: 20.0,
        percent: "5",
        rule: "errors_max",
        medians: [0.0, 0.0, 9.8, 3.8],
    },
    Row {
        rps: 20.0,
        percent: "5",
        rule: "errors_vs_legacy",
        medians: [0.0, 0.0, 20.0, 10.5],
    },
];

/// Returns the seconds to the rollback, sorted, and the bad answers of new, sorted. A run without
/// detection counts as endless.
fn measure(
    rps: f64,
    percent: &str,
    rule: Option<&str>,
    rate: f64,
    between_ticks: bool,
    runs: u64,
) -> (Vec<f64>, Vec<u64>) {
    let (mut seconds, mut bad) = (Vec::new(), Vec::new());
    for seed in 0..runs {
        let mut guard = GuardSettings::default();
        if let Some(rule) = rule {
            guard.rules.retain(|known| known.name() == rule);
            if rule == "errors_vs_legacy" && percent == "50" {
                // This row of the table tolerates no more than legacy's own rate.
                guard.rules = vec![Rule::ErrorsVsLegacy(
                    cutover_core::Ratio::from_thousandths(1_000).expect("a ratio"),
                )];
            }
        }
        let traffic = Traffic {
            rps,
            ..Traffic::default()
        };
        let fault = Fault {
            side: Some(Side::New),
            kind: FaultKind::Errors(rate),
            from: Duration::ZERO,
            lasts: Duration::MAX,
        };
        match notice(
            scenario(
                settings(percent, guard),
                traffic,
                seed * 7_919 + 13,
                between_ticks,
            ),
            Duration::from_secs(120),
            fault,
            Duration::from_secs(600),
        ) {
            Ok(Some(found)) => {
                seconds.push(found.delay.as_secs_f64());
                bad.push(found.bad);
            }
            Ok(None) => seconds.push(f64::INFINITY),
            Err(early) => eprintln!("seed {seed}: rolled back before anything was wrong: {early}"),
        }
    }
    seconds.sort_by(f64::total_cmp);
    bad.sort_unstable();
    (seconds, bad)
}

fn at<T: Copy>(sorted: &[T], part: f64) -> Option<T> {
    sorted
        .get(((sorted.len() as f64 * part) as usize).min(sorted.len().saturating_sub(1)))
        .copied()
}

#[expect(clippy::print_stdout, reason = "a command's output")]
fn delays(runs: u64) -> bool {
    println!(
        "Delay to the rollback, median / p95 in seconds, of {runs} runs per cell (seeds 13, 7932, \
         ...), each after two healthy minutes; 0.1 % of requests fail on a healthy backend."
    );
    println!(
        "Behind it the median of the design's table, which looked at ticks of 250 ms only, and \
         the deviation from it."
    );
    let mut within = true;
    for row in TABLE {
        println!(
            "{} requests per second, {} % to new, {} alone",
            row.rps, row.percent, row.rule
        );
        for (rate, expected) in RATES
            .into_iter()
            .zip(row.medians)
            .filter(|(_, expected)| *expected > 0.0)
        {
            let (seconds, _) = measure(row.rps, row.percent, Some(row.rule), rate, true, runs);
            let (median, p95) = (
                at(&seconds, 0.5).unwrap_or_default(),
                at(&seconds, 0.95).unwrap_or_default(),
            );
            let deviation = median / expected - 1.0;
            // A faster detection is not an error: the resolution of the table is a tick, and
            // failures are also checked between ticks.
            within &= deviation <= 0.3;
            println!(
                "  {:>5} %: {median:>7.2} / {p95:<7.2} design {expected:>6.2}  {:>+6.0} %",
                rate * 100.0,
                deviation * 100.0
            );
        }
    }
    println!(
        "The whole default guard as it runs in the proxy, failures looked at when they happen:"
    );
    for (rps, percent) in [(1_000.0, "5"), (1_000.0, "50"), (20.0, "5")] {
        println!("{rps} requests per second, {percent} % to new");
        for rate in RATES {
            let (seconds, bad) = measure(rps, percent, None, rate, true, runs);
            let (median, p95) = (
                at(&seconds, 0.5).unwrap_or_default(),
                at(&seconds, 0.95).unwrap_or_default(),
            );
            println!(
                "  {:>5} %: {median:>7.2} / {p95:<7.2} bad answers {} (median), {} (max)",
                rate * 100.0,
                at(&bad, 0.5).unwrap_or_default(),
                at(&bad, 1.0).unwrap_or_default()
            );
        }
    }
    within
}

/// Returns the upper end of a one-sided 95 % interval for the mean of a Poisson count.
fn upper_bound(count: u64) -> f64 {
    // The bisection finds the mean at which a count this low is seen in one of twenty cases.
    let at_most = |mean: f64| {
        let mut term = (-mean).exp();
        (0..=count).fold(0.0, |sum, k| {
            let sum = sum + term;
            term *= mean / (k + 1) as f64;
            sum
        })
    };
    let (mut low, mut high) = (0.0, 10.0 + 3.0 * count as f64);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if at_most(middle) > 0.05 {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

/// A healthy world: two identical backends with one kind of traffic.
struct Healthy {
    name: &'static str,
    percent: &'static str,
    /// The time after which users are drawn again. Until then, users who always fail and are on
    /// new by chance stay there.
    draw: Duration,
    traffic: Traffic,
    /// The number of users who are named in `always_new`, beginning with the first.
    listed: u32,
}

const HOUR: Duration = Duration::from_secs(3_600);

fn healthy_worlds() -> Vec<Healthy> {
    let even = Traffic {
        rps: 1_000.0,
        ..Traffic::default()
    };
    let few = |users: u32, rps: f64| Traffic {
        rps,
        users,
        networks: users,
        is_uneven: true,
        night: 0.85,
        ..Traffic::default()
    };
    let world = |name, percent, traffic| Healthy {
        name,
        percent,
        draw: HOUR * 12,
        traffic,
        listed: 0,
    };
    let drawn = |name, percent, traffic| Healthy {
        draw: HOUR * 2,
        ..world(name, percent, traffic)
    };
    vec![
        world(
            "nothing fails",
            "5",
            Traffic {
                errors: 0.0,
                ..even
            },
        ),
        world("0.1 % fail", "5", even),
        world(
            "0.5 % fail",
            "5",
            Traffic {
                errors: 0.005,
                ..even
            },
        ),
        world(
            "nothing fails",
            "50",
            Traffic {
                errors: 0.0,
                ..even
            },
        ),
        world("0.1 % fail", "50", even),
        world(
            "0.5 % fail",
            "50",
            Traffic {
                errors: 0.005,
                ..even
            },
        ),
        drawn(
            "8.7 % of 300 users always get 4xx",
            "6.7",
            Traffic {
                persistent: 0.087,
                ..few(300, 60.0)
            },
        ),
        drawn(
            "10 % of 40 users always get 4xx",
            "50",
            Traffic {
                persistent: 0.1,
                ..few(40, 20.0)
            },
        ),
        drawn(
            "5 % of 400 users always get 4xx",
            "50",
            Traffic {
                persistent: 0.05,
                ..few(400, 100.0)
            },
        ),
        drawn(
            "2 % of 20,000 users always get 4xx",
            "5",
            Traffic {
                persistent: 0.02,
                ..few(20_000, 300.0)
            },
        ),
        drawn(
            "10 % of 40 users have slow devices",
            "50",
            Traffic {
                slow_users: 0.1,
                ..few(40, 20.0)
            },
        ),
        drawn(
            "20 % of 300 users have slow devices",
            "6.7",
            Traffic {
                slow_users: 0.2,
                ..few(300, 60.0)
            },
        ),
        drawn(
            "four fifths without a key, quick and on legacy",
            "50",
            Traffic {
                keyless: 0.8,
                rps: 200.0,
                ..even
            },
        ),
        Healthy {
            listed: 10,
            ..drawn(
                "ten listed users on slow pages, no other user on new",
                "0",
                Traffic {
                    listed_times: 8.0,
                    ..few(60, 50.0)
                },
            )
        },
        drawn(
            "5 % long polls of 14 s",
            "25",
            Traffic {
                polls: 0.05,
                ..few(300, 60.0)
            },
        ),
        drawn(
            "3 % fail on both sides, all the time",
            "25",
            Traffic {
                errors: 0.03,
                ..few(300, 60.0)
            },
        ),
        drawn(
            "two users, both always failing",
            "50",
            Traffic {
                persistent: 1.0,
                users: 2,
                networks: 2,
                rps: 0.5,
                ..even
            },
        ),
    ]
}

/// Runs one draw of a healthy world, and returns the announcements that should not have been made.
fn live(healthy: &Healthy, seed: u64, time: Duration) -> Vec<String> {
    let mut settings = settings(healthy.percent, GuardSettings::default());
    // Another salt gives another draw of the hash.
    settings.salt = format!("draw-{seed}").into();
    settings.always_new = UserList::new((0..healthy.listed).map(|user| format!("u{user}")));
    let mut world = World::new(scenario(settings, healthy.traffic, seed, true));
    let mut found = Vec::new();
    while world.elapsed() < time {
        for announcement in world.tick() {
            if matches!(announcement.change, Change::RolledBack(_)) {
                found.push(announcement.sentence);
            }
        }
        if world.is_rolled_back() {
            let _ = world.command(Command::Rearm);
        }
    }
    found
}

#[expect(clippy::print_stdout, reason = "a command's output")]
fn aa(days: f64, threads: usize, only: Option<&str>) -> bool {
    let worlds: Vec<Healthy> = healthy_worlds()
        .into_iter()
        .filter(|world| only.is_none_or(|only| world.name.contains(only)))
        .collect();
    println!(
        "Two backends alike, {days} days in total over {} worlds, each draw of users with a hash \
         of its own, the default guard; seeds from 0",
        worlds.len()
    );
    let each = Duration::from_secs_f64(days * 86_400.0 / worlds.len() as f64);
    // The longest parts run first, so that the threads end together.
    let mut parts: Vec<(usize, u64, Duration)> = Vec::new();
    for (at, world) in worlds.iter().enumerate() {
        let mut left = each;
        while !left.is_zero() {
            let part = left.min(world.draw);
            parts.push((at, parts.len() as u64, part));
            left -= part;
        }
    }
    parts.sort_by(|a, b| {
        (worlds[b.0].traffic.rps * b.2.as_secs_f64())
            .total_cmp(&(worlds[a.0].traffic.rps * a.2.as_secs_f64()))
    });
    let next = AtomicU64::new(0);
    let found: Mutex<Vec<(usize, u64, String)>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while let Some(&(at, seed, time)) =
                    parts.get(next.fetch_add(1, Ordering::Relaxed) as usize)
                {
                    let alarms = live(&worlds[at], seed, time);
                    found
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .extend(alarms.into_iter().map(|sentence| (at, seed, sentence)));
                }
            });
        }
    });
    let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut holds = true;
    for (at, world) in worlds.iter().enumerate() {
        let (days, draws) = (
            each.as_secs_f64() / 86_400.0,
            parts.iter().filter(|(world, ..)| *world == at).count(),
        );
        let alarms = found.iter().filter(|(world, ..)| *world == at).count() as u64;
        holds &= alarms <= most(days / 30.0);
        println!(
            "  {alarms} rollbacks in {days:.1} days, {draws:>4} draws: {} % on new, {}",
            world.percent, world.name
        );
    }
    for (_, seed, sentence) in &found {
        println!("  seed {seed}: {sentence}");
    }
    let promised = days / 30.0;
    let count = found.len() as u64;
    println!(
        "{count} rollbacks in {days} days; 95 % upper bound {:.1}; promised: one in 30 days, \
         {promised:.1} in this time (and 95 % of the time at most {})",
        upper_bound(count),
        most(promised)
    );
    holds && count <= most(promised)
}

/// Returns the count that a Poisson variable of this mean exceeds in at most one of twenty cases.
fn most(mean: f64) -> u64 {
    let mut term = (-mean).exp();
    let mut sum = term;
    let mut count = 0;
    while sum < 0.95 {
        count += 1;
        term *= mean / count as f64;
        sum += term;
    }
    count
}

fn main() -> std::process::ExitCode {
    let (holds, assert) = match Arguments::parse().what {
        What::Delays { runs, assert } => (delays(runs), assert),
        What::Aa {
            days,
            threads,
            only,
            assert,
        } => (aa(days, threads, only.as_deref()), assert),
    };
    if assert && !holds {
        std::process::ExitCode::FAILURE
    } else {
        std::process::ExitCode::SUCCESS
    }
}
