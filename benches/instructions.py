"""Instructions per request, by the difference of two runs under valgrind: start-up and warm-up cancel out."""

import pathlib
import re
import shutil
import subprocess
import sys

BINARY = sys.argv[1] if len(sys.argv) > 1 else str(pathlib.Path(__file__).resolve().parents[1] / "target/release/instructions")
FEW, MANY = 20_000, 60_000

if not shutil.which("valgrind"):
    raise SystemExit("valgrind is not installed: apt-get install valgrind")


def count(piece, requests):
    command = ["valgrind", "--tool=lackey", "--basic-counts=yes", BINARY, piece, str(requests)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stderr
    return int(re.search(r"guest instrs:\s+([\d,]+)", said).group(1).replace(",", ""))


for piece in ("success", "success-on-legacy", "failure", "gate", "gate-logged"):
    print(f"{piece}: {(count(piece, MANY) - count(piece, FEW)) / (MANY - FEW):.1f} instructions per request", flush=True)
