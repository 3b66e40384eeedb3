"""Writes api.md beside this file: the public interface, from the docstrings, which griffe reads without importing.

python docs/make_api.py
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import griffe

ROOT = Path(__file__).resolve().parents[1]
OUT = Path(__file__).with_name("api.md")

HEAD = """\
# API reference

What `import pyaircache` gives, and the low level, `pyaircache.engine`. Made from the docstrings by `make docs-api`:
edit those, not this page. Shorter ways in: [README.md](../README.md), and the [examples](../examples). L is the number
of layers, N_v that of visual tokens.
"""

# Chapters: the room in which something is defined, and its title. Rooms that are not listed come last, by their name.
CHAPTERS = {
    "chat": "Asking",
    "samples": "A page to try things on",
    "images": "Pictures",
    "methods": "Methods",
    "report": "Reports",
    "engine": "Facts about models and prompts",
    "errors": "Errors and warnings",
}
LOW_LEVEL = "pyaircache.engine"
RESULTS = {"report", "engine"}  # rooms of things that nobody makes by hand: their fields say all
# Public by name, since other rooms of the package call them, but nothing for a user.
OURS = {
    "AnswerStream.abandon",
    "AnswerStream.advance",
    "AnswerStream.end",
    "AnswerStream.unseen",
    "Engine.made_by",
    "Engine.pointer",
    "Method.engine",
    "Method.of",
    "Pool.of",
    "Window.of",
} | {f"{name}.fields" for name in ("All", "Elite", "Last", "Pool", "Text", "Visual", "Window")}


def main() -> None:
    """Writes the page."""
    OUT.write_text(page(), encoding="utf-8")


def page() -> str:
    """The page's text."""
    package = griffe.load("pyaircache", search_paths=[ROOT], docstring_parser="google", allow_inspection=False)
    rooms: dict[str, list[griffe.Object]] = {room: [] for room in CHAPTERS}
    for thing in exported(package):
        rooms.setdefault(room_of(thing), []).append(thing)
    chapters = {CHAPTERS.get(room, room.capitalize()): things for room, things in rooms.items() if things}
    shown = {thing.path for things in chapters.values() for thing in things}
    low = [thing for thing in exported(package[LOW_LEVEL.partition(".")[2]]) if thing.path not in shown]
    chapters[f"The low level: {LOW_LEVEL}"] = low

    contents, parts, seen = [], [], Counter()
    for title, things in chapters.items():
        errors = bool(things) and is_error(things[0])
        parts.append(f"## {title}\n")
        if errors:
            parts.append(table_of_errors(things))
        else:
            parts += [text for thing in things for text in entry(thing)]
        links = []
        for thing in things:
            count = seen[thing.name.lower()]  # GitHub numbers headings of the same name
            seen[thing.name.lower()] += 1
            target = anchor(title) if errors else anchor(thing.name) + (f"-{count}" if count else "")
            links.append(f"[{thing.name}](#{target})")
        names = "" if errors else ": " + ", ".join(links)
        contents.append(f"- [{title}](#{anchor(title)}){names}")
    return "\n".join([HEAD, *contents, "", *parts])


def exported(module: griffe.Object) -> list[griffe.Object]:
    """What the module's __all__ names, from where it is defined; neither the version nor constants."""
    found = []
    for name in map(str, module.exports or []):
        if not name.startswith("_") and not name.isupper():
            thing = module[name]
            found.append(thing.final_target if thing.is_alias else thing)
    return found


def room_of(thing: griffe.Object) -> str:
    """The folder or module of the package in which something is defined."""
    return thing.path.split(".")[1]


def is_error(thing: griffe.Object) -> bool:
    """Whether it is an exception or a warning."""
    return room_of(thing) == "errors"


