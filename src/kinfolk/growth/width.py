r"""Width growth that keeps the function exactly, at any ratio: the RMS-preserving energy split.

Every grown axis has an index map g from new to old units; c_j is the number of copies of the unit that j copies, and
d -> D are the old and new hidden sizes. A tensor's entries are copied by the maps of its axes and multiplied by the
outer product of one factor per axis; its gradient in the child is the parent's, copied by the same maps and
multiplied by the outer product of the gradient factors (equal copies, no noise):

    axis                        value                      gradient
    HIDDEN_WRITE                alpha_j = sqrt(D/(d c_j))  1/(c_j alpha_j)
    HIDDEN_NORM                 1/alpha_j                  alpha_j/c_j
    FINAL_NORM, head tied       d/D                        alpha_j^2
    FINAL_NORM, head untied     1/alpha_j                  alpha_j/c_j
    HIDDEN_READ, QUERY_READ,
    FFN_READ                    1/c_j                      1
    QUERY, KEY_VALUE, FFN       1                          1/c_j
    HEAD_SIZE, VOCAB            1                          1

Why it is exact: the copies of hidden unit i together carry the energy sum alpha_j^2 h_i^2 = (D/d) h_i^2, so the mean
square that RMSNorm divides by is the old one (its eps stays as it is); the gamma 1/alpha_j undoes the split, and the
readers average the copies. A tied head reads with alpha_j once more, and sum alpha_j^2 d/D = 1. At an integer ratio
n all alpha are 1 and this is the tiling of HyperCloning (arXiv 2409.12903); at other ratios it is the growth spec's
own. For norms and the split of copies see also LEMON (arXiv 2310.07999).

Whole KV groups are copied, and query heads inside their group, so that every query head keeps reading the keys and
values it read before: query head (group, slot) copies (group mod G, slot mod H/G).

Noise-free copies get equal gradients for ever (the symmetry lock), so readers of copied units get **zero-sum noise**:
independent normal draws with standard deviation `noise` times that of the child's tensor, minus their mean over the
copies of each old unit, row by row. The function does not change. What remains after the subtraction has the standard
deviation `noise` x sqrt((c - 1)/c) of the tensor's; units without a second copy get none.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kinfolk.errors import KinfolkError
from kinfolk.family.shapes import Shape
from kinfolk.growth.axes import READERS, Axes, Axis, axis_size


@dataclass(frozen=True)
class AxisGrowth:
    """How one axis grows, per unit of the child."""

    index: Tensor
    """g(j): the parent's unit that unit j copies."""
    copies: Tensor
    """c_j: copies of that unit in the child, float64."""
    value: Tensor
    """Factor of the weights, float64."""
    gradient: Tensor
    """Factor of the gradients, float64."""


class WidthGrowth:
    """The width part of growing `parent` into `child`: index maps and factors of every axis."""

    def __init__(self, parent: Shape, child: Shape) -> None:
        self.parent = parent
        self.child = child
        self._axes = {axis: _axis_growth(axis, parent, child) for axis in Axis}

    def axis(self, axis: Axis) -> AxisGrowth | None:
        """How an axis grows, or None where it stays as it is."""
        return self._axes[axis]

    def weights(self, parent_tensor: Tensor, axes: Axes, name: str, *, noise: float = 0.0, seed: int = 0) -> Tensor:
        """The child's tensor; the same function as the parent's with any `noise`.

        Computed in float32 or wider and returned in the parent's dtype, in new memory. The noise is a function of
        (seed, name, shape, tensor) alone. Rounding to a dtype narrower than float32 disturbs its zero sum: grow
        float32 or float64 master weights and cast afterwards.
        """
        self._check(parent_tensor, axes, name)
        grown = _map(parent_tensor, [(growth.index, growth.value) if growth else None for growth in self._of(axes)])
        if noise:
            for dim, growth in enumerate(self._of(axes)):
                if growth and axes[dim] in READERS:
                    grown += _zero_sum_noise(grown, dim, growth, noise, seed, name)
        return grown.to(parent_tensor.dtype)

    def gradients(self, parent_tensor: Tensor, axes: Axes, name: str, *, power: int = 1) -> Tensor:
        """A gradient of the parent as the child would have it; with `power` 2 a squared one (Adam's second moment).

        Exact for a child grown without noise (growth spec, section 4: child = parent / (m s)).
        """
        self._check(parent_tensor, axes, name)
        grown = _map(
            parent_tensor, [(growth.index, growth.gradient**power) if growth else None for growth in self._of(axes)]
        )
        return grown.to(parent_tensor.dtype)

    def child_size(self, parent_tensor: Tensor, axes: Axes) -> tuple[int, ...]:
        """Shape of the child's tensor."""
        return tuple(
            len(growth.index) if growth else size
            for growth, size in zip(self._of(axes), parent_tensor.shape, strict=True)
        )

    def _of(self, axes: Axes) -> list[AxisGrowth | None]:
        return [self._axes[axis] for axis in axes]

    def _check(self, tensor: Tensor, axes: Axes, name: str) -> None:
        wanted = tuple(axis_size(axis, self.parent) for axis in axes)
        if len(wanted) != tensor.dim() or any(
            size is not None and size != actual for size, actual in zip(wanted, tensor.shape, strict=True)
        ):
            text = " x ".join("vocabulary" if size is None else str(size) for size in wanted)
            raise KinfolkError(
                f"{name} is {' x '.join(map(str, tensor.shape))}, and the parent's shape says {text}",
                fix="give the shape that the parent's config.json says",
            )


