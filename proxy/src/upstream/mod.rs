//! The servers of a backend: addresses resolved off the request path, peers prepared in advance,
//! and which servers may be used.
//!
//! A [`Backend`] outlives reloads as long as its settings stay the same. Peers are identified by
//! address, TLS name and protocol, so a reload that changes none of these keeps the connection pool
//! warm. A name that no longer resolves keeps its last good addresses.
//!
//! A server is used unless its checks fail (`health` of the backend, see the module of that name)
//! or it is ejected. Five consecutive requests without an answer eject it for ten seconds, longer
//! each time, but the last server is never ejected. If no server of a backend passes its checks,
//! the backend is "without a server", and the decision then sends its users to the other side. An
//! answer of a server, even 500, never ejects it. Such answers are judged by the guard, for all
//! users at once.
//!
//! Servers take turns. Two of them are compared, and the one with fewer requests in flight gets the
//! next request (Mitzenmacher, *The Power of Two Choices in Randomized Load Balancing*, 2001).

pub mod fd_exhaustion;
pub mod health;
pub mod pool;
pub mod probe;
mod server;

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use cutover_config::{Backend as BackendSettings, Server as ServerSettings};
use cutover_core::Mono;
use pingora::protocols::tls::CaType;
use pingora::upstreams::peer::HttpPeer;
use pingora::utils::tls::{WrappedX509, parse_x509};
use sha2::{Digest, Sha256};

pub use server::{Chosen, Connect, Server, make_fresh};
use server::{EJECTED_FOR, FAILURES_TO_EJECT, MAX_EJECTIONS, Traffic, micros};

/// The number of concurrent streams on one HTTP/2 connection to a server. Additional streams open
/// another connection.
const MAX_STREAMS: usize = 100;

/// How often a backend that gives no answers gets a request that failed on the other side.
const TRY_SILENT_EVERY: Duration = Duration::from_secs(1);

/// The number of bytes of an HTTP/2 answer that wait for a client to read them.
pub const STREAM_WINDOW: u32 = 512 << 10;

/// The window for all streams of a connection together, in bytes. It covers the largest number of
/// concurrent streams, so that clients that do not read block no others.
pub const CONNECTION_WINDOW: u32 = STREAM_WINDOW * MAX_STREAMS as u32;

/// The bit position of the count of departures in the number that keeps connections apart.
const DEPARTURES: u32 = 3;

/// One backend of the file, ready for use.
#[derive(Debug)]
pub struct Backend {
    settings: BackendSettings,
    servers: ArcSwap<Vec<Arc<Server>>>,
    authorities: Option<Arc<CaType>>,
    /// The last good addresses of each server. Only the resolver takes this lock.
    resolved: Mutex<Vec<Vec<SocketAddr>>>,
    /// The number of names that have never had an address.
    unresolved: AtomicUsize,
    next: AtomicUsize,
    /// When a silent backend got its last request of a failover, in microseconds.
    tried_us: AtomicU64,
    traffic: Arc<Traffic>,
}

impl Backend {
    /// Creates a backend and resolves its addresses now. Servers that `before` already had keep
    /// their state. May block on DNS: never call it on the request path.
    pub fn new(settings: BackendSettings, before: Option<&Self>) -> Self {
        let resolved = Mutex::new(vec![Vec::new(); settings.servers.len()]);
        let authorities = settings.ca.as_ref().map(|authorities| -> Arc<CaType> {
            authorities
                .iter()
                .map(|der| WrappedX509::new(der.clone(), parse_x509))
                .collect()
        });
        let traffic = before.map_or_else(Arc::default, |before| Arc::clone(&before.traffic));
        let backend = Self {
            settings,
            servers: ArcSwap::default(),
            authorities,
            resolved,
            unresolved: AtomicUsize::default(),
            next: AtomicUsize::new(0),
            tried_us: AtomicU64::new(0),
            traffic,
        };
        backend.resolve();
        if let Some(before) = before {
            // Without checks, a failed server would never be marked healthy again.
            let checked = backend.settings.health.is_some();
            let known = before.servers.load();
            for server in &**backend.servers.load() {
                if let Some(known) = known.iter().find(|known| known.address == server.address) {
                    server.inherit(known);
                    server.passes_checks.fetch_or(!checked, Ordering::Relaxed);
                }
            }
        }
        backend
    }

