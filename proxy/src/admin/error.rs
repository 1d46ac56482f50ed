//! The errors of the API. Every one has the same shape: `{"error": {"code": "…", "message": "…",
//! "hint": "…"}}`.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use cutover_core::CommandError;
use serde_json::json;

use crate::shared::control_handle::{Gone, Refusal};
use crate::shared::reload_handle::SetError;

/// An error that the API returns.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    hint: String,
    /// The number of seconds after which a retry makes sense.
    retry_after: Option<u32>,
}

impl ApiError {
    /// Creates an error with a stable code, a sentence, and a hint about what to do.
    pub fn new(status: StatusCode, code: &'static str, message: &str, hint: &str) -> Self {
        Self {
            status,
            code,
            message: message.to_owned(),
            hint: hint.to_owned(),
            retry_after: None,
        }
    }

    /// Creates the error for something that does not exist.
    pub fn not_found(message: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message, "")
    }

    /// Creates the error for a failure inside the proxy.
    pub fn internal(error: &dyn std::error::Error) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            &error.to_string(),
            "see the log",
        )
    }

    /// Creates the error for too many concurrent requests of one kind.
    pub fn busy(message: &str) -> Self {
        Self {
            retry_after: Some(1),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "busy",
                message,
                "ask again in a moment",
            )
        }
    }

    /// Creates the error for an invalid request.
    pub fn bad_request(code: &'static str, message: &str, hint: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message, hint)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body =
            json!({"error": {"code": self.code, "message": self.message, "hint": self.hint}});
        let mut response = (self.status, Json(body)).into_response();
        if let Some(seconds) = self.retry_after {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<Gone> for ApiError {
    fn from(gone: Gone) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "shutting_down",
            &gone.to_string(),
            "try again on another instance",
        )
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::Command(CommandError::UnknownRollout { .. }) => Self::new(
                StatusCode::NOT_FOUND,
                "unknown_rollout",
                &message,
                "`GET /api/v1/rollouts` lists them",
            ),
            Refusal::Command(CommandError::LegacyDown { .. } | CommandError::MustAsk { .. }) => {
                Self::new(
                    StatusCode::CONFLICT,
                    "legacy_down",
                    &message,
                    "`--force`, or \"force\": true, rolls back all the same",
                )
            }
            Refusal::Command(CommandError::NotRolledBack { .. }) => Self::new(
                StatusCode::CONFLICT,
                "not_rolled_back",
                &message,
                "nothing has to be done",
            ),
            Refusal::HandingOver => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "handing_over",
                &message,
                "try again in a moment",
            ),
            Refusal::Revision { .. } => Self::new(
                StatusCode::PRECONDITION_FAILED,
                "revision_mismatch",
                &message,
                "read the status again, then decide",
            ),
        }
    }
}

impl From<SetError> for ApiError {
    fn from(error: SetError) -> Self {
        let message = error.to_string();
        match error {
            SetError::Unknown { .. } => Self::new(
                StatusCode::NOT_FOUND,
                "unknown_rollout",
                &message,
                "`GET /api/v1/rollouts` lists them",
            ),
            SetError::Broken(_)
            | SetError::Rejected(_)
            | SetError::Edit(_)
            | SetError::ChangedMeanwhile(_) => Self::new(
                StatusCode::CONFLICT,
                "file_not_usable",
                &message,
                "mend the file; `cutover check` shows its problems",
            ),
            SetError::BeingWritten { .. } => Self::new(
                StatusCode::CONFLICT,
                "file_being_written",
                &message,
                "try again when the file is complete",
            ),
            SetError::Refused(refusal) => refusal.into(),
            SetError::Unwritable { .. } => Self::new(
                StatusCode::CONFLICT,
                "file_not_writable",
                &message,
                "a rollback needs no file: `cutover rollback`",
            ),
        }
    }
}
