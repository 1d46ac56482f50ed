//! Our logic about one request: identify, decide, edit, classify, record. One type, synchronous,
//! without sockets and without pingora; time is an argument.
//!
//! ```text
//! request(head, conn, now) -> (Exchange, Step)      what one request remembers, and: forward it, answer it ourselves, or hold it; all three of
//!   look(head) -> Look                              one pass over the fields, before anything is decided or counted: the lane may still decline
//!   decide(look, head, conn, now) -> (Exchange, Step)
//!   begin(x)                                        counted as in flight
//! edits(x, head, conn, edits)                       headers to the backend
//! attempt(x, server, now) / attempt_ended(x, ..)    which server is asked, and what became of it: for the line and the span
//! sent(x, now)                                      all of the request is with the backend: the wait for its answer begins
//! answered(x, status, says, path, can_repeat, now) -> Answer  the first final answer of the backend: it goes to the client, or legacy is asked instead
//! client_edits(x, edits)                            headers to the client
//! is_a_websocket(x), grpc_status(x, code)           what an answer turned out to be
//! rescue(x, failure, ..) -> bool                    a failing request of new that legacy may answer goes there, once; so does a file that is missing on one side
//! failed(x, failure, refusal) -> Reply              what the client gets when the backend did not answer, or the body was at fault
//! done(x, path, end, clock)                         exactly once: outcome, counters, one line of access log
//! refused(sketch, conn, reply, ..)                 a request that cannot even be read: counters and line, without an `Exchange`
//! park(x) / unparked(x, head, conn, why, now)       after `Step::Hold`: it waits, and is decided anew, or answered
//! ```
//!
//! Maintenance stands before the decision. What it answers is nobody's request and nobody's
//! evidence; only a tester with a valid token passes it.
//!
//! Requests that match no rollout go to the default backend and are counted under no rollout; they
//! are evidence on nobody.

pub mod hold_queue;

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ahash::RandomState;
use cutover_core::routing::split::decide;
use cutover_core::{
    Anonymous, Ask, Bucket, Decision, Ending, Evidence, Failover, FailureKind, Maintenance, Mono,
    Outcome, PerSide, Reason, Side, Treatment, UserKey, Who,
};
use http::{HeaderName, HeaderValue, Method};
use rand::Rng;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::gateway::message::fields::Fields;
use crate::gateway::message::forward;
use crate::gateway::message::head::{Conn, Edits, Head, Value};
use crate::gateway::message::identity::{self, Identity, MINTED_COOKIE};
use crate::gateway::message::reply::Reply;
use crate::gateway::message::trace::Trace;
use crate::gateway::message::validate;
use crate::gateway::router::hold_queue::Unparked;
use crate::shared::failover_budget::Saving;
use crate::shared::published::{Published, Snapshot};
use crate::shared::recorder::{Halted, Held, InFlight, Origin, Recorder, UNMATCHED};
use crate::shared::refusals::{Refusal, Refusals};
use crate::telemetry::access_log::{AccessLog, Line, Refused, User};
use crate::telemetry::request_summary::{Ended, Engine, RequestId};
use crate::telemetry::traces::{Finished, Traces, hex_digits};
use crate::upstream::Backend;

/// When to ask again where maintenance has no end yet, in seconds.
const RETRY_AFTER: u32 = 30;

/// Attempts on one side: a server of the backend, and one more.
pub const ATTEMPTS_ON_A_SIDE: u8 = 2;

/// Interim answers that a backend may send before its answer.
pub const MAX_INTERIM: u8 = 32;

/// The gate. One per process.
#[derive(Debug)]
pub struct Gate {
    published: Arc<Published>,
    recorder: Arc<Recorder>,
    access_log: AccessLog,
    traces: Traces,
    limits: Limits,
    refusals: Arc<Refusals>,
    /// Tells users and networks apart in memory; nobody outside can foresee it.
    hasher: RandomState,
}

/// Limits on one request.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest request head in bytes.
    pub max_header_bytes: usize,
    /// The largest request body in bytes.
    pub max_body: u64,
}

/// What is in force, and what the head of a request says, before anything is decided.
#[derive(Debug)]
pub struct Look<'a> {
    snapshot: Arc<Snapshot>,
    /// What the head says.
    pub fields: Fields<'a>,
}

/// What to do with a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Send it to [`Exchange::backend`].
    Forward,
    /// Answer it.
    Reply(Reply),
    /// Park it, and tell [`Gate::unparked`] how that ended. What cannot wait is answered.
    Hold(Reply),
}

/// What to do with an answer of the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Give it to the client.
    Deliver,
    /// Throw it away and ask [`Exchange::backend`], which is the other side now.
    AskOtherSide,
}

/// How much of a request a backend may have seen when an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// There was no connection.
    Nothing,
    /// All or a part of it, and it can be sent once more.
    Repeatable,
    /// All or a part of it, and what was sent is not there any more.
    Gone,
}

/// Why a request was moved to the other side after it had been asked of the one decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// New failed, legacy saves it.
    Failover,
    /// The file was missing.
    Fallback,
}

impl Moved {
    /// The name used in headers and the access log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Failover => "failover",
            Self::Fallback => "fallback",
        }
    }
}

/// What one request remembers from its start to its end.
#[derive(Debug)]
pub struct Exchange {
    snapshot: Arc<Snapshot>,
    rollout: Option<usize>,
    decision: Option<Decision>,
    backend: Arc<Backend>,
    started: Mono,
    answered: Option<Mono>,
    status: Option<u16>,
    failure: Option<Failure>,
    client: IpAddr,
    request_id: RequestId,
    trace: Trace,
    set_cookie: Option<HeaderValue>,
    method: Method,
    /// Whether the client sent a header whose name is ours alone.
    has_forged: bool,
    may_last: bool,
    /// Where a line may be written: the user, as it is to be said.
    user: Option<User>,
    in_flight: Option<InFlight>,
    who: Who,
    /// Whether the backend has all of the request.
    is_sent: bool,
    /// Whether it has been moved to the side that was not decided.
    moved: Option<Moved>,
    /// The failure on new that legacy is asked about. What both sides fail at is evidence on
    /// neither. Boxed, because hardly any request has one.
    failed_on_new: Option<Box<Ending>>,
    /// What the backend says the answer was.
    said: Option<Said>,
    /// The maintenance that answers it or keeps it waiting.
    maintenance: Maintenance,
    /// How long it was parked before it was decided, which is no time of any backend.
    parked: Duration,
    /// While it is parked.
    held: Option<Held>,
    /// The answer to the request if the request itself is at fault. Boxed, because hardly any
    /// request has one.
    refused: Option<Box<Reply>>,
}

/// What can be read of a request that is refused before it is one.
#[derive(Clone, Debug)]
pub struct Sketch {
    /// The method; `-` where none can be read.
    pub method: Method,
    /// The path without its query; `-` where none can be read.
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

/// What a backend says an answer was, in the header that its rollout names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Success,
    Failure,
    Ignore,
}

impl Said {
    /// What these bytes say; nothing if they are no such word.
    fn of(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.trim_ascii();
        let words = [
            (&b"success"[..], Self::Success),
            (b"failure", Self::Failure),
            (b"ignore", Self::Ignore),
        ];
        words
            .into_iter()
            .find_map(|(word, said)| bytes.eq_ignore_ascii_case(word).then_some(said))
    }
}

