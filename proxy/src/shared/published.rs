//! The one handle through which the control plane reaches the data path: a snapshot that is
//! replaced as a whole.
//!
//! Everything that must agree is in one [`Snapshot`]: percentages, latches, backends, header
//! values. A request takes one at its start and keeps it to its end, so it sees one version of the
//! file. Only the control plane replaces the snapshot, and the gateway reads it. Tasks that wait
//! for changes are notified of each one.
//!
//! Written by: the control loop. Read by: the gateway, health checks and the admin port.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use cutover_config::Settings;
use cutover_core::{Key, KeySource, KeyStep, Mono, PerSide, Percent, Side, Split};
use http::{HeaderName, HeaderValue};
use tokio::sync::watch;

use crate::shared::recorder::slot_of;
use crate::upstream::Backend;

/// The snapshot in force.
#[derive(Debug)]
pub struct Published {
    snapshot: ArcSwap<Snapshot>,
    changes: watch::Sender<()>,
}

impl Published {
    /// Creates the handle with this snapshot.
    pub fn new(snapshot: Snapshot) -> Self {
        Self {
            snapshot: ArcSwap::from_pointee(snapshot),
            changes: watch::Sender::new(()),
        }
    }

    /// Returns the snapshot in force.
    pub fn load(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Returns a receiver that is notified of each new snapshot from now on.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Puts a snapshot in force for every request that starts from now on. For the control plane
    /// only.
    pub(crate) fn swap(&self, snapshot: Snapshot) {
        self.snapshot.store(Arc::new(snapshot));
        self.changes.send_replace(());
    }
}

/// Everything that the data path needs to know.
#[derive(Debug)]
pub struct Snapshot {
    /// The split of users between the sides.
    pub split: Split,
    /// The prepared parts of each rollout, in the order of `split.rollouts`.
    pub prepared: Vec<Arc<Prepared>>,
    /// The parts that do not belong to a single rollout.
    pub common: Arc<Common>,
}

/// The parts of a configuration file besides its rollouts, prepared for the data path.
#[derive(Debug)]
pub struct Common {
    /// The parsed file.
    pub settings: Settings,
    /// The backends by name.
    pub backends: BTreeMap<Arc<str>, Arc<Backend>>,
    /// The backend for requests that match no rollout.
    pub default_backend: Arc<Backend>,
    /// Whether all servers of the default backend speak HTTP/1.1 without TLS.
    pub is_default_plain: bool,
    /// The lower-case names of headers that carry a user key in any rollout. None of them may be
    /// named as hop-by-hop in `Connection`.
    pub key_headers: Vec<HeaderName>,
}

/// The prepared parts of one rollout.
#[derive(Debug)]
pub struct Prepared {
    /// The recorder slot of the rollout.
    pub slot: usize,
    /// The backends of the rollout.
    pub backends: PerSide<Arc<Backend>>,
    /// Whether all servers of both backends speak HTTP/1.1 without TLS.
    pub is_plain: bool,
    /// The id of the rollout as a header value.
    pub id: HeaderValue,
    /// The key sources of the rollout with parsed header names.
    pub keys: Vec<PreparedKey>,
    /// The header in which the backends report the result of an answer.
    pub outcome_header: Option<HeaderName>,
}

/// A key source, ready to be looked up.
#[derive(Clone, Debug)]
pub struct PreparedKey {
    /// Where the key is found.
    pub source: KeySource,
    /// The steps by which the value is read.
    pub steps: Box<[KeyStep]>,
    /// The header that carries the key, if the source is a header.
    pub header: Option<HeaderName>,
}

impl PreparedKey {
    /// Prepares one source.
    pub fn new(key: &Key) -> Self {
        let Key { source, steps } = key;
        let header = match source {
            KeySource::Header(name) => HeaderName::from_bytes(name.as_bytes()).ok(),
            KeySource::Cookie(_) => Some(http::header::COOKIE),
            KeySource::Jwt(_) => Some(http::header::AUTHORIZATION),
            KeySource::Query(_) | KeySource::Path(_) | KeySource::Ip => None,
        };
        Self {
            source: source.clone(),
            steps: steps.as_slice().into(),
            header,
        }
    }
}

impl Common {
    /// Prepares a configuration file. Backends whose settings did not change are taken over from
    /// `before`. New ones resolve their names, which may block on DNS.
    pub fn new(settings: Settings, before: Option<&Self>) -> Self {
        let backends: BTreeMap<Arc<str>, Arc<Backend>> = settings
            .backends
            .iter()
            .map(|backend| {
                let running = before.and_then(|before| before.backends.get(&backend.name));
                let same = running.filter(|running| running.settings() == backend);
                let backend = same.cloned().unwrap_or_else(|| {
                    Arc::new(Backend::new(
                        backend.clone(),
                        running.map(|running| &**running),
                    ))
                });
                (Arc::clone(&backend.settings().name), backend)
            })
            .collect();
        let default_backend = Arc::clone(&backends[&settings.routing.default_backend]);
        let mut key_headers: Vec<HeaderName> = settings
            .rollouts
            .iter()
            .flat_map(|rollout| &rollout.keys)
            .filter_map(|source| PreparedKey::new(source).header)
            .collect();
        key_headers.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        key_headers.dedup();
        Self {
            is_default_plain: default_backend.is_plain(),
            settings,
            backends,
            default_backend,
            key_headers,
        }
    }
}

impl Common {
    fn outcome_header_of(&self, rollout: &str) -> Option<HeaderName> {
        let settings = self
            .settings
            .rollouts
            .iter()
            .find(|settings| &*settings.id == rollout)?;
        HeaderName::from_bytes(settings.guard.outcome_header.as_deref()?.as_bytes()).ok()
    }
}

impl Snapshot {
    /// Joins a split with the file it was made from. Unchanged parts of `before` are shared.
    pub fn new(split: Split, common: Arc<Common>, before: Option<&Self>) -> Self {
        let prepared = split
            .rollouts
            .iter()
            .map(|rollout| {
                let same = before
                    .filter(|before| Arc::ptr_eq(&before.common, &common))
                    .and_then(|before| {
                        let at = before
                            .split
                            .rollouts
                            .iter()
                            .position(|running| Arc::ptr_eq(&running.rule, &rollout.rule))?;
                        before.prepared.get(at)
                    });
                same.cloned().unwrap_or_else(|| {
                    let rule = &rollout.rule;
                    let backends =
                        PerSide::from_fn(|side| Arc::clone(&common.backends[&rule.backends[side]]));
                    Arc::new(Prepared {
                        slot: slot_of(rule.slot),
                        is_plain: Side::BOTH.into_iter().all(|side| backends[side].is_plain()),
                        backends,
                        id: HeaderValue::from_str(&rule.id)
                            .unwrap_or_else(|_| HeaderValue::from_static("invalid")),
                        keys: rule.keys.iter().map(PreparedKey::new).collect(),
                        outcome_header: common.outcome_header_of(&rule.id),
                    })
                })
            })
            .collect();
        Self {
            split,
            prepared,
            common,
        }
    }

    /// Returns the backends that receive a share of some rollout's users as new.
    pub fn new_in_use(&self) -> Vec<Arc<Backend>> {
        let rollouts = self.split.rollouts.iter().zip(&self.prepared);
        rollouts
            .filter(|(rollout, _)| rollout.percent > Percent::ZERO)
            .map(|(_, prepared)| Arc::clone(&prepared.backends.new))
            .collect()
    }

    /// Returns which sides of a rollout have passed a health check recently.
    pub fn pass_checks(&self, at: usize, now: Mono) -> PerSide<bool> {
        PerSide::from_fn(|side: Side| self.prepared[at].backends[side].has_passed_a_check(now))
    }

    /// Returns which sides of a rollout have a server that can be used.
    pub fn available(&self, at: usize) -> PerSide<bool> {
        PerSide::from_fn(|side: Side| self.prepared[at].backends[side].is_available())
    }
}
