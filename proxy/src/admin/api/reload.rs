//! The route that reloads the configuration file.

use super::rollouts::Wish;
use super::{Done, actor_of, checked, if_match, read};
use crate::admin::Admin;
use crate::admin::auth::Operator;
use crate::admin::error::ApiError;
use crate::shared::control_handle::Applied;
use crate::shared::reload_handle::ReloadError;
use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};

/// Handles `POST /api/v1/reload`.
pub async fn reload(
    Operator(caller): Operator,
    State(admin): State<Admin>,
    headers: HeaderMap,
    wish: Result<Option<Json<Wish>>, JsonRejection>,
) -> Result<Response, ApiError> {
    let (reason, actor) = match wish.transpose() {
        Some(wish) => {
            let Wish { reason, actor, .. } = read(wish)?;
            (
                if reason.is_empty() {
                    reason
                } else {
                    checked(reason)?
                },
                actor,
            )
        }
        None => (String::new(), None),
    };
    match admin
        .watch
        .reload(actor_of(caller, actor), reason, if_match(&headers))
        .await?
    {
        Ok(Applied { revision, durable }) => {
            let waiting_for = admin.control.report().await?.status.config.waiting_for;
            let sentence = match waiting_for.as_slice() {
                [] => "the file is in force".to_owned(),
                files => format!(
                    "the file is in force, with these as they were before, because they are being \
                     written: {}",
                    files.join(", ")
                ),
            };
            Ok(Json(Done {
                revision,
                durable,
                dry_run: false,
                sentence,
            })
            .into_response())
        }
        Err(ReloadError::Rejected(problems)) => Err(ApiError::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "config_rejected",
            &problems,
            "the last good file stays in force",
        )),
        Err(ReloadError::Refused(refusal)) => Err(refusal.into()),
    }
}
