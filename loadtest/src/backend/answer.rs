//! The handling of one request by the sample backend: its outcome is drawn at random, then carried
//! out.

use crate::backend::dial::Dial;
use crate::backend::{Shared, lock, websocket};
use crate::units::UsageError;
use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use rand::Rng;
use serde::Serialize;
use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::time::Sleep;

/// The path that shows (`GET`) and sets (`PUT`) the fault dial.
pub const DIAL_PATH: &str = "/__dial";
/// The path that shows the counters.
pub const STATS_PATH: &str = "/__stats";
/// The header that names the backend in every answer.
pub const SERVED_BY: &str = "x-served-by";

const MOST_DIAL_BYTES: usize = 64 * 1024;
/// The filler of response bodies. All bodies share this one buffer, so a large body costs no
/// memory.
static FILLER: [u8; 64 * 1024] = [b' '; 64 * 1024];
/// The largest body that a request may ask for with `?bytes=N`.
const MOST_ASKED_BYTES: usize = 64 * 1024 * 1024;

/// How a request ends.
#[derive(Debug, Clone, Copy)]
enum Ending {
    Answer(StatusCode),
    Hang,
    Reset,
}

/// The drawn outcome of one request.
#[derive(Debug, Clone, Copy)]
struct Fate {
    latency: Duration,
    work: Duration,
    drip: Option<Duration>,
    ending: Ending,
}

impl Shared {
    /// Draws the outcome of the next request.
    fn draw(&self) -> Fate {
        let dial = self.dial.get();
        let (struck, broken, latency) = {
            let mut random = lock(&self.random);
            (
                random.random::<f64>() < dial.share.unwrap_or(1.0),
                random.random::<f64>() < self.config.error_rate.as_share(),
                dial.draw_latency(&mut *random),
            )
        };
        let healthy = Fate {
            latency: self.config.latency,
            work: self.config.work,
            drip: None,
            ending: Ending::Answer(if broken {
                StatusCode::INTERNAL_SERVER_ERROR
            } else {
                StatusCode::OK
            }),
        };
        if !struck {
            return healthy;
        }
        let status = dial
            .status
            .and_then(|status| StatusCode::from_u16(status).ok());
        Fate {
            latency: healthy.latency + latency,
            work: healthy.work + Duration::from_micros(dial.work_us.unwrap_or(0)),
            drip: dial.drip_ms.map(Duration::from_millis),
            ending: match status {
                _ if dial.hang => Ending::Hang,
                _ if dial.reset => Ending::Reset,
                Some(status) => Ending::Answer(status),
                None => healthy.ending,
            },
        }
    }

    fn response(&self, status: StatusCode, reply: Reply) -> Response<Reply> {
        let mut response = Response::new(reply);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(SERVED_BY, self.served_by.clone());
        response
    }

    fn json(&self, status: StatusCode, value: &impl Serialize) -> Response<Reply> {
        match serde_json::to_vec(value) {
            Ok(body) => self.response(status, Reply::whole(body)),
            Err(_) => self.response(StatusCode::INTERNAL_SERVER_ERROR, Reply::whole(Vec::new())),
        }
    }
}

/// The error of a request whose connection ends without an answer.
#[derive(Debug)]
pub(super) struct Unanswered;

impl fmt::Display for Unanswered {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("request left without an answer")
    }
}

impl std::error::Error for Unanswered {}

pub(super) type Answer = Result<Response<Reply>, Unanswered>;

pub(super) async fn answer(
    shared: &std::sync::Arc<Shared>,
    mut request: Request<Incoming>,
) -> Answer {
    if matches!(request.uri().path(), DIAL_PATH | STATS_PATH) {
        return Ok(control(shared, request).await);
    }
    let switch = websocket::Switch::asked_by(&mut request);
    let (parts, body) = request.into_parts();
    drain(body).await?;

    let begun = shared.counters.begin();
    let fate = shared.draw();
    let _permit = match &shared.permits {
        // The semaphore is never closed.
        Some(permits) => permits.acquire().await.ok(),
        None => None,
    };
    if !fate.latency.is_zero() {
        tokio::time::sleep(fate.latency).await;
    }
    work(fate.work);
    let status = match fate.ending {
        Ending::Answer(status) => status,
        Ending::Hang => {
            shared.counters.hung();
            std::future::pending().await
        }
        Ending::Reset => {
            shared.counters.reset();
            return Err(Unanswered);
        }
    };
    if status == StatusCode::OK
        && let Some(switch) = switch
    {
        drop(begun);
        shared.counters.websocket();
        let mut response =
            shared.response(StatusCode::SWITCHING_PROTOCOLS, Reply::whole(Vec::new()));
        switch.accept(response.headers_mut(), shared);
        return Ok(response);
    }
    shared.counters.answered(status.as_u16());

    #[derive(Serialize)]
    struct Said<'request> {
        backend: &'request str,
        path: &'request str,
        #[serde(skip_serializing_if = "Option::is_none")]
        user: Option<std::borrow::Cow<'request, str>>,
    }
    let said = Said {
        backend: &shared.config.name,
        path: parts
            .uri
            .path_and_query()
            .map_or("/", http::uri::PathAndQuery::as_str),
        user: parts
            .headers
            .get("x-user-id")
            .map(|user| String::from_utf8_lossy(user.as_bytes())),
    };
    let body = serde_json::to_vec(&said).unwrap_or_default();
    let asked = parts.uri.query().and_then(asked_bytes).unwrap_or(0);
    let filler = shared
        .config
        .body_bytes
        .max(asked)
        .saturating_sub(body.len());
    Ok(shared.response(
        status,
        Reply {
            filler,
            drip: fate
                .drip
                .map(|pause| (pause, Box::pin(tokio::time::sleep(pause)))),
            ..Reply::whole(body)
        },
    ))
}

