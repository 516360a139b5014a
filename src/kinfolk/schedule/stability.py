"""The risk that a schedule diverges: what was seen to be stable at each size, and a regression."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from kinfolk.schedule.divergence import Regression, fit_regression
from kinfolk.schedule.run import Run
from kinfolk.schedule.shapes import Schedule, peak_of

CAP = 1.5
"""A peak above this many times the largest stable one is refused."""

Risk = Literal["low", "unknown", "high", "refused"]


class Limits(BaseModel):
    """What runs of one size say."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    size: float | None
    """Parameters of the model, where runs say so."""
    stable: int
    diverged: int
    largest_stable: float | None
    """Largest peak of a run that did not diverge; None if all did."""
    smallest_diverged: float | None
    stopped: float | None = None
    """Share of their steps after which diverged runs were stopped, in the median; None where it is not known."""

    @property
    def cap(self) -> float | None:
        """Peaks above it are refused."""
        return None if self.largest_stable is None else CAP * self.largest_stable


class Stability(BaseModel):
    """What runs say of divergence."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    largest_stable: float
    """Largest peak of a run that did not diverge, of any size."""
    smallest_diverged: float | None
    diverged: int
    regression: Regression | None
    """None where fewer than three runs diverged or did not: too few to tell."""
    sizes: tuple[Limits, ...] = ()
    """The same for each size, from small to large."""

    def limits(self, size: float | None = None) -> Limits:
        """Those of the nearest size that is not larger and has a stable run; else those of the smallest that has one.

        Without a size those of the largest.
        """
        known = [each for each in self.sizes if each.largest_stable is not None]
        below = [each for each in known if size is None or each.size is None or each.size <= size * (1 + 1e-9)]
        if not known:
            return Limits(
                size=None,
                stable=1,
                diverged=self.diverged,
                largest_stable=self.largest_stable,
                smallest_diverged=self.smallest_diverged,
            )
        return below[-1] if below else known[0]

    def risk(self, schedule: Schedule, size: float | None = None) -> tuple[Risk, float | None]:
        """The risk of a schedule in a word, and the probability where there is a regression.

        Without a `size` that of the largest model that the runs are of.
        """
        peak, limits = peak_of(schedule), self.limits(size)
        at = size if size is not None else limits.size
        probability = self.regression.probability(schedule, at) if self.regression else None
        if limits.cap is not None and peak > limits.cap * (1 + 1e-9):
            return "refused", probability
        if probability is not None:
            return ("high" if probability >= 0.5 else "low"), probability
        if limits.smallest_diverged is not None and peak >= limits.smallest_diverged * (1 - 1e-9):
            return "high", None
        stable = limits.largest_stable is not None and peak <= limits.largest_stable * (1 + 1e-9)
        return ("low" if stable else "unknown"), None


def stability(runs: Sequence[Run]) -> Stability:
    """What runs say of divergence; some of them must not have diverged, and all or none must say their size.

    Of runs of a single size some may leave it out.
    """
    sizes = sorted({run.size for run in runs if run.size is not None})
    groups: list[tuple[float | None, list[Run]]] = [(size, [run for run in runs if run.size == size]) for size in sizes]
    if len(sizes) < 2:
        groups = [(sizes[0] if sizes else None, list(runs))]
    return Stability(
        largest_stable=max(run.peak for run in runs if not run.diverged),
        smallest_diverged=min((run.peak for run in runs if run.diverged), default=None),
        diverged=sum(run.diverged for run in runs),
        regression=fit_regression(runs),
        sizes=tuple(_limits(size, of_size) for size, of_size in groups),
    )


def _limits(size: float | None, runs: Sequence[Run]) -> Limits:
    stable = [run.peak for run in runs if not run.diverged]
    diverged = [run for run in runs if run.diverged]
    stopped = [run.stopped_at / run.steps for run in diverged if run.stopped_at is not None]
    return Limits(
        size=size,
        stable=len(stable),
        diverged=len(diverged),
        largest_stable=max(stable, default=None),
        smallest_diverged=min((run.peak for run in diverged), default=None),
        stopped=float(np.median(stopped)) if stopped else None,
    )
