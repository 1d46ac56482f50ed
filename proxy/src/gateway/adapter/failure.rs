//! What an engine's error means.

use cutover_core::FailureKind;
use pingora::{Error, ErrorSource, ErrorType};

use crate::gateway::gate::{Blame, Failure};
use crate::gateway::tunnel;

/// Pingora's error as our failure. The one place where its sources and types are read.
pub(super) fn failure_of(error: &Error, answer_begun: bool) -> Failure {
    use ErrorType::{
        ConnectError, ConnectNoRoute, ConnectProxyFailure, ConnectRefused, ConnectTimedout, H1Error, HandshakeError, InvalidCert, InvalidHTTPHeader, ReadTimedout, SocketError,
        TLSHandshakeFailure, TLSHandshakeTimedout, WriteTimedout,
    };
    let blame = match error.esource() {
        ErrorSource::Upstream => Blame::Backend,
        ErrorSource::Downstream => Blame::Client,
        ErrorSource::Internal | ErrorSource::Unset => Blame::Proxy,
    };
    let kind = match error.etype() {
        ConnectTimedout | TLSHandshakeTimedout | ReadTimedout | WriteTimedout if !answer_begun => FailureKind::Timeout,
        ErrorType::ReadError if !answer_begun && tunnel::is_late(error) => FailureKind::Timeout,
        ConnectRefused | ConnectNoRoute | ConnectError | ConnectProxyFailure | SocketError | TLSHandshakeFailure | InvalidCert | HandshakeError => FailureKind::Connect,
        InvalidHTTPHeader | H1Error if !answer_begun => FailureKind::Protocol,
        _ if answer_begun => FailureKind::Truncated,
        _ => FailureKind::Reset,
    };
    Failure { blame, kind }
}
