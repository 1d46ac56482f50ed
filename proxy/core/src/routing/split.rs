//! Who goes where: the immutable snapshot the data path reads, and the decision for one request.
//!
//! A [`Split`] is built by the control plane and never changed; a request reads one from start to
//! end. What is heavy (lists, keys, match rules) sits in an `Arc<RolloutRule>` shared from one
//! split to the next, so that publishing a drop copies a few words.
//!
//! Deliberately absent: extraction of the user key from a request (the gateway's `identity`), and
//! chance: a random bucket is an argument.

use std::collections::HashSet;
use std::sync::Arc;

use crate::control::maintenance::Restriction;
use crate::percent::Percent;
use crate::routing::bucket::{Bucket, Salt};
use crate::routing::routes::Routes;
use crate::side::{PerSide, Side};
use crate::stats::outcome::Evidence;

/// What the data path needs of all rollouts, in file order.
#[derive(Clone, Debug, Default)]
pub struct Split {
    /// Grows with every published change.
    pub revision: u64,
    /// In file order: the first match wins.
    pub rollouts: Vec<RolloutSplit>,
    /// What is kept out of the requests that match no rollout.
    pub maintenance: Restriction,
    /// Which of `rollouts` takes a request.
    pub routes: Arc<Routes>,
}

impl Split {
    /// The first rollout that matches, by its place in `rollouts`.
    pub fn rollout_for(&self, host: &str, path: &str, method: &str) -> Option<usize> {
        self.routes.find(host, path, method)
    }

    /// What is kept out of the requests of a rollout, or of those that match none.
    pub fn restriction(&self, at: Option<usize>) -> Restriction {
        at.map_or(self.maintenance, |at| self.rollouts[at].maintenance)
    }
}

impl Split {
    /// This split with nobody exposed who is not exposed under `in_force`: shares at the lower of
    /// the two, latches kept, rollouts that are new at zero.
    pub fn capped_by(mut self, in_force: &Self) -> Self {
        for rollout in &mut self.rollouts {
            match in_force
                .rollouts
                .iter()
                .find(|before| before.rule.id == rollout.rule.id)
            {
                Some(before) => {
                    rollout.percent = rollout.percent.min(before.percent);
                    rollout.latched |= before.latched;
                }
                None => rollout.percent = Percent::ZERO,
            }
        }
        self
    }
}

/// What another process has in force that serves the same users and leads.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lead {
    /// Each of its rollouts.
    pub rollouts: Vec<LedRollout>,
    /// What is kept out of requests that match no rollout.
    pub maintenance: Restriction,
}

/// What another process has in force for one rollout.
#[derive(Clone, Debug, PartialEq)]
pub struct LedRollout {
    /// Its id.
    pub id: Arc<str>,
    /// The effective share of users on new.
    pub percent: Percent,
    /// Whether it is rolled back.
    pub latched: bool,
    /// What is kept out of its requests.
    pub maintenance: Restriction,
}

impl Lead {
    /// What this split means for a process that follows.
    pub fn of(split: &Split) -> Self {
        let rollouts = split.rollouts.iter().map(|rollout| LedRollout {
            id: Arc::clone(&rollout.rule.id),
            percent: rollout.percent,
            latched: rollout.latched,
            maintenance: rollout.maintenance,
        });
        Self {
            rollouts: rollouts.collect(),
            maintenance: split.maintenance,
        }
    }
}

impl Split {
    /// The shares, latches and maintenance of the process that leads; what is latched here stays
    /// so. Of a rollout that it does not have nobody goes to new.
    pub fn led_by(mut self, lead: &Lead) -> Self {
        for rollout in &mut self.rollouts {
            match lead.rollouts.iter().find(|led| led.id == rollout.rule.id) {
                Some(led) => {
                    rollout.latched |= led.latched;
                    rollout.percent = if rollout.latched {
                        Percent::ZERO
                    } else {
                        led.percent
                    };
                    rollout.maintenance = led.maintenance;
                }
                None => (rollout.percent, rollout.latched) = (Percent::ZERO, true),
            }
        }
        self.maintenance = lead.maintenance;
        self
    }
}

