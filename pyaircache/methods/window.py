"""Who observes the image: one of the parts of a method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..checks import flag, share, whole
from ..engine.structs import EngineMethod
from . import grammar

_ELITE, _LAST, _TEXT, _VISUAL, _ALL = range(5)  # pac_method.window


class Window:
    """The tokens whose attention rates the visual tokens: one of the classes below. ``str()`` is what `parse` reads.

    Only those: the engine knows no others, so that a `Method` refuses a subclass of yours.
    """

    @staticmethod
    def parse(text: str) -> Window:
        """Reads a window's text: ``elite``, ``elite:0.5``, ``elite:0.9:content:last``, ``last:16``, ``text``,
        ``text:weighted``, ``visual:32`` or ``all``. The engine does: its library is needed.

        Raises:
            ArgumentError: It is none of these.
            EngineError: The engine library is missing.
        """
        return Window.of(grammar.read("window", text))

    @staticmethod
    def of(method: EngineMethod) -> Window:
        """The window of an engine's method."""
        kind, count = method.window, method.window_n or 1
        if kind == _ELITE:
            assert method.alpha is not None
            return Elite(method.alpha, content_only=bool(method.elite_content), hold_last=bool(method.elite_last))
        if kind == _TEXT:
            return Text(weighted=bool(method.text_weights))
        return Last(count) if kind == _LAST else Visual(count) if kind == _VISUAL else All()

    def fields(self) -> dict[str, Any]:
        """The fields of ``pac_method`` that say the same."""
        raise NotImplementedError


@dataclass(frozen=True)
class Elite(Window):
    """AirCache's: the text tokens behind the image that the prompt's last token attends to most, chosen per layer.

    Attributes:
        alpha: Those with at least this share of the largest attention, in (0, 1].
        content_only: Leave out the tokens of the chat template. Not in the paper.
        hold_last: Always hold the prompt's last token. Not in the paper.
    """

    alpha: float = 0.9
    content_only: bool = False
    hold_last: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", share("alpha", self.alpha))
        for name in ("content_only", "hold_last"):
            object.__setattr__(self, name, flag(name, getattr(self, name)))

    def __str__(self) -> str:
        return f"elite:{number_text(self.alpha)}{':content' * self.content_only}{':last' * self.hold_last}"

    def fields(self) -> dict[str, Any]:
        """See `Window.fields`."""
        flags = {"elite_content": self.content_only, "elite_last": self.hold_last}
        return {"window": _ELITE, "alpha": self.alpha, **flags}


@dataclass(frozen=True)
class Last(Window):
    """The last ``n`` text tokens of the prompt, template included, as in SnapKV; fewer where there are fewer."""

    n: int = 32

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", whole("n", self.n, 1, 65536))

    def __str__(self) -> str:
        return f"last:{self.n}"

    def fields(self) -> dict[str, Any]:
        """See `Window.fields`."""
        return {"window": _LAST, "window_n": self.n}


@dataclass(frozen=True)
class Text(Window):
    """All text tokens behind the first image, as in VL-Cache.

    Attributes:
        weighted: Weigh each by the attention that it receives from the text behind it, as in TGV-KV.
    """

    weighted: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "weighted", flag("weighted", self.weighted))

    def __str__(self) -> str:
        return "text:weighted" if self.weighted else "text"

    def fields(self) -> dict[str, Any]:
        """See `Window.fields`."""
        return {"window": _TEXT, "text_weights": self.weighted}


@dataclass(frozen=True)
class Visual(Window):
    """The last ``n`` visual tokens, of the paper's ablation."""

    n: int = 32

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", whole("n", self.n, 1, 65536))

    def __str__(self) -> str:
        return f"visual:{self.n}"

    def fields(self) -> dict[str, Any]:
        """See `Window.fields`."""
        return {"window": _VISUAL, "window_n": self.n}


@dataclass(frozen=True)
class All(Window):
    """Every token from the first visual one on, as in H2O. Makes the prefill slower (docs/methods.md)."""

    def __str__(self) -> str:
        return "all"

    def fields(self) -> dict[str, Any]:
        """See `Window.fields`."""
        return {"window": _ALL}


WINDOWS: tuple[type[Window], ...] = (Elite, Last, Text, Visual, All)
"""The windows that there are."""


def number_text(value: float) -> str:
    """The shortest text of 6 digits or more that is the same number: what the engine writes, too."""
    return next(text for digits in range(6, 18) if float(text := f"{value:.{digits}g}") == value)
