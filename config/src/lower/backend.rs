//! The reading of `[backend.NAME]`: servers and their timeouts.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::ops::Range;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Fault, Lower};
use crate::document::not_a_text;
use crate::schema::{At, BackendTable, HealthTable, default};
use crate::settings::{Backend, HealthCheck, Server};
use crate::text::{clip, key as toml_key, quote};
use crate::world::World;

/// The largest file of CA certificates in bytes.
pub const MAX_CA: usize = 4 << 20;

/// Whether a text is a valid name for a backend or a rollout. These names are labels of metrics and
/// parts of URLs.
pub(super) fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.len() <= 64
        && text.bytes().next().is_some_and(plain)
        && text
            .bytes()
            .all(|byte| plain(byte) || matches!(byte, b'.' | b'_' | b'-'))
}

/// Returns a name as close to the text as the rules allow, for hints.
pub(super) fn as_name(text: &str) -> Option<String> {
    let name: String = text
        .trim()
        .to_lowercase()
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') {
                c
            } else {
                '-'
            }
        })
        .collect();
    is_name(&name).then_some(name)
}

impl Lower<'_> {
    /// Returns all backends in file order.
    pub(super) fn backends(
        &mut self,
        tables: BTreeMap<At<String>, BackendTable>,
        world: &mut World<'_>,
    ) -> Option<Vec<Backend>> {
        let mut tables: Vec<_> = tables.into_iter().collect();
        tables.sort_by_key(|(name, _)| name.span.start);
        let backends: Vec<Option<Backend>> = tables
            .into_iter()
            .map(|(name, table)| self.backend(name, table, world))
            .collect();
        backends.into_iter().collect()
    }

    fn backend(
        &mut self,
        name: At<String>,
        table: BackendTable,
        world: &mut World<'_>,
    ) -> Option<Backend> {
        let BackendTable {
            servers,
            http2,
            server_name,
            ca,
            connect_timeout,
            response_timeout,
            body_pause_timeout,
            stream_idle_timeout,
            idle_timeout,
            health,
            slow_start,
        } = table;
        let path = format!("backend.{}", toml_key(&name.value));
        if !is_name(&name.value) {
            let problem = self
                .error(
                    &name.span,
                    &path,
                    "expected a name of at most 64 lower-case letters, digits, . _ and -",
                )
                .label("this name");
            self.report.push(problem.maybe_hint(
                as_name(&name.value).map(|name| format!("write [backend.{}]", toml_key(&name))),
            ));
        }
        let servers = servers.and_then(|servers| self.servers(&servers, &path));
        if let (Some(servers), Some(at)) = (&servers, server_name.as_ref().or(ca.as_ref()))
            && servers.iter().all(|server| !server.tls)
        {
            let key = if server_name.is_some() {
                "server_name"
            } else {
                "ca"
            };
            let problem = self
                .error(
                    &at.span,
                    &format!("{path}.{key}"),
                    "no server of this backend is spoken to with TLS",
                )
                .label("means nothing here");
            self.report
                .push(problem.hint("write https:// before the servers, or remove this line"));
        }
        let server_name = match server_name {
            None => Some(None),
            Some(at) => self
                .settle(
                    &at.span,
                    &format!("{path}.server_name"),
                    host_name(&at.value),
                )
                .map(Some),
        };
        let ca = match ca {
            None => Some(None),
            Some(at) => self
                .authorities(&at, &format!("{path}.ca"), world)
                .map(Some),
        };
        let health = match health {
            None => Some(None),
            Some(table) => self
                .health_check(table, &format!("{path}.health"))
                .map(Some),
        };
        Some(Backend {
            http2: http2.unwrap_or(false),
            server_name: server_name?,
            ca: ca?,
            health: health?,
            slow_start: self.duration(
                slow_start.as_ref(),
                &format!("{path}.slow_start"),
                default::SLOW_START,
                Duration::ZERO,
                Duration::from_secs(3600),
            ),
            connect_timeout: self.timeout(
                connect_timeout.as_ref(),
                &format!("{path}.connect_timeout"),
                default::CONNECT_TIMEOUT,
            ),
            response_timeout: self.timeout(
                response_timeout.as_ref(),
                &format!("{path}.response_timeout"),
                default::RESPONSE_TIMEOUT,
            ),
            body_pause_timeout: self.timeout(
                body_pause_timeout.as_ref(),
                &format!("{path}.body_pause_timeout"),
                default::BODY_PAUSE_TIMEOUT,
            ),
            stream_idle_timeout: self.timeout(
                stream_idle_timeout.as_ref(),
                &format!("{path}.stream_idle_timeout"),
                default::STREAM_IDLE_TIMEOUT,
            ),
            idle_timeout: self.timeout(
                idle_timeout.as_ref(),
                &format!("{path}.idle_timeout"),
                default::IDLE_TIMEOUT,
            ),
            servers: servers?,
            name: name.value.into(),
        })
    }

    fn health_check(&mut self, table: HealthTable, path: &str) -> Option<HealthCheck> {
        let HealthTable {
            path: asked,
            interval,
            unhealthy_after,
            healthy_after,
        } = table;
        let interval = self.duration(
            interval.as_ref(),
            &format!("{path}.interval"),
            default::HEALTH_INTERVAL,
            Duration::from_millis(10),
            Duration::from_secs(3600),
        );
        let asked = asked
            .and_then(|at| self.settle(&at.span, &format!("{path}.path"), health_path(&at.value)));
        let times = |written: Option<u64>, default: u64| {
            u32::try_from(written.unwrap_or(default)).unwrap_or(u32::MAX)
        };
        Some(HealthCheck {
            path: asked?,
            interval,
            unhealthy_after: times(unhealthy_after, default::UNHEALTHY_AFTER),
            healthy_after: times(healthy_after, default::HEALTHY_AFTER),
        })
    }

    /// Returns the certificates of a PEM file.
    fn authorities(
        &mut self,
        at: &At<String>,
        key: &str,
        world: &mut World<'_>,
    ) -> Option<Vec<Vec<u8>>> {
        let path = at.value.as_str();
        let read = if path.is_empty() {
            Err("the path is missing".to_owned())
        } else {
            world.read(path)
        };
        let source = match read {
            Ok(source) => source,
            Err(reason) => {
                let what = format!("cannot read {}: {reason}", quote(&clip(path)));
                return self.settle(
                    &at.span,
                    key,
                    Err(Fault::new(
                        what,
                        "paths are relative to the folder of the main file",
                    )),
                );
            }
        };
        if let Some(problem) = not_a_text(&source, MAX_CA) {
            self.report.push(problem.hint(format!(
                "named at {} as certificates",
                self.source.place(at.span.start)
            )));
            return None;
        }
        let found: Result<Vec<Vec<u8>>, _> = CertificateDer::pem_slice_iter(source.text.as_bytes())
            .map(|found| found.map(|der| der.to_vec()))
            .collect();
        let result = match found {
            Ok(found)
                if found
                    .iter()
                    .any(|der| X509Certificate::from_der(der).is_err()) =>
            {
                Err(format!(
                    "a certificate in {} cannot be read",
                    quote(&clip(path))
                ))
            }
            Ok(found) if found.is_empty() => {
                Err(format!("there is no certificate in {}", quote(&clip(path))))
            }
            Ok(found) => Ok(found),
            Err(error) => Err(format!(
                "a certificate in {} cannot be read: {error}",
                quote(&clip(path))
            )),
        };
        self.settle(
            &at.span,
            key,
            result.map_err(|what| {
                Fault::new(
                    what,
                    "a PEM file has blocks that begin with -----BEGIN CERTIFICATE-----",
                )
            }),
        )
    }

    fn servers(&mut self, texts: &[At<String>], path: &str) -> Option<Vec<Server>> {
        let mut servers: Vec<(Server, Range<usize>)> = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            let key = format!("{path}.servers[{}]", index + 1);
            let Some(server) = self.settle(&text.span, &key, server(&text.value)) else {
                continue;
            };
            if servers.iter().any(|(known, _)| *known == server) {
                let problem = self
                    .warning(&text.span, &key, format!("{server} is in the list twice"))
                    .label("a second time");
                self.report.push(
                    problem.hint("remove one: it does not get more requests by being named twice"),
                );
                continue;
            }
            servers.push((server, text.span.clone()));
        }
        let servers: Vec<Server> = servers.into_iter().map(|(server, _)| server).collect();
        (!servers.is_empty()).then_some(servers)
    }
}

