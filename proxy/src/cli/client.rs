//! The client for the admin port of a running proxy.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use crate::cli::Failed;

const TIMEOUT: Duration = Duration::from_secs(15);

/// A client of the admin API.
pub(super) struct Client {
    base: String,
    token: Option<String>,
    runtime: tokio::runtime::Runtime,
}

impl Client {
    pub(super) fn new(base: &str, token: Option<String>) -> Result<Self, Failed> {
        let base = base.trim_end_matches('/');
        let base = if base.contains("://") {
            base.to_owned()
        } else {
            format!("http://{base}")
        };
        if !base.starts_with("http://") {
            return Err(Failed::usage(format!(
                "the admin speaks plain HTTP; expected http://HOST:PORT, found `{base}`"
            )));
        }
        base.parse::<Uri>()
            .map_err(|error| Failed::usage(format!("`{base}` is no URL: {error}")))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(Self {
            base,
            token,
            runtime,
        })
    }

    pub(super) fn get(&self, path: &str) -> Result<Value, Failed> {
        self.send(Method::GET, path, None)
    }

    pub(super) fn post(&self, path: &str, body: &Value) -> Result<Value, Failed> {
        self.send(Method::POST, path, Some(body))
    }

    pub(super) fn put(&self, path: &str, body: &Value) -> Result<Value, Failed> {
        self.send(Method::PUT, path, Some(body))
    }

    fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Failed> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(
                header::USER_AGENT,
                concat!("cutover-cli/", env!("CARGO_PKG_VERSION")),
            )
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let body = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let request = request
            .body(Full::new(body))
            .map_err(|error| Failed::usage(error.to_string()))?;
        let answer = self.runtime.block_on(async {
            tokio::time::timeout(TIMEOUT, async {
                let client: HttpClient<_, Full<Bytes>> =
                    HttpClient::builder(TokioExecutor::new()).build_http();
                let response = client
                    .request(request)
                    .await
                    .map_err(|error| self.unreachable(&error))?;
                let status = response.status();
                let body = response
                    .into_body()
                    .collect()
                    .await
                    .map_err(|error| Failed::new(error.to_string()))?
                    .to_bytes();
                Ok((status, body))
            })
            .await
            .unwrap_or_else(|_| {
                Err(Failed::new(format!(
                    "{} did not answer within {} s",
                    self.base,
                    TIMEOUT.as_secs()
                )))
            })
        });
        let (status, body) = answer?;
        let value: Value = serde_json::from_slice(&body).map_err(|_| {
            Failed::new(format!(
                "{} answered {status} without JSON: is this the admin port of cutover?",
                self.base
            ))
        })?;
        if status.is_success() {
            return Ok(value);
        }
        let part = |name: &str| value["error"][name].as_str().unwrap_or_default().to_owned();
        let (message, hint) = (part("message"), part("hint"));
        // A request that the API rejects as invalid is wrong usage. All other errors are failures.
        let code =
            if status == StatusCode::BAD_REQUEST || status == StatusCode::UNPROCESSABLE_ENTITY {
                2
            } else {
                1
            };
        let failed = Failed {
            code,
            message,
            hint: None,
        };
        Err(failed.hint(hint))
    }

    fn unreachable(&self, error: &dyn std::error::Error) -> Failed {
        let mut cause = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        Failed::new(format!("cannot reach {}: {cause}", self.base))
            .hint("is `cutover run` running? --admin or CUTOVER_ADMIN says where its admin port is")
    }
}

/// Percent-encodes a value for a query.
pub(super) fn encoded(value: &str) -> String {
    value.bytes().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
        text
    })
}
