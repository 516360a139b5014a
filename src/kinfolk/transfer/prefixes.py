"""The value network beside a base of another vocabulary: it reads the text so far as its own tokenizer splits it.

How the published method splits prefixes is not known; this is ours. The bytes of the base's tokens so far are split
anew at every step. What the new ids share with those in the value network's cache stays, the rest is cropped, and what
is new is fed. While the bytes of a split character are pending, nothing new can be read and d is 0.
"""

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

if TYPE_CHECKING:
    from kinfolk.transfer.translation import Translation


@dataclass
class Prefix:
    """One row: base ids so far, value ids in the cache, and the value logits (value vocabulary,) after the last and,
    if it is not the first, before it."""

    base_ids: list[int] = field(default_factory=list)
    value_ids: list[int] = field(default_factory=list)
    cache: DynamicCache = field(default_factory=DynamicCache)
    logits: Tensor | None = None
    logits_before: Tensor | None = None

    def twin(self) -> "Prefix":
        """A copy that goes on by itself. Layers replace their tensors, never change them, so these are shared."""
        cache = DynamicCache()
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        return Prefix(list(self.base_ids), list(self.value_ids), cache, self.logits, self.logits_before)


class Prefixes:
    """The prefixes of a batch, in the place of the value network's layers in a pair's cache.

    Has what transformers asks of a cache layer when it generates, so that beams and rejected drafts reach it.
    """

    is_compileable = False
    is_croppable = True
    is_sliding = False
    supports_early_init = False
    is_initialized = False

    def __init__(self) -> None:
        self.rows: list[Prefix] = []

    def get_seq_length(self) -> int:
        """Base tokens so far in the longest row."""
        return max((len(row.base_ids) for row in self.rows), default=0)

    def get_max_length(self) -> int:
        """-1: no limit."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last base tokens; the argument is their number, negative."""
        if tokens_to_remove < 0:
            for row in self.rows:
                del row.base_ids[tokens_to_remove:]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row beam_idx[i] was."""
        self.rows = [self.rows[index].twin() for index in beam_idx.tolist()]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        every = torch.arange(len(self.rows), device=indices.device)
        self.reorder_cache(every[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row so many times."""
        self.rows = [row.twin() for row in self.rows for _ in range(repeats)]

    def reset(self) -> None:
        """Forget everything."""
        self.rows = []

    def read(
        self,
        value: PreTrainedModel,
        translation: "Translation",
        input_ids: Tensor,
        mask: Tensor | None,
        logits_to_keep: int | Tensor,
    ) -> Tensor:
        """Take in base ids (batch, time) and give the value logits (batch, kept positions, value vocabulary), float32;
        with healing, what they say of the base's vocabulary.

        `mask` (batch, time so far) is 0 at padding, which belongs to no text. Zeros stand for no change. A row is read
        position by position where several are kept, since the text before each is split in its own way.
        """
        batch, time = input_ids.shape
        if not self.rows:
            self.rows = [Prefix() for _ in range(batch)]
        real = torch.ones_like(input_ids) if mask is None else mask[:, -time:]
        positions = torch.arange(time)
        kept = positions[-logits_to_keep:] if isinstance(logits_to_keep, int) else positions[logits_to_keep.cpu()]
        wanted = kept.tolist()
        embedding: Any = value.get_input_embeddings()
        width = value.config.get_text_config(decoder=True).vocab_size
        if translation.healing is not None:
            width = len(translation.map.index)
        silent = torch.zeros(width, device=embedding.weight.device)
        result = []
        for row, ids, is_text in zip(self.rows, input_ids.tolist(), real.tolist(), strict=True):
            found = {}
            for position, (index, counts) in enumerate(zip(ids, is_text, strict=True)):
                if counts:
                    row.base_ids.append(index)
                if position in wanted:
                    found[position] = _change(row, value, translation, silent)
            result.append(torch.stack([found[position] for position in wanted]))
        return torch.stack(result).to(input_ids.device)


def _change(row: Prefix, value: PreTrainedModel, translation: "Translation", silent: Tensor) -> Tensor:
    ids, pending = translation.retokenizer.value_ids(row.base_ids)
    if pending or not ids:
        return silent
    if ids != row.value_ids or row.logits is None:
        _feed(row, value, ids)
    assert row.logits is not None
    if translation.healing is not None:
        return translation.healing.change(row.logits_before, ids[-1], row.logits)
    return row.logits


def _feed(row: Prefix, value: PreTrainedModel, ids: list[int]) -> None:
    """Make the cache that of `ids`; at least the last two are fed, as the logits after both are wanted."""
    shared = 0
    while shared < min(len(row.value_ids), len(ids) - 2) and row.value_ids[shared] == ids[shared]:
        shared += 1
    row.cache.crop(shared - len(row.value_ids))
    embedding: Any = value.get_input_embeddings()
    new = torch.tensor([ids[shared:]], device=embedding.weight.device)
    logits: Tensor = value(input_ids=new, past_key_values=row.cache, use_cache=True).logits
    row.value_ids, row.logits = ids, logits[0, -1].float()
    row.logits_before = logits[0, -2].float() if len(ids) > 1 else None
