//! The configuration files of the proxies: the same job in three languages.
//!
//! The job: a user, named by `x-user-id`, belongs to new if a hash of the user's name says so,
//! which holds for [`PERCENT`] of a hundred. What the backend is told about client and side comes
//! from the proxy and not from the client. Connections are kept on both sides, for an unlimited
//! number of requests.
//!
//! | for each request | cutover | HAProxy | nginx |
//! |---|---|---|---|
//! | side by a hash of the user | murmur3, 100,000 buckets | xxh32, 100 buckets | murmur2 (`split_clients`) |
//! | forged `x-cutover-*` | removed by their prefix | removed by their prefix | replaced where it sets one; it cannot remove by prefix |
//! | `x-forwarded-for`, `-proto`, `-host` | replaced | for appended, others replaced | replaced |
//! | request id | made | made (`uuid()`) | made (`$request_id`) |
//! | side, and why | side, bucket, reason, rollout | side, bucket | side |
//! | trace context | made or continued | not done | not done |
//! | counters and histograms of each side, guard, percentage that changes at run time | done | counters of a backend; no guard | not done |
//! | line of the access log, in JSON | written by a separate thread | one write for each line | buffered, 64 KiB |
//!
//! Deliberately absent: TLS, health checks, and any tuning that an operator of the other program
//! would not recognise. Every setting is needed for the job or raises a limit that would end the
//! run.

use std::net::SocketAddr;
use std::path::Path;

use crate::peers::population::PERCENT;
use crate::peers::stub::Stubs;

/// A limit above the connections of any phase, and low enough for the usual limits on open files.
const MOST_CONNECTIONS: usize = 6_000;

/// Returns the configuration file of Cutover: one rollout with the default guard. Metrics and
/// headers are on by default.
pub fn cutover(listen: SocketAddr, stubs: Stubs, state: &Path, access: &str) -> String {
    let Stubs { legacy, new } = stubs;
    format!(
        r#"[listen]
http = ["{listen}"]
[admin]
address = "127.0.0.1:0"
[state]
directory = '{}'
[log]
access = "{access}"
[backend.legacy]
servers = ["{legacy}"]
[backend.new]
servers = ["{new}"]
[[rollout]]
id = "checkout"
percent = {PERCENT}
key = ["header:x-user-id"]
"#,
        state.display()
    )
}

/// Returns the configuration file of HAProxy. Its log goes to standard output.
pub fn haproxy(listen: SocketAddr, stubs: Stubs, threads: usize, has_log: bool) -> String {
    let Stubs { legacy, new } = stubs;
    let (log_target, log_format) = if has_log {
        ("    log stdout format raw local0 info\n", HAPROXY_LOG)
    } else {
        ("", "")
    };
    format!(
        r"global
    nbthread {threads}
    maxconn {MOST_CONNECTIONS}
    # Two of them on one port would share its connections.
    noreuseport
{log_target}
defaults
    mode http
    timeout connect 1s
    timeout client 300s
    timeout server 30s
    timeout http-keep-alive 300s

frontend edge
    bind {listen}
{log_format}    http-request del-header x-cutover- -m beg
    http-request del-header x-request-id
    unique-id-format %[uuid()]
    unique-id-header x-request-id
    option forwardfor
    http-request set-header x-forwarded-proto http
    http-request set-header x-forwarded-host %[req.hdr(host)]
    http-request set-var(txn.bucket) req.hdr(x-user-id),xxh32,mod(100)
    http-request set-header x-cutover-bucket %[var(txn.bucket)]
    use_backend new if {{ var(txn.bucket) -m int lt {PERCENT} }}
    default_backend legacy

backend legacy
    http-reuse always
    http-request set-header x-cutover-backend legacy
    server legacy {legacy}

backend new
    http-reuse always
    http-request set-header x-cutover-backend new
    server new {new}
"
    )
}

const HAPROXY_LOG: &str = r#"    log global
    log-format '{"@timestamp":"%[date,utime(%Y-%m-%dT%H:%M:%SZ)]","http.request.method":"%HM","url.path":"%HPO","http.response.status_code":%ST,"backend":"%b","bucket":%[var(txn.bucket)],"client.address":"%ci","server.address":"%si:%sp","duration_ms":%Ta,"http.response.bytes":%B,"http.request.id":"%ID"}'
"#;

