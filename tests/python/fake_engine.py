"""An engine without a model: it keeps count of cells and plays back a script. For tests of the layers above it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyaircache import CancelledError, ContextError, Last, Pool, PyAircacheError, StateError
from pyaircache import Method as PublicMethod
from pyaircache.engine import (
    ArchiveInfo,
    ArchiveKind,
    Compression,
    EngineLike,
    EngineMethod,
    Info,
    Logprobs,
    Message,
    ModelInfo,
    ModelLike,
    Part,
    PoolLike,
    Progress,
    PromptInfo,
    Sampling,
    Scores,
    Size,
    Span,
    Stats,
)

END = 0
N_CTX = 10_000
LAYERS, TOKENS_PER_IMAGE = 2, 6
MARKER = "<image>"
SNAPKV = PublicMethod(window=Last(32), keys="causal", pool=Pool("avg", 5), allocation="uniform")
NAMED = {
    "aircache": PublicMethod().engine(0.1),
    "snapkv": SNAPKV.engine(0.1),
    "random": PublicMethod(score="random", allocation="uniform").engine(0.1),
    "full": PublicMethod().engine(1.0),
}


def render(messages: Sequence[Message], add_generation_prompt: bool) -> str:
    """A chat template like Qwen2-VL's."""
    text = "".join(f"<s>{message.role}\n{message.content}</s>\n" for message in messages)
    return text + ("<s>assistant\n" if add_generation_prompt else "")


class FakeModel:
    """What `FakeEngine` is made on."""

    def __init__(self, model: Any, mmproj: Any = None, *, progress: Any = None, **options: Any) -> None:
        self.options = options
        self._closed = False
        if progress is not None:
            progress(0, 0, 1000)
            progress(0, 1000, 1000)

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        self._closed = True

    def info(self) -> ModelInfo:
        return ModelInfo("fake", "fake", "fake", LAYERS, 1, 1, 1, 257, N_CTX, 1, 1, True, 1, 0, 0)

    def forget_images(self) -> None:
        pass