/// How an attempt went wrong, as an engine sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Whose fault it is.
    pub blame: Blame,
    /// What happened.
    pub kind: FailureKind,
}

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The backend's.
    Backend,
    /// The client's.
    Client,
    /// Ours.
    Proxy,
}

/// What an engine knows at the end of a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct End {
    /// The status the client got, if any.
    pub status: Option<u16>,
    /// Body bytes from the client.
    pub bytes_in: u64,
    /// Body bytes to the client.
    pub bytes_out: u64,
    /// The address of the server that was asked.
    pub server: Option<SocketAddr>,
    /// How many attempts were made.
    pub attempts: u8,
    /// What moved its bytes.
    pub engine: Engine,
}

impl Exchange {
    /// Where the request goes.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// Where a rollback of its rollout finds it: the recorder slot and the revision it was decided
    /// under. `None` unless it is one that a rollback concerns.
    pub fn stays_on_new(&self) -> Option<(usize, u64)> {
        let decided = self
            .decision
            .is_some_and(|decision| decision.reason != Reason::Override);
        (decided && self.side() == Side::New).then(|| (self.slot(), self.snapshot.split.revision))
    }

    /// Whether the backend has all of the request.
    pub fn is_sent(&self) -> bool {
        self.is_sent
    }

    /// The rollout that takes it, if one does.
    pub fn rollout(&self) -> Option<&Arc<str>> {
        self.rollout
            .map(|at| &self.snapshot.split.rollouts[at].rule.id)
    }

    /// Whether its head says that it may become, or be answered by, something that lasts.
    pub fn may_last(&self) -> bool {
        self.may_last
    }

    /// Whether every server that it may be sent to, on either side, speaks HTTP/1.1 without TLS.
    pub fn is_plain(&self) -> bool {
        self.rollout
            .map_or(self.snapshot.common.is_default_plain, |at| {
                self.snapshot.prepared[at].is_plain
            })
    }

    /// When it began.
    pub fn started(&self) -> Mono {
        self.started
    }

    /// Its method.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// How long it was parked so far.
    pub fn parked(&self) -> Duration {
        self.parked
    }

    fn slot(&self) -> usize {
        self.rollout
            .map_or(UNMATCHED, |at| self.snapshot.prepared[at].slot)
    }

    /// The side that is asked now.
    fn side(&self) -> Side {
        let decided = self.decision.map_or(Side::Legacy, |decision| decision.side);
        if self.moved.is_some() {
            decided.other()
        } else {
            decided
        }
    }

    /// The header in which the backend says what its answer was, if its rollout names one.
    pub fn outcome_header(&self) -> Option<&HeaderName> {
        self.rollout
            .and_then(|at| self.snapshot.prepared[at].outcome_header.as_ref())
    }

    /// What comes of it is evidence of. Whoever was moved to the side that is asked now is no fair
    /// sample of it.
    fn evidence(&self) -> Evidence {
        if self.moved.is_some() {
            Evidence::None
        } else {
            self.decision
                .map_or(Evidence::None, |decision| decision.evidence())
        }
    }

    fn epoch(&self) -> u64 {
        self.rollout
            .map_or(0, |at| self.snapshot.split.rollouts[at].epoch)
    }
}

impl Gate {
    /// A gate that reads what is published and counts into the recorder.
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

    /// Takes a request in: who is it, and where does it go?
    pub fn request(&self, head: &impl Head, conn: &Conn, now: Mono) -> (Exchange, Step) {
        let (mut exchange, step) = self.decide(self.look(head), head, conn, now);
        if step == Step::Forward {
            self.begin(&mut exchange);
        }
        (exchange, step)
    }

