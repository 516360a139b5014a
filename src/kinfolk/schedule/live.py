"""Forecasts of a run that is not finished, from its curve so far, and when to begin its decay.

Widths come from measured errors: the law's own deviation, to which a share of the predicted drop is added, holds 90 %
of what came on public curves (benchmarks/schedules.py); a curve that its own law missed earlier widens it further.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kinfolk.schedule.live_law import Gain, Posterior, fit
from kinfolk.schedule.shapes import Array, Schedule, Steps, length, warmup_of

FEWEST_POINTS = 5
"""After the warm-up."""
FIRST_SHARE = 0.2
"""Of the steps of the schedule that must be done."""
WIDEST = 0.1
"""Half-width of ln loss from which on a forecast is not shown."""
QUANTILE = 1.65
"""Deviations on either side of a 90 % interval; measured, and that of a normal distribution."""
DROP_SHARE = 0.15
"""Of the predicted drop, which the law may be wrong by beyond its own deviation."""
NOISE = 0.001
"""Deviation of ln of a quick held-out loss at the end."""
FEWEST_EARLIER = 3
"""Points of an earlier curve from which on it says something of the gain."""
LIKENESS = 0.35
"""Deviation of ln of the ratio of two neighbours' gains."""


@dataclass(frozen=True)
class Forecast:
    """The loss at the end of a schedule, with a 90 % interval."""

    loss: float
    low: float
    high: float


@dataclass(frozen=True)
class NotYet:
    """Why there is no forecast."""

    why: str


def forecast(
    schedule: Schedule,
    steps: Steps,
    losses: Array,
    gain: Gain = Gain(),  # noqa: B008 (frozen)
) -> Forecast | NotYet:
    """The loss at the end of a schedule whose curve is known up to the last of `steps` (point,)."""
    used, end = usable(schedule, steps), length(schedule)
    why = too_early(len(used), int(steps[-1]) if len(steps) else 0, end)
    if why:
        return why
    found, half = _at(schedule, steps[used], losses[used], end, gain)
    half *= widened(schedule, steps[used], losses[used], gain)
    if not half <= WIDEST:
        return NotYet(f"the interval would be wider than ±{WIDEST:.0%}")
    return Forecast(found, found * float(np.exp(-half)), found * float(np.exp(half)))


def too_early(points: int, now: int, end: int) -> NotYet | None:
    """Whether a curve is too short to mean anything, with so many points behind its warm-up."""
    if points < FEWEST_POINTS:
        return NotYet(f"{points} losses after the warm-up, and {FEWEST_POINTS} are needed")
    if now < FIRST_SHARE * end:
        return NotYet(f"less than {FIRST_SHARE:.0%} of the steps are done")
    return None


def usable(schedule: Schedule, steps: Steps) -> Steps:
    """Which points (their indices) lie behind the warm-up."""
    return np.flatnonzero(steps > warmup_of(schedule)).astype(np.int64)


def half_widths(posterior: Posterior, losses: Array, covariance: Array) -> Array:
    """Half the 90 % interval of ln of each predicted loss (point,)."""
    drop = np.log(posterior.level / losses)
    return np.asarray(
        QUANTILE * np.sqrt(np.diag(covariance) / losses**2 + (DROP_SHARE * drop) ** 2 + NOISE**2), dtype=np.float64
    )


def _at(schedule: Schedule, steps: Steps, losses: Array, end: int, gain: Gain) -> tuple[float, float]:
    posterior = fit(schedule, steps, losses, gain)
    found, covariance = posterior.predict([(schedule, end)])
    return float(found[0]), float(half_widths(posterior, found, covariance)[0])


def widened(schedule: Schedule, steps: Steps, losses: Array, gain: Gain) -> float:
    """By how much the forecast made at half of the points missed the latest loss, in its half-widths; at least 1."""
    half = (len(steps) + 1) // 2
    if half < FEWEST_POINTS:
        return 1.0
    found, width = _at(schedule, steps[:half], losses[:half], int(steps[-1]), gain)
    return max(1.0, abs(float(np.log(losses[-1] / found))) / width)


def earlier_gain(curves: Sequence[tuple[Schedule, Steps, Array]]) -> Gain:
    """The prior of the gain from finished curves of other models of the same run, the last of which counts.

    The share of its loss that a decay takes from a model is close to that of its neighbour in size: on runs of our own
    within LIKENESS. Levels and exponents are not taken over.
    """
    for schedule, steps, losses in reversed(curves):
        used = usable(schedule, steps)
        if len(used) >= FEWEST_EARLIER:
            found = fit(schedule, steps[used], losses[used]).gain()
            return Gain(found.centre, float(np.hypot(found.deviation, LIKENESS)))
    return Gain()
