r"""How every axis grows in width: what an operator does to its units.

Every grown axis has an index map g from new to old units (`kinfolk.growth.maps`), one factor per unit for weights and
one for gradients (`kinfolk.growth.factors`, which also says what alpha, beta and c are), and units that are no copies
(`kinfolk.growth.fills`). The operators:

energy_split  alpha_j = sqrt(D/(d c_j)), copies in order. The copies of hidden unit i together carry the energy
              sum alpha_j^2 h_i^2 = (D/d) h_i^2, so the mean square that RMSNorm divides by is the old one (its eps
              stays as it is), the gamma 1/alpha_j undoes the split, and readers average the copies. Exact at any ratio
              under RMSNorm, at integer ratios under LayerNorm. (Growth spec, section 2.)
tile          The same, for integer ratios of the hidden size only: HyperCloning (arXiv 2409.12903).
fpi           Copies of units drawn at random, norms copied unscaled (bert2BERT, arXiv 2110.07143). Exact unless the
              hidden size grows: copies are then uneven and the mean square changes.
aki           As fpi, but what new units compute is taken from the next layer (bert2BERT; query heads inside their
              group as in AquilaMoE's AKI-Pro, arXiv 2408.06567). Not exact, and never symmetric.
lemon         New hidden units are silent: zero, or the mean of the old ones under LayerNorm, which their reader then
              sees as zero (arXiv 2310.07999); old ones carry alpha = sqrt(D/d), so that eps stays as it is. Heads and
              feed-forward units are copied with uneven shares. Exact at any ratio.
zero_pad      Nothing is copied: what writes a new unit or what reads it is zero and the other side drawn at random,
              with old hidden units as in lemon (arXiv 2308.06103). Exact at any ratio.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kinfolk.errors import KinfolkError
from kinfolk.family.shapes import Shape
from kinfolk.growth.axes import Axes, Axis, Part, parts
from kinfolk.growth.factors import factors_of, shares_of
from kinfolk.growth.fills import fills_of
from kinfolk.growth.maps import Units, at_random, cyclic, units_of
from kinfolk.growth.sizes import Sizes, axis_size
from kinfolk.growth.tables import table_of
from kinfolk.plan.stages import Operator


@dataclass(frozen=True)
class AxisGrowth:
    """How one axis grows, per unit of the child."""

    index: Tensor
    """g(j): the parent's unit that unit j copies."""
    copies: Tensor
    """c_j: copies of that unit in the child, float64."""
    value: Tensor
    """Factor of the weights, float64; 0 for units that are zero or drawn."""
    gradient: Tensor
    """Factor of the gradients, float64."""
    new: Tensor
    """Units beyond the parent's own."""
    fresh: Tensor
    """Units whose entries are drawn at random."""
    zero: Tensor
    """Units whose entries are zero, also where another axis would have them drawn."""
    mean: Tensor
    """Units that hold the mean of the parent's."""

    @property
    def copied(self) -> Tensor:
        """Units that are copies."""
        return ~(self.fresh | self.zero | self.mean)


class GrownAxes:
    """The axes of `parent` as an operator grows them to those of `child`: index maps and factors."""

    def __init__(self, parent: Shape | Sizes, child: Shape | Sizes, operator: Operator, architecture: str) -> None:
        self.parent, self.child = Sizes.of(parent), Sizes.of(child)
        self.operator = operator
        self.table = table_of(architecture)
        self._axes: dict[Part, AxisGrowth | None] = {}

    def axis(self, part: Part) -> AxisGrowth | None:
        """How an axis (or several, one after the other) grows, or None where it stays as it is."""
        if part not in self._axes:
            self._axes[part] = self._joined(part) if isinstance(part, tuple) else self._single(part)
        return self._axes[part]

    def child_size(self, parent_size: Sequence[int], axes: Axes) -> tuple[int, ...]:
        """Shape of the child's tensor, from that of the parent's."""
        return tuple(
            len(growth.index) if growth else size
            for growth, size in zip(map(self.axis, axes), parent_size, strict=True)
        )

    def check(self, size: tuple[int, ...], axes: Axes, name: str) -> None:
        """Raise KinfolkError where a parent's tensor has not the size that the parent's sizes say."""
        wanted = tuple(self._parent_size(part) for part in axes)
        if len(wanted) != len(size) or any(
            expected is not None and expected != actual for expected, actual in zip(wanted, size, strict=True)
        ):
            text = " x ".join("vocabulary" if expected is None else str(expected) for expected in wanted)
            raise KinfolkError(
                f"{name} is {' x '.join(map(str, size))}, and the parent's shape says {text}",
                fix="give the shape that the parent's config.json says",
            )

    def _parent_size(self, part: Part) -> int | None:
        sizes = [axis_size(axis, self.parent) for axis in parts(part)]
        return None if None in sizes else sum(size or 0 for size in sizes)

    def _joined(self, axes: tuple[Axis, ...]) -> AxisGrowth | None:
        growths = [self.axis(axis) for axis in axes]
        if not any(growths):
            return None
        starts, total = [], 0
        for axis in axes:
            starts.append(total)
            total += axis_size(axis, self.parent) or 0
        whole = [
            growth or _unchanged(axis_size(axis, self.parent) or 0) for axis, growth in zip(axes, growths, strict=True)
        ]
        fields = {name: torch.cat([getattr(growth, name) for growth in whole]) for name in AxisGrowth.__annotations__}
        fields["index"] = torch.cat([growth.index + start for growth, start in zip(whole, starts, strict=True)])
        return AxisGrowth(**fields)

    def _single(self, axis: Axis) -> AxisGrowth | None:
        units = self._units(axis)
        size = axis_size(axis, self.parent)
        if units is None or size is None or torch.equal(units.index, torch.arange(size)):
            return None
        fresh, zero, mean = fills_of(axis, units, self.operator.width, self.table.norm)
        copied = ~(fresh | zero | mean)
        counts = torch.bincount(units.index[copied], minlength=size).double()
        copies = torch.where(copied, counts[units.index], 1.0)
        share = shares_of(axis, units.index, copied, copies, self.operator)
        value, gradient = factors_of(axis, copies, share, self.operator, self.table, self.parent, self.child)
        zeros = torch.zeros_like(value)
        return AxisGrowth(
            index=units.index,
            copies=copies,
            value=torch.where(fresh | zero, zeros, value),
            gradient=torch.where(copied, gradient, zeros),
            new=units.new,
            fresh=fresh,
            zero=zero,
            mean=mean,
        )

    def _units(self, axis: Axis) -> Units | None:
        choose = at_random(self.operator.seed) if self.operator.width in ("fpi", "aki") else cyclic
        return units_of(axis, self.parent, self.child, choose, rotary=self.table.head_size != "learned_positions")


def _unchanged(size: int) -> AxisGrowth:
    one, no = torch.ones(size, dtype=torch.float64), torch.zeros(size, dtype=torch.bool)
    return AxisGrowth(torch.arange(size), one, one, one, no, no, no, no)
