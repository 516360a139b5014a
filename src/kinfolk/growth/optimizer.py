"""Grow an optimizer's state: a child's moments and step counts from its parent's, a few rows at a time.

What becomes of them is a policy, `kinfolk.growth.dynamics`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kinfolk.family.shapes import Shape
from kinfolk.growth.dynamics import Vectors, is_old_along, is_untied, source_of, spread
from kinfolk.growth.grow import Origin, origins_of
from kinfolk.growth.grown_axes import GrownAxes
from kinfolk.growth.names import axes_of
from kinfolk.growth.rows import Rows, TensorRows
from kinfolk.plan.stages import Dynamics, Operator


@dataclass(frozen=True)
class StateOrigin:
    """Where the optimizer's state of one of the child's parameters comes from."""

    origin: Origin
    keeps: Vectors
    """0 along a dimension at the units whose moments are zeroed, and 1 at others."""
    is_zeroed: bool
    """All moments are."""
    counts_anew: bool
    """Its steps count from 0."""

    def moment(self, moments: Mapping[str, Rows], power: int) -> Iterator[tuple[int, Tensor]]:
        """The first moment (`power` 1) or the second (2), as blocks of rows, each with its first row."""
        for start, block in self.origin.gradient_blocks(moments, power):
            if self.is_zeroed:
                block.zero_()
            first, *others = self.keeps
            for kept in spread((None if first is None else first[start : start + len(block)], *others)):
                block.mul_(kept.to(block.device))
            yield start, block

    def steps(self, parent: Tensor) -> Tensor:
        """Its step count, in new memory."""
        return torch.zeros_like(parent) if self.counts_anew else parent.clone()


def state_origins(
    names: Iterable[str], architecture: str, parent: Shape, child: Shape, operator: Operator, dynamics: Dynamics
) -> dict[str, StateOrigin]:
    """Of the child's parameters, from the names of the parent's; none under `reset`."""
    if dynamics.optimizer == "reset":
        return {}
    width = GrownAxes(parent, child, operator, architecture)
    zeroes_new = dynamics.optimizer == "asymmetric"
    found = {}
    for name, origin in origins_of(list(names), architecture, parent, child, operator):
        _, in_new_layer = source_of(name, width, architecture)
        axes, _ = axes_of(name, architecture)
        found[name] = StateOrigin(
            origin,
            keeps=is_old_along(axes, width) if zeroes_new else (None,) * len(axes),
            is_zeroed=zeroes_new and in_new_layer,
            counts_anew=(in_new_layer and (operator.depth == "zero_exit" or zeroes_new)) or is_untied(name, width),
        )
    return found


def grow_optimizer(
    exp_avg: Mapping[str, Tensor],
    exp_avg_sq: Mapping[str, Tensor],
    steps: Mapping[str, Tensor],
    architecture: str,
    parent: Shape,
    child: Shape,
    operator: Operator,
    dynamics: Dynamics,
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Adam's moments and step counts of the child from the parent's, by parameter; empty under `reset`.

    For states in memory: a build grows those of checkpoints a few rows at a time, by `state_origins`. Muon's matrices
    have no second moment, and their momentum is a first one.
    """
    grown: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    counts = {}
    for name, state in state_origins(exp_avg, architecture, parent, child, operator, dynamics).items():
        source = state.origin.name
        for power, (moments, into) in enumerate(zip((exp_avg, exp_avg_sq), grown, strict=True), 1):
            if source in moments:
                rows = {source: TensorRows(moments[source])}
                into[name] = torch.cat([block for _, block in state.moment(rows, power)])
        counts[name] = state.steps(steps[source])
    return *grown, counts
