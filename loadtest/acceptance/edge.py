#!/usr/bin/env python3
"""The edge of the proxy with clients and servers of other projects: curl, nghttp2, openssl, grpcio, websockets, nginx, gunicorn.

    loadtest/acceptance/edge.py [--cutover PATH] [--short] [--engine auto|proxy] [--only NAME ...] [--json]

Checks, each printed with its command and its figures; the exit code is 1 if any does not hold:

  protocols   HTTP/1.1, HTTP/2 over TLS and without, on one port; versions of TLS, ALPN, certificates by server name
  upstreams   nginx over TLS, nghttpd in h2c and h2 over TLS, under every kind of client; wrong authority and wrong name
  sessions    Flask under gunicorn knows who has logged in when a client of HTTP/2 sends its cookies in several fields
  closing     nginx as a backend of HTTP/2 that closes its connections by itself: no upload fails
  grpc        every kind of call by grpcio; which status counts as a failure of new; a backend that fails everything is rolled back
  websocket   the websockets library: messages, 80 handshakes at once, close codes
  streaming   server-sent events one by one, 100-continue, large bodies with flat memory
  bodies      trailers and gzip arrive as they were sent
  changes     reloads, new certificates and rollbacks under load: no failed request
  upgrades    new processes take over under load: no failed request
  crowd       idle and slow clients beside normal traffic; memory of an idle connection
  dead        new dies at 50 %: no error reaches a client that reads

`--short` is what `make test` runs: the same checks with smaller numbers, and times judged leniently.
grpcio, websockets, Flask and gunicorn are installed into an environment below target/; where that is not possible their checks are skipped and say so.
Everything listens on free loopback ports and is ended by pid.
"""
import argparse
import contextlib
import hashlib
import http.client
import http.server
import json
import os
import pathlib
import re
import resource
import select
import shlex
import shutil
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

# Importing leaves no files in the source tree.
sys.dont_write_bytecode = True
from acceptance import HERE, PATIENCE, ROOT, Load, QuietServer, free_port, until  # noqa: E402

GUARD_OFF = '[rollout.guard]\nmode = "off"\n'
MIB = 1024 * 1024
ENVIRONMENT = ROOT / "target/acceptance-venv"
REQUIREMENTS = HERE / "requirements.txt"
TOOLS = ("curl", "openssl", "nginx", "nghttp", "nghttpd", "h2load", "wrk")


def program(name):
    return shutil.which(name) or f"/usr/sbin/{name}"