    /// The first part of [`Gate::request`]: what is in force, and what the head says.
    pub fn look<'a>(&self, head: &'a impl Head) -> Look<'a> {
        let snapshot = self.published.load();
        let fields = Fields::of(head, &snapshot.common.key_headers);
        Look { snapshot, fields }
    }

    /// The second: where it goes. Nothing is counted of a request that is forwarded, so that an
    /// engine may still leave it to another one.
    pub fn decide(
        &self,
        look: Look<'_>,
        head: &impl Head,
        conn: &Conn,
        now: Mono,
    ) -> (Exchange, Step) {
        let Look { snapshot, fields } = look;
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
            who: Who::default(),
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

    /// The third: a request that is forwarded is in flight now.
    pub fn begin(&self, exchange: &mut Exchange) {
        exchange.in_flight = Some(self.recorder.begin(
            exchange.slot(),
            exchange.side(),
            exchange.decision.map(|decision| decision.reason),
        ));
    }

    /// The host that a request asks for, or what is wrong with the request whoever sent it.
    fn host_of<'a>(
        &self,
        head: &'a impl Head,
        fields: &Fields<'a>,
        key_headers: &[HeaderName],
    ) -> Result<&'a str, Reply> {
        if head.size() > self.limits.max_header_bytes {
            return Err(Reply::HEAD_TOO_LARGE);
        }
        let host = validate::host_of(head, fields)?;
        if fields.connection.is_some() && identity::nominates_a_key_header(head, key_headers) {
            return Err(Reply::refused(
                Refusal::KeyNominated,
                "`Connection` may not name a header that identifies the user",
            ));
        }
        let length = fields
            .length
            .and_then(|length| std::str::from_utf8(length).ok()?.parse::<u64>().ok());
        if length.is_some_and(|length| length > self.limits.max_body) {
            Err(Reply::TOO_LARGE)
        } else {
            Ok(host)
        }
    }

    fn route(
        &self,
        exchange: &mut Exchange,
        head: &impl Head,
        fields: &Fields<'_>,
        conn: &Conn,
        host: &str,
        now: Mono,
    ) -> Step {
        let snapshot = Arc::clone(&exchange.snapshot);
        let path = normalised(head.path());
        let at = snapshot
            .split
            .rollout_for(host, &path, head.method().as_str());
        let override_to = override_of(
            fields.override_to,
            snapshot
                .common
                .settings
                .routing
                .override_token_sha256
                .as_ref(),
        );
        if override_to.is_none()
            && let Some(step) = self.closed(exchange, at, head.method(), now)
        {
            return step;
        }
        let Some(at) = at else {
            return if exchange.backend.is_available() {
                Step::Forward
            } else {
                Step::Reply(Reply::NO_SERVER)
            };
        };
        let (rollout, prepared) = (&snapshot.split.rollouts[at], &snapshot.prepared[at]);
        let mints = rollout.rule.anonymous == Anonymous::Cookie;
        let minted;
        let found;
        let key = match identity::identify(head, &prepared.keys, exchange.client, mints) {
            Identity::Refused(why) => {
                return refuse(exchange, Reply::refused(Refusal::AmbiguousUser, why));
            }
            Identity::Key(key, _) => {
                found = key;
                UserKey::Known(&found)
            }
            Identity::Nobody => match rollout.rule.anonymous {
                Anonymous::Legacy => UserKey::None,
                Anonymous::Random => UserKey::Random(Bucket::of_hash(rand::rng().random())),
                Anonymous::Cookie => {
                    minted = hex(rand::rng().random::<u128>());
                    exchange.set_cookie = set_cookie(&minted, is_secure(head, conn));
                    UserKey::Known(minted.as_bytes())
                }
            },
        };
        // Nearly always there is a server, so the side is looked at first and the other one only if
        // it has none.
        let mut decision = decide(
            rollout,
            &Ask {
                key,
                override_to,
                available: PerSide {
                    legacy: true,
                    new: true,
                },
            },
        );
        let mut is_available = prepared.backends[decision.side].is_available();
        if !is_available {
            let available = snapshot.available(at);
            decision = decide(
                rollout,
                &Ask {
                    key,
                    override_to,
                    available,
                },
            );
            is_available = available[decision.side];
        }
        exchange.rollout = Some(at);
        exchange.decision = Some(decision);
        exchange.who = self.who(key, exchange.client);
        if let UserKey::Known(key) = key {
            exchange.user = self.access_log.user(&snapshot.common.settings.log, key);
        }
        exchange.backend = Arc::clone(&prepared.backends[decision.side]);
        if is_available {
            return Step::Forward;
        }
        // Nobody was asked, but the users of this side get nothing: that is the backend's failure.
        exchange.failure = Some(Failure {
            blame: Blame::Backend,
            kind: FailureKind::Connect,
        });
        Step::Reply(Reply::NO_SERVER)
    }

    /// What maintenance does to a request that no tester sent; nothing if it passes.
    fn closed(
        &self,
        exchange: &mut Exchange,
        at: Option<usize>,
        method: &Method,
        now: Mono,
    ) -> Option<Step> {
        let mode = exchange.snapshot.split.restriction(at).mode;
        let treatment = mode.treats(is_safe(method));
        if treatment == Treatment::Pass {
            return None;
        }
        exchange.rollout = at;
        exchange.maintenance = mode;
        let reply = closed_reply(exchange, now);
        if treatment == Treatment::Hold {
            return Some(Step::Hold(reply));
        }
        self.recorder.halted(exchange.slot(), Halted::Refused);
        Some(Step::Reply(reply))
    }

    /// Counts a request as parked: there is a place for it.
    pub fn park(&self, exchange: &mut Exchange) {
        exchange.held = Some(self.recorder.hold(exchange.slot()));
    }

    /// A request is not parked any more: it is decided anew, on what is in force now and as if it
    /// had just come, or answered.
    pub fn unparked(
        &self,
        mut exchange: Exchange,
        head: &impl Head,
        conn: &Conn,
        why: Unparked,
        now: Mono,
    ) -> (Exchange, Step) {
        let held = exchange.held.take();
        let ended = |how: Halted| held.into_iter().for_each(|held| held.end(how));
        match why {
            Unparked::Released => {
                ended(Halted::Released);
                let parked = exchange.parked + now.since(exchange.started);
                let (anew, step) = self.request(head, conn, now);
                return (Exchange { parked, ..anew }, step);
            }
            Unparked::Expired => ended(Halted::Expired),
            Unparked::NoPlace => self.recorder.halted(exchange.slot(), Halted::Refused),
            Unparked::Left => {
                ended(Halted::Left);
                exchange.failure = Some(Failure {
                    blame: Blame::Client,
                    kind: FailureKind::Reset,
                });
            }
        }
        let reply = closed_reply(&exchange, now);
        (exchange, Step::Reply(reply))
    }

    /// Who asks: the user, or without a key the client's address; and the network, since made-up
    /// ids are cheap and addresses are not.
    fn who(&self, key: UserKey<'_>, client: IpAddr) -> Who {
        let user = match key {
            UserKey::Known(key) => self.hasher.hash_one(key),
            UserKey::Random(_) | UserKey::None => self.hasher.hash_one(client),
        };
        Who {
            user: user as u32,
            network: self.hasher.hash_one(forward::network_of(client)) as u32,
        }
    }

    /// All of the request has been sent: from now on the backend makes the client wait.
    pub fn sent(&self, exchange: &mut Exchange, now: Mono) {
        exchange.is_sent = true;
        let evidence = exchange.evidence();
        let counts = exchange.answered.is_none() && evidence.counts();
        if let Some(in_flight) = exchange.in_flight.as_mut().filter(|_| counts) {
            in_flight.waits(exchange.who, evidence, now);
        }
    }

    /// Headers to the backend: forged ones out, ours in.
    pub fn edits(
        &self,
        exchange: &Exchange,
        head: &impl Head,
        conn: &Conn,
        edits: &mut impl Edits,
    ) {
        if exchange.has_forged {
            edits.remove_all(forward::PREFIX);
        }
        if let (Some(at), Some(decision)) = (exchange.rollout, exchange.decision) {
            edits.set(&forward::BACKEND, Value::Word(exchange.side().name()));
            edits.set(
                &forward::ROLLOUT,
                Value::Shared(&exchange.snapshot.prepared[at].id),
            );
            edits.set(
                &forward::REASON,
                Value::Word(exchange.moved.map_or(decision.reason.name(), Moved::name)),
            );
            if let Some(bucket) = decision.bucket {
                edits.set(
                    &forward::BUCKET,
                    Value::Text(itoa::Buffer::new().format(bucket.number()).as_bytes()),
                );
            }
        }
        let host = head.host_value();
        let before = if conn.trusted {
            joined(head, &forward::FORWARDED_FOR)
        } else {
            None
        };
        forward::set_forwarding(edits, conn, host, before.as_deref());
        edits.set(
            &forward::REQUEST_ID,
            Value::Text(exchange.request_id.as_bytes()),
        );
        if let Some(traceparent) = exchange.trace.header() {
            edits.set(&forward::TRACEPARENT, Value::Text(&traceparent));
        }
        if exchange.trace.is_orphaned {
            edits.remove(&forward::TRACESTATE);
        }
    }

    /// The backend's first final answer, and what to do with it. Informational ones do not count.
    /// `says` is the value of [`Exchange::outcome_header`], `can_repeat` whether the whole request
    /// can be sent once more.
    pub fn answered(
        &self,
        exchange: &mut Exchange,
        status: u16,
        says: Option<&[u8]>,
        path: &str,
        can_repeat: bool,
        now: Mono,
    ) -> Answer {
        if status < 200 && status != 101 {
            return Answer::Deliver;
        }
        exchange.answered.get_or_insert(now);
        exchange.status = Some(status);
        exchange.said = says.and_then(Said::of);
        if exchange.failed_on_new.is_some() {
            let has_failed = matches!(outcome(exchange), Outcome::Failure(_));
            self.judge_failover(exchange, has_failed, path, now);
        }
        if let Some(spans) = &mut exchange.trace.spans {
            spans.answered(status);
        }
        if let Some(in_flight) = &mut exchange.in_flight {
            in_flight.is_answered();
        }
        let moves = match status {
            _ if !can_repeat => false,
            // The backend knows better than its status.
            _ if matches!(exchange.said, Some(Said::Success | Said::Ignore)) => false,
            500.. => self.rescue(
                exchange,
                Failure {
                    blame: Blame::Backend,
                    kind: FailureKind::Status,
                },
                path,
                Sent::Repeatable,
                now,
            ),
            404 => self.fall_back(exchange, path, now),
            _ => false,
        };
        if moves {
            Answer::AskOtherSide
        } else {
            Answer::Deliver
        }
    }

    /// An attempt at this server begins; what has been sent before is over.
    pub fn attempt(&self, exchange: &mut Exchange, server: SocketAddr, now: Mono) {
        let side = exchange.side();
        if let Some(spans) = &mut exchange.trace.spans {
            spans.attempt(side, server, now);
        }
    }

    /// The present attempt is over, with a failure of the server if it was one.
    pub fn attempt_ended(&self, exchange: &mut Exchange, failure: Option<FailureKind>, now: Mono) {
        if let Some(spans) = &mut exchange.trace.spans {
            spans.ended(failure, now);
        }
    }

    /// A request that failed on new before anything of the answer went out: whether legacy is asked
    /// now.
    pub fn rescue(
        &self,
        exchange: &mut Exchange,
        failure: Failure,
        path: &str,
        sent: Sent,
        now: Mono,
    ) -> bool {
        let (Some(at), true) = (exchange.rollout, failure.blame == Blame::Backend) else {
            return false;
        };
        if exchange.moved.is_some() || exchange.side() != Side::New || !exchange.evidence().counts()
        {
            return false;
        }
        let allowed = match exchange.snapshot.split.rollouts[at].rule.failover {
            Failover::Off => false,
            Failover::Connect => sent == Sent::Nothing,
            Failover::Safe => {
                sent == Sent::Nothing || (sent == Sent::Repeatable && is_safe(&exchange.method))
            }
        };
        if !allowed
            || !exchange.snapshot.prepared[at].backends[Side::Legacy].is_available()
            || !self.recorder.rescue(exchange.slot()).permit()
        {
            return false;
        }
        exchange.failure = Some(failure);
        self.move_over(exchange, Moved::Failover, path, now);
        true
    }

    /// A file that is missing on one side may be there on the other: assets are named by the build
    /// that needs them.
    fn fall_back(&self, exchange: &mut Exchange, path: &str, now: Mono) -> bool {
        let Some(at) = exchange.rollout.filter(|_| {
            exchange.moved.is_none() && matches!(exchange.method, Method::GET | Method::HEAD)
        }) else {
            return false;
        };
        let rule = &exchange.snapshot.split.rollouts[at].rule;
        // Empty for nearly everybody, and then the path is not even looked at.
        if rule.fallback_on_404.is_empty()
            || !rule.falls_back(&normalised(path))
            || !exchange.snapshot.prepared[at].backends[exchange.side().other()].is_available()
        {
            return false;
        }
        exchange.status = None;
        self.move_over(exchange, Moved::Fallback, path, now);
        true
    }

    /// Ends the request on the side that was decided, as what it was there, and begins it on the
    /// other.
    fn move_over(&self, exchange: &mut Exchange, moved: Moved, path: &str, now: Mono) {
        let latency_us = exchange.answered.unwrap_or(now).since(exchange.started);
        let ending = Ending {
            outcome: outcome(exchange),
            status: None,
            latency_us: Some(cutover_core::time::micros(latency_us)),
            evidence: exchange.evidence(),
        };
        let in_flight = exchange.in_flight.take();
        match moved {
            // It is over on new, but whether it is new's failure is told by legacy.
            Moved::Failover => {
                drop(in_flight);
                exchange.failed_on_new = Some(Box::new(ending));
            }
            Moved::Fallback => {
                let origin = Origin {
                    who: exchange.who,
                    path,
                    epoch: exchange.epoch(),
                    at: now,
                };
                in_flight
                    .into_iter()
                    .for_each(|in_flight| in_flight.end(&ending, &origin));
            }
        }
        exchange.moved = Some(moved);
        (
            exchange.answered,
            exchange.status,
            exchange.failure,
            exchange.said,
        ) = (None, None, None, None);
        exchange.in_flight = Some(self.recorder.begin(exchange.slot(), exchange.side(), None));
        if let Some(at) = exchange.rollout {
            exchange.backend =
                Arc::clone(&exchange.snapshot.prepared[at].backends[exchange.side()]);
        }
    }

    /// Legacy has said what it makes of a request that failed on new, or nobody will hear it. What
    /// fails on both is the request's own fault, or that of something both stand on.
    fn judge_failover(
        &self,
        exchange: &mut Exchange,
        has_legacy_failed: bool,
        path: &str,
        now: Mono,
    ) {
        let Some(ending) = exchange.failed_on_new.take() else {
            return;
        };
        let evidence = if has_legacy_failed {
            Evidence::None
        } else {
            ending.evidence
        };
        let origin = Origin {
            who: exchange.who,
            path,
            epoch: exchange.epoch(),
            at: now,
        };
        self.recorder.record(
            exchange.slot(),
            Side::New,
            &Ending {
                evidence,
                ..*ending
            },
            &origin,
        );
    }

    /// Headers to the client.
    pub fn client_edits(&self, exchange: &Exchange, edits: &mut impl Edits) {
        if let Some(name) = exchange.outcome_header() {
            edits.remove(name);
        }
        if let Some(cookie) = &exchange.set_cookie {
            edits.append(&forward::SET_COOKIE, Value::Shared(cookie));
            // A cache that everybody shares would hand the cookie, and with it the user, to others
            // (RFC 9111, section 7.3).
            edits.append(&forward::CACHE_CONTROL, Value::Word("private"));
        }
        if let (true, Some(at)) = (
            exchange.snapshot.common.settings.routing.expose_decision,
            exchange.rollout,
        ) {
            edits.set(&forward::BACKEND, Value::Word(exchange.side().name()));
            edits.set(
                &forward::ROLLOUT,
                Value::Shared(&exchange.snapshot.prepared[at].id),
            );
        }
    }

    /// The backend has switched protocols.
    pub fn is_a_websocket(&self, exchange: &mut Exchange) {
        if let Some(in_flight) = &mut exchange.in_flight {
            in_flight.is_a_websocket();
        }
    }

    /// What a gRPC backend says of a call whose answer began with 200, in the header or the
    /// trailer.
    pub fn grpc_status(&self, exchange: &mut Exchange, code: &[u8]) {
        match code {
            b"0" => {}
            // UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS: what a
            // server causes.
            b"2" | b"4" | b"12" | b"13" | b"14" | b"15" => {
                exchange.failure.get_or_insert(Failure {
                    blame: Blame::Backend,
                    kind: FailureKind::Status,
                });
            }
            // The others are the caller's, as 4xx are.
            _ => exchange.status = Some(400),
        }
    }

    /// Remembers a failure and says what the client gets, if it can still be told. `refusal` is the
    /// answer if the body of the request itself is at fault.
    pub fn failed(
        &self,
        exchange: &mut Exchange,
        failure: Failure,
        refusal: Option<Reply>,
    ) -> Reply {
        exchange.failure = Some(failure);
        if let Some(reply) = refusal {
            refuse(exchange, reply);
            return reply;
        }
        match failure.blame {
            Blame::Backend => match failure.kind {
                FailureKind::Timeout => Reply::TIMEOUT,
                FailureKind::Connect
                | FailureKind::Reset
                | FailureKind::Status
                | FailureKind::Truncated
                | FailureKind::Protocol => Reply::BAD_GATEWAY,
            },
            Blame::Client if failure.kind == FailureKind::Timeout => Reply::CLIENT_TIMEOUT,
            Blame::Client => Reply::BAD_REQUEST,
            Blame::Proxy => Reply::INTERNAL,
        }
    }

    /// Returns how many requests were refused, by reason.
    pub fn refusals(&self) -> &Arc<Refusals> {
        &self.refusals
    }

    /// Counts a request that was refused before it could be decided on, and writes its line. `end`
    /// says what the client got; `began` is when the request began.
    pub fn refused(
        &self,
        sketch: Sketch,
        conn: &Conn,
        reply: &Reply,
        end: End,
        began: Mono,
        now: Mono,
    ) {
        if let Some(why) = reply.refusal {
            self.refusals.add(why);
        }
        let snapshot = self.published.load();
        let Sketch { method, path } = sketch;
        let who = self.who(UserKey::None, conn.peer);
        let ending = Ending {
            outcome: Outcome::Ignored,
            status: end.status,
            latency_us: None,
            evidence: Evidence::None,
        };
        self.recorder.record(
            UNMATCHED,
            Side::Legacy,
            &ending,
            &Origin {
                who,
                path: &path,
                epoch: 0,
                at: now,
            },
        );
        let log = &snapshot.common.settings.log;
        if !self.access_log.is_on(log.access) {
            return;
        }
        let trace = Trace::of(&Fields::default(), false, None);
        let (request_id, total) = (new_request_id(&trace), now.since(began));
        let ended = Ended {
            at: crate::clock::wall(),
            total,
            method,
            path,
            status: end.status,
            rollout: None,
            decision: None,
            moved: None,
            outcome: Outcome::Ignored,
            client: conn.peer,
        };
        self.access_log.write(Line {
            ended,
            server: end.server,
            maintenance: Maintenance::Off,
            parked: Duration::ZERO,
            upstream: None,
            bytes_in: end.bytes_in,
            bytes_out: end.bytes_out,
            attempts: end.attempts,
            engine: end.engine,
            request_id,
            trace: trace.id,
            span: None,
            user: None,
            refused: Some(Box::new(told(reply))),
        });
    }

    /// Ends a request: its outcome, its counters, its line. The clock is read only where somebody
    /// wants to know.
    pub fn done(&self, mut exchange: Exchange, path: &str, end: End, clock: impl Fn() -> Mono) {
        let outcome = outcome(&exchange);
        if let Some(why) = exchange.refused.as_ref().and_then(|reply| reply.refusal) {
            self.refusals.add(why);
        }
        let latency_us = match outcome {
            Outcome::Failure(FailureKind::Timeout) => Some(clock().since(exchange.started)),
            Outcome::Success
            | Outcome::ClientError
            | Outcome::Failure(_)
            | Outcome::Aborted
            | Outcome::Ignored => exchange.answered.map(|at| at.since(exchange.started)),
        };
        let evidence = exchange.evidence();
        if exchange.failed_on_new.is_some() {
            let has_legacy_failed = matches!(outcome, Outcome::Failure(_));
            self.judge_failover(&mut exchange, has_legacy_failed, path, clock());
        }
        if exchange.moved == Some(Moved::Failover) {
            let saved = !matches!(outcome, Outcome::Failure(_));
            self.recorder.rescue(exchange.slot()).count(if saved {
                Saving::Saved
            } else {
                Saving::Failed
            });
        }
        let ending = Ending {
            outcome,
            status: end.status,
            latency_us: latency_us.map(cutover_core::time::micros),
            evidence,
        };
        // Without a latency there was no answer, so the end is now; else it is known without asking
        // the clock.
        let at = latency_us.map_or_else(&clock, |latency| exchange.started.forward(latency));
        let origin = Origin {
            who: exchange.who,
            path,
            epoch: exchange.epoch(),
            at,
        };
        match exchange.in_flight.take() {
            Some(in_flight) => in_flight.end(&ending, &origin),
            // What maintenance answered was no request of any backend.
            None if exchange.maintenance != Maintenance::Off => {}
            None => self
                .recorder
                .record(exchange.slot(), exchange.side(), &ending, &origin),
        }
        self.tell(exchange, path, end, outcome, clock);
    }

    /// What is written and exported about a request that has ended.
    fn tell(
        &self,
        exchange: Exchange,
        path: &str,
        end: End,
        outcome: Outcome,
        clock: impl Fn() -> Mono,
    ) {
        let log = &exchange.snapshot.common.settings.log;
        let is_unusual = exchange.moved.is_some() || !exchange.parked.is_zero();
        let has_line = self.access_log.is_on(log.access)
            && (exchange.refused.is_some()
                || self.access_log.wants(log, outcome, end.status, is_unusual));
        if !has_line && exchange.trace.spans.is_none() {
            return;
        }
        let now = clock();
        let ended = Ended {
            at: crate::clock::wall(),
            total: exchange.parked + now.since(exchange.started),
            method: exchange.method,
            path: path.into(),
            status: end.status,
            rollout: exchange
                .rollout
                .map(|at| Arc::clone(&exchange.snapshot.split.rollouts[at].rule.id)),
            decision: exchange.decision,
            moved: exchange.moved.map(Moved::name),
            outcome,
            client: exchange.client,
        };
        let Trace {
            id: trace,
            parent,
            spans,
            ..
        } = exchange.trace;
        let span = spans.as_ref().map(|spans| spans.id).or(parent);
        if let Some(mut spans) = spans {
            let failure = if let Outcome::Failure(kind) = outcome {
                Some(kind)
            } else {
                None
            };
            spans.ended(failure, now);
            self.traces.send(Finished {
                trace,
                parent,
                spans,
                ended: ended.clone(),
                ended_mono: now,
            });
        }
        if has_line {
            self.access_log.write(Line {
                ended,
                server: end.server,
                maintenance: exchange.maintenance,
                parked: exchange.parked,
                upstream: exchange.answered.map(|at| at.since(exchange.started)),
                bytes_in: end.bytes_in,
                bytes_out: end.bytes_out,
                attempts: end.attempts,
                engine: end.engine,
                request_id: exchange.request_id,
                trace,
                span,
                user: exchange.user,
                refused: exchange.refused.map(|reply| Box::new(told(&reply))),
            });
        }
    }
}

