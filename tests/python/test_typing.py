"""py.typed: what a user's own mypy --strict makes of the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RIGHT = """
from pathlib import Path

from typing_extensions import Unpack, assert_type

from pyaircache import Answer, AnswerStream, AskOptions, AsyncChat, Chat, Elite, Last, Method, Pool, Report, Window
from pyaircache.methods import Allocation, Keys, PoolKind, Score

allocation: Allocation = "uniform"
keys: Keys = "causal"
score: Score = "attention"
kind: PoolKind = "max"
window: Window = Last(16)
method = Method(Elite(0.9), score, keys, Pool(kind, 5), allocation)


def one_ranking(scores: object, total: int) -> list[list[int]]:
    return [[0]]


def ask(page: Path) -> list[str]:
    with Chat(keep=0.1, method=method) as chat:
        answer = chat.ask(page, "What?", temperature=0.5, seed=1)
        assert_type(answer, Answer)
        assert_type(answer.report, Report)
        assert_type(answer.report.kv_bytes, int)
        assert_type(answer.upper(), str)
        with chat.ask(None, "And?", stream=True) as stream:
            assert_type(stream, AnswerStream)
            pieces = [piece for piece in stream]
            assert_type(pieces, list[str])
        assert_type(chat.complete([{"role": "user", "content": "Hi"}], system=False, stop="."), Answer)
    Chat("model.gguf", False, method="snapkv").close()
    Chat(method=one_ranking).close()
    return pieces


async def total(chat: AsyncChat, page: Path, **options: Unpack[AskOptions]) -> str:
    return (await chat.ask(page, "What is the total?", **options)).upper()
"""

WRONG = """
from pyaircache import AsyncChat, Chat, Method, Pool

Method(allocation="fair")
Method(keys="all")
Pool("median")
Chat(method=3)
Chat(keep="much")
Chat().ask("page.png")
Chat().ask("page.png", "What?", stream=True).report.kv_bytez
Chat().ask("page.png", "What?", max_token=5)
Chat().complete([], system=True)
AsyncChat().ask("page.png", "What?", keep="much")
"""


def test_a_users_script(tmp_path: Path) -> None:
    (tmp_path / "right.py").write_text(RIGHT, encoding="utf-8")
    (tmp_path / "wrong.py").write_text(WRONG, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "right.py", "wrong.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    first = WRONG.splitlines().index('Method(allocation="fair")') + 1
    assert [line.split(":")[0] for line in errors] == ["wrong.py"] * len(errors), done.stdout + done.stderr
    assert sorted({int(line.split(":")[1]) for line in errors}) == list(range(first, len(WRONG.splitlines()) + 1))
