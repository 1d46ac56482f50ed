//! The invariants for every input, as functions of bytes. The fuzz targets call them with made-up
//! bytes; the ordinary tests of the proxy call them with the seeds and with random bytes.

#![allow(dead_code, reason = "each fuzz target uses one of them")]

use std::borrow::Cow;
use std::net::IpAddr;

use cutover::gateway::lane::fuzz_api::{self, Request, Response};
use cutover::gateway::message::head::Head;
use cutover::gateway::message::identity::{Identity, identify, nominates_a_key_header};
use cutover::gateway::router::normalised;
use cutover::shared::published::PreparedKey;
use cutover_config::Loader;
use cutover_core::KeySource;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

/// A request head made of bytes: the target in the first line, `name: value` in the others. Lines
/// that are not headers are omitted.
struct Bytes {
    path: String,
    query: Option<String>,
    headers: HeaderMap,
}

impl Bytes {
    fn new(bytes: &[u8]) -> Self {
        let mut lines = bytes.split(|&byte| byte == b'\n');
        let target = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
        let (path, query) = target
            .split_once('?')
            .map_or((target.as_str(), None), |(path, query)| {
                (path, Some(query.to_owned()))
            });
        let mut headers = HeaderMap::new();
        for line in lines.take(64) {
            let Some(colon) = line.iter().position(|&byte| byte == b':') else {
                continue;
            };
            let (name, value) = (
                HeaderName::from_bytes(&line[..colon]),
                HeaderValue::from_bytes(line[colon + 1..].trim_ascii()),
            );
            if let (Ok(name), Ok(value)) = (name, value) {
                headers.append(name, value);
            }
        }
        Self {
            path: format!("/{}", path.trim_start_matches('/')),
            query,
            headers,
        }
    }
}

impl Head for Bytes {
    fn method(&self) -> &Method {
        &Method::GET
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
        0
    }

    fn first(&self, name: &HeaderName) -> Option<&[u8]> {
        self.headers.get(name).map(HeaderValue::as_bytes)
    }

    fn each<'a>(&'a self, name: &HeaderName, found: &mut dyn FnMut(&'a [u8])) {
        self.headers
            .get_all(name)
            .iter()
            .for_each(|value| found(value.as_bytes()));
    }

    fn fields<'a>(&'a self, found: &mut impl FnMut(&'a [u8], &'a [u8])) {
        self.headers
            .iter()
            .for_each(|(name, value)| found(name.as_str().as_bytes(), value.as_bytes()));
    }
}

/// Checks that a head gives one user, no user, or a refusal, and the same each time; a key is never
/// empty.
pub fn keys(bytes: &[u8]) {
    let head = Bytes::new(bytes);
    let client = IpAddr::from([192, 0, 2, 7]);
    let sources = [
        KeySource::Header("x-user-id".into()),
        KeySource::Cookie("uid".into()),
        KeySource::Jwt("sub".into()),
        KeySource::Query("user".into()),
        KeySource::Path(1),
        KeySource::Path(3),
        KeySource::Ip,
    ];
    let prepared: Vec<PreparedKey> = sources
        .iter()
        .map(|source| PreparedKey::new(&source.clone().into()))
        .collect();
    let mut first_found = None;
    for (at, source) in sources.iter().enumerate() {
        for reads_minted in [false, true] {
            let found = identify(&head, &prepared[at..=at], client, reads_minted);
            assert_eq!(
                found,
                identify(&head, &prepared[at..=at], client, reads_minted),
                "the same request is the same user"
            );
            match &found {
                Identity::Key(key, _) => assert!(!key.is_empty(), "{source:?} gave an empty key"),
                Identity::Anonymous => {
                    assert!(!matches!(source, KeySource::Ip), "everybody has an address");
                }
                Identity::Refused(why) => assert!(!why.is_empty()),
            }
        }
        let found = identify(&head, &prepared[at..=at], client, false);
        if let (KeySource::Header(name), Identity::Key(key, _)) = (source, &found) {
            assert_eq!(
                head.headers.get(name.as_ref()).map(HeaderValue::as_bytes),
                Some(&**key),
                "a header's key is its bytes"
            );
        }
        if found != Identity::Anonymous && first_found.is_none() {
            first_found = Some(match found {
                Identity::Key(key, _) => Identity::Key(Cow::Owned(key.into_owned()), Some(at)),
                other => other,
            });
        }
    }
    assert_eq!(
        Some(identify(&head, &prepared, client, false)),
        first_found,
        "the first source with a key, or a refusal, decides"
    );

    let names = [HeaderName::from_static("x-user-id"), http::header::COOKIE];
    let nominated = nominates_a_key_header(&head, &names);
    let mut shouting = Bytes {
        path: head.path.clone(),
        query: None,
        headers: HeaderMap::new(),
    };
    for value in head.headers.get_all(http::header::CONNECTION) {
        if let Ok(value) = HeaderValue::from_bytes(&value.as_bytes().to_ascii_uppercase()) {
            shouting.headers.append(http::header::CONNECTION, value);
        }
    }
    assert_eq!(
        nominated,
        nominates_a_key_header(&shouting, &names),
        "names have no case"
    );
}