/// Notes the answer to a request that is itself at fault.
fn refuse(exchange: &mut Exchange, reply: Reply) -> Step {
    exchange.refused = Some(Box::new(reply));
    Step::Reply(reply)
}

/// What a request says about its backend. A failure after the answer began is one all the same: the
/// body was cut.
fn outcome(exchange: &Exchange) -> Outcome {
    let is_of_backend = matches!(
        exchange.failure,
        Some(Failure {
            blame: Blame::Backend,
            ..
        })
    );
    match exchange
        .said
        .filter(|_| !is_of_backend && exchange.status.is_some())
    {
        Some(Said::Failure) => return Outcome::Failure(FailureKind::Status),
        Some(Said::Ignore) => return Outcome::Ignored,
        Some(Said::Success) if exchange.failure.is_none() => return Outcome::Success,
        Some(Said::Success) | None => {}
    }
    match (exchange.failure, exchange.status) {
        (
            Some(Failure {
                blame: Blame::Backend,
                kind,
            }),
            _,
        ) => Outcome::Failure(kind),
        // A client that hangs up on a backend that had answered 5xx already does not make that
        // answer good.
        (_, Some(500..)) => Outcome::Failure(FailureKind::Status),
        (
            Some(Failure {
                blame: Blame::Client,
                ..
            }),
            _,
        ) => Outcome::Aborted,
        (
            Some(Failure {
                blame: Blame::Proxy,
                ..
            }),
            _,
        )
        | (None, None) => Outcome::Ignored,
        (None, Some(400..=499)) => Outcome::ClientError,
        (None, Some(_)) => Outcome::Success,
    }
}

