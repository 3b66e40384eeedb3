"""Bytes of picture files through pyaircache.images: upright RGB arrays or ImageError."""

from __future__ import annotations

import sys
import warnings

import atheris
import source  # noqa: F401

with atheris.instrument_imports(include=["pyaircache.images", "PIL"]):
    import numpy as np

    from pyaircache.errors import ImageError
    from pyaircache.images import load_images


def one_input(data: bytes) -> None:
    """A file."""
    try:
        images = load_images(data)  # a TIFF is one picture a page
    except ImageError as exc:
        assert len(str(exc)) < 1000, f"a message of {len(str(exc))} characters"
        return
    assert images
    for image in images:
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size > 0, image.shape


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
