//! One client connection: the connection limit, the facts that apply to all its requests, and the
//! deadline for a whole request head.
//!
//! Pingora limits each read of a head, so a client that sends one byte per minute would occupy a
//! connection for hours. Between requests, pingora would register a timer for each connection. Here
//! the deadlines task closes a connection in three cases: its first head is not complete within
//! `header_timeout`, it is silent for `keepalive_timeout` between two requests, or a later head is
//! not complete within `header_timeout` of its first byte.
//!
//! Pingora's future for a request is about 15 KiB, so it is created when the first bytes of a head
//! have been received, and these bytes are passed to it. A connection between two requests has no
//! buffer and no such future.
//!
//! TLS handshakes and the choice between HTTP/1.1 and HTTP/2 are also made here, within
//! `header_timeout`. Pingora would wait a minute for the handshake and without limit for the
//! choice.

pub mod accept;
pub mod client_stream;
pub mod deadlines;

use std::future::poll_fn;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use cutover_core::Mono;
use pingora::apps::HttpServerApp;
use pingora::listeners::ALPN;
use pingora::listeners::tls::Acceptor;
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::proxy::HttpProxy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::clock;
use crate::gateway::adapter::Adapter;
use crate::gateway::adapter::request_stream::RequestStream;
use crate::gateway::adapter::timeouts::{RequestTimeouts, within};
use crate::gateway::http2::Http2;
use crate::gateway::lane::body_decoder::BodyDecoder;
use crate::gateway::lane::body_relay::{RelayError, write_all};
use crate::gateway::lane::read_buffer::Buffer;
use crate::gateway::lane::transaction::write_reply;
use crate::gateway::lane::write_buffer::Scratch;
use crate::gateway::lane::{self, Exit, Lane, begins, fills};
use crate::gateway::listener::client_stream::{Client, LentStream};
use crate::gateway::listener::deadlines::{Alarm, Deadline, Deadlines};
use crate::gateway::message::head::Conn;
use crate::gateway::message::reply::Reply;
use crate::gateway::message::screen::{self, Passed, Screen, Screened};
use crate::gateway::router::{End, Router, is_trusted};
use crate::shared::connections::{Connections, OpenConnection};
use crate::shared::drain::{DrainSignal, Drained};

/// The protocol with which clients begin on a port.
pub enum Protocol {
    /// HTTP/1.1 without TLS. With `h2c` also HTTP/2, for clients that begin with its preface.
    Plain {
        /// Whether HTTP/2 is accepted.
        h2c: bool,
    },
    /// TLS. The client chooses between HTTP/2 and HTTP/1.1.
    Tls(Acceptor),
}

/// The two steps of a shutdown, each of which turns true once.
#[derive(Debug, Default)]
pub struct Shutdown {
    /// The first step: every answer tells the client to use another connection.
    pub closing: watch::Sender<bool>,
    /// The second step: connections without a request are closed, once no listener accepts
    /// clients.
    pub dismissed: watch::Sender<bool>,
    /// The number of listening sockets that no longer accept clients.
    pub closed_listeners: AtomicUsize,
}

/// The handling of connections on one kind of port.
pub struct Listener {
    proxy: Arc<HttpProxy<Adapter>>,
    lane: Option<Arc<Lane>>,
    router: Arc<Router>,
    protocol: Protocol,
    connections: Arc<Connections>,
    closing: watch::Receiver<bool>,
    drains: DrainSignal,
    ending: Arc<Shutdown>,
    deadlines: Arc<Deadlines>,
    max_connections: usize,
    trusted_proxies: Vec<ipnet::IpNet>,
    max_header_bytes: usize,
    header_timeout: Duration,
    keepalive_timeout: Duration,
    write_timeout: Duration,
    http2: Arc<Http2>,
}

/// The parts that all listeners share.
#[derive(Clone)]
pub struct Shared {
    /// The engine that serves requests of every kind.
    pub proxy: Arc<HttpProxy<Adapter>>,
    /// The router that decides about them.
    pub router: Arc<Router>,
    /// The lane that serves plain requests, if there is one.
    pub lane: Option<Arc<Lane>>,
    /// The client connections.
    pub connections: Arc<Connections>,
    /// The shutdown of the process.
    pub ending: Arc<Shutdown>,
    /// The signal that drains requests after a rollback.
    pub drains: DrainSignal,
    /// The deadlines of all connections.
    pub deadlines: Arc<Deadlines>,
}

