//! Finds the user key of a request. The first source of the rollout that is not empty wins.
//!
//! A client must not be able to pose as two users, or as none, on purpose. Therefore two requests
//! are refused: one with a key header that occurs twice, and one whose `Connection` names a header
//! with a key (so that the next hop would drop it). A key may be as long as a head: it is hashed
//! and never truncated. Keys are bytes as received. Cookies lose their quotes, and query and path
//! values lose their percent encoding.
//!
//! JWT claims are read without verifying the signature. They only choose a bucket, so a client that
//! forges one only chooses its own side.

use std::borrow::Cow;
use std::net::IpAddr;

use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, URL_SAFE_NO_PAD};
use base64::{Engine, alphabet};
use cutover_core::{KeySource, KeyStep};
use http::header::{AUTHORIZATION, CONNECTION, COOKIE};

use crate::gateway::message::head::Head;
use crate::shared::published::PreparedKey;

/// The cookie that `anonymous = "cookie"` issues. It is read after all sources of the rollout.
pub const MINTED_COOKIE: &str = "cutover_id";

/// The sender of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Identity<'a> {
    /// A user key, and the source of the rollout that contained it. `None` is the issued cookie.
    Key(Cow<'a, [u8]>, Option<usize>),
    /// No source has a key.
    Anonymous,
    /// The request is refused for this reason.
    Refused(&'static str),
}

/// Finds the user key. `reads_minted` says whether the rollout issues cookies to users without a
/// key.
pub fn identify<'a>(
    head: &'a impl Head,
    keys: &[PreparedKey],
    client: IpAddr,
    reads_minted: bool,
) -> Identity<'a> {
    for (at, key) in keys.iter().enumerate() {
        let found = match find(head, key, client) {
            Ok(found) => found,
            Err(why) => return Identity::Refused(why),
        };
        // Nearly every key is used unchanged.
        let found = if key.steps.is_empty() {
            found
        } else {
            found.and_then(|value| {
                key.steps
                    .iter()
                    .try_fold(value, |value, step| read(value, *step))
            })
        };
        match found {
            Some(key) if !key.is_empty() => return Identity::Key(key, Some(at)),
            Some(_) | None => {}
        }
    }
    match cookie(head, MINTED_COOKIE.as_bytes()) {
        Some(key) if reads_minted && !key.is_empty() => Identity::Key(Cow::Borrowed(key), None),
        Some(_) | None => Identity::Anonymous,
    }
}

/// Finds the raw value of one source.
///
/// # Errors
/// Why the request is refused.
pub fn find<'a>(
    head: &'a impl Head,
    key: &PreparedKey,
    client: IpAddr,
) -> Result<Option<Cow<'a, [u8]>>, &'static str> {
    Ok(match (&key.source, &key.header) {
        (KeySource::Header(_), Some(name)) => {
            let (mut first, mut more) = (None, false);
            head.each(name, &mut |value| {
                more |= first.is_some();
                first = first.or(Some(value));
            });
            if more {
                return Err("the user key header comes more than once");
            }
            first.map(Cow::Borrowed)
        }
        (KeySource::Cookie(name), _) => cookie(head, name.as_bytes()).map(Cow::Borrowed),
        (KeySource::Jwt(claim), _) => jwt_claim(head, claim).map(Cow::Owned),
        (KeySource::Query(name), _) => head.query().and_then(|query| query_value(query, name)),
        (KeySource::Path(segment), _) => path_segment(head.path(), *segment),
        (KeySource::Ip, _) => Some(Cow::Owned(client.to_string().into_bytes())),
        (KeySource::Header(_), None) => None,
    })
}

