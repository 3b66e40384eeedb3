"""Texts at which an answer ends, wherever the borders of tokens fall."""

from __future__ import annotations

from collections.abc import Sequence


class Stops:
    """Lets an answer's text through until a stop text is complete, and holds back what may be the beginning of one.

    Of several the one that is complete first counts, of those the longest.
    """

    def __init__(self, texts: Sequence[str] = ()) -> None:
        self.hit = False
        """Whether a stop text was complete."""
        self._texts = texts
        self._pending = ""  # seen, not let through yet
        self._out = 0  # characters that were let through
        self._ends: list[tuple[int, bool]] = []  # of each token: characters seen with it, and whether none is cut

    def push(self, piece: str, whole: bool = True) -> str:
        """The text of one more token; returns what is sure to be a part of the answer.

        Args:
            piece: Its text.
            whole: Whether it ends with a character, not in the middle of its bytes.
        """
        seen = self._pending + piece
        if not self._texts:
            return seen
        self._ends.append((self._out + len(seen), whole))
        found = [(at + len(text), at) for text in self._texts if (at := seen.find(text)) >= 0]
        if found:
            self.hit = True
            through, self._pending = seen[: min(found)[1]], ""
        else:
            through = seen[: len(seen) - max(_begun(seen, text) for text in self._texts)]
            self._pending = seen[len(through) :]
        self._out += len(through)
        return through

    def rest(self) -> str:
        """What was held back: when an answer ends in another way, it is a part of it."""
        rest, self._pending = self._pending, ""
        return rest

    def cut(self, answer: str) -> tuple[int, int, str]:
        """Where the answer ends, of which all text was let through, among the tokens.

        Returns:
            (tokens that are wholly in the answer, tokens that are in it or begin in it, the text behind the former).
        """
        whole, before = 0, 0
        for count, (end, clean) in enumerate(self._ends, 1):
            if end <= self._out and clean:
                whole, before = count, end
        starts = [0, *(end for end, _ in self._ends[:-1])]
        begun = sum(start < self._out for start in starts)
        return whole, max(whole, begun), answer[before:]


def _begun(seen: str, text: str) -> int:
    """How many characters at the end of ``seen`` a stop text may begin with."""
    return next((n for n in range(min(len(text) - 1, len(seen)), 0, -1) if seen.endswith(text[:n])), 0)
