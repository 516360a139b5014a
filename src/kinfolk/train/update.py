"""The optimizer's step, where growth has given the coordinates of a parameter rates of their own."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from kinfolk.growth.dynamics import Coordinates, StageRates, Vectors, spread

Update = Callable[[float, int], None]
"""Changes the weights by their gradients, given the stage's learning rate and its step (0-based)."""


def make_update(model: nn.Module, optimizer: torch.optim.AdamW, rates: StageRates | None) -> Update:
    """The update of a stage: the optimizer's own step, unless growth asks for more.

    Then the optimizer, at a rate of 0, only brings its moments and counts up to date, and AdamW's formula is applied
    with a factor for every coordinate: in place, a parameter at a time, and for sharded parameters to what this process
    holds of them.
    """

    def plain(rate: float, step: int) -> None:
        _set_rate(optimizer, rate)
        optimizer.step()

    if rates is None:
        return plain
    coordinates = {
        parameter: _placed(rates.coordinates[name], parameter) for name, parameter in model.named_parameters()
    }
    rewarming = rates.rewarming

    @torch.no_grad()
    def grown(rate: float, step: int) -> None:
        _set_rate(optimizer, 0.0)
        optimizer.step()
        pace_of_new = rewarming.at(step) if rewarming else 1.0
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                state = optimizer.state[parameter]
                _move(parameter, state, group, rate, coordinates[parameter], step, pace_of_new)

    return grown


def _move(
    parameter: nn.Parameter,
    state: dict[str, Tensor],
    group: dict[str, Any],
    rate: float,
    coordinates: Coordinates,
    step: int,
    pace_of_new: float,
) -> None:
    """AdamW (arXiv 1711.05101), with a bias correction, an eps and a rate for every coordinate."""
    weights, mean, square = (_local(each) for each in (parameter.detach(), state["exp_avg"], state["exp_avg_sq"]))
    mean_bias, square_bias = (
        _bias_correction(beta, state["step"], coordinates.age, step).to(weights.dtype) for beta in group["betas"]
    )
    pace, rate = _pace(coordinates, pace_of_new), rate * group["rate_factor"]
    weights.mul_(1 - pace * (rate * group["weight_decay"]))
    eps: Tensor | float = group["eps"]
    for factor in spread(coordinates.gradient):
        eps = eps * factor
    change = (mean / mean_bias).div_((square / square_bias).sqrt_().add_(eps))
    for factor in spread(coordinates.value):
        change.mul_(factor)
    weights.sub_(change.mul_(pace * rate))


def _bias_correction(beta: float, count: Tensor, ages: Vectors, step: int) -> Tensor:
    """1 - beta^t, for the t steps that a coordinate's moment has averaged over.

    t is the tensor's count or less; 1 - beta^t rises with t, so that the least t has the least correction.
    """
    correction: Tensor = 1 - beta ** count.double()
    for age in spread(ages):
        correction = torch.minimum(correction, 1 - beta ** (age + (step + 1)))
    return correction


def _pace(coordinates: Coordinates, of_new: float) -> Tensor | float:
    """The rate of every coordinate as a multiple of the stage's, as far as it differs between old and new ones."""
    if coordinates.in_new_layer or of_new == 1.0:
        return of_new
    is_old: Tensor | float = 1.0
    for factor in spread(coordinates.is_old):
        is_old = is_old * factor
    return of_new + (1 - of_new) * is_old


def _placed(coordinates: Coordinates, parameter: nn.Parameter) -> Coordinates:
    """The vectors where the parameter lies, of what this process holds of it; factors in its dtype."""

    def placed(vectors: Vectors, dtype: torch.dtype) -> Vectors:
        return tuple(
            None if vector is None else _shard(vector.to(parameter.device, dtype), dimension, parameter)
            for dimension, vector in enumerate(vectors)
        )

    return replace(
        coordinates,
        value=placed(coordinates.value, parameter.dtype),
        gradient=placed(coordinates.gradient, parameter.dtype),
        is_old=placed(coordinates.is_old, parameter.dtype),
        age=placed(coordinates.age, torch.float64),
    )


def _shard(vector: Tensor, dimension: int, parameter: nn.Parameter) -> Tensor:
    """What this process holds of a dimension; FSDP2 shards the first, and every process knows the whole vector."""
    if dimension > 0 or not isinstance(parameter, DTensor):
        return vector
    sharded = distribute_tensor(vector, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return sharded.to_local()


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_factor"]
