"""Lists of questions: reading them, the file of results, and the command, on engines without a model."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fake_engine import FakeEngine
from PIL import Image

from pyaircache import ArgumentError
from pyaircache.batch.lists import placed, read
from pyaircache.batch.results import Results
from pyaircache.batch.run import Job, answers, item_of
from pyaircache.cli import batch as command
from pyaircache.cli import main

pytestmark = pytest.mark.usefixtures("engine")  # with a fake engine, too: the library reads the words of options


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (30, 20)).save(tmp_path / "page.png")
    return tmp_path


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines))
    return path


def run(*arguments: object, **options: Any) -> Result:
    return CliRunner().invoke(main.main, [str(one) for one in arguments], **options)


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def asked(number: int, **more: Any) -> dict[str, Any]:
    return {"image": "page.png", "question": f"question {number}", **more}


# -- lists and results ------------------------------------------------------------------------------------------------


def test_what_a_question_is_known_by() -> None:
    lines = [asked(1, id="a"), asked(1), {"question": "question 1", "image": "page.png"}, asked(2), asked(1, id=7)]
    questions = read(["", *(json.dumps(one) for one in lines), "  "])
    assert [one.line for one in questions] == [2, 3, 4, 5, 6]
    identities = [one.identity for one in questions]
    assert identities[0] == ("id", '"a"') and identities[4] == ("id", "7")
    assert identities[2] == ("key", identities[1][1] + "-2")  # the same once more, whatever the order of its fields
    assert len(set(identities)) == 5
    with pytest.raises(ArgumentError, match="the lines 1 and 2 of the list have the id 1"):
        read([json.dumps(asked(1, id=1)), json.dumps(asked(2, id=1))])


@pytest.mark.parametrize(
    "line, words",
    [
        ("{", "not JSON"),
        ("[1]", "must be an object"),
        ('{"question": "?", "keep": NaN}', "NaN is no number"),
        ('{"question": "?", "keep": -Infinity}', "-Infinity is no number"),
        ('{"image": "page.png"}', "no question"),
        ('{"question": "?", "id": null}', "id must be"),
        ('{"question": "?", "id": true}', "id must be"),
        ('{"question": "?", "kep": 1}', "no 'kep'"),
        ('{"question": "?", "timeout": 1}', "no 'timeout'"),
        ('{"question": "?", "image": 3}', "image must be"),
        ('{"question": "?", "window": "nobody"}', "window"),
    ],
)
def test_what_is_wrong_with_a_line(line: str, words: str) -> None:
    (question,) = read([line])
    with pytest.raises(ArgumentError, match=words):
        item_of(question, Job("."))


def test_what_there_is_is_named_once() -> None:
    (question,) = read(['{"question": "?", "kep": 1}'])
    with pytest.raises(ArgumentError) as caught:
        item_of(question, Job("."))
    names = str(caught.value).partition("there are ")[2].split(", ")
    assert len(names) == len(set(names)) and {"id", "method", "keep"} <= set(names)


def test_a_line_s_words_for_its_method(engine: Any) -> None:
    def method(line: dict[str, Any], **parts: str) -> Any:
        (question,) = read([json.dumps({"question": "?", **line})])
        return item_of(question, Job(".", parts=parts)).get("method")

    assert method({}) is None and method({}, window="text") is None  # the Chat has it
    assert method({"method": "snapkv"}, window="text") == "snapkv"
    both = method({"pool": "max:3"}, method="snapkv", allocation="pyramid")
    assert (both.allocation, str(both.pool.kind)) == ("pyramid", "max")
    assert method({"alpha": 0.5}).window.alpha == 0.5


def test_pictures_are_counted_from_the_list_s_folder() -> None:
    folder = Path("/lists")
    assert placed(["a.png", "/b.png", "data:image/png;base64,xx", "https://c/d.png"], folder) == [
        "/lists/a.png", "/b.png", "data:image/png;base64,xx", "https://c/d.png",
    ]  # fmt: skip
    assert placed(None, folder) is None


@pytest.mark.parametrize("rest", ['{"id": "c", "ans', '{"id": "c"', "{", ""])
def test_half_a_line_is_cut_off(tmp_path: Path, rest: str) -> None:
    path = tmp_path / "out.jsonl"
    whole = '{"id": "a", "answer": "1"}\n{"key": "0f", "error": "no"}\n'
    path.write_text(whole + rest)
    with Results(str(path)) as opened:
        assert opened.answered == {("id", '"a"')}
        opened.add({"id": "b", "answer": "ü"})
    assert path.read_text() == whole + '{"id": "b", "answer": "\\u00fc"}\n'


def test_a_last_line_without_its_end(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text('{"id": "a", "answer": "1"}')
    with Results(str(path)) as opened:
        opened.add({"id": "b", "answer": "2"})
    assert [one["id"] for one in results(path)] == ["a", "b"]


@pytest.mark.parametrize("end", ["\n", ""])
@pytest.mark.parametrize(
    "line",
    ["text", '{"image": "page.png", "question": "?"}', "[]", '{"id": 1, "question": "?"}', '{"ids', '{"id":1'],
)
def test_another_file_is_left_alone(tmp_path: Path, line: str, end: str) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text(line + end)
    with pytest.raises(ArgumentError, match="line 1 of .* is no result"):
        Results(str(path))
    assert path.read_text() == line + end
    path.write_text('{"id": "a", "answer": "1"}\n' + line + end)
    with pytest.raises(ArgumentError, match="line 2 of .* is no result"):
        Results(str(path))


def test_one_run_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    path = tmp_path / "out.jsonl"
    with Results(str(path)) as opened:
        opened.add({"id": 1, "answer": "1"})
        with pytest.raises(ArgumentError, match="another run writes to"):
            Results(str(path))
    with Results(str(path)) as opened:
        assert opened.answered == {("id", "1")}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_pipes_and_devices_are_only_written(tmp_path: Path) -> None:
    with Results(os.devnull) as opened:
        opened.add({"id": 1, "answer": "1"})
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with Results(str(pipe)) as opened:
            assert not opened.remembers
            opened.add({"id": 1, "answer": "1"})
        assert json.loads(os.read(reading, 1000)) == {"id": 1, "answer": "1"}
    finally:
        os.close(reading)


# -- the command ------------------------------------------------------------------------------------------------------


def test_a_list_is_answered(fake: type[FakeEngine], folder: Path) -> None:
    listed = write(folder / "list.jsonl", asked(1, id="one"), asked(2, keep=1.0), {"question": "no picture"})
    out = folder / "out.jsonl"
    done = run("batch", listed, "-o", out, "--keep", "0.5", "-n", "3")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
    found = {one["question"]: one for one in results(out)}
    assert [found[f"question {i}"]["answer"] for i in (1, 2)] == ["hel", "hel"]
    first = found["question 1"]
    assert (first["id"], first["image"], first["keep"], first["budgets"]) == ("one", "page.png", 0.5, [2, 3])
    assert {"method", "visual_tokens", "kv_bytes", "ms_first_token", "stop_reason"} <= set(first)
    assert found["question 2"]["keep"] == 1.0 and found["question 2"]["line"] == 2
    assert "image" not in found["no picture"]


def test_what_has_an_answer_is_not_asked_again(fake: type[FakeEngine], folder: Path) -> None:
    out = folder / "out.jsonl"
    lines = [asked(1, id="one"), asked(2), asked(3, image="nowhere.png")]
    done = run("batch", write(folder / "list.jsonl", *lines[:2]), "-o", out)
    before = out.read_text()
    done = run("batch", write(folder / "list.jsonl", asked(9, id="one"), *lines[1:]), "-o", out)
    assert done.exit_code == 1
    assert done.stderr.startswith('pyaircache: 1 of 1 questions could not be answered: see "error"')
    added = out.read_text().removeprefix(before)
    assert json.loads(added)["error_type"] == "ImageNotFoundError"
    Image.new("RGB", (30, 20)).save(folder / "nowhere.png")
    assert run("batch", folder / "list.jsonl", "-o", out).exit_code == 0  # an error is tried again
    assert [one.get("answer") for one in results(out)] == ["hello", "hello", None, "hello"]
    assert run("batch", folder / "list.jsonl", "-o", out).exit_code == 0
    assert len(results(out)) == 4


def test_a_crash_loses_one_line_at_most(fake: type[FakeEngine], folder: Path) -> None:
    out = folder / "out.jsonl"
    listed = write(folder / "list.jsonl", *(asked(i) for i in range(4)))
    run("batch", listed, "-o", out)
    whole = out.read_text()
    out.write_text(whole[: whole.rindex("\n", 0, -1) + 20])
    assert run("batch", listed, "-o", out).exit_code == 0
    assert sorted(one["question"] for one in results(out)) == [f"question {i}" for i in range(4)]


def test_errors_do_not_stop_the_rest(fake: type[FakeEngine], folder: Path) -> None:
    listed = write(folder / "list.jsonl", asked(1), "{", asked(2, keep=7), asked(3))
    out = folder / "out.jsonl"
    done = run("batch", listed, "-o", out, "--n-parallel", "1")
    assert done.exit_code == 1
    found = {one["line"]: one for one in results(out)}
    assert found[1]["answer"] == found[4]["answer"] == "hello"
    assert "not JSON" in found[2]["error"] and "keep" in found[3]["error"]


def test_stdin_and_stdout(fake: type[FakeEngine], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    done = run("batch", "-", "-o", "-", input=json.dumps(asked(1, id=5)) + "\n")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["id"] == 5


def test_a_list_with_a_mark_of_its_bytes(fake: type[FakeEngine], folder: Path) -> None:
    listed = folder / "list.jsonl"
    listed.write_text("\ufeff" + json.dumps(asked(1, id="one")) + "\n", encoding="utf-8")
    assert run("batch", listed, "-o", folder / "out.jsonl").exit_code == 0
    assert run("batch", "-", "-o", folder / "out2.jsonl", input=listed.read_bytes()).exit_code in (0, 1)
    assert [results(folder / name)[0]["id"] for name in ("out.jsonl", "out2.jsonl")] == ["one", "one"]


def test_ctrl_c_says_what_is_done(fake: type[FakeEngine], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def some(*args: Any) -> Iterator[dict[str, Any]]:
        yield next(answers(*args))
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "answers", some)
    listed, out = write(folder / "list.jsonl", asked(1), asked(2)), folder / "out.jsonl"
    done = run("batch", listed, "-o", out)
    assert done.exit_code == 130 and f"interrupted: 1 of 2 are in {out}; start again to go on" in done.stderr
    assert len(results(out)) == 1
    assert run("batch", listed, "-o", "-").stderr.count("interrupted: 1 of 2 are answered") == 1


def test_wrong_usage(fake: type[FakeEngine], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = write(folder / "list.jsonl", asked(1))
    out = folder / "out.jsonl"
    for arguments, words in (
        ((listed,), "--output"),
        ((folder / "none.jsonl", "-o", out), "cannot be read"),
        ((listed, "-o", out, "--ray-workers", "2"), "--ray"),
        ((listed, "-o", out, "--keep", "2"), "keep"),
        ((listed, "-o", listed), "is the list itself"),
        ((listed, "-o", out, "--n-parallel", "0"), "n_parallel"),
    ):
        done = run("batch", *arguments)
        assert done.exit_code == 2 and words in done.stderr, done.stderr
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    done = run("batch", listed, "-o", out, "--ray")
    assert done.exit_code == 1 and "pip install 'pyaircache[ray]'" in done.stderr
