#!/usr/bin/env python3
"""A long mixed run against a real proxy: requests with numbers, while the file is edited, users are rolled back and re-armed, processes take over from each other and hostile clients come and go.

Every request has a number, and the backends keep a ledger: a request whose answer the client got must have come once, neither lost nor doubled, and each has to be answered. Clients speak HTTP/1.1 without TLS.

No process may grow: each is measured every few seconds, the first minutes of its life aside, and what it needs at the least in its last quarter is compared with the first. So that this says something,
processes live for a quarter of an hour before another takes over (`--upgrade-every`).
"""
import argparse
import asyncio
import collections
import contextlib
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

# Importing leaves no files in the source tree.
sys.dont_write_bytecode = True
from acceptance import ROOT, free_port  # noqa: E402

PATIENCE = 20
# Seconds between two edits; every so many edits a rollback with a rearm.
STEP, ROLLBACK_EVERY = 5, 7
# Minutes until a process has all the memory that it needs; MiB that it may grow by after that.
WARM, GROWTH = 2, 3
# What no honest client sends, and how such clients end: by a reset, after an answer, or at once.
HOSTILE = [
    b"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nXX",
    b"\x16\x03\x01\x00\xff",
    b"GET / HTTP/1.1\r\nHost: h\r\n" + b"x: y\r\n" * 300,
    b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\nabc",
    b"GET / HTTP/1.1\r\nHost: h\r\n\r\n" * 50,
    b"GET /" + b"a" * 30_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/1.1\nHost: h\n\n",
    b"GET / HTTP/1.1\r\nHost: h\r\nX-",
]


def length_of(head):
    found = re.search(rb"\r\ncontent-length: *(\d+)", head.lower())
    return int(found[1]) if found else 0