/// Parses `host:port`, with or without a scheme before it.
fn server(text: &str) -> Result<Server, Fault> {
    let fault =
        |hint: String| Fault::new(format!("expected host:port, found {}", quote(text)), hint);
    let (tls, bare) = match text.split_once("://") {
        Some((scheme, bare)) if scheme.eq_ignore_ascii_case("https") => (true, bare),
        Some((scheme, bare)) if scheme.eq_ignore_ascii_case("http") => (false, bare),
        Some(_) => {
            return Err(fault(
                "only http:// or https:// may stand before host:port".to_owned(),
            ));
        }
        None => (false, text),
    };
    let with_port = |host: &str| {
        format!(
            "{}{}",
            if tls { "https://" } else { "" },
            with_port(host, if tls { 443 } else { 80 })
        )
    };
    let bare = bare.strip_suffix('/').unwrap_or(bare);
    if bare.contains(['/', '?', '#', '@']) {
        let authority = bare.split(['/', '?', '#']).next().unwrap_or_default();
        let host = authority.rsplit('@').next().unwrap_or_default();
        return Err(fault(format!(
            "write \"{}\": a path or a login cannot be part of a server",
            with_port(host)
        )));
    }
    if bare.parse::<Ipv6Addr>().is_ok() {
        let (address, port) = bare
            .rsplit_once(':')
            .filter(|(address, port)| {
                address.parse::<Ipv6Addr>().is_ok() && port.parse::<u16>().is_ok()
            })
            .unwrap_or((bare, "80"));
        return Err(fault(format!(
            "an IPv6 address stands in brackets before its port: \"[{address}]:{port}\""
        )));
    }
    let Some((host, port)) = bare.rsplit_once(':') else {
        return Err(fault(format!("add the port, like \"{}\"", with_port(bare))));
    };
    let port = port
        .parse::<u16>()
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| fault("the port is a number from 1 to 65535".to_owned()))?;
    let host = match host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        Some(inner) => inner
            .parse::<Ipv6Addr>()
            .map(|ip| ip.to_string())
            .map_err(|_| fault("between [ and ] stands an IPv6 address".to_owned()))?,
        None if host.contains(':') => {
            return Err(fault(format!(
                "write an IPv6 address in brackets: \"[{host}]:{port}\""
            )));
        }
        None => host.to_ascii_lowercase(),
    };
    if !is_host(&host) {
        return Err(fault(
            "a host is an IP address, or a name of letters, digits, - and .".to_owned(),
        ));
    }
    Ok(Server { host, port, tls })
}

