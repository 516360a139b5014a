"""Tokens become text as they come: never half a character, and nothing that may belong to a stop string."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

_HALF = "�"
"""What an unfinished character looks like: one of them, or (with byte fallback) one for each byte before it too."""


class TextStream:
    """Text of tokens, one token at a time.

    A token may be a part of a character, and what it looks like may depend on the one before (spaces of SentencePiece
    vocabularies). So a window of tokens is decoded anew at every token: it begins with those of the last piece of text
    that was whole. Bytes that never become UTF-8 are given out as U+FFFD once whole text follows them, or at the end.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._before: list[int] = []
        self._new: list[int] = []
        self._shown = 0
        """Characters of the window that were given out."""

    def push(self, token: int) -> str:
        """The text that is certain now."""
        self._new.append(token)
        text = self._decode(self._before + self._new)
        if text.endswith(_HALF) or len(text) <= self._shown:
            return ""
        new = text[self._shown :]
        self._before, self._new = self._new, []
        self._shown = len(self._decode(self._before))
        return new

    def end(self) -> str:
        """What was held back."""
        return self._decode(self._before + self._new)[self._shown :]


@dataclass(frozen=True)
class _Found:
    end: int
    start: int


class Stops:
    """Text up to the first stop string, which is not given out.

    The first is the one that ends first (of those, the longest), so that it does not depend on how the text is cut into
    tokens.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that is certainly before any stop string."""
        if self.stopped:
            return ""
        self._held += text
        found = min(
            (_Found(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0),
            key=lambda each: (each.end, each.start),
            default=None,
        )
        if found is not None:
            self.stopped = True
            return self._take(found.start)
        return self._take(len(self._held) - self._begun())

    def end(self) -> str:
        """What was held back."""
        return "" if self.stopped else self._take(len(self._held))

    def _begun(self) -> int:
        """Characters at the end with which a stop string may have begun."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:length]):
                    longest = length
                    break
        return longest

    def _take(self, length: int) -> str:
        taken, self._held = self._held[:length], self._held[length:]
        return taken
