"""Documents cut into overlapping windows, and windows put together in batches: each token is predicted exactly once."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kinfolk.errors import KinfolkError

Document = tuple[NDArray[Any], int]
"""Token ids of one document without separator, and the UTF-8 bytes of the text that they stand for."""

_POOLED_BATCHES = 32
"""Windows of this many batches are sorted by length together: little padding, and little memory."""


def window_spans(predictions: int, context_length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, first, end) of the windows over `predictions` positions, where position t predicts token t + 1.

    A window reads the positions start..end and scores first..end. All windows are `context_length` long, but for a
    document that is shorter.
    """
    first = 0
    while first < predictions:
        end = min(first + (context_length if first == 0 else stride), predictions)
        yield max(0, end - context_length), first, end
        first = end


@dataclass(frozen=True)
class Window:
    """Part of a document as a model reads it, and which of its predictions count."""

    document: int
    place: int
    """Which of the document's predictions is the first that counts here, from 0."""
    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]
    first: int
    """The first position of this window that it scores."""
    bytes: int
    """Of the document, in its first window; 0 in the others."""

    @property
    def scored(self) -> int:
        """How many of its predictions count."""
        return len(self.inputs) - self.first


@dataclass(frozen=True)
class Stacked:
    """A batch of windows as tensors (windows, length), padded on the right."""

    inputs: Tensor
    targets: Tensor
    scored: Tensor
    """True where a prediction counts."""

    @property
    def counted(self) -> Tensor:
        """Targets (positions,) of the predictions that count, window after window."""
        return self.targets[self.scored]


def windows_of_documents(
    documents: Iterable[Document], separator: int | None, context_length: int, stride: int, vocab_size: int
) -> Iterator[Window]:
    """Yield the windows of each document, which begins with `separator` where there is one.

    Raises KinfolkError for token ids that the model does not have, and for documents without bytes.
    """
    prefix = [] if separator is None else [separator]
    for index, (ids, size) in enumerate(documents):
        sequence = np.concatenate([np.asarray(prefix, dtype=np.int64), np.asarray(ids, dtype=np.int64)])
        _check_document(index, sequence, len(ids), size, vocab_size)
        for start, first, end in window_spans(len(sequence) - 1, context_length, stride):
            inputs, targets = sequence[start:end], sequence[start + 1 : end + 1]
            yield Window(index, first, inputs, targets, first - start, size if first == 0 else 0)


def _check_document(index: int, sequence: NDArray[np.int64], tokens: int, size: int, vocab_size: int) -> None:
    where = f"document {index + 1}"
    if tokens and size < 1:
        raise KinfolkError(f"{tokens} tokens stand for {size} bytes", where=where, fix="count the bytes of the text")
    if len(sequence) and not 0 <= sequence.min() <= sequence.max() < vocab_size:
        odd = int(sequence.max() if sequence.max() >= vocab_size else sequence.min())
        raise KinfolkError(
            f"token id {odd} is not among the model's {vocab_size}",
            where=where,
            fix="encode with the tokenizer that the model was trained with",
        )


def batches(windows: Iterable[Window], size: int) -> Iterator[list[Window]]:
    """Batches of windows of nearly one length; the longest of a pool first, so that a lack of memory shows soon."""
    pool: list[Window] = []
    for window in windows:
        pool.append(window)
        if len(pool) == size * _POOLED_BATCHES:
            yield from _sorted_batches(pool, size)
            pool = []
    yield from _sorted_batches(pool, size)


def stacked(batch: list[Window], device: torch.device | str) -> Stacked:
    """The windows of a batch as tensors on `device`."""
    inputs = np.zeros((len(batch), max(len(window.inputs) for window in batch)), dtype=np.int64)
    targets = np.zeros_like(inputs)
    scored = np.zeros(inputs.shape, dtype=bool)
    for row, window in enumerate(batch):
        used = len(window.inputs)
        inputs[row, :used], targets[row, :used] = window.inputs, window.targets
        scored[row, window.first : used] = True
    return Stacked(*(torch.from_numpy(array).to(device) for array in (inputs, targets, scored)))


def _sorted_batches(pool: list[Window], size: int) -> Iterator[list[Window]]:
    pool = sorted(pool, key=lambda window: -len(window.inputs))
    for start in range(0, len(pool), size):
        yield pool[start : start + size]


def check_windowing(context_length: int, stride: int, batch_windows: int) -> None:
    """Refuse (KinfolkError) windows that could not be made."""
    if context_length < 1:
        raise KinfolkError(f"a context length of {context_length}", fix="use 1 or more")
    if not 1 <= stride <= context_length:
        raise KinfolkError(
            f"a stride of {stride} does not suit a context of {context_length}", fix=f"use 1 to {context_length}"
        )
    if batch_windows < 1:
        raise KinfolkError(f"batches of {batch_windows} windows", fix="use 1 or more")