/// What a client gets that comes while it is closed: when to ask again is the end, if there is one.
fn closed_reply(exchange: &Exchange, now: Mono) -> Reply {
    let remaining = exchange
        .snapshot
        .split
        .restriction(exchange.rollout)
        .remaining(now);
    let retry_after = remaining.map_or(RETRY_AFTER, |remaining| {
        u32::try_from(remaining.as_micros().div_ceil(1_000_000))
            .unwrap_or(u32::MAX)
            .max(1)
    });
    let message = match exchange.maintenance {
        Maintenance::ReadOnly => {
            "this service is read-only for maintenance, please try again later"
        }
        Maintenance::Off | Maintenance::Hold | Maintenance::Full => {
            "this service is closed for maintenance, please try again later"
        }
    };
    Reply::maintenance(message, retry_after)
}

/// Whether a method changes nothing, so that it may be asked twice.
pub fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// All values of a header joined by commas, as one forwarder would have written them.
fn joined<'a>(head: &'a impl Head, name: &HeaderName) -> Option<Cow<'a, [u8]>> {
    let mut all: Option<Cow<'a, [u8]>> = None;
    head.each(name, &mut |value| {
        all = Some(match all.take() {
            None => Cow::Borrowed(value),
            Some(before) => Cow::Owned([&before, &b", "[..], value].concat()),
        });
    });
    all
}