impl Listener {
    /// Creates a listener from the parts that all listeners share. Once `closing` of the shutdown
    /// is set, clients are told to use another connection. Requests that `drains` names are ended.
    pub fn new(common: &Shared, protocol: Protocol, listen: &cutover_config::Listen) -> Self {
        let Shared {
            proxy,
            router,
            lane,
            connections,
            ending,
            drains,
            deadlines,
        } = common.clone();
        let http2 = Arc::new(Http2::new(
            Arc::clone(&proxy),
            Arc::clone(&router),
            drains.clone(),
            Arc::clone(&ending),
            Arc::clone(&deadlines),
            listen,
        ));
        Self {
            proxy,
            lane,
            router,
            protocol,
            connections,
            closing: ending.closing.subscribe(),
            ending,
            drains,
            deadlines,
            max_connections: listen.max_connections,
            trusted_proxies: listen.trusted_proxies.clone(),
            max_header_bytes: listen.max_header_bytes,
            header_timeout: listen.header_timeout,
            keepalive_timeout: listen.keepalive_timeout,
            write_timeout: listen.write_timeout,
            http2,
        }
    }
}

impl Listener {
    /// Admits a client, unless the connection limit is reached.
    pub fn admit(self: &Arc<Self>, socket: TcpStream, peer: IpAddr) {
        let Some(open) = self.connections.enter(self.max_connections) else {
            return;
        };
        let is_tls = matches!(self.protocol, Protocol::Tls(_));
        let conn = Arc::new(Conn::new(
            peer,
            is_trusted(&self.trusted_proxies, peer.to_canonical()),
            is_tls,
        ));
        match self.protocol {
            Protocol::Plain { h2c: false } => drop(tokio::spawn(Arc::clone(self).serve_http1(
                Client::Bare(socket),
                conn,
                open,
            ))),
            Protocol::Plain { h2c: true } | Protocol::Tls(_) => drop(tokio::spawn(
                Arc::clone(self).serve_greeted(socket, conn, open),
            )),
        }
    }

    /// Records that a socket of this listener no longer accepts clients.
    pub async fn closed(&self) {
        self.ending.closed_listeners.fetch_add(1, Ordering::Release);
        // A sender that is gone means that the process ends.
        let _ = self
            .ending
            .dismissed
            .subscribe()
            .wait_for(|dismissed| *dismissed)
            .await;
        self.proxy.http_cleanup().await;
    }

    /// Serves one connection whose protocol has to be detected first.
    async fn serve_greeted(
        self: Arc<Self>,
        socket: TcpStream,
        conn: Arc<Conn>,
        open: OpenConnection,
    ) {
        let greeting = within(self.header_timeout, Box::pin(self.greet(socket))).await;
        match greeting.flatten() {
            None => {}
            // The connection gets a new task for the rest of its life, because this task has room
            // for the protocol detection.
            Some((client, Speaks::Http1)) => {
                drop(tokio::spawn(self.serve_http1(client, conn, open)));
            }
            Some((client, Speaks::Http2)) => Box::pin(self.http2.serve(client.lend(), conn)).await,
        }
    }
}

enum Speaks {
    Http1,
    Http2,
}

/// The preface of a client that knows that the server speaks HTTP/2 (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

impl Listener {
    /// Performs the TLS handshake, or checks the first bytes.
    async fn greet(&self, mut socket: TcpStream) -> Option<(Client, Speaks)> {
        match &self.protocol {
            Protocol::Tls(acceptor) => {
                // Scanners and clients that reject the certificate are normal, so they are not
                // logged.
                let tls: Stream =
                    Box::new(acceptor.tls_handshake(LentStream::new(socket)).await.ok()?);
                let speaks = if matches!(tls.selected_alpn_proto(), Some(ALPN::H2)) {
                    Speaks::Http2
                } else {
                    Speaks::Http1
                };
                Some((Client::Above(tls), speaks))
            }
            Protocol::Plain { .. } => {
                let mut begun = [0; PREFACE.len()];
                let mut known = socket.peek(&mut begun).await.ok()?;
                if begun[..known] != PREFACE[..known] {
                    return Some((Client::Bare(socket), Speaks::Http1));
                }
                known = 0;
                // Reads only as long as the bytes could be the preface, because a short HTTP/1.0
                // request has fewer bytes than the preface.
                while known < PREFACE.len() && begun[..known] == PREFACE[..known] {
                    match socket.read(&mut begun[known..]).await {
                        Ok(read) if read > 0 => known += read,
                        Ok(_) | Err(_) => return None,
                    }
                }
                let stream = Box::new(LentStream::begun(socket, begun[..known].to_vec()));
                Some((
                    Client::Above(stream),
                    if begun == PREFACE {
                        Speaks::Http2
                    } else {
                        Speaks::Http1
                    },
                ))
            }
        }
    }
}