def is_open(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def environment(place=ENVIRONMENT, requirements=REQUIREMENTS):
    """A Python with these requirements, or why there is none."""
    python, stamp, wanted = place / "bin/python", place / "requirements", requirements.read_text()
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return str(python), None
    for command in ([sys.executable, "-m", "venv", str(place)], [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1", "-r", str(requirements)]):
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
        except (OSError, subprocess.TimeoutExpired) as error:
            return None, f"{shlex.join(command[1:3])}: {error}"
        if done.returncode:
            return None, f"{shlex.join(command[1:3])}: {(done.stderr or done.stdout).strip().splitlines()[-1]}"
    stamp.write_text(wanted)
    return str(python), None


class Streams(http.server.BaseHTTPRequestHandler):
    """Python's http.server for what nginx does not do by itself: events one by one, trailers, a sink that says what it got."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def begin(self, status=200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def do_GET(self):
        path, _, query = self.path.partition("?")
        asked = dict(urllib.parse.parse_qsl(query))
        if path == "/events":
            self.begin(content_type="text/event-stream", transfer_encoding="chunked", cache_control="no-cache")
            for _ in range(int(asked["n"])):
                self.chunk(b"data: %d\n\n" % time.monotonic_ns())
                time.sleep(float(asked["pause"]))
            self.wfile.write(b"0\r\n\r\n")
        elif path == "/trailers":
            self.begin(transfer_encoding="chunked", trailer="x-checksum")
            self.chunk(b"body")
            self.wfile.write(b"0\r\nx-checksum: 4711\r\n\r\n")
        else:
            self.begin(content_length="7")
            self.wfile.write(b"python\n")

    def do_PUT(self):
        digest, size = hashlib.sha1(), 0
        for part in self.parts():
            size += len(part)
            digest.update(part)
        answer = f"{size} {digest.hexdigest()}\n".encode()
        self.begin(content_length=str(len(answer)))
        self.wfile.write(answer)

    do_POST = do_PUT

    def parts(self):
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                while size:
                    part = self.rfile.read(min(size, MIB))
                    size -= len(part)
                    yield part
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
        else:
            left = int(self.headers.get("content-length", 0))
            while left:
                part = self.rfile.read(min(left, MIB))
                if not part:
                    return
                left -= len(part)
                yield part

    def log_message(self, *_):
        pass


class Nginx:
    """One nginx with three ports: plain, TLS, and HTTP/2 over TLS. What it is asked over, it says in `x-seen`."""

    def __init__(self, edge, name):
        self.plain, self.tls, self.h2 = free_port(), free_port(), free_port()
        root = edge.directory / name
        (root / "put").mkdir(parents=True)
        conf = root / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""
        temporary = " ".join(f"{kind}_temp_path {root}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        place = f"""root {edge.www}; add_header x-seen "$server_protocol $ssl_protocol $ssl_server_name"; client_max_body_size 0;
    location = / {{ default_type text/plain; return 200 "{name}\\n"; }}
    location /put/ {{ root {root}; dav_methods PUT; }}"""
        pair = f"ssl_certificate {edge.directory}/internal.pem; ssl_certificate_key {edge.directory}/internal.key;"
        conf.write_text(
            f"""worker_processes 1; daemon off; {user} pid {root}/pid; error_log {root}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 1000000; gzip on; gzip_types text/plain; gzip_min_length 100; sendfile on; ssl_protocols TLSv1.2 TLSv1.3; {temporary}
  types {{ text/plain txt; application/octet-stream bin; }}
  server {{ listen 127.0.0.1:{self.plain} backlog=1024; {place} }}
  server {{ listen 127.0.0.1:{self.tls} ssl; {pair} {place} }}
  server {{ listen 127.0.0.1:{self.h2} ssl http2; {pair} {place} }}
}}
"""
        )
        self.process = edge.spawn([program("nginx"), "-c", str(conf), "-p", str(root), "-e", str(root / "error.log")], name)
        until("nginx", lambda: is_open(self.plain) and is_open(self.h2), 0.01)

    def die(self):
        """As in an accident: its connections are reset, its ports closed."""
        # The worker first notices that its master is gone, so that it has to go, too.
        children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for pid in (self.process.pid, *map(int, children)):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()


class Edge:
    """A folder with certificates and files, backends, and one proxy before them."""

    def __init__(self, options, python):
        self.options, self.python = options, python
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="cutover-edge-"))
        self.www = self.directory / "www"
        self.www.mkdir()
        self.processes, self.servers, self.process = [], [], None
        self.logs = open(self.directory / "log", "ab")
        self.certify()
        (self.www / "small.bin").write_bytes(os.urandom(1024))
        (self.www / "medium.bin").write_bytes(os.urandom(3 * MIB + 17))
        (self.www / "text.txt").write_text("all work and no play\n" * 10_000)
        self.large = (200 if options.short else 1024) * MIB
        with open(self.www / "large.bin", "wb") as file:
            file.truncate(self.large)
        # curl finds its way by these: every name that is used is this machine.
        self.http_port, self.https_port, self.admin_port = free_port(), free_port(), free_port()

    # -- certificates

    def openssl(self, *arguments):
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, cwd=self.directory, timeout=PATIENCE)

    def certify(self):
        for authority in ("ca", "stranger"):
            new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc")
            self.openssl("req", "-x509", *new, "-keyout", f"{authority}.key", "-out", f"{authority}.pem", "-days", 30, "-subj", f"/CN={authority}")
        for name, host in (("shop", "shop.example"), ("other", "other.example"), ("internal", "shop.internal")):
            self.certificate(name, host)

    def certificate(self, name, host):
        new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc")
        self.openssl("req", "-new", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={host}")
        (self.directory / f"{name}.ext").write_text(f"subjectAltName=DNS:{host},DNS:*.{host}\n")
        self.openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", 30, "-extfile", f"{name}.ext", "-out", f"{name}.pem")

    # -- backends

    def spawn(self, command, name, **more):
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=self.logs, **({"stdout": self.logs} | more))
        self.processes.append(process)
        return process

    def nginx(self, name):
        return Nginx(self, name)

    def nghttpd(self, *arguments, tls=False):
        port = free_port()
        files = [str(self.directory / "internal.key"), str(self.directory / "internal.pem")] if tls else ["--no-tls"]
        options = ["-a", "127.0.0.1", "-d", str(self.www), *arguments]
        self.spawn(["nghttpd", *options, *([] if tls else files), str(port), *(files if tls else [])], "nghttpd")
        until("nghttpd", lambda: is_open(port), 0.01)
        return port

    def streams(self):
        server = QuietServer(("127.0.0.1", 0), Streams)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.servers.append(server)
        return server.server_port

    def peer(self, script, *arguments):
        """A server written in the environment's Python, and its port."""
        process = self.spawn([self.python, str(HERE / "peers" / script), "serve", *arguments], script, stdout=subprocess.PIPE, text=True)
        return int(process.stdout.readline())

    def calls(self, script, *arguments):
        """What a client of the environment's Python says: a value for each line of JSON."""
        done = subprocess.run([self.python, str(HERE / "peers" / script), *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180)
        if done.returncode:
            raise SystemExit(f"{script} {shlex.join(map(str, arguments))}: {done.stderr[-2000:]}")
        return [json.loads(line) for line in done.stdout.splitlines()]

    # -- the proxy

    def text(self, backends, rollouts, listen=""):
        """The file: backends by name with their keys, rollouts with theirs."""
        tables = "".join(f"[backend.{name}]\n{keys}\n" for name, keys in backends.items())
        return f"""[listen]
engine = "{self.options.engine}"
http = ["127.0.0.1:{self.http_port}"]
https = ["127.0.0.1:{self.https_port}"]
h2c = true
certificates = [{{ cert = "shop.pem", key = "shop.key" }}, {{ cert = "other.pem", key = "other.key" }}]
{listen}
[admin]
address = "127.0.0.1:{self.admin_port}"
[state]
directory = "state"
[log]
access = "off"
{tables}{rollouts}"""

    def start(self, backends, rollouts, listen=""):
        self.file = self.directory / "cutover.toml"
        self.file.write_text(self.text(backends, rollouts, listen))
        self.process = self.spawn([self.options.cutover, "run", "-c", str(self.file)], "cutover")
        until("the proxy", lambda: self.process.poll() is not None or (is_open(self.admin_port) and is_open(self.https_port)), 0.01)
        if self.process.poll() is not None:
            raise SystemExit((self.directory / "log").read_text()[-3000:])

    def ask(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=PATIENCE)
        connection.request(method, path, None if body is None else json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        if answer.status >= 300:
            raise SystemExit(f"{method} {path}: {answer.status} {text[:500]}")
        return text

    def rollout(self):
        return json.loads(self.ask("GET", "/api/v1/rollouts"))["rollouts"][0]

    def metric(self, name, **labels):
        """The sum of a metric over all that have these labels."""
        total = 0
        for line in self.ask("GET", "/metrics").decode().splitlines():
            if re.match(rf"{name}[{{ ]", line) and all(f'{key}="{value}"' in line for key, value in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return int(total)

    def memory(self, field="VmRSS"):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{field}:\s+(\d+)", status).group(1)) * 1024

    @contextlib.contextmanager
    def peak(self):
        """How much memory the proxy took at most, more than at the beginning: a list that gets one value."""
        pathlib.Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        before, grown = self.memory(), []
        yield grown
        grown.append(max(0, self.memory("VmHWM") - before))

    # -- clients

    @property
    def http(self):
        return f"http://shop.example:{self.http_port}"

    @property
    def https(self):
        return f"https://shop.example:{self.https_port}"

    def say(self, command):
        """A command as it is printed: without our folder and what only makes names ours."""
        return shlex.join(map(str, command)).replace(str(self.directory) + "/", "").replace(str(ROOT) + "/", "")

    def curl(self, *arguments, seconds=PATIENCE):
        """The command as printed, and what it wrote."""
        resolve = [part for port in (self.http_port, self.https_port) for part in ("--resolve", f"*:{port}:127.0.0.1")]
        common = ["--silent", "--show-error", "--max-time", str(seconds), "--cacert", str(self.directory / "ca.pem"), *resolve]
        done = subprocess.run(["curl", *common, *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds + PATIENCE)
        return self.say(["curl", *arguments]), done.stdout + done.stderr

    def run(self, *command):
        """A command as printed, and what it wrote."""
        done = subprocess.run([*map(str, command)], stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE)
        return self.say(command), done.stdout + done.stderr

    def h2load(self, *arguments, seconds=PATIENCE):
        """The command as printed, requests that succeeded, those that did not, and a word on the protocol."""
        command = ["h2load", *map(str, arguments)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds + PATIENCE).stdout
        counts = {name: int(count) for count, name in re.findall(r"(\d+) (total|started|done|succeeded|failed|errored|timeout)\b", done)}
        good = int((re.search(r"status codes: (\d+) 2xx", done) or [0, 0])[1])
        protocol = (re.search(r"Application protocol: (\S+)", done) or ["", "?"])[1]
        return self.say(command), good, counts.get("total", 0) - good, protocol

    def end(self):
        for process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for server in self.servers:
            server.shutdown()
        self.logs.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def servers(*ports, scheme=""):
    return "servers = [" + ", ".join(f'"{scheme}127.0.0.1:{port}"' for port in ports) + "]"


def rollout(name, percent, more="", guard=GUARD_OFF):
    return f'[[rollout]]\nid = "{name}"\npercent = {percent}\nkey = ["header:x-user-id"]\n{more}\n{guard}'


def check_protocols(edge, report):
    nginx, echo = edge.nginx("legacy"), edge.nghttpd("--echo-upload")
    backends = {"legacy": servers(nginx.plain), "new": servers(nginx.plain), "echo": f"{servers(echo)}\nhttp2 = true"}
    edge.start(backends, rollout("echo", 0, 'match = { path = "/echo" }\nlegacy = "echo"\nnew = "new"') + rollout("checkout", 0))
    version = ("-o", "/dev/null", "-w", "%{http_version} %{http_code}")
    for arguments, expected in (
        (("--http1.1", f"{edge.http}/small.bin"), "1.1 200"),
        (("--http1.0", f"{edge.http}/small.bin"), "1.1 200"),
        (("--http2-prior-knowledge", f"{edge.http}/small.bin"), "2 200"),
        # An offer to switch to h2c is not taken up, and does no harm.
        (("--http2", f"{edge.http}/small.bin"), "1.1 200"),
        (("--http2", f"{edge.https}/small.bin"), "2 200"),
        (("--http1.1", f"{edge.https}/small.bin"), "1.1 200"),
        (("--http2", "--head", f"{edge.https}/small.bin"), "2 200"),
        (("--http2", "--tlsv1.2", "--tls-max", "1.2", f"{edge.https}/small.bin"), "2 200"),
    ):
        command, seen = edge.curl(*arguments, *version)
        seen = seen.decode()
        report("one request", seen == expected, command.split(" -o ")[0], f"HTTP/{seen}")
    many = edge.options.requests
    for more, url, expected in (
        (("-c8", "-m20"), f"http://127.0.0.1:{edge.http_port}/small.bin", "h2c"),
        (("-c8", "-m20"), f"https://127.0.0.1:{edge.https_port}/small.bin", "h2"),
        (("--h1", "-c8"), f"http://127.0.0.1:{edge.http_port}/small.bin", "http/1.1"),
        (("--h1", "-c8"), f"https://127.0.0.1:{edge.https_port}/small.bin", "http/1.1"),
        (("-c8", "-m20", "-d", edge.www / "small.bin"), f"https://127.0.0.1:{edge.https_port}/echo", "h2"),
        (("--h1", "-c8", "-d", edge.www / "small.bin"), f"http://127.0.0.1:{edge.http_port}/echo", "http/1.1"),
    ):
        command, good, bad, protocol = edge.h2load("-n", many, *more, url, seconds=120)
        report("many uploads" if "-d" in more else "many requests", good == many and bad == 0 and protocol == expected, command, f"{good} succeeded, {bad} failed, {protocol}")

    def handshake(*arguments):
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{edge.https_port}", "-CAfile", str(edge.directory / "ca.pem"), *arguments]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE)
        return edge.say(command), done.stdout + done.stderr

    for arguments, expected in (
        (("-tls1_3", "-servername", "shop.example", "-verify_hostname", "shop.example", "-verify_return_error"), ("New, TLSv1.3", "Verify return code: 0 (ok)")),
        (("-tls1_2", "-servername", "shop.example", "-verify_hostname", "shop.example", "-verify_return_error"), ("New, TLSv1.2", "Verify return code: 0 (ok)")),
        (("-tls1_1", "-cipher", "ALL:@SECLEVEL=0", "-servername", "shop.example"), ("alert", "Cipher is (NONE)")),
        (("-servername", "other.example", "-verify_hostname", "other.example", "-verify_return_error"), ("CN = other.example", "Verify return code: 0 (ok)")),
        (("-servername", "www.shop.example", "-verify_hostname", "www.shop.example", "-verify_return_error"), ("CN = shop.example", "Verify return code: 0 (ok)")),
        (("-noservername",), ("CN = shop.example",)),
        (("-alpn", "h2,http/1.1", "-servername", "shop.example"), ("ALPN protocol: h2",)),
        (("-alpn", "http/1.1", "-servername", "shop.example"), ("ALPN protocol: http/1.1",)),
        (("-alpn", "spdy/3", "-servername", "shop.example"), ("alert no application protocol",)),
    ):
        command, seen = handshake(*arguments)
        report("handshake", all(word in seen for word in expected), command, ", ".join(expected) if all(word in seen for word in expected) else seen[-300:])


KINDS = {"HTTP/1.1": ("--http1.1", "http"), "HTTP/1.1 over TLS": ("--http1.1", "https"), "h2c": ("--http2-prior-knowledge", "http"), "h2": ("--http2", "https")}


def check_upstreams(edge, report):
    nginx = edge.nginx("legacy")
    h2c, h2 = edge.nghttpd("--echo-upload"), edge.nghttpd("--echo-upload", tls=True)
    verified = 'ca = "ca.pem"\nserver_name = "shop.internal"'
    backends = {
        "legacy": servers(nginx.plain),
        "new": servers(nginx.plain),
        "tls": f'{servers(nginx.tls, scheme="https://")}\n{verified}',
        "nginx_h2": f'{servers(nginx.h2, scheme="https://")}\n{verified}\nhttp2 = true',
        "nghttpd_h2c": f"{servers(h2c)}\nhttp2 = true",
        "nghttpd_h2": f'{servers(h2, scheme="https://")}\n{verified}\nhttp2 = true',
        "stranger": f'{servers(nginx.tls, scheme="https://")}\nca = "stranger.pem"\nserver_name = "shop.internal"',
        "system": f'{servers(nginx.tls, scheme="https://")}\nserver_name = "shop.internal"',
        "misnamed": f'{servers(h2, scheme="https://")}\nca = "ca.pem"\nserver_name = "other.internal"\nhttp2 = true',
        "no_h2": f'{servers(nginx.plain)}\nhttp2 = true',
    }
    # Which backend is chosen by host; a request for a name with a hyphen, since a host has no underscores.
    rollouts = "".join(rollout(name, 0, f'match = {{ host = "{name.replace("_", "-")}.shop.example" }}\nlegacy = "{name}"\nnew = "new"') for name in list(backends)[2:])
    edge.start(backends, rollouts)
    ports = {"http": edge.http_port, "https": edge.https_port}
    body = (edge.www / "medium.bin").read_bytes()
    for name, proof in (("tls", "HTTP/1.1 TLSv1.3 shop.internal"), ("nginx_h2", "HTTP/2.0 TLSv1.3 shop.internal"), ("nghttpd_h2c", "nghttpd"), ("nghttpd_h2", "nghttpd")):
        good, wrong, command = [], [], ""
        for kind, (flag, scheme) in KINDS.items():
            url = f"{scheme}://{name.replace('_', '-')}.shop.example:{ports[scheme]}"
            # The wildcard of the certificate covers one label.
            command, seen = edge.curl(flag, "-D", "-", f"{url}/medium.bin")
            head, _, got = seen.partition(b"\r\n\r\n")
            sent = "PUT" if "nginx" in name or name == "tls" else "POST"
            where = "/put/x" if sent == "PUT" else "/"
            _, echoed = edge.curl(flag, "-X", sent, "--data-binary", f"@{edge.www}/medium.bin", f"{url}{where}")
            if sent == "PUT":
                _, echoed = edge.curl(flag, f"{url}{where}")
            whole = b" 200" in head and proof.encode() in head and got == body and echoed == body
            (good if whole else wrong).append(kind if whole else f"{kind}: {head!r} {len(got)} bytes, {len(echoed)} of the upload")
        report(f"backend {name}", not wrong, command, f"{len(body)} bytes down and up are whole, from {', '.join(good)}; the backend saw {proof}" + ("; WRONG " + "; ".join(wrong) if wrong else ""))
    for name in ("stranger", "system", "misnamed", "no_h2"):
        command, seen = edge.curl("-o", "/dev/null", "-w", "%{http_code}", f"http://{name.replace('_', '-')}.shop.example:{edge.http_port}/small.bin")
        report(f"backend {name} is not trusted" if name != "no_h2" else "backend without HTTP/2", seen == b"502", command.replace("-o /dev/null -w '%{http_code}' ", ""), seen.decode())


def check_sessions(edge, report):
    """Browsers send each cookie of HTTP/2 in a field of its own; servers of HTTP/1.1 are to see one field."""
    port = free_port()
    # gunicorn reads a second Cookie line as a part of the first.
    edge.spawn([edge.python, "-m", "gunicorn", "--chdir", str(HERE / "peers"), "-b", f"127.0.0.1:{port}", "flask_app:app"], "gunicorn")
    until("gunicorn", lambda: is_open(port), 0.05)
    edge.start({"legacy": servers(port), "new": servers(port)}, rollout("shop", 50))
    jar = edge.directory / "cookies"
    edge.curl("-c", jar, "-d", "user=ana", f"{edge.http}/login")
    cookies = {fields[5]: fields[6] for fields in (line.split("\t") for line in jar.read_text().replace("#HttpOnly_", "").splitlines()) if len(fields) == 7}
    split = [part for name, value in cookies.items() for part in ("-H", f"cookie: {name}={value}")]
    for scheme, where in (("http", edge.http_port), ("https", edge.https_port)):
        command, seen = edge.run("nghttp", *split, "-H", ":authority: shop.example", f"{scheme}://127.0.0.1:{where}/whoami")
        report(f"a session of Flask over {scheme}", b"ana x1y2z3" in seen and len(cookies) == 2, command.replace(cookies.get("session", "-"), "..."), f"{len(cookies)} cookies in fields of their own: {'ana x1y2z3' if b'ana x1y2z3' in seen else seen!r}")
    command, seen = edge.curl("-b", jar, f"{edge.http}/whoami")
    report("a session of Flask over HTTP/1.1", seen.strip() == b"ana x1y2z3", command, seen.decode().strip())


def check_closing(edge, report):
    """nginx closes a connection of HTTP/2 after 1,000 requests, in good order; no request may suffer from that."""
    root, port = edge.directory / "closing", free_port()
    root.mkdir()
    conf = root / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    temporary = " ".join(f"{kind}_temp_path {root}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    conf.write_text(
        f"""worker_processes 1; daemon off; {user} pid {root}/pid; error_log {root}/error.log;
events {{ worker_connections 8192; }}
http {{ access_log off; {temporary} server {{ listen 127.0.0.1:{port} http2 backlog=1024; location / {{ return 200 "ok\\n"; }} }} }}
"""
    )
    edge.spawn([program("nginx"), "-c", str(conf), "-p", str(root), "-e", str(root / "error.log")], "closing")
    until("nginx", lambda: is_open(port), 0.01)
    edge.start({"legacy": servers(port) + "\nhttp2 = true", "new": servers(port) + "\nhttp2 = true"}, rollout("shop", 100))
    many = 5_000 if edge.options.short else 50_000
    command, good, bad, _ = edge.h2load("-n", many, "-c4", "-m25", "-H", "x-user-id: u", "-d", edge.www / "small.bin", f"http://127.0.0.1:{edge.http_port}/", seconds=600)
    failed = edge.rollout()["new"]["failed"]
    report("uploads over h2c to nginx with its own keepalive_requests", good == many and bad == 0 and failed == 0, command, f"{good} succeeded, {bad} failed; {failed} failures of new")
    script = edge.directory / "post.lua"
    script.write_text('wrk.method = "POST"\nwrk.body = string.rep("x", 1024)\nwrk.headers["x-user-id"] = "u"\n')
    command, seen = edge.run("wrk", "-t1", "-c50", f"-d{10 if edge.options.short else 15}s", "-s", script, f"http://127.0.0.1:{edge.http_port}/")
    broken = re.findall(rb"Socket errors[^\n]*", seen)
    lost = int((re.search(rb"Non-2xx or 3xx responses: (\d+)", seen) or [0, 0])[1])
    count = int((re.search(rb"(\d+) requests in", seen) or [0, 0])[1])
    failed = edge.rollout()["new"]["failed"] - failed
    # nginx answers here before it has read the upload. The engine sometimes loses such an answer to an HTTP/1.1 client if the upload was sent again.
    # That is about 1 in 4,000.
    report("uploads over HTTP/1.1 to the same", count > 1_000 and not broken and lost * 1_000 < count and failed == 0, command, f"{count} answered, {lost} of them with 502, {broken or 'no broken connection'}; {failed} failures of new")


def check_grpc(edge, report):
    if not edge.python:
        return
    legacy, new = edge.peer("grpc_peer.py", "legacy"), edge.peer("grpc_peer.py", "new")
    backends = {"legacy": f"{servers(legacy)}\nhttp2 = true", "new": f"{servers(new)}\nhttp2 = true"}
    edge.start(backends, rollout("checkout", 100))
    plain = f"127.0.0.1:{edge.http_port}"
    for target, more in ((plain, ()), (f"127.0.0.1:{edge.https_port}", (edge.directory / "ca.pem", "shop.example"))):
        command = edge.say(["grpc_peer.py", "calls", target, *more])
        for call in edge.calls("grpc_peer.py", "calls", target, *more):
            report(f"grpcio: {call['call']}", call["holds"], command, call["figures"])
    count = 20
    for code, is_failure in ((14, True), (13, True), (5, False), (0, False)):
        def failures():
            return edge.metric("cutover_failures_total", backend="new")

        def requests():
            return edge.metric("cutover_requests_total", backend="new")

        before, asked = failures(), requests()
        [ends] = edge.calls("grpc_peer.py", "fail", plain, code, count)
        until("the requests to be counted", lambda: requests() >= asked + count, 0.01)
        counted = failures() - before
        report(f"grpc-status {code}", counted == (count if is_failure else 0), edge.say(["grpc_peer.py", "fail", plain, code, count]), f"{ends} at the client; {counted} of {count} are failures of new")
    edge.file.write_text(edge.text(backends, rollout("checkout", 50, guard="[rollout.guard]\n")))
    edge.ask("POST", "/api/v1/reload", {})
    load = subprocess.Popen([edge.python, str(HERE / "peers/grpc_peer.py"), "load", plain, "60"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        asked = edge.metric("cutover_requests_total", backend="new")
        until("calls on new", lambda: edge.metric("cutover_requests_total", backend="new") > asked + 200, 0.02)
        assert edge.rollout()["phase"] == "holding", edge.rollout()
        edge.calls("grpc_peer.py", "break", f"127.0.0.1:{new}", 13)
        broke = time.monotonic()
        until("the rollback", lambda: edge.rollout()["phase"] == "rolled_back", 0.005)
        took = time.monotonic() - broke
        sentence = edge.rollout()["latch"]["sentence"]
        ends = json.loads(load.communicate("", timeout=PATIENCE)[0])
    finally:
        load.kill()
        load.wait()
    report("grpc-status 13 for everything", ends.get("INTERNAL", 0) < 100, edge.say(["grpc_peer.py", "load", plain, "60"]), f"rolled back {took * 1000:.0f} ms after the fault was set; calls: {ends}; {sentence}")


def check_websocket(edge, report):
    if not edge.python:
        return
    port = edge.peer("websocket_peer.py")
    edge.start({"legacy": servers(port), "new": servers(port)}, rollout("checkout", 50))
    for arguments in ((f"ws://127.0.0.1:{edge.http_port}",), ("wss://shop.example", edge.directory / "ca.pem", f"127.0.0.1:{edge.https_port}")):
        for call in edge.calls("websocket_peer.py", "calls", *arguments):
            report(f"websockets: {call['call']}", call["holds"], edge.say(["websocket_peer.py", "calls", *arguments]), call["figures"])
    failures = edge.metric("cutover_failures_total")
    report("WebSockets are no failures", failures == 0, "cutover_failures_total", f"{failures}")


def check_streaming(edge, report):
    streams, nginx = edge.streams(), edge.nginx("files")
    h2c = edge.nghttpd()
    backends = {"legacy": servers(streams), "new": servers(nginx.plain), "spare": servers(nginx.plain), "h2c": f"{servers(h2c)}\nhttp2 = true"}
    more = 'match = { host = "%s.shop.example" }\nlegacy = "%s"\nnew = "spare"'
    rollouts = rollout("files", 0, more % ("files", "new")) + rollout("h2c", 0, more % ("h2c", "h2c")) + rollout("rest", 0)
    edge.start(backends, rollouts, 'max_body = "2GiB"')
    ports = {"http": edge.http_port, "https": edge.https_port}

    def url(scheme, host=""):
        return f"{scheme}://{host}shop.example:{ports[scheme]}"

    count, pause = (8, 0.1) if edge.options.short else (20, 0.25)
    for kind, (flag, scheme) in KINDS.items():
        command = ["curl", "--no-buffer", flag, f"{url(scheme)}/events?n={count}&pause={pause}"]
        resolve = ["--silent", "--max-time", "60", "--cacert", str(edge.directory / "ca.pem"), "--resolve", f"*:{ports[scheme]}:127.0.0.1"]
        client = subprocess.Popen([*command, *resolve], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        lags = [(time.monotonic_ns() - int(line[6:])) / 1e6 for line in client.stdout if line.startswith(b"data: ")]
        client.wait(timeout=PATIENCE)
        bound = pause * 1000 / 2
        report(f"events over {kind}", len(lags) == count and statistics.median(lags) < bound / 2 and max(lags) < bound * 2, edge.say(command), f"{len(lags)} events {pause * 1000:.0f} ms apart, seen {statistics.median(lags):.1f} ms (median), {max(lags):.1f} ms (max) after they were sent")

    for kind, (flag, scheme) in list(KINDS.items())[:2]:
        begun = time.monotonic()
        command, seen = edge.curl("-v", flag, "-X", "PUT", "-H", "Expect: 100-continue", "--expect100-timeout", "15", "-T", edge.www / "medium.bin", f"{url(scheme)}/sink")
        took = time.monotonic() - begun
        wanted = f"{3 * MIB + 17} {hashlib.sha1((edge.www / 'medium.bin').read_bytes()).hexdigest()}"
        report(f"100-continue over {kind}", b"HTTP/1.1 100 Continue" in seen and wanted.encode() in seen and took < 5, command, f"told to continue, {3 * MIB + 17} bytes whole, {took * 1000:.0f} ms in all")

    # What a connection may take for its buffers, and what the allocator keeps of them.
    flat = 24 * MIB
    for kind, (flag, scheme) in KINDS.items():
        with edge.peak() as grown:
            begun = time.monotonic()
            command, seen = edge.curl(flag, f"{url(scheme, 'files.')}/large.bin", "-o", "/dev/null", "-w", "%{http_code} %{size_download}", seconds=300)
            took = time.monotonic() - begun
        report(f"download over {kind}", seen.decode() == f"200 {edge.large}" and grown[0] < flat, command.split(" -w ")[0], f"{seen.decode().split()[1]} bytes in {took:.1f} s ({edge.large / MIB / took:.0f} MiB/s); memory of the proxy grew by {grown[0] / MIB:.1f} MiB at most, to {edge.memory('VmHWM') / MIB:.1f} MiB")
        with edge.peak() as grown:
            begun = time.monotonic()
            command, seen = edge.curl(flag, "-H", "Expect:", "-T", edge.www / "large.bin", f"{url(scheme)}/sink", seconds=300)
            took = time.monotonic() - begun
        report(f"upload over {kind}", seen.startswith(f"{edge.large} ".encode()) and grown[0] < flat, command, f"{seen.decode()[:60].strip()} in {took:.1f} s ({edge.large / MIB / took:.0f} MiB/s); memory grew by {grown[0] / MIB:.1f} MiB at most, to {edge.memory('VmHWM') / MIB:.1f} MiB")
    with edge.peak() as grown:
        command, seen = edge.curl("--http2", f"{url('https', 'h2c.')}/large.bin", "-o", "/dev/null", "-w", "%{http_code} %{size_download}", seconds=300)
    report("download from h2c", seen.decode() == f"200 {edge.large}" and grown[0] < flat, command.split(" -w ")[0], f"{seen.decode()}; memory grew by {grown[0] / MIB:.1f} MiB at most")
    readers = 8
    for kind, (flag, scheme) in (("HTTP/1.1", KINDS["HTTP/1.1"]), ("h2", KINDS["h2"])):
        for host in ("files.", "h2c."):
            with edge.peak() as grown:
                threads = [threading.Thread(target=lambda: edge.curl(flag, "--limit-rate", "100k", "-o", "/dev/null", f"{url(scheme, host)}/large.bin", seconds=3)) for _ in range(readers)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            report(f"slow readers over {kind}", grown[0] < flat, f"{readers} x curl {flag} --limit-rate 100k --max-time 3 {url(scheme, host)}/large.bin", f"memory grew by {grown[0] / MIB:.1f} MiB at most")


def check_bodies(edge, report):
    streams, nginx = edge.streams(), edge.nginx("files")
    h2c = edge.nghttpd("--trailer", "x-checksum: 4711")
    more = 'match = { host = "%s.shop.example" }\nlegacy = "%s"\nnew = "spare"'
    backends = {"legacy": servers(streams), "new": servers(nginx.plain), "spare": servers(nginx.plain), "h2c": f"{servers(h2c)}\nhttp2 = true"}
    edge.start(backends, rollout("h2c", 0, more % ("h2c", "h2c")) + rollout("files", 0, more % ("files", "new")) + rollout("rest", 0))
    ports = {"http": edge.http_port, "https": edge.https_port}
    small = (edge.www / "small.bin").read_bytes()
    for kind, (flag, scheme) in KINDS.items():
        for host, path, of in (("h2c.", "/small.bin", "HTTP/2"), ("", "/trailers", "HTTP/1.1")):
            # curl shows trailers only as they come, between the chunks; nghttp shows every frame.
            if flag == "--http1.1":
                command, seen = edge.curl(flag, "--raw", f"{scheme}://{host}shop.example:{ports[scheme]}{path}")
                end, body = seen.rpartition(b"\r\n0\r\n")[2], seen
            else:
                command, seen = edge.run("nghttp", "-v", "-H", f":authority: {host}shop.example", f"{scheme}://127.0.0.1:{ports[scheme]}{path}")
                _, body = edge.curl(flag, f"{scheme}://{host}shop.example:{ports[scheme]}{path}")
                end = seen.rpartition(b"DATA frame")[2]
            whole = (b"body" if path == "/trailers" else small) in body
            has_trailer = b"x-checksum: 4711" in end
            # The engine hands trailers on between HTTP/2 and HTTP/2 only. A trailer may be dropped (RFC 9110, 6.5.1), a body may not suffer from it.
            must_come = of == "HTTP/2" and flag != "--http1.1"
            report(f"trailers of {of} to {kind}", whole and (has_trailer or not must_come), command, f"body {'whole' if whole else f'NOT whole: {seen[-300:]!r}'}, trailer {'after it' if has_trailer else 'dropped'}")
    command, seen = edge.curl("--http1.0", "--raw", "--include", f"{edge.http}/trailers")
    report("chunks to HTTP/1.0", seen.endswith(b"\r\n\r\nbody") and b"transfer-encoding" not in seen.lower(), command, f"the body until the end of the connection: {seen[-12:]!r}")
    for kind, (flag, scheme) in KINDS.items():
        command, through = edge.curl(flag, "-H", "accept-encoding: gzip", "-D", edge.directory / "head", f"{scheme}://files.shop.example:{ports[scheme]}/text.txt")
        head = (edge.directory / "head").read_text().lower()
        _, direct = edge.curl("-H", "accept-encoding: gzip", f"http://127.0.0.1:{nginx.plain}/text.txt")
        _, part = edge.curl(flag, "-r", "1000-1999", f"{scheme}://files.shop.example:{ports[scheme]}/medium.bin")
        same = through == direct and "content-encoding: gzip" in head and part == (edge.www / "medium.bin").read_bytes()[1000:2000]
        report(f"gzip and ranges to {kind}", same, command.replace("-D head ", ""), f"{len(through)} bytes, the same as without the proxy; a range of {len(part)} bytes")


def served(port, name, authority):
    """The serial number of the certificate that a client is shown."""
    context = ssl.create_default_context(cafile=authority)
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as tcp, context.wrap_socket(tcp, server_hostname=name) as tls:
        return tls.getpeercert()["serialNumber"]


def check_changes(edge, report):
    legacy, new = edge.nginx("legacy"), edge.nginx("new")
    backends = {"legacy": servers(legacy.plain), "new": servers(new.plain)}
    guard = "[rollout.guard]\n"
    edge.start(backends, rollout("checkout", 50, guard=guard))
    rate, reloads, swaps, rollbacks = (300, 20, 4, 5) if edge.options.short else (2000, 100, 20, 5)
    # Two thirds in HTTP/2 over TLS, a sixth in h2c, a sixth by Python over kept connections, with users.
    shares = ((f"https://127.0.0.1:{edge.https_port}/", 8, rate * 2 // 3), (f"http://127.0.0.1:{edge.http_port}/", 2, rate // 6))
    over, results, commands = threading.Event(), [], []

    def by_h2load(url, clients, per_second):
        # Again every two seconds, so that new connections are also made.
        command = ("-n", per_second * 2, "-c", clients, "-m", "10", f"--rps={max(1, per_second // clients)}", "-H", "x-user-id: h2load", url)
        while not over.is_set():
            said, good, bad, _ = edge.h2load(*command)
            results.append((url, good, bad))
        commands.append(said)

    load = Load(edge.http_port, connections=4, rate=rate // 6)
    threads = [threading.Thread(target=by_h2load, args=share) for share in shares]
    begun, done = time.monotonic(), {"reloads": 0, "certificates": 0, "rollbacks": 0}

    def more_traffic(count):
        asked = edge.metric("cutover_requests_total")
        until("more traffic", lambda: edge.metric("cutover_requests_total") >= asked + count, 0.01)

    def reload_often():
        for number in range(reloads):
            more_traffic(rate // 10)
            edge.file.write_text(edge.text(backends, rollout("checkout", 50 if number % 2 else 40, guard=guard)))
            edge.ask("POST", "/api/v1/reload", {})
            done["reloads"] += 1

    def swap_certificates():
        for number in range(swaps):
            before = served(edge.https_port, "shop.example", edge.directory / "ca.pem")
            edge.certificate("renewed", "shop.example")
            for kind in ("pem", "key"):
                os.replace(edge.directory / f"renewed.{kind}", edge.directory / f"shop.{kind}")
            until("the new certificate", lambda: served(edge.https_port, "shop.example", edge.directory / "ca.pem") != before, 0.1)
            done["certificates"] += 1

    def roll_back():
        for _ in range(rollbacks):
            edge.ask("POST", "/api/v1/rollouts/checkout/rollback", {"reason": "edge"})
            assert edge.rollout()["effective_percent"] == 0
            more_traffic(rate // 2)
            edge.ask("POST", "/api/v1/rollouts/checkout/rearm", {"reason": "edge"})
            assert edge.rollout()["effective_percent"] > 0
            more_traffic(rate // 2)
            done["rollbacks"] += 1

    changes = [threading.Thread(target=change) for change in (reload_often, swap_certificates, roll_back)]
    for thread in threads + changes:
        thread.start()
    for thread in changes:
        thread.join()
    took = time.monotonic() - begun
    over.set()
    for thread in threads:
        thread.join()
    failed = load.end()
    seconds = time.monotonic() - begun
    good = sum(good for _, good, _ in results) + load.answered
    bad = sum(bad for _, _, bad in results) + len(failed)
    happened = done == {"reloads": reloads, "certificates": swaps, "rollbacks": rollbacks}
    report(
        "changes under load", bad == 0 and happened and good > rate * seconds / 3, "; ".join(commands),
        f"{good} requests in {seconds:.0f} s ({good / seconds:.0f} per second; {load.answered} of them by Python), {bad} failed {failed[:3] or ''}; {done['reloads']} reloads, {done['certificates']} certificates and {done['rollbacks']} rollbacks with rearm in {took:.0f} s; {edge.metric('cutover_failures_total')} failures counted",
    )


def heir_of(pid):
    """The process that another one has started, if there is one."""
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                return child
    return None


def is_gone(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def check_upgrades(edge, report):
    kit = pathlib.Path(edge.options.cutover).with_name("cutover-loadtest")
    if not kit.exists():
        raise SystemExit(f"{kit} is missing: cargo build -p cutover-loadtest (--release)")
    legacy, new = edge.nginx("legacy"), edge.nginx("new")
    edge.start({"legacy": servers(legacy.plain), "new": servers(new.plain)}, rollout("checkout", 50))
    rate, upgrades = (300, 2) if edge.options.short else (2000, 10)
    command = [str(kit), "run", "--target", f"http://127.0.0.1:{edge.http_port}", "--rps", str(rate), "--duration", f"{upgrades * 4}s", "--connections", "64", "--json"]
    load = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    pids, times = [edge.process.pid], []
    try:
        for _ in range(upgrades):
            old, begun = pids[-1], time.monotonic()
            os.kill(old, signal.SIGUSR2)
            until("the new process", lambda: heir_of(old), 0.005)
            pids.append(heir_of(old))
            until("the old process to end", lambda: edge.process.poll() is not None if old == edge.process.pid else is_gone(old), 0.01)
            times.append(time.monotonic() - begun)
        result = json.loads(load.communicate(timeout=PATIENCE + upgrades * 4)[0])
        bad, percent = result["failures"]["requests"], edge.rollout()["effective_percent"]
        report(
            "upgrades under load", bad == 0 and percent == 50 and not is_gone(pids[-1]), "kill -USR2 PID",
            f"{upgrades} upgrades in {upgrades * 4} s at {rate} requests per second over 64 kept connections: {bad} failed; from the signal to the end of the old process {statistics.median(times):.1f} s (median), {max(times):.1f} s (max)",
        )
    finally:
        load.kill()
        for pid in pids[1:]:
            if not is_gone(pid):
                os.kill(pid, signal.SIGKILL)


def says_something(connection):
    """Whether bytes or the end of a connection wait to be read. By poll, since select knows the first 1,024 descriptors only."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


HEAD = b"GET /small.bin HTTP/1.1\r\nhost: shop.example\r\nx-user-id: idle\r\n\r\n"


def idle(port, count, context=None):
    """Kept connections that have had one answer each, one after the other, and now rest."""
    connections = []
    for _ in range(count):
        connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        if context:
            connection = context.wrap_socket(connection, server_hostname="shop.example")
        connection.sendall(HEAD)
        connections.append(connection)
        got = b""
        while len(got.partition(b"\r\n\r\n")[2]) < 1024:
            part = connection.recv(4096)
            assert part, "an idle connection was closed early"
            got += part
    return connections


class Slow:
    """Clients that send, or read, a byte a second; for each kind the times at which they were cut."""

    KINDS = ("head", "body", "reader")

    def __init__(self, port, count):
        self.cut, self.stop = {kind: [] for kind in self.KINDS}, threading.Event()
        self.clients = {}
        for number in range(count):
            kind = self.KINDS[number % 3]
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(PATIENCE)
            client.connect(("127.0.0.1", port))
            if kind == "body":
                client.sendall(b"PUT /put/slow HTTP/1.1\r\nhost: shop.example\r\ncontent-length: 100000\r\n\r\n")
            elif kind == "reader":
                client.sendall(b"GET /large.bin HTTP/1.1\r\nhost: shop.example\r\n\r\n")
            self.clients[client] = (kind, time.monotonic())
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        text = HEAD[:30]
        beat, turn = time.monotonic(), 0
        while self.clients and not self.stop.is_set():
            for client, (kind, begun) in list(self.clients.items()):
                try:
                    # Readers are seen to be cut by a reset, or by the end after what was on its way.
                    if kind == "reader":
                        alive = client.recv(1) != b""
                    else:
                        client.send(text[turn % 30 : turn % 30 + 1] if kind == "head" and turn < 30 else b"x")
                        alive = not says_something(client)
                except OSError:
                    alive = False
                if not alive:
                    self.cut[kind].append(time.monotonic() - begun)
                    del self.clients[client]
                    client.close()
            beat, turn = beat + 1, turn + 1
            self.stop.wait(max(0.0, beat - time.monotonic()))

    def end(self):
        self.stop.set()
        self.thread.join()
        for client in self.clients:
            client.close()


def p99(edge, rate, seconds):
    log = edge.directory / "requests.log"
    log.unlink(missing_ok=True)
    command, good, bad, _ = edge.h2load("--h1", "-n", rate * seconds, "-c", "8", f"--rps={rate // 8}", f"--log-file={log}", f"http://127.0.0.1:{edge.http_port}/small.bin", seconds=seconds + PATIENCE)
    took = sorted(int(line.split("\t")[2]) for line in log.read_text().splitlines())
    return command, took[len(took) * 99 // 100] / 1000, bad


def check_crowd(edge, report):
    short = edge.options.short
    resting, slow_ones, rate, rounds, seconds, limit = (500, 20, 400, 3, 2, 10) if short else (5000, 200, 1000, 3, 3, 15)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most < resting + slow_ones + 500:
        resting = most - slow_ones - 500
    nginx = edge.nginx("legacy")
    listen = f'keepalive_timeout = "600s"\nheader_timeout = "{limit}s"\nbody_idle_timeout = "{limit}s"\nwrite_timeout = "{limit}s"'
    edge.start({"legacy": f'{servers(nginx.plain)}\nresponse_timeout = "120s"', "new": servers(nginx.plain)}, rollout("checkout", 0), listen)
    p99(edge, rate, 1)
    alone = [p99(edge, rate, seconds)[1] for _ in range(rounds)]

    before = edge.memory()
    connections = idle(edge.http_port, resting)
    plain = (edge.memory() - before) / resting / 1024
    opened = time.monotonic()
    slow = Slow(edge.http_port, slow_ones)
    beside, bad = [], 0
    for _ in range(rounds):
        command, quantile, failed = p99(edge, rate, seconds)
        beside.append(quantile)
        bad += failed
    alive = len(slow.clients)
    measured = time.monotonic() - opened
    lenient = 20 if short else 2
    one, other = statistics.median(alone), statistics.median(beside)
    report(
        "normal traffic beside a crowd", bad == 0 and other <= max(2 * one, one + lenient) and alive >= slow_ones * 2 // 3, command,
        f"p99 {one:.2f} ms alone, {other:.2f} ms beside {resting} idle and {slow_ones} slow clients (medians of {rounds} runs of {seconds} s); {bad} failed; {alive} slow clients still there after {measured:.0f} s",
    )
    expected = resting
    try:
        until("the slow clients to be cut", lambda: edge.metric("cutover_connections", state="open") <= expected or time.monotonic() - opened > 3 * limit, 0.1)
        took = time.monotonic() - opened
        left = edge.metric("cutover_connections", state="open") - expected
        # Readers still have what was on its way; the others see their end at their next byte.
        until("the slow clients to notice", lambda: left > 0 or all(kind == "reader" for kind, _ in list(slow.clients.values())), 0.1)
    finally:
        slow.end()
    times = ", ".join(f"{kind} {min(cut):.0f} to {max(cut):.0f} s ({len(cut)})" for kind, cut in slow.cut.items() if cut)
    report("slow clients are cut", left <= 0, f"a byte a second, limits {limit} s", f"{max(0, left)} of {slow_ones} left after {took:.0f} s; seen by the clients: {times}; readers by the proxy's count")
    whole = sum(1 for connection in connections if not says_something(connection))
    report("idle clients are kept", whole == resting, f"{resting} kept connections", f"{whole} still open")
    for connection in connections:
        connection.close()
    until("them to be gone", lambda: edge.metric("cutover_connections", state="open") == 0, 0.05)

    context = ssl.create_default_context(cafile=edge.directory / "ca.pem")
    context.set_alpn_protocols(["http/1.1"])
    edge.process.terminate()
    edge.process.wait(timeout=PATIENCE)
    # A fresh process: what the plain connections left behind would be taken for free memory.
    edge.start({"legacy": servers(nginx.plain), "new": servers(nginx.plain)}, rollout("checkout", 0), listen)
    idle_once = idle(edge.https_port, 50, context)
    before = edge.memory()
    connections = idle(edge.https_port, resting, context)
    tls = (edge.memory() - before) / resting / 1024
    for connection in connections + idle_once:
        connection.close()
    report("memory of an idle connection", plain < 30 and tls < 32, f"{resting} kept connections after one request each", f"{plain:.1f} KiB plain, {tls:.1f} KiB with TLS")


def check_dead(edge, report):
    rate = 200 if edge.options.short else 1000
    for how in ("dies under load", "is dead from the start"):
        legacy, new = edge.nginx("legacy" + how[0]), edge.nginx("new" + how[0])
        if how != "dies under load":
            new.die()
        edge.start({"legacy": servers(legacy.plain), "new": servers(new.plain)}, rollout("checkout", 50, guard="[rollout.guard]\n"))
        load = Load(edge.http_port, connections=8, rate=rate)
        try:
            if how == "dies under load":
                until("traffic on new", lambda: edge.metric("cutover_requests_total", backend="new") > 3 * rate, 0.02)
                new.die()
            died = time.monotonic()
            until("the rollback", lambda: edge.rollout()["phase"] == "rolled_back", 0.002)
            took = time.monotonic() - died
            answered = load.answered
            until("more traffic", lambda: load.answered > answered + rate // 2, 0.02)
        finally:
            failed = load.end()
        of_new, of_legacy = (edge.metric("cutover_failures_total", backend=side) for side in ("new", "legacy"))
        saved, not_saved, denied = (edge.metric("cutover_failovers_total", result=result) for result in ("saved", "failed", "denied"))
        asked = edge.rollout()
        budget = max(10, edge.metric("cutover_requests_total", backend="new") // 5)
        report(
            f"new {how}", not failed and of_legacy == 0 and not_saved == 0 and saved <= budget and of_new > 0, f"GET by 8 kept connections of Python at {rate} per second, 50 %",
            f"{len(failed)} of {load.answered} failed at the clients; rolled back after {took * 1000:.0f} ms; new: {of_new} failures, of which legacy saved {saved} (budget {budget}, denied {denied}); legacy: {of_legacy} failures; {asked['latch']['sentence']}",
        )
        edge.process.terminate()
        edge.process.wait(timeout=PATIENCE)
        shutil.rmtree(edge.directory / "state", ignore_errors=True)


CHECKS = {
    "protocols": check_protocols,
    "upstreams": check_upstreams,
    "sessions": check_sessions,
    "closing": check_closing,
    "grpc": check_grpc,
    "websocket": check_websocket,
    "streaming": check_streaming,
    "bodies": check_bodies,
    "changes": check_changes,
    "upgrades": check_upgrades,
    "crowd": check_crowd,
    "dead": check_dead,
}
NEEDS_ENVIRONMENT = ("sessions", "grpc", "websocket")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--cutover", default=str(ROOT / "target/release/cutover"))
    arguments.add_argument("--short", action="store_true", help="smaller numbers, for every test run")
    arguments.add_argument("--engine", default="auto", choices=("auto", "proxy"), help="what moves the bytes of plain requests")
    arguments.add_argument("--only", nargs="*", choices=CHECKS, default=list(CHECKS))
    arguments.add_argument("--json", action="store_true")
    options = arguments.parse_args()
    options.cutover = os.path.abspath(options.cutover)
    options.requests = 2_000 if options.short else 100_000
    for tool in TOOLS:
        if not pathlib.Path(program(tool)).exists():
            raise SystemExit(f"{tool} is not installed: `make packages` installs it")
    python, why = environment() if set(options.only) & set(NEEDS_ENVIRONMENT) else (None, None)
    held, skipped = {True: 0, False: 0}, 0
    for name in options.only:
        if name in NEEDS_ENVIRONMENT and not python:
            skipped += 1
            print(json.dumps({"check": name, "skipped": why}) if options.json else f"skip  {name}: its Python packages cannot be installed: {why}", flush=True)
            continue
        edge = Edge(options, python)

        def report(what, holds, command, figures):
            held[bool(holds)] += 1
            line = {"check": what, "holds": bool(holds), "command": command, "figures": figures}
            print(json.dumps(line) if options.json else f"{'ok  ' if holds else 'FAIL'}  {what}: `{command}`: {figures}", flush=True)

        try:
            CHECKS[name](edge, report)
        finally:
            edge.end()
    print(f"edge: {held[True]} passed, {held[False]} failed, {skipped} skipped", file=sys.stderr)
    sys.exit(1 if held[False] else 0)


if __name__ == "__main__":
    main()
