//! Every route of the admin port, in one table. The router, the text of `GET /` and
//! `docs/admin-api.md` are made from it.

use std::fmt::Write;

use axum::Router;
use axum::routing::{MethodRouter, get, post, put};

use super::{Admin, api, metrics, readyz};

/// Who may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody who reaches the admin port.
    Open,
    /// Callers who may read.
    Viewer,
    /// Callers who may change things.
    Operator,
}

impl Access {
    /// Returns the name of the role as the documents have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "-",
            Self::Viewer => "viewer",
            Self::Operator => "operator",
        }
    }
}

/// One route.
#[derive(Clone, Copy)]
pub struct Route {
    /// The method in capitals.
    pub method: &'static str,
    /// The path; `{id}` stands for the id of a rollout.
    pub path: &'static str,
    /// Who may use it.
    pub access: Access,
    /// The query or the body that it takes, as an example; empty if it takes none.
    pub takes: &'static str,
    /// What it does, in one sentence.
    pub summary: &'static str,
    handler: fn() -> MethodRouter<Admin>,
}

const fn route(
    method: &'static str,
    path: &'static str,
    access: Access,
    handler: fn() -> MethodRouter<Admin>,
    takes: &'static str,
    summary: &'static str,
) -> Route {
    Route {
        method,
        path,
        access,
        takes,
        summary,
        handler,
    }
}

/// All routes, in the order of the documents.
pub const ROUTES: [Route; 14] = [
    route(
        "GET",
        "/",
        Access::Open,
        || get(async || index()),
        "",
        "Lists the routes.",
    ),
    route(
        "GET",
        "/livez",
        Access::Open,
        || get(async || "ok\n"),
        "",
        "Answers 200 while the process answers at all.",
    ),
    route(
        "GET",
        "/readyz",
        Access::Open,
        || get(readyz),
        "",
        "Answers 200 while requests may be sent to the proxy, and 503 before the start is complete \
         and from the moment a stop begins.",
    ),
    route(
        "GET",
        "/metrics",
        Access::Open,
        || get(metrics),
        "",
        "Returns the metrics in Prometheus' text format.",
    ),
    route(
        "GET",
        "/api/v1/rollouts",
        Access::Viewer,
        || get(api::rollouts),
        "",
        "Returns the status of the proxy and of all rollouts. The `ETag` is the revision in force.",
    ),
    route(
        "GET",
        "/api/v1/rollouts/{id}",
        Access::Viewer,
        || get(api::rollout),
        "",
        "Returns the status of one rollout.",
    ),
    route(
        "POST",
        "/api/v1/rollouts/{id}/set",
        Access::Operator,
        || post(api::set),
        r#"{"percent": 10, "reason": "CHG-7"}"#,
        "Writes a percentage into the file and puts it in force.",
    ),
    route(
        "POST",
        "/api/v1/rollouts/{id}/rollback",
        Access::Operator,
        || post(api::rollback),
        r#"{"reason": "CHG-7", "force": false}"#,
        "Sends all users to legacy and latches the rollout. It is refused while legacy does not \
         answer, unless `force` is true.",
    ),
    route(
        "POST",
        "/api/v1/rollouts/{id}/rearm",
        Access::Operator,
        || post(api::rearm),
        r#"{"reason": "CHG-7", "percent": 1}"#,
        "Lifts the latch. `percent` is optional: it is written into the file first.",
    ),
    route(
        "POST",
        "/api/v1/rollouts/{id}/{verb}",
        Access::Operator,
        || post(api::unknown_verb),
        r#"{"reason": "CHG-7"}"#,
        "Reserved for the commands of plans: answers 501 for advance, pause and resume, else 404.",
    ),
    route(
        "PUT",
        "/api/v1/maintenance",
        Access::Operator,
        || put(api::maintenance),
        r#"{"rollout": "ID" or null, "mode": "off|read-only|hold|full", "for": "10m", "reason": "CHG-7"}"#,
        "Begins or ends maintenance of one rollout, or of everything for `null`. `for` is \
         optional.",
    ),
    route(
        "POST",
        "/api/v1/reload",
        Access::Operator,
        || post(api::reload),
        r#"{"reason": "CHG-7"}"#,
        "Reads the file now and answers when it is in force. The body is optional.",
    ),
    route(
        "GET",
        "/api/v1/explain",
        Access::Viewer,
        || get(api::explain),
        "user= host= path= method= header=K:V",
        "Explains where a request goes, step by step.",
    ),
    route(
        "GET",
        "/api/v1/history",
        Access::Viewer,
        || get(api::history),
        "rollout= limit= verify=true",
        "Returns the newest records of the journal, the newest first.",
    ),
];

