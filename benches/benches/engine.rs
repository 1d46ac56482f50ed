//! Benchmarks of what Cutover adds to a request, piece by piece, and of what its control plane does
//! four times a second.
//!
//! They use the allocator of the product, since the pieces that allocate are measured as well. Each
//! figure has a target in README.md. Nothing here fails when a target is missed, because times on a
//! shared machine are not reliable. Deliberately absent: sockets and pingora. `make peers` measures
//! the cost of the whole proxy.

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use cutover::assemble::{Origin as Begin, Start};
use cutover::gateway::router::Router;
use cutover::shared::recorder::{Look, Origin, Reader, Recorder, recorder, slot_of};
use cutover_benches::fixture;
use cutover_core::guard::LatencyPoint;
use cutover_core::stats::users::tick_of;
use cutover_core::{
    ControlPlane, Effect, Ending, Event, GuardSettings, Mono, Now, Observed, PerSide, Reason, Rule,
    Side, TICK, UserList,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures `Split::rollout_for` and `decide`, with the user key at hand.
fn decide(criterion: &mut Criterion) {
    let split = fixture::split();
    let mut group = criterion.benchmark_group("decide");
    for (name, population) in [
        ("by_bucket", fixture::REQUESTING),
        ("on_the_list", fixture::LISTED),
    ] {
        let users = fixture::users(population);
        let mut users = users.iter().cycle();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let user = users.next().map_or("", String::as_str);
                fixture::decide_one(
                    black_box(&split),
                    black_box(fixture::HOST),
                    black_box(fixture::PATH),
                    black_box("GET"),
                    black_box(user.as_bytes()),
                )
            });
        });
    }
    group.finish();
}

/// Measures the recording of one successful ending, and then everything the recorder does for a
/// request.
fn record(criterion: &mut Criterion) {
    let (recorder, _reader) = recorder();
    let endings: Vec<Ending> = fixture::endings(4_096, 3)
        .into_iter()
        .map(|ending| Ending {
            outcome: cutover_core::Outcome::Success,
            status: Some(200),
            ..ending
        })
        .collect();
    let mut endings = endings.iter().cycle();
    let origin = fixture::origin(7);
    let mut group = criterion.benchmark_group("record");
    group.bench_function("ending", |bencher| {
        bencher.iter(|| {
            if let Some(ending) = endings.next() {
                recorder.record(
                    black_box(slot_of(2)),
                    black_box(Side::New),
                    black_box(ending),
                    black_box(&origin),
                );
            }
        });
    });
    group.bench_function("begin_ending_drop", |bencher| {
        bencher.iter(|| {
            let in_flight = recorder.begin(
                black_box(slot_of(2)),
                black_box(Side::New),
                Some(black_box(Reason::Bucket)),
            );
            if let Some(ending) = endings.next() {
                in_flight.end(black_box(ending), black_box(&origin));
            }
        });
    });
    group.finish();
}

/// Whether each side has a server: both have.
const BOTH: PerSide<bool> = PerSide {
    legacy: true,
    new: true,
};
/// Whether each side has health checks: neither has.
const NEITHER: PerSide<bool> = PerSide {
    legacy: false,
    new: false,
};
const ROLLOUTS: usize = 10;
const THREADS: usize = 16;
/// The number of requests that each thread adds to each rollout between two ticks. With the numbers
/// above these are about 20,000 a second.
const NEWS: usize = 32;

/// Request threads that add counts on demand, so that a tick finds all shards changed and last
/// written by another thread.
struct Workers {
    begin: Arc<Barrier>,
    done: Arc<Barrier>,
    threads: Vec<thread::JoinHandle<()>>,
    go_on: Arc<std::sync::atomic::AtomicBool>,
    /// The time on the virtual clock, for the ends of requests.
    at: Arc<std::sync::atomic::AtomicU64>,
}

impl Workers {
    fn start(recorder: &Arc<Recorder>) -> Self {
        let (begin, done) = (
            Arc::new(Barrier::new(THREADS + 1)),
            Arc::new(Barrier::new(THREADS + 1)),
        );
        let go_on = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let at = Arc::new(std::sync::atomic::AtomicU64::new(1));
        let threads = (0..THREADS)
            .map(|thread| {
                let (begin, done, go_on, recorder) = (
                    Arc::clone(&begin),
                    Arc::clone(&done),
                    Arc::clone(&go_on),
                    Arc::clone(recorder),
                );
                let endings = fixture::endings(8_192, thread as u64);
                let (at, seed) = (Arc::clone(&at), thread as u32 * 1_000);
                thread::spawn(move || {
                    let mut endings = endings.iter().cycle();
                    while {
                        begin.wait();
                        go_on.load(std::sync::atomic::Ordering::Relaxed)
                    } {
                        for rollout in 0..ROLLOUTS {
                            for (request, ending) in endings.by_ref().take(NEWS).enumerate() {
                                let side = Side::BOTH[request % 2];
                                drop(recorder.begin(slot_of(rollout), side, Some(Reason::Bucket)));
                                let origin = Origin {
                                    at: Mono::from_micros(
                                        at.load(std::sync::atomic::Ordering::Relaxed),
                                    ),
                                    ..fixture::origin(seed + request as u32)
                                };
                                recorder.record(slot_of(rollout), side, ending, &origin);
                            }
                        }
                        done.wait();
                    }
                })
            })
            .collect();
        Self {
            begin,
            done,
            threads,
            go_on,
            at,
        }
    }

