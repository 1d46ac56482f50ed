#!/usr/bin/env python3
"""Acceptance with components users have: nginx and Python's http.server as the two backends, wrk as the client, and the hash computed by Python.

    loadtest/acceptance/acceptance.py [--cutover PATH] [--edits N] [--only NAME ...] [--timing] [--json]

Checks, each printed with its figures; the exit code is 1 if any does not hold:

  share      wrk with 10,000 users at 1, 5, 25 and 50 %: the measured share of users lies in the binomial 99.9 % interval, every user is on the side Python computes, and raising moves nobody back
  edits      edits of the file under load, in every way of saving: no failed request; time until the effect is visible (median, max)
  breach     new answers 500 at 1,000 requests per second: time to 0 %, kill -9 and restart, the same file again, rearm, a higher generation
  broken     a dozen kinds of broken file: traffic as it was, the message shown

The backends are told apart by the `Server` header they send. Everything listens on free loopback ports and is ended by pid.
"""
import argparse
import datetime
import http.client
import http.server
import json
import math
import os
import pathlib
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "proxy/core/tests/vectors"))
from bucket import bucket  # noqa: E402  (the independent hash)

# Python's http.server is several times as slow as nginx, which the default guard would not stand for.
OFF = '[rollout.guard]\nmode = "off"\n'
USERS = [f"user-{n}" for n in range(10_000)]
PATIENCE = 30


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(what, look, pause=0.0005):
    deadline = time.monotonic() + PATIENCE
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {PATIENCE} s for {what}")
        time.sleep(pause)


class New(http.server.BaseHTTPRequestHandler):
    """Python's http.server as the new backend; it can be told to answer 500."""

    protocol_version = "HTTP/1.1"
    server_version = "new"
    status = 200
    lock = threading.Lock()
    users = set()

    def do_GET(self):
        user = self.headers.get("x-user-id")
        with New.lock:
            New.users.add(user)
        body = b"new\n"
        self.send_response(New.status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class QuietServer(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def handle_error(self, *_):
        pass


class World:
    def __init__(self, cutover):
        self.cutover = cutover
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="cutover-acceptance-"))
        self.process = self.nginx = None
        self.legacy_port, self.http_port, self.admin_port = free_port(), free_port(), free_port()
        New.users, New.status = set(), 200
        self.server = QuietServer(("127.0.0.1", 0), New)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.start_nginx()
        self.file = self.directory / "cutover.toml"

    def start_nginx(self):
        conf = self.directory / "nginx.conf"
        log = self.directory / "legacy.log"
        conf.write_text(
            f"""worker_processes 1; daemon off; pid {self.directory}/nginx.pid; error_log {self.directory}/nginx-error.log;
events {{ worker_connections 4096; }}
http {{
  log_format user '$http_x_user_id'; access_log {log} user; keepalive_requests 1000000;
  client_body_temp_path {self.directory}/b; proxy_temp_path {self.directory}/p; fastcgi_temp_path {self.directory}/f; uwsgi_temp_path {self.directory}/u; scgi_temp_path {self.directory}/s;
  server {{ listen 127.0.0.1:{self.legacy_port} backlog=1024; location / {{ return 200 "legacy\\n"; }} }}
}}
"""
        )
        nginx = shutil.which("nginx") or "/usr/sbin/nginx"
        self.nginx = subprocess.Popen([nginx, "-c", str(conf), "-p", str(self.directory), "-e", str(self.directory / "nginx-error.log")], stderr=subprocess.DEVNULL)
        until("nginx", lambda: self.is_open(self.legacy_port), 0.01)

    @staticmethod
    def is_open(port):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def text(self, percent, generation=1, guard=OFF, failover="off"):
        """The file. Failures are shown to clients unless a check says otherwise."""
        return f"""[listen]
http = ["127.0.0.1:{self.http_port}"]
[admin]
address = "127.0.0.1:{self.admin_port}"
[state]
directory = "{self.directory}/state"
[log]
access = "off"
[backend.legacy]
servers = ["127.0.0.1:{self.legacy_port}"]
[backend.new]
servers = ["127.0.0.1:{self.server.server_port}"]
[[rollout]]
id = "checkout"
percent = {percent}
generation = {generation}
key = ["header:x-user-id"]
failover = "{failover}"
{guard}"""

    def start(self, percent, guard=OFF):
        self.guard = guard
        self.file.write_text(self.text(percent, guard=guard))
        self.launch()

    def launch(self):
        self.log = open(self.directory / "cutover.log", "ab")
        self.process = subprocess.Popen([self.cutover, "run", "-c", str(self.file)], stdout=self.log, stderr=self.log)
        until("the proxy", lambda: self.is_open(self.admin_port) and self.is_open(self.http_port), 0.005)

    def kill(self, how=signal.SIGKILL):
        self.process.send_signal(how)
        self.process.wait(timeout=PATIENCE)

    def ask(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=PATIENCE)
        connection.request(method, path, None if body is None else json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        value = json.loads(answer.read())
        connection.close()
        return value

    def status(self):
        return self.ask("GET", "/api/v1/rollouts")

    def rollout(self):
        return self.status()["rollouts"][0]

    def wrk(self, seconds, connections=32):
        done = subprocess.run(
            ["wrk", "-t2", f"-c{connections}", f"-d{seconds}s", "-s", str(HERE / "users.lua"), f"http://127.0.0.1:{self.http_port}"],
            capture_output=True, text=True, check=True, timeout=seconds + PATIENCE,
        ).stdout
        bad = [line.strip() for line in done.splitlines() if "Socket errors" in line or "Non-2xx" in line]
        return int(next(line for line in done.splitlines() if "requests in" in line).split()[0]), bad

    def end(self):
        for process in (self.process, self.nginx):
            if process and process.poll() is None:
                process.terminate()
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()
        self.server.shutdown()
        shutil.rmtree(self.directory, ignore_errors=True)


class Load:
    """Requests from several keep-alive connections until it is ended; every answer that is not a 200 is kept."""

    def __init__(self, port, connections=4, rate=None):
        self.stop, self.answered, self.failed = threading.Event(), 0, []
        self.last_new = 0.0
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.run, args=(port, n, connections, rate)) for n in range(connections)]
        for thread in self.threads:
            thread.start()

    def run(self, port, number, connections, rate):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        beat, n = time.monotonic(), number
        while not self.stop.is_set():
            user = USERS[n % len(USERS)]
            n += connections
            try:
                connection.request("GET", "/", headers={"x-user-id": user})
                answer = connection.getresponse()
                body = answer.read()
                with self.lock:
                    self.answered += 1
                    if answer.status != 200:
                        self.failed.append((user, answer.status))
                    if body == b"new\n":
                        self.last_new = time.monotonic()
            except (OSError, http.client.HTTPException) as error:
                with self.lock:
                    self.failed.append((user, repr(error)))
                connection.close()
            if rate:
                beat += connections / rate
                time.sleep(max(0.0, beat - time.monotonic()))

    def end(self):
        self.stop.set()
        for thread in self.threads:
            thread.join()
        return self.failed


