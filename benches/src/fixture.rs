//! The rollouts, users and requests with which every figure of this crate is measured. They are the
//! same in each run, and large enough to be realistic.
//!
//! User keys are as long as a UUID, there are ten thousand of them, and each request is from
//! another user. A single key would stay in the first-level cache and train the branch predictor.
//! Rollouts are built from the core's types; only the router reads a file, because its settings,
//! limits and backends are read from one.

use cutover_config::NoFiles;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cutover::gateway::message::head::{Conn, Head};
use cutover::gateway::router::{End, Limits, Router, Step};
use cutover::shared::published::{Common, Published, Snapshot};
use cutover::shared::recorder::{Origin, Reader, recorder};
use cutover::telemetry::access_log::{AccessLog, Out};
use cutover::telemetry::traces::Traces;
use cutover_config::{LogFormat, Settings};
use cutover_core::control::plane::{Actor, Restored};
use cutover_core::routing::bucket::murmur3_x86_32;
use cutover_core::routing::split::decide;
use cutover_core::{
    Ask, ControlPlane, Decision, Ending, Event, FailureKind, GuardSettings, KeySource, Match, Mono,
    Now, Outcome, PerSide, Percent, Requester, RolloutSettings, Split, UserKey, UserList,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

/// The number of users, and the number of users on the list.
pub const USERS: usize = 10_000;
/// The path of a request that matches the third rollout.
pub const PATH: &str = "/checkout/basket/items";
/// The most headers that the router adds to a request; an adapter reserves space for them.
const OUR_HEADERS: usize = 9;
/// The host of each request.
pub const HOST: &str = "shop.example";

/// A generator of pseudo-random numbers, the same in every run (SplitMix64).
#[derive(Clone, Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// Creates the sequence of this seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next number as a share, `0.0..1.0`.
    pub fn share(&mut self) -> f64 {
        (self.draw() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Returns user keys in the form of UUIDs; another seed gives other users.
pub fn users(seed: u64) -> Vec<String> {
    let mut numbers = Numbers::new(seed);
    let mut user = || {
        let (high, low) = (numbers.draw(), numbers.draw());
        format!(
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            high >> 32,
            (high >> 16) & 0xffff,
            high & 0xffff,
            low >> 48,
            low & 0xffff_ffff_ffff
        )
    };
    (0..USERS).map(|_| user()).collect()
}

/// The seed of the users who send requests.
pub const REQUESTING: u64 = 1;
/// The seed of the users on the list; see [`REQUESTING`].
pub const LISTED: u64 = 2;

/// Returns a rollout at 50 % under `/ID`, keyed by a header.
pub fn rollout(id: &str, always_new: UserList, guard: GuardSettings) -> RolloutSettings {
    RolloutSettings {
        matches: Match {
            path: Some(format!("/{id}").into()),
            ..Match::default()
        },
        keys: vec![KeySource::Header("x-user-id".into()).into()],
        always_new,
        guard,
        ..RolloutSettings::for_tests(id, Percent::parse("50").expect("50 is a percentage"))
    }
}

/// Returns a control plane that has accepted these rollouts.
pub fn plane(rollouts: Vec<RolloutSettings>) -> ControlPlane {
    let mut plane = ControlPlane::new(Restored::Fresh);
    plane
        .on(
            Event::Settings {
                rollouts,
                actor: Actor::file(),
                reason: String::new(),
            },
            Now::default(),
        )
        .expect("settings are never refused");
    plane
}

/// Returns three rollouts, of which the third matches [`PATH`] and has the list.
pub fn split() -> Split {
    let rollout = |id, list| rollout(id, list, GuardSettings::default());
    plane(vec![
        rollout("search", UserList::default()),
        rollout("account", UserList::default()),
        rollout("checkout", UserList::new(users(LISTED))),
    ])
    .split()
}

/// Decides one request as the request path does, given its user key.
#[inline]
pub fn decide_one(
    split: &Split,
    host: &str,
    path: &str,
    method: &str,
    key: &[u8],
) -> Option<Decision> {
    let at = split.rollout_for(host, path, method)?;
    Some(decide(
        &split.rollouts[at],
        &Ask {
            key: UserKey::Known(key),
            override_to: None,
            available: PerSide {
                legacy: true,
                new: true,
            },
        },
    ))
}

/// Returns the origin of a request from this user.
pub fn origin(user: u32) -> Origin<'static> {
    let user = murmur3_x86_32(&user.to_le_bytes());
    Origin {
        who: Requester {
            user,
            network: user >> 2,
        },
        path: PATH,
        epoch: 0,
        at: Mono::from_micros(1_000_000),
    }
}

/// Returns the ends of requests that a healthy backend produces: latencies around 20 ms with a slow
/// tail (log-normal, a sigma of 0.6: p99 near 80 ms), 4 % of 4xx and 0.2 % of 5xx.
pub fn endings(count: usize, seed: u64) -> Vec<Ending> {
    let mut numbers = Numbers::new(seed);
    let mut ending = || {
        // The sum of twelve shares is close enough to a normal distribution with mean six and
        // variance one.
        let normal = (0..12).map(|_| numbers.share()).sum::<f64>() - 6.0;
        let latency_us = (20_000.0 * (0.6 * normal).exp()) as u64;
        let (outcome, status) = match numbers.share() {
            ..0.002 => (Outcome::Failure(FailureKind::Status), 503),
            ..0.042 => (Outcome::ClientError, 404),
            _ => (Outcome::Success, 200),
        };
        Ending {
            outcome,
            status: Some(status),
            latency_us: Some(latency_us),
            evidence: cutover_core::Evidence::Compared,
        }
    };
    (0..count).map(|_| ending()).collect()
}

const FILE: &str = r#"
[backend.legacy]
servers = ["127.0.0.1:1"]
[backend.new]
servers = ["127.0.0.1:2"]
[[rollout]]
id = "search"
match = { path = "/search" }
percent = 50
key = ["header:x-user-id"]
[[rollout]]
id = "account"
match = { path = "/account" }
percent = 50
key = ["header:x-user-id"]
[[rollout]]
id = "checkout"
match = { path = "/checkout" }
percent = 50
key = ["header:x-user-id"]
"#;

/// Returns a file with `rollouts` rollouts, for a process with its own ports that keeps its state
/// in this directory.
pub fn file_of(rollouts: usize, folder: &Path) -> String {
    let head = format!(
        "[listen]\nhttp = [\"127.0.0.1:0\"]\n[admin]\naddress = \
         \"127.0.0.1:0\"\n[state]\ndirectory = {:?}\n[log]\naccess = \
         \"off\"\n[backend.legacy]\nservers = [\"127.0.0.1:9\"]\n[backend.new]\nservers = \
         [\"127.0.0.1:9\"]\n",
        folder.join("state")
    );
    (0..rollouts).fold(head, |text, number| {
        format!(
            "{text}[[rollout]]\nid = \"service-{number}\"\nmatch = {{ path = \
             \"/service-{number}\" }}\npercent = 5\nkey = [\"header:x-user-id\"]\n"
        )
    })
}

/// Parses the text of a file of this crate.
///
/// # Panics
/// Panics when the text is not valid.
pub fn settings(text: &str) -> Settings {
    cutover_config::parse("benchmark.toml", text, &NoFiles)
        .unwrap_or_else(|problems| panic!("the file of the benchmark is not valid: {problems}"))
}

/// Returns a router with three rollouts, of which the third matches [`PATH`], without an access
/// log.
pub fn router() -> (Router, Reader) {
    gate_with(AccessLog::off())
}

/// Returns the router of three rollouts with an access log in JSON. A separate thread counts its
/// bytes and discards them.
///
/// # Panics
/// Panics when the system refuses the thread.
pub fn gate_logging() -> (Router, Reader, Arc<AtomicU64>) {
    struct Nowhere(Arc<AtomicU64>);
    impl std::io::Write for Nowhere {
        fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
            self.0.fetch_add(text.len() as u64, Ordering::Relaxed);
            Ok(text.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let bytes: Arc<AtomicU64> = Arc::default();
    let (log, _) = AccessLog::start(
        LogFormat::Json,
        Out::to(Box::new(Nowhere(Arc::clone(&bytes)))),
        [7; 16],
    )
    .expect("a thread starts");
    let (router, reader) = gate_with(log);
    (router, reader, bytes)
}

fn gate_with(access_log: AccessLog) -> (Router, Reader) {
    let settings = settings(FILE);
    let limits = Limits {
        max_header_bytes: settings.listen.max_header_bytes,
        max_body: settings.listen.max_body,
    };
    let plane = plane(settings.rollouts.clone());
    let published = Arc::new(Published::new(Snapshot::new(
        plane.split(),
        Arc::new(Common::new(settings, None)),
        None,
    )));
    let (recorder, reader) = recorder();
    (
        Router::new(published, recorder, access_log, Traces::default(), limits),
        reader,
    )
}

/// Returns the connection on which all requests are received.
pub fn conn() -> Conn {
    Conn::new(IpAddr::from([192, 0, 2, 7]), false, false)
}

/// A request in memory, as an engine would hold it.
#[derive(Clone, Debug)]
pub struct MemoryHead {
    headers: HeaderMap,
    query: Option<String>,
    raw: Vec<u8>,
}

impl MemoryHead {
    /// Creates the request of a browser for this user.
    pub fn of_user(user: &str) -> Self {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("host", HOST),
            (
                "user-agent",
                "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
            ),
            (
                "accept",
                "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
            ),
            ("accept-language", "en-GB,en;q=0.5"),
            ("accept-encoding", "gzip, deflate, br"),
            ("cookie", "theme=dark; session=2f1c9d0e7b6a"),
            ("x-user-id", user),
        ] {
            headers.insert(
                HeaderName::from_static(name),
                HeaderValue::from_str(value).expect("visible ASCII"),
            );
        }
        let lines: String = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}\r\n", value.to_str().expect("visible ASCII")))
            .collect();
        Self {
            headers,
            query: None,
            raw: format!("GET {PATH} HTTP/1.1\r\n{lines}\r\n").into_bytes(),
        }
    }

    /// Returns the headers that an engine would send on, with room for those of Cutover.
    pub fn copied(&self) -> HeaderMap {
        let mut copy = self.headers.clone();
        copy.reserve(OUR_HEADERS);
        copy
    }

    /// Adds this query to the request.
    pub fn with_query(self, query: &str) -> Self {
        Self {
            query: Some(query.to_owned()),
            ..self
        }
    }

    /// Adds one more header to the request.
    ///
    /// # Panics
    /// Panics when the header is not valid.
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.append(
            HeaderName::from_static(name),
            HeaderValue::from_str(value).expect("visible ASCII"),
        );
        self
    }
}

impl Head for MemoryHead {
    fn method(&self) -> &Method {
        &Method::GET
    }

    fn path(&self) -> &str {
        PATH
    }

    fn query(&self) -> Option<&str> {
        self.query.as_deref()
    }

    fn requires_host(&self) -> bool {
        true
    }

    fn raw(&self) -> &[u8] {
        &self.raw
    }

    fn size(&self) -> usize {
        self.raw.len()
    }

    fn first(&self, name: &HeaderName) -> Option<&[u8]> {
        self.headers.get(name).map(HeaderValue::as_bytes)
    }

    fn each<'a>(&'a self, name: &HeaderName, found: &mut dyn FnMut(&'a [u8])) {
        self.headers
            .get_all(name)
            .iter()
            .for_each(|value| found(value.as_bytes()));
    }

    fn fields<'a>(&'a self, found: &mut impl FnMut(&'a [u8], &'a [u8])) {
        self.headers
            .iter()
            .for_each(|(name, value)| found(name.as_str().as_bytes(), value.as_bytes()));
    }
}

