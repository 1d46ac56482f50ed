//! Routes for rollouts: status, set, rollback and rearm.

use super::{actor_of, answer, checked, dry, if_match, read};
use crate::admin::Admin;
use crate::admin::auth::{Caller, Operator, Viewer};
use crate::admin::error::ApiError;
use crate::shared::control_handle::{IfRevision, Refusal};
use crate::status::Status;
use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use cutover_core::{Actor, Command, CommandError, Percent};
use serde::{Deserialize, Serialize};

/// The body of a request that changes a rollout.
#[derive(Debug, Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a JSON object such as {\"reason\": \"CHG-7\"}"
)]
pub struct Wish {
    /// The reason for the change; required.
    #[serde(default)]
    pub(super) reason: String,
    /// The requested share, for `set` and `rearm`.
    pub(super) percent: Option<serde_json::Number>,
    /// Whether to report what would happen without doing it.
    #[serde(default)]
    pub(super) dry_run: bool,
    /// Whether to roll back even if legacy does not answer.
    #[serde(default)]
    pub(super) force: bool,
    /// Who makes the change, used when there are no tokens.
    pub(super) actor: Option<String>,
}

/// Handles `GET /api/v1/rollouts`.
pub async fn rollouts(Viewer(_): Viewer, State(admin): State<Admin>) -> Result<Response, ApiError> {
    let status = admin.control.report().await?.status;
    tagged(status.revision, &status)
}

/// Handles `GET /api/v1/rollouts/ID`.
pub async fn rollout(
    Viewer(_): Viewer,
    State(admin): State<Admin>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let Status {
        revision, rollouts, ..
    } = admin.control.report().await?.status;
    let known = rollouts
        .iter()
        .map(|rollout| rollout.id.as_str())
        .collect::<Vec<_>>()
        .join(", ");
    let Some(rollout) = rollouts.iter().find(|rollout| rollout.id == id) else {
        return Err(ApiError::new(
            StatusCode::NOT_FOUND,
            "unknown_rollout",
            &format!("no rollout has the id `{id}`; there are: {known}"),
            "",
        ));
    };
    tagged(revision, rollout)
}

/// Returns an answer with the revision as its entity tag, for `If-Match`. `If-None-Match` is
/// ignored, because the counts of the last minute change while the revision does not.
pub(super) fn tagged(revision: u64, body: &impl Serialize) -> Result<Response, ApiError> {
    let body = serde_json::to_value(body).map_err(|error| ApiError::internal(&error))?;
    Ok(([(header::ETAG, format!("\"{revision}\""))], Json(body)).into_response())
}

/// A body that changes something, after its checks.
struct Change {
    reason: String,
    percent: Option<Percent>,
    dry_run: bool,
    force: bool,
    actor: Actor,
    if_revision: IfRevision,
}

impl Change {
    async fn of(
        admin: &Admin,
        caller: Caller,
        headers: &HeaderMap,
        wish: Result<Json<Wish>, JsonRejection>,
    ) -> Result<Self, ApiError> {
        let wish = read(wish)?;
        let percent = wish.percent.map(|number| {
            Percent::parse(&number.to_string()).map_err(|error| {
                ApiError::bad_request(
                    "bad_percent",
                    &format!(
                        "expected a percentage from 0 to 100 with at most three decimals, found \
                         {number}: {error}"
                    ),
                    "such as 12.5",
                )
            })
        });
        let change = Self {
            percent: percent.transpose()?,
            reason: checked(wish.reason)?,
            dry_run: wish.dry_run,
            force: wish.force,
            actor: actor_of(caller, wish.actor),
            if_revision: if_match(headers),
        };
        if change.dry_run {
            expect_revision(admin, change.if_revision.clone()).await?;
        }
        Ok(change)
    }
}

/// `POST /api/v1/rollouts/ID/set`
pub async fn set(
    Operator(caller): Operator,
    State(admin): State<Admin>,
    Path(id): Path<String>,
    headers: HeaderMap,
    wish: Result<Json<Wish>, JsonRejection>,
) -> Result<Response, ApiError> {
    let change = Change::of(&admin, caller, &headers, wish).await?;
    let Some(percent) = change.percent else {
        return Err(ApiError::bad_request(
            "missing_percent",
            "`percent` is missing",
            "such as {\"percent\": 10, \"reason\": \"CHG-7\"}",
        ));
    };
    let applied = admin
        .watch
        .set_percent(
            id.clone(),
            percent,
            change.dry_run,
            (change.actor, change.reason),
            change.if_revision,
        )
        .await??;
    answer(&admin, &id, applied, change.dry_run, || {
        format!("{id}: would be set to {percent} %")
    })
    .await
}