    /// Returns the settings of the file.
    pub fn settings(&self) -> &BackendSettings {
        &self.settings
    }

    /// Returns whether all servers speak HTTP/1.1 without TLS.
    pub fn is_plain(&self) -> bool {
        !self.settings.http2 && self.settings.servers.iter().all(|server| !server.tls)
    }

    /// Returns all servers that have an address.
    pub fn servers(&self) -> Arc<Vec<Arc<Server>>> {
        self.servers.load_full()
    }

    /// Returns how many servers there would be without failures: all that have an address, and one
    /// for each name that has never had one.
    pub fn expected(&self) -> usize {
        self.servers.load().len() + self.unresolved.load(Ordering::Relaxed)
    }

    /// Returns the number of attempts in flight.
    pub fn active(&self) -> usize {
        self.traffic.active.load(Ordering::Relaxed)
    }

    /// Returns the number of idle connections of the lane.
    pub fn resting(&self) -> usize {
        self.servers
            .load()
            .iter()
            .map(|server| server.pool().len())
            .sum()
    }

    /// Drops connections that were idle for longer than allowed or have ended.
    pub fn tidy(&self, now: Mono) {
        self.servers
            .load()
            .iter()
            .for_each(|server| server.pool().tidy(self.settings.idle_timeout, now));
    }

    /// Returns how many attempts got their connection in this way.
    pub fn connects(&self, how: Connect) -> u64 {
        self.traffic.connects[how as usize].load(Ordering::Relaxed)
    }

    /// Returns whether a connection to one backend is likely to be usable as a connection to the
    /// other: they have the same name and the same addresses.
    pub fn is_like(&self, other: &Self) -> bool {
        let addresses = |backend: &Self| {
            backend
                .servers()
                .iter()
                .map(|server| server.address)
                .collect::<Vec<_>>()
        };
        self.settings.name == other.settings.name && addresses(self) == addresses(other)
    }

    /// Returns whether there is a server that can be used.
    pub fn is_available(&self) -> bool {
        self.servers
            .load()
            .iter()
            .any(|server| server.passes_checks())
    }

