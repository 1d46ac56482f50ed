//! `[backend.NAME]`: servers and their timeouts.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::ops::Range;

use super::{Fault, Lower};
use crate::schema::{At, BackendTable, default};
use crate::settings::{Backend, Server};
use crate::text::{key as toml_key, quote};

/// What names of backends and rollouts look like: they are labels of metrics and parts of URLs.
pub(super) fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.len() <= 64 && text.bytes().next().is_some_and(plain) && text.bytes().all(|byte| plain(byte) || matches!(byte, b'.' | b'_' | b'-'))
}

/// A name as close to the text as the rules allow, for hints.
pub(super) fn as_name(text: &str) -> Option<String> {
    let name: String = text.trim().to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' }).collect();
    is_name(&name).then_some(name)
}

impl Lower<'_> {
    /// All backends in file order.
    pub(super) fn backends(&mut self, tables: BTreeMap<At<String>, BackendTable>) -> Option<Vec<Backend>> {
        let mut tables: Vec<_> = tables.into_iter().collect();
        tables.sort_by_key(|(name, _)| name.span.start);
        let backends: Vec<Option<Backend>> = tables.into_iter().map(|(name, table)| self.backend(name, table)).collect();
        backends.into_iter().collect()
    }

    fn backend(&mut self, name: At<String>, table: BackendTable) -> Option<Backend> {
        let BackendTable { servers, http2, connect_timeout, response_timeout, idle_timeout, health } = table;
        let path = format!("backend.{}", toml_key(&name.value));
        if !is_name(&name.value) {
            let problem = self.error(&name.span, &path, "expected a name of at most 64 lower-case letters, digits, . _ and -").label("this name");
            self.report.push(problem.maybe_hint(as_name(&name.value).map(|name| format!("write [backend.{}]", toml_key(&name)))));
        }
        if let Some(At { value: true, span }) = http2 {
            self.refuse(span, &format!("{path}.http2 = true"), "write http2 = false, or remove the line: servers are spoken to in HTTP/1.1");
        }
        if let Some(health) = health {
            self.refuse(health.span, &format!("{path}.health"), "remove it");
        }
        let servers = servers.and_then(|servers| self.servers(&servers, &path));
        Some(Backend {
            connect_timeout: self.timeout(connect_timeout.as_ref(), &format!("{path}.connect_timeout"), default::CONNECT_TIMEOUT),
            response_timeout: self.timeout(response_timeout.as_ref(), &format!("{path}.response_timeout"), default::RESPONSE_TIMEOUT),
            idle_timeout: self.timeout(idle_timeout.as_ref(), &format!("{path}.idle_timeout"), default::IDLE_TIMEOUT),
            servers: servers?,
            name: name.value.into(),
        })
    }

    fn servers(&mut self, texts: &[At<String>], path: &str) -> Option<Vec<Server>> {
        let mut servers: Vec<(Server, Range<usize>)> = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            let key = format!("{path}.servers[{}]", index + 1);
            let Some(server) = self.settle(&text.span, &key, server(&text.value)) else { continue };
            if servers.iter().any(|(known, _)| *known == server) {
                let problem = self.warning(&text.span, &key, format!("{server} is in the list twice")).label("a second time");
                self.report.push(problem.hint("remove one: it does not get more requests by being named twice"));
                continue;
            }
            servers.push((server, text.span.clone()));
        }
        let servers: Vec<Server> = servers.into_iter().map(|(server, _)| server).collect();
        (!servers.is_empty()).then_some(servers)
    }
}

/// `host:port`, with or without `http://` before it.
fn server(text: &str) -> Result<Server, Fault> {
    let fault = |hint: String| Fault::new(format!("expected host:port, found {}", quote(text)), hint);
    if text.to_ascii_lowercase().starts_with("https://") {
        let rest = &text["https://".len()..];
        return Err(Fault::new(
            format!("https:// servers are not supported yet, found {}", quote(text)),
            format!("write the server's cleartext port, like \"{}\"", with_port(rest)),
        ));
    }
    let bare = text.strip_prefix("http://").unwrap_or(text);
    if bare.contains("://") {
        return Err(fault("only http:// may stand before host:port".to_owned()));
    }
    let bare = bare.strip_suffix('/').unwrap_or(bare);
    if bare.contains(['/', '?', '#', '@']) {
        let authority = bare.split(['/', '?', '#']).next().unwrap_or_default();
        let host = authority.rsplit('@').next().unwrap_or_default();
        return Err(fault(format!("write \"{}\": a path or a login cannot be part of a server", with_port(host))));
    }
    if bare.parse::<Ipv6Addr>().is_ok() {
        let (address, port) = bare.rsplit_once(':').filter(|(address, port)| address.parse::<Ipv6Addr>().is_ok() && port.parse::<u16>().is_ok()).unwrap_or((bare, "80"));
        return Err(fault(format!("an IPv6 address stands in brackets before its port: \"[{address}]:{port}\"")));
    }
    let Some((host, port)) = bare.rsplit_once(':') else {
        return Err(fault(format!("add the port, like \"{}\"", with_port(bare))));
    };
    let port = port.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(|| fault("the port is a number from 1 to 65535".to_owned()))?;
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(inner) => inner.parse::<Ipv6Addr>().map(|ip| ip.to_string()).map_err(|_| fault("between [ and ] stands an IPv6 address".to_owned()))?,
        None if host.contains(':') => return Err(fault(format!("write an IPv6 address in brackets: \"[{host}]:{port}\""))),
        None => host.to_ascii_lowercase(),
    };
    let is_label = |label: &str| !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    let is_host = host.parse::<IpAddr>().is_ok() || host.strip_suffix('.').unwrap_or(&host).split('.').all(is_label);
    if !is_host || host.len() > 253 {
        return Err(fault("a host is an IP address, or a name of letters, digits, - and .".to_owned()));
    }
    Ok(Server { host, port })
}

/// The same with a port, for hints.
fn with_port(host: &str) -> String {
    let host = host.split('/').next().unwrap_or_default();
    match host {
        "" => "10.0.0.1:80".to_owned(),
        host if host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) => host.to_owned(),
        host => format!("{host}:80"),
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
            ("http://shop:80/", "shop:80"),
            ("[::1]:3000", "[::1]:3000"),
            ("a_b-c.d.:1", "a_b-c.d.:1"),
        ] {
            assert_eq!(server(text).map(|server| server.to_string()).ok().as_deref(), Some(shown), "{text}");
        }
        for text in [
            "",
            ":",
            "shop",
            "shop:",
            ":80",
            "shop:0",
            "shop:65536",
            "https://shop:443",
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
