"""Where a stage's losses lie on axes of compute and tokens, few enough to draw."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kinfolk.report.records import PlannedStage
from kinfolk.report.run import Points, Run, StageRun

LIMIT = 600
"""Points of one curve."""
Axis = Literal["six_nd", "matmul", "tokens"]


@dataclass(frozen=True)
class Span:
    """The stretch of an axis that a stage covers, its ancestors lying before it."""

    start: float
    length: float
    stage: PlannedStage

    def at(self, step: int) -> float:
        return self.start + self.length * self.stage.share_after(step)


def span(run: Run, stage: StageRun, axis: Axis) -> Span:
    """Where `stage` lies on `axis`: a root begins at zero, a child where its parent ends."""
    return Span(
        start=sum(_length(ancestor, axis) for ancestor in run.ancestors(stage)),
        length=_length(stage, axis),
        stage=stage.plan,
    )


def _length(stage: StageRun, axis: Axis) -> float:
    if axis == "tokens":
        return stage.plan.tokens
    return float(getattr(stage.finished.flops if stage.finished else stage.plan.flops, axis))


def smooth(points: Points, half_life: float | None = None) -> Points:
    """An exponential moving average without the bias of its start; by default over about a fiftieth of the curve."""
    if not points:
        return ()
    distance = half_life if half_life is not None else max(2.0, (points[-1][0] - points[0][0]) / 50)
    smoothed: list[tuple[int, float]] = []
    total = weight = 0.0
    before = points[0][0]
    for step, loss in points:
        keep = 0.5 ** ((step - before) / distance)
        total, weight, before = total * keep + loss, weight * keep + 1, step
        smoothed.append((step, total / weight))
    return tuple(smoothed)


def thin(points: Points, limit: int = LIMIT) -> Points:
    """At most `limit` of the points, evenly, the first and the last among them.

    >>> [step for step, _ in thin(tuple((step, 0.0) for step in range(101)), 5)]
    [0, 25, 50, 75, 100]
    """
    if len(points) <= limit:
        return points
    return tuple(points[round(index * (len(points) - 1) / (limit - 1))] for index in range(limit))


def settled_range(curves: Sequence[Points]) -> tuple[float, float] | None:
    """The losses worth looking at: all but the steep first twentieth of each curve, with a margin."""
    losses = [loss for points in curves for _, loss in points[len(points) // 20 :]]
    if not losses:
        return None
    margin = 0.05 * (max(losses) - min(losses)) or 0.1
    return min(losses) - margin, max(losses) + margin
