//! The servers of a backend: addresses resolved off the request path, peers prepared beforehand,
//! and which of them may be asked.
//!
//! A [`Backend`] outlives reloads as long as its settings stay the same. Peers are identified by
//! address, TLS name and protocol, so a reload that changes none of these finds the connection pool
//! warm. A name that stops resolving keeps its last good addresses.
//!
//! A server is asked unless its checks fail (`health` of the backend, see the room of that name) or
//! it is ejected: five requests in a row that got no answer from it send it out for ten seconds,
//! longer each time, but never the last one. A backend without any server that passes its checks is
//! "without a server": the decision then sends its users to the other side. What a server answers,
//! even 500, ejects nobody: that is the guard's to judge, for all users at once.
//!
//! Of the servers in turn, two are looked at and the one with fewer requests in flight gets the
//! next (Mitzenmacher, *The Power of Two Choices in Randomized Load Balancing*, 2001).

pub mod fd_exhaustion;
pub mod health;
pub mod pool;
pub mod probe;
mod server;

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use cutover_config::{Backend as BackendSettings, Server as ServerSettings};
use cutover_core::Mono;
use pingora::protocols::tls::CaType;
use pingora::upstreams::peer::HttpPeer;
use pingora::utils::tls::{WrappedX509, parse_x509};
use sha2::{Digest, Sha256};

pub use server::{Chosen, Connect, Server, make_fresh};
use server::{EJECTED_FOR, FAILURES_TO_EJECT, MAX_EJECTIONS, Traffic, micros};

/// Streams at once on one HTTP/2 connection to a server; more open another connection.
const MAX_STREAMS: usize = 100;

/// Bytes of an answer over HTTP/2 that wait for a client to read them.
pub const STREAM_WINDOW: u32 = 512 << 10;

/// The same for all streams of a connection: as many as there may be at once, so that clients who
/// do not read hold up nobody else.
pub const CONNECTION_WINDOW: u32 = STREAM_WINDOW * MAX_STREAMS as u32;

/// Where the count of departures begins in the number that keeps connections apart.
const DEPARTURES: u32 = 3;

/// One backend of the file, ready to be sent to.
#[derive(Debug)]
pub struct Backend {
    settings: BackendSettings,
    servers: ArcSwap<Vec<Arc<Server>>>,
    authorities: Option<Arc<CaType>>,
    /// The last good addresses of each server. Only the resolver takes this lock.
    resolved: Mutex<Vec<Vec<SocketAddr>>>,
    /// Names that have never had an address.
    unresolved: AtomicUsize,
    next: AtomicUsize,
    traffic: Arc<Traffic>,
}

