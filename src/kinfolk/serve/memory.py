"""Whether one request that fills the context fits into memory, before the server takes any."""

import psutil
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from kinfolk.errors import KinfolkError
from kinfolk.transfer.cache import children
from kinfolk.transfer.config import PairConfig

MARGIN = 2**28
"""Bytes that are left for the rest of the process."""

SHORTEST_CONTEXT = 2
"""Tokens: one that is read, and one that is made."""


def check_memory(model: PreTrainedModel, context: int) -> None:
    """Raises KinfolkError where a full context would not fit, with one that would, if there is any."""
    free = _free_bytes(model.device) - MARGIN
    need = request_bytes(model.config, context, model.dtype.itemsize)
    if need <= free:
        return
    fitting = context // 2
    while fitting >= SHORTEST_CONTEXT and request_bytes(model.config, fitting, model.dtype.itemsize) > free:
        fitting //= 2
    raise KinfolkError(
        f"a request of {context:,} tokens takes about {need / 2**30:.1f} GiB, and {max(free, 0) / 2**30:.1f} are free",
        where="--context",
        fix=f"give --context {fitting}, or free memory" if fitting >= SHORTEST_CONTEXT else "free memory",
    )


def request_bytes(config: PreTrainedConfig, context: int, itemsize: int) -> int:
    """About how many bytes one generation of a full context takes: cache, activations of a layer, logits.

    Windows are counted as full. A config that lacks a size counts as 0 there: recurrent states do not grow.
    """
    parts = children(config) if isinstance(config, PairConfig) else (config.get_text_config(decoder=True),)
    total = sum(cache_bytes(part, context, itemsize) for part in parts)
    total += max(_layer_bytes(part, context, itemsize) for part in parts)
    vocabulary = _size(parts[0], "vocab_size")
    # A cascade reads the base's logits and probabilities at every position of the prompt, in float32.
    positions = context if isinstance(config, PairConfig) and config.scheme != "residual" else 1
    return total + 3 * 4 * positions * vocabulary


def cache_bytes(config: PreTrainedConfig, context: int, itemsize: int) -> int:
    """Keys and values of all layers."""
    heads = _size(config, "num_attention_heads")
    groups = _size(config, "num_key_value_heads") or heads
    width = _size(config, "head_dim") or _size(config, "hidden_size") // max(heads, 1)
    return 2 * _size(config, "num_hidden_layers") * groups * width * context * itemsize


def _layer_bytes(config: PreTrainedConfig, context: int, itemsize: int) -> int:
    hidden = _size(config, "hidden_size")
    inner = _size(config, "intermediate_size") or 4 * hidden
    scores = context * _score_bytes(config, itemsize) if config._attn_implementation == "eager" else 0
    return context * ((8 * hidden + 3 * inner) * itemsize + scores)


def _score_bytes(config: PreTrainedConfig, itemsize: int) -> int:
    """Bytes of eager attention for each pair of tokens, at the moment when most are there: scores and the causal mask.

    Its softmax is taken in float32: from another precision scores are copied there, and probabilities back.
    """
    of_score = 8 if itemsize == 4 else max(itemsize + 4 + 4, itemsize + 4 + itemsize)
    return _size(config, "num_attention_heads") * of_score + itemsize


def _size(config: PreTrainedConfig, name: str) -> int:
    size: int | list[int] | None = getattr(config, name, None)
    return max(size) if isinstance(size, list) else size or 0


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
