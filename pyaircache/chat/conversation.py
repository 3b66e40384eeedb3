"""The conversation as text: what to feed to the model next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..engine.structs import EngineMethod, Message
from ..errors import UnsupportedError
from ..methods.policy import Policy
from .messages import Given

Render = Callable[[Sequence[Message], bool], str]
"""The model's chat template: (messages, add_generation_prompt) -> text."""

_STAND_IN = "PYAIRCACHE-ANSWER"


@dataclass
class Turn:
    """Messages and the answer to them, with all that is needed to bring an engine to this point again."""

    given: list[Given]
    """The messages: the user's, as a rule; a system message or earlier ones that were given together before it."""
    rendered: str
    """The whole conversation up to here as the template renders it, generation prompt included."""
    fed: str
    """The end of ``rendered`` that was new to the engine."""
    method: EngineMethod | None = None
    """Compression after the prompt; None: none."""
    policy: Policy | None = None
    """Who selects instead of the engine."""
    keep: float = 1.0
    """Share of the visual cells that was to stay, for reports."""
    name: str = "full"
    """The method's name, for reports."""
    alpha: float | None = None
    """Elite threshold, for reports."""
    kept: list[NDArray[np.int32]] | None = None
    """What the policy selected: it is asked only once."""
    archived: bool = False
    """Whether the engine kept the full cells of all pictures up to here for the next question."""
    n_prompt: int = 0
    """Tokens of ``fed``, visual ones included."""
    n_past: int = 0
    """The engine's cells in use before the first answer token was appended."""
    tokens: list[int] = field(default_factory=list)
    """The answer's tokens; the engine has seen all of them, or all but the last."""
    tail: str = ""
    """The end of the answer where no token ends with it: text that is fed with the next question."""
    answer: str = ""

    @property
    def content(self) -> str:
        """The last message's text; the marker stands for an image."""
        return self.given[-1].content

    @property
    def images(self) -> list[NDArray[np.uint8]]:
        """The images of all messages, in order."""
        return [image for one in self.given for image in one.images]

    @property
    def messages(self) -> list[Message]:
        """The messages with the answer behind them."""
        # An answer may hold the token of a NUL character, which no template takes
        return [*(one.message for one in self.given), Message("assistant", self.answer.replace("\0", ""))]


def matching(turns: Sequence[Turn], given: Sequence[Given], fits: Callable[[Turn], bool]) -> tuple[int, int]:
    """How far messages are the same as a conversation.

    Args:
        turns: The conversation so far.
        given: A whole conversation of messages, the last one the user's.
        fits: Whether a turn's images were compressed as they would be now.

    Returns:
        (turns that are the same, messages that they cover).
    """
    covered = 0
    for count, turn in enumerate(turns):
        end = covered + len(turn.given)
        same = len(given) > end + 1 and all(
            one.same(two) for one, two in zip(turn.given, given[covered:end], strict=True)
        )
        if not same or given[end].message != Message("assistant", turn.answer) or not fits(turn):
            return count, covered
        covered = end + 1
    return len(turns), covered


def next_prompt(render: Render, turns: Sequence[Turn], new: Sequence[Message]) -> tuple[str, str]:
    """Renders the conversation with new messages at its end.

    Earlier turns lie in the engine's cache already: only what follows the last answer is to be fed. The token that
    ended that answer was not fed either, so this begins with the template's end-of-turn text.

    Args:
        render: The model's chat template.
        turns: The conversation so far.
        new: The messages, with markers for images.

    Returns:
        (the whole conversation, the end of it to be fed).

    Raises:
        UnsupportedError: The template renders earlier answers in a way that allows no second question.
    """
    messages = [message for turn in turns for message in turn.messages]
    rendered = render([*messages, *new], True)
    if not turns:
        return rendered, rendered
    last = turns[-1]
    before = last.rendered + last.answer
    if rendered.startswith(before):
        return rendered, last.tail + rendered[len(before) :]
    # The template trims answers or drops a part of them: see what it puts after one that it leaves alone.
    probe = render([*messages[:-1], Message("assistant", _STAND_IN), *new], True)
    _, found, rest = probe.rpartition(_STAND_IN)
    if found:
        return rendered, last.tail + rest
    closed = render(messages, False)
    if rendered.startswith(closed):
        return rendered, last.tail + rendered[len(closed) :]
    raise UnsupportedError("the model's chat template leaves out earlier answers; it takes no second question")