def interval(share, count, z=3.2905):
    """The binomial 99.9 % interval of a share, by Wilson."""
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return centre - half, centre + half


def check_share(world, report, _):
    world.start(0)
    legacy_log = world.directory / "legacy.log"
    before = set()
    # Python's http.server answers about a thousand requests per second, so the larger its share the longer it takes until every user was seen.
    for percent, seconds in ((1, 3), (5, 3), (25, 8), (50, 14), (100, 20)):
        world.file.write_text(world.text(percent))
        until(f"{percent} %", lambda: world.rollout()["effective_percent"] == percent)
        New.users = set()
        world.nginx.send_signal(signal.SIGUSR1)
        legacy_log.write_text("")
        requests, bad = world.wrk(seconds)
        until("nginx to write its log", lambda: legacy_log.stat().st_size > 0 or percent == 100, 0.01)
        time.sleep(0.2)
        on_new, on_legacy = set(New.users), set(legacy_log.read_text().split()) - {"-"}
        expected = {user for user in USERS if bucket("checkout", user) < percent * 1000}
        seen = len(on_new | on_legacy)
        low, high = interval(percent / 100, seen)
        share = len(on_new) / seen if seen else 0
        wrong = (on_new - expected) | (on_legacy & expected)
        back = before - on_new if seen == len(USERS) else set()
        before = on_new
        report(
            f"share at {percent} %",
            not bad and not wrong and not back and low <= share <= high and seen > 5_000,
            f"{requests} requests, {seen} users seen, {len(on_new)} on new = {share:.4%} (99.9 % interval {low:.4%}..{high:.4%}); {len(wrong)} on a side other than Python's hash says, {len(back)} moved back {' '.join(bad)}",
        )


