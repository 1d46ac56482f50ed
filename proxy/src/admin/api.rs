//! The JSON API. Every error has the same shape: `{"error": {"code": "…", "message": "…", "hint":
//! "…"}}`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use cutover_core::{Actor, Command, CommandError, Maintenance, Percent, Source};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::json;

use crate::admin::auth::{Caller, Operator, Viewer};
use crate::admin::error::ApiError;
use crate::admin::{Admin, HISTORIES, HISTORY_PATIENCE};
use crate::gateway::explain::Question;
use crate::shared::control_handle::{Applied, IfRevision, MaintenanceWish, Refusal};
use crate::shared::reload_handle::ReloadError;
use crate::state::journal::{self, Page, Verified};
use crate::status::Status;

/// The longest reason in characters.
const MAX_REASON: usize = 500;

/// What a writing request carries.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    /// Why; required.
    #[serde(default)]
    reason: String,
    /// The share asked for, for `set` and `rearm`.
    percent: Option<serde_json::Number>,
    /// Say what would happen, do nothing.
    #[serde(default)]
    dry_run: bool,
    /// Roll back also if legacy does not answer.
    #[serde(default)]
    force: bool,
    /// Who, where there are no tokens to tell.
    actor: Option<String>,
}

/// What `maintenance` is asked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaintenanceBody {
    /// Which rollout; `null` is everything. Left out is neither: everything must be meant.
    #[serde(default, deserialize_with = "present")]
    rollout: Option<Option<String>>,
    /// `off`, `read-only`, `hold` or `full`.
    #[serde(default)]
    mode: String,
    /// For how long; until somebody says otherwise if it is left out.
    #[serde(default, rename = "for")]
    lasts: Option<String>,
    /// Why; required.
    #[serde(default)]
    reason: String,
    /// Say what would happen, do nothing.
    #[serde(default)]
    dry_run: bool,
    /// Who, where there are no tokens to tell.
    actor: Option<String>,
}

/// Tells `null` from a field that is left out.
fn present<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(value).map(Some)
}