class FakeEngine:
    """Byte tokens (token = byte + 1); answers every prompt with ``script``. The calls are those of `EngineLike`."""

    vision = True
    can_compress = True
    script = b"hello"
    kind: ArchiveKind = "none"  # of its archive: by default it never fits

    def __init__(self, model: Any, mmproj: Any = None, *, progress: Any = None, **options: Any) -> None:
        self.options = options
        self.log: list[Any] = []  # what was fed: ("prompt", text, images), ("compress", keep), tokens as int
        self.n_ctx = options.get("n_ctx") or N_CTX
        self.fail: dict[str, BaseException] = {}  # method name -> exception of its next call
        self.fail_after: dict[str, BaseException] = {}  # the same, but the call takes effect first
        self.hooks: dict[str, Callable[[], object]] = {}  # method name -> called at the beginning of its next call
        self.cancelled = threading.Event()
        self._closed = False
        self.position = 0
        self.n_past = self.n_decodes = 0
        self.sampling: Sampling | None = None
        self.seen: set[int] = set()  # sizes of pictures that were encoded
        self.reset()
        self.log.clear()

    def _called(self, name: str) -> None:
        if self._closed:
            raise StateError("the engine is closed")
        if name in ("prompt", "decode"):
            self.cancelled.clear()
        if name in self.hooks:
            self.hooks.pop(name)()
        if name in ("prompt", "decode") and self.cancelled.is_set():
            raise CancelledError("cancelled")
        if name in self.fail:
            raise self.fail.pop(name)

    def _returns(self, name: str) -> None:
        if name in self.fail_after:
            raise self.fail_after.pop(name)

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        self._closed = True

    def cancel(self) -> None:
        self.cancelled.set()

    def info(self) -> Info:
        facts = ("fake", "fake", "fake", LAYERS, 1, 1, 1, 257, N_CTX, 1, 1, self.vision)
        why_not = "" if self.can_compress else "sliding windows cannot be compressed"
        return Info(*facts, self.n_ctx, 10, self.can_compress, why_not)

    def marker(self) -> str:
        return MARKER

    def apply_template(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        return render(messages, add_generation_prompt)

    def layout(self, text: str, images: Sequence[NDArray[np.uint8] | Size] = ()) -> PromptInfo:
        self._called("layout")
        spans = [Span(i, i * TOKENS_PER_IMAGE, TOKENS_PER_IMAGE, 3, 2) for i in range(len(images))]
        return PromptInfo(1, 1, 1, spans, 0.0, 0.0)

    def prompt(
        self,
        text: str,
        images: Sequence[NDArray[np.uint8]] = (),
        *,
        reserve: int = 0,
        observe: EngineMethod | bool = False,
        progress: Progress | None = None,
    ) -> PromptInfo:
        self._called("prompt")
        assert text.count(MARKER) == len(images)
        visual = len(images) * TOKENS_PER_IMAGE
        tokens = len(text.replace(MARKER, "")) + visual
        if self.n_past + tokens + reserve > self.n_ctx:
            raise ContextError(f"the prompt needs {tokens} tokens, the context has {self.n_ctx}")
        if progress is not None:
            progress(2, 0, tokens)
        self.n_past += tokens
        self.log.append(("prompt", text, len(images)))
        self.position = 0
        self.n_decodes = 0
        self._returns("prompt")
        spans = [Span(i, i * TOKENS_PER_IMAGE, TOKENS_PER_IMAGE, 3, 2) for i in range(len(images))]
        reused = sum(image.size in self.seen for image in images)
        self.seen.update(image.size for image in images)
        return PromptInfo(tokens, visual, self.n_past, spans, 1.0, 2.0, len(images) - reused, reused)

    def conversation(
        self,
        parts: Sequence[Part],
        images: Sequence[NDArray[np.uint8]] = (),
        *,
        reserve: int = 0,
        observe: EngineMethod | bool = False,
        progress: Progress | None = None,
    ) -> PromptInfo:
        """Logged as one prompt, with tokens as bytes."""
        self.reset()
        text = "".join(one if isinstance(one, str) else bytes(t - 1 for t in one).decode() for one in parts)
        return self.prompt(text, images, reserve=reserve, observe=observe, progress=progress)

    def archive(self) -> ArchiveInfo:
        return ArchiveInfo(self.kind, 1000, 5, 3, 1.0, 2.0, "" if self.kind != "none" else "it does not fit")

    def prompt_tokens(self) -> NDArray[np.int32]:
        return np.array([-1] * TOKENS_PER_IMAGE + [5, 6], np.int32)

    def score(self, method: EngineMethod) -> Scores:
        self._called("score")
        self.log.append(("score", method.keep))
        self._returns("score")
        return self._scores()

    def evict(self, kept: Sequence[NDArray[np.int32]], mask_only: bool = False, merge: float = 0.0) -> Compression:
        self._called("evict")
        self.log.append(("evict", [one.tolist() for one in kept]))
        self.n_past -= 2
        self._returns("evict")
        budgets = np.array([len(one) for one in kept], np.int32)
        return Compression(budgets, list(kept), np.empty(0), np.empty(0), 1000, 400, 0.0, 2.0)

    def _scores(self) -> Scores:
        elite = [np.array([7], np.int32)] * LAYERS
        return Scores(np.ones((LAYERS, TOKENS_PER_IMAGE), np.float32), elite, np.empty(0), 1.0)

    def compress(self, method: EngineMethod, mask_only: bool = False) -> tuple[Scores, Compression]:
        self._called("compress")
        self.log.append(("compress", method.keep))
        self.method = method
        self.n_past -= 2  # each layer loses cells, the table some
        self._returns("compress")
        kept = [np.array([0, 2], np.int32), np.array([2, 3, 5], np.int32)]
        budgets = np.array([2, 3], np.int32)
        return self._scores(), Compression(budgets, kept, np.ones(LAYERS), np.zeros(LAYERS), 1000, 400, 1.0, 2.0)

    def set_sampling(self, sampling: Sampling | None) -> None:
        self._called("set_sampling")
        self.sampling = sampling

    def logprobs(self, n: int = 0, token: int | None = None) -> Logprobs:
        return Logprobs(np.arange(1, n + 1, dtype=np.int32), -np.arange(n, dtype=np.float64), -0.5)

    def sample(self) -> tuple[int, bool]:
        self._called("sample")
        end = self.position >= len(self.script)
        token = END if end else self.script[self.position] + 1
        self._returns("sample")
        return token, end

    def token_bytes(self, token: int, special: bool = False) -> bytes:
        return bytes([token - 1])

    def decode(self, token: int) -> None:
        self._called("decode")
        if self.n_past + 1 > self.n_ctx:
            raise ContextError("the context is full")
        self.n_past += 1
        self.n_decodes += 1
        self.position += 1
        self.log.append(token)
        self._returns("decode")

    def logits(self) -> NDArray[np.float32]:
        return np.zeros(END + 1, np.float32)

    def stats(self) -> Stats:
        return Stats(self.n_ctx, self.n_past, self.n_ctx - self.n_past, 0, self.n_decodes, self.n_past * 10, 0, 0)

    def reset(self) -> None:
        self._called("reset")
        self.n_past = self.n_decodes = 0
        self.log.append("reset")
        self._returns("reset")


class FakePool:
    """`EnginePool` of these. ``failing``: an engine's place -> what its next decodes raise."""

    def __init__(self, model: Any, n_engines: int, **options: Any) -> None:
        self.n_engines, self.options = n_engines, options
        self.engines: list[FakeEngine] = []
        self.steps: list[int] = []  # how many engines each step was for
        self.closed = False

    def engine(self) -> FakeEngine:
        self.engines.append(FakeEngine(self, **self.options))
        return self.engines[-1]

    def decode(self, steps: Sequence[tuple[Any, int]]) -> list[PyAircacheError | None]:
        assert len({id(engine) for engine, _ in steps}) == len(steps)
        self.steps.append(len(steps))
        out: list[PyAircacheError | None] = []
        for engine, token in steps:
            try:
                engine.decode(token)
                out.append(None)
            except PyAircacheError as exc:
                out.append(exc)
        return out

    def close(self) -> None:
        self.closed = True


_pool: type[PoolLike] = FakePool
_model: type[ModelLike] = FakeModel
_engine: type[EngineLike] = FakeEngine  # mypy compares every signature
