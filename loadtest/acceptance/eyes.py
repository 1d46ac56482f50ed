#!/usr/bin/env python3
"""What people on call see, with a real Prometheus: dashboards, rules, alerts and runbook against a proxy that is led through a breach.

    loadtest/acceptance/eyes.py [--cutover PATH] [--short] [--pictures FOLDER] [--json]

Checks, each printed with its figures; the exit code is 1 if any does not hold:

  lint       the dashboards' JSON, the names and labels in every query against docs/METRICS.md, alerts against docs/RUNBOOK.md, and that build.py writes what is committed
  rules      promtool: the configuration, the rules, and the tests of every alert
  story      a real Prometheus scrapes a real proxy: 10 %, 50 %, new breaks, the rollback, a broken file, maintenance, both sides bad, a restart
  numbers    PromQL gives the numbers that the guard and the API have, to the request
  panels     every query of both dashboards, every annotation, variable and rule: no error, never empty, and something moves on every panel
  series     10,000 users and 1,000 paths add no series

`--short` is what `make test` runs: the same story, told faster. `--pictures` draws the rollout dashboard from what Prometheus has of the story (matplotlib, in an environment of its own below target/).
Everything listens on free loopback ports and is ended by pid.
"""
import argparse
import http.client
import json
import math
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

# Importing leaves no files in the source tree.
sys.dont_write_bytecode = True
from acceptance import HERE, PATIENCE, ROOT, free_port, until  # noqa: E402
from edge import environment, is_open, program  # noqa: E402

sys.path.insert(0, str(ROOT / "dashboards"))
import build  # noqa: E402

BOARDS = {name: ROOT / f"dashboards/grafana/cutover-{name}.json" for name in ("overview", "rollout")}
RULES, ALERTS, TESTS, CONFIG = (ROOT / f"dashboards/prometheus/{name}.yml" for name in ("rules", "alerts", "tests", "prometheus"))
RUNBOOK, METRICS = ROOT / "docs/RUNBOOK.md", ROOT / "docs/METRICS.md"
DRAWN = ROOT / "target/pictures-venv", HERE / "requirements-pictures.txt"
TOOLS = ("prometheus", "promtool", "openssl")

PANELS = {"timeseries", "stat", "table", "heatmap", "bargauge", "state-timeline", "text", "row"}
# Metrics of docs/METRICS.md that neither a panel nor an alert uses, on purpose: one scale of evidence is enough on a panel, and these are for rules that users wrote before there was it.
UNUSED = {"cutover_guard_evidence_log10", "cutover_guard_threshold_log10"}
PROCESS = {f"process_{name}" for name in ("cpu_seconds_total", "open_fds", "max_fds", "virtual_memory_bytes", "resident_memory_bytes", "start_time_seconds", "threads")}
# Of the scrape itself.
SCRAPE = {"up", "ALERTS"}
# What Grafana fills in by itself.
BUILT_IN = {"__all", "__rate_interval", "__range", "__interval", "__data", "__url_time_range"}
WINDOW = "10s"
# What must not have fired in the story, since nothing of the kind happened.
NEVER = {"CutoverDown", "CutoverNoHealthyServers", "CutoverBackendDegraded", "CutoverLatchNotDurable", "CutoverFileDescriptors", "CutoverCertificateRejected", "CutoverMaintenanceLong", "CutoverSplitDisagrees", "CutoverNoTrafficOnNew"}
# What must have; CutoverSharedCause needs 15 s of it, for which only the long story has time.
FIRED = {"CutoverRolledBack", "CutoverRestarted", "CutoverConnectionsRefused"}
# Panels on which zero is what this story has: legacy is never away, its requests are plain, the proxy keeps 16,384 lines for a slow reader of its log, more than are written here, and spans are tested with a collector of their own.
AT_REST = {"Log lines dropped", "No refuge", "Requests refused", "Requests that are not plain", "Spans"}


# -- reading what is shipped

def documented():
    """The metrics of docs/METRICS.md: name to type and labels."""
    rows = re.findall(r"^\| `(cutover_\w+)` \| (\w+) \| ([^|]*)\|", METRICS.read_text(), re.M)
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def blocks(text, key):
    """The entries of a rules file that begin with `- key: NAME`, as (name, text). The files are ours and plain, so that no YAML library is needed."""
    parts = re.split(rf"^ *- {key}: ", text, flags=re.M)[1:]
    return [(part.split(None, 1)[0], part) for part in (re.split(r"^ *- (?:alert|record|name): ", part, flags=re.M)[0] for part in parts)]