fn is_host(text: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    text.len() <= 253
        && (text.parse::<IpAddr>().is_ok()
            || text
                .strip_suffix('.')
                .unwrap_or(text)
                .split('.')
                .all(is_label))
}

/// Parses a name in a certificate.
fn host_name(text: &str) -> Result<String, Fault> {
    if is_host(text) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(Fault::new(
            format!("expected a host name, found {}", quote(text)),
            "write it like \"shop.internal\", without scheme and port",
        ))
    }
}

/// Parses the target of a health check.
fn health_path(text: &str) -> Result<String, Fault> {
    let plain = text
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if text.starts_with('/') && plain {
        Ok(text.to_owned())
    } else {
        Err(Fault::new(
            format!(
                "expected a path such as \"/healthz\", found {}",
                quote(text)
            ),
            "it begins with / and has no spaces",
        ))
    }
}

/// Returns the host with a port, for hints.
fn with_port(host: &str, port: u16) -> String {
    let host = host.split('/').next().unwrap_or_default();
    match host {
        "" => format!("10.0.0.1:{port}"),
        host if host
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok()) =>
        {
            host.to_owned()
        }
        host => format!("{host}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_host_with_a_port() {
        for (text, shown) in [
            ("10.0.1.1:3000", "10.0.1.1:3000"),
            ("http://Shop.internal:80", "shop.internal:80"),
            ("https://Shop.internal:443", "https://shop.internal:443"),
            ("https://[::1]:443/", "https://[::1]:443"),
            ("http://shop:80/", "shop:80"),
            ("[::1]:3000", "[::1]:3000"),
            ("a_b-c.d.:1", "a_b-c.d.:1"),
        ] {
            assert_eq!(
                server(text)
                    .map(|server| server.to_string())
                    .ok()
                    .as_deref(),
                Some(shown),
                "{text}"
            );
        }
        for text in [
            "",
            ":",
            "shop",
            "shop:",
            ":80",
            "shop:0",
            "shop:65536",
            "ftp://shop:1",
            "shop:80/x",
            "u@shop:80",
            "::1:80",
            "::1",
            "[x]:80",
            "a b:80",
            "ä:80",
            "a..b:1",
        ] {
            assert!(server(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_name_is_safe_in_labels_and_urls() {
        for text in ["a", "0", "check-out_2.b"] {
            assert!(is_name(text), "{text}");
        }
        for text in ["", "-a", "A", "a b", "a/b", "ä", &"a".repeat(65)] {
            assert!(!is_name(text), "{text}");
        }
        assert_eq!(as_name("Check Out").as_deref(), Some("check-out"));
    }
}
