"""Changes of the rate, and how long ago they were: what annealing laws sum over.

Every such law is a sum over past changes of the rate, each weighted by the learning-rate time or the steps that have
passed since. The rate starts at 0, so that the warm-up is part of the sums. Changes within a block are merged: same
metrics to four digits, thirty times cheaper (measured on the curves of arXiv 2503.12811).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kinfolk.schedule.blocks import sum_until
from kinfolk.schedule.shapes import Array, Schedule, Steps, length, peak_of

LARGEST_BLOCK = 32
SMALLEST_RATE = 1e-4
"""Of the peak: where laws divide by a rate, a smaller one counts as this."""


@dataclass(frozen=True)
class Changes:
    """All (point, change) pairs of some schedules with the change before the point, in flat arrays (pair,)."""

    point: Steps
    """Which point each pair belongs to."""
    change: Array
    """Rate after minus rate before."""
    rate: Array
    """Rate after the change, at least SMALLEST_RATE of the peak."""
    lag: Array
    """Sum of the rates from the change to the point."""
    steps: Array
    """Steps from the change to the point."""
    until: Array
    """Sum of all rates up to the change, its own block included."""
    total: Array
    """Of each point (point,): the sum of all rates before it."""

    def sum(self, values: Array) -> Array:
        """Sums over the changes of each point: (pair,) to (point,)."""
        return np.bincount(self.point, weights=values, minlength=len(self.total)).astype(np.float64)


def changes(items: Sequence[tuple[Schedule, Steps]]) -> Changes:
    """The changes before each of the points (schedule, steps done), points in the order of `items`."""
    parts, totals, first = [], [], 0
    for schedule, steps in items:
        block = min(LARGEST_BLOCK, max(1, length(schedule) // 500))
        edges, sums, total = sum_until(schedule, steps, block)
        peak = peak_of(schedule)
        rate = sums / np.diff(edges)
        step = np.diff(rate, prepend=0.0)
        kept = np.nonzero(np.abs(step) > 1e-9 * peak)[0]
        before = np.cumsum(sums) - sums
        point, which = np.nonzero(edges[:-1][kept][None, :] < steps[:, None])
        chosen = kept[which]
        parts.append(
            (
                point + first,
                step[chosen],
                np.maximum(rate[chosen], SMALLEST_RATE * peak),
                total[point] - before[chosen],
                steps[point] - edges[chosen],
                np.minimum(before[chosen] + sums[chosen], total[point]),
            )
        )
        totals.append(total)
        first += len(steps)
    point, change, rate, lag, age, until = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Changes(point, change, rate, lag, age, until, np.concatenate(totals))
