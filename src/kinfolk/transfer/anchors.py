"""Anchor text: ordinary text on which the pair is to keep predicting what the base does."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from kinfolk.data.formats import ending, read_file
from kinfolk.data.tokenizer import document_encoder, separator_id
from kinfolk.errors import KinfolkError
from kinfolk.train.engine import Engine
from kinfolk.transfer.batches import Batch, micro_batches, step_order
from kinfolk.transfer.demonstrations import Demonstration, Demonstrations

MOST_TOKENS = 2_000_000
"""Of a file of anchor text so much is read, from its beginning; a step needs a few hundred."""


@dataclass(frozen=True)
class Anchors:
    """Windows of text, of which each step takes some."""

    windows: Demonstrations
    per_step: int
    seed: int

    def batches(self, step: int, scored: int, most_tokens: int, engine: Engine) -> list[Batch]:
        """A step's micro-batches of this process; `scored` are the response tokens of the step's demonstrations."""
        order = step_order(self.windows, step * self.per_step, self.per_step, self.seed)
        positions = sum(self.windows.items[index].scored for index in order)
        return [
            replace(batch, is_anchor=True, positions_per_scored=positions / scored)
            for batch in micro_batches(self.windows, order, most_tokens, engine.rank, engine.world_size)
        ]

    def tokens(self, steps: int) -> int:
        """Tokens that so many steps read."""
        return steps * self.per_step * self.windows.longest


def read_anchors(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Demonstrations:
    """Windows of `length` tokens, all of them scored, of a text file, or of .jsonl with `text`."""
    encoder, separator = document_encoder(tokenizer), separator_id(tokenizer)
    if ending(path.name) is None:
        raise KinfolkError("cannot tell the format from the ending of the name", where=str(path), fix="use .txt")
    ids: list[int] = []
    for document in read_file(path, str(path), "text", "--anchor"):
        ids += [separator, *encoder.encode(document.text, add_special_tokens=False).ids]
        progress(len(ids))
        if len(ids) >= MOST_TOKENS:
            break
    windows = min(len(ids), MOST_TOKENS) // length
    if windows == 0:
        raise KinfolkError(
            f"{len(ids)} tokens are less than one window of {length}", where=str(path), fix="give more text"
        )
    cut = np.array(ids[: windows * length], dtype=np.int32).reshape(windows, length)
    return Demonstrations(tuple(Demonstration(window, np.ones(length, dtype=np.bool_)) for window in cut))
