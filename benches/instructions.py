"""Instructions in user space of one request through the whole proxy, beside a pingora proxy that does nothing.

Each proxy runs under valgrind and is asked twice, for few and for many requests; the difference of the two counts over the difference of the requests is what one request costs, start-up
and warm-up left out. Unlike times, counts are nearly the same on a busy machine. Not in them: the kernel, and how long an instruction takes. What a thread does by the clock (a tick
four times a second) is in them and weighs more here than in life, since a program under valgrind is slow: some 3 % of cutover's count.

A copy of n bytes by one instruction that repeats itself counts as n.
"""

import argparse
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

FEW, MANY = 1_000, 4_000
HEADERS = ["x-user-id: 2f1c9d0e-7b6a-4c1d-8e2f-123456789abc", "accept-language: en-GB,en;q=0.5", "accept-encoding: gzip, deflate, br", "cookie: theme=dark; session=2f1c9d0e7b6a"]
START_SECONDS = 120


def config(folder, backends, access_log):
    """Two rollouts, of which the second takes the requests: guard, metrics and headers are on."""
    rollout = '[[rollout]]\nid = "{0}"\nmatch = {{ path = "/{0}" }}\npercent = 50\nkey = ["header:x-user-id"]\n'
    return (
        f'[listen]\nhttp = ["127.0.0.1:0"]\n[admin]\naddress = "127.0.0.1:0"\n[state]\ndirectory = "{folder}/state"\n[log]\naccess = "{access_log}"\nfile = "{folder}/access"\n'
        f'[backend.legacy]\nservers = ["{backends[0]}"]\n[backend.new]\nservers = ["{backends[1]}"]\n' + rollout.format("search") + rollout.format("checkout")
    )


class Bed:
    def __init__(self, binaries):
        self.binaries, self.processes = binaries, []

    def __enter__(self):
        self.backends = [self.backend(name) for name in ("legacy", "new")]
        return self

    def __exit__(self, *_):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()

    def start(self, command, **streams):
        process = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, text=True, **streams)
        self.processes.append(process)
        return process

    def backend(self, name):
        process = self.start([self.binaries / "cutover-loadtest", "backend", "--name", name, "--body-bytes", "1024"], stdout=subprocess.PIPE)
        return process.stdout.readline().strip().rsplit("/", 1)[1]

    def address(self, process, said):
        """Where a proxy listens for clients, once it does: it says so."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            found = re.search(r"(?:listening on|http://|listens? (?:on|at)) ?(?:http://)?(127\.0\.0\.1:[1-9]\d*)", said.read_text())
            if found:
                return found.group(1)
            if process.poll() is not None:
                break
            time.sleep(0.1)
        raise SystemExit(f"the proxy did not say where it listens: {said.read_text()}")

    def count(self, proxy, requests, access_log="off"):
        folder = pathlib.Path(tempfile.mkdtemp(prefix="instructions-"))
        said, counted = folder / "said", folder / "counted"
        if proxy == "minipingora":
            command = [self.binaries / "minipingora", "--listen", "127.0.0.1:0", "--threads", "1"] + [part for backend in self.backends for part in ("--backend", backend)]
        else:
            (folder / "cutover.toml").write_text(config(folder, self.backends, access_log))
            command = [self.binaries / "cutover", "run", "-c", folder / "cutover.toml", "--threads", "1"]
        with said.open("w") as told:
            process = self.start(["valgrind", "--tool=lackey", "--basic-counts=yes", f"--log-file={counted}"] + command, stdout=told, stderr=told)
            address = self.address(process, said)
            load = ["h2load", "--h1", "-n", str(requests), "-c", "8", "-t", "1"] + [part for header in HEADERS for part in ("-H", header)]
            answered = subprocess.run(load + [f"http://{address}/checkout/basket/items"], capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL).stdout
            if f"{requests} succeeded" not in answered:
                raise SystemExit(f"not every request was answered:\n{answered}")
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        instructions = int(re.search(r"guest instrs:\s+([\d,]+)", counted.read_text()).group(1).replace(",", ""))
        shutil.rmtree(folder)
        return instructions


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binaries", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parents[1] / "target/release")
    arguments = parser.parse_args()
    for tool in ("valgrind", "h2load"):
        if not shutil.which(tool):
            raise SystemExit(f"{tool} is not installed")
    base = None
    print("| proxy | instructions of a request | to minipingora |\n|---|---:|---:|")
    with Bed(arguments.binaries) as bed:
        for name, proxy, access_log in (("minipingora", "minipingora", "off"), ("cutover", "cutover", "off"), ("cutover, access log", "cutover", "all")):
            each = (bed.count(proxy, MANY, access_log) - bed.count(proxy, FEW, access_log)) / (MANY - FEW)
            base = base or each
            print(f"| {name} | {each:,.0f} | {each / base:.2f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
