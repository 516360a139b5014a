"""How far two next-token distributions are from each other, position by position.

Logits exist for a part of the vocabulary and a part of the positions at a time, so that memory does not grow with the
vocabulary. That takes two passes over the vocabulary: one for the normalisers, one for the sums.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_ENTRIES_AT_ONCE = 2**13
"""The most entries of the vocabulary whose logits exist together."""
_LOGITS_AT_ONCE_CPU = 2**18
_LOGITS_AT_ONCE_GPU = 2**24


@dataclass(frozen=True)
class Divergences:
    """Of each position, between the distributions p of the first model and q of the second: all float64 (positions,).

    Divergences are in nats.
    """

    forward: Tensor
    """KL(p || q) = sum p ln(p / q): the expectation is under the first model."""
    backward: Tensor
    """KL(q || p)."""
    jensen_shannon: Tensor
    """The mean of KL(p || m) and KL(q || m), m = (p + q) / 2: symmetric, and at most ln 2."""
    agreement: Tensor
    """1 where both rank the same token first, else 0."""
    acceptance: Tensor
    """sum min(p, q) = 1 - TV(p, q): how probably speculative decoding accepts a token that one drafts for the other
    (Leviathan et al., arXiv 2211.17192, section 3.2)."""

    def stacked(self) -> Tensor:
        """All five, in the order of the fields: (5, positions)."""
        return torch.stack([self.forward, self.backward, self.jensen_shannon, self.agreement, self.acceptance])


@dataclass(frozen=True)
class Head:
    """Where logits come from: hidden states times the output matrix, or finished logits.

    states (positions, width) and weight (vocab, width); weight None means that the states are the logits.
    """

    states: Tensor
    weight: Tensor | None

    @property
    def entries(self) -> int:
        """Entries of the vocabulary that have logits."""
        return self.states.shape[1] if self.weight is None else self.weight.shape[0]

    def logits(self, rows: slice, part: slice) -> Tensor:
        """Logits (rows, part) in float32, or in float64 of float64 weights."""
        dtype = torch.promote_types(self.states.dtype, torch.float32)
        with torch.autocast(self.states.device.type, enabled=False):
            if self.weight is None:
                return self.states[rows, part].to(dtype)
            return self.states[rows].to(dtype) @ self.weight[part].to(dtype).T


def divergences(
    first: Head, second: Head, entries: int, entries_at_once: int = _ENTRIES_AT_ONCE, logits_at_once: int | None = None
) -> Divergences:
    """Compare two models at the same positions, over the first `entries` entries of the vocabulary.

    Both distributions are normalised over these entries. At most `logits_at_once` logits of each model exist together
    (and a few arrays of that size), of at most `entries_at_once` entries.
    """
    if logits_at_once is None:
        logits_at_once = _LOGITS_AT_ONCE_CPU if first.states.device.type == "cpu" else _LOGITS_AT_ONCE_GPU
    width = min(entries, entries_at_once)
    rows = max(1, logits_at_once // width)
    count = first.states.shape[0]
    found = torch.empty(5, count, dtype=torch.float64, device=first.states.device)
    for start in range(0, count, rows):
        block = slice(start, min(start + rows, count))
        found[:, block] = _block(first, second, block, list(_parts(entries, width)))
    # Rounding may leave a divergence of equals a hair below zero.
    found[:3].clamp_(min=0)
    return Divergences(*found)


def _parts(entries: int, width: int) -> Iterator[slice]:
    for start in range(0, entries, width):
        yield slice(start, min(start + width, entries))


@dataclass(frozen=True)
class _Normaliser:
    """The largest logit of each row, where it is, and the logarithm of sum exp(logit - largest)."""

    largest: Tensor
    place: Tensor
    log_sum: Tensor

    def log_probabilities(self, logits: Tensor) -> Tensor:
        # In two steps: the sum of both would lose digits of the difference to the largest.
        return (logits - self.largest.unsqueeze(1)).sub_(self.log_sum.to(logits.dtype).unsqueeze(1))


def _block(first: Head, second: Head, rows: slice, parts: list[slice]) -> Tensor:
    """The five figures (5, rows) of a block of positions."""
    kept: list[tuple[Tensor, Tensor]] = []
    if len(parts) == 1:
        kept = [(first.logits(rows, parts[0]), second.logits(rows, parts[0]))]
        normalisers = _normaliser(iter([(parts[0], kept[0][0])])), _normaliser(iter([(parts[0], kept[0][1])]))
    else:
        normalisers = (
            _normaliser((part, first.logits(rows, part)) for part in parts),
            _normaliser((part, second.logits(rows, part)) for part in parts),
        )
    p, q = normalisers
    sums = torch.zeros(4, rows.stop - rows.start, dtype=torch.float64, device=first.states.device)
    for place, part in enumerate(parts):
        of_first, of_second = kept[place] if kept else (first.logits(rows, part), second.logits(rows, part))
        sums += _sums(p.log_probabilities(of_first), q.log_probabilities(of_second))
    forward, backward, jensen_shannon, distance = sums
    agreement = (p.place == q.place).double()
    return torch.stack([forward, backward, jensen_shannon, agreement, 1 - distance])


def _normaliser(logits: Iterator[tuple[slice, Tensor]]) -> _Normaliser:
    """Take in the logits of all parts of the vocabulary, one after the other."""
    part, values = next(logits)
    largest, place = values.max(dim=1)
    total = _sum_of_exponentials(values, largest)
    for part, values in logits:
        top, where = values.max(dim=1)
        new = torch.maximum(largest, top)
        total = total * (largest - new).double().exp() + _sum_of_exponentials(values, new)
        place = torch.where(top > largest, where + part.start, place)
        largest = new
    return _Normaliser(largest, place, total.log())


def _sum_of_exponentials(logits: Tensor, largest: Tensor) -> Tensor:
    return (logits - largest.unsqueeze(1)).exp_().sum(dim=1, dtype=torch.float64)


def _sums(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Sums over a part of the vocabulary of what makes KL(p || q), KL(q || p), JS and TV: (4, rows)."""
    p, q, ratio = log_p.exp(), log_q.exp(), log_p - log_q

    def total(values: Tensor) -> Tensor:
        return values.sum(dim=1, dtype=torch.float64)

    # ln(m / max(p, q)), from the ratio of the smaller to the larger, which cannot overflow.
    middle = ratio.abs().neg_().expm1_().div_(2).log1p_()
    jensen_shannon = -(total(p * (middle + ratio.neg().relu_())) + total(q * (middle + ratio.relu()))) / 2
    return torch.stack([total(p * ratio), -total(q * ratio), jensen_shannon, total((p - q).abs_()) / 2])