def ways(world):
    """Every way of saving, as functions from a text to a saved file."""
    beside, backup = world.directory / "cutover.toml.swp", world.directory / "cutover.toml~"

    def in_place(text):
        world.file.write_text(text)

    def atomic(text):
        beside.write_text(text)
        os.replace(beside, world.file)

    def renamed(text):
        os.replace(world.file, backup)
        world.file.write_text(text)

    def deleted(text):
        world.file.unlink()
        world.file.write_text(text)

    def truncated(text):
        world.file.write_text("")
        world.file.write_text(text)

    def chmodded(text):
        os.chmod(world.file, 0o600)
        world.file.write_text(text)
        os.chmod(world.file, 0o644)

    def twice(text):
        world.file.write_text(world.text(99))
        world.file.write_text(text)

    def swapped(text):
        version = world.directory / f"..v{time.monotonic_ns()}"
        version.mkdir()
        (version / "cutover.toml").write_text(text)
        link = world.directory / "..data_tmp"
        link.symlink_to(version.name)
        os.replace(link, world.directory / "..data")
        if not world.file.is_symlink():
            world.file.unlink(missing_ok=True)
            world.file.symlink_to("..data/cutover.toml")

    return {"in place": in_place, "atomic": atomic, "renamed": renamed, "deleted": deleted, "truncated": truncated, "chmod": chmodded, "two quick saves": twice, "..data swap": swapped}


def check_edits(world, report, options):
    world.start(0)
    # A user that is on new at 2 % and not at 1 %: whether an edit is visible is asked of the proxy by a request, as a user would see it.
    probe = next(user for user in USERS if 1_000 <= bucket("checkout", user) < 2_000)
    connection = http.client.HTTPConnection("127.0.0.1", world.http_port, timeout=PATIENCE)

    def is_on_new():
        connection.request("GET", "/", headers={"x-user-id": probe})
        return connection.getresponse().read() == b"new\n"

    load = Load(world.http_port, connections=2, rate=400)
    took = {}
    for n in range(options.edits):
        name, save = list(ways(world).items())[n % 8]
        on_new = n % 2 == 0
        # An edit in a file reached through `..data` writes into what the link leads to; the other ways replace the link.
        save(world.text(2 if on_new else 1))
        saved = time.monotonic()
        until(f"edit {n} ({name})", lambda: is_on_new() == on_new, 0.0002)
        took.setdefault(name, []).append((time.monotonic() - saved) * 1000)
    failed = load.end()
    connection.close()
    every = [ms for all_ms in took.values() for ms in all_ms]
    detail = "; ".join(f"{name} {statistics.median(all_ms):.0f}/{max(all_ms):.0f}" for name, all_ms in took.items())
    report(
        f"{options.edits} edits under load",
        not failed and (not options.timing or max(every) < 100),
        f"{len(failed)} of {load.answered} requests failed; visible after {statistics.median(every):.0f} ms (median), {max(every):.0f} ms (max); by way, median/max ms: {detail}",
    )


GUARD = '[rollout.guard]\nmode = "threshold"\nwindow = "10s"\nmin_requests = 50\nerrors = { max = "1%" }\n'


def check_breach(world, report, options):
    world.start(25, GUARD)
    load = Load(world.http_port, connections=8, rate=1000)
    until("traffic", lambda: world.rollout()["new"]["requests"] > 500, 0.05)
    New.status = 500
    broke = time.monotonic()
    until("the drop", lambda: world.rollout()["phase"] == "rolled_back")
    took = time.monotonic() - broke
    time.sleep(0.3)
    failed = load.end()
    hurt = len({user for user, _ in failed})
    sentence = world.rollout()["latch"]["sentence"]
    report("breach at 1,000 req/s, 25 % on new", not options.timing or took < 0.5, f"0 % after {took * 1000:.0f} ms; last answer of new {max(0.0, load.last_new - broke) * 1000:.0f} ms after the fault; {len(failed)} bad answers, {hurt} users hurt; {sentence}")
    New.status = 200

    def effective():
        return world.rollout()["effective_percent"]

    world.kill()
    world.launch()
    report("kill -9 and restart", effective() == 0, f"{effective()} % in force")
    world.file.write_text(world.text(25, guard=GUARD))
    world.ask("POST", "/api/v1/reload", {})
    same = effective()
    world.file.write_text(world.text(40, guard=GUARD))
    world.ask("POST", "/api/v1/reload", {})
    report("the same file again, then 40 %", same == 0 and effective() == 0, f"{same} % and {effective()} % in force")
    world.ask("POST", "/api/v1/rollouts/checkout/rearm", {"reason": "acceptance"})
    report("rearm", effective() == 40, f"{effective()} % in force")
    world.ask("POST", "/api/v1/rollouts/checkout/rollback", {"reason": "acceptance"})
    down = effective()
    world.file.write_text(world.text(40, generation=2, guard=GUARD))
    world.ask("POST", "/api/v1/reload", {})
    report("rollback by hand, then generation 2", down == 0 and effective() == 40, f"{down} %, then {effective()} % in force")
    history = world.ask("GET", "/api/v1/history")
    report("the journal", history["chain"]["intact"], f"{len(history['records'])} records, chain intact: {history['chain']['intact']}")


