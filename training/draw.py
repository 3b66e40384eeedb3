"""Fresh pages with questions: what training, evaluation, samples and benchmarks draw from.

python -m training.draw OUT --n 20 --seed 1          # pictures and pages.jsonl, to look at
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
from PIL import Image

from training.layouts import LAYOUTS
from training.page import Page, new_page

# how often each kind of page is drawn
MIX = {"form": 0.25, "receipt": 0.2, "table": 0.22, "chart": 0.18, "signs": 0.15}
# rows and columns of cells: 154 to 400 visual tokens
SIZES = ((12, 13), (13, 12), (14, 11), (14, 12), (11, 14), (12, 15), (16, 11), (13, 13), (11, 18))
LARGE = ((16, 16), (16, 19), (20, 20))
LARGE_SHARE = 0.06


def draw_size(rng: np.random.Generator) -> tuple[int, int]:
    """Rows and columns of a page as training draws them."""
    sizes = LARGE if rng.random() < LARGE_SHARE else SIZES
    return sizes[rng.integers(len(sizes))]


def draw_page(
    rng: np.random.Generator, rows: int, columns: int, layout: str | None = None, mix: dict[str, float] | None = None
) -> tuple[Page, np.ndarray]:
    """One page, drawn again until everything fits on it, and its pixels, uint8 [28 rows, 28 columns, 3]."""
    mix = mix or MIX
    while True:
        name = layout or str(rng.choice(list(mix), p=list(mix.values())))
        page = new_page(rng, rows, columns)
        LAYOUTS[name](page)
        if all(t.edges[0] >= 0 and t.edges[-1] <= page.width for t in page.texts):
            return page, page.finish()


@click.command(help=__doc__)
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--n", default=20, show_default=True, type=click.IntRange(min=1), help="Pages to draw.")
@click.option("--seed", default=1, show_default=True, type=int)
@click.option("--layout", type=click.Choice(list(LAYOUTS)), help="Default: all kinds.")
def main(out: Path, n: int, seed: int, layout: str | None) -> None:
    rng = np.random.default_rng(seed)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "pages.jsonl").open("w", encoding="utf-8") as lines:
        for i in range(n):
            page, pixels = draw_page(rng, *draw_size(rng), layout)
            file = f"{i:03d}.png"
            Image.fromarray(pixels).save(out / file)
            questions = [q._asdict() for q in page.questions]
            lines.write(
                json.dumps({"file": file, "rows": page.rows, "columns": page.columns, "questions": questions}) + "\n"
            )
    click.echo(f"{n} pages in {out}")


if __name__ == "__main__":
    main()
