"""Draws gain.png and cost.png beside this file, from what was measured: decode.json, and the table of docs/quality.md.

    python docs/img/plots.py
    python docs/img/plots.py --measure            # measures decode.json anew first: a quarter of an hour when idle

README.md's table of speed is renewed along with it. docs/quality.md's comes from `make quality`.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import click
import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BEGIN, END = "<!-- gain:begin -->", "<!-- gain:end -->"
VISUAL = (1024, 2048, 4096, 8192)  # lengths of the context, nearly all visual
# One thread, and its CPU time: so the figures are those of an idle machine, whatever else runs on it.
OPTIONS = (
    "--threads",
    "1",
    "--gpu-layers",
    "0",
    "--tokens",
    "32",
    "--rounds",
    "3",
    "--batch",
    "1",
    "--cache",
    "f16,f16:0.1",
)
FULL, KEPT = "#8a8a8a", "#3b6fb6"
COLOURS = {"aircache": KEPT, "last": "#d98032", "h2o": "#5b9a5b", "random": FULL}
SHIFT = {"aircache": 0.97, "last": 1.03, "h2o": 1.0, "random": 1.0}


class Row(NamedTuple):
    """A line of docs/quality.md: exact matches in percent, and the interval's ends."""

    method: str
    keep: float
    exact: float
    low: float
    high: float


def measure() -> dict[str, Any]:
    """Runs pyaircache bench for every length; what the pictures need of its lines."""
    lengths = ",".join(map(str, VISUAL))
    command = [sys.executable, "-m", "pyaircache", "bench", *OPTIONS, "--prompt", lengths, "--json"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return gathered([json.loads(line) for line in done.stdout.splitlines()])


def gathered(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """What the pictures need of lines of pyaircache bench."""
    points: dict[int, dict[str, Any]] = {}
    for line in lines:
        point = points.setdefault(line["pp"], {"context": line["pp"]})
        side = point.setdefault("full" if line["keep"] == 1 else "kept", {"tokens/CPU s": []})
        side["tokens/CPU s"].append(1e3 * line["pl"] / line["cpu_step_ms"])
        side["kv bytes"] = line["kv_bytes_read"]
    first = lines[0]
    settings = {"preset": first["model"], "kind": "q4_0", "cache_type": first["type_k"]}
    settings |= {"keep": min(line["keep"] for line in lines), "threads": first["n_threads"]}
    return {"engine": first["engine"], "cpu": first["cpu"], "settings": settings, "points": list(points.values())}


def table(data: dict[str, Any]) -> str:
    """The figures of gain.png as a Markdown table, with what they are of."""
    settings = data["settings"]
    keep = f"keep {settings['keep']:g}"
    lines = [f"| tokens in the context | tokens/s, full | {keep} | | KV cells, full | {keep} |", f"|{' ---: |' * 6}"]
    for point in data["points"]:
        full, kept = (statistics.median(point[side]["tokens/CPU s"]) for side in ("full", "kept"))
        megabytes = " | ".join(f"{point[side]['kv bytes'] / 1e6:.1f} MB" for side in ("full", "kept"))
        lines.append(f"| {point['context']} | {full:.1f} | {kept:.1f} | {kept / full:.2f} times | {megabytes} |")
    kind, cache = settings["kind"].upper(), settings["cache_type"].upper()
    what = f"{settings['preset']}'s shape ({kind}, random weights), cache {cache}"
    where = f"one thread of an {data['cpu']}, per second of its CPU time, median; engine {data['engine']}"
    return "\n".join([*lines, "", f"`python docs/img/plots.py --measure`: {what}; {where}."])


def draw_gain(data: dict[str, Any], out: Path) -> None:
    """Tokens per second, and bytes of the cache, against the length of the context."""
    points, keep = data["points"], data["settings"]["keep"]
    context = [point["context"] for point in points]
    figure, (speed, memory) = plt.subplots(1, 2, figsize=(9.0, 3.4), layout="constrained")
    for side, colour, label in (("full", FULL, "full cache"), ("kept", KEPT, f"keep {keep:g}")):
        rates = [sorted(point[side]["tokens/CPU s"]) for point in points]
        middle = [statistics.median(rate) for rate in rates]
        below = [m - rate[0] for m, rate in zip(middle, rates, strict=True)]
        above = [rate[-1] - m for m, rate in zip(middle, rates, strict=True)]
        speed.errorbar(context, middle, (below, above), color=colour, marker="o", capsize=3, label=label)
        megabytes = [point[side]["kv bytes"] / 1e6 for point in points]
        memory.plot(context, megabytes, color=colour, marker="o", label=label)
    speed.set_title("Decoding, tokens/s on one CPU core")
    memory.set_title("KV cells in use, MB")
    for axes in (speed, memory):
        axes.set_xlabel("tokens in the context, nearly all visual")
        tidy(axes)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def quality(page: str) -> tuple[int, list[Row]]:
    """How many pages were asked about, and the rows of the table that bench/quality.py wrote into docs/quality.md."""
    found = re.findall(r"^\| (\S+) +\| +([\d.]+) \| +([\d.]+)% \| +([\d.]+) to +([\d.]+) \|", page, re.M)
    count = re.search(r"^`python bench/quality\.py.*, (\d+) pages,", page, re.M)
    if not found or count is None:
        raise ValueError("docs/quality.md holds no table of bench/quality.py")
    return int(count[1]), [Row(method, *map(float, numbers)) for method, *numbers in found]


def draw_cost(pages: int, rows: list[Row], out: Path) -> None:
    """Exact match against keep, with 95 % intervals."""
    figure, axes = plt.subplots(figsize=(6.2, 3.4), layout="constrained")
    (full,) = (row for row in rows if row.method == "full")
    axes.axhline(full.exact, color="black", linewidth=1, linestyle=":", label="full cache")
    for method, colour in COLOURS.items():
        part = sorted((row for row in rows if row.method == method), key=lambda row: row.keep)
        # next to each other, where several have the same figures
        keeps = [row.keep * SHIFT[method] for row in part]
        bars = [row.exact - row.low for row in part], [row.high - row.exact for row in part]
        axes.errorbar(keeps, [row.exact for row in part], bars, color=colour, marker="o", capsize=3, label=method)
    keeps = sorted({row.keep for row in rows if row.keep < 1})
    axes.set_xscale("log")
    axes.set_xticks(keeps, [f"{keep:g}" for keep in keeps])
    axes.minorticks_off()
    axes.set_xlabel("keep: share of the visual cells that stays")
    axes.set_title(f"Answers exactly right, % of {pages} pages")
    tidy(axes)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def tidy(axes: Axes) -> None:
    """What all panels share."""
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


@click.command()
@click.option("--measure", "anew", is_flag=True, help="Measure decode.json anew before drawing.")
def main(anew: bool) -> None:
    """Draw the pictures of README.md from what was measured."""
    decode = HERE / "decode.json"
    if anew:
        decode.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
    data = json.loads(decode.read_text(encoding="utf-8"))
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    readme.write_text(f"{before}{BEGIN}\n{table(data)}\n{END}{after}", encoding="utf-8")
    draw_gain(data, HERE / "gain.png")
    draw_cost(*quality((ROOT / "docs" / "quality.md").read_text(encoding="utf-8")), HERE / "cost.png")


if __name__ == "__main__":
    main()
