//! A request head, a configuration file and a published snapshot, for the tests of the gateway.

use super::{Limits, Router};
use crate::gateway::message::head::{Conn, Edits, Head, Value};
use crate::shared::published::{Published, Snapshot};
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::traces::Traces;
use cutover_config::NoFiles;
use cutover_core::Maintenance;
use http::{HeaderName, Method};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::shared::recorder::{Reader, recorder};
use cutover_core::control::plane::{Actor, Restored};
use cutover_core::{ControlPlane, Event};

/// A request head for tests, without an engine.
pub(crate) struct TestHead {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: Option<String>,
    pub(crate) headers: Vec<(HeaderName, Vec<u8>)>,
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

    pub(crate) fn method(mut self, method: Method) -> Self {
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

pub(crate) const FILE: &str = r#"
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

/// A configuration in force for tests, and the means to change what is published.
pub(crate) struct World {
    pub(crate) plane: ControlPlane,
    pub(crate) common: Arc<crate::shared::published::Common>,
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

    /// Puts a maintenance mode in force at time zero.
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

    pub(crate) fn router(&self) -> (Router, Reader) {
        let listen = &self.common.settings.listen;
        let limits = Limits {
            max_header_bytes: listen.max_header_bytes,
            max_body: listen.max_body,
        };
        let (recorder, reader) = recorder();
        (
            Router::new(
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

pub(crate) fn conn() -> Conn {
    Conn::new(IpAddr::from([192, 0, 2, 7]), false, false)
}

pub(crate) fn head(target: &str) -> TestHead {
    TestHead::get(target).with("host", "shop.example:8080")
}
