//! The proxy's own logic about one request: identify, decide, edit, classify, record. It is one
//! type, synchronous, without sockets and without pingora. Time is an argument.
//!
//! | call, in this order | what it does |
//! |---|---|
//! | `request` | makes the [`Exchange`] and the [`Step`]: forward, answer or hold |
//! | `look`, `decide`, `begin` | the three parts of it; the lane may decline after `look` |
//! | `edits` | sets the headers to the backend |
//! | `attempt`, `attempt_ended` | name the server that is used, and the result |
//! | `sent` | the backend has the whole request, so the wait for its answer begins |
//! | `answered` | the first final answer: it goes to the client, or legacy answers instead |
//! | `rescue` | a failing request of new that legacy may answer is moved to legacy, once |
//! | `client_edits` | sets the headers to the client |
//! | `is_a_websocket`, `grpc_status` | what an answer turned out to be |
//! | `failed` | the reply to the client when the backend did not answer |
//! | `done` | exactly once: outcome, counters, one line of the access log |
//! | `refused` | an unreadable request: counters and log line, without an [`Exchange`] |
//! | `park`, `unparked` | after `Step::Hold`: the request is held, then decided again |
//!
//! Maintenance is checked before the decision. A request that maintenance answers is attributed to
//! no backend and is no evidence. Only a tester with a valid token passes it.
//!
//! Requests that match no rollout go to the default backend and are counted under no rollout. They
//! are no evidence about any side.

mod edits;
mod ending;
mod exchange;
mod failover;
pub mod hold_queue;
mod maintenance;
mod route;
#[cfg(test)]
pub(crate) mod testing;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use ahash::RandomState;
use cutover_core::{Maintenance, Mono, Requester};
use http::Method;
use rand::Rng;

use crate::gateway::message::fields::Fields;
use crate::gateway::message::forward;
use crate::gateway::message::head::{Conn, Head};
use crate::gateway::message::identity::{self};
use crate::gateway::message::reply::Reply;
use crate::gateway::message::trace::Trace;
use crate::shared::published::{Published, Snapshot};
use crate::shared::recorder::Recorder;
use crate::shared::refusals::Refusals;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::request_summary::RequestId;
use crate::telemetry::traces::Traces;
pub use ending::End;
pub use exchange::Exchange;
pub use failover::{ATTEMPTS_ON_A_SIDE, AfterResponse, Blame, Failure, Moved, Sent, is_safe};
pub use route::is_trusted;
use route::new_request_id;

/// The number of interim answers that a backend may send before its final answer.
pub const MAX_INTERIM: u8 = 32;

/// The router. There is one per process.
#[derive(Debug)]
pub struct Router {
    published: Arc<Published>,
    recorder: Arc<Recorder>,
    access_log: AccessLog,
    traces: Traces,
    limits: Limits,
    refusals: Arc<Refusals>,
    /// The hasher that distinguishes users and networks in memory. Its values cannot be predicted
    /// from outside.
    hasher: RandomState,
}

/// The limits on one request.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest request head in bytes.
    pub max_header_bytes: usize,
    /// The largest request body in bytes.
    pub max_body: u64,
}

/// The configuration in force and the content of a request head, before anything is decided.
#[derive(Debug)]
pub struct RequestView<'a> {
    snapshot: Arc<Snapshot>,
    /// The fields of the head.
    pub fields: Fields<'a>,
}

/// The next step for a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Send it to [`Exchange::backend`].
    Forward,
    /// Answer it with this reply.
    Reply(Reply),
    /// Hold it, and tell [`Router::unparked`] how that ended. A request that cannot wait gets this
    /// reply.
    Hold(Reply),
}

/// The readable part of a request that is refused before it is decided.
#[derive(Clone, Debug)]
pub struct Sketch {
    /// The method, or `-` if it is unreadable.
    pub method: Method,
    /// The path without its query, or `-` if it is unreadable.
    pub path: Box<str>,
}

impl Default for Sketch {
    fn default() -> Self {
        Self {
            method: Method::from_bytes(b"-").unwrap_or_default(),
            path: "-".into(),
        }
    }
}

impl Router {
    /// Creates a router that reads what is published and counts into the recorder.
    pub fn new(
        published: Arc<Published>,
        recorder: Arc<Recorder>,
        access_log: AccessLog,
        traces: Traces,
        limits: Limits,
    ) -> Self {
        Self {
            published,
            recorder,
            access_log,
            traces,
            limits,
            refusals: Arc::default(),
            hasher: RandomState::with_seeds(
                rand::rng().random(),
                rand::rng().random(),
                rand::rng().random(),
                rand::rng().random(),
            ),
        }
    }

