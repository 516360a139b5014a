"""A map between two vocabularies, so that a value network changes the logits of a base that has other tokens.

Lu et al. (arXiv 2410.21027) multiply by a matrix (base vocabulary, value vocabulary) with one entry a row. Here it is a
gather: z_pair[u] = z_base[u] + alpha w[u] (d[index[u]] - c), 12 bytes a base token.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kinfolk.errors import KinfolkError
from kinfolk.transfer.pieces import Pieces

_NEWTON_STEPS = 50


@dataclass(frozen=True)
class VocabularyMap:
    """For every base token the value token that speaks for it, and with what weight.

    `index` (base vocabulary,) int64; `weight` (base vocabulary,) float32 in [0, 1], 0 where none does. `kind` says how
    it was made.
    """

    kind: str
    index: Tensor
    weight: Tensor

    @cached_property
    def mapped(self) -> Tensor:
        """Ids of the base tokens that have a value token (mapped,)."""
        return self.weight.nonzero()[:, 0]

    def to(self, device: torch.device) -> "VocabularyMap":
        """The map on another device."""
        return VocabularyMap(self.kind, self.index.to(device), self.weight.to(device))

    def combined(self, base_logits: Tensor, change: Tensor, alpha: float) -> Tensor:
        """z_base + alpha w (d - c) over the mapped tokens, float32 (..., base vocabulary).

        `base_logits` (..., base vocabulary) and `change` (..., value vocabulary), float32. Where `change` is all zeros,
        so is what is added.
        """
        own = base_logits[..., self.mapped]
        spoken = change[..., self.index[self.mapped]]
        weight = self.weight[self.mapped]
        level = gauge(own, spoken, weight, alpha)
        result = base_logits.clone()
        result[..., self.mapped] = own + alpha * weight * (spoken - level)
        return result


def gauge(base_logits: Tensor, change: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """The constant c (..., 1) that leaves the mapped tokens' total probability as it is under the base.

    Softmax knows d only up to a constant, but weight 0 means "no change" only relative to one. c is the root of
    logsumexp(z + alpha w (d - c)) = logsumexp(z) over the mapped tokens. The left side is convex in c, so Newton's
    steps approach the root from one side after the first; with weights of 1 the first is exact. All arguments have
    the mapped tokens last: z and d (..., mapped), w (mapped,) > 0. Found in float64, without gradient.
    """
    with torch.no_grad():
        own, spoken, shares = base_logits.double(), change.double(), weight.double()
        wanted = own.logsumexp(-1, keepdim=True)
        low, high = spoken.amin(-1, keepdim=True), spoken.amax(-1, keepdim=True)
        level = (low + high) / 2
        if alpha == 0:
            return level.to(base_logits.dtype)
        for _ in range(_NEWTON_STEPS):
            tilted = own + alpha * shares * (spoken - level)
            total = tilted.logsumexp(-1, keepdim=True)
            slope = alpha * ((tilted - total).exp() * shares).sum(-1, keepdim=True)
            following = torch.minimum(torch.maximum(level + (total - wanted) / slope, low), high)
            done = bool(((following - level).abs() <= 1e-12 * (1 + level.abs())).all())
            level = following
            if done:
                break
        return level.to(base_logits.dtype)


def exact_map(base: Pieces, value: Pieces) -> VocabularyMap:
    """Tokens of the same bytes; every other base token keeps the base's logit (up to normalisation)."""
    return _map("exact", base, value, lambda piece: (value.id_of.get(piece, -1), 1.0))


def first_piece_map(base: Pieces, value: Pieces) -> VocabularyMap:
    """The longest value token that the base token's bytes begin with; the one of the same bytes if there is one."""

    def longest(piece: bytes) -> tuple[int, float]:
        begins = (value.id_of.get(piece[:length]) for length in range(len(piece), 0, -1))
        return next((index for index in begins if index is not None), -1), 1.0

    return _map("first-piece", base, value, longest)


def token_map(kind: str, base: Pieces, value: Pieces, entries: dict[int, tuple[int, float]]) -> VocabularyMap:
    """A map from {base id: (value id, weight)}; special tokens are mapped besides."""
    return _map_of_entries(kind, base, value, {id_: entry for id_, entry in entries.items() if entry[1] > 0})


def special_counterparts(base: Pieces, value: Pieces) -> dict[int, int]:
    """Special base tokens and the value tokens that mean the same: by their text, and the ends of text."""
    found = {index: value.special[text] for text, index in base.special.items() if text in value.special}
    for role in ("bos_token_id", "eos_token_id"):  # the end last: where one token is both, it is seen as the end
        own, other = getattr(base.tokenizer, role), getattr(value.tokenizer, role)
        if own is not None and other is not None and (role == "eos_token_id" or own not in found):
            found[int(own)] = int(other)
    return found


def _map(kind: str, base: Pieces, value: Pieces, choose: Callable[[bytes], tuple[int, float]]) -> VocabularyMap:
    entries = {place: choose(piece) for place, piece in enumerate(base.bytes_of) if piece}
    return _map_of_entries(kind, base, value, {id_: entry for id_, entry in entries.items() if entry[0] >= 0})


def _map_of_entries(kind: str, base: Pieces, value: Pieces, entries: dict[int, tuple[int, float]]) -> VocabularyMap:
    index = torch.zeros(len(base.bytes_of), dtype=torch.int64)
    weight = torch.zeros(len(base.bytes_of))
    begin = base.tokenizer.bos_token_id
    for own, other in special_counterparts(base, value).items():
        # A text never goes on with its beginning, so nothing is to be said of that token (unless it is the end too).
        if own != begin or own == base.tokenizer.eos_token_id:
            index[own], weight[own] = other, 1.0
    for own, (other, share) in entries.items():
        index[own], weight[own] = other, share
    if not bool(weight.any()):
        raise KinfolkError("the two vocabularies have no token in common", fix="use tokenizers of the same script")
    return VocabularyMap(kind, index, weight)
