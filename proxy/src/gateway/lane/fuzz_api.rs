//! The lane's parsers without a connection, for fuzz targets and tests that check what a backend or
//! a client would receive.

use crate::gateway::lane::body_decoder::{Body, BodyDecoder};
use crate::gateway::lane::request::{self, Parsed};
use crate::gateway::lane::response;
use crate::gateway::message::fields::Fields;
use crate::shared::connections::Declined;

/// The result of parsing a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The head is incomplete.
    Partial,
    /// The request is left to the proxy engine.
    Declined(Declined),
    /// The lane takes the request.
    Taken {
        /// The length of the head in bytes.
        head: usize,
        /// The length of the body in bytes.
        body: u64,
        /// The head that a backend receives, without our own headers.
        form: Vec<u8>,
    },
}

/// Parses the request at the start of these bytes.
pub fn request(bytes: &[u8]) -> Request {
    let request = match request::parse(bytes) {
        Parsed::Whole(request) => request,
        Parsed::Partial => return Request::Partial,
        Parsed::Declined(why) => return Request::Declined(why),
    };
    let head = request.of(bytes);
    match head.facts(&Fields::of(&head, &[])) {
        Err(why) => Request::Declined(why),
        Ok(facts) => {
            let mut form = Vec::new();
            head.write(&mut form, |splice| splice.drop_named(b"connection"));
            Request::Taken {
                head: request.head,
                body: facts.body,
                form,
            }
        }
    }
}

/// The result of parsing an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// The head is incomplete.
    Partial,
    /// The bytes are not a valid answer.
    Bad,
    /// The bytes begin with a valid answer.
    Whole {
        /// The status of the answer.
        status: u16,
        /// The head that a client receives, without our own headers.
        form: Vec<u8>,
        /// What a client receives of the body so far. `None` if the body is malformed.
        body: Option<Vec<u8>>,
        /// Whether the body is complete.
        is_over: bool,
        /// Whether the connection to the backend is used again.
        is_kept: bool,
    },
}

/// Parses the answer in these parts, which are in the order of receipt. The first part contains the
/// head. `to_head` says whether it answers a HEAD request.
pub fn response(parts: &[&[u8]], to_head: bool) -> Response {
    let Some((first, others)) = parts.split_first() else {
        return Response::Partial;
    };
    let answer = match response::parse(first, to_head) {
        Some(Parsed::Whole(answer)) => answer,
        Some(Parsed::Partial | Parsed::Declined(_)) => return Response::Partial,
        None => return Response::Bad,
    };
    let (mut form, mut body) = (Vec::new(), Vec::new());
    answer.write_interim(first, None, &mut form);
    let mut left = BodyDecoder::new(answer.response_head.body);
    let (mut is_over, mut is_body) = (left.is_nothing(), true);
    for part in std::iter::once(&first[answer.response_head.head..]).chain(others.iter().copied()) {
        if is_over || part.is_empty() {
            continue;
        }
        let mut part = part.to_vec();
        let Some(fed) = left.feed(&mut part) else {
            is_body = false;
            break;
        };
        body.extend_from_slice(&part[..fed.kept]);
        if fed.is_over {
            is_over = true;
            body.extend_from_slice(left.end());
        }
    }
    Response::Whole {
        status: answer.response_head.status,
        form,
        body: is_body.then_some(body),
        is_over,
        is_kept: answer.response_head.keeps && answer.response_head.body != Body::Close,
    }
}