/// What a writing request is answered.
#[derive(Debug, Serialize)]
struct Done {
    revision: u64,
    durable: bool,
    dry_run: bool,
    sentence: String,
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
fn tagged(revision: u64, body: &impl Serialize) -> Result<Response, ApiError> {
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

/// `PUT /api/v1/maintenance`
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
    // What is in force, which is stricter than what was asked for while another window is.
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

/// Reads how long a mode is to last.
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

/// `POST /api/v1/reload`
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

/// What `explain` is asked.
#[derive(Debug, Deserialize)]
pub struct ExplainQuery {
    user: Option<String>,
    host: Option<String>,
    path: Option<String>,
    method: Option<String>,
    header: Option<String>,
}

/// `GET /api/v1/explain`
pub async fn explain(
    Viewer(_): Viewer,
    State(admin): State<Admin>,
    query: Result<Query<ExplainQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|error| {
        ApiError::bad_request(
            "bad_query",
            &error.body_text(),
            "user= host= path= method= header=K:V",
        )
    })?;
    let headers = query
        .header
        .iter()
        .flat_map(|lines| lines.split('\n'))
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect::<Vec<_>>();
    let question = question(
        query.user,
        query.host,
        query.path,
        query.method.as_deref(),
        &headers,
    )
    .map_err(|message| ApiError::bad_request("bad_query", &message, ""))?;
    let snapshot = admin.published.load();
    let default_backend = &snapshot.common.settings.routing.default_backend;
    let explanation =
        crate::gateway::explain::explain(&snapshot.split, default_backend, &question, |at| {
            snapshot.available(at)
        });
    Ok(Json(explanation).into_response())
}

/// Builds a question from the words of the command line or of a URL.
///
/// # Errors
/// Says which word is not valid.
pub fn question(
    user: Option<String>,
    host: Option<String>,
    path: Option<String>,
    method: Option<&str>,
    headers: &[String],
) -> Result<Question, String> {
    let method = method.unwrap_or("GET");
    let method =
        Method::from_bytes(method.as_bytes()).map_err(|_| format!("`{method}` is no method"))?;
    let target = path.unwrap_or_else(|| "/".to_owned());
    if !target.starts_with('/') {
        return Err(format!(
            "expected a path that begins with `/`, found `{target}`"
        ));
    }
    let headers = headers.iter().map(|header| {
        let (name, value) = header
            .split_once(':')
            .ok_or_else(|| format!("expected a header as `name: value`, found `{header}`"))?;
        let name = HeaderName::from_bytes(name.trim().as_bytes())
            .map_err(|_| format!("`{name}` is no header name"))?;
        Ok((
            name,
            HeaderValue::from_str(value.trim())
                .map_err(|_| format!("the value of `{header}` is not valid"))?,
        ))
    });
    Ok(Question {
        user,
        method,
        host: host.unwrap_or_default(),
        target,
        headers: headers.collect::<Result<_, String>>()?,
    })
}

/// What `history` is asked.
#[derive(Debug, Deserialize)]
pub struct HistoryQuery {
    rollout: Option<String>,
    limit: Option<usize>,
    /// Go through the whole chain, and not only through what is read for the answer.
    #[serde(default)]
    verify: bool,
}

/// How many records a history has unless it is asked for more or fewer.
const PAGE: usize = 100;

/// `GET /api/v1/history`: the newest first.
pub async fn history(
    Viewer(_): Viewer,
    State(admin): State<Admin>,
    query: Result<Query<HistoryQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, ApiError> {
    let hint = "rollout= limit= verify=true";
    let Query(HistoryQuery {
        rollout,
        limit,
        verify,
    }) = query.map_err(|error| ApiError::bad_request("bad_query", &error.body_text(), hint))?;
    let limit = limit.unwrap_or(PAGE);
    if limit > journal::MAX_PAGE {
        let message = format!(
            "expected a limit of at most {}, found {limit}",
            journal::MAX_PAGE
        );
        return Err(ApiError::bad_request(
            "bad_query",
            &message,
            "`cutover history --state DIRECTORY` reads any number from the file",
        ));
    }
    let busy = |_| ApiError::busy(&format!("{HISTORIES} others read the journal"));
    let permit = tokio::time::timeout(
        HISTORY_PATIENCE,
        Arc::clone(&admin.histories).acquire_owned(),
    )
    .await
    .map_err(busy)?;
    let directory = admin.state_directory.clone();
    let read = move || {
        // Held to the end of the reading, even if nobody waits for its answer.
        let _permit = permit;
        let page = journal::newest(
            &directory,
            rollout.as_deref(),
            limit,
            journal::MAX_PAGE_BYTES,
        )?;
        let verified = if verify {
            Some(journal::verify_in(&directory)?)
        } else {
            None
        };
        Ok::<_, std::io::Error>(history_of(&page, verified.as_ref()))
    };
    let answer = tokio::task::spawn_blocking(read)
        .await
        .map_err(|error| ApiError::internal(&error))?;
    Ok(Json(answer.map_err(|error| ApiError::internal(&error))?).into_response())
}

/// A page of the journal as data. The chain is that of the lines that were read, or of the whole
/// journal where it was verified.
pub fn history_of(page: &Page, verified: Option<&Verified>) -> serde_json::Value {
    let (problem, lines, is_whole, continues) = match verified {
        Some(Verified {
            problem,
            lines,
            continues,
        }) => (problem, *lines, true, continues),
        None => (&page.problem, page.lines, page.is_whole, &page.continues),
    };
    let chain = json!({"intact": problem.is_none(), "problem": problem, "lines": lines, "whole": is_whole, "continues": continues});
    json!({"records": page.records, "chain": chain})
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

/// A token's name is proof, so it goes before what the caller says of himself.
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
        source: if caller.is_cli {
            Source::Cli
        } else {
            Source::Api
        },
    }
}

/// The revisions that the caller has seen, by `If-Match`: a list of entity tags. A tag that is no
/// revision matches none, and so does a weak one. `*`, or no such field, is any revision.
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
    // A number has one form: `"07"` and `"+7"` are tags of something else.
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

async fn expect_revision(admin: &Admin, expected: IfRevision) -> Result<(), ApiError> {
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

async fn expect_latched(admin: &Admin, id: &str) -> Result<(), ApiError> {
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
