//! The reading of `[listen]`, `[admin]`, `[state]`, `[log]` and `[routing]`: the process itself,
//! apart from what it routes.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use ipnet::IpNet;

use super::{Fault, Lower};
use crate::schema::{
    AccessText, AdminTable, At, CertificateTable, EngineText, ListenTable, LogFormatText, LogTable,
    LogUserText, RoleText, RoutingTable, StateTable, TokenTable, TracesTable, default,
};
use crate::settings::{
    AccessLog, Admin, Certificate, Engine, Listen, Log, LogFormat, LogUser, Role, Routing, State,
    Token, Traces,
};
use crate::text::quote;

/// The SHA-256 of nothing, and of a single line end. These are the results of `echo -n "$TOKEN" |
/// sha256sum` and `echo "$TOKEN" | sha256sum` while TOKEN is not set.
const HASHES_OF_NOTHING: [&str; 2] = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "01ba4719c80b6fe911b091a7c05124b64eeece964e09c058ef8f9805daca546b",
];

/// The maximum length of a token's name, which is shown in every line of the journal.
const MAX_TOKEN_NAME: usize = 64;

impl Lower<'_> {
    pub(super) fn listen(&mut self, table: ListenTable, admin: Option<&Admin>) -> Option<Listen> {
        let ListenTable {
            http,
            https,
            certificates,
            trusted_proxies,
            h2c,
            engine,
            max_connections,
            max_header_bytes,
            header_timeout,
            body_idle_timeout,
            write_timeout,
            keepalive_timeout,
            max_body,
        } = table;
        let has_https = https.as_ref().is_some_and(|https| !https.value.is_empty());
        let http = match &http {
            None => default::HTTP.parse().ok().map(|address| vec![address]),
            Some(http) if has_https && http.value.is_empty() => Some(Vec::new()),
            Some(http) if http.value.is_empty() => {
                let problem = self
                    .error(
                        &http.span,
                        "listen.http",
                        "nothing listens: expected an address here or in https",
                    )
                    .label("an empty list");
                self.report
                    .push(problem.hint(format!("write http = [{:?}]", default::HTTP)));
                None
            }
            Some(http) => self.addresses(&http.value, "listen.http", admin, &[]),
        };
        let https_addresses = match &https {
            Some(https) if has_https => self.addresses(
                &https.value,
                "listen.https",
                admin,
                http.as_deref().unwrap_or_default(),
            ),
            Some(_) | None => Some(Vec::new()),
        };
        let certificates = self.certificates(
            certificates,
            https
                .as_ref()
                .filter(|_| has_https)
                .map(|https| &https.span),
        );
        Some(Listen {
            trusted_proxies: self.networks(trusted_proxies.as_deref().unwrap_or_default()),
            max_connections: usize::try_from(max_connections.unwrap_or(default::MAX_CONNECTIONS))
                .unwrap_or(usize::MAX),
            max_header_bytes: self.size(
                max_header_bytes.as_ref(),
                "listen.max_header_bytes",
                default::MAX_HEADER_BYTES,
                1 << 10,
                1 << 20,
            ) as usize,
            header_timeout: self.timeout(
                header_timeout.as_ref(),
                "listen.header_timeout",
                default::HEADER_TIMEOUT,
            ),
            body_idle_timeout: self.timeout(
                body_idle_timeout.as_ref(),
                "listen.body_idle_timeout",
                default::BODY_IDLE_TIMEOUT,
            ),
            write_timeout: self.timeout(
                write_timeout.as_ref(),
                "listen.write_timeout",
                default::WRITE_TIMEOUT,
            ),
            keepalive_timeout: self.timeout(
                keepalive_timeout.as_ref(),
                "listen.keepalive_timeout",
                default::KEEPALIVE_TIMEOUT,
            ),
            max_body: self.size(
                max_body.as_ref(),
                "listen.max_body",
                default::MAX_BODY,
                1,
                u64::MAX,
            ),
            h2c: h2c.unwrap_or(false),
            engine: match engine {
                Some(EngineText::Proxy) => Engine::Proxy,
                Some(EngineText::Auto) | None => Engine::Auto,
            },
            certificates: certificates?,
            https: https_addresses?,
            http: http?,
        })
    }

    /// Returns the addresses to listen on, each once, and none of them equal to the admin address.
    fn addresses(
        &mut self,
        texts: &[At<String>],
        key: &str,
        admin: Option<&Admin>,
        others: &[SocketAddr],
    ) -> Option<Vec<SocketAddr>> {
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            let key = format!("{key}[{}]", index + 1);
            let Some(address) = self.settle(&text.span, &key, address(&text.value, "0.0.0.0"))
            else {
                continue;
            };
            let taken = if address.port() == 0 {
                None
            } else if addresses.contains(&address) {
                Some("is in the list twice")
            } else if others.contains(&address) {
                Some("is in listen.http, too")
            } else if admin.is_some_and(|admin| admin.address == address) {
                Some("is the admin address")
            } else {
                None
            };
            if let Some(taken) = taken {
                let problem = self
                    .error(&text.span, &key, format!("{address} {taken}"))
                    .label("taken")
                    .hint("give each its own port");
                self.report.push(problem);
            }
            addresses.push(address);
        }
        (!addresses.is_empty()).then_some(addresses)
    }

    /// Returns the certificates as pairs of paths. There are certificates exactly where a listener
    /// uses TLS.
    fn certificates(
        &mut self,
        tables: Option<At<Vec<CertificateTable>>>,
        https: Option<&Range<usize>>,
    ) -> Option<Vec<Certificate>> {
        let (span, tables) = tables.map_or((None, Vec::new()), |at| (Some(at.span), at.value));
        match (https, &span) {
            (Some(https), _) if tables.is_empty() => {
                let problem = self
                    .error(https, "listen.https", "there is no certificate")
                    .label("TLS without a certificate");
                self.report.push(
                    problem
                        .hint("add certificates = [{ cert = \"site.pem\", key = \"site.key\" }]"),
                );
            }
            (None, Some(span)) if !tables.is_empty() => {
                let problem = self
                    .warning(span, "listen.certificates", "nothing listens for TLS")
                    .label("not used");
                self.report
                    .push(problem.hint("add https = [\"0.0.0.0:8443\"]"));
            }
            (Some(_) | None, _) => {}
        }
        let mut certificates = Some(Vec::new());
        for (index, CertificateTable { cert, key }) in tables.into_iter().enumerate() {
            let mut path = |at: Option<At<String>>, name: &str| {
                let at = at?;
                let fault = at.value.trim().is_empty().then(|| {
                    Fault::new(
                        "expected a path, found an empty string",
                        "paths are relative to the folder of the file",
                    )
                });
                self.settle(
                    &at.span,
                    &format!("listen.certificates[{}].{name}", index + 1),
                    fault.map_or(Ok(at.value), Err),
                )
            };
            match (path(cert, "cert"), path(key, "key")) {
                (Some(cert), Some(key)) => {
                    certificates
                        .iter_mut()
                        .for_each(|all: &mut Vec<Certificate>| {
                            all.push(Certificate {
                                cert: cert.clone(),
                                key: key.clone(),
                            });
                        });
                }
                _ => certificates = None,
            }
        }
        certificates
    }

    fn networks(&mut self, texts: &[At<String>]) -> Vec<IpNet> {
        let mut networks = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            let key = format!("listen.trusted_proxies[{}]", index + 1);
            let Some(network) = self.settle(&text.span, &key, network(&text.value)) else {
                continue;
            };
            if network.prefix_len() == 0 {
                let problem = self
                    .warning(
                        &text.span,
                        &key,
                        "everybody is trusted, so any client can pretend to come from any address",
                    )
                    .label("all addresses");
                self.report
                    .push(problem.hint("name the networks of your load balancers only"));
            }
            networks.push(network);
        }
        networks
    }

    pub(super) fn admin(&mut self, table: AdminTable) -> Option<Admin> {
        let AdminTable {
            address: at,
            tokens,
        } = table;
        let has_tokens = tokens.as_ref().is_some_and(|tokens| !tokens.is_empty());
        let mut known: Vec<Token> = Vec::new();
        for (index, token) in tokens.into_iter().flatten().enumerate() {
            if let Some(token) = self.token(token, index, &known) {
                known.push(token);
            }
        }
        let text = at.as_ref().map_or(default::ADMIN, |at| &at.value);
        let span = at.as_ref().map_or(0..0, |at| at.span.clone());
        let address = self.settle(&span, "admin.address", address(text, "127.0.0.1"))?;
        if !address.ip().is_loopback() && !has_tokens {
            let problem = self
                .error(
                    &span,
                    "admin.address",
                    format!(
                        "{address} can be reached from other machines, and there are no tokens"
                    ),
                )
                .label("not a loopback address");
            self.report.push(problem.hint(format!(
                "add [admin] tokens, or write address = \"127.0.0.1:{}\"",
                address.port()
            )));
        }
        Some(Admin {
            address,
            tokens: known,
        })
    }

    fn token(&mut self, table: TokenTable, index: usize, known: &[Token]) -> Option<Token> {
        let key = |part: &str| format!("admin.tokens[{}].{part}", index + 1);
        let TokenTable { name, role, sha256 } = table;
        if let Some(name) = &name {
            let clash = known.iter().any(|token| token.name == name.value);
            let fault = match name.value.as_str() {
                "" => Some("expected a name, found an empty string".to_owned()),
                text if text.chars().any(char::is_control)
                    || text.chars().count() > MAX_TOKEN_NAME =>
                {
                    Some(format!(
                        "expected a name of at most {MAX_TOKEN_NAME} characters on one line, \
                         found {}",
                        quote(text)
                    ))
                }
                text if clash => Some(format!(
                    "the name {} is taken by another token",
                    quote(text)
                )),
                _ => None,
            };
            if let Some(what) = fault {
                self.settle::<()>(
                    &name.span,
                    &key("name"),
                    Err(Fault::new(
                        what,
                        "the journal names people by it: one name each",
                    )),
                );
            }
        }
        let hash = sha256
            .as_ref()
            .and_then(|at| self.settle(&at.span, &key("sha256"), sha256_of(&at.value)));
        if let (Some(at), Some(hash)) = (&sha256, hash)
            && let Some(other) = known.iter().find(|token| token.sha256 == hash)
        {
            let what = format!("the same token as {}'s", quote(&other.name));
            self.settle::<()>(
                &at.span,
                &key("sha256"),
                Err(Fault::new(what, "give everybody a token of their own")),
            );
        }
        let role = match role? {
            RoleText::Viewer => Role::Viewer,
            RoleText::Operator => Role::Operator,
            RoleText::Admin => Role::Admin,
        };
        Some(Token {
            name: name?.value,
            role,
            sha256: hash?,
        })
    }

    pub(super) fn state(&mut self, table: StateTable) -> State {
        let StateTable { directory } = table;
        if let Some(at) = directory.as_ref().filter(|at| at.value.trim().is_empty()) {
            self.settle::<()>(
                &at.span,
                "state.directory",
                Err(Fault::new(
                    "expected a folder, found an empty string",
                    format!("write directory = {:?}", default::DIRECTORY),
                )),
            );
        }
        State {
            directory: directory.map_or_else(|| default::DIRECTORY.to_owned(), |at| at.value),
        }
    }

    pub(super) fn log(&mut self, table: LogTable) -> Log {
        let LogTable {
            format,
            access,
            sample,
            user,
            file,
        } = table;
        let format = match format.unwrap_or(LogFormatText::Json) {
            LogFormatText::Json => LogFormat::Json,
            LogFormatText::Text => LogFormat::Text,
        };
        let access = match access.unwrap_or(AccessText::All) {
            AccessText::All => AccessLog::All,
            AccessText::Errors => AccessLog::Errors,
            AccessText::Off => AccessLog::Off,
        };
        let user = match user.unwrap_or(LogUserText::Hashed) {
            LogUserText::Hashed => LogUser::Hashed,
            LogUserText::Plain => LogUser::Plain,
            LogUserText::Off => LogUser::Off,
        };
        let sample = self.share(sample.as_ref(), "log.sample", default::LOG_SAMPLE);
        if let Some(at) = file.as_ref().filter(|at| at.value.trim().is_empty()) {
            self.settle::<()>(
                &at.span,
                "log.file",
                Err(Fault::new(
                    "expected a file, found an empty string",
                    "leave it out for standard output",
                )),
            );
        }
        Log {
            format,
            access,
            sample,
            user,
            file: file.map(|at| at.value),
        }
    }

    pub(super) fn traces(&mut self, table: TracesTable) -> Option<Traces> {
        let TracesTable {
            endpoint,
            sample,
            service,
        } = table;
        // The shape check has ensured that it is present.
        let endpoint =
            endpoint.and_then(|at| self.settle(&at.span, "traces.endpoint", collector(&at.value)));
        let sample = self.share(sample.as_ref(), "traces.sample", default::TRACES_SAMPLE);
        let service = match service {
            Some(at) if at.value.trim().is_empty() => self.settle(
                &at.span,
                "traces.service",
                Err(Fault::new(
                    "expected a name, found an empty string",
                    "leave it out for \"cutover\"",
                )),
            ),
            service => {
                Some(service.map_or_else(|| default::TRACES_SERVICE.to_owned(), |at| at.value))
            }
        };
        Some(Traces {
            endpoint: endpoint?,
            sample,
            service: service?,
        })
    }

    pub(super) fn routing(
        &mut self,
        table: Option<At<RoutingTable>>,
        backends: &[String],
    ) -> Option<Routing> {
        let (span, table) = table.map_or((0..0, None), |at| (at.span, Some(at.value)));
        let (default_backend, token, expose_decision) = table.map_or((None, None, None), |table| {
            (
                table.default_backend,
                table.override_token_sha256,
                table.expose_decision,
            )
        });
        let default_backend = self.backend_name(
            default_backend.as_ref(),
            &span,
            "routing.default_backend",
            default::LEGACY,
            backends,
        );
        let override_token_sha256 = match token {
            None => None,
            Some(at) => Some(self.settle(
                &at.span,
                "routing.override_token_sha256",
                sha256_of(&at.value),
            )?),
        };
        Some(Routing {
            default_backend: default_backend?,
            override_token_sha256,
            expose_decision: expose_decision.unwrap_or(false),
        })
    }
}

