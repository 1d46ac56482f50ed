#!/usr/bin/env python3
"""Writes the Grafana dashboards, and the address of the runbook into the alerts.

    dashboards/build.py           writes what is generated
    dashboards/build.py --check   exit code 1 if what is committed differs from what would be written

Grafana's classic JSON: every version from 10 on reads it, newer ones migrate it by themselves. Only panel types that are part of every Grafana are used.
The identity of a panel is made from its title, so that a link to a panel stays good when another is put before it. Nothing but Python is needed.
"""
import argparse
import json
import pathlib
import re
import sys
import zlib

HERE = pathlib.Path(__file__).resolve().parent

# Where the links of the alerts lead: change it here to your own copy, then run this file.
RUNBOOK = "https://github.com/cutover/cutover/blob/main/docs/RUNBOOK.md"

SCHEMA_VERSION = 39
SIDES = {"legacy": "#5794F2", "new": "#FF9830"}
DIFFERENCE = "#B877D9"
GOOD, WARN, BAD, QUIET = "green", "orange", "red", "text"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

# What each query is about: the processes that are chosen, some rollouts of them, one rollout.
CHOSEN = 'job=~"$job",instance=~"$instance"'
MANY = CHOSEN + ',rollout=~"$rollout"'
ONE = CHOSEN + ',rollout="$rollout"'
OVER = "[$__rate_interval]"


# -- panels

def target(expr, legend="", *, instant=False, kind="time_series"):
    return {"expr": expr, "legendFormat": legend, "instant": instant, "range": not instant, "format": kind}


def now(expr, legend=""):
    return target(expr, legend, instant=True)


def row_of(expr):
    return target(expr, instant=True, kind="table")


def steps(*pairs):
    """Thresholds: a colour, then pairs of a value and the colour from there on."""
    return [{"value": value, "color": color} for value, color in pairs]


CALM = steps((None, GOOD))


def states(*known):
    """Names and colours for values: (0, "off", GOOD)."""
    options = {str(value): {"text": text, "color": color, "index": index} for index, (value, text, color) in enumerate(known)}
    return [{"type": "value", "options": options}]


def override(matcher, wanted, **properties):
    return {"matcher": {"id": matcher, "options": wanted}, "properties": [{"id": name.replace("__", "."), "value": value} for name, value in properties.items()]}


def fixed(color):
    return {"mode": "fixed", "fixedColor": color}


# Legacy has one colour and new another, on every panel that shows both.
BY_SIDE = [override("byRegexp", f"/^{side}/", color=fixed(color)) for side, color in SIDES.items()]


def panel(kind, title, description, unit, targets, *, w, h=7, thresholds=CALM, color=None, decimals=None, low=None, high=None, mappings=(), overrides=(), custom=None, options=None, transformations=()):
    defaults = {"unit": unit, "thresholds": {"mode": "absolute", "steps": thresholds}, "mappings": list(mappings), "custom": custom or {}}
    defaults |= {name: value for name, value in (("color", color), ("decimals", decimals), ("min", low), ("max", high)) if value is not None}
    return {
        "type": kind, "title": title, "description": description, "datasource": DATASOURCE, "id": zlib.crc32(title.encode()) % 1_000_000 + 1,
        "targets": [{"refId": chr(ord("A") + n), "datasource": DATASOURCE, **entry} for n, entry in enumerate(targets)],
        "fieldConfig": {"defaults": defaults, "overrides": list(overrides)}, "options": options or {}, "transformations": list(transformations), "gridPos": {"w": w, "h": h},
    }


def graph(title, description, unit, targets, *, side=None, difference=False, lines=False, stack=False, stairs=False, overrides=(), custom=None, low=0, **more):
    """Lines over time. `side` draws all of them in shades of that side's colour."""
    color = {"mode": "shades", "fixedColor": SIDES[side]} if side else fixed(DIFFERENCE) if difference else {"mode": "palette-classic"}
    drawn = {
        "drawStyle": "line", "lineWidth": 2, "fillOpacity": 25 if stack else 8, "showPoints": "never", "spanNulls": False, "axisSoftMin": 0,
        "lineInterpolation": "stepAfter" if stairs else "linear", "stacking": {"mode": "normal" if stack else "none", "group": "A"},
        "thresholdsStyle": {"mode": "line" if lines else "off"},
    }
    # With one side or the difference the panel's colour is set; all others colour what is named after a side.
    options = {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}, "tooltip": {"mode": "multi", "sort": "desc"}}
    by_side = [] if side or difference else BY_SIDE
    return panel("timeseries", title, description, unit, targets, color=color, overrides=[*by_side, *overrides], custom=drawn | (custom or {}), options=options, low=None if difference else low, **more)


