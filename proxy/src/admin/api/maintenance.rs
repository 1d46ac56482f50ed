//! The route that starts and ends maintenance.

use super::rollouts::expect_revision;
use super::{Done, actor_of, checked, dry, if_match, read};
use crate::admin::Admin;
use crate::admin::auth::Operator;
use crate::admin::error::ApiError;
use crate::shared::control_handle::MaintenanceWish;
use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use cutover_core::Maintenance;
use serde::{Deserialize, Deserializer};
use std::time::Duration;

/// The body of a `maintenance` request.
#[derive(Debug, Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a JSON object such as {\"rollout\": null, \"mode\": \"full\", \"reason\": \"CHG-7\"}"
)]
pub struct MaintenanceBody {
    /// The ID of the rollout; `null` means all traffic. A missing field is an error, because
    /// maintenance for all traffic must be requested explicitly.
    #[serde(default, deserialize_with = "present")]
    pub(super) rollout: Option<Option<String>>,
    /// The mode: `off`, `read-only`, `hold` or `full`.
    #[serde(default)]
    pub(super) mode: String,
    /// How long the mode lasts. Without it, the mode lasts until it is changed.
    #[serde(default, rename = "for")]
    pub(super) lasts: Option<String>,
    /// The reason for the change; required.
    #[serde(default)]
    pub(super) reason: String,
    /// Whether to report what would happen without doing it.
    #[serde(default)]
    pub(super) dry_run: bool,
    /// Who makes the change, used when there are no tokens.
    pub(super) actor: Option<String>,
}

/// Distinguishes `null` from a missing field.
pub(super) fn present<'de, D: Deserializer<'de>>(
    value: D,
) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(value).map(Some)
}

/// Handles `PUT /api/v1/maintenance`.
pub async fn maintenance(
    Operator(caller): Operator,
    State(admin): State<Admin>,
    headers: HeaderMap,
    body: Result<Json<MaintenanceBody>, JsonRejection>,
) -> Result<Response, ApiError> {
    let MaintenanceBody {
        rollout,
        mode,
        lasts,
        reason,
        dry_run,
        actor,
    } = read(body)?;
    let actor = actor_of(caller, actor);
    let if_revision = if_match(&headers);
    let hint = "such as {\"rollout\": \"ID\" or null for all, \"mode\": \"full\", \"for\": \
                \"10m\", \"reason\": \"CHG-7\"}";
    let Some(rollout) = rollout else {
        return Err(ApiError::bad_request(
            "missing_rollout",
            "`rollout` is missing: give an id, or null for all of them",
            hint,
        ));
    };
    let mode = Maintenance::of_name(&mode).ok_or_else(|| {
        ApiError::bad_request(
            "bad_mode",
            &format!("expected the mode off, read-only, hold or full, found `{mode}`"),
            hint,
        )
    })?;
    let lasts = lasts
        .map(|text| lasting(mode, &text))
        .transpose()
        .map_err(|message| ApiError::bad_request("bad_for", &message, hint))?;
    let reason = checked(reason)?;
    let wish = MaintenanceWish {
        rollout,
        mode,
        lasts,
    };
    if dry_run {
        expect_revision(&admin, if_revision).await?;
        let (id, would) = (
            wish.rollout.as_deref(),
            format!("maintenance would be {}", mode.name()),
        );
        return match id {
            Some(id) => dry(&admin, id, |id| format!("{id}: {would}")).await,
            None => {
                let status = admin.control.report().await?.status;
                Ok(Json(Done {
                    revision: status.revision,
                    durable: status.latch_durable,
                    dry_run: true,
                    sentence: format!("all rollouts: {would}"),
                })
                .into_response())
            }
        };
    }
    let applied = admin
        .control
        .maintenance(wish.clone(), actor, reason, if_revision)
        .await??;
    let status = admin.control.report().await?.status;
    let of_rollout = |id: &String| status.rollouts.iter().find(|rollout| rollout.id == *id);
    // The mode in force is stricter than the requested one while another window is stricter.
    let (of, in_force, held) = match &wish.rollout {
        Some(id) => (
            id.as_str(),
            of_rollout(id).and_then(|rollout| rollout.maintenance.as_ref()),
            of_rollout(id).map_or(0, |rollout| rollout.held_requests),
        ),
        None => (
            "all rollouts",
            status.maintenance.as_ref(),
            status.held_requests,
        ),
    };
    let sentence = match in_force {
        None => format!("{of}: maintenance is off"),
        Some(maintenance) if wish.rollout.is_none() => maintenance.sentence(held),
        Some(maintenance) => format!("{of}: {}", maintenance.sentence(held)),
    };
    Ok(Json(Done {
        revision: status.revision,
        durable: applied.durable,
        dry_run: false,
        sentence,
    })
    .into_response())
}

/// Parses how long a mode lasts.
///
/// # Errors
/// Says what was expected.
pub fn lasting(mode: Maintenance, text: &str) -> Result<Duration, String> {
    if mode == Maintenance::Off {
        return Err("`off` has no end: leave `for` out".to_owned());
    }
    let lasts = cutover_config::parse_duration(text)?;
    if lasts.is_zero() {
        Err("expected a duration longer than zero".to_owned())
    } else {
        Ok(lasts)
    }
}
