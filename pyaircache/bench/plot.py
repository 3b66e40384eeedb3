"""A picture of what was measured: tokens per second and bytes of the cache against the number of conversations."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import ArgumentError
from .grid import Cache, short
from .results import Line, medians, speed

INSTALL = "pip install 'pyaircache[bench]'"


_KINDS = (".png", ".svg", ".pdf")


def check(path: Path) -> None:
    """Raises ArgumentError where this picture cannot be drawn: before hours are spent on measuring."""
    if path.suffix.lower() not in _KINDS:
        raise ArgumentError(f"--plot must end with {', '.join(_KINDS)}, got {path}")
    if not path.parent.is_dir():
        raise ArgumentError(f"--plot: there is no folder {path.parent}")
    _pyplot()


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ArgumentError(f"a plot needs matplotlib: {INSTALL}") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def draw(lines: Iterable[Line], path: Path) -> None:
    """Draws a column a prompt length: tokens per second above, bytes allocated for the cache below.

    Raises:
        ArgumentError: matplotlib is missing.
        OSError: The file cannot be written.
    """
    plt = _pyplot()
    groups: dict[int, dict[str, list[Line]]] = {}
    for one in sorted(medians(lines), key=lambda one: (one["pp"], one["pl"])):
        name = str(Cache(one["type_k"], one["keep"]))
        groups.setdefault(one["pp"], {}).setdefault(name, []).append(one)
    figure, axes = plt.subplots(
        2, len(groups), figsize=(3.2 * len(groups) + 1, 5.6), layout="constrained", squeeze=False, sharex=True
    )
    for column, (prompt, caches) in enumerate(groups.items()):
        rates, memory = axes[0][column], axes[1][column]
        for name, points in caches.items():
            batches = [one["pl"] for one in points]
            style = "--" if ":" in name else "-"
            rates.plot(batches, [speed(one) for one in points], style, marker="o", label=name)
            memory.plot(batches, [one["kv_bytes_allocated"] / 1e9 for one in points], style, marker="o")
        rates.set_title(f"{short(prompt)} tokens each")
        memory.set_xlabel("conversations")
    axes[0][0].set_ylabel("tokens/s, all together")
    axes[1][0].set_ylabel("KV cache allocated, GB")
    axes[0][0].legend(fontsize="small")
    for one in axes.flat:
        one.set_ylim(bottom=0)
        one.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
