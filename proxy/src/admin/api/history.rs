//! The route that reads the journal.

use crate::admin::auth::Viewer;
use crate::admin::error::ApiError;
use crate::admin::{Admin, HISTORIES, HISTORY_PATIENCE};
use crate::state::journal::{self, Page, Verified};
use axum::Json;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;

/// The query parameters of `history`.
#[derive(Debug, Deserialize)]
pub struct HistoryQuery {
    pub(super) rollout: Option<String>,
    pub(super) limit: Option<usize>,
    /// Whether the whole chain is verified, and not only the records that are read for the answer.
    #[serde(default)]
    pub(super) verify: bool,
}

/// The number of records in a history if the request names none.
pub(super) const PAGE: usize = 100;

/// Handles `GET /api/v1/history`, newest records first.
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
        // The permit is held until the reading ends, even if the client no longer waits for the
        // answer.
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

/// Returns a page of the journal as JSON. The chain covers the lines that were read, or the whole
/// journal if it was verified.
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
