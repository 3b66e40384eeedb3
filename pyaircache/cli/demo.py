"""``python -m pyaircache.cli.demo``: the bundled model reads a page, with ever fewer visual cells left in its cache."""

from __future__ import annotations

import sys

from .. import Answer, Chat, PyAircacheError, sample

KEEPS = (1.0, 0.5, 0.25, 0.10)
HEATMAP = "heatmap.png"

CAVEAT = """\
This bundled model is tiny, and was trained so that a question looks at the whole of its answer (its card says how).
One page shows little: README.md has a table over 500 fresh pages, docs/quality.md all methods."""


def row(keep: float, answer: Answer) -> str:
    """One line of the table."""
    report = answer.report
    total = report.layers * report.visual_tokens
    milliseconds = report.ms_first_token + report.ms_decode
    cells = f"{report.cells_kept} of {total}"
    return f"{keep:>5.2f}   {answer!s:<12} {cells:>14} {report.kv_bytes:>10,} {milliseconds:>8.1f}"


def main() -> int:
    """Runs the demo; returns the exit code."""
    try:
        picture, question, expected = sample()
        print(f"{picture.name}: {question} (right answer: {expected})\n")
        print(f"{'keep':>5}   {'answer':<12} {'visual cells':>14} {'KV bytes':>10} {'ms':>8}")
        with Chat() as chat:
            chat.ask(picture, question, keep=1.0)  # not shown: a first question pays for allocations
            for keep in KEEPS:
                answer = chat.ask(picture, question, keep=keep)
                print(row(keep, answer))
        print(f"\n{answer.report!r}\n")
        answer.report.heatmap(picture).save(HEATMAP)
        print(f"What was kept at {KEEPS[-1]:g} is painted in {HEATMAP}.\n\n{CAVEAT}")
    except (PyAircacheError, OSError) as exc:
        print(f"pyaircache demo: error: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
