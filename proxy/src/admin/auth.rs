//! Authentication and authorisation on the admin port.
//!
//! With tokens, a request carries `Authorization: Bearer …`. Tokens are compared by SHA-256 in
//! constant time and never read from a URL. Without tokens every caller that reaches the port is an
//! admin, so the port binds to loopback only. A web page in a browser must not reach it, so the
//! `Host` must be a loopback name (DNS rebinding). A foreign `Origin` or a cross-site fetch is
//! refused with or without tokens. There are no cookies and no CORS.

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use cutover_config::{Role, Token};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::admin::Admin;
use crate::admin::error::ApiError;
use cutover_core::routing::routes::without_port;

/// The tokens of the configuration file.
#[derive(Debug)]
pub struct Auth {
    tokens: Vec<Token>,
}

/// An authenticated caller.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The name of the token; `None` without tokens.
    pub name: Option<String>,
    /// The role of the caller.
    pub role: Role,
    /// Whether the caller is Cutover's own command line.
    pub is_cli: bool,
}

impl Auth {
    /// Creates the check for these tokens. Without tokens every caller on loopback is an admin.
    pub fn new(tokens: Vec<Token>) -> Self {
        Self { tokens }
    }

    fn caller(&self, headers: &HeaderMap) -> Result<Caller, ApiError> {
        let is_cli = headers
            .get(header::USER_AGENT)
            .is_some_and(|agent| agent.as_bytes().starts_with(b"cutover-cli/"));
        if self.tokens.is_empty() {
            return Ok(Caller {
                name: None,
                role: Role::Admin,
                is_cli,
            });
        }
        let unauthorized = |message: &str| {
            ApiError::new(
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                message,
                "send `Authorization: Bearer TOKEN`; the command line reads CUTOVER_TOKEN",
            )
        };
        let given = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .ok_or_else(|| unauthorized("a token is required"))?;
        let digest: [u8; 32] = Sha256::digest(given.trim()).into();
        // Every token is compared, so that the time of the check does not show which one was close.
        let mut known = None;
        for token in &self.tokens {
            if bool::from(digest.ct_eq(&token.sha256)) {
                known = Some(token);
            }
        }
        let token = known.ok_or_else(|| unauthorized("this token is not known"))?;
        Ok(Caller {
            name: Some(token.name.clone()),
            role: token.role,
            is_cli,
        })
    }
}

/// A caller who may read.
#[derive(Debug)]
pub struct Viewer(pub Caller);

/// A caller who may change things.
#[derive(Debug)]
pub struct Operator(pub Caller);

impl FromRequestParts<Admin> for Viewer {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, admin: &Admin) -> Result<Self, ApiError> {
        admin.auth.caller(&parts.headers).map(Self)
    }
}

impl FromRequestParts<Admin> for Operator {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, admin: &Admin) -> Result<Self, ApiError> {
        let caller = admin.auth.caller(&parts.headers)?;
        if caller.role < Role::Operator {
            let name = caller.name.unwrap_or_default();
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "forbidden",
                &format!("the token `{name}` may only read"),
                "use a token with role operator or admin",
            ));
        }
        Ok(Self(caller))
    }
}

/// Refuses requests that a foreign page in a browser could send.
pub async fn check_origin(
    State(admin): State<Admin>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let headers = request.headers();
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or_default();
    if admin.auth.tokens.is_empty() && !is_loopback(without_port(host)) {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "foreign_host",
            &format!("the host `{host}` is not a loopback name"),
            "without tokens the admin answers to localhost, 127.0.0.1 and [::1] only",
        ));
    }
    let foreign = headers.get(header::ORIGIN).is_some_and(|origin| {
        origin
            .to_str()
            .ok()
            .and_then(|origin| origin.split_once("://"))
            .is_none_or(|(_, origin)| origin != host)
    });
    let cross_site = headers
        .get("sec-fetch-site")
        .is_some_and(|site| !matches!(site.as_bytes(), b"same-origin" | b"none"));
    if foreign || cross_site {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "foreign_origin",
            "a page of another origin may not use the admin",
            "open the admin itself, or send no Origin header",
        ));
    }
    Ok(next.run(request).await)
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}
