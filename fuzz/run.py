"""Runs fuzz targets, one per core, and prints a line for each:   python fuzz/run.py [--seconds 60] [TARGET...]

What a target finds lies in build/fuzz/TARGET: its own corpus, and the inputs that ended it (crash-*, timeout-*, oom-*).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import sanitize

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ["states", "cells", "grammar", "gbnf", "request", "media", "mmproj", "picture"]
PYTHON = ["python_grammar", "python_images"]
CORPUS = {"python_images": "picture"}  # of another target

# An input may take this much. Slow machines: sanitizers cost a factor of five.
LIMITS = ["-timeout=60", "-rss_limit_mb=4096", "-malloc_limit_mb=2048"]
# docs/server.md: a picture takes 33 KB in one piece for each byte of its file at most, and WebP 4 MB in any case.
OWN_LIMITS = {"picture": ["-malloc_limit_mb=256", "-max_len=4096"]}


def command(target: str, build: Path) -> list[str]:
    """Starts a target."""
    if target in PYTHON:
        return [sys.executable, str(ROOT / "fuzz" / f"{target}.py")]
    return [str(build / "bin" / f"fuzz-{target}")]


def run(target: str, build: Path, seconds: int) -> str | None:
    """Runs one; prints its line; returns what it found."""
    folder = ROOT / "build" / "fuzz" / target
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    seeds = ROOT / "fuzz" / "corpus" / CORPUS.get(target, target)
    line = [*command(target, build), f"-max_total_time={seconds}", f"-artifact_prefix={folder}/", *LIMITS]
    line += OWN_LIMITS.get(target, [])
    line += ["-print_final_stats=1", "-verbosity=1", str(corpus), *([str(seeds)] if seeds.is_dir() else [])]
    log = folder / "log.txt"
    started = time.monotonic()
    with log.open("wb") as out:
        code = subprocess.run(line, stdout=out, stderr=out, env={**os.environ, **sanitize.options(build)}).returncode
    took = time.monotonic() - started
    text = log.read_text(errors="replace")
    runs = re.findall(r"stat::number_of_executed_units: (\d+)", text) or re.findall(r"^#(\d+)", text, re.M)
    covered = re.findall(r"cov: (\d+) ft: (\d+)", text)
    how = f"{took:5.0f} s, {runs[-1] if runs else '?':>9} inputs, {covered[-1][0] if covered else '?':>6} edges"
    if code == 0:
        print(f"{target:15} {how}: no finding", flush=True)
        return None
    print(f"{target:15} {how}: FOUND {reason(text)}\n{'':15} {artifact(text) or log}", flush=True)
    return target


def reason(text: str) -> str:
    """The line of a log that says what happened."""
    marks = (
        "ERROR: AddressSanitizer",
        "runtime error:",
        " failed: ",
        "GGML_ASSERT",
        "ERROR: libFuzzer",
        "=== Uncaught",
    )
    for mark in marks:
        for line in text.splitlines():
            if mark in line:
                return line.strip()[:300]
    return "an end without a reason; see the log"


def artifact(text: str) -> str | None:
    """The input that did it."""
    found = re.findall(r"Test unit written to (\S+)", text)
    return found[-1] if found else None


def minimise(target: str, build: Path) -> None:
    """Adds to the repository's corpus what covers more, as few and as small inputs as possible."""
    seeds = ROOT / "fuzz" / "corpus" / CORPUS.get(target, target)
    seeds.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as merged:
        line = [
            *command(target, build),
            "-merge=1",
            *LIMITS,
            *OWN_LIMITS.get(target, []),
            merged,
            str(seeds),
            str(ROOT / "build/fuzz" / target / "corpus"),
        ]
        subprocess.run(line, check=True, env={**os.environ, **sanitize.options(build)}, stderr=subprocess.DEVNULL)
        shutil.rmtree(seeds)
        shutil.copytree(merged, seeds)
    files = list(seeds.iterdir())
    print(f"{target:15} {len(files)} inputs, {sum(f.stat().st_size for f in files)} bytes")


def main() -> int:
    """1 when something was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(NATIVE + PYTHON)}; default: all")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "asan")
    parser.add_argument("--seconds", type=int, default=60, help="for each")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--minimise", action="store_true", help="put what was found to cover more into fuzz/corpus")
    args = parser.parse_args()
    unknown = set(args.targets) - set(NATIVE + PYTHON)
    if unknown:
        parser.error(f"no target is named {', '.join(sorted(unknown))}; there are {', '.join(NATIVE + PYTHON)}")
    targets = args.targets or NATIVE + PYTHON
    if args.minimise:
        for target in targets:
            minimise(target, args.build)
        return 0
    with ThreadPoolExecutor(args.jobs) as pool:
        found = [x for x in pool.map(lambda target: run(target, args.build, args.seconds), targets) if x]
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