/// Passes one request through the whole router, from its head to its counters. The backend answers
/// after 20 ms on the clock that is passed in.
///
/// # Panics
/// Panics when the router would not forward the request, because the figure would then measure
/// something else.
pub fn pass(router: &Router, conn: &Conn, head: &MemoryHead, edits: &mut HeaderMap) {
    let started = Mono::from_micros(1_000_000);
    let (mut exchange, step) = router.request(head, conn, started);
    assert_eq!(step, Step::Forward);
    router.edits(&exchange, head, conn, edits);
    let ended = started.forward(Duration::from_millis(20));
    router.answered(&mut exchange, 200, None, head.path(), true, ended);
    router.client_edits(&exchange, edits);
    router.done(
        exchange,
        head.path(),
        End {
            status: Some(200),
            bytes_in: 0,
            bytes_out: 1024,
            attempts: 1,
            ..End::default()
        },
        || ended,
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use cutover_core::{Reason, Side};

    #[test]
    fn the_third_rollout_decides_and_the_list_is_a_separate_population() {
        let split = split();
        assert_eq!(split.rollout_for(HOST, PATH, "GET"), Some(2));
        let reasons = |seed, reason| {
            users(seed).iter().all(|user| {
                decide_one(&split, HOST, PATH, "GET", user.as_bytes())
                    .is_some_and(|decision| decision.reason == reason)
            })
        };
        assert!(reasons(REQUESTING, Reason::Bucket));
        assert!(reasons(LISTED, Reason::AlwaysNew));
    }

    #[test]
    fn endings_look_like_a_healthy_backend_with_a_slow_tail() {
        let endings = endings(100_000, 7);
        let mut latencies: Vec<u64> = endings
            .iter()
            .filter_map(|ending| ending.latency_us)
            .collect();
        latencies.sort_unstable();
        assert!(
            (19_000..21_000).contains(&latencies[50_000]),
            "p50 {}",
            latencies[50_000]
        );
        assert!(
            (70_000..90_000).contains(&latencies[99_000]),
            "p99 {}",
            latencies[99_000]
        );
        let failed = endings
            .iter()
            .filter(|ending| matches!(ending.outcome, Outcome::Failure(_)))
            .count();
        assert!((100..300).contains(&failed), "{failed}");
    }

    #[test]
    fn a_pass_is_counted_on_the_side_shown_to_the_backend() {
        let (router, mut reader) = router();
        let head = MemoryHead::of_user("somebody");
        let mut edits = head.copied();
        pass(&router, &conn(), &head, &mut edits);
        reader.read();
        let told = edits
            .get("x-cutover-backend")
            .and_then(|side| side.to_str().ok());
        let slot = reader
            .slot(cutover::shared::recorder::slot_of(2))
            .expect("the third rollout has traffic");
        let counted = Side::BOTH
            .into_iter()
            .find(|&side| slot.totals[side].counts.requests == 1)
            .map(Side::name);
        assert_eq!(counted, told);
        assert_eq!(reader.in_flight(), 0);
    }
}
