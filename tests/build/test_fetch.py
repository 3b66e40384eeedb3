"""cmake/fetch_llama.py on a tiny made-up sdist: what it puts in place, what it leaves alone, what it says."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "cmake" / "fetch_llama.py"
FILES = {
    "CMakeLists.txt": "project(llama)\n",
    "ggml/ggml.c": "int ggml;\n",
    "src/a.c": "int a = 1;\n",
    "src/b.c": "int b = 1;\n",
}
# The download runs pip for real: an sdist whose build backend is itself needs no index.
BACKEND = """
import os

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    name = "llama_cpp_python-9.9.9.dist-info"
    os.mkdir(os.path.join(folder, name))
    with open(os.path.join(folder, name, "METADATA"), "w") as f:
        f.write("Metadata-Version: 2.1\\nName: llama_cpp_python\\nVersion: 9.9.9\\n")
    return name
"""


def write_sdist(path: Path, files: dict[str, str]) -> Path:
    top = "llama_cpp_python-9.9.9"
    members = {f"{top}/vendor/llama.cpp/{name}": text for name, text in files.items()} | {
        f"{top}/PKG-INFO": "Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: 9.9.9\n",
        f"{top}/pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        f"{top}/backend.py": BACKEND,
        f"{top}/vendor/llama.cpp/.git": "gitdir: ../../.git/modules/nowhere\n",
    }
    with tarfile.open(path, "w:gz") as tar:
        for name, text in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


class Place:
    """A folder with an sdist, its lock, patches and a destination, as the script finds them in the project."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dest = folder / "vendor" / "llama.cpp"
        self.patches = folder / "patches"
        self.patches.mkdir()
        self.sdist = write_sdist(folder / "llama_cpp_python-9.9.9.tar.gz", FILES)
        self.lock = folder / "lock"
        self.pin(self.sdist)

    def pin(self, sdist: Path) -> None:
        self.lock.write_text(f'version = "9.9.9"\nsha256 = "{hashlib.sha256(sdist.read_bytes()).hexdigest()}"\n')

    def patch(self, number: int, name: str, old: str, new: str) -> None:
        lines = difflib.unified_diff(old.splitlines(True), new.splitlines(True), f"a/{name}", f"b/{name}")
        (self.patches / f"{number:04}-{Path(name).stem}.patch").write_text("".join(lines))

    def run(self, *args: str, source: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(SCRIPT), "--lock", str(self.lock), "--patches", str(self.patches)]
        command += ["--dest", str(self.dest), "--cache", str(self.folder / "cache"), *args]
        env = {k: v for k, v in os.environ.items() if k != "PYAIRCACHE_LLAMA_SRC"} | env
        if source:
            env["PYAIRCACHE_LLAMA_SRC"] = str(source)
        return subprocess.run(command, env=env, capture_output=True, text=True)

    def ok(self, *args: str, **kwargs: object) -> str:
        done = self.run(*args, **{"source": self.sdist} | kwargs)  # type: ignore[arg-type]
        assert done.returncode == 0, done.stderr
        return done.stdout

    def fails(self, *args: str, **kwargs: object) -> str:
        before = self.tree()
        done = self.run(*args, **{"source": self.sdist} | kwargs)  # type: ignore[arg-type]
        assert done.returncode == 1
        assert done.stderr.count("fetch_llama: ") == 1 and "Traceback" not in done.stderr
        assert self.tree() == before, "a failed fetch changed something"
        return done.stderr

    def tree(self) -> dict[str, str]:
        vendor = self.dest.parent
        return {p.relative_to(vendor).as_posix(): p.read_text() for p in vendor.rglob("*") if p.is_file()}

    def text(self, name: str) -> str:
        return (self.dest / name).read_text()

    def times(self) -> dict[str, int]:
        return {name: (self.dest / name).stat().st_mtime_ns for name in FILES}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_unpacks_llama_cpp_and_nothing_else(place: Place) -> None:
    place.ok()
    assert set(place.tree()) == {f"llama.cpp/{name}" for name in FILES} | {"llama.cpp.stamp"}


