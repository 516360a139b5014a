"""What growth draws at random: entries of units that are copied from nothing, and noise that readers do not see.

Every draw is a function of a seed and the tensor's name alone, so that growth gives the same bytes tensor by tensor, in
any order. Drawn in float32 and centred on the CPU, whatever the tensor's device and dtype.
"""

import hashlib
import math

import torch
from torch import Tensor

from kinfolk.errors import KinfolkError
from kinfolk.plan.stages import Operator


def drawn(grown: Tensor, parent_tensor: Tensor, seed: int, name: str) -> Tensor:
    """Normal draws of the child's size, with the standard deviation of the parent's tensor."""
    generator = torch.Generator().manual_seed(_seed_of(seed, f"{name}: drawn"))
    draws = torch.randn(grown.shape, generator=generator, dtype=torch.float32)
    return draws.to(grown.dtype).mul_(_deviation(parent_tensor, name)).to(grown.device)


def zero_sum_noise(grown: Tensor, dim: int, index: Tensor, copies: Tensor, operator: Operator, name: str) -> Tensor:
    """`grown` with noise along `dim` that sums to zero over the copies of every unit; as it is where none is asked for.

    `index` and `copies` are those of the axis. With `operator.noise` the draws have so many times the standard
    deviation of the tensor before they are centred. With `operator.snr` what remains afterwards has the power that the
    signal-to-noise ratio in decibels says (arXiv 2409.12903).
    """
    scale = _scale(grown, operator, name)
    if not scale:
        return grown
    # Only true copies share a unit: what is drawn or zero has an index as well, and no copies.
    weight = (copies > 1).to(grown.dtype)
    generator = torch.Generator().manual_seed(_seed_of(operator.seed, name))
    draws = torch.randn(grown.shape, generator=generator, dtype=torch.float32).to(grown.dtype).mul_(scale)
    draws.mul_(_along(weight, dim, grown))
    # Every unit of the parent has a copy, so the largest index is their number less one.
    size = [int(index.max()) + 1 if other == dim else length for other, length in enumerate(grown.shape)]
    sums = draws.new_zeros(size).index_add_(dim, index, draws)
    means = sums.index_select(dim, index) / _along(copies, dim, grown)
    if operator.snr is not None:
        weight = weight * (copies / (copies - 1).clamp(min=1)).sqrt().to(grown.dtype)
    return grown + (draws - means).mul_(_along(weight, dim, grown)).to(grown.device)


def expert_noise(grown: Tensor, copy: int, copies: int, operator: Operator, name: str) -> Tensor:
    """`grown` with noise that sums to zero over the copies of an expert, of which this is number `copy`."""
    scale = _scale(grown, operator, name)
    if not scale or copies < 2:
        return grown
    if operator.snr is not None:
        scale *= math.sqrt(copies / (copies - 1))
    draws = []
    for number in range(copies):
        generator = torch.Generator().manual_seed(_seed_of(operator.seed, f"{name}: expert copy {number}"))
        draws.append(torch.randn(grown.shape, generator=generator, dtype=torch.float32).to(grown.dtype))
    return grown + ((draws[copy] - sum(draws) / copies) * scale).to(grown.device)


def _scale(grown: Tensor, operator: Operator, name: str) -> float:
    """Standard deviation of the draws; rounded so that it does not depend on the order in which threads add up."""
    if operator.snr is not None:
        power = float(grown.double().square().mean())
        return float(f"{_finite(math.sqrt(power), name) * 10 ** (-operator.snr / 20):.6g}")
    return operator.noise * _deviation(grown, name) if operator.noise else 0.0


def _along(values: Tensor, dim: int, like: Tensor) -> Tensor:
    return values.to(like.dtype).view([-1 if other == dim else 1 for other in range(like.dim())])


def _deviation(tensor: Tensor, name: str) -> float:
    """Standard deviation, rounded likewise."""
    return float(f"{_finite(float(tensor.detach().double().std(correction=0)), name):.6g}")


def _finite(value: float, name: str) -> float:
    if not math.isfinite(value):
        raise KinfolkError(f"{name} holds values that are not finite", fix="grow from an earlier checkpoint")
    return value


def _seed_of(seed: int, name: str) -> int:
    """A generator seed for one tensor, independent of every other tensor and of their order."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") >> 1
