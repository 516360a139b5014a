"""For a number of GPUs: how the stages of a family run there as the engine is, and how they would run best."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kinfolk.plan.cluster.description import Cluster
from kinfolk.plan.cluster.step import Step, Work, step_on
from kinfolk.plan.layouts import Layout, Precision, engine_layout, engine_options, lacking

ENGINE_POSITIONS = 32_768
"""Positions that the engine puts into a micro-batch on a GPU, if the recipe does not say how many sequences."""

PRECISIONS: tuple[Precision, ...] = ("mixed", "bfloat16")

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
    """The steps of all stages as `kinfolk build` runs them, with one layout and one size of micro-batch for all.

    The fastest that fits; of those that are as fast, the one nearest to a build without options. A size of micro-batch
    that the recipe gives is kept if anything fits with it. Where nothing fits, what takes least.
    """
    tried = [
        [step_on(work, layout, cluster, rows, efficiency) for work in works]
        for layout in _engine_layouts(gpus, cluster)
        for rows in {setting.rows, *_sizes(max(work.rows // gpus for work in works), setting.rows)}
    ]
    fitting = [steps for steps in tried if all(step.fits for step in steps)]
    as_set = [steps for steps in fitting if setting.sequences and not _resized(steps, works, setting)]
    if not fitting:
        return min(tried, key=lambda steps: max(step.memory["total"] for step in steps))
    fitting = as_set or fitting
    fastest = min(sum(step.seconds for step in steps) for steps in fitting)
    as_fast = [steps for steps in fitting if sum(step.seconds for step in steps) <= (1 + AS_GOOD) * fastest]

    def changes(steps: list[Step]) -> int:
        return len(engine_options(steps[0].layout)) + _resized(steps, works, setting)

    return min(as_fast, key=lambda steps: (changes(steps), sum(step.seconds for step in steps)))


def _resized(steps: Sequence[Step], works: Sequence[Work], setting: Setting) -> bool:
    """Whether the micro-batches are others than those of the setting."""
    own = [min(setting.rows, work.rows // step.layout.gpus) for step, work in zip(steps, works, strict=True)]
    return own != [step.rows_at_once for step in steps]


def sequences_to_set(steps: Sequence[Step], works: Sequence[Work], setting: Setting) -> int | None:
    """What `recipe.sequences_per_micro_batch` has to be for these steps; None where it may stay."""
    return max(step.rows_at_once for step in steps) if _resized(steps, works, setting) else None


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


def _engine_layouts(gpus: int, cluster: Cluster) -> list[Layout]:
    """What the engine can do."""
    return [
        engine_layout(gpus, gpus // group, checkpointing, reduces_each)
        for group in _groups(gpus, cluster)
        for checkpointing in (False, True)
        for reduces_each in ((False, True) if gpus > 1 else (False,))
    ]


def _layouts(gpus: int, cluster: Cluster) -> list[Layout]:
    """All ways of sharing one model."""
    engine = _engine_layouts(gpus, cluster)
    rest = [
        Layout(gpus, group, precision, checkpointing, reduces_each)
        for group in _groups(gpus, cluster)
        for precision in PRECISIONS
        for checkpointing in (False, True)
        for reduces_each in (False, True)
    ]
    return engine + [layout for layout in rest if gpus > 1 and layout not in engine]


def _groups(gpus: int, cluster: Cluster) -> list[int]:
    """Sizes of groups: all GPUs, or fewer whole nodes."""
    groups = [gpus]
    group = cluster.gpus_per_node
    while group < gpus:
        if gpus % group == 0:
            groups.append(group)
        group *= 2
    return groups


def _sizes(rows: int, most: int) -> list[int]:
    """Sizes of micro-batches to try for so many rows a GPU, largest first.

    >>> _sizes(6, 16), _sizes(64, 16)
    ([6, 4, 2, 1], [16, 8, 4, 2, 1])
    """
    largest = min(rows, most)
    powers = [2**power for power in range(largest.bit_length()) if 2**power <= largest]
    return sorted({largest, *powers}, reverse=True)
