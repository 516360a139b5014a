"""The best peak of a schedule by a law: everything else stays as it is."""

from dataclasses import dataclass, replace

import numpy as np

from kinfolk.schedule.kinds import KINDS
from kinfolk.schedule.law import ScheduleLaw
from kinfolk.schedule.shapes import NamedSchedule

PEAKS = 61
"""Peaks that are tried over the fitted range, evenly in their logarithm."""


@dataclass(frozen=True)
class BestPeak:
    """The peak with the lowest forecast, and those around it that cannot be told from it."""

    peak: float
    low: float
    high: float
    loss: float
    at_edge: bool
    """Whether it is the lowest or highest fitted peak, so that the best one may lie beyond."""


def why_silent(law: ScheduleLaw) -> str | None:
    """Why a law says nothing of the peak; None where it does."""
    low, high = law.fitted.peak_lr
    if not KINDS[law.kind].tells_peaks:
        return f"a law of the kind {law.kind} has no term for the peak"
    if high / low < 1 + 1e-6:
        return f"its runs all have the peak {low:g}"
    return None


def best_peak(law: ScheduleLaw, schedule: NamedSchedule) -> BestPeak:
    """The best peak within the fitted range for a schedule, whose own peak does not matter.

    The law must not be silent on the peak.
    """
    peaks = np.geomspace(*law.fitted.peak_lr, PEAKS)
    losses = np.array([float(law.predict(replace(schedule, peak=float(peak)))[0]) for peak in peaks])
    best = int(losses.argmin())
    alike = losses - losses[best] <= law.tie_at(float(losses[best]), schedule.steps)
    low, high = best, best
    while low > 0 and alike[low - 1]:
        low -= 1
    while high < PEAKS - 1 and alike[high + 1]:
        high += 1
    peak, lowest, highest = (float(f"{peaks[index]:.4g}") for index in (best, low, high))
    return BestPeak(peak, lowest, highest, float(losses[best]), at_edge=best in (0, PEAKS - 1))
