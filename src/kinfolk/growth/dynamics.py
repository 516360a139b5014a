r"""What a grown model trains on with: its Adam state, and the factors of every coordinate's rate.

Everything here is a pure function of the plan and of the parameters' names. So nothing is stored with a checkpoint, and
a stage that is resumed gets the factors that it had.

A coordinate (an entry of a parameter) is **new** when it lies at a new unit along any axis, or in a new layer. Of the
units of the child that copy one unit of the parent one is the parent's own, and the others are new.

Adam's state, `Dynamics.optimizer`:

carry       Moments by the index maps, times the gradient factor and its square (growth spec, section 4, rule 4). Every
            tensor keeps the step count of the one that it comes from. What is no copy (the tensors of new zero-exit
            blocks, and units that are drawn, zero or a mean) begins with moments of zero. So do embedding and head
            where the child unties them: what they share in the parent is a sum.
asymmetric  The same, and then zero on all new coordinates: the reset of SPARKLING (arXiv 2602.02472), which breaks the
            symmetry of copies.
reset       None of it: all moments and counts are 0.

Adam's bias correction needs the number of steps that a moment has averaged over. With the count of the old moments, the
first update by a moment that was zero would be (1 - b1)/sqrt(1 - b2) of the rate: 0.45 at betas of 0.9 and 0.95, and
3.2 at 0.9 and 0.999. So a wholly new tensor counts from 0, and in other tensors, which have one count, such coordinates
are corrected by their own **age**, the steps since their moments were zero. Ages follow from the plan, through any
number of growths.

Rates, `Dynamics.rates`:

uniform     The stage's learning rate for every coordinate.
inherit     Learning rate x s, weight decay x 1/s, Adam's eps x g, where s and g are the factors by which growth has
            rescaled the coordinate and its gradient (growth spec, section 4, rules 1 and 2). With Adam's state carried,
            a child that was grown without noise then repeats the parent's trajectory, as long as no gradient is
            clipped (the clip sees the child's norm, which is not the parent's). What is no copy has the factor 1. The
            parent itself was trained with its own factors, so they multiply along the lineage, back to the last growth
            with other rates.
rewarm_new  New coordinates warm up again: their rate rises linearly to `rewarm_factor` (1.3) times the stage's rate in
            `rewarm_steps` (250) steps; the others follow the stage. Weight decay goes with the rate, as it does for a
            parameter group of AdamW. Published for SPARKLING are the factor, the steps and that old parameters keep
            their schedule. Its body could not be read for where the rise begins and what comes after it. Here it
            begins at 0, and afterwards the factor holds until the model grows again: both rates decay together.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kinfolk.growth.axes import Axes
from kinfolk.growth.depth import layer_map
from kinfolk.growth.grown_axes import AxisGrowth, GrownAxes
from kinfolk.growth.names import axes_of, in_layer
from kinfolk.plan.stages import Grow, Plan, Stage

Vectors = tuple[Tensor | None, ...]
"""One float64 vector (units) for every dimension of a parameter; None where it would make no difference."""


@dataclass(frozen=True)
class Coordinates:
    """What growth has made of the coordinates of one parameter, along each of its dimensions."""

    value: Vectors
    """s of a coordinate is their product."""
    gradient: Vectors
    """g of a coordinate is their product."""
    is_old: Vectors
    """1 at the parent's own units and 0 at new ones: a coordinate is old when their product is 1."""
    age: Vectors
    """Steps that a coordinate's moments have averaged over when the stage begins: their minimum, and infinity for as
    many as the tensor's own count says."""
    in_new_layer: bool = False
    """Every coordinate is new."""

    @property
    def is_plain(self) -> bool:
        """Whether it is as if nothing had grown."""
        parts = (self.value, self.gradient, self.is_old, self.age)
        return not self.in_new_layer and all(vector is None for vectors in parts for vector in vectors)


def plain_coordinates(dimensions: int) -> Coordinates:
    """Of a parameter that was never grown."""
    plain: Vectors = (None,) * dimensions
    return Coordinates(plain, plain, plain, plain)


@dataclass(frozen=True)
class Rewarming:
    """The second warm-up of new coordinates."""

    factor: float
    steps: int
    steps_before: int
    """Steps between the growth and the beginning of the stage."""

    def at(self, step: int) -> float:
        """Their rate as a multiple of the stage's, at the stage's step `step` (0-based).

        >>> [Rewarming(1.5, 3, steps_before=1).at(step) for step in range(3)]
        [1.0, 1.5, 1.5]
        """
        return self.factor * min(1.0, (self.steps_before + step + 1) / self.steps)


@dataclass(frozen=True)
class StageRates:
    """How the rates of a stage's coordinates differ from the stage's own."""

    coordinates: Mapping[str, Coordinates]
    """By the parameter's name."""
    rewarming: Rewarming | None


def stage_rates(plan: Plan, stage: str, architecture: str, names: Iterable[str]) -> StageRates | None:
    """The factors of a stage's parameters, whose names are given; None where the stage is trained as usual."""
    lineage = plan.lineage(stage)
    widths = [_width(parent, child, architecture) for parent, child in zip((None, *lineage[:-1]), lineage, strict=True)]
    found = {name: _coordinates(name, lineage, widths, architecture) for name in names}
    if all(coordinates.is_plain for coordinates in found.values()):
        return None
    return StageRates(found, _rewarming(lineage))