/// Applies one step of reading a value. `None` if the step does not apply, which counts as no
/// value.
pub fn read(value: Cow<'_, [u8]>, step: KeyStep) -> Option<Cow<'_, [u8]>> {
    Some(match step {
        KeyStep::Decode if value.contains(&b'%') => Cow::Owned(decode_bytes(&value, false)),
        KeyStep::Lower if value.iter().any(u8::is_ascii_uppercase) => {
            Cow::Owned(value.to_ascii_lowercase())
        }
        KeyStep::Decode | KeyStep::Lower => value,
        KeyStep::Trim => match value {
            Cow::Borrowed(value) => Cow::Borrowed(value.trim_ascii()),
            Cow::Owned(value) => Cow::Owned(value.trim_ascii().to_vec()),
        },
        KeyStep::Base64 => {
            let standard: Vec<u8> = value
                .iter()
                .map(|byte| {
                    if *byte == b'-' {
                        b'+'
                    } else if *byte == b'_' {
                        b'/'
                    } else {
                        *byte
                    }
                })
                .collect();
            Cow::Owned(ANY_PADDING.decode(standard).ok()?)
        }
    })
}

/// Base64 with or without its padding.
const ANY_PADDING: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Returns whether the client asks the next hop to drop a header that carries a user key.
pub fn nominates_a_key_header(head: &impl Head, key_headers: &[http::HeaderName]) -> bool {
    let mut nominated = false;
    head.each(&CONNECTION, &mut |value| {
        nominated |= value.split(|&byte| byte == b',').any(|token| {
            let token = token.trim_ascii();
            key_headers
                .iter()
                .any(|name| token.eq_ignore_ascii_case(name.as_str().as_bytes()))
        });
    });
    nominated
}

/// Returns the first non-empty value of a cookie in all `Cookie` headers (HTTP/2 may split them),
/// without surrounding quotes.
fn cookie<'a>(head: &'a impl Head, name: &[u8]) -> Option<&'a [u8]> {
    let mut found = None;
    head.each(&COOKIE, &mut |header| {
        found = found.or_else(|| cookie_in(header, name));
    });
    found
}

fn cookie_in<'a>(header: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    header.split(|&byte| byte == b';').find_map(|pair| {
        let pair = pair.trim_ascii();
        let value = pair.strip_prefix(name)?.strip_prefix(b"=")?.trim_ascii();
        let unquoted = value
            .strip_prefix(b"\"")
            .and_then(|value| value.strip_suffix(b"\""))
            .unwrap_or(value);
        (!unquoted.is_empty()).then_some(unquoted)
    })
}

/// Returns a claim of the bearer token as text: strings unchanged, numbers in decimal.
fn jwt_claim(head: &impl Head, claim: &str) -> Option<Vec<u8>> {
    let header = head.first(&AUTHORIZATION)?;
    let (scheme, token) = (header.get(..7)?, header.get(7..)?);
    if !scheme.eq_ignore_ascii_case(b"bearer ") {
        return None;
    }
    let payload = token.trim_ascii().split(|&byte| byte == b'.').nth(1)?;
    let payload = payload
        .strip_suffix(b"==")
        .or_else(|| payload.strip_suffix(b"="))
        .unwrap_or(payload);
    let claims: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
    match claims.get(claim)? {
        serde_json::Value::String(text) => Some(text.clone().into_bytes()),
        serde_json::Value::Number(number) => Some(number.to_string().into_bytes()),
        serde_json::Value::Null
        | serde_json::Value::Bool(_)
        | serde_json::Value::Array(_)
        | serde_json::Value::Object(_) => None,
    }
}

/// Returns the first non-empty value of a query parameter, percent-decoded, with `+` as space.
fn query_value<'a>(query: &'a str, name: &str) -> Option<Cow<'a, [u8]>> {
    query.split('&').find_map(|pair| {
        let (found, value) = pair.split_once('=')?;
        let same = found == name
            || (found.contains(['%', '+']) && *decode(found, true) == *name.as_bytes());
        (same && !value.is_empty()).then(|| decode(value, true))
    })
}

/// Returns the N-th non-empty segment of a path, percent-decoded, counted from 1.
fn path_segment(path: &str, number: usize) -> Option<Cow<'_, [u8]>> {
    let segment = path
        .split('/')
        .filter(|segment| !segment.is_empty())
        .nth(number.checked_sub(1)?)?;
    Some(decode(segment, false))
}

/// Decodes percent encoding. Invalid escapes are kept unchanged.
pub(in crate::gateway) fn decode(text: &str, plus_is_space: bool) -> Cow<'_, [u8]> {
    if !text
        .bytes()
        .any(|byte| byte == b'%' || (plus_is_space && byte == b'+'))
    {
        return Cow::Borrowed(text.as_bytes());
    }
    Cow::Owned(decode_bytes(text.as_bytes(), plus_is_space))
}

