//! The reading of `match` and `key`, which concern requests. Each text is normalised to the form in
//! which the gateway compares it, or refused with the text to write.

use cutover_core::{Key, KeySource, KeyStep, Match};

use super::{Fault, Lower};
use crate::schema::{At, MatchTable};
use crate::text::quote;

/// The description of key sources in messages.
const SOURCE_SHAPE: &str = "header:NAME, cookie:NAME, jwt:CLAIM, query:NAME, path:N or ip";

/// Names of headers and cookies that all identify the user, in lower case and without anything
/// except letters and digits.
const USERS: [&str; 6] = ["uid", "user", "userid", "username", "login", "email"];

/// Headers that belong to one connection, and never to a user.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Headers that the proxy itself writes, with a new value for each request or each connection.
const OURS: [&str; 5] = [
    "x-request-id",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "traceparent",
];

/// The maximum number of segments of a path.
const MAX_SEGMENT: usize = 100;

impl Lower<'_> {
    pub(super) fn matches(&mut self, table: Option<At<MatchTable>>) -> Option<Match> {
        let MatchTable {
            host: host_at,
            path: path_at,
            methods: method_texts,
        } = table.map(|at| at.value).unwrap_or_default();
        let host = match host_at {
            None => Some(None),
            Some(at) => self
                .settle(&at.span, "match.host", host(&at.value))
                .map(Some),
        };
        let path = match path_at {
            None => Some(None),
            Some(at) => self.settle(&at.span, "match.path", path(&at.value)),
        };
        let mut methods = Some(Vec::new());
        for (index, at) in method_texts.into_iter().flatten().enumerate() {
            match self.settle(
                &at.span,
                &format!("match.methods[{}]", index + 1),
                method(&at.value),
            ) {
                Some(method) => methods
                    .iter_mut()
                    .for_each(|methods| methods.push(method.clone())),
                None => methods = None,
            }
        }
        Some(Match {
            host: host?,
            path: path?,
            methods: methods?,
        })
    }

    /// Returns path prefixes in the form in which requests are compared. `None` if one cannot be
    /// used.
    pub(super) fn prefixes(
        &mut self,
        texts: Option<&At<Vec<At<String>>>>,
        key: &str,
    ) -> Option<Vec<Box<str>>> {
        let mut prefixes = Some(Vec::new());
        for (index, at) in texts.into_iter().flat_map(|at| &at.value).enumerate() {
            match self.settle(&at.span, &format!("{key}[{}]", index + 1), path(&at.value)) {
                Some(prefix) => prefixes.iter_mut().for_each(|all: &mut Vec<Box<str>>| {
                    all.push(prefix.clone().unwrap_or_else(|| "/".into()));
                }),
                None => prefixes = None,
            }
        }
        prefixes
    }

    pub(super) fn keys(&mut self, texts: &At<Vec<At<String>>>) -> Option<Vec<Key>> {
        let mut sources = Some(Vec::new());
        for (index, at) in texts.value.iter().enumerate() {
            let key = format!("key[{}]", index + 1);
            let Some(source) = self.settle(&at.span, &key, key_of(&at.value)) else {
                sources = None;
                continue;
            };
            if index == 0 && source.source == KeySource::Ip {
                let what = if texts.value.len() == 1 {
                    "the address is the only key"
                } else {
                    "the address is the first key, so the others are never read"
                };
                let problem = self.warning(
                    &at.span,
                    &key,
                    format!(
                        "{what}: all users behind one NAT or office move together, and move again \
                         when their address changes"
                    ),
                );
                self.report.push(problem.label("not a user").hint(
                    "put what names a user first, such as \"header:x-user-id\" or \"cookie:uid\"",
                ));
            }
            if sources
                .as_ref()
                .is_some_and(|sources: &Vec<Key>| sources.contains(&source))
            {
                let problem = self
                    .warning(
                        &at.span,
                        &key,
                        format!("{:?} is in the list twice", source.text()),
                    )
                    .label("a second time");
                self.report.push(problem.hint("remove one"));
                continue;
            }
            if let Some((what, hint)) = doubtful(&source) {
                let problem = self.warning(&at.span, &key, what).label("these steps");
                self.report.push(problem.hint(hint));
            }
            if let Some(other) = sources.iter().flatten().find(|other| {
                look_alike(&other.source, &source.source) && other.steps != source.steps
            }) {
                let what = format!(
                    "{:?} and {:?} look like the same user, and are read differently: one user \
                     may be two, on two sides",
                    other.text(),
                    source.text()
                );
                let problem = self.warning(&at.span, &key, what).label("read differently");
                self.report.push(problem.hint(
                    "write the same steps for both, unless they are written differently: decode \
                     changes nothing in a value without escapes",
                ));
            }
            sources
                .iter_mut()
                .for_each(|sources| sources.push(source.clone()));
        }
        sources.filter(|sources| !sources.is_empty())
    }
}

