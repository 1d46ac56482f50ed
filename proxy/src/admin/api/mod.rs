//! The JSON API. Every error has the same shape: `{"error": {"code": "…", "message": "…", "hint":
//! "…"}}`.

mod explain;
mod history;
mod maintenance;
mod reload;
mod rollouts;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use cutover_core::{Actor, CommandError, Via};
use serde::Serialize;

use crate::admin::Admin;
use crate::admin::auth::Caller;
use crate::admin::error::ApiError;
use crate::shared::control_handle::{Applied, IfRevision, Refusal};
pub use explain::{ExplainQuery, explain, question};
pub use history::{HistoryQuery, history, history_of};
pub use maintenance::{MaintenanceBody, lasting, maintenance};
pub use reload::reload;
pub use rollouts::{Wish, rearm, rollback, rollout, rollouts, set, unknown_verb};

/// The longest reason in characters.
const MAX_REASON: usize = 500;

/// The answer to a request that changes something.
#[derive(Debug, Serialize)]
struct Done {
    revision: u64,
    durable: bool,
    dry_run: bool,
    sentence: String,
}

fn read<T>(wish: Result<Json<T>, JsonRejection>) -> Result<T, ApiError> {
    wish.map(|Json(wish)| wish).map_err(|rejection| {
        let status = rejection.status();
        ApiError::new(
            status,
            "bad_body",
            &rejection.body_text(),
            "send JSON with `Content-Type: application/json`, such as {\"reason\": \"CHG-7\"}",
        )
    })
}

fn checked(reason: String) -> Result<String, ApiError> {
    let trimmed = reason.trim();
    if trimmed.is_empty() {
        return Err(ApiError::bad_request(
            "missing_reason",
            "`reason` is missing",
            "say why, such as {\"reason\": \"CHG-7\"}: it goes into the journal",
        ));
    }
    if trimmed.chars().count() > MAX_REASON || trimmed.chars().any(char::is_control) {
        return Err(ApiError::bad_request(
            "bad_reason",
            "a reason is one line of at most 500 characters",
            "",
        ));
    }
    Ok(trimmed.to_owned())
}

/// The name of a token is proven, so it takes precedence over the name that the caller gives.
fn actor_of(caller: Caller, said: Option<String>) -> Actor {
    let said = said
        .map(|name| {
            name.chars()
                .filter(|c| !c.is_control())
                .take(64)
                .collect::<String>()
        })
        .filter(|name| !name.is_empty());
    Actor {
        name: caller.name.or(said).unwrap_or_else(|| "local".to_owned()),
        source: if caller.is_cli { Via::Cli } else { Via::Api },
    }
}

/// Returns the revisions in `If-Match`, a list of entity tags. A weak tag or a tag that is not a
/// revision matches none. `*` or a missing field matches any revision.
fn if_match(headers: &HeaderMap) -> IfRevision {
    let fields: Vec<&[u8]> = headers
        .get_all(header::IF_MATCH)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if fields.iter().all(|field| field.trim_ascii() == b"*") {
        return None;
    }
    let tags = fields
        .iter()
        .flat_map(|field| field.split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii);
    let quoted = tags
        .filter_map(|tag| std::str::from_utf8(tag.strip_prefix(b"\"")?.strip_suffix(b"\"")?).ok());
    // A number has one form: `"07"` and `"+7"` are not tags of a revision.
    Some(
        quoted
            .filter_map(|tag| {
                tag.parse()
                    .ok()
                    .filter(|revision: &u64| revision.to_string() == tag)
            })
            .collect(),
    )
}

async fn dry(
    admin: &Admin,
    id: &str,
    sentence: impl Fn(&str) -> String,
) -> Result<Response, ApiError> {
    let status = admin.control.report().await?.status;
    if !status.rollouts.iter().any(|rollout| rollout.id == id) {
        let known = status
            .rollouts
            .iter()
            .map(|rollout| rollout.id.as_str().into())
            .collect();
        return Err(Refusal::Command(CommandError::UnknownRollout {
            id: id.to_owned(),
            known,
        })
        .into());
    }
    Ok(Json(Done {
        revision: status.revision,
        durable: status.latch_durable,
        dry_run: true,
        sentence: sentence(id),
    })
    .into_response())
}

async fn answer(
    admin: &Admin,
    id: &str,
    applied: Applied,
    dry_run: bool,
    planned: impl Fn() -> String,
) -> Result<Response, ApiError> {
    let status = admin.control.report().await?.status;
    let sentence = if dry_run {
        planned()
    } else {
        status
            .rollouts
            .iter()
            .find(|rollout| rollout.id == id)
            .map(|rollout| format!("{id}: {}", rollout.sentence))
            .unwrap_or_default()
    };
    Ok(Json(Done {
        revision: status.revision,
        durable: applied.durable,
        dry_run,
        sentence,
    })
    .into_response())
}