/// Returns a router with all routes of the table.
pub(super) fn router() -> Router<Admin> {
    ROUTES.iter().fold(Router::new(), |router, route| {
        router.route(route.path, (route.handler)())
    })
}

/// Returns the text of `GET /`: a line for each route.
fn index() -> String {
    let mut text = "Cutover admin\n\n".to_owned();
    for route in ROUTES.iter().filter(|route| route.path != "/") {
        let line = format!("{:<5} {:<33} {}", route.method, route.path, route.takes);
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text.push_str("\nBodies of rollouts and of maintenance also take \"dry_run\" and \"actor\".\n");
    text
}

/// Returns `docs/admin-api.md`, as Markdown.
pub fn document() -> String {
    let mut text = String::from(PREFACE);
    for route in &ROUTES {
        let takes = if route.takes.is_empty() {
            String::new()
        } else {
            format!(" Takes `{}`.", route.takes.replace('|', "\\|"))
        };
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "| `{} {}` | {} | {}{takes} |",
            route.method,
            route.path,
            route.access.name(),
            route.summary
        );
    }
    text.push_str(NOTES);
    text
}

const PREFACE: &str = "\
# The admin API

Made from the table of routes in `proxy/src/admin/routes.rs`
(`UPDATE=1 cargo test -p cutover --test it the_page_about_the_admin_api` writes it).

The admin port has its own listener, thread and runtime, so neither a scrape nor a slow caller costs a
request anything. `[admin] address` in the file says where it listens: `127.0.0.1:9090` unless the file
says otherwise.

| route | role | what it does |
|---|---|---|
";

const NOTES: &str = r#"
A history holds at most 1000 records and 8 MiB of them. Two histories are read at a time; a third caller that waits
longer than 5 s gets 503 with `Retry-After`.

## Examples

```sh
curl http://127.0.0.1:9090/api/v1/rollouts/all
curl -X POST http://127.0.0.1:9090/api/v1/rollouts/all/rollback -H 'Content-Type: application/json' -d '{"reason": "odd errors on checkout"}'
curl -X POST http://127.0.0.1:9090/api/v1/rollouts/all/rearm -H 'Content-Type: application/json' -d '{"reason": "fixed in build 4711", "percent": 1}'
curl -X PUT http://127.0.0.1:9090/api/v1/maintenance -H 'Content-Type: application/json' -d '{"rollout": null, "mode": "read-only", "for": "10m", "reason": "CHG-12"}'
curl 'http://127.0.0.1:9090/api/v1/explain?user=user-54&path=/checkout'
curl 'http://127.0.0.1:9090/api/v1/history?rollout=all&limit=5'
```

## Who may do what

Without tokens everybody who reaches the port may do everything. So the port then binds to loopback addresses only, and
it answers only to loopback host names. On any other address tokens are required. The file holds their hashes:

```sh
TOKEN=$(openssl rand -hex 32)
printf %s "$TOKEN" | sha256sum
```

```toml
[admin]
address = "10.0.0.5:9090"
tokens = [{ name = "ana", role = "operator", sha256 = "278a019e57a116873c349c37c4f01d927e23c6e1a7d1de84248de8f8e2a84f4e" }]
```

A caller sends `Authorization: Bearer TOKEN`, and the name of the token goes into the journal. A `viewer` may read. An
`operator` and an `admin` may also change things; so far nothing distinguishes these two. With and without tokens, a
request with a foreign `Origin` is refused, so no page of another site can use the port. The port speaks plain HTTP and
`/metrics` needs no token: keep it inside your network.

## Requests that change something

The body is JSON with `Content-Type: application/json`. It needs a `reason`: one line of at most 500 characters, which
goes into the journal. With `"dry_run": true` the answer says what would happen, and nothing is done (`reload` has no dry run). `actor` names the
caller where there are no tokens.

The `ETag` of a status is its revision. With `If-Match: "7"` a change or a reload is made only at revision 7, and is
refused with 412 if another caller was faster. Of several writers with the same revision exactly one wins. A tag that is
not a revision matches none, and `*` matches any. A status is always sent whole, because its numbers move while the
revision stays. Nothing below `/api` may be stored (`Cache-Control: no-store`).

A change is answered with `{"revision": 8, "durable": true, "dry_run": false, "sentence": "..."}` when it is in force.
`durable` is false while the state directory cannot be written.

## Errors

Every error has the same shape:

```json
{"error": {"code": "unknown_rollout", "message": "no rollout has the id `chekout`; there are: checkout", "hint": "..."}}
```

`code` is a stable word for programs, `message` a sentence for people, and `hint` says what to do next.
"#;