/// Parses a host and returns it in lower case, with or without `*.` before it.
fn host(text: &str) -> Result<Box<str>, Fault> {
    let fault = |hint: &str| {
        Fault::new(
            format!(
                "expected a host such as \"shop.example\" or \"*.example\", found {}",
                quote(text)
            ),
            hint,
        )
    };
    if text == "*" {
        return Err(fault("remove host: without it every host is taken"));
    }
    let bare = text.split_once("://").map_or(text, |(_, rest)| rest);
    let bare = bare.split('/').next().unwrap_or_default();
    let bare = bare
        .rsplit_once(':')
        .filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()))
        .map_or(bare, |(host, _)| host);
    let bare = bare.strip_suffix('.').unwrap_or(bare);
    if bare != text {
        return Err(fault(&format!(
            "write host = {bare:?}, without scheme, port, path or closing point"
        )));
    }
    if !text.is_ascii() {
        return Err(fault(
            "write the name as it is on the wire, beginning with xn--",
        ));
    }
    let name = text.strip_prefix("*.").unwrap_or(text);
    if name.contains('*') {
        return Err(fault(
            "a * may only stand for whole names at the front: \"*.example\"",
        ));
    }
    let is_label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    if text.len() > 253 || !name.split('.').all(is_label) {
        return Err(fault("a host is made of letters, digits, - and ."));
    }
    Ok(text.to_ascii_lowercase().into())
}

/// Parses a path prefix into the form in which the gateway compares it; `None` for `/`, which
/// matches everything.
fn path(text: &str) -> Result<Option<Box<str>>, Fault> {
    let fault = |hint: String| {
        Fault::new(
            format!(
                "expected a path such as \"/checkout\", found {}",
                quote(text)
            ),
            hint,
        )
    };
    if !text.starts_with('/') {
        let after_host = text
            .split_once("://")
            .and_then(|(_, rest)| rest.split_once('/'))
            .map_or(text, |(_, path)| path);
        return Err(fault(format!("write {:?}", format!("/{after_host}"))));
    }
    if let Some((before, mark)) = ['?', '#']
        .into_iter()
        .find_map(|mark| text.split_once(mark).map(|(before, _)| (before, mark)))
    {
        return Err(fault(format!(
            "write {before:?}: what follows {mark} is not part of a path"
        )));
    }
    if let Some((before, _)) = text.split_once('*') {
        let before = before
            .rfind('/')
            .map_or("/", |slash| if slash == 0 { "/" } else { &before[..slash] });
        return Err(fault(format!(
            "write {before:?}: a path takes everything below it, and * is not special"
        )));
    }
    if text.contains('%') {
        let hint = match decoded(text) {
            Some(decoded) if path(&decoded).is_ok() => {
                format!("write {decoded:?}: requests are compared after decoding")
            }
            _ => "requests are compared after decoding, so a % never matches; match a shorter \
                  prefix"
                .to_owned(),
        };
        return Err(fault(hint));
    }
    if text.contains("//") {
        let mut single = text.to_owned();
        while single.contains("//") {
            single = single.replace("//", "/");
        }
        return Err(fault(format!(
            "write {single:?}: double slashes are put together before requests are compared"
        )));
    }
    if text
        .split('/')
        .any(|segment| segment == "." || segment == "..")
    {
        return Err(fault(
            "write the path without . and .. segments: they are resolved before requests are \
             compared"
                .to_owned(),
        ));
    }
    if text.contains(char::is_control) {
        return Err(fault(
            "remove the control characters, or match a shorter prefix".to_owned(),
        ));
    }
    let text = text.strip_suffix('/').unwrap_or(text);
    Ok((!text.is_empty()).then(|| text.into()))
}

