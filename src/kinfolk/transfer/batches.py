"""Demonstrations as batches; which come when is a pure function of the seed and how many came before."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kinfolk.data.loader import sequence_order
from kinfolk.transfer.demonstrations import Demonstrations

_TOKENS_ON_CPU, _TOKENS_ON_GPU = 1_024, 32_768
_LOGITS_ON_CPU, _LOGITS_ON_GPU = 2**24, 2**28
"""The most elements of one matrix of logits: 64 MiB and 1 GiB of float32. A step holds about six of them."""


@dataclass(frozen=True)
class Batch:
    """Texts of unlike length, padded on the right: under causal attention nothing sees the padding."""

    ids: Tensor
    """(rows, tokens) of int64."""
    scored: Tensor
    """(rows, tokens - 1) of bool: where the next token is to be predicted."""
    index: tuple[int, ...]
    """Which demonstrations the rows are."""
    positions_per_scored: float = 1.0
    """Over the whole step: positions, padding and all, for every scored one of the demonstrations."""
    is_anchor: bool = False
    """Text on which the base's predictions are to be kept, and no demonstrations."""

    @property
    def inputs(self) -> Tensor:
        """(rows, tokens - 1): what the models read."""
        return self.ids[:, :-1]

    @property
    def targets(self) -> Tensor:
        """(scored,): the next tokens of the scored positions, row by row."""
        return self.ids[:, 1:][self.scored]

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """The batch on another device."""
        moved = {name: getattr(self, name).to(device, non_blocking=non_blocking) for name in ("ids", "scored")}
        return replace(self, **moved)


def step_order(demonstrations: Demonstrations, first: int, count: int, seed: int) -> NDArray[np.int64]:
    """Which demonstrations come from number `first` of a run on; each epoch has all of them, in an order of its own."""
    return sequence_order(first, count, len(demonstrations), seed)


def micro_batches(
    demonstrations: Demonstrations,
    order: NDArray[np.int64],
    most_tokens: int,
    rank: int = 0,
    world_size: int = 1,
) -> list[Batch]:
    """One process's micro-batches of a step, the longest texts first, of at most `most_tokens` with padding each.

    `order` is the whole step, a multiple of `world_size`; every process gets as many batches, of as many rows.
    """
    lengths = demonstrations.lengths[order]
    ranked = order[np.lexsort((order, -lengths))]
    groups: list[NDArray[np.int64]] = []
    start = 0
    while start < len(ranked):
        rows = max(1, most_tokens // int(demonstrations.lengths[ranked[start]])) * world_size
        groups.append(ranked[start : start + rows])
        start += rows
    scored = sum(demonstrations.items[index].scored for index in order)
    positions = sum(len(group) * int(demonstrations.lengths[group].max() - 1) for group in groups)
    return [
        replace(padded(demonstrations, group[rank::world_size].tolist()), positions_per_scored=positions / scored)
        for group in groups
    ]


def padded(demonstrations: Demonstrations, index: Sequence[int]) -> Batch:
    """The demonstrations of these numbers as one batch."""
    items = [demonstrations.items[each] for each in index]
    ids = np.zeros((len(items), max(len(item.ids) for item in items)), dtype=np.int64)
    response = np.zeros(ids.shape, dtype=np.bool_)
    for row, item in enumerate(items):
        ids[row, : len(item.ids)] = item.ids
        response[row, : len(item.ids)] = item.response
    return Batch(torch.from_numpy(ids), torch.from_numpy(response[:, 1:]), tuple(index))


def tokens_at_once(device: torch.device, vocab_size: int) -> int:
    """Tokens of a micro-batch that suit a device: on a CPU small ones are fastest, and logits must fit in memory."""
    on_cpu = device.type == "cpu"
    tokens, logits = (_TOKENS_ON_CPU, _LOGITS_ON_CPU) if on_cpu else (_TOKENS_ON_GPU, _LOGITS_ON_GPU)
    return max(1, min(tokens, logits // vocab_size))
