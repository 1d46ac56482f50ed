//! The choice of a rollout and a side for a request.

use super::exchange::Exchange;
use super::failover::{Blame, Failure};
use super::{Router, Step, normalised, refuse};
use crate::gateway::message::fields::Fields;
use crate::gateway::message::forward;
use crate::gateway::message::head::{Conn, Head};
use crate::gateway::message::identity::{self, Identity, MINTED_COOKIE};
use crate::gateway::message::reply::Reply;
use crate::gateway::message::trace::Trace;
use crate::gateway::message::validate;
use crate::shared::refusals::Refusal;
use crate::telemetry::request_summary::RequestId;
use crate::telemetry::traces::hex_digits;
use cutover_core::routing::split::decide;
use cutover_core::{Anonymous, Ask, Bucket, FailureKind, Mono, PerSide, Requester, Side, UserKey};
use http::{HeaderName, HeaderValue};
use rand::Rng;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// Returns the side that a tester requests, if the token is right. The token is compared in
/// constant time.
pub(super) fn override_of(header: Option<&[u8]>, token_sha256: Option<&[u8; 32]>) -> Option<Side> {
    let expected = token_sha256?;
    let header = std::str::from_utf8(header?).ok()?;
    let (side, token) = header.trim().split_once(' ')?;
    let side = Side::BOTH.into_iter().find(|known| known.name() == side)?;
    let digest: [u8; 32] = Sha256::digest(token.trim()).into();
    bool::from(digest.ct_eq(expected)).then_some(side)
}

/// Returns all values of a header joined by commas, as a single proxy would have written them.
pub(super) fn joined<'a>(head: &'a impl Head, name: &HeaderName) -> Option<Cow<'a, [u8]>> {
    let mut all: Option<Cow<'a, [u8]>> = None;
    head.each(name, &mut |value| {
        all = Some(match all.take() {
            None => Cow::Borrowed(value),
            Some(before) => Cow::Owned([&before, &b", "[..], value].concat()),
        });
    });
    all
}

/// Returns whether a proxy at this address is trusted.
pub fn is_trusted(trusted: &[ipnet::IpNet], address: IpAddr) -> bool {
    trusted.iter().any(|network| network.contains(&address))
}

/// Returns whether the client used TLS, as far as we or a trusted proxy know.
pub(super) fn is_secure(head: &impl Head, conn: &Conn) -> bool {
    conn.tls
        || (conn.trusted
            && head
                .first(&forward::FORWARDED_PROTO)
                .is_some_and(|proto| proto.eq_ignore_ascii_case(b"https")))
}

pub(super) fn set_cookie(id: &str, secure: bool) -> Option<HeaderValue> {
    let secure = if secure { "; Secure" } else { "" };
    HeaderValue::from_str(&format!(
        "{MINTED_COOKIE}={id}; HttpOnly; SameSite=Lax; Path=/; Max-Age=31536000{secure}"
    ))
    .ok()
}

/// Creates the id of a request: 128 random bits in hexadecimal digits. If the trace begins here,
/// the id of the trace is used, so that one id finds both.
pub(super) fn new_request_id(trace: &Trace) -> RequestId {
    RequestId::Ours(hex_digits(if trace.parent.is_none() {
        trace.id
    } else {
        rand::rng().random()
    }))
}

pub(super) fn hex(number: u128) -> String {
    format!("{number:032x}")
}

impl Router {
    /// Returns the host that a request names, or why the request is invalid regardless of its
    /// sender.
    pub(super) fn host_of<'a>(
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

    pub(super) fn route(
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
            Identity::Anonymous => match rollout.rule.anonymous {
                Anonymous::Legacy => UserKey::None,
                Anonymous::Random => UserKey::Random(Bucket::of_hash(rand::rng().random())),
                Anonymous::Cookie => {
                    minted = hex(rand::rng().random::<u128>());
                    exchange.set_cookie = set_cookie(&minted, is_secure(head, conn));
                    UserKey::Known(minted.as_bytes())
                }
            },
        };
        // There is nearly always a server, so the decided side is checked first, and the other side
        // only if the first has none.
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
        // No server was contacted, but the users of this side get no answer: that is a failure of
        // the backend.
        exchange.failure = Some(Failure {
            blame: Blame::Backend,
            kind: FailureKind::Connect,
        });
        Step::Reply(Reply::NO_SERVER)
    }

    /// Identifies the requester by the user, or without a key by the client's address. The network
    /// is included because made-up ids are cheap and addresses are not.
    pub(super) fn who(&self, key: UserKey<'_>, client: IpAddr) -> Requester {
        let user = match key {
            UserKey::Known(key) => self.hasher.hash_one(key),
            UserKey::Random(_) | UserKey::None => self.hasher.hash_one(client),
        };
        Requester {
            user: user as u32,
            network: self.hasher.hash_one(forward::network_of(client)) as u32,
        }
    }
}