/// Returns the text with its escapes decoded; `None` if the result is not text without a `%`.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let [high, low, after @ ..] = after else {
            return None;
        };
        let digit = |digit: u8| char::from(digit).to_digit(16);
        bytes.push((digit(*high)? * 16 + digit(*low)?) as u8);
        rest = after;
    }
    String::from_utf8(bytes)
        .ok()
        .filter(|text| !text.contains('%'))
}

fn method(text: &str) -> Result<Box<str>, Fault> {
    let fault = |hint: String| {
        Fault::new(
            format!("expected a method in upper case, found {}", quote(text)),
            hint,
        )
    };
    if !is_token(text) {
        return Err(fault(
            "write it like \"GET\"; leave methods out to take all".to_owned(),
        ));
    }
    let upper = text.to_ascii_uppercase();
    if upper == text {
        Ok(text.into())
    } else {
        Err(fault(format!(
            "write {upper:?}: methods are case-sensitive"
        )))
    }
}

/// Parses a key source with its decoding steps.
fn key_of(text: &str) -> Result<Key, Fault> {
    let mut parts = text.split('|');
    let source = key_source(parts.next().unwrap_or_default())?;
    let steps = parts
        .map(|name| step(name, text))
        .collect::<Result<Vec<_>, _>>()?;
    if source == KeySource::Ip && !steps.is_empty() {
        return Err(Fault::new(
            format!("expected an address without steps, found {}", quote(text)),
            "write \"ip\"",
        ));
    }
    Ok(Key { source, steps })
}

fn step(name: &str, text: &str) -> Result<KeyStep, Fault> {
    let names = KeyStep::ALL.map(KeyStep::name);
    KeyStep::ALL
        .into_iter()
        .find(|step| step.name() == name)
        .ok_or_else(|| {
            let what = format!(
                "expected {} behind a |, found {} in {}",
                crate::text::either(&names),
                quote(name),
                quote(text)
            );
            let hint = match crate::text::nearest(name, names) {
                Some(near) => format!("did you mean {near:?}?"),
                None => "steps are applied from left to right, like \"cookie:uid|decode|lower\"; \
                         a | cannot be part of a name"
                    .to_owned(),
            };
            Fault::new(what, hint)
        })
}

/// Returns what is doubtful about the steps of a key, and what to do.
fn doubtful(key: &Key) -> Option<(String, &'static str)> {
    let at = |step: KeyStep| key.steps.iter().position(|found| *found == step);
    if matches!(key.source, KeySource::Query(_) | KeySource::Path(_))
        && key.steps.first() == Some(&KeyStep::Decode)
    {
        return Some((
            format!(
                "{:?} decodes twice: values of the query and segments of the path are decoded \
                 already",
                key.text()
            ),
            "remove decode",
        ));
    }
    let is_spoiled = at(KeyStep::Lower)
        .zip(at(KeyStep::Base64))
        .is_some_and(|(lower, base64)| lower < base64);
    is_spoiled.then(|| {
        (
            format!(
                "{:?} writes base64 in lower case before it is decoded, which makes another value \
                 of it",
                key.text()
            ),
            "write lower behind base64",
        )
    })
}

/// Whether one of two sources is a header and the other a cookie, and both identify the user by
/// their names.
fn look_alike(one: &KeySource, other: &KeySource) -> bool {
    let (KeySource::Header(header), KeySource::Cookie(cookie)) = (one, other) else {
        return matches!((one, other), (KeySource::Cookie(_), KeySource::Header(_)))
            && look_alike(other, one);
    };
    let plain = |name: &str| -> String {
        name.chars()
            .filter(char::is_ascii_alphanumeric)
            .map(|letter| letter.to_ascii_lowercase())
            .collect()
    };
    let (header, cookie) = (
        plain(header.strip_prefix("x-").unwrap_or(header)),
        plain(cookie),
    );
    header == cookie || (USERS.contains(&header.as_str()) && USERS.contains(&cookie.as_str()))
}

