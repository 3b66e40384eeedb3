"""llama.cpp's own server tests with the unpatched and with our server: the same tests must pass.

    python tests/server/compare_stock.py --stock STOCK/llama-server --ours build/bin/llama-server [TEST_FILE ...]

Four columns: unpatched, ours, ours with LLAMA_ARG_AIRCACHE_KEEP=1.0, and with 0.1. No hub is needed: the presets are
given the bundled model, so tests that expect another model's numbers fail, in all columns alike. With --mmproj every
server gets the projector too, so that in the last column compression is on for these text-only requests; tests that
start with --kv-unified and several slots then fail there, because that is refused.

llama.cpp's tests need packages that ours do not; what is missing is named, with the command that installs it.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "vendor" / "llama.cpp" / "tools" / "server" / "tests"
MODELS = ROOT / "pyaircache" / "data" / "pages-vl"
FILES = ["basic", "metrics", "security", "sleep", "ignore_eos", "kv_keep_only_active", "template", "tokenize"]
FILES += ["completion", "slot_save", "ctx_shift"]

NEEDS = [
    "filelock",
    "openai",
    "pytest",
    "requests",
    "wget",
]  # modules that are imported there; packages of the same names

# Loaded by pytest in llama.cpp's test folder: presets that need no download.
PLUGIN = """
import pytest, os

@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session):
    import utils
    preset, model = utils.ServerPreset, os.environ["COMPARE_MODEL"]
    preset.load_all = staticmethod(lambda: None)
    plain = preset.tinyllama2
    def tinyllama2():
        server = plain()
        server.model_hf_repo = server.model_hf_file = None
        server.model_file, server.offline = model, True
        return server
    preset.tinyllama2 = staticmethod(tinyllama2)
"""


def run(server: Path, files: list[str], env: dict[str, str], port: int, seconds: int) -> dict[str, str]:
    """Outcome of every test: passed, failed or skipped."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "local_presets.py").write_text(PLUGIN, encoding="utf-8")
        report = Path(folder) / "report.xml"
        line = [sys.executable, "-m", "pytest", "-q", "-p", "local_presets", "-p", "no:cacheprovider"]
        line += [f"--junitxml={report}", *[f"unit/test_{name}.py" for name in files]]
        variables = {
            **{name: value for name, value in os.environ.items() if not name.startswith("LLAMA_ARG_")},
            "LLAMA_SERVER_BIN_PATH": str(server.resolve()),
            "LLAMA_CACHE": folder,
            "PYTHONPATH": f"{folder}:{TESTS}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "COMPARE_MODEL": str(MODELS / "pages-vl-Q8_0.gguf"),
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "MODEL_ENDPOINT": "http://127.0.0.1:9",
            "PORT": str(port),
            **env,
        }
        done = subprocess.run(line, cwd=TESTS, env=variables, capture_output=True, text=True, timeout=seconds)
        if not report.is_file():
            sys.exit(f"pytest did not run the tests of {server}:\n{(done.stdout + done.stderr)[-2000:]}")
        outcomes = {}
        for case in ET.parse(report).iter("testcase"):
            kinds = {child.tag for child in case}
            outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
            outcomes[f"{case.get('classname', '').split('.')[-1]}::{case.get('name')}"] = outcome
        return outcomes


def check(*servers: Path) -> None:
    """Ends the program with what is missing and what to do about it."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        names = " ".join(missing)
        sys.exit(f"llama.cpp's server tests need {names}. Install with: {sys.executable} -m pip install {names}")
    if not TESTS.is_dir():
        sys.exit(f"llama.cpp's server tests are not in {TESTS}: run make build first, which fetches them")
    for server in servers:
        if not server.is_file():
            sys.exit(f"{server} does not exist: give an unpatched llama-server as --stock, and run make build for ours")


def main() -> int:
    """Prints the table; 1 when a column differs from the first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stock", type=Path, required=True, help="unpatched llama-server")
    parser.add_argument("--ours", type=Path, default=ROOT / "build" / "bin" / "llama-server")
    parser.add_argument("--mmproj", action="store_true", help="load the projector, too")
    parser.add_argument("--port", type=int, default=18080)
    parser.add_argument("--seconds", type=int, default=1800, help="longest run of one column")
    parser.add_argument(
        "files", nargs="*", default=FILES, help=f"test_NAME.py without test_ and .py; default: {' '.join(FILES)}"
    )
    args = parser.parse_args()
    check(args.stock, args.ours)

    env = {"LLAMA_ARG_MMPROJ": str(MODELS / "mmproj-pages-vl-F16.gguf")} if args.mmproj else {}
    columns = {"stock": (args.stock, env), "ours": (args.ours, env)}
    for keep in ("1.0", "0.1"):
        columns[f"keep {keep}"] = (args.ours, {**env, "LLAMA_ARG_AIRCACHE_KEEP": keep})
    results = {name: run(binary, args.files, more, args.port, args.seconds) for name, (binary, more) in columns.items()}

    tests = sorted({test for outcomes in results.values() for test in outcomes})
    width = max(map(len, tests), default=4)
    print(f"{'test':<{width}}  " + "  ".join(f"{name:<8}" for name in results))
    differ = 0
    for test in tests:
        row = [outcomes.get(test, "-") for outcomes in results.values()]
        differ += len(set(row)) > 1
        print(
            f"{test:<{width}}  "
            + "  ".join(f"{cell:<8}" for cell in row)
            + ("  <- differs" if len(set(row)) > 1 else "")
        )
    for name, outcomes in results.items():
        print(f"{name}: {dict(Counter(outcomes.values()))}")
    print(f"{differ} of {len(tests)} tests differ")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
