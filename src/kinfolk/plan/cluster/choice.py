"""For a number of GPUs: how the stages of a family run there as the engine is, and how they would run best."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kinfolk.plan.cluster.description import Cluster
from kinfolk.plan.cluster.step import Step, Work, step_on
from kinfolk.plan.layouts import Layout, engine_layout, lacking

ENGINE_POSITIONS = 32_768
"""Positions that the engine puts into a micro-batch on a GPU, if the recipe does not say how many sequences."""

AS_GOOD = 0.01
"""Layouts whose times differ by less are equally fast; of those, the one that the engine is nearest to is taken."""


@dataclass(frozen=True)
class Setting:
    """What the recipe says of a GPU's micro-batch."""

    sequences: int | None
    context_length: int

    @property
    def rows(self) -> int:
        """Rows that the engine takes at once."""
        return self.sequences or max(1, ENGINE_POSITIONS // self.context_length)


def too_many(works: Iterable[Work], smallest_rows: Iterable[int], gpus: int) -> str | None:
    """Why the steps of some stage cannot be shared by so many GPUs; None if all can."""
    for work, smallest in zip(works, smallest_rows, strict=True):
        if smallest < gpus:
            return f"a step has {smallest} sequences of {work.context_length}, fewer than GPUs"
        if smallest % gpus:
            return f"{smallest} sequences of a step do not divide among the GPUs"
    return None


def as_engine(works: Sequence[Work], gpus: int, cluster: Cluster, setting: Setting, efficiency: float) -> list[Step]:
    """The steps of all stages as the engine runs them today, with one size of micro-batch for all.

    That is the recipe's or the engine's own; where it does not fit, the fastest that does; and where none fits, the one
    that takes least.
    """
    layout = engine_layout(gpus)

    def at(rows: int) -> list[Step]:
        return [step_on(work, layout, cluster, rows, efficiency) for work in works]

    own = at(setting.rows)
    if all(step.fits for step in own):
        return own
    tried = [at(rows) for rows in _sizes(max(work.rows // gpus for work in works), setting.rows)]
    fitting = [steps for steps in tried if all(step.fits for step in steps)]
    if fitting:
        return min(fitting, key=lambda steps: sum(step.seconds for step in steps))
    return min([*tried, own], key=lambda steps: max(step.memory["total"] for step in steps))


def at_best(work: Work, gpus: int, cluster: Cluster, efficiency: float) -> Step | None:
    """The fastest step that fits, over all layouts that `kinfolk.plan.layouts` knows; None where none fits."""
    most = max(1, ENGINE_POSITIONS // work.context_length)
    found = [
        step
        for layout in _layouts(gpus, cluster)
        for rows in _sizes(work.rows // gpus, most)
        if (step := step_on(work, layout, cluster, rows, efficiency)).fits
    ]
    if not found:
        return None
    fastest = min(step.seconds for step in found)
    as_fast = [step for step in found if step.seconds <= (1 + AS_GOOD) * fastest]
    return min(as_fast, key=lambda step: (len(lacking(step.layout)), step.seconds))


def least_memory(work: Work, gpus: int, cluster: Cluster) -> Step:
    """The step that takes least memory, over all layouts."""
    steps = (step_on(work, layout, cluster, 1, 1.0) for layout in _layouts(gpus, cluster))
    return min(steps, key=lambda step: step.memory["total"])


def _layouts(gpus: int, cluster: Cluster) -> list[Layout]:
    """All ways of sharing one model: groups are whole nodes, or less than one where the GPUs are no more."""
    groups = [gpus]
    group = cluster.gpus_per_node
    while group < gpus:
        if gpus % group == 0:
            groups.append(group)
        group *= 2
    return [
        engine_layout(gpus),
        *(
            Layout(gpus, group, "bfloat16", checkpointing, reduces_each)
            for group in groups
            for checkpointing in (False, True)
            for reduces_each in (False, True)
        ),
    ]


def _sizes(rows: int, most: int) -> list[int]:
    """Sizes of micro-batches to try for so many rows a GPU, largest first.

    >>> _sizes(6, 16), _sizes(64, 16)
    ([6, 4, 2, 1], [16, 8, 4, 2, 1])
    """
    largest = min(rows, most)
    powers = [2**power for power in range(largest.bit_length()) if 2**power <= largest]
    return sorted({largest, *powers}, reverse=True)
