"""What to observe, how to score, how to share out the cells, drop or merge: a point of the grid of docs/methods.md."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..checks import between, flag, one_of, share, shown, whole
from ..engine import selection
from ..engine.structs import EngineMethod
from ..errors import ArgumentError
from .pool import Pool
from .window import WINDOWS, Elite, Window, number_text

MethodName = Literal[
    "aircache", "snapkv", "h2o", "elastic", "prefixkv", "pyramidkv", "vlcache", "last", "random", "stride", "full"
]
"""The names that ``Chat(method=...)`` takes: the engine's."""
Score = Literal["attention", "random", "stride"]
Keys = Literal["window", "causal"]
Allocation = Literal["strength+skewness", "uniform", "pyramid", "strength", "skewness", "prefix", "vl"]

SCORES: tuple[str, ...] = get_args(Score)
KEYS: tuple[str, ...] = get_args(Keys)
ALLOCATIONS: tuple[str, ...] = get_args(Allocation)
# positions in these tuples are the engine's codes

_SHOWN = ("keys", "allocation")  # always shown, the others where they are not the default


@dataclass(frozen=True)
class Method:
    """A compression method. The default is AirCache; each field changes one thing, whatever the others are.

    ::

        Chat(method=Method(window=Elite(0.9), allocation="uniform"))
        Chat(method=dataclasses.replace(Method.named("snapkv"), pool=Pool("max", 7)))

    How much is kept is not part of it: that is ``keep`` of `Chat`. Which methods have which fields, formulas and
    sources: docs/methods.md.

    Attributes:
        window: Who observes: ``Elite``, ``Last``, ``Text``, ``Visual`` or ``All``.
        score: ``"attention"`` of the window, or a floor to compare with: ``"random"`` or ``"stride"`` (evenly spread).
        keys: Soft-max of the observers over the visual tokens and the ``"window"`` (the paper), or over all tokens
            they see: ``"causal"``.
        pool: Pooling of the scores over neighbours; None: none.
        allocation: How the layers share the cells: ``"strength+skewness"`` (the paper), ``"uniform"``, ``"pyramid"``,
            ``"strength"``, ``"skewness"``, ``"prefix"`` or ``"vl"``.
        merge: Share of the dropped tokens, nearest first, that is averaged into the nearest kept one, in [0, 1].
        uniform_share: This much of the budgets is shared out evenly, in [0, 1]. Not with ``"prefix"``.
        last_term: Weight of a last-query term gated by its neighbourhood and by the layer before, at least 0.
        value_norm: Scores times the length of the token's value.
        diversity: Scores mixed with how unlike the other keys a token's key is (MixKV).
        min_keep: Visual tokens that every layer keeps at least.
        rank: r: every layer keeps only its r-th most important visual token, whatever ``keep`` says; 0: off.
        seed: Of ``"random"``, 0 to 2**32 - 1.

    Raises:
        ArgumentError: A value is outside its limits.
    """

    window: Window = Elite()
    score: Score = "attention"
    keys: Keys = "window"
    pool: Pool | None = None
    allocation: Allocation = "strength+skewness"
    merge: float = 0.0
    uniform_share: float = 0.0
    last_term: float = 0.0
    value_norm: bool = False
    diversity: bool = False
    min_keep: int = 1
    rank: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if type(self.window) not in WINDOWS:
            names = ", ".join(kind.__name__ for kind in WINDOWS)
            raise ArgumentError(f"window must be one of {names}, e.g. Elite(0.9); got {shown(self.window)}")
        if not (self.pool is None or type(self.pool) is Pool):
            raise ArgumentError(f"pool must be a Pool, e.g. Pool('max', 5), or None; got {shown(self.pool)}")
        one_of("score", self.score, SCORES)
        one_of("keys", self.keys, KEYS)
        one_of("allocation", self.allocation, ALLOCATIONS)
        for name, high in (("merge", 1.0), ("uniform_share", 1.0), ("last_term", 1e6)):
            object.__setattr__(self, name, between(name, getattr(self, name), 0.0, high))
        for name in ("value_norm", "diversity"):
            object.__setattr__(self, name, flag(name, getattr(self, name)))
        for name, low, high in (("min_keep", 1, 2**31 - 1), ("rank", 0, 2**31 - 1), ("seed", 0, 2**32 - 1)):
            object.__setattr__(self, name, whole(name, getattr(self, name), low, high))
        if self.allocation == "prefix" and self.uniform_share:
            raise ArgumentError(f"uniform_share must be 0 with allocation 'prefix', got {self.uniform_share:g}")

    @staticmethod
    def named(name: str) -> Method:
        """The method of a name, such as ``"snapkv"``; `names` lists all of them.

        Raises:
            ArgumentError: No method has this name, or it is ``"full"``, which is no method but ``keep=1.0``.
        """
        known = selection.named_methods()
        if not isinstance(name, str) or name not in known:
            raise ArgumentError(f"unknown method {shown(name)}; known methods: {', '.join(known)}")
        if known[name].keep == 1.0:
            raise ArgumentError(f"{name!r} keeps everything and is not a point of the grid; it is the same as keep=1.0")
        return Method.of(known[name])

    @staticmethod
    def names() -> list[str]:
        """The names that `named` takes; ``Chat(method=...)`` takes ``"full"`` as well, which is ``keep=1.0``."""
        return [name for name, method in selection.named_methods().items() if method.keep < 1.0]

    @staticmethod
    def of(method: EngineMethod) -> Method:
        """The engine's form of a method as one of these."""
        values: dict[str, Any] = {name: names[getattr(method, name)] for name, names in _CODES.items()}
        values.update({name: getattr(method, name) for name in _SAME})
        return Method(window=Window.of(method), pool=Pool.of(method), **values)

    def engine(self, keep: float) -> EngineMethod:
        """The engine's form of this method, with a share of cells to keep."""
        values: dict[str, Any] = {name: getattr(self, name) for name in _SAME}
        values.update({name: codes.index(getattr(self, name)) for name, codes in _CODES.items()})
        values.update(self.window.fields())
        if self.pool is not None:
            values.update(self.pool.fields())
        return EngineMethod(keep, **values)

    def budgets(
        self, scores: NDArray[np.float32], keep: float, alive: NDArray[np.float64] | None = None
    ) -> NDArray[np.int32]:
        """How many visual tokens each layer keeps (docs/method.md, section 2).

        Args:
            scores: Importance of every visual token in every layer: float32 [L, N_v], such as `Report.scores`.
            keep: Share of the visual cells to keep, in (0, 1].
            alive: `Report.alive`, float64 [L]: for the allocation ``"vl"`` alone.

        Returns:
            int32 [L], each at least `min_keep`; round(keep * L * N_v) in all.

        Raises:
            ArgumentError: ``keep`` is outside its limits, the scores are no finite numbers [L, N_v], or ``alive`` is
                missing or of another shape.
            EngineError: The engine library is missing.
        """
        return selection.allocate(self.engine(share("keep", keep)), scores, alive)

    def __str__(self) -> str:
        """One line: ``window=last:32 keys=causal pool=avg:5 allocation=uniform``."""
        shown: list[str] = []
        for field in fields(self):
            value = getattr(self, field.name)
            if self.score != "attention" and field.name in ("window", "keys"):
                continue
            if field.name in ("window", *_SHOWN) or value != field.default:
                shown.append(f"{field.name}={number_text(value) if isinstance(value, float) else value}")
        return " ".join(shown)


_CODES: dict[str, tuple[str, ...]] = {"score": SCORES, "keys": KEYS, "allocation": ALLOCATIONS}
_SAME = ("merge", "uniform_share", "last_term", "value_norm", "diversity", "min_keep", "rank", "seed")
