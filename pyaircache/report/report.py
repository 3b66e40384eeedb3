"""What a question cost and what its compression kept."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from ..checks import whole
from ..errors import ArgumentError, StateError
from ..images import Picture
from ..spans import Span
from . import heatmap
from .divergence import given_budgets, jensen_shannon
from .pictures import PictureInfo

StopReason = Literal["", "end", "stop", "max_tokens", "context", "closed", "cancelled", "interrupted", "error"]
"""Why an answer ended; "": it has not."""

_ARRAYS = ("budgets", "kept", "scores", "observers", "alive", "strength", "skewness")
_NOT_SCALAR = (*_ARRAYS, "spans", "pictures", "parameters")


class HasBudgets(Protocol):
    """What can share out cells among layers: a `pyaircache.Method`."""

    def budgets(
        self, scores: NDArray[np.float32], keep: float, alive: NDArray[np.float64] | None = None
    ) -> NDArray[np.int32]:
        """Budgets [L] of scores [L, N_v]."""


def _ints() -> NDArray[np.int32]:
    return np.empty(0, dtype=np.int32)


def _floats() -> NDArray[np.float64]:
    return np.empty(0, dtype=np.float64)


def _table() -> NDArray[np.float32]:
    return np.empty((0, 0), dtype=np.float32)


@dataclass(repr=False, eq=False)
class Report:
    """One question's report. L layers, N_v visual tokens; formulas: docs/methods.md.

    Without compression (``keep=1.0``, ``method="full"``) every layer keeps every visual token, and ``scores``,
    ``observers``, ``strength`` and ``skewness`` are empty. For a question without an image all per-layer fields are
    empty.

    Attributes:
        keep: Share of the visual cells that was to stay, in (0, 1]. Of a follow-up without an image that of the
            conversation's image, which the follow-up cannot change without an archive; 1 in a conversation without an
            image.
        method: A named method's name, a `Method` in one line, or the name of the user's function; of a follow-up that
            of the conversation's image, ``"full"`` in a conversation without one.
        alpha: Elite threshold, in (0, 1]; None where no elite window observes.
        seed: Of the sampling, drawn or given: ``ask`` with it gives the same answer again. None where the answer is
            not random (temperature 0) and none was given.
        parameters: All that the question was asked with, in JSON's own types, by the names that ``ask`` has for them:
            ``ask(image, question, **parameters)`` asks the same again where the method is a name. A `Method` or a
            function appears as its text, which ``ask`` does not take; the ``alpha`` of a Chat is in the field above.
        layers: L.
        visual_tokens: N_v of this question; with an archive, of the whole conversation, whose images it sees again.
        prompt_tokens: Tokens of this question's prompt, text and visual; of a follow-up the new ones only, but with an
            archive those of the whole conversation, which is one prompt then.
        answer_tokens: Tokens of the answer, those of a stop text left out.
        stop_reason: Why the answer ended: ``"end"`` (the model ended it), ``"stop"`` (a stop text), ``"max_tokens"``,
            ``"context"`` (the window is full), ``"closed"`` (the stream was closed), ``"cancelled"``,
            ``"interrupted"`` or ``"error"``; "" while it is running. After the last three the question is no part of
            the conversation.
        budgets: Visual tokens kept in each layer: int32 [L].
        kept: Each layer's kept visual indices, ascending: L int32 arrays.
        scores: Importance of every visual token in every layer, as the method rates it: float32 [L, N_v].
        observers: Prompt token indices of each layer's observing text tokens: L int32 arrays; empty ones with a window
            of visual or of all tokens, and where nothing observes.
        alive: Attention entries of the text to visual tokens that reach 1 % of their row's maximum, mean over heads:
            float64 [L]; empty but for the allocation ``"vl"``.
        strength: Sum of each layer's importance: float64 [L].
        skewness: Skewness of each layer's importance: float64 [L].
        kv_bytes_full: Bytes of the whole conversation's cells in all layers, were nothing evicted; when the first
            token was sampled, as ``kv_bytes``.
        kv_bytes: Bytes of the cells that are left: what attention reads in a step.
        kv_bytes_reserved: Bytes of all cells of the context window, in use or not: what stock llama.cpp allocates.
        kv_bytes_allocated: Bytes of memory that was taken for them when the first token was sampled (docs/memory.md).
        process_bytes: Bytes of this process in RAM at that time: Linux's VmRSS; 0 where the system does not say.
        process_bytes_peak: The most of them since the process began (VmHWM); 0 where the system does not say.
        archive: Where the prompt's full cells are kept for the next question: "device", "ram", "file", or "none".
        archive_bytes: Bytes that they take there, beside the three above.
        archive_note: "", or why there is no archive, or why it did not serve this question.
        n_restored: Tokens of the conversation that came from the archive instead of being evaluated.
        ms_encode: Time to encode the images, in ms as all times.
        ms_prefill: Time to evaluate the prompt, without the encoding.
        ms_restore: Time to take the prompt's beginning from the archive.
        ms_archive: Time to make the archive.
        ms_compress: Time to score and evict.
        ms_first_token: From the call of ``ask`` to the first token.
        ms_decode: From the first token to the last one, without the time the caller held a stream.
        tokens_per_second: Decoding speed after the first token; 0 when there was no second one.
        n_encoded: Images of this question that were encoded.
        n_reused: Images whose embeddings were kept from an earlier question.
        n_decodes: Graph evaluations since the prompt.
        n_graphs_reused: How many of them reused the graph.
        spans: Runs of visual tokens: which image, where in the prompt, which grid.
        pictures: The pictures of this question, with an archive of the conversation: sizes, and a hash each, by which
            `heatmap` knows them again.
        projector: Kind of the model's projector, as its GGUF names it: how it cuts pictures into tiles.
        tile_side: Tokens along a side of a tile, where the spans do not say it (LLaVA-OneVision); else 0.
    """

    keep: float
    method: str
    alpha: float | None
    seed: int | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    layers: int = 0
    visual_tokens: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    stop_reason: StopReason = ""
    budgets: NDArray[np.int32] = field(default_factory=_ints)
    kept: list[NDArray[np.int32]] = field(default_factory=list)
    scores: NDArray[np.float32] = field(default_factory=_table)
    observers: list[NDArray[np.int32]] = field(default_factory=list)
    alive: NDArray[np.float64] = field(default_factory=_floats)
    strength: NDArray[np.float64] = field(default_factory=_floats)
    skewness: NDArray[np.float64] = field(default_factory=_floats)
    kv_bytes_full: int = 0
    kv_bytes: int = 0
    kv_bytes_reserved: int = 0
    kv_bytes_allocated: int = 0
    process_bytes: int = 0
    process_bytes_peak: int = 0
    archive: str = "none"
    archive_bytes: int = 0
    archive_note: str = ""
    n_restored: int = 0
    ms_encode: float = 0.0
    ms_prefill: float = 0.0
    ms_restore: float = 0.0
    ms_archive: float = 0.0
    ms_compress: float = 0.0
    ms_first_token: float = 0.0
    ms_decode: float = 0.0
    tokens_per_second: float = 0.0
    n_encoded: int = 0
    n_reused: int = 0
    n_decodes: int = 0
    n_graphs_reused: int = 0
    spans: list[Span] = field(default_factory=list)
    pictures: list[PictureInfo] = field(default_factory=list)
    projector: str = ""
    tile_side: int = 0

    @property
    def cells_kept(self) -> int:
        """Visual cells kept, summed over layers."""
        return int(self.budgets.sum())

    @property
    def kept_per_token(self) -> NDArray[np.float64]:
        """Share of the layers that kept each visual token: float64 [N_v] in [0, 1]."""
        counts = np.zeros(self.visual_tokens)
        for kept in self.kept:
            counts[kept] += 1.0
        return counts / max(self.layers, 1)

    @property
    def kept_per_layer(self) -> NDArray[np.float64]:
        """Share of the visual tokens that each layer kept, its budget / N_v: float64 [L] in [0, 1]."""
        return self.budgets / max(self.visual_tokens, 1)

    def divergence(self, other: str | HasBudgets | ArrayLike = "uniform") -> float:
        """How differently another allocation would have shared the cells among the layers.

        The paper compares uniform, strength and skewness in this way (supplement, table 14). Both budgets, divided by
        their sums, are distributions over the layers. Their Jensen-Shannon divergence, with base 2:

            JS(P, Q) = KL(P || M) / 2 + KL(Q || M) / 2,  M = (P + Q) / 2

        Args:
            other: An allocation, such as ``"uniform"``, ``"strength"`` or ``"skewness"``, applied to ``scores`` with
                this question's ``keep``; a `Method`, of which the allocation, ``uniform_share`` and ``min_keep`` count;
                or budgets [L]. Only the last needs no engine library.

        Returns:
            From 0 (the same shares) to 1 (no layer in common).

        Raises:
            ArgumentError: No such allocation, or not L numbers of at least 0 with a sum above 0.
            StateError: There was no compression, so there are no budgets or scores to compare.
        """
        if not self.budgets.size:
            raise StateError("there are no budgets to compare: this question had no image")
        budgets: Any = other if isinstance(other, (np.ndarray, list, tuple)) else self._allocated(other)
        return jensen_shannon(self.budgets, given_budgets(budgets, self.layers))

    def _allocated(self, other: Any) -> Any:
        """The budgets of an allocation or a `Method`; anything else as it is."""
        from ..methods.method import Method  # here: a report by itself needs no engine

        if isinstance(other, str):
            other = Method(allocation=other)  # type: ignore[arg-type]
        if not isinstance(other, Method):
            return other
        if not self.scores.size:
            raise StateError("there are no scores to allocate by: this question was not compressed")
        if other.allocation == "vl" and not self.alive.size:
            raise ArgumentError("allocation 'vl' needs counts that only a question with this allocation has")
        return other.budgets(self.scores, self.keep, self.alive)

    def ranked(self, rank: int) -> NDArray[np.int32]:
        """Each layer's r-th most important visual token; ``Method(rank=r)`` keeps exactly these (the paper's figure 6).

        Args:
            rank: r, from 1 (the most important) to N_v. Equal scores: the lower index comes first.

        Returns:
            Visual indices: int32 [L].

        Raises:
            ArgumentError: r is outside its limits.
            StateError: There are no scores: there was no compression.
        """
        if not self.scores.size:
            raise StateError("there are no scores to rank: this question was not compressed")
        rank = whole("rank", rank, 1, self.visual_tokens)
        return np.argsort(-self.scores, axis=1, kind="stable")[:, rank - 1].astype(np.int32)

    def to_dict(self, *, scalars_only: bool = False) -> dict[str, Any]:
        """The report as a dictionary that ``json.dumps`` takes.

        Args:
            scalars_only: Leave out every array, the spans, the pictures and the parameters.

        Returns:
            Field names to numbers, strings and nested lists; a number that is not finite is None.
        """
        names = [f.name for f in dataclasses.fields(self)]
        if scalars_only:
            names = [name for name in names if name not in _NOT_SCALAR]
        return {name: _plain(getattr(self, name)) for name in names}

    def heatmap(
        self, image: Picture | Sequence[Picture], index: int = 0, *, check: bool = True, image_urls: bool = False
    ) -> Image.Image:
        """Paints what was kept onto a picture of the question.

        Each visual token's cell is as bright as the share of layers that kept it, and tinted from violet (none) to
        yellow (all). Where a model reads a picture as tiles and an overview, a pixel is as bright as the most kept of
        the tokens that look at it. How each family lays its tokens over a picture: docs/pictures.md.

        Args:
            image: The picture that was asked about, in any form that ``Chat.ask`` takes; or all pictures of the
                question, as a list or as a file of several pages, of which the ``index``-th is painted.
            index: Which of the question's pictures it is.
            check: Refuse another picture than the one that was asked about. False paints on any, such as a larger or
                an annotated copy: the tokens' places are scaled to its size.
            image_urls: Whether ``image`` may be an http(s) address, as for ``Chat``.

        Returns:
            An RGB image of the picture's size.

        Raises:
            ArgumentError: There is no such picture in this report; or it is another one, or another number of them.
            UnsupportedError: It is a video, or it is not known where this model's tokens lie on a picture.
            ImageError: The picture cannot be read.
        """
        return heatmap.paint(
            image, index, self.kept_per_token, self.spans, self.pictures, self.projector, self.tile_side,
            check=check, urls=image_urls,
        )  # fmt: skip

    def __repr__(self) -> str:
        alpha = f", alpha={self.alpha:g}" if self.alpha is not None else ""
        seed = f", seed={self.seed}" if self.seed is not None else ""
        head = f"Report(method={self.method!r}, keep={self.keep:g}{alpha}{seed})"
        rows: list[tuple[str, str]] = []
        if self.visual_tokens:
            images = len({span.image for span in self.spans})
            grids = ", ".join(f"{span.nx} x {span.ny}" for span in self.spans[:4] if span.nx)
            more = f" ({grids}{', ...' if len(self.spans) > 4 else ''})" if grids else ""
            rows.append(("visual tokens", f"{self.visual_tokens} in {images} image{'' if images == 1 else 's'}{more}"))
            total = self.layers * self.visual_tokens
            share = self.cells_kept / total if total else 0.0
            rows.append(("cells kept", f"{self.cells_kept} of {total} in {self.layers} layers ({share:.1%})"))
            if self.n_reused:
                rows.append(("images", f"{self.n_encoded} encoded, {self.n_reused} kept from before"))
            rows.append(("budgets", _summary(self.budgets)))
        else:
            rows.append(("visual tokens", "0 (a question without an image)"))
        if any(len(one) for one in self.observers):
            rows.append(("observers", _summary(np.array([len(one) for one in self.observers]))))
        ratio = f" ({self.kv_bytes / self.kv_bytes_full:.1%})" if self.kv_bytes_full else ""
        rows.append(("KV cache", f"{_bytes(self.kv_bytes)} of {_bytes(self.kv_bytes_full)}{ratio}"))
        taken = f"{_bytes(self.kv_bytes_allocated)} allocated, {_bytes(self.kv_bytes_reserved)} reserved"
        if self.process_bytes:
            taken += f"; process {_bytes(self.process_bytes)}, at most {_bytes(self.process_bytes_peak)}"
        rows.append(("memory", taken))
        rows.append(("prompt", f"{self.prompt_tokens} tokens"))
        rows.append(("answer", f"{self.answer_tokens} tokens (stopped: {self.stop_reason or 'running'})"))
        steps = ("encode", "prefill", "compress", "first_token", "decode")
        times = ", ".join(f"{step.replace('_', ' ')} {getattr(self, f'ms_{step}'):.1f} ms" for step in steps)
        rows.append(("time", times))
        rows.append(("speed", f"{self.tokens_per_second:.1f} tokens/s"))
        rows.append(("graphs", f"{self.n_graphs_reused} of {self.n_decodes} reused"))
        return "\n".join([head, *(f"  {name:<14} {text}" for name, text in rows)])


def _summary(counts: NDArray[Any]) -> str:
    """Counts per layer on one line: all of them when few, and their range."""
    shown = ", ".join(str(int(count)) for count in counts[:16])
    return f"{shown}{', ...' if len(counts) > 16 else ''} (min {counts.min()}, max {counts.max()})"


def _bytes(count: int) -> str:
    """A number of bytes for people, in units of 1000."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"


def _plain(value: Any) -> Any:
    """Arrays, spans and NumPy scalars as JSON's own types."""
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
