//! Single requests outside the load: to admin ports and to the control ports of backends.

use crate::driver::Target;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::io;
use std::time::Duration;
use tokio::net::TcpStream;

/// The longest time that one call may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// The largest answer that is read, in bytes.
const MOST_BYTES: usize = 8 * 1024 * 1024;

/// Sends one request without TLS, with an optional JSON body, and reads the whole answer.
pub async fn call(
    method: &Method,
    url: &str,
    body: Option<&str>,
    allow_remote: bool,
) -> io::Result<(u16, String)> {
    let wrong = |what: &dyn std::fmt::Display| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{method} {url}: {what}"),
        )
    };
    let uri: Uri = url.parse().map_err(|error| wrong(&error))?;
    let authority = uri
        .authority()
        .ok_or_else(|| wrong(&"expected a whole URL"))?
        .clone();
    // The address check is the one of load targets: every address that is called has to be allowed.
    Target::resolve(&format!("http://{authority}"), allow_remote)
        .await
        .map_err(|error| wrong(&error))?;
    let path = uri
        .path_and_query()
        .cloned()
        .unwrap_or_else(|| http::uri::PathAndQuery::from_static("/"));
    let request = Request::builder()
        .method(method)
        .uri(Uri::from(path))
        .header(HOST, authority.as_str())
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body.unwrap_or_default().to_owned())))
        .map_err(|error| wrong(&error))?;
    let exchange = async {
        let stream = TcpStream::connect((
            authority.host().trim_matches(['[', ']']),
            authority.port_u16().unwrap_or(80),
        ))
        .await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        let mover = tokio::spawn(connection);
        let answer = async {
            let response = sender
                .send_request(request)
                .await
                .map_err(io::Error::other)?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), MOST_BYTES)
                .collect()
                .await
                .map_err(io::Error::other)?
                .to_bytes();
            Ok::<_, io::Error>((status, String::from_utf8_lossy(&body).into_owned()))
        }
        .await;
        mover.abort();
        answer
    };
    match tokio::time::timeout(PATIENCE, exchange).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(wrong(&error)),
        Err(_) => Err(wrong(&"no answer in time")),
    }
}
