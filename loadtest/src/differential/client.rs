//! The client of a case: it says what the case has, in the pieces it has, and remembers what it was
//! answered.
//!
//! A request is written and its answer read at the same time, because an answer may come early. A
//! write that fails is no observation: how much the kernel took before the other end closed is
//! chance. What was read until then is. A client that is told `Connection: close`, or whose answer
//! was broken, says nothing more; all later requests of the case are not sent.

use crate::differential::case::{ANSWERED, After, Case, Request};
use crate::differential::wire::{Body, Ending, Framing, Head, HeadRead, Reader};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

/// How long an answer may take. The timeouts of the engines are shorter, so that they show, and not
/// this.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the rest of a request may take that has been answered.
const REST: Duration = Duration::from_secs(2);
/// How long a client waits for 100 before it sends its body anyway.
const CONTINUE: Duration = Duration::from_millis(300);

/// How long after an answer every engine has noticed that the backend has ended the connection, by
/// a reset or otherwise.
const NOTICED: Duration = Duration::from_millis(8);

/// What a request came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// A head of an answer came.
    Answered,
    /// The connection ended without one.
    Closed,
    /// The connection ended in one.
    HalfAHead,
    /// Nothing came in time.
    Silent,
    /// The connection could not be used any more.
    #[default]
    NotSent,
}

/// What the client got for one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// What it came to.
    pub outcome: Outcome,
    /// Interim answers.
    pub interim: Vec<Head>,
    /// The head of the answer, if there was one.
    pub head: Head,
    /// How its body was framed.
    pub framing: Option<Framing>,
    /// Its body.
    pub body: Body,
    /// Whether the connection ended behind it, where that was to be seen without asking again.
    pub is_closed: bool,
}

/// What the client got in a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replies {
    /// For each request of the case.
    pub replies: Vec<Reply>,
    /// What came behind the last answer.
    pub surplus: Vec<u8>,
}

impl Replies {
    /// Whether some answer came from the engine and not from the backend, or something was not
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
    // Pieces are to leave as pieces. And nobody needs the port's rest after the end: a few thousand
    // connections in a second would use them up.
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
            // Sooner it would be chance whether an engine has noticed that the connection behind it
            // has ended.
            if request.script.after != After::Keep {
                tokio::time::sleep(NOTICED).await;
            }
        }
    }
    replies.surplus = reader.rest().to_vec();
    // The end is the reset. To shut one side before would be one more thing to say.
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
        // What came in time stays.
        let _ = timeout(PATIENCE, read(reader, request, reply, &heard)).await;
        fall_silent(reply);
    };
    both(writing, reading).await;
}

/// Waits for the answer, and then a little for the rest of the request.
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
            // Whoever says so has to do so.
            reader.to_end().await;
            reply.is_closed = true;
        }
        return;
    }
}
