r"""Width growth: a parent's tensors as the child's, in blocks of rows.

Rows and columns are copied by the index maps of a tensor's axes, multiplied by their factors, and drawn, zero or a mean
where units are no copies: `kinfolk.growth.grown_axes` says which, and what the operators are.

Copies with equal shares and no noise get equal gradients for ever (the symmetry lock), so readers of copied units get
**zero-sum noise**: independent normal draws with standard deviation `noise` times that of the child's tensor (of the
entries that are copies), minus their mean over the copies of each old unit, row by row. The function does not change.
What remains after the subtraction has the standard deviation `noise` x sqrt((c - 1)/c) of the tensor's; units without a
second copy get none.
`split="uneven"` breaks the lock as well: copy 1, 2, ... of a unit is read in the proportion 1 : 2 : ...
"""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from kinfolk.family.shapes import Shape
from kinfolk.growth.axes import NORMS, OUTPUTS, READERS, Axes, Axis, Part, parts
from kinfolk.growth.factors import occurrence
from kinfolk.growth.grown_axes import AxisGrowth, GrownAxes
from kinfolk.growth.noise import Copies, Draws, ExpertNoise, ZeroSumNoise, deviation
from kinfolk.growth.rows import LONG_ENOUGH, Rows, blocks, gather, runs, wide, within
from kinfolk.growth.sizes import Sizes
from kinfolk.plan.stages import Operator

_ELEMENTS_OF_A_SUM = 1 << 17
"""Of the parent, in float64: 1 MiB."""


