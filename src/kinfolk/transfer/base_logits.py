"""Logits where they are scored, and nowhere else; of frozen bases computed anew or read from a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from kinfolk import files
from kinfolk.train.engine import Engine, Precision
from kinfolk.train.objective import PLAIN_HEADS
from kinfolk.transfer.batches import Batch, padded
from kinfolk.transfer.demonstrations import Demonstrations
from kinfolk.transfer.logits import fit_width

BYTES_PER_LOGIT = 2
"""Of the cache: float16 of log p. At p = 0.5 that is off by 2e-4, at p = 1e-4 by 4e-3; a softmax needs no more."""


def scored_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Logits (scored, vocab) in float32 of the scored positions, row by row."""
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if model.config.model_type in PLAIN_HEADS and head.bias is None:
        hidden = model.base_model(input_ids=batch.inputs, use_cache=False).last_hidden_state
        logits: Tensor = nn.functional.linear(hidden[batch.scored], head.weight)
    else:
        logits = all_logits(model, batch.inputs)[batch.scored]
    return logits.float()


def all_logits(model: PreTrainedModel, inputs: Tensor) -> Tensor:
    """Logits (rows, tokens, vocab) of every position."""
    logits: Tensor = model(input_ids=inputs, use_cache=False).logits
    return logits


def logit_width(model: PreTrainedModel) -> int:
    """How many logits a position has, padding of the vocabulary and all."""
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return int(head.weight.shape[0])


class BaseLogits(Protocol):
    """What a frozen base predicts at the scored positions of a batch: (scored, vocab) in float32, without gradient."""

    def __call__(self, batch: Batch) -> Tensor: ...


class Recomputed:
    """A forward pass of the base for every batch."""

    def __init__(self, base: PreTrainedModel) -> None:
        self._base = base

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        return scored_logits(self._base, batch)


class Cached:
    """log p of a base at every response token of a set of demonstrations, from a file."""

    def __init__(self, path: Path, demonstrations: Demonstrations, vocab_size: int) -> None:
        self._starts = _starts(demonstrations)
        self._rows = np.memmap(path, np.float16, "r", shape=(int(self._starts[-1]), vocab_size))

    def __call__(self, batch: Batch) -> Tensor:
        parts: list[NDArray[np.float16]] = [self._rows[self._starts[i] : self._starts[i + 1]] for i in batch.index]
        return torch.from_numpy(np.concatenate(parts)).to(batch.ids.device).float()


def cache_bytes(demonstrations: Demonstrations, vocab_size: int) -> int:
    """What the file of one base takes on disk."""
    return demonstrations.scored * vocab_size * BYTES_PER_LOGIT


@torch.no_grad()
def write_cache(
    path: Path,
    base: PreTrainedModel,
    demonstrations: Demonstrations,
    vocab_size: int,
    most_tokens: int,
    precision: Precision,
    engine: Engine,
    progress: Callable[[int, int], None],
) -> None:
    """Write what `Cached` reads, beside and renamed; `progress` is told how many demonstrations are done, of how many.

    log p and not the logits: the constant between them is of no matter, and near log p = 0, where the softmax lives,
    half precision is finest.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + files.UNFINISHED)
    with open(unfinished, "wb") as file:
        done = 0
        while done < len(demonstrations):
            stop = _stop(demonstrations, done, most_tokens)
            batch = padded(demonstrations, range(done, stop)).to(engine.device)
            with engine.autocast(precision):
                logits = fit_width(scored_logits(base, batch), vocab_size)
            file.write(logits.log_softmax(dim=1).half().cpu().numpy().tobytes())
            done = stop
            progress(done, len(demonstrations))
        file.flush()
    files.flush_directory(path.parent)
    files.publish(unfinished, path)


def _starts(demonstrations: Demonstrations) -> NDArray[np.int64]:
    """Where the rows of each demonstration begin, and the end of all."""
    return np.concatenate([[0], np.cumsum([item.scored for item in demonstrations.items])]).astype(np.int64)


def _stop(demonstrations: Demonstrations, start: int, most_tokens: int) -> int:
    """The end of the longest run of demonstrations, in the order of the file, that fit in one batch."""
    longest, stop = 0, start
    while stop < len(demonstrations):
        longest = max(longest, int(demonstrations.lengths[stop]))
        if stop > start and longest * (stop + 1 - start) > most_tokens:
            break
        stop += 1
    return stop
