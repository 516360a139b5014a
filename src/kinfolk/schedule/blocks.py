"""Schedules as a hundred blocks of steps with their mean rate: exact to a thousandth, any horizon at the same cost."""

import numpy as np

from kinfolk.schedule.shapes import Array, NamedSchedule, Schedule, Steps, warmup_of

WARMUP_EDGES = np.array([0, 30, 80, 150, 220, 300]) / 300
"""Where blocks begin within the warm-up."""
SAMPLES = 32
"""A block of a named schedule that is longer is averaged over so many of its points."""


def edges_until(schedule: Schedule, steps: int) -> Array:
    """Edges of about a hundred blocks from 0 to `steps`: fine in the warm-up and towards the end, else even."""
    warmup = min(warmup_of(schedule), steps)
    edges = np.concatenate(
        [
            WARMUP_EDGES * warmup,
            np.linspace(warmup, steps, 51),
            steps - np.geomspace(1, max(steps - warmup - 1, 1), 50),
            [0, steps],
        ]
    )
    return np.unique(np.clip(np.round(edges), 0, steps))


def block_sums(schedule: Schedule, edges: Array) -> Array:
    """Sum of the rates in each block between whole `edges` (block + 1,), of shape (block,)."""
    if not isinstance(schedule, NamedSchedule):
        total = np.concatenate([[0.0], np.cumsum(schedule)])
        return np.diff(total[edges.astype(np.int64)])
    sizes = np.diff(edges).astype(np.int64)
    counts = np.minimum(sizes, SAMPLES)
    block = np.repeat(np.arange(len(sizes)), counts)
    within = np.arange(len(block)) - np.repeat(np.cumsum(counts) - counts, counts)
    # Points at the centres of equal parts; in short blocks these are the steps themselves.
    points = edges[block] + (within + 0.5) * (sizes[block] / counts[block]) - 0.5
    sums = np.bincount(block, weights=schedule.rate_at(points), minlength=len(sizes))
    return np.asarray(sums * sizes / counts)


def sum_until(schedule: Schedule, steps: Steps, block: int) -> tuple[Array, Array, Array]:
    """Edges (block + 1,), sums of the blocks (block,), and the sum of all rates before each of `steps` (point,)."""
    last = int(steps.max())
    edges = np.unique(np.append(np.arange(0, last, block), last)).astype(np.float64)
    sums = block_sums(schedule, edges)
    return edges, sums, np.interp(steps, edges, np.concatenate([[0.0], np.cumsum(sums)]))
