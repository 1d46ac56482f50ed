//! `[[rollout]]` and its tables.

use schemars::JsonSchema;
use serde::Deserialize;

use super::default;
use super::value::{At, DurationText, Number, OrOff, RateText};

type Texts = Vec<At<String>>;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("anyOf" = [{ "required": ["percent"] }, { "required": ["plan"] }]))]
pub(crate) struct RolloutTable {
    /// Its name: lower-case letters, digits, `.`, `_`, `-`; at most 64.
    #[schemars(required, extend("pattern" = "^[a-z0-9][a-z0-9._-]{0,63}$|\\$\\{", "examples" = ["checkout"]))]
    pub(crate) id: Option<At<String>>,
    /// Which requests it takes. Each part is optional; an absent one takes everything.
    #[serde(rename = "match")]
    #[schemars(extend("examples" = [{ "path": "/checkout" }]))]
    pub(crate) matches: Option<At<MatchTable>>,
    /// The backend that users come from.
    #[schemars(extend("default" = default::LEGACY))]
    pub(crate) legacy: Option<At<String>>,
    /// The backend that users are moved to.
    #[schemars(extend("default" = default::NEW))]
    pub(crate) new: Option<At<String>>,
    /// The share of users on new, from 0 to 100 with at most three decimals.
    #[schemars(extend("minimum" = 0, "maximum" = 100, "examples" = [5]))]
    pub(crate) percent: Option<At<Number>>,
    /// What the hash of a user starts with; default: the id. The same salt in two rollouts moves
    /// the same users.
    pub(crate) salt: Option<At<String>>,
    /// Where the user's key comes from: header:NAME, cookie:NAME, jwt:CLAIM, query:NAME, path:N or
    /// ip. The first that is not empty wins. Steps behind a | say how it is read: decode, lower,
    /// trim, base64, from left to right.
    #[schemars(required, extend("minItems" = 1, "examples" = [["header:x-user-id", "cookie:uid"]]))]
    pub(crate) key: Option<At<Texts>>,
    /// What happens to a request without a key.
    #[schemars(extend("default" = "legacy"))]
    pub(crate) anonymous: Option<AnonymousText>,
    /// Users on new whatever their bucket: keys, or `file:PATH` with one key per line.
    #[schemars(extend("default" = [], "examples" = [["qa-1", "file:beta-users.txt"]]))]
    pub(crate) always_new: Option<At<Texts>>,
    /// Users on legacy whatever their bucket. Wins over `always_new`.
    #[schemars(extend("default" = []))]
    pub(crate) always_legacy: Option<At<Texts>>,
    /// Raise it by one to re-arm after a rollback.
    #[schemars(extend("default" = default::GENERATION, "minimum" = 1, "maximum" = 1_000_000_000))]
    pub(crate) generation: Option<u64>,
    /// Percent of users kept on legacy even at 100 %, as a control group for the guard.
    #[schemars(extend("default" = 0, "minimum" = 0, "maximum" = 100))]
    pub(crate) holdback: Option<At<Number>>,
    /// Which requests that fail on new are answered by legacy; at most a fifth of those of the
    /// last ten seconds. They count as failures of new.
    #[schemars(extend("default" = "safe"))]
    pub(crate) failover: Option<FailoverText>,
    /// Paths below which a file that is missing on one side (404) is fetched from the other.
    #[schemars(extend("default" = [], "examples" = [["/assets/"]]))]
    pub(crate) fallback_on_404: Option<At<Texts>>,
    /// After a rollback, WebSockets and streams that are still on new are closed after this; up to
    /// 1d.
    #[schemars(extend("default" = default::DRAIN_ON_ROLLBACK))]
    pub(crate) drain_on_rollback: Option<At<DurationText>>,
    /// When new counts as worse, so that everybody goes back to legacy.
    pub(crate) guard: Option<At<GuardTable>>,
    /// Stages that raise the percentage by themselves, instead of `percent`. Not supported yet.
    pub(crate) plan: Option<At<PlanTable>>,
    /// Requests that must succeed on new before a stage is left. Not supported yet.
    pub(crate) check: Option<At<Vec<CheckTable>>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MatchTable {
    /// A host without port, or `*.example.org` for all names below it.
    #[schemars(extend("examples" = ["shop.example"]))]
    pub(crate) host: Option<At<String>>,
    /// A path prefix by whole segments: `/shop` takes `/shop` and `/shop/1`, not `/shopping`.
    #[schemars(extend("examples" = ["/checkout"]))]
    pub(crate) path: Option<At<String>>,
    /// Methods in upper case.
    #[schemars(extend("minItems" = 1, "examples" = [["GET", "POST"]]))]
    pub(crate) methods: Option<Texts>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AnonymousText {
    /// Goes to legacy.
    Legacy,
    /// Gets an id in a cookie and is bucketed by it.
    Cookie,
    /// Is decided by chance, request by request.
    Random,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FailoverText {
    /// None.
    Off,
    /// Those of which nothing was sent: the connection could not be made.
    Connect,
    /// Also GET, HEAD and OPTIONS that failed in any way before the response header, or with a 5xx.
    Safe,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct GuardTable {
    /// How it judges.
    #[schemars(extend("default" = "sequential"))]
    pub(crate) mode: Option<At<ModeText>>,
    /// Judge and report, but never roll back.
    #[schemars(extend("default" = false))]
    pub(crate) dry_run: Option<bool>,
    /// Limits on failures: 5xx, connect errors, timeouts, resets, truncated bodies. Here and
    /// below, a sequential guard has the default where nothing is written, a threshold guard has
    /// no rule, and `false` switches a rule off.
    #[schemars(extend("minProperties" = 1, "examples" = [{ "max": "1%" }]))]
    pub(crate) errors: Option<At<OrOff<ErrorsTable>>>,
    /// Limits on the time to the response header.
    #[schemars(extend("minProperties" = 1, "examples" = [{ "p99": "800ms" }]))]
    pub(crate) latency: Option<At<OrOff<LatencyTable>>>,
    /// A limit on 4xx answers.
    #[schemars(extend("minProperties" = 1, "examples" = [{ "vs_legacy": 2 }]))]
    pub(crate) client_errors: Option<At<OrOff<VsLegacyTable>>>,
    /// A limit on clients that gave up.
    #[schemars(extend("minProperties" = 1, "examples" = [{ "vs_legacy": 2 }]))]
    pub(crate) aborts: Option<At<OrOff<VsLegacyTable>>>,
    /// A limit on users who are sent in circles: five redirects in a row and nothing else.
    #[schemars(extend("minProperties" = 1, "examples" = [{ "vs_legacy": 2 }]))]
    pub(crate) redirects: Option<At<OrOff<VsLegacyTable>>>,
    /// Requests that wait too long for an answer, noticed while they wait.
    #[schemars(extend("minProperties" = 1, "examples" = [{ "older_than": "10s" }]))]
    pub(crate) hang: Option<At<OrOff<HangTable>>>,
    /// A backend without any server to send to.
    #[schemars(extend("minProperties" = 1, "examples" = [{ "down_for": "10s" }]))]
    pub(crate) health: Option<At<OrOff<DownTable>>>,
    /// So many failures of new in a row, with no success between.
    #[schemars(extend("default" = 20, "minimum" = 2, "maximum" = 1_000_000))]
    pub(crate) dead_after: Option<At<OrOff<u64>>>,
    /// How many users must be hurt before a rule may trip; never more than new has served in the
    /// last minute. In threshold mode for hang and dead_after only.
    #[schemars(extend("default" = 3, "minimum" = 1, "maximum" = 1_000))]
    pub(crate) min_users: Option<At<u64>>,
    /// How rarely a healthy backend may be rolled back, over all rules together; from 1h to 10
    /// years. In threshold mode for hang only.
    #[schemars(extend("default" = "30d"))]
    pub(crate) false_alarm_every: Option<At<DurationText>>,
    /// What happens when both sides are bad at once. In threshold mode for hang, health and
    /// dead_after only.
    #[schemars(extend("default" = "hold"))]
    pub(crate) shared_cause: Option<At<SharedCauseText>>,
    /// How long after a raise latencies are not compared with legacy's, up to 1h: caches fill and
    /// connections open.
    #[schemars(extend("default" = "30s"))]
    pub(crate) warm_up: Option<At<DurationText>>,
    /// A response header in which a backend says what an answer was: `failure`, `success` or
    /// `ignore`. It is removed before the client.
    #[schemars(extend("examples" = ["x-cutover-outcome"]))]
    pub(crate) outcome_header: Option<At<String>>,
    /// How far back a rule looks, from 1s to 1h. Threshold mode only.
    #[schemars(extend("default" = "30s"))]
    pub(crate) window: Option<At<DurationText>>,
    /// With fewer requests than this on new within the window, a rule says nothing. Threshold mode
    /// only.
    #[schemars(extend("default" = 200, "minimum" = 1, "maximum" = 1_000_000_000))]
    pub(crate) min_requests: Option<At<u64>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ModeText {
    /// A sequential test for each rule: quick, and with a known rate of false alarms.
    Sequential,
    /// Limits over a window: only the rules that are written, and no control of false alarms.
    Threshold,
    /// No judging; only people roll back.
    Off,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ErrorsTable {
    /// More than this share of the requests to new failed.
    #[schemars(extend("default" = "1%"))]
    pub(crate) max: Option<At<RateText>>,
    /// The failure rate of new is more than this many times legacy's.
    #[schemars(extend("default" = 2.0, "minimum" = 1, "maximum" = 1000))]
    pub(crate) vs_legacy: Option<At<Number>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LatencyTable {
    /// Half of the requests are slower than this.
    #[schemars(extend("examples" = ["100ms"]))]
    pub(crate) p50: Option<At<DurationText>>,
    /// More than 5 % of the requests are slower than this.
    #[schemars(extend("examples" = ["300ms"]))]
    pub(crate) p95: Option<At<DurationText>>,
    /// More than 1 % of the requests are slower than this.
    #[schemars(extend("examples" = ["800ms"]))]
    pub(crate) p99: Option<At<DurationText>>,
    /// The mean is above this.
    #[schemars(extend("examples" = ["200ms"]))]
    pub(crate) mean: Option<At<DurationText>>,
    /// New is more than this many times as slow as legacy: at the p95; in sequential mode also at
    /// the p50, p90, p99 and p99.9, and in the mean.
    #[schemars(extend("default" = 1.5, "minimum" = 1, "maximum" = 1000))]
    pub(crate) vs_legacy: Option<At<Number>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct VsLegacyTable {
    /// The rate on new is more than this many times legacy's.
    #[schemars(extend("default" = 2.0, "minimum" = 1, "maximum" = 1000))]
    pub(crate) vs_legacy: Option<At<Number>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HangTable {
    /// Without an answer for this long, from 1s to 60s; below the backend's response_timeout.
    #[schemars(extend("default" = "10s"))]
    pub(crate) older_than: Option<At<DurationText>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DownTable {
    /// No server for this long, from 1s to 1h.
    #[schemars(extend("default" = "10s"))]
    pub(crate) down_for: Option<At<DurationText>>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SharedCauseText {
    /// Freeze raises and alert.
    Hold,
    /// Roll back.
    Rollback,
}

#[expect(
    dead_code,
    reason = "parsed so that mistakes in it are found, refused until it does something"
)]
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PlanTable {
    /// One after the other.
    #[schemars(required, extend("minItems" = 1, "examples" = [[{ "percent": 1, "hold": "1h" }]]))]
    stages: Option<Vec<StageTable>>,
    /// When the percentage may be raised, such as `Mon-Thu 09:00-16:00 Europe/Berlin`.
    raise_only: Option<String>,
}

#[expect(
    dead_code,
    reason = "parsed so that mistakes in it are found, refused until it does something"
)]
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StageTable {
    /// The share of users on new.
    #[schemars(required, extend("minimum" = 0, "maximum" = 100, "examples" = [1]))]
    percent: Option<Number>,
    /// How long it stays there at least.
    hold: Option<DurationText>,
    /// How many requests new must have served by then.
    min_requests: Option<u64>,
    /// Names of `[[rollout.check]]` that must pass.
    checks: Option<Vec<String>>,
    /// Whether a person must say go.
    approval: Option<bool>,
}

#[expect(
    dead_code,
    reason = "parsed so that mistakes in it are found, refused until it does something"
)]
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CheckTable {
    /// How stages speak of it.
    #[schemars(required, extend("examples" = ["smoke"]))]
    name: Option<String>,
    /// Method and path.
    #[schemars(required, extend("examples" = ["GET /api/ping"]))]
    request: Option<String>,
    /// What the answer must be.
    #[schemars(extend("examples" = [{ "status": 200 }]))]
    expect: Option<ExpectTable>,
}

#[expect(
    dead_code,
    reason = "parsed so that mistakes in it are found, refused until it does something"
)]
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExpectTable {
    /// The status.
    #[schemars(extend("minimum" = 100, "maximum" = 599))]
    status: Option<u64>,
    /// A text in the body.
    body_contains: Option<String>,
    /// The longest it may take.
    within: Option<DurationText>,
}
