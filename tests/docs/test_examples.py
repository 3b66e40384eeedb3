"""Every example runs as it stands, in an empty folder, and says what its README promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyaircache import sample

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ANSWERS = [sample(number).answer for number in range(5)]
# What each one prints, besides whatever else, and the files that it writes.
PRINTS: dict[str, list[str]] = {
    "async_chat": [*ANSWERS[:4]],
    "compare_methods": ["5/5   5808", "aircache", "random"],
    "first_question": [ANSWERS[0], "right"],
    "follow_up": [ANSWERS[1], "from the archive"],
    "heatmap": [ANSWERS[1]],
    "many_questions": [
        *(f"{i}: {answer}, 10% kept" for i, answer in enumerate(ANSWERS)),
        f"5: {ANSWERS[0]}, 50% kept",
        "6: ImageNotFoundError",
    ],
    "openai_server": [ANSWERS[0], "'keep': 0.2"],
    "own_policy": [f"aircache:    {ANSWERS[0]}", f"one ranking: {ANSWERS[0]}"],
    "report_to_json": ["cells kept", '"kv_bytes_full"', "budgets per layer"],
    "several_pictures": [f"a NumPy array: {ANSWERS[0]}", "picture 2: a grid of"],
    "shared_model": [*ANSWERS, "keep 0.02", "0 ms of encoding"],
    "streaming": [ANSWERS[0], "stopped by: closed"],
    "structured_answer": ["most likely", "two digits, by a grammar", "up to the first 5"],
    "threads": [*ANSWERS, "meanwhile: BusyError", "cancelled: ", "0 visual tokens"],
}
WRITES = {
    "heatmap": ["heatmap-10.png", "heatmap-2.png"],
    "report_to_json": ["report.json"],
    "several_pictures": ["heatmap-second.png"],
}


def test_all_are_known() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == set(PRINTS)
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert not [name for name in names if f"[{name}.py]({name}.py)" not in readme]


@pytest.mark.parametrize("name", PRINTS)
def test_example(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py")]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not [text for text in PRINTS[name] if text not in done.stdout], done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == WRITES.get(name, [])
    assert (EXAMPLES / f"{name}.py").read_text(encoding="utf-8").startswith('"""')