def spread(vectors: Sequence[Tensor | None]) -> list[Tensor]:
    """The vectors as views that broadcast against the parameter, those that make no difference left out."""
    dimensions = len(vectors)
    return [
        vector.view([-1 if other == dimension else 1 for other in range(dimensions)])
        for dimension, vector in enumerate(vectors)
        if vector is not None
    ]


def _coordinates(
    name: str, lineage: Sequence[Stage], widths: Sequence[GrownAxes | None], architecture: str
) -> Coordinates:
    """Of a parameter of a lineage's last stage, from those of the parameter that it comes from."""
    axes, _ = axes_of(name, architecture)
    plain: Vectors = (None,) * len(axes)
    if len(lineage) == 1:
        return plain_coordinates(len(axes))
    parent, stage, width = lineage[-2], lineage[-1], widths[-1]
    if not isinstance(stage.source, Grow):
        return _aged(_coordinates(name, lineage[:-1], widths[:-1], architecture), parent.steps)

    assert width is not None
    operator, dynamics = stage.source.operator, stage.source.dynamics
    source, in_new_layer = source_of(name, width, architecture)
    rewarmed = dynamics.rates == "rewarm_new"
    is_old = is_old_along(axes, width) if rewarmed else plain
    if in_new_layer and operator.depth == "zero_exit":
        return Coordinates(plain, plain, is_old, plain, rewarmed)
    if is_untied(name, width):
        return Coordinates(plain, plain, is_old, plain)
    before = _aged(_coordinates(source, lineage[:-1], widths[:-1], architecture), parent.steps)
    growths = [width.axis(axis) for axis in axes]
    value = gradient = age = plain
    if dynamics.rates == "inherit":
        value = tuple(_scaled(v, g, g.value) if g else v for v, g in zip(before.value, growths, strict=True))
        gradient = tuple(_scaled(v, g, g.gradient) if g else v for v, g in zip(before.gradient, growths, strict=True))
    if dynamics.optimizer == "carry":
        age = tuple(_reset(v, g, ~g.copied) if g else v for v, g in zip(before.age, growths, strict=True))
    elif dynamics.optimizer == "asymmetric" and not in_new_layer:
        age = tuple(_reset(v, g, g.new | ~g.copied) if g else v for v, g in zip(before.age, growths, strict=True))
    return Coordinates(value, gradient, is_old, age, rewarmed and in_new_layer)


def _rewarming(lineage: Sequence[Stage]) -> Rewarming | None:
    steps = 0
    for index in range(len(lineage) - 1, 0, -1):
        source = lineage[index].source
        if isinstance(source, Grow):
            dynamics = source.dynamics
            rewarmed = dynamics.rates == "rewarm_new"
            return Rewarming(dynamics.rewarm_factor, dynamics.rewarm_steps, steps) if rewarmed else None
        steps += lineage[index - 1].steps
    return None


def _width(parent: Stage | None, stage: Stage, architecture: str) -> GrownAxes | None:
    if parent is None or not isinstance(stage.source, Grow):
        return None
    assert parent.shape is not None and stage.shape is not None
    return GrownAxes(parent.shape, stage.shape, stage.source.operator, architecture)


def source_of(name: str, width: GrownAxes, architecture: str) -> tuple[str, bool]:
    """The parent's parameter that one of the child comes from, and whether the child's is in a new layer."""
    _, layer = axes_of(name, architecture)
    if layer is None:
        return width.table.embedding if is_untied(name, width) else name, False
    before, after = (sizes.shape.num_hidden_layers for sizes in (width.parent, width.child))
    origin = layer_map(before, after, width.operator.depth, width.operator.placement)[layer]
    return in_layer(name, origin.source, architecture), origin.is_new


def is_untied(name: str, width: GrownAxes) -> bool:
    """Whether it is the embedding or the head of a child that unties them."""
    unties = width.parent.shape.tie_word_embeddings and not width.child.shape.tie_word_embeddings
    return unties and name in (width.table.embedding, width.table.head)


def is_old_along(axes: Axes, width: GrownAxes) -> Vectors:
    """1 at the parent's own units and 0 at new ones, along each dimension of a parameter; None where none is new."""
    growths = [width.axis(axis) for axis in axes]
    return tuple((~growth.new).double() if growth and growth.new.any() else None for growth in growths)


def _aged(before: Coordinates, steps: int) -> Coordinates:
    return replace(before, age=tuple(None if vector is None else vector + steps for vector in before.age))


def _scaled(before: Tensor | None, growth: AxisGrowth, factor: Tensor) -> Tensor | None:
    copied = factor if before is None else before[growth.index] * factor
    scaled = torch.where(growth.copied, copied, 1.0)
    return None if (scaled == 1).all() else scaled


def _reset(before: Tensor | None, growth: AxisGrowth, where: Tensor) -> Tensor | None:
    copied = torch.full_like(growth.value, math.inf) if before is None else before[growth.index]
    age = torch.where(where, 0.0, copied)
    return None if age.isinf().all() else age
