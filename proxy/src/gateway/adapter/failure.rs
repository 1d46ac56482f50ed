//! The meaning of the engine's errors, and what may still be done after them.

use cutover_core::FailureKind;
use h2::Reason;
use pingora::proxy::Session;
use pingora::{Error, ErrorSource, ErrorType};

use crate::gateway::adapter::request_stream::is_malformed_chunk;
use crate::gateway::message::reply::Reply;
use crate::gateway::router::{Blame, Failure};
use crate::upstream::fd_exhaustion;

/// Converts pingora's error to a [`Failure`]. This is the only place where its sources and types
/// are read.
pub(super) fn failure_of(error: &Error, answer_begun: bool) -> Failure {
    use ErrorType::{
        ConnectError, ConnectNoRoute, ConnectProxyFailure, ConnectRefused, ConnectTimedout,
        H1Error, HandshakeError, InvalidCert, InvalidHTTPHeader, ReadTimedout, SocketError,
        TLSHandshakeFailure, TLSHandshakeTimedout, WriteTimedout,
    };
    let is_short = || {
        error
            .root_cause()
            .downcast_ref::<std::io::Error>()
            .is_some_and(fd_exhaustion::is_noted)
    };
    let blame = match error.esource() {
        ErrorSource::Upstream if !answer_begun && is_short() => Blame::Proxy,
        ErrorSource::Upstream => Blame::Backend,
        ErrorSource::Downstream => Blame::Client,
        ErrorSource::Internal | ErrorSource::Unset => Blame::Proxy,
    };
    let kind = match error.etype() {
        ConnectTimedout | TLSHandshakeTimedout | ReadTimedout | WriteTimedout if !answer_begun => {
            FailureKind::Timeout
        }
        ConnectRefused | ConnectNoRoute | ConnectError | ConnectProxyFailure | SocketError
        | TLSHandshakeFailure | InvalidCert | HandshakeError => FailureKind::Connect,
        InvalidHTTPHeader | H1Error if !answer_begun => FailureKind::Protocol,
        _ if answer_begun => FailureKind::Truncated,
        _ => FailureKind::Reset,
    };
    Failure { blame, kind }
}

/// Returns the error of a backend's HTTP/2 connection, if it is one. Clients also have HTTP/2
/// connections.
fn h2_error(error: &Error) -> Option<&h2::Error> {
    error
        .root_cause()
        .downcast_ref::<h2::Error>()
        .filter(|_| *error.esource() == ErrorSource::Upstream)
}

/// Returns whether an HTTP/2 backend says that it has not begun to process the request (RFC 9113,
/// section 8.7). It either refused the stream, or its GOAWAY named a lower stream as the last.
pub(super) fn was_not_processed(error: &Error) -> bool {
    h2_error(error).is_some_and(|error| {
        error.is_remote()
            && (error.is_go_away()
                || (error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM)))
    })
}

/// Returns whether an HTTP/2 backend ended the stream before it took the body that was sent again.
/// It may have answered, but the engine does not check.
pub(super) fn was_not_taken_again(error: &Error) -> bool {
    let is_its = *error.etype() == ErrorType::H2Error
        && *error.esource() == ErrorSource::Upstream
        && error.cause.is_none();
    is_its
        && error
            .context
            .as_ref()
            .is_some_and(|context| context.as_str() == "cannot reserve capacity")
}

/// Returns whether the backend closes the connection gracefully.
pub(super) fn is_graceful(error: &Error) -> bool {
    h2_error(error)
        .is_some_and(|error| error.is_go_away() && error.reason() == Some(Reason::NO_ERROR))
}

/// Returns whether no stream could be opened on an established HTTP/2 connection.
pub(super) fn was_kept(error: &Error) -> bool {
    h2_error(error).is_some_and(|error| error.is_go_away() || error.is_io())
}

/// Returns the answer to a request whose body is invalid, if the error says so.
pub(super) fn refusal_of(error: &Error) -> Option<Reply> {
    match error.etype() {
        ErrorType::HTTPStatus(413) => Some(Reply::TOO_LARGE),
        _ if is_malformed_chunk(error) => Some(Reply::BAD_CHUNK),
        _ => None,
    }
}

/// Returns whether the whole request can be sent again: no part of an answer has been sent, and the
/// body is still in the buffer.
pub(super) fn can_repeat(session: &Session) -> bool {
    is_unanswered(session) && !session.as_ref().retry_buffer_truncated()
}

/// Returns whether no part of an answer has been sent, except interim answers.
pub(super) fn is_unanswered(session: &Session) -> bool {
    session
        .response_written()
        .is_none_or(|response| response.status.is_informational())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn a_lack_of_file_descriptors_is_not_a_backend_failure() {
        let blame = |code| {
            failure_of(
                &Error::because(
                    ErrorType::ConnectError,
                    "connecting",
                    io::Error::from_raw_os_error(code),
                )
                .into_up(),
                false,
            )
            .blame
        };
        for short in [nix::libc::EMFILE, nix::libc::ENFILE, nix::libc::ENOBUFS] {
            assert_eq!(blame(short), Blame::Proxy);
        }
        for refused in [
            nix::libc::ECONNREFUSED,
            nix::libc::ENETUNREACH,
            nix::libc::EADDRNOTAVAIL,
        ] {
            assert_eq!(blame(refused), Blame::Backend);
        }
    }
}
