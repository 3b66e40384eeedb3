"""What README.md shows is run as it stands there, on the bundled model, in an empty folder with its sample page.

Only ports are changed. What is not run is named in NOT_RUN, with the reason; a line of an unknown kind fails. Commands
of some pages in docs/ that need nothing else are run, too.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

import pyaircache
from pyaircache import model_files, sample

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "reference")]

import bundled  # noqa: E402

LIMIT_S = 120.0

NOT_RUN = {
    "make ": "sets everything up and runs all tests, this one among them",
    "pyaircache bench ": "takes minutes: tests/bench/test_bench.py runs it on a tiny shape",
}
SERVERS = ("pyaircache serve ", "pyaircache/bin/ggml-rpc-server ")
RUN = ("pyaircache ", "curl ")
# Alternatives without a language: expressions with names that the text explains
EXPRESSIONS = 'Chat(method="snapkv")'
QUESTIONS = 'chat.ask("page.png", '
MANY = "for done in chat.ask_many("
# Commands of docs/ that run on what is here
DOCS = ("building.md", "convert.md", "methods.md")
IN_DOCS = ("pyaircache convert ", "pyaircache methods", 'pyaircache ask page.png "What is the Parcel No?"')


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of a page's blocks."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.S | re.M)


def commands(block: str) -> list[str]:
    """Command lines of a block, comments and empty lines left out; a document for a command goes on until END."""
    lines, found = iter(block.splitlines()), []
    for line in lines:
        if line.endswith("<<END"):
            line = "\n".join([line, *iter(lines.__next__, "END"), "END"])
        if line.strip() and not line.lstrip().startswith("#"):
            found.append(line)
    return found


BLOCKS = blocks("README.md")
PYTHON = [block for language, block in BLOCKS if language == "python"]
OURS = (EXPRESSIONS, QUESTIONS, MANY)
SHELL = [commands(block) for language, block in BLOCKS if not language and not block.startswith(OURS)]
OTHERS = [commands(block) for page in DOCS for language, block in blocks(f"docs/{page}") if not language]
ALONE = [line for lines in SHELL for line in lines if not lines[0].startswith(SERVERS) and line.startswith(RUN)]
ALONE = [line for line in ALONE if not line.startswith((*NOT_RUN,))]
ALONE += [line for lines in OTHERS for line in lines if not lines[0].startswith(SERVERS) and line.startswith(IN_DOCS)]
WITH_SERVER = {lines[0].split()[0]: lines for lines in SHELL + OTHERS if lines and lines[0].startswith(SERVERS)}


def test_every_block_is_of_a_known_kind() -> None:
    assert {language for language, _ in BLOCKS} == {"", "python"}
    assert len(PYTHON) == 1 and len(ALONE) >= 8
    assert [*WITH_SERVER] == ["pyaircache", "pyaircache/bin/ggml-rpc-server"]
    assert sum(line.count(f'"{sample().question}"') for line in ALONE) >= 4  # the page is the sample's
    unknown = [line for lines in SHELL for line in lines if not line.startswith((*NOT_RUN, *SERVERS, *RUN))]
    assert not unknown
    unused = [start for start in NOT_RUN if not any(line.startswith(start) for lines in SHELL for line in lines)]
    assert not unused


@pytest.fixture
def folder(tmp_path: Path, program: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the files that README.md names."""
    model, mmproj = model_files.resolve(None, None)
    shutil.copy(sample().path, tmp_path / "page.png")
    (tmp_path / "list.jsonl").write_text(json.dumps({"image": "page.png", "question": sample().question}) + "\n")
    (tmp_path / "model.gguf").symlink_to(model)
    (tmp_path / "mmproj.gguf").symlink_to(mmproj)
    (tmp_path / "pyaircache").mkdir()
    (tmp_path / "pyaircache" / "bin").symlink_to(program("ggml-rpc-server").parent)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def shell(line: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done


@contextmanager
def running(line: str, port: int, answers: Callable[[], bool]) -> Iterator[None]:
    """A server, until the block ends; begins when it answers."""
    line = re.sub(r"(--port )\d+", rf"\g<1>{port}", line)
    arguments = shlex.split(line, comments=True)
    with Path("server.log").open("wb") as log, subprocess.Popen(arguments, stdout=log, stderr=log) as process:
        try:
            interval = 0.05
            for _ in range(int(LIMIT_S / interval)):
                with suppress(subprocess.TimeoutExpired):
                    process.wait(interval)
                    pytest.fail(f"{line} ended:\n{Path('server.log').read_text(errors='replace')[-2000:]}")
                with suppress(OSError, httpx.TransportError):
                    if answers():
                        break
            else:
                pytest.fail(f"{line} does not answer")
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def is_open(port: int) -> bool:
    socket.create_connection(("127.0.0.1", port), timeout=1).close()
    return True


def test_python(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space: dict[str, object] = {}
    exec(compile(PYTHON[0], "README.md", "exec"), space)
    assert space["answer"] == sample().answer
    assert capsys.readouterr().out.startswith(f"{sample().question} {sample().answer}\n")
    assert (folder / "heatmap.png").stat().st_size > 1000


@pytest.mark.parametrize("line", ALONE, ids=lambda line: re.sub(r" +", " ", line.partition("#")[0])[:60].strip())
def test_command(folder: Path, line: str) -> None:
    if line.startswith("pyaircache convert "):
        bundled.save(folder / shlex.split(line)[2])
    done = shell(line)
    if line.startswith("pyaircache ask "):
        answer = json.loads(done.stdout)["answer"] if "--json" in line else done.stdout.splitlines()[0]
        assert answer == sample().answer
        assert (folder / "heatmap.png").is_file() == ("--heatmap" in line)
    elif line.startswith("pyaircache batch "):
        (result,) = (folder / "answers.jsonl").read_text().splitlines()
        assert json.loads(result)["answer"] == sample().answer
    elif line.startswith("pyaircache convert "):
        assert sorted(path.name for path in (folder / "models").iterdir()) == sorted(
            Path(made).name for made in done.stdout.split()
        )
        assert len(done.stdout.split()) == 2
    else:
        assert len(done.stdout.splitlines()) > 3 and not done.stderr


def test_expressions(folder: Path) -> None:
    """Each alternative makes a Chat that answers."""
    (block,) = (block for _, block in BLOCKS if block.startswith(EXPRESSIONS))
    lines = commands(block)
    assert len(lines) == 3

    def my_policy(scores, total):  # as its comment says: for each layer the visual indices to keep
        return [range((total + layer) // len(scores)) for layer in range(len(scores))]

    names = {name: getattr(pyaircache, name) for name in pyaircache.__all__} | {"my_policy": my_policy}
    for line in lines:
        with eval(line.partition("  #")[0], names) as chat:
            report = chat.ask("page.png", sample().question, max_tokens=2).report
            assert 0 < report.kv_bytes < report.kv_bytes_full


def test_questions(folder: Path) -> None:
    """They follow each other in one conversation."""
    (block,) = (block for _, block in BLOCKS if block.startswith(QUESTIONS))
    with pyaircache.Chat(n_ctx=1024) as chat:
        for line in commands(block):
            eval(line.partition("  #")[0], {"chat": chat})
        assert len(chat.messages) == 2


def test_many(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = (block for _, block in BLOCKS if block.startswith(MANY))
    with pyaircache.Chat(keep=0.1, n_ctx=2048) as chat:
        exec(block, {"chat": chat})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and f"0 {sample().answer}" in lines


def test_server(folder: Path) -> None:
    assert shutil.which("curl") and shutil.which("base64"), "README.md's request needs curl and base64"
    (serve, curl), port = WITH_SERVER["pyaircache"], free_port()
    url = f"http://127.0.0.1:{port}"
    with running(serve, port, lambda: httpx.get(f"{url}/health").status_code == 200):
        answer = json.loads(shell(curl.replace("localhost:8080", f"127.0.0.1:{port}")).stdout)
        assert answer["choices"][0]["message"]["content"] == sample().answer
        assert answer["timings"]["aircache"]["keep"] == pytest.approx(0.2)


def test_rpc(folder: Path) -> None:
    (serve, ask), port = WITH_SERVER["pyaircache/bin/ggml-rpc-server"], free_port()
    with running(serve, port, lambda: is_open(port)):
        done = shell(ask.replace("127.0.0.1:50052", f"127.0.0.1:{port}"))
    assert done.stdout.splitlines()[0] == sample().answer
