r"""Width growth: what an operator does to the units of every axis, and a parent's tensors as the child's.

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

Copies with equal shares and no noise get equal gradients for ever (the symmetry lock), so readers of copied units get
**zero-sum noise**: independent normal draws with standard deviation `noise` times that of the child's tensor, minus
their mean over the copies of each old unit, row by row. The function does not change. What remains after the
subtraction has the standard deviation `noise` x sqrt((c - 1)/c) of the tensor's; units without a second copy get none.
`split="uneven"` breaks the lock as well: copy 1, 2, ... of a unit is read in the proportion 1 : 2 : ...
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kinfolk.errors import KinfolkError
from kinfolk.family.shapes import Shape
from kinfolk.growth.axes import NORMS, OUTPUTS, READERS, Axes, Axis, Part, parts
from kinfolk.growth.factors import factors_of, shares_of
from kinfolk.growth.fills import fills_of
from kinfolk.growth.maps import Units, at_random, cyclic, units_of
from kinfolk.growth.noise import drawn, expert_noise, zero_sum_noise
from kinfolk.growth.sizes import Sizes, axis_size
from kinfolk.growth.tables import table_of
from kinfolk.plan.stages import Operator

ENERGY_SPLIT = Operator()


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


class WidthGrowth:
    """The width part of growing `parent` into `child`: index maps and factors of every axis."""

    def __init__(
        self,
        parent: Shape | Sizes,
        child: Shape | Sizes,
        operator: Operator = ENERGY_SPLIT,
        architecture: str = "llama",
    ) -> None:
        self.parent, self.child = Sizes.of(parent), Sizes.of(child)
        self.operator = operator
        self.table = table_of(architecture)
        self._axes: dict[Part, AxisGrowth | None] = {}

    def axis(self, part: Part) -> AxisGrowth | None:
        """How an axis (or several, one after the other) grows, or None where it stays as it is."""
        if part not in self._axes:
            self._axes[part] = self._joined(part) if isinstance(part, tuple) else self._single(part)
        return self._axes[part]

    def weights(
        self,
        parent_tensor: Tensor,
        axes: Axes,
        name: str,
        *,
        following: Tensor | None = None,
        expert_copy: tuple[int, int] = (0, 1),
    ) -> Tensor:
        """The child's tensor, in new memory.

        `following` is the tensor of the next layer, which `aki` takes new outputs from. `expert_copy` says which of how
        many copies of an expert this is. Computed in float32 or wider and returned in the parent's dtype. Draws are a
        function of (seed, name, shape, tensor) alone. Rounding to a dtype narrower than float32 disturbs the zero sum
        of the noise: grow float32 or float64 master weights and cast afterwards.
        """
        self._check(parent_tensor, axes, name)
        grown = self._expanded(parent_tensor, axes)
        if following is not None:
            grown = torch.where(self._new_outputs(axes, grown), self._expanded(following, axes), grown)
        grown = self._with_fresh_units(grown, parent_tensor, axes, name)
        return self._with_noise(grown, axes, name, expert_copy).to(parent_tensor.dtype)

    def drawn(self, parent_tensor: Tensor, axes: Axes, name: str) -> Tensor:
        """Normal draws of the child's size with the standard deviation of the parent's tensor, in its dtype."""
        like = parent_tensor.new_empty(self.child_size(parent_tensor, axes), dtype=_wide_dtype(parent_tensor))
        return drawn(like, parent_tensor, self.operator.seed, name).to(parent_tensor.dtype)

    def gradients(self, parent_tensor: Tensor, axes: Axes, name: str, *, power: int = 1) -> Tensor:
        """A gradient of the parent as the child would have it; with `power` 2 a squared one (Adam's second moment).

        Exact for even shares without noise (growth spec, section 4: child = parent / (m s)); zero for drawn units.
        """
        self._check(parent_tensor, axes, name)
        grown = _wide(parent_tensor).clone()
        for dim, growth in enumerate(map(self.axis, axes)):
            if growth:
                factor = _along(growth.gradient**power, dim, grown)
                grown = _select(grown, dim, growth.index).mul_(factor.to(grown.dtype))
        return grown.to(parent_tensor.dtype)

    def child_size(self, parent_tensor: Tensor, axes: Axes) -> tuple[int, ...]:
        """Shape of the child's tensor."""
        return tuple(
            len(growth.index) if growth else size
            for growth, size in zip(map(self.axis, axes), parent_tensor.shape, strict=True)
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

    def _check(self, tensor: Tensor, axes: Axes, name: str) -> None:
        self.check(tuple(tensor.shape), axes, name)

    def _parent_size(self, part: Part) -> int | None:
        sizes = [axis_size(axis, self.parent) for axis in parts(part)]
        return None if None in sizes else sum(size or 0 for size in sizes)

    def _expanded(self, tensor: Tensor, axes: Axes) -> Tensor:
        """Copied by the index maps and rescaled; zero where the child's entries are drawn or silent."""
        growths = [(dim, growth) for dim, growth in enumerate(map(self.axis, axes)) if growth]
        if not growths:
            return _wide(tensor).clone()
        is_gamma = any(axis in NORMS for part in axes for axis in parts(part))
        offset = self.table.gamma_offset if is_gamma else 0.0
        grown = _wide(tensor) + offset if offset else _wide(tensor)
        for dim, growth in growths:
            selected = _select(grown, dim, growth.index)
            if growth.mean.any():
                selected = torch.where(_along(growth.mean, dim, grown), grown.mean(dim, keepdim=True), selected)
            grown = selected.mul_(_along(growth.value, dim, grown).to(selected.dtype))
        return grown.sub_(offset) if offset else grown

    def _new_outputs(self, axes: Axes, grown: Tensor) -> Tensor:
        mask = torch.zeros([1] * grown.dim(), dtype=torch.bool)
        for dim, part in enumerate(axes):
            growth = self.axis(part)
            if growth and parts(part)[0] in OUTPUTS:
                mask = mask | _along(growth.new, dim, grown)
        return mask

    def _with_fresh_units(self, grown: Tensor, parent_tensor: Tensor, axes: Axes, name: str) -> Tensor:
        fresh = zero = torch.zeros([1] * grown.dim(), dtype=torch.bool)
        for dim, growth in enumerate(map(self.axis, axes)):
            if growth:
                fresh = fresh | _along(growth.fresh, dim, grown)
                zero = zero | _along(growth.zero, dim, grown)
        if not fresh.any():
            return grown
        draws = drawn(grown, parent_tensor, self.operator.seed, name)
        return torch.where(fresh & ~zero, draws, grown)

    def _with_noise(self, grown: Tensor, axes: Axes, name: str, expert_copy: tuple[int, int]) -> Tensor:
        for dim, part in enumerate(axes):
            growth = self.axis(part)
            if growth and part in READERS:
                grown = zero_sum_noise(grown, dim, growth.index, growth.copies, self.operator, name)
        if Axis.FFN_READ in axes:
            # The experts' outputs are averaged over their copies, and this product is their last.
            grown = expert_noise(grown, *expert_copy, self.operator, name)
        return grown

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


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to(_wide_dtype(tensor))


def _wide_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _select(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
    return tensor.index_select(dim, index.to(tensor.device))


def _along(values: Tensor, dim: int, like: Tensor) -> Tensor:
    """One value per unit, broadcastable along dimension `dim`."""
    return values.view([-1 if other == dim else 1 for other in range(like.dim())]).to(like.device)
