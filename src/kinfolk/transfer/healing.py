"""Base tokens that end within a value token: what a value network says of whole tokens, told of their beginnings.

Two things go wrong where the value vocabulary has the longer tokens. A base token is the beginning of many value
tokens; and once it is there, the value network reads a split of the text that it has never seen. So the last value
token of the text so far, b, is taken for one of two things: whole, or the beginning of a longer one. With p the
frequencies of value tokens in text, d what the value network says before b, and e what it says after b,

    t[u] = log (sum over v of p_v exp(d_v)  +  p_b exp(d_b) sum over w of p_w exp(e_w)) - log (the same with d = e = 0)

v are the value tokens that begin with the bytes of b and u together, w those that begin with those of u. Softmax knows
e only up to a constant; it is chosen so that the mean of exp(e) under p is 1. p stands for the probabilities before
post-training, which a value network does not hold. This is ours; the published method says nothing of prefixes.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kinfolk.errors import KinfolkError
from kinfolk.transfer.pieces import Pieces
from kinfolk.transfer.vocabulary import VocabularyMap, first_piece_map, special_counterparts

SMOOTHING = 0.1
"""Added to the count of every value token."""


@dataclass(frozen=True)
class Pairs:
    """Base tokens and value tokens that begin with their bytes: `owner` and `value`, both (pairs,) int64."""

    owner: Tensor
    value: Tensor

    def total(self, logits: Tensor, width: int) -> Tensor:
        """logsumexp of (value vocabulary,) logits over each base token's value tokens: (width,), -inf without any."""
        chosen = logits[self.value]
        highest = logits.new_full((width,), -torch.inf).scatter_reduce(0, self.owner, chosen, "amax")
        level = highest.clamp(min=torch.finfo(logits.dtype).min)
        return level + logits.new_zeros(width).scatter_add(0, self.owner, (chosen - level[self.owner]).exp()).log()


@dataclass(frozen=True)
class Healing:
    """What a value network's logits before and after the last value token say of the next base token."""

    base: Pieces
    value: Pieces
    log_frequency: Tensor
    """(value vocabulary,): log of the share of each token in text."""

    def change(self, before: Tensor | None, last: int, after: Tensor) -> Tensor:
        """t (base tokens,) from the value logits before the last token, None where there is no token, and after it."""
        frequency, width = self.log_frequency.to(after.device), len(self.base.bytes_of)
        after = frequency + after[: len(frequency)] - (frequency + after[: len(frequency)]).logsumexp(0)
        whole = self._whole
        told, untold = whole.total(after, width), whole.total(frequency, width)
        begun = self.value.bytes_of[last]
        if before is not None and begun:
            tilted = frequency + before[: len(frequency)]
            longer = self._longer(begun)
            told = torch.logaddexp(longer.total(tilted, width), tilted[last] + told)
            untold = torch.logaddexp(longer.total(frequency, width), frequency[last] + untold)
        return torch.where(untold > -torch.inf, told - untold, 0.0)

    @cached_property
    def map(self) -> VocabularyMap:
        """Every base token that t is of, by itself: t is in the base's vocabulary already."""
        known = first_piece_map(self.base, self.value)
        return VocabularyMap("healed", torch.arange(len(known.index)), (known.weight > 0).float())

    @cached_property
    def _own(self) -> dict[bytes, int]:
        return self.base.id_of

    @cached_property
    def _whole(self) -> Pairs:
        """Pairs at the end of a value token; a base token that no value token begins with has its longest beginning."""
        known = first_piece_map(self.base, self.value)
        found = self._beginnings(b"")
        specials = set(special_counterparts(self.base, self.value))
        for place in known.mapped.tolist():
            if place not in found or place in specials:
                found[place] = [int(known.index[place])]
        return _pairs(found)

    @cached_property
    def _known_longer(self) -> dict[bytes, Pairs]:
        return {}

    def _longer(self, begun: bytes) -> Pairs:
        if begun not in self._known_longer:
            self._known_longer[begun] = _pairs(self._beginnings(begun))
        return self._known_longer[begun]

    def _beginnings(self, begun: bytes) -> dict[int, list[int]]:
        """The value tokens that begin with some bytes and those of a base token, by base token."""
        found: defaultdict[int, list[int]] = defaultdict(list)
        for index, piece in enumerate(self.value.bytes_of):
            if piece and piece.startswith(begun):
                for length in range(len(begun) + 1, len(piece) + 1):
                    place = self._own.get(piece[len(begun) : length])
                    if place is not None:
                        found[place].append(index)
        return dict(found)


def healing(base: Pieces, value: Pieces, texts: Iterable[str]) -> Healing:
    """With frequencies counted in texts, each of which ends once; KinfolkError where there is none."""
    counts: Counter[int] = Counter()
    for text in texts:
        counts.update(value.encode(text))
        if value.tokenizer.eos_token_id is not None:
            counts[int(str(value.tokenizer.eos_token_id))] += 1
    if not counts:
        raise KinfolkError("there is no text to count tokens in", fix="give some, such as the demonstrations")
    found = torch.tensor([counts[index] + SMOOTHING for index in range(len(value.bytes_of))])
    return Healing(base, value, (found / found.sum()).log())


def _pairs(found: dict[int, list[int]]) -> Pairs:
    owners = [owner for owner, values in found.items() for _ in values]
    values = [value for values in found.values() for value in values]
    return Pairs(torch.tensor(owners, dtype=torch.int64), torch.tensor(values, dtype=torch.int64))