fn key_source(text: &str) -> Result<KeySource, Fault> {
    let fault = |hint: String| {
        Fault::new(
            format!("expected {SOURCE_SHAPE}, found {}", quote(text)),
            hint,
        )
    };
    if text == "ip" {
        return Ok(KeySource::Ip);
    }
    let Some((kind, name)) = text.split_once(':') else {
        let hint = match crate::text::nearest(text, ["header", "cookie", "jwt", "query", "path"]) {
            Some(near) => format!(
                "add what to read, like \"{near}:{}\"",
                if near == "path" { "1" } else { "user" }
            ),
            None => {
                format!("say where to look for it, like \"header:{text}\" or \"cookie:{text}\"")
            }
        };
        return Err(fault(hint));
    };
    match kind {
        "header" => header(name, text).map(KeySource::Header),
        "cookie" if is_token(name) => Ok(KeySource::Cookie(name.into())),
        "cookie" => Err(fault(
            "a cookie's name is made of letters, digits and !#$%&'*+-.^_`|~, like \"cookie:uid\""
                .to_owned(),
        )),
        "jwt"
            if !name.is_empty()
                && !name.contains(|c: char| c.is_control() || c.is_whitespace()) =>
        {
            Ok(KeySource::Jwt(name.into()))
        }
        "jwt" => Err(fault("name the claim, like \"jwt:sub\"".to_owned())),
        "query"
            if !name.is_empty()
                && !name.contains(|c: char| {
                    c.is_control() || c.is_whitespace() || matches!(c, '&' | '=' | '#')
                }) =>
        {
            Ok(KeySource::Query(name.into()))
        }
        "query" => Err(fault("name the parameter, like \"query:user\"".to_owned())),
        "path" => match name.parse::<usize>() {
            Ok(segment @ 1..=MAX_SEGMENT) if !name.starts_with(['0', '+']) => {
                Ok(KeySource::Path(segment))
            }
            _ => Err(fault(format!(
                "segments are counted from 1 to {MAX_SEGMENT}: \"path:2\" is 42 in /users/42"
            ))),
        },
        "ip" => Err(fault("write \"ip\"".to_owned())),
        _ => Err(fault(
            match crate::text::nearest(kind, ["header", "cookie", "jwt", "query", "path"]) {
                Some(near) => format!("did you mean {:?}?", format!("{near}:{name}")),
                None => "the kinds are header, cookie, jwt, query, path and ip".to_owned(),
            },
        )),
    }
}

fn header(name: &str, text: &str) -> Result<Box<str>, Fault> {
    if !is_token(name) {
        let what = format!("expected {SOURCE_SHAPE}, found {}", quote(text));
        return Err(Fault::new(
            what,
            "a header's name is made of letters, digits and !#$%&'*+-.^_`|~, like \
             \"header:x-user-id\"",
        ));
    }
    let name = name.to_ascii_lowercase();
    let (what, hint) = if HOP_BY_HOP.contains(&name.as_str()) {
        (
            "belongs to a connection, not to a user",
            "name a header that says who the user is",
        )
    } else if name.starts_with("x-cutover-") {
        (
            "is written by the proxy itself and never taken from a client",
            "name a header that says who the user is",
        )
    } else if name.starts_with("x-forwarded-") {
        (
            "is about the connection and can be forged",
            "write \"ip\" for the client's address, which heeds trusted_proxies",
        )
    } else if OURS.contains(&name.as_str()) {
        (
            "is a new one for each request, so nobody would stay on one side",
            "name a header that says who the user is",
        )
    } else if name == "cookie" {
        (
            "holds all cookies at once, and changes with any of them",
            "name one, like \"cookie:uid\"",
        )
    } else {
        return Ok(name.into());
    };
    Err(Fault::new(format!("the header {name:?} {what}"), hint))
}