class WidthGrowth:
    """The width part of growing `parent` into `child`."""

    def __init__(self, parent: Shape | Sizes, child: Shape | Sizes, operator: Operator, architecture: str) -> None:
        self.axes = GrownAxes(parent, child, operator, architecture)
        self.operator, self.table = self.axes.operator, self.axes.table
        self._copies: dict[Part, Copies] = {}
        self._runs: dict[Part, list[tuple[int, int, int]]] = {}
        self._whole = threading.Lock()

    def blocks(
        self,
        parent_tensor: Rows,
        axes: Axes,
        name: str,
        *,
        following: Rows | None = None,
        expert_copy: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[int, Tensor]]:
        """The child's tensor as blocks of rows, each with its first row, computed in float32 or wider.

        `following` is the tensor of the next layer, which `aki` takes new outputs from. `expert_copy` says which of how
        many copies of an expert this is. Draws are a function of (seed, name, shape, tensor) alone.
        """
        self.axes.check(parent_tensor.shape, axes, name)
        size = self.axes.child_size(parent_tensor.shape, axes)
        means = _means_of_rows(parent_tensor, self._offset(axes)) if self._needs_means(axes) else None
        add_fresh = self._fresh_units(parent_tensor, axes, name)
        add_noise = self._noise(parent_tensor, axes, name, expert_copy)

        def without_noise(start: int, stop: int) -> Tensor:
            grown = self._expanded(parent_tensor, axes, start, stop, means)
            if following is not None:
                new = self._masks("new", axes, start, stop)
                mask = _any([each if parts(part)[0] in OUTPUTS else None for part, each in zip(axes, new, strict=True)])
                if mask is not None:
                    replaced = self._expanded(following, axes, start, stop, means)
                    grown = torch.where(mask.to(grown.device), replaced, grown)
            return add_fresh(grown, start)

        if not self._has_noise(axes[0]):
            yield from ((start, add_noise(without_noise(start, stop))) for start, stop in blocks(size))
            return
        # Copies along the rows (GPT-2 stores its matrices so) must be seen together, in a tensor that is whole: in one
        # thread at a time, so that the memory is that of one.
        with self._whole:
            whole = torch.empty(size, dtype=torch.promote_types(parent_tensor.dtype, torch.float32))
            for start, stop in blocks(size):
                whole[start:stop] = without_noise(start, stop)
            for start, stop in blocks(size[::-1]):
                add_noise(whole.T[start:stop])
            yield from ((start, whole[start:stop]) for start, stop in blocks(size))

    def drawn(self, parent_tensor: Rows, axes: Axes, name: str) -> Iterator[tuple[int, Tensor]]:
        """Normal draws of the child's size with the standard deviation of the parent's tensor, as `blocks`."""
        size = self.axes.child_size(parent_tensor.shape, axes)
        draw = self._draws(parent_tensor, name)
        for start, stop in blocks(size):
            yield start, draw((stop - start, *size[1:]))

    def expanded(self, parent_tensor: Rows, axes: Axes) -> Tensor:
        """The child's tensor without draws and noise, in float32 or wider."""
        means = _means_of_rows(parent_tensor, self._offset(axes)) if self._needs_means(axes) else None
        return self._expanded(parent_tensor, axes, 0, self.axes.child_size(parent_tensor.shape, axes)[0], means)

    def gradients(self, parent_tensor: Rows, axes: Axes, name: str, *, power: int = 1) -> Iterator[tuple[int, Tensor]]:
        """A gradient of the parent as the child would have it, in the parent's dtype, as `blocks`; with `power` 2 a
        squared one (Adam's second moment).

        Exact for even shares without noise (growth spec, section 4: child = parent / (m s)); zero for drawn units.
        """
        self.axes.check(parent_tensor.shape, axes, name)
        size = self.axes.child_size(parent_tensor.shape, axes)
        first, *others = map(self.axes.axis, axes)
        for start, stop in blocks(size):
            pieces = within(self._pieces(axes[0]), start, stop) if first else [(0, start, stop - start)]
            grown = gather(parent_tensor, pieces)
            if first:
                grown.mul_(_along(first.gradient[start:stop] ** power, 0, grown).to(grown.dtype))
            for dim, growth in enumerate(others, 1):
                if growth:
                    factor = _along(growth.gradient**power, dim, grown)
                    grown = _select(grown, dim, growth.index).mul_(factor.to(grown.dtype))
            yield start, grown.to(parent_tensor.dtype)

    def _masks(self, kind: Literal["new", "fresh", "zero"], axes: Axes, start: int, stop: int) -> list[Tensor | None]:
        """Which units are of a kind, along each dimension of some rows of the child's tensor."""
        growths = map(self.axes.axis, axes)
        masks: list[Tensor | None] = [getattr(growth, kind) if growth else None for growth in growths]
        return [None if masks[0] is None else masks[0][start:stop], *masks[1:]]

    def _offset(self, axes: Axes) -> float:
        is_gamma = any(axis in NORMS for part in axes for axis in parts(part))
        return self.table.gamma_offset if is_gamma else 0.0

    def _needs_means(self, axes: Axes) -> bool:
        growth = self.axes.axis(axes[0])
        return growth is not None and bool(growth.mean.any())

    def _expanded(self, source: Rows, axes: Axes, start: int, stop: int, means: Tensor | None) -> Tensor:
        """Rows of the child copied by the index maps and rescaled; zero where its entries are drawn or silent.

        `means` are those over the parent's rows, where any row holds them.
        """
        first, *others = map(self.axes.axis, axes)
        grown = gather(source, within(self._pieces(axes[0]), start, stop) if first else [(0, start, stop - start)])
        offset = self._offset(axes) if first or any(others) else 0.0
        if offset:
            grown += offset
        if first:
            if means is not None:
                grown = torch.where(_along(first.mean[start:stop], 0, grown), means.to(grown), grown)
            grown.mul_(_along(first.value[start:stop], 0, grown).to(grown.dtype))
        for dim, growth in enumerate(others, 1):
            if growth:
                grown = _spread_out(grown, dim, growth, self._pieces(axes[dim]))
        return grown.sub_(offset) if offset else grown

    def _draws(self, source: Rows, name: str) -> Callable[[tuple[int, ...]], Tensor]:
        """What gives the next draws of a size, with the standard deviation of the parent's tensor."""
        mean, mean_square = _moments(source, [_totals(None, size) for size in source.shape])
        scale, draws = deviation(mean, mean_square, name), Draws(self.operator.seed, f"{name}: drawn")
        dtype = torch.promote_types(source.dtype, torch.float32)

        def draw(size: tuple[int, ...]) -> Tensor:
            return draws.rows(size[0], math.prod(size[1:])).reshape(size).to(dtype).mul_(scale)

        return draw

    def _fresh_units(self, source: Rows, axes: Axes, name: str) -> Callable[[Tensor, int], Tensor]:
        """What puts draws where the child copies nothing, into the next rows, which begin at a row."""
        if not any(growth and growth.fresh.any() for growth in map(self.axes.axis, axes)):
            return lambda grown, start: grown
        draw = self._draws(source, name)

        def fill(grown: Tensor, start: int) -> Tensor:
            fresh, zero = (_any(self._masks(kind, axes, start, start + len(grown))) for kind in ("fresh", "zero"))
            assert fresh is not None
            is_drawn = (fresh if zero is None else fresh & ~zero).to(grown.device)
            return torch.where(is_drawn, draw(tuple(grown.shape)).to(grown), grown)

        return fill

    def _has_noise(self, part: Part) -> bool:
        growth = self.axes.axis(part)
        asked = bool(self.operator.noise) or self.operator.snr is not None
        return asked and part in READERS and growth is not None and bool((growth.copies > 1).any())

    def _noise(self, source: Rows, axes: Axes, name: str, expert_copy: tuple[int, int]) -> Callable[[Tensor], Tensor]:
        """What adds the noise that readers do not see to the next rows of the child's tensor; to its next columns, as
        rows, where it is the rows that are read."""
        noisy = [dim for dim, part in enumerate(axes) if self._has_noise(part)]
        # The experts' outputs are averaged over their copies, and this product is their last.
        asked = bool(self.operator.noise) or self.operator.snr is not None
        is_expert_noisy = Axis.FFN_READ in axes and expert_copy[1] > 1 and asked
        if not noisy and not is_expert_noisy:
            return lambda grown: grown
        operator = self.operator
        mean, mean_square = _moments(source, [_totals(growth, size) for growth, size in self._with_sizes(source, axes)])
        own = deviation(mean, mean_square, name)
        by_power = operator.snr is not None
        scale = mean_square**0.5 * 10 ** (-operator.snr / 20) if operator.snr is not None else operator.noise * own
        scale = float(f"{scale:.6g}")
        zero_sums = [
            ZeroSumNoise(self._copies_along(axes[dim]), scale, operator.seed, name, power_kept=by_power)
            for dim in noisy
        ]
        experts = (
            ExpertNoise(*expert_copy, scale, operator.seed, name, power_kept=by_power) if is_expert_noisy else None
        )

        def add(grown: Tensor) -> Tensor:
            for noise in zero_sums:
                noise.add_to(grown)
            if experts:
                experts.add_to(grown)
            return grown

        return add

    def _with_sizes(self, source: Rows, axes: Axes) -> list[tuple[AxisGrowth | None, int]]:
        return list(zip(map(self.axes.axis, axes), source.shape, strict=True))

    def _pieces(self, part: Part) -> list[tuple[int, int, int]]:
        if part not in self._runs:
            growth = self.axes.axis(part)
            self._runs[part] = runs(growth.index) if growth else []
        return self._runs[part]

    def _copies_along(self, part: Part) -> Copies:
        if part not in self._copies:
            growth = self.axes.axis(part)
            assert growth is not None
            self._copies[part] = Copies.of(
                growth.index, growth.copies, occurrence(torch.where(growth.copied, growth.index, -1)).long()
            )
        return self._copies[part]


