"""Intervals that hold: measured by hiding the larger runs, because residuals say nothing about extrapolation.

Bootstrap intervals at a nominal 90 % hold 13 to 25 % of the larger runs of the Chinchilla points. Here the runs are cut
at several quantiles of compute, the law is fitted below each cut, and the errors above it are collected.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kinfolk.laws.fitting import Parameters, fit, refit
from kinfolk.laws.loss import Calibration, FittedRange
from kinfolk.laws.objectives import Array

LEVEL = 0.9
CUTS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Quantiles of compute at which runs are cut."""
FEWEST_HIDDEN = 5
"""Errors above the cuts that a calibration needs."""


@dataclass(frozen=True)
class Method:
    """A way from runs (parameters, tokens, loss) to a law, and how many runs below a cut it needs."""

    law: Callable[[Array, Array, Array], Parameters]
    fewest: int


FREE = Method(lambda parameters, tokens, loss: fit(parameters, tokens, loss).parameters, 10)
"""All five numbers fitted."""

Progress = Callable[[int, int], None]
"""Called with how many of how many fits are done."""


@dataclass(frozen=True)
class Bootstrap:
    """Refits of resampled runs: how well the runs hold the parameters. Not for forecasts of larger runs."""

    samples: Array
    """E, A, B, alpha, beta of each resample: (resample, 5)."""

    def interval(self, name: str, level: float = LEVEL) -> tuple[float, float]:
        """Percentile interval of one parameter."""
        column = self.samples[:, ("E", "A", "B", "alpha", "beta").index(name)]
        low, high = np.quantile(column, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def standard_error(self, name: str) -> float:
        """Half the central 68.3 % of one parameter, which a few wild resamples do not move."""
        low, high = self.interval(name, 0.6827)
        return (high - low) / 2

    def predictions(self, parameters: Array, tokens: Array) -> Array:
        """Losses of every refit at points of shape (point,): (resample, point)."""
        e, a, b, alpha, beta = (column[:, None] for column in self.samples.T)
        return np.asarray(e + a * parameters**-alpha + b * tokens**-beta)


def fitted_range(parameters: Array, tokens: Array) -> FittedRange:
    """Where runs of shape (run,) lie."""
    compute, ratio = 6 * parameters * tokens, tokens / parameters

    def span(values: Array) -> tuple[float, float]:
        return float(values.min()), float(values.max())

    return FittedRange(
        runs=len(parameters), parameters=span(parameters), tokens=span(tokens), compute=span(compute), ratio=span(ratio)
    )


def calibrate(parameters: Array, tokens: Array, loss: Array, method: Method = FREE) -> Calibration | None:
    """The width of 90 % intervals by rolling hold-out on runs of shape (run,); None if they are too few.

    k is the 90th percentile of |ln(loss / forecast)| over the runs above each cut, d9 that of their distance from the
    runs below it. An interval at distance d has the half-width k max(1, (1 + d) / (1 + d9)).
    """
    compute = 6 * parameters * tokens
    errors, distances = [], []
    for quantile in CUTS:
        below = compute <= np.quantile(compute, quantile)
        if below.sum() < method.fewest or below.all():
            continue
        law = method.law(parameters[below], tokens[below], loss[below])
        above = ~below
        errors.append(np.abs(np.log(loss[above] / law.predict(parameters[above], tokens[above]))))
        distances.append(fitted_range(parameters[below], tokens[below]).distance(parameters[above], tokens[above]))
    hidden = sum(map(len, errors))
    if hidden < FEWEST_HIDDEN:
        return None
    return Calibration(
        level=LEVEL,
        # Data without noise would give a width of nothing.
        half_width=max(float(np.quantile(np.concatenate(errors), LEVEL)), 1e-9),
        reach=float(np.quantile(np.concatenate(distances), LEVEL)),
        hidden_runs=hidden,
        basis="rolling hold-out",
    )


def bootstrap(
    parameters: Array,
    tokens: Array,
    loss: Array,
    near: Parameters,
    *,
    resamples: int = 1000,
    groups: NDArray[np.int64] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Bootstrap:
    """Refit `resamples` draws of runs with replacement.

    `groups` (run,) names the run that each row is a checkpoint of: whole runs are drawn, because rows of one run are
    not independent.
    """
    generator = np.random.default_rng(seed)
    members = None if groups is None else [np.flatnonzero(groups == group) for group in np.unique(groups)]
    samples = np.empty((resamples, 5))
    for index in range(resamples):
        if members is None:
            rows = generator.integers(0, len(loss), len(loss))
        else:
            rows = np.concatenate([members[pick] for pick in generator.integers(0, len(members), len(members))])
        law = refit(parameters[rows], tokens[rows], loss[rows], near).parameters
        samples[index] = law.E, law.A, law.B, law.alpha, law.beta
        if progress:
            progress(index + 1, resamples)
    return Bootstrap(samples)
