//! WebSockets of the sample backend. Every message is echoed until one side closes.

use crate::backend::Shared;
use futures_util::{SinkExt, StreamExt};
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{HeaderMap, HeaderValue, Request};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

/// A client's request to switch to WebSocket.
pub(super) struct Switch {
    accept: HeaderValue,
    upgrade: OnUpgrade,
}

impl Switch {
    pub(super) fn asked_by(request: &mut Request<Incoming>) -> Option<Self> {
        let asks = request
            .headers()
            .get(UPGRADE)
            .is_some_and(|upgrade| upgrade.as_bytes().eq_ignore_ascii_case(b"websocket"));
        let accept = derive_accept_key(
            request
                .headers()
                .get(SEC_WEBSOCKET_KEY)
                .filter(|_| asks)?
                .as_bytes(),
        );
        Some(Self {
            accept: HeaderValue::try_from(accept).ok()?,
            upgrade: hyper::upgrade::on(request),
        })
    }

    /// Writes the headers of the answer and starts to echo once it is sent.
    pub(super) fn accept(self, headers: &mut HeaderMap, shared: &Arc<Shared>) {
        headers.clear();
        headers.insert(crate::backend::SERVED_BY, shared.served_by.clone());
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, self.accept);
        let mut closing = shared.closing.subscribe();
        tokio::spawn(async move {
            let Ok(upgraded) = self.upgrade.await else {
                return;
            };
            let mut socket =
                WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
            loop {
                let message = tokio::select! {
                    // The connection ends without a close frame, as it does when a process dies.
                    _ = closing.changed() => return,
                    message = socket.next() => message,
                };
                match message {
                    Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => {
                        if socket.send(message).await.is_err() {
                            return;
                        }
                    }
                    // The library answers pings and close frames while it reads.
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return,
                }
            }
        });
    }
}
