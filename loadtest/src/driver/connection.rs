//! Connections to the target (TCP or TLS, HTTP/1.1 or HTTP/2), and the requests on them.
//!
//! HTTP/2 without TLS starts by prior knowledge. With TLS the chosen protocol is the only one
//! offered, so a target that cannot speak it fails instead of being measured in another one.
//!
//! A request is sent again only if the connection proves that none of its bytes was written (an
//! idle connection that the target closed). Anything else is counted as the failure that a user
//! would see. Deliberately absent: repeating refused HTTP/2 streams, which browsers do but not all
//! clients.

use crate::driver::record::{Outcome, TransportFailure};
use crate::driver::target::{Target, Trust, client_config};
use crate::units::UsageError;
use crate::users::Side;
use bytes::Bytes;
use http::{HeaderName, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;

/// The protocol of the requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1, with one request at a time on each connection.
    #[default]
    H1,
    /// HTTP/2, with several requests at a time on each connection.
    H2,
}

impl std::str::FromStr for Protocol {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<Self, UsageError> {
        match text {
            "h1" => Ok(Self::H1),
            "h2" => Ok(Self::H2),
            _ => Err(UsageError::new(format!(
                "expected h1 or h2, found {text:?}"
            ))),
        }
    }
}

/// A byte stream to and from the target, with or without TLS.
pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// A factory for connections to one target.
#[derive(Clone)]
pub struct Connector {
    target: Target,
    protocol: Protocol,
    tls: Option<TlsConnector>,
}

impl Connector {
    /// Creates a connector for this target and protocol.
    pub fn new(target: &Target, protocol: Protocol, trust: &Trust) -> Result<Self, UsageError> {
        let offered: &[u8] = match protocol {
            Protocol::H1 => b"http/1.1",
            Protocol::H2 => b"h2",
        };
        let tls = if target.is_tls() {
            target.server_name()?;
            Some(TlsConnector::from(client_config(trust, &[offered])?))
        } else {
            None
        };
        Ok(Self {
            target: target.clone(),
            protocol,
            tls,
        })
    }

    /// Opens a connection on which only the TLS handshake has taken place.
    pub async fn wire(&self) -> io::Result<Box<dyn Wire>> {
        let stream = TcpStream::connect(&self.target.addresses[..]).await?;
        // A refused option costs latency, and that latency is measured.
        let _ = stream.set_nodelay(true);
        match &self.tls {
            None => Ok(Box::new(stream)),
            Some(tls) => Ok(Box::new(
                tls.connect(self.target.server_name().map_err(io::Error::other)?, stream)
                    .await?,
            )),
        }
    }

    /// Returns the certificate that the target presents now, in DER. Returns `None` without TLS.
    pub async fn certificate(&self) -> io::Result<Option<Vec<u8>>> {
        let Some(tls) = &self.tls else {
            return Ok(None);
        };
        let stream = TcpStream::connect(&self.target.addresses[..]).await?;
        let stream = tls
            .connect(self.target.server_name().map_err(io::Error::other)?, stream)
            .await?;
        Ok(stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(<[_]>::first)
            .map(|certificate| certificate.to_vec()))
    }

    async fn open(&self) -> Result<Connection, TransportFailure> {
        let io = TokioIo::new(self.wire().await.map_err(|error| {
            if is_malformed(&error) {
                TransportFailure::Protocol
            } else {
                TransportFailure::Connect
            }
        })?);
        // Errors of the connection reach the request that meets them.
        let (sender, mover) = match self.protocol {
            Protocol::H1 => {
                let (sender, connection) = http1::handshake(io)
                    .await
                    .map_err(|error| classify(&error))?;
                (
                    Sender::H1(sender),
                    tokio::spawn(async move { drop(connection.await) }),
                )
            }
            Protocol::H2 => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io)
                    .await
                    .map_err(|error| classify(&error))?;
                (
                    Sender::H2(sender),
                    tokio::spawn(async move { drop(connection.await) }),
                )
            }
        };
        Ok(Connection {
            sender,
            made: 0,
            _mover: Arc::new(Mover(mover.abort_handle())),
        })
    }
}

enum Sender {
    H1(http1::SendRequest<Full<Bytes>>),
    H2(http2::SendRequest<Full<Bytes>>),
}

/// The task that moves the bytes of a connection. It ends with the last user of the connection.
struct Mover(AbortHandle);

