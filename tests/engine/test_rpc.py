"""The same tests with all layers on an RPC server: a device without host memory, in a process of their own.

The backend cannot forget a server, so an engine that has used one leaves its process unfit for the others.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

BOTH_MODES = "test_moved_is_masked or test_first_token or test_keeping"
# file, and which of its tests
SELECTIONS = {
    "reference": ("test_against_reference.py", "(alpha or test_rounding_modes or test_second_turn) and not threads"),
    "modes": ("test_modes.py", f"({BOTH_MODES}) and (f16-fa or q8_0-fa) and not bf16 and not 2-thread"),
    "others": ("test_modes.py", "(test_stats or test_graphs_are_reused or test_failed_prompt_in) and not 2-thread"),
}


LIMIT_S = 300


@pytest.mark.parametrize("selection", SELECTIONS)
def test_on_rpc_server(rpc_server: str, selection: str, tmp_path: Path) -> None:
    file, names = SELECTIONS[selection]
    report = tmp_path / "report.xml"
    tests = [Path(__file__).with_name(file), "-k", names]
    # Not in pytest-xdist's workers, and not with the options of this run: the server serves one client at a time
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["PYAIRCACHE_TEST_RPC"] = rpc_server
    done = subprocess.run([*command, f"--junitxml={report}", *tests], env=environment, capture_output=True, text=True,
                          timeout=LIMIT_S)  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    (suite,) = ElementTree.parse(report).iter("testsuite")
    counts = {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}
    assert counts.pop("tests") > 0 and not any(counts.values()), done.stdout[-6000:]
