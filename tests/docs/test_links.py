"""What the pages point to exists: files, headings, and the sections of docs/method.md that the code cites."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "examples/*.md", "bench/*.md", "training/*.md", "pyaircache/data/*/*.md")
    for path in ROOT.glob(pattern)
)
FENCED = re.compile(r"^```.*?^```$", re.S | re.M)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CITED = re.compile(r"docs/method\.md(?:\]\([^)]*\))?, sections? (\d)(?: (?:and|to) (\d))?")
CODE = (".py", ".cpp", ".h", ".md", ".patch", ".cmake")


def headings(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    found: dict[str, int] = {}
    for line in FENCED.sub("", page.read_text(encoding="utf-8")).splitlines():
        if line.startswith("#"):
            name = re.sub(r"[^\w -]", "", line.lstrip("#").strip().lower()).replace(" ", "-")
            found[name] = found.get(name, 0) + 1
    return {name + (f"-{i}" if i else "") for name, count in found.items() for i in range(count)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    broken = []
    for link in LINK.findall(FENCED.sub("", page.read_text(encoding="utf-8"))):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, heading = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or not target.is_relative_to(ROOT) or (heading and heading not in headings(target)):
            broken.append(link)
    assert not broken


def test_every_page_of_docs_is_reachable_from_the_readme() -> None:
    seen, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        links = LINK.findall(FENCED.sub("", page.read_text(encoding="utf-8")))
        todo += [(page.parent / link.partition("#")[0]).resolve() for link in links if "://" not in link]
    assert not {page for page in PAGES if page.parent == ROOT / "docs"} - seen


def test_sections_of_the_method_are_cited_in_one_way() -> None:
    numbered = set(re.findall(r"^## (\d)\.", (ROOT / "docs" / "method.md").read_text(encoding="utf-8"), re.M))
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("this is no git checkout")
    files = [ROOT / name for name in listed.stdout.splitlines() if name.endswith(CODE)]
    texts = {path: path.read_text(encoding="utf-8") for path in files if path.is_file() and path != Path(__file__)}
    cited = {section for text in texts.values() for groups in CITED.findall(text) for section in groups if section}
    assert cited and cited <= numbered
    other = re.compile(r"(?<![\w/.])method:? sections? \d|docs/method: section")
    assert not [str(path) for path, text in texts.items() if other.search(text)]