def _select(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
    return tensor.index_select(dim, index.to(tensor.device))


def _along(values: Tensor, dim: int, like: Tensor) -> Tensor:
    """One value per unit, broadcastable along dimension `dim`."""
    return values.view([-1 if other == dim else 1 for other in range(like.dim())]).to(like.device)


def _spread_out(grown: Tensor, dim: int, growth: AxisGrowth, pieces: list[tuple[int, int, int]]) -> Tensor:
    """Columns by the index map times their factors, in new memory."""
    value = growth.value.to(grown)
    if dim == 1 and grown.dim() == 2 and LONG_ENOUGH * len(pieces) <= len(growth.index) and not growth.mean.any():
        spread = grown.new_empty(len(grown), len(growth.index))
        for start, first, length in pieces:
            torch.mul(
                grown[:, first : first + length],
                value[start : start + length],
                out=spread[:, start : start + length],
            )
        return spread
    selected = _select(grown, dim, growth.index)
    if growth.mean.any():
        selected = torch.where(_along(growth.mean, dim, grown), grown.mean(dim, keepdim=True), selected)
    return selected.mul_(_along(value, dim, grown))


def _any(masks: list[Tensor | None]) -> Tensor | None:
    """Where one of the masks, one for each dimension or None, is true; None without masks."""
    found: Tensor | None = None
    for dim, mask in enumerate(masks):
        if mask is not None:
            along = mask.view([-1 if other == dim else 1 for other in range(len(masks))])
            found = along if found is None else found | along
    return found


def _means_of_rows(source: Rows, offset: float) -> Tensor:
    """The mean of a tensor's rows, in float64."""
    total = sum(wide(source.rows(*block)).double().sum(0) for block in blocks(source.shape))
    assert isinstance(total, Tensor)
    return total / source.shape[0] + offset


def _totals(growth: AxisGrowth | None, size: int) -> tuple[Tensor, Tensor, int]:
    """Of each of the parent's units along a dimension the sums of its copies' factors and of their squares, float64;
    and the number of the child's units that are copies."""
    if growth is None:
        return torch.ones(size, dtype=torch.float64), torch.ones(size, dtype=torch.float64), size
    none = torch.zeros(size, dtype=torch.float64)
    value, index = growth.value[growth.copied], growth.index[growth.copied]
    return none.index_add(0, index, value), none.index_add(0, index, value**2), int(growth.copied.sum())


def _moments(source: Rows, weights: Sequence[tuple[Tensor, Tensor, int]]) -> tuple[float, float]:
    """Mean and mean square of the child's copied entries, from one pass over the parent's tensor."""
    total = square = 0.0
    rows, *columns = weights
    for start, stop in blocks(source.shape, _ELEMENTS_OF_A_SUM):
        block = source.rows(start, stop).to("cpu", torch.float64, copy=True)
        sums = block @ columns[0][0] if columns else block.clone()
        block.square_()
        squares = block @ columns[0][1] if columns else block
        total += float(sums @ rows[0][start:stop])
        square += float(squares @ rows[1][start:stop])
    count = rows[2] * (columns[0][2] if columns else 1)
    return total / count, square / count
