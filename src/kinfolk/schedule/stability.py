"""The risk that a schedule diverges, from runs that did and runs that did not (ours; signs after arXiv 2309.14322)."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.optimize import minimize

from kinfolk.schedule.run import Run
from kinfolk.schedule.shapes import Array, Schedule, peak_of, warmup_of

CAP = 1.5
"""A peak above this many times the largest stable one is refused."""
PENALTY = 1.0
"""Of the squared weights of the regression, on features of unit deviation."""
FEWEST = 3
"""Runs of each outcome that a regression needs."""

Risk = Literal["low", "unknown", "high", "refused"]


class Regression(BaseModel):
    """L2-penalised logistic regression on ln peak, ln (1 + warm-up) and ln of the steepest rise of the rate."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    centre: tuple[float, float, float]
    scale: tuple[float, float, float]
    weights: tuple[float, float, float]
    constant: float

    def probability(self, schedule: Schedule) -> float:
        """Of divergence."""
        x = (_features(schedule) - np.array(self.centre)) / np.array(self.scale)
        return float(1 / (1 + math.exp(-np.clip(self.constant + x @ np.array(self.weights), -500, 500))))


class Stability(BaseModel):
    """What runs say of divergence."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    largest_stable: float
    """Largest peak of a run that did not diverge."""
    smallest_diverged: float | None
    diverged: int
    regression: Regression | None
    """None where fewer than three runs diverged or did not: too few to tell."""

    def risk(self, schedule: Schedule) -> tuple[Risk, float | None]:
        """The risk of a schedule in a word, and the probability where there is a regression."""
        peak = peak_of(schedule)
        probability = self.regression.probability(schedule) if self.regression else None
        if peak > CAP * self.largest_stable * (1 + 1e-9):
            return "refused", probability
        if probability is not None:
            return ("high" if probability >= 0.5 else "low"), probability
        if self.smallest_diverged is not None and peak >= self.smallest_diverged * (1 - 1e-9):
            return "high", None
        return ("low" if peak <= self.largest_stable * (1 + 1e-9) else "unknown"), None


def stability(runs: Sequence[Run]) -> Stability:
    """What runs say of divergence; some of them must not have diverged."""
    diverged = [run for run in runs if run.diverged]
    stable = [run for run in runs if not run.diverged]
    return Stability(
        largest_stable=max(run.peak for run in stable),
        smallest_diverged=min((run.peak for run in diverged), default=None),
        diverged=len(diverged),
        regression=_regression(stable, diverged) if min(len(stable), len(diverged)) >= FEWEST else None,
    )


def _regression(stable: Sequence[Run], diverged: Sequence[Run]) -> Regression:
    x = np.stack([_features(run.schedule) for run in (*stable, *diverged)])
    label = np.array([-1.0] * len(stable) + [1.0] * len(diverged))
    centre, scale = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
    standard = (x - centre) / scale

    def objective(at: Array) -> tuple[float, Array]:
        margin = label * (at[0] + standard @ at[1:])
        value = float(np.logaddexp(0.0, -margin).sum() + PENALTY / 2 * at[1:] @ at[1:])
        slope = -label / (1 + np.exp(np.clip(margin, -500, 500)))
        return value, np.append(slope.sum(), slope @ standard + PENALTY * at[1:])

    found = minimize(objective, np.zeros(4), jac=True, method="BFGS").x
    return Regression(
        centre=_triple(centre), scale=_triple(scale), weights=_triple(found[1:]), constant=float(found[0])
    )


def _features(schedule: Schedule) -> Array:
    peak, warmup = peak_of(schedule), warmup_of(schedule)
    return np.log([peak, 1.0 + warmup, peak / max(warmup, 1)])


def _triple(values: Array) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in values)
    return first, second, third
