//! Explains why a request goes where it goes. It uses the same functions as the request path and
//! reports each step.

use cutover_core::routing::split::decide;
use cutover_core::{Anonymous, Ask, Bucket, PerSide, Restriction, Side, Split, Treatment, UserKey};
use http::{HeaderName, HeaderValue, Method};
use serde::{Deserialize, Serialize};

use crate::gateway::message::head::Head;
use crate::gateway::message::identity::{self, Identity, MINTED_COOKIE};
use crate::gateway::router::{is_safe, normalised};
use crate::shared::published::PreparedKey;
use crate::status::percent;
use cutover_core::routing::routes::without_port;

/// A request to be explained.
#[derive(Debug)]
pub struct Question {
    /// The user key itself, wherever a request would carry it.
    pub user: Option<String>,
    /// The method of the request.
    pub method: Method,
    /// The host of the request.
    pub host: String,
    /// The path, and the query if there is one.
    pub target: String,
    /// The headers that the request carries.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// The destination of a request, and the reasons.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The rollout that matches the request. `null` when none matches.
    pub rollout: Option<String>,
    /// The side that is chosen for the request. `null` when no rollout matches or the request is
    /// refused.
    pub side: Option<String>,
    /// The name of the backend.
    pub backend: Option<String>,
    /// The step that decided.
    pub reason: Option<String>,
    /// The maintenance mode that answers the request in place of a backend, or holds it. The
    /// destination without maintenance is reported as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<String>,
    /// The source of the user key.
    pub key_source: Option<String>,
    /// The user's bucket.
    pub bucket: Option<u32>,
    /// The effective share of users on new, in percent.
    pub effective_percent: Option<f64>,
    /// A description of each step.
    pub steps: Vec<String>,
}

/// The client address assumed for a question.
const NO_CLIENT: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// Explains where a request goes under `split`. `available` says which sides of a rollout have a
/// server.
pub fn explain(
    split: &Split,
    default_backend: &str,
    question: &Question,
    available: impl Fn(usize) -> PerSide<bool>,
) -> Explanation {
    let path = normalised(question.path());
    let host = without_port(&question.host);
    let mut explanation = Explanation {
        rollout: None,
        side: None,
        backend: None,
        reason: None,
        maintenance: None,
        key_source: None,
        bucket: None,
        effective_percent: None,
        steps: Vec::new(),
    };
    let asked = format!("{} {host}{path}", question.method);
    let at = split.rollout_for(host, &path, question.method.as_str());
    if let Some(step) = closed(split.restriction(at), &question.method) {
        explanation.maintenance = Some(split.restriction(at).mode.name().to_owned());
        explanation.steps.push(step);
    }
    let Some(at) = at else {
        explanation.steps.push(format!(
            "no rollout matches {asked}: it goes to the default backend `{default_backend}`"
        ));
        explanation.backend = Some(default_backend.to_owned());
        return explanation;
    };
    let rollout = &split.rollouts[at];
    let rule = &*rollout.rule;
    explanation.rollout = Some(rule.id.to_string());
    explanation.effective_percent = Some(percent(rollout.percent));
    explanation.steps.push(format!(
        "rollout `{}` is the first in the file that matches {asked}",
        rule.id
    ));
    let keys: Vec<PreparedKey> = rule.keys.iter().map(PreparedKey::new).collect();
    let tried = || {
        rule.keys
            .iter()
            .map(cutover_core::Key::text)
            .collect::<Vec<_>>()
            .join(", ")
    };
    let found;
    let key = if let Some(user) = &question.user {
        explanation.key_source = Some("given".to_owned());
        explanation
            .steps
            .push(format!("the user key `{user}` was given"));
        UserKey::Known(user.as_bytes())
    } else {
        match identity::identify(
            question,
            &keys,
            NO_CLIENT,
            rule.anonymous == Anonymous::Cookie,
        ) {
            Identity::Refused(why) => {
                explanation.steps.push(format!("refused with 400: {why}"));
                return explanation;
            }
            Identity::Key(key, at) => {
                let source = at.map_or_else(
                    || format!("cookie:{MINTED_COOKIE}"),
                    |at| rule.keys[at].text(),
                );
                explanation.steps.extend(
                    at.map(|at| readings(question, &keys[at]))
                        .unwrap_or_default(),
                );
                explanation.steps.push(format!(
                    "the user key `{}` comes from {source}",
                    String::from_utf8_lossy(&key)
                ));
                explanation.key_source = Some(source);
                found = key;
                UserKey::Known(&found)
            }
            Identity::Anonymous => {
                explanation.steps.push(format!(
                    "no user key in {}; anonymous requests are decided by \"{}\"",
                    tried(),
                    anonymous(rule.anonymous)
                ));
                match rule.anonymous {
                    Anonymous::Legacy => UserKey::None,
                    Anonymous::Cookie | Anonymous::Random => {
                        let share = percent(rollout.percent);
                        explanation.steps.push(format!(
                            "{share} % of such requests go to new; which ones is up to chance"
                        ));
                        return explanation;
                    }
                }
            }
        }
    };
    let available = available(at);
    let decision = decide(
        rollout,
        &Ask {
            key,
            override_to: None,
            available,
        },
    );
    let backend = &rule.backends[decision.side];
    if let Some(bucket) = decision.bucket {
        explanation.steps.push(format!(
            "{} of \"{}:<key>\" puts the user into bucket {bucket} of 100000",
            cutover_core::routing::bucket::NAME,
            rule.salt.as_str()
        ));
    }
    explanation.steps.push(reason_sentence(
        decision.reason,
        decision.side,
        decision.bucket,
        rollout,
    ));
    explanation.steps.push(format!(
        "served by backend `{backend}` as {}",
        decision.side
    ));
    explanation.side = Some(decision.side.name().to_owned());
    explanation.backend = Some(backend.to_string());
    explanation.reason = Some(decision.reason.name().to_owned());
    explanation.bucket = decision.bucket.map(Bucket::number);
    explanation
}

