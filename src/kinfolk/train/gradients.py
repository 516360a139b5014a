"""Gradients of one optimizer step: added up over micro-batches, and clipped."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kinfolk.train.engine import Engine, Precision
from kinfolk.train.shards import Sharing, local, sharing_of, splits_of


def accumulate(
    objective: nn.Module, batches: Sequence[Any], count: float, precision: Precision, engine: Engine
) -> list[float]:
    """Add the gradients of this process's micro-batches of a step; returns the sums that its losses are of.

    The objective makes of a micro-batch (a tensor, or anything else with a method `to`) a named tuple whose first entry
    is `minimised`; the sums are those of the others. The loss is a sum divided by the global `count` (of tokens), so
    neither the number of processes nor the micro-batch changes it. Sharding averages gradients over processes, hence
    the factor `data_parallel`: those of one tensor group have the same gradients.
    """
    objective.train()
    total: Any = 0.0
    for index, batch in enumerate(batches):
        engine.synchronise_gradients(objective, last=index == len(batches) - 1)
        with engine.autocast(precision):
            minimised, *others = objective(batch.to(engine.device, non_blocking=True))
        (minimised * (engine.data_parallel / count)).backward()
        total = total + torch.stack(others).double()
    found: list[float] = total.tolist()
    return found


def clip(model: nn.Module, largest: float | Literal["none"]) -> float:
    """Scale the gradients down to a global norm of at most `largest`, if any; returns the norm before."""
    alike: dict[Sharing, list[nn.Parameter]] = defaultdict(list)
    for parameter in model.parameters():
        if parameter.grad is not None:
            alike[sharing_of(parameter)].append(parameter)
    norms = [_norm(some) for some in alike.values()]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    for some in alike.values():
        nn.utils.clip_grads_with_norm_(some, math.inf if largest == "none" else largest, norm)
    return float(norm)


def _norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The norm of the gradients of parameters that are shared alike, in every process."""
    norm = nn.utils.get_total_norm([local(parameter.grad) for parameter in parameters])
    for processes, _ in splits_of(parameters[0]):
        squares = norm.square()
        dist.all_reduce(squares, group=processes.get_group())
        norm = squares.sqrt()
    return norm