/// Parses the address of a collector, without a slash at its end.
fn collector(text: &str) -> Result<String, Fault> {
    const HINT: &str = "write it like \"http://127.0.0.1:4318\"";
    let bare = text.trim_end_matches('/');
    let bare = bare.strip_suffix("/v1/traces").unwrap_or(bare);
    let Some(authority) = bare.strip_prefix("http://") else {
        let hint = if text.starts_with("https://") {
            "spans go to a collector on this machine or this network, without TLS; the collector \
             can pass them on with TLS"
        } else {
            HINT
        };
        return Err(Fault::new(
            format!(
                "expected a web address that begins with http://, found {}",
                quote(text)
            ),
            hint,
        ));
    };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let is_host = !host.is_empty()
        && host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._[]:".contains(&byte));
    if is_host && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0)) {
        return Ok(bare.to_owned());
    }
    Err(Fault::new(
        format!(
            "expected a host and a port after http://, found {}",
            quote(text)
        ),
        HINT,
    ))
}

/// Parses an IP address with a port. `any` is the address that hints use in place of a missing one.
fn address(text: &str, any: &str) -> Result<SocketAddr, Fault> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    let what = format!("expected an IP address and a port, found {}", quote(text));
    let bare = text
        .rsplit_once("://")
        .map_or(text, |(_, rest)| rest)
        .trim_end_matches('/');
    let is_port = |text: &str| text.parse::<u16>().is_ok();
    let hint = match bare.rsplit_once(':') {
        Some((host, port)) if is_port(port) && (host.is_empty() || host == "*") => {
            format!("write \"{any}:{port}\"")
        }
        Some(("localhost", port)) if is_port(port) => format!("write \"127.0.0.1:{port}\""),
        _ if is_port(bare) => format!("write \"{any}:{bare}\""),
        _ if bare != text && bare.parse::<SocketAddr>().is_ok() => format!("write \"{bare}\""),
        _ => {
            format!("write it like \"{any}:8080\" or \"[::1]:8080\"; names are not looked up here")
        }
    };
    Err(Fault::new(what, hint))
}

