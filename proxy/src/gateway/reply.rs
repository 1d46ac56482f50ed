//! Answers of our own: refusals and failures, as small JSON or HTML by `Accept`. They name no backend, no address and no version.

use http::StatusCode;

use super::head::Head;

/// An answer that no backend gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// A stable word for programs.
    pub code: &'static str,
    /// A sentence for people.
    pub message: &'static str,
}

impl Reply {
    /// The client's request is wrong.
    pub const fn bad_request(code: &'static str, message: &'static str) -> Self {
        Self { status: StatusCode::BAD_REQUEST, code, message }
    }

    /// A method that would show the client what we tell backends.
    pub const METHOD_NOT_ALLOWED: Self = Self { status: StatusCode::METHOD_NOT_ALLOWED, code: "method_not_allowed", message: "this method is not allowed here" };
    /// The request body is larger than `max_body`.
    pub const TOO_LARGE: Self = Self { status: StatusCode::PAYLOAD_TOO_LARGE, code: "body_too_large", message: "the request body is larger than this server accepts" };
    /// The request head is larger than `max_header_bytes`.
    pub const HEAD_TOO_LARGE: Self =
        Self { status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, code: "headers_too_large", message: "the request headers are larger than this server accepts" };
    /// No server of the backend has an address.
    pub const NO_SERVER: Self = Self { status: StatusCode::SERVICE_UNAVAILABLE, code: "no_server", message: "no server is available for this request, please try again" };
    /// The backend did not answer in time.
    pub const TIMEOUT: Self = Self { status: StatusCode::GATEWAY_TIMEOUT, code: "backend_timeout", message: "the server behind this address did not answer in time" };
    /// The backend could not be reached or broke off.
    pub const BAD_GATEWAY: Self = Self { status: StatusCode::BAD_GATEWAY, code: "backend_failed", message: "the server behind this address could not answer" };
    /// The client was too slow to send its request.
    pub const CLIENT_TIMEOUT: Self = Self { status: StatusCode::REQUEST_TIMEOUT, code: "request_timeout", message: "the request did not arrive in time" };
    /// Something in the proxy itself failed.
    pub const INTERNAL: Self = Self { status: StatusCode::INTERNAL_SERVER_ERROR, code: "proxy_error", message: "this request could not be handled" };

    /// The body and its content type: HTML for browsers, JSON for everybody else.
    pub fn body(&self, html: bool) -> (String, &'static str) {
        let (status, reason) = (self.status.as_u16(), self.status.canonical_reason().unwrap_or("Error"));
        if html {
            let body =
                format!("<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{status} {reason}</title><h1>{status} {reason}</h1><p>{}.</p></html>\n", self.message);
            (body, "text/html; charset=utf-8")
        } else {
            let body = serde_json::json!({"error": {"code": self.code, "message": self.message, "status": status}});
            (format!("{body}\n"), "application/json")
        }
    }
}

/// Whether the client is a browser asking for a page.
pub fn wants_html(head: &impl Head) -> bool {
    head.first(&http::header::ACCEPT).is_some_and(|accept| accept.windows(9).any(|part| part.eq_ignore_ascii_case(b"text/html")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::gate::tests::TestHead;

    #[test]
    fn a_browser_gets_a_page_and_a_program_gets_json() {
        assert!(wants_html(&TestHead::get("/").with("accept", "text/html,application/xhtml+xml;q=0.9")));
        assert!(!wants_html(&TestHead::get("/").with("accept", "*/*")));
        let (json, kind) = Reply::TIMEOUT.body(false);
        assert_eq!(kind, "application/json");
        assert_eq!(json, "{\"error\":{\"code\":\"backend_timeout\",\"message\":\"the server behind this address did not answer in time\",\"status\":504}}\n");
        assert!(Reply::TIMEOUT.body(true).0.contains("<h1>504 Gateway Timeout</h1>"));
    }
}