def metrics_in(expr):
    """The metrics of a PromQL expression, each with the labels its selector asks for."""
    bare = re.sub(r'"[^"]*"', '""', expr)
    bare = re.sub(r"\b(by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    bare = re.sub(r"\[[^\]]*\]", " ", bare)
    words = re.finditer(r"(?<![\w.])([a-zA-Z_:][\w:]*)\s*(\(|\{([^}]*)\})?", re.sub(r"\b(and|or|unless|bool|by|on|without|ignoring|group_left|group_right)\b", " ", bare))
    return [(word[1], set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", word[3] or ""))) for word in words if word[2] != "("]


def grouped_by(expr):
    return {label for found in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expr) for label in re.findall(r"\w+", found)}


def base(name, known):
    """A metric without the suffix that its type adds."""
    stem = re.sub(r"_(bucket|sum|count)$", "", name)
    return stem if name not in known and known.get(stem, ("",))[0] in ("histogram", "summary") else name


def strings(value):
    """All strings in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)


def queries(board):
    """(what, kind, query, legend) of everything in a dashboard that asks Prometheus."""
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], "instant" if target["instant"] else "range", target["expr"], target["legendFormat"]
    for note in board["annotations"]["list"]:
        yield f"annotation {note['name']}", "range", note["expr"], note["titleFormat"]


# -- lint

def faults_of_board(board):
    variables = {variable["name"] for variable in board["templating"]["list"]}
    ids, seen = set(), []
    for panel in board["panels"]:
        title = panel["title"]
        if panel["type"] not in PANELS:
            yield f"{title}: panel type {panel['type']}"
        if panel["id"] in ids:
            yield f"{title}: id {panel['id']} twice"
        ids.add(panel["id"])
        place = panel["gridPos"]
        x, y, w, h = (place[key] for key in "xywh")
        if x < 0 or x + w > 24 or w < 1 or h < 1:
            yield f"{title}: outside of the grid"
        yield from (f"{title}: lies over {other}" for other, (ox, oy, ow, oh) in seen if x < ox + ow and ox < x + w and y < oy + oh and oy < y + h)
        seen.append((title, (x, y, w, h)))
        if panel["type"] in ("row", "text"):
            continue
        defaults = panel["fieldConfig"]["defaults"]
        yield from (f"{title}: no {key}" for key, value in (("title", title), ("description", panel.get("description")), ("unit", defaults.get("unit")), ("thresholds", defaults.get("thresholds")), ("queries", panel["targets"])) if not value)
        if any(source != build.DATASOURCE for source in (panel["datasource"], *(target["datasource"] for target in panel["targets"]))):
            yield f"{title}: a datasource that is not the variable"
        many = len(panel["targets"]) > 1
        yield from (f"{title}: a query without a legend" for target in panel["targets"] if not target["legendFormat"] and (target["range"] or many) and target["format"] != "table")
        # A side has one colour, everywhere.
        for side, color in build.SIDES.items():
            if panel["type"] != "timeseries":
                continue
            overrides = [change["value"]["fixedColor"] for rule in panel["fieldConfig"]["overrides"] if rule["matcher"]["options"] == f"/^{side}/" for change in rule["properties"] if change["id"] == "color"]
            if title.endswith(f", {side}") and defaults["color"].get("fixedColor") != color or overrides not in ([], [color]):
                yield f"{title}: not in the colour of {side}"
            if any("{{backend}}" in target["legendFormat"] for target in panel["targets"]) and overrides != [color]:
                yield f"{title}: shows sides without their colours"
    titles = [panel["title"] for panel in board["panels"] if panel["type"] != "row"]
    yield from (f"{title}: twice" for title in {title for title in titles if titles.count(title) > 1})
    used = {name for text in strings(board) for name in re.findall(r"\$\{?(\w+)", text)} - BUILT_IN
    yield from (f"${name} is used and not declared" for name in used - variables)
    yield from (f"${name} is declared and not used" for name in variables - used)
    if not 39 <= board["schemaVersion"] <= 42:
        yield f"schemaVersion {board['schemaVersion']}"
    others = {f"/d/{path.stem}" for path in BOARDS.values()}
    yield from (f"link to {url}" for url in (text for text in strings(board) if text.startswith("/d/")) if url.split("?")[0] not in others)


def faults_of_query(expr, known, recorded):
    """Names and labels that nothing has."""
    more = set()
    for name, labels in metrics_in(expr):
        if name in PROCESS | SCRAPE or name in recorded:
            more |= {"alertname", "alertstate"} | recorded.get(name, set())
            continue
        stem = base(name, known)
        if stem not in known:
            yield f"{name} is not in docs/METRICS.md"
            more |= {"backend", "state", "result"}
            continue
        kind, own = known[stem]
        own = own | {"job", "instance"} | {"histogram": {"le"}, "summary": {"quantile"}}.get(kind, set())
        yield from (f"{name} has no label {label}" for label in labels - own)
        more |= own
    yield from (f"no metric of the query has the label {label}" for label in grouped_by(expr) - more - {"job", "instance"})


def check_lint(report):
    known, boards = documented(), {name: json.loads(path.read_text()) for name, path in BOARDS.items()}
    recorded = {name: set(re.findall(r"[a-z]+", name.split(":")[0])) for name, _ in blocks(RULES.read_text(), "record")}
    expressions = [(name, expression(text)) for path, key in ((RULES, "record"), (ALERTS, "alert")) for name, text in blocks(path.read_text(), key)]
    for name, board in boards.items():
        faults = list(faults_of_board(board))
        panels = sum(panel["type"] != "row" for panel in board["panels"])
        report(f"{name} dashboard", not faults, "; ".join(faults) or f"{panels} panels: known types, own ids and places, each with title, description, unit and thresholds; variables declared and used")
    asked = [(what, expr) for board in boards.values() for what, _, expr, _ in queries(board)] + expressions
    faults = [f"{what}: {fault}" for what, expr in asked for fault in faults_of_query(expr, known, recorded)]
    report("names in queries", not faults, "; ".join(faults) or f"{len(asked)} queries, every metric and label is in docs/METRICS.md, of the process, or recorded")
    used = {base(name, known) for _, expr in asked for name, _ in metrics_in(expr)}
    missing, stale = set(known) - used - UNUSED, UNUSED & used | UNUSED - set(known)
    report("metrics used", not missing and not stale, f"of no use: {sorted(missing)}; wrongly listed as unused: {sorted(stale)}" if missing | stale else f"all {len(known)} of docs/METRICS.md are on a panel or in an alert")
    done = subprocess.run([sys.executable, str(ROOT / "dashboards/build.py"), "--check"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE)
    report("build.py --check", done.returncode == 0, done.stderr.strip() or "what is committed is what build.py writes")
    check_runbook(report, boards)


def expression(text):
    """The PromQL of a rule: `expr:` on one line, or the lines below `expr: |`."""
    found = re.search(r"^( *)expr: (\|\n(?:\1 +.*\n)+|.*)", text, re.M)
    return found[2].lstrip("|").strip()


def check_runbook(report, boards):
    """Alerts, their tests, the runbook and the names in it are in step."""
    text, faults = RUNBOOK.read_text(), []
    alerts, tests = blocks(ALERTS.read_text(), "alert"), TESTS.read_text()
    names = {name for name, _ in alerts}
    sections = re.findall(r"^## (Cutover\w+)$", text, re.M)
    faults += [f"{name} has no section in docs/RUNBOOK.md" for name in sorted(names - set(sections))] + [f"section {name} belongs to no alert" for name in sorted(set(sections) - names)]
    for name, body in alerts:
        wanted = {"severity": r"severity: (critical|warning|info)\}", "summary": r"summary: \"", "description": r"description: \"", "runbook_url to its section": rf"runbook_url: {re.escape(build.RUNBOOK)}#{name.lower()}\n"}
        faults += [f"{name}: no {what}" for what, pattern in wanted.items() if not re.search(pattern, body)]
        firing = re.findall(rf"alertname: {name}\n +eval_time: \S+\n +exp_alerts:\n", tests)
        quiet = re.findall(rf"alertname: {name}, eval_time: \S+, exp_alerts: \[\]", tests)
        faults += [f"{name}: no test in which it {what}" for what, found in (("fires", firing), ("is quiet", quiet)) if not found]
    titles = {panel["title"] for board in boards.values() for panel in board["panels"]}
    # A panel is named in bold, a command in a block of the shell, a metric in code.
    faults += [f"no panel is called {name}" for name in re.findall(r"\*\*([^*]+)\*\*", text) if name not in titles]
    known = documented()
    faults += [f"no metric is called {name}" for name in set(re.findall(r"`(cutover_\w+)`", text)) if name not in known]
    report("runbook", not faults, "; ".join(faults) or f"{len(names)} alerts, each with its section, severity, texts, and tests that it fires and is quiet; every panel and metric named there exists")


def commands_of_runbook():
    """The distinct commands of ours that the runbook types, as words. What is around them in a line is left out, and never run."""
    lines = [line for block in re.findall(r"```sh\n(.*?)```", RUNBOOK.read_text(), re.S) for line in block.splitlines()]
    typed = {tuple(shlex.split(part, comments=True)) for line in lines for part in re.split(r"&&|\||;", line) if part.strip().startswith("cutover ")}
    return sorted(words[1:] for words in typed)


# -- rules

def check_rules(report):
    for what, arguments in (("promtool check config", ["check", "config", CONFIG]), ("promtool check rules", ["check", "rules", "--lint-fatal", RULES, ALERTS]), ("promtool test rules", ["test", "rules", TESTS])):
        done = subprocess.run([program("promtool"), *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        counted = {"check rules": f"{len(blocks(RULES.read_text(), 'record'))} recording rules, {len(blocks(ALERTS.read_text(), 'alert'))} alerts", "test rules": f"{TESTS.read_text().count('input_series:')} cases"}
        report(what, done.returncode == 0, (done.stdout + done.stderr)[-1500:] if done.returncode else counted.get(what.split(" ", 1)[1], "valid"))


def check_files(options, report):
    """The files for a container: as far as they can be looked at without one."""
    done = subprocess.run([options.cutover, "check", str(ROOT / "dashboards/cutover.toml")], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE)
    report("cutover check dashboards/cutover.toml", done.returncode == 0, done.stderr.strip() or "valid")
    # With an address without a listener: mistakes in the words show before any request is made.
    nobody, faults, commands = os.environ | {"CUTOVER_ADMIN": f"http://127.0.0.1:{free_port()}"}, [], commands_of_runbook()
    for words in commands:
        said = subprocess.run([options.cutover, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, env=nobody, cwd="/").stderr
        if "Usage:" in said or "For more information" in said:
            faults.append(f"cutover {shlex.join(words)}: {said.strip().splitlines()[0]}")
    report("commands of the runbook", commands and not faults, "; ".join(faults) or f"{len(commands)} commands, all of them understood")
    python, why = environment()
    plain = [*(ROOT / "dashboards").glob("*.yaml"), *(ROOT / "dashboards").glob("**/*.yml")]
    if not python:
        report.skip("YAML", f"its Python package cannot be installed: {why}")
        return
    script = "import sys, yaml\nfor path in sys.argv[1:]: assert yaml.safe_load(open(path)), path\nfor name, one in yaml.safe_load(open(sys.argv[1]))['services'].items(): assert ':' in one['image'] and not one['image'].endswith(':latest'), name"
    done = subprocess.run([python, "-c", script, *map(str, plain)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE)
    report("YAML", done.returncode == 0, done.stderr[-500:] or f"{len(plain)} files can be read, every image has a version")
    compose = subprocess.run(["docker", "compose", "version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE) if shutil.which("docker") else None
    if not compose or compose.returncode:
        report.skip("docker compose config", "no docker compose here")
        return
    done = subprocess.run(["docker", "compose", "-f", str(ROOT / "dashboards/compose.yaml"), "config", "--quiet"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE)
    report("docker compose config", done.returncode == 0, done.stderr.strip() or "valid")


# -- the story

class WebSockets:
    """A backend that takes WebSockets and lets them rest. The gauge is what is looked at, not the frames."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port, self.clients = self.listener.getsockname()[1], []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    @staticmethod
    def serve(connection):
        import base64
        import hashlib
        try:
            with connection:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += connection.recv(4096) or b"\r\n\r\n"
                key = re.search(rb"(?i)sec-websocket-key: *(\S+)", head)
                if not key:
                    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                    return
                accept = base64.b64encode(hashlib.sha1(key[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
                connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: " + accept + b"\r\n\r\n")
                while connection.recv(4096):
                    pass
        except OSError:
            pass

    def open(self, port, count):
        for number in range(count):
            client = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
            client.sendall(b"GET /sockets HTTP/1.1\r\nhost: shop.example\r\nx-user-id: user-%d\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n" % number)
            if b" 101 " not in client.recv(4096).split(b"\r\n")[0]:
                raise SystemExit("a WebSocket was not opened")
            self.clients.append(client)

    def end(self):
        for one in (*self.clients, self.listener):
            one.close()


class Stage:
    """A folder, two sample backends, a proxy, a Prometheus, and who sends requests."""

    def __init__(self, options):
        self.options = options
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="cutover-eyes-"))
        self.logs = open(self.directory / "log", "ab")
        self.processes, self.process, self.sockets = [], None, WebSockets()
        self.http_port, self.https_port, self.admin_port, self.prometheus_port = (free_port() for _ in range(4))
        self.instance = f"127.0.0.1:{self.admin_port}"

    def set_up(self):
        """Starts everything but the requests. What has started is ended by `end`, also when something here fails."""
        self.backends = {name: self.backend(name, latency) for name, latency in (("legacy", "12ms"), ("new", "12ms"))}
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-keyout", "site.key", "-out", "site.pem", "-days", "30", "-subj", "/CN=shop.example"], check=True, capture_output=True, cwd=self.directory, timeout=PATIENCE)
        self.file = self.directory / "cutover.toml"
        servers = {side: f'servers = ["127.0.0.1:{port}"]' for side, port in self.backends.items()}
        self.file.write_text(f"""[listen]
http = ["127.0.0.1:{self.http_port}"]
https = ["127.0.0.1:{self.https_port}"]
certificates = [{{ cert = "site.pem", key = "site.key" }}]
max_connections = 200
[admin]
address = "127.0.0.1:{self.admin_port}"
[state]
directory = "state"
[backend.legacy]
{servers["legacy"]}
[backend.new]
{servers["new"]}
[backend.sockets]
servers = ["127.0.0.1:{self.sockets.port}"]
[backend.sockets-new]
servers = ["127.0.0.1:{self.sockets.port}"]

[[rollout]]
id = "sockets"
match = {{ path = "/sockets" }}
percent = 100
key = ["header:x-user-id"]
legacy = "sockets"
new = "sockets-new"
drain_on_rollback = "1s"

[[rollout]]
id = "exact"
match = {{ path = "/exact" }}
percent = 100
key = ["header:x-user-id"]
[rollout.guard]
mode = "threshold"
dry_run = true
window = "5m"
min_requests = 100
latency = {{ p95 = "50ms" }}

[[rollout]]
id = "search"
match = {{ path = "/search" }}
percent = 50
key = ["header:x-user-id"]

[[rollout]]
id = "checkout"
match = {{ path = "/checkout" }}
percent = 0
key = ["header:x-user-id"]
[rollout.guard]
latency = {{ p99 = "900ms" }}
""")
        self.start()
        self.watch()

    def watch(self):
        """The Prometheus of dashboards/prometheus/prometheus.yml, but every second and with our addresses."""
        config = CONFIG.read_text()
        for old, new in (("interval: 5s", "interval: 1s"), ('"cutover:9090"', f'"{self.instance}"'), ("- rules.yml", f"- {RULES}"), ("- alerts.yml", f"- {ALERTS}")):
            if old not in config:
                raise SystemExit(f"{CONFIG}: {old} is not in it")
            config = config.replace(old, new)
        (self.directory / "prometheus.yml").write_text(config)
        self.spawn([program("prometheus"), f"--config.file={self.directory}/prometheus.yml", f"--storage.tsdb.path={self.directory}/tsdb", f"--web.listen-address=127.0.0.1:{self.prometheus_port}", "--log.level=warn"])
        until("Prometheus", lambda: is_open(self.prometheus_port) and self.value(f'up{{instance="{self.instance}"}}') == 1, 0.1)
        self.began = time.time()

    def spawn(self, command, **more):
        process = subprocess.Popen([*map(str, command)], stdin=subprocess.DEVNULL, stderr=self.logs, **({"stdout": self.logs} | more))
        self.processes.append(process)
        return process

    def backend(self, name, latency):
        process = self.spawn([self.options.loadtest, "backend", "--name", name, "--latency", latency, "--error-rate", "0.2%", "--seed", "1" if name == "new" else "2"], stdout=subprocess.PIPE, text=True)
        return int(process.stdout.readline().rsplit(":", 1)[1])

    def start(self):
        self.process = self.spawn([self.options.cutover, "run", "-c", self.file], cwd=self.directory)
        until("the proxy", lambda: self.process.poll() is not None or (is_open(self.admin_port) and is_open(self.http_port)), 0.01)
        if self.process.poll() is not None:
            raise SystemExit((self.directory / "log").read_text()[-3000:])

    def load(self, path, rate, users=2000):
        """Requests until it is ended."""
        return self.spawn([self.options.loadtest, "run", "--target", f"http://127.0.0.1:{self.http_port}", "--path", path, "--rps", rate, "--users", users, "--duration", "600s", "--poisson"])

    def dial(self, name, **fault):
        connection = http.client.HTTPConnection("127.0.0.1", self.backends[name], timeout=PATIENCE)
        connection.request("PUT", "/__dial", json.dumps(fault))
        answer = connection.getresponse()
        if answer.status >= 300:
            raise SystemExit(f"dial {fault}: {answer.status} {answer.read()}")
        connection.close()

    def cutover(self, *words):
        done = subprocess.run([self.options.cutover, *map(str, words), "--admin", f"http://{self.instance}"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode:
            raise SystemExit(f"cutover {words}: {done.stderr}")
        return done.stdout

    def status(self):
        return {rollout["id"]: rollout for rollout in json.loads(self.cutover("status", "--json"))["rollouts"]}

    def scrape(self):
        with urllib.request.urlopen(f"http://{self.instance}/metrics", timeout=PATIENCE) as answer:
            return answer.read().decode()

    # -- Prometheus

    def ask(self, path, **arguments):
        """What Prometheus answers, or its error as a string."""
        encoded = urllib.parse.urlencode(arguments)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.prometheus_port}/api/v1/{path}?{encoded}", timeout=PATIENCE) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            return f"{error.code} {error.read().decode()[:500]}"
        except OSError as error:
            return str(error)

    def value(self, query):
        """The only value of a query, or None."""
        found = self.ask("query", query=query)
        return float(found["result"][0]["value"][1]) if isinstance(found, dict) and len(found["result"]) == 1 else None

    def waits(self, query):
        """Until Prometheus has seen it."""
        return until(query, lambda: (self.value(query) or 0) > 0, 0.1)

    def scraped(self):
        """Until Prometheus has scraped once more from now on."""
        now = time.time()
        until("a scrape", lambda: (self.value(f'timestamp(up{{instance="{self.instance}"}})') or 0) > now, 0.1)

    def stop(self, process):
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def end(self):
        for process in reversed(self.processes):
            self.stop(process)
        self.sockets.end()
        self.logs.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def requests(port, path, users, number, threads=24):
    """So many requests, of so many users, by kept connections. `path` takes the number of a request. The answers that were no 200."""
    bad, lock = [], threading.Lock()

    def run(first):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        for n in range(first, number, threads):
            connection.request("GET", path(n), headers={"x-user-id": f"user-{n % users}"})
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                with lock:
                    bad.append(answer.status)
        connection.close()

    workers = [threading.Thread(target=run, args=(first,)) for first in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return bad


def check_story(stage, report):
    """Leads the proxy through everything a panel can show. Returns when the breach was over, for the pictures."""
    short = stage.options.short
    pause = 3 if short else 25
    rate = 120 if short else 240

    def rest(seconds):
        # What is waited for is time itself: a stretch of the story as Prometheus sees it.
        end = time.time() + seconds
        until("time to pass", lambda: time.time() >= end, 0.1)

    done = subprocess.run([program("promtool"), "check", "metrics"], input=stage.scrape(), capture_output=True, text=True, timeout=PATIENCE)
    report("promtool check metrics", done.returncode == 0 and not done.stderr, (done.stdout + done.stderr).strip() or f"{len(stage.scrape().splitlines())} lines of /metrics")

    loads = [stage.load("/checkout", rate), stage.load("/search", rate // 3)]
    stage.sockets.open(stage.http_port, 3)
    requests(stage.http_port, lambda n: f"/nowhere/{n}", 5, 20, threads=2)
    # A few 4xx on both sides.
    for name in stage.backends:
        stage.dial(name, status=404, share=0.01)
    rest(pause)
    for percent in (10, 50):
        stage.cutover("set", "checkout", percent, "--reason", "the ramp")
        stage.waits(f'cutover_split_ratio{{rollout="checkout",kind="effective"}} == {percent / 100}')
        stage.waits('sum(rate(cutover_requests_total{rollout="checkout",backend="new"}[5s])) > 0')
        rest(pause)
    broke = time.time()
    stage.dial("new", status=500, share=0.4 if short else 0.035, latency_ms=75)
    rolled_back = until("the rollback", lambda: stage.status()["checkout"].get("latch"), 0.1)
    took = time.time() - broke
    stage.dial("new")
    stage.waits('cutover_guard_tripped{rollout="checkout"} == 1')
    firing = 'ALERTS{alertname="CutoverRolledBack",alertstate="firing",rollout="checkout"}'
    stage.waits(firing)
    seen = next(alert for alert in stage.ask("alerts")["alerts"] if alert["labels"]["alertname"] == "CutoverRolledBack" and alert["labels"]["rollout"] == "checkout")
    rule = rolled_back["cause"]
    report("CutoverRolledBack fires", f" {rule} (1)" in seen["annotations"]["description"] and "50%" in seen["annotations"]["description"], f"{took:.1f} s after new broke the guard rolled back ({rule}), Prometheus says: {seen['annotations']['summary']}; {seen['annotations']['description']}")
    rest(pause)
    after_breach = time.time()

    # Rolled back by a person: WebSockets are closed a second later.
    stage.waits("sum(cutover_websockets) == 3")
    stage.cutover("rollback", "sockets", "--reason", "for the panels")
    stage.waits('cutover_drained_total{kind="websocket"} == 3')

    good = stage.file.read_text()
    stage.file.write_text(good + "\n[[rollout\n")
    stage.waits("cutover_config_last_reload_successful == bool 0")
    stage.file.write_text(good)
    stage.waits("cutover_config_last_reload_successful == 1")

    stage.cutover("maintenance", "checkout", "hold", "--for", "2s", "--reason", "for the panels")
    stage.waits('cutover_held_requests{rollout="checkout"} > 0')
    stage.waits('cutover_maintenance{rollout="checkout",mode="off"} == 1')
    stage.cutover("maintenance", "search", "full", "--for", "2s", "--reason", "for the panels")
    stage.waits('cutover_maintenance_requests_total{rollout="search",result="refused"} > 0')
    stage.waits('cutover_maintenance{rollout="search",mode="off"} == 1')

    for name in stage.backends:
        stage.dial(name, status=500, share=0.3)
    stage.waits('cutover_guard_shared_cause{rollout="search"} == 1')
    if not short:
        stage.waits('ALERTS{alertname="CutoverSharedCause",alertstate="firing",rollout="search"}')
    for name in stage.backends:
        stage.dial(name)
    for load in loads:
        stage.stop(load)
    until("no request in flight", lambda: all(rollout[side]["in_flight"] == 0 for rollout in stage.status().values() for side in build.SIDES), 0.05)
    return after_breach


def check_numbers(stage, report):
    """PromQL and the API say the same, now that nothing is in flight."""
    stage.scraped()
    faults, compared, failures = [], 0, 0
    for name, rollout in stage.status().items():
        for side in build.SIDES:
            counted, failed, _, _, aborts, latency_us = rollout["totals"][side]
            # What legacy answered in place of new is an answer, and no evidence on legacy. What it failed, too, is none on new.
            moved = rollout["failovers"]["failed"] + (rollout["failovers"]["saved"] if side == "legacy" else 0)
            where = f'rollout="{name}",backend="{side}"'
            for what, query, expected in (
                ("failures", f"cutover_failures_total{{{where}}}", failed),
                ("requests", f"cutover_requests_total{{{where}}}", counted + aborts + moved),
                ("latencies in us", f"round(cutover_request_duration_seconds_sum{{{where}}} * 1e6)", latency_us),
                ("p99 in us", f"round(cutover_latency_seconds{{{where},quantile=\"0.99\"}} * 1e6)", rollout[side]["p99_ms"] and round(rollout[side]["p99_ms"] * 1e3)),
            ):
                value = stage.value(f"sum({query})")
                # Quantiles of nothing.
                value = None if value is not None and math.isnan(value) else value
                compared += 1
                if value != expected:
                    faults.append(f"{what} of {name}, {side}: Prometheus {value}, API {expected}")
            failures += failed
    report("totals", not faults and failures > 0, "; ".join(faults) or f"{compared} numbers of Prometheus are those of `cutover status --json`, {failures} failures among them")

    # 7.4 % above the limit of 50 ms is a breach of its p95, 2.5 % is not: the histogram has the limit among its bounds.
    answers = []
    for slow, fast in ((37, 463), (0, 1000)):
        if slow:
            stage.dial("new", latency_ms=90)
            answers += requests(stage.http_port, lambda n: "/exact", 50, slow)
            stage.dial("new")
        answers += requests(stage.http_port, lambda n: "/exact", 50, fast)
        until("the count", lambda: stage.status()["exact"]["totals"]["new"][0] >= (500 if slow else 1500), 0.05)
        stage.scraped()
        where = 'rollout="exact",backend="new"'
        above = stage.value(f'cutover_request_duration_seconds_count{{{where}}} - ignoring(le) cutover_request_duration_seconds_bucket{{{where},le="0.05"}}')
        total = stage.value(f"cutover_request_duration_seconds_count{{{where}}}")
        verdict = next(rule for rule in stage.status()["exact"]["guard"]["rules"] if rule["rule"] == "latency_p95")
        # A stalled machine makes fast requests slow: then both have to see more of them.
        share = above / total
        report("the guard's limit in PromQL", above >= 37 and share < 0.2 and (verdict["verdict"] == "breach") == (share > 0.05), f"{above:.0f} of {total:.0f} requests above 50 ms = {share:.2%} by le=\"0.05\" (37 were made slow), p95 tolerates 5 %: {verdict['verdict']}; {verdict['sentence']}")


def check_restart(stage, report):
    """A latch outlives the process, and so does its alert."""
    crowd = [socket.create_connection(("127.0.0.1", stage.http_port), timeout=PATIENCE) for _ in range(260)]
    stage.waits("cutover_connections_refused_total > 0")
    stage.waits('ALERTS{alertname="CutoverConnectionsRefused",alertstate="firing"}')
    for client in crowd:
        client.close()
    started = stage.value("process_start_time_seconds")
    stage.process.send_signal(signal.SIGINT)
    stage.process.wait(timeout=PATIENCE)
    stage.start()
    stage.waits(f"process_start_time_seconds > {started}")
    stage.scraped()
    firing = 'ALERTS{alertname="CutoverRolledBack",alertstate="firing",rollout="checkout"}'
    report("the alert outlives a restart", stage.value(firing) == 1 and stage.value('cutover_guard_tripped{rollout="checkout"}') == 1, "rolled back before, latched after, and CutoverRolledBack fires")
    stage.cutover("rearm", "checkout", "--reason", "mended")
    stage.waits('cutover_split_ratio{rollout="checkout",kind="effective"} == 0.5')
    until("the alert to end", lambda: stage.value(firing) is None, 0.1)
    report("rearm ends the alert", stage.value('cutover_guard_tripped{rollout="checkout"}') == 0, "CutoverRolledBack is over")


def check_series(stage, report):
    def series():
        return {line.rsplit(" ", 1)[0] for line in stage.scrape().splitlines() if not line.startswith("#")}

    # Quantiles exist from the first request on.
    bad = requests(stage.http_port, lambda n: "/checkout", 400, 400)
    before = series()
    began = time.monotonic()
    bad += requests(stage.http_port, lambda n: f"/checkout/{n % 1000}?n={n}", 10_000, 10_000)
    took = time.monotonic() - began
    after = series()
    report("series", before == after and not bad_answers(bad), f"{len(before)} before, {len(after)} after 10,000 users on 1,000 paths ({took:.1f} s)" + (f"; {sorted(before ^ after)[:3]}" if before != after else "") + (f"; answers {bad_answers(bad)}" if bad_answers(bad) else ""))


def bad_answers(answers):
    """What no sample backend answers by itself: one in 500 of its answers is a 500."""
    return sorted({status for status in answers if status != 500})


def filled(expr, stage, seconds, rollout, window=WINDOW):
    """A query as Grafana would send it."""
    values = {"__rate_interval": window, "__range": f"{seconds}s", "__interval": "1s", "job": "cutover", "instance": re.escape(stage.instance).replace("\\", "\\\\"), "rollout": rollout}
    return re.sub(r"\$\{?(\w+)\}?", lambda name: values[name[1]], expr)


def finite(series):
    return [number for _, text in series.get("values", [series.get("value")]) if math.isfinite(number := float(text))]


def check_panels(stage, report):
    stage.scraped()
    known, end = documented(), time.time()
    begin = stage.began
    seconds = math.ceil(end - begin)
    for name, path in BOARDS.items():
        board = json.loads(path.read_text())
        faults, moved, asked = [], {}, 0
        for what, kind, expr, legend in queries(board):
            numbers = []
            # Each query has to have something for the rollout that went through the breach; what moves may move on another.
            for rollout in ("checkout", "search", "sockets") if name == "rollout" else (".+",):
                sent = filled(expr, stage, seconds, rollout)
                over = stage.ask("query_range", query=sent, start=begin, end=end, step=1)
                answer = stage.ask("query", query=sent, time=end) if kind == "instant" else over
                asked += 1
                if isinstance(answer, str):
                    faults.append(f"{what}: {answer}: {sent}")
                    continue
                found = [number for series in answer["result"] for number in finite(series)]
                numbers += [number for series in over["result"] for number in finite(series)]
                if not found and rollout in ("checkout", ".+"):
                    faults.append(f"{what}: empty: {sent}")
                wanted = set(re.findall(r"\{\{(\w+)\}\}", legend))
                faults += [f"{what}: the legend names {sorted(wanted - set(series['metric']))}, which the answer has not" for series in answer["result"][:1] if wanted - set(series["metric"])]
            moved[what] = moved.get(what, False) or any(numbers)
        still = [what for what, has in moved.items() if not has and what not in AT_REST]
        faults += [f"{what}: nothing but zeros" for what in still]
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"]).groups()
                answer = stage.ask(f"label/{label}/values", **{"match[]": filled(selector, stage, seconds, ".+")})
                asked += 1
                if not isinstance(answer, list) or not answer:
                    faults.append(f"variable {variable['name']}: {answer or 'no values'}")
        report(f"{name}: every query", not faults, "; ".join(faults) or f"{asked} queries of {len(moved)} panels and annotations over {seconds} s: none failed, none was empty, every panel moved")
    check_expressions(stage, report, begin, end)


def check_expressions(stage, report, begin, end):
    rules = [rule for group in stage.ask("rules")["groups"] for rule in group["rules"]]
    faults = [f"{rule['name']}: {rule['health']} {rule.get('lastError', '')}" for rule in rules if rule["health"] != "ok"]
    selectors = 0
    for rule in rules:
        if rule["type"] == "recording":
            answer = stage.ask("query_range", query=rule["name"], start=begin, end=end, step=1)
            if isinstance(answer, str) or not any(finite(series) for series in answer["result"]):
                faults.append(f"{rule['name']}: nothing was recorded")
        # An alert is silent when all is well: so each of its selectors, with its labels, has to find series by itself.
        for selector in selectors_in(rule["query"]):
            selectors += 1
            if not stage.ask("series", **{"match[]": selector}, start=begin, end=end):
                faults.append(f"{rule['name']}: nothing matches {selector}")
    recorded = sum(rule["type"] == "recording" for rule in rules)
    report("every rule", not faults and len(rules) > recorded > 0, "; ".join(faults) or f"{recorded} recording rules have data, {len(rules) - recorded} alerts are evaluated, each of {selectors} selectors finds series")
    seconds = math.ceil(end - begin)
    answer = stage.ask("query", query=f'max by (alertname) (max_over_time(ALERTS{{alertstate="firing"}}[{seconds}s]))', time=end)
    fired = {series["metric"]["alertname"] for series in answer["result"]}
    expected = FIRED | (set() if stage.options.short else {"CutoverSharedCause"})
    report("alerts of the story", expected <= fired and not fired & NEVER, f"fired: {', '.join(sorted(fired))}" + (f"; missing: {sorted(expected - fired)}" if expected - fired else "") + (f"; wrongly: {sorted(fired & NEVER)}" if fired & NEVER else ""))


def selectors_in(expr):
    """The vector selectors of an expression, with their labels."""
    kept = []
    bare = re.sub(r"\b(by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)", " ", expr)
    bare = re.sub(r"\[[^\]]*\]", " ", bare)
    for word in re.finditer(r"(?<![\w.])([a-zA-Z_:][\w:]*)(\{[^}]*\})?(?![\w:]|\s*\()", bare):
        if word[1] not in ("and", "or", "unless", "bool", "group_left", "group_right", "on", "by") and not bare[word.end():].lstrip().startswith("(") and not re.match(r"\d", word[1]):
            kept.append(word[0])
    return kept


# -- pictures

# Which panels of the rollout dashboard are drawn together: file, headline, columns, and titles with their width.
PICTURES = (
    ("ramp", "The ramp and the guard", 2, (("Share of users on new", 1), ("Evidence by rule", 1), ("Failovers", 1), ("Decisions by reason", 1))),
    ("sides", "Legacy, new, and the difference", 3, (
        ("Requests, legacy", 1), ("Requests, new", 1), ("Requests, new as a part of all", 1), ("Failure ratio, legacy", 1), ("Failure ratio, new", 1), ("Failure ratio, new minus legacy", 1),
        ("Latency, legacy", 1), ("Latency, new", 1), ("Latency, new minus legacy", 1))),
    ("heatmaps", "Where the requests lie", 2, (("Latency heatmap, legacy", 1), ("Latency heatmap, new", 1), ("Failures by kind, legacy", 1), ("Failures by kind, new", 1))),
)
GRAFANA = {"green": "#73BF69", "orange": "#FF9830", "red": "#F2495C", "blue": "#5794F2", "purple": "#B877D9", "text": "#ccccdc"}
PALETTE = ("#73BF69", "#F2CC0C", "#8AB8FF", "#FF780A", "#F2495C", "#B877D9", "#56A64B", "#CA95E5", "#E0B400")
SHADES = {"#5794F2": ("#C0D8FF", "#5794F2", "#1F60C4"), "#FF9830": ("#FFCB7D", "#FF9830", "#C4680A"), build.DIFFERENCE: ("#DEB6F2", "#B877D9")}


def colored(panel, names):
    """The colour of each series by its name, as Grafana chooses it."""
    wanted = {}
    for rule in panel["fieldConfig"]["overrides"]:
        chosen = next((change["value"]["fixedColor"] for change in rule["properties"] if change["id"] == "color"), None)
        pattern = rule["matcher"]["options"].strip("/") if rule["matcher"]["id"] == "byRegexp" else f"^{re.escape(rule['matcher']['options'])}$"
        wanted |= {name: GRAFANA.get(chosen, chosen) for name in names if chosen and re.search(pattern, name)}
    own = panel["fieldConfig"]["defaults"]["color"].get("fixedColor")
    rest = [name for name in names if name not in wanted]
    shades = SHADES[own] if own in SHADES and len(rest) > 1 and all(" " in name for name in rest) else PALETTE if own is None or len(rest) > 1 else (own,)
    return wanted | {name: shades[n % len(shades)] for n, name in enumerate(rest)}


def drawn(panel, stage, begin, end, zero, width):
    """A panel with what query_range has for it."""
    custom, series = panel["fieldConfig"]["defaults"].get("custom", {}), []
    for target in panel["targets"]:
        answer = stage.ask("query_range", query=filled(target["expr"], stage, math.ceil(end - begin), "checkout", "5s"), start=begin, end=end, step=1)
        for found in answer["result"]:
            name = re.sub(r"\{\{(\w+)\}\}", lambda label: found["metric"][label[1]], target["legendFormat"])
            series.append({"name": name, "points": [[at - zero, float(text)] for at, text in found["values"] if math.isfinite(float(text))]})
    # What never moves is left out where many series share a panel.
    heat = panel["type"] == "heatmap"
    if len(series) > 3 and not heat:
        series = [one for one in series if any(value for _, value in one["points"])] or series[:1]
    if heat:
        series.sort(key=lambda one: float(one["name"]))
    colors = {} if heat else colored(panel, [one["name"] for one in series])
    for one in series:
        one["color"] = colors.get(one["name"], "")
        one["dashed"], one["thin"] = one["name"] == "in the file", one["name"] == "of requests"
    defaults = panel["fieldConfig"]["defaults"]
    kind = "heatmap" if heat else "stack" if custom["stacking"]["mode"] == "normal" else "stairs" if custom["lineInterpolation"] == "stepAfter" else "lines"
    limits = [[step["value"], GRAFANA[step["color"]]] for step in defaults["thresholds"]["steps"] if step["value"] is not None] if custom.get("thresholdsStyle", {}).get("mode") == "line" else []
    side = next((color for name, color in build.SIDES.items() if panel["title"].endswith(f", {name}")), "")
    made = {"title": panel["title"], "unit": defaults["unit"], "width": width, "kind": kind, "series": series, "limits": limits, "color": side}
    peak = max((value for one in series for _, value in one["points"]), default=0)
    return made | {key: defaults[wanted] for key, wanted in (("low", "min"), ("high", "max")) if wanted in defaults} | ({"high": max(1.08, peak * 1.05)} if limits else {})


def level(pictures):
    """The two sides of a pair get one axis, so that they can be compared by eye."""
    for panels in (picture["panels"] for picture in pictures):
        pairs = {}
        for panel in panels:
            if panel["title"].rsplit(", ", 1)[-1] in build.SIDES and panel["kind"] != "heatmap":
                pairs.setdefault(panel["title"].rsplit(", ", 1)[0], []).append(panel)
        for pair in pairs.values():
            def top(panel):
                sums = {}
                for one in panel["series"]:
                    for at, value in one["points"]:
                        sums[at] = sums.get(at, 0) + value if panel["kind"] == "stack" else max(sums.get(at, 0), value)
                return max(sums.values(), default=1)
            for panel in pair:
                panel["high"] = max(max(map(top, pair)) * 1.08, 1e-3)


def draw(stage, folder, until_when):
    """The rollout dashboard over the breach, from query_range, with the dashboard's own annotations as marks."""
    python, why = environment(*DRAWN)
    if not python:
        raise SystemExit(f"matplotlib cannot be installed: {why}")
    board = json.loads(BOARDS["rollout"].read_text())
    panels = {panel["title"]: panel for panel in board["panels"]}
    # Rates are whole after their first window.
    begin, end, marks = stage.began + 8, until_when, []
    for note in board["annotations"]["list"]:
        answer = stage.ask("query_range", query=filled(note["expr"], stage, 1, "checkout", "5s"), start=begin, end=end, step=1)
        for found in answer["result"]:
            times = [at for at, _ in found["values"]]
            # An annotation shows as long as the window of its query: where it begins is when it happened.
            for at in (at for at in times if at - 1 not in times):
                text = re.sub(r"\{\{(\w+)\}\}", lambda label: found["metric"].get(label[1], ""), note["titleFormat"])
                marks.append({"at": at, "text": text.split(": ", 1)[1], "color": GRAFANA[note["iconColor"]]})
    # A rollback changes the share, too: it is told once.
    rollbacks = {mark["at"] for mark in marks if mark["text"].startswith("rolled back")}
    marks = sorted((mark for mark in marks if mark["text"].startswith("rolled back") or all(abs(mark["at"] - at) > 3 for at in rollbacks)), key=lambda mark: mark["at"])
    zero = begin
    for mark in marks:
        mark["at"] -= zero
        mark["text"] = f"{int(mark['at']) // 60}:{int(mark['at']) % 60:02} {mark['text']}"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [
        {"file": str(folder / f"{name}.png"), "title": f"Cutover / rollout: {headline}", "columns": columns, "gap": 0.13 if columns == 2 else 0.2, "panels": [drawn(panels[title], stage, begin, end, zero, width) for title, width in titles]}
        for name, headline, columns, titles in PICTURES
    ]
    level(pictures)
    asked = json.dumps({"pictures": pictures, "marks": marks, "span": [0, end - begin]})
    (stage.directory / "pictures.json").write_text(asked)
    if kept := os.environ.get("EYES_KEEP"):
        shutil.copy(stage.directory / "pictures.json", kept)
    done = subprocess.run([python, str(HERE / "peers/pictures.py")], input=asked, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    for picture in pictures:
        size = os.path.getsize(picture["file"])
        print(f"drawn {picture['file']}: {len(picture['panels'])} panels, {size // 1024} KiB", flush=True)


class Report:
    """Prints a line for each check and counts them."""

    def __init__(self, as_json):
        self.as_json, self.held, self.skipped = as_json, {True: 0, False: 0}, 0

    def __call__(self, what, holds, figures):
        self.held[bool(holds)] += 1
        line = {"check": what, "holds": bool(holds), "figures": figures}
        print(json.dumps(line) if self.as_json else f"{'ok  ' if holds else 'FAIL'}  {what}: {figures}", flush=True)

    def skip(self, what, why):
        self.skipped += 1
        print(json.dumps({"check": what, "skipped": why}) if self.as_json else f"skip  {what}: {why}", flush=True)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--cutover", default=str(ROOT / "target/release/cutover"), help="its load kit is expected beside it")
    arguments.add_argument("--short", action="store_true", help="the story told faster, for every test run")
    arguments.add_argument("--pictures", metavar="FOLDER", help="draw the rollout dashboard of the story into this folder")
    arguments.add_argument("--json", action="store_true")
    options = arguments.parse_args()
    options.cutover = os.path.abspath(options.cutover)
    options.loadtest = f"{options.cutover}-loadtest"
    for tool in TOOLS:
        if not pathlib.Path(program(tool)).exists():
            raise SystemExit(f"{tool} is not installed: `make packages` installs it")
    if not os.access(options.loadtest, os.X_OK):
        raise SystemExit(f"{options.loadtest} is missing: cargo build -p cutover-loadtest")
    began, report = time.monotonic(), Report(options.json)
    check_lint(report)
    check_rules(report)
    check_files(options, report)
    stage = Stage(options)
    try:
        stage.set_up()
        after_breach = check_story(stage, report)
        check_numbers(stage, report)
        check_restart(stage, report)
        check_series(stage, report)
        check_panels(stage, report)
        if options.pictures:
            draw(stage, pathlib.Path(options.pictures), after_breach)
    finally:
        stage.end()
    print(f"eyes: {report.held[True]} passed, {report.held[False]} failed, {report.skipped} skipped, {time.monotonic() - began:.0f} s", file=sys.stderr)
    sys.exit(1 if report.held[False] else 0)


if __name__ == "__main__":
    main()