/// Returns the configuration file of nginx. It keeps everything it writes in this folder, except
/// for the access log.
pub fn nginx(
    listen: SocketAddr,
    stubs: Stubs,
    threads: usize,
    folder: &Path,
    access_log: Option<&Path>,
) -> String {
    let Stubs { legacy, new } = stubs;
    let folder = folder.display();
    let access_log = access_log.map_or_else(
        || "access_log off;".to_owned(),
        |file| {
            format!(
                "{NGINX_LOG}\n    access_log \"{}\" json buffer=64k flush=1s;",
                file.display()
            )
        },
    );
    format!(
        r#"daemon off;
worker_processes {threads};
# Said only to root's master, which otherwise wants a group that Debian does not have.
user nobody nogroup;
pid "{folder}/nginx.pid";
error_log stderr warn;
events {{
    worker_connections {MOST_CONNECTIONS};
}}
http {{
    client_body_temp_path "{folder}/body";
    proxy_temp_path "{folder}/proxy";
    fastcgi_temp_path "{folder}/fastcgi";
    uwsgi_temp_path "{folder}/uwsgi";
    scgi_temp_path "{folder}/scgi";
    {access_log}
    keepalive_timeout 300s;
    # The default closes a connection after 1,000 requests.
    keepalive_requests 1000000000;
    split_clients $http_x_user_id $side {{
        {PERCENT}% new;
        * legacy;
    }}
    upstream legacy {{
        server {legacy};
        keepalive 1024;
        keepalive_requests 1000000000;
        keepalive_timeout 300s;
    }}
    upstream new {{
        server {new};
        keepalive 1024;
        keepalive_requests 1000000000;
        keepalive_timeout 300s;
    }}
    server {{
        listen {listen};
        location / {{
            proxy_pass http://$side;
            proxy_http_version 1.1;
            proxy_connect_timeout 1s;
            proxy_read_timeout 30s;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header X-Forwarded-Host $http_host;
            proxy_set_header X-Cutover-Backend $side;
            proxy_set_header X-Request-Id $request_id;
        }}
    }}
}}
"#
    )
}

const NGINX_LOG: &str = r#"log_format json escape=json '{"@timestamp":"$time_iso8601","http.request.method":"$request_method","url.path":"$uri","http.response.status_code":$status,"backend":"$side","client.address":"$remote_addr","server.address":"$upstream_addr","duration_s":$request_time,"upstream_s":"$upstream_response_time","http.response.bytes":$body_bytes_sent,"http.request.id":"$request_id"}';"#;

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> (SocketAddr, Stubs) {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        (
            address(8080),
            Stubs {
                legacy: address(3001),
                new: address(3002),
            },
        )
    }

    fn expect(text: &str, parts: &[&str]) {
        for part in parts {
            assert!(text.contains(part), "expected {part:?} in\n{text}");
        }
    }

    #[test]
    fn each_file_has_the_ports_the_share_and_both_backends() {
        let (listen, stubs) = parts();
        let folder = Path::new("/run/peers");
        expect(
            &cutover(listen, stubs, folder, "off"),
            &[
                "http = [\"127.0.0.1:8080\"]",
                "percent = 25\n",
                "[backend.legacy]\nservers = [\"127.0.0.1:3001\"]",
                "[backend.new]\nservers = [\"127.0.0.1:3002\"]",
                "access = \"off\"",
            ],
        );
        expect(
            &haproxy(listen, stubs, 1, false),
            &[
                "bind 127.0.0.1:8080\n",
                "lt 25 }",
                "server legacy 127.0.0.1:3001",
                "server new 127.0.0.1:3002",
                "http-reuse always",
                "nbthread 1",
            ],
        );
        expect(
            &nginx(listen, stubs, 1, folder, None),
            &[
                "listen 127.0.0.1:8080;",
                "25% new;",
                "upstream legacy {\n        server 127.0.0.1:3001;",
                "upstream new {\n        server 127.0.0.1:3002;",
                "access_log off;",
                "daemon off;",
            ],
        );
    }

    #[test]
    fn nginx_writes_only_into_its_folder() {
        let (listen, stubs) = parts();
        let text = nginx(listen, stubs, 1, Path::new("/run/peers"), None);
        for line in text
            .lines()
            .filter(|line| line.contains("_temp_path") || line.starts_with("pid "))
        {
            assert!(line.contains("\"/run/peers/"), "{line}");
        }
    }

    #[test]
    fn a_log_is_configured_only_if_requested() {
        let (listen, stubs) = parts();
        expect(
            &haproxy(listen, stubs, 1, true),
            &["log stdout", "log-format '{"],
        );
        assert!(!haproxy(listen, stubs, 1, false).contains("log"));
        let logged = nginx(
            listen,
            stubs,
            1,
            Path::new("/run/peers"),
            Some(Path::new("/dev/null")),
        );
        expect(
            &logged,
            &["access_log \"/dev/null\" json", "log_format json"],
        );
        expect(
            &cutover(listen, stubs, Path::new("/run/peers"), "all"),
            &["access = \"all\""],
        );
    }
}
