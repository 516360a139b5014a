"""What runs say to a law: their final losses, and points of their curves, which are final losses of shorter runs."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kinfolk.schedule.features import Units
from kinfolk.schedule.run import Run
from kinfolk.schedule.shapes import Array, Steps, warmup_of
from kinfolk.schedule.targets import Target

CURVE_WEIGHT = 0.02
"""Of a point of a curve beside a final loss, for the 16-feature law."""
FIRST, SPACING, BEFORE_END, WINDOW = 5.0, 2.5, 1.0, 0.25
"""Which points: the first, every so many, not in the last, mean of the losses within; in units of steps."""
CLOSE = 0.05
"""Share of the steps within which a curve comes close to the end."""


def curve_points(run: Run, units: Units) -> tuple[Steps, Array]:
    """Steps (point,) and losses (point,) of a curve, averaged over a window of at least two of its points.

    A curve whose points are farther apart than the window gives single points.
    """
    steps, losses = run.curve_steps, run.curve_loss
    found: list[tuple[int, float]] = []
    if not len(steps):
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    window = WINDOW * units.steps
    sparse = len(steps) > 1 and float(np.median(np.diff(steps))) > 2 * window
    for wanted in np.arange(FIRST, (run.steps / units.steps) - BEFORE_END, SPACING) * units.steps:
        if wanted - window < steps[0]:
            continue
        near = np.abs(steps - wanted) <= window
        if near.sum() >= 2:
            found.append((round(wanted), float(losses[near].mean())))
        elif sparse:
            nearest = int(np.abs(steps - wanted).argmin())
            found.append((int(steps[nearest]), float(losses[nearest])))
    single = dict(found)
    return np.array(list(single), dtype=np.int64), np.array(list(single.values()))


def aligned(runs: Sequence[Run]) -> tuple[list[Run], float]:
    """The runs with their curves raised by what final losses differ from the ends of the curves; and by how much.

    Curves are often measured on fewer tokens than final losses are. The median over the runs whose curve comes close to
    the end, where a line through its last points stands for the rest; 0 if none does.
    """
    gaps = [run.loss - end for run in runs if run.loss is not None and (end := _end_of_curve(run)) is not None]
    offset = float(np.median(gaps)) if gaps else 0.0
    return [replace(run, curve_loss=run.curve_loss + offset) for run in runs], offset


def _end_of_curve(run: Run) -> float | None:
    """The loss at the end of a run by its curve; None if the curve does not come close."""
    steps, loss = run.curve_steps, run.curve_loss
    if not len(steps) or steps[-1] < (1 - CLOSE) * run.steps:
        return None
    last = steps >= steps[-1] - CLOSE * run.steps
    if steps[-1] == run.steps or last.sum() < 2:
        return float(loss[-1])
    return float(np.polyfit(steps[last] - run.steps, loss[last], 1)[-1])


def sparse_target(run: Run, units: Units) -> Target:
    """The end of a run, and points of its curve at CURVE_WEIGHT: what the 16-feature law is fitted to."""
    steps, loss = curve_points(run, units)
    assert run.loss is not None
    return Target(
        run.schedule,
        np.append(steps, run.steps),
        np.append(loss, run.loss),
        np.append(np.full(len(steps), CURVE_WEIGHT), 1.0),
    )


def whole_target(run: Run) -> Target:
    """The curve of a run after its warm-up: what the laws of curves are fitted to."""
    after = run.curve_steps > warmup_of(run.schedule)
    return Target(run.schedule, run.curve_steps[after], run.curve_loss[after], np.ones(int(after.sum())))


def end_target(run: Run) -> Target:
    """The end of a run."""
    assert run.loss is not None
    return Target(run.schedule, np.array([run.steps]), np.array([run.loss]), np.ones(1))


def judged(run: Run, units: Units, with_curve: bool) -> Target:
    """The points by which a law that has not seen the run is judged: its end, and with `with_curve` its curve."""
    target = sparse_target(run, units)
    if with_curve:
        return Target(target.schedule, target.steps, target.loss, np.ones(len(target.loss)))
    return end_target(run)


def cut(run: Run, share: float) -> tuple[Run, Target]:
    """A run with only the first `share` of its curve, and the rest of it as points to be judged by."""
    count = int(share * len(run.curve_steps))
    rest = Target(run.schedule, run.curve_steps[count:], run.curve_loss[count:], np.ones(len(run.curve_steps) - count))
    return replace(run, curve_steps=run.curve_steps[:count], curve_loss=run.curve_loss[:count]), rest