def check_broken(world, report, _):
    world.start(25)
    good = world.text(25)
    load = Load(world.http_port, connections=2, rate=400)
    kinds = {
        "empty": "",
        "cut off": good[: len(good) // 2],
        "a misspelt key": good.replace("percent =", "percnt ="),
        "a misspelt table": good.replace("[backend.new]", "[backnd.new]"),
        "a percent sign": good.replace("percent = 25", 'percent = "25%"'),
        "out of range": good.replace("percent = 25", "percent = 250"),
        "too many decimals": good.replace("percent = 25", "percent = 2.55555"),
        "a key twice": good.replace("percent = 25", "percent = 25\npercent = 26"),
        "an unknown backend": good.replace("percent = 25", 'percent = 25\nnew = "nwe"'),
        "an unclosed string": good.replace('id = "checkout"', 'id = "checkout'),
        "no rollouts": good.split("[[rollout]]")[0],
        "two rollouts with one id": good + "[[rollout]]" + good.split("[[rollout]]")[1],
        "not supported yet": good + '\n[[notify]]\nurl = "https://hooks.example/"\n',
        "binary": "\x00\x01\x02",
    }
    for name, text in kinds.items():
        world.file.write_text(text)
        problems = until(name, lambda: world.status()["config"].get("problems"), 0.005)
        same = world.rollout()["effective_percent"] == 25
        first = " | ".join(line.strip() for line in problems.splitlines() if line.strip() and line.strip() not in ("|",))[:400]
        report(f"broken file: {name}", same, first.replace(str(world.directory) + "/", ""))
        world.file.write_text(good)
        until("the good file", lambda: world.status()["config"]["last_reload_successful"], 0.005)
    world.file.unlink()
    problems = until("the missing file", lambda: world.status()["config"].get("problems"), 0.005)
    report("broken file: missing", world.rollout()["effective_percent"] == 25, problems.strip().replace(str(world.directory) + "/", ""))
    failed = load.end()
    report("requests meanwhile", not failed, f"{len(failed)} of {load.answered} failed")


class Sample:
    """A sample backend of the load kit, with its fault dial."""

    def __init__(self, kit, name, port=0):
        self.process = subprocess.Popen([kit, "backend", "--name", name, "--listen", f"127.0.0.1:{port}"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        line = self.process.stdout.readline()
        self.port = int(re.search(r"127\.0\.0\.1:(\d+)", line).group(1))

    def dial(self, setting):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("PUT", "/__dial", json.dumps(setting))
        assert connection.getresponse().status < 300
        connection.close()

    def end(self):
        self.process.kill()
        self.process.wait()


def check_judge(world, report, options):
    """New breaks at once, in four ways, under the guard that a file without a guard section has: what does it cost?"""
    kit = str(pathlib.Path(options.cutover).with_name("cutover-loadtest"))
    if not pathlib.Path(kit).exists():
        raise SystemExit(f"{kit} is missing: cargo build -p cutover-loadtest (--release)")
    legacy, new = Sample(kit, "legacy"), Sample(kit, "new")
    world.legacy_port, world.server_port = legacy.port, new.port
    guard = '[rollout.guard]\nhang = { older_than = "2s" }\n'

    def write(failover):
        text = world.text(50, guard=guard, failover=failover)
        world.file.write_text(text.replace(f'servers = ["127.0.0.1:{world.server.server_port}"]', f'servers = ["127.0.0.1:{new.port}"]'))

    write("off")
    world.launch()
    breakdowns = {"all 500": {"status": 500}, "refused": None, "reset": {"reset": True}}
    faults = [("off", name, setting) for name, setting in (breakdowns | {"hang": {"hang": True}}).items()]
    faults += [("safe", f"{name}, failover safe", setting) for name, setting in breakdowns.items()]
    try:
        for failover, name, setting in faults:
            write(failover)
            world.ask("POST", "/api/v1/reload", {"reason": "failover"})
            bad, delays, rules = [], [], {}
            for run in range(options.runs):
                seconds = 6 if name == "hang" else 3
                so_far = world.rollout()["totals"]["new"][0]
                load = subprocess.Popen(
                    [kit, "run", "--target", f"http://127.0.0.1:{world.http_port}", "--rps", str(options.rps), "--duration", f"{seconds}s", "--connections", "512", "--timeout", "4s", "--poisson", "--seed", str(run), "--json"],
                    stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                )
                until("traffic on both sides", lambda: world.rollout()["totals"]["new"][0] - so_far > options.rps * 0.5, 0.02)
                time.sleep(0.05 * (run % 7))
                broke = time.time()
                if setting is None:
                    new.end()
                else:
                    new.dial(setting)
                until("the drop", lambda: world.rollout()["phase"] == "rolled_back", 0.005)
                latch = world.rollout()["latch"]
                tripped = datetime.datetime.fromisoformat(latch["at"].replace("Z", "+00:00")).timestamp()
                delays.append(tripped - broke)
                rules[latch["cause"]] = rules.get(latch["cause"], 0) + 1
                sentence = latch["sentence"]
                result = json.loads(load.communicate(timeout=PATIENCE)[0])
                bad.append(result["failures"]["requests"])
                if setting is None:
                    new = Sample(kit, "new", new.port)
                else:
                    new.dial({})
                until("a quiet new", lambda: world.rollout()["new"]["in_flight"] == 0, 0.05)
                world.ask("POST", "/api/v1/rollouts/checkout/rearm", {"reason": "next run"})
            figures = f"{options.runs} runs at {options.rps} req/s, half on new: rolled back after {statistics.median(delays) * 1000:.0f} ms (median), {max(delays) * 1000:.0f} ms (max); bad answers {statistics.median(bad):.0f} (median), {max(bad)} (max); by {rules}; {sentence}"
            if name == "hang":
                # What hangs has been sent and is in flight: the time counts.
                report(f"judge: {name}", not options.timing or max(delays) < 2.6, figures)
            elif failover == "safe":
                report(f"judge: {name}", max(bad) == 0, figures)
            else:
                report(f"judge: {name}", statistics.median(bad) <= 20 or not options.timing, figures)
    finally:
        legacy.end()
        new.end()


CHECKS = {"share": check_share, "edits": check_edits, "breach": check_breach, "broken": check_broken, "judge": check_judge}


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--cutover", default=str(ROOT / "target/release/cutover"))
    arguments.add_argument("--edits", type=int, default=200)
    arguments.add_argument("--runs", type=int, default=20, help="runs of each fault of the judge")
    arguments.add_argument("--rps", type=int, default=2000, help="requests per second of the judge's runs")
    arguments.add_argument("--only", nargs="*", choices=CHECKS, default=list(CHECKS))
    arguments.add_argument("--timing", action="store_true", help="judge times, too: an edit visible in < 100 ms, a total breakdown dropped in < 0.5 s; for a quiet machine")
    arguments.add_argument("--json", action="store_true")
    options = arguments.parse_args()
    for tool in ("wrk", "nginx"):
        if not (shutil.which(tool) or pathlib.Path(f"/usr/sbin/{tool}").exists()):
            raise SystemExit(f"{tool} is not installed: `make packages` installs it")
    held = {True: 0, False: 0}
    for name in options.only:
        world = World(options.cutover)

        def report(what, holds, figures):
            held[bool(holds)] += 1
            line = {"check": what, "holds": bool(holds), "figures": figures}
            print(json.dumps(line) if options.json else f"{'ok  ' if holds else 'FAIL'}  {what}: {figures}", flush=True)

        try:
            CHECKS[name](world, report, options)
        finally:
            world.end()
    print(f"acceptance: {held[True]} passed, {held[False]} failed", file=sys.stderr)
    sys.exit(1 if held[False] else 0)


if __name__ == "__main__":
    main()