/// Describes what maintenance does to the request. `None` if it does nothing.
fn closed(restriction: Restriction, method: &Method) -> Option<String> {
    let mode = restriction.mode.name();
    let without = "a tester's override passes; without maintenance";
    match restriction.mode.treats(is_safe(method)) {
        Treatment::Pass => None,
        Treatment::Hold => Some(format!(
            "maintenance is {mode}, so it is parked and decided again afterwards; {without}:"
        )),
        Treatment::Refuse => Some(format!(
            "maintenance is {mode}, so it is answered with 503; {without}:"
        )),
    }
}

fn reason_sentence(
    reason: cutover_core::Reason,
    side: Side,
    bucket: Option<Bucket>,
    rollout: &cutover_core::RolloutSplit,
) -> String {
    use cutover_core::Reason;
    match reason {
        Reason::Override => "a tester's override decides".to_owned(),
        Reason::AlwaysLegacy => "the user is named in `always_legacy`".to_owned(),
        Reason::RolledBack => "the rollout is rolled back: legacy for everybody".to_owned(),
        Reason::AlwaysNew => "the user is named in `always_new`".to_owned(),
        Reason::Anonymous => "without a user key it goes to legacy".to_owned(),
        Reason::Bucket => {
            let (number, limit) = (
                bucket.map_or(0, Bucket::number),
                rollout.percent.thousandths(),
            );
            let relation = if side == Side::New {
                "below"
            } else {
                "not below"
            };
            format!(
                "{number} is {relation} {limit} ({} % of 100000), so the user is on {side}",
                rollout.percent
            )
        }
        Reason::Health => format!("the other backend has no server to send to, so {side} serves"),
    }
}

/// Describes the result of each step of reading a key.
fn readings(question: &Question, key: &PreparedKey) -> Vec<String> {
    let mut said = Vec::new();
    let Ok(Some(mut value)) = identity::find(question, key, NO_CLIENT) else {
        return said;
    };
    if !key.steps.is_empty() {
        said.push(format!(
            "{} holds `{}`",
            key.source.text(),
            String::from_utf8_lossy(&value)
        ));
    }
    for step in &key.steps {
        let Some(read) = identity::read(value, *step) else {
            break;
        };
        said.push(format!(
            "{} makes it `{}`",
            step.name(),
            String::from_utf8_lossy(&read)
        ));
        value = read;
    }
    said
}

fn anonymous(anonymous: Anonymous) -> &'static str {
    match anonymous {
        Anonymous::Legacy => "legacy",
        Anonymous::Cookie => "cookie",
        Anonymous::Random => "random",
    }
}

impl Question {
    fn path(&self) -> &str {
        self.target
            .split_once('?')
            .map_or(&self.target, |(path, _)| path)
    }
}

impl Head for Question {
    fn method(&self) -> &Method {
        &self.method
    }

    fn path(&self) -> &str {
        self.path()
    }

    fn query(&self) -> Option<&str> {
        self.target.split_once('?').map(|(_, query)| query)
    }

    fn authority(&self) -> Option<&str> {
        Some(&self.host)
    }

    fn requires_host(&self) -> bool {
        false
    }

    fn size(&self) -> usize {
        0
    }

    fn first(&self, name: &HeaderName) -> Option<&[u8]> {
        self.headers
            .iter()
            .find(|(found, _)| found == name)
            .map(|(_, value)| value.as_bytes())
    }

    fn each<'a>(&'a self, name: &HeaderName, found: &mut dyn FnMut(&'a [u8])) {
        self.headers
            .iter()
            .filter(|(is, _)| is == name)
            .for_each(|(_, value)| found(value.as_bytes()));
    }

    fn fields<'a>(&'a self, found: &mut impl FnMut(&'a [u8], &'a [u8])) {
        self.headers
            .iter()
            .for_each(|(name, value)| found(name.as_str().as_bytes(), value.as_bytes()));
    }
}