    /// Accepts a request: identifies its user and decides where it goes.
    pub fn request(&self, head: &impl Head, conn: &Conn, now: Mono) -> (Exchange, Step) {
        let (mut exchange, step) = self.decide(self.look(head), head, conn, now);
        if step == Step::Forward {
            self.begin(&mut exchange);
        }
        (exchange, step)
    }

    /// Performs the first part of [`Router::request`]: reads the configuration in force and the
    /// head.
    pub fn look<'a>(&self, head: &'a impl Head) -> RequestView<'a> {
        let snapshot = self.published.load();
        let fields = Fields::of(head, &snapshot.common.key_headers);
        RequestView { snapshot, fields }
    }

    /// Performs the second part: decides where the request goes. A forwarded request is not counted
    /// yet, so that an engine may still leave it to another one.
    pub fn decide(
        &self,
        look: RequestView<'_>,
        head: &impl Head,
        conn: &Conn,
        now: Mono,
    ) -> (Exchange, Step) {
        let RequestView { snapshot, fields } = look;
        let common = Arc::clone(&snapshot.common);
        let client = forward::client_address(head, conn, |address| {
            is_trusted(&common.settings.listen.trusted_proxies, address)
        });
        let trace = Trace::of(
            &fields,
            conn.trusted,
            self.traces.samples(common.settings.traces.as_ref()),
        );
        let request_id = fields
            .request_id
            .filter(|_| conn.trusted)
            .map_or_else(|| new_request_id(&trace), |id| RequestId::Theirs(id.into()));
        let mut exchange = Exchange {
            rollout: None,
            decision: None,
            backend: Arc::clone(&common.default_backend),
            started: now,
            answered: None,
            status: None,
            failure: None,
            client,
            request_id,
            trace,
            has_forged: fields.has_forged,
            may_last: fields.may_last,
            set_cookie: None,
            method: head.method().clone(),
            user: None,
            in_flight: None,
            who: Requester::default(),
            is_sent: false,
            moved: None,
            failed_on_new: None,
            said: None,
            maintenance: Maintenance::Off,
            parked: Duration::ZERO,
            held: None,
            refused: None,
            snapshot,
        };
        let step = match self.host_of(head, &fields, &common.key_headers) {
            Err(reply) => refuse(&mut exchange, reply),
            Ok(host) => self.route(&mut exchange, head, &fields, conn, host, now),
        };
        (exchange, step)
    }

    /// Performs the third part: counts a forwarded request as in flight.
    pub fn begin(&self, exchange: &mut Exchange) {
        exchange.in_flight = Some(self.recorder.begin(
            exchange.slot(),
            exchange.side(),
            exchange.decision.map(|decision| decision.reason),
        ));
    }

    /// Returns how many requests were refused, by reason.
    pub fn refusals(&self) -> &Arc<Refusals> {
        &self.refusals
    }
}

/// Records the answer to a request that is itself invalid.
fn refuse(exchange: &mut Exchange, reply: Reply) -> Step {
    exchange.refused = Some(Box::new(reply));
    Step::Reply(reply)
}