def anchor(heading: str) -> str:
    """The name that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def table_of_errors(things: list[griffe.Object]) -> str:
    """A line each."""
    rows = []
    for thing in things:
        assert isinstance(thing, griffe.Class) and thing.docstring is not None
        rows.append(f"| `{thing.name}` | {', '.join(f'`{base}`' for base in thing.bases)} | {first_text(thing)} |")
    return "\n".join(["| name | is a | when |", "| --- | --- | --- |", *rows, ""])


def first_text(thing: griffe.Object) -> str:
    """The docstring on one line."""
    assert thing.docstring is not None
    return one_line(thing.docstring.value)


def entry(thing: griffe.Object, level: int = 3, owner: str = "") -> Iterator[str]:
    """Heading, signature and docstring of one thing; of a class also what is in it."""
    yield f"{'#' * level} {owner}{thing.name}\n"
    signature = shown_signature(thing, owner)
    if signature:
        yield f"```python\n{signature}\n```\n"
    yield from docstring(thing)
    if isinstance(thing, griffe.Class):
        bases = [base for base in thing.resolved_bases if base.path.startswith("pyaircache.chat.")]  # parts of Chat
        for member in [one for part in (*bases, thing) for one in part.members.values()]:
            inner = member.is_function or "property" in member.labels
            private = member.name.startswith("_") or f"{thing.name}.{member.name}" in OURS
            if inner and not private and member.docstring is not None:
                yield from entry(member, level + 1, f"{thing.name}.")


def shown_signature(thing: griffe.Object, owner: str) -> str:
    """How it is called; one parameter a line where that does not fit into one."""
    if isinstance(thing, griffe.Class):
        sections = thing.docstring.parse("google") if thing.docstring is not None else []
        documented = any(section.kind.value == "parameters" for section in sections)
        if room_of(thing) in RESULTS and not documented or not (documented or "dataclass" in thing.labels):
            return ""
        parameters, returns, what = [p for p in thing.parameters if p.name != "self"], None, "class "
    elif isinstance(thing, griffe.Function):
        parameters, returns, what = [p for p in thing.parameters if p.name not in ("self", "cls")], thing.returns, ""
    elif "property" in thing.labels:
        return f"{owner}{thing.name}: {thing.annotation}"
    else:
        return f"{thing.name} = {thing.value}".replace("'", '"') if getattr(thing, "value", None) else ""
    words, starred = [], False
    for parameter in parameters:
        if parameter.kind is griffe.ParameterKind.keyword_only and not starred:
            words.append("*")
            starred = True
        starred = starred or parameter.kind is griffe.ParameterKind.var_positional
        words.append(shown_parameter(parameter))
    tail = f" -> {returns}" if returns is not None else ""
    line = f"{what}{owner}{thing.name}({', '.join(words)}){tail}"
    if len(line) > 100:
        line = f"{what}{owner}{thing.name}(\n    " + ",\n    ".join(words) + f",\n){tail}"
    return line


def shown_parameter(parameter: griffe.Parameter) -> str:
    """``name: type = default``."""
    stars = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}
    text = stars.get(parameter.kind, "") + parameter.name
    if parameter.annotation is not None:
        text += f": {parameter.annotation}"
    if parameter.default is not None and not stars.get(parameter.kind):
        text += f" = {parameter.default}" if parameter.annotation is not None else f"={parameter.default}"
    return text.replace("'", '"')


def docstring(thing: griffe.Object) -> Iterator[str]:
    """The docstring's sections as Markdown."""
    if thing.docstring is None:
        return
    for section in thing.docstring.parse("google"):
        kind = section.kind.value
        if kind == "text":
            yield markdown(section.value) + "\n"
        elif kind == "admonition":
            yield f"**{section.title}**: {markdown(section.value.description)}\n"
        elif kind in ("parameters", "attributes", "other parameters"):
            title = "Arguments" if kind == "parameters" else kind.capitalize()
            items = [f"- `{item.name}`: {one_line(item.description)}" for item in section.value]
            yield "\n".join([f"**{title}**\n", *items, ""])
        elif kind in ("returns", "yields"):
            text = " ".join(one_line(item.description) for item in section.value)
            yield f"**{kind.capitalize()}**: {text}\n"
        elif kind in ("raises", "warns"):
            items = [f"- `{str(item.annotation).strip('()')}`: {one_line(item.description)}" for item in section.value]
            yield "\n".join([f"**{kind.capitalize()}**\n", *items, ""])
        else:
            raise ValueError(f"{thing.path}: this script does not know docstring sections of the kind {kind!r}")


def one_line(text: str) -> str:
    """A description, unwrapped."""
    return markdown(" ".join(text.split()))


def markdown(text: str) -> str:
    """From the docstrings' conventions: ``code``, :role:`name`, blocks of code behind colons, names of pages here."""
    out: list[str] = []
    text = re.sub(r"``(.+?)``", r"`\1`", text)
    text = re.sub(r":\w+:(`[\w.]+`)", r"\1", text)
    lines = re.sub(r"\bdocs/(\w+\.md)", r"[docs/\1](\1)", text).splitlines()
    code: list[str] = []

    def flush() -> None:
        while code and not code[-1]:
            code.pop()
        if code:
            out.extend(["```python", *code, "```", ""])
        code.clear()

    for line in lines:
        if line.startswith("    ") or (code and not line):
            code.append(line[4:])
            continue
        flush()
        if line.strip() != "::":
            out.append(line.replace("::", ":") if line.endswith("::") else line)
    flush()
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip()


if __name__ == "__main__":
    main()