/// `POST /api/v1/rollouts/ID/rollback`
pub async fn rollback(
    Operator(caller): Operator,
    State(admin): State<Admin>,
    Path(id): Path<String>,
    headers: HeaderMap,
    wish: Result<Json<Wish>, JsonRejection>,
) -> Result<Response, ApiError> {
    let change = Change::of(&admin, caller, &headers, wish).await?;
    if change.percent.is_some() {
        return Err(ApiError::bad_request(
            "unexpected_percent",
            "a rollback always goes to 0 %",
            "leave `percent` out, or use `set`",
        ));
    }
    let force = change.force;
    if change.dry_run {
        let unless = if force {
            ""
        } else {
            ", unless legacy does not answer when it is asked then"
        };
        return dry(&admin, &id, |id| {
            format!("{id}: everyone would be sent to legacy{unless}")
        })
        .await;
    }
    let command = Command::Rollback { force };
    let applied = admin
        .control
        .command(
            id.clone(),
            command,
            change.actor,
            change.reason,
            change.if_revision,
        )
        .await??;
    answer(&admin, &id, applied, false, String::new).await
}

/// `POST /api/v1/rollouts/ID/rearm`
pub async fn rearm(
    Operator(caller): Operator,
    State(admin): State<Admin>,
    Path(id): Path<String>,
    headers: HeaderMap,
    wish: Result<Json<Wish>, JsonRejection>,
) -> Result<Response, ApiError> {
    let change = Change::of(&admin, caller, &headers, wish).await?;
    if change.dry_run {
        expect_latched(&admin, &id).await?;
        let share = change.percent.map_or_else(String::new, |percent| {
            format!(", and the percentage would be set to {percent} %")
        });
        return dry(&admin, &id, |id| {
            format!("{id}: the latch would be lifted{share}")
        })
        .await;
    }
    let mut if_revision = change.if_revision;
    if let Some(percent) = change.percent {
        expect_latched(&admin, &id).await?;
        // A percentage moves no users while the rollout is latched. So the smaller share is written
        // into the file first, and then the latch is lifted.
        let by = (change.actor.clone(), change.reason.clone());
        admin
            .watch
            .set_percent(id.clone(), percent, false, by, if_revision.take())
            .await??;
    }
    let applied = admin
        .control
        .command(
            id.clone(),
            Command::Rearm,
            change.actor,
            change.reason,
            if_revision,
        )
        .await??;
    answer(&admin, &id, applied, false, String::new).await
}

/// `POST /api/v1/rollouts/ID/VERB` for every other verb.
pub async fn unknown_verb(
    Operator(_): Operator,
    Path((_, verb)): Path<(String, String)>,
) -> ApiError {
    match verb.as_str() {
        "advance" | "pause" | "resume" => ApiError::new(
            StatusCode::NOT_IMPLEMENTED,
            "not_supported",
            &format!("`{verb}` is not supported yet"),
            "use `set` and `rollback`",
        ),
        _ => ApiError::not_found(&format!(
            "there is no command `{verb}`; there are: set, rollback, rearm"
        )),
    }
}

pub(super) async fn expect_revision(admin: &Admin, expected: IfRevision) -> Result<(), ApiError> {
    let Some(expected) = expected else {
        return Ok(());
    };
    let found = admin.control.report().await?.status.revision;
    if expected.contains(&found) {
        Ok(())
    } else {
        Err(Refusal::Revision { expected, found }.into())
    }
}

pub(super) async fn expect_latched(admin: &Admin, id: &str) -> Result<(), ApiError> {
    let status = admin.control.report().await?.status;
    match status.rollouts.iter().find(|rollout| rollout.id == id) {
        Some(rollout) if rollout.latch.is_none() => {
            Err(Refusal::Command(CommandError::NotRolledBack { id: id.to_owned() }).into())
        }
        Some(_) => Ok(()),
        None => {
            let known = status
                .rollouts
                .iter()
                .map(|rollout| rollout.id.as_str().into())
                .collect();
            Err(Refusal::Command(CommandError::UnknownRollout {
                id: id.to_owned(),
                known,
            })
            .into())
        }
    }
}
