"""``pyaircache convert``: a Hugging Face model folder as GGUF files."""

from __future__ import annotations

from typing import Any

import click

from ..convert import MMPROJ_TYPES, TEXT_TYPES
from ..convert import convert as convert_folder


@click.command()
@click.argument("source", metavar="HF_DIR")
@click.option("-o", "--out", metavar="OUT", required=True, help="Folder for the files; made if need be.")
@click.option("--outtype", default="f16", show_default=True, help=f"Language model: {', '.join(TEXT_TYPES)}.")
@click.option("--mmproj-outtype", default="f16", show_default=True, help=f"Projector: {', '.join(MMPROJ_TYPES)}.")
@click.option("--only", default="both", show_default=True, help="text or mmproj: write one of the two files.")
@click.option("--name", help="Name of the files and of the model; default: the folder's.")
@click.option("--pre-tokenizer", metavar="NAME", help="llama.cpp's word splitter, such as qwen2; default: detected.")
@click.option("--force", is_flag=True, help="Overwrite files that are there.")
@click.option("-v", "--verbose", is_flag=True, help="Show the converter's log on stderr.")
def convert(source: str, out: str, **options: Any) -> None:
    """Convert the Hugging Face model folder HF_DIR to GGUF: language model and projector. Prints their paths."""
    for path in convert_folder(source, out, **options):
        if path is not None:
            click.echo(path)
