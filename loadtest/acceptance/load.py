#!/usr/bin/env python3
"""Every scenario of the load kit in a short form, against a real proxy. What must hold on any machine is asserted, numbers are only told.

The rates are low so that a debug binary on a busy machine bears them.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATIENCE = 120

# One round: six reloads, a rollback, a rearm; a certificate.
SHORT_STORM = ["load.rate=250", "load.duration=9s", "part.1.from=0s", "part.1.to=2s", "part.1.repeat=1", "part.2.from=2s", "part.2.to=9s", "part.2.repeat=1"]
for number, at in enumerate((2000, 2500, 3000, 3500, 4000, 4500, 5500, 6500, 3250), 1):
    SHORT_STORM += [f"step.{number}.at={at}ms", f"step.{number}.repeat=1"]

GENTLE = ["capacity.start=20", "capacity.most=20", "capacity.step=1s", "capacity.p99=10s", "load.timeout=10s"]
NARROW = ["capacity.start=40", "capacity.step=1s", "capacity.p99=400ms", "capacity.precision=2.0"]

# name, settings, further arguments, the bottleneck that has to be named
SCENARIOS = [
    ("steady", ["load.rate=300", "load.duration=3s"], [], None),
    ("ramp", ["load.rate=300", "load.duration=6s", "step.1.at=1500ms", "step.2.at=3s", "step.3.at=4500ms"], [], None),
    ("breach", ["load.rate=400", "load.duration=4s", "step.1.at=1500ms", "load.connections=128"], ["--runs", "1"], None),
    ("breach", ["load.rate=400", "load.duration=4s", "step.1.at=1500ms", "load.connections=128", "step.1.dial={ refuse = true }"], ["--runs", "1"], None),
    ("rollback", ["load.rate=300", "load.duration=8s", "step.1.at=1s", "step.2.at=5s", "websockets.count=20"], [], None),
    ("reload-storm", SHORT_STORM, [], None),
    ("slow-clients", ["load.rate=200", "load.duration=6s", "slow.from=1s", "slow.heads=20", "slow.readers=5", "slow.idle=20", "part.1.from=0s", "part.1.to=1s", "part.2.from=1s", "part.2.to=6s"], [], None),
    ("soak", ["load.rate=200", "load.duration=8s", "websockets.count=10", "step.1.at=1s", "step.1.repeat=1", "step.2.at=3s", "step.2.repeat=1", "step.3.at=4s", "step.3.repeat=1", "step.4.at=6s", "step.4.repeat=1"], [], None),
    ("capacity", GENTLE, [], "nothing"),
    ("capacity", [*NARROW, "backend.legacy.concurrency=2", "backend.legacy.latency=40ms"], [], "backend"),
    ("capacity", ["capacity.start=100", "capacity.step=1s", "capacity.precision=2.0", "variables.max_connections=8", "capacity.p99=1s"], [], "connection-limit"),
    ("capacity", [*NARROW, "load.connections=1", "backend.legacy.latency=40ms"], [], "generator"),
]


def play(options, name, settings, arguments, bottleneck):
    expected = [] if bottleneck in (None, "nothing") else ["--set", f"expect.bottleneck={bottleneck}"]
    command = [options.loadtest, "scenario", name, "--cutover", options.cutover, "--assert", "--json", *arguments, *expected]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE)
    try:
        outcome = json.loads(done.stdout)
    except ValueError:
        return False, done.stderr.strip()
    sentences = [verdict for verdict in outcome["verdicts"] if verdict["holds"] is False]
    if bottleneck == "nothing":
        found = outcome["runs"][0]["capacity"]["bottleneck"]
        return done.returncode == 0 and found is None, outcome["runs"][0]["capacity"]["sentence"]
    if sentences:
        return False, "; ".join(f"{verdict['name']}: {verdict['sentence']}" for verdict in sentences)
    told = {verdict["name"]: verdict["sentence"] for verdict in outcome["verdicts"]}
    line = told.get("bottleneck") or told.get("time to zero") or told.get("p99 ratio") or told["failed"]
    return done.returncode == 0, f"{told.get('bad answers', '')}{', ' if 'bad answers' in told else ''}{line}"


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--cutover", default=str(ROOT / "target/release/cutover"))
    arguments.add_argument("--loadtest", default=str(ROOT / "target/release/cutover-loadtest"))
    arguments.add_argument("--only", nargs="*", choices=sorted({name for name, *_ in SCENARIOS}))
    options = arguments.parse_args()
    for program in (options.cutover, options.loadtest):
        if not pathlib.Path(program).exists():
            raise SystemExit(f"{program} is missing: cargo build -p cutover -p cutover-loadtest (--release)")
    failed, begin = 0, time.monotonic()
    for name, settings, more, bottleneck in SCENARIOS:
        if options.only and name not in options.only:
            continue
        holds, sentence = play(options, name, settings, more, bottleneck)
        failed += not holds
        print(f"{'ok  ' if holds else 'FAIL'}  {name}{f' ({bottleneck})' if bottleneck else ''}: {sentence}", flush=True)
    print(f"scenarios: {failed} failed, {time.monotonic() - begin:.0f} s", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