/// Whether a proxy at this address is believed.
pub fn is_trusted(trusted: &[ipnet::IpNet], address: IpAddr) -> bool {
    trusted.iter().any(|network| network.contains(&address))
}

/// The side a tester asks for, if the token is right. Constant time in the token.
fn override_of(header: Option<&[u8]>, token_sha256: Option<&[u8; 32]>) -> Option<Side> {
    let expected = token_sha256?;
    let header = std::str::from_utf8(header?).ok()?;
    let (side, token) = header.trim().split_once(' ')?;
    let side = Side::BOTH.into_iter().find(|known| known.name() == side)?;
    let digest: [u8; 32] = Sha256::digest(token.trim()).into();
    bool::from(digest.ct_eq(expected)).then_some(side)
}

/// The path that rules are matched on: percent-decoded, without empty and dot segments. The bytes
/// forwarded are the client's own.
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

fn hex(number: u128) -> String {
    format!("{number:032x}")
}

/// Returns what the access log says of a refused request.
fn told(reply: &Reply) -> Refused {
    Refused {
        code: reply.code,
        sentence: reply.sentence(),
    }
}

/// Makes the id of a request: 128 random bits in hexadecimal digits. It is the id of the trace where
/// that begins here, so that one id finds both.
fn new_request_id(trace: &Trace) -> RequestId {
    RequestId::Ours(hex_digits(if trace.parent.is_none() {
        trace.id
    } else {
        rand::rng().random()
    }))
}

/// Whether the client came over TLS, as far as we or a trusted proxy know.
fn is_secure(head: &impl Head, conn: &Conn) -> bool {
    conn.tls
        || (conn.trusted
            && head
                .first(&forward::FORWARDED_PROTO)
                .is_some_and(|proto| proto.eq_ignore_ascii_case(b"https")))
}

