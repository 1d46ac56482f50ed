//! What the lane makes of bytes, without a connection: for fuzz targets and tests, which are to see
//! what a backend or a client would.

use crate::gateway::lane::body_decoder::{Body, BodyDecoder};
use crate::gateway::lane::request::{self, Parsed};
use crate::gateway::lane::response;
use crate::gateway::message::fields::Fields;
use crate::shared::connections::Declined;

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// More has to come.
    Partial,
    /// It is left to the proxy engine.
    Declined(Declined),
    /// The lane takes it.
    Taken {
        /// Bytes of its head.
        head: usize,
        /// Bytes of its body.
        body: u64,
        /// The head that a backend gets, without what is ours.
        form: Vec<u8>,
    },
}

/// Looks at the request that these bytes begin with.
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

/// What becomes of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// More of the head has to come.
    Partial,
    /// It is none.
    Bad,
    /// It is one.
    Whole {
        /// Its status.
        status: u16,
        /// The head that a client gets, without what is ours.
        form: Vec<u8>,
        /// What a client gets of the body that has come; nothing where it is no body.
        body: Option<Vec<u8>>,
        /// Whether that is all of it.
        is_over: bool,
        /// Whether its backend is asked again on the same connection.
        is_kept: bool,
    },
}

/// Looks at the answer that these parts are, one after the other as they came; the head is in the
/// first one. It answers HEAD if `to_head`.
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
