"""Logits of the positions that are wanted, in the width that is wanted."""

import inspect
from functools import cache
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache


def fit_width(change: Tensor, width: int) -> Tensor:
    """Cut the last axis to `width`, or pad it with zeros: rows beyond the tokenizer's entries are never predicted."""
    missing = width - change.shape[-1]
    if missing <= 0:
        return change[..., :width]
    return nn.functional.pad(change, (0, missing))


def kept(logits: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """The positions (axis 1) that `logits_to_keep` means in transformers: the last so many, 0 for all, or indices."""
    if isinstance(logits_to_keep, int):
        return logits[:, -logits_to_keep:] if logits_to_keep else logits
    return logits[:, logits_to_keep]


def logits_of(model: PreTrainedModel, cache: Cache | None, logits_to_keep: int | Tensor, **inputs: Any) -> Tensor:
    """A causal model's logits at those positions (batch, kept, vocabulary), also of one that cannot leave any out."""
    kind: Any = type(model)
    keeps = _keeps_logits(kind)
    if keeps:
        inputs["logits_to_keep"] = logits_to_keep
    logits: Tensor = model(**inputs, past_key_values=cache, use_cache=cache is not None).logits
    return logits if keeps else kept(logits, logits_to_keep)


@cache
def _keeps_logits(model: Any) -> bool:
    """Whether a class of models can leave logits out; looked up once, as reading a signature takes 20 microseconds."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters
