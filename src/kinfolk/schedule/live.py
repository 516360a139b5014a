"""Forecasts of a run that is not finished, from its curve so far, and when to begin its decay.

Widths come from measured errors: the spread of the law's grid, with a share of the predicted drop added that was
raised until public curves and runs of our own were held (docs/results-schedules.md); a curve that its own law missed
earlier widens it further.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kinfolk.schedule.live_law import Gain, fit
from kinfolk.schedule.shapes import Array, Schedule, Steps, length, warmup_of

FEWEST_POINTS = 5
"""After the warm-up."""
FIRST_SHARE = 0.2
"""Of the steps of the schedule that must be done."""
WIDEST = 0.15
"""Reach of the interval to either side, of ln loss, from which on a forecast is not shown."""
TAILS = (0.05, 0.5, 0.95)
QUANTILE = 1.65
"""Deviations on either side of a 90 % interval: of a normal distribution."""
DROP_SHARE = 0.25
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
    found, below, above = at_end(schedule, steps[used], losses[used], end, gain)
    factor = widened(schedule, steps[used], losses[used], gain)
    if not factor * max(below, above) <= WIDEST:
        return NotYet(f"the interval would be wider than {WIDEST:.0%} to one side")
    return Forecast(found, found * float(np.exp(-factor * below)), found * float(np.exp(factor * above)))


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


def at_end(schedule: Schedule, steps: Steps, losses: Array, end: int, gain: Gain) -> tuple[float, float, float]:
    """Median of the loss after `end` steps, and how far below and above it (in ln) the 90 % interval reaches."""
    posterior = fit(schedule, steps, losses, gain)
    (low, median, high), deviation = posterior.quantiles(schedule, end, TAILS)
    more = beyond(posterior.level, float(median), deviation)
    return float(median), float(np.hypot(np.log(median / low), more)), float(np.hypot(np.log(high / median), more))


def beyond(level: float, loss: float, deviation: float) -> float:
    """Half-width of ln loss from what the grid of the law does not hold."""
    drop = np.log(level / loss)
    return float(QUANTILE * np.sqrt((deviation / loss) ** 2 + (DROP_SHARE * drop) ** 2 + NOISE**2))


def widened(schedule: Schedule, steps: Steps, losses: Array, gain: Gain) -> float:
    """By how much the forecast made at half of the points missed the latest loss, in its half-widths; at least 1."""
    half = (len(steps) + 1) // 2
    if half < FEWEST_POINTS:
        return 1.0
    found, below, above = at_end(schedule, steps[:half], losses[:half], int(steps[-1]), gain)
    missed = float(np.log(losses[-1] / found))
    return max(1.0, missed / above, -missed / below)


def earlier_gain(curves: Sequence[tuple[Schedule, Steps, Array]]) -> tuple[Gain, int | None]:
    """The prior of the gain from finished curves of other models of the same run, and the number of the one it is from.

    That is the last one with FEWEST_EARLIER points after its warm-up; without any it is None.

    The share of its loss that a decay takes from a model is close to that of its neighbour in size: on runs of our own
    within LIKENESS. Levels and exponents are not taken over.
    """
    for number, (schedule, steps, losses) in reversed(list(enumerate(curves))):
        used = usable(schedule, steps)
        if len(used) >= FEWEST_EARLIER:
            found = fit(schedule, steps[used], losses[used]).gain()
            return Gain(found.centre, float(np.hypot(found.deviation, LIKENESS))), number
    return Gain(), None