/// A screened request, in the form in which the engine receives it.
struct Screening {
    /// The head, and the part of the body that was received with it.
    prefix: BytesMut,
    /// The decoder for the missing part of the body.
    left: Option<BodyDecoder>,
    upgrades: bool,
    /// The bytes received after the request.
    behind: Option<Buffer>,
}

impl Listener {
    /// Serves one HTTP/1.1 connection, one request after the other. Plain requests are served by
    /// the lane.
    async fn serve_http1(
        self: Arc<Self>,
        mut client: Client,
        conn: Arc<Conn>,
        _open: OpenConnection,
    ) {
        let watched = Arc::clone(&self.deadlines).watch(conn).await;
        watched.within(self.header_timeout);
        let mut is_first = true;
        // The bytes that the client sent ahead of its next request.
        let mut pipelined: Option<Buffer> = None;
        loop {
            let begun = match (&self.lane, pipelined.take()) {
                (Some(lane), pipelined) => {
                    match lane.serve(&mut client, &watched, is_first, pipelined).await {
                        Exit::Declined(begun) => begun,
                        Exit::Closed => return,
                    }
                }
                (None, pipelined) => {
                    let begun = match pipelined {
                        Some(begun) => begun,
                        None => match begins(&mut client, &watched).await {
                            Some(begun) => begun,
                            None => return,
                        },
                    };
                    if !is_first {
                        watched.within(self.header_timeout);
                    }
                    begun
                }
            };
            is_first = false;
            // The future is boxed separately, so that an idle connection has no room reserved for
            // it.
            let Some((returned, behind)) =
                Box::pin(self.serve_by_engine(client, &watched, begun)).await
            else {
                return;
            };
            client = returned;
            pipelined = behind;
            // A drain signal was meant for the request that has ended.
            watched.conn().heard();
            watched.within(self.keepalive_timeout);
        }
    }

    /// Serves one HTTP/1 request with the proxy engine. Returns the client and the bytes it sent
    /// after the request. `None` means the end of the connection.
    async fn serve_by_engine(
        &self,
        mut client: Client,
        watched: &Deadline,
        begun: Buffer,
    ) -> Option<(Client, Option<Buffer>)> {
        let Screening {
            prefix,
            left,
            upgrades,
            behind,
        } = self.screen(&mut client, watched, begun).await?;
        let patience =
            RequestTimeouts::new(Arc::clone(watched.conn()), Arc::clone(&self.deadlines));
        let (turn, mut dropped) = RequestStream::new(
            client.lend(),
            Arc::clone(watched.conn()),
            patience,
            left,
            upgrades,
            behind,
        );
        let mut session = ServerSession::new_http1(Box::new(turn));
        session.set_keepalive(if *self.closing.borrow() {
            None
        } else {
            NO_TIMER
        });
        session.set_pipelined_prefix(prefix);
        session.set_connection_user_context(Some(Box::new(Arc::clone(watched.conn()))));
        let served = attended(
            self.proxy.process_new_http(session, &self.closing),
            watched,
            &self.drains,
        )
        .await?;
        let is_whole = watched.conn().take_answered_whole();
        let (mut stream, behind) = match served {
            Some(reused) => RequestStream::end(reused.consume().0),
            None if is_whole => dropped.try_recv().ok(),
            None => None,
        }?;
        if is_whole
            && within(self.write_timeout, stream.flush())
                .await
                .is_none_or(|flushed| flushed.is_err())
        {
            return None;
        }
        Client::back(stream).map(|client| (client, behind))
    }
}