    /// Returns whether a request that failed on the other side may be sent here. A backend is
    /// silent
    /// when each of its servers gave no answer several times in a row. It gets one such request per
    /// second, which finds out whether it is back. All other requests keep the answer
    /// that they have, because the silent backend would only replace it by a worse one.
    pub fn takes_failover(&self, now: Mono) -> bool {
        if !self.is_available() {
            return false;
        }
        if self
            .servers
            .load()
            .iter()
            .any(|server| !server.is_silent(now))
        {
            return true;
        }
        let (now, last) = (micros(now), self.tried_us.load(Ordering::Relaxed));
        now.saturating_sub(last) >= TRY_SILENT_EVERY.as_micros() as u64
            && self
                .tried_us
                .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// Returns whether a check of one of the servers has passed within the last two intervals.
    pub fn has_passed_a_check(&self, now: Mono) -> bool {
        let Some(health) = &self.settings.health else {
            return false;
        };
        let since = micros(now.back(health.interval * 2)).max(1);
        self.servers
            .load()
            .iter()
            .any(|server| server.check_passed_us.load(Ordering::Relaxed) >= since)
    }

    /// Chooses a server for the next attempt, other than `tried`. `None` when there is none.
    pub fn choose(&self, tried: Option<SocketAddr>, now: Mono) -> Option<Chosen> {
        let servers = self.servers.load();
        if let [only] = servers.as_slice() {
            return (only.passes_checks() && tried.is_none()).then(|| Chosen::new(only));
        }
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let in_turn = || {
            (0..servers.len())
                .map(|step| &servers[turn.wrapping_add(step) % servers.len()])
                .filter(|server| Some(server.address) != tried)
        };
        let mut healthy = in_turn().filter(|server| server.is_healthy(now));
        let server = match (healthy.next(), healthy.next()) {
            (Some(first), Some(second)) => self.lighter(first, second, turn, now),
            (Some(only), None) => only,
            // All servers that pass their checks are ejected. Using one of them is better than
            // using none.
            (None, _) => in_turn().find(|server| server.passes_checks())?,
        };
        Some(Chosen::new(server))
    }

    /// Returns the server with fewer requests in flight, or the first if both have the same number.
    /// A server that is warming up sometimes yields to the other.
    fn lighter<'a>(
        &self,
        first: &'a Arc<Server>,
        second: &'a Arc<Server>,
        turn: usize,
        now: Mono,
    ) -> &'a Arc<Server> {
        let warmth = first.warmth(self.settings.slow_start, now);
        // The choice is made by turns and not by chance: of 100 turns the server takes as many as
        // its warmth in percent.
        if warmth < 1.0 && turn.wrapping_mul(61) % 100 >= (warmth * 100.0) as usize {
            return second;
        }
        if second.in_flight.load(Ordering::Relaxed) < first.in_flight.load(Ordering::Relaxed)
            && second.warmth(self.settings.slow_start, now) >= 1.0
        {
            second
        } else {
            first
        }
    }

    /// Records that a server gave no answer: it could not be reached, aborted or exceeded a limit.
    /// Returns whether it is ejected now.
    pub fn failed(&self, server: &Server, now: Mono) -> bool {
        let failures = server.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures < FAILURES_TO_EJECT || !server.is_healthy(now) {
            return false;
        }
        let others = self
            .servers
            .load()
            .iter()
            .filter(|other| other.address != server.address && other.is_healthy(now))
            .count();
        if others == 0 {
            return false;
        }
        let times = (server.ejections.fetch_add(1, Ordering::Relaxed) + 1).min(MAX_EJECTIONS);
        let until = now.forward(EJECTED_FOR * times);
        server
            .ejected_until_us
            .store(micros(until), Ordering::Relaxed);
        server.failures.store(0, Ordering::Relaxed);
        tracing::warn!(backend = &*self.settings.name, server = server.name, address = %server.address, failures, seconds = (EJECTED_FOR * times).as_secs(), "a server did not answer several times in a row and gets no requests for a while");
        true
    }

    /// Resolves the names again and returns those that failed, with the reason. May block on DNS.
    pub fn resolve(&self) -> Vec<(String, String)> {
        let mut resolved = self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        let mut failed = Vec::new();
        for (server, addresses) in self.settings.servers.iter().zip(resolved.iter_mut()) {
            match (server.host.as_str(), server.port).to_socket_addrs() {
                Ok(found) => *addresses = of_one_family(found.collect()),
                Err(error) => failed.push((server.to_string(), error.to_string())),
            }
        }
        self.unresolved.store(
            resolved
                .iter()
                .filter(|addresses| addresses.is_empty())
                .count(),
            Ordering::Relaxed,
        );
        let mut addresses: Vec<(SocketAddr, &ServerSettings)> = self
            .settings
            .servers
            .iter()
            .zip(resolved.iter())
            .flat_map(|(server, addresses)| addresses.iter().map(move |address| (*address, server)))
            .collect();
        addresses.sort_by_key(|(address, _)| *address);
        addresses.dedup_by_key(|(address, _)| *address);
        let before = self.servers.load();
        let unchanged = before.len() == addresses.len()
            && before
                .iter()
                .zip(&addresses)
                .all(|(server, (address, _))| server.address == *address);
        if !unchanged {
            let servers = addresses.iter().map(|(address, named)| {
                let known = before.iter().find(|server| server.address == *address);
                known.map_or_else(|| Arc::new(self.server(*address, named)), Arc::clone)
            });
            self.servers.store(Arc::new(servers.collect()));
        }
        failed
    }

    fn server(&self, address: SocketAddr, named: &ServerSettings) -> Server {
        // The name is never empty, because pingora verifies nothing without one.
        let name = self
            .settings
            .server_name
            .clone()
            .unwrap_or_else(|| named.host.clone());
        let mut peer = HttpPeer::new(
            address,
            named.tls,
            if named.tls { name } else { String::new() },
        );
        peer.options.connection_timeout = Some(self.settings.connect_timeout);
        peer.options.total_connection_timeout = Some(self.settings.connect_timeout);
        peer.options.read_timeout = Some(self.settings.response_timeout);
        peer.options.write_timeout = Some(self.settings.response_timeout);
        peer.options.idle_timeout = Some(self.settings.idle_timeout);
        peer.options.ca = self.authorities.clone().filter(|_| named.tls);
        peer.group_key = self
            .settings
            .ca
            .as_ref()
            .map_or(0, |authorities| group_of(authorities));
        if self.settings.http2 {
            peer.options.set_http_version(2, 2);
            peer.options.max_h2_streams = MAX_STREAMS;
            peer.options.h2_stream_window_size = Some(STREAM_WINDOW);
            peer.options.h2_connection_window_size = Some(CONNECTION_WINDOW);
        }
        Server {
            peer,
            address,
            name: named.to_string(),
            in_flight: AtomicUsize::default(),
            traffic: Arc::clone(&self.traffic),
            pool: ArcSwap::default(),
            departures: AtomicU64::default(),
            passes_checks: AtomicBool::new(true),
            check_passed_us: AtomicU64::default(),
            failures: AtomicU32::default(),
            ejections: AtomicU32::default(),
            ejected_until_us: AtomicU64::default(),
            back_since_us: AtomicU64::default(),
        }
    }
}

