"""Logits of any causal model a chunk of positions at a time, so that those of a large vocabulary never all exist."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kinfolk.errors import KinfolkError

_LOGITS_PER_CHUNK_CPU = 2**18
_LOGITS_PER_CHUNK_GPU = 2**26
_WHOLE_LOGITS = 2**28
"""Elements of logits that a model whose head cannot be taken apart may produce at once: 1 GiB of float32."""

_BENT_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
"""Config entries of models that do more to their logits than one matrix product (Gemma 2, Cohere, Granite, ...)."""


@dataclass(frozen=True)
class Predictor:
    """A causal model in two steps: token ids to states, and a few states at a time to logits.

    `weight` is the output matrix (vocab, hidden size), and states are hidden states; where the model does more to its
    logits than this product, `weight` is None and the states are the logits themselves.
    """

    model: PreTrainedModel
    weight: Tensor | None

    @property
    def vocab_size(self) -> int:
        """Number of token ids that the model can read."""
        embedding: Any = self.model.get_input_embeddings()
        return int(embedding.weight.shape[0])

    def states(self, inputs: Tensor) -> Tensor:
        """States (batch, time, width) of token ids (batch, time); right padding is harmless under causal attention."""
        with torch.autocast(inputs.device.type, enabled=False):
            if self.weight is not None:
                hidden: Tensor = self.model.base_model(input_ids=inputs, use_cache=False).last_hidden_state
                return hidden
            logits: Tensor = self.model(input_ids=inputs, use_cache=False).logits
            return logits

    def rows_at_once(self, length: int, most: int) -> int:
        """How many rows of `length` tokens `states` may be given at once, at most `most`."""
        if self.weight is not None:
            return most
        return max(1, min(most, _WHOLE_LOGITS // (length * self.vocab_size)))


def predictor(model: PreTrainedModel) -> Predictor:
    """Take `model` apart where that provably gives its own logits; runs it once on a few tokens."""
    return Predictor(model, _plain_head(model))


def logit_chunks(states: Tensor, weight: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Yield (positions, logits) over the rows of states (positions, width); logits are float32, or float64 of float64.

    Shapes: weight (vocab, width) or None when the states are logits already, logits (chunk, vocab).
    """
    vocab_size = states.shape[1] if weight is None else weight.shape[0]
    budget = _LOGITS_PER_CHUNK_CPU if states.device.type == "cpu" else _LOGITS_PER_CHUNK_GPU
    chunk = max(16, budget // vocab_size)
    dtype = torch.promote_types(states.dtype, torch.float32)
    matrix = None if weight is None else weight.to(dtype).T
    for start in range(0, states.shape[0], chunk):
        part = slice(start, min(start + chunk, states.shape[0]))
        with torch.autocast(states.device.type, enabled=False):
            rows = states[part].to(dtype)
            yield part, rows if matrix is None else rows @ matrix


def token_losses(states: Tensor, weight: Tensor | None, targets: Tensor) -> Tensor:
    """-log softmax(states @ weight.T)[target] of every position, in nats, as float64.

    Shapes: states (positions, width), weight as in `logit_chunks`, targets (positions,) of int64.
    """
    losses = torch.empty(states.shape[0], dtype=torch.float64, device=states.device)
    for part, logits in logit_chunks(states, weight):
        losses[part] = logits.logsumexp(dim=1).sub(logits.gather(1, targets[part].unsqueeze(1)).squeeze(1)).double()
    return losses


def check_context(model: PreTrainedModel, length: int) -> None:
    """Refuse (KinfolkError) inputs that are longer than the positions the model knows."""
    longest = getattr(model.config, "max_position_embeddings", None)
    if isinstance(longest, int) and length > longest:
        raise KinfolkError(
            f"a context of {length} tokens is longer than the {longest} that the model was made for",
            fix=f"use a context length of {longest} or less",
        )


def _plain_head(model: PreTrainedModel) -> Tensor | None:
    """The output matrix, if logits are nothing but hidden states times it."""
    untyped: Any = model
    head = untyped.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None or model.base_model is model:
        return None
    # A soft cap hardly shows in the small logits of a probe, and so has to be looked up.
    if any(getattr(model.config, name, None) is not None for name in _BENT_LOGITS):
        return None
    return head.weight if _reproduces_logits(model, head.weight) else None


def _reproduces_logits(model: PreTrainedModel, weight: Tensor) -> bool:
    probe = torch.arange(min(8, weight.shape[0]), device=weight.device).unsqueeze(0)
    with torch.inference_mode(), torch.autocast(weight.device.type, enabled=False):
        whole = model(input_ids=probe, use_cache=False).logits
        hidden = getattr(model.base_model(input_ids=probe, use_cache=False), "last_hidden_state", None)
        if hidden is None or hidden.shape[-1] != weight.shape[1]:
            return False
        difference = (hidden @ weight.T - whole).abs().max()
    # Not "greater than": a model full of NaN is as well taken apart as whole, and reported by whoever sums its loss.
    return not bool(difference > 1e-3 * whole.abs().max())
