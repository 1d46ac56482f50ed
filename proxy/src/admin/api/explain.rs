//! The route that explains a request.

use crate::admin::Admin;
use crate::admin::auth::Viewer;
use crate::admin::error::ApiError;
use crate::gateway::explain::Question;
use axum::Json;
use axum::extract::{Query, State};
use axum::http::{HeaderName, HeaderValue, Method};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

/// The query parameters of `explain`.
#[derive(Debug, Deserialize)]
pub struct ExplainQuery {
    pub(super) user: Option<String>,
    pub(super) host: Option<String>,
    pub(super) path: Option<String>,
    pub(super) method: Option<String>,
    pub(super) header: Option<String>,
}

/// Handles `GET /api/v1/explain`.
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

/// Builds a question from the arguments of the command line or the parameters of a URL.
///
/// # Errors
/// Names the argument that is not valid.
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