/// Returns the size that a request asks for with `bytes=N` in its query.
fn asked_bytes(query: &str) -> Option<usize> {
    query
        .split('&')
        .find_map(|pair| pair.strip_prefix("bytes="))
        .and_then(|bytes| bytes.parse().ok())
        .map(|bytes: usize| bytes.min(MOST_ASKED_BYTES))
}

/// Keeps a processor busy for the given time.
fn work(time: Duration) {
    if !time.is_zero() {
        let begin = Instant::now();
        while begin.elapsed() < time {
            std::hint::spin_loop();
        }
    }
}

/// Reads a body to its end and discards it.
async fn drain(mut body: Incoming) -> Result<(), Unanswered> {
    while !body.is_end_stream() {
        match body.frame().await {
            Some(Ok(_)) => {}
            Some(Err(_)) => return Err(Unanswered),
            None => break,
        }
    }
    Ok(())
}

/// Answers the control paths: shows and sets the dial, and shows the counters.
pub(super) async fn control(shared: &Shared, request: Request<Incoming>) -> Response<Reply> {
    match request.uri().path() {
        DIAL_PATH => dial(shared, request).await,
        STATS_PATH if request.method() == Method::GET => {
            shared.json(StatusCode::OK, &shared.counters.read())
        }
        STATS_PATH => method_not_allowed(shared, "GET"),
        _ => refusal(
            shared,
            StatusCode::NOT_FOUND,
            &format!("expected {DIAL_PATH} or {STATS_PATH}"),
        ),
    }
}

async fn dial(shared: &Shared, request: Request<Incoming>) -> Response<Reply> {
    if request.method() == Method::GET {
        return shared.json(StatusCode::OK, &shared.dial.get());
    }
    if request.method() != Method::PUT {
        return method_not_allowed(shared, "GET, PUT");
    }
    let wanted = match Limited::new(request.into_body(), MOST_DIAL_BYTES)
        .collect()
        .await
    {
        Ok(body) => Dial::from_json(&body.to_bytes()),
        Err(error) => Err(UsageError::new(format!(
            "expected a body of at most {MOST_DIAL_BYTES} bytes: {error}"
        ))),
    };
    let turned = match wanted {
        Ok(dial) if dial.refuse && !shared.has_control => Err(UsageError::new(
            "expected a backend with a control port (--control) for refuse: its own port will be \
             closed",
        )),
        Ok(dial) => shared.dial.turn(dial).await,
        Err(error) => Err(error),
    };
    match turned {
        Ok(()) => shared.json(StatusCode::OK, &shared.dial.get()),
        Err(error) => refusal(shared, StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

fn refusal(shared: &Shared, status: StatusCode, message: &str) -> Response<Reply> {
    shared.json(status, &serde_json::json!({ "error": message }))
}

fn method_not_allowed(shared: &Shared, allowed: &'static str) -> Response<Reply> {
    let mut response = refusal(
        shared,
        StatusCode::METHOD_NOT_ALLOWED,
        &format!("expected one of the methods {allowed}"),
    );
    response
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

/// A response body, sent at once or byte by byte, and padded with spaces.
#[derive(Debug)]
pub(super) struct Reply {
    rest: Bytes,
    filler: usize,
    drip: Option<(Duration, Pin<Box<Sleep>>)>,
}

impl Reply {
    fn whole(body: Vec<u8>) -> Self {
        Self {
            rest: body.into(),
            filler: 0,
            drip: None,
        }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.is_end_stream() {
            return Poll::Ready(None);
        }
        if let Some((pause, sleep)) = &mut self.drip {
            ready!(sleep.as_mut().poll(context));
            let again = sleep.deadline() + *pause;
            sleep.as_mut().reset(again);
        }
        if self.rest.is_empty() {
            let piece = self.filler.min(FILLER.len());
            self.filler -= piece;
            self.rest = Bytes::from_static(&FILLER[..piece]);
        }
        let next = if self.drip.is_some() {
            1
        } else {
            self.rest.len()
        };
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(next)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.filler == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact((self.rest.len() + self.filler) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::asked_bytes;

    #[test]
    fn a_request_may_ask_for_a_size_within_bounds() {
        for (query, bytes) in [
            ("bytes=10", Some(10)),
            ("a=b&bytes=7", Some(7)),
            ("bytes=x", None),
            ("a=b", None),
            ("bytes=999999999999", Some(64 * 1024 * 1024)),
        ] {
            assert_eq!(asked_bytes(query), bytes, "{query}");
        }
    }
}