impl Drop for Mover {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Connection {
    sender: Sender,
    made: u32,
    _mover: Arc<Mover>,
}

impl Connection {
    async fn is_ready(&mut self) -> bool {
        match &mut self.sender {
            Sender::H1(sender) => sender.ready().await.is_ok(),
            Sender::H2(sender) => sender.ready().await.is_ok(),
        }
    }

    async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Full<Bytes>>>> {
        self.made += 1;
        match &mut self.sender {
            Sender::H1(sender) => sender.try_send_request(request).await,
            Sender::H2(sender) => sender.try_send_request(request).await,
        }
    }

    /// Returns the same connection for another stream, or `None` if the connection has only one
    /// stream.
    fn share(&self) -> Option<Self> {
        match &self.sender {
            Sender::H1(_) => None,
            Sender::H2(sender) => Some(Self {
                sender: Sender::H2(sender.clone()),
                made: self.made,
                _mover: Arc::clone(&self._mover),
            }),
        }
    }
}

/// A connection as several tasks use it. With HTTP/1.1 it has one task. With HTTP/2 all tasks use
/// it at once.
#[derive(Clone)]
pub(super) struct Line {
    connector: Arc<Connector>,
    kept: Arc<Mutex<Option<Connection>>>,
    /// The number of requests after which a connection is closed and replaced.
    most: u32,
    side_header: HeaderName,
}

impl Line {
    pub(super) fn new(connector: Arc<Connector>, most: u32, side_header: HeaderName) -> Self {
        Self {
            connector,
            kept: Arc::default(),
            most,
            side_header,
        }
    }

    /// Makes one request, and sets `sent` to the time at which a connection took it.
    pub(super) async fn exchange(
        &self,
        mut request: Request<Full<Bytes>>,
        start: Instant,
        sent: &mut Option<Duration>,
    ) -> Result<Outcome, TransportFailure> {
        let kept = {
            let mut slot = self.kept.lock().await;
            match slot.as_mut() {
                None => None,
                Some(open) if open.made >= self.most => {
                    *slot = None;
                    None
                }
                Some(open) => match open.share() {
                    Some(shared) => {
                        open.made += 1;
                        Some(shared)
                    }
                    // The connection is taken out of the slot: an abandoned request must not leave
                    // its connection to the next one.
                    None => slot.take(),
                },
            }
        };
        if let Some(mut open) = kept
            && open.is_ready().await
        {
            *sent = Some(start.elapsed());
            match open.send(request).await {
                Ok(response) => return self.read(response, open).await,
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(classify(error.error())),
                },
            }
        }
        let mut open = self.fresh().await?;
        *sent = Some(start.elapsed());
        match open.send(request).await {
            Ok(response) => self.read(response, open).await,
            Err(error) => Err(classify(error.error())),
        }
    }

    /// Returns a new connection. With HTTP/2 a connection that another task has just opened is used
    /// instead.
    async fn fresh(&self) -> Result<Connection, TransportFailure> {
        match self.connector.protocol {
            Protocol::H1 => self.connector.open().await,
            Protocol::H2 => {
                let mut slot = self.kept.lock().await;
                if let Some(open) = slot.as_mut()
                    && let Sender::H2(sender) = &open.sender
                    && !sender.is_closed()
                    && open.made < self.most
                    && let Some(shared) = open.share()
                {
                    open.made += 1;
                    return Ok(shared);
                }
                let opened = self.connector.open().await?;
                let shared = opened.share();
                *slot = Some(opened);
                shared.ok_or(TransportFailure::Protocol)
            }
        }
    }

    async fn read(
        &self,
        response: Response<Incoming>,
        open: Connection,
    ) -> Result<Outcome, TransportFailure> {
        let status = response.status();
        let side = response
            .headers()
            .get(&self.side_header)
            .and_then(|name| Side::from_name(name.as_bytes()));
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            frame.map_err(|error| classify(&error))?;
        }
        if self.connector.protocol == Protocol::H1 {
            *self.kept.lock().await = Some(open);
        }
        Ok(Outcome::Answered { status, side })
    }
}

fn classify(error: &hyper::Error) -> TransportFailure {
    let malformed = error.is_parse()
        || error
            .source()
            .and_then(|source| source.downcast_ref::<io::Error>())
            .is_some_and(is_malformed);
    if malformed {
        TransportFailure::Protocol
    } else {
        TransportFailure::Reset
    }
}

fn is_malformed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput
    )
}