class Ledger:
    """Backends that count how often each number came."""

    def __init__(self):
        self.seen = collections.Counter()

    async def serve(self, reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                number = re.search(rb"\r\nx-number: *(\S+)", head.lower())
                await reader.readexactly(length_of(head))
                # What a hostile client smuggles has no number.
                if number:
                    self.seen[number[1]] += 1
                closes = random.random() < 0.02
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n" + (b"connection: close\r\n" if closes else b"") + b"\r\nok")
                await writer.drain()
                if closes:
                    break
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


class Run:
    def __init__(self, options, folder, port, admin):
        self.options, self.folder, self.port, self.admin = options, folder, port, admin
        self.ledger, self.is_over = Ledger(), asyncio.Event()
        self.counts, self.problems = collections.Counter(), []
        # Of each process: when, MiB.
        self.memory = collections.defaultdict(list)

    def text(self, percent):
        legacy, new = self.backends
        return f"""[listen]
http = ["127.0.0.1:{self.port}"]
engine = "{self.options.engine}"
header_timeout = "5s"
[admin]
address = "127.0.0.1:{self.admin}"
[state]
directory = "{self.folder}/state"
[log]
access = "off"
[backend.legacy]
servers = ["127.0.0.1:{legacy}"]
[backend.new]
servers = ["127.0.0.1:{new}"]
[[rollout]]
id = "all"
percent = {percent}
key = ["header:x-user-id"]
"""

    def problem(self, text):
        self.problems.append(text)
        print(f"FAIL  {text}", flush=True)

    async def client(self, which):
        """One connection after the other, some requests on each; what is answered is looked up in the ledger."""
        chance, number, writer = random.Random(which), 0, None
        while not self.is_over.is_set():
            number += 1
            name = f"{which}-{number}"
            method = "POST" if chance.random() < 0.7 else "GET"
            body = b"x" * chance.choice([0, 5, 300, 5_000]) if method == "POST" else b""
            try:
                if writer is None:
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                head = f"{method} /{which} HTTP/1.1\r\nhost: h\r\nx-user-id: u{chance.randrange(20_000)}\r\nx-number: {name}\r\ncontent-length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
                answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
                await reader.readexactly(length_of(answer))
                self.counts["requests"] += 1
                came = self.ledger.seen.pop(name.encode(), 0)
                if not answer.startswith(b"HTTP/1.1 200 ") or came != 1:
                    self.problem(f"{method} {name}: {answer.splitlines()[0].decode()}, came {came} times")
                if b"connection: close" in answer.lower() or chance.random() < 0.01:
                    writer.close()
                    writer = None
            except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
                self.problem(f"{method} {name} got no answer: {error!r}")
                writer = None
            await asyncio.sleep(chance.random() * 2 * self.options.clients / self.options.rps)

    async def hostile(self, which):
        chance = random.Random(-which)
        while not self.is_over.is_set():
            writer = None
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.write(chance.choice(HOSTILE))
                ends = chance.random()
                if ends < 0.3:
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                elif ends < 0.8:
                    await asyncio.wait_for(reader.read(1 << 16), 0.2)
                self.counts["hostile connections"] += 1
            except (OSError, asyncio.TimeoutError):
                pass
            if writer:
                writer.close()
            await asyncio.sleep(0.05)

    async def command(self, *arguments):
        done = await asyncio.create_subprocess_exec(self.options.cutover, *arguments, "--admin", f"http://127.0.0.1:{self.admin}", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        _, said = await done.communicate()
        if done.returncode:
            self.problem(f"{' '.join(arguments)}: {said.decode().strip()}")
        return done.returncode == 0

    def log(self):
        return (self.folder / "log").read_text()

    def pid(self):
        return int(re.findall(r'"cutover is ready".*"pid":(\d+)', self.log())[-1])

    async def until(self, what, holds):
        for _ in range(PATIENCE * 10):
            if holds():
                return True
            await asyncio.sleep(0.1)
        self.problem(f"waited {PATIENCE} s for {what}")
        return False

    async def upgrade(self):
        old = self.pid()
        os.kill(old, signal.SIGUSR2)
        if await self.until("another process", lambda: self.pid() != old):
            self.counts["upgrades"] += 1

    def weigh(self):
        """Writes down what the process that serves now needs."""
        pid = self.pid()
        resident = int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text())[1]) / 1024
        self.memory[pid].append((time.monotonic(), resident))
        return resident

    def growth(self):
        """How much each process grew that was there for long enough: its least in the first and in the last quarter of the time after it was warm."""
        for seen in self.memory.values():
            warm = [resident for at, resident in seen if at - seen[0][0] >= WARM * 60]
            quarter = len(warm) // 4
            if quarter:
                yield min(warm[-quarter:]) - min(warm[:quarter])

    async def disturb(self):
        loop, edit = asyncio.get_running_loop(), 0
        end = loop.time() + self.options.minutes * 60
        upgrade = loop.time() + self.options.upgrade_every * 60
        while loop.time() < end:
            await asyncio.sleep(STEP)
            edit += 1
            (self.folder / "cutover.toml").write_text(self.text(random.choice([30, 40, 50, 60])))
            self.counts["edits"] += 1
            if edit % ROLLBACK_EVERY == 0 and await self.command("rollback", "all", "--reason", "endurance"):
                await asyncio.sleep(1)
                self.counts["rollbacks with rearm"] += await self.command("rearm", "all", "--reason", "endurance")
            if loop.time() >= upgrade:
                await self.upgrade()
                upgrade += self.options.upgrade_every * 60
            resident = self.weigh()
            if edit % 12 == 0:
                print(f"      {edit * STEP / 60:.0f} min: {resident:.0f} MiB, {dict(self.counts)}", flush=True)
        self.is_over.set()

    async def play(self):
        servers = [await asyncio.start_server(self.ledger.serve, "127.0.0.1", 0) for _ in range(2)]
        self.backends = [server.sockets[0].getsockname()[1] for server in servers]
        file = self.folder / "cutover.toml"
        file.write_text(self.text(50))
        with open(self.folder / "log", "w") as log:
            subprocess.Popen([self.options.cutover, "run", "-c", str(file)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if not await self.until("the proxy to be ready", lambda: '"cutover is ready"' in self.log()):
            return
        tasks = [self.client(which) for which in range(self.options.clients)] + [self.hostile(which) for which in range(3)]
        await asyncio.gather(self.disturb(), *tasks)
        # What has come and was answered has been taken off: what is left came without an answer that a client read, or twice.
        left = sum(self.ledger.seen.values())
        if left:
            self.problem(f"{left} requests came once more or to nobody, such as {list(self.ledger.seen)[:3]}")
        for grown in self.growth():
            if grown > GROWTH:
                self.problem(f"a process grew by {grown:.1f} MiB")

    def end(self):
        # Not always a child of ours. It is gone when it is no more, or a child that nobody has asked for its end.
        with contextlib.suppress(OSError, IndexError):
            last = self.pid()
            os.kill(last, signal.SIGINT)
            for _ in range(PATIENCE * 10):
                if pathlib.Path(f"/proc/{last}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                    break
                time.sleep(0.1)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--cutover", default=str(ROOT / "target/release/cutover"))
    arguments.add_argument("--minutes", type=float, default=60)
    arguments.add_argument("--rps", type=float, default=200, help="about so many requests with numbers per second")
    arguments.add_argument("--clients", type=int, default=24)
    arguments.add_argument("--upgrade-every", type=float, default=15, help="minutes that a process lives")
    arguments.add_argument("--engine", choices=["auto", "proxy"], default="auto")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="endure-") as folder:
        run = Run(options, pathlib.Path(folder), free_port(), free_port())
        try:
            asyncio.run(run.play())
        finally:
            run.end()
    resident = [resident for seen in run.memory.values() for _, resident in seen]
    memory = f"{min(resident):.0f} to {max(resident):.0f} MiB" if resident else "unknown"
    grown = ", ".join(f"{grown:+.1f}" for grown in run.growth()) or "no process was there for long enough to say"
    print(f"{'FAIL' if run.problems else 'ok  '}  {dict(run.counts)}; {len(run.problems)} problems; memory {memory}, growth of each process in MiB: {grown}")
    sys.exit(1 if run.problems else 0)


if __name__ == "__main__":
    main()