/// Checks that a normalised path is absolute and has no dot segments. Normalising it again changes
/// nothing unless it contained an escaped percent sign.
pub fn path(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let path = format!("/{text}");
    let normal = normalised(&path);
    assert!(normal.starts_with('/'), "{path:?} became {normal:?}");
    assert!(
        normal
            .split('/')
            .all(|segment| segment != "." && segment != ".."),
        "{path:?} became {normal:?}"
    );
    assert!(!normal.contains("//"), "{path:?} became {normal:?}");
    assert!(normal.len() <= 3 * path.len(), "{path:?} became {normal:?}");
    assert_eq!(normal, normalised(&path), "the same path is the same");
    if !normal.contains('%') {
        assert_eq!(normalised(&normal), normal, "{path:?}");
    }
    // Escaping every byte must not hide a path from a rule.
    let escaped: String = path.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let plainly = normalised(&path);
    if !path.contains('%') {
        let hidden = normalised(&escaped);
        assert_eq!(
            hidden.trim_end_matches('/'),
            plainly.trim_end_matches('/'),
            "{path:?} hides as {escaped}"
        );
    }
}

struct NoFiles;

impl Loader for NoFiles {
    fn read(&self, path: &str) -> Result<String, String> {
        Err(format!("no file {path}"))
    }

    fn glob(&self, _: &str) -> Result<Vec<String>, String> {
        Ok(Vec::new())
    }

    fn env(&self, name: &str) -> Option<String> {
        (name == "SERVER").then(|| "127.0.0.1:80".to_owned())
    }
}

/// Checks that a text gives settings or problems, the same each time. Each problem lies within the
/// text, has a message, and can be rendered.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match cutover_config::parse("cutover.toml", text, &NoFiles) {
        Ok(settings) => {
            assert!(!settings.backends.is_empty());
            let again = cutover_config::parse("cutover.toml", text, &NoFiles)
                .map(|settings| settings.digest);
            assert_eq!(again.as_ref(), Ok(&settings.digest));
            settings
                .warnings
                .iter()
                .for_each(|warning| drop(warning.render(true)));
        }
        Err(problems) => {
            assert!(problems.len() > 0);
            let lines: Vec<&str> = text.split('\n').collect();
            for problem in &problems {
                assert!(
                    !problem.message.is_empty() && !problem.message.contains('\n'),
                    "{problem}"
                );
                let line = problem.line.checked_sub(1).and_then(|at| lines.get(at));
                let columns = line
                    .unwrap_or_else(|| {
                        panic!("line {} of {}: {problem}", problem.line, lines.len())
                    })
                    .chars()
                    .count()
                    + 1;
                assert!(
                    (1..=columns).contains(&problem.column),
                    "column {} of {columns}: {problem}",
                    problem.column
                );
            }
            assert!(!problems.render(false).is_empty() && !problems.render(true).is_empty());
        }
    }
}

