"""A tensor as growth reads it: a few rows at a time, from memory or from a file.

Growth makes the child's tensors in blocks of rows that fit into a processor's cache. So it needs no memory to speak of,
whatever the size of a tensor, and is faster than whole tensors would be.
"""

import bisect
from collections.abc import Iterator
from operator import itemgetter
from typing import Protocol

import torch
from torch import Tensor

LONG_ENOUGH = 32
"""Average length from which ranges of an index map are taken one by one, and not unit by unit."""

ELEMENTS_PER_BLOCK = 1 << 18
"""Of the child: 1 MiB in float32."""


class Rows(Protocol):
    """A tensor of one or two dimensions whose rows can be had."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop`; what it returns may share memory with the tensor."""
        ...


class Stored(Rows, Protocol):
    """A tensor in a file, or in several."""

    def whole(self) -> Tensor:
        """The tensor, in new memory."""
        ...


class TensorRows:
    """A tensor in memory."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def rows(self, start: int, stop: int) -> Tensor:
        return self.tensor[start:stop]


def blocks(shape: tuple[int, ...], elements: int | None = None) -> Iterator[tuple[int, int]]:
    """Cut a tensor into ranges of rows of about so many elements each, `ELEMENTS_PER_BLOCK` by default.

    >>> list(blocks((5, 100_000)))
    [(0, 2), (2, 4), (4, 5)]
    """
    columns = 1
    for size in shape[1:]:
        columns *= size
    step = max(1, (elements or ELEMENTS_PER_BLOCK) // max(1, columns))
    return ((start, min(start + step, shape[0])) for start in range(0, shape[0], step))


def wide(tensor: Tensor) -> Tensor:
    """In float32, or as it is if that is wider."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def runs(index: Tensor) -> list[tuple[int, int, int]]:
    """An index map as ranges of consecutive units: (first unit of the child, first of the parent, how many).

    >>> runs(torch.tensor([0, 1, 2, 0, 1, 5]))
    [(0, 0, 3), (3, 0, 2), (5, 5, 1)]
    """
    if not len(index):
        return []
    breaks = (index.diff() != 1).nonzero().flatten() + 1
    starts = torch.cat([breaks.new_zeros(1), breaks])
    lengths = torch.cat([breaks, breaks.new_tensor([len(index)])]) - starts
    return list(zip(starts.tolist(), index[starts].tolist(), lengths.tolist(), strict=True))


def within(pieces: list[tuple[int, int, int]], start: int, stop: int) -> list[tuple[int, int, int]]:
    """The part of such ranges that makes units `start` to `stop` of the child, counted from there.

    >>> within([(0, 0, 3), (3, 0, 2), (5, 5, 1)], 2, 4)
    [(0, 2, 1), (1, 0, 1)]
    """
    found = []
    for at in range(bisect.bisect_right(pieces, start, key=itemgetter(0)) - 1, len(pieces)):
        child, parent, length = pieces[at]
        if child >= stop:
            break
        skipped = max(0, start - child)
        found.append((child + skipped - start, parent + skipped, min(child + length, stop) - child - skipped))
    return found


def gather(source: Rows, pieces: list[tuple[int, int, int]]) -> Tensor:
    """Rows of a tensor, by ranges that follow one another, in new memory, in float32 or wider."""
    if len(pieces) == 1:
        _, first, length = pieces[0]
        rows = source.rows(first, first + length)
        return rows.to(torch.promote_types(rows.dtype, torch.float32), copy=True)
    gathered: Tensor | None = None
    for start, first, length in pieces:
        rows = source.rows(first, first + length)
        if gathered is None:
            dtype = torch.promote_types(rows.dtype, torch.float32)
            size = pieces[-1][0] + pieces[-1][2]
            gathered = torch.empty((size, *rows.shape[1:]), dtype=dtype, device=rows.device)
        gathered[start : start + length] = rows
    assert gathered is not None
    return gathered
