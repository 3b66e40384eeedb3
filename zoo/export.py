"""Writes a trained model as Hugging Face has it, and as the two GGUF files that are shipped.

python -m zoo.export OUT --name pages-vl        # OUT/hf, OUT/gguf
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import torch

from models.export_gguf import export_mmproj, export_text
from zoo.page import CELL
from zoo.train import build

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


@click.command(help=__doc__)
@click.argument("out", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--name", default="pages-vl", show_default=True)
def main(out: Path, name: str) -> None:
    _, net = build(out, 0)
    state = torch.load(out / "state.pt", weights_only=True, mmap=True)
    net.load_state_dict(state["net"])
    net.model.save_pretrained(out / "hf")
    (out / "hf" / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=1) + "\n")
    click.echo(export_text(out / "hf", out / "gguf" / f"{name}-Q8_0.gguf", "Q8_0", name))
    click.echo(export_mmproj(out / "hf", out / "gguf" / f"mmproj-{name}-F16.gguf", "F16", name))


if __name__ == "__main__":
    main()
