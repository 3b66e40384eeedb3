"""Which hunks of patches/ fit other versions of llama.cpp? Prints a table: a row a patch, a column a version.

    python cmake/port_table.py 0.3.35 0.3.34 0.3.30        # versions of llama-cpp-python on PyPI
    python cmake/port_table.py 0.3.35 --rejects            # and the hunks that do not fit
    python cmake/port_table.py --json path/to/sdist.tar.gz # sdists and source trees, too

Patches are tried in order, each on what the ones before it made, hunk by hunk as `git apply` does: a hunk may move, its
lines may not differ. "2 (1)" says: two hunks fail, and one of those that fit could go to more places than one, so that
a look at it is due. Downloads are kept beside the pinned sdist. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fetch_llama import ROOT, FetchError, cached_sdist, clean_env, default_cache, find_tree, pip_download, unpack


@dataclass
class Hunk:
    file: str  # the changed file's path inside llama.cpp
    line: int  # where the hunk begins in the pinned source
    text: str  # with its header

    @property
    def before(self) -> list[str]:
        return [x[1:] for x in self.text.splitlines()[1:] if x[:1] != "+"]

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def read_hunks(patch: str) -> list[Hunk]:
    hunks: list[Hunk] = []
    file = ""
    for part in re.split(r"^(?=diff --git |--- |@@ )", patch, flags=re.M):
        if part.startswith("--- "):
            file = re.search(r"^\+\+\+ b/(\S+)", part, re.M)[1]
        elif part.startswith("@@ "):
            hunks.append(Hunk(file, int(re.match(r"@@ -(\d+)", part)[1]), part))
    return hunks


def source(given: str, cache: Path, to: Path) -> None:
    """Unpatched llama.cpp in `to`, from a version of the package, an sdist or a source tree."""
    if re.fullmatch(r"\d+(\.\w+)+", given) and not Path(given).exists():
        cached = cached_sdist(given, cache)
        unpack(cached if cached.is_file() else pip_download(given, cache), to)
    elif Path(given).is_file():
        unpack(Path(given), to)
    elif Path(given).is_dir():
        shutil.copytree(find_tree(Path(given)), to, ignore=shutil.ignore_patterns(".git"))
    else:
        raise FetchError(f"{given} is no version of llama-cpp-python (as 0.3.35), no sdist and no source tree")


def places(tree: Path, hunk: Hunk) -> int:
    """In how many places of its file the hunk's old lines stand."""
    try:
        lines = (tree / hunk.file).read_text(errors="replace").splitlines()
    except OSError:
        return 0
    n = len(hunk.before)
    return sum(lines[i : i + n] == hunk.before for i in range(len(lines) - n + 1))


def try_patch(patch: Path, tree: Path) -> dict[str, object]:
    """Apply what fits of the patch to the tree. Returns the number of hunks, and which fail or have several places."""
    hunks = read_hunks(patch.read_text())
    several = [h for h in hunks if places(tree, h) > 1]
    env = clean_env() | {"GIT_CEILING_DIRECTORIES": str(tree.parent.resolve()), "LC_ALL": "C"}
    env |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
    command = ["git", "apply", "-p1", "--whitespace=nowarn", "--reject", str(patch.resolve())]
    subprocess.run(command, cwd=tree, env=env, capture_output=True)
    failed = []
    for hunk in {h.file: h for h in hunks}.values():
        reject = tree / (hunk.file + ".rej")
        if not (tree / hunk.file).exists():
            failed += [h for h in hunks if h.file == hunk.file]
        elif reject.exists():
            lines = [int(x) for x in re.findall(r"^@@ -(\d+)", reject.read_text(), re.M)]
            failed += [h for h in hunks if h.file == hunk.file and h.line in lines]
            reject.unlink()
    return {"hunks": len(hunks), "failed": failed, "several": [h for h in several if h not in failed]}


def measure(given: str, patches: list[Path], cache: Path) -> dict[str, dict]:
    with tempfile.TemporaryDirectory(prefix="port-") as folder:
        tree = Path(folder) / "llama.cpp"
        source(given, cache, tree)
        return {p.name: try_patch(p, tree) for p in patches}


def table(results: dict[str, dict[str, dict]]) -> str:
    """Of {version: {patch: ...}}, in Markdown."""
    versions = list(results)

    def row(name: str, chosen: list[str]) -> str:
        cells = []
        for version in versions:
            found = [results[version][x] for x in chosen]
            several = sum(len(f["several"]) for f in found)
            cells.append(f"{sum(len(f['failed']) for f in found)}" + (f" ({several})" if several else ""))
        hunks = sum(results[versions[0]][x]["hunks"] for x in chosen)
        return f"| {name} | {hunks} | {' | '.join(cells)} |"

    names = list(results[versions[0]])
    heads = [
        f"| patch | hunks | {' | '.join(f'fail on {v}' for v in versions)} |",
        "| --- " * (2 + len(versions)) + "|",
    ]
    rows = [row(name.removesuffix(".patch"), [name]) for name in names]
    return "\n".join([*heads, *rows, row("all", names)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", help="versions of llama-cpp-python, sdists or source trees")
    parser.add_argument("--patches", type=Path, default=ROOT / "patches")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="keeps the downloaded sdists")
    parser.add_argument("--rejects", action="store_true", help="print the hunks that fail")
    parser.add_argument("--json", action="store_true", help="print {version: {patch: {hunks, failed, several}}}")
    args = parser.parse_args()
    patches = sorted(args.patches.glob("*.patch"))
    try:
        if not shutil.which("git"):
            raise FetchError("git was not found: it is what tries the hunks")
        if not patches:
            raise FetchError(f"{args.patches} has no patches")
        results = {Path(x).name: measure(x, patches, args.cache) for x in args.sources}
    except (FetchError, OSError) as e:
        print(f"port_table: {e}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(results, default=str, indent=2))
        return 0
    print(table(results))
    for version, of in results.items() if args.rejects else ():
        for name, found in of.items():
            for hunk in found["failed"]:
                print(f"\n{version}, {name}, {hunk}:\n{hunk.text}", end="")
            for hunk in found["several"]:
                print(f"\n{version}, {name}, {hunk} fits several places:\n{hunk.text}", end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
