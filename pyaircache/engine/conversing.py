"""The engine's calls for a conversation from its beginning, whose images' cells are kept for the next question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .marshal import Progress, ProgressCallback, c_images, indices, int32, struct_fields, utf8
from .status import check
from .structs import ARCHIVES, ArchiveInfo, EngineMethod, PromptInfo

Part = str | Sequence[int]
"""A piece of a conversation: text to be tokenised, or tokens as they are."""


class Conversing:
    """The part of `Engine` that does it."""

    _ffi: Any
    _lib: Any
    _engine: Any
    _observed: Any
    _prompt_info: Any

    def conversation(
        self,
        parts: Sequence[Part],
        images: Sequence[NDArray[np.uint8]] = (),
        *,
        reserve: int = 0,
        observe: EngineMethod | bool = False,
        progress: Progress | None = None,
    ) -> PromptInfo:
        """Begins a conversation anew, with all of these parts as one prompt; what the archive holds is not evaluated.

        Args:
            parts: Rendered text, whose markers are replaced by the next images, or tokens, such as an answer's.
            images: Of all parts, as in `Engine.prompt`.
            reserve: Cells that must stay free for the answer.
            observe: The method that is used next (True: the default one), or False: then no archive is made.
            progress: Called between batches.

        Raises:
            ContextError: It does not fit; the conversation is as it was. After other errors there is none.
        """
        ffi = self._ffi
        items, alive = ffi.new("struct pac_part[]", max(len(parts), 1)), []
        for i, part in enumerate(parts):
            if isinstance(part, str):
                alive.append(ffi.new("char[]", utf8(part)))
                items[i].text = alive[-1]
            else:
                tokens = indices("the tokens of a part", list(part) or np.empty(0, np.int32))
                alive.append(ffi.new("int32_t[]", max(len(tokens), 1)))
                ffi.memmove(alive[-1], tokens, tokens.nbytes)
                items[i].tokens, items[i].n_tokens = alive[-1], len(tokens)
        pictures, _buffers = c_images(self._ffi, images)
        callback = ProgressCallback(ffi, progress)
        out = ffi.new("struct pac_prompt_info *")
        status = self._lib.pac_conversation(
            self._engine, items, len(parts), pictures, len(images), int32("reserve", reserve), self._observed(observe),
            callback.pointer, ffi.NULL, out,
        )  # fmt: skip
        callback.raise_pending()
        check(status)
        info: PromptInfo = self._prompt_info(out)
        return info

    def archive(self) -> ArchiveInfo:
        """What is kept for the next question, and how the last conversation was begun."""
        out = self._ffi.new("struct pac_archive_info *")
        out.size = self._ffi.sizeof("struct pac_archive_info")
        check(self._lib.pac_archive_get(self._engine, out))
        return ArchiveInfo(**struct_fields(self._ffi, out, ArchiveInfo, kind=ARCHIVES[out.kind]))
