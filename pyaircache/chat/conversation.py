"""The conversation as text: what to feed to the model next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..engine.structs import EngineMethod, Message
from ..errors import UnsupportedError
from ..methods.policy import Policy

Render = Callable[[Sequence[Message], bool], str]
"""The model's chat template: (messages, add_generation_prompt) -> text."""

_STAND_IN = "PYAIRCACHE-ANSWER"


@dataclass
class Turn:
    """A question and its answer, with all that is needed to bring an engine to this point again."""

    content: str
    """The user's message; the marker stands for an image."""
    rendered: str
    """The whole conversation up to here as the template renders it, generation prompt included."""
    fed: str
    """The end of ``rendered`` that was new to the engine."""
    images: list[NDArray[np.uint8]] = field(default_factory=list)
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
    n_prompt: int = 0
    """Tokens of ``fed``, visual ones included."""
    n_past: int = 0
    """The engine's cells in use before the first answer token was appended."""
    tokens: list[int] = field(default_factory=list)
    """The answer's tokens; the engine has seen all of them, or all but the last."""
    answer: str = ""


def next_prompt(render: Render, turns: Sequence[Turn], content: str) -> tuple[str, str]:
    """Renders the conversation with a new question at its end.

    Earlier turns lie in the engine's cache already: only what follows the last answer is to be fed. The token that
    ended that answer was not fed either, so this begins with the template's end-of-turn text.

    Args:
        render: The model's chat template.
        turns: The conversation so far.
        content: The new question, with markers for images.

    Returns:
        (the whole conversation, the end of it to be fed).

    Raises:
        UnsupportedError: The template renders earlier answers in a way that allows no second question.
    """
    messages = [
        message
        for turn in turns
        for message in (Message("user", turn.content), Message("assistant", turn.answer.replace("\0", "")))
    ]
    question = Message("user", content)
    rendered = render([*messages, question], True)
    if not turns:
        return rendered, rendered
    before = turns[-1].rendered + turns[-1].answer
    if rendered.startswith(before):
        return rendered, rendered[len(before) :]
    # The template trims answers or drops a part of them: see what it puts after one that it leaves alone.
    probe = render([*messages[:-1], Message("assistant", _STAND_IN), question], True)
    _, found, rest = probe.rpartition(_STAND_IN)
    if found:
        return rendered, rest
    closed = render(messages, False)
    if rendered.startswith(closed):
        return rendered, rendered[len(closed) :]
    raise UnsupportedError("the model's chat template leaves out earlier answers; it takes no second question")