fn decode_bytes(text: &[u8], plus_is_space: bool) -> Vec<u8> {
    let hex = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match (byte, after) {
            (b'%', [high, low, after @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => {
                    decoded.push(high << 4 | low);
                    rest = after;
                }
                _ => decoded.push(b'%'),
            },
            (b'+', _) if plus_is_space => decoded.push(b' '),
            (byte, _) => decoded.push(byte),
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::router::testing::TestHead;

    fn keys(sources: &[KeySource]) -> Vec<PreparedKey> {
        sources
            .iter()
            .map(|source| PreparedKey::new(&source.clone().into()))
            .collect()
    }

    fn check(head: &TestHead, source: KeySource, expected: Option<&str>) {
        let keys = keys(&[source]);
        let identity = identify(head, &keys, IpAddr::from([192, 0, 2, 7]), false);
        match expected {
            Some(expected) => assert_eq!(
                identity,
                Identity::Key(Cow::Borrowed(expected.as_bytes()), Some(0))
            ),
            None => assert_eq!(identity, Identity::Anonymous),
        }
    }

    #[test]
    fn each_source_finds_its_key() {
        let claims = URL_SAFE_NO_PAD.encode(br#"{"sub":"user-7","org":42,"admin":true}"#);
        let head = TestHead::get("/shop/a%2Fb//7?user=a+b%21&empty=&user=second")
            .with("x-user-id", "ana")
            .with("cookie", "theme=dark; uid=\"q7\"; uid=other; blank=")
            .with("authorization", &format!("Bearer e30.{claims}.c2ln"));
        check(&head, KeySource::Header("x-user-id".into()), Some("ana"));
        check(&head, KeySource::Cookie("uid".into()), Some("q7"));
        check(&head, KeySource::Cookie("blank".into()), None);
        check(&head, KeySource::Cookie("id".into()), None);
        check(&head, KeySource::Jwt("sub".into()), Some("user-7"));
        check(&head, KeySource::Jwt("org".into()), Some("42"));
        check(&head, KeySource::Jwt("admin".into()), None);
        check(&head, KeySource::Query("user".into()), Some("a b!"));
        check(&head, KeySource::Query("empty".into()), None);
        check(&head, KeySource::Path(1), Some("shop"));
        check(&head, KeySource::Path(2), Some("a/b"));
        check(&head, KeySource::Path(3), Some("7"));
        check(&head, KeySource::Path(4), None);
        check(&head, KeySource::Ip, Some("192.0.2.7"));
    }

    #[test]
    fn the_first_non_empty_source_wins() {
        let head = TestHead::get("/")
            .with("x-user-id", "")
            .with("cookie", "uid=q7");
        let keys = keys(&[
            KeySource::Header("x-user-id".into()),
            KeySource::Cookie("uid".into()),
            KeySource::Ip,
        ]);
        assert_eq!(
            identify(&head, &keys, IpAddr::from([192, 0, 2, 7]), false),
            Identity::Key(Cow::Borrowed(b"q7"), Some(1))
        );
    }

    #[test]
    fn a_client_cannot_pose_as_two_users_or_none_on_purpose() {
        let header = keys(&[KeySource::Header("x-user-id".into())]);
        let twice = TestHead::get("/")
            .with("x-user-id", "a")
            .with("x-user-id", "b");
        assert!(matches!(
            identify(&twice, &header, IpAddr::from([1, 1, 1, 1]), false),
            Identity::Refused(_)
        ));
        let names = [http::HeaderName::from_static("x-user-id")];
        for (value, nominated) in [
            ("keep-alive", false),
            ("close, X-User-Id", true),
            ("x-user-id", true),
            ("x-user-idx", false),
        ] {
            assert_eq!(
                nominates_a_key_header(&TestHead::get("/").with("connection", value), &names),
                nominated,
                "{value}"
            );
        }
    }

    #[test]
    fn malformed_tokens_and_escapes_give_no_key_and_no_panic() {
        for token in [
            "Bearer",
            "Bearer ",
            "Bearer a.b.c",
            "Bearer ..",
            "Basic YTpi",
            "Bearer x.e30.y",
            "bearer x.W10.y",
        ] {
            check(
                &TestHead::get("/").with("authorization", token),
                KeySource::Jwt("sub".into()),
                None,
            );
        }
        check(
            &TestHead::get("/?u=%zz%4"),
            KeySource::Query("u".into()),
            Some("%zz%4"),
        );
    }

    #[test]
    fn a_value_is_read_step_by_step_from_left_to_right() {
        use KeyStep::{Base64, Decode, Lower, Trim};
        let read_all = |value: &str, steps: &[KeyStep]| {
            let steps = steps
                .iter()
                .try_fold(Cow::Borrowed(value.as_bytes()), |value, step| {
                    read(value, *step)
                });
            steps.map(|value| String::from_utf8_lossy(&value).into_owned())
        };
        for (value, steps, expected) in [
            (
                "ana%2B1%40example.com",
                &[Decode][..],
                Some("ana+1@example.com"),
            ),
            ("ana+1@example.com", &[Decode], Some("ana+1@example.com")),
            ("%41na%zz%", &[Decode, Lower], Some("ana%zz%")),
            ("%41na", &[Lower, Decode], Some("Ana")),
            ("%20Ana%09", &[Decode, Trim, Lower], Some("ana")),
            ("%20Ana%09", &[Trim], Some("%20Ana%09")),
            ("%2541", &[Decode, Decode], Some("A")),
            ("YW5hPz8+", &[Base64], Some("ana??>")),
            ("YW5hPz8-", &[Base64], Some("ana??>")),
            ("YW4=", &[Base64], Some("an")),
            ("YW4", &[Base64], Some("an")),
            ("YW4%3D", &[Decode, Base64], Some("an")),
            ("YW4%3D", &[Base64], None),
            ("not base64", &[Base64], None),
            ("", &[Base64, Decode, Lower, Trim], Some("")),
        ] {
            assert_eq!(
                read_all(value, steps).as_deref(),
                expected,
                "{value} {steps:?}"
            );
        }
    }

    #[test]
    fn an_unreadable_value_leaves_the_choice_to_the_next_source() {
        let key = |source: KeySource, steps: &[KeyStep]| {
            PreparedKey::new(&cutover_core::Key {
                source,
                steps: steps.to_vec(),
            })
        };
        let chain = [
            key(KeySource::Cookie("uid".into()), &[KeyStep::Base64]),
            key(KeySource::Header("x-user-id".into()), &[KeyStep::Trim]),
        ];
        let head = |uid: &str| {
            TestHead::get("/")
                .with("cookie", &format!("uid={uid}"))
                .with("x-user-id", "ben")
        };
        for (uid, found, at) in [("YW5h", "ana", 0), ("!", "ben", 1), ("", "ben", 1)] {
            assert_eq!(
                identify(&head(uid), &chain, IpAddr::from([1, 1, 1, 1]), false),
                Identity::Key(Cow::Borrowed(found.as_bytes()), Some(at)),
                "{uid}"
            );
        }
    }

    #[test]
    fn a_key_of_any_length_is_read_completely() {
        let (long, other) = ("k".repeat(40_000), "k".repeat(39_999) + "l");
        let claims = URL_SAFE_NO_PAD.encode(format!(r#"{{"pad":"{long}","sub":"{long}"}}"#));
        for key in [&long, &other] {
            let head = TestHead::get(&format!("/{key}?user={key}"))
                .with("x-user-id", key)
                .with("cookie", &format!("uid={key}"));
            for source in [
                KeySource::Header("x-user-id".into()),
                KeySource::Cookie("uid".into()),
                KeySource::Query("user".into()),
                KeySource::Path(1),
            ] {
                check(&head, source, Some(key));
            }
        }
        let head = TestHead::get("/").with("authorization", &format!("Bearer e30.{claims}.c2ln"));
        check(&head, KeySource::Jwt("sub".into()), Some(&long));
    }

    #[test]
    fn an_issued_cookie_is_read_only_if_the_rollout_issues_cookies() {
        let head = TestHead::get("/").with("cookie", "cutover_id=abc");
        assert_eq!(
            identify(&head, &[], IpAddr::from([1, 1, 1, 1]), true),
            Identity::Key(Cow::Borrowed(b"abc"), None)
        );
        assert_eq!(
            identify(&head, &[], IpAddr::from([1, 1, 1, 1]), false),
            Identity::Anonymous
        );
    }
}