def stat(title, description, unit, targets, *, h=4, graph=False, **more):
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "orientation": "auto", "textMode": "auto",
        "colorMode": "background", "graphMode": "area" if graph else "none", "justifyMode": "auto",
    }
    return panel("stat", title, description, unit, targets, h=h, options=options, color={"mode": "thresholds"}, **more)


def table(title, description, unit, targets, names, *, hidden=(), overrides=(), **more):
    """Instant queries side by side, joined by the labels they share. `names` says what the columns are called, in their order."""
    organize = {"id": "organize", "options": {"excludeByName": {name: True for name in ("Time", *hidden)}, "renameByName": names, "indexByName": {name: n for n, name in enumerate(names)}}}
    options = {"showHeader": True, "cellHeight": "sm", "footer": {"show": False}}
    return panel("table", title, description, unit, targets, overrides=overrides, custom={"align": "auto", "filterable": True}, options=options, transformations=[{"id": "merge", "options": {}}, organize], **more)


def timeline(title, description, targets, mappings, **more):
    options = {"mergeValues": True, "showValue": "auto", "alignValue": "left", "rowHeight": 0.8, "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False}, "tooltip": {"mode": "single"}}
    return panel("state-timeline", title, description, "none", targets, mappings=mappings, options=options, color={"mode": "thresholds"}, custom={"fillOpacity": 80, "lineWidth": 0}, **more)


def heatmap(title, description, expr, scheme, **more):
    options = {
        "calculate": False, "cellGap": 1, "color": {"mode": "scheme", "scheme": scheme, "steps": 64, "exponent": 0.5, "scale": "exponential"}, "yAxis": {"unit": "s", "axisPlacement": "left"},
        "rowsFrame": {"layout": "le"}, "filterValues": {"le": 1e-9}, "tooltip": {"mode": "single", "yHistogram": True}, "legend": {"show": True},
    }
    return panel("heatmap", title, description, "s", [target(expr, "{{le}}", kind="heatmap")], options=options, **more)


def gauges(title, description, unit, targets, **more):
    options = {"displayMode": "gradient", "orientation": "horizontal", "showUnfilled": True, "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
    return panel("bargauge", title, description, unit, targets, options=options, color={"mode": "thresholds"}, **more)


# -- dashboards

def variable(name, label, query, *, many=False):
    found = {"name": name, "label": label, "type": "query", "datasource": DATASOURCE, "query": {"query": query, "refId": name}, "definition": query, "refresh": 2, "sort": 1, "multi": many, "includeAll": many, "hide": 0, "options": []}
    return found | ({"allValue": ".+", "current": {"text": ["All"], "value": ["$__all"]}} if many else {"current": {}})


def annotation(name, color, expr, title, text=""):
    # The step is short, so that what happened stands where it happened; a change shows as long as the window of its query.
    return {"name": name, "enable": True, "hide": False, "iconColor": color, "datasource": DATASOURCE, "expr": expr, "step": "15s", "titleFormat": title, "textFormat": text, "tagKeys": "instance", "useValueForTime": False}


def place(rows):
    """Puts panels from left to right, row by row."""
    placed, y = [], 0
    for title, panels in rows:
        placed.append({"type": "row", "title": title, "id": zlib.crc32(f"row {title}".encode()) % 1_000_000 + 1, "collapsed": False, "panels": [], "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}})
        x, y, deepest = 0, y + 1, 0
        for one in panels:
            w, h = one["gridPos"]["w"], one["gridPos"]["h"]
            if x + w > 24:
                x, y, deepest = 0, y + deepest, 0
            placed.append(one | {"gridPos": {"x": x, "y": y, "w": w, "h": h}})
            x, deepest = x + w, max(deepest, h)
        y += deepest
    return placed


def dashboard(uid, title, description, rollout, annotations, links, rows):
    variables = [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "current": {}, "hide": 0, "regex": "", "refresh": 1, "multi": False, "includeAll": False, "options": []},
        variable("job", "Job", "label_values(cutover_build_info, job)"),
        variable("instance", "Instance", 'label_values(cutover_build_info{job=~"$job"}, instance)', many=True),
        rollout,
    ]
    return {
        "uid": uid, "title": title, "description": description, "tags": ["cutover"], "schemaVersion": SCHEMA_VERSION, "version": 1, "editable": True, "graphTooltip": 1, "refresh": "10s", "timezone": "browser",
        "time": {"from": "now-1h", "to": "now"}, "timepicker": {}, "fiscalYearStartMonth": 0, "liveNow": False, "weekStart": "",
        "templating": {"list": variables}, "annotations": {"list": annotations}, "links": links, "panels": place(rows),
    }


def link(title, uid):
    return {"title": title, "type": "link", "icon": "dashboard", "url": f"/d/{uid}", "keepTime": True, "includeVars": True, "targetBlank": False, "asDropdown": False, "tags": [], "tooltip": ""}


def annotations(chosen):
    return [
        annotation("Share changed", "blue", f'sum by (rollout) (changes(cutover_split_ratio{{{chosen},kind="effective"}}{OVER})) > 0', "{{rollout}}: the share in force changed"),
        annotation("Rolled back", "red", f"sum by (rollout, rule) (increase(cutover_rollbacks_total{{{chosen}}}{OVER})) > 0", "{{rollout}}: rolled back by {{rule}}"),
        annotation("Maintenance", "purple", f'max by (rollout, mode) (cutover_maintenance{{{chosen},mode!="off"}}) > 0', "{{rollout}}: maintenance {{mode}}"),
    ]


# -- what is asked more than once

def requests(chosen, side=None, by=""):
    side = f',backend="{side}"' if side else ""
    return f"sum{by} (rate(cutover_requests_total{{{chosen}{side}}}{OVER}))"


def failure_ratio(chosen, side, by=""):
    return f'sum{by} (rate(cutover_failures_total{{{chosen},backend="{side}"}}{OVER})) / ({requests(chosen, side, by)} > 0)'


def quantile(q, side):
    return f'histogram_quantile({q}, sum by (le) (rate(cutover_request_duration_seconds_bucket{{{ONE},backend="{side}"}}{OVER})))'


def recent(q, side):
    return f'max(cutover_latency_seconds{{{ONE},backend="{side}",quantile="{q}"}})'


def evidence(chosen, by):
    """How far the evidence has come, on the logarithmic scale on which it grows: 1 rolls back, 0 is a calm backend."""
    return f"max by ({by}) (cutover_guard_evidence_ratio{{{chosen}}})"


def pair(title, description, unit, queries, *, w=8, **more):
    """One panel for each side, with the same axes and words: queries take a side and give targets."""
    return [graph(f"{title}, {side}", description, unit, queries(side), side=side, w=w, **more) for side in SIDES]


ON_NEW = "A value on new that legacy does not show is new's own; on both it is what they share, such as a database."
NEAR = steps((None, GOOD), (0.75, WARN), (1, BAD))
YES_IS_BAD = states((0, "no", GOOD), (1, "yes", BAD))
NO_IS_BAD = states((0, "no", BAD), (1, "yes", GOOD))
ANY_IS_BAD = steps((None, GOOD), (1, BAD))
NONE_IS_BAD = steps((None, BAD), (1, GOOD))
NEARLY_FULL = steps((None, GOOD), (0.8, WARN), (0.95, BAD))


# -- all rollouts at a glance

def overview():
    by_rollout, failed = "by (rollout)", "Failures per request of this side. A failure is a 5xx, no connection, a timeout, a reset, a cut or broken answer; what clients cause is none. "
    glance = table(
        "Rollouts", "A line for each rollout and process. Look for: rolled back = yes; a share in force that is not the one the file asks for; evidence that comes near 100 %, where the guard rolls back. The scale of evidence is logarithmic: healthy traffic stays in the lower half. Click on a rollout for its own dashboard.", "none",
        [
            row_of(f'max by (rollout, instance) (cutover_split_ratio{{{MANY},kind="desired"}})'), row_of(f'max by (rollout, instance) (cutover_split_ratio{{{MANY},kind="effective"}})'),
            row_of(f"max by (rollout, instance) (cutover_guard_tripped{{{MANY}}})"), row_of(evidence(MANY, "rollout, instance")), row_of(f"max by (rollout, instance) (cutover_guard_shared_cause{{{MANY}}})"),
            row_of(f'max by (rollout, instance) (cutover_maintenance{{{MANY},mode!="off"}})'),
        ],
        {"rollout": "rollout", "instance": "instance", "Value #A": "share in the file", "Value #B": "share in force", "Value #C": "rolled back", "Value #D": "evidence", "Value #E": "both sides bad", "Value #F": "maintenance"},
        w=24, h=8, overrides=[
            override("byRegexp", "/^share/", unit="percentunit", decimals=1),
            override("byName", "evidence", unit="percentunit", decimals=0, min=0, max=1, thresholds={"mode": "absolute", "steps": NEAR}, custom__cellOptions={"type": "gauge", "mode": "basic"}),
            override("byRegexp", "/^(rolled back|both sides bad|maintenance)$/", mappings=YES_IS_BAD, thresholds={"mode": "absolute", "steps": ANY_IS_BAD}, custom__cellOptions={"type": "color-background"}),
            override("byName", "rollout", links=[{"title": "Open this rollout", "url": "/d/cutover-rollout?var-rollout=${__data.fields.rollout}&${job:queryparam}&${instance:queryparam}&${__url_time_range}"}]),
        ],
    )
    state = timeline(
        "Rolled back, over time", "Each rollout of each process: follows its file, or rolled back and latched at 0 %. A latch stays until somebody re-arms the rollout or raises its generation. Processes that differ send the same user to different sides.",
        [target(f"max by (rollout, instance) (cutover_guard_tripped{{{MANY}}})", "{{rollout}} on {{instance}}")], states((0, "follows the file", GOOD), (1, "rolled back", BAD)), w=12, h=7, thresholds=ANY_IS_BAD,
    )
    shares = graph("Share in force by rollout", "The share of users on new that is in force. Steps up are raises, a fall to 0 is a rollback. Lines of one rollout that differ by process mean that users change sides between them.", "percentunit",
        [target(f'max by (rollout, instance) (cutover_split_ratio{{{MANY},kind="effective"}})', "{{rollout}} on {{instance}}")], stairs=True, high=1, w=12)
    return dashboard("cutover-overview", "Cutover / overview", "All rollouts of all processes at a glance, and how the processes themselves are.", variable("rollout", "Rollout", f"label_values(cutover_split_ratio{{{CHOSEN}}}, rollout)", many=True), annotations(CHOSEN), [link("One rollout", "cutover-rollout")], [
        ("Rollouts", [glance, state, shares]),
        ("Traffic", [
            graph("Requests by rollout", "Requests per second that got an answer, or gave up on one, both sides together. A sudden fall before the proxy (DNS, load balancer, clients) shows here on all rollouts at once.", "reqps", [target(requests(MANY, by=f" {by_rollout}"), "{{rollout}}")], w=8, stack=True),
            graph("Failure ratio of legacy by rollout", failed + "Compare with the panel of new beside it: on both at once it is a shared cause.", "percentunit", [target(failure_ratio(MANY, "legacy", f" {by_rollout}"), "{{rollout}}")], side="legacy", w=8),
            graph("Failure ratio of new by rollout", failed + "Worse here than on legacy is what the guard looks for. Clients see less of it, since legacy answers what can be saved.", "percentunit", [target(failure_ratio(MANY, "new", f" {by_rollout}"), "{{rollout}}")], side="new", w=8),
            graph("Share of requests on new", "The part of the requests that new really gets. It differs from the share of users where heavy users are unevenly spread, or where lists, testers or anonymous requests weigh.", "percentunit",
                [target(f'{requests(MANY, "new", f" {by_rollout}")} / ({requests(MANY, by=f" {by_rollout}")} > 0)', "{{rollout}}")], w=8, high=1),
            graph("Requests of no rollout", "Requests that no rollout matches; they go to the default backend. If this rises after an edit, a match of the file no longer takes what it took.", "reqps", [target(f'sum by (code_class) (rate(cutover_requests_total{{{CHOSEN},rollout=""}}{OVER}))', "{{code_class}}")], w=8, stack=True),
            graph("Requests in flight", "Requests that have begun and not ended, WebSockets included. A side that climbs while its rate stays answers more slowly, or not at all.", "short", [target(f"sum by (backend) (cutover_inflight{{{MANY}}})", "{{backend}}")], w=8),
        ]),
        ("Backends", [
            graph("Healthy servers", "Servers of each backend that requests are sent to. 0: the other side serves, or clients get 503. Fewer than by the file: checks fail, the server gave no answers, or its name has no address.", "short", [target(f"min by (backend, instance) (cutover_backend_healthy_servers{{{CHOSEN}}})", "{{backend}} by {{instance}}"), target(f"max by (backend) (cutover_backend_servers{{{CHOSEN}}})", "{{backend}} by the file")], w=8, stairs=True, thresholds=NONE_IS_BAD),
            graph("Connections to backends", "Active: requests that are on a connection to a backend now. They follow the requests in flight; far more than usual means a slow backend. Idle: connections of the fast lane that wait for one.", "short", [target(f"sum by (backend, state) (cutover_upstream_connections{{{CHOSEN}}})", "{{backend}} {{state}}")], w=8),
            graph("Requests that are not plain", "Requests that the fast lane left to the proxy engine, by what is not plain about them: framing is a chunked upload, lasts an upgrade or a stream, backend one with TLS or HTTP/2 on either side of the rollout. They are served as well, at about twice the CPU; those of HTTP/2 are not counted here.", "reqps", [target(f"sum by (reason) (rate(cutover_lane_declined_total{{{CHOSEN}}}{OVER}))", "{{reason}}")], w=8),
            graph("Connections made to backends", "Attempts per second by what they got: a new connection, a kept one, or none. Mostly reused is healthy; many new ones cost handshakes; failed ones come before failures.", "ops", [target(f"sum by (backend, result) (rate(cutover_upstream_connects_total{{{CHOSEN}}}{OVER}))", "{{backend}} {{result}}")], w=8),
            graph("Requests refused", "Requests per second that were refused because of what they are, by the code in the error body. Each has a line in the access log with cutover.refused and a sentence. A rise after a release of a client or of a load balancer is a fault of theirs; bad_request_line on a port without TLS is often TLS.", "reqps", [target(f"sum by (reason) (rate(cutover_requests_refused_total{{{CHOSEN}}}{OVER}))", "{{reason}}")], w=8),
        ]),
        ("Saturation", [
            graph("Client connections", "Open client connections beside what is allowed (max_connections). At the limit new ones are closed at once. Lingering: closed by the proxy engine and read for up to two seconds, so that the last answer arrives; about 1,024 in a process is all there may be, and clients that do not stop.", "short", [
                target(f"sum by (instance, state) (cutover_connections{{{CHOSEN}}})", "{{state}}, {{instance}}"), target(f"max by (instance) (cutover_connections_limit{{{CHOSEN}}})", "limit, {{instance}}")], w=8, overrides=[override("byRegexp", "/^limit/", color=fixed("red"), custom__fillOpacity=0)]),
            graph("Connections refused", "Connections per second that were closed at once, because as many as allowed were open. Anything above 0 is users without service.", "cps", [target(f"sum by (instance) (rate(cutover_connections_refused_total{{{CHOSEN}}}{OVER}))", "{{instance}}")], w=8, thresholds=ANY_IS_BAD),
            graph("Open files", "Open file descriptors as a part of what the system allows. Each request needs two. Above 80 % raise LimitNOFILE.", "percentunit", [target(f"max by (instance) (process_open_fds{{{CHOSEN}}} / process_max_fds{{{CHOSEN}}})", "{{instance}}")], w=8, high=1, lines=True, thresholds=NEARLY_FULL),
            graph("Processor", "Processor cores in use. At the number of cores (--threads) latency rises on both sides alike.", "short", [target(f"sum by (instance) (rate(process_cpu_seconds_total{{{CHOSEN}}}{OVER}))", "{{instance}}")], w=6),
            graph("Memory", "Resident memory. It follows the connections that are open; what keeps rising at the same traffic is a leak: report it.", "bytes", [target(f"sum by (instance) (process_resident_memory_bytes{{{CHOSEN}}})", "{{instance}}")], w=6),
            graph("WebSockets by side", "Open WebSockets of all rollouts. After a rollback those on new are closed when drain_on_rollback has passed.", "short", [target(f"sum by (backend) (cutover_websockets{{{MANY}}})", "{{backend}}")], w=6),
            graph("Parked requests", "Requests that maintenance in mode hold has parked. At 10,000, or after 30 s each, they get 503.", "short", [target(f"sum by (instance) (cutover_held_requests{{{CHOSEN}}})", "{{instance}}")], w=6),
        ]),
        ("File and process", [
            stat("File in force", "Whether the file as it is now is the one in force. No: it has problems and the last good one stays; `cutover check` says which.", "none", [now(f"min by (instance) (cutover_config_last_reload_successful{{{CHOSEN}}})", "{{instance}}")], w=6, thresholds=NONE_IS_BAD, mappings=NO_IS_BAD),
            stat("Latches on disk", "Whether a rollback would survive a restart. No: the state directory cannot be written.", "none", [now(f"min by (instance) (cutover_latch_durable{{{CHOSEN}}})", "{{instance}}")], w=6, thresholds=NONE_IS_BAD, mappings=NO_IS_BAD),
            stat("Rollbacks", "Rollbacks in the time shown, by the guard and by people, over all rollouts.", "short", [now(f"sum(increase(cutover_rollbacks_total{{{MANY}}}[$__range]))")], w=6, decimals=0, thresholds=ANY_IS_BAD),
            stat("Log lines dropped", "Lines of the logs that were dropped in the time shown, because their reader was behind. Requests are never held up for the log.", "short", [now(f"sum(increase(cutover_log_dropped_total{{{CHOSEN}}}[$__range]))")], w=6, decimals=0, thresholds=steps((None, GOOD), (1, WARN))),
            stat("Spans", "Spans of sampled requests in the time shown: taken by the collector; dropped because the exporter was behind; failed because the collector did not take them. All 0 where the file has no [traces].", "short", [now(f"sum by (result) (increase(cutover_spans_total{{{CHOSEN}}}[$__range]))", "{{result}}")], w=24, h=3, decimals=0),
            table("Processes", "One line for each process: its version, the file that is in force by its digest, when that was read, and since when the process runs. Different digests or versions for longer than a deployment are a mistake.", "none",
                [row_of(f"max by (instance, version) (cutover_build_info{{{CHOSEN}}})"), row_of(f"max by (instance, digest) (cutover_config_info{{{CHOSEN}}})"), row_of(f"max by (instance) (cutover_config_last_reload_success_timestamp_seconds{{{CHOSEN}}}) * 1000"), row_of(f"max by (instance) (process_start_time_seconds{{{CHOSEN}}}) * 1000")],
                {"instance": "instance", "version": "version", "digest": "digest of the file", "Value #C": "file read", "Value #D": "running since"}, hidden=("Value #A", "Value #B"), w=16, h=6,
                overrides=[override("byRegexp", "/^(file read|running since)$/", unit="dateTimeAsIso")]),
            graph("Restarts", "How often each process was started in the last 15 minutes, upgrades included. Again and again: read its log.", "short", [target(f"changes(process_start_time_seconds{{{CHOSEN}}}[15m])", "{{instance}}")], w=8, h=6, stairs=True),
            gauges("Certificates expire in", "Time until each certificate in use expires. A new pair of files is used for the next handshake, without a restart.", "s", [now(f"min by (certificate) (cutover_certificate_expiry_timestamp_seconds{{{CHOSEN}}}) - time()", "{{certificate}}")], w=8, low=0, high=90 * 86400, thresholds=steps((None, BAD), (3 * 86400, WARN), (14 * 86400, GOOD))),
            stat("Certificate files in use", "Whether the files of each certificate as they are now are in use. No: they cannot be used, and the pair before them stays until it expires.", "none", [now(f"min by (certificate) (cutover_certificate_last_reload_successful{{{CHOSEN}}})", "{{certificate}}")], w=8, h=7, thresholds=NONE_IS_BAD, mappings=NO_IS_BAD),
            graph("Ended by the proxy", "WebSockets and streams per second that were still on new some time after a rollback, or open at the end of a stop, and were closed.", "ops", [target(f"sum by (kind) (rate(cutover_drained_total{{{CHOSEN}}}{OVER}))", "{{kind}}")], w=8),
        ]),
    ])


# -- one rollout

def rollout():
    duration = f"rate(cutover_request_duration_seconds_bucket{{{ONE},backend="
    quantiles = (0.5, 0.95, 0.99)
    named = {0.5: "p50", 0.95: "p95", 0.99: "p99"}

    def percent(title, description, expr, **more):
        return stat(title, description, "percentunit", [now(expr)], w=4, decimals=2, **more)

    def classes(side):
        return [target(f'sum by (code_class) (rate(cutover_requests_total{{{ONE},backend="{side}"}}{OVER}))', "{{code_class}}")]

    def kinds(side):
        return [target(f'sum by (kind) (rate(cutover_failures_total{{{ONE},backend="{side}"}}{OVER}))', "{{kind}}")]

    def client_errors(side):
        return f'sum(rate(cutover_requests_total{{{ONE},backend="{side}",code_class="4xx"}}{OVER})) / ({requests(ONE, side)} > 0)'

    request_pair = pair("Requests", "Requests per second that were decided for this side. The sum of both is the traffic of the rollout.", "reqps", lambda side: [target(requests(ONE, side), side)])
    failure_pair = pair("Failure ratio", "Failures per request: 5xx, no connection, timeouts, resets, cut and broken answers. " + ON_NEW + " Clients see fewer of new's than stand here: see Failovers.", "percentunit", lambda side: [target(failure_ratio(ONE, side), side)])
    error_pair = pair("4xx ratio", "4xx answers per request. Broken routes, lost sessions and missing files of new show here first. " + ON_NEW, "percentunit", lambda side: [target(client_errors(side), side)])
    latency_pair = pair("Latency", "Time from the request to the response header, from the histogram over the last minutes. Between two bounds of the histogram the value is interpolated; the guard's own limits are bounds, so it is exact there. " + ON_NEW, "s", lambda side: [target(quantile(q, side), f"{side} {named[q]}") for q in quantiles])
    recent_pair = pair("Latency of the last 60 s", "The proxy's own quantiles of the last 60 s, to two digits, as `cutover status` shows them; of the slowest process where there are several. No line: no request in that time.", "s", lambda side: [target(recent(q, side), f"{side} {named[q]}") for q in quantiles])
    kind_pair = pair("Failures by kind", "Failures per second: connect (no connection), timeout, reset, status (5xx), truncated (the answer broke off), protocol (not HTTP). The kind says where to look: network, load or program.", "reqps", kinds, w=12, stack=True)
    class_pair = pair("Answers by class", "Answers per second by the class of the status, as clients got them; none: no answer, because the client had gone or the connection broke.", "reqps", classes, w=12, stack=True)

    def difference(title, description, unit, targets):
        return graph(title, description, unit, targets, difference=True, w=8)

    return dashboard("cutover-rollout", "Cutover / rollout", "One rollout: legacy on the left, new beside it, and what lies between them on the right.", variable("rollout", "Rollout", f"label_values(cutover_split_ratio{{{CHOSEN}}}, rollout)"), annotations(ONE), [link("All rollouts", "cutover-overview")], [
        ("Now", [
            stat("State", "Follows the file, or rolled back: latched at 0 % until somebody re-arms it or raises its generation. With several processes, the worst of them.", "none", [now(f"max(cutover_guard_tripped{{{ONE}}})")], w=4, thresholds=ANY_IS_BAD, mappings=states((0, "follows the file", GOOD), (1, "rolled back", BAD))),
            percent("Share in force", "The share of users on new now; the lowest where processes differ.", f'min(cutover_split_ratio{{{ONE},kind="effective"}})'),
            percent("Failure ratio of new", "Failures per request of new, the last minutes. The guard's default limit is 1 %.", f'{failure_ratio(ONE, "new")} or vector(0)', thresholds=steps((None, GOOD), (0.005, WARN), (0.01, BAD)), graph=True),
            percent("Failure ratio of legacy", "Failures per request of legacy, the last minutes: what new is compared with.", f'{failure_ratio(ONE, "legacy")} or vector(0)', thresholds=steps((None, GOOD), (0.005, WARN), (0.01, BAD)), graph=True),
            percent("Evidence of the worst rule", "How far the rule that is nearest to a rollback has come, on a logarithmic scale: at 100 % it rolls back. Healthy traffic stays in the lower half.", f'max({evidence(ONE, "rule")})', thresholds=NEAR),
            stat("Both sides bad", "Yes while legacy is bad, too, so that new is not blamed and raises are frozen.", "none", [now(f"max(cutover_guard_shared_cause{{{ONE}}})")], w=4, thresholds=ANY_IS_BAD, mappings=YES_IS_BAD),
        ]),
        ("The ramp and the guard", [
            graph("Share of users on new", "What the file asks for, what is in force, and the part of the requests that new really gets. In force below the file: rolled back. Lines across all panels mark each change of the share and each rollback.", "percentunit", [
                target(f'max(cutover_split_ratio{{{ONE},kind="desired"}})', "in the file"), target(f'min(cutover_split_ratio{{{ONE},kind="effective"}})', "in force"), target(f'{requests(ONE, "new")} / ({requests(ONE)} > 0)', "of requests")],
                w=12, h=9, high=1, stairs=True, overrides=[override("byName", "in the file", color=fixed(QUIET), custom__lineStyle={"fill": "dash", "dash": [6, 6]}, custom__fillOpacity=0), override("byName", "in force", color=fixed(SIDES["new"]), custom__lineWidth=3), override("byName", "of requests", color=fixed("green"), custom__lineWidth=1, custom__fillOpacity=0, custom__lineInterpolation="linear")]),
            graph("Evidence by rule", "How far each rule has come towards a rollback, on the logarithmic scale on which evidence grows; at 100 % it rolls back. Healthy traffic wanders at the bottom; a line that climbs steadily names what is wrong before anybody is rolled back.", "percentunit", [target(evidence(ONE, "rule"), "{{rule}}")], w=12, h=9, lines=True, thresholds=NEAR, custom={"axisSoftMax": 1}),
            timeline("Phase", "The phase that each process is in: holding follows the file, rolled_back is latched at 0 %.", [target(f'max by (instance) (cutover_phase{{{ONE},phase="rolled_back"}})', "{{instance}}")], states((0, "holding", GOOD), (1, "rolled_back", BAD)), w=6, h=5, thresholds=ANY_IS_BAD),
            timeline("Shared cause", "While both sides are bad at once raises are frozen, since the fault is not new's alone: look at what both use.", [target(f"max by (instance) (cutover_guard_shared_cause{{{ONE}}})", "{{instance}}")], states((0, "no", GOOD), (1, "both are bad", BAD)), w=5, h=5, thresholds=ANY_IS_BAD),
            timeline("No refuge", "While new is worse and legacy does not answer nobody is moved and raises are frozen; spilled is after a rollback, while users are on new because legacy does not answer.", [target(f"max by (instance) (cutover_guard_no_refuge{{{ONE}}})", "{{instance}}"), target(f"max by (instance) (cutover_guard_spilled{{{ONE}}})", "{{instance}} spilled")], states((0, "no", GOOD), (1, "yes", BAD)), w=5, h=5, thresholds=ANY_IS_BAD),
            gauges("Rollbacks by rule", "Which rule rolled back in the time shown; manual was a person, state a start without a readable state.", "short", [now(f"sum by (rule) (increase(cutover_rollbacks_total{{{ONE}}}[$__range]))", "{{rule}}")], w=8, h=5, low=0, decimals=0, thresholds=ANY_IS_BAD),
        ]),
        ("Legacy, new, and the difference", [
            *request_pair, difference("Requests, new as a part of all", "The part of the requests that new gets. Compare it with the share of users in force.", "percentunit", [target(f'{requests(ONE, "new")} / ({requests(ONE)} > 0)', "new as a part of all")]),
            *failure_pair, difference("Failure ratio, new minus legacy", "Above 0 new fails more often than legacy in the same minutes.", "percentunit", [target(f'({failure_ratio(ONE, "new")}) - ({failure_ratio(ONE, "legacy")})', "new minus legacy")]),
            *error_pair, difference("4xx ratio, new minus legacy", "Above 0 new refuses more requests than legacy in the same minutes: often a route or a session that new does not know.", "percentunit", [target(f'({client_errors("new")}) - ({client_errors("legacy")})', "new minus legacy")]),
            *latency_pair, difference("Latency, new minus legacy", "Above 0 new is slower at this quantile. The guard tolerates 1.5 times legacy's, and at least 2 ms.", "s", [target(f"{quantile(q, 'new')} - {quantile(q, 'legacy')}", f"{named[q]}, new minus legacy") for q in (0.5, 0.99)]),
            *recent_pair, difference("Latency of the last 60 s, new minus legacy", "The same from the proxy's own quantiles of the last 60 s.", "s", [target(f"{recent(q, 'new')} - {recent(q, 'legacy')}", f"{named[q]}, new minus legacy") for q in (0.5, 0.99)]),
            *(heatmap(f"Latency heatmap, {side}", "Where the requests lie, bucket by bucket: two bands are two kinds of requests or a slow part of the servers, which quantiles hide. " + ON_NEW, f'sum by (le) ({duration}"{side}"}}{OVER}))', scheme, w=12, h=8) for side, scheme in zip(SIDES, ("Blues", "Oranges"))),
            *kind_pair, *class_pair,
        ]),
        ("What the proxy did", [
            graph("Failovers", "Requests per second that failed on new and could be asked again: saved by legacy, failed there, too, or denied, because a fifth of new's requests had been saved already. Clients see failed and denied.", "reqps", [target(f"sum by (result) (rate(cutover_failovers_total{{{ONE}}}{OVER}))", "{{result}}")], w=8, stack=True, overrides=[override("byName", name, color=fixed(color)) for name, color in (("saved", GOOD), ("failed", BAD), ("denied", WARN))]),
            graph("Decisions by reason", "Requests per second by what decided their side. bucket is the hash; rolled_back sends all to legacy; health means that the side of choice has no server.", "reqps", [target(f"sum by (reason) (rate(cutover_decisions_total{{{ONE}}}{OVER}))", "{{reason}}")], w=8, stack=True),
            graph("In flight by side", "Requests that have begun and not ended, WebSockets included. New climbing at the same rate of requests: it hangs.", "short", [target(f"sum by (backend) (cutover_inflight{{{ONE}}})", "{{backend}}")], w=8),
            timeline("Maintenance mode", "What is kept out: read-only refuses writers, hold parks, full refuses everybody. The stricter of the rollout's own and that of all.", [target(f'sum by (instance) (cutover_maintenance{{{ONE},mode="read-only"}}) + 2 * sum by (instance) (cutover_maintenance{{{ONE},mode="hold"}}) + 3 * sum by (instance) (cutover_maintenance{{{ONE},mode="full"}})', "{{instance}}")], states((0, "off", GOOD), (1, "read-only", WARN), (2, "hold", WARN), (3, "full", BAD)), w=8, thresholds=ANY_IS_BAD),
            graph("Requests kept out", "Requests per second that maintenance concerned: refused with 503, held, released to a backend, expired with 503, left by their client.", "reqps", [target(f"sum by (result) (rate(cutover_maintenance_requests_total{{{ONE}}}{OVER}))", "{{result}}")], w=8),
            graph("Parked and WebSockets", "Requests that are parked now, and open WebSockets of each side. WebSockets on new go when drain_on_rollback has passed after a rollback.", "short", [target(f"sum(cutover_held_requests{{{ONE}}})", "parked"), target(f"sum by (backend) (cutover_websockets{{{ONE}}})", "{{backend}} WebSockets")], w=8),
        ]),
    ])


# -- writing

def linked(text):
    """A rules file with each runbook_url leading to the section of its alert."""
    return re.sub(r'(runbook_url: )"?[^\s"#]*#([a-z]+)"?', rf"\1{RUNBOOK}#\2", text)


def generated():
    files = {HERE / "grafana" / f"{made['uid']}.json": json.dumps(made, indent=2, ensure_ascii=False) + "\n" for made in (overview(), rollout())}
    return files | {path: linked(path.read_text()) for path in (HERE / "prometheus/alerts.yml", HERE / "prometheus/tests.yml")}


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--check", action="store_true", help="write nothing, exit with 1 if a file is not as it would be written")
    check = arguments.parse_args().check
    stale = {path: text for path, text in generated().items() if not path.exists() or path.read_text() != text}
    for path, text in stale.items():
        print(f"{path.relative_to(HERE)}: " + ("not as build.py writes it" if check else "written"), file=sys.stderr if check else sys.stdout)
        if not check:
            path.write_text(text)
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