/// Returns the path on which rules are matched: percent-decoded, without empty and dot segments.
/// The bytes forwarded are the client's own.
pub fn normalised(path: &str) -> Cow<'_, str> {
    let bytes = path.as_bytes();
    let odd = |(&byte, &next): (&u8, &u8)| {
        u8::from(byte == b'%')
            | (u8::from(byte == b'/') & (u8::from(next == b'/') | u8::from(next == b'.')))
    };
    // A percent sign at the end escapes nothing.
    if bytes
        .iter()
        .zip(bytes.get(1..).unwrap_or_default())
        .map(odd)
        .fold(0, |any, odd| any | odd)
        == 0
    {
        return Cow::Borrowed(path);
    }
    let decoded = identity::decode(path, false);
    let text = String::from_utf8_lossy(&decoded);
    let mut segments: Vec<&str> = Vec::new();
    for segment in text.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    Cow::Owned(format!("/{}", segments.join("/")))
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;
    use crate::gateway::message::head::Edits;
    use crate::gateway::router::ending::outcome;
    use crate::gateway::router::hold_queue::HoldOutcome;
    use crate::shared::recorder::Halted;
    use crate::shared::recorder::UNMATCHED;
    use cutover_core::Decision;
    use cutover_core::FailureKind;
    use cutover_core::Outcome;
    use cutover_core::Reason;
    use cutover_core::Side;
    use http::HeaderName;

    use crate::shared::recorder::Reader;

    use std::time::Duration;

    fn router() -> (Router, Reader) {
        World::new().router()
    }

    fn decision(router: &Router, head: &TestHead) -> Decision {
        let (exchange, step) = router.request(head, &conn(), Mono::default());
        assert_eq!(step, Step::Forward);
        exchange.decision.expect("a rollout matched")
    }

    fn refused(router: &Router, head: &TestHead) -> u16 {
        match router.request(head, &conn(), Mono::default()).1 {
            Step::Forward | Step::Hold(_) => panic!("not refused"),
            Step::Reply(reply) => reply.status.as_u16(),
        }
    }

    #[test]
    fn the_bucket_decides_the_side_and_the_backend_is_told() {
        let (router, _) = router();
        let head = head("/checkout/1")
            .with("x-user-id", "user-1")
            .with("x-cutover-backend", "forged")
            .with("x-cutover-override", "new wrong")
            .with("x-forwarded-for", "6.6.6.6");
        let (exchange, step) = router.request(&head, &conn(), Mono::default());
        assert_eq!(step, Step::Forward);
        let bucket = cutover_core::Salt::new("checkout").bucket(b"user-1");
        let decision = exchange.decision.expect("a rollout matched");
        assert_eq!(decision.bucket, Some(bucket));
        let side = if bucket.number() < 50_000 {
            Side::New
        } else {
            Side::Legacy
        };
        assert_eq!((decision.side, decision.reason), (side, Reason::Bucket));
        let mut edited = TestHead::get("/");
        edited.headers.clone_from(&head.headers);
        router.edits(&exchange, &head, &conn(), &mut edited);
        let value = |name: &str| {
            edited
                .first(&HeaderName::from_bytes(name.as_bytes()).expect("a name"))
                .map(|value| String::from_utf8_lossy(value).into_owned())
        };
        assert_eq!(value("x-cutover-backend").as_deref(), Some(side.name()));
        assert_eq!(value("x-cutover-rollout").as_deref(), Some("checkout"));
        assert_eq!(value("x-cutover-bucket"), Some(bucket.to_string()));
        assert_eq!(value("x-cutover-reason").as_deref(), Some("bucket"));
        assert_eq!(value("x-cutover-override"), None);
        assert_eq!(value("x-forwarded-for").as_deref(), Some("192.0.2.7"));
        assert_eq!(
            value("x-forwarded-host").as_deref(),
            Some("shop.example:8080")
        );
        assert_eq!(value("x-request-id").map(|id| id.len()), Some(32));
        assert_eq!(value("traceparent").map(|id| id.len()), Some(55));
    }

    #[test]
    fn forged_headers_are_removed_even_if_no_rollout_matches() {
        let (router, _) = router();
        let head = head("/")
            .with("x-cutover-bucket", "1")
            .with("x-cutover-reason", "override");
        let (exchange, step) = router.request(&head, &conn(), Mono::default());
        assert_eq!((step, exchange.decision), (Step::Forward, None));
        let mut edited = TestHead::get("/");
        edited.headers.clone_from(&head.headers);
        router.edits(&exchange, &head, &conn(), &mut edited);
        assert!(
            !edited
                .headers
                .iter()
                .any(|(name, _)| name.as_str().starts_with("x-cutover-"))
        );
    }

    #[test]
    fn a_tester_with_the_right_token_chooses_the_side() {
        let (router, _) = router();
        for side in Side::BOTH {
            let right = head("/checkout")
                .with("x-user-id", "u")
                .with("x-cutover-override", &format!("{side} sesame"));
            assert_eq!(
                (
                    decision(&router, &right).side,
                    decision(&router, &right).reason
                ),
                (side, Reason::Override)
            );
        }
        for wrong in ["new wrong", "new", "sesame", "both sesame", "new sesame2"] {
            assert_eq!(
                decision(
                    &router,
                    &head("/checkout")
                        .with("x-user-id", "u")
                        .with("x-cutover-override", wrong)
                )
                .reason,
                Reason::Bucket,
                "{wrong}"
            );
        }
    }

    #[test]
    fn ambiguous_requests_are_refused() {
        let (router, _) = router();
        assert_eq!(
            refused(
                &router,
                &head("/checkout")
                    .with("x-user-id", "a")
                    .with("x-user-id", "b")
            ),
            400
        );
        assert_eq!(
            refused(
                &router,
                &head("/checkout")
                    .with("x-user-id", "a")
                    .with("connection", "close, X-User-ID")
            ),
            400
        );
        assert_eq!(
            refused(&router, &TestHead::get("/checkout").with("x-user-id", "a")),
            400
        );
        assert_eq!(
            refused(
                &router,
                &head("/checkout")
                    .with("x-user-id", "a")
                    .with("content-length", "1025")
            ),
            413
        );
        assert_eq!(
            refused(
                &router,
                &head("/checkout").with("x-padding", &"p".repeat(1024))
            ),
            431
        );
    }

    #[test]
    fn a_rule_matches_the_path_as_the_backend_will_read_it() {
        let (router, _) = router();
        for path in [
            "/checkout",
            "/checkout/1",
            "//checkout",
            "/%63heckout",
            "/x/../checkout",
            "/./checkout/",
        ] {
            assert!(
                router
                    .request(&head(path).with("x-user-id", "u"), &conn(), Mono::default())
                    .0
                    .rollout
                    .is_some(),
                "{path}"
            );
        }
        for path in ["/checkouts", "/checkout/../other", "/", "/other%2fcheckout"] {
            assert!(
                router
                    .request(&head(path).with("x-user-id", "u"), &conn(), Mono::default())
                    .0
                    .rollout
                    .is_none(),
                "{path}"
            );
        }
    }

    #[test]
    fn a_user_without_a_key_gets_a_cookie_and_is_routed_by_it_at_once() {
        let (router, _) = router();
        let (exchange, _) = router.request(&head("/mint"), &conn(), Mono::default());
        let cookie = exchange.set_cookie.clone().expect("a cookie is minted");
        let cookie = cookie.to_str().expect("ASCII");
        assert!(
            cookie.ends_with("; HttpOnly; SameSite=Lax; Path=/; Max-Age=31536000"),
            "{cookie}"
        );
        let first = exchange.decision.expect("decided");
        assert_eq!((first.side, first.reason), (Side::New, Reason::Bucket));
        let again = router
            .request(
                &head("/mint").with("cookie", cookie.split(';').next().expect("a pair")),
                &conn(),
                Mono::default(),
            )
            .0;
        assert_eq!(again.decision, Some(first));
        assert_eq!(again.set_cookie, None);
        let mut response = TestHead::get("/");
        router.client_edits(&exchange, &mut response);
        assert!(response.contains(&http::header::SET_COOKIE));
        assert_eq!(response.first(&forward::BACKEND), Some(&b"new"[..]));
    }

    #[test]
    fn only_backend_failures_are_attributed_to_the_backend() {
        let (router, mut reader) = router();
        let failure = |blame, kind| Some(Failure { blame, kind });
        for (status, failure, expected) in [
            (Some(200), None, Outcome::Success),
            (Some(404), None, Outcome::ClientError),
            (Some(503), None, Outcome::Failure(FailureKind::Status)),
            (
                Some(503),
                failure(Blame::Client, FailureKind::Reset),
                Outcome::Failure(FailureKind::Status),
            ),
            (
                Some(200),
                failure(Blame::Client, FailureKind::Reset),
                Outcome::Aborted,
            ),
            (
                None,
                failure(Blame::Client, FailureKind::Reset),
                Outcome::Aborted,
            ),
            (
                None,
                failure(Blame::Proxy, FailureKind::Protocol),
                Outcome::Ignored,
            ),
            (
                Some(200),
                failure(Blame::Backend, FailureKind::Truncated),
                Outcome::Failure(FailureKind::Truncated),
            ),
            (
                None,
                failure(Blame::Backend, FailureKind::Timeout),
                Outcome::Failure(FailureKind::Timeout),
            ),
            (None, None, Outcome::Ignored),
        ] {
            let head = head("/checkout").with("x-user-id", "u");
            let (mut exchange, _) = router.request(&head, &conn(), Mono::default());
            if let Some(status) = status {
                router.answered(&mut exchange, 103, None, "/", false, Mono::from_micros(1));
                router.answered(
                    &mut exchange,
                    status,
                    None,
                    "/",
                    false,
                    Mono::from_micros(5_000),
                );
            }
            if let Some(failure) = failure {
                router.failed(&mut exchange, failure, None);
            }
            assert_eq!(outcome(&exchange), expected, "{status:?} {failure:?}");
            router.done(
                exchange,
                "/",
                End {
                    status,
                    ..End::default()
                },
                || Mono::from_micros(9_000),
            );
        }
        reader.read();
        let slot = reader
            .slot(crate::shared::recorder::slot_of(0))
            .expect("traffic");
        let side = Side::BOTH
            .into_iter()
            .find(|&side| slot.totals[side].counts.requests > 0)
            .expect("one side has it all");
        let totals = &slot.totals[side];
        assert_eq!(
            (
                totals.counts.requests,
                totals.counts.failed(),
                totals.counts.client_errors,
                totals.counts.aborts
            ),
            (6, 4, 1, 2)
        );
        // Five answers after 5 ms, including the truncated one, and a timeout after 9 ms.
        assert_eq!(
            (totals.latencies.total(), totals.counts.latency_sum_us),
            (6, 34_000)
        );
        assert_eq!(reader.in_flight(), 0);
        assert_eq!(
            Duration::from_micros(totals.counts.latency_sum_us),
            Duration::from_millis(34)
        );
    }

    fn answered(router: &Router, head: &TestHead, now: Mono) -> Option<Reply> {
        let (exchange, step) = router.request(head, &conn(), now);
        let reply = match step {
            Step::Forward => None,
            Step::Reply(reply) | Step::Hold(reply) => Some(reply),
        };
        router.done(
            exchange,
            "/",
            End {
                status: reply.map(|reply| reply.status.as_u16()),
                ..End::default()
            },
            || now,
        );
        reply
    }

    #[test]
    fn read_only_mode_refuses_every_unsafe_method() {
        let mut world = World::new();
        world.maintain(Some("checkout"), Maintenance::ReadOnly, None);
        let (router, _) = world.router();
        for method in [Method::GET, Method::HEAD, Method::OPTIONS] {
            assert_eq!(
                answered(
                    &router,
                    &head("/checkout").with("x-user-id", "u").method(method),
                    Mono::default()
                ),
                None
            );
        }
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            let reply = answered(
                &router,
                &head("/checkout").with("x-user-id", "u").method(method),
                Mono::default(),
            )
            .expect("refused");
            assert_eq!(
                (reply.status.as_u16(), reply.code, reply.retry_after),
                (503, "maintenance", Some(30))
            );
            assert!(reply.message.contains("read-only"), "{}", reply.message);
        }
        assert_eq!(
            answered(
                &router,
                &head("/mint").method(Method::POST),
                Mono::default()
            ),
            None,
            "another rollout"
        );
        assert_eq!(
            answered(&router, &head("/").method(Method::POST), Mono::default()),
            None,
            "no rollout"
        );
    }

    #[test]
    fn maintenance_of_everything_includes_unmatched_requests() {
        let mut world = World::new();
        world.maintain(None, Maintenance::Full, None);
        let (router, _) = world.router();
        for path in ["/checkout", "/mint", "/"] {
            assert!(
                answered(&router, &head(path).with("x-user-id", "u"), Mono::default()).is_some(),
                "{path}"
            );
        }
        assert_eq!(
            refused(&router, &TestHead::get("/")),
            400,
            "what is wrong for every client comes first"
        );
    }

    #[test]
    fn retry_after_is_the_end_of_maintenance_if_there_is_one() {
        let mut world = World::new();
        world.maintain(None, Maintenance::Full, Some(Duration::from_secs(600)));
        let (router, _) = world.router();
        for (at_us, seconds) in [
            (0, 600),
            (1, 600),
            (599_000_001, 1),
            (600_000_000, 1),
            (700_000_000, 1),
        ] {
            let reply = answered(&router, &head("/"), Mono::from_micros(at_us)).expect("refused");
            assert_eq!(reply.retry_after, Some(seconds), "at {at_us} us");
        }
    }

    #[test]
    fn a_tester_with_the_right_token_passes_every_mode() {
        let mut world = World::new();
        for mode in [Maintenance::ReadOnly, Maintenance::Hold, Maintenance::Full] {
            world.maintain(None, mode, None);
            let (router, _) = world.router();
            let post = |token: &str| {
                head("/checkout")
                    .with("x-user-id", "u")
                    .with("x-cutover-override", token)
                    .method(Method::POST)
            };
            assert_eq!(
                decision(&router, &post("new sesame")).reason,
                Reason::Override
            );
            assert!(
                answered(&router, &post("new wrong"), Mono::default()).is_some(),
                "{}",
                mode.name()
            );
            assert_eq!(
                answered(
                    &router,
                    &head("/").with("x-cutover-override", "legacy sesame"),
                    Mono::default()
                ),
                None,
                "where no rollout matches, too"
            );
        }
    }

    #[test]
    fn a_request_answered_by_maintenance_is_attributed_to_no_backend() {
        let mut world = World::new();
        world.maintain(None, Maintenance::Full, None);
        let (router, mut reader) = world.router();
        for path in ["/checkout", "/checkout", "/"] {
            answered(
                &router,
                &head(path).with("x-user-id", "u"),
                Mono::from_micros(5),
            )
            .expect("refused");
        }
        reader.read();
        for (slot, refused) in [(crate::shared::recorder::slot_of(0), 2), (UNMATCHED, 1)] {
            let slot = reader.slot(slot).expect("traffic");
            assert_eq!(
                (slot.halted[Halted::Refused.index()], slot.parked()),
                (refused, 0)
            );
            for side in Side::BOTH {
                assert_eq!(
                    (
                        slot.totals[side].counts.requests,
                        slot.totals[side].code_classes.iter().sum::<u64>()
                    ),
                    (0, 0)
                );
            }
        }
    }

    #[test]
    fn a_held_request_is_decided_again_on_the_current_snapshot() {
        let mut world = World::new();
        world.maintain(Some("checkout"), Maintenance::Hold, None);
        let (router, mut reader) = world.router();
        let head = head("/checkout")
            .with("x-user-id", "u")
            .method(Method::POST);
        let park = || {
            let (mut exchange, step) = router.request(&head, &conn(), Mono::from_micros(1_000));
            assert!(matches!(step, Step::Hold(_)), "{step:?}");
            router.park(&mut exchange);
            exchange
        };
        let mut parked = |expected: u64| {
            reader.read();
            let slot = reader
                .slot(crate::shared::recorder::slot_of(0))
                .expect("traffic");
            assert_eq!(slot.parked(), expected);
            slot.clone()
        };
        let exchanges = [park(), park(), park(), park(), park()];
        parked(5);
        let [first, again, late, gone, cancelled] = exchanges;
        let after = |exchange, why| {
            router.unparked(exchange, &head, &conn(), why, Mono::from_micros(9_000))
        };

        let (again, step) = after(again, HoldOutcome::Released);
        assert!(
            matches!(step, Step::Hold(_)),
            "the mode is on again: {step:?}"
        );
        assert_eq!(again.parked(), Duration::from_millis(8));
        let (late, step) = after(late, HoldOutcome::Expired);
        let Step::Reply(reply) = step else {
            panic!("not answered: {step:?}")
        };
        assert_eq!((reply.status.as_u16(), reply.code), (503, "maintenance"));
        let (gone, _) = after(gone, HoldOutcome::Left);
        assert_eq!(outcome(&gone), Outcome::Aborted);
        drop((late, gone, cancelled));
        parked(1);

        world.maintain(Some("checkout"), Maintenance::Off, None);
        let (mut released, step) = after(first, HoldOutcome::Released);
        assert_eq!(
            (step, released.parked()),
            (Step::Forward, Duration::from_millis(8))
        );
        router.answered(
            &mut released,
            200,
            None,
            "/checkout",
            false,
            Mono::from_micros(10_000),
        );
        router.done(
            released,
            "/checkout",
            End {
                status: Some(200),
                ..End::default()
            },
            || Mono::from_micros(10_000),
        );
        let slot = parked(0);
        assert_eq!(slot.halted, [0, 5, 2, 1, 2]);
        let side = Side::BOTH
            .into_iter()
            .find(|&side| slot.totals[side].counts.requests > 0)
            .expect("it was served");
        assert_eq!(
            slot.totals[side].counts.latency_sum_us, 1_000,
            "the wait is no time of the backend"
        );
    }

    #[test]
    fn a_request_without_a_slot_is_refused_at_once() {
        let mut world = World::new();
        world.maintain(None, Maintenance::Hold, Some(Duration::from_secs(12)));
        let (router, mut reader) = world.router();
        let (exchange, _) = router.request(&head("/"), &conn(), Mono::default());
        let (exchange, step) = router.unparked(
            exchange,
            &head("/"),
            &conn(),
            HoldOutcome::NoPlace,
            Mono::default(),
        );
        let Step::Reply(reply) = step else {
            panic!("not answered: {step:?}")
        };
        assert_eq!(reply.retry_after, Some(12));
        router.done(exchange, "/", End::default(), Mono::default);
        reader.read();
        assert_eq!(
            reader.slot(UNMATCHED).expect("traffic").halted,
            [1, 0, 0, 0, 0]
        );
    }
}
