"""Schedules to choose from: families of at most five parameters, as free per-step schedules exploit a law's errors."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from kinfolk.errors import KinfolkError
from kinfolk.schedule.law import FittedRange, ScheduleLaw
from kinfolk.schedule.shapes import Array, NamedSchedule, Shape, rates

SHAPES: tuple[Shape, ...] = ("linear", "1-sqrt", "cosine")
FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
ENDS = (0.0, 0.1)
PEAKS = 9


@dataclass(frozen=True)
class Grid:
    """What candidates are made of; None is chosen from the range of the law's runs."""

    peaks: Sequence[float] | None = None
    shapes: Sequence[Shape] = SHAPES
    decay_fractions: Sequence[float] | None = None
    end_ratios: Sequence[float] | None = None
    warmup_steps: Sequence[int] | None = None


def candidates(law: ScheduleLaw, steps: int, grid: Grid = Grid()) -> list[NamedSchedule]:
    """Every schedule of the grid that runs for `steps` steps; a cosine decays from the end of its warm-up.

    Without peaks these are the fitted ones and some between them, so that none is outside; without shares, tenths and
    the fitted extremes; without end ratios, those of 0 and 0.1 at which the law is in its range. KinfolkError for
    values that make no schedule.
    """
    peaks = grid.peaks or fitted_peaks(law)
    shares = grid.decay_fractions or sorted({*FRACTIONS, *(law.fitted.decay_fraction or ())})
    warmups = grid.warmup_steps or (typical_warmup(law, steps),)
    ends = grid.end_ratios or _fitted_ends(law.fitted)
    found: dict[NamedSchedule, None] = {}
    for peak, shape, end, warmup in product(peaks, grid.shapes, ends, warmups):
        fractions = (1.0,) if shape == "cosine" else (0.0,) if shape == "constant" else tuple(shares)
        for fraction in fractions:
            if warmup > steps:
                raise KinfolkError(
                    f"a warm-up of {warmup} steps is longer than {steps} steps",
                    where="--warmup-steps",
                    fix="shorten it",
                )
            schedule = NamedSchedule(
                steps=steps,
                peak=float(peak),
                shape=shape,
                warmup_steps=warmup,
                decay_fraction=fraction,
                end_ratio=0.0 if shape == "constant" else end,
                warmup_from=typical_warmup_from(law),
            )
            found[schedule] = None
    return list(found)


def fitted_peaks(law: ScheduleLaw) -> tuple[float, ...]:
    """The peaks of the fit, and as many between them as make nine."""
    low, high = law.fitted.peak_lr
    measured = {float(f"{run.settings.peak_lr:.6g}") for run in law.measured} | {low, high}
    if len(measured) == 1:
        return (low,)
    between = np.geomspace(low, high, max(PEAKS - len(measured) + 2, 2))[1:-1]
    return tuple(sorted(measured | {float(f"{peak:.3g}") for peak in between}))


def typical_warmup(law: ScheduleLaw, steps: int) -> int:
    """The commonest warm-up of the fitted runs, at most a tenth of the steps."""
    found = [run.settings.warmup_steps for run in law.measured] or [law.fitted.warmup_steps[1]]
    return min(max(set(found), key=found.count), steps // 10)


def typical_warmup_from(law: ScheduleLaw) -> float:
    """Where warm-ups of the fitted runs begin, as a share of the peak: their median."""
    found = sorted(run.settings.warmup_from for run in law.measured)
    return found[len(found) // 2] if found else 0.0


def _fitted_ends(fitted: FittedRange) -> tuple[float, ...]:
    low, high = fitted.end_ratio
    # A decay whose last step still moves ends a step above its end ratio.
    return tuple(end for end in ENDS if low - 0.01 <= end <= high) or (round(low, 3),)


def extended(past: NamedSchedule, schedule: NamedSchedule) -> Array:
    """The rates (steps,) of a finished run and of `schedule` after it, whose warm-up begins at the run's last rate."""
    before = rates(past)
    last = float(before[-1])
    after = NamedSchedule(
        steps=schedule.steps,
        peak=schedule.peak,
        shape=schedule.shape,
        warmup_steps=schedule.warmup_steps,
        decay_fraction=schedule.decay_fraction,
        end_ratio=schedule.end_ratio,
        warmup_from=min(last / schedule.peak, 1.0),
    )
    return np.concatenate([before, rates(after)])