impl Backend {
    /// A backend with its addresses resolved now. Servers that `before` had already keep what is
    /// known of them. May block on DNS: never call it on the request path.
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
            traffic,
        };
        backend.resolve();
        if let Some(before) = before {
            // Without checks nothing would ever set a failed one right again.
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

    /// What the file says.
    pub fn settings(&self) -> &BackendSettings {
        &self.settings
    }

    /// Whether all of its servers speak HTTP/1.1 without TLS.
    pub fn is_plain(&self) -> bool {
        !self.settings.http2 && self.settings.servers.iter().all(|server| !server.tls)
    }

    /// All servers that have an address.
    pub fn servers(&self) -> Arc<Vec<Arc<Server>>> {
        self.servers.load_full()
    }

    /// How many servers there would be if nothing were wrong with any: all that have an address,
    /// and one for each name that has never had one.
    pub fn expected(&self) -> usize {
        self.servers.load().len() + self.unresolved.load(Ordering::Relaxed)
    }

    /// Attempts under way.
    pub fn active(&self) -> usize {
        self.traffic.active.load(Ordering::Relaxed)
    }

    /// Connections of the lane that rest.
    pub fn resting(&self) -> usize {
        self.servers
            .load()
            .iter()
            .map(|server| server.pool().len())
            .sum()
    }

    /// Throws away what has rested too long or has ended.
    pub fn tidy(&self, now: Mono) {
        self.servers
            .load()
            .iter()
            .for_each(|server| server.pool().tidy(self.settings.idle_timeout, now));
    }

    /// How many attempts got their connection so.
    pub fn connects(&self, how: Connect) -> u64 {
        self.traffic.connects[how as usize].load(Ordering::Relaxed)
    }

    /// Whether a connection to one is likely to be one to the other: they have the same name and
    /// the same addresses.
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

    /// Whether there is a server to send to.
    pub fn is_available(&self) -> bool {
        self.servers
            .load()
            .iter()
            .any(|server| server.passes_checks())
    }

    /// Whether a check of one of its servers has passed within the last two intervals.
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

    /// A server for the next attempt, another one than `tried`. `None` when there is none.
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
            // All that pass their checks are ejected: better one of these than nobody.
            (None, _) => in_turn().find(|server| server.passes_checks())?,
        };
        Some(Chosen::new(server))
    }

    /// The one with fewer requests in flight; the first where they have as many. One that warms up
    /// stands back for the other now and then.
    fn lighter<'a>(
        &self,
        first: &'a Arc<Server>,
        second: &'a Arc<Server>,
        turn: usize,
        now: Mono,
    ) -> &'a Arc<Server> {
        let warmth = first.warmth(self.settings.slow_start, now);
        // By turns and not by chance: of 100 turns as many as its warmth in per cent.
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

    /// A server gave no answer: it could not be reached, broke off or took too long. Says whether
    /// it is ejected now.
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
        tracing::warn!(backend = &*self.settings.name, server = server.name, address = %server.address, seconds = (EJECTED_FOR * times).as_secs(), "a server gave no answer {failures} times in a row and is not asked for a while");
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
        // Never empty: pingora verifies nothing without a name.
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

/// Keeps connections apart that different authorities vouched for: the engine tells kept
/// connections apart by address, name and protocol only, so that a server would be taken on
/// another's trust.
fn group_of(authorities: &[Vec<u8>]) -> u64 {
    let digest = Sha256::digest(authorities.concat());
    digest
        .iter()
        .take(8)
        .fold(0, |group, byte| group << 8 | u64::from(*byte))
}

/// The addresses of a name in one family, IPv4 where there is a choice: `localhost` is one server,
/// not one per protocol.
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
        let settings = cutover_config::parse(
            "test.toml",
            &text,
            &crate::gateway::router::testing::NoFiles,
        )
        .unwrap_or_else(|problems| panic!("{problems}"));
        Backend::new(settings.backends[0].clone(), None)
    }

    fn at(seconds: u64) -> Mono {
        Mono::default().forward(Duration::from_secs(seconds))
    }

    const THREE: [&str; 3] = ["127.0.0.1:1001", "127.0.0.1:1002", "127.0.0.1:1003"];

    #[test]
    fn servers_are_asked_in_turn_and_a_busy_one_less() {
        let backend = backend(&THREE, "");
        let mut ports = [0; 3];
        for _ in 0..300 {
            let chosen = backend.choose(None, at(1)).expect("a server");
            ports[usize::from(chosen.server().address().port()) - 1001] += 1;
        }
        assert_eq!(ports, [100; 3]);
        // Two requests hang on the first: it gets nothing as long as the one it is compared with
        // has less to do.
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
    fn a_server_that_gives_no_answer_is_ejected_for_a_while_and_never_the_last_one() {
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
        // An answer in between and it begins anew.
        let last = servers
            .iter()
            .find(|server| server.is_healthy(at(2)))
            .expect("the last one");
        assert!(backend.choose(None, at(2)).is_some());
        last.answered();
        assert_eq!(last.failures.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_server_that_fails_its_checks_is_not_asked_and_a_backend_without_any_is_not_available() {
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
    fn a_server_that_has_come_back_gets_more_and_more_of_its_share() {
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
    fn a_changed_file_does_not_forget_which_servers_are_down() {
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
            "nobody checks any more"
        );
    }
}
