"""Writes a trained model as Hugging Face has it, and what is shipped: two GGUF files, and sample pages.

python -m training.export OUT                                            # OUT/hf, OUT/gguf
python -m training.export OUT --to pyaircache/data/pages-vl            # and puts it into the package
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image

from training.draw import draw_page, draw_size
from training.export_gguf import export_mmproj, export_text
from training.layouts import LAYOUTS
from training.page import CELL
from training.train import build

# What Qwen2-VL's processor does, with plain scaling; pictures up to 4096 cells are taken as they are.
PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2VLProcessor",
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "min_pixels": 8 * CELL**2,
    "max_pixels": 4096 * CELL**2,
    "patch_size": 14,
    "merge_size": 2,
    "temporal_patch_size": 2,
}
SAMPLE_SEED = 2026


def write_samples(folder: Path, text: Path, mmproj: Path) -> None:
    """One page of each kind with a question: the first that the model reads right, since they show what it can do."""
    from pyaircache import Chat

    rng = np.random.default_rng((SAMPLE_SEED, 0, 0))
    folder.mkdir(parents=True, exist_ok=True)
    with Chat(text, mmproj=mmproj) as chat, (folder / "samples.jsonl").open("w", encoding="utf-8") as lines:
        for i, layout in enumerate(LAYOUTS):
            while True:
                page, pixels = draw_page(rng, *draw_size(rng), layout)
                question = page.questions[rng.integers(len(page.questions))]
                if chat.ask(pixels, question.text, keep=1.0, max_tokens=16) == question.answer:
                    break
            file = f"{i:03d}.png"
            Image.fromarray(pixels).save(folder / file, optimize=True)
            lines.write(json.dumps({"file": file, "question": question.text, "answer": question.answer}) + "\n")


@click.command(help=__doc__)
@click.argument("out", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--to", type=click.Path(file_okay=False, path_type=Path), help="Folder of the package; its name is the model's."
)
@click.option("--name", default="pages-vl", show_default=True, help="Without --to.")
def main(out: Path, to: Path | None, name: str) -> None:
    _, net = build(out, 0)
    state = torch.load(out / "state.pt", weights_only=True, mmap=True)
    net.load_state_dict(state["net"])
    net.model.save_pretrained(out / "hf")
    (out / "hf" / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=1) + "\n")
    folder, name = (to, to.name) if to else (out / "gguf", name)
    text = export_text(out / "hf", folder / f"{name}-Q8_0.gguf", "Q8_0", name)
    mmproj = export_mmproj(out / "hf", folder / f"mmproj-{name}-F16.gguf", "F16", name)
    click.echo(f"{text}\n{mmproj}")
    if to:
        write_samples(to / "samples", text, mmproj)


if __name__ == "__main__":
    main()