/// Parses a network, or a single address as a network of one address.
fn network(text: &str) -> Result<IpNet, Fault> {
    let single = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse::<IpNet>()
        .or_else(|_| single())
        .map(|network| network.trunc())
        .map_err(|_| {
            let what = format!("expected a network or an IP address, found {}", quote(text));
            Fault::new(
                what,
                "write it like \"10.0.0.0/8\", \"192.0.2.7\" or \"fd00::/8\"",
            )
        })
}

/// Parses 64 hex digits. Messages do not repeat them, because the operator may have written the
/// token itself.
fn sha256_of(text: &str) -> Result<[u8; 32], Fault> {
    let hint = "make it with: printf %s \"$TOKEN\" | sha256sum";
    let characters = text.chars().count();
    if characters != 64 {
        return Err(Fault::new(
            format!("expected a SHA-256 of 64 hex digits, found {characters} characters"),
            hint,
        ));
    }
    if HASHES_OF_NOTHING.contains(&text.to_lowercase().as_str()) {
        return Err(Fault::new(
            "this is the SHA-256 of an empty token: anybody could come in",
            format!("was TOKEN set? {hint}"),
        ));
    }
    let mut bytes = [0; 32];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        match (digit(digits[0]), digit(digits[1])) {
            (Some(high), Some(low)) => *byte = (high * 16 + low) as u8,
            _ => {
                return Err(Fault::new(
                    "expected a SHA-256 of 64 hex digits, found 64 characters that are not all \
                     hex digits",
                    hint,
                ));
            }
        }
    }
    Ok(bytes)
}
