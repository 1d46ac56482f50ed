//! Instruction counts of each piece, measured by callgrind. They are the same on a busy machine as
//! on a quiet one, so a regression is found at once and nothing fails by chance.
//!
//! Each limit is about a seventh above the count at the time it was set, because compilers and C
//! libraries differ a little. A change that makes a piece cheaper lowers its limit. There are two
//! limits. One is for the profile `counted`, which is a release without link-time optimisation
//! (`make instructions`; the product's own build needs fewer still). The other is for a development
//! build (`make test`), whose counts mean nothing by themselves but also reveal an additional pass
//! or lookup, and are ready in seconds.
//!
//! Deliberately absent: time, and pingora. `cutover-loadtest peers` compares whole proxies.

// Items that the macros generate have no documentation, and take their arguments by value.
#![allow(missing_docs, clippy::needless_pass_by_value)]

use std::hint::black_box;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use cutover::control::report::{recent_quantiles, status_of};
use cutover::gateway::message::head::Conn;
use cutover::gateway::message::identity::identify;
use cutover::gateway::router::Router;
use cutover::shared::certificates::Certificates;
use cutover::shared::connections::Connections;
use cutover::shared::drain::DrainSignal;
use cutover::shared::published::{Common, PreparedKey};
use cutover::shared::recorder::{Look, Origin, Reader, Recorder, SlotTotals, recorder, slot_of};
use cutover::shared::refusals::Refusals;
use cutover::shared::report::{Measured, Report};
use cutover::status::ConfigStatus;
use cutover::telemetry::access_log::AccessLog;
use cutover::telemetry::metrics;
use cutover::telemetry::traces::Traces;
use cutover_benches::fixture::{self, MemoryHead};
use cutover_core::guard::LatencyPoint;
use cutover_core::stats::users::tick_of;
use cutover_core::{
    ControlPlane, Effect, Ending, Event, FailureKind, GuardSettings, KeySource, Mono, Now,
    Observed, Outcome, PerSide, Reason, Rule, Side, Split, TICK, UserList,
};
use gungraun::{
    Callgrind, EventKind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main,
};
use http::HeaderMap;

// The allocator of the product.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How many times each piece of a request is run, so that additional work for the first one does
/// not matter.
const REQUESTS: usize = 1_000;

/// Sets the most instructions for each of `runs` runs, in an optimised and in a development build.
fn limit(runs: usize, optimised: u64, development: u64) -> LibraryBenchmarkConfig {
    let instructions = if cfg!(debug_assertions) {
        development
    } else {
        optimised
    };
    let mut config = LibraryBenchmarkConfig::default();
    // Caches are not simulated, because they would be those of another machine.
    config.tool(
        Callgrind::with_args(["--cache-sim=no"])
            .hard_limits([(EventKind::Ir, runs as u64 * instructions)]),
    );
    config
}

fn users() -> Vec<String> {
    fixture::users(fixture::REQUESTING)
        .into_iter()
        .take(REQUESTS)
        .collect()
}

// ---- the decision

fn three() -> (Split, Vec<String>) {
    (fixture::split(), users())
}

fn thousand() -> (Split, Vec<String>) {
    let rollouts = (0..999)
        .map(|number| format!("service-{number}"))
        .chain(["checkout".to_owned()]);
    (
        fixture::plane(
            rollouts
                .map(|id| fixture::rollout(&id, UserList::default(), GuardSettings::default()))
                .collect(),
        )
        .split(),
        users(),
    )
}

fn long_list() -> (Split, Vec<String>) {
    // A development build takes half a minute to make the list.
    let count = if cfg!(debug_assertions) {
        50_000u32
    } else {
        1_000_000
    };
    let listed = UserList::new((0..count).map(|number| format!("user-{number}")));
    (
        fixture::plane(vec![fixture::rollout(
            "checkout",
            listed,
            GuardSettings::default(),
        )])
        .split(),
        users(),
    )
}

#[library_benchmark(config = limit(REQUESTS, 810, 970))]
#[bench::three_rollouts(three())]
#[bench::thousand_rollouts(thousand())]
#[bench::many_listed_users(long_list())]
fn decide((split, users): (Split, Vec<String>)) -> (Split, Vec<String>) {
    for user in &users {
        black_box(fixture::decide_one(
            black_box(&split),
            fixture::HOST,
            fixture::PATH,
            "GET",
            user.as_bytes(),
        ));
    }
    (split, users)
}

// ---- who asks

