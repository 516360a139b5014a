"""A prefix of base tokens as the value tokenizer splits it."""

from dataclasses import dataclass
from functools import cached_property

from kinfolk.transfer.pieces import Pieces
from kinfolk.transfer.vocabulary import special_counterparts


@dataclass(frozen=True)
class Retokenizer:
    """Base ids to value ids, by way of bytes.

    `begin` is the value id that every text begins with, in place of the special base token at its beginning if there
    is one: value networks are trained on texts that begin so, whether or not the base's do.
    """

    base: Pieces
    value: Pieces
    begin: int | None = None

    @cached_property
    def _counterparts(self) -> dict[int, int]:
        return special_counterparts(self.base, self.value)

    def value_ids(self, base_ids: list[int]) -> tuple[list[int], bool]:
        """The value ids of a prefix, and whether a character is split, whose bytes so far are left out.

        Special tokens stay whole: the text before and after them is split apart. Those without a counterpart vanish.
        """
        found = [] if self.begin is None else [self.begin]
        content = b""
        for place, index in enumerate(base_ids):
            piece = self.base.bytes_of[index] if index < len(self.base.bytes_of) else None
            if piece is not None:
                content += piece
                continue
            text, _ = self.base.text_of(content, unfinished=False)
            found += self.value.encode(text)
            content = b""
            if index in self._counterparts and not (place == 0 and self.begin is not None):
                found.append(self._counterparts[index])
        text, pending = self.base.text_of(content)
        return found + self.value.encode(text), pending
