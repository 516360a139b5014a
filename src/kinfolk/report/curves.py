"""Where a stage's losses lie on axes of compute, tokens and time, few enough to draw."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kinfolk.report.metrics import Points
from kinfolk.report.records import PlannedStage
from kinfolk.report.run import Run, StageRun

Axis = Literal["six_nd", "matmul", "tokens", "seconds"]


@dataclass(frozen=True)
class Span:
    """The stretch of an axis that a stage covers, its ancestors lying before it."""

    start: float
    length: float
    stage: PlannedStage
    clock: Points = ()
    """On the axis of time: seconds of the stage by step, which are not in proportion to its tokens."""

    def at(self, step: int) -> float:
        """Where the stage stands after so many steps."""
        if not self.clock:
            return self.start + self.length * self.stage.share_after(step)
        after = bisect_right(self.clock, step, key=lambda point: point[0])
        (begin, seconds), (end, later) = self.clock[max(0, after - 1)], self.clock[min(after, len(self.clock) - 1)]
        if step <= begin or end == begin:
            return self.start + seconds * min(1.0, step / begin)
        return self.start + seconds + (later - seconds) * (step - begin) / (end - begin)


def span(run: Run, stage: StageRun, axis: Axis) -> Span:
    """Where `stage` lies on `axis`: a root begins at zero, a child where its parent ends."""
    start = sum(_length(ancestor, axis) for ancestor in run.ancestors(stage))
    if axis == "seconds":
        start += sum(each.growth.seconds for each in (*run.ancestors(stage), stage) if each.growth)
    clock = stage.metrics.clock if axis == "seconds" else ()
    return Span(start=start, length=_length(stage, axis), stage=stage.plan, clock=clock)


def _length(stage: StageRun, axis: Axis) -> float:
    if axis == "tokens":
        return stage.plan.tokens
    if axis == "seconds":
        return stage.finished.seconds if stage.finished else max((at for _, at in stage.metrics.clock), default=0.0)
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


def thin(points: Points, limit: int) -> Points:
    """At most `limit` of the points, evenly, the first and the last among them.

    >>> [step for step, _ in thin(tuple((step, 0.0) for step in range(101)), 5)]
    [0, 25, 50, 75, 100]
    """
    if len(points) <= limit:
        return points
    return tuple(points[round(index * (len(points) - 1) / (limit - 1))] for index in range(limit))


def settled_range(curves: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    """The losses worth looking at: all but the steep first twentieth of each curve, with a margin."""
    losses = [loss for curve in curves for loss in curve[len(curve) // 20 :]]
    if not losses:
        return None
    margin = 0.05 * (max(losses) - min(losses)) or 0.1
    return min(losses) - margin, max(losses) + margin
