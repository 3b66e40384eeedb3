"""Rewrite patches/ in git's format with as little context as puts each hunk in one place only: one line, mostly.

    python cmake/trim_patches.py                 # after a patch was made or mended, against the pinned source
    python cmake/trim_patches.py --check         # fails when a patch would be rewritten

Every line of context is one that the next llama.cpp may have changed, so that the hunk no longer applies; too few of
them, and it applies at the wrong place. cmake/port_table.py shows what patches are worth. Standard library only.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fetch_llama import ROOT, FetchError, apply_patches, clean_env, default_cache, download, read_lock
from port_table import source


@dataclass
class Change:
    """Lines [old, old + n_old) of a file become lines [new, new + n_new); counted from 0."""

    old: int
    n_old: int
    new: int
    n_new: int
    context: int = 1
    function: str = ""  # as git names it behind the hunk's numbers


def git(*args: str, cwd: Path) -> str:
    env = clean_env() | {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "LC_ALL": "C"}
    user = ["-c", "user.name=x", "-c", "user.email=x", "-c", "core.autocrlf=false"]
    return subprocess.run(["git", *user, *args], cwd=cwd, env=env, check=True, capture_output=True, text=True).stdout


def read_changes(diff: str) -> list[Change]:
    """Of one file's diff without context. git counts from 1, and an empty side by the line before it."""
    changes = []
    for m in re.finditer(r"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@ ?(.*)$", diff, re.M):
        n_old, n_new = int(m[2] or 1), int(m[4] or 1)
        changes.append(Change(int(m[1]) - (n_old > 0), n_old, int(m[3]) - (n_new > 0), n_new, function=m[5]))
    return changes


def hunks(changes: list[Change], old: list[str]) -> list[list[Change]]:
    """Changes that stand together, each group with the least context that makes its old lines unique in the file."""

    def lines(group: list[Change]) -> slice:
        k = max(c.context for c in group)
        return slice(max(group[0].old - k, 0), group[-1].old + group[-1].n_old + k)

    def count(text: list[str]) -> int:
        return sum(old[i : i + len(text)] == text for i in range(len(old) - len(text) + 1))

    groups = [[c] for c in changes]
    while True:
        merged: list[list[Change]] = []
        for group in groups:
            if merged and lines(merged[-1]).stop >= lines(group).start:
                merged[-1] = merged[-1] + group
            else:
                merged.append(group)
        groups = merged
        wide = [g for g in groups if count(old[lines(g)]) > 1]
        if not wide:
            return groups
        for group in wide:
            k = max(c.context for c in group)
            for c in group:
                c.context = k + 1


def write_hunk(group: list[Change], old: list[str], new: list[str]) -> str:
    k = max(c.context for c in group)
    first, last = max(group[0].old - k, 0), min(group[-1].old + group[-1].n_old + k, len(old))
    body = []
    at = first
    for c in group:
        body += [" " + x for x in old[at : c.old]]
        body += ["-" + x for x in old[c.old : c.old + c.n_old]] + ["+" + x for x in new[c.new : c.new + c.n_new]]
        at = c.old + c.n_old
    body += [" " + x for x in old[at:last]]
    shift = group[0].new - group[0].old
    n_new = last - first + sum(c.n_new - c.n_old for c in group)
    name = " " + group[0].function if group[0].function else ""
    return f"@@ -{first + 1},{last - first} +{first + shift + 1},{n_new} @@{name}\n" + "\n".join(body) + "\n"


def trim(tree: Path, patch: Path) -> str:
    """The patch anew. `tree` is a git repository of what it applies to; afterwards it has the patch, committed."""
    try:
        apply_patches([patch], tree)
    except FetchError as e:
        raise FetchError(f"{e}\nMend it first: cmake/port_table.py --rejects shows the hunks.") from e
    text = ""
    for part in re.split(r"^(?=diff --git )", git("diff", "--no-renames", "-U0", cwd=tree), flags=re.M)[1:]:
        name = re.search(r"^\+\+\+ b/(.+)$", part, re.M)
        if not name or "\n\\ No newline" in part:
            raise FetchError(f"{patch.name}: only edits of files that end with a newline can be written")
        old = git("show", f"HEAD:{name[1]}", cwd=tree).split("\n")[:-1]
        new = (tree / name[1]).read_text().split("\n")[:-1]
        head = part[: part.index("\n@@ ") + 1]
        text += head + "".join(write_hunk(g, old, new) for g in hunks(read_changes(part), old))
    git("commit", "-qam", patch.name, cwd=tree)
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lock", type=Path, default=ROOT / "llama.cpp.lock")
    parser.add_argument("--patches", type=Path, default=ROOT / "patches")
    parser.add_argument("--source", default=os.environ.get("PYAIRCACHE_LLAMA_SRC"), help="local sdist or source tree")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="keeps the downloaded sdist")
    parser.add_argument("--check", action="store_true", help="change nothing, fail when something would change")
    args = parser.parse_args()
    changed = []
    try:
        given = args.source or str(download(read_lock(args.lock), args.cache))
        with tempfile.TemporaryDirectory(prefix="trim-") as folder:
            tree = Path(folder) / "llama.cpp"
            source(given, args.cache, tree)
            git("init", "-q", cwd=tree)
            git("add", "-A", "-f", cwd=tree)
            git("commit", "-qm", "pinned", cwd=tree)
            for patch in sorted(args.patches.glob("*.patch")):
                text = trim(tree, patch)
                if text != patch.read_text():
                    changed.append(patch.name)
                    if not args.check:
                        patch.write_text(text)
    except (FetchError, OSError, subprocess.CalledProcessError) as e:
        print(f"trim_patches: {e}", file=sys.stderr)
        return 1
    print("\n".join(changed) or "nothing to change")
    return 1 if args.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
