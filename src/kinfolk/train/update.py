"""The optimizer's step, also where coordinates of a parameter have rates or a decay of their own."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import Shard, distribute_tensor

from kinfolk.growth.dynamics import Coordinates, StageRates, Vectors, plain_coordinates, spread
from kinfolk.train.optimizer import MOMENTS, MuonWithAdamW
from kinfolk.train.shards import local, splits_of

Update = Callable[[float, int], None]
"""Changes the weights by their gradients, given the stage's learning rate and its step (0-based)."""


def make_update(model: nn.Module, optimizer: torch.optim.Optimizer, rates: StageRates | None) -> Update:
    """The update of a stage: the optimizer's own step, unless growth or a cautious weight decay asks for more.

    Then AdamW, at a rate of 0, only brings its moments and counts up to date, and weights move by its formula with a
    factor for every coordinate: in place, a parameter at a time, and of sharded parameters what this process holds.
    Muon's matrices move in the same way.
    """

    def plain(rate: float, step: int) -> None:
        _set_rate(optimizer, rate)
        optimizer.step()

    if rates is None and not any(group["cautious"] for group in optimizer.param_groups):
        return plain
    coordinates = {
        parameter: _placed(rates.coordinates[name] if rates else plain_coordinates(parameter.dim()), parameter)
        for name, parameter in model.named_parameters()
    }
    rewarming = rates.rewarming if rates else None
    muon = optimizer if isinstance(optimizer, MuonWithAdamW) else None
    adamw = muon.adamw if muon else optimizer

    @torch.no_grad()
    def by_coordinate(rate: float, step: int) -> None:
        pace_of_new = rewarming.at(step) if rewarming else 1.0
        _set_rate(adamw, 0.0)
        adamw.step()
        for group in adamw.param_groups:
            for parameter in group["params"]:
                change = _adam_update(parameter, adamw.state[parameter], group, coordinates[parameter], step)
                _move(parameter, change, group, rate, _pace(coordinates[parameter], pace_of_new))
        if muon is None:
            return

        def corrected(parameter: nn.Parameter, momentum: Tensor) -> Tensor:
            count, ages = muon.state[parameter]["step"], coordinates[parameter].age
            return _age_corrected(momentum, muon.matrices["momentum"], count, ages, step)

        muon.advance()
        for parameter, change in muon.updates(corrected):
            _move(parameter, change, muon.matrices, rate, _pace(coordinates[parameter], pace_of_new))

    return by_coordinate


def _adam_update(
    parameter: nn.Parameter, state: dict[str, Tensor], group: dict[str, Any], coordinates: Coordinates, step: int
) -> Tensor:
    """AdamW's update (arXiv 1711.05101) for a rate of 1, with a bias correction and an eps for every coordinate."""
    mean, square = (local(state[moment]) for moment in MOMENTS)
    mean_bias, square_bias = (
        _bias_correction(beta, state["step"], coordinates.age, step).to(mean.dtype) for beta in group["betas"]
    )
    eps: Tensor | float = group["eps"]
    for factor in spread(coordinates.gradient):
        eps = eps * factor
    change = (mean / mean_bias).div_((square / square_bias).sqrt_().add_(eps))
    for factor in spread(coordinates.value):
        change.mul_(factor)
    return change


def _age_corrected(momentum: Tensor, beta: float, count: Tensor, ages: Vectors, step: int) -> Tensor:
    """Nesterov's momentum of a matrix, with coordinates whose moments began later on the scale of the others.

    The scale of the whole is no matter to Muon, so that without such coordinates nothing is corrected. After t steps of
    one gradient, Nesterov's momentum is 1 - beta^(t + 1) of it.
    """
    if all(age is None for age in ages):
        return momentum
    return momentum / _bias_correction(beta, count + 1, ages, step + 1).to(momentum.dtype)


def _move(parameter: nn.Parameter, change: Tensor, group: dict[str, Any], rate: float, pace: Tensor | float) -> None:
    """Weight decay, and the update; under a cautious decay (arXiv 2510.12402) only where both go the same way."""
    weights, rate = local(parameter.detach()), rate * group["rate_factor"]
    decay: Tensor | float = pace * (rate * group["weight_decay"])
    if group["cautious"]:
        decay = decay * (change * weights >= 0)
    weights.mul_(1 - decay)
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
    """What this process holds of a dimension; every process knows the whole vector."""
    for processes, split in splits_of(parameter):
        if split == dimension:
            vector = distribute_tensor(vector, processes, [Shard(0)], src_data_rank=None).to_local()
    return vector


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_factor"]
