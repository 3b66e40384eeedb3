"""cmake/port_table.py and cmake/trim_patches.py on made-up trees; and the form of the project's own patches."""

from __future__ import annotations

import difflib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OLD = "".join(f"line {i}\n" for i in range(1, 31))
NEW = OLD.replace("line 10\n", "line 10\nours\n").replace("line 20\n", "ours, too\n")


def tree(folder: Path, text: str) -> Path:
    """A llama.cpp of one file."""
    (folder / "src").mkdir(parents=True)
    (folder / "ggml").mkdir()
    (folder / "CMakeLists.txt").write_text("project(llama)\n")
    (folder / "src" / "a.c").write_text(text)
    return folder


def patches(folder: Path, old: str, new: str) -> Path:
    folder.mkdir()
    lines = difflib.unified_diff(old.splitlines(True), new.splitlines(True), "a/src/a.c", "b/src/a.c")
    (folder / "0001-a.patch").write_text("".join(lines))
    return folder


def run(script: str, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "cmake" / script), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True)


def test_hunks_that_fail_are_counted(tmp_path: Path) -> None:
    mine = patches(tmp_path / "patches", OLD, NEW)
    same = tree(tmp_path / "same", OLD)
    moved = tree(tmp_path / "moved", "another line\n" * 5 + OLD)
    other = tree(tmp_path / "other", OLD.replace("line 21\n", "line twenty-one\n"))
    gone = tree(tmp_path / "gone", OLD)
    (gone / "src" / "a.c").unlink()
    done = run("port_table.py", "--patches", mine, same, moved, other, gone)
    assert done.stdout.splitlines() == [
        "| patch | hunks | fail on same | fail on moved | fail on other | fail on gone |",
        "| --- | --- | --- | --- | --- | --- |",
        "| 0001-a | 2 | 0 | 0 | 1 | 2 |",
        "| all | 2 | 0 | 0 | 1 | 2 |",
    ], done.stderr
    assert (other / "src" / "a.c").read_text() == OLD.replace(
        "line 21\n", "line twenty-one\n"
    )  # only a copy is patched


def test_hunks_of_several_places_are_told(tmp_path: Path) -> None:
    mine = patches(tmp_path / "patches", OLD, NEW)
    twice = tree(tmp_path / "twice", OLD + OLD)
    found = json.loads(run("port_table.py", "--json", "--patches", mine, twice).stdout)["twice"]["0001-a.patch"]
    assert (found["hunks"], found["failed"], len(found["several"])) == (2, [], 2)


@pytest.mark.parametrize(
    ("source", "message"), [("nowhere", "is no version of llama-cpp-python"), ("patches", "is no llama.cpp source")]
)
def test_what_is_no_source_is_named(tmp_path: Path, source: str, message: str) -> None:
    patches(tmp_path / "patches", OLD, NEW)
    done = run("port_table.py", "--patches", tmp_path / "patches", tmp_path / source)
    assert done.returncode == 1 and message in done.stderr


def test_context_is_as_short_as_is_unique(tmp_path: Path) -> None:
    repeated = OLD.replace("line 9\n", "same\n").replace("line 11\n", "same\n")
    old = repeated + "same\nline 10\nsame\nlast\n"  # at line 10 more than one line of context is needed
    new = old.replace("line 10\n", "line 10\nours\n", 1).replace("line 20\n", "ours, too\n")
    mine = patches(tmp_path / "patches", old, new)
    pinned = tree(tmp_path / "pinned", old)
    assert run("trim_patches.py", "--check", "--patches", mine, "--source", pinned).returncode == 1
    done = run("trim_patches.py", "--patches", mine, "--source", pinned)
    assert done.stdout == "0001-a.patch\n", done.stderr
    text = (mine / "0001-a.patch").read_text()
    assert text.startswith("diff --git a/src/a.c b/src/a.c\n")
    assert re.findall(r"^@@ .* @@", text, re.M) == ["@@ -9,4 +9,5 @@", "@@ -19,3 +20,3 @@"]
    assert run("trim_patches.py", "--check", "--patches", mine, "--source", pinned).stdout == "nothing to change\n"

    subprocess.run(
        ["git", "apply", str(mine / "0001-a.patch")],
        cwd=pinned,
        check=True,
        env={"GIT_CEILING_DIRECTORIES": str(tmp_path), "PATH": "/usr/bin:/bin:/usr/local/bin"},
    )
    assert (pinned / "src" / "a.c").read_text() == new


def test_a_patch_that_does_not_apply_is_left_alone(tmp_path: Path) -> None:
    mine = patches(tmp_path / "patches", OLD, NEW)
    before = (mine / "0001-a.patch").read_text()
    done = run("trim_patches.py", "--patches", mine, "--source", tree(tmp_path / "other", NEW))
    assert done.returncode == 1 and "0001-a.patch does not apply" in done.stderr
    assert (mine / "0001-a.patch").read_text() == before


def test_the_projects_patches_are_in_gits_format() -> None:
    for patch in sorted((ROOT / "patches").glob("*.patch")):
        text = patch.read_text()
        files = re.findall(r"^\+\+\+ b/(\S+)$", text, re.M)
        assert files and files == re.findall(r"^diff --git a/\S+ b/(\S+)$", text, re.M), patch.name