fn key(source: KeySource) -> (Vec<PreparedKey>, MemoryHead) {
    let token = "Bearer eyJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJzaG9wIiwic3ViIjoiMmYxYzlkMGUtN2I2YS00YzFkLThlMmYtMTIzNDU2Nzg5YWJjIiwiZXhwIjoxODAwMDAwMDAwfQ.c2lnbmF0dXJl";
    let head = MemoryHead::of_user("2f1c9d0e-7b6a-4c1d-8e2f-123456789abc")
        .with("cookie", "uid=2f1c9d0e-7b6a-4c1d-8e2f-123456789abc")
        .with("authorization", token)
        .with_query("page=2&user=2f1c9d0e");
    (vec![PreparedKey::new(&source.into())], head)
}

#[library_benchmark(config = limit(REQUESTS, 1_700, 7_500))]
#[bench::header(key(KeySource::Header("x-user-id".into())))]
#[bench::cookie(key(KeySource::Cookie("uid".into())))]
#[bench::jwt(args = (key(KeySource::Jwt("sub".into()))), config = limit(REQUESTS, 8_600, 25_500))]
#[bench::query(key(KeySource::Query("user".into())))]
#[bench::path(key(KeySource::Path(2)))]
#[bench::ip(key(KeySource::Ip))]
fn extract_key((keys, head): (Vec<PreparedKey>, MemoryHead)) -> (Vec<PreparedKey>, MemoryHead) {
    let client = IpAddr::from([192, 0, 2, 7]);
    for _ in 0..REQUESTS {
        black_box(identify(black_box(&head), black_box(&keys), client, false));
    }
    (keys, head)
}

// ---- counting

struct Counting {
    recorder: Arc<Recorder>,
    /// The reader is kept because it also owns the shards.
    _reader: Reader,
    origins: Vec<Origin<'static>>,
    side: Side,
    ending: Ending,
}

fn counting(side: Side, outcome: Outcome) -> Counting {
    let (recorder, reader) = recorder();
    let ending = Ending {
        outcome,
        status: Some(200),
        latency_us: Some(20_000),
        evidence: cutover_core::Evidence::Compared,
    };
    recorder.record(slot_of(2), side, &ending, &fixture::origin(0));
    Counting {
        recorder,
        _reader: reader,
        origins: (1..=REQUESTS as u32).map(fixture::origin).collect(),
        side,
        ending,
    }
}

#[library_benchmark(config = limit(REQUESTS, 540, 4_000))]
#[bench::success_on_new(counting(Side::New, Outcome::Success))]
#[bench::success_on_legacy(counting(Side::Legacy, Outcome::Success))]
#[bench::failure_on_new(args = (counting(Side::New, Outcome::Failure(FailureKind::Status))), config = limit(REQUESTS, 2_750, 8_000))]
fn record(counting: Counting) -> Counting {
    for origin in &counting.origins {
        let in_flight = counting
            .recorder
            .begin(slot_of(2), counting.side, Some(Reason::Bucket));
        in_flight.end(black_box(&counting.ending), black_box(origin));
    }
    counting
}

// ---- the whole router

struct Passes {
    router: Router,
    reader: Reader,
    conn: Conn,
    heads: Vec<(MemoryHead, HeaderMap)>,
}

fn passes() -> Passes {
    let (router, reader) = fixture::router();
    let heads = users()
        .iter()
        .map(|user| MemoryHead::of_user(user))
        .map(|head| (head.clone(), head.copied()))
        .collect();
    let mut passes = Passes {
        router,
        reader,
        conn: fixture::conn(),
        heads,
    };
    // The first request of a thread creates its counters.
    let (head, mut edits) = (MemoryHead::of_user("first"), HeaderMap::new());
    fixture::pass(&passes.router, &passes.conn, &head, &mut edits);
    passes.reader.read();
    passes
}

#[library_benchmark(config = limit(REQUESTS, 10_900, 117_000))]
#[bench::request(passes())]
fn router(mut passes: Passes) -> Passes {
    for (head, edits) in &mut passes.heads {
        fixture::pass(&passes.router, &passes.conn, head, edits);
    }
    passes
}

// ---- the tick

struct Ticking {
    plane: ControlPlane,
    recorder: Arc<Recorder>,
    reader: Reader,
    now: Now,
    rollouts: usize,
}

const TICKS: usize = 10;

impl Ticking {
    /// Creates the state with full windows, and with new counts if `has_news` is true.
    fn new(rollouts: usize, has_news: bool) -> Self {
        let mut guard = GuardSettings::default();
        guard.rules.push(Rule::Latency(LatencyPoint::P99, 800_000));
        let plane = fixture::plane(
            (0..rollouts)
                .map(|number| {
                    fixture::rollout(
                        &format!("service-{number}"),
                        UserList::default(),
                        guard.clone(),
                    )
                })
                .collect(),
        );
        let (recorder, reader) = recorder();
        let mut ticking = Self {
            plane,
            recorder,
            reader,
            now: Now {
                mono: Mono::from_micros(1),
                ..Now::default()
            },
            rollouts,
        };
        for _ in 0..cutover_core::control::rollout::RECENT.as_millis() / TICK.as_millis() + 1 {
            if has_news {
                ticking.add_news();
            }
            ticking.tick();
        }
        if has_news {
            ticking.add_news();
        }
        ticking
    }