/// Returns a group that keeps apart connections verified by different authorities. The engine
/// distinguishes kept connections by address, name and protocol only. Without the group, a server
/// would be trusted on another authority's verification.
fn group_of(authorities: &[Vec<u8>]) -> u64 {
    let digest = Sha256::digest(authorities.concat());
    digest
        .iter()
        .take(8)
        .fold(0, |group, byte| group << 8 | u64::from(*byte))
}

/// Returns the addresses of a name in one family, IPv4 if there is a choice. `localhost` is one
/// server, not one per protocol.
fn of_one_family(found: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let v4 = found.iter().any(SocketAddr::is_ipv4);
    found
        .into_iter()
        .filter(|address| address.is_ipv4() == v4)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn backend(servers: &[&str], more: &str) -> Backend {
        let listed: Vec<String> = servers.iter().map(|server| format!("{server:?}")).collect();
        let text = format!(
            "[backend.legacy]\nservers = [{}]\n{more}\n[backend.new]\nservers = \
             [\"127.0.0.1:9\"]\n[[rollout]]\nid = \"a\"\npercent = 1\nkey = [\"cookie:a\"]\n",
            listed.join(", ")
        );
        let settings = cutover_config::parse("test.toml", &text, &cutover_config::NoFiles)
            .unwrap_or_else(|problems| panic!("{problems}"));
        Backend::new(settings.backends[0].clone(), None)
    }

    fn at(seconds: u64) -> Mono {
        Mono::default().forward(Duration::from_secs(seconds))
    }

    const THREE: [&str; 3] = ["127.0.0.1:1001", "127.0.0.1:1002", "127.0.0.1:1003"];

    #[test]
    fn servers_take_turns_and_a_busy_one_gets_fewer_requests() {
        let backend = backend(&THREE, "");
        let mut ports = [0; 3];
        for _ in 0..300 {
            let chosen = backend.choose(None, at(1)).expect("a server");
            ports[usize::from(chosen.server().address().port()) - 1001] += 1;
        }
        assert_eq!(ports, [100; 3]);
        // Two requests hang on the first server. It gets no others as long as the server it is
        // compared with has fewer requests.
        let busy = &backend.servers()[0];
        busy.in_flight.store(2, Ordering::Relaxed);
        let to_busy = (0..300)
            .filter(|_| {
                backend
                    .choose(None, at(1))
                    .expect("a server")
                    .server()
                    .address()
                    == busy.address()
            })
            .count();
        assert_eq!(to_busy, 0);
    }

    #[test]
    fn a_second_attempt_goes_to_another_server() {
        let three = backend(&THREE, "");
        for _ in 0..20 {
            let first = three
                .choose(None, at(1))
                .expect("a server")
                .server()
                .address();
            assert_ne!(
                three
                    .choose(Some(first), at(1))
                    .expect("another server")
                    .server()
                    .address(),
                first
            );
        }
        let one = backend(&THREE[..1], "");
        let first = one
            .choose(None, at(1))
            .expect("a server")
            .server()
            .address();
        assert!(one.choose(Some(first), at(1)).is_none());
    }

    #[test]
    fn an_unresponsive_server_is_ejected_but_never_the_last_one() {
        let backend = backend(&THREE, "");
        let servers = backend.servers();
        for _ in 0..FAILURES_TO_EJECT {
            backend.failed(&servers[0], at(1));
        }
        assert!(!servers[0].is_healthy(at(2)) && servers[0].is_healthy(at(11)));
        let asked: Vec<u16> = (0..9)
            .map(|_| {
                backend
                    .choose(None, at(2))
                    .expect("a server")
                    .server()
                    .address()
                    .port()
            })
            .collect();
        assert!(!asked.contains(&1001), "{asked:?}");
        for _ in 0..FAILURES_TO_EJECT {
            backend.failed(&servers[1], at(1));
            backend.failed(&servers[2], at(1));
        }
        assert_eq!(
            servers
                .iter()
                .filter(|server| server.is_healthy(at(2)))
                .count(),
            1
        );
        // An answer in between restarts the count.
        let last = servers
            .iter()
            .find(|server| server.is_healthy(at(2)))
            .expect("the last one");
        assert!(backend.choose(None, at(2)).is_some());
        last.answered();
        assert_eq!(last.failures.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn failed_checks_exclude_a_server_and_make_a_backend_unavailable() {
        let backend = backend(&THREE[..2], "health = { path = \"/healthz\" }");
        let servers = backend.servers();
        servers[0].checked(false, at(1));
        assert!((0..9).all(|_| {
            backend
                .choose(None, at(1))
                .expect("a server")
                .server()
                .address()
                .port()
                == 1002
        }));
        servers[1].checked(false, at(1));
        assert!(!backend.is_available() && backend.choose(None, at(1)).is_none());
        servers[1].checked(true, at(2));
        assert!(backend.is_available());
    }

    #[test]
    fn a_returning_server_gets_a_growing_share() {
        let backend = backend(
            &THREE[..2],
            "slow_start = \"100s\"\nhealth = { path = \"/healthz\" }",
        );
        let servers = backend.servers();
        servers[0].checked(false, at(1));
        servers[0].checked(true, at(1000));
        let share = |now: u64| {
            (0..1000)
                .filter(|_| {
                    backend
                        .choose(None, at(now))
                        .expect("a server")
                        .server()
                        .address()
                        .port()
                        == 1001
                })
                .count()
        };
        let (cold, half, warm) = (share(1001), share(1050), share(1200));
        assert!(
            cold < 60 && (200..300).contains(&half) && warm == 500,
            "{cold} {half} {warm}"
        );
    }

    #[test]
    fn a_changed_file_keeps_the_state_of_its_servers() {
        let before = backend(&THREE, "health = { path = \"/healthz\" }");
        before.servers()[1].checked(false, at(1));
        let mut settings = before.settings().clone();
        settings.response_timeout = Duration::from_secs(5);
        let after = Backend::new(settings.clone(), Some(&before));
        assert_eq!(
            after
                .servers()
                .iter()
                .map(|server| server.passes_checks())
                .collect::<Vec<_>>(),
            [true, false, true]
        );
        settings.health = None;
        assert!(
            Backend::new(settings, Some(&after))
                .servers()
                .iter()
                .all(|server| server.passes_checks()),
            "a removed check no longer counts"
        );
    }
}
