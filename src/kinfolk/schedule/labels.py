"""Which runs count as diverged, besides those that say so."""

import math
from collections.abc import Sequence
from dataclasses import replace

from kinfolk.schedule.run import Run
from kinfolk.schedule.shapes import Array, Steps

HIGH = 1.5
"""A final loss above this many times the best run's is that of a run that diverged."""
RISEN = 1.3
"""A curve that ends this many times above its lowest loss after the warm-up has diverged."""


def curve_diverged(steps: Steps, loss: Array, warmup_steps: int) -> bool:
    """Whether a curve of losses (point,) after so many steps (point,) ends diverged.

    It has a point that is no number, ends above its first point (where that lies in the warm-up, or before it), or ends
    far above its lowest loss after the warm-up.
    """
    if not len(loss) or not all(map(math.isfinite, loss)):
        return len(loss) > 0
    after = loss[steps > warmup_steps]
    if not len(after):
        return False
    knows_start = steps[0] <= warmup_steps
    return bool(after[-1] > RISEN * after.min() or (knows_start and after[-1] > loss[0]))


def with_high_losses(runs: Sequence[Run]) -> list[Run]:
    """The runs, those without a loss whose final loss is far above the best.

    The best is that of the same size among runs no longer than the one that is judged: larger models and longer runs
    reach losses that a small or a short one cannot.
    """
    found = []
    for run in runs:
        peers = [other for other in runs if _same_size(run, other) and other.steps <= run.steps]
        best = min((other.loss for other in peers if other.loss is not None), default=math.inf)
        is_high = run.loss is not None and run.loss > HIGH * best
        found.append(replace(run, loss=None) if is_high else run)
    return found


def _same_size(run: Run, other: Run) -> bool:
    """As far as is known: runs of several sizes all say theirs."""
    return run.size == other.size or run.size is None or other.size is None
