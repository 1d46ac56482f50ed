//! What an engine's error means, and what may still be done about it.

use cutover_core::FailureKind;
use h2::Reason;
use pingora::proxy::Session;
use pingora::{Error, ErrorSource, ErrorType};

use crate::gateway::adapter::request_stream::is_malformed_chunk;
use crate::gateway::message::reply::Reply;
use crate::gateway::router::{Blame, Failure};
use crate::upstream::fd_exhaustion;

/// Pingora's error as our failure. The one place where its sources and types are read.
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

/// The error of a backend's connection of HTTP/2, if it is one. Clients have connections of HTTP/2,
/// too.
fn h2_error(error: &Error) -> Option<&h2::Error> {
    error
        .root_cause()
        .downcast_ref::<h2::Error>()
        .filter(|_| *error.esource() == ErrorSource::Upstream)
}

/// Whether a backend of HTTP/2 says that it has not begun to process the request (RFC 9113, section
/// 8.7): it refused the stream, or GOAWAY named a lower one as the last.
pub(super) fn was_not_processed(error: &Error) -> bool {
    h2_error(error).is_some_and(|error| {
        error.is_remote()
            && (error.is_go_away()
                || (error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM)))
    })
}

/// Whether a backend of HTTP/2 has ended the stream before it took the body that was sent once
/// more. It may have answered: the engine does not look.
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

/// Whether the backend closes the connection in good order.
pub(super) fn is_graceful(error: &Error) -> bool {
    h2_error(error)
        .is_some_and(|error| error.is_go_away() && error.reason() == Some(Reason::NO_ERROR))
}

/// Whether no stream could be opened on a connection of HTTP/2 that had been made.
pub(super) fn was_kept(error: &Error) -> bool {
    h2_error(error).is_some_and(|error| error.is_go_away() || error.is_io())
}

/// The answer to a request whose body is at fault, if an error says so.
pub(super) fn refusal_of(error: &Error) -> Option<Reply> {
    match error.etype() {
        ErrorType::HTTPStatus(413) => Some(Reply::TOO_LARGE),
        _ if is_malformed_chunk(error) => Some(Reply::BAD_CHUNK),
        _ => None,
    }
}

/// Whether the whole request can be sent once more: nothing of an answer has gone out, and its body
/// is still in the buffer.
pub(super) fn can_repeat(session: &Session) -> bool {
    is_unanswered(session) && !session.as_ref().retry_buffer_truncated()
}

/// Whether nothing of an answer has gone out but interim ones.
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
    fn no_backend_is_to_blame_where_there_is_no_file_for_a_connection() {
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
