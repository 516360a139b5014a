"""FLOPs as torch counts them, to hold formulas against."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def counted_flops(model: nn.Module, context: int, work: Callable[[], object]) -> int:
    """FLOPs of the matrix products of `work`, which runs the model once.

    Without the table of angles of the rotary embedding: it is the same for every sequence, and older versions of
    transformers (5.17) make it by a matrix product, newer ones element by element.
    """
    transformers_model: Any = model
    with FlopCounterMode(display=False) as whole:
        work()
    with FlopCounterMode(display=False) as table:
        transformers_model.model.rotary_emb(torch.zeros(1, context, 1), torch.arange(context)[None])
    return int(whole.get_total_flops() - table.get_total_flops())
