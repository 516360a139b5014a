"""When to begin the decay of a run that holds its rate, for a given end."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kinfolk.schedule.live import DROP_SHARE, QUANTILE, NotYet, beyond, too_early, usable, widened
from kinfolk.schedule.live_law import COMPARING, Gain, fit
from kinfolk.schedule.shapes import Array, NamedSchedule, Shape, Steps

SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
APART = 0.005
"""Deviation of ln of the ratio of two decays' losses beyond the law's own: from a constant rate alone it undervalues
long decays at high peaks (benchmarks/schedules.py)."""


@dataclass(frozen=True)
class Option:
    """A decay that begins after so many steps, with the forecast of its end."""

    begin: int
    shape: Shape
    share: float
    """Of all steps to the end."""
    loss: float
    low: float
    high: float
    tied: bool
    """Whether it cannot be told from the best."""


@dataclass(frozen=True)
class Advice:
    """What to do; steps count from the beginning of the schedule."""

    now: int
    end: int
    options: tuple[Option, ...]
    """From the best on."""
    planned: Option
    begun_now: Option
    keep: bool
    choice: Option
    latest: Option
    """The latest beginning that cannot be told from the best: until there the rate may be held."""
    gain: float
    """Nats by which the choice is forecast to end below the planned decay; 0 where that is kept."""
    tie: float
    """By how many nats a planned decay must be above the best to be told from it."""
    verdict: str


def advise(
    held: NamedSchedule,
    steps: Steps,
    losses: Array,
    end: int,
    planned: NamedSchedule,
    gain: Gain = Gain(),  # noqa: B008 (frozen)
    shapes: Sequence[Shape] = ("linear", "1-sqrt"),
) -> Advice | NotYet:
    """Compare decays that begin from now on and finish at step `end`.

    `held` is the schedule so far, a warm-up and a constant rate; `steps` and `losses` (point,) its curve; `planned` the
    decay to compare with, which gives the end ratio too.
    """
    now = int(steps[-1]) if len(steps) else 0
    used = usable(held, steps)
    why = too_early(len(used), now, end)
    if why:
        return why
    if now >= end:
        return NotYet(f"step {now:,} is done, and the end would be step {end:,}")

    def decay(begin: int, shape: Shape) -> NamedSchedule:
        return replace(held, steps=end, shape=shape, decay_fraction=(end - begin) / end, end_ratio=planned.end_ratio)

    usual = decay(max(end - planned.decay_steps, now), planned.shape)
    at_once = decay(now, planned.shape)
    begins = [round((1 - share) * end) for share in SHARES]
    grid = [decay(begin, shape) for shape in dict.fromkeys((planned.shape, *shapes)) for begin in begins if begin > now]
    candidates = list(dict.fromkeys([usual, at_once, *grid]))
    posterior = fit(held, steps[used], losses[used], gain, COMPARING)
    forecasts, covariance = posterior.predict([(each, end) for each in candidates])
    deviations = np.sqrt(np.diag(covariance))
    half = np.array(
        [beyond(posterior.level, *both) for both in zip(forecasts.tolist(), deviations.tolist(), strict=True)]
    ) * widened(held, steps[used], losses[used], gain)
    best = int(forecasts.argmin())
    apart = _tie(forecasts, covariance, best)
    options = [
        Option(
            begin=end - each.decay_steps,
            shape=each.shape,
            share=each.decay_steps / end,
            loss=float(loss),
            low=float(loss * np.exp(-width)),
            high=float(loss * np.exp(width)),
            tied=bool(loss - forecasts[best] <= tie),
        )
        for each, loss, width, tie in zip(candidates, forecasts, half, apart, strict=True)
    ]
    standing, instead = options[0], options[best]
    choice = standing if standing.tied else instead
    tied = [option for option in options if option.tied and option.shape == choice.shape]
    return Advice(
        now=now,
        end=end,
        options=tuple(sorted(options, key=lambda option: option.loss)),
        planned=standing,
        begun_now=options[candidates.index(at_once)],
        keep=standing.tied,
        choice=choice,
        latest=max(tied, key=lambda option: option.begin),
        gain=standing.loss - choice.loss,
        tie=float(apart[0]),
        verdict=_verdict(standing, instead, float(apart[0])),
    )


def _tie(forecasts: Array, covariance: Array, best: int) -> Array:
    """By how many nats each forecast (point,) must be above the best one to be told from it."""
    variance = np.diag(covariance) + covariance[best, best] - 2 * covariance[best]
    difference = forecasts - forecasts[best]
    floor = APART * forecasts[best]
    return np.asarray(QUANTILE * np.sqrt(np.maximum(variance, 0.0) + (DROP_SHARE * difference) ** 2 + floor**2))


def _verdict(standing: Option, best: Option, tie: float) -> str:
    gain = standing.loss - best.loss
    if standing.tied:
        return (
            f"no significant difference: keep the planned decay, {describe(standing)} (the best is forecast {gain:.4f} "
            f"nats below it; less than {tie:.4f} cannot be told)"
        )
    return f"change: {describe(best)} is forecast {gain:.4f} nats below the planned decay (tie: {tie:.4f})"


def describe(option: Option) -> str:
    """An option in a few words."""
    return f"{option.shape} from step {option.begin:,} ({100 * option.share:.0f} % of all)"


def advice_document(advice: Advice) -> dict[str, Any]:
    """Advice as JSON."""
    return {
        "now": advice.now,
        "end": advice.end,
        "verdict": advice.verdict,
        "keep_planned": advice.keep,
        "tie": advice.tie,
        "choice": _document(advice.choice),
        "planned": _document(advice.planned),
        "begun_now": _document(advice.begun_now),
        "latest": _document(advice.latest),
        "options": [_document(each) for each in advice.options],
    }


def _document(option: Option) -> dict[str, Any]:
    return {
        "begin_step": option.begin,
        "shape": option.shape,
        "decay_fraction": option.share,
        "predicted": option.loss,
        "low": option.low,
        "high": option.high,
        "tied": option.tied,
    }
