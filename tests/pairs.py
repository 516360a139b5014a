"""Pairs of tiny random models, and what they must give: uncached, without a line of the pair's own code."""

import copy
from typing import Any

import torch
from architectures import CONFIGS, VOCAB
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

PROMPT = torch.tensor([[7, 3, 11, 3, 9, 7, 3]])
"""With a repetition, so that prompt lookup finds something."""

PADDED = torch.tensor([[0, 0, 0, 5, 6, 7], [9, 8, 7, 6, 5, 4], [0, 11, 3, 11, 3, 11]])
MASK = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]])


def model(name: str, seed: int, **settings: Any) -> PreTrainedModel:
    """A random model in evaluation mode that never ends a text by itself."""
    config = copy.deepcopy(CONFIGS[name])
    for key, value in {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, **settings}.items():
        setattr(config, key, value)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        made: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in made.parameters():
                # Matrices so large that greedy decoding does not repeat one token for ever.
                parameter.add_((0.5 if parameter.dim() > 1 else 0.2) * torch.randn_like(parameter))
    made.generation_config.pad_token_id = 0
    return made.eval()


@torch.no_grad()
def added_up(
    base: PreTrainedModel,
    value: PreTrainedModel,
    ids: Tensor,
    mask: Tensor | None = None,
    alpha: float = 1.0,
    scheme: str = "residual",
) -> Tensor:
    """z_base + alpha d (batch, time, vocabulary), by the definition of each scheme."""
    mask = torch.ones_like(ids) if mask is None else mask
    inputs = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    of_base = base(input_ids=ids, **inputs).logits.float()
    if scheme == "residual":
        of_value = value(input_ids=ids, **inputs).logits.float()
    else:
        table = value.get_input_embeddings().weight
        expected = torch.einsum("btv,vh->bth", of_base.softmax(-1), table)
        embedded = expected if scheme == "cascade_without_text" else expected + table[ids]
        of_value = value(inputs_embeds=embedded, **inputs).logits.float()
    return of_base + alpha * of_value


def continued(
    base: PreTrainedModel,
    value: PreTrainedModel,
    ids: Tensor,
    steps: int,
    mask: Tensor | None = None,
    seed: int | None = None,
    **how: Any,
) -> Tensor:
    """Tokens of greedy decoding, or of sampling with a seed, with everything computed again at every step."""
    mask = torch.ones_like(ids) if mask is None else mask
    if seed is not None:
        torch.manual_seed(seed)
    for _ in range(steps):
        last = added_up(base, value, ids, mask, **how)[:, -1]
        drawn = last.argmax(-1, keepdim=True) if seed is None else torch.multinomial(last.softmax(-1), 1)
        ids = torch.cat([ids, drawn], dim=1)
        mask = torch.cat([mask, torch.ones_like(drawn)], dim=1)
    return ids


__all__ = ["MASK", "PADDED", "PROMPT", "VOCAB", "added_up", "continued", "model"]