    fn add_news(&self) {
        for (request, ending) in fixture::endings(32, 7).iter().enumerate() {
            for rollout in 0..self.rollouts {
                let side = Side::BOTH[request % 2];
                let origin = Origin {
                    at: self.now.mono,
                    ..fixture::origin(request as u32)
                };
                self.recorder
                    .begin(slot_of(rollout), side, Some(Reason::Bucket))
                    .end(ending, &origin);
            }
        }
    }

    fn tick(&mut self) -> Vec<Effect> {
        self.now.mono = self.now.mono.forward(TICK);
        let now = self.now;
        self.reader.read();
        let tick = tick_of(now.mono);
        let reader = &mut self.reader;
        let looks: Vec<Look> = (0..self.rollouts)
            .map(|rollout| {
                reader.look(
                    slot_of(rollout),
                    now.mono,
                    Some(tick.saturating_sub(41)..tick.saturating_sub(40)),
                )
            })
            .collect();
        let observed: Vec<Observed<'_>> = reader
            .rollouts()
            .zip(&looks)
            .map(|((totals, compared), look)| {
                look.observed(
                    totals,
                    compared,
                    PerSide {
                        legacy: true,
                        new: true,
                    },
                    PerSide {
                        legacy: false,
                        new: false,
                    },
                )
            })
            .collect();
        self.plane
            .on(Event::Tick(&observed), now)
            .unwrap_or_default()
    }
}

// Runs ten ticks, of which the first sees new counts. This covers the judge of each rollout, and
// the reading of its counters.
#[library_benchmark(config = limit(TICKS, 2_200_000, 5_100_000))]
#[bench::ten_rollouts(Ticking::new(10, true))]
#[bench::many_at_rest(args = (Ticking::new(if cfg!(debug_assertions) { 30 } else { 100 }, false)), config = limit(TICKS, 3_100_000, 1_500_000))]
fn tick(mut ticking: Ticking) -> Ticking {
    for _ in 0..TICKS {
        black_box(ticking.tick());
    }
    ticking
}

// ---- the file

fn file_of(rollouts: usize) -> String {
    fixture::file_of(rollouts, &PathBuf::from("/var/lib/cutover"))
}

#[library_benchmark(config = limit(1, 165_000_000, 31_000_000))]
#[bench::many_rollouts(file_of(if cfg!(debug_assertions) { 100 } else { 1_000 }))]
fn parse_file(text: String) -> (String, cutover_config::Settings) {
    let settings = fixture::settings(&text);
    (text, settings)
}

// ---- metrics

fn report_of(rollouts: usize) -> Report {
    let settings = fixture::settings(&file_of(rollouts));
    let plane = fixture::plane(settings.rollouts.clone());
    let nothing = SlotTotals::default();
    let config = ConfigStatus {
        file: "cutover.toml".to_owned(),
        digest: "0".repeat(64),
        last_reload_successful: true,
        last_success_at: "2026-01-01T00:00:00Z".to_owned(),
        problems: None,
        restart_needed: Vec::new(),
        waiting_for: Vec::new(),
    };
    Report {
        status: status_of(&plane, &plane.split(), config, true, &nothing, |_| &nothing),
        measured: plane
            .rollouts()
            .iter()
            .map(|rollout| Measured {
                totals: SlotTotals::default(),
                recent_quantiles: recent_quantiles(rollout),
            })
            .collect(),
        unmatched: SlotTotals::default(),
        common: Arc::new(Common::new(settings, None)),
        rollbacks: Vec::new(),
    }
}

#[library_benchmark(config = limit(1, 41_000_000, 68_000_000))]
#[bench::many_rollouts(report_of(if cfg!(debug_assertions) { 20 } else { 100 }))]
fn render_metrics(report: Report) -> (Report, Vec<u8>) {
    let text = metrics::render(
        &report,
        &Connections::default(),
        &Refusals::default(),
        &Certificates::default(),
        &DrainSignal::default(),
        &AccessLog::off(),
        &Traces::default(),
    );
    (report, text.unwrap_or_default())
}

library_benchmark_group!(
    name = request_path,
    benchmarks = [decide, extract_key, record, router]
);
library_benchmark_group!(
    name = control,
    benchmarks = [tick, parse_file, render_metrics]
);
main!(library_benchmark_groups = [request_path, control]);
