//! One connection: the cap, the facts that hold for all of its requests, the deadline for a whole
//! request head.
//!
//! Pingora bounds each read of a head, so a client that sends a byte a minute would hold a
//! connection for hours; between requests it would register a timer for each. Here the deadlines
//! closes a connection whose first head is not whole within `header_timeout`, that is silent for
//! `keepalive_timeout` between two requests, or whose later head is not whole within
//! `header_timeout` of its first byte.
//!
//! Pingora's future for a request is some 15 KiB, so it is made when the first bytes of a head are
//! there, which are given to it; a connection between two requests has no buffer and no such
//! future.
//!
//! TLS handshakes and the choice between HTTP/1.1 and HTTP/2 are made here, too, within
//! `header_timeout`: pingora would wait a minute for the one and for ever for the other.

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

/// How clients begin on a port.
pub enum Protocol {
    /// Without TLS, in HTTP/1.1; with `h2c` also in HTTP/2, for clients that begin with its
    /// preface.
    Plain {
        /// Whether HTTP/2 is understood.
        h2c: bool,
    },
    /// With TLS; the client chooses between HTTP/2 and HTTP/1.1.
    Tls(Acceptor),
}

/// The two steps of a drain, each of which turns true once.
#[derive(Debug, Default)]
pub struct Shutdown {
    /// Clients are told with every answer to come on another connection.
    pub closing: watch::Sender<bool>,
    /// Connections without a request are closed, once nobody is accepted any more.
    pub dismissed: watch::Sender<bool>,
    /// How many listening sockets accept nobody any more.
    pub closed_listeners: AtomicUsize,
}

/// What the connections of one kind of port go through.
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

/// What all listeners share.
#[derive(Clone)]
pub struct Shared {
    /// What serves requests of every kind.
    pub proxy: Arc<HttpProxy<Adapter>>,
    /// What decides on them.
    pub router: Arc<Router>,
    /// What serves the plain ones, if there is one.
    pub lane: Option<Arc<Lane>>,
    /// Client connections.
    pub connections: Arc<Connections>,
    /// The end of the process.
    pub ending: Arc<Shutdown>,
    /// Who is sent away after a rollback.
    pub drains: DrainSignal,
    /// Who waits for too long.
    pub deadlines: Arc<Deadlines>,
}

impl Listener {
    /// A listener to what all listeners share. From `closing` of the drain on clients are told to come on
    /// another connection; who is sent away by `drains` leaves.
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
    /// A client comes in, unless there are too many.
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

    /// Called when a socket of this listener accepts nobody any more.
    pub async fn closed(&self) {
        self.ending.closed_listeners.fetch_add(1, Ordering::Release);
        // A sender that is gone is the end of the process.
        let _ = self
            .ending
            .dismissed
            .subscribe()
            .wait_for(|dismissed| *dismissed)
            .await;
        self.proxy.http_cleanup().await;
    }

    /// One connection whose protocol has to be learned first.
    async fn serve_greeted(
        self: Arc<Self>,
        socket: TcpStream,
        conn: Arc<Conn>,
        open: OpenConnection,
    ) {
        let greeting = within(self.header_timeout, Box::pin(self.greet(socket))).await;
        match greeting.flatten() {
            None => {}
            // A task of its own, for as long as the connection: this one has room for the greeting.
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

/// What a client begins with that knows that we speak HTTP/2 (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

impl Listener {
    /// The TLS handshake, or a look at the first bytes.
    async fn greet(&self, mut socket: TcpStream) -> Option<(Client, Speaks)> {
        match &self.protocol {
            Protocol::Tls(acceptor) => {
                // Scanners and clients that do not like our certificate are everyday life, and no
                // line in the log.
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
                // As far as it could be the preface and no further: a short request of HTTP/1.0 has
                // fewer bytes than that.
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

/// A request that has been screened, in the form in which the engine gets it.
struct Screening {
    /// The head, and what of the body came with it.
    prefix: BytesMut,
    /// What has not come yet of the body.
    left: Option<BodyDecoder>,
    upgrades: bool,
    /// What came behind the request.
    behind: Option<Buffer>,
}

impl Listener {
    /// One connection of HTTP/1.1: a request after the other, on the lane as long as they are
    /// plain.
    async fn serve_http1(
        self: Arc<Self>,
        mut client: Client,
        conn: Arc<Conn>,
        _open: OpenConnection,
    ) {
        let watched = Arc::clone(&self.deadlines).watch(conn).await;
        watched.within(self.header_timeout);
        let mut is_first = true;
        // What the client has said before its turn.
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
            // In a box of its own, so that a connection that is idle has no room for it.
            let Some((returned, behind)) =
                Box::pin(self.serve_by_engine(client, &watched, begun)).await
            else {
                return;
            };
            client = returned;
            pipelined = behind;
            // An order to leave was for the request that is over.
            watched.conn().heard();
            watched.within(self.keepalive_timeout);
        }
    }

    /// Serves one request of HTTP/1 by the proxy engine. Returns the client and what it has said
    /// behind the request; `None` is the end of the connection.
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
    /// Reads a head until it is whole, and gives what of its request has come the form that the
    /// engine takes. What is malformed is answered here; `None` is the end of the connection.
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

    /// Answers a request that cannot be served, tells the router, and ends the connection: where the
    /// next request would begin is not known.
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

/// Serves while the deadlines lets it. `None` when it was ended.
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
                // upload. It hears that the backend's socket has ended.
                Some(socket) => {
                    end_socket(socket);
                    watched.within(CLOSE_TIMEOUT);
                    Poll::Pending
                }
                // It has been ended, and the engine has a moment to answer.
                None if watched.conn().due_us() != 0 => Poll::Pending,
                // Others share the socket. The request ends here, as one whose backend was late.
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

/// Ends a socket in both directions. It stays open for whoever owns it.
fn end_socket(socket: RawFd) {
    // One that has ended already needs no end.
    let _ = nix::sys::socket::shutdown(socket, nix::sys::socket::Shutdown::Both);
}

/// How long a tunnel that is sent away may take to end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Pingora's word for "kept, without a timer of its own": the deadlines is the timer.
pub(in crate::gateway) const NO_TIMER: Option<u64> = Some(0);
