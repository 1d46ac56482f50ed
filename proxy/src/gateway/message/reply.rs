//! The proxy's own answers: refusals and failures, as small JSON or HTML depending on `Accept`.
//! They name no backend, no address and no version.

use std::borrow::Cow;

use http::StatusCode;

use crate::gateway::message::head::Head;
use crate::shared::refusals::Refusal;

/// An answer that was not given by a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The status of the answer.
    pub status: StatusCode,
    /// A stable word for programs.
    pub code: &'static str,
    /// A sentence for people.
    pub message: &'static str,
    /// The number of seconds after which a retry is worthwhile, if known.
    pub retry_after: Option<u32>,
    /// Why the request was refused, if it was.
    pub refusal: Option<Refusal>,
    /// The number of the invalid line of the request head, counted from 1. `None` if no single
    /// line is invalid.
    pub line: Option<u32>,
}

impl Reply {
    /// Creates an answer with 400 to a refused request.
    pub const fn refused(refusal: Refusal, message: &'static str) -> Self {
        Self::refused_with(StatusCode::BAD_REQUEST, refusal, message)
    }

    /// Creates an answer with this status to a refused request.
    pub const fn refused_with(status: StatusCode, refusal: Refusal, message: &'static str) -> Self {
        Self {
            refusal: Some(refusal),
            ..Self::plain(status, refusal.name(), message)
        }
    }

    /// Adds the number of the invalid line of the head, counted from 1.
    #[must_use]
    pub const fn at_line(self, line: u32) -> Self {
        Self {
            line: Some(line),
            ..self
        }
    }

    /// Returns the sentence for people, with the invalid line if there is one.
    pub fn sentence(&self) -> Cow<'static, str> {
        match self.line {
            Some(line) => Cow::Owned(format!("line {line} of the request head: {}", self.message)),
            None => Cow::Borrowed(self.message),
        }
    }

    /// Creates the answer during maintenance.
    pub const fn maintenance(message: &'static str, retry_after: u32) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::plain(StatusCode::SERVICE_UNAVAILABLE, "maintenance", message)
        }
    }

    const fn plain(status: StatusCode, code: &'static str, message: &'static str) -> Self {
        Self {
            status,
            code,
            message,
            retry_after: None,
            refusal: None,
            line: None,
        }
    }

    /// The answer to a method that would show the client our headers to backends.
    pub const METHOD_NOT_ALLOWED: Self = Self::refused_with(
        StatusCode::METHOD_NOT_ALLOWED,
        Refusal::Method,
        "this method is not allowed here",
    );
    /// The answer to a request body larger than `max_body`.
    pub const TOO_LARGE: Self = Self::refused_with(
        StatusCode::PAYLOAD_TOO_LARGE,
        Refusal::BodyTooLarge,
        "the request body is larger than this server accepts",
    );
    /// The answer to a request head larger than `max_header_bytes`.
    pub const HEAD_TOO_LARGE: Self = Self::refused_with(
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Refusal::HeadTooLarge,
        "the request headers are larger than this server accepts",
    );
    /// The answer to a request head with more lines than the engines read.
    pub const TOO_MANY_LINES: Self = Self::refused_with(
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Refusal::HeadTooLarge,
        "the request has more than 256 header lines",
    );
    /// The answer to a malformed chunk in the request body.
    pub const BAD_CHUNK: Self = Self::refused(
        Refusal::Chunk,
        "the chunked request body is malformed: a chunk is its size in hexadecimal digits, CR LF, \
         that many bytes, CR LF",
    );
    /// The answer to a client that aborted, or sent bytes that the engine cannot read.
    pub const BAD_REQUEST: Self = Self::plain(
        StatusCode::BAD_REQUEST,
        "bad_request",
        "the request is not valid",
    );
    /// The answer when no server of the backend is available.
    pub const NO_SERVER: Self = Self::plain(
        StatusCode::SERVICE_UNAVAILABLE,
        "no_server",
        "no server is available for this request, please try again",
    );
    /// The answer when the backend did not answer in time.
    pub const TIMEOUT: Self = Self::plain(
        StatusCode::GATEWAY_TIMEOUT,
        "backend_timeout",
        "the server behind this address did not answer in time",
    );
    /// The answer when the backend could not be reached or aborted.
    pub const BAD_GATEWAY: Self = Self::plain(
        StatusCode::BAD_GATEWAY,
        "backend_failed",
        "the server behind this address could not answer",
    );
    /// The answer when the backend closed a connection before it began to process the request.
    pub const NOT_PROCESSED: Self = Self {
        retry_after: Some(1),
        ..Self::plain(
            StatusCode::SERVICE_UNAVAILABLE,
            "not_processed",
            "the server behind this address did not process this request, please send it again",
        )
    };
    /// The answer to a client that sent its request too slowly.
    pub const CLIENT_TIMEOUT: Self = Self::plain(
        StatusCode::REQUEST_TIMEOUT,
        "request_timeout",
        "the request did not arrive in time",
    );
    /// The answer to a failure in the proxy itself.
    pub const INTERNAL: Self = Self::plain(
        StatusCode::INTERNAL_SERVER_ERROR,
        "proxy_error",
        "this request could not be handled",
    );

    /// Returns the body and its content type: HTML for browsers, JSON for all other clients.
    pub fn body(&self, html: bool) -> (String, &'static str) {
        let (status, reason) = (
            self.status.as_u16(),
            self.status.canonical_reason().unwrap_or("Error"),
        );
        if html {
            let body = format!(
                "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{status} \
                 {reason}</title><h1>{status} {reason}</h1><p>{}.</p></html>\n",
                escaped(&self.sentence())
            );
            (body, "text/html; charset=utf-8")
        } else {
            let body = serde_json::json!({"error": {"code": self.code, "message": self.sentence(), "status": status}});
            (format!("{body}\n"), "application/json")
        }
    }
}

/// Escapes the characters that have a meaning in HTML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// Returns whether the client is a browser that requests a page.
pub fn wants_html(head: &impl Head) -> bool {
    head.first(&http::header::ACCEPT).is_some_and(|accept| {
        accept
            .windows(9)
            .any(|part| part.eq_ignore_ascii_case(b"text/html"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::router::testing::TestHead;

    #[test]
    fn a_browser_gets_a_page_and_a_program_gets_json() {
        assert!(wants_html(
            &TestHead::get("/").with("accept", "text/html,application/xhtml+xml;q=0.9")
        ));
        assert!(!wants_html(&TestHead::get("/").with("accept", "*/*")));
        let (json, kind) = Reply::TIMEOUT.body(false);
        assert_eq!(kind, "application/json");
        assert_eq!(
            json,
            "{\"error\":{\"code\":\"backend_timeout\",\"message\":\"the server behind this \
             address did not answer in time\",\"status\":504}}\n"
        );
        let closed = Reply::maintenance("closed", 60);
        assert_eq!(
            (
                closed.status.as_u16(),
                closed.retry_after,
                Reply::TIMEOUT.retry_after
            ),
            (503, Some(60), None)
        );
        assert!(
            Reply::TIMEOUT
                .body(true)
                .0
                .contains("<h1>504 Gateway Timeout</h1>")
        );
    }
}