/// Whether these bytes are the head of a message in the one form that all parsers read alike. It
/// consists of lines of `name: value` that end in both bytes, and one empty line at the end.
fn is_in_one_form(form: &[u8]) -> bool {
    let text: Vec<char> = form.iter().map(|&byte| char::from(byte)).collect();
    let text: String = text.into_iter().collect();
    let Some(head) = text.strip_suffix("\r\n\r\n") else {
        return false;
    };
    let is_line = |line: &str| !line.is_empty() && !line.contains(['\r', '\n', '\0']);
    let is_field = |line: &str| {
        is_line(line)
            && line.split_once(": ").is_some_and(|(name, value)| {
                !name.is_empty()
                    && !name.contains([' ', '\t', ':'])
                    && (value.trim_matches([' ', '\t']) == value)
            })
    };
    let mut lines = head.split("\r\n");
    lines.next().is_some_and(is_line) && lines.all(is_field)
}

/// Checks that a request that the lane accepts has one form, which the lane accepts again and does
/// not change. The bytes after its head make no difference, and no beginning of it is a whole
/// request.
pub fn lane_request(bytes: &[u8]) {
    let Request::Taken { head, body, form } = fuzz_api::request(bytes) else {
        return;
    };
    assert!(
        is_in_one_form(&form),
        "{:?} became {:?}",
        String::from_utf8_lossy(bytes),
        String::from_utf8_lossy(&form)
    );
    match fuzz_api::request(&form) {
        Request::Taken {
            head: length,
            body: again,
            form: same,
        } => assert_eq!((length, again, &same), (form.len(), body, &form)),
        other => panic!(
            "{:?} is taken and then {other:?}",
            String::from_utf8_lossy(bytes)
        ),
    }
    let alone = &bytes[..head];
    assert_eq!(
        fuzz_api::request(alone),
        Request::Taken { head, body, form },
        "what follows makes a difference"
    );
    for cut in [head / 3, head / 2, head - 2, head - 1] {
        let early = fuzz_api::request(&alone[..cut]);
        assert!(
            !matches!(early, Request::Taken { .. }),
            "the first {cut} bytes are taken as a whole request"
        );
    }
}

/// Checks that an answer has one form, framed as it was. It is the same for any number of parts of
/// its body, and chunks that are passed on are valid chunks.
pub fn lane_response(bytes: &[u8]) {
    for to_head in [false, true] {
        let Response::Whole {
            status,
            form,
            body,
            is_over,
            ..
        } = fuzz_api::response(&[bytes], to_head)
        else {
            continue;
        };
        assert!(
            is_in_one_form(&form),
            "{:?} became {:?}",
            String::from_utf8_lossy(bytes),
            String::from_utf8_lossy(&form)
        );
        let Some(body) = body else { continue };
        let written = [&form[..], &body].concat();
        match fuzz_api::response(&[&written], to_head) {
            Response::Whole {
                status: again,
                form: same,
                body: relayed,
                is_over: ended,
                ..
            } => {
                assert_eq!(
                    (again, same, relayed, ended),
                    (status, form.clone(), Some(body.clone()), is_over)
                );
            }
            other => panic!(
                "{:?} is an answer and then {other:?}",
                String::from_utf8_lossy(bytes)
            ),
        }
        let head = bytes
            .windows(2)
            .position(|two| two == b"\n\n")
            .map(|at| at + 2)
            .into_iter()
            .chain(
                bytes
                    .windows(4)
                    .position(|four| four == b"\r\n\r\n")
                    .map(|at| at + 4),
            )
            .min();
        let Some(head) = head.filter(|head| {
            matches!(
                fuzz_api::response(&[&bytes[..*head]], to_head),
                Response::Whole { .. }
            )
        }) else {
            continue;
        };
        let parts: Vec<&[u8]> = std::iter::once(&bytes[..head])
            .chain(bytes[head..].chunks(3))
            .collect();
        match fuzz_api::response(&parts, to_head) {
            Response::Whole {
                body: in_parts,
                is_over: ended,
                ..
            } => assert_eq!(
                (in_parts, ended),
                (Some(body), is_over),
                "{:?}",
                String::from_utf8_lossy(bytes)
            ),
            other => panic!("in parts {other:?}"),
        }
    }
}
