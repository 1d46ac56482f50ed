//! The split: the immutable snapshot that the data path reads, and the decision for one request.
//!
//! A [`Split`] is built by the control plane and never changed. A request reads a single one from
//! start to end. Large parts (lists, keys, match rules) are in an `Arc<RolloutRule>` that one split
//! shares with the next, so that publishing a drop copies only a few words.
//!
//! Deliberately absent: extraction of the user key from a request (the gateway's `identity`), and
//! chance: a random bucket is an argument.

mod key;
mod rule;
mod successor;

pub(crate) use rule::without_root;
use std::sync::Arc;

use crate::percent::Percent;
use crate::routing::bucket::Bucket;
use crate::routing::restriction::Restriction;
use crate::routing::routes::Routes;
use crate::side::{PerSide, Side};
use crate::stats::outcome::Evidence;
pub use key::{Anonymous, Key, KeySource, KeyStep, UserKey, UserList};
pub use rule::{Failover, Match, RolloutRule};
pub use successor::{Lead, LedRollout};

/// The part of all rollouts that the data path needs, in file order.
#[derive(Clone, Debug, Default)]
pub struct Split {
    /// The revision, which grows with every published change.
    pub revision: u64,
    /// The rollouts in file order. The first match applies.
    pub rollouts: Vec<RolloutSplit>,
    /// The restriction for requests that match no rollout.
    pub maintenance: Restriction,
    /// The lookup from a request to the index of its rollout in `rollouts`.
    pub routes: Arc<Routes>,
}

impl Split {
    /// Returns the first rollout that matches, as its index in `rollouts`.
    pub fn rollout_for(&self, host: &str, path: &str, method: &str) -> Option<usize> {
        self.routes.find(host, path, method)
    }

    /// Returns the restriction for requests of a rollout, or for requests that match none.
    pub fn restriction(&self, at: Option<usize>) -> Restriction {
        at.map_or(self.maintenance, |at| self.rollouts[at].maintenance)
    }
}

impl Split {
    /// Returns this split without users on new who are not on new under `in_force`. Shares are at
    /// the lower of the two, latches are kept, and added rollouts are at zero.
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

impl Split {
    /// Returns this split with the shares, latches and maintenance of the leading process. A latch
    /// of this process stays in force. Users of a rollout that the leading process does not have
    /// are not sent to new.
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

/// One rollout as the data path uses it now.
#[derive(Clone, Debug)]
pub struct RolloutSplit {
    /// The part that only a changed file changes.
    pub rule: Arc<RolloutRule>,
    /// The effective share of users on new: the share in the file, or zero while latched.
    pub percent: Percent,
    /// Whether the rollout is rolled back, so that all users are on legacy, including listed ones.
    pub latched: bool,
    /// Whether users may be on new although the rollout is rolled back.
    pub spill: Spill,
    /// The epoch, which changes when the rollout is re-armed. Outcomes of requests decided under
    /// another epoch are not evidence.
    pub epoch: u64,
    /// The restriction for the rollout's requests.
    pub maintenance: Restriction,
}

/// Whether users of a rolled-back rollout are sent to new when legacy cannot take them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spill {
    /// Never: the rollout was rolled back by a person, or it is not rolled back.
    #[default]
    Never,
    /// While legacy has no available server.
    WithoutServer,
    /// Now: legacy has servers, but they do not answer.
    Now,
}

/// One request, reduced to what the decision needs.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The user of the request.
    pub key: UserKey<'a>,
    /// The side that a tester requested with a valid token. `None` without an override.
    pub override_to: Option<Side>,
    /// Whether each backend has an available server.
    pub available: PerSide<bool>,
}

/// The side that a request goes to, and the reason. Shown by `explain`, the access log and the
/// headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The side that serves the request.
    pub side: Side,
    /// The user's bucket. `None` when there is no user.
    pub bucket: Option<Bucket>,
    /// The step that decided.
    pub reason: Reason,
}

impl Decision {
    /// Returns what kind of evidence the request is. Testers are few and behave unusually. Users
    /// placed by a list, by the lack of a key or by the lack of a server differ from users whom the
    /// hash or chance placed. Only the latter can be compared with the other side.
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

/// The step that decided a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// A tester's override with a valid token.
    Override,
    /// The user is listed in `always_legacy`.
    AlwaysLegacy,
    /// The rollout is rolled back: all users are on legacy.
    RolledBack,
    /// The user is listed in `always_new`.
    AlwaysNew,
    /// The request has no user key.
    Anonymous,
    /// The user's bucket was compared with the percentage.
    Bucket,
    /// The preferred backend has no available server, so the other one serves.
    Health,
}

impl Reason {
    /// The number of reasons.
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

    /// Returns the name used in headers, metrics, the access log and `explain`.
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

    /// Returns the index of this reason in [`Reason::ALL`] and in arrays of counts.
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// Decides one request by the order of the contract: override, `always_legacy`, rolled back,
/// `always_new`, no key, bucket; then health.
///
/// Maintenance, the contract's first step, answers a request instead of sending it to a backend,
/// and is therefore handled before this function. Health moves only users who were placed by a
/// list, by chance, by their bucket or by a rollback of the guard. A tester's override,
/// `always_legacy` and a rollback by a person are explicit decisions.
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
    use crate::Salt;

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
    fn each_step_of_the_decision_precedes_the_next() {
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
    fn a_rollback_outranks_lists_and_buckets_but_not_an_override() {
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
    fn a_backend_without_a_server_is_replaced_unless_chosen_explicitly() {
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
    fn after_a_guard_rollback_an_unavailable_legacy_spills_to_new() {
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
    fn a_random_bucket_is_treated_like_a_users_bucket() {
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
    fn a_match_applies_to_whole_segments_and_hosts() {
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
