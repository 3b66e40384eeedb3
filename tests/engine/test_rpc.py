"""The same tests with all layers on an RPC server: a device without host memory, in a process of their own.

The backend cannot forget a server, so an engine that has used one leaves its process unfit for the others.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BOTH_MODES = "test_moved_is_masked or test_first_token or test_keeping"
# file, and which of its tests
SELECTIONS = {
    "reference": ("test_against_reference.py", "alpha or test_rounding_modes or test_second_turn"),
    "modes": ("test_modes.py", f"({BOTH_MODES}) and (f16-fa or q8_0-fa) and not bf16"),
    "others": ("test_modes.py", "test_stats or test_graphs_are_reused or test_failed_prompt_in"),
}


@pytest.mark.parametrize("selection", SELECTIONS)
def test_on_rpc_server(rpc_server: str, selection: str) -> None:
    file, names = SELECTIONS[selection]
    tests = [Path(__file__).with_name(file), "-k", names]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYAIRCACHE_TEST_RPC": rpc_server}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"\d+ passed", done.stdout) and "skipped" not in done.stdout
