"""Speculative decoding by a draft pair that has the target's own value network: what it computes is computed once.

The residual change of logits depends on the text alone. So verification takes it from the draft loop, and needs the
value network at one more position only: k + 1 forward passes of it a cycle, where two pairs apart need 2k + 1.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from kinfolk.errors import KinfolkError
from kinfolk.transfer.acceptance import Drafts
from kinfolk.transfer.logits import fit_width
from kinfolk.transfer.pair import Pair


class _Reader:
    """A model and its cache, which always reads what of a text it has not read yet."""

    def __init__(self, model: PreTrainedModel) -> None:
        # Layers of full attention also for models with a window, whose own caches cannot be cropped far enough back in
        # every version of transformers; their masks keep to the window all the same.
        self.model, self.cache, self.length = model, DynamicCache(), 0

    def read(self, text: list[int]) -> Tensor:
        """Logits (new positions, vocabulary) in float32 of what is new in `text`."""
        embedding: Any = self.model.get_input_embeddings()
        new = torch.tensor([text[self.length :]], device=embedding.weight.device)
        logits: Tensor = self.model(input_ids=new, past_key_values=self.cache, use_cache=True).logits
        self.length = len(text)
        return logits[0].float()

    def forget(self, length: int) -> None:
        """Keep at most the first `length` tokens."""
        if self.length > length:
            self.cache.crop(length - self.length)
            self.length = length


@torch.no_grad()
def generate_with_shared_value(
    target: Pair,
    draft: Pair,
    input_ids: Tensor,
    max_new_tokens: int,
    drafted: int = 4,
    end: Sequence[int] = (),
) -> tuple[Tensor, Drafts]:
    """Greedy decoding of `target` with `drafted` tokens a cycle from `draft`; ids (1, time), and what was taken over.

    Gives the same tokens as `target.generate` without a draft. It stops after a token of `end`. Raises KinfolkError for
    pairs that do not hold the same value network, cascades, translated pairs and batches.
    """
    _check(target, draft, input_ids, drafted)
    text, counts = input_ids[0].tolist(), Drafts()
    large, small, value = _Reader(target.base), _Reader(draft.base), _Reader(target.value)
    last = len(text) + max_new_tokens
    while len(text) < last:
        proposed, changes = list(text), []
        for _ in range(min(drafted, last - len(text) - 1)):
            changes.append(value.read(proposed)[-1])
            proposed.append(_best(draft, small.read(proposed)[-1], changes[-1]))
        changes.append(value.read(proposed)[-1])
        checked = large.read(proposed)[-len(changes) :]
        chosen = [_best(target, logits, change) for logits, change in zip(checked, changes, strict=True)]
        offered = proposed[len(text) :]
        taken = next((place for place, index in enumerate(offered) if index != chosen[place]), len(offered))
        new = chosen[: taken + 1]
        cut = next((place + 1 for place, index in enumerate(new) if index in end), len(new))
        counts.lengths.append(len(text))
        counts.drafted.append(len(offered))
        counts.accepted.append(min(taken, cut))
        text += new[:cut]
        if cut < len(new) or text[-1] in end:
            break
        for reader in (large, small, value):
            reader.forget(len(text) - 1)
    return torch.tensor([text], device=input_ids.device), counts


def _best(pair: Pair, base_logits: Tensor, change: Tensor) -> int:
    return int(pair.combined(base_logits, fit_width(change, base_logits.shape[-1])).argmax())


def _check(target: Pair, draft: Pair, input_ids: Tensor, drafted: int) -> None:
    if target.value is not draft.value:
        raise KinfolkError("the draft has a value network of its own", fix="use generate(assistant_model=draft)")
    for pair in (target, draft):
        if pair.config.scheme != "residual" or pair.config.vocabulary is not None:
            raise KinfolkError(
                "only the residual change over one vocabulary depends on the text alone",
                fix="use generate(assistant_model=draft)",
            )
    if input_ids.shape[0] != 1:
        raise KinfolkError(f"a batch of {input_ids.shape[0]} texts", fix="give one text at a time")
    if drafted < 1:
        raise KinfolkError(f"{drafted} drafted tokens", where="drafted", fix="use 1 or more")
