//! Routes about rollouts: status, set, rollback and rearm.

use super::{actor_of, answer, checked, dry, if_match, read};
use crate::admin::Admin;
use crate::admin::auth::{Operator, Viewer};
use crate::admin::error::ApiError;
use crate::shared::control_handle::{IfRevision, Refusal};
use crate::status::Status;
use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use cutover_core::{Command, CommandError, Percent};
use serde::{Deserialize, Serialize};

/// What a writing request carries.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    /// Why; required.
    #[serde(default)]
    pub(super) reason: String,
    /// The share asked for, for `set` and `rearm`.
    pub(super) percent: Option<serde_json::Number>,
    /// Say what would happen, do nothing.
    #[serde(default)]
    pub(super) dry_run: bool,
    /// Roll back also if legacy does not answer.
    #[serde(default)]
    pub(super) force: bool,
    /// Who, where there are no tokens to tell.
    pub(super) actor: Option<String>,
}

/// `GET /api/v1/rollouts`
pub async fn rollouts(Viewer(_): Viewer, State(admin): State<Admin>) -> Result<Response, ApiError> {
    let status = admin.control.report().await?.status;
    tagged(status.revision, &status)
}

/// `GET /api/v1/rollouts/ID`
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

/// An answer with the revision as its tag, for `If-Match`. `If-None-Match` is not looked at: the
/// numbers of the last minute move while the revision stays.
pub(super) fn tagged(revision: u64, body: &impl Serialize) -> Result<Response, ApiError> {
    let body = serde_json::to_value(body).map_err(|error| ApiError::internal(&error))?;
    Ok(([(header::ETAG, format!("\"{revision}\""))], Json(body)).into_response())
}

/// `POST /api/v1/rollouts/ID/VERB`
pub async fn act(
    Operator(caller): Operator,
    State(admin): State<Admin>,
    Path((id, verb)): Path<(String, String)>,
    headers: HeaderMap,
    wish: Result<Json<Wish>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Wish {
        reason,
        percent,
        dry_run,
        actor,
        force,
    } = read(wish)?;
    let actor = actor_of(caller, actor);
    let if_revision = if_match(&headers);
    let percent = percent
        .map(|number| Percent::parse(&number.to_string()).map_err(|error| (number, error)))
        .transpose();
    let percent = percent.map_err(|(number, error)| {
        ApiError::bad_request(
            "bad_percent",
            &format!(
                "expected a percentage from 0 to 100 with at most three decimals, found {number}: \
                 {error}"
            ),
            "such as 12.5",
        )
    })?;
    let reason = checked(reason)?;
    if dry_run {
        expect_revision(&admin, if_revision.clone()).await?;
    }
    match (verb.as_str(), percent) {
        ("set", None) => Err(ApiError::bad_request(
            "missing_percent",
            "`percent` is missing",
            "such as {\"percent\": 10, \"reason\": \"CHG-7\"}",
        )),
        ("set", Some(percent)) => {
            let applied = admin
                .watch
                .set_percent(id.clone(), percent, dry_run, (actor, reason), if_revision)
                .await??;
            answer(&admin, &id, applied, dry_run, || {
                format!("{id}: would be set to {percent} %")
            })
            .await
        }
        ("rollback", None) if dry_run => {
            let unless = if force {
                ""
            } else {
                ", unless legacy does not answer when it is asked then"
            };
            dry(&admin, &id, |id| {
                format!("{id}: everyone would be sent to legacy{unless}")
            })
            .await
        }
        ("rearm", _) if dry_run => {
            dry(&admin, &id, |id| format!("{id}: the latch would be lifted")).await
        }
        ("rollback", None) => {
            let applied = admin
                .control
                .command(
                    id.clone(),
                    Command::Rollback { force },
                    actor,
                    reason,
                    if_revision,
                )
                .await??;
            answer(&admin, &id, applied, false, String::new).await
        }
        ("rearm", percent) => {
            if let Some(percent) = percent {
                expect_latched(&admin, &id).await?;
                // While latched a percentage moves nobody: first the smaller share is in the file,
                // then the latch is lifted.
                admin
                    .watch
                    .set_percent(
                        id.clone(),
                        percent,
                        false,
                        (actor.clone(), reason.clone()),
                        if_revision.clone(),
                    )
                    .await??;
            }
            let if_revision = if percent.is_some() { None } else { if_revision };
            let applied = admin
                .control
                .command(id.clone(), Command::Rearm, actor, reason, if_revision)
                .await??;
            answer(&admin, &id, applied, false, String::new).await
        }
        ("rollback", Some(_)) => Err(ApiError::bad_request(
            "unexpected_percent",
            "a rollback always goes to 0 %",
            "leave `percent` out, or use `set`",
        )),
        ("advance" | "pause" | "resume", _) => Err(ApiError::new(
            StatusCode::NOT_IMPLEMENTED,
            "not_supported",
            &format!("`{verb}` is not supported yet"),
            "use `set` and `rollback`",
        )),
        (verb, _) => Err(ApiError::not_found(&format!(
            "`{verb}` is none of set, rollback, rearm"
        ))),
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