/// Whether a text is a token in the sense of HTTP (RFC 9110, 5.6.2).
fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_normalised_as_requests_are() {
        for (text, kept) in [
            ("/checkout", Some("/checkout")),
            ("/checkout/", Some("/checkout")),
            ("/a/b.c/d:e@f", Some("/a/b.c/d:e@f")),
            ("/café au lait", Some("/café au lait")),
            ("/", None),
        ] {
            assert_eq!(path(text).ok(), Some(kept.map(Into::into)), "{text}");
        }
        for text in [
            "",
            "checkout",
            "https://x/y",
            "/a?b",
            "/a#b",
            "/a/*",
            "/%61",
            "//a",
            "/a//",
            "/a/./b",
            "/a/..",
            "/a\tb",
            "/\u{7f}",
            "/%",
            "/%2",
        ] {
            assert!(path(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_host_is_kept_in_lower_case() {
        assert_eq!(host("Shop.Example").ok().as_deref(), Some("shop.example"));
        assert_eq!(host("*.Example").ok().as_deref(), Some("*.example"));
        for text in [
            "",
            "*",
            "*.",
            "a.*",
            "*a.b",
            "shop.example:80",
            "http://shop.example",
            "shop.example/x",
            "shop.example.",
            "käse.example",
            "a..b",
            "[::1]",
        ] {
            assert!(host(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_key_is_a_source_and_steps_from_left_to_right() {
        for text in [
            "header:x-user-id|trim",
            "cookie:uid|decode|lower|trim|base64",
            "jwt:email|lower",
            "query:user|base64",
            "path:2|lower",
            "cookie:uid|decode|decode",
        ] {
            assert_eq!(
                key_of(text).map(|key| key.text()).ok().as_deref(),
                Some(text)
            );
        }
        for text in [
            "cookie:uid|",
            "cookie:uid|decod",
            "cookie:uid|Decode",
            "cookie:uid| decode",
            "cookie:uid||lower",
            "|decode",
            "ip|lower",
            "cookie|decode",
        ] {
            assert!(key_of(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_header_and_a_cookie_look_alike_by_their_names() {
        let alike = |one: &str, other: &str| {
            look_alike(
                &key_source(one).unwrap_or(KeySource::Ip),
                &key_source(other).unwrap_or(KeySource::Ip),
            )
        };
        for (one, other, expected) in [
            ("header:x-user-id", "cookie:uid", true),
            ("cookie:user_id", "header:x-user-id", true),
            ("header:x-tenant", "cookie:tenant", true),
            ("header:x-tenant", "cookie:uid", false),
            ("header:x-user-id", "header:user-id", false),
            ("cookie:uid", "query:uid", false),
        ] {
            assert_eq!(alike(one, other), expected, "{one} {other}");
        }
    }

    #[test]
    fn a_key_source_is_one_of_six() {
        for (text, kept) in [
            ("header:X-User-Id", "header:x-user-id"),
            ("cookie:uid", "cookie:uid"),
            ("cookie:Uid", "cookie:Uid"),
            ("jwt:sub", "jwt:sub"),
            ("jwt:https://example/claim", "jwt:https://example/claim"),
            ("query:user", "query:user"),
            ("path:2", "path:2"),
            ("ip", "ip"),
        ] {
            assert_eq!(
                key_source(text).map(|source| source.text()).ok().as_deref(),
                Some(kept),
                "{text}"
            );
        }
        for text in [
            "",
            "user",
            "header",
            "header:",
            "header:a b",
            "header:connection",
            "header:x-cutover-key",
            "header:X-Request-Id",
            "header:cookie",
            "cookie:",
            "cookie:a=b",
            "jwt:",
            "query:a&b",
            "path:",
            "path:0",
            "path:-1",
            "path:01",
            "path:1000",
            "path:x",
            "ip:1",
            "headr:x",
            "IP",
        ] {
            assert!(key_source(text).is_err(), "{text:?}");
        }
    }
}