impl Listener {
    /// Reads a head until it is complete, and converts the received part of the request to the form
    /// that the engine accepts. Malformed requests are answered here. `None` means the end of the
    /// connection.
    async fn screen(
        &self,
        client: &mut Client,
        watched: &Deadline,
        mut came: Buffer,
    ) -> Option<Screening> {
        let began = clock::mono();
        let mut screen = Screen::default();
        let passed = loop {
            match screen.look(came.filled(), self.max_header_bytes) {
                Screened::Passed(passed) => break passed,
                Screened::Refused(reply) => {
                    return self.refuse(client, watched, came, reply, began).await;
                }
                Screened::Partial => {}
            }
            if came.is_full() && !came.make_room() {
                return self
                    .refuse(client, watched, came, Reply::HEAD_TOO_LARGE, began)
                    .await;
            }
            if !fills(client, &mut came, watched).await {
                return None;
            }
        };
        let mut prefix = BytesMut::with_capacity(came.len());
        passed.write(came.filled(), &mut prefix);
        let Passed {
            to, body, upgrades, ..
        } = passed;
        let mut left = Some(BodyDecoder::new(body)).filter(|left| !left.is_nothing());
        let mut used = to;
        if let Some(some) = &mut left
            && came.len() > to
        {
            let Some(fed) = some.feed(&mut came.filled_mut()[to..]) else {
                return self
                    .refuse(client, watched, came, Reply::BAD_CHUNK, began)
                    .await;
            };
            prefix.extend_from_slice(&came.filled()[to..to + fed.kept]);
            used += fed.used;
            if fed.is_over {
                prefix.extend_from_slice(some.end());
                left = None;
            }
        }
        let behind = if came.len() > used {
            Buffer::of(&came.filled()[used..])
        } else {
            None
        };
        Some(Screening {
            prefix,
            left,
            upgrades,
            behind,
        })
    }

    /// Answers a request that cannot be served, reports it to the router, and ends the connection.
    /// It is unknown where the next request would begin.
    async fn refuse<T>(
        &self,
        client: &mut Client,
        watched: &Deadline,
        came: Buffer,
        reply: Reply,
        began: Mono,
    ) -> Option<T> {
        let sketch = screen::sketch(came.filled());
        let (body, content_type) = reply.body(screen::wants_html(came.filled()));
        drop(came);
        let is_head = sketch.method == http::Method::HEAD;
        let mut out = Scratch::new();
        write_reply(
            &reply,
            content_type,
            body.as_bytes(),
            false,
            is_head,
            &mut out,
        );
        watched.within(self.write_timeout);
        let written = write_all(
            client,
            &out,
            watched,
            RelayError::ClientGone,
            RelayError::ClientSlow,
        )
        .await;
        drop(out);
        let status = written.is_ok().then(|| reply.status.as_u16());
        let bytes_out = if is_head || status.is_none() {
            0
        } else {
            body.len() as u64
        };
        self.router.refused(
            sketch,
            watched.conn(),
            &reply,
            End {
                status,
                bytes_out,
                ..End::default()
            },
            began,
            clock::mono(),
        );
        if written.is_ok() {
            lane::linger(client, watched, lane::CLOSE_TIMEOUT).await;
        }
        None
    }
}

/// Serves until the deadlines task ends the request. `None` when it was ended.
pub(in crate::gateway) async fn attended<T>(
    mut serving: Pin<Box<dyn Future<Output = T> + Send + '_>>,
    watched: &Deadline,
    drains: &DrainSignal,
) -> Option<T> {
    poll_fn(|cx| {
        if let Poll::Ready(served) = serving.as_mut().poll(cx) {
            return Poll::Ready(Some(served));
        }
        match watched.alarm() {
            None if watched.is_answer_late() => match watched.conn().take_upstream() {
                // The engine does not listen to the client while the backend takes no more of an
                // upload. It does notice that the backend's socket has ended.
                Some(socket) => {
                    end_socket(socket);
                    watched.within(CLOSE_TIMEOUT);
                    Poll::Pending
                }
                // The socket has been shut down, and the engine has a moment to answer.
                None if watched.conn().due_us() != 0 => Poll::Pending,
                // Other requests share the socket. This request ends here, as one whose backend was
                // late.
                None => Poll::Ready(None),
            },
            None => Poll::Pending,
            Some(Alarm::Overdue) => Poll::Ready(None),
            Some(Alarm::SentAway) => {
                let conn = watched.conn();
                if let Some(tunnel) = conn.tunnel.load_full() {
                    conn.heard();
                    watched.within(CLOSE_TIMEOUT);
                    drains.count(tunnel.kind());
                    tunnel.drain();
                    return Poll::Pending;
                }
                if conn.due_us() == 0 {
                    drains.count(Drained::Stream);
                }
                Poll::Ready(None)
            }
        }
    })
    .await
}

/// Shuts down a socket in both directions. The socket stays open for its owner.
fn end_socket(socket: RawFd) {
    // A socket that has already ended needs no shutdown.
    let _ = nix::sys::socket::shutdown(socket, nix::sys::socket::Shutdown::Both);
}

/// How long a drained tunnel may take to end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Pingora's value for "kept, without a timer of its own". The deadlines task is the timer.
pub(in crate::gateway) const NO_TIMER: Option<u64> = Some(0);
