//! Where a request carries its user: a header, a cookie, or a claim of a bearer token.
//!
//! Tokens are signed (HS256) although a router that uses a claim need not check the signature. If a
//! gateway on the way refused a token, the load would measure that gateway's refusals. The key is
//! fixed and public, because it protects nothing.

use crate::units::UsageError;
use crate::users::user_name;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderName, HeaderValue};
use ring::hmac;
use std::fmt;
use std::str::FromStr;

/// The key that signs tokens, for gateways that insist on a signature.
pub const TOKEN_KEY: &[u8] = b"cutover-loadtest";
/// The encoded token header `{"alg":"HS256","typ":"JWT"}`.
const TOKEN_HEAD: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9";

/// Where a request carries its user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserKey {
    /// A header of this name.
    Header(HeaderName),
    /// A cookie of this name.
    Cookie(String),
    /// This claim of a bearer token.
    Jwt(String),
}

impl UserKey {
    /// Returns the header that carries the user with this number.
    pub fn header(&self, user: u32) -> Option<(HeaderName, HeaderValue)> {
        let user = user_name(user);
        let (name, value) = match self {
            Self::Header(name) => (name.clone(), user),
            Self::Cookie(name) => (COOKIE, format!("{name}={user}")),
            Self::Jwt(claim) => (AUTHORIZATION, format!("Bearer {}", token(claim, &user))),
        };
        Some((name, HeaderValue::try_from(value).ok()?))
    }
}

fn token(claim: &str, user: &str) -> String {
    // Serialising two strings as JSON cannot fail.
    let claims = serde_json::json!({ claim: user }).to_string();
    let signed = format!("{TOKEN_HEAD}.{}", URL_SAFE_NO_PAD.encode(claims));
    let signature = hmac::sign(
        &hmac::Key::new(hmac::HMAC_SHA256, TOKEN_KEY),
        signed.as_bytes(),
    );
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

impl FromStr for UserKey {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<Self, UsageError> {
        let wrong = || {
            UsageError::new(format!(
                "expected header:<name>, cookie:<name> or jwt:<claim>, such as \
                 \"header:x-user-id\", found {text:?}"
            ))
        };
        match text.split_once(':').ok_or_else(wrong)? {
            ("header", name) => Ok(Self::Header(name.parse().map_err(|_| wrong())?)),
            // A cookie name is a token (RFC 6265, section 4.1.1), like a header name. Only header
            // names are case-insensitive, so a cookie name is kept as it was written.
            ("cookie", name) if HeaderName::from_str(name).is_ok() => {
                Ok(Self::Cookie(name.to_owned()))
            }
            ("jwt", claim) if !claim.is_empty() => Ok(Self::Jwt(claim.to_owned())),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for UserKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(formatter, "header:{name}"),
            Self::Cookie(name) => write!(formatter, "cookie:{name}"),
            Self::Jwt(claim) => write!(formatter, "jwt:{claim}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::UserKey;
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    #[test]
    fn a_user_key_is_a_header_a_cookie_or_a_claim() {
        assert_eq!(
            "header:X-User-Id".parse(),
            Ok(UserKey::Header(http::HeaderName::from_static("x-user-id")))
        );
        assert_eq!("cookie:UID".parse(), Ok(UserKey::Cookie("UID".to_owned())));
        assert_eq!("jwt:sub".parse(), Ok(UserKey::Jwt("sub".to_owned())));
        for text in [
            "",
            "x-user-id",
            "query:uid",
            "header:",
            "header:a b",
            "cookie:a;b",
            "jwt:",
        ] {
            let message = text.parse::<UserKey>().expect_err(text).to_string();
            assert!(message.contains(&format!("found {text:?}")), "{message}");
        }
    }

    #[test]
    fn a_token_names_its_user_and_is_stable() {
        let key = UserKey::Jwt("sub".to_owned());
        let (name, value) = key.header(7).expect("a header");
        assert_eq!(name, "authorization");
        assert_eq!(key.header(7), Some((name, value.clone())));
        let token = value
            .to_str()
            .expect("text")
            .strip_prefix("Bearer ")
            .expect("a bearer token")
            .to_owned();
        let parts: Vec<&str> = token.split('.').collect();
        let text = |part: &str| {
            String::from_utf8(URL_SAFE_NO_PAD.decode(part).expect("base64")).expect("text")
        };
        assert_eq!(text(parts[0]), r#"{"alg":"HS256","typ":"JWT"}"#);
        assert_eq!(text(parts[1]), r#"{"sub":"user-7"}"#);
        // Computed with openssl: printf %s HEAD.CLAIMS | openssl dgst -sha256 -hmac
        // cutover-loadtest -binary | basenc --base64url
        assert_eq!(parts[2], "nsdSwAsDP4kogZU0LycjeKw8A0_UHJwnzvoI2Nblzjk");
    }
}
