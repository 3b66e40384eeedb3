"""From a Hugging Face model folder to the two GGUF files that this package loads.

::

    from pyaircache.convert import convert

    files = convert("Qwen2-VL-2B-Instruct", "models", outtype="q4_k_m")
    Chat(files.model, files.mmproj)

The work is done by llama.cpp's own converter, of the commit this package is built on; it lies beside the engine
library. A module of `families` adds a family that the converter does not know (or knows in part): it registers classes
with it, see `worker`. Needs the extra ``pyaircache[convert]``.
"""

from .run import Converted, convert
from .types import MMPROJ_TYPES, TEXT_TYPES

__all__ = ["MMPROJ_TYPES", "TEXT_TYPES", "Converted", "convert"]
