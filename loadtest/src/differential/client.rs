//! The client of a case. It sends the bytes of the case in the given pieces and records the
//! answers.
//!
//! A request is written and its answer is read at the same time, because an answer may be sent
//! early. A failed write is not an observation: how much the kernel took before the other end
//! closed is chance. What was read until then is an observation. A client that receives
//! `Connection: close` or a broken answer sends nothing more, and all later requests of the case
//! are not sent.

use crate::differential::case::{ANSWERED, After, Case, Request};
use crate::differential::wire::{Body, Ending, Framing, Head, HeadRead, Reader};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

/// How long an answer may take. The timeouts of the engines are shorter, so a stall shows as an
/// engine's timeout and not as this one.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the rest of a request may take after it has been answered.
const REST: Duration = Duration::from_secs(2);
/// How long a client waits for 100 before it sends its body anyway.
const CONTINUE: Duration = Duration::from_millis(300);

/// The time after an answer within which every engine has noticed that the backend has ended the
/// connection, by a reset or otherwise.
const NOTICED: Duration = Duration::from_millis(8);

/// The outcome of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// The head of an answer was received.
    Answered,
    /// The connection ended without an answer.
    Closed,
    /// The connection ended in the middle of a head.
    HalfAHead,
    /// Nothing was received in time.
    Silent,
    /// The connection was no longer usable.
    #[default]
    NotSent,
}

/// What the client received for one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// The outcome of the request.
    pub outcome: Outcome,
    /// The interim answers.
    pub interim: Vec<Head>,
    /// The head of the answer, if there was one.
    pub head: Head,
    /// The framing of the answer's body.
    pub framing: Option<Framing>,
    /// The body of the answer.
    pub body: Body,
    /// Whether the connection ended after the answer, if this was visible without another request.
    pub is_closed: bool,
}

/// What the client received in a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replies {
    /// The replies, one for each request of the case.
    pub replies: Vec<Reply>,
    /// The bytes received after the last answer.
    pub surplus: Vec<u8>,
}

impl Replies {
    /// Whether any answer came from the engine instead of the backend, or any request was not
    /// answered.
    pub fn has_answer_of_the_engine(&self) -> bool {
        self.replies.iter().any(|reply| {
            reply.outcome != Outcome::NotSent && reply.head.values(ANSWERED).next().is_none()
        })
    }
}

/// Plays the client's part of a case.
pub async fn converse(address: SocketAddr, case: &Case) -> Replies {
    let mut replies = Replies {
        replies: vec![Reply::default(); case.requests.len()],
        surplus: Vec::new(),
    };
    let Ok(Ok(stream)) = timeout(PATIENCE, TcpStream::connect(address)).await else {
        return replies;
    };
    // The pieces have to be sent as pieces. The reset at the end frees the port at once: a few
    // thousand connections per second would otherwise use up all ports.
    let _ = stream.set_nodelay(true);
    let _ = stream.set_zero_linger();
    let (read, mut write) = stream.into_split();
    let mut reader = Reader::new(read);
    if case.is_pipelined {
        pipeline(
            &mut reader,
            &mut write,
            &case.requests,
            replies.replies.iter_mut(),
        )
        .await;
    } else {
        for (request, reply) in case.requests.iter().zip(replies.replies.iter_mut()) {
            exchange(&mut reader, &mut write, request, reply).await;
            if !may_go_on(reply) {
                break;
            }
            // Without this wait, chance would decide whether an engine has noticed that the
            // backend's connection has ended.
            if request.script.after != After::Keep {
                tokio::time::sleep(NOTICED).await;
            }
        }
    }
    replies.surplus = reader.rest().to_vec();
    // The connection ends with the reset. Shutting down one direction first would be an additional
    // signal.
    write.forget();
    replies
}

fn may_go_on(reply: &Reply) -> bool {
    reply.outcome == Outcome::Answered && reply.body.ending == Ending::Whole && !reply.is_closed
}

