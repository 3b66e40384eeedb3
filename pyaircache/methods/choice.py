"""What ``Chat(method=..., alpha=...)`` may be: a name, a Method, or a user's own function."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from ..checks import share, shown
from ..engine.structs import EngineMethod
from ..errors import ArgumentError
from . import grammar
from .method import Method
from .policy import Policy, method_of, name_of
from .window import Elite

FULL = "full"


@dataclass(frozen=True)
class Choice:
    """A method that was chosen.

    Attributes:
        name: For reports: the name, the Method in one line, or the function's name.
        method: What is observed and scored; None: nothing, all is kept.
        policy: Who selects instead of the engine.
    """

    name: str
    method: Method | None
    policy: Policy | None = None

    @property
    def alpha(self) -> float | None:
        """Elite threshold, where an elite window observes."""
        window = _elite(self.method) if self.method is not None else None
        return window.alpha if window is not None else None

    def engine(self, keep: float) -> EngineMethod | None:
        """What the engine is asked to do, or None: nothing."""
        return None if self.method is None or keep == 1.0 else self.method.engine(keep)


def choose(method: object, alpha: float | None = None) -> Choice:
    """Reads ``method`` and ``alpha`` of `Chat`.

    Raises:
        ArgumentError: An unknown name, or neither name, Method nor function; or an alpha that does not apply.
    """
    if isinstance(method, Method):
        if alpha is not None:
            raise ArgumentError("alpha goes with named methods; in a Method it is part of the window: Elite(alpha)")
        return Choice(str(method), method)
    if isinstance(method, str) and method == FULL:
        share("alpha", 1.0 if alpha is None else alpha)
        return Choice(FULL, None)
    if isinstance(method, str):
        return Choice(method, with_alpha(Method.named(method), alpha, method))
    if callable(method) and not isinstance(method, type):
        return Choice(name_of(method), with_alpha(method_of(method), alpha, name_of(method)), method)
    names = ", ".join((*Method.names(), FULL))
    raise ArgumentError(f"method must be one of {names}, a Method or a function, got {shown(method)}")


def refined(name: str, texts: Mapping[str, str], seed: int | None = None) -> tuple[str | Method, float | None]:
    """A named method with some of its parts replaced, in the words of the command line.

    Args:
        name: The method's.
        texts: What parts become, by their names (docs/methods.md).
        seed: Of the scores, where they are random.

    Returns:
        ``method`` and ``alpha`` of `Chat`: the name itself where nothing but alpha is replaced.

    Raises:
        ArgumentError: A part is outside its limits, or cannot be replaced.
    """
    texts = dict(texts)
    if seed is not None and name != FULL and texts.get("score", Method.named(name).score) == "random":
        texts["seed"] = str(seed)
    if texts.keys() <= {"alpha"}:
        return name, grammar.read("alpha", texts["alpha"]).alpha if texts else None
    return Method.of(grammar.changed(Method.named(name).engine(1.0), texts)), None


def with_alpha(method: Method, alpha: float | None, name: str) -> Method:
    """The method with another elite threshold; None: as it is.

    Raises:
        ArgumentError: alpha is outside its limits, or there is no elite window.
    """
    if alpha is None:
        return method
    share("alpha", alpha)
    window = _elite(method)
    if window is None:
        raise ArgumentError(
            f"alpha is the threshold of elite windows, and method {shown(name)} has none; got {shown(alpha)}"
        )
    return dataclasses.replace(method, window=dataclasses.replace(window, alpha=alpha))


def _elite(method: Method) -> Elite | None:
    return method.window if method.score == "attention" and isinstance(method.window, Elite) else None