/// One rollout as the data path sees it now.
#[derive(Clone, Debug)]
pub struct RolloutSplit {
    /// What only a changed file changes.
    pub rule: Arc<RolloutRule>,
    /// The effective share of users on new: the file's, or zero while latched.
    pub percent: Percent,
    /// Rolled back: everybody is on legacy, lists included.
    pub latched: bool,
    /// Whether users may be on new although it is rolled back.
    pub spill: Spill,
    /// Changes when the rollout is re-armed. Outcomes of requests decided under another epoch are
    /// no evidence.
    pub epoch: u64,
    /// What is kept out of its requests.
    pub maintenance: Restriction,
}

/// Whether users of a rolled-back rollout go to new when legacy cannot take them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spill {
    /// Never: a person rolled back, or it is not rolled back.
    #[default]
    Never,
    /// While legacy has no server to send to.
    WithoutServer,
    /// Now: legacy has servers, but they do not answer.
    Now,
}

/// The part of a rollout that only a changed file changes.
#[derive(Clone, Debug)]
pub struct RolloutRule {
    /// The id of the rollout.
    pub id: Arc<str>,
    /// Its place in the recorder, the same for as long as the process lives.
    pub slot: usize,
    /// Which requests it takes.
    pub matches: Match,
    /// The salt of its hash.
    pub salt: Salt,
    /// Where the user key comes from; the first source that is not empty wins.
    pub keys: Vec<Key>,
    /// What happens to a request without a key.
    pub anonymous: Anonymous,
    /// Users on new whatever their bucket, unless rolled back.
    pub always_new: UserList,
    /// Users on legacy whatever their bucket.
    pub always_legacy: UserList,
    /// Names of the backends of the two sides.
    pub backends: PerSide<Arc<str>>,
    /// Whether a request that fails on new is answered by legacy.
    pub failover: Failover,
    /// Path prefixes, in the form of [`Match::path`], below which a file that is missing on one
    /// side is fetched from the other.
    pub fallback_on_404: Vec<Box<str>>,
}

impl RolloutRule {
    /// Whether a file missing at this normalised path is fetched from the other side.
    pub fn falls_back(&self, path: &str) -> bool {
        self.fallback_on_404
            .iter()
            .any(|prefix| is_below(prefix, path))
    }
}

/// Which requests that fail on new are answered by legacy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Failover {
    /// None.
    Off,
    /// Those of which nothing was sent: the connection could not be made.
    Connect,
    /// These, and those that change nothing (GET, HEAD, OPTIONS) if the failure shows before the
    /// response header or is one (5xx).
    #[default]
    Safe,
}

impl Failover {
    /// The name the file uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Connect => "connect",
            Self::Safe => "safe",
        }
    }
}

/// Whether a normalised path is the prefix or below it, by whole segments.
fn is_below(prefix: &str, path: &str) -> bool {
    prefix == "/"
        || path
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Which requests a rollout takes. Each part is optional; an absent one accepts everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// Lower-case host without port, or `*.example.org` for any name below it.
    pub host: Option<Box<str>>,
    /// Path prefix by whole segments, beginning with `/` and without a closing one: `/shop` takes
    /// `/shop` and `/shop/1`, not `/shopping`.
    pub path: Option<Box<str>>,
    /// Upper-case methods; empty takes all.
    pub methods: Vec<Box<str>>,
}

impl Match {
    /// Whether a request is taken. `host` has no port and may end in the dot of a full name, `path`
    /// is normalised and has no query.
    pub fn accepts(&self, host: &str, path: &str, method: &str) -> bool {
        self.accepts_host(host)
            && self.accepts_path(path)
            && (self.methods.is_empty()
                || self.methods.iter().any(|accepted| &**accepted == method))
    }

    fn accepts_host(&self, host: &str) -> bool {
        let host = without_root(host);
        match self.host.as_deref() {
            None => true,
            Some(wanted) => match wanted.strip_prefix('*') {
                None => wanted.eq_ignore_ascii_case(host),
                Some(suffix) => {
                    let Some(at) = host.len().checked_sub(suffix.len()) else {
                        return false;
                    };
                    at > 0 && host.as_bytes()[at..].eq_ignore_ascii_case(suffix.as_bytes())
                }
            },
        }
    }

    fn accepts_path(&self, path: &str) -> bool {
        match self.path.as_deref() {
            None | Some("" | "/") => true,
            Some(prefix) => is_below(prefix, path),
        }
    }
}