def test_writes_nothing_outside(place: Place) -> None:
    place.pin(write_sdist(place.sdist, FILES | {"../../../outside": "", "src/../../outside": ""}))
    place.ok()
    assert not list(place.folder.rglob("outside"))


def test_patches_apply_in_order(place: Place) -> None:
    place.patch(1, "src/a.c", "int a = 1;\n", "int a = 2;\n")
    place.patch(2, "src/a.c", "int a = 2;\n", "int a = 3;\n")
    place.ok()
    assert place.text("src/a.c") == "int a = 3;\n"
    assert place.text("src/b.c") == "int b = 1;\n"


@pytest.mark.skipif(not shutil.which("patch"), reason="there is no patch program")
def test_patches_apply_without_git(place: Place) -> None:
    place.patch(1, "src/a.c", "int a = 1;\n", "int a = 2;\n")
    bin_dir = place.folder / "bin"
    bin_dir.mkdir()
    (bin_dir / "patch").symlink_to(shutil.which("patch"))  # type: ignore[arg-type]
    place.ok(PATH=str(bin_dir))
    assert place.text("src/a.c") == "int a = 2;\n"


def test_patches_apply_inside_a_repository_that_ignores_vendor(place: Place) -> None:
    subprocess.run(["git", "init", "-q", str(place.folder)], check=True)
    (place.folder / ".gitignore").write_text("vendor/\n")
    place.patch(1, "src/a.c", "int a = 1;\n", "int a = 2;\n")
    place.ok()
    assert place.text("src/a.c") == "int a = 2;\n"


def test_second_run_touches_nothing(place: Place) -> None:
    place.patch(1, "src/a.c", "int a = 1;\n", "int a = 2;\n")
    place.ok()
    times = place.times()
    (place.dest / "src/b.c").write_text("edited while nothing else changed\n")
    assert place.ok() == ""
    assert place.text("src/b.c").startswith("edited")
    assert {k: v for k, v in place.times().items() if k != "src/b.c"} == {
        k: v for k, v in times.items() if k != "src/b.c"
    }


def test_changed_patch_rewrites_only_its_files(place: Place) -> None:
    place.patch(1, "src/a.c", "int a = 1;\n", "int a = 2;\n")
    place.ok()
    for name in FILES:
        os.utime(place.dest / name, (10**9, 10**9))
    before = place.times()
    place.patch(1, "src/a.c", "int a = 1;\n", "int a = 5;\n")
    place.ok()
    assert place.text("src/a.c") == "int a = 5;\n"
    assert {k for k, v in place.times().items() if v != before[k]} == {"src/a.c"}


def test_removed_patch_restores_its_file_with_a_new_time(place: Place) -> None:
    place.patch(1, "src/a.c", "int a = 1;\n", "int a = 2;\n")
    place.ok()
    before = place.times()
    shutil.rmtree(place.patches)
    place.patches.mkdir()
    place.ok()
    assert place.text("src/a.c") == FILES["src/a.c"]
    assert place.times()["src/a.c"] > before["src/a.c"]  # else make and ninja would keep the patched object


def test_file_that_the_next_version_lacks_goes(place: Place) -> None:
    place.ok()
    files = {k: v for k, v in FILES.items() if k != "src/b.c"}
    newer = write_sdist(place.folder / "newer.tar.gz", files)
    place.pin(newer)
    place.ok(source=newer)
    assert not (place.dest / "src/b.c").exists()


def test_edits_are_not_overwritten(place: Place) -> None:
    place.ok()
    (place.dest / "src/b.c").write_text("int b = 7;\n")
    assert "+int b = 7;" in place.ok("--diff")
    place.patch(1, "src/a.c", "int a = 1;\n", "int a = 2;\n")
    assert "src/b.c" in place.fails()
    place.patch(2, "src/b.c", "int b = 1;\n", "int b = 7;\n")  # the edit became a patch
    place.ok()
    assert place.text("src/a.c") == "int a = 2;\n"
    assert place.ok("--diff") == ""