fn set_cookie(id: &str, secure: bool) -> Option<HeaderValue> {
    let secure = if secure { "; Secure" } else { "" };
    HeaderValue::from_str(&format!(
        "{MINTED_COOKIE}={id}; HttpOnly; SameSite=Lax; Path=/; Max-Age=31536000{secure}"
    ))
    .ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::shared::recorder::{Reader, recorder};
    use cutover_core::control::plane::{Actor, Restored};
    use cutover_core::{ControlPlane, Event};
    use std::time::Duration;

    /// A request head for tests, without an engine.
    pub(crate) struct TestHead {
        method: Method,
        path: String,
        query: Option<String>,
        headers: Vec<(HeaderName, Vec<u8>)>,
    }

    impl TestHead {
        pub(crate) fn get(target: &str) -> Self {
            let (path, query) = target
                .split_once('?')
                .map_or((target, None), |(path, query)| {
                    (path, Some(query.to_owned()))
                });
            Self {
                method: Method::GET,
                path: path.to_owned(),
                query,
                headers: Vec::new(),
            }
        }

        fn method(mut self, method: Method) -> Self {
            self.method = method;
            self
        }

        pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
            self.headers.push((
                HeaderName::from_bytes(name.as_bytes()).expect("a header name"),
                value.as_bytes().to_vec(),
            ));
            self
        }
    }

    impl Head for TestHead {
        fn method(&self) -> &Method {
            &self.method
        }
        fn path(&self) -> &str {
            &self.path
        }
        fn query(&self) -> Option<&str> {
            self.query.as_deref()
        }
        fn requires_host(&self) -> bool {
            true
        }
        fn size(&self) -> usize {
            self.headers
                .iter()
                .map(|(name, value)| name.as_str().len() + value.len() + 4)
                .sum()
        }
        fn first(&self, name: &HeaderName) -> Option<&[u8]> {
            self.headers
                .iter()
                .find(|(found, _)| found == name)
                .map(|(_, value)| value.as_slice())
        }
        fn each<'a>(&'a self, name: &HeaderName, found: &mut dyn FnMut(&'a [u8])) {
            self.headers
                .iter()
                .filter(|(is, _)| is == name)
                .for_each(|(_, value)| found(value));
        }
        fn fields<'a>(&'a self, found: &mut impl FnMut(&'a [u8], &'a [u8])) {
            self.headers
                .iter()
                .for_each(|(name, value)| found(name.as_str().as_bytes(), value));
        }
    }

    impl Edits for TestHead {
        fn set(&mut self, name: &'static HeaderName, value: Value<'_>) {
            self.remove(name);
            self.append(name, value);
        }
        fn append(&mut self, name: &'static HeaderName, value: Value<'_>) {
            self.headers.push((name.clone(), value.as_bytes().to_vec()));
        }
        fn remove(&mut self, name: &HeaderName) {
            self.headers.retain(|(found, _)| found != name);
        }
        fn contains(&self, name: &HeaderName) -> bool {
            self.first(name).is_some()
        }
        fn remove_all(&mut self, prefix: &str) {
            self.headers
                .retain(|(name, _)| !name.as_str().starts_with(prefix));
        }
    }

    pub(crate) struct NoFiles;

    impl cutover_config::Loader for NoFiles {
        fn read(&self, path: &str) -> Result<String, String> {
            Err(format!("no file {path}"))
        }
        fn glob(&self, _: &str) -> Result<Vec<String>, String> {
            Ok(Vec::new())
        }
        fn env(&self, _: &str) -> Option<String> {
            None
        }
    }

    const FILE: &str = r#"
        [listen]
        trusted_proxies = ["10.0.0.0/8"]
        max_header_bytes = "1KiB"
        max_body = "1KiB"
        [backend.legacy]
        servers = ["127.0.0.1:1"]
        [backend.new]
        servers = ["127.0.0.1:2"]
        [routing]
        override_token_sha256 = "d0c04f4b1951e4aeaaec8223ed2039e542f3aae805a6fa7f6d794e5afff5d272"
        expose_decision = true
        [[rollout]]
        id = "checkout"
        match = { path = "/checkout" }
        percent = 50
        key = ["header:x-user-id"]
        [[rollout]]
        id = "mint"
        match = { path = "/mint" }
        percent = 100
        key = ["cookie:uid"]
        anonymous = "cookie"
    "#;

    /// A file in force, and who may change what is published of it.
    pub(crate) struct World {
        plane: ControlPlane,
        common: Arc<crate::shared::published::Common>,
        pub(crate) published: Arc<Published>,
    }

    impl World {
        pub(crate) fn new() -> Self {
            let settings = cutover_config::parse("test.toml", FILE, &NoFiles)
                .unwrap_or_else(|problems| panic!("{problems}"));
            let mut plane = ControlPlane::new(Restored::Fresh);
            plane
                .on(
                    Event::Settings {
                        rollouts: settings.rollouts.clone(),
                        actor: Actor::file(),
                        reason: String::new(),
                    },
                    Default::default(),
                )
                .expect("settings are no command");
            let common = Arc::new(crate::shared::published::Common::new(settings, None));
            let published = Arc::new(Published::new(Snapshot::new(
                plane.split(),
                Arc::clone(&common),
                None,
            )));
            Self {
                plane,
                common,
                published,
            }
        }

        /// Puts a mode of maintenance in force at the time zero.
        pub(crate) fn maintain(
            &mut self,
            rollout: Option<&str>,
            mode: Maintenance,
            lasts: Option<Duration>,
        ) {
            let event = Event::Maintenance {
                rollout,
                mode,
                lasts,
                actor: Actor::file(),
                reason: "CHG-7".to_owned(),
            };
            self.plane
                .on(event, Default::default())
                .expect("the rollout is there");
            self.published.swap(Snapshot::new(
                self.plane.split(),
                Arc::clone(&self.common),
                None,
            ));
        }

        pub(crate) fn gate(&self) -> (Gate, Reader) {
            let listen = &self.common.settings.listen;
            let limits = Limits {
                max_header_bytes: listen.max_header_bytes,
                max_body: listen.max_body,
            };
            let (recorder, reader) = recorder();
            (
                Gate::new(
                    Arc::clone(&self.published),
                    recorder,
                    AccessLog::off(),
                    Traces::default(),
                    limits,
                ),
                reader,
            )
        }
    }

    fn gate() -> (Gate, Reader) {
        World::new().gate()
    }

    fn conn() -> Conn {
        Conn::new(IpAddr::from([192, 0, 2, 7]), false, false)
    }

    fn head(target: &str) -> TestHead {
        TestHead::get(target).with("host", "shop.example:8080")
    }

    fn decision(gate: &Gate, head: &TestHead) -> Decision {
        let (exchange, step) = gate.request(head, &conn(), Mono::default());
        assert_eq!(step, Step::Forward);
        exchange.decision.expect("a rollout matched")
    }

    fn refused(gate: &Gate, head: &TestHead) -> u16 {
        match gate.request(head, &conn(), Mono::default()).1 {
            Step::Forward | Step::Hold(_) => panic!("not refused"),
            Step::Reply(reply) => reply.status.as_u16(),
        }
    }

    #[test]
    fn a_user_goes_to_the_side_of_the_bucket_and_the_backend_is_told() {
        let (gate, _) = gate();
        let head = head("/checkout/1")
            .with("x-user-id", "user-1")
            .with("x-cutover-backend", "forged")
            .with("x-cutover-override", "new wrong")
            .with("x-forwarded-for", "6.6.6.6");
        let (exchange, step) = gate.request(&head, &conn(), Mono::default());
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
        gate.edits(&exchange, &head, &conn(), &mut edited);
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
    fn forged_headers_do_not_arrive_even_where_no_rollout_matches() {
        let (gate, _) = gate();
        let head = head("/")
            .with("x-cutover-bucket", "1")
            .with("x-cutover-reason", "override");
        let (exchange, step) = gate.request(&head, &conn(), Mono::default());
        assert_eq!((step, exchange.decision), (Step::Forward, None));
        let mut edited = TestHead::get("/");
        edited.headers.clone_from(&head.headers);
        gate.edits(&exchange, &head, &conn(), &mut edited);
        assert!(
            !edited
                .headers
                .iter()
                .any(|(name, _)| name.as_str().starts_with("x-cutover-"))
        );
    }

    #[test]
    fn a_tester_with_the_right_token_chooses_the_side() {
        let (gate, _) = gate();
        for side in Side::BOTH {
            let right = head("/checkout")
                .with("x-user-id", "u")
                .with("x-cutover-override", &format!("{side} sesame"));
            assert_eq!(
                (decision(&gate, &right).side, decision(&gate, &right).reason),
                (side, Reason::Override)
            );
        }
        for wrong in ["new wrong", "new", "sesame", "both sesame", "new sesame2"] {
            assert_eq!(
                decision(
                    &gate,
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
    fn what_cannot_be_told_apart_is_refused() {
        let (gate, _) = gate();
        assert_eq!(
            refused(
                &gate,
                &head("/checkout")
                    .with("x-user-id", "a")
                    .with("x-user-id", "b")
            ),
            400
        );
        assert_eq!(
            refused(
                &gate,
                &head("/checkout")
                    .with("x-user-id", "a")
                    .with("connection", "close, X-User-ID")
            ),
            400
        );
        assert_eq!(
            refused(&gate, &TestHead::get("/checkout").with("x-user-id", "a")),
            400
        );
        assert_eq!(
            refused(
                &gate,
                &head("/checkout")
                    .with("x-user-id", "a")
                    .with("content-length", "1025")
            ),
            413
        );
        assert_eq!(
            refused(
                &gate,
                &head("/checkout").with("x-padding", &"p".repeat(1024))
            ),
            431
        );
    }

    #[test]
    fn a_rule_matches_the_path_that_the_backend_will_understand() {
        let (gate, _) = gate();
        for path in [
            "/checkout",
            "/checkout/1",
            "//checkout",
            "/%63heckout",
            "/x/../checkout",
            "/./checkout/",
        ] {
            assert!(
                gate.request(&head(path).with("x-user-id", "u"), &conn(), Mono::default())
                    .0
                    .rollout
                    .is_some(),
                "{path}"
            );
        }
        for path in ["/checkouts", "/checkout/../other", "/", "/other%2fcheckout"] {
            assert!(
                gate.request(&head(path).with("x-user-id", "u"), &conn(), Mono::default())
                    .0
                    .rollout
                    .is_none(),
                "{path}"
            );
        }
    }

    #[test]
    fn a_user_without_a_key_gets_a_cookie_and_is_routed_by_it_at_once() {
        let (gate, _) = gate();
        let (exchange, _) = gate.request(&head("/mint"), &conn(), Mono::default());
        let cookie = exchange.set_cookie.clone().expect("a cookie is minted");
        let cookie = cookie.to_str().expect("ASCII");
        assert!(
            cookie.ends_with("; HttpOnly; SameSite=Lax; Path=/; Max-Age=31536000"),
            "{cookie}"
        );
        let first = exchange.decision.expect("decided");
        assert_eq!((first.side, first.reason), (Side::New, Reason::Bucket));
        let again = gate
            .request(
                &head("/mint").with("cookie", cookie.split(';').next().expect("a pair")),
                &conn(),
                Mono::default(),
            )
            .0;
        assert_eq!(again.decision, Some(first));
        assert_eq!(again.set_cookie, None);
        let mut response = TestHead::get("/");
        gate.client_edits(&exchange, &mut response);
        assert!(response.contains(&http::header::SET_COOKIE));
        assert_eq!(response.first(&forward::BACKEND), Some(&b"new"[..]));
    }

    #[test]
    fn blame_is_narrow() {
        let (gate, mut reader) = gate();
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
            let (mut exchange, _) = gate.request(&head, &conn(), Mono::default());
            if let Some(status) = status {
                gate.answered(&mut exchange, 103, None, "/", false, Mono::from_micros(1));
                gate.answered(
                    &mut exchange,
                    status,
                    None,
                    "/",
                    false,
                    Mono::from_micros(5_000),
                );
            }
            if let Some(failure) = failure {
                gate.failed(&mut exchange, failure, None);
            }
            assert_eq!(outcome(&exchange), expected, "{status:?} {failure:?}");
            gate.done(
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
        // Five answers at 5 ms, the truncated one among them, and a timeout after 9 ms.
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
    fn answered(gate: &Gate, head: &TestHead, now: Mono) -> Option<Reply> {
        let (exchange, step) = gate.request(head, &conn(), now);
        let reply = match step {
            Step::Forward => None,
            Step::Reply(reply) | Step::Hold(reply) => Some(reply),
        };
        gate.done(
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
    fn read_only_refuses_whatever_may_change_something() {
        let mut world = World::new();
        world.maintain(Some("checkout"), Maintenance::ReadOnly, None);
        let (gate, _) = world.gate();
        for method in [Method::GET, Method::HEAD, Method::OPTIONS] {
            assert_eq!(
                answered(
                    &gate,
                    &head("/checkout").with("x-user-id", "u").method(method),
                    Mono::default()
                ),
                None
            );
        }
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            let reply = answered(
                &gate,
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
            answered(&gate, &head("/mint").method(Method::POST), Mono::default()),
            None,
            "another rollout"
        );
        assert_eq!(
            answered(&gate, &head("/").method(Method::POST), Mono::default()),
            None,
            "no rollout"
        );
    }

    #[test]
    fn everything_includes_requests_that_match_no_rollout() {
        let mut world = World::new();
        world.maintain(None, Maintenance::Full, None);
        let (gate, _) = world.gate();
        for path in ["/checkout", "/mint", "/"] {
            assert!(
                answered(&gate, &head(path).with("x-user-id", "u"), Mono::default()).is_some(),
                "{path}"
            );
        }
        assert_eq!(
            refused(&gate, &TestHead::get("/")),
            400,
            "what is wrong whoever sent it is said first"
        );
    }

    #[test]
    fn a_client_is_told_to_come_back_at_the_end_if_there_is_one() {
        let mut world = World::new();
        world.maintain(None, Maintenance::Full, Some(Duration::from_secs(600)));
        let (gate, _) = world.gate();
        for (at_us, seconds) in [
            (0, 600),
            (1, 600),
            (599_000_001, 1),
            (600_000_000, 1),
            (700_000_000, 1),
        ] {
            let reply = answered(&gate, &head("/"), Mono::from_micros(at_us)).expect("refused");
            assert_eq!(reply.retry_after, Some(seconds), "at {at_us} us");
        }
    }

    #[test]
    fn a_tester_with_the_right_token_passes_every_mode() {
        let mut world = World::new();
        for mode in [Maintenance::ReadOnly, Maintenance::Hold, Maintenance::Full] {
            world.maintain(None, mode, None);
            let (gate, _) = world.gate();
            let post = |token: &str| {
                head("/checkout")
                    .with("x-user-id", "u")
                    .with("x-cutover-override", token)
                    .method(Method::POST)
            };
            assert_eq!(
                decision(&gate, &post("new sesame")).reason,
                Reason::Override
            );
            assert!(
                answered(&gate, &post("new wrong"), Mono::default()).is_some(),
                "{}",
                mode.name()
            );
            assert_eq!(
                answered(
                    &gate,
                    &head("/").with("x-cutover-override", "legacy sesame"),
                    Mono::default()
                ),
                None,
                "where no rollout matches, too"
            );
        }
    }

    #[test]
    fn what_maintenance_answers_is_nobodys_request() {
        let mut world = World::new();
        world.maintain(None, Maintenance::Full, None);
        let (gate, mut reader) = world.gate();
        for path in ["/checkout", "/checkout", "/"] {
            answered(
                &gate,
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
    fn a_parked_request_is_decided_anew_on_what_is_in_force_then() {
        let mut world = World::new();
        world.maintain(Some("checkout"), Maintenance::Hold, None);
        let (gate, mut reader) = world.gate();
        let head = head("/checkout")
            .with("x-user-id", "u")
            .method(Method::POST);
        let park = || {
            let (mut exchange, step) = gate.request(&head, &conn(), Mono::from_micros(1_000));
            assert!(matches!(step, Step::Hold(_)), "{step:?}");
            gate.park(&mut exchange);
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
        let after =
            |exchange, why| gate.unparked(exchange, &head, &conn(), why, Mono::from_micros(9_000));

        let (again, step) = after(again, Unparked::Released);
        assert!(
            matches!(step, Step::Hold(_)),
            "the mode is on again: {step:?}"
        );
        assert_eq!(again.parked(), Duration::from_millis(8));
        let (late, step) = after(late, Unparked::Expired);
        let Step::Reply(reply) = step else {
            panic!("not answered: {step:?}")
        };
        assert_eq!((reply.status.as_u16(), reply.code), (503, "maintenance"));
        let (gone, _) = after(gone, Unparked::Left);
        assert_eq!(outcome(&gone), Outcome::Aborted);
        drop((late, gone, cancelled));
        parked(1);

        world.maintain(Some("checkout"), Maintenance::Off, None);
        let (mut released, step) = after(first, Unparked::Released);
        assert_eq!(
            (step, released.parked()),
            (Step::Forward, Duration::from_millis(8))
        );
        gate.answered(
            &mut released,
            200,
            None,
            "/checkout",
            false,
            Mono::from_micros(10_000),
        );
        gate.done(
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
    fn a_request_without_a_place_is_refused_at_once() {
        let mut world = World::new();
        world.maintain(None, Maintenance::Hold, Some(Duration::from_secs(12)));
        let (gate, mut reader) = world.gate();
        let (exchange, _) = gate.request(&head("/"), &conn(), Mono::default());
        let (exchange, step) = gate.unparked(
            exchange,
            &head("/"),
            &conn(),
            Unparked::NoPlace,
            Mono::default(),
        );
        let Step::Reply(reply) = step else {
            panic!("not answered: {step:?}")
        };
        assert_eq!(reply.retry_after, Some(12));
        gate.done(exchange, "/", End::default(), Mono::default);
        reader.read();
        assert_eq!(
            reader.slot(UNMATCHED).expect("traffic").halted,
            [1, 0, 0, 0, 0]
        );
    }
}