/// A host without the dot that a full name may end in: `shop.example.` is `shop.example`.
pub(crate) fn without_root(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}

/// A place where the user key may be found in a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KeySource {
    /// A request header, lower case.
    Header(Box<str>),
    /// A cookie.
    Cookie(Box<str>),
    /// A claim of the bearer token, read without verifying its signature: for bucketing only.
    Jwt(Box<str>),
    /// A query parameter.
    Query(Box<str>),
    /// The N-th path segment, counted from 1.
    Path(usize),
    /// The client's address.
    Ip,
}

impl KeySource {
    /// The source as the file writes it, such as `header:x-user-id`.
    pub fn text(&self) -> String {
        match self {
            Self::Header(name) => format!("header:{name}"),
            Self::Cookie(name) => format!("cookie:{name}"),
            Self::Jwt(claim) => format!("jwt:{claim}"),
            Self::Query(name) => format!("query:{name}"),
            Self::Path(segment) => format!("path:{segment}"),
            Self::Ip => "ip".to_owned(),
        }
    }
}

/// One step in reading what a source has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyStep {
    /// Percent-decodes. A plus sign stays one, and what is no escape stays as it is.
    Decode,
    /// Writes ASCII letters in lower case.
    Lower,
    /// Removes ASCII white space at both ends.
    Trim,
    /// Decodes base64 of either alphabet, with or without padding. Anything else counts as no key.
    Base64,
}

impl KeyStep {
    /// Every step.
    pub const ALL: [Self; 4] = [Self::Decode, Self::Lower, Self::Trim, Self::Base64];

    /// The step as the file writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Lower => "lower",
            Self::Trim => "trim",
            Self::Base64 => "base64",
        }
    }
}

/// Where a user key may be found, and how what stands there is read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The place.
    pub source: KeySource,
    /// The steps of reading, in order.
    pub steps: Vec<KeyStep>,
}

impl Key {
    /// The key as the file writes it, such as `cookie:uid|decode|lower`.
    pub fn text(&self) -> String {
        self.steps
            .iter()
            .fold(self.source.text(), |text, step| text + "|" + step.name())
    }
}

impl From<KeySource> for Key {
    fn from(source: KeySource) -> Self {
        Self {
            source,
            steps: Vec::new(),
        }
    }
}

/// What happens to a request without a user key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Anonymous {
    /// Goes to legacy.
    #[default]
    Legacy,
    /// Gets an id in a cookie and is bucketed by it, this very request included.
    Cookie,
    /// Is decided by chance, request by request.
    Random,
}

/// User keys named by the operator. The map hashes in memory only, with fixed seeds: its order and
/// output are never seen.
#[derive(Clone, Debug)]
pub struct UserList(HashSet<Box<[u8]>, ahash::RandomState>);

impl UserList {
    /// A list of these keys.
    pub fn new<K: AsRef<[u8]>>(keys: impl IntoIterator<Item = K>) -> Self {
        let mut list = HashSet::with_hasher(ahash::RandomState::with_seeds(1, 2, 3, 4));
        list.extend(keys.into_iter().map(|key| key.as_ref().into()));
        Self(list)
    }

    /// Whether the key is named.
    pub fn contains(&self, key: &[u8]) -> bool {
        !self.0.is_empty() && self.0.contains(key)
    }

    /// How many keys are named.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nobody is named.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Default for UserList {
    fn default() -> Self {
        Self::new(std::iter::empty::<&[u8]>())
    }
}

impl PartialEq for UserList {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub enum UserKey<'a> {
    /// A key that the request carries, or one minted for it just now.
    Known(&'a [u8]),
    /// No key, and chance decides: a bucket drawn by the shell.
    Random(Bucket),
    /// No key.
    None,
}

/// One request, as far as the decision is concerned.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The user.
    pub key: UserKey<'a>,
    /// The side a tester asked for with a valid token.
    pub override_to: Option<Side>,
    /// Which backends have a server to send to.
    pub available: PerSide<bool>,
}

/// Where a request goes, and why: shown by `explain`, the access log and the headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The side that serves.
    pub side: Side,
    /// The user's bucket, when there is a user.
    pub bucket: Option<Bucket>,
    /// Which step decided.
    pub reason: Reason,
}