def test_edits_are_dropped_on_request(place: Place) -> None:
    place.ok()
    (place.dest / "src/b.c").write_text("int b = 7;\n")
    place.ok("--discard")
    assert place.text("src/b.c") == FILES["src/b.c"]


def test_source_tree(place: Place, tmp_path: Path) -> None:
    tree = tmp_path / "checkout"
    for name, text in FILES.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    place.patch(1, "src/a.c", "int a = 1;\n", "int a = 2;\n")
    assert "unverified" in place.ok(source=tree)
    assert place.text("src/a.c") == "int a = 2;\n"
    assert (tree / "src/a.c").read_text() == FILES["src/a.c"]
    assert place.ok(source=tree) == ""
    (tree / "src/b.c").write_text("int b = 22;\n")
    place.ok(source=tree)
    assert place.text("src/b.c") == "int b = 22;\n"


def test_stock_source_has_no_patches(place: Place) -> None:
    place.patch(1, "src/a.c", "int a = 1;\n", "int a = 2;\n")
    place.ok("--no-patches")
    assert place.text("src/a.c") == FILES["src/a.c"]


def test_wrong_hash(place: Place) -> None:
    other = write_sdist(place.folder / "other.tar.gz", FILES | {"src/a.c": "int evil;\n"})
    message = place.fails(source=other)
    assert "other.tar.gz" in message and hashlib.sha256(place.sdist.read_bytes()).hexdigest() in message


def test_truncated_sdist_with_the_right_hash(place: Place) -> None:
    place.sdist.write_bytes(place.sdist.read_bytes()[:-40])
    place.pin(place.sdist)
    assert "cannot unpack" in place.fails()


def test_patch_that_does_not_apply(place: Place) -> None:
    place.ok()
    place.patch(1, "src/a.c", "int a = 1;\n", "int a = 2;\n")
    place.patch(2, "src/b.c", "int something_else;\n", "int b = 2;\n")
    assert "0002-b.patch does not apply" in place.fails()
    assert place.text("src/a.c") == FILES["src/a.c"]


@pytest.mark.parametrize("given", ["nowhere.tar.gz", "patches"])
def test_local_source_that_is_none(place: Place, given: str) -> None:
    assert given in place.fails(source=place.folder / given)


@pytest.mark.parametrize("lock", ["", 'version = "1"\n'])
def test_broken_lock(place: Place, lock: str) -> None:
    place.lock.write_text(lock)
    assert str(place.lock) in place.fails()


# Nothing is reached but the given folder, so these need no network.
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def test_download_is_cached(place: Place) -> None:
    place.ok(source=None, **OFFLINE, PIP_FIND_LINKS=str(place.folder))
    assert place.text("src/a.c") == FILES["src/a.c"]
    shutil.rmtree(place.dest)
    place.ok(source=None, **OFFLINE, PIP_FIND_LINKS="")
    assert place.text("src/a.c") == FILES["src/a.c"]


def test_download_with_wrong_hash_is_not_kept(place: Place) -> None:
    place.lock.write_text(f'version = "9.9.9"\nsha256 = "{"0" * 64}"\n')
    assert "is not the pinned" in place.fails(source=None, **OFFLINE, PIP_FIND_LINKS=str(place.folder))
    assert not list((place.folder / "cache").iterdir())


def test_no_network(place: Place) -> None:
    message = place.fails(source=None, **OFFLINE, PIP_FIND_LINKS="")
    assert "could not download llama-cpp-python==9.9.9" in message and "PYAIRCACHE_LLAMA_SRC" in message
    assert not list((place.folder / "cache").iterdir())


def test_no_pip(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("fetch_llama", SCRIPT)
    assert spec and spec.loader
    fetch = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fetch)
    monkeypatch.setattr(fetch, "pip_commands", lambda: iter([]))
    with pytest.raises(fetch.FetchError, match="no pip was found.*PYAIRCACHE_LLAMA_SRC"):
        fetch.download(fetch.read_lock(place.lock), place.folder / "cache")