    fn add_news(&self) {
        self.begin.wait();
        self.done.wait();
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.go_on
            .store(false, std::sync::atomic::Ordering::Relaxed);
        self.begin.wait();
        for thread in self.threads.drain(..) {
            // A worker that panicked has already reported it on standard error.
            let _ = thread.join();
        }
    }
}

/// Does what the control loop does at each tick, with the time passed in. On the real clock a
/// benchmark would squeeze thousands of ticks into a window that holds 120.
fn tick_at(reader: &mut Reader, plane: &mut ControlPlane, now: Now) -> Vec<Effect> {
    reader.read();
    let tick = tick_of(now.mono);
    let looks: Vec<Look> = (0..ROLLOUTS)
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
        .map(|((totals, compared), look)| look.observed(totals, compared, BOTH, NEITHER))
        .collect();
    let effects = plane.on(Event::Tick(&observed), now).unwrap_or_default();
    for rollout in plane.rollouts() {
        reader
            .watch(slot_of(rollout.slot()))
            .set_tracker_limits(rollout.tracker_limits());
    }
    effects
}

/// Measures a tick with sixteen threads and ten rollouts, all with new counts, and with windows as
/// full as after a minute.
fn tick(criterion: &mut Criterion) {
    let mut guard = GuardSettings::default();
    guard.rules.push(Rule::Latency(LatencyPoint::P99, 800_000));
    let rollouts = (0..ROLLOUTS)
        .map(|rollout| {
            fixture::rollout(
                &format!("rollout-{rollout}"),
                UserList::default(),
                guard.clone(),
            )
        })
        .collect();
    let mut plane = fixture::plane(rollouts);
    let (recorder, mut reader) = recorder();
    let workers = Workers::start(&recorder);
    let mut now = Now {
        mono: Mono::from_micros(1),
        ..Now::default()
    };
    let mut timed_tick = || {
        workers
            .at
            .store(now.mono.as_micros(), std::sync::atomic::Ordering::Relaxed);
        workers.add_news();
        now.mono = now.mono.forward(TICK);
        let begun = Instant::now();
        let effects = black_box(tick_at(black_box(&mut reader), black_box(&mut plane), now));
        let took = begun.elapsed();
        assert!(
            effects.is_empty(),
            "a healthy backend must not trip the guard, since a latched rollout is not judged any \
             more: {effects:?}"
        );
        took
    };
    for _ in 0..cutover_core::control::rollout::RECENT.as_millis() / TICK.as_millis() + 1 {
        timed_tick();
    }
    criterion
        .benchmark_group("tick")
        .bench_function("16_threads_10_rollouts", |bencher| {
            bencher
                .iter_custom(|iterations| (0..iterations).map(|_| timed_tick()).sum::<Duration>());
        });
}

/// Measures one request through the whole router. The engine makes the copy of the headers that the
/// router edits, so this copy is not timed.
fn router(criterion: &mut Criterion) {
    let (router, _reader) = fixture::router();
    passes(criterion, "request_edits_answered_done", &router);
}

/// Measures one request through the whole router with an access log, as a request thread sees it.
/// This includes the thread's own part, and occasionally the writer's on the same core.
fn gate_logged(criterion: &mut Criterion) {
    let (router, _reader, _) = fixture::gate_logging();
    passes(criterion, "with_an_access_log", &router);
}

fn passes(criterion: &mut Criterion, name: &str, router: &Router) {
    let conn = fixture::conn();
    let heads: Vec<fixture::MemoryHead> = fixture::users(fixture::REQUESTING)
        .iter()
        .map(|user| fixture::MemoryHead::of_user(user))
        .collect();
    let mut heads = heads.iter().cycle();
    criterion
        .benchmark_group("router")
        .bench_function(name, |bencher| {
            bencher.iter_batched(
                || {
                    let head = heads.next().expect("a cycle of ten thousand does not end");
                    (head, head.copied())
                },
                |(head, mut edits)| {
                    fixture::pass(router, &conn, head, &mut edits);
                    edits
                },
                BatchSize::SmallInput,
            );
        });
}

/// Measures a whole scrape over a separate connection: the real proxy with a hundred rollouts.
fn scrape(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("cutover.toml");
    std::fs::write(&file, fixture::file_of(100, folder.path())).expect("a file");
    let start = Start {
        file,
        threads: Some(1),
        access_out: Box::new(std::io::sink()),
        origin: Begin::default(),
    };
    let running = start.start().expect("the proxy starts");
    let scrape = || {
        let mut stream = TcpStream::connect(running.admin).expect("the admin port answers");
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .expect("a request");
        let mut answer = Vec::with_capacity(1 << 21);
        stream.read_to_end(&mut answer).expect("an answer");
        assert!(answer.starts_with(b"HTTP/1.1 200 "));
        answer.len()
    };
    criterion
        .benchmark_group("scrape")
        .bench_function("100_rollouts", |bencher| bencher.iter(scrape));
    running.stop(Duration::ZERO, Duration::from_secs(1), || true);
}

criterion_group!(engine, decide, record, tick, router, gate_logged, scrape);
criterion_main!(engine);