impl Decision {
    /// What the request is evidence of. Testers are few and do odd things. Users whom a list, the
    /// lack of a key or the lack of a server placed differ from those whom the hash or chance did,
    /// so only the latter can be compared with the other side.
    pub const fn evidence(&self) -> Evidence {
        match (self.reason, self.bucket) {
            (Reason::Override, _) => Evidence::None,
            (Reason::Bucket, _) | (Reason::Anonymous, Some(_)) => Evidence::Compared,
            (
                Reason::AlwaysLegacy
                | Reason::RolledBack
                | Reason::AlwaysNew
                | Reason::Anonymous
                | Reason::Health,
                _,
            ) => Evidence::Limits,
        }
    }
}

/// The step of the decision that settled it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// A tester's override with a valid token.
    Override,
    /// Named in `always_legacy`.
    AlwaysLegacy,
    /// The rollout is rolled back: legacy for everybody.
    RolledBack,
    /// Named in `always_new`.
    AlwaysNew,
    /// No user key.
    Anonymous,
    /// The user's bucket against the percentage.
    Bucket,
    /// The backend of choice has no server to send to, so the other one serves.
    Health,
}

impl Reason {
    /// How many reasons there are.
    pub const COUNT: usize = 7;
    /// All reasons, in the order of their index.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Override,
        Self::AlwaysLegacy,
        Self::RolledBack,
        Self::AlwaysNew,
        Self::Anonymous,
        Self::Bucket,
        Self::Health,
    ];

    /// The name used in headers, metrics, the access log and `explain`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Override => "override",
            Self::AlwaysLegacy => "always_legacy",
            Self::RolledBack => "rolled_back",
            Self::AlwaysNew => "always_new",
            Self::Anonymous => "anonymous",
            Self::Bucket => "bucket",
            Self::Health => "health",
        }
    }

    /// The place of this reason in [`Reason::ALL`] and in arrays of counts.
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// Decides one request by the order of the contract: override, `always_legacy`, rolled back,
/// `always_new`, no key, bucket; then health.
///
/// Maintenance, the contract's first step, answers a request instead of sending it somewhere and so
/// stands before this function. Health moves only those whom a list, chance, their bucket or a
/// rollback of the guard put there: a tester's override, `always_legacy` and a rollback by a person
/// are somebody's explicit word.
pub fn decide(rollout: &RolloutSplit, ask: &Ask<'_>) -> Decision {
    let rule = &*rollout.rule;
    let (key, bucket) = match ask.key {
        UserKey::Known(key) => (Some(key), Some(rule.salt.bucket(key))),
        UserKey::Random(bucket) => (None, Some(bucket)),
        UserKey::None => (None, None),
    };
    let decision = |side, reason| Decision {
        side,
        bucket,
        reason,
    };
    if let Some(side) = ask.override_to {
        return decision(side, Reason::Override);
    }
    if key.is_some_and(|key| rule.always_legacy.contains(key)) {
        return decision(Side::Legacy, Reason::AlwaysLegacy);
    }
    if rollout.latched {
        let spills = match rollout.spill {
            Spill::Never => false,
            Spill::WithoutServer => !ask.available.legacy,
            Spill::Now => true,
        };
        return if spills && ask.available.new {
            decision(Side::New, Reason::Health)
        } else {
            decision(Side::Legacy, Reason::RolledBack)
        };
    }
    let by_bucket = |bucket: Bucket| {
        if bucket.is_within(rollout.percent) {
            Side::New
        } else {
            Side::Legacy
        }
    };
    let chosen = match (key, bucket) {
        (Some(key), _) if rule.always_new.contains(key) => decision(Side::New, Reason::AlwaysNew),
        (Some(_), Some(bucket)) => decision(by_bucket(bucket), Reason::Bucket),
        (None, Some(bucket)) => decision(by_bucket(bucket), Reason::Anonymous),
        (_, None) => decision(Side::Legacy, Reason::Anonymous),
    };
    if !ask.available[chosen.side] && ask.available[chosen.side.other()] {
        return decision(chosen.side.other(), Reason::Health);
    }
    chosen
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn rule(matches: Match) -> RolloutRule {
        RolloutRule {
            id: "checkout".into(),
            slot: 0,
            matches,
            salt: Salt::new("checkout"),
            keys: vec![],
            anonymous: Anonymous::Legacy,
            always_new: UserList::new(["qa-1", "both"]),
            always_legacy: UserList::new(["vip", "both"]),
            backends: PerSide {
                legacy: "legacy".into(),
                new: "new".into(),
            },
            failover: Failover::Off,
            fallback_on_404: vec!["/assets".into()],
        }
    }

    fn rollout(percent: &str, latched: bool) -> RolloutSplit {
        let percent = if latched {
            Percent::ZERO
        } else {
            Percent::parse(percent).expect("a percentage")
        };
        RolloutSplit {
            rule: Arc::new(rule(Match::default())),
            percent,
            latched,
            spill: Spill::Never,
            epoch: 0,
            maintenance: Restriction::default(),
        }
    }

    fn ask(key: Option<&str>) -> Ask<'_> {
        Ask {
            key: key.map_or(UserKey::None, |key| UserKey::Known(key.as_bytes())),
            override_to: None,
            available: PerSide {
                legacy: true,
                new: true,
            },
        }
    }

    fn check(rollout: &RolloutSplit, ask: &Ask<'_>, side: Side, reason: Reason) {
        let decision = decide(rollout, ask);
        assert_eq!((decision.side, decision.reason), (side, reason));
    }

    #[test]
    fn each_step_decides_before_the_next() {
        let full = rollout("100", false);
        let none = rollout("0", false);
        check(
            &full,
            &Ask {
                override_to: Some(Side::Legacy),
                ..ask(Some("qa-1"))
            },
            Side::Legacy,
            Reason::Override,
        );
        check(
            &none,
            &Ask {
                override_to: Some(Side::New),
                ..ask(Some("vip"))
            },
            Side::New,
            Reason::Override,
        );
        check(&full, &ask(Some("vip")), Side::Legacy, Reason::AlwaysLegacy);
        check(
            &full,
            &ask(Some("both")),
            Side::Legacy,
            Reason::AlwaysLegacy,
        );
        check(&none, &ask(Some("qa-1")), Side::New, Reason::AlwaysNew);
        check(&full, &ask(None), Side::Legacy, Reason::Anonymous);
        check(&full, &ask(Some("u")), Side::New, Reason::Bucket);
        check(&none, &ask(Some("u")), Side::Legacy, Reason::Bucket);
    }

    #[test]
    fn a_rollback_is_above_lists_and_buckets_but_not_above_a_testers_override() {
        let latched = rollout("100", true);
        check(
            &latched,
            &ask(Some("qa-1")),
            Side::Legacy,
            Reason::RolledBack,
        );
        check(&latched, &ask(Some("u")), Side::Legacy, Reason::RolledBack);
        check(&latched, &ask(None), Side::Legacy, Reason::RolledBack);
        check(
            &latched,
            &Ask {
                override_to: Some(Side::New),
                ..ask(Some("u"))
            },
            Side::New,
            Reason::Override,
        );
    }

    #[test]
    fn a_backend_without_a_server_is_replaced_unless_somebody_said_otherwise() {
        let full = rollout("100", false);
        let no_new = PerSide {
            legacy: true,
            new: false,
        };
        let no_legacy = PerSide {
            legacy: false,
            new: true,
        };
        check(
            &full,
            &Ask {
                available: no_new,
                ..ask(Some("u"))
            },
            Side::Legacy,
            Reason::Health,
        );
        check(
            &full,
            &Ask {
                available: no_legacy,
                ..ask(None)
            },
            Side::New,
            Reason::Health,
        );
        check(
            &full,
            &Ask {
                available: no_legacy,
                ..ask(Some("vip"))
            },
            Side::Legacy,
            Reason::AlwaysLegacy,
        );
        check(
            &rollout("5", true),
            &Ask {
                available: no_legacy,
                ..ask(Some("u"))
            },
            Side::Legacy,
            Reason::RolledBack,
        );
        check(
            &full,
            &Ask {
                available: PerSide {
                    legacy: false,
                    new: false,
                },
                ..ask(Some("u"))
            },
            Side::New,
            Reason::Bucket,
        );
        check(
            &full,
            &Ask {
                available: no_new,
                override_to: Some(Side::New),
                ..ask(Some("u"))
            },
            Side::New,
            Reason::Override,
        );
    }

    #[test]
    fn after_a_rollback_by_the_guard_a_legacy_that_cannot_take_users_spills_to_new() {
        let spilling = |spill| RolloutSplit {
            spill,
            ..rollout("5", true)
        };
        let no_legacy = PerSide {
            legacy: false,
            new: true,
        };
        check(
            &spilling(Spill::WithoutServer),
            &Ask {
                available: no_legacy,
                ..ask(Some("u"))
            },
            Side::New,
            Reason::Health,
        );
        check(
            &spilling(Spill::WithoutServer),
            &Ask {
                available: no_legacy,
                ..ask(None)
            },
            Side::New,
            Reason::Health,
        );
        check(
            &spilling(Spill::WithoutServer),
            &ask(Some("u")),
            Side::Legacy,
            Reason::RolledBack,
        );
        check(
            &spilling(Spill::WithoutServer),
            &Ask {
                available: no_legacy,
                ..ask(Some("vip"))
            },
            Side::Legacy,
            Reason::AlwaysLegacy,
        );
        check(
            &spilling(Spill::Now),
            &ask(Some("u")),
            Side::New,
            Reason::Health,
        );
        check(
            &spilling(Spill::Now),
            &Ask {
                available: PerSide {
                    legacy: true,
                    new: false,
                },
                ..ask(Some("u"))
            },
            Side::Legacy,
            Reason::RolledBack,
        );
    }

    #[test]
    fn only_users_placed_by_the_hash_or_by_chance_are_compared() {
        let half = rollout("50", false);
        let evidence = |ask: &Ask<'_>| decide(&half, ask).evidence();
        let chance = UserKey::Random(Bucket::of_hash(7));
        let no_legacy = PerSide {
            legacy: false,
            new: true,
        };
        assert_eq!(evidence(&ask(Some("u"))), Evidence::Compared);
        assert_eq!(
            evidence(&Ask {
                key: chance,
                ..ask(None)
            }),
            Evidence::Compared
        );
        assert_eq!(
            evidence(&ask(None)),
            Evidence::Limits,
            "without a key everybody is on legacy"
        );
        assert_eq!(evidence(&ask(Some("qa-1"))), Evidence::Limits);
        assert_eq!(evidence(&ask(Some("vip"))), Evidence::Limits);
        assert_eq!(
            evidence(&Ask {
                available: no_legacy,
                ..ask(None)
            }),
            Evidence::Limits
        );
        assert_eq!(
            evidence(&Ask {
                override_to: Some(Side::New),
                ..ask(Some("u"))
            }),
            Evidence::None
        );
        assert_eq!(
            decide(&rollout("50", true), &ask(Some("u"))).evidence(),
            Evidence::Limits
        );
    }

    #[test]
    fn chance_is_bucketed_like_a_user() {
        let half = rollout("50", false);
        let low = UserKey::Random(Bucket::of_hash(0));
        let high = UserKey::Random(Bucket::of_hash(u32::MAX));
        check(
            &half,
            &Ask {
                key: low,
                ..ask(None)
            },
            Side::New,
            Reason::Anonymous,
        );
        check(
            &half,
            &Ask {
                key: high,
                ..ask(None)
            },
            Side::Legacy,
            Reason::Anonymous,
        );
    }

    #[test]
    fn a_match_takes_whole_segments_and_hosts() {
        let matches = Match {
            host: Some("shop.example".into()),
            path: Some("/checkout".into()),
            methods: vec!["GET".into(), "POST".into()],
        };
        for (host, path, method, accepted) in [
            ("shop.example", "/checkout", "GET", true),
            ("SHOP.example", "/checkout/1", "POST", true),
            ("shop.example", "/checkouts", "GET", false),
            ("shop.example", "/", "GET", false),
            ("shop.example", "/checkout", "PUT", false),
            ("evil-shop.example", "/checkout", "GET", false),
        ] {
            assert_eq!(
                matches.accepts(host, path, method),
                accepted,
                "{method} {host}{path}"
            );
        }
        let below = Match {
            host: Some("*.example".into()),
            ..Match::default()
        };
        assert!(below.accepts("shop.example", "/", "GET"));
        assert!(!below.accepts("example", "/", "GET"));
        assert!(!below.accepts(".example", "/", "GET"));
        assert!(Match::default().accepts("", "/", "GET"));
    }
}