def _axis_growth(axis: Axis, parent: Shape, child: Shape) -> AxisGrowth | None:
    index = _index(axis, parent, child)
    if index is None or torch.equal(index, torch.arange(axis_size(axis, parent) or 0)):
        return None
    counts = torch.bincount(index, minlength=axis_size(axis, parent) or 0)
    copies = counts[index].double()
    one = torch.ones_like(copies)
    ratio = child.hidden_size / parent.hidden_size
    alpha = (ratio / copies).sqrt()
    match axis:
        case Axis.HIDDEN_WRITE:
            value, gradient = alpha, 1 / (copies * alpha)
        case Axis.FINAL_NORM if parent.tie_word_embeddings:
            value, gradient = one / ratio, ratio / copies
        case Axis.HIDDEN_NORM | Axis.FINAL_NORM:
            value, gradient = 1 / alpha, alpha / copies
        case Axis.HIDDEN_READ | Axis.QUERY_READ | Axis.FFN_READ:
            value, gradient = 1 / copies, one
        case _:
            value, gradient = one, 1 / copies
    return AxisGrowth(index, copies, value, gradient)


def _index(axis: Axis, parent: Shape, child: Shape) -> Tensor | None:
    match axis:
        case Axis.VOCAB | Axis.HEAD_SIZE:
            return None
        case Axis.HIDDEN_WRITE | Axis.HIDDEN_NORM | Axis.FINAL_NORM | Axis.HIDDEN_READ:
            return torch.arange(child.hidden_size) % parent.hidden_size
        case Axis.FFN | Axis.FFN_READ:
            return torch.arange(child.intermediate_size) % parent.intermediate_size
    groups = torch.arange(child.num_key_value_heads) % parent.num_key_value_heads
    if axis is Axis.KEY_VALUE:
        heads = groups
    else:
        slots = torch.arange(child.queries_per_group) % parent.queries_per_group
        heads = (groups[:, None] * parent.queries_per_group + slots).flatten()
    return (heads[:, None] * parent.head_dim + torch.arange(parent.head_dim)).flatten()


def _map(tensor: Tensor, maps: list[tuple[Tensor, Tensor] | None]) -> Tensor:
    """Copy units by the index and multiply by the factor along each dimension; always new memory."""
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    grown = tensor.detach().to(dtype, copy=True)
    for dim, one in enumerate(maps):
        if one is not None:
            index, factor = (part.to(tensor.device) for part in one)
            along = [-1 if other == dim else 1 for other in range(tensor.dim())]
            grown = grown.index_select(dim, index).mul_(factor.to(dtype).view(along))
    return grown


def _zero_sum_noise(grown: Tensor, dim: int, growth: AxisGrowth, noise: float, seed: int, name: str) -> Tensor:
    # Drawn in float32 and centred on the CPU, whatever the tensor's device and dtype: the draws depend on neither, and
    # index_add_ adds up in a fixed order there. Rounding the deviation does the same for a sum shared among threads.
    deviation = float(f"{noise * float(grown.double().std(correction=0)):.6g}")
    if not math.isfinite(deviation):
        raise KinfolkError(f"{name} holds values that are not finite", fix="grow from an earlier checkpoint")
    generator = torch.Generator().manual_seed(_seed_of(seed, name))
    drawn = torch.randn(grown.shape, generator=generator, dtype=torch.float32).to(grown.dtype) * deviation
    index, copies = growth.index, growth.copies.to(grown.dtype)
    # The index map is onto: every old unit has at least one copy.
    old_units = int(index.max()) + 1
    size = [old_units if other == dim else length for other, length in enumerate(grown.shape)]
    along = [-1 if other == dim else 1 for other in range(grown.dim())]
    sums = drawn.new_zeros(size).index_add_(dim, index, drawn)
    centred = drawn - sums.index_select(dim, index) / copies.view(along)
    return centred.mul_((copies > 1).to(grown.dtype).view(along)).to(grown.device)


def _seed_of(seed: int, name: str) -> int:
    """A generator seed for one tensor, independent of every other tensor and of their order."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") >> 1