async fn pipeline(
    reader: &mut Reader<OwnedReadHalf>,
    write: &mut OwnedWriteHalf,
    requests: &[Request],
    replies: impl Iterator<Item = &mut Reply>,
) {
    let bytes: Vec<u8> = requests.iter().flat_map(Request::bytes).collect();
    let is_last_word = requests.last().is_some_and(|request| request.is_last_word);
    let Some(first) = requests.first() else {
        return;
    };
    let writing = async {
        for piece in first.writes.pieces(&bytes) {
            if write.write_all(piece).await.is_err() {
                return;
            }
            first.writes.pause.rest().await;
        }
        if is_last_word {
            let _ = write.shutdown().await;
        }
    };
    let reading = async {
        for (request, reply) in requests.iter().zip(replies) {
            let _ = timeout(PATIENCE, read(reader, request, reply, &Notify::new())).await;
            fall_silent(reply);
            if !may_go_on(reply) {
                break;
            }
        }
    };
    both(writing, reading).await;
}

async fn exchange(
    reader: &mut Reader<OwnedReadHalf>,
    write: &mut OwnedWriteHalf,
    request: &Request,
    reply: &mut Reply,
) {
    let heard = Notify::new();
    let head = request.head();
    let bytes = [&head[..], &request.body].concat();
    let writing = async {
        let mut written = 0;
        let mut waits = request.awaits_continue;
        for piece in request.writes.pieces(&bytes) {
            if waits && written >= head.len() {
                let _ = timeout(CONTINUE, heard.notified()).await;
                waits = false;
            }
            written += piece.len();
            if write.write_all(piece).await.is_err() {
                return;
            }
            request.writes.pause.rest().await;
        }
        if request.is_last_word {
            let _ = write.shutdown().await;
        }
    };
    let reading = async {
        // Everything received in time is kept.
        let _ = timeout(PATIENCE, read(reader, request, reply, &heard)).await;
        fall_silent(reply);
    };
    both(writing, reading).await;
}

/// Waits for the answer, and then briefly for the rest of the request.
async fn both(writing: impl Future<Output = ()>, reading: impl Future<Output = ()>) {
    tokio::pin!(writing, reading);
    tokio::select! {
        () = &mut reading => {
            let _ = timeout_at(Instant::now() + REST, writing).await;
        }
        () = &mut writing => reading.await,
    }
}

fn fall_silent(reply: &mut Reply) {
    if reply.outcome == Outcome::NotSent {
        reply.outcome = Outcome::Silent;
    }
}

async fn read(
    reader: &mut Reader<OwnedReadHalf>,
    request: &Request,
    reply: &mut Reply,
    heard: &Notify,
) {
    loop {
        let head = match reader.head().await {
            HeadRead::Whole(head) => head,
            HeadRead::Ended(0) => {
                reply.outcome = Outcome::Closed;
                reply.is_closed = true;
                return;
            }
            HeadRead::Ended(_) | HeadRead::TooLong => {
                reply.outcome = Outcome::HalfAHead;
                reply.is_closed = true;
                return;
            }
        };
        heard.notify_one();
        if matches!(head.status(), 100 | 102..=199) {
            reply.interim.push(head);
            continue;
        }
        reply.outcome = Outcome::Answered;
        let framing = if head.status() == 101 {
            Framing::UntilClose
        } else {
            head.answer_framing(request.is_head)
        };
        let says_close = head.lists("connection", "close")
            || head.start.starts_with(b"HTTP/1.0") && !head.lists("connection", "keep-alive");
        reply.head = head;
        reply.framing = Some(framing);
        reader.body(framing, &mut reply.body).await;
        if framing == Framing::UntilClose || reply.body.ending != Ending::Whole {
            reply.is_closed = true;
        } else if says_close {
            // An engine that announces a close has to close.
            reader.to_end().await;
            reply.is_closed = true;
        }
        return;
    }
}
